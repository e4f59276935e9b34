"""How often Bandkeeper moves replicas, and how often it takes a move back within a cold start: calm loads, the matrix.

`make bench`, or `python tests/bench/bench_moves.py`. An emergency is a queue or a broken promise. It ends with 1 where
a calm load has 12 moves an hour or more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from bandkeeper.api.reasons import Reason
from bandkeeper.cli import inputs
from bandkeeper.lab.result import Move
from bandkeeper.lab.rules.bandkeeper import Rule
from bandkeeper.lab.rules.rule import Setting
from bandkeeper.lab.run import WARMUP_S, simulate
from bandkeeper.lab.server import load
from bandkeeper.lab.workloads import synthetic

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "examples" / "rules" / "reference.yaml"
MOST_PER_HOUR = 12.0
EMERGENCIES = (Reason.QUEUE_GROWS, Reason.SLO_BREACHED)
CALM = {
    f"{name} {level:g}": f"{name}:level={level},duration_s=8100"
    for name in ("steady", "poisson")
    for level in (0.5, 2, 5, 10, 20)
}


@dataclass(frozen=True, slots=True)
class Moves:
    """What became of one load with one seed, after the warm-up."""

    load: str
    seed: int
    per_hour: float
    taken_back: int
    in_need: int


def taken_back(moves: Sequence[Move], cold_start_s: float) -> tuple[int, int]:
    """Changes of direction inside a cold start: those without a need, and those for a queue or a broken promise."""
    changes = [(move.at_s, move.replicas_to - move.replicas_from, move.reason) for move in moves]
    changes = [change for change in changes if change[1]]
    reasons = [
        reason if after > 0 else ""
        for (before_s, before, _), (at_s, after, reason) in pairwise(changes)
        if before * after < 0 and at_s - before_s < cold_start_s
    ]
    in_need = sum(reason in EMERGENCIES for reason in reasons)
    return len(reasons) - in_need, in_need


def run(cold_start_s: float, named: tuple[str, str, int]) -> Moves:
    """Simulate one load."""
    name, text, seed = named
    policy, server = inputs.read_policy(POLICY).policy, load("reference")
    server = server.model_copy(update={"cold_start": server.cold_start.model_copy(update={"median_s": cold_start_s})})
    requests = synthetic.make(text, server, seed=seed, max_replicas=policy.max_replicas)
    setting = Setting(policy=policy, server=server, requests=requests)
    result = simulate(setting, Rule(setting), rule_name="bandkeeper", seed=seed)
    hours = (requests.duration_s - WARMUP_S) / 3600.0
    back = taken_back([move for move in result.moves if move.at_s >= WARMUP_S], cold_start_s)
    return Moves(name, seed, result.scale_actions / hours, *back)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cold-start", type=float, default=90.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    loads = {**CALM, **synthetic.MATRIX}
    todo = [(name, text, seed) for name, text in loads.items() for seed in range(1, given.seeds + 1)]
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(partial(run, given.cold_start), todo))
    print(f"cold start {given.cold_start:g} s     moves an hour by seed     taken back   in an emergency")
    wrong = 0
    for name in loads:
        some = [one for one in found if one.load == name]
        rates = " ".join(f"{one.per_hour:6.1f}" for one in some)
        back, need = sum(one.taken_back for one in some), sum(one.in_need for one in some)
        print(f"{name:<22} {rates:<25} {back:10d} {need:17d}")
        wrong += name in CALM and max(one.per_hour for one in some) >= MOST_PER_HOUR
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
