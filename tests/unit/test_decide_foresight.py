"""What earlier days ask for, inside the decision: more or nothing, said in words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from bandkeeper.api.reasons import BandReason, Reason
from bandkeeper.api.snapshot import RECALL_STEP_S, Earlier, Recalled, Snapshot
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.state import State
from tests.properties.test_decide import served
from tests.unit.builders import a_policy


def then(*requests_per_s: float, first_s: float = 60.0) -> Recalled:
    """Steps of an earlier day, in requests like those of `served`."""
    ends_s = tuple(5000.0 + first_s + RECALL_STEP_S * number for number in range(len(requests_per_s)))
    prompts, outputs = (tuple(tokens * one for one in requests_per_s) for tokens in (300.0, 200.0))
    return Recalled(ends_s, prompts, outputs, now_s=5000.0)


CALM = then(*[8.0] * 10)
CROWD = then(8.0, 8.0, *[48.0] * 8)


@dataclass
class Days:
    """A policy that is looked at every 15 s, beside what earlier days had; what it wants is there at once."""

    policy: Policy = field(default_factory=lambda: a_policy(replicas=(1, 40)))
    state: State = field(default_factory=lambda: State.initial(0.0))
    now_s: float = 0.0
    ready: int = 4
    snapshot: Snapshot = field(default_factory=lambda: served(8.0, 4))

    def look(self, requests_per_s: float = 8.0, **recalled: Recalled) -> Decision:
        self.snapshot = replace(
            served(requests_per_s, self.ready), recalled={Earlier(name): steps for name, steps in recalled.items()}
        )
        decision, self.state = decide(self.policy, self.snapshot, self.state, self.now_s)
        if decision.replicas is not None and decision.replicas != self.ready:
            self.state = written(self.state, replicas=decision.replicas, now_s=self.now_s)
            self.ready = decision.replicas
        self.now_s += 15.0
        return decision

    def ordered(self, requests_per_s: float = 8.0, **recalled: Recalled) -> int:
        """Replicas after some looks: behavior adds four in one."""
        for _ in range(6):
            self.look(requests_per_s, **recalled)
        return self.ready

    def proven(self, requests_per_s: float = 8.0, **recalled: Recalled) -> Days:
        """After two hours that were as foretold, by yesterday unless another day is given."""
        if not recalled:
            return self.proven(requests_per_s, Day=CALM)
        for _ in range(2 * 240):
            self.look(requests_per_s, **recalled)
        return self

    def again(self, requests_per_s: float = 8.0, **recalled: Recalled) -> Decision:
        """The next decision, without a step in time."""
        snapshot = replace(
            served(requests_per_s, self.ready), recalled={Earlier(name): steps for name, steps in recalled.items()}
        )
        return decide(self.policy, snapshot, self.state, self.now_s)[0]


def test_a_proven_day_orders_ahead_of_its_crowd_and_says_so() -> None:
    days = Days().proven()
    before = days.ready
    decision = days.look(Day=CROWD)
    assert decision.reason is Reason.DEMAND_FORESEEN
    assert days.ready > 2 * before
    assert "yesterday at this hour work rose to" in decision.message
    assert "8.0" not in decision.message  # work in replicas, not requests
    assert not decision.emergency


def test_a_day_that_has_half_of_the_one_before_orders_half_and_says_so() -> None:
    half = Days().proven(4.0)
    message = half.again(4.0, Day=CROWD).message
    assert "yesterday at this hour work rose, to" in message
    assert "at 0.5 times that day's level" in message
    as_much = Days().proven()
    assert half.ordered(4.0, Day=CROWD) < as_much.ordered(8.0, Day=CROWD)


def test_a_week_is_named_as_such() -> None:
    assert "a week ago at this hour" in Days().proven(Week=CALM).look(Week=CROWD).message


def test_both_are_asked_and_the_larger_counts() -> None:
    days = Days().proven(Day=CALM, Week=CALM)
    larger = then(8.0, 8.0, *[60.0] * 8)
    assert "a week ago" in days.again(Day=CROWD, Week=larger).message
    assert "yesterday" in days.again(Day=larger, Week=CROWD).message


def test_an_unproven_day_is_only_watched() -> None:
    days = Days()
    for _ in range(100):
        days.look(Day=CALM)
    assert days.again(Day=CROWD) == days.again(Day=CALM) == days.again()


def test_what_it_expects_is_kept_until_it_is_over() -> None:
    days = Days().proven()
    ready = days.ordered(Day=CROWD)
    decision = days.look(Day=CROWD)
    assert decision.band.reason is BandReason.HOLDING_PEAK
    assert "yesterday at this hour work rose to" in decision.message
    for _ in range(20):
        days.look(Day=CROWD)
    assert days.ready == ready
    for _ in range(60):
        days.look(Day=CALM)
    assert days.ready < ready / 2


def test_a_crowd_that_does_not_come_is_let_go_and_not_ordered_again() -> None:
    days = Days().proven()
    ready = days.ordered(Day=CROWD)
    for _ in range(120):
        days.look(Day=CROWD)
    assert days.state.model.records[Earlier.DAY].muted(days.now_s)
    assert days.ready < ready / 2


def test_a_crowd_that_comes_is_met() -> None:
    days = Days().proven()
    ready = days.ordered(Day=CROWD)
    for _ in range(60):
        days.look(46.0, Day=then(*[48.0] * 10))
    record = days.state.model.records[Earlier.DAY]
    assert (record.strikes, record.muted(days.now_s)) == (0, False)
    assert days.ready <= ready + 2


def test_an_idle_fleet_is_ready_in_the_morning() -> None:
    days = Days().proven()
    night = then(*[0.0] * 10)
    for _ in range(4 * 240):
        days.look(0.0, Day=night)
    assert days.ready == 1
    decision = days.look(0.0, Day=then(0.0, 0.0, *[48.0] * 8))
    assert decision.reason is Reason.DEMAND_FORESEEN
    assert days.ready > 4


def test_less_than_now_changes_nothing() -> None:
    days = Days().proven()
    assert days.again(Day=then(*[0.0] * 10)) == days.again()


def test_throughput_waits_for_its_work() -> None:
    days = Days(policy=a_policy(Objective.THROUGHPUT_SENSITIVE, replicas=(1, 40))).proven()
    assert days.again(Day=CROWD) == days.again()
    assert not days.state.model.records


@pytest.mark.parametrize("steps", [then(), then(48.0), then(48.0, 48.0, first_s=-400.0)])
def test_what_was_not_recorded_is_no_forecast(steps: Recalled) -> None:
    days = Days().proven()
    assert days.again(Day=steps) == days.again()


def test_a_past_never_known_leaves_no_trace() -> None:
    one, other = Days(), Days()
    for number in range(300):
        rate = 8.0 + number % 7
        assert one.look(rate) == other.look(rate)
    assert one.state == other.state
    assert not one.state.model.records
