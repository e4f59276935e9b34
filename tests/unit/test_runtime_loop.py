"""The control loop: each safety rule that it answers for has a test here that fails without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import generate_latest

from bandkeeper.actuate.outcome import Outcome
from bandkeeper.api.snapshot import Rollout
from bandkeeper.api.v1alpha1 import Status
from bandkeeper.kube.discovery import TargetProblem
from bandkeeper.runtime import loop as loop_module
from bandkeeper.runtime.lanes import MOST_COLLECTIONS
from bandkeeper.runtime.report import readable
from tests.unit.runtime_world import NAMESPACE, FakeElector, FakeEvents, FakeStatuses, World

MORE = {"min": 3, "max": 8}  # of two replicas, so that the first look wants three


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.02)
    monkeypatch.setattr(loop_module, "FINISH_S", 0.02)
    monkeypatch.setattr(loop_module, "MIN_GAP_S", 0.01)
    made = World()
    yield made
    await made.loop._stop()


async def test_a_status_is_read_again_only_when_it_has_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby looks at every policy in every tick, and reading a status costs as much as half a decision."""
    read: list[Any] = []

    def reading(status: Any) -> Status:
        read.append(status)
        return readable(status)

    monkeypatch.setattr(loop_module, "readable", reading)
    world.elector.left_s = 0.0
    world.deploy()
    world.apply()
    world.show_status("chat", {"observedGeneration": 1})
    await world.look()
    await world.look()
    assert read == [{"observedGeneration": 1}]
    world.show_status("chat", {"observedGeneration": 2})
    await world.look()
    assert world.tracked().status.observed_generation == 2
    world.elector.left_s = 60.0
    await world.look()  # now it tells its own
    world.elector.left_s = 0.0
    await world.look()
    assert world.tracked().status.observed_generation == 2
    assert len(read) == 3


# Who may write, and when.


