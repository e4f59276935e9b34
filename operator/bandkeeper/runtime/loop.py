"""The control loop: one look at every policy per period, and at once at a policy that changed.

A look: collect once for all that read from one Prometheus, then for each policy snapshot, decide, act, report. Nobody
waits for another's Prometheus, target or write, and a policy that fails harms no other.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bandkeeper.actuate.outcome import CapResult, Outcome
from bandkeeper.actuate.replicas import Replicas, Scale
from bandkeeper.actuate.rights import Rights
from bandkeeper.api import durations
from bandkeeper.api.conditions import Finding
from bandkeeper.api.snapshot import PodState, Snapshot
from bandkeeper.api.v1alpha1 import TargetRef
from bandkeeper.decide.engine import decide
from bandkeeper.decide.vetoes import POD_STORE_LIMIT_S
from bandkeeper.kube.discovery import Discovery, TargetError, TargetProblem
from bandkeeper.kube.events import EventRecorder
from bandkeeper.kube.lease import LeaseElector
from bandkeeper.kube.objects import Key
from bandkeeper.kube.pods import PodStore
from bandkeeper.kube.reflector import Reflector
from bandkeeper.kube.scalers import Scalers
from bandkeeper.kube.selector import SelectorError
from bandkeeper.kube.status import StatusWriter
from bandkeeper.runtime.act import Actor, recommend
from bandkeeper.runtime.announce import Announcer
from bandkeeper.runtime.conflicts import TargetKey, conflict_of, owners
from bandkeeper.runtime.lanes import Lane, Lanes
from bandkeeper.runtime.metrics import Metrics
from bandkeeper.runtime.policies import Interpreter, Managed
from bandkeeper.runtime.report import findings, news_of, readable, status_of
from bandkeeper.runtime.resume import begun_anew, remembered, unmoved
from bandkeeper.runtime.settings import Settings
from bandkeeper.runtime.tracked import PodsMark, Tracked
from bandkeeper.signals.collector import Collector
from bandkeeper.signals.want import Observations, Want

logger = logging.getLogger(__name__)

TARGET_READ_EVERY_S = 300.0
PATIENCE_S = 1.0  # so long a look waits for targets that are being read
READS_AT_ONCE = 32
WRITES_AT_ONCE = 64
MIN_GAP_S = 0.1
FINISH_S = 0.5  # on the way out, for writes under way
STUCK_S = 60.0
GC_AFTER = (20_000, 10, 10)  # a tick makes ten thousands of objects and hardly a cycle
POLICIES_PER_TURN = 64  # that are prepared before others get the event loop
DRIFT_EVERY_S = 25.0  # the status writer lets drifting figures through once a minute


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

    def stalest(self) -> tuple[float, str]:
        """Seconds since the stalest of them heard from the server, and what it follows, such as pods."""
        return max((reflector.age_s(), reflector.plural) for reflector in self.reflectors)


class ControlLoop:
    """Runs until cancelled. Only the holder of the lease writes; a standby decides all the same."""

    def __init__(
        self,
        *,
        settings: Settings,
        stores: Stores,
        interpreter: Interpreter,
        discovery: Discovery,
        replicas: Replicas,
        rights: Rights,
        collectors: Callable[[], Collector],
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
        self._replicas = replicas
        self._elector = elector
        self._statuses = statuses
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._actor = Actor(
            replicas=replicas, discovery=discovery, rights=rights, elector=elector, metrics=metrics, clock=clock
        )
        self._announcer = Announcer(events=events, metrics=metrics)
        self._lanes = Lanes(collectors, default=settings.prometheus.servers[0].name)
        self._tracked: dict[Key, Tracked] = {}
        self._wake = asyncio.Event()
        self._missed = False
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._writes = asyncio.Semaphore(WRITES_AT_ONCE)
        self._cap_reads = asyncio.Semaphore(READS_AT_ONCE)
        self._looking: set[asyncio.Task[None]] = set()
        self._acting: set[asyncio.Task[None]] = set()
        self._ticked_at: float | None = None
        self._blind_to = ""
        self._started_at = self._due = clock()
        metrics.leader.set_function(lambda: float(elector.held))

    def wake(self) -> None:
        """A policy may have changed: look at once."""
        self._wake.set()

    def hurry(self) -> None:
        """The lease was won: look at all policies at once, so that nobody waits a period for the new leader.

        Who held it before may have lost it for a moment only, in which another wrote and told what we do not know.
        """
        for tracked in self._tracked.values():
            tracked.told = tracked.leads = False
        self._due = self._clock()
        self._wake.set()

    def alive(self) -> str | None:
        """A sentence when the loop, or the look at one policy, has not got on for far too long."""
        if self._stores.unsynced:
            return None
        slowest_s = max(self._settings.period, *(server.timeout for server in self._settings.prometheus.servers))
        oldest = min(
            (tracked.looked_at for tracked in self._tracked.values()), default=self._ticked_at or self._started_at
        )
        silent_s = self._clock() - min(oldest, self._ticked_at or self._started_at)
        return None if silent_s < STUCK_S + 5 * slowest_s else f"the control loop is stuck for {silent_s:.0f} s"

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
        gc.set_threshold(*GC_AFTER)
        self._due = self._clock()
        try:
            while True:
                full = self._clock() >= self._due
                if full:
                    self._due = max(self._due + self._settings.period, self._clock() + MIN_GAP_S)
                self._wake.clear()
                try:
                    self.tick(full)
                except Exception:  # /healthz tells if it stays so
                    logger.exception("a tick failed")
                try:
                    async with asyncio.timeout(max(MIN_GAP_S, self._due - self._clock())):
                        await self._wake.wait()
                        await asyncio.sleep(MIN_GAP_S)  # our own store may be a moment behind kopf's
                except TimeoutError:
                    pass
        finally:
            await self._stop()

    async def _stop(self) -> None:
        """Give writes under way a moment to end and to be told, then end everything."""
        for task in self._looking:
            task.cancel()
        if self._acting:
            await asyncio.wait(self._acting, timeout=FINISH_S)
        for task in (*self._acting, *self._looking):
            task.cancel()
        await asyncio.gather(*self._looking, *self._acting, return_exceptions=True)
        self._lanes.close()
        self._interpreter.keep(set())
        await asyncio.gather(*(adapter.close() for adapter in self._interpreter.left()), return_exceptions=True)

    def tick(self, full: bool) -> None:
        """Begin the looks that are due. A policy whose last look or write is still under way is left out."""
        present = [self._interpreter.read(raw) for raw in self._stores.policies.objects.values() if not _leaves(raw)]
        self._forget(present)
        due = present if full else [managed for managed in present if self._is_due(managed)]
        owner_of = owners(present) if due else {}
        looks: dict[Lane, list[Tracked]] = defaultdict(list)
        for managed in due:
            if self._busy(managed):
                self._miss(managed)
            elif managed.flaw is not None:
                tracked = self._track(managed, owner_of)
                self._read_status(tracked)
                self._report_unjudged(tracked)
            elif (lane := self._lanes.of(managed)).busy:
                self._miss(managed)
            else:
                looks[lane].append(self._track(managed, owner_of))
        for lane, group in looks.items():
            lane.look = self._start(self._looking, self._look_at(lane, group, timed=full))
        self._metrics.policies.set(len(present))
        self._look_for_blindness()
        if full:
            self._lanes.keep(present)
            self._ticked_at = self._clock()

    def _start(self, tasks: set[asyncio.Task[None]], job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(job)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def _look_for_blindness(self) -> None:
        """Say once that conflicts cannot be seen, because nothing else would show it."""
        problem = self._stores.scalers.problem
        if problem and problem != self._blind_to:
            logger.warning(
                "other scalers cannot be seen, so conflicts with them go unnoticed", extra={"error": problem}
            )
        self._blind_to = problem

    def _is_due(self, managed: Managed) -> bool:
        """Whether a policy changed since it was reported on, or was left out of a tick."""
        tracked = self._tracked.get(managed.key)
        return tracked is None or tracked.overdue or tracked.reported is not managed

    def _busy(self, managed: Managed) -> bool:
        tracked = self._tracked.get(managed.key)
        return tracked is not None and tracked.busy

    def _miss(self, managed: Managed) -> None:
        """Leave a policy out of this tick; it is looked at as soon as what is under way has ended."""
        self._missed = True
        if tracked := self._tracked.get(managed.key):
            tracked.overdue = True

    def _forget(self, present: Sequence[Managed]) -> None:
        """Drop the policies that are gone, or were made anew under their old name."""
        uids = {managed.key: managed.ref.uid for managed in present}
        self._interpreter.keep(uids.keys())
        for key, tracked in list(self._tracked.items()):
            if uids.get(key) == tracked.managed.ref.uid:
                continue
            del self._tracked[key]
            self._statuses.forget(tracked.managed.ref.uid)
            self._metrics.forget(key)
            logger.info("policy gone, its workload is left as it is", extra={"policy": "/".join(key)})
        for adapter in self._interpreter.left():
            self._start(self._acting, adapter.close())

    def _track(self, managed: Managed, owner_of: Mapping[TargetKey, Managed]) -> Tracked:
        tracked = self._tracked.get(managed.key)
        if tracked is None:
            tracked = self._tracked[managed.key] = Tracked.begin(managed, self._clock())
        tracked.overdue = False
        tracked.adopt(managed)
        tracked.conflict = conflict_of(managed, owner_of, self._stores.scalers)
        return tracked

    def _read_status(self, tracked: Tracked) -> None:
        """The status as the object has it, unless this process told it; anew only when it has changed."""
        if self._elector.held and tracked.told:
            return
        observed = self._observed(tracked.managed)
        if observed is not tracked.observed:
            tracked.status, tracked.observed = readable(observed), observed

    def _observed(self, managed: Managed) -> Mapping[str, Any]:
        """The status as the policy's object has it now."""
        raw = self._stores.policies.objects.get(managed.key) or {}
        return raw.get("status") or {}

    @contextmanager
    def _guard(self, tracked: Tracked) -> Iterator[None]:
        """One policy's trouble stays its own."""
        try:
            yield
        except Exception:
            self._metrics.tick_failures.inc()
            logger.exception("a policy's tick failed", extra={"policy": "/".join(tracked.managed.key)})
        finally:
            tracked.looked_at = self._clock()

    async def _look_at(self, lane: Lane, looks: Sequence[Tracked], *, timed: bool) -> None:
        """Read targets, collect, decide, and begin the writes, for policies of one lane."""
        started = self._clock()
        for tracked in looks:
            tracked.looking = True
        try:
            await self._prepare(looks)
            asked: dict[str, tuple[Tracked, Want]] = {}
            async for tracked in _in_turns(looks):
                with self._guard(tracked):
                    if (want := self._want(tracked)) is not None:
                        asked[want.key] = tracked, want
                    elif tracked.target_problem is not None:
                        self._report_unjudged(tracked)
            if asked:
                await self._ask_for_caps([tracked for tracked, _ in asked.values()])
                await self._collect(lane, asked)
        finally:
            for tracked in looks:
                tracked.looking = False
            self._look_at_missed()
        if timed:
            self._metrics.tick_seconds.observe(self._clock() - started)

    def _look_at_missed(self) -> None:
        """Something under way has ended: those that were left out need not wait for the next period."""
        if self._missed:
            self._missed = False
            self._wake.set()

    async def _prepare(self, looks: Sequence[Tracked]) -> None:
        """Read the targets that are due, ask for rights that are not known, and wait a moment for both."""
        now_s, reads, started = self._clock(), {}, []
        async for tracked in _in_turns(looks):
            with self._guard(tracked):
                self._read_status(tracked)
                mark = self._pods_mark(tracked.managed, tracked.scale)
                if tracked.reading is None and tracked.target_is_due(now_s, mark, TARGET_READ_EVERY_S):
                    tracked.target_read_at, tracked.pods_mark = now_s, mark
                    tracked.reading = self._start(self._looking, self._read_target(tracked))
                    reads[tracked.reading] = tracked
                if self._acts(tracked) and self._elector.held and now_s >= tracked.rights_due_s:
                    started.append(self._start(self._looking, self._ask_rights(tracked)))
        if reads or started:
            _, late = await asyncio.wait([*reads, *started], timeout=PATIENCE_S)
            for task in late & reads.keys():
                task.add_done_callback(partial(self._came_late, reads[task]))

    def _came_late(self, tracked: Tracked, _: asyncio.Task[None]) -> None:
        """A look did not wait for the target: look again, now that it is read."""
        tracked.overdue = True
        self._wake.set()

    async def _ask_rights(self, tracked: Tracked) -> None:
        with self._guard(tracked):
            await self._actor.ask_rights(tracked)

    async def _read_target(self, tracked: Tracked) -> None:
        """Take in the target as it is now, unless it was written, or another one named, meanwhile."""
        ref, before = tracked.target_ref, tracked.scale
        with self._guard(tracked):
            found: Scale | TargetError
            try:
                found = await self._read(tracked.managed, ref)
            except TargetError as error:
                found = error
            finally:
                tracked.reading = None
            if tracked.target_ref != ref or tracked.scale is not before:
                tracked.target_read_at = None
            elif isinstance(found, TargetError):
                tracked.target_failed(found, self._clock())
            else:
                mark = self._pods_mark(tracked.managed, found) if before is None else tracked.pods_mark
                tracked.target_found(found, mark)

    async def _read(self, managed: Managed, ref: TargetRef | None) -> Scale:
        """The target, with a selector that can be read. Raises TargetError."""
        assert ref is not None
        async with self._reads:
            scale = await self._replicas.read(managed.ref.namespace, ref)
        try:
            self._stores.pods.records(managed.ref.namespace, scale.selector)
        except SelectorError as error:  # of a custom resource it may be any text
            raise TargetError(TargetProblem.NO_SELECTOR, str(error)) from error
        return scale

    def _pods_mark(self, managed: Managed, scale: Scale | None) -> PodsMark:
        """The target's pods, and which of them end: when that changes, the target may have changed."""
        if scale is None:
            return frozenset()
        records = self._stores.pods.records(managed.ref.namespace, scale.selector)
        return frozenset((record.uid, record.state is PodState.TERMINATING) for record in records)

    def _want(self, tracked: Tracked) -> Want | None:
        managed, scale = tracked.managed, tracked.scale
        if scale is None or managed.spec is None or managed.pod_settings is None:
            return None
        tracked.pods = self._stores.pods.pods(
            managed.ref.namespace, scale.selector, now=self._wall(), settings=managed.pod_settings
        )
        ready = tuple(pod.name for pod in tracked.pods if pod.state is PodState.READY)
        if tracked.want is None or tracked.want.pods != ready:
            tracked.want = Want.of("/".join(managed.key), managed.ref.namespace, managed.spec, ready)
        return tracked.want

    async def _ask_for_caps(self, looks: Sequence[Tracked]) -> None:
        """Begin to ask servers for the caps in force; a first answer, and one after a write, is waited for a moment."""
        if self._stale_pods():
            return
        now_s, awaited = self._clock(), []
        for tracked in looks:
            readings = tracked.readings
            if tracked.reads_back and readings.is_due(tracked.pods, now_s):
                readings.reading = self._start(self._looking, self._read_caps(tracked))
                failing = tracked.cap_retry.failures > 0  # one that fails all the time holds up no other
                if (readings.written and not failing) or not readings.begun:
                    awaited.append(readings.reading)
        if awaited:
            await asyncio.wait(awaited, timeout=PATIENCE_S)

    def _stale_pods(self) -> str:
        """Why no pod may be asked at its address, which may be another pod's by now; "" where it may."""
        age_s = self._stores.pods.age_s()
        if age_s <= POD_STORE_LIMIT_S:
            return ""
        return f"the list of pods is {durations.text(age_s)} old, so no server is asked at an address from it"

    async def _set_cap(self, tracked: Tracked) -> None:
        stale = self._stale_pods() if tracked.reads_back else ""
        if stale:
            tracked.cap_result = CapResult(outcome=Outcome.FAILED, message=stale)
        else:
            await self._actor.set_cap(tracked)

    async def _read_caps(self, tracked: Tracked) -> None:
        readings = tracked.readings
        try:
            with self._guard(tracked):
                async with self._cap_reads:
                    await self._actor.read_caps(tracked)
        finally:
            readings.reading = None

    async def _collect(self, lane: Lane, asked: Mapping[str, tuple[Tracked, Want]]) -> None:
        """Judge each policy as soon as its own answers are in."""
        wants = [want for _, want in asked.values()]
        async with aclosing(lane.observations(wants, self._clock())) as answers:
            async for key, observations in answers:
                tracked, _ = asked[key]
                with self._guard(tracked):
                    self._judge(tracked, observations)
        self._metrics.queries.inc(lane.queries)
        self._metrics.tick_failures.inc(lane.faults)

    def _acts(self, tracked: Tracked) -> bool:
        """Whether the policy may be written for, by whoever leads."""
        return tracked.managed.enforcing and tracked.conflict is None

    def _judge(self, tracked: Tracked, observations: Observations) -> None:
        """Decide, and begin the writes; what is not written is reported at once."""
        managed, acts, held = tracked.managed, self._acts(tracked), self._elector.held
        if tracked.scale is None or self._tracked.get(managed.key) is not tracked:
            return
        self._decide(tracked, observations, acts=acts, held=held)
        if acts and held and self._actor.has_work(tracked):
            tracked.acting = True
            self._start(self._acting, self._act(tracked))
            return
        if not acts:
            tracked.hands_off()
            if not managed.enforcing and not managed.paused and held:
                recommend(tracked)
        self._report(tracked)

    def _decide(self, tracked: Tracked, observations: Observations, *, acts: bool, held: bool) -> None:
        """Take in the decision. One who does not write for a policy that acts takes the cap as others leave it."""
        policy, scale, now_s = tracked.managed.policy, tracked.scale, self._clock()
        assert policy is not None
        assert scale is not None
        pods_age_s, stalest = self._stores.stalest()
        if tracked.reads_back:
            tracked.pods = tracked.readings.onto(tracked.pods, now_s)
        snapshot = Snapshot(
            target=scale.target,
            pods=tracked.pods,
            pods_age_s=pods_age_s,
            stalest=stalest,
            wall_s=self._wall(),
            **observations.as_fields(),
        )
        state = remembered(
            tracked.state, policy, tracked.status.model, scale.target.uid, now_s=now_s, wall_s=self._wall()
        )
        leads = acts and held and not tracked.caps_awaited
        if acts and not (held and tracked.leads):
            state = begun_anew(
                state,
                policy,
                rollout=scale.target.rollout,
                pods=tracked.pods,
                told_cap=_told_cap(tracked),
                now_s=now_s,
            )
        with self._metrics.decide_seconds.time():
            policy = policy if policy.acts == acts else replace(policy, acts=acts)
            tracked.decision, after = decide(policy, snapshot, state, now_s)
        tracked.state = unmoved(state, after) if acts and not held else after
        tracked.snapshot, tracked.leads = snapshot, leads

    async def _act(self, tracked: Tracked) -> None:
        """Write, then report. An emergency does not wait for its turn."""
        emergency = tracked.decision is not None and tracked.decision.emergency
        try:
            with self._guard(tracked):
                async with nullcontext() if emergency else self._writes:
                    if self._stands(tracked):
                        await self._actor.scale(tracked)
                    if self._stands(tracked):
                        await self._set_cap(tracked)
                if tracked.readings.written:
                    await self._ask_for_caps([tracked])  # so that what was written is told as what is in force
                self._report(tracked)
        finally:
            tracked.acting = False
            if tracked.managed.key not in self._tracked:
                self._metrics.forget(tracked.managed.key)  # it went while it was written for, and that was counted
            self._look_at_missed()

    def _stands(self, tracked: Tracked) -> bool:
        """Whether the policy is still as it was decided on, and this process may still write."""
        raw = self._stores.policies.objects.get(tracked.managed.key)
        same = raw is not None and not _leaves(raw) and self._interpreter.read(raw) is tracked.managed
        return same and self._elector.held

    def _report_unjudged(self, tracked: Tracked) -> None:
        tracked.unjudged()
        with self._guard(tracked):
            self._report(tracked)

    def _report(self, tracked: Tracked) -> None:
        """Say what was found, and what was done; only the leader tells others than its own log and metrics."""
        try:
            self._announcer.moved(tracked)  # what was written was written, whoever leads by now
            if self._tracked.get(tracked.managed.key) is tracked:
                self._report_on(tracked, self._elector.held)
        finally:
            tracked.changes.clear()  # each is said once, whatever comes of the rest

    def _report_on(self, tracked: Tracked, held: bool) -> None:
        if held and self._acts(tracked):
            tracked.foretell()
        seen = findings(tracked)
        self._announcer.measure(tracked, seen)
        if held:
            self._announcer.judged(tracked, self._clock())
            self._announcer.meter(tracked, self._clock(), wall_s=self._wall())
            self._tell(tracked, seen)
        else:
            tracked.metered_s = None
        tracked.told, tracked.reported = held, tracked.managed

    def _tell(self, tracked: Tracked, seen: Sequence[Finding]) -> None:
        """Events and status: at once where there is news, else now and then, because figures drift."""
        news, now_s = news_of(tracked, seen), self._clock()
        fresh = tracked.told and now_s - tracked.told_at < DRIFT_EVERY_S
        if fresh and not tracked.changes and news == tracked.news:
            return
        status = status_of(tracked, seen, wall_s=self._wall())
        self._announcer.tell(tracked, status)
        self._statuses.submit(tracked.managed.ref, status.stored(), observed=self._observed(tracked.managed))
        tracked.status, tracked.observed = status, None
        tracked.news, tracked.told_at = news, now_s


async def _in_turns(looks: Sequence[Tracked]) -> AsyncIterator[Tracked]:
    """One after the other; thousands of them at once would hold up the lease, the probes and the stores."""
    for number, tracked in enumerate(looks, start=1):
        if number % POLICIES_PER_TURN == 0:
            await asyncio.sleep(0)
        yield tracked


def _leaves(raw: Mapping[str, Any]) -> bool:
    """Whether a policy was deleted and only waits for somebody's finalizer."""
    return "deletionTimestamp" in raw["metadata"]


def _told_cap(tracked: Tracked) -> int | None:
    """The batch cap that whoever led last wanted, as its status tells; None where that was for another spec."""
    told = tracked.status
    return told.batch.desired if told.batch and told.observed_generation == tracked.managed.generation else None
