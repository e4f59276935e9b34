"""The PromQL of every query, and the rows of a workload in its answers. Text only; nothing here asks a server.

All pods of all policies are read at once: a query names namespaces, not policies. Duplicate scrapes of one endpoint
(a PodMonitor and a ServiceMonitor on the same pods) differ in `job`, `service` and `endpoint` only and count once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bandkeeper.signals.sources import Clock, Labels, Read, Series, Source

ROW = "bandkeeper_row"
EXPORTER = "bandkeeper_exporter"
SHARED = "shared"  # as the agent says it
CROWDED = "bandkeeper_crowded"  # as we find it out
BUSY = "bandkeeper_busy"  # a row of one GPU of a pod whose GPUs are not busy alike
SUM_EDGE = "sum"
MODELS = ("modelName", "model_name", "model")
INSTANCES = ("GPU_I_ID", "mig")
_KIND = ", ".join((*MODELS, SHARED))
_UNEVEN = 0.02  # standard deviation of the busy time of a pod's GPUs: of eight, one that is 6 points apart
_ONCE = "max without (job, service, endpoint)"
# Where a GPU is, by every name that it goes under: two pods are on one GPU where all of these are the same.
_PLACE = ", ".join(("instance", "Hostname", "hostname", "UUID", "uuid", "gpu_uuid", "gpu", "device", *INSTANCES))
_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"  # the letters of Kubernetes' generated names
_HASHED = f"-{_SAFE}{{1,10}}-{_SAFE}{{5}}"  # pods of a Deployment: NAME-<template hash>-<5 letters>
_ORDINAL = "-[0-9]{1,4}"  # pods of a StatefulSet; a generated name never ends in fewer than five
_HASHED_END, _ORDINAL_END = re.compile(_HASHED), re.compile(_ORDINAL)
_PLACEHOLDER = re.compile(r"\$(namespace|workload|pods|window|percentile)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which pods a query is about, and how their workloads are told apart.

    Attributes
    ----------
    namespaces
        Read only there.
    pods
        Pattern of the pods' names, "" for all pods of the namespaces.
    named_pods
        Pods that form rows of their own because their names do not tell their workload.
    workload_label
        Label that names the workload, "" where series have none.
    """

    namespaces: tuple[str, ...]
    labels: Labels
    pods: str = ""
    named_pods: tuple[str, ...] = ()
    workload_label: str = ""


def rows_of(workload: str, pods: Sequence[str], workload_label: str) -> tuple[str, ...]:
    """The rows that make up a workload in the answers of the histogram queries."""
    if workload_label:
        return (f"label/{workload}",)
    ends = [pod.removeprefix(workload) if pod.startswith(workload) else "" for pod in pods]
    if all(_HASHED_END.fullmatch(end) for end in ends):
        return (f"hash/{workload}",)
    if all(_ORDINAL_END.fullmatch(end) for end in ends):
        return (f"ordinal/{workload}",)
    return tuple(f"pod/{pod}" for pod in pods)


def pods_of(workloads: Iterable[str], named_pods: Iterable[str]) -> str:
    """The pattern of all pods whose names begin with a workload's name, and of the named ones."""
    return "|".join(filter(None, [f"(?:{_any_of(workloads)})-.+", _any_of(named_pods)]))


def values(source: Source, scope: Scope, window_s: float) -> str:
    """One value per pod: a level as it is, a rate over the window."""
    return " or ".join(
        _told_by(series.exporter, _per_pod(source, series, labels, _matchers(scope, ways, labels), window_s))
        for ways in (habits(source.clock, scope.labels),)
        for labels in ways
        for series in source.any_of
    )


def devices(source: Source, scope: Scope) -> str:
    """How many GPUs of each model and instance a pod has, rows of pods whose GPU is `CROWDED`, and `BUSY` GPUs.

    It is crowded where it is one of the replicas of a time-sliced GPU, and where another pod of the scope is on it.
    How busy each GPU is is told of those pods alone whose GPUs are not busy alike: nearly always of none.
    """
    ways = habits(source.clock, scope.labels)
    return " or ".join(
        _told_by(series.exporter, part)
        for labels in ways
        for series in source.any_of
        for matchers in (_matchers(scope, ways, labels),)
        for part in (*_devices(source, series, labels, matchers), *_uneven(source, series, labels, matchers))
    )


