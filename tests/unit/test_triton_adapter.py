"""The Triton adapter against a stand-in for the server's two endpoints; tests/servers has the real one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bandkeeper.actuate.adapter import Means, Workload
from bandkeeper.actuate.errors import AdapterError
from bandkeeper.actuate.outcome import CapResult, Outcome
from bandkeeper.actuate.pod_access import Credential, PodAccess
from bandkeeper.actuate.triton import LOAD_MOST_S, Triton, reloads_at_once
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter, AdapterType, Scheme, TritonAdapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource

DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", namespaced=True, scalable=True)
NOT_EXPLICIT = "explicit model load / unload is not allowed if polling is enabled"


def a_config(most: int = 2, **batching: Any) -> dict[str, Any]:
    """As Triton shows it: with the largest batch as the preferred one where none was given."""
    given = {"preferred_batch_size": [most], "max_queue_delay_microseconds": 0, "preserve_ordering": True, **batching}
    return {"name": "rows", "backend": "python", "max_batch_size": most, "dynamic_batching": given}


@dataclass
class Server:
    """One pod's Triton. `says` has what it answers to a path that ends so: status, text and headers."""

    config: dict[str, Any] = field(default_factory=a_config)
    says: dict[str, tuple[int, str, dict[str, str]]] = field(default_factory=dict)
    load_s: float = 0.0
    loads: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    address: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        self.keys += request.headers.getall("admin-key", [])
        what = request.path.rpartition("/")[2]
        if what in self.says:
            status, text, headers = self.says[what]
            return web.Response(status=status, text=text, headers=headers)
        if what == "config":
            return web.json_response(self.config)
        await asyncio.sleep(self.load_s)
        self.config = json.loads((await request.json())["parameters"]["config"])
        self.loads.append(self.config)
        return web.Response()


@dataclass
class Fleet:
    """Pods p0, p1, ... with a server each."""

    servers: dict[str, Server]
    capacity: int | None = None

    def adapter(
        self, *, access: PodAccess | None = None, clock: Callable[[], float] = time.monotonic, **settings: Any
    ) -> Triton:
        means = Means(
            client=cast(KubeClient, None),
            clock=clock,
            namespace="serving",
            pod_access=access or PodAccess(),
            address_of=lambda pod: self.servers[pod.name].address,
        )
        triton = TritonAdapter(model="rows", **settings)
        return Triton.of(Adapter(type=AdapterType.TRITON, triton=triton), means)

    def workload(self, **caps: int | None) -> Workload:
        """All pods are ready; what was read back of each is in `caps`."""
        pods = (Pod(name=name, uid=name, cap=caps.get(name), capacity=self.capacity) for name in self.servers)
        return Workload(namespace="serving", name="rows", resource=DEPLOYMENTS, uid="u", pods=tuple(pods))

    async def apply(self, adapter: Triton, cap: int, workload: Workload | None = None, *, in_s: float = 5) -> CapResult:
        return await adapter.apply(workload or self.workload(), cap, deadline=time.monotonic() + in_s)

    @property
    def caps(self) -> list[int]:
        return [server.config["max_batch_size"] for server in self.servers.values()]


MakeFleet = Callable[..., Awaitable[Fleet]]


@pytest.fixture
async def fleet() -> AsyncIterator[MakeFleet]:
    async with AsyncExitStack() as stack:

        async def made(*servers: Server, capacity: int | None = None) -> Fleet:
            for server in servers:
                application = web.Application()
                application.router.add_route("*", "/{path:.*}", server.handle)
                running = await stack.enter_async_context(TestServer(application))
                server.address = f"127.0.0.1:{running.port}"
            return Fleet({f"p{number}": server for number, server in enumerate(servers)}, capacity)

        yield made


async def test_the_cap_is_loaded_on_every_ready_pod_and_nothing_else_of_the_configuration_changes(
    fleet: MakeFleet,
) -> None:
    some = await fleet(Server(), Server())
    adapter = some.adapter()
    assert (adapter.cost_class, adapter.reads_back, adapter.right(DEPLOYMENTS)) == (CostClass.RELOAD, True, None)
    result = await some.apply(adapter, 16)
    assert (result.outcome, result.written, result.message) == (Outcome.WRITTEN, 2, "")
    assert some.servers["p0"].loads == [a_config(16, preferred_batch_size=[])]
    assert some.servers["p0"].asked == ["GET /v2/models/rows/config", "POST /v2/repository/models/rows/load"]


