"""The operator's own configuration: one YAML file (the chart's ConfigMap), checked before anything starts."""

from __future__ import annotations

import os
import socket
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from bandkeeper.api import durations
from bandkeeper.quality.peaks import Table, table
from bandkeeper.quality.types import Thresholds
from bandkeeper.signals.prometheus import url_problem


class SettingsError(Exception):
    """The configuration cannot be used; the text says what to write instead."""


class LogFormat(StrEnum):
    """How log lines are written."""

    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    """The least grave line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _seconds(value: Any) -> float:
    """Read "15s" as 15.0; a bare number is refused because its unit would be a guess."""
    if not isinstance(value, str):
        raise ValueError(f"must be a duration such as 15s or 500ms, not {value!r}")
    return durations.parse(value)


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than 0s")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), AfterValidator(_positive)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Lease(_Model):
    """The Lease that decides which replica writes.

    Attributes
    ----------
    namespace
        Empty: the namespace of the operator's own pod, else `default`.
    """

    name: str = "bandkeeper"
    namespace: str = ""
    duration: Seconds = 15.0
    renew_deadline: Seconds = 10.0
    retry_period: Seconds = 2.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.retry_period < self.renew_deadline < self.duration:
            raise ValueError("renewDeadline must be longer than retryPeriod and shorter than duration")
        return self


class Server(_Model):
    """One Prometheus. Secrets come from mounted files, which are read again when they change."""

    name: str = "default"
    url: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    bearer_token_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    insecure_skip_verify: bool = False
    timeout: Seconds = 5.0

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if sentence := url_problem(self.url):
            raise ValueError(f"url: {sentence}")
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and passwordFile go together: give both or neither")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("certFile and keyFile go together: give both or neither")
        return self


class Prometheus(_Model):
    """The Prometheus servers; policies that name none use the first.

    Attributes
    ----------
    allowed_urls
        Prefixes of URLs that a policy may give itself. None are allowed by default, because a query is a request
        that the operator sends from inside the cluster. Credentials are never sent there.
    rate_window
        Window of counter rates; at least two scrapes must fall into it.
    stale_after
        Age at which a server's sample is no data. GPU exporters refresh more slowly and get `gpu_stale_after`.
    """

    servers: list[Server] = Field(min_length=1)
    allowed_urls: list[str] = Field(default_factory=list, alias="allowedURLs")
    rate_window: Seconds = 60.0
    stale_after: Seconds = 60.0
    gpu_stale_after: Seconds = 90.0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [server.name for server in self.servers]
        if len(set(names)) != len(names):
            raise ValueError("two servers have the same name; policies choose by name, so give each its own")
        return self


class Adapters(_Model):
    """Batch adapters that the operator was granted the rights for."""

    annotation: bool = False
    pod_template: bool = False
    http: bool = False
    config_map: bool = False
    triton: bool = False
    ray_serve: bool = False
    k_serve: bool = False


class PodCredential(_Model):
    """A header that pods' servers want, for policies in some namespaces: a policy names it, and never a file.

    Attributes
    ----------
    file
        A mounted file with the header's value after `prefix`; read again each time.
    namespaces
        Whose policies may have it sent to their pods. None by default: who gets the header can use it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    file: Path
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "Authorization"
    prefix: Annotated[str, Field(pattern=r"^[ -~]*$")] = "Bearer "
    namespaces: list[str] = Field(min_length=1)


class PodAccess(_Model):
    """How adapters log in to the servers in pods, and whom they trust there.

    Attributes
    ----------
    ca_file
        Trusted for pods that speak TLS, instead of the system's authorities.
    """

    ca_file: Path | None = None
    credentials: list[PodCredential] = Field(default_factory=list)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [credential.name for credential in self.credentials]
        if len(set(names)) != len(names):
            raise ValueError("two credentials have the same name; policies choose by name, so give each its own")
        return self


def _bound(name: str, default: Any) -> Any:
    """One bound of quality as a setting: a time is written as a duration, under its name without the unit."""
    if name.endswith("_s"):
        return Seconds, Field(default=default, alias=to_camel(name.removesuffix("_s")))
    return Annotated[float, Field(gt=0)], Field(default=default)


_FIELDS: dict[str, Any] = {each.name: _bound(each.name, each.default) for each in fields(Thresholds)}
_Bounds = create_model("_Bounds", __base__=_Model, **_FIELDS)


class Quality(_Model):
    """How the quality of utilisation is judged.

    Attributes
    ----------
    thresholds
        Bounds that replace the built-in ones (docs/quality.md names them), such as `{poorUpper: 0.3, settle: 2m}`.
    gpus
        GPUs that the built-in table of peaks does not know, by product name, such as
        `RTX A6000: {teraflops: 154.8, terabytesPerSecond: 0.768, watts: 300}`.
    """

    thresholds: _Bounds = Field(default_factory=_Bounds)
    gpus: dict[str, dict[str, float]] = Field(default_factory=dict)

    @field_validator("gpus")
    @classmethod
    def _known(cls, added: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        table(added)
        return added

    @property
    def bounds(self) -> Thresholds:
        """The bounds in force."""
        return Thresholds(**self.thresholds.model_dump())

    @property
    def peaks(self) -> Table:
        """The built-in peaks and those that were added."""
        return table(self.gpus)


class Settings(_Model):
    """Everything that is set once for the whole operator.

    Attributes
    ----------
    period
        Time between two looks at every policy.
    namespaces
        Namespaces to watch; empty means all.
    restart_hold
        After a start or a change of leader no scale-in happens before this much was observed. A policy's own
        scale-down window lengthens it.
    listen
        host:port of /healthz, /readyz and /metrics; port 0 takes a free one.
    """

    period: Seconds = 15.0
    namespaces: list[str] = Field(default_factory=list)
    log_format: LogFormat = LogFormat.JSON
    log_level: LogLevel = LogLevel.INFO
    listen: Annotated[str, Field(pattern=r"^[^:]*:[0-9]{1,5}$")] = "127.0.0.1:8080"
    restart_hold: Seconds = 300.0
    lease: Lease = Field(default_factory=Lease)
    prometheus: Prometheus
    adapters: Adapters = Field(default_factory=Adapters)
    pod_access: PodAccess = Field(default_factory=PodAccess)
    quality: Quality = Field(default_factory=Quality)

    @property
    def address(self) -> tuple[str, int]:
        """`listen` as host and port."""
        host, _, port = self.listen.rpartition(":")
        return host or "0.0.0.0", int(port)

    @property
    def lease_namespace(self) -> str:
        """Where the Lease lives."""
        return self.lease.namespace or own_namespace()


def own_namespace() -> str:
    """The namespace of the operator's pod, `default` outside a cluster."""
    mounted = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    if named := os.environ.get("POD_NAMESPACE"):
        return named
    return mounted.read_text().strip() if mounted.exists() else "default"


def identity() -> str:
    """Who this process is in the Lease and in events: the pod's name, and the process, so that no two are alike."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}-{os.getpid()}"


def load(path: Path) -> Settings:
    """Read and check the configuration.

    Raises
    ------
    SettingsError
        With one line for each thing that is wrong, by its place in the file.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); give an existing file with --config"
        ) from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not YAML: {error}") from error
    return parse(document, str(path))


def parse(document: Any, origin: str) -> Settings:
    """Check an already read document; `origin` names it in errors."""
    if not isinstance(document, dict):
        raise SettingsError(f"{origin}: must be a YAML mapping with at least prometheus.servers")
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        lines = [f"{origin}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(lines)) from error
