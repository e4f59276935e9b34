"""How the emulator reads pods, and how it follows them: list, watch, and list again after 410 Gone."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from tests.emulator.config import ContinuousWorkload, Workload, parse_config
from tests.emulator.fleet import PodInfo
from tests.emulator.pods import PodFollower, read_pod

Json = dict[str, Any]


def a_workload(**changes: object) -> Workload:
    workload = {
        "name": "chat",
        "namespace": "serving",
        "selector": {"app": "chat"},
        "kind": "continuous",
        "server": {"preset": "a100-wva"},
        "load": {"kind": "constant", "rate_per_s": 1},
        **changes,
    }
    return parse_config({"workloads": [workload]}).workloads[0]


def a_pod(name: str = "chat-0", **container: object) -> Json:
    return {
        "metadata": {"name": name, "namespace": "serving", "uid": f"uid-{name}", "resourceVersion": "7"},
        "spec": {
            "nodeName": "gpu-0",
            "terminationGracePeriodSeconds": 12,
            "containers": [{"name": "vllm", **container}],
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def read(pod: Json, **changes: object) -> PodInfo:
    info = read_pod(pod, a_workload(**changes))
    assert info is not None
    return info


def test_ready_pod_is_read() -> None:
    pod = a_pod(resources={"limits": {"nvidia.com/gpu": "2"}})
    pod["metadata"]["annotations"] = {"bandkeeper.dev/batch-cap": "24"}
    assert read(pod) == PodInfo(
        namespace="serving",
        name="chat-0",
        uid="uid-chat-0",
        node="gpu-0",
        ready=True,
        terminating=False,
        grace_s=12.0,
        container="vllm",
        gpus=2,
        cap=24,
        capacity=None,
    )


def test_pod_that_is_loading_or_going_is_read_as_that() -> None:
    loading, going, bare = a_pod(), a_pod(), a_pod()
    loading["status"]["conditions"][0]["status"] = "False"
    going["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}
    bare["status"], bare["spec"] = {}, {"containers": [{"name": "vllm"}]}
    assert not read(loading).ready
    assert (read(going).terminating, read(going).grace_s) == (True, 5.0)
    assert (read(bare).ready, read(bare).node, read(bare).grace_s) == (False, None, 30.0)


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_pod_that_has_ended_is_no_server(phase: str) -> None:
    pod = a_pod()
    pod["status"]["phase"] = phase
    assert read_pod(pod, a_workload()) is None


@pytest.mark.parametrize(
    ("container", "capacity"),
    [
        ({"env": [{"name": "OTHER", "value": "3"}, {"name": "MAX_NUM_SEQS", "value": "48"}]}, 48),
        ({"args": ["--model", "x", "--max-num-seqs", "96"]}, 96),
        ({"command": ["vllm", "serve"], "args": ["--max-num-seqs=32"]}, 32),
        ({"env": [{"name": "MAX_NUM_SEQS", "value": "16"}], "args": ["--max-num-seqs=32"]}, 16),
        ({"args": ["--max-num-seqs"]}, None),
        ({"env": [{"name": "MAX_NUM_SEQS", "value": "many"}]}, None),
        ({"env": [{"name": "MAX_NUM_SEQS", "value": "0"}]}, None),
        ({}, None),
    ],
)
def test_boot_capacity_is_in_the_environment_or_the_arguments(container: Json, capacity: int | None) -> None:
    assert read(a_pod(**container)).capacity == capacity


@pytest.mark.parametrize(("text", "cap"), [("8", 8), ("0", None), ("-3", None), ("x", None), ("", None)])
def test_cap_that_is_no_positive_number_is_ignored(text: str, cap: int | None) -> None:
    pod = a_pod()
    pod["metadata"]["annotations"] = {"example.com/cap": text}
    assert read(pod, cap_annotation="example.com/cap").cap == cap


def test_named_container_is_the_server() -> None:
    pod = a_pod(env=[{"name": "MAX_NUM_SEQS", "value": "4"}])
    pod["spec"]["containers"].append({"name": "engine", "env": [{"name": "MAX_NUM_SEQS", "value": "77"}]})
    assert read(pod, container="engine").capacity == 77
    assert read(pod, container="engine").container == "engine"


class FakeApi:
    """Serves a list, and watch events pushed by the test; `None` ends the stream."""

    def __init__(self) -> None:
        self.pods: list[Json] = []
        self.events: asyncio.Queue[Json | None] = asyncio.Queue()
        self.requests: list[dict[str, str]] = []
        self.list_status = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(dict(request.query))
        if "watch" not in request.query:
            document = {"metadata": {"resourceVersion": "41"}, "items": copy.deepcopy(self.pods)}
            return web.json_response(document, status=self.list_status)
        stream = web.StreamResponse()
        await stream.prepare(request)
        while (event := await self.events.get()) is not None:
            line = json.dumps(event).encode() + b"\n"
            await stream.write(line[:20])  # a line may come in pieces
            await asyncio.sleep(0.02)
            await stream.write(line[20:])
        return stream


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture(autouse=True)
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.emulator.pods.RETRY_S", 0.01)


async def following(api: FakeApi, steps: Callable[[list[list[str]]], Any]) -> list[list[str]]:
    """Follows the fake API while `steps` runs; returns the names of the pods at each change."""
    seen: list[list[str]] = []
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/serving/pods", api.answer)
    async with TestServer(app, host="127.0.0.1") as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        async with client.ApiClient(configuration) as api_client:
            workload = a_workload()
            assert isinstance(workload, ContinuousWorkload)
            follower = PodFollower(
                client.CoreV1Api(api_client), workload, lambda pods: seen.append(sorted(pod.name for pod in pods))
            )
            task = asyncio.create_task(follower.run())
            try:
                await asyncio.wait_for(steps(seen), 10)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await api.events.put(None)
    return seen


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 -- what is waited for happens in a server without a hook
        await asyncio.sleep(0.005)


async def test_list_then_watch_events(api: FakeApi) -> None:
    api.pods = [a_pod("chat-0")]

    async def steps(seen: list[list[str]]) -> None:
        for kind, name in (("ADDED", "chat-1"), ("DELETED", "chat-0"), ("MODIFIED", "chat-1")):
            await api.events.put({"type": kind, "object": a_pod(name)})
        await until(lambda: len(seen) == 4)

    seen = await following(api, steps)
    assert seen == [["chat-0"], ["chat-0", "chat-1"], ["chat-1"], ["chat-1"]]
    assert api.requests[0]["labelSelector"] == "app=chat"
    assert api.requests[1].items() >= {"resourceVersion": "41", "labelSelector": "app=chat"}.items()


async def test_pod_deleted_while_the_watch_was_gone_is_gone_after_the_relist(api: FakeApi) -> None:
    api.pods = [a_pod("chat-0"), a_pod("chat-1")]

    async def steps(seen: list[list[str]]) -> None:
        await until(lambda: len(api.requests) == 2)
        api.pods = [a_pod("chat-1")]
        await api.events.put({"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}})
        await until(lambda: seen[-1] == ["chat-1"])

    assert await following(api, steps) == [["chat-0", "chat-1"], ["chat-1"]]


async def test_ended_stream_and_failing_list_are_tried_again(api: FakeApi) -> None:
    api.pods = [a_pod("chat-0")]

    async def steps(seen: list[list[str]]) -> None:
        await until(lambda: len(api.requests) == 2)
        api.list_status = 503
        await api.events.put(None)
        await until(lambda: len(api.requests) >= 4)
        assert len(seen) == 1
        api.list_status, api.pods = 200, [a_pod("chat-0"), a_pod("chat-1")]
        await until(lambda: len(seen) == 2)

    assert (await following(api, steps))[-1] == ["chat-0", "chat-1"]
