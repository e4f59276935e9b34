"""vLLM, V1 engine (0.33's names; older names where they differ)."""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import Batching
from bandkeeper.signals.presets import containers, gpu, work
from bandkeeper.signals.sources import Across, Clock, Preset, Read, Series, Source

_CLOCK = Clock(metrics=("vllm:num_requests_running",), exporter="vLLM")


def _level(*metrics: str, across: Across = Across.SUM) -> Source:
    any_of = tuple(Series((metric,)) for metric in metrics)
    return Source(read=Read.LEVEL, any_of=any_of, clock=_CLOCK, across=across)


def _rate(metric: str, *, optional: bool = False, hint: str = "") -> Source:
    return Source(read=Read.RATE, any_of=(Series((metric,)),), clock=_CLOCK, optional=optional, hint=hint)


def _histogram(*metrics: str) -> Source:
    any_of = tuple(Series((metric,)) for metric in metrics)
    return Source(read=Read.HISTOGRAM, any_of=any_of, clock=_CLOCK)


PRESET = Preset(
    name="VLLM",
    batching=Batching.CONTINUOUS,
    # vllm/engine/arg_utils.py, get_batch_defaults: 256, and 1024 on GPUs of 70 GiB and more other than the A100. The
    # smaller one errs towards more replicas.
    default_capacity=256,
    capacity_names=("--max-num-seqs", "MAX_NUM_SEQS"),
    cap_names=("--max-num-active-seqs", "MAX_NUM_ACTIVE_SEQS"),
    queue_bound_names=("--max-num-queued-reqs", "MAX_NUM_QUEUED_REQS"),
    # All tokens of a step, so with a full batch it reads as many prompt tokens fewer as it decodes for.
    prefill_tokens_names=("--max-num-batched-tokens", "MAX_NUM_BATCHED_TOKENS"),
    sources={
        Signal.REQUESTS_RUNNING: _level("vllm:num_requests_running"),
        Signal.REQUESTS_WAITING: _level("vllm:num_requests_waiting"),
        Signal.REQUESTS_FINISHED: _rate("vllm:request_success_total"),  # every finished_reason, abort and error too
        Signal.REQUESTS_FAILED: _rate('vllm:request_success_total{finished_reason="error"}', optional=True),
        Signal.REQUESTS_REJECTED: _rate(
            "vllm:admission_rejections_total", optional=True, hint="vLLM counts rejections from 0.33 on"
        ),
        Signal.PREEMPTIONS: _rate("vllm:num_preemptions_total"),
        Signal.PROMPT_TOKENS: _rate("vllm:prompt_tokens_total"),
        Signal.GENERATION_TOKENS: _rate("vllm:generation_tokens_total"),
        # Engines of one pod have a cache each: the fullest one preempts first.
        Signal.KV_CACHE_UTILIZATION: _level(
            "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", across=Across.MOST
        ),
        Signal.TIME_TO_FIRST_TOKEN: _histogram("vllm:time_to_first_token_seconds"),
        Signal.INTER_TOKEN_LATENCY: _histogram(
            "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"
        ),
        Signal.END_TO_END_LATENCY: _histogram("vllm:e2e_request_latency_seconds"),
        Signal.QUEUE_TIME: _histogram("vllm:request_queue_time_seconds"),
        **work.SOURCES,
        **gpu.SOURCES,
        **containers.SOURCES,
    },
)
