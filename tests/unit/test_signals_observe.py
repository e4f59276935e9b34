"""From tables to one policy's observations: what is used, what is not, and what is said about it."""

from __future__ import annotations

import math

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Gap, GapReason, GPUs, Reading
from bandkeeper.signals.answer import Answer
from bandkeeper.signals.observe import TOTAL, Ages, Builder, Told, impossible
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.want import LatencyWant, Want

PODS = ("chat-0", "chat-1")
E2E = LatencyWant(signal=Signal.END_TO_END_LATENCY, window_s=60, percentiles=(95,), threshold_s=1)
HISTOGRAM = PRESETS["VLLM"].sources[Signal.END_TO_END_LATENCY]
SUMMARY = PRESETS["Triton"].sources[Signal.END_TO_END_LATENCY]
ROW = ("ordinal/chat",)


def a_builder(*pods: str) -> Builder:
    return Builder(
        Want(
            key="chat",
            namespace="serving",
            workload="chat",
            kind="StatefulSet",
            pods=pods or PODS,
            runtime="VLLM",
            signals=frozenset(),
        )
    )


def ages(*ages_s: float) -> Ages:
    return Ages(HISTOGRAM.clock, {"serving": dict(zip(PODS, ages_s, strict=False))}, 60.0)


def only_gap(builder: Builder) -> Gap:
    (gap,) = builder.gaps
    return gap


def answer(*samples: tuple[dict[str, str], float]) -> Answer:
    return Answer(tuple((labels, value, 0.0) for labels, value in samples))


@pytest.mark.parametrize(
    ("signal", "value", "words"),
    [
        (Signal.REQUESTS_RUNNING, 0.0, ""),
        (Signal.REQUESTS_RUNNING, 1e15, ""),
        (Signal.GPU_UTILIZATION, 1.02, ""),
        (Signal.REQUESTS_RUNNING, math.nan, "NaN"),
        (Signal.REQUESTS_RUNNING, -math.inf, "infinite"),
        (Signal.REQUESTS_RUNNING, -0.5, "negative (-0.5)"),
        (Signal.REQUESTS_RUNNING, 9.2e18, "absurd (9.2e+18)"),  # DCGM's and others' mark for "blank"
        (Signal.GPU_UTILIZATION, 97.0, "is a ratio"),
    ],
)
def test_impossible(signal: Signal, value: float, words: str) -> None:
    assert words in impossible(signal, value)
    assert bool(words) == bool(impossible(signal, value))


def test_a_histogram_with_a_stale_pod_still_counts_the_fresh_one() -> None:
    builder = a_builder()
    table = {("serving", "ordinal/chat"): {1.0: 8.0, math.inf: 10.0, TOTAL: 12.0}}
    assert builder.histogram(E2E, HISTOGRAM, ROW, table, ages(3, 75))
    assert builder.distributions[E2E.signal, 60].age_s == 3
    assert only_gap(builder).reason is GapReason.STALE
    assert only_gap(builder).pods == ("chat-1",)


def test_a_histogram_of_stale_pods_is_no_data() -> None:
    builder = a_builder()
    table = {("serving", "ordinal/chat"): {1.0: 0.0, math.inf: 0.0}}
    builder.histogram(E2E, HISTOGRAM, ROW, table, ages(75, 80))
    assert builder.distributions == {}
    assert only_gap(builder).reason is GapReason.STALE


def test_a_histogram_that_is_missing_is_a_gap() -> None:
    builder = a_builder()
    builder.histogram(E2E, HISTOGRAM, ROW, {}, ages(3, 3))
    assert builder.distributions == {}
    assert only_gap(builder).reason is GapReason.ABSENT
    assert "although vLLM is scraped: it needs two scrapes in 60 s" in only_gap(builder).detail


def test_rows_of_pods_are_added_at_the_edges_that_all_have() -> None:
    builder = a_builder()
    table = {
        ("serving", "pod/chat-0"): {0.5: 1.0, 1.0: 2.0, math.inf: 4.0, TOTAL: 3.0},
        ("serving", "pod/chat-1"): {1.0: 3.0, math.inf: 3.0, TOTAL: 1.0},
        ("elsewhere", "pod/chat-1"): {1.0: 100.0, math.inf: 100.0},
    }
    assert builder.histogram(E2E, HISTOGRAM, ("pod/chat-0", "pod/chat-1"), table, ages(3, 3))
    distribution = builder.distributions[E2E.signal, 60]
    assert (distribution.edges, distribution.counts, distribution.total_s) == ((1.0, math.inf), (5, 7), 4)


