"""Q, M and L: what each remembers, and for how long."""

from __future__ import annotations

import pytest

from bandkeeper.lab.rules.peaks import Levels, Maximum, Percentile
from tests.unit.lab_views import SERVER, a_setting, a_view, offering

PER_REPLICA = SERVER.sustainable_per_s(1000.0, 200.0)


def _fed(rule: Percentile | Maximum | Levels, works: list[float], since_s: float = 0.0) -> int:
    wanted = 0
    for tick, work in enumerate(works):
        wanted = rule.decide(offering(since_s + 15.0 * tick, work * PER_REPLICA)).replicas
    return wanted


def test_q_is_a_percentile_of_ten_minutes() -> None:
    works = [2.0] * 30 + [10.0] * 11  # 41 ticks: the 90th percentile is the 37th value

    assert _fed(Percentile(a_setting(), factor=1.3), works) == 13
    assert _fed(Percentile(a_setting(), factor=1.3), [2.0] * 38 + [10.0] * 3) == 3


def test_m_is_the_maximum_of_ten_minutes_and_then_forgets() -> None:
    rule = Maximum(a_setting(), factor=1.0)

    assert _fed(rule, [2.0, 9.5, *[2.0] * 40]) == 10
    assert _fed(rule, [2.0], since_s=42 * 15.0) == 2


def test_m_drains_what_waits() -> None:
    rule = Maximum(a_setting(), factor=1.0)
    waiting = 60 * PER_REPLICA / 4  # one replica's minute in all
    rule.decide(offering(0.0, 2.0 * PER_REPLICA, waiting=waiting))

    # Work 2, and 60 s of backlog to be cleared in 60 s: 3 in all.
    assert rule.decide(offering(15.0, 2.0 * PER_REPLICA, waiting=waiting)).replicas == 3


def test_the_drain_is_at_most_twice_the_work_and_two_more() -> None:
    rule = Maximum(a_setting(), factor=1.0)
    rule.decide(offering(0.0, 2.0 * PER_REPLICA, waiting=500.0))

    assert rule.decide(offering(15.0, 2.0 * PER_REPLICA, waiting=500.0)).replicas == 6


def test_l_holds_an_unknown_level_for_a_quarter_of_an_hour() -> None:
    rule = Levels(a_setting(), factor=1.0)

    assert _fed(rule, [7.8, *[1.0] * 60]) == 8
    assert _fed(rule, [1.0], since_s=61 * 15.0) == 1


def test_l_learns_how_long_a_level_stays_away() -> None:
    rule = Levels(a_setting(), factor=1.0)
    wave = [8.0, *[1.0] * 19]  # back after 300 s
    assert _fed(rule, wave * 3) == 8

    # 1.15 x 300 s + 15 s = 360 s after the last visit, at 40 x 15 s.
    assert _fed(rule, [1.0], since_s=(40 + 24) * 15.0) == 8
    assert _fed(rule, [1.0], since_s=(40 + 25) * 15.0) == 1


def test_l_ignores_gaps_shorter_than_a_cold_start() -> None:
    rule = Levels(a_setting(), factor=1.0)
    _fed(rule, [8.0, *[1.0] * 5] * 4)  # back after 90 s, the cold start

    assert _fed(rule, [1.0] * 36, since_s=24 * 15.0) == 8  # still unknown: held for 900 s


@pytest.mark.parametrize(("rule", "default"), [(Percentile, "x1.3"), (Maximum, "x1"), (Levels, "x1.1")])
def test_defaults_are_those_of_the_experiments(rule: type[Percentile], default: str) -> None:
    assert [choice.label for choice in rule.choices(a_setting()) if choice.default] == [default]
    assert rule(a_setting(), factor=1.0).decide(a_view(ready=3)).replicas == 3
