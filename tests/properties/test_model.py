"""Properties of the models: bounds that contain the truth, and memories that forget nothing too soon."""

from __future__ import annotations

import math

from hypothesis import assume, given
from hypothesis import strategies as st

from bandkeeper.api.snapshot import Distribution
from bandkeeper.decide.policy import default_candidates
from bandkeeper.model.curve import MOST_STEEPNESS, NO_FIT, LoadCurve
from bandkeeper.model.histogram import attainment, is_possible, percentile
from bandkeeper.model.misses import MissFit, Shape
from bandkeeper.model.outlook import NO_OUTLOOK
from bandkeeper.model.peaks import NO_PEAKS
from bandkeeper.model.steps import NO_STEPS

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


observations = st.tuples(
    st.floats(0.2, 1024), st.floats(0, 1e6), st.floats(1e-4, 60), st.sampled_from([1.0, 0.25, 1 / 60])
)


@given(st.lists(observations, min_size=1, max_size=60), st.floats(0, 100), st.floats(1, 1024))
def test_a_fitted_step_is_physical(seen: list[tuple[float, float, float, float]], prompts: float, batch: float) -> None:
    fit = NO_STEPS
    for one in seen:
        fit = fit.seen(*one)
        assert all(0 <= value < math.inf for value in fit.parameters)
        assert all(row[index] > 0 for index, row in enumerate(fit.information))
        estimate = fit.work_s(prompts, 1.0, batch)
        assert 0 <= estimate.value < math.inf
        assert 0 <= estimate.error < math.inf
        assert 0 <= fit.curve(batch, prompts).steepness < math.inf


@given(st.lists(observations, min_size=1, max_size=30), st.floats(0, 100), st.floats(0, 100), st.floats(1, 512))
def test_more_tokens_are_more_work_and_a_larger_batch_is_less(
    seen: list[tuple[float, float, float, float]], some: float, more: float, batch: float
) -> None:
    fit = NO_STEPS
    for one in seen:
        fit = fit.seen(*one)
    low, high = sorted((some, more))
    assert fit.work_s(low, 1.0, batch).value <= fit.work_s(high, 1.0, batch).value
    assert fit.work_s(low, 1.0, 2 * batch).value <= fit.work_s(low, 1.0, batch).value


@given(
    st.floats(0.005, 0.09),
    st.floats(3e-5, 5e-4),
    st.floats(1e-5, 2e-4),
    st.sampled_from([0.33, 1.0, 4.0]),
    st.lists(st.floats(1, 60), min_size=30, max_size=60),
)
def test_what_was_seen_without_noise_is_predicted(
    alpha: float, beta: float, delta: float, prompts: float, batches: list[float]
) -> None:
    """At the mean batch of what was seen last, whatever the server: within a few percent after half an hour."""
    fit = NO_STEPS
    for batch in batches:
        fit = fit.seen(batch, prompts * batch, alpha + (beta + delta * prompts) * batch, 1.0)
    batch = sum(batches[-12:]) / 12
    true = alpha / batch + beta + delta * prompts
    assert math.isclose(fit.work_s(prompts, 1.0, batch).value, true, rel_tol=0.1)


misses = st.lists(st.tuples(st.floats(0, 1.33), st.floats(0, 1), st.floats(0, 60)), max_size=60)
kinds = st.sampled_from([(1.7, 0.75), (3.0, 0.93)])
goals = st.integers(1, 99).map(lambda percentile: 0.9 * (1 - percentile / 100))


@given(goals, kinds, misses, st.floats(0, 1))
def test_a_margin_is_bounded(
    goal: float, kind: tuple[float, float], seen: list[tuple[float, float, float]], shape: float
) -> None:
    fit = MissFit(goal, *kind)
    for utilization, missed, span_s in seen:
        fit = fit.seen(utilization ** kind[0], missed, span_s)
    c0, c = fit.line()
    assert c0 >= 0
    assert c >= 0
    assert 0 <= fit.margin(shape) <= fit.margin(1.0) <= (40 if kind[0] < 2 else 10)


@given(goals, kinds, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 60)), max_size=40), st.floats(0, 0.5))
def test_more_misses_at_the_same_load_never_need_less(
    goal: float, kind: tuple[float, float], seen: list[tuple[float, float]], slope: float
) -> None:
    """As long as they grow with the load, and there is room below the goal for those that replicas can keep."""
    fewer = more = MissFit(goal, *kind)
    for load, span_s in seen:
        fewer, more = fewer.seen(load, slope * load, span_s), more.seen(load, 2 * slope * load, span_s)
    assume(more.line()[0] <= 0.75 * goal)
    assert fewer.margin(1.0) <= more.margin(1.0) * (1 + 1e-6)


amounts = st.floats(0, 100).map(lambda amount: round(amount, 6))  # no products beyond what a float can hold


@given(st.lists(st.tuples(amounts, amounts, st.integers(0, 600)), max_size=40))
def test_a_shape_is_a_share_or_little_more(seen: list[tuple[float, float, float]]) -> None:
    """Replicas that come late are asked for up to 1.3 times."""
    shape = Shape(1.7)
    for work, carried, span_s in seen:
        shape = shape.seen(work, carried, span_s)
        assert 0 <= shape.value <= 1.3**1.7 + 1e-9


works = st.lists(st.tuples(st.floats(0.1, 200), st.floats(0, 100)), max_size=60)
leads = st.sampled_from([0.0, 30.0, 90.0, 600.0])


@given(works, st.floats(0, 200), st.floats(0, 200), leads, st.sampled_from([0.0, 0.02, 0.2]))
def test_more_work_is_never_less_to_be_ready_for(
    past: list[tuple[float, float]], some: float, more: float, lead_s: float, noise: float
) -> None:
    """After the same past. What is held lies between the work of now and twice what was ever seen."""
    outlook, now_s = NO_OUTLOOK, 0.0
    for elapsed_s, work in past:
        now_s += elapsed_s
        outlook = outlook.seen(work, noise * work, now_s, lead_s=lead_s, memory_s=3600.0)
        highest = outlook.peaks.highest() or 0.0
        assert work <= outlook.held() <= 2 * highest + 1e-9
        assert len(outlook.marks) <= 14
    low, high = sorted((some, more))
    less, more_held = (
        outlook.seen(work, noise * work, now_s + 15, lead_s=lead_s, memory_s=3600.0).held() for work in (low, high)
    )
    assert less <= more_held + 1e-9


@given(works, leads, st.floats(0.1, 10))
def test_an_outlook_has_no_unit(past: list[tuple[float, float]], lead_s: float, factor: float) -> None:
    one = other = NO_OUTLOOK
    now_s = 0.0
    for elapsed_s, work in past:
        now_s += elapsed_s
        one = one.seen(work, 0.02 * work, now_s, lead_s=lead_s, memory_s=3600.0)
        other = other.seen(factor * work, 0.02 * factor * work, now_s, lead_s=lead_s, memory_s=3600.0)
        assert math.isclose(one.scaled(factor).held(), other.held(), rel_tol=1e-6, abs_tol=1e-6)
