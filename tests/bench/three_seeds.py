"""The matrix of reference loads at several seeds: the goals that Bandkeeper keeps, and its cost over the bound.

`python tests/bench/three_seeds.py --cold-start 90`. The least setting that keeps the goals is searched by halving, not
swept as in `bandkeeper bench`, so that three seeds take minutes: more margin or a larger count never keeps less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from bandkeeper.cli import inputs
from bandkeeper.lab.bench import Comparison, Load, Mean, compare, goals_of, mean_of
from bandkeeper.lab.rules.catalogue import OURS, RuleSource
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.rule import Setting
from bandkeeper.lab.server import load
from bandkeeper.lab.workloads import scale, synthetic, traces

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "examples" / "rules" / "reference.yaml"
RATE_SCALE = 4.0  # of a recorded load


@dataclass(frozen=True, slots=True)
class One(RuleSource):
    """A rule of the catalogue at one setting."""

    choice: Choice = field(default_factory=lambda: Choice("as written"))

    def choices(self, setting: Setting) -> tuple[Choice, ...]:
        return (self.choice,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load, means over the seeds; `static` and `bound` are GPU-hours, None where no setting is enough."""

    load: str
    attainment: tuple[float | None, ...]
    kept: bool
    gpu_hours: float
    moves_per_hour: float
    static: float | None
    bound: float | None


def run(cold_start_s: float, seeds: int, named: tuple[str, str]) -> Row:
    """Bandkeeper on one load, and the cheapest of what knows the requests to come."""
    name, text = named
    found = inputs.read_policy(POLICY)
    server = load("reference")
    server = server.model_copy(update={"cold_start": server.cold_start.model_copy(update={"median_s": cold_start_s})})
    most = found.policy.max_replicas
    drawn = {
        seed: scale.rescale(traces.read(Path(text), skip_bad=False), RATE_SCALE, seed)
        if text.endswith(".csv")
        else synthetic.make(text, server, seed=seed, max_replicas=most)
        for seed in range(1, seeds + 1)
    }

    def asked(rule: str, choice: Choice) -> tuple[Mean, float]:
        comparison = Comparison(
            policy=found.policy,
            policy_name=found.name,
            server=server,
            server_name="reference",
            loads=(Load(name, drawn),),
            rules=(One(rule, choice=choice),),
            goals=goals_of(found.policy),
        )
        result = compare(comparison, workers=1)
        moves = mean_of([point.scale_actions for point in result.points]) or 0.0
        hours = (result.workloads[0].duration_s - result.warmup_s) / 3600.0
        return Mean.of(result.points, comparison.goals), moves / hours

    def least(rule: str, choices: Sequence[Choice]) -> float | None:
        """GPU-hours of the first of the rising settings that keeps every goal."""
        low, high, cost = 0, len(choices), None
        while low < high:
            middle = (low + high) // 2
            mean, _ = asked(rule, choices[middle])
            if mean.shortfall == 0:
                high, cost = middle, mean.gpu_hours
            else:
                low = middle + 1
        return cost

    ours, moves_per_hour = asked(OURS, Choice("as written"))
    setting = Setting(policy=found.policy, server=server, requests=drawn[1])
    static = least("static", RuleSource("static").choices(setting))
    by_window = groupby(RuleSource("foresight").choices(setting), key=lambda choice: choice.parameters["window_s"])
    known = [static, *(least("foresight", list(choices)) for _, choices in by_window)]
    return Row(
        load=name,
        attainment=ours.attainment,
        kept=ours.shortfall == 0,
        gpu_hours=ours.gpu_hours,
        moves_per_hour=moves_per_hour,
        static=static,
        bound=min((cost for cost in known if cost is not None), default=None),
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown for docs/benchmarks.md, and the totals."""
    head = ("load", "TTFT / ITL kept, %", "GPU-hours", "x bound", "static, x bound", "moves an hour")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        shown = " / ".join("-" if share is None else f"{int(1000 * share + 1e-6) / 10:.1f}" for share in row.attainment)
        ratios = [_over(cost, row.bound) for cost in (row.gpu_hours, row.static)]
        shown = f"**{shown}**" if row.kept else shown
        lines.append((row.load, shown, f"{row.gpu_hours:.2f}", *ratios, f"{row.moves_per_hour:.0f}"))
    bounded = [row for row in rows if row.bound is not None]
    bound = sum(row.bound or 0.0 for row in bounded)
    ours, static = sum(row.gpu_hours for row in bounded), sum(row.static or 0.0 for row in bounded)
    kept = sum(row.kept for row in bounded)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{text}\n\nEvery goal kept on {kept} of the {len(bounded)} loads on which hindsight keeps them; there "
        f"{_over(ours, bound)} times the bound's GPU-hours ({ours:.1f} of {bound:.1f}), "
        f"the best static counts {_over(static, bound)} times."
    )


def _over(cost: float | None, bound: float | None) -> str:
    return "-" if cost is None or not bound else f"{cost / bound:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cold-start", type=float, default=90.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--loads", default="", help="names of the matrix, with commas between them; all by default")
    parser.add_argument("--trace", type=Path, help="a recorded load beside them, at four times its rate")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    loads = {name: synthetic.MATRIX[name] for name in filter(None, given.loads.split(","))} or dict(synthetic.MATRIX)
    if given.trace is not None:
        loads["conversation"] = str(given.trace)
    rows = []
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(partial(run, given.cold_start, given.seeds), loads.items()):
            rows.append(row)
            print(f"{len(rows)}/{len(loads)} {row.load}", file=sys.stderr, flush=True)
            if given.json is not None:
                given.json.write_text(json.dumps([asdict(one) for one in rows], indent=1), encoding="utf-8")
    print(f"Cold start {given.cold_start:g} s, {given.seeds} seed(s)\n\n{table(rows)}")


if __name__ == "__main__":
    main()
