"""Ray Serve's REST API as the Ray dashboard has it: the whole of what is deployed, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

PATH = "/api/serve/applications/"
MOST_BYTES = 16 * 1024 * 1024  # a large cluster tells a lot about each replica
QUOTED = 300


class DashboardError(Exception):
    """The dashboard could not be asked, or said no (`refused`); the text is a sentence for a person."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class RayDashboard:
    """Dashboards by host:port. Redirects are not followed: the config is for this Ray cluster and no other."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def get(self, address: str, timeout_s: float) -> dict[str, Any]:
        """What is deployed and how it is. Raises DashboardError."""
        body = await self._ask("GET", address, timeout_s)
        try:
            details = json.loads(body)
        except ValueError:
            details = None
        if not isinstance(details, dict) or not isinstance(details.get("applications"), dict):
            raise DashboardError(
                f"what answers at {address}{PATH} is not the Ray dashboard ({_quoted(body)}); is the port right?",
                refused=True,
            )
        return details

    async def put(self, address: str, config: Mapping[str, Any], timeout_s: float) -> None:
        """Deploy a config; Ray answers before it is in force. Raises DashboardError."""
        await self._ask("PUT", address, timeout_s, config)

    async def close(self) -> None:
        """End the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(self, method: str, address: str, timeout_s: float, config: Mapping[str, Any] | None = None) -> bytes:
        if not timeout_s:
            raise DashboardError(f"the time left ran out before the Ray dashboard at {address} was asked")
        if self._session is None:
            self._session = aiohttp.ClientSession(headers={"User-Agent": "bandkeeper"})
        try:
            async with self._session.request(
                method,
                f"http://{address}{PATH}",
                json=config,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                body = await _limited(response)
        except TimeoutError:
            raise DashboardError(f"the Ray dashboard at {address} gave no answer in {timeout_s:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DashboardError(f"the Ray dashboard at {address} cannot be asked: {error}") from error
        if response.status == 200:
            return body
        if response.status in (401, 403):
            raise DashboardError(
                f"the Ray dashboard at {address} wants a token (HTTP {response.status}), and the adapter has none",
                refused=True,
            )
        if response.status // 100 == 3:
            raise DashboardError(f"http://{address}{PATH} redirects elsewhere, which is not followed", refused=True)
        said = f"the Ray dashboard at {address} answers HTTP {response.status}: {_quoted(body)}"
        raise DashboardError(said, refused=response.status < 500)


async def _limited(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MOST_BYTES:
            raise ValueError(f"its answer is longer than {MOST_BYTES // 1024**2} MiB")
    return bytes(body)


def _quoted(body: bytes) -> str:
    return " ".join(body.decode(errors="replace").split())[:QUOTED] or "nothing"
