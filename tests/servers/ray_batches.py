"""A Ray Serve application: a batch takes 10 ms and 1 ms for each request; batches of more than 32 it refuses."""

import asyncio
import os
from typing import Any, cast

from ray import serve  # type: ignore[import-not-found]  # of the server's own environment

MOST_REQUESTS = 32
BATCH_S, REQUEST_S = 0.010, 0.001


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})
class Embedder:
    """Tells each request which process served it, and how many together."""

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take the batch size over, as an engine that was built for fewer would."""
        size = user_config["max_batch_size"]
        if size > MOST_REQUESTS:
            raise ValueError(f"the engine was built for batches of at most {MOST_REQUESTS}")
        self.embed.set_max_batch_size(size)
        self.embed.set_batch_wait_timeout_s(user_config["wait_s"])

    @serve.batch  # type: ignore[untyped-decorator]
    async def embed(self, requests: list[Any]) -> list[dict[str, int]]:
        """All of a batch at once."""
        await asyncio.sleep(BATCH_S + REQUEST_S * len(requests))
        return [{"pid": os.getpid(), "together": len(requests)}] * len(requests)

    async def __call__(self, request: Any) -> dict[str, int]:
        found: dict[str, int] = await self.embed(request)
        return found


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Other:
    """Another application of the same cluster, which nobody is to touch."""

    async def __call__(self, request: Any) -> str:
        return "other"


app = cast(Any, Embedder).bind()
other = cast(Any, Other).bind()
