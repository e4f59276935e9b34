"""From what each rule asks for to one wanted count: bounds, behavior and the safety rules stand between."""

from __future__ import annotations

from bandkeeper.api.reasons import BandReason, DeadlineState, LimitReason, Reason
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import FallbackBehavior
from bandkeeper.decide import attribution, behavior, explain, size
from bandkeeper.decide.backlog import Due
from bandkeeper.decide.decision import Held, Limitation, MetricsState, SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.ownership import undone_by
from bandkeeper.decide.promises import breached
from bandkeeper.decide.scene import Scene
from bandkeeper.decide.state import Shrink, State
from bandkeeper.decide.vetoes import Veto, against_more, held_back, structural, veto
from bandkeeper.decide.workers import fewest_workers, most_workers, too_many


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The wanted count and why.

    Attributes
    ----------
    replicas
        None: write nothing.
    kept_by
        What keeps replicas that utilisation alone would let go.
    band, queue, slo, due
        What each rule asked for.
    held
        What the replicas that are there are held for.
    """

    replicas: int | None
    reason: Reason
    message: str
    limit: Limitation | None = None
    kept_by: BandReason = BandReason.UNKNOWN
    band: int | None = None
    queue: int | None = None
    slo: int | None = None
    unreachable: SLOVerdict | None = None
    undone_by: str = ""
    held: Held | None = None
    due: int | None = None


def choose(scene: Scene, state: State) -> tuple[Wanted, State]:
    """The wanted count, level-triggered, and what to remember."""
    policy, current = scene.policy, scene.current
    manager = undone_by(state.ownership.undos, scene.now_s) if policy.acts else ""
    if manager:
        limit = Limitation(LimitReason.TARGET_UNDONE, explain.undone(manager))
        return Wanted(replicas=None, reason=Reason.UNDONE, message=limit.message, limit=limit, undone_by=manager), state
    if not policy.min_replicas <= current <= policy.max_replicas:
        return _into_bounds(scene, state), state
    if scene.metrics.in_fallback:
        return _fallen_back(scene, state), state
    if not scene.load.ready:
        message = explain.no_ready_pods(scene)
        return Wanted(replicas=current, reason=Reason.NO_READY_PODS, message=message, limit=_lost(scene)), state
    return _by_need(scene, state)


def _into_bounds(scene: Scene, state: State) -> Wanted:
    policy, current = scene.policy, scene.current
    goal = min(max(current, policy.min_replicas), policy.max_replicas)
    wanted, limit = _limited(scene, state, goal)
    message = explain.outside(scene, wanted)
    return Wanted(replicas=wanted, reason=Reason.OUTSIDE_BOUNDS, message=message, limit=limit)


def _fallen_back(scene: Scene, state: State) -> Wanted:
    fallback, current = scene.policy.fallback, scene.current
    goal = current
    if fallback.replicas is not None and fallback.behavior is FallbackBehavior.REPLICAS:
        goal = fallback.replicas
    elif fallback.replicas is not None and fallback.behavior is FallbackBehavior.REPLICAS_IF_HIGHER:
        goal = max(current, fallback.replicas)
    wanted, limit = _limited(scene, state, goal)
    message = explain.fallback(scene, wanted)
    return Wanted(replicas=wanted, reason=Reason.FALLBACK, message=message, limit=limit or _lost(scene))


def _by_deadline(scene: Scene, state: State, due: Due) -> tuple[Wanted, State]:
    """What finishes the backlog in time, and what keeps the rates that are promised beside it; the band has no say."""
    policy, load, current, now_s = scene.policy, scene.load, scene.current, scene.now_s
    promised, promises = size.for_promises(
        [one for one in breached(scene.verdicts) if one.signal not in scene.cap.handles],
        scene.demand,
        load,
        state.promises,
        current=current,
        written_s=state.ownership.written_s,
        now_s=now_s,
    )
    asked = due.replicas if due.replicas is not None and due.replicas > current else 0
    need, fewest = max(asked, promised.replicas or 0), due.fewest
    if load.left and scene.verdicts:
        fewest = max(fewest, fewest_workers(load, scene.verdicts, state.workers, current, now_s))
    scale = replace(
        state.scale,
        needs=state.scale.needs.push(float(max(fewest, need)), now_s, policy.scale_down.stabilization_s),
        ups=state.scale.ups.push(-float(need), now_s, policy.scale_up.stabilization_s) if need else state.scale.ups,
    )
    state = replace(state, promises=promises, scale=scale)
    low = too_many(policy, load, state.workers, now_s)
    if low is not None and load.ready == current > policy.min_replicas and not held_back(scene, state):
        wanted = _fewer_workers(scene, state, low)
    elif need > current:
        wanted = _more(scene, state, need, None, None, promised)
    elif scene.metrics.state is not MetricsState.USABLE:
        wanted = _blind(scene)
    else:
        wanted = _enough(scene, state, int(scale.needs.highest() or 0.0))
    if due.verdict.state is DeadlineState.UNREACHABLE and not load.lost:
        wanted = replace(wanted, limit=Limitation(LimitReason.DEADLINE_UNREACHABLE, due.verdict.message))
    return replace(wanted, slo=promised.replicas, due=due.replicas), state


def _enough(scene: Scene, state: State, fewest: int) -> Wanted:
    """Nothing asks for more; what would not be missed is let go."""
    current, goal = scene.current, max(fewest, scene.policy.min_replicas)
    message = explain.deadline(scene)
    seen = scene.load.complete or scene.load.running is None  # a pod that has just become ready has no data yet
    if goal < current and seen and not held_back(scene, state):
        wanted, limit = _limited(scene, state, goal)
        if wanted < current:
            message = explain.moved(scene, wanted, message)
            return Wanted(replicas=wanted, reason=Reason.BACKLOG_DEADLINE, message=message, limit=limit or _lost(scene))
    return Wanted(replicas=current, reason=Reason.NO_CHANGE, message=message, limit=_lost(scene))


def _by_need(scene: Scene, state: State) -> tuple[Wanted, State]:
    if scene.due is not None:
        return _by_deadline(scene, state, scene.due)
    policy, demand, load, current, now_s = scene.policy, scene.demand, scene.load, scene.current, scene.now_s
    broken = breached(scene.verdicts)
    judged = demand.judged if demand else frozenset()
    promised, promises = size.for_promises(
        [one for one in broken if one.signal not in scene.cap.handles and (one.signal, one.percentile) not in judged],
        demand,
        load,
        state.promises,
        current=current,
        written_s=state.ownership.written_s,
        now_s=now_s,
    )
    lost = demand.unreachable if demand else frozenset()
    if promised.unreachable is None and lost:
        promised = replace(
            promised, unreachable=next((one for one in broken if (one.signal, one.percentile) in lost), None)
        )
    curable = any(not size.is_futile(one, promises) and (one.signal, one.percentile) not in lost for one in broken)
    if curable:
        promises = replace(promises, breached_s=now_s)
    band = size.for_band(policy, demand) if demand else None
    stuck_at = scene.cap_in_force if scene.cap.stuck else None
    held = size.for_held(demand) if demand else None
    queue = size.for_queue(policy, demand, load, stuck_at=stuck_at) if demand else None
    over = demand is not None and band is not None and size.over_band(policy, demand, current)
    needs = [need for need in (band if over else None, held, queue, promised.replicas) if need is not None]
    need = max(needs, default=0)
    scale = state.scale
    scale = size.learn_regret(scale, demand if held is None else None, short=need > current or curable, now_s=now_s)
    foreseen = size.for_foreseen(demand)
    need = max(need, foreseen or 0)
    rest = size.for_rest(policy, demand) if held and demand else 0
    window_s = policy.scale_down.stabilization_s
    known = demand is not None or need > 0
    scale = replace(
        scale,
        needs=scale.needs.push(float(promised.replicas or 0), now_s, window_s),
        holds=scale.holds.push(float(max(rest, foreseen or 0)), now_s, window_s),
        queues=scale.queues.push(
            float(queue or 0), now_s, min(window_s, max(size.drain_of(policy), load.cold_start_s))
        ),
        ups=scale.ups.push(-float(need), now_s, policy.scale_up.stabilization_s) if known else scale.ups,
        asked=attribution.remember(policy, demand, scale.asked, now_s) if demand else scale.asked,
    )
    state = replace(state, promises=promises, scale=scale)
    low = too_many(policy, load, state.workers, now_s)
    if low is not None and load.ready == current > policy.min_replicas and not held_back(scene, state):
        wanted = _fewer_workers(scene, state, low)
    elif need > current:
        wanted = _more(scene, state, need, max(held or 0, band if over and band else 0) or None, queue, promised)
    else:
        wanted, state = _no_more(scene, state)
    if promised.unreachable is not None and wanted.replicas == current:
        message = explain.unreachable(scene, promised.unreachable)
        wanted = replace(wanted, reason=Reason.SLO_UNREACHABLE, message=message)
    why = None
    if demand is not None:
        why = attribution.attribute(
            policy,
            demand,
            scale,
            current=current,
            promised=promised.replicas or 0,
            queue=queue or 0,
            bound=wanted.kept_by is BandReason.SLO_BOUND,
        )
    return replace(
        wanted, band=band, queue=queue, slo=promised.replicas, unreachable=promised.unreachable, held=why
    ), state


def _more(
    scene: Scene, state: State, need: int, band: int | None, queue: int | None, promised: size.PromiseSize
) -> Wanted:
    current, demand = scene.current, scene.demand
    urgent = promised.replicas is not None or state.promises.breached_s == scene.now_s
    if scene.due is None:
        urgent = urgent or demand is None or demand.saturated or demand.utilization >= 1
    if not urgent and state.ownership.hold_until_s > scene.now_s:
        message = explain.person_holds(scene, state.ownership, need)
        return Wanted(replicas=current, reason=Reason.HOLDING, message=message, limit=_lost(scene))
    if not urgent and scene.due is None and (ago_s := _let_go_s(scene, state)) is not None:
        message = explain.let_go_lately(scene, need, ago_s)
        return Wanted(replicas=current, reason=Reason.HOLDING, message=message, limit=_lost(scene))
    if why := against_more(scene, state):
        message = explain.no_use(scene, need, why)
        vetoed = Limitation(LimitReason.MORE_WOULD_NOT_HELP, message)
        return Wanted(
            replicas=current, reason=Reason.MORE_WOULD_NOT_HELP, message=message, limit=_lost(scene) or vetoed
        )
    asked = need
    need, low = most_workers(scene.policy, scene.load, state.workers, current, need)
    if need <= current:
        message = explain.measuring(scene, asked) if low is None else explain.inefficient(scene, asked, low)
        vetoed = Limitation(LimitReason.LOW_EFFICIENCY, message)
        return Wanted(replicas=current, reason=Reason.LOW_EFFICIENCY, message=message, limit=_lost(scene) or vetoed)
    steady = -int(state.scale.ups.highest() or 0)
    wanted, limit = current, None
    if steady > current:
        wanted, limit = _limited(scene, state, min(need, steady), asked=need)
        if limit is None and low is not None:
            limit = Limitation(LimitReason.LOW_EFFICIENCY, explain.inefficient(scene, asked, low))
    if wanted == current:
        limit = limit or Limitation(LimitReason.SCALE_UP_LIMIT, explain.stabilising(scene, need))
        return Wanted(replicas=current, reason=Reason.LIMITED, message=limit.message, limit=_lost(scene) or limit)
    reason, message = _why_more(scene, wanted, band, queue, promised)
    return Wanted(replicas=wanted, reason=reason, message=message, limit=limit or _lost(scene))


def _let_go_s(scene: Scene, state: State) -> float | None:
    """Seconds since replicas were let go; None where a new one would be ready by now."""
    gone = [scene.now_s - event.at_s for event in state.scale.events if event.change < 0]
    return min((ago_s for ago_s in gone if ago_s < scene.load.cold_start_s), default=None)


def _training(scene: Scene, state: State) -> Wanted:
    """A training job whose promises ask for no more: what exceeds them is let go."""
    current = scene.current
    fewer = fewest_workers(scene.load, scene.verdicts, state.workers, current, scene.now_s)
    goal = max(fewer, scene.policy.min_replicas)
    if goal < current and not held_back(scene, state):
        wanted, limit = _limited(scene, state, goal)
        if wanted < current:
            message = explain.rate_exceeded(scene, wanted)
            return Wanted(replicas=wanted, reason=Reason.DEMAND_FELL, message=message, limit=limit or _lost(scene))
    message = explain.trains(scene)
    return Wanted(replicas=current, reason=Reason.NO_CHANGE, message=message, limit=_lost(scene))


def _fewer_workers(scene: Scene, state: State, low: float) -> Wanted:
    """One less: each of them does too little, whatever is promised."""
    wanted, limit = _limited(scene, state, scene.current - 1)
    if wanted == scene.current:
        message = limit.message if limit else explain.inefficient(scene, wanted, low)
        return Wanted(replicas=wanted, reason=Reason.LIMITED, message=message, limit=limit or _lost(scene))
    message = explain.let_go(scene, wanted, low)
    return Wanted(replicas=wanted, reason=Reason.LOW_EFFICIENCY, message=message, limit=limit or _lost(scene))


def _why_more(
    scene: Scene, wanted: int, band: int | None, queue: int | None, promised: size.PromiseSize
) -> tuple[Reason, str]:
    """The rule that asked for most."""
    demand, due = scene.demand, scene.due
    if due is not None and due.replicas is not None and due.replicas > (promised.replicas or 0):
        return Reason.BACKLOG_DEADLINE, explain.moved(scene, wanted, explain.deadline(scene))
    if demand and demand.foreseen and demand.foreseen.replicas > max(band or 0, queue or 0, promised.replicas or 0):
        return Reason.DEMAND_FORESEEN, explain.foreseen(scene, demand, demand.foreseen, wanted)
    if queue is not None and queue >= max(band or 0, promised.replicas or 0):
        return Reason.QUEUE_GROWS, explain.queue_grows(scene, wanted)
    if demand is None or band is None or band < (promised.replicas or 0):
        return Reason.SLO_BREACHED, explain.promise_broken(scene, wanted, promised.cause)
    if demand.saturated:
        return Reason.QUEUE_GROWS, explain.queue_grows(scene, wanted)
    if demand.modelled and band > size.for_band(scene.policy, demand):
        if (broken := _broken_bound(scene)) is not None:
            return Reason.SLO_BREACHED, explain.promise_broken(scene, wanted, broken)
        return Reason.DEMAND_ROSE, explain.outlook(scene, demand, wanted)
    return Reason.DEMAND_ROSE, explain.demand_rose(scene, demand, wanted)


def _broken_bound(scene: Scene) -> SLOVerdict | None:
    """The broken promise that the model's margin is for."""
    demand = scene.demand
    bound = demand.bound_by if demand else None
    return next((one for one in breached(scene.verdicts) if bound is not None and one.signal is bound), None)


