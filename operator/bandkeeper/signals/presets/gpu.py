"""GPU signals, the same for every runtime: of dcgm-exporter from 4.9 on, of dcgm-exporter before, of our own agent.

The workload's pod stands in `pod` where Prometheus honours the exporter's labels and in `exported_pod` where it does
not (the chart's default; `pod` is the exporter's own then). A pod's GPUs are told apart by index and MIG instance
alone: other labels differ between the exporters' versions. docs/gpu-signals.md is the table of what stands here.
"""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.signals.sources import Across, Clock, Exporter, Labels, Read, Series, Source

NEW_DCGM, DCGM, AGENT = "dcgm-exporter 4.9", "dcgm-exporter", "bandkeeper agent"

# GPU_UTIL is not there under MIG, and any counter can be missing from a list of one's own: several have to do.
_MARKS = {
    NEW_DCGM: (
        "DCGM_FI_DEV_GPU_UTIL_RATIO",
        "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO",
        "DCGM_FI_DEV_FB_USED_BYTES",
        "DCGM_FI_DEV_BOARD_POWER_WATTS",
    ),
    DCGM: (
        "DCGM_FI_DEV_GPU_UTIL",
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        "DCGM_FI_DEV_FB_USED",
        "DCGM_FI_DEV_POWER_USAGE",
        # Under these names in 4.9 too, and nothing tells whose they are: they keep their own time.
        "DCGM_FI_PROF_PCIE_TX_BYTES",
        "DCGM_FI_PROF_NVLINK_TX_BYTES",
    ),
    AGENT: ("bandkeeper_gpu_info",),
}
# How busy each GPU is: the graphics engine, else whether any kernel runs.
_BUSY = {
    NEW_DCGM: (("DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO", 1.0), ("DCGM_FI_DEV_GPU_UTIL_RATIO", 1.0)),
    DCGM: (("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.0), ("DCGM_FI_DEV_GPU_UTIL", 0.01)),
    AGENT: (("bandkeeper_gpu_graphics_engine_active_ratio", 1.0), ("bandkeeper_gpu_busy_ratio", 1.0)),
}
_CLOCK = Clock(
    exporter="dcgm-exporter",
    exporters=tuple(Exporter(name, metrics) for name, metrics in _MARKS.items()),
    labels=(Labels("exported_namespace", "exported_pod"), Labels()),
    gpu=True,
    identity=("gpu", "device", "GPU_I_ID", "mig"),
)
_HINT = (
    "dcgm-exporter must run with DCGM_EXPORTER_KUBERNETES=true, and export this field; or install the node agent of "
    "Bandkeeper"
)

# DCGM's blanks are 2147483632 and more (32 bits), 1.4e14 (floating point) and 9.2e18 (64 bits).
_NO_SUCH_NUMBER, _NO_SUCH_SIZE, _NO_SUCH_COUNT = 1e9, 1e14, 9e18
_PERCENT, _MIB, _MHZ, _NANOSECOND = 0.01, 1024.0**2, 1e6, 1e-9
_BOARD = '{GPU_I_ID=""}'  # under MIG every instance shows the board's own figure: nobody's share is known


def _gauge(
    new: str,
    classic: str,
    agent: str,
    *,
    scale: float = 1.0,
    across: Across = Across.MEAN,
    blank: float = _NO_SUCH_NUMBER,
    of_board: bool = False,
    aside: bool = True,
) -> Source:
    """`scale` is that of the classic metric: the others are in base units."""
    board = _BOARD if of_board else ""
    return Source(
        read=Read.LEVEL,
        any_of=(
            Series((classic + board,), scale, exporter=DCGM, blank=_NO_SUCH_NUMBER if scale > 1 else blank),
            Series((new + board,), exporter=NEW_DCGM, blank=blank),
            Series((f"bandkeeper_gpu_{agent}",), exporter=AGENT, blank=blank),
        ),
        clock=_CLOCK,
        across=across,
        optional=True,
        aside=aside,
        hint=_HINT,
    )


def _flow(metric: str, agent: str) -> Source:
    """Bytes per second, which all versions of dcgm-exporter write under one name."""
    return Source(
        read=Read.LEVEL,
        any_of=(
            Series((metric + _BOARD,), exporter=DCGM, blank=_NO_SUCH_SIZE),
            Series((f"bandkeeper_gpu_{agent}",), exporter=AGENT, blank=_NO_SUCH_SIZE),
        ),
        clock=_CLOCK,
        across=Across.SUM,
        optional=True,
        aside=True,
        hint=_HINT,
    )


def _throttled(new: str, classic: str, agent: str) -> Source:
    """Counters of time: seconds per second are the share of time. Of several GPUs the one held down most counts."""
    return Source(
        read=Read.RATE,
        any_of=(
            Series((classic,), _NANOSECOND, exporter=DCGM, blank=_NO_SUCH_COUNT),
            Series((new,), exporter=NEW_DCGM, blank=_NO_SUCH_COUNT * _NANOSECOND),
            Series((f"bandkeeper_gpu_{agent}",), exporter=AGENT, blank=_NO_SUCH_COUNT * _NANOSECOND),
        ),
        clock=_CLOCK,
        across=Across.MOST,
        optional=True,
        aside=True,
        hint=_HINT,
    )


SOURCES = {
    # What the classes are made of, read with the decision's own signals.
    Signal.GPU_UTILIZATION: _gauge(
        "DCGM_FI_DEV_GPU_UTIL_RATIO", "DCGM_FI_DEV_GPU_UTIL", "busy_ratio", scale=_PERCENT, aside=False
    ),
    Signal.GR_ENGINE_ACTIVE: _gauge(
        "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO",
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        "graphics_engine_active_ratio",
        aside=False,
    ),
    Signal.SM_ACTIVE: _gauge("DCGM_FI_PROF_SM_UTIL_RATIO", "DCGM_FI_PROF_SM_ACTIVE", "sm_active_ratio", aside=False),
    Signal.TENSOR_ACTIVE: _gauge(
        "DCGM_FI_PROF_TENSOR_UTIL_RATIO", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "tensor_active_ratio", aside=False
    ),
    Signal.DRAM_ACTIVE: _gauge(
        "DCGM_FI_PROF_DRAM_UTIL_RATIO", "DCGM_FI_PROF_DRAM_ACTIVE", "dram_active_ratio", aside=False
    ),
    Signal.POWER: _gauge(
        "DCGM_FI_DEV_BOARD_POWER_WATTS",
        "DCGM_FI_DEV_POWER_USAGE",
        "power_watts",
        across=Across.SUM,
        of_board=True,
        aside=False,
    ),
    # What explains them.
    Signal.SM_OCCUPANCY: _gauge("DCGM_FI_PROF_SM_OCCUPANCY_RATIO", "DCGM_FI_PROF_SM_OCCUPANCY", "sm_occupancy_ratio"),
    Signal.FP64_ACTIVE: _gauge("DCGM_FI_PROF_FP64_UTIL_RATIO", "DCGM_FI_PROF_PIPE_FP64_ACTIVE", "fp64_active_ratio"),
    Signal.FP32_ACTIVE: _gauge("DCGM_FI_PROF_FP32_UTIL_RATIO", "DCGM_FI_PROF_PIPE_FP32_ACTIVE", "fp32_active_ratio"),
    Signal.FP16_ACTIVE: _gauge("DCGM_FI_PROF_FP16_UTIL_RATIO", "DCGM_FI_PROF_PIPE_FP16_ACTIVE", "fp16_active_ratio"),
    Signal.MEMORY_COPY_UTILIZATION: _gauge(
        "DCGM_FI_DEV_MEMORY_UTIL_RATIO", "DCGM_FI_DEV_MEM_COPY_UTIL", "memory_copy_ratio", scale=_PERCENT
    ),
    Signal.FRAMEBUFFER_USED: _gauge(
        "DCGM_FI_DEV_FB_USED_BYTES",
        "DCGM_FI_DEV_FB_USED",
        "memory_used_bytes",
        scale=_MIB,
        across=Across.SUM,
        blank=_NO_SUCH_SIZE,
    ),
    Signal.FRAMEBUFFER_FREE: _gauge(
        "DCGM_FI_DEV_FB_FREE_BYTES",
        "DCGM_FI_DEV_FB_FREE",
        "memory_free_bytes",
        scale=_MIB,
        across=Across.SUM,
        blank=_NO_SUCH_SIZE,
    ),
    Signal.POWER_LIMIT: _gauge(
        "DCGM_FI_DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS",
        "DCGM_FI_DEV_ENFORCED_POWER_LIMIT",
        "power_limit_watts",
        across=Across.SUM,
        of_board=True,
    ),
    Signal.SM_CLOCK: _gauge(
        "DCGM_FI_DEV_SM_CLOCK_HERTZ", "DCGM_FI_DEV_SM_CLOCK", "sm_clock_hertz", scale=_MHZ, blank=_NO_SUCH_SIZE
    ),
    Signal.MEMORY_CLOCK: _gauge(
        "DCGM_FI_DEV_MEMORY_CLOCK_HERTZ",
        "DCGM_FI_DEV_MEM_CLOCK",
        "memory_clock_hertz",
        scale=_MHZ,
        blank=_NO_SUCH_SIZE,
    ),
    Signal.GPU_TEMPERATURE: _gauge(
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS", "DCGM_FI_DEV_GPU_TEMP", "temperature_celsius", across=Across.MOST
    ),
    Signal.POWER_THROTTLED: _throttled(
        "DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL", "DCGM_FI_DEV_POWER_VIOLATION", "power_throttled_seconds_total"
    ),
    Signal.THERMAL_THROTTLED: _throttled(
        "DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL",
        "DCGM_FI_DEV_THERMAL_VIOLATION",
        "thermal_throttled_seconds_total",
    ),
    Signal.PCIE_SENT: _flow("DCGM_FI_PROF_PCIE_TX_BYTES", "pcie_sent_bytes_per_second"),
    Signal.PCIE_RECEIVED: _flow("DCGM_FI_PROF_PCIE_RX_BYTES", "pcie_received_bytes_per_second"),
    Signal.NVLINK_SENT: _flow("DCGM_FI_PROF_NVLINK_TX_BYTES", "nvlink_sent_bytes_per_second"),
    Signal.NVLINK_RECEIVED: _flow("DCGM_FI_PROF_NVLINK_RX_BYTES", "nvlink_received_bytes_per_second"),
    Signal.GPU_COUNT: Source(
        read=Read.DEVICES,
        any_of=tuple(
            Series(metrics[:4], exporter=name, blank=_NO_SUCH_NUMBER, busy=_BUSY[name])
            for name, metrics in _MARKS.items()
        ),
        clock=_CLOCK,
        optional=True,
        aside=True,
        hint=_HINT,
    ),
}
