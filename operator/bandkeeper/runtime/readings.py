"""The batch caps that the servers of one workload said they run with, and when to ask them again. Pure memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bandkeeper.actuate.adapter import cap_for
from bandkeeper.actuate.outcome import CapReading
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import BATCH_LIMIT
from bandkeeper.runtime.backoff import Backoff

ASK_EVERY_S = 30.0
FRESH_S = 90.0  # so long a reading counts where later ones failed: two more were tried
READ_S = 10.0  # the longest that one round of reading may take

_Server = tuple[str, int]
"""A pod's uid and how often its containers were restarted: a server that comes up anew has the cap it boots with."""


@dataclass(slots=True)
class _Told:
    """What a server was told, and took; from `counts_from_s` on its word counts against that.

    `open` until it said another cap; `again` is when to tell it once more.
    """

    cap: int
    counts_from_s: float
    open: bool = True
    again: Backoff = field(default_factory=lambda: Backoff(first_s=15.0, most_s=600.0))


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
    assumed
        The servers cannot be asked, and what was written counts.
    written
        A cap was written, so what was read is out of date.
    failed
        Pod name to the sentence that says why it could not be read in the last round.
    lost
        Pod name to the cap it had and the one it has, where it had the wanted one in the round before and we told it no
        other since.
    """

    begun: bool = False
    reading: asyncio.Task[None] | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    assumed: bool = False
    written: bool = False
    _caps: dict[_Server, tuple[int, float]] = field(default_factory=dict)
    _asked_s: float = -math.inf
    _asked_of: frozenset[_Server] = frozenset()
    _told: dict[_Server, _Told] = field(default_factory=dict)
    _wrote: int | None = None
    _moved_s: float = -math.inf  # when last another cap was written than before

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

    def wrote(self, cap: int, told: Iterable[Pod], now_s: float, delay_s: float) -> None:
        """A cap was written, and may be in force; the servers of `told` took it, and say so after `delay_s`."""
        self.written = True
        if cap != self._wrote:
            self._wrote, self._moved_s = cap, now_s
        for pod in told:
            before, wanted = self._told.get(_server(pod)), cap_for(pod, cap)
            if before is not None and before.cap == wanted:
                before.open = True
            else:
                self._told[_server(pod)] = _Told(wanted, now_s + delay_s)

    def denies(self, pod: Pod, cap: int, now_s: float) -> bool:
        """Whether a server said another cap after it was told this one, so that it is too early to tell it again."""
        told = self._told.get(_server(pod))
        return told is not None and told.cap == cap_for(pod, cap) and told.again.holds(now_s)

    def took(self, reading: CapReading, pods: Sequence[Pod], now_s: float, wanted: int | None) -> bool:
        """A round has ended; `pods` are those that it was begun with, `wanted` the cap that they should have.

        True where a server contradicts what it was told.
        """
        self.begun, self.assumed = True, reading.assumed
        caps = {name: cap for name, cap in reading.caps.items() if 1 <= cap <= BATCH_LIMIT}
        absurd = {
            name: f"pod {name} says a batch cap that is not from 1 to {BATCH_LIMIT}"
            for name in reading.caps.keys() - caps.keys()
        }
        servers = {_server(pod): pod for pod in pods}
        kept = {server: told for server, told in self._caps.items() if server in servers}
        answered = {server: caps[pod.name] for server, pod in servers.items() if pod.name in caps}
        self.lost = {
            servers[server].name: (kept[server][0], cap)
            for server, cap in answered.items()
            if server in kept and self._is_lost(servers[server], *kept[server], cap, wanted)
        }
        self._told = {server: told for server, told in self._told.items() if server in servers}
        denials, fresh = self._denials(servers, answered, now_s)
        self.failed = {**reading.failed, **absurd, **denials}
        self._caps = kept | {server: (cap, self._asked_s) for server, cap in answered.items()}
        return fresh

    def _is_lost(self, pod: Pod, was: int, read_s: float, now: int, wanted: int | None) -> bool:
        """Whether a server that had the wanted cap has another one, which we did not give it in between."""
        return wanted is not None and was == cap_for(pod, wanted) != now and read_s >= self._moved_s

    def _denials(
        self, servers: Mapping[_Server, Pod], answered: Mapping[_Server, int], now_s: float
    ) -> tuple[dict[str, str], bool]:
        """By pod name the sentence for a server that says another cap than it was told, and whether one is news."""
        sizes = (pod.capacity for pod in servers.values() if pod.state is PodState.READY and pod.capacity is not None)
        smallest = min(sizes, default=BATCH_LIMIT)  # where all share one cap, none gets more than this one may have
        sentences, fresh = {}, False
        for server in self._told.keys() & answered.keys():
            told, said, name = self._told[server], answered[server], servers[server].name
            if said in (told.cap, min(told.cap, smallest)):
                del self._told[server]
            elif self._asked_s >= told.counts_from_s:
                sentences[name] = f"pod {name} was told {told.cap} and says {said}"
                if told.open:
                    told.again.failed(now_s)
                fresh, told.open = fresh or told.open, False
        return sentences, fresh

    def onto(self, pods: Sequence[Pod], now_s: float) -> tuple[Pod, ...]:
        """The pods with the caps that were read from them."""
        return tuple(replace(pod, cap=self._cap(pod, now_s)) for pod in pods)

    def _cap(self, pod: Pod, now_s: float) -> int | None:
        cap, at_s = self._caps.get(_server(pod), (None, -math.inf))
        return cap if now_s - at_s <= FRESH_S else None


def _server(pod: Pod) -> _Server:
    return pod.uid, pod.restarts


def _ready(pods: Sequence[Pod]) -> frozenset[_Server]:
    return frozenset(_server(pod) for pod in pods if pod.state is PodState.READY)
