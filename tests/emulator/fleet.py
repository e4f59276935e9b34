"""The fleet: a server for each pod, a router before them, their load, the GPUs under them. Pure: time is passed in."""

from __future__ import annotations

import hashlib
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

from .config import ContinuousWorkload, Dcgm, EmulatorConfig, Workload
from .load import Arrivals, Load
from .request import Request
from .servers import ContinuousBatchingServer, DynamicBatchingServer, Server
from .stats import Activity, ServerStats


@dataclass(frozen=True, slots=True, kw_only=True)
class PodInfo:
    """What of a pod matters here. `cap` is from its own annotation, `capacity` from its environment or arguments."""

    namespace: str
    name: str
    uid: str
    node: str | None = None
    ready: bool = False
    terminating: bool = False
    grace_s: float = 30.0
    container: str = "server"
    gpus: int = 1
    cap: int | None = None
    capacity: int | None = None


@dataclass(slots=True, kw_only=True)
class PodServer:
    """A pod and the server played for it, which lives on while it drains although its pod may be gone already."""

    pod: PodInfo
    server: Server
    was_ready: bool = False
    gpu_indexes: tuple[int, ...] = ()
    collected: Activity = field(default_factory=Activity)

    @property
    def routable(self) -> bool:
        return self.pod.ready and not self.server.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU as the exporter last saw it. Activities are fractions (0..1) of the collection period."""

    node: str
    index: int
    pod: PodInfo | None
    busy: float = 0.0
    tensor: float = 0.0
    dram: float = 0.0
    tokens_per_s: float = 0.0
    used_mib: int = 0
    free_mib: int = 0
    power_w: float = 0.0

    @property
    def uuid(self) -> str:
        return f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{self.node}/{self.index}')}"


class WorkloadFleet:
    """The servers of one workload behind a gateway that routes to the ready pod with the fewest requests in hand."""

    def __init__(self, config: Workload, start_s: float) -> None:
        self.config = config
        self.arrivals = Arrivals(config.load, config.tokens, start_s)
        self.pods: dict[str, PodServer] = {}  # by uid
        self.gateway: deque[Request] = deque()
        self.arrived = 0
        self.pod_s = 0.0
        self.ready_pod_s = 0.0
        self._now_s = start_s
        self._retired = ServerStats(config.buckets)

    def set_load(self, load: Load, start_s: float) -> None:
        """Another profile, whose clock begins at `start_s`. What is on its way stays; a closed loop's clients leave."""
        self.arrivals = Arrivals(load, self.config.tokens, start_s)

    def set_pods(self, pods: Iterable[PodInfo], now_s: float) -> None:
        """The workload's pods as they are now; one that is missing has been deleted and drains."""
        given = {pod.uid: pod for pod in pods}
        for uid, record in self.pods.items():
            if uid not in given:
                record.server.terminate(now_s, record.pod.grace_s)
        for uid, pod in given.items():
            if uid not in self.pods:
                if not pod.terminating:
                    self.pods[uid] = self._boot(pod)
                continue
            record = self.pods[uid]
            if pod.cap != record.pod.cap:
                record.server.set_cap(pod.cap, now_s)
            if pod.terminating:
                record.server.terminate(now_s, pod.grace_s)
            record.pod = pod
            record.was_ready = record.was_ready or pod.ready
        self._share()
        self._flush_gateway(now_s)

    def advance(self, to_s: float) -> None:
        """Plays everything up to `to_s`, in order of time."""
        arrivals = self.arrivals
        while True:
            at_s = min(arrivals.next_s, to_s)
            if arrivals.closed and self.pods:
                at_s = min(at_s, min(record.server.next_s for record in self.pods.values()))
            for record in self.pods.values():
                if record.server.next_s <= at_s:
                    record.server.advance(at_s)
            if arrivals.next_s <= at_s:
                request = arrivals.pop()
                if request is not None:
                    self.arrived += 1
                    self._route(request, at_s)
            elif at_s >= to_s:
                break
        self._account(to_s)

    def stats(self) -> ServerStats:
        """Everything that all servers of this workload have done, those that are gone included."""
        total = ServerStats(self.config.buckets)
        total.merge(self._retired)
        for record in self.pods.values():
            total.merge(record.server.stats)
        return total

    def _boot(self, pod: PodInfo) -> PodServer:
        config = self.config
        rng = Random(f"{config.name}/{pod.uid}")
        server: Server
        if isinstance(config, ContinuousWorkload):
            server = ContinuousBatchingServer(config.server, config.buckets, rng, pod.capacity)
        else:
            server = DynamicBatchingServer(config.server, config.buckets, rng, pod.capacity)
        server.boot_cap(pod.cap)
        return PodServer(pod=pod, server=server, was_ready=pod.ready)

    def _route(self, request: Request, at_s: float) -> None:
        best: Server | None = None
        fewest = (0, 0)
        for record in self.pods.values():
            if record.routable:
                server = record.server
                load = (server.outstanding, server.stats.arrived)
                if best is None or load < fewest:
                    best, fewest = server, load
        if best is None:
            self.gateway.append(request)
        else:
            best.submit(request, at_s)

    def _flush_gateway(self, at_s: float) -> None:
        if self.gateway and any(record.routable for record in self.pods.values()):
            waiting, self.gateway = self.gateway, deque()
            for request in waiting:
                self._route(request, at_s)

    def _share(self) -> None:
        """More replicas than what they share can feed work as much slower as there are more of them."""
        if self.config.fed_replicas is not None:
            serving = sum(record.routable for record in self.pods.values())
            for record in self.pods.values():
                record.server.slowdown = max(1.0, serving / self.config.fed_replicas)

    def _account(self, to_s: float) -> None:
        elapsed_s = max(0.0, to_s - self._now_s)
        self._now_s = max(self._now_s, to_s)
        for uid, record in list(self.pods.items()):
            if record.pod.node is not None:
                self.pod_s += elapsed_s
            if record.routable:
                self.ready_pod_s += elapsed_s
            if record.server.gone:
                self._retired.merge(record.server.stats)
                del self.pods[uid]


