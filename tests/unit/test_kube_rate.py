"""The token bucket: level, order of arrival, cancelled waits."""

from __future__ import annotations

import asyncio

import pytest

from bandkeeper.kube.rate import TokenBucket
from tests.kube_fakes import FakeTime, settle


async def test_take_spends_the_burst_and_then_the_rate() -> None:
    time = FakeTime()
    bucket = TokenBucket(2.0, 3.0, clock=time)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    await time.advance(0.5)
    assert [bucket.take() for _ in range(2)] == [True, False]


async def test_level_never_exceeds_the_burst() -> None:
    time = FakeTime()
    bucket = TokenBucket(2.0, 3.0, clock=time)
    await time.advance(1000.0)
    assert bucket.level() == 3.0


async def test_waiters_are_served_in_order_of_arrival_at_the_rate() -> None:
    time = FakeTime()
    bucket = TokenBucket(10.0, 1.0, clock=time, sleep=time.sleep)
    served: list[tuple[int, float]] = []

    async def wait(number: int) -> None:
        await bucket.wait()
        served.append((number, round(time.now - 1000.0, 3)))

    tasks = [asyncio.create_task(wait(number)) for number in range(4)]
    await time.advance(1.0)
    assert served == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]
    await asyncio.gather(*tasks)


async def test_borrow_never_waits_and_is_paid_back() -> None:
    time = FakeTime()
    bucket = TokenBucket(1.0, 1.0, clock=time, sleep=time.sleep)
    for _ in range(3):
        bucket.borrow()
    assert bucket.level() == pytest.approx(-2.0)
    assert not bucket.take()
    await time.advance(3.0)
    assert bucket.take()


async def test_a_cancelled_wait_gives_its_token_back() -> None:
    time = FakeTime()
    bucket = TokenBucket(1.0, 1.0, clock=time, sleep=time.sleep)
    assert bucket.take()
    waiter = asyncio.create_task(bucket.wait())
    await settle()
    assert bucket.level() == pytest.approx(-1.0)
    waiter.cancel()
    await settle()
    assert bucket.level() == pytest.approx(0.0)
