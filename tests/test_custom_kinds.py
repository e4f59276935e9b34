"""KServe, KubeRay and LeaderWorkerSet on a real API server: the CRDs that they publish take what is written, and the
operator's identity can write nothing else. Their controllers are not there: where one matters, the test does its part.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bandkeeper.actuate.adapter import Workload
from bandkeeper.actuate.kserve import BATCH_SIZE_ANNOTATION, KServe
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.actuate.pod_http import PodDoor
from bandkeeper.actuate.ray_serve import RayServe
from bandkeeper.actuate.replicas import Replicas
from bandkeeper.actuate.rights import Rights
from bandkeeper.actuate.rollout import rollout_of
from bandkeeper.actuate.serve_config import CapPlace
from bandkeeper.api.snapshot import Group, Pod
from bandkeeper.api.v1alpha1 import TargetRef
from bandkeeper.kube.client import JSON_PATCH, Forbidden, KubeClient
from bandkeeper.kube.discovery import Discovery, TargetError, TargetProblem
from bandkeeper.kube.pods import PodSettings, trim_pod, view
from tests.cluster import CommandError, ControlPlane, eventually
from tests.cluster.build import build_all
from tests.cluster.crds import find_crds
from tests.cluster.fixtures import in_sight

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parent.parent
CRDS = ("inferenceservices.serving.kserve.io", "leaderworkersets.leaderworkerset.x-k8s.io", "rayservices.ray.io")
RELEASE, SYSTEM, SERVING, OTHER = "kinds", "kinds-system", "kinds-serving", "kinds-other"
IDENTITY = "kinds-bandkeeper"
PLACE = CapPlace(application="embed", deployment="Embedder", key="max_batch_size")
LLAMA = TargetRef(api_version="leaderworkerset.x-k8s.io/v1", kind="LeaderWorkerSet", name="llama")
Manifest = dict[str, Any]

SERVE_CONFIG = """\
# one application, of two deployments
applications:
- name: embed
  import_path: embed:app   # from the image
  deployments:
  - name: Front
    user_config: {max_batch_size: 4, note: "max_batch_size: many", my_max_batch_size: 7, "my max_batch_size": 7}
  - name: Embedder
    num_replicas: 2
    user_config:
      max_batch_size:   16
"""
HEAD = {"containers": [{"name": "ray-head", "image": "ray:2.60.0"}]}
RAY_SERVICE: Manifest = {
    "apiVersion": "ray.io/v1",
    "kind": "RayService",
    "metadata": {"name": "embed", "labels": {"team": "a"}, "annotations": {"note": "x"}},
    "spec": {
        "serveConfigV2": SERVE_CONFIG,
        "rayClusterConfig": {"rayVersion": "2.60.0", "headGroupSpec": {"template": {"spec": HEAD}}},
    },
}
INFERENCE_SERVICE: Manifest = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {
        "name": "iris",
        "labels": {"team": "a"},
        "annotations": {
            "serving.kserve.io/deploymentMode": "Standard",
            "serving.kserve.io/autoscalerClass": "external",
        },
    },
    "spec": {
        "predictor": {
            "minReplicas": 1,
            "batcher": {"maxBatchSize": 32, "maxLatency": 50},
            "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://models/iris"},
        }
    },
}
WORKER = {"name": "vllm", "image": "vllm:1", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
LEADER_WORKER_SET: Manifest = {
    "apiVersion": LLAMA.api_version,
    "kind": LLAMA.kind,
    "metadata": {"name": "llama"},
    "spec": {"leaderWorkerTemplate": {"size": 4, "workerTemplate": {"spec": {"containers": [WORKER]}}}},
}


@pytest.fixture(scope="module")
def kinds(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """The three APIs, namespaces to act in, and the release with both adapters on in one of them.

    A control plane of its own: the APIs double the memory of one, which it keeps when they are deleted.
    """
    in_sight(request.config, build_all)
    crds = in_sight(request.config, find_crds)
    with ControlPlane.start(nodes=1) as cluster:
        files = (f"--filename={place}" for place in (ROOT / "crds", crds))
        cluster.kubectl("apply", "--server-side", *files, timeout_s=120)
        eventually(lambda: all(is_served(cluster, name) for name in CRDS), timeout_s=60, what="the three APIs")
        install(cluster)
        yield cluster


def install(cluster: ControlPlane) -> None:
    """Namespaces, the release, and an object of each kind."""
    for name in (SYSTEM, SERVING, OTHER):
        cluster.create_namespace(name)
    scaled = [
        {"apiGroup": "apps", "kind": "Deployment", "resource": "deployments"},
        {"apiGroup": "leaderworkerset.x-k8s.io", "kind": "LeaderWorkerSet", "resource": "leaderworkersets"},
    ]
    cluster.helm(
        "upgrade",
        RELEASE,
        str(ROOT / "charts" / "bandkeeper"),
        f"--namespace={SYSTEM}",
        "--install",
        "--set=crds.install=false",
        "--set=replicaCount=0",
        "--set=adapters.rayServe.enabled=true",
        f"--set=adapters.rayServe.namespaces={{{SERVING}}}",
        "--set=adapters.kServe.enabled=true",
        f"--set=adapters.kServe.namespaces={{{SERVING}}}",
        f"--set-json=scaleTargets={json.dumps(scaled)}",
    )
    for name in (SERVING, OTHER):
        cluster.kubectl("-n", name, "apply", "-f", "-", input=[RAY_SERVICE, INFERENCE_SERVICE, LEADER_WORKER_SET])


def is_served(cluster: ControlPlane, crd: str) -> bool:
    """`kubectl wait` gives up on an object that has no conditions yet, and a large CRD has `null` at first."""
    conditions = cluster.get("crd", crd).get("status", {}).get("conditions") or ()
    return any((condition["type"], condition["status"]) == ("Established", "True") for condition in conditions)


@pytest_asyncio.fixture
async def operator(kinds: ControlPlane) -> AsyncIterator[KubeClient]:
    """A client with exactly the rights of the operator's pods."""
    async with await KubeClient.connect(str(kinds.service_account_kubeconfig(SYSTEM, IDENTITY))) as client:
        yield client


