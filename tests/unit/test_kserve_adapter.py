"""KServe's cap: what is sent to the InferenceService and when not, and how our own rollout is known afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bandkeeper.actuate.adapter import Workload
from bandkeeper.actuate.kserve import BATCH_SIZE_ANNOTATION, KServe
from bandkeeper.actuate.outcome import CapResult, Outcome
from bandkeeper.actuate.rollout import (
    CAP_ANNOTATION,
    PREVIOUS_CAP_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
    is_ours,
)
from bandkeeper.api.snapshot import PodState
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import ApiError, Conflict, Forbidden, Invalid, NotFound, Unavailable
from tests.unit.test_actuate_writes import DEPLOYMENTS, StandIn, frozen, pod

SERVICE = "/apis/serving.kserve.io/v1beta1/namespaces/serving/inferenceservices/iris"
TARGET = "/apis/apps/v1/namespaces/serving/deployments/iris-predictor"
ADDED = {"team": "a"}


class Cluster(StandIn):
    """An InferenceService and, as KServe keeps it, the Deployment of its predictor."""

    def __init__(self, size: object = 16) -> None:
        super().__init__(self._read, self._patch)
        self.service: dict[str, Any] = {
            "metadata": {"uid": "i", "resourceVersion": "7", "annotations": dict(ADDED)},
            "spec": {"predictor": {"batcher": {"maxBatchSize": size, "maxLatency": 50}, "model": {"name": "m"}}},
        }
        self.target: dict[str, Any] = {
            "kind": "Deployment",
            "metadata": {"uid": "u", "ownerReferences": [{"kind": "InferenceService", "name": "iris"}]},
            "spec": {"template": {"metadata": {}, "spec": {"containers": [{"name": "kserve-container"}]}}},
        }
        self.reconcile()
        self.refusals: list[ApiError] = []

    def reconcile(self) -> None:
        """What KServe does: copy annotations, ours too, and the batch size."""
        size = self.service["spec"]["predictor"]["batcher"].get("maxBatchSize")
        annotations = dict(self.service["metadata"].get("annotations") or {})
        if size is not None:
            annotations[BATCH_SIZE_ANNOTATION] = str(size)
        self.target["spec"]["template"]["metadata"]["annotations"] = annotations

    async def _read(self, path: str, body: Any) -> dict[str, Any]:
        return copy.deepcopy({SERVICE: self.service, TARGET: self.target}[path])

    async def _patch(self, path: str, body: Any) -> dict[str, Any]:
        assert path == SERVICE
        if self.refusals:
            raise self.refusals.pop(0)
        for operation in body:
            *steps, last = operation["path"].strip("/").split("/")
            at = self.service
            for step in steps:
                at = at[step]
            if operation["op"] == "test":
                if at.get(last) != operation["value"]:
                    raise Invalid(422, "Invalid", "test failed")
            else:
                at[last] = operation["value"]
        return self.service


def target(*pods: Any, manifest: dict[str, Any] | None = None) -> Workload:
    return Workload(
        namespace="serving", name="iris-predictor", resource=DEPLOYMENTS, uid="u", pods=pods, manifest=manifest
    )


async def apply(cluster: StandIn, cap: int) -> CapResult:
    return await KServe(cluster, inference_service="iris", clock=frozen).apply(target(), cap, deadline=110.0)


async def rollback(cluster: StandIn) -> CapResult:
    return await KServe(cluster, inference_service="iris", clock=frozen).rollback(target(), deadline=110.0)


async def test_one_number_and_our_marks_are_written_and_nothing_else() -> None:
    cluster = Cluster()
    before = copy.deepcopy(cluster.service)
    assert await apply(cluster, 8) == CapResult(outcome=Outcome.WRITTEN, written=1)
    [(_, operations)] = cluster.writes
    assert operations[:3] == [
        {"op": "test", "path": "/metadata/uid", "value": "i"},
        {"op": "test", "path": "/spec/predictor/batcher", "value": {"maxBatchSize": 16, "maxLatency": 50}},
        {"op": "test", "path": "/metadata/annotations", "value": ADDED},
    ]
    before["spec"]["predictor"]["batcher"]["maxBatchSize"] = 8
    marks = cluster.service["metadata"].pop("annotations")
    before["metadata"].pop("annotations")
    assert cluster.service == before
    assert marks == ADDED | {
        CAP_ANNOTATION: "8",
        PREVIOUS_CAP_ANNOTATION: "16",
        TEMPLATE_HASH_ANNOTATION: marks[TEMPLATE_HASH_ANNOTATION],
    }


async def test_the_rollout_that_kserve_makes_of_it_is_known_as_ours_and_taken_back_once() -> None:
    cluster = Cluster()
    await apply(cluster, 8)
    assert not is_ours(cluster.target)
    cluster.reconcile()
    assert is_ours(cluster.target)
    assert (await rollback(cluster)).outcome is Outcome.WRITTEN
    assert cluster.service["spec"]["predictor"]["batcher"]["maxBatchSize"] == 16
    assert PREVIOUS_CAP_ANNOTATION not in cluster.service["metadata"]["annotations"]
    cluster.reconcile()
    assert is_ours(cluster.target)
    assert (await rollback(cluster)).outcome is Outcome.UNCHANGED


async def test_a_template_or_batcher_that_somebody_changed_since_is_not_taken_back() -> None:
    for change in ("template", "batcher"):
        cluster = Cluster()
        await apply(cluster, 8)
        if change == "batcher":
            cluster.service["spec"]["predictor"]["batcher"]["maxBatchSize"] = 4
        cluster.reconcile()
        if change == "template":
            cluster.target["spec"]["template"]["spec"]["containers"][0]["image"] = "new"
        assert not is_ours(cluster.target)
        result = await rollback(cluster)
        assert (result.outcome, len(cluster.writes)) == (Outcome.REFUSED, 1)
        assert "InferenceService iris was changed by somebody else since; it was not rolled back" in result.message


async def test_annotations_are_made_where_there_were_none() -> None:
    cluster = Cluster()
    del cluster.service["metadata"]["annotations"]
    assert (await apply(cluster, 8)).outcome is Outcome.WRITTEN
    assert {"op": "test", "path": "/metadata/resourceVersion", "value": "7"} in cluster.writes[0][1]
    assert cluster.service["metadata"]["annotations"][CAP_ANNOTATION] == "8"


async def test_what_changed_in_between_is_looked_at_again() -> None:
    cluster = Cluster()
    cluster.refusals = [Conflict(409, "Conflict", "changed")]
    assert (await apply(cluster, 8)).outcome is Outcome.WRITTEN
    assert len(cluster.writes) == 2

    class Meddled(Cluster):
        async def _patch(self, path: str, body: Any) -> dict[str, Any]:
            self.service["spec"]["predictor"]["batcher"]["maxBatchSize"] = 4
            return await super()._patch(path, body)

    meddled = Meddled()
    result = await apply(meddled, 8)
    assert result.outcome is Outcome.CHANGED
    assert "set spec.predictor.batcher.maxBatchSize of InferenceService iris to 4 meanwhile" in result.message
    assert meddled.service["spec"]["predictor"]["batcher"]["maxBatchSize"] == 4


async def test_what_has_the_cap_is_not_written() -> None:
    cluster = Cluster()
    assert (await apply(cluster, 16)).outcome is Outcome.UNCHANGED
    assert cluster.writes == []
    adapter = KServe(cluster, inference_service="iris")
    assert (adapter.cost_class, adapter.reads_back) == (CostClass.ROLLOUT, False)
    assert adapter.settled(target(manifest=cluster.target), 16)
    assert adapter.settled(target(pod("old", 8, PodState.TERMINATING), pod("new", 16)), 16)
    assert not adapter.settled(target(pod("old", 8), pod("new", 16)), 16)
    assert not adapter.settled(target(), 16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda it: it.target["metadata"].pop("ownerReferences"),
            "Deployment iris-predictor does not belong to InferenceService iris; name the Deployment of its predictor",
        ),
        (
            lambda it: it.target["spec"]["template"]["metadata"].pop("annotations"),
            f"has no annotation {BATCH_SIZE_ANNOTATION}: set spec.predictor.batcher.maxBatchSize of InferenceServ",
        ),
        (
            lambda it: it.service["spec"]["predictor"].pop("batcher"),
            "InferenceService iris sets no spec.predictor.batcher.maxBatchSize; set it to the capacity",
        ),
        (lambda it: it.target["spec"].update(paused=True), "is paused (spec.paused), so no rollout is begun"),
    ],
)
async def test_what_cannot_carry_the_cap_gets_a_sentence(change: Any, says: str) -> None:
    cluster = Cluster()
    change(cluster)
    result = await apply(cluster, 8)
    assert result.outcome is Outcome.REFUSED
    assert says in result.message
    assert cluster.writes == []


async def test_another_target_of_the_same_name_is_left_alone() -> None:
    cluster = Cluster()
    cluster.target["metadata"]["uid"] = "another"
    result = await apply(cluster, 8)
    assert (result.outcome, cluster.writes) == (Outcome.CHANGED, [])
    assert "was deleted and created again since the decision" in result.message


@pytest.mark.parametrize(
    ("error", "outcome", "says"),
    [
        (
            Forbidden(403, "Forbidden", 'User "x" cannot patch resource "inferenceservices" in API group "s"'),
            Outcome.FORBIDDEN,
            "may not patch inferenceservices",
        ),
        (
            Forbidden(403, "Forbidden", "ValidatingAdmissionPolicy 'p' denied request: no"),
            Outcome.FORBIDDEN,
            "refused: no",
        ),
        (
            NotFound(404, "NotFound", "gone"),
            Outcome.NOT_FOUND,
            "no InferenceService iris in namespace serving; create it",
        ),
        (
            Unavailable(503, "x", "etcd is busy"),
            Outcome.FAILED,
            "could not be written: etcd is busy; it will be tried again",
        ),
    ],
)
async def test_a_refused_write_is_said(error: ApiError, outcome: Outcome, says: str) -> None:
    cluster = Cluster()
    cluster.refusals = [error]
    result = await apply(cluster, 8)
    assert result.outcome is outcome
    assert says in result.message


async def test_nothing_is_written_after_the_deadline() -> None:
    cluster = Cluster()
    result = await KServe(cluster, inference_service="iris", clock=frozen).apply(target(), 8, deadline=100.0)
    assert (result.outcome, cluster.writes) == (Outcome.FAILED, [])
