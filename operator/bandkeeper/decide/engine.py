"""The decision, one tick of one policy: look, judge, choose the cap, choose the count, say why."""

from __future__ import annotations

from bandkeeper.api.reasons import BandReason, LimitReason, Reason, SLOState
from bandkeeper.api.records import replace
from bandkeeper.api.snapshot import Snapshot, Target
from bandkeeper.decide import explain
from bandkeeper.decide.backlog import due, watch_backlog
from bandkeeper.decide.decision import (
    FITTED_MODEL,
    REQUESTS_OVER_CAP,
    BandVerdict,
    Decision,
    Learned,
    MetricsState,
    MetricsVerdict,
    SLOVerdict,
)
from bandkeeper.decide.demand import observe
from bandkeeper.decide.knob import best_cap, is_batch_first, steer, wrote_cap
from bandkeeper.decide.load import assess
from bandkeeper.decide.ownership import follow, wrote_replicas
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.power import judge_power, within
from bandkeeper.decide.prediction import judge_profile, learned, predict
from bandkeeper.decide.promises import breached, is_wait, judge
from bandkeeper.decide.quality import Sights, judge_quality
from bandkeeper.decide.replicas import Wanted, choose
from bandkeeper.decide.scene import Scene
from bandkeeper.decide.sight import watch
from bandkeeper.decide.state import UNDOS_LIMIT, State, Undo
from bandkeeper.decide.workers import watch_workers
from bandkeeper.model.steps import NO_STEPS, StepFit


def decide(policy: Policy, snapshot: Snapshot, state: State, now_s: float) -> tuple[Decision, State]:
    """What is wanted now, and what to remember.

    `now_s` is any steady clock in seconds, the same one for `State.initial` and `written`.
    """
    target = snapshot.target
    if target is None:
        return _no_target(state, now_s), state
    state = follow(policy, target, _of_target(state, target, now_s), now_s)
    scene, seen = _look(policy, snapshot, target, state, now_s)
    if scene.current == 0:
        return _at_zero(scene), replace(seen, cap=state.cap)
    wanted, state = choose(scene, seen)
    return _decision(scene, wanted, learned(state.model, now_s)), state


def written(state: State, *, replicas: int | None = None, cap: int | None = None, now_s: float) -> State:
    """Tell what the API server took of our writes; without it they look like somebody else's."""
    if replicas is not None:
        state = wrote_replicas(state, replicas, now_s)
    if cap is not None:
        state = replace(state, cap=wrote_cap(state.cap, cap, now_s))
    return state


def cap_undone(state: State, *, manager: str, now_s: float) -> State:
    """Tell that `manager` took back a cap that had been written; by the third time in a while it is left alone."""
    undos = (*state.cap.undos, Undo(now_s, manager))[-UNDOS_LIMIT:]
    return replace(state, cap=replace(state.cap, undos=undos))


def _of_target(state: State, target: Target, now_s: float) -> State:
    """The memory of this very object: one that was deleted and created again begins anew."""
    if state.target_uid == target.uid:
        return state
    fresh = State.initial(now_s) if state.target_uid else state
    return replace(fresh, target_uid=target.uid)


def _look(policy: Policy, snapshot: Snapshot, target: Target, state: State, now_s: float) -> tuple[Scene, State]:
    load = assess(policy, snapshot, state.demand)
    verdicts = judge(policy, snapshot, load)
    metrics, sight = watch(policy, snapshot, load, verdicts, state.sight, now_s)
    workers = watch_workers(policy, load, state.workers, now_s)
    backlog = watch_backlog(policy, load, state.backlog, now_s)
    power, power_memory = judge_power(policy, snapshot, load, state.power, now_s)
    policy = within(policy, power_memory)
    best = best_cap(policy, load, state.cap, state.demand.best_cap, now_s, state.model.steps)
    batch_first = is_batch_first(policy, load, best, state.cap, now_s)
    demand, memory = observe(policy, load, verdicts, state.demand, best, now_s, batch_first=batch_first)
    samples = state.demand.samples
    demand, model = predict(policy, load, verdicts, demand, samples, state.model, now_s, snapshot.recalled)
    current = state.ownership.expected if state.ownership.expected is not None else target.replicas
    cap, cap_memory = steer(
        policy,
        load,
        demand,
        verdicts,
        state.cap,
        target.rollout,
        steps=state.model.steps,
        replicas=current,
        now_s=now_s,
    )
    quality, judged = judge_quality(Sights(policy, snapshot, load, verdicts, demand), state.quality, memory, now_s)
    scene = Scene(
        policy=policy,
        target=target,
        pods_age_s=snapshot.pods_age_s,
        stalest=snapshot.stalest,
        load=load,
        verdicts=verdicts,
        metrics=metrics,
        demand=demand,
        cap=cap,
        best_cap=best,
        current=current,
        now_s=now_s,
        quality=quality,
        power=power,
        due=due(policy, load, backlog, workers, current=current, wall_s=snapshot.wall_s, now_s=now_s),
        profile=judge_profile(policy, model),
        steps=model.steps if isinstance(model.steps, StepFit) else NO_STEPS,
    )
    return scene, replace(
        state,
        sight=sight,
        demand=memory,
        model=model,
        cap=cap_memory,
        power=power_memory,
        workers=workers,
        backlog=backlog,
        quality=judged,
    )


