"""One fair comparison: every rule at every setting over the same loads and fleet, in a process pool."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import LatencySLO, Policy, ThroughputSLO
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.result import Result
from bandkeeper.lab.rules.catalogue import OURS, RuleError, RuleSource
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.rule import Setting
from bandkeeper.lab.run import simulate
from bandkeeper.lab.server import Server

VERSION: Literal[1] = 1
GOALS: Mapping[Signal, float] = {Signal.TIME_TO_FIRST_TOKEN: 0.99, Signal.INTER_TOKEN_LATENCY: 0.95}
OTHER_THROUGHPUT_GOAL = 0.95


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BenchSLO(_Part):
    """A promise and the share that counts as kept. `threshold` is in seconds, or a rate per second where `percentile`
    is None; `goal` is the least attainment, a share.
    """

    signal: str
    percentile: int | None
    threshold: float
    goal: float


class BenchWorkload(_Part):
    """A load of the comparison. `duration_s` includes the warm-up."""

    name: str
    notes: list[str]
    requests: int
    duration_s: float
    start_replicas: int


class BenchPoint(_Part):
    """One rule at one setting over one load with one seed.

    Attributes
    ----------
    rule, label
        Names of the rule and of its setting.
    parameters
        The setting.
    workload
        Name of the load, one of `workloads`.
    gpu_hours
        From the order of each pod to its end, after the warm-up.
    gpu_hours_by_rule
        What one rule alone costs, as in the result of a run; None of a rule that does not tell.
    relative
        GPU-hours over those of the bound of this load (means over the seeds); None without a bound.
    attainment
        By position in `slos`, shares; None where nothing was asked for.
    attainment_both
        Share of requests that kept every latency promise.
    meets_goal
        Every attainment reaches its goal, mean over the seeds.
    is_default, is_best
        The published default; the setting that stands for the rule on this load: the cheapest that meets the goals,
        else the one that misses them by least.
    is_bound
        The cheapest of the rules in hindsight that meets the goals on this load.
    is_hindsight, is_ours
        The rule knows the future; the rule is Bandkeeper.
    scale_actions, batch_actions, oscillations
        After the warm-up; oscillations are changes of direction within 10 minutes.
    """

    rule: str
    label: str
    parameters: dict[str, float | int | str | bool]
    workload: str
    seed: int
    gpu_hours: float
    gpu_hours_wasted: float
    gpu_hours_by_rule: dict[str, float] | None = None
    relative: float | None
    attainment: list[float | None]
    attainment_both: float | None
    meets_goal: bool
    time_in_band: float | None
    errors: int
    unserved: int
    scale_actions: int
    batch_actions: int
    oscillations: int
    is_default: bool
    is_best: bool
    is_bound: bool
    is_hindsight: bool
    is_ours: bool


class BenchResult(_Part):
    """The comparison, for machines: the documented, versioned JSON that the report draws."""

    version: Literal[1] = VERSION
    policy: str
    server: str
    model: str
    gpu: str
    cold_start_s: float
    warmup_s: float
    seeds: list[int]
    protocol: list[str] = Field(description="what was done, one sentence per entry")
    slos: list[BenchSLO]
    workloads: list[BenchWorkload]
    points: list[BenchPoint]


class BenchError(ValueError):
    """The comparison cannot be made; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load, drawn anew for each seed; a trace is the same for all of them."""

    name: str
    by_seed: Mapping[int, Requests]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared, on what. Any process can run a part of it."""

    policy: Policy
    policy_name: str
    server: Server
    server_name: str
    loads: tuple[Load, ...]
    rules: tuple[RuleSource, ...]
    goals: tuple[float, ...]
    start: int | None = None
    warmup_s: float = 900.0

    @property
    def seeds(self) -> tuple[int, ...]:
        """The same for every load."""
        return tuple(self.loads[0].by_seed) if self.loads else ()

    def setting(self, load: int, seed: int) -> Setting:
        """What the rules are built for."""
        return Setting(policy=self.policy, server=self.server, requests=self.loads[load].by_seed[seed])


