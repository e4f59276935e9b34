"""CPU time of one decision, in microseconds: `make bench`, or `python tests/bench/bench_decide.py`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.state import State

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from tests.unit.builders import ITL, TTFT, a_batch, a_policy
from tests.unit.tiny_fleet import Fleet

BUDGET_US = 250.0
TICKS = 400


def microseconds(replicas: int, period_s: int) -> float:
    """Mean CPU time of one decision about a fleet whose load goes up and down, without making the snapshots."""
    fleet = Fleet(replicas=replicas, seed=1)
    policy = a_policy(Objective.LATENCY_SENSITIVE, slos=[TTFT, ITL], replicas=(1, 2 * replicas), batch=a_batch())
    state, spent_s = State.initial(fleet.now_s), 0.0
    for tick in range(TICKS):
        for _ in range(period_s):
            fleet.second(fleet.server.best_rate * replicas * (0.3 + 0.6 * (tick % 100) / 100))
        snapshot = fleet.snapshot()
        began_s = time.process_time()
        decision, state = decide(policy, snapshot, state, fleet.now_s)
        spent_s += time.process_time() - began_s
        if decision.replicas is not None and decision.replicas != fleet.wanted:
            fleet.scale(decision.replicas)
            state = written(state, replicas=decision.replicas, now_s=fleet.now_s)
    return spent_s / TICKS * 1e6


def main() -> None:
    print(f"one decision, mean of {TICKS} ticks (budget {BUDGET_US:.0f} us)")
    for period_s in (15, 1):
        for replicas in (1, 4, 16, 64, 256):
            print(f"  period {period_s:2d} s, {replicas:3d} replicas: {microseconds(replicas, period_s):6.0f} us")


if __name__ == "__main__":
    main()
