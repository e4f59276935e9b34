"""Ray Serve's cap: what is sent to a dashboard or into a RayService, what it is taken for, and what is said."""

from __future__ import annotations

import copy
import json
import time
import unittest.mock
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.actuate import pod_http, ray_serve
from bandkeeper.actuate.adapter import Means, Workload
from bandkeeper.actuate.errors import AdapterError
from bandkeeper.actuate.outcome import CapResult, Outcome
from bandkeeper.actuate.pod_http import PodDoor
from bandkeeper.actuate.ray_serve import PATH, RayServe
from bandkeeper.actuate.serve_config import CapPlace, cap_in, cap_in_text, deployed_config, text_with_cap, with_cap
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import ApiError, Forbidden, NotFound, Unavailable
from tests.unit.test_actuate_writes import StandIn, answers, raises, workload

PLACE = CapPlace(application="embed", deployment="Embedder", key="max_batch_size")


def config(cap: object = 16, **application: Any) -> dict[str, Any]:
    user_config = {"timeout": 5, "max_batch_size": cap}
    return {
        "name": "embed",
        "import_path": "embed:app",
        "deployments": [{"name": "Front"}, {"name": "Embedder", "num_replicas": 2, "user_config": user_config}],
        **application,
    }


TRACEBACK = """\
Traceback (most recent call last):
  File "embed.py", line 21, in reconfigure
ValueError: batches of 64 at most
"""


