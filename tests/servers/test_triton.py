"""The Triton adapter and the Triton preset against a real Triton, with clients that are served all the while."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from bandkeeper.actuate.adapter import Means, Workload
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.actuate.pod_access import Credential, PodAccess
from bandkeeper.actuate.registry import MAKERS
from bandkeeper.actuate.triton import Triton
from bandkeeper.api.signals import LATENCY_SIGNALS, Signal
from bandkeeper.api.snapshot import Pod
from bandkeeper.api.v1alpha1 import Adapter, AdapterType, TritonAdapter
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource
from bandkeeper.runtime.app import collector_settings_of
from bandkeeper.runtime.settings import parse
from bandkeeper.signals.collector import Collector, CollectorSettings
from bandkeeper.signals.presets import PRESETS, containers, gpu
from bandkeeper.signals.prometheus import PrometheusServer
from bandkeeper.signals.want import LatencyWant, Observations, Want
from tests.cluster import Prometheus
from tests.servers.clients import Clients
from tests.servers.triton import BODY, MODEL, TritonServer
from tests.unit.runtime_world import World

DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", namespaced=True, scalable=True)
POD = "rows-7d9f8b6c5-x2k4p"
CLIENTS = 16
LOOK_S = 4.0
ADAPTERS = {"adapters": {"triton": True}}

Serve = Callable[..., AbstractContextManager[TritonServer]]


@pytest.fixture
def serve(server_environment: Callable[[str], Path], tmp_path: Path) -> Serve:
    """Starts a server with the given model configuration."""
    return partial(TritonServer, server_environment("triton"), tmp_path)


@pytest.fixture
def triton(serve: Serve) -> Iterator[TritonServer]:
    """A server whose model takes two rows at a time."""
    with serve() as started:
        yield started


def an_adapter(server: TritonServer, *, access: PodAccess | None = None, **settings: Any) -> Triton:
    means = Means(
        client=cast(KubeClient, None),
        namespace="serving",
        pod_access=access or PodAccess(),
        address_of=lambda _: f"127.0.0.1:{server.port}",
    )
    triton = TritonAdapter(**{"model": MODEL, **settings})
    return Triton.of(Adapter(type=AdapterType.TRITON, triton=triton), means)


async def as_read(adapter: Triton) -> Workload:
    """The workload's one pod with the cap that its server tells."""
    pod = Pod(name=POD, uid="p")
    workload = Workload(namespace="serving", name="rows", resource=DEPLOYMENTS, uid="u", pods=(pod,))
    reading = await adapter.read_back(workload, deadline=time.monotonic() + 5)
    assert not reading.failed
    return replace(workload, pods=(replace(pod, cap=reading.caps[POD]),))


async def test_a_larger_cap_doubles_throughput_and_loses_no_request(triton: TritonServer) -> None:
    adapter = an_adapter(triton)
    async with Clients(triton.infer_url, BODY, CLIENTS) as clients:
        await asyncio.sleep(0.5)
        before = await clients.rate_per_s(LOOK_S)
        begun_s = time.monotonic()
        result = await adapter.apply(await as_read(adapter), 16, deadline=begun_s + 10)
        took_s = time.monotonic() - begun_s
        waited_s = clients.took_s(begun_s)
        after = await clients.rate_per_s(LOOK_S)
    seen = await as_read(adapter)
    print(
        f"2 -> 16: {before:.0f} -> {after:.0f} requests/s; reload {took_s:.2f} s, longest answer {waited_s[-1]:.2f} s"
    )
    assert (result.outcome, result.message) == (Outcome.WRITTEN, "")
    assert adapter.settled(seen, 16)
    assert clients.failures == []
    assert after >= 2 * before
    assert waited_s[-1] <= took_s + 1.0  # of a connection on the thread that loads: which ones is a race, see the docs


