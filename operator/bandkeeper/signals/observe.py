"""From tables of answers to one policy's observations: joined on its ready pods, every doubt a gap with a sentence.

Pure. Missing data stays missing: nothing here turns it into a number.
"""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bandkeeper.api.signals import CATALOGUE, Signal
from bandkeeper.api.snapshot import Distribution, Gap, GapReason, GPUs, Levels, Reading
from bandkeeper.signals.answer import Answer
from bandkeeper.signals.sources import Clock, Read, Source
from bandkeeper.signals.want import LatencyWant, Want

ABSURD = 1e15
TOTAL = -math.inf  # the edge at which a row of buckets holds the sum of what was observed
_RATIO_MOST = 1.5  # counters of hardware overshoot a little; a percentage overshoots a lot
_MOST = {"ratio": _RATIO_MOST, "FLOP": 1e18}  # a GPU has more than 1e15 FLOP/s
_SHARES_OF_TIME = frozenset({Signal.POWER_THROTTLED, Signal.THERMAL_THROTTLED})
_PODS_NAMED = 3
_DIP = 1e-6  # relative: extrapolation rounds each edge by itself

PodTable = Mapping[str, Mapping[str, float]]  # namespace -> pod -> value
GPUTable = Mapping[str, Mapping[str, GPUs]]  # namespace -> pod -> its GPUs
RowTable = Mapping[tuple[str, str], Mapping[float, float]]  # (namespace, row) -> edge -> count, or percentile -> value


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a query's whole answer is no data."""

    reason: GapReason
    sentence: str


@dataclass(frozen=True, slots=True)
class Ages:
    """Age of each pod's samples of one exporter in seconds, `since_s` ago, and the age that is too old."""

    clock: Clock
    by_pod: PodTable
    limit_s: float
    trouble: Trouble | None = None
    since_s: float = 0.0

    def of(self, want: Want) -> Mapping[str, float]:
        ages = self.by_pod.get(want.namespace, {})
        return {pod: ages[pod] + self.since_s for pod in want.pods if pod in ages} if self.since_s else ages


@dataclass(frozen=True, slots=True)
class Told:
    """What one of several exporters tells of a signal: its values, or the GPUs behind its series."""

    exporter: str
    values: PodTable
    ages: Ages
    gpus: GPUTable = field(default_factory=dict)


class Aged(Levels):
    """Values with the ages that they had `since_s` ago, each a reading of now when it is looked at.

    Plain numbers, because what is kept from tick to tick for thousands of pods must not weigh on the collector of
    garbage.
    """

    __slots__ = ("_ages_s", "_since_s")

    def __init__(self, values: Mapping[str, float], ages_s: Mapping[str, float], since_s: float = 0.0) -> None:
        self.values_by_pod, self._ages_s, self._since_s = values, ages_s, since_s

    def __getitem__(self, pod: str) -> Reading:
        return Reading(self.values_by_pod[pod], self._ages_s[pod] + self._since_s)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_pod)

    def __len__(self) -> int:
        return len(self.values_by_pod)

    def items(self) -> ItemsView[str, Reading]:
        """All at once: twice as fast as one by one."""
        ages_s, since_s = self._ages_s, self._since_s
        return {pod: Reading(value, ages_s[pod] + since_s) for pod, value in self.values_by_pod.items()}.items()

    def ages_s(self) -> Mapping[str, float]:
        since_s = self._since_s
        return {pod: age_s + since_s for pod, age_s in self._ages_s.items()} if since_s else self._ages_s

    def older(self, since_s: float) -> Aged:
        return Aged(self.values_by_pod, self._ages_s, self._since_s + since_s)


