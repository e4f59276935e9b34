"""What real loads look like to the counters, and what is said of them. Each case names where its figures come from.

Sources: "DRAM/0.80 of ..." and "MFU" are the derived and published figures of decode and prefill of known models on
known GPUs (vendor peaks, llama 3 report, BLIS and aiconfigurator calibration); "DCGM" is NVIDIA's guide to its fields,
with what it says is reachable; "derived" follows from the mechanism. The figures near a bound are chosen to be near it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.quality.assess import assess
from bandkeeper.quality.types import Assessment, Component, Counters, Evidence, Kind, Memory, Quality, Thresholds

H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-80GB"
Q, C = Quality, Component


@dataclass(frozen=True)
class Case:
    """A load: what is seen of it (in steps of time), and the judgement after the last step."""

    name: str
    source: str
    steps: Sequence[tuple[float, Evidence]]
    quality: Quality
    bottleneck: Component | None = None
    advice: tuple[str, ...] = ()
    culprit: str | None = None
    reason: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)


def a_pod(busy: float | None, tensor: float | None, dram: float | None, **more: Any) -> Counters:
    """A pod whose counters are fresh. Nothing else is seen of it."""
    return Counters(
        **{"age_s": 20, "model": H100, "gr_engine_active": busy, "tensor_active": tensor, "dram_active": dram, **more}
    )


def pods(*counters: Counters, **more: Any) -> Evidence:
    """A workload of these pods, with nothing waiting."""
    named = {f"pod-{number}": each for number, each in enumerate(counters)}
    return Evidence(**{"pods": named, "ready": len(named), "waiting": 0, "kind": Kind.LLM_SERVING, **more})


def case(
    name: str,
    source: str,
    seen: Evidence | Sequence[tuple[float, Evidence]],
    quality: Quality,
    bottleneck: Component | None = None,
    *advice: str,
    **more: Any,
) -> Case:
    steps = [(0.0, seen)] if isinstance(seen, Evidence) else seen
    return Case(name, source, steps, quality, bottleneck, advice, **more)


def llm(tensor: float, dram: float, **more: Any) -> Evidence:
    """One replica of an LLM server, busy all the time as one request in flight makes it."""
    own = {key: more.pop(key) for key in list(more) if key in {each.name for each in fields(Counters)}}
    return pods(a_pod(1.0, tensor, dram, **own), **more)


def ranks(*busy: float, tensor: float, dram: float, slow: Mapping[str, Any] | None = None) -> Evidence:
    """A training job; `slow` is what else is seen of the least busy rank."""
    least = busy.index(min(busy))
    counters = [a_pod(each, tensor, dram, **(slow or {} if n == least else {})) for n, each in enumerate(busy)]
    return pods(*counters, kind=Kind.TRAINING, waiting=None, objective=Objective.THROUGHPUT_SENSITIVE)


def gpus(*busy: float) -> tuple[tuple[str, float], ...]:
    """The GPUs of one pod that are not busy alike."""
    return tuple((f"GPU {number}", each) for number, each in enumerate(busy))


def train(busy: float, tensor: float, dram: float, **own: Any) -> Evidence:
    return pods(a_pod(busy, tensor, dram, **own), kind=Kind.TRAINING, waiting=None)


def other(busy: float, tensor: float, dram: float, kind: Kind = Kind.DYNAMIC_BATCHING, **more: Any) -> Evidence:
    own = {key: more.pop(key) for key in list(more) if key in {each.name for each in fields(Counters)}}
    return pods(a_pod(busy, tensor, dram, **{"model": A100, **own}), kind=kind, **more)


DECODE = llm(0.03, 0.60)
MIXED = llm(0.05, 0.40)


def after(first: Evidence, *then: tuple[float, Evidence]) -> list[tuple[float, Evidence]]:
    return [(0.0, first), *then]


def queue(*waiting: float, every_s: float = 60.0) -> list[tuple[float, Evidence]]:
    return [(every_s * n, replace(DECODE, waiting=each)) for n, each in enumerate(waiting)]


def losing(*losses: float) -> list[tuple[float, Evidence]]:
    return [(60.0 * n, replace(DECODE, throughput=10.0, losses=each)) for n, each in enumerate(losses)]


def falling(to: float) -> list[tuple[float, Evidence]]:
    first = replace(DECODE, throughput=10.0, offered=10.0, waiting=3)
    return after(first, (60.0, replace(first, throughput=to, offered=12.0)))


def half_seen(seen: int, of: int) -> Evidence:
    return replace(pods(*[a_pod(1.0, 0.03, 0.60)] * seen), ready=of)


BANDWIDTH = "QuantiseOrMoreBandwidth"
# fmt: off
CASES = (
    # LLM serving
    case("decode at batch 1, 8B on H100", "DRAM/0.80 of 8B on H100 .89",
         llm(0.02, 0.71), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("decode at batch 1, 70B fp8 on H200", "DRAM/0.80 .94",
         llm(0.03, 0.75, model="NVIDIA H200", below_knee=True), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("decode at the knee, batch 128", "derived: ITL doubles over batch 1 at 128 (H100 8B 1024/512)",
         llm(0.25, 0.62, below_knee=False), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("decode tensor-parallel over 4, 70B", "DRAM/0.80 of 70B fp8 TP4 .58",
         llm(0.03, 0.464, gpus=4, below_knee=True), Q.MIXED, C.MEMORY_BANDWIDTH, "FewerGPUsPerReplica"),
    case("decode of fp4 on B200", "DRAM/0.80 of B200 fp4 .55",
         llm(0.03, 0.44, model="NVIDIA B200"), Q.MIXED, C.MEMORY_BANDWIDTH),
    case("decode a little over the bound", "near 60 %",
         llm(0.03, 0.52), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("mixture of experts at batch 4", "DRAM/0.80 of MoE 120B at batch 4 about .30",
         llm(0.02, 0.23, below_knee=True), Q.MIXED, C.LAUNCH, "FewerGPUsPerReplica"),
    case("prefill-heavy, tails in ITL", "prefill at MFU .38 about .41",
         llm(0.38, 0.16, prefill_tails=True, objective=Objective.LATENCY_SENSITIVE),
         Q.MIXED, C.COMPUTE, "SmallerPrefillChunks"),
    case("prefill-heavy, for throughput", "the same; tails are nobody's matter",
         llm(0.38, 0.16, prefill_tails=True, objective=Objective.THROUGHPUT_SENSITIVE), Q.MIXED, C.COMPUTE),
    case("fp8 with long prompts", "derived: tensor activity does not tell the type; half of 0.93",
         llm(0.52, 0.25), Q.MIXED, C.COMPUTE),
    case("small model on a big GPU", "derived: 1B bf16, 2 GB per 5-ms step on H100 .15 of the bandwidth",
         llm(0.03, 0.17, sm_active=0.35), Q.INEFFICIENT, C.LAUNCH, "SmallerGPUOrGraphs"),
    case("the same, tensor-parallel over 8", "derived: a rank reads an eighth",
         llm(0.01, 0.06, gpus=8, below_knee=True), Q.INEFFICIENT, C.LAUNCH, "SmallerGPUOrGraphs"),
    case("speculative decoding", "derived: a verify step reads the weights once for several tokens",
         llm(0.16, 0.66), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("KV memory full, requests wait", "calibration: 70B 8192/1024 TP1 at batch 64",
         llm(0.1, 0.6, kv_cache_utilization=0.97, waiting=30), Q.EFFICIENT, C.MEMORY, "MoreKVMemory"),
    case("KV memory at 80 %, requests wait", "near 90 %",
         llm(0.1, 0.6, kv_cache_utilization=0.80, waiting=30), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("cap too low: requests wait below the knee", "design 7: lowering the cap under backlog",
         llm(0.03, 0.45, waiting=40, below_knee=True), Q.MIXED, C.QUEUE, "RaiseBootCapacity"),
    case("even batch 1 misses the SLO", "L4: ITL of 8B is 86 ms",
         llm(0.05, 0.72, model="NVIDIA L4", slo_unreachable=True, objective=Objective.LATENCY_SENSITIVE),
         Q.EFFICIENT, C.MEMORY_BANDWIDTH, "FasterHardware", BANDWIDTH),
    case("tokeniser out of CPU", "derived: cgroup throttling",
         pods(a_pod(0.66, 0.05, 0.30, cpu_throttled=0.4)), Q.MIXED, C.CPU, "RaiseCPULimit"),
    case("tokeniser uses its CPU up", "derived: the limit in use, hardly a period throttled",
         pods(a_pod(0.66, 0.05, 0.30, cpu_used=3.8, cpu_limit=4, cpu_throttled=0.1)), Q.MIXED, C.CPU, "MoreCPU"),
    case("training, loader throttled", "derived: more workers would be throttled more",
         train(0.42, 0.18, 0.10, cpu_used=5, cpu_limit=8, cpu_throttled=0.3), Q.UNDERUSED, C.CPU, "RaiseCPULimit"),
    case("tensor-parallel prefill over NVLink", "derived: all-reduce of each layer, 450 GB/s a direction",
         llm(0.30, 0.15, gpus=8, nvlink_sent=8 * 270e9, nvlink_received=8 * 270e9),
         Q.MIXED, C.NVLINK, "LessTensorParallelism"),
    case("MIG: per-instance counters only", "DCGM: no GPU_UTIL of an instance",
         llm(0.1, 0.6, mig=True, model=A100), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("time-slicing", "DCGM: PROF fields are the device's",
         llm(0.1, 0.6, shared=True, gpu_utilization=0.9), Q.UNKNOWN, None, "UseMIG", reason="time-slicing"),
    case("idle but held", "GenTD26: duty cycle p50 0",
         pods(a_pod(0.0, 0.0, 0.0, framebuffer_used=70e9, framebuffer_free=10e9)), Q.UNDERUSED, C.DEMAND, "GiveBack"),
    case("diffusion serving", "GenTD26: duty cycle mean 7 %",
         other(0.07, 0.03, 0.02), Q.UNDERUSED, C.DEMAND, "GiveBack"),
    case("a model of GPU that nobody knows", "issue: bad input",
         llm(0.02, 0.71, model="NVIDIA X1"), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    # dynamic batching
    case("CNN with dynamic batching, batch 32", "ResNet-50 on A100: best at 32; share of peaks derived",
         other(0.95, 0.30, 0.44), Q.MIXED, C.MEMORY_BANDWIDTH),
    case("CNN at batch 1", "ResNet-50: 469 of 2858 images/s",
         other(0.90, 0.06, 0.08, sm_active=0.3), Q.INEFFICIENT, C.LAUNCH, "LargerBatches"),
    case("encoder, compute-bound", "near 60 %",
         other(1.0, 0.60, 0.20), Q.EFFICIENT, C.COMPUTE, "LowerPrecision"),
    case("copies over PCIe", "DCGM: Gen4 x16, headers included",
         other(0.80, 0.08, 0.12, pcie_received=24e9, pcie_sent=1e9), Q.INEFFICIENT, C.PCIE, "PinMemory"),
    case("payloads fill the network", "derived: capacity stated by a person",
         other(0.60, 0.20, 0.20, network_received=1.15e9, network_capacity=1.25e9),
         Q.MIXED, C.NETWORK, "LighterPayloads"),
    case("GPU memory full while work waits", "derived: model copies of a Triton server",
         other(0.60, 0.10, 0.15, framebuffer_used=76e9, framebuffer_free=4e9, waiting=20),
         Q.MIXED, C.MEMORY, "LessMemory"),
    case("the queue waits, the GPU idles", "derived: one instance, small cap",
         other(0.60, 0.10, 0.15, waiting=20), Q.MIXED, C.QUEUE, "RaiseBootCapacity"),
    case("element-wise kernels", "derived: streaming copy reaches .8",
         other(1.0, 0.05, 0.78), Q.EFFICIENT, C.MEMORY_BANDWIDTH, "FuseMemoryBoundKernels"),
    # training
    case("training, healthy", "405B training .41-.46",
         ranks(0.98, 0.97, 0.98, 0.99, tensor=0.41, dram=0.22), Q.MIXED, C.COMPUTE),
    case("training, loader starved of CPU", "ICSE'24: 46 % of issues are data operations",
         train(0.42, 0.18, 0.10, cpu_used=7.8, cpu_limit=8), Q.UNDERUSED, C.CPU, "MoreLoaderWorkers"),
    case("training, loader uses CPU but not all", "near 85 %",
         train(0.42, 0.18, 0.10, cpu_used=6.4, cpu_limit=8, disk_read=180e6), Q.UNDERUSED, C.STORAGE, "LocalCache"),
    case("training, reads from disk", "I/O-bound, as above",
         train(0.55, 0.20, 0.12, disk_read=180e6), Q.MIXED, C.STORAGE, "LocalCache"),
    case("training, reads a little more than nothing", "near 20 MB/s",
         train(0.45, 0.10, 0.10, disk_read=22e6), Q.UNDERUSED, C.STORAGE, "LocalCache"),
    case("training, waits for nobody knows what", "near 20 MB/s",
         train(0.45, 0.10, 0.10, disk_read=18e6), Q.UNDERUSED),
    case("training, reads over the network", "I/O-bound, as above",
         train(0.45, 0.20, 0.12, network_received=300e6), Q.UNDERUSED, C.NETWORK, "LocalCache"),
    case("one starved rank, peers spin in the collective", "derived: NCCL kernels keep peers at 100 %",
         ranks(1.0, 1.0, 1.0, 0.4, 1.0, 1.0, 1.0, 1.0, tensor=0.12, dram=0.10, slow={"cpu_throttled": 0.5}),
         Q.INEFFICIENT, C.IMBALANCE, "FixSlowRank", culprit="pod-3"),
    case("a group of pods of who knows what, one starved", "a LeaderWorkerSet trains or serves",
         pods(a_pod(1.0, 0.12, 0.10, job="group-0"), a_pod(0.4, 0.12, 0.10, job="group-0"), kind=Kind.UNKNOWN),
         Q.MIXED, C.IMBALANCE, "FixSlowRank", culprit="pod-1"),
    case("who knows what uses its CPU up", "derived: a loader's CPU or a server's",
         other(0.66, 0.05, 0.30, Kind.UNKNOWN, cpu_used=3.8, cpu_limit=4), Q.MIXED, C.CPU, "MoreCPU"),
    case("one starved GPU of a pod of eight", "the same, as the usual training pod has it",
         train(0.925, 0.12, 0.10, gpus=8, busy_by_gpu=gpus(*[1.0] * 7, 0.4)),
         Q.INEFFICIENT, C.IMBALANCE, "FixSlowRank", culprit="pod-0"),
    case("GPUs of a pod a little apart", "near 25 points",
         train(0.97, 0.41, 0.22, gpus=8, busy_by_gpu=gpus(*[1.0] * 7, 0.78)), Q.MIXED, C.COMPUTE),
    case("GPUs of a server's pod that serve apart", "derived: replicas of a model in one pod are no ranks",
         other(0.7, 0.41, 0.22, gpus=2, busy_by_gpu=gpus(1.0, 0.4)), Q.EFFICIENT, C.COMPUTE, "LowerPrecision"),
    case("ranks a little apart", "near 25 points",
         ranks(1.0, 0.78, tensor=0.41, dram=0.22), Q.MIXED, C.COMPUTE),
    case("ranks just too far apart", "near 25 points",
         ranks(1.0, 0.72, tensor=0.41, dram=0.22), Q.MIXED, C.IMBALANCE, "FixSlowRank", culprit="pod-1"),
    case("tiny kernels", "trainy: 100 % utilisation at a fraction of the FLOPs",
         train(1.0, 0.05, 0.05, sm_active=0.2), Q.INEFFICIENT, C.LAUNCH, "LargerBatches"),
    case("FP32 work, its pipes seen", "DCGM: FP32 pipe beside the tensor pipe",
         other(1.0, 0.0, 0.20, Kind.UNKNOWN, fp32_active=0.8), Q.EFFICIENT, C.COMPUTE, "LowerPrecision"),
    case("FP32 work, its pipes not seen", "DCGM: FP pipes are off by default",
         other(1.0, 0.018, 0.15, Kind.UNKNOWN), Q.UNKNOWN, None, "ExportCounters", reason="FP pipes"),
    case("some tensor work, FP pipes not seen", "near 2 %",
         other(1.0, 0.022, 0.15, Kind.UNKNOWN), Q.INEFFICIENT, C.LAUNCH, "LargerBatches"),
    case("FP pipes not seen, but hardly a warp either", "derived: no pipe is active without a warp",
         other(1.0, 0.0, 0.10, Kind.UNKNOWN, sm_active=0.1), Q.INEFFICIENT, C.LAUNCH, "LargerBatches"),
    # limits
    case("held back by power", "derived: GEMM at the limit of an H100",
         train(1.0, 0.62, 0.30, power_throttled=0.6), Q.EFFICIENT, C.POWER, "RaisePowerLimit"),
    case("now and then at the power limit", "near 20 %",
         train(1.0, 0.62, 0.30, power_throttled=0.18), Q.EFFICIENT, C.COMPUTE),
    case("a little more often", "near 20 %",
         train(1.0, 0.62, 0.30, power_throttled=0.22), Q.EFFICIENT, C.POWER, "RaisePowerLimit"),
    case("power limit, but memory is full", "derived: memory clocks stay",
         llm(0.1, 0.75, power_throttled=0.5), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("held back by heat", "derived: clock event reasons",
         train(1.0, 0.40, 0.20, thermal_throttled=0.35), Q.MIXED, C.THERMAL, "Cooling"),
    case("edge card at its power limit", "T4: 70 W",
         other(1.0, 0.45, 0.30, model="Tesla T4", power_throttled=0.8), Q.MIXED, C.POWER, "LowerClocksOrModel"),
    case("edge card, hot", "L4: 72 W, passive",
         other(1.0, 0.45, 0.30, model="NVIDIA L4", thermal_throttled=0.3), Q.MIXED, C.THERMAL, "LowerClocksOrModel"),
    # near the bounds of the classes
    case("busy for a little less than prosperous", "near 70 %",
         other(0.65, 0.06, 0.08), Q.MIXED, C.DEMAND),
    case("busy for a little more", "near 70 %",
         other(0.75, 0.06, 0.08), Q.INEFFICIENT, C.LAUNCH, "LargerBatches"),
    case("a little more than poor", "near 35 %",
         other(1.0, 0.12, 0.20), Q.MIXED, C.LAUNCH),
    case("compute a little under notable", "near 35 %",
         other(1.0, 0.30, 0.20), Q.MIXED, C.LAUNCH),
    case("compute a little over notable", "near 35 %",
         other(1.0, 0.35, 0.20), Q.MIXED, C.COMPUTE),
    # overload
    case("a queue that grows", "design 5: over two windows",
         queue(100, 111, 123.4), Q.OVERLOADED, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("a queue that hardly grows", "near 10 %",
         queue(100, 109, 118.9), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("a queue seen for a short while", "near 60 s",
         queue(10, 30, 90, every_s=52), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("refusals rise", "near 1 %",
         losing(0.0, 0.11), Q.OVERLOADED, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("hardly any refusals", "near 1 %",
         losing(0.0, 0.09), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("refusals stay", "once overloaded, it lasts",
         losing(0.0, 0.5, 0.5, 0.5), Q.OVERLOADED, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("throughput falls under more load", "near 5 %",
         falling(9.45), Q.OVERLOADED, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("throughput falls a little", "near 5 %",
         falling(9.55), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    # hysteresis
    case("a class that does not last yet", "near 60 s",
         after(DECODE, (60, MIXED), (115, MIXED)), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("a class that has lasted", "near 60 s",
         after(DECODE, (60, MIXED), (125, MIXED)), Q.MIXED, C.MEMORY_BANDWIDTH),
    case("a bound not left far enough", "near 3 points",
         after(DECODE, (60, llm(0.03, 0.8 * 0.573)), (200, llm(0.03, 0.8 * 0.573))),
         Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("a bound left far enough", "near 3 points",
         after(DECODE, (60, llm(0.03, 0.8 * 0.567)), (200, llm(0.03, 0.8 * 0.567))), Q.MIXED, C.MEMORY_BANDWIDTH),
    # bad input
    case("DRAM above 1", "issue: contradictory",
         llm(0.1, 1.1), Q.UNKNOWN, None, "CheckExporter", reason="dram_active reads 1.1"),
    case("percent read as a ratio", "DCGM 4.7: units changed",
         llm(3.0, 71.0), Q.UNKNOWN, None, "CheckExporter", reason="a ratio is 0 to 1"),
    case("DRAM at .9", "near 1.02",
         llm(0.1, 0.9), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("tensor active while the GPU is idle", "issue: contradictory",
         pods(a_pod(0.02, 0.5, 0.3)), Q.UNKNOWN, None, "CheckExporter", reason="contradict"),
    case("memory active while the GPU is idle", "issue: contradictory",
         other(0.0, 0.0, 0.7, gpu_utilization=0.0), Q.UNKNOWN, None, "CheckExporter",
         reason="memory reads 70% active while the GPU is busy for 0%"),
    case("memory active while no warp is", "issue: contradictory",
         llm(0.0, 0.7, sm_active=0.0), Q.UNKNOWN, None, "CheckExporter", reason="SM active stands at 0"),
    case("copies between GPUs while no kernel runs", "derived: NVLink's 900 GB/s of 3.35 TB/s",
         pods(a_pod(0.0, 0.0, 0.27)), Q.UNDERUSED, C.DEMAND, "GiveBack"),
    case("windows a little apart", "near 15 points",
         other(0.60, 0.73, 0.1), Q.EFFICIENT, C.COMPUTE, "LowerPrecision"),
    case("windows too far apart", "near 15 points",
         other(0.60, 0.77, 0.1), Q.UNKNOWN, None, "CheckExporter", reason="contradict"),
    case("GPU_UTIL alone", "issue: never more than that some kernel ran",
         pods(Counters(age_s=20, gpu_utilization=1.0)),
         Q.UNKNOWN, None, "ExportCounters", reason="GPU utilisation alone"),
    case("GPU_UTIL alone, nearly idle", "busy is an upper bound of work",
         pods(Counters(age_s=20, gpu_utilization=0.05)), Q.UNDERUSED, C.DEMAND, "GiveBack"),
    case("profiling paused", "DCGM: dcgmi profile --pause",
         llm(0.0, 0.0, gpu_utilization=1.0, gr_engine_active=0.0), Q.UNKNOWN, None, "CheckExporter", reason="paused"),
    case("counters of three collections ago", "near 90 s",
         llm(0.03, 0.6, age_s=100), Q.UNKNOWN, None, "CheckExporter", reason="100 s old"),
    case("counters of two and a half", "near 90 s",
         llm(0.03, 0.6, age_s=80), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("fewer than half of the GPUs seen", "near 50 %",
         half_seen(4, 9), Q.UNKNOWN, None, "ExportCounters", reason="5 of 9 GPUs"),
    case("more than half of them", "near 50 %",
         half_seen(5, 9), Q.EFFICIENT, C.MEMORY_BANDWIDTH, BANDWIDTH),
    case("no pod at all", "issue: missing",
         Evidence(), Q.UNKNOWN, None, reason="no ready pods"),
)
# fmt: on


def judged(each: Case, settings: Thresholds) -> Assessment:
    memory, now = Memory(), None
    for at_s, seen in each.steps:
        now, memory = assess(seen, memory, at_s, settings)
    assert now is not None
    return now


def verdict(each: Case, settings: Thresholds) -> tuple[object, ...]:
    now = judged(each, settings)
    component = None if now.bottleneck is None else now.bottleneck.component
    return now.quality, component, tuple(one.remedy for one in now.advice), now.culprit


DEFAULT = Thresholds()


@pytest.mark.parametrize("each", CASES, ids=[each.name for each in CASES])
def test_case(each: Case) -> None:
    assert verdict(each, DEFAULT) == (each.quality, each.bottleneck, each.advice, each.culprit)
    now = judged(each, DEFAULT)
    assert each.reason in now.reason
    assert (now.reason != "") == (now.quality is Quality.UNKNOWN)
    assert all(one.evidence and one.text for one in now.advice)


def test_the_cases_are_many_and_named_apart() -> None:
    assert len({each.name for each in CASES}) == len(CASES) >= 32
    assert all(each.source for each in CASES)


@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("threshold", [each.name for each in fields(Thresholds)])
def test_a_threshold_moved_by_a_fifth_breaks_a_case(threshold: str, factor: float) -> None:
    moved = replace(DEFAULT, **{threshold: factor * getattr(DEFAULT, threshold)})
    broken = [each.name for each in CASES if verdict(each, moved) != verdict(each, DEFAULT)]
    assert broken, f"no case stands near {threshold}"
