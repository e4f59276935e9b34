"""Collections side by side, one for each Prometheus: one that hangs holds up only the policies that read from it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from bandkeeper.api.snapshot import Gap, GapReason
from bandkeeper.runtime.policies import Managed
from bandkeeper.signals.collector import Collector
from bandkeeper.signals.want import Observations, Want

logger = logging.getLogger(__name__)

MOST_COLLECTIONS = 32  # in one look, to find out whose signals break them off
UNCOLLECTED = "the metrics were not collected; the operator's log says why"


@dataclass(slots=True, eq=False)
class Lane:
    """One Prometheus: what reads from it, and the look under way.

    Attributes
    ----------
    queries, faults
        Queries that the last look cost, and policies whose signals could not be read for a fault of ours.
    odd
        Such policies by their keys, with what went wrong.
    """

    collector: Collector
    look: asyncio.Task[None] | None = None
    queries: int = 0
    faults: int = 0
    odd: dict[str, str] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether a look is under way; a collector does one at a time."""
        return self.look is not None and not self.look.done()

    async def observations(self, wants: Sequence[Want], now_s: float) -> AsyncGenerator[tuple[str, Observations], None]:
        """Every policy's observations, each as soon as its own answers are in. A fault costs only whom it comes from.

        A collection that breaks off does not say on whose account, so what it left open is asked for again by halves.
        Who was found out is asked for alone from then on.
        """
        self.queries = self.faults = 0
        broken: Exception | None = None
        groups = deque([[want for want in wants if want.key not in self.odd]])
        groups.extend([want] for want in wants if want.key in self.odd)
        for _ in range(MOST_COLLECTIONS):
            if not groups:
                break
            left = {want.key: want for want in groups.popleft()}
            alone = len(left) == 1
            try:
                async with aclosing(self._stream(list(left.values()), now_s)) as answers:
                    async for key, observations in answers:
                        del left[key]
                        self.odd.pop(key, None)
                        yield key, observations
            except Exception as error:
                if alone and left:
                    broken = None
                    yield self._fault(next(iter(left.values())), error)
                else:
                    broken = broken or error
                    groups.extend(_halves(list(left.values())))
        if broken is not None:
            logger.error("a collection broke off", exc_info=broken)
        for want in (want for group in groups for want in group):
            self.odd.pop(want.key, None)  # it may be sound: next time it is asked for with the others
            yield want.key, _nothing_of(want, GapReason.UNREACHABLE, UNCOLLECTED)

    async def _stream(self, wants: Sequence[Want], now_s: float) -> AsyncGenerator[tuple[str, Observations], None]:
        """One collection; who got no answer has no data."""
        if not wants:
            return
        left = {want.key: want for want in wants}
        stream = cast("AsyncGenerator[tuple[str, Observations], None]", self.collector.stream(wants, now_s))
        try:
            async with aclosing(stream) as answers:
                async for key, observations in answers:
                    del left[key]
                    yield key, observations
        finally:
            self.queries += self.collector.last.queries
        for want in left.values():
            yield want.key, _nothing_of(want, GapReason.UNREACHABLE, UNCOLLECTED)

    def _fault(self, want: Want, error: Exception) -> tuple[str, Observations]:
        """What nobody foresaw in one policy's signals: logged when it is new."""
        self.faults += 1
        fault = f"{error!r:.80}"
        if self.odd.get(want.key) != fault:
            logger.error("a policy's signals cannot be read", extra={"policy": want.key}, exc_info=error)
        self.odd[want.key] = fault
        detail = (
            f"the operator failed on the answers ({fault}), which is its own fault: please report what its log says"
        )
        return want.key, _nothing_of(want, GapReason.INVALID, detail)


def _halves(wants: list[Want]) -> list[list[Want]]:
    middle = len(wants) // 2
    return [half for half in (wants[:middle], wants[middle:]) if half]


def _nothing_of(want: Want, reason: GapReason, detail: str) -> Observations:
    """No data, for a policy that got no answer."""
    signals = sorted(want.signals | {latency.signal for latency in want.latencies})
    return Observations(gaps=tuple(Gap(signal=one, reason=reason, detail=detail) for one in signals))


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
        """Close the lanes that none of `policies` uses, and forget the faults of policies that are gone."""
        used = {self._name(managed) for managed in policies}
        keys = {"/".join(managed.key) for managed in policies}
        for lane in self._lanes.values():
            for key in lane.odd.keys() - keys:
                del lane.odd[key]
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