async def test_only_ready_pods_that_differ_are_asked(fleet: MakeFleet) -> None:
    some = await fleet(Server(), Server(), Server())
    workload = some.workload(p0=16, p1=2, p2=2)
    pods = (*workload.pods[:2], replace(workload.pods[2], state=PodState.PENDING))
    result = await some.apply(some.adapter(), 16, replace(workload, pods=pods))
    assert result.written == 1
    assert [len(server.asked) for server in some.servers.values()] == [0, 2, 0]
    assert some.adapter().settled(some.workload(p0=16, p1=16, p2=16), 16)
    assert not some.adapter().settled(some.workload(p0=16, p1=2, p2=16), 16)


async def test_a_model_that_has_the_cap_already_is_not_reloaded(fleet: MakeFleet) -> None:
    some = await fleet(Server(a_config(16)))
    result = await some.apply(some.adapter(), 16, some.workload(p0=None))
    assert (result.outcome, result.written) == (Outcome.UNCHANGED, 0)
    assert some.servers["p0"].loads == []


async def test_read_back_gives_what_the_servers_say_and_why_one_did_not(fleet: MakeFleet) -> None:
    some = await fleet(Server(a_config(8)), Server(says={"config": (500, '{"error": "out of order"}', {})}))
    reading = await some.adapter().read_back(some.workload(), deadline=time.monotonic() + 5)
    assert reading.caps == {"p0": 8}
    assert reading.failed == {"p1": 'Triton of pod p1 refused: "out of order"'}


async def test_what_a_restart_loses_is_written_again(fleet: MakeFleet) -> None:
    some = await fleet(Server())
    adapter = some.adapter()
    await some.apply(adapter, 16)
    some.servers["p0"].config = a_config(2)  # as on disk
    reading = await adapter.read_back(some.workload(), deadline=time.monotonic() + 5)
    seen = some.workload(**reading.caps)
    assert not adapter.settled(seen, 16)
    assert (await some.apply(adapter, 16, seen)).written == 1
    assert some.caps == [16]


SIZES: list[tuple[str, list[int], list[int] | None, int, list[int]]] = [
    ("Triton's own", [2], None, 16, []),
    ("those of the file that fit", [4, 8], None, 6, [4]),
    ("none of the file fits", [4, 8], None, 2, []),
    ("those of the policy", [2], [4, 8, 16], 8, [4, 8]),
    ("the policy wants none", [4, 8], [], 8, []),
]


@pytest.mark.parametrize(("name", "before", "asked", "cap", "sent"), SIZES, ids=[case[0] for case in SIZES])
async def test_preferred_sizes_never_exceed_the_cap(
    fleet: MakeFleet, name: str, before: list[int], asked: list[int] | None, cap: int, sent: list[int]
) -> None:
    most = 2 if before == [2] else 32
    some = await fleet(Server(a_config(most, preferred_batch_size=before)))
    await some.apply(some.adapter(preferred_batch_sizes=asked), cap)
    (load,) = some.servers["p0"].loads
    assert (load["max_batch_size"], load["dynamic_batching"]["preferred_batch_size"]) == (cap, sent)


async def test_the_delay_of_the_policy_is_written_where_the_cap_is_right_already(fleet: MakeFleet) -> None:
    some = await fleet(Server(a_config(16)))
    adapter = some.adapter(max_queue_delay="5ms")
    await adapter.read_back(some.workload(), deadline=time.monotonic() + 5)
    assert not adapter.settled(some.workload(p0=16), 16)
    assert (await some.apply(adapter, 16, some.workload(p0=16))).written == 1
    assert some.servers["p0"].config["dynamic_batching"]["max_queue_delay_microseconds"] == 5000
    await adapter.read_back(some.workload(), deadline=time.monotonic() + 5)
    assert adapter.settled(some.workload(p0=16), 16)


async def test_no_model_gets_more_than_its_server_booted_for(fleet: MakeFleet) -> None:
    some = await fleet(Server(), capacity=8)
    await some.apply(some.adapter(), 16)
    assert some.caps == [8]
    assert some.adapter().settled(some.workload(p0=8), 16)


