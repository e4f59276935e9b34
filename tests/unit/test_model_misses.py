"""Who misses a promise when, and the capacity that keeps the misses at what is aimed at."""

from __future__ import annotations

import math
import random

import pytest

from bandkeeper.model.misses import MissFit, Shape

GOAL = 0.045  # of 5 % that may miss
TOKENS = MissFit(GOAL, 1.7, 0.75)
WAITS = MissFit(GOAL, 3.0, 0.93)


def learned(
    fit: MissFit, c0: float, c: float, *, hours: float = 2.0, low: float = 0.3, high: float = 0.9, seed: int = 0
) -> MissFit:
    """After a wave of 20 minutes, looked at every 15 s; the share that misses scatters by a third."""
    chance = random.Random(seed)
    for look in range(round(hours * 240)):
        utilization = (low + high) / 2 + (high - low) / 2 * math.sin(2 * math.pi * look / 80)
        load = utilization**fit.power
        fit = fit.seen(load, min(1.0, (c0 + c * load) * math.exp(chance.gauss(0, 0.3))), 15.0)
    return fit


def held(fit: MissFit, utilization: float, missed: float, *, hours: float = 1.0) -> MissFit:
    for _ in range(round(hours * 240)):
        fit = fit.seen(utilization**fit.power, missed, 15.0)
    return fit


class TestLine:
    @pytest.mark.parametrize("fit", [TOKENS, WAITS])
    @pytest.mark.parametrize(("c0", "c"), [(0.0, 0.06), (0.01, 0.05), (0.02, 0.1), (0.1, 0.05), (0.3, 0.4)])
    def test_is_found(self, fit: MissFit, c0: float, c: float) -> None:
        found_c0, found_c = learned(fit, c0, c).line()
        assert found_c0 == pytest.approx(c0, abs=0.15 * (c0 + c))
        assert found_c == pytest.approx(c, abs=0.3 * (c0 + c))

    @pytest.mark.parametrize(("fit", "prior"), [(TOKENS, 0.75), (WAITS, 0.93)])
    def test_begins_with_the_prior(self, fit: MissFit, prior: float) -> None:
        c0, c = fit.line()
        assert c0 == pytest.approx(0, abs=1e-9)
        assert c0 + c * prior**fit.power == pytest.approx(GOAL)
        assert fit.margin(1.0) == pytest.approx(1 / prior)

    def test_more_misses_at_less_load_are_tried_with_replicas_all_the_same(self) -> None:
        """Only what was seen to be hopeless asks for nothing."""
        fit = held(held(TOKENS, 0.9, 0.0), 0.3, 0.2)
        c0, c = fit.line()
        assert c == 0
        assert c0 > 0.1
        assert 1 < fit.margin(1.0) < 4

    def test_no_misses_at_all_leave_the_prior_less_and_less(self) -> None:
        margins = [held(TOKENS, 0.7, 0.0, hours=hours).margin(1.0) for hours in (0.0, 0.1, 0.5, 2.0)]
        assert margins == sorted(margins, reverse=True)
        assert margins[-1] < 0.5 * margins[0]

    def test_what_was_is_forgotten(self) -> None:
        worse = learned(TOKENS, 0.1, 0.3)
        assert learned(worse, 0.0, 0.05, hours=3).line() == pytest.approx(learned(TOKENS, 0.0, 0.05).line(), abs=0.01)


class TestMargin:
    def test_keeps_the_misses_at_the_goal(self) -> None:
        """At the utilisation that it leaves, what the line says is what is aimed at."""
        fit = learned(TOKENS, 0.01, 0.08)
        c0, c = fit.line()
        assert c0 + c * (1 / fit.margin(1.0)) ** fit.power == pytest.approx(GOAL)

    def test_is_less_where_work_is_often_less_than_what_is_held(self) -> None:
        fit = learned(TOKENS, 0.0, 0.08)
        margins = [fit.margin(shape) for shape in (0.1, 0.4, 0.7, 1.0)]
        assert margins == sorted(margins)
        assert margins[0] < 0.5 * margins[-1]

    @pytest.mark.parametrize("fit", [TOKENS, WAITS])
    def test_grows_with_the_misses(self, fit: MissFit) -> None:
        margins = [learned(fit, share * 0.01, share * 0.05, seed=1).margin(1.0) for share in (0.2, 0.5, 1, 2, 4)]
        assert margins == sorted(margins)
        assert margins[-1] > 1.5 * margins[0]

    @pytest.mark.parametrize("goal", [0.009, 0.045, 0.45])
    @pytest.mark.parametrize(("power", "prior", "most"), [(1.7, 0.75, 80.0), (3.0, 0.93, 10.0)])
    def test_is_bounded_where_there_is_no_room(self, goal: float, power: float, prior: float, most: float) -> None:
        """However much misses however few replicas: some replicas for each, not a hundred."""
        for hours in (0.1, 1, 8):
            for low in (0.1, 0.5, 0.9, 1.3):
                fit = held(held(MissFit(goal, power, prior), low, 0.0, hours=hours), 1.33, 1.0, hours=hours)
                for c0 in (0.0, goal, 1.0):
                    worse = held(fit, low, c0, hours=hours)
                    assert 0 <= worse.margin(1.0) <= most

    def test_replicas_are_still_ordered_where_others_miss_for_no_fault_of_theirs(self) -> None:
        fit = learned(TOKENS, 0.1, 0.05)
        assert 1 < fit.margin(1.0) < 3


