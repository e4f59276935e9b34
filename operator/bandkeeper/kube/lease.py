"""Leader election on a coordination.k8s.io Lease.

Another's lease counts as expired when it did not change for its own duration, by our monotonic clock: what the holder
wrote as its time is never read, so clocks may differ. Our own counts from before the request that renewed it was sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bandkeeper.kube.client import ApiError, Conflict, KubeClient, NotFound

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 2.0
LEAST_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class _Seen:
    """A lease as the server had it, and when (monotonic) we first saw it so."""

    lease: dict[str, Any]
    at: float

    @property
    def holder(self) -> str:
        return str(self.lease.get("spec", {}).get("holderIdentity") or "")

    @property
    def version(self) -> str:
        return str(self.lease["metadata"]["resourceVersion"])


class LeaseElector:
    """Acquires and renews one Lease; `held` says at any moment whether this process may write.

    Parameters
    ----------
    identity
        Unique per process, not only per pod: a restarted container must not take itself for the holder.
    lease_s, renew_s, retry_s
        Others take over `lease_s` after our last renewal; we stop acting `renew_s` after it; we try every `retry_s`.
    on_gain, on_loss
        Called when the lease is won, and when it is lost or released. Must not block.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_s: float = 15.0,
        renew_s: float = 10.0,
        retry_s: float = 2.0,
        on_gain: Callable[[], None] | None = None,
        on_loss: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not retry_s < renew_s < lease_s:
            raise ValueError(f"must be retry_s < renew_s < lease_s, not {retry_s:g}, {renew_s:g}, {lease_s:g}")
        self._client = client
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._retry_s = retry_s
        self._on_gain = on_gain
        self._on_loss = on_loss
        self._clock = clock
        self._sleep = sleep
        self._seen: _Seen | None = None
        self._renewed_at = -math.inf
        self._leading = False  # what the callbacks were told
        self.problem = ""
        """Why the last attempt failed; "" after one that worked."""

    @property
    def held(self) -> bool:
        """This process may write now."""
        return self.remaining_s() > 0.0

    @property
    def holder(self) -> str:
        """The identity seen last in the lease, "" for none."""
        return self._seen.holder if self._seen else ""

    def remaining_s(self) -> float:
        """Seconds until writing must stop unless the lease is renewed; 0 while it is not held.

        Others take over `lease_s - renew_s` seconds later at the earliest: time for a request under way to end.
        """
        return max(0.0, self._renewed_at + self._renew_s - self._clock())

    async def run(self) -> None:
        """Compete until cancelled, then release the lease. Stop all writers before cancelling. Raises nothing else."""
        try:
            while True:
                await self._attempt()
                self._tell()
                await self._sleep(self._pause_s())
        finally:
            await self._release()

    def _pause_s(self) -> float:
        pause_s = self._retry_s * random.uniform(0.9, 1.0)
        if self.held:
            return min(pause_s, self.remaining_s() / 8) if self.problem else pause_s
        if self.problem:
            return pause_s
        return min(pause_s, max(0.05, self._expires_in_s()))

    def _expires_in_s(self) -> float:
        """Seconds until the lease seen last may be taken."""
        if self._seen is None or not self._seen.holder:
            return 0.0
        lasts_s = float(self._seen.lease["spec"].get("leaseDurationSeconds") or self._lease_s)
        return self._seen.at + lasts_s - self._clock()

    async def _attempt(self) -> None:
        """One try to acquire or renew, within the time that is left."""
        limit_s = self._renew_s / 3
        if (left_s := self.remaining_s()) > 0.0:  # a hung call must leave time for another
            limit_s = min(limit_s, left_s, max(LEAST_TIMEOUT_S, left_s / 2))
        try:
            async with asyncio.timeout(limit_s):
                try:
                    await self._acquire_or_renew(limit_s)
                except Conflict:  # also after a renewal whose answer was lost: look again
                    self._seen = None
                    await self._acquire_or_renew(limit_s)
        except (ApiError, TimeoutError) as error:
            self._failed(str(error) or f"the lease was not answered within {limit_s:.1f} s")
        except Exception as error:  # whatever it is, the lease then runs out, which is safe
            log.exception("Leader election failed")
            self._failed(str(error))
        else:
            if self.problem:
                log.info("Leader election works again")
            self.problem = ""

    def _failed(self, problem: str) -> None:
        if not self.problem:
            log.warning("Lease cannot be acquired or renewed", extra={"lease": self._name, "error": problem})
        self.problem = problem

    async def _acquire_or_renew(self, limit_s: float) -> None:
        if self._seen is None or self._seen.holder != self._identity:
            try:
                self._look_at(await self._client.get(f"{self._path}/{self._name}", timeout_s=limit_s, urgent=True))
            except NotFound:
                await self._write(None, limit_s)
                return
            if self.holder != self._identity:
                self._renewed_at = -math.inf  # someone else has it
                if self._expires_in_s() > 0.0:
                    return
        await self._write(self._seen, limit_s)

    async def _write(self, seen: _Seen | None, limit_s: float) -> None:
        """Take, renew or create the lease; it is ours from the moment before the request."""
        begun_at = self._clock()
        spec = dict(seen.lease.get("spec") or {}) if seen else {}
        now = _now()
        if spec.get("holderIdentity") != self._identity:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1 if seen else 0
            spec["acquireTime"] = now
        spec |= {"holderIdentity": self._identity, "leaseDurationSeconds": math.ceil(self._lease_s), "renewTime": now}
        if seen is None:
            lease = await self._client.post(self._path, self._lease(spec, {}), timeout_s=limit_s, urgent=True)
        else:
            body = self._lease(spec, seen.lease["metadata"])
            lease = await self._client.put(f"{self._path}/{self._name}", body, timeout_s=limit_s, urgent=True)
        self._look_at(lease)
        self._renewed_at = begun_at

    def _look_at(self, lease: dict[str, Any]) -> None:
        if self._seen is None or self._seen.version != lease["metadata"]["resourceVersion"]:
            self._seen = _Seen(lease, self._clock())

    def _lease(self, spec: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
        metadata = {**metadata, "name": self._name, "namespace": self._namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    def _tell(self) -> None:
        if self.held == self._leading:
            return
        self._leading = self.held
        log.info(
            "Lease acquired" if self._leading else "Lease lost",
            extra={"lease": self._name, "identity": self._identity, "holder": self.holder},
        )
        callback = self._on_gain if self._leading else self._on_loss
        try:
            if callback is not None:
                callback()
        except Exception:  # it must not cost us the lease
            log.exception("Leadership callback failed")

    async def _release(self) -> None:
        """Give the lease up so that another need not wait for it to expire."""
        limit_s = min(RELEASE_TIMEOUT_S, self.remaining_s())
        self._renewed_at = -math.inf
        if limit_s > 0.0:
            try:
                async with asyncio.timeout(limit_s):
                    await self._put_free(limit_s)
            except (ApiError, TimeoutError) as error:
                log.warning("Lease not released; it expires", extra={"lease": self._name, "error": str(error)})
        self._tell()

    async def _put_free(self, limit_s: float) -> None:
        """Write the lease with no holder, if it is ours. A renewal cut off by the stop may have moved its version."""
        for final in (False, True):
            if self._seen is None or self._seen.holder != self._identity:
                return
            spec = self._seen.lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            body = self._lease(spec, self._seen.lease["metadata"])
            try:
                self._look_at(
                    await self._client.put(f"{self._path}/{self._name}", body, timeout_s=limit_s, urgent=True)
                )
                return
            except Conflict:
                if final:
                    raise
                self._look_at(await self._client.get(f"{self._path}/{self._name}", timeout_s=limit_s, urgent=True))


def _now() -> str:
    """The wall clock as a MicroTime, for people who read the lease."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
