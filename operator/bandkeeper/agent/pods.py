"""Which pod holds which GPU, by the kubelet's PodResources API on its unix socket."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from bandkeeper.agent import podresources_pb2, podresources_pb2_grpc
from bandkeeper.agent.devices import Identity

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
PERIOD_S = 10.0
TIMEOUT_S = 5.0
KEEP_S = 300.0
"""How long the last answer holds while the kubelet is away: it alone gives devices to containers."""
_CHANNEL = (
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
)
_BY_UUID = re.compile(r"(?:MIG-)?(?P<uuid>(?:GPU|MIG)-[0-9A-Fa-f-]+)(?:/(?P<instance>\d+)/\d+)?(?P<replica>::\d+)?")
_BY_NODE = re.compile(r"nvidia(?P<minor>\d+)(?:/gi(?P<instance>\d+))?(?P<replica>/vgpu\d+)?")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A container that was given a GPU or a part of one."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a device id says: a GPU by UUID or minor number, or a GPU instance; `replica`: a share of it."""

    holder: Holder
    uuid: str | None
    minor: int | None
    instance: int | None
    replica: bool

    def of(self, identity: Identity) -> bool:
        """Whether this device is that GPU or GPU instance."""
        if self.minor is not None:
            return (self.minor, self.instance) == (identity.minor, identity.instance)
        if self.instance is not None or identity.instance is None:
            return (self.uuid, self.instance) == (identity.uuid, identity.instance)
        return self.uuid in identity.aliases


def parse(device_id: str, holder: Holder) -> Allocation | None:
    """Read `GPU-<uuid>`, `GPU-<uuid>::2`, `MIG-<uuid>`, `MIG-GPU-<uuid>/3/0`, `nvidia0` `nvidia0/gi3`; None: no GPU."""
    found = _BY_UUID.fullmatch(device_id) or _BY_NODE.fullmatch(device_id)
    if found is None:
        return None
    parts = found.groupdict()
    return Allocation(
        holder=holder,
        uuid=parts.get("uuid"),
        minor=int(parts["minor"]) if parts.get("minor") else None,
        instance=int(parts["instance"]) if parts["instance"] else None,
        replica=bool(parts["replica"]),
    )


def allocations(answer: podresources_pb2.ListPodResourcesResponse) -> tuple[Allocation, ...]:
    """Every GPU that a container holds, in the kubelet's order; other devices are passed over."""
    found = (
        parse(device_id, Holder(pod.namespace, pod.name, container.name))
        for pod in answer.pod_resources
        for container in pod.containers
        for devices in container.devices
        for device_id in devices.device_ids
    )
    return tuple(allocation for allocation in found if allocation is not None)


@dataclass(frozen=True, slots=True)
class Held:
    """Who holds one GPU or GPU instance; `shared` when more than one pod can or does."""

    holders: tuple[Holder, ...]
    shared: bool


def held(identity: Identity, given: Iterable[Allocation]) -> Held:
    """The holders of a GPU, each once, in order."""
    mine = [allocation for allocation in given if allocation.of(identity)]
    holders = sorted({allocation.holder for allocation in mine})
    pods = {(holder.namespace, holder.pod) for holder in holders}
    return Held(tuple(holders), len(pods) > 1 or any(allocation.replica for allocation in mine))


class PodResources:
    """Asks the kubelet again and again, over its restarts."""

    def __init__(
        self, socket: Path = SOCKET, period_s: float = PERIOD_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._socket = socket
        self._period_s = period_s
        self._clock = clock
        self._given: tuple[Allocation, ...] = ()
        self._answered_s: float | None = None
        self._problem: str | None = None

    @property
    def age_s(self) -> float | None:
        """Since the last answer; None before the first."""
        return None if self._answered_s is None else self._clock() - self._answered_s

    @property
    def known(self) -> tuple[Allocation, ...] | None:
        """The kubelet's last answer, or None where there is none that can be relied on."""
        age_s = self.age_s
        return self._given if age_s is not None and age_s <= KEEP_S else None

    async def run(self) -> None:
        """Ask for as long as the task lives."""
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=_CHANNEL) as channel:
            lister = podresources_pb2_grpc.PodResourcesListerStub(channel)  # type: ignore[no-untyped-call]
            while True:
                await self._ask(lister)
                await asyncio.sleep(self._period_s)

    async def _ask(self, lister: podresources_pb2_grpc.PodResourcesListerStub) -> None:
        try:
            answer = await lister.List(podresources_pb2.ListPodResourcesRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            problem = f"{error.code().name}: {error.details()}"
            if problem != self._problem:
                log.warning(
                    "The kubelet does not say which pod holds which GPU",
                    extra={"socket": str(self._socket), "why": problem},
                )
            self._problem = problem
            return
        self._given, self._answered_s, self._problem = allocations(answer), self._clock(), None
