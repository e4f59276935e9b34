"""What the pod store costs: list and watch pods of about 6 KB from a stand-in server in a process of its own.

python tests/bench/bench_reflector.py [PODS]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.pods import PodSettings, PodStore, trim_pod
from bandkeeper.kube.rate import TokenBucket
from bandkeeper.kube.reflector import Reflector

WORKLOADS = 20
EVENTS = 5_000


def pod(number: int, version: int) -> dict[str, Any]:
    """A pod of a model server as an API server returns it, managed fields and all."""
    app = f"model-{number % WORKLOADS}"
    now = "2026-01-01T10:00:00Z"
    env = [{"name": f"SETTING_{index}", "value": f"value of setting {index}" * 2} for index in range(12)]
    fields: dict[str, Any] = {
        f'k:{{"name":"SETTING_{index}"}}': {".": {}, "f:name": {}, "f:value": {}} for index in range(20)
    }
    container = {
        "name": "server",
        "image": "registry.example/vllm:1",
        "args": ["--model", "m", "--max-num-seqs=64"],
        "env": env,
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "volumeMounts": [{"name": f"volume-{index}", "mountPath": f"/mnt/{index}"} for index in range(5)],
    }
    conditions = [
        {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    status = {"name": "server", "ready": True, "restartCount": 0, "state": {"running": {"startedAt": now}}}
    return {
        "metadata": {
            "name": f"{app}-5d9f8-{number:05d}",
            "namespace": "serving",
            "uid": f"5d0f8a36-0000-0000-0000-{number:012d}",
            "resourceVersion": str(version),
            "creationTimestamp": now,
            "labels": {"app": app, "pod-template-hash": "5d9f8", "team": "inference"},
            "annotations": {"bandkeeper.dev/batch-cap": "48", "note": "x" * 200},
            "managedFields": [{"manager": "kube-controller-manager", "fieldsV1": {"f:spec": {"f:env": fields}}}] * 2,
        },
        "spec": {"containers": [container], "nodeName": f"gpu-{number % 50}"},
        "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status], "podIP": "10.0.0.1"},
    }


def serve(pods: int, ready: Connection) -> None:
    """The stand-in: pages made beforehand, and a burst of events on the first watch."""

    async def main() -> None:
        size = 500
        pages = []
        for begin in range(0, pods, size):
            items = [pod(number, 1000) for number in range(begin, min(pods, begin + size))]
            metadata = {"resourceVersion": "1000", "continue": str(begin + size) if begin + size < pods else ""}
            page = {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}
            pages.append(json.dumps(page).encode())
        events = [
            json.dumps(
                {"type": "MODIFIED", "object": {"kind": "Pod", "apiVersion": "v1", **pod(number % pods, 1001 + number)}}
            ).encode()
            for number in range(EVENTS)
        ]

        async def answer(request: web.Request) -> web.StreamResponse:
            if "watch" not in request.query:
                body = pages[int(request.query.get("continue", 0)) // size]
                return web.Response(body=body, content_type="application/json")
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.sleep(1.0)
            for begin in range(0, EVENTS, 50):
                await response.write(b"\n".join(events[begin : begin + 50]) + b"\n")
            await asyncio.sleep(60.0)
            return response

        app = web.Application()
        app.router.add_get("/api/v1/pods", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send((runner.addresses[0][1], len(pages[0]) / min(size, pods)))
        await asyncio.Event().wait()

    asyncio.run(main())


async def measure(port: int, pods: int) -> None:
    configuration = Configuration(host=f"http://127.0.0.1:{port}")
    async with KubeClient(ApiClient(configuration), bucket=TokenBucket(50, 100)) as client:
        reflector = Reflector(client, "/api/v1", "pods", trim=trim_pod)
        store = PodStore(reflector)
        changes = 0

        def count(_: object) -> None:
            nonlocal changes
            changes += 1

        reflector.subscribe(count)
        before_mb, before_s = rss_mb(), time.process_time()
        task = asyncio.create_task(reflector.run())
        await reflector.wait_synced()
        cpu_s = time.process_time() - before_s
        print(f"list: {cpu_s:.2f} CPU-s, +{rss_mb() - before_mb:.0f} MB now, peak {peak_mb():.0f} MB")
        assert len(reflector.objects) == pods

        settings = PodSettings(cap_annotation="bandkeeper.dev/batch-cap", capacity=("--max-num-seqs",))

        def look() -> float:
            begun_at = time.perf_counter()
            seen = sum(
                len(store.pods("serving", f"app=model-{number}", now=time.time(), settings=settings))
                for number in range(WORKLOADS)
            )
            assert seen == pods
            return (time.perf_counter() - begun_at) * 1e3

        print(f"all pods of {WORKLOADS} workloads as a snapshot has them: first {look():.1f} ms, then {look():.1f} ms")
        before_s, listed = time.process_time(), changes
        while changes - listed < EVENTS:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        each_us = (time.process_time() - before_s) / EVENTS * 1e6
        print(f"watch: {EVENTS} events at {each_us:.0f} us CPU each; {rss_mb():.0f} MB now, peak {peak_mb():.0f} MB")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def rss_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(pods, theirs), daemon=True)
    server.start()
    port, size = ours.recv()
    print(f"{pods} pods of {size / 1000:.1f} KB")
    asyncio.run(measure(port, pods))
    server.terminate()
    server.join()


if __name__ == "__main__":
    main()
