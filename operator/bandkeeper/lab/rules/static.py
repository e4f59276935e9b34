"""A fixed count of replicas. Swept, its cheapest good count is the best static one in hindsight."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.offered import work_by_second
from bandkeeper.lab.rules.rule import Setting, View, Want

MOST_CHOICES = 16
BUSIEST_S = 60
LEAST_SHARE, MOST_SHARE = 0.75, 1.8  # of the busiest minute's work


class Static:
    """`replicas`, always."""

    title: ClassVar[str] = "Static"
    source: ClassVar[str] = "replicas of a Deployment"
    hindsight: ClassVar[bool] = True

    def __init__(self, setting: Setting, *, replicas: int) -> None:
        self._replicas = replicas

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Counts around the busiest minute's work; every one, or in even ratios where they are many."""
        work = work_by_second(setting.server, setting.requests)
        minutes = work[: len(work) // BUSIEST_S * BUSIEST_S].reshape(-1, BUSIEST_S).mean(axis=1)
        busiest = float(minutes.max()) if len(minutes) else float(work.mean())
        least = max(setting.policy.min_replicas, math.floor(LEAST_SHARE * busiest), 1)
        most = max(least, min(setting.policy.max_replicas, math.ceil(MOST_SHARE * busiest)))
        if most - least < MOST_CHOICES:
            counts = list(range(least, most + 1))
        else:
            counts = sorted({round(count) for count in np.geomspace(least, most, MOST_CHOICES)})
        return tuple(Choice(str(count), {"replicas": count}) for count in counts)

    def decide(self, view: View) -> Want:
        """The fixed count."""
        return Want(self._replicas)
