"""Every metric that the agent exports: name, kind, labels, unit and source. docs/agent.md has this table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LABELS = ("gpu", "uuid", "model", "namespace", "pod", "container", "mig", "shared")
"""Labels of every `bandkeeper_gpu_` metric; one series for each container that holds the GPU or GPU instance."""


class Kind(StrEnum):
    """How Prometheus reads it."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported metric; `labels` are its own, `mean` says that the window's mean is exported."""

    name: str
    kind: Kind
    meaning: str
    source: str
    labels: tuple[str, ...] = ()
    mean: bool = False


def _gpu(name: str, meaning: str, source: str, *, mean: bool = False) -> Metric:
    return Metric(f"bandkeeper_gpu_{name}", Kind.GAUGE, meaning, source, mean=mean)


def _counter(name: str, meaning: str, source: str) -> Metric:
    return Metric(f"bandkeeper_gpu_{name}_total", Kind.COUNTER, meaning, source)


def _ratio(name: str, meaning: str, source: str) -> Metric:
    return _gpu(f"{name}_ratio", f"{meaning}, 0 to 1.", source, mean=True)


INFO = _gpu("info", "1 for each GPU or GPU instance and container that holds it, whatever else fails.", "NVML, kubelet")
UP = _gpu("up", "1 while the GPU answers, 0 when it is lost.", "NVML")

BUSY = _ratio("busy", "Share of time in which a kernel ran, however small", "NVML utilisation rates")
MEMORY_COPY = _ratio(
    "memory_copy", "Share of time in which device memory was read or written", "NVML utilisation rates"
)
MEMORY_TOTAL = _gpu("memory_total_bytes", "Device memory, bytes.", "NVML memory info")
MEMORY_USED = _gpu(
    "memory_used_bytes", "Device memory in use, without what the driver reserves, bytes.", "NVML memory info"
)
MEMORY_FREE = _gpu("memory_free_bytes", "Device memory that can be allocated, bytes.", "NVML memory info")
POWER = _gpu("power_watts", "Power drawn by the board, watts.", "NVML power usage", mean=True)
POWER_LIMIT = _gpu("power_limit_watts", "Power limit in force, watts.", "NVML enforced power limit")
ENERGY = _counter("energy_joules", "Energy since the driver was loaded, joules.", "NVML total energy")
SM_CLOCK = _gpu("sm_clock_hertz", "Clock of the SMs, hertz.", "NVML clock info", mean=True)
MEMORY_CLOCK = _gpu("memory_clock_hertz", "Clock of the memory, hertz.", "NVML clock info", mean=True)
TEMPERATURE = _gpu("temperature_celsius", "Temperature of the chip, degrees Celsius.", "NVML temperature")
POWER_THROTTLED = _counter(
    "power_throttled_seconds",
    "Seconds in which a power limit held the clocks down.",
    "NVML clock event reasons, one look a pass",
)
THERMAL_THROTTLED = _counter(
    "thermal_throttled_seconds",
    "Seconds in which heat held the clocks down.",
    "NVML clock event reasons, one look a pass",
)
ECC_CORRECTED = _counter(
    "ecc_corrected_errors", "ECC errors corrected since the driver was loaded.", "NVML total ECC errors"
)
ECC_UNCORRECTED = _counter("ecc_uncorrected_errors", "ECC errors not corrected, since then.", "NVML total ECC errors")
PROCESSES = _gpu("processes", "Processes with a compute context.", "NVML compute processes")

GR_ENGINE_ACTIVE = _ratio(
    "graphics_engine_active", "Share of time in which the graphics or compute engine was active", "GPM 1"
)
SM_ACTIVE = _ratio("sm_active", "Share of SMs with a warp at work", "GPM 2")
SM_OCCUPANCY = _ratio("sm_occupancy", "Resident warps over the most that fit", "GPM 3")
TENSOR_ACTIVE = _ratio("tensor_active", "Share of time in which the tensor pipes worked", "GPM 5")
DRAM_ACTIVE = _ratio("dram_active", "Memory bandwidth in use over its theoretical most", "GPM 10")
FP64_ACTIVE = _ratio("fp64_active", "Share of time in which the FP64 pipes worked", "GPM 11")
FP32_ACTIVE = _ratio("fp32_active", "Share of time in which the FP32 pipes worked", "GPM 12")
FP16_ACTIVE = _ratio("fp16_active", "Share of time in which the FP16 pipes worked, tensor pipes left out", "GPM 13")

