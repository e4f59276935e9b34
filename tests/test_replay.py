"""The replay against a real Prometheus whose history is an emulated fleet's hour, filled in by promtool."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import PodState
from bandkeeper.cli import history as past
from bandkeeper.cli import replay as command
from bandkeeper.cli.inputs import read_policy
from bandkeeper.lab import history as histories
from bandkeeper.lab.history import History
from bandkeeper.signals.collector import CollectorSettings
from bandkeeper.signals.prometheus import PrometheusServer
from tests.cluster import Prometheus
from tests.cluster.build import find
from tests.emulator.config import parse_config
from tests.emulator.exposition import pod_text
from tests.emulator.fleet import Fleet, PodInfo

pytestmark = pytest.mark.cluster

SCRAPE_S = 15
LENGTH_S = 3600
OUTAGE_S = (2700, 3000)  # Prometheus was down
PODS = tuple(f"chat-7d9f8b6c5-{end}" for end in ("bcdfg", "hjklm", "npqrs", "tvwxz"))
GONE_S, COME_S = 1200, 1800  # the last pod ends, and a new one is ready
NEW = "chat-7d9f8b6c5-22456"
POLICY = """
apiVersion: bandkeeper.dev/v1alpha1
kind: GPUScalingPolicy
metadata: {name: chat, namespace: serving}
spec:
  targetRef: {apiVersion: apps/v1, kind: Deployment, name: chat}
  objective: LatencySensitive
  runtime: VLLM
  slos:
  - {signal: TimeToFirstToken, percentile: 95, threshold: 500ms}
  - {signal: InterTokenLatency, percentile: 95, threshold: 50ms}
  replicas: {min: 1, max: 8}
"""


@dataclass(frozen=True)
class Recorded:
    """A Prometheus with an hour of a fleet, and what is true of it."""

    url: str
    start_s: float
    finished: int
    policy: Path


def _pod(name: str) -> PodInfo:
    return PodInfo(namespace="serving", name=name, uid=name, node="gpu-0", ready=True, capacity=64)


def _lines(fleet: Fleet, at_s: float, stamp: float) -> Iterator[str]:
    """Samples of one scrape in OpenMetrics' words: without types, with the labels that service discovery gives."""
    for workload, record in fleet.pod_servers():
        for line in pod_text(workload, record, at_s).splitlines():
            if not line.startswith("#"):
                series, value = line.rsplit(" ", 1)
                labels = f'namespace="serving",pod="{record.pod.name}"'
                yield f"{series[:-1]},{labels}}} {value} {stamp:.3f}"


