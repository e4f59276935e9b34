"""The rate-only models: work times a margin, and the state-dependent queue."""

from __future__ import annotations

import math

import pytest

from bandkeeper.lab.rules.rate_model import QueueModel, RateModel, highest_rate
from tests.unit.lab_views import DYNAMIC, SERVER, a_setting, a_view, offering

PER_REPLICA = SERVER.sustainable_per_s(1000.0, 200.0)


@pytest.mark.parametrize(("work", "margin", "wanted"), [(3.5, 1.0, 4), (3.5, 1.4, 5), (0.1, 1.0, 1), (10.0, 1.25, 13)])
def test_replicas_are_work_times_margin(work: float, margin: float, wanted: int) -> None:
    rule = RateModel(a_setting(), margin=margin)

    assert rule.decide(offering(60.0, work * PER_REPLICA)).replicas == wanted


def test_a_growing_queue_is_offered_work_too() -> None:
    rule = RateModel(a_setting(), margin=1.0)
    rule.decide(offering(0.0, 2 * PER_REPLICA, ready=4, waiting=0.0))

    growth = 60 * PER_REPLICA / 4  # per pod: one replica's work a second, for a minute
    assert rule.decide(offering(60.0, 1.9 * PER_REPLICA, ready=4, waiting=growth)).replicas == 3


def test_what_leaves_with_a_pod_is_no_fall_of_demand() -> None:
    rule = RateModel(a_setting(), margin=1.0)
    rule.decide(offering(0.0, 3.9 * PER_REPLICA, ready=8, running=20.0))

    assert rule.decide(offering(60.0, 3.9 * PER_REPLICA, ready=4, running=20.0)).replicas == 4


def test_without_a_rate_they_hold() -> None:
    assert RateModel(a_setting(), margin=1.0).decide(a_view(ready=3)).replicas == 3
    assert QueueModel(a_setting(), margin=1.0).decide(a_view(ready=3)).replicas == 3


def test_a_dynamic_server_needs_no_lengths() -> None:
    view = offering(60.0, 3.5 * DYNAMIC.sustainable_per_s(), prompt=0.0, output=0.0)

    assert RateModel(a_setting(DYNAMIC), margin=1.0).decide(view).replicas == 4
    assert QueueModel.choices(a_setting(DYNAMIC)) == ()


def test_the_queue_model_carries_less_the_tighter_the_objectives() -> None:
    loose = highest_rate(SERVER, 1000.0, 200.0, math.inf, math.inf)
    by_itl = highest_rate(SERVER, 1000.0, 200.0, math.inf, 0.05)
    by_ttft = highest_rate(SERVER, 1000.0, 200.0, 0.15, math.inf)

    assert loose == pytest.approx(0.9 * PER_REPLICA, rel=0.02)
    assert by_itl < 0.9 * loose
    assert by_ttft < loose
    assert highest_rate(SERVER, 1000.0, 200.0, 0.15, 0.05) == pytest.approx(min(by_itl, by_ttft), rel=1e-3)


def test_an_m_m_1_server_has_the_closed_form() -> None:
    # One place in the batch, prompts that cost nothing: the mean wait is rho / (1 - rho) x service.
    single = SERVER.model_copy(update={"batch_max": 1, "gamma_ms": 0.0, "delta_ms_per_token": 0.0, "beta_ms": 0.0})
    service_s = 199 * 0.020
    rate = highest_rate(single, 1000.0, 200.0, 2.0 + 0.020, math.inf)

    rho = rate * service_s
    assert rho / (1 - rho) * service_s == pytest.approx(2.0, rel=0.01)


def test_the_queue_model_sizes_by_its_highest_rate() -> None:
    most = highest_rate(SERVER, 1000.0, 200.0, 1.0, 0.1)

    assert QueueModel(a_setting(), margin=1.0).desired(offering(60.0, 3.5 * most)) == 4
