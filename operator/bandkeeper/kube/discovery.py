"""From a target's apiVersion and kind to its place in the API, and whether it can be scaled there.

What the server says is kept for ten minutes, asked again when a kind is missing from it, and a miss is kept for 30 s.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from bandkeeper.kube.client import ApiError, NotFound

KEEP_S = 600.0
KEEP_MISS_S = 30.0


class TargetProblem(StrEnum):
    """Why a target cannot be worked on; also the reason of condition `TargetResolved`."""

    UNKNOWN_KIND = "UnknownKind"
    NOT_SCALABLE = "NotScalable"
    NOT_FOUND = "NotFound"
    FORBIDDEN = "Forbidden"
    NO_SELECTOR = "NoSelector"
    UNAVAILABLE = "Unavailable"


class TargetError(Exception):
    """The target cannot be worked on; the text says what to do about it."""

    def __init__(self, problem: TargetProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


class Getter(Protocol):
    """The part of the client that discovery needs."""

    async def get(self, path: str) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Resource:
    """Where objects of one kind live in the API."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool
    scalable: bool

    @property
    def group(self) -> str:
        """API group, "" for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def label(self) -> str:
        """As people name it: `deployments.apps`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def collection_path(self, namespace: str = "") -> str:
        """Path of all objects of this kind, in one namespace or in all."""
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{_root(self.api_version)}{within}/{self.plural}"

    def path(self, namespace: str, name: str) -> str:
        """Path of one object."""
        return f"{self.collection_path(namespace)}/{name}"

    def scale_path(self, namespace: str, name: str) -> str:
        """Path of its scale subresource."""
        return f"{self.path(namespace, name)}/scale"


@dataclass(frozen=True, slots=True)
class _Known:
    """What one API version serves; `kinds` is None where the server has no such version, `problem` says so."""

    kinds: Mapping[str, Resource] | None
    at: float
    problem: str = ""


_INSTEAD = {
    "Pod": "name the Deployment or StatefulSet that makes the pod",
    "DaemonSet": "a DaemonSet runs one pod per node; run the server as a Deployment to scale it",
    "Job": "a Job runs its pods to an end; run the workers as a Deployment or StatefulSet to scale them",
    "CronJob": "a CronJob starts Jobs; run the workers as a Deployment or StatefulSet to scale them",
    "RayService": "neither it nor its RayCluster has one; leave its replicas to Ray's own autoscaler, "
    "or run the model server as a Deployment and name that",
    "RayCluster": "leave its worker groups to Ray's own autoscaler, or run the model server as a Deployment",
    "RayJob": "leave its worker groups to Ray's own autoscaler",
    "InferenceService": "name its Deployment (usually <name>-predictor) with apiVersion apps/v1, and annotate the "
    "InferenceService with serving.kserve.io/autoscalerClass: external so that KServe's own autoscaler leaves it alone",
    "Service": "name the Deployment behind it; a Knative Service is scaled by Knative itself",
    "GPUScalingPolicy": "name the workload itself",
}


class Discovery:
    """Answers from API discovery, cached. Safe to share between tasks."""

    def __init__(self, client: Getter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def resolve(self, api_version: str, kind: str) -> Resource:
        """Find the kind.

        Raises
        ------
        TargetError
            `UNKNOWN_KIND`, or `UNAVAILABLE` when the server could not be asked and nothing is known yet.
        """
        async with self._locks[api_version]:
            known = self._known.get(api_version)
            if known is None or self._stale(known, kind):
                known = await self._ask(api_version, known)
        if known.kinds is None:
            raise TargetError(TargetProblem.UNKNOWN_KIND, known.problem)
        if kind not in known.kinds:
            raise TargetError(TargetProblem.UNKNOWN_KIND, _no_kind(api_version, kind, known.kinds))
        return known.kinds[kind]

    async def scalable(self, api_version: str, kind: str) -> Resource:
        """Find the kind and make sure that it is namespaced and has a scale subresource.

        Raises
        ------
        TargetError
            As `resolve`, and `NOT_SCALABLE` with the object to name instead.
        """
        resource = await self.resolve(api_version, kind)
        if resource.scalable and resource.namespaced:
            return resource
        fault = "has no scale subresource" if resource.namespaced else "is not namespaced"
        instead = _INSTEAD.get(kind, "name a workload that has one, such as a Deployment or a StatefulSet")
        raise TargetError(TargetProblem.NOT_SCALABLE, f"{kind} ({api_version}) {fault}: {instead}")

    def _stale(self, known: _Known, kind: str) -> bool:
        hit = known.kinds is not None and kind in known.kinds
        return self._clock() - known.at > (KEEP_S if hit else KEEP_MISS_S)

    async def _ask(self, api_version: str, known: _Known | None) -> _Known:
        try:
            answer = await self._client.get(_root(api_version))
        except NotFound:
            fresh = _Known(None, self._clock(), await self._no_version(api_version))
        except ApiError as error:
            if known is not None:  # an old answer is better than none: kinds rarely go away
                return known
            message = f"the API server could not be asked about {api_version}: {error.message}; it will be asked again"
            raise TargetError(TargetProblem.UNAVAILABLE, message) from error
        else:
            fresh = _Known(_kinds(api_version, answer), self._clock())
        self._known[api_version] = fresh
        return fresh

    async def _no_version(self, api_version: str) -> str:
        group = api_version.rpartition("/")[0]
        if not group:
            return f'no API version "{api_version}"; write the group too, for example apiVersion: apps/v1'
        try:
            answer = await self._client.get(f"/apis/{group}")
        except ApiError:
            return f"the cluster has no API {api_version}; check the spelling, or install what provides it"
        versions = [str(version["groupVersion"]) for version in answer.get("versions") or []]
        return f"the cluster does not serve {api_version}; write apiVersion: {' or '.join(versions)}"


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _kinds(api_version: str, answer: Mapping[str, Any]) -> dict[str, Resource]:
    entries = [entry for entry in answer.get("resources") or [] if isinstance(entry, dict)]
    names = {entry.get("name") for entry in entries}
    return {
        entry["kind"]: Resource(
            api_version=api_version,
            kind=entry["kind"],
            plural=entry["name"],
            namespaced=bool(entry.get("namespaced")),
            scalable=f"{entry['name']}/scale" in names,
        )
        for entry in entries
        if "/" not in entry["name"]
    }


def _no_kind(api_version: str, kind: str, kinds: Mapping[str, Resource]) -> str:
    for resource in kinds.values():
        if kind.lower() in (resource.kind.lower(), resource.plural.lower()):
            return f"no kind {kind} in {api_version}; write kind: {resource.kind}"
    scalable = sorted(resource.kind for resource in kinds.values() if resource.scalable)
    there = f"kinds with replicas there: {', '.join(scalable)}" if scalable else "nothing there has replicas to scale"
    elsewhere = "; Deployments and StatefulSets are in apps/v1" if api_version != "apps/v1" else ""
    return f"no kind {kind} in {api_version}; {there}{elsewhere}"
