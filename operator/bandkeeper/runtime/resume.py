"""What a process knows when it begins: what the status tells of the model, and of the batch cap what is to be seen.

A standby decides as the leader does but writes nothing, so a cap that it wanted is nobody's; and a rollout may have
been begun by a process that is gone. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from bandkeeper.api import v1alpha1
from bandkeeper.api.conditions import rfc3339
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Pod, PodState, Rollout
from bandkeeper.decide.decision import Learned, Seen
from bandkeeper.decide.policy import CostClass, Policy
from bandkeeper.decide.prediction import relearned
from bandkeeper.decide.state import CapMemory, State

MODEL_VERSION = 2
READ_VERSIONS = frozenset({1, 2})
"""The first had no times of batches; without them it is the same."""
MOST = 1e6  # replicas, and seconds: beyond it a status was not written by us


def begun_anew(
    state: State, policy: Policy, *, rollout: Rollout | None, pods: Iterable[Pod], told_cap: int | None, now_s: float
) -> State:
    """`state` with the cap as others left it.

    A rollout for the cap is taken up with the cap to go back to, as the workload itself tells; so it is neither undone
    half way nor left to itself when it fails. A cap that only some of the pods have is the one to finish if the status
    told it (`told_cap`), and so is one of pods that cannot say what they have. Otherwise the cap in force is the
    starting point.
    """
    if policy.batch is None:
        return state
    caps = {pod.cap for pod in pods if pod.state is PodState.READY and pod.cap is not None}
    if policy.batch.cost_class is CostClass.ROLLOUT and rollout is not None and rollout.cap is not None:
        before = policy.batch.candidates[-1] if rollout.previous_cap == 0 else rollout.previous_cap
        cap = _wanted(state.cap, rollout.cap, before, now_s)
        cap = replace(cap, rollout_s=now_s if state.cap.wanted != rollout.cap else state.cap.rollout_s)
    elif policy.batch.cost_class is not CostClass.ROLLOUT and told_cap is not None and _unfinished(told_cap, caps):
        cap = _wanted(state.cap, told_cap, None, now_s)
    else:
        cap = replace(state.cap, wanted=None, before=None, confirmed=False, acted=False)
    return replace(state, cap=cap)


def _unfinished(told_cap: int, caps: Collection[int]) -> bool:
    return not caps or (len(caps) > 1 and told_cap in caps)


def model_of(known: Learned, target_uid: str, *, wall_s: float) -> v1alpha1.ModelStatus:
    """What was learned, as the status keeps it; `wall_s` in epoch seconds."""
    return v1alpha1.ModelStatus(
        **_traffic(known.seen),
        version=MODEL_VERSION,
        target_uid=target_uid,
        peak_time=rfc3339(wall_s - known.age_s),
        alpha_milliseconds=f"{1000 * known.alpha_s:.4g}",
        beta_milliseconds=f"{1000 * known.beta_s:.4g}",
        delta_milliseconds=f"{1000 * known.delta_s:.4g}",
        batch_cap=known.best_cap,
        peak_work=f"{known.peak_work:.4g}",
        largest_rise=f"{known.largest_rise:.4g}",
        batch_times=[
            v1alpha1.BatchTime(size=f"{size:.4g}", milliseconds=f"{1000 * seconds:.4g}")
            for size, seconds in known.batches
        ]
        or None,
    )


def _traffic(seen: Seen | None) -> dict[str, Any]:
    if seen is None:
        return {}
    return {
        "requests_per_second": f"{seen.requests_per_s:.4g}",
        "prompt_tokens": f"{seen.prompt_tokens:.4g}",
        "output_tokens": f"{seen.output_tokens:.4g}",
        "room": f"{seen.room:.4g}",
        "margin": f"{seen.margin:.4g}",
        "bound_by": seen.bound_by,
        "error_percent": round(100 * seen.error),
        "windows": f"{seen.windows:.3g}",
        "prefill_tokens": seen.prefill_tokens,
    }


def remembered(
    state: State,
    policy: Policy,
    told: v1alpha1.ModelStatus | None,
    target_uid: str,
    *,
    now_s: float,
    wall_s: float,
) -> State:
    """`state` with the model that the status tells of this very target, where nothing was decided yet.

    What cannot be meant is left out.
    """
    if state.target_uid or told is None or told.target_uid != target_uid:
        return state
    known = learned_of(told, wall_s=wall_s)
    return state if known is None else replace(state, model=relearned(policy, known, now_s))


def learned_of(told: v1alpha1.ModelStatus, *, wall_s: float) -> Learned | None:
    """What a status tells; None where it is of another version, or cannot be meant."""
    if told.version not in READ_VERSIONS:
        return None
    try:
        known = Learned(
            alpha_s=float(told.alpha_milliseconds) / 1000,
            beta_s=float(told.beta_milliseconds) / 1000,
            delta_s=float(told.delta_milliseconds) / 1000,
            best_cap=told.batch_cap,
            peak_work=float(told.peak_work),
            largest_rise=float(told.largest_rise),
            age_s=max(0.0, wall_s - datetime.fromisoformat(told.peak_time).timestamp()),
            seen=_seen(told),
            batches=tuple((float(one.size), float(one.milliseconds) / 1000) for one in told.batch_times or ()),
        )
    except ValueError:
        return None
    figures = (known.alpha_s, known.beta_s, known.delta_s, known.peak_work, known.largest_rise)
    if not all(0 <= figure < MOST for figure in figures) or not known.best_cap or not known.alpha_s:
        return None
    if not all(0 < figure < MOST for batch in known.batches for figure in batch):
        return None
    return known


def _seen(told: v1alpha1.ModelStatus) -> Seen | None:
    """The traffic that a status tells; None where it does not, as those written before it was kept, or cannot mean it.

    It does no process any harm: nothing is decided by it.
    """
    fields = (
        told.requests_per_second,
        told.prompt_tokens,
        told.output_tokens,
        told.room,
        told.margin,
        told.windows,
    )
    try:
        figures = [float(field) for field in fields if field is not None]
        bound_by = Signal(told.bound_by) if told.bound_by else None
    except ValueError:
        return None
    if len(figures) < len(fields) or not all(0 < figure < MOST for figure in figures):
        return None
    rate, prompt, output, room, margin, windows = figures
    return Seen(
        requests_per_s=rate,
        prompt_tokens=prompt,
        output_tokens=output,
        room=room,
        margin=margin,
        bound_by=bound_by,
        error=1.0 if told.error_percent is None else told.error_percent / 100,
        windows=windows,
        prefill_tokens=told.prefill_tokens or None,
    )


def unmoved(before: State, after: State) -> State:
    """`after` a decision that nobody carries out: the cap did not move, what was learned of it stays."""
    return replace(after, cap=replace(before.cap, rates=after.cap.rates))


def _wanted(memory: CapMemory, cap: int | None, before: int | None, now_s: float) -> CapMemory:
    """Another process wrote `cap` a while ago."""
    moved_s = memory.moved_s if memory.wanted == cap else now_s
    return replace(memory, wanted=cap, before=before, moved_s=moved_s, confirmed=False, acted=True)
