"""What the emulator serves: discovery, exposition that parses and agrees with the ledger, faults, control."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from tests.emulator.config import parse_config
from tests.emulator.fleet import Fleet, PodInfo
from tests.emulator.scrape import scrape_configs
from tests.emulator.web import Face

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
TTFT_EDGES = [0.1, 0.5, 1.0]


def a_fleet() -> Fleet:
    common = {"namespace": "serving", "load": {"kind": "constant", "rate_per_s": 6}}
    chat = {
        **common,
        "name": "chat",
        "selector": {"app": "chat"},
        "kind": "continuous",
        "model": "llama",
        "server": {"preset": "a100-wva", "max_queue": 20},
        "buckets": {"ttft_s": TTFT_EDGES},
    }
    vision = {
        **common,
        "name": "vision",
        "selector": {"app": "vision"},
        "kind": "dynamic",
        "server": {"preset": "resnet50-a100", "summaries": True},
    }
    fleet = Fleet(
        parse_config({"workloads": [chat, vision], "dcgm": {"period_s": 10, "absent": ["DCGM_FI_DEV_FB_FREE"]}})
    )
    pods = [PodInfo(namespace="serving", name=f"chat-{n}", uid=f"c{n}", node="gpu-0", ready=n < 2) for n in range(3)]
    fleet.set_pods("chat", pods, 0.0)
    fleet.set_pods("vision", [PodInfo(namespace="serving", name="vision-0", uid="v0", node="gpu-1", ready=True)], 0.0)
    fleet.advance(60.0)
    return fleet


class Clock:
    now_s = 60.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def fleet() -> Fleet:
    return a_fleet()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def http(fleet: Fleet, clock: Clock) -> AsyncIterator[TestClient[Any, Any]]:
    face = Face(fleet, clock, lambda: {"status": "ok"})
    async with TestClient(TestServer(face.app(), host="127.0.0.1")) as client:
        yield client


async def scrape(http: TestClient[Any, Any], path: str) -> Samples:
    answer = await http.get(path)
    assert answer.status == 200, await answer.text()
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return parse(await answer.text())


def parse(text: str) -> Samples:
    """Samples by their names as written; the library's parser, which renames counters, only judges the syntax."""
    assert list(text_string_to_metric_families(text))
    samples: Samples = {}
    for name, labels, number in re.findall(r"^([a-zA-Z_:]\w*(?::\w+)?)\{(.*)\} (\S+)$", text, re.MULTILINE):
        samples[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))] = float(number)
    assert len(samples) == sum(not line.startswith("#") for line in text.splitlines())
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the series of that name that have these labels; fails where there is none."""
    found = [number for (one, has), number in samples.items() if one == name and labels.items() <= set(has)]
    assert found, f"no {name} {labels}"
    return sum(found)


async def test_vllm_text_says_what_the_ledger_says(http: TestClient[Any, Any]) -> None:
    pods = [await scrape(http, f"/pods/serving/chat-{n}/metrics") for n in range(2)]
    ledger = await (await http.get("/workloads/chat/ledger")).json()

    def total(name: str, **labels: str) -> float:
        return sum(value(one, name, model_name="llama", engine="0", **labels) for one in pods)

    assert ledger["succeeded"] > 100
    assert total("vllm:num_requests_running") == ledger["running"]
    assert total("vllm:num_requests_waiting") == ledger["waiting"]
    assert total("vllm:prompt_tokens_total") == ledger["prompt_tokens"]
    assert total("vllm:generation_tokens_total") == ledger["generation_tokens"]
    assert total("vllm:num_preemptions_total") == 0
    for reason, number in ledger["finished"].items():
        assert total("vllm:request_success_total", finished_reason=reason) == number
    assert total("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 0
    for name, key in (
        ("time_to_first_token_seconds", "ttft_s"),
        ("inter_token_latency_seconds", "itl_s"),
        ("e2e_request_latency_seconds", "e2e_s"),
        ("request_queue_time_seconds", "queue_s"),
        ("iteration_tokens_total", "iteration_tokens"),
    ):
        assert total(f"vllm:{name}_count") == ledger[key]["count"] > 0
        assert total(f"vllm:{name}_sum") == pytest.approx(ledger[key]["sum"])
        assert total(f"vllm:{name}_bucket", le="+Inf") == ledger[key]["count"]
        for bound, seen in ledger[key]["buckets"]:
            assert total(f"vllm:{name}_bucket", le=str(bound)) == seen
    assert [bound for bound, _ in ledger["ttft_s"]["buckets"]] == TTFT_EDGES
    assert total("vllm:inter_token_latency_seconds_count") == ledger["generation_tokens"] - ledger["ttft_s"]["count"]
    assert 0 < value(pods[0], "vllm:kv_cache_usage_perc") < 1


async def test_triton_text_says_what_the_ledger_says(http: TestClient[Any, Any]) -> None:
    samples = await scrape(http, "/pods/serving/vision-0/metrics")
    ledger = await (await http.get("/workloads/vision/ledger")).json()

    def one(name: str, **labels: str) -> float:
        return value(samples, name, model="vision", version="1", **labels)

    assert one("nv_inference_request_success") == one("nv_inference_count") == ledger["succeeded"] > 100
    assert one("nv_inference_exec_count") == ledger["executions"]
    assert one("nv_inference_request_failure", reason="REJECTED") == 0
    assert one("nv_inference_request_duration_us") == pytest.approx(1e6 * ledger["e2e_s"]["sum"], abs=1)
    assert one("nv_inference_queue_duration_us") == pytest.approx(1e6 * ledger["queue_s"]["sum"], abs=1)
    compute = sum(one(f"nv_inference_compute_{part}_duration_us") for part in ("input", "infer", "output"))
    assert one("nv_inference_request_duration_us") == pytest.approx(
        compute + one("nv_inference_queue_duration_us"), abs=5
    )
    assert one("nv_inference_pending_request_count") == ledger["waiting"]
    p95 = one("nv_inference_request_summary_us", quantile="0.95")
    assert p95 == pytest.approx(1e6 * ledger["e2e_s"]["quantiles"]["p95"], rel=0.1)
    assert one("nv_inference_request_summary_us_count") == ledger["succeeded"]


async def test_dcgm_text_labels_the_workload_and_leaves_out_what_is_absent(http: TestClient[Any, Any]) -> None:
    samples = await scrape(http, "/dcgm/gpu-0/metrics")
    names = {name for name, _ in samples}
    assert names == {
        "DCGM_FI_DEV_GPU_UTIL",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_POWER_USAGE",
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "DCGM_FI_PROF_DRAM_ACTIVE",
        "DCGM_FI_PROF_PCIE_TX_BYTES",
        "DCGM_FI_PROF_PCIE_RX_BYTES",
    }
    labels = {"pod": "chat-0", "namespace": "serving", "container": "server", "gpu": "0", "device": "nvidia0"}
    utilisation = value(samples, "DCGM_FI_DEV_GPU_UTIL", Hostname="gpu-0", **labels)
    active = value(samples, "DCGM_FI_PROF_GR_ENGINE_ACTIVE", **labels)
    assert utilisation == round(100 * active) > 50
    keys = {frozenset(key for key, _ in has) for _, has in samples}
    device = {"gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname"}
    assert keys == {frozenset(device), frozenset(device | {"pod", "namespace", "container"})}


async def test_discovery_gives_ready_pods_and_the_nodes_exporters(http: TestClient[Any, Any]) -> None:
    answer = await http.get("/sd/pods")
    assert answer.headers["Content-Type"].startswith("application/json")
    pods = await answer.json()
    assert [one["labels"]["pod"] for one in pods] == ["chat-0", "chat-1", "vision-0"]
    assert pods[0]["targets"] == [f"127.0.0.1:{http.port}"]
    assert pods[0]["labels"].items() >= {"namespace": "serving", "container": "server", "node": "gpu-0"}.items()
    await scrape(http, pods[2]["labels"]["__metrics_path__"])
    nodes = await (await http.get("/sd/dcgm")).json()
    assert len(nodes) == 2
    labels = nodes[0]["labels"]
    assert labels["namespace"] == "gpu-operator"
    assert labels["pod"].startswith("dcgm-exporter-")
    await scrape(http, labels["__metrics_path__"])


async def test_pod_that_never_was_ready_does_not_answer(http: TestClient[Any, Any]) -> None:
    assert (await http.get("/pods/serving/chat-2/metrics")).status == 404
    assert (await http.get("/dcgm/gpu-9/metrics")).status == 404


async def test_of_two_pods_with_one_name_the_newer_answers(http: TestClient[Any, Any], fleet: Fleet) -> None:
    fleet.set_pods("chat", [PodInfo(namespace="serving", name="chat-0", uid="newer", node="gpu-0", ready=True)], 60.0)
    assert {"c0", "newer"} <= set(fleet.workloads["chat"].pods)
    samples = await scrape(http, "/pods/serving/chat-0/metrics")
    assert value(samples, "vllm:generation_tokens_total") == 0


@pytest.mark.parametrize(
    ("kind", "expected"), [("nan", math.nan), ("negative", -1.0), ("sentinel", 9223372036854775794.0)]
)
async def test_fault_spoils_every_value_of_the_named_pods(
    http: TestClient[Any, Any], kind: str, expected: float
) -> None:
    await http.put("/workloads/chat/fault", json={"kind": kind, "pods": ["chat-0"]})
    spoilt = await scrape(http, "/pods/serving/chat-0/metrics")
    assert len(spoilt) > 50
    assert all(number == expected or (math.isnan(number) and math.isnan(expected)) for number in spoilt.values())
    sound = await scrape(http, "/pods/serving/chat-1/metrics")
    assert set(spoilt) == set(sound)
    assert value(sound, "vllm:generation_tokens_total") > 0
    await http.put("/workloads/chat/fault", json={"kind": "none"})
    assert value(await scrape(http, "/pods/serving/chat-0/metrics"), "vllm:generation_tokens_total") > 0


async def test_frozen_pod_serves_the_numbers_of_the_moment_it_froze(http: TestClient[Any, Any], fleet: Fleet) -> None:
    path = "/pods/serving/chat-0/metrics"
    before = await scrape(http, path)
    await http.put("/workloads/chat/fault", json={"kind": "freeze"})
    fleet.advance(90.0)
    assert await scrape(http, path) == before
    await http.put("/workloads/chat/fault", json={"kind": "none"})
    assert await scrape(http, path) != before


async def test_absent_pod_is_still_a_target_but_does_not_answer(http: TestClient[Any, Any]) -> None:
    await http.put("/workloads/chat/fault", json={"kind": "absent"})
    assert (await http.get("/pods/serving/chat-0/metrics")).status == 404
    assert len(await (await http.get("/sd/pods")).json()) == 3
    assert (await http.get("/pods/serving/vision-0/metrics")).status == 200


async def test_exporter_has_faults_of_its_own(http: TestClient[Any, Any]) -> None:
    await http.put("/dcgm/fault", json={"kind": "sentinel", "pods": ["gpu-0"]})
    assert value(await scrape(http, "/dcgm/gpu-0/metrics"), "DCGM_FI_DEV_GPU_UTIL", gpu="0") == 9223372036854775794.0
    assert value(await scrape(http, "/dcgm/gpu-1/metrics"), "DCGM_FI_DEV_GPU_UTIL", gpu="0") <= 100


async def test_an_exporter_may_rename_double_and_contradict_itself(http: TestClient[Any, Any]) -> None:
    path, util = "/dcgm/gpu-1/metrics", "DCGM_FI_DEV_GPU_UTIL"
    busy = value(await scrape(http, path), util, gpu="0")
    await http.put("/dcgm/fault", json={"kind": "rename"})
    renamed = await scrape(http, path)
    assert value(renamed, f"renamed_{util}", gpu="0") == busy
    assert all(name.startswith("renamed_") for name, _ in renamed)
    await http.put("/dcgm/fault", json={"kind": "duplicate"})
    assert value(await scrape(http, path), util, gpu="0", copy="1") == busy
    assert len(await scrape(http, path)) == 2 * len(renamed)
    await http.put("/dcgm/fault", json={"kind": "contradict"})
    contradicting = await scrape(http, path)
    assert value(contradicting, util, gpu="0") == value(contradicting, "DCGM_FI_PROF_GR_ENGINE_ACTIVE", gpu="0") == 0
    assert value(contradicting, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", gpu="0") == 0.9


async def test_cadvisor_shows_what_a_pod_with_a_host_uses_while_busy() -> None:
    fleet = a_fleet()
    document = fleet.config.model_dump(exclude_defaults=True)
    document["workloads"][0]["host"] = {"cpu_cores": 2, "cpu_throttled": 0.5, "disk_bytes_per_s": 100}
    fleet = Fleet(parse_config(document))
    fleet.set_pods("chat", [PodInfo(namespace="serving", name="chat-0", uid="c0", node="gpu-0", ready=True)], 0.0)
    fleet.advance(60.0)
    busy_s = next(iter(fleet.workloads["chat"].pods.values())).server.activity(60.0).busy_s
    async with TestClient(TestServer(Face(fleet, Clock(), dict).app(), host="127.0.0.1")) as http:
        (target,) = await (await http.get("/sd/cadvisor")).json()
        seen = await scrape(http, target["labels"]["__metrics_path__"])
        assert value(seen, "container_cpu_usage_seconds_total", container="server") == pytest.approx(2 * busy_s)
        assert value(seen, "container_cpu_usage_seconds_total", container="") == pytest.approx(2 * busy_s)
        periods = value(seen, "container_cpu_cfs_periods_total", container="server")
        assert value(seen, "container_cpu_cfs_throttled_periods_total", container="server") == pytest.approx(
            periods / 2
        )
        assert value(seen, "container_fs_reads_bytes_total", pod="chat-0") == pytest.approx(100 * busy_s)
        assert await scrape(http, "/cadvisor/gpu-9/metrics") == {}


async def test_new_load_takes_effect_now(http: TestClient[Any, Any], fleet: Fleet, clock: Clock) -> None:
    clock.now_s = 70.0
    body = {"kind": "linear", "points": [[0, 0], [10, 50]], "seed": 9}
    assert await (await http.put("/workloads/chat/load", json=body)).json() == {"start_s": 70.0}
    clock.now_s = 80.0
    ledger = await (await http.get("/workloads/chat/ledger")).json()
    assert (ledger["load_clock_s"], ledger["offered_per_s"]) == (10.0, 50.0)
    assert fleet.now_s == 80.0


async def test_one_load_for_all_gives_all_the_same_requests(
    http: TestClient[Any, Any], fleet: Fleet, clock: Clock
) -> None:
    before = {name: one.arrived for name, one in fleet.workloads.items()}
    await http.put("/load", json={"kind": "constant", "rate_per_s": 20, "seed": 5})
    fleet.advance(100.0)
    grown = {name: one.arrived - before[name] for name, one in fleet.workloads.items()}
    assert grown["chat"] == grown["vision"] == pytest.approx(800, rel=0.1)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/workloads/none/load", '{"kind": "constant", "rate_per_s": 1}', 404, "there are: chat, vision"),
        ("/workloads/chat/load", '{"kind": "constant"}', 422, "rate_per_s: Field required"),
        ("/workloads/chat/load", "constant", 400, "not JSON"),
        ("/workloads/chat/fault", '{"kind": "explode"}', 422, "kind"),
    ],
)
async def test_bad_request_is_explained(
    http: TestClient[Any, Any], path: str, body: str, status: int, words: str
) -> None:
    answer = await http.put(path, data=body)
    assert answer.status == status
    assert words in await answer.text()


def test_scrape_configs_differ_in_honor_labels_only() -> None:
    pods, dcgm = scrape_configs("http://127.0.0.1:8080/", interval="2s")
    assert pods["http_sd_configs"][0]["url"] == "http://127.0.0.1:8080/sd/pods"
    assert (dcgm["scrape_interval"], dcgm["honor_labels"]) == ("2s", False)
    assert scrape_configs("http://127.0.0.1:8080", "2s", dcgm_honor_labels=True) == [
        pods,
        {**dcgm, "honor_labels": True},
    ]
