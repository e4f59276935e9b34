"""From the counters of pods to how far each component of the workload is used. A counter that cannot be is not used."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum
from operator import attrgetter

from bandkeeper.api.records import dataclass
from bandkeeper.quality.classify import of_peak
from bandkeeper.quality.peaks import Peaks, Table
from bandkeeper.quality.types import Component, Counters, Evidence, Thresholds

_RATIOS = (
    "gpu_utilization",
    "gr_engine_active",
    "sm_active",
    "sm_occupancy",
    "tensor_active",
    "fp64_active",
    "fp32_active",
    "fp16_active",
    "dram_active",
    "memory_copy_utilization",
)
_ratios_of = attrgetter(*_RATIOS)
_COPIES = 2  # times the skew: links alone, with no kernel, fill up to 0.29 of the memory's bandwidth


@dataclass(frozen=True, slots=True)
class PodWork:
    """What one pod's GPUs did, relative to practical peaks; None where that was not seen."""

    busy: float
    compute: float | None
    memory: float | None
    vector_seen: bool
    """The pipes beside the tensor pipes were seen, or cannot have done much."""
    coarse: bool
    """Busy time is GPU_UTIL's, which any kernel raises."""


@dataclass(slots=True)
class Usage:
    """The workload's GPUs together, weighted by GPUs. `busy` and the like are None where nobody was seen.

    `busy_of_work`, `compute` and `memory` are of the same pods; `unseen` says per pod why it was not judged.
    """

    gpus: int = 0
    expected: int = 0
    gpus_busy: int = 0
    gpus_work: int = 0
    busy: float | None = None
    busy_of_work: float = 0.0
    compute: float | None = None
    memory: float | None = None
    vector_seen: bool = True
    coarse: bool = False
    vector: float | None = None
    sm_active: float | None = None
    age_s: float | None = None
    used: dict[Component, float] = field(default_factory=dict)
    works: dict[str, PodWork] = field(default_factory=dict)
    unseen: dict[str, Unseen] = field(default_factory=dict)
    kv: float | None = None
    framebuffer: float | None = None
    power_throttled: float | None = None
    thermal_throttled: float | None = None
    cpu_throttled: float | None = None
    edge: bool = False


class Blind(StrEnum):
    """Why a pod's GPUs cannot be judged."""

    MISSING = "Missing"
    SHARED = "Shared"
    BROKEN = "Broken"  # stale, or cannot be


@dataclass(frozen=True, slots=True)
class Unseen:
    """A pod whose GPUs cannot be judged, and a sentence that says why."""

    blind: Blind
    text: str


def pod_work(counters: Counters, settings: Thresholds) -> PodWork | Unseen:
    """What the pod's GPUs did, or why nobody can tell."""
    if not counters.age_s <= settings.max_age_s:
        return Unseen(Blind.BROKEN, f"its GPU counters are {counters.age_s:.0f} s old")
    if counters.shared:
        return Unseen(
            Blind.SHARED, "its GPU is shared (time-slicing or MPS): the counters are the device's, not the pod's"
        )
    ratios: tuple[float | None, ...] = _ratios_of(counters)
    possible = settings.possible
    for value in ratios:
        if value is not None and not 0 <= value <= possible:
            name = next(name for name, other in zip(_RATIOS, ratios, strict=True) if other is value)
            return Unseen(Blind.BROKEN, f"{name} reads {value:.4g}, and a ratio is 0 to 1")
    gpu_util, engine, sm_active, _, tensor, fp64, fp32, fp16, dram, _ = ratios
    busy = gpu_util if engine is None else engine
    if busy is None:
        return Unseen(Blind.MISSING, "neither GR engine active nor GPU utilisation is seen")
    if engine == 0 and gpu_util is not None and gpu_util >= settings.idle_busy:
        text = f"GPU utilisation reads {gpu_util:.0%} while GR engine active stands at 0: profiling is paused or held"
        return Unseen(Blind.BROKEN, text)
    vector: float | None = None
    for value in (fp64, fp32, fp16):
        if value is not None and (vector is None or value > vector):
            vector = value
    most = max(tensor or 0.0, vector or 0.0)
    ran, skew = 0.0 if sm_active == 0 else busy, settings.skew
    if most > ran + skew or (dram is not None and dram > ran + _COPIES * skew):
        what = f"pipes read {most:.0%}" if most > ran + skew else f"memory reads {dram:.0%}"
        meanwhile = "SM active stands at 0" if sm_active == 0 else f"the GPU is busy for {busy:.0%}"
        return Unseen(Blind.BROKEN, f"{what} active while {meanwhile}: the counters contradict each other")
    memory = None if dram is None else of_peak(dram, settings.dram_peak)
    compute = None if tensor is None else of_peak(most, settings.tensor_peak)
    vector_seen = vector is not None or (tensor is not None and tensor >= settings.tensor_used)
    if not vector_seen and sm_active is not None and memory is not None:
        vector_seen = sm_active + memory < settings.poor_upper * busy  # no pipe is active where no warp is
    return PodWork(min(busy, 1.0), compute, memory, vector_seen, engine is None)


