"""Quality as the runtime tells it: status, events, metrics, wasted GPU time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import GPUs, Group, Snapshot
from bandkeeper.kube.status import moved
from bandkeeper.quality.types import (
    Advice,
    Assessment,
    Bottleneck,
    Component,
    Measure,
    Quality,
    Waste,
)
from bandkeeper.runtime import quality as runtime
from bandkeeper.runtime.tracked import Tracked
from tests.unit.runtime_world import NAMESPACE, FakeElector, World
from tests.unit.test_runtime_report import tracked

PROSPEROUS = {  # busy all the time with hardly any work
    Signal.GPU_UTILIZATION: 1.0,
    Signal.GR_ENGINE_ACTIVE: 1.0,
    Signal.TENSOR_ACTIVE: 0.1,
    Signal.DRAM_ACTIVE: 0.1,
}
WORKING = {**PROSPEROUS, Signal.TENSOR_ACTIVE: 0.7, Signal.DRAM_ACTIVE: 0.6}
IDLE = {**PROSPEROUS, Signal.GPU_UTILIZATION: 0.05, Signal.GR_ENGINE_ACTIVE: 0.05}
BLIND = {**PROSPEROUS, Signal.TENSOR_ACTIVE: 1.4}


def a_world(counters: dict[Signal, float], **more: Any) -> World:
    world = World()
    world.metrics.more = counters
    world.deploy(replicas=2)
    world.apply(**more)
    return world


async def looks(world: World, number: int = 8) -> None:
    """So long that a class has settled and was told."""
    for _ in range(number):
        await world.look()


def changes(world: World) -> list[str]:
    """The notes of events about quality."""
    return [note for _, word, note in world.events.said if word == "QualityChanged"]


def sample(world: World, name: str, **labels: str) -> float | None:
    registry: CollectorRegistry = world.own.registry
    return registry.get_sample_value(f"bandkeeper_{name}", {"namespace": NAMESPACE, "policy": "chat", **labels})


async def test_the_status_names_class_bottleneck_measures_and_remedy() -> None:
    world = a_world(PROSPEROUS)
    await looks(world)
    found = world.status().quality
    assert found is not None
    assert (found.class_, found.bottleneck, found.reason) == ("Inefficient", "KernelLaunch", None)
    assert found.score is not None
    assert found.score <= 40
    assert found.evidence is not None
    assert "kernels run 100% of the time" in found.evidence
    assert {one.name for one in found.measures} >= {"ResourceBalance"}
    assert found.advice[0].evidence == found.evidence
    assert found.wasted is not None
    assert found.wasted.gpus == "2"
    stored = world.status().stored()["quality"]
    assert stored["class"] == "Inefficient"


@pytest.mark.parametrize("more", [{"mode": "Recommend"}, {"paused": True}], ids=["recommend", "paused"])
async def test_who_only_recommends_or_is_paused_shows_quality_too(more: dict[str, Any]) -> None:
    world = a_world(PROSPEROUS, **more)
    await looks(world)
    assert world.status().quality.class_ == "Inefficient"  # type: ignore[union-attr]
    assert sample(world, "quality_class", **{"class": "Inefficient"}) == 1
    assert world.written == []


async def test_counters_that_cannot_be_are_unknown_with_the_reason() -> None:
    world = a_world(BLIND)
    await looks(world)
    found = world.status().quality
    assert found is not None
    assert (found.class_, found.score, found.bottleneck, found.wasted) == ("Unknown", None, None, None)
    assert found.reason is not None
    assert "tensor_active reads 1.4" in found.reason
    assert changes(world) == []


async def test_a_change_of_class_is_said_once() -> None:
    world = a_world(WORKING)
    await looks(world)
    assert changes(world) == []  # as it was found
    world.metrics.more = PROSPEROUS
    await looks(world, 16)
    (note,) = changes(world)
    assert note.startswith("Quality Efficient -> Inefficient. KernelLaunch: kernels run 100%")
    assert "CUDA graphs" in note
    world.metrics.more = WORKING
    await looks(world, 16)
    assert len(changes(world)) == 2
    assert changes(world)[1].startswith("Quality Inefficient -> Efficient.")


async def test_what_wants_a_person_is_said_also_where_it_was_found_so() -> None:
    world = a_world(PROSPEROUS)
    await looks(world, 12)
    (note,) = changes(world)
    assert note.startswith("Quality is Inefficient.")


async def test_unknown_is_no_class_and_what_flaps_is_not_said() -> None:
    world = a_world(WORKING)
    await looks(world)
    for _ in range(4):
        world.metrics.more = BLIND
        await looks(world, 3)
        world.metrics.more = WORKING
        await looks(world, 3)
    for _ in range(4):
        world.metrics.more = PROSPEROUS
        await looks(world, 2)
        world.metrics.more = WORKING
        await looks(world, 2)
    assert changes(world) == []


async def test_a_new_leader_says_what_changed_since_the_last_one_told() -> None:
    world = a_world(PROSPEROUS)
    world.show_status("chat", {"quality": {"class": "Efficient", "confidencePercent": 90}})
    await looks(world, 12)
    (note,) = changes(world)
    assert note.startswith("Quality Efficient -> Inefficient.")
    again = a_world(PROSPEROUS)
    again.show_status("chat", {"quality": {"class": "Inefficient", "confidencePercent": 90}})
    await looks(again, 12)
    assert changes(again) == []


async def test_metrics_show_the_class_alone_and_lose_what_is_gone() -> None:
    world = a_world(PROSPEROUS)
    await looks(world)
    assert sample(world, "quality_class", **{"class": "Inefficient"}) == 1
    assert sample(world, "quality_score") is not None
    assert sample(world, "quality_bottleneck", component="KernelLaunch") == 1
    assert sample(world, "gpus") == 2
    world.metrics.more = BLIND
    await looks(world)
    assert sample(world, "quality_class", **{"class": "Inefficient"}) is None
    assert sample(world, "quality_class", **{"class": "Unknown"}) == 1
    assert sample(world, "quality_score") is None
    world.delete()
    await world.look()
    assert sample(world, "quality_class", **{"class": "Unknown"}) is None
    assert sample(world, "gpu_seconds_total", judged="true") is None


async def test_idle_gpu_time_is_counted_with_its_cost() -> None:
    world = a_world(IDLE, cost={"pricePerGPUHour": "3.60", "currency": "EUR"}, mode="Recommend")
    await looks(world, 3)
    before = sample(world, "wasted_gpu_seconds_total", cause="idle_held") or 0.0
    held = sample(world, "gpu_seconds_total", judged="true") or 0.0
    await looks(world, 4)
    wasted = (sample(world, "wasted_gpu_seconds_total", cause="idle_held") or 0.0) - before
    assert (sample(world, "gpu_seconds_total", judged="true") or 0.0) - held == pytest.approx(2 * 4 * 15)
    assert wasted == pytest.approx(0.95 * 2 * 4 * 15)
    total = sample(world, "wasted_gpu_seconds_total", cause="idle_held") or 0.0
    cost = sample(world, "wasted_gpu_cost_total", cause="idle_held", currency="EUR")
    assert cost == pytest.approx(total * 3.60 / 3600)
    assert world.status().quality.wasted.cost_per_hour.endswith("EUR")  # type: ignore[union-attr]


async def test_what_nobody_judged_is_not_called_waste() -> None:
    world = a_world(BLIND)
    await looks(world, 4)
    assert sample(world, "gpu_seconds_total", judged="false") == pytest.approx(2 * 3 * 15)
    assert sample(world, "wasted_gpu_seconds_total", cause="idle_held") is None


async def test_only_the_leader_counts_and_nobody_counts_a_long_gap() -> None:
    world = a_world(IDLE)
    standby = world.operator(elector=FakeElector(0.0))
    for _ in range(4):
        await world.look(standby)
    assert sample(world, "gpu_seconds_total", judged="true") is None
    await looks(world, 2)
    held = sample(world, "gpu_seconds_total", judged="true")
    assert held == pytest.approx(30)
    await world.look(after_s=runtime.LONGEST_GAP_S + 1)
    assert sample(world, "gpu_seconds_total", judged="true") == held


def judged(found: Assessment, **more: Any) -> Tracked:
    """A policy whose last look had this judgement."""
    known = tracked()
    assert known.decision is not None
    known.decision = replace(known.decision, quality=found)
    return replace(known, **more)


def with_gpus(known: Tracked, asked: float | None, seen: GPUs | None) -> Tracked:
    """Its pods ask for so many GPUs, and an exporter shows these."""
    known.pods = tuple(replace(pod, gpus=asked) for pod in known.pods)
    assert known.snapshot is not None
    gpus = {pod.name: seen for pod in known.pods} if seen else {}
    known.snapshot = replace(known.snapshot, gpus=gpus)
    return known


@pytest.mark.parametrize(
    ("asked", "seen", "held"),
    [
        (2.0, None, 4.0),
        (3 / 7, GPUs(count=1, mig=True), 6 / 7),
        (None, GPUs(count=2), 4.0),
        (None, GPUs(count=2, mig=True), None),
        (1.0, GPUs(count=1, shared=True), None),
        (None, None, None),
    ],
    ids=["asked for", "MIG", "seen", "MIG that is only seen", "time-sliced", "nobody knows"],
)
def test_gpus_are_those_that_are_known_to_be_held(asked: float | None, seen: GPUs | None, held: float | None) -> None:
    found = runtime.gpus_held(with_gpus(tracked(), asked, seen))
    assert found == (None if held is None else pytest.approx(held))


@pytest.mark.parametrize(
    ("group", "asked", "seen", "held"),
    [
        (Group(pods=4, gpus=32.0), 8.0, None, 64.0),
        (Group(pods=3, gpus=16.0), None, None, 32.0),
        (Group(pods=4), None, GPUs(count=8), 64.0),
        (Group(pods=4, gpus=32.0), 8.0, GPUs(count=8, shared=True), None),
    ],
    ids=["as the leaders", "leaders without GPUs", "seen", "time-sliced"],
)
def test_a_leader_stands_for_the_gpus_of_its_group(
    group: Group, asked: float | None, seen: GPUs | None, held: float | None
) -> None:
    known = with_gpus(tracked(), asked, seen)
    assert known.scale is not None
    known.scale = replace(known.scale, target=replace(known.scale.target, group=group))
    assert runtime.gpus_held(known) == held


def test_long_texts_and_many_figures_fit() -> None:
    found = Assessment(
        quality=Quality.EFFICIENT,
        score=99.6,
        confidence=0.999,
        bottleneck=Bottleneck(Component.COMPUTE, 1.0, "e" * 999),
        measures=(
            *(Measure(f"Measure{number}", 10.0 ** (number - 2), "FLOP/byte", "s" * 999, 0.5) for number in range(9)),
            Measure("Missing", None, "ratio", "why"),
        ),
        waste=Waste(0.4, 0.25, "source"),
        advice=tuple(Advice(f"R{number}", "t" * 999, "e" * 999) for number in range(9)),
        age_s=31.4,
    )
    status = runtime.quality_of(with_gpus(judged(found), 1.0, None))
    assert status is not None
    assert (status.score, status.confidence_percent, status.age) == (100, 100, "31s")
    assert len(status.advice) == 3
    assert [one.value for one in status.measures] == ["0.01", "0.1", "1", "10", "100", "1,000"]
    assert status.wasted is not None
    assert (status.wasted.idle_held_percent, status.wasted.below_possible_percent) == (40, 25)
    assert status.wasted.cost_per_hour is None


def test_nothing_is_said_where_nothing_was_judged() -> None:
    known = tracked()
    known.unjudged()
    assert runtime.quality_of(known) is None
    known.snapshot = Snapshot(target=None)
    assert runtime.spent(known, 10.0) is None


def test_an_age_alone_is_no_news() -> None:
    old = {"quality": {"class": "Mixed", "age": "5s", "score": 50}}
    assert not moved(old, {"quality": {"class": "Mixed", "age": "59s", "score": 51}})
    assert moved(old, {"quality": {"class": "Mixed", "age": "5s", "score": 56}})
