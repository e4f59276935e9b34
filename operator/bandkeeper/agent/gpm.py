"""GPM (Hopper and newer): what the SMs, pipes, memory and links did between two samples of one GPU or GPU instance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pynvml

from bandkeeper.agent import catalogue
from bandkeeper.agent.catalogue import Metric

_MIB = float(2**20)  # unit of the rates by nvml.h; see docs/agent.md
Measures = Mapping[int, tuple[Metric, float]]
"""Metric and scale by GPM's number."""

RATIOS: Measures = {
    pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL: (catalogue.GR_ENGINE_ACTIVE, 0.01),
    pynvml.NVML_GPM_METRIC_SM_UTIL: (catalogue.SM_ACTIVE, 0.01),
    pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: (catalogue.SM_OCCUPANCY, 0.01),
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: (catalogue.TENSOR_ACTIVE, 0.01),
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: (catalogue.DRAM_ACTIVE, 0.01),
    pynvml.NVML_GPM_METRIC_FP64_UTIL: (catalogue.FP64_ACTIVE, 0.01),
    pynvml.NVML_GPM_METRIC_FP32_UTIL: (catalogue.FP32_ACTIVE, 0.01),
    pynvml.NVML_GPM_METRIC_FP16_UTIL: (catalogue.FP16_ACTIVE, 0.01),
}
RATES: Measures = {
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: (catalogue.PCIE_SENT, _MIB),
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: (catalogue.PCIE_RECEIVED, _MIB),
    pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC: (catalogue.NVLINK_SENT, _MIB),
    pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC: (catalogue.NVLINK_RECEIVED, _MIB),
}
LEAST_APART_S = 0.1
"""The hardware renews its counters this often; samples closer together say nothing."""


class Gpm:
    """Two sample buffers in turn: the older is the base of the next reading."""

    def __init__(self, gpu: Any, instance: int | None, measures: Measures, clock: Callable[[], float]) -> None:
        self._gpu = gpu
        self._measures = measures
        self._instance = instance
        self._clock = clock
        self._base: Any = None
        self._spare: Any = None
        self._base_at: float | None = None
        self._query = pynvml.c_nvmlGpmMetricsGet_t()
        self._query.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._query.numMetrics = len(measures)
        for asked, measure in zip(self._query.metrics, measures, strict=False):
            asked.metricId = measure

    def read(self, refused: Callable[[int], None]) -> Iterator[tuple[Metric, float]]:
        """Means since the reading before; nothing on the first, and NVMLError where no sample can be had.

        A measure that the driver refuses is left out and its error code told to `refused`.
        """
        at = self._clock()
        if self._base_at is not None and at - self._base_at <= LEAST_APART_S:
            return
        if self._spare is None:
            self._spare = pynvml.nvmlGpmSampleAlloc()
        if self._instance is None:
            pynvml.nvmlGpmSampleGet(self._gpu, self._spare)
        else:
            pynvml.nvmlGpmMigSampleGet(self._gpu, self._instance, self._spare)
        older, newer = self._base, self._spare
        first = self._base_at is None
        self._base, self._spare, self._base_at = newer, older, at
        if first:
            return
        self._query.sample1, self._query.sample2 = older, newer
        pynvml.nvmlGpmMetricsGet(self._query)
        for answered in self._query.metrics[: len(self._measures)]:
            metric, scale = self._measures[answered.metricId]
            if answered.nvmlReturn != pynvml.NVML_SUCCESS:
                refused(answered.nvmlReturn)
            elif math.isfinite(answered.value):
                yield metric, answered.value * scale

    def close(self) -> None:
        """Give the buffers back; NVMLError when the driver is gone."""
        for buffer in (self._base, self._spare):
            if buffer is not None:
                pynvml.nvmlGpmSampleFree(buffer)
        self._base = self._spare = self._base_at = None
