"""Wires everything together, starts it in order and stops it in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from bandkeeper import __version__
from bandkeeper.actuate.replicas import Replicas
from bandkeeper.actuate.rights import Rights
from bandkeeper.api.v1alpha1 import GROUP, PLURAL, VERSION
from bandkeeper.kube.client import ApiError, KubeClient
from bandkeeper.kube.discovery import Discovery
from bandkeeper.kube.events import EventRecorder
from bandkeeper.kube.lease import LeaseElector
from bandkeeper.kube.pods import PodStore, trim_pod
from bandkeeper.kube.reflector import Reflector
from bandkeeper.kube.scalers import Scalers, trim_hpa, trim_scaled_object
from bandkeeper.kube.status import StatusWriter
from bandkeeper.runtime import web
from bandkeeper.runtime.front import Front
from bandkeeper.runtime.loop import ControlLoop, Stores
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.policies import Interpreter
from bandkeeper.runtime.settings import Server, Settings, identity
from bandkeeper.signals.collector import Collector, CollectorSettings
from bandkeeper.signals.prometheus import PrometheusServer

logger = logging.getLogger(__name__)

WAIT_FOR_WRITERS_S = 0.5  # with FINISH_S of the loop 1 s, and 2 s until the others look at the lease again: 3 s in all


async def run(settings: Settings, *, kubeconfig: str | None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status, 1 where something else ended it."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        client = await KubeClient.connect(kubeconfig)
    except ApiError as error:
        logger.error("cannot reach the Kubernetes API", extra={"error": str(error)})
        return 1
    faults = Faults(stop)
    async with client:
        await _run(client, settings, kubeconfig, faults)
    logger.info("stopped")
    return 1 if faults.found else 0


async def _run(client: KubeClient, settings: Settings, kubeconfig: str | None, faults: Faults) -> None:
    """Stores first, then the lease, the loop and the front door; the reverse on the way out."""
    name = identity()
    metrics = Metrics()
    collector_settings = collector_settings_of(settings)
    stores = stores_of(client, settings)
    elector = LeaseElector(
        client,
        namespace=settings.lease_namespace,
        name=settings.lease.name,
        identity=name,
        lease_s=settings.lease.duration,
        renew_s=settings.lease.renew_deadline,
        retry_s=settings.lease.retry_period,
        on_gain=lambda: loop.hurry(),
    )
    events = EventRecorder(client, instance=name, window_s=elector.remaining_s)
    statuses = StatusWriter(client, window_s=elector.remaining_s)
    discovery = Discovery(client)
    loop = ControlLoop(
        settings=settings,
        stores=stores,
        interpreter=Interpreter(client, settings, collector_settings),
        discovery=discovery,
        replicas=Replicas(client, discovery),
        rights=Rights(client),
        collectors=lambda: Collector(collector_settings),
        elector=elector,
        events=events,
        statuses=statuses,
        metrics=metrics,
    )
    pages = web.application(alive=loop.alive, ready=loop.ready, registry=metrics.registry)
    try:
        runner, port = await web.serve(pages, *settings.address)
    except OSError as error:
        logger.error("cannot listen: choose another port", extra={"listen": settings.listen, "error": str(error)})
        faults.found = True
        return
    front = Front(
        namespaces=settings.namespaces,
        kubeconfig=kubeconfig,
        wake=_threadsafe(asyncio.get_running_loop(), loop.wake),
    )
    logger.info("started", extra={"version": __version__, "identity": name, "port": port, "period_s": settings.period})
    try:
        async with _running(*(reflector.run() for reflector in stores.reflectors), faults=faults):
            front.start()
            async with (
                _running(elector.run(), faults=faults),
                _running(events.run(), statuses.run(), faults=faults),
            ):
                async with _running(loop.run(), faults=faults):
                    await faults.stop.wait()
                    logger.info("stopping")
                await asyncio.gather(statuses.drain(WAIT_FOR_WRITERS_S), events.drain(WAIT_FOR_WRITERS_S))
    finally:
        await front.stop()
        await runner.cleanup()


def stores_of(client: KubeClient, settings: Settings) -> Stores:
    """The reflectors: policies, pods, and the scalers that may already drive a target."""
    namespaces = tuple(settings.namespaces)
    policies = Reflector(client, f"/apis/{GROUP}/{VERSION}", PLURAL, trim=lambda raw: raw, namespaces=namespaces)
    pods = Reflector(client, "/api/v1", "pods", trim=trim_pod, namespaces=namespaces)
    hpas = Reflector(
        client, "/apis/autoscaling/v2", "horizontalpodautoscalers", trim=trim_hpa, namespaces=namespaces, optional=True
    )
    scaled = Reflector(
        client, "/apis/keda.sh/v1alpha1", "scaledobjects", trim=trim_scaled_object, namespaces=namespaces, optional=True
    )
    return Stores(
        policies=policies, pods=PodStore(pods), scalers=Scalers(hpas, scaled), reflectors=(policies, pods, hpas, scaled)
    )


def collector_settings_of(settings: Settings) -> CollectorSettings:
    """The signals room's view of the settings."""
    prometheus = settings.prometheus
    return CollectorSettings(
        servers=tuple(_server(server) for server in prometheus.servers),
        allowed_urls=tuple(prometheus.allowed_urls),
        rate_window_s=prometheus.rate_window,
        stale_after_s=prometheus.stale_after,
        gpu_stale_after_s=prometheus.gpu_stale_after,
    )


def _server(server: Server) -> PrometheusServer:
    fields = server.model_dump(exclude={"timeout"})
    return PrometheusServer(**fields, timeout_s=server.timeout)


def _threadsafe(loop: asyncio.AbstractEventLoop, call: Any) -> Any:
    def forward() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are on the way out
            loop.call_soon_threadsafe(call)

    return forward


class Faults:
    """Parts that ended by themselves: each stops the process, which is then not well ended."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop
        self.found = False

    def ended(self, task: asyncio.Task[None]) -> None:
        """Callback of a part's task."""
        if not task.cancelled():
            logger.error("a part of the operator ended", extra={"part": task.get_name()}, exc_info=task.exception())
            self.found = True
            self.stop.set()


@contextlib.asynccontextmanager
async def _running(*jobs: Coroutine[Any, Any, None], faults: Faults) -> AsyncIterator[None]:
    """Run jobs beside the body."""
    tasks = [asyncio.create_task(job, name=getattr(job, "__qualname__", None)) for job in jobs]
    for task in tasks:
        task.add_done_callback(faults.ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
