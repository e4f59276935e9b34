"""HPA's behavior."""

from __future__ import annotations

import pytest

from bandkeeper.api.v1alpha1 import SelectPolicy
from bandkeeper.decide.behavior import highest, lowest
from bandkeeper.decide.policy import RateLimit
from bandkeeper.decide.state import ScaleEvent
from tests.unit.builders import rules

DOUBLE = RateLimit(value=100, percent=True, period_s=15)
HALF = RateLimit(value=50, percent=True, period_s=60)
FOUR = RateLimit(value=4, percent=False, period_s=15)
ONE = RateLimit(value=1, percent=False, period_s=60)
TENTH = RateLimit(value=10, percent=True, period_s=60)
EVENTS = (ScaleEvent(940.0, 4), ScaleEvent(990.0, 2), ScaleEvent(995.0, -1))


@pytest.mark.parametrize(
    ("limits", "select", "current", "events", "want"),
    [
        ((DOUBLE, FOUR), SelectPolicy.MAX, 1, (), 5),
        ((DOUBLE, FOUR), SelectPolicy.MAX, 10, (), 20),
        ((DOUBLE, FOUR), SelectPolicy.MIN, 10, (), 14),
        ((DOUBLE, FOUR), SelectPolicy.DISABLED, 10, (), 10),
        ((ONE,), SelectPolicy.MAX, 3, (), 4),
        ((TENTH,), SelectPolicy.MAX, 5, (), 6),  # rounded up, as HPA does: small fleets move too
        ((FOUR,), SelectPolicy.MAX, 10, EVENTS, 13),  # 9 replicas 15 s ago, by our own changes
        ((ONE,), SelectPolicy.MAX, 10, (ScaleEvent(950.0, 4),), 10),  # used up, and never below the current count
    ],
)
def test_highest(
    limits: tuple[RateLimit, ...], select: SelectPolicy, current: int, events: tuple[ScaleEvent, ...], want: int
) -> None:
    assert highest(rules(limits=limits, select=select), current, events, 1000.0) == want


@pytest.mark.parametrize(
    ("limits", "select", "current", "events", "want"),
    [
        ((DOUBLE,), SelectPolicy.MAX, 10, (), 0),
        ((HALF,), SelectPolicy.MAX, 5, (), 2),
        ((HALF, ONE), SelectPolicy.MAX, 10, (), 5),
        ((HALF, ONE), SelectPolicy.MIN, 10, (), 9),
        ((HALF,), SelectPolicy.DISABLED, 10, (), 10),
        ((HALF,), SelectPolicy.MAX, 6, (ScaleEvent(950.0, -4),), 5),
        ((ONE,), SelectPolicy.MAX, 6, (ScaleEvent(950.0, -1),), 6),
    ],
)
def test_lowest(
    limits: tuple[RateLimit, ...], select: SelectPolicy, current: int, events: tuple[ScaleEvent, ...], want: int
) -> None:
    assert lowest(rules(limits=limits, select=select), current, events, 1000.0) == want
