"""The chart installed by a real helm: what the operator's identity can and cannot do, and who may write policies."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bandkeeper.actuate.adapter import Workload
from bandkeeper.actuate.annotation import Annotation
from bandkeeper.actuate.config_map import ConfigMap
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.actuate.pod_template import PodTemplate
from bandkeeper.actuate.replicas import Replicas, scale_right
from bandkeeper.actuate.rights import KEEP_S, Right, Rights
from bandkeeper.api.snapshot import Pod
from bandkeeper.api.v1alpha1 import TargetRef
from bandkeeper.kube.client import JSON_PATCH, Forbidden, KubeClient
from bandkeeper.kube.discovery import Discovery
from tests.cluster import CommandError, ControlPlane, eventually

pytestmark = pytest.mark.cluster

CHART = Path(__file__).parent.parent / "charts" / "bandkeeper"
RELEASE, SYSTEM, SERVING, OTHER = "gpu", "chart-system", "chart-serving", "chart-other"
IDENTITY = "gpu-bandkeeper"
REF = TargetRef(api_version="apps/v1", kind="Deployment", name="chat")
Manifest = dict[str, Any]
ADAPTERS = [
    "--set=adapters.annotation.enabled=true",
    "--set=adapters.podTemplate.enabled=true",
    f"--set=adapters.podTemplate.namespaces={{{SERVING}}}",
    "--set=adapters.configMap.enabled=true",
    "--set=adapters.configMap.names={chat-batch,chat-sizes}",
    f"--set=adapters.configMap.namespaces={{{SERVING}}}",
]


def workload(kind: str = "Deployment") -> Manifest:
    labels = {"app": "chat"}
    spec: Manifest = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels, "annotations": {"team": "a", "bandkeeper.dev/load-time": "100ms"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "serviceAccountName": "default",
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "initContainers": [{"name": "init", "image": "init:1"}],
                "containers": [
                    {"name": "proxy", "image": "proxy:1", "args": ["--max-num-seqs", "5", "--port", "80"]},
                    {
                        "name": "server",
                        "image": "server:1",
                        "command": ["serve"],
                        "args": ["--port=8000", "--max-num-seqs=64", "--max-batch-size", "64", "--seed", "7"],
                        "env": [
                            {"name": "MODEL", "value": "m"},
                            {"name": "MAX_NUM_SEQS", "value": "64"},
                            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        ],
                    },
                ],
            },
        },
    }
    if kind == "StatefulSet":
        spec["serviceName"] = "chat"
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "chat", "labels": {"team": "a"}}, "spec": spec}


def config_map(name: str) -> Manifest:
    metadata = {"name": name, "labels": {"team": "a"}, "annotations": {"team": "a"}}
    data = {"batch-cap": "64", "model": "m"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def policy(**spec: Any) -> Manifest:
    return {
        "apiVersion": "bandkeeper.dev/v1alpha1",
        "kind": "GPUScalingPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "objective": "LatencySensitive",
            "runtime": "VLLM",
            "slos": [{"signal": "TimeToFirstToken", "percentile": 95, "threshold": "500ms"}],
            "replicas": {"min": 1, "max": 4},
            **spec,
        },
    }


def upgrade(cluster: ControlPlane, *options: str) -> None:
    """Install or upgrade the release, whoever made the CRDs before us."""
    cluster.helm(
        "upgrade",
        RELEASE,
        str(CHART),
        f"--namespace={SYSTEM}",
        "--install",
        "--reset-values",
        "--take-ownership",
        "--wait",
        r"--set-string=podAnnotations.bandkeeper\.dev/load-time=100ms",
        *options,
    )


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The release with both adapters on, and namespaces to act in; the operator's namespace is held to `restricted`."""
    for name in (SYSTEM, SERVING, OTHER):
        control_plane.create_namespace(name)
    control_plane.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    upgrade(control_plane, *ADAPTERS)
    for name in (SERVING, OTHER):
        control_plane.kubectl("-n", name, "apply", "-f", "-", input=[workload(), workload("StatefulSet")])
    for name in ("chat-batch", "chat-other"):
        control_plane.kubectl("-n", SERVING, "apply", "-f", "-", input=config_map(name))
    eventually(lambda: len(pods(control_plane)) == 2, what="pods")
    yield control_plane
    control_plane.helm("uninstall", RELEASE, f"--namespace={SYSTEM}", "--wait")
    for name in (SYSTEM, SERVING, OTHER):
        control_plane.delete_namespace(name)


