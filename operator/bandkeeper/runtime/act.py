"""Carries out a decision: replicas first, then the batch cap; only what changed, only inside the lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from bandkeeper.actuate.adapter import Workload
from bandkeeper.actuate.outcome import CapResult, Outcome
from bandkeeper.actuate.pod_template import PodTemplate
from bandkeeper.actuate.replicas import Replicas
from bandkeeper.decide.engine import written
from bandkeeper.kube.discovery import Discovery
from bandkeeper.kube.lease import LeaseElector
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.tracked import Change, Tracked

logger = logging.getLogger(__name__)


class Actor:
    """Writes what a decision wants, where the policy may write."""

    def __init__(
        self,
        *,
        replicas: Replicas,
        discovery: Discovery,
        elector: LeaseElector,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._discovery = discovery
        self._elector = elector
        self._metrics = metrics
        self._clock = clock

    async def act(self, tracked: Tracked) -> None:
        """Make the target as the decision wants it; results go to `tracked`."""
        if tracked.decision is None or tracked.conflict is not None:
            return
        if not tracked.managed.enforcing:
            self._recommend(tracked)
            return
        await self._scale(tracked)
        await self._set_cap(tracked)

    def _recommend(self, tracked: Tracked) -> None:
        """Note a changed recommendation, once; a paused policy says nothing."""
        decision = tracked.decision
        if decision is None or tracked.managed.paused:
            return
        wanted = decision.replicas, decision.cap
        if wanted != tracked.recommended:
            tracked.recommended = wanted
            if decision.replicas not in (None, decision.current_replicas):
                tracked.changes.append(
                    Change(decision=decision, from_replicas=decision.current_replicas, direction="recommended")
                )

    async def _scale(self, tracked: Tracked) -> None:
        decision, scale, spec = tracked.decision, tracked.scale, tracked.managed.spec
        if decision is None or scale is None or spec is None or decision.replicas is None:
            return
        before = scale.target.replicas
        if decision.replicas == before:
            tracked.scale_result = None
            return
        result = await self._replicas.write(
            tracked.managed.ref.namespace,
            spec.target_ref,
            decision.replicas,
            decided_on=scale.target,
            deadline=self._deadline(),
        )
        tracked.scale_result = result
        if result.target is not None:
            target = replace(result.target, rollout=scale.target.rollout)
            tracked.scale = replace(scale, target=target)
        else:
            tracked.target_read_at = None
        if result.outcome is Outcome.WRITTEN:
            tracked.state = written(tracked.state, replicas=decision.replicas, now_s=self._clock())
            direction = "up" if decision.replicas > before else "down"
            tracked.changes.append(Change(decision=decision, from_replicas=before, direction=direction))
            self._metrics.scalings.labels(*tracked.managed.key, direction, decision.reason).inc()
        elif result.outcome is not Outcome.UNCHANGED:
            self._metrics.write_failures.labels(*tracked.managed.key, "replicas").inc()

    async def _set_cap(self, tracked: Tracked) -> None:
        decision, scale, spec = tracked.decision, tracked.scale, tracked.managed.spec
        adapter = tracked.managed.adapter
        if decision is None or scale is None or spec is None or adapter is None or decision.cap is None:
            return
        resource = await self._discovery.scalable(spec.target_ref.api_version, spec.target_ref.kind)
        workload = Workload(
            namespace=tracked.managed.ref.namespace,
            name=spec.target_ref.name,
            resource=resource,
            uid=scale.target.uid,
            pods=tracked.pods,
        )
        if decision.rollback and isinstance(adapter, PodTemplate):
            result = await adapter.rollback(workload, deadline=self._deadline())
        elif adapter.settled(workload, decision.cap):
            result = CapResult(outcome=Outcome.UNCHANGED)
        else:
            result = await adapter.apply(workload, decision.cap, deadline=self._deadline())
        self._cap_written(tracked, result, decision.cap)

    def _cap_written(self, tracked: Tracked, result: CapResult, cap: int) -> None:
        tracked.cap_result, decision = result, tracked.decision
        if decision is None:
            return
        if result.outcome in (Outcome.WRITTEN, Outcome.PARTIAL):
            tracked.state = written(tracked.state, cap=cap, now_s=self._clock())
            if decision.current_cap is not None and cap != decision.current_cap:
                direction = "raised" if cap > decision.current_cap else "lowered"
                tracked.changes.append(Change(decision=decision, from_cap=decision.current_cap, direction=direction))
                self._metrics.batch_changes.labels(*tracked.managed.key, direction, decision.reason).inc()
            tracked.target_read_at = None
        elif result.outcome is not Outcome.UNCHANGED:
            self._metrics.write_failures.labels(*tracked.managed.key, "batch").inc()

    def _deadline(self) -> float:
        return self._clock() + self._elector.remaining_s()
