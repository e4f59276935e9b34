# Every target sets up what it needs: a virtual environment from the hashed lock, and the control plane's binaries (once).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := hatch_build.py operator tests
SEED ?= $(shell date +%s)

.PHONY: demo test test-hpa test-servers test-vllm lint generate bench fuzz cluster lock clean help

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(STAMP): requirements/dev.lock requirements/uv.lock pyproject.toml hatch_build.py operator/bandkeeper/agent/podresources.proto
	@echo "==> Setting up $(VENV) from the hashed lock (less than a minute, once)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Bandkeeper needs Python 3.11 or newer; call make PYTHON=python3.x")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.lock \
	  || { echo "==> uv cannot reach the package index; pip does it more slowly"; \
	       $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

cluster: $(STAMP) ## build the local control plane's binaries, or find them in the cache
	@$(BIN)/python -m tests.cluster build

demo: $(STAMP) ## a simulated report, then three objectives under one load on a local control plane
	@$(BIN)/python -m tests.demo.preview
	@$(BIN)/python -m tests.demo

lint: $(STAMP) ## ruff, mypy --strict, import contracts
	@echo "==> Lint, types, import contracts"
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy operator/bandkeeper tests
	@$(BIN)/lint-imports

test: lint cluster ## lint, types, import contracts, unit, property, chart and real control plane tests
	@echo "==> Tests: unit, property, chart, real control plane"
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder --cov --cov-report=term:skip-covered

test-hpa: cluster ## the HPA's rule of the lab against the real kube-controller-manager, 200 steps (about 4 minutes)
	@$(BIN)/python -m pytest -q tests/hpa/check_controller.py

test-servers: cluster ## batch adapters and presets against real model servers on the CPU (installed once, a few minutes)
	@echo "==> Tests: real model servers"
	@$(BIN)/python -m pytest -q tests/servers

test-vllm: cluster ## vLLM itself on the CPU, its cap moved under load; 6 GB of packages the first time (about 4 minutes)
	@$(BIN)/python -m tests.vllm.install
	@$(BIN)/python -m pytest -q tests/vllm/check_vllm.py

generate: $(STAMP) ## write crds/, the chart's copy and the API reference from the models
	@$(BIN)/python -m bandkeeper.api.crdgen
	@$(BIN)/python -m bandkeeper.runtime.metrics

bench: $(STAMP) ## benchmarks, by hand
	@for file in tests/bench/bench_*.py; do echo "==> $$file"; $(BIN)/python $$file || exit 1; done

fuzz: $(STAMP) ## the property tests with more than 100,000 decisions each, and their seed (about 40 minutes on 2 cores)
	@echo "==> Properties with seed $(SEED); SEED=$(SEED) make fuzz repeats them"
	@HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q -n 2 --hypothesis-seed=$(SEED) --hypothesis-show-statistics tests/properties

COMPILE := $(BIN)/uv pip compile --generate-hashes --no-emit-index-url --no-header --no-annotate --universal --python-version 3.11 --quiet

lock: $(STAMP) ## renew the hashed locks
	@$(COMPILE) pyproject.toml --extra agent --output-file requirements/runtime.lock
	@$(COMPILE) pyproject.toml --extra agent --extra lab --group dev --constraints requirements/runtime.lock --output-file requirements/dev.lock
	@echo uv | $(COMPILE) - --constraints requirements/dev.lock --output-file requirements/uv.lock
	@printf 'nvidia-pytriton==0.7.0\nnumpy<2\n' | $(COMPILE) - --no-deps --output-file requirements/servers-triton.lock
	@echo 'ray[serve]==2.60.0' | $(COMPILE) - --output-file requirements/servers-rayserve.lock
	@$(COMPILE) requirements/vllm.in --overrides requirements/vllm.overrides --output-file requirements/vllm.lock

clean: ## remove what the other targets made here
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
