"""Closed-loop clients: each streams an answer, notes when its tokens came, and asks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp

from tests.vllm.model import WORDS

DONE = b"data: [DONE]"


@dataclass(slots=True)
class Seen:
    """What clients saw; each list has the moment (monotonic seconds) first."""

    first_tokens: list[tuple[float, float]] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def between(self, signal: str, begin_s: float, end_s: float) -> list[float]:
        """First tokens or gaps that came in this time, ascending."""
        values: list[tuple[float, float]] = getattr(self, signal)
        return sorted(value for at_s, value in values if begin_s < at_s <= end_s)


@asynccontextmanager
async def clients(url: str, count: int, *, prompt: tuple[int, int], tokens: int) -> AsyncIterator[Seen]:
    """`count` clients with prompts of so many tokens (least, most) and answers of `tokens`, while the block runs."""
    seen = Seen()
    stop = asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        running = [
            asyncio.create_task(_client(session, seen, stop, Random(number), prompt, tokens)) for number in range(count)
        ]
        try:
            yield seen
        finally:
            stop.set()
            await asyncio.gather(*running)


async def _client(
    session: aiohttp.ClientSession,
    seen: Seen,
    stop: asyncio.Event,
    random: Random,
    prompt: tuple[int, int],
    tokens: int,
) -> None:
    while not stop.is_set():
        request = {
            "model": "tiny",
            "prompt": [random.randrange(3, WORDS) for _ in range(random.randint(*prompt))],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            await _ask(session, seen, request)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            seen.failed.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)


async def _ask(session: aiohttp.ClientSession, seen: Seen, request: dict[str, Any]) -> None:
    last_s, tokens, done = time.monotonic(), 0, False
    async with session.post("/v1/completions", json=request) as answer:
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(DONE):
                done = True
                continue
            now_s = time.monotonic()
            (seen.gaps if tokens else seen.first_tokens).append((now_s, now_s - last_s))
            last_s, tokens = now_s, tokens + 1
    if not done or not tokens:
        raise ValueError(f"the answer ended after {tokens} pieces without [DONE]")
    seen.finished.append(last_s)