async def test_all_but_the_batching_of_a_configuration_stays(serve: Serve) -> None:
    more = """
        dynamic_batching {
          preferred_batch_size: [2, 4], max_queue_delay_microseconds: 200, preserve_ordering: true
          default_queue_policy { timeout_action: REJECT, default_timeout_microseconds: 3000000, max_queue_size: 500 }
        }
        response_cache { enable: false }
        version_policy { all {} }
        instance_group [{ count: 2, kind: KIND_CPU }]
        parameters { key: "load_s" value { string_value: "0.1" } }
    """
    with serve(max_batch_size=4, more=more) as server:
        before = server.config()
        adapter = an_adapter(server, max_queue_delay="2ms")
        for cap in (2, 8):
            result = await adapter.apply(await as_read(adapter), cap, deadline=time.monotonic() + 10)
            assert (result.outcome, result.message) == (Outcome.WRITTEN, "")
        after = server.config()
    batching = before["dynamic_batching"] | {"max_queue_delay_microseconds": 2000}  # the sizes came back with room
    assert after == before | {"max_batch_size": 8, "dynamic_batching": batching}


async def test_what_the_server_refuses_leaves_the_old_model_serving(triton: TritonServer) -> None:
    adapter = an_adapter(triton)
    async with Clients(triton.infer_url, BODY, CLIENTS) as clients:
        await asyncio.sleep(0.5)
        result = await adapter.apply(await as_read(adapter), 64, deadline=time.monotonic() + 10)
        assert await clients.rate_per_s(1.0) > 0
    assert clients.failures == []
    assert result.outcome is Outcome.REFUSED
    assert "the engine was built for batches of at most 32" in result.message
    assert (await as_read(adapter)).pods[0].cap == 2


async def test_a_restart_loses_the_cap_and_it_is_set_again(triton: TritonServer) -> None:
    adapter = an_adapter(triton)
    await adapter.apply(await as_read(adapter), 16, deadline=time.monotonic() + 10)
    triton.stop()
    triton.start()
    seen = await as_read(adapter)
    assert seen.pods[0].cap == 2
    assert not adapter.settled(seen, 16)
    result = await adapter.apply(seen, 16, deadline=time.monotonic() + 10)
    assert result.outcome is Outcome.WRITTEN
    assert adapter.settled(await as_read(adapter), 16)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("models from the start", {"mode": "none"}, "; start it with --model-control-mode=explicit"),
    ("a restricted API", {"arguments": ["--http-restricted-api=model-repository:admin-key=secret"]},
     "expecting header 'admin-key'): see credential"),
    ("no dynamic batching", {"more": ""}, "add `dynamic_batching {}` to its config.pbtxt"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "sentence"), REFUSALS, ids=[case[0] for case in REFUSALS])
async def test_a_server_that_cannot_be_set_says_so(
    serve: Serve, name: str, options: dict[str, Any], sentence: str
) -> None:
    with serve(**options) as server:
        adapter = an_adapter(server)
        workload = Workload(
            namespace="serving", name="rows", resource=DEPLOYMENTS, uid="u", pods=(Pod(name=POD, cap=2),)
        )
        result = await adapter.apply(workload, 16, deadline=time.monotonic() + 10)
        assert server.config()["max_batch_size"] == 2
    assert result.outcome is Outcome.REFUSED
    assert sentence in result.message