class Ray:
    """A dashboard in memory that behaves as Ray 2.60's.

    A config is told at once, and in force after some `looks`; with a cap above `most` replicas begin to fail then, and
    Ray gives up after as many `tries`.
    """

    def __init__(self) -> None:
        self.most = 64
        self.looks = 2
        self.tries = 1000
        self.slow = False
        self.proxy: dict[str, Any] = {"proxy_location": "EveryNode", "http_options": {"port": 8000}}
        self.configs: dict[str, dict[str, Any]] = {
            "embed": config(),
            "other": {"name": "other", "import_path": "o:app"},
        }
        self.in_force = self.configs["embed"]
        self.status = "RUNNING"
        self.puts: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {}  # of a server that is another, or unwell
        self.asked = 0
        self.fails_at: set[int] = set()  # by how many requests came before
        self.meanwhile: dict[int, dict[str, dict[str, Any]]] = {}  # what others deploy before a request
        self._pending = 0

    def details(self) -> dict[str, Any]:
        message, state = "", "HEALTHY"
        if self.status == "DEPLOYING":
            self._pending -= 1
            state, self.in_force = "UPDATING", self.configs["embed"]
            fails = cap_in({"applications": [self.in_force]}, PLACE) > self.most
            message = TRACEBACK if fails and self._pending <= 0 else ""
            if self._pending <= (-self.tries if fails else 0):
                self.status = state = "DEPLOY_FAILED" if fails else "RUNNING"
            if self.slow and self.status == "DEPLOYING":
                message = "Deployment 'Embedder' has 1 replicas that have taken more than 30s to initialize."
        elif self.status == "DEPLOY_FAILED":
            message, state = TRACEBACK, "DEPLOY_FAILED"
        deployments = {
            one["name"]: {"status": state, "message": message, "deployment_config": one}
            for one in self.in_force["deployments"]
        }
        embed = {"status": self.status, "message": "", "source": "declarative", "deployments": deployments}
        return {
            **self.proxy,
            "proxies": {},
            "applications": {
                "embed": {**embed, "deployed_app_config": self.configs["embed"]},
                **{
                    name: {"status": "RUNNING", "deployed_app_config": one, "deployments": {}}
                    for name, one in self.configs.items()
                    if name != "embed"
                },
                "by-hand": {
                    "status": "RUNNING",
                    "source": "imperative",
                    "deployed_app_config": None,
                    "deployments": {},
                },
            },
        }

    async def serve(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.configs |= self.meanwhile.get(self.asked, {})
        if self.asked in self.fails_at:
            return web.Response(status=503, text="the GCS may be down")
        if self.answer:
            return web.Response(**self.answer)
        if request.method == "GET":
            return web.json_response(self.details())
        body = await request.json()
        self.puts.append(body)
        self.configs = {one["name"]: one for one in body["applications"]}
        self.status, self._pending = "DEPLOYING", self.looks
        return web.Response()


@pytest.fixture
def ray() -> Ray:
    return Ray()


@pytest_asyncio.fixture
async def address(ray: Ray) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", PATH, ray.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    yield f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    await runner.cleanup()


def door(address: str = "127.0.0.1:1") -> PodDoor:
    """To one dashboard for all pods."""
    return PodDoor(port=8265, address_of=lambda _: address, answer_most_bytes=ray_serve.ANSWER_MOST_BYTES)


@pytest.fixture
def adapter(address: str, monkeypatch: pytest.MonkeyPatch) -> RayServe:
    monkeypatch.setattr(ray_serve, "LOOK_EVERY_S", 0.001)
    return RayServe(StandIn(), PLACE, door(address))


def pod(name: str, cap: int | None = 16, state: PodState = PodState.READY) -> Pod:
    return Pod(name=name, uid=f"uid-{name}", cap=cap, state=state)


TWO = (pod("a"), pod("b"), pod("new", None, PodState.PENDING))


def soon() -> float:
    return time.monotonic() + 10.0


async def apply(adapter: RayServe, cap: int, *pods: Pod) -> CapResult:
    return await adapter.apply(workload(*(pods or TWO)), cap, deadline=soon())


async def caps(adapter: RayServe) -> tuple[dict[str, int], dict[str, str]]:
    reading = await adapter.read_back(workload(*TWO), deadline=soon())
    return dict(reading.caps), dict(reading.failed)


# -- the dashboard -----------------------------------------------------------------------------------------------------


async def test_only_the_one_number_of_the_whole_config_changes(ray: Ray, adapter: RayServe) -> None:
    result = await apply(adapter, 8)
    assert result == CapResult(outcome=Outcome.WRITTEN, written=2)
    assert ray.puts == [
        {
            "proxy_location": "EveryNode",
            "http_options": {"port": 8000},
            "applications": [config(8), {"name": "other", "import_path": "o:app"}],
        }
    ]
    assert await caps(adapter) == ({"a": 8, "b": 8}, {})
    assert (adapter.cost_class, adapter.reads_back, adapter.right(workload().resource)) == (CostClass.LIVE, True, None)


async def test_what_the_cluster_has_is_not_written_again(ray: Ray, adapter: RayServe) -> None:
    assert (await apply(adapter, 16, pod("a", None))).outcome is Outcome.UNCHANGED
    assert (await apply(adapter, 16)).outcome is Outcome.UNCHANGED
    assert ray.puts == []
    assert adapter.settled(workload(*TWO), 16)
    assert not adapter.settled(workload(pod("a", None)), 16)


async def test_no_pod_gets_more_than_it_booted_with(ray: Ray, adapter: RayServe) -> None:
    small = Pod(name="small", uid="s", cap=16, capacity=32)
    assert (await apply(adapter, 64, small, pod("b"))).outcome is Outcome.WRITTEN
    assert cap_in({"applications": [ray.configs["embed"]]}, PLACE) == 32


async def test_a_target_capacity_is_kept(ray: Ray, adapter: RayServe) -> None:
    ray.proxy["target_capacity"] = 50.0
    await apply(adapter, 8)
    assert ray.puts[0]["target_capacity"] == 50.0


@pytest.mark.parametrize("tries", [0, 1000], ids=["given up", "tried on"])
async def test_a_cap_that_breaks_the_application_is_taken_back_and_not_tried_again(
    ray: Ray, adapter: RayServe, tries: int
) -> None:
    ray.tries = tries
    before = copy.deepcopy(ray.configs["embed"])
    result = await apply(adapter, 128)
    assert result.outcome is Outcome.REFUSED
    assert result.message.startswith("batch cap 128 was taken back: application embed is DEPLOY")
    assert result.message.endswith(": ValueError: batches of 64 at most")
    assert ray.configs["embed"] == before
    assert len(ray.puts) == 2
    assert await apply(adapter, 128) == CapResult(outcome=Outcome.REFUSED, message=result.message)
    assert len(ray.puts) == 2
    assert [(await caps(adapter))[0] for _ in range(2)] == [{}, {"a": 16, "b": 16}]
    assert (await apply(adapter, 32)).outcome is Outcome.WRITTEN


async def test_while_others_deploy_nothing_is_written_and_no_cap_is_taken_for_the_one_in_force(
    ray: Ray, adapter: RayServe
) -> None:
    ray.status, ray._pending = "DEPLOYING", 1000
    result = await apply(adapter, 8)
    assert (result.outcome, result.message) == (
        Outcome.FAILED,
        "application embed is DEPLOYING; it will be tried again",
    )
    read, failed = await caps(adapter)
    assert read == {}
    assert failed["a"].startswith(
        "application embed is DEPLOYING, deployment Embedder is UPDATING: it says no more; it"
    )
    assert ray.puts == []


async def test_it_is_not_waited_for_ever_until_a_cap_is_taken_over(
    ray: Ray, adapter: RayServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_serve, "TAKEN_OVER_S", 0.02)
    ray.looks, has_it = 100_000, workload(pod("a", 8), pod("b", 8))
    assert (await apply(adapter, 8)).outcome is Outcome.WRITTEN
    assert (await caps(adapter))[0] == {}
    assert not adapter.settled(has_it, 8)  # whatever was read before: it may fail yet
    assert (await apply(adapter, 8)).outcome is Outcome.UNCHANGED
    ray._pending = 0
    assert (await caps(adapter))[0] == {"a": 8, "b": 8}
    assert adapter.settled(has_it, 8)
    assert len(ray.puts) == 1


def deployed_cap(ray: Ray) -> int:
    return cap_in({"applications": [ray.configs["embed"]]}, PLACE)


@pytest.mark.parametrize("state", [PodState.READY, PodState.PENDING])
async def test_a_cap_that_breaks_the_application_later_is_taken_back_also_where_no_pod_is_ready_any_more(
    ray: Ray, adapter: RayServe, monkeypatch: pytest.MonkeyPatch, state: PodState
) -> None:
    monkeypatch.setattr(ray_serve, "TAKEN_OVER_S", 0.02)
    ray.looks, ray.tries = 100, 3
    assert (await apply(adapter, 128)).outcome is Outcome.WRITTEN
    for _ in range(110):
        ray.details()
    assert ray.status == "DEPLOY_FAILED"
    result = await apply(adapter, 128, pod("a", 16, state))
    assert (result.outcome, deployed_cap(ray)) == (Outcome.REFUSED, 16)
    assert result.message.startswith("batch cap 128 was taken back: application embed is DEPLOY_FAILED")
    assert adapter.settled(workload(*TWO), 16)


@pytest.mark.parametrize("fails_at", range(2, 9))
@pytest.mark.parametrize("also", [0, 1, 2])
async def test_whatever_request_fails_a_broken_cap_is_taken_back_at_the_next_call(
    ray: Ray, adapter: RayServe, fails_at: int, also: int
) -> None:
    ray.tries = 3
    ray.fails_at = {fails_at, fails_at + also}
    for _ in range(4):
        await apply(adapter, 128)
    for _ in range(3):
        ray.details()
    assert (deployed_cap(ray), ray.status) == (16, "RUNNING")


async def test_what_others_deployed_meanwhile_is_not_taken_back(ray: Ray, adapter: RayServe) -> None:
    ray.looks = 3
    ray.meanwhile = {
        4: {"other": {"name": "other", "import_path": "o:new"}, "third": {"name": "third", "import_path": "t:app"}}
    }
    assert (await apply(adapter, 128)).outcome is Outcome.REFUSED
    assert deployed_cap(ray) == 16
    assert (ray.configs["other"]["import_path"], ray.configs["third"]["import_path"]) == ("o:new", "t:app")


async def test_a_cap_that_others_set_meanwhile_is_left(ray: Ray, adapter: RayServe) -> None:
    ray.looks = 3
    ray.meanwhile = {4: {"embed": config(200)}}
    await apply(adapter, 128)
    assert (deployed_cap(ray), len(ray.puts)) == (200, 1)
    assert adapter.settled(workload(pod("a", 200)), 200)


async def test_replicas_that_are_merely_slow_to_start_are_waited_for(
    ray: Ray, adapter: RayServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_serve, "TAKEN_OVER_S", 0.05)
    ray.looks, ray.slow = 100_000, True
    assert (await apply(adapter, 8)).outcome is Outcome.WRITTEN
    assert (await apply(adapter, 8)).outcome is Outcome.UNCHANGED
    assert deployed_cap(ray) == 8


async def test_an_operator_that_restarted_and_forgot_the_cap_before_says_what_to_do(
    ray: Ray, adapter: RayServe
) -> None:
    ray.configs["embed"] = ray.in_force = config(128)
    ray.status = "DEPLOY_FAILED"
    result = await apply(adapter, 128)
    assert result.message.endswith(
        ": ValueError: batches of 64 at most; deploy it with max_batch_size at a size that works"
    )
    assert ray.puts == []
    assert (await apply(adapter, 32)).outcome is Outcome.WRITTEN  # what is wanted then cures it too


async def test_a_pod_that_is_gone_leaves_no_cap_on_trial(
    ray: Ray, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_serve, "TAKEN_OVER_S", 0.0)
    nobody = "127.0.0.1:1"
    own = PodDoor(port=8265, address_of=lambda pod: address if pod.name == "a" else nobody)
    adapter = RayServe(StandIn(), PLACE, own)
    await apply(adapter, 8, pod("a"))
    assert not adapter.settled(workload(pod("a", 8)), 8)
    assert (await apply(adapter, 8, pod("new", 8))).outcome is Outcome.UNCHANGED
    assert adapter.settled(workload(pod("new", 8)), 8)


async def test_without_a_service_each_pod_is_a_cluster_of_its_own(ray: Ray, address: str) -> None:
    nobody = "127.0.0.1:1"
    own = PodDoor(port=8265, address_of=lambda pod: address if pod.name == "a" else nobody)
    adapter = RayServe(StandIn(), PLACE, own)
    result = await apply(adapter, 8)
    assert (result.outcome, result.written, list(result.failed)) == (Outcome.PARTIAL, 1, ["b"])
    assert f"the Ray dashboard at {nobody}, asked GET {PATH}, cannot be reached" in result.failed["b"]
    read, failed = await caps(adapter)
    assert (read, list(failed)) == ({"a": 8}, ["b"])
    assert (await apply(adapter, 8, pod("a", 8), pod("b"))).failed.keys() == {"b"}
    assert len(ray.puts) == 1


async def test_a_pod_without_an_address_is_not_asked_and_stops_no_other(ray: Ray) -> None:
    result = await apply(RayServe(StandIn(), PLACE, PodDoor(port=8265)), 8)
    assert (result.outcome, set(result.failed)) == (Outcome.FAILED, {"a", "b"})
    assert "has no IP yet" in result.failed["b"]


@pytest.mark.parametrize(
    ("answer", "outcome", "says"),
    [
        ({"text": "<html>Grafana</html>"}, Outcome.REFUSED, "answers with a web page (200): is it the right port"),
        ({"text": "[1]"}, Outcome.REFUSED, "is not the Ray dashboard: see port"),
        ({"text": "fine"}, Outcome.REFUSED, "is not the Ray dashboard: see port"),
        ({"text": "[" * 5000}, Outcome.REFUSED, "is not the Ray dashboard: see port"),
        ({"text": "[" + 100_000 * "[]," + "[]]"}, Outcome.REFUSED, "is not the Ray dashboard: see port"),
        ({"text": '"' + 2_100_000 * "x" + '"'}, Outcome.FAILED, "answers with more than 2048 kB"),
        ({"text": '{"applications": {"embed": {}, "x": 1}}'}, Outcome.REFUSED, "is not the Ray dashboard: see port"),
        ({"text": '{"applications": {}}'}, Outcome.REFUSED, "no application embed"),
        ({"text": json.dumps({"applications": {"x" * 999: {}}})}, Outcome.REFUSED, f"write one of: {'x' * 200} ..."),
        (
            {"status": 302, "headers": {"Location": "http://elsewhere/"}},
            Outcome.REFUSED,
            "redirects to another host, elsewhere, which is",
        ),
        (
            {"status": 401, "text": "Unauthorized"},
            Outcome.REFUSED,
            "refuses the login (401: Unauthorized): see credential",
        ),
        ({"status": 400, "text": "ValidationError: x"}, Outcome.REFUSED, "answers 400 Bad Request: ValidationError: x"),
        (
            {"status": 503, "text": "the GCS may be down"},
            Outcome.FAILED,
            "answers 503 Service Unavailable: the GCS may be down",
        ),
    ],
)
async def test_what_the_dashboard_cannot_do_is_said(
    ray: Ray, adapter: RayServe, answer: dict[str, Any], outcome: Outcome, says: str
) -> None:
    ray.answer = answer
    result = await apply(adapter, 8)
    assert (result.outcome, result.written) == (outcome, 0)
    assert says in result.message
    assert set(result.failed) == {"a", "b"}
    read, failed = await caps(adapter)
    assert read == {}
    assert says in failed["a"]
    assert ray.puts == []


@pytest.mark.parametrize("deployments", [1, [1], {"Embedder": 1}, {"Embedder": {"deployment_config": [1]}}])
async def test_an_application_of_another_shape_gets_a_sentence(
    ray: Ray, adapter: RayServe, deployments: object
) -> None:
    embed = {"status": "RUNNING", "deployments": deployments, "deployed_app_config": {"deployments": deployments}}
    ray.answer = {"text": json.dumps({"applications": {"embed": embed}})}
    assert "the Serve config" in (await apply(adapter, 8)).message
    assert "in the Serve config" in (await caps(adapter))[1]["a"]


async def test_nothing_is_asked_after_the_deadline(ray: Ray, adapter: RayServe) -> None:
    result = await adapter.apply(workload(*TWO), 8, deadline=time.monotonic())
    assert result.outcome is Outcome.FAILED
    assert "was not asked: no time was left" in result.message
    assert ray.puts == []


# -- the Service before the dashboard ----------------------------------------------------------------------------------


SELECTOR = {"app": "ray", "ray.io/node-type": "head"}
HEADLESS = {"selector": SELECTOR, "clusterIP": "None"}
SERVICE_PATH = "/api/v1/namespaces/serving/services/ray-head-svc"


def a_head(ip: str = "127.0.0.1", ready: str = "True", **metadata: str) -> dict[str, Any]:
    return {"metadata": metadata, "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}}


def behind_service(spec: dict[str, Any], *heads: dict[str, Any], port: int = 8265) -> tuple[RayServe, list[str]]:
    """An adapter as a policy asks for it, with what it reads of the API server."""
    asked: list[str] = []

    async def api(path: str, _: Any) -> dict[str, Any]:
        asked.append(path)
        return {"spec": spec} if path == SERVICE_PATH else {"items": list(heads)}

    settings = {"application": "embed", "deployment": "Embedder", "service": "ray-head-svc", "port": port}
    policy = Adapter.model_validate_json(json.dumps({"type": "RayServe", "rayServe": settings}))
    return RayServe.of(policy, Means(client=StandIn(on_get=api), namespace="serving")), asked


@pytest.mark.parametrize(
    ("spec", "heads", "says"),
    [
        ({"type": "ExternalName", "externalName": "169.254.169.254"}, [], "leads to no pods of its own (type Ext"),
        ({"type": "ExternalName", "selector": SELECTOR, "clusterIP": "10.96.0.9"}, [], "leads to no pods of its own"),
        ({"clusterIP": "10.96.0.9"}, [], "leads to no pods of its own"),
        ({"selector": {}, "clusterIP": "10.96.0.9"}, [], "give it type ClusterIP and the selector of one pod"),
        ({}, [], "leads to no pods of its own"),
        ({"selector": SELECTOR, "clusterIP": "127.0.0.1"}, [], "127.0.0.1, which no pod can have: nothing is sent"),
        (HEADLESS, [], "selects 0 ready pods"),
        (HEADLESS, [a_head(ready="False"), a_head(deletionTimestamp="now"), {"metadata": {}}], "selects 0 ready pods"),
        (HEADLESS, [a_head("10.0.0.1"), a_head("10.0.0.2")], "selects 2 ready pods; it must be before one"),
        (HEADLESS, [a_head("169.254.169.254")], "169.254.169.254, which no pod can have: nothing is sent there"),
        (HEADLESS, [a_head("")], "has no IP yet"),
    ],
)
async def test_a_service_that_may_lead_elsewhere_is_not_followed(
    spec: dict[str, Any], heads: list[dict[str, Any]], says: str
) -> None:
    adapter, _ = behind_service(spec, *heads)
    result = await apply(adapter, 8)
    assert result.written == 0
    assert set(result.failed) == {"a", "b"}
    assert says in result.message
    assert says in (await caps(adapter))[1]["a"]


async def test_a_service_is_asked_at_its_ip_and_a_headless_one_at_its_pods(
    ray: Ray, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_http, "_checked", lambda pod: pod)  # here all the world is on loopback
    port = int(address.rpartition(":")[2])
    own, asked = behind_service({"selector": SELECTOR, "clusterIP": "127.0.0.1"}, port=port)
    assert await caps(own) == ({"a": 16, "b": 16}, {})
    assert asked == [SERVICE_PATH]
    headless, asked = behind_service(HEADLESS, a_head(), a_head("10.0.0.1", "False"), port=port)
    assert (await apply(headless, 8)).written == 2
    assert asked == [SERVICE_PATH, "/api/v1/namespaces/serving/pods"]
    assert len(ray.puts) == 1


@pytest.mark.parametrize(
    ("error", "outcome", "says"),
    [
        (
            Forbidden(403, "Forbidden", "x cannot get resource y"),
            Outcome.REFUSED,
            "adapters.rayServe.enabled=true (and",
        ),
        (NotFound(404, "NotFound", "gone"), Outcome.FAILED, "no Service ray-head-svc in namespace serving; create it"),
        (
            Unavailable(0, "Timeout", "no answer"),
            Outcome.FAILED,
            "could not be read: no answer; it will be tried again",
        ),
    ],
)
async def test_a_service_that_cannot_be_read_gets_a_sentence(error: ApiError, outcome: Outcome, says: str) -> None:
    adapter = RayServe(StandIn(on_get=raises(error)), PLACE, PodDoor(port=8265), service="ray-head-svc")
    result = await apply(adapter, 8)
    assert result.outcome is outcome
    assert says in result.message
    right = adapter.right(workload().resource)
    assert right is not None
    assert (right.verb, right.group, right.resource, right.name) == ("get", "", "services", "ray-head-svc")


# -- the config --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one.update(name="x"), "no application embed in the Serve config; write one of: x"),
        (
            lambda one: one.pop("deployments"),
            "no deployment Embedder under application embed of the Serve config; it li",
        ),
        (lambda one: one["deployments"].pop(), "there are: Front"),
        (
            lambda one: one["deployments"][1].pop("user_config"),
            "no user_config.max_batch_size of deployment Embedder in",
        ),
        (lambda one: one["deployments"][1]["user_config"].pop("max_batch_size"), "(there are: timeout)"),
        (lambda one: one["deployments"][1]["user_config"].update(max_batch_size="16"), 'is "16", not a plain whole'),
        (lambda one: one["deployments"][1]["user_config"].update(max_batch_size=True), "not a plain whole number"),
        (lambda one: one["deployments"][1]["user_config"].update(max_batch_size=[1]), "not a plain whole number"),
    ],
)
def test_a_config_that_cannot_carry_the_cap_gets_a_sentence(change: Callable[[dict[str, Any]], Any], says: str) -> None:
    one = config()
    change(one)
    whole = {"applications": [one]}
    with pytest.raises(AdapterError) as refused:
        with_cap(whole, PLACE, 8)
    assert says in str(refused.value)
    with pytest.raises(AdapterError) as in_text:
        text_with_cap(yaml.safe_dump(whole), PLACE, 8)
    assert str(in_text.value) == str(refused.value).replace('"[1]"', '"a list or map"').replace('"True"', '"true"')


