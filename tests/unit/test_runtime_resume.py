"""The batch cap when another process begins to act: after a restart, a change of leader, in the middle of a rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bandkeeper.actuate.rollout import (
    CAP_ANNOTATION,
    PREVIOUS_CAP_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
    rollout_of,
    template_hash,
)
from bandkeeper.api.snapshot import Pod, PodState, Rollout
from bandkeeper.decide.policy import BatchControl, CostClass, Policy
from bandkeeper.decide.state import CapMemory, CapRate, State
from bandkeeper.kube.client import Unavailable
from bandkeeper.runtime.resume import begun_anew, unmoved
from tests.unit.builders import a_policy
from tests.unit.runtime_world import FakeElector, World

PATH = "/apis/apps/v1/namespaces/serving/deployments/chat"
ADAPTER = {"type": "PodTemplate", "podTemplate": {"container": "server", "env": "MAX_NUM_SEQS"}}
BY_ROLLOUT = {"min": 4, "max": 64, "adapter": ADAPTER}
BY_ANNOTATION = {"min": 4, "max": 64, "adapter": {"type": "Annotation"}}
CAP_KEY = "bandkeeper.dev/batch-cap"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World(adapters={"annotation": True, "podTemplate": True})
    yield made
    await made.loop._stop()


def a_rollout(world: World, *, late: bool, ours: bool = True, previous: str = "16") -> None:
    """Somebody rolled out the cap 8 over three pods with 16; one new pod is not ready."""
    container = {"name": "server", "image": "server:1", "env": [{"name": "MAX_NUM_SEQS", "value": "8"}]}
    template: dict[str, Any] = {"metadata": {"labels": {"app": "chat"}}, "spec": {"containers": [container]}}
    if ours:
        written = {CAP_ANNOTATION: "8", PREVIOUS_CAP_ANNOTATION: previous}
        template["metadata"]["annotations"] = {**written, TEMPLATE_HASH_ANNOTATION: template_hash(template)}
    reason = "ProgressDeadlineExceeded" if late else "ReplicaSetUpdated"
    manifest = {
        "kind": "Deployment",
        "metadata": {"uid": "uid-chat", "annotations": {"deployment.kubernetes.io/revision": "2"}},
        "spec": {"replicas": 3, "template": template},
        "status": {
            "replicas": 4,
            "updatedReplicas": 1,
            "conditions": [{"type": "Progressing", "reason": reason}],
        },
    }
    world.client.manifests[PATH] = manifest
    world.deploy(replicas=3)
    for number in range(3):
        world.pod("chat", number, cap=16)
    world.pod("chat", 3, ready=False, cap=8)
    world.scale("chat", 3, rollout=rollout_of(manifest, now=world.now))


def caps_written(world: World) -> list[str]:
    """What was put into the container's environment, write by write."""
    added = [one for _, body in world.client.patches for one in body if one["path"].endswith("/env")]
    return [one["value"][0]["value"] for one in added]


async def test_a_failed_rollout_of_an_earlier_process_is_taken_back(world: World) -> None:
    a_rollout(world, late=True)
    world.apply(batch=BY_ROLLOUT)
    await world.look()
    assert caps_written(world) == ["16"]
    ((_, body),) = world.client.patches
    annotations = next(one["value"] for one in body if one["path"].endswith("/annotations"))
    assert PREVIOUS_CAP_ANNOTATION not in annotations
    assert world.condition("BatchApplied") == ("False", "RolledBack")
    entry = world.status().history[0]
    assert (entry.reason, entry.from_batch_cap, entry.batch_cap) == ("RolloutRolledBack", 8, 16)
    assert world.events.about("chat").count("RaiseBatchCap") == 1


async def test_a_take_back_that_failed_is_tried_again_as_one(world: World) -> None:
    a_rollout(world, late=True)
    world.apply(batch=BY_ROLLOUT)
    world.client.error = Unavailable(0, "Timeout", "no answer")
    await world.look()
    world.client.error = None
    await world.look()
    ((_, body),) = world.client.patches
    annotations = next(one["value"] for one in body if one["path"].endswith("/annotations"))
    assert PREVIOUS_CAP_ANNOTATION not in annotations


async def test_a_rollout_that_gets_on_is_not_undone_by_a_restart(world: World) -> None:
    a_rollout(world, late=False)
    world.apply(batch=BY_ROLLOUT)
    for _ in range(3):
        await world.look()
    assert world.client.patches == []
    status = world.status()
    assert status.batch is not None
    assert status.batch.desired == 8


