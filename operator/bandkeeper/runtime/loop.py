"""The control loop: one look at every policy per period, and at once at a policy that changed.

Collect once for all, then for each policy: snapshot, decide, act, report. A policy that fails harms no other.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bandkeeper.actuate.replicas import Replicas
from bandkeeper.api.snapshot import Snapshot
from bandkeeper.decide.engine import decide
from bandkeeper.kube.discovery import Discovery, TargetError
from bandkeeper.kube.events import EventRecorder
from bandkeeper.kube.lease import LeaseElector
from bandkeeper.kube.objects import Key
from bandkeeper.kube.pods import PodStore
from bandkeeper.kube.reflector import Reflector
from bandkeeper.kube.scalers import Scalers
from bandkeeper.kube.status import StatusWriter
from bandkeeper.runtime.act import Actor
from bandkeeper.runtime.announce import Announcer
from bandkeeper.runtime.conflicts import conflict_of, owners
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.policies import Interpreter, Managed
from bandkeeper.runtime.report import status_of
from bandkeeper.runtime.settings import Settings
from bandkeeper.runtime.tracked import Tracked
from bandkeeper.signals.collector import Collector
from bandkeeper.signals.want import Observations, Want

logger = logging.getLogger(__name__)

TARGET_READ_EVERY_S = 300.0
TARGET_RETRY_AFTER_S = 15.0
CONCURRENCY = 16
MIN_GAP_S = 0.1


@dataclass(frozen=True, slots=True)
class Stores:
    """What is known of the cluster."""

    policies: Reflector[dict[str, Any]]
    pods: PodStore
    scalers: Scalers
    reflectors: tuple[Reflector[Any], ...]

    @property
    def unsynced(self) -> list[str]:
        """What still keeps the first tick back, as sentences."""
        return [
            reflector.problem or "the first list is not in" for reflector in self.reflectors if not reflector.synced
        ]


class ControlLoop:
    """Runs ticks until cancelled. Only the holder of the lease writes; a standby decides all the same."""

    def __init__(
        self,
        *,
        settings: Settings,
        stores: Stores,
        interpreter: Interpreter,
        discovery: Discovery,
        replicas: Replicas,
        collector: Collector,
        elector: LeaseElector,
        events: EventRecorder,
        statuses: StatusWriter,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._interpreter = interpreter
        self._discovery = discovery
        self._replicas = replicas
        self._collector = collector
        self._elector = elector
        self._statuses = statuses
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._actor = Actor(replicas=replicas, discovery=discovery, elector=elector, metrics=metrics, clock=clock)
        self._announcer = Announcer(events=events, metrics=metrics)
        self._tracked: dict[Key, Tracked] = {}
        self._wake = asyncio.Event()
        self._turns = asyncio.Semaphore(CONCURRENCY)
        self._ticked_at: float | None = None
        self._blind_to = ""
        self._started_at = clock()

    def wake(self) -> None:
        """A policy may have changed: look at once."""
        self._wake.set()

    def alive(self) -> str | None:
        """A sentence when no tick ended for far too long."""
        limit = 60 + 5 * self._settings.period
        silent = self._clock() - (self._ticked_at or self._started_at)
        return None if silent < limit or self._stores.unsynced else f"no tick ended for {silent:.0f} s"

    def ready(self) -> str | None:
        """A sentence until the stores are synced and the first tick is done."""
        if unsynced := self._stores.unsynced:
            return f"waiting for the Kubernetes API: {unsynced[0]}"
        return None if self._ticked_at is not None else "the first tick is not done"

    async def run(self) -> None:
        """Tick every period; in between only for policies that changed."""
        for reflector in self._stores.reflectors:
            await reflector.wait_synced()
        gc.collect()
        gc.freeze()  # the stores live as long as we do: walking them again and again would hold up the loop
        due = self._clock()
        while True:
            full = self._clock() >= due
            if full:
                due = max(due + self._settings.period, self._clock() + MIN_GAP_S)
            await self._tick(full)
            self._wake.clear()
            try:
                async with asyncio.timeout(max(MIN_GAP_S, due - self._clock())):
                    await self._wake.wait()
                    await asyncio.sleep(MIN_GAP_S)  # our own store may be a moment behind kopf's
            except TimeoutError:
                pass

    async def _tick(self, full: bool) -> None:
        started = self._clock()
        present = [self._interpreter.read(raw) for raw in list(self._stores.policies.objects.values())]
        self._forget({managed.key for managed in present})
        due = present if full else [managed for managed in present if self._changed(managed)]
        if due:
            await self._look_at(due, owners(present))
        self._look_for_blindness()
        self._metrics.policies.set(len(present))
        self._metrics.leader.set(1 if self._elector.held else 0)
        if full:
            self._metrics.tick_seconds.observe(self._clock() - started)
            self._ticked_at = self._clock()

    def _look_for_blindness(self) -> None:
        """Say once that conflicts cannot be seen, because nothing else would show it."""
        problem = self._stores.scalers.problem
        if problem and problem != self._blind_to:
            logger.warning(
                "other scalers cannot be seen, so conflicts with them go unnoticed", extra={"error": problem}
            )
        self._blind_to = problem

    def _changed(self, managed: Managed) -> bool:
        tracked = self._tracked.get(managed.key)
        return tracked is None or tracked.managed is not managed

    def _forget(self, present: set[Key]) -> None:
        for key in [key for key in self._tracked if key not in present]:
            tracked = self._tracked.pop(key)
            self._interpreter.forget(key)
            self._statuses.forget(tracked.managed.ref.uid)
            self._metrics.forget(key)
            logger.info("policy gone, its workload is left as it is", extra={"policy": "/".join(key)})

    async def _look_at(self, due: Sequence[Managed], owner_of: Mapping[Any, Managed]) -> None:
        now_s, wall_s = self._clock(), self._wall()
        looks = [self._track(managed, owner_of, now_s) for managed in due]
        await asyncio.gather(*(self._guarded(tracked, self._read_target(tracked, now_s)) for tracked in looks))
        wants = [want for tracked in looks if (want := self._want(tracked, wall_s)) is not None]
        wanted = {want.key for want in wants}
        for tracked in looks:
            if "/".join(tracked.managed.key) not in wanted:
                tracked.decision = tracked.snapshot = None
                self._report(tracked)
        by_key = {"/".join(tracked.managed.key): tracked for tracked in looks}
        async with asyncio.TaskGroup() as group:
            async for key, observations in self._collector.stream(wants, wall_s):
                tracked = by_key[key]
                group.create_task(self._guarded(tracked, self._conclude(tracked, observations)))
        if wants:
            self._metrics.queries.inc(self._collector.last.queries)

    def _track(self, managed: Managed, owner_of: Mapping[Any, Managed], now_s: float) -> Tracked:
        tracked = self._tracked.get(managed.key)
        if tracked is None or tracked.managed.ref.uid != managed.ref.uid:
            tracked = self._tracked[managed.key] = Tracked.begin(managed, now_s)
        tracked.adopt(managed)
        tracked.conflict = conflict_of(managed, owner_of, self._stores.scalers)
        return tracked

    async def _guarded(self, tracked: Tracked, job: Coroutine[Any, Any, None]) -> None:
        """One policy's trouble stays its own."""
        async with self._turns:
            try:
                await job
            except Exception:
                self._metrics.tick_failures.inc()
                logger.exception("a policy's tick failed", extra={"policy": "/".join(tracked.managed.key)})

    async def _read_target(self, tracked: Tracked, now_s: float) -> None:
        managed = tracked.managed
        if managed.spec is None or managed.flaw is not None:
            return
        if not tracked.target_is_due(now_s, self._pods_mark(tracked), TARGET_READ_EVERY_S, TARGET_RETRY_AFTER_S):
            return
        tracked.target_read_at = now_s
        try:
            tracked.scale = await self._replicas.read(managed.ref.namespace, managed.spec.target_ref)
            tracked.target_problem = None
        except TargetError as error:
            tracked.scale, tracked.target_problem = None, error
        tracked.pods_mark = self._pods_mark(tracked)

    def _pods_mark(self, tracked: Tracked) -> frozenset[str]:
        """Names of the target's pods: when they change, the target may have."""
        if tracked.scale is None:
            return frozenset()
        records = self._stores.pods.records(tracked.managed.ref.namespace, tracked.scale.selector)
        return frozenset(record.name for record in records)

    def _want(self, tracked: Tracked, wall_s: float) -> Want | None:
        managed, scale = tracked.managed, tracked.scale
        if scale is None or managed.spec is None or managed.pod_settings is None:
            return None
        tracked.pods = self._stores.pods.pods(
            managed.ref.namespace, scale.selector, now=wall_s, settings=managed.pod_settings
        )
        ready = tuple(pod.name for pod in tracked.pods if pod.state == "Ready")
        return Want.of("/".join(managed.key), managed.ref.namespace, managed.spec, ready)

    async def _conclude(self, tracked: Tracked, observations: Observations) -> None:
        managed, scale = tracked.managed, tracked.scale
        if managed.policy is None or scale is None:
            return
        snapshot = Snapshot(
            target=scale.target, pods=tracked.pods, pods_age_s=self._stores.pods.age_s(), **observations.as_fields()
        )
        now_s = self._clock()
        policy = replace(managed.policy, acts=managed.enforcing and tracked.conflict is None)
        with self._metrics.decide_seconds.time():
            decision, tracked.state = decide(policy, snapshot, tracked.state, now_s)
        tracked.decision, tracked.snapshot = decision, snapshot
        if self._elector.held:
            await self._actor.act(tracked)
        self._report(tracked)

    def _report(self, tracked: Tracked) -> None:
        status = status_of(tracked, wall_s=self._wall(), period_s=self._settings.period)
        self._announcer.measure(tracked, status)
        if not self._elector.held:
            return
        self._announcer.tell(tracked, status)
        self._statuses.submit(tracked.managed.ref, status, observed=tracked.managed.observed_status)
        tracked.status = status
        tracked.changes.clear()
