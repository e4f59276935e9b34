"""Hand-made views for the tests of the lab's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Pod, PodState, Snapshot, Target
from bandkeeper.api.v1alpha1 import FallbackBehavior, Objective, SelectPolicy
from bandkeeper.decide.policy import (
    Band,
    Batching,
    Fallback,
    LatencySLO,
    Policy,
    RateLimit,
    ScalingRules,
)
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.rules.rule import Setting, View
from bandkeeper.lab.server import ContinuousServer, DynamicServer, Server

_ANY = ScalingRules(
    stabilization_s=0.0,
    select=SelectPolicy.MAX,
    limits=(RateLimit(value=100, percent=True, period_s=15.0),),
    tolerance=0.0,
)
POLICY = Policy(
    objective=Objective.LATENCY_SENSITIVE,
    batching=Batching.CONTINUOUS,
    slos=(
        LatencySLO(signal=Signal.TIME_TO_FIRST_TOKEN, percentile=95, threshold_s=1.0, window_s=60.0),
        LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=95, threshold_s=0.1, window_s=60.0),
    ),
    band=Band(0.6, 0.7),
    min_replicas=1,
    max_replicas=64,
    batch=None,
    scale_up=_ANY,
    scale_down=_ANY,
    fallback=Fallback(after_s=180.0, behavior=FallbackBehavior.HOLD),
    default_capacity=64,
)
SERVER = ContinuousServer(
    model="test",
    gpu="test",
    source="test",
    batch_max=64,
    alpha_ms=20.0,
    beta_ms=0.4,
    gamma_ms=5.0,
    delta_ms_per_token=0.1,
    kv_tokens=100_000,
)
DYNAMIC = DynamicServer(model="test", gpu="test", source="test", batch_max=8, kind="dynamic", batch_ms={1: 4.0, 8: 8.0})


def a_setting(server: Server = SERVER, requests: Requests | None = None) -> Setting:
    """A policy of 1 to 64 replicas, TTFT 1 s and ITL 100 ms, for a reference server."""
    return Setting(policy=POLICY, server=server, requests=requests or steady(per_s=4.0))


def steady(*, per_s: float, duration_s: float = 600.0, prompt: int = 1000, output: int = 200) -> Requests:
    """Evenly spaced requests of one length."""
    count = int(per_s * duration_s)
    return Requests(
        arrival_s=np.arange(count) / per_s,
        prompt_tokens=np.full(count, prompt, dtype=np.int32),
        output_tokens=np.full(count, output, dtype=np.int32),
        duration_s=duration_s,
        name="steady",
    )


class Told:
    """Metrics that say what they were given, whatever the window."""

    def __init__(
        self,
        gauges: Mapping[Signal, Mapping[str, float]],
        rates: Mapping[Signal, Mapping[str, float]],
        averages: Mapping[Signal, float],
    ) -> None:
        self._gauges, self._rates, self._averages = gauges, rates, averages

    def latest(self, signal: Signal) -> Mapping[str, float]:
        return self._gauges.get(signal, {})

    def mean(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        return self.latest(signal)

    def peak(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        return self.latest(signal)

    def rate(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        return self._rates.get(signal, {})

    def quantile(self, signal: Signal, share: float, window_s: float) -> float | None:
        return self._averages.get(signal)

    def average(self, signal: Signal, window_s: float) -> float | None:
        return self._averages.get(signal)


def a_view(
    now_s: float = 0.0,
    *,
    ready: int = 4,
    pending: int = 0,
    gauges: Mapping[Signal, Sequence[float | None]] | None = None,
    rates: Mapping[Signal, Sequence[float | None]] | None = None,
    averages: Mapping[Signal, float] | None = None,
    replicas: int | None = None,
    unschedulable: int = 0,
    cap: int = 64,
    floor: int = 1,
) -> View:
    """Pods p0, p1 … with values in this order (None: this pod told nothing); all ready ones first, then pending."""
    states = [PodState.READY] * ready + [PodState.PENDING] * pending + [PodState.UNSCHEDULABLE] * unschedulable
    pods = tuple(Pod(name=f"p{number}", state=state, cap=cap) for number, state in enumerate(states))
    wanted = len(pods) if replicas is None else replicas
    return View(
        now_s=now_s,
        replicas=wanted,
        floor=floor,
        ready=ready,
        pending=pending + unschedulable,
        cap=cap,
        metrics=Told(_by_pod(gauges), _by_pod(rates), averages or {}),
        snapshot=Snapshot(target=Target(uid="u", replicas=wanted), pods=pods),
    )


def offering(
    now_s: float,
    per_s: float,
    *,
    ready: int = 4,
    pending: int = 0,
    running: float = 10.0,
    waiting: float = 0.0,
    prompt: float = 1000.0,
    output: float = 200.0,
    replicas: int | None = None,
) -> View:
    """A view of a fleet that is offered `per_s` requests per second, evenly over its ready pods."""
    each = per_s / ready
    return a_view(
        now_s,
        ready=ready,
        pending=pending,
        replicas=replicas,
        gauges={
            Signal.REQUESTS_RUNNING: [running] * ready,
            Signal.REQUESTS_WAITING: [waiting] * ready,
            Signal.KV_CACHE_UTILIZATION: [running * (prompt + output / 2) / 100_000] * ready,
        },
        rates={
            Signal.REQUESTS_FINISHED: [each] * ready,
            Signal.PROMPT_TOKENS: [each * prompt] * ready,
            Signal.GENERATION_TOKENS: [each * output] * ready,
        },
    )


def _by_pod(values: Mapping[Signal, Sequence[float | None]] | None) -> dict[Signal, dict[str, float]]:
    return {
        signal: {f"p{number}": value for number, value in enumerate(row) if value is not None}
        for signal, row in (values or {}).items()
    }
