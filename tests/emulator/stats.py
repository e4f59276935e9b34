"""Cumulative accounts of a server: the requests it served, and the GPU work that took."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Buckets
from .histogram import ITERATION_TOKEN_BUCKETS, Histogram


class ServerStats:
    """Cumulative account of what one server, or several merged, did with the requests it was given."""

    def __init__(self, buckets: Buckets) -> None:
        self.arrived = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self.rejected = 0
        self.preemptions = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.executions = 0
        self.input_s = 0.0
        self.infer_s = 0.0
        self.output_s = 0.0
        self.ttft = Histogram(buckets.ttft_s, fine=True)
        self.itl = Histogram(buckets.itl_s, fine=True)
        self.e2e = Histogram(buckets.request_s, fine=True)
        self.queue = Histogram(buckets.request_s, fine=True)
        self.iteration_tokens = Histogram(ITERATION_TOKEN_BUCKETS)

    @property
    def succeeded(self) -> int:
        return self.finished["stop"] + self.finished["length"]

    @property
    def failed(self) -> int:
        return self.finished["abort"] + self.finished["error"]

    def merge(self, other: ServerStats) -> None:
        for reason, number in other.finished.items():
            self.finished[reason] += number
        for name in ("arrived", "rejected", "preemptions", "prompt_tokens", "generation_tokens", "executions"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("input_s", "infer_s", "output_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("ttft", "itl", "e2e", "queue", "iteration_tokens"):
            getattr(self, name).merge(getattr(other, name))


@dataclass(frozen=True, slots=True)
class Activity:
    """Seconds of GPU work since boot: busy at all, and weighted by how full tensor pipes and memory bus were."""

    busy_s: float = 0.0
    tensor_s: float = 0.0
    dram_s: float = 0.0
    tokens: float = 0.0

    def plus(self, other: Activity, share: float = 1.0) -> Activity:
        return Activity(
            self.busy_s + share * other.busy_s,
            self.tensor_s + share * other.tensor_s,
            self.dram_s + share * other.dram_s,
            self.tokens + share * other.tokens,
        )
