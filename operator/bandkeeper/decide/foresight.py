"""What earlier days ask for: work of then in replicas of now, and only more, never less."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

from bandkeeper.api.records import replace
from bandkeeper.api.snapshot import RECALL_STEP_S, Earlier, Recalled
from bandkeeper.decide.demand import Foreseen
from bandkeeper.decide.state import ModelMemory
from bandkeeper.model import forecast
from bandkeeper.model.batches import BatchTimes
from bandkeeper.model.forecast import NO_RECORD, Levels, Record, Step
from bandkeeper.model.steps import StepFit

LEADS = 2.0  # looked ahead: a load that was not met in time then was served a cold start late
LEVEL_STEPS = 2.0  # more: so many steps make a level, and a crowd comes some minutes earlier than the day before
NO_RECALL: Mapping[Earlier, Recalled] = {}


def foresee(
    recalled: Mapping[Earlier, Recalled],
    memory: ModelMemory,
    fit: StepFit | BatchTimes,
    *,
    work: float,
    held: float,
    margin: float,
    batch: float,
    lead_s: float,
    now_s: float,
) -> tuple[Foreseen | None, ModelMemory]:
    """The most that a believed source asks for, beside what is `held` anyway, and what was learned of all of them.

    `fit` counts work of then: as known before this look, whose own news is no reason for more load to ask for less.
    """
    if not isinstance(fit, StepFit) or not (recalled or memory.records):  # batches tell no tokens
        return None, memory
    records: dict[Earlier, Record] = {}
    most: Foreseen | None = None
    until_s = LEADS * lead_s + LEVEL_STEPS * RECALL_STEP_S
    for source in Earlier:
        past = recalled.get(source)
        record = memory.records.get(source, NO_RECORD)
        if past is None and record is NO_RECORD:
            continue
        then = () if past is None else _steps(past, fit, batch, until_s)
        # By what was seen before this look: a load is no reason to doubt what foretold it.
        proven, steps = record.proven(lead_s), tuple(Step(one.ends_s, record.levels.scaled(one.work)) for one in then)
        scale = record.levels.scale
        record = record.compared(forecast.present(then, RECALL_STEP_S), work, now_s, RECALL_STEP_S)
        target = forecast.ahead(steps, until_s, RECALL_STEP_S)
        if target is not None and proven and not record.muted(now_s):
            replicas = math.ceil(target * margin - 1e-9)
            if forecast.is_clear(target, held):
                rise_s = forecast.rise_s(steps, work, target)
                record = record.raising(target, work, rise_s, now_s, RECALL_STEP_S)
            if most is None or replicas > most.replicas:
                most = Foreseen(source=source, work=target, replicas=replicas, scale=scale)
        records[source] = record
    return most, replace(memory, records=records)


def unraised(records: Mapping[Earlier, Record]) -> Mapping[Earlier, Record]:
    """Without raises under way and levels, which were in another unit."""
    return {source: replace(record, raised=None, levels=Levels()) for source, record in records.items()}


def _steps(past: Recalled, steps: StepFit, batch: float, until_s: float) -> tuple[Step, ...]:
    """Work of then, were it done today, from now on. A prompt's output is that of all steps, because it comes later."""
    prompts, now_s = math.fsum(past.prompt_per_s), past.now_s
    token_s = steps.work_s(1.0, math.fsum(past.output_per_s) / prompts, batch).value if prompts > 0 else 0.0
    first = bisect_left(past.ends_s, now_s)
    end = bisect_left(past.ends_s, now_s + until_s + RECALL_STEP_S)
    return tuple(
        Step(ends_s - now_s, per_s * token_s)
        for ends_s, per_s in zip(past.ends_s[first:end], past.prompt_per_s[first:end], strict=True)
    )
