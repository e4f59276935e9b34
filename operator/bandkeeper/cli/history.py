"""A workload's past from Prometheus, read by the operator's own collector: range queries stand in for its queries."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Pod, PodState, Snapshot, Target
from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.lab.history import History, Moment
from bandkeeper.signals import promql
from bandkeeper.signals.answer import Answer, Sample
from bandkeeper.signals.collector import Collector, CollectorSettings
from bandkeeper.signals.plan import named_source
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.prometheus import ErrorKind, PrometheusError, PrometheusReader, PrometheusServer
from bandkeeper.signals.promql import Scope
from bandkeeper.signals.servers import Lane, Servers
from bandkeeper.signals.sources import Clock, Labels
from bandkeeper.signals.want import Want

POINTS_PER_QUERY = 5000  # Prometheus refuses more than 11,000
SHORTEST_SPLIT = 32
HOLE_S = 120.0  # a pod without samples for longer was not ready
LONG_AGO_S = 86_400.0  # age of what was there when the history begins
_KEY = "replay"

T = TypeVar("T")
Progress = Callable[[float, float], None]


class PastError(ValueError):
    """The past cannot be read; the text says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whose past, and what the record does not tell.

    Attributes
    ----------
    from_s, to_s, step_s
        Epoch seconds, and the operator's period.
    pods
        Pattern of the pods' whole names, "" to tell them from the workload's name.
    cold_start_s
        Assumed from the order of a pod to its readiness where kube-state-metrics does not tell.
    capacity
        Batch size that replicas booted with, None where the runtime's default holds.
    """

    namespace: str
    spec: Spec
    from_s: float
    to_s: float
    step_s: float
    pods: str = ""
    cold_start_s: float = 90.0
    capacity: int | None = None

    @property
    def workload(self) -> str:
        return self.spec.target_ref.name

    @property
    def moments_s(self) -> tuple[float, ...]:
        first = math.ceil(self.from_s / self.step_s - 1e-9)
        last = math.floor(self.to_s / self.step_s + 1e-9)
        return tuple(index * self.step_s for index in range(first, last + 1))

    def owns(self, pod: str) -> bool:
        """Whether a pod of this name belongs to the workload."""
        if self.pods:
            return re.fullmatch(self.pods, pod) is not None
        (row, *_) = promql.rows_of(self.workload, [pod], "")
        return not row.startswith("pod/")


def read(
    server: PrometheusServer, asked: Asked, settings: CollectorSettings, progress: Progress | None = None
) -> History:
    """The history of a workload.

    Raises
    ------
    PastError
        Prometheus cannot be asked, or has nothing of this workload.
    """
    if len(asked.moments_s) < 2:
        raise PastError("the time from --from to --to has no two ticks: give a longer one, or a shorter --step")
    past = _Past(server, asked.moments_s, asked.step_s)
    try:
        lives = _Lives.read(past, asked, settings)
        moments = asyncio.run(_moments(past, asked, settings, lives, progress))
    except PrometheusError as error:
        raise PastError(str(error)) from None
    finally:
        past.close()
    return History(
        namespace=asked.namespace,
        workload=asked.workload,
        runtime=asked.spec.runtime,
        step_s=asked.step_s,
        moments=tuple(moments),
        notes=tuple(lives.notes),
    )


async def _moments(
    past: _Past, asked: Asked, settings: CollectorSettings, lives: _Lives, progress: Progress | None
) -> list[Moment]:
    collector = _PastCollector(replace(settings, earlier_days=False), past)  # a recording has its own earlier days
    found: list[Moment] = []
    try:
        for index, at_s in enumerate(past.moments_s):
            past.index = index
            pods, dark = lives.at(index)
            ready = [pod.name for pod in pods if pod.state is PodState.READY]
            want = Want.of(_KEY, asked.namespace, asked.spec.model_copy(update={"prometheus": None}), ready)
            observed = (await collector.collect([want], at_s))[_KEY]
            if past.trouble is not None:
                raise past.trouble
            target = Target(uid=asked.workload, replicas=lives.replicas[index], manager="the past")
            snapshot = Snapshot(target=target, pods=pods, **observed.as_fields())
            found.append(Moment(at_s=at_s, snapshot=snapshot, dark=dark and not observed.by_pod))
            if progress is not None:
                progress(index + 1, len(past.moments_s))
    finally:
        collector.close()
    return found


class _RangeReader(PrometheusReader):
    """A Prometheus asked for ranges, with the login, TLS and bounds of the operator's reader."""

    def range(self, query: str, from_s: float, to_s: float, step_s: float) -> list[Any]:
        """Series with their values. Raises PrometheusError."""
        body: bytes = self._connect.custom_query_range(
            query,
            datetime.fromtimestamp(from_s, UTC),
            datetime.fromtimestamp(to_s, UTC),
            f"{step_s:g}",
            params={"timeout": f"{0.9 * self.server.timeout_s:.3f}"},
            timeout=self.server.timeout_s,
        )
        try:
            series = json.loads(body)["data"]["result"]
        except (ValueError, LookupError, TypeError):
            series = None
        if not isinstance(series, list):
            raise PrometheusError(
                ErrorKind.MALFORMED,
                f"{self.server}: answers with something else than Prometheus' JSON: check the URL and its path",
            )
        return series


