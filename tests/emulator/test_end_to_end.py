"""The emulator as a process: real pods of a real API server, scraped by a real Prometheus."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import Children, ControlPlane, Prometheus, eventually
from tests.cluster.loopback import fetch
from tests.emulator.scrape import scrape_configs

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]


class Emulator:
    """A running `python -m tests.emulator` for the workload `chat` of one namespace."""

    def __init__(self, children: Children, run_dir: Path, kubeconfig: Path, namespace: str) -> None:
        workload = {
            "name": "chat",
            "namespace": namespace,
            "selector": {"matchLabels": {"app": "chat"}},
            "kind": "continuous",
            "server": {"preset": "a100-wva", "cap_delay_s": 1},
            "load": {"kind": "constant", "rate_per_s": 0},
            "tokens": {"prompt": {"kind": "fixed", "value": 200}, "output": {"kind": "uniform", "low": 10, "high": 60}},
        }
        config, port = run_dir / "emulator.yaml", run_dir / "port"
        config.write_text(yaml.safe_dump({"workloads": [workload], "dcgm": {"period_s": 1}}))
        argv: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.emulator",
            "--config",
            config,
            "--kubeconfig",
            kubeconfig,
            "--port-file",
            port,
        ]
        self._children = children
        self.child = children.start("emulator", argv, cwd=ROOT)
        self.child.wait_ready(port.exists, 20)
        self.url = f"http://127.0.0.1:{port.read_text().strip()}"

    def get(self, path: str) -> Json:
        status, body = fetch(self.url + path)
        assert status == 200, body
        answer: Json = json.loads(body)
        return answer

    def put(self, path: str, body: Json) -> None:
        status, answer = fetch(self.url + path, method="PUT", body=json.dumps(body).encode())
        assert status == 200, answer

    def ledger(self) -> Json:
        return self.get("/workloads/chat/ledger")

    def stop(self) -> int:
        self._children.stop(self.child)
        return int(self.child.popen.returncode)


@pytest.fixture
def emulator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Emulator]:
    children = Children(tmp_path)
    try:
        yield Emulator(children, tmp_path, control_plane.kubeconfig, namespace)
    finally:
        children.close()


@pytest.fixture
def prometheus(emulator: Emulator, tmp_path: Path) -> Iterator[Prometheus]:
    pods, dcgm = scrape_configs(emulator.url)
    honoured = {**scrape_configs(emulator.url, dcgm_honor_labels=True)[1], "job_name": "honoured"}
    with Prometheus.start(tmp_path / "prometheus", scrape_configs=[pods, dcgm, honoured]) as started:
        yield started


def a_deployment(namespace: str, replicas: int) -> Json:
    container = {
        "name": "vllm",
        "image": "vllm",
        "env": [{"name": "MAX_NUM_SEQS", "value": "16"}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    template = {
        "metadata": {"labels": {"app": "chat"}, "annotations": {"bandkeeper.dev/load-time": "500ms"}},
        "spec": {"containers": [container]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "chat"}}, "template": template},
    }


def test_pods_are_played_scraped_capped_scaled_and_drained(
    control_plane: ControlPlane,
    namespace: str,
    emulator: Emulator,
    prometheus: Prometheus,
) -> None:
    def kubectl(*words: str) -> None:
        control_plane.kubectl(*words, "-n", namespace)

    def pods() -> list[Json]:
        played: list[Json] = emulator.ledger()["pods"]
        return played

    control_plane.kubectl("apply", "-f", "-", input=a_deployment(namespace, 2))
    eventually(lambda: [one["ready"] for one in pods()] == [True, True], timeout_s=20, what="two ready servers")
    assert [one["capacity"] for one in pods()] == [16, 16]

    # Load: both pods work, and Prometheus sees whose metrics they are.
    emulator.put("/workloads/chat/load", {"kind": "closed", "clients": 60})
    names = {one["name"] for one in pods()}

    def scraped(query: str, label: str) -> dict[str, float]:
        return {one["metric"][label]: float(one["value"][1]) for one in prometheus.query(query)}

    busy = f'vllm:num_requests_running{{namespace="{namespace}"}} == 16'
    eventually(lambda: set(scraped(busy, "pod")) == names, timeout_s=15, what="16 running requests in each pod")
    for job, pod in (("dcgm-exporter", "exported_pod"), ("honoured", "pod")):
        active = f'DCGM_FI_PROF_GR_ENGINE_ACTIVE{{job="{job}",{pod}=~"chat-.*"}} > 0.9'
        eventually(lambda a=active, p=pod: set(scraped(a, p)) == names, what=f"busy GPUs under {pod}")  # type: ignore[misc]

    # The pod's own annotation is its cap, a second later.
    capped = pods()[0]["name"]
    kubectl("annotate", "pod", capped, "bandkeeper.dev/batch-cap=4")
    low = f'vllm:num_requests_running{{namespace="{namespace}"}} == 4'
    eventually(lambda: set(scraped(low, "pod")) == {capped}, timeout_s=15, what="four running requests in that pod")

    # Without load everything ends, and Prometheus has the numbers of the ledger.
    emulator.put("/workloads/chat/load", {"kind": "constant", "rate_per_s": 0})
    eventually(lambda: emulator.ledger()["running"] + emulator.ledger()["waiting"] == 0, what="all requests answered")
    ledger = emulator.ledger()
    assert ledger["arrived"] == ledger["succeeded"] > 100
    totals = {
        "vllm:generation_tokens_total": ledger["generation_tokens"],
        "vllm:time_to_first_token_seconds_count": ledger["ttft_s"]["count"],
        "vllm:inter_token_latency_seconds_count": ledger["itl_s"]["count"],
        'vllm:e2e_request_latency_seconds_bucket{le="1.0"}': dict(ledger["e2e_s"]["buckets"])[1.0],
    }
    for series, number in totals.items():
        eventually(lambda s=series, n=number: prometheus.value(f"sum({s})") == n, what=f"{series} = {number}")  # type: ignore[misc]

    # Pods that come boot with the template's capacity; pods that go drain and leave the discovery.
    kubectl("scale", "deployment/chat", "--replicas=3")
    eventually(lambda: sum(one["ready"] for one in pods()) == 3, timeout_s=20, what="three ready servers")
    assert sorted(one["cap"] for one in pods()) == [4, 16, 16]
    kubectl("scale", "deployment/chat", "--replicas=1")
    eventually(lambda: len(pods()) == 1, timeout_s=20, what="one server left")
    assert emulator.ledger()["generation_tokens"] == ledger["generation_tokens"]
    eventually(lambda: prometheus.value('count(up{job="model-servers"} == 1)') == 1, what="one target left")

    # It follows through a restart of the API server, where that is ours to restart, and ends when told.
    if control_plane.processes():
        control_plane.restart_apiserver()
    kubectl("scale", "deployment/chat", "--replicas=2")
    eventually(lambda: sum(one["ready"] for one in pods()) == 2, timeout_s=30, what="two servers after the restart")
    health = emulator.get("/healthz")
    assert health["status"] == "ok"
    assert health["busy"] < 0.5
    assert emulator.stop() == 0
