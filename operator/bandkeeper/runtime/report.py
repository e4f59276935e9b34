"""A policy's status from what is known of it: pure, so that status, event, log line and metrics say the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from bandkeeper.actuate.outcome import Outcome
from bandkeeper.api import conditions as api
from bandkeeper.api import durations, v1alpha1
from bandkeeper.api.conditions import ConditionType, Finding
from bandkeeper.api.reasons import BandReason, LimitReason, PowerState, SLOState
from bandkeeper.api.snapshot import Gap, GapReason, PodState
from bandkeeper.decide.decision import Decision, MetricsState, SLOVerdict
from bandkeeper.kube.discovery import TargetProblem
from bandkeeper.runtime.cost import cost_of
from bandkeeper.runtime.quality import quality_of
from bandkeeper.runtime.resume import model_of
from bandkeeper.runtime.tracked import Change, Tracked

FIRST_SCRAPE_S = 60.0  # the longest usual scrape interval

_TARGET_READY = {
    TargetProblem.NOT_FOUND: api.ReadyReason.TARGET_NOT_FOUND,
    TargetProblem.UNKNOWN_KIND: api.ReadyReason.TARGET_KIND_UNKNOWN,
    TargetProblem.NOT_SCALABLE: api.ReadyReason.TARGET_NOT_SCALABLE,
    TargetProblem.NO_SELECTOR: api.ReadyReason.TARGET_WITHOUT_SELECTOR,
    TargetProblem.FORBIDDEN: api.ReadyReason.FORBIDDEN,
    TargetProblem.UNAVAILABLE: api.ReadyReason.TARGET_UNAVAILABLE,
}
_GAPS = {  # the gravest first: it names the condition
    GapReason.UNREACHABLE: api.MetricsAvailableReason.UNREACHABLE,
    GapReason.UNAUTHORIZED: api.MetricsAvailableReason.UNAUTHORIZED,
    GapReason.REFUSED: api.MetricsAvailableReason.QUERY_FAILED,
    GapReason.INVALID: api.MetricsAvailableReason.INVALID_VALUES,
    GapReason.ABSENT: api.MetricsAvailableReason.NO_DATA,
    GapReason.STALE: api.MetricsAvailableReason.STALE,
    GapReason.PARTIAL: api.MetricsAvailableReason.PARTIAL_DATA,
}
_REFUSALS = {
    Outcome.FORBIDDEN: api.BatchAppliedReason.FORBIDDEN,
    Outcome.REFUSED: api.BatchAppliedReason.ADAPTER_UNAVAILABLE,
    Outcome.PARTIAL: api.BatchAppliedReason.PARTIALLY_APPLIED,
}
_SLO_GRAVITY = (
    SLOState.BREACHED,
    SLOState.UNREACHABLE,
    SLOState.NO_DATA,
    SLOState.BETWEEN_BUCKETS,
    SLOState.TOO_FEW_REQUESTS,
    SLOState.NO_TRAFFIC,
    SLOState.MET,
)


def news_of(tracked: Tracked, seen: Iterable[Finding]) -> tuple[object, ...]:
    """What is told at once when it changes; the rest of the status are figures that drift, and may be a while old."""
    decision = tracked.decision
    return (
        tracked.managed,
        [(finding.type, finding.reason) for finding in seen],
        replicas_of(tracked),
        batch_of(tracked),
        (decision.reason, decision.replicas, decision.cap, [slo.state for slo in decision.slos]) if decision else None,
        decision.quality.quality if decision and decision.quality else None,
    )


def status_of(tracked: Tracked, seen: Iterable[Finding], *, wall_s: float) -> v1alpha1.Status:
    """The whole status, with what it keeps of `tracked.status`, the one before; `wall_s` in epoch seconds."""
    managed, decision, old = tracked.managed, tracked.decision, tracked.status
    return v1alpha1.Status(
        observed_generation=managed.generation,
        conditions=api.merge(old.conditions, seen, now_s=wall_s, generation=managed.generation),
        replicas=replicas_of(tracked),
        batch=batch_of(tracked),
        utilization=_utilization(decision),
        slos=[_slo(verdict) for verdict in decision.slos] if decision else [],
        quality=quality_of(tracked),
        cost=cost_of(tracked, wall_s=wall_s),
        power=_power(decision),
        model=_model(tracked, wall_s),
        effective=managed.effective,
        last_decision=_last(decision, old.last_decision, wall_s) if decision else old.last_decision,
        history=_history(tracked.changes, old.history, wall_s),
        cold_start=_duration(decision.inputs.cold_start_s) if decision else old.cold_start,
    )


def readable(status: Mapping[str, Any]) -> v1alpha1.Status:
    """A status as it stands on an object; one that cannot be read, as of another version, counts as none."""
    try:
        return v1alpha1.Status.model_validate(status, strict=False)
    except ValidationError:
        return v1alpha1.Status()


def findings(tracked: Tracked) -> list[Finding]:
    """What is to be said about each condition."""
    return [*_specific(tracked), _ready(tracked)]


def _specific(tracked: Tracked) -> Iterator[Finding]:
    yield _conflicted(tracked)
    yield _paused(tracked)
    if tracked.managed.flaw is None:
        yield _target_resolved(tracked)
        yield _batch_applied(tracked)
    decision = tracked.decision
    if decision is None:
        why = "Not judged: see the condition Ready."
        yield Finding(ConditionType.WITHIN_SLO, SLOState.NO_DATA, why)
        yield Finding(ConditionType.WITHIN_BAND, BandReason.UNKNOWN, why)
        if tracked.managed.policy is not None and tracked.managed.policy.power_watts is not None:
            yield Finding(ConditionType.WITHIN_POWER, PowerState.NO_DATA, why)
        return
    yield _metrics_available(tracked, decision)
    yield _within_slo(decision)
    yield Finding(
        ConditionType.WITHIN_BAND, decision.band.reason, decision.band.message or decision.band.reason.meaning
    )
    yield _scaling_limited(tracked, decision)
    yield _within_power(tracked, decision)


def _ready(tracked: Tracked) -> Finding:
    managed, decision = tracked.managed, tracked.decision
    if managed.flaw is not None:
        return Finding(ConditionType.READY, managed.flaw.reason, managed.flaw.message)
    if tracked.target_problem is not None:
        return Finding(ConditionType.READY, _TARGET_READY[tracked.target_problem.problem], str(tracked.target_problem))
    conflicted = _conflicted(tracked)
    if conflicted.reason != api.ConflictedReason.NO_CONFLICT:
        return Finding(ConditionType.READY, api.ReadyReason.CONFLICTED, conflicted.message)
    if _denied(tracked):
        return Finding(ConditionType.READY, api.ReadyReason.FORBIDDEN, _denied(tracked))
    blind = decision is not None and decision.metrics.state is MetricsState.NONE
    if decision is not None and blind and tracked.ready_pods and not _starting(tracked):
        return Finding(ConditionType.READY, api.ReadyReason.METRICS_UNAVAILABLE, _metrics_message(tracked, decision))
    return Finding(
        ConditionType.READY, api.ReadyReason.OK, "The policy is valid, its target found, its metrics usable."
    )


def _denied(tracked: Tracked) -> str:
    """Why the last write of replicas was refused, "" if it was not."""
    result = tracked.scale_result
    return result.message if result is not None and result.outcome in (Outcome.FORBIDDEN, Outcome.REFUSED) else ""


def _target_resolved(tracked: Tracked) -> Finding:
    if tracked.target_problem is not None:
        return Finding(ConditionType.TARGET_RESOLVED, tracked.target_problem.problem, str(tracked.target_problem))
    ref = tracked.managed.spec.target_ref if tracked.managed.spec else None
    name = f"{ref.kind} {ref.name}" if ref else "the target"
    if _denied(tracked):
        return Finding(ConditionType.TARGET_RESOLVED, api.TargetResolvedReason.FORBIDDEN, _denied(tracked))
    return Finding(ConditionType.TARGET_RESOLVED, api.TargetResolvedReason.RESOLVED, f"{name} is scalable.")


def _conflicted(tracked: Tracked) -> Finding:
    if tracked.conflict is not None:
        return Finding(ConditionType.CONFLICTED, tracked.conflict.reason, tracked.conflict.message)
    decision = tracked.decision
    if decision is not None and decision.undone_by:
        message = (
            f"{decision.undone_by} set the replicas back three times in 30 minutes, so the operator stopped writing "
            "them. Let it ignore spec.replicas (Argo CD: ignoreDifferences; Flux and Helm: leave replicas out), or "
            "delete the policy."
        )
        return Finding(ConditionType.CONFLICTED, api.ConflictedReason.UNDONE_BY_MANAGER, message)
    return Finding(ConditionType.CONFLICTED, api.ConflictedReason.NO_CONFLICT, "Nothing else drives the target.")


def _paused(tracked: Tracked) -> Finding:
    if tracked.managed.paused:
        message = f"The annotation {v1alpha1.PAUSED_ANNOTATION} is set: nothing is written. Remove it to resume."
        return Finding(ConditionType.PAUSED, api.PausedReason.ANNOTATION, message)
    if tracked.decision is not None and tracked.decision.paused_by_zero:
        message = "The target has 0 replicas, so it is left alone. Scale it to 1 or more to resume."
        return Finding(ConditionType.PAUSED, api.PausedReason.SCALED_TO_ZERO, message)
    return Finding(ConditionType.PAUSED, api.PausedReason.NOT_PAUSED, "Not paused.")


def _needed_gaps(tracked: Tracked) -> list[Gap]:
    """The gaps that matter: what a preset calls optional may be absent, unless the policy gives its source itself."""
    managed = tracked.managed
    sources = managed.preset.sources if managed.preset else {}
    own = {source.signal for source in managed.spec.signals} if managed.spec else set()
    optional = {signal for signal, source in sources.items() if source.optional and signal not in own}
    return [gap for gap in tracked.snapshot.gaps if gap.signal not in optional] if tracked.snapshot else []


def _metrics_available(tracked: Tracked, decision: Decision) -> Finding:
    if not tracked.ready_pods:
        message = "No pod of the target is ready, so there is nothing to read."
        return Finding(ConditionType.METRICS_AVAILABLE, api.MetricsAvailableReason.NO_READY_PODS, message)
    if decision.metrics.state is MetricsState.USABLE:
        message = "Every signal that is needed is fresh and complete."
        return Finding(ConditionType.METRICS_AVAILABLE, api.MetricsAvailableReason.AVAILABLE, message)
    if _starting(tracked):
        message = "Pods became ready a moment ago, and their first samples are awaited."
        return Finding(ConditionType.METRICS_AVAILABLE, api.MetricsAvailableReason.STARTING, message)
    gap = _gravest(tracked)
    reason = _GAPS[gap.reason] if gap else api.MetricsAvailableReason.NO_DATA
    return Finding(ConditionType.METRICS_AVAILABLE, reason, _metrics_message(tracked, decision))


def _gravest(tracked: Tracked) -> Gap | None:
    order = list(_GAPS)
    return min(_needed_gaps(tracked), key=lambda gap: order.index(gap.reason), default=None)


def _starting(tracked: Tracked) -> bool:
    """Whether what is missing is missing of pods that may not have been scraped yet."""
    gap = _gravest(tracked)
    if gap is None or gap.reason not in (GapReason.ABSENT, GapReason.PARTIAL):
        return False
    ready = [pod for pod in tracked.pods if pod.state is PodState.READY]
    silent = [pod for pod in ready if pod.name in gap.pods] or ready
    return all(pod.state_age_s < FIRST_SCRAPE_S for pod in silent)


def _metrics_message(tracked: Tracked, decision: Decision) -> str:
    gap = _gravest(tracked)
    return (gap.detail if gap else "") or decision.metrics.message or "No usable metrics."


def _within_slo(decision: Decision) -> Finding:
    if not decision.slos:
        return Finding(ConditionType.WITHIN_SLO, api.WithinSLOReason.NO_SLO, "The policy promises nothing.")
    worst = min(decision.slos, key=lambda verdict: _SLO_GRAVITY.index(verdict.state))
    return Finding(ConditionType.WITHIN_SLO, worst.state, worst.message or describe_slo(worst))


def describe_slo(verdict: SLOVerdict) -> str:
    """One promise in words, with what was measured."""
    if verdict.percentile is None:
        measured = "not known" if verdict.value is None else f"{verdict.value:.1f}/s"
        return f"{verdict.signal} is {measured}, promised are {verdict.limit:g}/s. {verdict.state.meaning}"
    measured = "not known" if verdict.value is None else durations.text(verdict.value)
    promised = durations.text(verdict.limit)
    return f"p{verdict.percentile} {verdict.signal} is {measured}, promised is {promised}. {verdict.state.meaning}"


def _scaling_limited(tracked: Tracked, decision: Decision) -> Finding:
    if decision.limit is not None:
        return Finding(ConditionType.SCALING_LIMITED, decision.limit.reason, decision.limit.message)
    if decision.undone_by:
        return Finding(ConditionType.SCALING_LIMITED, LimitReason.TARGET_UNDONE, LimitReason.TARGET_UNDONE.meaning)
    message = "Nothing stands between the replica count and what is wanted."
    return Finding(ConditionType.SCALING_LIMITED, api.ScalingLimitedReason.DESIRED_WITHIN_RANGE, message)


def _within_power(tracked: Tracked, decision: Decision) -> Finding:
    if decision.power is not None:
        return Finding(ConditionType.WITHIN_POWER, decision.power.state, decision.power.message)
    policy = tracked.managed.policy
    if policy is not None and policy.power_watts is not None:
        return Finding(ConditionType.WITHIN_POWER, PowerState.NO_DATA, "Nothing runs whose power could be judged.")
    return Finding(ConditionType.WITHIN_POWER, api.WithinPowerReason.NO_LIMIT, "The policy limits no power.")


def _power(decision: Decision | None) -> v1alpha1.PowerStatus | None:
    if decision is None or decision.power is None:
        return None
    power = decision.power
    return v1alpha1.PowerStatus(
        limit_watts=round(power.limit),
        measured_watts=None if power.watts is None else round(power.watts),
        batch_cap=power.ceiling,
    )


def _batch_applied(tracked: Tracked) -> Finding:
    reason, message = _batch_verdict(tracked)
    return Finding(ConditionType.BATCH_APPLIED, reason, message)


def _batch_verdict(tracked: Tracked) -> tuple[api.BatchAppliedReason, str]:
    managed, decision, result = tracked.managed, tracked.decision, tracked.cap_result
    if managed.spec is None or managed.spec.batch is None:
        return api.BatchAppliedReason.NOT_CONFIGURED, "The policy has no batch knob: only replicas are scaled."
    if managed.adapter is None:
        return api.BatchAppliedReason.ADAPTER_UNAVAILABLE, managed.adapter_problem
    if decision is not None and decision.cap_undone_by:
        return (
            api.BatchAppliedReason.UNDONE_BY_MANAGER,
            f"{decision.cap_undone_by} undid the cap three times in 30 minutes.",
        )
    if result is not None and result.outcome in _REFUSALS:
        return _REFUSALS[result.outcome], result.message or "Some pods could not be written; they are tried again."
    if decision is not None and decision.rollback:
        return api.BatchAppliedReason.ROLLED_BACK, "The cap's rollout missed its progress deadline and was taken back."
    if tracked.drift:
        return api.BatchAppliedReason.DRIFTED, tracked.drift
    return _read_back(tracked, decision.cap if decision else None)


def _read_back(tracked: Tracked, wanted: int | None) -> tuple[api.BatchAppliedReason, str]:
    if wanted is None:
        return api.BatchAppliedReason.PENDING, "No batch cap is wanted yet."
    behind = [pod.name for pod in tracked.pods if pod.state is PodState.READY and pod.cap != wanted]
    if not behind:
        return api.BatchAppliedReason.APPLIED, f"Every ready pod reads back the cap {wanted}."
    if not tracked.managed.enforcing:
        return api.BatchAppliedReason.PENDING, f"The cap {wanted} is recommended; nothing is written."
    unread = (tracked.readings.failed.get(name, "") for name in behind)
    failed = (tracked.cap_result.message if tracked.cap_result else "") or next(filter(None, unread), "")
    return api.BatchAppliedReason.PENDING, failed or f"{len(behind)} pods do not read back the cap {wanted} yet."


def replicas_of(tracked: Tracked) -> v1alpha1.ReplicaStatus | None:
    """Replica counts; None where the target is not known."""
    scale, decision = tracked.scale, tracked.decision
    if scale is None:
        return None
    pending = sum(pod.state in (PodState.PENDING, PodState.UNSCHEDULABLE, PodState.FAILED) for pod in tracked.pods)
    desired = decision.replicas if decision is not None else None
    return v1alpha1.ReplicaStatus(
        current=scale.target.replicas,
        desired=scale.target.replicas if desired is None else desired,
        ready=tracked.ready_pods,
        pending=pending,
    )


def batch_of(tracked: Tracked) -> v1alpha1.BatchStatus | None:
    """Batch caps; None without a batch knob, or where nothing is decided."""
    decision = tracked.decision
    if decision is None or tracked.managed.spec is None or tracked.managed.spec.batch is None:
        return None
    ready = [pod for pod in tracked.pods if pod.state is PodState.READY]
    caps = [pod.cap for pod in ready if pod.cap is not None]
    capacities = [pod.capacity for pod in ready if pod.capacity is not None]
    return v1alpha1.BatchStatus(
        current=min(caps) if caps else decision.current_cap,
        desired=decision.cap,
        capacity=min(capacities, default=None),
        source="ReadBack" if caps else "Assumed",
    )


def _model(tracked: Tracked, wall_s: float) -> v1alpha1.ModelStatus | None:
    """What was learned of this target, also while it is not seen."""
    old, scale = tracked.status.model, tracked.scale
    known = tracked.decision.learned if tracked.decision else None
    if scale is None:
        return old
    if known is not None:
        return model_of(known, scale.target.uid, wall_s=wall_s)
    return old if old is not None and old.target_uid == scale.target.uid else None


def _utilization(decision: Decision | None) -> v1alpha1.UtilizationStatus | None:
    if decision is None:
        return None
    percent = None if decision.utilization is None else round(decision.utilization * 100)
    return v1alpha1.UtilizationStatus(percent=percent, source=decision.utilization_source)


def _slo(verdict: SLOVerdict) -> v1alpha1.SLOStatus:
    if verdict.percentile is None:
        measured = None if verdict.value is None else f"{verdict.value:.1f}/s"
        return v1alpha1.SLOStatus(
            signal=verdict.signal, min_per_second=int(verdict.limit), measured=measured, state=verdict.state
        )
    return v1alpha1.SLOStatus(
        signal=verdict.signal,
        percentile=verdict.percentile,
        threshold=durations.text(verdict.limit),
        measured=_duration(verdict.value),
        lower_bound=_duration(verdict.lower),
        upper_bound="+Inf" if verdict.upper == float("inf") else _duration(verdict.upper),
        attainment_low_percent=_percent(verdict.attainment_low),
        attainment_high_percent=_percent(verdict.attainment_high),
        state=verdict.state,
    )


def _last(decision: Decision, old: v1alpha1.DecisionStatus | None, wall_s: float) -> v1alpha1.DecisionStatus:
    """The decision; its time is when it last became another one."""
    same = old is not None and (old.reason, old.replicas, old.batch_cap) == (
        decision.reason.value,
        decision.replicas,
        decision.cap,
    )
    return v1alpha1.DecisionStatus(
        time=old.time if old is not None and same else api.rfc3339(wall_s),
        reason=decision.reason.value,
        message=decision.message,
        replicas=decision.replicas,
        batch_cap=decision.cap,
    )


def _history(changes: list[Change], old: list[v1alpha1.HistoryEntry], wall_s: float) -> list[v1alpha1.HistoryEntry]:
    new = [
        v1alpha1.HistoryEntry(
            time=api.rfc3339(wall_s),
            reason=change.decision.reason.value,
            message=change.message,
            replicas=change.decision.replicas if change.from_replicas is not None else None,
            batch_cap=change.decision.cap if change.from_cap is not None else None,
            from_replicas=change.from_replicas,
            from_batch_cap=change.from_cap,
        )
        for change in reversed(changes)
    ]
    return [*new, *old][: v1alpha1.HISTORY_LIMIT]


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else durations.text(seconds)


def _percent(ratio: float | None) -> int | None:
    return None if ratio is None else min(100, int(ratio * 100))
