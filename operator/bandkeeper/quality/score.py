"""One number for a dashboard.

The score is the share of the held GPU time that did real work, relative to GPUs that are well used: 100 where the GPUs
are busy for at least 70 % of the time and the middle of the two bounds of real work is at least 60 % of that time; in
proportion below, for each of the two; and at most 50 where the workload is Overloaded, because what the GPUs do is then
too late for somebody. Without the counters of the work itself there is no score.
"""

from __future__ import annotations

from bandkeeper.quality.classify import Work
from bandkeeper.quality.types import Quality, Thresholds

OVERLOADED_MOST = 50.0


def score(busy: float, real: Work | None, quality: Quality, settings: Thresholds) -> float:
    """0 to 100."""
    if real is None:
        return 0.0
    middle = (real.lower + real.upper) / 2
    value = 100.0 * min(1.0, busy / settings.prosperous_busy) * min(1.0, middle / settings.good_lower)
    return min(value, OVERLOADED_MOST) if quality is Quality.OVERLOADED else value
