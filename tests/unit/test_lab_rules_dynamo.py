"""Dynamo's loops: one up when all are over, one down when the rest would stay well under, a floor by rate."""

from __future__ import annotations

from bandkeeper.lab.rules.dynamo import Dynamo
from tests.unit.lab_views import DYNAMIC, SERVER, a_setting, a_view, offering


def _rule(share: float = 1.0, *, rate_floor: bool = False) -> Dynamo:
    return Dynamo(a_setting(), share=share, rate_floor=rate_floor)


def test_up_by_one_when_every_worker_would_be_late() -> None:
    # 20 prompts of 1,000 tokens wait per pod: more than two seconds of prefill before a new one.
    assert _rule().decide(offering(60.0, 8.0, running=40.0, waiting=20.0)).replicas == 5


def test_down_by_one_when_the_rest_stays_under_the_sensitivity() -> None:
    quiet = offering(60.0, 2.0, running=5.0)

    assert _rule(1.0).decide(quiet).replicas == 3
    assert _rule(0.25).decide(quiet).replicas == 4


def test_nothing_moves_while_a_pod_is_on_its_way() -> None:
    assert _rule().decide(offering(60.0, 8.0, running=40.0, waiting=20.0, pending=1)).replicas == 5


def test_the_rate_loop_is_a_floor_every_three_minutes() -> None:
    rule = _rule(rate_floor=True)
    per_replica = SERVER.sustainable_per_s(1000.0, 200.0)

    assert rule.decide(offering(0.0, 7.5 * per_replica, running=10.0)).replicas >= 8
    assert rule.decide(offering(175.0, 0.5 * per_replica, running=1.0, ready=8)).replicas >= 7
    assert rule.decide(offering(180.0, 0.5 * per_replica, running=1.0, ready=8)).replicas == 7
    assert rule.decide(offering(185.0, 0.5 * per_replica, running=1.0, ready=7)).replicas == 6


def test_without_metrics_it_holds() -> None:
    assert _rule().decide(a_view(ready=3)).replicas == 3
    assert Dynamo.choices(a_setting(DYNAMIC)) == ()
    assert [choice.label for choice in Dynamo.choices(a_setting()) if choice.default] == ["load 1.00"]