def soon() -> float:
    return time.monotonic() + 20


def ray_serve(client: KubeClient) -> RayServe:
    """Its dashboard is nowhere: what is written through the API server needs none."""
    return RayServe(client, PLACE, PodDoor(port=8265, address_of=lambda _: "127.0.0.1:1"), ray_service="embed")


async def a_workload(client: KubeClient, namespace: str = SERVING, *pods: Pod, name: str = "chat") -> Workload:
    resource = await Discovery(client).scalable("apps/v1", "Deployment")
    uid = (await client.get(resource.path(namespace, name)))["metadata"]["uid"] if name != "chat" else "u"
    return Workload(namespace=namespace, name=name, resource=resource, uid=uid, pods=pods)


@pytest.mark.parametrize(
    ("manifest", "template"),
    [
        (RAY_SERVICE, ("rayClusterConfig", "headGroupSpec", "template")),
        (INFERENCE_SERVICE, ("predictor",)),
        (LEADER_WORKER_SET, ("leaderWorkerTemplate", "workerTemplate")),
    ],
    ids=["RayService", "InferenceService", "LeaderWorkerSet"],
)
def test_the_whole_schema_is_there(kinds: ControlPlane, manifest: Manifest, template: tuple[str, ...]) -> None:
    """Pod templates and all; what it does not know is refused, so the manifests here are of real fields only."""
    wrong = copy.deepcopy(manifest)
    wrong["metadata"]["name"] = "wrong"
    put("x", "spec", *template, "unheardOf")(wrong)
    with pytest.raises(CommandError) as refused:
        kinds.kubectl("-n", OTHER, "create", "--dry-run=server", "--validate=strict", "-f", "-", input=wrong)
    assert f'unknown field "spec.{".".join(template)}.unheardOf"' in refused.value.stderr


# -- RayService --------------------------------------------------------------------------------------------------------


