"""A token bucket that callers either poll (`take`) or wait for in order of arrival (`wait`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class TokenBucket:
    """Holds up to `burst` tokens and gains `per_second` of them each second.

    The level may go below zero: whoever waits has already taken their token, so waiting is first come, first served.
    """

    def __init__(
        self,
        per_second: float,
        burst: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._level = burst
        self._at = clock()

    def level(self) -> float:
        """Tokens at hand now; negative while someone waits."""
        now = self._clock()
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._per_second)
        self._at = now
        return self._level

    def take(self) -> bool:
        """Take a token if there is one; never waits."""
        if self.level() < 1.0:
            return False
        self._level -= 1.0
        return True

    def borrow(self) -> None:
        """Take a token even if there is none: for calls that must not wait, paid for by those after them."""
        self._level = self.level() - 1.0

    async def wait(self) -> None:
        """Take a token, sleeping until it is due. A cancelled wait gives its token back."""
        self.borrow()
        if self._level >= 0.0:
            return
        try:
            await self._sleep(-self._level / self._per_second)
        except asyncio.CancelledError:
            self._level += 1.0
            raise
