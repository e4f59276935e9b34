"""The last pass, joined with the pods, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from bandkeeper.agent import catalogue
from bandkeeper.agent.catalogue import Kind, Metric
from bandkeeper.agent.pods import Allocation, Holder, held
from bandkeeper.agent.sampler import GPU, Frame

STALE_PASSES = 5.0
STALE_S = 10.0
"""A frame older than this, or than STALE_PASSES intervals, is not exported: the driver hangs."""
_NOBODY = Holder("", "", "")


def is_stale(frame: Frame, now_s: float, interval_s: float) -> bool:
    """Whether the last pass is so long ago that its figures are of the past."""
    return now_s - frame.at_s > max(STALE_S, STALE_PASSES * interval_s)


def _family(metric: Metric, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(metric.name.removesuffix("_total"), metric.meaning, labels=labels)
    return GaugeMetricFamily(metric.name, metric.meaning, labels=labels)


def _labels(gpu: GPU, given: Iterable[Allocation]) -> list[tuple[str, ...]]:
    """One set of labels for each container that holds it; one of nobody where none does."""
    identity = gpu.identity
    of = held(identity, given)
    instance = "" if identity.instance is None else str(identity.instance)
    shared = "true" if of.shared else "false"
    return [
        (str(identity.index), identity.uuid, identity.model, who.namespace, who.pod, who.container, instance, shared)
        for who in of.holders or (_NOBODY,)
    ]


def of_gpus(frame: Frame, given: tuple[Allocation, ...]) -> Iterator[Family]:
    """Every metric of OF_GPUS that has a value."""
    labelled = [(gpu, _labels(gpu, given)) for gpu in frame.gpus]
    for metric in catalogue.OF_GPUS:
        family = _family(metric, catalogue.LABELS)
        for gpu, labels in labelled:
            value = {catalogue.INFO: 1.0, catalogue.UP: float(gpu.up)}.get(metric, gpu.values.get(metric))
            if value is not None:
                for series in labels:
                    family.add_metric(series, value)
        if family.samples:
            yield family


class Exposition(Collector):
    """Made anew at each scrape from the newest frame and the newest answer of the kubelet."""

    def __init__(
        self,
        frame: Callable[[], Frame],
        given: Callable[[], tuple[Allocation, ...] | None],
        age_s: Callable[[], float | None],
        *,
        interval_s: float,
        version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frame = frame
        self._given = given
        self._age_s = age_s
        self._interval_s = interval_s
        self._version = version
        self._clock = clock

    def describe(self) -> Iterable[Family]:
        """Every metric that there can be, so that registering needs no GPU."""
        for metric in catalogue.OF_GPUS:
            yield _family(metric, catalogue.LABELS)
        for metric in catalogue.OF_AGENT:
            yield _family(metric, metric.labels)

    def collect(self) -> Iterator[Family]:
        """The GPUs, unless the last pass is too old, and the agent itself."""
        frame = self._frame()
        given = self._given()
        if not is_stale(frame, self._clock(), self._interval_s):
            yield from of_gpus(frame, given or ())
        yield from self._of_agent(frame, given)

    def _of_agent(self, frame: Frame, given: tuple[Allocation, ...] | None) -> Iterator[Family]:
        unmatched = sum(not any(one.of(gpu.identity) for gpu in frame.gpus) for one in given or ())
        values: dict[Metric, list[tuple[tuple[str, ...], float | None]]] = {
            catalogue.VERSIONS: [((self._version, frame.driver), 1.0)],
            catalogue.GPUS: [((), float(len({gpu.identity.uuid for gpu in frame.gpus if gpu.up})))],
            catalogue.PASSES: [((), float(frame.passes))],
            catalogue.PASS_SECONDS: [((), frame.pass_seconds)],
            catalogue.READ_FAILURES: [(failure, float(count)) for failure, count in frame.failures.items()],
            catalogue.PODS_KNOWN: [((), float(given is not None))],
            catalogue.PODS_AGE: [((), self._age_s())],
            catalogue.UNMATCHED: [((), float(unmatched) if given is not None else None)],
        }
        for metric in catalogue.OF_AGENT:
            family = _family(metric, metric.labels)
            for labels, value in values[metric]:
                if value is not None:
                    family.add_metric(labels, value)
            yield family