async def test_one_number_of_a_rayservices_text_is_written_and_no_other_character(
    kinds: ControlPlane, operator: KubeClient
) -> None:
    target = await a_workload(operator, SERVING, Pod(name="a", uid="a", cap=16))
    before = kinds.get("rayservice", "embed", namespace=SERVING)
    result = await ray_serve(operator).apply(target, 8, deadline=soon())
    assert (result.outcome, result.written, result.message) == (Outcome.WRITTEN, 1, "")
    assert result.manager == "kubectl-client-side-apply"
    after = kinds.get("rayservice", "embed", namespace=SERVING)
    assert after["spec"].pop("serveConfigV2") == SERVE_CONFIG.replace("max_batch_size:   16", "max_batch_size:   8")
    assert before["spec"].pop("serveConfigV2") == SERVE_CONFIG
    assert after["spec"] == before["spec"]
    assert (await ray_serve(operator).apply(target, 8, deadline=soon())).outcome is Outcome.UNCHANGED
    target = await a_workload(operator, SERVING, Pod(name="a", uid="a", cap=8))
    assert (await ray_serve(operator).apply(target, 16, deadline=soon())).outcome is Outcome.WRITTEN
    assert kinds.get("rayservice", "embed", namespace=SERVING)["spec"]["serveConfigV2"] == SERVE_CONFIG


@pytest.mark.parametrize(
    ("api_version", "kind", "says"),
    [
        ("ray.io/v1", "RayService", "leave its replicas to Ray's own autoscaler, or run the model server as a Deploy"),
        ("serving.kserve.io/v1beta1", "InferenceService", "name its Deployment (usually <name>-predictor)"),
    ],
)
async def test_what_has_no_replicas_of_its_own_names_the_object_to_use(
    operator: KubeClient, api_version: str, kind: str, says: str
) -> None:
    replicas = Replicas(operator, Discovery(operator))
    with pytest.raises(TargetError) as refused:
        await replicas.read(SERVING, TargetRef(api_version=api_version, kind=kind, name="embed"))
    assert refused.value.problem is TargetProblem.NOT_SCALABLE
    assert says in str(refused.value)


# -- KServe ------------------------------------------------------------------------------------------------------------


class Predictor:
    """The part of KServe's controller that matters here: annotations and the batch size go into the pod template."""

    def __init__(self, cluster: ControlPlane) -> None:
        self.cluster = cluster

    def service(self) -> Manifest:
        return self.cluster.get("inferenceservice", "iris", namespace=SERVING)

    def reconcile(self) -> None:
        service = self.service()
        metadata = service["metadata"]
        annotations = {key: value for key, value in metadata["annotations"].items() if not key.startswith("kubectl.")}
        batch_size = str(service["spec"]["predictor"]["batcher"]["maxBatchSize"])
        marks = {BATCH_SIZE_ANNOTATION: batch_size, "bandkeeper.dev/load-time": "2s"}
        owner = {"apiVersion": service["apiVersion"], "kind": service["kind"], "name": "iris", "uid": metadata["uid"]}
        labels = {"app": "isvc.iris-predictor"}
        pod = {"terminationGracePeriodSeconds": 0, "containers": [{"name": "kserve-container", "image": "model:1"}]}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "iris-predictor", "ownerReferences": [owner]},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels, "annotations": annotations | marks}, "spec": pod},
            },
        }
        apply = ("-n", SERVING, "apply", "--server-side", "--field-manager=kserve", "-f", "-")
        self.cluster.kubectl(*apply, input=deployment)

    def target(self) -> Manifest:
        return self.cluster.get("deployment", "iris-predictor", namespace=SERVING)

    def pods(self) -> tuple[Pod, ...]:
        """As the operator's store has them."""
        raw = self.cluster.get("pods", namespace=SERVING, selector="app=isvc.iris-predictor")["items"]
        found = (trim_pod(one) for one in raw)
        settings = PodSettings(cap_annotation=BATCH_SIZE_ANNOTATION)
        return tuple(view(one, now=time.time(), settings=settings) for one in found if one is not None)

    def runs_with(self, cap: int) -> None:
        def settled() -> bool:
            pods = self.pods()
            fine = bool(pods) and all(pod.cap == cap for pod in pods)
            return fine and rollout_of(self.target(), now=time.time()) is None

        eventually(settled, timeout_s=30, what=f"pods with a cap of {cap}")


