"""Replicas through the scale subresource of any kind: read, and write only what was decided on.

A write is a JSON patch that tests uid and `spec.replicas`: the API server compares them with what the decision saw in
the step in which it writes. A resourceVersion would also stop it whenever a status was written meanwhile, which in a
rollout happens all the time: four attempts in 0.4 s were seen to fail.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bandkeeper.actuate.groups import group_of
from bandkeeper.actuate.managers import replicas_manager
from bandkeeper.actuate.outcome import (
    ATTEMPT_PAUSES_S,
    FIELD_MANAGER,
    OUT_OF_TIME,
    REQUEST_TIMEOUT_S,
    Deadline,
    Outcome,
    ScaleResult,
)
from bandkeeper.actuate.rights import Right
from bandkeeper.actuate.rollout import rollout_of
from bandkeeper.api.snapshot import Target
from bandkeeper.api.v1alpha1 import TargetRef
from bandkeeper.kube.client import JSON_PATCH, ApiError, Conflict, Forbidden, Invalid, KubeClient, NotFound
from bandkeeper.kube.discovery import Discovery, Resource, TargetError, TargetProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A target as its scale subresource shows it.

    Attributes
    ----------
    current
        Pods that the workload's controller counts now (`status.replicas`).
    selector
        Label selector of its pods, as text.
    """

    target: Target
    current: int
    selector: str


