"""How far each SLO is kept, said only as exactly as the data allows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bandkeeper.api import durations
from bandkeeper.api.reasons import SLOState
from bandkeeper.api.signals import CATALOGUE, Signal
from bandkeeper.api.snapshot import Distribution, Snapshot
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.load import STALE_S, Load, rate_of
from bandkeeper.decide.policy import LatencySLO, Policy, ThroughputSLO
from bandkeeper.model import histogram

CERTAIN_MISSES = 3.0  # so many misses break a promise even where the window saw too few requests for its percentile
SPARE = 0.9  # of a threshold: a percentile below it is kept with something to spare
WAIT_SIGNALS = frozenset({Signal.TIME_TO_FIRST_TOKEN, Signal.QUEUE_TIME})
WORDS = {
    Signal.TIME_TO_FIRST_TOKEN: "time to first token",
    Signal.INTER_TOKEN_LATENCY: "inter-token latency",
    Signal.END_TO_END_LATENCY: "end-to-end latency",
    Signal.QUEUE_TIME: "queue time",
}


def judge(policy: Policy, snapshot: Snapshot, load: Load) -> tuple[SLOVerdict, ...]:
    """One verdict for each promise of the policy."""
    return tuple(
        _latency(slo, snapshot) if isinstance(slo, LatencySLO) else _throughput(slo, snapshot, load)
        for slo in policy.slos
    )


def breached(verdicts: Iterable[SLOVerdict]) -> tuple[SLOVerdict, ...]:
    """The promises that are broken."""
    return tuple(verdict for verdict in verdicts if verdict.state is SLOState.BREACHED)


def is_wait(verdict: SLOVerdict, load: Load) -> bool:
    """Whether a broken promise is about waiting: work queues, or is not done fast enough while it queues."""
    return verdict.signal in WAIT_SIGNALS or verdict.percentile is None or (is_total(verdict) and load.queueing)


def is_total(verdict: SLOVerdict) -> bool:
    """End to end: both waiting and processing are in it."""
    return verdict.signal is Signal.END_TO_END_LATENCY


def agrees_to_less(verdict: SLOVerdict) -> bool:
    """Whether a promise is no argument against fewer replicas: kept with something to spare, or nothing was asked."""
    if verdict.state is SLOState.TOO_FEW_REQUESTS:
        return verdict.attainment_high == 1.0
    if verdict.state is not SLOState.MET or verdict.percentile is None:
        return verdict.state in (SLOState.MET, SLOState.NO_TRAFFIC)
    if verdict.observations is None:  # only percentiles are given, no shares
        return verdict.upper is not None and verdict.upper <= SPARE * verdict.limit
    missed_share, allowed_share = 1 - (verdict.attainment_low or 0.0), 1 - verdict.percentile / 100
    return missed_share <= allowed_share / 2


def describe(verdict: SLOVerdict) -> str:
    """The verdict's figures for a person: p95 inter-token latency 61ms is over the 50ms objective."""
    if verdict.percentile is None:
        unit = CATALOGUE[verdict.signal].unit
        value = "unknown" if verdict.value is None else f"{verdict.value:.3g}"
        return f"{value} {unit}/s, the objective is at least {verdict.limit:.3g}/s"
    name = f"p{verdict.percentile} {WORDS.get(verdict.signal, verdict.signal)}"
    if verdict.value is None:
        return f"{name} is not known"
    measured = durations.text(verdict.value)
    if verdict.upper is not None and math.isinf(verdict.upper):
        measured = f"over {measured}"
    relation = "is over" if verdict.state in (SLOState.BREACHED, SLOState.UNREACHABLE) else "against"
    return f"{name} {measured} {relation} the {durations.text(verdict.limit)} objective"


def _latency(slo: LatencySLO, snapshot: Snapshot) -> SLOVerdict:
    distribution = snapshot.distributions.get((slo.signal, round(slo.window_s)))
    if distribution is None or distribution.age_s > STALE_S:
        return _latency_verdict(slo, SLOState.NO_DATA, _gap(snapshot, slo.signal))
    if distribution.quantiles:
        return _measured(slo, distribution, None)
    if not distribution.edges:
        return _latency_verdict(slo, SLOState.NO_TRAFFIC, "no percentile, because nothing was asked")
    if not histogram.is_possible(distribution):
        return _latency_verdict(slo, SLOState.NO_DATA, f"the histogram of {slo.signal} is not a possible one")
    if distribution.observations <= 0:
        return _latency_verdict(slo, SLOState.NO_TRAFFIC, "no request in the window", observations=0.0)
    return _measured(slo, distribution, distribution.observations)


