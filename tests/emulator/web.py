"""HTTP face of the fleet: service discovery, the pods' and exporters' /metrics, control and ledger for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from .config import Host, explain
from .exposition import cadvisor_text, dcgm_text, pod_text
from .faults import Fault, Faults
from .fleet import Fleet, PodServer, WorkloadFleet, short_hash
from .load import Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
T = TypeVar("T")
_LOAD: TypeAdapter[Load] = TypeAdapter(Load)


class Face:
    """Routes over one fleet. `clock` is the fleet's time; `health` answers /healthz."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float], health: Callable[[], dict[str, Any]]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._health = health
        self._faults = {name: Faults() for name in fleet.workloads}
        self._dcgm_faults = Faults()

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self.healthz),
                web.get("/sd/pods", self.sd_pods),
                web.get("/sd/dcgm", self.sd_dcgm),
                web.get("/pods/{namespace}/{pod}/metrics", self.pod_metrics),
                web.get("/sd/cadvisor", self.sd_cadvisor),
                web.get("/dcgm/{node}/metrics", self.dcgm_metrics),
                web.get("/cadvisor/{node}/metrics", self.cadvisor_metrics),
                web.put("/load", self.put_load_for_all),
                web.put("/dcgm/fault", self.put_dcgm_fault),
                web.put("/workloads/{name}/load", self.put_load),
                web.put("/workloads/{name}/fault", self.put_fault),
                web.get("/workloads/{name}/ledger", self.ledger),
            ]
        )
        return app

    # Discovery and metrics.

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response(self._health())

    async def sd_pods(self, request: web.Request) -> web.Response:
        """One target for each pod whose server has come up; all have this server's address and paths of their own."""
        targets = []
        for _, record in self._fleet.pod_servers():
            pod = record.pod
            labels = {
                "__metrics_path__": f"/pods/{pod.namespace}/{pod.name}/metrics",
                "instance": f"{pod.name}:8000",
                "namespace": pod.namespace,
                "pod": pod.name,
                "container": pod.container,
                "node": pod.node or "",
            }
            targets.append({"targets": [request.host], "labels": labels})
        return web.json_response(targets)

    async def sd_dcgm(self, request: web.Request) -> web.Response:
        """One target for each node with a GPU pod, labelled as the exporter's own pod."""
        targets = []
        for node in self._fleet.gpus.samples:
            pod = f"dcgm-exporter-{short_hash(node)}"
            labels = {
                "__metrics_path__": f"/dcgm/{node}/metrics",
                "instance": f"{pod}:9400",
                "namespace": "gpu-operator",
                "pod": pod,
                "container": "dcgm-exporter",
                "service": "dcgm-exporter",
            }
            targets.append({"targets": [request.host], "labels": labels})
        return web.json_response(targets)

    async def pod_metrics(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        found = [
            (workload, record)
            for workload, record in self._fleet.pod_servers()
            if (record.pod.namespace, record.pod.name) == (namespace, name)
        ]
        if not found:
            raise web.HTTPNotFound(text=f"no server in pod {namespace}/{name}\n")
        workload, record = found[-1]  # of two with one name, a StatefulSet's drains and the newer one answers
        return _metrics(self._faults[workload.config.name].spoil(name, self._pod_text(workload, record)))

    async def dcgm_metrics(self, request: web.Request) -> web.Response:
        node = request.match_info["node"]
        if node not in self._fleet.gpus.samples:
            raise web.HTTPNotFound(text=f"no exporter on node {node}\n")
        return _metrics(self._dcgm_faults.spoil(node, self._dcgm_text(node)))

    async def sd_cadvisor(self, request: web.Request) -> web.Response:
        """One target for each node with a pod of which there is anything to show."""
        nodes = sorted({record.pod.node for _, record in self._hosted() if record.pod.node})
        targets = [
            {
                "targets": [request.host],
                "labels": {"__metrics_path__": f"/cadvisor/{node}/metrics", "instance": node, "node": node},
            }
            for node in nodes
        ]
        return web.json_response(targets)

    async def cadvisor_metrics(self, request: web.Request) -> web.Response:
        node = request.match_info["node"]
        here = [(host, record) for host, record in self._hosted() if record.pod.node == node]
        return _metrics(cadvisor_text(here, self._fleet.now_s))

    def _hosted(self) -> Iterator[tuple[Host, PodServer]]:
        for workload, record in self._fleet.pod_servers():
            if workload.config.host is not None:
                yield workload.config.host, record

    # Control.

    async def put_load(self, request: web.Request) -> web.Response:
        """The body is a load as in the configuration; its clock starts now."""
        workload = self._workload(request)
        self._fleet.set_load(workload.config.name, await _body(request, _LOAD.validate_python), self._clock())
        return web.json_response({"start_s": workload.arrivals.start_s})

    async def put_load_for_all(self, request: web.Request) -> web.Response:
        """The same load for every workload, all clocks starting at one instant."""
        load = await _body(request, _LOAD.validate_python)
        now_s = self._clock()
        for name in self._fleet.workloads:
            self._fleet.set_load(name, load, now_s)
        return web.json_response({"start_s": now_s})

    async def put_fault(self, request: web.Request) -> web.Response:
        workload = self._workload(request)
        fault = await _body(request, Fault.model_validate)
        texts = {one.pod.name: self._pod_text(workload, one) for one in workload.pods.values() if one.was_ready}
        self._faults[workload.config.name].set(fault, texts)
        return web.json_response(fault.model_dump(mode="json"))

    async def put_dcgm_fault(self, request: web.Request) -> web.Response:
        fault = await _body(request, Fault.model_validate)
        self._dcgm_faults.set(fault, {node: self._dcgm_text(node) for node in self._fleet.gpus.samples})
        return web.json_response(fault.model_dump(mode="json"))

    async def ledger(self, request: web.Request) -> web.Response:
        workload = self._workload(request)
        self._fleet.advance(self._clock())
        return web.json_response(ledger(workload, self._fleet.now_s))

    def _workload(self, request: web.Request) -> WorkloadFleet:
        name = request.match_info["name"]
        if name not in self._fleet.workloads:
            known = ", ".join(self._fleet.workloads)
            raise web.HTTPNotFound(text=f"no workload {name!r}; there are: {known}\n")
        return self._fleet.workloads[name]

    def _pod_text(self, workload: WorkloadFleet, record: PodServer) -> str:
        return pod_text(workload, record, self._fleet.now_s)

    def _dcgm_text(self, node: str) -> str:
        return dcgm_text(self._fleet.gpus.samples[node], self._fleet.config.dcgm)


def ledger(workload: WorkloadFleet, now_s: float) -> dict[str, Any]:
    """The exact account: arrived = succeeded + failed + rejected + running + waiting + at_gateway."""
    stats = workload.stats()
    records = workload.pods.values()
    return {
        "now_s": now_s,
        "load_clock_s": now_s - workload.arrivals.start_s,
        "offered_per_s": workload.arrivals.offered_per_s(now_s),
        "arrived": workload.arrived,
        "at_gateway": len(workload.gateway),
        "running": sum(one.server.running_count for one in records),
        "waiting": sum(one.server.waiting_count for one in records),
        "rejected": stats.rejected,
        "succeeded": stats.succeeded,
        "failed": stats.failed,
        "finished": stats.finished,
        "preemptions": stats.preemptions,
        "prompt_tokens": stats.prompt_tokens,
        "generation_tokens": stats.generation_tokens,
        "executions": stats.executions,
        "pod_s": workload.pod_s,
        "ready_pod_s": workload.ready_pod_s,
        "ttft_s": stats.ttft.as_json(),
        "itl_s": stats.itl.as_json(),
        "e2e_s": stats.e2e.as_json(),
        "queue_s": stats.queue.as_json(),
        "iteration_tokens": stats.iteration_tokens.as_json(),
        "pods": [_pod(one, now_s) for one in records],
    }


def _pod(record: PodServer, now_s: float) -> dict[str, Any]:
    server = record.server
    return {
        "name": record.pod.name,
        "ready": record.pod.ready,
        "draining": server.draining,
        "capacity": server.capacity,
        "cap": server.cap_at(now_s),
        "running": server.running_count,
        "waiting": server.waiting_count,
    }


def _metrics(text: str | None) -> web.Response:
    if text is None:
        raise web.HTTPNotFound(text="this exporter is told to be absent\n")
    return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})


async def _body(request: web.Request, check: Callable[[Any], T]) -> T:
    try:
        return check(json.loads(await request.read()))
    except ValidationError as error:
        raise web.HTTPUnprocessableEntity(text=explain(error) + "\n") from None
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"the body is not JSON: {error}\n") from None
