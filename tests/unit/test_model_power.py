"""The power curve: physical whatever it is fed with, and right where the shape can be known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.model.power import MEMORY_S, NO_POWER, PowerCurve, PowerFit

BATCHES = st.floats(0.1, 1024)
WATTS = st.floats(1, 1400)


def fitted(*points: tuple[float, float]) -> PowerFit:
    fit = NO_POWER
    for batch, watts in points:
        fit = fit.seen(batch, watts, fit.curve(), 0.0)
    return fit


def saturating(batch: float) -> float:
    return 20 + 60 * batch / (batch + 12)


@given(st.lists(st.tuples(BATCHES, WATTS), max_size=12), BATCHES, BATCHES, WATTS)
def test_more_requests_never_draw_less_and_never_more_than_in_proportion(
    points: list[tuple[float, float]], one: float, other: float, watts: float
) -> None:
    curve, low, high = fitted(*points).curve(), min(one, other), max(one, other)
    more = curve.moved(high, low, watts)
    assert watts * (1 - 1e-9) <= more <= watts * high / low * (1 + 1e-9)


def test_a_saturating_curve_is_found_from_what_was_seen() -> None:
    curve = fitted(*[(batch, saturating(batch)) for batch in (4, 8, 16, 32, 64)]).curve()
    for batch in (6, 24, 48, 96):
        assert curve.watts(batch) == pytest.approx(saturating(batch), rel=0.05)


def test_one_batch_alone_tells_no_shape_and_the_prior_steps_in() -> None:
    curve = fitted((32, 60)).curve()
    assert curve.watts(32) == pytest.approx(60, rel=0.02)
    assert 30 < curve.watts(12) < 55


def test_the_present_level_counts_and_the_past_gives_the_shape() -> None:
    """Other prompts, or clocks that a person lowered: everything draws a fifth less."""
    curve = fitted(*[(batch, saturating(batch)) for batch in (4, 8, 16, 32, 64)]).curve()
    assert curve.moved(48, 16, 0.8 * saturating(16)) == pytest.approx(0.8 * saturating(48), rel=0.05)


def test_another_level_is_no_other_shape() -> None:
    fit = fitted(*[(batch, saturating(batch)) for batch in (4, 8, 16, 32, 64)])
    for _ in range(20):
        fit = fit.seen(16, 1.3 * saturating(16), fit.curve(), 60.0)
    assert fit.curve().watts(64) == pytest.approx(1.3 * saturating(64), rel=0.05)


def test_an_hour_later_it_is_forgotten() -> None:
    fit = fitted((4, 30), (64, 90))
    assert fit.spread == 16
    assert [point.batch for point in fit.seen(32, 50, fit.curve(), MEMORY_S + 1).points] == [32]


def test_it_stays_small() -> None:
    fit = fitted(*[(1.01**number, 50) for number in range(700)])
    assert len(fit.points) < 30
    assert fitted().curve() == PowerCurve()
