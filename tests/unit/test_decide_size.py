"""How many replicas each rule asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.reasons import BandReason, Reason, SLOState
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Snapshot
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide import size
from bandkeeper.decide.decision import Decision, SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.load import Load
from bandkeeper.decide.ownership import recorded
from bandkeeper.decide.policy import Deadline, Policy, ThroughputSLO
from bandkeeper.decide.state import (
    EVENTS_LIMIT,
    Order,
    PromiseMemory,
    Regret,
    ScaleEvent,
    ScaleMemory,
    Shrink,
    State,
)
from bandkeeper.model.curve import LoadCurve
from bandkeeper.model.peaks import NO_PEAKS
from tests.unit.builders import ITL, TTFT, a_batch, a_distribution, a_policy, a_snapshot, a_target, pods, rules

LINEAR, BENT = LoadCurve(0.0), LoadCurve(1.3)


def a_demand(
    work: float, *, peak: float | None = None, ready: int = 4, curve: LoadCurve = LINEAR, **more: Any
) -> Demand:
    fields: dict[str, Any] = {
        "curve": curve,
        "best_cap": 64,
        "work": work,
        "peak_work": work if peak is None else peak,
        "utilization": curve.utilization(work / ready),
        "occupancy": curve.utilization(work / ready),
        "saturated": False,
        "rising": False,
    }
    return Demand(**{**fields, **more})


def a_load(ready: int = 4, **more: Any) -> Load:
    return Load(**{"ready": ready, "running": 100.0, "waiting": 0.0, "complete": True, "cold_start_s": 90.0, **more})


class TestBand:
    @pytest.mark.parametrize(
        ("work", "curve", "want"),
        [
            (2.1, LINEAR, 3),
            (2.8, LINEAR, 4),
            (2.81, LINEAR, 5),
            (0.0, LINEAR, 1),
            (7.0, LINEAR, 10),
            (2 * 1.06, BENT, 3),  # of 3 replicas at 64: 47 each
            (10 * 1.06, BENT, 13),
        ],
    )
    def test_the_fewest_below_the_high_edge(self, work: float, curve: LoadCurve, want: int) -> None:
        demand = a_demand(work, curve=curve)
        assert size.for_band(a_policy(), demand) == want
        assert size.over_band(a_policy(), demand, want - 1) is (want > 1)
        assert not size.over_band(a_policy(), demand, want)

    @pytest.mark.parametrize(("tolerance", "over"), [(0.0, True), (0.1, False)])
    def test_tolerance_is_beyond_the_edge(self, tolerance: float, over: bool) -> None:
        policy = a_policy(scale_up=rules(tolerance=tolerance))
        assert size.over_band(policy, a_demand(2.9), 4) is over

    def test_a_model_aims_below_the_edge_by_about_its_error(self) -> None:
        policy = a_policy()
        assert not size.over_band(policy, a_demand(13.9, modelled=True), 20)
        assert size.for_band(policy, a_demand(28.0, modelled=True)) == 42  # 67 %; 40 would be at the edge of 70
        assert size.for_band(policy, a_demand(8.07, modelled=True)) == 12  # 67.3 %: no whole replica more for that


class TestQueue:
    @pytest.mark.parametrize(
        ("work", "waiting", "ready", "want"),
        [
            (2.12, 10, 2, 3),  # (10 x 0.1 + .12 x 90)/60 = .2 beside 2.12
            (2.12, 600, 2, 4),
            (2.12, 100_000, 2, 7),  # at most twice the work and two
            (10.0, 0, 4, 19),  # 6 are missing for a cold start of 90 s
        ],
    )
    def test_empties_the_queue_in_a_minute_beside_the_margin(
        self, work: float, waiting: float, ready: int, want: int
    ) -> None:
        demand = a_demand(work, saturated=True, request_s=0.1)
        assert size.for_queue(a_policy(), demand, a_load(ready, waiting=waiting)) == want

    def test_without_a_rate_a_request_is_guessed(self) -> None:
        demand = a_demand(2.0, saturated=True)
        assert size.for_queue(a_policy(), demand, a_load(2, waiting=256.0)) == 4

    def test_a_cap_that_cannot_rise_is_what_there_is(self) -> None:
        demand = a_demand(2.0, saturated=True, request_s=0.1, curve=BENT)
        assert size.for_queue(a_policy(), demand, a_load(2), stuck_at=16) == 5  # 16 of 64 do 43 % of the work
        assert size.for_queue(a_policy(), demand, a_load(2)) == 2

    def test_throughput_raises_the_cap_first_and_orders_for_nothing_to_come(self) -> None:
        policy = a_policy(Objective.THROUGHPUT_SENSITIVE, batch=a_batch())
        demand, queue = a_demand(10.0, saturated=True, request_s=0.1, batch_first=True), a_load(4, waiting=60)
        assert size.for_queue(policy, demand, queue) is None
        assert size.for_queue(policy, demand, queue, stuck_at=32) == 21
        assert size.for_queue(policy, replace(demand, batch_first=False), queue) == 11

    @pytest.mark.parametrize(("drain_s", "want"), [(None, 7), (60.0, 1003), (600.0, 103), (3600.0, 19)])
    def test_a_time_that_a_person_wrote_is_kept_whatever_it_takes(self, drain_s: float | None, want: int) -> None:
        demand = a_demand(2.12, saturated=True, request_s=0.1)
        queue = a_load(2, waiting=600_000)
        assert size.for_queue(replace(a_policy(), drain_s=drain_s), demand, queue) == want

    def test_not_by_a_guessed_length_of_a_request(self) -> None:
        policy, demand = replace(a_policy(), drain_s=5.0), a_demand(2.0, saturated=True)
        assert size.for_queue(policy, demand, a_load(2, waiting=1e6)) == 6

    @given(
        st.floats(0, 1e5), st.floats(0, 1e5), st.floats(5, 3600), st.floats(5, 3600), st.floats(0, 50), st.booleans()
    )
    def test_more_waiting_or_less_time_never_asks_for_fewer(
        self, one: float, other: float, time_s: float, other_s: float, work: float, written: bool
    ) -> None:
        demand, policy = a_demand(work, saturated=True, request_s=0.1), a_policy()

        def asked(waiting: float, drain_s: float) -> int:
            found = size.for_queue(
                replace(policy, drain_s=drain_s if written else None), demand, a_load(4, waiting=waiting)
            )
            assert found is not None
            return found

        few = asked(min(one, other), max(time_s, other_s))
        more = asked(max(one, other), max(time_s, other_s))
        assert few <= more <= asked(max(one, other), min(time_s, other_s))

    def test_a_deadline_takes_its_place(self) -> None:
        deadline = Deadline(backlog=Signal.REQUESTS_WAITING, rate=Signal.REQUESTS_FINISHED, within_s=3600.0)
        demand = a_demand(2.12, saturated=True, request_s=0.1)
        assert size.for_queue(replace(a_policy(), deadline=deadline), demand, a_load(2, waiting=600)) is None

    def test_no_queue_asks_for_nothing(self) -> None:
        assert size.for_queue(a_policy(), a_demand(2.12), a_load()) is None


def met(signal: Signal, limit: float, **figures: float) -> SLOVerdict:
    fields: dict[str, Any] = {"attainment_low": 1.0, "observations": 1000.0, **figures}
    return SLOVerdict(signal=signal, percentile=95, limit=limit, window_s=60, state=SLOState.MET, **fields)


class TestFewest:
    def fewest(self, demand: Demand, current: int, **more: Any) -> tuple[int, BandReason]:
        fields: dict[str, Any] = {"verdicts": (), "memory": ScaleMemory(), "cap": 64, "now_s": 1000.0, **more}
        fewer = size.fewest(a_policy(), demand, current=current, **fields)
        return fewer.replicas, fewer.kept_by

    @pytest.mark.parametrize(
        ("work", "peak", "current", "want"),
        [
            (2.6, 2.6, 4, (4, BandReason.IN_BAND)),
            (2.0, 2.6, 4, (4, BandReason.QUANTISED)),
            (1.8, 2.6, 4, (4, BandReason.HOLDING_PEAK)),
            (2.1, 2.1, 4, (4, BandReason.QUANTISED)),  # 3 would be at 70 %, which is not below 68
            (2.0, 2.0, 4, (3, BandReason.BELOW_BAND)),
            (1.0, 2.1, 4, (4, BandReason.HOLDING_PEAK)),
            (0.7, 0.7, 8, (4, BandReason.BELOW_BAND)),  # 2 would do; half is as far as one sees
            (0.0, 0.0, 2, (1, BandReason.BELOW_BAND)),
            (0.0, 0.0, 1, (1, BandReason.QUANTISED)),
            (0.5, 0.5, 1, (1, BandReason.QUANTISED)),
        ],
    )
    def test_steps_down_only_where_what_is_left_fits_with_margin(
        self, work: float, peak: float, current: int, want: tuple[int, BandReason]
    ) -> None:
        assert self.fewest(a_demand(work, peak=peak, ready=current), current) == want

    def test_a_lowered_cap_carries_less(self) -> None:
        assert self.fewest(a_demand(1.3), 4) == (2, BandReason.BELOW_BAND)
        assert self.fewest(a_demand(1.3), 4, cap=32) == (4, BandReason.QUANTISED)

    def test_a_cap_that_holds_what_the_band_lets_in_keeps_nothing(self) -> None:
        assert self.fewest(a_demand(2.0), 4, cap=56) == (3, BandReason.BELOW_BAND)
        assert self.fewest(a_demand(2.0), 4, cap=48) == (4, BandReason.QUANTISED)

    @pytest.mark.parametrize(
        ("verdict", "want"),
        [
            (met(Signal.INTER_TOKEN_LATENCY, 0.05, mean=0.02, lower=0.02), (2, BandReason.BELOW_BAND)),
            (met(Signal.INTER_TOKEN_LATENCY, 0.05, mean=0.046, lower=0.02), (4, BandReason.SLO_BOUND)),
            (met(Signal.INTER_TOKEN_LATENCY, 0.05, mean=0.02, lower=0.046), (4, BandReason.SLO_BOUND)),
            (met(Signal.INTER_TOKEN_LATENCY, 0.05, mean=0.034, lower=0.025), (3, BandReason.BELOW_BAND)),
            (met(Signal.INTER_TOKEN_LATENCY, 0.05, mean=0.05), (4, BandReason.SLO_BOUND)),
            (met(Signal.INTER_TOKEN_LATENCY, 0.05), (2, BandReason.BELOW_BAND)),
            (met(Signal.INTER_TOKEN_LATENCY, 0.05, mean=0.0), (2, BandReason.BELOW_BAND)),
            (met(Signal.TIME_TO_FIRST_TOKEN, 0.05, mean=0.04), (2, BandReason.BELOW_BAND)),
        ],
    )
    def test_latencies_that_grow_with_the_batch_are_foreseen(
        self, verdict: SLOVerdict, want: tuple[int, BandReason]
    ) -> None:
        demand = a_demand(1.6, curve=BENT)
        assert self.fewest(demand, 4, verdicts=(verdict,)) == want

    def test_what_proved_too_few_is_remembered(self) -> None:
        memory = ScaleMemory(regrets=(Regret(900.0, 3, 2.0),))
        assert self.fewest(a_demand(2.0), 4, memory=memory) == (4, BandReason.HOLDING_PEAK)
        assert self.fewest(a_demand(1.7, ready=4), 4, memory=memory)[0] == 3  # for less work it may do
        assert self.fewest(a_demand(2.0), 4, memory=memory, now_s=900 + 3601.0)[0] == 3

    def test_what_a_promise_or_a_queue_needed_is_held(self) -> None:
        needs = ScaleMemory(needs=NO_PEAKS.push(4.0, 990.0, 60.0))
        queues = ScaleMemory(queues=NO_PEAKS.push(3.0, 990.0, 60.0))
        assert self.fewest(a_demand(1.0), 4, memory=needs) == (4, BandReason.HOLDING_PEAK)
        assert self.fewest(a_demand(1.0), 4, memory=queues) == (3, BandReason.BELOW_BAND)

    def test_no_more_than_half_in_one_rate_window(self) -> None:
        memory = ScaleMemory(events=(ScaleEvent(970.0, -4),))
        assert self.fewest(a_demand(0.1, ready=4), 4, memory=memory)[0] == 4
        assert self.fewest(a_demand(0.1, ready=4), 4, memory=memory, now_s=1031.0)[0] == 2

    def test_tolerance_makes_it_wait_longer(self) -> None:
        policy = a_policy(scale_down=rules(window_s=60.0, tolerance=0.2))
        fewer = size.fewest(policy, a_demand(2.0), (), ScaleMemory(), current=4, cap=64, now_s=1000.0)
        assert fewer.replicas == 4


class TestRegret:
    shrink = Shrink(1000.0, 3, 2.0, 20.0)

    @pytest.mark.parametrize(
        ("demand", "short", "now_s", "regretted", "kept"),
        [
            (a_demand(2.1, offered_per_s=20.0), True, 1100.0, True, False),
            (a_demand(2.1, offered_per_s=30.0), True, 1100.0, False, False),  # more is asked for: not the rule's fault
            (a_demand(2.1), True, 1100.0, True, False),
            (a_demand(3.0), True, 1100.0, False, False),
            (a_demand(2.1), False, 1100.0, False, True),
            (None, True, 1100.0, False, True),
            (a_demand(2.1), True, 1601.0, False, False),
        ],
    )
    def test_only_a_step_that_was_wrong(
        self, demand: Demand | None, short: bool, now_s: float, regretted: bool, kept: bool
    ) -> None:
        memory = size.learn_regret(ScaleMemory(shrink=self.shrink), demand, short=short, now_s=now_s)
        assert bool(memory.regrets) is regretted
        assert (memory.shrink is not None) is kept

    def test_one_entry_a_count(self) -> None:
        memory = ScaleMemory(shrink=self.shrink, regrets=(Regret(500.0, 3, 1.5), Regret(500.0, 2, 1.0)))
        memory = size.learn_regret(memory, a_demand(2.1), short=True, now_s=1100.0)
        assert [(regret.replicas, regret.work) for regret in memory.regrets] == [(2, 1.0), (3, 2.0)]


def test_events_are_bounded_and_joined_towards_strictness() -> None:
    memory = ScaleMemory()
    for at_s in range(EVENTS_LIMIT + 10):
        memory = recorded(memory, 1, float(at_s))
    assert len(memory.events) == EVENTS_LIMIT
    assert sum(event.change for event in memory.events) == EVENTS_LIMIT + 10
    for at_s in range(200, 200 + 2 * EVENTS_LIMIT):
        memory = recorded(memory, 1 if at_s % 2 else -1, float(at_s))
    assert len(memory.events) == EVENTS_LIMIT
    assert recorded(memory, 1, 5000.0).events == (ScaleEvent(5000.0, 1),)


class TestPromises:
    """Orders for broken promises, through the whole decision."""

    policy = a_policy(slos=[TTFT, ITL])

    def look(
        self, replicas: int, *, itl_s: float = 0.01, ttft_s: float = 0.01, running: float = 100.0, **more: Any
    ) -> Snapshot:
        distributions = {
            Signal.TIME_TO_FIRST_TOKEN: self.around(ttft_s, 0.5),
            Signal.INTER_TOKEN_LATENCY: self.around(itl_s, 0.05),
        }
        ready = more.pop("pods", replicas)
        return a_snapshot(ready=ready, running=running, requests_finished=30.0, distributions=distributions, **more)

    @staticmethod
    def around(value_s: float, threshold_s: float) -> Any:
        edges = sorted({threshold_s, 0.9 * value_s, 1.02 * value_s})
        return a_distribution({edge: 5000.0 if edge == 1.02 * value_s else 0.0 for edge in edges}, mean_s=value_s)

    def ran(self, looks: list[Snapshot], policy: Policy | None = None, period_s: float = 15.0) -> list[Decision]:
        state, decisions = State.initial(0.0), []
        for number, look in enumerate(looks):
            decision, state = decide(policy or self.policy, look, state, period_s * number)
            decisions.append(decision)
            if decision.replicas is not None and decision.replicas != (look.target.replicas if look.target else 0):
                state = written(state, replicas=decision.replicas, now_s=period_s * number)
        return decisions

    @pytest.mark.parametrize(
        ("itl_s", "running", "want"),
        [
            (0.052, 150, 5),  # a little over: one more
            (0.070, 200, 8),  # far over: at most twice
        ],
    )
    def test_in_proportion(self, itl_s: float, running: float, want: int) -> None:
        band = replace(self.policy, band=replace(self.policy.band, high=0.95))
        decision = self.ran([self.look(4, itl_s=itl_s, running=running)], band)[0]
        assert (decision.replicas, decision.reason) == (want, Reason.SLO_BREACHED)
        assert "p95 inter-token latency" in decision.message

    def test_an_order_is_repeated_only_after_its_pods_are_ready_and_a_window_passed(self) -> None:
        young = pods(5, age_s=130.0, state_age_s=30.0)
        decisions = self.ran(
            [
                self.look(4, ttft_s=0.9, running=60),
                self.look(4, ttft_s=0.9, running=60, target=a_target(5)),
                self.look(5, ttft_s=0.7, running=60, pods=young),  # better, and still broken
                *[self.look(5, ttft_s=0.7, running=60) for _ in range(3)],
            ]
        )
        assert [decision.replicas for decision in decisions] == [5, 5, 5, 5, 7, 7]

    def test_an_order_stands_until_it_is_written(self) -> None:
        policy = replace(self.policy, acts=False)
        decisions = self.ran([self.look(4, ttft_s=0.9)] * 3 + [self.look(4)] * 3, policy)
        assert [decision.replicas for decision in decisions[:3]] == [5, 5, 5]

    def test_what_replicas_do_not_help_is_told_and_left(self) -> None:
        """Twice the replicas, half the batch, and tokens as slow as before."""
        looks = [self.look(4, itl_s=0.06, running=100), *[self.look(8, itl_s=0.06, running=100) for _ in range(8)]]
        decisions = self.ran(looks)
        assert decisions[0].replicas is not None
        assert decisions[0].replicas > 4
        last = decisions[-1]
        assert last.slos[1].state is SLOState.UNREACHABLE
        assert "neither more replicas nor a smaller batch helps" in last.slos[1].message
        assert last.replicas is not None
        assert last.replicas <= 8

    def test_one_request_at_a_time_is_as_fast_as_it_gets(self) -> None:
        decision = self.ran([self.look(4, itl_s=0.06, running=4)])[0]
        assert (decision.replicas, decision.slos[1].state) == (4, SLOState.UNREACHABLE)

    def test_far_over_at_any_load_is_not_tried(self) -> None:
        decision = self.ran([self.look(4, itl_s=0.9, running=100)])[0]
        assert (decision.replicas, decision.reason) == (4, Reason.SLO_UNREACHABLE)
        assert "loosen the objective" in decision.message

    def test_an_unreachable_promise_does_not_keep_the_fleet(self) -> None:
        looks = [self.look(8, itl_s=0.9, running=30)] * 10
        assert 4 in {decision.replicas for decision in self.ran(looks)}

    @pytest.mark.parametrize(("queued_s_ago", "given_up"), [(30.0, False), (300.0, True)])
    def test_a_queue_that_is_gone_says_nothing_of_what_replicas_help(self, queued_s_ago: float, given_up: bool) -> None:
        """One more replica, a smaller batch, and an end-to-end latency that still shows the queue of a while ago."""
        slow = SLOVerdict(
            signal=Signal.END_TO_END_LATENCY,
            percentile=95,
            limit=2.0,
            window_s=60.0,
            state=SLOState.BREACHED,
            value=3.0,
        )
        order = Order(signal=slow.signal, at_s=0.0, replicas=5, batch=40.0, value=2.5)
        demand, load = a_demand(2.0, queued_s_ago=queued_s_ago), a_load(5, youngest_s=90.0)
        memory = PromiseMemory(order=order)
        asked, _ = size.for_promises([slow], demand, load, memory, current=5, written_s=0.0, now_s=180.0)
        assert (asked.unreachable is slow) is given_up

    def test_a_rate_that_is_promised_while_work_waits(self) -> None:
        slo = ThroughputSLO(signal=Signal.GENERATION_TOKENS, min_per_s=3000, window_s=60)
        policy = a_policy(Objective.THROUGHPUT_SENSITIVE, slos=[slo])
        seen = a_snapshot(ready=2, running=50, waiting=40, requests_finished=20.0, generation_tokens=2000.0)
        decision = self.ran([seen], policy)[0]
        assert (decision.replicas, decision.reason) == (3, Reason.SLO_BREACHED)
        assert "2e+03 tokens/s" in decision.message


def test_latency_in_the_far_bucket_counts_as_broken_by_waiting_first() -> None:
    """Both are broken: the one about waiting is answered, by replicas."""
    looks = TestPromises().look(4, itl_s=0.06, ttft_s=0.9, running=60)
    decision = TestPromises().ran([looks])[0]
    assert "time to first token" in decision.message
    assert decision.replicas == 5
