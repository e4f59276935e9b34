"""The contract of batch adapters: how a wanted batch cap reaches the servers of one workload.

Each tick an adapter is told the wanted cap and what is there, and writes the difference; so a crash between two writes
leaves nothing that the next tick does not finish. What it remembers it may lose: it is then written once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bandkeeper.actuate.errors import AdapterError as AdapterError
from bandkeeper.actuate.outcome import CapReading, CapResult
from bandkeeper.actuate.pod_access import PodAccess
from bandkeeper.actuate.rights import Right
from bandkeeper.api.snapshot import Pod
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource

AddressOf = Callable[[Pod], str]
"""Where a pod's server is asked, as host:port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What an adapter acts on.

    Attributes
    ----------
    uid
        Of the target; a workload made anew under the same name is not written.
    pods
        The target's pods with the cap read back from each.
    manifest
        The raw object where a store has it; spares a read when there is nothing to write.
    """

    namespace: str
    name: str
    resource: Resource
    uid: str
    pods: tuple[Pod, ...] = ()
    manifest: Mapping[str, Any] | None = None


class BatchAdapter(Protocol):
    """One way to set the batch cap.

    Attributes
    ----------
    cost_class
        What a change costs.
    expected_delay_s
        Seconds from a write until the servers run with the new cap, where nothing was measured yet.
    reads_back
        The cap in force is asked of the servers (`read_back`); else the pods' manifests show it.
    """

    cost_class: CostClass
    expected_delay_s: float
    reads_back: bool

    def right(self, resource: Resource) -> Right | None:
        """The right that `apply` needs on a target of this kind; None where it writes nothing to the API server."""
        ...

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when there is nothing to write."""
        ...

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Write `cap` wherever it differs; no request starts after `deadline` (monotonic clock) or outlasts it."""
        ...

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """Ask the ready pods' servers for the cap in force, all of it before `deadline` (monotonic clock)."""
        ...

    async def close(self) -> None:
        """Let go of what is held open; nothing is asked of it afterwards."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What an adapter is made of beside the settings in its policy.

    Attributes
    ----------
    namespace
        The policy's, and with it the workload's.
    pod_access
        How to log in to pods' servers.
    clock
        Monotonic seconds, the clock of deadlines.
    address_of
        Where pods' servers are asked instead of at their IPs; None in a cluster.
    """

    client: KubeClient
    namespace: str = ""
    pod_access: PodAccess = field(default_factory=PodAccess)
    clock: Callable[[], float] = time.monotonic
    address_of: AddressOf | None = None


class ShownByPods:
    """The part of an adapter whose cap the pods' own manifests show: nothing is asked, and nothing held open."""

    reads_back = False

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """Nothing: the store of pods has it."""
        return CapReading()

    async def close(self) -> None:
        """Nothing to let go of."""


def cap_for(pod: Pod, cap: int) -> int:
    """What to write to a pod that is to have `cap`: never more than its server booted with."""
    return cap if pod.capacity is None else min(cap, pod.capacity)


def at_port(port: int) -> AddressOf:
    """The address of a pod's server at a port of the pod's own IP."""

    def address_of(pod: Pod) -> str:
        return f"[{pod.address}]:{port}" if ":" in pod.address else f"{pod.address}:{port}"

    return address_of
