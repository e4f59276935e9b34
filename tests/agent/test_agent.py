"""`bandkeeper agent` as a process: what stands on /metrics with its pods, and what it does as parts of the node go."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bandkeeper.agent import catalogue
from tests.agent.kubelet import Kubelet
from tests.agent.standin import GIB, H100, NVML, gpu, mig, uuid

WAIT_S = 30.0
Sample = tuple[dict[str, str], float]
"""Labels and value."""


class Agent:
    """A running agent: its log lines, its pages."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._url = f"http://127.0.0.1:{self.line('The agent serves')['port']}"

    def _read(self) -> None:
        for line in cast(IO[str], self.process.stderr):
            self.lines.put(json.loads(line))

    def line(self, message: str) -> dict[str, Any]:
        """The next log line with that message."""
        while True:
            found = self.lines.get(timeout=WAIT_S)
            if found["message"] == message:
                return found

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(self._url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> dict[str, list[Sample]]:
        """Samples by name without `bandkeeper_`."""
        found: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                found.setdefault(sample.name.removeprefix("bandkeeper_"), []).append((sample.labels, sample.value))
        return found

    def until(self, holds: Callable[[dict[str, list[Sample]]], object]) -> dict[str, list[Sample]]:
        """The first metrics of which `holds` is true."""
        until_s = time.monotonic() + WAIT_S
        while not holds(metrics := self.metrics()):
            assert time.monotonic() < until_s, metrics
            time.sleep(0.1)
        return metrics


@contextmanager
def running(nvml: NVML, *arguments: object) -> Iterator[Agent]:
    """An agent on a free port of loopback; it must end with status 0 on SIGTERM."""
    command = [sys.executable, "-m", "bandkeeper", "agent", "--listen", "127.0.0.1:0", "--interval", "200ms"]
    process = subprocess.Popen(
        [*command, "--window", "1s", *map(str, arguments)], env=nvml.env, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Agent(process)
        process.terminate()
        assert process.wait(timeout=WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
        cast(IO[str], process.stderr).close()


def with_pods(kubelet: Kubelet) -> tuple[object, ...]:
    return "--pod-resources", kubelet.socket, "--pods-interval", "200ms"


def at(metrics: dict[str, list[Sample]], name: str, **labels: str) -> float:
    """The one value of a metric with those labels."""
    (value,) = [value for have, value in metrics[name] if labels.items() <= have.items()]
    return value


def pods_of(metrics: dict[str, list[Sample]]) -> set[tuple[str, ...]]:
    """Whom the info series name: GPU, instance, pod, container, shared."""
    names = ("gpu", "mig", "namespace", "pod", "container", "shared")
    return {tuple(labels[name] for name in names) for labels, _ in metrics["gpu_info"]}


NOBODYS = ("", "", "")


def test_whole_gpus_and_their_pods(nvml: NVML, kubelet: Kubelet) -> None:
    nvml.set({"gpus": 3, "gpm.apart_ms": 100}, gpu(0), gpu(1), gpu(2))
    kubelet.pods = {"serving/chat-0/server": (uuid(0), uuid(2)), "serving/web/nginx": ()}
    with running(nvml, *with_pods(kubelet)) as agent:
        metrics = agent.until(lambda m: "gpu_sm_active_ratio" in m and at(m, "agent_pods_known"))
        assert pods_of(metrics) == {
            ("0", "", "serving", "chat-0", "server", "false"),
            ("1", "", *NOBODYS, "false"),
            ("2", "", "serving", "chat-0", "server", "false"),
        }
        (labels,) = [labels for labels, _ in metrics["gpu_sm_active_ratio"] if labels["gpu"] == "2"]
        assert labels == {
            "gpu": "2",
            "uuid": uuid(2),
            "model": H100,
            "namespace": "serving",
            "pod": "chat-0",
            "container": "server",
            "mig": "",
            "shared": "false",
        }
        assert at(metrics, "gpu_sm_active_ratio", gpu="2") == pytest.approx(0.8225)
        assert at(metrics, "gpu_dram_active_ratio", gpu="0") == pytest.approx(0.615)
        assert at(metrics, "gpu_busy_ratio", gpu="1", pod="") == pytest.approx(0.91)
        assert at(metrics, "gpu_power_watts", gpu="0") == 500.0
        assert at(metrics, "agent_gpus") == 3
        assert at(metrics, "agent_unmatched_devices") == 0
        assert agent.get("/readyz") == (200, "ok\n")
        assert agent.get("/healthz") == (200, "ok\n")


def test_everything_in_the_catalogue_is_exported_and_nothing_else(nvml: NVML, kubelet: Kubelet) -> None:
    nvml.set({"gpus": 2, "gpu1.error.nvmlDeviceGetPowerUsage": 999}, gpu(0), gpu(1))
    with running(nvml, *with_pods(kubelet)) as agent:
        metrics = agent.until(lambda m: "gpu_sm_active_ratio" in m and "agent_pods_age_seconds" in m)
        assert {f"bandkeeper_{name}" for name in metrics} == {
            metric.name for metric in (*catalogue.OF_GPUS, *catalogue.OF_AGENT)
        }


def test_a_time_sliced_gpu_has_the_devices_figures_for_each_pod_and_says_so(nvml: NVML, kubelet: Kubelet) -> None:
    nvml.set({"gpus": 2}, gpu(0), gpu(1))
    kubelet.pods = {
        "a/one/main": (f"{uuid(0)}::0",),
        "b/two/main": (f"{uuid(0)}::1", f"{uuid(0)}::2"),
        "b/alone/main": (f"{uuid(1)}::0",),
    }
    with running(nvml, *with_pods(kubelet)) as agent:
        metrics = agent.until(lambda m: "gpu_sm_active_ratio" in m and at(m, "agent_pods_known"))
        assert pods_of(metrics) == {
            ("0", "", "a", "one", "main", "true"),
            ("0", "", "b", "two", "main", "true"),
            ("1", "", "b", "alone", "main", "true"),  # others may be given a share of it at any time
        }
        for pod in ("one", "two"):
            assert at(metrics, "gpu_busy_ratio", pod=pod) == pytest.approx(0.90)


def test_mig_instances_by_uuid_and_by_number(nvml: NVML, kubelet: Kubelet) -> None:
    instances = {1: (uuid(101, "MIG"),), 3: (uuid(103, "MIG"),), 5: (uuid(105, "MIG"), uuid(106, "MIG"))}
    nvml.set({"gpus": 1}, gpu(0), mig(0, instances))
    kubelet.pods = {
        "ns/by-uuid/c": (uuid(101, "MIG"),),
        "ns/by-node/c": ("nvidia0/gi3",),
        "ns/left/c": (f"{uuid(105, 'MIG')}::1",),
        "ns/right/c": (f"MIG-{uuid(0)}/5/1",),
    }
    with running(nvml, *with_pods(kubelet)) as agent:
        metrics = agent.until(lambda m: "gpu_sm_active_ratio" in m and at(m, "agent_pods_known"))
        assert pods_of(metrics) == {
            ("0", "", *NOBODYS, "false"),
            ("0", "1", "ns", "by-uuid", "c", "false"),
            ("0", "3", "ns", "by-node", "c", "false"),
            ("0", "5", "ns", "left", "c", "true"),
            ("0", "5", "ns", "right", "c", "true"),
        }
        assert at(metrics, "gpu_sm_active_ratio", pod="by-uuid") == pytest.approx(0.12)
        assert at(metrics, "gpu_sm_active_ratio", pod="by-node") == pytest.approx(0.32)
        assert at(metrics, "gpu_memory_used_bytes", pod="by-node", mig="3") == 4 * GIB
        assert at(metrics, "gpu_power_watts") == 500.0  # once, nobody's
        assert {labels["uuid"] for labels, _ in metrics["gpu_info"]} == {uuid(0)}


def test_a_gpu_by_node_number_and_a_device_that_is_not_here(nvml: NVML, kubelet: Kubelet) -> None:
    nvml.set({"gpus": 2}, gpu(0), gpu(1), {"gpu1.minor": 7})
    kubelet.pods = {"ns/seven/c": ("nvidia7",), "ns/shares/c": ("nvidia0/vgpu1",), "ns/other/c": (uuid(99),)}
    with running(nvml, *with_pods(kubelet)) as agent:
        metrics = agent.until(lambda m: at(m, "agent_pods_known") and "gpu_info" in m)
        assert pods_of(metrics) == {
            ("0", "", "ns", "shares", "c", "true"),
            ("1", "", "ns", "seven", "c", "false"),
        }
        assert at(metrics, "agent_unmatched_devices") == 1


def test_a_kubelet_that_restarts_is_asked_again_and_its_last_answer_holds_meanwhile(
    nvml: NVML, kubelet: Kubelet
) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    kubelet.pods = {"ns/first/c": (uuid(0),)}
    with running(nvml, *with_pods(kubelet)) as agent:
        agent.until(lambda m: at(m, "agent_pods_known") and "gpu_info" in m)
        kubelet.stop()
        why = agent.line("The kubelet does not say which pod holds which GPU")
        assert "UNAVAILABLE" in why["why"]
        metrics = agent.metrics()
        assert pods_of(metrics) == {("0", "", "ns", "first", "c", "false")}
        assert at(metrics, "agent_pods_known") == 1
        kubelet.pods = {"ns/second/c": (uuid(0),)}
        kubelet.start()
        agent.until(lambda m: pods_of(m) == {("0", "", "ns", "second", "c", "false")})
        assert at(agent.metrics(), "agent_pods_age_seconds") < 5


def test_without_a_kubelet_the_gpus_are_nobodys_and_that_is_said(nvml: NVML, tmp_path: Path) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    with running(nvml, "--pod-resources", tmp_path / "absent.sock") as agent:
        agent.line("The kubelet does not say which pod holds which GPU")
        metrics = agent.until(lambda m: "gpu_info" in m)
        assert pods_of(metrics) == {("0", "", *NOBODYS, "false")}
        assert at(metrics, "agent_pods_known") == 0
        assert "agent_pods_age_seconds" not in metrics
        assert "agent_unmatched_devices" not in metrics


def test_a_failure_is_counted_and_costs_its_own_metric_alone(nvml: NVML) -> None:
    nvml.set({"gpus": 1, "gpu0.error.nvmlDeviceGetPowerUsage": 999}, gpu(0))
    with running(nvml, "--no-pods") as agent:
        refused = agent.line("NVML refused a call; its metrics are left out")
        assert (refused["call"], refused["error"]) == ("nvmlDeviceGetPowerUsage", "UNKNOWN")
        metrics = agent.until(lambda m: "gpu_sm_active_ratio" in m)
        assert "gpu_power_watts" not in metrics
        assert at(metrics, "gpu_power_limit_watts") == 700.0
        assert at(metrics, "agent_read_failures_total", call="nvmlDeviceGetPowerUsage", error="UNKNOWN") >= 1


def test_a_lost_gpu_is_down_and_named(nvml: NVML) -> None:
    nvml.set({"gpus": 2}, gpu(0), gpu(1))
    with running(nvml, "--no-pods") as agent:
        agent.until(lambda m: "gpu_sm_active_ratio" in m)
        nvml.set({"gpu1.lost": 15})
        assert agent.line("A GPU is lost")["uuid"] == uuid(1)
        metrics = agent.until(lambda m: at(m, "gpu_up", gpu="1") == 0)
        assert {labels["gpu"] for labels, _ in metrics["gpu_busy_ratio"]} == {"0"}
        assert {labels["gpu"] for labels, _ in metrics["gpu_info"]} == {"0", "1"}
        assert agent.get("/readyz")[0] == 200


def test_a_driver_that_restarts(nvml: NVML) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    with running(nvml, "--no-pods") as agent:
        agent.until(lambda m: "gpu_sm_active_ratio" in m)
        nvml.set({"epoch": 1, "init": 9})
        assert agent.line("No GPU can be read")["why"]
        agent.until(lambda m: at(m, "gpu_up") == 0 and "gpu_busy_ratio" not in m)
        assert agent.get("/readyz")[0] == 503
        nvml.set({"init": None})
        agent.until(lambda m: at(m, "gpu_up") == 1 and "gpu_sm_active_ratio" in m)
        assert agent.get("/readyz") == (200, "ok\n")


def test_another_driver_than_the_library_ends_the_process_to_load_it_anew(nvml: NVML) -> None:
    nvml.set({"gpus": 1}, gpu(0))
    with pytest.raises(AssertionError, match="3 == 0"), running(nvml, "--no-pods") as agent:  # noqa: PT012
        agent.until(lambda m: "gpu_info" in m)
        nvml.set({"error.nvmlDeviceGetPowerUsage": 18})
        assert "must start anew" in agent.line("The agent ends")["why"]
        agent.process.wait(timeout=WAIT_S)


def test_no_gpu_stays_ready_and_says_why(nvml: NVML) -> None:
    with running(nvml, "--no-pods") as agent:
        agent.line("No GPU can be read")
        agent.until(lambda m: at(m, "agent_passes_total"))  # the line comes before the pass ends
        assert agent.get("/readyz") == (200, "ok, with nothing to do: NVML answers and knows no GPU\n")
        metrics = agent.metrics()
        assert at(metrics, "agent_gpus") == 0
        assert "gpu_info" not in metrics


def test_no_gpu_ends_well_where_asked_to(nvml: NVML) -> None:
    nvml.set({"init": 12})
    command = [sys.executable, "-m", "bandkeeper", "agent", "--listen", "127.0.0.1:0", "--without-gpu", "exit"]
    done = subprocess.run(command, env=nvml.env, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0
    assert "libnvidia-ml.so.1 cannot be loaded" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--interval", "100ms"], "100 ms apart"),
        (["--window", "15"], "write a number and a unit"),
        (["--listen", "9460"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--without-gpu", "wait"], "invalid choice"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_to_write(arguments: list[str], says: str) -> None:
    command = [sys.executable, "-m", "bandkeeper", "agent", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_port_that_is_taken_is_a_sentence(nvml: NVML) -> None:
    with running(nvml, "--no-pods") as agent:
        taken = agent._url.removeprefix("http://")
        command = [sys.executable, "-m", "bandkeeper", "agent", "--no-pods", "--listen", taken]
        done = subprocess.run(command, env=nvml.env, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 2
        assert f"cannot listen on {taken}" in done.stderr
