"""GPU signals of dcgm-exporter, the same for every runtime: classic names (to 4.8) and those from 4.9 on.

The workload's pod stands in `pod` where Prometheus honours the exporter's labels and in `exported_pod` where it does
not (the chart's default; `pod` is the exporter's own then). A pod's GPUs are averaged.
"""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.signals.sources import Across, Clock, Labels, Read, Series, Source

_CLOCK = Clock(
    metrics=("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_GPU_UTIL_RATIO"),
    exporter="dcgm-exporter",
    labels=(Labels("exported_namespace", "exported_pod"), Labels()),
    gpu=True,
)
_HINT = "dcgm-exporter must run with DCGM_EXPORTER_KUBERNETES=true, and export this field"


def _gauge(*any_of: Series, across: Across = Across.MEAN) -> Source:
    return Source(read=Read.LEVEL, any_of=any_of, clock=_CLOCK, across=across, optional=True, hint=_HINT)


SOURCES = {
    # 4.9 gives the ratio that its name says; before, the same metric was a percentage under its classic name.
    Signal.GPU_UTILIZATION: _gauge(
        Series(("DCGM_FI_DEV_GPU_UTIL",), 0.01),
        Series(("DCGM_FI_DEV_GPU_UTIL_RATIO",)),
    ),
    Signal.GR_ENGINE_ACTIVE: _gauge(
        Series(("DCGM_FI_PROF_GR_ENGINE_ACTIVE",)),
        Series(("DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO",)),
    ),
    Signal.SM_ACTIVE: _gauge(Series(("DCGM_FI_PROF_SM_ACTIVE",)), Series(("DCGM_FI_PROF_SM_UTIL_RATIO",))),
    Signal.TENSOR_ACTIVE: _gauge(
        Series(("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",)),
        Series(("DCGM_FI_PROF_TENSOR_UTIL_RATIO",)),
    ),
    Signal.DRAM_ACTIVE: _gauge(Series(("DCGM_FI_PROF_DRAM_ACTIVE",)), Series(("DCGM_FI_PROF_DRAM_UTIL_RATIO",))),
    Signal.POWER: _gauge(
        Series(("DCGM_FI_DEV_POWER_USAGE",)),
        Series(("DCGM_FI_DEV_BOARD_POWER_WATTS",)),
        across=Across.SUM,
    ),
}
