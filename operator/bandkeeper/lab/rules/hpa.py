"""The HorizontalPodAutoscaler of autoscaling/v2, from its documentation: proposals, tolerance, pods without metrics,
stabilisation windows and rate policies. Checked against the real controller in tests/hpa.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import PodState
from bandkeeper.lab.rules.choice import Choice, batch_shares
from bandkeeper.lab.rules.rule import Setting, View, Want

TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """At most `value` pods, or percent, of change in `period_s`."""

    value: int
    percent: bool
    period_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """`scaleUp` or `scaleDown` of `behavior`; of several policies the one that allows most counts."""

    window_s: float
    policies: tuple[RatePolicy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    """Both directions, by default the documented defaults of autoscaling/v2."""

    up: Direction = field(
        default_factory=lambda: Direction(
            window_s=0.0, policies=(RatePolicy(100, True, 15.0), RatePolicy(4, False, 15.0))
        )
    )
    down: Direction = field(default_factory=lambda: Direction(window_s=300.0, policies=(RatePolicy(100, True, 15.0),)))


def within_tolerance(ratio: float, tolerance: float = TOLERANCE) -> bool:
    """Whether a ratio of usage to target asks for nothing."""
    return 1.0 - tolerance <= ratio <= 1.0 + tolerance


def from_pods(
    values: Mapping[str, float],
    target: float,
    replicas: int,
    *,
    missing: Set[str] = frozenset(),
    unready: Set[str] = frozenset(),
    tolerance: float = TOLERANCE,
) -> int | None:
    """Replicas wanted by a per-pod metric with a target average; None where no pod told: the controller then holds.

    `values` are of pods that run, `missing` run and have no value, `unready` are in phase Pending. A missing pod counts
    as nothing on the way up and as on target on the way down; an unready one counts, as nothing, on the way up only.
    """
    if not values:
        return None
    told, wanted_m = sum(map(_milli, values.values())), _milli(target)
    ratio = told // len(values) / wanted_m
    held = {*missing} | ({*unready} if ratio > 1.0 else set())
    if not held:
        return replicas if within_tolerance(ratio, tolerance) else math.ceil(ratio * len(values))
    assumed = wanted_m * len(missing) if ratio < 1.0 else 0
    count = len(values) + len(held)
    corrected = (told + assumed) // count / wanted_m
    turned = (ratio < 1.0 < corrected) or (corrected < 1.0 < ratio)
    if within_tolerance(corrected, tolerance) or turned:
        return replicas
    wanted = math.ceil(corrected * count)
    against = (corrected < 1.0 and wanted > replicas) or (corrected > 1.0 and wanted < replicas)
    return replicas if against else wanted


def from_total(value: float, target: float, replicas: int, *, tolerance: float = TOLERANCE) -> int:
    """Replicas wanted by an external metric with a target average value; `replicas` are those that exist."""
    if replicas and within_tolerance(_milli(value) / (_milli(target) * replicas), tolerance):
        return replicas
    return math.ceil(_milli(value) / _milli(target))


class Controller:
    """What stands between a proposal and the scale subresource: stabilisation, rate policies, bounds."""

    def __init__(self, *, most: int, behavior: Behavior | None = None) -> None:
        self._most = most
        self._behavior = behavior or Behavior()
        self._proposals: list[tuple[float, int]] = []
        self._ups: list[tuple[float, int]] = []
        self._downs: list[tuple[float, int]] = []

    def step(self, proposal: int | None, replicas: int, now_s: float, *, least: int = 1) -> int:
        """Replicas to write now, given what the scale subresource says and `minReplicas`; None proposes nothing."""
        if not self._proposals:
            self._proposals.append((now_s, replicas))
        if replicas > self._most or replicas < least:
            wanted = min(self._most, max(least, replicas))
        elif proposal is None:
            return replicas
        else:
            wanted = self._limited(self._stabilized(proposal, replicas, now_s), replicas, now_s, least)
        if wanted > replicas:
            self._ups.append((now_s, wanted - replicas))
        elif wanted < replicas:
            self._downs.append((now_s, replicas - wanted))
        return wanted

    def _stabilized(self, proposal: int, replicas: int, now_s: float) -> int:
        up_s, down_s = self._behavior.up.window_s, self._behavior.down.window_s
        lowest = min([proposal, *(one for at_s, one in self._proposals if now_s - at_s < up_s)])
        highest = max([proposal, *(one for at_s, one in self._proposals if now_s - at_s < down_s)])
        longest_s = max(up_s, down_s)
        self._proposals = [one for one in self._proposals if now_s - one[0] < longest_s]
        self._proposals.append((now_s, proposal))
        return min(max(replicas, lowest), highest)

    def _limited(self, wanted: int, replicas: int, now_s: float, least: int) -> int:
        behavior = self._behavior
        longest_s = max(one.period_s for one in (*behavior.up.policies, *behavior.down.policies))
        self._ups = [one for one in self._ups if now_s - one[0] < longest_s]
        self._downs = [one for one in self._downs if now_s - one[0] < longest_s]
        if wanted > replicas:
            ceilings = [self._ceiling(policy, replicas, now_s) for policy in behavior.up.policies]
            return min(wanted, self._most, max(replicas, *ceilings))
        if wanted < replicas:
            floors = [self._floor(policy, replicas, now_s) for policy in behavior.down.policies]
            return max(wanted, least, min(replicas, *floors))
        return wanted

    def _ceiling(self, policy: RatePolicy, replicas: int, now_s: float) -> int:
        start = self._replicas_before(policy.period_s, replicas, now_s)
        return math.ceil(start * (1 + policy.value / 100)) if policy.percent else start + policy.value

    def _floor(self, policy: RatePolicy, replicas: int, now_s: float) -> int:
        start = self._replicas_before(policy.period_s, replicas, now_s)
        return math.floor(start * (1 - policy.value / 100)) if policy.percent else start - policy.value

    def _replicas_before(self, period_s: float, replicas: int, now_s: float) -> int:
        return replicas - _since(self._ups, period_s, now_s) + _since(self._downs, period_s, now_s)


class HPA:
    """An HPA on a metric of each pod, read through the Prometheus adapter: `signal` at `target` on average."""

    title: ClassVar[str] = "HPA"
    source: ClassVar[str] = "kubernetes.io: Horizontal Pod Autoscaling, autoscaling/v2"
    hindsight: ClassVar[bool] = False
    signal: ClassVar[Signal]

    def __init__(self, setting: Setting, *, target: float) -> None:
        self._target = target
        self._controller = Controller(most=setting.policy.max_replicas)

    def decide(self, view: View) -> Want:
        """One sync."""
        values = view.metrics.latest(self.signal)
        missing, unready = without_metrics(view, values)
        proposal = from_pods(values, self._target, view.replicas, missing=missing, unready=unready)
        return Want(self._controller.step(proposal, view.replicas, view.now_s, least=view.floor))


class HPAOnGPU(HPA):
    """An HPA on the device's utilisation, as dcgm-exporter and most tutorials have it; `target` is a ratio."""

    title: ClassVar[str] = "HPA on GPU_UTIL"
    signal: ClassVar[Signal] = Signal.GPU_UTILIZATION

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """80 % is what hosted endpoints use."""
        return tuple(Choice(f"{percent} %", {"target": percent / 100}, default=percent == 80) for percent in (80, 90))


class HPAOnRunning(HPA):
    """An HPA on requests in process per pod."""

    title: ClassVar[str] = "HPA on running requests"
    signal: ClassVar[Signal] = Signal.REQUESTS_RUNNING

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Shares of the batch that a replica holds; nobody publishes a default."""
        targets = batch_shares(setting, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.5)
        return tuple(Choice(str(target), {"target": target}) for target in targets)


def without_metrics(view: View, values: Mapping[str, float]) -> tuple[frozenset[str], frozenset[str]]:
    """Names of pods that run without a value (a loading model serves no metrics), and of pods in phase Pending."""
    unready = {pod.name for pod in view.snapshot.pods_in(PodState.UNSCHEDULABLE)}
    running = {pod.name for pod in view.snapshot.pods_in(PodState.READY, PodState.PENDING, PodState.FAILED)}
    return frozenset(running - values.keys()), frozenset(unready)


def _since(events: Sequence[tuple[float, int]], period_s: float, now_s: float) -> int:
    return sum(change for at_s, change in events if now_s - at_s < period_s)


def _milli(value: float) -> int:
    """Quantities are whole thousandths in the controller, and so are their means."""
    return round(1000 * value)
