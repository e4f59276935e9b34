"""The kube room on a real control plane: stores through gaps and restarts, leadership, events and status."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from bandkeeper.api.snapshot import PodState
from bandkeeper.api.v1alpha1 import GROUP, PLURAL, VERSION
from bandkeeper.kube.client import Conflict, Forbidden, Gone, KubeClient, NotFound
from bandkeeper.kube.events import EventRecorder
from bandkeeper.kube.lease import LeaseElector
from bandkeeper.kube.objects import key_of, ref_of
from bandkeeper.kube.pods import PodSettings, PodStore, trim_pod
from bandkeeper.kube.reflector import Reflector
from bandkeeper.kube.scalers import Scalers, trim_hpa, trim_scaled_object
from bandkeeper.kube.status import StatusWriter
from tests.cluster import ControlPlane
from tests.kube_fakes import Raw, until

pytestmark = pytest.mark.cluster

POLICIES = f"/apis/{GROUP}/{VERSION}"


@pytest.fixture
async def client(control_plane: ControlPlane) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(str(control_plane.kubeconfig)) as client:
        yield client


@pytest.fixture
def policy_kind(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "crds/")
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}")


@asynccontextmanager
async def running(*things: Any) -> AsyncIterator[None]:
    """Reflectors, recorders, writers or electors at work."""
    tasks = [asyncio.create_task(thing.run()) for thing in things]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Proxy:
    """Forwards bytes to the API server until told to break, or to fall silent with its connections open."""

    def __init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()
        self.broken = False
        self.flows = asyncio.Event()
        self.flows.set()

    @asynccontextmanager
    async def before(self, kubeconfig: Path, directory: Path) -> AsyncIterator[KubeClient]:
        """A client of the same server through this proxy."""
        document = yaml.safe_load(await asyncio.to_thread(kubeconfig.read_text))
        cluster = document["clusters"][0]["cluster"]
        self._target = urlsplit(cluster["server"])
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        cluster["server"] = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        path = directory / "through-the-proxy.kubeconfig"
        await asyncio.to_thread(path.write_text, yaml.safe_dump(document))
        try:
            async with server, await KubeClient.connect(str(path)) as client:
                yield client
        finally:
            self.flows.set()
            self.break_off()

    def break_off(self) -> None:
        """Close every connection; new ones are closed at once until `broken` is false again."""
        self.broken = True
        for writer in self._writers:
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.broken:
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, inner_writer}
        await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self.flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)


def config_map(name: str, **data: str) -> Raw:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def config_maps(client: KubeClient, namespace: str, **settings: Any) -> Reflector[Raw]:
    return Reflector(
        client, "/api/v1", "configmaps", trim=lambda raw: raw.get("data") or {}, namespaces=[namespace], **settings
    )


def names(reflector: Reflector[Any]) -> set[str]:
    return {name for _, name in reflector.objects} - {"kube-root-ca.crt"}


async def test_reflector_sees_what_happens(client: KubeClient, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for number in range(7):
        await client.post(path, config_map(f"before-{number}"))
    reflector = config_maps(client, namespace, page_size=3)
    async with running(reflector):
        await reflector.wait_synced()
        assert names(reflector) == {f"before-{number}" for number in range(7)}
        await client.post(path, config_map("new", a="1"))
        await until(lambda: reflector.objects.get((namespace, "new")) == {"a": "1"})
        await client.patch(f"{path}/new", {"data": {"a": "2"}})
        await until(lambda: reflector.objects.get((namespace, "new")) == {"a": "2"})
        await client.delete(f"{path}/new")
        await until(lambda: (namespace, "new") not in reflector.objects)
        assert reflector.age_s() < 5.0


async def test_what_was_deleted_while_the_watch_was_broken_is_gone_after_the_relist(
    control_plane: ControlPlane, client: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """A server that has started anew knows no history: our place in it is 410 Gone."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    for name in ("stays", "goes"):
        await client.post(path, config_map(name))
    proxy = Proxy()
    async with proxy.before(control_plane.kubeconfig, tmp_path) as through:
        reflector = config_maps(through, namespace)
        gone: list[str] = []
        reflector.subscribe(lambda change: gone.append(change.key[1]) if change.new is None else None)
        recover, reasons = reflector._recover, []

        async def noted(part: Any, error: Exception, *, relist: bool) -> None:
            reasons.append(type(error))
            await recover(part, error, relist=relist)

        reflector._recover = noted  # type: ignore[method-assign]
        async with running(reflector):
            await reflector.wait_synced()
            proxy.break_off()
            await client.delete(f"{path}/goes")
            await client.post(path, config_map("new"))
            await asyncio.to_thread(control_plane.restart_apiserver)
            assert names(reflector) == {"stays", "goes"}
            proxy.broken = False
            await until(lambda: names(reflector) == {"stays", "new"}, 20.0)
            assert Gone in reasons
            assert gone == ["goes"]


