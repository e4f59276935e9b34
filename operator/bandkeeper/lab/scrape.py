"""The fleet's counters as Prometheus has them: scraped now and then, so late, and read as the operator's queries do.

All pods are scraped together, half a scrape interval before the rules' ticks: the mean delay of scrapes whose phases
are spread. Counters are read with the extrapolation and the counter resets of Prometheus' `rate` and `increase`. The
GPUs' exporter collects every 30 s and shows means of that time until it collects again.

Triton computes percentiles itself; they are read from a dynamic-batching fleet's histograms, whose buckets have to be
fine for that.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandkeeper.api.signals import CATALOGUE, Signal, SignalKind
from bandkeeper.api.snapshot import RECALL_STEP_S, PodState
from bandkeeper.lab import power
from bandkeeper.lab.fleet import Counters, Fleet, Histograms, PodNow
from bandkeeper.lab.past import Past
from bandkeeper.lab.server import DynamicServer, Server

SCRAPE_S = 15.0
DCGM_S = 30.0
KEPT_S = 1800.0
RATE_WINDOW_S = 60.0  # of levels that only counters tell
SM_SHARE = 0.85  # of busy time, as the emulated exporter has it

Floats = npt.NDArray[np.float64]

_GPU = ("busy", "tensor", "dram", "watts")
_GAUGES = ("running", "waiting", "kv_usage", *_GPU)
_COUNTERS = (
    *("finished", "rejected", "failed", "preemptions", "prompt_tokens", "generation_tokens", "executions"),
    *("ended", "compute_s"),
)
_FIRST_COUNTER = len(_GAUGES)
_HISTOGRAMS = {
    Signal.INTER_TOKEN_LATENCY: "itl",
    Signal.TIME_TO_FIRST_TOKEN: "ttft",
    Signal.END_TO_END_LATENCY: "e2e",
    Signal.QUEUE_TIME: "queue",
}
_GPU_COLUMNS = {
    Signal.GPU_UTILIZATION: "busy",
    Signal.GR_ENGINE_ACTIVE: "busy",
    Signal.SM_ACTIVE: "busy",
    Signal.TENSOR_ACTIVE: "tensor",
    Signal.DRAM_ACTIVE: "dram",
    Signal.POWER: "watts",
}
_COLUMNS = {
    Signal.REQUESTS_RUNNING: "running",
    Signal.REQUESTS_WAITING: "waiting",
    Signal.REQUESTS_FINISHED: "ended",
    Signal.REQUESTS_FAILED: "failed",
    Signal.REQUESTS_REJECTED: "rejected",
    Signal.PREEMPTIONS: "preemptions",
    Signal.PROMPT_TOKENS: "prompt_tokens",
    Signal.GENERATION_TOKENS: "generation_tokens",
    Signal.KV_CACHE_UTILIZATION: "kv_usage",
    Signal.SAMPLES: "finished",
    **_GPU_COLUMNS,
}
_SCRAPED = (PodState.READY, PodState.TERMINATING)


@dataclass(frozen=True, slots=True)
class _Scrape:
    """One scrape: a row per pod that answered, and of pods that began anew what their counters had had before."""

    at_s: float
    pods: tuple[str, ...]
    values: Floats
    lost: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class _Window:
    """The first and the last sample of each pod that has two in a window, and how many it has.

    Times and counts are float64 (pods,), the samples float64 (pods, columns).
    """

    pods: tuple[str, ...]
    first_s: Floats
    last_s: Floats
    samples: Floats
    first: Floats
    last: Floats


@dataclass(frozen=True, slots=True)
class _Growth:
    """By how much each column of each pod grew in a window: as Prometheus extrapolates it, and between its samples."""

    pods: tuple[str, ...]
    extrapolated: Floats
    sampled: Floats


class Scraper:
    """Collects at `next_s`; then it answers as `Metrics` does."""

    def __init__(self, server: Server, *, scrape_s: float = SCRAPE_S, keep_s: float = KEPT_S) -> None:
        self.now_s = 0.0
        self._server, self._dynamic = server, isinstance(server, DynamicServer)
        self._scrape_s, self._keep_s = scrape_s, keep_s
        self._next_scrape_s, self._next_dcgm_s = scrape_s / 2, DCGM_S
        self._scrapes: list[_Scrape] = []
        self._times: list[float] = []
        self._raw: dict[str, Floats] = {}
        self._activity: dict[str, tuple[Floats, Floats]] = {}  # by pod: totals at the last collection, its means
        self._ready: tuple[str, ...] = ()
        self._growths: dict[float, _Growth] = {}
        self._columns: dict[str, int] = {}
        self._buckets: dict[str, slice] = {}
        self._edges: dict[str, tuple[float, ...]] = {}
        self.past = Past()
        self._step_ends_s = RECALL_STEP_S

    @property
    def next_s(self) -> float:
        """When something is to be collected next."""
        return min(self._next_scrape_s, self._next_dcgm_s)

    @property
    def last_s(self) -> float | None:
        """When the pods were scraped last."""
        return self._times[-1] if self._times else None

    def collect(self, fleet: Fleet) -> None:
        """Collect what is due; the fleet stands at `next_s`."""
        now_s, counters = fleet.now_s, fleet.counters()
        pods = [pod for pod in fleet.pods if pod.state in _SCRAPED]
        if now_s >= self._next_dcgm_s:
            self._collect_gpus(pods, counters)
            self._next_dcgm_s += DCGM_S
        if now_s >= self._next_scrape_s:
            self._scrape(pods, counters)
            self._next_scrape_s += self._scrape_s

    def at(self, now_s: float, pods: Sequence[PodNow]) -> None:
        """Answer as of `now_s`, about these pods of the fleet."""
        self.now_s = now_s
        self._ready = tuple(pod.name for pod in pods if pod.state is PodState.READY)
        self._growths.clear()
        if not self._dynamic and now_s >= self._step_ends_s:
            self._remember_tokens()

    # What `Metrics` promises.

    def latest(self, signal: Signal) -> Mapping[str, float]:
        """A gauge's last scraped value by ready pod."""
        if self._is_rate(signal):
            return self._from_rates(signal, RATE_WINDOW_S)
        if not self._scrapes:
            return {}
        scrape, column, scale = self._scrapes[-1], self._column(signal), _scale(signal)
        return self._of_ready(scrape.pods, scale * scrape.values[:, column])

    def mean(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        """avg_over_time of a gauge by ready pod."""
        if self._is_rate(signal):
            return self._from_rates(signal, max(window_s, RATE_WINDOW_S))
        return self._over_time(signal, window_s, peak=False)

    def peak(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        """max_over_time of a gauge by ready pod."""
        if self._is_rate(signal):
            return self._from_rates(signal, RATE_WINDOW_S)
        return self._over_time(signal, window_s, peak=True)

    def rate(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        """Per-second rate of a counter by ready pod."""
        if self._is_rate(signal):
            return self._from_rates(signal, window_s)
        if CATALOGUE[signal].kind is not SignalKind.COUNTER:
            raise ValueError(f"{signal} is no counter: ask for its latest value or its mean")
        return self._rate_of(self._column(signal), window_s)

    def quantile(self, signal: Signal, share: float, window_s: float) -> float | None:
        """histogram_quantile of the workload in seconds; None without observations."""
        counts = np.cumsum(self.increase(signal, window_s)[:-1])
        return quantile_of(self.edges_s(signal), counts, share) if counts.size else None

    def average(self, signal: Signal, window_s: float) -> float | None:
        """Mean of a histogram's observations in seconds; None without observations."""
        grown = self.increase(signal, window_s)
        observations = float(grown[:-1].sum())
        return float(grown[-1]) / observations if observations > 0 else None

    # What the snapshot needs besides.

    def edges_s(self, signal: Signal) -> tuple[float, ...]:
        """The finite edges of a histogram's buckets."""
        return self._edges[_HISTOGRAMS[signal]]

    def increase(self, signal: Signal, window_s: float) -> Floats:
        """Observations per bucket of the workload in the window, then their sum in seconds; empty without data.

        Pods that are gone count as long as they have two samples in the window.
        """
        growth = self._growth(window_s)
        if not growth.pods:
            return np.zeros(0)
        grown: Floats = growth.extrapolated[:, self._buckets[_HISTOGRAMS[signal]]].sum(axis=0)
        return grown

    def increase_by_pod(self, signal: Signal, window_s: float) -> Mapping[str, Floats]:
        """The same of each ready pod, as it grew between its samples."""
        growth = self._growth(window_s)
        if not growth.pods:
            return {}
        grown = growth.sampled[:, self._buckets[_HISTOGRAMS[signal]]]
        return {pod: row for pod, row in zip(growth.pods, grown, strict=True) if pod in self._ready}

    def is_scraped(self, pod: str) -> bool:
        """Whether the last scrape has this pod."""
        return bool(self._scrapes) and pod in self._scrapes[-1].pods

    # Collecting.

    def _remember_tokens(self) -> None:
        self._step_ends_s += RECALL_STEP_S
        growth = self._growth(RECALL_STEP_S)
        if growth.pods:
            columns = [self._column(signal) for signal in (Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS)]
            self.past.add(self.now_s, *(growth.extrapolated[:, columns].sum(axis=0) / RECALL_STEP_S).tolist())

    def _collect_gpus(self, pods: Sequence[PodNow], counters: Counters) -> None:
        totals = np.column_stack((counters.busy_s, counters.tensor_s, counters.dram_s))
        before = self._activity
        self._activity = {}
        for pod in pods:
            now = totals[pod.slot]
            then = before[pod.name][0] if pod.name in before else np.zeros(len(now))
            grown = now if np.any(now < then) else now - then
            means = np.minimum(1.0, grown / DCGM_S)
            watts = power.watts(self._server, *means.tolist())
            drawn = math.nan if watts is None else watts * self._server.gpus
            self._activity[pod.name] = now, np.append(means, drawn)

    def _scrape(self, pods: Sequence[PodNow], counters: Counters) -> None:
        names = tuple(pod.name for pod in pods)
        if self._scrapes and self._scrapes[-1].pods == names:
            names = self._scrapes[-1].pods
        raw = self._table(counters)[[pod.slot for pod in pods]]
        for row, name in enumerate(names):
            known = self._activity.get(name)
            raw[row, _FIRST_COUNTER - len(_GPU) : _FIRST_COUNTER] = math.nan if known is None else known[1]
        self._scrapes.append(_Scrape(counters.at_s, names, raw, self._lost(names, raw)))
        self._times.append(counters.at_s)
        if self._times[0] < counters.at_s - 2 * self._keep_s:
            old = bisect_right(self._times, counters.at_s - self._keep_s)
            del self._scrapes[:old], self._times[:old]

    def _table(self, counters: Counters) -> Floats:
        """All columns of all slots."""
        histograms: dict[str, Histograms] = {name: getattr(counters, name) for name in _HISTOGRAMS.values()}
        if not self._columns:
            self._lay_out(histograms)
        nothing = np.full(len(counters.running), math.nan)
        levels = [counters.running, counters.waiting, counters.kv_usage, *[nothing] * len(_GPU)]
        counted = [getattr(counters, name) for name in _COUNTERS[:-2]]
        derived = [counters.finished + counters.failed, counters.e2e.sum_s - counters.queue.sum_s]
        parts = [part for histogram in histograms.values() for part in (histogram.counts, histogram.sum_s)]
        return np.column_stack([*levels, *counted, *derived, *parts]).astype(np.float64)

    def _lay_out(self, histograms: Mapping[str, Histograms]) -> None:
        self._columns = {name: number for number, name in enumerate((*_GAUGES, *_COUNTERS))}
        begin = len(self._columns)
        for name, histogram in histograms.items():
            end = begin + len(histogram.edges_s) + 2
            self._buckets[name], self._edges[name] = slice(begin, end), histogram.edges_s
            begin = end

    def _lost(self, names: Sequence[str], raw: Floats) -> Mapping[str, Floats]:
        """What counters that fell had before: with a restart they begin at 0 again."""
        found: dict[str, Floats] = {}
        for row, name in enumerate(names):
            before, now = self._raw.get(name), raw[row]
            if before is not None and np.any(fell := now[_FIRST_COUNTER:] < before[_FIRST_COUNTER:]):
                found[name] = np.zeros(len(now))
                found[name][_FIRST_COUNTER:] = np.where(fell, before[_FIRST_COUNTER:], 0.0)
        self._raw.update(zip(names, raw, strict=True))
        return found

    # Reading.

    def _since(self, window_s: float) -> list[_Scrape]:
        if window_s > self._keep_s:
            raise ValueError(f"a window of {window_s:g} s is longer than the {self._keep_s:g} s that are kept")
        return self._scrapes[bisect_right(self._times, self.now_s - window_s) :]

    def _growth(self, window_s: float) -> _Growth:
        if window_s not in self._growths:
            scrapes = self._since(window_s)
            window = _ends_of(scrapes)
            sampled = window.last - window.first
            for scrape in scrapes:
                for pod in scrape.lost.keys() & window.pods:
                    row = window.pods.index(pod)
                    sampled[row] += scrape.lost[pod] if scrape.at_s > window.first_s[row] else 0.0
            extrapolated = self._extrapolated(window, sampled, window_s) if window.pods else sampled
            self._growths[window_s] = _Growth(window.pods, extrapolated, sampled)
        return self._growths[window_s]

    def _extrapolated(self, window: _Window, grown: Floats, window_s: float) -> Floats:
        """Prometheus' `increase` over the window that ends now."""
        sampled_s = window.last_s - window.first_s
        between_s = sampled_s / (window.samples - 1)
        to_start_s = window.first_s - (self.now_s - window_s)
        to_start_s = np.where(to_start_s >= 1.1 * between_s, between_s / 2, to_start_s)
        to_end_s = self.now_s - window.last_s
        to_end_s = np.where(to_end_s >= 1.1 * between_s, between_s / 2, to_end_s)
        with np.errstate(divide="ignore", invalid="ignore"):  # no counter was ever below 0
            to_zero_s = np.where(grown > 0, sampled_s[:, None] * window.first / grown, np.inf)
        to_start = np.minimum(to_start_s[:, None], to_zero_s)
        extrapolated: Floats = grown * (1 + (to_start + to_end_s[:, None]) / sampled_s[:, None])
        return extrapolated

    def _rate_of(self, column: int, window_s: float) -> Mapping[str, float]:
        growth = self._growth(window_s)
        return self._of_ready(growth.pods, growth.extrapolated[:, column] / window_s) if growth.pods else {}

    def _is_rate(self, signal: Signal) -> bool:
        """Levels that Triton only tells by its counters."""
        return self._dynamic and signal in (Signal.REQUESTS_RUNNING, Signal.BATCH_SIZE)

    def _from_rates(self, signal: Signal, window_s: float) -> Mapping[str, float]:
        if not self._columns:
            return {}
        if signal is Signal.REQUESTS_RUNNING:  # by Little's law
            return self._rate_of(self._columns["compute_s"], window_s)
        done = self._rate_of(self._columns["finished"], window_s)
        batches = self._rate_of(self._columns["executions"], window_s)
        return {pod: done[pod] / batches[pod] for pod in done if batches[pod] > 0}

    def _over_time(self, signal: Signal, window_s: float, *, peak: bool) -> Mapping[str, float]:
        if not self._columns:
            return {}
        column, by_pod = self._column(signal), dict[str, list[float]]()
        for scrape in self._since(window_s):
            for pod, value in zip(scrape.pods, scrape.values[:, column].tolist(), strict=True):
                if not math.isnan(value):
                    by_pod.setdefault(pod, []).append(value)
        scale = _scale(signal)
        return {
            pod: scale * (max(values) if peak else math.fsum(values) / len(values))
            for pod in self._ready
            if (values := by_pod.get(pod))
        }

    def _of_ready(self, pods: Sequence[str], values: Floats) -> dict[str, float]:
        by_pod = dict(zip(pods, values.tolist(), strict=True))
        return {pod: value for pod in self._ready if not math.isnan(value := by_pod.get(pod, math.nan))}

    def _column(self, signal: Signal) -> int:
        if signal not in _COLUMNS or (signal is Signal.SAMPLES and not self._dynamic):
            raise ValueError(f"the simulated servers do not export {signal}")
        return self._columns[_COLUMNS[signal]]


def _scale(signal: Signal) -> float:
    return SM_SHARE if signal is Signal.SM_ACTIVE else 1.0


def _ends_of(scrapes: Sequence[_Scrape]) -> _Window:
    """Each pod's first and last sample, where it has two."""
    if (
        len(scrapes) >= 2 and scrapes[0].pods is scrapes[-1].pods
    ):  # shared from scrape to scrape while none comes or goes
        first, last = scrapes[0], scrapes[-1]
        return _Window(
            first.pods,
            np.full(len(first.pods), first.at_s),
            np.full(len(first.pods), last.at_s),
            np.full(len(first.pods), float(len(scrapes))),
            first.values,
            last.values,
        )
    found: dict[str, list[tuple[int, int]]] = {}
    for number, scrape in enumerate(scrapes):
        for row, pod in enumerate(scrape.pods):
            found.setdefault(pod, []).append((number, row))
    ends = {pod: (places[0], places[-1], len(places)) for pod, places in found.items() if len(places) >= 2}
    if not ends:
        none = np.zeros(0)
        return _Window((), none, none, none, np.zeros((0, 0)), np.zeros((0, 0)))
    return _Window(
        tuple(ends),
        np.array([scrapes[first[0]].at_s for first, _, _ in ends.values()]),
        np.array([scrapes[last[0]].at_s for _, last, _ in ends.values()]),
        np.array([float(count) for _, _, count in ends.values()]),
        np.stack([scrapes[number].values[row] for (number, row), _, _ in ends.values()]),
        np.stack([scrapes[number].values[row] for _, (number, row), _ in ends.values()]),
    )


def quantile_of(edges_s: Sequence[float], counts: Sequence[float] | Floats, share: float) -> float | None:
    """histogram_quantile: linear inside its bucket, the last finite edge above all; None without observations.

    `counts` are cumulative, one more than there are edges.
    """
    total = float(counts[-1])
    if total <= 0:
        return None
    rank = share * total
    index = next((number for number, count in enumerate(counts) if count >= rank), len(counts) - 1)
    if index >= len(edges_s):
        return float(edges_s[-1])
    below = float(counts[index - 1]) if index else 0.0
    start = edges_s[index - 1] if index else 0.0
    inside = float(counts[index]) - below
    return float(start + (edges_s[index] - start) * ((rank - below) / inside if inside > 0 else 1.0))
