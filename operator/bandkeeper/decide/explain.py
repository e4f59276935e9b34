"""The sentences of a decision: what happened, why, and what to do if anything. Nothing is decided here."""

from __future__ import annotations

from bandkeeper.api import durations
from bandkeeper.api.reasons import BandReason
from bandkeeper.api.snapshot import Earlier, Pod, PodState
from bandkeeper.api.v1alpha1 import FallbackBehavior
from bandkeeper.decide.decision import MESSAGE_LIMIT, SLOVerdict, counted
from bandkeeper.decide.demand import Demand, Foreseen
from bandkeeper.decide.promises import WORDS, describe
from bandkeeper.decide.reach import best_s
from bandkeeper.decide.scene import Scene
from bandkeeper.decide.state import Ownership

CLEARLY_MORE = 1.05
TARGET_MISSING = "The target does not exist or was not read yet; create it, or correct spec.targetRef."
NOT_BY_BAND = "The replicas follow the backlog's deadline, not the band."
AT_ZERO = "The target was set to 0 replicas, so it is left alone; set 1 or more to hand it back."
_SENTENCES_OF_BAND = {
    BandReason.QUANTISED: "one replica fewer would be above the band",
    BandReason.SLO_BOUND: "one replica fewer would break a promise",
    BandReason.HOLDING_PEAK: "a recent peak is still held",
    BandReason.AT_BOUND: "replicas.min is reached",
}
_EARLIER = {Earlier.DAY: "yesterday", Earlier.WEEK: "a week ago"}


def clipped(message: str) -> str:
    """At most 256 characters."""
    return message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1].rstrip() + "…"


def joined(first: str, second: str) -> str:
    """Two messages as one, the first one in full."""
    return clipped(f"{first} {second}" if first and second else first or second)


def _change(scene: Scene, wanted: int) -> str:
    return f"Replicas {scene.current} -> {wanted}"


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f}%"


def _utilization(scene: Scene) -> str:
    demand = scene.demand
    return "not known" if demand is None else _percent(demand.utilization)


def _band(scene: Scene) -> str:
    band = scene.policy.band
    return f"{100 * band.low:.0f}-{100 * band.high:.0f}%"


def _cold_start(scene: Scene) -> str:
    load = scene.load
    return f"; a new pod takes {durations.text(load.cold_start_s)} to be ready" if load.cold_start_measured else ""


def demand_rose(scene: Scene, demand: Demand, wanted: int) -> str:
    offered = _percent(demand.measure(demand.band_work / scene.current))
    return (
        f"{_change(scene, wanted)}: offered work is {offered} of {counted(scene.current)} at batch {scene.best_cap}, "
        f"above the band {_band(scene)}{_cold_start(scene)}."
    )


def outlook(scene: Scene, demand: Demand, wanted: int) -> str:
    """More is wanted than the band asks for: for work that may come, or for a promise's margin."""
    work = f"{demand.work:.1f} replicas' work is offered"
    if demand.peak_work > CLEARLY_MORE * demand.work:
        work += f", and {demand.peak_work:.1f} is to be ready for"
    promise = (
        ""
        if demand.bound_by is None
        else f"; {WORDS.get(demand.bound_by, demand.bound_by)} needs {demand.margin:.2f} replicas for each"
    )
    return f"{_change(scene, wanted)}: {work}{promise}{_cold_start(scene)}."


def foreseen(scene: Scene, demand: Demand, forecast: Foreseen, wanted: int) -> str:
    """An earlier day asks for more than everything else."""
    return f"{_change(scene, wanted)}: {_as_then(forecast)}; {demand.work:.1f} is offered now{_cold_start(scene)}."


def _as_then(forecast: Foreseen) -> str:
    day = f"{_EARLIER[forecast.source]} at this hour"
    if forecast.scale != 1:
        return f"{day} work rose, to {forecast.work:.1f} replicas' at {forecast.scale:.1f} times that day's level"
    return f"{day} work rose to {forecast.work:.1f} replicas'"


def queue_grows(scene: Scene, wanted: int) -> str:
    demand, waiting = scene.demand, scene.load.waiting or 0.0
    work = "" if demand is None else f", the work of {demand.work:.1f} replicas is offered to {scene.load.ready}"
    refused = scene.load.rejected_per_s or 0.0
    cause = f"{waiting:.0f} requests wait" + (f" and {refused:.1f}/s are refused" if refused >= 0.05 else "")
    if scene.policy.drain_s is not None:
        cause += f" and are to be done within {durations.text(scene.policy.drain_s)}"
    return f"{_change(scene, wanted)}: {cause}{work}{_cold_start(scene)}."


