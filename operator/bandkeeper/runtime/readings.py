"""The batch caps that the servers of one workload said they run with, and when to ask them again. Pure memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bandkeeper.actuate.outcome import CapReading
from bandkeeper.api.snapshot import Pod, PodState

ASK_EVERY_S = 30.0
FRESH_S = 90.0  # so long a reading counts where later ones failed: two more were tried
READ_S = 10.0  # the longest that one round of reading may take

_Server = tuple[str, int]
"""A pod's uid and how often its containers were restarted: a server that comes up anew has the cap it boots with."""


@dataclass(slots=True)
class Readings:
    """What is known of the caps in force, for an adapter that reads them back.

    A server that was never read has no cap here, so it counts at what it booted with. A reading that fails leaves the
    one before it, as long as that is fresh; then the cap is not known.

    Attributes
    ----------
    begun
        A first round has ended, whatever it brought; until then a cap in force cannot be told from none.
    reading
        The round that is under way.
    written
        A cap was written, so what was read is out of date.
    failed
        Pod name to the sentence that says why it could not be read in the last round.
    changed
        Pod name to the cap it had and the one it has, where that is not the same as in the round before.
    """

    begun: bool = False
    reading: asyncio.Task[None] | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    written: bool = False
    _caps: dict[_Server, tuple[int, float]] = field(default_factory=dict)
    _asked_s: float = -math.inf
    _asked_of: frozenset[_Server] = frozenset()

    def is_due(self, pods: Sequence[Pod], now_s: float) -> bool:
        """Whether to ask: pods came, went or restarted, a cap was written, or it is long ago."""
        if self.reading is not None:
            return False
        servers = _ready(pods)
        if not servers:
            return False
        return self.written or servers != self._asked_of or now_s - self._asked_s >= ASK_EVERY_S

    def asked(self, pods: Sequence[Pod], now_s: float) -> None:
        """A round begins."""
        self._asked_s, self._asked_of, self.written = now_s, _ready(pods), False

    def took(self, reading: CapReading, pods: Sequence[Pod], now_s: float) -> None:
        """A round has ended; `pods` are those that it was begun with."""
        self.begun = True
        self.failed = reading.failed
        servers = {(pod.uid, pod.restarts): pod for pod in pods}
        kept = {server: told for server, told in self._caps.items() if server in servers}
        answered = {
            server: (reading.caps[pod.name], now_s) for server, pod in servers.items() if pod.name in reading.caps
        }
        self.changed = {
            pod.name: (kept[server][0], answered[server][0])
            for server, pod in servers.items()
            if server in kept and server in answered and kept[server][0] != answered[server][0]
        }
        self._caps = kept | answered

    def onto(self, pods: Sequence[Pod], now_s: float) -> tuple[Pod, ...]:
        """The pods with the caps that were read from them."""
        return tuple(replace(pod, cap=self._cap(pod, now_s)) for pod in pods)

    def _cap(self, pod: Pod, now_s: float) -> int | None:
        cap, at_s = self._caps.get((pod.uid, pod.restarts), (None, -math.inf))
        return cap if now_s - at_s <= FRESH_S else None


def _ready(pods: Sequence[Pod]) -> frozenset[_Server]:
    return frozenset((pod.uid, pod.restarts) for pod in pods if pod.state is PodState.READY)
