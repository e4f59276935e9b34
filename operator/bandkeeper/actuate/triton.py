"""Batch cap of a Triton model, by a repository load with the cap in its configuration. Each change is a reload.

Such a load replaces the whole configuration: one that said max_batch_size alone would take dynamic_batching and inputs
away. So the one in force is read first and given back with the cap in it. The old model serves until the new one is
there, but requests on the HTTP thread that takes the load wait, and both need memory: a few pods reload at a time. The
files in the model repository stay as they are: a server that restarts has forgotten the cap, which the read-back shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from bandkeeper.actuate.adapter import Means, Workload, cap_for
from bandkeeper.actuate.errors import AdapterError, PodError
from bandkeeper.actuate.outcome import CapReading, CapResult, Deadline, Outcome
from bandkeeper.actuate.pod_http import AT_ONCE, PodDoor, PodSession, each, life_of, result_of
from bandkeeper.actuate.rights import Right
from bandkeeper.api.durations import parse
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter, Scheme, TritonAdapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.discovery import Resource

READ_MOST_S = 5.0
READY_PER_RELOAD = 4  # of so many ready pods one may be reloading
LOAD_MOST_S = 300.0  # so long a load that was not answered may still be under way: a second one would wait behind it
QUOTED_LENGTH = 180
_REMEDIES = {
    "load / unload is not allowed": "start it with --model-control-mode=explicit",
    "unknown model": "set triton.model to a model that it has loaded",
}

Config = Mapping[str, Any]
_Server = tuple[str, int]  # a pod's uid and how often its containers were restarted


@dataclass(frozen=True, slots=True)
class _Load:
    """A load that was not answered yet: how the model batched before, and until when it may be under way."""

    before: tuple[object, ...]
    until_s: float


class Triton:
    """Loads one model anew, on every ready pod where its batching differs from what is wanted."""

    cost_class = CostClass.RELOAD
    expected_delay_s = 10.0
    reads_back = True

    def __init__(self, settings: TritonAdapter, door: PodDoor, means: Means) -> None:
        self._settings = settings
        self._door = door
        self._clock = means.clock
        self._delay_us = round(parse(settings.max_queue_delay) * 1e6) if settings.max_queue_delay else None
        self._doubted: frozenset[str] = frozenset()  # pods that may batch otherwise than asked, whatever cap was read
        self._loading: dict[_Server, _Load] = {}
        self._preferred: dict[_Server, list[int]] = {}  # sizes of the file, of which a small cap has none left

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> Triton:
        """The adapter that a policy asks for."""
        settings, access = spec.triton, means.pod_access
        if settings is None:
            raise AdapterError("adapter type Triton needs triton with model")
        door = PodDoor(
            port=settings.http_port,
            tls=settings.scheme is Scheme.HTTPS,
            server_name=settings.server_name,
            ca_file=access.ca_file,
            credential=access.credential(settings.credential, means.namespace) if settings.credential else None,
            address_of=means.address_of,
        )
        return cls(settings, door, means)

    def right(self, resource: Resource) -> Right | None:
        """None: nothing is written to the API server."""
        return None

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when every ready pod reads back the cap, and batches as the policy asks."""
        return not self._behind(workload, cap)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Load the model anew on the pods that differ; those that fail are tried again at the next call."""
        pods, left = self._behind(workload, cap), Deadline(deadline, self._clock)
        if not pods:
            return CapResult(outcome=Outcome.UNCHANGED)
        self._forget_gone(workload)
        most = reloads_at_once(workload.pods)
        free = max(1, most - self._under_way())  # where none is, the one that is asked may be the one that has ended

        async def write(pod: Pod) -> bool:
            return await self._write(session, pod, cap_for(pod, cap), left, most)

        try:
            async with self._door.open() as session:
                done, failed = await each(pods, write, at_once=free)
        except PodError as error:
            return CapResult(outcome=Outcome.REFUSED, message=str(error))
        self._doubted = (self._doubted - set(done)) | set(failed)
        return result_of(sum(done.values()), failed)

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """Ask every ready pod's server for the model's configuration in force."""
        pods, left = [pod for pod in workload.pods if pod.state is PodState.READY], Deadline(deadline, self._clock)

        async def read(pod: Pod) -> Config:
            config = await self._config(session, pod, min(READ_MOST_S, left.timeout_s()))
            self._with(pod, config, config["max_batch_size"])  # or say why it can have no cap
            return config

        try:
            async with self._door.open() as session:
                configs, failed = await each(pods, read)
        except PodError as error:
            return CapReading(failed={pod.name: str(error) for pod in pods})
        self._forget_gone(workload)
        by_name = {pod.name: pod for pod in pods}
        for name, config in configs.items():
            self._is_loading(by_name[name], config)
        self._doubted = frozenset(name for name, config in configs.items() if not self._suits(by_name[name], config))
        return CapReading(
            caps={name: config["max_batch_size"] for name, config in configs.items()},
            failed={name: str(error) for name, error in failed.items()},
        )

    async def close(self) -> None:
        """Nothing stays open between two rounds."""

    def _behind(self, workload: Workload, cap: int) -> list[Pod]:
        ready = (pod for pod in workload.pods if pod.state is PodState.READY)
        return [pod for pod in ready if pod.cap != cap_for(pod, cap) or pod.name in self._doubted]

    def _forget_gone(self, workload: Workload) -> None:
        there = {life_of(pod) for pod in workload.pods}
        self._loading = {server: load for server, load in self._loading.items() if server in there}
        self._preferred = {server: sizes for server, sizes in self._preferred.items() if server in there}

    def _under_way(self) -> int:
        """How many servers may be loading, also long after nobody waited for their answer any more."""
        return sum(self._clock() < load.until_s for load in self._loading.values())

    async def _write(self, session: PodSession, pod: Pod, cap: int, left: Deadline, most: int) -> bool:
        """Load one pod's model anew, and tell whether that was needed."""
        config = await self._config(session, pod, left.timeout_s())
        wanted = self._with(pod, config, cap)
        if _batching(wanted) == _batching(config):
            return False
        if self._is_loading(pod, config):
            raise PodError(f"Triton of pod {pod.name} is still loading {self._settings.model}; the old one serves")
        if self._under_way() >= most:
            raise PodError(f"Triton of pod {pod.name} loads {self._settings.model} when other pods have done so")
        body = json.dumps({"parameters": {"config": json.dumps(wanted)}})
        path = f"/v2/repository/models/{quote(self._settings.model)}/load"
        self._loading[life_of(pod)] = _Load(_batching(config), self._clock() + LOAD_MOST_S)
        try:
            await self._ask(session, pod, "POST", path, left.timeout_s(), body)
        except PodError as error:
            if not isinstance(error.__cause__, TimeoutError):
                self._loading.pop(life_of(pod), None)
            raise
        self._loading.pop(life_of(pod), None)
        return True

    def _is_loading(self, pod: Pod, config: Config) -> bool:
        """Whether an earlier load may be under way: it was not answered, and nothing has changed since."""
        load = self._loading.get(life_of(pod))
        if load is not None and self._clock() < load.until_s and load.before == _batching(config):
            return True
        self._loading.pop(life_of(pod), None)
        return False

    def _suits(self, pod: Pod, config: Config) -> bool:
        """Whether a model batches as the policy asks, whatever its cap."""
        return _batching(self._with(pod, config, config["max_batch_size"])) == _batching(config)

    def _with(self, pod: Pod, config: Config, cap: int) -> Config:
        """The configuration with the cap in it, and with what else the policy says of batching."""
        batching = config.get("dynamic_batching")
        if batching is None:
            raise PodError(
                f"model {self._settings.model} of pod {pod.name} forms no batches of requests that wait; "
                "add `dynamic_batching {}` to its config.pbtxt, or remove spec.batch",
                lasting=True,
            )
        sizes = self._settings.preferred_batch_sizes
        if sizes is None:
            sizes = self._own_sizes(pod, batching.get("preferred_batch_size") or [], config["max_batch_size"])
        batching = {**batching, "preferred_batch_size": [size for size in sizes if size <= cap]}
        if self._delay_us is not None:
            batching["max_queue_delay_microseconds"] = self._delay_us
        return {**config, "max_batch_size": cap, "dynamic_batching": batching}

    def _own_sizes(self, pod: Pod, told: list[int], most: int) -> list[int]:
        """The sizes of the model's own, also those that no longer fit; those told, where they are not what is left."""
        known = self._preferred.get(life_of(pod))
        if known is None or _given([size for size in known if size <= most], most) != _given(told, most):
            known = self._preferred[life_of(pod)] = _given(told, most)
        return known

    async def _config(self, session: PodSession, pod: Pod, timeout_s: float) -> Config:
        """The configuration in force, of a model that takes batches at all."""
        path = f"/v2/models/{quote(self._settings.model)}/config"
        config = await self._ask(session, pod, "GET", path, timeout_s)
        most = config.get("max_batch_size") if isinstance(config, dict) else None
        if not isinstance(config, dict) or not isinstance(most, int) or not _is_batching(config):
            raise PodError(
                f"pod {pod.name}, asked GET {path}, does not answer with a model's configuration: see triton.httpPort",
                lasting=True,
            )
        if most < 1:
            raise PodError(
                f"model {self._settings.model} of pod {pod.name} takes no batches (max_batch_size {most}); "
                "give it one of at least 1 in its config.pbtxt, or remove spec.batch",
                lasting=True,
            )
        return config

    async def _ask(
        self, session: PodSession, pod: Pod, method: str, path: str, timeout_s: float, body: str | None = None
    ) -> Any:
        """One request; where Triton itself refuses, its own words are the sentence."""
        try:
            answer = await session.ask(pod, method, path, timeout_s=timeout_s, body=body)
        except PodError as error:
            if not error.said:
                raise
            message = f"Triton of pod {pod.name} refused: {_refusal(error.said)}"
            raise PodError(message, status=error.status, lasting=True, said=error.said) from error
        try:
            return await answer.parsed() if answer.body else {}
        except ValueError:
            return None