def _decision(scene: Scene, wanted: Wanted, known: Learned | None) -> Decision:
    cap, current = scene.cap, scene.current
    reason, message = wanted.reason, wanted.message
    moves = wanted.replicas is not None and wanted.replicas != current
    if cap.reason is not None:
        if moves:
            message = explain.joined(cap.message + ".", message)
        else:
            reason, message = cap.reason, cap.message + "."
    elif cap.undone_by and not moves:
        message = explain.joined(explain.cap_undone(cap.undone_by), message)
    demand = scene.demand
    waits = any(is_wait(verdict, scene.load) for verdict in breached(scene.verdicts))
    pressing = waits or (demand is not None and demand.saturated and scene.due is None)
    pressing = pressing and (cap.stuck or demand is None or not demand.batch_first)
    return Decision(
        replicas=wanted.replicas,
        cap=cap.cap,
        reason=reason,
        message=explain.clipped(message),
        emergency=wanted.replicas is not None and wanted.replicas > current and pressing,
        current_replicas=current,
        current_cap=scene.cap_in_force if scene.load.caps or cap.cap else None,
        rollback=cap.rollback,
        utilization=scene.demand.utilization if scene.demand else None,
        utilization_source=FITTED_MODEL if scene.demand and scene.demand.modelled else REQUESTS_OVER_CAP,
        inputs=scene.inputs(wanted.band, wanted.queue, wanted.slo, wanted.due),
        slos=_shown(scene, wanted),
        band=_band(scene, wanted, explain.clipped(wanted.message)),
        limit=wanted.limit,
        metrics=scene.metrics,
        undone_by=wanted.undone_by,
        cap_undone_by=cap.undone_by,
        quality=scene.quality,
        learned=known,
        held=wanted.held,
        power=scene.power,
        deadline=scene.due.verdict if scene.due else None,
        profile=scene.profile,
    )


def _shown(scene: Scene, wanted: Wanted) -> tuple[SLOVerdict, ...]:
    """The verdicts, a broken promise that nothing here can keep named as such."""
    lost = wanted.unreachable
    if lost is None:
        return scene.verdicts
    message = explain.clipped(explain.unreachable(scene, lost))
    return tuple(
        replace(verdict, state=SLOState.UNREACHABLE, message=message) if verdict is lost else verdict
        for verdict in scene.verdicts
    )


def _band(scene: Scene, wanted: Wanted, message: str) -> BandVerdict:
    demand, band, policy = scene.demand, scene.policy.band, scene.policy
    if scene.due is not None:
        return BandVerdict(None, BandReason.UNKNOWN, explain.NOT_BY_BAND)
    if demand is None or not scene.load.complete:
        return BandVerdict(None, BandReason.UNKNOWN, scene.metrics.message)
    if band.low <= demand.utilization <= band.high:
        return BandVerdict(True, BandReason.IN_BAND)
    if demand.utilization > band.high:
        at_max = wanted.limit is not None and wanted.limit.reason is LimitReason.AT_MAX
        return BandVerdict(False, BandReason.AT_BOUND if at_max else BandReason.ABOVE_BAND, message)
    if wanted.replicas is not None and wanted.replicas < scene.current:
        return BandVerdict(False, BandReason.BELOW_BAND, message)
    if scene.current <= policy.min_replicas:
        return BandVerdict(False, BandReason.AT_BOUND, f"replicas.min keeps {policy.min_replicas}")
    known = wanted.kept_by in (BandReason.QUANTISED, BandReason.SLO_BOUND)
    return BandVerdict(False, wanted.kept_by if known else BandReason.HOLDING_PEAK, message)


def _no_target(state: State, now_s: float) -> Decision:
    sight = state.sight
    metrics = MetricsVerdict(state=MetricsState.NONE, since_s=sight.since_s or now_s, message="the target was not read")
    return Decision(
        replicas=None, cap=None, reason=Reason.TARGET_MISSING, message=explain.TARGET_MISSING, metrics=metrics
    )


def _at_zero(scene: Scene) -> Decision:
    return Decision(
        replicas=None,
        cap=None,
        reason=Reason.TARGET_AT_ZERO,
        message=explain.AT_ZERO,
        current_replicas=0,
        inputs=scene.inputs(None, None, None),
        slos=scene.verdicts,
        metrics=scene.metrics,
        paused_by_zero=True,
        quality=scene.quality,
        power=scene.power,
        profile=scene.profile,
    )