async def test_a_batchers_size_is_written_and_its_rollout_is_known_as_ours(
    kinds: ControlPlane, operator: KubeClient
) -> None:
    predictor, adapter = Predictor(kinds), KServe(operator, inference_service="iris")
    predictor.reconcile()
    predictor.runs_with(32)
    target = await a_workload(operator, SERVING, *predictor.pods(), name="iris-predictor")
    before = predictor.service()
    result = await adapter.apply(target, 16, deadline=soon())
    assert (result.outcome, result.written, result.message) == (Outcome.WRITTEN, 1, "")
    after = predictor.service()
    before["spec"]["predictor"]["batcher"]["maxBatchSize"] = 16
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    kept = {key: value for key, value in after["metadata"]["annotations"].items() if "bandkeeper.dev/" not in key}
    assert kept == before["metadata"]["annotations"]
    assert (await adapter.apply(target, 16, deadline=soon())).outcome is Outcome.UNCHANGED

    predictor.reconcile()
    under_way = eventually(lambda: rollout_of(predictor.target(), now=time.time()), what="the rollout")
    assert (under_way.ours, under_way.cap, under_way.previous_cap) == (True, 16, 32)
    predictor.runs_with(16)
    assert (await adapter.rollback(target, deadline=soon())).outcome is Outcome.WRITTEN
    assert predictor.service()["spec"]["predictor"]["batcher"] == {"maxBatchSize": 32, "maxLatency": 50}
    predictor.reconcile()
    predictor.runs_with(32)
    assert (await adapter.rollback(target, deadline=soon())).outcome is Outcome.UNCHANGED


# -- LeaderWorkerSet ---------------------------------------------------------------------------------------------------


async def test_groups_are_scaled_as_one_replica_each_and_counted_with_all_their_gpus(
    kinds: ControlPlane, operator: KubeClient
) -> None:
    status = {"status": {"replicas": 1, "hpaPodSelector": "leaderworkerset.sigs.k8s.io/name=llama"}}
    patch = ("-n", SERVING, "patch", "leaderworkerset", "llama", "--subresource=status", "--type=merge", "-p")
    kinds.kubectl(*patch, json.dumps(status))
    replicas = Replicas(operator, Discovery(operator))
    scale = await replicas.read(SERVING, LLAMA)
    assert (scale.target.replicas, scale.current, scale.selector) == (1, 1, "leaderworkerset.sigs.k8s.io/name=llama")
    assert scale.target.group == Group(pods=4, gpus=32.0)
    written = await replicas.write(SERVING, LLAMA, 3, decided_on=scale.target, deadline=soon())
    assert written.outcome is Outcome.WRITTEN
    spec = kinds.get("leaderworkerset", "llama", namespace=SERVING)["spec"]
    assert (spec["replicas"], spec["leaderWorkerTemplate"]["size"]) == (3, 4)


# -- rights ------------------------------------------------------------------------------------------------------------


async def test_where_an_adapter_was_not_granted_it_says_so(kinds: ControlPlane, operator: KubeClient) -> None:
    target = await a_workload(operator, OTHER, Pod(name="a", uid="a", cap=16))
    result = await ray_serve(operator).apply(target, 8, deadline=soon())
    assert result.outcome is Outcome.FORBIDDEN
    assert "adapters.rayServe.enabled=true (and its namespaces)" in result.message
    for adapter, value in (
        (ray_serve(operator), "adapters.rayServe.enabled=true"),
        (KServe(operator, inference_service="iris"), "adapters.kServe.enabled=true"),
    ):
        right = adapter.right(target.resource)
        assert right is not None
        assert value in await Rights(operator).missing(right, OTHER)
        assert await Rights(operator).missing(right, SERVING) == ""


Edit = Callable[[Manifest], object]


def text(old: str, new: str) -> Edit:
    """An edit of the Serve config."""

    def edit(manifest: Manifest) -> None:
        before = manifest["spec"]["serveConfigV2"]
        manifest["spec"]["serveConfigV2"] = before.replace(old, new)

    return edit


def put(value: Any, *path: str) -> Edit:
    """An edit that sets what a path names."""

    def edit(manifest: Manifest) -> None:
        at = manifest
        for step in path[:-1]:
            at = at.setdefault(step, {})
        at[path[-1]] = value

    return edit


def drop(*path: str) -> Edit:
    def edit(manifest: Manifest) -> None:
        at = manifest
        for step in path[:-1]:
            at = at[step]
        del at[path[-1]]

    return edit


