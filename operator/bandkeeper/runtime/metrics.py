"""The operator's own metrics. One set per process; series of a policy go when the policy goes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
            "Time of one look at all policies.",
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
        self._of_policy: dict[tuple[str, str], set[tuple[Gauge, tuple[str, ...]]]] = {}

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"bandkeeper_{name}", text, (*_POLICY, *labels), registry=self.registry)

    def set(self, gauge: Gauge, key: tuple[str, str], value: float | None, *labels: str) -> None:
        """Set a policy's gauge; None removes the series, because missing data is never 0."""
        series = (*key, *labels)
        known = self._of_policy.setdefault(key, set())
        if value is not None:
            gauge.labels(*series).set(value)
            known.add((gauge, series))
        elif (gauge, series) in known:
            gauge.remove(*series)
            known.discard((gauge, series))

    def forget(self, key: tuple[str, str]) -> None:
        """Remove every gauge of a policy that is gone."""
        for gauge, series in self._of_policy.pop(key, set()):
            gauge.remove(*series)
