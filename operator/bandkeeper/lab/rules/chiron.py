"""Chiron-style: a local loop that moves the batch cap by back-pressure, a global one that keeps a share of the replicas
free for bursts. After the abstract of arXiv 2501.08090; constants are from memory, hence "-style".
"""

from __future__ import annotations

import math
from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import LatencySLO
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.offered import total
from bandkeeper.lab.rules.rule import Setting, View, Want

SMOOTHING = 0.5
SLACK = 0.15


class Chiron:
    """Local: halve the cap where inter-token latency or throughput pushes back, else grow it by the headroom (where the
    policy has a batch knob). Global: the share of the fleet's places in use stays at `share`, give or take 15 % of it.
    """

    title: ClassVar[str] = "Chiron-style local + global"
    source: ClassVar[str] = "arXiv 2501.08090 (abstract)"
    hindsight: ClassVar[bool] = False
    period_s: ClassVar[float] = 5.0
    scrape_s: ClassVar[float] = 5.0

    def __init__(self, setting: Setting, *, share: float) -> None:
        self._share = share
        self._moves_cap = setting.policy.batch is not None
        self._least, self._most = setting.server.batch_min, setting.server.batch_max
        self._itl_s = next(
            (
                slo.threshold_s
                for slo in setting.policy.slos
                if isinstance(slo, LatencySLO) and slo.signal is Signal.INTER_TOKEN_LATENCY
            ),
            None,
        )
        self._growth = 0.0
        self._throughput: float | None = None

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """A third is what the paper derives from the bursts of its traces."""
        shares = (0.2, 0.33, 0.5, 0.7)
        return tuple(Choice(f"{share:.2f}", {"share": share}, default=share == 0.33) for share in shares)

    def decide(self, view: View) -> Want:
        """Both loops; without metrics nothing moves."""
        running = total(view.metrics.latest(Signal.REQUESTS_RUNNING))
        if running is None:
            return Want(view.replicas)
        waiting = total(view.metrics.latest(Signal.REQUESTS_WAITING)) or 0.0
        cap = self._local(view) if self._moves_cap else view.cap
        in_use = (running + waiting) / cap
        low, high = self._share * (1 - SLACK), self._share * (1 + SLACK)
        supply = max(1, view.ready + view.pending)
        if low <= in_use / supply <= high:
            return Want(view.replicas, cap=cap)
        return Want(max(1, math.ceil(in_use / self._share)), cap=cap)

    def _local(self, view: View) -> int:
        pressure = self._pressure(view)
        if pressure is None:
            return view.cap
        if pressure > 1.0:
            self._growth = 0.0
            cap = view.cap / 2
        else:
            growth = view.cap * (1.0 / max(pressure, 0.1) - 1.0)
            self._growth = SMOOTHING * growth + (1 - SMOOTHING) * self._growth
            cap = view.cap + self._growth
        return int(min(self._most, max(self._least, cap)))

    def _pressure(self, view: View) -> float | None:
        """The worse of inter-token latency over its objective and the last throughput over the present one."""
        itl_s = view.metrics.average(Signal.INTER_TOKEN_LATENCY, 3 * self.period_s)
        produced = total(view.metrics.rate(Signal.GENERATION_TOKENS, 3 * self.period_s))
        waits = total(view.metrics.latest(Signal.REQUESTS_WAITING))
        before, self._throughput = self._throughput, produced
        if itl_s is None or self._itl_s is None:
            return None
        latency = itl_s / self._itl_s
        if not waits or not before or not produced:  # without a queue throughput is what clients ask for
            return latency
        return max(latency, before / produced)
