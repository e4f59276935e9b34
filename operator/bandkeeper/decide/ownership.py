"""Who moves the replica count: our own writes, a person's, and somebody who keeps undoing ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bandkeeper.api.records import replace
from bandkeeper.api.snapshot import Target
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.state import EVENTS_LIMIT, UNDOS_LIMIT, Ownership, ScaleEvent, ScaleMemory, State, Undo
from bandkeeper.model.peaks import NO_PEAKS

OWN_MANAGER = "bandkeeper"
GRACE_S = 10.0  # a snapshot may show the count from before our write for so long
SHORTEST_HOLD_S = 60.0
UNDO_WINDOW_S = 1800.0
UNDO_LIMIT = 3
LONGEST_PERIOD_S = 1800.0  # of a policy of behavior


def follow(policy: Policy, target: Target, state: State, now_s: float) -> State:
    """Take in the count that the target shows: ours, not yet ours, or somebody else's."""
    owner, seen = state.ownership, target.replicas
    if owner.shown != seen:
        owner = replace(owner, shown=seen, expected=seen if owner.expected is None else owner.expected)
        state = replace(state, ownership=owner)
    if owner.expected is None or seen == owner.expected or _not_yet_seen(owner, seen, now_s):
        return state
    if not policy.acts:
        return replace(state, ownership=replace(owner, expected=seen))
    if target.manager == OWN_MANAGER:
        # Another replica of the operator wrote, or a write of ours whose answer was lost.
        return replace(
            state,
            ownership=replace(owner, expected=seen, before=owner.expected, written_s=now_s),
            scale=recorded(state.scale, seen - owner.expected, now_s),
        )
    undos = owner.undos
    if _takes_back(owner, seen, now_s):
        undos = (*undos, Undo(now_s, target.manager or "an unknown manager"))[-UNDOS_LIMIT:]
    window_s = max(SHORTEST_HOLD_S, policy.scale_down.stabilization_s)
    owner = replace(
        owner, expected=seen, before=None, hold_until_s=now_s + window_s, person=target.manager, undos=undos
    )
    return replace(
        state,
        ownership=owner,
        scale=replace(state.scale, needs=NO_PEAKS, queues=NO_PEAKS, ups=NO_PEAKS, shrink=None),
        promises=replace(state.promises, order=None),
    )


def undone_by(undos: Sequence[Undo], now_s: float) -> str:
    """The manager that undid three writes in the last 30 minutes, else ""."""
    if not undos:
        return ""
    recent = Counter(undo.manager for undo in undos if now_s - undo.at_s <= UNDO_WINDOW_S)
    return next((manager for manager, times in recent.items() if times >= UNDO_LIMIT), "")


def recorded(memory: ScaleMemory, change: int, now_s: float) -> ScaleMemory:
    """With a change of the count by the operator. Of too many the oldest are joined, at the younger one's time."""
    kept = (event for event in memory.events if now_s - event.at_s < LONGEST_PERIOD_S)
    events = (*kept, ScaleEvent(now_s, change))
    if len(events) > EVENTS_LIMIT:
        first, second, *rest = events
        if (first.change > 0) == (second.change > 0):
            events = (ScaleEvent(second.at_s, first.change + second.change), *rest)
        else:
            events = (second, *rest)
    return replace(memory, events=events)


def wrote_replicas(state: State, replicas: int, now_s: float) -> State:
    """Our own write went through."""
    owner = state.ownership
    before = owner.shown if owner.shown is not None else replicas
    owner = replace(owner, expected=replicas, before=before, written_s=now_s)
    return replace(state, ownership=owner, scale=recorded(state.scale, replicas - before, now_s))


def _not_yet_seen(owner: Ownership, seen: int, now_s: float) -> bool:
    return owner.written_s is not None and seen == owner.before and now_s - owner.written_s < GRACE_S


def _takes_back(owner: Ownership, seen: int, now_s: float) -> bool:
    """Whether somebody went back to what was before our last write, or beyond."""
    if owner.before is None or owner.written_s is None or owner.expected is None:
        return False
    ours, theirs = owner.expected - owner.before, seen - owner.expected
    return now_s - owner.written_s <= UNDO_WINDOW_S and ours * theirs < 0 and abs(theirs) >= abs(ours)
