"""A backlog with a deadline: the fewest replicas that are in time, and a best finish where none are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.reasons import DeadlineState, LimitReason, Reason
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Reading, Snapshot
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.backlog import Due, due, watch_backlog
from bandkeeper.decide.decision import Decision, MetricsState
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Batching, Deadline, Policy, ThroughputSLO
from bandkeeper.decide.state import BacklogMemory, State, WorkersMemory
from bandkeeper.quality.types import Saturated
from tests.unit.builders import a_pod, a_policy, a_snapshot, a_target

PERIOD_S = 15.0
COLD_START_S = 60.0
HOUR_S = 3600.0
EPOCH_S = 1_800_000_000.0
Speed = Callable[[int], float]


def linear(workers: int) -> float:
    return 100.0 * workers


def amdahl(workers: int) -> float:
    return 100 * workers / (1 + 0.08 * (workers - 1))


def retrograde(workers: int) -> float:
    """The most at 5 workers."""
    return 100 * workers / (1 + 0.04 * workers * (workers - 1))


def a_deadline(
    *, within_s: float | None = None, by_s: float | None = None, signal: Signal = Signal.BACKLOG
) -> Deadline:
    return Deadline(backlog=signal, rate=Signal.SAMPLES, within_s=within_s, by_s=by_s)


def a_batch_policy(deadline: Deadline, *, percent: int | None = None, **more: Any) -> Policy:
    policy = a_policy(Objective.THROUGHPUT_SENSITIVE, batching=Batching.UNKNOWN, **{"replicas": (1, 32), **more})
    return replace(policy, deadline=deadline, least_efficiency=None if percent is None else percent / 100)


@dataclass
class Crew:
    """Workers on one backlog. Those that are added help a minute later; a training job stands still for that long."""

    policy: Policy
    left: float
    workers: int = 1
    speed: Speed = linear
    arriving_per_s: float = 0.0
    trains: bool = False
    told: bool = True

    def __post_init__(self) -> None:
        self.state, self.now_s, self.since_s, self.old = State.initial(0.0), 0.0, -HOUR_S, 0
        self.worker_hours, self.most = 0.0, self.workers

    @property
    def ready(self) -> int:
        return self.workers if self.now_s - self.since_s >= COLD_START_S else min(self.old, self.workers)

    @property
    def done_per_s(self) -> float:
        stands = self.trains and self.ready != self.workers
        return self.speed(self.ready) if self.left > 0 and self.ready and not stands else 0.0

    def look(self) -> Snapshot:
        age_s = self.now_s - self.since_s
        pods = []
        for number in range(self.ready):
            young = number >= self.old
            ready_s = max(0.0, age_s - COLD_START_S) if young else age_s + HOUR_S
            pod = a_pod(f"worker-{number}", age_s=ready_s + COLD_START_S, state_age_s=ready_s)
            pods.append(replace(pod, job="job" if self.trains else None, trains=self.trains))
        seen = a_snapshot(
            ready=pods,
            running=None,
            waiting=None,
            samples=self.done_per_s,
            target=a_target(self.workers),
        )
        totals = {Signal.BACKLOG: Reading(self.left, 5.0)} if self.told else {}
        return replace(seen, totals=totals, wall_s=EPOCH_S + self.now_s)

    def run(self, minutes: float) -> Iterator[Decision]:
        for _ in range(round(minutes * 60 / PERIOD_S)):
            self.left = max(0.0, self.left + (self.arriving_per_s - self.done_per_s) * PERIOD_S)
            self.now_s += PERIOD_S
            self.worker_hours += self.workers * PERIOD_S / HOUR_S
            decision, self.state = decide(self.policy, self.look(), self.state, self.now_s)
            if decision.replicas is not None and decision.replicas != self.workers:
                self.state = written(self.state, replicas=decision.replicas, now_s=self.now_s)
                self.old, self.workers, self.since_s = self.ready, decision.replicas, self.now_s
                self.most = max(self.most, self.workers)
            yield decision

    def after(self, minutes: float) -> Decision:
        *_, last = self.run(minutes)
        return last

    def finish_s(self, most_s: float = 24 * HOUR_S) -> float:
        """When nothing was left."""
        for _ in self.run(most_s / 60):
            if self.left <= 0:
                break
        return self.now_s


class TestInTime:
    @pytest.mark.parametrize("trains", [False, True])
    @pytest.mark.parametrize("speed", [linear, amdahl])
    @pytest.mark.parametrize("hours", [1.0, 2.0, 8.0])
    @pytest.mark.parametrize("instant", [False, True])
    def test_it_is_done_in_time_for_hardly_more_than_it_takes(
        self, instant: bool, hours: float, speed: Speed, trains: bool
    ) -> None:
        deadline = a_deadline(by_s=EPOCH_S + hours * HOUR_S) if instant else a_deadline(within_s=hours * HOUR_S)
        left = 400 * hours * HOUR_S
        crew = Crew(a_batch_policy(deadline), left=left, speed=speed, trains=trains)
        # A duration does not count the first minutes, in which one worker is measured and others start.
        late_s = 0.0 if instant else 450.0
        assert crew.finish_s() <= hours * HOUR_S + late_s
        least = next(count for count in range(1, 33) if speed(count) * hours * HOUR_S >= left)
        assert crew.worker_hours <= 1.4 * least * hours
        assert crew.most <= least + 2 + least // 2

    def test_it_says_so(self) -> None:
        crew = Crew(a_batch_policy(a_deadline(by_s=EPOCH_S + 2 * HOUR_S)), left=400 * 2 * HOUR_S)
        decisions = list(crew.run(30))
        first = next(one for one in decisions if one.reason is Reason.BACKLOG_DEADLINE)
        assert (first.current_replicas, first.replicas) == (1, 5)
        assert first.inputs.replicas_for_deadline == 5
        assert first.deadline is not None
        assert first.deadline.state is DeadlineState.LATE
        assert first.message.startswith(
            "Replicas 1 -> 5: 2.866e+06 samples are left, 1h57m45s remain; 5 replicas are done"
        )
        last = decisions[-1]
        assert (last.reason, last.metrics.state) == (Reason.NO_CHANGE, MetricsState.USABLE)
        assert last.deadline is not None
        assert last.deadline.state is DeadlineState.IN_TIME
        assert last.deadline.finish_s is not None
        assert 0 < last.deadline.finish_s <= (last.deadline.left_s or 0.0)
        assert last.band.within is None

    def test_more_than_it_takes_are_let_go(self) -> None:
        crew = Crew(a_batch_policy(a_deadline(by_s=EPOCH_S + 8 * HOUR_S)), left=180 * 8 * HOUR_S, workers=16)
        decisions = list(crew.run(30))
        assert crew.workers == 2
        told = next(one for one in decisions if one.replicas == 2)
        assert told.reason is Reason.BACKLOG_DEADLINE
        assert crew.finish_s() <= 8 * HOUR_S

    def test_when_it_is_done_only_the_least_stay(self) -> None:
        crew = Crew(a_batch_policy(a_deadline(within_s=HOUR_S), replicas=(2, 32)), left=400 * HOUR_S, workers=4)
        crew.finish_s()
        decision = crew.after(10)
        assert crew.workers == 2
        assert decision.deadline is not None
        assert decision.deadline.state is DeadlineState.NOTHING_LEFT

    def test_what_arrives_comes_on_top(self) -> None:
        deadline = a_deadline(by_s=EPOCH_S + 2 * HOUR_S)
        crew = Crew(a_batch_policy(deadline), left=400 * 2 * HOUR_S, arriving_per_s=300.0, workers=4)
        crew.after(60)
        assert crew.workers in (7, 8)
        assert crew.finish_s() <= 2 * HOUR_S + 300

    def test_a_stream_waits_no_longer_than_it_may(self) -> None:
        """What comes at any time is done within half an hour, first come first served."""
        crew = Crew(a_batch_policy(a_deadline(within_s=HOUR_S / 2)), left=0.0, arriving_per_s=500.0, workers=1)
        crew.after(240)
        for _ in crew.run(240):
            assert crew.left <= 500 * HOUR_S / 2 * 1.05
        assert crew.worker_hours <= 1.3 * 5 * 8

    def test_a_load_put_there_at_once_is_counted_once(self) -> None:
        crew = Crew(a_batch_policy(a_deadline(within_s=2 * HOUR_S)), left=100 * HOUR_S, workers=2)
        crew.after(20)
        crew.left = 500 * 2 * HOUR_S
        crew.after(20)
        assert crew.workers in (5, 6)

    def test_the_band_and_a_queue_have_no_say(self) -> None:
        """Servers that are full, thousands of requests that wait, and eight hours of time."""
        policy = replace(
            a_batch_policy(a_deadline(within_s=8 * HOUR_S, signal=Signal.REQUESTS_WAITING)),
            batching=Batching.CONTINUOUS,
        )
        state, replicas = State.initial(0.0), 2
        for tick in range(1, 241):
            seen = a_snapshot(ready=replicas, running=64.0 * replicas, waiting=20_000.0, samples=0.5 * replicas)
            decision, state = decide(policy, seen, state, tick * PERIOD_S)
            assert decision.replicas == 2
        assert decision.deadline is not None
        assert decision.deadline.left == 20_128


class TestUnreachable:
    def test_all_that_help_are_ordered_and_the_best_finish_is_told(self) -> None:
        policy = a_batch_policy(a_deadline(by_s=EPOCH_S + HOUR_S), replicas=(1, 8))
        crew = Crew(policy, left=2000 * HOUR_S)
        decision = crew.after(10)
        assert crew.workers == 8
        assert decision.deadline is not None
        assert decision.deadline.state is DeadlineState.UNREACHABLE
        assert decision.limit is not None
        assert decision.limit.reason is LimitReason.DEADLINE_UNREACHABLE
        assert "the best reachable finish: 8 replicas are done in 2h2" in decision.message

    def test_a_deadline_that_passed_is_no_reason_to_stop(self) -> None:
        crew = Crew(a_batch_policy(a_deadline(by_s=EPOCH_S - HOUR_S), replicas=(1, 8)), left=800 * HOUR_S)
        decision = crew.after(10)
        assert crew.workers == 8
        assert "the deadline passed 1h10m0s ago" in decision.message

    def test_not_by_workers_that_bring_nothing(self) -> None:
        crew = Crew(a_batch_policy(a_deadline(by_s=EPOCH_S + HOUR_S)), left=9e9, speed=retrograde, trains=True)
        decision = crew.after(600)
        assert crew.workers == 5
        assert decision.limit is not None
        assert decision.limit.reason is LimitReason.DEADLINE_UNREACHABLE

    def test_nor_below_the_efficiency_that_was_asked_for(self) -> None:
        policy = a_batch_policy(a_deadline(by_s=EPOCH_S + HOUR_S), percent=75)
        crew = Crew(policy, left=9e9, speed=amdahl, trains=True)
        decision = crew.after(240)
        assert crew.workers == 5
        assert decision.deadline is not None
        assert decision.deadline.state is DeadlineState.UNREACHABLE
        assert "5 replicas are done in" in decision.deadline.message

    def test_more_may_arrive_than_all_can_do(self) -> None:
        policy = a_batch_policy(a_deadline(by_s=EPOCH_S + 8 * HOUR_S), replicas=(1, 2))
        decision = Crew(policy, left=1e6, arriving_per_s=1000.0).after(60)
        assert decision.deadline is not None
        assert "more arrives than 2 replicas do" in decision.deadline.message


class TestMissing:
    @pytest.mark.parametrize("workers", [1, 16])
    def test_an_unknown_backlog_moves_nothing(self, workers: int) -> None:
        crew = Crew(a_batch_policy(a_deadline(within_s=HOUR_S)), left=400 * HOUR_S, workers=workers, told=False)
        decision = crew.after(60)
        assert crew.workers == workers
        assert decision.metrics.state is MetricsState.PARTIAL
        assert "Backlog" in decision.metrics.message
        assert decision.deadline is not None
        assert decision.deadline.state is DeadlineState.NO_DATA

    def test_nothing_is_let_go_while_it_is_unknown(self) -> None:
        crew = Crew(a_batch_policy(a_deadline(within_s=HOUR_S)), left=800 * HOUR_S, workers=8)
        crew.after(20)
        held = crew.workers
        crew.told, crew.left = False, 0.0
        assert all(decision.replicas == held for decision in crew.run(60))

    def test_without_a_clock_an_instant_is_unknown(self) -> None:
        policy = a_batch_policy(a_deadline(by_s=EPOCH_S + HOUR_S))
        crew = Crew(policy, left=9e9, workers=3)
        for tick in range(1, 121):
            crew.now_s = tick * PERIOD_S
            seen = replace(crew.look(), wall_s=None)
            decision, crew.state = decide(policy, seen, crew.state, crew.now_s)
            assert decision.replicas == 3
        assert decision.deadline is not None
        assert "The time of day is not known" in decision.deadline.message

    def test_a_part_of_it_lets_nobody_go_and_still_adds(self) -> None:
        """Each worker tells what it has left itself, and one of three is silent."""
        policy = a_batch_policy(a_deadline(by_s=EPOCH_S + 2 * HOUR_S))

        def counts(each: float) -> set[int]:
            crew = Crew(policy, left=1.0, workers=3)
            found: set[int] = set()
            for tick in range(1, 241):
                crew.now_s = tick * PERIOD_S
                seen = crew.look()
                told = {pod.name: Reading(each, 5.0) for pod in seen.pods[1:]}
                seen = replace(seen, totals={}, by_pod={**seen.by_pod, Signal.BACKLOG: told})
                decision, crew.state = decide(policy, seen, crew.state, crew.now_s)
                found.add(decision.replicas or 0)
            return found

        assert counts(0.0) == {3}
        assert max(counts(400 * HOUR_S)) > 3

    @pytest.mark.parametrize("count", [1, 9])
    def test_a_person_s_count_stays_for_a_while(self, count: int) -> None:
        crew = Crew(a_batch_policy(a_deadline(within_s=2 * HOUR_S)), left=400 * 2 * HOUR_S, workers=4)
        crew.after(15)
        crew.old, crew.workers, crew.since_s = crew.workers, count, -HOUR_S
        target = replace(a_target(count), manager="kubectl")
        kept = []
        for _ in range(120):
            crew.now_s += PERIOD_S
            decision, crew.state = decide(crew.policy, replace(crew.look(), target=target), crew.state, crew.now_s)
            kept.append(decision.replicas == count)
        assert all(kept[:3])
        assert not kept[-1]


def test_a_promised_rate_is_kept_beside_the_deadline() -> None:
    rate = ThroughputSLO(signal=Signal.SAMPLES, min_per_s=500.0, window_s=60.0)
    policy = replace(a_batch_policy(a_deadline(within_s=100 * HOUR_S)), slos=(rate,))
    crew = Crew(policy, left=1e4 * HOUR_S, workers=2)
    decision = crew.after(30)
    assert crew.workers >= 5
    assert decision.reason is Reason.NO_CHANGE


def a_load(left: float, *, produced: float = 400.0, trains: bool = False) -> Load:
    return Load(
        ready=4,
        running=None,
        waiting=None,
        complete=False,
        left=left,
        left_whole=True,
        produced_per_s=produced,
        produced_whole=True,
        trains=trains,
        cold_start_s=90.0,
        cold_start_measured=True,
    )


def asked(
    left: float,
    left_s: float,
    speeds: list[float],
    *,
    arriving: float = 0.0,
    trains: bool = False,
    within: bool = False,
) -> Due:
    deadline = a_deadline(within_s=left_s) if within else a_deadline(by_s=EPOCH_S + left_s)
    seen = tuple(Saturated(2 * number, speed, 0.0) for number, speed in enumerate(speeds, start=1))
    workers = WorkersMemory(seen=seen, count=4, since_s=-HOUR_S)
    memory = BacklogMemory(left=left, arriving_per_s=arriving)
    policy = a_batch_policy(deadline)
    found = due(policy, a_load(left, trains=trains), memory, workers, current=4, wall_s=EPOCH_S, now_s=0.0)
    assert found is not None
    assert found.replicas is not None
    return found


@given(
    lefts=st.tuples(st.floats(1, 1e9), st.floats(1, 1e9)),
    times_s=st.tuples(st.floats(60, 1e6), st.floats(60, 1e6)),
    speeds=st.lists(st.floats(10, 1000), min_size=1, max_size=4),
    arriving=st.floats(0, 1000),
    trains=st.booleans(),
    within=st.booleans(),
)
def test_more_to_do_or_less_time_never_asks_for_fewer(
    lefts: tuple[float, float],
    times_s: tuple[float, float],
    speeds: list[float],
    arriving: float,
    trains: bool,
    within: bool,
) -> None:
    few = asked(min(lefts), max(times_s), speeds, arriving=arriving, trains=trains, within=within)
    more = asked(max(lefts), max(times_s), speeds, arriving=arriving, trains=trains, within=within)
    sooner = asked(max(lefts), min(times_s), speeds, arriving=arriving, trains=trains, within=within)
    assert max(few.replicas or 0, 4) <= max(more.replicas or 0, 4) <= max(sooner.replicas or 0, 4)
    assert few.fewest <= more.fewest <= sooner.fewest <= 4


@given(st.lists(st.tuples(st.floats(0, 1e7), st.booleans(), st.booleans()), min_size=1, max_size=30), st.integers(1, 8))
def test_no_data_lowers_nothing_and_bounds_hold(looks: list[tuple[float, bool, bool]], workers: int) -> None:
    crew = Crew(a_batch_policy(a_deadline(within_s=HOUR_S), replicas=(1, 8)), left=1.0, workers=workers)
    for left, told, rated in looks:
        crew.left, crew.told = left, told
        for _ in range(8):
            crew.now_s += PERIOD_S
            seen = crew.look()
            seen = seen if rated else replace(seen, by_pod={})
            decision, crew.state = decide(crew.policy, seen, crew.state, crew.now_s)
            wanted = decision.replicas
            assert wanted is not None
            assert 1 <= wanted <= 8
            if not (told and rated):
                assert wanted >= crew.workers
            if wanted != crew.workers:
                crew.state = written(crew.state, replicas=wanted, now_s=crew.now_s)
                crew.old, crew.workers, crew.since_s = crew.ready, wanted, crew.now_s


class TestMemory:
    POLICY = a_batch_policy(a_deadline(within_s=600.0))

    def after(self, lefts: list[float | None], *, produced: float = 100.0) -> BacklogMemory:
        memory = BacklogMemory()
        for number, left in enumerate(lefts):
            load = replace(a_load(0.0, produced=produced), left=left, left_whole=left is not None)
            memory = watch_backlog(self.POLICY, load, memory, 15.0 * number)
        return memory

    def test_what_only_shrinks_has_no_arrivals(self) -> None:
        assert self.after([1e6 - 1500.0 * n for n in range(60)]).arriving_per_s == pytest.approx(0.0, abs=1e-6)

    def test_as_much_arrives_as_is_done_beside_no_change_of_what_is_left(self) -> None:
        lefts: list[float | None] = [1e6 + n % 2 for n in range(200)]
        assert self.after(lefts).arriving_per_s == pytest.approx(100, rel=0.02)

    def test_a_counter_that_is_written_now_and_then_is_no_arrival(self) -> None:
        lefts: list[float | None] = [1e6 - 60_000.0 * (n // 40) for n in range(400)]
        assert self.after(lefts).arriving_per_s == pytest.approx(0.0, abs=3)

    def test_what_was_there_a_while_ago_is_due_sooner(self) -> None:
        memory = self.after([5000.0, 100.0, None, 50.0])
        assert memory.held.highest() == 5000
        assert self.after([5000.0, 0.0]).held.highest() is None
        assert self.after([5000.0, *[50.0] * 50]).held.highest() == 50


@pytest.mark.parametrize(("silent", "wanted"), [((), 1), (("young",), 4)])
def test_nothing_is_let_go_while_a_pod_that_has_just_become_ready_has_no_data(
    silent: tuple[str, ...], wanted: int
) -> None:
    """A backlog that is empty says nothing of the requests in that pod."""
    policy = replace(a_policy(replicas=(1, 8)), deadline=a_deadline(within_s=HOUR_S))
    pods = [*(a_pod(f"old-{number}") for number in range(3)), a_pod("young", age_s=95.0, state_age_s=5.0)]
    state = State.initial(0.0)
    for tick in range(40):
        before = silent if tick >= 36 else ()
        seen = a_snapshot(ready=pods, running=8.0, requests_finished=4.0, samples=4.0, silent=before)
        look = replace(seen, totals={Signal.BACKLOG: Reading(0.0, 5.0)}, wall_s=EPOCH_S + PERIOD_S * tick)
        decision, state = decide(policy, look, state, PERIOD_S * tick)
    assert decision.replicas == wanted
