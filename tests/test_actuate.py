"""Replicas and batch cap written to a real API server, with its controllers at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from bandkeeper.actuate.adapter import BatchAdapter, Workload
from bandkeeper.actuate.annotation import Annotation
from bandkeeper.actuate.managers import last_manager
from bandkeeper.actuate.outcome import CapResult, Outcome, ScaleResult
from bandkeeper.actuate.pod_template import PodTemplate
from bandkeeper.actuate.replicas import Replicas, Scale, scale_right
from bandkeeper.actuate.rights import Rights
from bandkeeper.actuate.rollout import rollout_of
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import TargetRef
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Discovery, TargetError, TargetProblem
from tests.cluster import ControlPlane, eventually

pytestmark = pytest.mark.cluster

CAP_KEY = "bandkeeper.dev/batch-cap"
DEPLOYMENT = TargetRef(api_version="apps/v1", kind="Deployment", name="chat")
STATEFUL_SET = TargetRef(api_version="apps/v1", kind="StatefulSet", name="chat")
FLEET = TargetRef(api_version="tests.bandkeeper.dev/v1", kind="Fleet", name="chat")


def workload(
    kind: str = "Deployment", *, replicas: int = 2, load_time: str = "200ms", deadline_s: int = 600, **container: Any
) -> dict[str, Any]:
    labels = {"app": "chat"}
    spec: dict[str, Any] = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels, "annotations": {"bandkeeper.dev/load-time": load_time}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {"name": "proxy", "image": "proxy:1"},
                    {"name": "server", "image": "server:1", "command": ["serve"], **container},
                ],
            },
        },
    }
    if kind == "Deployment":
        spec["progressDeadlineSeconds"] = deadline_s
    else:
        spec |= {"serviceName": "chat", "podManagementPolicy": "Parallel"}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "chat"}, "spec": spec}


FLEET_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "fleets.tests.bandkeeper.dev"},
    "spec": {
        "group": "tests.bandkeeper.dev",
        "scope": "Namespaced",
        "names": {"plural": "fleets", "singular": "fleet", "kind": "Fleet"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
                            "status": {
                                "type": "object",
                                "properties": {"size": {"type": "integer"}, "pods": {"type": "string"}},
                            },
                        },
                    }
                },
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.size",
                        "statusReplicasPath": ".status.size",
                        "labelSelectorPath": ".status.pods",
                    },
                },
            }
        ],
    },
}


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


@pytest_asyncio.fixture
async def client(control_plane: ControlPlane) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(str(control_plane.kubeconfig)) as connected:
        yield connected


@pytest_asyncio.fixture
async def replicas(client: KubeClient) -> Replicas:
    return Replicas(client, Discovery(client))


class Hands:
    """What a person does with kubectl in the test's namespace."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *args: str, **options: Any) -> str:
        return self.cluster.kubectl("-n", self.namespace, *args, **options)

    def apply(self, *documents: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", input=list(documents))

    def get(self, kind: str = "deployment", name: str = "chat") -> dict[str, Any]:
        return self.cluster.get(kind, name, namespace=self.namespace)

    def pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cluster.get("pods", namespace=self.namespace, selector="app=chat")["items"]
        return found

    def ready(self, kind: str, count: int) -> dict[str, Any]:
        def settled() -> dict[str, Any] | None:
            seen = self.get(kind)
            status = seen.get("status", {})
            numbers = [status.get(key, 0) for key in ("readyReplicas", "updatedReplicas", "replicas")]
            fresh = status.get("observedGeneration") == seen["metadata"]["generation"]
            return seen if fresh and numbers == [count] * 3 else None

        return eventually(settled, timeout_s=30, what=f"{count} ready pods of the {kind}")


@pytest.fixture
def hands(control_plane: ControlPlane, namespace: str) -> Hands:
    return Hands(control_plane, namespace)


@pytest.fixture
def fleet(hands: Hands) -> None:
    hands.apply(FLEET_CRD)
    hands.kubectl("wait", "--for=condition=Established", "crd/fleets.tests.bandkeeper.dev", "--timeout=10s")
    document = {"apiVersion": FLEET.api_version, "kind": "Fleet", "metadata": {"name": "chat"}, "spec": {"size": 2}}
    hands.apply(document)
    hands.kubectl(
        "patch",
        "fleet",
        "chat",
        "--subresource=status",
        "--type=merge",
        "-p",
        '{"status":{"size":2,"pods":"app=chat"}}',
    )


# -- replicas ----------------------------------------------------------------------------------------------------------


async def test_deployment_is_read_and_scaled(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    before = hands.ready("deployment", 2)
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    assert (scale.target.replicas, scale.current, scale.selector) == (2, 2, "app=chat")
    assert scale.target.uid == before["metadata"]["uid"]
    assert scale.target.manager == "kubectl-client-side-apply"
    assert scale.target.rollout is None
    result = await replicas.write(hands.namespace, DEPLOYMENT, 4, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.WRITTEN
    assert result.target is not None
    assert result.target.replicas == 4
    assert len(hands.ready("deployment", 4)["spec"]["template"]["spec"]["containers"]) == 2
    after = await replicas.read(hands.namespace, DEPLOYMENT)
    assert (after.target.replicas, after.target.manager) == (4, "bandkeeper")


async def test_stateful_set_is_scaled(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload("StatefulSet"))
    hands.ready("statefulset", 2)
    scale = await replicas.read(hands.namespace, STATEFUL_SET)
    assert (scale.target.replicas, scale.current, scale.selector) == (2, 2, "app=chat")
    result = await replicas.write(hands.namespace, STATEFUL_SET, 3, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.WRITTEN
    hands.ready("statefulset", 3)
    assert (await replicas.read(hands.namespace, STATEFUL_SET)).target.manager == "bandkeeper"


@pytest.mark.usefixtures("fleet")
async def test_custom_resource_with_scale_subresource_is_scaled(hands: Hands, replicas: Replicas) -> None:
    scale = await replicas.read(hands.namespace, FLEET)
    assert (scale.target.replicas, scale.current, scale.selector) == (2, 2, "app=chat")
    result = await replicas.write(hands.namespace, FLEET, 5, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.WRITTEN
    assert hands.get("fleet")["spec"]["size"] == 5
    late = await replicas.write(hands.namespace, FLEET, 6, decided_on=scale.target, deadline=soon())
    assert late.outcome is Outcome.CHANGED
    assert hands.get("fleet")["spec"]["size"] == 5


async def test_the_scale_subresource_tells_no_field_managers(hands: Hands, client: KubeClient) -> None:
    """Why the manager is read from the object: if this fails one day, one request can be saved."""
    hands.apply(workload())
    scale = await client.get(f"/apis/apps/v1/namespaces/{hands.namespace}/deployments/chat/scale")
    assert "managedFields" not in scale["metadata"]
    assert last_manager(hands.get(), "f:spec", "f:replicas") is None  # kubectl get hides them, too
    shown = await client.get(f"/apis/apps/v1/namespaces/{hands.namespace}/deployments/chat")
    assert last_manager(shown, "f:spec", "f:replicas") is not None


async def test_a_status_write_meanwhile_does_not_stop_the_write(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    hands.ready("deployment", 2)
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    hands.kubectl("annotate", "deployment", "chat", "note=moved-the-version")
    assert hands.get()["metadata"]["resourceVersion"] != scale.target.resource_version
    result = await replicas.write(hands.namespace, DEPLOYMENT, 3, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.WRITTEN
    assert hands.get()["spec"]["replicas"] == 3


async def test_a_change_by_somebody_else_is_left_alone_and_named(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    hands.kubectl("scale", "deployment", "chat", "--replicas=5")
    result = await replicas.write(hands.namespace, DEPLOYMENT, 3, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.CHANGED
    assert result.manager == "kubectl"
    assert result.target is not None
    assert result.target.replicas == 5
    assert "kubectl set Deployment chat from 2 to 5 replicas since the decision; 3 was not written" in result.message
    assert hands.get()["spec"]["replicas"] == 5


async def test_the_wanted_change_by_somebody_else_is_no_news(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    hands.kubectl("scale", "deployment", "chat", "--replicas=3")
    result = await replicas.write(hands.namespace, DEPLOYMENT, 3, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.UNCHANGED


async def test_a_target_made_anew_is_not_written(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    hands.kubectl("delete", "deployment", "chat")
    hands.apply(workload())
    result = await replicas.write(hands.namespace, DEPLOYMENT, 3, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.CHANGED
    assert "deleted and created again" in result.message
    assert hands.get()["spec"]["replicas"] == 2


async def test_a_missing_target_says_what_to_do(hands: Hands, replicas: Replicas) -> None:
    with pytest.raises(TargetError) as caught:
        await replicas.read(hands.namespace, DEPLOYMENT)
    assert caught.value.problem is TargetProblem.NOT_FOUND
    assert f"no Deployment chat in namespace {hands.namespace}; create it" in str(caught.value)
    hands.apply(workload())
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    hands.kubectl("delete", "deployment", "chat")
    result = await replicas.write(hands.namespace, DEPLOYMENT, 3, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.NOT_FOUND


async def test_a_scale_without_selector_says_what_to_do(hands: Hands, replicas: Replicas, fleet: None) -> None:
    hands.kubectl("patch", "fleet", "chat", "--subresource=status", "--type=merge", "-p", '{"status":{"pods":""}}')
    with pytest.raises(TargetError) as caught:
        await replicas.read(hands.namespace, FLEET)
    assert caught.value.problem is TargetProblem.NO_SELECTOR
    assert "labelSelectorPath" in str(caught.value)


async def test_nothing_is_written_after_the_lease(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    result = await replicas.write(hands.namespace, DEPLOYMENT, 3, decided_on=scale.target, deadline=soon(-1))
    assert result.outcome is Outcome.FAILED
    assert "the time left under the lease ran out" in result.message
    assert hands.get()["spec"]["replicas"] == 2


async def test_missing_rights_are_named(hands: Hands, control_plane: ControlPlane, replicas: Replicas) -> None:
    hands.apply(workload())
    admin = await replicas.read(hands.namespace, DEPLOYMENT)
    hands.kubectl("create", "serviceaccount", "weak")
    kubeconfig = control_plane.service_account_kubeconfig(hands.namespace, "weak")
    async with await KubeClient.connect(str(kubeconfig)) as client:
        discovery = Discovery(client)
        weak, rights = Replicas(client, discovery), Rights(client)
        with pytest.raises(TargetError) as caught:
            await weak.read(hands.namespace, DEPLOYMENT)
        assert caught.value.problem is TargetProblem.FORBIDDEN
        assert f"may not get deployments/scale of API group apps in namespace {hands.namespace}" in str(caught.value)
        assert "chart value scaleTargets" in str(caught.value)
        result = await weak.write(hands.namespace, DEPLOYMENT, 3, decided_on=admin.target, deadline=soon())
        assert result.outcome is Outcome.FORBIDDEN
        assert "may not patch deployments/scale" in result.message
        right = scale_right("patch", await discovery.resolve("apps/v1", "Deployment"))
        assert await rights.missing(right, hands.namespace) == result.message
        hands.kubectl("create", "role", "scaler", "--verb=get,patch", "--resource=deployments/scale")
        hands.kubectl("create", "rolebinding", "scaler", "--role=scaler", f"--serviceaccount={hands.namespace}:weak")
        assert await Rights(client).missing(right, hands.namespace) == ""
        scale = await weak.read(hands.namespace, DEPLOYMENT)
        assert (scale.target.manager, scale.target.rollout) == ("", None)  # the object itself may not be read
        result = await weak.write(hands.namespace, DEPLOYMENT, 3, decided_on=scale.target, deadline=soon())
        assert result.outcome is Outcome.WRITTEN
    assert hands.get()["spec"]["replicas"] == 3


async def test_a_storm_of_status_writes_does_not_keep_the_write_from_happening(
    hands: Hands, replicas: Replicas, client: KubeClient
) -> None:
    hands.apply(workload())
    hands.ready("deployment", 2)
    path = f"/apis/apps/v1/namespaces/{hands.namespace}/deployments/chat"
    stop = asyncio.Event()

    async def storm(number: int) -> int:
        writes = 0
        while not stop.is_set():
            await client.patch(path, {"metadata": {"annotations": {f"n{number}": str(writes)}}}, urgent=True)
            writes += 1
        return writes

    storms = [asyncio.create_task(storm(number)) for number in range(4)]
    try:
        for wanted in range(3, 13):
            target = (await replicas.read(hands.namespace, DEPLOYMENT)).target
            result = await replicas.write(hands.namespace, DEPLOYMENT, wanted, decided_on=target, deadline=soon())
            assert result.outcome is Outcome.WRITTEN, result.message
    finally:
        stop.set()
        assert sum(await asyncio.gather(*storms)) > 20


async def test_zero_replicas_can_be_read_and_written(hands: Hands, replicas: Replicas) -> None:
    """The API leaves a zero out of the object."""
    hands.apply(workload(replicas=0))
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    assert scale.target.replicas == 0
    result = await replicas.write(hands.namespace, DEPLOYMENT, 1, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.WRITTEN
    assert result.target is not None
    assert (
        await replicas.write(hands.namespace, DEPLOYMENT, 0, decided_on=result.target, deadline=soon())
    ).message == ""
    assert hands.get()["spec"]["replicas"] == 0


async def test_what_the_server_finds_invalid_is_said_in_its_own_words(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    scale = await replicas.read(hands.namespace, DEPLOYMENT)
    result = await replicas.write(hands.namespace, DEPLOYMENT, -1, decided_on=scale.target, deadline=soon())
    assert result.outcome is Outcome.FAILED
    assert "must be greater than or equal to 0" in result.message


async def test_of_many_writers_on_one_decision_only_one_gets_through(hands: Hands, replicas: Replicas) -> None:
    hands.apply(workload())
    scale = await replicas.read(hands.namespace, DEPLOYMENT)

    def write(wanted: int) -> Any:
        return replicas.write(hands.namespace, DEPLOYMENT, wanted, decided_on=scale.target, deadline=soon())

    results: list[ScaleResult] = await asyncio.gather(*(write(wanted) for wanted in range(3, 9)))
    outcomes = [result.outcome for result in results]
    assert outcomes.count(Outcome.WRITTEN) == 1
    assert outcomes.count(Outcome.CHANGED) == 5
    assert hands.get()["spec"]["replicas"] == 3 + outcomes.index(Outcome.WRITTEN)


# -- rollouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ref", [DEPLOYMENT, STATEFUL_SET], ids=lambda ref: ref.kind)
async def test_a_scale_up_is_no_rollout_and_a_new_template_is(hands: Hands, replicas: Replicas, ref: TargetRef) -> None:
    kind = ref.kind.lower()
    hands.apply(workload(ref.kind, load_time="1s"))
    assert (await replicas.read(hands.namespace, ref)).target.rollout is None  # the first start
    hands.ready(kind, 2)
    hands.kubectl("scale", kind, "chat", "--replicas=3")
    for _ in range(5):
        assert (await replicas.read(hands.namespace, ref)).target.rollout is None
        await asyncio.sleep(0.1)
    hands.ready(kind, 3)
    hands.kubectl("set", "image", f"{kind}/chat", "server=server:2")
    rollout = await until(replicas, hands, ref, lambda scale: scale.target.rollout is not None)
    assert rollout.target.rollout is not None
    assert not rollout.target.rollout.ours
    assert not rollout.target.rollout.deadline_exceeded
    await until(replicas, hands, ref, lambda scale: scale.target.rollout is None)
    hands.ready(kind, 3)


async def until(replicas: Replicas, hands: Hands, ref: TargetRef, true: Callable[[Scale], bool]) -> Scale:
    for _ in range(600):
        if true(scale := await replicas.read(hands.namespace, ref)):
            return scale
        await asyncio.sleep(0.05)
    raise AssertionError(f"30 s long not so; last seen: {scale}")


# -- batch cap in the pod template -------------------------------------------------------------------------------------


async def seen(client: KubeClient, hands: Hands, ref: TargetRef = DEPLOYMENT) -> Workload:
    """The workload as the operator's stores would show it, but for the manifest."""
    resource = await Discovery(client).scalable(ref.api_version, ref.kind)
    raw = await client.get(resource.path(hands.namespace, ref.name))
    pods = tuple(
        Pod(
            name=pod["metadata"]["name"],
            uid=pod["metadata"]["uid"],
            state=PodState.TERMINATING if "deletionTimestamp" in pod["metadata"] else PodState.READY,
            cap=number(pod["metadata"].get("annotations", {}).get(CAP_KEY)),
        )
        for pod in hands.pods()
    )
    return Workload(namespace=hands.namespace, name=ref.name, resource=resource, uid=raw["metadata"]["uid"], pods=pods)


def number(text: str | None) -> int | None:
    return int(text) if text else None


async def apply(adapter: BatchAdapter, client: KubeClient, hands: Hands, cap: int, **options: Any) -> CapResult:
    return await adapter.apply(await seen(client, hands, **options), cap, deadline=soon())


def server_of(manifest: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][1]
    return container


@pytest.mark.parametrize("ref", [DEPLOYMENT, STATEFUL_SET], ids=lambda ref: ref.kind)
async def test_cap_as_environment_variable_rolls_out(hands: Hands, client: KubeClient, ref: TargetRef) -> None:
    kind = ref.kind.lower()
    env = [{"name": "A", "value": "x"}, {"name": "MAX_NUM_SEQS", "value": "64"}, {"name": "B", "value": "$(A)"}]
    hands.apply(workload(ref.kind, env=env))
    before = hands.ready(kind, 2)
    adapter = PodTemplate(client, container="server", env="MAX_NUM_SEQS")
    result = await apply(adapter, client, hands, 32, ref=ref)
    assert (result.outcome, result.written) == (Outcome.WRITTEN, 1)
    assert result.manager == "kubectl-client-side-apply"
    after = hands.get(kind)
    assert server_of(after)["env"] == [env[0], {"name": "MAX_NUM_SEQS", "value": "32"}, env[2]]
    changed = before["spec"]["template"]
    server_of(before)["env"][1]["value"] = "32"
    changed["metadata"]["annotations"] |= {
        "bandkeeper.dev/batch-cap": "32",
        "bandkeeper.dev/previous-batch-cap": "64",
        "bandkeeper.dev/template-hash": after["spec"]["template"]["metadata"]["annotations"][
            "bandkeeper.dev/template-hash"
        ],
    }
    assert after["spec"] == before["spec"]
    raw = await client.get((await seen(client, hands, ref)).resource.path(hands.namespace, "chat"))
    rollout = rollout_of(raw, now=time.time())
    assert rollout is not None
    assert rollout.ours
    hands.ready(kind, 2)
    assert {pod.cap for pod in (await seen(client, hands, ref)).pods} == {32}
    assert (await apply(adapter, client, hands, 32, ref=ref)).outcome is Outcome.UNCHANGED


async def test_cap_is_added_where_the_variable_was_not_set(hands: Hands, client: KubeClient) -> None:
    hands.apply(workload())
    adapter = PodTemplate(client, container="server", env="MAX_NUM_SEQS")
    assert (await apply(adapter, client, hands, 16)).outcome is Outcome.WRITTEN
    assert server_of(hands.get())["env"] == [{"name": "MAX_NUM_SEQS", "value": "16"}]
    result = await adapter.rollback(await seen(client, hands), deadline=soon())
    assert result.outcome is Outcome.WRITTEN
    assert "env" not in server_of(hands.get())
    assert CAP_KEY not in hands.get()["spec"]["template"]["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--port=8000", "--max-num-seqs=64", "--x"], ["--port=8000", "--max-num-seqs=32", "--x"]),
        (["--max-num-seqs", "64", "--port", "64"], ["--max-num-seqs", "32", "--port", "64"]),
        (["--max-num-seqs=8", "--max-num-seqs", "64"], ["--max-num-seqs=8", "--max-num-seqs", "32"]),
    ],
)
async def test_cap_as_argument_is_edited_in_place(
    hands: Hands, client: KubeClient, args: list[str], wanted: list[str]
) -> None:
    hands.apply(workload(args=args))
    adapter = PodTemplate(client, container="server", argument="--max-num-seqs")
    assert (await apply(adapter, client, hands, 32)).outcome is Outcome.WRITTEN
    assert server_of(hands.get())["args"] == wanted
    assert (await adapter.rollback(await seen(client, hands), deadline=soon())).outcome is Outcome.WRITTEN
    assert server_of(hands.get())["args"] == args
    assert (await adapter.rollback(await seen(client, hands), deadline=soon())).outcome is Outcome.UNCHANGED


async def test_the_manager_that_applies_all_args_is_named_with_its_ignore_rule(
    hands: Hands, client: KubeClient
) -> None:
    document = workload(args=["--max-num-seqs=64"])
    hands.kubectl("apply", "--server-side", "--field-manager=argocd-controller", "-f", "-", input=document)
    adapter = PodTemplate(client, container="server", argument="--max-num-seqs")
    result = await apply(adapter, client, hands, 32)
    assert (result.outcome, result.manager) == (Outcome.WRITTEN, "argocd-controller")
    assert "ignoreDifferences.jsonPointers" in result.message
    assert "/spec/template/spec/containers/1/args" in result.message


async def test_a_variable_of_our_own_is_no_conflict_for_server_side_apply(hands: Hands, client: KubeClient) -> None:
    document = workload(env=[{"name": "A", "value": "x"}])
    hands.kubectl("apply", "--server-side", "--field-manager=argocd-controller", "-f", "-", input=document)
    adapter = PodTemplate(client, container="server", env="MAX_NUM_SEQS")
    result = await apply(adapter, client, hands, 32)
    assert (result.outcome, result.message, result.manager) == (Outcome.WRITTEN, "", "")
    document["spec"]["template"]["spec"]["containers"][1]["image"] = "server:2"
    hands.kubectl("apply", "--server-side", "--field-manager=argocd-controller", "-f", "-", input=document)
    server = server_of(hands.get())
    assert server["image"] == "server:2"
    assert {"name": "MAX_NUM_SEQS", "value": "32"} in server["env"]
    raw = await client.get(f"/apis/apps/v1/namespaces/{hands.namespace}/deployments/chat")
    rollout = rollout_of(raw, now=time.time())
    assert rollout is None or not rollout.ours  # the new image is theirs


async def test_our_rollout_past_its_deadline_is_seen_and_taken_back(
    hands: Hands, client: KubeClient, replicas: Replicas
) -> None:
    hands.apply(workload(deadline_s=2, env=[{"name": "MAX_NUM_SEQS", "value": "64"}]))
    hands.ready("deployment", 2)
    adapter = PodTemplate(client, container="server", env="MAX_NUM_SEQS")
    hands.kubectl(
        "patch",
        "deployment",
        "chat",
        "--type=merge",
        "-p",
        '{"spec":{"template":{"metadata":{"annotations":{"bandkeeper.dev/load-time":"60s"}}}}}',
    )
    stuck = await until(
        replicas, hands, DEPLOYMENT, lambda s: s.target.rollout is not None and s.target.rollout.deadline_exceeded
    )
    assert stuck.target.rollout is not None
    assert not stuck.target.rollout.ours
    refused = await adapter.rollback(await seen(client, hands), deadline=soon())
    assert refused.outcome is Outcome.UNCHANGED  # there is nothing of ours to take back
    assert (await apply(adapter, client, hands, 32)).outcome is Outcome.WRITTEN
    stuck = await until(
        replicas,
        hands,
        DEPLOYMENT,
        lambda s: s.target.rollout is not None and s.target.rollout.deadline_exceeded and s.target.rollout.ours,
    )
    assert stuck.target.rollout is not None
    assert stuck.target.rollout.surge == 1
    assert (await adapter.rollback(await seen(client, hands), deadline=soon())).outcome is Outcome.WRITTEN
    assert server_of(hands.get())["env"] == [{"name": "MAX_NUM_SEQS", "value": "64"}]
    hands.kubectl("set", "image", "deployment/chat", "server=server:2")
    assert (await apply(adapter, client, hands, 16)).outcome is Outcome.WRITTEN
    hands.kubectl("set", "image", "deployment/chat", "server=server:3")
    refused = await adapter.rollback(await seen(client, hands), deadline=soon())
    assert refused.outcome is Outcome.REFUSED
    assert "changed by somebody else since" in refused.message


async def test_a_template_write_survives_status_writes_but_not_another_cap(hands: Hands, client: KubeClient) -> None:
    """The API server is asked once per attempt; between reading and writing others act."""
    hands.apply(workload(env=[{"name": "MAX_NUM_SEQS", "value": "64"}]))
    hands.ready("deployment", 2)
    target = await seen(client, hands)
    meddling = Meddling(client, lambda: hands.kubectl("annotate", "--overwrite", "deployment", "chat", "n=1"))
    adapter = PodTemplate(meddling, container="server", env="MAX_NUM_SEQS")
    assert (await adapter.apply(target, 32, deadline=soon())).outcome is Outcome.WRITTEN
    assert meddling.patches == 1  # a change outside the template is no reason to ask twice
    meddling = Meddling(client, lambda: hands.kubectl("set", "image", "deployment/chat", "server=server:2"))
    adapter = PodTemplate(meddling, container="server", env="MAX_NUM_SEQS")
    assert (await adapter.apply(target, 24, deadline=soon())).outcome is Outcome.WRITTEN
    assert meddling.patches == 2
    assert server_of(hands.get())["image"] == "server:2"
    meddling = Meddling(client, lambda: hands.kubectl("set", "env", "deployment/chat", "MAX_NUM_SEQS=48"))
    adapter = PodTemplate(meddling, container="server", env="MAX_NUM_SEQS")
    result = await adapter.apply(target, 16, deadline=soon())
    assert result.outcome is Outcome.CHANGED
    assert "to 48 meanwhile; it was left so" in result.message


class Meddling(KubeClient):
    """A client before whose first patch somebody else writes."""

    def __init__(self, inner: KubeClient, meddle: Callable[[], object]) -> None:
        self._inner = inner
        self._meddle = meddle
        self.patches = 0

    async def get(self, path: str, **options: Any) -> dict[str, Any]:
        return await self._inner.get(path, **options)

    async def patch(self, path: str, body: Any, **options: Any) -> dict[str, Any]:
        self.patches += 1
        if self.patches == 1:
            self._meddle()
        return await self._inner.patch(path, body, **options)


# -- batch cap as a pod annotation -------------------------------------------------------------------------------------


async def test_pods_are_annotated_and_new_ones_when_they_are_seen(hands: Hands, client: KubeClient) -> None:
    hands.apply(workload())
    hands.ready("deployment", 2)
    adapter = Annotation(client, CAP_KEY)
    result = await apply(adapter, client, hands, 32)
    assert (result.outcome, result.written, result.failed) == (Outcome.WRITTEN, 2, {})
    versions = {pod["metadata"]["name"]: pod["metadata"]["resourceVersion"] for pod in hands.pods()}
    assert (await apply(adapter, client, hands, 32)).outcome is Outcome.UNCHANGED
    hands.kubectl("scale", "deployment", "chat", "--replicas=4")
    hands.ready("deployment", 4)
    target = await seen(client, hands)
    assert sorted(str(pod.cap) for pod in target.pods) == ["32", "32", "None", "None"]
    assert not adapter.settled(target, 32)
    result = await adapter.apply(target, 32, deadline=soon())
    assert (result.outcome, result.written) == (Outcome.WRITTEN, 2)
    pods = hands.pods()
    assert {pod["metadata"]["annotations"][CAP_KEY] for pod in pods} == {"32"}
    for pod in pods:  # those that had it were not touched
        name = pod["metadata"]["name"]
        assert versions.get(name, pod["metadata"]["resourceVersion"]) == pod["metadata"]["resourceVersion"]
    assert adapter.settled(await seen(client, hands), 32)


async def test_a_pod_of_the_same_name_but_another_life_is_not_annotated(hands: Hands, client: KubeClient) -> None:
    hands.apply(workload("StatefulSet"))
    hands.ready("statefulset", 2)
    target = await seen(client, hands, STATEFUL_SET)
    hands.kubectl("delete", "pod", "chat-0", "--wait")
    hands.ready("statefulset", 2)
    result = await Annotation(client, CAP_KEY).apply(target, 32, deadline=soon())
    assert result.failed == {}
    assert (result.outcome, result.written) == (Outcome.WRITTEN, 1)
    assert [pod.cap for pod in (await seen(client, hands, STATEFUL_SET)).pods] == [None, 32]


async def test_without_the_right_no_pod_is_annotated_and_the_chart_value_is_named(
    hands: Hands, control_plane: ControlPlane, client: KubeClient
) -> None:
    hands.apply(workload())
    hands.ready("deployment", 2)
    target = await seen(client, hands)
    hands.kubectl("create", "serviceaccount", "weak")
    kubeconfig = control_plane.service_account_kubeconfig(hands.namespace, "weak")
    async with await KubeClient.connect(str(kubeconfig)) as weak:
        for adapter, value in (
            (Annotation(weak, CAP_KEY), "adapters.annotation.enabled=true"),
            (PodTemplate(weak, container="server", env="X"), "adapters.podTemplate.enabled=true"),
        ):
            result = await adapter.apply(target, 32, deadline=soon())
            assert result.outcome is Outcome.FORBIDDEN
            assert value in result.message
            assert await Rights(weak).missing(adapter.right(target.resource), hands.namespace) == result.message