async def test_a_restart_of_the_api_server_is_survived(
    control_plane: ControlPlane, client: KubeClient, namespace: str
) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    reflector = config_maps(client, namespace)
    async with running(reflector):
        await reflector.wait_synced()
        await asyncio.to_thread(control_plane.restart_apiserver)
        await until(lambda: not reflector.problem and reflector.age_s() < 5.0, 20.0)
        await client.post(path, config_map("after"))
        await until(lambda: names(reflector) == {"after"})


async def test_a_stream_that_died_without_a_word_is_left(
    control_plane: ControlPlane, client: KubeClient, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandkeeper.kube.reflector.IDLE_GRACE_S", 1.0)
    proxy = Proxy()
    async with proxy.before(control_plane.kubeconfig, tmp_path) as through:
        reflector = config_maps(through, namespace, watch_s=2.0)
        async with running(reflector):
            await reflector.wait_synced()
            proxy.flows.clear()
            await client.post(f"/api/v1/namespaces/{namespace}/configmaps", config_map("unheard"))
            await until(lambda: "Timeout" in reflector.problem, 10.0)
            assert names(reflector) == set()
            proxy.break_off()
            proxy.broken = False
            proxy.flows.set()
            await until(lambda: names(reflector) == {"unheard"}, 20.0)


async def test_a_quiet_kind_does_not_grow_stale(client: KubeClient, namespace: str) -> None:
    """No event of its kind since the server started: no bookmarks either."""
    reflector = Reflector(client, "/apis/autoscaling/v2", "horizontalpodautoscalers", trim=trim_hpa, watch_s=3.0)
    async with running(reflector):
        await reflector.wait_synced()
        oldest_s = 0.0
        for _ in range(100):
            oldest_s = max(oldest_s, reflector.age_s())
            await asyncio.sleep(0.1)
        assert 1.0 < oldest_s < 5.0
        assert reflector.problem == ""


async def test_missing_rights_are_named_in_the_servers_words(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "serviceaccount", "nobody", "-n", namespace)
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "nobody")
    async with await KubeClient.connect(str(kubeconfig)) as client:
        with pytest.raises(Forbidden):
            await client.get("/api/v1/pods")
        reflector = Reflector(client, "/api/v1", "pods", trim=trim_pod)
        async with running(reflector):
            await until(lambda: reflector.problem)
            assert f'User "system:serviceaccount:{namespace}:nobody" cannot list resource "pods"' in reflector.problem
            assert not reflector.synced


