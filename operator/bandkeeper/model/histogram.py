"""What a histogram can and cannot tell: percentiles and attainment with the bounds that its buckets leave open."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from operator import ge, le

from bandkeeper.api.records import dataclass
from bandkeeper.api.snapshot import Distribution


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value between `lower` and `upper`; `value` is the best guess, interpolated as Prometheus does."""

    value: float
    lower: float
    upper: float


def is_possible(distribution: Distribution) -> bool:
    """Whether the buckets can be those of a real histogram: rising finite edges, counts that never fall.

    Counts are rates times a window, so they may differ by rounding.
    """
    edges, counts = distribution.edges, distribution.counts
    if len(edges) != len(counts) or not edges or edges[-1] != math.inf:
        return False
    if any(map(ge, edges, edges[1:])):
        return False
    total = counts[-1]
    if not math.isfinite(total) or counts[0] < 0:
        return False
    slack = 1e-6 * total
    return all(map(le, [count - slack for count in counts[:-1]], counts[1:]))


def percentile(distribution: Distribution, percent: float) -> Estimate | None:
    """The percentile in seconds with the bounds of its bucket; None without observations.

    A source that gives percentiles itself is exact where it has this one, and bounded by its neighbours where not.
    """
    if distribution.quantiles:
        return _between_quantiles(distribution, percent)
    total = distribution.observations
    if total <= 0:
        return None
    rank = total * percent / 100
    edges, counts = distribution.edges, distribution.counts
    index = min(bisect_left(counts, rank * (1 - 1e-9)), len(edges) - 1)
    lower = edges[index - 1] if index else min(0.0, edges[0])
    upper = edges[index]
    if math.isinf(upper):
        return Estimate(lower, lower, upper)
    below = counts[index - 1] if index else 0.0
    inside = counts[index] - below
    share = (rank - below) / inside if inside > 0 else 1.0
    return Estimate(lower + (upper - lower) * min(1.0, max(0.0, share)), lower, upper)


def attainment(distribution: Distribution, threshold_s: float) -> tuple[float, float] | None:
    """Least and largest share of observations that can be at or below the threshold; None without observations.

    They are equal where the threshold is an edge. Where the source gives percentiles, the shares are theirs.
    """
    if distribution.quantiles:
        return _attained_quantiles(distribution, threshold_s)
    total = distribution.observations
    if total <= 0:
        return None
    edges, counts = distribution.edges, distribution.counts
    above = bisect_right(edges, threshold_s * (1 + 1e-9))
    low = counts[above - 1] / total if above else 0.0
    at_edge = above > 0 and edges[above - 1] >= threshold_s * (1 - 1e-9)
    high = low if at_edge else counts[above] / total
    return min(1.0, max(0.0, low)), min(1.0, max(0.0, high))


def mean(distribution: Distribution) -> float | None:
    """Mean in seconds, exact whatever the buckets; None where the source has no sum or saw nothing."""
    total, sum_s = distribution.observations, distribution.total_s
    if total <= 0 or sum_s is None or not math.isfinite(sum_s) or sum_s < 0:
        return None
    return sum_s / total


def _known(distribution: Distribution) -> list[tuple[float, float]]:
    return sorted((p, v) for p, v in distribution.quantiles.items() if math.isfinite(v) and v >= 0)


def _between_quantiles(distribution: Distribution, percent: float) -> Estimate | None:
    known = _known(distribution)
    if not known:
        return None
    lower = max((value for p, value in known if p <= percent), default=0.0)
    upper = min((value for p, value in known if p >= percent), default=math.inf)
    exact = next((value for p, value in known if p == percent), None)
    if exact is not None:
        return Estimate(exact, exact, exact)
    return Estimate(lower if math.isinf(upper) else upper, lower, upper)


def _attained_quantiles(distribution: Distribution, threshold_s: float) -> tuple[float, float] | None:
    known = _known(distribution)
    if not known:
        return None
    low = max((p for p, value in known if value <= threshold_s), default=0.0) / 100
    high = min((p for p, value in known if value > threshold_s), default=100.0) / 100
    return low, max(low, high)
