"""Histograms with the buckets that Prometheus sees and, inside, edges fine enough for quantiles within 5 %."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import accumulate

# vLLM 0.33's defaults, seconds (its loggers and buckets modules).
TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
ITERATION_TOKEN_BUCKETS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)


def geometric_edges(low: float, high: float, ratio: float) -> tuple[float, ...]:
    """Edges from `low` up to at least `high`, each `ratio` times the one before."""
    edges = [low]
    while edges[-1] < high:
        edges.append(edges[-1] * ratio)
    return tuple(edges)


FINE_EDGES_S = geometric_edges(0.0005, 3000.0, 1.05)


class Histogram:
    """Cumulative histogram: `observe` costs one bisection whatever the number of equal observations.

    `buckets` are the upper bounds shown to Prometheus (without +Inf). Where `fine` is true, finer inner edges are kept
    beside them, so that `quantile` errs by at most 5 % of the value.
    """

    __slots__ = ("_exposed", "buckets", "count", "counts", "edges", "sum")

    def __init__(self, buckets: Iterable[float], *, fine: bool = False) -> None:
        self.buckets = tuple(sorted(set(buckets)))
        self.edges = tuple(sorted({*self.buckets, *FINE_EDGES_S})) if fine else self.buckets
        self._exposed = [bisect_left(self.edges, bound) for bound in self.buckets]
        self.counts = [0] * (len(self.edges) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += times
        self.sum += value * times
        self.count += times

    def cumulative(self) -> list[int]:
        """Counts at or below each of `buckets`, without the last one, +Inf, which is `count`."""
        running = list(accumulate(self.counts))
        return [running[index] for index in self._exposed]

    def quantile(self, q: float) -> float | None:
        """The q-quantile, linear inside an edge interval; None without observations."""
        if not self.count:
            return None
        rank = q * self.count
        below = 0
        for index, here in enumerate(self.counts):
            if here and below + here >= rank:
                if index == len(self.edges):
                    return self.edges[-1]
                low = self.edges[index - 1] if index else 0.0
                return low + (self.edges[index] - low) * (rank - below) / here
            below += here
        return self.edges[-1]

    def merge(self, other: Histogram) -> None:
        """Adds the observations of `other`, which must have the same edges."""
        if self.edges != other.edges:
            raise ValueError("histograms with different edges cannot be merged")
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.count += other.count

    def as_json(self) -> dict[str, object]:
        """Count, sum, quantiles, exposed cumulative buckets, inner intervals as [upper bound, count] if not empty."""
        bounds: list[float | str] = [*self.edges, "+Inf"]
        return {
            "count": self.count,
            "sum": self.sum,
            "quantiles": {f"p{round(q * 100)}": self.quantile(q) for q in (0.5, 0.9, 0.95, 0.99)},
            "buckets": [[bound, seen] for bound, seen in zip(self.buckets, self.cumulative(), strict=True)],
            "fine": [[bound, seen] for bound, seen in zip(bounds, self.counts, strict=True) if seen],
        }


class RecentHistogram:
    """Observations of about the last `window_s` seconds, forgotten in `parts` portions, for summaries."""

    def __init__(self, window_s: float = 60.0, parts: int = 5) -> None:
        self._part_s = window_s / parts
        self._parts: deque[tuple[int, Histogram]] = deque(maxlen=parts)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float, at_s: float) -> None:
        number = int(at_s // self._part_s)
        if not self._parts or self._parts[-1][0] != number:
            self._parts.append((number, Histogram((), fine=True)))
        self._parts[-1][1].observe(value)
        self.sum += value
        self.count += 1

    def quantile(self, q: float, at_s: float) -> float | None:
        """The q-quantile of the window that ends at `at_s`; None without observations in it."""
        oldest = int(at_s // self._part_s) - (self._parts.maxlen or 0)
        window = Histogram((), fine=True)
        for number, part in self._parts:
            if number > oldest:
                window.merge(part)
        return window.quantile(q)
