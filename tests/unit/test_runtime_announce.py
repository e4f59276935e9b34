"""What is told, and how often: events, log lines and gauges of one policy."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest
from prometheus_client import generate_latest

from bandkeeper.api.v1alpha1 import Condition, ConditionStatus, Status
from bandkeeper.kube.events import EventRecorder
from bandkeeper.runtime.announce import Announcer
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.report import findings
from bandkeeper.runtime.tracked import Change, Tracked
from tests.unit.runtime_world import FakeEvents
from tests.unit.test_runtime_report import tracked, with_outage


def an_announcer() -> tuple[Announcer, FakeEvents, Metrics]:
    events, metrics = FakeEvents(), Metrics()
    return Announcer(events=cast(EventRecorder, events), metrics=metrics), events, metrics


def a_status(**conditions: tuple[str, str]) -> Status:
    """A status with these conditions, by type: (status, reason)."""
    return Status(
        conditions=[
            Condition(
                type=kind,
                status=ConditionStatus(status),
                reason=reason,
                message=f"why {kind} is {status}",
                last_transition_time="2025-01-01T00:00:00Z",
                observed_generation=1,
            )
            for kind, (status, reason) in conditions.items()
        ]
    )


OK = {"Ready": ("True", "Ok")}
TRANSITIONS: list[tuple[str, Status, Status, list[str]]] = [
    ("nothing new", a_status(**OK), a_status(**OK), []),
    ("a first look at what is fine", Status(), a_status(**OK), []),
    ("a first look at trouble", Status(), a_status(Ready=("False", "InvalidSpec")), ["InvalidSpec"]),
    (
        "another trouble",
        a_status(Ready=("False", "InvalidSpec")),
        a_status(Ready=("False", "TargetNotFound")),
        ["TargetNotFound"],
    ),
    ("trouble over", a_status(Ready=("False", "InvalidSpec")), a_status(**OK), []),
    (
        "one cause, two conditions",
        a_status(**OK),
        a_status(Ready=("False", "MetricsUnavailable"), MetricsAvailable=("False", "Unreachable")),
        ["MetricsUnavailable"],
    ),
    (
        "data of some pods is missing",
        a_status(**OK),
        a_status(**OK, MetricsAvailable=("False", "PartialData")),
        ["PartialData"],
    ),
    ("the ordinary course", a_status(**OK), a_status(**OK, ScalingLimited=("True", "ScaleUpLimit")), []),
    ("a bound", a_status(**OK), a_status(**OK, ScalingLimited=("True", "AtMax")), ["AtMax"]),
    (
        "undone by a manager",
        a_status(**OK),
        a_status(Ready=("False", "Conflicted"), ScalingLimited=("True", "Undone")),
        ["Conflicted"],
    ),
    ("paused", a_status(**OK), a_status(**OK, Paused=("True", "Annotation")), ["Annotation"]),
    ("a cap on its way", a_status(**OK), a_status(**OK, BatchApplied=("False", "Pending")), []),
    ("power, which a lower cap answers", a_status(**OK), a_status(**OK, WithinPower=("False", "PowerAboveLimit")), []),
    (
        "power that no cap answers",
        a_status(**OK),
        a_status(**OK, WithinPower=("False", "PowerUnreachable")),
        ["PowerUnreachable"],
    ),
    (
        "a deadline that cannot be kept, once",
        a_status(**OK),
        a_status(
            **OK,
            ScalingLimited=("True", "DeadlineUnreachable"),
            WithinDeadline=("False", "DeadlineUnreachable"),
        ),
        ["DeadlineUnreachable"],
    ),
    ("a deadline that more replicas keep", a_status(**OK), a_status(**OK, WithinDeadline=("False", "Late")), []),
    (
        "a profile of other servers",
        a_status(**OK),
        a_status(**OK, ProfileFits=("False", "Contradicted")),
        ["Contradicted"],
    ),
    ("a promise that is broken is no event", a_status(**OK), a_status(**OK, WithinSLO=("False", "Breached")), []),
]


@pytest.mark.parametrize(("name", "before", "now", "said"), TRANSITIONS, ids=[case[0] for case in TRANSITIONS])
def test_each_piece_of_news_is_one_event(name: str, before: Status, now: Status, said: list[str]) -> None:
    announcer, events, _ = an_announcer()
    found = tracked()
    found.status = before
    announcer.tell(found, now)
    assert events.about("chat") == said


def test_the_log_has_what_an_operator_wants_a_year_later(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="bandkeeper.policy")
    announcer, _, _ = an_announcer()
    found = tracked()
    found.status = a_status(Ready=("False", "InvalidSpec"))
    announcer.tell(found, a_status(**OK))
    assert found.decision is not None
    found.changes = [Change(decision=found.decision, from_replicas=1, direction="up")]
    announcer.moved(found)
    over, moved = caplog.records
    assert (over.levelname, over.message) == ("INFO", "condition")
    assert over.__dict__["policy"] == "serving/chat"
    assert (moved.message, moved.__dict__["from_replicas"], moved.__dict__["action"]) == ("decision", 1, "ScaleUp")


CHANGES: list[tuple[dict[str, Any], str, bool]] = [
    ({"from_replicas": 1, "direction": "up"}, "ScaleUp", False),
    ({"from_replicas": 3, "direction": "down"}, "ScaleDown", False),
    ({"from_cap": 64, "direction": "lowered"}, "LowerBatchCap", False),
    ({"from_cap": 8, "direction": "raised"}, "RaiseBatchCap", False),
    ({"from_replicas": 1, "direction": "recommended"}, "Recommend", True),
]


@pytest.mark.parametrize(("change", "action", "only_said"), CHANGES, ids=[case[1] for case in CHANGES])
def test_each_move_is_one_event_with_its_reason(change: dict[str, Any], action: str, only_said: bool) -> None:
    announcer, events, _ = an_announcer()
    found = tracked()
    assert found.decision is not None
    found.changes = [Change(decision=found.decision, **change)]
    announcer.moved(found)
    [(policy, said, note)] = events.said
    assert (policy, said) == ("chat", action)
    assert note.startswith("Recommended, not done: ") is only_said
    assert note.endswith(found.decision.message)


def shown(metrics: Metrics, found: Tracked, announcer: Announcer) -> str:
    announcer.measure(found, findings(found))
    return generate_latest(metrics.registry).decode()


def test_what_is_no_longer_known_loses_its_series() -> None:
    announcer, _, metrics = an_announcer()
    known = tracked()
    text = shown(metrics, known, announcer)
    assert 'bandkeeper_utilization_ratio{namespace="serving",policy="chat"}' in text
    assert 'bandkeeper_slo_threshold_seconds{namespace="serving",percentile="95"' in text
    known.decision = known.snapshot = None
    text = shown(metrics, known, announcer)
    assert "bandkeeper_utilization_ratio{" not in text
    assert "bandkeeper_slo_threshold_seconds{" not in text
    assert 'bandkeeper_band_low_ratio{namespace="serving",policy="chat"} 0.6' in text


def test_conditions_are_gauges_too() -> None:
    announcer, _, metrics = an_announcer()
    text = shown(metrics, with_outage(), announcer)
    assert 'bandkeeper_policy_condition{namespace="serving",policy="chat",type="Ready"} 0.0' in text
    assert 'bandkeeper_policy_condition{namespace="serving",policy="chat",type="BatchApplied"} -1.0' in text
