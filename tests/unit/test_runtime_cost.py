"""A policy's account of GPU time: what it was held for and what it cost, in metrics and status, and after a restart."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from bandkeeper.api.v1alpha1 import CostStatus, RuleCost
from bandkeeper.decide.decision import RULES
from bandkeeper.kube.status import moved
from bandkeeper.runtime.cost import TOLD_EVERY_S, resumed
from tests.unit.runtime_world import FakeElector, World
from tests.unit.test_runtime_quality import BLIND, IDLE, a_world, looks, sample

EUROS = {"pricePerGPUHour": "3.60", "currency": "EUR"}
HOUR = 3600.0


def by_rule(world: World) -> dict[str, float]:
    names = (*RULES, "unknown")
    found = {rule: sample(world, "gpu_seconds_by_rule_total", rule=rule) for rule in names}
    return {rule: value for rule, value in found.items() if value is not None}


def counted(world: World) -> dict[str, float]:
    return {rule: value for rule, value in by_rule(world).items() if value}


async def told(world: World, **changes: Any) -> CostStatus:
    """The account as the status has it once it was brought up to date; looks no further apart than may be counted."""
    for _ in range(int(TOLD_EVERY_S // 60) + 1):
        await world.look(after_s=60.0)
    cost = world.status().cost
    assert cost is not None
    return cost.model_copy(update=changes)


async def test_gpu_time_is_counted_by_what_it_is_held_for() -> None:
    world = a_world(IDLE)
    world.metrics.running_per_pod = 10.0  # the work of 0.6 replicas; two are held
    await looks(world, 5)
    held = sample(world, "gpu_seconds_total", judged="true") or 0.0
    found = by_rule(world)
    assert set(found) == {*RULES, "unknown"}  # each begins at 0, or Prometheus would miss its first increase
    assert set(counted(world)) == {"work", "hold"}
    assert 0 < found["work"] < held == pytest.approx(2 * 4 * 15)
    assert found["hold"] == pytest.approx(held / 2)  # one of two replicas would do


async def test_time_of_which_nobody_knows_is_unknown_and_of_no_rule() -> None:
    world = a_world(IDLE)
    world.metrics.down = True
    await looks(world, 5)
    assert counted(world) == {"unknown": pytest.approx(2 * 4 * 15)}


async def test_the_info_of_a_policy_follows_its_spec_and_goes_with_it() -> None:
    world = a_world(IDLE)
    await world.look()
    said = {"mode": "Enforce", "runtime": "VLLM"}
    assert sample(world, "policy_info", objective="LatencySensitive", **said) == 1
    world.apply(objective="Balanced")
    await world.look()
    assert sample(world, "policy_info", objective="LatencySensitive", **said) is None
    assert sample(world, "policy_info", objective="Balanced", **said) == 1
    world.delete()
    await world.look()
    assert sample(world, "policy_info", objective="Balanced", **said) is None
    assert by_rule(world) == {}


async def test_the_status_tells_hours_waste_money_and_rules_since_when() -> None:
    world = a_world(IDLE, cost=EUROS)
    await world.look()
    began = world.now
    cost = await told(world)
    hours = 2 * (world.now - began) / HOUR
    assert float(cost.gpu_hours) == pytest.approx(hours, abs=2e-3)
    assert cost.judged_gpu_hours == cost.gpu_hours
    assert float(cost.wasted_gpu_hours or "0") == pytest.approx(0.95 * hours, abs=2e-3)
    assert float(cost.cost or "0") == pytest.approx(3.60 * hours, abs=0.01)
    assert float(cost.wasted_cost or "0") == pytest.approx(0.95 * 3.60 * hours, abs=0.01)
    assert (cost.currency, cost.objective, cost.since) == ("EUR", "LatencySensitive", "2023-11-14T22:13:35Z")
    assert [one.rule for one in cost.by_rule] == list(RULES)
    stored = world.status().stored()["cost"]
    assert {"gpuHours", "judgedGPUHours", "wastedGPUHours", "byRule"} <= set(stored)


async def test_without_counters_and_price_neither_waste_nor_money_is_told() -> None:
    world = a_world(BLIND)
    await world.look()
    cost = await told(world)
    assert float(cost.gpu_hours) > 0
    assert (cost.judged_gpu_hours, cost.wasted_gpu_hours) == ("0.000", None)
    assert (cost.currency, cost.cost, cost.wasted_cost) == (None, None, None)


async def test_the_status_is_brought_up_to_date_every_ten_minutes_only() -> None:
    world = a_world(IDLE)
    times = set()
    for _ in range(121):
        await world.look()
        if (cost := world.status().cost) is not None:
            times.add(cost.until)
    assert 3 <= len(times) <= 4  # over 30 minutes


async def test_the_next_leader_goes_on_with_the_account_of_the_last() -> None:
    before = a_world(IDLE, cost=EUROS)
    await before.look()
    known = await told(before)
    after = a_world(IDLE, cost=EUROS)
    after.now = before.now
    after.show_status("chat", before.status().stored())
    await after.look()
    began = after.now
    cost = await told(after)
    hours = float(known.gpu_hours) + 2 * (datetime.fromisoformat(cost.until).timestamp() - began) / HOUR
    assert cost.since == known.since
    assert float(cost.gpu_hours) == pytest.approx(hours, abs=2e-3)
    assert float(cost.cost or "0") == pytest.approx(3.60 * hours, abs=0.02)
    work = [next(float(one.gpu_hours) for one in each.by_rule if one.rule == "work") for each in (known, cost)]
    assert work[1] == pytest.approx(work[0] * hours / float(known.gpu_hours), rel=0.05)


async def test_a_standby_counts_nothing_and_begins_with_what_the_leader_told_last() -> None:
    world = a_world(IDLE)
    elector = FakeElector(0.0)
    standby = world.operator(elector=elector)
    await looks(world, 2)
    for _ in range(4):
        await world.look(standby)
    cost = await told(world)
    world.show_status("chat", world.status().stored())
    world.elector.left_s, elector.left_s = 0.0, 9.0
    await world.look(standby)
    account = world.tracked(loop=standby).account
    assert account is not None
    assert account.held == pytest.approx(float(cost.gpu_hours))


@pytest.mark.parametrize(
    "changes",
    [{"objective": "Balanced"}, {"cost": {"pricePerGPUHour": "3.60", "currency": "USD"}}, {"cost": None}],
    ids=["objective", "currency", "no price"],
)
async def test_another_objective_or_currency_begins_another_account(changes: dict[str, Any]) -> None:
    world = a_world(IDLE, cost=EUROS)
    await world.look()
    before = await told(world)
    world.apply(**{"cost": EUROS, **changes})
    after = await told(world)
    assert after.since > before.since
    assert float(after.gpu_hours) <= float(before.gpu_hours) + 0.05


async def test_another_price_of_the_same_currency_does_not() -> None:
    world = a_world(IDLE, cost=EUROS)
    await world.look()
    before = await told(world)
    world.apply(cost={**EUROS, "pricePerGPUHour": "7.20"})
    after = await told(world)
    assert after.since == before.since
    assert float(after.cost or "0") == pytest.approx(3 * float(before.cost or "0"), rel=0.1)


def a_cost(**changes: Any) -> CostStatus:
    fields = {
        "since": "2026-01-01T00:00:00Z",
        "until": "2026-01-02T00:00:00Z",
        "objective": "Balanced",
        "gpu_hours": "12.500",
        "judged_gpu_hours": "10.000",
        "wasted_gpu_hours": "2.500",
        "by_rule": [RuleCost(rule="band", gpu_hours="1.250"), RuleCost(rule="astrology", gpu_hours="1.000")],
    }
    return CostStatus(**{**fields, **changes})


def test_an_account_is_read_back_but_for_rules_that_nobody_knows_any_more() -> None:
    found = resumed(a_cost())
    assert found is not None
    assert (found.held, found.judged, found.wasted, found.by_rule) == (12.5, 10.0, 2.5, {"band": 1.25})


@pytest.mark.parametrize(
    "changes",
    [{"gpu_hours": "-1"}, {"gpu_hours": "nan"}, {"judged_gpu_hours": "many"}, {"cost": "inf"}, {"since": "long ago"}],
    ids=lambda change: next(iter(change)),
)
def test_an_account_that_cannot_be_meant_begins_anew(changes: dict[str, str]) -> None:
    assert resumed(a_cost(**changes)) is None


def test_a_little_more_is_no_news_by_itself() -> None:
    old = {"cost": {"gpuHours": "100.000"}}
    assert not moved(old, {"cost": {"gpuHours": "101.000"}})
