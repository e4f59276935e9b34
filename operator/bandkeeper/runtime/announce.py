"""Says what happened, once each: as an event, as a log line, as metrics. All from the status and the decision."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Gauge

from bandkeeper.api.conditions import ConditionType, Finding
from bandkeeper.api.v1alpha1 import Condition, Status
from bandkeeper.decide.decision import RULES, UNKNOWN_RULE
from bandkeeper.kube.events import EventRecorder, EventType
from bandkeeper.quality.types import Assessment, Quality
from bandkeeper.runtime.cost import account_of
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.quality import described, gpus_held, spent
from bandkeeper.runtime.report import batch_of, replicas_of
from bandkeeper.runtime.tracked import Change, Tracked

logger = logging.getLogger("bandkeeper.policy")

_VALUES = {"True": 1.0, "False": 0.0, "Unknown": -1.0}
# Which findings are worth an event: condition type to the status that is news, and its event type.
_NEWS: Mapping[str, tuple[str, EventType]] = {
    ConditionType.READY: ("False", "Warning"),
    ConditionType.METRICS_AVAILABLE: ("False", "Warning"),
    ConditionType.PAUSED: ("True", "Normal"),
    ConditionType.SCALING_LIMITED: ("True", "Normal"),
    ConditionType.BATCH_APPLIED: ("False", "Warning"),
    ConditionType.WITHIN_POWER: ("False", "Warning"),
    ConditionType.PROFILE_FITS: ("False", "Warning"),
}
# The ordinary course of things; Undone is told by Ready, power above its limit by the cap that it lowers.
_QUIET = frozenset(
    {"Pending", "AtMin", "ScaleUpLimit", "ScaleDownLimit", "TerminatingPods", "Undone", "PowerAboveLimit"}
)
_BAD = frozenset({Quality.INEFFICIENT, Quality.OVERLOADED})
QUALITY_HOLDS_S = 60.0  # so long a class must have stood to be told: an overload may be over sooner
QUALITY_CHANGED = "QualityChanged"
_ACTIONS = {"up": "ScaleUp", "down": "ScaleDown", "raised": "RaiseBatchCap", "lowered": "LowerBatchCap"}


class Announcer:
    """The only place that posts events, and writes the log lines that an operator wants a year later."""

    def __init__(self, *, events: EventRecorder, metrics: Metrics) -> None:
        self._events = events
        self._metrics = metrics

    def moved(self, tracked: Tracked) -> None:
        """Say which moves were made since the last report."""
        for change in tracked.changes:
            self._changed(tracked, change)

    def tell(self, tracked: Tracked, status: Status) -> None:
        """Say what is new in the conditions of `status`, compared with what was told last."""
        before = {condition.type: (condition.status, condition.reason) for condition in tracked.status.conditions}
        unready = any(found.type == ConditionType.READY and found.status == "False" for found in status.conditions)
        for found in status.conditions:
            if before.get(found.type) == (found.status, found.reason):
                continue
            if found.type == ConditionType.METRICS_AVAILABLE and unready:
                continue  # Ready says it already
            self._transition(tracked, found, first=found.type not in before)

    def judged(self, tracked: Tracked, now_s: float) -> None:
        """Say that the quality class is another one than was told last.

        Unknown is no class: it begins and ends every outage of counters. The first class after a start is what was
        there before, and is told only where it wants a person.
        """
        found = tracked.decision.quality if tracked.decision else None
        before = tracked.status.quality
        if not tracked.told and before is not None and before.class_ != Quality.UNKNOWN:
            tracked.quality_told = before.class_  # whoever led said it
        told = tracked.quality_told
        if found is None or found.quality in (Quality.UNKNOWN, told) or now_s - found.since_s < QUALITY_HOLDS_S:
            return
        tracked.quality_told = found.quality.value
        bad = found.quality in _BAD
        if not told and not bad:
            return
        ref = tracked.managed.ref
        change = f"Quality {told} -> {found.quality}" if told else f"Quality is {found.quality}"
        note = f"{change}. {' '.join(described(found))}".rstrip()
        kind: EventType = "Warning" if bad else "Normal"
        self._events.record(ref, type=kind, reason=QUALITY_CHANGED, action="Judge", note=note)
        logger.log(
            logging.WARNING if bad else logging.INFO,
            "quality",
            extra={
                "policy": f"{ref.namespace}/{ref.name}",
                "from_class": told,
                "class": found.quality.value,
                "score": None if found.score is None else round(found.score),
                "why": note,
            },
        )

    def meter(self, tracked: Tracked, now_s: float, *, wall_s: float) -> None:
        """Count the GPU time since the last look, what it was held for, and what of it was wasted."""
        found, metrics, key = spent(tracked, now_s), self._metrics, tracked.managed.key
        tracked.account = account_of(tracked, wall_s=wall_s)
        if not tracked.told:
            for rule in (*RULES, UNKNOWN_RULE):
                metrics.gpu_seconds_by_rule.labels(*key, rule)  # at 0, or the first increase would be lost
        if found is None:
            return
        if tracked.account is not None:
            tracked.account.add(found)
        for rule, gpu_s in found.by_rule:
            if gpu_s:
                metrics.gpu_seconds_by_rule.labels(*key, rule).inc(gpu_s)
        metrics.gpu_seconds.labels(*key, str(found.judged).lower()).inc(found.gpu_s)
        for cause, wasted_s in found.wasted_s:
            metrics.wasted_gpu_seconds.labels(*key, cause).inc(wasted_s)
        if found.price is None:
            return
        metrics.gpu_cost.labels(*key, found.price.currency).inc(found.cost(found.gpu_s) or 0.0)
        for cause, wasted_s in found.wasted_s:
            metrics.wasted_gpu_cost.labels(*key, cause, found.price.currency).inc(found.cost(wasted_s) or 0.0)

    def _changed(self, tracked: Tracked, change: Change) -> None:
        decision, ref = change.decision, tracked.managed.ref
        action = _ACTIONS.get(change.direction, "Recommend")
        self._events.record(ref, type="Normal", reason=decision.reason.value, action=action, note=change.message)
        fields: dict[str, Any] = {
            "policy": f"{ref.namespace}/{ref.name}",
            "action": action,
            "reason": decision.reason.value,
        }
        if change.from_replicas is not None:
            fields |= {"from_replicas": change.from_replicas, "replicas": decision.replicas}
        if change.from_cap is not None:
            fields |= {"from_batch_cap": change.from_cap, "batch_cap": decision.cap}
        logger.info("decision", extra={**fields, "why": decision.message})

    def _transition(self, tracked: Tracked, found: Condition, *, first: bool) -> None:
        ref, news = tracked.managed.ref, _NEWS.get(found.type)
        if news is None:
            return
        wanted, kind = news
        worth = found.status == wanted and found.reason not in _QUIET
        if worth:
            self._events.record(ref, type=kind, reason=found.reason, action="Judge", note=found.message)
        if worth or not first:
            logger.log(
                logging.WARNING if worth and kind == "Warning" else logging.INFO,
                "condition",
                extra={
                    "policy": f"{ref.namespace}/{ref.name}",
                    "condition": found.type,
                    "status": found.status.value,
                    "reason": found.reason,
                    "why": found.message,
                },
            )

    def measure(self, tracked: Tracked, seen: Iterable[Finding]) -> None:
        """Set the policy's gauges; what is not known has no series."""
        self._metrics.show(tracked.managed.key, self._values(tracked, seen))

    def _values(
        self, tracked: Tracked, seen: Iterable[Finding]
    ) -> Iterator[tuple[Gauge, tuple[str, ...], float | None]]:
        metrics, decision, policy = self._metrics, tracked.decision, tracked.managed.policy
        if replicas := replicas_of(tracked):
            yield metrics.desired_replicas, (), replicas.desired
            yield metrics.current_replicas, (), replicas.current
            yield metrics.ready_replicas, (), replicas.ready
            yield metrics.pending_replicas, (), replicas.pending
        if batch := batch_of(tracked):
            yield metrics.desired_batch_cap, (), batch.desired
            yield metrics.current_batch_cap, (), batch.current
        if spec := tracked.managed.spec:
            yield metrics.policy_info, (spec.objective.value, spec.mode.value, spec.runtime), 1.0
        if policy:
            yield metrics.band_low, (), policy.band.low
            yield metrics.band_high, (), policy.band.high
        if decision:
            yield metrics.utilization, (), decision.utilization
            yield metrics.gpus, (), gpus_held(tracked)
        if decision and decision.quality:
            yield from self._quality(decision.quality)
        for verdict in decision.slos if decision else ():
            if verdict.percentile is not None:
                labels = verdict.signal.value, str(verdict.percentile)
                yield metrics.slo_measured, labels, verdict.value
                yield metrics.slo_threshold, labels, verdict.limit
                yield metrics.slo_attainment, labels, verdict.attainment_low
        for finding in seen:
            yield metrics.condition, (finding.type.value,), _VALUES[finding.status]

    def _quality(self, quality: Assessment) -> Iterator[tuple[Gauge, tuple[str, ...], float | None]]:
        metrics = self._metrics
        yield metrics.quality_class, (quality.quality.value,), 1.0
        yield metrics.quality_score, (), quality.score
        yield metrics.quality_confidence, (), quality.confidence
        for measure in quality.measures:
            yield metrics.quality_measure, (measure.name, measure.unit), measure.value
        if quality.bottleneck:
            yield metrics.quality_bottleneck, (quality.bottleneck.component.value,), 1.0
        if quality.waste:
            yield metrics.wasted_share, ("idle_held",), quality.waste.idle
            yield metrics.wasted_share, ("below_possible",), quality.waste.below