def test_the_rounding_of_extrapolation_is_no_contradiction() -> None:
    builder = a_builder()
    table = {("serving", "ordinal/chat"): {1.0: 10.0, math.inf: 10.0 * (1 - 1e-9)}}
    assert builder.histogram(E2E, HISTOGRAM, ROW, table, ages(3, 3))
    assert builder.distributions[E2E.signal, 60].counts == (10, 10)


def test_the_worst_pods_quantile_counts() -> None:
    builder = a_builder()
    table = {
        ("serving", "pod/chat-0"): {95.0: 200_000.0, 50.0: math.nan, 99.9: 9e9},
        ("serving", "pod/chat-1"): {95.0: 100_000.0, 50.0: 40_000.0},
    }
    builder.summary(E2E, SUMMARY, ("pod/chat-0", "pod/chat-1"), table, ages(3, 3), 60)
    assert builder.distributions[E2E.signal, 60].quantiles == pytest.approx({95: 0.2, 50: 0.04})
    assert builder.gaps == []


def test_an_impossible_quantile() -> None:
    builder = a_builder()
    builder.summary(E2E, SUMMARY, ROW, {("serving", ROW[0]): {95.0: -1.0, 50.0: 1e5}}, ages(3, 3), 60)
    assert builder.distributions[E2E.signal, 60].quantiles == pytest.approx({50: 0.1})
    assert only_gap(builder).reason is GapReason.INVALID


def test_a_stale_summary_is_no_data() -> None:
    builder = a_builder()
    builder.summary(E2E, SUMMARY, ROW, {("serving", ROW[0]): {95.0: 1e5}}, ages(99, 99), 60)
    assert builder.distributions == {}
    assert only_gap(builder).reason is GapReason.STALE


def test_own_values_of_pods() -> None:
    builder = a_builder("chat-0", "chat-1", "chat-2")
    builder.own_level(
        Signal.REQUESTS_WAITING,
        answer(({"pod": "chat-0"}, 3), ({"pod": "chat-1"}, math.nan), ({"pod": "gone-0"}, 5), ({}, 7)),
    )
    assert {pod: reading.value for pod, reading in builder.by_pod[Signal.REQUESTS_WAITING].items()} == {"chat-0": 3}
    assert [(gap.reason, gap.pods) for gap in builder.gaps] == [
        (GapReason.INVALID, ("chat-1",)),
        (GapReason.PARTIAL, ("chat-2",)),
    ]


def test_own_values_of_other_pods_only() -> None:
    builder = a_builder()
    builder.own_level(Signal.REQUESTS_WAITING, answer(({"pod": "gone-0"}, 5)))
    assert builder.by_pod == {}
    assert (only_gap(builder).reason, only_gap(builder).pods) == (GapReason.ABSENT, PODS)


def test_an_own_value_of_the_workload_may_be_impossible_too() -> None:
    builder = a_builder()
    builder.own_level(Signal.REQUESTS_WAITING, answer(({}, -1)))
    assert builder.totals == {}
    assert "negative (-1)" in only_gap(builder).detail


def test_own_latencies() -> None:
    builder = a_builder()
    builder.own_latency(
        E2E,
        {
            50: answer(({"pod": "chat-0"}, 0.1), ({"pod": "chat-1"}, 0.4), ({"pod": "other"}, 9)),
            95: answer(({}, 0.7)),
            98: answer(),
            99: answer(({}, math.nan)),
        },
    )
    assert builder.distributions[E2E.signal, 60].quantiles == {50: 0.4, 95: 0.7}
    assert [gap.reason for gap in builder.gaps] == [GapReason.ABSENT, GapReason.INVALID]
    assert "without traffic a quantile is NaN" in builder.gaps[1].detail


# Several exporters of the same pods.

FIRST, SECOND = "dcgm-exporter", "bandkeeper agent"
DRAM, TEMPERATURE = PRESETS["VLLM"].sources[Signal.DRAM_ACTIVE], PRESETS["VLLM"].sources[Signal.GPU_TEMPERATURE]
COUNT = PRESETS["VLLM"].sources[Signal.GPU_COUNT]


def told(
    exporter: str, values: dict[str, float], ages_s: float | dict[str, float] = 3.0, gpus: dict[str, GPUs] | None = None
) -> Told:
    gpus = gpus or {}
    by_pod = dict.fromkeys({**values, **gpus}, ages_s) if isinstance(ages_s, float) else ages_s
    return Told(exporter, {"serving": values}, Ages(DRAM.clock, {"serving": by_pod}, 90.0), {"serving": gpus})


