"""A policy over a recorded past: what it would have wanted at each tick, next to what there was.

Demand is measured on the fleet as it was, by the operator's own decision function. Decisions follow one another as if
each had been carried out; the record does not change by them, so a queue or a broken promise stays in it although the
policy would have had more replicas, and latencies are known only at the replicas that there were.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from statistics import fmean, median
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import RECALL_STEP_S, Distribution, PodState, Snapshot, Target
from bandkeeper.decide.decision import Decision, MetricsState
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.load import UNMEASURED_COLD_START_S
from bandkeeper.decide.ownership import OWN_MANAGER
from bandkeeper.decide.policy import LatencySLO, Policy, ThroughputSLO
from bandkeeper.decide.state import DemandMemory, State
from bandkeeper.lab.held import HeldFor
from bandkeeper.lab.history import History, Moment
from bandkeeper.lab.past import Past
from bandkeeper.lab.result import Move
from bandkeeper.model import histogram

VERSION: Literal[1] = 1
ALIKE = 0.1  # loads per replica within this share of each other are taken for the same
FEWEST_ALIKE = 4  # moments of such a load, to say what latencies it had
FARTHEST = 1.5  # times the most that a replica was seen to carry: so far the model may say what to expect
SATURATED = 0.95  # utilisation from which requests wait, and the time in process tells no latency
FEWEST_FITTED = 4.0  # observations of a fit, to predict with it
Progress = Callable[[float, float], None]

_COMPLETE, _PARTIAL, _DARK = "Complete", "Partial", "No data"
_REFUSED_COUNT = frozenset({Signal.TIME_TO_FIRST_TOKEN, Signal.END_TO_END_LATENCY, Signal.QUEUE_TIME})


class ReplayError(ValueError):
    """The history cannot be replayed; the text says what to change."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReplaySLO(_Part):
    """One promise over the judged time.

    Attributes
    ----------
    threshold
        Seconds, or the least rate per second where `percentile` is None.
    measured_low, measured_high
        Least and largest share that can have kept it in the past: buckets tell it at their edges only. None: unknown.
    expected
        Share expected with the wanted replicas. Where as many were wanted it is the measured one; else that of the
        moments of this past in which a replica was asked for as much; where there were none, what the model makes of
        the moment's latencies, up to 1.5 times the most that a replica was asked for and below saturation. None:
        unknown.
    expected_known, expected_modelled
        The share of requests (or tokens) of which that says anything, and of which the model says it.
    """

    signal: str
    percentile: int | None
    threshold: float
    measured_low: float | None
    measured_high: float | None
    expected: float | None
    expected_known: float
    expected_modelled: float


class Prediction(_Part):
    """How far a prediction of the model was from what was measured `ahead_s` later.

    Errors are shares of the measured value: `bias` is their median (above 0: too much was predicted), `median_error`
    and `p90_error` are of their sizes. `short` is the share of moments in which too little was predicted. None where
    there was nothing to compare (`count` 0).
    """

    what: str
    ahead_s: float
    count: int
    bias: float | None
    median_error: float | None
    p90_error: float | None
    short: float | None


class ReplaySeries(_Part):
    """One value per tick; None where there is none.

    Attributes
    ----------
    finished_per_s, offered_per_s
        Requests per second that ended, and that were asked for.
    ready, ordered
        Replicas of the past: those that served, and those that were ordered.
    wanted, expected_ready
        Replicas that the policy wanted, and those of them that would have been ready.
    cap
        The batch cap that it wanted.
    running, waiting, offered, held_peak
        Requests: in process, queued, in process if none had to wait, and the most of `offered` that is planned for.
    utilization, expected_utilization
        Of the past, and with the wanted replicas.
    request_s, predicted_request_s
        Time that a request is in process, and what the model of a cold start earlier says to this load.
    data
        Complete, Partial, or No data.
    slo_values
        By position in `slos`: the percentile in seconds, or the rate per second.
    """

    at_s: list[float]
    finished_per_s: list[float | None]
    offered_per_s: list[float | None]
    ready: list[int]
    ordered: list[int]
    wanted: list[int]
    expected_ready: list[int]
    cap: list[int | None]
    running: list[float | None]
    waiting: list[float | None]
    offered: list[float | None]
    held_peak: list[float | None]
    utilization: list[float | None]
    expected_utilization: list[float | None]
    request_s: list[float | None]
    predicted_request_s: list[float | None]
    data: list[str]
    slo_values: list[list[float | None]]


