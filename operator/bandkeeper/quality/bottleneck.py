"""Which component holds the workload back, with the figures that say so."""

from __future__ import annotations

from collections.abc import Mapping

from bandkeeper.quality.types import Bottleneck, Component, Counters, Evidence, Kind, Thresholds
from bandkeeper.quality.usage import Usage

MEANING: Mapping[Component, str] = {
    Component.IMBALANCE: "one rank of a multi-GPU job is busy for much less time than the others, which wait for it",
    Component.THERMAL: "clocks are lowered by heat for a notable share of the time",
    Component.POWER: "clocks are lowered by the power limit, and memory bandwidth is not full",
    Component.MEMORY: "KV memory (else the framebuffer) is full while work waits",
    Component.CPU: "the pods' CPU limit is used up, or the kernel throttles them, and no part of the GPU is full",
    Component.NETWORK: "network at its stated capacity, or the GPU waits while data comes in over it",
    Component.STORAGE: "storage at its stated capacity, or the GPU waits while data is read from it",
    Component.QUEUE: "work waits below the knee, or while the GPU idles: the batch cap or the routing holds it back",
    Component.COMPUTE: "tensor or FP pipes are the fullest",
    Component.MEMORY_BANDWIDTH: "device memory's bandwidth is the fullest",
    Component.PCIE: "the link to the host is the fullest",
    Component.NVLINK: "the link to other GPUs is the fullest",
    Component.LAUNCH: "the GPU is busy and nothing is full: kernels too small or too few to fill it",
    Component.DEMAND: "nothing is full and hardly anything waits: there is too little work",
}
_ON_DEVICE = (Component.COMPUTE, Component.MEMORY_BANDWIDTH, Component.PCIE, Component.NVLINK)
_OF_HOST = (Component.CPU, Component.NETWORK, Component.STORAGE)
_NAMES = {
    Component.COMPUTE: "tensor or FP pipes",
    Component.MEMORY_BANDWIDTH: "memory bandwidth",
    Component.PCIE: "PCIe",
    Component.NVLINK: "NVLink",
    Component.CPU: "CPU",
    Component.NETWORK: "network",
    Component.STORAGE: "storage",
}
_NO_PART = 0.01  # busy for less, a rank may be none
_SHARED = (Component.NETWORK, Component.STORAGE)


def bottleneck(evidence: Evidence, used: Usage, settings: Thresholds) -> tuple[Bottleneck | None, str | None]:
    """The bottleneck, and the culprit pod where one rank of a job holds back the others; None where nothing tells."""
    if used.busy is None:
        return None, None
    rank = _slow_rank(evidence, used, settings)
    if rank is not None:
        return rank
    found = (
        _clocks(used, settings)
        or _memory(evidence, used, settings)
        or _host(used, settings)
        or _starved(evidence, used, settings)
        or _queue(evidence, used, settings)
        or _device(used, settings)
        or _nothing_full(evidence, used, settings)
    )
    return found, None


def work_waits(evidence: Evidence) -> bool:
    """Whether there was more to do than was done; a training job always has more."""
    if evidence.kind is Kind.TRAINING:
        return True
    return evidence.waiting is not None and evidence.waiting >= max(1, evidence.ready)


def _slow_rank(evidence: Evidence, used: Usage, settings: Thresholds) -> tuple[Bottleneck, str] | None:
    jobs: dict[str, list[tuple[float, str, str]]] = {}
    for pod, work in used.works.items():
        counters = evidence.pods[pod]
        job = counters.job
        if job is None and evidence.kind is Kind.TRAINING:
            job = ""
        if job is not None:
            apart = [(busy, pod, gpu) for gpu, busy in counters.busy_by_gpu if 0 <= busy <= settings.possible]
            jobs.setdefault(job, []).extend(apart or [(work.busy, pod, "")])
    for ranks in jobs.values():
        (least, culprit, gpu), (most, _, _) = min(ranks), max(ranks)
        if most - least >= settings.imbalance:
            rank = f"{gpu} of {culprit}" if gpu else culprit
            why = "they wait for it" if least >= _NO_PART else "they wait for it, or it has no part in the job"
            text = f"rank {rank} is busy {least:.0%} of the time, others up to {most:.0%}: {why}"
            return Bottleneck(Component.IMBALANCE, least, text + _of_culprit(evidence.pods[culprit], settings)), culprit
    return None


def _of_culprit(pod: Counters, settings: Thresholds) -> str:
    if pod.cpu_throttled is not None and pod.cpu_throttled >= settings.throttled:
        return f"; its CPU is throttled {pod.cpu_throttled:.0%} of the time"
    if pod.cpu_used is not None and pod.cpu_limit and pod.cpu_used >= settings.full * pod.cpu_limit:
        return f"; it uses {pod.cpu_used:.1f} of {pod.cpu_limit:.1f} cores"
    if pod.thermal_throttled is not None and pod.thermal_throttled >= settings.throttled:
        return f"; heat lowers its clocks {pod.thermal_throttled:.0%} of the time"
    if pod.disk_read is not None and pod.disk_read >= settings.feeding * pod.gpus:
        return f"; it reads {pod.disk_read / 1e6:.0f} MB/s from storage"
    return ""


