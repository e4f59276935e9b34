"""Which signal moves the batch cap, how far, and what keeps it where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from bandkeeper.api.reasons import Reason
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Pod, PodState, Rollout, Snapshot
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.knob import best_cap, is_batch_first
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Batching, CostClass, Policy
from bandkeeper.decide.state import CapMemory, CapRate, ModelMemory, State
from bandkeeper.model.batches import NO_BATCHES, BatchTimes
from bandkeeper.model.steps import NO_STEPS, StepFit
from tests.unit.builders import E2E, ITL, TTFT, a_batch, a_distribution, a_pod, a_policy, a_snapshot, a_target
from tests.unit.tiny_fleet import Fleet, Server, play

SIZES = (8, 16, 24, 32, 48, 64)
POLICY = a_policy(slos=[TTFT, ITL], batch=a_batch(SIZES))
GOOD_TTFT = a_distribution({0.1: 500, 0.5: 1}, mean_s=0.05)
BAD_TTFT = a_distribution({0.5: 100, 1.0: 400}, mean_s=0.8)
FAST = a_distribution({0.02: 50_000, 0.05: 10}, mean_s=0.018)
SLOW = a_distribution({0.05: 0, 0.06: 50_000}, mean_s=0.055)
STALLS = a_distribution({0.02: 45_000, 0.05: 0, 0.3: 5_000}, mean_s=0.025)


def capped(cap: int | None, count: int = 4, **more: Any) -> tuple[Pod, ...]:
    return tuple(a_pod(f"chat-{index}", cap=cap, **more) for index in range(count))


def look(
    *, cap: int | None = 64, ttft: Distribution = GOOD_TTFT, itl: Distribution = FAST, count: int = 4, **more: Any
) -> Snapshot:
    fields: dict[str, Any] = {
        "ready": capped(cap, count),
        "running": 100.0,
        "requests_finished": 30.0,
        "requests_rejected": 0.0,
        "distributions": {Signal.TIME_TO_FIRST_TOKEN: ttft, Signal.INTER_TOKEN_LATENCY: itl},
    }
    return a_snapshot(**{**fields, **more})


def settle(policy: Policy, snapshot: Snapshot, ticks: int = 12) -> State:
    """The state after three minutes of one picture, the cap as it is in the pods and at rest for long."""
    state = State.initial(0.0)
    for tick in range(ticks):
        _, state = decide(policy, snapshot, state, 15.0 * tick)
    caps = [pod.cap or pod.capacity for pod in snapshot.pods if pod.cap or pod.capacity]
    return replace(state, cap=CapMemory(wanted=min(cap for cap in caps if cap), confirmed=True) if caps else state.cap)


def then(policy: Policy, before: Snapshot, now: Snapshot) -> Decision:
    return decide(policy, now, settle(policy, before), 180.0)[0]


class TestQueue:
    @pytest.mark.parametrize(
        ("rates", "want"),
        [
            ({}, 64),  # straight to the best
            ({"kv_cache_utilization": 4 * 0.4}, 32),  # full batches of 48 would need .4 x 48/16 of the cache
            ({"kv_cache_utilization": 4 * 0.95}, 16),
        ],
    )
    def test_raises_as_far_as_memory_allows(self, rates: dict[str, Any], want: int) -> None:
        calm, queue = look(cap=16, running=40), look(cap=16, running=64, waiting=100, **rates)
        decision = then(POLICY, calm, queue)
        assert decision.cap == want
        if want > 16:
            assert decision.message.startswith(f"Batch cap 16 -> {want}: 100 requests wait")

    def test_raises_as_far_as_the_latency_between_tokens_allows(self) -> None:
        edge = a_distribution({0.035: 50_000, 0.05: 10}, mean_s=0.03)
        decision = then(POLICY, look(cap=16, running=40), look(cap=16, running=64, waiting=100, itl=edge))
        assert decision.cap == 32

    def test_never_lowers_even_when_both_promises_break(self) -> None:
        decision = then(POLICY, look(), look(running=256, waiting=300, ttft=BAD_TTFT, itl=SLOW))
        assert decision.cap == 64
        assert decision.emergency
        assert decision.replicas is not None
        assert decision.replicas > 4

    def test_late_first_tokens_alone_do_not_lower_either(self) -> None:
        decision = then(POLICY, look(), look(running=100, ttft=BAD_TTFT, itl=SLOW))
        assert decision.cap == 64

    def test_a_cap_that_does_not_bind_is_left(self) -> None:
        decision = then(POLICY, look(cap=32, running=20), look(cap=32, running=20, waiting=0, ttft=BAD_TTFT))
        assert decision.cap == 32

    def test_is_sized_at_the_best_cap(self) -> None:
        """Batches of 8 in 4 replicas that could hold 64: no replica is missing."""
        calm, queue = look(cap=8, running=20), look(cap=8, running=32, waiting=60)
        decision = then(POLICY, calm, queue)
        assert decision.inputs.best_cap == 64
        assert (decision.cap, decision.replicas) == (64, 4)


class TestLatencyBetweenTokens:
    def test_lowers_in_proportion(self) -> None:
        decision = then(POLICY, look(), look(itl=SLOW))
        assert decision.cap == 32
        assert decision.reason is Reason.CAP_LOWERED
        assert decision.message.startswith(
            "Batch cap 64 -> 32: p95 inter-token latency 59.5ms is over the 50ms objective;"
        )
        assert "adding replicas takes 100s" in decision.message

    def test_replicas_wait_for_what_the_cap_does(self) -> None:
        state = settle(POLICY, look())
        decision, state = decide(POLICY, look(itl=SLOW), state, 180.0)
        state = written(state, cap=32, now_s=180.0)
        decision, state = decide(POLICY, look(itl=SLOW, cap=32), state, 195.0)
        assert decision.replicas == 4
        decision, state = decide(POLICY, look(itl=SLOW, cap=32), state, 250.0)
        assert decision.replicas is not None
        assert decision.cap == 32
        assert decision.replicas > 4  # smaller would not carry the work

    def test_moves_rest_for_the_delay_and_a_window(self) -> None:
        state, moves, cap = settle(POLICY, look(running=64)), [], 64
        for tick in range(20):
            now_s = 180.0 + 15 * tick
            decision, state = decide(POLICY, look(itl=SLOW, running=64, cap=cap), state, now_s)
            if decision.cap != cap and decision.cap is not None:
                cap = decision.cap
                state = written(state, cap=cap, now_s=now_s)
                moves.append(now_s)
        assert moves[:2] == [180.0, 255.0]  # 5 s and 60 s, at the next tick

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"requests_rejected": None}, "the queue has no bound"),
            ({"itl": STALLS}, "prefill stalls: the mean is far below the threshold"),
            ({"running": 12.0}, "batches of 3 are not what is slow"),
            ({"running": 230.0}, "a smaller cap would not carry the work"),
            ({"ready": capped(8), "running": 30.0}, "it is the smallest"),
        ],
    )
    def test_is_not_lowered_where_that_would_not_help(self, change: dict[str, Any], why: str) -> None:
        before = look(**{key: value for key, value in change.items() if key != "itl"})
        decision = then(POLICY, before, look(**{"itl": SLOW, **change}))
        assert decision.cap == min(pod.cap or 64 for pod in before.pods), why

    @pytest.mark.parametrize(
        ("step_s", "observations", "want"),
        [
            (0.015, 10.0, 64),  # full batches take 41 ms a step without a prompt: prompts break the promise
            (0.015, 2.0, 32),  # so far that is a guess
            (0.024, 10.0, 48),  # 50 ms: the batch does
        ],
    )
    def test_is_left_where_prompts_and_not_steps_take_the_time(
        self, step_s: float, observations: float, want: int
    ) -> None:
        state = settle(POLICY, look())
        fit = StepFit((step_s, 0.0004, 0.0001), SURE, observations=observations)
        decision, _ = decide(POLICY, look(itl=SLOW), replace(state, model=replace(state.model, steps=fit)), 180.0)
        assert decision.cap == want

    def test_a_known_bound_will_do(self) -> None:
        ready = capped(64, queue_bound=10)
        decision = then(
            POLICY, look(requests_rejected=None, ready=ready), look(requests_rejected=None, ready=ready, itl=SLOW)
        )
        assert decision.cap == 32

    def test_a_short_bounded_queue_may_take_what_the_cap_does_not_carry(self) -> None:
        ready = capped(64, queue_bound=2)
        before = look(running=220, requests_finished=60.0, ready=ready)
        decision = then(POLICY, before, look(running=220, requests_finished=60.0, ready=ready, itl=SLOW))
        assert decision.cap == 48

    def test_a_cap_at_which_work_queued_is_not_gone_back_to(self) -> None:
        state = settle(POLICY, look(cap=32))
        decision, state = decide(POLICY, look(cap=32, running=128, waiting=60), state, 180.0)
        assert decision.cap == 64
        state, cap = written(state, cap=64, now_s=180.0), 64
        for tick in range(1, 30):
            decision, state = decide(POLICY, look(cap=cap, itl=SLOW), state, 180.0 + 15 * tick)
            cap = decision.cap or cap
        assert cap == 48

    def test_end_to_end_without_a_queue_counts_as_steps(self) -> None:
        policy = replace(POLICY, slos=(E2E,))
        before = a_snapshot(
            ready=capped(64), running=100, requests_rejected=0.0, distributions={E2E.signal: a_distribution({0.1: 500})}
        )
        slow = a_snapshot(
            ready=capped(64),
            running=100,
            requests_rejected=0.0,
            distributions={E2E.signal: a_distribution({0.1: 0, 0.12: 500})},
        )
        assert then(policy, before, slow).cap == 32


class TestReturn:
    def test_comes_back_step_by_step_where_latency_leaves_room(self) -> None:
        decision = then(POLICY, look(cap=24, running=60), look(cap=24, running=60))
        assert decision.cap == 32
        assert decision.reason is Reason.CAP_RAISED

    @pytest.mark.parametrize(
        "change",
        [
            {"itl": a_distribution({0.048: 50_000}, mean_s=0.045)},
            {"kv_cache_utilization": 4 * 0.85},
            {"preemptions": 3.0, "running": 96.0},
        ],
        ids=["latency", "memory", "preemptions"],
    )
    def test_stays_where_there_is_none(self, change: dict[str, Any]) -> None:
        seen = look(**{"cap": 24, "running": 60, **change})
        assert then(POLICY, seen, seen).cap == 24

    def test_not_to_a_cap_that_broke_a_promise(self) -> None:
        state = settle(POLICY, look())
        _, state = decide(POLICY, look(itl=SLOW), state, 180.0)
        state = written(state, cap=32, now_s=180.0)
        cap, wanted = 32, set()
        for tick in range(1, 60):
            decision, state = decide(POLICY, look(cap=cap), state, 180.0 + 15 * tick)
            cap = decision.cap or cap
            wanted.add(cap)
        assert wanted == {32, 48}


class TestMemory:
    def test_preemptions_lower_it_to_what_ran(self) -> None:
        decision = then(POLICY, look(running=140), look(running=140, preemptions=1.0))
        assert decision.cap == 32
        assert decision.reason is Reason.PREEMPTIONS
        assert "3% of requests are preempted" in decision.message

    @pytest.mark.parametrize("preemptions", [0.0, 0.2])
    def test_a_few_do_not(self, preemptions: float) -> None:
        assert then(POLICY, look(running=140), look(running=140, preemptions=preemptions)).cap == 64


class TestReadBack:
    def test_without_a_knob_there_is_no_cap(self) -> None:
        decision = then(a_policy(), look(), look())
        assert decision.cap is None

    def test_nothing_is_said_before_a_cap_was_read(self) -> None:
        ready = tuple(replace(pod, cap=None, capacity=None) for pod in capped(64))
        assert then(POLICY, look(ready=ready), look(ready=ready)).cap is None

    def test_never_above_what_the_servers_booted_with(self) -> None:
        ready = capped(32, capacity=40)
        decision = then(POLICY, look(ready=ready), look(ready=ready, running=128, waiting=100))
        assert decision.inputs.best_cap == 32
        assert decision.cap == 32
        tiny = capped(4, capacity=4)
        assert then(POLICY, look(ready=tiny, running=4), look(ready=tiny, running=4)).inputs.best_cap == 4

    def test_new_pods_at_their_boot_cap_keep_it_from_moving(self) -> None:
        state = settle(POLICY, look(cap=32, running=40))
        mixed = look(ready=(*capped(32, 3), a_pod("new", cap=64)), itl=SLOW, running=100)
        decision, _ = decide(POLICY, mixed, state, 180.0)
        assert decision.cap == 32

    def test_somebody_s_rollout_is_the_new_start_and_three_undos_stop_the_knob(self) -> None:
        policy = replace(POLICY, batch=a_batch(SIZES, cost_class=CostClass.ROLLOUT, delay_s=0.0))
        state, now_s = settle(policy, look(cap=32, running=120)), 180.0
        wanted = state.cap.wanted
        for _ in range(3):
            before = wanted
            state = replace(state, cap=replace(state.cap, wanted=64, before=before, confirmed=True))
            decision, state = decide(policy, look(cap=before, running=120), state, now_s)
            assert state.cap.wanted == before
            now_s += 15
        assert decision.cap is None
        assert decision.cap_undone_by == "another manager of the pod template"
        assert "undid the batch cap three times" in decision.message

    def test_what_a_person_rolls_out_pod_by_pod_is_the_new_start(self) -> None:
        policy = replace(POLICY, batch=a_batch(SIZES, cost_class=CostClass.ROLLOUT, delay_s=0.0))
        state = settle(policy, look(cap=32, running=60))
        rolling = a_target(4, manager="kubectl", rollout=Rollout())
        for tick, count in enumerate((3, 2, 1)):
            pods = (*capped(32, count), *(a_pod(f"new-{index}", cap=48) for index in range(4 - count)))
            decision, state = decide(policy, look(ready=pods, running=60, target=rolling), state, 180.0 + 15 * tick)
            assert decision.cap == 32
        decision, state = decide(policy, look(cap=48, running=60), state, 240.0)
        assert decision.cap == 48
        assert not state.cap.undos

    def test_a_write_that_is_not_wanted_any_more_is_ignored(self) -> None:
        state = settle(POLICY, look())
        assert written(state, cap=8, now_s=200.0).cap == state.cap


class TestRollout:
    """A rollout costs each pod a cold start, so it has to spare replicas, or mend a promise."""

    rolled = replace(POLICY, batch=a_batch(SIZES, cost_class=CostClass.ROLLOUT, delay_s=60.0))

    @pytest.mark.parametrize(
        ("count", "running", "least", "want"),
        [
            (4, 120.0, 1, 64),  # full batches of 32 in four replicas are the work of three at 64
            (1, 20.0, 1, 32),  # one replica is needed in any case
            (4, 120.0, 4, 32),  # and so are those that the policy asks for
        ],
    )
    def test_is_begun_where_it_spares_replicas(self, count: int, running: float, least: int, want: int) -> None:
        seen = look(cap=32, count=count, running=running)
        assert then(replace(self.rolled, min_replicas=least), seen, seen).cap == want
        assert then(replace(POLICY, min_replicas=least), seen, seen).cap != 32  # where a move is free

    def test_is_begun_for_a_broken_promise(self) -> None:
        broken = then(self.rolled, look(), look(itl=SLOW))
        assert (broken.cap, broken.reason) == (32, Reason.CAP_LOWERED)

    @pytest.mark.parametrize(("rate_at_48", "want"), [(7.8, 32), (10.0, 48)])
    def test_what_a_batch_was_measured_to_do_counts(self, rate_at_48: float, want: int) -> None:
        policy = replace(self.rolled, objective=Objective.THROUGHPUT_SENSITIVE, slos=())
        queue = look(cap=32, running=128, waiting=400)
        state = settle(policy, queue)
        rates = (CapRate(32, 7.5, 170.0), CapRate(48, rate_at_48, 170.0))
        decision, _ = decide(policy, queue, replace(state, cap=replace(state.cap, rates=rates)), 180.0)
        assert decision.cap == want


class TestBounds:
    """A cap that the policy or the servers do not allow is brought in at once, whatever else the knob waits for."""

    slowly = replace(POLICY, batch=a_batch(SIZES, cost_class=CostClass.EVENTUAL, delay_s=90.0))
    rolled = replace(POLICY, batch=a_batch(SIZES, cost_class=CostClass.ROLLOUT, delay_s=300.0))
    narrow = replace(slowly, batch=a_batch((8, 16, 24, 32), cost_class=CostClass.EVENTUAL, delay_s=90.0))

    def look(self, cap: int = 128, **more: Any) -> Snapshot:
        return look(**{"cap": cap, "ready": capped(cap, capacity=256), "running": 32.0, **more})

    @pytest.mark.parametrize(("cap", "want"), [(4, 8), (128, 64), (20, 20)])
    @pytest.mark.parametrize("policy", [POLICY, slowly, rolled], ids=["live", "eventual", "rollout"])
    def test_at_the_first_look(self, policy: Policy, cap: int, want: int) -> None:
        """One inside that is no candidate is left where it is."""
        decision, _ = decide(policy, self.look(cap, running=8), State.initial(0.0), 0.0)
        assert decision.cap == want
        if want != cap:
            assert decision.message.startswith(f"Batch cap {cap} -> {want}: the policy and the servers allow 8 to 64")

    def test_narrower_bounds_count_though_the_cap_has_just_been_moved(self) -> None:
        state = settle(self.slowly, look(cap=16, running=40))
        decision, state = decide(self.slowly, look(cap=16, running=64, waiting=100), state, 180.0)
        assert decision.cap == 64
        state = written(state, cap=64, now_s=180.0)
        decision, _ = decide(self.narrow, look(cap=16, running=64), state, 195.0)
        assert decision.cap == 32

    def test_new_pods_at_a_larger_boot_cap_do_not_move_it(self) -> None:
        state = settle(self.narrow, look(cap=32))
        decision, _ = decide(self.narrow, look(ready=(*capped(32, 3), a_pod("new", cap=64))), state, 180.0)
        assert decision.cap == 32

    def test_smaller_servers_lower_it_once_they_are_all_there(self) -> None:
        state = settle(self.slowly, look(cap=64))
        mixed = (*capped(64, 3), a_pod("new", cap=24, capacity=24))
        rolling = look(ready=mixed, target=a_target(4, rollout=Rollout()))
        decision, state = decide(self.slowly, rolling, state, 180.0)
        assert decision.cap == 64
        decision, _ = decide(self.slowly, look(ready=mixed), state, 195.0)
        assert decision.cap == 24

    def test_without_metrics_too(self) -> None:
        """As the bounds of the replicas do; but a rollout is not begun without seeing what goes on."""
        blind = self.look(running=None, requests_finished=None, distributions={})
        state = State.initial(0.0)
        assert decide(self.slowly, blind, state, 0.0)[0].cap == 64
        assert decide(self.rolled, blind, state, 0.0)[0].cap == 128

    @pytest.mark.parametrize(
        "change",
        [
            {"running": 512.0, "waiting": 300.0},
            {"others": [a_pod("new", PodState.PENDING, age_s=10, state_age_s=10)], "replicas": 5},
            {"replicas": 5},
            {"target": a_target(4, rollout=Rollout())},
        ],
        ids=["a queue", "a pending pod", "a pod that is not there", "another rollout"],
    )
    def test_a_rollout_into_them_waits_for_calm(self, change: dict[str, Any]) -> None:
        state = State.initial(0.0)
        decision, state = decide(self.rolled, self.look(**change), state, 0.0)
        assert decision.cap == 128
        decision, _ = decide(self.rolled, self.look(), state, 300.0)
        assert decision.cap == 64

    def test_a_person_s_rollout_beyond_them_is_taken_back_without_rest(self) -> None:
        state = settle(self.rolled, look(cap=32, running=40))
        decision, _ = decide(self.rolled, self.look(), state, 180.0)
        assert decision.cap == 64

    def test_but_not_sooner_than_rollouts_may_follow_each_other(self) -> None:
        state = settle(self.rolled, look(cap=32, running=40))
        state = replace(state, cap=replace(state.cap, rollout_s=100.0))
        decision, state = decide(self.rolled, self.look(), state, 180.0)
        assert decision.cap == 128
        decision, _ = decide(self.rolled, self.look(), state, 1100.0)  # ten cold starts after the last one
        assert decision.cap == 64

    def test_nothing_is_learned_from_it(self) -> None:
        """No queue and no broken promise moved it, and it cures none: replicas do not wait for it."""
        state = settle(self.slowly, self.look(itl=SLOW))
        decision, state = decide(self.slowly, self.look(itl=SLOW), replace(state, cap=CapMemory()), 180.0)
        assert decision.cap == 64
        assert (state.cap.queued_at, state.cap.broke_at) == (None, None)
        assert decision.replicas is not None
        assert decision.replicas > 4

    def test_and_then_it_rests(self) -> None:
        decision, state = decide(self.slowly, self.look(4, running=8.0), State.initial(0.0), 0.0)
        state, moves, cap = written(state, cap=8, now_s=0.0), [], 8
        for tick in range(1, 20):
            decision, state = decide(self.slowly, self.look(cap, running=24.0), state, 15.0 * tick)
            if decision.cap is not None and decision.cap != cap:
                cap = decision.cap
                moves.append(15.0 * tick)
        assert moves[0] == 150.0  # 90 s until it acts, and the window of 60 s


class TestDynamicBatching:
    sizes = (1, 2, 4, 8, 16, 24, 32)
    policy = a_policy(slos=[E2E], batch=a_batch(sizes), batching=Batching.DYNAMIC)
    good = a_distribution({0.05: 5_000, 0.1: 1}, mean_s=0.04)
    bad = a_distribution({0.1: 0, 0.12: 5_000}, mean_s=0.11)

    def look(self, cap: int, running: float, waiting: float = 0.0, slow: bool = False, **more: Any) -> Snapshot:
        return a_snapshot(
            ready=tuple(a_pod(f"chat-{index}", cap=cap, capacity=32) for index in range(2)),
            running=running,
            waiting=waiting,
            requests_finished=500.0,
            distributions={E2E.signal: self.bad if slow else self.good},
            **more,
        )

    def test_a_queue_raises_it(self) -> None:
        decision = then(self.policy, self.look(8, 14), self.look(8, 16, waiting=60))
        assert decision.cap == 32

    def test_a_broken_latency_without_a_queue_lowers_it(self) -> None:
        decision = then(self.policy, self.look(32, 36), self.look(32, 36, slow=True))
        assert decision.cap == 24
        assert decision.reason is Reason.CAP_LOWERED

    def test_a_broken_latency_with_small_batches_does_not(self) -> None:
        policy = replace(self.policy, objective=Objective.BALANCED)
        assert then(policy, self.look(32, 20), self.look(32, 20, slow=True)).cap == 32

    def test_low_load_takes_smaller_batches_one_step_at_a_time(self) -> None:
        state, cap, seen = settle(self.policy, self.look(32, 3), ticks=2), 32, []
        for tick in range(2, 60):
            now_s = 15.0 * tick
            decision, state = decide(self.policy, self.look(cap, 3), state, now_s)
            if decision.cap is not None and decision.cap != cap:
                assert decision.reason in (Reason.CAP_FOLLOWS_LOAD, Reason.DEMAND_FELL)
                cap = decision.cap
                seen.append(cap)
                state = written(state, cap=cap, now_s=now_s)
        assert seen == [24, 16, 8, 4, 2]  # and not further: the held work needs it

    def test_more_load_takes_it_back_before_a_queue_forms(self) -> None:
        decision = then(self.policy, self.look(4, 3), self.look(4, 36))
        assert decision.cap is not None
        assert decision.cap >= 16
        assert decision.reason in (Reason.CAP_RAISED, Reason.DEMAND_ROSE)

    def test_balanced_keeps_the_larger_batch(self) -> None:
        policy = replace(self.policy, objective=Objective.BALANCED)
        assert then(policy, self.look(32, 3), self.look(32, 3)).cap == 32


class TestThroughput:
    def climbed(self, server: Server, sizes: Sequence[int], *, boot: int) -> Fleet:
        fleet = Fleet(server, replicas=1, seed=1)
        for pod in fleet.pods:
            pod.cap = boot
        policy = a_policy(Objective.THROUGHPUT_SENSITIVE, batch=a_batch(sizes), replicas=(1, 1))
        play(fleet, policy, lambda at_s: 40.0, seconds=3000)
        return fleet

    def test_climbs_to_the_largest_that_gains(self) -> None:
        fleet = self.climbed(Server(), (8, 16, 32, 64), boot=8)
        assert fleet.pods[0].cap == 64

    def test_stops_at_the_knee(self) -> None:
        """Steps twice as long for twice the batch from 32 on: no gain beyond."""

        class Bent(Server):
            def step_s(self, batch: float) -> float:
                return 0.02 + 0.0004 * batch if batch <= 32 else 0.0328 * batch / 32

        fleet = self.climbed(Bent(), (8, 16, 32, 48, 64), boot=8)
        assert fleet.pods[0].cap in (32, 48)

    def test_goes_back_from_a_batch_that_does_less(self) -> None:
        class Falling(Server):
            def step_s(self, batch: float) -> float:
                return 0.02 + 0.0004 * batch if batch <= 32 else 0.0328 * (batch / 32) ** 1.5

        fleet = self.climbed(Falling(), (8, 16, 32, 64), boot=8)
        assert fleet.pods[0].cap == 32

    def test_the_cap_goes_first_and_replicas_follow_at_the_best_one(self) -> None:
        fleet = Fleet(replicas=1, seed=1)
        for pod in fleet.pods:
            pod.cap = 8
        policy = a_policy(Objective.THROUGHPUT_SENSITIVE, batch=a_batch((8, 16, 32, 64)), replicas=(1, 8))
        ticks = play(fleet, policy, lambda at_s: 6.0, seconds=900)  # two thirds of one replica at 64, too much at 8
        assert ticks[-1].cap == 64
        assert {tick.replicas for tick in ticks if tick.decision.cap != 64} == {1}
        assert ticks[-1].replicas == 1

    @pytest.mark.parametrize(
        ("memory", "caps", "now_s", "want"),
        [
            (CapMemory(wanted=32, moved_s=100.0), {32}, 500.0, True),  # a larger one may be had
            (CapMemory(wanted=64, before=32, moved_s=100.0), {32, 64}, 500.0, True),  # a pod does not have it
            (CapMemory(wanted=64, before=32, moved_s=100.0), {64}, 189.0, True),  # written, but hardly read by servers
            (CapMemory(wanted=64, before=32, moved_s=100.0), {64}, 190.0, False),
            (CapMemory(wanted=64, moved_s=100.0), {64}, 110.0, False),  # nobody asked for it
        ],
    )
    def test_comes_before_replicas_until_the_best_one_can_have_acted(
        self, memory: CapMemory, caps: set[int], now_s: float, want: bool
    ) -> None:
        policy = a_policy(Objective.THROUGHPUT_SENSITIVE, batch=a_batch(cost_class=CostClass.EVENTUAL, delay_s=90.0))
        load = Load(ready=2, running=60.0, waiting=0.0, complete=True, caps=frozenset(caps))
        assert is_batch_first(policy, load, 64, memory, now_s) is want
        others = (a_policy(Objective.BALANCED, batch=policy.batch), a_policy(Objective.THROUGHPUT_SENSITIVE))
        assert not any(is_batch_first(other, load, 64, memory, now_s) for other in others)

    def test_a_rollout_for_it_does_not_wait_for_the_queue_to_end(self) -> None:
        fleet = Fleet(replicas=1, seed=1, cap_delay_s=60.0)
        for pod in fleet.pods:
            pod.cap = 8
        knob = a_batch((8, 16, 32, 64), cost_class=CostClass.ROLLOUT, delay_s=60.0)
        policy = a_policy(Objective.THROUGHPUT_SENSITIVE, batch=knob, replicas=(1, 8))
        ticks = play(fleet, policy, lambda at_s: 6.0, seconds=600)
        assert ticks[-1].cap > 8


SURE = ((1e8, 0.0, 0.0), (0.0, 1e11, 0.0), (0.0, 0.0, 1e11))
UNSURE = ((1e2, 0.0, 0.0), (0.0, 1e5, 0.0), (0.0, 0.0, 1e5))
FIT = StepFit((0.025, 0.0006, 0.0001), SURE, observations=10.0)  # 44 ms at a batch of 32, 54 at 48, 63 at 64


class TestGuard:
    """Continuous batching: the cap rests where full batches keep the promise of 50 ms between tokens."""

    @pytest.mark.parametrize(
        ("policy", "steps", "before", "want"),
        [
            (POLICY, FIT, 64, 32),
            (POLICY, FIT, 32, 32),
            (POLICY, replace(FIT, parameters=(0.027, 0.0006, 0.0001)), 32, 32),  # 46.2 ms: kept where it is,
            (POLICY, replace(FIT, parameters=(0.027, 0.0006, 0.0001)), 24, 24),  # and not gone to without room
            (POLICY, replace(FIT, parameters=(0.010, 0.0004, 0.0001)), 64, 64),  # the rest place of most servers
            (POLICY, replace(FIT, parameters=(0.060, 0.0006, 0.0001)), 64, 64),  # no cap keeps it
            (POLICY, replace(FIT, observations=4.0), 64, 64),
            (POLICY, replace(FIT, information=UNSURE), 64, 64),
            (POLICY, NO_STEPS, 64, 64),
            (POLICY, NO_BATCHES, 64, 64),
            (replace(POLICY, slos=(TTFT,)), FIT, 64, 64),
            (replace(POLICY, objective=Objective.THROUGHPUT_SENSITIVE), FIT, 64, 64),
            (replace(POLICY, batch=None), FIT, 64, 64),
        ],
    )
    def test_the_largest_that_keeps_the_promise(
        self, policy: Policy, steps: StepFit | BatchTimes, before: int, want: int
    ) -> None:
        load = Load(ready=4, running=100.0, waiting=0.0, complete=True, capacity=64, caps=frozenset({64}))
        assert best_cap(policy, load, CapMemory(), before, 0.0, steps) == want

    def decided(self, now: Snapshot, policy: Policy = POLICY) -> Decision:
        state = replace(settle(policy, look(running=60.0)), model=ModelMemory(steps=FIT))
        return decide(policy, now, state, 180.0)[0]

    @pytest.mark.parametrize("rejected", [0.0, None])
    def test_goes_there_whether_the_queue_has_a_bound_or_not(self, rejected: float | None) -> None:
        decision = self.decided(look(running=60.0, requests_rejected=rejected))
        assert (decision.cap, decision.reason) == (32, Reason.CAP_LOWERED)
        assert "full batches of 64 are predicted to take longer than promised" in decision.message
        assert decision.inputs.best_cap == 32

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"running": 140.0}, "the fleet could not carry its work at 32"),
            ({"running": 60.0, "waiting": 60.0}, "work waits"),
            ({"running": 60.0, "ready": capped(32)}, "it is there"),
        ],
    )
    def test_is_not_lowered(self, change: dict[str, Any], why: str) -> None:
        decision = self.decided(look(**change))
        assert decision.reason is not Reason.CAP_LOWERED, why


def test_a_cap_and_a_count_share_one_message() -> None:
    state = settle(POLICY, look(cap=16, running=40))
    queue = look(cap=16, running=64, waiting=5000, requests_finished=30.0)
    decision, _ = decide(POLICY, queue, state, 180.0)
    assert decision.cap == 64
    assert decision.replicas is not None
    assert decision.replicas > 4
    assert decision.message.startswith("Batch cap 16 -> 64: 5000 requests wait")
    assert "Replicas 4 -> " in decision.message
    assert len(decision.message) <= 256


def test_a_target_at_zero_says_nothing_about_the_cap() -> None:
    gone = a_snapshot(ready=0, target=a_target(0), running=None, waiting=None)
    assert then(POLICY, look(), gone).cap is None
