"""What the quality core is told of one look at the fleet, and when it is asked: only where its answer can be another.

GPU counters are collected every half a minute, and a judgement costs more than the rest of a tick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType

from bandkeeper.api.reasons import SLOState
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Levels, Pod, PodState, Reading, Snapshot
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Batching, Policy
from bandkeeper.decide.promises import breached
from bandkeeper.decide.size import FUTILE_S, LONE_BATCH, for_band, for_held
from bandkeeper.decide.state import DemandMemory, QualityMemory, Trial
from bandkeeper.quality.assess import assess
from bandkeeper.quality.types import Assessment, Counters, Evidence, Kind, Saturated

NEWS_S = 1.0  # a sample so much younger than the last one is another one
AGAIN_S = 30.0  # without any news: trends and stale counters need a look now and then
FEWEST_SEEN = 10.0  # observations before a fitted curve is told
CHEAP_STRETCH = 1.25  # twice the batch for at most a quarter more time: below the knee
CLEAR_STEP = 1.25  # replicas more, for what they bring to be told from chance
COMPARABLE_S = 900.0  # between two windows: later the mix of requests may be another one
TAIL = 0.5  # of an inter-token threshold: a mean below it with a broken percentile is the work of stalls

_FIELDS = {field.name: field.name for field in fields(Counters)}
# The very strings that the class has: a call finds its keywords by identity first, and all others by comparing each.
_COUNTERS = {signal: _FIELDS[signal.name.lower()] for signal in Signal if signal.name.lower() in _FIELDS}
_NOTHING: Mapping[str, Reading] = MappingProxyType({})
_PER_GPU = ("model_flops", "model_read_bytes", "model_written_bytes")
_CORE = (  # what the class depends on: their age is the judgement's, and they are asked for most often
    Signal.GR_ENGINE_ACTIVE,
    Signal.GPU_UTILIZATION,
    Signal.TENSOR_ACTIVE,
    Signal.DRAM_ACTIVE,
    Signal.SM_ACTIVE,
)
_KINDS = {Batching.CONTINUOUS: Kind.LLM_SERVING, Batching.DYNAMIC: Kind.DYNAMIC_BATCHING}
_LATENCIES = (Signal.INTER_TOKEN_LATENCY, Signal.END_TO_END_LATENCY, Signal.TIME_TO_FIRST_TOKEN)


@dataclass(frozen=True, slots=True)
class Sights:
    """One look at the fleet, as far as the decision has got with it."""

    policy: Policy
    snapshot: Snapshot
    load: Load
    verdicts: tuple[SLOVerdict, ...]
    demand: Demand | None


def judge_quality(
    sights: Sights, memory: QualityMemory, learned: DemandMemory, now_s: float
) -> tuple[Assessment, QualityMemory]:
    """The worth of the GPUs' busy time; the last judgement while there is nothing new to judge by."""
    load, snapshot = sights.load, sights.snapshot
    gpus = _sampled(snapshot)
    sampled_s = now_s - min(gpus.values(), default=math.inf)
    broken = frozenset(verdict.signal for verdict in breached(sights.verdicts))
    state = (load.ready, len(gpus), load.queueing, broken)
    known = memory.assessment
    if (
        known is not None
        and state == memory.state
        and now_s - memory.judged_s < min(AGAIN_S, sights.policy.quality.window_s)
        and not sampled_s - memory.sampled_s >= NEWS_S
    ):
        return known, memory
    policy = sights.policy
    found, remembered = assess(evidence_of(sights, learned), memory.memory, now_s, policy.quality, policy.peaks)
    return found, QualityMemory(
        memory=remembered,
        assessment=found,
        trial=_tried(remembered.saturated, memory.trial, now_s),
        judged_s=now_s,
        sampled_s=sampled_s,
        state=state,
    )


