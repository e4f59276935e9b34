"""One collection per tick for all policies: asks what the plan needs, all at once, and hands each policy its own."""

from __future__ import annotations

import asyncio
import logging
import math
import operator
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import RECALL_STEP_S, Earlier, GapReason, GPUs, Recalled
from bandkeeper.signals import plan, promql
from bandkeeper.signals.answer import Answer
from bandkeeper.signals.observe import TOTAL, Ages, Builder, Told, Trouble
from bandkeeper.signals.past import Past, PastQuestion
from bandkeeper.signals.plan import Cohort, Job, Shard
from bandkeeper.signals.prometheus import ErrorKind, PrometheusError, PrometheusServer
from bandkeeper.signals.promql import BUSY, CROWDED, EXPORTER, INSTANCES, MODELS, ROW, SHARED, SUM_EDGE, Scope
from bandkeeper.signals.servers import Lane, SelectionError, Servers
from bandkeeper.signals.sources import Clock, Labels, Read, Source
from bandkeeper.signals.want import LatencyWant, Observations, Want

_log = logging.getLogger(__name__)

SUMMARY_WINDOW_S = 60.0  # prometheus-cpp's sliding window, which Triton's summaries use
GPU_EVERY_S = 25.0  # dcgm-exporter collects every 30 s; a little less, so that every second tick of 15 s asks
ASIDE_EVERY_S = 55.0  # what explains a GPU's work: every fourth tick of 15 s asks
ASIDE_WAIT_S = 0.5  # a policy whose own answers are in waits so long for these, then goes without the new ones
_ASIDE_KEPT_S = 300.0
_EDGES_ABOVE_THRESHOLD = 4.0
_WANTS_PER_TURN = 8  # what is then decided on each takes up to a millisecond, and nothing else runs meanwhile
_REFUSED = frozenset({ErrorKind.UNAUTHORIZED, ErrorKind.BAD_QUERY, ErrorKind.TOO_LARGE})

