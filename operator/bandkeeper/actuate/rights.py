"""Rights on the API, asked for before they are needed, so that a policy can say what is missing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from bandkeeper.kube.client import ApiError, KubeClient

KEEP_S = 60.0
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One verb on one resource, written as in a role (`deployments/scale`), and how a person can grant it."""

    verb: str
    group: str
    resource: str
    remedy: str

    def missing(self, namespace: str) -> str:
        """The sentence for a right that the operator does not have."""
        where = f" of API group {self.group}" if self.group else ""
        return f"the operator may not {self.verb} {self.resource}{where} in namespace {namespace}: {self.remedy}"

    def refused(self, error: ApiError, namespace: str) -> str:
        """The sentence for a refused request: a missing right, or what an admission policy or quota had to say."""
        if re.search(r" cannot \w+ resource ", error.message):
            return self.missing(namespace)
        said = error.message.rpartition(" denied request: ")[2]
        return f"{self.verb} {self.resource} in namespace {namespace} was refused: {said}"


class Rights:
    """Asks the API server about our own rights; answers are kept for a minute."""

    def __init__(self, client: KubeClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[Right, str], tuple[bool, float]] = {}

    async def missing(self, right: Right, namespace: str) -> str:
        """The sentence for a missing right; "" where we have it, or where the API server did not say."""
        allowed, at = self._known.get((right, namespace), (True, float("-inf")))
        if self._clock() - at > KEEP_S:
            try:
                allowed = await self._ask(right, namespace)
            except ApiError:
                return ""
            self._known[right, namespace] = (allowed, self._clock())
        return "" if allowed else right.missing(namespace)

    async def _ask(self, right: Right, namespace: str) -> bool:
        plural, _, subresource = right.resource.partition("/")
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": plural,
            "subresource": subresource,
            "namespace": namespace,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = await self._client.post(REVIEWS, review)
        return bool((answer.get("status") or {}).get("allowed"))
