"""The event recorder: repetitions are counted, floods are stopped, nothing blocks or raises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bandkeeper.kube.client import ApiError, Forbidden, NotFound, TooManyRequests, Unavailable
from bandkeeper.kube.events import EventRecorder
from bandkeeper.kube.objects import ObjectRef
from tests.kube_fakes import FakeTime, MemoryApi, MemoryClient, settle

CHAT = ObjectRef("bandkeeper.dev/v1alpha1", "GPUScalingPolicy", "serving", "chat", "uid-1")
PATH = "/apis/events.k8s.io/v1/namespaces/serving/events"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Desk:
    """A recorder at work in simulated time."""

    def __init__(self, **settings: Any) -> None:
        self.time = FakeTime()
        self.client: MemoryClient = MemoryApi(self.time).client()
        self.window_s = 5.0
        self.recorder = EventRecorder(
            self.client.as_client,
            instance="pod-1",
            window_s=lambda: self.window_s,
            sweep_s=0.01,
            clock=self.time,
            wall=lambda: EPOCH + timedelta(seconds=self.time.now - 1000.0),
            sleep=self.time.sleep,
            **settings,
        )
        self.task = asyncio.create_task(self.recorder.run())

    def say(self, note: str = "two policies on one target", *, about: ObjectRef = CHAT, **fields: Any) -> None:
        fields = {"type": "Warning", "reason": "Conflicted", "action": "Evaluate", **fields}
        self.recorder.record(about, note=note, **fields)

    async def advance(self, seconds: float = 0.1) -> None:
        await self.time.advance(seconds)
        await asyncio.sleep(0.03)  # the sweep for counts held back runs in real time
        await settle()

    def sent(self, method: str) -> list[Any]:
        return [body for sent, _, body in self.client.calls if sent == method]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    desk.task.cancel()
    await settle()


async def test_an_event_has_all_that_the_api_and_kubectl_describe_want(desk: Desk) -> None:
    desk.say()
    await desk.advance()
    ((method, path, body),) = desk.client.calls
    assert (method, path) == ("POST", PATH)
    name = body["metadata"].pop("name")
    assert name.startswith("chat.")
    assert body == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "serving"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "bandkeeper.dev/bandkeeper",
        "reportingInstance": "pod-1",
        "type": "Warning",
        "reason": "Conflicted",
        "action": "Evaluate",
        "note": "two policies on one target",
        "regarding": {
            "apiVersion": "bandkeeper.dev/v1alpha1",
            "kind": "GPUScalingPolicy",
            "namespace": "serving",
            "name": "chat",
            "uid": "uid-1",
        },
    }


async def test_repetitions_raise_the_count_once_a_minute(desk: Desk) -> None:
    for _ in range(9):  # every 15 s for two minutes
        desk.say()
        await desk.advance(15.0)
    assert len(desk.sent("POST")) == 1
    assert [patch["series"]["count"] for patch in desk.sent("PATCH")] == [4, 8]
    assert desk.sent("PATCH")[-1]["series"]["lastObservedTime"] == "2026-01-01T00:01:45.000000Z"


async def test_a_count_held_back_is_written_though_nothing_more_is_said(desk: Desk) -> None:
    desk.say()
    await desk.advance()
    for _ in range(4):
        desk.say()
        await desk.advance(1.0)
    assert desk.sent("PATCH") == []
    await desk.advance(60.0)
    await desk.advance()
    assert [patch["series"]["count"] for patch in desk.sent("PATCH")] == [5]


async def test_repetitions_before_the_first_post_are_in_it(desk: Desk) -> None:
    for _ in range(3):
        desk.say()
    await desk.advance()
    assert [body["series"]["count"] for body in desk.sent("POST")] == [3]


async def test_other_notes_reasons_and_objects_are_other_events(desk: Desk) -> None:
    desk.say()
    desk.say("another sentence")
    desk.say(reason="TargetMissing")
    desk.say(about=ObjectRef("bandkeeper.dev/v1alpha1", "GPUScalingPolicy", "serving", "chat", "uid-2"))
    await desk.advance()
    assert len(desk.sent("POST")) == 4


async def test_after_a_long_silence_it_is_news_again(desk: Desk) -> None:
    desk.say()
    await desk.advance(3000.0)
    desk.say()
    await desk.advance()
    assert len(desk.sent("POST")) == 2
    assert desk.sent("PATCH") == []


async def test_a_series_whose_event_has_expired_is_posted_anew(desk: Desk) -> None:
    desk.say()
    await desk.advance(100.0)
    desk.client.errors = [NotFound(404, "NotFound", "no such event")]
    desk.say()
    await desk.advance()
    first, second = desk.sent("POST")
    assert second["series"]["count"] == 2
    assert second["metadata"]["name"] != first["metadata"]["name"]


async def test_one_object_may_say_25_things_and_then_one_in_five_minutes(desk: Desk) -> None:
    for number in range(40):
        desk.say(f"sentence {number}")
    desk.say(about=ObjectRef("v1", "Pod", "serving", "other", "uid-other"))
    await desk.advance(60.0)
    assert len(desk.sent("POST")) == 26
    assert desk.recorder.dropped == 15
    await desk.advance(300.0)
    desk.say("after five minutes")
    desk.say("and one too many")
    await desk.advance(1.0)
    assert desk.sent("POST")[-1]["note"] == "after five minutes"


async def test_all_objects_together_have_a_budget(desk: Desk) -> None:
    for number in range(200):
        desk.say(about=ObjectRef("v1", "Pod", "serving", f"pod-{number}", f"uid-{number}"))
    await desk.advance(0.1)
    assert 50 <= len(desk.sent("POST")) <= 52
    await desk.advance(40.0)
    assert len(desk.sent("POST")) == 200


async def test_a_full_queue_drops_and_counts() -> None:
    desk = Desk(queue_size=3)
    desk.task.cancel()
    for number in range(10):
        desk.say(f"sentence {number}")
    assert desk.recorder.dropped == 7


async def test_long_texts_are_cut_to_what_the_api_takes(desk: Desk) -> None:
    desk.say("é" * 2000, reason="R" * 200, about=ObjectRef("v1", "Pod", "serving", "p" * 250, "uid"))
    await desk.advance()
    (body,) = desk.sent("POST")
    assert len(body["note"].encode()) <= 1024
    assert body["note"].endswith("é…")
    assert len(body["reason"]) == 128
    assert len(body["metadata"]["name"]) == 253


async def test_an_object_outside_any_namespace_speaks_in_the_default_one(desk: Desk) -> None:
    desk.say(about=ObjectRef("v1", "Node", "", "gpu-0", "uid"))
    await desk.advance()
    assert desk.client.calls[0][1] == "/apis/events.k8s.io/v1/namespaces/default/events"


@pytest.mark.parametrize(
    "error", [Unavailable(0, "Unreachable", "down"), TooManyRequests(429, "Busy", "wait", retry_after_s=3.0)]
)
async def test_what_could_not_be_posted_is_tried_again(desk: Desk, error: ApiError) -> None:
    desk.client.errors = [error, error]
    desk.say()
    await desk.advance(20.0)
    assert len(desk.sent("POST")) == 3
    assert desk.recorder.dropped == 0


async def test_an_endless_outage_gives_up_one_by_one_and_goes_on(desk: Desk) -> None:
    desk.client.errors = [Unavailable(0, "Unreachable", "down")] * 5
    desk.say("first")
    desk.say("second")
    await desk.advance(60.0)
    assert desk.recorder.dropped == 1
    assert [body["note"] for body in desk.sent("POST")] == ["first"] * 5 + ["second"]


@pytest.mark.parametrize("error", [Forbidden(403, "Forbidden", "no"), RuntimeError("a fault of ours")])
async def test_a_refusal_is_not_repeated_and_harms_no_other(desk: Desk, error: Exception) -> None:
    desk.client.errors = [error]
    desk.say("first")
    desk.say("second")
    await desk.advance(1.0)
    assert [body["note"] for body in desk.sent("POST")] == ["first", "second"]
    assert desk.recorder.dropped == 1


async def test_one_who_must_not_write_says_nothing(desk: Desk) -> None:
    desk.window_s = 0.0
    desk.say()
    await desk.advance(1.0)
    assert desk.client.calls == []


async def test_what_waits_when_the_lease_is_lost_is_not_posted(desk: Desk) -> None:
    desk.say()
    desk.window_s = 0.0
    await desk.advance(1.0)
    assert desk.client.calls == []
    desk.window_s = 2.0
    desk.say()
    await desk.advance(1.0)
    assert len(desk.sent("POST")) == 1
    assert desk.client.timeouts == [2.0]


async def test_drain_writes_counts_that_were_held_back(desk: Desk) -> None:
    desk.say()
    await desk.advance()
    desk.say()
    await desk.recorder.drain(1.0)
    assert [patch["series"]["count"] for patch in desk.sent("PATCH")] == [2]


async def test_drain_has_an_end(desk: Desk) -> None:
    desk.client.cut_off = True
    desk.say()
    begun_at = asyncio.get_running_loop().time()
    await desk.recorder.drain(0.1)
    assert asyncio.get_running_loop().time() - begun_at < 1.0


async def test_what_is_remembered_has_a_bound(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandkeeper.kube.events.MOST_REMEMBERED", 2)
    for number in range(5):
        desk.say(about=ObjectRef("v1", "Pod", "serving", f"pod-{number}", f"uid-{number}"))
        await desk.advance()
    assert len(desk.recorder._series) == len(desk.recorder._budgets) == 2
    assert len(desk.sent("POST")) == 5
