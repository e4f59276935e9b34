"""The decision, one tick of one policy: look, judge, size, choose the knob, keep the rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bandkeeper.api.reasons import BandReason, LimitReason, Reason, SLOState
from bandkeeper.api.snapshot import Pod, PodState, Snapshot, Target
from bandkeeper.api.v1alpha1 import FallbackBehavior
from bandkeeper.decide import behavior, explain, knob, size
from bandkeeper.decide.decision import (
    BandVerdict,
    Decision,
    Inputs,
    Limitation,
    MetricsState,
    MetricsVerdict,
    SLOVerdict,
)
from bandkeeper.decide.demand import Demand, observe
from bandkeeper.decide.knob import CapChoice, best_cap, steer, wrote_cap
from bandkeeper.decide.load import Load, assess
from bandkeeper.decide.ownership import follow, undone_by, wrote_replicas
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.promises import breached, judge
from bandkeeper.decide.sight import watch
from bandkeeper.decide.size import Fewer, PromiseSize
from bandkeeper.decide.state import Shrink, State
from bandkeeper.decide.vetoes import veto


def decide(policy: Policy, snapshot: Snapshot, state: State, now_s: float) -> tuple[Decision, State]:
    """What is wanted now, and what to remember.

    `now_s` is any steady clock in seconds, the same one for `State.initial` and `written`.
    """
    target = snapshot.target
    if target is None:
        return explain.no_target(state, now_s), state
    if state.target_uid != target.uid:
        state = replace(State.initial(now_s), target_uid=target.uid) if state.target_uid else replace(state, target_uid=target.uid)
    state = follow(policy, target, state, now_s)
    tick = _look(policy, snapshot, target, state, now_s)
    if target.replicas == 0 and tick.current == 0:
        return explain.at_zero(tick.facts), tick.state
    return tick.decided()


def written(state: State, *, replicas: int | None = None, cap: int | None = None, now_s: float) -> State:
    """Tell how a write went: only what the API server took. Without it a write of ours looks like somebody else's."""
    if replicas is not None:
        state = wrote_replicas(state, replicas, now_s)
    if cap is not None:
        state = replace(state, cap=wrote_cap(state.cap, cap, now_s))
    return state
