"""Remedies that no scaler can take itself, each with the evidence that leads to it. One table, in order of weight."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cache

from bandkeeper.api.records import dataclass
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.quality.types import Advice, Bottleneck, Component, Kind, Quality


class Sign(StrEnum):
    """What has to be seen beside class and bottleneck."""

    SLO_UNREACHABLE = "SLOUnreachable"
    PREFILL_TAILS = "PrefillTails"
    BELOW_KNEE = "BelowKnee"
    CPU_THROTTLED = "CPUThrottled"
    EDGE = "Edge"
    SHARED = "Shared"
    UNSEEN = "Unseen"
    BROKEN = "Broken"


SIGNS: Mapping[Sign, str] = {
    Sign.SLO_UNREACHABLE: "the latency SLO is missed even with one request in a batch",
    Sign.PREFILL_TAILS: "the inter-token latency SLO is broken by its tail alone, as prefill between decode steps does",
    Sign.BELOW_KNEE: "the batch in use is below the knee of the fitted model, and hardly anything waits",
    Sign.CPU_THROTTLED: "the pods' CPU limit throttles them",
    Sign.EDGE: "the GPU is one for places with little power",
    Sign.SHARED: "pods share GPUs by time-slicing or MPS",
    Sign.UNSEEN: "counters that the class needs are missing",
    Sign.BROKEN: "counters are stale, or contradict each other",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One remedy and when it is given. Empty stands for any."""

    remedy: str
    text: str
    qualities: frozenset[Quality] = frozenset()
    components: frozenset[Component] = frozenset()
    kinds: frozenset[Kind] = frozenset()
    objectives: frozenset[Objective] = frozenset()
    signs: frozenset[Sign] = frozenset()
    without: frozenset[Sign] = frozenset()

    def fits(self, quality: Quality, component: Component | None, kind: Kind, objective: Objective) -> bool:
        """Whether all conditions but the signs hold."""
        return (
            (not self.components or component in self.components)
            and (not self.qualities or quality in self.qualities)
            and (not self.kinds or kind in self.kinds)
            and (not self.objectives or objective in self.objectives)
        )


_LLM = frozenset({Kind.LLM_SERVING})
_TRAINING = frozenset({Kind.TRAINING})
_BATCHES = frozenset({Kind.DYNAMIC_BATCHING, Kind.TRAINING, Kind.UNKNOWN})
_SERVING = frozenset({Kind.LLM_SERVING, Kind.DYNAMIC_BATCHING})
_UNKNOWN = frozenset({Kind.UNKNOWN})
_LATENCY = frozenset({Objective.LATENCY_SENSITIVE, Objective.BALANCED})

