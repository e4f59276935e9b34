"""Closed-loop clients: each asks again as soon as it is answered, so that throughput and waits are the server's own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

ANSWER_MOST_S = 30.0


@dataclass(slots=True)
class Clients:
    """`count` clients that POST `body` to `url` for as long as the context is open.

    Attributes
    ----------
    answers
        When each good answer came (monotonic) and how many seconds it took.
    failures
        What went wrong with each request that got no good answer.
    """

    url: str
    body: Any
    count: int
    answers: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=ANSWER_MOST_S)
        session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=self.count))
        self._tasks.append(asyncio.create_task(self._run(session)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True  # what was asked is still answered, and counted
        await asyncio.gather(*self._tasks)

    async def rate_per_s(self, over_s: float) -> float:
        """Good answers per second within the next `over_s` seconds."""
        before, begun_s = len(self.answers), time.monotonic()
        await asyncio.sleep(over_s)
        return (len(self.answers) - before) / (time.monotonic() - begun_s)

    def took_s(self, since_s: float = 0.0) -> list[float]:
        """Seconds of each answer that came since then, the shortest first."""
        return sorted(took_s for at_s, took_s in self.answers if at_s >= since_s)

    async def _run(self, session: aiohttp.ClientSession) -> None:
        async with session:
            await asyncio.gather(*(self._ask(session) for _ in range(self.count)))

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        while not self._stopping:
            begun_s = time.monotonic()
            try:
                async with session.post(self.url, json=self.body) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(repr(error))
                continue
            now_s = time.monotonic()
            if answer.status == 200:
                self.answers.append((now_s, now_s - begun_s))
            else:
                self.failures.append(f"{answer.status}: {text[:200]}")
