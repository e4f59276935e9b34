"""A metrics API on 127.0.0.1 that the API server aggregates: custom.metrics.k8s.io and external.metrics.k8s.io."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster import ControlPlane
from tests.cluster.loopback import eventually
from tests.cluster.pki import Authority

CUSTOM, EXTERNAL = "custom.metrics.k8s.io/v1beta2", "external.metrics.k8s.io/v1beta1"
EPOCH = "2026-01-01T00:00:00Z"

Pods = Callable[[str], Mapping[str, float]]
Total = Callable[[str], float]


class MetricsAPI:
    """Answers with what `pods(metric)` (value by pod name) and `total(metric)` say when the controller asks."""

    def __init__(self, directory: Path, *, pods: Pods, total: Total) -> None:
        pair = Authority(directory, "metrics-ca").issue("metrics", "localhost", usage="server", hosts=["localhost"])
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pair.certificate, pair.key)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                try:
                    status, document = _answer(self.path, pods, total)
                except OSError:  # the control plane is on its way down
                    status, document = 503, {}
                body = json.dumps(document).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def register(self, control_plane: ControlPlane) -> None:
        """Make the API server aggregate it, and wait until it does."""
        port = self._server.server_address[1]
        control_plane.create_namespace("metrics")
        control_plane.kubectl("apply", "-f", "-", input=[_service(port), _api(CUSTOM, port), _api(EXTERNAL, port)])
        for api in (CUSTOM, EXTERNAL):
            eventually(lambda api=api: _available(control_plane, api), timeout_s=30.0, what=f"{api} available")  # type: ignore[misc]


def _answer(path: str, pods: Pods, total: Total) -> tuple[int, dict[str, Any]]:
    words = path.partition("?")[0].strip("/").split("/")
    api, rest = "/".join(words[1:3]), words[3:]
    if words[0] != "apis" or api not in (CUSTOM, EXTERNAL):
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
    if not rest:
        return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": []}
    metric = rest[-1]
    if api == EXTERNAL:
        item: dict[str, Any] = {"metricName": metric, "metricLabels": {}, "timestamp": EPOCH}
        return 200, _list("ExternalMetricValueList", api, [item | {"value": _quantity(total(metric))}])
    items = [
        {
            "describedObject": {"kind": "Pod", "namespace": rest[1], "name": pod, "apiVersion": "/v1"},
            "metric": {"name": metric},
            "timestamp": EPOCH,
            "value": _quantity(value),
        }
        for pod, value in pods(metric).items()
    ]
    return 200, _list("MetricValueList", api, items)


def _list(kind: str, api: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": api, "metadata": {}, "items": items}


def _quantity(value: float) -> str:
    return f"{round(value * 1000)}m"


def _service(port: int) -> dict[str, Any]:
    """An ExternalName: endpoints may not hold a loopback address."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics", "namespace": "metrics"},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
    }


def _api(api: str, port: int) -> dict[str, Any]:
    group, _, version = api.partition("/")
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": "metrics", "namespace": "metrics", "port": port},
        },
    }


def _available(control_plane: ControlPlane, api: str) -> bool:
    group, _, version = api.partition("/")
    conditions = control_plane.get("apiservice", f"{version}.{group}").get("status", {}).get("conditions", [])
    return any(one["type"] == "Available" and one["status"] == "True" for one in conditions)
