"""A spec with every default filled in."""

from __future__ import annotations

from typing import Any

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.v1alpha1 import FallbackBehavior, SelectPolicy, Spec
from bandkeeper.decide.policy import (
    Batching,
    CostClass,
    Deadline,
    LatencySLO,
    Policy,
    PolicyError,
    RateLimit,
    ThroughputSLO,
    default_candidates,
    resolve,
)


def a_spec(objective: str = "LatencySensitive", **more: Any) -> Spec:
    document = {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
        "objective": objective,
        "runtime": "VLLM",
        "slos": [{"signal": "TimeToFirstToken", "percentile": 95, "threshold": "500ms"}],
        "replicas": {"min": 1, "max": 16},
        **more,
    }
    return Spec.model_validate(document, strict=False)


def resolved(spec: Spec, **more: Any) -> Policy:
    return resolve(spec, batching=Batching.CONTINUOUS, default_capacity=256, **more)


def test_a_profile_is_parameters_and_a_table() -> None:
    told = {"alphaMilliseconds": "20", "betaMilliseconds": "0.5", "kvTokens": 1000}
    profile = resolved(a_spec(profile=told)).profile
    assert profile is not None
    assert (profile.alpha_s, profile.beta_s, profile.delta_s, profile.kv_tokens) == (0.02, 0.0005, None, 1000.0)
    assert dict(profile.batches) == pytest.approx({1.0: 0.0205, 256.0: 0.148})
    assert resolved(a_spec()).profile is None


@pytest.mark.parametrize(
    ("times", "alpha_s", "beta_s"),
    [
        ({16: "28", 1: "20.5", 8: "24"}, 0.02, 0.0005),
        ({8: "24"}, 0.024, None),
        ({1: "20", 8: "10"}, 0.015, 0.0),
        ({1: "1", 8: "2", 64: "30"}, 0.0005, 0.000476),
    ],
)
def test_a_table_gives_parameters(times: dict[int, str], alpha_s: float, beta_s: float | None) -> None:
    told = {"batchTimes": [{"size": size, "milliseconds": one} for size, one in times.items()]}
    profile = resolved(a_spec(profile=told)).profile
    assert profile is not None
    assert [size for size, _ in profile.batches] == sorted(times)
    assert profile.alpha_s == pytest.approx(alpha_s, rel=0.01)
    assert profile.beta_s == (None if beta_s is None else pytest.approx(beta_s, rel=0.01))


@pytest.mark.parametrize(
    ("objective", "band", "window_s"),
    [
        ("LatencySensitive", (0.60, 0.70), 300),
        ("Balanced", (0.70, 0.80), 300),
        ("ThroughputSensitive", (0.85, 0.95), 120),
    ],
)
def test_defaults_follow_the_objective(objective: str, band: tuple[float, float], window_s: float) -> None:
    policy = resolved(a_spec(objective))
    assert (policy.band.low, policy.band.high) == band
    assert policy.scale_down.stabilization_s == window_s
    assert policy.scale_down.limits == (RateLimit(value=100, percent=True, period_s=15),)
    assert policy.scale_up.stabilization_s == 0
    assert policy.scale_up.limits == (
        RateLimit(value=100, percent=True, period_s=15),
        RateLimit(value=4, percent=False, period_s=15),
    )
    assert policy.scale_up.select is policy.scale_down.select is SelectPolicy.MAX
    assert policy.scale_up.tolerance == policy.scale_down.tolerance == 0