class _Past:
    """Answers of a query at each moment, read in as few range queries as the server lets."""

    def __init__(self, server: PrometheusServer, moments_s: Sequence[float], step_s: float) -> None:
        self.moments_s = moments_s
        self.index = 0
        self.trouble: PrometheusError | None = None
        self._step_s = step_s
        self._reader = _RangeReader(server)
        self._answers: dict[str, list[list[Sample]]] = {}

    async def read(self, query: str, take: Callable[[Answer], T], at_s: float | None = None) -> T:
        """What `take` makes of the answer at the present moment: stands in for `PrometheusReader.read`."""
        if self.trouble is not None:
            raise self.trouble
        try:
            return take(Answer(self.samples(query)[self.index]))
        except PrometheusError as error:
            if error.kind is not ErrorKind.BAD_QUERY:  # that is a source's own trouble, and becomes a gap
                self.trouble = error
            raise

    def samples(self, query: str) -> list[list[Sample]]:
        """Samples of each moment. Raises PrometheusError."""
        if query not in self._answers:
            table: list[list[Sample]] = [[] for _ in self.moments_s]
            self._fill(table, query, 0, len(table))
            self._answers[query] = table
        return self._answers[query]

    def _fill(self, table: list[list[Sample]], query: str, first: int, end: int) -> None:
        for begin in range(first, end, POINTS_PER_QUERY):
            self._fill_part(table, query, begin, min(end, begin + POINTS_PER_QUERY))

    def _fill_part(self, table: list[list[Sample]], query: str, first: int, end: int) -> None:
        try:
            series = self._reader.range(query, self.moments_s[first], self.moments_s[end - 1], self._step_s)
        except PrometheusError as error:
            splits = error.kind in (ErrorKind.TOO_LARGE, ErrorKind.TIMEOUT) and end - first > SHORTEST_SPLIT
            if not splits:
                raise
            middle = (first + end) // 2
            self._fill_part(table, query, first, middle)
            self._fill_part(table, query, middle, end)
            return
        start_s = self.moments_s[0]
        for one in series:
            labels: Mapping[str, str] = one["metric"]
            for at_s, value in one.get("values", ()):
                table[round((at_s - start_s) / self._step_s)].append((labels, float(value), float(at_s)))

    def close(self) -> None:
        self._reader.close()


class _PastServers(Servers):
    """Every question goes to the past."""

    def __init__(self, servers: tuple[PrometheusServer, ...], past: _Past) -> None:
        super().__init__(servers, ())
        self._past = past

    def reader(self, server: PrometheusServer, lane: Lane) -> Any:
        return self._past


class _PastCollector(Collector):
    """The operator's collector, its questions answered by the past."""

    def __init__(self, settings: CollectorSettings, past: _Past) -> None:
        super().__init__(settings)
        self._servers = _PastServers(settings.servers, past)


@dataclass(slots=True)
class _Life:
    """What is known of one pod: when it was created, and the moments at which it was ready."""

    ready: list[bool]
    created_s: float | None = None
    exists: list[bool] = field(default_factory=list)


