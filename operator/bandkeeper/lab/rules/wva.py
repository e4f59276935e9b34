"""The saturation analysers of llm-d's Workload Variant Autoscaler: V2 (token capacity) and V1 (spare KV cache and
queue), from its documentation; one variant. What they emit is carried out by an HPA with the default behavior.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median
from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.hpa import Controller, from_total
from bandkeeper.lab.rules.offered import Work
from bandkeeper.lab.rules.rule import Setting, View, Want
from bandkeeper.lab.server import ContinuousServer

PEAK_WINDOW_S = 60.0
KV_SHARE = 0.80
QUEUE_IS_SATURATED = 5.0
REMEMBERED = 10


class Emitted:
    """An HPA on `wva_desired_replicas`: an external metric with an average value of 1."""

    def __init__(self, setting: Setting) -> None:
        self._controller = Controller(most=setting.policy.max_replicas)

    def decide(self, view: View) -> Want:
        """One sync of the HPA, right after a cycle of the analyser."""
        proposal = from_total(max(1, self.desired(view)), 1.0, view.ready + view.pending)
        return Want(self._controller.step(proposal, view.replicas, view.now_s, least=view.floor))

    def desired(self, view: View) -> int:
        """What the analyser emits."""
        raise NotImplementedError


class TokenCapacity(Emitted):
    """V2: demand in KV tokens against what replicas hold; up above `up` of the supply, down below `down` of it."""

    title: ClassVar[str] = "WVA saturation V2"
    source: ClassVar[str] = "llm-d workload-variant-autoscaler: saturation analyzer V2"
    hindsight: ClassVar[bool] = False

    def __init__(self, setting: Setting, *, up: float, down: float) -> None:
        assert isinstance(setting.server, ContinuousServer)
        super().__init__(setting)
        self._server = setting.server
        self._up, self._down = up, down
        self._work = Work(setting.server)
        self._saturated_at: deque[float] = deque(maxlen=REMEMBERED)

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Pairs of thresholds; the published one is 0.85 and 0.70."""
        if not isinstance(setting.server, ContinuousServer):
            return ()
        pairs = ((0.85, 0.70), (0.60, 0.50), (0.45, 0.35), (0.35, 0.28), (0.25, 0.20))
        return tuple(Choice(f"{up:.2f}/{down:.2f}", {"up": up, "down": down}, default=up == 0.85) for up, down in pairs)

    def desired(self, view: View) -> int:
        """One optimisation cycle; without metrics it keeps what is."""
        self._work.observe(view)
        kv = view.metrics.peak(Signal.KV_CACHE_UTILIZATION, PEAK_WINDOW_S)
        waiting = view.metrics.peak(Signal.REQUESTS_WAITING, PEAK_WINDOW_S)
        if not kv or not self._work.output_tokens:
            return view.replicas
        in_use = {pod: share * self._server.kv_tokens for pod, share in kv.items()}
        for pod, tokens in in_use.items():
            if waiting.get(pod, 0.0) >= QUEUE_IS_SATURATED:
                self._saturated_at.append(tokens)
        charge = self._work.prompt_tokens + self._work.output_tokens
        demand = sum(tokens + waiting.get(pod, 0.0) * charge for pod, tokens in in_use.items())
        capacity = median(self._capacity(waiting.get(pod, 0.0), tokens) for pod, tokens in in_use.items())
        anticipated = (view.ready + view.pending) * capacity
        required = demand / self._up - anticipated
        if required > 0:
            return view.replicas + math.ceil(required / capacity)
        spare = view.ready * capacity - demand / self._down
        return view.replicas - max(0, math.floor(spare / capacity))

    def _capacity(self, waiting: float, tokens: float) -> float:
        """Tokens that a replica holds: what its KV cache permits, and what computing permits, seen or derived."""
        by_memory = self._server.kv_tokens * KV_SHARE
        if waiting >= QUEUE_IS_SATURATED:
            return max(1.0, min(by_memory, tokens))
        if self._saturated_at:
            return max(1.0, min(by_memory, fmean(self._saturated_at)))
        prompt, output = self._work.prompt_tokens, self._work.output_tokens
        together = self._server.prefill_chunk_tokens * output / (prompt + output)
        return min(by_memory, min(together, self._server.batch_max) * (prompt + output / 2))


class Spare(Emitted):
    """V1: one replica more while the mean spare KV cache or queue of the replicas that are not saturated is short, one
    less where the rest would still have enough. `kv` and `queue` are what counts as saturated.
    """

    title: ClassVar[str] = "WVA saturation V1"
    source: ClassVar[str] = "llm-d workload-variant-autoscaler: saturation analyzer"
    hindsight: ClassVar[bool] = False

    KV_TRIGGER: ClassVar[float] = 0.1
    QUEUE_TRIGGER: ClassVar[float] = 3.0

    def __init__(self, setting: Setting, *, kv: float, queue: float) -> None:
        super().__init__(setting)
        self._kv, self._queue = kv, queue

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """The published default is 0.80 of the KV cache and 5 waiting requests."""
        if not isinstance(setting.server, ContinuousServer):
            return ()
        return tuple(Choice(f"KV {kv:.2f}", {"kv": kv, "queue": 5.0}, default=kv == 0.80) for kv in (0.80, 0.50, 0.30))

    def desired(self, view: View) -> int:
        """One optimisation cycle; nothing is added while pods are on their way."""
        kv = view.metrics.peak(Signal.KV_CACHE_UTILIZATION, PEAK_WINDOW_S)
        waiting = view.metrics.peak(Signal.REQUESTS_WAITING, PEAK_WINDOW_S)
        if not kv:
            return view.replicas
        free = [pod for pod in kv if kv[pod] < self._kv and waiting.get(pod, 0.0) < self._queue]
        kv_load, queue_load = sum(kv[pod] for pod in free), sum(waiting.get(pod, 0.0) for pod in free)
        if not self._enough(kv_load, queue_load, len(free)):
            return view.replicas if view.pending else view.ready + 1
        if len(free) >= 2 and not view.pending and self._enough(kv_load, queue_load, len(free) - 1):
            return view.replicas - 1
        return view.replicas

    def _enough(self, kv_load: float, queue_load: float, replicas: int) -> bool:
        if not replicas:
            return False
        spare_kv, spare_queue = self._kv - kv_load / replicas, self._queue - queue_load / replicas
        return spare_kv >= self.KV_TRIGGER and spare_queue >= self.QUEUE_TRIGGER
