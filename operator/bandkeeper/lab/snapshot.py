"""The snapshot that the operator would make of a simulated fleet: same signals, windows, ages and gaps.

A test compares it with what the operator's own signals room makes of the same samples in a real Prometheus' words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bandkeeper.api.signals import CATALOGUE, LATENCY_SIGNALS, Signal, SignalKind
from bandkeeper.api.snapshot import (
    Distribution,
    Gap,
    GapReason,
    Pod,
    PodState,
    Reading,
    Snapshot,
    Target,
)
from bandkeeper.decide.policy import CostClass, LatencySLO, Policy
from bandkeeper.lab.fleet import PodNow
from bandkeeper.lab.scrape import Scraper, quantile_of
from bandkeeper.lab.server import ContinuousServer, DynamicServer, Server

_GPU = frozenset(
    {
        Signal.GPU_UTILIZATION,
        Signal.GR_ENGINE_ACTIVE,
        Signal.SM_ACTIVE,
        Signal.TENSOR_ACTIVE,
        Signal.DRAM_ACTIVE,
    }
)
VLLM = _GPU | {
    Signal.REQUESTS_RUNNING,
    Signal.REQUESTS_WAITING,
    Signal.REQUESTS_FINISHED,
    Signal.REQUESTS_FAILED,
    Signal.REQUESTS_REJECTED,
    Signal.PREEMPTIONS,
    Signal.PROMPT_TOKENS,
    Signal.GENERATION_TOKENS,
    Signal.KV_CACHE_UTILIZATION,
}
"""Levels and rates that the operator's preset for vLLM reads; power where the policy limits it."""
TRITON = _GPU | {
    Signal.REQUESTS_RUNNING,
    Signal.REQUESTS_WAITING,
    Signal.REQUESTS_FINISHED,
    Signal.REQUESTS_FAILED,
    Signal.REQUESTS_REJECTED,
    Signal.SAMPLES,
    Signal.BATCH_SIZE,
}
VLLM_LATENCIES = LATENCY_SIGNALS
TRITON_LATENCIES = frozenset({Signal.END_TO_END_LATENCY, Signal.QUEUE_TIME})

GPU_EVERY_S = 25.0
SUMMARY_WINDOW_S = 60.0
SUMMARY_PERCENTILES = (50, 90, 95, 99)
LIVE = (PodState.READY, PodState.PENDING, PodState.UNSCHEDULABLE)
"""Pods that a batch cap is written on."""

_UID = "simulated"
_EDGES_ABOVE_THRESHOLD = 4.0
_PODS_NAMED = 3


