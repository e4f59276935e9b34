"""Stand-ins for tests of the kube room: time under control, an API in memory, an API server on loopback."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from bandkeeper.kube.client import Conflict, KubeClient, NotFound, Unavailable
from bandkeeper.kube.rate import TokenBucket

Raw = dict[str, Any]


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(50):
        await asyncio.sleep(0)


class FakeTime:
    """A monotonic clock (call it) and a sleep that only `advance` moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + max(0.0, seconds), next(self._order), waiter))
        await waiter

    async def advance(self, seconds: float) -> None:
        """Move on, waking each sleeper at its time."""
        end = self.now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, waiter = heapq.heappop(self._sleepers)
            self.now = max(self.now, at)
            if not waiter.done():
                waiter.set_result(None)
                await settle()
        self.now = end


class MemoryApi:
    """Objects by path, with resource versions. Each client of it can be cut off."""

    def __init__(self, time: FakeTime) -> None:
        self.time = time
        self.objects: dict[str, Raw] = {}
        self._versions = itertools.count(1)

    def client(self) -> MemoryClient:
        return MemoryClient(self)

    def store(self, path: str, obj: Mapping[str, Any]) -> Raw:
        metadata = {**obj["metadata"], "resourceVersion": str(next(self._versions))}
        self.objects[path] = json.loads(json.dumps({**obj, "metadata": metadata}))
        return self.read(path)

    def read(self, path: str) -> Raw:
        if path not in self.objects:
            raise NotFound(404, "NotFound", f"{path} not found")
        return cast(Raw, json.loads(json.dumps(self.objects[path])))


