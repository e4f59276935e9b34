"""What the actor makes of each outcome, and that it writes replicas and cap only as decided."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bandkeeper.actuate.outcome import Outcome
from bandkeeper.api.snapshot import Rollout
from bandkeeper.kube.client import Forbidden, Unavailable
from bandkeeper.kube.discovery import TargetError, TargetProblem
from bandkeeper.runtime.act import Actor
from bandkeeper.runtime.tracked import Backoff, Tracked
from tests.unit.runtime_world import World

BATCH = {"min": 8, "max": 64, "adapter": {"type": "Annotation"}}
LESS = {"min": 1, "max": 2}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.loop._stop()


async def decided(world: World, **spec: Any) -> tuple[Actor, Tracked]:
    """A policy on three replicas that was decided on by one who did not lead, and the actor to carry it out."""
    world.elector.left_s = 0.0
    world.deploy(replicas=3)
    world.apply(**spec)
    await world.look()
    world.elector.left_s = 9.0
    return world.loop._actor, world.tracked()


OUTCOMES = [
    (Outcome.FORBIDDEN, True),
    (Outcome.REFUSED, True),
    (Outcome.NOT_FOUND, True),
    (Outcome.FAILED, True),
    (Outcome.CHANGED, False),  # nothing is wrong: decide again on what is there now
    (Outcome.UNCHANGED, False),
]


@pytest.mark.parametrize(("outcome", "waits"), OUTCOMES, ids=[case[0] for case in OUTCOMES])
async def test_a_write_that_failed_is_tried_again_later_and_told(world: World, outcome: Outcome, waits: bool) -> None:
    actor, tracked = await decided(world, replicas={"min": 5, "max": 8})
    world.replicas.refusals["chat"] = outcome
    await actor.scale(tracked)
    assert tracked.scale_result is not None
    assert tracked.scale_result.outcome is outcome
    assert tracked.changes == []
    await actor.scale(tracked)
    assert len(world.replicas.attempts) == (1 if waits else 2)
    world.now += 60.0
    await actor.scale(tracked)
    assert len(world.replicas.attempts) == (2 if waits else 3)


async def test_what_was_written_is_remembered_as_ours(world: World) -> None:
    actor, tracked = await decided(world, replicas={"min": 5, "max": 8})
    await actor.scale(tracked)
    assert world.written == [("chat", 5)]
    assert tracked.scale is not None
    assert tracked.scale.target.replicas == 5
    assert tracked.state.ownership.expected == 5
    assert [(change.from_replicas, change.direction) for change in tracked.changes] == [(3, "up")]


async def test_rule_6_what_somebody_else_changed_is_not_overwritten(world: World) -> None:
    actor, tracked = await decided(world, replicas={"min": 5, "max": 8}, batch=BATCH)
    world.scale("chat", 4)
    await actor.scale(tracked)
    await actor.set_cap(tracked)
    assert world.written == []
    assert world.client.patches == []  # what the cap was decided on is gone too
    assert tracked.target_read_at is None


LATE = [
    ("a rollout", 3, Rollout(), []),
    ("a rollout past its deadline", 3, Rollout(deadline_exceeded=True), [("chat", 2)]),
    ("another count", 4, None, []),
    ("nothing", 3, None, [("chat", 2)]),
]


@pytest.mark.parametrize(("name", "replicas", "rollout", "written"), LATE, ids=[case[0] for case in LATE])
async def test_rule_3_the_target_is_read_again_before_replicas_are_let_go(
    world: World, name: str, replicas: int, rollout: Rollout | None, written: list[tuple[str, int]]
) -> None:
    actor, tracked = await decided(world, replicas=LESS)
    world.scale("chat", replicas, rollout=rollout)
    await actor.scale(tracked)
    assert world.written == written


async def test_rule_1_nothing_is_let_go_where_the_target_cannot_be_read(world: World) -> None:
    actor, tracked = await decided(world, replicas=LESS)
    world.replicas.problems["chat"] = TargetProblem.UNAVAILABLE
    await actor.scale(tracked)
    assert world.replicas.attempts == []
    assert tracked.scale_result is not None
    assert tracked.scale_result.outcome is Outcome.FAILED


async def test_rule_6_without_the_lease_there_is_no_time_to_write(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, tracked = await decided(world, replicas={"min": 5, "max": 8}, batch=BATCH)
    monkeypatch.setattr(tracked.managed.adapter, "_clock", world.clock)
    world.elector.left_s = 0.0
    await actor.scale(tracked)
    await actor.set_cap(tracked)
    assert world.replicas.deadlines == [world.now]
    assert (world.written, world.client.patches) == ([], [])


async def test_a_cap_that_is_refused_is_told_and_tried_again_later(world: World) -> None:
    actor, tracked = await decided(world, batch=BATCH)
    attempts: list[None] = []
    world.client.before = lambda: attempts.append(None)
    world.client.error = Forbidden(
        403, "Forbidden", 'pods "chat-0" is forbidden: User "x" cannot patch resource "pods"'
    )
    await actor.set_cap(tracked)
    await actor.set_cap(tracked)
    assert len(attempts) == 3  # one for each pod, once
    assert tracked.cap_result is not None
    assert "adapters.annotation.enabled" in tracked.cap_result.message
    world.client.error = None
    world.now += 60.0
    await actor.set_cap(tracked)
    assert len(world.client.patches) == 3


async def test_a_partly_written_cap_is_finished_by_the_next_tick(world: World) -> None:
    actor, tracked = await decided(world, batch=BATCH)
    calls = iter(range(10))

    def fail_first() -> None:
        world.client.error = Unavailable(0, "Timeout", "no answer") if next(calls) == 0 else None

    world.client.before = fail_first
    await actor.set_cap(tracked)
    assert tracked.cap_result is not None
    assert tracked.cap_result.outcome is Outcome.PARTIAL
    world.client.before = lambda: None
    world.client.error = None
    await world.look()
    await world.look()
    assert len(world.client.patches) == 3
    assert world.tracked().cap_result is not None
    assert world.condition("BatchApplied") == ("True", "Applied")


async def test_a_cap_that_is_written_in_several_ticks_is_one_move(world: World) -> None:
    actor, tracked = await decided(world, batch=BATCH)
    assert tracked.decision is not None
    tracked.decision = dataclasses.replace(tracked.decision, cap=32)
    calls = iter(range(10))

    def fail_every_third() -> None:
        world.client.error = Unavailable(0, "Timeout", "no answer") if next(calls) % 3 == 0 else None

    world.client.before = fail_every_third
    await actor.set_cap(tracked)
    await actor.set_cap(tracked)
    assert len(world.client.patches) == 4
    assert [(change.from_cap, change.direction) for change in tracked.changes] == [(64, "lowered")]


async def test_a_kind_that_cannot_be_resolved_is_a_failed_write_not_a_fault(world: World) -> None:
    actor, tracked = await decided(world, batch=BATCH)
    world.discovery.problem = TargetError(TargetProblem.UNAVAILABLE, "the API server did not answer")
    await actor.set_cap(tracked)
    assert tracked.cap_result is not None
    assert tracked.cap_result.message == "the API server did not answer"


async def test_nothing_to_do_ends_earlier_failures(world: World) -> None:
    actor, tracked = await decided(world, replicas={"min": 5, "max": 8})
    world.replicas.refusals["chat"] = Outcome.FORBIDDEN
    await actor.scale(tracked)
    world.scale("chat", 5)
    world.pod("chat", 3)
    world.pod("chat", 4)
    await world.look()
    assert tracked.scale_result is None
    assert not tracked.scale_retry.holds(world.now)


def test_a_backoff_doubles_up_to_its_limit_and_forgets() -> None:
    backoff, now_s, waits = Backoff(first_s=1.0, most_s=8.0), 100.0, []
    for _ in range(6):
        backoff.failed(now_s)
        waits.append(backoff.until_s - now_s)
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert backoff.holds(now_s + 7.9)
    assert not backoff.holds(now_s + 8.0)
    backoff.clear()
    assert not backoff.holds(now_s)
