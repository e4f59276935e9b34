"""The conditions of a policy: types, reasons with status and meaning, and how new ones replace old ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

from bandkeeper.api.reasons import BandReason, DeadlineState, LimitReason, PowerState, ProfileState, SLOState
from bandkeeper.api.v1alpha1 import Condition, ConditionStatus

_TRUE, _FALSE, _UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


class ConditionType(StrEnum):
    """Every condition, in the order in which they stand in the status."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member

    READY = (
        "Ready",
        "The policy works: valid, target found, metrics usable, no conflict; whatever SLO, pause and mode.",
    )
    TARGET_RESOLVED = "TargetResolved", "The target exists and has a scale subresource that the operator may use."
    METRICS_AVAILABLE = "MetricsAvailable", "Every signal that the decision needs is fresh and complete."
    WITHIN_SLO = "WithinSLO", "Every promise is kept."
    WITHIN_BAND = "WithinBand", "Utilisation lies inside the band."
    SCALING_LIMITED = "ScalingLimited", "Something keeps the replica count from what is wanted."
    CONFLICTED = "Conflicted", "Something else drives the target, so the operator keeps its hands off."
    PAUSED = "Paused", "A person paused the policy, so nothing is written."
    BATCH_APPLIED = "BatchApplied", "The wanted batch cap is in force in every pod."
    WITHIN_POWER = (
        "WithinPower",
        "No GPU draws more power than constraints.powerWattsPerGPU allows; absent where a policy has no such limit.",
    )
    WITHIN_DEADLINE = "WithinDeadline", "The backlog is done by its deadline; absent where a policy has none."
    PROFILE_FITS = "ProfileFits", "The servers are as fast as spec.profile says; absent where a policy has none."


class _Reason(StrEnum):
    """One word, the status of the condition that has it, and its documentation."""

    status: ConditionStatus
    meaning: str

    def __new__(cls, word: str, status: ConditionStatus, meaning: str) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.status = status
        member.meaning = meaning
        return member


class ReadyReason(_Reason):
    """Reasons of Ready."""

    OK = "Ok", _TRUE, "Everything that the policy needs is there."
    INVALID_SPEC = "InvalidSpec", _FALSE, "The spec breaks a rule of the API; the message names the field."
    UNKNOWN_RUNTIME = "UnknownRuntime", _FALSE, "There is no preset of this name; the message lists those there are."
    UNKNOWN_SIGNAL = "UnknownSignal", _FALSE, "A signal of this name does not exist; the message lists those that do."
    SLO_WITHOUT_SOURCE = "SLOWithoutSource", _FALSE, "Neither the runtime nor spec.signals gives an SLO's signal."
    BACKLOG_WITHOUT_SOURCE = (
        "BacklogWithoutSource",
        _FALSE,
        "Neither the runtime nor spec.signals gives the backlog, or the rate at which it is done.",
    )
    INVALID_SLO = "InvalidSLO", _FALSE, "An SLO asks of its signal what that signal cannot promise."
    PROMETHEUS_NOT_ALLOWED = (
        "PrometheusNotAllowed",
        _FALSE,
        "The operator may not ask this Prometheus; its configuration says so.",
    )
    TARGET_NOT_FOUND = "TargetNotFound", _FALSE, "The target does not exist."
    TARGET_KIND_UNKNOWN = "TargetKindUnknown", _FALSE, "The cluster has no such apiVersion and kind."
    TARGET_NOT_SCALABLE = "TargetNotScalable", _FALSE, "The target's kind has no scale subresource."
    TARGET_WITHOUT_SELECTOR = "TargetWithoutSelector", _FALSE, "The target's scale names no pod selector."
    TARGET_UNAVAILABLE = "TargetUnavailable", _UNKNOWN, "The API server did not answer about the target."
    FORBIDDEN = "Forbidden", _FALSE, "The operator lacks a right on the target; the message names it."
    METRICS_UNAVAILABLE = "MetricsUnavailable", _FALSE, "Nothing usable can be read from Prometheus."
    CONFLICTED = "Conflicted", _FALSE, "Something else drives the target; see the condition Conflicted."


