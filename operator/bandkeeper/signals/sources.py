"""What a preset says about one signal: metric names, how they are read, and which series shows that they are fresh."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import Batching


class Read(StrEnum):
    """How a metric becomes a number: as it is, as a rate, as bucket counts of a window, or as ready quantiles.

    `DEVICES` counts the GPUs that a pod's series are of, and takes down what they are.
    """

    LEVEL = "Level"
    RATE = "Rate"
    HISTOGRAM = "Histogram"
    SUMMARY = "Summary"
    DEVICES = "Devices"


class Across(StrEnum):
    """How several series of one pod (models, engines, GPUs) become one number."""

    SUM = "sum"
    MEAN = "avg"
    MOST = "max"


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels that name a series' pod."""

    namespace: str = "namespace"
    pod: str = "pod"


@dataclass(frozen=True, slots=True)
class Series:
    """Metrics whose values are added up, each a name or `name{matchers}`, and the factor to the signal's unit.

    Attributes
    ----------
    per
        What the sum is divided by; where that stands at 0 there is no value.
    exporter
        Who writes it, one of the clock's exporters; "" where there is but one.
    blank
        Raw values from here on, and NaN, are the exporter's way of saying that it has none.
    busy
        Of `DEVICES`: what tells how busy each GPU is, with the factor to a ratio; per pod the first one present counts.
    """

    metrics: tuple[str, ...]
    scale: float = 1.0
    per: str = ""
    exporter: str = ""
    blank: float = math.inf
    busy: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Exporter:
    """One of several that may show the same, by a name for people, and series that tell when it was scraped."""

    name: str
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The series that tells when an exporter was last scraped: all of an exporter's series are as old as this one.

    Attributes
    ----------
    metrics
        Names of which the first one present counts, best an exporter's oldest and plainest.
    exporters
        Instead of `metrics`: several exporters of the same. Of each pod and signal the first with fresh data counts.
    labels
        Ways of naming the pod, in order: the first one that a series has counts.
    gpu
        The exporter of the GPUs, which collects more slowly than servers do.
    exporter
        What a person calls the exporter.
    identity
        Labels that tell the things of one pod apart (its GPUs, its containers): series that differ in others alone are
        the same thing, seen twice. Without it all labels but those of the scrape do.
    """

    exporter: str
    metrics: tuple[str, ...] = ()
    exporters: tuple[Exporter, ...] = ()
    labels: tuple[Labels, ...] = (Labels(),)
    gpu: bool = False
    identity: tuple[str, ...] = ()

    @property
    def told_by(self) -> tuple[Exporter, ...]:
        """The exporters, in the order in which they count; a single one has no name."""
        return self.exporters or (Exporter("", self.metrics),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a signal comes from.

    Attributes
    ----------
    any_of
        Names by generation, newest first; per pod the first one present counts.
    optional
        Its absence is normal: an older server, a counter not configured, a cluster without the exporter.
    aside
        It serves the judgement of quality only: asked for once a minute, beside the decision, which does not wait for
        it. Its absence is not worth a word.
    hint
        What to do when it is absent.
    """

    read: Read
    any_of: tuple[Series, ...]
    clock: Clock
    across: Across = Across.SUM
    optional: bool = False
    aside: bool = False
    hint: str = ""

    @property
    def name(self) -> str:
        """The metric as a person knows it."""
        return self.any_of[0].metrics[0].partition("{")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model server: its signals, and where its limits stand.

    Attributes
    ----------
    default_capacity
        Batch capacity of a replica that nothing else tells.
    capacity_names, cap_names, queue_bound_names, prefill_tokens_names
        Container flags and environment variables, first found wins, that hold the batch capacity; a cap on admission
        below it, which changes nothing of what the server booted with; the queue's bound; and the most prompt tokens
        that a step reads.
    """

    name: str
    batching: Batching
    default_capacity: int
    capacity_names: tuple[str, ...] = ()
    cap_names: tuple[str, ...] = ()
    queue_bound_names: tuple[str, ...] = ()
    prefill_tokens_names: tuple[str, ...] = ()
    sources: Mapping[Signal, Source] = field(default_factory=dict)
