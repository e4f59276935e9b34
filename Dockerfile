# The operator's and the node agent's image. Both stages share the distribution's Python, so that the environment moves over as it is; the
# final stage has no pip, no compiler and no source tree.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/bandkeeper
# Everything downloaded is checked against the hashes of the locks; the build tools are those of the development lock.
COPY requirements/ requirements/
RUN /opt/build/bin/pip --python /opt/bandkeeper/bin/python install --require-hashes --only-binary :all: \
      --requirement requirements/runtime.lock \
 && awk '/^[a-z]/ { build = /^(grpcio|grpcio-tools|hatchling|packaging|pathspec|pluggy|protobuf|setuptools|tomlkit|trove-classifiers|typing-extensions)==/ } build' requirements/dev.lock \
      > build.lock \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: --requirement build.lock
COPY LICENSE README.md hatch_build.py pyproject.toml ./
COPY operator/ operator/
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/build/bin/pip --python /opt/bandkeeper/bin/python install --no-deps --no-index dist/*.whl

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="bandkeeper" \
      org.opencontainers.image.description="Kubernetes autoscaling operator for GPU workloads" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/bandkeeper /opt/bandkeeper
# The root file system is read-only in the cluster; /tmp is the one place to write. USER names who runs to those who ask
# the C library in vain: the numeric user has no entry in /etc/passwd.
ENV HOME=/tmp USER=bandkeeper PATH=/opt/bandkeeper/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["bandkeeper"]
CMD ["run", "--config", "/etc/bandkeeper/config.yaml"]
