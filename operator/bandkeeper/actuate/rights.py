"""Rights on the API, asked for before they are needed, so that a policy can say what is missing."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bandkeeper.kube.client import ApiError, KubeClient

KEEP_S = 600.0
KEEP_MISSING_S = 60.0
KEEP_SILENCE_S = 10.0
MOST_KNOWN = 4096
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One verb on one resource, written as in a role (`deployments/scale`), and how a person can grant it.

    `name` is of the object, where that is not the target itself.
    """

    verb: str
    group: str
    resource: str
    remedy: str
    name: str = ""

    def missing(self, namespace: str) -> str:
        """The sentence for a right that the operator does not have."""
        where = f" of API group {self.group}" if self.group else ""
        what = f'{self.resource} "{self.name}"' if self.name else self.resource
        return f"the operator may not {self.verb} {what}{where} in namespace {namespace}: {self.remedy}"

    def refused(self, error: ApiError, namespace: str) -> str:
        """The sentence for a refused request: a missing right, or what an admission policy or quota had to say."""
        if re.search(r" cannot \w+ resource ", error.message):
            return self.missing(namespace)
        said = error.message.rpartition(" denied request: ")[2]
        return f"{self.verb} {self.resource} in namespace {namespace} was refused: {said}"


@dataclass(slots=True)
class _Verdict:
    """What the API server said last, and until when (monotonic) that holds."""

    allowed: bool = True
    until_s: float = -math.inf
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Rights:
    """Asks the API server about our own rights, once for all who need the same one.

    A right that we have is asked for again after ten minutes, a missing one, which somebody may be about to grant,
    after one.
    """

    def __init__(self, client: KubeClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[Right, str, str], _Verdict] = {}

    async def missing(self, right: Right, namespace: str, name: str = "") -> str:
        """The sentence for a missing right; "" where we have it, or where the API server did not say.

        A role may grant the right on the object `name` alone; that is asked for only where it is missing in general.
        """
        name = right.name or name
        if await self._allowed(right, namespace, "") or (name and await self._allowed(right, namespace, name)):
            return ""
        return right.missing(namespace)

    async def _allowed(self, right: Right, namespace: str, name: str) -> bool:
        verdict = self._known.get((right, namespace, name))
        if verdict is None:
            self._forget_old()
            verdict = self._known[right, namespace, name] = _Verdict()
        async with verdict.asking:
            if self._clock() > verdict.until_s:
                try:
                    verdict.allowed = await self._ask(right, namespace, name)
                    keep_s = KEEP_S if verdict.allowed else KEEP_MISSING_S
                except ApiError:  # who waits for this answer need not wait for the same silence again
                    verdict.allowed, keep_s = True, KEEP_SILENCE_S
                verdict.until_s = self._clock() + keep_s
        return verdict.allowed

    def _forget_old(self) -> None:
        """About namespaces and workloads that are gone nobody asks again."""
        if len(self._known) < MOST_KNOWN:
            return
        now_s = self._clock()
        for key, verdict in list(self._known.items()):
            if verdict.until_s < now_s and not verdict.asking.locked():
                del self._known[key]

    async def _ask(self, right: Right, namespace: str, name: str) -> bool:
        plural, _, subresource = right.resource.partition("/")
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": plural,
            "subresource": subresource,
            "namespace": namespace,
        }
        if name:
            attributes["name"] = name
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = await self._client.post(REVIEWS, review)
        return bool((answer.get("status") or {}).get("allowed"))