class ReplayResult(_Part):
    """A replay, for machines: the documented, versioned JSON.

    Attributes
    ----------
    from_s, to_s
        Epoch seconds of the first and the last tick.
    warmup_s
        Time from the start that is not judged: the operator lets nothing go before it watched a window.
    ticks, dark_ticks, partial_ticks
        Of the judged time: all, those of which nothing was recorded, and those of which not every signal was.
    gpu_hours_past, gpu_hours_wanted
        Of the replicas that were ordered, and of those wanted, from order to end, over the judged time.
    gpu_hours_saved
        The difference; below 0 the policy would have cost more.
    gpu_hours_by_rule
        Of the wanted replicas, those that would not have been wanted, had one rule alone been left out at each moment;
        `work` is what the recorded work takes, `unknown` those of which nobody knew. They do not add up. None where
        no moment tells.
    """

    version: Literal[1] = VERSION
    policy: str
    objective: str
    band_low: float
    band_high: float
    min_replicas: int
    max_replicas: int
    namespace: str
    workload: str
    runtime: str
    notes: list[str]
    from_s: float
    to_s: float
    step_s: float
    warmup_s: float
    cold_start_s: float
    gpus_per_replica: int
    ticks: int
    dark_ticks: int
    partial_ticks: int
    gpu_hours_past: float
    gpu_hours_wanted: float
    gpu_hours_saved: float
    gpu_hours_by_rule: dict[str, float] | None = None
    slos: list[ReplaySLO]
    predictions: list[Prediction]
    scale_actions_past: int
    scale_actions: int
    batch_actions: int
    moves: list[Move] = Field(description="what the policy would have changed")
    series: ReplaySeries


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tick:
    """One moment and what was decided on it."""

    moment: Moment
    decision: Decision
    memory: DemandMemory
    wanted: int
    cap: int | None

    @property
    def snapshot(self) -> Snapshot:
        return self.moment.snapshot

    @property
    def ordered(self) -> int:
        return self.snapshot.target.replicas if self.snapshot.target else 0

    @property
    def ready(self) -> int:
        return len(self.snapshot.pods_in(PodState.READY))

    @property
    def rate_per_s(self) -> float | None:
        """Requests per second that were asked for, as far as it was told; else those that ended."""
        offered = self.decision.inputs.offered_per_s
        return self.total(Signal.REQUESTS_FINISHED) if offered is None else offered

    @property
    def data(self) -> str:
        if self.moment.dark or self.decision.metrics.state is MetricsState.NONE:
            return _DARK
        return _COMPLETE if self.decision.metrics.state is MetricsState.USABLE else _PARTIAL

    def total(self, signal: Signal) -> float | None:
        """Of the workload; None where nothing was recorded, or of some pods only."""
        return _total(self.snapshot, signal)


def _total(snapshot: Snapshot, signal: Signal) -> float | None:
    readings = snapshot.by_pod.get(signal)
    if readings is None:
        whole = snapshot.totals.get(signal)
        return None if whole is None else whole.value
    ready = len(snapshot.pods_in(PodState.READY))
    return sum(reading.value for reading in readings.values()) if len(readings) >= ready else None


def replay(
    policy: Policy,
    history: History,
    *,
    policy_name: str,
    warmup_s: float | None = None,
    gpus_per_replica: int = 1,
    progress: Progress | None = None,
) -> ReplayResult:
    """What the policy would have wanted over a history. By default the longest hold of scale-in is not judged.

    Raises
    ------
    ReplayError
        The history is not longer than `warmup_s`, or nothing in it can be decided on.
    """
    if warmup_s is None:
        warmup_s = max(policy.restart_hold_s, policy.scale_down.stabilization_s)
    span_s = history.moments[-1].at_s - history.moments[0].at_s
    if span_s <= warmup_s:
        raise ReplayError(
            f"the history lasts {span_s:.0f} s, not longer than the {warmup_s:.0f} s before which nothing is judged: "
            "give a longer time, or a shorter --warmup"
        )
    if all(moment.dark or not moment.snapshot.pods_in(PodState.READY) for moment in history.moments):
        raise ReplayError(f"no moment of this history shows a ready pod of {history.namespace}/{history.workload}")
    moves: list[Move] = []
    ticks = list(_ticks(policy, history, moves, progress))
    return _result(policy, history, ticks, moves, policy_name, warmup_s, gpus_per_replica)