def _no_more(scene: Scene, state: State) -> tuple[Wanted, State]:
    demand, current = scene.demand, scene.current
    if scene.load.trains and scene.metrics.state is MetricsState.USABLE:
        return _training(scene, state), state
    if demand is None or scene.metrics.state is not MetricsState.USABLE:
        return _blind(scene), state
    fewer = size.fewest(
        scene.policy, demand, scene.verdicts, state.scale, current=current, cap=scene.cap_in_force, now_s=scene.now_s
    )
    if fewer.replicas >= current:
        return _kept(scene, fewer.kept_by), state
    against = veto(scene, state)
    if against is not None:
        return _held(scene, against), state
    return _less(scene, state, fewer.replicas, demand)


def _less(scene: Scene, state: State, fewer: int, demand: Demand) -> tuple[Wanted, State]:
    """Nothing argues against `fewer` replicas but bounds and behavior."""
    policy, current = scene.policy, scene.current
    wanted, limit = _limited(scene, state, max(fewer, policy.min_replicas), asked=fewer)
    if wanted < current:
        shrink = Shrink(scene.now_s, wanted, demand.peak_work, demand.offered_per_s)
        state = replace(state, scale=replace(state.scale, shrink=shrink))
        message, kept_by = explain.demand_fell(scene, demand, wanted), BandReason.BELOW_BAND
        return (
            Wanted(replicas=wanted, reason=Reason.DEMAND_FELL, message=message, limit=limit, kept_by=kept_by),
            state,
        )
    if current <= policy.min_replicas:
        return replace(_kept(scene, BandReason.AT_BOUND), limit=_lost(scene) or limit), state
    message = limit.message if limit else explain.kept(scene, BandReason.HOLDING_PEAK)
    limit = _lost(scene) or limit
    kept_by = BandReason.HOLDING_PEAK
    return Wanted(replicas=current, reason=Reason.LIMITED, message=message, limit=limit, kept_by=kept_by), state


