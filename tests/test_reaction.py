"""How fast a change that Prometheus can see becomes a write to the target, with a period of one second."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.cluster import ControlPlane, eventually
from tests.stack import Stack

pytestmark = pytest.mark.cluster

STEPS = 50
LIMIT_S = 2.0
CAPACITY = 100_000  # so large that no step can be noise, which is smoothed
HIGH = 0.7


class Dial:
    """A page with one gauge for each of the workload's pods, set by the test."""

    def __init__(self) -> None:
        self.running: dict[str, float] = {}

    @contextmanager
    def serve(self) -> Iterator[int]:
        """Serve it on a free port of the loopback interface."""
        dial = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                lines = [
                    f'dial_running{{namespace="dial",pod="{pod}"}} {value}\n' for pod, value in dial.running.items()
                ]
                body = "".join(["# TYPE dial_running gauge\n", *lines]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


POLICY: dict[str, Any] = {
    "apiVersion": "bandkeeper.dev/v1alpha1",
    "kind": "GPUScalingPolicy",
    "metadata": {"name": "dial"},
    "spec": {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "dial"},
        "objective": "LatencySensitive",
        "runtime": "Generic",
        "slos": [{"signal": "EndToEndLatency", "threshold": "1s"}],
        "replicas": {"min": 1, "max": 60},
        "signals": [
            {"signal": "RequestsRunning", "metric": "dial_running"},
            {"signal": "RequestsWaiting", "query": "0 * dial_running"},
            {"signal": "EndToEndLatency", "query": "vector(0.1)"},
        ],
        "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 60, "periodSeconds": 1}]}},
    },
}


def test_a_visible_change_is_acted_on_within_two_seconds(control_plane: ControlPlane) -> None:
    dial = Dial()
    with dial.serve() as port:
        page = {
            "job_name": "dial",
            "honor_labels": True,
            "scrape_timeout": "1s",
            "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        }
        with Stack(
            cluster=control_plane, namespace="dial", operator_namespace="dial-operator", scrape_more=[page]
        ) as stack:
            took_s = sorted(reactions(stack, dial))
    p50_s, p99_s = took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.99)]
    print(
        f"\nvisible to patched over {len(took_s)} steps: p50 {p50_s:.2f} s, p99 {p99_s:.2f} s, most {took_s[-1]:.2f} s"
    )
    assert len(took_s) == STEPS
    assert p99_s <= LIMIT_S


def reactions(stack: Stack, dial: Dial) -> Iterator[float]:
    """Raise the load step by step, each time by what one more replica carries; seconds until each write."""
    for number in range(8):
        stack.cluster.add_gpu_node(f"dial-{number}", gpus=8)
    operator = stack.start_operator()
    eventually(operator.ready, timeout_s=30, what="the operator ready")
    quick = {"bandkeeper.dev/load-time": "100ms"}
    stack.deploy("dial", replicas=1, args=["--max-batch-size", str(CAPACITY)], annotations=quick)
    stack.wait_ready("dial", 1)
    stack.apply_policy(POLICY)
    for replicas in range(2, STEPS + 2):
        yield step(stack, dial, replicas)


def step(stack: Stack, dial: Dial, replicas: int) -> float:
    """Offer what `replicas` carry; seconds from Prometheus showing it to the target asking for it."""
    stack.wait_ready("dial", replicas - 1)
    pods = stack.cluster.get("pods", namespace="dial", selector="app=dial")["items"]
    names = [pod["metadata"]["name"] for pod in pods]
    load = (replicas - 0.1) * CAPACITY * HIGH
    dial.running = {name: load / len(names) for name in names}
    eventually(lambda: shown(stack) >= load * (1 - 1e-9), timeout_s=10, every_s=0.02, what="the load in Prometheus")
    visible = time.monotonic()
    eventually(lambda: stack.replicas("dial") == replicas, timeout_s=10, every_s=0.02, what=f"{replicas} replicas")
    return time.monotonic() - visible


def shown(stack: Stack) -> float:
    """The load that a query answers now."""
    return stack.prometheus.value("sum(dial_running)") or 0.0