def _ticks(policy: Policy, history: History, moves: list[Move], progress: Progress | None) -> Iterator[_Tick]:
    """Decide at each moment, as if what was decided before had been carried out."""
    first = history.moments[0]
    state = State.initial(0.0)
    wanted = first.snapshot.target.replicas if first.snapshot.target else 0
    cap: int | None = None
    past = _past(history)
    for number, moment in enumerate(history.moments, start=1):
        now_s = moment.at_s - first.at_s
        if wanted == 0 and moment.snapshot.target is not None:
            wanted = moment.snapshot.target.replicas  # a person's zero is left alone, and so is its end
        target = Target(uid=history.workload, replicas=wanted, manager=OWN_MANAGER)
        snapshot = replace(moment.snapshot, target=target, recalled=past.recalled(now_s), wall_s=moment.at_s)
        decision, state = decide(policy, snapshot, state, now_s)
        replicas = wanted if decision.replicas is None else decision.replicas
        new_cap = cap if decision.cap is None else decision.cap
        if replicas != wanted:
            state = written(state, replicas=replicas, now_s=now_s)
        if replicas != wanted or (cap is not None and new_cap != cap):
            moves.append(
                Move(
                    at_s=now_s,
                    replicas_from=wanted,
                    replicas_to=replicas,
                    cap_from=cap,
                    cap_to=new_cap,
                    reason=decision.reason,
                    why=decision.message,
                )
            )
        wanted, cap = replicas, new_cap
        yield _Tick(moment=moment, decision=decision, memory=state.demand, wanted=wanted, cap=cap)
        if progress is not None:
            progress(number, len(history.moments))


