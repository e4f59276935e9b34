"""The client against a server on loopback: answers, errors, time limits, watches, credentials."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from bandkeeper.kube.client import (
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeClient,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    error_from_status,
)
from bandkeeper.kube.rate import TokenBucket
from tests.kube_fakes import client_of, status

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    def __init__(self) -> None:
        self.handler: Handler = lambda request: self.echo(request)
        self.url = ""
        self.seen: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return await self.handler(request)

    async def echo(self, request: web.Request) -> web.Response:
        body = await request.text()
        return web.json_response(
            {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "type": request.headers.get("Content-Type"),
                "agent": request.headers["User-Agent"],
                "body": json.loads(body) if body else None,
            }
        )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[KubeClient]:
    async with client_of(server.url) as client:
        yield client


async def test_methods_send_what_they_say(client: KubeClient) -> None:
    got = await client.get("/api/v1/pods", params={"labelSelector": "app in (a,b)"})
    assert (got["method"], got["path"], got["query"]) == ("GET", "/api/v1/pods", {"labelSelector": "app in (a,b)"})
    assert got["agent"].startswith("bandkeeper/")
    assert (await client.post("/x", {"a": 1}))["body"] == {"a": 1}
    assert (await client.put("/x", {"a": None}))["body"] == {"a": None}
    patched = await client.patch("/x/scale", {"spec": {}}, params={"dryRun": "All"})
    assert (patched["method"], patched["type"]) == ("PATCH", "application/merge-patch+json")
    assert patched["query"] == {"dryRun": "All"}
    operations = [{"op": "add", "path": "/status", "value": {}}]
    assert (await client.patch("/x", operations, content_type="application/json-patch+json"))["body"] == operations
    applied = await client.patch("/x", {"a": 1}, content_type="application/apply-patch+yaml")
    assert (applied["type"], applied["body"]) == ("application/apply-patch+yaml", {"a": 1})
    assert (await client.delete("/x"))["method"] == "DELETE"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, ApiError),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Gone),
        (422, Invalid),
        (429, TooManyRequests),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_each_refusal_has_its_exception_and_the_servers_sentence(
    server: Server, client: KubeClient, code: int, kind: type[ApiError]
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(status(code, "Because", "do this instead"), status=code)

    server.handler = refuse
    with pytest.raises(ApiError) as caught:
        await client.get("/x")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason, caught.value.message) == (code, "Because", "do this instead")
    assert str(caught.value) == f"{code} Because: do this instead"


async def test_retry_after_is_handed_on(server: Server, client: KubeClient) -> None:
    async def busy(_: web.Request) -> web.Response:
        return web.json_response(status(429), status=429, headers={"Retry-After": "7"})

    server.handler = busy
    with pytest.raises(TooManyRequests) as caught:
        await client.get("/x")
    assert caught.value.retry_after_s == 7.0


def test_retry_after_of_an_event_is_in_its_details() -> None:
    error = error_from_status({"code": 429, "reason": "TooManyRequests", "details": {"retryAfterSeconds": 3}})
    assert isinstance(error, TooManyRequests)
    assert error.retry_after_s == 3.0
    assert isinstance(error_from_status({"message": "no code at all"}), Unavailable)


async def test_an_error_page_of_a_proxy_is_quoted(server: Server, client: KubeClient) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>\n bad   gateway</html>")

    server.handler = page
    with pytest.raises(Unavailable, match="bad gateway"):
        await client.get("/x")


async def test_a_login_page_instead_of_an_api_says_so(server: Server, client: KubeClient) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>please log in</html>", content_type="text/html")

    server.handler = page
    with pytest.raises(Unavailable, match=r"is .* an API server"):
        await client.get("/x")


async def test_a_hung_server_costs_the_timeout_and_no_more(server: Server, client: KubeClient) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        raise AssertionError

    server.handler = hang
    begun_at = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable) as caught:
        await client.get("/x", timeout_s=0.2)
    assert (caught.value.status, caught.value.reason) == (0, "Timeout")
    assert asyncio.get_running_loop().time() - begun_at < 2.0


async def test_no_server_at_all_is_unavailable() -> None:
    async with client_of("http://127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"no answer from the API server at http://127\.0\.0\.1:1") as caught:
            await client.get("/x")
        assert caught.value.status == 0
        with pytest.raises(Unavailable):
            await anext(client.watch("/x", params={}, idle_timeout_s=1))


async def test_the_timeout_includes_the_wait_for_the_rate_limit_which_urgent_calls_skip(server: Server) -> None:
    async with client_of(server.url, qps=0.1, burst=1) as client:
        await client.get("/x")
        with pytest.raises(Unavailable, match=r"within 0\.1 s"):
            await client.get("/x", timeout_s=0.1)
        assert (await client.get("/x", timeout_s=2, urgent=True))["path"] == "/x"


def stream(*chunks: bytes, then_hang: bool = False) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0.01)
        if then_hang:
            await asyncio.sleep(30)
        return response

    return answer


async def events_of(client: KubeClient, idle_timeout_s: float = 5.0) -> list[dict[str, Any]]:
    params = {"resourceVersion": "1"}
    return [event async for event in client.watch("/x", params=params, idle_timeout_s=idle_timeout_s)]


async def test_watch_yields_events_however_the_bytes_arrive(server: Server, client: KubeClient) -> None:
    big = json.dumps({"type": "ADDED", "object": {"data": "x" * 6_000_000}}).encode()
    server.handler = stream(b'{"type": "BOOK', b'MARK"}\n{"type": "ERROR"}\n\n', big + b"\n")
    assert [event["type"] for event in await events_of(client)] == ["BOOKMARK", "ERROR", "ADDED"]
    assert dict(server.seen[0].query) == {"resourceVersion": "1", "watch": "true"}


async def test_a_silent_watch_ends_after_the_idle_timeout(server: Server, client: KubeClient) -> None:
    server.handler = stream(b'{"type": "BOOKMARK"}\n', then_hang=True)
    with pytest.raises(Unavailable) as caught:
        await events_of(client, idle_timeout_s=0.2)
    assert caught.value.reason == "Timeout"


async def test_a_refused_watch_raises_its_reason(server: Server, client: KubeClient) -> None:
    async def gone(_: web.Request) -> web.Response:
        return web.json_response(status(410), status=410)

    server.handler = gone
    with pytest.raises(Gone):
        await events_of(client)


async def test_a_watch_of_garbage_is_unavailable(server: Server, client: KubeClient) -> None:
    server.handler = stream(b"<html>\n")
    with pytest.raises(Unavailable, match="not JSON"):
        await events_of(client)


async def test_leaving_a_watch_early_closes_its_connection(server: Server, client: KubeClient) -> None:
    closed = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "BOOKMARK"}\n')
        try:
            await asyncio.sleep(30)
        finally:
            closed.set()
        return response

    server.handler = endless
    events = client.watch("/x", params={}, idle_timeout_s=30)
    assert await anext(events) == {"type": "BOOKMARK"}
    await events.aclose()
    await asyncio.wait_for(closed.wait(), 5)


def kubeconfig(path: Path, url: str, user: dict[str, Any]) -> str:
    path.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return str(path)


async def test_connect_reads_a_kubeconfig_and_renews_its_token_after_a_401(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")

    async def guard(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer new":
            return web.json_response(status(401), status=401)
        return await server.echo(request)

    server.handler = guard
    path = kubeconfig(tmp_path / "config", server.url, {"tokenFile": str(token)})
    async with await KubeClient.connect(path) as client:
        assert client.host == server.url
        token.write_text("new")
        with pytest.raises(Unauthorized):
            await client.get("/x")
        assert (await client.get("/x"))["path"] == "/x"


async def test_connect_prefers_the_environment_to_the_home_directory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "config", server.url, {}))
    async with await KubeClient.connect() as client:
        assert client.host == server.url


async def test_connect_uses_the_home_directory_where_the_environment_is_silent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".kube").mkdir()
    kubeconfig(tmp_path / ".kube" / "config", server.url, {})
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with await KubeClient.connect() as client:
        assert client.host == server.url


async def test_connect_without_any_credentials_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Unavailable, match="name a kubeconfig, set KUBECONFIG, or run in a pod"):
        await KubeClient.connect()
    with pytest.raises(Unavailable, match="cannot be used"):
        await KubeClient.connect(str(tmp_path / "missing"))


async def test_a_proxy_from_the_environment_is_not_used_for_loopback(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with await KubeClient.connect(kubeconfig(tmp_path / "config", server.url, {})) as client:
        assert (await client.get("/x"))["path"] == "/x"


async def test_credentials_that_cannot_be_renewed_do_not_hide_the_401(server: Server) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(status(401), status=401)

    async def broken() -> None:
        raise RuntimeError("no such plugin")

    server.handler = refuse
    api = ApiClient(Configuration(host=server.url))
    async with KubeClient(api, bucket=TokenBucket(10, 10), renew_credentials=broken) as client:
        with pytest.raises(Unauthorized):
            await client.get("/x")


async def test_a_large_answer_is_read_whole_and_leaves_the_garbage_collector_on(
    server: Server, client: KubeClient
) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.json_response({"items": [{"name": f"pod-{number}"} for number in range(20_000)]})

    server.handler = page
    assert len((await client.get("/x"))["items"]) == 20_000
    assert gc.isenabled()
