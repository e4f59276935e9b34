"""Batch cap as an annotation of each pod, which the server reads through a downward API volume.

The kubelet refreshes such a volume within 60 to 90 seconds, so this is never the answer to an emergency. Pods do not
inherit the annotation: each new pod is written when it is seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bandkeeper.actuate.adapter import AdapterError, Means, ShownByPods, Workload
from bandkeeper.actuate.outcome import FIELD_MANAGER, OUT_OF_TIME, CapResult, Deadline, Outcome
from bandkeeper.actuate.rights import Right
from bandkeeper.actuate.rollout import OWN_PREFIX
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter, AnnotationAdapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import ApiError, Forbidden, Invalid, KubeClient, NotFound
from bandkeeper.kube.discovery import Resource

AT_ONCE = 8
PATCH_PODS = Right(
    verb="patch",
    group="",
    resource="pods",
    remedy="set the chart value adapters.annotation.enabled=true (and its namespaces), or change spec.batch.adapter",
)
LIVE = (PodState.READY, PodState.PENDING, PodState.UNSCHEDULABLE)


class Annotation(ShownByPods):
    """Writes `key` on every live pod whose value differs."""

    cost_class = CostClass.EVENTUAL
    expected_delay_s = 90.0

    def __init__(self, client: KubeClient, key: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not key.startswith(OWN_PREFIX) or key == OWN_PREFIX:
            raise AdapterError(
                f'the annotation key "{key}" is not the operator\'s to write; choose one that begins with {OWN_PREFIX}'
            )
        self._client = client
        self._clock = clock
        self.key = key

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> Annotation:
        """The adapter that a policy asks for."""
        return cls(means.client, (spec.annotation or AnnotationAdapter()).key, clock=means.clock)

    def right(self, resource: Resource) -> Right:
        """Patching pods, whatever makes them."""
        return PATCH_PODS

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when every live pod carries the cap."""
        return not _differing(workload, cap)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Annotate the pods that differ, a few at a time; those that fail are tried again at the next call."""
        pods = _differing(workload, cap)
        if not pods:
            return CapResult(outcome=Outcome.UNCHANGED)
        left = Deadline(deadline, self._clock)
        slots = asyncio.Semaphore(AT_ONCE)

        async def write(pod: Pod) -> tuple[Outcome, str]:
            async with slots:
                return await self._write(workload.namespace, pod, cap, left)

        ends = await asyncio.gather(*(write(pod) for pod in pods))
        failed = {pod.name: message for pod, (outcome, message) in zip(pods, ends, strict=True) if message}
        outcomes = [outcome for outcome, _ in ends]
        return CapResult(
            outcome=_overall(outcomes),
            message=next(iter(failed.values()), ""),
            written=outcomes.count(Outcome.WRITTEN),
            failed=failed,
        )

    async def _write(self, namespace: str, pod: Pod, cap: int, left: Deadline) -> tuple[Outcome, str]:
        if not (timeout_s := left.timeout_s()):
            return Outcome.FAILED, OUT_OF_TIME
        try:
            await self._client.patch(
                f"/api/v1/namespaces/{namespace}/pods/{pod.name}",
                {"metadata": {"uid": pod.uid, "annotations": {self.key: str(cap)}}},
                params={"fieldManager": FIELD_MANAGER},
                timeout_s=timeout_s,
            )
        except NotFound:
            return Outcome.UNCHANGED, ""
        except Forbidden as error:
            return Outcome.FORBIDDEN, PATCH_PODS.refused(error, namespace)
        except ApiError as error:
            if isinstance(error, Invalid) and "metadata.uid" in error.message:
                return Outcome.UNCHANGED, ""  # another pod has the name now; the next tick sees it
            return Outcome.FAILED, f"pod {pod.name} could not be annotated: {error.message}; it will be tried again"
        return Outcome.WRITTEN, ""


def _differing(workload: Workload, cap: int) -> list[Pod]:
    return [pod for pod in workload.pods if pod.state in LIVE and pod.cap != cap]


def _overall(outcomes: list[Outcome]) -> Outcome:
    bad = [outcome for outcome in outcomes if outcome in (Outcome.FORBIDDEN, Outcome.FAILED)]
    if bad:
        return Outcome.PARTIAL if Outcome.WRITTEN in outcomes else bad[0]
    return Outcome.WRITTEN if Outcome.WRITTEN in outcomes else Outcome.UNCHANGED