ALLOWED: dict[str, tuple[str, Edit]] = {
    "a cap": ("rayservices/embed", text("max_batch_size:   16", "max_batch_size:   128")),
    "a cap in one line": ("rayservices/embed", text("{max_batch_size: 4,", "{max_batch_size: 12,")),
    "a batcher's size": ("inferenceservices/iris", put(8, "spec", "predictor", "batcher", "maxBatchSize")),
    "a mark": ("inferenceservices/iris", put("8", "metadata", "annotations", "bandkeeper.dev/batch-cap")),
}
RAY, ISVC = "rayservices/embed", "inferenceservices/iris"
BATCHER = ("spec", "predictor", "batcher")
HEAD_POD = ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec")
FORBIDDEN: dict[str, tuple[str, Edit]] = {
    "code of a Ray application": (RAY, text("embed:app", "evil:app")),
    "number of replicas": (RAY, text("num_replicas: 2", "num_replicas: 9")),
    "cap of 0": (RAY, text("max_batch_size:   16", "max_batch_size:   0")),
    "cap that is text": (RAY, text("max_batch_size:   16", "max_batch_size:   many")),
    "text where a key is named": (RAY, text('"max_batch_size: many"', '"max_batch_size: 8"')),
    "key that ends in a listed one": (RAY, text(" my_max_batch_size: 7", " my_max_batch_size: 8")),
    "key whose last word is a listed one": (RAY, text('"my max_batch_size": 7', '"my max_batch_size": 8')),
    "more after the cap": (RAY, text("max_batch_size:   16", "max_batch_size:   16\n      evil: 1")),
    "a further key": (RAY, text("max_batch_size:   16", "max_batch_size:   16\n      max_batch_size: 8")),
    "space before the cap": (RAY, text("max_batch_size:   16", "max_batch_size: 16")),
    "a comment": (RAY, text("# one", "# two")),
    "no Serve config": (RAY, drop("spec", "serveConfigV2")),
    "image of the Ray cluster": (RAY, put([{"name": "ray-head", "image": "evil:1"}], *HEAD_POD, "containers")),
    "another field of the RayService": (RAY, put(True, "spec", "excludeHeadPodFromServeSvc")),
    "label of the RayService": (RAY, put("b", "metadata", "labels", "team")),
    "annotation of the RayService": (RAY, put("y", "metadata", "annotations", "note")),
    "finalizer of the RayService": (RAY, put(["x.io/y"], "metadata", "finalizers")),
    "model": (ISVC, put("gs://evil", "spec", "predictor", "model", "storageUri")),
    "containers": (ISVC, put([{"name": "e", "image": "evil:1"}], "spec", "predictor", "containers")),
    "service account": (ISVC, put("admin", "spec", "predictor", "serviceAccountName")),
    "replicas": (ISVC, put(9, "spec", "predictor", "minReplicas")),
    "latency of the batcher": (ISVC, put(9, *BATCHER, "maxLatency")),
    "no batcher": (ISVC, drop(*BATCHER)),
    "no size": (ISVC, drop(*BATCHER, "maxBatchSize")),
    "size of 0": (ISVC, put(0, *BATCHER, "maxBatchSize")),
    "transformer": (ISVC, put({"containers": []}, "spec", "transformer")),
    "label": (ISVC, put("b", "metadata", "labels", "team")),
    "how it is scaled": (ISVC, put("hpa", "metadata", "annotations", "serving.kserve.io/autoscalerClass")),
    "annotation removed": (ISVC, drop("metadata", "annotations", "serving.kserve.io/deploymentMode")),
    "annotation like ours": (ISVC, put("1", "metadata", "annotations", "bandkeeper.development/x")),
    "finalizer": (ISVC, put(["x.io/y"], "metadata", "finalizers")),
}  # fmt: skip


async def attempt(operator: KubeClient, what: str, edit: Edit) -> None:
    """Write spec and metadata with the edit in it, as the operator."""
    root = "ray.io/v1" if what.startswith("rayservices") else "serving.kserve.io/v1beta1"
    path = f"/apis/{root}/namespaces/{SERVING}/{what}"
    before = await operator.get(path)
    after = copy.deepcopy(before)
    edit(after)
    assert (after["spec"], after["metadata"]) != (before["spec"], before["metadata"])
    changes = [{"op": "replace", "path": "/spec", "value": after["spec"]}]
    changes += [
        {"op": "add", "path": f"/metadata/{name}", "value": after["metadata"][name]}
        for name in ("labels", "annotations", "finalizers")
        if before["metadata"].get(name) != after["metadata"].get(name)
    ]
    await operator.patch(path, changes, content_type=JSON_PATCH)


