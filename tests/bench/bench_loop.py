"""CPU time of one whole tick per policy, by part: `make bench`, or `python tests/bench/bench_loop.py [POLICIES ...]`.

Everything but the network: Prometheus' answers lie in memory as the bytes that it would send, and the API server takes
every status. The figures of the fleet move a little from tick to tick, as they do; nothing is to be scaled.
`bench_collect.py` has the HTTP client in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import random
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
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
from bandkeeper.signals import answer, collector, plan, servers
from bandkeeper.signals.answer import Answer
from bandkeeper.signals.collector import Collector, CollectorSettings
from bandkeeper.signals.prometheus import PrometheusServer
from tests.unit.runtime_world import NAMESPACE, World

BUDGET_MS = 0.25
TICKS = 12
PERIOD_S = 15.0
PODS_PER_POLICY = 4
VARIANTS = 3  # of each answer
NOW_S = 1_700_000_000.123
SLOS = [
    {"signal": "TimeToFirstToken", "threshold": "500ms"},
    {"signal": "InterTokenLatency", "threshold": "50ms"},
]
EDGES = ("0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf")
LEVELS = {  # of a pod that is inside the band, where nothing waits: what a query's text has in it, and the value
    "num_requests_running": 30.0,
    "num_requests_waiting": 0.0,
    "admission_rejections": 0.0,
    "num_preemptions": 0.0,
    'finished_reason="error"': 0.0,
    "request_success": 3.7,
    "prompt_tokens": 1850.0,
    "generation_tokens": 740.0,
}
TOKEN_S = 0.04  # the mean of each histogram: 30 in process make 740 tokens per second
LATE = 0.01  # of the requests, and of the tokens


class Memory:
    """Prometheus' answers as bytes, by query and variant."""

    def __init__(self, workloads: list[str]) -> None:
        self._workloads = workloads
        self._noise = random.Random(1)
        self._known: dict[tuple[str, int], bytes] = {}
        self.variant = 0

    def body(self, query: str) -> bytes:
        """Made on first use."""
        key = (query, self.variant % VARIANTS)
        if key not in self._known:
            edges = re.search(r'le=~"([^"]*)"', query)
            if edges:
                series = self._rows([*edges.group(1).replace("[", "").replace("]", "").split("|"), "sum"])
            elif query.startswith("count by"):
                series = ((labels, PODS_PER_POLICY) for labels, _ in self._rows(EDGES))
            else:
                series = self._pods(query)
            result = [{"metric": labels, "value": [NOW_S, str(value)]} for labels, value in series]
            document = {"status": "success", "data": {"resultType": "vector", "result": result}}
            self._known[key] = json.dumps(document, separators=(",", ":")).encode()
        return self._known[key]

    def _rows(self, edges: Iterable[str]) -> Iterator[tuple[dict[str, str], float]]:
        for workload in self._workloads:
            seen = 1000.0 * self._noise.uniform(0.97, 1.03)
            for edge in edges:
                count = TOKEN_S * seen if edge == "sum" else seen if float(edge) >= 0.1 else (1 - LATE) * seen
                yield {"namespace": NAMESPACE, "bandkeeper_row": f"ordinal/{workload}", "le": edge}, count

    def _pods(self, query: str) -> Iterator[tuple[dict[str, str], float]]:
        level = next((value for part, value in LEVELS.items() if part in query), 0.3)
        for workload in self._workloads:
            for number in range(PODS_PER_POLICY):
                value = NOW_S - 3 if "timestamp(" in query else level * self._noise.uniform(0.97, 1.03)
                yield {"namespace": NAMESPACE, "pod": f"{workload}-{number}"}, value


class Reader:
    """Stands in for a PrometheusReader: does what that does after the network."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def read(self, promql: str, take: Callable[[Answer], Any]) -> Any:
        body = self._memory.body(promql)
        await asyncio.sleep(0)
        return self.made(body, take)

    def made(self, body: bytes, take: Callable[[Answer], Any]) -> Any:
        return take(answer.parse(body))

    async def read_aside(self, promql: str, take: Callable[[Answer], Any]) -> Any:
        """In a thread, as the real one does."""
        return await asyncio.to_thread(self.made, self._memory.body(promql), take)

    def close(self) -> None: ...


class Swallow:
    """An API server that takes every status."""

    async def patch(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        return {}


PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "plan": ((plan, "shards"), (plan, "cohorts")),
    "read": ((Reader, "made"),),
    "observe": ((collector._Run, "_filling"),),
    "decide": ((runtime, "decide"),),
    "findings": ((runtime, "findings"), (runtime, "news_of")),
    "status": ((runtime, "status_of"), (Status, "stored"), (StatusWriter, "submit"), (Announcer, "tell")),
    "metrics": ((Announcer, "measure"),),
}


class Collections:
    """CPU time of the garbage collector, and how often it looked at everything."""

    def __init__(self) -> None:
        self.spent_s = self._begun = 0.0
        self.full = 0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._begun = time.process_time()
        else:
            self.spent_s += time.process_time() - self._begun
            self.full += info["generation"] == 2


def timed(call: Callable[..., Any], spent_s: dict[str, float], part: str) -> Callable[..., Any]:
    """The call, or the one that it makes, with its time added to its part."""

    def inner(*args: Any, **options: Any) -> Any:
        begun = time.process_time()
        made = call(*args, **options)
        spent_s[part] += time.process_time() - begun
        return timed(made, spent_s, part) if callable(made) else made

    return inner


async def ticks(world: World, loop: ControlLoop, memory: Memory, spent_s: dict[str, float]) -> list[dict[str, float]]:
    """CPU seconds of some ticks: of all of it, and of the parts that add theirs to `spent_s`."""
    figures = []
    for _ in range(TICKS):
        world.now += PERIOD_S
        memory.variant += 1
        spent_s.clear()
        begun = time.process_time()
        loop.tick(full=True)
        while tasks := [*loop._looking, *loop._acting]:
            await asyncio.wait(tasks)
        figures.append({**spent_s, "whole": time.process_time() - begun})
    return figures


class Turns:
    """The longest turn of the event loop's thread, in seconds of its CPU: so long everything else waits."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._run = asyncio.Handle._run

    def timed(self) -> Callable[[asyncio.Handle], None]:
        def run(handle: asyncio.Handle) -> None:
            begun = time.thread_time()
            self._run(handle)
            self.longest_s = max(self.longest_s, time.thread_time() - begun)

        return run


