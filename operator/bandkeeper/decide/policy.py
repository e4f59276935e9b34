"""A policy with every default resolved, as plain numbers: what the decision reads."""

from __future__ import annotations

from dataclasses import field
from datetime import datetime
from enum import StrEnum
from statistics import fmean, linear_regression

from bandkeeper.api import durations, v1alpha1
from bandkeeper.api.records import dataclass
from bandkeeper.api.signals import LATENCY_SIGNALS, THROUGHPUT_SIGNALS, Signal
from bandkeeper.api.v1alpha1 import FallbackBehavior, Objective, SelectPolicy
from bandkeeper.quality.peaks import DEFAULT, Table
from bandkeeper.quality.types import Thresholds


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
    """The batch knob: permitted caps, ascending, and what a change costs.

    `power` says, as a clause, why larger caps draw too much power; "" where they do not.
    """

    candidates: tuple[int, ...]
    cost_class: CostClass
    expected_delay_s: float
    power: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What holds when no metrics were usable for `after_s`."""

    after_s: float
    behavior: FallbackBehavior
    replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """When a backlog is to be done: what is left at any time `within_s` later, or all of it at `by_s` (epoch seconds).

    `backlog` tells what is left, `rate` how fast it is done.
    """

    backlog: Signal
    rate: Signal
    within_s: float | None = None
    by_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a person measured of the servers; None where it was not told.

    Attributes
    ----------
    alpha_s, beta_s, delta_s
        Time of a step, and more of it for each request and each prompt token.
    batches
        Sizes of batches and their seconds, rising; a straight line gives the same.
    kv_tokens
        Tokens that the KV cache of a replica holds.
    """

    alpha_s: float
    beta_s: float | None
    delta_s: float | None
    batches: tuple[tuple[float, float], ...]
    kv_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything in force for one workload.

    Attributes
    ----------
    default_capacity
        Batch capacity of a replica where neither the policy nor the pods tell it.
    restart_hold_s
        No scale-in before this much time was observed after a start or a change of leader.
    rate_window_s
        Window over which the snapshot's counter rates were taken.
    acts
        False in Recommend mode: the target is driven by others, and what they write is followed without being taken
        for an interference.
    shared_network, shared_storage
        Bytes per second that all replicas together can move at most; None where nobody said.
    power_watts
        The most that each GPU may draw; None where nobody said.
    least_efficiency
        Ratio below which no worker is added; None where nobody said.
    drain_s
        Time in which a queue is to be gone; None where nobody said.
    deadline
        Of a backlog; None without one.
    profile
        What is known of the servers beforehand; None where nobody said.
    quality, peaks
        Bounds that the quality of utilisation is judged by, and what each GPU can do at most.
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
    rate_window_s: float = 60.0
    acts: bool = True
    shared_network: float | None = None
    shared_storage: float | None = None
    power_watts: float | None = None
    least_efficiency: float | None = None
    drain_s: float | None = None
    deadline: Deadline | None = None
    quality: Thresholds = field(default_factory=Thresholds)
    peaks: Table = DEFAULT
    profile: Profile | None = None


class PolicyError(ValueError):
    """The spec cannot be decided on; the text says what to write instead."""


_BANDS = {
    Objective.LATENCY_SENSITIVE: Band(0.60, 0.70),
    Objective.BALANCED: Band(0.70, 0.80),
    Objective.THROUGHPUT_SENSITIVE: Band(0.85, 0.95),
}
_SCALE_DOWN_WINDOWS_S = {
    Objective.LATENCY_SENSITIVE: 300.0,
    Objective.BALANCED: 300.0,
    Objective.THROUGHPUT_SENSITIVE: 120.0,
}
_SCALE_UP = ScalingRules(
    stabilization_s=0.0,
    select=SelectPolicy.MAX,
    limits=(RateLimit(value=100, percent=True, period_s=15.0), RateLimit(value=4, percent=False, period_s=15.0)),
    tolerance=0.0,
)
_SCALE_DOWN_LIMITS = (RateLimit(value=100, percent=True, period_s=15.0),)


def resolve(
    spec: v1alpha1.Spec,
    *,
    batching: Batching,
    default_capacity: int,
    cost_class: CostClass | None = None,
    expected_delay_s: float = 0.0,
    restart_hold_s: float = 300.0,
    rate_window_s: float = 60.0,
    acts: bool = True,
    quality: Thresholds | None = None,
    peaks: Table = DEFAULT,
) -> Policy:
    """Fill in every default that depends on the objective.

    `cost_class` and `expected_delay_s` are the batch adapter's; without a cost class the policy has no batch knob.

    Raises
    ------
    PolicyError
        An SLO names an unknown signal, or one whose kind does not fit.
    """
    behavior = spec.behavior or v1alpha1.Behavior()
    down = ScalingRules(
        stabilization_s=_SCALE_DOWN_WINDOWS_S[spec.objective],
        select=SelectPolicy.MAX,
        limits=_SCALE_DOWN_LIMITS,
        tolerance=0.0,
    )
    constraints = spec.constraints or v1alpha1.Constraints()
    efficiency = constraints.parallel_efficiency_percent
    batch = None
    if spec.batch is not None and cost_class is not None:
        sizes = spec.batch.candidates or default_candidates(
            spec.batch.min, spec.batch.max, fine=constraints.power_watts_per_gpu is not None
        )
        batch = BatchControl(candidates=tuple(sorted(sizes)), cost_class=cost_class, expected_delay_s=expected_delay_s)
    shared = spec.shared_limits or v1alpha1.SharedLimits()
    band = _BANDS[spec.objective]
    if spec.band is not None:
        band = Band(spec.band.low_percent / 100, spec.band.high_percent / 100)
    return Policy(
        objective=spec.objective,
        batching=batching,
        slos=tuple(_promise(slo) for slo in spec.slos),
        band=band,
        min_replicas=spec.replicas.min,
        max_replicas=spec.replicas.max,
        batch=batch,
        scale_up=_overridden(_SCALE_UP, behavior.scale_up),
        scale_down=_overridden(down, behavior.scale_down),
        fallback=Fallback(
            after_s=durations.parse(spec.fallback.after),
            behavior=spec.fallback.behavior,
            replicas=spec.fallback.replicas,
        ),
        default_capacity=default_capacity,
        restart_hold_s=restart_hold_s,
        rate_window_s=rate_window_s,
        acts=acts,
        shared_network=_amount(shared.network_bytes_per_second),
        shared_storage=_amount(shared.storage_bytes_per_second),
        power_watts=_amount(constraints.power_watts_per_gpu),
        least_efficiency=None if efficiency is None else efficiency / 100,
        drain_s=_amount(behavior.drain_seconds),
        deadline=_deadline(spec),
        quality=quality or Thresholds(),
        peaks=peaks,
        profile=None if spec.profile is None else _profile(spec.profile, default_capacity),
    )


