"""Batch cap as one key of a ConfigMap that the pods mount, and see as a file.

The kubelet refreshes such a file within 60 to 120 seconds, so this is never the answer to an emergency. A ConfigMap
mounted by subPath is never refreshed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bandkeeper.actuate.adapter import Means, Workload, cap_for
from bandkeeper.actuate.errors import AdapterError
from bandkeeper.actuate.managers import Manager, ignore_rule, last_manager
from bandkeeper.actuate.outcome import (
    ATTEMPT_PAUSES_S,
    FIELD_MANAGER,
    OUT_OF_TIME,
    CapReading,
    CapResult,
    Deadline,
    Outcome,
)
from bandkeeper.actuate.rights import Right
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import ApiError, Conflict, Forbidden, Invalid, KubeClient, NotFound
from bandkeeper.kube.discovery import Resource

LONGEST_TEXT = 64  # of a number with blanks around it; int() of thousands of digits fails


class ConfigMap:
    """Writes the key `key` of the ConfigMap `name`, which exists and which others may edit too."""

    cost_class = CostClass.EVENTUAL
    expected_delay_s = 120.0
    reads_back = True

    def __init__(self, client: KubeClient, *, name: str, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self.name = name
        self.key = key
        self._right = Right(
            verb="patch",
            group="",
            resource="configmaps",
            name=name,
            remedy=f'list "{name}" in the chart value adapters.configMap.names and set adapters.configMap.enabled=true '
            "(and its namespaces), or change spec.batch.adapter",
        )

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> ConfigMap:
        """The adapter that a policy asks for."""
        settings = spec.config_map
        if settings is None:
            raise AdapterError("adapter type ConfigMap needs configMap with the name of one")
        return cls(means.client, name=settings.name, key=settings.key, clock=means.clock)

    def right(self, resource: Resource) -> Right:
        """Patching this one ConfigMap."""
        return self._right

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when the ConfigMap was read for the ready pods, and has the cap."""
        ready = [pod for pod in workload.pods if pod.state is PodState.READY]
        wanted = _for_all(workload.pods, cap)
        return bool(ready) and all(pod.cap == wanted for pod in ready)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Put the cap there, if nobody changed the ConfigMap between our reading and our writing."""
        left, wanted = Deadline(deadline, self._clock), _for_all(workload.pods, cap)
        try:
            return await self._attempts(workload.namespace, wanted, left)
        except AdapterError as error:
            return CapResult(outcome=Outcome.REFUSED, message=str(error))
        except ApiError as error:
            return CapResult(outcome=_outcome(error), message=self._sentence(error, workload.namespace))

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """What the ConfigMap says, for every ready pod: they all mount it."""
        ready = [pod.name for pod in workload.pods if pod.state is PodState.READY]
        timeout_s = Deadline(deadline, self._clock).timeout_s()
        try:
            cap = self._cap(await self._client.get(self._path(workload.namespace), timeout_s=timeout_s))
        except AdapterError as error:
            return CapReading(failed=dict.fromkeys(ready, str(error)))
        except ApiError as error:
            return CapReading(failed=dict.fromkeys(ready, self._sentence(error, workload.namespace)))
        if cap is None:
            return CapReading(failed=dict.fromkeys(ready, f"ConfigMap {self.name} has no key {self.key} yet"))
        return CapReading(caps=dict.fromkeys(ready, cap))

    async def close(self) -> None:
        """Nothing to let go of: the client is shared."""

    async def _attempts(self, namespace: str, cap: int, left: Deadline) -> CapResult:
        """Read, look, write; again when the ConfigMap changed in between."""
        path, refusal = self._path(namespace), ""
        for pause_s in ATTEMPT_PAUSES_S:
            if not await left.pause(pause_s):
                return CapResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
            manifest = await self._client.get(path, timeout_s=left.timeout_s())
            if manifest.get("immutable"):
                raise AdapterError(f"ConfigMap {self.name} is immutable: make it anew without immutable: true")
            if self._cap(manifest) == cap:
                return CapResult(outcome=Outcome.UNCHANGED)
            if not left.timeout_s():
                return CapResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
            metadata = {name: manifest["metadata"][name] for name in ("uid", "resourceVersion")}
            try:
                await self._client.patch(
                    path,
                    {"metadata": metadata, "data": {self.key: str(cap)}},
                    params={"fieldManager": FIELD_MANAGER},
                    timeout_s=left.timeout_s(),
                )
            except Conflict as error:
                refusal = error.message
                continue
            except Invalid as error:
                raise AdapterError(f"ConfigMap {self.name} cannot take the key {self.key}: {error.message}") from error
            return self._written(manifest)
        message = f"ConfigMap {self.name} changes all the time ({refusal}); it will be tried again"
        return CapResult(outcome=Outcome.FAILED, message=message)

    def _written(self, manifest: Mapping[str, Any]) -> CapResult:
        owner = last_manager(manifest, "f:data", f"f:{self.key}")
        if owner is None or owner.name == FIELD_MANAGER:
            return CapResult(outcome=Outcome.WRITTEN, written=1)
        return CapResult(outcome=Outcome.WRITTEN, message=self._contested(owner), written=1, manager=owner.name)

    def _contested(self, owner: Manager) -> str:
        """The sentence for a manager that sets the key from a source of its own; "" for a person's own edit."""
        if owner.operation != "Apply" and not owner.name.startswith("argocd"):
            return ""
        pointer = "/data/" + self.key
        rule = ignore_rule(owner.name, pointer)
        return f"{owner.name} applies {pointer} of ConfigMap {self.name} too and may undo the cap; {rule}"

    def _cap(self, manifest: Mapping[str, Any]) -> int | None:
        """The cap that it holds, None where the key is not there. AdapterError where it holds something else."""
        text = (manifest.get("data") or {}).get(self.key)
        if text is None:
            return None
        if len(text) > LONGEST_TEXT or not text.strip().isdecimal() or int(text) < 1:
            raise AdapterError(
                f'key {self.key} of ConfigMap {self.name} holds "{text[:40]}", not a whole number of 1 or more; set it '
                "to the capacity that the server boots with"
            )
        return int(text)

    def _sentence(self, error: ApiError, namespace: str) -> str:
        if isinstance(error, NotFound):
            return (
                f"no ConfigMap {self.name} in namespace {namespace}: create it and mount it (not by subPath), as with "
                f"kubectl create configmap {self.name} --from-literal={self.key}=64"
            )
        if isinstance(error, Forbidden):
            return self._right.refused(error, namespace)
        return f"ConfigMap {self.name} could not be used: {error.message}; it will be tried again"

    def _path(self, namespace: str) -> str:
        return f"/api/v1/namespaces/{namespace}/configmaps/{self.name}"


def _outcome(error: ApiError) -> Outcome:
    if isinstance(error, NotFound):
        return Outcome.REFUSED
    return Outcome.FORBIDDEN if isinstance(error, Forbidden) else Outcome.FAILED


def _for_all(pods: tuple[Pod, ...], cap: int) -> int:
    """One cap for all pods: what the smallest of the servers that run may have."""
    return min((cap_for(pod, cap) for pod in pods if pod.state is PodState.READY), default=cap)
