"""A calm load is left in peace: few moves, and none that is taken back within a cold start."""

from __future__ import annotations

import pytest

from bandkeeper.api.reasons import Reason
from bandkeeper.lab.result import Move
from tests.bench.bench_moves import CALM, MOST_PER_HOUR, run, taken_back

COLD_START_S = 90.0


@pytest.mark.parametrize("name", ["steady 5", "poisson 5"])
def test_a_calm_load_is_left_in_peace(name: str) -> None:
    load = CALM[name].replace("duration_s=8100", "duration_s=4500")
    found = run(COLD_START_S, (name, load, 1))
    assert found.per_hour < MOST_PER_HOUR
    assert found.taken_back == 0


def a_move(at_s: float, before: int, after: int, reason: Reason = Reason.DEMAND_ROSE) -> Move:
    return Move(at_s=at_s, replicas_from=before, replicas_to=after, cap_from=None, cap_to=None, reason=reason, why="")


@pytest.mark.parametrize(
    ("moves", "back"),
    [
        ([a_move(0, 2, 3), a_move(60, 3, 2, Reason.DEMAND_FELL)], (1, 0)),
        ([a_move(0, 2, 3), a_move(60, 3, 2, Reason.SLO_BREACHED)], (1, 0)),
        ([a_move(0, 2, 3), a_move(120, 3, 2, Reason.DEMAND_FELL)], (0, 0)),
        ([a_move(0, 3, 2, Reason.DEMAND_FELL), a_move(60, 2, 4)], (1, 0)),
        ([a_move(0, 3, 2, Reason.DEMAND_FELL), a_move(60, 2, 4, Reason.QUEUE_GROWS)], (0, 1)),
        ([a_move(0, 2, 3), a_move(60, 3, 4)], (0, 0)),
    ],
)
def test_what_is_taken_back(moves: list[Move], back: tuple[int, int]) -> None:
    assert taken_back(moves, COLD_START_S) == back
