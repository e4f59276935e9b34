"""What rules read off the metrics in the same way: totals, offered requests per second, lengths, replicas' work."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from bandkeeper.api.signals import Signal
from bandkeeper.lab.requests import Requests, Seconds
from bandkeeper.lab.rules.rule import View
from bandkeeper.lab.server import ContinuousServer, Server

RATE_WINDOW_S = 60.0
LENGTH_WINDOW_S = 300.0


def total(by_pod: Mapping[str, float]) -> float | None:
    """Sum over the pods that told; None where none did."""
    return sum(by_pod.values()) if by_pod else None


def per_pod(by_pod: Mapping[str, float]) -> float | None:
    """Mean over the pods that told; None where none did."""
    return sum(by_pod.values()) / len(by_pod) if by_pod else None


class Offered:
    """Requests per second that clients ask for: finished, refused, and the growth of what is in the fleet."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._held: deque[tuple[float, Mapping[str, float]]] = deque()

    def observe(self, view: View) -> float | None:
        """The rate over the window up to now; None where nothing was told. To be called at each decision."""
        finished = total(view.metrics.rate(Signal.REQUESTS_FINISHED, self._window_s))
        running = view.metrics.latest(Signal.REQUESTS_RUNNING)
        waiting = view.metrics.latest(Signal.REQUESTS_WAITING)
        if finished is None or not running:
            return None
        held = {pod: value + waiting.get(pod, 0.0) for pod, value in running.items()}
        self._held.append((view.now_s, held))
        while len(self._held) > 1 and self._held[1][0] <= view.now_s - self._window_s:
            self._held.popleft()
        refused = total(view.metrics.rate(Signal.REQUESTS_REJECTED, self._window_s)) or 0.0
        return max(0.0, finished + refused + self._growth(held, view.now_s))

    def _growth(self, held: Mapping[str, float], now_s: float) -> float:
        """Per second, of the pods that are there now; what left with a pod is no fall of demand."""
        then_s, then = self._held[0]
        if then_s >= now_s:
            return 0.0
        return sum(value - then.get(pod, 0.0) for pod, value in held.items()) / (now_s - then_s)


class Work:
    """Offered work in replicas: offered requests per second over what a replica sustains at lengths as measured."""

    def __init__(self, server: Server, window_s: float = RATE_WINDOW_S) -> None:
        self._server = server
        self._offered = Offered(window_s)
        self._sustainable_per_s: float | None = None
        self.prompt_tokens = 0.0
        self.output_tokens = 0.0

    def observe(self, view: View) -> float | None:
        """None until rates and lengths are known."""
        offered = self._offered.observe(view)
        self._measure_lengths(view)
        if offered is None or self._sustainable_per_s is None:
            return None
        return offered / self._sustainable_per_s

    @property
    def sustainable_per_s(self) -> float | None:
        """Requests per second of one replica at its best batch."""
        return self._sustainable_per_s

    def _measure_lengths(self, view: View) -> None:
        if not isinstance(self._server, ContinuousServer):
            self._sustainable_per_s = self._server.sustainable_per_s()
            return
        finished = total(view.metrics.rate(Signal.REQUESTS_FINISHED, LENGTH_WINDOW_S))
        prompt = total(view.metrics.rate(Signal.PROMPT_TOKENS, LENGTH_WINDOW_S))
        output = total(view.metrics.rate(Signal.GENERATION_TOKENS, LENGTH_WINDOW_S))
        if finished and prompt and output:
            self.prompt_tokens, self.output_tokens = prompt / finished, output / finished
            self._sustainable_per_s = self._server.sustainable_per_s(self.prompt_tokens, self.output_tokens)


def work_by_second(server: Server, requests: Requests) -> Seconds:
    """Replicas' work that arrives in each second of the run: knows the future, for bounds in hindsight only."""
    seconds = max(1, int(np.ceil(requests.duration_s)))
    slots = np.minimum(requests.arrival_s.astype(np.int64), seconds - 1)
    work: Seconds = np.bincount(slots, weights=_replica_seconds(server, requests), minlength=seconds).astype(np.float64)
    return work


def _replica_seconds(server: Server, requests: Requests) -> Seconds:
    """What each request takes of a replica that runs at its best batch."""
    if not len(requests) or not isinstance(server, ContinuousServer):
        return np.full(len(requests), 1.0 / server.sustainable_per_s(1.0, 1.0))
    prompt, output = requests.prompt_tokens.astype(np.float64), requests.output_tokens.astype(np.float64)
    mean_context = requests.mean_prompt_tokens + requests.mean_output_tokens / 2
    batch = server.best_batch(requests.mean_prompt_tokens, requests.mean_output_tokens)
    step_s = server.step_s(batch, batch * mean_context)
    own_s = server.kappa_ms_per_ktoken * (prompt + output / 2 - mean_context) / 1e6
    prefill_s = (server.gamma_ms + server.delta_ms_per_token * prompt) / 1000.0
    work: Seconds = prefill_s + np.maximum(0.0, output - 1) * (step_s / batch + own_s)
    return work
