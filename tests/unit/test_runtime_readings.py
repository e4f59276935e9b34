"""What is made of the caps that servers say they run with: when they are asked, what counts meanwhile, what is told."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest

from bandkeeper.actuate.adapter import AddressOf, Means, Workload, at_port, cap_for
from bandkeeper.actuate.outcome import CapReading, CapResult, Outcome
from bandkeeper.actuate.registry import MAKERS
from bandkeeper.actuate.rights import Right
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter, AdapterType
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.discovery import Resource, TargetError, TargetProblem
from bandkeeper.runtime import loop as loop_module
from bandkeeper.runtime.readings import ASK_EVERY_S, FRESH_S, Readings
from tests.unit.runtime_world import FakeElector, World

BATCH = {"min": 4, "max": 64, "adapter": {"type": "Annotation"}}


class Servers:
    """An adapter over servers in memory: by pod name the cap that each runs with."""

    cost_class = CostClass.LIVE
    expected_delay_s = 0.0
    reads_back = True

    def __init__(self) -> None:
        self.caps: dict[str, int] = {}
        self.mute: set[str] = set()
        self.answers = asyncio.Event()
        self.answers.set()
        self.stubborn = False
        self.owner = ""
        self.reads: list[tuple[str, ...]] = []
        self.writes: list[tuple[str, int]] = []
        self.closed = 0

    def of(self, spec: Adapter, means: Means) -> Servers:
        self.address_of: AddressOf | None = means.address_of
        self.namespace = means.namespace
        return self

    def right(self, resource: Resource) -> Right | None:
        return None

    def settled(self, workload: Workload, cap: int) -> bool:
        return all(pod.cap == cap_for(pod, cap) for pod in workload.pods if pod.state is PodState.READY)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        for pod in workload.pods:
            if pod.cap != cap_for(pod, cap):
                self.writes.append((pod.name, cap_for(pod, cap)))
                if not self.stubborn:
                    self.caps[pod.name] = cap_for(pod, cap)
        return CapResult(outcome=Outcome.WRITTEN, written=1, manager=self.owner)

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        self.reads.append(tuple(pod.name for pod in workload.pods))
        await self.answers.wait()
        names = [pod.name for pod in workload.pods]
        return CapReading(
            caps={name: self.caps[name] for name in names if name in self.caps and name not in self.mute},
            failed={name: f"pod {name} did not say" for name in names if name in self.mute},
        )

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    made = Servers()
    monkeypatch.setitem(MAKERS, AdapterType.ANNOTATION, made.of)
    return made


@pytest.fixture
async def world(servers: Servers) -> AsyncIterator[World]:
    made = World()
    yield made
    await made.loop._stop()


def run(world: World, servers: Servers, cap: int, replicas: int = 2) -> None:
    """A policy on replicas that boot with 64 and run with `cap`."""
    world.metrics.running_per_pod = 5.0
    world.deploy(replicas=replicas)
    servers.caps = {f"chat-{number}": cap for number in range(replicas)}
    world.apply(batch=BATCH)


async def test_the_first_decision_takes_the_cap_that_the_servers_say(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    assert servers.writes == []
    status = world.status()
    assert status.batch is not None
    assert (status.batch.current, status.batch.desired, status.batch.source) == (16, 16, "ReadBack")
    assert world.condition("BatchApplied") == ("True", "Applied")
    assert world.client.asked == [ask for ask in world.client.asked if ask["resource"] != "pods"]  # no right is needed


async def test_nothing_is_written_before_the_servers_could_be_asked(
    world: World, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, servers, 16)
    servers.answers.clear()
    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.01)
    await world.look()
    await world.look()
    assert world.tracked().decision is not None
    assert servers.writes == []
    servers.answers.set()
    await world.look()
    await world.look()
    assert (servers.writes, world.tracked().decision.cap) == ([], 16)  # type: ignore[union-attr]


async def test_servers_are_asked_again_when_pods_change_or_after_a_while_and_not_in_between(
    world: World, servers: Servers
) -> None:
    run(world, servers, 16)
    await world.look()
    assert len(servers.reads) == 1
    await world.look()
    assert len(servers.reads) == 1
    await world.look(after_s=ASK_EVERY_S - 15.0)
    assert len(servers.reads) == 2
    world.pod("chat", 0, restarts=1)
    await world.look()
    assert len(servers.reads) == 3


async def test_a_new_pod_gets_the_cap_and_is_read_back_at_once(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    world.scale("chat", 3)
    world.pod("chat", 2)
    servers.caps["chat-2"] = 64
    await world.look()
    assert servers.writes == [("chat-2", 16)]
    await world.look()
    assert world.condition("BatchApplied") == ("True", "Applied")
    assert servers.writes == [("chat-2", 16)]


async def test_a_cap_that_somebody_changed_is_set_again_and_told(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    servers.caps["chat-1"] = 32
    await world.look(after_s=ASK_EVERY_S)
    assert servers.writes == [("chat-1", 16)]
    assert world.condition("BatchApplied") == ("False", "Drifted")
    message = next(one.message for one in world.status().conditions if one.type == "BatchApplied")
    assert "pod chat-1 ran with the batch cap 32 where 16 had been set" in message
    await world.look()
    assert world.condition("BatchApplied") == ("True", "Applied")


async def test_who_set_the_cap_before_stays_in_the_history(world: World, servers: Servers) -> None:
    run(world, servers, 2)
    servers.owner = "kubectl-edit"
    await world.look()
    (entry,) = world.status().history
    assert (entry.from_batch_cap, entry.batch_cap) == (2, 4)
    assert entry.message.endswith("(2 was set by kubectl-edit.)")


async def test_rule_7_who_changes_the_cap_three_times_is_left_alone(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    for _ in range(4):
        servers.caps["chat-1"] = 32
        await world.look(after_s=ASK_EVERY_S)
        await world.look(after_s=ASK_EVERY_S)
    assert servers.writes == [("chat-1", 16)] * 3
    assert world.condition("BatchApplied") == ("False", "UndoneByManager")
    message = next(one.message for one in world.status().conditions if one.type == "BatchApplied")
    assert message.startswith("somebody else undid the cap three times in 30 minutes")


async def test_our_own_moves_are_no_drift(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    for _ in range(4):  # soon after each other, so that no round of reading lies between
        world.apply(batch={**BATCH, "max": 8})
        await world.look()
        world.apply(batch={**BATCH, "min": 16})
        await world.look()
        assert world.condition("BatchApplied") == ("True", "Applied")
    assert servers.writes == [("chat-0", 8), ("chat-1", 8), ("chat-0", 16), ("chat-1", 16)] * 4
    assert world.tracked().state.cap.undos == ()


async def test_our_own_urgent_moves_are_no_drift(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    for _ in range(4):
        world.metrics.more = {Signal.PREEMPTIONS: 1.0, Signal.KV_CACHE_UTILIZATION: 0.4}
        world.metrics.running_per_pod = 9.0
        for _ in range(8):
            await world.look()
            if servers.caps["chat-0"] < 16:
                break
        assert servers.caps["chat-0"] < 16
        world.metrics.more = {Signal.REQUESTS_WAITING: 100.0, Signal.KV_CACHE_UTILIZATION: 0.4}
        await world.look()
        assert servers.caps["chat-0"] == 16
    assert world.tracked().drift == ""
    assert world.tracked().state.cap.undos == ()


async def test_a_drift_is_counted_once_however_late_the_next_reading_is(
    world: World, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, servers, 16)
    await world.look()
    servers.caps["chat-1"] = 32
    write = servers.apply

    async def apply(workload: Workload, cap: int, *, deadline: float) -> CapResult:
        servers.answers.clear()
        return await write(workload, cap, deadline=deadline)

    monkeypatch.setattr(loop_module, "PATIENCE_S", 0.01)
    monkeypatch.setattr(servers, "apply", apply)
    await world.look(after_s=ASK_EVERY_S)
    await world.look()
    assert servers.writes == [("chat-1", 16)] * 2
    assert len(world.tracked().state.cap.undos) == 1


LOST = [
    ("somebody else", [], 32, 16, {"a": (16, 32)}),
    ("our own move", [8], 8, 8, {}),
    ("our own move, and back before it was read", [8, 16], 8, 16, {}),
    ("a move that is not written yet", [], 32, 8, {}),
    ("nothing is wanted", [], 32, None, {}),
]


@pytest.mark.parametrize(("name", "wrote", "says", "wanted", "lost"), LOST, ids=[case[0] for case in LOST])
def test_what_was_lost_is_what_we_did_not_take(
    name: str, wrote: list[int], says: int, wanted: int | None, lost: dict[str, tuple[int, int]]
) -> None:
    readings = Readings()
    readings.wrote(16, pods("a"), 100.0, 0.0)
    for at_s, cap in ((100.0, 16), (120.0, says)):
        readings.asked(pods("a"), at_s)
        readings.took(CapReading(caps={"a": cap}), pods("a"), at_s, wanted)
        for other in wrote:
            readings.wrote(other, pods("a"), 110.0, 0.0)
    assert readings.lost == lost


@pytest.mark.parametrize("cap", [0, -1, 65_537, 10**20, 10**400], ids=["0", "-1", "65537", "1e20", "1e400"])
async def test_a_cap_that_no_server_can_have_is_a_failed_reading(world: World, servers: Servers, cap: int) -> None:
    run(world, servers, 16)
    servers.stubborn = True
    servers.caps["chat-0"] = cap
    world.metrics.running_per_pod = 500.0
    for _ in range(3):
        await world.look(after_s=ASK_EVERY_S)
    assert [pod.cap for pod in world.tracked().pods if pod.name == "chat-0"] == [None]
    assert world.tracked().readings.failed["chat-0"] == "pod chat-0 says a batch cap that is not from 1 to 65536"
    assert world.replicas.writes  # decisions go on


async def test_a_server_that_keeps_another_cap_is_told_less_and_less_often(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    servers.stubborn = True
    servers.caps["chat-1"] = 8
    for _ in range(40):
        await world.look()
    assert 4 < len(servers.writes) < 10
    assert world.condition("BatchApplied") == ("False", "Pending")
    message = next(one.message for one in world.status().conditions if one.type == "BatchApplied")
    assert message == "pod chat-1 was told 16 and says 8"
    assert len(world.tracked().state.cap.undos) == 1
    servers.stubborn = False
    world.scale("chat", 3)
    world.pod("chat", 2)
    servers.caps["chat-2"] = 64
    await world.look()
    assert servers.caps["chat-2"] == 16  # a new pod does not wait for it


TOLD = [
    ("another cap in time", 105.0, 8, False, False),
    ("another cap too late", 110.0, 8, True, True),
    ("what it was told", 110.0, 16, False, False),
    ("what the smallest server may have, where all share one cap", 110.0, 12, False, False),
]


@pytest.mark.parametrize(("name", "at_s", "says", "news", "held"), TOLD, ids=[case[0] for case in TOLD])
def test_what_was_told_counts_after_the_delay(name: str, at_s: float, says: int, news: bool, held: bool) -> None:
    readings, both = Readings(), [*pods("a"), dataclasses.replace(pods("b")[0], capacity=12)]
    readings.wrote(16, both[:1], 100.0, 10.0)
    readings.asked(both, at_s)
    assert readings.took(CapReading(caps={"a": says}), both, at_s, 16) is news
    assert readings.denies(both[0], 16, at_s + 1.0) is held
    assert not readings.denies(both[0], 8, at_s + 1.0)
    assert not readings.denies(both[0], 16, at_s + 15.0)


async def test_no_server_is_asked_at_an_address_that_may_be_anothers_by_now(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    world.pods.age, servers.caps["chat-1"] = 61.0, 32
    world.apply(batch={**BATCH, "max": 8})
    reads = len(servers.reads)
    for _ in range(4):
        await world.look(after_s=ASK_EVERY_S)
    assert (len(servers.reads), servers.writes) == (reads, [])
    message = next(one.message for one in world.status().conditions if one.type == "BatchApplied")
    assert message == "the list of pods is 61s old, so no server is asked at an address from it"
    world.pods.age = 60.0
    await world.look()
    await world.look()
    assert servers.caps == {"chat-0": 8, "chat-1": 8}


async def test_a_policy_whose_writes_fail_holds_up_no_look(
    world: World, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, servers, 16)
    await world.look()
    tracked, loop = world.tracked(), world.loop
    tracked.cap_retry.failed(world.now)
    tracked.readings.written = True
    servers.answers.clear()
    async with asyncio.timeout(loop_module.PATIENCE_S / 2):
        await loop._ask_for_caps([tracked])
    servers.answers.set()
    await world.rest()


async def test_a_restarted_server_is_no_drift(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    world.pod("chat", 1, restarts=1)
    servers.caps["chat-1"] = 64
    await world.look()
    assert servers.writes == [("chat-1", 16)]
    assert world.tracked().drift == ""


async def test_what_a_server_does_not_say_is_told_and_is_no_zero(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    await world.look()
    servers.mute = {"chat-0"}
    await world.look(after_s=ASK_EVERY_S)
    assert [pod.cap for pod in world.tracked().pods] == [16, 16]  # the last reading is fresh
    servers.stubborn = True
    for _ in range(4):
        await world.look(after_s=ASK_EVERY_S)
    assert [pod.cap for pod in world.tracked().pods] == [None, 16]
    assert world.condition("BatchApplied") == ("False", "Pending")
    message = next(one.message for one in world.status().conditions if one.type == "BatchApplied")
    assert message == "pod chat-0 did not say"
    assert world.tracked().decision.cap == 16  # type: ignore[union-attr]


async def test_a_new_leader_wants_what_was_told_where_servers_cannot_say(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    servers.caps = {}
    world.show_status("chat", {"observedGeneration": 1, "batch": {"current": 8, "desired": 8}})
    await world.look()
    assert servers.writes == [("chat-0", 8), ("chat-1", 8)]


async def test_a_standby_asks_too_and_writes_nothing(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    standby = world.operator(elector=FakeElector(left_s=0.0))
    await world.look(standby)
    assert [pod.cap for pod in world.tracked(loop=standby).pods] == [16, 16]
    servers.caps["chat-1"] = 32
    await world.look(standby, after_s=ASK_EVERY_S)
    assert servers.writes == []
    await standby._stop()


async def test_recommend_mode_asks_and_writes_nothing(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    world.apply(batch=BATCH, mode="Recommend")
    servers.caps["chat-1"] = 32
    await world.look()
    await world.look()
    assert servers.reads
    assert servers.writes == []


async def test_a_target_whose_kind_cannot_be_resolved_is_a_failed_reading(world: World, servers: Servers) -> None:
    run(world, servers, 16)
    world.discovery.problem = TargetError(TargetProblem.UNAVAILABLE, "the API server did not answer")
    await world.look()
    assert world.tracked().readings.begun
    assert world.tracked().readings.failed["chat-0"] == "the API server did not answer"


async def test_an_adapter_is_kept_while_its_settings_stay_and_closed_when_nobody_uses_it(
    world: World, servers: Servers
) -> None:
    run(world, servers, 16)
    await world.look()
    world.apply(batch=BATCH, replicas={"min": 2, "max": 9})
    await world.look()
    assert servers.closed == 0
    assert len(servers.reads) == 1
    world.delete()
    await world.look()
    assert servers.closed == 1


def pods(*names: str, restarts: int = 0) -> list[Pod]:
    return [Pod(name=name, uid=f"uid-{name}", restarts=restarts, capacity=64) for name in names]


def test_a_reading_holds_while_it_is_fresh_and_only_for_the_same_server() -> None:
    readings = Readings()
    readings.asked(pods("a", "b"), 100.0)
    readings.took(CapReading(caps={"a": 8}, failed={"b": "no"}), pods("a", "b"), 100.0, None)
    assert [pod.cap for pod in readings.onto(pods("a", "b"), 100.0 + FRESH_S)] == [8, None]
    assert [pod.cap for pod in readings.onto(pods("a"), 100.1 + FRESH_S)] == [None]
    assert [pod.cap for pod in readings.onto(pods("a", restarts=1), 101.0)] == [None]
    other = [dataclasses.replace(pods("a")[0], uid="uid-other")]
    assert [pod.cap for pod in readings.onto(other, 101.0)] == [None]


def test_where_no_pod_is_ready_nobody_is_asked() -> None:
    assert not Readings().is_due([Pod(name="a", state=PodState.PENDING)], 100.0)
    assert Readings().is_due([Pod(name="a")], 100.0)


def test_no_server_gets_more_than_it_booted_with() -> None:
    assert cap_for(Pod(name="a", capacity=16), 32) == 16
    assert cap_for(Pod(name="a", capacity=64), 32) == 32
    assert cap_for(Pod(name="a"), 32) == 32


@pytest.mark.parametrize(("ip", "address"), [("10.0.0.7", "10.0.0.7:8000"), ("fd00::7", "[fd00::7]:8000")])
def test_a_pod_is_asked_at_its_own_ip(ip: str, address: str) -> None:
    assert at_port(8000)(Pod(name="a", address=ip)) == address