async def measured(policies: int) -> dict[str, float]:
    """Milliseconds per policy and tick."""
    world = World()
    client = cast(KubeClient, Swallow())
    statuses = StatusWriter(client, per_second=1e9, burst=1e9)
    names = [f"p{number}" for number in range(policies)]
    memory = Memory(names)
    settings = CollectorSettings(servers=(PrometheusServer(name="default", url="http://127.0.0.1:9090"),))
    world.metrics.collector = lambda: Collector(settings)  # type: ignore[method-assign]
    loop = world.operator(statuses=statuses, events=EventRecorder(client, instance="bench"))
    for name in names:
        world.deploy(name, replicas=PODS_PER_POLICY)
        world.apply(name, slos=SLOS)
    with patch.object(servers, "PrometheusReader", lambda server, **_: Reader(memory)):
        gc.collect()
        gc.freeze()  # as the loop does
        gc.set_threshold(*runtime.GC_AFTER)
        writer = asyncio.create_task(statuses.run())
        await ticks(world, loop, memory, {})  # reads, writes, learns and waits for what later ones do not
        writer.cancel()  # its own work is bounded for all policies together
        await asyncio.gather(writer, return_exceptions=True)
        for tracked in loop._tracked.values():
            assert tracked.snapshot is not None
            assert not tracked.snapshot.gaps
            assert tracked.decision is not None
            assert tracked.decision.replicas == PODS_PER_POLICY
        collections = Collections()
        gc.callbacks.append(collections)
        whole = await ticks(world, loop, memory, {})
        gc.callbacks.remove(collections)
        spent_s: dict[str, float] = defaultdict(float)
        with contextlib.ExitStack() as patches:
            for part, places in PARTS.items():
                for place, name in places:
                    patches.enter_context(patch.object(place, name, timed(getattr(place, name), spent_s, part)))
            parts = await ticks(world, loop, memory, spent_s)
        turns = Turns()
        with patch.object(asyncio.Handle, "_run", turns.timed()), patch.object(Reader, "read", Reader.read_aside):
            await ticks(world, loop, memory, {})
    await loop._stop()
    gc.unfreeze()
    each_ms = 1e3 / policies
    found = {part: each_ms * statistics.mean(tick.get(part, 0.0) for tick in parts) for part in PARTS}
    found["whole"] = each_ms * statistics.mean(tick["whole"] for tick in whole)
    found["rest"] = each_ms * statistics.mean(tick["whole"] for tick in parts) - sum(found[part] for part in PARTS)
    found["gc"] = each_ms * collections.spent_s / TICKS
    found["hold-up"] = 1e3 * turns.longest_s
    found["wake-up"] = cpu_ms(lambda: loop.tick(full=False))
    found["/metrics"] = cpu_ms(lambda: generate_latest(world.own.registry))
    return found


def cpu_ms(call: Callable[[], Any]) -> float:
    """CPU milliseconds of one call."""
    begun = time.process_time()
    call()
    return (time.process_time() - begun) * 1e3


def main() -> None:
    logging.disable(logging.CRITICAL)
    print(
        f"CPU ms per policy and tick: {TICKS} ticks of {PERIOD_S:g} s, {PODS_PER_POLICY} pods each; budget {BUDGET_MS}"
    )
    columns = ("whole", *PARTS, "rest", "gc", "hold-up", "wake-up", "/metrics")
    print(f"{'policies':>8}" + "".join(f"{column:>10}" for column in columns))
    for policies in [int(argument) for argument in sys.argv[1:]] or (100, 1000):
        found = asyncio.run(measured(policies))
        print(f"{policies:>8}" + "".join(f"{found[column]:>10.3f}" for column in columns))
    print("gc is a share of whole; for all policies together, in ms: hold-up, the longest turn of the event loop;")
    print("wake-up, for nothing; /metrics, a scrape, which a thread answers")


if __name__ == "__main__":
    main()
