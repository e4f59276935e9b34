"""Whether a forecast by the trend gains anything: `python tests/bench/trend_forecast.py`. What came of it is in
docs/decisions.md.

A straight line through the work of the last lead time (a cold start and the time until a rise is seen) is followed one
lead time ahead where its slope is clear. Like an earlier day it only raises, is scored by what came, believed once it
was right for long enough, and muted when it raised in vain. `trend` has the rules of the earlier days, `trend at once`
is believed from the first look on and never muted.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from bandkeeper.api.snapshot import RECALL_STEP_S, Earlier, Recalled
from bandkeeper.cli import inputs
from bandkeeper.decide import explain, prediction
from bandkeeper.decide.demand import Foreseen
from bandkeeper.decide.foresight import foresee
from bandkeeper.decide.state import ModelMemory
from bandkeeper.lab.rules.bandkeeper import Rule
from bandkeeper.lab.rules.rule import Setting
from bandkeeper.lab.run import simulate
from bandkeeper.lab.server import load
from bandkeeper.lab.workloads import synthetic
from bandkeeper.model.forecast import Record, is_clear

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "examples" / "rules" / "reference.yaml"
TREND = cast(Earlier, "Trend")
LOADS = {
    **{name: synthetic.MATRIX[name] for name in ("ramp", "waves-20m", "mmpp-1")},
    "mmpp 4 h": "mmpp:low=4,high=16,duration_s=14400",
}
VARIANTS = ("present", "trend", "trend at once")
CLEAR_SLOPE = 2.0  # standard errors
FEWEST_LOOKS = 5
MOST_RISE = 2.0  # times the present work


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend(Record):
    """The record of the trend, with the looks of the last lead time, and what it foretold for when."""

    looks: tuple[tuple[float, float], ...] = ()
    foretold: tuple[tuple[float, float], ...] = ()

    def then(self, now_s: float) -> float | None:
        """What was foretold for now."""
        due = [work for at_s, work in self.foretold if at_s <= now_s]
        return due[-1] if due else None

    def seen(self, work: float, lead_s: float, now_s: float) -> Trend:
        looks = (*(look for look in self.looks if look[0] >= now_s - lead_s), (now_s, work))
        later = [one for one in self.foretold if one[0] > now_s - 60.0]
        return replace(self, looks=looks, foretold=(*later, (now_s + lead_s, ahead(looks, lead_s))))


def ahead(looks: tuple[tuple[float, float], ...], lead_s: float) -> float:
    """The work one lead time after the last look, by a line through all of them; that of now where it has no slope."""
    now = looks[-1][1]
    if len(looks) < FEWEST_LOOKS:
        return now
    mean_s = math.fsum(at_s for at_s, _ in looks) / len(looks)
    mean = math.fsum(work for _, work in looks) / len(looks)
    spread = math.fsum((at_s - mean_s) ** 2 for at_s, _ in looks)
    slope = math.fsum((at_s - mean_s) * (work - mean) for at_s, work in looks) / spread
    left = math.fsum((work - mean - slope * (at_s - mean_s)) ** 2 for at_s, work in looks)
    if abs(slope) < CLEAR_SLOPE * math.sqrt(left / (len(looks) - 2) / spread):
        return now
    return min(MOST_RISE * now, max(0.0, mean + slope * (looks[-1][0] + lead_s - mean_s)))


def with_trend(
    recalled: Mapping[Earlier, Recalled], memory: ModelMemory, *, at_once: bool, **now: Any
) -> tuple[Foreseen | None, ModelMemory]:
    """`foresee` with one source more."""
    found = memory.records.get(TREND)
    record = found if isinstance(found, Trend) else Trend()
    others = {source: one for source, one in memory.records.items() if source is not TREND}
    most, memory = foresee(recalled, replace(memory, records=others), **now)
    work, held, lead_s, now_s = now["work"], now["held"], now["lead_s"], now["now_s"]
    believed = at_once or (record.proven(lead_s) and not record.muted(now_s))
    record = cast(Trend, record.compared(record.then(now_s), work, now_s, RECALL_STEP_S)).seen(work, lead_s, now_s)
    target = record.foretold[-1][1]
    if believed and target > work:
        replicas = math.ceil(target * now["margin"] - 1e-9)
        if is_clear(target, held):
            record = cast(Trend, record.raising(target, work, lead_s, now_s, RECALL_STEP_S))
        if most is None or replicas > most.replicas:
            most = Foreseen(source=TREND, work=target, replicas=replicas)
    return most, replace(memory, records={**memory.records, TREND: record})


@dataclass(frozen=True, slots=True)
class Row:
    """One run: shares of first tokens and of tokens in time, and GPU-hours."""

    attainment: tuple[float, ...]
    gpu_hours: float


def run(job: tuple[str, float, str, int]) -> Row:
    """Simulate one load."""
    variant, cold_start_s, name, seed = job
    if variant != "present":
        vars(explain)["_EARLIER"] = {**explain._EARLIER, TREND: "by the trend"}
        vars(prediction)["foresee"] = partial(with_trend, at_once=variant == "trend at once")
    else:
        vars(prediction)["foresee"] = foresee
    policy, server = inputs.read_policy(POLICY).policy, load("reference")
    server = server.model_copy(update={"cold_start": server.cold_start.model_copy(update={"median_s": cold_start_s})})
    requests = synthetic.make(LOADS[name], server, seed=seed, max_replicas=policy.max_replicas)
    setting = Setting(policy=policy, server=server, requests=requests)
    result = simulate(setting, Rule(setting), rule_name="bandkeeper", seed=seed)
    return Row(tuple(slo.attainment or 0.0 for slo in result.slos), result.gpu_hours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    seeds = range(1, given.seeds + 1)
    jobs = [
        (variant, cold, name, seed)
        for cold in (90.0, 240.0)
        for name in LOADS
        for variant in VARIANTS
        for seed in seeds
    ]
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(run, jobs), strict=True))
    for cold in (90.0, 240.0):
        print(
            f"cold start {cold:g} s: first tokens in time %, tokens in time %, GPU-hours; means of {given.seeds} seeds"
        )
        totals = dict.fromkeys(VARIANTS, 0.0)
        for name in LOADS:
            cells = []
            for variant in VARIANTS:
                rows = [found[variant, cold, name, seed] for seed in seeds]
                hours = sum(row.gpu_hours for row in rows) / len(rows)
                shares = [100 * sum(row.attainment[slo] for row in rows) / len(rows) for slo in (0, 1)]
                totals[variant] += hours
                cells.append(f"{shares[0]:6.2f} {shares[1]:6.2f} {hours:7.2f}")
            print(f"{name:<14} " + " | ".join(cells))
        print(f"{'':<14} " + " | ".join(f"{variant:>13} {totals[variant]:7.2f}" for variant in VARIANTS))


if __name__ == "__main__":
    main()