def _tried(windows: tuple[Saturated, ...], known: Trial | None, now_s: float) -> Trial | None:
    """What the last clear step up brought. Later it may turn out to have brought more, never less: the mix moves on."""
    if known is not None and now_s - known.at_s > FUTILE_S:
        known = None
    if not windows:
        return known
    latest = windows[-1]
    fewer = next(
        (
            one
            for one in reversed(windows[:-1])
            if one.replicas * CLEAR_STEP <= latest.replicas and latest.at_s - one.at_s <= COMPARABLE_S
        ),
        None,
    )
    if fewer is not None:
        gain = _gain(latest, fewer.replicas, fewer.throughput)
        return Trial(
            before=fewer.replicas, after=latest.replicas, throughput=fewer.throughput, gain=gain, at_s=latest.at_s
        )
    if known is not None and latest.replicas >= known.before * CLEAR_STEP:
        return replace(known, gain=max(known.gain, _gain(latest, known.before, known.throughput)))
    return known


def _gain(more: Saturated, replicas: int, throughput: float) -> float:
    return (more.throughput / throughput - 1) / (more.replicas / replicas - 1)


def evidence_of(sights: Sights, learned: DemandMemory) -> Evidence:
    """What was seen, in the words of the quality core."""
    policy, snapshot, load, demand = sights.policy, sights.snapshot, sights.load, sights.demand
    ready = snapshot.pods_in(PodState.READY)
    losses = [rate for rate in (load.preemptions_per_s, load.rejected_per_s) if rate is not None]
    return Evidence(
        pods=_counters(snapshot, ready, policy),
        ready=load.ready,
        kind=_kind(policy, ready),
        objective=policy.objective,
        waiting=load.waiting,
        throughput=load.produced_per_s if load.finished_per_s is None else load.finished_per_s,
        offered=demand.offered_per_s if demand else None,
        losses=sum(losses) if losses else None,
        latency_cv=_variation(snapshot),
        mu=1 / demand.request_s if demand and demand.request_s else None,
        batch_gain=_batch_gain(load, demand, learned),
        below_knee=_below_knee(load, demand, learned),
        replicas_needed=max(for_band(policy, demand), for_held(demand) or 0) if demand else None,
        slo_broken=bool(breached(sights.verdicts)) if sights.verdicts else None,
        slo_unreachable=any(_is_out_of_reach(verdict, load) for verdict in sights.verdicts),
        prefill_tails=any(_is_stalled(verdict, snapshot) for verdict in sights.verdicts),
    )


def _sampled(snapshot: Snapshot) -> Mapping[str, float]:
    """The ages in seconds of one GPU counter: all of an exporter's are of the same moment."""
    return next((_ages_s(found) for signal in _CORE if (found := snapshot.by_pod.get(signal))), {})


def _ages_s(readings: Mapping[str, Reading]) -> Mapping[str, float]:
    if isinstance(readings, Levels):
        return readings.ages_s()
    return {pod: reading.age_s for pod, reading in readings.items()}


def _kind(policy: Policy, ready: Iterable[Pod]) -> Kind:
    known = _KINDS.get(policy.batching)
    if known is not None:
        return known
    return Kind.TRAINING if any(pod.trains for pod in ready) else Kind.UNKNOWN


def _counters(snapshot: Snapshot, ready: Sequence[Pod], policy: Policy) -> dict[str, Counters]:
    """The counters of each ready pod that has any; of what all share, each has an equal part."""
    rows, ages_s = _rows(snapshot, ready)
    of_network, of_disk = (_part(whole, len(ready)) for whole in (policy.shared_network, policy.shared_storage))
    counters = {}
    for pod in ready:
        values, held, gpus = rows[pod.name], snapshot.gpus.get(pod.name), gpus_of(snapshot, pod)
        if not values and held is None:
            continue
        for name in _PER_GPU:
            if name in values:
                values[name] *= gpus
        counters[pod.name] = Counters(
            age_s=ages_s[pod.name],
            gpus=gpus,
            model=held.model if held else None,
            mig=held.mig if held else False,
            shared=held.shared if held else False,
            source=held.source if held else "",
            job=pod.job,
            busy_by_gpu=held.busy_by_gpu if held else (),
            cpu_limit=pod.cpu_limit,
            network_capacity=of_network,
            disk_capacity=of_disk,
            **values,
        )
    return counters


