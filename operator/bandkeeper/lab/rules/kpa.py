"""Knative's pod autoscaler (KPA): average concurrency over a stable and a panic window, as Serving documents it."""

from __future__ import annotations

import math
from collections import deque
from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.choice import Choice, batch_shares
from bandkeeper.lab.rules.offered import per_pod
from bandkeeper.lab.rules.rule import Setting, View, Want

TICK_S = 2.0
STABLE_WINDOW_S = 60.0
PANIC_WINDOW_S = 6.0
PANIC_THRESHOLD = 2.0
MAX_SCALE_UP_RATE = 1000.0
MAX_SCALE_DOWN_RATE = 2.0
TARGET_UTILIZATION = 0.7
DEFAULT_TARGET = 100


class KPA:
    """`target` requests in flight per pod at 70 %. It scrapes the pods' queue proxies itself, waiting ones count."""

    title: ClassVar[str] = "Knative KPA on concurrency"
    source: ClassVar[str] = "knative.dev: autoscaling concepts, KPA-specific configuration"
    hindsight: ClassVar[bool] = False
    period_s: ClassVar[float] = TICK_S
    scrape_s: ClassVar[float] = TICK_S

    def __init__(self, setting: Setting, *, target: float) -> None:
        self._target = TARGET_UTILIZATION * target
        self._seen: deque[tuple[float, float]] = deque()
        self._panic_since_s: float | None = None
        self._panic_replicas = 0
        self._started = False

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Shares of the batch that a replica holds, and Knative's default of 100."""
        targets = batch_shares(setting, 0.1875, 0.25, 0.3125, 0.375, 0.5)
        listed = sorted({*targets, DEFAULT_TARGET})
        return tuple(Choice(str(one), {"target": one}, default=one == DEFAULT_TARGET) for one in listed)

    def decide(self, view: View) -> Want:
        """One tick of the autoscaler."""
        if not self._started:
            self._started = True
            if view.ready > 1:  # history is lost at a start: it begins in panic, which only grows
                self._panic_since_s, self._panic_replicas = view.now_s, view.ready
        self._observe(view)
        stable, panic = self._mean(view.now_s, STABLE_WINDOW_S), self._mean(view.now_s, PANIC_WINDOW_S)
        if stable is None or panic is None:
            return Want(view.replicas)
        ready = max(1, view.ready)
        raw_panic = math.ceil(panic / self._target)
        most, least = math.ceil(MAX_SCALE_UP_RATE * ready), math.floor(ready / MAX_SCALE_DOWN_RATE)
        wanted = min(max(math.ceil(stable / self._target), least), most)
        for_panic = min(max(raw_panic, least), most)
        self._enter_or_leave_panic(raw_panic / ready >= PANIC_THRESHOLD, view.now_s)
        if self._panic_since_s is not None:
            self._panic_replicas = max(self._panic_replicas, wanted, for_panic)
            wanted = self._panic_replicas
        return Want(wanted)

    def _observe(self, view: View) -> None:
        running = view.metrics.latest(Signal.REQUESTS_RUNNING)
        waiting = view.metrics.latest(Signal.REQUESTS_WAITING)
        mean = per_pod({pod: value + waiting.get(pod, 0.0) for pod, value in running.items()})
        if mean is not None:
            self._seen.append((view.now_s, mean * view.ready))
        while self._seen and view.now_s - self._seen[0][0] >= STABLE_WINDOW_S:
            self._seen.popleft()

    def _mean(self, now_s: float, window_s: float) -> float | None:
        values = [value for at_s, value in self._seen if now_s - at_s < window_s]
        return sum(values) / len(values) if values else None

    def _enter_or_leave_panic(self, over: bool, now_s: float) -> None:
        if over:
            self._panic_since_s = now_s
        elif self._panic_since_s is not None and now_s - self._panic_since_s > STABLE_WINDOW_S:
            self._panic_since_s, self._panic_replicas = None, 0
