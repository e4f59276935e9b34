"""Writes the status of policies: what matters at once, what merely drifts seldom, and always only the latest.

The whole status is replaced by one JSON patch that also states the uid, so a status can neither keep a field that is
gone nor land on a later object of the same name. No resourceVersion: nobody else writes this status.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bandkeeper.api.v1alpha1 import GROUP, PLURAL, VERSION
from bandkeeper.kube.client import JSON_PATCH, ApiError, Conflict, KubeClient, NotFound, TooManyRequests, Unavailable
from bandkeeper.kube.objects import ObjectRef
from bandkeeper.kube.rate import TokenBucket

log = logging.getLogger(__name__)

FIELD_MANAGER = "bandkeeper"
WRITE_TIMEOUT_S = 5.0
PARALLEL_WRITES = 4
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.5, 15.0
REFUSED_RETRY_S = 60.0
POLL_S, IDLE_POLL_S = 0.1, 1.0

DRIFT_EVERY_S = 60.0
DRIFT_POINTS = 5.0  # for numbers, which are percentages
DRIFT_RATIO = 0.1  # for numbers within texts, which are anything
# What may be up to a minute old: by field of the status the names within it, None for all of it.
DRIFTING: Mapping[str, frozenset[str] | None] = {
    "conditions": frozenset({"message", "lastTransitionTime"}),
    "coldStart": None,
    "cost": None,
    "lastDecision": frozenset({"message", "time"}),
    "model": None,
    "quality": frozenset(
        {
            *("score", "confidencePercent", "bottleneck", "evidence", "reason", "culprit", "age"),
            *("measures", "wasted", "advice"),
        }
    ),
    "slos": frozenset({"measured", "lowerBound", "upperBound", "attainmentLowPercent", "attainmentHighPercent"}),
    "utilization": None,
}
COUNTED = ("cost",)  # it only grows, and is brought up to date seldom: then any difference is worth a write
TIMES = frozenset({"lastTransitionTime", "time", "age", "peakTime"})  # that time passes is no news
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

Status = Mapping[str, Any]


@dataclass(slots=True)
class _Object:
    """One object's status: `base` is what the server has (None: not known), `wanted` what it shall have next."""

    ref: ObjectRef
    base: Status | None
    base_at: float = -math.inf
    wanted: Status | None = None
    in_flight: bool = False
    failures: int = 0
    not_before: float = -math.inf


