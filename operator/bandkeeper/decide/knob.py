"""The batch knob: what the pods have, what is wanted, who else moves it. Which way it moves is in `cap_rules`."""

from __future__ import annotations

from collections.abc import Sequence

from bandkeeper.api.reasons import Reason
from bandkeeper.api.records import replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Rollout
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.cap_rules import (
    GUARD,
    RETURN_GUARD,
    CapChoice,
    CapRules,
    Move,
    into_bounds,
    is_busy,
    is_sure,
    knee,
    moved,
    told,
)
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.load import Load
from bandkeeper.decide.ownership import undone_by
from bandkeeper.decide.policy import BatchControl, CostClass, LatencySLO, Policy
from bandkeeper.decide.state import UNDOS_LIMIT, CapMemory, Undo
from bandkeeper.model.batches import BatchTimes
from bandkeeper.model.steps import NO_STEPS, StepFit


def best_cap(
    policy: Policy, load: Load, memory: CapMemory, before: int, now_s: float, steps: StepFit | BatchTimes = NO_STEPS
) -> int:
    """b*: the best cap that is permitted, whatever is set now. `before` is kept while no pod is ready to tell."""
    if not load.ready and before:
        return before
    if policy.batch is None:
        return min(load.caps, default=policy.default_capacity)
    permitted = _permitted(policy.batch, load)
    return knee(memory, permitted, now_s) or _guard(policy, steps, permitted, before)


def _guard(policy: Policy, steps: StepFit | BatchTimes, permitted: tuple[int, ...], before: int) -> int:
    """The largest cap whose full batches keep the promise on tokens, as far as the fit is sure; a larger one than
    before needs something to spare. The largest of all where no cap keeps it, or throughput is what is promised.
    """
    promised = [slo for slo in policy.slos if isinstance(slo, LatencySLO)]
    limits = [slo.threshold_s for slo in promised if slo.signal is Signal.INTER_TOKEN_LATENCY]
    if not limits or policy.objective is Objective.THROUGHPUT_SENSITIVE or not is_sure(steps):
        return permitted[-1]
    limit_s = min(limits)

    def fits(cap: int) -> bool:
        step = steps.decode_s(cap)
        return step.value - step.error <= (GUARD if cap <= before else RETURN_GUARD) * limit_s

    return max((cap for cap in permitted if fits(cap)), default=permitted[-1])


def is_batch_first(policy: Policy, load: Load, best_cap: int, memory: CapMemory, now_s: float) -> bool:
    """ThroughputSensitive, and a larger batch may still be had, or was asked for and cannot have acted yet.

    That a cap was written, as an annotation shows, does not say that the server has read it.
    """
    control = policy.batch
    if control is None or policy.objective is not Objective.THROUGHPUT_SENSITIVE:
        return False
    raised = memory.before is not None and memory.wanted is not None and memory.wanted > memory.before
    awaited = raised and now_s - memory.moved_s < control.expected_delay_s
    return awaited or min(load.caps, default=best_cap) < best_cap


def steer(
    policy: Policy,
    load: Load,
    demand: Demand | None,
    verdicts: Sequence[SLOVerdict],
    memory: CapMemory,
    rollout: Rollout | None,
    *,
    steps: StepFit | BatchTimes = NO_STEPS,
    replicas: int,
    now_s: float,
) -> tuple[CapChoice, CapMemory]:
    """Choose the wanted cap. It stays what it was where nothing moves it; without data only its bounds do."""
    control = policy.batch
    if control is None:
        return CapChoice(None), memory
    permitted = _permitted(control, load)
    memory = _read_back(policy, control, load, memory, now_s)
    if (manager := undone_by(memory.undos, now_s)) and policy.acts:
        return CapChoice(None, undone_by=manager), memory
    if _to_roll_back(control, rollout, memory):
        return _rolled_back(memory, now_s)
    inward = _inward(control, load, memory, permitted, rollout)
    if demand is None or not load.complete:
        return _unseen(control, memory, inward, now_s)
    rules = CapRules(policy, control, load, demand, verdicts, memory, permitted, steps, replicas, now_s)
    memory = rules.memory = rules.with_rate()
    move = inward or next((move for move in rules.moves() if move is not None), None)
    if move is not None and rules.may(move, rollout):
        return rules.taken(move)
    return rules.kept(), memory


