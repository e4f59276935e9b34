"""The rules that move the batch cap: which signal moves it, how far, and when it must rest.

A queue never lowers it. A cap is a latency knob where decode steps set the latency and the queue is bounded, a memory
knob where requests are preempted, and a throughput knob for ThroughputSensitive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeGuard

from bandkeeper.api.reasons import Reason
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Rollout
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.demand import FULL_KV, Demand
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import BatchControl, Batching, CostClass, Policy
from bandkeeper.decide.promises import WAIT_SIGNALS, breached, describe, is_total, is_wait
from bandkeeper.decide.state import RATES_LIMIT, CapMemory, CapRate
from bandkeeper.model.batches import BatchTimes
from bandkeeper.model.steps import StepFit

GUARD_OBSERVATIONS = 5.0  # whole windows of step times
GUARD = 0.95  # of a latency threshold: what a new cap may be predicted to reach
RETURN_GUARD = 0.90
DECODE_SHARE = 0.6  # a mean below this share of the threshold says that stalls, not steps, break the tail
LEAST_BATCH = 2.0
BATCH_SHARE = 0.25  # of the cap, for a batch to be what makes steps long
BINDING_SHARE = 0.8
PREEMPTED_SHARE = 0.01
MOST_REFUSED = 0.1  # of the work, for latency's sake
GAIN = 1.02
RATE_MEMORY_S = 3600.0
BROKEN_MEMORY_S = 1800.0
ROLLOUT_REST = 10.0  # cold starts between two rollouts for the cap
DEFAULT_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class CapChoice:
    """The wanted cap and why.

    Attributes
    ----------
    cap
        None: no knob, or nothing to say.
    before
        The cap that it replaces, None where it does not move now.
    handles
        Broken promises that the cap takes care of, so that replicas need not.
    busy
        A rollout for the cap begins now, or is not visible in the target yet.
    stuck
        Work waits, and the cap cannot be raised to let it in: memory, latency or a rollout's rules stand against it.
    """

    cap: int | None
    before: int | None = None
    reason: Reason | None = None
    message: str = ""
    handles: frozenset[Signal] = frozenset()
    rollback: bool = False
    busy: bool = False
    stuck: bool = False
    undone_by: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """What a rule wants; one for a queue (`urgent`) or into the bounds does not rest. `power` is such a bound, and one
    that a backlog does not put off.
    """

    cap: int
    reason: Reason
    message: str
    urgent: bool = False
    bounds: bool = False
    power: bool = False


def into_bounds(cap: int, permitted: tuple[int, ...]) -> Move | None:
    """To the nearest permitted cap, from one that the policy or the servers do not allow."""
    least, most = permitted[0], permitted[-1]
    wanted = min(max(cap, least), most)
    if wanted == cap:
        return None
    reason = Reason.CAP_RAISED if wanted > cap else Reason.CAP_LOWERED
    return Move(wanted, reason, f"the policy and the servers allow {least} to {most}", bounds=True)


def moved(memory: CapMemory, control: BatchControl, move: Move, before: int, now_s: float) -> CapMemory:
    """With another cap wanted from now on."""
    rolls = control.cost_class is CostClass.ROLLOUT
    return replace(
        memory,
        wanted=move.cap,
        before=before,
        moved_s=now_s,
        rollout_s=now_s if rolls else memory.rollout_s,
        inward=move.bounds,
        confirmed=False,
        acted=False,
    )


def told(before: int, move: Move) -> str:
    """The move as a sentence without its full stop."""
    return f"Batch cap {before} -> {move.cap}: {move.message}"


def knee(memory: CapMemory, permitted: tuple[int, ...], now_s: float) -> int | None:
    """The cap with the best measured throughput, where the next larger one was tried and brought no more."""
    if not memory.rates:
        return None
    rates = {one.cap: one.rate for one in memory.rates if now_s - one.at_s <= RATE_MEMORY_S}
    for cap, larger in pairwise(permitted):
        if cap in rates and larger in rates and rates[larger] <= GAIN * rates[cap]:
            return cap
    return None


def is_sure(steps: StepFit | BatchTimes) -> TypeGuard[StepFit]:
    """Whether the cap may follow what was learned of the steps."""
    return isinstance(steps, StepFit) and steps.observations >= GUARD_OBSERVATIONS


def is_busy(control: BatchControl, memory: CapMemory, now_s: float) -> bool:
    """Whether a rollout for the cap was begun so lately that the target may not show it yet."""
    return control.cost_class is CostClass.ROLLOUT and now_s - memory.rollout_s < max(30.0, control.expected_delay_s)


@dataclass(slots=True)
class CapRules:
    """The rules, over what one decision sees. `memory` is what the knob remembers, `permitted` rises."""

    policy: Policy
    control: BatchControl
    load: Load
    demand: Demand
    verdicts: Sequence[SLOVerdict]
    memory: CapMemory
    permitted: tuple[int, ...]
    steps: StepFit | BatchTimes
    replicas: int
    now_s: float

    @property
    def cap(self) -> int:
        """The cap that a move starts from."""
        return self.memory.wanted if self.memory.wanted is not None else self.permitted[-1]

    @property
    def batch(self) -> float:
        """Requests in process per replica."""
        return self.load.batch or 0.0

    @property
    def full(self) -> bool:
        """Batches are as large as the caps in force let them be."""
        return self.batch >= BINDING_SHARE * min(self.load.caps, default=self.cap)

    @property
    def relative(self) -> float:
        return min(1.0, self.batch / self.demand.best_cap)

    def moves(self) -> Iterator[Move | None]:
        """What each rule wants; the first one counts. While work waits none lowers the cap."""
        throughput = self.policy.objective is Objective.THROUGHPUT_SENSITIVE
        waits = [verdict for verdict in breached(self.verdicts) if is_wait(verdict, self.load)]
        if self.demand.saturated or waits:
            yield self._climb() if throughput else self._raise_for_queue()
            return
        yield self._lower_for_memory()
        yield self._lower_to_best()
        yield self._lower_for_latency()
        if self._quiet():
            if self.policy.batching is Batching.DYNAMIC and self.policy.objective is Objective.LATENCY_SENSITIVE:
                yield self._follow_load()
            else:
                yield self._return_to_best()

    def _quiet(self) -> bool:
        return not self.load.queueing and not breached(self.verdicts)

    def _raise_for_queue(self) -> Move | None:
        fitting = [cap for cap in self.permitted if self.cap < cap <= self.demand.best_cap and self._fits(cap, GUARD)]
        if not fitting or not self.full:
            return None
        waiting = self.load.waiting or 0.0
        return Move(
            fitting[-1], Reason.CAP_RAISED, f"{waiting:.0f} requests wait for a place in the batch", urgent=True
        )

    @property
    def preempted_share(self) -> float:
        """Preemptions per finished request."""
        preempted, finished = self.load.preemptions_per_s, self.load.finished_per_s
        return preempted / finished if preempted and finished else 0.0

    def _lower_for_memory(self) -> Move | None:
        if self.preempted_share <= PREEMPTED_SHARE:
            return None
        fitting = [cap for cap in self.permitted if cap <= max(self.batch, self.permitted[0])]
        if not fitting or fitting[-1] >= self.cap:
            return None
        share = 100 * self.preempted_share
        text = f"{share:.0f}% of requests are preempted; KV memory holds about {self.batch:.0f} per replica"
        return Move(fitting[-1], Reason.PREEMPTIONS, text)

    def _lower_to_best(self) -> Move | None:
        """Continuous batching: full batches of this cap are predicted to break the promise on tokens."""
        best = self.demand.best_cap
        fixed = (
            self.policy.batching is Batching.CONTINUOUS and self.policy.objective is not Objective.THROUGHPUT_SENSITIVE
        )
        if not fixed or self.cap <= best or self.load.queueing or not self._carries(best):
            return None
        return Move(best, Reason.CAP_LOWERED, f"full batches of {self.cap} are predicted to take longer than promised")

    def _lower_for_latency(self) -> Move | None:
        verdict = self._cured_by_cap()
        if verdict is None or not verdict.value:
            return None
        goal = self.demand.curve.utilization_at(GUARD * verdict.limit / verdict.value, self.relative)
        smaller = [cap for cap in self.permitted if self.cap > cap >= self.cap / 2 and self._carries(cap)]
        if not smaller:
            return None
        fitting = [cap for cap in smaller if cap <= goal * self.demand.best_cap]
        cap = fitting[-1] if fitting else smaller[0]
        wait = f"; adding replicas takes {self.load.cold_start_s:.0f}s, the cap acts sooner"
        return Move(cap, Reason.CAP_LOWERED, describe(verdict) + (wait if self._acts_soon() else ""))

    def _acts_soon(self) -> bool:
        return self.control.expected_delay_s < self.load.cold_start_s and self.load.cold_start_measured

    def _cured_by_cap(self) -> SLOVerdict | None:
        """A broken promise that shorter steps mend: substantial batches, decode bound, and a queue that cannot grow."""
        dynamic = self.policy.batching is Batching.DYNAMIC
        substantial = self.batch >= max(LEAST_BATCH, (0.5 if dynamic else BATCH_SHARE) * self.cap)
        if not substantial or self.load.queueing or not (dynamic or self.load.queue_bounded):
            return None
        for verdict in breached(self.verdicts):
            long = verdict.mean is None or verdict.mean >= DECODE_SHARE * verdict.limit
            of_tokens = verdict.signal is Signal.INTER_TOKEN_LATENCY and self._decodes_late(verdict.limit)
            if long and (of_tokens or is_total(verdict)):
                return verdict
        return None

    def _decodes_late(self, limit_s: float) -> bool:
        """Whether steps without a prompt may be too long at this cap; else prompts break the promise, not the batch."""
        if not is_sure(self.steps):
            return True
        step = self.steps.decode_s(self.cap)
        return step.value + step.error > GUARD * limit_s

    def _carries(self, cap: int) -> bool:
        """Whether the fleet can do the present work at `cap`, or refuses a little and keeps the queue short.

        A cap that cannot trades a broken latency between tokens for a broken time to the first one.
        """
        if self._queued_before(cap):
            return False
        share = self._share(cap)
        capacity = share * self.load.ready
        if self.demand.work <= GUARD * capacity:
            return True
        limits = [slo.limit for slo in self.verdicts if slo.signal in WAIT_SIGNALS or is_total(slo)]
        bound, request_s = self.load.queue_bound, self.demand.request_s
        if bound is None or request_s is None or not limits or capacity < (1 - MOST_REFUSED) * self.demand.work:
            return False
        return bound * request_s / share <= min(limits) / 2

    def _queued_before(self, cap: int) -> bool:
        memory = self.memory
        if memory.queued_at is None or self.replicas > memory.queued_replicas:
            return False
        return cap <= memory.queued_at and self.now_s - memory.queued_s <= BROKEN_MEMORY_S

    def _return_to_best(self) -> Move | None:
        larger = [cap for cap in self.permitted if self.cap < cap <= self.demand.best_cap]
        larger = [cap for cap in larger if self._fits(cap, RETURN_GUARD) and not self._broke_before(cap)]
        if not larger or self.batch < BATCH_SHARE * self.cap or self.preempted_share > PREEMPTED_SHARE:
            return None
        cap = larger[-1] if self.control.cost_class is CostClass.ROLLOUT else larger[0]
        return Move(cap, Reason.CAP_RAISED, "memory and latency leave room for a larger batch")

    def _broke_before(self, cap: int) -> bool:
        memory = self.memory
        return memory.broke_at is not None and cap >= memory.broke_at and self.now_s - memory.broke_s <= BROKEN_MEMORY_S

    def _follow_load(self) -> Move | None:
        """Dynamic batching: the smallest cap that carries the held work with margin, one step down at a time."""
        curve, best = self.demand.curve, self.demand.best_cap
        held = self.demand.peak_work / self.load.ready
        adequate = [
            cap for cap in self.permitted if curve.load(cap / best) * self.demand.load(self.policy.band.high) >= held
        ]
        wanted = adequate[0] if adequate else self.permitted[-1]
        if wanted > self.cap:
            return Move(wanted, Reason.CAP_RAISED, f"the work of {held:.2f} of a replica needs a larger batch")
        smaller = [cap for cap in self.permitted if wanted <= cap < self.cap]
        if not smaller or self.demand.utilization >= self.policy.band.low:
            return None
        return Move(smaller[-1], Reason.CAP_FOLLOWS_LOAD, f"it still carries the held work of {held:.2f} per replica")

    def _climb(self) -> Move | None:
        """ThroughputSensitive: try the next larger cap while more throughput came of the last one."""
        rates = self._rates()
        here = rates.get(self.cap)
        larger = next((cap for cap in self.permitted if cap > self.cap), None)
        smaller = next((cap for cap in reversed(self.permitted) if cap < self.cap), None)
        if here is None and self.full and not self._settled():
            return None
        if here is not None and smaller is not None and rates.get(smaller, 0.0) * GAIN >= here:
            return Move(smaller, Reason.CAP_LOWERED, f"the larger batch did no more work than {smaller}")
        if larger is None or not self.full or not self._fits(larger, GUARD):
            return None
        if here is not None and larger in rates and rates[larger] <= GAIN * here:
            return None
        return Move(
            larger, Reason.CAP_RAISED, f"{self.load.waiting or 0.0:.0f} requests wait, and more may fit a batch"
        )

    def _fits(self, cap: int, guard: float) -> bool:
        """Whether a full batch of `cap` is predicted to fit KV memory and every latency that grows with it."""
        kv, batch = self.load.kv, max(1.0, self.batch)
        if kv is not None and kv * cap / batch > FULL_KV:
            return False
        stretch = self.demand.curve.stretch(cap / self.demand.best_cap, self.relative)
        for verdict in self.verdicts:
            grows = verdict.signal is Signal.INTER_TOKEN_LATENCY
            if grows and verdict.value is not None and verdict.value * stretch > guard * verdict.limit:
                return False
        return True

    def _settled(self) -> bool:
        span_s = self.control.expected_delay_s + self.policy.rate_window_s
        alike = self.memory.confirmed and len(self.load.caps) == 1
        return alike and self.now_s - self.memory.moved_s >= span_s

    def with_rate(self) -> CapMemory:
        """Note the throughput of a replica that is saturated at a cap in force."""
        memory, produced = self.memory, self.load.produced_per_s
        saturated = self.demand.saturated and self.full
        steady = self.load.youngest_s >= self.policy.rate_window_s
        if produced is None or not saturated or not steady or not self._settled():
            return memory
        before = next((one for one in memory.rates if one.cap == self.cap), None)
        rate = produced / self.load.ready
        if before is not None:
            rate = before.rate + 0.2 * (rate - before.rate)
        others = tuple(one for one in memory.rates if one.cap != self.cap)
        return replace(memory, rates=(*others, CapRate(self.cap, rate, self.now_s))[-RATES_LIMIT:])

    def rest_s(self) -> float:
        """Between two moves: the time until a cap acts and one window to see what it did."""
        window_s = max((slo.window_s for slo in self.policy.slos), default=DEFAULT_WINDOW_S)
        return self.control.expected_delay_s + window_s

    def may(self, move: Move, rollout: Rollout | None) -> bool:
        """Bounds count at once, there is nothing to wait and see; a rollout into them needs its quiet all the same."""
        rested = move.bounds or self.now_s - self.memory.moved_s >= self.rest_s()
        if self.control.cost_class is not CostClass.ROLLOUT:
            in_force = self.memory.confirmed or not self.load.caps
            return move.urgent or move.bounds or (rested and in_force)
        load, memory = self.load, self.memory
        spared = self.now_s - memory.rollout_s >= ROLLOUT_REST * load.cold_start_s
        if move.power:
            failed = memory.before is None and memory.rollout_s == memory.moved_s
            waited = self.now_s - memory.moved_s >= self.rest_s()
            return rollout is None and waited and (spared or not failed)
        waits = any(is_wait(verdict, load) for verdict in breached(self.verdicts))
        emergency = (self.demand.saturated or waits) and not self.demand.batch_first
        calm = not emergency and rollout is None and not load.terminating
        all_ready = load.ready == self.replicas and not load.pending and not load.lost
        return calm and all_ready and spared and rested and (move.bounds or self._pays(move))

    def _pays(self, move: Move) -> bool:
        """A rollout costs each pod a cold start: a broken promise is worth it, and replicas that are spared until the
        next one could begin.
        """
        if move.reason is Reason.PREEMPTIONS or breached(self.verdicts):
            return True
        needed = self.demand.peak_work * self.demand.margin / self._share(self.cap)
        here, there = self._rates().get(self.cap), self._rates().get(move.cap)
        if not here or not there:
            here, there = self._share(self.cap), self._share(move.cap)
        spares_one = math.ceil(needed) > max(self.policy.min_replicas, math.ceil(needed * here / there))
        return spares_one and (1 - here / there) * ROLLOUT_REST >= 1

    def _rates(self) -> dict[int, float]:
        """Caps to the throughput that a saturated replica had with them lately."""
        return {one.cap: one.rate for one in self.memory.rates if self.now_s - one.at_s <= RATE_MEMORY_S}

    def _share(self, cap: int) -> float:
        """Throughput of a replica with full batches of `cap`, of that at the best one."""
        return self.demand.curve.load(min(1.0, cap / self.demand.best_cap))

    def taken(self, move: Move) -> tuple[CapChoice, CapMemory]:
        memory, before, now_s = self.memory, self.cap, self.now_s
        if move.urgent:
            memory = replace(memory, queued_at=before, queued_replicas=self.replicas, queued_s=now_s)
        if move.reason is Reason.CAP_LOWERED and not move.bounds and breached(self.verdicts):
            memory = replace(memory, broke_at=before, broke_s=now_s)
        memory = moved(memory, self.control, move, before, now_s)
        handled, rolls = self._handled(memory), self.control.cost_class is CostClass.ROLLOUT
        return CapChoice(move.cap, before, move.reason, told(before, move), handles=handled, busy=rolls), memory

    def kept(self) -> CapChoice:
        busy = is_busy(self.control, self.memory, self.now_s)
        return CapChoice(self.memory.wanted, handles=self._handled(self.memory), busy=busy, stuck=self._stuck())

    def _stuck(self) -> bool:
        in_force = min(self.load.caps, default=self.cap)
        if not self.demand.saturated or max(in_force, self.cap) >= self.demand.best_cap:
            return False
        if self.control.cost_class is CostClass.ROLLOUT and not self.demand.batch_first:
            return True
        return not any(self._fits(cap, GUARD) for cap in self.permitted if cap > self.cap)

    def _handled(self, memory: CapMemory) -> frozenset[Signal]:
        """Broken latency promises whose cure is on its way: the cap was lowered, and not long enough ago to judge."""
        lowered = memory.before is not None and memory.wanted is not None and memory.wanted < memory.before
        if not lowered or memory.inward or self.now_s - memory.moved_s >= self.rest_s():
            return frozenset()
        broken = breached(self.verdicts)
        return frozenset(verdict.signal for verdict in broken if not is_wait(verdict, self.load))