def _exposition(start_s: float) -> tuple[list[str], int]:
    fleet = Fleet(
        parse_config(
            {
                "workloads": [
                    {
                        "name": "chat", "namespace": "serving", "selector": {"app": "chat"}, "kind": "continuous",
                        "server": {"preset": "a100-wva", "capacity": 64},
                        "load": {"kind": "steps", "points": [[0, 5], [2400, 2]]},
                        "tokens": {
                            "prompt": {"kind": "fixed", "value": 200},
                            "output": {"kind": "uniform", "low": 5, "high": 60},
                        },
                    }
                ],
                "dcgm": {},
            }
        )
    )  # fmt: skip
    lines = []
    for at_s in range(0, LENGTH_S + 1, SCRAPE_S):
        names = PODS if at_s < GONE_S else PODS[:3] if at_s < COME_S else (*PODS[:3], NEW)
        fleet.set_pods("chat", [_pod(name) for name in names], float(at_s))
        fleet.advance(float(at_s))
        if not OUTAGE_S[0] <= at_s < OUTAGE_S[1]:
            there = [
                line for line in _lines(fleet, float(at_s), start_s + at_s) if any(f'"{n}"' in line for n in names)
            ]
            lines += there
    return sorted(lines, key=lambda line: line.split("{", 1)[0]), fleet.workloads["chat"].stats().succeeded


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    run_dir = tmp_path_factory.mktemp("replay")
    start_s = float((int(time.time()) - LENGTH_S - 60) // SCRAPE_S * SCRAPE_S)
    lines, finished = _exposition(start_s)
    (run_dir / "history.om").write_text("\n".join(lines) + "\n# EOF\n")
    (run_dir / "policy.yaml").write_text(POLICY)
    promtool = find("prometheus") / "promtool"
    parts = ["tsdb", "create-blocks-from", "openmetrics", str(run_dir / "history.om"), str(run_dir / "data")]
    done = subprocess.run([str(promtool), *parts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Prometheus.start(run_dir) as prometheus:
        yield Recorded(prometheus.url, start_s, finished, run_dir / "policy.yaml")


@pytest.fixture(scope="module")
def history(recorded: Recorded) -> History:
    server = PrometheusServer(name="recorded", url=recorded.url, timeout_s=30)
    asked = past.Asked(
        namespace="serving",
        spec=read_policy(recorded.policy).spec,
        from_s=recorded.start_s,
        to_s=recorded.start_s + LENGTH_S,
        step_s=15.0,
        capacity=64,
    )
    return past.read(server, asked, CollectorSettings(servers=(server,)))


def _run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    given = parser.parse_args(["replay", *arguments])
    status: int = given.call(given)
    return status


def _at(history: History, after_s: float) -> dict[str, PodState]:
    moment = next(one for one in history.moments if one.at_s - history.moments[0].at_s >= after_s)
    return {pod.name: pod.state for pod in moment.snapshot.pods}


def test_the_pods_of_the_past_are_found(history: History) -> None:
    assert set(_at(history, 600)) == set(PODS)
    assert set(_at(history, 1500)) == set(PODS[:3])
    assert _at(history, 1770) == {**dict.fromkeys(PODS[:3], PodState.READY), NEW: PodState.PENDING}
    assert set(_at(history, 2000)) == {*PODS[:3], NEW}


def test_the_outage_is_dark_and_holds_the_pods(history: History) -> None:
    start_s = history.moments[0].at_s
    dark = [moment.at_s - start_s for moment in history.moments if moment.dark]
    assert dark
    assert OUTAGE_S[0] <= min(dark) <= OUTAGE_S[0] + 60
    assert OUTAGE_S[1] - 15 <= max(dark) < OUTAGE_S[1] + 15
    assert set(_at(history, 2900)) == {*PODS[:3], NEW}


def test_what_finished_is_what_the_fleet_finished(recorded: Recorded, history: History) -> None:
    """The rates of the record, summed up, against the fleet's own count."""
    rates = [
        sum(reading.value for reading in moment.snapshot.by_pod.get(Signal.REQUESTS_FINISHED, {}).values())
        for moment in history.moments
    ]
    outage = 2.0 * (OUTAGE_S[1] - OUTAGE_S[0])
    assert sum(rates) * 15 == pytest.approx(recorded.finished - outage, rel=0.06)


def test_an_hour_is_replayed_in_seconds_and_reads_the_same_from_its_file(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--policy", str(recorded.policy), "--capacity", "64", "--prometheus", recorded.url]
    times = ["--from", f"{recorded.start_s:.0f}", "--to", f"{recorded.start_s + LENGTH_S:.0f}"]
    begun_s = time.monotonic()
    status = _run(*given, *times, "--json", "one.json", "--report", "one.html", "--export", "past.jsonl.gz")
    assert status == 0, capsys.readouterr().err
    assert time.monotonic() - begun_s < 15
    found: dict[str, Any] = json.loads(Path("one.json").read_text())
    assert found["dark_ticks"] >= (OUTAGE_S[1] - OUTAGE_S[0] - 60) / 15 - 1
    assert found["gpu_hours_saved"] > 0  # four pods do the work of one
    assert [slo["measured_low"] for slo in found["slos"]] == pytest.approx([1.0, 1.0], abs=0.05)
    assert {found["series"]["wanted"][index] for index in range(190, 199)} == {found["series"]["wanted"][189]}
    assert _run("--policy", str(recorded.policy), "--history", "past.jsonl.gz", "--json", "two.json") == 0
    assert Path("one.json").read_bytes() == Path("two.json").read_bytes()
    assert histories.read(Path("past.jsonl.gz")).workload == "chat"
    assert "<svg" in Path("one.html").read_text()
