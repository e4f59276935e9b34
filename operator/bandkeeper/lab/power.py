"""What a simulated GPU draws, from what it does. Assumed, not measured: shares of the way from idle to its peak.

A GPU at rest with a model loaded draws a fifth of its board power (H100, A100 and T4: 15 to 35 percent).
"""

from __future__ import annotations

from bandkeeper.lab.server import Server
from bandkeeper.quality.classify import DRAM_PEAK, TENSOR_PEAK, of_peak
from bandkeeper.quality.peaks import DEFAULT

IDLE = 0.2
BUSY, MEMORY, COMPUTE = 0.3, 0.3, 0.4


def watts(server: Server, busy: float, tensor: float, dram: float) -> float | None:
    """Watts of one GPU at these shares of time and of its peaks; None where the GPU is not known."""
    peaks = DEFAULT.of(server.gpu)
    most = peaks.power if server.watts is None and peaks is not None else server.watts
    if most is None:
        return None
    memory, compute = min(1.0, of_peak(dram, DRAM_PEAK)), min(1.0, of_peak(tensor, TENSOR_PEAK))
    return most * (IDLE + (1 - IDLE) * (BUSY * min(1.0, busy) + MEMORY * memory + COMPUTE * compute))
