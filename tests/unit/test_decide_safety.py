"""The safety rules (design, section 8), each with a test that fails without it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from bandkeeper.api.reasons import BandReason, LimitReason, Reason
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Gap, GapReason, PodState, Rollout, Snapshot
from bandkeeper.api.v1alpha1 import FallbackBehavior, SelectPolicy
from bandkeeper.decide.decision import Decision, MetricsState
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.policy import Batching, CostClass, Fallback, Policy, RateLimit
from bandkeeper.decide.state import State
from tests.unit.builders import (
    ITL,
    LIMITS_DOWN,
    TTFT,
    a_batch,
    a_distribution,
    a_pod,
    a_policy,
    a_snapshot,
    a_target,
    rules,
)

FINE = {
    Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.1: 500, 0.5: 1}, mean_s=0.05),
    Signal.INTER_TOKEN_LATENCY: a_distribution({0.025: 50_000, 0.05: 10}, mean_s=0.02),
}
LATE = {**FINE, Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.5: 0, 5.0: 500})}
SLOW = {**FINE, Signal.INTER_TOKEN_LATENCY: a_distribution({0.05: 0, 0.075: 5000}, mean_s=0.06)}
DARK = [Gap(signal=Signal.REQUESTS_RUNNING, reason=GapReason.UNREACHABLE, detail="Prometheus does not answer")]


def quiet(replicas: int = 4, **more: Any) -> Snapshot:
    """So little to do that one replica would carry it."""
    return a_snapshot(**{"ready": replicas, "running": 20, "requests_finished": 5.0, "distributions": FINE, **more})


def watched(policy: Policy, snapshot: Snapshot, *, ticks: int = 20, period_s: float = 15.0) -> State:
    """State after the same snapshot was seen for a while and nothing was written."""
    state, now_s = State.initial(0.0), 0.0
    for _ in range(ticks):
        _, state = decide(policy, snapshot, state, now_s)
        now_s += period_s
    return state


def after(policy: Policy, calm: Snapshot, snapshot: Snapshot) -> tuple[Decision, State]:
    """The decision on `snapshot` after five minutes of `calm`."""
    return decide(policy, snapshot, watched(policy, calm), 300.0)


POLICY = a_policy(slos=[TTFT, ITL])


def test_without_any_objection_the_quiet_fleet_shrinks() -> None:
    """The ground on which the objections below stand."""
    decision, _ = after(POLICY, quiet(), quiet())
    assert decision.replicas == 2  # half, then half again
    assert decision.reason is Reason.DEMAND_FELL
    assert decision.band.reason is BandReason.BELOW_BAND


class TestRule1MissingDataNeverLowers:
    @pytest.mark.parametrize(
        "seen",
        [
            quiet(running=None, waiting=None, distributions={}, gaps=DARK),
            quiet(silent=["chat-2"]),
            quiet(waiting=None, gaps=[Gap(signal=Signal.REQUESTS_WAITING, reason=GapReason.STALE, detail="old")]),
            quiet(running=math.nan),
            quiet(running=-4.0),
            quiet(distributions={Signal.TIME_TO_FIRST_TOKEN: FINE[Signal.TIME_TO_FIRST_TOKEN]}),
            quiet(distributions={**FINE, Signal.INTER_TOKEN_LATENCY: a_distribution({0.025: 5}, age_s=900)}),
        ],
        ids=["all", "one pod", "waiting", "not a number", "negative", "one promise", "a stale promise"],
    )
    def test_holds(self, seen: Snapshot) -> None:
        decision, _ = after(POLICY, quiet(), seen)
        assert decision.replicas == 4
        assert decision.metrics.state is not MetricsState.USABLE
        assert decision.reason in (Reason.METRICS_MISSING, Reason.METRICS_PARTIAL)

    def test_the_message_says_what_is_missing(self) -> None:
        decision, _ = after(POLICY, quiet(), quiet(running=None, waiting=None, distributions={}, gaps=DARK))
        assert "RequestsRunning: Prometheus does not answer" in decision.message
        assert decision.band.within is None
        assert decision.utilization is None

    def test_partial_data_still_raises(self) -> None:
        decision, _ = after(POLICY, quiet(), quiet(running=400, silent=["chat-2"]))
        assert decision.replicas is not None
        assert decision.replicas > 4

    def test_a_breach_alone_still_raises(self) -> None:
        decision, _ = after(POLICY, quiet(), quiet(running=None, waiting=None, distributions=LATE, gaps=DARK))
        assert decision.replicas == 5
        assert decision.cap is None

    def test_a_missing_pod_counts_zero_on_the_way_up(self) -> None:
        """Three pods of four tell 43 each: 50 % of all four, and not 67 %."""
        told = quiet(running=4 * 43, silent=["chat-3"])
        decision, _ = decide(POLICY, told, State.initial(0.0), 0.0)
        assert decision.utilization == pytest.approx(3 * 43 / 256)

    def test_no_traffic_is_data(self) -> None:
        idle = {signal: a_distribution({0.05: 0.0}) for signal in FINE}
        seen = quiet(running=0, requests_finished=0.0, distributions=idle)
        decision, _ = after(POLICY, seen, seen)
        assert decision.replicas == 2
        assert decision.metrics.state is MetricsState.USABLE

    def test_data_that_was_missing_for_minutes_begins_a_new_watch(self) -> None:
        state = watched(POLICY, quiet())
        dark = quiet(running=None, waiting=None, distributions={}, gaps=DARK)
        for now_s in range(300, 450, 15):
            _, state = decide(POLICY, dark, state, float(now_s))
        decision, state = decide(POLICY, quiet(), state, 450.0)
        assert decision.replicas == 4
        assert "before a full window was watched" in decision.message
        for now_s in range(465, 525, 15):
            decision, state = decide(POLICY, quiet(), state, float(now_s))
        assert decision.replicas == 2

    def test_the_batch_cap_is_not_lowered_either(self) -> None:
        policy = replace(POLICY, batch=a_batch())
        calm = quiet(running=100, requests_rejected=0.0)
        seen = quiet(running=100, requests_rejected=0.0, distributions=SLOW)
        decision, _ = after(policy, calm, seen)
        assert decision.cap == 32  # it would be lowered
        blind = quiet(running=100, requests_rejected=0.0, distributions=SLOW, silent=["chat-1"])
        decision, _ = after(policy, calm, blind)
        assert decision.cap == 64


class TestFallback:
    dark = quiet(running=None, waiting=None, distributions={}, gaps=DARK)

    def outcome(self, behavior: FallbackBehavior, replicas: int | None, *, dark_s: int = 240) -> Decision:
        fallback = Fallback(after_s=180.0, behavior=behavior, replicas=replicas)
        policy = replace(POLICY, fallback=fallback)
        state = watched(policy, quiet())
        for now_s in range(300, 300 + dark_s, 15):
            decision, state = decide(policy, self.dark, state, float(now_s))
        return decision

    @pytest.mark.parametrize(
        ("behavior", "replicas", "want"),
        [
            (FallbackBehavior.HOLD, None, 4),
            (FallbackBehavior.REPLICAS_IF_HIGHER, 6, 6),
            (FallbackBehavior.REPLICAS_IF_HIGHER, 2, 4),
            (FallbackBehavior.REPLICAS, 6, 6),
            (FallbackBehavior.REPLICAS, 2, 2),  # a person wrote it: the one exception
        ],
    )
    def test_after_its_time(self, behavior: FallbackBehavior, replicas: int | None, want: int) -> None:
        decision = self.outcome(behavior, replicas)
        assert decision.replicas == want
        assert decision.reason is Reason.FALLBACK
        assert decision.metrics.in_fallback

    def test_not_before(self) -> None:
        decision = self.outcome(FallbackBehavior.REPLICAS, 2, dark_s=150)
        assert decision.replicas == 4
        assert decision.reason is Reason.METRICS_MISSING

    def test_a_fleet_without_ready_pods_is_no_outage(self) -> None:
        fallback = Fallback(after_s=10.0, behavior=FallbackBehavior.REPLICAS, replicas=2)
        policy = replace(POLICY, fallback=fallback)
        starting = a_snapshot(
            ready=0, others=[a_pod("a", PodState.PENDING, age_s=60, state_age_s=60)], target=a_target(4)
        )
        decision, _ = decide(policy, starting, watched(policy, starting), 300.0)
        assert (decision.replicas, decision.reason) == (4, Reason.NO_READY_PODS)


class TestRule2Bounds:
    @pytest.mark.parametrize(("bounds", "current", "want"), [((1, 3), 9, 3), ((5, 9), 2, 5)])
    def test_outside_is_brought_in(self, bounds: tuple[int, int], current: int, want: int) -> None:
        policy = replace(POLICY, min_replicas=bounds[0], max_replicas=bounds[1])
        decision, _ = decide(policy, quiet(current), State.initial(0.0), 0.0)
        assert (decision.replicas, decision.reason) == (want, Reason.OUTSIDE_BOUNDS)

    def test_outside_is_brought_in_under_behavior(self) -> None:
        one = rules(limits=[RateLimit(value=1, percent=False, period_s=60)])
        policy = replace(POLICY, max_replicas=3, scale_down=one)
        decision, state = decide(policy, quiet(9), State.initial(0.0), 0.0)
        assert decision.replicas == 8
        state = written(state, replicas=8, now_s=0.0)
        decision, _ = decide(policy, quiet(9, target=a_target(8)), state, 15.0)
        assert decision.replicas == 8
        assert decision.limit is not None
        assert decision.limit.reason is LimitReason.SCALE_DOWN_LIMIT

    def test_at_max_says_so(self) -> None:
        overloaded = a_snapshot(ready=4, running=256, waiting=900)
        decision, _ = decide(replace(POLICY, max_replicas=5), overloaded, State.initial(0.0), 0.0)
        assert decision.replicas == 5
        assert decision.limit is not None
        assert decision.limit.reason is LimitReason.AT_MAX
        assert "raise it" in decision.limit.message

    def test_at_min_says_so(self) -> None:
        policy = replace(POLICY, min_replicas=3)
        decision, _ = after(policy, quiet(), quiet())
        assert decision.replicas == 3
        assert decision.limit is not None
        assert decision.limit.reason is LimitReason.AT_MIN
        decision, _ = after(policy, quiet(3), quiet(3))
        assert (decision.replicas, decision.band.reason) == (3, BandReason.AT_BOUND)

    @pytest.mark.parametrize(
        ("ending", "rollout", "room"), [(0, None, 8), (2, None, 6), (2, Rollout(surge=1), 5), (9, None, 4)]
    )
    def test_ending_pods_and_surge_count_against_max(self, ending: int, rollout: Rollout | None, room: int) -> None:
        others = [a_pod(f"old-{index}", PodState.TERMINATING) for index in range(ending)]
        seen = a_snapshot(ready=4, running=256, waiting=5000, others=others, target=a_target(4, rollout=rollout))
        fast = rules(limits=[RateLimit(value=100, percent=False, period_s=15)])
        policy = replace(POLICY, max_replicas=8, scale_up=fast)
        decision, _ = decide(policy, seen, State.initial(0.0), 0.0)
        assert decision.replicas == room
        assert decision.limit is not None
        assert decision.limit.reason is (LimitReason.AT_MAX if room == 8 else LimitReason.TERMINATING_PODS)

    def test_behavior_limits_a_raise_and_says_so(self) -> None:
        one = rules(limits=[RateLimit(value=1, percent=False, period_s=60)])
        decision, _ = decide(
            replace(POLICY, scale_up=one), a_snapshot(ready=4, running=256, waiting=900), State.initial(0.0), 0.0
        )
        assert decision.replicas == 5
        assert decision.limit is not None
        assert decision.limit.reason is LimitReason.SCALE_UP_LIMIT
        assert "behavior.scaleUp allows 5 now" in decision.limit.message

    def test_disabled_directions(self) -> None:
        off = rules(select=SelectPolicy.DISABLED)
        overloaded = a_snapshot(ready=4, running=256, waiting=900)
        decision, _ = decide(replace(POLICY, scale_up=off), overloaded, State.initial(0.0), 0.0)
        assert (decision.replicas, decision.reason) == (4, Reason.LIMITED)
        policy = replace(POLICY, scale_down=rules(window_s=60.0, select=SelectPolicy.DISABLED))
        decision, _ = after(policy, quiet(), quiet())
        assert (decision.replicas, decision.reason) == (4, Reason.LIMITED)

    def test_a_raise_waits_for_its_stabilisation_window(self) -> None:
        policy = replace(POLICY, scale_up=rules(window_s=30.0))
        busy = a_snapshot(ready=4, running=230, requests_finished=40.0, distributions=FINE)
        state = watched(policy, quiet(4, running=160))
        wanted = []
        for now_s in (300.0, 315.0, 330.0, 345.0):
            decision, state = decide(policy, busy, state, now_s)
            if decision.replicas == 4 and decision.reason is Reason.LIMITED:
                assert decision.message == "5 replicas are wanted; behavior.scaleUp waits until that was so for 30s."
            wanted.append(decision.replicas)
        assert wanted == [4, 4, 4, 5]


class TestRule3RolloutAndScaleIn:
    @pytest.mark.parametrize(
        ("rollout", "want"),
        [
            (Rollout(), 4),
            (Rollout(deadline_exceeded=True), 2),  # no longer blocks
            (None, 2),
        ],
    )
    def test_no_scale_in_during_a_rollout(self, rollout: Rollout | None, want: int) -> None:
        decision, _ = after(POLICY, quiet(), quiet(target=a_target(4, rollout=rollout)))
        assert decision.replicas == want

    def test_not_even_back_into_the_bounds(self) -> None:
        seen = quiet(9, target=a_target(9, rollout=Rollout()))
        decision, _ = decide(replace(POLICY, max_replicas=3), seen, State.initial(0.0), 0.0)
        assert (decision.replicas, decision.reason) == (9, Reason.OUTSIDE_BOUNDS)

    policy = replace(POLICY, batch=a_batch((8, 16, 32, 64), cost_class=CostClass.ROLLOUT, delay_s=60.0))

    def settled(self, replicas: int = 4, **more: Any) -> Snapshot:
        return quiet(replicas, **{"running": 100, "requests_rejected": 0.0, **more})

    def test_a_cap_by_rollout_comes_without_scale_in(self) -> None:
        decision, state = after(self.policy, self.settled(), self.settled(distributions=SLOW))
        assert decision.cap is not None
        assert decision.cap < 64
        assert decision.replicas == 4
        idle, _ = decide(self.policy, quiet(), state, 315.0)  # the target does not show the rollout yet
        assert idle.replicas == 4

    @pytest.mark.parametrize(
        "others",
        [
            [a_pod("coming", PodState.PENDING, age_s=5, state_age_s=5)],
            [a_pod("leaving", PodState.TERMINATING)],
            [a_pod("homeless", PodState.UNSCHEDULABLE)],
        ],
        ids=["pending", "terminating", "unschedulable"],
    )
    def test_no_rollout_while_pods_are_not_ready(self, others: list[Any]) -> None:
        seen = self.settled(distributions=SLOW, others=others, target=a_target(4))
        decision, _ = after(self.policy, self.settled(), seen)
        assert decision.cap == 64

    def test_no_rollout_in_an_emergency(self) -> None:
        low = [a_pod(f"chat-{index}", cap=16, capacity=64) for index in range(4)]
        queue = a_snapshot(ready=low, running=64, waiting=400, requests_finished=10.0)
        decision, _ = after(self.policy, self.settled(ready=low, running=10), queue)
        assert decision.emergency
        assert decision.cap == 16
        assert decision.replicas is not None
        assert decision.replicas > 4

    def test_rollouts_rest_for_ten_cold_starts(self) -> None:
        state = watched(self.policy, self.settled())
        moves, cap = [], 64
        for tick in range(100):
            ready = [a_pod(f"chat-{index}", cap=cap) for index in range(4)]
            seen = self.settled(ready=ready, running=160 if cap == 64 else 60, preemptions=1.0)
            decision, state = decide(self.policy, seen, state, 300.0 + 15 * tick)
            if decision.cap is not None and decision.cap != cap:
                moves.append((15 * tick, decision.cap))
                cap = decision.cap
        assert [wanted for _, wanted in moves] == [32, 8]
        assert moves[1][0] - moves[0][0] == 1005  # ten cold starts of 100 s, at the next tick

    @pytest.mark.parametrize(("ours", "rolls_back"), [(True, True), (False, False)])
    def test_a_failed_rollout_of_ours_is_taken_back(self, ours: bool, rolls_back: bool) -> None:
        decision, state = after(self.policy, self.settled(), self.settled(distributions=SLOW))
        lowered = decision.cap
        stuck = self.settled(target=a_target(4, rollout=Rollout(ours=ours, deadline_exceeded=True)))
        decision, state = decide(self.policy, stuck, state, 915.0)
        assert decision.rollback is rolls_back
        assert decision.cap == (64 if rolls_back else lowered)
        if rolls_back:
            assert decision.reason is Reason.ROLLED_BACK
            again, _ = decide(self.policy, stuck, state, 930.0)  # the controller's verdict takes a moment to go
            assert not again.rollback
            assert again.cap == 64


class TestRule4PendingPods:
    def pending(self, state: PodState, age_s: float, message: str = "") -> Snapshot:
        """Four of six ordered replicas are ready, and a promise has been broken for long."""
        others = [a_pod(f"new-{index}", state, age_s=age_s, state_age_s=age_s, message=message) for index in range(2)]
        return quiet(4, running=100, others=others, target=a_target(6), distributions=LATE)

    def test_credited_pods_are_waited_for(self) -> None:
        decision, _ = decide(POLICY, self.pending(PodState.PENDING, 150), State.initial(0.0), 0.0)
        assert decision.replicas == 6
        assert decision.inputs.pending_credited == 2
        assert decision.limit is None

    @pytest.mark.parametrize(
        ("state", "age_s", "message", "reason"),
        [
            (PodState.PENDING, 250, "", LimitReason.PENDING_TOO_LONG),
            (
                PodState.UNSCHEDULABLE,
                5,
                "0/3 nodes are available: insufficient nvidia.com/gpu",
                LimitReason.UNSCHEDULABLE,
            ),
            (PodState.FAILED, 5, "container server: ImagePullBackOff", LimitReason.IMAGE_PULL_FAILED),
            (PodState.FAILED, 5, "container server: CrashLoopBackOff", LimitReason.CRASH_LOOP),
            (PodState.FAILED, 5, "", LimitReason.PODS_FAILING),
        ],
    )
    def test_lost_pods_are_not_and_it_is_said(
        self, state: PodState, age_s: float, message: str, reason: LimitReason
    ) -> None:
        decision, _ = decide(POLICY, self.pending(state, age_s, message), State.initial(0.0), 0.0)
        assert decision.inputs.pending_credited == 0
        assert decision.inputs.pending_lost == 2
        assert decision.limit is not None
        assert decision.limit.reason is reason
        assert message in decision.limit.message

    def test_lost_pods_count_against_the_bounds(self) -> None:
        policy = replace(POLICY, max_replicas=6)
        decision, _ = decide(policy, self.pending(PodState.UNSCHEDULABLE, 5), State.initial(0.0), 0.0)
        assert decision.replicas == 6

    def test_lost_pods_do_not_make_the_count_run_away(self) -> None:
        """Five are needed, one of them finds no node: more would find none either."""
        seen = quiet(4, running=4 * 60, others=[a_pod("new", PodState.UNSCHEDULABLE)], target=a_target(5))
        state = State.initial(0.0)
        for tick in range(40):
            decision, state = decide(POLICY, seen, state, 15.0 * tick)
            assert decision.replicas == 5


class TestRule5RestartHold:
    @pytest.mark.parametrize(
        ("window_s", "restart_s", "hold_s"),
        [(60.0, 0.0, 60.0), (10.0, 10.0, 60.0), (600.0, 300.0, 600.0), (60.0, 300.0, 300.0)],
    )
    def test_nothing_is_let_go_before_a_full_window(self, window_s: float, restart_s: float, hold_s: float) -> None:
        policy = replace(POLICY, scale_down=rules(window_s=window_s, limits=LIMITS_DOWN), restart_hold_s=restart_s)
        state, now_s, first = State.initial(0.0), 0.0, None
        while first is None and now_s < 2000:
            decision, state = decide(policy, quiet(), state, now_s)
            first = now_s if decision.replicas != 4 else None
            now_s += 5.0
        assert first == hold_s

    def test_time_without_data_does_not_count(self) -> None:
        policy = replace(POLICY, restart_hold_s=100.0)
        state = State.initial(0.0)
        dark = quiet(running=None, waiting=None, distributions={}, gaps=DARK)
        for now_s in range(0, 300, 15):
            _, state = decide(policy, dark, state, float(now_s))
        decision, state = decide(policy, quiet(), state, 300.0)
        decision, state = decide(policy, quiet(), state, 390.0)
        assert decision.replicas == 4
        decision, _ = decide(policy, quiet(), state, 400.0)
        assert decision.replicas == 2

    def test_scale_out_is_free_from_the_first_tick(self) -> None:
        decision, _ = decide(POLICY, a_snapshot(ready=2, running=128, waiting=60), State.initial(0.0), 0.0)
        assert decision.replicas is not None
        assert decision.replicas > 2
        assert decision.emergency

    def test_a_target_made_anew_is_a_new_start(self) -> None:
        decision, _ = after(POLICY, quiet(), quiet(target=a_target(4, uid="another")))
        assert decision.replicas == 4


@pytest.mark.parametrize("stalest", ["pods", "horizontalpodautoscalers"])
def test_a_stale_list_forbids_scale_in_and_is_named(stalest: str) -> None:
    stale = replace(quiet(pods_age_s=61.0), stalest=stalest)
    decision, _ = after(POLICY, quiet(), stale)
    assert decision.replicas == 4
    assert f"the list of {stalest} is" in decision.message


class TestNoReversalInsideAColdStart:
    BUSY = quiet(2, running=100, requests_finished=20.0)  # above the band, and no queue

    def let_go(self) -> State:
        """At 300 s 2 of 4 were let go; a new one takes 100 s."""
        decision, state = after(POLICY, quiet(), quiet())
        assert decision.replicas == 2
        return written(state, replicas=2, now_s=300.0)

    def test_what_was_let_go_is_not_brought_back_at_once(self) -> None:
        state = self.let_go()
        for now_s in (330.0, 360.0, 395.0):
            decision, state = decide(POLICY, self.BUSY, state, now_s)
            assert (decision.replicas, decision.reason) == (2, Reason.HOLDING)
            assert f"let go {now_s - 300:.0f}s ago" in decision.message.replace("1m0s", "60s").replace("1m35s", "95s")
        decision, _ = decide(POLICY, self.BUSY, state, 400.0)
        assert decision.replicas is not None
        assert decision.replicas > 2

    def test_but_for_a_queue_or_a_broken_promise(self) -> None:
        for change in ({"running": 128, "waiting": 80}, {"distributions": LATE}):
            state = self.let_go()
            for now_s in (315.0, 330.0, 345.0):
                decision, state = decide(
                    POLICY, quiet(2, **{"running": 100, "requests_finished": 20.0, **change}), state, now_s
                )
            assert decision.replicas is not None
            assert decision.replicas > 2, change


class TestRule7OtherHands:
    def test_a_person_s_change_stays_for_one_window(self) -> None:
        state = watched(POLICY, quiet(2))
        scaled = quiet(6, target=a_target(6, manager="kubectl"))
        decision, state = decide(POLICY, scaled, state, 300.0)
        assert decision.replicas == 6
        assert "kubectl set 6 replicas" in decision.message
        decision, state = decide(POLICY, scaled, state, 355.0)
        assert decision.replicas == 6
        decision, state = decide(POLICY, scaled, state, 365.0)
        assert decision.replicas == 3

    def test_a_person_s_cut_is_respected_by_the_band_and_not_by_a_queue(self) -> None:
        state = watched(POLICY, quiet(4, running=104, requests_finished=20.0))
        cut = quiet(2, running=104, requests_finished=20.0, target=a_target(2, manager="kubectl"))
        decision, state = decide(POLICY, cut, state, 300.0)
        assert decision.replicas == 2
        assert "kubectl set 2 replicas" in decision.message
        queue = quiet(2, running=128, waiting=80, requests_finished=20.0, target=a_target(2, manager="kubectl"))
        decision, _ = decide(POLICY, queue, state, 315.0)
        assert decision.replicas is not None
        assert decision.replicas > 2

    def test_a_person_s_change_outside_the_bounds_is_brought_back(self) -> None:
        policy = replace(POLICY, max_replicas=5)
        decision, _ = after(policy, quiet(), quiet(8, target=a_target(8, manager="kubectl")))
        assert (decision.replicas, decision.reason) == (5, Reason.OUTSIDE_BOUNDS)

    def test_our_own_write_is_not_a_person_s(self) -> None:
        decision, state = after(POLICY, quiet(), quiet())
        state = written(state, replicas=2, now_s=300.0)
        not_yet, state = decide(POLICY, quiet(4), state, 301.0)  # the store is a moment behind
        assert not_yet.current_replicas == 2
        decision, state = decide(POLICY, quiet(2), state, 302.0)
        assert state.ownership.hold_until_s < 302.0
        assert decision.current_replicas == 2

    def test_a_write_by_the_operator_s_other_replica_is_ours(self) -> None:
        state = watched(POLICY, quiet(4))
        _, state = decide(POLICY, quiet(2, target=a_target(2, manager="bandkeeper")), state, 300.0)
        assert state.ownership.hold_until_s < 300.0
        assert [event.change for event in state.scale.events] == [-2]

    def test_in_recommend_mode_others_are_followed(self) -> None:
        policy = replace(POLICY, acts=False)
        state = watched(policy, quiet(2))
        decision, state = decide(policy, quiet(6, target=a_target(6, manager="hpa")), state, 300.0)
        assert decision.replicas == 3
        assert state.ownership.person == ""

    def test_zero_replicas_are_left_alone(self) -> None:
        gone = a_snapshot(ready=0, target=a_target(0, manager="kubectl"), running=None, waiting=None)
        decision, state = after(POLICY, quiet(), gone)
        assert decision.paused_by_zero
        assert (decision.replicas, decision.cap, decision.reason) == (None, None, Reason.TARGET_AT_ZERO)
        decision, _ = decide(POLICY, quiet(3, target=a_target(3, manager="kubectl")), state, 315.0)
        assert decision.replicas == 3

    def fought(self, *managers: str, every_s: float = 60.0) -> tuple[Decision, State]:
        """We raise 4 to more because of a queue, and each manager in turn goes back to 4."""
        queue = a_snapshot(ready=4, running=256, waiting=200, requests_finished=30.0)
        state, now_s = State.initial(0.0), 0.0
        decision, state = decide(POLICY, queue, state, now_s)
        for manager in managers:
            assert decision.replicas is not None
            assert decision.replicas > 4
            state = written(state, replicas=decision.replicas, now_s=now_s)
            now_s += every_s
            seen = replace(queue, target=a_target(4, manager=manager))
            decision, state = decide(POLICY, seen, state, now_s)
        return decision, state

    def test_a_manager_that_undoes_us_three_times_is_left_alone(self) -> None:
        decision, state = self.fought("argocd", "argocd", "argocd")
        assert decision.replicas is None
        assert decision.undone_by == "argocd"
        assert decision.reason is Reason.UNDONE
        assert "argocd" in decision.message
        assert "ignoreDifferences" in decision.message
        queue = a_snapshot(ready=4, running=256, waiting=200, target=a_target(4, manager="argocd"))
        decision, _ = decide(POLICY, queue, state, 180.0 + 1900.0)
        assert decision.replicas is not None  # after half an hour it is tried again

    def test_two_managers_are_not_one(self) -> None:
        decision, _ = self.fought("argocd", "kubectl", "argocd")
        assert decision.undone_by == ""

    def test_three_times_in_an_hour_is_not_three_times_in_half_of_one(self) -> None:
        decision, _ = self.fought("argocd", "argocd", "argocd", every_s=1200.0)
        assert decision.undone_by == ""

    def test_a_missing_target_is_said(self) -> None:
        decision, _ = decide(POLICY, replace(quiet(), target=None), State.initial(0.0), 0.0)
        assert (decision.replicas, decision.reason) == (None, Reason.TARGET_MISSING)


class TestAllSignalsMustAgree:
    @pytest.mark.parametrize(
        ("seen", "says"),
        [
            (quiet(waiting=14), "14 requests wait"),
            (
                quiet(distributions={**FINE, Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.5: 96, 1.0: 4})}),
                "nothing to spare",
            ),
            (
                quiet(distributions={**FINE, Signal.INTER_TOKEN_LATENCY: a_distribution({0.04: 9, 0.06: 91})}),
                "lies between",
            ),
        ],
        ids=["queue", "a promise barely kept", "a promise between buckets"],
    )
    def test_one_is_enough_to_hold(self, seen: Snapshot, says: str) -> None:
        decision, _ = after(POLICY, quiet(), seen)
        assert decision.replicas == 4
        assert says in decision.message

    def test_a_broken_promise_is_remembered_for_its_window(self) -> None:
        policy = replace(POLICY, scale_down=rules(window_s=10.0, limits=LIMITS_DOWN))
        state = watched(policy, quiet())
        state = replace(state, promises=replace(state.promises, breached_s=300.0))
        decision, state = decide(policy, quiet(), state, 345.0)
        assert "a promise was broken 45s ago" in decision.message
        assert (decision.replicas, decision.band.reason) == (4, BandReason.SLO_BOUND)
        decision, state = decide(policy, quiet(), state, 360.0)
        assert decision.replicas == 2

    def test_nothing_is_let_go_while_demand_rises(self) -> None:
        policy = replace(POLICY, scale_down=rules(window_s=0.0, limits=LIMITS_DOWN))
        state = watched(policy, quiet(6, running=60))
        for step in range(1, 8):
            decision, state = decide(policy, quiet(6, running=60 + 12 * step), state, 300.0 + 15 * step)
        assert decision.replicas == 6
        assert "work rose over the last 100s" in decision.message


def test_generic_servers_without_a_queue_signal_can_shrink() -> None:
    policy = replace(a_policy(), batching=Batching.UNKNOWN)
    seen = a_snapshot(ready=4, running=20, waiting=None)
    decision, _ = after(policy, seen, seen)
    assert decision.replicas == 2