@pytest.mark.parametrize(
    "whole",
    [
        {"applications": 1},
        {"applications": [1]},
        {"applications": [{"name": "embed", "deployments": 1}]},
        {"applications": [{"name": "embed", "deployments": [1, {"name": "Embedder", "user_config": [1]}]}]},
    ],
)
def test_a_config_of_another_shape_gets_a_sentence(whole: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="the Serve config"):
        with_cap(whole, PLACE, 8)


def test_a_sentence_names_few_of_many() -> None:
    many = {"applications": [{"name": f"application-{number}"} for number in range(5000)]}
    with pytest.raises(AdapterError) as refused:
        cap_in(many, PLACE)
    assert "write one of: application-0, application-1, " in str(refused.value)
    assert str(refused.value).endswith("application-9 ...")


def test_a_config_that_would_delete_an_application_is_not_put_back() -> None:
    details = {"applications": {"x": {"source": "declarative", "status": "RUNNING", "deployed_app_config": None}}}
    with pytest.raises(AdapterError, match="does not tell the config of application x yet"):
        deployed_config(details)


TEXT = """\
# the embedding service
proxy_location: EveryNode          # behind the gateway
applications:
- name: embed
  import_path: embed:app           # ünïcode
  deployments:
  - {name: Front, user_config: {max_batch_size: 16}}
  - name: "Embedder"
    user_config:
      timeout:   5
      max_batch_size:   16  # measured
- name: other
  import_path: other:app
  deployments: [{name: Embedder, user_config: {max_batch_size: 16}}]
"""


