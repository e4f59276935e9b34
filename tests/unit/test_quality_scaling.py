"""Parallel efficiency: measured where it was seen, predicted by the law where not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.quality.scaling import Scaling
from bandkeeper.quality.types import Saturated


def usl(replicas: int, sigma: float = 0.05, kappa: float = 0.0) -> float:
    return 100 * replicas / (1 + sigma * (replicas - 1) + kappa * replicas * (replicas - 1))


def scaling(*counts: int, sigma: float = 0.05, kappa: float = 0.0) -> Scaling:
    return Scaling.of([Saturated(count, usl(count, sigma, kappa), 0.0) for count in counts])


@pytest.mark.parametrize(("counts", "kappa"), [((1, 4), 0.0), ((2, 8), 0.0), ((1, 2, 4), 0.002), ((2, 4, 8), 0.01)])
def test_what_was_not_seen_follows_the_law(counts: tuple[int, ...], kappa: float) -> None:
    found, least = scaling(*counts, kappa=kappa), counts[0]
    for replicas in (3, 6, 16, 32):
        expected = usl(replicas, kappa=kappa) / replicas / (usl(least, kappa=kappa) / least)
        assert found.efficiency(replicas) == pytest.approx(expected, rel=0.01)


def test_what_was_seen_tells_it_itself() -> None:
    found = Scaling.of([Saturated(1, 100, 0), Saturated(2, 150, 0), Saturated(4, 260, 0)])
    assert [found.efficiency(count) for count in (1, 2, 4)] == pytest.approx([1.0, 0.75, 0.65])


def test_one_count_tells_of_itself_only_and_none_of_nothing() -> None:
    assert scaling(4).efficiency(4) == 1.0
    assert scaling(4).efficiency(5) is None
    assert Scaling().efficiency(1) is None


def test_more_that_do_no_more_are_all_contention() -> None:
    found = Scaling.of([Saturated(2, 100, 0), Saturated(4, 90, 0)])
    assert (found.efficiency(8) or 0.0) < 0.3


def test_no_replica_has_no_efficiency() -> None:
    assert Scaling.of([Saturated(2, 100, 0), Saturated(4, 90, 0)]).efficiency(0) is None


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.1, 1e6)), min_size=1, max_size=8), st.integers(1, 200))
def test_it_is_never_below_0_and_a_law_never_says_more_than_in_proportion(
    windows: list[tuple[int, float]], replicas: int
) -> None:
    found = Scaling.of([Saturated(count, throughput, 0.0) for count, throughput in dict(windows).items()])
    efficiency = found.efficiency(replicas)
    if efficiency is not None:
        assert efficiency >= 0
    if efficiency is not None and replicas > max(one.replicas for one in found.seen):
        assert efficiency <= 1 + 1e-9
