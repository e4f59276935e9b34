"""FLOP and bytes that vLLM and SGLang reckon their work to be, per GPU; both need --enable-mfu-metrics for it."""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.signals.sources import Across, Clock, Exporter, Read, Series, Source

_SERVERS = {"vLLM": ("vllm", "vllm:num_requests_running"), "SGLang": ("sglang", "sglang:num_running_reqs")}
_CLOCK = Clock(
    exporter="vLLM or SGLang",
    exporters=tuple(Exporter(name, (running,)) for name, (_, running) in _SERVERS.items()),
)


def _per_gpu(counter: str) -> Source:
    """The mean of a pod's engines and ranks, each of which counts for one GPU."""
    return Source(
        read=Read.RATE,
        any_of=tuple(
            Series((f"{prefix}:estimated_{counter}_per_gpu_total",), exporter=name)
            for name, (prefix, _) in _SERVERS.items()
        ),
        clock=_CLOCK,
        across=Across.MEAN,
        optional=True,
        aside=True,
        hint="start the server with --enable-mfu-metrics",
    )


SOURCES = {
    Signal.MODEL_FLOPS: _per_gpu("flops"),
    Signal.MODEL_READ_BYTES: _per_gpu("read_bytes"),
    Signal.MODEL_WRITTEN_BYTES: _per_gpu("write_bytes"),
}
