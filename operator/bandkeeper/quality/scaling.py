"""What more replicas bring when there is always work: throughput per replica relative to the fewest that were seen.

Counts that were seen tell it themselves. Others are predicted: by Amdahl's law from two counts, by the universal
scalability law from three.
"""

from __future__ import annotations

from collections.abc import Sequence

from bandkeeper.api.records import dataclass
from bandkeeper.quality.measures import Contention, contention
from bandkeeper.quality.types import Saturated


@dataclass(frozen=True, slots=True)
class Scaling:
    """Throughput by count of replicas, rising counts."""

    seen: tuple[Saturated, ...] = ()
    law: Contention | None = None

    @classmethod
    def of(cls, windows: Sequence[Saturated]) -> Scaling:
        """From windows in which work waited all the time."""
        seen = tuple(sorted((one for one in windows if one.throughput > 0), key=lambda one: one.replicas))
        return cls(seen, contention(seen) or _amdahl(seen))

    def efficiency(self, replicas: int) -> float | None:
        """Of one of `replicas`, relative to one of the fewest that were seen; None where nothing tells."""
        if not self.seen or replicas < 1:
            return None
        least = self.seen[0]
        each = least.throughput / least.replicas
        measured = next((one for one in self.seen if one.replicas == replicas), None)
        if measured is not None:
            return measured.throughput / replicas / each
        if self.law is None:
            return None
        return _slowed(self.law, least.replicas) / _slowed(self.law, replicas)


def _slowed(law: Contention, replicas: int) -> float:
    return 1 + law.sigma * (replicas - 1) + law.kappa * replicas * (replicas - 1)


def _amdahl(seen: Sequence[Saturated]) -> Contention | None:
    """Through the fewest and the most; a count that does no more than the fewest is all contention."""
    if len(seen) < 2:
        return None
    few, many = seen[0], seen[-1]
    one, other = few.throughput / few.replicas, many.throughput / many.replicas
    if other >= one:
        return Contention(0.0, 0.0)
    room = other * (many.replicas - 1) - one * (few.replicas - 1)
    return Contention(min(1.0, (one - other) / room) if room > 0 else 1.0, 0.0)
