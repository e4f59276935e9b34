"""The text of queries, and which rows of their answers are a workload's."""

from __future__ import annotations

import re

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.signals import promql
from bandkeeper.signals.plan import named_source
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.promql import Scope
from bandkeeper.signals.sources import Labels, Read

SCOPE = Scope(namespaces=("serving",), labels=Labels())


@pytest.mark.parametrize(
    ("workload", "pods", "rows"),
    [
        ("chat", ["chat-7d9f8b6c5-x2k4p", "chat-7d9f8b6c5-z9v8w"], ("hash/chat",)),
        ("chat-v2", ["chat-v2-7d9f8b6c5-24567"], ("hash/chat-v2",)),  # all digits, and no ordinal
        ("store", ["store-0", "store-12"], ("ordinal/store",)),
        ("chat", ["chat-x2k4p"], ("pod/chat-x2k4p",)),  # a ReplicaSet's
        ("chat", ["chat-7d9f8b6c5-x2k4p", "chat-0"], ("pod/chat-7d9f8b6c5-x2k4p", "pod/chat-0")),
        ("chat", ["other-7d9f8b6c5-x2k4p"], ("pod/other-7d9f8b6c5-x2k4p",)),
        ("group", ["group-0", "group-0-1"], ("pod/group-0", "pod/group-0-1")),
        ("chat", ["chat-canary-7d9f8b6c5-x2k4p"], ("pod/chat-canary-7d9f8b6c5-x2k4p",)),
    ],
)
def test_rows(workload: str, pods: list[str], rows: tuple[str, ...]) -> None:
    assert promql.rows_of(workload, pods, "") == rows
    assert promql.rows_of(workload, pods, "app") == (f"label/{workload}",)


def test_the_patterns_of_rows_do_not_overlap() -> None:
    """A pod's name gives one row, whichever rule is applied last."""
    text = promql.edges("x", SCOPE)
    ordinal, hashed = (re.compile(found) for found in re.findall(r'"pod", "([^"]+)"', text))
    for pod in ("chat-7d9f8b6c5-24567", "chat-0", "chat-7d9f8b6c5-x2k4p", "chat-1-7d9f8b6c5-24567", "chat-2-22222"):
        assert not (ordinal.fullmatch(pod) and hashed.fullmatch(pod)), pod


def test_placeholders() -> None:
    text = promql.expand(
        'label_replace(q($percentile/100, x{ns="$namespace",pod=~"$pods",w="$workload"}[$window]), '
        '"a", "$1", "b", "$podium")',
        namespace="serving",
        workload="chat",
        pods=["chat-a", "chat.b"],
        window_s=60.0,
        percentile=99,
    )
    assert text == (
        'label_replace(q(99/100, x{ns="serving",pod=~"chat-a|chat[.]b",w="chat"}[60s]), "a", "$1", "b", "$podium")'
    )


def test_a_gauge_of_several_series() -> None:
    text = promql.values(PRESETS["VLLM"].sources[Signal.REQUESTS_RUNNING], SCOPE, 0)
    assert text == (
        "sum by (namespace, pod) (max without (job, service, endpoint) "
        '(vllm:num_requests_running{namespace=~"serving", pod!=""}))'
    )


def test_rates_that_are_added_keep_their_own_matchers() -> None:
    text = promql.values(PRESETS["Triton"].sources[Signal.REQUESTS_FINISHED], SCOPE, 90)
    assert 'nv_inference_request_failure{reason!="REJECTED", namespace=~"serving", pod!=""}[90s]' in text
    assert text.count('"addend"') == 2


def test_gpus_without_a_workloads_pod_in_exported_labels() -> None:
    text = promql.ages(PRESETS["VLLM"].sources[Signal.SM_ACTIVE].clock, SCOPE)
    assert 'DCGM_FI_DEV_GPU_UTIL{exported_namespace=~"serving", exported_pod!=""}' in text
    assert 'DCGM_FI_DEV_GPU_UTIL{exported_pod="", namespace=~"serving", pod!=""}' in text


@pytest.mark.parametrize(
    ("signal", "metric", "read", "scale"),
    [
        (Signal.REQUESTS_RUNNING, "my_running", Read.LEVEL, 1),
        (Signal.REQUESTS_FINISHED, "my_done_total", Read.RATE, 1),
        (Signal.END_TO_END_LATENCY, "my_seconds", Read.HISTOGRAM, 1),
        (Signal.END_TO_END_LATENCY, "my_latency_ms_bucket", Read.HISTOGRAM, 1e-3),
        (Signal.END_TO_END_LATENCY, "my_latency_microseconds", Read.HISTOGRAM, 1e-6),
        (Signal.POWER, "power_ms", Read.LEVEL, 1),  # only latencies are times
        (Signal.GPU_UTILIZATION, "DCGM_FI_DEV_GPU_UTIL", Read.LEVEL, 0.01),
    ],
)
def test_own_metrics_are_read_by_their_signals_kind(signal: Signal, metric: str, read: Read, scale: float) -> None:
    source = named_source(signal, metric, PRESETS["Generic"].sources.get(signal))
    assert source.read is read
    assert source.any_of[0].scale == scale
    assert not source.name.endswith("_bucket")


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_can_be_asked(name: str) -> None:
    for signal, source in PRESETS[name].sources.items():
        assert all(exporter.metrics for exporter in source.clock.told_by), signal
        assert {series.exporter for series in source.any_of} <= {exporter.name for exporter in source.clock.told_by}
        if source.read in (Read.LEVEL, Read.RATE):
            text = promql.values(source, SCOPE, 60)
            assert text.count("(") == text.count(")")
            assert ("rate(" in text) == (source.read is Read.RATE)


def test_a_counter_of_an_earlier_day_is_added_up_by_workload() -> None:
    source = PRESETS["VLLM"].sources[Signal.PROMPT_TOKENS]
    query = promql.recalled(source, SCOPE, 120.0, 84_000.0)
    assert 'rate(vllm:prompt_tokens_total{namespace=~"serving", pod!=""}[120s] offset 84000s)' in query
    assert query.startswith("sum by (namespace, bandkeeper_row) (label_replace(")
    assert "max without (job, service, endpoint)" in query