class Observer:
    """Makes the snapshots of one run."""

    def __init__(self, policy: Policy, server: Server, scraper: Scraper) -> None:
        self._policy, self._server, self._scraper = policy, server, scraper
        dynamic = isinstance(server, DynamicServer)
        metered = {Signal.POWER} if policy.power_watts is not None else set()
        self._levels = tuple(sorted((TRITON if dynamic else VLLM) | metered))
        self._latencies = TRITON_LATENCIES if dynamic else VLLM_LATENCIES
        self._summaries = dynamic
        self._rollout = policy.batch is not None and policy.batch.cost_class is CostClass.ROLLOUT
        self._gpus_asked_s = -math.inf
        self._gpus_scraped_s = 0.0

    def snapshot(
        self, now_s: float, pods: Sequence[PodNow], *, replicas: int, caps_written: Mapping[str, int]
    ) -> Snapshot:
        """What the operator sees now; `caps_written` is what was written on which pod for the batch cap."""
        ready = tuple(pod.name for pod in pods if pod.state is PodState.READY)
        by_pod: dict[Signal, Mapping[str, Reading]] = {}
        distributions: dict[tuple[Signal, int], Distribution] = {}
        gaps: list[Gap] = []
        age_s = now_s - (self._scraper.last_s or 0.0)
        gpu_age_s = self._gpu_age_s(now_s)
        for signal in self._levels:
            values = self._level(signal)
            if values:
                of_signal_s = gpu_age_s if signal in _GPU else age_s
                by_pod[signal] = {pod: Reading(value, of_signal_s) for pod, value in values.items()}
            if len(values) < len(ready) or not ready:
                gaps.append(_lacking(signal, [pod for pod in ready if pod not in values], ready))
        for slo in self._policy.slos:
            if isinstance(slo, LatencySLO) and (slo.signal, round(slo.window_s)) not in distributions:
                found = self._distribution(slo.signal, slo.window_s, ready, age_s)
                if found is not None:
                    distributions[slo.signal, round(slo.window_s)] = found
                else:
                    gaps.append(_lacking(slo.signal, ready, ready))
        return Snapshot(
            target=Target(uid=_UID, replicas=replicas, manager="bandkeeper"),
            pods=tuple(self._pod(pod, now_s, caps_written) for pod in pods),
            by_pod=by_pod,
            distributions=distributions,
            gaps=tuple(gaps),
            recalled=self._scraper.past.recalled(now_s),
        )

    def _gpu_age_s(self, now_s: float) -> float:
        """The operator asks for GPUs at every second tick, and in between they are as old as that makes them."""
        last_s = self._scraper.last_s
        if last_s is not None and now_s - self._gpus_asked_s >= GPU_EVERY_S:
            self._gpus_asked_s, self._gpus_scraped_s = now_s, last_s
        return now_s - self._gpus_scraped_s

    def _level(self, signal: Signal) -> Mapping[str, float]:
        if self._scraper.last_s is None or (signal is Signal.REQUESTS_REJECTED and self._server.max_queue is None):
            return {}
        if CATALOGUE[signal].kind is SignalKind.COUNTER:
            return self._scraper.rate(signal, self._policy.rate_window_s)
        return self._scraper.latest(signal)

    def _distribution(self, signal: Signal, window_s: float, ready: Sequence[str], age_s: float) -> Distribution | None:
        if signal not in self._latencies or not any(self._scraper.is_scraped(pod) for pod in ready):
            return None
        if self._summaries:
            return self._summary(signal, age_s)
        grown = self._scraper.increase(signal, window_s)
        if not grown.size:
            return None
        edges = (*self._scraper.edges_s(signal), math.inf)
        counts = np.cumsum(grown[:-1])
        kept = self._in_use(signal, window_s, edges)
        return Distribution(
            window_s=window_s,
            edges=tuple(edges[index] for index in kept),
            counts=tuple(float(counts[index]) for index in kept),
            total_s=float(grown[-1]),
            age_s=age_s,
        )

    def _in_use(self, signal: Signal, window_s: float, edges: Sequence[float]) -> list[int]:
        """The edges that the operator asks for: up to four times the threshold, at least one at or above it."""
        threshold_s = max(
            slo.threshold_s
            for slo in self._policy.slos
            if isinstance(slo, LatencySLO) and slo.signal is signal and slo.window_s == window_s
        )
        above = next(edge for edge in edges if edge >= threshold_s)
        bound = max(_EDGES_ABOVE_THRESHOLD * threshold_s, above)
        return [index for index, edge in enumerate(edges) if edge <= bound or math.isinf(edge)]

    def _summary(self, signal: Signal, age_s: float) -> Distribution:
        """Percentiles as a Triton computes them over its last minute, the worst pod's."""
        edges, worst = self._scraper.edges_s(signal), dict[int, float]()
        for grown in self._scraper.increase_by_pod(signal, SUMMARY_WINDOW_S).values():
            counts = np.cumsum(grown[:-1])
            for percentile in SUMMARY_PERCENTILES:
                value = quantile_of(edges, counts, percentile / 100)
                if value is not None:
                    worst[percentile] = max(value, worst.get(percentile, 0.0))
        return Distribution(window_s=SUMMARY_WINDOW_S, quantiles=worst, age_s=age_s)

    def _pod(self, pod: PodNow, now_s: float, caps_written: Mapping[str, int]) -> Pod:
        booted_before_s = self._server.cold_start.median_s if pod.ordered_s <= 0 else 0.0
        if self._policy.batch is None:
            cap, capacity = None, self._server.batch_max
        elif self._rollout:
            cap, capacity = pod.cap, None  # the template's variable is all there is, and it is the cap
        else:
            cap, capacity = caps_written.get(pod.name), self._server.batch_max
        return Pod(
            name=pod.name,
            uid=pod.name,
            state=pod.state,
            age_s=now_s - pod.ordered_s + booted_before_s,
            state_age_s=now_s - (pod.since_s if pod.ready_s is None else pod.ready_s),
            cap=cap,
            capacity=capacity,
            queue_bound=self._server.max_queue,
            prefill_tokens=self._server.prefill_chunk_tokens if isinstance(self._server, ContinuousServer) else None,
            message="no node has a free GPU" if pod.state is PodState.UNSCHEDULABLE else "",
        )


def _lacking(signal: Signal, pods: Sequence[str], ready: Sequence[str]) -> Gap:
    if not ready:
        return Gap(signal=signal, reason=GapReason.ABSENT, detail="no pod is ready")
    shown = ", ".join(pods[:_PODS_NAMED])
    more = len(pods) - _PODS_NAMED
    named = f"{shown} and {more} more" if more > 0 else shown
    return Gap(
        signal=signal,
        reason=GapReason.PARTIAL if len(pods) < len(ready) else GapReason.ABSENT,
        detail=f"{signal} has no value for {len(pods)} of {len(ready)} ready pods: {named}",
        pods=tuple(pods[:_PODS_NAMED]),
    )
