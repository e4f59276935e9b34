"""Workers of training and batch jobs: added only while each brings enough, `constraints.parallelEfficiencyPercent`.

Throughput is compared between counts that stood for a while with work waiting all the time; a training job always has
more to do. What was seen counts for a day, so that a resize, which such a job pays for, is not tried again every hour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bandkeeper.api.reasons import SLOState
from bandkeeper.api.records import replace
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.state import WorkersMemory
from bandkeeper.quality.scaling import Scaling
from bandkeeper.quality.types import Component, Saturated

MEMORY_S = 86_400.0
SETTLED_WINDOWS = 2.0  # rate windows that a count must have stood for
STAYS_S = 600.0  # so long efficiency is low before a worker is let go
ENOUGH = 1.05  # times a promised rate, before workers are let go because it is exceeded
SPARE = 0.02  # below the stated efficiency: less is noise
STEP = 1.25  # times the workers there are: what more of them bring is told from chance, where nothing predicts it
FARTHEST = 2.0  # times the most workers that were seen: farther is not predicted
COUNTS_LIMIT = 16
_SMOOTHING = 0.2
FEEDS = frozenset({Component.CPU, Component.NETWORK, Component.STORAGE})
"""What brings a training job its data."""


def watch_workers(policy: Policy, load: Load, memory: WorkersMemory, now_s: float) -> WorkersMemory:
    """With the throughput of the present count, once it has stood for long enough."""
    if policy.least_efficiency is None and policy.deadline is None and not load.trains:
        return memory
    if load.revision is not None and load.revision != memory.revision:
        memory = WorkersMemory(revision=load.revision) if memory.revision is not None else memory
        memory = replace(memory, revision=load.revision)
    settled_s = SETTLED_WINDOWS * policy.rate_window_s
    alone = load.ready > 0 and not load.pending and not load.terminating and load.youngest_s >= settled_s
    if not alone or load.ready != memory.count:
        return replace(memory, count=load.ready if alone else None, since_s=now_s, low_since_s=None)
    produced = load.produced_per_s
    if not produced or not _tells(load) or now_s - memory.since_s < settled_s:
        return memory
    before = next((one.throughput for one in memory.seen if one.replicas == load.ready), produced)
    mean = before + _SMOOTHING * (produced - before)
    others = [one for one in memory.seen if one.replicas != load.ready and now_s - one.at_s <= MEMORY_S]
    memory = replace(memory, seen=(*others, Saturated(load.ready, mean, now_s))[-COUNTS_LIMIT:])
    efficiency, least = Scaling.of(memory.seen).efficiency(load.ready), policy.least_efficiency
    if efficiency is None or least is None or efficiency >= least - SPARE:
        return replace(memory, low_since_s=None)
    return memory if memory.low_since_s is not None else replace(memory, low_since_s=now_s)


def _tells(load: Load) -> bool:
    """Whether throughput is all that the workers can do: every one tells, and there is always work."""
    return load.produced_whole and (load.backlogged if load.left is not None else load.trains or load.queueing)


def most_workers(
    policy: Policy, load: Load, memory: WorkersMemory, current: int, need: int
) -> tuple[int, float | None]:
    """How many of the `need` that are wanted bring enough, and the efficiency of the next one where it does not.

    None are added before the present count was measured, where it can be.
    """
    least = policy.least_efficiency
    if least is None or need <= current:
        return need, None
    if _tells(load) and not any(one.replicas == current for one in memory.seen):
        return current, None
    scaling = Scaling.of(memory.seen)
    if (now := scaling.efficiency(current)) is not None and now < least:
        return current, now
    if scaling.law is None:
        return min(need, max(current + 1, math.ceil(STEP * current))), None
    most = max(current + 1, int(FARTHEST * scaling.seen[-1].replicas))
    for count in range(current + 1, min(need, most) + 1):
        efficiency = scaling.efficiency(count)
        if efficiency is not None and efficiency < least:
            return count - 1, efficiency
    return min(need, most), None


def fewest_workers(
    load: Load, verdicts: Sequence[SLOVerdict], memory: WorkersMemory, current: int, now_s: float
) -> int:
    """How many of a training job's workers keep each promised rate with a little to spare, if they do no more each than
    now: fewer never do less each. `current` until the present count has stood for long.
    """
    mean = next((one.throughput for one in memory.seen if one.replicas == current), None)
    if not verdicts or mean is None or not load.produced_per_s or memory.count != current:
        return current
    if now_s - memory.since_s < STAYS_S or any(one.state is not SLOState.MET for one in verdicts):
        return current
    usual = min(1.0, mean / load.produced_per_s)
    rates = [one for one in verdicts if one.percentile is None]
    needed = [current * ENOUGH * one.limit / (usual * one.value) for one in rates if one.value]
    return min(current, math.ceil(max(needed))) if len(needed) == len(verdicts) else current


def too_many(policy: Policy, load: Load, memory: WorkersMemory, now_s: float) -> float | None:
    """The efficiency of the present workers where it has been too low for long; None where it was not."""
    if policy.least_efficiency is None or memory.low_since_s is None or now_s - memory.low_since_s < STAYS_S:
        return None
    return Scaling.of(memory.seen).efficiency(load.ready)
