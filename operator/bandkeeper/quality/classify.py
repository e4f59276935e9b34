"""How much of the GPU's busy time is real work: one class from what the counters and the queue show.

Activities are shares of time or of the hardware's peak, 0 to 1, all of the same GPU and window.
"""

from __future__ import annotations

from dataclasses import dataclass

from bandkeeper.quality.types import Quality as Quality

TENSOR_PEAK = 0.93  # activity that the best kernels reach in practice
DRAM_PEAK = 0.80
IDLE_BUSY = 0.50
PROSPEROUS_BUSY = 0.70
POOR_UPPER = 0.35
GOOD_LOWER = 0.60


@dataclass(frozen=True, slots=True)
class Work:
    """Bounds of the share of busy time that is real work: compute and memory traffic overlap by an unknown part."""

    lower: float
    upper: float


def of_peak(activity: float, peak: float) -> float:
    """An activity relative to what is reached in practice, at most 1."""
    return min(1.0, activity / peak)


def work(busy: float, compute: float, memory: float) -> Work | None:
    """The bounds of real work relative to `busy`; `compute` and `memory` relative to peak. None where nothing ran."""
    if busy <= 0:
        return None
    return Work(lower=min(1.0, max(compute, memory) / busy), upper=min(1.0, (compute + memory) / busy))


def classify(
    busy: float | None,
    compute: float | None,
    memory: float | None,
    *,
    queue_growing: bool = False,
    losses_rising: bool = False,
    throughput_falling: bool = False,
) -> Quality:
    """The class of one workload's GPUs over one window.

    `busy` is the share of time in which anything ran; `compute` and `memory` are relative to peak (`of_peak`). None is
    a signal without fresh data. `queue_growing` is over two windows, `losses_rising` of preemptions or rejections, and
    `throughput_falling` by more than 5 % while more work was offered.
    """
    if busy is None or compute is None or memory is None:
        return Quality.UNKNOWN
    if busy < IDLE_BUSY:
        return Quality.UNDERUSED
    if queue_growing or losses_rising or throughput_falling:
        return Quality.OVERLOADED
    real = work(busy, compute, memory)
    if real is None:
        return Quality.UNDERUSED
    if busy >= PROSPEROUS_BUSY and real.upper < POOR_UPPER:
        return Quality.INEFFICIENT
    return Quality.EFFICIENT if real.lower >= GOOD_LOWER else Quality.MIXED
