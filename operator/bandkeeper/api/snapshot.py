"""What was seen of one policy's workload at one moment. Missing data is a `Gap`, never a zero."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from bandkeeper.api.records import dataclass
from bandkeeper.api.signals import Signal


class PodState(StrEnum):
    """What a pod can do for its workload now."""

    READY = "Ready"
    PENDING = "Pending"  # scheduled or not yet, pulling, loading its model: expected to become ready
    UNSCHEDULABLE = "Unschedulable"
    FAILED = "Failed"  # image pull failure or crash loop: not expected to become ready
    TERMINATING = "Terminating"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod of the target.

    Attributes
    ----------
    age_s
        Seconds since creation.
    state_age_s
        Seconds since the pod's Ready condition last changed (since creation where it has none).
    revision
        Pod template revision (`pod-template-hash` or `controller-revision-hash`), if any.
    cap
        Batch cap read back from the pod, None where nothing was read.
    capacity
        Batch size the server booted with, None where unknown.
    queue_bound
        Most requests that the server queues before it refuses, None where unbounded or unknown.
    prefill_tokens
        Most prompt tokens that one step of the server reads, None where unknown.
    gpus
        GPUs that it asks for, a MIG instance as its share of one; None where it asks for none that is known.
    cpu_limit
        Cores that all of its containers together may use; None where one has no limit.
    job
        The job that it is one rank of, where its labels say so.
    trains
        That job is of a kind that trains, as its labels say.
    address
        Its IP, "" before it has one.
    restarts
        How often its containers were started anew, all together: each time a server comes up as it booted.
    """

    name: str
    uid: str = ""
    state: PodState = PodState.READY
    age_s: float = 0.0
    state_age_s: float = 0.0
    revision: str | None = None
    cap: int | None = None
    capacity: int | None = None
    queue_bound: int | None = None
    prefill_tokens: int | None = None
    message: str = ""
    gpus: float | None = None
    cpu_limit: float | None = None
    job: str | None = None
    trains: bool = False
    address: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A change of pod template on its way.

    Attributes
    ----------
    deadline_exceeded
        Nothing waits for it any more: the workload's own verdict, or it is paused.
    paused
        A person paused the workload: its pods stay as they are, and a new template waits too.
    ours
        This policy's batch adapter began it.
    cap, previous_cap
        Of one that is ours the batch cap that it brings, and the one to go back to: None where it is itself the way
        back, 0 where the template had none.
    surge
        Pods above the wanted replicas.
    """

    deadline_exceeded: bool = False
    paused: bool = False
    ours: bool = False
    cap: int | None = None
    previous_cap: int | None = None
    surge: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What makes up one replica of a workload that counts groups of pods; its selector names one pod of each.

    Attributes
    ----------
    pods
        In one group, the one that the selector names included.
    gpus
        That they ask for together, a MIG instance as its share of one; None where they ask for none.
    """

    pods: int
    gpus: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The scaled object as its scale subresource shows it.

    `manager` is the field manager that owns `spec.replicas` last, "" where unknown; `group` is None where one replica
    is one pod.
    """

    uid: str
    replicas: int
    resource_version: str = ""
    manager: str = ""
    rollout: Rollout | None = None
    group: Group | None = None


class GapReason(StrEnum):
    """Why a signal has no usable value."""

    ABSENT = "Absent"
    STALE = "Stale"
    INVALID = "Invalid"  # NaN, infinite, negative or absurd
    PARTIAL = "Partial"  # some ready pods have no value, or the server warned of a partial answer
    UNREACHABLE = "Unreachable"
    UNAUTHORIZED = "Unauthorized"
    REFUSED = "Refused"  # bad query, over the query budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A signal that was wanted and could not be read; `detail` is a sentence for a person."""

    signal: Signal
    reason: GapReason
    detail: str
    pods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """A gauge's value or a counter's rate per second, and the age of the raw sample in seconds."""

    value: float
    age_s: float


