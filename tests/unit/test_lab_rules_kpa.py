"""Knative's rule: windows, panic, rates, and what it does without data."""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.kpa import KPA
from bandkeeper.lab.rules.rule import View
from tests.unit.lab_views import a_setting, a_view


def _view(now_s: float, ready: int, in_flight: float, replicas: int | None = None, waiting: float = 0.0) -> View:
    gauges = {Signal.REQUESTS_RUNNING: [in_flight] * ready, Signal.REQUESTS_WAITING: [waiting] * ready}
    return a_view(now_s, ready=ready, gauges=gauges, replicas=replicas)


def _settled(rule: KPA, ready: int, in_flight: float, until_s: float, since_s: float = 0.0) -> int:
    wanted, now_s = ready, since_s
    while now_s <= until_s:
        wanted = rule.decide(_view(now_s, ready, in_flight)).replicas
        now_s += 2.0
    return wanted


def test_stable_mode_keeps_seventy_percent_of_the_target_in_flight() -> None:
    # 4 pods x 7 in flight over 10 x 0.7 each: four pods; 8.5 in flight each: ceil(34 / 7).
    assert _settled(KPA(a_setting(), target=10), 4, 7.0, 130.0) == 4
    assert _settled(KPA(a_setting(), target=10), 4, 8.5, 130.0) == 5


def test_waiting_requests_count_as_in_flight() -> None:
    rule = KPA(a_setting(), target=10)

    assert rule.decide(_view(0.0, 1, 7.0, waiting=4.0)).replicas == 2


def test_it_starts_in_panic_and_so_does_not_shrink_for_a_stable_window() -> None:
    rule = KPA(a_setting(), target=10)

    assert _settled(rule, 4, 1.0, 60.0) == 4
    assert _settled(rule, 4, 1.0, 64.0, since_s=62.0) == 2


def test_down_at_most_by_half() -> None:
    assert _settled(KPA(a_setting(), target=100), 9, 1.0, 130.0) == 4


def test_twice_the_capacity_over_the_panic_window_panics_at_once_and_never_shrinks_meanwhile() -> None:
    rule = KPA(a_setting(), target=10)
    _settled(rule, 2, 7.0, 120.0)

    rule.decide(_view(122.0, 2, 60.0))
    rule.decide(_view(124.0, 2, 60.0))
    peak = rule.decide(_view(126.0, 2, 60.0)).replicas
    later = [rule.decide(_view(128.0 + 2 * tick, 2, 0.0)).replicas for tick in range(36)]

    assert peak == 18  # 120 in flight over 7, the panic window alone
    assert later[28] == peak  # 62 s after the last panic tick
    assert later[-1] == 1


def test_without_data_it_holds() -> None:
    assert KPA(a_setting(), target=10).decide(a_view(ready=3)).replicas == 3


def test_it_scrapes_every_two_seconds_by_itself() -> None:
    assert (KPA.period_s, KPA.scrape_s) == (2.0, 2.0)
    assert [choice.label for choice in KPA.choices(a_setting()) if choice.default] == ["100"]
