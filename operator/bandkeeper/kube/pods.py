"""Pods as the operator needs them: trimmed to a few fields, classified, and found by a workload's selector.

What is kept of a container are the whole numbers among its arguments and environment, nothing else of either.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.kube.objects import Key
from bandkeeper.kube.reflector import Change, Reflector
from bandkeeper.kube.selector import Selector, parse_selector

REVISION_LABELS = ("pod-template-hash", "controller-revision-hash")
FAILED_WAITING = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    }
)
ENDED = frozenset({"Succeeded", "Failed"})
CRASH_LOOP_RUN_S = 600.0  # a container that died sooner than this, twice, is in a crash loop also while it runs again
MESSAGE_LENGTH = 256
MOST_SELECTIONS = 20_000

_EMPTY: Mapping[str, int] = MappingProxyType({})
_GPU = "nvidia.com/gpu"
_MIG = re.compile(r"nvidia\.com/mig-(\d)g\.")  # mig-3g.40gb has three of a GPU's seven slices
_SLICES = 7
GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-key"  # of pods that work together, at training or serving
TRAINING_LABELS = (  # of jobs that run to an end: Kubeflow's (a TrainJob is a JobSet), Volcano's, Kubernetes' own
    "training.kubeflow.org/job-name",
    "jobset.sigs.k8s.io/jobset-name",
    "volcano.sh/job-name",
    "batch.kubernetes.io/job-name",
)
_RAY_KIND, _RAY_NAME = "ray.io/originated-from-crd", "ray.io/originated-from-cr-name"
_SCALES = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}
_VARIABLE = re.compile(r"\$(?:\((\w+)\)|\{(\w+)(?::?-([^}]*))?\}|(\w+))")


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """By container: arguments (`--max-num-seqs`) and environment variables whose value is a whole number.

    Compared by identity, because all pods of a revision share one.
    """

    by_container: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    """One pod as stored; times are seconds since 1970 by the API server's clock.

    Attributes
    ----------
    annotations
        Those whose value is a whole number.
    gpus
        GPUs that its containers ask for, a MIG instance as its share of one; None where they ask for none.
    cpu_limit
        Cores that its containers may use; None where one has no limit.
    job, trains
        The job that it is one rank of, and whether that is of a kind that trains, as its labels say.
    address
        Its IP, "" before it has one.
    restarts
        How often its containers were started anew, all together.
    """

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, int]
    numbers: Numbers
    state: PodState
    created_at: float
    state_since: float
    revision: str | None
    message: str
    gpus: float | None = None
    cpu_limit: float | None = None
    job: str | None = None
    trains: bool = False
    address: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """Where the batch settings of a workload's pods are read; of several names the first that is found counts.

    Names are arguments (`--max-num-seqs`) or environment variables (`MAX_NUM_SEQS`).

    Attributes
    ----------
    cap_annotation, cap
        The cap in force: from this annotation, else from these names in `container` (None: in any container).
    capacity, queue_bound, prefill_tokens
        Names of the batch size the server boots with, of the most requests that it queues, and of the most prompt
        tokens that a step reads; in any container.
    """

    cap_annotation: str | None = None
    cap: tuple[str, ...] = ()
    container: str | None = None
    capacity: tuple[str, ...] = ()
    queue_bound: tuple[str, ...] = ()
    prefill_tokens: tuple[str, ...] = ()


def trim_pod(raw: Mapping[str, Any]) -> PodRecord | None:
    """What is kept of a raw pod; None for one that has ended: an evicted pod is replaced, and its husk lies there."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    if status.get("phase") in ENDED:
        return None
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    state, message = _classify(metadata, status, conditions)
    created_at = _seconds(metadata["creationTimestamp"])
    ready_changed = conditions.get("Ready", {}).get("lastTransitionTime")
    labels = _shared(tuple((metadata.get("labels") or {}).items()))
    trains = _training_job(labels)
    return PodRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        labels=labels,
        annotations=_whole_numbers((metadata.get("annotations") or {}).items()),
        numbers=_container_numbers(tuple(_container(container) for container in spec.get("containers") or ())),
        state=state,
        created_at=created_at,
        state_since=_seconds(ready_changed) if ready_changed else created_at,
        revision=next((labels[name] for name in REVISION_LABELS if name in labels), None),
        message=message[:MESSAGE_LENGTH],
        gpus=gpus_asked(spec.get("containers") or ()),
        cpu_limit=_cpu_limit(spec.get("containers") or ()),
        job=labels.get(GROUP_LABEL, trains),
        trains=trains is not None,
        address=str(status.get("podIP") or ""),
        restarts=sum(container.get("restartCount", 0) for container in status.get("containerStatuses") or ()),
    )


