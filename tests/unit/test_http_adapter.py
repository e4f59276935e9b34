"""The HTTP adapter against real servers on 127.0.0.1: what is sent, what is believed, what is said when it fails."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from bandkeeper.actuate.adapter import AdapterError, Means
from bandkeeper.actuate.errors import PodError
from bandkeeper.actuate.http import HTTP
from bandkeeper.actuate.outcome import CapReading, CapResult, Outcome
from bandkeeper.actuate.pod_access import Credential, PodAccess
from bandkeeper.actuate.pod_http import ANSWER_MOST_BYTES, AT_ONCE, MOST_VALUES, Answer, each
from bandkeeper.actuate.registry import batch_adapter
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter, AdapterType
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import KubeClient
from tests.cluster.pki import Authority
from tests.unit.pod_servers import DEPLOYMENTS, Handler, PodServers, a_pod, a_workload, answers, hangs
from tests.unit.runtime_world import World

NO_CLIENT = cast(KubeClient, None)
SETTINGS: dict[str, Any] = {
    "port": 8000,
    "path": "/admin/batch",
    "body": '{"max": {cap}}',
    "timeout": "500ms",
    "readBack": {"path": "/admin/batch", "pointer": "/limits/max"},
}


@pytest.fixture
async def servers() -> AsyncIterator[PodServers]:
    made = PodServers()
    await made.start("chat-0", "chat-1")
    yield made
    await made.stop()


def an_adapter(servers: PodServers | None, *, access: PodAccess | None = None, **changed: Any) -> HTTP:
    """The adapter of a policy in namespace serving, with settings `changed`, None to leave one out."""
    settings = {name: value for name, value in (SETTINGS | changed).items() if value is not None}
    spec = Adapter.model_validate_json(json.dumps({"type": "HTTP", "http": settings}))
    return HTTP.of(
        spec,
        Means(
            client=NO_CLIENT,
            namespace="serving",
            pod_access=access or PodAccess(),
            address_of=servers.address_of if servers else None,
        ),
    )


async def apply(adapter: HTTP, cap: int, *pods: Pod, within_s: float = 5.0) -> CapResult:
    return await adapter.apply(a_workload(*pods), cap, deadline=time.monotonic() + within_s)


async def read(adapter: HTTP, *pods: Pod) -> CapReading:
    return await adapter.read_back(a_workload(*pods), deadline=time.monotonic() + 5.0)


# What is sent.


async def test_only_ready_pods_whose_cap_differs_are_told(servers: PodServers) -> None:
    adapter = an_adapter(servers)
    assert (adapter.cost_class, adapter.reads_back, adapter.right(DEPLOYMENTS)) == (CostClass.LIVE, True, None)
    pods = (a_pod("chat-0", 16), a_pod("chat-1", 8), a_pod("chat-2", None, state=PodState.PENDING))
    result = await apply(adapter, 16, *pods)
    assert (result.outcome, result.written, result.failed) == (Outcome.WRITTEN, 1, {})
    assert servers.sent() == [("chat-1", '{"max": 16}')]
    assert servers.asked[0].headers["Content-Type"] == "application/json"
    assert adapter.settled(a_workload(a_pod("chat-0", 16)), 16)
    assert not adapter.settled(a_workload(a_pod("chat-0")), 16)


async def test_the_template_is_filled_in(servers: PodServers) -> None:
    servers.odd["chat-0"] = answers(status=204)
    path = "/v1/{namespace}/{pod}?size={cap}"
    adapter = an_adapter(servers, path=path, body="<cap>{cap}</cap>", contentType="text/xml", method="PUT")
    assert (await apply(adapter, 8, a_pod("chat-0"))).outcome is Outcome.WRITTEN
    (asked,) = servers.asked
    assert (asked.method, asked.path, asked.body) == ("PUT", "/v1/serving/chat-0?size=8", "<cap>8</cap>")
    assert asked.headers["Content-Type"] == "text/xml"


async def test_without_a_body_none_is_sent(servers: PodServers) -> None:
    servers.odd["chat-0"] = answers()
    adapter = an_adapter(servers, path="/admin/batch?size={cap}", body=None)
    assert (await apply(adapter, 8, a_pod("chat-0"))).outcome is Outcome.WRITTEN
    assert (servers.asked[0].body, "Content-Type" in servers.asked[0].headers) == ("", False)


async def test_no_server_is_told_more_than_it_booted_with(servers: PodServers) -> None:
    adapter = an_adapter(servers)
    pods = (a_pod("chat-0", 8, capacity=16), a_pod("chat-1", 8))
    assert (await apply(adapter, 32, *pods)).outcome is Outcome.WRITTEN
    assert sorted(servers.sent()) == [("chat-0", '{"max": 16}'), ("chat-1", '{"max": 32}')]
    assert adapter.settled(a_workload(a_pod("chat-0", 16, capacity=16), a_pod("chat-1", 32)), 32)


async def test_a_few_are_told_at_a_time() -> None:
    servers, names = PodServers(), [f"chat-{number}" for number in range(3 * AT_ONCE)]
    await servers.start(*names)
    result = await apply(an_adapter(servers), 8, *(a_pod(name) for name in names))
    await servers.stop()
    assert result.written == len(names)
    assert 1 < servers.most_at_once <= AT_ONCE


# What is believed.


async def test_what_servers_say_is_read_by_pointer(servers: PodServers) -> None:
    servers.caps = {"chat-0": 8, "chat-1": 64}
    reading = await read(an_adapter(servers), a_pod("chat-0"), a_pod("chat-1"), a_pod("x", state=PodState.PENDING))
    assert reading == CapReading(caps={"chat-0": 8, "chat-1": 64}, failed={})
    assert {one.method for one in servers.asked} == {"GET"}


VALUES = [
    ("/a~1b/1", b'{"a/b": [1, 16]}', 16),
    ("", b"16", 16),
    ("/max", b'{"max": "16"}', 16),
    ("/max", b'{"max": 0}', "says 0 at /max, which is no batch cap of 1 or more"),
    ("/max", b'{"max": true}', "says true at /max"),
    ("/max", b'{"max": 16.5}', "says 16.5 at /max"),
    ("/max", b'{"max": null}', "says null at /max"),
    ("/max", b'{"min": 16}', "has no /max in its answer: see http.readBack.pointer"),
    ("/max/1", b'{"max": [1]}', "has no /max/1 in its answer"),
    ("/max", b"16", "has no /max in its answer"),
    ("", b"sixteen", "does not answer in JSON: see http.readBack.path"),
    ("", b"[" * 100_000, "does not answer in JSON"),
    ("", b"1" * 5000, "does not answer in JSON"),
    ("/max", b'{"max": "' + b"1" * 5000 + b'"}', 'says "111'),
]


@pytest.mark.parametrize(("pointer", "body", "expected"), VALUES)
async def test_what_a_server_answers_is_a_cap_or_a_sentence(
    servers: PodServers, pointer: str, body: bytes, expected: int | str
) -> None:
    servers.odd["chat-0"] = answers(body=body, content_type="application/json")
    reading = await read(an_adapter(servers, readBack={"path": "/x", "pointer": pointer}), a_pod("chat-0"))
    if isinstance(expected, int):
        assert reading.caps == {"chat-0": expected}
    else:
        assert reading.caps == {}
        assert expected in reading.failed["chat-0"]
        assert reading.failed["chat-0"].startswith("pod chat-0, asked GET /x,")


async def test_without_read_back_what_was_written_counts_until_the_server_restarts(servers: PodServers) -> None:
    adapter = an_adapter(servers, readBack=None)
    assert await read(adapter, a_pod("chat-0")) == CapReading(assumed=True)
    assert (await apply(adapter, 8, a_pod("chat-0"))).outcome is Outcome.WRITTEN
    assert (await read(adapter, a_pod("chat-0"))).caps == {"chat-0": 8}
    assert adapter.settled(a_workload(a_pod("chat-0")), 8)
    assert not adapter.settled(a_workload(a_pod("chat-0", restarts=1)), 8)
    assert not adapter.settled(a_workload(a_pod("chat-0", uid="another")), 8)
    assert (await read(adapter, a_pod("chat-0", restarts=1))).caps == {}


async def test_without_read_back_a_written_cap_counts_after_the_stated_delay(
    servers: PodServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = an_adapter(servers, readBack=None, delay="30s")
    assert adapter.expected_delay_s == 30.0
    await apply(adapter, 8, a_pod("chat-0"))
    assert (await read(adapter, a_pod("chat-0"))).caps == {}
    assert adapter.settled(a_workload(a_pod("chat-0")), 8)
    monkeypatch.setattr(adapter, "_clock", lambda: time.monotonic() + 30.0)
    assert (await read(adapter, a_pod("chat-0"))).caps == {"chat-0": 8}


async def test_a_server_that_says_the_old_cap_is_told_again_only_after_the_stated_delay(
    servers: PodServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = an_adapter(servers, delay="30s")
    await apply(adapter, 8, a_pod("chat-0", 64))
    assert adapter.settled(a_workload(a_pod("chat-0", 64)), 8)
    monkeypatch.setattr(adapter, "_clock", lambda: time.monotonic() + 30.0)
    assert not adapter.settled(a_workload(a_pod("chat-0", 64)), 8)


@pytest.mark.parametrize("read_back", [None, SETTINGS["readBack"]])
async def test_a_write_without_an_answer_leaves_nothing_believed(servers: PodServers, read_back: Any) -> None:
    adapter = an_adapter(servers, readBack=read_back)
    await apply(adapter, 8, a_pod("chat-0", 64))
    servers.odd["chat-0"] = hangs
    assert (await apply(adapter, 16, a_pod("chat-0", 8))).outcome is Outcome.FAILED
    assert not adapter.settled(a_workload(a_pod("chat-0", 8)), 8)  # it may have taken 16
    del servers.odd["chat-0"]
    assert (await apply(adapter, 8, a_pod("chat-0", 8))).outcome is Outcome.WRITTEN


# What is said when it fails.

FAILURES = [
    ("500", answers(status=500, text='{"error": "out of\\nmemory"}'), Outcome.FAILED,
     "pod chat-0, asked POST /admin/batch, answers 500 Internal Server Error: out of memory"),
    ("503 without words", answers(status=503), Outcome.FAILED, "answers 503 Service Unavailable"),
    ("429", answers(status=429, text="slow down"), Outcome.FAILED, "answers 429 Too Many Requests: slow down"),
    ("400", answers(status=400, text='{"detail": "too large"}'), Outcome.REFUSED,
     "answers 400 Bad Request: too large"),
    ("404", answers(status=404, text="no"), Outcome.REFUSED, "answers 404 Not Found: no"),
    ("401", answers(status=401, text="who?"), Outcome.REFUSED, "refuses the login (401: who?): see credential"),
    ("a web page", answers(text="<html>Hi", content_type="text/html"), Outcome.REFUSED,
     "answers with a web page (200): is it the right port and path?"),
    ("a web page of no type", answers(body=b" <!DOCTYPE html>"), Outcome.REFUSED, "answers with a web page (200)"),
    ("another host", answers(status=307, headers={"Location": "http://evil.example/take"}), Outcome.REFUSED,
     "redirects to another host, evil.example, which is refused"),
    ("another path", answers(status=308, headers={"Location": "/admin/batch/"}), Outcome.REFUSED,
     "redirects to /admin/batch/: write that path"),
    ("what cannot be shown", answers(status=400, body=b'{"error": "\\ud800 \\u001b[2Jno"}'), Outcome.REFUSED,
     "answers 400 Bad Request: [2Jno"),
    ("a reason that cannot be shown", answers(status=400, reason="Bad\u202eword"), Outcome.REFUSED,
     "answers 400 Bad word"),
    ("deep JSON", answers(status=500, body=b"[" * 60_000), Outcome.FAILED, "answers 500 Internal Server Error: [[["),
    ("no address", answers(status=302, headers={"Location": "http://[x"}), Outcome.REFUSED,
     "redirects to what is no address: see path"),
    ("too much", answers(body=b"x" * (ANSWER_MOST_BYTES + 1)), Outcome.FAILED, "answers with more than 256 kB"),
    ("nothing", hangs, Outcome.FAILED, "did not answer within 0.5 s"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "handler", "outcome", "says"), FAILURES, ids=[case[0] for case in FAILURES])
async def test_one_server_that_fails_is_named_and_the_others_are_told(
    servers: PodServers, name: str, handler: Handler, outcome: Outcome, says: str
) -> None:
    servers.odd["chat-0"] = handler
    adapter = an_adapter(servers)
    both = (a_pod("chat-0", 64), a_pod("chat-1", 64))
    result = await apply(adapter, 8, *both)
    assert (result.outcome, result.written, set(result.failed)) == (Outcome.PARTIAL, 1, {"chat-0"})
    assert says in result.message
    assert result.message.isprintable()
    assert servers.caps == {"chat-0": 64, "chat-1": 8}
    servers.asked.clear()
    result = await apply(adapter, 8, a_pod("chat-0", 64), a_pod("chat-1", 8))
    assert result.outcome is outcome
    assert [one.pod for one in servers.asked] == ["chat-0"]  # nobody else, and no host that it named


async def test_a_server_that_nobody_listens_for(servers: PodServers) -> None:
    result = await apply(an_adapter(servers), 8, a_pod("gone-0", 64), a_pod("gone-1", 64))
    assert result.outcome is Outcome.FAILED
    assert "pod gone-0, asked POST /admin/batch, cannot be reached (" in result.message
    assert result.message.endswith("see port, and network policies (and 1 more pods)")


async def test_an_unexpected_status_is_no_success(servers: PodServers) -> None:
    servers.odd["chat-0"] = answers(status=202)
    adapter = an_adapter(servers, expectStatus=[200, 204])
    result = await apply(adapter, 8, a_pod("chat-0", 64))
    assert result.message == "pod chat-0 answers 202 where expectStatus says 200 or 204"


async def test_no_request_begins_after_the_deadline(servers: PodServers) -> None:
    result = await apply(an_adapter(servers), 8, a_pod("chat-0", 64), within_s=0.0)
    assert result.outcome is Outcome.FAILED
    assert "no time was left" in result.message
    assert servers.asked == []


ADDRESSES = [
    "127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "evil.example",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
async def test_nothing_is_sent_to_an_address_that_no_pod_can_have(address: str) -> None:
    result = await apply(an_adapter(None), 8, a_pod("chat-0", 64, address=address))
    assert result.message == f"pod chat-0 has the address {address}, which no pod can have: nothing is sent there"


@pytest.mark.parametrize(
    "error", [RecursionError(), ValueError("odd"), AttributeError("odd"), TypeError("odd")], ids=repr
)
async def test_whatever_one_answer_leads_to_is_that_pods_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(pod: Pod) -> int:
        if pod.name == "chat-0":
            raise error
        return 8

    done, failed = await each([a_pod("chat-0"), a_pod("chat-1")], ask)
    assert done == {"chat-1": 8}
    assert str(failed["chat-0"]) == "pod chat-0 gave an answer that cannot be understood"
    assert failed["chat-0"].lasting
    assert [vars(record)["error"] for record in caplog.records] == [repr(error)]


async def test_a_failure_that_is_kept_holds_no_answer() -> None:
    async def ask(pod: Pod) -> None:
        try:
            raise OSError("no")
        except OSError as error:
            raise PodError("no") from error

    _, failed = await each([a_pod("chat-0")], ask)
    kept = failed["chat-0"]
    assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None)


async def test_pods_behind_those_that_hang_get_their_turn() -> None:
    servers, names = PodServers(), [f"chat-{number:02}" for number in range(2 * AT_ONCE + 2)]
    await servers.start(*names)
    servers.odd = dict.fromkeys(names[: 2 * AT_ONCE], hangs)
    adapter, late = an_adapter(servers, timeout="100ms"), names[-1]
    pods = [a_pod(name, 64) for name in names]
    result = await apply(adapter, 8, *pods, within_s=0.2)
    assert "not asked" in result.failed[late]
    assert late not in (await apply(adapter, 8, *pods, within_s=0.2)).failed
    await servers.stop()


@pytest.mark.parametrize(
    ("body", "fails"),
    [(b"[1, 2]", False), (b"[" * 5000, True), (b"[" + b"1," * MOST_VALUES + b"1]", True), (b"no", True)],
    ids=["good", "deep", "long", "no JSON"],
)
async def test_an_answer_is_parsed_only_where_that_holds_nobody_up(body: bytes, fails: bool) -> None:
    answer = Answer(status=200, body=body)
    if fails:
        with pytest.raises(ValueError):  # noqa: PT011
            await answer.parsed()
    else:
        assert await answer.parsed() == [1, 2]


async def test_a_pod_without_an_ip_is_not_asked() -> None:
    result = await apply(an_adapter(None), 8, a_pod("chat-0", 64, address=""))
    assert result.message == "pod chat-0 has no IP yet"


# Logging in, and TLS.


async def test_a_credential_is_sent_and_read_again(servers: PodServers, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    credential = Credential(name="chat", file=token, namespaces=frozenset({"serving"}))
    adapter = an_adapter(servers, access=PodAccess(credentials={"chat": credential}), credential="chat")
    await apply(adapter, 8, a_pod("chat-0", 64))
    token.write_text("two")
    await read(adapter, a_pod("chat-0"))
    assert [one.headers["Authorization"] for one in servers.asked] == ["Bearer one", "Bearer two"]
    token.unlink()
    result = await apply(adapter, 16, a_pod("chat-0", 8))
    assert result.outcome is Outcome.REFUSED
    assert f"{token} cannot be read" in result.message
    assert "cannot be read" in (await read(adapter, a_pod("chat-0"))).failed["chat-0"]
    token.write_text("one\ntwo")
    assert "must hold one line of text" in (await apply(adapter, 16, a_pod("chat-0", 8))).message


@pytest.mark.parametrize("status", [401, 403, 400, 500, 302])
async def test_a_credential_that_a_server_says_back_is_not_told(
    servers: PodServers, tmp_path: Path, status: int
) -> None:
    async def echo(name: str, request: web.Request) -> web.StreamResponse:
        got = request.headers["Authorization"]
        return web.json_response({"error": f"bad: {got}"}, status=status, reason=got, headers={"Location": f"/{got}"})

    token = tmp_path / "token"
    token.write_text("s3cr3t")
    credential = Credential(name="chat", file=token, namespaces=frozenset({"serving"}))
    servers.odd["chat-0"] = echo
    adapter = an_adapter(servers, access=PodAccess(credentials={"chat": credential}), credential="chat")
    result = await apply(adapter, 8, a_pod("chat-0", 64))
    assert "Bearer ***" in result.message
    assert "s3cr3t" not in result.message


@pytest.mark.parametrize(("name", "namespaces"), [("chat", {"other"}), ("other", {"serving"})])
def test_a_credential_is_for_the_namespaces_that_it_was_given_to(name: str, namespaces: set[str]) -> None:
    credential = Credential(name="chat", file=Path("token"), namespaces=frozenset(namespaces))
    with pytest.raises(AdapterError, match=f'no credential "{name}" for policies in namespace serving'):
        an_adapter(None, access=PodAccess(credentials={"chat": credential}), credential=name)


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[tuple[PodServers, Authority]]:
    authority = Authority(tmp_path, "ca")
    pair = authority.issue("server", "chat", usage="server", hosts=["chat.serving.svc"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    servers = PodServers(context)
    await servers.start("chat-0")
    yield servers, authority
    await servers.stop()


async def test_a_server_that_speaks_tls(tls: tuple[PodServers, Authority]) -> None:
    servers, authority = tls
    access = PodAccess(ca_file=authority.certificate)
    adapter = an_adapter(servers, access=access, scheme="HTTPS", serverName="chat.serving.svc")
    assert (await apply(adapter, 8, a_pod("chat-0", 64))).outcome is Outcome.WRITTEN
    assert (await read(adapter, a_pod("chat-0"))).caps == {"chat-0": 8}


async def test_tls_that_fails_is_said(tls: tuple[PodServers, Authority], tmp_path: Path) -> None:
    servers, authority = tls
    access, other = PodAccess(ca_file=authority.certificate), Authority(tmp_path / "other", "ca")
    cases: list[tuple[PodAccess, dict[str, Any], str]] = [
        (access, {"scheme": "HTTPS"}, "shows a certificate that is not trusted"),
        (access, {"scheme": "HTTPS", "serverName": "other.svc"}, "shows a certificate that is not trusted"),
        (PodAccess(ca_file=other.certificate), {"scheme": "HTTPS", "serverName": "chat.serving.svc"}, "not trusted"),
        (PodAccess(ca_file=tmp_path / "none"), {"scheme": "HTTPS"}, "is no file of CA certificates"),
        (access, {}, "cannot be reached"),
    ]
    for given, changed, says in cases:
        result = await apply(an_adapter(servers, access=given, **changed), 8, a_pod("chat-0", 64))
        assert says in result.message
        assert result.outcome in (Outcome.REFUSED, Outcome.FAILED)
    assert servers.asked == []


async def test_tls_to_a_server_that_does_not_speak_it(servers: PodServers) -> None:
    result = await apply(an_adapter(servers, scheme="HTTPS"), 8, a_pod("chat-0", 64))
    assert "does not speak TLS as it should" in result.message


# What the policy may say.


@pytest.mark.parametrize("body", ['{"max": {cap}', "cap={cap}", '{"max": "{cap}}'])
def test_a_body_that_is_not_what_it_says_is_refused(body: str) -> None:
    with pytest.raises(AdapterError, match=r"http.body is no JSON once \{cap\} is filled in"):
        an_adapter(None, body=body)
    an_adapter(None, body=body, contentType="text/plain")


def test_the_registry_makes_it() -> None:
    spec = Adapter.model_validate({"type": AdapterType.HTTP, "http": {"port": 1, "path": "/{cap}"}})
    assert isinstance(batch_adapter(spec, NO_CLIENT, enabled={AdapterType.HTTP}), HTTP)
    with pytest.raises(AdapterError, match="needs http with port and path"):
        batch_adapter(Adapter.model_construct(type=AdapterType.HTTP), NO_CLIENT, enabled={AdapterType.HTTP})


# As the control loop uses it.


BATCH = {"min": 4, "max": 64, "adapter": {"type": "HTTP", "http": SETTINGS}}


@pytest.fixture
async def world(servers: PodServers) -> AsyncIterator[World]:
    made = World(adapters={"http": True})
    made.address_of = servers.address_of
    made.metrics.running_per_pod = 5.0
    made.deploy(replicas=2)
    yield made
    await made.loop._stop()


async def look(world: World, *, after_s: float = 15.0) -> None:
    """One tick, and time for the servers to answer."""
    await world.look(after_s=after_s)
    for _ in range(200):
        if not world.loop._looking and not world.loop._acting:
            break
        await asyncio.sleep(0.01)
    await world.rest()


async def test_a_cap_that_somebody_set_outside_the_bounds_is_brought_in_by_one_request_per_pod(
    world: World, servers: PodServers
) -> None:
    servers.caps = dict.fromkeys(servers.caps, 2)
    world.elector.left_s = 0.0
    world.apply(batch=BATCH)
    await look(world)
    assert servers.sent() == []  # a standby asks only
    world.elector.left_s = 9.0
    await look(world)
    assert servers.caps == {"chat-0": 4, "chat-1": 4}
    assert len(servers.sent()) == 2
    assert world.condition("BatchApplied") == ("True", "Applied")
    status = world.status()
    assert status.batch is not None
    assert (status.batch.current, status.batch.desired, status.batch.source) == (4, 4, "ReadBack")
    (entry,) = status.history
    assert (entry.from_batch_cap, entry.batch_cap) == (2, 4)


async def test_a_pod_that_refuses_is_told_in_the_condition_until_it_takes_it(world: World, servers: PodServers) -> None:
    servers.caps = dict.fromkeys(servers.caps, 2)
    world.elector.left_s = 0.0
    world.apply(batch=BATCH)
    await look(world)
    world.elector.left_s = 9.0
    servers.odd["chat-1"] = refuses(servers)
    await look(world)
    assert world.condition("BatchApplied") == ("False", "PartiallyApplied")
    message = next(one.message for one in world.status().conditions if one.type == "BatchApplied")
    assert message == "pod chat-1, asked POST /admin/batch, answers 500 Internal Server Error: no memory"
    del servers.odd["chat-1"]
    servers.asked.clear()
    await look(world)
    await look(world)
    assert servers.sent() == [("chat-1", '{"max": 4}')]
    assert world.condition("BatchApplied") == ("True", "Applied")


def refuses(servers: PodServers) -> Handler:
    """Tells its cap, and takes no other."""

    async def answer(name: str, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return await servers.serve(name, request)
        return web.Response(status=500, text="no memory")

    return answer


async def test_an_adapter_that_cannot_work_is_a_condition_and_replicas_are_scaled_all_the_same(world: World) -> None:
    http = {**SETTINGS, "credential": "chat"}
    world.apply(batch={**BATCH, "adapter": {"type": "HTTP", "http": http}}, replicas={"min": 3, "max": 8})
    await look(world)
    assert world.condition("BatchApplied") == ("False", "AdapterUnavailable")
    assert world.written == [("chat", 3)]


async def test_without_read_back_the_cap_is_told_as_assumed(world: World, servers: PodServers) -> None:
    http = {name: value for name, value in SETTINGS.items() if name != "readBack"}
    world.apply(batch={**BATCH, "adapter": {"type": "HTTP", "http": http}})
    await look(world)
    await look(world)
    assert servers.sent("GET") == []
    assert len(servers.sent()) == 2
    assert world.condition("BatchApplied") == ("True", "Applied")
    status = world.status()
    assert status.batch is not None
    assert (status.batch.current, status.batch.source) == (64, "Assumed")
