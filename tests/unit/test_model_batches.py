"""The time of a batch by its size: between what was seen, a little beyond it, and where most is done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.model.batches import NO_BATCHES, BatchTimes

RESNET_MS = {1: 2.13, 2: 2.19, 4: 2.76, 8: 3.90, 16: 5.79, 32: 11.19, 64: 25.2, 128: 48.1}


def seen(sizes: Sequence[int]) -> BatchTimes:
    """Each size for two windows."""
    times = NO_BATCHES
    for size in sizes:
        for _ in range(8):
            times = times.seen(size, size, RESNET_MS[size] / 1000, 0.25)
    return times


@pytest.mark.parametrize(
    ("sizes", "up_to", "best"),
    [
        ([1, 2, 4, 8], 128, 16),  # no farther than twice that
        ([1, 2, 4, 8], 8, 8),
        ([1, 8, 32, 64, 128], 128, 32),  # the maximum inside
        ([1, 8, 32, 64, 128], 16, 16),
        ([128, 64, 32, 8, 1], 128, 32),
    ],
)
def test_the_best_size(sizes: list[int], up_to: int, best: int) -> None:
    assert seen(sizes).best(up_to) == best


def test_between_and_beyond_lies_a_straight_line() -> None:
    times = seen([8, 16])
    assert times.seconds(12) == pytest.approx((3.90 + 5.79) / 2000)
    assert times.seconds(24) == pytest.approx((5.79 + 5.79 - 3.90) / 1000)


def test_two_sizes_near_each_other_do_not_make_larger_batches_fast() -> None:
    """What was seen of both is a little off; from the first size to the last it takes 90 ms each."""
    times = NO_BATCHES.seen(2, 2, 0.2, 1.0).seen(12.6, 12.6, 1.10, 1.0).seen(15, 15, 1.11, 1.0)
    assert times.seconds(30) == pytest.approx(1.10 + 17.4 * (1.11 - 0.2) / 13)


@pytest.mark.parametrize("batch", [1, 16, 100])
def test_of_one_size_no_larger_one_is_thought_faster(batch: int) -> None:
    """Nothing tells how the time grows: in proportion, which orders too many replicas rather than too few."""
    times = seen([16])
    assert times.seconds(batch) >= RESNET_MS[16] / 1000
    assert batch / times.seconds(batch) <= 16 / times.seconds(16) * (1 + 1e-9)


def test_work_is_that_of_the_best_size() -> None:
    times = seen([1, 8, 32, 64, 128])
    assert times.work_s(0.0, 2860.0, 128).value == pytest.approx(1.0, rel=0.01)


def test_another_server_is_unknown_and_a_row_forgets() -> None:
    times = seen([8, 16])
    assert times.loosened() == NO_BATCHES
    for _ in range(400):
        times = times.seen(16, 16, 0.1, 0.25)
    assert times.seconds(16) == pytest.approx(0.1, rel=0.02)


@given(st.lists(st.tuples(st.floats(0.2, 500.0), st.floats(1e-4, 100.0)), min_size=1, max_size=30))
def test_work_is_a_possible_figure_whatever_was_seen(looks: list[tuple[float, float]]) -> None:
    times = NO_BATCHES
    for batch, seconds in looks:
        times = times.seen(batch, batch, seconds, 0.25)
    work = times.work_s(1.0, 1.0, 64)
    assert 0 < work.value < math.inf
    assert 0 <= work.error < math.inf
    assert 0 <= times.curve(64, 1.0).steepness < math.inf


class TestTold:
    table = tuple((float(size), ms / 1000) for size, ms in RESNET_MS.items())

    def test_it_stands_for_what_was_not_seen(self) -> None:
        times = BatchTimes.of_table(self.table, 0.5)
        for _ in range(4):
            times = times.seen(4, 4, 0.00276, 0.25)
        assert times.best(128) == 32
        assert times.seconds(16) == pytest.approx(0.00579, rel=0.01)

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_what_is_seen_wins_and_tells_the_scale_of_the_rest(self, factor: float) -> None:
        times = BatchTimes.of_table([(size, factor * seconds) for size, seconds in self.table], 0.5)
        for _ in range(40):
            times = times.seen(4, 4, 0.00276, 0.25)
        assert times.seconds(4) == pytest.approx(0.00276)
        assert times.seconds(32) == pytest.approx(0.01119, rel=0.07)

    def test_one_outlier_does_not_set_the_scale(self) -> None:
        times = BatchTimes.of_table(self.table, 0.5).seen(4, 4, 0.0276, 0.25)
        assert times.seconds(32) < 2.5 * 0.01119

    def test_of_larger_batches_than_were_told_nothing_is(self) -> None:
        times = BatchTimes.of_table(self.table, 0.5)
        assert times.told_s(256) is not None
        assert times.told_s(257) is None
        assert NO_BATCHES.told_s(1) is None

    def test_a_new_server_forgets_it(self) -> None:
        assert BatchTimes.of_table(self.table, 0.5).loosened() == NO_BATCHES