class PodStore:
    """Finds pods by namespace and selector; a change of a pod costs only the selections that it may belong to."""

    def __init__(self, reflector: Reflector[PodRecord]) -> None:
        self._reflector = reflector
        self._namespaces: dict[str, dict[str, PodRecord]] = {}
        self._selections: dict[tuple[str, str], _Selection] = {}
        # Selections by one label that their pods must have, so that a pod need not be tried against all of them.
        self._by_pair: dict[tuple[str, str, str], list[_Selection]] = defaultdict(list)
        self._unpaired: dict[str, list[_Selection]] = defaultdict(list)
        self._labelled: dict[str, dict[tuple[str, str], list[PodRecord]]] = {}
        for key, record in reflector.objects.items():
            self._changed(Change(key, None, record))
        reflector.subscribe(self._changed)

    @property
    def synced(self) -> bool:
        """The first list is in."""
        return self._reflector.synced

    @property
    def problem(self) -> str:
        """What keeps the store from being current; "" while all is well."""
        return self._reflector.problem

    def age_s(self) -> float:
        """Seconds since the server was last heard of."""
        return self._reflector.age_s()

    def records(self, namespace: str, selector: str) -> tuple[PodRecord, ...]:
        """The pods that match, by name. Raises SelectorError where the selector is empty or malformed."""
        selection = self._selections.get((namespace, selector))
        if selection is None:
            selection = self._select(namespace, selector)
        return selection.records

    def pods(self, namespace: str, selector: str, *, now: float, settings: PodSettings) -> tuple[Pod, ...]:
        """The pods that match, as a snapshot has them; `now` is in seconds since 1970."""
        return tuple(view(record, now=now, settings=settings) for record in self.records(namespace, selector))

    def _select(self, namespace: str, text: str) -> _Selection:
        if len(self._selections) >= MOST_SELECTIONS:  # left behind by targets that are gone
            self._selections.clear()
            self._by_pair.clear()
            self._unpaired.clear()
        selector = parse_selector(text)
        found = {record.name: record for record in self._likely(namespace, selector) if selector.matches(record.labels)}
        selection = _Selection(selector, found)
        self._selections[namespace, text] = selection
        pairs = [(namespace, *pair) for pair in selector.pairs]
        if pairs:
            self._by_pair[min(pairs, key=lambda pair: len(self._by_pair[pair]))].append(selection)
        else:
            self._unpaired[namespace].append(selection)
        return selection

    def _likely(self, namespace: str, selector: Selector) -> Iterable[PodRecord]:
        """Pods that have one of the selector's labels; many selections are made before the next pod changes."""
        if not selector.pairs:
            return self._namespaces.get(namespace, {}).values()
        labelled = self._labelled.get(namespace)
        if labelled is None:
            labelled = self._labelled[namespace] = defaultdict(list)
            for record in self._namespaces.get(namespace, {}).values():
                for pair in record.labels.items():
                    labelled[pair].append(record)
        return min((labelled.get(pair, []) for pair in selector.pairs), key=len)

    def _changed(self, change: Change[PodRecord]) -> None:
        namespace, name = change.key
        self._labelled.pop(namespace, None)
        pods = self._namespaces.setdefault(namespace, {})
        if change.new is not None:
            pods[name] = change.new
        else:
            pods.pop(name, None)
            if not pods:
                del self._namespaces[namespace]
        labels = {pair for record in (change.old, change.new) if record for pair in record.labels.items()}
        for selection in self._candidates(change.key, labels):
            selection.update(name, change.new)

    def _candidates(self, key: Key, labels: set[tuple[str, str]]) -> Iterator[_Selection]:
        yield from self._unpaired.get(key[0], ())
        for pair in labels:
            yield from self._by_pair.get((key[0], *pair), ())


