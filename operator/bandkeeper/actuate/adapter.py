"""The contract of batch adapters: how a wanted batch cap reaches the servers of one workload.

An adapter keeps no state. Each tick it is told the wanted cap and what is there, and writes the difference; so a crash
between two writes leaves nothing that the next tick does not finish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bandkeeper.actuate.outcome import CapResult
from bandkeeper.actuate.rights import Right
from bandkeeper.api.snapshot import Pod
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.discovery import Resource


class AdapterError(Exception):
    """The adapter cannot work as configured; the text says what to change."""


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
    """

    cost_class: CostClass
    expected_delay_s: float

    def right(self, resource: Resource) -> Right:
        """The right that `apply` needs on a target of this kind."""
        ...

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when there is nothing to write."""
        ...

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Write `cap` wherever it differs; no request starts after `deadline` (monotonic clock) or outlasts it."""
        ...