def pods(cluster: ControlPlane) -> list[Manifest]:
    found: list[Manifest] = cluster.get("pods", namespace=SERVING, selector="app=chat")["items"]
    return found


@pytest_asyncio.fixture
async def operator(installed: ControlPlane) -> AsyncIterator[KubeClient]:
    """A client with exactly the rights of the operator's pods."""
    kubeconfig = installed.service_account_kubeconfig(SYSTEM, IDENTITY)
    async with await KubeClient.connect(str(kubeconfig)) as client:
        yield client


# -- the release -------------------------------------------------------------------------------------------------------


def test_the_operators_pods_are_admitted_under_the_restricted_standard(installed: ControlPlane) -> None:
    deployment = eventually(
        lambda: (
            (found := installed.get("deployment", IDENTITY, namespace=SYSTEM))["status"].get("readyReplicas") == 2
            and found
        ),
        what="two operator pods ready",
    )
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == IDENTITY


def test_the_release_is_upgraded_and_taken_back(installed: ControlPlane) -> None:
    before = installed.get("configmap", IDENTITY, namespace=SYSTEM)["data"]["config.yaml"]
    upgrade(installed, *ADAPTERS, "--set=period=10s")
    assert "period: 10s" in installed.get("configmap", IDENTITY, namespace=SYSTEM)["data"]["config.yaml"]
    installed.helm("rollback", RELEASE, "1", f"--namespace={SYSTEM}", "--wait")
    assert installed.get("configmap", IDENTITY, namespace=SYSTEM)["data"]["config.yaml"] == before


def test_removing_the_release_keeps_crds_and_policies(installed: ControlPlane) -> None:
    installed.kubectl("-n", SERVING, "apply", "-f", "-", input=policy())
    try:
        installed.helm("uninstall", RELEASE, f"--namespace={SYSTEM}", "--wait")
        assert installed.get("gpuscalingpolicy", "chat", namespace=SERVING)["spec"]["replicas"]["max"] == 4
        left = installed.kubectl(
            "get",
            "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding",
            "--selector=app.kubernetes.io/instance=gpu",
            "--output=name",
        )
        assert left == ""
        assert installed.get("all", namespace=SYSTEM)["items"] == []
    finally:
        upgrade(installed, *ADAPTERS)
        installed.kubectl("-n", SERVING, "delete", "gpuscalingpolicy", "chat")