@dataclass(slots=True)
class _Selection:
    selector: Selector
    found: dict[str, PodRecord]
    _sorted: tuple[PodRecord, ...] | None = None

    @property
    def records(self) -> tuple[PodRecord, ...]:
        if self._sorted is None:
            self._sorted = tuple(self.found[name] for name in sorted(self.found))
        return self._sorted

    def update(self, name: str, record: PodRecord | None) -> None:
        if record is not None and self.selector.matches(record.labels):
            self.found[name] = record
        elif self.found.pop(name, None) is None:
            return
        self._sorted = None


def view(record: PodRecord, *, now: float, settings: PodSettings) -> Pod:
    """A stored pod as a snapshot has it at `now` (seconds since 1970)."""
    cap, capacity, queue_bound, prefill_tokens = _batch(record.numbers, settings)
    return Pod(
        name=record.name,
        uid=record.uid,
        state=record.state,
        age_s=max(0.0, now - record.created_at),
        state_age_s=max(0.0, now - record.state_since),
        revision=record.revision,
        cap=record.annotations.get(settings.cap_annotation, cap) if settings.cap_annotation else cap,
        capacity=capacity,
        queue_bound=queue_bound,
        prefill_tokens=prefill_tokens,
        message=record.message,
        gpus=record.gpus,
        cpu_limit=record.cpu_limit,
        job=record.job,
        trains=record.trains,
        address=record.address,
        restarts=record.restarts,
    )


@lru_cache(maxsize=4096)
def _batch(numbers: Numbers, settings: PodSettings) -> tuple[int | None, ...]:
    """Cap, capacity, queue bound and prefill tokens that a pod's containers were started with."""
    containers = numbers.by_container
    everywhere = tuple(containers.values())
    named = everywhere if settings.container is None else (containers.get(settings.container, _EMPTY),)
    booted = (settings.capacity, settings.queue_bound, settings.prefill_tokens)
    return _first(settings.cap, named), *(_first(names, everywhere) for names in booted)


def _first(names: tuple[str, ...], containers: tuple[Mapping[str, int], ...]) -> int | None:
    found = (numbers.get(_spelling(name)) for name in names for numbers in containers)
    return next((number for number in found if number is not None), None)


def _classify(
    metadata: Mapping[str, Any], status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]
) -> tuple[PodState, str]:
    if metadata.get("deletionTimestamp"):
        return PodState.TERMINATING, ""
    if conditions.get("Ready", {}).get("status") == "True":
        return PodState.READY, ""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        if fault := _fault(container):
            return PodState.FAILED, f"container {container['name']}: {fault}"
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return PodState.UNSCHEDULABLE, str(scheduled.get("message") or "no node can take the pod")
    return PodState.PENDING, ""


