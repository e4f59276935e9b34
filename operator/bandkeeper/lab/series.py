"""What happened over time: levels noted while the run goes on, the rest worked out from the requests when it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import PodState
from bandkeeper.decide.policy import ThroughputSLO
from bandkeeper.lab import power
from bandkeeper.lab.fleet import Counters, Fleet, Outcome, PodNow, Status, TokenTotals
from bandkeeper.lab.result import Series
from bandkeeper.lab.rules.rule import Setting
from bandkeeper.lab.scrape import Scraper, quantile_of
from bandkeeper.quality.classify import DRAM_PEAK, TENSOR_PEAK, Quality, classify, of_peak

MOST_INTERVALS = 1440
WINDOW_S = 60.0
NOTABLE_SHARE = 0.01  # of finished requests: fewer losses are not called an overload

Floats = npt.NDArray[np.float64]
_PENDING = (PodState.PENDING, PodState.UNSCHEDULABLE)


def interval_s(duration_s: float, period_s: float) -> float:
    """Length of an interval: the tick's period, or so many of them that the series stays short."""
    return period_s * max(1, math.ceil(duration_s / period_s / MOST_INTERVALS))


@dataclass(slots=True)
class _Mark:
    """Levels at the end of one interval."""

    at_s: float
    ready: int
    pending: int
    wanted: int
    cap: int
    running: int
    waiting: int
    busy: float | None
    compute: float | None
    memory: float | None
    watts: float | None
    lost: float
    finished: float
    queue_times: Floats = field(default_factory=lambda: np.zeros(0))


