"""The signals: named, unit-bearing quantities, whatever the exporter calls them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SignalKind(StrEnum):
    """How a signal is read: a level, a rate of a counter, or a distribution."""

    GAUGE = "Gauge"
    COUNTER = "Counter"
    HISTOGRAM = "Histogram"


class Signal(StrEnum):
    """Every signal name that a policy may use."""

    REQUESTS_RUNNING = "RequestsRunning"
    REQUESTS_WAITING = "RequestsWaiting"
    REQUESTS_FINISHED = "RequestsFinished"
    REQUESTS_FAILED = "RequestsFailed"
    REQUESTS_REJECTED = "RequestsRejected"
    PREEMPTIONS = "Preemptions"
    PROMPT_TOKENS = "PromptTokens"
    GENERATION_TOKENS = "GenerationTokens"
    SAMPLES = "Samples"
    BACKLOG = "Backlog"
    BATCH_SIZE = "BatchSize"
    KV_CACHE_UTILIZATION = "KVCacheUtilization"
    TIME_TO_FIRST_TOKEN = "TimeToFirstToken"
    INTER_TOKEN_LATENCY = "InterTokenLatency"
    END_TO_END_LATENCY = "EndToEndLatency"
    QUEUE_TIME = "QueueTime"
    GPU_UTILIZATION = "GPUUtilization"
    GR_ENGINE_ACTIVE = "GREngineActive"
    SM_ACTIVE = "SMActive"
    TENSOR_ACTIVE = "TensorActive"
    DRAM_ACTIVE = "DRAMActive"
    POWER = "Power"
    SM_OCCUPANCY = "SMOccupancy"
    FP64_ACTIVE = "FP64Active"
    FP32_ACTIVE = "FP32Active"
    FP16_ACTIVE = "FP16Active"
    MEMORY_COPY_UTILIZATION = "MemoryCopyUtilization"
    FRAMEBUFFER_USED = "FramebufferUsed"
    FRAMEBUFFER_FREE = "FramebufferFree"
    POWER_LIMIT = "PowerLimit"
    SM_CLOCK = "SMClock"
    MEMORY_CLOCK = "MemoryClock"
    GPU_TEMPERATURE = "GPUTemperature"
    POWER_THROTTLED = "PowerThrottled"
    THERMAL_THROTTLED = "ThermalThrottled"
    PCIE_SENT = "PCIeSent"
    PCIE_RECEIVED = "PCIeReceived"
    NVLINK_SENT = "NVLinkSent"
    NVLINK_RECEIVED = "NVLinkReceived"
    GPU_COUNT = "GPUCount"
    MODEL_FLOPS = "ModelFLOPs"
    MODEL_READ_BYTES = "ModelReadBytes"
    MODEL_WRITTEN_BYTES = "ModelWrittenBytes"
    CPU_USED = "CPUUsed"
    CPU_THROTTLED = "CPUThrottled"
    NETWORK_SENT = "NetworkSent"
    NETWORK_RECEIVED = "NetworkReceived"
    DISK_READ = "DiskRead"
    DISK_WRITTEN = "DiskWritten"


@dataclass(frozen=True, slots=True)
class SignalInfo:
    """Kind and unit of a signal after normalisation; counters are read as rates per second of `unit`."""

    kind: SignalKind
    unit: str
    meaning: str


CATALOGUE: dict[Signal, SignalInfo] = {
    Signal.REQUESTS_RUNNING: SignalInfo(SignalKind.GAUGE, "requests", "requests being processed by a replica"),
    Signal.REQUESTS_WAITING: SignalInfo(SignalKind.GAUGE, "requests", "requests queued in a replica"),
    Signal.REQUESTS_FINISHED: SignalInfo(SignalKind.COUNTER, "requests", "requests finished, for any reason"),
    Signal.REQUESTS_FAILED: SignalInfo(SignalKind.COUNTER, "requests", "requests that ended in an error"),
    Signal.REQUESTS_REJECTED: SignalInfo(SignalKind.COUNTER, "requests", "requests refused by a full queue"),
    Signal.PREEMPTIONS: SignalInfo(SignalKind.COUNTER, "requests", "requests preempted for want of KV memory"),
    Signal.PROMPT_TOKENS: SignalInfo(SignalKind.COUNTER, "tokens", "prompt tokens taken in"),
    Signal.GENERATION_TOKENS: SignalInfo(SignalKind.COUNTER, "tokens", "tokens generated"),
    Signal.SAMPLES: SignalInfo(SignalKind.COUNTER, "samples", "samples processed by batch inference or training"),
    Signal.BACKLOG: SignalInfo(
        SignalKind.GAUGE, "as spec.backlog.rate", "work of a batch or training job that is not done yet"
    ),
    Signal.BATCH_SIZE: SignalInfo(SignalKind.GAUGE, "requests", "mean size of the batches executed"),
    Signal.KV_CACHE_UTILIZATION: SignalInfo(SignalKind.GAUGE, "ratio", "share of the KV cache in use, 0 to 1"),
    Signal.TIME_TO_FIRST_TOKEN: SignalInfo(SignalKind.HISTOGRAM, "seconds", "arrival to first token"),
    Signal.INTER_TOKEN_LATENCY: SignalInfo(SignalKind.HISTOGRAM, "seconds", "time between two tokens of a request"),
    Signal.END_TO_END_LATENCY: SignalInfo(SignalKind.HISTOGRAM, "seconds", "arrival to the end of the answer"),
    Signal.QUEUE_TIME: SignalInfo(SignalKind.HISTOGRAM, "seconds", "arrival to the start of processing"),
    Signal.GPU_UTILIZATION: SignalInfo(SignalKind.GAUGE, "ratio", "share of time in which any kernel ran, 0 to 1"),
    Signal.GR_ENGINE_ACTIVE: SignalInfo(SignalKind.GAUGE, "ratio", "share of time the graphics engine was active"),
    Signal.SM_ACTIVE: SignalInfo(SignalKind.GAUGE, "ratio", "share of SMs with a warp in flight, 0 to 1"),
    Signal.TENSOR_ACTIVE: SignalInfo(SignalKind.GAUGE, "ratio", "share of cycles the tensor pipes were active"),
    Signal.DRAM_ACTIVE: SignalInfo(SignalKind.GAUGE, "ratio", "share of cycles device memory moved data"),
    Signal.POWER: SignalInfo(SignalKind.GAUGE, "watts", "board power of all GPUs of a pod"),
    Signal.SM_OCCUPANCY: SignalInfo(SignalKind.GAUGE, "ratio", "warps in flight, of the most that the SMs hold"),
    Signal.FP64_ACTIVE: SignalInfo(SignalKind.GAUGE, "ratio", "share of cycles the FP64 pipes were active"),
    Signal.FP32_ACTIVE: SignalInfo(SignalKind.GAUGE, "ratio", "share of cycles the FP32 pipes were active"),
    Signal.FP16_ACTIVE: SignalInfo(SignalKind.GAUGE, "ratio", "share of cycles the FP16 pipes were active, not tensor"),
    Signal.MEMORY_COPY_UTILIZATION: SignalInfo(
        SignalKind.GAUGE, "ratio", "share of time in which device memory was read or written at all"
    ),
    Signal.FRAMEBUFFER_USED: SignalInfo(SignalKind.GAUGE, "bytes", "device memory in use on all GPUs of a pod"),
    Signal.FRAMEBUFFER_FREE: SignalInfo(SignalKind.GAUGE, "bytes", "device memory free on all GPUs of a pod"),
    Signal.POWER_LIMIT: SignalInfo(SignalKind.GAUGE, "watts", "enforced power limit of all GPUs of a pod"),
    Signal.SM_CLOCK: SignalInfo(SignalKind.GAUGE, "hertz", "clock of the SMs"),
    Signal.MEMORY_CLOCK: SignalInfo(SignalKind.GAUGE, "hertz", "clock of the device memory"),
    Signal.GPU_TEMPERATURE: SignalInfo(SignalKind.GAUGE, "celsius", "temperature of the hottest GPU of a pod"),
    Signal.POWER_THROTTLED: SignalInfo(
        SignalKind.COUNTER, "seconds", "time in which the power limit held a GPU's clocks down; a share, per second"
    ),
    Signal.THERMAL_THROTTLED: SignalInfo(
        SignalKind.COUNTER, "seconds", "time in which heat held a GPU's clocks down; a share, per second"
    ),
    Signal.PCIE_SENT: SignalInfo(SignalKind.GAUGE, "bytes/s", "from all GPUs of a pod to the host over PCIe"),
    Signal.PCIE_RECEIVED: SignalInfo(SignalKind.GAUGE, "bytes/s", "from the host to all GPUs of a pod over PCIe"),
    Signal.NVLINK_SENT: SignalInfo(SignalKind.GAUGE, "bytes/s", "sent by all GPUs of a pod over NVLink"),
    Signal.NVLINK_RECEIVED: SignalInfo(SignalKind.GAUGE, "bytes/s", "received by all GPUs of a pod over NVLink"),
    Signal.GPU_COUNT: SignalInfo(SignalKind.GAUGE, "GPUs", "GPUs, or MIG instances, that were seen of a pod"),
    Signal.MODEL_FLOPS: SignalInfo(SignalKind.COUNTER, "FLOP", "work per GPU by the model server's own estimate"),
    Signal.MODEL_READ_BYTES: SignalInfo(
        SignalKind.COUNTER, "bytes", "read from device memory per GPU by the model server's own estimate"
    ),
    Signal.MODEL_WRITTEN_BYTES: SignalInfo(
        SignalKind.COUNTER, "bytes", "written to device memory per GPU by the model server's own estimate"
    ),
    Signal.CPU_USED: SignalInfo(SignalKind.COUNTER, "seconds", "CPU time that a pod uses; cores, per second"),
    Signal.CPU_THROTTLED: SignalInfo(SignalKind.GAUGE, "ratio", "share of CPU periods in which a CPU limit held it"),
    Signal.NETWORK_SENT: SignalInfo(SignalKind.COUNTER, "bytes", "sent by a pod over the network"),
    Signal.NETWORK_RECEIVED: SignalInfo(SignalKind.COUNTER, "bytes", "received by a pod over the network"),
    Signal.DISK_READ: SignalInfo(SignalKind.COUNTER, "bytes", "read by a pod from local disks"),
    Signal.DISK_WRITTEN: SignalInfo(SignalKind.COUNTER, "bytes", "written by a pod to local disks"),
}

LATENCY_SIGNALS = frozenset(name for name, info in CATALOGUE.items() if info.kind is SignalKind.HISTOGRAM)
THROUGHPUT_SIGNALS = frozenset(
    {Signal.REQUESTS_FINISHED, Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS, Signal.SAMPLES}
)
