"""Discovery: what is asked of the server and when, and the sentences for targets that cannot be scaled."""

from __future__ import annotations

from typing import Any

import pytest

from bandkeeper.kube.client import NotFound, Unavailable
from bandkeeper.kube.discovery import Discovery, TargetError, TargetProblem

APPS = {
    "resources": [
        {"name": "deployments", "kind": "Deployment", "namespaced": True},
        {"name": "deployments/scale", "kind": "Scale", "namespaced": True},
        {"name": "deployments/status", "kind": "Deployment", "namespaced": True},
        {"name": "daemonsets", "kind": "DaemonSet", "namespaced": True},
    ]
}
CORE = {
    "resources": [
        {"name": "pods", "kind": "Pod", "namespaced": True},
        {"name": "nodes", "kind": "Node", "namespaced": False},
    ]
}


class Server:
    """Answers GET from a table and counts what was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.down = False

    async def get(self, path: str) -> dict[str, Any]:
        self.asked.append(path)
        if self.down:
            raise Unavailable(0, "Unreachable", "connection refused")
        if path not in self.answers:
            raise NotFound(404, "NotFound", "the server could not find the requested resource")
        answer: dict[str, Any] = self.answers[path]
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Server:
    return Server({"/apis/apps/v1": APPS, "/api/v1": CORE, "/apis/apps": {"versions": [{"groupVersion": "apps/v1"}]}})


@pytest.fixture
def discovery(server: Server, clock: Clock) -> Discovery:
    return Discovery(server, clock=clock)


async def refusal(discovery: Discovery, api_version: str, kind: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        await discovery.scalable(api_version, kind)
    return caught.value


async def test_a_kind_is_found_with_its_paths(discovery: Discovery) -> None:
    found = await discovery.scalable("apps/v1", "Deployment")
    assert found.path("serving", "chat") == "/apis/apps/v1/namespaces/serving/deployments/chat"
    assert found.scale_path("serving", "chat") == "/apis/apps/v1/namespaces/serving/deployments/chat/scale"
    assert (found.group, found.label) == ("apps", "deployments.apps")


async def test_core_kinds_live_under_api_v1(discovery: Discovery) -> None:
    found = await discovery.resolve("v1", "Pod")
    assert found.path("serving", "chat-0") == "/api/v1/namespaces/serving/pods/chat-0"
    assert (found.group, found.label) == ("", "pods")


async def test_an_answer_is_kept_for_ten_minutes(discovery: Discovery, server: Server, clock: Clock) -> None:
    for clock.now in (0.0, 300.0, 600.0):
        await discovery.resolve("apps/v1", "Deployment")
        await discovery.resolve("apps/v1", "DaemonSet")
    assert server.asked == ["/apis/apps/v1"]
    clock.now = 600.1
    await discovery.resolve("apps/v1", "Deployment")
    assert server.asked == ["/apis/apps/v1"] * 2


async def test_a_kind_that_is_installed_later_is_found_after_the_miss_expired(
    discovery: Discovery, server: Server, clock: Clock
) -> None:
    for clock.now in (0.0, 10.0, 30.0):
        assert (await refusal(discovery, "apps/v1", "Widget")).problem is TargetProblem.UNKNOWN_KIND
    assert server.asked == ["/apis/apps/v1"]
    server.answers["/apis/apps/v1"] = {"resources": [{"name": "widgets", "kind": "Widget", "namespaced": True}]}
    clock.now = 30.1
    assert (await discovery.resolve("apps/v1", "Widget")).plural == "widgets"


async def test_a_missing_api_is_asked_for_once_in_30_s(discovery: Discovery, server: Server, clock: Clock) -> None:
    for clock.now in (0.0, 30.0):
        await refusal(discovery, "ray.io/v1", "RayCluster")
    assert server.asked == ["/apis/ray.io/v1", "/apis/ray.io"]


async def test_an_old_answer_serves_while_the_server_is_down(
    discovery: Discovery, server: Server, clock: Clock
) -> None:
    await discovery.resolve("apps/v1", "Deployment")
    server.down, clock.now = True, 10_000.0
    assert (await discovery.resolve("apps/v1", "Deployment")).plural == "deployments"
    error = await refusal(discovery, "v1", "Pod")
    assert error.problem is TargetProblem.UNAVAILABLE
    assert "connection refused" in str(error)


@pytest.mark.parametrize(
    ("api_version", "kind", "problem", "says"),
    [
        ("apps/v1", "Foo", TargetProblem.UNKNOWN_KIND, "no kind Foo in apps/v1; kinds with replicas there: Deployment"),
        ("apps/v1", "deployment", TargetProblem.UNKNOWN_KIND, "no kind deployment in apps/v1; write kind: Deployment"),
        ("apps/v1", "deployments", TargetProblem.UNKNOWN_KIND, "write kind: Deployment"),
        ("v1", "Deployment", TargetProblem.UNKNOWN_KIND, "Deployments and StatefulSets are in apps/v1"),
        ("apps/v1beta1", "Deployment", TargetProblem.UNKNOWN_KIND, "write apiVersion: apps/v1"),
        ("apps", "Deployment", TargetProblem.UNKNOWN_KIND, "write the group too, for example apiVersion: apps/v1"),
        ("ray.io/v1", "RayService", TargetProblem.UNKNOWN_KIND, "check the spelling, or install what provides it"),
        ("v1", "Pod", TargetProblem.NOT_SCALABLE, "Pod (v1) has no scale subresource: name the Deployment"),
        ("v1", "Node", TargetProblem.NOT_SCALABLE, "Node (v1) is not namespaced"),
        ("apps/v1", "DaemonSet", TargetProblem.NOT_SCALABLE, "one pod per node"),
    ],
)
async def test_a_target_that_cannot_be_scaled_gets_a_sentence(
    discovery: Discovery, api_version: str, kind: str, problem: TargetProblem, says: str
) -> None:
    error = await refusal(discovery, api_version, kind)
    assert error.problem is problem
    assert says in str(error)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("RayService", "neither it nor its RayCluster has one"),
        ("InferenceService", "<name>-predictor"),
        ("Widget", "name a workload that has one, such as a Deployment or a StatefulSet"),
    ],
)
async def test_known_kinds_without_scale_name_the_object_to_use(clock: Clock, kind: str, says: str) -> None:
    server = Server({"/apis/x.io/v1": {"resources": [{"name": "xs", "kind": kind, "namespaced": True}]}})
    error = await refusal(Discovery(server, clock=clock), "x.io/v1", kind)
    assert error.problem is TargetProblem.NOT_SCALABLE
    assert says in str(error)