@dataclass(slots=True)
class _Lives:
    """The workload's pods at each moment."""

    moments_s: Sequence[float]
    cold_start_s: float
    capacity: int | None
    lives: dict[str, _Life]
    dark: list[bool]
    replicas: list[int]
    notes: list[str]

    @classmethod
    def read(cls, past: _Past, asked: Asked, settings: CollectorSettings) -> _Lives:
        """From kube-state-metrics where it was scraped, else from the pods' own samples."""
        count = len(past.moments_s)
        labels = Labels(settings.namespace_label, settings.pod_label)
        fresh = _fresh(past, asked, settings, labels)
        state = _kube_pods(past, asked)
        if not fresh and not state:
            raise PastError(
                f"Prometheus has no sample of the pods of {asked.namespace}/{asked.workload} in that time: check "
                "--from and --to, the policy's namespace, target and runtime, and give --pods where the pods' names do "
                "not begin with the target's"
            )
        lives = {name: _Life(ready=_bridged(moments, asked.step_s)) for name, moments in fresh.items()}
        notes = []
        if state:
            lives = {**lives, **state}
            notes.append("Pods, their readiness and their age are those of kube-state-metrics.")
        else:
            notes.append(
                "Without kube-state-metrics a pod is taken to be ready while it has fresh samples, and to have been "
                f"ordered {asked.cold_start_s:g} s before its first one."
            )
        dark = [not any(life.ready[index] for life in lives.values()) for index in range(count)]
        found = cls(
            moments_s=past.moments_s,
            cold_start_s=asked.cold_start_s,
            capacity=asked.capacity,
            lives=lives,
            dark=dark,
            replicas=[],
            notes=notes,
        )
        ordered = _kube_replicas(past, asked)
        if any(value is not None for value in ordered):
            notes.append("The replicas ordered are those of kube-state-metrics.")
        else:
            notes.append("The replicas ordered are the pods that were ready or on their way.")
        pods = [len(found.at(index)[0]) for index in range(count)]
        found.replicas = _carried([pods[i] if ordered[i] is None and not dark[i] else ordered[i] for i in range(count)])
        return found

    def at(self, index: int) -> tuple[tuple[Pod, ...], bool]:
        """The pods, and whether nothing was recorded: then they are those seen last."""
        seen = index
        while seen > 0 and self.dark[seen]:
            seen -= 1
        late_s = self.moments_s[index] - self.moments_s[seen]
        pods = [pod for name in sorted(self.lives) if (pod := self._pod(name, seen, late_s)) is not None]
        return tuple(pods), self.dark[index]

    def _pod(self, name: str, index: int, late_s: float) -> Pod | None:
        life, now_s = self.lives[name], self.moments_s[index]
        since_s = self._ready_since_s(life, index)
        if since_s is not None:
            created_s = life.created_s
            if created_s is None:
                created_s = since_s - (self.cold_start_s if since_s > self.moments_s[0] else 0.0)
            state, since_s = PodState.READY, since_s if since_s > self.moments_s[0] else created_s
        else:
            ordered_s = self._ordered_s(life, index)
            if ordered_s is None:
                return None
            state, created_s, since_s = PodState.PENDING, ordered_s, ordered_s
        began_s = LONG_AGO_S if created_s == self.moments_s[0] else 0.0
        return Pod(
            name=name,
            uid=name,
            state=state,
            age_s=max(0.0, now_s - created_s) + late_s + began_s,
            state_age_s=max(0.0, now_s - since_s) + late_s + began_s,
            capacity=self.capacity,
        )

    def _ready_since_s(self, life: _Life, index: int) -> float | None:
        """Since when it was ready without a break; holes of the whole record are no break."""
        if not life.ready[index]:
            return None
        first = index
        while first > 0 and (life.ready[first - 1] or self.dark[first - 1]):
            first -= 1
        return self.moments_s[first]

    def _ordered_s(self, life: _Life, index: int) -> float | None:
        """When a pod that is not ready now was ordered; None where it did not exist."""
        now_s = self.moments_s[index]
        if life.exists:
            return (life.created_s or now_s) if life.exists[index] else None
        comes = next((i for i in range(index, len(life.ready)) if life.ready[i]), None)
        if comes is None or self.moments_s[comes] - now_s > self.cold_start_s:
            return None
        return self.moments_s[comes] - self.cold_start_s