async def test_a_quarter_of_the_servers_reload_at_a_time(fleet: MakeFleet) -> None:
    busy: list[int] = []

    class Slow(Server):
        async def handle(self, request: web.Request) -> web.Response:
            if request.method == "POST":
                busy.append(1)
                assert sum(busy) <= 2
                await asyncio.sleep(0.01)
                busy.append(-1)
            return await super().handle(request)

    some = await fleet(*(Slow() for _ in range(8)))
    assert (await some.apply(some.adapter(), 16)).written == 8
    assert busy.count(1) == 8


@pytest.mark.parametrize(("ready", "at_once"), [(0, 1), (1, 1), (7, 1), (8, 2), (31, 7), (1000, 8)])
def test_how_many_reload_at_a_time(ready: int, at_once: int) -> None:
    pods = [Pod(name=str(number)) for number in range(ready)]
    assert reloads_at_once([*pods, Pod(name="new", state=PodState.PENDING)]) == at_once


ANSWERS: list[tuple[str, str, tuple[int, str, dict[str, str]], Outcome, str]] = [
    ("not explicit", "load", (503, json.dumps({"error": NOT_EXPLICIT}), {}), Outcome.REFUSED,
     f'Triton of pod p0 refused: "{NOT_EXPLICIT}"; start it with --model-control-mode=explicit'),
    ("no such model", "config", (400, '{"error": "Request for unknown model: \'rows\' is not found"}', {}),
     Outcome.REFUSED, "; set triton.model to a model that it has loaded"),
    ("restricted", "load", (403, '{"error": "This API is restricted, expecting header \'admin-key\'"}', {}),
     Outcome.REFUSED, "This API is restricted, expecting header 'admin-key'): see credential"),
    ("a configuration that cannot be", "load", (400, '{"error": "load failed: built for 32"}', {}), Outcome.REFUSED,
     'Triton of pod p0 refused: "load failed: built for 32"'),
    ("a page", "config", (200, "<html><h1>Welcome</h1></html>", {}), Outcome.REFUSED,
     "pod p0, asked GET /v2/models/rows/config, answers with a web page (200)"),
    ("a proxy's page", "load", (502, "<html>Bad\n gateway</html>", {}), Outcome.REFUSED,
     "answers with a web page (502)"),
    ("another server", "config", (404, "404 page not found", {}), Outcome.REFUSED,
     "answers 404 Not Found: 404 page not found"),
    ("a list", "config", (200, "[]", {}), Outcome.REFUSED, "does not answer with a model's configuration"),
    ("text", "config", (200, "OK", {}), Outcome.REFUSED, "does not answer with a model's configuration"),
    ("a list for a map", "config", (200, '{"max_batch_size": 4, "dynamic_batching": [1]}', {}), Outcome.REFUSED,
     "does not answer with a model's configuration"),
    ("no sizes", "config", (200, '{"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": 3}}', {}),
     Outcome.REFUSED, "does not answer with a model's configuration"),
    ("sizes of text", "config", (200, '{"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": ["a"]}}', {}),
     Outcome.REFUSED, "does not answer with a model's configuration"),
    ("no time", "config", (200, '{"max_batch_size": 4, "dynamic_batching": {"max_queue_delay_microseconds": "x"}}', {}),
     Outcome.REFUSED, "does not answer with a model's configuration"),
    ("nested deeply", "config", (200, "[" * 5000, {}), Outcome.REFUSED, "does not answer with a model's configuration"),
    ("another API", "config", (200, '{"max_batch_size": "big"}', {}), Outcome.REFUSED,
     "does not answer with a model's configuration"),
    ("far too much", "config", (200, '"' + 5_000_000 * "x" + '"', {}), Outcome.FAILED, "answers with more than"),
    ("elsewhere", "load", (307, "", {"Location": "http://169.254.169.254/latest"}), Outcome.REFUSED,
     "redirects to another host, 169.254.169.254, which is refused"),
    ("nowhere", "config", (302, "", {}), Outcome.REFUSED, "redirects to elsewhere"),
    ("busy", "load", (503, "", {}), Outcome.FAILED, "answers 503 Service Unavailable"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "answer", "outcome", "sentence"), ANSWERS, ids=[case[0] for case in ANSWERS])
async def test_an_answer_that_is_no_success_becomes_a_sentence_and_changes_nothing(
    fleet: MakeFleet, name: str, path: str, answer: tuple[int, str, dict[str, str]], outcome: Outcome, sentence: str
) -> None:
    some = await fleet(Server(says={path: answer}))
    result = await some.apply(some.adapter(), 16)
    assert (result.outcome, result.written) == (outcome, 0)
    assert sentence in result.message
    assert result.failed == {"p0": result.message}
    assert some.caps == [2]