def reloads_at_once(pods: Iterable[Pod]) -> int:
    """How many of a workload's servers may be reloading while the others serve."""
    ready = sum(pod.state is PodState.READY for pod in pods)
    return max(1, min(AT_ONCE, ready // READY_PER_RELOAD))


def _given(sizes: list[int], most: int) -> list[int]:
    """Preferred sizes without the one that Triton itself adds where none is given: the largest batch."""
    return [] if sizes == [most] else sizes


def _is_batching(config: Config) -> bool:
    """Whether what is told of batching has the shape that we read."""
    batching = config.get("dynamic_batching") or {}
    if not isinstance(batching, dict):
        return False
    sizes, delay_us = batching.get("preferred_batch_size") or [], batching.get("max_queue_delay_microseconds") or 0
    of_numbers = isinstance(sizes, list) and all(isinstance(size, int) for size in sizes)
    return of_numbers and isinstance(delay_us, int | str) and str(delay_us).isdecimal() and len(str(delay_us)) < 16


def _batching(config: Config) -> tuple[int, tuple[int, ...], int]:
    """What of a configuration is ours to write; the preferred size that Triton adds by itself is none."""
    batching, cap = config["dynamic_batching"], config["max_batch_size"]
    sizes = tuple(batching.get("preferred_batch_size") or ())
    return cap, sizes or (cap,), int(batching.get("max_queue_delay_microseconds") or 0)


def _refusal(said: str) -> str:
    """The server's own words, and what to do where that is known."""
    quoted = f'"{said[:QUOTED_LENGTH]}..."' if len(said) > QUOTED_LENGTH else f'"{said}"'
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in said.lower()), "")
    return f"{quoted}; {remedy}" if remedy else quoted
