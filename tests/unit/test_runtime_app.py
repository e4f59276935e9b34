"""Starting and stopping: kopf that fails is started again, a part that ends ends the process, a taken port is named."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import kopf
import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry

from bandkeeper.runtime import app, front, web
from bandkeeper.runtime.app import Faults
from bandkeeper.runtime.front import Front


def eventually(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


async def test_a_kopf_that_ends_is_started_again_and_stops_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts: list[Any] = []

    async def operator(*, stop_flag: asyncio.Event, **_: Any) -> None:
        starts.append(stop_flag)
        if len(starts) < 3:
            raise kopf.PermanentError("no rights")
        await stop_flag.wait()

    monkeypatch.setattr(kopf, "operator", operator)
    monkeypatch.setattr(front, "RESTART_AFTER_S", 0.01)
    door = Front(namespaces=[], kubeconfig=None, wake=lambda: None)
    door.start()
    await asyncio.to_thread(eventually, lambda: len(starts) == 3)
    begun = time.monotonic()
    await door.stop()
    assert time.monotonic() - begun < 1.0
    assert not [thread for thread in threading.enumerate() if thread.name == "kopf"]
    assert caplog.text.count("kopf ended and is started again") == 2


async def test_the_flag_by_which_kopf_stops_keeps_no_thread_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a threading.Event kopf waits in a thread that outlives its own end, so it could never be started again."""
    flags: list[Any] = []

    async def operator(*, stop_flag: Any, **_: Any) -> None:
        flags.append(stop_flag)
        await stop_flag.wait()

    monkeypatch.setattr(kopf, "operator", operator)
    door = Front(namespaces=[], kubeconfig=None, wake=lambda: None)
    door.start()
    await asyncio.to_thread(eventually, lambda: bool(flags))
    await door.stop()
    assert isinstance(flags[0], asyncio.Event)


async def test_stopping_a_front_door_that_never_opened_is_fine() -> None:
    await Front(namespaces=[], kubeconfig=None, wake=lambda: None).stop()


async def test_a_part_that_ends_stops_the_process_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def part() -> None:
        raise RuntimeError("boom")

    faults = Faults(asyncio.Event())
    async with app._running(part(), faults=faults):
        await asyncio.wait_for(faults.stop.wait(), 1.0)
    assert faults.found
    [record] = [record for record in caplog.records if record.message == "a part of the operator ended"]
    assert record.__dict__["part"].endswith("part")
    assert record.exc_info is not None
    assert "boom" in str(record.exc_info[1])


async def test_an_orderly_stop_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def part() -> None:
        await asyncio.Event().wait()

    faults = Faults(asyncio.Event())
    async with app._running(part(), faults=faults):
        await asyncio.sleep(0)
    assert not faults.found
    assert caplog.records == []


async def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_open() -> None:
    pages = web.application(alive=lambda: None, ready=lambda: None, registry=CollectorRegistry())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="address already in use"):
        await web.serve(pages, "127.0.0.1", taken.getsockname()[1])


async def test_the_pages_say_what_is_wrong() -> None:
    problems: dict[str, str | None] = {"alive": None, "ready": "the first tick is not done"}
    pages = web.application(
        alive=lambda: problems["alive"], ready=lambda: problems["ready"], registry=CollectorRegistry()
    )
    runner, port = await web.serve(pages, "127.0.0.1", 0)
    try:
        async with ClientSession() as session:
            for path, status, text in (
                ("healthz", 200, "ok\n"),
                ("readyz", 503, "the first tick is not done\n"),
                ("metrics", 200, ""),
            ):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                    assert (answer.status, await answer.text()) == (status, text) if text else answer.status == status
    finally:
        await runner.cleanup()
