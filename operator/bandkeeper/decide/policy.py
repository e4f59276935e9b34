"""A policy with every default resolved, as plain numbers: what the decision reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bandkeeper.api.signals import Signal
from bandkeeper.api.v1alpha1 import FallbackBehavior, Objective, SelectPolicy


class Batching(StrEnum):
    """How the model server forms batches."""

    CONTINUOUS = "Continuous"
    DYNAMIC = "Dynamic"
    UNKNOWN = "Unknown"


class CostClass(StrEnum):
    """What a change of the batch cap costs (design section 9)."""

    LIVE = "Live"
    EVENTUAL = "Eventual"
    RELOAD = "Reload"
    ROLLOUT = "Rollout"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySLO:
    """`percentile` of `signal` over `window_s` is at most `threshold_s`."""

    signal: Signal
    percentile: int
    threshold_s: float
    window_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputSLO:
    """The rate of `signal` over `window_s` is at least `min_per_s` while work waits."""

    signal: Signal
    min_per_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Band:
    """Edges of the utilisation band as ratios, 0 < low < high <= 1."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """At most `value` pods (or percent, when `percent`) of change in `period_s`."""

    value: int
    percent: bool
    period_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRules:
    """One direction of HPA's behavior; `tolerance` is a ratio."""

    stabilization_s: float
    select: SelectPolicy
    limits: tuple[RateLimit, ...]
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchControl:
    """The batch knob: permitted caps, ascending, and what a change costs."""

    candidates: tuple[int, ...]
    cost_class: CostClass
    expected_delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What holds when no metrics were usable for `after_s`."""

    after_s: float
    behavior: FallbackBehavior
    replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything in force for one workload.

    Attributes
    ----------
    default_capacity
        Batch capacity of a replica where neither the policy nor the pods tell it.
    restart_hold_s
        No scale-in before this much time was observed after a start or a change of leader.
    """

    objective: Objective
    batching: Batching
    slos: tuple[LatencySLO | ThroughputSLO, ...]
    band: Band
    min_replicas: int
    max_replicas: int
    batch: BatchControl | None
    scale_up: ScalingRules
    scale_down: ScalingRules
    fallback: Fallback
    default_capacity: int
    restart_hold_s: float = 300.0