def test_in_text_one_number_changes_and_every_other_character_stays() -> None:
    assert text_with_cap(TEXT, PLACE, 128) == TEXT.replace("max_batch_size:   16  #", "max_batch_size:   128  #")
    assert cap_in_text(text_with_cap(TEXT, PLACE, 128), PLACE) == 128
    unnamed = CapPlace(application="default", deployment="E", key="n")
    assert text_with_cap("{applications: [{deployments: [{name: E, user_config: {n: 4}}]}]}", unnamed, 8) == (
        "{applications: [{deployments: [{name: E, user_config: {n: 8}}]}]}"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("applications: [", "is no YAML that could be read"),
        ("[" * 5000, "is no YAML that could be read"),
        ("a: " + "x" * 70_000, "has 70003 characters, and one of more than 65536 is not edited; shorten it"),
        (TEXT.replace("max_batch_size:   16", "max_batch_size: " + "9" * 5000), "not a plain whole number"),
        (TEXT.replace("max_batch_size:   16", "max_batch_size: &size 16"), "is shared by a YAML anchor"),
        (TEXT.replace("user_config:\n", "user_config: &all\n"), "is shared by a YAML anchor"),
        (TEXT.replace("max_batch_size:   16", "max_batch_size: '16'"), "not a plain whole number"),
        (TEXT.replace("max_batch_size:   16", "max_batch_size: 0x10"), "not a plain whole number"),
        (TEXT.replace("max_batch_size:   16", "max_batch_size: 016"), "not a plain whole number"),
        ("", "no application embed in the Serve config; it has none"),
    ],
)
def test_text_that_cannot_be_edited_safely_gets_a_sentence(text: str, says: str) -> None:
    with pytest.raises(AdapterError) as refused:
        text_with_cap(text, PLACE, 8)
    assert says in str(refused.value)


