"""How many replicas: for the band, for a queue, for a broken promise, and how few would still do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bandkeeper.api.reasons import BandReason, SLOState
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide import behavior
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.promises import WAIT_SIGNALS, is_total, is_wait
from bandkeeper.decide.state import REGRETS_LIMIT, Order, PromiseMemory, Regret, ScaleMemory

DRAIN_S = 60.0  # a queue is to be gone in this time, where behavior.drainSeconds says nothing
LOWERED_SHARE = 0.8  # of the places that a lowered cap leaves: so many may be filled on average, or work soon queues
DOWN_MARGIN = 0.2  # of the band's width below its high edge, to spare where latency matters
KEPT_SPARE = 1.03
BAND_SPARE = 0.3  # of the band's width
LONE_BATCH = 1.5  # requests per replica below which neither knob changes a latency
HELP_SHARE = 0.9  # a latency above this share of what it was says that more replicas did not help
FUTILE_S = 7200.0
STEEPEST = 4.0  # of real servers: service time at the best batch is at most five times that of one request
SLO_MARGIN = 0.95
WAIT_STEP = 1.25  # replicas for a broken promise about waiting where no queue shows how many
SCRAPE_S = 5.0  # a histogram comes later than what it counts
REGRET_S = 600.0  # a scale-in that has to be taken back this soon was wrong
REGRET_MEMORY_S = 3600.0
REGRET_WINDOWS = 4.0  # scale-down windows that a regret counts for: a load that fell rebounds, and one dip is no lesson
REGRET_SHARE = 0.9
CLEARLY = 1.1  # work this much larger would still do with one fewer: only then the peak is what holds it


def for_band(policy: Policy, demand: Demand) -> int:
    """The fewest replicas below the band's high edge; with a model, below it by about the model's error, to the nearest
    whole replica."""
    band = policy.band
    below_edge = math.ceil(demand.band_work / demand.load(band.high) - 1e-9)
    aim = band.high - BAND_SPARE * (band.high - band.low)
    aimed_at = round(demand.band_work / demand.load(aim)) if demand.modelled else 0
    return max(1, below_edge, aimed_at)


def for_held(demand: Demand) -> int | None:
    """The fewest replicas that keep the promises under the work to be ready for; None without a model."""
    return math.ceil(demand.peak_work * demand.margin - 1e-9) if demand.modelled else None


def for_rest(policy: Policy, demand: Demand) -> int:
    """What the model asks for with a little to spare: so many are kept, so that noise does not bring back what went."""
    spare = 1.0 if policy.objective is Objective.THROUGHPUT_SENSITIVE else KEPT_SPARE
    return max(for_band(policy, demand), math.ceil(demand.peak_work * demand.margin * spare - 1e-9))


def for_foreseen(demand: Demand | None) -> int | None:
    """What a forecast asks for; None without one."""
    return None if demand is None or demand.foreseen is None else demand.foreseen.replicas


def over_band(policy: Policy, demand: Demand, current: int) -> bool:
    """Whether the offered work is above what `current` replicas carry inside the band, tolerance included."""
    high = min(1.0, policy.band.high * (1 + policy.scale_up.tolerance))
    return demand.band_work > current * demand.load(high) * (1 + 1e-9)


def for_queue(policy: Policy, demand: Demand, load: Load, *, stuck_at: int | None = None) -> int | None:
    """Replicas that empty the queue in a minute, or in the time that a person wrote, beside the margin; None where
    there is none, or where it has a deadline.

    Bounded by the offered work, not by the queue: at most twice the work and two, unless a person wrote a time. Sized
    at the best cap, because a queue raises the cap to it; only one that cannot rise (`stuck_at`) is what there is.
    ThroughputSensitive raises the cap first, and does not order for what will queue before new pods are there.
    """
    if policy.deadline is not None or not demand.saturated or (stuck_at is None and demand.batch_first):
        return None
    work, waiting = demand.work, load.waiting or 0.0
    drain_s = drain_of(policy)
    queued_s = waiting * (demand.request_s if demand.request_s is not None else DRAIN_S / 2 / demand.best_cap)
    patient = policy.objective is Objective.THROUGHPUT_SENSITIVE
    growing_s = 0.0 if patient else max(0.0, work - load.ready) * load.cold_start_s
    share = 1.0 if stuck_at is None else min(1.0, demand.curve.load(stuck_at / demand.best_cap))
    most = 2 * work + 2 if policy.drain_s is None or demand.request_s is None else math.inf
    return math.ceil(min(work + (queued_s + growing_s) / drain_s, most) / share - 1e-9)


def drain_of(policy: Policy) -> float:
    """Seconds in which a queue is to be gone."""
    return DRAIN_S if policy.drain_s is None else policy.drain_s


@dataclass(frozen=True, slots=True)
class PromiseSize:
    """Replicas that a broken promise asks for, or the promise that nothing here can keep."""

    replicas: int | None
    cause: SLOVerdict | None
    unreachable: SLOVerdict | None


def for_promises(
    broken: Sequence[SLOVerdict],
    demand: Demand | None,
    load: Load,
    memory: PromiseMemory,
    *,
    current: int,
    written_s: float | None,
    now_s: float,
) -> tuple[PromiseSize, PromiseMemory]:
    """Answer broken promises with replicas: once, then not again before those are ready and a whole window passed.

    `broken` are the promises that the batch cap does not take care of.
    """
    if memory.futile:
        memory = replace(memory, futile=tuple(entry for entry in memory.futile if entry[1] > now_s))
    if not broken and memory.order is None:
        return PromiseSize(None, None, None), memory
    memory = _without_old_order(memory, broken, load, now_s)
    unreachable = None
    for verdict in sorted(broken, key=lambda verdict: not is_wait(verdict, load)):
        settled = _settled(verdict, load, current, written_s, now_s)
        if demand is not None and _is_queue(verdict, demand, load):
            settled = False
        if settled and (_did_not_help(verdict, load, memory.order) or _cannot_help(verdict, demand, load)):
            memory = replace(memory, order=None, futile=(*memory.futile, (verdict.signal, now_s + FUTILE_S)))
        if is_futile(verdict, memory):
            unreachable = unreachable or verdict
            continue
        if settled and (memory.order is None or memory.order.replicas <= current):
            wanted = _enough_for(verdict, demand, load)
            batch, value = load.batch, _figure(verdict)
            order = Order(signal=verdict.signal, at_s=now_s, replicas=wanted, batch=batch, value=value)
            memory = replace(memory, order=order)
        return PromiseSize(memory.order.replicas if memory.order else None, verdict, unreachable), memory
    return PromiseSize(memory.order.replicas if memory.order else None, None, unreachable), memory


def _without_old_order(memory: PromiseMemory, broken: Sequence[SLOVerdict], load: Load, now_s: float) -> PromiseMemory:
    order = memory.order
    if order is None or any(verdict.signal is order.signal for verdict in broken):
        return memory
    return replace(memory, order=None) if now_s - order.at_s > load.cold_start_s else memory


def _is_queue(verdict: SLOVerdict, demand: Demand, load: Load) -> bool:
    """A latency that is broken by a queue, which `for_queue` sizes, or by one that is gone and still in the window."""
    waits = verdict.percentile is not None and (is_wait(verdict, load) or is_total(verdict))
    return waits and (demand.saturated or 0 < demand.queued_s_ago <= verdict.window_s + SCRAPE_S)


def _settled(verdict: SLOVerdict, load: Load, current: int, written_s: float | None, now_s: float) -> bool:
    """What was ordered is there, and the promise was judged over a whole window since."""
    if load.pending or load.ready + len(load.lost) < current or load.youngest_s < verdict.window_s:
        return False
    return written_s is None or now_s - written_s >= verdict.window_s


def _did_not_help(verdict: SLOVerdict, load: Load, order: Order | None) -> bool:
    """Replicas came, each has less to do, and the figure hardly moved."""
    figure = _figure(verdict)
    if order is None or order.signal is not verdict.signal or load.ready < order.replicas:
        return False
    if order.batch is None or load.batch is None or order.value is None or figure is None:
        return False
    return load.batch < HELP_SHARE * order.batch and figure > HELP_SHARE * order.value


def _figure(verdict: SLOVerdict) -> float | None:
    return verdict.mean if verdict.mean is not None else verdict.value


def _cannot_help(verdict: SLOVerdict, demand: Demand | None, load: Load) -> bool:
    """A latency that is over its threshold with one request per replica, or would be however steep the server."""
    if verdict.percentile is None or load.queueing or load.batch is None:
        return False
    if load.batch <= LONE_BATCH:
        return True
    if is_wait(verdict, load) or demand is None or not verdict.value:
        return False
    steepness = max(STEEPEST, demand.curve.steepness)
    return verdict.value > verdict.limit * (1 + steepness * min(1.0, demand.occupancy))


def is_futile(verdict: SLOVerdict, memory: PromiseMemory) -> bool:
    """Whether more replicas are known not to help a broken promise."""
    return any(signal is verdict.signal for signal, _ in memory.futile)


def _enough_for(verdict: SLOVerdict, demand: Demand | None, load: Load) -> int:
    """Replicas in proportion to how badly the promise is broken, at most twice what there is."""
    supply = max(1, load.supply)
    wanted = math.ceil(supply * WAIT_STEP)
    if verdict.percentile is None and verdict.value:
        wanted = math.ceil(min(2.0 * supply, supply * verdict.limit / verdict.value))
    elif not is_wait(verdict, load) and demand is not None and verdict.value:
        now = min(1.0, demand.occupancy)
        goal = demand.curve.utilization_at(SLO_MARGIN * verdict.limit / verdict.value, now)
        wanted = math.ceil(demand.work / demand.curve.load(goal)) if goal > 0 else wanted
    return min(2 * supply, max(supply + 1, wanted))


@dataclass(frozen=True, slots=True)
class Fewer:
    """The fewest replicas that will do, and what keeps the rest."""

    replicas: int
    kept_by: BandReason


def fewest(
    policy: Policy,
    demand: Demand,
    verdicts: Sequence[SLOVerdict],
    memory: ScaleMemory,
    *,
    current: int,
    cap: int,
    now_s: float,
) -> Fewer:
    """The fewest replicas that carry the held peak inside band and SLO with margin, `current` where fewer would not.

    A lowered `cap` may carry less than the band lets in: what is let go must not need a higher one.
    """
    fewer = _fewest(policy, demand, verdicts, memory, current=current, cap=cap, now_s=now_s)
    foreseen = for_foreseen(demand) or 0
    if fewer.replicas >= min(foreseen, current):
        return fewer
    kept_by = BandReason.HOLDING_PEAK if foreseen >= current else fewer.kept_by
    return Fewer(min(foreseen, current), kept_by)


def _fewest(
    policy: Policy,
    demand: Demand,
    verdicts: Sequence[SLOVerdict],
    memory: ScaleMemory,
    *,
    current: int,
    cap: int,
    now_s: float,
) -> Fewer:
    band, curve = policy.band, demand.curve
    low = band.low * (1 - policy.scale_down.tolerance)
    if demand.modelled and demand.work / current < low:
        return _fewest_held(policy, demand, memory, current=current, cap=cap, now_s=now_s)
    patient = policy.objective is Objective.THROUGHPUT_SENSITIVE
    high = band.high if patient else band.high - DOWN_MARGIN * (band.high - band.low)
    if demand.measure(demand.work / current) >= low:
        return Fewer(current, BandReason.IN_BAND)
    if cap < demand.best_cap:
        high = min(high, LOWERED_SHARE * cap / demand.best_cap)
    share = curve.load(high)
    by_band = max(1, math.ceil(demand.peak_work / share - 1e-9))
    if by_band >= current:
        held = current > 1 and demand.work * CLEARLY / share <= current - 1
        return Fewer(current, BandReason.HOLDING_PEAK if held else BandReason.QUANTISED)
    promised = curve.load(_promised_utilization(verdicts, demand))
    by_slo = max(1, math.ceil(demand.peak_work / promised - 1e-9)) if promised > 0 else current
    if by_slo >= current:
        return Fewer(current, BandReason.SLO_BOUND)
    by_memory = _remembered(policy, memory, demand, now_s)
    if by_memory >= current:
        return Fewer(current, BandReason.HOLDING_PEAK)
    # Predictions reach no further than to half, and then there is something new to see.
    half = behavior.period_start(current, memory.events, policy.rate_window_s, now_s) // 2
    wanted = max(by_band, by_slo, by_memory, half)
    return Fewer(min(current, wanted), BandReason.BELOW_BAND)


def _fewest_held(policy: Policy, demand: Demand, memory: ScaleMemory, *, current: int, cap: int, now_s: float) -> Fewer:
    """What the model asked for over the scale-down window."""
    by_band, by_cap = for_band(policy, demand), 1
    if cap < demand.best_cap:
        by_cap = math.ceil(demand.peak_work / demand.curve.load(LOWERED_SHARE * cap / demand.best_cap) - 1e-9)
    remembered = max(one.highest() or 0.0 for one in (memory.holds, memory.needs, memory.queues))
    wanted = max(by_band, by_cap, int(remembered))
    if wanted < current:
        half = behavior.period_start(current, memory.events, policy.rate_window_s, now_s) // 2
        return Fewer(min(current, max(wanted, half)), BandReason.BELOW_BAND)
    if by_band >= current:
        return Fewer(current, BandReason.QUANTISED)
    by_promise = demand.bound_by is not None and demand.work * demand.margin > current - 1
    return Fewer(current, BandReason.SLO_BOUND if by_promise else BandReason.HOLDING_PEAK)


def _promised_utilization(verdicts: Sequence[SLOVerdict], demand: Demand) -> float:
    """The utilisation up to which every latency that grows with the batch is predicted to keep its promise."""
    bound = 1.0
    for verdict in verdicts:
        known = [value for value in (verdict.mean, verdict.lower) if value is not None]
        if (
            verdict.state is not SLOState.MET
            or verdict.percentile is None
            or verdict.signal in WAIT_SIGNALS
            or not known
        ):
            continue
        if max(known) > 0:
            stretch = SLO_MARGIN * verdict.limit / max(known)
            bound = min(bound, demand.curve.utilization_at(stretch, min(1.0, demand.occupancy)))
    return max(0.0, bound)


def _remembered(policy: Policy, memory: ScaleMemory, demand: Demand, now_s: float) -> int:
    """Replicas that a queue or a promise needed in the window, and one more than what proved too few."""
    fewest_known = int(max(memory.needs.highest() or 0, memory.queues.highest() or 0))
    for regret in memory.regrets:
        counts = now_s - regret.at_s <= min(REGRET_MEMORY_S, REGRET_WINDOWS * policy.scale_down.stabilization_s)
        if counts and demand.peak_work >= REGRET_SHARE * regret.work:
            fewest_known = max(fewest_known, regret.replicas + 1)
    return fewest_known


def learn_regret(memory: ScaleMemory, demand: Demand | None, *, short: bool, now_s: float) -> ScaleMemory:
    """Remember a scale-in that has to be taken back although no more is asked for than when it was decided."""
    shrink = memory.shrink
    if shrink is None:
        return memory
    if now_s - shrink.at_s > REGRET_S:
        return replace(memory, shrink=None)
    if not short or demand is None:
        return memory
    if shrink.offered_per_s and demand.offered_per_s is not None:
        grew = demand.offered_per_s > 1.1 * shrink.offered_per_s
    else:
        grew = demand.work > 1.25 * shrink.work
    if grew:
        return replace(memory, shrink=None)
    regret = Regret(now_s, shrink.replicas, shrink.work)
    kept = tuple(
        one for one in memory.regrets if one.replicas != shrink.replicas and now_s - one.at_s <= REGRET_MEMORY_S
    )
    return replace(memory, shrink=None, regrets=(*kept, regret)[-REGRETS_LIMIT:])