async def test_a_standby_takes_up_the_rollout_that_the_leader_began(world: World) -> None:
    world.elector.left_s = 0.0
    world.deploy(replicas=3)
    for number in range(3):
        world.pod("chat", number, cap=16)
    world.apply(batch=BY_ROLLOUT)
    await world.look()
    a_rollout(world, late=False)
    await world.look()
    a_rollout(world, late=True)
    await world.look()
    assert world.client.patches == []
    world.elector.left_s = 9.0
    world.loop.hurry()
    await world.look(after_s=0.1)
    assert caps_written(world) == ["16"]


async def test_rule_3_a_rollout_of_others_is_not_joined_by_one_of_ours(world: World) -> None:
    a_rollout(world, late=False, ours=False)
    world.apply(batch=BY_ROLLOUT)
    for _ in range(3):
        await world.look()
    assert world.client.patches == []


async def test_a_paused_workload_gets_no_rollout_and_says_so(world: World) -> None:
    a_rollout(world, late=False)
    world.scale("chat", 3, rollout=Rollout(deadline_exceeded=True, paused=True))
    world.apply(batch=BY_ROLLOUT)
    await world.look()
    assert world.client.patches == []
    (told,) = [one for one in world.status().conditions if one.type == "BatchApplied"]
    assert told.status == "False"
    assert "kubectl rollout resume deployment/chat" in told.message
    reads = len(world.replicas.reads)
    for _ in range(3):
        await world.look()
    assert len(world.replicas.reads) == reads  # a pause may last for days
    world.scale("chat", 3)
    await world.look(after_s=300.0)
    assert world.condition("BatchApplied")[1] != "AdapterUnavailable"


async def test_what_a_standby_wished_for_is_not_written_when_it_leads(world: World) -> None:
    world.elector.left_s = 0.0
    world.deploy()
    for number in range(2):
        world.pod("chat", number, annotations={CAP_KEY: "64"})
    world.apply(batch=BY_ANNOTATION)
    await world.look()
    tracked = world.tracked()
    tracked.state = dataclasses.replace(tracked.state, cap=dataclasses.replace(tracked.state.cap, wanted=16))
    world.elector.left_s = 9.0
    await world.look()
    assert world.client.patches == []


async def test_a_policy_that_begins_to_act_begins_with_the_cap_in_force(world: World) -> None:
    world.deploy()
    for number in range(2):
        world.pod("chat", number, annotations={CAP_KEY: "64"})
    world.apply(batch=BY_ANNOTATION, mode="Recommend")
    await world.look()
    tracked = world.tracked()
    tracked.state = dataclasses.replace(tracked.state, cap=dataclasses.replace(tracked.state.cap, wanted=16))
    world.apply(batch=BY_ANNOTATION)
    await world.look()
    assert world.client.patches == []


@pytest.mark.parametrize(
    ("told_of", "pod", "cap"),
    [pytest.param(1, "chat-1", "64", id="this spec"), pytest.param(0, "chat-0", "32", id="another spec")],
)
async def test_rule_8_a_cap_that_was_written_to_some_pods_is_finished_by_the_next_leader(
    world: World, told_of: int, pod: str, cap: str
) -> None:
    world.deploy()
    world.pod("chat", 0, annotations={CAP_KEY: "64"})
    world.pod("chat", 1, annotations={CAP_KEY: "32"})
    world.apply(batch=BY_ANNOTATION)
    world.show_status("chat", {"observedGeneration": told_of, "batch": {"desired": 64}})
    await world.look()
    ((path, body),) = world.client.patches
    assert path.endswith(pod)
    assert body["metadata"]["annotations"] == {CAP_KEY: cap}


async def test_a_lease_that_was_lost_for_a_moment_begins_anew(world: World) -> None:
    world.deploy()
    world.apply(replicas={"min": 3, "max": 8})
    await world.look()
    assert (world.tracked().told, world.tracked().leads) == (True, True)
    world.show_status("chat", {**world.statuses.submitted[-1][1], "history": []})  # another told its own meanwhile
    world.loop.hurry()
    assert (world.tracked().told, world.tracked().leads) == (False, False)
    await world.look(after_s=30.0)
    assert world.status().history == []