@pytest.mark.parametrize("name", ALLOWED)
async def test_the_operator_may_write(name: str, kinds: ControlPlane, operator: KubeClient) -> None:
    """Else the refusals below would prove nothing."""
    what, edit = ALLOWED[name]
    await attempt(operator, what, edit)
    kinds.kubectl("-n", SERVING, "apply", "-f", "-", input=[RAY_SERVICE, INFERENCE_SERVICE])


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_the_operator_cannot_change(name: str, operator: KubeClient) -> None:
    what, edit = FORBIDDEN[name]
    with pytest.raises(Forbidden) as caught:
        await attempt(operator, what, edit)
    policy = "kinds-bandkeeper-ray-serve" if what.startswith("rayservices") else "kinds-bandkeeper-kserve"
    assert f"ValidatingAdmissionPolicy '{policy}'" in caught.value.message
    assert "the operator may " in caught.value.message


def test_the_admission_policies_pass_the_servers_type_check(kinds: ControlPlane) -> None:
    def checked() -> list[Manifest] | None:
        found = kinds.get("validatingadmissionpolicy", selector=f"app.kubernetes.io/instance={RELEASE}")["items"]
        seen = [item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"] for item in found]
        return found if len(found) == 3 and all(seen) else None

    for item in eventually(checked, what="type check"):
        warnings = item["status"].get("typeChecking", {}).get("expressionWarnings", [])
        assert warnings == [], item["metadata"]["name"]


def test_a_policy_gives_its_writer_no_right_that_he_did_not_have(kinds: ControlPlane) -> None:
    joe = kinds.user_kubeconfig("kinds-joe")

    def policy(adapter: Manifest) -> Manifest:
        return {
            "apiVersion": "bandkeeper.dev/v1alpha1",
            "kind": "GPUScalingPolicy",
            "metadata": {"name": "iris"},
            "spec": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "iris-predictor"},
                "objective": "ThroughputSensitive",
                "runtime": "Generic",
                "replicas": {"min": 1, "max": 4},
                "batch": {"min": 8, "max": 32, "adapter": adapter},
            },
        }

    def write(adapter: Manifest) -> str:
        """What the server says to joe's write: "" when it let it through."""
        try:
            kinds.kubectl("-n", SERVING, "apply", "-f", "-", input=policy(adapter), kubeconfig=joe)
        except CommandError as error:
            return error.stderr
        return ""

    def lacks(adapter: Manifest, right: str) -> bool:
        return f"needs the right to {right}" in write(adapter)

    def passes(adapter: Manifest) -> bool:
        return write(adapter) == ""

    def grant(name: str, verb: str, resource: str) -> None:
        kinds.kubectl("-n", SERVING, "create", "role", name, f"--verb={verb}", f"--resource={resource}")
        kinds.kubectl("-n", SERVING, "create", "rolebinding", name, f"--role={name}", "--user=kinds-joe")

    ray = {"application": "embed", "deployment": "Embedder"}
    wants: list[tuple[Manifest, str, str, str]] = [
        (
            {"type": "KServe", "kServe": {"inferenceService": "iris"}},
            "update",
            "inferenceservices",
            "serving.kserve.io",
        ),
        ({"type": "RayServe", "rayServe": ray | {"rayService": "embed"}}, "update", "rayservices", "ray.io"),
        (
            {"type": "RayServe", "rayServe": ray | {"rayService": "embed", "service": "ray-head-svc"}},
            "create",
            "services/proxy",
            "",
        ),
        ({"type": "RayServe", "rayServe": ray}, "create", "pods/proxy", ""),
    ]
    grant("policies", "get,create,update,patch", "gpuscalingpolicies.bandkeeper.dev")
    grant("scale", "update", "deployments.apps/scale")
    for adapter, verb, resource, group in wants:
        right = f"{verb} {resource}"
        eventually(partial(lacks, adapter, right), what=f"no {right}")
        grant(resource.replace("/", "-"), verb, f"{resource}.{group}" if group else resource)
        eventually(partial(passes, adapter), what=f"joe may {right}")