class Levels(Mapping[str, Reading]):
    """Readings that are kept as plain numbers, each made a `Reading` when it is looked at."""

    __slots__ = ("values_by_pod",)
    values_by_pod: Mapping[str, float]

    @abstractmethod
    def ages_s(self) -> Mapping[str, float]:
        """Age of each pod's sample in seconds, as of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUs:
    """The GPUs that one pod holds, as an exporter names them.

    Attributes
    ----------
    model
        Product name, such as NVIDIA H100 80GB HBM3; None where no series tells, or where a pod has several kinds.
    count
        GPUs (of MIG: instances) that the exporter shows for the pod.
    mig
        They are MIG instances.
    shared
        Other pods are on them too (time-slicing, MPS): what a device shows cannot be told apart by pod.
    source
        The exporter, such as dcgm-exporter.
    busy_by_gpu
        The share of time that each GPU is busy, by the exporter's number of it, where they are not busy alike.
    """

    model: str | None = None
    count: int = 1
    mig: bool = False
    shared: bool = False
    source: str = ""
    busy_by_gpu: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A histogram over a window, for the whole workload.

    Attributes
    ----------
    window_s
        Length of the window in seconds.
    edges
        Upper bucket bounds in seconds, ascending, the last one infinite.
    counts
        Observations in the window at or below each edge (cumulative, may be fractional).
    total_s
        Sum of the observed values in the window, None where the exporter has none.
    quantiles
        Percentile to seconds, where the source computes percentiles itself (a user's query, a summary).
        Such a source has no edges and no counts.
    age_s
        Age of the youngest raw sample.
    """

    window_s: float
    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    total_s: float | None = None
    quantiles: Mapping[int, float] = field(default_factory=dict)
    age_s: float = 0.0

    @property
    def observations(self) -> float:
        """Observations in the window; 0 where the source gives only percentiles or there was no traffic."""
        return self.counts[-1] if self.counts else 0.0


class Earlier(StrEnum):
    """An earlier day, at the same hour."""

    DAY = "Day"
    WEEK = "Week"

    @property
    def ago_s(self) -> float:
        return 86_400.0 if self is Earlier.DAY else 7 * 86_400.0


RECALL_STEP_S = 120.0
RECALL_AHEAD_S = 2400.0
"""How far ahead of now an earlier day is looked at: two cold starts of 20 minutes."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """An earlier day around this hour: what the whole workload did in steps of `RECALL_STEP_S`.

    Attributes
    ----------
    ends_s
        When each step ends, ascending, were that day today. A step that nobody recorded is not there.
    prompt_per_s, output_per_s
        Tokens read and made, as means of each step.
    now_s
        The present, on the clock of `ends_s`.
    """

    ends_s: tuple[float, ...]
    prompt_per_s: tuple[float, ...]
    output_per_s: tuple[float, ...]
    now_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a decision may look at.

    Attributes
    ----------
    target
        None while the target is missing or was not read yet.
    pods
        All pods that match the target's selector.
    pods_age_s
        Age of the stalest list of the API server's objects; above 60 s no scale-in is allowed.
    stalest
        What that list is of, such as pods or gpuscalingpolicies.
    by_pod
        Gauges and counter rates per ready pod name. A pod without an entry has no data.
    totals
        Gauges and rates that exist for the workload only (a user's query without a pod label).
    distributions
        Latency histograms by signal and window in seconds (rounded to whole seconds).
    gaps
        What was wanted and could not be read.
    gpus
        The GPUs of each ready pod, where an exporter shows them.
    recalled
        Earlier days around this hour, as far as Prometheus has them.
    wall_s
        The time of day, in epoch seconds; None where no clock is known, as in the lab.
    """

    target: Target | None
    pods: tuple[Pod, ...] = ()
    pods_age_s: float = 0.0
    stalest: str = "pods"
    by_pod: Mapping[Signal, Mapping[str, Reading]] = field(default_factory=dict)
    totals: Mapping[Signal, Reading] = field(default_factory=dict)
    distributions: Mapping[tuple[Signal, int], Distribution] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    gpus: Mapping[str, GPUs] = field(default_factory=dict)
    recalled: Mapping[Earlier, Recalled] = field(default_factory=dict)
    wall_s: float | None = None

    def pods_in(self, *states: PodState) -> tuple[Pod, ...]:
        """The pods that are in one of `states`."""
        return tuple(pod for pod in self.pods if pod.state in states)
