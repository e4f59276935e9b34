"""Triton Inference Server. It has no gauge of running requests and no histograms of ordinary models.

Running follows from Little's law: each request adds its whole compute time to the counters, so seconds of compute per
second are the requests in compute. Percentiles come from summaries over the last minute, which are off by default;
they cannot be merged, so the worst pod counts.
"""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import Batching
from bandkeeper.signals.presets import containers, gpu
from bandkeeper.signals.sources import Clock, Preset, Read, Series, Source

_CLOCK = Clock(metrics=("nv_inference_request_success", "nv_inference_pending_request_count"), exporter="Triton")
_MICROSECOND = 1e-6
_SUMMARY_HINT = (
    "start Triton with --metrics-config summary_latencies=true; its percentiles are 50, 90, 95 and 99 unless "
    "--metrics-config summary_quantiles says otherwise"
)


def _level(metric: str, *, hint: str = "") -> Source:
    return Source(read=Read.LEVEL, any_of=(Series((metric,)),), clock=_CLOCK, hint=hint)


def _rate(*metrics: str, scale: float = 1.0, optional: bool = False) -> Source:
    return Source(read=Read.RATE, any_of=(Series(metrics, scale),), clock=_CLOCK, optional=optional)


def _summary(metric: str) -> Source:
    any_of = (Series((metric,), _MICROSECOND),)
    return Source(read=Read.SUMMARY, any_of=any_of, clock=_CLOCK, hint=_SUMMARY_HINT)


PRESET = Preset(
    name="Triton",
    batching=Batching.DYNAMIC,
    # Triton's own --backend-config=default-max-batch-size, for models whose configuration gives none. Model
    # configurations are files in a repository: a container can repeat its limits in the environment variables below.
    default_capacity=4,
    capacity_names=("MAX_BATCH_SIZE",),
    queue_bound_names=("MAX_QUEUE_SIZE",),
    sources={
        Signal.REQUESTS_RUNNING: _rate(
            "nv_inference_compute_infer_duration_us",
            "nv_inference_compute_input_duration_us",
            "nv_inference_compute_output_duration_us",
            scale=_MICROSECOND,
        ),
        Signal.REQUESTS_WAITING: _level(
            "nv_inference_pending_request_count", hint="a Triton without nv_inference_pending_request_count is too old"
        ),
        Signal.REQUESTS_FINISHED: _rate(
            "nv_inference_request_success", 'nv_inference_request_failure{reason!="REJECTED"}'
        ),
        Signal.REQUESTS_FAILED: _rate('nv_inference_request_failure{reason!~"REJECTED|CANCELED"}', optional=True),
        Signal.REQUESTS_REJECTED: _rate('nv_inference_request_failure{reason="REJECTED"}', optional=True),
        Signal.SAMPLES: _rate("nv_inference_count"),
        Signal.BATCH_SIZE: Source(
            read=Read.RATE,
            any_of=(Series(("nv_inference_count",), per="nv_inference_exec_count"),),
            clock=_CLOCK,
            optional=True,
            hint="nothing was executed",
        ),
        Signal.END_TO_END_LATENCY: _summary("nv_inference_request_summary_us"),
        Signal.QUEUE_TIME: _summary("nv_inference_queue_summary_us"),
        Signal.TIME_TO_FIRST_TOKEN: Source(
            read=Read.HISTOGRAM,
            any_of=(Series(("nv_inference_first_response_histogram_ms",), 1e-3),),
            clock=_CLOCK,
            hint="only decoupled models have it, with --metrics-config histogram_latencies=true",
        ),
        **gpu.SOURCES,
        **containers.SOURCES,
    },
)
