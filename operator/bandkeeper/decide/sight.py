"""What was seen and for how long: whether metrics are usable, and whether enough was watched to let anything go."""

from __future__ import annotations

from collections.abc import Sequence

from bandkeeper.api import durations
from bandkeeper.api.reasons import SLOState
from bandkeeper.api.records import replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Snapshot
from bandkeeper.decide.decision import MetricsState, MetricsVerdict, SLOVerdict
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Deadline, Policy
from bandkeeper.decide.state import Sight

BLINK_S = 60.0  # data may be missing for so long without the watch beginning anew
_NEEDED = (Signal.REQUESTS_RUNNING, Signal.REQUESTS_WAITING)


def watch(
    policy: Policy, snapshot: Snapshot, load: Load, verdicts: Sequence[SLOVerdict], sight: Sight, now_s: float
) -> tuple[MetricsVerdict, Sight]:
    """Judge what was read, and remember since when."""
    state, message = _judged(policy, snapshot, load, verdicts)
    since_s = sight.since_s if sight.state == state else now_s
    usable_s = sight.usable_s if state is MetricsState.NONE and load.ready else now_s
    if (load.running is not None and not load.silent) or ((load.trains or load.works_off) and load.produced_whole):
        complete_s, watching_since_s = now_s, sight.watching_since_s
        if watching_since_s is None:
            watching_since_s = now_s
    else:
        complete_s = sight.complete_s
        watching_since_s = sight.watching_since_s if now_s - complete_s <= BLINK_S else None
    sight = Sight(
        usable_s=usable_s,
        state=state,
        since_s=since_s,
        complete_s=complete_s,
        watching_since_s=watching_since_s,
        released=sight.released,
    )
    if not sight.released and not hold_left_s(policy, sight, now_s):
        sight = replace(sight, released=True)
    lost = state is MetricsState.NONE and load.ready > 0
    in_fallback = lost and now_s - usable_s >= policy.fallback.after_s
    return MetricsVerdict(state=state, since_s=since_s, in_fallback=in_fallback, message=message), sight


def hold_left_s(policy: Policy, sight: Sight, now_s: float) -> float:
    """Seconds until enough was watched to let replicas go; the whole hold while nothing is seen."""
    hold_s = max(policy.scale_down.stabilization_s, BLINK_S)
    if not sight.released:
        hold_s = max(hold_s, policy.restart_hold_s)
    if sight.watching_since_s is None:
        return hold_s
    return max(0.0, sight.watching_since_s + hold_s - now_s)


def _judged(policy: Policy, snapshot: Snapshot, load: Load, verdicts: Sequence[SLOVerdict]) -> tuple[MetricsState, str]:
    if not load.ready:
        return MetricsState.NONE, "no pod is ready"
    blind = [verdict for verdict in verdicts if verdict.state is SLOState.NO_DATA]
    if policy.deadline is not None and (unread := _unread(policy.deadline, snapshot, load)):
        return MetricsState.PARTIAL, unread
    if (load.trains or load.works_off) and load.produced_whole and not blind:
        return MetricsState.USABLE, ""
    if load.running is None:
        state = MetricsState.NONE if len(blind) == len(verdicts) else MetricsState.PARTIAL
        return state, _gap(snapshot, _NEEDED) or "RequestsRunning has no data for any ready pod"
    if load.silent:
        shown = ", ".join(load.silent[:2])
        return MetricsState.PARTIAL, f"{len(load.silent)} of {load.ready} ready pods have no data ({shown})"
    if load.waiting is None and load.waiting_known:
        return MetricsState.PARTIAL, _gap(snapshot, _NEEDED) or "RequestsWaiting has no data"
    if blind:
        return MetricsState.PARTIAL, blind[0].message
    return MetricsState.USABLE, ""


def _unread(deadline: Deadline, snapshot: Snapshot, load: Load) -> str:
    """What of a backlog is not known although something was read; "" where nothing is missing, or nothing was read."""
    if load.left is None and load.produced_per_s is None and load.running is None:
        return ""
    if not load.left_whole:
        return _gap(snapshot, (deadline.backlog,)) or f"{deadline.backlog} has no data, or not of every ready pod"
    if load.works_off and not load.produced_whole:
        return _gap(snapshot, (deadline.rate,)) or f"{deadline.rate} has no data, or not of every ready pod"
    return ""


def _gap(snapshot: Snapshot, signals: tuple[Signal, ...]) -> str:
    gap = next((gap for gap in snapshot.gaps if gap.signal in signals), None)
    return "" if gap is None else f"{gap.signal}: {gap.detail}" if gap.detail else f"{gap.signal} is {gap.reason}"


def waiting_sentence(policy: Policy, sight: Sight, now_s: float) -> str:
    """Why nothing is let go yet, with the time left."""
    left = durations.text(hold_left_s(policy, sight, now_s))
    return f"nothing is let go before a full window was watched ({left} left)"
