"""Batch cap by a request to the server in each ready pod, filled in from a template in the policy.

Where the server can be asked, what it says counts. Where it cannot, what was written counts, a stated delay after the
write and for as long as that server lives; the memory of it may be lost, and then it is written again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bandkeeper.actuate.adapter import Means, Workload, cap_for
from bandkeeper.actuate.errors import AdapterError, PodError
from bandkeeper.actuate.outcome import CapReading, CapResult, Deadline, Outcome
from bandkeeper.actuate.pod_http import Answer, PodDoor, PodSession, Turns, each, life_of, result_of
from bandkeeper.actuate.rights import Right
from bandkeeper.api import durations
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter, HTTPAdapter, HTTPReadBack, Scheme
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.discovery import Resource

LONGEST_NUMBER = 9  # digits; int() of thousands of them fails
_PLACEHOLDER = re.compile("[{](cap|pod|namespace)[}]")


@dataclass(frozen=True, slots=True)
class _Written:
    cap: int
    at_s: float


class HTTP:
    """Asks the servers whose cap differs, each at its pod's own IP and the port of the policy."""

    cost_class = CostClass.LIVE
    expected_delay_s = 1.0
    reads_back = True

    def __init__(
        self, settings: HTTPAdapter, door: PodDoor, *, namespace: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._door = door
        self._namespace = namespace
        self._clock = clock
        self._timeout_s = durations.parse(settings.timeout)
        self._delay_s = durations.parse(settings.delay)
        self._written: dict[tuple[str, int], _Written] = {}
        self._doubted: set[tuple[str, int]] = set()
        self._turns = Turns()
        self.expected_delay_s = max(HTTP.expected_delay_s, self._delay_s)
        self._check_body()

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> HTTP:
        """The adapter that a policy asks for."""
        settings, access = spec.http, means.pod_access
        if settings is None:
            raise AdapterError("adapter type HTTP needs http with port and path")
        door = PodDoor(
            port=settings.port,
            tls=settings.scheme is Scheme.HTTPS,
            server_name=settings.server_name,
            ca_file=access.ca_file,
            credential=access.credential(settings.credential, means.namespace) if settings.credential else None,
            address_of=means.address_of,
        )
        return cls(settings, door, namespace=means.namespace, clock=means.clock)

    def right(self, resource: Resource) -> Right | None:
        """None: nothing is written to the API server."""
        return None

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when every ready server has the cap, or was lately told."""
        return not self._behind(workload, cap)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Tell the servers that differ, a few at a time; those that fail are told again at the next call."""
        pods, left = self._behind(workload, cap), Deadline(deadline, self._clock)
        if not pods:
            return CapResult(outcome=Outcome.UNCHANGED)

        async def tell(pod: Pod) -> None:
            self._written.pop(life_of(pod), None)
            self._doubted.add(life_of(pod))  # from here on nobody knows, until there is an answer
            await self._tell(session, pod, cap_for(pod, cap), min(self._timeout_s, left.timeout_s()))
            self._doubted.discard(life_of(pod))
            self._written[life_of(pod)] = _Written(cap_for(pod, cap), self._clock())

        try:
            async with self._door.open() as session:
                done, failed = await each(pods, tell, turns=self._turns)
        except PodError as error:
            return CapResult(outcome=Outcome.REFUSED, message=str(error))
        return result_of(len(done), failed)

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """Ask each ready server, or tell what was written to it long enough ago."""
        pods = [pod for pod in workload.pods if pod.state is PodState.READY]
        self._forget(workload)
        where = self._settings.read_back
        if where is None:
            return CapReading(caps=self._in_force(pods), assumed=True)
        left = Deadline(deadline, self._clock)

        async def read(pod: Pod) -> int:
            timeout_s = min(self._timeout_s, left.timeout_s())
            answer = await session.ask(pod, "GET", self._fill(where.path, pod), timeout_s=timeout_s)
            cap = await _cap_in(answer, where, pod)
            self._doubted.discard(life_of(pod))
            return cap

        try:
            async with self._door.open() as session:
                caps, failed = await each(pods, read, turns=self._turns)
        except PodError as error:
            return CapReading(failed={pod.name: str(error) for pod in pods})
        return CapReading(caps=caps, failed={name: str(error) for name, error in failed.items()})

    async def close(self) -> None:
        """Nothing stays open between two rounds."""

    async def _tell(self, session: PodSession, pod: Pod, cap: int, timeout_s: float) -> None:
        settings = self._settings
        answer = await session.ask(
            pod,
            settings.method.value,
            self._fill(settings.path, pod, cap),
            body=None if settings.body is None else self._fill(settings.body, pod, cap),
            content_type=settings.content_type,
            timeout_s=timeout_s,
        )
        if settings.expect_status and answer.status not in settings.expect_status:
            expected = " or ".join(map(str, settings.expect_status))
            raise PodError(f"pod {pod.name} answers {answer.status} where expectStatus says {expected}", lasting=True)

    def _behind(self, workload: Workload, cap: int) -> list[Pod]:
        ready = (pod for pod in workload.pods if pod.state is PodState.READY)
        return [pod for pod in ready if not self._has(pod, cap_for(pod, cap))]

    def _has(self, pod: Pod, cap: int) -> bool:
        """Whether a server need not be told: it says so itself, or was told and had no time to say it yet."""
        written = self._written.get(life_of(pod))
        told = written is not None and written.cap == cap
        if self._settings.read_back is None:
            return told
        if life_of(pod) in self._doubted:
            return False
        return pod.cap == cap or (told and written is not None and self._clock() - written.at_s < self._delay_s)

    def _in_force(self, pods: list[Pod]) -> dict[str, int]:
        known = ((pod, self._written.get(life_of(pod))) for pod in pods)
        now_s = self._clock()
        return {pod.name: one.cap for pod, one in known if one is not None and now_s - one.at_s >= self._delay_s}

    def _forget(self, workload: Workload) -> None:
        """Servers that are gone are not kept in mind."""
        there = {life_of(pod) for pod in workload.pods}
        self._written = {server: one for server, one in self._written.items() if server in there}
        self._doubted &= there
        self._turns.keep(workload.pods)

    def _fill(self, template: str, pod: Pod, cap: int | None = None) -> str:
        values = {"pod": pod.name, "namespace": self._namespace, "cap": "" if cap is None else str(cap)}
        return _PLACEHOLDER.sub(lambda found: values[found[1]], template)

    def _check_body(self) -> None:
        """A body that says it is JSON must be it, once filled in."""
        body = self._settings.body
        if body is None or self._settings.content_type != "application/json":
            return
        try:
            json.loads(self._fill(body, Pod(name="chat-0"), 8))
        except ValueError as error:
            raise AdapterError(
                f"http.body is no JSON once {{cap}} is filled in ({error}): correct it, or set http.contentType"
            ) from error


async def _cap_in(answer: Answer, where: HTTPReadBack, pod: Pod) -> int:
    asked = f"pod {pod.name}, asked GET {where.path},"
    try:
        value = _at(await answer.parsed(), where.pointer)
    except ValueError as error:
        raise PodError(f"{asked} does not answer in JSON: see http.readBack.path", lasting=True) from error
    except (KeyError, IndexError) as error:
        raise PodError(f"{asked} has no {where.pointer} in its answer: see http.readBack.pointer") from error
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER and value.isascii() and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        said = json.dumps(value)[:40]
        raise PodError(f"{asked} says {said} at {where.pointer or 'the top'}, which is no batch cap of 1 or more")
    return value


def _at(document: Any, pointer: str) -> Any:
    """What a JSON pointer points to; KeyError or IndexError where there is nothing."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(document, list) and name.isdecimal():
            document = document[int(name)]
        elif isinstance(document, dict):
            document = document[name]
        else:
            raise KeyError(name)
    return document
