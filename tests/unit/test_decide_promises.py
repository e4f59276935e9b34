"""Verdicts on promises: no more exact than the data."""

from __future__ import annotations

import math

import pytest

from bandkeeper.api.reasons import SLOState
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Gap, GapReason
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.load import assess
from bandkeeper.decide.policy import LatencySLO, ThroughputSLO
from bandkeeper.decide.promises import agrees_to_less, describe, is_wait, judge
from bandkeeper.decide.state import DemandMemory
from tests.unit.builders import ITL, TTFT, a_distribution, a_policy, a_snapshot

TOKENS = ThroughputSLO(signal=Signal.GENERATION_TOKENS, min_per_s=1000, window_s=60)


def verdict_of(
    slo: LatencySLO | ThroughputSLO, distribution: Distribution | None = None, **snapshot: float
) -> SLOVerdict:
    policy = a_policy(slos=[slo])
    distributions = {slo.signal: distribution} if distribution else {}
    gaps = [Gap(signal=slo.signal, reason=GapReason.ABSENT, detail="no series of chat")] if not distribution else []
    seen = a_snapshot(distributions=distributions, gaps=gaps, **snapshot)  # type: ignore[arg-type]
    return judge(policy, seen, assess(policy, seen, DemandMemory()))[0]


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({0.05: 96, 0.1: 4}, SLOState.MET),
        ({0.05: 95, 0.1: 5}, SLOState.MET),
        ({0.05: 94, 0.1: 6}, SLOState.BREACHED),
        ({0.05: 0}, SLOState.NO_TRAFFIC),
        ({0.05: 19}, SLOState.TOO_FEW_REQUESTS),
        ({0.05: 17, 0.1: 2}, SLOState.TOO_FEW_REQUESTS),
        ({0.05: 3, 0.1: 3}, SLOState.BREACHED),  # three misses are certain however few were seen
        ({0.04: 90, 0.06: 8, 0.1: 2}, SLOState.BETWEEN_BUCKETS),
        ({0.04: 96, 0.06: 4}, SLOState.MET),
        ({0.04: 80, 0.06: 10, 0.1: 10}, SLOState.BREACHED),
    ],
)
def test_state_of_a_latency(counts: dict[float, float], state: SLOState) -> None:
    assert verdict_of(ITL, a_distribution(counts)).state is state


def test_figures_of_a_latency() -> None:
    verdict = verdict_of(ITL, a_distribution({0.05: 90, 0.075: 10}, mean_s=0.04))
    assert (verdict.lower, verdict.upper) == (0.05, 0.075)
    assert verdict.mean == pytest.approx(0.04)
    assert (verdict.attainment_low, verdict.attainment_high, verdict.observations) == (0.9, 0.9, 100)
    assert describe(verdict) == "p95 inter-token latency 62.5ms is over the 50ms objective"


def test_the_nearest_edges_are_named() -> None:
    message = verdict_of(ITL, a_distribution({0.04: 90, 0.06: 8, 0.1: 2})).message
    assert "50ms lies between the bucket edges 40ms and 60ms" in message
    assert "+Inf" in verdict_of(ITL, a_distribution({0.04: 90, math.inf: 10})).message


def test_missing_says_why() -> None:
    verdict = verdict_of(TTFT)
    assert verdict.state is SLOState.NO_DATA
    assert verdict.message == "no series of chat"
    assert describe(verdict) == "p95 time to first token is not known"


@pytest.mark.parametrize(
    "distribution",
    [
        a_distribution({0.05: 100}, age_s=900),
        Distribution(window_s=60, edges=(0.05, math.inf), counts=(9.0, 3.0)),
        Distribution(window_s=60, quantiles={95: math.nan}),
    ],
    ids=["stale", "impossible", "not a number"],
)
def test_bad_data_is_no_data(distribution: Distribution) -> None:
    assert verdict_of(ITL, distribution).state is SLOState.NO_DATA


def test_a_source_of_percentiles_without_any_saw_no_traffic() -> None:
    assert verdict_of(ITL, Distribution(window_s=60)).state is SLOState.NO_TRAFFIC