SCALED_OBJECTS: Raw = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "scaledobjects.keda.sh"},
    "spec": {
        "group": "keda.sh",
        "scope": "Namespaced",
        "names": {"kind": "ScaledObject", "plural": "scaledobjects"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture
def no_keda(control_plane: ControlPlane) -> Iterator[None]:
    delete = ("delete", "crd", "scaledobjects.keda.sh", "--ignore-not-found")
    control_plane.kubectl(*delete)
    yield
    control_plane.kubectl(*delete)


async def test_other_autoscalers_are_found_keda_also_when_it_comes_later(
    client: KubeClient, namespace: str, no_keda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandkeeper.kube.reflector.OPTIONAL_RETRY_S", 0.5)
    hpas = Reflector(client, "/apis/autoscaling/v2", "horizontalpodautoscalers", trim=trim_hpa)
    scaled = Reflector(client, "/apis/keda.sh/v1alpha1", "scaledobjects", trim=trim_scaled_object, optional=True)
    scalers = Scalers(hpas, scaled)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}

    def kinds() -> list[str]:
        return [scaler.kind for scaler in scalers.of(namespace, "apps/v1", "Deployment", "chat")]

    async with running(hpas, scaled):
        await until(lambda: scalers.synced)
        assert scalers.problem == ""
        hpa = {"metadata": {"name": "h"}, "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 2}}
        await client.post(f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers", hpa)
        await until(lambda: kinds() == ["HorizontalPodAutoscaler"])
        await client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", SCALED_OBJECTS)
        path = f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects"
        body = {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "s"},
            "spec": {"scaleTargetRef": {"name": "chat"}},
        }
        async with asyncio.timeout(10):
            while True:
                try:
                    await client.post(path, body)
                    break
                except (NotFound, Conflict):
                    await asyncio.sleep(0.2)
        await until(lambda: kinds() == ["HorizontalPodAutoscaler", "ScaledObject"], 10.0)


def deployment(replicas: int, *, gpus: int = 1, drain_time: str = "0s") -> Raw:
    labels = {"app": "chat"}
    container = {
        "name": "server",
        "image": "server:1",
        "args": ["--max-num-seqs=64"],
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
    }
    annotations = {"bandkeeper.dev/load-time": "300ms", "bandkeeper.dev/drain-time": drain_time}
    template = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": {"containers": [container]},
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat"}, "spec": spec}


async def test_pods_are_found_by_the_scales_selector_and_told_apart(client: KubeClient, namespace: str) -> None:
    reflector = Reflector(client, "/api/v1", "pods", trim=trim_pod, namespaces=[namespace])
    store = PodStore(reflector)
    settings = PodSettings(cap_annotation="bandkeeper.dev/batch-cap", capacity=("--max-num-seqs",))
    deployments, pods = f"/apis/apps/v1/namespaces/{namespace}/deployments", f"/api/v1/namespaces/{namespace}/pods"
    async with running(reflector):
        await client.post(deployments, deployment(2))
        scale = await client.get(f"{deployments}/chat/scale")

        def seen() -> list[PodState]:
            found = store.pods(namespace, scale["status"]["selector"], now=time.time(), settings=settings)
            return sorted(pod.state for pod in found)

        await until(lambda: seen() == [PodState.READY] * 2, 15.0)
        first = store.pods(namespace, "app=chat", now=time.time(), settings=settings)[0]
        assert (first.cap, first.capacity) == (None, 64)
        assert first.revision is not None
        assert 0.0 <= first.age_s < 30.0
        await client.patch(f"{pods}/{first.name}", {"metadata": {"annotations": {"bandkeeper.dev/batch-cap": "32"}}})
        await until(lambda: 32 in {pod.cap for pod in store.pods(namespace, "app=chat", now=0.0, settings=settings)})

        fault = {"metadata": {"annotations": {"bandkeeper.dev/fault": "CrashLoopBackOff"}}}
        await client.patch(f"{pods}/{first.name}", fault)
        await until(lambda: seen() == [PodState.FAILED, PodState.READY], 10.0)
        await client.patch(f"{pods}/{first.name}", {"metadata": {"annotations": {"bandkeeper.dev/fault": None}}})
        await until(lambda: seen() == [PodState.READY] * 2, 10.0)

        await client.put(f"{deployments}/chat", deployment(1, drain_time="3s"))
        await until(lambda: len(seen()) == 1, 20.0)
        await until(lambda: seen() == [PodState.READY], 10.0)
        await client.put(f"{deployments}/chat", deployment(0, drain_time="3s"))
        await until(lambda: seen() == [PodState.TERMINATING], 2.0)
        await until(lambda: seen() == [], 10.0)
        await client.put(f"{deployments}/chat", deployment(1, gpus=99))
        await until(lambda: seen() == [PodState.UNSCHEDULABLE], 10.0)
        (record,) = store.records(namespace, "app=chat")
        assert "nvidia.com/gpu" in record.message


async def test_events_are_shown_and_counted_by_kubectl(
    control_plane: ControlPlane, client: KubeClient, namespace: str
) -> None:
    made = await client.post(f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment(0))
    recorder = EventRecorder(client, instance="test")
    note = "Replicas 2 -> 4: p95 time to first token 812 ms is over the 500 ms objective."
    async with running(recorder):
        for _ in range(5):
            recorder.record(ref_of(made), type="Normal", reason="ScaledOut", action="Scale", note=note)
            await asyncio.sleep(0.1)
        recorder.record(ref_of(made), type="Warning", reason="Odd", action="Evaluate", note="é" * 3000)
        await recorder.drain(5.0)
    assert recorder.dropped == 0
    described = control_plane.kubectl("describe", "deployment", "chat", "-n", namespace)
    (line,) = [line for line in described.splitlines() if "ScaledOut" in line]
    assert "(x5 over " in line
    assert "bandkeeper.dev/bandkeeper" in line
    assert note in line
    listed = control_plane.kubectl("get", "events", "-n", namespace)
    assert [line.split()[1:4] for line in listed.splitlines() if "ScaledOut" in line] == [
        ["Normal", "ScaledOut", "deployment/chat"]
    ]


def policy(name: str) -> Raw:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    spec = {"targetRef": target, "objective": "ThroughputSensitive", "runtime": "VLLM", "replicas": {"max": 4}}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "GPUScalingPolicy", "metadata": {"name": name}, "spec": spec}


async def test_status_is_replaced_whole_coalesced_and_meant_for_one_life(
    client: KubeClient, namespace: str, policy_kind: None
) -> None:
    path = f"{POLICIES}/namespaces/{namespace}/{PLURAL}"
    made = ref_of(await client.post(path, policy("chat")))
    writer = StatusWriter(client)
    versions: list[str] = []
    reflector = Reflector(client, POLICIES, PLURAL, trim=lambda raw: raw, namespaces=[namespace])
    reflector.subscribe(lambda change: versions.append(change.new["metadata"]["resourceVersion"] if change.new else ""))

    def shown() -> Any:
        return reflector.objects[namespace, "chat"].get("status")

    async with running(reflector, writer):
        await reflector.wait_synced()
        writer.submit(made, {"replicas": {"current": 1}, "coldStart": "90s"})
        await until(lambda: shown() == {"replicas": {"current": 1}, "coldStart": "90s"})
        before = len(versions)
        for current in range(2, 60):
            writer.submit(made, {"replicas": {"current": current}})
        await until(lambda: shown() == {"replicas": {"current": 59}})  # coldStart is gone
        assert len(versions) - before == 1

        await client.delete(f"{path}/chat")
        again = ref_of(await client.post(path, policy("chat")))
        writer.submit(made, {"replicas": {"current": 60}})
        await writer.drain(0.5)
        await until(lambda: reflector.objects[namespace, "chat"]["metadata"]["uid"] == again.uid)
        assert shown() is None
        writer.forget(made.uid)
        writer.submit(again, {"replicas": {"current": 61}})
        await until(lambda: shown() == {"replicas": {"current": 61}})


class Electors:
    """Processes that compete for one lease."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._control_plane = control_plane
        self._namespace = namespace
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.kube_elector",
            str(self._control_plane.kubeconfig),
            self._namespace,
            name,
        ]
        self._processes[name] = subprocess.Popen(command, cwd=Path(__file__).parent.parent)

    def end(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def electors(control_plane: ControlPlane, namespace: str) -> Iterator[Electors]:
    electors = Electors(control_plane, namespace)
    yield electors
    electors.close()


async def held_by(client: KubeClient, namespace: str, wanted: Callable[[str], bool], timeout_s: float) -> float:
    """Seconds until the lease's holder is `wanted`."""
    begun_at = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while True:
            with contextlib.suppress(NotFound):
                lease = await client.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/bandkeeper")
                if wanted(lease["spec"].get("holderIdentity", "")):
                    return time.monotonic() - begun_at
            await asyncio.sleep(0.05)


async def test_after_kill_9_another_leads_within_20_s_and_after_sigterm_within_3_s(
    client: KubeClient, namespace: str, electors: Electors
) -> None:
    electors.start("first")
    await held_by(client, namespace, lambda holder: holder == "first", 20.0)
    electors.start("second")
    await asyncio.sleep(random.uniform(4.0, 6.0))
    electors.end("first", signal.SIGKILL)
    killed_s = await held_by(client, namespace, lambda holder: holder == "second", 20.0)
    electors.start("third")
    await asyncio.sleep(4.0)
    electors.end("second", signal.SIGTERM)
    ended_s = await held_by(client, namespace, lambda holder: holder == "third", 3.0)
    print(f"takeover after kill -9: {killed_s:.1f} s, after SIGTERM: {ended_s:.1f} s")
    lease = await client.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/bandkeeper")
    assert lease["spec"]["leaseTransitions"] == 2


async def test_a_lease_outlives_a_restart_of_the_api_server(
    control_plane: ControlPlane, client: KubeClient, namespace: str
) -> None:
    news: list[str] = []
    elector = LeaseElector(
        client,
        namespace=namespace,
        name="bandkeeper",
        identity="only",
        on_gain=lambda: news.append("gain"),
        on_loss=lambda: news.append("loss"),
    )
    async with running(elector):
        await until(lambda: elector.held)
        await asyncio.to_thread(control_plane.restart_apiserver)
        await asyncio.sleep(3.0)
        assert elector.held
        assert news == ["gain"]
    assert news == ["gain", "loss"]
    lease = await client.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/bandkeeper")
    assert lease["spec"].get("holderIdentity", "") == ""


def test_keys_are_namespace_and_name() -> None:
    assert key_of({"metadata": {"namespace": "a", "name": "b"}}) == ("a", "b")
    assert key_of({"metadata": {"name": "gpu-0"}}) == ("", "gpu-0")
