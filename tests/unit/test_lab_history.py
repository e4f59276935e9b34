"""The file of a recorded past: what is written is read back, and what is wrong is told with its line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, PodState, Reading
from bandkeeper.lab import history as histories
from bandkeeper.lab.history import HistoryError, Moment
from tests.unit.lab_histories import START_S, a_history, a_moment

HEADER = {
    "format": "bandkeeper-history", "version": 1, "namespace": "serving", "workload": "chat", "runtime": "VLLM",
    "step_s": 15,
}  # fmt: skip


def a_line(number: int = 0, **changes: Any) -> dict[str, Any]:
    line = {
        "at": START_S + 15 * number,
        "replicas": 1,
        "pods": [{"name": "chat-0", "age_s": 900, "state_age_s": 800}],
        "levels": {"RequestsRunning": {"chat-0": [7, 3]}},
        "latencies": [{"signal": "TimeToFirstToken", "window_s": 60, "edges": [0.1, 1], "counts": [5, 9, 10]}],
    }
    return {**line, **changes}


def _file(path: Path, *lines: Any, header: Any = HEADER) -> Path:
    found = path / "history.jsonl"
    found.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    return found


@pytest.mark.parametrize("name", ["history.jsonl", "history.jsonl.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    past = a_history(20.0, 3, minutes=5, darkness=[4])
    moment = a_moment(START_S + 600, 12.0, 2, pending=1)
    snapshot = replace(
        moment.snapshot,
        totals={Signal.SAMPLES: Reading(5.0, 1.0)},
        distributions={(Signal.QUEUE_TIME, 60): Distribution(window_s=60, quantiles={95: 0.25}, age_s=4)},
    )
    past = replace(past, moments=(*past.moments[:-1], replace(moment, snapshot=snapshot)), notes=("told",))
    histories.write(past, tmp_path / name)
    again, expected = histories.read(tmp_path / name), past.without_holes()
    assert again.notes == ("told",)
    assert [_told(moment) for moment in again.moments] == [_told(moment) for moment in expected.moments]


def _told(moment: Moment) -> tuple[Any, ...]:
    """Everything that the file holds."""
    snapshot = moment.snapshot
    assert snapshot.target is not None
    pods = [replace(pod, uid="") for pod in snapshot.pods]
    levels = (dict(snapshot.by_pod), dict(snapshot.totals), dict(snapshot.distributions))
    return (moment.at_s, moment.dark, snapshot.target.replicas, pods, levels, snapshot.gaps)


def test_a_compressed_file_is_compressed_and_equal_every_time(tmp_path: Path) -> None:
    for name in ("one.gz", "two.gz"):
        histories.write(a_history(minutes=5), tmp_path / name)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.gz").read_bytes()).startswith(b'{"format":"bandkeeper-history"')


def test_a_file_of_somebody_else_needs_little(tmp_path: Path) -> None:
    past = histories.read(_file(tmp_path, a_line(0), a_line(1)))
    snapshot = past.moments[1].snapshot
    assert snapshot.by_pod[Signal.REQUESTS_RUNNING]["chat-0"] == Reading(7, 3)
    assert snapshot.distributions[Signal.TIME_TO_FIRST_TOKEN, 60].observations == 10
    assert snapshot.pods[0].state is PodState.READY


def test_the_file_in_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
    (tmp_path / "history.jsonl").write_text(page.split("```json\n")[1].split("```")[0])
    (moment,) = histories.read(tmp_path / "history.jsonl").moments
    assert moment.snapshot.by_pod[Signal.REQUESTS_FINISHED]["chat-a"] == Reading(4.5, 3)


def test_a_hole_becomes_moments_without_data(tmp_path: Path) -> None:
    past = histories.read(_file(tmp_path, a_line(0), a_line(1), a_line(5)))
    assert [moment.dark for moment in past.moments] == [False, False, True, True, True, False]
    missing = past.moments[3].snapshot
    assert missing.by_pod == {}
    assert missing.distributions == {}
    assert {gap.signal for gap in missing.gaps} == {Signal.REQUESTS_RUNNING, Signal.TIME_TO_FIRST_TOKEN}
    assert [pod.name for pod in missing.pods] == ["chat-0"]
    assert missing.pods[0].age_s == 900 + 30
    assert past.moments[3].at_s == START_S + 45


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([a_line(0), {**a_line(1), "at": START_S}], r"line 3: .* is not after the line before"),
        ([a_line(0, levels={"RequestsRunning": {"chat-0": [-1, 3]}})], r"line 2: levels\.RequestsRunning"),
        ([a_line(0, levels={"Nonsense": {}})], r"line 2: levels\.Nonsense"),
        ([a_line(0, extra=1)], r"line 2: extra: Extra inputs"),
        ([a_line(0, replicas=-1)], r"line 2: replicas: .*greater than or equal to 0"),
        ([{"at": 1}], r"line 2: replicas: Field required"),
        ([a_line(latencies=[{"signal": "QueueTime", "window_s": 60, "edges": [1], "counts": [1]}])], "1 edges need 2"),
        ([a_line(0, at=float("nan"))], r"line 2: at: .*finite"),
        ([], r"has a header and no moments"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told(tmp_path: Path, lines: list[Any], told: str) -> None:
    with pytest.raises(HistoryError, match=told):
        histories.read(_file(tmp_path, *lines))


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: path.write_text(""), "is empty"),
        (lambda path: path.write_text("at,replicas\n1,2\n"), "line 1 must be a header"),
        (lambda path: path.write_text(json.dumps({**HEADER, "version": 2})), "version 2; this program reads 1"),
        (lambda path: path.write_text(json.dumps({**HEADER, "step_s": 0})), "step_s: .*greater than 0"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "neither JSON lines in UTF-8"),
        (lambda path: path.write_bytes(gzip.compress(b"{}" * 99)[:-9]), "neither JSON lines in UTF-8"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, write: Callable[[Path], Any], told: str) -> None:
    write(tmp_path / "history.jsonl")
    with pytest.raises(HistoryError, match=told):
        histories.read(tmp_path / "history.jsonl")