@dataclass(slots=True)
class Builder:
    """Collects one policy's observations signal by signal.

    `fresh_s` is how long none of what was found can become stale.
    """

    want: Want
    by_pod: dict[Signal, Mapping[str, Reading]] = field(default_factory=dict)
    totals: dict[Signal, Reading] = field(default_factory=dict)
    distributions: dict[tuple[Signal, int], Distribution] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    gpus: dict[str, GPUs] = field(default_factory=dict)
    fresh_s: float = math.inf
    _used: dict[str, set[str]] = field(default_factory=dict)
    _aged: dict[tuple[int, float], Mapping[str, float]] = field(default_factory=dict)

    def gap(self, signal: Signal, reason: GapReason, detail: str, pods: Sequence[str] = ()) -> None:
        self.gaps.append(Gap(signal=signal, reason=reason, detail=detail, pods=tuple(pods[:_PODS_NAMED])))

    def trouble(self, signal: Signal, trouble: Trouble) -> None:
        self.gap(signal, trouble.reason, trouble.sentence)

    def level(self, signal: Signal, source: Source, values: PodTable, ages: Ages, window_s: float) -> None:
        """A gauge or a rate of each ready pod."""
        self.level_of_any(signal, source, (Told("", values, ages),), window_s)

    def level_of_any(self, signal: Signal, source: Source, told: Sequence[Told], window_s: float) -> None:
        """A gauge or a rate of each ready pod, of the first exporter that has a fresh and possible one of it."""
        namespace = self.want.namespace
        if source.aside and not any(namespace in one.values for one in told):
            return
        most = _most(signal)
        good: dict[str, float] = {}
        ages_s: dict[str, float] = {}
        stale: dict[str, Ages] = {}
        invalid: dict[str, str] = {}
        left: Sequence[str] = self.want.pods
        for one in told:
            of_pod = one.values.get(namespace)
            if not of_pod:
                continue
            age_of_pod, limit_s = self._ages_of(one.ages), one.ages.limit_s
            without: list[str] = []
            for pod in left:
                value, age_s = of_pod.get(pod), age_of_pod.get(pod)
                if value is not None and age_s is not None:
                    if age_s > limit_s:
                        stale.setdefault(pod, one.ages)
                    elif 0.0 <= value <= most:
                        good[pod], ages_s[pod] = value, age_s
                        continue
                    else:
                        invalid.setdefault(pod, impossible(signal, value))
                without.append(pod)
            if source.clock.gpu and one.exporter and len(without) < len(left):
                self._used.setdefault(one.exporter, set()).update(set(left).difference(without))
            left = without
            if not left:
                break
        if good:
            self.by_pod[signal] = (
                Aged(good, ages_s)
                if source.aside
                else {pod: Reading(value, ages_s[pod]) for pod, value in good.items()}
            )
        if left:
            self._doubts(signal, source, left, stale, invalid, told, window_s)

    def _ages_of(self, ages: Ages) -> Mapping[str, float]:
        """Ages of the namespace's pods; the many signals of one exporter share them."""
        key = (id(ages.by_pod), ages.since_s)
        known = self._aged.get(key)
        if known is None:
            known = self._aged[key] = ages.of(self.want)
            oldest_s = max((known[pod] for pod in self.want.pods if pod in known), default=0.0)
            self.fresh_s = min(self.fresh_s, ages.limit_s - oldest_s)
        return known

    def take(self, earlier: Builder, since_s: float) -> None:
        """What was found of the same pods `since_s` ago, no longer ago than it keeps fresh."""
        for signal, readings in earlier.by_pod.items():
            self.by_pod[signal] = readings.older(since_s) if since_s and isinstance(readings, Aged) else readings
        self.gaps += earlier.gaps
        self.gpus |= earlier.gpus
        for exporter, pods in earlier._used.items():
            self._used.setdefault(exporter, set()).update(pods)

    def _doubts(
        self,
        signal: Signal,
        source: Source,
        left: Sequence[str],
        stale: Mapping[str, Ages],
        invalid: Mapping[str, str],
        told: Sequence[Told],
        window_s: float,
    ) -> None:
        """A gap for each way in which pods were left without a value."""
        wrong = {pod: what for pod, what in invalid.items() if pod in left}
        old = [pod for pod in left if pod in stale and pod not in wrong]
        absent = [pod for pod in left if pod not in wrong and pod not in stale]
        if absent and not source.aside:
            ages_of = [self._ages_of(one.ages) for one in told]
            seen = {pod: of[pod] for of in ages_of for pod in absent if pod in of}
            self._absent(signal, source, absent, seen, window_s)
        if old:
            ages = stale[old[0]]
            self._stale(signal, source.name, old, self._ages_of(ages), ages)
        if wrong:
            what = next(iter(wrong.values()))
            self.gap(
                signal,
                GapReason.INVALID,
                f"{source.name} of {_named(list(wrong))} is {what}: it is not used",
                [*wrong],
            )

    def devices(self, signal: Signal, told: Sequence[Told]) -> None:
        """The GPUs of each ready pod, as the first exporter with fresh series shows them.

        What any of them knows of a model, of MIG or of sharing counts.
        """
        counts: dict[str, float] = {}
        ages_s: dict[str, float] = {}
        for one in told:
            of_pod, age_of_pod = one.gpus.get(self.want.namespace, {}), self._ages_of(one.ages)
            for pod in self.want.pods:
                found, age_s = of_pod.get(pod), age_of_pod.get(pod)
                if found is None or age_s is None or age_s > one.ages.limit_s:
                    continue
                known = self.gpus.get(pod)
                if known is None:
                    counts[pod], ages_s[pod] = float(found.count), age_s
                    self.gpus[pod] = replace(found, source=one.exporter)
                else:
                    self.gpus[pod] = replace(
                        known,
                        model=known.model or found.model,
                        mig=known.mig or found.mig,
                        shared=known.shared or found.shared,
                        busy_by_gpu=known.busy_by_gpu or found.busy_by_gpu,
                    )
        if counts:
            self.by_pod[signal] = Aged(counts, ages_s)

    def name_sources(self) -> None:
        """Names in the GPUs every exporter that a value of theirs came from, once all levels are in."""
        for pod, gpus in self.gpus.items():
            names = [gpus.source, *(name for name, pods in self._used.items() if pod in pods and name != gpus.source)]
            if len(names) > 1:
                longer = [name for name in names if not any(other.startswith(f"{name} ") for other in names)]
                self.gpus[pod] = replace(gpus, source=", ".join(longer))

    def histogram(self, latency: LatencyWant, source: Source, rows: Sequence[str], table: RowTable, ages: Ages) -> bool:
        """The buckets of the workload's rows added up. False where they contradict each other: their edges changed."""
        age_s = self._youngest(latency.signal, source, ages)
        if age_s is None:
            return True
        own = [table[key] for row in rows if (key := (self.want.namespace, row)) in table]
        counts = _added(own)
        total = counts.pop(TOTAL, None)
        if math.inf not in counts:
            self._no_histogram(latency, source)
            return True
        if not all(0 <= count <= ABSURD for count in counts.values()):
            self.gap(latency.signal, GapReason.INVALID, f"{source.name} has impossible bucket counts: it is not used")
            return True
        edges, rising, sound = _rising(counts)
        self.distributions[latency.signal, round(latency.window_s)] = Distribution(
            window_s=latency.window_s,
            edges=tuple(edges),
            counts=rising,
            total_s=total if total is not None and 0 <= total <= ABSURD else None,
            age_s=age_s,
        )
        return sound

    def summary(
        self, latency: LatencyWant, source: Source, rows: Sequence[str], table: RowTable, ages: Ages, window_s: float
    ) -> None:
        """The worst quantiles of the workload's rows. A quantile that is NaN had nothing to observe."""
        age_s = self._youngest(latency.signal, source, ages)
        if age_s is None:
            return
        scale = source.any_of[0].scale
        worst: dict[int, float] = {}
        for row in rows:
            for percentile, value in table.get((self.want.namespace, row), {}).items():
                if percentile == int(percentile):
                    known = worst.get(int(percentile), math.nan)
                    worst[int(percentile)] = value * scale if math.isnan(known) else max(known, value * scale)
        if not worst:
            self._no_histogram(latency, source)
            return
        quantiles = {percentile: value for percentile, value in worst.items() if not math.isnan(value)}
        for percentile, value in list(quantiles.items()):
            if wrong := impossible(latency.signal, value):
                del quantiles[percentile]
                self.gap(latency.signal, GapReason.INVALID, f"{source.name} p{percentile} is {wrong}: it is not used")
        if lacking := [percentile for percentile in latency.percentiles if percentile not in worst]:
            has = ", ".join(map(str, sorted(worst)))
            self.gap(
                latency.signal,
                GapReason.ABSENT,
                f"{source.name} has the percentiles {has}, not {lacking[0]}: ask for one of these"
                + (f"; {source.hint}" if source.hint else ""),
            )
        self.distributions[latency.signal, round(latency.window_s)] = Distribution(
            window_s=window_s, quantiles=quantiles, age_s=age_s
        )

    def own_level(self, signal: Signal, answer: Answer) -> None:
        """A policy's own query: one value per ready pod, or one for the workload. Its age cannot be known."""
        per_pod, whole = self._split(answer)
        if per_pod:
            readings: dict[str, Reading] = {}
            invalid: dict[str, str] = {}
            for pod in self.want.pods:
                if pod in per_pod:
                    if wrong := impossible(signal, per_pod[pod]):
                        invalid[pod] = wrong
                    else:
                        readings[pod] = Reading(per_pod[pod], 0.0)
            if readings:
                self.by_pod[signal] = readings
            if invalid:
                what = next(iter(invalid.values()))
                self.gap(
                    signal,
                    GapReason.INVALID,
                    f"the query for {signal} gives {what} for {_named([*invalid])}",
                    [*invalid],
                )
            if absent := [pod for pod in self.want.pods if pod not in per_pod]:
                self._lacks_pods(signal, f"the query for {signal} gives", absent)
        elif len(whole) == 1:
            if wrong := impossible(signal, whole[0]):
                self.gap(signal, GapReason.INVALID, f"the query for {signal} gives {wrong}: it is not used")
            else:
                self.totals[signal] = Reading(whole[0], 0.0)
        else:
            self._unclear(signal, whole)

    def own_latency(self, latency: LatencyWant, answers: Mapping[int, Answer]) -> None:
        """A policy's own query for each percentile, in seconds; of several pods the worst counts."""
        quantiles: dict[int, float] = {}
        for percentile, answer in answers.items():
            per_pod, whole = self._split(answer)
            values = [per_pod[pod] for pod in self.want.pods if pod in per_pod] if per_pod else whole
            if not values or (not per_pod and len(values) > 1):
                self._unclear(latency.signal, values)
            elif wrong := next(filter(None, (impossible(latency.signal, value) for value in values)), ""):
                idle = " (without traffic a quantile is NaN: a histogram given as metric does not have that)"
                self.gap(
                    latency.signal,
                    GapReason.INVALID,
                    f"the query for {latency.signal} gives {wrong}{idle if wrong == 'NaN' else ''}: it is not used",
                )
            else:
                quantiles[percentile] = max(values)
        if quantiles:
            self.distributions[latency.signal, round(latency.window_s)] = Distribution(
                window_s=latency.window_s, quantiles=quantiles
            )

    def _split(self, answer: Answer) -> tuple[dict[str, float], list[float]]:
        """Values by pod, those of other namespaces left out, and values without a pod."""
        per_pod: dict[str, float] = {}
        whole: list[float] = []
        for labels, value, _ in answer.samples:
            if labels.get("namespace", self.want.namespace) != self.want.namespace:
                continue
            if pod := labels.get("pod"):
                per_pod[pod] = value
            else:
                whole.append(value)
        return per_pod, whole

    def _unclear(self, signal: Signal, values: Sequence[float]) -> None:
        if values:
            detail = f"gives {len(values)} series without a pod label: wrap it in sum(), max() or sum by (pod) ()"
            self.gap(signal, GapReason.INVALID, f"the query for {signal} {detail}")
        else:
            self.gap(
                signal,
                GapReason.ABSENT,
                f"the query for {signal} gives nothing for {self.want.workload}: try it by hand",
            )

    def _youngest(self, signal: Signal, source: Source, ages: Ages) -> float | None:
        """Age of the youngest sample of the ready pods; None, with a gap, where none is fresh."""
        age_of_pod = ages.of(self.want)
        fresh = [age for pod in self.want.pods if (age := age_of_pod.get(pod)) is not None and age <= ages.limit_s]
        absent = [pod for pod in self.want.pods if pod not in age_of_pod]
        stale = [pod for pod in self.want.pods if age_of_pod.get(pod, 0.0) > ages.limit_s]
        if absent:
            self._absent(signal, source, absent, age_of_pod, 0.0)
        if stale:
            self._stale(signal, source.name, stale, age_of_pod, ages)
        return min(fresh) if fresh else None

    def _no_histogram(self, latency: LatencyWant, source: Source) -> None:
        wanting = source.hint or (
            f"it needs two scrapes in {latency.window_s:.0f} s" if source.read is Read.HISTOGRAM else "check its name"
        )
        self.gap(
            latency.signal,
            GapReason.ABSENT,
            f"{source.name} has no data for {self.want.workload} although {source.clock.exporter} is scraped: "
            f"{wanting}",
        )

    def _absent(
        self, signal: Signal, source: Source, pods: list[str], age_of_pod: Mapping[str, float], window_s: float
    ) -> None:
        exporter = source.clock.exporter
        if len(pods) < len(self.want.pods):
            self._lacks_pods(signal, f"{source.name} has", pods)
        elif not any(pod in age_of_pod for pod in pods):
            remedy = (
                source.hint
                if source.clock.gpu
                else "check that Prometheus scrapes them with the labels namespace and pod"
            )
            self.gap(
                signal,
                GapReason.ABSENT,
                f"no series of {exporter} ({source.name}) for {_named(pods)}: {remedy}",
                pods,
            )
        elif source.read is Read.RATE:
            self.gap(
                signal,
                GapReason.ABSENT,
                f"{source.name} has no rate over {window_s:.0f} s although {exporter} is scraped: it needs two scrapes "
                f"in that time, or {source.hint or 'this version does not export it'}",
                pods,
            )
        else:
            remedy = source.hint or "this version may not export it; give the signal a source in spec.signals"
            self.gap(
                signal, GapReason.ABSENT, f"{source.name} is missing although {exporter} is scraped: {remedy}", pods
            )

    def _lacks_pods(self, signal: Signal, begin: str, pods: list[str]) -> None:
        self.gap(
            signal,
            GapReason.PARTIAL if len(pods) < len(self.want.pods) else GapReason.ABSENT,
            f"{begin} no value for {len(pods)} of {len(self.want.pods)} ready pods: {_named(pods)}",
            pods,
        )

    def _stale(self, signal: Signal, name: str, pods: list[str], age_of_pod: Mapping[str, float], ages: Ages) -> None:
        oldest_s = max(age_of_pod[pod] for pod in pods)
        self.gap(
            signal,
            GapReason.STALE,
            f"{name} of {_named(pods)} is {oldest_s:.0f} s old, more than {ages.limit_s:.0f} s: "
            f"{ages.clock.exporter} or its scrape has stopped",
            pods,
        )