def _blind(scene: Scene) -> Wanted:
    missing = scene.metrics.state is MetricsState.NONE
    reason = Reason.METRICS_MISSING if missing else Reason.METRICS_PARTIAL
    return Wanted(replicas=scene.current, reason=reason, message=explain.metrics(scene), limit=_lost(scene))


def _held(scene: Scene, against: Veto) -> Wanted:
    """Fewer would do, and something argues against it; a bound is told by itself."""
    if scene.current <= scene.policy.min_replicas:
        return _kept(scene, BandReason.AT_BOUND)
    message, limit = explain.holding(scene, against.message), _lost(scene)
    return Wanted(replicas=scene.current, reason=Reason.HOLDING, message=message, limit=limit, kept_by=against.reason)


def _kept(scene: Scene, kept_by: BandReason) -> Wanted:
    demand, band = scene.demand, scene.policy.band
    utilization = demand.utilization if demand else band.low
    reason = Reason.NO_CHANGE
    if utilization < band.low and scene.current <= scene.policy.min_replicas:
        kept_by = BandReason.AT_BOUND
    elif utilization < band.low and kept_by is BandReason.HOLDING_PEAK:
        reason = Reason.HOLDING
    elif band.low <= utilization <= band.high and not breached(scene.verdicts):
        reason = Reason.IN_BAND
    message = explain.kept(scene, kept_by)
    return Wanted(replicas=scene.current, reason=reason, message=message, limit=_lost(scene), kept_by=kept_by)


