"""A store that mirrors one kind of object: a paged list, then a watch from where the list ended, again after a gap.

The list is the truth: whatever it does not hold is gone, so nothing deleted while the watch was broken survives it.
Callbacks see differences, whether they came by the watch or by a list.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from bandkeeper.kube.client import (
    ApiError,
    Forbidden,
    Gone,
    KubeClient,
    NotFound,
    TooManyRequests,
    Unavailable,
    error_from_status,
)
from bandkeeper.kube.objects import Key, key_of

log = logging.getLogger(__name__)

T = TypeVar("T")

LIST_TIMEOUT_S = 30.0
WATCH_S = 30.0  # the server sends a bookmark 2 s before it ends a watch: silence stays well below a minute
IDLE_GRACE_S = 10.0
FIRST_WATCH_S = 5.0  # after a fault a short one, so that its bookmark soon says that all is well
HEALTHY_WATCH_S = 5.0
SHORT_WATCH_S = 1.0  # a watch that ends sooner, without an event, is a fault
OPTIONAL_RETRY_S = 30.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 15.0


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One difference of the store: `old` is None for a new object, `new` is None for one that is gone."""

    key: Key
    old: T | None
    new: T | None


@dataclass(slots=True)
class _Part:
    """What is followed with one list and one watch: a namespace, or ("") all of them."""

    namespace: str
    version: str | None = None  # where the watch goes on; None: a list is due
    proof_at: float = -math.inf  # monotonic time of the last list, event or bookmark
    failures: int = 0
    problem: str = ""


