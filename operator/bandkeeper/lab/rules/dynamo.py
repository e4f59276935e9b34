"""Dynamo Planner's loops for aggregated workers: one that adds or removes a replica by predicted TTFT and ITL every
five seconds, above a lower bound from the request rate every three minutes. True constants replace its regression.
"""

from __future__ import annotations

import math
from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import LatencySLO
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.offered import Work, total
from bandkeeper.lab.rules.rule import Setting, View, Want
from bandkeeper.lab.server import ContinuousServer

LOAD_PERIOD_S = 5.0
RATE_PERIOD_S = 180.0
SENSITIVITY = 0.8


class Dynamo:
    """Up by one when every worker is predicted over its target; down by one when the rest, with the load of the one
    removed, stays under 80 % of it. Nothing moves while a change is under way. It predicts means: the targets are
    `share` of the policy's thresholds, because a percentile asks for a lower mean.
    """

    title: ClassVar[str] = "Dynamo-style load loop"
    source: ClassVar[str] = "docs.nvidia.com/dynamo: Planner design, load-based and throughput-based scaling"
    hindsight: ClassVar[bool] = False
    period_s: ClassVar[float] = LOAD_PERIOD_S
    scrape_s: ClassVar[float] = LOAD_PERIOD_S

    def __init__(self, setting: Setting, *, share: float, rate_floor: bool) -> None:
        assert isinstance(setting.server, ContinuousServer)
        self._server = setting.server
        self._rate_floor = rate_floor
        self._work = Work(setting.server)
        limits = {slo.signal: share * slo.threshold_s for slo in setting.policy.slos if isinstance(slo, LatencySLO)}
        self._ttft_s = limits.get(Signal.TIME_TO_FIRST_TOKEN, math.inf)
        self._itl_s = limits.get(Signal.INTER_TOKEN_LATENCY, math.inf)
        self._floor = 1
        self._rated_s = -math.inf

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Targets down to a quarter of the thresholds; both loops may run together."""
        if not isinstance(setting.server, ContinuousServer):
            return ()
        load = (
            Choice(f"load {share:.2f}", {"share": share, "rate_floor": False}, share == 1.0) for share in (1.0, 0.4)
        )
        both = (
            Choice(f"load + rate {share:.2f}", {"share": share, "rate_floor": True}) for share in (1.0, 0.4, 0.33, 0.27)
        )
        return (*load, *both)

    def decide(self, view: View) -> Want:
        """One tick of the load loop, and of the rate loop when it is due; without metrics it holds."""
        work = self._work.observe(view)
        running = view.metrics.latest(Signal.REQUESTS_RUNNING)
        if work is None or not running:
            return Want(view.replicas)
        if self._rate_floor and view.now_s - self._rated_s >= RATE_PERIOD_S:
            self._floor, self._rated_s = self._by_rate(work), view.now_s
        if view.pending or view.ready != view.replicas:
            return Want(max(view.replicas, self._floor))
        waiting = view.metrics.latest(Signal.REQUESTS_WAITING)
        prefill_per_s = (total(view.metrics.rate(Signal.PROMPT_TOKENS, 60.0)) or 0.0) / view.ready
        loads = [(value, waiting.get(pod, 0.0)) for pod, value in running.items()]
        return Want(max(self._floor, view.replicas + self._by_load(loads, prefill_per_s, view.ready)))

    def _by_load(self, loads: list[tuple[float, float]], prefill_per_s: float, ready: int) -> int:
        now = [self._predicted(batch, queue, prefill_per_s) for batch, queue in loads]
        if all(wait_s + own_s > self._ttft_s for wait_s, own_s, _ in now) or all(itl > self._itl_s for *_, itl in now):
            return 1
        if ready < 2:
            return 0
        more = ready / (ready - 1)
        fewer = [self._predicted(batch * more, queue * more, prefill_per_s * more) for batch, queue in loads]
        fits = all(
            itl_s < self._itl_s * SENSITIVITY and wait_s < (self._ttft_s - own_s) * SENSITIVITY
            for wait_s, own_s, itl_s in fewer
        )
        return -1 if fits else 0

    def _predicted(self, batch: float, queue: float, prefill_per_s: float) -> tuple[float, float, float]:
        """Seconds that a new request waits for the prompts before it, that its own prompt takes, and of one step."""
        server, work = self._server, self._work
        context = batch * (work.prompt_tokens + work.output_tokens / 2)
        decode_s = server.step_s(batch, context)
        busy = min(0.95, prefill_per_s * server.delta_ms_per_token / 1000.0)
        step_s = decode_s / (1.0 - busy)
        chunk_s = server.step_s(batch, context, server.prefill_chunk_tokens)
        queued = queue * work.prompt_tokens
        wait_s = queued / server.prefill_chunk_tokens * chunk_s + max(0.0, batch + queue - server.batch_max) * step_s
        return wait_s, server.step_s(batch, context, work.prompt_tokens), step_s

    def _by_rate(self, work: float) -> int:
        """Replicas for the rate seen, each at the largest batch whose decode step keeps the ITL objective."""
        server, lengths = self._server, self._work
        assert lengths.sustainable_per_s is not None
        context = lengths.prompt_tokens + lengths.output_tokens / 2
        most = server.best_batch(lengths.prompt_tokens, lengths.output_tokens)
        batch = max(
            (one for one in range(1, int(most) + 1) if server.step_s(one, one * context) <= self._itl_s), default=1
        )
        prefill_s = (server.gamma_ms + server.delta_ms_per_token * lengths.prompt_tokens) / 1000.0
        each_s = prefill_s + lengths.output_tokens * server.step_s(batch, batch * context) / batch
        return max(1, math.ceil(work * lengths.sustainable_per_s * each_s))
