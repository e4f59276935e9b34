"""The Prometheus reader against a stub that answers as badly as servers and proxies do."""

from __future__ import annotations

import asyncio
import json
import math
import os
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from bandkeeper.signals.answer import Answer, MalformedError, RangeError, parse
from bandkeeper.signals.prometheus import (
    ErrorKind,
    PrometheusError,
    PrometheusReader,
    PrometheusServer,
)
from tests.cluster.pki import Authority


def vector(*samples: tuple[dict[str, str], str], **more: Any) -> bytes:
    result = [{"metric": labels, "value": [1700000000.5, value]} for labels, value in samples]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}, **more}).encode()


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: str

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body).items()}


@dataclass
class Reply:
    status: int = 200
    body: bytes = vector(({"pod": "a"}, "1"))
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None
    pieces: Iterator[bytes] | None = None


class Stub:
    """An HTTP server that gives the same reply each time and remembers what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.reply = Reply()
        self.requests: list[Request] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                stub.requests.append(Request(self.command, self.path, dict(self.headers), body))
                reply = stub.reply
                reply.before()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    if reply.pieces is None:
                        self.send_header("Content-Length", str(len(reply.body)))
                    else:
                        self.send_header("Connection", "close")
                    self.end_headers()
                    for piece in reply.pieces or [reply.body]:
                        self.wfile.write(piece)
                        self.wfile.flush()
                except OSError:
                    self.close_connection = True  # the reader gave up
                if reply.pieces is not None:
                    self.close_connection = True

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None: ...  # refused handshakes

        self._server = Server(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def stub() -> Iterator[Stub]:
    found = Stub()
    yield found
    found.close()


@pytest.fixture
def reader(stub: Stub) -> Iterator[PrometheusReader]:
    found = PrometheusReader(PrometheusServer(name="default", url=stub.url, timeout_s=2))
    yield found
    found.close()


async def ask(stub: Stub, **settings: Any) -> Answer:
    settings = {"name": "default", "url": stub.url, "timeout_s": 2, **settings}
    reader = PrometheusReader(PrometheusServer(**settings))
    try:
        return await reader.query("up")
    finally:
        reader.close()


def _wait(event: threading.Event) -> None:
    event.wait(5)


async def failure(reader: PrometheusReader) -> PrometheusError:
    with pytest.raises(PrometheusError) as caught:
        await reader.query("up")
    return caught.value


# What is sent.


async def test_the_query_is_in_the_body(stub: Stub, reader: PrometheusReader) -> None:
    long = "sum(up{pod=~'" + "|".join(f"pod-{number}" for number in range(5000)) + "'})"
    await reader.query(long, at_s=1700000000)
    (request,) = stub.requests
    assert (request.method, request.path) == ("POST", "/api/v1/query")
    assert request.form["query"] == long
    assert request.form["time"] == "1700000000.000"
    assert 0 < float(request.form["timeout"]) < 2  # the server gives up first
    assert request.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in request.headers


async def test_without_a_time_the_server_uses_its_own(stub: Stub, reader: PrometheusReader) -> None:
    await reader.query("up")
    assert set(stub.requests[0].form) == {"query", "timeout"}


async def test_a_path_before_the_api(stub: Stub) -> None:
    await ask(stub, url=f"{stub.url}/prometheus/")
    assert stub.requests[0].path == "/prometheus/api/v1/query"


async def test_headers_of_a_tenant(stub: Stub) -> None:
    await ask(stub, headers={"X-Scope-OrgID": "team-a"})
    assert stub.requests[0].headers["X-Scope-OrgID"] == "team-a"


async def test_basic_authentication(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("open sesame\n")
    await ask(stub, username="ali", password_file=tmp_path / "password")
    assert stub.requests[0].headers["Authorization"] == "Basic YWxpOm9wZW4gc2VzYW1l"


async def test_a_bearer_token_is_read_again_when_it_changes(stub: Stub, tmp_path: Path) -> None:
    token = tmp_path / "token"  # as kubelet does it: a link that is moved to another file
    (tmp_path / "one").write_text("first\n")
    (tmp_path / "two").write_text("other\n")
    token.symlink_to(tmp_path / "one")
    reader = PrometheusReader(PrometheusServer(name="default", url=stub.url, bearer_token_file=token))
    await reader.query("up")
    (tmp_path / "link").symlink_to(tmp_path / "two")
    os.replace(tmp_path / "link", token)
    await reader.query("up")
    token.unlink()
    with pytest.raises(PrometheusError, match="cannot be read") as caught:
        await reader.query("up")
    reader.close()
    assert [request.headers["Authorization"] for request in stub.requests] == ["Bearer first", "Bearer other"]
    assert caught.value.kind is ErrorKind.UNAUTHORIZED


async def test_netrc_is_not_sent(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    await ask(stub)
    assert "Authorization" not in stub.requests[0].headers


async def test_no_cookies_are_kept(stub: Stub, reader: PrometheusReader) -> None:
    stub.reply.headers = {"Set-Cookie": "session=1"}
    await reader.query("up")
    await reader.query("up")
    assert "Cookie" not in stub.requests[1].headers


# What comes back.


async def test_samples(stub: Stub, reader: PrometheusReader) -> None:
    stub.reply.body = vector(({"pod": "a"}, "1.5"), ({"pod": "b"}, "NaN"), ({"pod": "c"}, "+Inf"), ({}, "-Inf"))
    samples = [*(await reader.query("up")).samples]
    assert samples[0] == ({"pod": "a"}, 1.5, 1700000000.5)
    assert math.isnan(samples[1][1])
    assert [value for _, value, _ in samples[2:]] == [math.inf, -math.inf]


async def test_a_scalar_is_one_sample(stub: Stub, reader: PrometheusReader) -> None:
    stub.reply.body = b'{"status":"success","data":{"resultType":"scalar","result":[1700000000,"42"]}}'
    assert (await reader.query("42")).samples == (({}, 42.0, 1700000000.0),)


async def test_warnings_are_kept_and_infos_are_not(stub: Stub, reader: PrometheusReader) -> None:
    stub.reply.body = vector(({}, "1"), warnings=["store a is gone"], infos=["metric might not be a counter"])
    assert (await reader.query("up")).warnings == ("store a is gone",)
    stub.reply.body = vector(({}, "1"), warnings=["PromQL info: metric might not be a counter"])
    assert (await reader.query("up")).warnings == ()
    stub.reply.body = vector(({}, "1"), isPartial=True)
    assert (await reader.query("up")).warnings == ("the answer is partial",)


async def test_an_empty_answer(stub: Stub, reader: PrometheusReader) -> None:
    stub.reply.body = vector()
    assert (await reader.query("up")).samples == ()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, b"", ErrorKind.UNAUTHORIZED, "refuses the login (401)"),
        (403, b"no", ErrorKind.UNAUTHORIZED, "bearerTokenFile"),
        (
            400,
            b'{"status":"error","errorType":"bad_data","error":"parse error: unexpected end"}',
            ErrorKind.BAD_QUERY,
            "rejects the query (400: parse error: unexpected end)",
        ),
        (422, b'{"errorType":"execution","error":"many-to-many matching"}', ErrorKind.BAD_QUERY, "many-to-many"),
        (
            422,
            b'{"errorType":"execution","error":"query processing would load too many samples into memory"}',
            ErrorKind.TOO_LARGE,
            "aggregate more",
        ),
        (413, b"", ErrorKind.TOO_LARGE, "too large"),
        (404, b"404 page not found", ErrorKind.MALFORMED, "no query API there (404)"),
        (503, b"", ErrorKind.SERVER_ERROR, "fails (503)"),
        (503, b'{"errorType":"timeout","error":"query timed out"}', ErrorKind.TIMEOUT, "gave up on the query"),
        (500, b'[1, "odd"]', ErrorKind.SERVER_ERROR, "fails (500)"),
        (429, b"slow down", ErrorKind.SERVER_ERROR, "fails (429)"),
        (200, b"<html><title>Log in</title></html>", ErrorKind.MALFORMED, "a web page, perhaps a login"),
        (200, b"", ErrorKind.MALFORMED, "something else"),
        (200, b"{}", ErrorKind.MALFORMED, "something else"),
        (200, b'{"data":{"resultType":"vector","result":[{"metric":{},"value":[1,"one"]}]}}', ErrorKind.MALFORMED, ""),
        (200, b'{"data":{"resultType":"vector","result":[{"metric":{},"value":[1', ErrorKind.MALFORMED, ""),
        (200, b'{"data":{"resultType":"vector","result":[1,2]}}', ErrorKind.MALFORMED, ""),
        (200, b"\xff\xfe", ErrorKind.MALFORMED, ""),
        (200, b'{"data":{"resultType":"matrix","result":[]}}', ErrorKind.BAD_QUERY, "gives a matrix"),
    ],
)
async def test_failures_are_sentences(
    stub: Stub, reader: PrometheusReader, status: int, body: bytes, kind: ErrorKind, words: str
) -> None:
    stub.reply = Reply(status=status, body=body)
    error = await failure(reader)
    assert error.kind is kind
    assert words in str(error)
    assert str(error).startswith(f"Prometheus default ({stub.url}): ")
    assert len(stub.requests) == 1  # asked once, whatever happens


async def test_the_next_query_after_a_failure_works(stub: Stub, reader: PrometheusReader) -> None:
    stub.reply = Reply(status=503)
    await failure(reader)
    stub.reply = Reply()
    assert (await reader.query("up")).samples


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(stub: Stub, tmp_path: Path, status: int) -> None:
    elsewhere = Stub()
    (tmp_path / "token").write_text("secret")
    stub.reply = Reply(status=status, headers={"Location": f"{elsewhere.url}/login?next=x"})
    with pytest.raises(PrometheusError, match=f"redirects to {elsewhere.url}/login:") as caught:
        await ask(stub, bearer_token_file=tmp_path / "token")
    elsewhere.close()
    assert caught.value.kind is ErrorKind.MALFORMED
    assert elsewhere.requests == []


async def test_an_answer_that_never_comes(stub: Stub) -> None:
    over = threading.Event()
    stub.reply = Reply(before=lambda: _wait(over))
    began = time.monotonic()
    with pytest.raises(PrometheusError, match=r"no answer within 0\.5 s") as caught:
        await ask(stub, timeout_s=0.5)
    over.set()
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - began < 1.5
    assert len(stub.requests) == 1


async def test_an_answer_that_drips(stub: Stub) -> None:
    def drops() -> Iterator[bytes]:
        for _ in range(40):
            time.sleep(0.1)
            yield b" "

    stub.reply = Reply(pieces=drops())
    began = time.monotonic()
    with pytest.raises(PrometheusError) as caught:
        await ask(stub, timeout_s=0.5)
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - began < 1.5


async def test_a_dripping_answer_frees_its_thread(stub: Stub) -> None:
    def drops() -> Iterator[bytes]:
        for _ in range(40):
            time.sleep(0.1)
            yield b" "

    reader = PrometheusReader(PrometheusServer(name="default", url=stub.url, timeout_s=0.5), workers=1)
    stub.reply = Reply(pieces=drops())
    await failure(reader)
    stub.reply = Reply()
    await asyncio.sleep(0.3)
    assert (await reader.query("up")).samples
    reader.close()


async def test_what_waits_for_a_thread_waits_no_longer_than_its_timeout(stub: Stub) -> None:
    over = threading.Event()
    stub.reply = Reply(before=lambda: _wait(over))
    reader = PrometheusReader(PrometheusServer(name="default", url=stub.url, timeout_s=0.5), workers=1)
    began = time.monotonic()
    results = await asyncio.gather(*(reader.query("up") for _ in range(5)), return_exceptions=True)
    over.set()
    reader.close()
    assert [type(result) for result in results] == [PrometheusError] * 5
    assert time.monotonic() - began < 1.5
    assert len(stub.requests) == 1


async def test_an_endless_answer(stub: Stub, reader: PrometheusReader) -> None:
    def flood() -> Iterator[bytes]:
        while True:
            yield b" " * 1_000_000

    stub.reply = Reply(pieces=flood())
    error = await failure(reader)
    assert error.kind is ErrorKind.TOO_LARGE
    assert "larger than 8 MB" in str(error)


async def test_nothing_listens(stub: Stub, reader: PrometheusReader) -> None:
    stub.close()
    error = await failure(reader)
    assert error.kind is ErrorKind.UNREACHABLE
    assert "cannot be reached (Connection refused): check that it runs" in str(error)


async def test_a_name_that_does_not_resolve() -> None:
    reader = PrometheusReader(PrometheusServer(name="default", url="http://nowhere.invalid:9090", timeout_s=2))
    error = await failure(reader)
    reader.close()
    assert error.kind in (ErrorKind.UNREACHABLE, ErrorKind.TIMEOUT)
    assert "nowhere.invalid" in str(error)


# TLS.


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


def tls_stub(authority: Authority, *, client_ca: Path | None = None) -> Stub:
    pair = authority.issue("server", "prometheus", usage="server", hosts=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return Stub(context)


@pytest.fixture
def tls(authority: Authority) -> Iterator[Stub]:
    found = tls_stub(authority)
    yield found
    found.close()


async def test_the_ca_file_wins_over_the_environment(
    tls: Stub, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority(tmp_path / "other", "ca")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.certificate))
    assert (await ask(tls, ca_file=authority.certificate)).samples
    with pytest.raises(PrometheusError, match=r"TLS fails \(.*certificate.*check caFile") as caught:
        await ask(tls, ca_file=other.certificate)
    assert caught.value.kind is ErrorKind.UNREACHABLE


async def test_an_unknown_authority(tls: Stub) -> None:
    with pytest.raises(PrometheusError, match="TLS fails"):
        await ask(tls)


async def test_a_missing_ca_file(tls: Stub, tmp_path: Path) -> None:
    with pytest.raises(PrometheusError, match=r"none\.crt: check caFile") as caught:
        await ask(tls, ca_file=tmp_path / "none.crt")
    assert caught.value.kind is ErrorKind.UNREACHABLE


async def test_a_person_may_skip_verification(tls: Stub) -> None:
    with warnings.catch_warnings():
        assert (await ask(tls, insecure_skip_verify=True)).samples


async def test_a_client_certificate(authority: Authority) -> None:
    stub = tls_stub(authority, client_ca=authority.certificate)
    pair = authority.issue("client", "bandkeeper", usage="client")
    shown = {"cert_file": pair.certificate, "key_file": pair.key}
    assert (await ask(stub, ca_file=authority.certificate, **shown)).samples
    with pytest.raises(PrometheusError) as caught:
        await ask(stub, ca_file=authority.certificate)
    stub.close()
    assert caught.value.kind is ErrorKind.UNREACHABLE


# Settings and parsing.


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("prometheus:9090", "is not a URL"),
        ("ftp://prometheus", "is not a URL"),
        ("http://", "is not a URL"),
        ("http://prometheus:port", "is not a URL"),
        ("http://me:secret@prometheus", "write username and passwordFile"),
        ("http://prometheus/?tenant=1", "must end before ?"),
    ],
)
def test_urls_that_cannot_be_used(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        PrometheusServer(name="default", url=url)


def test_a_label_that_looks_like_the_answer() -> None:
    tricky = {"a": '"result":[', "b": "]}", "c": 'x","warnings":["no"]'}
    answer = parse(vector((tricky, "1"), ({}, "2")))
    assert [*answer.samples] == [(tricky, 1.0, 1700000000.5), ({}, 2.0, 1700000000.5)]
    assert answer.warnings == ()


def test_the_parser_gets_an_answer_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the interpreter's lock: in one piece, 8 MB would hold up the event loop for 0.2 s and more."""
    lengths: list[int] = []
    loads, decoder = json.loads, json.JSONDecoder

    def counted_loads(text: str) -> Any:
        lengths.append(len(text))
        return loads(text)

    class CountedDecoder(decoder):  # type: ignore[misc,valid-type]
        def raw_decode(self, text: str, idx: int = 0) -> tuple[Any, int]:
            lengths.append(len(text))
            found: tuple[Any, int] = super().raw_decode(text, idx)
            return found

    labels = {f"label_{number}": 'a "quoted" },{ text' for number in range(8)}
    body = vector(*(({**labels, "pod": f"pod-{number}"}, "1") for number in range(20_000)))
    monkeypatch.setattr(json, "loads", counted_loads)
    monkeypatch.setattr(json, "JSONDecoder", CountedDecoder)
    seen = [labels for labels, _, _ in parse(body).samples]
    assert [labels["pod"] for labels in seen] == [f"pod-{number}" for number in range(20_000)]
    assert seen[-1]["label_7"] == 'a "quoted" },{ text'
    assert sum(lengths) >= len(body)
    assert max(lengths) < 140_000


