"""Utilisation to load and back, and the slope learned from what is seen."""

from __future__ import annotations

import pytest

from bandkeeper.model.curve import MOST_STEEPNESS, NO_FIT, PRIOR_STEEPNESS, LoadCurve, ServiceFit


@pytest.mark.parametrize(
    ("steepness", "utilization", "load"),
    [(0.0, 0.5, 0.5), (1.0, 0.5, 2 / 3), (1.3, 1.0, 1.0), (1.3, 1.7, 1.7), (3.0, 0.0, 0.0)],
)
def test_half_a_batch_is_more_than_half_the_work(steepness: float, utilization: float, load: float) -> None:
    curve = LoadCurve(steepness)
    assert curve.load(utilization) == pytest.approx(load)
    assert curve.utilization(load) == pytest.approx(utilization)


def test_stretch_is_the_ratio_of_service_times() -> None:
    curve = LoadCurve(1.3)
    assert curve.stretch(1.0, 0.0) == pytest.approx(2.3)
    assert curve.stretch(2.0, 1.0) == 1.0


def test_utilization_at_a_stretch() -> None:
    curve = LoadCurve(1.3)
    assert curve.utilization_at(curve.stretch(0.4, 0.8), 0.8) == pytest.approx(0.4)
    assert curve.utilization_at(0.1, 0.5) < 0  # no batch is that fast


@pytest.mark.parametrize(("stretch", "expected"), [(0.9, 0.0), (1.1, 1.0)])
def test_a_flat_server_is_never_faster_with_less(stretch: float, expected: float) -> None:
    assert LoadCurve(0.0).utilization_at(stretch, 0.5) == expected


def seen(pairs: list[tuple[float, float]]) -> ServiceFit:
    fit = NO_FIT
    for v, service_s in pairs:
        fit = fit.seen(v, service_s)
    return fit


def test_nothing_seen_is_the_prior() -> None:
    assert NO_FIT.curve().steepness == PRIOR_STEEPNESS


def test_one_level_only_leaves_the_prior() -> None:
    assert seen([(0.5, 4.0)] * 200).curve().steepness == pytest.approx(PRIOR_STEEPNESS)


@pytest.mark.parametrize("steepness", [0.3, 1.3, 3.0])
def test_levels_teach_the_slope(steepness: float) -> None:
    levels = [0.2, 0.4, 0.6, 0.8] * 30
    fit = seen([(v, 3.0 * (1 + steepness * v)) for v in levels])
    assert fit.curve().steepness == pytest.approx(steepness, rel=0.15)


def test_steepness_stays_physical() -> None:
    assert seen([(v, 4.0 - 3 * v) for v in [0.1, 0.9] * 50]).curve().steepness == 0.0
    assert seen([(v, 10 * v) for v in [0.1, 0.9] * 50]).curve().steepness == MOST_STEEPNESS
