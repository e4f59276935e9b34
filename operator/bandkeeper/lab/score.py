"""How well a run kept its promises and what it cost, exactly, from what became of each request and each pod.

A request counts by its arrival: those of the warm-up do not. Rejected and failed requests are misses, and so are those
that were not served in time; a request whose time was not up when the run ended is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import LatencySLO, Policy, ThroughputSLO
from bandkeeper.lab.fleet import Ledger, Outcome, Status, TokenTotals
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.result import Counts, Move, SLOResult
from bandkeeper.lab.scrape import quantile_of
from bandkeeper.lab.server import DynamicServer, Server

OSCILLATION_S = 600.0

_WAITS = frozenset({Signal.TIME_TO_FIRST_TOKEN, Signal.QUEUE_TIME})

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def itl_thresholds(policy: Policy) -> tuple[float, ...]:
    """The inter-token latencies that the policy promises, seconds, ascending."""
    slos = (slo for slo in policy.slos if isinstance(slo, LatencySLO) and slo.signal is Signal.INTER_TOKEN_LATENCY)
    return tuple(sorted({slo.threshold_s for slo in slos}))


@dataclass(frozen=True, slots=True)
class Kept:
    """Which requests kept a promise and which broke it; in neither: not decided when the run ended."""

    kept: Flags
    broken: Flags

    @property
    def share(self) -> float | None:
        """Of the decided ones; None where there are none."""
        kept, broken = int(self.kept.sum()), int(self.broken.sum())
        return kept / (kept + broken) if kept + broken else None


class Judge:
    """Judges the requests that arrived from `warmup_s` on, as things stood at `end_s`."""

    def __init__(
        self, policy: Policy, server: Server, requests: Requests, outcome: Outcome, *, warmup_s: float, end_s: float
    ) -> None:
        first = int(np.searchsorted(requests.arrival_s, warmup_s))
        self._tokens_known = not isinstance(server, DynamicServer)
        self._thresholds_s = itl_thresholds(policy)
        self._status = outcome.status[first:]
        self._arrival_s = requests.arrival_s[first:]
        self._first_token_s, self._end_s = outcome.first_token_s[first:], outcome.end_s[first:]
        self._due = np.maximum(0, requests.output_tokens[first:] - 1)  # tokens after the first one
        self._emitted, self._late = outcome.tokens[first:], outcome.late_tokens[first:]
        self._age_s = end_s - self._arrival_s
        self._lost: Flags = (self._status == Status.REJECTED) | (self._status == Status.FAILED)
        waits = [slo.threshold_s for slo in policy.slos if isinstance(slo, LatencySLO) and slo.signal in _WAITS]
        self._never_began: Flags = np.zeros(len(self._status), dtype=bool)
        if self._tokens_known:
            self._never_began = ~self._lost & np.isnan(self._first_token_s) & (self._age_s > max(waits, default=0.0))

    def counts(self) -> Counts:
        """The requests by their end."""
        status = self._status
        rejected, failed = int((status == Status.REJECTED).sum()), int((status == Status.FAILED).sum())
        return Counts(
            arrived=len(status),
            finished=int((status == Status.FINISHED).sum()),
            errors=rejected + failed,
            rejected=rejected,
            unserved=int((status == Status.UNSERVED).sum()),
        )

    def is_known(self, slo: LatencySLO) -> bool:
        """Whether each request tells if it kept the promise: of queue times only histograms tell."""
        if slo.signal is Signal.END_TO_END_LATENCY:
            return True
        return self._tokens_known and slo.signal in (Signal.TIME_TO_FIRST_TOKEN, Signal.INTER_TOKEN_LATENCY)

    def requests(self, slo: LatencySLO) -> Kept:
        """Which requests kept a promise; that about tokens is kept where the percentile of the request's own is."""
        if slo.signal is Signal.INTER_TOKEN_LATENCY:
            late = self._late[:, self._thresholds_s.index(slo.threshold_s)]
            allowed_share = 1 - slo.percentile / 100
            hopeless = (late > allowed_share * self._due + 1e-9) | self._never_began
            finished = self._status == Status.FINISHED
            kept = finished & (late <= allowed_share * self._emitted + 1e-9)
            return Kept(kept, self._lost | (finished & ~kept) | (~finished & hopeless))
        took_s = self._latency_s(slo.signal)
        came = ~np.isnan(took_s)
        kept = came & ~self._lost & (took_s <= slo.threshold_s)
        return Kept(kept, self._lost | (came & ~kept) | (~came & (self._age_s > slo.threshold_s)))

    def tokens_kept(self, slo: LatencySLO) -> float | None:
        """Share of tokens in time. Tokens that failed, rejected or never begun requests still owe are misses."""
        late = int(self._late[:, self._thresholds_s.index(slo.threshold_s)].sum(dtype=np.int64))
        emitted = int(self._emitted.sum(dtype=np.int64))
        given_up = self._lost | self._never_began
        owed = np.maximum(0, self._due[given_up] - self._emitted[given_up])
        total = emitted + int(owed.sum(dtype=np.int64))
        return (emitted - late) / total if total else None

    def percentile(self, slo: LatencySLO) -> float | None:
        """The percentile of TTFT or end-to-end latency that was reached; None where it is a request never served."""
        decided = self.requests(slo)
        took_s = self._latency_s(slo.signal)[decided.kept | decided.broken]
        if not took_s.size:
            return None
        ordered = np.sort(np.where(np.isnan(took_s), np.inf, took_s))
        value = float(ordered[max(0, int(np.ceil(slo.percentile / 100 * ordered.size)) - 1)])
        return value if np.isfinite(value) else None

    @property
    def begun_share(self) -> float:
        """Share of requests that some server began or may still begin in time."""
        rejected = (self._status == Status.REJECTED) | self._never_began
        return 1.0 - float(rejected.mean()) if rejected.size else 1.0

    def both(self, slos: Sequence[LatencySLO]) -> float | None:
        """Share of requests that kept every promise that can be told of each request; None where there is none."""
        all_of = [self.requests(slo) for slo in slos if self.is_known(slo)]
        if not all_of:
            return None
        kept = np.logical_and.reduce([one.kept for one in all_of])
        broken = np.logical_or.reduce([one.broken for one in all_of])
        return Kept(kept, broken).share

    def _latency_s(self, signal: Signal) -> Floats:
        """How long each request took; NaN where it did not come to that."""
        if signal is Signal.END_TO_END_LATENCY:
            return np.where(self._status == Status.FINISHED, self._end_s - self._arrival_s, np.nan)
        took_s: Floats = self._first_token_s - self._arrival_s
        return took_s