def test_the_admission_policies_pass_the_servers_type_check(installed: ControlPlane) -> None:
    def checked() -> list[Manifest] | None:
        found = installed.get("validatingadmissionpolicy", selector="app.kubernetes.io/instance=gpu")["items"]
        seen = [item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"] for item in found]
        return found if len(found) == 4 and all(seen) else None

    for item in eventually(checked, what="type check"):
        warnings = item["status"].get("typeChecking", {}).get("expressionWarnings", [])
        assert warnings == [], item["metadata"]["name"]


# -- what the operator can do ------------------------------------------------------------------------------------------


async def seen(cluster: ControlPlane, operator: KubeClient, namespace: str = SERVING) -> Workload:
    resource = await Discovery(operator).scalable("apps/v1", "Deployment")
    raw = await operator.get(resource.path(namespace, "chat"))
    found = tuple(Pod(name=pod["metadata"]["name"], uid=pod["metadata"]["uid"]) for pod in pods(cluster))
    return Workload(namespace=namespace, name="chat", resource=resource, uid=raw["metadata"]["uid"], pods=found)


async def test_replicas_and_both_adapters_work_under_the_operators_identity(
    installed: ControlPlane, operator: KubeClient
) -> None:
    target = await seen(installed, operator)
    before = installed.get("deployment", "chat", namespace=SERVING)["spec"]["template"]["spec"]
    deadline = time.monotonic() + 20
    annotated = await Annotation(operator, "bandkeeper.dev/batch-cap").apply(target, 32, deadline=deadline)
    assert (annotated.outcome, annotated.written, annotated.message) == (Outcome.WRITTEN, 2, "")
    for adapter in (
        PodTemplate(operator, container="server", env="MAX_NUM_SEQS"),
        PodTemplate(operator, container="server", env="BATCH_CAP"),  # not there yet
        PodTemplate(operator, container="server", argument="--max-num-seqs"),
        PodTemplate(operator, container="server", argument="--max-batch-size"),
        PodTemplate(operator, container="proxy", argument="--max-num-seqs"),
    ):
        result = await adapter.apply(target, 32, deadline=deadline)
        assert result.outcome is Outcome.WRITTEN, result.message
        result = await adapter.rollback(target, deadline=deadline)
        assert result.outcome is Outcome.WRITTEN, result.message
    in_map = ConfigMap(operator, name="chat-batch", key="batch-cap")
    assert await Rights(operator).missing(in_map.right(target.resource), SERVING, "chat") == ""
    result = await in_map.apply(target, 32, deadline=deadline)
    assert result.outcome is Outcome.WRITTEN, result.message
    reading = await in_map.read_back(target, deadline=deadline)
    assert reading.caps == dict.fromkeys((pod.name for pod in target.pods), 32)
    replicas = Replicas(operator, Discovery(operator))
    scale = await replicas.read(SERVING, REF)
    written = await replicas.write(SERVING, REF, 2, decided_on=scale.target, deadline=deadline)
    assert written.outcome is Outcome.WRITTEN
    after = installed.get("deployment", "chat", namespace=SERVING)["spec"]
    assert after["template"]["spec"] == before
    assert after["replicas"] == 2


async def test_where_the_adapter_was_not_granted_it_says_so(installed: ControlPlane, operator: KubeClient) -> None:
    target = await seen(installed, operator, OTHER)
    adapter = PodTemplate(operator, container="server", env="MAX_NUM_SEQS")
    result = await adapter.apply(target, 32, deadline=time.monotonic() + 20)
    assert result.outcome is Outcome.FORBIDDEN
    assert "adapters.podTemplate.enabled=true (and its namespaces)" in result.message
    assert await Rights(operator).missing(adapter.right(target.resource), OTHER) == result.message


async def test_a_config_map_that_the_chart_does_not_name_is_out_of_reach(
    installed: ControlPlane, operator: KubeClient
) -> None:
    target = await seen(installed, operator)
    adapter = ConfigMap(operator, name="chat-other", key="batch-cap")
    missing = await Rights(operator).missing(adapter.right(target.resource), SERVING, "chat")
    assert 'list "chat-other" in the chart value adapters.configMap.names' in missing
    result = await adapter.apply(target, 32, deadline=time.monotonic() + 20)
    assert (result.outcome, result.message) == (Outcome.FORBIDDEN, missing)
    result = await ConfigMap(operator, name="chat-sizes", key="batch-cap").apply(
        target, 8, deadline=time.monotonic() + 20
    )
    assert result.outcome is Outcome.REFUSED
    assert "kubectl create configmap chat-sizes" in result.message


async def test_a_value_that_the_chart_does_not_name_is_denied_with_the_value_to_set(
    installed: ControlPlane, operator: KubeClient
) -> None:
    target = await seen(installed, operator)
    deadline = time.monotonic() + 20
    result = await PodTemplate(operator, container="server", env="WORKERS").apply(target, 8, deadline=deadline)
    assert result.outcome is Outcome.FORBIDDEN
    assert "add yours to the chart value adapters.podTemplate.env" in result.message
    result = await PodTemplate(operator, container="server", argument="--seed").apply(target, 8, deadline=deadline)
    assert result.outcome is Outcome.FORBIDDEN
    assert "add yours to the chart value adapters.podTemplate.arguments" in result.message
    result = await ConfigMap(operator, name="chat-batch", key="cap").apply(target, 8, deadline=deadline)
    assert result.outcome is Outcome.FORBIDDEN
    assert "add yours to the chart value adapters.configMap.keys" in result.message


async def test_without_adapters_the_operator_can_only_scale(installed: ControlPlane, operator: KubeClient) -> None:
    upgrade(installed)
    try:
        resource = await Discovery(operator).scalable("apps/v1", "Deployment")
        rights = Rights(operator, clock=itertools.count(step=KEEP_S + 1).__next__)  # asks anew each time

        async def may(verb: str, group: str, plural: str, namespace: str = SERVING) -> bool:
            right = Right(verb=verb, group=group, resource=plural, remedy="")
            return await rights.missing(right, namespace) == ""

        async def gone(*right: str) -> None:
            """The API server learns of a removed role a moment later."""
            for _ in range(100):
                if not await may(*right):
                    return
                await asyncio.sleep(0.1)

        assert await rights.missing(scale_right("patch", resource), SERVING) == ""
        allowed = [
            ("get", "apps", "statefulsets/scale"),
            ("watch", "apps", "deployments"),
            ("list", "", "pods"),
            ("patch", "bandkeeper.dev", "gpuscalingpolicies/status"),
            ("create", "events.k8s.io", "events"),
        ]
        denied = [
            ("patch", "", "pods"),
            ("update", "", "pods"),
            ("delete", "", "pods"),
            ("create", "", "pods/exec"),
            ("patch", "", "pods/ephemeralcontainers"),
            ("patch", "apps", "deployments"),
            ("update", "apps", "deployments/scale"),
            ("patch", "apps", "replicasets/scale"),
            ("get", "", "secrets"),
            ("get", "", "configmaps"),
            ("patch", "", "configmaps"),
            ("list", "", "namespaces"),
            ("patch", "bandkeeper.dev", "gpuscalingpolicies"),
            ("create", "", "serviceaccounts/token"),
            ("create", "coordination.k8s.io", "leases"),
            ("impersonate", "", "users"),
        ]
        await gone("patch", "", "pods")
        await gone("patch", "apps", "deployments")
        assert [right for right in allowed if not await may(*right)] == []
        assert [right for right in denied if await may(*right)] == []
        assert await may("create", "coordination.k8s.io", "leases", SYSTEM)
    finally:
        upgrade(installed, *ADAPTERS)


# -- what the operator cannot do ---------------------------------------------------------------------------------------

Edit = Callable[[Manifest], object]
SERVER = 1


def template(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["template"]
    return found


def server(manifest: Manifest) -> Manifest:
    found: Manifest = template(manifest)["spec"]["containers"][SERVER]
    return found


def put(path: str, value: Any) -> Edit:
    """An edit that sets what a dotted path names; numbers are list indexes, `+` appends, `~` is a dot."""

    def edit(manifest: Manifest) -> None:
        at: Any = manifest
        *steps, last = (int(step) if step.isdecimal() else step.replace("~", ".") for step in path.split("."))
        for step in steps:
            at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
        if last == "+":
            at.append(value)
        else:
            at[last] = value

    return edit


def drop(path: str) -> Edit:
    def edit(manifest: Manifest) -> None:
        at: Any = manifest
        *steps, last = (int(step) if step.isdecimal() else step.replace("~", ".") for step in path.split("."))
        for step in steps:
            at = at[step]
        del at[last]

    return edit


IN_POD = "spec.template.spec"
IN_SERVER = f"{IN_POD}.containers.{SERVER}"
WORKLOAD_EDITS: dict[str, Edit] = {
    "image": put(f"{IN_SERVER}.image", "evil:1"),
    "command": put(f"{IN_SERVER}.command", ["sh"]),
    "working directory": put(f"{IN_SERVER}.workingDir", "/tmp"),
    "service account": put(f"{IN_POD}.serviceAccountName", "privileged"),
    "token mount": put(f"{IN_POD}.automountServiceAccountToken", True),
    "host network": put(f"{IN_POD}.hostNetwork", True),
    "host path": put(f"{IN_POD}.volumes.+", {"name": "root", "hostPath": {"path": "/"}}),
    "volume removed": drop(f"{IN_POD}.volumes"),
    "volume mount": put(f"{IN_SERVER}.volumeMounts", [{"name": "scratch", "mountPath": "/x"}]),
    "pod security": put(f"{IN_POD}.securityContext", {"runAsUser": 0}),
    "container security": put(f"{IN_SERVER}.securityContext", {"privileged": True}),
    "resources": put(f"{IN_SERVER}.resources", {"limits": {"cpu": "1"}}),
    "ports": put(f"{IN_SERVER}.ports", [{"containerPort": 1}]),
    "probe": put(f"{IN_SERVER}.livenessProbe", {"exec": {"command": ["sh"]}}),
    "lifecycle": put(f"{IN_SERVER}.lifecycle", {"postStart": {"exec": {"command": ["sh"]}}}),
    "environment from a secret": put(f"{IN_SERVER}.envFrom", [{"secretRef": {"name": "s"}}]),
    "another variable": put(f"{IN_SERVER}.env.0.value", "other"),
    "a new variable": put(f"{IN_SERVER}.env.+", {"name": "LD_PRELOAD", "value": "1"}),
    "variable removed": drop(f"{IN_SERVER}.env.0"),
    "variables swapped": lambda m: server(m)["env"].reverse(),
    "cap variable not a number": put(f"{IN_SERVER}.env.1.value", "64; sh"),
    "cap variable negative": put(f"{IN_SERVER}.env.1.value", "-1"),
    "cap variable from a secret": put(
        f"{IN_SERVER}.env.1",
        {"name": "MAX_NUM_SEQS", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ),
    "another argument": put(f"{IN_SERVER}.args.0", "--port=1"),
    "another number": put(f"{IN_SERVER}.args.5", "8"),
    "flag of the cap": put(f"{IN_SERVER}.args.2", "--port"),
    "cap argument not a number": put(f"{IN_SERVER}.args.1", "--max-num-seqs=$(id)"),
    "argument added": put(f"{IN_SERVER}.args.+", "--max-num-seqs=1"),
    "argument removed": drop(f"{IN_SERVER}.args.0"),
    "all arguments removed": drop(f"{IN_SERVER}.args"),
    "cap argument instead of another": put(f"{IN_SERVER}.args.0", "--max-num-seqs=1"),
    "container added": put(f"{IN_POD}.containers.+", {"name": "evil", "image": "evil:1"}),
    "container removed": drop(f"{IN_POD}.containers.0"),
    "containers swapped": lambda m: template(m)["spec"]["containers"].reverse(),
    "init image": put(f"{IN_POD}.initContainers.0.image", "evil:1"),
    "init variable": put(f"{IN_POD}.initContainers.0.env", [{"name": "MAX_NUM_SEQS", "value": "1"}]),
    "node": put(f"{IN_POD}.nodeSelector", {"a": "b"}),
    "grace period": put(f"{IN_POD}.terminationGracePeriodSeconds", 9),
    "template label": put("spec.template.metadata.labels.x", "y"),
    "template annotation of others": put("spec.template.metadata.annotations.team", "b"),
    "template annotation removed": drop("spec.template.metadata.annotations.team"),
    "annotation that only looks like ours": put(
        "spec.template.metadata.annotations", {"bandkeeper.development/x": "1"}
    ),
    "replicas beside the scale subresource": put("spec.replicas", 9),
    "revision history": put("spec.revisionHistoryLimit", 1),
    "label": put("metadata.labels.team", "b"),
    "annotation": put("metadata.annotations.note", "x"),
    "finalizer": put("metadata.finalizers", ["x.io/y"]),
    "owner": put(
        "metadata.ownerReferences", [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "00000000"}]
    ),
}
POD_EDITS: dict[str, Edit] = {
    "image": put("spec.containers.0.image", "evil:1"),
    "deadline": put("spec.activeDeadlineSeconds", 1),
    "toleration": put("spec.tolerations.+", {"operator": "Exists"}),
    "label that selects it": put("metadata.labels.app", "other"),
    "label added": put("metadata.labels.x", "y"),
    "annotation of others": put("metadata.annotations.team", "b"),
    "annotation added": put("metadata.annotations.note", "x"),
    "annotation removed": drop("metadata.annotations.team"),
    "annotation that only looks like ours": put("metadata.annotations", {"bandkeeper.development/x": "1"}),
    "finalizer": put("metadata.finalizers", ["x.io/y"]),
    "owner": drop("metadata.ownerReferences"),
}


async def attempt(operator: KubeClient, path: str, edit: Edit) -> Manifest:
    """Write the whole spec and metadata with the edit in it, as the operator."""
    before = await operator.get(path)
    after = copy.deepcopy(before)
    for name in ("managedFields", "resourceVersion"):
        del after["metadata"][name]
    edit(after)
    assert after["spec"] != before["spec"] or after["metadata"] != before["metadata"]
    changes = [
        {"op": "replace", "path": "/spec", "value": after["spec"]},
        *(
            {"op": "add" if name in after["metadata"] else "remove", "path": f"/metadata/{name}"}
            | ({"value": after["metadata"][name]} if name in after["metadata"] else {})
            for name in ("labels", "annotations", "finalizers", "ownerReferences")
            if before["metadata"].get(name) != after["metadata"].get(name)
        ),
    ]
    return await operator.patch(path, changes, content_type=JSON_PATCH)


async def denied(operator: KubeClient, path: str, edit: Edit) -> str:
    """What the server says to an edit that it must refuse."""
    with pytest.raises(Forbidden) as caught:
        await attempt(operator, path, edit)
    return caught.value.message


async def test_the_same_way_of_writing_lets_through_what_is_allowed(
    installed: ControlPlane, operator: KubeClient
) -> None:
    """Else the refusals below would prove nothing."""
    pod = pods(installed)[0]["metadata"]["name"]
    path = f"/api/v1/namespaces/{SERVING}/pods/{pod}"
    await attempt(operator, path, put("metadata.annotations.bandkeeper~dev/x", "1"))
    for plural in ("deployments", "statefulsets"):
        path = f"/apis/apps/v1/namespaces/{SERVING}/{plural}/chat"
        await attempt(operator, path, put("spec.template.metadata.annotations.bandkeeper~dev/x", "1"))
        await attempt(operator, path, put(f"{IN_SERVER}.env.1.value", "48"))
        await attempt(operator, path, put(f"{IN_SERVER}.args.1", "--max-num-seqs=48"))
        await attempt(operator, path, put(f"{IN_SERVER}.args.3", "48"))


@pytest.mark.parametrize("plural", ["deployments", "statefulsets"])
@pytest.mark.parametrize("name", WORKLOAD_EDITS)
async def test_the_operator_cannot_change_of_a_workload(name: str, plural: str, operator: KubeClient) -> None:
    path = f"/apis/apps/v1/namespaces/{SERVING}/{plural}/chat"
    message = await denied(operator, path, WORKLOAD_EDITS[name])
    assert "ValidatingAdmissionPolicy 'gpu-bandkeeper-pod-template'" in message
    assert "the operator may " in message


@pytest.mark.parametrize("name", POD_EDITS)
async def test_the_operator_cannot_change_of_a_pod(name: str, installed: ControlPlane, operator: KubeClient) -> None:
    pod = pods(installed)[0]["metadata"]["name"]
    message = await denied(operator, f"/api/v1/namespaces/{SERVING}/pods/{pod}", POD_EDITS[name])
    assert "ValidatingAdmissionPolicy 'gpu-bandkeeper-annotation'" in message


MAP = f"/api/v1/namespaces/{SERVING}/configmaps/chat-batch"
MAP_EDITS: dict[str, Manifest] = {
    "another key": {"data": {"model": "other"}},
    "a new key": {"data": {"sizes": "8"}},
    "a key removed": {"data": {"model": None}},
    "all keys removed": {"data": None},
    "the cap's key removed": {"data": {"batch-cap": None}},
    "cap not a number": {"data": {"batch-cap": "64; sh"}},
    "cap negative": {"data": {"batch-cap": "-1"}},
    "binary data": {"binaryData": {"x": "eA=="}},
    "immutable": {"immutable": True},
    "label": {"metadata": {"labels": {"team": "b"}}},
    "annotation": {"metadata": {"annotations": {"team": "b"}}},
    "annotation of ours": {"metadata": {"annotations": {"bandkeeper.dev/x": "1"}}},
    "finalizer": {"metadata": {"finalizers": ["x.io/y"]}},
    "owner": {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "0"}]}},
}


