"""What the collector is asked for one policy, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from bandkeeper.api.durations import parse
from bandkeeper.api.signals import LATENCY_SIGNALS, Signal
from bandkeeper.api.snapshot import Distribution, Earlier, Gap, GPUs, Reading, Recalled
from bandkeeper.api.v1alpha1 import PrometheusSelection, SignalSource, Spec
from bandkeeper.signals.presets import PRESETS

_KNOWN = frozenset(Signal)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyWant:
    """A latency signal over one window, what is asked of it, and the largest threshold that it is compared with."""

    signal: Signal
    window_s: float = 60.0
    percentiles: tuple[int, ...] = ()
    threshold_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One policy's question.

    Attributes
    ----------
    key
        Names the policy in the answer.
    workload, kind
        Name and kind of the target.
    pods
        Names of its ready pods: values of all others are dropped.
    signals
        Gauges and rates, per pod.
    overrides
        `spec.signals` of the policy.
    """

    key: str
    namespace: str
    workload: str
    kind: str
    pods: tuple[str, ...]
    runtime: str
    signals: frozenset[Signal]
    latencies: tuple[LatencyWant, ...] = ()
    overrides: tuple[SignalSource, ...] = ()
    prometheus: PrometheusSelection | None = None

    @classmethod
    def of(cls, key: str, namespace: str, spec: Spec, pods: Iterable[str]) -> Want:
        """Everything that the policy's runtime and its own sources give, and every SLO.

        Names that nobody knows are left out here; `problems` says so.
        """
        preset = PRESETS.get(spec.runtime)
        given = {Signal(source.signal) for source in spec.signals if source.signal in _KNOWN}
        slos = {Signal(slo.signal) for slo in spec.slos if slo.signal in _KNOWN}
        signals = (given | slos | set(preset.sources if preset else ())) - LATENCY_SIGNALS
        return cls(
            key=key,
            namespace=namespace,
            workload=spec.target_ref.name,
            kind=spec.target_ref.kind,
            pods=tuple(pods),
            runtime=spec.runtime,
            signals=frozenset(signals),
            latencies=_latencies(spec),
            overrides=tuple(spec.signals),
            prometheus=spec.prometheus,
        )


class ObservationFields(TypedDict):
    """The keyword arguments of a `Snapshot` that observations fill."""

    by_pod: Mapping[Signal, Mapping[str, Reading]]
    totals: Mapping[Signal, Reading]
    distributions: Mapping[tuple[Signal, int], Distribution]
    gaps: tuple[Gap, ...]
    gpus: Mapping[str, GPUs]
    recalled: Mapping[Earlier, Recalled]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What was seen for one policy, in the fields of `Snapshot`."""

    by_pod: Mapping[Signal, Mapping[str, Reading]] = field(default_factory=dict)
    totals: Mapping[Signal, Reading] = field(default_factory=dict)
    distributions: Mapping[tuple[Signal, int], Distribution] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    gpus: Mapping[str, GPUs] = field(default_factory=dict)
    recalled: Mapping[Earlier, Recalled] = field(default_factory=dict)

    def as_fields(self) -> ObservationFields:
        """For `Snapshot(target=..., pods=..., **observations.as_fields())`."""
        return {
            "by_pod": self.by_pod,
            "totals": self.totals,
            "distributions": self.distributions,
            "gaps": self.gaps,
            "gpus": self.gpus,
            "recalled": self.recalled,
        }


def _latencies(spec: Spec) -> tuple[LatencyWant, ...]:
    """One want per latency signal and window, of all SLOs on it."""
    percentiles: dict[tuple[Signal, float], set[int]] = {}
    thresholds_s: dict[tuple[Signal, float], float] = {}
    for slo in spec.slos:
        if slo.threshold is None or slo.signal not in LATENCY_SIGNALS:
            continue
        key = (Signal(slo.signal), parse(slo.window))
        percentiles.setdefault(key, set()).add(slo.percentile)
        thresholds_s[key] = max(thresholds_s.get(key, 0.0), parse(slo.threshold))
    return tuple(
        LatencyWant(signal=signal, window_s=window_s, percentiles=tuple(sorted(asked)), threshold_s=thresholds_s[key])
        for key, asked in percentiles.items()
        for signal, window_s in (key,)
    )