@pytest.mark.parametrize(
    ("quantiles", "state"),
    [
        ({95: 0.04}, SLOState.MET),
        ({95: 0.06}, SLOState.BREACHED),
        ({90: 0.06, 99: 0.2}, SLOState.BREACHED),
        ({90: 0.02, 99: 0.04}, SLOState.MET),
        ({90: 0.02, 99: 0.2}, SLOState.BETWEEN_BUCKETS),
    ],
)
def test_state_from_ready_percentiles(quantiles: dict[int, float], state: SLOState) -> None:
    verdict = verdict_of(ITL, Distribution(window_s=60, quantiles=quantiles))
    assert verdict.state is state
    assert verdict.observations is None


@pytest.mark.parametrize(
    ("rate", "waiting", "running", "state"),
    [
        (1200.0, 100.0, 64.0, SLOState.MET),
        (800.0, 100.0, 64.0, SLOState.BREACHED),
        (800.0, 0.0, 10.0, SLOState.NO_TRAFFIC),  # nothing waits: there was not more to do
        (800.0, None, None, SLOState.NO_DATA),
    ],
)
def test_state_of_a_rate(rate: float, waiting: float | None, running: float | None, state: SLOState) -> None:
    policy = a_policy(slos=[TOKENS])
    seen = a_snapshot(running=running, waiting=waiting, generation_tokens=rate)
    verdict = judge(policy, seen, assess(policy, seen, DemandMemory()))[0]
    assert verdict.state is state
    assert "the objective is at least 1e+03/s" in describe(verdict)


def test_a_rate_without_data() -> None:
    verdict = verdict_of(TOKENS)
    assert verdict.state is SLOState.NO_DATA
    assert "unknown" in describe(verdict)


@pytest.mark.parametrize(
    ("counts", "agrees"),
    [
        ({0.05: 100}, True),
        ({0.05: 98, 0.1: 2}, True),
        ({0.05: 96, 0.1: 4}, False),  # kept, with nothing to spare
        ({0.05: 90, 0.1: 10}, False),
        ({0.05: 0}, True),
        ({0.05: 5}, True),  # too few to tell, and no miss among them
        ({0.05: 5, 0.1: 1}, False),
        ({0.04: 90, 0.06: 8, 0.1: 2}, False),
    ],
)
def test_what_agrees_to_fewer_replicas(counts: dict[float, float], agrees: bool) -> None:
    assert agrees_to_less(verdict_of(ITL, a_distribution(counts))) is agrees


@pytest.mark.parametrize(("p95_s", "agrees"), [(0.04, True), (0.049, False), (0.06, False)])
def test_what_agrees_where_only_percentiles_are_given(p95_s: float, agrees: bool) -> None:
    assert agrees_to_less(verdict_of(ITL, Distribution(window_s=60, quantiles={95: p95_s}))) is agrees


@pytest.mark.parametrize(("rate", "agrees"), [(1200.0, True), (800.0, True)])
def test_a_rate_with_nothing_waiting_agrees(rate: float, agrees: bool) -> None:
    policy = a_policy(slos=[TOKENS])
    seen = a_snapshot(running=10, generation_tokens=rate)
    assert agrees_to_less(judge(policy, seen, assess(policy, seen, DemandMemory()))[0]) is agrees


def test_a_percentile_in_the_last_bucket_reads_as_over_it() -> None:
    verdict = verdict_of(TTFT, a_distribution({1.0: 50, math.inf: 50}))
    assert describe(verdict) == "p95 time to first token over 1s is over the 500ms objective"


@pytest.mark.parametrize(("waiting", "waits"), [(0.0, False), (100.0, True)])
def test_end_to_end_is_about_waiting_only_with_a_queue(waiting: float, waits: bool) -> None:
    slo = LatencySLO(signal=Signal.END_TO_END_LATENCY, percentile=95, threshold_s=1, window_s=60)
    policy = a_policy(slos=[slo])
    seen = a_snapshot(waiting=waiting, distributions={slo.signal: a_distribution({2.0: 100})})
    load = assess(policy, seen, DemandMemory())
    assert is_wait(judge(policy, seen, load)[0], load) is waits