def test_what_is_written_overrides_field_by_field() -> None:
    behavior = {
        "scaleUp": {"stabilizationWindowSeconds": 30, "tolerance": "0.05"},
        "scaleDown": {"selectPolicy": "Min", "policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
    }
    policy = resolved(a_spec(band={"lowPercent": 40, "highPercent": 55}, behavior=behavior))
    assert (policy.band.low, policy.band.high) == (0.40, 0.55)
    assert (policy.scale_up.stabilization_s, policy.scale_up.tolerance, len(policy.scale_up.limits)) == (30, 0.05, 2)
    assert policy.scale_down.select is SelectPolicy.MIN
    assert policy.scale_down.limits == (RateLimit(value=2, percent=False, period_s=60),)
    assert policy.scale_down.stabilization_s == 300


def test_a_limit_of_power_comes_with_finer_caps() -> None:
    batch = {"min": 8, "max": 32, "adapter": {"type": "Annotation"}}
    for constraints, watts, sizes in (
        (None, None, (8, 12, 16, 24, 32)),
        ({"powerWattsPerGPU": 60}, 60.0, (8, 10, 12, 14, 16, 20, 24, 28, 32)),
    ):
        policy = resolved(a_spec(batch=batch, constraints=constraints), cost_class=CostClass.LIVE)
        assert policy.power_watts == watts
        assert policy.batch is not None
        assert policy.batch.candidates == sizes
    own = resolved(
        a_spec(batch={**batch, "candidates": [8, 32]}, constraints={"powerWattsPerGPU": 60}), cost_class=CostClass.LIVE
    )
    assert own.batch is not None
    assert own.batch.candidates == (8, 32)


def test_an_efficiency_becomes_a_ratio() -> None:
    assert resolved(a_spec(constraints={"parallelEfficiencyPercent": 75})).least_efficiency == 0.75
    assert resolved(a_spec(constraints={})).least_efficiency is None


def test_a_time_for_a_queue_is_none_where_nobody_wrote_one() -> None:
    assert resolved(a_spec()).drain_s is None
    assert resolved(a_spec(behavior={"drainSeconds": 300})).drain_s == 300.0


@pytest.mark.parametrize(
    ("backlog", "signals", "want"),
    [
        (None, [], None),
        (
            {"rate": "RequestsFinished", "within": "1h30m"},
            [],
            Deadline(backlog=Signal.REQUESTS_WAITING, rate=Signal.REQUESTS_FINISHED, within_s=5400.0),
        ),
        (
            {"rate": "Samples", "by": "2026-12-01T06:00:00Z"},
            [{"signal": "Backlog", "query": "sum(left)"}],
            Deadline(backlog=Signal.BACKLOG, rate=Signal.SAMPLES, by_s=1_796_104_800.0),
        ),
    ],
)
def test_a_deadline_has_its_signals_and_a_time(backlog: Any, signals: list[Any], want: Deadline | None) -> None:
    assert resolved(a_spec("ThroughputSensitive", backlog=backlog, signals=signals)).deadline == want


def test_promises_become_numbers() -> None:
    slos = [
        {"signal": "InterTokenLatency", "percentile": 99, "threshold": "7500us", "window": "2m"},
        {"signal": "GenerationTokens", "minPerSecond": 900},
    ]
    assert resolved(a_spec(slos=slos)).slos == (
        LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=99, threshold_s=0.0075, window_s=120),
        ThroughputSLO(signal=Signal.GENERATION_TOKENS, min_per_s=900, window_s=60),
    )


@pytest.mark.parametrize(
    ("slo", "says"),
    [
        ({"signal": "Latency", "threshold": "1s"}, "TimeToFirstToken"),
        ({"signal": "GenerationTokens", "threshold": "1s"}, "give it minPerSecond"),
        ({"signal": "QueueTime", "minPerSecond": 1}, "give it threshold"),
    ],
)
def test_a_promise_that_does_not_fit_says_what_to_write(slo: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        resolved(a_spec(slos=[slo]))


def test_fallback() -> None:
    fallback = resolved(a_spec(fallback={"after": "5m", "behavior": "Replicas", "replicas": 4})).fallback
    assert (fallback.after_s, fallback.behavior, fallback.replicas) == (300, FallbackBehavior.REPLICAS, 4)


class TestBatchKnob:
    batch: Any = {"min": 8, "max": 40, "adapter": {"type": "Annotation"}}  # noqa: RUF012

    def test_candidates_by_default(self) -> None:
        policy = resolved(a_spec(batch=self.batch), cost_class=CostClass.EVENTUAL, expected_delay_s=90)
        assert policy.batch is not None
        assert policy.batch.candidates == (8, 12, 16, 24, 32, 40)
        assert (policy.batch.cost_class, policy.batch.expected_delay_s) == (CostClass.EVENTUAL, 90)

    def test_candidates_as_written_are_sorted(self) -> None:
        policy = resolved(a_spec(batch={**self.batch, "candidates": [32, 8]}), cost_class=CostClass.LIVE)
        assert policy.batch is not None
        assert policy.batch.candidates == (8, 32)

    def test_without_an_adapter_there_is_no_knob(self) -> None:
        assert resolved(a_spec(batch=self.batch)).batch is None
        assert resolved(a_spec(), cost_class=CostClass.LIVE).batch is None


@pytest.mark.parametrize(
    ("least", "most", "candidates"),
    [(1, 1, (1,)), (1, 4, (1, 2, 3, 4)), (5, 5, (5,)), (100, 130, (100, 128, 130)), (8, 32, (8, 12, 16, 24, 32))],
)
def test_default_candidates(least: int, most: int, candidates: tuple[int, ...]) -> None:
    assert default_candidates(least, most) == candidates
