"""What the quality core takes and gives: plain values, no IO and no clock.

Missing data is None, never 0. Ratios are 0 to 1. Counters of one pod: ratios are means over the pod's GPUs, amounts
(bytes, bytes/s, watts, FLOP/s, cores) are sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from bandkeeper.api.records import dataclass
from bandkeeper.api.v1alpha1 import Objective


class Quality(StrEnum):
    """What busy time is worth."""

    UNKNOWN = "Unknown"
    UNDERUSED = "Underused"
    OVERLOADED = "Overloaded"
    INEFFICIENT = "Inefficient"
    MIXED = "Mixed"
    EFFICIENT = "Efficient"


class Kind(StrEnum):
    """What sort of work the GPUs do, as far as the policy and the runtime tell."""

    LLM_SERVING = "LLMServing"
    DYNAMIC_BATCHING = "DynamicBatching"
    TRAINING = "Training"
    UNKNOWN = "Unknown"


class Component(StrEnum):
    """What can be the bottleneck."""

    COMPUTE = "Compute"
    MEMORY_BANDWIDTH = "MemoryBandwidth"
    MEMORY = "Memory"  # KV cache or framebuffer
    PCIE = "PCIe"
    NVLINK = "NVLink"
    CPU = "CPU"
    NETWORK = "Network"
    STORAGE = "Storage"
    POWER = "PowerLimit"
    THERMAL = "ThermalLimit"
    QUEUE = "Queueing"
    IMBALANCE = "Imbalance"
    LAUNCH = "KernelLaunch"  # kernels too small to fill the GPU: what counts is the latency of each
    DEMAND = "Demand"  # nothing is full: there is too little work


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What one pod's GPUs and its containers showed over one window. Field names are those of `Signal`, in lower case.

    Attributes
    ----------
    age_s
        Age of the oldest of the GPU counters among them; older than `Thresholds.max_age_s` reads as missing.
    gpus
        GPUs (or MIG instances) of the pod.
    model
        Product name of its GPUs as the exporter writes it; None where unknown or of several kinds.
    mig, shared
        Its GPUs are MIG instances; other pods are on them too (time-slicing, MPS), so device counters are nobody's.
    source
        Exporter that the GPU counters came from.
    job
        The multi-GPU job that this pod is one rank of; None for a replica that works alone. Ranks of one job are
        compared with each other.
    busy_by_gpu
        The share of time that each of its GPUs is busy, where they are not busy alike: each is a rank then.
    framebuffer_used, framebuffer_free
        Bytes, summed over the pod's GPUs.
    power, power_limit
        Watts, summed over the pod's GPUs.
    power_throttled, thermal_throttled, cpu_throttled
        Shares of time.
    pcie_sent, pcie_received, nvlink_sent, nvlink_received, network_sent, network_received, disk_read, disk_written
        Bytes per second.
    cpu_used, cpu_limit
        Cores.
    network_capacity, disk_capacity
        Bytes per second that the pod's network and storage can do at most, where a person said so.
    model_flops, model_read_bytes, model_written_bytes
        The server's own count of the work it did: FLOP/s and bytes/s.
    kv_cache_utilization
        Share of KV memory in use.
    """

    age_s: float = 0.0
    gpus: int = 1
    model: str | None = None
    mig: bool = False
    shared: bool = False
    source: str = ""
    job: str | None = None
    busy_by_gpu: tuple[tuple[str, float], ...] = ()
    gpu_utilization: float | None = None
    gr_engine_active: float | None = None
    sm_active: float | None = None
    sm_occupancy: float | None = None
    tensor_active: float | None = None
    fp64_active: float | None = None
    fp32_active: float | None = None
    fp16_active: float | None = None
    dram_active: float | None = None
    memory_copy_utilization: float | None = None
    framebuffer_used: float | None = None
    framebuffer_free: float | None = None
    power: float | None = None
    power_limit: float | None = None
    power_throttled: float | None = None
    thermal_throttled: float | None = None
    sm_clock: float | None = None
    memory_clock: float | None = None
    gpu_temperature: float | None = None
    pcie_sent: float | None = None
    pcie_received: float | None = None
    nvlink_sent: float | None = None
    nvlink_received: float | None = None
    cpu_used: float | None = None
    cpu_limit: float | None = None
    cpu_throttled: float | None = None
    network_sent: float | None = None
    network_received: float | None = None
    network_capacity: float | None = None
    disk_read: float | None = None
    disk_written: float | None = None
    disk_capacity: float | None = None
    model_flops: float | None = None
    model_read_bytes: float | None = None
    model_written_bytes: float | None = None
    kv_cache_utilization: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of one workload at one moment.

    Attributes
    ----------
    pods
        Counters by ready pod name. A pod without an entry has no data.
    ready
        Ready replicas, also those without counters.
    waiting
        Requests queued, of all replicas.
    throughput, offered
        Requests (or samples) per second finished, and offered by clients.
    losses
        Preemptions and rejections per second.
    latency_cv
        Standard deviation over mean of the latency that matters (inter-token for LLMs), over one window.
    mu
        Requests/s that one replica can sustain at its best cap, of the fitted model.
    batch_gain
        X(b) / X(b*): throughput at the batch in use relative to the best permitted, of the fitted model.
    below_knee
        Whether the batch in use is below the knee of the fitted model: more requests would cost little latency.
    replicas_needed
        Replicas that the fitted model says would carry the offered work.
    slo_broken
        Whether an SLO is broken now.
    slo_unreachable
        Even a batch of one misses the latency SLO.
    prefill_tails
        Inter-token latency is broken by prefill in decode steps.
    """

    pods: Mapping[str, Counters] = field(default_factory=dict)
    ready: int = 0
    kind: Kind = Kind.UNKNOWN
    objective: Objective = Objective.BALANCED
    waiting: float | None = None
    throughput: float | None = None
    offered: float | None = None
    losses: float | None = None
    latency_cv: float | None = None
    mu: float | None = None
    batch_gain: float | None = None
    below_knee: bool | None = None
    replicas_needed: int | None = None
    slo_broken: bool | None = None
    slo_unreachable: bool | None = None
    prefill_tails: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Every bound that a judgement depends on. The case table breaks when one moves by 20 %."""

    tensor_peak: float = 0.93
    """Pipe activity that the best kernels reach."""
    dram_peak: float = 0.80
    """DRAM activity that the best kernels reach."""
    idle_busy: float = 0.50
    """Busy for less of the time is Underused."""
    prosperous_busy: float = 0.70
    """Busy for so much of the time, yet with little real work, is Inefficient."""
    poor_upper: float = 0.35
    """At most this share of busy time is real work: little."""
    good_lower: float = 0.60
    """At least this share of busy time is real work: Efficient."""
    decode_memory: float = 0.25
    """An LLM server that moves so much of the memory bandwidth decodes: it is not Inefficient."""
    margin: float = 0.03
    """A bound once crossed is uncrossed only so far on the other side."""
    settle_s: float = 60.0
    """A new class must stand so long before it replaces the old one; Overloaded and Unknown do at once."""
    max_age_s: float = 90.0
    """Counters older than this read as missing: three collection periods of dcgm-exporter."""
    coverage: float = 0.50
    """Share of the GPUs that must be seen."""
    possible: float = 1.02
    """A ratio above this is a broken counter."""
    skew: float = 0.15
    """Pipes are active for at most so much longer than the GPU is busy (windows differ), memory for twice that."""
    tensor_used: float = 0.02
    """Tensor pipes active for less mean work on other pipes, which have to be seen before a GPU is Inefficient."""
    window_s: float = 60.0
    """Between two marks of a trend."""
    growth: float = 0.10
    """A queue that gains this share in each of two windows grows."""
    losses_share: float = 0.01
    """Losses below this share of finished requests are no sign of overload."""
    throughput_drop: float = 0.05
    """Throughput down by more than this while more work is offered is a sign of overload."""
    notable: float = 0.35
    """A component used less is no bottleneck."""
    full: float = 0.85
    """A component used so far is full."""
    memory_full: float = 0.90
    """KV memory or framebuffer used so far, while work waits, is full."""
    throttled: float = 0.20
    """Share of time at lowered clocks that makes power or heat the bottleneck."""
    imbalance: float = 0.25
    """Spread of busy time between the ranks of one job that makes the least busy one the culprit."""
    feeding: float = 20e6
    """Bytes/s per GPU read from disk or network above which a GPU that waits is taken to wait for them."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One measured figure. `value` is None where it cannot be had; `source` then says why."""

    name: str
    value: float | None
    unit: str
    source: str
    reference: float | None = None
    """What it is compared with: the ridge point, the own baseline."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What holds the workload back. `used` is its utilisation, None where it has none, such as of a queue."""

    component: Component
    used: float | None
    evidence: str
    shared: bool = False
    """The component is shared with other pods (storage, network egress), so more replicas cannot help."""