@dataclass(frozen=True, slots=True)
class _Run:
    load: int
    seed: int
    rule: int
    choice: Choice


def goals_of(policy: Policy, written: Mapping[Signal, float] | None = None) -> tuple[float, ...]:
    """The least attainment of each promise, shares in the policy's order.

    TTFT 0.99 and InterTokenLatency 0.95 whatever their percentile, unless `written` says otherwise; other latencies
    their own percentile, throughput 0.95. With an empty mapping every latency has its own percentile.
    """
    chosen = GOALS if written is None else written
    return tuple(
        chosen.get(slo.signal, slo.percentile / 100 if isinstance(slo, LatencySLO) else OTHER_THROUGHPUT_GOAL)
        for slo in policy.slos
    )


def compare(comparison: Comparison, *, workers: int, progress: Callable[[int, int], None] | None = None) -> BenchResult:
    """Run every rule at every setting over every load with every seed; the result is the same for any `workers`.

    Raises
    ------
    BenchError
        There is nothing to compare, or a rule failed.
    """
    runs = _planned(comparison)
    results = _all(comparison, runs, workers, progress or (lambda done, total: None))
    starts = {run.load: start for run, (_, start) in zip(runs, results, strict=True)}
    return BenchResult(
        policy=comparison.policy_name,
        server=comparison.server_name,
        model=comparison.server.model,
        gpu=comparison.server.gpu,
        cold_start_s=comparison.server.cold_start.median_s,
        warmup_s=comparison.warmup_s,
        seeds=list(comparison.seeds),
        protocol=_protocol(comparison),
        slos=[_slo(slo, goal) for slo, goal in zip(comparison.policy.slos, comparison.goals, strict=True)],
        workloads=[_workload(load, starts[index]) for index, load in enumerate(comparison.loads)],
        points=_judged([point for point, _ in results], comparison.goals),
    )


def _planned(comparison: Comparison) -> list[_Run]:
    if not comparison.loads or not comparison.rules:
        raise BenchError("name at least one load and one rule")
    seeds = comparison.seeds
    runs = [
        _Run(load, seed, rule, choice)
        for load in range(len(comparison.loads))
        for rule, source in enumerate(comparison.rules)
        for choice in source.choices(comparison.setting(load, seeds[0]))
        for seed in seeds
    ]
    if not runs:
        raise BenchError("none of these rules fits this server")
    return runs


