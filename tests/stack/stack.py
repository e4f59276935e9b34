"""Composes the control plane, Prometheus, the emulated servers and operator processes into one context manager."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.cluster import Children, ControlPlane, Prometheus, eventually, free_ports
from tests.cluster.loopback import fetch
from tests.emulator.scrape import kubelet_scrape_config, scrape_configs

from .install import REPOSITORY, Installed, install_chart, install_crds, remove_chart
from .manifests import deployment
from .operator import OperatorProcess

READY_TIMEOUT_S = 30.0
GRANTED = {"adapters": {"annotation": {"enabled": True}, "podTemplate": {"enabled": True}}}
Json = dict[str, Any]


class Rights(Enum):
    """As whom the operator acts: the chart's service account with the chart's RBAC, or the admin."""

    CHART = "chart"
    ADMIN = "admin"


class StackError(RuntimeError):
    """A part of the stack refused what was asked of it; the message is its own."""


class Stack:
    """Everything that an end-to-end test or the demo needs; `with Stack(...) as stack:`.

    Parameters
    ----------
    emulator
        The emulator's configuration (see tests/emulator/README.md); None: no emulated servers.
    cluster
        A control plane that exists and is left running; None: one of our own, ended with the stack.
    nodes, gpus_per_node
        Of a control plane of our own.
    namespace
        Where the workloads and policies live unless a call says otherwise; created if it is not there.
    operator_namespace
        Where the operator's service account and Lease live.
    rights
        As whom the operator acts.
    chart_values
        Values of the chart, over all batch adapters granted.
    settings
        The operator's settings (camelCase, as in its file) over the chart's, a period of 1 s and our Prometheus.
    scrape_more
        More scrape configurations, for what a test exposes itself.
    prometheus_args
        More command line arguments of Prometheus.

    Attributes
    ----------
    cluster, prometheus
        The running parts.
    logs
        One file for each of the stack's own processes; removed on exit unless `keep_run_dir`.
    """

    def __init__(
        self,
        *,
        emulator: Mapping[str, Any] | None = None,
        cluster: ControlPlane | None = None,
        nodes: int = 2,
        gpus_per_node: int = 8,
        namespace: str = "serving",
        operator_namespace: str = "bandkeeper",
        rights: Rights = Rights.CHART,
        chart_values: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        scrape_interval: str = "1s",
        scrape_more: Sequence[Mapping[str, Any]] = (),
        prometheus_args: Sequence[str] = (),
        keep_run_dir: bool = False,
    ) -> None:
        self.namespace = namespace
        self.operator_namespace = operator_namespace
        self.operators: dict[str, OperatorProcess] = {}
        self.cluster: ControlPlane
        self.prometheus: Prometheus
        self.run_dir: Path
        self._given_cluster = cluster
        self._nodes, self._gpus_per_node = nodes, gpus_per_node
        self._emulator_config = emulator
        self._emulator_url = ""
        self._rights = rights
        self._chart_values = chart_values or {}
        self._settings = settings or {}
        self._scrape_interval = scrape_interval
        self._scrape_more = scrape_more
        self._prometheus_args = prometheus_args
        self._keep_run_dir = keep_run_dir
        self._children: Children
        self._installed: Installed
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._start(undo)
            self._exit = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @property
    def logs(self) -> Path:
        """The directory of the emulator's and the operators' logs."""
        return self._children.log_dir

    @property
    def emulator_url(self) -> str:
        """Where the emulator's pages are."""
        if not self._emulator_url:
            raise StackError("this stack was made without emulated servers; give Stack(emulator=...)")
        return self._emulator_url

    # -- workloads ----------------------------------------------------------------------------------------------------

    def deploy(self, name: str, namespace: str | None = None, **options: Any) -> None:
        """Apply a workload of GPU pods; options as in `manifests.deployment`."""
        self.apply(deployment(name, namespace or self.namespace, **options))

    def apply(self, *documents: Mapping[str, Any]) -> str:
        """`kubectl apply -f -`, strict; returns what it said. Raises CommandError."""
        return self.cluster.kubectl("apply", "-f", "-", input=list(documents))

    def wait_ready(self, name: str, replicas: int, *, namespace: str | None = None, timeout_s: float = 60.0) -> None:
        """Wait until the Deployment has exactly so many ready pods."""

        def enough() -> bool:
            status = self.cluster.get("deployment", name, namespace=namespace or self.namespace)["status"]
            assert int(status.get("readyReplicas", 0)) == replicas == int(status.get("replicas", 0)), status
            return True

        eventually(enough, timeout_s=timeout_s, every_s=0.25, what=f"{name} with {replicas} ready pods")

    def replicas(self, name: str, *, namespace: str | None = None) -> int:
        """What the Deployment asks for now."""
        return int(self.cluster.get("deployment", name, namespace=namespace or self.namespace)["spec"]["replicas"])

    def load(self, workload: str, profile: Mapping[str, Any]) -> float:
        """Give one emulated workload another load; returns when its clock began, in epoch seconds."""
        return self._put(f"/workloads/{workload}/load", profile)

    def load_all(self, profile: Mapping[str, Any]) -> float:
        """Give every emulated workload the same load from one instant on; returns that instant in epoch seconds."""
        return self._put("/load", profile)

    def fault(self, workload: str, kind: str, pods: Sequence[str] | None = None) -> None:
        """Spoil what the pods of a workload expose (kinds in tests/emulator/README.md); `none` mends it."""
        self._put(f"/workloads/{workload}/fault", {"kind": kind, **({} if pods is None else {"pods": list(pods)})})

    def gpu_fault(self, kind: str, nodes: Sequence[str] | None = None) -> None:
        """Spoil what the GPU exporters expose."""
        self._put("/dcgm/fault", {"kind": kind, **({} if nodes is None else {"pods": list(nodes)})})

    def ledger(self, workload: str) -> Json:
        """The emulator's exact account of a workload: what arrived, ran, finished, and how long its pods lived."""
        ledger: Json = json.loads(self._emulator("GET", f"/workloads/{workload}/ledger"))
        return ledger

    def emulator_health(self) -> Json:
        """How far the emulated servers are behind the clock: `lag_s` and `worst_lag_s` among others."""
        health: Json = json.loads(self._emulator("GET", "/healthz"))
        return health

    # -- policies -----------------------------------------------------------------------------------------------------

    def apply_policy(self, policy: Mapping[str, Any]) -> str:
        """Apply a policy, in this stack's namespace unless it names one. Raises CommandError with the verdict."""
        return self.apply({**policy, "metadata": {"namespace": self.namespace, **policy["metadata"]}})

    def policy(self, name: str, *, namespace: str | None = None) -> Json:
        """The policy as stored, with its status."""
        return self.cluster.get("gpuscalingpolicy", name, namespace=namespace or self.namespace)

    def condition(self, policy: str, kind: str, *, namespace: str | None = None) -> Json:
        """One condition of a policy; empty while it has none."""
        conditions = self.policy(policy, namespace=namespace).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def events(self, name: str, *, namespace: str | None = None) -> list[Json]:
        """The events about an object of that name, oldest first (events.k8s.io/v1)."""
        items = self.cluster.get("events.events.k8s.io", namespace=namespace or self.namespace)["items"]
        about = [one for one in items if one.get("regarding", {}).get("name") == name]
        return sorted(about, key=lambda one: one["eventTime"] or one["metadata"]["creationTimestamp"])

    # -- the operator -------------------------------------------------------------------------------------------------

    def start_operator(
        self, name: str = "operator", *, env: Mapping[str, str] | None = None, **settings: Any
    ) -> OperatorProcess:
        """Start an operator under the stack's rights; `settings` (camelCase) go over the stack's own.

        Returns once it answers /healthz. Prometheus scrapes it, with its name as `instance`.
        """
        (port,) = free_ports(1)
        process = OperatorProcess.start(
            self._children,
            name,
            config=self.run_dir / f"{name}.yaml",
            kubeconfig=self._installed.kubeconfig,
            settings=merged(self._installed.settings, self._base_settings(port), self._settings, settings),
            env={**os.environ, "POD_NAME": name, "POD_NAMESPACE": self.operator_namespace, **(env or {})},
        )
        self.operators[name] = process
        self._write_operator_targets()
        return process

    # -- inside -------------------------------------------------------------------------------------------------------

    def _start(self, undo: contextlib.ExitStack) -> None:
        self.cluster = self._given_cluster or undo.enter_context(
            ControlPlane.start(nodes=self._nodes, gpus_per_node=self._gpus_per_node)
        )
        self.run_dir = Path(tempfile.mkdtemp(prefix="bandkeeper-stack-"))
        if not self._keep_run_dir:
            undo.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
        self._children = Children(self.run_dir, remove=not self._keep_run_dir)
        undo.callback(self._children.close)
        if self._emulator_config is not None:
            self._start_emulator(self._emulator_config)
        self.prometheus = undo.enter_context(self._start_prometheus())
        self._install(undo)

    def _start_emulator(self, config: Mapping[str, Any]) -> None:
        config_file, port_file = self.run_dir / "emulator.yaml", self.run_dir / "emulator.port"
        config_file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "tests.emulator", "--config", str(config_file)]
        command += ["--kubeconfig", str(self.cluster.kubeconfig), "--port-file", str(port_file)]
        child = self._children.start("emulator", command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
        child.wait_ready(lambda: bool(port_file.read_text().strip()), READY_TIMEOUT_S)
        self._emulator_url = f"http://127.0.0.1:{port_file.read_text().strip()}"

    def _start_prometheus(self) -> Prometheus:
        self._write_operator_targets()
        url, interval = self._emulator_url, self._scrape_interval
        sources = [*scrape_configs(url, interval), kubelet_scrape_config(url, interval)] if url else []
        operators = {
            "job_name": "bandkeeper",
            "scrape_timeout": self._scrape_interval,
            "file_sd_configs": [{"files": [str(self._operator_targets)], "refresh_interval": "1s"}],
        }
        return Prometheus.start(
            self.run_dir / "prometheus",
            scrape_interval=self._scrape_interval,
            scrape_configs=[*sources, operators, *map(dict, self._scrape_more)],
            extra_args=self._prometheus_args,
        )

    @property
    def _operator_targets(self) -> Path:
        return self.run_dir / "operators.json"

    def _write_operator_targets(self) -> None:
        targets = [
            {"targets": [f"127.0.0.1:{one.port}"], "labels": {"instance": one.name}} for one in self.operators.values()
        ]
        fresh = self._operator_targets.with_suffix(".new")
        fresh.write_text(json.dumps(targets), encoding="utf-8")
        fresh.replace(self._operator_targets)

    def _install(self, undo: contextlib.ExitStack) -> None:
        """Namespaces and CRDs, and the service account with the chart's rights. A cluster of others is cleaned up."""
        for name in (self.namespace, self.operator_namespace):
            self._need_namespace(name, undo)
        if self._rights is Rights.ADMIN:
            install_crds(self.cluster)
            self._installed = Installed(self.cluster.kubeconfig, {"lease": {"namespace": self.operator_namespace}})
            return
        self._installed = install_chart(self.cluster, self.operator_namespace, merged(GRANTED, self._chart_values))
        if self._given_cluster is not None:
            undo.callback(remove_chart, self.cluster, self.operator_namespace)

    def _need_namespace(self, name: str, undo: contextlib.ExitStack) -> None:
        if self.cluster.kubectl("get", "namespace", name, "--ignore-not-found"):
            return
        self.cluster.create_namespace(name)
        if self._given_cluster is not None:
            undo.callback(self.cluster.delete_namespace, name)

    def _base_settings(self, port: int) -> Json:
        return {
            "period": "1s",
            "logFormat": "text",
            "listen": f"127.0.0.1:{port}",
            "prometheus": {"servers": [{"name": "stack", "url": self.prometheus.url}]},
            "adapters": {"annotation": True, "podTemplate": True},
        }

    def _put(self, path: str, document: Mapping[str, Any]) -> float:
        began_s = time.time()
        self._emulator("PUT", path, json.dumps(document).encode())
        return began_s

    def _emulator(self, method: str, path: str, body: bytes | None = None) -> bytes:
        status, answer = fetch(f"{self.emulator_url}{path}", method=method, body=body)
        if status != 200:
            raise StackError(f"the emulator answered {method} {path} with {status}: {answer.decode().strip()}")
        return answer


def merged(*documents: Mapping[str, Any]) -> Json:
    """The documents laid over each other, later ones above, mappings merged at every depth."""
    result: Json = {}
    for document in documents:
        for key, value in document.items():
            below = result.get(key)
            nested = isinstance(below, Mapping) and isinstance(value, Mapping)
            result[key] = merged(below or {}, value) if nested else value
    return result
