"""Kubernetes events: said once and then counted, rate limited per object and in all, never in anyone's way.

One `Event` object stands for all repetitions of the same (object, reason, note); a repetition raises its series count.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from bandkeeper.kube.client import ApiError, KubeClient, NotFound, TooManyRequests, Unavailable
from bandkeeper.kube.objects import ObjectRef
from bandkeeper.kube.rate import TokenBucket

log = logging.getLogger(__name__)

CONTROLLER = "bandkeeper.dev/bandkeeper"
NOTE_BYTES = 1024
WORD_BYTES = 128
NAME_BYTES = 253
# The budget of client-go's spam filter, per object.
OBJECT_BURST, OBJECT_PER_S = 25, 1 / 300
GLOBAL_BURST, GLOBAL_PER_S = 50, 5.0
MOST_REMEMBERED = 4096
SERIES_ENDS_S = 2400.0  # after so long without a repetition it is news again; the server forgets events after an hour
SERIES_EVERY_S = 60.0  # a series is written at most so often
WRITE_TIMEOUT_S = 5.0
ATTEMPTS = 5

EventType = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class _Said:
    """What makes two events the same."""

    regarding: ObjectRef
    type: EventType
    reason: str
    action: str
    note: str


@dataclass(slots=True)
class _Series:
    said: _Said
    name: str
    first: datetime
    last: datetime
    last_at: float  # monotonic
    count: int = 1
    written_count: int = 0  # 0: the event is not in the API yet
    written_at: float = 0.0
    queued: bool = False
    attempts: int = 0


class EventRecorder:
    """Posts events.k8s.io/v1 events from a queue of its own.

    Parameters
    ----------
    instance
        This process, as shown in `reportingInstance`.
    window_s
        Seconds in which a write may still be made; 0 for one who must not write. Usually the elector's `remaining_s`.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        instance: str,
        window_s: Callable[[], float] = lambda: WRITE_TIMEOUT_S,
        queue_size: int = 1000,
        sweep_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._instance = instance[:WORD_BYTES]
        self._window_s = window_s
        self._queue_size = queue_size
        self._sweep_s = sweep_s
        self._clock = clock
        self._wall = wall
        self._sleep = sleep
        self._series: OrderedDict[_Said, _Series] = OrderedDict()
        self._budgets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._budget = TokenBucket(GLOBAL_PER_S, GLOBAL_BURST, clock=clock, sleep=sleep)
        self._queue: deque[_Series] = deque()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusal = ""
        self.dropped = 0
        """Events never posted: over a rate limit, over the queue, or refused by the server."""

    def record(self, regarding: ObjectRef, *, type: EventType, reason: str, action: str, note: str) -> None:
        """Say something about an object; a repetition is counted. Never blocks, never raises.

        `reason` and `action` are CamelCase words, `note` a sentence; what is too long is cut.
        """
        if self._window_s() <= 0.0:
            return
        now, wall = self._clock(), self._wall()
        said = _Said(regarding, type, reason[:WORD_BYTES], action[:WORD_BYTES], _cut(note, NOTE_BYTES))
        series = self._series.get(said)
        if series is not None and now - series.last_at < SERIES_ENDS_S:
            series.count += 1
            series.last, series.last_at = wall, now
            self._series.move_to_end(said)
            self._write_if_due(series)
        elif self._admit(regarding):
            series = self._series[said] = _Series(said, _name(regarding.name), wall, wall, now)
            while len(self._series) > MOST_REMEMBERED:
                self._series.popitem(last=False)
            self._enqueue(series)
        else:
            self.dropped += 1

    async def run(self) -> None:
        """Post until cancelled. Raises nothing else."""
        while True:
            while not self._queue:
                self._idle.set()
                await self._wait()
            await self._budget.wait()
            series = self._queue.popleft()
            series.queued = False
            try:
                await self._post(series)
            except (Unavailable, TooManyRequests) as error:
                await self._again(series, error)
            except ApiError as error:
                self._give_up(series, error)
            except Exception as error:  # an event must not end what explains us
                log.exception("Event failed")
                self._give_up(series, error)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all that was recorded is posted, at most `timeout_s` seconds."""
        for series in self._series.values():
            if series.count > series.written_count and not series.queued:
                self._enqueue(series)
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("Events left unposted", extra={"events": len(self._queue)})

    async def _wait(self) -> None:
        """Wait for work; now and then see whether counts have been held back long enough."""
        self._work.clear()
        try:
            async with asyncio.timeout(self._sweep_s):
                await self._work.wait()
        except TimeoutError:
            for series in list(self._series.values()):
                self._write_if_due(series)

    def _write_if_due(self, series: _Series) -> None:
        """Write a series' new count, at most once a minute."""
        stale = series.written_count < series.count and self._clock() - series.written_at >= SERIES_EVERY_S
        if stale and not series.queued and self._admit(series.said.regarding):
            self._enqueue(series)

    def _admit(self, regarding: ObjectRef) -> bool:
        budget = self._budgets.get(regarding.uid)
        if budget is None:
            budget = self._budgets[regarding.uid] = TokenBucket(OBJECT_PER_S, OBJECT_BURST, clock=self._clock)
            while len(self._budgets) > MOST_REMEMBERED:
                self._budgets.popitem(last=False)
        self._budgets.move_to_end(regarding.uid)
        return len(self._queue) < self._queue_size and budget.take()

    def _enqueue(self, series: _Series) -> None:
        series.queued = True
        self._queue.append(series)
        self._idle.clear()
        self._work.set()

    async def _post(self, series: _Series) -> None:
        timeout_s = min(WRITE_TIMEOUT_S, self._window_s())
        if timeout_s <= 0.0:
            self._forget(series)  # another speaks now
            return
        namespace = series.said.regarding.namespace or "default"
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        count = series.count
        if series.written_count:
            body = {"series": {"count": count, "lastObservedTime": _micro(series.last)}}
            try:
                await self._client.patch(f"{path}/{series.name}", body, timeout_s=timeout_s)
            except NotFound:  # it has expired
                series.written_count, series.name = 0, _name(series.said.regarding.name)
        if not series.written_count:
            await self._client.post(path, self._event(series, namespace), timeout_s=timeout_s)
        series.written_count, series.written_at, series.attempts = count, self._clock(), 0

    def _event(self, series: _Series, namespace: str) -> dict[str, Any]:
        said = series.said
        event: dict[str, Any] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": namespace},
            "eventTime": _micro(series.first),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "type": said.type,
            "reason": said.reason,
            "action": said.action,
            "note": said.note,
            "regarding": {
                "apiVersion": said.regarding.api_version,
                "kind": said.regarding.kind,
                "namespace": said.regarding.namespace,
                "name": said.regarding.name,
                "uid": said.regarding.uid,  # without it `kubectl describe` shows nothing
            },
        }
        if series.count > 1:
            event["series"] = {"count": series.count, "lastObservedTime": _micro(series.last)}
        return event

    async def _again(self, series: _Series, error: ApiError) -> None:
        series.attempts += 1
        if series.attempts >= ATTEMPTS:
            self._give_up(series, error)
            return
        self._queue.appendleft(series)
        series.queued = True
        await self._sleep(max(error.retry_after_s or 0.0, 2**series.attempts * random.uniform(0.25, 0.5)))

    def _give_up(self, series: _Series, error: Exception) -> None:
        self.dropped += 1
        self._forget(series)
        said = series.said
        about = f"{said.regarding.kind}/{said.regarding.namespace}/{said.regarding.name}"
        level = logging.DEBUG if str(error) == self._refusal else logging.WARNING
        self._refusal = str(error)
        log.log(level, "Event not posted", extra={"about": about, "reason": said.reason, "error": str(error)})

    def _forget(self, series: _Series) -> None:
        if self._series.get(series.said) is series:
            del self._series[series.said]


def _name(about: str) -> str:
    suffix = f".{uuid.uuid4().hex[:16]}"
    return about[: NAME_BYTES - len(suffix)] + suffix


def _cut(text: str, most_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= most_bytes:
        return text
    return encoded[: most_bytes - 3].decode(errors="ignore") + "…"


def _micro(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
