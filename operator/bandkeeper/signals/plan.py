"""Which queries a tick needs. Policies that ask the same share them: their number does not grow with the policies'."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bandkeeper.api.signals import CATALOGUE, LATENCY_SIGNALS, Signal, SignalKind
from bandkeeper.api.snapshot import GapReason
from bandkeeper.api.v1alpha1 import SignalSource
from bandkeeper.signals import promql
from bandkeeper.signals.observe import Trouble
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.prometheus import PrometheusServer
from bandkeeper.signals.promql import Scope
from bandkeeper.signals.sources import Across, Clock, Labels, Preset, Read, Series, Source
from bandkeeper.signals.want import LatencyWant, Want

EDGES_PER_ROW = 24
_ASIDE_WINDOWS = 2.5  # a kubelet or a GPU exporter is scraped half as often as a server
_READ = {
    SignalKind.GAUGE: Read.LEVEL,
    SignalKind.COUNTER: Read.RATE,
    SignalKind.HISTOGRAM: Read.HISTOGRAM,
}
_TIME_UNITS = {"_milliseconds": 1e-3, "_ms": 1e-3, "_microseconds": 1e-6, "_us": 1e-6}


@dataclass(frozen=True, slots=True)
class Shard:
    """Wants of one server that are read together, and the rows in which each one's histograms are found."""

    server: PrometheusServer
    wants: tuple[Want, ...]
    rows: tuple[tuple[str, ...], ...]
    scope: Scope


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to ask of a shard's server: a source's values, a clock's ages, or a policy's own PromQL."""

    shard: int
    what: Source | Clock | str
    window_s: float = 0.0
    own: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Aside:
    """What serves the judgement of quality only: signals of a shard with their sources and windows of rates."""

    shard: int
    sources: tuple[tuple[Signal, Source, float], ...] = ()


@dataclass(slots=True)
class Cohort:
    """Wants that ask exactly the same, and where each of their signals is found.

    Attributes
    ----------
    aside
        What nothing waits for; one and the same for all cohorts that want the same of it.
    tokens
        Where prompt and output tokens come from, to be asked for of earlier days too.
    own_latencies
        Job per percentile of each latency that the policy queries itself.
    troubles
        Signals that cannot even be asked for.
    """

    shard: int
    aside: Aside
    tokens: tuple[Source, Source] | None = None
    wants: list[tuple[Want, tuple[str, ...]]] = field(default_factory=list)
    levels: list[tuple[Signal, Source, Job, Job]] = field(default_factory=list)
    latencies: list[tuple[int, Source, Job, Job]] = field(default_factory=list)
    own_levels: list[tuple[Signal, Job]] = field(default_factory=list)
    own_latencies: list[tuple[int, Mapping[int, Job]]] = field(default_factory=list)
    troubles: list[tuple[Signal, Trouble]] = field(default_factory=list)

    def jobs(self) -> Iterable[Job]:
        """What has to be answered before the wants are."""
        for _, _, job, clock in (*self.levels, *self.latencies):
            yield job
            yield clock
        for _, job in self.own_levels:
            yield job
        for _, by_percentile in self.own_latencies:
            yield from by_percentile.values()


@dataclass(slots=True)
class _Budget:
    """Queries that a policy pays for itself."""

    left: int

    def take(self, jobs: int) -> bool:
        if jobs > self.left:
            return False
        self.left -= jobs
        return True


def shards(
    wants: Iterable[tuple[PrometheusServer, Want]], *, series_per_query: int, workload_label: str, labels: Labels
) -> list[Shard]:
    """Parts of at most `series_per_query` series in any one answer, per server; nearly always one."""
    by_server: dict[PrometheusServer, list[Want]] = defaultdict(list)
    for server, want in wants:
        by_server[server].append(want)
    found = []
    for server, all_of in by_server.items():
        parts: list[list[tuple[Want, tuple[str, ...]]]] = []
        room = 0
        for want in sorted(all_of, key=lambda want: want.namespace):
            rows = promql.rows_of(want.workload, want.pods, workload_label)
            weight = max(len(want.pods), EDGES_PER_ROW * len(rows))
            if weight > room or not parts:
                parts.append([])
                room = series_per_query
            room -= weight
            parts[-1].append((want, rows))
        namespaces = [frozenset(want.namespace for want, _ in part) for part in parts]
        for number, part in enumerate(parts):
            neighbours = {*namespaces[number - 1 : number], *namespaces[number + 1 : number + 2]}
            split = any(namespaces[number] & other for other in neighbours)
            found.append(_shard(server, part, namespaces[number], split, workload_label, labels))
    return found


def _shard(
    server: PrometheusServer,
    part: Sequence[tuple[Want, tuple[str, ...]]],
    namespaces: frozenset[str],
    split: bool,
    workload_label: str,
    labels: Labels,
) -> Shard:
    named = tuple(sorted({row.removeprefix("pod/") for _, rows in part for row in rows if row.startswith("pod/")}))
    scope = Scope(
        namespaces=tuple(sorted(namespaces)),
        pods=promql.pods_of(sorted({want.workload for want, _ in part}), named) if split else "",
        named_pods=named,
        workload_label=workload_label,
        labels=labels,
    )
    return Shard(server, tuple(want for want, _ in part), tuple(rows for _, rows in part), scope)


def cohorts(
    shards: Sequence[Shard], *, rate_window_s: float, queries_per_policy: int, is_named: set[PrometheusServer]
) -> list[Cohort]:
    """The shards' wants by what they ask."""
    found: dict[object, Cohort] = {}
    asides: dict[tuple[int, str, frozenset[Signal]], Aside] = {}
    for number, shard in enumerate(shards):
        for want, rows in zip(shard.wants, shard.rows, strict=True):
            asked = tuple((latency.signal, latency.window_s) for latency in want.latencies)
            own = want.key if want.overrides else ""
            key = (number, want.runtime, want.signals, asked, own)
            cohort = found.get(key)
            if cohort is None:
                asked_aside = _asked_aside(want)
                aside = asides.setdefault(
                    (number, want.runtime, asked_aside), _aside(number, want, asked_aside, rate_window_s)
                )
                all_own = shard.server not in is_named
                budget = _Budget(queries_per_policy)
                begun = Cohort(number, aside, _tokens(want))
                cohort = found[key] = _cohort(begun, want, rate_window_s, budget, all_own)
            cohort.wants.append((want, rows))
    return list(found.values())


