"""How long to wait before what failed is tried again."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """When to try again what failed: each failure doubles the wait, up to a limit."""

    first_s: float
    most_s: float
    failures: int = 0
    until_s: float = -math.inf

    def failed(self, now_s: float) -> None:
        """Note a failure."""
        self.until_s = now_s + min(self.most_s, self.first_s * 2 ** min(self.failures, 16))
        self.failures += 1

    def holds(self, now_s: float) -> bool:
        """Whether it is too early for the next attempt."""
        return now_s < self.until_s

    def clear(self) -> None:
        """It worked, or what failed is no longer wanted."""
        self.failures, self.until_s = 0, -math.inf
