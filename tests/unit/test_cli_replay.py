"""`bandkeeper replay`: the past from range queries, joined by the operator's own collector, and its command line."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import GapReason, PodState
from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.cli import history as past
from bandkeeper.cli import replay as command
from bandkeeper.cli.inputs import read_policy
from bandkeeper.lab import history as histories
from bandkeeper.lab.history import History
from bandkeeper.signals.collector import CollectorSettings
from bandkeeper.signals.prometheus import ErrorKind, PrometheusError, PrometheusServer

START_S = 1_790_000_010.0
STEP_S = 15.0
COUNT = 80
EDGES = ("0.1", "0.25", "0.5", "1.0", "+Inf")
A, B, C = "chat-7d9f8b6c5-bcdfg", "chat-7d9f8b6c5-hjklm", "chat-7d9f8b6c5-npqrs"
POLICY = """
apiVersion: bandkeeper.dev/v1alpha1
kind: GPUScalingPolicy
metadata: {name: chat, namespace: serving}
spec:
  targetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
  objective: LatencySensitive
  runtime: VLLM
  slos: [{signal: TimeToFirstToken, percentile: 95, threshold: 500ms}]
  replicas: {min: 1, max: 8}
"""


class FakePrometheus:
    """Answers range queries on series that `there` says exist; remembers what it was asked."""

    def __init__(self, there: Callable[[str, int], bool], *, kube: Mapping[str, Callable[[int], bool]] = {}) -> None:
        self.there, self.kube = there, kube
        self.most_points = 10_000
        self.asked: list[tuple[str, float, float]] = []
        self.fails: PrometheusError | None = None

    def range(self, _reader: Any, query: str, from_s: float, to_s: float, step_s: float) -> list[Any]:
        if self.fails is not None:
            raise self.fails
        assert step_s == STEP_S
        if (to_s - from_s) / step_s + 1 > self.most_points:
            raise PrometheusError(ErrorKind.TOO_LARGE, "too many samples")
        self.asked.append((query, from_s, to_s))
        first, last = (round((at_s - START_S) / STEP_S) for at_s in (from_s, to_s))
        series = []
        for labels, value in self._series(query):
            values = [
                [START_S + index * STEP_S, str(found)]
                for index in range(first, last + 1)
                if (found := value(index)) is not None
            ]
            if values:
                series.append({"metric": labels, "values": values})
        return series

    def _series(self, query: str) -> Iterator[tuple[dict[str, str], Callable[[int], float | None]]]:
        if "kube_" in query:
            yield from self._kube_series(query)
            return
        if "DCGM" in query or "exported_" in query:
            return
        if "_bucket" in query:
            labels = {"namespace": "serving", "bandkeeper_row": "hash/chat"}
            counts = (30.0, 90.0, 96.0, 99.0, 100.0)
            counted = "increase" in query  # else the edges are asked for, and how many series have them
            for edge, count in zip(EDGES, counts, strict=True):
                yield {**labels, "le": edge}, partial(self._if_any, count if counted else 2.0)
            if counted:
                yield {**labels, "le": "sum"}, partial(self._if_any, 20.0)
            return
        value = next(
            (
                value
                for name, value in (("running", 20.0), ("waiting", 0.0), ("request_success", 5.0), ("kv_cache", 0.4))
                if name in query
            ),
            None,
        )
        if value is None or "error" in query:
            return
        for pod in (A, B, C, "chat-large-7d9f8b6c5-bcdfg"):
            labels = {"namespace": "serving", "pod": pod}
            if "timestamp" in query:
                yield labels, partial(self._sampled_s, pod)
            else:
                yield labels, partial(self._if_there, pod, value)

    def _if_any(self, value: float, index: int) -> float | None:
        return value if any(self.there(pod, index) for pod in (A, B, C)) else None

    def _if_there(self, pod: str, value: float, index: int) -> float | None:
        return value if self.there(pod, index) else None

    def _sampled_s(self, pod: str, index: int) -> float | None:
        """As Prometheus does without staleness markers: the last sample is seen for five minutes."""
        for back in range(20):
            if index >= back and self.there(pod, index - back):
                return START_S + (index - back) * STEP_S - 3.0
        return None

    def _kube_series(self, query: str) -> Iterator[tuple[dict[str, str], Callable[[int], float | None]]]:
        if "exported_" in query or not self.kube:
            return
        if "kube_deployment_spec_replicas" in query:
            yield {}, lambda index: 3.0
        for pod, ready in self.kube.items():
            if "kube_pod_status_ready" in query:
                yield {"pod": pod}, partial(_flag, ready)
            if "kube_pod_created" in query:
                yield {"pod": pod}, lambda index: START_S - 500
            if "kube_pod_status_phase" in query:
                yield {"pod": pod}, lambda index: 1.0


def _flag(ready: Callable[[int], bool], index: int) -> float:
    return float(ready(index))


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    (tmp_path / "policy.yaml").write_text(POLICY)
    return read_policy(tmp_path / "policy.yaml").spec


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, spec: Spec) -> Callable[..., History]:
    def reads(fake: FakePrometheus, **changes: Any) -> History:
        monkeypatch.setattr(past._RangeReader, "range", lambda *given: fake.range(*given))
        server = PrometheusServer(name="fake", url="http://127.0.0.1:9")
        asked: dict[str, Any] = {
            "namespace": "serving", "spec": spec, "from_s": START_S, "to_s": START_S + (COUNT - 1) * STEP_S,
            "step_s": STEP_S, "cold_start_s": 60.0,
        }  # fmt: skip
        return past.read(server, past.Asked(**{**asked, **changes}), CollectorSettings(servers=(server,)))

    return reads


Read = Callable[..., History]


def _ready(history: History) -> list[int]:
    return [len(moment.snapshot.pods_in(PodState.READY)) for moment in history.moments]


def test_pods_are_ready_while_they_have_fresh_samples(read: Read) -> None:
    history = read(FakePrometheus(lambda pod, index: pod == A or (pod == B and 20 <= index < 50)))
    ready = _ready(history)
    assert ready[:20] == [1] * 20
    assert ready[20:50] == [2] * 30
    assert ready[55:] == [1] * 25  # a sample is fresh for a minute
    assert not any(moment.dark for moment in history.moments)
    assert {pod.name for moment in history.moments for pod in moment.snapshot.pods} == {A, B}


def test_a_pod_was_on_its_way_for_a_cold_start(read: Read) -> None:
    history = read(FakePrometheus(lambda pod, index: pod == A or (pod == B and index >= 40)))
    pending = [len(moment.snapshot.pods_in(PodState.PENDING)) for moment in history.moments]
    assert pending[36:40] == [1] * 4
    assert sum(pending) == 4
    replicas = [moment.snapshot.target.replicas for moment in history.moments if moment.snapshot.target]
    assert (replicas[35], replicas[36], replicas[40]) == (1, 2, 2)
    (new,) = (pod for pod in history.moments[44].snapshot.pods if pod.name == B)
    assert (new.age_s, new.state_age_s) == (120.0, 60.0)
    (old,) = (pod for pod in history.moments[44].snapshot.pods if pod.name == A)
    assert old.age_s == old.state_age_s > 3600  # when it began is not known, so it measures no cold start


def test_signals_are_those_that_the_operator_reads(read: Read) -> None:
    snapshot = read(FakePrometheus(lambda pod, index: pod in (A, B))).moments[30].snapshot
    assert {pod: reading.value for pod, reading in snapshot.by_pod[Signal.REQUESTS_RUNNING].items()} == {A: 20, B: 20}
    assert snapshot.by_pod[Signal.REQUESTS_FINISHED][A].value == 5.0
    assert snapshot.by_pod[Signal.REQUESTS_RUNNING][A].age_s == 3.0
    ttft = snapshot.distributions[Signal.TIME_TO_FIRST_TOKEN, 60]
    assert ttft.edges[:3] == (0.1, 0.25, 0.5)
    assert ttft.counts == (30, 90, 96, 99, 100)


def test_where_nothing_was_recorded_the_pods_are_those_seen_last(read: Read) -> None:
    history = read(FakePrometheus(lambda pod, index: pod in (A, B) and not 30 <= index < 55))
    dark = [index for index, moment in enumerate(history.moments) if moment.dark]
    assert dark == list(range(33, 55))  # the last samples are fresh for a minute
    snapshot = history.moments[40].snapshot
    assert [pod.name for pod in snapshot.pods] == [A, B]
    assert snapshot.by_pod == {}
    assert {gap.reason for gap in snapshot.gaps if gap.signal is Signal.REQUESTS_RUNNING} <= {
        GapReason.STALE, GapReason.ABSENT,
    }  # fmt: skip
    assert snapshot.target is not None
    assert snapshot.target.replicas == 2
    since = [pod.state_age_s for moment in history.moments[53:57] for pod in moment.snapshot.pods if pod.name == A]
    assert since == sorted(since)  # it is not taken for a pod that became ready anew


def test_a_short_hole_of_one_pod_is_missing_data_not_a_missing_pod(read: Read) -> None:
    history = read(FakePrometheus(lambda pod, index: pod == A or (pod == B and not 30 <= index < 39)))
    assert set(_ready(history)) == {2}
    gaps = [gap for gap in history.moments[37].snapshot.gaps if gap.signal is Signal.REQUESTS_RUNNING]
    assert [gap.pods for gap in gaps] == [(B,)]


def test_kube_state_metrics_tell_more_where_they_are(read: Read) -> None:
    kube = {A: lambda index: True, B: lambda index: index >= 20, C: lambda index: False}
    history = read(FakePrometheus(lambda pod, index: pod == A or (pod == B and index >= 21), kube=kube))
    states = {pod.name: pod.state for pod in history.moments[10].snapshot.pods}
    assert states == {A: PodState.READY, B: PodState.PENDING, C: PodState.PENDING}
    (new,) = (pod for pod in history.moments[30].snapshot.pods if pod.name == B)
    assert (new.age_s, new.state_age_s) == (500 + 450, 150)
    assert {moment.snapshot.target.replicas for moment in history.moments if moment.snapshot.target} == {3}
    assert any("kube-state-metrics" in note for note in history.notes)


def test_each_query_is_asked_once_and_in_parts_where_it_is_too_large(read: Read) -> None:
    whole, parts = (FakePrometheus(lambda pod, index: pod == A) for _ in range(2))
    parts.most_points = 45
    assert read(whole) == read(parts)
    assert len({query for query, _, _ in whole.asked}) == len(whole.asked)
    assert len(parts.asked) == 2 * len(whole.asked)


def test_moments_fall_on_whole_steps(spec: Spec) -> None:
    asked = past.Asked(namespace="serving", spec=spec, from_s=100.2, to_s=161.0, step_s=15)
    assert asked.moments_s == (105.0, 120.0, 135.0, 150.0)


def test_a_past_without_the_workload_is_refused(read: Read) -> None:
    with pytest.raises(past.PastError, match=r"no sample of the pods of serving/chat .* --pods"):
        read(FakePrometheus(lambda pod, index: False))


def test_other_names_need_a_pattern(read: Read) -> None:
    there = FakePrometheus(lambda pod, index: pod.startswith("chat-large"))
    with pytest.raises(past.PastError, match="no sample"):
        read(there)
    assert set(_ready(read(there, pods="chat-large-.*"))) == {1}


def test_a_server_that_fails_is_told_at_once(read: Read) -> None:
    fake = FakePrometheus(lambda pod, index: True)
    fake.fails = PrometheusError(ErrorKind.UNREACHABLE, "Prometheus fake: cannot be reached")
    with pytest.raises(past.PastError, match="cannot be reached"):
        read(fake)


def test_too_short_a_time_is_refused(read: Read) -> None:
    with pytest.raises(past.PastError, match="no two ticks"):
        read(FakePrometheus(lambda pod, index: True), to_s=START_S + 3)


# The command line.


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    given = parser.parse_args(["replay", *arguments])
    status: int = given.call(given)
    return status


@pytest.fixture
def files(tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a policy and a history, the working directory."""
    history = read(FakePrometheus(lambda pod, index: pod in (A, B)))
    histories.write(history, tmp_path / "history.jsonl.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_history_gives_a_summary_and_a_report(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--policy", "policy.yaml", "--history", "history.jsonl.gz") == 0
    said = capsys.readouterr().out
    assert re.search(r"GPU-hours.*\nReport: bandkeeper-replay\.html\n$", said, re.DOTALL)
    assert "<svg" in (files / "bandkeeper-replay.html").read_text()