@pytest.mark.parametrize("name", MAP_EDITS)
async def test_the_operator_cannot_change_of_a_config_map(name: str, operator: KubeClient) -> None:
    """The same way of writing lets the cap through, as the adapter shows."""
    await operator.patch(MAP, {"data": {"batch-cap": "48"}})
    with pytest.raises(Forbidden) as caught:
        await operator.patch(MAP, MAP_EDITS[name])
    assert "ValidatingAdmissionPolicy 'gpu-bandkeeper-config-map'" in caught.value.message


def test_others_are_not_held_to_the_operators_bounds(installed: ControlPlane) -> None:
    installed.kubectl("-n", SERVING, "set", "image", "deployment/chat", "server=server:2")
    pod = pods(installed)[0]["metadata"]["name"]
    installed.kubectl("-n", SERVING, "label", "pod", pod, "x=y")
    installed.kubectl("-n", SERVING, "label", "configmap", "chat-batch", "x=y")


# -- who may write policies --------------------------------------------------------------------------------------------


def grant(cluster: ControlPlane, user: str, name: str, *rights: str) -> None:
    cluster.kubectl("-n", SERVING, "create", "role", name, *rights)
    cluster.kubectl("-n", SERVING, "create", "rolebinding", name, f"--role={name}", f"--user={user}")


