"""A scaling rule of one's own, to be compared with all others:

    bandkeeper bench --policy examples/rules/reference.yaml --server reference --load matrix/ramp \\
        --rules bandkeeper,static,foresight,hpa-running,examples/rules/step_ahead.py

The file holds a class `Rule` with a constructor that takes a `Setting` (policy and server; `requests` are the future,
for bounds in hindsight only) and one method, `decide`. Everything else is optional: `title` for tables, `period_s`
between two calls, `scrape_s` between two scrapes of the rule's own metrics, and `choices` for settings to be swept.

This one keeps requests in flight per replica at a target, and looks as far ahead as a pod takes to come: it adds the
growth of the last minute once more for each minute of cold start.
"""

from __future__ import annotations

import math
from collections import deque

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.rule import Setting, View, Want

TREND_S = 60.0


class Rule:
    """`target` requests in flight per replica, a cold start ahead."""

    title = "One step ahead"

    def __init__(self, setting: Setting, *, target: float) -> None:
        self._target = target
        self._ahead_s = setting.server.cold_start.median_s
        self._seen: deque[tuple[float, float]] = deque()

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Each of these is run; one of them may be marked as the default."""
        return tuple(Choice(f"{target}", {"target": target}, default=target == 16) for target in (8, 12, 16, 24))

    def decide(self, view: View) -> Want:
        """Replicas wanted now. A metric that is missing is not 0: without one, keep what is."""
        running = view.metrics.latest(Signal.REQUESTS_RUNNING)
        waiting = view.metrics.latest(Signal.REQUESTS_WAITING)
        if not running:
            return Want(view.replicas)
        in_flight = sum(running.values()) + sum(waiting.values())
        self._seen.append((view.now_s, in_flight))
        while view.now_s - self._seen[0][0] > TREND_S:
            self._seen.popleft()
        growth = max(0.0, in_flight - self._seen[0][1]) / TREND_S * self._ahead_s
        return Want(math.ceil((in_flight + growth) / self._target))