TABLE: tuple[Row, ...] = (
    Row(
        remedy="FasterHardware",
        text="Use tensor parallelism over more GPUs, a faster GPU, or a smaller model: no batch size keeps the SLO",
        kinds=_LLM,
        objectives=_LATENCY,
        signs=frozenset({Sign.SLO_UNREACHABLE}),
    ),
    Row(
        remedy="FasterHardware",
        text="Use a faster GPU, a smaller model or fewer bits: no batch size keeps the SLO",
        kinds=frozenset({Kind.DYNAMIC_BATCHING, Kind.UNKNOWN}),
        objectives=_LATENCY,
        signs=frozenset({Sign.SLO_UNREACHABLE}),
    ),
    Row(
        remedy="SmallerPrefillChunks",
        text="Lower the prefill tokens per step (vLLM: max-num-batched-tokens), or give prefill its own replicas",
        kinds=_LLM,
        objectives=_LATENCY,
        signs=frozenset({Sign.PREFILL_TAILS}),
    ),
    Row(
        remedy="FixSlowRank",
        text="Look at the named rank: its data loader, its node's CPU and disk, its share of the data",
        components=frozenset({Component.IMBALANCE}),
    ),
    Row(
        remedy="LowerClocksOrModel",
        text="Set lower clocks on purpose, or use a smaller or quantised model: the power or heat budget is spent",
        components=frozenset({Component.POWER, Component.THERMAL}),
        signs=frozenset({Sign.EDGE}),
    ),
    Row(
        remedy="RaisePowerLimit",
        text="Raise the GPU's power limit if rack and cooling allow, or lower the clocks evenly on all replicas",
        components=frozenset({Component.POWER}),
        without=frozenset({Sign.EDGE}),
    ),
    Row(
        remedy="Cooling",
        text="Check airflow, fans and inlet temperature of the node, or move the pods to a cooler one",
        components=frozenset({Component.THERMAL}),
        without=frozenset({Sign.EDGE}),
    ),
    Row(
        remedy="RaiseCPULimit",
        text="Raise or drop the pods' CPU limit: it stops their threads while the node may well have CPU to spare",
        components=frozenset({Component.CPU}),
        signs=frozenset({Sign.CPU_THROTTLED}),
    ),
    Row(
        remedy="MoreLoaderWorkers",
        text="Give the data loader more workers and CPU, or decode and augment on the GPU",
        components=frozenset({Component.CPU}),
        kinds=_TRAINING,
        without=frozenset({Sign.CPU_THROTTLED}),
    ),
    Row(
        remedy="MoreCPU",
        text="Raise the pod's CPU limit: tokenising, pre-processing and scheduling hold the GPU back",
        components=frozenset({Component.CPU}),
        kinds=_SERVING,
        without=frozenset({Sign.CPU_THROTTLED}),
    ),
    Row(
        remedy="MoreCPU",
        text="Raise the pod's CPU limit, or lighten what its CPU does for the GPU: loading, pre-processing, scheduling",
        components=frozenset({Component.CPU}),
        kinds=_UNKNOWN,
        without=frozenset({Sign.CPU_THROTTLED}),
    ),
    Row(
        remedy="LocalCache",
        text="Cache the data on local disks, prefetch it, or pack small files into large ones",
        components=frozenset({Component.STORAGE, Component.NETWORK}),
        kinds=_TRAINING,
    ),
    Row(
        remedy="LighterPayloads",
        text="Send less over the network or disk (compression, smaller inputs), or use nodes with more bandwidth",
        components=frozenset({Component.STORAGE, Component.NETWORK}),
        kinds=_SERVING,
    ),
    Row(
        remedy="LighterPayloads",
        text="Move less over the network or disk (a local cache, compression), or use nodes with more bandwidth",
        components=frozenset({Component.STORAGE, Component.NETWORK}),
        kinds=_UNKNOWN,
    ),
    Row(
        remedy="MoreKVMemory",
        text="Quantise the KV cache, shorten the longest context, or use more GPU memory per replica",
        components=frozenset({Component.MEMORY}),
        kinds=_LLM,
    ),
    Row(
        remedy="LessMemory",
        text="Use fewer model copies, smaller inputs or a GPU with more memory",
        components=frozenset({Component.MEMORY}),
        kinds=_BATCHES,
    ),
    Row(
        remedy="QuantiseOrMoreBandwidth",
        text="Quantise the weights, or use a GPU with more memory bandwidth: decoding is bound by it",
        qualities=frozenset({Quality.EFFICIENT, Quality.OVERLOADED}),
        components=frozenset({Component.MEMORY_BANDWIDTH}),
        kinds=_LLM,
    ),
    Row(
        remedy="FuseMemoryBoundKernels",
        text="Fuse element-wise kernels, use channels-last and half precision: memory traffic is the limit",
        qualities=frozenset({Quality.EFFICIENT, Quality.OVERLOADED}),
        components=frozenset({Component.MEMORY_BANDWIDTH}),
        kinds=_BATCHES,
    ),
    Row(
        remedy="LowerPrecision",
        text="Use FP8 or INT8 where accuracy allows, or a GPU with more FLOP/s: compute is the limit",
        qualities=frozenset({Quality.EFFICIENT, Quality.OVERLOADED}),
        components=frozenset({Component.COMPUTE}),
        kinds=_SERVING | _UNKNOWN,
    ),
    Row(
        remedy="LargerBatches",
        text="Use larger batches, fused kernels or CUDA graphs: each kernel is too small to fill the GPU",
        qualities=frozenset({Quality.INEFFICIENT, Quality.OVERLOADED}),
        components=frozenset({Component.LAUNCH}),
        kinds=_BATCHES,
    ),
    Row(
        remedy="SmallerGPUOrGraphs",
        text="Use CUDA graphs, fewer GPUs per replica, a smaller GPU or a MIG instance: the model cannot fill this one",
        qualities=frozenset({Quality.INEFFICIENT, Quality.OVERLOADED}),
        components=frozenset({Component.LAUNCH}),
        kinds=_LLM,
    ),
    Row(
        remedy="FewerGPUsPerReplica",
        text="Use fewer GPUs per replica to save, or speculative decoding for speed: each step waits for latency",
        qualities=frozenset({Quality.MIXED}),
        kinds=_LLM,
        signs=frozenset({Sign.BELOW_KNEE}),
    ),
    Row(
        remedy="PinMemory",
        text="Keep tensors on the GPU, pin host memory and overlap copies with kernels: PCIe is the limit",
        components=frozenset({Component.PCIE}),
    ),
    Row(
        remedy="LessTensorParallelism",
        text="Split the model over fewer GPUs, or overlap communication with kernels: NVLink is the limit",
        components=frozenset({Component.NVLINK}),
    ),
    Row(
        remedy="RaiseBootCapacity",
        text="Let spec.batch raise the cap, boot with a larger one, or check that requests reach all replicas",
        components=frozenset({Component.QUEUE}),
    ),
    Row(
        remedy="GiveBack",
        text="Lower replicas.min, or let small workloads share GPUs by MIG: these are held with little to do",
        qualities=frozenset({Quality.UNDERUSED}),
        components=frozenset({Component.DEMAND}),
    ),
    Row(
        remedy="UseMIG",
        text="Use MIG or whole GPUs where quality matters: counters of a time-sliced GPU belong to no pod",
        qualities=frozenset({Quality.UNKNOWN}),
        signs=frozenset({Sign.SHARED}),
    ),
    Row(
        remedy="ExportCounters",
        text="Export the DCGM_FI_PROF fields (GR engine, tensor, FP pipes, DRAM), or run bandkeeper agent",
        qualities=frozenset({Quality.UNKNOWN}),
        signs=frozenset({Sign.UNSEEN}),
    ),
    Row(
        remedy="CheckExporter",
        text="Check the exporter: it must run, with profiling not paused and no other profiler on the same GPU",
        qualities=frozenset({Quality.UNKNOWN}),
        signs=frozenset({Sign.BROKEN}),
    ),
)


def advice(
    quality: Quality, found: Bottleneck | None, kind: Kind, objective: Objective, signs: Mapping[Sign, str]
) -> tuple[Advice, ...]:
    """What fits, each remedy once; `signs` carry the sentence that is their evidence."""
    given: dict[str, Advice] = {}
    for row in _rows(quality, None if found is None else found.component, kind, objective):
        if row.remedy in given or not row.signs <= signs.keys() or not row.without.isdisjoint(signs):
            continue
        parts = [signs[sign] for sign in sorted(row.signs)]
        if row.components and found is not None:
            parts.insert(0, found.evidence)
        given[row.remedy] = Advice(row.remedy, row.text, "; ".join(dict.fromkeys(parts)))
    return tuple(given.values())


@cache
def _rows(quality: Quality, component: Component | None, kind: Kind, objective: Objective) -> tuple[Row, ...]:
    return tuple(row for row in TABLE if row.fits(quality, component, kind, objective))