T = TypeVar("T")
_Pods = dict[str, dict[str, float]]
_Exporters = dict[str, _Pods]  # by the exporter's name, "" where there is but one
_GPUs = dict[str, dict[str, dict[str, GPUs]]]  # exporter -> namespace -> pod
_RowKey = tuple[str, str]
_Level = tuple[Signal, Source, tuple[Told, ...] | Trouble, float]  # with the window of its rate
_Rows = dict[_RowKey, dict[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSettings:
    """How to collect.

    Attributes
    ----------
    servers
        The first one answers for policies that name none.
    allowed_urls
        Prefixes of URLs that a policy may give itself.
    rate_window_s
        Window of counter rates; at least two scrapes must fall into it. A pod that is younger reads low: `rate`
        divides by the whole window and extrapolates only about half a scrape interval beyond its samples.
    stale_after_s, gpu_stale_after_s
        Age at which a sample is no data. GPU exporters collect every 30 s.
    queries_per_policy
        Most queries that one policy may cause by its own sources or its own server.
    series_per_query
        Above this the policies are read in several parts.
    edges_ttl_s
        How long the bucket edges of a histogram are remembered.
    workload_label
        Label that names the workload on all series, "" to tell it from the pods' names.
    namespace_label, pod_label
        What this cluster's scrape configuration calls them.
    earlier_days
        Whether to ask what earlier days had at this hour.
    """

    servers: tuple[PrometheusServer, ...]
    allowed_urls: tuple[str, ...] = ()
    rate_window_s: float = 60.0
    stale_after_s: float = 60.0
    gpu_stale_after_s: float = 90.0
    queries_per_policy: int = 30
    series_per_query: int = 20_000
    edges_ttl_s: float = 300.0
    workload_label: str = ""
    namespace_label: str = "namespace"
    pod_label: str = "pod"
    earlier_days: bool = True


@dataclass(slots=True)
class CollectStats:
    """What one collection cost."""

    queries: int = 0
    failures: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Result:
    """A job's answer, or why it is no data."""

    trouble: Trouble | None = None
    pods: _Exporters = field(default_factory=dict)
    gpus: _GPUs = field(default_factory=dict)
    rows: _Rows = field(default_factory=dict)
    answer: Answer = field(default_factory=lambda: Answer(()))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a query about GPUs gave, and when it was asked."""

    at_s: float
    pods: _Exporters


@dataclass(frozen=True, slots=True)
class _Question:
    """What an answer that was asked for aside is remembered under."""

    server: PrometheusServer
    scope: Scope
    what: Source | Clock
    window_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What was last told aside, when it was asked for, and the ages of that moment; or why it could not be told."""

    at_s: float
    values: _Result
    ages: _Result

    @property
    def trouble(self) -> Trouble | None:
        return self.values.trouble


@dataclass(frozen=True, slots=True)
class _Explained:
    """What one policy's answers aside came to, of which pods and answers, and when."""

    at_s: float
    pods: tuple[str, ...]
    answers: tuple[_Known | None, ...]
    found: Builder


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Bucket edges, with their labels' spellings. Rows of servers of one kind share theirs."""

    labels: Mapping[float, frozenset[str]]


@dataclass(frozen=True, slots=True)
class _Edges:
    """The bucket edges that all series of a row have."""

    at_s: float
    layout: _Layout


class Collector:
    """Reads all policies' signals. One `collect` or `stream` at a time."""

    def __init__(self, settings: CollectorSettings) -> None:
        self.settings = settings
        self.last = CollectStats()
        self._servers = Servers(settings.servers, settings.allowed_urls)
        self._labels = Labels(settings.namespace_label, settings.pod_label)
        self._edges: dict[tuple[PrometheusServer, str], dict[_RowKey, _Edges]] = defaultdict(dict)
        self._gpus: dict[tuple[PrometheusServer, str], _Asked] = {}
        self._aside: dict[_Question, _Known] = {}
        self._asking: dict[_Question | PastQuestion, asyncio.Task[None]] = {}
        self._explained: dict[str, _Explained] = {}
        self._past = Past()

    async def collect(self, wants: Sequence[Want], now_s: float) -> dict[str, Observations]:
        """Observations by the wants' keys. Never raises for a bad policy or a dead server: those give gaps.

        `now_s` is any clock in seconds that only grows; ages are measured on Prometheus' own clock.
        """
        stream = self.stream(wants, now_s, aside_wait_s=None)
        return {key: observations async for key, observations in stream}

    async def stream(
        self, wants: Sequence[Want], now_s: float, *, aside_wait_s: float | None = ASIDE_WAIT_S
    ) -> AsyncIterator[tuple[str, Observations]]:
        """Like `collect`, each policy as soon as its own answers are in: a server that hangs delays only its own.

        What is asked for aside is waited for only so long, and found in the next collection then; None waits for all.
        """
        self.last = stats = CollectStats()
        started_s = time.monotonic()
        self._gpus = {key: known for key, known in self._gpus.items() if 0 <= now_s - known.at_s < GPU_EVERY_S}
        for question in [key for key, one in self._aside.items() if not 0 <= now_s - one.at_s < _ASIDE_KEPT_S]:
            del self._aside[question]
        self._past.forget(now_s)
        asked: list[tuple[PrometheusServer, Want]] = []
        for want in wants:
            try:
                server = self._servers.select(want.prometheus)
            except SelectionError as error:
                yield want.key, _nothing(want, Trouble(GapReason.REFUSED, str(error)))
                continue
            if want.pods:
                asked.append((server, want))
            else:
                yield want.key, _nothing(want, Trouble(GapReason.ABSENT, f"no pod of {want.workload} is ready"))
        keys = {want.key for want in wants}
        for key in [key for key in self._explained if key not in keys]:
            del self._explained[key]
        run = _Run(self, asked, stats, now_s, aside_wait_s)
        try:
            async for found in run.observations():
                yield found
        finally:
            run.cancel()
            self._servers.keep({server for server, _ in asked})
            stats.seconds = time.monotonic() - started_s

    def close(self) -> None:
        """Close all connections."""
        for task in self._asking.values():
            task.cancel()
        self._servers.close()


class _Run:
    """One collection."""

    def __init__(
        self,
        collector: Collector,
        asked: Iterable[tuple[PrometheusServer, Want]],
        stats: CollectStats,
        now_s: float,
        aside_wait_s: float | None,
    ) -> None:
        self._settings = settings = collector.settings
        self._servers = collector._servers
        self._known_edges = collector._edges
        self._known_gpus = collector._gpus
        self._aside = collector._aside
        self._asking = collector._asking
        self._explained = collector._explained
        self._past = collector._past
        self._aside_wait_s = aside_wait_s
        self._questions: dict[plan.Aside, list[tuple[Signal, Source, _Question, float]]] = {}
        self._labels = collector._labels
        self._stats = stats
        self._now_s = now_s
        self._shards: list[Shard] = plan.shards(
            asked,
            series_per_query=settings.series_per_query,
            workload_label=settings.workload_label,
            labels=self._labels,
        )
        self._cohorts = plan.cohorts(
            self._shards,
            rate_window_s=settings.rate_window_s,
            queries_per_policy=settings.queries_per_policy,
            is_named=set(settings.servers),
        )
        self._thresholds_s: dict[Job, float] = {}
        self._rows: dict[Job, set[_RowKey]] = defaultdict(set)
        self._tasks: dict[Job, asyncio.Task[_Result]] = {}
        self._learning: dict[tuple[PrometheusServer, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def observations(self) -> AsyncIterator[tuple[str, Observations]]:
        for cohort in self._cohorts:
            self._note_histograms(cohort)
        jobs = dict.fromkeys(job for cohort in self._cohorts for job in cohort.jobs())
        for job in sorted(jobs, key=lambda job: job.own):  # what policies share goes first
            self._tasks[job] = asyncio.create_task(self._do(job))
            await asyncio.sleep(0)  # long texts take their time to write
        for aside in dict.fromkeys(cohort.aside for cohort in self._cohorts):
            self._ask_aside(aside)
        for cohort in self._cohorts:
            self._ask_past(cohort)
        for ready in asyncio.as_completed([self._answered(cohort) for cohort in self._cohorts]):
            cohort = await ready
            fill = self._filling(cohort)
            for number, (want, rows) in enumerate(cohort.wants, start=1):
                if number % _WANTS_PER_TURN == 0:
                    await asyncio.sleep(0)
                yield want.key, fill(want, rows)

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _answered(self, cohort: Cohort) -> Cohort:
        await asyncio.gather(*{self._tasks[job] for job in cohort.jobs()})
        asking = {self._asking[key] for _, _, key, _ in self._questions[cohort.aside] if key in self._asking}
        if self._aside_wait_s is None:
            asking.update(self._asking[key] for key in self._questions_of_past(cohort) if key in self._asking)
        if asking:
            await asyncio.wait(asking, timeout=self._aside_wait_s)
        return cohort

    def _note_histograms(self, cohort: Cohort) -> None:
        """Which rows a histogram is wanted for, and up to which threshold."""
        rows = {(want.namespace, row) for want, own in cohort.wants for row in own}
        for position, source, job, _ in cohort.latencies:
            if source.read is Read.HISTOGRAM:
                given = [want.latencies[position].threshold_s for want, _ in cohort.wants]
                most_s = max(math.inf if threshold_s is None else threshold_s for threshold_s in given)
                self._thresholds_s[job] = max(self._thresholds_s.get(job, 0.0), most_s)
                self._rows[job] |= rows

    # Asking.

    async def _do(self, job: Job) -> _Result:
        shard = self._shards[job.shard]
        return await _result(self._answer(job, shard))

    async def _answer(self, job: Job, shard: Shard) -> _Result:
        if isinstance(job.what, str):
            return _Result(answer=await self._ask(shard.server, job.what, Answer.whole, Lane.OWN))
        if isinstance(job.what, Clock):
            return _Result(pods=await self._pods(job, job.what, promql.ages(job.what, shard.scope)))
        if job.what.read is Read.HISTOGRAM:
            return await self._histogram(job, job.what, shard)
        if job.what.read is Read.SUMMARY:
            query = promql.quantiles(job.what.any_of[0].metrics[0], shard.scope)
            return _Result(
                rows=await self._ask(shard.server, query, lambda answer: self._by_row(answer, "quantile", 100.0))
            )
        query = promql.values(job.what, shard.scope, job.window_s)
        return _Result(pods=await self._pods(job, job.what.clock, query))

    def _ask_aside(self, aside: plan.Aside) -> None:
        """Asks for what is not known lately and not being asked for already. It outlasts this collection if need be."""
        shard = self._shards[aside.shard]
        clocks: dict[Clock, asyncio.Task[_Result]] = {}
        self._questions[aside] = questions = [
            (signal, source, _Question(shard.server, shard.scope, source, window_s), window_s)
            for signal, source, window_s in aside.sources
        ]
        for _, source, question, _ in questions:
            known = self._aside.get(question)
            fresh = known and not known.trouble and self._now_s - known.at_s < ASIDE_EVERY_S
            if fresh or question in self._asking:
                continue
            clock = source.clock
            if clock not in clocks:
                ages = _Question(shard.server, shard.scope, clock)
                clocks[clock] = asyncio.create_task(_result(self._told_aside(ages, clock)))
            task = asyncio.create_task(self._learn_aside(question, source, clocks[clock]))
            self._asking[question] = task
            task.add_done_callback(self._forgetter(question))

    def _ask_past(self, cohort: Cohort) -> None:
        """What the tokens will be in a while, were today like an earlier day: one step at a time, and never waited for.

        So the steps that lie ahead come together by themselves, at the cost of one moment each.
        """
        for question in self._questions_of_past(cohort):
            if self._past.is_due(question, self._now_s) and question not in self._asking:
                task = asyncio.create_task(self._learn_past(question))
                self._asking[question] = task
                task.add_done_callback(self._forgetter(question))

    def _questions_of_past(self, cohort: Cohort) -> list[PastQuestion]:
        if cohort.tokens is None or not self._settings.earlier_days:
            return []
        shard = self._shards[cohort.shard]
        return [PastQuestion(shard.server, shard.scope, earlier, cohort.tokens) for earlier in Earlier]

    async def _learn_past(self, question: PastQuestion) -> None:
        self._past.asked(question, self._now_s)
        queries = question.queries(max(RECALL_STEP_S, self._settings.rate_window_s))
        try:
            prompts, outputs = [
                await self._ask(question.server, query, self._rates_by_row, Lane.ASIDE) for query in queries
            ]
        except (PrometheusError, _PartialError) as error:
            _log.debug("an earlier day could not be asked for", extra={"error": str(error)})
            return
        self._past.told(question, self._now_s, prompts, outputs)

    def _rates_by_row(self, answer: Answer) -> dict[_RowKey, float]:
        namespace = self._labels.namespace
        return {
            (labels.get(namespace, ""), labels[ROW]): value
            for labels, value, _ in answer.samples
            if labels.get(ROW) and 0 <= value < math.inf
        }

    def _forgetter(self, question: _Question | PastQuestion) -> Callable[[asyncio.Task[None]], object]:
        return lambda _: self._asking.pop(question, None)

    async def _learn_aside(self, question: _Question, source: Source, clock: asyncio.Task[_Result]) -> None:
        """Values with the ages of the same moment: a value is never taken for younger than it is."""
        ages = await clock
        values = ages if ages.trouble else await _result(self._told_aside(question, source))
        if not values.trouble or question not in self._aside:
            self._aside[question] = _Known(self._now_s, values, ages)

    async def _told_aside(self, question: _Question, what: Source | Clock) -> _Result:
        server, scope = question.server, question.scope
        if isinstance(what, Clock):
            query = promql.ages(what, scope)
            return _Result(
                pods=await self._ask(server, query, lambda answer: self._by_pod(answer, what, ages=True), Lane.ASIDE)
            )
        if what.read is Read.DEVICES:
            query = promql.devices(what, scope)
            return _Result(
                gpus=await self._ask(server, query, lambda answer: self._by_gpus(answer, what.clock), Lane.ASIDE)
            )
        query = promql.values(what, scope, question.window_s)
        return _Result(
            pods=await self._ask(server, query, lambda answer: self._by_pod(answer, what.clock, ages=False), Lane.ASIDE)
        )

    async def _ask(
        self, server: PrometheusServer, query: str, take: Callable[[Answer], T], lane: Lane = Lane.SHARED
    ) -> T:
        """What `take` makes of the answer, in the reader's thread: there it holds up nobody."""

        def taken(answer: Answer) -> T:
            if answer.warnings:
                raise _PartialError(
                    f"{server} warns that its answer may be partial ({answer.warnings[0][:120]}): it is not used"
                )
            return take(answer)

        self._stats.queries += 1
        if lane is Lane.SHARED and not self._servers.is_named(server):
            lane = Lane.OWN
        try:
            return await self._servers.reader(server, lane).read(query, taken)
        except (PrometheusError, _PartialError):
            self._stats.failures += 1
            raise

    async def _pods(self, job: Job, clock: Clock, query: str) -> _Exporters:
        """Values, or ages, of each pod. Those of GPUs are asked for seldom: more often they are no news."""
        shard, ages = self._shards[job.shard], isinstance(job.what, Clock)
        known = self._gpus_of(shard.server, query, promql.ages(clock, shard.scope)) if clock.gpu else None
        if known is None:
            pods = await self._ask(shard.server, query, lambda answer: self._by_pod(answer, clock, ages=ages))
            if clock.gpu:
                self._known_gpus[shard.server, query] = _Asked(self._now_s, pods)
            return pods
        since_s = self._now_s - known.at_s
        if not ages or not since_s:
            return known.pods
        return {
            exporter: {space: {pod: age_s + since_s for pod, age_s in of.items()} for space, of in table.items()}
            for exporter, table in known.pods.items()
        }

    def _gpus_of(self, server: PrometheusServer, query: str, ages: str) -> _Asked | None:
        """What a query about GPUs gave a short while ago, if its ages were asked for at the same moment."""
        known, clock = self._known_gpus.get((server, query)), self._known_gpus.get((server, ages))
        return known if known and clock and known.at_s == clock.at_s else None

    async def _histogram(self, job: Job, source: Source, shard: Shard) -> _Result:
        """Buckets of each row, under the first of the source's names that the row has."""
        result = _Result()
        missing = set(self._rows[job])
        for series in source.any_of:
            metric = series.metrics[0]
            async with self._learning[shard.server, metric]:  # another window's query may just be learning them
                known = await self._edges_of(metric, shard, missing)
            here = {row: known[row] for row in missing if row in known}
            if here:
                bound = self._thresholds_s[job] / series.scale
                layouts = {edges.layout for edges in here.values()}
                kept = {layout: _in_use(layout, bound, series.scale) for layout in layouts}
                spelled = {label for layout, used in kept.items() for edge in used for label in layout.labels[edge]}
                query = promql.buckets(metric, spelled, shard.scope, job.window_s)
                rows = await self._ask(shard.server, query, lambda answer: self._by_row(answer, "le", 1.0))
                result.rows |= {
                    row: _in_seconds(counts, kept[here[row].layout], series.scale)
                    for row, counts in rows.items()
                    if row in here
                }
                missing -= here.keys()
            if not missing:
                break
        return result

    async def _edges_of(self, metric: str, shard: Shard, rows: set[_RowKey]) -> Mapping[_RowKey, _Edges]:
        """The rows' edges, asked for where they are unknown or old. A row without the metric is asked for each time."""
        known = self._known_edges[shard.server, metric]
        oldest_s = self._now_s - self._settings.edges_ttl_s
        asked = {row for row in rows if row not in known or known[row].at_s < oldest_s}
        if asked:
            namespaces = tuple(sorted({namespace for namespace, _ in asked}))
            scope = promql.narrowed(shard.scope, namespaces)
            found = await self._ask(shard.server, promql.edges(metric, scope), self._edge_table)
            for row in [row for row in known if known[row].at_s < oldest_s]:
                del known[row]
            known.update({row: edges for row, edges in found.items() if row in asked})
        return known

    # Tables of answers.

    def _by_pod(self, answer: Answer, clock: Clock, *, ages: bool) -> _Exporters:
        tables: _Exporters = defaultdict(lambda: defaultdict(dict))
        names = [(labels.namespace, labels.pod) for labels in promql.habits(clock, self._labels)]
        for labels, value, at_s in answer.samples:
            for namespace, pod in names:
                if pod in labels:
                    table = tables[labels.get(EXPORTER, "")]
                    table[labels.get(namespace, "")][labels[pod]] = at_s - value if ages else value
                    break
        return tables

    def _by_gpus(self, answer: Answer, clock: Clock) -> _GPUs:
        tables: _GPUs = defaultdict(lambda: defaultdict(dict))
        models: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        names = [(labels.namespace, labels.pod) for labels in promql.habits(clock, self._labels)]
        for labels, value, _ in answer.samples:
            for way in names:
                if way[1] in labels:
                    break
            else:
                continue
            place = exporter, namespace, pod = labels.get(EXPORTER, ""), labels.get(way[0], ""), labels[way[1]]
            known = tables[exporter][namespace].get(pod, GPUs(count=0))
            if BUSY in labels:
                one = (_gpu_of(labels), value)
                tables[exporter][namespace][pod] = replace(known, busy_by_gpu=(*known.busy_by_gpu, one))
                continue
            models[place].update(labels[name] for name in MODELS if labels.get(name))
            tables[exporter][namespace][pod] = GPUs(
                model=next(iter(models[place])) if len(models[place]) == 1 else None,
                count=known.count + (0 if CROWDED in labels else round(value)),
                mig=known.mig or any(labels.get(name) for name in INSTANCES),
                shared=known.shared or CROWDED in labels or labels.get(SHARED) == "true",
                busy_by_gpu=known.busy_by_gpu,
            )
        return tables

    def _by_row(self, answer: Answer, label: str, scale: float) -> _Rows:
        """Rows by the number in `label`; several spellings of one number are added up."""
        table: _Rows = defaultdict(dict)
        places: dict[str, float] = {}
        namespace = self._labels.namespace
        for labels, value, _ in answer.samples:
            text = labels.get(label, "")
            place = places.get(text)
            if place is None:
                place = places[text] = TOTAL if text == SUM_EDGE else _number(text, scale)
            key = (labels.get(namespace, ""), labels.get(ROW, ""))
            if key[1] and not math.isnan(place):
                row = table[key]
                row[place] = row.get(place, 0.0) + value
        return table

    def _edge_table(self, answer: Answer) -> dict[_RowKey, _Edges]:
        answer = answer.whole()
        spelled: dict[_RowKey, dict[float, set[str]]] = defaultdict(lambda: defaultdict(set))
        for labels, _, _ in answer.samples:
            key = (labels.get(self._labels.namespace, ""), labels.get(ROW, ""))
            label = labels.get("le", "")
            if key[1] and not math.isnan(edge := _number(label)):
                spelled[key][edge].add(label)
        series = self._by_row(answer, "le", 1.0)
        layouts: dict[frozenset[tuple[float, frozenset[str]]], _Layout] = {}
        table: dict[_RowKey, _Edges] = {}
        for key, edges in spelled.items():
            labels_of = {
                edge: frozenset(labels)
                for edge, labels in edges.items()
                if series[key][edge] >= series[key].get(math.inf, 0.0)  # some pods lack the others
            }
            layout = layouts.setdefault(frozenset(labels_of.items()), _Layout(labels_of))
            table[key] = _Edges(self._now_s, layout)
        return table

    # One policy's part.

    def _filling(self, cohort: Cohort) -> Callable[[Want, tuple[str, ...]], Observations]:
        """What turns one want of an answered cohort into its observations."""
        results = {job: self._tasks[job].result() for job in cohort.jobs()}
        levels = [
            (signal, source, self._told(source, results[job], results[clock]), job.window_s)
            for signal, source, job, clock in cohort.levels
        ]
        questions = self._questions[cohort.aside]
        answers = tuple(self._aside.get(question) for _, _, question, _ in questions)
        aside = [
            (signal, source, self._known(source, known), window_s)
            for (signal, source, _, window_s), known in zip(questions, answers, strict=True)
        ]
        latencies = [
            (position, source, results[job], self._ages(source, results[clock]))
            for position, source, job, clock in cohort.latencies
        ]
        own_latencies = [
            (position, {percentile: results[job] for percentile, job in jobs.items()})
            for position, jobs in cohort.own_latencies
        ]

        past = self._past.of(self._shards[cohort.shard].server, cohort.tokens, self._now_s) if cohort.tokens else None

        def fill(want: Want, rows: tuple[str, ...]) -> Observations:
            builder = Builder(want)
            for signal, trouble in cohort.troubles:
                builder.trouble(signal, trouble)
            _fill_levels(builder, levels)
            self._explain(builder, aside, answers)
            for position, source, result, ages in latencies:
                latency = want.latencies[position]
                if failed := result.trouble or ages.trouble:
                    builder.trouble(latency.signal, failed)
                elif source.read is Read.SUMMARY:
                    builder.summary(latency, source, rows, result.rows, ages, SUMMARY_WINDOW_S)
                elif not builder.histogram(latency, source, rows, result.rows, ages):
                    self._forget_edges(cohort.shard, source, want, rows)
            for signal, job in cohort.own_levels:
                _fill_own_level(builder, signal, results[job])
            for position, by_percentile in own_latencies:
                _fill_own_latency(builder, want.latencies[position], by_percentile)
            return _observations(builder, past.workload(want.namespace, rows) if past else {})

        return fill

    def _explain(self, builder: Builder, aside: Sequence[_Level], answers: tuple[_Known | None, ...]) -> None:
        """Adds what was asked aside, worked out anew only where it has changed."""
        want = builder.want
        before = self._explained.get(want.key)
        since_s = self._now_s - before.at_s if before else 0.0
        same = (
            before is not None
            and before.pods == want.pods
            and len(before.answers) == len(answers)
            and all(map(operator.is_, before.answers, answers))
            and 0.0 <= since_s <= before.found.fresh_s
        )
        if before is not None and same:
            builder.take(before.found, since_s)
            return
        found = Builder(want)
        _fill_levels(found, aside)
        builder.take(found, 0.0)
        if found.gaps:
            self._explained.pop(want.key, None)  # a gap's sentence can tell an age
        else:
            self._explained[want.key] = _Explained(self._now_s, want.pods, answers, found)

    def _ages(self, source: Source, timed: _Result) -> Ages:
        limit_s = self._settings.gpu_stale_after_s if source.clock.gpu else self._settings.stale_after_s
        return Ages(source.clock, timed.pods.get("", {}), limit_s, timed.trouble)

    def _told(self, source: Source, values: _Result, ages: _Result, since_s: float = 0.0) -> tuple[Told, ...] | Trouble:
        """What each exporter tells, in the order in which they count."""
        if failed := values.trouble or ages.trouble:
            return failed
        limit_s = self._settings.gpu_stale_after_s if source.clock.gpu else self._settings.stale_after_s
        limit_s += ASIDE_EVERY_S if source.aside else 0.0
        ranked = dict.fromkeys([*(exporter.name for exporter in source.clock.told_by), *values.pods, *ages.pods])
        return tuple(
            Told(
                exporter=name,
                values=values.pods.get(name, {}),
                gpus=values.gpus.get(name, {}),
                ages=Ages(source.clock, ages.pods.get(name, {}), limit_s, since_s=since_s),
            )
            for name in ranked
            if name in values.pods or name in values.gpus or name in ages.pods
        )

    def _known(self, source: Source, known: _Known | None) -> tuple[Told, ...] | Trouble:
        if known is None:
            return _STILL_ASKED
        return self._told(source, known.values, known.ages, self._now_s - known.at_s)

    def _forget_edges(self, shard: int, source: Source, want: Want, rows: tuple[str, ...]) -> None:
        for series in source.any_of:
            known = self._known_edges[self._shards[shard].server, series.metrics[0]]
            for row in rows:
                known.pop((want.namespace, row), None)


_STILL_ASKED = Trouble(GapReason.ABSENT, "Prometheus has not answered yet: the next collection has it")


async def _result(asking: Awaitable[_Result]) -> _Result:
    """The answer, or why it is no data."""
    try:
        return await asking
    except PrometheusError as error:
        reason = GapReason.REFUSED if error.kind in _REFUSED else GapReason.UNREACHABLE
        return _Result(trouble=Trouble(reason, str(error)))
    except _PartialError as error:
        return _Result(trouble=Trouble(GapReason.PARTIAL, str(error)))
    except Exception as error:  # one policy's odd answer must not cost the others theirs
        _log.exception("query failed in an unforeseen way")
        return _Result(trouble=Trouble(GapReason.UNREACHABLE, f"unforeseen {error!r}: see the log"))


class _PartialError(Exception):
    """The server warned; the text says so."""


def _in_use(layout: _Layout, threshold: float, scale: float) -> dict[float, float]:
    """The edges up to four times the threshold, at least one at or above it, and the infinite one; each scaled."""
    ordered = sorted(layout.labels)
    above = next((edge for edge in ordered if edge >= threshold), math.inf)
    bound = max(_EDGES_ABOVE_THRESHOLD * threshold, above)
    return {edge: round(edge * scale, 9) for edge in ordered if edge <= bound or math.isinf(edge)}


def _in_seconds(counts: Mapping[float, float], kept: Mapping[float, float], scale: float) -> dict[float, float]:
    """The kept edges, and the sum, in the signal's unit."""
    table = {scaled: counts[edge] for edge, scaled in kept.items() if edge in counts}
    if TOTAL in counts:
        table[TOTAL] = counts[TOTAL] * scale
    return table


def _gpu_of(labels: Mapping[str, str]) -> str:
    """What a person calls one GPU, or MIG instance, of a node."""
    instance = next((labels[name] for name in INSTANCES if labels.get(name)), "")
    return f"GPU {labels.get('gpu', '?')}" + (f", instance {instance}" if instance else "")


def _number(text: str, scale: float = 1.0) -> float:
    """The number that a label holds, free of the noise of scaling; NaN where it is none."""
    try:
        return float(text) if scale == 1.0 else round(float(text) * scale, 6)
    except ValueError:
        return math.nan


def _nothing(want: Want, trouble: Trouble) -> Observations:
    builder = Builder(want)
    for signal in sorted(want.signals | {latency.signal for latency in want.latencies}):
        builder.trouble(signal, trouble)
    return _observations(builder)


def _fill_levels(builder: Builder, levels: Sequence[_Level]) -> None:
    for signal, source, told, window_s in levels:
        if isinstance(told, Trouble):
            builder.trouble(signal, told)
        elif source.read is Read.DEVICES:
            builder.devices(signal, told)
        else:
            builder.level_of_any(signal, source, told, window_s)


def _fill_own_level(builder: Builder, signal: Signal, result: _Result) -> None:
    if result.trouble:
        builder.trouble(signal, _of_query(signal, result.trouble))
    else:
        builder.own_level(signal, result.answer)


def _fill_own_latency(builder: Builder, latency: LatencyWant, results: Mapping[int, _Result]) -> None:
    if failed := next((result.trouble for result in results.values() if result.trouble), None):
        builder.trouble(latency.signal, _of_query(latency.signal, failed))
    else:
        builder.own_latency(latency, {percentile: result.answer for percentile, result in results.items()})


def _of_query(signal: str, trouble: Trouble) -> Trouble:
    return Trouble(trouble.reason, f"the query for {signal}: {trouble.sentence}")


def _observations(builder: Builder, recalled: Mapping[Earlier, Recalled] | None = None) -> Observations:
    builder.name_sources()
    return Observations(
        by_pod=builder.by_pod,
        totals=builder.totals,
        distributions=builder.distributions,
        gaps=tuple(builder.gaps),
        gpus=builder.gpus,
        recalled=recalled or {},
    )
