"""200 sequences of wanted caps with failures between them: each ends with every pod's model as wanted.

Loads are refused, cut off before and after they took effect, or take effect long after nobody listens any more; servers
restart with what is on disk; the operator restarts and forgets. No model is ever given more than its server booted for,
and nothing of a configuration but its batching changes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from bandkeeper.actuate.adapter import Means, Workload
from bandkeeper.actuate.errors import PodError
from bandkeeper.actuate.pod_http import Answer, PodDoor, PodSession
from bandkeeper.actuate.triton import LOAD_MOST_S, Triton
from bandkeeper.api.snapshot import Pod
from bandkeeper.api.v1alpha1 import TritonAdapter
from bandkeeper.kube.client import KubeClient
from tests.unit.pod_servers import a_workload

PODS = 3
TICK_S = 15.0
LATE_TICKS = 3
PREFERRED = [2, 8]

faults = st.sampled_from(["", "", "", "refused", "cut off", "cut off after", "late"])
steps = st.tuples(
    st.sampled_from([1, 2, 4, 8, 16, 32]),  # the cap that is wanted now
    st.lists(faults, min_size=PODS, max_size=PODS),
    st.sampled_from([None, None, None, 0, 1, 2, "operator"]),  # who restarts
)


def on_disk() -> dict[str, Any]:
    batching = {"preferred_batch_size": PREFERRED, "max_queue_delay_microseconds": 100, "preserve_ordering": True}
    return {"name": "rows", "input": [{"name": "ROWS"}], "max_batch_size": 8, "dynamic_batching": batching}


@dataclass
class Server:
    """One pod's Triton, with loads that are under way by the tick in which they take effect."""

    capacity: int
    config: dict[str, Any] = field(default_factory=on_disk)
    restarts: int = 0
    fault: str = ""
    late: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


@dataclass
class World:
    """Servers, a clock, and the door to them."""

    servers: dict[str, Server]
    tick: int = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PodSession]:
        yield cast(PodSession, self)

    async def ask(self, pod: Pod, method: str, path: str, *, timeout_s: float, body: str | None = None) -> Answer:
        server = self.servers[pod.name]
        if body is None:
            return Answer(status=200, body=json.dumps(server.config).encode())
        config = json.loads(json.loads(body)["parameters"]["config"])
        assert config["max_batch_size"] <= server.capacity
        assert all(size <= config["max_batch_size"] for size in config["dynamic_batching"]["preferred_batch_size"])
        fault, server.fault = server.fault, ""
        if fault == "refused":
            raise PodError("no", status=400, said="no memory")
        if fault == "late":
            server.late.append((self.tick + LATE_TICKS, config))
            raise PodError("no answer") from TimeoutError()
        if fault != "cut off":
            server.config = config
        if fault.startswith("cut off"):
            raise PodError("cut off") from ConnectionResetError()
        return Answer(status=200, body=b"")

    def passes(self) -> None:
        self.tick += 1
        for server in self.servers.values():
            for due, config in list(server.late):
                if due <= self.tick:
                    server.config = config
                    server.late.remove((due, config))

    def adapter(self, delay: str | None) -> Triton:
        means = Means(client=cast(KubeClient, None), clock=lambda: self.tick * TICK_S)
        return Triton(TritonAdapter(model="rows", max_queue_delay=delay), cast(PodDoor, self), means)

    def workload(self) -> Workload:
        pods = (
            Pod(name=name, uid=name, capacity=server.capacity, restarts=server.restarts)
            for name, server in self.servers.items()
        )
        return a_workload(*pods)


async def looks(world: World, adapter: Triton, cap: int) -> bool:
    """One tick: read back, write where it differs; True where nothing did."""
    world.passes()
    deadline = world.tick * TICK_S + 10
    workload = world.workload()
    reading = await adapter.read_back(workload, deadline=deadline)
    seen = replace(workload, pods=tuple(replace(pod, cap=reading.caps.get(pod.name)) for pod in workload.pods))
    if adapter.settled(seen, cap):
        return True
    await adapter.apply(seen, cap, deadline=deadline)
    return False


@settings(max_examples=200)
@given(
    story=st.lists(steps, min_size=1, max_size=15),
    capacities=st.lists(st.sampled_from([8, 16, 64]), min_size=PODS, max_size=PODS),
    delay=st.sampled_from([None, "2ms"]),
)
def test_every_model_ends_as_wanted_and_none_above_its_capacity(
    story: list[tuple[int, list[str], int | str | None]], capacities: list[int], delay: str | None
) -> None:
    world = World({f"p{number}": Server(capacity) for number, capacity in enumerate(capacities)})

    async def run() -> None:
        adapter = world.adapter(delay)
        for cap, broken, restarted in story:
            for server, fault in zip(world.servers.values(), broken, strict=True):
                server.fault = fault
            if restarted == "operator":
                adapter = world.adapter(delay)
            elif restarted is not None:
                server = world.servers[f"p{restarted}"]
                server.config, server.late, server.restarts = on_disk(), [], server.restarts + 1
            await looks(world, adapter, cap)
        for server in world.servers.values():
            server.fault = ""
        wanted, rounds = story[-1][0], round(LOAD_MOST_S / TICK_S) + LATE_TICKS + 2
        assert [await looks(world, adapter, wanted) for _ in range(rounds)][-1]
        for server in world.servers.values():
            batching = server.config["dynamic_batching"]
            assert server.config["max_batch_size"] == min(wanted, server.capacity)
            assert batching["max_queue_delay_microseconds"] == (100 if delay is None else 2000)
            assert server.config | {"max_batch_size": 8, "dynamic_batching": None} == on_disk() | {
                "dynamic_batching": None
            }
            assert batching["preserve_ordering"] is True

    asyncio.run(run())