def test_a_policy_gives_its_writer_no_right_that_he_did_not_have(installed: ControlPlane) -> None:
    jane = installed.user_kubeconfig("chart-jane")

    def write(document: Manifest) -> str:
        """What the server says to jane's write: "" when it let it through."""
        try:
            installed.kubectl("-n", SERVING, "apply", "-f", "-", input=document, kubeconfig=jane)
        except CommandError as error:
            return error.stderr
        return ""

    grant(
        installed,
        "chart-jane",
        "policies",
        "--verb=get,create,update,patch",
        "--resource=gpuscalingpolicies.bandkeeper.dev",
    )
    eventually(lambda: "cannot create" not in write(policy()), what="jane may write policies")
    said = write(policy())
    assert 'needs the right to update deployments/scale of its target "chat" in namespace chart-serving' in said
    assert "which you do not have" in said
    grant(installed, "chart-jane", "scale", "--verb=update", "--resource=deployments/scale")
    eventually(lambda: write(policy()) == "", what="jane may scale")
    other = policy(targetRef={"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "chat"})
    assert "needs the right to update statefulsets/scale" in write(other)
    unlisted = policy(targetRef={"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "chat"})
    assert "needs the right to update rollouts/scale" in write(unlisted)
    core = policy(targetRef={"apiVersion": "v1", "kind": "ReplicationController", "name": "chat"})
    assert "needs the right to update replicationcontrollers/scale" in write(core)
    template_adapter = {"type": "PodTemplate", "podTemplate": {"container": "server", "env": "MAX_NUM_SEQS"}}
    batch = policy(batch={"min": 8, "max": 64, "adapter": template_adapter})
    assert 'needs the right to update deployments "chat"' in write(batch)
    pod_adapter = policy(batch={"min": 8, "max": 64, "adapter": {"type": "Annotation"}})
    assert "needs the right to patch pods in namespace chart-serving" in write(pod_adapter)
    request = {"type": "HTTP", "http": {"port": 8000, "path": "/admin/batch?size={cap}"}}
    by_request = policy(batch={"min": 8, "max": 64, "adapter": request})
    assert "needs the right to create pods/proxy in namespace chart-serving" in write(by_request)
    in_map = policy(batch={"min": 8, "max": 64, "adapter": {"type": "ConfigMap", "configMap": {"name": "chat-batch"}}})
    assert 'needs the right to update configmaps "chat-batch" in namespace chart-serving' in write(in_map)
    grant(installed, "chart-jane", "proxy", "--verb=create", "--resource=pods/proxy")
    grant(installed, "chart-jane", "maps", "--verb=update", "--resource=configmaps", "--resource-name=chat-batch")
    eventually(lambda: write(by_request) == "", what="jane may send requests to pods")
    eventually(lambda: write(in_map) == "", what="jane may change the ConfigMap")
    grant(installed, "chart-jane", "batch", "--verb=update", "--resource=deployments.apps")
    grant(installed, "chart-jane", "pods", "--verb=patch", "--resource=pods")
    eventually(lambda: write(batch) == "", what="jane may change the deployment")
    eventually(lambda: write(pod_adapter) == "", what="jane may change pods")
    installed.kubectl("-n", SERVING, "delete", "rolebinding", "scale")
    eventually(lambda: write(policy(mode="Recommend")) != "", what="jane may not scale any more")
    labelled = pod_adapter | {"metadata": {"name": "chat", "labels": {"team": "a"}}}
    assert write(labelled) == ""  # says nothing about scaling
    paused = labelled | {"metadata": {"name": "chat", "annotations": {"bandkeeper.dev/paused": "true"}}}
    assert "which you do not have" in write(paused)
    installed.kubectl("-n", SERVING, "delete", "gpuscalingpolicy", "chat")


def test_the_operator_can_write_status_but_no_policy(installed: ControlPlane) -> None:
    installed.kubectl("-n", SERVING, "apply", "-f", "-", input=policy())
    identity = installed.service_account_kubeconfig(SYSTEM, IDENTITY)
    status = json.dumps({"status": {"observedGeneration": 1}})
    change = ["-n", SERVING, "patch", "gpuscalingpolicy", "chat", "--type=merge", "-p"]
    installed.kubectl(*change, status, "--subresource=status", kubeconfig=identity)
    with pytest.raises(CommandError, match="forbidden"):
        installed.kubectl(*change, '{"spec":{"replicas":{"max":99}}}', kubeconfig=identity)
    installed.kubectl("-n", SERVING, "delete", "gpuscalingpolicy", "chat")