def by(cost_class: CostClass) -> Policy:
    control = BatchControl(candidates=(4, 8, 16, 32), cost_class=cost_class, expected_delay_s=60.0)
    return dataclasses.replace(a_policy(), batch=control)


def pods(*caps: int | None) -> list[Pod]:
    return [Pod(name=f"chat-{number}", cap=cap) for number, cap in enumerate(caps)]


RATES = (CapRate(16, 9.0, 1.0),)
OLD = State.initial(0.0)
OLD = dataclasses.replace(OLD, cap=CapMemory(wanted=32, before=16, moved_s=5.0, rollout_s=7.0, rates=RATES))
ROLLOUT, EVENTUAL = CostClass.ROLLOUT, CostClass.EVENTUAL
OURS = Rollout(ours=True, cap=8, previous_cap=16)

BEGINNINGS = [
    ("in force", EVENTUAL, None, pods(16, 16), 32, (None, None)),
    ("half written", EVENTUAL, None, pods(16, 32), 32, (32, None)),
    ("mixed, and nobody told of it", EVENTUAL, None, pods(16, 32), 64, (None, None)),
    ("mixed, nothing told", EVENTUAL, None, pods(16, 32), None, (None, None)),
    ("our rollout", ROLLOUT, OURS, pods(16, 16), 32, (8, 16)),
    ("its way back", ROLLOUT, Rollout(ours=True, cap=16), pods(16, 8), 32, (16, None)),
    ("nothing was set before", ROLLOUT, Rollout(ours=True, cap=8, previous_cap=0), pods(None), 32, (8, 32)),
    ("a rollout of others", ROLLOUT, Rollout(), pods(16, 32), 32, (None, None)),
    ("our rollout, another adapter", EVENTUAL, OURS, pods(16, 16), 32, (None, None)),
]


@pytest.mark.parametrize(
    ("name", "cost_class", "rollout", "seen", "told", "want"), BEGINNINGS, ids=[case[0] for case in BEGINNINGS]
)
def test_where_the_cap_begins(
    name: str,
    cost_class: CostClass,
    rollout: Rollout | None,
    seen: list[Pod],
    told: int | None,
    want: tuple[int | None, int | None],
) -> None:
    state = begun_anew(OLD, by(cost_class), rollout=rollout, pods=seen, told_cap=told, now_s=100.0)
    assert (state.cap.wanted, state.cap.before) == want
    assert not state.cap.confirmed
    assert state.cap.rates == RATES


def test_pods_that_are_not_ready_have_no_say_in_the_cap() -> None:
    starting = Pod(name="chat-2", state=PodState.PENDING, cap=32)
    state = begun_anew(OLD, by(EVENTUAL), rollout=None, pods=[*pods(16, 16), starting], told_cap=32, now_s=100.0)
    assert state.cap.wanted is None


def test_a_rollout_that_is_seen_again_keeps_its_begin() -> None:
    state, begun = OLD, []
    for now_s in (100.0, 115.0):
        state = begun_anew(state, by(ROLLOUT), rollout=OURS, pods=pods(16), told_cap=None, now_s=now_s)
        begun.append((state.cap.moved_s, state.cap.rollout_s))
    assert begun == [(100.0, 100.0), (100.0, 100.0)]


def test_without_a_knob_nothing_is_taken_up() -> None:
    assert begun_anew(OLD, a_policy(), rollout=OURS, pods=pods(16), told_cap=16, now_s=1.0) is OLD


def test_of_a_decision_that_nobody_carries_out_only_what_was_learned_stays() -> None:
    learned = (*RATES, CapRate(32, 12.0, 2.0))
    after = dataclasses.replace(OLD, target_uid="x", cap=CapMemory(wanted=8, broke_at=32, rates=learned))
    assert unmoved(OLD, after) == dataclasses.replace(after, cap=dataclasses.replace(OLD.cap, rates=learned))


async def test_a_standby_decides_on_what_is_in_force_every_time(world: World) -> None:
    """Its own wishes never become what it starts from."""
    leader, follower = FakeElector(), FakeElector(left_s=0.0)
    standby = world.operator(elector=follower)
    world.deploy()
    for number in range(2):
        world.pod("chat", number, annotations={CAP_KEY: "64"})
    world.apply(batch={**BY_ANNOTATION, "max": 32})
    for _ in range(3):
        await world.look(standby)
        assert world.tracked(loop=standby).state.cap.wanted is None
    assert leader.held
    await standby._stop()
