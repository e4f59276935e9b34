"""Memory of maxima."""

from __future__ import annotations

import pytest

from bandkeeper.model.peaks import NO_PEAKS, Peaks


def pushed(values: list[tuple[float, float]], window_s: float) -> Peaks:
    peaks = NO_PEAKS
    for at_s, value in values:
        peaks = peaks.push(value, at_s, window_s)
    return peaks


def test_empty_has_no_maximum() -> None:
    assert NO_PEAKS.highest() is None


def test_a_peak_is_held_for_the_window_and_not_much_longer() -> None:
    values = [(0.0, 9.0), *((float(at_s), 1.0) for at_s in range(1, 200))]
    assert pushed([value for value in values if value[0] <= 60], 60.0).highest() == 9.0
    assert pushed([value for value in values if value[0] <= 62], 60.0).highest() == 1.0


@pytest.mark.parametrize("window_s", [0.0, 1.0, 60.0, 3600.0])
def test_memory_is_bounded(window_s: float) -> None:
    peaks = pushed([(at_s / 10, 1e6 - at_s) for at_s in range(50_000)], window_s)
    assert len(peaks.entries) <= 62


def test_a_window_of_zero_remembers_nothing() -> None:
    assert pushed([(0.0, 9.0), (1.0, 3.0)], 0.0).highest() == 3.0


def test_scaled() -> None:
    assert pushed([(0.0, 9.0)], 60.0).scaled(2.0).highest() == 18.0