def test_everything_for_machines(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--policy", "policy.yaml", "--history", "history.jsonl.gz", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == 1
    assert found["slos"][0]["measured_low"] == pytest.approx(0.96)
    assert not (files / "bandkeeper-replay.html").exists()


def test_prometheus_is_read_and_exported(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`files` left the fake Prometheus in place."""
    times = ["--from", str(START_S), "--to", str(START_S + 1185), "--json", "out.json", "--export", "again.jsonl.gz"]
    assert _run("--policy", "policy.yaml", "--prometheus", "http://127.0.0.1:9", *times) == 0
    assert (files / "again.jsonl.gz").read_bytes() != b""
    assert histories.read(files / "again.jsonl.gz").moments[5].at_s == START_S + 75
    assert _run("--policy", "policy.yaml", "--history", "again.jsonl.gz", "--json", "second.json") == 0
    assert (files / "out.json").read_bytes() == (files / "second.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--policy", "none.yaml", "--history", "history.jsonl.gz"], "none.yaml: cannot be read"),
        (["--policy", "policy.yaml", "--history", "none.gz"], "none.gz: cannot be read"),
        (["--policy", "policy.yaml", "--history", "history.jsonl.gz", "--from", "24h"], "go with --prometheus"),
        (["--policy", "policy.yaml", "--history", "history.jsonl.gz", "--warmup", "2h"], "a shorter --warmup"),
        (["--policy", "policy.yaml", "--history", "history.jsonl.gz", "--json", "no/dir.json"], "no directory no"),
        (["--policy", "policy.yaml", "--prometheus", "http://127.0.0.1:9"], "needs --from"),
        (["--policy", "policy.yaml", "--prometheus", "nonsense", "--from", "1h"], "is not a URL"),
        (["--policy", "policy.yaml", "--prometheus", "http://h:1", "--from", "1h", "--to", "2h"], "later than --from"),
        (["--policy", "other.yaml", "--history", "history.jsonl.gz"], "history of chat, and the policy is for other"),
    ],
)
def test_wrong_arguments_are_told(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    (files / "other.yaml").write_text(POLICY.replace("name: chat}", "name: other}"))
    assert _run(*arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1790000000", 1_790_000_000),
        ("2026-09-21T14:13:20Z", 1_790_000_000),
        ("2026-09-21T16:13:20+02:00", 1_790_000_000),
        ("2026-09-21T14:13:20", 1_790_000_000),
        ("1.5", 1.5),
    ],
)
def test_moments_are_read(text: str, seconds: float) -> None:
    assert command._moment(text) == seconds


@pytest.mark.parametrize(("text", "ago_s"), [("now", 0.0), ("24h", 86400.0), ("-1h30m", 5400.0)])
def test_moments_may_be_times_ago(monkeypatch: pytest.MonkeyPatch, text: str, ago_s: float) -> None:
    monkeypatch.setattr("time.time", lambda: 2_000_000.0)
    assert command._moment(text) == 2_000_000.0 - ago_s


@pytest.mark.parametrize("text", ["yesterday", "12:00", "", "5x"])
def test_a_wrong_moment_is_told(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 2026-01-31T08:00:00Z"):
        command._moment(text)


def test_the_report_is_a_picture_where_one_asks_for_png(files: Path) -> None:
    assert _run("--policy", "policy.yaml", "--history", "history.jsonl.gz", "--report", "past.png") == 0
    assert (files / "past.png").read_bytes().startswith(b"\x89PNG")
