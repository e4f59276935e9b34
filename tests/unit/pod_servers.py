"""Servers of pods in this process, each at a port of 127.0.0.1 of its own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from bandkeeper.actuate.adapter import Workload
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.kube.discovery import Resource

DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", namespaced=True, scalable=True)
Handler = Callable[[str, web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    """A request as a pod's server got it."""

    pod: str
    method: str
    path: str
    body: str
    headers: dict[str, str]


@dataclass
class PodServers:
    """By default /admin/batch takes {"max": N} as the cap, and tells it to a GET as {"limits": {"max": N}}.

    `odd` answers for the pods that it has.
    """

    context: ssl.SSLContext | None = None
    boots_with: int = 64
    caps: dict[str, int] = field(default_factory=dict)
    odd: dict[str, Handler] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _ports: dict[str, int] = field(default_factory=dict)
    _runners: list[web.AppRunner] = field(default_factory=list)

    async def start(self, *names: str) -> None:
        for name in names:
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", self._handler(name))
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.context)
            await site.start()
            self._ports[name] = runner.addresses[0][1]
            self._runners.append(runner)
            self.caps[name] = self.boots_with

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def address_of(self, pod: Pod) -> str:
        """Port 1 for pods that nobody listens for."""
        return f"127.0.0.1:{self._ports.get(pod.name, 1)}"

    def sent(self, method: str = "POST") -> list[tuple[str, str]]:
        """By pod, what was sent with a method."""
        return [(one.pod, one.body) for one in self.asked if one.method == method]

    def _handler(self, name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                body = await request.text()
                self.asked.append(Asked(name, request.method, request.path_qs, body, dict(request.headers)))
                await asyncio.sleep(0)
                if name in self.odd:
                    return await self.odd[name](name, request)
                return await self.serve(name, request)
            finally:
                self._at_once -= 1

        return handle

    async def serve(self, name: str, request: web.Request) -> web.StreamResponse:
        """As a server should."""
        if request.path != "/admin/batch":
            return web.json_response({"error": f"no route {request.path}"}, status=404)
        if request.method == "GET":
            return web.json_response({"limits": {"max": self.caps[name]}})
        wanted = (await request.json())["max"]
        if not 1 <= wanted <= self.boots_with:
            return web.json_response({"error": f"max must be at most {self.boots_with}"}, status=400)
        self.caps[name] = wanted
        return web.json_response({"ok": True})


def answers(*, status: int = 200, **options: Any) -> Handler:
    """Always the same answer."""

    async def answer(name: str, request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, **options)

    return answer


async def hangs(name: str, request: web.Request) -> web.StreamResponse:
    """Never an answer, while the test runs."""
    await asyncio.sleep(30.0)
    return web.Response()


def a_pod(name: str, cap: int | None = None, **more: Any) -> Pod:
    fields: dict[str, Any] = {"uid": f"uid-{name}", "capacity": 64, "address": "10.0.0.7", **more}
    return Pod(name=name, cap=cap, state=fields.pop("state", PodState.READY), **fields)


def a_workload(*pods: Pod) -> Workload:
    return Workload(namespace="serving", name="chat", resource=DEPLOYMENTS, uid="u", pods=pods)
