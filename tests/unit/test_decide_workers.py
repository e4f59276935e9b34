"""Training jobs: workers while each brings enough, one less while it does not, none for a starved data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.reasons import LimitReason, Reason
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Reading, Snapshot
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import Decision, MetricsState
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.policy import Batching, Policy, ThroughputSLO
from bandkeeper.decide.state import State
from bandkeeper.decide.workers import SPARE
from tests.unit.builders import a_pod, a_policy, a_snapshot, a_target

PERIOD_S = 15.0
COLD_START_S = 60.0
GOAL = ThroughputSLO(signal=Signal.SAMPLES, min_per_s=2000.0, window_s=60.0)
Speed = Callable[[int], float]


def amdahl(workers: int, sigma: float = 0.08) -> float:
    """Samples per second; 75 percent efficiency at 5 workers, relative to one."""
    return 100 * workers / (1 + sigma * (workers - 1))


def a_job_policy(percent: int | None = 75, *, goal: ThroughputSLO | None = GOAL, **more: Any) -> Policy:
    policy = a_policy(
        Objective.THROUGHPUT_SENSITIVE,
        slos=[goal] if goal else [],
        batching=Batching.UNKNOWN,
        **{"replicas": (1, 32), **more},
    )
    return replace(policy, least_efficiency=None if percent is None else percent / 100)


@dataclass
class Job:
    """Elastic workers, ready a minute after they were ordered; the job stands still for nothing."""

    policy: Policy
    workers: int = 1
    speed: Speed = amdahl
    label: str | None = "resnet"

    def __post_init__(self) -> None:
        self.state, self.now_s, self.since_s = State.initial(0.0), 0.0, -3600.0

    def look(self, **gpu: Any) -> Snapshot:
        age_s = self.now_s - self.since_s
        pods = tuple(
            replace(
                a_pod(f"worker-{number}", age_s=age_s + COLD_START_S, state_age_s=age_s),
                job=self.label,
                trains=bool(self.label),
            )
            for number in range(self.workers)
        )
        return a_snapshot(
            ready=pods,
            running=None,
            waiting=None,
            samples=self.speed(self.workers),
            target=a_target(self.workers),
            **{name: value * self.workers for name, value in gpu.items()},
        )

    def run(self, minutes: float, **gpu: Any) -> Iterator[Decision]:
        for _ in range(round(minutes * 60 / PERIOD_S)):
            self.now_s += PERIOD_S
            decision, self.state = decide(self.policy, self.look(**gpu), self.state, self.now_s)
            if decision.replicas is not None and decision.replicas != self.workers:
                self.state = written(self.state, replicas=decision.replicas, now_s=self.now_s)
                self.workers, self.since_s = decision.replicas, self.now_s
            yield decision

    def after(self, minutes: float, **gpu: Any) -> Decision:
        *_, last = self.run(minutes, **gpu)
        return last


def efficiency(job: Job, workers: int) -> float:
    return job.speed(workers) / workers / job.speed(1)


class TestAdds:
    @pytest.mark.parametrize("percent", [50, 60, 75, 90])
    def test_as_many_as_bring_enough_and_no_more(self, percent: int) -> None:
        job = Job(a_job_policy(percent))
        counts = [decision.replicas for decision in job.run(120)]
        most = max(count for count in range(1, 33) if efficiency(job, count) >= percent / 100)
        assert job.workers == most
        assert max(count for count in counts if count is not None) <= most + 1
        assert len(set(counts[-240:])) == 1

    def test_it_says_why_it_stops(self) -> None:
        job = Job(a_job_policy(75))
        decision = job.after(120)
        assert decision.reason is Reason.LOW_EFFICIENCY
        assert decision.limit is not None
        assert decision.limit.reason is LimitReason.LOW_EFFICIENCY
        assert "parallelEfficiencyPercent asks for 75%" in decision.message

    def test_without_the_constraint_it_goes_on(self) -> None:
        assert Job(a_job_policy(None)).after(120).replicas == 32

    def test_enough_is_enough(self) -> None:
        job = Job(a_job_policy(50, goal=replace(GOAL, min_per_s=250.0)))
        decision = job.after(120)
        assert 250 <= amdahl(job.workers) < 400
        assert (decision.reason, decision.metrics.state) == (Reason.NO_CHANGE, MetricsState.USABLE)
        assert "of a training job" in decision.message

    def test_what_exceeds_the_promise_is_let_go_and_stays_away(self) -> None:
        job = Job(a_job_policy(None, goal=replace(GOAL, min_per_s=250.0)), workers=16)
        decisions = list(job.run(120))
        counts = [one.replicas for one in decisions]
        assert job.workers == 4  # 5 percent to spare: 3 workers do 259/s
        assert 250 <= amdahl(3) < 1.05 * 250 <= amdahl(4)
        assert counts == sorted(counts, key=lambda count: -(count or 0))
        told = next(one for one in decisions if one.replicas != 16)
        assert told.reason is Reason.DEMAND_FELL
        assert "727 samples/s, the objective is at least 250/s" in told.message

    def test_each_count_is_measured_before_the_next(self) -> None:
        job = Job(a_job_policy(50))
        moves: list[tuple[float, int]] = []
        for decision in job.run(60):
            if decision.replicas is not None and (not moves or moves[-1][1] != decision.replicas):
                moves.append((job.now_s, decision.replicas))
        assert len(moves) > 3
        assert all(later - earlier >= 120 for (earlier, _), (later, _) in pairwise(moves[1:]))
        assert all(more <= 2 * count for (_, count), (_, more) in pairwise(moves))

    def test_what_was_seen_is_no_reason_to_try_again_within_a_day(self) -> None:
        job = Job(a_job_policy(75))
        job.after(120)
        settled = job.workers
        assert {decision.replicas for decision in job.run(6 * 60)} == {settled}


class TestLetsGo:
    def test_one_after_another_while_each_does_too_little(self) -> None:
        job = Job(a_job_policy(50))
        job.after(120)
        before = job.workers
        job.policy = a_job_policy(75)
        decisions = list(job.run(240))
        assert before > 5
        assert job.workers == 5
        steps = [one.replicas for one in decisions if one.reason is Reason.LOW_EFFICIENCY and "->" in one.message]
        assert steps == list(range(before - 1, 4, -1))

    def test_not_for_a_moment(self) -> None:
        job = Job(a_job_policy(70))
        job.after(120)
        before = job.workers
        job.speed = lambda workers: 0.8 * amdahl(workers)
        job.after(5)
        job.speed = amdahl
        assert job.after(60).replicas == before

    def test_not_below_min(self) -> None:
        job = Job(a_job_policy(50, replicas=(4, 32)), workers=4)
        job.after(60)
        job.policy = a_job_policy(99, replicas=(4, 32))
        assert job.after(240).replicas == 4

    def test_missing_data_lets_nobody_go(self) -> None:
        job = Job(a_job_policy(50))
        job.after(120)
        before = job.workers
        job.policy = a_job_policy(90)
        for _ in range(240):
            job.now_s += PERIOD_S
            seen = job.look()
            told = dict(list(seen.by_pod[Signal.SAMPLES].items())[1:])
            decision, job.state = decide(
                job.policy, replace(seen, by_pod={**seen.by_pod, Signal.SAMPLES: told}), job.state, job.now_s
            )
            assert decision.replicas == before


def test_another_template_is_measured_anew() -> None:
    job = Job(a_job_policy(75))
    for revision in ("a", "b"):
        for _ in range(40):
            job.now_s += PERIOD_S
            seen = job.look()
            seen = replace(seen, pods=tuple(replace(pod, revision=revision) for pod in seen.pods))
            _, job.state = decide(job.policy, seen, job.state, job.now_s)
        assert job.state.workers.revision == revision
        assert len(job.state.workers.seen) == 1
        job.workers = 4


class TestStarved:
    @pytest.mark.parametrize(
        ("data", "named"),
        [({"disk_read": 3e8, "disk_written": 0.0}, "Storage"), ({"network_received": 3e8}, "Network")],
    )
    def test_workers_that_wait_for_data_are_named_and_get_no_more(self, data: dict[str, float], named: str) -> None:
        gpu = {"gr_engine_active": 0.3, "tensor_active": 0.1, "dram_active": 0.1, "sm_active": 0.2, **data}
        job = Job(a_job_policy(None), workers=2)
        decision = job.after(30, **gpu)
        assert (decision.replicas, decision.reason) == (2, Reason.MORE_WOULD_NOT_HELP)
        assert f"the workers wait for their data ({named}" in decision.message
        assert decision.quality is not None
        assert decision.quality.bottleneck is not None
        assert decision.quality.bottleneck.component.value.startswith(named)

    def test_workers_that_do_not_wait_get_more(self) -> None:
        gpu = {"gr_engine_active": 0.95, "tensor_active": 0.6, "dram_active": 0.5, "sm_active": 0.9}
        assert (Job(a_job_policy(None), workers=2).after(30, **gpu).replicas or 0) > 2


@pytest.mark.parametrize(("percent", "most"), [(None, 16), (75, 5)])
def test_a_batch_job_with_a_queue_is_measured_too(percent: int | None, most: int) -> None:
    """Inference over a backlog: requests are told, and 500 of them always wait."""
    policy = a_job_policy(percent, goal=None, replicas=(1, 16))
    job = Job(policy, label=None)
    for _ in range(480):
        job.now_s += PERIOD_S
        seen = a_snapshot(
            ready=job.look().pods,
            running=64.0 * job.workers,
            waiting=500.0,
            requests_finished=amdahl(job.workers),
            target=a_target(job.workers),
        )
        decision, job.state = decide(policy, seen, job.state, job.now_s)
        if decision.replicas is not None and decision.replicas != job.workers:
            job.state = written(job.state, replicas=decision.replicas, now_s=job.now_s)
            job.workers, job.since_s = decision.replicas, job.now_s
    assert job.workers == most


def test_ranks_of_a_served_model_are_not_taken_for_one() -> None:
    """They tell tokens, not samples: that no queue is seen does not say that there is one."""
    job = Job(a_job_policy(75, goal=replace(GOAL, signal=Signal.GENERATION_TOKENS)), workers=2)
    for _ in range(40):
        job.now_s += PERIOD_S
        seen = job.look()
        seen = replace(seen, by_pod={Signal.GENERATION_TOKENS: seen.by_pod[Signal.SAMPLES]})
        decision, job.state = decide(job.policy, seen, job.state, job.now_s)
        assert decision.replicas == 2


def test_pods_of_no_job_without_a_queue_are_not_taken_for_one() -> None:
    job = Job(a_job_policy(75), workers=2, label=None)
    decision = job.after(30)
    assert decision.replicas == 2
    assert decision.metrics.state is not MetricsState.USABLE


@given(
    st.lists(st.floats(0, 5000), min_size=1, max_size=12),
    st.integers(1, 100),
    st.integers(1, 8),
)
def test_bounds_hold_and_no_worker_is_added_below_what_was_asked_for(
    speeds: list[float], percent: int, workers: int
) -> None:
    job = Job(a_job_policy(percent, replicas=(1, 8)), workers=workers)
    for speed in speeds:
        job.speed = lambda workers, speed=speed: speed  # type: ignore[misc]
        before = job.workers
        for decision in job.run(3):
            assert decision.replicas is not None
            assert 1 <= decision.replicas <= 8
            memory = {one.replicas: one.throughput / one.replicas for one in job.state.workers.seen}
            if decision.replicas > before and before in memory:
                assert memory[before] >= (percent / 100 - SPARE) * memory[min(memory)]
            before = decision.replicas


def test_a_reading_of_the_workload_as_a_whole_will_do() -> None:
    job = Job(a_job_policy(75), workers=1)
    for _ in range(480):
        job.now_s += PERIOD_S
        seen = job.look()
        whole = {Signal.SAMPLES: Reading(job.speed(job.workers), 5.0)}
        decision, job.state = decide(job.policy, replace(seen, by_pod={}, totals=whole), job.state, job.now_s)
        if decision.replicas is not None and decision.replicas != job.workers:
            job.state = written(job.state, replicas=decision.replicas, now_s=job.now_s)
            job.workers, job.since_s = decision.replicas, job.now_s
    assert job.workers == 5
