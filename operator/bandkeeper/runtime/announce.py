"""Says what happened, once each: as an event, as a log line, as metrics. All from the status and the decision."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from bandkeeper.api.conditions import ConditionType
from bandkeeper.kube.events import EventRecorder
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.tracked import Change, Tracked

logger = logging.getLogger("bandkeeper.policy")

_VALUES = {"True": 1.0, "False": 0.0, "Unknown": -1.0}
# Which findings are worth an event: condition type to the status that is news, and its event type.
_NEWS: Mapping[str, tuple[str, str]] = {
    ConditionType.READY: ("False", "Warning"),
    ConditionType.METRICS_AVAILABLE: ("False", "Warning"),
    ConditionType.PAUSED: ("True", "Normal"),
    ConditionType.SCALING_LIMITED: ("True", "Normal"),
    ConditionType.BATCH_APPLIED: ("False", "Warning"),
}
_QUIET = frozenset({"Pending", "AtMin", "ScaleUpLimit", "ScaleDownLimit", "TerminatingPods"})  # the ordinary course
_ACTIONS = {"up": "ScaleUp", "down": "ScaleDown", "raised": "RaiseBatchCap", "lowered": "LowerBatchCap"}


class Announcer:
    """The only place that posts events, and writes the log lines that an operator wants a year later."""

    def __init__(self, *, events: EventRecorder, metrics: Metrics) -> None:
        self._events = events
        self._metrics = metrics

    def tell(self, tracked: Tracked, status: Mapping[str, Any]) -> None:
        """Post what is new in `status`, compared with what was told last."""
        for change in tracked.changes:
            self._changed(tracked, change)
        before = {c["type"]: (c["status"], c["reason"]) for c in tracked.status.get("conditions") or ()}
        found = {c["type"]: c for c in status["conditions"]}
        unready = found[ConditionType.READY]["status"] == "False"
        for kind, condition in found.items():
            if before.get(kind) == (condition["status"], condition["reason"]):
                continue
            if kind == ConditionType.METRICS_AVAILABLE and unready:
                continue  # Ready says it already
            self._transition(tracked, condition, first=kind not in before)

    def _changed(self, tracked: Tracked, change: Change) -> None:
        decision, ref = change.decision, tracked.managed.ref
        action = _ACTIONS.get(change.direction, "Recommend")
        note = decision.message if action != "Recommend" else f"Recommended, not done: {decision.message}"
        self._events.record(ref, type="Normal", reason=decision.reason.value, action=action, note=note)
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

    def _transition(self, tracked: Tracked, condition: Mapping[str, Any], *, first: bool) -> None:
        ref, kind, reason = tracked.managed.ref, condition["type"], condition["reason"]
        news = _NEWS.get(kind)
        worth = news is not None and condition["status"] == news[0] and reason not in _QUIET
        level = logging.WARNING if worth and news is not None and news[1] == "Warning" else logging.INFO
        if worth and news is not None:
            self._events.record(
                ref,
                type="Warning" if news[1] == "Warning" else "Normal",
                reason=reason,
                action="Judge",
                note=condition["message"],
            )
        if worth or (news is not None and not first):
            logger.log(
                level,
                "condition",
                extra={
                    "policy": f"{ref.namespace}/{ref.name}",
                    "condition": kind,
                    "status": condition["status"],
                    "reason": reason,
                    "why": condition["message"],
                },
            )

    def measure(self, tracked: Tracked, status: Mapping[str, Any]) -> None:
        """Set the policy's gauges; what is not known has no series."""
        key, metrics, decision = tracked.managed.key, self._metrics, tracked.decision
        replicas, batch = status.get("replicas") or {}, status.get("batch") or {}
        for gauge, value in (
            (metrics.desired_replicas, replicas.get("desired")),
            (metrics.current_replicas, replicas.get("current")),
            (metrics.ready_replicas, replicas.get("ready")),
            (metrics.pending_replicas, replicas.get("pending")),
            (metrics.desired_batch_cap, batch.get("desired")),
            (metrics.current_batch_cap, batch.get("current")),
            (metrics.utilization, decision.utilization if decision else None),
        ):
            metrics.set(gauge, key, value)
        if policy := tracked.managed.policy:
            metrics.set(metrics.band_low, key, policy.band.low)
            metrics.set(metrics.band_high, key, policy.band.high)
        for verdict in decision.slos if decision else ():
            if verdict.percentile is not None:
                labels = verdict.signal.value, str(verdict.percentile)
                metrics.set(metrics.slo_measured, key, verdict.value, *labels)
                metrics.set(metrics.slo_threshold, key, verdict.limit, *labels)
                metrics.set(metrics.slo_attainment, key, verdict.attainment_low, *labels)
        for condition in status["conditions"]:
            metrics.set(metrics.condition, key, _VALUES[condition["status"]], condition["type"])
