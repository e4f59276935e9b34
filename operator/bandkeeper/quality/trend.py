"""What the load does over windows: signs of overload, and windows in which work waited all the time."""

from __future__ import annotations

from bandkeeper.quality.types import Evidence, Mark, Memory, Quality, Saturated, Thresholds

_KEPT = 4


def mark_of(evidence: Evidence, now_s: float) -> Mark:
    """The load as it is now."""
    return Mark(now_s, evidence.ready, evidence.waiting, evidence.throughput, evidence.offered, evidence.losses)


def is_due(memory: Memory, now_s: float, settings: Thresholds) -> bool:
    """Whether a window has passed since the last mark."""
    return not memory.marks or now_s - memory.marks[-1].at_s >= settings.window_s


def with_mark(memory: Memory, now: Mark) -> tuple[Mark, ...]:
    """The marks with one more, the oldest dropped."""
    return (*memory.marks, now)[-_KEPT:]


def overload(memory: Memory, now: Mark, settings: Thresholds) -> str:
    """The sign of overload in a sentence, "" where there is none."""
    recent = _back(memory, now.at_s, settings)
    if recent is None:
        return ""
    earlier = _back(memory, recent.at_s, settings)
    return (
        _queue(now, recent, earlier, settings)
        or _losses(memory, now, recent, settings)
        or _falling(now, recent, settings)
    )


def saturated(memory: Memory, now: Mark, settings: Thresholds) -> Saturated | None:
    """The window that ends now, where each replica had work waiting at both ends and none came or went; nor in the one
    before, because what a new replica begins is finished a while later.
    """
    recent = _back(memory, now.at_s, settings)
    earlier = None if recent is None else _back(memory, recent.at_s, settings)
    if recent is None or earlier is None or now.ready < 1 or now.throughput is None:
        return None
    if not earlier.ready == recent.ready == now.ready:
        return None
    if any(mark.waiting is None or mark.waiting < mark.ready for mark in (recent, now)) or now.throughput <= 0:
        return None
    return Saturated(now.ready, now.throughput, now.at_s)


def _back(memory: Memory, at_s: float, settings: Thresholds) -> Mark | None:
    """The latest mark at least a window before."""
    return next((mark for mark in reversed(memory.marks) if at_s - mark.at_s >= settings.window_s), None)


def _queue(now: Mark, recent: Mark, earlier: Mark | None, settings: Thresholds) -> str:
    if earlier is None or now.waiting is None or recent.waiting is None or earlier.waiting is None:
        return ""
    gain = 1 + settings.growth
    grew = now.waiting > gain * recent.waiting and recent.waiting > gain * earlier.waiting
    if not grew or now.waiting <= max(1, now.ready):
        return ""
    return f"the queue grew from {earlier.waiting:.0f} over {recent.waiting:.0f} to {now.waiting:.0f} requests"


def _losses(memory: Memory, now: Mark, recent: Mark, settings: Thresholds) -> str:
    """Once overloaded, losses that merely stay are enough."""
    if now.losses is None or recent.losses is None or now.losses <= 0:
        return ""
    if now.throughput is not None and now.losses < settings.losses_share * now.throughput:
        return ""
    if memory.quality is not Quality.OVERLOADED and now.losses <= (1 + settings.growth) * recent.losses:
        return ""
    return f"{now.losses:.2g} requests/s are preempted or refused"


def _falling(now: Mark, recent: Mark, settings: Thresholds) -> str:
    if now.throughput is None or recent.throughput is None or now.offered is None or recent.offered is None:
        return ""
    fell = now.throughput < (1 - settings.throughput_drop) * recent.throughput
    if not fell or now.offered <= recent.offered or now.waiting == 0 or now.ready < recent.ready:
        return ""
    return (
        f"throughput fell from {recent.throughput:.3g} to {now.throughput:.3g} requests/s"
        f" while {now.offered:.3g} instead of {recent.offered:.3g} were offered"
    )
