"""What a run gave, for machines: the documented, versioned JSON. The report draws nothing that is not in here."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION: Literal[1] = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SLOResult(_Part):
    """One promise over the judged time. `attainment` is a share: of requests for TTFT and end to end, of tokens for
    InterTokenLatency, of judged intervals with waiting work for a throughput; failed and unserved requests are misses.
    None: nothing was asked for. `threshold` is in seconds, or a rate per second where `percentile` is None.
    """

    signal: str
    percentile: int | None
    threshold: float
    attainment: float | None
    value: float | None = Field(description="the percentile reached, seconds, or the mean rate per second")


class Counts(_Part):
    """Requests of the judged time by their end. `errors` were refused, aborted or failed; `unserved` did not end."""

    arrived: int
    finished: int
    errors: int
    rejected: int
    unserved: int


class Move(_Part):
    """A change that the rule asked for; `why` is its own message."""

    at_s: float
    replicas_from: int
    replicas_to: int
    cap_from: int | None
    cap_to: int | None
    reason: str
    why: str


class PowerResult(_Part):
    """Power of the ready GPU that draws most, against the policy's limit; `above` is the share of judged minutes, one
    begun with each interval, whose mean is above it. None: no GPU was ready, or what it draws is not known.
    """

    limit_watts: float
    mean_watts: float | None
    most_watts: float | None = Field(description="the highest mean of a minute")
    above: float | None


class Series(_Part):
    """What happened over time, one value per interval that ends at `at_s`; None where there is no value.

    Attributes
    ----------
    arrived_per_s, finished_per_s, failed_per_s
        Rates over the interval, requests per second.
    ready, pending, wanted, cap, running, waiting
        Levels at `at_s`; `pending` counts all that was ordered and does not serve yet.
    utilization
        Offered work over what the ready replicas sustain at the best batch, 60 s mean; above 1 is overload.
    busy, compute, memory
        Means of the ready GPUs: share of time with a kernel running, tensor and DRAM activity relative to peak.
    quality
        Quality class of the interval.
    slo_values
        By position in `slos`: the percentile of the interval in seconds, or the rate per second.
    watts
        Power of the ready GPU that draws most; empty where the policy limits no power.
    """

    at_s: list[float]
    arrived_per_s: list[float]
    finished_per_s: list[float]
    failed_per_s: list[float]
    ready: list[int]
    pending: list[int]
    wanted: list[int]
    cap: list[int]
    running: list[int]
    waiting: list[int]
    utilization: list[float | None]
    busy: list[float | None]
    compute: list[float | None]
    memory: list[float | None]
    quality: list[str]
    slo_values: list[list[float | None]]
    watts: list[float | None] = []


class Result(_Part):
    """One run of one rule.

    Attributes
    ----------
    warmup_s
        Time that counts neither in cost nor in attainment; `start_replicas` was a floor during it.
    gpu_hours
        From the order of each pod to its end, after the warm-up, times the GPUs of a replica.
    gpu_hours_wasted
        The part of them beyond the work done: GPU-hours less finished work at the best batch; cold starts included.
    gpu_hours_by_rule
        GPU-hours of ordered replicas after the warm-up that would not have been held, had one rule alone been left out
        at each look; `work` is what the work takes, `unknown` those of which nobody knew. They do not add up. None of
        a rule that does not tell.
    time_in_band
        Share of judged intervals with utilisation inside the policy's band; None without a value.
    attainment_both
        Share of requests that kept every latency promise: a request keeps the InterTokenLatency promise when that
        percentile of its own tokens does.
    scale_actions, batch_actions
        Changes after the warm-up.
    power
        None where the policy limits no power.
    oscillations
        Changes of direction of the replica count within 10 minutes, after the warm-up.
    """

    version: Literal[1] = VERSION
    rule: str
    policy: str
    objective: str
    band_low: float
    band_high: float
    min_replicas: int
    max_replicas: int
    server: str
    model: str
    gpu: str
    workload: str
    notes: list[str]
    seed: int
    duration_s: float
    warmup_s: float
    start_replicas: int
    cold_start_s: float
    slos: list[SLOResult]
    attainment_both: float | None
    gpu_hours: float
    gpu_hours_wasted: float
    gpu_hours_by_rule: dict[str, float] | None = None
    time_in_band: float | None
    requests: Counts
    errors: int
    scale_actions: int
    batch_actions: int
    oscillations: int
    power: PowerResult | None = None
    moves: list[Move]
    series: Series


def to_json(result: BaseModel) -> str:
    """The JSON of a result: sorted keys, floats with nine significant digits, so that equal runs give equal bytes."""
    return json.dumps(_rounded(result.model_dump(mode="json")), sort_keys=True, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