def _asked_aside(want: Want) -> frozenset[Signal]:
    """The signals that come from the runtime's preset and serve the judgement of quality only."""
    preset = PRESETS.get(want.runtime)
    own = {source.signal for source in want.overrides}
    sources = preset.sources if preset else {}
    return frozenset(name for name in want.signals if name not in own and name in sources and sources[name].aside)


def _tokens(want: Want) -> tuple[Source, Source] | None:
    """The preset's sources of tokens; none where the policy wants no tokens, or has a source of its own.

    Only plain counters: their rows are added up on the server, whatever their pods were called.
    """
    asked = (Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS)
    preset = PRESETS.get(want.runtime)
    if preset is None or not want.signals.issuperset(asked) or any(one.signal in asked for one in want.overrides):
        return None
    prompts, outputs = (preset.sources.get(signal) for signal in asked)
    if prompts is None or outputs is None or not (_is_plain(prompts) and _is_plain(outputs)):
        return None
    return prompts, outputs


def _is_plain(source: Source) -> bool:
    return all(len(one.metrics) == 1 and one.scale == 1.0 and not one.per for one in source.any_of)


def _aside(shard: int, want: Want, asked: frozenset[Signal], rate_window_s: float) -> Aside:
    sources = PRESETS[want.runtime].sources if asked else {}
    window_s = _ASIDE_WINDOWS * rate_window_s
    return Aside(
        shard,
        tuple(
            (signal, source, window_s if source.read is Read.RATE else 0.0)
            for signal in Signal
            if signal in asked
            for source in (sources[signal],)
        ),
    )


