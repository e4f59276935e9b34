"""Forecasts of earlier days: when they are believed, when they are muted, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bandkeeper.model import forecast
from bandkeeper.model.forecast import (
    LONGEST_MUTE_S,
    MEMORY_S,
    MUTE_S,
    NO_RECORD,
    PATIENCE_STEPS,
    PROVEN_S,
    Levels,
    Raise,
    Record,
    Step,
    ahead,
    is_clear,
    is_right,
    present,
    rise_s,
)

STEP_S, TICK_S, LEAD_S = 120.0, 15.0, 135.0
HOUR_S = 3600.0


def steps(*work: float, first_s: float = 60.0) -> tuple[Step, ...]:
    return tuple(Step(first_s + STEP_S * number, one) for number, one in enumerate(work))


def after(
    hours: float,
    expected: Callable[[float], float | None],
    work: Callable[[float], float] = lambda _: 4.0,
    record: Record = NO_RECORD,
    begin_s: float = 0.0,
) -> Record:
    """Compared every tick for some hours."""
    for tick in range(round(hours * HOUR_S / TICK_S)):
        now_s = begin_s + tick * TICK_S
        record = record.compared(expected(now_s), work(now_s), now_s, STEP_S)
    return record


class TestWhatIsSaid:
    def test_the_step_of_now(self) -> None:
        assert present(steps(1.0, 2.0, first_s=-60), STEP_S) == 2.0
        assert present(steps(1.0, first_s=-60), STEP_S) is None
        assert present(steps(1.0, first_s=130), STEP_S) is None  # the one before it was not recorded
        assert present((), STEP_S) is None

    @pytest.mark.parametrize(
        ("work", "until_s", "expected"),
        [
            ((4, 4, 16, 16, 4), 100, 4),
            ((4, 4, 16, 16, 4), 200, 4),  # only one step of the rise is in sight
            ((4, 4, 16, 16, 4), 400, 16),
            ((4, 4, 16, 4, 4), 400, 4),  # one step is no level
            ((4, 10, 16, 4), 400, 10),
            ((4,), 400, None),
            ((), 400, None),
        ],
    )
    def test_the_level_ahead(self, work: tuple[float, ...], until_s: float, expected: float | None) -> None:
        assert ahead(steps(*work), until_s, STEP_S) == expected

    def test_over_a_hole_there_is_no_level(self) -> None:
        holed = (Step(60.0, 4.0), Step(180.0, 4.0), Step(420.0, 16.0))
        assert ahead(holed, 600, STEP_S) == 4.0

    def test_what_is_over_is_not_ahead(self) -> None:
        assert ahead(steps(16, 16, 4, 4, 4, first_s=-300), 400, STEP_S) == 4.0

    def test_half_of_the_rise(self) -> None:
        assert rise_s(steps(4, 4, 11, 16), base=4, target=16) == 300
        assert rise_s(steps(16, 16), base=4, target=16) == 60


class TestBelief:
    @pytest.mark.parametrize(
        ("expected", "work", "right"),
        [(4, 4, True), (5.7, 4, True), (6, 4, False), (1.6, 4, True), (1.4, 4, False), (0.4, 0, True), (0, 0.9, True)],
    )
    def test_right_is_not_much_more_and_not_far_less(self, expected: float, work: float, right: bool) -> None:
        assert is_right(expected, work) is right

    def test_clear_is_a_tenth_and_half_a_replica(self) -> None:
        assert not is_clear(1.5, 1.0)
        assert is_clear(1.6, 1.0)
        assert not is_clear(10.9, 10.0)
        assert is_clear(11.1, 10.0)

    def test_silent_until_it_was_right_for_long_enough(self) -> None:
        assert not NO_RECORD.proven(LEAD_S)
        assert not after(1.0, lambda _: 4.0).proven(LEAD_S)
        assert after(1.5, lambda _: 4.0).proven(LEAD_S)

    def test_a_long_cold_start_takes_longer(self) -> None:
        record = after(1.5, lambda _: 4.0)
        assert record.proven(PROVEN_S / 4)
        assert not record.proven(PROVEN_S / 3)
        assert after(6.0, lambda _: 4.0).proven(HOUR_S)

    @pytest.mark.parametrize(("wrong", "proven"), [(0.2, True), (0.4, False)])
    def test_right_often_enough(self, wrong: float, proven: bool) -> None:
        record = after(6.0, lambda now_s: 9.0 if now_s % 600 < 600 * wrong else 3.0)
        assert record.proven(LEAD_S) is proven

    def test_nothing_recorded_proves_nothing(self) -> None:
        assert after(6.0, lambda _: None) == replace(NO_RECORD, seen_s=6 * HOUR_S - TICK_S)

    def test_what_was_long_ago_proves_nothing(self) -> None:
        record = after(2.0, lambda _: 4.0).compared(4.0, 4.0, 2 * HOUR_S + 2 * MEMORY_S, STEP_S)
        assert not record.proven(LEAD_S)

    def test_a_gap_counts_as_one_step(self) -> None:
        assert NO_RECORD.compared(4.0, 4.0, 0.0, STEP_S).compared_s == STEP_S


class TestLevels:
    def levels(self, today: float, then: float, minutes: float = 60.0) -> Levels:
        found = Levels()
        for _ in range(round(minutes * 4)):
            found = found.seen(today, then, TICK_S, TICK_S)
        return found

    @pytest.mark.parametrize(
        ("today", "then", "scale"),
        [
            (4, 4, 1),
            (3.3, 4, 1),
            (4.9, 4, 1),
            (3, 4, 0.75),
            (6, 4, 1.5),
            (1, 4, 0.5),
            (40, 4, 2),
            (4, 0, 1),
            (0, 4, 0.5),
        ],
    )
    def test_today_has_clearly_more_or_less_or_the_same(self, today: float, then: float, scale: float) -> None:
        assert self.levels(today, then).scale == pytest.approx(scale)

    def test_a_crowd_is_as_much_larger_as_the_hour_before_it(self) -> None:
        assert self.levels(6, 4).scaled(16) == pytest.approx(24)
        assert self.levels(2, 4).scaled(16) == pytest.approx(8)
        assert self.levels(4, 4).scaled(16) == 16

    def test_a_quiet_hour_tells_little_of_a_busy_one(self) -> None:
        assert self.levels(0.3, 0.1).scaled(16) == pytest.approx(16.5)
        assert self.levels(0.3, 0.1).scaled(0.1) == pytest.approx(0.2)

    def test_nothing_known_scales_nothing(self) -> None:
        assert Levels().scaled(16) == 16
        assert self.levels(6, 4).scaled(0) == 0
        assert Levels().seen(6, None, TICK_S, TICK_S) == Levels()

    def test_the_last_hour_counts_and_a_crowd_a_little_early_does_not(self) -> None:
        levels = self.levels(4, 4, minutes=600)
        for _ in range(4 * 4):
            levels = levels.seen(16, 4, TICK_S, TICK_S)
        assert levels.scale == 1
        for _ in range(4 * 240):
            levels = levels.seen(8, 4, TICK_S, TICK_S)
        assert levels.scale == pytest.approx(2, rel=0.02)

    def test_a_day_of_half_the_size_is_believed_as_such(self) -> None:
        assert after(2.0, lambda _: 8.0, lambda _: 4.0).proven(LEAD_S)
        assert not after(2.0, lambda _: 12.0, lambda _: 4.0).proven(LEAD_S)


class TestMute:
    def raised(self, record: Record = NO_RECORD, now_s: float = 0.0) -> Record:
        return record.raising(16.0, 4.0, 300.0, now_s, STEP_S)

    def test_a_rise_that_came_is_right(self) -> None:
        record = replace(self.raised(), strikes=3).compared(16.0, 10.0, 200.0, STEP_S)
        assert (record.raised, record.strikes, record.muted(200.0)) == (None, 0, False)

    def test_a_rise_that_did_not_come_mutes_once_it_is_due(self) -> None:
        due_s = 300.0 + PATIENCE_STEPS * STEP_S
        record = self.raised().compared(16.0, 9.9, due_s - 1, STEP_S)
        assert record.raised is not None
        assert not record.muted(due_s - 1)
        record = record.compared(16.0, 4.0, due_s, STEP_S)
        assert (record.raised, record.strikes) == (None, 1)
        assert record.muted(due_s + MUTE_S - 1)
        assert not record.muted(due_s + MUTE_S)

    def test_each_time_in_vain_mutes_for_longer_up_to_a_week(self) -> None:
        record, now_s, spans_s = NO_RECORD, 0.0, []
        for _ in range(12):
            record = self.raised(record, now_s).compared(16.0, 4.0, now_s + 600, STEP_S)
            spans_s.append(record.muted_until_s - now_s - 600)
            now_s = record.muted_until_s
        assert spans_s[:4] == [MUTE_S, 2 * MUTE_S, 4 * MUTE_S, 8 * MUTE_S]
        assert spans_s[-1] == LONGEST_MUTE_S

    def test_a_raise_under_way_is_judged_before_the_next(self) -> None:
        record = self.raised()
        assert record.raising(30.0, 5.0, 300.0, 60.0, STEP_S) is record


def test_a_flash_that_came_once_is_ordered_for_once_more() -> None:
    """Every day, the day before at the same time; on the first day work rises, and never again."""
    day_s, flash_s = 86_400.0, 43_200.0

    def work(now_s: float) -> float:
        return 16.0 if 0 <= now_s - flash_s < 1200 else 4.0

    record, asked = NO_RECORD, []
    for tick in range(round(3 * day_s / 60)):
        now_s = day_s + 60.0 * tick
        then = tuple(Step(STEP_S * number, work(now_s - day_s + STEP_S * (number - 0.5))) for number in range(8))
        record = record.compared(present(then, STEP_S), work(now_s), now_s, STEP_S)
        target = ahead(then, 390.0, STEP_S)
        if target is not None and is_clear(target, work(now_s)) and record.proven(LEAD_S) and not record.muted(now_s):
            asked.append(now_s)
            record = record.raising(target, work(now_s), rise_s(then, 4.0, target), now_s, STEP_S)
    assert asked
    assert day_s + flash_s - 600 < asked[0]
    assert asked[-1] < day_s + flash_s + 600


@given(
    st.lists(
        st.tuples(st.none() | st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 1e5), st.none() | st.floats(0, 1e3)),
        max_size=40,
    )
)
@example([(0.0, 0.0, 0.0, None), (5e-324, 0.0, 0.0, None)])
def test_whatever_is_seen_the_record_stays_sound(seen: list[tuple[float | None, float, float, float | None]]) -> None:
    record, now_s = NO_RECORD, 0.0
    for expected, work, gap_s, target in seen:
        now_s += gap_s
        record = record.compared(expected, work, now_s, STEP_S)
        if target is not None:
            record = record.raising(target, work, 300.0, now_s, STEP_S)
        assert 0 <= record.right_s <= record.compared_s + 1e-9
        assert record.compared_s <= MEMORY_S + STEP_S
        assert 0.5 <= record.levels.scale <= 2
        assert 0 <= record.levels.scaled(16.0) <= 32 + 1e-9
        assert record.muted_until_s <= now_s + LONGEST_MUTE_S
        assert record.raised is None or isinstance(record.raised, Raise)
        assert not math.isnan(record.compared_s)
    assert forecast.ahead((), 1.0, STEP_S) is None
