"""The status: one table of what is known and the conditions that it must show."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from bandkeeper.actuate.outcome import CapResult, Outcome, ScaleResult
from bandkeeper.actuate.replicas import Scale
from bandkeeper.api.reasons import DeadlineState, PowerState, ProfileState
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Gap, GapReason, PodState
from bandkeeper.api.v1alpha1 import Condition, ConditionStatus, Spec, Status
from bandkeeper.api.validation import validate
from bandkeeper.decide.decision import DeadlineVerdict, PowerVerdict, ProfileVerdict
from bandkeeper.decide.engine import decide
from bandkeeper.decide.policy import BatchControl, Batching, CostClass, Deadline, Profile, resolve
from bandkeeper.kube.discovery import TargetError, TargetProblem
from bandkeeper.kube.objects import ObjectRef
from bandkeeper.runtime.conflicts import Conflict
from bandkeeper.runtime.effective import effective_of
from bandkeeper.runtime.policies import Flaw, Managed
from bandkeeper.runtime.report import findings, readable, status_of
from bandkeeper.runtime.tracked import Change, Tracked
from bandkeeper.signals.presets import PRESETS
from tests.unit.builders import a_pod, a_snapshot, a_target, pods

DOCUMENT: dict[str, Any] = {
    "apiVersion": "bandkeeper.dev/v1alpha1",
    "kind": "GPUScalingPolicy",
    "metadata": {"name": "chat", "namespace": "serving", "uid": "u", "generation": 3},
    "spec": {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
        "objective": "LatencySensitive",
        "runtime": "VLLM",
        "slos": [{"signal": "TimeToFirstToken", "threshold": "500ms"}],
        "replicas": {"min": 1, "max": 8},
    },
}
REF = ObjectRef("bandkeeper.dev/v1alpha1", "GPUScalingPolicy", "serving", "chat", "u")


def managed(**more: Any) -> Managed:
    """A policy that can be carried out."""
    spec = validate({**DOCUMENT, "metadata": {"name": "chat"}})
    assert isinstance(spec, Spec)
    policy = resolve(
        spec,
        batching=Batching.CONTINUOUS,
        default_capacity=64,
        cost_class=CostClass.EVENTUAL,
        expected_delay_s=90,
        restart_hold_s=300,
    )
    effective = effective_of(policy, spec, period_s=15.0)
    fields: dict[str, Any] = {"spec": spec, "preset": PRESETS["VLLM"], "policy": policy, "effective": effective}
    base: dict[str, Any] = {"ref": REF, "generation": 3, "created_s": 0.0, "paused": False}
    return Managed(**(base | fields | more))


def tracked(policy: Managed | None = None, **snapshot: Any) -> Tracked:
    """A policy after one look at a healthy fleet of two, or at what `snapshot` says."""
    found = Tracked.begin(policy or managed(), 0.0)
    found.scale = Scale(target=a_target(2), current=2, selector="app=chat")
    found.snapshot = a_snapshot(**({"ready": 2, "running": 80.0} | snapshot))
    found.pods = found.snapshot.pods
    assert found.managed.policy is not None
    found.decision, found.state = decide(found.managed.policy, found.snapshot, found.state, 1000.0)
    return found


def told(found: Tracked, wall_s: float = 1_700_000_000.0) -> Status:
    """Its status."""
    return status_of(found, findings(found), wall_s=wall_s)


def conditions(found: Tracked) -> dict[str, tuple[str, str]]:
    """Type to (status, reason)."""
    status = told(found).stored()
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def test_a_healthy_policy_is_ready_and_shows_what_is_in_force() -> None:
    status = told(tracked()).stored()
    assert conditions(tracked())["Ready"] == ("True", "Ok")
    assert status["observedGeneration"] == 3
    assert status["effective"]["band"] == {"lowPercent": 60, "highPercent": 70}
    assert status["effective"]["scaleUp"]["limits"] == "100% in 15s or 4 pods in 15s"
    assert status["replicas"] == {"current": 2, "desired": 2, "ready": 2, "pending": 0}
    assert len(json.dumps(status)) < 8192


def with_target_problem() -> Tracked:
    found = tracked()
    found.decision = found.snapshot = found.scale = None
    found.target_problem = TargetError(TargetProblem.NOT_FOUND, "no Deployment chat: create it")
    return found


def with_flaw() -> Tracked:
    return Tracked.begin(managed(flaw=Flaw("UnknownRuntime", "runtime Foo is not known")), 0.0)


def with_conflict() -> Tracked:
    found = tracked()
    found.conflict = Conflict("HPA", "Deployment chat is already scaled by HorizontalPodAutoscaler chat")
    return found


def with_a_manager_that_undoes() -> Tracked:
    found = tracked()
    assert found.decision is not None
    found.decision = dataclasses.replace(found.decision, replicas=None, undone_by="argocd")
    return found


def with_refusal() -> Tracked:
    found = tracked()
    found.scale_result = ScaleResult(outcome=Outcome.FORBIDDEN, message="grant patch on deployments/scale")
    return found


def with_outage(reason: GapReason = GapReason.UNREACHABLE, state_age_s: float = 3600.0) -> Tracked:
    gaps = [
        Gap(signal=signal, reason=reason, detail="cannot reach it")
        for signal in (Signal.REQUESTS_RUNNING, Signal.REQUESTS_WAITING)
    ]
    return tracked(ready=pods(2, state_age_s=state_age_s), running=None, waiting=None, gaps=gaps)


def with_optional_gap(own: bool = False) -> Tracked:
    policy = managed()
    if own:
        assert policy.spec is not None
        document = json.loads(json.dumps(DOCUMENT))
        document["metadata"] = {"name": "chat"}
        document["spec"]["signals"] = [{"signal": "RequestsRejected", "metric": "mine"}]
        spec = validate(document)
        assert isinstance(spec, Spec)
        policy = dataclasses.replace(policy, spec=spec)
    gap = Gap(signal=Signal.REQUESTS_REJECTED, reason=GapReason.ABSENT, detail="none of it")
    return tracked(policy, gaps=[gap], silent=["chat-1"])


CASES = [
    ("target missing", with_target_problem, {"Ready": "TargetNotFound", "TargetResolved": "NotFound"}),
    ("flaw", with_flaw, {"Ready": "UnknownRuntime", "WithinBand": "Unknown"}),
    ("conflict", with_conflict, {"Ready": "Conflicted", "Conflicted": "HPA"}),
    (
        "undone by a manager",
        with_a_manager_that_undoes,
        {"Ready": "Conflicted", "Conflicted": "UndoneByManager", "ScalingLimited": "Undone"},
    ),
    ("write refused", with_refusal, {"Ready": "Forbidden", "TargetResolved": "Forbidden"}),
    ("outage", with_outage, {"Ready": "MetricsUnavailable", "MetricsAvailable": "Unreachable"}),
    (
        "credentials wanted",
        lambda: with_outage(GapReason.UNAUTHORIZED),
        {"Ready": "MetricsUnavailable", "MetricsAvailable": "Unauthorized"},
    ),
    (
        "not scraped yet",
        lambda: with_outage(GapReason.ABSENT, state_age_s=5.0),
        {"Ready": "Ok", "MetricsAvailable": "Starting"},
    ),
    (
        "never scraped",
        lambda: with_outage(GapReason.ABSENT, state_age_s=300.0),
        {"Ready": "MetricsUnavailable", "MetricsAvailable": "NoData"},
    ),
    ("paused", lambda: tracked(managed(paused=True)), {"Paused": "Annotation", "Ready": "Ok"}),
    (
        "no pod ready",
        lambda: tracked(ready=0, replicas=2, running=None),
        {"MetricsAvailable": "NoReadyPods", "Ready": "Ok"},
    ),
]


@pytest.mark.parametrize(("name", "make", "reasons"), CASES, ids=[case[0] for case in CASES])
def test_conditions_say_what_is_the_matter(name: str, make: Any, reasons: dict[str, str]) -> None:
    found = conditions(make())
    assert {kind: found[kind][1] for kind in reasons} == reasons


def test_an_optional_signal_may_be_absent_unless_the_policy_gives_its_source() -> None:
    own = told(with_optional_gap(own=True), 0.0).stored()["conditions"]
    preset = told(with_optional_gap(), 0.0).stored()["conditions"]
    assert next(one for one in own if one["type"] == "MetricsAvailable")["message"] == "none of it"
    assert next(one for one in preset if one["type"] == "MetricsAvailable")["message"] != "none of it"


def test_a_move_is_kept_in_the_history_and_the_last_decision_keeps_its_time() -> None:
    found = tracked()
    assert found.decision is not None
    found.changes.append(Change(decision=found.decision, from_replicas=1, direction="up"))
    first = told(found, 1000.0)
    found.status, found.changes = first, []
    second = told(found, 2000.0)
    assert first.history == second.history
    assert first.history[0].from_replicas == 1
    assert first.last_decision is not None
    assert second.last_decision is not None
    assert first.last_decision.time == second.last_decision.time


def test_the_history_tells_a_recommendation_from_a_move() -> None:
    found = tracked()
    assert found.decision is not None
    found.changes.append(Change(decision=found.decision, from_replicas=1, direction="recommended"))
    assert told(found, 0.0).history[0].message.startswith("Recommended, not done: ")


def test_the_history_is_bounded() -> None:
    found = tracked()
    assert found.decision is not None
    for _ in range(30):
        found.changes.append(Change(decision=found.decision, from_replicas=1, direction="up"))
    assert len(told(found, 0.0).history) == 10


def test_a_status_of_another_version_counts_as_none() -> None:
    assert readable({"conditions": "none of ours"}).conditions == []


def test_a_status_is_read_back_as_it_was_written() -> None:
    status = told(tracked())
    assert readable(status.stored()) == status


BATCH = [
    (CapResult(outcome=Outcome.FORBIDDEN, message="grant patch on pods"), None, "Forbidden"),
    (CapResult(outcome=Outcome.PARTIAL, message="1 of 2"), None, "PartiallyApplied"),
    (CapResult(outcome=Outcome.WRITTEN), 8, "Pending"),
    (CapResult(outcome=Outcome.UNCHANGED), 32, "Applied"),
]


@pytest.mark.parametrize(("result", "cap", "reason"), BATCH, ids=[case[2] for case in BATCH])
def test_the_batch_condition_follows_the_read_back(result: CapResult, cap: int | None, reason: str) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["metadata"] = {"name": "chat"}
    document["spec"]["batch"] = {"max": 64, "adapter": {"type": "Annotation"}}
    spec = validate(document)
    assert isinstance(spec, Spec)
    found = tracked(managed(spec=spec, adapter=object()))
    assert found.decision is not None
    found.decision = dataclasses.replace(found.decision, cap=32)
    found.pods = (a_pod("chat-0", PodState.READY, cap=cap),)
    found.cap_result = result
    assert conditions(found)["BatchApplied"][1] == reason


def test_power_is_shown_where_it_is_limited() -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["metadata"] = {"name": "chat"}
    document["spec"]["batch"] = {"max": 64, "adapter": {"type": "Annotation"}}
    document["spec"]["constraints"] = {"powerWattsPerGPU": 300}
    spec = validate(document)
    assert isinstance(spec, Spec)
    base = managed()
    assert base.policy is not None
    policy = dataclasses.replace(
        base.policy,
        power_watts=300.0,
        batch=BatchControl(candidates=(8, 64), cost_class=CostClass.LIVE, expected_delay_s=5.0),
    )
    found = tracked(managed(spec=spec, policy=policy, effective=effective_of(policy, spec, period_s=15.0)))
    status = told(found).stored()
    assert (status["power"], status["effective"]["powerWattsPerGPU"]) == ({"limitWatts": 300, "batchCap": 64}, 300)
    assert conditions(found)["WithinPower"] == ("Unknown", "NoData")

    assert found.decision is not None
    power = PowerVerdict(300.0, PowerState.ABOVE, "A GPU draws 310 W.", 310.4, 48)
    found.decision = dataclasses.replace(found.decision, power=power)
    assert told(found).stored()["power"] == {"limitWatts": 300, "measuredWatts": 310, "batchCap": 48}
    assert conditions(found)["WithinPower"] == ("False", "PowerAboveLimit")

    for decision in (dataclasses.replace(found.decision, power=None), None):  # at 0 replicas, and without a target
        found.decision = decision
        assert conditions(found)["WithinPower"] == ("Unknown", "NoData")


def test_a_deadline_is_shown_where_there_is_one() -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["metadata"] = {"name": "chat"}
    document["spec"] |= {"objective": "ThroughputSensitive", "backlog": {"rate": "RequestsFinished", "within": "4h"}}
    spec = validate(document)
    assert isinstance(spec, Spec)
    base = managed()
    assert base.policy is not None
    deadline = Deadline(backlog=Signal.REQUESTS_WAITING, rate=Signal.REQUESTS_FINISHED, within_s=14_400.0)
    policy = dataclasses.replace(base.policy, deadline=deadline)
    found = tracked(managed(spec=spec, policy=policy, effective=effective_of(policy, spec, period_s=15.0)))
    effective = told(found).stored()["effective"]
    assert (effective["deadline"], "drainSeconds" in effective) == ("4h", False)
    assert conditions(found)["WithinDeadline"] == ("Unknown", "NoData")

    assert found.decision is not None
    for state, status in (
        (DeadlineState.IN_TIME, "True"),
        (DeadlineState.NOTHING_LEFT, "True"),
        (DeadlineState.LATE, "False"),
        (DeadlineState.UNREACHABLE, "False"),
        (DeadlineState.NO_DATA, "Unknown"),
    ):
        found.decision = dataclasses.replace(found.decision, deadline=DeadlineVerdict(state, "12 requests are left."))
        assert conditions(found)["WithinDeadline"] == (status, state.value)

    found.decision = None
    assert conditions(found)["WithinDeadline"] == ("Unknown", "NoData")
    assert "WithinDeadline" not in conditions(tracked())
    drained = dataclasses.replace(base.policy, drain_s=300.0)
    for each, want in ((drained, 300), (base.policy, 60)):
        assert effective_of(each, spec.model_copy(update={"backlog": None}), period_s=15.0).drain_seconds == want


def test_a_policy_that_limits_no_power_has_no_word_of_it() -> None:
    found = tracked()
    assert "power" not in told(found).stored()
    assert "WithinPower" not in conditions(found)

    limited = Condition(
        type="WithinPower", status=ConditionStatus.TRUE, reason="WithinPower", message="A GPU draws 250 W.",
        last_transition_time="2026-01-01T12:00:00Z", observed_generation=1,
    )  # fmt: skip
    found.status = Status(conditions=[limited])  # of before the limit was taken out
    assert "WithinPower" not in {condition.type for condition in told(found).conditions}


def test_a_profile_is_judged_where_there_is_one() -> None:
    base = managed()
    assert base.policy is not None
    profile = Profile(alpha_s=0.02, beta_s=None, delta_s=None, batches=(), kv_tokens=None)
    found = tracked(managed(policy=dataclasses.replace(base.policy, profile=profile)))
    assert found.decision is not None
    verdict = ProfileVerdict(ProfileState.CONTRADICTED, "Steps take 2 times as long as spec.profile says.")
    found.decision = dataclasses.replace(found.decision, profile=verdict)
    assert conditions(found)["ProfileFits"] == ("False", "Contradicted")
    for decision in (dataclasses.replace(found.decision, profile=None), None):  # without a target, and unjudged
        found.decision = decision
        assert conditions(found)["ProfileFits"] == ("Unknown", "Unmeasured")
    assert "ProfileFits" not in conditions(tracked())
