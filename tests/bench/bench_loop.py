"""CPU time of one look at each policy, by part: `make bench`, or `python tests/bench/bench_loop.py [POLICIES ...]`.

Prometheus and the API server are stubs in memory, so the figures are the operator's share without the collection
(`bench_collect.py`). The figures of the fleet move a little from tick to tick, as they do.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from prometheus_client import generate_latest

from bandkeeper.api.v1alpha1 import Status
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.events import EventRecorder
from bandkeeper.kube.status import StatusWriter
from bandkeeper.runtime import loop as runtime
from bandkeeper.runtime.announce import Announcer
from bandkeeper.runtime.loop import ControlLoop
from tests.unit.runtime_world import World

BUDGET_MS = 0.25
TICKS = 8
PODS_PER_POLICY = 4
PARTS: dict[str, tuple[Any, str]] = {
    "decide": (runtime, "decide"),
    "findings": (runtime, "findings"),
    "news": (runtime, "news_of"),
    "status": (runtime, "status_of"),
    "stored": (Status, "stored"),
    "measure": (Announcer, "measure"),
    "tell": (Announcer, "tell"),
    "submit": (StatusWriter, "submit"),
}


def timed(call: Callable[..., Any], spent_s: dict[str, float], name: str) -> Callable[..., Any]:
    def inner(*args: Any, **options: Any) -> Any:
        begun = time.process_time()
        try:
            return call(*args, **options)
        finally:
            spent_s[name] += time.process_time() - begun

    return inner


def milliseconds(call: Callable[[], Any]) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    call()
    return (time.process_time() - begun) * 1e3


class Swallow:
    """An API server that takes every status."""

    async def patch(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        return {}


async def rest(loop: ControlLoop) -> None:
    """Until every look and write has ended."""
    while tasks := [*loop._looking, *loop._acting]:
        await asyncio.wait(tasks)


async def measured(policies: int) -> None:
    """Print milliseconds per policy and tick."""
    world = World()
    client = cast(KubeClient, Swallow())
    statuses = StatusWriter(client, per_second=1e9, burst=1e9)
    loop = world.operator(statuses=statuses, events=EventRecorder(client, instance="bench"))
    noise = random.Random(1)
    world.metrics.jitter = lambda: noise.uniform(0.97, 1.03)
    for number in range(policies):
        name = f"p{number}"
        world.deploy(name, replicas=PODS_PER_POLICY)
        world.apply(
            name,
            slos=[
                {"signal": "TimeToFirstToken", "threshold": "500ms"},
                {"signal": "InterTokenLatency", "threshold": "50ms"},
            ],
        )
    writer = asyncio.create_task(statuses.run())
    for _ in range(3):  # the first ones read, write and learn what later ones do not
        world.now += 15.0
        loop.tick(full=True)
        await rest(loop)
        await asyncio.sleep(0.2)
    writer.cancel()  # its own work is bounded for all policies together
    await asyncio.gather(writer, return_exceptions=True)
    gc.collect()
    gc.freeze()

    asked = [want for tracked in loop._tracked.values() if (want := loop._want(tracked)) is not None]
    begun = time.process_time()
    for _ in range(TICKS):
        for want in asked:
            world.metrics.observations(want)
    stub_s = (time.process_time() - begun) / TICKS

    spent_s = dict.fromkeys(PARTS, 0.0)
    total_s = 0.0
    patches = [
        patch.object(place, name, timed(getattr(place, name), spent_s, part)) for part, (place, name) in PARTS.items()
    ]
    for one in patches:
        one.start()
    for _ in range(TICKS):
        world.now += 15.0
        begun = time.process_time()
        loop.tick(full=True)
        await rest(loop)
        total_s += time.process_time() - begun
    for one in patches:
        one.stop()
    each_ms = 1e3 / TICKS / policies
    parts = ", ".join(f"{part} {seconds * each_ms:.3f}" for part, seconds in spent_s.items())
    whole_ms = total_s * each_ms - stub_s * 1e3 / policies
    print(f"  {policies:5d} policies: {whole_ms:.3f} ms each, of which {parts}")
    wakes_ms = milliseconds(lambda: loop.tick(full=False))
    page_ms = milliseconds(lambda: generate_latest(world.own.registry))
    print(f"                 a wake-up for nothing {wakes_ms:.2f} ms, a scrape of /metrics {page_ms:.0f} ms")
    await loop._stop()
    gc.unfreeze()


def main() -> None:
    logging.disable(logging.CRITICAL)
    print(f"one look, CPU, mean of {TICKS} ticks, {PODS_PER_POLICY} pods each (budget {BUDGET_MS} ms)")
    for policies in [int(argument) for argument in sys.argv[1:]] or (100, 1000):
        asyncio.run(measured(policies))


if __name__ == "__main__":
    main()
