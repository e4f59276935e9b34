"""kopf as the front door: it watches the policies and wakes the control loop.

It is not the store of record (after a 410 it forgets deletions that fell into the gap), so a wake-up carries nothing.
It runs in a thread of its own: signals stay ours, and it stops at once by a flag.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import kopf

from bandkeeper.api.v1alpha1 import GROUP, PLURAL, VERSION
from bandkeeper.runtime.settings import identity

logger = logging.getLogger(__name__)

RESTART_AFTER_S = 5.0


def _registry(wake: Callable[[], None], kubeconfig: str | None) -> kopf.OperatorRegistry:
    """The handlers: log in, settle the settings, wake the loop on every change of a policy."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def settle(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.scanning.disabled = True
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330
        settings.watching.connect_timeout = 10
        settings.watching.chunk_size = 500
        settings.networking.request_timeout = 30
        settings.networking.connect_timeout = 10
        settings.process.ultimate_exiting_timeout = None  # it would kill the whole process

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        if kubeconfig is not None:
            return kopf.login_with_kubeconfig(settings=settings)
        return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def changed(**_: Any) -> None:
        wake()

    return registry


class Front:
    """Runs kopf until `stop`; a kopf that ended by itself is started again after a pause.

    Parameters
    ----------
    wake
        Called in kopf's thread whenever a policy was added, changed or removed.
    """

    def __init__(self, *, namespaces: list[str], kubeconfig: str | None, wake: Callable[[], None]) -> None:
        self._namespaces = namespaces
        self._kubeconfig = kubeconfig
        self._wake = wake
        self._stopping = threading.Event()
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """Start kopf's thread."""
        if self._kubeconfig is not None:
            os.environ["KUBECONFIG"] = self._kubeconfig
        self._thread.start()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Ask kopf to end and wait for its thread."""
        self._stopping.set()
        if self._running is not None:
            loop, flag = self._running
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(flag.set)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._operator())
            except Exception as error:
                logger.warning("kopf ended and is started again", extra={"error": str(error)})
            self._stopping.wait(RESTART_AFTER_S)

    async def _operator(self) -> None:
        """Run kopf once. Its flag must be asyncio's: on any other it waits in a thread, which outlives its own end."""
        flag = asyncio.Event()
        self._running = asyncio.get_running_loop(), flag
        if self._stopping.is_set():
            return
        await kopf.operator(
            registry=_registry(self._wake, self._kubeconfig),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
            identity=identity(),  # type: ignore[arg-type]  # kopf's own guess needs an entry in /etc/passwd
            stop_flag=flag,
        )
