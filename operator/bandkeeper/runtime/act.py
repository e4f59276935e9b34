"""Carries out a decision: replicas first, then the batch cap; only what changed, only inside the lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from bandkeeper.actuate.adapter import BatchAdapter, Workload, cap_for
from bandkeeper.actuate.kserve import KServe
from bandkeeper.actuate.outcome import CapReading, CapResult, Outcome, ScaleResult
from bandkeeper.actuate.pod_template import PodTemplate, paused
from bandkeeper.actuate.replicas import Replicas, Scale, scale_right
from bandkeeper.actuate.rights import KEEP_MISSING_S, Rights
from bandkeeper.api.snapshot import Pod, PodState, Rollout
from bandkeeper.api.v1alpha1 import TargetRef
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.engine import cap_undone, written
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.discovery import Discovery, Resource, TargetError
from bandkeeper.kube.lease import LeaseElector
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.readings import READ_S
from bandkeeper.runtime.tracked import RECOMMENDED, Change, Tracked

_FINE = (Outcome.WRITTEN, Outcome.UNCHANGED)
_MAY_HAVE_HAPPENED = (Outcome.WRITTEN, Outcome.PARTIAL, Outcome.FAILED)
_GONE = (Outcome.CHANGED, Outcome.NOT_FOUND)  # what was decided on is no longer there


class Actor:
    """Writes what a decision wants. Results go to the policy's memory; whether it may act at all, the caller knows."""

    def __init__(
        self,
        *,
        replicas: Replicas,
        discovery: Discovery,
        rights: Rights,
        elector: LeaseElector,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._discovery = discovery
        self._rights = rights
        self._elector = elector
        self._metrics = metrics
        self._clock = clock

    @staticmethod
    def has_work(tracked: Tracked) -> bool:
        """Whether there may be something to write; where there is not, earlier failures are over."""
        scales = _wanted_replicas(tracked) is not None
        caps = tracked.decision is not None and tracked.decision.cap is not None and tracked.managed.adapter is not None
        if not scales:
            tracked.scale_result = None
            tracked.scale_retry.clear()
        if not caps:
            tracked.cap_result = None
            tracked.cap_retry.clear()
        return scales or caps

    async def ask_rights(self, tracked: Tracked) -> None:
        """Find out which rights are missing for the writes that the policy may need, before the first of them."""
        managed, ref = tracked.managed, tracked.target_ref
        if ref is None:
            return
        tracked.rights_due_s = self._clock() + KEEP_MISSING_S
        try:
            resource = await self._discovery.scalable(ref.api_version, ref.kind)
        except TargetError:
            return  # reading the target says it too
        namespace, adapter = managed.ref.namespace, managed.adapter
        scale = await self._rights.missing(scale_right("patch", resource), namespace, ref.name)
        right = adapter.right(resource) if adapter else None
        cap = await self._rights.missing(right, namespace, ref.name) if right else ""
        if tracked.managed is managed:
            tracked.scale_lack = ScaleResult(outcome=Outcome.FORBIDDEN, message=scale) if scale else None
            tracked.cap_lack = CapResult(outcome=Outcome.FORBIDDEN, message=cap) if cap else None

    async def scale(self, tracked: Tracked) -> None:
        """Make the target's replicas what the decision wants."""
        scale, wanted, ref = tracked.scale, _wanted_replicas(tracked), tracked.target_ref
        if scale is None or wanted is None or ref is None or tracked.scale_retry.holds(self._clock()):
            return
        if wanted < scale.target.replicas:
            fresh = await self._fresh(tracked, scale)
            if fresh is None:
                return
            scale = fresh
        result = await self._replicas.write(
            tracked.managed.ref.namespace, ref, wanted, decided_on=scale.target, deadline=self._deadline()
        )
        tracked.scale_result = result
        self._settle(tracked, scale, wanted, result)

    async def _fresh(self, tracked: Tracked, decided_on: Scale) -> Scale | None:
        """Read the target once more before replicas are let go; None where it changed or a rollout has begun."""
        assert tracked.target_ref is not None
        try:
            fresh = await self._replicas.read(tracked.managed.ref.namespace, tracked.target_ref)
        except TargetError as error:
            tracked.scale_result = ScaleResult(outcome=Outcome.FAILED, message=str(error))
            tracked.scale_retry.failed(self._clock())
            tracked.target_read_at = None
            return None
        tracked.scale = fresh
        seen, then = fresh.target, decided_on.target
        if (seen.uid, seen.replicas) != (then.uid, then.replicas):
            tracked.scale_result = ScaleResult(outcome=Outcome.CHANGED, target=seen)
            return None
        return None if _on_its_way(seen.rollout) else fresh

    def _settle(self, tracked: Tracked, scale: Scale, wanted: int, result: ScaleResult) -> None:
        """Take in how a write of replicas ended."""
        before, decision = scale.target.replicas, tracked.decision
        if result.target is not None:
            target = replace(result.target, rollout=scale.target.rollout, group=scale.target.group)
            tracked.scale = replace(scale, target=target)
        if result.outcome in _FINE:
            tracked.scale_retry.clear()
        else:
            tracked.target_read_at = None
            self._metrics.write_failures.labels(*tracked.managed.key, "replicas").inc()
            if result.outcome is not Outcome.CHANGED:
                tracked.scale_retry.failed(self._clock())
        if result.outcome is Outcome.WRITTEN and decision is not None:
            tracked.state = written(tracked.state, replicas=wanted, now_s=self._clock())
            direction = "up" if wanted > before else "down"
            tracked.changes.append(Change(decision=decision, from_replicas=before, direction=direction))
            self._metrics.scalings.labels(*tracked.managed.key, direction, decision.reason).inc()

    async def set_cap(self, tracked: Tracked) -> None:
        """Make the batch cap what the decision wants, unless the target turned out to be another one."""
        decision, scale, ref, adapter = tracked.decision, tracked.scale, tracked.target_ref, tracked.managed.adapter
        if decision is None or decision.cap is None or scale is None or ref is None or adapter is None:
            return
        if tracked.scale_result is not None and tracked.scale_result.outcome in _GONE:
            return
        if tracked.caps_awaited:
            return
        if tracked.cap_retry.holds(self._clock()):
            return
        behind = _behind(tracked, decision.cap)
        if behind and all(tracked.readings.denies(pod, decision.cap, self._clock()) for pod in behind):
            tracked.drift = ""
            return
        try:
            resource = await self._discovery.scalable(ref.api_version, ref.kind)
        except TargetError as error:
            result = CapResult(outcome=Outcome.FAILED, message=str(error))
        else:
            workload = _workload(tracked, ref, scale, resource)
            rollout = scale.target.rollout
            if adapter.cost_class is CostClass.ROLLOUT and rollout is not None and rollout.paused:
                tracked.cap_result = CapResult(outcome=Outcome.REFUSED, message=paused(workload))
                return
            result = await self._apply(adapter, workload, decision, decision.cap, rollout)
        tracked.cap_result = result
        if result.outcome in _MAY_HAVE_HAPPENED:
            may_say = behind if adapter.reads_back and result.outcome is not Outcome.FAILED else []
            told = [pod for pod in may_say if pod.name not in result.failed]
            tracked.readings.wrote(decision.cap, told, self._clock(), adapter.expected_delay_s)
        self._settle_cap(tracked, decision, decision.cap, adapter, result)
        tracked.drift = _drift(tracked, decision.cap)
        if tracked.drift and result.outcome is Outcome.WRITTEN:
            tracked.readings.lost = {}  # counted once, however late the next reading is
            manager = result.manager or "somebody else"
            tracked.state = cap_undone(tracked.state, manager=manager, now_s=self._clock())

    async def _apply(
        self, adapter: BatchAdapter, workload: Workload, decision: Decision, cap: int, rollout: Rollout | None
    ) -> CapResult:
        """Write the cap where it differs; a rollout of others is never joined by one of ours."""
        if isinstance(adapter, PodTemplate | KServe) and (decision.rollback or _is_way_back(rollout, cap)):
            return await adapter.rollback(workload, deadline=self._deadline())
        if adapter.settled(workload, cap):
            return CapResult(outcome=Outcome.UNCHANGED)
        if adapter.cost_class is CostClass.ROLLOUT and rollout is not None and not rollout.ours:
            return CapResult(outcome=Outcome.UNCHANGED)
        return await adapter.apply(workload, cap, deadline=self._deadline())

    def _settle_cap(
        self, tracked: Tracked, decision: Decision, cap: int, adapter: BatchAdapter, result: CapResult
    ) -> None:
        """Take in how a write of the cap ended. New pods are written too, which changes nothing that is to be told."""
        if result.outcome in (*_FINE, Outcome.PARTIAL):
            tracked.cap_retry.clear()
        else:
            tracked.cap_retry.failed(self._clock())
            self._metrics.write_failures.labels(*tracked.managed.key, "batch").inc()
        if result.outcome not in (Outcome.WRITTEN, Outcome.PARTIAL):
            return
        tracked.state = written(tracked.state, cap=cap, now_s=self._clock())
        if adapter.cost_class is CostClass.ROLLOUT:
            tracked.target_read_at = None
        before, news = _cap_before(tracked, decision), cap != tracked.cap_written
        tracked.cap_written = cap
        if news and before is not None and before != cap:
            direction = "raised" if cap > before else "lowered"
            tracked.changes.append(
                Change(decision=decision, from_cap=before, direction=direction, remark=_remark(before, result))
            )
            self._metrics.batch_changes.labels(*tracked.managed.key, direction, decision.reason).inc()

    async def read_caps(self, tracked: Tracked) -> None:
        """Ask the servers for the caps in force, if the adapter does that; it reads only, so anybody may."""
        adapter, readings, scale, ref = tracked.managed.adapter, tracked.readings, tracked.scale, tracked.target_ref
        if adapter is None or scale is None or ref is None:
            return
        pods = tracked.pods
        readings.asked(pods, self._clock())
        reading, why = None, "the servers did not say in time which batch cap they run with"
        try:
            resource = await self._discovery.scalable(ref.api_version, ref.kind)
            async with asyncio.timeout(READ_S + 1.0):
                workload = _workload(tracked, ref, scale, resource)
                reading = await adapter.read_back(workload, deadline=self._clock() + READ_S)
        except TimeoutError:
            pass
        except TargetError as error:
            why = str(error)
        finally:
            silent = {pod.name: why for pod in pods if pod.state is PodState.READY}
            wanted = tracked.decision.cap if tracked.decision else None
            if readings.took(reading or CapReading(failed=silent), pods, self._clock(), wanted):
                self._metrics.write_failures.labels(*tracked.managed.key, "batch").inc()
            if tracked.readings is readings:
                tracked.pods = readings.onto(tracked.pods, self._clock())

    def _deadline(self) -> float:
        """The end of the lease, on the monotonic clock; now, where it is not held."""
        return self._clock() + self._elector.remaining_s()


def _workload(tracked: Tracked, ref: TargetRef, scale: Scale, resource: Resource) -> Workload:
    return Workload(
        namespace=tracked.managed.ref.namespace,
        name=ref.name,
        resource=resource,
        uid=scale.target.uid,
        pods=tracked.pods,
    )


def _behind(tracked: Tracked, cap: int) -> list[Pod]:
    """The ready pods that do not have the cap yet."""
    return [pod for pod in tracked.pods if pod.state is PodState.READY and pod.cap != cap_for(pod, cap)]


def recommend(tracked: Tracked) -> None:
    """Note what would be done and was not told yet; the status knows what was, also what another leader told."""
    decision, told = tracked.decision, tracked.status
    if decision is None:
        return
    before, wanted = decision.current_replicas, decision.replicas
    told_wanted = told.replicas.desired if told.replicas and told.replicas.desired != told.replicas.current else None
    if before is not None and wanted not in (None, before, told_wanted):
        tracked.changes.append(Change(decision=decision, from_replicas=before, direction=RECOMMENDED))
    cap_before, cap = decision.current_cap, decision.cap
    told_cap = told.batch.desired if told.batch else None
    if cap_before is not None and cap not in (None, cap_before, told_cap):
        tracked.changes.append(Change(decision=decision, from_cap=cap_before, direction=RECOMMENDED))


def _wanted_replicas(tracked: Tracked) -> int | None:
    """The replicas to write, None where they are as wanted or nothing may be said."""
    decision, scale = tracked.decision, tracked.scale
    if decision is None or scale is None or decision.replicas == scale.target.replicas:
        return None
    return decision.replicas


def _remark(before: int, result: CapResult) -> str:
    """Who set the cap that was replaced, and whether they will again, where the adapter saw that."""
    if not result.manager:
        return ""
    return f"({before} was set by {result.manager}.) {result.message}".rstrip()


def _drift(tracked: Tracked, cap: int) -> str:
    """The sentence for servers that had the wanted cap and lost it without a restart, "" where none did."""
    lost = {name: caps for name, caps in tracked.readings.lost.items() if caps[1] != cap}
    if not lost:
        return ""
    (name, (was, now)), *others = lost.items()
    also = f" (and {len(others)} more)" if others else ""
    return (
        f"pod {name}{also} ran with the batch cap {now} where {was} had been set, which somebody else must have "
        f"changed; {cap} is set {'again' if was == cap else 'now'}. "
        "To keep another cap, change spec.batch or pause the policy"
    )


def _cap_before(tracked: Tracked, decision: Decision) -> int | None:
    """The cap that a move replaces: of a rollout that is taken back its own, which hardly a pod has."""
    rollout = tracked.scale.target.rollout if tracked.scale else None
    taken_back = rollout.cap if rollout is not None and decision.rollback else None
    return decision.current_cap if taken_back is None else taken_back


def _is_way_back(rollout: Rollout | None, cap: int) -> bool:
    """Whether `cap` is what a failed rollout of ours is to be taken back to, which an earlier attempt did not bring."""
    return rollout is not None and rollout.ours and rollout.deadline_exceeded and rollout.previous_cap == cap


def _on_its_way(rollout: Rollout | None) -> bool:
    """Whether a rollout forbids to let replicas go: one past its progress deadline does not."""
    return rollout is not None and not rollout.deadline_exceeded