class TargetResolvedReason(_Reason):
    """Reasons of TargetResolved."""

    RESOLVED = "Resolved", _TRUE, "The target was found and may be scaled."
    NOT_FOUND = "NotFound", _FALSE, "The target does not exist."
    UNKNOWN_KIND = "UnknownKind", _FALSE, "The cluster has no such apiVersion and kind."
    NOT_SCALABLE = "NotScalable", _FALSE, "The target's kind has no scale subresource."
    NO_SELECTOR = "NoSelector", _FALSE, "The target's scale names no pod selector."
    FORBIDDEN = "Forbidden", _FALSE, "The operator lacks a right on the target; the message names it."
    UNAVAILABLE = "Unavailable", _UNKNOWN, "The API server did not answer."


class MetricsAvailableReason(_Reason):
    """Reasons of MetricsAvailable."""

    AVAILABLE = "Available", _TRUE, "Every signal that is needed is fresh and complete."
    NO_READY_PODS = "NoReadyPods", _UNKNOWN, "No pod is ready, so there is nothing to read."
    STARTING = "Starting", _UNKNOWN, "Pods became ready a moment ago, and their first samples are awaited."
    NO_DATA = "NoData", _FALSE, "Prometheus answers, but has no series for the pods."
    STALE = "Stale", _FALSE, "The latest samples are too old to judge by."
    PARTIAL_DATA = "PartialData", _FALSE, "Some pods or signals have no data, so nothing is lowered."
    INVALID_VALUES = "InvalidValues", _FALSE, "Values are not a number, infinite, negative or absurd."
    UNREACHABLE = "Unreachable", _FALSE, "Prometheus cannot be reached or does not answer in time."
    UNAUTHORIZED = "Unauthorized", _FALSE, "Prometheus wants credentials, or others."
    QUERY_FAILED = "QueryFailed", _FALSE, "Prometheus refuses a query; the message quotes it."


class WithinSLOReason(_Reason):
    """The reason of WithinSLO beside those of `SLOState`."""

    NO_SLO = "NoSLO", _UNKNOWN, "The policy promises nothing."


class ScalingLimitedReason(_Reason):
    """The reason of ScalingLimited beside those of `LimitReason`."""

    DESIRED_WITHIN_RANGE = "DesiredWithinRange", _FALSE, "Nothing stands between the replica count and what is wanted."


class ConflictedReason(_Reason):
    """Reasons of Conflicted."""

    NO_CONFLICT = "NoConflict", _FALSE, "Nothing else drives the target."
    HPA = "HPA", _TRUE, "A HorizontalPodAutoscaler has the same target."
    SCALED_OBJECT = "ScaledObject", _TRUE, "A ScaledObject of KEDA has the same target."
    OLDER_POLICY = "OlderPolicy", _TRUE, "An older policy has the same target."
    UNDONE_BY_MANAGER = "UndoneByManager", _TRUE, "Another manager undid the replica count three times in 30 minutes."


class PausedReason(_Reason):
    """Reasons of Paused."""

    NOT_PAUSED = "NotPaused", _FALSE, "The policy acts as its mode says."
    ANNOTATION = "Annotation", _TRUE, 'The policy carries bandkeeper.dev/paused="true".'
    SCALED_TO_ZERO = "ScaledToZero", _TRUE, "A person set the target to 0 replicas."


class BatchAppliedReason(_Reason):
    """Reasons of BatchApplied."""

    APPLIED = "Applied", _TRUE, "Every ready pod reads back the wanted cap."
    PENDING = "Pending", _FALSE, "The cap is written and not yet read back everywhere, within the expected delay."
    PARTIALLY_APPLIED = "PartiallyApplied", _FALSE, "Some pods could not be written; they are tried again."
    DRIFTED = "Drifted", _FALSE, "A pod runs with another cap than the one written."
    NOT_CONFIGURED = "NotConfigured", _UNKNOWN, "The policy has no batch adapter: only replicas are scaled."
    ADAPTER_UNAVAILABLE = "AdapterUnavailable", _FALSE, "The adapter is switched off for the operator, or cannot work."
    FORBIDDEN = "Forbidden", _FALSE, "The operator lacks the adapter's right; the message names it."
    UNDONE_BY_MANAGER = "UndoneByManager", _FALSE, "Another manager undid the cap three times in 30 minutes."
    ROLLED_BACK = "RolledBack", _FALSE, "The cap's rollout missed its progress deadline and was taken back."


INITIALIZING = "Initializing"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reason says: the condition's status, and a sentence of documentation."""

    status: ConditionStatus
    sentence: str


def _documented(*groups: Iterable[_Reason]) -> dict[str, Meaning]:
    return {reason.value: Meaning(reason.status, reason.meaning) for group in groups for reason in group}