def _cohort(cohort: Cohort, want: Want, rate_window_s: float, budget: _Budget, all_own: bool) -> Cohort:
    shard = cohort.shard
    preset = PRESETS.get(want.runtime)
    overrides = {source.signal: source for source in want.overrides}
    paid: set[Job] = set()

    def affordable(jobs: Iterable[Job], own: bool) -> bool:
        new = {job for job in jobs if job not in paid} if own or all_own else set()
        if not budget.take(len(new)):
            return False
        paid.update(new)
        return True

    latency_of = {number: latency.signal for number, latency in enumerate(want.latencies)}
    levels = want.signals - {signal for signal, _, _ in cohort.aside.sources}
    for position, signal in [*latency_of.items(), *((None, signal) for signal in Signal if signal in levels)]:
        override = overrides.get(signal)
        latency = want.latencies[position] if position is not None else None
        window_s = latency.window_s if latency else rate_window_s
        source = _source(signal, override, preset)
        if override is not None and override.query is not None:
            jobs = _own_jobs(shard, want, override.query, latency, window_s)
            if not affordable(jobs.values(), own=True):
                cohort.troubles.append((signal, _too_many(signal)))
            elif position is None:
                cohort.own_levels.append((signal, jobs[0]))
            else:
                cohort.own_latencies.append((position, jobs))
        elif source is None:
            cohort.troubles.append((signal, _no_source(signal, want.runtime, preset)))
        else:
            own = override is not None
            job = Job(shard, source, window_s if source.read in (Read.RATE, Read.HISTOGRAM) else 0.0)
            clock = Job(shard, source.clock)
            if not affordable((job, clock), own):
                cohort.troubles.append((signal, _too_many(signal)))
            elif position is None:
                cohort.levels.append((signal, source, job, clock))
            else:
                cohort.latencies.append((position, source, job, clock))
    return cohort


def _own_jobs(shard: int, want: Want, query: str, latency: LatencyWant | None, window_s: float) -> dict[int, Job]:
    """The policy's query for each percentile asked for; one job where it has no `$percentile`. Levels have key 0."""
    percentiles: Sequence[int] = (latency.percentiles or (95,)) if latency else (0,)
    return {
        percentile: Job(
            shard,
            promql.expand(
                query,
                namespace=want.namespace,
                workload=want.workload,
                pods=want.pods,
                window_s=window_s,
                percentile=percentile or None,
            ),
            own=True,
        )
        for percentile in percentiles
    }


def _source(signal: Signal, override: SignalSource | None, preset: Preset | None) -> Source | None:
    if override is None:
        return preset.sources.get(signal) if preset else None
    if override.metric is None:
        return None
    known = preset.sources.get(signal) if preset else None
    return named_source(signal, override.metric, known)


def named_source(signal: Signal, metric: str, known: Source | None = None) -> Source:
    """A source that reads `metric` the way its signal's kind is read.

    A latency whose name says milliseconds or microseconds is scaled to seconds; a metric that the preset itself knows
    keeps the preset's scale.
    """
    kind = CATALOGUE[signal].kind
    metric = metric.removesuffix("_bucket") if kind is SignalKind.HISTOGRAM else metric
    clock_metric = f"{metric}_count" if kind is SignalKind.HISTOGRAM else metric
    series = next((_read_like(one, metric) for one in known.any_of if _names(one) == [metric]), None) if known else None
    if series is None:
        units = _TIME_UNITS if signal in LATENCY_SIGNALS else {}
        scale = next((factor for suffix, factor in units.items() if metric.endswith(suffix)), 1.0)
        series = Series((metric,), scale)
    return Source(
        read=_READ[kind],
        any_of=(series,),
        clock=Clock(
            metrics=(clock_metric,),
            exporter=metric,
            labels=known.clock.labels if known else (Labels(),),
            gpu=known.clock.gpu if known else False,
            identity=known.clock.identity if known else (),
        ),
        across=known.across if known else Across.SUM,
    )


def _names(series: Series) -> list[str]:
    return [metric.partition("{")[0] for metric in series.metrics]


def _read_like(series: Series, metric: str) -> Series:
    return Series((metric,), series.scale, blank=series.blank)


def _no_source(signal: Signal, runtime: str, preset: Preset | None) -> Trouble:
    if preset is None:
        return Trouble(GapReason.ABSENT, f"runtime {runtime!r} is unknown: write one of {', '.join(PRESETS)}")
    return Trouble(GapReason.ABSENT, f"runtime {runtime} has no source for {signal}: give it one in spec.signals")


def _too_many(signal: Signal) -> Trouble:
    return Trouble(
        GapReason.REFUSED,
        f"{signal} was not asked for: the policy needs more queries of its own than one policy may have; drop some of "
        "spec.signals",
    )