_LEAVES = st.one_of(st.integers(-5, 5), st.text(max_size=8), st.booleans(), st.none())
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@given(
    extra=st.dictionaries(st.text(min_size=1, max_size=8), _VALUES, max_size=4),
    before=st.integers(1, 9999),
    after=st.integers(1, 9999),
    flow=st.sampled_from([True, False, None]),
)
def test_text_and_config_agree_whatever_stands_beside_the_cap(
    extra: dict[str, Any], before: int, after: int, flow: bool | None
) -> None:
    one = config(before)
    one["deployments"][1]["user_config"] |= {name: value for name, value in extra.items() if name != "max_batch_size"}
    whole = {"applications": [one]}
    text = yaml.safe_dump(whole, default_flow_style=flow, allow_unicode=True)
    changed = text_with_cap(text, PLACE, after)
    assert yaml.safe_load(changed) == with_cap(yaml.safe_load(text), PLACE, after)
    assert cap_in_text(changed, PLACE) == after
    assert text_with_cap(changed, PLACE, before) == text


# -- RayService --------------------------------------------------------------------------------------------------------


def ray_service(text: str) -> dict[str, Any]:
    return {"metadata": {"uid": "r"}, "spec": {"serveConfigV2": text, "rayClusterConfig": {}}}


async def test_a_rayservice_is_patched_only_if_its_text_is_as_it_was_read() -> None:
    client = StandIn(on_get=answers(ray_service(TEXT)))
    adapter = RayServe(client, PLACE, door(), ray_service="embed")
    result = await adapter.apply(workload(*TWO), 8, deadline=soon())
    assert (result.outcome, result.written, result.message) == (Outcome.WRITTEN, 1, "")
    assert client.writes == [
        (
            "/apis/ray.io/v1/namespaces/serving/rayservices/embed",
            [
                {"op": "test", "path": "/metadata/uid", "value": "r"},
                {"op": "test", "path": "/spec/serveConfigV2", "value": TEXT},
                {"op": "replace", "path": "/spec/serveConfigV2", "value": text_with_cap(TEXT, PLACE, 8)},
            ],
        )
    ]
    right = adapter.right(workload().resource)
    assert right is not None
    assert (right.verb, right.group, right.resource, right.name) == ("patch", "ray.io", "rayservices", "embed")