def latency(slo: LatencySLO, judge: Judge, totals: TokenTotals, warmup_s: float) -> SLOResult:
    """A latency promise that each request tells about."""
    if not judge.is_known(slo):
        return _result(slo, None, None)
    if slo.signal is Signal.INTER_TOKEN_LATENCY:
        return _result(slo, judge.tokens_kept(slo), totals.quantile(slo.percentile / 100, warmup_s))
    return _result(slo, judge.requests(slo).share, judge.percentile(slo))


def queue_time(slo: LatencySLO, judge: Judge, edges_s: Sequence[float], counts: Floats) -> SLOResult:
    """A promise about queue times, from their histogram: interpolated inside its bucket."""
    if not counts.size or not counts.sum():
        return _result(slo, None, None)
    rising = np.concatenate(([0.0], np.cumsum(counts)))
    within = float(np.interp(slo.threshold_s, (0.0, *edges_s), rising[:-1])) / float(rising[-1])
    return _result(slo, within * judge.begun_share, quantile_of(edges_s, rising[1:], slo.percentile / 100))


def throughput(slo: ThroughputSLO, rates: Floats, queued: Flags) -> SLOResult:
    """A promise about a rate: judged in intervals at whose end work waited; the value is the mean of all intervals."""
    asked = rates[queued]
    return SLOResult(
        signal=slo.signal,
        percentile=None,
        threshold=slo.min_per_s,
        attainment=float((asked >= slo.min_per_s).mean()) if asked.size else None,
        value=float(rates.mean()) if rates.size else None,
    )


def _result(slo: LatencySLO, attainment: float | None, value: float | None) -> SLOResult:
    return SLOResult(
        signal=slo.signal, percentile=slo.percentile, threshold=slo.threshold_s, attainment=attainment, value=value
    )


def gpu_hours(ledger: Ledger, gpus: int, *, warmup_s: float, end_s: float) -> float:
    """GPU-hours after the warm-up: from the time a pod got its GPUs, its order unless the cluster was full."""
    begun_s = np.where(np.isnan(ledger.scheduled_s), end_s, np.maximum(ledger.scheduled_s, warmup_s))
    ended_s = np.where(np.isnan(ledger.ended_s), end_s, np.minimum(ledger.ended_s, end_s))
    return float(np.maximum(0.0, ended_s - begun_s).sum()) * gpus / 3600.0


def work_hours(requests: Requests, outcome: Outcome, server: Server, *, warmup_s: float) -> float:
    """GPU-hours that the requests finished after the warm-up take at the best batch."""
    done = (outcome.status == Status.FINISHED) & (outcome.end_s >= warmup_s)
    count = int(done.sum())
    if not count:
        return 0.0
    prompt, output = float(requests.prompt_tokens[done].mean()), float(requests.output_tokens[done].mean())
    return count / server.sustainable_per_s(prompt, output) * server.gpus / 3600.0


def oscillations(moves: Sequence[Move]) -> int:
    """Changes of direction of the replica count within 10 minutes."""
    changes = [
        (move.at_s, move.replicas_to - move.replicas_from) for move in moves if move.replicas_to != move.replicas_from
    ]
    return sum(
        before * change < 0 and at_s - before_s <= OSCILLATION_S
        for (before_s, before), (at_s, change) in pairwise(changes)
    )
