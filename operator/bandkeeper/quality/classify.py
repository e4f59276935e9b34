"""How much of the GPU's busy time is real work: one class from what the counters and the queue show.

Activities are shares of time or of the hardware's peak, 0 to 1, all of the same GPU and window.
"""

from __future__ import annotations

from bandkeeper.api.records import dataclass
from bandkeeper.quality.types import Bounds, Thresholds
from bandkeeper.quality.types import Quality as Quality

DEFAULT = Thresholds()
TENSOR_PEAK = DEFAULT.tensor_peak
DRAM_PEAK = DEFAULT.dram_peak
MEANING = {
    Quality.UNKNOWN: "too few fresh counters, or such as contradict each other or belong to nobody; the reason says",
    Quality.UNDERUSED: "the GPUs are busy for less than half of the time",
    Quality.OVERLOADED: "the queue grows, preemptions or refusals rise, or throughput falls while more is offered",
    Quality.INEFFICIENT: "the GPUs are busy, yet little of that time is real work",
    Quality.MIXED: "between Inefficient and Efficient",
    Quality.EFFICIENT: "most of the busy time is real work: compute or memory bandwidth near what is reached",
}


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


def crossed(busy: float, real: Work | None, before: Bounds | None, settings: Thresholds = DEFAULT) -> Bounds:
    """The bounds that the figures cross. One that was crossed `before`, or was not, changes only past the margin."""

    def over(value: float, bound: float, was: bool | None) -> bool:
        return value >= (bound if was is None else bound - settings.margin if was else bound + settings.margin)

    was = (None, None, None, None) if before is None else (before.used, before.prosperous, before.rich, before.good)
    lower, upper = (0.0, 0.0) if real is None else (real.lower, real.upper)
    return Bounds(
        used=over(busy, settings.idle_busy, was[0]),
        prosperous=over(busy, settings.prosperous_busy, was[1]),
        rich=over(upper, settings.poor_upper, was[2]),
        good=over(lower, settings.good_lower, was[3]),
    )


def class_of(bounds: Bounds, *, overloaded: bool, decodes: bool = False) -> Quality:
    """The class in the order of judgement, where everything needed is known.

    `decodes`: an LLM server that moves memory like one that decodes. That is its work, however little it looks.
    """
    if not bounds.used:
        return Quality.UNDERUSED
    if overloaded:
        return Quality.OVERLOADED
    if bounds.good:
        return Quality.EFFICIENT
    if bounds.prosperous and not bounds.rich and not decodes:
        return Quality.INEFFICIENT
    return Quality.MIXED


def classify(
    busy: float | None,
    compute: float | None,
    memory: float | None,
    *,
    queue_growing: bool = False,
    losses_rising: bool = False,
    throughput_falling: bool = False,
) -> Quality:
    """The class of one workload's GPUs over one window, of itself: without memory of earlier windows.

    `busy` is the share of time in which anything ran; `compute` and `memory` are relative to peak (`of_peak`). None is
    a signal without fresh data. `queue_growing` is over two windows, `losses_rising` of preemptions or rejections, and
    `throughput_falling` by more than 5 % while more work was offered.
    """
    if busy is None or compute is None or memory is None:
        return Quality.UNKNOWN
    bounds = crossed(busy, work(busy, compute, memory), None)
    return class_of(bounds, overloaded=queue_growing or losses_rising or throughput_falling)
