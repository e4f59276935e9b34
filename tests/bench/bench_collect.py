"""What one collection costs the operator: time, CPU and the longest hold-up of the event loop, by number of policies.

`make bench`, or `python tests/bench/bench_collect.py [POLICIES ...]`. The Prometheus is a stub in a process of its own
that answers from memory, so the figures are the operator's share alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from urllib.parse import parse_qs

from bandkeeper.api.signals import LATENCY_SIGNALS, Signal
from bandkeeper.signals.collector import GPU_EVERY_S, Collector, CollectorSettings
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.prometheus import PrometheusServer
from bandkeeper.signals.want import LatencyWant, Want

PODS_PER_POLICY = 4
TICKS = 5
EDGES = ("0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf")


def namespace_of(workload: str) -> str:
    return f"team-{int(workload[1:]) // 20}"


def pods_of(workload: str) -> tuple[str, ...]:
    return tuple(f"{workload}-7d9f8b6c5-x2k4{letter}" for letter in "bcdf"[:PODS_PER_POLICY])


def answer(query: str, workloads: list[str]) -> bytes:
    """What Prometheus would say, all values plausible."""
    now_s = round(time.time(), 3)
    wanted = re.search(r'le=~"([^"]*)"', query)
    named = re.search(r'namespace=~"([^"]*)"', query)
    namespaces = set(named.group(1).split("|")) if named else set()
    workloads = [workload for workload in workloads if namespace_of(workload) in namespaces]
    if query.startswith("count by") or wanted:
        edges = wanted.group(1).replace("[", "").replace("]", "").split("|") if wanted else list(EDGES)
        rows = [
            {"namespace": namespace_of(workload), "bandkeeper_row": f"hash/{workload}", "le": edge}
            for workload in workloads
            for edge in [*edges, *(["sum"] if wanted else [])]
        ]
        value = "4"
    else:
        rows = [
            {"namespace": namespace_of(workload), "pod": pod} for workload in workloads for pod in pods_of(workload)
        ]
        value = f"{now_s - 3}" if "timestamp(" in query else "0.73"
    result = [{"metric": row, "value": [now_s, value]} for row in rows]
    return json.dumps(
        {"status": "success", "data": {"resultType": "vector", "result": result}}, separators=(",", ":")
    ).encode()


def serve(pipe: Connection, workloads: list[str]) -> None:
    known: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            query = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["query"][0]
            if "timestamp(" in query or query not in known:
                known[query] = answer(query, workloads)
            self.send_response(200)
            self.send_header("Content-Length", str(len(known[query])))
            self.end_headers()
            self.wfile.write(known[query])

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


async def longest_hold_up_s(done: asyncio.Event) -> float:
    longest_s = 0.0
    while not done.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        longest_s = max(longest_s, time.perf_counter() - began - 0.001)
    return longest_s


async def measure(policies: int, port: int) -> dict[str, float]:
    """Figures of the cheapest of a few ticks that ask for everything, after one that learns the bucket edges."""
    collector = Collector(
        CollectorSettings(servers=(PrometheusServer(name="stub", url=f"http://127.0.0.1:{port}", timeout_s=30),))
    )
    wants = [
        Want(
            key=f"w{number}",
            namespace=namespace_of(f"w{number}"),
            workload=f"w{number}",
            kind="Deployment",
            pods=pods_of(f"w{number}"),
            runtime="VLLM",
            signals=frozenset(PRESETS["VLLM"].sources) - LATENCY_SIGNALS,
            latencies=(
                LatencyWant(signal=Signal.TIME_TO_FIRST_TOKEN, percentiles=(95,), threshold_s=0.5),
                LatencyWant(signal=Signal.INTER_TOKEN_LATENCY, percentiles=(95,), threshold_s=0.05),
            ),
        )
        for number in range(policies)
    ]
    await collector.collect(wants, 0.0)
    best = {"wall_s": math.inf, "cpu_s": math.inf, "hold_up_s": math.inf}
    for tick in range(1, TICKS + 1):
        done = asyncio.Event()
        watch = asyncio.create_task(longest_hold_up_s(done))
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        found = await collector.collect(wants, tick * GPU_EVERY_S)
        figures = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
        done.set()
        figures["hold_up_s"] = await watch
        assert len(found) == policies
        assert not any(one.gaps for one in found.values())
        best = {name: min(best[name], value) for name, value in figures.items()}
    best["queries"] = collector.last.queries
    collector.close()
    return best


def main(counts: list[int]) -> None:
    context = multiprocessing.get_context("spawn")
    print(f"{'':>24} {'wall':>8} {'CPU':>7} {'CPU per':>9} {'hold-up':>8}")
    print(f"{'policies':>8} {'pods':>7} {'queries':>8} {'ms':>7} {'ms':>7} {'policy ms':>9} {'ms':>8}")
    for policies in counts:
        ours, theirs = context.Pipe()
        server = context.Process(target=serve, args=(theirs, [f"w{number}" for number in range(policies)]), daemon=True)
        server.start()
        try:
            found = asyncio.run(measure(policies, ours.recv()))
        finally:
            server.terminate()
            server.join()
        print(
            f"{policies:>8} {policies * PODS_PER_POLICY:>7} {found['queries']:>8.0f}"
            f" {1000 * found['wall_s']:>7.0f} {1000 * found['cpu_s']:>7.0f} {1000 * found['cpu_s'] / policies:>9.3f}"
            f" {1000 * found['hold_up_s']:>8.1f}"
        )


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [1, 100, 500])
