"""What is sent, in which order and for how long, and the sentences when it cannot be: against a stand-in client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bandkeeper.actuate import rights as rights_module
from bandkeeper.actuate.adapter import AdapterError, Workload
from bandkeeper.actuate.annotation import AT_ONCE, Annotation
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.actuate.pod_template import PRESETS, Names, PodTemplate
from bandkeeper.actuate.registry import batch_adapter
from bandkeeper.actuate.replicas import Replicas
from bandkeeper.actuate.rights import KEEP_MISSING_S, KEEP_S, Right, Rights
from bandkeeper.api.snapshot import Pod, PodState, Target
from bandkeeper.api.v1alpha1 import Adapter, AdapterType, PodTemplatePreset, TargetRef
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import ApiError, Conflict, Forbidden, KubeClient, NotFound, Unavailable
from bandkeeper.kube.discovery import Discovery, Resource

DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", namespaced=True, scalable=True)
REF = TargetRef(api_version="apps/v1", kind="Deployment", name="chat")
APPS = {
    "resources": [
        {"name": "deployments", "kind": "Deployment", "namespaced": True},
        {"name": "deployments/scale", "kind": "Scale", "namespaced": True},
    ]
}
Answer = Callable[[str, Any], Awaitable[dict[str, Any]]]


class StandIn(KubeClient):
    """Records requests; what it answers is `on_get` and `on_write`."""

    def __init__(self, on_get: Answer | None = None, on_write: Answer | None = None) -> None:
        self.writes: list[tuple[str, Any]] = []
        self.timeouts: list[float] = []
        self._on_get = on_get
        self._on_write = on_write

    async def get(self, path: str, *, timeout_s: float = 10, **_: Any) -> dict[str, Any]:
        if path == "/apis/apps/v1":
            return APPS
        self.timeouts.append(timeout_s)
        assert self._on_get is not None
        return await self._on_get(path, None)

    async def patch(self, path: str, body: Any, *, timeout_s: float = 10, **_: Any) -> dict[str, Any]:
        return await self._write(path, body, timeout_s)

    async def post(self, path: str, body: Any, *, timeout_s: float = 10, **_: Any) -> dict[str, Any]:
        return await self._write(path, body, timeout_s)

    async def _write(self, path: str, body: Any, timeout_s: float) -> dict[str, Any]:
        self.writes.append((path, body))
        self.timeouts.append(timeout_s)
        return await self._on_write(path, body) if self._on_write else {}


def raises(error: ApiError) -> Answer:
    async def answer(path: str, body: Any) -> dict[str, Any]:
        raise error

    return answer


def answers(value: dict[str, Any]) -> Answer:
    async def answer(path: str, body: Any) -> dict[str, Any]:
        return value

    return answer


def frozen() -> float:
    return 100.0


def pod(name: str, cap: int | None = None, state: PodState = PodState.READY) -> Pod:
    return Pod(name=name, uid=f"uid-{name}", cap=cap, state=state)


def workload(*pods: Pod, manifest: dict[str, Any] | None = None) -> Workload:
    return Workload(namespace="serving", name="chat", resource=DEPLOYMENTS, uid="u", pods=pods, manifest=manifest)


# -- annotation --------------------------------------------------------------------------------------------------------


async def test_only_live_pods_whose_cap_differs_are_written() -> None:
    client = StandIn()
    pods = [
        pod("has-it", 32),
        pod("differs", 16),
        pod("new"),
        pod("loading", None, PodState.PENDING),
        pod("waiting", 64, PodState.UNSCHEDULABLE),
        pod("leaving", 16, PodState.TERMINATING),
        pod("broken", 16, PodState.FAILED),
    ]
    adapter = Annotation(client, "bandkeeper.dev/cap", clock=frozen)
    assert (adapter.cost_class, adapter.expected_delay_s) == (CostClass.EVENTUAL, 90.0)
    result = await adapter.apply(workload(*pods), 32, deadline=110.0)
    assert (result.outcome, result.written) == (Outcome.WRITTEN, 4)
    assert [path.rpartition("/")[2] for path, _ in client.writes] == ["differs", "new", "loading", "waiting"]
    assert client.writes[0][1] == {"metadata": {"uid": "uid-differs", "annotations": {"bandkeeper.dev/cap": "32"}}}
    assert adapter.settled(workload(pod("has-it", 32), pod("leaving", 16, PodState.TERMINATING)), 32)


async def test_one_pod_that_fails_does_not_stop_the_others_and_is_named() -> None:
    async def answer(path: str, body: Any) -> dict[str, Any]:
        if path.endswith("/b"):
            raise Unavailable(503, "ServiceUnavailable", "etcd is busy")
        if path.endswith("/gone"):
            raise NotFound(404, "NotFound", "no such pod")
        return {}

    client = StandIn(on_write=answer)
    result = await Annotation(client, "bandkeeper.dev/cap", clock=frozen).apply(
        workload(pod("a"), pod("b"), pod("gone"), pod("c")), 8, deadline=110.0
    )
    assert (result.outcome, result.written) == (Outcome.PARTIAL, 2)
    assert result.failed == {"b": "pod b could not be annotated: etcd is busy; it will be tried again"}
    assert result.message == result.failed["b"]


@pytest.mark.parametrize(
    ("error", "outcome", "says"),
    [
        (
            Forbidden(403, "Forbidden", 'pods "a" is forbidden: User "x" cannot patch resource "pods" in API group ""'),
            Outcome.FORBIDDEN,
            "may not patch pods in namespace serving: set the chart value adapters.annotation.enabled=true",
        ),
        (
            Forbidden(
                403, "Forbidden", "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: no such"
            ),
            Outcome.FORBIDDEN,
            "patch pods in namespace serving was refused: no such",
        ),
        (Unavailable(0, "Timeout", "not answered"), Outcome.FAILED, "not answered; it will be tried again"),
    ],
)
async def test_when_no_pod_can_be_written_the_reason_is_said(error: ApiError, outcome: Outcome, says: str) -> None:
    adapter = Annotation(StandIn(on_write=raises(error)), "bandkeeper.dev/cap", clock=frozen)
    result = await adapter.apply(workload(pod("a")), 8, deadline=110.0)
    assert result.outcome is outcome
    assert says in result.message


async def test_pods_are_written_a_few_at_a_time() -> None:
    running = most = 0

    async def answer(path: str, body: Any) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return {}

    pods = [pod(f"p{number}") for number in range(50)]
    result = await Annotation(StandIn(on_write=answer), "bandkeeper.dev/cap", clock=frozen).apply(
        workload(*pods), 8, deadline=110.0
    )
    assert (result.written, most) == (50, AT_ONCE)


async def test_no_pod_is_written_after_the_deadline() -> None:
    client = StandIn()
    result = await Annotation(client, "bandkeeper.dev/cap", clock=frozen).apply(workload(pod("a")), 8, deadline=100.0)
    assert result.outcome is Outcome.FAILED
    assert "ran out before the write" in result.message
    assert client.writes == []


# -- pod template ------------------------------------------------------------------------------------------------------


def manifest(*containers: dict[str, Any], uid: str = "u") -> dict[str, Any]:
    template = {"metadata": {"labels": {}}, "spec": {"containers": list(containers)}}
    return {"kind": "Deployment", "metadata": {"uid": uid}, "spec": {"template": template}}


def server(**fields: Any) -> dict[str, Any]:
    return {"name": "server", **fields}


ENV: dict[str, Any] = {"env": "CAP"}
ARGUMENT: dict[str, Any] = {"argument": "--cap"}


@pytest.mark.parametrize(
    ("found", "knob", "says"),
    [
        ({"kind": "Fleet", "metadata": {"uid": "u"}, "spec": {}}, ENV, "Fleet has no pod template in spec.template"),
        (
            manifest({"name": "proxy"}, {"name": "web"}),
            ENV,
            "no container server in the pod template; write one of: proxy, web",
        ),
        (
            manifest(server(env=[{"name": "CAP", "valueFrom": {"configMapKeyRef": {}}}])),
            ENV,
            "environment variable CAP of container server is set by valueFrom; give it a plain value",
        ),
        (manifest(server(env=[{"name": "CAP", "value": "auto"}])), ENV, 'is "auto", not a whole number'),
        (manifest(server(env=[{"name": "CAP"}])), ENV, 'is "", not a whole number'),
        (manifest(server()), ARGUMENT, "argument --cap of container server is not among its args"),
        (manifest(server(args=["sh", "-c", "serve --cap 8"])), ARGUMENT, "stands inside a longer argument"),
        (manifest(server(command=["serve", "--cap=8"])), ARGUMENT, "in the container's command, which is never edited"),
        (manifest(server(args=["--cap=8k"])), ARGUMENT, 'is "8k", not a whole number'),
        (manifest(server(args=["--x", "--cap"])), ARGUMENT, 'is "", not a whole number'),
    ],
)
async def test_a_template_that_cannot_carry_the_cap_gets_a_sentence(
    found: dict[str, Any], knob: dict[str, Any], says: str
) -> None:
    client = StandIn(on_get=answers(found))
    adapter = PodTemplate(client, container="server", clock=frozen, **knob)
    result = await adapter.apply(workload(), 8, deadline=110.0)
    assert result.outcome is Outcome.REFUSED
    assert says in result.message
    assert client.writes == []
    assert adapter.cap_of(found) is None


@pytest.mark.parametrize(
    ("found", "knob", "cap"),
    [
        (manifest(server(env=[{"name": "CAP", "value": "16"}])), ENV, 16),
        (manifest(server()), ENV, None),
        (manifest(server(args=["--cap=16"])), ARGUMENT, 16),
        (manifest(server(args=["--cap", "16", "--capacity=9"])), ARGUMENT, 16),
        (manifest(server(args=["--cap=8", "--cap=16"])), ARGUMENT, 16),
    ],
)
def test_the_cap_is_read_from_the_template(found: dict[str, Any], knob: dict[str, Any], cap: int | None) -> None:
    adapter = PodTemplate(StandIn(), container="server", clock=frozen, **knob)
    assert adapter.cap_of(found) == cap
    assert adapter.settled(workload(manifest=found), 16) is (cap == 16)
    assert not adapter.settled(workload(), 16)
    assert not adapter.settled(workload(pod("old", 8), pod("new", 16)), 16)
    assert adapter.settled(workload(pod("old", 8, PodState.TERMINATING), pod("new", 16)), 16)


async def test_a_paused_workload_is_not_given_a_template_that_would_wait_for_ever() -> None:
    found = manifest(server(env=[{"name": "CAP", "value": "8"}]))
    found["spec"]["paused"] = True
    client = StandIn(on_get=answers(found))
    adapter = PodTemplate(client, container="server", clock=frozen, **ENV)
    for rollback in (False, True):
        write = (
            adapter.rollback(workload(), deadline=110.0) if rollback else adapter.apply(workload(), 16, deadline=110.0)
        )
        result = await write
        assert result.outcome is Outcome.REFUSED
        assert "kubectl rollout resume deployment/chat" in result.message
    assert client.writes == []


async def test_a_settled_template_costs_no_request() -> None:
    stored = manifest(server(env=[{"name": "CAP", "value": "16"}]))
    result = await PodTemplate(StandIn(), container="server", env="CAP").apply(
        workload(manifest=stored), 16, deadline=110.0
    )
    assert result.outcome is Outcome.UNCHANGED


async def test_a_template_is_written_only_while_it_is_as_it_was_read() -> None:
    found = manifest({"name": "proxy"}, server(env=[{"name": "A", "value": "1"}]))
    client = StandIn(on_get=answers(found))
    await PodTemplate(client, container="server", env="CAP", clock=frozen).apply(workload(), 8, deadline=110.0)
    ((path, patch),) = client.writes
    assert path == "/apis/apps/v1/namespaces/serving/deployments/chat"
    assert [(step["op"], step["path"]) for step in patch] == [
        ("test", "/metadata/uid"),
        ("test", "/spec/template"),
        ("add", "/spec/template/spec/containers/1/env"),
        ("add", "/spec/template/metadata/annotations"),
    ]
    assert patch[1]["value"] == found["spec"]["template"]
    assert patch[2]["value"] == [{"name": "A", "value": "1"}, {"name": "CAP", "value": "8"}]


@pytest.mark.parametrize(
    ("error", "writes", "says"),
    [
        (Conflict(409, "Conflict", "the object has been modified"), 4, "the object has been modified"),
        (Unavailable(0, "Timeout", "not answered"), 1, "not answered"),
    ],
)
async def test_a_template_write_that_fails_is_left_to_the_next_tick(error: ApiError, writes: int, says: str) -> None:
    client = StandIn(on_get=answers(manifest(server())), on_write=raises(error))
    result = await PodTemplate(client, container="server", env="CAP", clock=frozen).apply(workload(), 8, deadline=110.0)
    assert result.outcome is Outcome.FAILED
    assert says in result.message
    assert len(client.writes) == writes


async def test_a_workload_made_anew_keeps_its_template() -> None:
    client = StandIn(on_get=answers(manifest(server(), uid="another")))
    result = await PodTemplate(client, container="server", env="CAP", clock=frozen).apply(workload(), 8, deadline=110.0)
    assert result.outcome is Outcome.CHANGED
    assert client.writes == []


# -- replicas ----------------------------------------------------------------------------------------------------------

SCALE = {"metadata": {"uid": "u", "resourceVersion": "1"}, "spec": {"replicas": 2}, "status": {"selector": "app=chat"}}


def replicas(client: StandIn, clock: Callable[[], float] = frozen) -> Replicas:
    return Replicas(client, Discovery(client), clock=clock)


async def write(client: StandIn, deadline: float = 110.0, wanted: int = 3) -> tuple[Outcome, str]:
    decided_on = Target(uid="u", replicas=2, resource_version="1")
    result = await replicas(client).write("serving", REF, wanted, decided_on=decided_on, deadline=deadline)
    return result.outcome, result.message


async def test_a_write_tests_what_was_decided_on() -> None:
    client = StandIn(on_write=answers(SCALE))
    assert await write(client) == (Outcome.WRITTEN, "")
    assert client.writes == [
        (
            "/apis/apps/v1/namespaces/serving/deployments/chat/scale",
            [
                {"op": "test", "path": "/metadata/uid", "value": "u"},
                {"op": "test", "path": "/spec", "value": {"replicas": 2}},
                {"op": "add", "path": "/spec/replicas", "value": 3},
            ],
        )
    ]


async def test_nothing_is_sent_when_nothing_changes() -> None:
    client = StandIn()
    assert await write(client, wanted=2) == (Outcome.UNCHANGED, "")
    assert client.writes == []


@pytest.mark.parametrize(("deadline", "timeout_s"), [(103.0, 3.0), (200.0, 10.0)])
async def test_no_request_outlasts_the_lease(deadline: float, timeout_s: float) -> None:
    client = StandIn(on_write=answers(SCALE))
    await write(client, deadline)
    assert client.timeouts == [timeout_s]


@pytest.mark.parametrize(
    ("error", "outcome", "says", "writes"),
    [
        (Unavailable(0, "Timeout", "not answered"), Outcome.FAILED, "not answered; it will be tried again", 1),
        (Conflict(409, "Conflict", "modified"), Outcome.FAILED, "is written by others all the time", 4),
        (NotFound(404, "NotFound", "x"), Outcome.NOT_FOUND, "no Deployment chat in namespace serving; create it", 1),
        (
            Forbidden(403, "Forbidden", 'User "x" cannot patch resource "deployments/scale" in API group "apps"'),
            Outcome.FORBIDDEN,
            "the operator may not patch deployments/scale of API group apps in namespace serving: add the kind to",
            1,
        ),
        (
            Forbidden(403, "Forbidden", "ValidatingAdmissionPolicy 'freeze' denied request: no changes on Fridays"),
            Outcome.FORBIDDEN,
            "patch deployments/scale in namespace serving was refused: no changes on Fridays",
            1,
        ),
    ],
)
async def test_a_write_that_fails_says_why(error: ApiError, outcome: Outcome, says: str, writes: int) -> None:
    client = StandIn(on_get=answers(SCALE), on_write=raises(error))
    ended, message = await write(client)
    assert ended is outcome
    assert says in message
    assert len(client.writes) == writes


async def test_a_write_stops_between_attempts_when_the_lease_ends() -> None:
    ticks = iter([100.0, 100.0, 100.0, 100.0, 120.0])
    client = StandIn(on_get=answers(SCALE), on_write=raises(Conflict(409, "Conflict", "modified")))
    target = Target(uid="u", replicas=2)
    result = await replicas(client, lambda: next(ticks, 120.0)).write(
        "serving", REF, 3, decided_on=target, deadline=110.0
    )
    assert result.outcome is Outcome.FAILED
    assert "ran out before the write" in result.message
    assert len(client.writes) == 1


# -- registry and rights -----------------------------------------------------------------------------------------------


def spec(**fields: Any) -> Adapter:
    return Adapter.model_validate(fields)


def test_the_registry_makes_what_the_policy_asks_for() -> None:
    every = set(AdapterType)
    annotation = batch_adapter(spec(type=AdapterType.ANNOTATION), StandIn(), enabled=every)
    assert isinstance(annotation, Annotation)
    assert annotation.key == "bandkeeper.dev/batch-cap"
    template: dict[str, Any] = {"container": "server", "argument": "--max-num-seqs"}
    adapter = batch_adapter(spec(type=AdapterType.POD_TEMPLATE, podTemplate=template), StandIn(), enabled=every)
    assert isinstance(adapter, PodTemplate)
    assert adapter.cost_class is CostClass.ROLLOUT
    assert (adapter.container, adapter.names) == ("server", Names(argument="--max-num-seqs"))
    template = {"container": "server", "preset": PodTemplatePreset.TGI}
    adapter = batch_adapter(spec(type=AdapterType.POD_TEMPLATE, podTemplate=template), StandIn(), enabled=every)
    assert isinstance(adapter, PodTemplate)
    assert adapter.names == PRESETS[PodTemplatePreset.TGI]


@pytest.mark.parametrize("type_", list(AdapterType))
def test_an_adapter_that_is_off_names_its_chart_value(type_: AdapterType) -> None:
    others = set(AdapterType) - {type_}
    asked = Adapter.model_construct(type=type_)
    with pytest.raises(
        AdapterError, match=rf"the {type_} adapter is switched off; set the chart value adapters\.\w+\.en"
    ):
        batch_adapter(asked, StandIn(), enabled=others)


@pytest.mark.parametrize("key", ["example.com/cap", "bandkeeper.dev/", "bandkeeper.development/cap", "cap"])
def test_an_annotation_of_others_is_never_written(key: str) -> None:
    with pytest.raises(AdapterError, match=r"choose one that begins with bandkeeper\.dev/"):
        Annotation(StandIn(), key)


def test_exactly_one_place_for_the_cap_is_needed() -> None:
    preset = {"preset": PodTemplatePreset.VLLM}
    nothing: dict[str, Any] = {}
    for knobs in (nothing, {**ENV, **ARGUMENT}, {**preset, **ENV}, {**preset, **ARGUMENT}):
        with pytest.raises(AdapterError, match="exactly one"):
            PodTemplate(StandIn(), container="server", clock=frozen, **knobs)
    with pytest.raises(AdapterError, match="needs podTemplate"):
        batch_adapter(Adapter.model_construct(type=AdapterType.POD_TEMPLATE), StandIn(), enabled=set(AdapterType))


PATCH_SCALE = Right(verb="patch", group="apps", resource="deployments/scale", remedy="do this")


async def test_rights_are_asked_for_seldom_and_an_outage_is_no_verdict() -> None:
    now = 0.0
    allowed: dict[str, Any] = {"status": {"allowed": True}}
    client = StandIn(on_write=answers(allowed))
    rights = Rights(client, clock=lambda: now)
    assert [await rights.missing(PATCH_SCALE, "serving") for now in (0.0, KEEP_S)] == ["", ""]
    ((_, review),) = client.writes
    assert review["spec"]["resourceAttributes"] == {
        "verb": "patch",
        "group": "apps",
        "resource": "deployments",
        "subresource": "scale",
        "namespace": "serving",
    }
    allowed["status"]["allowed"], now = False, KEEP_S + 1
    missing = "the operator may not patch deployments/scale of API group apps in namespace serving: do this"
    assert await rights.missing(PATCH_SCALE, "serving") == missing
    allowed["status"]["allowed"], now = True, now + KEEP_MISSING_S
    assert await rights.missing(PATCH_SCALE, "serving") == missing
    now += 1  # somebody may have granted it by now
    assert await rights.missing(PATCH_SCALE, "serving") == ""
    down = Rights(StandIn(on_write=raises(Unavailable(0, "Timeout", "not answered"))))
    assert await down.missing(PATCH_SCALE, "serving") == ""


async def test_a_right_is_asked_for_once_by_all_who_need_it_now() -> None:
    client = StandIn(on_write=answers({"status": {"allowed": False}}))
    rights = Rights(client, clock=frozen)
    told = await asyncio.gather(*(rights.missing(PATCH_SCALE, "serving") for _ in range(9)))
    assert len(set(told)) == 1
    assert len(client.writes) == 1
    silent = StandIn(on_write=raises(Unavailable(0, "Timeout", "not answered")))
    rights = Rights(silent, clock=frozen)
    assert set(await asyncio.gather(*(rights.missing(PATCH_SCALE, "serving") for _ in range(9)))) == {""}
    assert len(silent.writes) == 1


async def test_a_role_may_grant_a_right_on_one_object_alone() -> None:
    async def granted_on_chat(path: str, body: Any) -> dict[str, Any]:
        return {"status": {"allowed": body["spec"]["resourceAttributes"].get("name") == "chat"}}

    client = StandIn(on_write=granted_on_chat)
    rights = Rights(client, clock=frozen)
    assert await rights.missing(PATCH_SCALE, "serving", "chat") == ""
    assert await rights.missing(PATCH_SCALE, "serving", "other") != ""
    assert len(client.writes) == 3


async def test_a_right_on_an_object_beside_the_target_is_asked_for_by_that_objects_name() -> None:
    async def granted_on_caps(path: str, body: Any) -> dict[str, Any]:
        return {"status": {"allowed": body["spec"]["resourceAttributes"].get("name") == "caps"}}

    right = Right(verb="patch", group="", resource="configmaps", name="caps", remedy="do this")
    rights = Rights(StandIn(on_write=granted_on_caps), clock=frozen)
    assert await rights.missing(right, "serving", "chat") == ""
    other = Right(verb="patch", group="", resource="configmaps", name="others", remedy="do this")
    said = await rights.missing(other, "serving", "chat")
    assert said == 'the operator may not patch configmaps "others" in namespace serving: do this'


async def test_what_is_known_of_rights_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights_module, "MOST_KNOWN", 10)
    now = 0.0
    rights = Rights(StandIn(on_write=answers({"status": {"allowed": True}})), clock=lambda: now)
    for number in range(100):
        now += KEEP_S / 5
        await rights.missing(PATCH_SCALE, f"ci-{number}")
    assert len(rights._known) <= 10