class Recorder:
    """Notes levels at each mark; `series` puts everything together."""

    def __init__(self, setting: Setting, scraper: Scraper) -> None:
        self._setting, self._scraper = setting, scraper
        self._asks_queue_times = any(slo.signal is Signal.QUEUE_TIME for slo in setting.policy.slos)
        self._marks: list[_Mark] = []
        self._ready: list[tuple[float, int]] = []
        self._totals: dict[str, Floats] = {}
        self._at_s = 0.0
        self._lost = self._finished = 0.0

    def note(self, at_s: float, pods: tuple[PodNow, ...]) -> None:
        """Take down how many pods serve."""
        self._ready.append((at_s, sum(pod.state is PodState.READY for pod in pods)))

    def mark(self, fleet: Fleet, pods: tuple[PodNow, ...]) -> None:
        """An interval ends now."""
        counters, now_s = fleet.counters(), fleet.now_s
        ready = [pod for pod in pods if pod.state is PodState.READY]
        busy, compute, memory, watts = self._activity(pods, counters, now_s)
        self._marks.append(
            _Mark(
                at_s=now_s,
                ready=len(ready),
                pending=sum(pod.state in _PENDING for pod in pods),
                wanted=fleet.replicas,
                cap=min((pod.cap for pod in ready), default=fleet.cap),
                running=int(counters.running.sum()),
                waiting=int(counters.waiting.sum()) + fleet.held,
                busy=busy,
                compute=compute,
                memory=memory,
                watts=watts,
                lost=self._lost,
                finished=self._finished,
                queue_times=self._queue_times(),
            )
        )
        self._at_s = now_s

    def _activity(
        self, pods: tuple[PodNow, ...], counters: Counters, now_s: float
    ) -> tuple[float | None, float | None, float | None, float | None]:
        """Means of the ready GPUs over the interval, relative to peak, and the power of the one that draws most; counts
        what was lost and finished besides.
        """
        table = np.column_stack(
            (
                counters.busy_s,
                counters.tensor_s,
                counters.dram_s,
                counters.preemptions + counters.rejected + counters.failed,
                counters.finished,
            )
        ).astype(np.float64)
        before, self._totals = self._totals, {pod.name: table[pod.slot] for pod in pods}
        active, ready_s, most = np.zeros(3), 0.0, list[float]()
        for pod in pods:
            now = table[pod.slot]
            then = before.get(pod.name, np.zeros(5))
            grown = now if np.any(now < then) else now - then
            self._lost += float(grown[3])
            self._finished += float(grown[4])
            if pod.state is PodState.READY and pod.ready_s is not None:
                active += grown[:3]
                span_s = now_s - max(self._at_s, pod.ready_s)
                ready_s += span_s
                if span_s > 0 and self._setting.policy.power_watts is not None:
                    drawn = power.watts(self._setting.server, *(grown[:3] / span_s).tolist())
                    most += [] if drawn is None else [drawn]
        if ready_s <= 0:
            return None, None, None, None
        busy, tensor, dram = (float(value) for value in np.minimum(1.0, active / ready_s))
        return busy, of_peak(tensor, TENSOR_PEAK), of_peak(dram, DRAM_PEAK), max(most, default=None)

    def _queue_times(self) -> Floats:
        """Observations per bucket of the last minute: no request tells by itself how long it queued."""
        if not self._asks_queue_times or self._scraper.last_s is None:
            return np.zeros(0)
        return self._scraper.increase(Signal.QUEUE_TIME, WINDOW_S)[:-1]

    def queue_times(self, warmup_s: float) -> Floats:
        """Observations per bucket of all intervals after the warm-up, empty where there were none."""
        found = [mark.queue_times for mark in self._marks if mark.at_s > warmup_s and mark.queue_times.size]
        return np.sum(found, axis=0) if found else np.zeros(0)

    def ends_s(self) -> Floats:
        """Ends of the intervals."""
        return np.array([mark.at_s for mark in self._marks])

    def queued(self) -> npt.NDArray[np.bool_]:
        """Whether work waited at the end of each interval."""
        return np.array([mark.waiting > 0 for mark in self._marks], dtype=bool)

    def produced_per_s(self, signal: Signal, outcome: Outcome, totals: TokenTotals) -> Floats:
        """Rate of work done per interval, in the signal's unit per second."""
        edges, requests = self._edges(), self._setting.requests
        if signal in (Signal.REQUESTS_FINISHED, Signal.SAMPLES):
            return _per_s(outcome.end_s[outcome.status == Status.FINISHED], edges)
        if signal is Signal.PROMPT_TOKENS:
            return _per_s(outcome.first_token_s, edges, requests.prompt_tokens.astype(np.float64))
        later = [int(totals.between(begin, end).sum()) for begin, end in pairwise(edges)]
        return _per_s(outcome.first_token_s, edges) + np.array(later) / np.diff(edges)

    def series(self, outcome: Outcome, totals: TokenTotals) -> Series:
        """Everything per interval."""
        edges, marks = self._edges(), self._marks
        failed = (outcome.status == Status.REJECTED) | (outcome.status == Status.FAILED)
        return Series(
            at_s=[mark.at_s for mark in marks],
            arrived_per_s=_per_s(self._setting.requests.arrival_s, edges).tolist(),
            finished_per_s=_per_s(outcome.end_s[outcome.status == Status.FINISHED], edges).tolist(),
            failed_per_s=_per_s(outcome.end_s[failed], edges).tolist(),
            ready=[mark.ready for mark in marks],
            pending=[mark.pending for mark in marks],
            wanted=[mark.wanted for mark in marks],
            cap=[mark.cap for mark in marks],
            running=[mark.running for mark in marks],
            waiting=[mark.waiting for mark in marks],
            utilization=self._utilization(),
            busy=[mark.busy for mark in marks],
            compute=[mark.compute for mark in marks],
            memory=[mark.memory for mark in marks],
            quality=self._qualities(),
            slo_values=[self._slo_values(number, outcome, totals) for number in range(len(self._setting.policy.slos))],
            watts=[mark.watts for mark in marks] if self._setting.policy.power_watts is not None else [],
        )

    def _edges(self) -> Floats:
        return np.concatenate(([0.0], self.ends_s()))

    def _utilization(self) -> list[float | None]:
        """Offered work of the last minute over what the pods that were ready in it sustain."""
        requests, server = self._setting.requests, self._setting.server
        prompts = np.concatenate(([0], np.cumsum(requests.prompt_tokens, dtype=np.int64)))
        outputs = np.concatenate(([0], np.cumsum(requests.output_tokens, dtype=np.int64)))
        ends = self.ends_s()
        begins = np.maximum(0.0, ends - WINDOW_S)
        firsts = np.searchsorted(requests.arrival_s, begins, side="right")
        lasts = np.searchsorted(requests.arrival_s, ends, side="right")
        noted = np.array([at_s for at_s, _ in self._ready])
        counts = np.concatenate(([0], np.cumsum([ready for _, ready in self._ready])))
        from_note = np.searchsorted(noted, begins, side="right")
        to_note = np.searchsorted(noted, ends, side="right")
        found: list[float | None] = []
        for number, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
            notes = int(to_note[number] - from_note[number])
            ready = float(counts[to_note[number]] - counts[from_note[number]]) / notes if notes else 0.0
            if not ready:
                found.append(None)
                continue
            arrived = last - first
            if not arrived:
                found.append(0.0)
                continue
            prompt = float(prompts[last] - prompts[first]) / arrived
            output = float(outputs[last] - outputs[first]) / arrived
            span_s = float(ends[number] - begins[number])
            found.append(arrived / span_s / server.sustainable_per_s(prompt, output) / ready)
        return found

    def _qualities(self) -> list[str]:
        found: list[str] = []
        for number, mark in enumerate(self._marks):
            before, earlier = self._back(number, WINDOW_S), self._back(number, 2 * WINDOW_S)
            growing = rising = False
            if before is not None and earlier is not None:
                growing = mark.waiting > before.waiting > earlier.waiting and mark.waiting > mark.ready
                lost, lost_before = mark.lost - before.lost, before.lost - earlier.lost
                rising = lost > lost_before and lost > NOTABLE_SHARE * (mark.finished - before.finished)
            quality = classify(mark.busy, mark.compute, mark.memory, queue_growing=growing, losses_rising=rising)
            found.append(quality if mark.ready else Quality.UNKNOWN)
        return [str(quality) for quality in found]

    def _back(self, number: int, by_s: float) -> _Mark | None:
        """The last mark at least so long before."""
        marks, at_s = self._marks, self._marks[number].at_s - by_s
        while number >= 0 and marks[number].at_s > at_s + 1e-9:
            number -= 1
        return marks[number] if number >= 0 else None

    def _slo_values(self, number: int, outcome: Outcome, totals: TokenTotals) -> list[float | None]:
        slo, edges = self._setting.policy.slos[number], self._edges()
        if isinstance(slo, ThroughputSLO):
            return [float(rate) for rate in self.produced_per_s(slo.signal, outcome, totals)]
        share = slo.percentile / 100
        if slo.signal is Signal.INTER_TOKEN_LATENCY:
            return [totals.quantile(share, begin, end) for begin, end in pairwise(edges)]
        if slo.signal is Signal.QUEUE_TIME:
            return [self._queue_quantile(mark.queue_times, share) for mark in self._marks]
        finished = outcome.status == Status.FINISHED
        at_s = np.where(finished, outcome.end_s, np.nan)
        if slo.signal is Signal.TIME_TO_FIRST_TOKEN:
            at_s = outcome.first_token_s
        return _percentiles(at_s, at_s - self._setting.requests.arrival_s, edges, share)

    def _queue_quantile(self, counts: Floats, share: float) -> float | None:
        edges_s = self._scraper.edges_s(Signal.QUEUE_TIME)
        return quantile_of(edges_s, np.cumsum(counts), share) if counts.size else None


def _per_s(at_s: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Events per second in each interval; NaN: it did not happen."""
    happened = ~np.isnan(at_s)
    counts, _ = np.histogram(at_s[happened], bins=edges, weights=None if weights is None else weights[happened])
    rates: Floats = counts / np.diff(edges)
    return rates


def _percentiles(at_s: Floats, took_s: Floats, edges: Floats, share: float) -> list[float | None]:
    """A percentile of what happened in each interval."""
    happened = np.flatnonzero(~np.isnan(at_s))
    happened = happened[np.argsort(at_s[happened], kind="stable")]
    at_s, took_s = at_s[happened], took_s[happened]
    bounds = np.searchsorted(at_s, edges, side="right")
    return [
        float(np.quantile(took_s[begin:end], share)) if end > begin else None
        for begin, end in zip(bounds.tolist(), bounds[1:].tolist(), strict=False)
    ]
