"""Properties of the models: bounds that contain the truth, and memories that forget nothing too soon."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.snapshot import Distribution
from bandkeeper.decide.policy import default_candidates
from bandkeeper.model.curve import MOST_STEEPNESS, NO_FIT, LoadCurve
from bandkeeper.model.histogram import attainment, is_possible, percentile
from bandkeeper.model.peaks import NO_PEAKS

# Milliseconds: a threshold that differs from an edge by a rounding of 1e-9 is that edge.
seconds = st.integers(1, 100_000).map(lambda milliseconds: milliseconds / 1000)
edge_sets = st.sets(seconds, min_size=1, max_size=12).map(lambda edges: (*sorted(edges), math.inf))
samples = st.lists(seconds, min_size=1, max_size=200)


def histogram_of(observed: list[float], edges: tuple[float, ...]) -> Distribution:
    counts = tuple(float(sum(value <= edge for value in observed)) for edge in edges)
    return Distribution(window_s=60, edges=edges, counts=counts)


@given(samples, edge_sets, st.integers(1, 99))
def test_the_percentile_lies_in_its_bounds(observed: list[float], edges: tuple[float, ...], percent: int) -> None:
    distribution = histogram_of(observed, edges)
    assert is_possible(distribution)
    estimate = percentile(distribution, percent)
    assert estimate is not None
    true = sorted(observed)[max(0, math.ceil(len(observed) * percent / 100 - 1e-9) - 1)]
    assert estimate.lower <= true <= estimate.upper
    assert estimate.lower <= estimate.value <= estimate.upper


@given(samples, edge_sets, seconds)
def test_the_attainment_lies_in_its_bounds(observed: list[float], edges: tuple[float, ...], threshold_s: float) -> None:
    shares = attainment(histogram_of(observed, edges), threshold_s)
    assert shares is not None
    true = sum(value <= threshold_s for value in observed) / len(observed)
    assert shares[0] - 1e-6 <= true <= shares[1] + 1e-6


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1e3, 1e3)), min_size=1, max_size=80), st.floats(0, 500))
def test_a_peak_is_remembered_for_its_window(steps: list[tuple[float, float]], window_s: float) -> None:
    peaks, now_s, seen = NO_PEAKS, 0.0, []
    for elapsed_s, value in steps:
        now_s += elapsed_s
        seen.append((now_s, value))
        peaks = peaks.push(value, now_s, window_s)
        highest = peaks.highest()
        assert highest is not None
        assert highest >= max(value for at_s, value in seen if at_s >= now_s - window_s)
        slack_s = window_s / 60 + 1e-6
        assert highest <= max(value for at_s, value in seen if at_s >= now_s - window_s - slack_s)
        assert len(peaks.entries) <= 62


@given(st.floats(0, MOST_STEEPNESS), st.floats(0, 5), st.floats(0, 5))
def test_load_rises_with_utilisation_and_back(steepness: float, one: float, other: float) -> None:
    curve = LoadCurve(steepness)
    low, high = sorted((one, other))
    assert curve.load(low) <= curve.load(high) + 1e-12
    assert math.isclose(curve.utilization(curve.load(one)), one, rel_tol=1e-9, abs_tol=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1e-3, 1e3)), max_size=60))
def test_the_fitted_steepness_is_physical(pairs: list[tuple[float, float]]) -> None:
    fit = NO_FIT
    for v, service_s in pairs:
        fit = fit.seen(v, service_s)
    assert 0 <= fit.curve().steepness <= MOST_STEEPNESS


@given(st.integers(1, 4096), st.integers(0, 4096))
def test_candidates_lie_in_their_bounds(least: int, more: int) -> None:
    candidates = default_candidates(least, least + more)
    assert candidates[0] == least
    assert candidates[-1] == least + more
    assert list(candidates) == sorted(set(candidates))
