"""The work to be ready for: what it leads, what it holds, what it forgets."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bandkeeper.model.outlook import NO_OUTLOOK, Outlook

LEAD_S, MEMORY_S, TICK_S = 90.0, 3600.0, 15.0


@dataclass(frozen=True)
class Look:
    at_s: float
    work: float
    outlook: Outlook

    @property
    def held(self) -> float:
        return self.outlook.held()


def driven(
    work: Callable[[float], float],
    *,
    span_s: float,
    noise: float = 0.0,
    lead_s: float = LEAD_S,
    memory_s: float = MEMORY_S,
    tick_s: float = TICK_S,
) -> list[Look]:
    """`work` by the time, looked at every tick; `noise` is the share of it that one value scatters by."""
    outlook, seen = NO_OUTLOOK, []
    for tick in range(round(span_s / tick_s) + 1):
        now_s = tick * tick_s
        value = work(now_s)
        outlook = outlook.seen(value, noise * value, now_s, lead_s=lead_s, memory_s=memory_s)
        seen.append(Look(now_s, value, outlook))
    return seen


def at(seen: list[Look], now_s: float) -> Look:
    return next(look for look in seen if look.at_s >= now_s)


def wave(period_s: float) -> Callable[[float], float]:
    return lambda now_s: 10 - 8 * math.cos(2 * math.pi * now_s / period_s)


def test_nothing_is_held_before_anything_was_seen() -> None:
    assert NO_OUTLOOK.held() == 0
    assert driven(lambda _: 3.0, span_s=0)[0].held == 3.0


class TestRamp:
    @pytest.mark.parametrize("per_s", [0.002, 0.01, 0.1])
    @pytest.mark.parametrize("lead_s", [30.0, 90.0, 240.0])
    def test_is_led_by_a_lead_time(self, per_s: float, lead_s: float) -> None:
        seen = driven(lambda now_s: 3 + per_s * max(0.0, now_s - 600), span_s=3000, lead_s=lead_s)
        for look in seen:
            if look.at_s >= 600 + lead_s + TICK_S:
                assert look.held == pytest.approx(look.work + per_s * lead_s, rel=0.02)

    def test_is_followed_at_once_and_led_as_soon_as_it_is_seen(self) -> None:
        seen = driven(lambda now_s: 3 + 0.01 * max(0.0, now_s - 600), span_s=1200)
        assert at(seen, 600).held == pytest.approx(3.0)
        assert at(seen, 615).held == pytest.approx(3.3)  # by as much again as it passed
        assert at(seen, 660).held == pytest.approx(3.6 + 0.6)

    def test_that_ends_is_not_led_for_ever(self) -> None:
        seen = driven(lambda now_s: 3 + 0.01 * min(1000.0, now_s), span_s=3000)
        assert at(seen, 990).held > 13.5
        assert at(seen, 1100).held == pytest.approx(13.0)


class TestWave:
    @pytest.mark.parametrize("period_s", [60.0, 120.0, 180.0])
    def test_a_short_one_is_held_at_its_peak(self, period_s: float) -> None:
        """It comes back from its trough to its peak within one lead time."""
        seen = driven(wave(period_s), span_s=1800, tick_s=5.0)
        assert min(look.held for look in seen if look.at_s > 600) == pytest.approx(18.0, rel=0.01)

    @pytest.mark.parametrize(("period_s", "most"), [(2400.0, 1.2), (9600.0, 1.05), (28800.0, 1.01)])
    def test_a_long_one_is_followed(self, period_s: float, most: float) -> None:
        seen = driven(wave(period_s), span_s=3 * period_s)
        late = [look for look in seen if look.at_s > 2 * period_s]
        assert sum(look.held for look in late) < most * sum(look.work for look in late)

    @pytest.mark.parametrize("period_s", [60.0, 180.0, 300.0, 1200.0, 2400.0, 3000.0])
    @pytest.mark.parametrize("lead_s", [30.0, 90.0, 240.0])
    def test_what_is_held_is_what_a_new_pod_will_find(self, period_s: float, lead_s: float) -> None:
        """From the second wave inside the memory on: never less than the work of a lead time later."""
        seen = driven(wave(period_s), span_s=4 * period_s, lead_s=lead_s, memory_s=7200.0, tick_s=5.0)
        slack = 2 * 8 * math.pi * 2 / period_s * 5.0  # what the work moves in two ticks
        for look in seen:
            if period_s * 1.5 < look.at_s <= 4 * period_s - lead_s:
                assert look.held >= at(seen, look.at_s + lead_s).work - slack

    def test_never_more_than_its_peak_once_it_is_known(self) -> None:
        for period_s in (60.0, 300.0, 1200.0):
            seen = driven(wave(period_s), span_s=3 * period_s + 2 * LEAD_S)
            assert max(look.held for look in seen if look.at_s > 2 * period_s + LEAD_S) <= 18.0 + 1e-9


class TestFlash:
    def seen(self) -> list[Look]:
        return driven(lambda now_s: 16.0 if 600 <= now_s < 660 else 4.0, span_s=6000)

    @pytest.mark.parametrize(
        ("now_s", "held"),
        [
            (585, 4.0),
            (600, 28.0),  # it passes its peak by 12, and may by as much again
            (660, 16.0),
            (2400, 16.0),
            (600 + 45 + 3600, 16.0),
            (600 + 45 + 3600 + 75, 4.0),  # a slot of a sixtieth later at most
        ],
    )
    def test_is_held_for_the_memory(self, now_s: float, held: float) -> None:
        assert at(self.seen(), now_s).held == pytest.approx(held)

    def test_a_second_one_finds_the_first(self) -> None:
        seen = driven(lambda now_s: 16.0 if now_s % 1800 >= 1740 else 4.0, span_s=7200)
        assert all(look.held == 16.0 for look in seen if look.at_s >= 1860)

    def test_a_slow_rise_to_the_same_peak_is_none(self) -> None:
        """Work that never rose fast need not be held far above what it is."""
        seen = driven(lambda now_s: 4 + 12 * min(1.0, now_s / 1800) if now_s < 2400 else 4.0, span_s=3000)
        assert at(seen, 2700).held == pytest.approx(4 + 12 * 90 / 1800, rel=0.01)


class TestNoise:
    @pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
    def test_on_a_flat_load_holds_a_few_of_its_widths(self, noise: float) -> None:
        chance = random.Random(0)
        seen = driven(lambda _: 10 * (1 + chance.gauss(0, noise)), span_s=30_000, noise=noise)
        late = [look.held / 10 for look in seen if look.at_s > MEMORY_S]
        assert max(late) <= 1 + 4.5 * noise
        assert sum(late) / len(late) <= 1 + 2.5 * noise

    def test_that_is_not_declared_is_held_as_rises(self) -> None:
        chance = random.Random(0)
        values = [10 * (1 + chance.gauss(0, 0.05)) for _ in range(1000)]
        blind = driven(lambda now_s: values[round(now_s / TICK_S)], span_s=14_900)
        told = driven(lambda now_s: values[round(now_s / TICK_S)], span_s=14_900, noise=0.05)
        assert sum(look.held for look in told) < 0.97 * sum(look.held for look in blind)

    def test_less_than_the_noise_of_a_flat_load_is_held_as_it_is(self) -> None:
        seen = driven(lambda now_s: 10 + 0.1 * math.sin(now_s), span_s=7200, noise=0.02)
        assert max(look.held - look.work for look in seen if look.at_s > 2 * LEAD_S) <= 0.11


def test_no_lead_time_holds_what_is_there() -> None:
    seen = driven(wave(1200.0), span_s=2400, lead_s=0.0)
    assert all(look.held == look.work for look in seen)


def test_a_lead_time_that_grows_is_used_from_then_on() -> None:
    outlook = NO_OUTLOOK
    for tick in range(400):
        lead_s = 30.0 if tick < 200 else 240.0
        outlook = outlook.seen(3 + 0.15 * tick, 0.0, 15.0 * tick, lead_s=lead_s, memory_s=MEMORY_S)
    assert outlook.held() == pytest.approx(3 + 0.15 * 399 + 0.01 * 240, rel=0.02)


def test_in_another_unit_all_is_the_same() -> None:
    seen, outlook = driven(wave(1200.0), span_s=2400, noise=0.01), NO_OUTLOOK
    for look in seen:
        scaled = look.outlook.scaled(2.5)
        assert scaled.held() == pytest.approx(2.5 * look.held)
        outlook = outlook.seen(2.5 * look.work, 0.025 * look.work, look.at_s, lead_s=LEAD_S, memory_s=MEMORY_S)
        assert outlook.held() == pytest.approx(scaled.held())
    more = seen[-1].outlook.scaled(2.5).seen(30.0, 0.0, 2415.0, lead_s=LEAD_S, memory_s=MEMORY_S)
    same = outlook.seen(30.0, 0.0, 2415.0, lead_s=LEAD_S, memory_s=MEMORY_S)
    assert more.held() == pytest.approx(same.held())


@pytest.mark.parametrize(
    "work", [wave(1200.0), lambda now_s: 1e6 - now_s, lambda now_s: now_s], ids=["wave", "falling", "rising"]
)
def test_memory_is_bounded_over_a_day_of_seconds(work: Callable[[float], float]) -> None:
    outlook = NO_OUTLOOK
    for now_s in range(86_400):
        outlook = outlook.seen(work(now_s), 0.0, float(now_s), lead_s=LEAD_S, memory_s=7200.0)
        if now_s % 600 == 0:
            for memory in (outlook.peaks, outlook.rises, outlook.lows):
                assert len(memory.entries) <= 62
            assert len(outlook.marks) <= 14
