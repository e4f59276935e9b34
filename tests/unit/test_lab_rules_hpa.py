"""The HPA's rule against its documentation; tests/hpa has it against the real controller."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.hpa import (
    Behavior,
    Controller,
    Direction,
    HPAOnGPU,
    HPAOnRunning,
    RatePolicy,
    from_pods,
    from_total,
)
from tests.unit.lab_views import a_setting, a_view


@pytest.mark.parametrize(
    ("values", "missing", "unready", "replicas", "wanted"),
    [
        pytest.param([12, 12], 0, 0, 2, 2, id="on target"),
        pytest.param([13.2, 13.2], 0, 0, 2, 2, id="inside the tolerance"),
        pytest.param([13.4, 13.4], 0, 0, 2, 3, id="above the tolerance"),
        pytest.param([10.9, 10.9], 0, 0, 2, 2, id="inside the tolerance, below"),
        pytest.param([10, 10, 10, 10, 10, 10], 0, 0, 6, 5, id="down, rounded up"),
        pytest.param([30, 30], 1, 0, 3, 5, id="up: a missing pod counts as nothing"),
        pytest.param([30, 30], 3, 0, 5, 5, id="up: with the missing ones it is on target"),
        pytest.param([15, 15], 2, 0, 4, 4, id="up turns into down: hold"),
        pytest.param([3, 3], 2, 0, 4, 3, id="down: a missing pod counts as on target"),
        pytest.param([30, 30], 0, 2, 4, 5, id="up: an unready pod counts as nothing"),
        pytest.param([6, 6], 0, 2, 4, 1, id="down: an unready pod is left out"),
        pytest.param([], 0, 2, 2, None, id="nobody told"),
    ],
)
def test_proposal_from_pods(values: list[float], missing: int, unready: int, replicas: int, wanted: int | None) -> None:
    got = from_pods(
        {f"p{n}": value for n, value in enumerate(values)},
        12.0,
        replicas,
        missing=frozenset(f"m{n}" for n in range(missing)),
        unready=frozenset(f"u{n}" for n in range(unready)),
    )

    assert got == wanted


@pytest.mark.parametrize(
    ("value", "replicas", "wanted"),
    [(20, 4, 4), (21.9, 4, 4), (22.1, 4, 5), (18.1, 4, 4), (14, 4, 3), (0, 4, 0)],
)
def test_proposal_from_an_external_total(value: float, replicas: int, wanted: int) -> None:
    assert from_total(value, 5.0, replicas) == wanted


def test_up_is_limited_to_the_larger_of_double_and_four_more() -> None:
    controller = Controller(most=100)
    replicas, steps = 1, []
    for tick in range(5):
        replicas = controller.step(90, replicas, 15.0 * tick)
        steps.append(replicas)

    assert steps == [5, 10, 20, 40, 80]


def test_within_one_period_the_limit_counts_from_its_beginning() -> None:
    controller = Controller(most=100)

    assert controller.step(90, 10, 0.0) == 20
    assert controller.step(90, 20, 5.0) == 20
    assert controller.step(90, 20, 15.0) == 40


def test_down_waits_until_no_proposal_of_the_last_five_minutes_was_higher() -> None:
    controller = Controller(most=100)
    replicas, seen = 10, {}
    for tick in range(30):
        replicas = controller.step(10 if tick == 4 else 3, replicas, 15.0 * tick)
        seen[15.0 * tick] = replicas

    assert seen[60.0 + 285.0] == 10
    assert seen[60.0 + 300.0] == 3


def test_the_size_at_the_start_counts_as_a_proposal() -> None:
    controller = Controller(most=100)

    assert controller.step(2, 8, 0.0) == 8
    assert controller.step(2, 8, 299.0) == 8
    assert controller.step(2, 8, 300.0) == 2


def test_an_up_window_takes_the_lowest_proposal() -> None:
    behavior = Behavior(up=Direction(window_s=30.0, policies=(RatePolicy(100, True, 15.0),)))
    controller = Controller(most=100, behavior=behavior)

    assert [controller.step(proposal, 4, at_s) for at_s, proposal in [(0, 4), (15, 8), (30, 6), (45, 8)]] == [
        4,
        4,
        6,
        6,
    ]


def test_a_down_policy_lets_go_at_its_pace() -> None:
    behavior = Behavior(down=Direction(window_s=0.0, policies=(RatePolicy(10, True, 60.0), RatePolicy(2, False, 60.0))))
    controller = Controller(most=100, behavior=behavior)
    replicas, seen = 40, []
    for tick in range(9):
        replicas = controller.step(1, replicas, 15.0 * tick)
        seen.append(replicas)

    assert seen == [36, 36, 36, 36, 32, 32, 32, 32, 28]


def test_outside_the_bounds_they_come_first() -> None:
    controller = Controller(most=8)

    assert controller.step(12, 12, 0.0) == 8
    assert controller.step(None, 1, 15.0, least=3) == 3


def test_on_gpu_utilisation_one_request_in_flight_looks_like_a_full_server() -> None:
    rule = HPAOnGPU(a_setting(), target=0.8)
    replicas = 2
    for tick in range(20):
        view = a_view(15.0 * tick, ready=replicas, gauges={Signal.GPU_UTILIZATION: [1.0] * replicas})
        replicas = rule.decide(view).replicas

    assert replicas == 64


def test_pods_on_their_way_have_no_metrics_and_damp_the_way_up() -> None:
    rule = HPAOnRunning(a_setting(), target=12)
    view = a_view(ready=4, pending=2, gauges={Signal.REQUESTS_RUNNING: [18.0] * 4})

    assert rule.decide(view).replicas == 6


def test_without_metrics_it_holds() -> None:
    assert HPAOnRunning(a_setting(), target=12).decide(a_view(ready=4)).replicas == 4


def test_targets_are_swept_over_the_batch() -> None:
    targets = [float(choice.parameters["target"]) for choice in HPAOnRunning.choices(a_setting())]

    assert 12 in targets
    assert 24 in targets
    assert all(low < high for low, high in pairwise(targets))
    assert [choice.label for choice in HPAOnGPU.choices(a_setting()) if choice.default] == ["80 %"]