_SLO_STATUS = {SLOState.MET: _TRUE, SLOState.BREACHED: _FALSE, SLOState.UNREACHABLE: _FALSE}
_POWER_STATUS = {PowerState.WITHIN: _TRUE, PowerState.NO_DATA: _UNKNOWN}
_DEADLINE_STATUS = {DeadlineState.LATE: _FALSE, DeadlineState.UNREACHABLE: _FALSE, DeadlineState.NO_DATA: _UNKNOWN}
_PROFILE_STATUS = {ProfileState.FITS: _TRUE, ProfileState.CONTRADICTED: _FALSE}
_BAND_STATUS = {BandReason.IN_BAND: _TRUE, BandReason.UNKNOWN: _UNKNOWN}

REASONS: Mapping[ConditionType, Mapping[str, Meaning]] = {
    ConditionType.READY: _documented(ReadyReason),
    ConditionType.TARGET_RESOLVED: _documented(TargetResolvedReason),
    ConditionType.METRICS_AVAILABLE: _documented(MetricsAvailableReason),
    ConditionType.WITHIN_SLO: {
        **{state.value: Meaning(_SLO_STATUS.get(state, _UNKNOWN), state.meaning) for state in SLOState},
        **_documented(WithinSLOReason),
    },
    ConditionType.WITHIN_BAND: {
        reason.value: Meaning(_BAND_STATUS.get(reason, _FALSE), reason.meaning) for reason in BandReason
    },
    ConditionType.SCALING_LIMITED: {
        **_documented(ScalingLimitedReason),
        **{reason.value: Meaning(_TRUE, reason.meaning) for reason in LimitReason},
    },
    ConditionType.CONFLICTED: _documented(ConflictedReason),
    ConditionType.PAUSED: _documented(PausedReason),
    ConditionType.BATCH_APPLIED: _documented(BatchAppliedReason),
    ConditionType.WITHIN_POWER: {
        state.value: Meaning(_POWER_STATUS.get(state, _FALSE), state.meaning) for state in PowerState
    },
    ConditionType.WITHIN_DEADLINE: {
        state.value: Meaning(_DEADLINE_STATUS.get(state, _TRUE), state.meaning) for state in DeadlineState
    },
    ConditionType.PROFILE_FITS: {
        state.value: Meaning(_PROFILE_STATUS.get(state, _UNKNOWN), state.meaning) for state in ProfileState
    },
}
"""Every reason that each condition may have; every condition also has `INITIALIZING`, with status Unknown."""

ON_DEMAND = frozenset({ConditionType.WITHIN_POWER, ConditionType.WITHIN_DEADLINE, ConditionType.PROFILE_FITS})
"""Conditions of what few policies ask for: without a finding they are left out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one condition now; `reason` is one of `REASONS[type]`, which gives the status."""

    type: ConditionType
    reason: str
    message: str

    @property
    def status(self) -> ConditionStatus:
        """The status that the reason stands for. Raises KeyError where the reason is not documented."""
        return REASONS[self.type][self.reason].status


def merge(old: Iterable[Condition], findings: Iterable[Finding], *, now_s: float, generation: int) -> list[Condition]:
    """All conditions after `findings`, each type once, in the order of `ConditionType`.

    What was not found anew keeps its old condition, or is Unknown when there is none; one of `ON_DEMAND` goes.
    `lastTransitionTime` changes only with the status. `now_s` is epoch seconds.
    """
    before = {condition.type: condition for condition in old}
    found = {finding.type: finding for finding in findings}
    merged = []
    for kind in ConditionType:
        finding, previous = found.get(kind), before.get(kind)
        if finding is None and kind in ON_DEMAND:
            continue
        if finding is None and previous is not None:
            merged.append(previous)
            continue
        status = finding.status if finding else _UNKNOWN
        same = previous is not None and previous.status is status
        merged.append(
            Condition(
                type=kind.value,
                status=status,
                reason=str(finding.reason) if finding else INITIALIZING,
                message=finding.message if finding else "Not judged yet.",
                last_transition_time=previous.last_transition_time if previous and same else rfc3339(now_s),
                observed_generation=generation,
            )
        )
    return merged


def rfc3339(now_s: float) -> str:
    """Epoch seconds as Kubernetes writes a time, in whole seconds."""
    return datetime.fromtimestamp(int(now_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
