"""Bounds in hindsight: rules that know the requests to come, and need the same cold start for their pods."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from bandkeeper.lab.requests import Seconds
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.offered import work_by_second
from bandkeeper.lab.rules.rule import Setting, View, Want

PERIOD_S = 15.0
SLOW_STARTS = 1.65  # standard deviations of the cold start's logarithm: 19 of 20 pods are there in time


class Foresight:
    """`margin` x the most work, smoothed over `window_s`, that arrives until pods ordered next are ready."""

    title: ClassVar[str] = "Foresight"
    source: ClassVar[str] = "a bound: knows the requests to come"
    hindsight: ClassVar[bool] = True

    def __init__(self, setting: Setting, *, margin: float, window_s: float) -> None:
        cold = setting.server.cold_start
        self._lead_s = math.ceil(cold.median_s * math.exp(SLOW_STARTS * cold.spread) + PERIOD_S)
        self._wanted = margin * smoothed(work_by_second(setting.server, setting.requests), window_s)

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Long windows with small margins, short windows with large ones: the cheapest good one is the bound."""
        return tuple(
            Choice(f"x{margin:.1f} over {window_s} s", {"margin": margin, "window_s": float(window_s)})
            for window_s in (30, 90)
            for margin in (1.0, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.1)
        )

    def decide(self, view: View) -> Want:
        """What the time until the next order's pods will need."""
        now = min(int(view.now_s), len(self._wanted) - 1)
        ahead = self._wanted[now : now + self._lead_s + 1]
        return Want(max(1, math.ceil(float(ahead.max()) - 1e-9)))


def smoothed(work: Seconds, window_s: float) -> Seconds:
    """Mean over the window that ends with each second; shorter at the beginning."""
    window = max(1, round(window_s))
    sums = np.concatenate(([0.0], np.cumsum(work)))
    ends = np.arange(1, len(work) + 1)
    starts = np.maximum(0, ends - window)
    means: Seconds = (sums[ends] - sums[starts]) / (ends - starts)
    return means