def _clocks(used: Usage, settings: Thresholds) -> Bottleneck | None:
    heat, power = used.thermal_throttled, used.power_throttled
    if heat is not None and heat >= settings.throttled:
        return Bottleneck(Component.THERMAL, heat, f"heat lowers the clocks {heat:.0%} of the time")
    memory_full = used.memory is not None and used.memory >= settings.full
    if power is not None and power >= settings.throttled and not memory_full:
        return Bottleneck(Component.POWER, power, f"the power limit lowers the clocks {power:.0%} of the time")
    return None


def _memory(evidence: Evidence, used: Usage, settings: Thresholds) -> Bottleneck | None:
    lost = evidence.losses is not None and evidence.losses > 0
    waits = evidence.waiting is not None and evidence.waiting > 0
    if used.kv is not None:
        if used.kv >= settings.memory_full and (waits or lost):
            return Bottleneck(Component.MEMORY, used.kv, f"KV memory is {used.kv:.0%} full and requests wait for it")
        return None
    most = max(used.compute or 0.0, used.memory or 0.0)
    held = used.framebuffer
    if evidence.kind is Kind.LLM_SERVING or held is None or not waits or most >= settings.notable:
        return None
    if held >= settings.memory_full:
        return Bottleneck(Component.MEMORY, held, f"GPU memory is {held:.0%} full while work waits")
    return None


def _host(used: Usage, settings: Thresholds) -> Bottleneck | None:
    if max(used.compute or 0.0, used.memory or 0.0) >= settings.full:
        return None
    share, component = max(((used.used.get(each, 0.0), each) for each in _OF_HOST), key=lambda pair: pair[0])
    if share < settings.full:
        return None
    if component is Component.CPU and (throttled := cpu_throttled(used, settings)):
        return Bottleneck(component, used.cpu_throttled, throttled)
    return Bottleneck(component, share, f"{_NAMES[component]} is {share:.0%} used", component in _SHARED)


def cpu_throttled(used: Usage, settings: Thresholds) -> str:
    """That the kernel holds the pods back at their CPU limit, "" where it does not for a notable share of the time."""
    if used.cpu_throttled is None or used.cpu_throttled < settings.throttled:
        return ""
    return f"the pods' CPU limit throttles them {used.cpu_throttled:.0%} of the time"


def _starved(evidence: Evidence, used: Usage, settings: Thresholds) -> Bottleneck | None:
    """The GPU waits although there is work: for what brings most data, where that is much."""
    if used.busy is None or used.busy >= settings.prosperous_busy or not work_waits(evidence):
        return None
    disk = network = 0.0
    for pod in used.works:
        disk += evidence.pods[pod].disk_read or 0.0
        network += evidence.pods[pod].network_received or 0.0
    most, component = max((disk, Component.STORAGE), (network, Component.NETWORK), key=lambda pair: pair[0])
    if most < settings.feeding * used.gpus_busy:
        return None
    text = f"GPUs are idle {1 - used.busy:.0%} of the time while {most / 1e6:.0f} MB/s come in from {_NAMES[component]}"
    return Bottleneck(component, None, text)


def _queue(evidence: Evidence, used: Usage, settings: Thresholds) -> Bottleneck | None:
    if evidence.kind is Kind.TRAINING or evidence.waiting is None or not work_waits(evidence):
        return None
    if used.compute is None or used.memory is None:
        return None
    if evidence.below_knee:
        text = f"{evidence.waiting:.0f} requests wait although the batch in use is below the knee"
    elif used.busy is not None and used.busy < settings.prosperous_busy and _fullest(used)[0] < settings.notable:
        text = f"{evidence.waiting:.0f} requests wait while nothing that is seen is full"
    else:
        return None
    return Bottleneck(Component.QUEUE, None, text)


def _device(used: Usage, settings: Thresholds) -> Bottleneck | None:
    share, component = _fullest(used)
    if share < settings.notable:
        return None
    return Bottleneck(component, share, f"{_NAMES[component]} is used to {share:.0%} of what is reached in practice")


def _fullest(used: Usage) -> tuple[float, Component]:
    return max(((used.used.get(each, 0.0), each) for each in _ON_DEVICE), key=lambda pair: pair[0])


def _nothing_full(evidence: Evidence, used: Usage, settings: Thresholds) -> Bottleneck | None:
    if used.busy is None:
        return None
    if used.busy >= settings.prosperous_busy:
        if used.compute is None or used.memory is None:
            return None
        seen = "" if used.sm_active is None else f", and SMs are active {used.sm_active:.0%}"
        text = (
            f"kernels run {used.busy:.0%} of the time, yet pipes are used to {used.compute:.0%}"
            f" and memory bandwidth to {used.memory:.0%}{seen}"
        )
        return Bottleneck(Component.LAUNCH, None, text)
    if evidence.waiting is not None and not work_waits(evidence):
        few = "nothing waits"
        if evidence.waiting:
            few = f"hardly anything waits ({evidence.waiting:.2g} at {evidence.ready} replicas)"
        return Bottleneck(Component.DEMAND, None, f"{few}, and the GPUs are idle {1 - used.busy:.0%} of the time")
    return None
