"""The reflector: the list is the truth, a watch goes on where it ended, faults are survived and shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.reflector import Change, Reflector
from tests.kube_fakes import Raw, StubServer, status, until


class Follower:
    """A reflector at work, its changes, and the waits that it asked for (each takes no more than 10 ms)."""

    def __init__(self, client: KubeClient, **settings: Any) -> None:
        self.naps: list[float] = []
        settings = {"trim": name_and_uid, "sleep": self.nap, "watch_s": 1.0, **settings}
        self.reflector: Reflector[str] = Reflector(client, "/api/v1", "pods", **settings)
        self.changes: list[Change[str]] = []
        self.reflector.subscribe(self.changes.append)

    async def nap(self, seconds: float) -> None:
        self.naps.append(seconds)
        await asyncio.sleep(min(seconds, 0.01))

    @property
    def names(self) -> set[str]:
        return {name for _, name in self.reflector.objects}

    @property
    def gone(self) -> list[str]:
        return [change.key[1] for change in self.changes if change.new is None]


def name_and_uid(raw: Raw) -> str | None:
    if raw.get("odd"):
        raise KeyError("odd")
    return None if raw.get("done") else f"{raw['kind']} {raw['metadata']['name']} {raw['metadata']['uid']}"


@asynccontextmanager
async def following(server: StubServer, **settings: Any) -> AsyncIterator[Follower]:
    async with server.running() as client:
        follower = Follower(client, **settings)
        task = asyncio.create_task(follower.reflector.run())
        try:
            yield follower
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@pytest.fixture
def server() -> StubServer:
    server = StubServer()
    server.add("a")
    server.add("b", namespace="other")
    return server


async def synced(follower: Follower) -> None:
    async with asyncio.timeout(5):
        await follower.reflector.wait_synced()


async def test_lists_in_pages_then_follows_changes(server: StubServer) -> None:
    for number in range(7):
        server.add(f"pod-{number}")
    async with following(server, page_size=4) as follower:
        assert not follower.reflector.synced
        assert follower.reflector.age_s() == float("inf")
        await synced(follower)
        assert [request.get("continue") for request in server.requests[:3]] == [None, "4", "8"]
        assert len(follower.reflector.objects) == 9
        assert follower.reflector.objects["default", "a"] == "Pod a uid-a"
        await until(lambda: server.watching)
        server.add("c")
        server.add("a", phase="new")
        server.remove("b", namespace="other")
        await server.tell()
        await until(lambda: follower.gone)
        assert follower.names == {"a", "c", *(f"pod-{number}" for number in range(7))}
        assert follower.changes[-1] == Change(("other", "b"), "Pod b uid-b", None)
        assert follower.changes[-2] == Change(("default", "a"), "Pod a uid-a", "Pod a uid-a")
        assert follower.changes[-3] == Change(("default", "c"), None, "Pod c uid-c")
        assert server.lists == 3


async def test_what_was_deleted_in_a_gap_is_gone_after_the_relist(server: StubServer) -> None:
    """The watch breaks, an object is deleted meanwhile, and the history is compacted: 410 Gone."""
    async with following(server) as follower:
        await until(lambda: server.watching)
        server.add("b", namespace="other", phase="new")
        await server.tell()
        await until(lambda: len(follower.changes) == 3)
        server.remove("a")
        server.add("new")
        server.compact()
        await server.cut()
        await until(lambda: follower.gone)
        assert follower.gone == ["a"]
        assert follower.names == {"b", "new"}
        assert server.lists == 2
        assert follower.naps == []  # a gap is routine: no back-off


async def test_410_as_the_answer_to_the_watch_relists(server: StubServer) -> None:
    server.watch_faults = [410]
    async with following(server) as follower:
        await until(lambda: server.watching)
        assert server.lists == 2
        assert follower.names == {"a", "b"}


async def test_one_that_came_back_under_its_name_went_first(server: StubServer) -> None:
    async with following(server) as follower:
        await until(lambda: server.watching)
        server.remove("a")
        server.add("a", uid="second")
        server.compact()
        await server.cut()
        await until(lambda: follower.gone)
        assert follower.changes[-2:] == [
            Change(("default", "a"), "Pod a uid-a", None),
            Change(("default", "a"), None, "Pod a second"),
        ]


async def test_a_relist_reports_only_differences(server: StubServer) -> None:
    async with following(server) as follower:
        await until(lambda: server.watching)
        seen = len(follower.changes)
        server.add("b", namespace="other", phase="new")
        server.compact()
        await server.cut()
        await until(lambda: len(follower.changes) > seen)
        await until(lambda: server.watching)
        assert [change.key for change in follower.changes[seen:]] == [("other", "b")]


async def test_a_broken_connection_goes_on_where_it_was(server: StubServer) -> None:
    async def drop(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    server.watch_faults = [drop] * 5  # the HTTP client itself tries some of them again
    async with following(server) as follower:
        await until(lambda: follower.reflector.problem)
        assert "/api/v1/pods cannot be followed: Unreachable: no answer" in follower.reflector.problem
        await until(lambda: server.watching)
        assert server.lists == 1
        assert follower.naps


@pytest.mark.parametrize("code", [500, 504, 403])
async def test_a_refused_watch_lists_again_and_backs_off(server: StubServer, code: int) -> None:
    """A list that works must not end the back-off: the watch after it is what fails."""
    server.watch_faults = [code] * 6
    async with following(server) as follower:
        await until(lambda: len(follower.naps) == 6)
        assert server.lists >= 6
        assert max(follower.naps) > 2.0
        await until(lambda: server.watching)
        assert follower.names == {"a", "b"}


async def test_a_watch_that_fails_soon_after_an_event_backs_off_too(server: StubServer) -> None:
    async def error(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "102"}}}
        for event in (bookmark, {"type": "ERROR", "object": status(500)}):
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    server.watch_faults = [error] * 6
    async with following(server) as follower:
        await until(lambda: len(follower.naps) == 6)
        assert max(follower.naps) > 2.0


async def test_error_events_of_any_kind_are_survived(server: StubServer) -> None:
    async def error(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(json.dumps({"type": "ERROR", "object": status(500)}).encode() + b"\n")
        return response

    server.watch_faults = [error]
    async with following(server) as follower:
        await until(lambda: server.watching)
        assert server.lists == 2
        assert len(follower.naps) == 1


async def test_429_waits_as_told_and_keeps_its_place(server: StubServer) -> None:
    async def busy(_: web.Request) -> web.StreamResponse:
        return web.json_response(status(429), status=429, headers={"Retry-After": "17"})

    server.watch_faults = [busy]
    async with following(server) as follower:
        await until(lambda: server.watching)
        assert follower.naps == [17.0]
        assert server.lists == 1


async def test_a_list_that_is_refused_is_named_and_tried_again(server: StubServer) -> None:
    server.list_faults = [403] * 3
    async with following(server) as follower:
        await until(lambda: len(follower.naps) == 2)
        assert not follower.reflector.synced
        assert follower.reflector.problem == "/api/v1/pods cannot be followed: 403 Forbidden: said 403"
        await synced(follower)
        assert follower.reflector.problem == ""


async def test_an_expired_page_starts_the_list_over_in_one_piece(server: StubServer) -> None:
    for number in range(7):
        server.add(f"pod-{number}")
    server.list_faults = [None, 410]
    async with following(server, page_size=4) as follower:
        await synced(follower)
        assert len(follower.reflector.objects) == 9
        assert [request for request in server.requests if "watch" not in request] == [
            {"limit": "4"},
            {"limit": "4", "continue": "4"},
            {},
        ]


async def test_a_dead_stream_is_left_and_the_place_kept(server: StubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server accepts the watch and never says anything again, not even that it ends."""
    monkeypatch.setattr("bandkeeper.kube.reflector.IDLE_GRACE_S", 0.2)

    async def dead(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    server.watch_faults = [dead]
    async with following(server, watch_s=0.2) as follower:
        await until(lambda: server.watching)
        assert follower.naps
        server.add("c")
        await server.tell()
        await until(lambda: "c" in follower.names)
        assert server.lists == 1


async def test_bookmarks_are_proof_of_life_and_move_the_place(server: StubServer) -> None:
    async with following(server) as follower:
        await until(lambda: server.watching)
        server.version += 50  # other kinds changed
        await until(lambda: sum("watch" in request for request in server.requests) >= 3)
        watches = [request for request in server.requests if "watch" in request]
        assert watches[0]["resourceVersion"] == "102"
        assert watches[-1]["resourceVersion"] == "152"
        assert all(request["allowWatchBookmarks"] == "true" for request in watches)
        assert follower.reflector.age_s() < 1.5
        assert server.lists == 1
        assert follower.naps == []


async def test_a_silent_watch_is_checked_and_goes_on_without_a_list(server: StubServer) -> None:
    """A server without events of this kind since its start sends no bookmarks."""
    server.bookmarks = False
    async with following(server) as follower:
        await until(lambda: sum("watch" in request for request in server.requests) >= 3)
        assert server.lists == 1
        assert follower.reflector.age_s() < 1.5
        assert follower.naps == []


async def test_a_server_restored_from_a_backup_is_listed_again(server: StubServer) -> None:
    """Our place lies in its future: such a watch hears nothing, for ever."""
    server.bookmarks = False
    async with following(server) as follower:
        await until(lambda: server.watching)
        server.remove("a")
        server.version, server.history = 50, []
        await until(lambda: follower.gone)
        assert follower.names == {"b"}


async def test_watches_that_end_at_once_are_not_hammered(server: StubServer) -> None:
    async def shut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        return response

    server.watch_faults = [shut] * 5
    async with following(server) as follower:
        await until(lambda: server.watching)
        assert len(follower.naps) == 5
        assert max(follower.naps) > 1.0


async def test_namespaces_are_followed_one_by_one(server: StubServer) -> None:
    server.add("c", namespace="third")
    async with following(server, namespaces=("default", "other")) as follower:
        await synced(follower)
        assert follower.names == {"a", "b"}
        await until(lambda: server.watching == 2)
        server.remove("a")
        server.compact()
        await server.cut()
        await until(lambda: follower.gone)
        assert follower.names == {"b"}  # the list of one namespace says nothing about another


async def test_an_optional_kind_that_is_missing_is_an_empty_store(server: StubServer) -> None:
    server.list_faults = [404, 404, 403]
    async with following(server, optional=True) as follower:
        await synced(follower)
        assert follower.names == set()
        assert follower.reflector.problem == ""
        await until(lambda: server.watching)  # it was installed meanwhile
        assert follower.names == {"a", "b"}
        assert follower.naps == [30.0] * 3


async def test_an_optional_kind_that_must_not_be_read_says_so(server: StubServer) -> None:
    server.list_faults = [403] * 1000
    async with following(server, optional=True) as follower:
        await synced(follower)
        assert follower.reflector.problem == "/api/v1/pods cannot be read: 403 Forbidden: said 403"


async def test_objects_of_no_interest_and_odd_ones_are_left_out(server: StubServer) -> None:
    server.add("odd", odd=True)
    server.add("done", done=True)
    async with following(server) as follower:
        await until(lambda: server.watching)
        assert follower.names == {"a", "b"}
        server.add("a", done=True)
        await server.tell()
        await until(lambda: follower.gone)
        assert follower.names == {"b"}


async def test_a_subscriber_that_fails_harms_no_one(server: StubServer) -> None:
    async with server.running() as client:
        follower = Follower(client)

        def fail(_: Change[str]) -> None:
            raise RuntimeError("subscriber")

        follower.reflector.subscribe(fail)
        later: list[Change[str]] = []
        follower.reflector.subscribe(later.append)
        task = asyncio.create_task(follower.reflector.run())
        await until(lambda: len(later) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_answers_that_make_no_sense_are_survived(server: StubServer) -> None:
    async def nonsense(_: web.Request) -> web.StreamResponse:
        return web.json_response({"items": [{"metadata": {}}], "metadata": {}})

    server.list_faults = [nonsense]
    async with following(server) as follower:
        await until(lambda: server.watching)
        assert len(follower.naps) == 1
        assert follower.names == {"a", "b"}


async def test_events_of_a_kind_not_known_yet_are_passed_over(server: StubServer) -> None:
    async with following(server) as follower:
        await until(lambda: server.watching)
        server.version += 1
        server.history.append((server.version, {"type": "NEWS", "object": {"metadata": {"namespace": "default"}}}))
        server.add("c")
        await server.tell()
        await until(lambda: "c" in follower.names)
        assert follower.naps == []


async def test_after_a_fault_the_store_soon_says_that_all_is_well(server: StubServer) -> None:
    """The first watch after it is a short one, whose bookmark clears the problem and ends the back-off."""
    server.list_faults = [500]
    async with following(server, watch_s=30.0) as follower:
        await until(lambda: follower.reflector.problem)
        await until(lambda: server.watching)
        watch = next(request for request in server.requests if "watch" in request)
        assert int(watch["timeoutSeconds"]) <= 5
        assert follower.reflector.problem == ""