async def test_a_look_writes_what_is_wanted_and_reports_it(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.events.about("chat") == ["ScaleUp"]
    status = world.status()
    assert status.replicas is not None
    assert (status.replicas.current, status.replicas.desired) == (3, 3)
    assert status.history[0].from_replicas == 2
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.events.about("chat") == ["ScaleUp"]


async def test_rule_6_a_standby_decides_and_writes_nothing(world: World) -> None:
    world.elector.left_s = 0.0
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    decision = world.tracked().decision
    assert decision is not None
    assert decision.replicas == 3
    assert (world.replicas.attempts, world.client.patches) == ([], [])
    assert (world.statuses.submitted, world.events.said) == ([], [])
    world.elector.left_s = 9.0
    await world.look()
    assert world.written == [("chat", 3)]


async def test_rule_6_every_write_ends_with_the_lease(world: World) -> None:
    world.elector.left_s = 4.0
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    assert world.replicas.deadlines == [world.now + 4.0]


async def test_rule_6_no_second_write_after_the_lease_was_lost_in_the_first(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE, batch={"min": 8, "max": 64, "adapter": {"type": "Annotation"}})
    world.replicas.before_write = lambda: setattr(world.elector, "left_s", 0.0)
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.client.patches == []


async def test_nothing_is_decided_or_written_before_every_store_is_synced(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE)
    world.hpas.listed.clear()
    running = asyncio.create_task(world.loop.run())
    await world.rest()
    assert (world.metrics.streams, world.replicas.attempts) == ([], [])
    assert world.loop.ready() == "waiting for the Kubernetes API: the first list is not in"
    world.hpas.listed.set()
    await world.rest()
    assert world.written == [("chat", 3)]
    assert world.loop.ready() is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("store", ["policies", "pods", "hpas"])
async def test_any_stale_store_forbids_scale_in(world: World, store: str) -> None:
    getattr(world, store).age = 61.0
    world.deploy(replicas=3)
    world.apply(replicas={"min": 1, "max": 2})
    await world.look()
    assert world.replicas.attempts == []
    snapshot = world.tracked().snapshot
    assert snapshot is not None
    assert (snapshot.pods_age_s, snapshot.stalest) == (61.0, getattr(world, store).plural)
    getattr(world, store).age = 1.0
    await world.look()
    assert world.written == [("chat", 2)]


@pytest.mark.parametrize("how", [{"paused": True}, {"mode": "Recommend"}])
async def test_rule_7_paused_and_recommending_policies_write_neither_knob(world: World, how: dict[str, Any]) -> None:
    world.deploy()
    world.apply(replicas=MORE, batch={"min": 8, "max": 32, "adapter": {"type": "Annotation"}}, **how)
    for _ in range(3):
        await world.look()
    assert (world.replicas.attempts, world.client.patches) == ([], [])
    assert world.condition("Conflicted")[0] == "False"


async def test_rule_7_a_conflicted_policy_writes_neither_knob(world: World) -> None:
    world.hpa()
    world.deploy()
    world.apply(replicas=MORE, batch={"min": 8, "max": 32, "adapter": {"type": "Annotation"}})
    await world.look()
    assert (world.replicas.attempts, world.client.patches) == ([], [])
    assert world.condition("Ready") == ("False", "Conflicted")
    assert world.events.about("chat") == ["Conflicted"]


async def test_a_pause_that_comes_between_decision_and_write_counts(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE, batch={"min": 8, "max": 64, "adapter": {"type": "Annotation"}})
    world.replicas.before_write = lambda: world.apply(replicas=MORE, paused=True)
    await world.look()
    assert world.client.patches == []


async def test_rule_8_what_a_crash_left_undone_is_done_by_the_next_tick(world: World) -> None:
    batch = {"min": 8, "max": 64, "adapter": {"type": "Annotation"}}
    world.deploy()
    world.apply(replicas=MORE, batch=batch)
    world.replicas.before_write = lambda: setattr(world.elector, "left_s", 0.0)  # dies between the two writes
    await world.look()
    next_one = world.operator(elector=FakeElector())
    await world.look(next_one)
    assert world.written == [("chat", 3)]
    assert len(world.client.patches) == 2
    await next_one._stop()


async def test_rule_8_deleting_a_policy_leaves_the_workload_and_nothing_of_the_policy(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    world.delete()
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.statuses.forgotten == ["uid-chat"]
    assert 'policy="chat"' not in exposed(world)
    assert (world.loop._tracked, world.loop._interpreter._known) == ({}, {})


async def test_a_policy_that_waits_for_a_finalizer_acts_no_more(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE)
    world.policies.objects[NAMESPACE, "chat"]["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    await world.look()
    assert world.replicas.attempts == []
    assert world.statuses.submitted == []


async def test_a_report_that_comes_after_the_policy_is_gone_leaves_no_trace(world: World) -> None:
    def gone() -> None:
        world.delete()
        world.loop.tick(full=False)

    world.deploy()
    world.apply(replicas=MORE)
    world.replicas.before_write = gone
    await world.look()
    assert 'policy="chat"' not in exposed(world)  # nor the count of the write that went through
    assert world.statuses.submitted == []
    assert world.events.about("chat") == ["ScaleUp"]  # what was written was written


async def test_a_report_that_fails_does_not_tell_the_same_move_again_and_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> list[object]:
        raise RuntimeError("boom")

    world.deploy()
    world.apply(replicas=MORE)
    monkeypatch.setattr(loop_module, "findings", broken)
    for _ in range(3):
        await world.look()
    assert world.events.about("chat") == ["ScaleUp"]
    assert "a policy's tick failed" in caplog.text


async def test_a_policy_that_goes_during_its_look_is_not_judged(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE)
    world.loop.tick(full=True)
    tracked = world.tracked()
    await until(lambda: world.replicas.reads != [])
    world.delete()
    world.loop.tick(full=False)
    await world.rest()
    assert tracked.decision is None
    assert world.replicas.attempts == []


async def test_a_policy_that_becomes_wrong_during_a_write_is_told_so_after_it(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE)

    def spoil() -> None:
        world.apply(replicas=MORE, runtime="Nobody")
        world.loop.tick(full=False)
        assert world.tracked().decision is not None  # what was decided on stays until the write has ended

    world.replicas.before_write = spoil
    await world.look()
    assert world.tracked().state.ownership.expected == 3
    assert world.loop._wake.is_set()
    world.loop.tick(full=False)
    assert world.condition("Ready") == ("False", "UnknownRuntime")


# Nobody waits for another's trouble.


async def test_rule_9_a_hung_prometheus_holds_up_only_its_own_policies(world: World) -> None:
    world.metrics.hung = {"other"}
    for name, chosen in (("a", {"name": "default"}), ("b", {"name": "other"})):
        world.deploy(name)
        world.apply(name, prometheus=chosen)
    for number in range(3):
        await world.look()
        assert world.metrics.streams.count(("serving/a",)) == number + 1
    assert world.metrics.streams.count(("serving/b",)) == 1  # the look under way is not joined by another


async def test_rule_9_a_policy_that_was_left_out_is_looked_at_as_soon_as_it_can(world: World) -> None:
    world.metrics.hung = {"default"}
    world.deploy()
    world.apply()
    await world.look()
    world.apply(replicas=MORE)
    await world.look(full=False, after_s=0.1)
    assert not world.loop._wake.is_set()
    for task in world.loop._looking:
        task.cancel()
    await world.rest()
    assert world.loop._wake.is_set()
    world.metrics.hung = set()
    await world.look(full=False, after_s=0.1)
    assert world.written == [("chat", 3)]


async def test_rule_9_a_target_that_does_not_answer_holds_up_nobody(world: World) -> None:
    world.replicas.hung = {"slow"}
    for name in ("slow", "chat"):
        world.deploy(name)
        world.apply(name, replicas=MORE)
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.replicas.reads.count("slow") == 1
    await world.look()
    assert world.replicas.reads.count("slow") == 1


async def test_a_target_that_answers_late_does_not_wait_for_the_next_period(world: World) -> None:
    answer = asyncio.Event()
    world.replicas.before_read = answer.wait
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    assert world.written == []
    world.loop._wake.clear()
    answer.set()
    await world.rest()
    assert world.loop._wake.is_set()
    await world.look(full=False, after_s=0.1)
    assert world.written == [("chat", 3)]
    assert world.replicas.reads == ["chat"]


async def test_rule_9_a_write_that_hangs_holds_up_nobody(world: World) -> None:
    world.replicas.hung_writes = {"slow"}
    for name in ("slow", "chat"):
        world.deploy(name)
        world.apply(name, replicas=MORE)
    await world.look()
    assert world.written == [("chat", 3)]
    world.apply("chat", replicas={"min": 4, "max": 8})
    await world.look()
    assert world.written == [("chat", 3), ("chat", 4)]
    assert world.replicas.attempts.count(("slow", 3)) == 1  # and nobody writes beside it


async def test_rule_9_an_unforeseen_fault_stays_with_its_policy(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("odd", "chat"):
        world.deploy(name)
        world.apply(name, replicas=MORE)
    world.replicas.selectors["odd"] = "app=odd,!!"  # whatever a custom resource gives out as its selector
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.condition("Ready", "odd") == ("False", "TargetWithoutSelector")


async def test_rule_9_a_policy_that_cannot_be_read_stops_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("odd", "chat"):
        world.deploy(name)
        world.apply(name, replicas=MORE)
    resolve = world.loop._interpreter._resolve

    def odd(base: dict[str, object], spec: object, preset: object) -> object:
        if base["ref"].name == "odd":  # type: ignore[attr-defined]
            raise RuntimeError("boom")
        return resolve(base, spec, preset)  # type: ignore[arg-type]

    monkeypatch.setattr(world.loop._interpreter, "_resolve", odd)
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.condition("Ready", "odd") == ("False", "InvalidSpec")
    assert "a policy cannot be read" in caplog.text


async def test_a_collection_that_breaks_off_once_costs_nobody_a_look(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        world.deploy(name)
        world.apply(name)
    world.metrics.faults = [RuntimeError("boom")]  # after the first policy
    await world.look()
    for name in ("a", "b"):
        assert world.condition("MetricsAvailable", name) == ("True", "Available")
    assert caplog.text.count("a collection broke off") == 1
    assert "RuntimeError: boom" in caplog.text


async def test_rule_9_signals_that_cannot_be_read_cost_only_their_own_policy(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("a", "b", "odd", "x", "y", "z")
    for name in names:
        world.deploy(name)
        world.apply(name, replicas=MORE)
    world.metrics.odd = {"serving/odd"}
    for _ in range(3):
        await world.look()
    assert sorted(world.written) == [(name, 3) for name in names]  # bounds need no metrics
    for name in set(names) - {"odd"}:
        assert world.condition("MetricsAvailable", name) == ("True", "Available")
    assert world.condition("MetricsAvailable", "odd") == ("False", "InvalidValues")
    assert world.condition("Ready", "odd") == ("False", "MetricsUnavailable")
    ready = next(one for one in world.status("odd").conditions if one.type == "Ready")
    assert "please report" in ready.message
    assert caplog.text.count("a policy's signals cannot be read") == 1
    assert caplog.text.count("Traceback") == 1
    assert exposed(world).count("bandkeeper_tick_failures_total 3.0") == 1


async def test_a_policy_whose_signals_cannot_be_read_is_asked_for_alone_until_they_can(world: World) -> None:
    names = [f"p{number}" for number in range(32)]
    for name in names:
        world.deploy(name)
        world.apply(name)
    world.metrics.odd = {"serving/p3"}
    await world.look()
    assert len(world.metrics.streams) <= 2 * 5 + 1  # halves of halves
    world.metrics.streams.clear()
    await world.look()
    others = tuple(f"serving/{name}" for name in names if name != "p3")
    assert world.metrics.streams == [others, ("serving/p3",)]
    world.metrics.odd.clear()
    await world.look()
    assert world.condition("MetricsAvailable", "p3") == ("True", "Available")
    world.metrics.streams.clear()
    await world.look()
    assert len(world.metrics.streams) == 1


async def test_a_fault_of_all_policies_is_not_looked_for_without_end(world: World) -> None:
    names = [f"p{number}" for number in range(60)]
    for name in names:
        world.deploy(name)
        world.apply(name)
    world.metrics.odd = {f"serving/{name}" for name in names}
    await world.look()
    assert len(world.metrics.streams) <= MOST_COLLECTIONS
    assert all(world.condition("MetricsAvailable", name)[0] == "False" for name in names)
    world.metrics.odd.clear()
    await world.look()
    await world.look()
    assert all(world.condition("MetricsAvailable", name)[0] == "True" for name in names)


async def test_faults_of_policies_that_are_gone_are_forgotten(world: World) -> None:
    world.deploy()
    world.apply()
    world.metrics.odd = {"serving/chat"}
    await world.look()
    lane = world.loop._lanes.of(world.tracked().managed)
    assert lane.odd.keys() == {"serving/chat"}
    world.delete()
    world.deploy("other")
    world.apply("other")
    await world.look()
    assert lane.odd == {}


async def test_a_failing_tick_is_logged_and_the_next_one_comes(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.policies.objects[NAMESPACE, "broken"] = {"metadata": {}}  # no API server would have it so
    running = asyncio.create_task(world.loop.run())
    await world.rest()
    assert "a tick failed" in caplog.text
    del world.policies.objects[NAMESPACE, "broken"]
    world.now += 15.0
    world.loop.wake()
    await asyncio.sleep(0.1)
    assert world.loop.ready() is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# The target.


async def test_the_target_is_read_when_it_may_have_changed_and_every_five_minutes(world: World) -> None:
    world.deploy()
    world.apply()

    async def reads_after(after_s: float = 15.0) -> int:
        before = len(world.replicas.reads)
        await world.look(after_s=after_s)
        return len(world.replicas.reads) - before

    assert await reads_after() == 1
    assert await reads_after() == 0
    world.pod("chat", 2)
    assert await reads_after() == 1
    world.pod("chat", 2, ends=True)  # a rollout without surge shows first as a pod that ends
    assert await reads_after() == 1
    world.pod("chat", 2, uid="another")  # a StatefulSet makes it anew under the same name
    assert await reads_after() == 1
    assert await reads_after() == 0
    assert await reads_after(300.0) == 1
    world.scale("chat", 2, rollout=Rollout())
    world.pod("chat", 2)
    assert [await reads_after() for _ in range(3)] == [1, 1, 1]  # while it rolls out
    world.scale("chat", 2)
    assert [await reads_after() for _ in range(2)] == [1, 0]
    world.apply(replicas={"min": 1, "max": 9})
    assert await reads_after() == 1


async def test_a_change_during_the_read_of_the_target_is_not_missed(world: World) -> None:
    world.deploy()
    world.apply()
    await world.look()
    world.pod("chat", 2)
    world.now += 15.0
    world.loop.tick(full=True)
    await until(lambda: len(world.replicas.reads) == 2)
    world.pod("chat", 3)  # the answer under way may not know of it
    await world.rest()
    await world.look()
    assert len(world.replicas.reads) == 3


async def test_rule_9_a_missing_target_is_asked_for_less_and_less(world: World) -> None:
    world.apply()
    for _ in range(40):
        await world.look()
    assert world.condition("Ready") == ("False", "TargetNotFound")
    assert 10 <= len(world.replicas.reads) <= 14  # of 600 s
    assert world.events.about("chat") == ["TargetNotFound"]
    world.deploy()
    await world.look(after_s=60.0)
    assert world.condition("Ready") == ("True", "Ok")


async def test_a_target_that_merely_cannot_be_read_now_is_still_judged(world: World) -> None:
    world.deploy()
    world.apply()
    await world.look()
    world.replicas.problems["chat"] = TargetProblem.UNAVAILABLE
    world.pod("chat", 2)
    await world.look()
    assert world.tracked().decision is not None
    assert world.condition("TargetResolved") == ("Unknown", "Unavailable")
    assert world.condition("WithinSLO")[1] != "NoData"


async def test_rule_6_another_target_shares_nothing_with_the_first(world: World) -> None:
    world.deploy("one")
    world.deploy("two", replicas=5)
    world.replicas.refusals["one"] = Outcome.FORBIDDEN
    batch = {"min": 8, "max": 32, "adapter": {"type": "Annotation"}}
    world.apply(target="one", replicas=MORE, batch=batch)
    await world.look()
    assert world.condition("Ready") == ("False", "Forbidden")
    world.client.patches.clear()
    world.replicas.hung = {"two"}
    world.apply(target="two", replicas={"min": 6, "max": 8}, batch=batch)
    await world.look()
    assert world.tracked().decision is None
    assert not world.tracked().leads
    assert world.client.patches == []  # the old cap is not for the new pods
    await world.loop._stop()


async def test_a_policy_made_anew_under_its_name_begins_anew(world: World) -> None:
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    first = world.tracked()
    world.apply(uid="later", replicas=MORE)
    await world.look()
    assert world.tracked() is not first
    assert world.statuses.forgotten == ["uid-chat"]


async def test_rule_3_no_scale_in_into_a_rollout_that_has_just_begun(world: World) -> None:
    world.deploy(replicas=3)
    world.apply()
    await world.look()
    world.apply(replicas={"min": 1, "max": 2})
    world.loop.tick(full=False)  # reads the target, and decides on it
    await until(lambda: world.metrics.streams[1:] != [])
    world.scale("chat", 3, rollout=Rollout())
    await world.rest()
    assert world.replicas.attempts == []
    world.scale("chat", 3, rollout=None)
    await world.look()
    assert world.written == [("chat", 2)]


# A change of leader.


async def test_a_new_leader_goes_on_where_the_old_one_stopped(world: World) -> None:
    standby_events, standby_statuses = FakeEvents(), FakeStatuses()
    elector = FakeElector(left_s=0.0)
    standby = world.operator(elector=elector, events=standby_events, statuses=standby_statuses)
    world.deploy()
    world.apply(replicas=MORE)
    await world.look(standby)
    await world.look()
    world.show_status("chat", world.statuses.submitted[-1][1])
    await world.look(standby)
    world.elector.left_s, elector.left_s = 0.0, 9.0
    world.show_status("chat", world.statuses.submitted[-1][1])
    await world.look(standby)
    assert standby_events.said == []  # neither old moves nor conditions that were told
    _, status, observed = standby_statuses.submitted[-1]
    assert observed == world.policies.objects[NAMESPACE, "chat"]["status"]
    assert [entry["fromReplicas"] for entry in status["history"]] == [2]
    old, new = ({c["type"]: c["lastTransitionTime"] for c in s["conditions"]} for s in (observed, status))
    assert old["Ready"] == new["Ready"]
    await standby._stop()


async def test_a_new_leader_does_not_wait_for_the_next_period(world: World) -> None:
    world.elector.left_s = 0.0
    world.deploy()
    world.apply(replicas=MORE)
    running = asyncio.create_task(world.loop.run())
    await world.rest()
    assert world.tracked().decision is not None
    world.elector.left_s = 9.0
    world.loop.wake()  # nothing has changed
    await asyncio.sleep(0.1)
    assert world.written == []
    world.loop.hurry()
    await asyncio.sleep(0.1)
    assert world.written == [("chat", 3)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_moves_are_not_kept_for_later_where_the_lease_was_lost(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="bandkeeper.policy")
    world.deploy()
    world.apply(replicas=MORE)
    world.replicas.before_write = lambda: setattr(world.elector, "left_s", 0.0)
    await world.look()
    assert world.written == [("chat", 3)]
    assert "decision" in caplog.text  # the log is our own
    assert world.tracked().changes == []
    world.elector.left_s = 9.0
    await world.look()
    assert world.status().history == []


async def test_a_recommendation_is_told_once_also_by_the_next_leader(world: World) -> None:
    world.deploy()
    world.metrics.running_per_pod = 20.0
    world.apply(replicas=MORE, mode="Recommend", batch={"min": 8, "max": 32, "adapter": {"type": "Annotation"}})
    for _ in range(4):
        await world.look(after_s=100.0)
    assert world.events.about("chat") == ["Recommend", "Recommend"]  # replicas and cap
    notes = [note for _, _, note in world.events.said]
    assert all(note.startswith("Recommended, not done: ") for note in notes)
    assert {entry.batch_cap for entry in world.status().history} == {32, None}
    world.show_status("chat", world.statuses.submitted[-1][1])
    events = FakeEvents()
    follower = world.operator(events=events)
    await world.look(follower)
    assert events.said == []
    await follower._stop()


# What is told.


async def test_a_refusal_is_told_once_and_tried_less_and_less(world: World) -> None:
    world.replicas.refusals["chat"] = Outcome.FORBIDDEN
    world.deploy()
    world.apply(replicas=MORE)
    for _ in range(40):
        await world.look()
    assert world.condition("Ready") == ("False", "Forbidden")
    assert world.events.about("chat") == ["Forbidden"]
    assert 10 <= len(world.replicas.attempts) <= 16  # of 600 s
    world.replicas.refusals.clear()
    await world.look(after_s=60.0)
    await world.look()
    assert world.condition("Ready") == ("True", "Ok")
    assert world.written == [("chat", 3)]


async def test_a_missing_right_shows_before_anything_is_written(world: World) -> None:
    world.client.missing = {"deployments"}
    world.deploy()
    world.apply()
    await world.look()
    assert world.replicas.attempts == []
    assert world.condition("Ready") == ("False", "Forbidden")
    assert world.condition("TargetResolved") == ("False", "Forbidden")
    ready = next(one for one in world.status().conditions if one.type == "Ready")
    assert "may not patch deployments/scale" in ready.message
    assert "scaleTargets" in ready.message
    await world.look()
    assert world.events.about("chat") == ["Forbidden"]
    world.client.missing = set()
    await world.look(after_s=61.0)
    assert world.condition("Ready") == ("True", "Ok")


async def test_a_missing_right_of_the_adapter_shows_before_the_first_cap(world: World) -> None:
    world.client.missing = {"pods"}
    world.deploy()
    for number in range(2):
        world.pod("chat", number, annotations={"bandkeeper.dev/batch-cap": "64"})
    world.apply(batch={"min": 8, "max": 64, "adapter": {"type": "Annotation"}})
    await world.look()
    assert world.client.patches == []
    assert world.condition("BatchApplied") == ("False", "Forbidden")
    assert world.condition("Ready") == ("True", "Ok")  # replicas are scaled all the same
    world.client.missing = set()
    await world.look(after_s=61.0)
    assert world.condition("BatchApplied") == ("True", "Applied")


async def test_a_right_is_asked_for_once_for_all_policies_of_a_namespace(world: World) -> None:
    batch = {"min": 8, "max": 64, "adapter": {"type": "Annotation"}}
    for number in range(20):
        world.deploy(f"p{number}", replicas=1)
        world.apply(f"p{number}", batch=batch)
    for _ in range(39):  # 585 s
        await world.look()
    asked = [(one["verb"], one["resource"], one["subresource"]) for one in world.client.asked]
    assert sorted(asked) == [("patch", "deployments", "scale"), ("patch", "pods", "")]
    for _ in range(6):
        await world.look()
    assert len(world.client.asked) == 4


@pytest.mark.parametrize("how", [{"paused": True}, {"mode": "Recommend"}, {"standby": True}])
async def test_who_does_not_write_asks_for_no_right(world: World, how: dict[str, Any]) -> None:
    if how.pop("standby", False):
        world.elector.left_s = 0.0
    world.client.missing = {"deployments", "pods"}
    world.deploy()
    world.apply(**how)
    await world.look()
    assert world.client.asked == []


async def test_a_right_that_is_not_answered_holds_up_nobody(world: World) -> None:
    world.client.silent = True
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    assert world.written == [("chat", 3)]
    assert world.condition("Ready") == ("True", "Ok")


async def test_a_refusal_is_forgotten_where_nothing_is_to_be_written(world: World) -> None:
    world.replicas.refusals["chat"] = Outcome.FORBIDDEN
    world.deploy()
    world.apply(replicas=MORE)
    await world.look()
    world.apply(replicas=MORE, mode="Recommend")
    await world.look()
    assert world.condition("Ready") == ("True", "Ok")


async def test_news_is_told_at_once_and_what_merely_drifts_now_and_then(world: World) -> None:
    loads = iter(range(41, 60))
    world.metrics.jitter = lambda: next(loads) / 41
    world.deploy()
    world.apply(mode="Recommend")
    for _ in range(8):
        await world.look(after_s=10.0)
    assert len(world.statuses.submitted) <= 4
    told = len(world.statuses.submitted)
    world.pod("chat", 2, ready=False)
    await world.look(after_s=1.0)
    assert len(world.statuses.submitted) == told + 1
    assert world.status().replicas is not None
    world.apply(mode="Recommend", paused=True)
    await world.look(after_s=1.0, full=False)
    assert world.condition("Paused") == ("True", "Annotation")


async def test_a_cap_is_told_once_although_new_pods_are_written_later(world: World) -> None:
    world.deploy()
    world.metrics.running_per_pod = 20.0
    world.apply(batch={"min": 8, "max": 32, "adapter": {"type": "Annotation"}})
    for _ in range(3):
        await world.look(after_s=100.0)
    written = len(world.client.patches)
    assert written >= 2
    world.pod("chat", 2)
    await world.look()
    assert len(world.client.patches) == written + 1
    await world.look()
    assert world.events.about("chat").count("LowerBatchCap") == 1
    assert world.condition("BatchApplied") == ("True", "Applied")


async def test_an_adapter_that_was_removed_writes_no_more(world: World) -> None:
    world.deploy()
    world.metrics.running_per_pod = 20.0
    world.apply(batch={"min": 8, "max": 32, "adapter": {"type": "Annotation"}})
    await world.look()
    written = len(world.client.patches)
    world.apply()
    world.pod("chat", 2)
    await world.look()
    assert len(world.client.patches) == written
    assert world.condition("BatchApplied") == ("Unknown", "NotConfigured")


async def test_a_target_at_zero_is_left_alone_and_said_so(world: World) -> None:
    world.deploy(replicas=0)
    world.apply(replicas=MORE)
    await world.look()
    assert world.replicas.attempts == []
    assert world.condition("Paused") == ("True", "ScaledToZero")
    assert world.events.about("chat") == ["ScaledToZero"]


# Running.


async def test_a_wake_during_a_tick_is_not_lost(world: World) -> None:
    running = asyncio.create_task(world.loop.run())
    await world.rest()
    world.deploy()
    world.apply(replicas=MORE)
    world.loop.wake()
    await asyncio.sleep(0.1)
    assert world.written == [("chat", 3)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_changed_policy_asks_prometheus_anew(world: World) -> None:
    world.deploy()
    world.apply()
    await world.look()
    before = world.tracked().want
    await world.look()
    assert world.tracked().want is before
    world.apply(slos=[{"signal": "TimeToFirstToken", "threshold": "2s"}])
    await world.look(full=False)
    asked = world.tracked().want
    assert asked is not None
    assert asked.latencies[0].threshold_s == 2.0


async def test_only_what_changed_is_looked_at_between_two_periods(world: World) -> None:
    for name in ("a", "b"):
        world.deploy(name)
        world.apply(name)
    await world.look()
    await world.look(full=False, after_s=0.1)
    assert len(world.metrics.streams) == 1
    world.apply("b", replicas=MORE)
    await world.look(full=False, after_s=0.1)
    assert world.metrics.streams[1:] == [("serving/b",)]
    assert world.written == [("b", 3)]


async def test_a_stop_lets_a_write_under_way_end_and_tells_it(world: World) -> None:
    world.replicas.write_s = 0.005
    world.deploy()
    world.apply(replicas=MORE)
    running = asyncio.create_task(world.loop.run())
    await until(lambda: world.replicas.attempts != [])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert world.written == [("chat", 3)]
    assert world.events.about("chat") == ["ScaleUp"]


async def test_a_stop_does_not_wait_for_what_hangs(world: World) -> None:
    world.metrics.hung, world.replicas.hung_writes = {"other"}, {"slow"}
    for name, chosen in (("slow", "default"), ("dark", "other")):
        world.deploy(name)
        world.apply(name, replicas=MORE, prometheus={"name": chosen})
    running = asyncio.create_task(world.loop.run())
    await world.rest()
    async with asyncio.timeout(1.0):
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert world.loop._looking == set()
    assert world.loop._acting == set()
    assert world.metrics.closed == 2


async def test_healthz_finds_a_loop_that_stands_still(world: World) -> None:
    assert world.loop.alive() is None
    await world.look()
    world.now += 60 + 5 * 15 - 1
    assert world.loop.alive() is None
    world.now += 2
    assert "stuck" in (world.loop.alive() or "")


async def test_healthz_finds_a_policy_that_is_never_done(world: World) -> None:
    world.replicas.hung_writes = {"slow"}
    world.deploy("slow")
    world.apply("slow", replicas=MORE)
    for _ in range(8):
        await world.look()
        assert world.loop.alive() is None
    for _ in range(3):
        await world.look()
    assert "stuck" in (world.loop.alive() or "")


async def test_healthz_does_not_blame_the_operator_for_a_broken_api_server(world: World) -> None:
    world.pods.listed.clear()
    world.now += 10_000
    assert world.loop.alive() is None


async def test_blindness_to_other_scalers_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.hpas.problem = "horizontalpodautoscalers cannot be read: 403 Forbidden"
    for _ in range(3):
        await world.look()
    assert caplog.text.count("other scalers cannot be seen") == 1


async def test_lanes_that_nobody_uses_are_closed(world: World) -> None:
    world.deploy()
    world.apply(prometheus={"name": "other"})
    await world.look()
    world.apply()
    await world.look()
    await world.look()
    assert world.metrics.closed == 1


async def until(holds: Callable[[], bool]) -> None:
    """Stop as soon as it holds, with everything else still under way."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def exposed(world: World) -> str:
    """The operator's own metrics."""
    return generate_latest(world.own.registry).decode()