class MemoryClient:
    """The client's calls on a MemoryApi.

    `cut_off`: no call arrives, each ends after its timeout. `deaf`: calls arrive, but their answers do not.
    `slow_s`: how long answers take.
    `errors`: raised by the next calls, one each. `calls`: what arrived, as (method, path, body).
    """

    def __init__(self, api: MemoryApi) -> None:
        self._api = api
        self.cut_off = False
        self.deaf = False
        self.slow_s = 0.0
        self.errors: list[Exception] = []
        self.calls: list[tuple[str, str, Any]] = []
        self.timeouts: list[float] = []
        self.gate: asyncio.Event | None = None

    @property
    def as_client(self) -> KubeClient:
        return cast(KubeClient, self)

    async def get(self, path: str, *, timeout_s: float = 10, **_: Any) -> Raw:
        return await self._call("GET", path, None, timeout_s, lambda: self._api.read(path))

    async def post(
        self, path: str, body: Raw, *, params: Any = None, timeout_s: float = 10, urgent: bool = False
    ) -> Raw:
        full = f"{path}/{body['metadata']['name']}"

        def create() -> Raw:
            if full in self._api.objects:
                raise Conflict(409, "AlreadyExists", f"{full} already exists")
            return self._api.store(full, body)

        return await self._call("POST", path, body, timeout_s, create)

    async def put(
        self, path: str, body: Raw, *, params: Any = None, timeout_s: float = 10, urgent: bool = False
    ) -> Raw:
        def replace() -> Raw:
            if self._api.read(path)["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                raise Conflict(409, "Conflict", "the object has been modified")
            return self._api.store(path, body)

        return await self._call("PUT", path, body, timeout_s, replace)

    async def patch(self, path: str, body: Any, *, timeout_s: float = 10, **_: Any) -> Raw:
        return await self._call("PATCH", path, body, timeout_s, dict)

    async def _call(self, method: str, path: str, body: Any, timeout_s: float, act: Callable[[], Raw]) -> Raw:
        self.timeouts.append(timeout_s)
        if self.gate is not None:
            await self.gate.wait()
        if self.cut_off:
            await self._api.time.sleep(timeout_s)
            raise Unavailable(0, "Timeout", "no answer")
        await asyncio.sleep(0)
        self.calls.append((method, path, body))
        if self.errors:
            raise self.errors.pop(0)
        answer = act()
        if self.slow_s:
            await self._api.time.sleep(self.slow_s)
        if self.deaf:
            await self._api.time.sleep(timeout_s)
            raise Unavailable(0, "Timeout", "no answer")
        return answer


class StubServer:
    """An API server on loopback that holds one collection, with paged lists and watches, and misbehaves on request.

    Faults are answers for the next requests, one each: a number is an HTTP status, a callable writes the answer itself,
    None answers as usual.
    """

    def __init__(self, path: str = "/api/v1/pods", kind: str = "Pod") -> None:
        self.path = path
        self.kind = kind
        self.url = ""
        self.objects: dict[tuple[str, str], Raw] = {}
        self.version = 100
        self.history: list[tuple[int, Raw]] = []
        self.compacted = 0
        self.requests: list[dict[str, str]] = []
        self.list_faults: list[Any] = []
        self.watch_faults: list[Any] = []
        self.bookmarks = True
        self._changed = asyncio.Condition()
        self._cut = 0
        self.watching = 0

    @property
    def lists(self) -> int:
        return sum(1 for request in self.requests if "watch" not in request and request.get("limit") != "1")

    def add(self, name: str, *, namespace: str = "default", uid: str | None = None, **extra: Any) -> Raw:
        """Store without telling the watches: for what is there before, or happens while nobody watches."""
        self.version += 1
        metadata = {
            "namespace": namespace,
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(self.version),
        }
        obj = {"metadata": metadata, **extra}
        known = (namespace, name) in self.objects
        self.objects[namespace, name] = obj
        self.history.append((self.version, {"type": "MODIFIED" if known else "ADDED", "object": obj}))
        return obj

    def remove(self, name: str, *, namespace: str = "default") -> None:
        self.version += 1
        obj = self.objects.pop((namespace, name))
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self.history.append((self.version, {"type": "DELETED", "object": obj}))

    def compact(self) -> None:
        """Forget the history: a watch from before now gets 410 Gone."""
        self.compacted = self.version
        self.history.clear()

    async def tell(self) -> None:
        """Wake the watches."""
        async with self._changed:
            self._changed.notify_all()

    async def cut(self) -> None:
        """End all watches."""
        self._cut += 1
        await self.tell()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[KubeClient]:
        app = web.Application()
        app.router.add_get(self.path, self._get)
        prefix, _, plural = self.path.rpartition("/")
        app.router.add_get(f"{prefix}/namespaces/{{namespace}}/{plural}", self._get)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        client = client_of(self.url)
        try:
            yield client
        finally:
            await client.close()
            await runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(dict(request.query))
        watching = "watch" in request.query
        faults = self.watch_faults if watching else self.list_faults
        if faults:
            fault = faults.pop(0)
            if callable(fault):
                return cast(web.StreamResponse, await fault(request))
            if fault is not None:
                return web.json_response(status(fault), status=fault)
        return await (self._watch(request) if watching else self._list(request))

    async def _list(self, request: web.Request) -> web.Response:
        namespace = request.match_info.get("namespace", "")
        items = [obj for key, obj in sorted(self.objects.items()) if namespace in ("", key[0])]
        begin, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", len(items) or 1))
        metadata = {"resourceVersion": str(self.version)}
        if begin + limit < len(items):
            metadata["continue"] = str(begin + limit)
        page = {
            "kind": f"{self.kind}List",
            "apiVersion": "v1",
            "metadata": metadata,
            "items": items[begin : begin + limit],
        }
        return web.json_response(page)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        at, namespace = int(request.query["resourceVersion"]), request.match_info.get("namespace", "")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if at < self.compacted:
            await response.write(json.dumps({"type": "ERROR", "object": status(410)}).encode() + b"\n")
            return response
        cut, deadline = self._cut, asyncio.get_running_loop().time() + float(request.query["timeoutSeconds"])
        self.watching += 1
        try:
            while self._cut == cut:
                for version, event in [entry for entry in self.history if entry[0] > at]:
                    at = version
                    if namespace in ("", event["object"]["metadata"]["namespace"]):
                        named = {"kind": self.kind, "apiVersion": "v1", **event["object"]}  # in a list they are not
                        await response.write(json.dumps({**event, "object": named}).encode() + b"\n")
                try:
                    async with asyncio.timeout_at(deadline):
                        async with self._changed:
                            await self._changed.wait()
                except TimeoutError:
                    break
            else:
                return response
            if self.bookmarks:
                bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(max(at, self.version))}}}
                await response.write(json.dumps(bookmark).encode() + b"\n")
            return response
        finally:
            self.watching -= 1


def _compact(obj: Any) -> str:
    return json.dumps(obj, separators=(",", ":"))


def client_of(url: str, *, qps: float = 1000, burst: float = 1000) -> KubeClient:
    """A client of a server without TLS or credentials."""
    return KubeClient(ApiClient(Configuration(host=url)), bucket=TokenBucket(qps, burst))


def status(code: int, reason: str = "", message: str = "") -> Raw:
    """A Status object, as error answers and ERROR events carry."""
    reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 422: "Invalid"}
    reason = reason or reasons.get(code, "InternalError")
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message or f"said {code}"}


async def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """Wait in real time until `condition()` is true; returns its value."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return value