_PCIE = "GPM 20 and 21, else NVML PCIe throughput of one GPU a pass"
PCIE_SENT = _gpu("pcie_sent_bytes_per_second", "PCIe traffic from the GPU, bytes per second.", _PCIE, mean=True)
PCIE_RECEIVED = _gpu("pcie_received_bytes_per_second", "PCIe traffic to the GPU, bytes per second.", _PCIE, mean=True)
NVLINK_SENT = _gpu(
    "nvlink_sent_bytes_per_second", "NVLink traffic from the GPU, bytes per second.", "GPM 61", mean=True
)
NVLINK_RECEIVED = _gpu(
    "nvlink_received_bytes_per_second", "NVLink traffic to the GPU, bytes per second.", "GPM 60", mean=True
)

OF_GPUS = (  # in the order of /metrics
    INFO,
    UP,
    BUSY,
    GR_ENGINE_ACTIVE,
    SM_ACTIVE,
    SM_OCCUPANCY,
    TENSOR_ACTIVE,
    DRAM_ACTIVE,
    FP64_ACTIVE,
    FP32_ACTIVE,
    FP16_ACTIVE,
    MEMORY_COPY,
    MEMORY_TOTAL,
    MEMORY_USED,
    MEMORY_FREE,
    POWER,
    POWER_LIMIT,
    ENERGY,
    SM_CLOCK,
    MEMORY_CLOCK,
    TEMPERATURE,
    POWER_THROTTLED,
    THERMAL_THROTTLED,
    PCIE_SENT,
    PCIE_RECEIVED,
    NVLINK_SENT,
    NVLINK_RECEIVED,
    ECC_CORRECTED,
    ECC_UNCORRECTED,
    PROCESSES,
)
"""Metrics with LABELS."""


def _agent(name: str, kind: Kind, meaning: str, *labels: str) -> Metric:
    return Metric(f"bandkeeper_agent_{name}", kind, meaning, "agent", labels)


VERSIONS = _agent("info", Kind.GAUGE, "1; the versions of the agent and of the driver.", "version", "driver")
GPUS = _agent("gpus", Kind.GAUGE, "Physical GPUs that answered in the last pass.")
PASSES = _agent("passes_total", Kind.COUNTER, "Passes over all GPUs.")
PASS_SECONDS = _agent("pass_seconds_total", Kind.COUNTER, "Seconds spent in passes, waiting for the driver included.")
READ_FAILURES = _agent(
    "read_failures_total", Kind.COUNTER, "NVML calls that failed, by function and error.", "call", "error"
)
PODS_KNOWN = _agent("pods_known", Kind.GAUGE, "1 while the kubelet says which pod holds which GPU, else 0.")
PODS_AGE = _agent("pods_age_seconds", Kind.GAUGE, "Age of the kubelet's last answer; absent before the first.")
UNMATCHED = _agent(
    "unmatched_devices", Kind.GAUGE, "Devices that pods hold by the kubelet's word and that are no GPU seen here."
)

OF_AGENT = (VERSIONS, GPUS, PASSES, PASS_SECONDS, READ_FAILURES, PODS_KNOWN, PODS_AGE, UNMATCHED)
"""Metrics about the agent itself."""


def table() -> str:
    """The table of docs/agent.md, one row a metric."""
    rows = ["| metric | type | labels | meaning | from |\n", "|---|---|---|---|---|\n"]
    for metric in (*OF_GPUS, *OF_AGENT):
        labels = "all of a GPU" if metric in OF_GPUS else ", ".join(f"`{label}`" for label in metric.labels) or "-"
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} | {metric.source} |\n")
    return "".join(rows)
