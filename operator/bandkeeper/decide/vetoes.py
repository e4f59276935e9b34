"""Why nothing may be let go now, or nothing added. One argument is enough; the first one is named."""

from __future__ import annotations

from bandkeeper.api import durations
from bandkeeper.api.reasons import BandReason, SLOState
from bandkeeper.api.records import dataclass
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.promises import agrees_to_less, breached, describe, is_wait
from bandkeeper.decide.scene import Scene
from bandkeeper.decide.sight import hold_left_s, waiting_sentence
from bandkeeper.decide.size import is_futile
from bandkeeper.decide.state import State
from bandkeeper.decide.workers import FEEDS

POD_STORE_LIMIT_S = 60.0
TRIED_S = 900.0  # what was seen in vain counts against a broken promise: then it is tried again
LEAST_GAIN = 0.3  # of proportional: replicas that bring less do not help


@dataclass(frozen=True, slots=True)
class Veto:
    """An argument against fewer replicas, as a clause for a person."""

    reason: BandReason
    message: str


def structural(scene: Scene) -> Veto | None:
    """What forbids every scale-in, also one into the bounds and one that a fallback asks for."""
    if scene.pods_age_s > POD_STORE_LIMIT_S:
        age = durations.text(scene.pods_age_s)
        return Veto(
            BandReason.HOLDING_PEAK, f"the list of {scene.stalest} is {age} old; the API server's watch is broken"
        )
    rollout = scene.target.rollout
    if scene.cap.busy or (rollout is not None and not rollout.deadline_exceeded):
        return Veto(BandReason.HOLDING_PEAK, "a rollout is on its way")
    return None


def veto(scene: Scene, state: State) -> Veto | None:
    """What forbids to let go of replicas that the load alone would not need."""
    return structural(scene) or _unseen(scene, state) or _interfered(scene, state) or _argued(scene, state)


def _unseen(scene: Scene, state: State) -> Veto | None:
    if scene.demand is None or not scene.load.complete:
        return Veto(BandReason.UNKNOWN, scene.metrics.message or "a pod that has just become ready has no data yet")
    if scene.demand.tokens_missing:
        return Veto(BandReason.UNKNOWN, "the servers told their tokens and do not any more; see the server's metrics")
    if scene.demand.modelled and scene.load.told < scene.load.ready:
        return Veto(BandReason.UNKNOWN, f"only {scene.load.told} of {scene.load.ready} ready pods tell their tokens")
    if hold_left_s(scene.policy, state.sight, scene.now_s) > 0:
        return Veto(BandReason.HOLDING_PEAK, waiting_sentence(scene.policy, state.sight, scene.now_s))
    return None


def held_back(scene: Scene, state: State) -> bool:
    """Whether a start or a person forbids to let a worker go that brings too little."""
    waits = hold_left_s(scene.policy, state.sight, scene.now_s) > 0 and not state.sight.released
    return waits or _interfered(scene, state) is not None


def _interfered(scene: Scene, state: State) -> Veto | None:
    left_s = state.ownership.hold_until_s - scene.now_s
    if left_s <= 0:
        return None
    who = state.ownership.person or "somebody"
    return Veto(
        BandReason.HOLDING_PEAK, f"{who} set {scene.current} replicas, which stays for {durations.text(left_s)} more"
    )


def _argued(scene: Scene, state: State) -> Veto | None:
    demand, load = scene.demand, scene.load
    if demand is None or demand.saturated or load.queueing:
        return Veto(BandReason.HOLDING_PEAK, f"{load.waiting or 0.0:.0f} requests wait")
    heard = (verdict for verdict in scene.verdicts if not is_futile(verdict, state.promises))
    against = next((verdict for verdict in heard if not _agrees(verdict, demand)), None)
    if against is not None:
        return Veto(BandReason.SLO_BOUND, _objection(against))
    since_s = scene.now_s - state.promises.breached_s
    if since_s < breach_window_s(scene.policy):
        return Veto(BandReason.SLO_BOUND, f"a promise was broken {durations.text(max(0.0, since_s))} ago")
    if demand.rising:
        return Veto(BandReason.HOLDING_PEAK, f"work rose over the last {durations.text(load.cold_start_s)}")
    return None


def _agrees(verdict: SLOVerdict, demand: Demand) -> bool:
    """A promise that the model sizes for has its margin in what it asks for; broken, it is an argument all the same."""
    promise = verdict.signal, verdict.percentile
    if promise in demand.unreachable:
        return True
    if promise in demand.judged:
        return verdict.state is not SLOState.BREACHED
    return agrees_to_less(verdict)


def against_more(scene: Scene, state: State) -> str:
    """What forbids replicas that the load asks for, as a clause for a person; "" where nothing does.

    More replicas were seen not to help while work waited before and after, or what is full is shared by all of them.
    A broken promise is a reason to try: it is heard until replicas were seen not to help that very promise.
    """
    quality, load = scene.quality, scene.load
    unmet = [one for one in breached(scene.verdicts) if not is_futile(one, state.promises)]
    trial = state.quality.trial
    in_vain = trial is not None and trial.gain < LEAST_GAIN and scene.current >= trial.after and load.queueing
    if trial is not None and unmet and scene.now_s - trial.at_s > TRIED_S:
        in_vain = False
    if trial is not None and in_vain and all(is_wait(one, load) for one in unmet):
        return (
            f"with a queue at both, {trial.after} replicas did more than {trial.before} by only "
            f"{max(0.0, 100 * trial.gain):.0f}% of what they should"
        )
    full = quality.bottleneck
    if full is not None and load.trains and full.component in FEEDS:
        return f"the workers wait for their data ({full.component}: {full.evidence})"
    if full is not None and full.shared and not unmet:
        return f"what is full is shared by all replicas ({full.component}: {full.evidence})"
    return ""


def breach_window_s(policy: Policy) -> float:
    """A broken promise is remembered for the longest window that promises are judged over."""
    return max((slo.window_s for slo in policy.slos), default=0.0)


def _objection(verdict: SLOVerdict) -> str:
    if verdict.state is SLOState.MET and verdict.attainment_low is not None:
        return f"{verdict.signal} is kept for {100 * verdict.attainment_low:.1f}% only, with nothing to spare"
    return verdict.message or describe(verdict)
