"""Models that look at the request rate alone: rate over what a replica sustains, or over what a state-dependent queue
(WVA's parked analyser) says that it may carry inside the objectives. The server's constants are known to them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

import numpy as np

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import LatencySLO
from bandkeeper.lab.requests import Seconds
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.offered import Work
from bandkeeper.lab.rules.rule import Setting, View, Want
from bandkeeper.lab.rules.wva import Emitted
from bandkeeper.lab.server import ContinuousServer

QUEUE_PER_BATCH = 10
STABLE_SHARE = 0.9
HALVINGS = 24


class RateModel:
    """Replicas = `margin` x offered work, rounded up."""

    title: ClassVar[str] = "Rate-only model"
    source: ClassVar[str] = "requests per second over requests per second of one replica"
    hindsight: ClassVar[bool] = False

    def __init__(self, setting: Setting, *, margin: float) -> None:
        self._margin = margin
        self._work = Work(setting.server)

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Margins over the work."""
        margins = (1.0, 1.3, 1.6, 1.8, 2.1, 2.5)
        return tuple(Choice(f"x{margin:.1f}", {"margin": margin}, default=margin == 1.0) for margin in margins)

    def decide(self, view: View) -> Want:
        """Without a rate it holds."""
        work = self._work.observe(view)
        return Want(view.replicas if work is None else max(1, math.ceil(self._margin * work)))


class QueueModel(Emitted):
    """Replicas = `margin` x offered rate over the highest rate at which mean TTFT and ITL keep the objectives."""

    title: ClassVar[str] = "Queueing model (WVA, parked)"
    source: ClassVar[str] = "llm-d workload-variant-autoscaler: SLO queueing-model analyzer"
    hindsight: ClassVar[bool] = False

    def __init__(self, setting: Setting, *, margin: float) -> None:
        assert isinstance(setting.server, ContinuousServer)
        super().__init__(setting)
        self._server = setting.server
        self._margin = margin
        self._work = Work(setting.server)
        self._limits = {slo.signal: slo.threshold_s for slo in setting.policy.slos if isinstance(slo, LatencySLO)}

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """The analyser has no margin of its own."""
        if not isinstance(setting.server, ContinuousServer):
            return ()
        margins = (1.0, 1.3, 1.6, 2.0)
        return tuple(Choice(f"x{margin:.2f}", {"margin": margin}, default=margin == 1.0) for margin in margins)

    def desired(self, view: View) -> int:
        """Without a rate it holds."""
        work = self._work.observe(view)
        if work is None or self._work.sustainable_per_s is None:
            return view.replicas
        prompt, output = round(self._work.prompt_tokens, -1), round(self._work.output_tokens, -1)
        most = highest_rate(
            self._server,
            max(10.0, prompt),
            max(10.0, output),
            self._limits.get(Signal.TIME_TO_FIRST_TOKEN, math.inf),
            self._limits.get(Signal.INTER_TOKEN_LATENCY, math.inf),
        )
        return max(1, math.ceil(self._margin * work * self._work.sustainable_per_s / most))


@lru_cache(maxsize=4096)
def highest_rate(server: ContinuousServer, prompt: float, output: float, ttft_s: float, itl_s: float) -> float:
    """Requests per second of one replica at which mean TTFT and ITL just keep their limits, by bisection."""
    rates = _service_rates(server, prompt, output)
    low, high = 0.0, STABLE_SHARE * float(rates[-1])
    if _keeps(server, rates, high, prompt, output, ttft_s, itl_s):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _keeps(server, rates, middle, prompt, output, ttft_s, itl_s):
            low = middle
        else:
            high = middle
    return max(low, 1e-6)


def _service_rates(server: ContinuousServer, prompt: float, output: float) -> Seconds:
    """Requests per second that leave a replica with 1, 2 … requests in its batch."""
    batches = range(1, server.batch_max + 1)
    return np.array([batch / _service_s(server, batch, prompt, output) for batch in batches])


def _service_s(server: ContinuousServer, batch: float, prompt: float, output: float) -> float:
    """Seconds of one request among `batch`: its prefill, and its decode steps, which others' prefills lengthen."""
    return _prefill_s(server, prompt) + max(1.0, output - 1) * _itl_s(server, batch, prompt, output)


def _itl_s(server: ContinuousServer, batch: float, prompt: float, output: float) -> float:
    """Mean time between tokens: a decode step, and the share of others' prefills that falls on it."""
    step_s = server.step_s(batch, batch * (prompt + output / 2))
    return step_s + max(0.0, batch - 1) / max(1.0, output) * _prefill_s(server, prompt)


def _prefill_s(server: ContinuousServer, prompt: float) -> float:
    return (server.gamma_ms + server.delta_ms_per_token * prompt) / 1000.0


def _keeps(
    server: ContinuousServer, rates: Seconds, rate: float, prompt: float, output: float, ttft_s: float, itl_s: float
) -> bool:
    in_system, in_batch, served = _birth_death(rates, rate)
    if served <= 0:
        return True
    batch = max(1.0, in_batch)
    wait_s = max(0.0, (in_system - in_batch) / served)
    step_s = server.step_s(batch, batch * (prompt + output / 2))
    first_s = wait_s + _prefill_s(server, prompt) + step_s
    return first_s <= ttft_s and _itl_s(server, batch, prompt, output) <= itl_s


def _birth_death(rates: Seconds, rate: float) -> tuple[float, float, float]:
    """Mean requests in the replica, mean in its batch, and requests served per second, with a bounded queue."""
    places = len(rates) * (1 + QUEUE_PER_BATCH)
    count = np.arange(places + 1)
    batch = np.minimum(count, len(rates))
    logs = np.concatenate(([0.0], np.cumsum(np.log(rate / rates[batch[1:] - 1]))))
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    return float(weights @ count), float(weights @ batch), rate * float(1.0 - weights[-1])
