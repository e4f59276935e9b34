"""AIBrix's APA strategy: proportional to a metric's mean over the ready pods, with tolerance and rate limits."""

from __future__ import annotations

import math
from collections import deque
from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import PodState
from bandkeeper.lab.rules.choice import Choice, batch_shares
from bandkeeper.lab.rules.offered import per_pod
from bandkeeper.lab.rules.rule import Setting, View, Want
from bandkeeper.lab.server import ContinuousServer

RESYNC_S = 10.0
TOLERANCE = 0.1
MAX_RATE = 2.0
DOWN_WINDOW_S = 300.0


class APA:
    """`signal` at `target` on average. A ready pod without a value blocks all scaling (AIBrix issue 1032), and pods on
    their way are not credited (issue 2670).
    """

    title: ClassVar[str] = "AIBrix APA"
    source: ClassVar[str] = "aibrix.readthedocs.io: autoscaling, APA"
    hindsight: ClassVar[bool] = False
    period_s: ClassVar[float] = RESYNC_S

    def __init__(self, setting: Setting, *, signal: str, target: float) -> None:
        self._signal = Signal(signal)
        self._target = target
        self._wanted: deque[tuple[float, int]] = deque()

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """The share of the KV cache in use (50 % in its documents), and running requests."""
        running = tuple(
            Choice(f"running {target}", {"signal": Signal.REQUESTS_RUNNING.value, "target": target})
            for target in batch_shares(setting, 0.1875, 0.25, 0.375, 0.5)
        )
        if not isinstance(setting.server, ContinuousServer):
            return running
        kv = tuple(
            Choice(
                f"KV {percent} %",
                {"signal": Signal.KV_CACHE_UTILIZATION.value, "target": percent / 100},
                default=percent == 50,
            )
            for percent in (10, 20, 30, 50)
        )
        return kv + running

    def decide(self, view: View) -> Want:
        """One resync."""
        values = view.metrics.latest(self._signal)
        ready = {pod.name for pod in view.snapshot.pods_in(PodState.READY)}
        current = per_pod(values)
        if current is None or ready - values.keys():
            return Want(view.replicas)
        return Want(self._cooled(self._proposed(current / self._target, view.replicas), view.now_s))

    def _proposed(self, ratio: float, replicas: int) -> int:
        wanted = math.ceil(ratio * replicas)
        if ratio > 1.0 + TOLERANCE:
            return min(wanted, math.ceil(replicas * MAX_RATE))
        if ratio < 1.0 - TOLERANCE:
            return max(wanted, math.floor(replicas / MAX_RATE))
        return replicas

    def _cooled(self, wanted: int, now_s: float) -> int:
        """The most that was wanted in the last five minutes: it goes up at once and comes down late."""
        self._wanted.append((now_s, wanted))
        while now_s - self._wanted[0][0] >= DOWN_WINDOW_S:
            self._wanted.popleft()
        return max(one for _, one in self._wanted)