class StatusWriter:
    """Coalesces and writes statuses under one budget for all policies.

    Parameters
    ----------
    window_s
        Seconds in which a write may still be made; 0 for one who must not write. Usually the elector's `remaining_s`.
        While it is 0 everything is forgotten, because another may write meanwhile.
    per_second, burst
        The budget. What merely drifts leaves half of the burst to what matters.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        window_s: Callable[[], float] = lambda: WRITE_TIMEOUT_S,
        per_second: float = 20.0,
        burst: float = 40.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._window_s = window_s
        self._reserve = burst / 2
        self._clock = clock
        self._budget = TokenBucket(per_second, burst, clock=clock, sleep=sleep)
        self._objects: dict[str, _Object] = {}
        self._important: dict[str, _Object] = {}  # both in order of arrival
        self._drifted: dict[str, _Object] = {}
        self._in_flight = 0
        self._outages = 0
        self._paused_until = -math.inf
        self._work = asyncio.Event()
        self._done = asyncio.Event()
        self.written = 0
        """Statuses written so far."""

    @property
    def pending(self) -> int:
        """Statuses that are to be written or being written."""
        return len(self._important) + len(self._drifted) + self._in_flight

    def submit(self, ref: ObjectRef, status: Status, *, observed: Status | None = None) -> None:
        """Say what the status of `ref` shall be, all of it. Never blocks; the latest call counts.

        `observed` is the status that the object had when last read: it spares the first write if nothing changed.
        """
        if self._window_s() <= 0.0:
            self._forget_all()
            return
        obj = self._objects.get(ref.uid)
        if obj is None:
            obj = self._objects[ref.uid] = _Object(ref, observed)
        if obj.base is None or _important_moved(obj.base, status):
            self._line_up(self._important, obj, status)
        elif self._clock() - obj.base_at >= DRIFT_EVERY_S and (moved(obj.base, status) or _counted(obj.base, status)):
            self._line_up(self._drifted, obj, status)
        else:
            self._leave_line(obj)

    def forget(self, uid: str) -> None:
        """The object is gone: write nothing more to it."""
        if obj := self._objects.pop(uid, None):
            self._leave_line(obj)

    async def run(self) -> None:
        """Write until cancelled. Raises nothing else."""
        async with asyncio.TaskGroup() as writes:
            while True:
                if self._window_s() <= 0.0:
                    self._forget_all()
                obj = self._next()
                if obj is None:
                    await self._pause()
                    continue
                await self._budget.wait()
                writes.create_task(self._write(obj), name=f"status of {obj.ref.namespace}/{obj.ref.name}")

    async def drain(self, timeout_s: float) -> None:
        """Wait until all is written, at most `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.pending:
                    self._done.clear()
                    await self._done.wait()
        except TimeoutError:
            log.warning("Statuses left unwritten", extra={"policies": self.pending})

    def _line_up(self, line: dict[str, _Object], obj: _Object, status: Status) -> None:
        """Have `status` written. Who stands in that line already keeps the place."""
        other = self._drifted if line is self._important else self._important
        other.pop(obj.ref.uid, None)
        obj.wanted = status
        line[obj.ref.uid] = obj
        self._work.set()

    def _leave_line(self, obj: _Object) -> None:
        obj.wanted = None
        self._important.pop(obj.ref.uid, None)
        self._drifted.pop(obj.ref.uid, None)

    def _forget_all(self) -> None:
        self._objects.clear()
        self._important.clear()
        self._drifted.clear()

    def _next(self) -> _Object | None:
        """The object to write now, taken out of its line."""
        now = self._clock()
        if now < self._paused_until or self._in_flight >= PARALLEL_WRITES:
            return None
        lines = [self._important]
        if self._budget.level() >= self._reserve:
            lines.append(self._drifted)
        for line in lines:
            for uid, obj in line.items():
                if not obj.in_flight and obj.not_before <= now:
                    del line[uid]
                    obj.in_flight = True
                    self._in_flight += 1
                    return obj
        return None

    async def _pause(self) -> None:
        """Wait for work, and look again soon if some is waiting for its time."""
        self._work.clear()
        wait_s = POLL_S if self._important or self._drifted else IDLE_POLL_S
        try:
            async with asyncio.timeout(wait_s):
                await self._work.wait()
        except TimeoutError:
            pass

    async def _write(self, obj: _Object) -> None:
        status, window_s = obj.wanted, self._window_s()
        try:
            if status is None or window_s <= 0.0:
                return
            obj.wanted, obj.base, obj.base_at = None, status, self._clock()
            ref = obj.ref
            path = f"/apis/{GROUP}/{VERSION}/namespaces/{ref.namespace}/{PLURAL}/{ref.name}/status"
            patch = [
                {"op": "test", "path": "/metadata/uid", "value": ref.uid},
                {"op": "add", "path": "/status", "value": status},
            ]
            await self._client.patch(
                path,
                patch,
                content_type=JSON_PATCH,
                params={"fieldManager": FIELD_MANAGER},
                timeout_s=min(WRITE_TIMEOUT_S, window_s),
            )
            obj.failures = self._outages = 0
            self.written += 1
        except NotFound:
            if self._objects.get(obj.ref.uid) is obj:
                self.forget(obj.ref.uid)
        except (Unavailable, TooManyRequests) as error:
            self._outages += 1
            wait_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(self._outages - 1, 10)) * random.uniform(0.5, 1.0)
            self._paused_until = self._clock() + max(wait_s, error.retry_after_s or 0.0)
            self._again(obj, status, 0.0, error)
        except Conflict as error:  # the server itself lost the race against other writers, several times over
            self._again(obj, status, BACKOFF_FIRST_S, error)
        except Exception as error:  # refused, or a fault of ours: it must not end the writing of the others
            if not isinstance(error, ApiError):
                log.exception("Status writer failed")
            self._again(obj, status, REFUSED_RETRY_S, error)
        finally:
            obj.in_flight = False
            self._in_flight -= 1
            self._work.set()
            self._done.set()

    def _again(self, obj: _Object, status: Status | None, wait_s: float, error: Exception) -> None:
        """Line up what could not be written, unless a newer status waits. The server may have it or not."""
        obj.failures += 1
        obj.base = None
        obj.not_before = self._clock() + wait_s
        level = logging.WARNING if obj.failures == 1 else logging.DEBUG
        policy = f"{obj.ref.namespace}/{obj.ref.name}"
        log.log(level, "Status not written; it is tried again", extra={"policy": policy, "error": str(error)})
        if self._objects.get(obj.ref.uid) is not obj or status is None:
            return
        self._line_up(self._important, obj, obj.wanted if obj.wanted is not None else status)


def _counted(old: Status, new: Status) -> bool:
    return any(old.get(field) != new.get(field) for field in COUNTED)


def moved(old: Any, new: Any) -> bool:
    """Whether a part of a status differs by more than noise: 5 points for numbers, 10 % for numbers within texts."""
    if old == new:
        return False
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = (old.keys() | new.keys()) - TIMES
        return any(moved(old.get(name), new.get(name)) for name in names)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) != len(new) or any(moved(*pair) for pair in zip(old, new, strict=True))
    if isinstance(old, str) and isinstance(new, str):
        return _text_moved(old, new)
    numbers = (int, float)
    if isinstance(old, numbers) and isinstance(new, numbers) and not isinstance(old, bool):
        return abs(new - old) >= DRIFT_POINTS
    return True


def _text_moved(old: str, new: str) -> bool:
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return True
    pairs = zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    return any(abs(float(a) - float(b)) > DRIFT_RATIO * max(float(a), float(b)) for a, b in pairs)


def _important_moved(old: Status, new: Status) -> bool:
    """Whether a status differs in anything but what drifts."""
    parts = {field: DRIFTING.get(field, frozenset()) for field in old.keys() | new.keys()}
    return any(names is not None and _differ(old.get(field), new.get(field), names) for field, names in parts.items())


def _differ(old: Any, new: Any, left_out: frozenset[str]) -> bool:
    """Whether two values differ in more than the names left out."""
    if old == new:
        return False
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return any(old.get(name) != new.get(name) for name in (old.keys() | new.keys()) - left_out)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) != len(new) or any(_differ(*pair, left_out) for pair in zip(old, new, strict=True))
    return True