def test_no_more_than_a_piece_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    loads = json.loads

    def counted_loads(text: str) -> Any:
        loaded.append(len(text))
        return loads(text)

    body = vector(*(({"pod": f"pod-{number}"}, "1") for number in range(10_000)))
    monkeypatch.setattr(json, "loads", counted_loads)
    samples = iter(parse(body).samples)
    assert next(samples)[0] == {"pod": "pod-0"}
    assert sum(loaded) < len(body) / 10
    assert len([*samples]) == 9_999
    assert sum(loaded) > len(body) * 0.9


async def test_an_answer_is_read_in_the_readers_thread(stub: Stub, reader: PrometheusReader) -> None:
    def take(answer: Answer) -> tuple[int, list[float]]:
        return threading.get_ident(), [value for _, value, _ in answer.samples]

    thread, values = await reader.read("up", take)
    assert thread != threading.get_ident()
    assert values == [1.0]


async def test_what_the_taker_raises_is_passed_on(stub: Stub, reader: PrometheusReader) -> None:
    def take(_: Answer) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await reader.read("up", take)
    assert (await reader.query("up")).samples  # the next one is not held up


async def test_a_series_that_is_none_is_found_while_reading(stub: Stub, reader: PrometheusReader) -> None:
    stub.reply.body = vector(*(({"pod": f"pod-{number}"}, "1") for number in range(1000)), ({}, "one"))
    error = await failure(reader)
    assert error.kind is ErrorKind.MALFORMED


def test_a_native_histogram_has_no_value() -> None:
    body = b'{"data":{"resultType":"vector","result":[{"metric":{},"histogram":[1,{"count":"3"}]}]}}'
    assert [*parse(body).samples] == []


@pytest.mark.parametrize(
    "body", [b"null", b"[]", b'{"data":null}', b'{"result":[]}' + b" " * 70_000 + b"x", b"x" * 70_000]
)
def test_text_that_is_no_answer(body: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(body)


def test_a_string_is_no_value() -> None:
    with pytest.raises(RangeError, match="string"):
        parse(b'{"data":{"resultType":"string","result":[1,"text"]}}')
