"""CPU time of one decision, in microseconds: `make bench`, or `python tests/bench/bench_decide.py`."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.state import State
from bandkeeper.runtime.loop import GC_AFTER

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from tests.unit.builders import ITL, TTFT, a_batch, a_policy
from tests.unit.tiny_fleet import Fleet

BUDGET_US = 250.0
TICKS = 400
MANY = 1000
MANY_REPLICAS = (1, 2, 4, 8, 16)


class Subject:
    """One policy and its fleet, whose load goes up and down."""

    def __init__(self, replicas: int, period_s: int, seed: int = 1) -> None:
        self._fleet = Fleet(replicas=replicas, seed=seed)
        self._policy = a_policy(
            Objective.LATENCY_SENSITIVE, slos=[TTFT, ITL], replicas=(1, 2 * replicas), batch=a_batch()
        )
        self._state = State.initial(self._fleet.now_s)
        self._most_per_s = self._fleet.server.best_rate * replicas
        self._period_s, self._tick = period_s, 0

    def tick(self) -> float:
        """CPU seconds of one decision, without making the snapshot."""
        fleet = self._fleet
        for _ in range(self._period_s):
            fleet.second(self._most_per_s * (0.3 + 0.6 * (self._tick % 100) / 100))
        self._tick += 1
        snapshot = fleet.snapshot()
        began_s = time.process_time()
        decision, self._state = decide(self._policy, snapshot, self._state, fleet.now_s)
        spent_s = time.process_time() - began_s
        if decision.replicas is not None and decision.replicas != fleet.wanted:
            fleet.scale(decision.replicas)
            self._state = written(self._state, replicas=decision.replicas, now_s=fleet.now_s)
        return spent_s


def microseconds(subjects: Sequence[Subject], warm_up: int, ticks: int) -> float:
    """Mean CPU time of one decision, each subject in its turn."""
    for _ in range(warm_up):
        for subject in subjects:
            subject.tick()
    spent_s = sum(subject.tick() for _ in range(ticks) for subject in subjects)
    return spent_s / ticks / len(subjects) * 1e6


def main() -> None:
    print(f"one decision, mean of {TICKS} ticks (budget {BUDGET_US:.0f} us)")
    for period_s in (15, 1):
        for replicas in (1, 4, 16, 64, 256):
            mean_us = microseconds([Subject(replicas, period_s)], 0, TICKS)
            print(f"  period {period_s:2d} s, {replicas:3d} replicas: {mean_us:6.0f} us")
    many = [Subject(MANY_REPLICAS[number % len(MANY_REPLICAS)], 15, seed=number) for number in range(MANY)]
    gc.freeze()  # as the operator's loop does it
    gc.set_threshold(*GC_AFTER)
    mean_us = microseconds(many, 20, 10)
    print(f"  {MANY} policies of {', '.join(map(str, MANY_REPLICAS))} replicas, in turn: {mean_us:6.0f} us")


if __name__ == "__main__":
    main()