def _limited(scene: Scene, state: State, goal: int, *, asked: int | None = None) -> tuple[int, Limitation | None]:
    """`goal` as far as bounds, pods that still end, behavior and a rollout let it through; `asked` is for the words."""
    policy, current, now_s = scene.policy, scene.current, scene.now_s
    asked = goal if asked is None else asked
    events = state.scale.events
    if goal >= current:
        rate = behavior.highest(policy.scale_up, current, events, now_s)
        surge = scene.target.rollout.surge if scene.target.rollout else 0
        room = max(min(current, policy.max_replicas), policy.max_replicas - scene.load.terminating - surge)
        wanted = min(goal, policy.max_replicas, room, rate)
        if wanted >= asked:
            return wanted, None
        if asked > policy.max_replicas <= min(room, rate):
            return wanted, Limitation(LimitReason.AT_MAX, explain.at_max(scene, asked))
        if room < min(goal, rate):
            return wanted, Limitation(LimitReason.TERMINATING_PODS, explain.no_room(scene, asked, room))
        return wanted, Limitation(LimitReason.SCALE_UP_LIMIT, explain.rate_limit(scene, "scaleUp", asked, wanted))
    against = structural(scene)
    if against is not None:
        text = explain.holding(scene, against.message)
        return current, Limitation(LimitReason.SCALE_DOWN_LIMIT, text)
    rate = behavior.lowest(policy.scale_down, current, events, now_s)
    wanted = max(goal, rate)
    if wanted > goal:
        return wanted, Limitation(LimitReason.SCALE_DOWN_LIMIT, explain.rate_limit(scene, "scaleDown", asked, wanted))
    if asked < policy.min_replicas:
        return wanted, Limitation(LimitReason.AT_MIN, explain.at_min(scene, asked))
    return wanted, None


_WORDS = (("pull", LimitReason.IMAGE_PULL_FAILED), ("crash", LimitReason.CRASH_LOOP))


def _lost(scene: Scene) -> Limitation | None:
    """Pods that were ordered and do not come."""
    if not scene.load.lost:
        return None
    pod = scene.load.lost[0]
    return Limitation(_why_lost(pod), explain.lost(scene, pod))


def _why_lost(pod: Pod) -> LimitReason:
    if pod.state is PodState.UNSCHEDULABLE:
        return LimitReason.UNSCHEDULABLE
    if pod.state is PodState.PENDING:
        return LimitReason.PENDING_TOO_LONG
    text = pod.message.lower()
    return next((reason for word, reason in _WORDS if word in text), LimitReason.PODS_FAILING)