async def test_a_rayservice_that_carries_the_cap_is_left_until_ray_took_it_over() -> None:
    client = StandIn(on_get=answers(ray_service(text_with_cap(TEXT, PLACE, 8))))
    adapter = RayServe(client, PLACE, door(), ray_service="embed")
    assert (await adapter.apply(workload(*TWO), 8, deadline=soon())).outcome is Outcome.UNCHANGED
    assert client.writes == []


class KubeRay(StandIn):
    """A RayService, and its operator that hands on what it is told to when it looks."""

    def __init__(self, ray: Ray) -> None:
        super().__init__()
        self.ray, self.text = ray, TEXT

    async def get(self, path: str, **_: Any) -> dict[str, Any]:
        return ray_service(self.text)

    async def _write(self, path: str, body: Any, timeout_s: float) -> dict[str, Any]:
        assert body[1]["value"] == self.text
        self.text = body[2]["value"]
        return await super()._write(path, body, timeout_s)

    def look(self) -> None:
        """What the Ray cluster is told, it has deployed a moment later."""
        configs = {one["name"]: one for one in yaml.safe_load(self.text)["applications"]}
        if configs != self.ray.configs:
            self.ray.configs, self.ray.status, self.ray._pending = configs, "DEPLOYING", 0

    @property
    def cap(self) -> int:
        return cap_in_text(self.text, PLACE)


