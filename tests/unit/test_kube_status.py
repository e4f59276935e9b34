"""The status writer: the latest only, what matters first, drift seldom, nothing lost, nothing written twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bandkeeper.kube.client import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from bandkeeper.kube.objects import ObjectRef
from bandkeeper.kube.status import StatusWriter, moved
from tests.kube_fakes import FakeTime, MemoryApi, MemoryClient, settle


def ref(name: str = "chat", uid: str | None = None) -> ObjectRef:
    return ObjectRef("bandkeeper.dev/v1alpha1", "GPUScalingPolicy", "serving", name, uid or f"uid-{name}")


def a_status(
    percent: int = 65, *, replicas: int = 2, ready: str = "True", message: str = "all is well", **extra: Any
) -> dict[str, Any]:
    return {
        "conditions": [{"type": "Ready", "status": ready, "reason": "AsWanted", "message": message}],
        "replicas": {"current": replicas, "desired": replicas},
        "utilization": {"percent": percent, "source": "RequestsOverCap"},
        **extra,
    }


class Desk:
    """A writer at work in simulated time."""

    def __init__(self, **settings: Any) -> None:
        self.time = FakeTime()
        self.client: MemoryClient = MemoryApi(self.time).client()
        self.window_s = 9.0
        self.writer = StatusWriter(
            self.client.as_client,
            window_s=lambda: self.window_s,
            clock=self.time,
            sleep=self.time.sleep,
            **settings,
        )
        self.task = asyncio.create_task(self.writer.run())

    async def advance(self, seconds: float = 0.0) -> None:
        """Move on; the writer looks for work that waits for its time now and then, in real time."""
        await self.time.advance(seconds)
        await asyncio.sleep(0.03)
        await self.time.advance(0.0)

    @property
    def written(self) -> list[tuple[str, Any]]:
        """(name, status) of each call."""
        return [(path.split("/")[-2], body[1]["value"]) for _, path, body in self.client.calls]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandkeeper.kube.status.POLL_S", 0.01)
    monkeypatch.setattr("bandkeeper.kube.status.IDLE_POLL_S", 0.01)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    desk.task.cancel()
    await settle()


async def test_the_whole_status_is_replaced_on_the_object_meant_and_no_other(desk: Desk) -> None:
    desk.writer.submit(ref(), a_status())
    await desk.time.advance(0)
    assert desk.client.calls == [
        (
            "PATCH",
            "/apis/bandkeeper.dev/v1alpha1/namespaces/serving/gpuscalingpolicies/chat/status",
            [
                {"op": "test", "path": "/metadata/uid", "value": "uid-chat"},
                {"op": "add", "path": "/status", "value": a_status()},
            ],
        )
    ]
    assert desk.client.timeouts == [5.0]
    assert (desk.writer.pending, desk.writer.written) == (0, 1)


async def test_nothing_is_written_twice(desk: Desk) -> None:
    for _ in range(5):
        desk.writer.submit(ref(), a_status())
        await desk.time.advance(100.0)
    assert len(desk.written) == 1


async def test_what_the_object_shows_already_is_not_written(desk: Desk) -> None:
    desk.writer.submit(ref(), a_status(), observed=a_status())
    await desk.time.advance(100.0)
    assert desk.written == []
    desk.writer.submit(ref(), a_status(ready="False"), observed=a_status())
    await desk.time.advance(0)
    assert len(desk.written) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 3},
        {"ready": "False"},
        {"lastDecision": {"reason": "ScaledOut", "replicas": 3, "time": "x"}},
        {"history": [{"reason": "ScaledOut"}]},
        {"slos": [{"signal": "TimeToFirstToken", "state": "Violated"}]},
    ],
)
async def test_what_matters_is_written_at_once_and_so_is_that_it_is_gone(desk: Desk, change: dict[str, Any]) -> None:
    for status in (a_status(), a_status(**change), a_status()):
        desk.writer.submit(ref(), status)
        await desk.time.advance(1)
    assert len(desk.written) == 3


@pytest.mark.parametrize(
    ("before", "after", "written"),
    [
        ({"state": "Met", "measured": "90ms"}, {"state": "Met", "measured": "900ms"}, 1),
        ({"state": "Met", "measured": "90ms"}, {"state": "Met"}, 1),
        ({"state": "Met", "measured": "90ms"}, {"state": "NoData"}, 2),
        ({"state": "Met"}, {"state": "Met", "threshold": "1s"}, 2),
    ],
)
async def test_what_drifts_within_an_entry_of_a_list_waits(
    desk: Desk, before: dict[str, str], after: dict[str, str], written: int
) -> None:
    for entry in (before, after):
        desk.writer.submit(ref(), a_status(slos=[{"signal": "QueueTime", "state": "Met"}, entry]))
        await desk.time.advance(1)
    assert len(desk.written) == written


async def test_of_quality_only_the_class_is_written_at_once(desk: Desk) -> None:
    def judged(quality: str, score: int, age: str = "5s") -> dict[str, Any]:
        return a_status(quality={"class": quality, "score": score, "bottleneck": "Compute", "age": age})

    for status, on_s in ((judged("Mixed", 50), 1), (judged("Mixed", 90), 1), (judged("Efficient", 90), 61)):
        desk.writer.submit(ref(), status)
        await desk.time.advance(on_s)
    desk.writer.submit(ref(), judged("Efficient", 91, "80s"))  # a point, and that time passes
    await desk.time.advance(1)
    assert [status["quality"]["score"] for _, status in desk.written] == [50, 90]


async def test_drift_waits_until_it_is_large_and_old_enough(desk: Desk) -> None:
    desk.writer.submit(ref(), a_status(65))
    await desk.time.advance(59)
    desk.writer.submit(ref(), a_status(95))  # far, but too soon
    await desk.time.advance(2)
    desk.writer.submit(ref(), a_status(69))  # late enough, but near
    await desk.time.advance(2)
    assert len(desk.written) == 1
    desk.writer.submit(ref(), a_status(70))
    await desk.time.advance(0)
    assert [status["utilization"]["percent"] for _, status in desk.written] == [65, 70]


async def test_what_is_counted_is_written_however_little_it_grew_but_in_the_line_of_what_drifts(desk: Desk) -> None:
    for hours, on_s in (("1000.000", 1), ("1000.001", 60), ("1000.002", 0)):
        desk.writer.submit(ref(), a_status(cost={"gpuHours": hours}))
        await desk.time.advance(on_s)
    assert [status["cost"]["gpuHours"] for _, status in desk.written] == ["1000.000", "1000.002"]


async def test_a_condition_that_only_words_its_figures_anew_is_drift(desk: Desk) -> None:
    def violated(milliseconds: int) -> dict[str, Any]:
        return a_status(ready="False", message=f"p95 is {milliseconds} ms, over the 500 ms objective")

    desk.writer.submit(ref(), violated(800))
    await desk.time.advance(1)
    desk.writer.submit(ref(), violated(1200))
    await desk.time.advance(61)
    desk.writer.submit(ref(), violated(820))
    await desk.time.advance(0)
    assert len(desk.written) == 1
    desk.writer.submit(ref(), violated(1200))
    await desk.time.advance(0)
    assert len(desk.written) == 2


@pytest.mark.parametrize(
    ("old", "new", "far"),
    [
        (60, 64, False),
        (60, 65, True),
        (None, 0, True),
        (True, False, True),
        ("95ms", "99ms", False),
        ("95ms", "120ms", True),
        ("0.95s", "95ms", True),
        ("steady", "rising", True),
        ({"time": "1", "a": 1}, {"time": "2", "a": 1}, False),
        ({"a": 1}, {}, True),
        ([1], [1, 2], True),
        ([{"percent": 1}], [{"percent": 9}], True),
        ("0 ms", "0 ms", False),
    ],
)
def test_moved(old: Any, new: Any, far: bool) -> None:
    assert moved(old, new) is far


async def test_only_the_latest_of_what_waits_is_written(desk: Desk) -> None:
    desk.client.gate = asyncio.Event()
    desk.writer.submit(ref(), a_status(replicas=1))
    await desk.time.advance(0)
    for replicas in range(2, 9):
        desk.writer.submit(ref(), a_status(replicas=replicas))
        await desk.time.advance(0)
    desk.client.gate.set()
    await desk.time.advance(0)
    assert [status["replicas"]["current"] for _, status in desk.written] == [1, 8]


async def test_a_change_taken_back_while_the_first_is_under_way_is_written_too(desk: Desk) -> None:
    """What is under way will be what the server has: going back to what it had before is news."""
    desk.writer.submit(ref(), a_status(replicas=1))
    await desk.time.advance(0)
    desk.client.gate = asyncio.Event()
    desk.writer.submit(ref(), a_status(replicas=2))
    await desk.time.advance(0)
    desk.writer.submit(ref(), a_status(replicas=1))
    desk.client.gate.set()
    await desk.time.advance(0)
    assert [status["replicas"]["current"] for _, status in desk.written] == [1, 2, 1]


async def test_a_change_taken_back_before_it_was_sent_is_not_written() -> None:
    desk = Desk(per_second=1.0, burst=1.0)
    desk.writer.submit(ref(), a_status(replicas=1))
    await desk.time.advance(0)
    desk.writer.submit(ref(), a_status(replicas=2))
    desk.writer.submit(ref(), a_status(replicas=1))
    await desk.advance(5.0)
    assert len(desk.written) == 1
    assert desk.writer.pending == 0
    desk.task.cancel()


async def test_the_budget_holds_and_drift_yields_to_what_matters() -> None:
    desk = Desk(per_second=1.0, burst=4.0)
    names = [f"policy-{number}" for number in range(6)]
    for name in names:
        desk.writer.submit(ref(name), a_status(10), observed=a_status(60))
    await desk.time.advance(0)
    assert len(desk.written) == 3  # half of the burst is kept
    for name in names:
        desk.writer.submit(ref(name), a_status(10, replicas=9))
    await desk.time.advance(0)
    assert [status["replicas"]["current"] for _, status in desk.written[3:]] == [9]
    for _ in range(30):
        await desk.advance(1.0)
    assert len(desk.written) == 9  # the three that had drifted only needed one write each
    assert desk.writer.pending == 0
    desk.task.cancel()


async def test_who_waits_keeps_the_place() -> None:
    desk = Desk(per_second=1.0, burst=1.0)
    for name in ("a", "b", "c"):
        desk.writer.submit(ref(name), a_status())
    await desk.time.advance(0)
    for _ in range(3):
        desk.writer.submit(ref("b"), a_status(replicas=7))
        desk.writer.submit(ref("c"), a_status(replicas=7))
        await desk.advance(1.0)
    assert [name for name, _ in desk.written] == ["a", "b", "c"]
    desk.task.cancel()


@pytest.mark.parametrize(
    "error",
    [Unavailable(0, "Unreachable", "down"), TooManyRequests(429, "Busy", "wait", retry_after_s=2.0)],
)
async def test_nothing_that_matters_is_lost_in_an_outage(desk: Desk, error: ApiError) -> None:
    desk.client.errors = [error] * 3
    desk.writer.submit(ref("a"), a_status())
    desk.writer.submit(ref("b"), a_status())
    for _ in range(12):
        await desk.advance(1.0)
    assert len(desk.written) == 5
    assert {name for name, _ in desk.written[3:]} == {"a", "b"}
    assert desk.writer.pending == 0


async def test_a_write_whose_fate_is_unknown_is_made_again(desk: Desk) -> None:
    """It may have arrived or not: neither the old nor the new status counts as written."""
    desk.writer.submit(ref(), a_status(replicas=1))
    await desk.time.advance(0)
    desk.client.errors = [Unavailable(0, "Timeout", "no answer")]
    desk.writer.submit(ref(), a_status(replicas=2))
    await desk.time.advance(0)
    desk.writer.submit(ref(), a_status(replicas=1))
    await desk.advance(5.0)
    assert [status["replicas"]["current"] for _, status in desk.written] == [1, 2, 1]


async def test_a_write_that_failed_is_not_taken_for_done_when_asked_for_again(desk: Desk) -> None:
    desk.client.errors = [Unavailable(0, "Timeout", "no answer")]
    desk.writer.submit(ref(), a_status())
    await desk.time.advance(0)
    desk.writer.submit(ref(), a_status())
    await desk.advance(5.0)
    assert len(desk.written) == 2


@pytest.mark.parametrize("error", [Forbidden(403, "Forbidden", "no"), Invalid(422, "Invalid", "bad"), KeyError("ours")])
async def test_what_is_refused_is_tried_again_after_a_minute_and_delays_no_other(desk: Desk, error: Exception) -> None:
    desk.client.errors = [error]
    desk.writer.submit(ref("a"), a_status())
    desk.writer.submit(ref("b"), a_status())
    await desk.advance(1.0)
    desk.writer.submit(ref("a"), a_status(replicas=3))
    await desk.advance(50.0)
    assert [name for name, _ in desk.written] == ["a", "b"]
    await desk.advance(15.0)
    assert [name for name, _ in desk.written] == ["a", "b", "a"]
    assert desk.written[-1][1]["replicas"]["current"] == 3


async def test_a_conflict_is_tried_again_soon(desk: Desk) -> None:
    desk.client.errors = [Conflict(409, "Conflict", "the object has been modified")]
    desk.writer.submit(ref(), a_status())
    await desk.advance(1.0)
    assert len(desk.written) == 2


async def test_an_object_that_is_gone_is_forgotten(desk: Desk) -> None:
    desk.client.errors = [NotFound(404, "NotFound", "gone")]
    desk.writer.submit(ref(), a_status())
    await desk.advance(100.0)
    assert len(desk.written) == 1
    assert desk.writer.pending == 0
    desk.writer.submit(ref(uid="another life"), a_status())
    await desk.time.advance(0)
    assert len(desk.written) == 2


async def test_forget_drops_what_waits() -> None:
    desk = Desk(per_second=1.0, burst=1.0)
    desk.writer.submit(ref("a"), a_status())
    desk.writer.submit(ref("b"), a_status())
    await desk.time.advance(0)
    desk.writer.forget("uid-b")
    desk.writer.forget("never seen")
    await desk.advance(10.0)
    assert [name for name, _ in desk.written] == ["a"]
    desk.task.cancel()


async def test_one_who_must_not_write_writes_nothing_and_trusts_nothing_of_before(desk: Desk) -> None:
    desk.writer.submit(ref(), a_status())
    await desk.time.advance(0)
    desk.window_s = 0.0
    desk.writer.submit(ref(), a_status(replicas=3))
    await desk.advance(1.0)
    assert len(desk.written) == 1
    desk.window_s = 2.0  # another was the leader meanwhile, and left its own status
    desk.writer.submit(ref(), a_status(), observed=a_status(replicas=5))
    await desk.time.advance(0)
    assert len(desk.written) == 2
    assert desk.client.timeouts[-1] == 2.0


async def test_drain_waits_for_the_last_and_has_an_end(desk: Desk) -> None:
    desk.writer.submit(ref(), a_status())
    await desk.writer.drain(1.0)
    assert len(desk.written) == 1
    desk.client.gate = asyncio.Event()
    desk.writer.submit(ref(), a_status(replicas=3))
    begun_at = asyncio.get_running_loop().time()
    await desk.writer.drain(0.1)
    assert asyncio.get_running_loop().time() - begun_at < 1.0
    assert desk.writer.pending == 1