def promise_broken(scene: Scene, wanted: int, cause: SLOVerdict | None) -> str:
    why = describe(cause) if cause is not None else "the replicas ordered for a broken promise are on their way"
    return f"{_change(scene, wanted)}: {why}{_cold_start(scene)}."


def demand_fell(scene: Scene, demand: Demand, wanted: int) -> str:
    window = durations.text(scene.policy.scale_down.stabilization_s)
    if demand.modelled:
        ready_for = f"{demand.peak_work:.1f} is to be ready for, at {demand.margin:.2f} replicas each"
        return f"{_change(scene, wanted)}: {demand.work:.1f} replicas' work is offered, {ready_for}; so for {window}."
    peak = _percent(demand.measure(demand.peak_work / wanted))
    return (
        f"{_change(scene, wanted)}: work stayed below the band {_band(scene)} for {window}; "
        f"its peak is {peak} of {counted(wanted)}."
    )


def unreachable(scene: Scene, verdict: SLOVerdict) -> str:
    batch = scene.load.batch
    lone = "" if batch is None else f" with {batch:.1f} requests per replica"
    return (
        f"{describe(verdict)}{lone}, and neither more replicas nor a smaller batch helps{_at_best(scene, verdict)}; "
        "loosen the objective, or use a faster GPU, a smaller model or shorter prompts."
    )


def _at_best(scene: Scene, verdict: SLOVerdict) -> str:
    """What the model says of one request alone, where that explains it."""
    best = best_s(scene.load, scene.steps, verdict.signal, verdict.percentile)
    return f": {durations.text(best)} is predicted at best" if best is not None and best > verdict.limit else ""


def kept(scene: Scene, reason: BandReason) -> str:
    text = f"{counted(scene.current)} at {_utilization(scene)} (band {_band(scene)})"
    if scene.load.pending:
        text += f", {scene.load.pending} of them not ready yet"
    below = scene.demand is not None and scene.demand.utilization < scene.policy.band.low
    why = _below(scene, reason) if below else _above(scene)
    return f"{text}: {why}." if why else f"{text}."


def _below(scene: Scene, reason: BandReason) -> str:
    forecast = scene.demand.foreseen if scene.demand else None
    if forecast is not None and forecast.replicas >= scene.current and reason is BandReason.HOLDING_PEAK:
        return _as_then(forecast)
    return _SENTENCES_OF_BAND.get(reason, "")


def _above(scene: Scene) -> str:
    """Of a model's band, which is held for a mean of a minute or two."""
    demand, high = scene.demand, scene.policy.band.high
    passes = demand is not None and demand.modelled and demand.utilization > high
    return "a short peak, the mean of a minute or two counts" if passes else ""


def let_go_lately(scene: Scene, need: int, ago_s: float) -> str:
    ready = durations.text(scene.load.cold_start_s)
    return clipped(
        f"{need} replicas are wanted, {scene.current} stay: some were let go {durations.text(ago_s)} ago, within the "
        f"{ready} that a new one takes. A queue or a broken promise would bring them back at once."
    )


def holding(scene: Scene, message: str) -> str:
    return f"Holding {counted(scene.current)} at {_utilization(scene)} (band {_band(scene)}): {message}."


def metrics(scene: Scene) -> str:
    return f"Holding {counted(scene.current)}: {scene.metrics.message}. Nothing is lowered meanwhile."


def no_ready_pods(scene: Scene) -> str:
    return f"Holding {counted(scene.current)}: no pod is ready, so there is nothing to judge by."


def outside(scene: Scene, wanted: int) -> str:
    policy = scene.policy
    bounds = f"the policy allows {policy.min_replicas} to {policy.max_replicas}"
    if wanted == scene.current:
        return f"{scene.current} replicas are outside the bounds ({bounds}); behavior or a rollout holds them for now."
    return f"{_change(scene, wanted)}: {bounds}."