MODELS: list[tuple[str, dict[str, Any], str]] = [
    ("no batches", {**a_config(), "max_batch_size": 0}, "takes no batches (max_batch_size 0)"),
    ("no dynamic batching", {"name": "rows", "max_batch_size": 4}, "add `dynamic_batching {}`"),
]


@pytest.mark.parametrize(("name", "config", "sentence"), MODELS, ids=[case[0] for case in MODELS])
async def test_a_model_for_which_a_cap_means_nothing_is_left_alone(
    fleet: MakeFleet, name: str, config: dict[str, Any], sentence: str
) -> None:
    some = await fleet(Server(config))
    result = await some.apply(some.adapter(), 16)
    assert (result.outcome, some.servers["p0"].loads) == (Outcome.REFUSED, [])
    assert sentence in result.message
    reading = await some.adapter().read_back(some.workload(), deadline=time.monotonic() + 5)
    assert (dict(reading.caps), sentence in reading.failed["p0"]) == ({}, True)


async def test_one_pod_that_fails_does_not_stop_the_others_and_is_tried_alone(fleet: MakeFleet) -> None:
    some = await fleet(Server(), Server(says={"load": (500, '{"error": "no memory"}', {})}), Server())
    adapter = some.adapter()
    result = await some.apply(adapter, 16)
    assert (result.outcome, result.written, list(result.failed)) == (Outcome.PARTIAL, 2, ["p1"])
    some.servers["p1"].says.clear()
    again = await some.apply(adapter, 16, some.workload(p0=16, p1=2, p2=16))
    assert (again.outcome, again.written) == (Outcome.WRITTEN, 1)
    assert [len(server.loads) for server in some.servers.values()] == [1, 1, 1]


async def test_a_load_that_is_not_answered_in_time_is_awaited_and_not_asked_for_again(fleet: MakeFleet) -> None:
    some = await fleet(Server(load_s=0.5))
    adapter = some.adapter()
    first = await some.apply(adapter, 16, in_s=0.2)
    assert (first.outcome, "did not answer within" in first.message) == (Outcome.FAILED, True)
    again = await some.apply(adapter, 16)
    assert (again.outcome, again.message) == (
        Outcome.FAILED, "Triton of pod p0 is still loading rows; the old one serves"
    )  # fmt: skip
    some.servers["p0"].config = a_config(16)  # there it is
    assert (await some.apply(adapter, 16)).outcome is Outcome.UNCHANGED
    some.servers["p0"].load_s = 0.0
    assert (await some.apply(adapter, 8)).outcome is Outcome.WRITTEN
    assert sum(path.startswith("POST") for path in some.servers["p0"].asked) == 2


async def test_loads_that_nobody_waits_for_any_more_count_among_those_at_a_time(fleet: MakeFleet) -> None:
    some = await fleet(*(Server(load_s=30.0) for _ in range(8)))
    adapter = some.adapter()
    for _ in range(4):
        result = await some.apply(adapter, 16, in_s=0.2)
    loading = [server for server in some.servers.values() if any(path.startswith("POST") for path in server.asked)]
    assert len(loading) == 2
    assert "loads rows when other pods have done so" in " ".join(result.failed.values())
    for server in loading:
        server.config = a_config(16)  # there it is
    reading = await adapter.read_back(some.workload(), deadline=time.monotonic() + 5)
    await some.apply(adapter, 16, some.workload(**reading.caps), in_s=0.2)
    assert sum(any(path.startswith("POST") for path in server.asked) for server in some.servers.values()) == 4


async def test_a_pod_that_is_gone_is_loading_no_more(fleet: MakeFleet) -> None:
    some = await fleet(Server(load_s=30.0), Server())
    adapter, both = some.adapter(), some.workload()
    await some.apply(adapter, 16, replace(both, pods=both.pods[:1]), in_s=0.2)
    assert (await some.apply(adapter, 16, replace(both, pods=both.pods[1:]))).outcome is Outcome.WRITTEN