def _measured(slo: LatencySLO, distribution: Distribution, observations: float | None) -> SLOVerdict:
    estimate = histogram.percentile(distribution, slo.percentile)
    shares = histogram.attainment(distribution, slo.threshold_s)
    if estimate is None or shares is None:
        return _latency_verdict(slo, SLOState.NO_DATA, _not_finite(slo))
    state = _from_bounds(slo, estimate) if observations is None else _from_shares(slo, shares, observations)
    return _latency_verdict(
        slo,
        state,
        _edges(slo, estimate) if state is SLOState.BETWEEN_BUCKETS else "",
        estimate=estimate,
        shares=shares,
        observations=observations,
        mean=histogram.mean(distribution),
    )


def _from_shares(slo: LatencySLO, shares: tuple[float, float], observations: float) -> SLOState:
    low, high = shares
    promised = slo.percentile / 100
    if high < promised and (1 - high) * observations >= CERTAIN_MISSES:
        return SLOState.BREACHED
    if observations * (1 - promised) < 1 - 1e-9:
        return SLOState.TOO_FEW_REQUESTS
    if low >= promised - 1e-9:
        return SLOState.MET
    return SLOState.BREACHED if high < promised else SLOState.BETWEEN_BUCKETS


def _from_bounds(slo: LatencySLO, estimate: histogram.Estimate) -> SLOState:
    if estimate.upper <= slo.threshold_s:
        return SLOState.MET
    return SLOState.BREACHED if estimate.lower > slo.threshold_s else SLOState.BETWEEN_BUCKETS


def _latency_verdict(
    slo: LatencySLO,
    state: SLOState,
    message: str,
    *,
    estimate: histogram.Estimate | None = None,
    shares: tuple[float, float] | None = None,
    observations: float | None = None,
    mean: float | None = None,
) -> SLOVerdict:
    return SLOVerdict(
        signal=slo.signal,
        percentile=slo.percentile,
        limit=slo.threshold_s,
        window_s=slo.window_s,
        state=state,
        value=estimate.value if estimate else None,
        lower=estimate.lower if estimate else None,
        upper=estimate.upper if estimate else None,
        mean=mean,
        attainment_low=shares[0] if shares else None,
        attainment_high=shares[1] if shares else None,
        observations=observations,
        message=message,
    )


def _throughput(slo: ThroughputSLO, snapshot: Snapshot, load: Load) -> SLOVerdict:
    rate = rate_of(snapshot, slo.signal)
    message = ""
    if rate is None:
        state, message = SLOState.NO_DATA, _gap(snapshot, slo.signal)
    elif rate >= slo.min_per_s:
        state = SLOState.MET
    elif load.left > 0 if load.left is not None else load.queueing or load.trains:
        state = SLOState.BREACHED
    elif load.complete or load.left_whole:
        state, message = SLOState.NO_TRAFFIC, "no work waits"
    else:
        state, message = SLOState.NO_DATA, "whether work waits is not known"
    return SLOVerdict(
        signal=slo.signal,
        percentile=None,
        limit=slo.min_per_s,
        window_s=slo.window_s,
        state=state,
        value=rate,
        message=message,
    )


def _gap(snapshot: Snapshot, signal: Signal) -> str:
    told = next((gap.detail for gap in snapshot.gaps if gap.signal is signal and gap.detail), "")
    return told or f"{signal} has no data"


def _not_finite(slo: LatencySLO) -> str:
    return f"{slo.signal} has no percentile that is a number"


def _edges(slo: LatencySLO, estimate: histogram.Estimate) -> str:
    upper = "+Inf" if math.isinf(estimate.upper) else durations.text(estimate.upper)
    return (
        f"the threshold {durations.text(slo.threshold_s)} lies between the bucket edges "
        f"{durations.text(max(0.0, estimate.lower))} and {upper}: write one of them, or give the server an edge there"
    )