def _most(signal: Signal) -> float:
    return _RATIO_MOST if signal in _SHARES_OF_TIME else _MOST.get(CATALOGUE[signal].unit, ABSURD)


def impossible(signal: Signal, value: float) -> str:
    """What makes a value unusable, "" where nothing does."""
    most = _most(signal)
    if 0.0 <= value <= most:
        return ""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite"
    if value < 0:
        return f"negative ({value:g})"
    if value > ABSURD or most != _RATIO_MOST:
        return f"absurd ({value:.3g})"
    return f"{value:g}, but {signal} is a ratio from 0 to 1 (divide a percentage by 100)"


def _added(rows: Iterable[Mapping[float, float]]) -> dict[float, float]:
    """The rows added up at the edges that all of them have."""
    rows = list(rows)
    if len(rows) < 2:
        return dict(*rows)
    common = set(rows[0]).intersection(*rows[1:])
    return {edge: math.fsum(row[edge] for row in rows) for edge in common}


def _rising(counts: Mapping[float, float]) -> tuple[list[float], tuple[float, ...], bool]:
    """Edges, ascending, with cumulative counts. An edge that dips lacks some pods' series: it is left out."""
    edges: list[float] = []
    rising: list[float] = []
    sound = True
    for edge in sorted(counts):
        below = rising[-1] if rising else 0.0
        count = counts[edge]
        if count < below * (1 - _DIP):
            sound = False
            if not math.isinf(edge):
                continue
        edges.append(edge)
        rising.append(max(count, below))
    return edges, tuple(rising), sound


def _named(pods: Sequence[str]) -> str:
    shown = ", ".join(pods[:_PODS_NAMED])
    more = len(pods) - _PODS_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