def _fresh(past: _Past, asked: Asked, settings: CollectorSettings, labels: Labels) -> dict[str, list[bool]]:
    """The moments at which each pod had a sample that was not too old."""
    clock = _clock(asked.spec)
    named = "" if asked.pods else promql.pods_of([asked.workload], [])
    scope = Scope(namespaces=(asked.namespace,), labels=labels, pods=named)
    found: dict[str, list[bool]] = {}
    for index, samples in enumerate(past.samples(promql.ages(clock, scope))):
        for values, sampled_s, at_s in samples:
            pod = next((values[way.pod] for way in promql.habits(clock, labels) if way.pod in values), "")
            if asked.owns(pod) and at_s - sampled_s <= settings.stale_after_s:
                found.setdefault(pod, [False] * len(past.moments_s))[index] = True
    return found


def _clock(spec: Spec) -> Clock:
    """The series that shows when the servers were scraped."""
    preset = PRESETS.get(spec.runtime)
    overrides = {source.signal: source.metric for source in spec.signals if source.metric}
    if metric := overrides.get(Signal.REQUESTS_RUNNING):
        return named_source(Signal.REQUESTS_RUNNING, metric).clock
    source = preset.sources.get(Signal.REQUESTS_RUNNING) if preset else None
    if source is None:
        raise PastError(
            f"runtime {spec.runtime} has no metric of its own for RequestsRunning, and the policy queries it: nothing "
            "tells the pods; give the signal a metric in spec.signals"
        )
    return source.clock


def _bridged(ready: Sequence[bool], step_s: float) -> list[bool]:
    """Short holes closed: a scrape failed, the pod was there."""
    bridged, last = list(ready), None
    for index, is_ready in enumerate(ready):
        if not is_ready:
            continue
        if last is not None and 0 < (index - last - 1) * step_s <= HOLE_S:
            bridged[last + 1 : index] = [True] * (index - last - 1)
        last = index
    return bridged


def _kube_pods(past: _Past, asked: Asked) -> dict[str, _Life]:
    """Pods as kube-state-metrics had them; empty where it was not scraped."""
    count = len(past.moments_s)
    ready = _kube(past, asked, "kube_pod_status_ready", 'condition="true"')
    created = _kube(past, asked, "kube_pod_created", "")
    alive = _kube(past, asked, "kube_pod_status_phase", 'phase=~"Pending|Running"')
    lives: dict[str, _Life] = {}
    for pod, values in ready.items():
        born = [value for value in created.get(pod, ()) if value is not None]
        lives[pod] = _Life(
            ready=[value == 1 for value in values] or [False] * count,
            exists=[value == 1 for value in alive[pod]] if pod in alive else [value is not None for value in values],
            created_s=born[0] if born else None,
        )
    return lives


def _kube(past: _Past, asked: Asked, metric: str, matchers: str) -> dict[str, list[float | None]]:
    """Values by pod at each moment; the pod stands in `exported_pod` where its own label was not honoured."""
    found: dict[str, list[float | None]] = {}
    for way in (Labels(), Labels("exported_namespace", "exported_pod")):
        given = ", ".join(filter(None, [matchers, f'{way.namespace}="{asked.namespace}"']))
        query = f"max by ({way.pod}) ({metric}{{{given}}})"
        for index, samples in enumerate(past.samples(query)):
            for labels, value, _ in samples:
                if asked.owns(labels.get(way.pod, "")):
                    found.setdefault(labels[way.pod], [None] * len(past.moments_s))[index] = value
    return found


_REPLICAS = {
    "Deployment": ("kube_deployment_spec_replicas", "deployment"),
    "StatefulSet": ("kube_statefulset_replicas", "statefulset"),
    "ReplicaSet": ("kube_replicaset_spec_replicas", "replicaset"),
}


def _kube_replicas(past: _Past, asked: Asked) -> list[int | None]:
    """The replicas that were ordered; None where that was not recorded."""
    known = _REPLICAS.get(asked.spec.target_ref.kind)
    found: list[int | None] = [None] * len(past.moments_s)
    if known is None:
        return found
    metric, label = known
    for namespace in ("exported_namespace", "namespace"):
        query = f'max({metric}{{{namespace}="{asked.namespace}", {label}="{asked.workload}"}})'
        for index, samples in enumerate(past.samples(query)):
            for _, value, _ in samples:
                found[index] = int(value)
    return found


def _carried(values: Iterable[int | None]) -> list[int]:
    """Each unknown value is the last known one; before the first, that."""
    listed = list(values)
    last = next((value for value in listed if value is not None), 0)
    found = []
    for value in listed:
        last = last if value is None else value
        found.append(last)
    return found