@pytest.fixture
def kube_ray(ray: Ray) -> KubeRay:
    kube_ray = KubeRay(ray)
    kube_ray.look()
    ray.in_force, ray.status = ray.configs["embed"], "RUNNING"
    return kube_ray


@pytest.mark.parametrize("tries", [0, 1000], ids=["given up", "tried on"])
async def test_a_cap_of_a_rayservice_that_breaks_the_application_is_taken_back(
    ray: Ray, kube_ray: KubeRay, address: str, tries: int
) -> None:
    ray.tries, before = tries, kube_ray.text
    adapter = RayServe(kube_ray, PLACE, door(address), ray_service="embed")
    assert (await apply(adapter, 128)).outcome is Outcome.WRITTEN
    assert not adapter.settled(workload(*TWO), 128)
    assert (await apply(adapter, 128)).outcome is Outcome.UNCHANGED  # KubeRay has not looked yet
    kube_ray.look()
    assert await caps(adapter) == ({}, dict.fromkeys("ab", unittest.mock.ANY))
    result = await apply(adapter, 128, pod("a", 16, PodState.PENDING))  # where it breaks them, none is ready
    assert result.outcome is Outcome.REFUSED
    assert result.message.startswith("batch cap 128 was taken back: application embed is DEPLOY")
    assert kube_ray.text == before
    assert await apply(adapter, 128) == result
    assert len(kube_ray.writes) == 2
    assert (await apply(adapter, 32)).outcome is Outcome.WRITTEN
    kube_ray.look()
    assert await caps(adapter) == ({"a": 32, "b": 32}, {})
    assert adapter.settled(workload(pod("a", 32), pod("b", 32)), 32)