@pytest.mark.parametrize(
    ("what", "first", "second", "used", "gaps"),
    [
        ("both", told(FIRST, {"chat-0": 0.5}), told(SECOND, {"chat-0": 0.1}), (0.5, 3.0), []),
        ("only the second", told(FIRST, {}), told(SECOND, {"chat-0": 0.1}), (0.1, 3.0), []),
        ("a stale first", told(FIRST, {"chat-0": 0.5}, 91.0), told(SECOND, {"chat-0": 0.1}), (0.1, 3.0), []),
        ("NaN", told(FIRST, {"chat-0": math.nan}), told(SECOND, {"chat-0": 0.1}), (0.1, 3.0), []),
        ("a percentage", told(FIRST, {"chat-0": 45.0}), told(SECOND, {"chat-0": 0.1}), (0.1, 3.0), []),
        ("no age", told(FIRST, {"chat-0": 0.5}, {}), told(SECOND, {"chat-0": 0.1}), (0.1, 3.0), []),
        ("a little over", told(FIRST, {"chat-0": 1.2}), told(SECOND, {}), (1.2, 3.0), []),
        ("both stale", told(FIRST, {"chat-0": 0.5}, 91.0), told(SECOND, {"chat-0": 0.1}, 95.0), None, ["Stale"]),
        ("both odd", told(FIRST, {"chat-0": -1.0}), told(SECOND, {"chat-0": 9.0}), None, ["Invalid"]),
        ("odd, stale", told(FIRST, {"chat-0": -1.0}), told(SECOND, {"chat-0": 0.1}, 91.0), None, ["Invalid"]),
        ("neither", told(FIRST, {}), told(SECOND, {}), None, ["Absent"]),
    ],
)
def test_of_several_exporters_the_first_sound_one_counts(
    what: str, first: Told, second: Told, used: tuple[float, float] | None, gaps: list[str]
) -> None:
    builder = a_builder("chat-0")
    builder.level_of_any(Signal.DRAM_ACTIVE, DRAM, (first, second), 0.0)
    reading = builder.by_pod.get(Signal.DRAM_ACTIVE, {}).get("chat-0")
    assert (reading and (reading.value, reading.age_s)) == used, what
    assert [gap.reason for gap in builder.gaps] == gaps


def test_an_explanation_that_is_not_there_is_not_worth_a_word() -> None:
    builder = a_builder()
    builder.level_of_any(Signal.GPU_TEMPERATURE, TEMPERATURE, (told(FIRST, {"chat-0": 61.0}),), 0.0)
    builder.level_of_any(Signal.GPU_TEMPERATURE, TEMPERATURE, (told(FIRST, {}),), 0.0)
    assert builder.by_pod == {Signal.GPU_TEMPERATURE: {"chat-0": Reading(61.0, 3.0)}}
    assert builder.gaps == []


def test_gpus_are_those_of_the_first_exporter_with_what_any_of_them_knows() -> None:
    builder = a_builder("chat-0", "chat-1", "chat-2")
    first = told(FIRST, {}, 3.0, {"chat-0": GPUs(count=2), "chat-1": GPUs(count=1, model="NVIDIA L4")})
    apart = (("GPU 0", 1.0), ("GPU 1", 0.8))
    more = GPUs(count=3, model="NVIDIA L4", shared=True, busy_by_gpu=apart)
    second = told(SECOND, {}, 4.0, {"chat-0": more, "chat-2": GPUs(mig=True)})
    stale = told("another", {}, 95.0, {"chat-1": GPUs(mig=True)})
    builder.devices(Signal.GPU_COUNT, (first, second, stale))
    builder.level_of_any(Signal.DRAM_ACTIVE, DRAM, (told(SECOND, {"chat-0": 0.5, "chat-2": 0.5}),), 0.0)
    builder.name_sources()
    assert builder.by_pod[Signal.GPU_COUNT] == {
        "chat-0": Reading(2.0, 3.0),
        "chat-1": Reading(1.0, 3.0),
        "chat-2": Reading(1.0, 4.0),
    }
    assert builder.gpus == {
        "chat-0": GPUs(
            model="NVIDIA L4",
            count=2,
            shared=True,
            source="dcgm-exporter, bandkeeper agent",
            busy_by_gpu=apart,
        ),
        "chat-1": GPUs(model="NVIDIA L4", count=1, source="dcgm-exporter"),
        "chat-2": GPUs(count=1, mig=True, source="bandkeeper agent"),
    }


def test_a_gpu_does_more_than_1e15_flop_a_second() -> None:
    assert impossible(Signal.MODEL_FLOPS, 4.5e15) == ""
    assert "absurd" in impossible(Signal.MODEL_FLOPS, 9.2e18)
    assert "absurd" in impossible(Signal.MODEL_READ_BYTES, 9.2e18)
    assert "is a ratio" in impossible(Signal.POWER_THROTTLED, 250.0)
