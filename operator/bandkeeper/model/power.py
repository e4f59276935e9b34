"""Power of a GPU as it grows with the batch: what it draws without requests, and a part that saturates.

watts(b) = idle + span b / (b + half), idle and span not negative. The shape is learned over an hour; what is predicted
starts from what is drawn now, so that another mix of requests or warmer silicon shifts the level and not the shape.
"""

from __future__ import annotations

import math

from bandkeeper.api.records import dataclass, replace

MEMORY_S = 3600.0
PRIOR_IDLE = 0.3  # of the most that was seen: about what data sheets and measurements have
_PRIOR_WEIGHT = 0.3  # of one point
_KEPT = 0.7  # of what a point had before
_LEAST_WATTS = 1.0
_HALVES = tuple(2.0**exponent for exponent in range(11))
_PLAIN = 1e-5  # per octave: where several shapes fit, the one that is half saturated at the largest batch that was seen


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """Watts at a batch. At least what a straight line through nothing says of less, at most what it says of more."""

    idle: float = PRIOR_IDLE
    span: float = 2 * (1 - PRIOR_IDLE)
    half: float = 8.0

    def watts(self, batch: float) -> float:
        """Watts at `batch` requests in process."""
        return self.idle + self.span * batch / (batch + self.half)

    def moved(self, batch: float, seen_batch: float, seen_watts: float) -> float:
        """Watts at `batch` of a GPU that draws `seen_watts` at `seen_batch` now."""
        before = self.watts(seen_batch)
        return seen_watts * self.watts(batch) / before if before > 0 else seen_watts


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """Watts that were seen at about a batch, and when last."""

    batch: float
    watts: float
    at_s: float


@dataclass(frozen=True, slots=True)
class PowerFit:
    """One point per half an octave of the batch, rising."""

    points: tuple[PowerPoint, ...] = ()

    def seen(self, batch: float, watts: float, curve: PowerCurve, now_s: float) -> PowerFit:
        """With one look more, and without what is older than an hour; `curve` is the present fit's.

        At a batch that was seen before, another power than it had is another level, of all batches.
        """
        place = _place(batch)
        points = [point for point in self.points if now_s - point.at_s <= MEMORY_S]
        known = next((point for point in points if _place(point.batch) == place), None)
        others = [point for point in points if point is not known]
        if known is not None:
            expected = curve.moved(batch, known.batch, known.watts)
            shift = (watts / max(expected, _LEAST_WATTS)) ** (1 - _KEPT)
            others = [replace(point, watts=point.watts * shift) for point in others]
            batch, watts = _mean(known.batch, batch), _mean(known.watts, watts)
        return PowerFit(tuple(sorted((*others, PowerPoint(batch, watts, now_s)), key=lambda point: point.batch)))

    @property
    def spread(self) -> float:
        """The largest batch that was seen over the smallest, 1 before anything was."""
        return self.points[-1].batch / self.points[0].batch if self.points and self.points[0].batch > 0 else 1.0

    def curve(self) -> PowerCurve:
        """The shape with the least squared error, the prior's idle power counted as a part of a point."""
        if not self.points:
            return PowerCurve()
        top, largest = max(point.watts for point in self.points), self.points[-1].batch
        rows = [(0.0, PRIOR_IDLE, _PRIOR_WEIGHT), *((point.batch, point.watts / top, 1.0) for point in self.points)]
        best, least = PowerCurve(), math.inf
        for half in _HALVES:
            curve = _line([(batch / (batch + half), share, weight) for batch, share, weight in rows], half)
            error = _PLAIN * abs(math.log2(half / max(largest, _HALVES[0])))
            for batch, share, weight in rows:
                error += weight * (curve.idle + curve.span * batch / (batch + half) - share) ** 2
            if error < least:
                best, least = curve, error
        return PowerCurve(best.idle * top, best.span * top, best.half)


def _place(batch: float) -> int:
    return round(2 * math.log2(max(batch, 0.25)))


def _mean(before: float, now: float) -> float:
    return _KEPT * before + (1 - _KEPT) * now


def _line(rows: list[tuple[float, float, float]], half: float) -> PowerCurve:
    """The straight line of (x, y, weight) by least squares, neither end nor slope below 0."""
    whole = sum_x = sum_y = sum_xx = sum_xy = 0.0
    for x, y, weight in rows:
        whole += weight
        sum_x += weight * x
        sum_y += weight * y
        sum_xx += weight * x * x
        sum_xy += weight * x * y
    spread = whole * sum_xx - sum_x * sum_x
    slope = max(0.0, (whole * sum_xy - sum_x * sum_y) / spread) if spread > 0 else 0.0
    idle = (sum_y - slope * sum_x) / whole
    return PowerCurve(idle, slope, half) if idle >= 0 else PowerCurve(0.0, sum_xy / sum_xx, half)


NO_POWER, PRIOR_POWER = PowerFit(), PowerCurve()
