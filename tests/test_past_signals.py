"""Earlier days in a real Prometheus: yesterday's pods, filled in by promtool, found by the names of their workloads."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import RECALL_AHEAD_S, RECALL_STEP_S, Earlier, Recalled
from bandkeeper.signals.collector import Collector, CollectorSettings
from bandkeeper.signals.prometheus import PrometheusServer
from bandkeeper.signals.want import Want
from tests.cluster import Prometheus
from tests.cluster.build import find

pytestmark = pytest.mark.cluster

TOKENS = frozenset({Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS})
SCRAPE_S, SPAN_S = 15, 900
YESTERDAY = {  # prompt tokens per second; of each five an output token
    "chat-6b9c7d5f4-2xk4p": 500.0,
    "chat-6b9c7d5f4-9zw8v": 300.0,
    "chat-5d8f7c6b9-bcdfg": 200.0,  # in the midst of a rollout
    "chat-large-7c6d5b4f8-x2x4k": 9000.0,
    "chat-0": 40.0,  # a StatefulSet has the name too
    "chat-11": 60.0,
    "idle-7c6d5b4f8-x2x4k": 0.0,
}


def _samples(metric: str, factor: float, begin_s: float) -> Iterator[str]:
    for pod, per_s in YESTERDAY.items():
        jobs = ("pods", "services") if pod.startswith("chat-6b") else ("pods",)  # scraped twice
        for job in jobs:
            for at_s in range(0, 2 * SPAN_S + 1, SCRAPE_S):
                labels = f'namespace="serving",pod="{pod}",job="{job}",engine="0"'
                yield f"{metric}{{{labels}}} {1000 + factor * per_s * at_s} {begin_s + at_s:.3f}"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    run_dir = tmp_path_factory.mktemp("past")
    begin_s = time.time() - Earlier.DAY.ago_s + RECALL_AHEAD_S - SPAN_S
    metrics = {"vllm:generation_tokens_total": 0.2, "vllm:prompt_tokens_total": 1.0}
    lines = [line for metric, factor in metrics.items() for line in _samples(metric, factor, begin_s)]
    (run_dir / "history.om").write_text("\n".join([*lines, "# EOF", ""]))
    parts = ["tsdb", "create-blocks-from", "openmetrics", str(run_dir / "history.om"), str(run_dir / "data")]
    done = subprocess.run([find("prometheus") / "promtool", *parts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Prometheus.start(run_dir) as prometheus:
        yield prometheus


async def _recalled(prometheus: Prometheus, *wants: Want, series: int = 20_000) -> dict[str, Recalled | None]:
    server = PrometheusServer(name="default", url=prometheus.url, timeout_s=30)
    collector = Collector(CollectorSettings(servers=(server,), series_per_query=series))
    try:
        found = await collector.collect(wants, 0.0)
    finally:
        collector.close()
    assert all(Earlier.WEEK not in one.recalled for one in found.values())  # it has no more than a day
    return {key: one.recalled.get(Earlier.DAY) for key, one in found.items()}


def _want(key: str, *pods: str, workload: str = "", namespace: str = "serving") -> Want:
    return Want(
        key=key,
        namespace=namespace,
        workload=workload or key,
        kind="Deployment",
        pods=pods,
        runtime="VLLM",
        signals=TOKENS,
    )


WANTS = (
    _want("chat", "chat-7d9f8b6c5-x2k4p", "chat-7d9f8b6c5-z9v8w", "chat-7d9f8b6c5-c5d6f"),
    _want("chat-large", "chat-large-5d8f7c6b9-bcdfg"),
    _want("ordinal", "chat-0", workload="chat"),
    _want("idle", "idle-5d8f7c6b9-bcdfg"),
    _want("new", "new-5d8f7c6b9-bcdfg"),
    _want("elsewhere", "chat-7d9f8b6c5-x2k4p", workload="chat", namespace="other"),
)
PROMPTS = {"chat": 1000.0, "chat-large": 9000.0, "ordinal": 100.0, "idle": 0.0}


@pytest.mark.parametrize("series", [20_000, 24], ids=["together", "in parts"])
async def test_yesterdays_pods_are_their_workloads_under_other_names(prometheus: Prometheus, series: int) -> None:
    found = await _recalled(prometheus, *WANTS, series=series)
    assert {key for key, day in found.items() if day is not None} == PROMPTS.keys()
    for key, per_s in PROMPTS.items():
        assert (day := found[key]) is not None
        assert day.ends_s == (RECALL_AHEAD_S,)
        assert day.prompt_per_s == pytest.approx((per_s,), rel=0.01)
        assert day.output_per_s == pytest.approx((per_s / 5,), rel=0.01)


async def test_steps_follow_each_other(prometheus: Prometheus) -> None:
    server = PrometheusServer(name="default", url=prometheus.url, timeout_s=30)
    collector = Collector(CollectorSettings(servers=(server,)))
    counted, ends_s = [], tuple[float, ...]()
    for tick in range(17):
        found = await collector.collect(WANTS, 15.0 * tick)
        counted.append(collector.last.queries)
        ends_s = found["chat"].recalled[Earlier.DAY].ends_s
    collector.close()
    usual = min(counted)
    assert [number - usual for number in counted] == [4, *[0] * 7, 4, *[0] * 7, 4]
    assert ends_s == (RECALL_AHEAD_S, RECALL_AHEAD_S + RECALL_STEP_S, RECALL_AHEAD_S + 240)
