"""The agent's parts: device ids, who holds what, answers that grow old, figures of a driver that hangs, the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from bandkeeper.agent import catalogue, podresources_pb2
from bandkeeper.agent.devices import Identity
from bandkeeper.agent.exposition import Exposition
from bandkeeper.agent.pods import KEEP_S, Allocation, Holder, PodResources, allocations, held, parse
from bandkeeper.agent.sampler import GPU, Frame
from bandkeeper.signals.presets import gpu
from tests.agent.standin import uuid

ROOT = Path(__file__).parents[2]
ME = Holder("ns", "pod", "c")


def allocation(
    of_uuid: str | None = None, minor: int | None = None, instance: int | None = None, *, replica: bool = False
) -> Allocation:
    return Allocation(ME, of_uuid, minor, instance, replica)


@pytest.mark.parametrize(
    ("device_id", "wanted"),
    [
        (uuid(1), allocation(uuid(1))),
        (f"{uuid(1)}::0", allocation(uuid(1), replica=True)),
        (f"{uuid(1)}::12", allocation(uuid(1), replica=True)),
        (uuid(2, "MIG"), allocation(uuid(2, "MIG"))),
        (f"{uuid(2, 'MIG')}::3", allocation(uuid(2, "MIG"), replica=True)),
        (f"MIG-{uuid(1)}/7/0", allocation(uuid(1), instance=7)),
        ("nvidia0", allocation(minor=0)),
        ("nvidia15", allocation(minor=15)),
        ("nvidia0/gi3", allocation(minor=0, instance=3)),
        ("nvidia0/vgpu1", allocation(minor=0, replica=True)),
        ("nvidia0/gi3/vgpu1", allocation(minor=0, instance=3, replica=True)),
        ("0000:3b:00.0", None),
        ("eth1", None),
        ("nvidia", None),
        ("GPU-", None),
        ("xGPU-1234", None),
        ("", None),
    ],
)
def test_every_form_of_device_id(device_id: str, wanted: Allocation | None) -> None:
    assert parse(device_id, ME) == wanted


BOARD = Identity(0, uuid(1), "H100", minor=4)
INSTANCE = Identity(0, uuid(1), "H100", minor=4, instance=3, aliases=(uuid(31, "MIG"), uuid(32, "MIG")))


@pytest.mark.parametrize(
    ("device_id", "board", "instance"),
    [
        (uuid(1), True, False),
        (uuid(9), False, False),
        (uuid(31, "MIG"), False, True),
        (uuid(32, "MIG"), False, True),
        (uuid(33, "MIG"), False, False),
        (f"MIG-{uuid(1)}/3/0", False, True),
        (f"MIG-{uuid(1)}/4/0", False, False),
        ("nvidia4", True, False),
        ("nvidia4/gi3", False, True),
        ("nvidia0", False, False),  # the device node's number, not NVML's index
    ],
)
def test_a_device_is_the_board_or_the_instance_never_both(device_id: str, board: bool, instance: bool) -> None:
    of = parse(device_id, ME)
    assert of is not None
    assert (of.of(BOARD), of.of(INSTANCE)) == (board, instance)


def given(*pairs: tuple[str, str]) -> list[Allocation]:
    found = [parse(device_id, Holder(*path.split("/"))) for path, device_id in pairs]
    return [one for one in found if one is not None]


def test_holders_are_each_named_once_and_shared_says_more_than_one_pod_can_be_there() -> None:
    one = ("ns/a/c", uuid(1))
    assert held(BOARD, given(one, one)).holders == (Holder("ns", "a", "c"),)
    assert held(BOARD, given(one)).shared is False
    assert held(BOARD, given(one, ("ns/a/d", uuid(1)))).shared is False  # two containers of one pod
    assert held(BOARD, given(one, ("ns/b/c", uuid(1)))).shared is True
    assert held(BOARD, given(one, ("other/a/c", uuid(1)))).shared is True  # the same name elsewhere is another pod
    assert held(BOARD, given(("ns/a/c", f"{uuid(1)}::0"))).shared is True
    assert held(BOARD, given()) == held(BOARD, given(("ns/a/c", uuid(9))))


def test_a_pod_that_has_ended_holds_nothing() -> None:
    """Older kubelets list it still, but without devices: they free these before each answer."""
    answer = podresources_pb2.ListPodResourcesResponse()
    answer.pod_resources.add(namespace="ns", name="ended").containers.add(name="c")
    alive = answer.pod_resources.add(namespace="ns", name="a").containers.add(name="c")
    alive.devices.add(resource_name="nvidia.com/gpu", device_ids=[uuid(1)])
    of = held(BOARD, allocations(answer))
    assert (of.holders, of.shared) == ((Holder("ns", "a", "c"),), False)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Lister:
    """Answers with one pod, or fails."""

    fails = False

    async def List(self, request: object, timeout: float) -> podresources_pb2.ListPodResourcesResponse:  # noqa: N802
        if self.fails:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "no such socket")
        answer = podresources_pb2.ListPodResourcesResponse()
        pod = answer.pod_resources.add(namespace="ns", name="pod")
        pod.containers.add(name="c").devices.add(resource_name="nvidia.com/gpu", device_ids=[uuid(1)])
        return answer


async def test_the_kubelets_answer_holds_for_minutes_without_it_and_not_for_ever() -> None:
    clock, lister = Clock(), Lister()
    pods = PodResources(clock=clock)
    assert (pods.known, pods.age_s) == (None, None)
    asked: Any = lister
    await pods._ask(asked)
    assert pods.known == (allocation(uuid(1)),)
    lister.fails = True
    clock.now_s += KEEP_S
    await pods._ask(asked)
    assert pods.known == (allocation(uuid(1)),)
    clock.now_s += 1.0
    assert pods.known is None
    lister.fails = False
    await pods._ask(asked)
    assert (pods.known, pods.age_s) == ((allocation(uuid(1)),), 0.0)


def exposed(frame: Frame, now_s: float, interval_s: float = 1.0) -> str:
    clock = Clock()
    clock.now_s = now_s
    registry = CollectorRegistry()
    registry.register(
        Exposition(lambda: frame, lambda: (), lambda: 0.0, interval_s=interval_s, version="1", clock=clock)
    )
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("age_s", "interval_s", "shown"), [(9.9, 1.0, True), (10.1, 1.0, False), (49.0, 10.0, True), (51.0, 10.0, False)]
)
def test_figures_of_a_driver_that_hangs_are_not_shown(age_s: float, interval_s: float, shown: bool) -> None:
    page = exposed(Frame(at_s=0.0, gpus=(GPU(BOARD, True, {catalogue.BUSY: 0.5}),)), age_s, interval_s)
    assert ("bandkeeper_gpu_busy_ratio{" in page, "bandkeeper_gpu_info{" in page) == (shown, shown)
    assert "bandkeeper_agent_passes_total" in page


def test_the_page_has_the_table_of_what_is_exported() -> None:
    page = (ROOT / "docs" / "agent.md").read_text()
    assert catalogue.table() in page, f"docs/agent.md needs this table:\n{catalogue.table()}"


def test_what_the_operator_reads_of_the_agent_is_what_the_agent_writes() -> None:
    read = {
        metric
        for source in gpu.SOURCES.values()
        for names in (*(series.metrics for series in source.any_of), *(one.metrics for one in source.clock.exporters))
        for metric in names
        if metric.startswith("bandkeeper_")
    }
    assert len(read) > 20
    assert read <= {metric.name for metric in catalogue.OF_GPUS}


def test_names_carry_their_unit_and_their_kind() -> None:
    units = ("_ratio", "_bytes", "_watts", "_hertz", "_celsius", "_bytes_per_second", "_total", "_info", "_up")
    for metric in catalogue.OF_GPUS:
        assert metric.name.endswith((*units, "_processes")), metric.name
        assert metric.name.endswith("_total") == (metric.kind is catalogue.Kind.COUNTER)
    names = [metric.name for metric in (*catalogue.OF_GPUS, *catalogue.OF_AGENT)]
    assert len(set(names)) == len(names)
