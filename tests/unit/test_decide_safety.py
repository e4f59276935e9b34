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
    pods,
    rules,
)

FINE = {
    Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.1: 500, 0.5: 1}, mean_s=0.05),
    Signal.INTER_TOKEN_LATENCY: a_distribution({0.025: 50_000, 0.05: 10}, mean_s=0.02),
}
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
        late = {**FINE, Signal.TIME_TO_FIRST_TOKEN: a_distribution({5.0: 500})}
        decision, _ = after(POLICY, quiet(), quiet(running=None, waiting=None, distributions=late, gaps=DARK))
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
        slow = {**FINE, Signal.INTER_TOKEN_LATENCY: a_distribution({0.075: 5000}, mean_s=0.06)}
        calm = quiet(running=160, requests_rejected=0.0)
        seen = quiet(running=160, requests_rejected=0.0, distributions=slow)
        decision, _ = after(policy, calm, seen)
        assert decision.cap == 48 or decision.cap == 32  # it would be lowered
        blind = quiet(running=160, requests_rejected=0.0, distributions=slow, silent=["chat-1"])
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

    @pytest.mark.parametrize(
        ("snapshot", "limit"),
        [
            (a_snapshot(ready=4, running=256, waiting=900), LimitReason.AT_MAX),
            (
                a_snapshot(ready=4, running=256, waiting=0, others=pods_named(2, PodState.TERMINATING)),
                LimitReason.TERMINATING_PODS,
            )
            if False
            else (a_snapshot(ready=4, running=256, waiting=900, target=a_target(4)), LimitReason.AT_MAX),
        ],
    )
    def test_at_max_says_so(self, snapshot: Snapshot, limit: LimitReason) -> None:
        decision, _ = decide(replace(POLICY, max_replicas=5), snapshot, State.initial(0.0), 0.0)
        assert decision.replicas == 5
        assert decision.limit is not None
        assert decision.limit.reason is limit
