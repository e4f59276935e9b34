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
    Signal.POWER: SignalInfo(SignalKind.GAUGE, "watts", "board power"),
}

LATENCY_SIGNALS = frozenset(name for name, info in CATALOGUE.items() if info.kind is SignalKind.HISTOGRAM)
THROUGHPUT_SIGNALS = frozenset(
    {Signal.REQUESTS_FINISHED, Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS, Signal.SAMPLES}
)