@dataclass(frozen=True, slots=True)
class Waste:
    """Shares of the held GPU time, 0 to 1, that add up to at most 1."""

    idle: float
    """Nothing ran."""
    below: float
    """Something ran, but below what the model or the counters say was possible."""
    source: str

    @property
    def share(self) -> float:
        """Of both kinds."""
        return self.idle + self.below


@dataclass(frozen=True, slots=True)
class Advice:
    """A remedy that no scaler can take itself, and what was seen that led to it."""

    remedy: str
    text: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The judgement.

    Attributes
    ----------
    score
        0 to 100, None where Unknown or where the counters of the work itself are missing.
    confidence
        0 to 1; 0 where Unknown.
    reason
        Why the class is Unknown; "" otherwise.
    busy, lower, upper
        Share of time in which anything ran; bounds of the share of that time which was real work.
    culprit
        The pod that holds the others of its job back.
    gpus
        GPUs that the workload holds, as far as they were seen.
    age_s
        Of the oldest counters that were used.
    since_s
        When the class began, on the caller's clock.
    """

    quality: Quality
    score: float | None = None
    confidence: float = 0.0
    reason: str = ""
    busy: float | None = None
    lower: float | None = None
    upper: float | None = None
    measures: tuple[Measure, ...] = ()
    bottleneck: Bottleneck | None = None
    culprit: str | None = None
    waste: Waste | None = None
    advice: tuple[Advice, ...] = ()
    gpus: int = 0
    age_s: float | None = None
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """The workload's load at one moment, for trends."""

    at_s: float
    ready: int
    waiting: float | None
    throughput: float | None
    offered: float | None
    losses: float | None


@dataclass(frozen=True, slots=True)
class Saturated:
    """Requests/s that `replicas` finished while work waited all the time, last seen at `at_s`."""

    replicas: int
    throughput: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Baseline:
    """A slow mean of a figure, and how many windows went into it."""

    mean: float
    count: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """Whether busy is over `idle_busy` and `prosperous_busy`, upper over `poor_upper`, lower over `good_lower`."""

    used: bool
    prosperous: bool
    rich: bool
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one workload's assessments remember. An empty one is a fresh start; give back what `assess` returned."""

    quality: Quality = Quality.UNKNOWN
    since_s: float = 0.0
    doubted_since_s: float | None = None
    """Since when the figures have said another class."""
    crossed: Bounds | None = None
    marks: tuple[Mark, ...] = ()
    saturated: tuple[Saturated, ...] = ()
    latency: Baseline | None = None
