"""Batch cap of a Triton model, by a repository load with the cap in its configuration. Each change is a reload.

Such a load replaces the whole configuration, so the one in force is read first and given back with the cap in it.
Requests wait during a reload, so only a few pods have one at a time. The files in the model repository stay as they
are: a server that restarts has forgotten the cap, which the read-back shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from bandkeeper.actuate.adapter import Means, Workload, at_port, cap_for
from bandkeeper.actuate.outcome import OUT_OF_TIME, CapReading, CapResult, Deadline, Outcome
from bandkeeper.api.durations import parse
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter, TritonAdapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.discovery import Resource

READS_AT_ONCE = 16
READ_MOST_S = 5.0
RELOADS_AT_ONCE = 8
READY_PER_RELOAD = 4  # of so many ready pods one may be reloading
ANSWER_MOST_BYTES = 4 * 1024 * 1024
QUOTED_MOST = 180  # characters of a server's own words in a sentence

Config = Mapping[str, Any]


class _ServerError(Exception):
    """No cap was read or set, and the sentence why: the server or its model REFUSED, or FAILED to answer as Triton."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Triton:
    """Loads one model anew, on every ready pod where its batching differs from what is wanted."""

    cost_class = CostClass.RELOAD
    expected_delay_s = 10.0
    reads_back = True

    def __init__(self, settings: TritonAdapter, means: Means) -> None:
        self._settings = settings
        self._clock = means.clock
        self._address_of = means.address_of or at_port(settings.http_port)
        self._delay_us = round(parse(settings.max_queue_delay) * 1e6) if settings.max_queue_delay else None
        self._odd: frozenset[str] = frozenset()  # pods whose model batches otherwise than asked for, beside the cap

    @classmethod
    def of(cls, adapter: Adapter, means: Means) -> Triton:
        """From a policy's settings."""
        assert adapter.triton is not None  # the API sees to it
        return cls(adapter.triton, means)

    def right(self, resource: Resource) -> None:
        """None: nothing is written to the API server."""

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when every ready pod reads back the cap, and batches as the policy asks."""
        return not self._differing(workload, cap)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Load the model anew on the pods that differ; those that fail are tried again at the next call."""
        pods = self._differing(workload, cap)
        if not pods:
            return CapResult(outcome=Outcome.UNCHANGED)
        left, slots = Deadline(deadline, self._clock), asyncio.Semaphore(reloads_at_once(workload.pods))

        async def write(pod: Pod) -> tuple[Outcome, str]:
            async with slots:
                return await self._write(session, pod, cap_for(pod, cap), left)

        async with _session() as session:
            ends = await asyncio.gather(*(write(pod) for pod in pods))
        failed = {pod.name: message for pod, (_, message) in zip(pods, ends, strict=True) if message}
        outcomes = [outcome for outcome, _ in ends]
        return CapResult(
            outcome=_overall(outcomes),
            message=next(iter(failed.values()), ""),
            written=outcomes.count(Outcome.WRITTEN),
            failed=failed,
        )

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """Ask every ready pod's server for the model's configuration in force."""
        pods = [pod for pod in workload.pods if pod.state is PodState.READY]
        left, slots = Deadline(deadline, self._clock), asyncio.Semaphore(READS_AT_ONCE)
        caps: dict[str, int] = {}
        failed: dict[str, str] = {}
        odd: set[str] = set()

        async def read(pod: Pod) -> None:
            async with slots:
                try:
                    config = await self._config(session, pod, min(READ_MOST_S, left.timeout_s()))
                    if _figures(self._with(pod, config, config["max_batch_size"])) != _figures(config):
                        odd.add(pod.name)
                except _ServerError as error:
                    failed[pod.name] = str(error)
                else:
                    caps[pod.name] = config["max_batch_size"]

        async with _session() as session:
            await asyncio.gather(*(read(pod) for pod in pods))
        self._odd = frozenset(odd)
        return CapReading(caps=caps, failed=failed)

    async def close(self) -> None:
        """Nothing is held open."""

    def _differing(self, workload: Workload, cap: int) -> list[Pod]:
        ready = (pod for pod in workload.pods if pod.state is PodState.READY)
        return [pod for pod in ready if pod.cap != cap_for(pod, cap) or pod.name in self._odd]

    async def _write(self, session: aiohttp.ClientSession, pod: Pod, cap: int, left: Deadline) -> tuple[Outcome, str]:
        """Change one pod's model, unless its configuration turns out to be as wanted."""
        try:
            config = await self._config(session, pod, left.timeout_s())
            wanted = self._with(pod, config, cap)
            if _figures(wanted) == _figures(config):
                return Outcome.UNCHANGED, ""
            body = {"parameters": {"config": json.dumps(wanted)}}
            path = f"/v2/repository/models/{quote(self._settings.model)}/load"
            await self._ask(session, pod, "POST", path, left.timeout_s(), body)
        except _ServerError as error:
            return error.outcome, str(error)
        return Outcome.WRITTEN, ""

    def _with(self, pod: Pod, config: Config, cap: int) -> Config:
        """The configuration with the cap in it, and with what else the policy says of batching."""
        batching = config.get("dynamic_batching")
        if batching is None:
            raise _ServerError(
                Outcome.REFUSED,
                f"model {self._settings.model} of pod {pod.name} forms no batches of requests that wait; "
                "add `dynamic_batching {}` to its config.pbtxt, or remove spec.batch",
            )
        before, sizes = batching.get("preferred_batch_size") or [], self._settings.preferred_batch_sizes
        if sizes is None:  # where none are given, Triton itself makes the largest batch the preferred one
            sizes = [] if before == [config["max_batch_size"]] else before
        batching = {**batching, "preferred_batch_size": [size for size in sizes if size <= cap]}
        if self._delay_us is not None:
            batching["max_queue_delay_microseconds"] = self._delay_us
        return {**config, "max_batch_size": cap, "dynamic_batching": batching}

    async def _config(self, session: aiohttp.ClientSession, pod: Pod, timeout_s: float) -> Config:
        """The configuration in force, of a model that takes batches at all."""
        path = f"/v2/models/{quote(self._settings.model)}/config"
        config = await self._ask(session, pod, "GET", path, timeout_s)
        most = config.get("max_batch_size")
        if not isinstance(most, int):
            raise _ServerError(
                Outcome.FAILED, f"{self._server(pod)} did not answer with a model's configuration; {_PORT}"
            )
        if most < 1:
            raise _ServerError(
                Outcome.REFUSED,
                f"model {self._settings.model} of pod {pod.name} takes no batches (max_batch_size {most}); "
                "give it one of at least 1 in its config.pbtxt, or remove spec.batch",
            )
        return config

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        pod: Pod,
        method: str,
        path: str,
        timeout_s: float,
        body: Any = None,
    ) -> dict[str, Any]:
        """One request to one pod; what is no good answer of Triton's becomes a sentence."""
        server = self._server(pod)
        if not timeout_s:
            raise _ServerError(Outcome.FAILED, OUT_OF_TIME)
        url, timeout = f"http://{self._address_of(pod)}{path}", aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with session.request(method, url, json=body, timeout=timeout, allow_redirects=False) as answer:
                data = b""
                async for chunk in answer.content.iter_chunked(65_536):
                    data += chunk
                    if len(data) > ANSWER_MOST_BYTES:
                        raise _ServerError(
                            Outcome.FAILED, f"{server} answered with more than {ANSWER_MOST_BYTES} bytes; {_PORT}"
                        )
        except TimeoutError as error:
            raise _ServerError(
                Outcome.FAILED, f"{server} did not answer within {timeout_s:.3g} s; it is asked again"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _ServerError(
                Outcome.FAILED, f"{server} cannot be asked: {_quote(str(error) or repr(error))}; {_PORT}"
            ) from error
        if 300 <= answer.status < 400:
            there = urlsplit(answer.headers.get("Location", "")).netloc or "elsewhere"
            raise _ServerError(Outcome.FAILED, f"{server} redirects to {there}, which is not followed; {_PORT}")
        try:
            said = json.loads(data or b"{}")
        except ValueError:
            said = None
        if not isinstance(said, dict):
            page = _quote(data[:400].decode(errors="replace"))
            raise _ServerError(
                Outcome.FAILED, f"{server} answered {answer.status} with no JSON object ({page}); {_PORT}"
            )
        if answer.status != 200:
            raise _ServerError(
                Outcome.REFUSED,
                f"Triton of pod {pod.name} refused: {_refusal(str(said.get('error') or answer.reason))}",
            )
        return said

    def _server(self, pod: Pod) -> str:
        return f"Triton of pod {pod.name} ({self._address_of(pod)})"


_PORT = "does triton.httpPort name Triton's HTTP port, and may the operator reach it?"
_REMEDIES = {
    "load / unload is not allowed": "start it with --model-control-mode=explicit",
    "unknown model": "set triton.model to a model that it has loaded",
    "restricted": "leave model-repository out of --http-restricted-api, or use another adapter",
}


def reloads_at_once(pods: Iterable[Pod]) -> int:
    """How many of a workload's servers may be reloading while the others serve."""
    ready = sum(pod.state is PodState.READY for pod in pods)
    return max(1, min(RELOADS_AT_ONCE, ready // READY_PER_RELOAD))


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())


def _figures(config: Config) -> tuple[Any, ...]:
    """What is written of a configuration; the preferred size that Triton adds itself is none."""
    batching = config.get("dynamic_batching") or {}
    most = config["max_batch_size"]
    sizes = tuple(batching.get("preferred_batch_size") or ())
    return most, sizes or (most,), int(batching.get("max_queue_delay_microseconds") or 0)


def _refusal(said: str) -> str:
    """The server's own words, and what to do where that is known."""
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in said.lower()), "")
    return f"{_quote(said)}; {remedy}" if remedy else _quote(said)


def _quote(said: str) -> str:
    words = " ".join(said.split())
    return f'"{words[:QUOTED_MOST]}..."' if len(words) > QUOTED_MOST else f'"{words}"'


def _overall(outcomes: list[Outcome]) -> Outcome:
    bad = [outcome for outcome in outcomes if outcome in (Outcome.REFUSED, Outcome.FAILED)]
    if bad:
        return Outcome.PARTIAL if Outcome.WRITTEN in outcomes else bad[0]
    return Outcome.WRITTEN if Outcome.WRITTEN in outcomes else Outcome.UNCHANGED