def _all(
    comparison: Comparison, runs: Sequence[_Run], workers: int, progress: Callable[[int, int], None]
) -> list[_Ran]:
    """Results in the order of `runs`."""
    if workers == 1:
        done = []
        for run in runs:
            done.append(_run(comparison, run))
            progress(len(done), len(runs))
        return done
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(comparison,)) as pool:
        futures: list[Future[_Ran]] = [pool.submit(_run_here, run) for run in runs]
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(count, len(runs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


_Ran = tuple[BenchPoint, int]  # and the replicas that it started with
_here: list[Comparison] = []


def _begin(comparison: Comparison) -> None:
    _here[:] = [comparison]


def _run_here(run: _Run) -> _Ran:
    return _run(_here[0], run)


def _run(comparison: Comparison, run: _Run) -> _Ran:
    source = comparison.rules[run.rule]
    setting = comparison.setting(run.load, run.seed)
    try:
        result = simulate(
            setting,
            source.build(setting, run.choice),
            rule_name=source.name,
            policy_name=comparison.policy_name,
            start=comparison.start,
            warmup_s=comparison.warmup_s,
            seed=run.seed,
        )
    except RuleError:
        raise
    except Exception as error:
        if source.file is None:
            raise
        raise BenchError(f"{source.file}: {type(error).__name__}: {error}") from error
    return _point(comparison, run, result), result.start_replicas


def _point(comparison: Comparison, run: _Run, result: Result) -> BenchPoint:
    source = comparison.rules[run.rule]
    return BenchPoint(
        rule=source.title,
        label=run.choice.label,
        parameters=dict(run.choice.parameters),
        workload=comparison.loads[run.load].name,
        seed=run.seed,
        gpu_hours=result.gpu_hours,
        gpu_hours_wasted=result.gpu_hours_wasted,
        gpu_hours_by_rule=result.gpu_hours_by_rule,
        relative=None,
        attainment=[slo.attainment for slo in result.slos],
        attainment_both=result.attainment_both,
        meets_goal=False,
        time_in_band=result.time_in_band,
        errors=result.errors,
        unserved=result.requests.unserved,
        scale_actions=result.scale_actions,
        batch_actions=result.batch_actions,
        oscillations=result.oscillations,
        is_default=run.choice.default,
        is_best=False,
        is_bound=False,
        is_hindsight=source.hindsight,
        is_ours=source.name == OURS,
    )


def _slo(slo: LatencySLO | ThroughputSLO, goal: float) -> BenchSLO:
    if isinstance(slo, LatencySLO):
        return BenchSLO(signal=slo.signal, percentile=slo.percentile, threshold=slo.threshold_s, goal=goal)
    return BenchSLO(signal=slo.signal, percentile=None, threshold=slo.min_per_s, goal=goal)


def _workload(load: Load, start_replicas: int) -> BenchWorkload:
    requests = next(iter(load.by_seed.values()))
    return BenchWorkload(
        name=load.name,
        notes=list(requests.notes),
        requests=len(requests),
        duration_s=requests.duration_s,
        start_replicas=start_replicas,
    )


@dataclass(frozen=True, slots=True)
class Mean:
    """A rule at one setting on one load: means over the seeds. `shortfall` is by how much the goals are missed."""

    gpu_hours: float
    attainment: tuple[float | None, ...]
    shortfall: float

    @classmethod
    def of(cls, points: Sequence[BenchPoint], goals: Sequence[float]) -> Mean:
        """The mean of one setting's points; a promise that nothing was asked of is kept."""
        attainment = tuple(mean_of([point.attainment[slo] for point in points]) for slo in range(len(goals)))
        missed = [max(0.0, goal - kept) for goal, kept in zip(goals, attainment, strict=True) if kept is not None]
        return cls(fmean(point.gpu_hours for point in points), attainment, sum(missed))


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _judged(points: Sequence[BenchPoint], goals: Sequence[float]) -> list[BenchPoint]:
    """With what only the whole comparison knows: goals met over the seeds, best settings, bounds, relative costs."""
    settings: dict[tuple[str, str, str], list[BenchPoint]] = {}
    for point in points:
        settings.setdefault((point.workload, point.rule, point.label), []).append(point)
    means = {key: Mean.of(some, goals) for key, some in settings.items()}
    best: dict[tuple[str, str], tuple[str, str, str]] = {}
    bound: dict[str, tuple[str, str, str]] = {}
    for key, mean in means.items():
        workload, rule, _ = key
        if (workload, rule) not in best or _rank(mean) < _rank(means[best[workload, rule]]):
            best[workload, rule] = key
        cheaper = workload not in bound or mean.gpu_hours < means[bound[workload]].gpu_hours
        if settings[key][0].is_hindsight and mean.shortfall == 0 and cheaper:
            bound[workload] = key
    judged = []
    for point in points:
        key = (point.workload, point.rule, point.label)
        base = bound.get(point.workload)
        changes = {
            "meets_goal": means[key].shortfall == 0,
            "is_best": best[point.workload, point.rule] == key,
            "is_bound": base == key,
            "relative": point.gpu_hours / means[base].gpu_hours if base and means[base].gpu_hours else None,
        }
        judged.append(point.model_copy(update=changes))
    return judged


def _rank(mean: Mean) -> tuple[float, float]:
    """Less is better: first what misses the goals by least, then what costs least."""
    return (mean.shortfall, mean.gpu_hours)


def _protocol(comparison: Comparison) -> list[str]:
    start = "1.2 x the work of the warm-up's busiest minute" if comparison.start is None else f"{comparison.start}"
    cold = comparison.server.cold_start
    return [
        f"The first {comparison.warmup_s:g} s are warm-up: they count neither in cost nor in attainment, and the start "
        f"size ({start} replicas) is a floor meanwhile, for every rule.",
        "GPU-hours run from the order of a pod to its end. Pods that are not ready go first on scale-in, newest first.",
        f"A pod serves {cold.median_s:g} s after its order (median; log-normal, spread {cold.spread:g}); pod number k "
        "takes the same time under every rule.",
        "TTFT is judged by requests, inter-token latency by tokens; failed, refused and unserved requests are misses.",
        "Rules see metrics as Prometheus has them: 15-s scrapes, GPU counters of 30 s. Rules that scrape by themselves "
        "(Knative 2 s, Chiron-style and Dynamo-style 5 s) do so here.",
        "Rules with a model are given the server's true constants; lengths and rates they measure.",
        "Every rule is swept, and stands in the table at its best setting on each load: the cheapest that meets every "
        "goal, else the one that misses them by least. Rules for use have to choose one setting beforehand.",
        "The bound is the cheapest rule in hindsight (it knows the requests to come, and waits for its pods like all) "
        "that meets every goal.",
        f"Loads are drawn anew for each of {len(comparison.seeds)} seed(s); goals are met by the mean over the seeds.",
    ]


@dataclass(frozen=True, slots=True)
class Overall:
    """A rule at one setting over all loads. `relative` is its GPU-hours over the bounds' on the loads that have one;
    attainments are means over the seeds: their mean and their least over the loads.
    """

    rule: str
    label: str
    relative: float | None
    loads_kept: int
    attainment_mean: tuple[float | None, ...]
    attainment_worst: tuple[float | None, ...]
    moves_per_hour: float


def overall(result: BenchResult) -> list[Overall]:
    """Each rule at the one setting that keeps the goals on most loads, then misses them by least, then costs least.
    Those that keep most loads come first, then the cheaper ones. Rules in hindsight choose anew on each load.
    """
    goals = [slo.goal for slo in result.slos]
    by_setting: dict[tuple[str, str], dict[str, list[BenchPoint]]] = {}
    for point in result.points:
        if point.is_hindsight and not point.is_best:
            continue
        label = "best of each load" if point.is_hindsight else point.label
        by_setting.setdefault((point.rule, label), {}).setdefault(point.workload, []).append(point)
    best: dict[str, tuple[tuple[int, float, float], Overall]] = {}
    for (rule, label), by_load in by_setting.items():
        if len(by_load) < len(result.workloads):
            continue
        means = [Mean.of(points, goals) for points in by_load.values()]
        kept = sum(mean.shortfall == 0 for mean in means)
        rank = (-kept, sum(mean.shortfall for mean in means), sum(mean.gpu_hours for mean in means))
        if rule not in best or rank < best[rule][0]:
            best[rule] = (rank, _overall(result, rule, label, by_load, means))
    return sorted((one for _, one in best.values()), key=lambda one: (-one.loads_kept, one.relative or 0.0))


def _overall(
    result: BenchResult, rule: str, label: str, by_load: Mapping[str, Sequence[BenchPoint]], means: Sequence[Mean]
) -> Overall:
    bounds = {point.workload: point.gpu_hours / point.relative for point in result.points if point.relative}
    bounded = [mean.gpu_hours for load, mean in zip(by_load, means, strict=True) if load in bounds]
    hours = sum((load.duration_s - result.warmup_s) / 3600.0 for load in result.workloads)
    moves = sum(fmean(point.scale_actions for point in points) for points in by_load.values())
    kept = [[one for mean in means if (one := mean.attainment[slo]) is not None] for slo in range(len(result.slos))]
    return Overall(
        rule=rule,
        label=label,
        relative=sum(bounded) / sum(bounds.values()) if bounds else None,
        loads_kept=sum(mean.shortfall == 0 for mean in means),
        attainment_mean=tuple(mean_of(shares) for shares in kept),
        attainment_worst=tuple(min(shares, default=None) for shares in kept),
        moves_per_hour=moves / hours,
    )
