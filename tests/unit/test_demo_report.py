"""The demo's scenario, readings, picture and page, without a cluster."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution
from bandkeeper.decide.policy import LatencySLO
from tests.demo import picture, report
from tests.demo.figures import Move, Sample, figures, intervals
from tests.demo.picture import Course
from tests.demo.record import distributions, moves, operator_metrics
from tests.demo.scenario import BUCKETS, EMULATOR, INTERVAL_S, LOAD, LOAD_S, MEMBERS, Member
from tests.demo.screen import summary
from tests.emulator.config import parse_config
from tests.stack import deployment
from tests.stack.stack import merged


def a_course(member: Member, seconds: int = 30) -> Course:
    samples = [
        Sample(
            at_s=float(at_s),
            offered_per_s=10.0 + at_s,
            in_hand=80 + at_s,
            slots=128 if at_s < 10 else 256,
            ready=1 if at_s < 10 else 2,
            wanted=None if at_s < 2 else 2,
            arrived=10 * at_s,
            refused=0,
            pod_s=2.0 * at_s,
        )
        for at_s in range(seconds + 1)
    ]
    seen = Distribution(window_s=5, edges=(0.02, 0.03, math.inf), counts=(50.0, 99.0, 100.0))
    latencies = {
        float(end_s): {Signal.TIME_TO_FIRST_TOKEN: seen, Signal.INTER_TOKEN_LATENCY: seen}
        for end_s in range(5, seconds, 5)
    }
    cut = intervals(samples, 5, latencies)
    policy = member.policy
    found = figures(samples, cut, policy=policy, sustainable_per_s=20.0, gpus_per_pod=1)
    made = [Move(at_s=at_s, name=member.name, reason="CapRaised", message="more", caps=(1, 2)) for at_s in (9.0, 20.0)]
    return Course(
        name=member.name,
        policy=policy,
        sustainable_per_s=20.0,
        samples=samples,
        intervals=cut,
        figures=found,
        moves=made,
    )


def test_the_members_differ_in_objective_and_promises_only() -> None:
    config = parse_config(EMULATOR)
    names = {one.name for one in config.workloads}
    assert len(names) == 3
    first, *others = (one.model_copy(update={"name": "", "selector": {"app": ""}}) for one in config.workloads)
    assert all(other == first for other in others)
    assert len({member.objective for member in MEMBERS}) == 3


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_every_promise_stands_on_a_bucket_edge(member: Member) -> None:
    edges = {Signal.TIME_TO_FIRST_TOKEN: BUCKETS["ttft_s"], Signal.INTER_TOKEN_LATENCY: BUCKETS["itl_s"]}
    slos = [slo for slo in member.policy.slos if isinstance(slo, LatencySLO)]
    assert slos
    assert all(any(math.isclose(slo.threshold_s, edge) for edge in edges[slo.signal]) for slo in slos)


def test_the_load_rises_falls_and_leaves_room_in_five_minutes() -> None:
    rates = [rate for _, rate in LOAD["points"]]
    assert max(rates) > 1.1 * rates[0]
    assert max(rates) > 1.1 * rates[-1]
    assert LOAD["points"][-1][0] == LOAD_S <= 255
    assert LOAD_S % INTERVAL_S == 0


def test_the_picture_is_drawn_and_the_page_needs_nothing_else(tmp_path: Path) -> None:
    courses = [a_course(member) for member in MEMBERS]
    picture.draw(courses, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    report.write(
        tmp_path / "report.html", courses, tmp_path / "report.png", setting="a < b", texts={"Events": "x <y> & z"}
    )
    page = (tmp_path / "report.html").read_text()
    assert "a &lt; b" in page
    assert "x &lt;y&gt; &amp; z" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    for course in courses:
        assert str(course.figures.inside_slo) in page


def test_the_picture_stands_missing_data(tmp_path: Path) -> None:
    course = a_course(MEMBERS[0], seconds=4)
    picture.draw([course], tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 0


def test_the_summary_has_every_figure() -> None:
    courses = [a_course(member) for member in MEMBERS]
    console = Console(width=160, record=True, file=None)
    with console.capture() as captured:
        console.print(summary(courses))
    text = captured.get()
    for course in courses:
        assert course.policy.objective in text
        assert f"{course.figures.gpu_s:,.0f}" in text


def test_buckets_become_one_ordered_distribution_for_each_model() -> None:
    answer = [
        {"metric": {"model_name": name, "le": edge}, "value": [0, count]}
        for name, edge, count in (("a", "+Inf", "3"), ("a", "0.5", "2"), ("a", "0.025", "1"), ("b", "+Inf", "NaN"))
    ]
    found = distributions(answer, 5)
    assert found["a"] == Distribution(window_s=5, edges=(0.025, 0.5, math.inf), counts=(1.0, 2.0, 3.0))
    assert "b" not in found


def test_operator_metrics_are_by_policy_metric_and_signal() -> None:
    text = (
        "# TYPE bandkeeper_desired_replicas gauge\n"
        'bandkeeper_desired_replicas{namespace="serving",policy="chat"} 3.0\n'
        "# TYPE bandkeeper_slo_measured_seconds gauge\n"
        'bandkeeper_slo_measured_seconds{namespace="serving",policy="chat",signal="QueueTime",percentile="95"} 0.25\n'
        "# TYPE bandkeeper_leader gauge\n"
        "bandkeeper_leader 1.0\n"
    )
    assert operator_metrics(text) == {
        "chat": {("desired_replicas", ""): 3.0, ("slo_measured_seconds", "QueueTime"): 0.25}
    }


HISTORY = (
    {
        "time": "2026-11-22T21:00:30Z",
        "reason": "CapLowered",
        "message": "Batch cap 48 -> 40: p95 30.7ms is over the 30ms objective; adding takes 9s.",
        "batchCap": 40,
        "fromBatchCap": 48,
    },
    {
        "time": "2026-11-22T21:00:05Z",
        "reason": "DemandRose",
        "message": "Replicas 25 -> 27: much.",
        "replicas": 27,
        "fromReplicas": 25,
    },
)


def test_moves_come_from_the_history_oldest_first() -> None:
    began_s = datetime(2026, 11, 22, 21, tzinfo=UTC).timestamp()
    first, second = moves("chat", HISTORY, began_s)
    assert (first.at_s, first.caps, first.message) == (5.0, None, "Replicas 25 -> 27: much.")
    assert (second.at_s, second.caps, second.reason) == (30.0, (48, 40), "CapLowered")


def test_a_decision_that_moved_both_knobs_is_one_move() -> None:
    both = {"time": "2026-11-22T21:00:05Z", "reason": "QueueGrows", "message": "Batch cap 48 -> 64: much. Replicas …"}
    cap, count = {**both, "batchCap": 64, "fromBatchCap": 48}, {**both, "replicas": 3, "fromReplicas": 2}
    assert [move.caps for move in moves("chat", (cap, count), 0.0)] == [(48, 64)]
    assert [move.caps for move in moves("chat", (count, cap), 0.0)] == [(48, 64)]


@pytest.mark.parametrize(
    ("message", "want"),
    [
        ("Batch cap 48 -> 64: 9 requests wait, and more may fit a batch.", "9 requests wait, and more may fit a batch"),
        ("Batch cap 48 -> 64: p95 is over the 30ms objective; adding takes 9s.", "p95 is over the 30ms objective"),
        ("Batch cap 48 -> 64: 9 requests wait. Replicas 20 -> 22: 9 requests wait.", "9 requests wait"),
    ],
)  # fmt: skip
def test_the_picture_says_why_a_cap_moved(message: str, want: str) -> None:
    move = Move(at_s=1.0, name="chat", reason="CapRaised", message=message, caps=(48, 64))
    assert picture.why(move).replace("\n", " ") == f"48 -> 64: {want}"


def test_settings_are_laid_over_each_other_at_every_depth() -> None:
    below = {"period": "15s", "prometheus": {"servers": [1], "rateWindow": "60s"}, "lease": None}
    above = {"period": "1s", "prometheus": {"servers": [2]}, "lease": {"name": "x"}}
    assert merged(below, above) == {
        "period": "1s",
        "prometheus": {"servers": [2], "rateWindow": "60s"},
        "lease": {"name": "x"},
    }
    assert below["prometheus"] == {"servers": [1], "rateWindow": "60s"}


def test_a_workload_selects_its_own_pods() -> None:
    made = deployment("chat", "serving", replicas=2, labels={"team": "a"}, annotations={"x": "y"}, env={"A": "1"})
    template = made["spec"]["template"]
    assert made["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert template["metadata"] == {"labels": {"app": "chat", "team": "a"}, "annotations": {"x": "y"}}
    assert template["spec"]["containers"][0]["env"] == [{"name": "A", "value": "1"}]
    assert deployment("db", "serving", kind="StatefulSet")["spec"]["serviceName"] == "db"
