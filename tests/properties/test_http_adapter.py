"""200 sequences of changes with failures between them, against a real HTTP server: each ends with every pod as wanted.

The servers time out, fail before and after they took the cap, break connections off; pods die, restart and are
replaced; the operator dies between two writes and forgets what it knew. No server is ever told more than it booted
with.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bandkeeper.actuate.adapter import Means
from bandkeeper.actuate.http import HTTP
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter
from bandkeeper.kube.client import KubeClient
from bandkeeper.runtime.readings import Readings
from tests.unit.pod_servers import a_workload

CAPS = (1, 4, 8, 16, 32, 64)
PODS = 4
ENOUGH = 6  # rounds in which everything works, until all are as wanted
TIMEOUT_S = 0.02

FAULTS = ("500", "500 after", "a web page", "cut off", "cut off after", "silence after")
UNHEARD = tuple(fault for fault in FAULTS if "after" in fault)  # it took the cap, and nobody learns of it
slots = st.integers(0, PODS - 1)


@dataclass
class Server:
    """A pod and the server in it."""

    uid: str
    capacity: int
    cap: int
    restarts: int = 0
    ready: bool = True
    faults: list[str] = field(default_factory=list)


class Fleet:
    """All pods' servers behind one port: the path says which one is meant, and in which run of the machine."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.servers: dict[str, Server] = {}
        self.above: list[str] = []
        self.run = 0
        self.port = self.loop.run_until_complete(self._start())

    async def _start(self) -> int:
        application = web.Application()
        application.router.add_route("*", "/{run}/{pod}", self._handle)
        runner = web.AppRunner(application, shutdown_timeout=0.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        return port

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["run"] != f"run-{self.run}":
            return web.Response(status=410)  # sent by an operator that died in an earlier run
        server = self.servers[request.match_info["pod"]]
        fault = server.faults.pop() if server.faults else ""
        if request.method == "POST":
            wanted = (await request.json())["max"]
            if wanted > server.capacity:
                self.above.append(f"{request.path}: {wanted} > {server.capacity}")
            if "after" in fault or not fault:
                server.cap = wanted
        if "500" in fault:
            return web.Response(status=500)
        if "page" in fault:
            return web.Response(text="<html>", content_type="text/html")
        if "cut" in fault and request.transport is not None:
            request.transport.abort()
        if "silence" in fault:
            await asyncio.sleep(2 * TIMEOUT_S)
        return web.json_response({"max": server.cap})


FLEET = Fleet()


class Changes(RuleBasedStateMachine):
    """What happens to a workload, its servers and the operator, in any order."""

    reads_back = True

    @initialize(capacities=st.lists(st.sampled_from((16, 64)), min_size=PODS, max_size=PODS))
    def begin(self, capacities: list[int]) -> None:
        self.now_s, self.born, self.wanted = 1000.0, 0, 16
        FLEET.run += 1
        FLEET.above.clear()
        FLEET.servers = {
            f"chat-{number}": Server(f"uid-{number}", capacity, capacity) for number, capacity in enumerate(capacities)
        }
        self.operator_restarts()

    @rule()
    def operator_restarts(self) -> None:
        back = {"readBack": {"path": "/{namespace}/{pod}", "pointer": "/max"}} if self.reads_back else {}
        request = {"port": 1, "path": "/{namespace}/{pod}", "body": '{"max": {cap}}', **back}
        self.adapter = HTTP.of(
            Adapter.model_validate_json(json.dumps({"type": "HTTP", "http": request})),
            Means(
                client=cast(KubeClient, None),
                namespace=f"run-{FLEET.run}",
                clock=lambda: self.now_s,
                address_of=lambda pod: f"127.0.0.1:{FLEET.port}",
            ),
        )
        self.adapter._timeout_s = TIMEOUT_S
        self.readings = Readings()

    @rule(cap=st.sampled_from(CAPS), ticks=st.integers(0, 2))
    def another_cap_is_wanted(self, cap: int, ticks: int) -> None:
        self.wanted = cap
        for _ in range(ticks):
            self.tick()

    @rule(slot=slots, faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=3))
    def a_server_will_fail(self, slot: int, faults: list[str]) -> None:
        self.server(slot).faults = faults

    @rule(slot=slots, cap=st.sampled_from(CAPS), fault=st.sampled_from(UNHEARD))
    def a_change_of_mind_after_an_answer_is_lost(self, slot: int, cap: int, fault: str) -> None:
        before = self.wanted
        self.server(slot).faults = [fault]
        self.wanted = cap
        self.tick()
        self.wanted = before
        self.tick()

    @rule(slot=slots)
    def a_server_restarts(self, slot: int) -> None:
        server = self.server(slot)
        server.restarts, server.cap = server.restarts + 1, server.capacity

    @rule(slot=slots, capacity=st.sampled_from((8, 16, 64)))
    def a_pod_is_replaced(self, slot: int, capacity: int) -> None:
        self.born += 1
        FLEET.servers[f"chat-{slot}"] = Server(f"uid-new-{self.born}", capacity, capacity)

    @rule(slot=slots, ready=st.booleans())
    def readiness_changes(self, slot: int, ready: bool) -> None:
        self.server(slot).ready = ready

    @precondition(lambda self: self.reads_back)
    @rule(slot=slots, cap=st.sampled_from(CAPS))
    def somebody_sets_a_cap(self, slot: int, cap: int) -> None:
        self.server(slot).cap = min(cap, self.server(slot).capacity)

    @rule()
    def tick(self) -> None:
        FLEET.loop.run_until_complete(self.step())

    @rule(turns=st.integers(0, 12))
    def operator_dies_between_writes(self, turns: int) -> None:
        async def cut_short() -> None:
            step = asyncio.create_task(self.step())
            for _ in range(turns):
                await asyncio.sleep(0)
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)

        FLEET.loop.run_until_complete(cut_short())
        self.operator_restarts()

    @invariant()
    def no_server_was_told_more_than_it_booted_with(self) -> None:
        assert FLEET.above == []

    def teardown(self) -> None:
        """From here on everything works."""
        if not hasattr(self, "adapter"):
            return
        self.adapter._timeout_s = 5.0
        for server in FLEET.servers.values():
            server.ready, server.faults = True, []
        for _ in range(ENOUGH):
            self.tick()
        assert {name: one.cap for name, one in FLEET.servers.items()} == {
            name: min(self.wanted, one.capacity) for name, one in FLEET.servers.items()
        }
        assert FLEET.above == []
        assert self.adapter.settled(a_workload(*self.pods()), self.wanted)

    # What the runtime does in one tick.

    async def step(self) -> None:
        self.now_s += 15.0
        await self.read()
        before = a_workload(*self.pods())
        if not self.adapter.settled(before, self.wanted):
            await self.adapter.apply(before, self.wanted, deadline=self.now_s + 9.0)
            self.readings.written = True
            await self.read()

    async def read(self) -> None:
        pods = self.pods()
        if self.readings.is_due(pods, self.now_s):
            self.readings.asked(pods, self.now_s)
            reading = await self.adapter.read_back(a_workload(*pods), deadline=self.now_s + 9.0)
            self.readings.took(reading, pods, self.now_s, self.wanted)

    def pods(self) -> tuple[Pod, ...]:
        raw = [
            Pod(
                name=name,
                uid=one.uid,
                restarts=one.restarts,
                capacity=one.capacity,
                address="10.0.0.7",
                state=PodState.READY if one.ready else PodState.PENDING,
            )
            for name, one in FLEET.servers.items()
        ]
        return self.readings.onto(raw, self.now_s)

    def server(self, slot: int) -> Server:
        return FLEET.servers[f"chat-{slot}"]


class WriteOnly(Changes):
    """The same where servers cannot be asked: what was written is all that is known."""

    reads_back = False


_RUN = settings(max_examples=200, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestChanges: Callable[..., Any] = Changes.TestCase
TestChanges.settings = _RUN  # type: ignore[attr-defined]
TestWriteOnly: Callable[..., Any] = WriteOnly.TestCase
TestWriteOnly.settings = _RUN  # type: ignore[attr-defined]
