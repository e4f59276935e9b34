"""Power bounds the batch cap: how far it goes down, when it comes back, and what is said where it is not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.reasons import PowerState, Reason
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import GPUs, PodState, Reading, Rollout, Snapshot
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import Decision, PowerVerdict
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.policy import BatchControl, CostClass, Policy
from bandkeeper.decide.power import BROKEN_MEMORY_S, LEAST_SPARE
from bandkeeper.decide.state import State
from tests.unit.builders import a_batch, a_pod, a_policy, a_snapshot, a_target

SIZES = (4, 8, 12, 16, 24, 32, 48, 64)
LIMIT = 60.0
PERIOD_S = 15.0
Watts = Callable[[float], float]


def box(batch: float) -> float:
    """30 W at rest and 90 W at most; 60 W at a batch of 12."""
    return 30 + 60 * batch / (batch + 12)


def a_box_policy(limit: float | None = LIMIT, **more: Any) -> Policy:
    fields: dict[str, Any] = {"batch": a_batch(SIZES), "replicas": (1, 8), **more}
    return a_policy(Objective.THROUGHPUT_SENSITIVE, power_watts=limit, **fields)


@dataclass
class Box:
    """Pods that are offered so many requests each, and draw `watts` of their batch."""

    policy: Policy
    watts: Watts = box
    cap: int = 64
    count: int = 2
    applies: bool = True
    rollout: Rollout | None = None

    def __post_init__(self) -> None:
        self.state, self.now_s = State.initial(0.0), 0.0

    def look(self, offered: float, *, known: int | None = None, age_s: float = 5.0, **more: Any) -> Snapshot:
        """What is seen while each pod is offered so many requests, with the power of the first `known` pods."""
        pods = tuple(a_pod(f"chat-{number}", cap=self.cap) for number in range(self.count))
        batch = min(offered, self.cap)
        seen = a_snapshot(
            ready=pods,
            running=batch * self.count,
            waiting=(offered - batch) * self.count,
            requests_finished=0.5 * batch * self.count,
            target=a_target(self.count, rollout=self.rollout),
            **more,
        )
        power = {pod.name: Reading(self.watts(batch), age_s) for pod in pods[:known]}
        return replace(seen, by_pod={**seen.by_pod, **({Signal.POWER: power} if power else {})})

    def run(self, offered: float, minutes: float, **look: Any) -> Iterator[Decision]:
        """One decision after another, carried out."""
        for _ in range(round(minutes * 60 / PERIOD_S)):
            self.now_s += PERIOD_S
            decision, self.state = decide(self.policy, self.look(offered, **look), self.state, self.now_s)
            if decision.cap is not None and decision.cap != self.cap and self.applies:
                self.cap = decision.cap
                self.state = written(self.state, cap=self.cap, now_s=self.now_s)
            yield decision

    def after(self, offered: float, minutes: float, **look: Any) -> Decision:
        *_, last = self.run(offered, minutes, **look)
        return last


def verdict(decision: Decision) -> PowerVerdict:
    assert decision.power is not None
    return decision.power


class TestLowers:
    def test_to_the_largest_cap_that_fits_and_stays_there(self) -> None:
        sim = Box(a_box_policy())
        caps = [decision.cap for decision in sim.run(100, 60)]
        assert caps[-1] == 8  # 12 would draw the whole limit, and a margin is kept
        assert box(8) <= (1 - LEAST_SPARE) * LIMIT < box(12)
        assert len(set(caps[40:])) == 1

    def test_at_once_after_one_window_and_by_several_sizes(self) -> None:
        sim = Box(a_box_policy())
        first = next(decision for decision in sim.run(100, 3) if decision.cap != 64)
        assert sim.now_s <= 60
        assert first.cap is not None
        assert first.cap <= 24
        why = "a GPU draws 80.53 W, constraints.powerWattsPerGPU allows 60 W"
        assert first.message.startswith(f"Batch cap 64 -> {first.cap}: {why}. Replicas 2 -> ")

    def test_it_is_the_reason_where_no_replica_comes(self) -> None:
        sim = Box(a_box_policy(replicas=(1, 2)))
        assert next(one.reason for one in sim.run(100, 3) if one.cap != 64) is Reason.POWER_LIMIT

    def test_also_while_work_waits_which_no_promise_does(self) -> None:
        """A queue never lowers a cap, a power limit does: replicas take over what one of them cannot do any more."""
        sim = Box(a_box_policy())
        decision = sim.after(100, 30)
        assert decision.cap == 8
        assert decision.inputs.best_cap == 8
        assert decision.replicas is not None
        assert decision.replicas > sim.count

    def test_replicas_are_counted_at_the_cap_that_power_allows(self) -> None:
        free, bound = Box(a_box_policy(None)), Box(a_box_policy())
        assert (free.after(30, 30).inputs.best_cap, bound.after(30, 30).inputs.best_cap) == (64, 8)

    def test_a_cap_that_is_not_in_force_yet_is_waited_for(self) -> None:
        """Recommend mode, an adapter that is slow: power at the old cap says nothing against the new one."""
        sim = Box(a_box_policy(acts=False), applies=False)
        caps = {verdict(decision).ceiling for decision in sim.run(100, 30)}
        assert len(caps) == 2

    def test_without_batches_that_are_told_one_size_at_a_time(self) -> None:
        sim = Box(a_box_policy())
        sizes = list(dict.fromkeys(verdict(one).ceiling for one in sim.run(100, 60, silent=("chat-0", "chat-1"))))
        assert sizes == [64, 48, 32, 24, 16, 12]

    @pytest.mark.parametrize("gpus", [1, 4])
    def test_it_is_power_of_each_gpu(self, gpus: int) -> None:
        sim = Box(a_box_policy(), watts=lambda batch: 4 * box(batch))
        for _ in range(120):
            seen = sim.look(100)
            seen = replace(seen, gpus={pod.name: GPUs(count=gpus) for pod in seen.pods})
            sim.now_s += PERIOD_S
            decision, sim.state = decide(sim.policy, seen, sim.state, sim.now_s)
            sim.cap = decision.cap or sim.cap
        assert sim.cap == (8 if gpus == 4 else 4)


class TestUnreachable:
    def test_says_the_best_that_can_be_reached_and_what_helps(self) -> None:
        sim = Box(a_box_policy(40.0))
        decision = sim.after(100, 30)
        power = verdict(decision)
        assert decision.cap == 4
        assert (power.state, power.ceiling) == (PowerState.UNREACHABLE, 4)
        assert power.watts == pytest.approx(box(4))
        assert power.message.startswith("A GPU draws 45 W at the smallest batch cap, 4: constraints.powerWattsPerGPU")
        for advice in ("--lock-gpu-clocks", "--power-limit", "smaller model"):
            assert advice in power.message
        assert len(power.message) <= 256

    def test_comes_back_when_a_person_lowered_the_clocks(self) -> None:
        sim = Box(a_box_policy(40.0))
        sim.after(100, 10)
        sim.watts = lambda batch: 0.5 * box(batch)
        decision = sim.after(100, BROKEN_MEMORY_S / 60 + 30)
        assert verdict(decision).state is PowerState.WITHIN
        assert (decision.cap or 0) >= 32  # draws 36.8 W; 64 would draw 40.3


class TestRaises:
    def test_as_far_as_is_predicted_and_no_farther(self) -> None:
        sim = Box(a_box_policy(75.0), cap=4)
        above = [decision for decision in sim.run(100, 90) if verdict(decision).state is PowerState.ABOVE]
        assert sim.cap == 32  # 48 would draw 78 W
        assert not above

    def test_not_beyond_the_reach_of_what_is_seen(self) -> None:
        """Two requests in each pod do not tell what sixty-four would draw."""
        sim = Box(a_box_policy(), cap=8)
        assert verdict(sim.after(2, 60)).ceiling == 8

    def test_not_back_to_where_it_broke(self) -> None:
        """A shape that deceives: 24 draws far more than what 4 to 16 let think."""
        sim = Box(a_box_policy(), cap=16, watts=lambda batch: 70.0 if batch > 16 else 40 + 0.1 * batch)
        tries = [sim.now_s for one in sim.run(100, 120) if verdict(one).state is PowerState.ABOVE]
        assert tries
        begins = [at_s for at_s, before in zip(tries[1:], tries, strict=False) if at_s - before > PERIOD_S]
        assert len(begins) <= 120 * 60 / BROKEN_MEMORY_S
        assert sim.cap == 16

    def test_full_batches_that_would_draw_too_much_are_not_waited_for(self) -> None:
        """It was seen what batches draw; in the morning they are small, and the cap is lowered before they are not."""
        sim = Box(a_box_policy(75.0), cap=4)
        sim.after(100, 60)
        assert sim.cap == 32
        sim.watts = lambda batch: 1.15 * box(batch)
        decisions = list(sim.run(16, 30))
        assert all(verdict(one).state is PowerState.WITHIN for one in decisions)
        assert (decisions[-1].cap or 64) <= 24
        assert "at full batches" in next(one.message for one in decisions if one.cap != 32)


class TestNoise:
    @pytest.mark.parametrize("limit", [52, 60, 67, 75])
    def test_noisy_meters_do_not_make_it_swing(self, limit: int) -> None:
        """Readings that vary by 3 percent, as board power does from one second to the next."""
        noise = np.random.default_rng(limit)
        sim = Box(a_box_policy(float(limit)))
        sim.watts = lambda batch: box(batch) * (1 + 0.03 * float(noise.standard_normal()))
        sim.after(100, 20)
        before, moves, above, looks = sim.cap, 0, 0, 0
        for _ in sim.run(100, 120):
            moves += sim.cap != before
            before = sim.cap
            above += box(sim.cap) > limit
            looks += 1
        assert moves <= 4 * 2  # an hour
        assert above < 0.05 * looks
        best = max(size for size in SIZES if box(size) <= limit)
        assert sim.cap >= SIZES[max(0, SIZES.index(best) - 1)]


class TestMissing:
    @pytest.mark.parametrize("look", [{"known": 0}, {"age_s": 200.0}], ids=["missing", "stale"])
    def test_nothing_moves_and_it_is_said(self, look: dict[str, Any]) -> None:
        sim = Box(a_box_policy(), cap=32)
        decision = sim.after(100, 30, **look)
        assert (decision.cap, verdict(decision).state) == (32, PowerState.NO_DATA)
        assert verdict(decision).watts is None
        assert "DCGM_FI_DEV_POWER_USAGE" in verdict(decision).message

    def test_what_was_learned_stays_in_force(self) -> None:
        sim = Box(a_box_policy())
        sim.after(100, 30)
        decision = sim.after(100, 30, known=0)
        assert (decision.cap, verdict(decision).ceiling) == (8, 8)
        assert verdict(decision).state is PowerState.NO_DATA

    def test_a_pod_that_does_not_tell_forbids_to_raise(self) -> None:
        sim = Box(a_box_policy(75.0), cap=8)
        assert sim.after(100, 30, known=1).cap == 8
        assert (sim.after(100, 30).cap or 0) > 8

    def test_one_pod_above_the_limit_is_enough(self) -> None:
        sim = Box(a_box_policy(), cap=64)
        assert (sim.after(100, 30, known=1).cap or 64) < 16

    def test_a_figure_of_0_is_none(self) -> None:
        sim = Box(a_box_policy(75.0), cap=8, watts=lambda batch: 0.0)
        decision = sim.after(100, 30)
        assert (decision.cap, verdict(decision).state) == (8, PowerState.NO_DATA)

    def test_a_single_scrape_is_no_window(self) -> None:
        sim = Box(a_box_policy())
        decision = next(sim.run(100, 1))
        assert verdict(decision).state is PowerState.NO_DATA
        assert "awaited" in verdict(decision).message

    def test_no_ready_pod(self) -> None:
        seen = a_snapshot(ready=(), others=(a_pod(state=PodState.PENDING),), replicas=1)
        decision, _ = decide(a_box_policy(), seen, State.initial(0.0), 15.0)
        assert verdict(decision).message == "No pod is ready, so there is no power to measure."

    def test_without_an_adapter_it_is_measured_and_said(self) -> None:
        sim = Box(a_box_policy(batch=None))
        decision = sim.after(100, 5)
        assert (decision.cap, verdict(decision).state) == (None, PowerState.ABOVE)
        assert "see the condition BatchApplied" in verdict(decision).message

    def test_power_of_the_whole_workload(self) -> None:
        sim = Box(a_box_policy())
        for _ in range(80):
            seen = sim.look(100, known=0)
            seen = replace(seen, totals={Signal.POWER: Reading(2 * box(min(100, sim.cap)), 5.0)})
            sim.now_s += PERIOD_S
            decision, sim.state = decide(sim.policy, seen, sim.state, sim.now_s)
            sim.cap = decision.cap or sim.cap
        assert sim.cap == 8


class TestRollouts:
    def control(self) -> BatchControl:
        return a_batch(SIZES, cost_class=CostClass.ROLLOUT, delay_s=60.0)

    def test_a_backlog_does_not_put_off_the_rollout(self) -> None:
        sim = Box(a_box_policy(batch=self.control()))
        caps = list(dict.fromkeys(decision.cap for decision in sim.run(100, 60)))
        assert caps[-1] == 8
        assert len(caps) <= 4

    def test_one_that_failed_is_not_begun_again_at_once(self) -> None:
        sim = Box(a_box_policy(batch=self.control()))
        first = next(decision.cap for decision in sim.run(100, 10) if decision.cap != 64)
        sim.rollout = Rollout(ours=True, deadline_exceeded=True, cap=first, previous_cap=64)
        assert next(sim.run(100, 1)).rollback
        sim.rollout, failed_s = None, sim.now_s
        assert sim.cap == 64
        again_s = next(sim.now_s for decision in sim.run(100, 60) if decision.cap != 64)
        assert again_s - failed_s >= 1000.0  # ten cold starts

    def test_one_that_is_on_its_way_does(self) -> None:
        sim = Box(a_box_policy(batch=self.control()), rollout=Rollout())
        assert sim.after(100, 30).cap == 64


@given(
    st.lists(st.tuples(st.floats(0, 200), st.sampled_from([None, 0, 1]), st.floats(0.5, 1.5)), min_size=1, max_size=40),
    st.integers(31, 95),
    st.sampled_from(SIZES),
)
def test_never_outside_the_bounds_and_never_up_while_above(
    looks: list[tuple[float, int | None, float]], limit: int, cap: int
) -> None:
    sim = Box(a_box_policy(float(limit)), cap=cap)
    for offered, known, factor in looks:
        sim.watts = lambda batch, factor=factor: factor * box(batch)  # type: ignore[misc]
        before = sim.cap
        for decision in sim.run(offered, 0.5, known=known):
            assert decision.cap in SIZES
            power = verdict(decision)
            assert power.ceiling is not None
            assert decision.cap <= max(power.ceiling, SIZES[0])
            if power.state in (PowerState.ABOVE, PowerState.UNREACHABLE) and known != 0:
                assert decision.cap <= before
            before = decision.cap


def test_without_a_limit_nothing_of_it_is_remembered() -> None:
    sim = Box(a_box_policy(None))
    decision = sim.after(100, 5)
    assert decision.power is None
    assert sim.state.power == State.initial(0.0).power