def _permitted(control: BatchControl, load: Load) -> tuple[int, ...]:
    """Candidates within what the servers booted with; the capacity itself where all are larger."""
    if load.capacity is None:
        return control.candidates
    fitting = tuple(cap for cap in control.candidates if cap <= load.capacity)
    return fitting or (load.capacity,)


def _read_back(policy: Policy, control: BatchControl, load: Load, memory: CapMemory, now_s: float) -> CapMemory:
    """Compare what the pods have with what was wanted."""
    if not load.caps:
        return memory
    if memory.wanted is None:
        seen_s = now_s - control.expected_delay_s  # what is in force has acted: one window of it is enough to judge by
        return replace(memory, wanted=min(load.caps), confirmed=True, moved_s=seen_s)
    seen = next(iter(load.caps)) if len(load.caps) == 1 else None
    if seen == memory.wanted:
        return memory if memory.confirmed else replace(memory, confirmed=True)
    if not memory.confirmed or control.cost_class is not CostClass.ROLLOUT:
        return replace(memory, confirmed=False)
    if seen is None:
        return memory  # somebody rolls out another cap: judged when every pod has it
    # Somebody rolled out another cap: it is the new starting point, not worth a rollout of ours at once.
    undos = memory.undos
    if seen == memory.before and policy.acts:
        undos = (*undos, Undo(now_s, "another manager of the pod template"))[-UNDOS_LIMIT:]
    return replace(memory, wanted=seen, before=None, moved_s=now_s, undos=undos)


def _inward(
    control: BatchControl, load: Load, memory: CapMemory, permitted: tuple[int, ...], rollout: Rollout | None
) -> Move | None:
    """Back into the bounds. The smaller servers of a revision on its way do not lower the old ones' caps yet."""
    if memory.wanted is None or not load.caps:
        return None
    under_way = rollout is not None and not rollout.deadline_exceeded
    if under_way and into_bounds(memory.wanted, control.candidates) is None:
        return None
    move = into_bounds(memory.wanted, permitted)
    if move is None or not control.power or move.cap > memory.wanted:
        return move
    return replace(move, reason=Reason.POWER_LIMIT, message=control.power, power=True)


def _unseen(control: BatchControl, memory: CapMemory, inward: Move | None, now_s: float) -> tuple[CapChoice, CapMemory]:
    """Bounds are bounds, whatever the servers do; but a rollout is not begun without seeing what they do."""
    before = memory.wanted
    if before is None or inward is None or control.cost_class is CostClass.ROLLOUT:
        return CapChoice(before, busy=is_busy(control, memory, now_s)), memory
    message = told(before, inward)
    return CapChoice(inward.cap, before, inward.reason, message), moved(memory, control, inward, before, now_s)


def _to_roll_back(control: BatchControl, rollout: Rollout | None, memory: CapMemory) -> bool:
    late = rollout is not None and rollout.ours and rollout.deadline_exceeded
    return late and control.cost_class is CostClass.ROLLOUT and memory.before is not None


def _rolled_back(memory: CapMemory, now_s: float) -> tuple[CapChoice, CapMemory]:
    wanted, failed = memory.before, memory.wanted
    memory = replace(memory, wanted=wanted, before=None, moved_s=now_s, rollout_s=now_s, confirmed=False)
    message = f"Batch cap {failed} -> {wanted}: its rollout missed the progress deadline; see the new pods' events"
    return CapChoice(wanted, failed, Reason.ROLLED_BACK, message, rollback=True, busy=True), memory


def wrote_cap(memory: CapMemory, cap: int, now_s: float) -> CapMemory:
    """Our own write of the cap went through: its delay counts from the first write of it."""
    if memory.wanted != cap or memory.acted:
        return memory
    rolls = memory.rollout_s == memory.moved_s
    return replace(memory, acted=True, moved_s=now_s, rollout_s=now_s if rolls else memory.rollout_s)
