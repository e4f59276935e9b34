"""The RayServe adapter against a real Ray Serve, with clients that are served all the while."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from bandkeeper.actuate.adapter import Means, Workload
from bandkeeper.actuate.outcome import CapResult, Outcome
from bandkeeper.actuate.pod_access import Credential, PodAccess
from bandkeeper.actuate.ray_serve import RayServe
from bandkeeper.actuate.registry import MAKERS
from bandkeeper.api.snapshot import Pod
from bandkeeper.api.v1alpha1 import Adapter, AdapterType, RayServeAdapter
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource
from tests.servers.clients import Clients
from tests.servers.rayserve import APPLICATION, DEPLOYMENT, RayServer
from tests.unit.runtime_world import World

DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", namespaced=True, scalable=True)
CLIENTS = 16
LOOK_S = 3.0


@pytest.fixture(scope="module")
def cluster(server_environment: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    """One for all tests: it takes a quarter of a minute to start."""
    with RayServer(server_environment("rayserve"), tmp_path_factory.mktemp("ray")) as started:
        yield started


@pytest.fixture
def ray(cluster: RayServer) -> RayServer:
    """With both applications deployed anew, batches of two."""
    cluster.deploy(2)
    return cluster


def means(server: RayServer, namespace: str = "serving") -> Means:
    token = Credential(name="ray-token", file=server.token_file, namespaces=frozenset({"serving"}))
    return Means(
        client=cast(KubeClient, None),
        namespace=namespace,
        pod_access=PodAccess(credentials={"ray-token": token}),
        address_of=lambda _: server.dashboard,
    )


def an_adapter(server: RayServer, **settings: Any) -> RayServe:
    defaults = {"application": APPLICATION, "deployment": DEPLOYMENT, "credential": "ray-token", "service": "ray-head"}
    ray_serve = RayServeAdapter(**{**defaults, **settings})
    return RayServe.of(Adapter(type=AdapterType.RAY_SERVE, ray_serve=ray_serve), means(server))


async def as_read(adapter: RayServe) -> Workload:
    """Two pods that make up the cluster, with the cap that it tells."""
    pods = (Pod(name="ray-0", uid="0"), Pod(name="ray-1", uid="1"))
    workload = Workload(namespace="serving", name="ray", resource=DEPLOYMENTS, uid="u", pods=pods)
    reading = await adapter.read_back(workload, deadline=time.monotonic() + 5)
    assert not reading.failed
    return replace(workload, pods=tuple(replace(pod, cap=reading.caps[pod.name]) for pod in pods))


async def apply(adapter: RayServe, cap: int) -> CapResult:
    return await adapter.apply(await as_read(adapter), cap, deadline=time.monotonic() + 20)


async def test_a_cap_is_in_force_within_a_second_and_no_request_is_lost(ray: RayServer) -> None:
    adapter = an_adapter(ray)
    replica, configs = ray.deployment()["replicas"][0]["pid"], ray.configs()
    took_s = []
    async with Clients(ray.url, {}, CLIENTS) as clients:
        await asyncio.sleep(1.0)
        before = await clients.rate_per_s(LOOK_S)
        for cap in (16, 4, 16):
            seen, begun_s = await as_read(adapter), time.monotonic()
            result = await adapter.apply(seen, cap, deadline=begun_s + 20)
            took_s.append(time.monotonic() - begun_s)
            assert (result.outcome, result.message) == (Outcome.WRITTEN, "")
            assert adapter.settled(await as_read(adapter), cap)
        after = await clients.rate_per_s(LOOK_S)
    changes = ", ".join(f"{one_s:.2f} s" for one_s in took_s)
    longest_s = max(clients.took_s())
    print(f"cap 2 -> 16: {before:.0f} -> {after:.0f} requests/s; in force in {changes}; longest wait {longest_s:.2f} s")
    assert clients.failures == []
    assert min(took_s) < 1.0  # the machine may be busy with something else meanwhile
    assert ray.deployment()["replicas"][0]["pid"] == replica
    configs[APPLICATION]["deployments"][0]["user_config"]["max_batch_size"] = 16
    assert ray.configs() == configs
    assert after > before


async def test_every_replica_takes_the_cap_over_and_back(ray: RayServer) -> None:
    ray.deploy(2, replicas=2)
    adapter, before = an_adapter(ray), ray.details()
    pids = {one["pid"] for one in ray.deployment()["replicas"]}
    assert len(pids) == 2
    for cap in (8, 2):
        assert (await apply(adapter, cap)).outcome is Outcome.WRITTEN
        assert ray.deployment()["deployment_config"]["user_config"]["max_batch_size"] == cap
    after = ray.details()
    assert {one["pid"] for one in ray.deployment()["replicas"]} == pids
    for kept in ("proxy_location", "http_options", "grpc_options", "target_capacity"):
        assert after.get(kept) == before.get(kept)
    for details in (before, after):
        assert details["applications"]["other"]["status"] == "RUNNING"
    assert (await apply(adapter, 2)).outcome is Outcome.UNCHANGED


async def test_what_the_application_refuses_is_taken_back_and_serves_again(ray: RayServer) -> None:
    adapter, configs = an_adapter(ray), copy.deepcopy(ray.configs())
    result = await apply(adapter, 64)
    assert result.outcome is Outcome.REFUSED
    assert "batch cap 64 was taken back" in result.message
    assert "the engine was built for batches of at most 32" in result.message
    assert ray.configs() == configs
    ray.deploy(2)  # waits until it runs
    assert (await as_read(adapter)).pods[0].cap == 2
    assert (await apply(adapter, 64)).message == result.message
    assert ray.configs() == configs


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"application": "nobody"}, "no application nobody"),
        ({"deployment": "Nobody"}, "no deployment Nobody under application embed of the Serve config; there are: Embe"),
        ({"key": "size"}, "no user_config.size of deployment Embedder in application embed in the Serve config (there"),
        ({"key": "wait_s"}, 'is "0.02", not a plain whole number'),
        ({"application": "other", "deployment": "Other"}, "no deployment Other under application other"),
        ({"credential": None}, "refuses the login (401"),
    ],
    ids=["application", "deployment", "key", "value", "not in the config", "token"],
)
async def test_what_cannot_be_set_gets_a_sentence_and_nothing_is_deployed(
    ray: RayServer, settings: dict[str, Any], says: str
) -> None:
    configs = ray.configs()
    workload = Workload(
        namespace="serving", name="ray", resource=DEPLOYMENTS, uid="u", pods=(Pod(name="ray-0", uid="0"),)
    )
    result = await an_adapter(ray, **settings).apply(workload, 8, deadline=time.monotonic() + 10)
    assert result.outcome is Outcome.REFUSED
    assert says in result.message
    assert ray.configs() == configs


async def test_the_operator_brings_the_cap_into_a_policys_bounds(
    ray: RayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(spec: Adapter, _: Means) -> RayServe:
        return RayServe.of(spec, means(ray))

    monkeypatch.setitem(MAKERS, AdapterType.RAY_SERVE, made)
    world = World(adapters={"rayServe": True})
    world.deploy(replicas=2)
    settings = {"application": APPLICATION, "deployment": DEPLOYMENT, "service": "ray-head", "credential": "ray-token"}
    adapter = {"type": "RayServe", "rayServe": settings}
    batch = {"min": 16, "max": 16, "adapter": adapter}
    async with Clients(ray.url, {}, CLIENTS) as clients:
        world.apply(runtime="Generic", slos=[], objective="ThroughputSensitive", batch=batch)
        for _ in range(20):
            await world.look()
            await asyncio.sleep(0.5)
            condition = next(one for one in world.status().conditions if one.type == "BatchApplied")
            if condition.reason == "Applied":
                break
    await world.loop._stop()
    assert (condition.reason, condition.message) == ("Applied", "Every ready pod reads back the cap 16.")
    assert ray.deployment()["deployment_config"]["user_config"]["max_batch_size"] == 16
    assert clients.failures == []
