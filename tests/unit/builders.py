"""Builders for the decision's tests: a policy, a pod, a snapshot, and all that a test does not care about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Gap, Pod, PodState, Reading, Rollout, Snapshot, Target
from bandkeeper.api.v1alpha1 import FallbackBehavior, Objective, SelectPolicy
from bandkeeper.decide.policy import (
    Band,
    BatchControl,
    Batching,
    CostClass,
    Fallback,
    LatencySLO,
    Policy,
    RateLimit,
    ScalingRules,
    ThroughputSLO,
)

BANDS = {
    Objective.LATENCY_SENSITIVE: Band(0.60, 0.70),
    Objective.BALANCED: Band(0.70, 0.80),
    Objective.THROUGHPUT_SENSITIVE: Band(0.85, 0.95),
}
LIMITS_UP = (RateLimit(value=100, percent=True, period_s=15.0), RateLimit(value=4, percent=False, period_s=15.0))
LIMITS_DOWN = (RateLimit(value=100, percent=True, period_s=15.0),)
TTFT = LatencySLO(signal=Signal.TIME_TO_FIRST_TOKEN, percentile=95, threshold_s=0.5, window_s=60.0)
ITL = LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=95, threshold_s=0.05, window_s=60.0)
E2E = LatencySLO(signal=Signal.END_TO_END_LATENCY, percentile=95, threshold_s=0.1, window_s=60.0)


def rules(
    *,
    window_s: float = 0.0,
    limits: Sequence[RateLimit] = LIMITS_UP,
    select: SelectPolicy = SelectPolicy.MAX,
    tolerance: float = 0.0,
) -> ScalingRules:
    return ScalingRules(stabilization_s=window_s, select=select, limits=tuple(limits), tolerance=tolerance)


def a_batch(
    candidates: Sequence[int] = (8, 16, 32, 64),
    *,
    cost_class: CostClass = CostClass.LIVE,
    delay_s: float = 5.0,
) -> BatchControl:
    return BatchControl(candidates=tuple(candidates), cost_class=cost_class, expected_delay_s=delay_s)


def a_policy(
    objective: Objective = Objective.LATENCY_SENSITIVE,
    *,
    slos: Sequence[LatencySLO | ThroughputSLO] = (),
    replicas: tuple[int, int] = (1, 16),
    batch: BatchControl | None = None,
    batching: Batching = Batching.CONTINUOUS,
    band: Band | None = None,
    scale_up: ScalingRules | None = None,
    scale_down: ScalingRules | None = None,
    fallback: Fallback | None = None,
    default_capacity: int = 64,
    restart_hold_s: float = 60.0,
    rate_window_s: float = 60.0,
    acts: bool = True,
    power_watts: float | None = None,
) -> Policy:
    """A policy with the objective's band, HPA's scaleUp and a scale-down window of a minute."""
    return Policy(
        objective=objective,
        batching=batching,
        slos=tuple(slos),
        band=band or BANDS[objective],
        min_replicas=replicas[0],
        max_replicas=replicas[1],
        batch=batch,
        scale_up=scale_up or rules(),
        scale_down=scale_down or rules(window_s=60.0, limits=LIMITS_DOWN),
        fallback=fallback or Fallback(after_s=180.0, behavior=FallbackBehavior.HOLD),
        default_capacity=default_capacity,
        restart_hold_s=restart_hold_s,
        rate_window_s=rate_window_s,
        acts=acts,
        power_watts=power_watts,
    )


def a_pod(
    name: str = "chat-0",
    state: PodState = PodState.READY,
    *,
    age_s: float = 3700.0,
    state_age_s: float = 3600.0,
    cap: int | None = None,
    capacity: int | None = 64,
    queue_bound: int | None = None,
    prefill_tokens: int | None = None,
    message: str = "",
) -> Pod:
    """A pod that has been ready for an hour and took 100 s to get there."""
    return Pod(
        name=name,
        uid=f"uid-{name}",
        state=state,
        age_s=age_s,
        state_age_s=state_age_s,
        cap=cap,
        capacity=capacity,
        queue_bound=queue_bound,
        prefill_tokens=prefill_tokens,
        message=message,
    )


def pods(count: int, **fields: Any) -> tuple[Pod, ...]:
    """Ready pods chat-0, chat-1, …"""
    return tuple(a_pod(f"chat-{index}", **fields) for index in range(count))


def a_target(replicas: int, *, manager: str = "bandkeeper", uid: str = "uid", rollout: Rollout | None = None) -> Target:
    return Target(uid=uid, replicas=replicas, resource_version="1", manager=manager, rollout=rollout)


def a_distribution(
    counts: Mapping[float, float], *, mean_s: float | None = None, window_s: float = 60.0, age_s: float = 5.0
) -> Distribution:
    """A histogram from observations per bucket, by its upper edge in seconds; infinity is added where missing."""
    edges = sorted({*counts, math.inf})
    cumulative, total = [], 0.0
    for edge in edges:
        total += counts.get(edge, 0.0)
        cumulative.append(total)
    total_s = None if mean_s is None else mean_s * total
    return Distribution(window_s=window_s, edges=tuple(edges), counts=tuple(cumulative), total_s=total_s, age_s=age_s)


def a_snapshot(
    *,
    replicas: int | None = None,
    ready: Sequence[Pod] | int = 1,
    others: Sequence[Pod] = (),
    target: Target | None = None,
    running: float | None = 30.0,
    waiting: float | None = 0.0,
    distributions: Mapping[Signal, Distribution] | None = None,
    gaps: Sequence[Gap] = (),
    pods_age_s: float = 1.0,
    silent: Sequence[str] = (),
    **rates: float,
) -> Snapshot:
    """`running`, `waiting` and the rates (named like members of Signal, in lower case) are totals over the ready pods.

    They are spread evenly; pods named in `silent` have no data.
    """
    ready_pods = pods(ready) if isinstance(ready, int) else tuple(ready)
    everything = {"requests_running": running, "requests_waiting": waiting, **rates}
    told = [pod.name for pod in ready_pods if pod.name not in silent]
    by_pod = {
        Signal[name.upper()]: {pod: Reading(value / max(1, len(ready_pods)), 5.0) for pod in told}
        for name, value in everything.items()
        if value is not None and told
    }
    return Snapshot(
        target=target or a_target(len(ready_pods) if replicas is None else replicas),
        pods=(*ready_pods, *others),
        pods_age_s=pods_age_s,
        by_pod=by_pod,
        distributions={
            (signal, round(distribution.window_s)): distribution
            for signal, distribution in (distributions or {}).items()
        },
        gaps=tuple(gaps),
    )
