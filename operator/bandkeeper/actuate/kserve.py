"""Batch cap as `maxBatchSize` of a KServe InferenceService's batcher: each change is a rollout of its predictor.

KServe copies the number into an annotation of the predictor's pod template, and the InferenceService's own annotations
too. So the marks by which a rollout of ours is known, and the way back, are written there, with the fingerprint of the
template that KServe will make. The policy's target is the predictor's Deployment (KServe's Standard mode).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bandkeeper.actuate.adapter import Means, ShownByPods, Workload
from bandkeeper.actuate.errors import AdapterError
from bandkeeper.actuate.field import CapField, Edit, write_field
from bandkeeper.actuate.outcome import OUT_OF_TIME, CapResult, Deadline, Outcome
from bandkeeper.actuate.pod_template import paused
from bandkeeper.actuate.rights import Right
from bandkeeper.actuate.rollout import (
    CAP_ANNOTATION,
    PREVIOUS_CAP_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
    is_ours,
    template_hash,
)
from bandkeeper.api.snapshot import PodState
from bandkeeper.api.v1alpha1 import Adapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import ApiError, Forbidden, KubeClient, NotFound
from bandkeeper.kube.discovery import Resource

GROUP_VERSION = "serving.kserve.io/v1beta1"
BATCH_SIZE_ANNOTATION = "internal.serving.kserve.io/batcher-max-batchsize"
"""Of the pod template and of pods: what KServe starts the batcher beside the model server with."""

PATCH = Right(
    verb="patch",
    group="serving.kserve.io",
    resource="inferenceservices",
    remedy="set the chart value adapters.kServe.enabled=true (and its namespaces), or change spec.batch.adapter",
)
_BATCHER = ("spec", "predictor", "batcher")
_FIELD = (*_BATCHER, "maxBatchSize")

Manifest = Mapping[str, Any]


class KServe(ShownByPods):
    """Writes `spec.predictor.batcher.maxBatchSize` of one InferenceService."""

    cost_class = CostClass.ROLLOUT
    expected_delay_s = 300.0

    def __init__(
        self, client: KubeClient, *, inference_service: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self.inference_service = inference_service

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> KServe:
        """The adapter that a policy asks for."""
        if spec.k_serve is None:
            raise AdapterError("adapter type KServe needs kServe with inferenceService")
        return cls(means.client, inference_service=spec.k_serve.inference_service, clock=means.clock)

    def right(self, resource: Resource) -> Right:
        """Patching the InferenceService, whatever the target is."""
        return replace(PATCH, name=self.inference_service)

    def cap_of(self, manifest: Manifest) -> int | None:
        """The cap that new pods of the target boot with; None where its template does not say."""
        text = _annotations(manifest["spec"]["template"]).get(BATCH_SIZE_ANNOTATION, "")
        return int(text) if text.isdecimal() else None

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when the stored target carries the cap; without one, when every live pod booted with it."""
        if workload.manifest is not None:
            return self.cap_of(workload.manifest) == cap
        live = [pod for pod in workload.pods if pod.state is not PodState.TERMINATING]
        return bool(live) and all(pod.cap == cap for pod in live)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Put `cap` into the InferenceService, if nobody changed its batcher between our reading and our writing."""
        if self.settled(workload, cap):
            return CapResult(outcome=Outcome.UNCHANGED)

        def wanted(service: Manifest, target: Manifest) -> Edit | None:
            before = _batch_size(service, self._label)
            return None if before == cap else _edit(service, target, before, cap, previous=before)

        return await self._write(workload, wanted, Deadline(deadline, self._clock))

    async def rollback(self, workload: Workload, *, deadline: float) -> CapResult:
        """Take our own last change back, if the target's template is still the one that it made."""

        def wanted(service: Manifest, target: Manifest) -> Edit | None:
            before, marks = _batch_size(service, self._label), _annotations(service)
            previous = marks.get(PREVIOUS_CAP_ANNOTATION, "")
            if not previous.isdecimal():
                return None
            if not is_ours(target) or marks.get(CAP_ANNOTATION) != str(before):
                raise AdapterError(f"{self._label} was changed by somebody else since; it was not rolled back")
            return _edit(service, target, before, int(previous), previous=None)

        return await self._write(workload, wanted, Deadline(deadline, self._clock))

    async def _write(
        self, workload: Workload, wanted: Callable[[Manifest, Manifest], Edit | None], left: Deadline
    ) -> CapResult:
        if not left.timeout_s():
            return CapResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
        path = workload.resource.path(workload.namespace, workload.name)
        label = f"{workload.resource.kind} {workload.name}"
        try:
            target = await self._client.get(path, timeout_s=left.timeout_s())
        except NotFound:
            return CapResult(outcome=Outcome.NOT_FOUND, message=f"no {label} in namespace {workload.namespace}")
        except ApiError as error:
            outcome = Outcome.FORBIDDEN if isinstance(error, Forbidden) else Outcome.FAILED
            message = f"{label} could not be read: {error.message}; it will be tried again"
            return CapResult(outcome=outcome, message=message)
        if target["metadata"]["uid"] != workload.uid:
            message = f"{label} was deleted and created again since the decision; nothing was written"
            return CapResult(outcome=Outcome.CHANGED, message=message)
        if problem := self._not_its_predictor(target, label):
            return CapResult(outcome=Outcome.REFUSED, message=problem)
        if target["spec"].get("paused"):
            return CapResult(outcome=Outcome.REFUSED, message=paused(workload))
        field = CapField(
            path=f"/apis/{GROUP_VERSION}/namespaces/{workload.namespace}/inferenceservices/{self.inference_service}",
            label=self._label,
            what=".".join(_FIELD),
            keys=_FIELD,
        )
        return await write_field(
            self._client, field, lambda service: wanted(service, target), workload=workload, right=PATCH, left=left
        )

    def _not_its_predictor(self, target: Manifest, label: str) -> str:
        """Why the target is not what the InferenceService runs; "" where it is."""
        owners = target["metadata"].get("ownerReferences") or ()
        if not any(
            (one.get("kind"), one.get("name")) == ("InferenceService", self.inference_service) for one in owners
        ):
            return (
                f"{label} does not belong to {self._label}; name the Deployment of its predictor (usually "
                f"{self.inference_service}-predictor) as target, or correct kServe.inferenceService"
            )
        if self.cap_of(target) is None:
            return (
                f"the pod template of {label} has no annotation {BATCH_SIZE_ANNOTATION}: set "
                f"{'.'.join(_FIELD)} of {self._label} to the capacity that the model is to start with"
            )
        return ""

    @property
    def _label(self) -> str:
        return f"InferenceService {self.inference_service}"


