"""The operator's own metrics. One set per process; series of a policy go when the policy goes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

_POLICY = ("namespace", "policy")


class Metrics:
    """Every metric that the operator exposes, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.desired_replicas = self._gauge("desired_replicas", "Replicas that the policy wants.")
        self.current_replicas = self._gauge("current_replicas", "Replicas that the target asks for.")
        self.ready_replicas = self._gauge("ready_replicas", "Ready pods of the target.")
        self.pending_replicas = self._gauge("pending_replicas", "Pods of the target that are still starting.")
        self.desired_batch_cap = self._gauge("desired_batch_cap", "Batch cap that the policy wants for each replica.")
        self.current_batch_cap = self._gauge("current_batch_cap", "Smallest batch cap read back from a ready pod.")
        self.utilization = self._gauge("utilization_ratio", "Offered work over the capacity of the ready replicas.")
        self.band_low = self._gauge("band_low_ratio", "Lower edge of the utilisation band in force.")
        self.band_high = self._gauge("band_high_ratio", "Upper edge of the utilisation band in force.")
        self.slo_measured = self._gauge("slo_measured_seconds", "Measured latency percentile.", "signal", "percentile")
        self.slo_threshold = self._gauge("slo_threshold_seconds", "Threshold of the objective.", "signal", "percentile")
        self.slo_attainment = self._gauge(
            "slo_attainment_ratio",
            "Share inside the threshold over the SLO window (lower bound).",
            "signal",
            "percentile",
        )
        self.quality_class = self._gauge(
            "quality_class",
            "1 for the class that the GPUs' use has now, Unknown included; the others are absent.",
            "class",
        )
        self.quality_score = self._gauge(
            "quality_score", "How good the use of the GPUs is, 0 to 100; absent if Unknown."
        )
        self.quality_confidence = self._gauge("quality_confidence_ratio", "How sure the class is.")
        self.quality_measure = self._gauge(
            "quality_measure", "A measure of how the GPUs are used, in its unit.", "measure", "unit"
        )
        self.quality_bottleneck = self._gauge(
            "quality_bottleneck", "1 for what of the GPUs is fullest; the others are absent.", "component"
        )
        self.gpus = self._gauge("gpus", "GPUs that the ready pods hold, a MIG instance as its share of one.")
        self.wasted_share = self._gauge("wasted_gpu_ratio", "Share of the held GPU time that is wasted now.", "cause")
        self.gpu_seconds = Counter(
            "bandkeeper_gpu_seconds_total",
            "GPU time held by ready pods; judged where the counters told what it was worth. Counted by the leader.",
            (*_POLICY, "judged"),
            registry=self.registry,
        )
        self.gpu_seconds_by_rule = Counter(
            "bandkeeper_gpu_seconds_by_rule_total",
            "GPU time of ready pods that would not have been held, had this rule alone been left out (work: what the "
            "work takes; unknown: nobody knew). The rules do not add up. Counted by the leader.",
            (*_POLICY, "rule"),
            registry=self.registry,
        )
        self.wasted_gpu_seconds = Counter(
            "bandkeeper_wasted_gpu_seconds_total",
            "GPU time held while nothing ran (idle_held), or busy below what was possible. Counted by the leader.",
            (*_POLICY, "cause"),
            registry=self.registry,
        )
        self.gpu_cost = Counter(
            "bandkeeper_gpu_cost_total",
            "What the GPU time cost, where spec.cost gives a price. Counted by the leader.",
            (*_POLICY, "currency"),
            registry=self.registry,
        )
        self.wasted_gpu_cost = Counter(
            "bandkeeper_wasted_gpu_cost_total",
            "What the wasted GPU time cost, where spec.cost gives a price. Counted by the leader.",
            (*_POLICY, "cause", "currency"),
            registry=self.registry,
        )
        self.policy_info = self._gauge(
            "policy_info", "1, with what the policy says, to join others on.", "objective", "mode", "runtime"
        )
        self.condition = self._gauge("policy_condition", "1 True, 0 False, -1 Unknown.", "type")
        self.scalings = Counter(
            "bandkeeper_scalings_total",
            "Writes of replicas, by direction and reason.",
            (*_POLICY, "direction", "reason"),
            registry=self.registry,
        )
        self.batch_changes = Counter(
            "bandkeeper_batch_changes_total",
            "Changes of the wanted batch cap, by direction and reason.",
            (*_POLICY, "direction", "reason"),
            registry=self.registry,
        )
        self.write_failures = Counter(
            "bandkeeper_write_failures_total", "Refused or failed writes.", (*_POLICY, "what"), registry=self.registry
        )
        self.policies = Gauge("bandkeeper_policies", "Policies in the store.", registry=self.registry)
        self.leader = Gauge("bandkeeper_leader", "1 while this process holds the Lease.", registry=self.registry)
        self.tick_seconds = Histogram(
            "bandkeeper_tick_duration_seconds",
            "Time of one look at all policies that read from one Prometheus, writes left out.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.decide_seconds = Histogram(
            "bandkeeper_decide_duration_seconds",
            "Time of one decision.",
            buckets=(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
            registry=self.registry,
        )
        self.tick_failures = Counter(
            "bandkeeper_tick_failures_total", "Policies whose tick failed unexpectedly.", registry=self.registry
        )
        self.queries = Counter(
            "bandkeeper_prometheus_queries_total", "Queries sent to Prometheus.", registry=self.registry
        )
        self._shown: dict[tuple[str, str], dict[tuple[Gauge, tuple[str, ...]], float]] = {}

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"bandkeeper_{name}", text, (*_POLICY, *labels), registry=self.registry)

    def show(self, key: tuple[str, str], values: Iterable[tuple[Gauge, tuple[str, ...], float | None]]) -> None:
        """Set all of a policy's gauges, by their further labels.

        What is None or left out loses its series, because missing data is never 0.
        """
        shown = self._shown.setdefault(key, {})
        left = set(shown)
        for gauge, labels, value in values:
            if value is None:
                continue
            series = gauge, labels
            left.discard(series)
            if shown.get(series) != value:
                gauge.labels(*key, *labels).set(value)
                shown[series] = value
        for gauge, labels in left:
            gauge.remove(*key, *labels)
            del shown[gauge, labels]

    def forget(self, key: tuple[str, str]) -> None:
        """Remove every series of a policy that is gone."""
        self._shown.pop(key, None)
        for metric in _wrappers(self):
            if metric._labelnames[:2] == _POLICY:
                metric.remove_by_labels(dict(zip(_POLICY, key, strict=True)))


_PAGE = """\
# Metrics of the operator

Generated by `make generate` from `operator/bandkeeper/runtime/metrics.py`; do not edit. They stand on `/metrics` of the
operator's own port. A series whose value is not known is absent: missing data is never 0. Of two replicas only the
leader writes, and both show what they would want; `bandkeeper_leader` tells them apart.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """docs/reference/metrics.md: every metric with its type, labels and meaning."""
    rows = []
    for metric in _wrappers(Metrics()):
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "-"
        rows.append(f"| `{_exposed_name(metric)}` | {metric._type} | {labels} | {metric._documentation} |\n")
    return _PAGE + "".join(sorted(rows))


def _wrappers(metrics: Metrics) -> list[MetricWrapperBase]:
    return [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]


def _exposed_name(metric: MetricWrapperBase) -> str:
    return f"{metric._name}_total" if metric._type == "counter" else str(metric._name)


if __name__ == "__main__":
    Path("docs/reference/metrics.md").write_text(reference(), encoding="utf-8")