@pytest.mark.parametrize(("missed", "enough"), [(0.08, 1.15), (0.12, 1.3), (0.2, 1.55), (0.3, 1.8)])
def test_misses_at_one_load_are_taken_for_its_work(missed: float, enough: float) -> None:
    """At a flat load nothing tells what load does not cause: replicas are tried before a promise is given up."""
    fit = held(TOKENS, 0.62, missed, hours=2.0)
    assert not fit.unreachable(0.05)
    assert fit.margin(1.0) * 0.62 > enough * 0.95
    assert fit.margin(1.0) * 0.62 < enough * 2


class TestUnreachable:
    @pytest.mark.parametrize(("c0", "lost"), [(0.0, False), (0.03, False), (0.08, True), (0.5, True)])
    def test_is_what_no_number_of_replicas_keeps(self, c0: float, lost: bool) -> None:
        assert learned(TOKENS, c0, 0.05).unreachable(0.05) is lost

    def test_is_not_said_before_enough_was_seen(self) -> None:
        fit = TOKENS
        for _ in range(8):
            assert not fit.ripe
            assert not fit.unreachable(0.05)
            fit = fit.seen(0.2, 1.0, 15.0)
        fit = fit.seen(0.2, 1.0, 15.0)
        assert fit.ripe
        assert not fit.unreachable(0.05)
        for _ in range(40):
            fit = fit.seen(0.2, 1.0, 15.0)
        assert not fit.unreachable(0.05)  # at one load: fewer requests each may help
        for _ in range(20):
            fit = fit.seen(0.1, 1.0, 15.0)
        assert fit.unreachable(0.05)

    def test_a_fleet_that_was_only_ever_full_is_given_the_benefit(self) -> None:
        """All miss at 95 %: that may be the load, so replicas are tried first."""
        fit = held(TOKENS, 0.95, 0.4)
        assert not fit.unreachable(0.05)
        assert fit.margin(1.0) > 2


def test_looking_more_often_is_seeing_no_more() -> None:
    often = seldom = TOKENS
    for look in range(240):
        load, missed = 0.2 + 0.6 * (look % 20) / 20, 0.001 * (look % 20)
        seldom = seldom.seen(load, missed, 15.0)
        for _ in range(15):
            often = often.seen(load, missed, 1.0)
    assert often.line() == pytest.approx(seldom.line(), rel=0.02)


class TestShape:
    def test_is_one_before_anything_was_seen(self) -> None:
        assert Shape(1.7).value == 1.0
        assert Shape(1.7).seen(0.0, 5.0, 15.0).value == 1.0  # no work, no request that it would be of

    @pytest.mark.parametrize(
        ("work", "carried", "value"),
        [(5.0, 5.0, 1.0), (2.5, 5.0, 0.25), (6.0, 5.0, 1.44), (60.0, 5.0, 1.69), (3.0, 0.0, 1.0)],
    )
    def test_is_the_mean_of_work_over_what_the_replicas_were_there_for(
        self, work: float, carried: float, value: float
    ) -> None:
        assert Shape(2.0).seen(work, carried, 15.0).value == pytest.approx(value)

    def test_counts_by_work(self) -> None:
        """Nine requests in ten come at the peak, so most of them see a full fleet."""
        assert Shape(1.0).seen(9.0, 9.0, 15.0).seen(1.0, 9.0, 15.0).value == pytest.approx(0.9 + 0.1 / 9, rel=0.01)

    def test_what_was_is_forgotten(self) -> None:
        shape = Shape(2.0)
        for _ in range(480):
            shape = shape.seen(1.0, 10.0, 15.0)
        for _ in range(480 * 3):
            shape = shape.seen(10.0, 10.0, 15.0)
        assert shape.value > 0.99