def _batch_size(service: Manifest, label: str) -> int:
    value = ((service["spec"].get("predictor") or {}).get("batcher") or {}).get("maxBatchSize")
    if not isinstance(value, int):
        raise AdapterError(
            f"{label} sets no {'.'.join(_FIELD)}; set it to the capacity that the model is to start with "
            "(without it KServe runs no batcher, or one of 32)"
        )
    return value


def _edit(service: Manifest, target: Manifest, before: int, cap: int, *, previous: int | None) -> Edit:
    """The new number, and our marks beside it. Without `previous` it is a way back, to which there is none."""
    template = copy.deepcopy(target["spec"]["template"])
    template["metadata"]["annotations"][BATCH_SIZE_ANNOTATION] = str(cap)
    marks = {**_annotations(service), CAP_ANNOTATION: str(cap), TEMPLATE_HASH_ANNOTATION: template_hash(template)}
    marks.pop(PREVIOUS_CAP_ANNOTATION, None)
    if previous is not None:
        marks[PREVIOUS_CAP_ANNOTATION] = str(previous)
    metadata = service["metadata"]
    unchanged = "annotations" if "annotations" in metadata else "resourceVersion"
    return Edit(
        before,
        [
            {"op": "test", "path": "/spec/predictor/batcher", "value": service["spec"]["predictor"]["batcher"]},
            {"op": "test", "path": f"/metadata/{unchanged}", "value": metadata[unchanged]},
            {"op": "add", "path": "/" + "/".join(_FIELD), "value": cap},
            {"op": "add", "path": "/metadata/annotations", "value": marks},
        ],
    )


def _annotations(thing: Manifest) -> dict[str, str]:
    return dict((thing.get("metadata") or {}).get("annotations") or {})