def ages(clock: Clock, scope: Scope) -> str:
    """The time of each pod's oldest sample: an instant vector's own time is the evaluation's and tells nothing."""
    ways = habits(clock, scope.labels)
    return " or ".join(
        _told_by(exporter.name, f"min by ({labels.namespace}, {labels.pod}) (timestamp({selected}))")
        for labels in ways
        for exporter in clock.told_by
        for metric in exporter.metrics
        for selected in (_select(metric, _matchers(scope, ways, labels)),)
    )


def edges(metric: str, scope: Scope) -> str:
    """How many series each row has at each bucket edge."""
    return _by_row("count by ({}, le) ({})", _select(f"{metric}_bucket", _matchers(scope, (), scope.labels)), scope)


def buckets(metric: str, edge_labels: Iterable[str], scope: Scope, window_s: float) -> str:
    """Observations of the window per row and edge, and their sum at the edge `SUM_EDGE`.

    `increase` extrapolates to the whole window, so counts can be fractional.
    """
    window = duration(window_s)
    matchers = _matchers(scope, (), scope.labels)
    wanted = f'le=~"{_any_of(sorted(edge_labels))}"'
    counted = f"{_ONCE} (increase({_select(f'{metric}_bucket', (*matchers, wanted))}[{window}]))"
    total = f"{_ONCE} (increase({_select(f'{metric}_sum', matchers)}[{window}]))"
    counts = _by_row("sum by ({}, le) ({})", counted, scope)
    totals = _by_row("sum by ({}) ({})", total, scope)
    return f'{counts} or label_replace({totals}, "le", "{SUM_EDGE}", "", "")'


def quantiles(metric: str, scope: Scope) -> str:
    """The worst pod's value per row and quantile of a summary."""
    matchers = (*_matchers(scope, (), scope.labels), 'quantile!=""')
    return _by_row("max by ({}, quantile) ({})", _select(metric, matchers), scope)


def recalled(source: Source, scope: Scope, window_s: float, ago_s: float) -> str:
    """The rate of each row's pods, whatever they were called, as it was so long ago; of a plain counter."""
    matchers = _matchers(scope, (), scope.labels)
    window, offset = duration(window_s), duration(ago_s)
    return " or ".join(
        _by_row("sum by ({}) ({})", f"{_ONCE} (rate({_select(metric, matchers)}[{window}] offset {offset}))", scope)
        for series in source.any_of
        for metric in series.metrics[:1]
    )


def expand(
    query: str, *, namespace: str, workload: str, pods: Sequence[str], window_s: float, percentile: int | None
) -> str:
    """A policy's own PromQL with its placeholders filled in."""
    given = {
        "namespace": namespace,
        "workload": workload,
        "pods": _any_of(pods),
        "window": duration(window_s),
        "percentile": str(percentile if percentile is not None else 95),
    }
    return _PLACEHOLDER.sub(lambda found: given[found.group(1)], query)


def duration(seconds: float) -> str:
    """A PromQL duration of whole seconds, at least one."""
    return f"{max(1, round(seconds))}s"


def habits(clock: Clock, plain: Labels) -> tuple[Labels, ...]:
    """The clock's ways of naming pods, the plain one spelled as this Prometheus spells it."""
    return tuple(plain if labels == Labels() else labels for labels in clock.labels)


def narrowed(scope: Scope, namespaces: tuple[str, ...]) -> Scope:
    """The scope in these namespaces only."""
    return replace(scope, namespaces=namespaces)


def _matchers(scope: Scope, ways: tuple[Labels, ...], labels: Labels) -> tuple[str, ...]:
    """What a series must have: a pod of ours under these labels, and none under those that go before them."""
    before = ways[: ways.index(labels)] if labels in ways else ()
    pods = f'=~"{scope.pods}"' if scope.pods else '!=""'
    return (
        *(f'{other.pod}=""' for other in before),
        f'{labels.namespace}=~"{_any_of(scope.namespaces)}"',
        f"{labels.pod}{pods}",
    )


def _select(metric: str, matchers: Iterable[str]) -> str:
    name, _, own = metric.partition("{")
    return f"{name}{{{', '.join([*([own.rstrip('}')] if own else []), *matchers])}}}"


def _told_by(exporter: str, expression: str) -> str:
    return f'label_replace({expression}, "{EXPORTER}", "{exporter}", "", "")' if exporter else expression