async def test_a_cap_that_somebody_else_put_into_a_rayservice_is_not_taken_back(
    ray: Ray, kube_ray: KubeRay, address: str
) -> None:
    ray.tries = 0
    adapter = RayServe(kube_ray, PLACE, door(address), ray_service="embed")
    await apply(adapter, 128)
    kube_ray.look()
    kube_ray.text = text_with_cap(kube_ray.text, PLACE, 48)
    await caps(adapter)
    assert (await apply(adapter, 128)).outcome is Outcome.REFUSED
    assert kube_ray.cap == 48


async def test_what_goes_back_is_the_last_cap_that_worked(ray: Ray, kube_ray: KubeRay, address: str) -> None:
    ray.tries = 0
    adapter = RayServe(kube_ray, PLACE, door(address), ray_service="embed")
    worked = kube_ray.cap
    for cap in (96, 128):
        assert (await apply(adapter, cap)).outcome is Outcome.WRITTEN
    kube_ray.look()
    await caps(adapter)
    assert (await apply(adapter, 128)).outcome is Outcome.REFUSED
    assert kube_ray.cap == worked


@pytest.mark.parametrize("spec", [{}, {"serveConfigV2": ""}, {"serveConfigV2": "applications: []"}])
async def test_a_rayservice_without_the_deployment_gets_a_sentence(spec: dict[str, Any]) -> None:
    client = StandIn(on_get=answers({"metadata": {"uid": "r"}, "spec": spec}))
    adapter = RayServe(client, PLACE, door(), ray_service="embed")
    result = await adapter.apply(workload(*TWO), 8, deadline=soon())
    assert result.outcome is Outcome.REFUSED
    assert "no application embed in the Serve config" in result.message
    assert client.writes == []


def test_the_workload_is_only_what_its_ready_pods_are() -> None:
    adapter = RayServe(StandIn(), PLACE, door())
    nobody = Workload(namespace="serving", name="chat", resource=workload().resource, uid="u")
    assert adapter.settled(nobody, 8)