class Replicas:
    """Reads and writes the replica count of one target at a time."""

    def __init__(
        self,
        client: KubeClient,
        discovery: Discovery,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._discovery = discovery
        self._clock = clock
        self._wall = wall

    async def read(self, namespace: str, ref: TargetRef) -> Scale:
        """Read the scale and, where the rights allow it, who wrote it last and whether a rollout is on its way.

        Raises
        ------
        TargetError
            The kind is unknown or not scalable, the object is missing, a right is missing, it names no pods, or the
            API server did not answer.
        """
        resource = await self._discovery.scalable(ref.api_version, ref.kind)
        try:
            scale = _scale(await self._client.get(resource.scale_path(namespace, ref.name)))
        except ApiError as error:
            raise _read_error(error, namespace, ref, resource) from error
        if not scale.selector:
            message = (
                f"the scale subresource of {ref.kind} {ref.name} names no pods (empty status.selector); "
                "its CRD must set labelSelectorPath, or name a Deployment or StatefulSet"
            )
            raise TargetError(TargetProblem.NO_SELECTOR, message)
        workload = await self._workload(resource, namespace, ref.name, REQUEST_TIMEOUT_S)
        target = dataclasses.replace(
            scale.target,
            manager=replicas_manager(workload),
            rollout=rollout_of(workload, now=self._wall()),
            group=group_of(workload),
        )
        return dataclasses.replace(scale, target=target)

    async def write(
        self, namespace: str, ref: TargetRef, wanted: int, *, decided_on: Target, deadline: float
    ) -> ScaleResult:
        """Set `spec.replicas` to `wanted` if uid and replicas are still those of `decided_on`.

        `deadline` is an instant of the monotonic clock: the end of the lease under which this was decided.
        """
        if decided_on.replicas == wanted:
            return ScaleResult(outcome=Outcome.UNCHANGED, target=decided_on)
        left = Deadline(deadline, self._clock)
        try:
            resource = await self._discovery.scalable(ref.api_version, ref.kind)
        except TargetError as error:
            return ScaleResult(outcome=Outcome.FAILED, message=str(error))
        path = resource.scale_path(namespace, ref.name)
        condition = _only_if(decided_on, wanted)
        try:
            for pause_s in ATTEMPT_PAUSES_S:
                if not await left.pause(pause_s):
                    return ScaleResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
                try:
                    answer = await self._client.patch(
                        path,
                        condition,
                        content_type=JSON_PATCH,
                        params={"fieldManager": FIELD_MANAGER},
                        timeout_s=left.timeout_s(),
                        urgent=True,
                    )
                    target = dataclasses.replace(_scale(answer).target, manager=FIELD_MANAGER)
                    return ScaleResult(outcome=Outcome.WRITTEN, target=target)
                except (Conflict, Invalid) as error:
                    if not left.timeout_s():
                        return ScaleResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
                    seen = _scale(await self._client.get(path, timeout_s=left.timeout_s(), urgent=True)).target
                    if seen.uid != decided_on.uid or seen.replicas != decided_on.replicas:
                        return await self._changed(resource, namespace, ref, decided_on, seen, wanted, left)
                    if isinstance(error, Invalid):
                        return _write_error(error, namespace, ref, resource)
        except ApiError as error:
            return _write_error(error, namespace, ref, resource)
        message = f"{ref.kind} {ref.name} is written by others all the time; it will be tried again"
        return ScaleResult(outcome=Outcome.FAILED, message=message)

    async def _changed(
        self,
        resource: Resource,
        namespace: str,
        ref: TargetRef,
        decided_on: Target,
        seen: Target,
        wanted: int,
        left: Deadline,
    ) -> ScaleResult:
        if seen.uid != decided_on.uid:
            message = f"{ref.kind} {ref.name} was deleted and created again since the decision; nothing was written"
            return ScaleResult(outcome=Outcome.CHANGED, message=message, target=seen)
        workload = await self._workload(resource, namespace, ref.name, left.timeout_s())
        manager = replicas_manager(workload)
        seen = dataclasses.replace(seen, manager=manager)
        if seen.replicas == wanted:
            return ScaleResult(outcome=Outcome.UNCHANGED, target=seen, manager=manager)
        message = (
            f"{manager or 'somebody else'} set {ref.kind} {ref.name} from {decided_on.replicas} to {seen.replicas} "
            f"replicas since the decision; {wanted} was not written"
        )
        return ScaleResult(outcome=Outcome.CHANGED, message=message, target=seen, manager=manager)

    async def _workload(self, resource: Resource, namespace: str, name: str, timeout_s: float) -> Mapping[str, Any]:
        """The whole object, for what /scale does not tell; empty where it cannot be read, because it is only advice."""
        if not timeout_s:
            return {}
        try:
            return await self._client.get(resource.path(namespace, name), timeout_s=timeout_s)
        except ApiError:
            return {}


def _only_if(seen: Target, wanted: int) -> list[dict[str, Any]]:
    """A JSON patch that writes only while uid and replicas are as they were seen. The API leaves 0 replicas out."""
    return [
        {"op": "test", "path": "/metadata/uid", "value": seen.uid},
        {"op": "test", "path": "/spec", "value": {"replicas": seen.replicas} if seen.replicas else {}},
        {"op": "add", "path": "/spec/replicas", "value": wanted},
    ]


def _scale(answer: Mapping[str, Any]) -> Scale:
    metadata, status = answer.get("metadata") or {}, answer.get("status") or {}
    return Scale(
        target=Target(
            uid=metadata.get("uid", ""),
            replicas=(answer.get("spec") or {}).get("replicas") or 0,
            resource_version=metadata.get("resourceVersion", ""),
        ),
        current=status.get("replicas") or 0,
        selector=status.get("selector") or "",
    )


def scale_right(verb: str, resource: Resource) -> Right:
    """The right to `get` or `patch` the scale subresource of a kind."""
    remedy = "add the kind to the chart value scaleTargets, or grant it to the operator's service account"
    return Right(verb=verb, group=resource.group, resource=f"{resource.plural}/scale", remedy=remedy)


def _read_error(error: ApiError, namespace: str, ref: TargetRef, resource: Resource) -> TargetError:
    if isinstance(error, NotFound):
        message = f"no {ref.kind} {ref.name} in namespace {namespace}; create it, or correct spec.targetRef"
        return TargetError(TargetProblem.NOT_FOUND, message)
    if isinstance(error, Forbidden):
        message = scale_right("get", resource).refused(error, namespace)
        return TargetError(TargetProblem.FORBIDDEN, message)
    message = f"{ref.kind} {ref.name} could not be read: {error.message}; it will be tried again"
    return TargetError(TargetProblem.UNAVAILABLE, message)


def _write_error(error: ApiError, namespace: str, ref: TargetRef, resource: Resource) -> ScaleResult:
    if isinstance(error, NotFound):
        message = f"no {ref.kind} {ref.name} in namespace {namespace}; create it, or correct spec.targetRef"
        return ScaleResult(outcome=Outcome.NOT_FOUND, message=message)
    if isinstance(error, Forbidden):
        message = scale_right("patch", resource).refused(error, namespace)
        return ScaleResult(outcome=Outcome.FORBIDDEN, message=message)
    message = f"the replicas of {ref.kind} {ref.name} could not be written: {error.message}; it will be tried again"
    return ScaleResult(outcome=Outcome.FAILED, message=message)
