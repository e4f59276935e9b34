"""Collections side by side, one for each Prometheus: one that hangs holds up only the policies that read from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from bandkeeper.runtime.policies import Managed
from bandkeeper.signals.collector import Collector


@dataclass(slots=True, eq=False)
class Lane:
    """One Prometheus: what reads from it, and the look under way."""

    collector: Collector
    look: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a look is under way; a collector does one at a time."""
        return self.look is not None and not self.look.done()


class Lanes:
    """The lanes in use.

    Parameters
    ----------
    make
        Makes a collector; each lane has its own.
    default
        Name of the Prometheus that answers for policies that name none.
    """

    def __init__(self, make: Callable[[], Collector], *, default: str) -> None:
        self._make = make
        self._default = default
        self._lanes: dict[str, Lane] = {}

    def of(self, managed: Managed) -> Lane:
        """The lane of the Prometheus that a policy chose."""
        name = self._name(managed)
        if name not in self._lanes:
            self._lanes[name] = Lane(self._make())
        return self._lanes[name]

    def keep(self, policies: Collection[Managed]) -> None:
        """Close the lanes that none of `policies` uses."""
        used = {self._name(managed) for managed in policies}
        for name in [name for name, lane in self._lanes.items() if name not in used and not lane.busy]:
            self._lanes.pop(name).collector.close()

    def close(self) -> None:
        """Close all; their looks must have ended."""
        for lane in self._lanes.values():
            lane.collector.close()
        self._lanes.clear()

    def _name(self, managed: Managed) -> str:
        chosen = managed.spec.prometheus if managed.spec else None
        return (chosen.url or chosen.name if chosen else None) or self._default
