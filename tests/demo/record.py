"""Looks at a running stack once a second and keeps what it saw; at the end asks Prometheus for the latencies."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution
from tests.cluster import Prometheus
from tests.stack import OperatorProcess, Stack

from .figures import Sample

HISTOGRAMS = {
    Signal.TIME_TO_FIRST_TOKEN: "vllm:time_to_first_token_seconds",
    Signal.INTER_TOKEN_LATENCY: "vllm:inter_token_latency_seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """The operator's own numbers of one policy. `wanted`: replicas and batch cap. None is not known."""

    utilization: float | None = None
    p95_s: Mapping[Signal, float] = field(default_factory=dict)
    wanted: tuple[float | None, float | None] = (None, None)
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A change of what a policy wants."""

    at_s: float
    name: str
    reason: str
    message: str


class Recorder:
    """The series of each workload, in seconds since `began_s` (epoch)."""

    def __init__(self, stack: Stack, operator: OperatorProcess, names: Iterable[str], began_s: float) -> None:
        self.began_s = began_s
        self.samples: dict[str, list[Sample]] = {name: [] for name in names}
        self.glances = dict.fromkeys(self.samples, Glance())
        self.moves: list[Move] = []
        self._stack = stack
        self._operator = operator

    @property
    def at_s(self) -> float:
        """Seconds since the load began."""
        return time.time() - self.began_s

    def look(self) -> None:
        """One sample of every workload. Raises OSError when the operator or the emulator do not answer."""
        metrics = operator_metrics(self._operator.get("/metrics")[1])
        decided = self._last_decisions()
        for name, series in self.samples.items():
            mine = metrics.get(name, {})
            ledger = self._stack.ledger(name)
            ready = [pod for pod in ledger["pods"] if pod["ready"] and not pod["draining"]]
            wanted = mine.get(("desired_replicas", ""))
            series.append(
                Sample(
                    at_s=self.at_s,
                    offered_per_s=ledger["offered_per_s"] or 0.0,
                    in_hand=ledger["running"] + ledger["waiting"] + ledger["at_gateway"],
                    slots=sum(pod["cap"] for pod in ready),
                    ready=len(ready),
                    wanted=None if wanted is None else int(wanted),
                    arrived=ledger["arrived"],
                    refused=ledger["rejected"] + ledger["failed"],
                    pod_s=ledger["pod_s"],
                )
            )
            self._keep(name, _glance(mine, decided.get(name, {})))

    def _keep(self, name: str, glance: Glance) -> None:
        before = self.glances[name]
        if glance.message != before.message and glance.wanted != before.wanted:
            self.moves.append(Move(self.at_s, name, glance.reason, glance.message))
        self.glances[name] = glance

    def _last_decisions(self) -> dict[str, dict[str, str]]:
        items = self._stack.cluster.get("gpuscalingpolicies", namespace=self._stack.namespace)["items"]
        return {one["metadata"]["name"]: one.get("status", {}).get("lastDecision", {}) for one in items}


def _glance(metrics: Mapping[tuple[str, str], float], decision: Mapping[str, str]) -> Glance:
    return Glance(
        utilization=metrics.get(("utilization_ratio", "")),
        p95_s={
            signal: value
            for signal in HISTOGRAMS
            if (value := metrics.get(("slo_measured_seconds", signal.value))) is not None
        },
        wanted=(metrics.get(("desired_replicas", "")), metrics.get(("desired_batch_cap", ""))),
        reason=decision.get("reason", ""),
        message=decision.get("message", ""),
    )


def operator_metrics(text: str) -> dict[str, dict[tuple[str, str], float]]:
    """By policy, then by metric (without its prefix) and signal."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "policy" in sample.labels:
                key = (sample.name.removeprefix("bandkeeper_"), sample.labels.get("signal", ""))
                found.setdefault(sample.labels["policy"], {})[key] = sample.value
    return found


def latencies(
    prometheus: Prometheus, *, began_s: float, ends_s: Iterable[float], length_s: float
) -> dict[str, dict[float, dict[Signal, Distribution]]]:
    """The latency histograms of each interval as Prometheus has them: by model name, then by the interval's end.

    An interval of 5 s takes the samples of 6 s, whose first and last are 5 s apart.
    """
    found: dict[str, dict[float, dict[Signal, Distribution]]] = {}
    for end_s in ends_s:
        for signal, metric in HISTOGRAMS.items():
            query = f"sum by (model_name, le) (rate({metric}_bucket[{length_s + 1:.0f}s])) * {length_s}"
            answer = prometheus.query(query, at_s=began_s + end_s)
            for name, distribution in distributions(answer, length_s).items():
                found.setdefault(name, {}).setdefault(end_s, {})[signal] = distribution
    return found


def distributions(answer: Iterable[Mapping[str, Any]], window_s: float) -> dict[str, Distribution]:
    """Prometheus's buckets (cumulative) as one distribution for each model name."""
    buckets: dict[str, list[tuple[float, float]]] = {}
    for series in answer:
        edge, count = float(series["metric"]["le"]), float(series["value"][1])
        buckets.setdefault(series["metric"]["model_name"], []).append((edge, count))
    found = {}
    for name, pairs in buckets.items():
        edges, counts = zip(*sorted(pairs), strict=True)
        if math.isfinite(counts[-1]):
            found[name] = Distribution(window_s=window_s, edges=edges, counts=counts)
    return found


def as_json(samples: Mapping[str, Iterable[Sample]]) -> str:
    """The recorded series for a file."""
    return json.dumps({name: [asdict(one) for one in series] for name, series in samples.items()})
