"""Leader election in simulated time: who may write when, whatever the network and the clocks do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from bandkeeper.kube.client import Forbidden
from bandkeeper.kube.lease import LeaseElector
from tests.kube_fakes import FakeTime, MemoryApi, MemoryClient, settle

PATH = "/apis/coordination.k8s.io/v1/namespaces/system/leases/bandkeeper"


class Candidate:
    """An elector with its own connection; `die` is kill -9, `stop` is SIGTERM."""

    def __init__(self, api: MemoryApi, name: str, **settings: float) -> None:
        self.client: MemoryClient = api.client()
        self.news: list[str] = []
        self.elector = LeaseElector(
            self.client.as_client,
            namespace="system",
            name="bandkeeper",
            identity=name,
            on_gain=lambda: self.news.append("gain"),
            on_loss=lambda: self.news.append("loss"),
            clock=api.time,
            sleep=api.time.sleep,
            **settings,
        )
        self.task = asyncio.create_task(self.elector.run())

    @property
    def held(self) -> bool:
        return self.elector.held

    async def die(self) -> None:
        self.client.cut_off = True
        await settle()

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


class Race:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.api = MemoryApi(self.time)
        self.candidates: list[Candidate] = []

    def candidate(self, name: str, **settings: float) -> Candidate:
        self.candidates.append(Candidate(self.api, name, **settings))
        return self.candidates[-1]

    async def advance(self, seconds: float, step: float = 0.1) -> None:
        """Move on, and at each step make sure that no two may write."""
        for _ in range(round(seconds / step)):
            await self.time.advance(step)
            holders = [candidate.elector._identity for candidate in self.candidates if candidate.held]
            assert len(holders) <= 1, f"{holders} at {self.time.now}"

    async def until_held(self, candidate: Candidate, within_s: float) -> float:
        begun_at = self.time.now
        while not candidate.held:
            await self.advance(0.1)
            assert self.time.now - begun_at <= within_s, "not held in time"
        return self.time.now - begun_at


@pytest.fixture
async def race() -> AsyncIterator[Race]:
    race = Race()
    yield race
    for candidate in race.candidates:
        candidate.task.cancel()
    await settle()


async def test_the_first_one_gets_it_and_keeps_it(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(0.2)
    second = race.candidate("second")
    await race.advance(120)
    assert first.held
    assert not second.held
    assert (first.elector.holder, second.elector.holder) == ("first", "first")
    assert first.news == ["gain"]
    assert second.news == []
    spec = race.api.read(PATH)["spec"]
    assert spec["holderIdentity"] == "first"
    assert (spec["leaseTransitions"], spec["leaseDurationSeconds"]) == (0, 15)
    assert spec["acquireTime"] < spec["renewTime"]


async def test_after_a_kill_the_other_has_it_within_20_s(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(0.2)
    second = race.candidate("second")
    await race.advance(31.3)
    await first.die()
    took_s = await race.until_held(second, within_s=18.0)
    assert took_s > 5.0
    assert race.api.read(PATH)["spec"]["leaseTransitions"] == 1


async def test_after_a_release_the_other_has_it_within_3_s(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(0.2)
    second = race.candidate("second")
    await race.advance(30)
    await first.stop()
    assert not first.held
    assert first.news == ["gain", "loss"]
    assert race.api.read(PATH)["spec"]["holderIdentity"] == ""
    await race.until_held(second, within_s=2.2)


async def test_a_holder_cut_off_stops_before_another_may_begin(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(0.2)
    second = race.candidate("second")
    await race.advance(30)
    first.client.cut_off = True
    await race.advance(10.0)
    assert not first.held
    assert not second.held
    await race.until_held(second, within_s=10.0)
    first.client.cut_off = False
    await race.advance(30)
    assert second.held
    assert first.news == ["gain", "loss"]
    assert first.elector.holder == "second"


async def test_a_short_outage_costs_nothing(race: Race) -> None:
    """Two tries, one before and one after it, are at most four seconds more apart, and the holder stops after ten."""
    first = race.candidate("first")
    await race.advance(30)
    first.client.cut_off = True
    await race.advance(6.0)
    first.client.cut_off = False
    await race.advance(30)
    assert first.held
    assert first.news == ["gain"]
    assert first.elector.problem == ""


async def test_an_outage_of_the_api_ends_with_one_holder_again(race: Race) -> None:
    first, second = race.candidate("first"), race.candidate("second")
    await race.advance(20)
    first.client.cut_off = second.client.cut_off = True
    await race.advance(60)
    assert not first.held
    assert not second.held
    assert "no answer" in first.elector.problem
    first.client.cut_off = second.client.cut_off = False
    await race.advance(20)
    assert first.held != second.held


async def test_a_stalled_process_knows_at_once_that_it_may_no_longer_write(race: Race) -> None:
    """The event loop hangs: no code of the elector runs, and still `held` must not lie."""
    first = race.candidate("first")
    await race.advance(30)
    assert 7.0 < first.elector.remaining_s() <= 10.0
    race.time.now += 10.0
    assert first.elector.remaining_s() == 0.0
    assert not first.held


async def test_what_the_holders_clock_says_is_irrelevant(race: Race) -> None:
    """Its renewTime may lie hours off: only that the lease changes counts."""
    body = {
        "metadata": {"name": "bandkeeper", "namespace": "system"},
        "spec": {
            "holderIdentity": "elsewhere",
            "leaseDurationSeconds": 15,
            "renewTime": "1999-01-01T00:00:00.000000Z",
            "leaseTransitions": 4,
        },
    }
    race.api.store(PATH, body)
    first = race.candidate("first")
    for _ in range(20):  # it renews every 2 s, with a clock 27 years behind
        await race.advance(2)
        race.api.store(PATH, body)
        assert not first.held
    body["spec"]["renewTime"] = "2999-01-01T00:00:00.000000Z"  # type: ignore[index]
    race.api.store(PATH, body)
    took_s = await race.until_held(first, within_s=17.2)  # it died with a clock in the far future
    assert took_s >= 15.0
    assert race.api.read(PATH)["spec"]["leaseTransitions"] == 5


async def test_the_holders_own_duration_is_respected(race: Race) -> None:
    spec = {"holderIdentity": "elsewhere", "leaseDurationSeconds": 40}
    race.api.store(PATH, {"metadata": {"name": "bandkeeper", "namespace": "system"}, "spec": spec})
    first = race.candidate("first")
    assert await race.until_held(first, within_s=42.0) >= 40.0


async def test_a_renewal_whose_answer_is_lost_is_found_out(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(10)
    first.client.deaf = True
    await race.advance(4.0)
    first.client.deaf = False
    await race.advance(30)
    assert first.held
    assert first.news == ["gain"]


async def test_an_acquisition_whose_answer_is_lost_is_found_out(race: Race) -> None:
    first = race.candidate("first")
    first.client.deaf = True
    await race.advance(6.0)
    assert race.api.read(PATH)["spec"]["holderIdentity"] == "first"
    assert not first.held
    first.client.deaf = False
    await race.advance(6.0)
    assert first.held


async def test_every_call_ends_within_the_time_that_is_left(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(10)
    first.client.cut_off = True
    first.client.timeouts.clear()
    left_s = first.elector.remaining_s()
    while first.held:
        await race.advance(0.1)
    assert len(first.client.timeouts) >= 2  # one hung call must not cost the lease
    assert max(first.client.timeouts) <= 10.0 / 3
    assert sum(first.client.timeouts) <= left_s


async def test_the_lease_counts_from_before_the_request(race: Race) -> None:
    """The server may have renewed it long before its answer came, and others count from then."""
    first = race.candidate("first")
    first.client.slow_s = 3.0
    await race.until_held(first, within_s=7.0)
    assert first.elector.remaining_s() <= 7.0


async def test_one_who_lost_the_lease_to_a_person_stops(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(10)
    lease = race.api.read(PATH)
    lease["spec"] |= {"holderIdentity": "someone", "leaseDurationSeconds": 30}
    race.api.store(PATH, lease)
    await race.advance(2.1)
    assert not first.held
    assert first.news == ["gain", "loss"]


async def test_a_release_survives_a_renewal_cut_off_by_the_stop(race: Race) -> None:
    """The renewal arrived, its answer did not: the version that we know is old."""
    first = race.candidate("first")
    await race.advance(10)
    race.api.store(PATH, race.api.read(PATH))
    await first.stop()
    assert race.api.read(PATH)["spec"]["holderIdentity"] == ""


async def test_one_who_does_not_hold_it_releases_nothing(race: Race) -> None:
    race.candidate("first")
    await race.advance(0.2)
    second = race.candidate("second")
    await race.advance(10)
    await second.stop()
    assert race.api.read(PATH)["spec"]["holderIdentity"] == "first"


async def test_a_release_that_fails_does_not_hang(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(10)
    first.client.cut_off = True
    first.task.cancel()
    await race.time.advance(2.1)
    assert first.task.done()
    assert not first.held


async def test_a_refusal_is_named_and_tried_again_without_haste(race: Race) -> None:
    first = race.candidate("first")
    first.client.errors = [Forbidden(403, "Forbidden", "leases is forbidden")] * 3
    await race.advance(3.0)
    assert first.elector.problem == "403 Forbidden: leases is forbidden"
    assert len(first.client.calls) == 2
    await race.advance(6.0)
    assert first.held
    assert first.elector.problem == ""


async def test_a_callback_that_fails_does_not_cost_the_lease(race: Race) -> None:
    def fail() -> None:
        raise RuntimeError("callback")

    first = race.candidate("first")
    first.elector._on_gain = fail
    await race.advance(30)
    assert first.held


async def test_two_that_start_together_agree(race: Race) -> None:
    for name in "abcde":
        race.candidate(name)
    await race.advance(60)
    assert sum(candidate.held for candidate in race.candidates) == 1


def test_times_that_make_no_sense_are_refused() -> None:
    time = FakeTime()
    client = MemoryApi(time).client().as_client
    with pytest.raises(ValueError, match="retry_s < renew_s < lease_s"):
        LeaseElector(client, namespace="x", name="y", identity="z", lease_s=10, renew_s=10)


async def test_a_fault_of_ours_lets_the_lease_run_out_and_no_more(race: Race) -> None:
    first = race.candidate("first")
    await race.advance(10)
    first.client.errors = [RuntimeError("a fault")] * 3
    await race.advance(3.0)
    assert first.elector.problem == "a fault"
    assert first.held
    await race.advance(10.0)
    assert first.held
    assert first.news == ["gain"]
