"""What a histogram can tell and what it leaves open."""

from __future__ import annotations

import math

import pytest

from bandkeeper.api.snapshot import Distribution
from bandkeeper.model.histogram import attainment, is_possible, mean, percentile
from tests.unit.builders import a_distribution

ITL = a_distribution({0.025: 10, 0.05: 80, 0.075: 9, 0.1: 1}, mean_s=0.04)


@pytest.mark.parametrize(
    ("percent", "value", "lower", "upper"),
    [
        (5, 0.0125, 0.0, 0.025),
        (10, 0.025, 0.0, 0.025),
        (50, 0.0375, 0.025, 0.05),
        (90, 0.05, 0.025, 0.05),
        (95, 0.05 + 0.025 * 5 / 9, 0.05, 0.075),
        (99, 0.075, 0.05, 0.075),
    ],
)
def test_percentile_is_interpolated_inside_its_bucket(percent: int, value: float, lower: float, upper: float) -> None:
    estimate = percentile(ITL, percent)
    assert estimate is not None
    assert estimate.value == pytest.approx(value)
    assert (estimate.lower, estimate.upper) == (lower, upper)


def test_percentile_in_the_last_bucket_is_known_from_below_only() -> None:
    estimate = percentile(a_distribution({1.0: 1, math.inf: 9}), 95)
    assert estimate is not None
    assert (estimate.value, estimate.lower, estimate.upper) == (1.0, 1.0, math.inf)


@pytest.mark.parametrize(
    ("threshold_s", "expected"),
    [
        (0.05, (0.9, 0.9)),  # an edge: known exactly
        (0.06, (0.9, 0.99)),  # between two edges: bounds
        (0.01, (0.0, 0.1)),
        (0.1, (1.0, 1.0)),
        (5.0, (1.0, 1.0)),
    ],
)
def test_attainment_has_bounds(threshold_s: float, expected: tuple[float, float]) -> None:
    assert attainment(ITL, threshold_s) == pytest.approx(expected)


def test_nothing_observed_tells_nothing() -> None:
    idle = a_distribution({0.05: 0.0}, mean_s=0.0)
    assert percentile(idle, 95) is None
    assert attainment(idle, 0.05) is None
    assert mean(idle) is None


def test_mean_is_exact_and_needs_a_sum() -> None:
    assert mean(ITL) == pytest.approx(0.04)
    assert mean(a_distribution({0.05: 3})) is None


class TestReadyPercentiles:
    summary = Distribution(window_s=60, quantiles={50: 0.02, 90: 0.05, 99: 0.2})

    def test_one_that_is_given_is_exact(self) -> None:
        estimate = percentile(self.summary, 90)
        assert estimate is not None
        assert (estimate.value, estimate.lower, estimate.upper) == (0.05, 0.05, 0.05)

    def test_one_between_is_bounded_by_its_neighbours(self) -> None:
        estimate = percentile(self.summary, 95)
        assert estimate is not None
        assert (estimate.value, estimate.lower, estimate.upper) == (0.2, 0.05, 0.2)

    def test_one_above_all_is_unbounded(self) -> None:
        estimate = percentile(Distribution(window_s=60, quantiles={50: 0.02}), 95)
        assert estimate is not None
        assert (estimate.lower, estimate.upper) == (0.02, math.inf)

    @pytest.mark.parametrize(("threshold_s", "expected"), [(0.05, (0.9, 0.99)), (0.01, (0.0, 0.5)), (1.0, (0.99, 1.0))])
    def test_attainment_lies_between_them(self, threshold_s: float, expected: tuple[float, float]) -> None:
        assert attainment(self.summary, threshold_s) == pytest.approx(expected)

    def test_not_a_number_is_no_percentile(self) -> None:
        idle = Distribution(window_s=60, quantiles={95: math.nan})
        assert percentile(idle, 95) is None
        assert attainment(idle, 1.0) is None


@pytest.mark.parametrize(
    "impossible",
    [
        Distribution(window_s=60),
        Distribution(window_s=60, edges=(1.0, math.inf), counts=(1.0,)),
        Distribution(window_s=60, edges=(1.0, 2.0), counts=(1.0, 2.0)),
        Distribution(window_s=60, edges=(2.0, 1.0, math.inf), counts=(1.0, 2.0, 3.0)),
        Distribution(window_s=60, edges=(1.0, math.inf), counts=(5.0, 2.0)),
        Distribution(window_s=60, edges=(1.0, math.inf), counts=(-1.0, 2.0)),
        Distribution(window_s=60, edges=(1.0, math.inf), counts=(1.0, math.nan)),
    ],
    ids=["empty", "lengths", "no +Inf", "edges fall", "counts fall", "negative", "not a number"],
)
def test_impossible_histograms_are_refused(impossible: Distribution) -> None:
    assert not is_possible(impossible)


def test_rounding_is_forgiven() -> None:
    assert is_possible(Distribution(window_s=60, edges=(1.0, math.inf), counts=(100.00001, 100.0)))
