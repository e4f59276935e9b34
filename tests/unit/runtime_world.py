"""A small world for the control loop: policies, targets, pods, metrics and a lease, all in memory and under control."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from bandkeeper.actuate.outcome import Outcome, ScaleResult
from bandkeeper.actuate.replicas import Replicas, Scale
from bandkeeper.actuate.rights import Rights
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Reading, Rollout, Target
from bandkeeper.api.v1alpha1 import Status, TargetRef
from bandkeeper.kube.client import ApiError, KubeClient
from bandkeeper.kube.discovery import Discovery, Resource, TargetError, TargetProblem
from bandkeeper.kube.events import EventRecorder
from bandkeeper.kube.lease import LeaseElector
from bandkeeper.kube.objects import Key, ObjectRef
from bandkeeper.kube.pods import PodRecord, PodStore, trim_pod
from bandkeeper.kube.reflector import Change, Reflector
from bandkeeper.kube.scalers import Scaler, Scalers
from bandkeeper.kube.status import StatusWriter
from bandkeeper.runtime.app import collector_settings_of
from bandkeeper.runtime.loop import ControlLoop, Stores
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.policies import Interpreter
from bandkeeper.runtime.settings import Settings, parse
from bandkeeper.runtime.tracked import Tracked
from bandkeeper.signals.collector import Collector, CollectStats
from bandkeeper.signals.want import Observations, Want

NAMESPACE = "serving"
SHARES = (
    Signal.GPU_UTILIZATION,
    Signal.GR_ENGINE_ACTIVE,
    Signal.TENSOR_ACTIVE,
    Signal.DRAM_ACTIVE,
    Signal.KV_CACHE_UTILIZATION,
)
EDGES = (0.1, 0.5, 1.0, float("inf"))


class FakeStore:
    """A reflector without a server."""

    def __init__(self, plural: str) -> None:
        self.plural = plural
        self.objects: dict[Key, Any] = {}
        self.problem = ""
        self.age = 1.0
        self.listed = asyncio.Event()
        self.listed.set()
        self._subscribers: list[Callable[[Change[Any]], None]] = []

    @property
    def synced(self) -> bool:
        return self.listed.is_set()

    def age_s(self) -> float:
        return self.age

    def subscribe(self, callback: Callable[[Change[Any]], None]) -> None:
        self._subscribers.append(callback)

    async def wait_synced(self) -> None:
        await self.listed.wait()

    def put(self, key: Key, new: Any) -> None:
        """Store, or remove where `new` is None."""
        old = self.objects.pop(key, None)
        if new is not None:
            self.objects[key] = new
        for callback in self._subscribers:
            callback(Change(key, old, new))


@dataclass
class FakeElector:
    """Holds the lease for as long as it is told."""

    left_s: float = 9.0

    @property
    def held(self) -> bool:
        return self.left_s > 0

    def remaining_s(self) -> float:
        return self.left_s


@dataclass
class FakeReplicas:
    """Targets by name. What is in `hung` never answers, what is in `problems` answers with it."""

    clock: Callable[[], float]
    targets: dict[str, Target] = field(default_factory=dict)
    selectors: dict[str, str] = field(default_factory=dict)
    problems: dict[str, TargetProblem] = field(default_factory=dict)
    refusals: dict[str, Outcome] = field(default_factory=dict)
    hung: set[str] = field(default_factory=set)
    hung_writes: set[str] = field(default_factory=set)
    before_read: Callable[[], Awaitable[object]] | None = None
    before_write: Callable[[], None] = lambda: None
    write_s: float = 0.0
    reads: list[str] = field(default_factory=list)
    writes: list[tuple[str, int]] = field(default_factory=list)
    attempts: list[tuple[str, int]] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)

    async def read(self, namespace: str, ref: TargetRef) -> Scale:
        self.reads.append(ref.name)
        if ref.name in self.hung:
            await asyncio.Event().wait()
        await (self.before_read() if self.before_read else asyncio.sleep(0))
        if ref.name in self.problems or ref.name not in self.targets:
            problem = self.problems.get(ref.name, TargetProblem.NOT_FOUND)
            raise TargetError(problem, f"{ref.name}: {problem}")
        target = self.targets[ref.name]
        return Scale(target=target, current=target.replicas, selector=self.selectors.get(ref.name, f"app={ref.name}"))

    async def write(
        self, namespace: str, ref: TargetRef, wanted: int, *, decided_on: Target, deadline: float
    ) -> ScaleResult:
        self.attempts.append((ref.name, wanted))
        self.deadlines.append(deadline)
        if ref.name in self.hung_writes:
            await asyncio.Event().wait()
        self.before_write()
        await asyncio.sleep(self.write_s)
        if deadline <= self.clock():
            return ScaleResult(outcome=Outcome.FAILED, message="out of time")
        if ref.name in self.refusals:
            return ScaleResult(outcome=self.refusals[ref.name], message=f"grant patch on {ref.name}/scale")
        seen = self.targets[ref.name]
        if (seen.uid, seen.replicas) != (decided_on.uid, decided_on.replicas):
            return ScaleResult(outcome=Outcome.CHANGED, message="somebody was first", target=seen)
        target = dataclasses.replace(seen, replicas=wanted, manager="bandkeeper")
        self.targets[ref.name] = target
        self.writes.append((ref.name, wanted))
        return ScaleResult(outcome=Outcome.WRITTEN, target=target)


class FakeDiscovery:
    """Knows Deployments."""

    def __init__(self) -> None:
        self.problem: TargetError | None = None

    async def scalable(self, api_version: str, kind: str) -> Resource:
        if self.problem is not None:
            raise self.problem
        return Resource(api_version, kind, kind.lower() + "s", namespaced=True, scalable=True)


class FakeMetrics:
    """What every Prometheus says: a steady load on each ready pod, and latencies far inside any threshold."""

    def __init__(self) -> None:
        self.more: dict[Signal, float] = {}  # of each pod
        self.running_per_pod = 41.0  # 65 % of what a replica carries: inside the band
        self.hung: set[str] = set()  # names of the Prometheus that do not answer
        self.faults: list[Exception] = []
        self.odd: set[str] = set()  # policies whose answers break a collection off
        self.down = False
        self.jitter: Callable[[], float] = lambda: 1.0
        self.streams: list[tuple[str, ...]] = []
        self.closed = 0

    def collector(self) -> Collector:
        return cast(Collector, _FakeCollector(self))

    def observations(self, want: Want) -> Observations:
        """Of one policy."""
        if self.down:
            return Observations()
        noise = self.jitter()
        values = {
            Signal.REQUESTS_RUNNING: self.running_per_pod * noise,
            Signal.REQUESTS_FINISHED: 5.0 * noise,
            Signal.GENERATION_TOKENS: 1000.0 * noise,
            Signal.REQUESTS_WAITING: 0.0,
            Signal.REQUESTS_REJECTED: 0.0,
            Signal.PREEMPTIONS: 0.0,
            **dict.fromkeys(SHARES, 0.3 * noise),
            **self.more,
        }
        by_pod = {
            signal: {pod: Reading(values[signal], 5.0) for pod in want.pods}
            for signal in want.signals
            if want.pods and signal in values
        }
        counts = tuple(1000.0 * noise * share for share in (0.9, 0.99, 1.0, 1.0))
        distributions = {
            (latency.signal, round(latency.window_s)): Distribution(
                window_s=latency.window_s, edges=EDGES, counts=counts, total_s=10.0 * noise, age_s=5.0
            )
            for latency in want.latencies
        }
        return Observations(by_pod=by_pod, distributions=distributions)


class _FakeCollector:
    def __init__(self, metrics: FakeMetrics) -> None:
        self._metrics = metrics
        self._streaming = False
        self.last = CollectStats(queries=20)

    async def stream(self, wants: Sequence[Want], now_s: float) -> AsyncIterator[tuple[str, Observations]]:
        assert not self._streaming, "a collector does one collection at a time"
        self._streaming = True
        try:
            self._metrics.streams.append(tuple(want.key for want in wants))
            await asyncio.sleep(0)
            if any((want.prometheus.name if want.prometheus else "default") in self._metrics.hung for want in wants):
                await asyncio.Event().wait()
            for number, want in enumerate(wants):
                if number == 1 and self._metrics.faults:
                    raise self._metrics.faults.pop(0)
                if want.key in self._metrics.odd:
                    raise KeyError(want.key)
                yield want.key, self._metrics.observations(want)
        finally:
            self._streaming = False

    def close(self) -> None:
        self._metrics.closed += 1


@dataclass
class FakeClient:
    """Takes the patches of pods, and shows their annotations in the store; those of workloads it keeps as they are."""

    pods: FakeStore
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    patches: list[tuple[str, Any]] = field(default_factory=list)
    error: ApiError | None = None
    before: Callable[[], None] = lambda: None
    missing: set[str] = field(default_factory=set)  # resources that may not be patched
    asked: list[dict[str, str]] = field(default_factory=list)
    silent: bool = False  # about our rights

    async def post(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        """A review of our own rights."""
        assert path.endswith("/selfsubjectaccessreviews")
        attributes = body["spec"]["resourceAttributes"]
        self.asked.append(attributes)
        if self.silent:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return {"status": {"allowed": attributes["resource"] not in self.missing}}

    async def get(self, path: str, **_: Any) -> dict[str, Any]:
        return self.manifests[path]

    async def patch(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        self.before()
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0)
        self.patches.append((path, body))
        if "/pods/" not in path:
            return {}
        key = (NAMESPACE, path.rpartition("/")[2])
        record = cast(PodRecord, self.pods.objects[key])
        annotations = {name: int(value) for name, value in body["metadata"]["annotations"].items()}
        self.pods.put(key, dataclasses.replace(record, annotations=annotations))
        return {}


@dataclass
class FakeStatuses:
    """Remembers what was to be written."""

    submitted: list[tuple[str, dict[str, Any], Any]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def submit(self, ref: ObjectRef, status: dict[str, Any], *, observed: Any = None) -> None:
        self.submitted.append((ref.name, status, observed))

    def forget(self, uid: str) -> None:
        self.forgotten.append(uid)


@dataclass
class FakeEvents:
    """Remembers what was said: (policy, action or reason, note)."""

    said: list[tuple[str, str, str]] = field(default_factory=list)

    def record(self, ref: ObjectRef, *, type: str, reason: str, action: str, note: str) -> None:
        self.said.append((ref.name, reason if action == "Judge" else action, note))

    def about(self, name: str) -> list[str]:
        return [word for policy, word, _ in self.said if policy == name]


class World:
    """A control loop and everything around it. `now` is both the monotonic and the wall clock."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1_700_000_000.0
        servers = [{"name": name, "url": f"http://{name}:9090"} for name in ("default", "other")]
        self.settings: Settings = parse(
            {"prometheus": {"servers": servers}, "adapters": {"annotation": True}, **settings}, "test"
        )
        self.policies, self.pods = FakeStore("gpuscalingpolicies"), FakeStore("pods")
        self.hpas = FakeStore("horizontalpodautoscalers")
        self.elector = FakeElector()
        self.replicas = FakeReplicas(self.clock)
        self.discovery = FakeDiscovery()
        self.metrics = FakeMetrics()
        self.client = FakeClient(self.pods)
        self.statuses, self.events = FakeStatuses(), FakeEvents()
        self.own = Metrics()
        self.loop = self.operator()

    def clock(self) -> float:
        return self.now

    def operator(self, **fakes: Any) -> ControlLoop:
        """A process of the operator in this world; `fakes` stand in for what it has of its own."""
        reflectors = [cast("Reflector[Any]", store) for store in (self.policies, self.pods, self.hpas)]
        settings, client = self.settings, cast(KubeClient, self.client)
        return ControlLoop(
            settings=settings,
            stores=Stores(
                policies=reflectors[0],
                pods=PodStore(reflectors[1]),
                scalers=Scalers(reflectors[2]),
                reflectors=tuple(reflectors),
            ),
            interpreter=Interpreter(client, settings, collector_settings_of(settings)),
            discovery=cast(Discovery, self.discovery),
            replicas=cast(Replicas, self.replicas),
            rights=Rights(client, clock=self.clock),
            collectors=self.metrics.collector,
            elector=cast(LeaseElector, fakes.get("elector", self.elector)),
            events=cast(EventRecorder, fakes.get("events", self.events)),
            statuses=cast(StatusWriter, fakes.get("statuses", self.statuses)),
            metrics=fakes.get("metrics", self.own),
            clock=self.clock,
            wall=self.clock,
        )

    # What is there.

    def apply(self, name: str = "chat", *, uid: str = "", **more: Any) -> None:
        """Create or change a policy on the Deployment `target` (its own name); `paused`, `spec` fields."""
        old = self.policies.objects.get((NAMESPACE, name))
        paused, target = more.pop("paused", False), more.pop("target", name)
        metadata = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid or f"uid-{name}",
            "generation": old["metadata"]["generation"] + 1 if old else 1,
            "creationTimestamp": more.pop("created", "2025-01-01T00:00:00Z"),
            "annotations": {"bandkeeper.dev/paused": "true"} if paused else {},
        }
        spec = {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "objective": "LatencySensitive",
            "runtime": "VLLM",
            "slos": [{"signal": "TimeToFirstToken", "threshold": "500ms"}],
            "replicas": {"min": 1, "max": 8},
            **more,
        }
        raw = {"apiVersion": "bandkeeper.dev/v1alpha1", "kind": "GPUScalingPolicy", "metadata": metadata, "spec": spec}
        self.policies.put((NAMESPACE, name), {**raw, "status": old.get("status") if old else None})

    def delete(self, name: str = "chat") -> None:
        self.policies.put((NAMESPACE, name), None)

    def show_status(self, name: str, status: Mapping[str, Any]) -> None:
        """The policy's object has a status, as some leader wrote it."""
        key = (NAMESPACE, name)
        self.policies.put(key, {**self.policies.objects[key], "status": status})

    def deploy(self, name: str = "chat", replicas: int = 2, **more: Any) -> None:
        """A Deployment with as many ready pods."""
        self.replicas.targets[name] = Target(uid=f"uid-{name}", replicas=replicas, manager="kubectl", **more)
        for number in range(replicas):
            self.pod(name, number)

    def pod(
        self,
        name: str,
        number: int = 0,
        *,
        uid: str = "",
        ready: bool = True,
        ends: bool = False,
        cap: int | None = None,
        restarts: int = 0,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """A pod of a Deployment that has been up for an hour; `cap` is the number in its environment."""
        raw: dict[str, Any] = {
            "metadata": {
                "namespace": NAMESPACE,
                "name": f"{name}-{number}",
                "uid": uid or f"uid-{name}-{number}",
                "labels": {"app": name, "pod-template-hash": "a"},
                "creationTimestamp": _time(self.now - 3700),
                "annotations": dict(annotations or {}),
            },
            "spec": {"containers": [{"name": "server", "args": ["--max-num-seqs", "64"], "env": _env(cap), **_GPU}]},
            "status": {
                "podIP": "10.0.0.7",
                "conditions": [
                    {"type": "Ready", "status": str(ready), "lastTransitionTime": _time(self.now - 3600)},
                ],
                "containerStatuses": [{"name": "server", "restartCount": restarts}],
            },
        }
        if ends:
            raw["metadata"]["deletionTimestamp"] = _time(self.now)
        self.pods.put((NAMESPACE, f"{name}-{number}"), trim_pod(raw))

    def scale(self, name: str, replicas: int, *, manager: str = "kubectl", rollout: Rollout | None = None) -> None:
        """Somebody else changes the target, and no pod shows it yet."""
        old = self.replicas.targets[name]
        self.replicas.targets[name] = dataclasses.replace(old, replicas=replicas, manager=manager, rollout=rollout)

    def hpa(self, name: str = "chat") -> None:
        """A HorizontalPodAutoscaler on a Deployment."""
        self.hpas.put((NAMESPACE, name), Scaler("HorizontalPodAutoscaler", NAMESPACE, name, "apps", "Deployment", name))

    # What happens.

    async def look(self, loop: ControlLoop | None = None, *, after_s: float = 15.0, full: bool = True) -> None:
        """One tick after a while, to its end: all that can end has ended."""
        loop = loop or self.loop
        self.now += after_s
        loop.tick(full)
        await self.rest(loop)

    async def rest(self, loop: ControlLoop | None = None) -> None:
        """Until nothing is under way but what hangs."""
        loop = loop or self.loop
        for pause_s in (0.0, 0.03, 0.0):
            await asyncio.sleep(pause_s if loop._looking else 0.0)
            for _ in range(100):
                await asyncio.sleep(0)

    # What is seen.

    def tracked(self, name: str = "chat", loop: ControlLoop | None = None) -> Tracked:
        return (loop or self.loop)._tracked[NAMESPACE, name]

    def status(self, name: str = "chat") -> Status:
        """The status that was told last."""
        found = [status for policy, status, _ in self.statuses.submitted if policy == name]
        return Status.model_validate(found[-1], strict=False)

    def condition(self, kind: str, name: str = "chat") -> tuple[str, str]:
        """Status and reason of a condition as told last."""
        found = next(one for one in self.status(name).conditions if one.type == kind)
        return found.status.value, found.reason

    @property
    def written(self) -> list[tuple[str, int]]:
        """Every write of replicas that went through."""
        return self.replicas.writes


_GPU = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}


def _env(cap: int | None) -> list[dict[str, str]]:
    return [] if cap is None else [{"name": "MAX_NUM_SEQS", "value": str(cap)}]


def _time(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