def _deadline(spec: v1alpha1.Spec) -> Deadline | None:
    backlog = spec.backlog
    if backlog is None:
        return None
    own = any(source.signal == Signal.BACKLOG for source in spec.signals)
    return Deadline(
        backlog=Signal.BACKLOG if own else Signal.REQUESTS_WAITING,
        rate=Signal(backlog.rate),
        within_s=None if backlog.within is None else durations.parse(backlog.within),
        by_s=None if backlog.by is None else datetime.fromisoformat(backlog.by).timestamp(),
    )


def _profile(told: v1alpha1.Profile, capacity: int) -> Profile:
    """Both as parameters and as a table, whichever was told."""
    alpha_s, beta_s, delta_s = (
        _seconds(written) for written in (told.alpha_milliseconds, told.beta_milliseconds, told.delta_milliseconds)
    )
    batches = tuple(sorted((float(one.size), _seconds(one.milliseconds) or 0.0) for one in told.batch_times or ()))
    if alpha_s is None:
        alpha_s, beta_s = _line(batches)
    elif beta_s is not None:
        batches = tuple((float(size), alpha_s + beta_s * size) for size in sorted({1, capacity}))
    return Profile(alpha_s=alpha_s, beta_s=beta_s, delta_s=delta_s, batches=batches, kv_tokens=_amount(told.kv_tokens))


def _line(batches: tuple[tuple[float, float], ...]) -> tuple[float, float | None]:
    """Least squares, neither below 0; a single size tells no slope."""
    if len(batches) == 1:
        return batches[0][1], None
    sizes, seconds = zip(*batches, strict=True)
    slope = max(0.0, linear_regression(sizes, seconds).slope)
    return max(min(seconds) / 2, fmean(seconds) - slope * fmean(sizes)), slope


def _seconds(milliseconds: str | None) -> float | None:
    return None if milliseconds is None else float(milliseconds) / 1000


def _amount(written: int | None) -> float | None:
    return None if written is None else float(written)


def default_candidates(least: int, most: int, *, fine: bool = False) -> tuple[int, ...]:
    """Powers of two and the steps half way between them, from `least` to `most`, both included: 8 12 16 24 32 …

    `fine` has four steps to the next power, so that a limit of power is made use of: 8 10 12 14 16 20 24 …
    """
    powers = [1 << exponent for exponent in range(most.bit_length())]
    between = [part * power // 4 for power in powers for part in ((5, 6, 7) if fine else (6,)) if power > 1]
    return tuple(sorted({least, most, *(size for size in powers + between if least <= size <= most)}))


def _promise(slo: v1alpha1.SLO) -> LatencySLO | ThroughputSLO:
    window_s = durations.parse(slo.window)
    try:
        signal = Signal(slo.signal)
    except ValueError:
        known = ", ".join(sorted(LATENCY_SIGNALS | THROUGHPUT_SIGNALS))
        raise PolicyError(f"unknown signal {slo.signal} in slos; write one of: {known}") from None
    if slo.threshold is not None:
        if signal not in LATENCY_SIGNALS:
            raise PolicyError(
                f"{signal} is not a latency; give it minPerSecond, or name one of {_names(LATENCY_SIGNALS)}"
            )
        return LatencySLO(
            signal=signal, percentile=slo.percentile, threshold_s=durations.parse(slo.threshold), window_s=window_s
        )
    if signal not in THROUGHPUT_SIGNALS:
        raise PolicyError(
            f"{signal} is not a rate of work; give it threshold, or name one of {_names(THROUGHPUT_SIGNALS)}"
        )
    return ThroughputSLO(signal=signal, min_per_s=float(slo.min_per_second or 0), window_s=window_s)


def _names(signals: frozenset[Signal]) -> str:
    return ", ".join(sorted(signals))


def _overridden(rules: ScalingRules, written: v1alpha1.ScalingRules | None) -> ScalingRules:
    """`rules` with every field replaced that a person wrote."""
    if written is None:
        return rules
    window_s, tolerance = written.stabilization_window_seconds, written.tolerance
    limits = tuple(
        RateLimit(value=one.value, percent=one.type == "Percent", period_s=float(one.period_seconds))
        for one in written.policies or ()
    )
    return ScalingRules(
        stabilization_s=rules.stabilization_s if window_s is None else float(window_s),
        select=written.select_policy or rules.select,
        limits=limits or rules.limits,
        tolerance=rules.tolerance if tolerance is None else float(tolerance),
    )