def usage(evidence: Evidence, settings: Thresholds, peaks: Table) -> Usage:
    """The pods of `evidence` together."""
    found = Usage()
    seen: list[tuple[Counters, PodWork]] = []
    for pod, counters in evidence.pods.items():
        found.gpus += counters.gpus
        work = pod_work(counters, settings)
        if isinstance(work, Unseen):
            found.unseen[pod] = work
            continue
        found.works[pod] = work
        seen.append((counters, work))
    absent = max(0, evidence.ready - len(evidence.pods))
    typical = found.gpus / len(evidence.pods) if evidence.pods else 1.0
    found.expected = found.gpus + round(absent * typical)
    if seen:
        _pool_work(found, seen)
        _pool_rest(found, [counters for counters, _ in seen], settings, peaks)
    return found


def _pool_work(found: Usage, seen: list[tuple[Counters, PodWork]]) -> None:
    busy = busy_of_work = compute = memory = 0.0
    for counters, work in seen:
        gpus = counters.gpus
        found.gpus_busy += gpus
        busy += gpus * work.busy
        found.coarse = found.coarse or work.coarse
        if work.compute is not None and work.memory is not None:
            found.gpus_work += gpus
            busy_of_work += gpus * work.busy
            compute += gpus * work.compute
            memory += gpus * work.memory
            found.vector_seen = found.vector_seen and work.vector_seen
    found.busy = busy / found.gpus_busy
    found.age_s = max(counters.age_s for counters, _ in seen)
    if found.gpus_work:
        found.busy_of_work = busy_of_work / found.gpus_work
        found.compute = found.used[Component.COMPUTE] = compute / found.gpus_work
        found.memory = found.used[Component.MEMORY_BANDWIDTH] = memory / found.gpus_work


def _pool_rest(found: Usage, seen: list[Counters], settings: Thresholds, peaks: Table) -> None:
    totals, weights = [0.0] * _SHARES, [0] * _SHARES
    for pod in seen:
        peak = peaks.of(pod.model)
        found.edge = found.edge or (peak is not None and peak.edge)
        for number, value in enumerate(_shares(pod, peak, settings)):
            if value is not None:
                totals[number] += value * pod.gpus
                weights[number] += pod.gpus
    means = [total / weight if weight else None for total, weight in zip(totals, weights, strict=True)]
    found.vector, found.sm_active, found.kv, found.framebuffer, *rest = means
    found.power_throttled, found.thermal_throttled, found.cpu_throttled, *rest = rest
    for component, share in zip(_REST, rest, strict=True):
        if share is not None:
            found.used[component] = share


ABSURD = 1.3  # times what a link can do at most: such a figure is in another unit, and none

_REST = (Component.CPU, Component.NETWORK, Component.STORAGE, Component.PCIE, Component.NVLINK)
_SHARES = 7 + len(_REST)


def _shares(pod: Counters, peak: Peaks | None, settings: Thresholds) -> tuple[float | None, ...]:
    """FP32 pipe, SM active, KV, framebuffer, throttled by power, by heat, throttled CPU, then `_REST`."""
    pcie = nvlink = None
    if peak is not None and not pod.mig:
        pcie = _flow(pod.pcie_sent, pod.pcie_received, peak.pcie * pod.gpus)
        nvlink = _flow(pod.nvlink_sent, pod.nvlink_received, peak.nvlink * pod.gpus)
    return (
        pod.fp32_active,
        pod.sm_active,
        _share(pod.kv_cache_utilization, 1.0),
        _framebuffer(pod),
        _share(pod.power_throttled, 1.0),
        _share(pod.thermal_throttled, 1.0),
        _share(pod.cpu_throttled, 1.0),
        _cpu(pod, settings),
        _flow(pod.network_sent, pod.network_received, pod.network_capacity),
        _flow(pod.disk_read, pod.disk_written, pod.disk_capacity),
        pcie,
        nvlink,
    )


def _share(amount: float | None, of: float | None) -> float | None:
    """A share of a limit, at most 1; None where either is missing or cannot be."""
    if amount is None or of is None or not (amount >= 0 and of > 0):
        return None
    share = amount / of
    return share if share < 1.0 else 1.0


def _flow(out: float | None, back: float | None, capacity: float | None) -> float | None:
    """Of the direction that is used more; None where a counter tells more than there can be."""
    if capacity is None or max(out or 0.0, back or 0.0) > ABSURD * capacity:
        return None
    one, other = _share(out, capacity), _share(back, capacity)
    return other if one is None else one if other is None else max(one, other)


def _cpu(pod: Counters, settings: Thresholds) -> float | None:
    """Of its limit; all of it where the kernel held the pod back for a notable share of the time."""
    throttled = _share(pod.cpu_throttled, 1.0)
    if throttled is not None and throttled >= settings.throttled:
        return 1.0
    return _share(pod.cpu_used, pod.cpu_limit)


def _framebuffer(pod: Counters) -> float | None:
    if pod.framebuffer_used is None or pod.framebuffer_free is None:
        return None
    return _share(pod.framebuffer_used, pod.framebuffer_used + pod.framebuffer_free)