def _past(history: History) -> Past:
    """Its own earlier days: means of the moments of each step in which all told their tokens."""
    steps: dict[int, list[tuple[float, float]]] = {}
    for moment in history.moments:
        tokens = _total(moment.snapshot, Signal.PROMPT_TOKENS), _total(moment.snapshot, Signal.GENERATION_TOKENS)
        if tokens[0] is not None and tokens[1] is not None:
            step = int((moment.at_s - history.moments[0].at_s) // RECALL_STEP_S)
            steps.setdefault(step, []).append((tokens[0], tokens[1]))
    past = Past()
    for step, told in steps.items():
        past.add((step + 1) * RECALL_STEP_S, *map(fmean, zip(*told, strict=True)))
    return past


def _result(
    policy: Policy,
    history: History,
    ticks: Sequence[_Tick],
    moves: list[Move],
    policy_name: str,
    warmup_s: float,
    gpus: int,
) -> ReplayResult:
    start_s, step_s = ticks[0].moment.at_s, history.step_s
    cold_start_s = _cold_start_s(ticks)
    ready = _expected_ready(ticks, cold_start_s, step_s)
    judged = range(next(i for i, tick in enumerate(ticks) if tick.moment.at_s - start_s > warmup_s), len(ticks))
    ahead = max(1, round(cold_start_s / step_s))
    times_s = _times_in_process(policy, ticks, step_s)
    predicted_s = _predicted_times(ticks, ahead)
    late = [move for move in moves if move.at_s > warmup_s]
    past_h = sum(ticks[i].ordered for i in judged) * step_s * gpus / 3600
    wanted_h = sum(ticks[i].wanted for i in judged) * step_s * gpus / 3600
    return ReplayResult(
        policy=policy_name,
        objective=str(policy.objective),
        band_low=policy.band.low,
        band_high=policy.band.high,
        min_replicas=policy.min_replicas,
        max_replicas=policy.max_replicas,
        namespace=history.namespace,
        workload=history.workload,
        runtime=history.runtime,
        notes=list(history.notes),
        from_s=start_s,
        to_s=ticks[-1].moment.at_s,
        step_s=step_s,
        warmup_s=warmup_s,
        cold_start_s=cold_start_s,
        gpus_per_replica=gpus,
        ticks=len(judged),
        dark_ticks=sum(ticks[i].data == _DARK for i in judged),
        partial_ticks=sum(ticks[i].data == _PARTIAL for i in judged),
        gpu_hours_past=past_h,
        gpu_hours_wanted=wanted_h,
        gpu_hours_saved=past_h - wanted_h,
        gpu_hours_by_rule=_held_for(ticks, warmup_s, gpus),
        slos=[_slo(slo, ticks, ready, judged, step_s) for slo in policy.slos],
        predictions=[
            _prediction("time that a request is in process", times_s, predicted_s, judged, ahead * step_s),
            _peak_prediction(ticks, judged, ahead, step_s),
        ],
        scale_actions_past=sum(ticks[i].ordered != ticks[i - 1].ordered for i in judged if i),
        scale_actions=sum(move.replicas_to != move.replicas_from for move in late),
        batch_actions=sum(move.cap_to != move.cap_from for move in late),
        moves=moves,
        series=_series(policy, ticks, ready, times_s, predicted_s),
    )


def _held_for(ticks: Sequence[_Tick], warmup_s: float, gpus: int) -> dict[str, float] | None:
    """Each moment tells what the replicas wanted until then were held for."""
    told = HeldFor(gpus, warmup_s)
    for before, tick in pairwise(ticks):
        told.count(before.wanted, tick.decision.held, tick.moment.at_s - ticks[0].moment.at_s)
    return told.hours()


def _cold_start_s(ticks: Sequence[_Tick]) -> float:
    known = [tick.decision.inputs.cold_start_s for tick in ticks if tick.decision.inputs.cold_start_s is not None]
    return known[-1] if known else UNMEASURED_COLD_START_S


def _expected_ready(ticks: Sequence[_Tick], cold_start_s: float, step_s: float) -> list[int]:
    """Of the wanted replicas those ordered a cold start ago; what is let go is gone at once."""
    back = math.ceil(cold_start_s / step_s)
    return [min(tick.wanted for tick in ticks[max(0, i - back) : i + 1]) for i in range(len(ticks))]


# Promises.


@dataclass(frozen=True, slots=True)
class _Kept:
    """Requests (or tokens) that ended in one step, and how many of them can have kept a promise.

    `answered` turns observations of a window into those of the step.
    """

    ended: float
    low: float
    high: float
    answered: float = 1.0


def _slo(
    slo: LatencySLO | ThroughputSLO, ticks: Sequence[_Tick], ready: Sequence[int], judged: range, step_s: float
) -> ReplaySLO:
    if isinstance(slo, ThroughputSLO):
        return _throughput(slo, [ticks[i] for i in judged])
    kept = [_kept(slo, tick, step_s) for tick in ticks]
    seen = _Seen.of(
        [(load, one) for tick, one in zip(ticks, kept, strict=True) if (load := _load(tick, tick.ready)) and one]
    )
    measured = [one for i in judged if (one := kept[i])]
    ended = sum(one.ended for one in measured)
    known = expected = modelled = 0.0
    for i in judged:
        one = kept[i]
        if one is None:
            continue
        share, by_model = _expected(slo, one, ticks[i], ready[i], seen)
        if share is not None:
            known += one.ended
            expected += share * one.ended
            modelled += one.ended if by_model else 0.0
    return ReplaySLO(
        signal=slo.signal,
        percentile=slo.percentile,
        threshold=slo.threshold_s,
        measured_low=sum(one.low for one in measured) / ended if ended else None,
        measured_high=sum(one.high for one in measured) / ended if ended else None,
        expected=expected / known if known else None,
        expected_known=known / ended if ended else 0.0,
        expected_modelled=modelled / ended if ended else 0.0,
    )


def _expected(slo: LatencySLO, one: _Kept, tick: _Tick, replicas: int, seen: _Seen) -> tuple[float | None, bool]:
    """The share to expect with so many replicas, None where nothing tells, and whether the model says so."""
    if replicas == tick.ready:
        return one.low / one.ended, False
    load = _load(tick, replicas)
    share = seen.share_at(load)
    if share is None and load is not None and load <= FARTHEST * seen.most:
        share = _modelled(slo, one, tick, replicas)
        if share is not None:
            return share, True
    return share, False


def _modelled(slo: LatencySLO, one: _Kept, tick: _Tick, replicas: int) -> float | None:
    """Every latency of the moment stretched as the model stretches the time in process; None near saturation."""
    before, after = _with(tick, tick.ready), _with(tick, replicas)
    distribution = _distribution(slo, tick)
    if distribution is None or before is None or after is None or max(before, after) > SATURATED:
        return None
    stretch = tick.memory.service.curve().stretch(after, before)
    share = interpolated(distribution, slo.threshold_s / stretch)
    ended = distribution.observations * one.answered if distribution.counts else one.ended
    return None if share is None else share * ended / one.ended


def interpolated(distribution: Distribution, threshold_s: float) -> float | None:
    """Share of observations at or below a threshold, spread evenly inside its bucket; None without observations."""
    if not distribution.counts:
        shares = histogram.attainment(distribution, threshold_s)
        return None if shares is None else shares[0]
    total = distribution.observations
    if total <= 0:
        return None
    edges, counts = distribution.edges, distribution.counts
    above = bisect_right(edges, threshold_s)
    if above == len(edges):
        return 1.0
    below, start_s = (counts[above - 1], edges[above - 1]) if above else (0.0, 0.0)
    part = 0.0 if math.isinf(edges[above]) else (threshold_s - start_s) / (edges[above] - start_s)
    return (below + part * (counts[above] - below)) / total


def _kept(slo: LatencySLO, tick: _Tick, step_s: float) -> _Kept | None:
    """What one step saw; refused requests are misses. A source that gives percentiles only counts steps."""
    distribution = _distribution(slo, tick)
    shares = None if distribution is None else histogram.attainment(distribution, slo.threshold_s)
    if distribution is None or shares is None:
        return None
    ended = distribution.observations * step_s / distribution.window_s if distribution.counts else 1.0
    refused = 0.0
    if slo.signal in _REFUSED_COUNT and distribution.counts:
        refused = step_s * ((tick.total(Signal.REQUESTS_REJECTED) or 0) + (tick.total(Signal.REQUESTS_FAILED) or 0))
    return _Kept(ended + refused, shares[0] * ended, shares[1] * ended, step_s / distribution.window_s)


def _distribution(slo: LatencySLO, tick: _Tick) -> Distribution | None:
    found = tick.snapshot.distributions.get((slo.signal, round(slo.window_s)))
    return found if found is not None and (found.quantiles or histogram.is_possible(found)) else None


def _load(tick: _Tick, replicas: int) -> float | None:
    """Requests per second that each of so many replicas has to carry."""
    rate = tick.rate_per_s
    return None if rate is None or not replicas else rate / replicas


@dataclass(frozen=True, slots=True)
class _Seen:
    """Moments of the past by load per replica, ascending, with running sums of what ended and what was kept."""

    loads: Sequence[float]
    ended: Sequence[float]
    kept: Sequence[float]

    @classmethod
    def of(cls, moments: Sequence[tuple[float, _Kept]]) -> _Seen:
        ordered = sorted(moments, key=lambda moment: moment[0])
        return cls(
            loads=[load for load, _ in ordered],
            ended=[0.0, *accumulate(one.ended for _, one in ordered)],
            kept=[0.0, *accumulate(one.low for _, one in ordered)],
        )

    @property
    def most(self) -> float:
        """The most that a replica was asked for."""
        return self.loads[-1] if self.loads else 0.0

    def share_at(self, load: float | None) -> float | None:
        """The share kept in the moments in which a replica carried as much; None where there were few."""
        if load is None:
            return None
        first, last = bisect_left(self.loads, (1 - ALIKE) * load), bisect_right(self.loads, (1 + ALIKE) * load)
        ended = self.ended[last] - self.ended[first]
        return (self.kept[last] - self.kept[first]) / ended if last - first >= FEWEST_ALIKE and ended > 0 else None


def _throughput(slo: ThroughputSLO, ticks: Sequence[_Tick]) -> ReplaySLO:
    """Judged while something waits; what other replicas would have produced is not in the record."""
    rates = [rate for tick in ticks if tick.total(Signal.REQUESTS_WAITING) and (rate := tick.total(slo.signal))]
    kept = sum(rate >= slo.min_per_s for rate in rates) / len(rates) if rates else None
    return ReplaySLO(
        signal=slo.signal,
        percentile=None,
        threshold=slo.min_per_s,
        measured_low=kept,
        measured_high=kept,
        expected=None,
        expected_known=0.0,
        expected_modelled=0.0,
    )


# The model's predictions.


def _times_in_process(policy: Policy, ticks: Sequence[_Tick], step_s: float) -> list[float | None]:
    """Little's law over the rate window: requests in process, on average, over those that end per second."""
    back = max(1, round(policy.rate_window_s / step_s))
    found: list[float | None] = []
    for i, tick in enumerate(ticks):
        window = [one.total(Signal.REQUESTS_RUNNING) for one in ticks[max(0, i - back) : i + 1]]
        known = [value for value in window if value is not None]
        finished = tick.total(Signal.REQUESTS_FINISHED)
        found.append(sum(known) / len(known) / finished if finished and len(known) == len(window) else None)
    return found


def _predicted_times(ticks: Sequence[_Tick], ahead: int) -> list[float | None]:
    """What the model of `ahead` ticks earlier says to the batch of now."""
    found: list[float | None] = [None] * min(ahead, len(ticks))
    for before, tick in zip(ticks, ticks[ahead:], strict=False):
        fit, best_cap = before.memory.service, before.memory.best_cap
        running = tick.total(Signal.REQUESTS_RUNNING)
        if fit.weight < FEWEST_FITTED or not best_cap or running is None or not tick.ready:
            found.append(None)
            continue
        relative = min(1.0, running / (tick.ready * best_cap))
        found.append(fit.mean_s * fit.curve().stretch(relative, fit.v / fit.weight))
    return found


def _peak_prediction(ticks: Sequence[_Tick], judged: range, ahead: int, step_s: float) -> Prediction:
    """Whether the work planned for was enough for the next cold start, in which nothing that is ordered helps."""
    offered = [tick.decision.inputs.offered for tick in ticks]
    peaks: list[float | None] = []
    for i in range(len(ticks)):
        coming = [value for value in offered[i + 1 : i + 1 + ahead] if value is not None]
        peaks.append(max(coming) if len(coming) == ahead else None)
    held = [tick.decision.inputs.held_peak for tick in ticks]
    return _prediction(
        "requests planned for, against the most until a pod ordered now is ready", peaks, held, judged, ahead * step_s
    )


def _prediction(
    what: str,
    measured: Sequence[float | None],
    predicted: Sequence[float | None],
    judged: range,
    ahead_s: float,
) -> Prediction:
    pairs = [(measured[i], predicted[i]) for i in judged]
    errors = sorted((said - was) / was for was, said in pairs if was and said is not None)
    sizes = sorted(map(abs, errors))
    return Prediction(
        what=what,
        ahead_s=ahead_s,
        count=len(errors),
        bias=median(errors) if errors else None,
        median_error=median(sizes) if sizes else None,
        p90_error=sizes[math.ceil(0.9 * len(sizes)) - 1] if sizes else None,
        short=sum(error < 0 for error in errors) / len(errors) if errors else None,
    )


# Series.


def _series(
    policy: Policy,
    ticks: Sequence[_Tick],
    ready: Sequence[int],
    times_s: list[float | None],
    predicted_s: list[float | None],
) -> ReplaySeries:
    return ReplaySeries(
        at_s=[tick.moment.at_s - ticks[0].moment.at_s for tick in ticks],
        finished_per_s=[tick.total(Signal.REQUESTS_FINISHED) for tick in ticks],
        offered_per_s=[tick.decision.inputs.offered_per_s for tick in ticks],
        ready=[tick.ready for tick in ticks],
        ordered=[tick.ordered for tick in ticks],
        wanted=[tick.wanted for tick in ticks],
        expected_ready=list(ready),
        cap=[tick.cap for tick in ticks],
        running=[tick.total(Signal.REQUESTS_RUNNING) for tick in ticks],
        waiting=[tick.total(Signal.REQUESTS_WAITING) for tick in ticks],
        offered=[tick.decision.inputs.offered for tick in ticks],
        held_peak=[tick.decision.inputs.held_peak for tick in ticks],
        utilization=[tick.decision.utilization for tick in ticks],
        expected_utilization=[_with(tick, count) for tick, count in zip(ticks, ready, strict=True)],
        request_s=times_s,
        predicted_request_s=predicted_s,
        data=[tick.data for tick in ticks],
        slo_values=[[_value(slo, tick) for tick in ticks] for slo in policy.slos],
    )


def _with(tick: _Tick, replicas: int) -> float | None:
    """Utilisation if so many replicas shared the offered work: a longer batch makes each request stay longer."""
    memory, offered = tick.memory, tick.decision.inputs.offered
    if offered is None or not replicas or not tick.ready or not memory.best_cap:
        return None
    curve = memory.service.curve()
    work = tick.ready * curve.load(offered / (tick.ready * memory.best_cap))
    return curve.utilization(work / replicas)


def _value(slo: LatencySLO | ThroughputSLO, tick: _Tick) -> float | None:
    if isinstance(slo, ThroughputSLO):
        return tick.total(slo.signal)
    distribution = _distribution(slo, tick)
    found = None if distribution is None else histogram.percentile(distribution, slo.percentile)
    return None if found is None else found.value