def _fault(container: Mapping[str, Any]) -> str:
    """Why a container is not expected to become ready; "" where nothing says so."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in FAILED_WAITING:
        return f"{waiting['reason']}: {waiting.get('message') or 'no message'}"
    # Between two back-offs a crash loop looks like a fresh start.
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if container.get("restartCount", 0) < 2 or not (ended.get("startedAt") and ended.get("finishedAt")):
        return ""
    ran_s = _seconds(ended["finishedAt"]) - _seconds(ended["startedAt"])
    if ran_s >= CRASH_LOOP_RUN_S:
        return ""
    times, cause = container["restartCount"], ended.get("reason") or "ended"
    return f"restarted {times} times, the last time after {ran_s:.0f} s ({cause}, exit code {ended.get('exitCode')})"


def _training_job(labels: Mapping[str, str]) -> str | None:
    if labels.get(_RAY_KIND) == "RayJob":
        return labels.get(_RAY_NAME)
    return next((labels[name] for name in TRAINING_LABELS if name in labels), None)


def gpus_asked(containers: Iterable[Mapping[str, Any]]) -> float | None:
    """What all of a pod's containers ask for; of an extended resource the limit is the request."""
    asked = 0.0
    for container in containers:
        resources = container.get("resources") or {}
        for name, text in (resources.get("limits") or resources.get("requests") or {}).items():
            if name == _GPU:
                asked += _whole_number(str(text)) or 0
            elif slices := _MIG.match(name):
                asked += (_whole_number(str(text)) or 0) * int(slices[1]) / _SLICES
    return asked or None


def _cpu_limit(containers: Iterable[Mapping[str, Any]]) -> float | None:
    total = 0.0
    for container in containers:
        text = ((container.get("resources") or {}).get("limits") or {}).get("cpu")
        if text is None:
            return None
        total += _cores(str(text))
    return total or None


def _cores(text: str) -> float:
    """A quantity of CPU: the API server has checked it, and writes 500m, 2 or 1500u."""
    unit = {"m": 1e-3, "u": 1e-6, "n": 1e-9, "k": 1e3}.get(text[-1:], 1.0)
    try:
        return float(text.rstrip("munk")) * unit
    except ValueError:
        return math.inf


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def _container(raw: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]:
    words = (*(raw.get("command") or ()), *(raw.get("args") or ()))
    env = tuple((entry["name"], entry["value"]) for entry in raw.get("env") or () if entry.get("value"))
    return raw["name"], words, env


# Pods of one revision have the same labels and containers: one copy serves them all.
@lru_cache(maxsize=4096)
def _shared(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return MappingProxyType(dict(items))


@lru_cache(maxsize=4096)
def _container_numbers(containers: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]], ...]) -> Numbers:
    return Numbers(MappingProxyType({name: _numbers(words, dict(env)) for name, words, env in containers}))


def _numbers(words: tuple[str, ...], env: Mapping[str, str]) -> Mapping[str, int]:
    """Whole numbers among the environment and the arguments, a shell command in one string included."""
    numbers = dict(_whole_numbers(env.items()))
    flat = [part for word in words for part in _split(_expand(word, env))]
    for word, following in zip_longest(flat, flat[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            number = _argument(value if equals else following)
            if number is not None:
                numbers[_spelling(name)] = number
    return numbers


def _expand(word: str, env: Mapping[str, str]) -> str:
    """Resolve `$(NAME)` as the kubelet does, and `$NAME`, `${NAME}`, `${NAME:-default}` as a shell would."""
    if "$" not in word:
        return word
    return _VARIABLE.sub(lambda found: env.get(found[1] or found[2] or found[4], found[3] or ""), word)


def _split(word: str) -> list[str]:
    if not re.search(r"\s", word):
        return [word]
    word = word.replace("\\\n", " ")  # a line that goes on
    try:
        return shlex.split(word, comments=True)
    except ValueError:
        return word.split()


def _spelling(name: str) -> str:
    """Servers take `--max_num_seqs` for `--max-num-seqs`."""
    return name.replace("_", "-") if name.startswith("-") else name


def _whole_numbers(items: Any) -> Mapping[str, int]:
    return {name: number for name, value in items if (number := _whole_number(value)) is not None} or _EMPTY


def _argument(text: str) -> int | None:
    """A whole number as vLLM reads it: 8k is 8,000 and 8K is 8,192."""
    scale = _SCALES.get(text[-1:], 1)
    number = _whole_number(text if scale == 1 else text[:-1])
    return None if number is None else scale * number


def _whole_number(text: str) -> int | None:
    return int(text) if len(text) <= 9 and text.isascii() and text.isdecimal() else None