def _rows(snapshot: Snapshot, ready: Sequence[Pod]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """By ready pod: its counters by name, and the age of the oldest that the class depends on."""
    rows: dict[str, dict[str, float]] = {pod.name: {} for pod in ready}
    for signal, readings in snapshot.by_pod.items():
        if (name := _COUNTERS.get(signal)) is None:
            continue
        if isinstance(readings, Levels):
            for pod, value in readings.values_by_pod.items():
                if (row := rows.get(pod)) is not None:
                    row[name] = value
            continue
        for pod, reading in readings.items():
            if (row := rows.get(pod)) is not None:
                row[name] = reading.value
    ages_s = dict.fromkeys(rows, 0.0)
    for signal in _CORE:
        for pod, age_s in _ages_s(snapshot.by_pod.get(signal, _NOTHING)).items():
            if age_s > ages_s.get(pod, math.inf):
                ages_s[pod] = age_s
    return rows, ages_s


def _part(whole: float | None, replicas: int) -> float | None:
    return None if whole is None else whole / replicas


def gpus_of(snapshot: Snapshot, pod: Pod) -> int:
    """How many GPUs, or MIG instances, a pod has: as an exporter shows it, else as the pod asks for."""
    if (held := snapshot.gpus.get(pod.name)) is not None and held.count:
        return held.count
    return max(1, round(pod.gpus or 1))


def _batch_gain(load: Load, demand: Demand | None, learned: DemandMemory) -> float | None:
    """Throughput at the batch in use over that at the best cap, of the fitted curve."""
    if demand is None or load.batch is None or learned.service.weight < FEWEST_SEEN:
        return None
    return min(1.0, demand.curve.load(load.batch / demand.best_cap))


def _below_knee(load: Load, demand: Demand | None, learned: DemandMemory) -> bool | None:
    if demand is None or not load.batch or learned.service.weight < FEWEST_SEEN:
        return None
    share = load.batch / demand.best_cap
    return share < 1 and demand.curve.stretch(2 * share, share) <= CHEAP_STRETCH


def _is_out_of_reach(verdict: SLOVerdict, load: Load) -> bool:
    """A latency that is broken with one request per replica and nothing waiting."""
    lone = load.batch is not None and load.batch <= LONE_BATCH and not load.queueing
    return verdict.state is SLOState.BREACHED and verdict.percentile is not None and lone


def _is_stalled(verdict: SLOVerdict, snapshot: Snapshot) -> bool:
    """An inter-token percentile that is broken although the mean is far inside, with more prompt than answer."""
    if verdict.signal is not Signal.INTER_TOKEN_LATENCY or verdict.state is not SLOState.BREACHED:
        return False
    if verdict.mean is None or verdict.mean > TAIL * verdict.limit:
        return False
    prompts, answers = (
        sum(reading.value for reading in snapshot.by_pod.get(signal, {}).values())
        for signal in (Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS)
    )
    return prompts > answers


def _variation(snapshot: Snapshot) -> float | None:
    """Standard deviation over mean of the latency that is watched, from the middles of its buckets."""
    for signal in _LATENCIES:
        found = next((one for (known, _), one in snapshot.distributions.items() if known is signal), None)
        if found is not None and found.observations > 1:
            return _spread(found)
    return None


def _spread(distribution: Distribution) -> float | None:
    total, below, mean, square = distribution.observations, 0.0, 0.0, 0.0
    lower = 0.0
    for edge, count in zip(distribution.edges, distribution.counts, strict=True):
        middle = lower if math.isinf(edge) else (lower + edge) / 2
        share = max(0.0, count - below) / total
        mean += share * middle
        square += share * middle * middle
        below, lower = count, edge
    return math.sqrt(max(0.0, square - mean * mean)) / mean if mean > 0 else None