def _per_pod(source: Source, series: Series, labels: Labels, matchers: tuple[str, ...], window_s: float) -> str:
    parts = [_read(source, series, metric, matchers, window_s) for metric in series.metrics]
    if len(parts) > 1:  # marked, so that `or` keeps all of them although a rate has lost its name
        parts = [f'label_replace({part}, "addend", "{number}", "", "")' for number, part in enumerate(parts)]
    by_pod = f"{source.across} by ({labels.namespace}, {labels.pod})"
    once = _once(source.clock, labels, ("addend",) if len(parts) > 1 else ())
    expression = f"{by_pod} ({once} ({' or '.join(parts)}))"
    if series.per:
        expression += f" / ({by_pod} ({once} ({_read(source, series, series.per, matchers, window_s)})) > 0)"
    return expression if series.scale == 1.0 else f"{expression} * {series.scale!r}"


def _once(clock: Clock, labels: Labels, more: tuple[str, ...] = ()) -> str:
    """What takes the same thing, seen twice, once."""
    return f"max by ({', '.join((labels.namespace, labels.pod, *clock.identity, *more))})" if clock.identity else _ONCE


def _read(source: Source, series: Series, metric: str, matchers: tuple[str, ...], window_s: float) -> str:
    selected = _select(metric, matchers)
    filled = selected if math.isinf(series.blank) else f"{selected} < {series.blank:g}"
    if source.read is not Read.RATE:
        return filled
    rate = f"rate({selected}[{duration(window_s)}])"
    return rate if filled == selected else f"({rate} and {filled})"  # a blank that stands still has a rate of 0


def _devices(source: Source, series: Series, labels: Labels, matchers: tuple[str, ...]) -> tuple[str, str]:
    any_metric = f'{{__name__=~"{_any_of(series.metrics)}"}}'
    by_pod = f"{labels.namespace}, {labels.pod}"
    seen = _select(any_metric, matchers)
    replicas = _select(any_metric, (*matchers, 'vgpu!=""'))
    crowded = f"count by ({_PLACE}) (group by ({_PLACE}, {by_pod}) ({seen})) > 1"
    each = f"max by ({by_pod}, {', '.join(source.clock.identity)}, {_KIND}) ({seen})"
    shared = f"group by ({by_pod}) ({replicas} or ({seen} and on ({_PLACE}) ({crowded})))"
    return (
        f"count by ({by_pod}, {', '.join(INSTANCES)}, {_KIND}) ({each})",
        f'label_replace({shared}, "{CROWDED}", "true", "", "")',
    )


def _uneven(source: Source, series: Series, labels: Labels, matchers: tuple[str, ...]) -> Iterator[str]:
    """The busy time of each GPU, by the first metric that its pod has; a pod is never told of by two of them."""
    by_pod, before = f"({labels.namespace}, {labels.pod})", ""
    for metric, scale in series.busy:
        seen = f"{_select(metric, matchers)} < {series.blank:g}"
        spread = f"stddev by {by_pod} ({seen}) > {_UNEVEN / scale:g}"
        uneven = f"{seen} and on {by_pod} ({spread}){before}"  # first of all: what is left then costs nothing
        each = f"{_once(source.clock, labels)} ({uneven}) * {scale:g}"
        yield f'label_replace({each}, "{BUSY}", "true", "", "")'
        before += f" unless on {by_pod} ({seen})"


def _by_row(aggregation: str, expression: str, scope: Scope) -> str:
    """`expression` summed up per workload, which the pod's name tells."""
    pod = scope.labels.pod
    rules = [("ordinal/$1", pod, f"(.+){_ORDINAL}"), ("hash/$1", pod, f"(.+){_HASHED}")]
    if scope.named_pods:
        rules.append(("pod/$1", pod, f"({_any_of(scope.named_pods)})"))
    if scope.workload_label:
        rules.append(("label/$1", scope.workload_label, "(.+)"))
    for replacement, label, pattern in rules:
        expression = f'label_replace({expression}, "{ROW}", "{replacement}", "{label}", "{pattern}")'
    return aggregation.format(f"{scope.labels.namespace}, {ROW}", expression)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern that matches these texts alone; classes instead of backslashes stay right in every kind of quotes."""
    return "|".join(re.sub(r"[.+*?()|\[\]{}^$\\]", lambda found: f"[{found.group()}]", text) for text in texts)