class Reflector(Generic[T]):
    """Follows one kind of object cluster-wide, or in the given namespaces.

    Parameters
    ----------
    api, plural
        Such as `/api/v1` and `pods`, or `/apis/apps/v1` and `deployments`.
    trim
        Makes of a raw object the part that is kept, or None where it is of no interest.
    namespaces
        Empty for all namespaces.
    optional
        The kind may be missing from the cluster, or be unreadable: both count as an empty list, asked again every 30 s.
    """

    def __init__(
        self,
        client: KubeClient,
        api: str,
        plural: str,
        *,
        trim: Callable[[dict[str, Any]], T | None],
        namespaces: Sequence[str] = (),
        optional: bool = False,
        page_size: int = 500,
        watch_s: float = WATCH_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._api = api
        self._plural = plural
        self._trim = trim
        self._optional = optional
        self._page_size = page_size
        self._watch_s = watch_s
        self._clock = clock
        self._sleep = sleep
        self._parts = [_Part(namespace) for namespace in namespaces or ("",)]
        self._objects: dict[Key, T] = {}
        self._seen: dict[Key, tuple[str, str]] = {}  # uid and resourceVersion
        self._subscribers: list[Callable[[Change[T]], None]] = []
        self._listed = asyncio.Event()
        self.objects: Mapping[Key, T] = MappingProxyType(self._objects)
        """The store itself, read-only: valid until the next await."""

    @property
    def plural(self) -> str:
        """What it follows, such as pods."""
        return self._plural

    @property
    def synced(self) -> bool:
        """Every part was listed at least once."""
        return self._listed.is_set()

    @property
    def problem(self) -> str:
        """What keeps the store from being current, as a sentence; "" while all is well."""
        return next((part.problem for part in self._parts if part.problem), "")

    def age_s(self) -> float:
        """Seconds since the stalest part last heard from the server; infinite before the first list."""
        return self._clock() - min(part.proof_at for part in self._parts)

    def subscribe(self, callback: Callable[[Change[T]], None]) -> None:
        """Call `callback` on each change, after the store has it."""
        self._subscribers.append(callback)

    async def wait_synced(self) -> None:
        """Return once `synced`."""
        await self._listed.wait()

    async def run(self) -> None:
        """Keep the store current until cancelled. Raises nothing else."""
        async with asyncio.TaskGroup() as tasks:
            for part in self._parts:
                tasks.create_task(self._follow(part), name=f"reflect {self._path(part)}")

    def _path(self, part: _Part) -> str:
        return f"{self._api}/namespaces/{part.namespace}/{self._plural}" if part.namespace else self._plural_path()

    def _plural_path(self) -> str:
        return f"{self._api}/{self._plural}"

    async def _follow(self, part: _Part) -> None:
        while True:
            try:
                if part.version is None:
                    await self._list(part)
                if part.version is not None:
                    await self._watch(part, part.version)
            except ApiError as error:
                # Without a connection, or told to wait, nothing says that our place in the history is lost.
                keep_place = error.status == 0 or isinstance(error, TooManyRequests)
                await self._recover(part, error, relist=not keep_place)
            except Exception as error:  # a fault of ours must not end the store of record
                log.exception("Reflector failed; it lists again", extra={"path": self._path(part)})
                await self._recover(part, error, relist=True)

    async def _recover(self, part: _Part, error: Exception, *, relist: bool) -> None:
        part.failures += 1
        if relist:
            part.version = None
        if isinstance(error, Gone) and part.failures == 1:
            return  # routine after a long silence: list again at once
        part.problem = f"{self._path(part)} cannot be followed: {error}"
        level = logging.WARNING if part.failures in (1, 5) else logging.DEBUG
        log.log(level, "Objects cannot be followed", extra={"path": self._path(part), "error": str(error)})
        wait_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(part.failures - 1, 10)) * random.uniform(0.5, 1.5)
        at_least_s = error.retry_after_s if isinstance(error, ApiError) else None
        await self._sleep(max(wait_s, at_least_s or 0.0))

    async def _list(self, part: _Part) -> None:
        try:
            found, version = await self._pages(part)
        except (NotFound, Forbidden) as error:
            if not self._optional:
                raise
            problem = "" if isinstance(error, NotFound) else f"{self._path(part)} cannot be read: {error}"
            self._replace(part, {})
            self._heard(part, problem)
            await self._sleep(OPTIONAL_RETRY_S)
            return
        self._replace(part, found)
        part.version = version
        self._heard(part)

    async def _pages(self, part: _Part) -> tuple[dict[Key, tuple[tuple[str, str], T]], str]:
        """All objects of a part, and the resource version that they are of."""
        path = self._path(part)
        found: dict[Key, tuple[tuple[str, str], T]] = {}
        params = {"limit": str(self._page_size)}
        while True:
            try:
                page = await self._client.get(path, params=params, timeout_s=LIST_TIMEOUT_S)
            except Gone:
                if "continue" not in params:
                    raise
                found, params = {}, {}  # the list took longer than the server keeps history: ask for it in one piece
                continue
            kind = str(page.get("kind", "")).removesuffix("List")
            for raw in page.get("items") or ():
                raw.setdefault("apiVersion", page.get("apiVersion"))
                raw.setdefault("kind", kind)
                key, seen = key_of(raw), _seen(raw)
                kept = self._objects.get(key) if self._seen.get(key) == seen else self._trimmed(key, raw)
                if kept is not None:
                    found[key] = (seen, kept)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return found, metadata["resourceVersion"]
            params = {**params, "continue": metadata["continue"]}

    async def _watch(self, part: _Part, version: str) -> None:
        """Apply events until the server ends the watch."""
        longest_s = min(self._watch_s, FIRST_WATCH_S) if part.failures else self._watch_s
        watch_s = longest_s * random.uniform(0.85, 1.0)
        params = {
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, math.floor(watch_s))),
        }
        begun_at, events = self._clock(), 0
        idle_s = watch_s + IDLE_GRACE_S
        async with aclosing(self._client.watch(self._path(part), params=params, idle_timeout_s=idle_s)) as stream:
            async for event in stream:
                events += 1
                self._apply(part, event)
                # Only a watch that lasts ends the back-off: a list that works before a watch that fails must not.
                if part.failures and self._clock() - begun_at > HEALTHY_WATCH_S:
                    self._recovered(part)
        if not events:
            if self._clock() - begun_at < SHORT_WATCH_S:
                raise Unavailable(0, "ShortWatch", "the API server ended the watch at once")
            await self._verify(part, version)
        self._recovered(part)

    async def _verify(self, part: _Part, version: str) -> None:
        """After a watch without even a bookmark, make sure that nothing is missed.

        A server that saw no event of this kind since it started sends no bookmarks. One restored from a backup waits
        for a place in the history that lies in its future: then only a list helps.
        """
        page = await self._client.get(self._path(part), params={"limit": "1"}, timeout_s=LIST_TIMEOUT_S)
        if int(page["metadata"]["resourceVersion"]) < int(version):
            part.version = None
        else:
            self._heard(part)

    def _apply(self, part: _Part, event: Mapping[str, Any]) -> None:
        kind, raw = event["type"], event["object"]
        if kind == "ERROR":
            raise error_from_status(raw)
        if kind in ("ADDED", "MODIFIED"):
            key = key_of(raw)
            self._put(key, _seen(raw), self._trimmed(key, raw))
        elif kind == "DELETED":
            self._put(key_of(raw), _seen(raw), None)
        elif kind != "BOOKMARK":
            log.warning("Unknown watch event", extra={"path": self._path(part), "type": kind})
            return
        part.version = raw["metadata"]["resourceVersion"]
        self._heard(part)

    def _heard(self, part: _Part, problem: str = "") -> None:
        part.proof_at = self._clock()
        part.problem = problem
        if all(other.proof_at > -math.inf for other in self._parts):
            self._listed.set()

    def _recovered(self, part: _Part) -> None:
        if part.failures:
            log.info("Objects are followed again", extra={"path": self._path(part), "failures": part.failures})
            part.failures = 0

    def _trimmed(self, key: Key, raw: dict[str, Any]) -> T | None:
        try:
            return self._trim(raw)
        except Exception:  # one odd object must not blind us to the others
            log.exception("Object ignored: it cannot be read", extra={"kind": raw.get("kind"), "key": "/".join(key)})
            return None

    def _replace(self, part: _Part, found: Mapping[Key, tuple[tuple[str, str], T]]) -> None:
        """Make the store hold exactly `found` for this part."""
        gone = [key for key in self._objects if key not in found and part.namespace in ("", key[0])]
        for key in gone:
            self._put(key, ("", ""), None)
        for key, (seen, obj) in found.items():
            if self._seen.get(key) != seen:
                self._put(key, seen, obj)

    def _put(self, key: Key, seen: tuple[str, str], new: T | None) -> None:
        old = self._objects.get(key)
        if new is not None and old is not None and self._seen[key][0] != seen[0]:
            self._put(key, seen, None)  # same name, another life: it went and came
            old = None
        if new is not None:
            self._objects[key] = new
            self._seen[key] = seen
        elif old is not None:
            del self._objects[key], self._seen[key]
        else:
            return
        change = Change(key, old, new)
        for callback in self._subscribers:
            try:
                callback(change)
            except Exception:  # a subscriber's fault is not the store's
                log.exception("Subscriber failed", extra={"path": self._plural_path(), "key": "/".join(key)})


def _seen(raw: Mapping[str, Any]) -> tuple[str, str]:
    metadata = raw["metadata"]
    return metadata["uid"], metadata["resourceVersion"]