async def test_preferred_sizes_that_a_small_cap_had_no_room_for_come_back(fleet: MakeFleet) -> None:
    some = await fleet(Server(a_config(16, preferred_batch_size=[4, 8])))
    adapter, server = some.adapter(), some.servers["p0"]
    for cap, sizes in [(4, [4]), (2, []), (8, [4, 8]), (2, []), (16, [4, 8])]:
        assert (await some.apply(adapter, cap)).outcome is Outcome.WRITTEN
        assert server.loads[-1]["dynamic_batching"]["preferred_batch_size"] == sizes
        if not sizes:
            server.config = a_config(cap)  # as Triton shows it
        await adapter.read_back(some.workload(), deadline=time.monotonic() + 5)
        assert adapter.settled(some.workload(p0=cap), cap)
    server.config = a_config(16, preferred_batch_size=[6])  # somebody else loaded other ones
    await some.apply(adapter, 8)
    assert server.loads[-1]["dynamic_batching"]["preferred_batch_size"] == [6]


async def test_a_load_that_never_ends_is_asked_for_again_after_a_while(fleet: MakeFleet) -> None:
    now_s = time.monotonic()
    some = await fleet(Server(load_s=0.5))
    adapter = some.adapter(clock=lambda: now_s)
    await adapter.apply(some.workload(), 16, deadline=now_s + 0.1)
    some.servers["p0"].load_s = 0.0
    now_s += LOAD_MOST_S - 1
    assert (await adapter.apply(some.workload(), 16, deadline=now_s + 5)).outcome is Outcome.FAILED
    now_s += 2
    assert (await adapter.apply(some.workload(), 16, deadline=now_s + 5)).outcome is Outcome.WRITTEN


async def test_no_request_begins_after_the_deadline(fleet: MakeFleet) -> None:
    some = await fleet(Server())
    result = await some.apply(some.adapter(), 16, in_s=0.0)
    assert (result.outcome, some.servers["p0"].asked) == (Outcome.FAILED, [])


@pytest.mark.parametrize("words", [b"\x15\x03\x01\x00\x02\x02\x50", b"SSH-2.0-OpenSSH_9.2\r\n", b""], ids=str)
@pytest.mark.parametrize("scheme", list(Scheme))
async def test_what_does_not_speak_http_becomes_a_sentence(words: bytes, scheme: Scheme) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        writer.close()

    listener = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        some = Fleet({"p0": Server(address=f"127.0.0.1:{port}")})
        result = await some.apply(some.adapter(scheme=scheme), 16)
    assert result.outcome is Outcome.FAILED
    assert result.message.startswith("pod p0, asked GET /v2/models/rows/config, ")


async def test_a_port_where_nobody_listens_becomes_a_sentence() -> None:
    some = Fleet({"p0": Server(address="127.0.0.1:9")})
    result = await some.apply(some.adapter(), 16)
    assert (result.outcome, "cannot be reached" in result.message) == (Outcome.FAILED, True)


async def test_a_credential_of_other_namespaces_is_refused_and_one_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    some = Fleet({"p0": Server(address="127.0.0.1:9")})
    with pytest.raises(AdapterError, match='no credential "admin" for policies in namespace serving'):
        some.adapter(credential="admin")
    lost = Credential(name="admin", file=tmp_path / "none", namespaces=frozenset({"serving"}))
    adapter = some.adapter(access=PodAccess(credentials={"admin": lost}), credential="admin")
    result = await some.apply(adapter, 16)
    assert (result.outcome, "mount the secret there" in result.message) == (Outcome.REFUSED, True)
    reading = await adapter.read_back(some.workload(), deadline=time.monotonic() + 5)
    assert "mount the secret there" in reading.failed["p0"]


async def test_a_credential_is_sent_as_the_header_that_a_restricted_api_asks_for(
    fleet: MakeFleet, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret\n")
    key = Credential(
        name="admin", file=tmp_path / "key", namespaces=frozenset({"serving"}), header="admin-key", prefix=""
    )
    some = await fleet(Server())
    adapter = some.adapter(access=PodAccess(credentials={"admin": key}), credential="admin")
    await some.apply(adapter, 16)
    assert some.servers["p0"].keys == ["secret", "secret"]


async def test_sentences_fit_a_condition(fleet: MakeFleet) -> None:
    words = "load failed for model 'rows': " + 40 * "at C10 error "
    some = await fleet(Server(says={"load": (500, json.dumps({"error": words}), {})}))
    result = await some.apply(some.adapter(), 16)
    assert words[:170] in result.message
    assert len(result.message) <= 256
