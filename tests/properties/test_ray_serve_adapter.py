"""Wanted caps with failures between them: each sequence ends with the wanted cap in force or, where the application
cannot run with it, with one that it runs with.

Requests are refused, or cut off after they took effect; applications break long after a cap was put; others deploy
meanwhile, which no write of ours undoes; the operator restarts and forgets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from bandkeeper.actuate import ray_serve
from bandkeeper.actuate.errors import PodError
from bandkeeper.actuate.pod_http import Answer, PodDoor, PodSession
from bandkeeper.actuate.ray_serve import RayServe
from bandkeeper.actuate.serve_config import CapPlace
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.kube.client import KubeClient
from tests.unit.pod_servers import a_workload

PLACE = CapPlace(application="embed", deployment="Embedder", key="cap")
MOST = 64  # with a larger cap the application breaks
TICK_S, ASK_S = 15.0, 0.5
ROUNDS, MOST_LOOKS = 120, 20

faults = st.sampled_from(["", "", "", "", "refused", "cut off"])
steps = st.tuples(
    st.sampled_from([8, 32, 64, 128, 256]),  # the cap that is wanted now
    st.lists(faults, max_size=14),  # of the requests of this tick
    st.integers(0, MOST_LOOKS),  # looks until a config that is put now is in force
    st.integers(0, 14),  # at which reading of this tick others have deployed
    st.sampled_from([False] * 5 + [True]),  # the operator restarts
)
Step = tuple[int, list[str], int, int, bool]


@dataclass
class World:
    """One Ray dashboard, a clock, and the door to it. Where pods are `probed`, they are ready while it runs."""

    probed: bool
    cap: int = 16
    version: int = 0  # of another application
    in_force: int = 16
    status: str = "RUNNING"
    looks: int = 0
    pending: int = 0
    now_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    others: int = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PodSession]:
        yield cast(PodSession, self)

    def url(self, pod: Pod, path: str) -> Any:
        raise PodError("one for all: what is said of it does not matter here")

    async def ask(self, pod: Pod, method: str, path: str, *, timeout_s: float, body: str | None = None) -> Answer:
        self.now_s += ASK_S
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "refused":
            raise PodError("not now", status=503)
        answer = self.told() if body is None else self.put(json.loads(body))
        if fault == "cut off":
            raise PodError("cut off")
        return Answer(status=200, body=answer)

    def put(self, config: dict[str, Any]) -> bytes:
        embed, other = config["applications"]
        assert other["args"] == {"version": self.version}
        self.cap = embed["deployments"][0]["user_config"]["cap"]
        self.status, self.pending = "DEPLOYING", self.looks
        return b""

    def passes(self) -> None:
        self.pending -= 1
        if self.status == "DEPLOYING" and self.pending <= 0:
            self.in_force = self.cap
            self.status = "RUNNING" if self.cap <= MOST else "DEPLOY_FAILED"

    def told(self) -> bytes:
        self.others -= 1
        self.version += self.others == 0
        self.passes()
        state = {"RUNNING": "HEALTHY", "DEPLOYING": "UPDATING"}.get(self.status, self.status)

        def deployment(cap: int) -> dict[str, Any]:
            return {"name": "Embedder", "user_config": {"cap": cap}}

        embed = {
            "status": self.status,
            "deployed_app_config": {"name": "embed", "deployments": [deployment(self.cap)]},
            "deployments": {"Embedder": {"status": state, "deployment_config": deployment(self.in_force)}},
        }
        other = {"status": "RUNNING", "deployed_app_config": {"name": "other", "args": {"version": self.version}}}
        return json.dumps({"applications": {"embed": embed, "other": other}}).encode()

    def adapter(self) -> RayServe:
        return RayServe(cast(KubeClient, None), PLACE, cast(PodDoor, self), clock=lambda: self.now_s)

    async def tick(self, adapter: RayServe, cap: int) -> bool:
        """Read back, write where it differs; True where nothing did."""
        self.now_s += TICK_S
        self.passes()
        ready = self.status == "RUNNING" or not self.probed
        pod = Pod(name="a", uid="a", state=PodState.READY if ready else PodState.PENDING)
        workload = a_workload(pod)
        reading = await adapter.read_back(workload, deadline=self.now_s + 10.0)
        seen = replace(workload, pods=(replace(pod, cap=reading.caps.get("a")),))
        if adapter.settled(seen, cap):
            return True
        await adapter.apply(seen, cap, deadline=self.now_s + 10.0)
        return False


@settings(max_examples=200)
@given(story=st.lists(steps, min_size=1, max_size=15), probed=st.booleans())
def test_the_application_ends_running_with_the_wanted_cap_or_with_the_one_before(
    story: list[Step], probed: bool
) -> None:
    world = World(probed)
    wanted = story[-1][0]

    async def run() -> None:
        adapter = world.adapter()
        for cap, broken, looks, others, restarts in story:
            world.faults, world.looks, world.others = list(broken), looks, others
            if restarts:
                adapter = world.adapter()
            await world.tick(adapter, cap)
        world.faults = []
        for _ in range(ROUNDS):
            await world.tick(adapter, wanted)
        for _ in range(MOST_LOOKS):
            world.passes()

    with patch.object(ray_serve, "LOOK_EVERY_S", 0.0):
        asyncio.run(run())
    if world.status == "DEPLOY_FAILED":
        assert any(restarts for *_, restarts in story)  # nobody knows the cap before; a person is told
        assert wanted > MOST or probed  # pods that are not ready are not written to
        return
    assert (world.status, world.in_force) == ("RUNNING", world.cap)
    assert world.cap == wanted if wanted <= MOST else world.cap <= MOST