async def test_a_restricted_api_is_used_with_its_header(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    admin = Credential(
        name="admin", file=tmp_path / "key", namespaces=frozenset({"serving"}), header="admin-key", prefix=""
    )
    with serve(arguments=["--http-restricted-api=model-repository:admin-key=secret"]) as server:
        adapter = an_adapter(server, access=PodAccess(credentials={"admin": admin}), credential="admin")
        result = await adapter.apply(await as_read(adapter), 4, deadline=time.monotonic() + 10)
        assert (result.outcome, result.message) == (Outcome.WRITTEN, "")
        assert server.config()["max_batch_size"] == 4


async def test_a_model_that_is_not_there_is_named(triton: TritonServer) -> None:
    adapter = an_adapter(triton, model="other")
    workload = Workload(namespace="serving", name="rows", resource=DEPLOYMENTS, uid="u", pods=(Pod(name=POD),))
    reading = await adapter.read_back(workload, deadline=time.monotonic() + 5)
    assert reading.failed[POD].endswith("; set triton.model to a model that it has loaded")


# Through the operator's own loop.


async def looked(world: World, reason: str) -> str:
    """Look until the condition BatchApplied has this reason; its message. A load takes longer than a look."""
    seen = "nothing"
    for _ in range(40):
        await world.look()
        await asyncio.sleep(0.5)
        if not world.statuses.submitted:
            continue
        condition = next(one for one in world.status().conditions if one.type == "BatchApplied")
        if condition.reason == reason:
            return condition.message
        seen = f"{condition.reason}: {condition.message}"
    raise AssertionError(f"BatchApplied is not {reason} but {seen}")


@pytest.fixture
async def world(triton: TritonServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """One replica, whose pod's address is that of the server."""

    def made(spec: Adapter, means: Means) -> Triton:
        return Triton.of(spec, replace(means, address_of=lambda _: f"127.0.0.1:{triton.port}"))

    monkeypatch.setitem(MAKERS, AdapterType.TRITON, made)
    world = World(**ADAPTERS)
    world.deploy(replicas=1)
    yield world
    await world.loop._stop()


def a_batch(cap: int) -> dict[str, Any]:
    """A policy's batch that leaves no choice."""
    return {"min": cap, "max": cap, "adapter": {"type": "Triton", "triton": {"model": MODEL}}}


async def test_the_operator_brings_the_cap_into_a_policys_bounds(triton: TritonServer, world: World) -> None:
    async with Clients(triton.infer_url, BODY, CLIENTS) as clients:
        await asyncio.sleep(0.5)
        before = await clients.rate_per_s(LOOK_S)
        world.apply(runtime="Triton", slos=[], objective="ThroughputSensitive", batch=a_batch(16))
        message = await looked(world, "Applied")
        after = await clients.rate_per_s(LOOK_S)
    assert message == "Every ready pod reads back the cap 16."
    assert triton.config()["max_batch_size"] == 16
    assert clients.failures == []
    assert after >= 2 * before
    triton.stop()
    triton.start()
    assert triton.config()["max_batch_size"] == 2
    world.pod("chat", restarts=1)
    for _ in range(40):
        await world.look()
        await asyncio.sleep(0.5)
        if triton.config()["max_batch_size"] == 16:
            break
    assert triton.config()["max_batch_size"] == 16


async def test_the_condition_quotes_a_server_that_refuses_and_recovers(triton: TritonServer, world: World) -> None:
    world.apply(runtime="Triton", slos=[], objective="ThroughputSensitive", batch=a_batch(64))
    message = await looked(world, "AdapterUnavailable")
    assert "Triton of pod chat-0 refused: " in message
    assert "the engine was built for batches of at most 32" in message
    assert triton.config()["max_batch_size"] == 2
    world.apply(runtime="Triton", slos=[], objective="ThroughputSensitive", batch=a_batch(8))
    await looked(world, "Applied")
    assert triton.config()["max_batch_size"] == 8


async def test_the_operator_raises_the_cap_by_what_it_sees(triton: TritonServer, world: World, tmp_path: Path) -> None:
    """Its own collector, a real Prometheus, its own decision, its own write; only time runs faster than outside."""
    with scraping(triton, "chat-0", tmp_path) as prometheus:
        servers = [{"name": "default", "url": prometheus.url}]
        world.settings = parse({"prometheus": {"servers": servers, "rateWindow": "5s"}, **ADAPTERS}, "test")
        world.metrics.collector = lambda: Collector(collector_settings_of(world.settings))  # type: ignore[method-assign]
        world.loop = world.operator()
        batch = a_batch(16) | {"min": 2, "candidates": [2, 4, 8, 16]}
        world.apply(runtime="Triton", slos=[], objective="ThroughputSensitive", replicas={"max": 1}, batch=batch)
        async with Clients(triton.infer_url, BODY, CLIENTS) as clients:
            await asyncio.sleep(0.5)
            before = await clients.rate_per_s(LOOK_S)
            begun_s = time.monotonic()
            while triton.config()["max_batch_size"] < 8:
                assert time.monotonic() - begun_s < 120.0, world.status()
                await world.look()
                await asyncio.sleep(2.5)
            took_s = time.monotonic() - begun_s
            after = await clients.rate_per_s(LOOK_S)
    print(
        f"2 -> {triton.config()['max_batch_size']} by itself in {took_s:.0f} s: {before:.0f} -> {after:.0f} requests/s"
    )
    assert clients.failures == []
    assert after >= 2 * before
    assert any(note.startswith("Batch cap 2 -> 4: ") for _, _, note in world.events.said)


# The preset's queries, through a real Prometheus.

WINDOW_S = 10.0  # of rates
NOT_OF_TRITON = {*gpu.SOURCES, *containers.SOURCES}
NOT_HERE = {Signal.TIME_TO_FIRST_TOKEN}  # of decoupled models only


async def test_the_preset_reads_what_the_clients_measured(serve: Serve, tmp_path: Path) -> None:
    with serve() as server, scraping(server, POD, tmp_path) as prometheus:
        async with Clients(server.infer_url, BODY, CLIENTS) as clients:
            await asyncio.sleep(1.0)
            rate_per_s = await clients.rate_per_s(WINDOW_S + 4)
            found = await observed(prometheus)
            took_s = clients.took_s(time.monotonic() - WINDOW_S)
    read = {signal: found.by_pod[signal][POD].value for signal in found.by_pod}
    assert [gap for gap in found.gaps if gap.signal not in NOT_OF_TRITON | NOT_HERE] == []
    assert read[Signal.REQUESTS_FINISHED] == pytest.approx(rate_per_s, rel=0.1)
    assert read[Signal.SAMPLES] == pytest.approx(rate_per_s, rel=0.1)  # one row each
    assert read[Signal.BATCH_SIZE] == pytest.approx(2, rel=0.05)
    assert read[Signal.REQUESTS_RUNNING] == pytest.approx(2, rel=0.25)
    assert read[Signal.REQUESTS_WAITING] == pytest.approx(CLIENTS - 2, abs=3)
    assert read.get(Signal.REQUESTS_FAILED, 0) == read.get(Signal.REQUESTS_REJECTED, 0) == 0
    p95_s = found.distributions[Signal.END_TO_END_LATENCY, 60].quantiles[95]
    assert p95_s == pytest.approx(statistics.quantiles(took_s, n=20)[-1], rel=0.25)
    assert 0 < found.distributions[Signal.QUEUE_TIME, 60].quantiles[95] < p95_s


def scraping(server: TritonServer, pod: str, folder: Path) -> Prometheus:
    """A Prometheus that takes the server for that of a pod."""
    target = {"targets": [f"127.0.0.1:{server.metrics_port}"], "labels": {"namespace": "serving", "pod": pod}}
    return Prometheus.start(folder / "prometheus", scrape_configs=[{"job_name": "triton", "static_configs": [target]}])


async def observed(prometheus: Prometheus) -> Observations:
    """One collection for the one pod, of all that the preset has."""
    preset = PRESETS["Triton"]
    latencies = [signal for signal in preset.sources if signal in LATENCY_SIGNALS - NOT_HERE]
    want = Want(
        key="rows",
        namespace="serving",
        workload="rows",
        kind="Deployment",
        pods=(POD,),
        runtime="Triton",
        signals=frozenset(set(preset.sources) - LATENCY_SIGNALS),
        latencies=tuple(LatencyWant(signal=signal, percentiles=(95,), threshold_s=0.1) for signal in latencies),
    )
    server = PrometheusServer(name="default", url=prometheus.url)
    collector = Collector(CollectorSettings(servers=(server,), rate_window_s=WINDOW_S))
    try:
        return (await collector.collect([want], time.monotonic()))["rows"]
    finally:
        collector.close()
