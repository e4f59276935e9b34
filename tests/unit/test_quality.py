"""Quality classes: the order in which they are judged, and what a missing signal does."""

from __future__ import annotations

import pytest

from bandkeeper.quality.classify import DRAM_PEAK, TENSOR_PEAK, Quality, Work, classify, of_peak, work


@pytest.mark.parametrize(
    ("busy", "compute", "memory", "quality"),
    [
        (None, 0.5, 0.5, Quality.UNKNOWN),
        (0.9, None, 0.5, Quality.UNKNOWN),
        (0.9, 0.5, None, Quality.UNKNOWN),
        (0.0, 0.0, 0.0, Quality.UNDERUSED),
        (0.49, 0.49, 0.49, Quality.UNDERUSED),
        (1.0, 0.05, 0.89, Quality.EFFICIENT),  # decode of an 8B model on an H100
        (1.0, 0.41, 0.25, Quality.MIXED),  # prefill
        (1.0, 0.05, 0.25, Quality.INEFFICIENT),  # busy, and hardly anything done
        (0.6, 0.05, 0.1, Quality.MIXED),  # too little busy to call it false prosperity
        (0.6, 0.1, 0.37, Quality.EFFICIENT),  # relative to the time in which anything ran
        (0.7, 0.12, 0.12, Quality.INEFFICIENT),
        (0.7, 0.13, 0.13, Quality.MIXED),
    ],
)
def test_class(busy: float | None, compute: float | None, memory: float | None, quality: Quality) -> None:
    assert classify(busy, compute, memory) is quality


@pytest.mark.parametrize("sign", ["queue_growing", "losses_rising", "throughput_falling"])
def test_an_overload_shows_in_the_queue_not_in_the_counters(sign: str) -> None:
    assert classify(0.99, 0.3, 0.9) is Quality.EFFICIENT
    assert classify(0.99, 0.3, 0.9, **{sign: True}) is Quality.OVERLOADED
    assert classify(0.3, 0.1, 0.2, **{sign: True}) is Quality.UNDERUSED
    assert classify(None, 0.1, 0.2, **{sign: True}) is Quality.UNKNOWN


def test_work_is_bounded_because_compute_and_memory_overlap() -> None:
    assert work(0.5, 0.125, 0.25) == Work(lower=0.5, upper=0.75)
    assert work(0.5, 0.6, 0.25) == Work(lower=1.0, upper=1.0)
    assert work(0.0, 0.0, 0.0) is None


def test_peaks_are_those_of_practice() -> None:
    assert of_peak(0.93, TENSOR_PEAK) == 1.0
    assert of_peak(0.4, DRAM_PEAK) == pytest.approx(0.5)
    assert of_peak(0.9, DRAM_PEAK) == 1.0
