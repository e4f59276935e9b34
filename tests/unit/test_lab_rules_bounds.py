"""The rules in hindsight: static counts and foresight."""

from __future__ import annotations

import numpy as np
import pytest

from bandkeeper.lab.requests import Requests
from bandkeeper.lab.rules.foresight import Foresight, smoothed
from bandkeeper.lab.rules.offered import work_by_second
from bandkeeper.lab.rules.static import Static
from tests.unit.lab_views import DYNAMIC, SERVER, a_setting, a_view, steady

PER_REPLICA = SERVER.sustainable_per_s(1000.0, 200.0)


def _step(low: float, high: float, at_s: int, until_s: int) -> Requests:
    """Work of `low` replicas, and of `high` from `at_s` on."""
    first, second = (
        steady(per_s=low * PER_REPLICA, duration_s=at_s),
        steady(per_s=high * PER_REPLICA, duration_s=until_s - at_s),
    )
    return Requests(
        arrival_s=np.concatenate((first.arrival_s, at_s + second.arrival_s)),
        prompt_tokens=np.concatenate((first.prompt_tokens, second.prompt_tokens)),
        output_tokens=np.concatenate((first.output_tokens, second.output_tokens)),
        duration_s=until_s,
        name="step",
    )


def test_work_is_requests_over_what_a_replica_sustains() -> None:
    requests = steady(per_s=3.0 * PER_REPLICA, duration_s=600)

    assert work_by_second(SERVER, requests).mean() == pytest.approx(3.0, rel=0.01)


def test_work_of_a_dynamic_server_does_not_depend_on_lengths() -> None:
    requests = steady(per_s=2.0 * DYNAMIC.sustainable_per_s(), duration_s=60)

    assert work_by_second(DYNAMIC, requests).mean() == pytest.approx(2.0, rel=0.01)


def test_static_stays() -> None:
    assert Static(a_setting(), replicas=7).decide(a_view(ready=3)).replicas == 7


def test_static_counts_lie_around_the_busiest_minute() -> None:
    choices = Static.choices(a_setting(requests=_step(2.2, 4.9, 600, 1200)))

    assert [choice.parameters["replicas"] for choice in choices] == [3, 4, 5, 6, 7, 8, 9]


def test_many_static_counts_are_thinned() -> None:
    counts = [
        choice.parameters["replicas"] for choice in Static.choices(a_setting(requests=_step(1.0, 50.0, 600, 1200)))
    ]

    assert len(counts) <= 16
    assert counts[-1] == 64


def test_foresight_orders_a_cold_start_ahead_and_lets_go_when_the_need_is_over() -> None:
    rule = Foresight(a_setting(requests=_step(2.0, 6.0, 600, 1200)), margin=1.0, window_s=30.0)
    lead_s = 90 * np.exp(1.65 * 0.1) + 15

    assert rule.decide(a_view(600 - lead_s - 30)).replicas == 3  # 2.0, and what single arrivals add
    assert rule.decide(a_view(600.0)).replicas >= 6
    assert rule.decide(a_view(630.0)).replicas == 7


def test_smoothing_looks_back_over_its_window() -> None:
    assert smoothed(np.array([4.0, 0.0, 0.0, 8.0]), 2.0).tolist() == [4.0, 2.0, 0.0, 4.0]
