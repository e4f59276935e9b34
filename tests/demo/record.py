"""Looks at a running stack once a second and keeps what it saw; at the end asks Prometheus for the latencies."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution
from tests.cluster import Prometheus
from tests.stack import OperatorProcess, Stack

from .figures import Move, Sample

HISTOGRAMS = {
    Signal.TIME_TO_FIRST_TOKEN: "vllm:time_to_first_token_seconds",
    Signal.INTER_TOKEN_LATENCY: "vllm:inter_token_latency_seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """The operator's own numbers of one policy. None is not known."""

    utilization: float | None = None
    p95_s: Mapping[Signal, float] = field(default_factory=dict)
    reason: str = ""


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
        told = self._statuses()
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
            status = told.get(name, {})
            self.glances[name] = _glance(mine, status.get("lastDecision", {}))
            found = moves(name, status.get("history", ()), self.began_s)
            self.moves += [move for move in found if move not in self.moves]

    def _statuses(self) -> dict[str, dict[str, Any]]:
        items = self._stack.cluster.get("gpuscalingpolicies", namespace=self._stack.namespace)["items"]
        return {one["metadata"]["name"]: one.get("status", {}) for one in items}


def moves(name: str, history: Sequence[Mapping[str, Any]], began_s: float) -> list[Move]:
    """A status's history, oldest first, its times to the second. A decision that moved both knobs is one move."""
    found: dict[tuple[str, str], Move] = {}
    for one in reversed(history):
        key = (one["time"], one["message"])
        caps = (one["fromBatchCap"], one["batchCap"]) if "fromBatchCap" in one else None
        at_s = datetime.fromisoformat(one["time"]).timestamp() - began_s
        known = found.get(key, Move(at_s=at_s, name=name, reason=one["reason"], message=one["message"]))
        found[key] = replace(known, caps=caps or known.caps)
    return list(found.values())


def _glance(metrics: Mapping[tuple[str, str], float], decision: Mapping[str, str]) -> Glance:
    return Glance(
        utilization=metrics.get(("utilization_ratio", "")),
        p95_s={
            signal: value
            for signal in HISTOGRAMS
            if (value := metrics.get(("slo_measured_seconds", signal.value))) is not None
        },
        reason=decision.get("reason", ""),
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
