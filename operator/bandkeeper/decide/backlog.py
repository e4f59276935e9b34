"""Work with a deadline: how many replicas finish it in time, and when it is done. The band has no say in that.

The least count that is in time is the cheapest too, because more replicas never do more each. What arrives meanwhile,
or has to be done again, comes on top. What is not known asks for nothing and lets nothing go.
"""

from __future__ import annotations

import math

from bandkeeper.api import durations
from bandkeeper.api.reasons import DeadlineState
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import CATALOGUE
from bandkeeper.decide.decision import DeadlineVerdict, counted
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Deadline, Policy
from bandkeeper.decide.state import BacklogMemory, WorkersMemory
from bandkeeper.decide.workers import ENOUGH, FARTHEST, STAYS_S
from bandkeeper.model.peaks import NO_PEAKS
from bandkeeper.quality.scaling import Scaling

ARRIVALS_S = 300.0  # what arrives is a mean of so long
FEW_ARRIVE = 0.05  # of what is done: less is noise
NONE_LEFT = 0.01  # of what is done, beside what arrives: with less it is never done
COUNTS_MOST = 128  # replica counts that are weighed


def watch_backlog(policy: Policy, load: Load, memory: BacklogMemory, now_s: float) -> BacklogMemory:
    """With what is left now. A part of it tells neither what arrives nor that nothing is left."""
    deadline, left = policy.deadline, load.left
    if deadline is None or left is None or not load.left_whole:
        return memory
    held = memory.held.push(left, now_s, deadline.within_s) if deadline.within_s is not None and left > 0 else NO_PEAKS
    before = memory.left
    if before is None:
        return BacklogMemory(left=left, changed_s=now_s, seen_s=now_s, held=held)
    done = memory.done + (load.produced_per_s or 0.0) * (now_s - memory.seen_s)
    span_s = now_s - memory.changed_s
    if left == before or span_s <= 0:
        return replace(memory, done=done, seen_s=now_s, held=held)
    # What is put there at once is in what is left: as arrivals it would count twice.
    arrived_per_s = min(done, done + left - before) / span_s
    arriving = memory.arriving_per_s + (1 - math.exp(-span_s / ARRIVALS_S)) * (arrived_per_s - memory.arriving_per_s)
    return BacklogMemory(left=left, changed_s=now_s, seen_s=now_s, arriving_per_s=arriving, held=held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a backlog asks for.

    Attributes
    ----------
    replicas
        The fewest that are in time, else those that are done first, and none fewer than now; None where that is not
        known.
    fewest
        So many of the present ones would do, with something to spare.
    """

    replicas: int | None
    fewest: int
    verdict: DeadlineVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is left of the work and of the time, and what each count of replicas does.

    Attributes
    ----------
    left
        For a duration the most of it: what was there a while ago is due sooner.
    stands
        Every resize makes it stand still for a cold start.
    """

    left: float
    left_s: float
    arriving_per_s: float
    current: int
    cold_start_s: float
    stands: bool
    scaling: Scaling

    def speed(self, replicas: int) -> float:
        """What so many do per second: as seen, else as predicted, else in proportion to the most that were seen."""
        seen = self.scaling.seen
        efficiency = self.scaling.efficiency(replicas)
        if efficiency is not None:
            return efficiency * replicas * seen[0].throughput / seen[0].replicas
        return replicas * seen[-1].throughput / seen[-1].replicas

    def finish_s(self, replicas: int, left: float) -> float:
        """Seconds until nothing of `left` is left, were there so many from now on; new ones come a cold start later."""
        net_per_s = self.speed(replicas) - self.arriving_per_s
        wait_s = self.cold_start_s if replicas > self.current else 0.0
        meanwhile_per_s = (0.0 if self.stands else self.speed(self.current)) - self.arriving_per_s
        if left <= wait_s * meanwhile_per_s:
            return left / meanwhile_per_s
        return (
            wait_s + (left - wait_s * meanwhile_per_s) / net_per_s
            if net_per_s > NONE_LEFT * self.speed(replicas)
            else math.inf
        )

    def in_time(self, replicas: int) -> bool:
        return self.finish_s(replicas, self.left) <= self.left_s


def due(
    policy: Policy,
    load: Load,
    memory: BacklogMemory,
    workers: WorkersMemory,
    *,
    current: int,
    wall_s: float | None,
    now_s: float,
) -> Due | None:
    """What the deadline asks for; None without one."""
    deadline = policy.deadline
    if deadline is None:
        return None
    if load.left is None:
        return _unknown(current, f"how much is left is not known: {deadline.backlog} has no data")
    left_s = _left_s(deadline, wall_s)
    if left_s is None:
        return _unknown(current, "the time of day is not known here; write backlog.within instead of backlog.by")
    if load.left <= 0 and not load.left_whole:
        return _unknown(current, f"how much is left is not known of every ready pod: see {deadline.backlog}")
    if load.left <= 0:
        verdict = DeadlineVerdict(DeadlineState.NOTHING_LEFT, DeadlineState.NOTHING_LEFT.meaning, 0.0)
        return Due(replicas=0, fewest=1, verdict=verdict)
    scaling = Scaling.of(workers.seen)
    if not scaling.seen:
        return _unknown(current, f"{_left(deadline, load.left)}; what the present replicas do is measured first")
    arriving = memory.arriving_per_s
    job = _Job(
        left=max(load.left, memory.held.highest() or 0.0),
        left_s=left_s,
        arriving_per_s=arriving if arriving > FEW_ARRIVE * scaling.seen[-1].throughput else 0.0,
        current=current,
        cold_start_s=load.cold_start_s,
        stands=load.trains,
        scaling=scaling,
    )
    return _sized(policy, deadline, load, workers, job, now_s)


def _sized(policy: Policy, deadline: Deadline, load: Load, workers: WorkersMemory, job: _Job, now_s: float) -> Due:
    assert load.left is not None
    counts = _permitted(policy, job)
    wanted = next((count for count in counts if job.in_time(count)), None)
    if wanted == job.current:
        state, shown = DeadlineState.IN_TIME, wanted
    elif wanted is not None:
        state, shown = DeadlineState.LATE, wanted
    else:
        state = DeadlineState.UNREACHABLE
        wanted = shown = min(counts, key=lambda count: (job.finish_s(count, job.left), -job.speed(count), count))
    finish_s = job.finish_s(shown, load.left)
    first = wanted
    if load.trains:  # farther is not predicted, and a resize in vain costs a restart
        first = min(wanted, max(job.current, int(FARTHEST * job.scaling.seen[-1].replicas)))
    message = _message(state, deadline, load.left, job, shown, finish_s)
    if first < wanted:
        message = f"{message[:-1]}; {first} are tried first."
    verdict = DeadlineVerdict(state, message, load.left, left_s=job.left_s, finish_s=finish_s)
    return Due(replicas=first, fewest=_fewest(load, workers, job, now_s), verdict=verdict)


def _permitted(policy: Policy, job: _Job) -> list[int]:
    """What is there, and rising counts above it within the bounds that do more and bring enough each."""
    least, step = policy.least_efficiency, max(1, policy.max_replicas // COUNTS_MOST)
    if job.in_time(job.current) or job.current >= policy.max_replicas:
        return [job.current]
    present_per_s = job.speed(job.current)
    return [
        job.current,
        *(
            count
            for count in (*range(job.current + 1, policy.max_replicas, step), policy.max_replicas)
            if job.speed(count) > present_per_s and (least is None or (job.scaling.efficiency(count) or 1.0) >= least)
        ),
    ]


def _fewest(load: Load, workers: WorkersMemory, job: _Job, now_s: float) -> int:
    """How many of the present replicas are in time with something to spare, if they do no more each than now: fewer
    never do less each. All of them until they were watched for long."""
    usual = next((one.throughput for one in workers.seen if one.replicas == job.current), None)
    if usual is None or not load.produced_per_s or not load.left_whole or workers.count != job.current:
        return job.current
    left_s = job.left_s - (job.cold_start_s if job.stands else 0.0)
    if now_s - workers.since_s < STAYS_S or left_s <= 0:
        return job.current
    each_per_s = min(usual, load.produced_per_s) / job.current
    needed_per_s = ENOUGH * (job.left / left_s + job.arriving_per_s)
    return max(1, min(job.current, math.ceil(needed_per_s / each_per_s - 1e-9)))


def _left_s(deadline: Deadline, wall_s: float | None) -> float | None:
    if deadline.within_s is not None:
        return deadline.within_s
    return None if wall_s is None or deadline.by_s is None else deadline.by_s - wall_s


def _unknown(current: int, why: str) -> Due:
    return Due(replicas=None, fewest=current, verdict=DeadlineVerdict(DeadlineState.NO_DATA, f"{_upper(why)}."))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _left(deadline: Deadline, left: float) -> str:
    return f"{left:.4g} {CATALOGUE[deadline.rate].unit} are left"


def _message(state: DeadlineState, deadline: Deadline, left: float, job: _Job, replicas: int, finish_s: float) -> str:
    count = counted(replicas)
    if job.left_s <= 0:
        time = f"the deadline passed {durations.text(-job.left_s)} ago"
    else:
        time = f"{durations.text(job.left_s)} remain"
    done = (
        f"more arrives than {count} do"
        if math.isinf(finish_s)
        else f"{count} are done in {durations.text(finish_s)}, at {job.speed(replicas):.3g}/s"
    )
    if state is DeadlineState.UNREACHABLE:
        done = f"the best reachable finish: {done}; move the deadline, or raise replicas.max if GPUs are free"
    return f"{_upper(_left(deadline, left))}, {time}; {done}."
