"""Wires the agent: a thread that reads the GPUs, a task that asks the kubelet, and the server of their figures."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from bandkeeper.agent import exposition
from bandkeeper.agent.pods import PodResources
from bandkeeper.agent.sampler import DriverReplacedError, Sampler
from bandkeeper.agent.web import application

log = logging.getLogger(__name__)

BROKEN, DRIVER_REPLACED = 1, 3
"""Exit statuses that ask for a new process."""
STOP_S = 2.0
"""How long a pass may take to end when the agent does; a call into a driver that hangs never ends."""


class WithoutGPU(StrEnum):
    """What to do on a node where no GPU was ever seen."""

    STAY = "stay"
    EXIT = "exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the agent runs; times in seconds. `pod_resources` None: GPUs are not joined with pods."""

    host: str
    port: int
    interval_s: float = 1.0
    window_s: float = 15.0
    pod_resources: Path | None = None
    pods_period_s: float = 10.0
    without_gpu: WithoutGPU = WithoutGPU.STAY


class Agent:
    """The running agent. `run` returns the exit status."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._settings = settings
        self._sampler = Sampler(settings.interval_s, settings.window_s)
        self._pods = PodResources(settings.pod_resources, settings.pods_period_s) if settings.pod_resources else None
        self._registry = CollectorRegistry()
        self._registry.register(
            exposition.Exposition(
                lambda: self._sampler.frame,
                lambda: self._pods.known if self._pods else None,
                lambda: self._pods.age_s if self._pods else None,
                interval_s=settings.interval_s,
                version=version,
            )
        )
        self._stopping = threading.Event()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until there is nothing to do; OSError where the port is taken."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def end(status: int) -> None:
            if not ended.done():
                ended.set_result(status)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, 0)
        async with AsyncExitStack() as stack:
            runner = web.AppRunner(application(self._ready, self._registry), access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, self._settings.host, self._settings.port).start()
            log.info("The agent serves", extra={"host": self._settings.host, "port": runner.addresses[0][1]})
            if self._pods is not None:
                asking = asyncio.create_task(self._pods.run())
                asking.add_done_callback(lambda task: self._broke(task, end))
                stack.callback(asking.cancel)

            def end_soon(status: int) -> None:
                loop.call_soon_threadsafe(end, status)

            # Not of the loop's pool: a call into a driver that hangs cannot be ended and must not keep us from ending.
            passes = threading.Thread(target=self._pass_on, args=(end_soon,), daemon=True)
            passes.start()
            status = await ended
            self._stopping.set()
            await asyncio.to_thread(passes.join, STOP_S)
            return status

    @staticmethod
    def _broke(task: asyncio.Task[None], end: Callable[[int], None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("The agent ends: asking the kubelet failed unexpectedly", exc_info=error)
            end(BROKEN)

    def _pass_on(self, end: Callable[[int], None]) -> None:
        """Make passes at an even pace until stopped; `end` takes the exit status where there is no point going on."""
        due_s = time.monotonic()
        while not self._stopping.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + self._settings.interval_s, time.monotonic())
            try:
                self._sampler.step()
            except DriverReplacedError as error:
                log.error("The agent ends", extra={"why": str(error)})
                end(DRIVER_REPLACED)
                return
            except Exception:
                log.exception("The agent ends: a pass failed unexpectedly")
                end(BROKEN)
                return
            if not self._sampler.seen_gpu and self._settings.without_gpu is WithoutGPU.EXIT:
                log.warning("The agent ends: there is no GPU", extra={"why": self._sampler.frame.problem})
                end(0)
                return
        self._sampler.close()

    def _ready(self) -> tuple[bool, str]:
        frame = self._sampler.frame
        if exposition.is_stale(frame, time.monotonic(), self._settings.interval_s):
            return False, "the driver has not answered for too long: a call into it hangs"
        if frame.problem is None:
            return True, "ok"
        if not self._sampler.seen_gpu and frame.passes:
            return True, f"ok, with nothing to do: {frame.problem}"
        return False, frame.problem