def fallback(scene: Scene, wanted: int) -> str:
    missing = durations.text(scene.policy.fallback.after_s)
    behavior = scene.policy.fallback.behavior
    cause = f"no usable metrics for more than {missing} ({scene.metrics.message}); fallback {behavior}"
    if behavior is FallbackBehavior.HOLD or wanted == scene.current:
        return f"Holding {counted(scene.current)}: {cause}."
    return f"{_change(scene, wanted)}: {cause}."


def undone(manager: str) -> str:
    return (
        f"{manager} undid the operator's replicas three times in 30 minutes, so it stopped writing them. "
        "Take spec.replicas out of the manifest (Helm, Flux), or let Argo CD ignore /spec/replicas (ignoreDifferences)."
    )


def cap_undone(manager: str) -> str:
    return (
        f"{manager} undid the batch cap three times in 30 minutes, so the operator stopped setting it. "
        "Leave the field out of the manifest, or tell Argo CD, Flux or Helm to ignore it."
    )


def person_holds(scene: Scene, owner: Ownership, need: int) -> str:
    left = durations.text(owner.hold_until_s - scene.now_s)
    who = owner.person or "Somebody"
    return (
        f"{who} set {scene.current} replicas, which stays for {left} more although the load asks for {need}; "
        "a queue or a broken promise ends it sooner."
    )


def no_use(scene: Scene, need: int, why: str) -> str:
    return clipped(f"{need} replicas are wanted, {scene.current} stay, because more would not help: {why}.")


def _efficiency(scene: Scene, low: float) -> str:
    asked = _percent(scene.policy.least_efficiency or 0.0)
    return f"{_percent(low)} of what one of few does, constraints.parallelEfficiencyPercent asks for {asked}"


def inefficient(scene: Scene, need: int, low: float) -> str:
    if need <= scene.current:
        return clipped(f"{counted(scene.current)}: each does {_efficiency(scene, low)}.")
    return clipped(f"{need} replicas are wanted; with more of them each would do {_efficiency(scene, low)}.")


def measuring(scene: Scene, need: int) -> str:
    return f"{need} replicas are wanted; what each of the present {scene.current} does is measured first."


def let_go(scene: Scene, wanted: int, low: float) -> str:
    return clipped(f"{_change(scene, wanted)}: each does {_efficiency(scene, low)}.")


def rate_exceeded(scene: Scene, wanted: int) -> str:
    kept = "; ".join(describe(verdict) for verdict in scene.verdicts)
    return clipped(f"{_change(scene, wanted)}: so many keep what is promised ({kept}).")


def deadline(scene: Scene) -> str:
    return scene.due.verdict.message if scene.due else ""


def moved(scene: Scene, wanted: int, why: str) -> str:
    return clipped(f"{_change(scene, wanted)}: {why}")


def trains(scene: Scene) -> str:
    rate = scene.load.produced_per_s
    done = "" if rate is None else f", {rate:.4g}/s"
    return f"{counted(scene.current)} of a training job{done}: nothing asks for more."


def stabilising(scene: Scene, need: int) -> str:
    window = durations.text(scene.policy.scale_up.stabilization_s)
    return f"{need} replicas are wanted; behavior.scaleUp waits until that was so for {window}."


def at_max(scene: Scene, asked: int) -> str:
    return f"{asked} replicas are wanted, replicas.max allows {scene.policy.max_replicas}; raise it if GPUs are free."


def at_min(scene: Scene, asked: int) -> str:
    return f"{counted(asked)} would do, replicas.min keeps {scene.policy.min_replicas}."


def no_room(scene: Scene, asked: int, room: int) -> str:
    return (
        f"{asked} replicas are wanted; {scene.load.terminating} pods that still end count against replicas.max, "
        f"which leaves {room}."
    )


def rate_limit(scene: Scene, direction: str, asked: int, wanted: int) -> str:
    return f"{asked} replicas are wanted, behavior.{direction} allows {wanted} now."


def lost(scene: Scene, pod: Pod) -> str:
    count = len(scene.load.lost)
    if pod.state is PodState.PENDING:
        text = f"not ready after {durations.text(pod.state_age_s)}"
    else:
        text = "cannot be scheduled" if pod.state is PodState.UNSCHEDULABLE else "cannot start"
    detail = f": {pod.message}" if pod.message else ""
    return clipped(f"{count} of the ordered pods {'is' if count == 1 else 'are'} not coming; {pod.name} {text}{detail}")