class Fleet:
    """All workloads and the nodes' GPUs. Give it the pods, advance it, and read it."""

    def __init__(self, config: EmulatorConfig, start_s: float = 0.0) -> None:
        self.config = config
        self.now_s = start_s
        self.workloads = {one.name: WorkloadFleet(one, start_s) for one in config.workloads}
        self.gpus = GpuNodes(config.dcgm, start_s)

    def set_pods(self, workload: str, pods: Iterable[PodInfo], now_s: float) -> None:
        """Plays up to `now_s`, then takes these as all pods of the workload. Raises KeyError for an unknown one."""
        self.advance(now_s)
        self.workloads[workload].set_pods(pods, self.now_s)

    def set_load(self, workload: str, load: Load, now_s: float) -> None:
        """Plays up to `now_s`, then starts another load profile there. Raises KeyError for an unknown workload."""
        self.advance(now_s)
        self.workloads[workload].set_load(load, self.now_s)

    def advance(self, to_s: float) -> None:
        """Plays everything up to `to_s`, and samples the GPUs on their exporter's period. Going back does nothing."""
        while self.gpus.next_s <= to_s:
            at_s = self.gpus.next_s
            self._advance_workloads(at_s)
            self.gpus.collect(self._records(), at_s)
        self._advance_workloads(to_s)

    def pod_servers(self) -> Iterator[tuple[WorkloadFleet, PodServer]]:
        """Every pod whose server answers: it was ready once, and is not gone."""
        for workload in self.workloads.values():
            for record in workload.pods.values():
                if record.was_ready:
                    yield workload, record

    def _advance_workloads(self, to_s: float) -> None:
        if to_s > self.now_s:
            for workload in self.workloads.values():
                workload.advance(to_s)
            self.now_s = to_s

    def _records(self) -> list[PodServer]:
        return [record for workload in self.workloads.values() for record in workload.pods.values()]


class GpuNodes:
    """The nodes' GPUs and what their exporter last collected. A node is known once a pod was on it, and stays known."""

    def __init__(self, config: Dcgm, start_s: float) -> None:
        self.config = config
        self.next_s = start_s + config.period_s
        self.samples: dict[str, list[GpuSample]] = {}

    def collect(self, records: Iterable[PodServer], at_s: float) -> None:
        """Samples every GPU over the period that ends at `at_s`."""
        placed = [record for record in records if record.pod.node is not None]
        nodes: dict[str, dict[int, GpuSample]] = {node: {} for node in self.samples}
        for record in placed:
            for index in record.gpu_indexes:
                nodes.setdefault(record.pod.node or "", {})[index] = self._sample(record, index, at_s)
        for record in placed:
            if not record.gpu_indexes:
                node = record.pod.node or ""
                taken = nodes.setdefault(node, {})
                free = (index for index in range(len(taken) + record.pod.gpus) if index not in taken)
                record.gpu_indexes = tuple(index for _, index in zip(range(record.pod.gpus), free, strict=False))
                for index in record.gpu_indexes:
                    taken[index] = self._sample(record, index, at_s)
            record.collected = record.server.activity(at_s)
        self.samples = {node: self._with_idle(node, taken) for node, taken in nodes.items()}
        self.next_s = at_s + self.config.period_s

    def _with_idle(self, node: str, taken: dict[int, GpuSample]) -> list[GpuSample]:
        number = max(self.config.gpus_per_node, max(taken, default=-1) + 1)
        return [taken.get(index) or self._idle(node, index) for index in range(number)]

    def _idle(self, node: str, index: int) -> GpuSample:
        config = self.config
        return GpuSample(node=node, index=index, pod=None, free_mib=config.memory_mib, power_w=config.idle_w)

    def _sample(self, record: PodServer, index: int, at_s: float) -> GpuSample:
        config = self.config
        before, now = record.collected, record.server.activity(at_s)
        busy, tensor, dram, tokens_per_s = (
            max(0.0, new - old) / config.period_s
            for new, old in (
                (now.busy_s, before.busy_s),
                (now.tensor_s, before.tensor_s),
                (now.dram_s, before.dram_s),
                (now.tokens, before.tokens),
            )
        )
        strain = 0.3 * busy + 0.4 * tensor / 0.93 + 0.3 * dram / 0.80
        used_mib = int(0.9 * config.memory_mib) if record.was_ready else int(0.2 * config.memory_mib)
        return GpuSample(
            node=record.pod.node or "",
            index=index,
            pod=record.pod,
            busy=min(1.0, busy),
            tensor=min(1.0, tensor),
            dram=min(1.0, dram),
            tokens_per_s=tokens_per_s,
            used_mib=used_mib,
            free_mib=config.memory_mib - used_mib,
            power_w=config.idle_w + (config.limit_w - config.idle_w) * min(1.0, strain),
        )


def short_hash(text: str) -> str:
    """Five characters, as a DaemonSet's pod names end."""
    return hashlib.sha256(text.encode()).hexdigest()[:5]
