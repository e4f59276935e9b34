"""Offered work from what the fleet shows, in replicas at the best cap: what clients ask for, not what is queued.

A backlog is no demand. Work is what arrives (finished + growth + rejected) times what one request costs, so an overload
of 1.06 reads 1.06 however long the queue has grown, at a lowered cap as at the best one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bandkeeper.api.reasons import SLOState
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Earlier
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Batching, Policy
from bandkeeper.decide.promises import WAIT_SIGNALS
from bandkeeper.decide.state import SAMPLES_LIMIT, DemandMemory, Sample
from bandkeeper.model.curve import NO_FIT, LoadCurve, ServiceFit

SMOOTHING = 0.5  # of the rate window
SERVICE_SMOOTHING = 2.0  # of the time that a request is in process, if that is longer: so long does chance last
OVERLOAD_SMOOTHING = 0.2  # of the rate window; not for ThroughputSensitive while its batch may still grow
NOISE = 5.0  # square roots of a count that are taken for a real change: batches make it twice as noisy as Poisson
FALL_NOISE = 3.0  # the same for a fall over a whole rate window
MOST_LEAD = 1.25  # of the work that is being done: so much more is believed to arrive before it is there
RISE_NOISE = 1.5  # the same for two smoothed values
FEWEST_FINISHED = 20.0  # in one rate window, for a rate to mean anything
LONGEST_MEMORY_S = 600.0
SHORTEST_GROWTH = 0.15  # of the rate window, for growth to be more than noise
RECENT_S = 30.0
GUESSED_SERVICE_S = 30.0  # of a request, where no rate tells
FULL_KV = 0.9
STEADY_SHARE = 0.2  # requests in the fleet may change by this share in a window that is learned from


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What a forecast asks for: `replicas` for the `work` of an earlier day at this hour, in replicas of now.

    `scale` is how much of that day's work today has, 1 where they do not differ clearly.
    """

    source: Earlier
    work: float
    replicas: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Offered work now and recently.

    Attributes
    ----------
    work, peak_work
        Smoothed work, and the most of the scale-down window, in replicas at the best cap. With a model, what is offered
        now and what is to be ready for.
    utilization
        With a model work over ready replicas; else requests in the fleet over what these hold at the best cap,
        smoothed.
    occupancy
        Requests in the fleet over what the ready replicas hold at the best cap, smoothed: what latencies follow.
    request_s
        Replica-seconds of one request at the best cap; None without a usable rate.
    saturated
        Replicas cannot do more: work queues or is refused.
    rising
        Work rose over the last cold start.
    batch_first
        A larger batch is to be tried, or given the time to act, before replicas: a queue may wait for it.
    queued_s_ago
        Seconds since work waited last: latencies show it for their window.
    margin, bound_by
        With a model, replicas per replica of `peak_work` that the promises need, and the promise that needs most.
    bare_margin, present_margin
        The same without any promise; and had nothing been remembered, so that the present work is all that is held.
    mean_work
        With a model, the mean of some minutes.
    tokens_missing
        Servers told their tokens, and do not now.
    judged, unreachable
        Promises (signal, percentile) that the margin takes care of, and those of them that no number of replicas keeps.
    foreseen
        What a believed forecast asks for beyond all this.
    """

    curve: LoadCurve
    best_cap: int
    work: float
    peak_work: float
    utilization: float
    occupancy: float
    saturated: bool
    rising: bool
    batch_first: bool = False
    queued_s_ago: float = math.inf
    request_s: float | None = None
    offered_per_s: float | None = None
    modelled: bool = False
    tokens_missing: bool = False
    margin: float = 1.0
    bare_margin: float = 1.0
    present_margin: float = 1.0
    mean_work: float | None = None
    bound_by: Signal | None = None
    judged: frozenset[tuple[Signal, int | None]] = frozenset()
    unreachable: frozenset[tuple[Signal, int | None]] = frozenset()
    foreseen: Foreseen | None = None

    @property
    def band_work(self) -> float:
        """The work that the band is held for: where promises have a margin of their own, a short peak may pass it."""
        return self.work if self.mean_work is None or not self.judged else self.mean_work

    def load(self, utilization: float) -> float:
        """Work per replica at a utilisation, in the measure that `utilization` has."""
        return utilization if self.modelled else self.curve.load(utilization)

    def measure(self, load: float) -> float:
        """The inverse of `load`."""
        return load if self.modelled else self.curve.utilization(load)

    def requests(self, work: float, ready: int) -> float:
        """Requests in process together when `ready` replicas carry `work`."""
        return self.curve.utilization(work / ready) * ready * self.best_cap if ready else 0.0


def observe(
    policy: Policy,
    load: Load,
    verdicts: Sequence[SLOVerdict],
    memory: DemandMemory,
    best_cap: int,
    now_s: float,
    *,
    batch_first: bool,
) -> tuple[Demand | None, DemandMemory]:
    """Take in one look at the fleet; no demand where nothing was told. Missing pods count 0 and never lower it."""
    memory = _rescaled(memory, best_cap)
    cold_start_s = load.cold_start_s if load.cold_start_measured else memory.cold_start_s
    if load.running is None or load.in_flight is None or not load.ready:
        return None, replace(memory, cold_start_s=cold_start_s, waiting_known=load.waiting_known)

    past = _Past.of(policy, load, memory.samples, now_s)
    fit = _learned(policy, load, past, memory, best_cap, now_s)
    look = _Look.of(policy, load, verdicts, past, memory, fit.curve(), best_cap)
    raw = look.work(memory.work)
    work, in_flight = _smoothed(policy, load, memory, raw, look.saturated, now_s, patient=batch_first)
    peaks = memory.peaks.push(work, now_s, policy.scale_down.stabilization_s)
    demand = Demand(
        curve=look.curve,
        best_cap=best_cap,
        work=work,
        peak_work=max(work, peaks.highest() or 0.0),
        utilization=in_flight / (load.ready * best_cap),
        occupancy=in_flight / (load.ready * best_cap),
        saturated=look.saturated,
        batch_first=batch_first,
        queued_s_ago=0.0 if load.queueing else now_s - memory.queued_s,
        rising=look.saturated or _rising(load, memory, work, best_cap, now_s),
        request_s=look.request_s,
        offered_per_s=look.offered_per_s,
    )
    memory = DemandMemory(
        best_cap=best_cap,
        work=work,
        in_flight=in_flight,
        request_s=look.request_s if past.steady and look.request_s is not None else memory.request_s,
        updated_s=now_s,
        queued_s=now_s if load.queueing else memory.queued_s,
        fitted_s=memory.fitted_s if fit is memory.service else now_s,
        samples=_remembered(policy, load, memory, work, now_s),
        peaks=peaks,
        service=fit,
        cold_start_s=cold_start_s,
        waiting_known=load.waiting_known,
    )
    return demand, memory


@dataclass(frozen=True, slots=True)
class _Past:
    """Averages over the rate window, and growth over it and over its latest part.

    Attributes
    ----------
    running_growth_per_s
        By how much requests in process became more per second.
    steady
        The same replicas were ready all the time.
    rises, falls
        Requests in the fleet became clearly more, or fewer.
    queued
        Work waited at some time.
    queue_grows
        It waited a while ago already, and waits more now; a queue that a single scrape shows is none.
    """

    running: float
    running_growth_per_s: float
    ready: float
    steady: bool
    growth_per_s: float | None
    recent_growth_per_s: float | None
    rises: bool
    falls: bool
    queued: bool
    queue_grows: bool

    @classmethod
    def of(cls, policy: Policy, load: Load, samples: tuple[Sample, ...], now_s: float) -> _Past:
        in_flight, waiting = load.in_flight or 0.0, load.waiting or 0.0
        begin_s = now_s - policy.rate_window_s
        window = [sample for sample in samples if sample.at_s >= begin_s]
        first = next(
            (sample for sample in reversed(samples) if sample.at_s <= begin_s), samples[0] if samples else None
        )
        recent_s = now_s - min(RECENT_S, policy.rate_window_s / 2)
        recent = next((sample for sample in reversed(samples) if sample.at_s <= recent_s), None)
        if first is not None and now_s - first.at_s < SHORTEST_GROWTH * policy.rate_window_s:
            first = None
        covered = [sample for sample in samples if first is None or sample.at_s >= first.at_s]
        change = in_flight - first.in_flight if first else 0.0
        deviation = math.sqrt(max(in_flight, first.in_flight)) if first else 0.0
        running, ready = _means(covered, load, now_s)
        return cls(
            running=running,
            running_growth_per_s=0.0
            if first is None
            else ((load.running or 0.0) - first.running) / (now_s - first.at_s),
            ready=ready,
            steady=first is not None and all(sample.ready == load.ready for sample in (first, *window)),
            growth_per_s=None if first is None else change / (now_s - first.at_s),
            recent_growth_per_s=None if recent is None else (in_flight - recent.in_flight) / (now_s - recent.at_s),
            rises=change > NOISE * deviation,
            falls=-change > FALL_NOISE * deviation,
            queued=any(sample.waiting > load.quiet_queue for sample in window),
            queue_grows=recent is not None
            and recent.waiting > load.quiet_queue
            and waiting - recent.waiting > max(1.0, math.sqrt(recent.waiting)),
        )


def _means(samples: Sequence[Sample], load: Load, now_s: float) -> tuple[float, float]:
    """Requests in process and ready replicas, as means over time of straight lines between the samples and now."""
    running = ready = span = 0.0
    end_s, end_running, end_ready = now_s, load.running or 0.0, load.ready
    for sample in reversed(samples):
        length_s = end_s - sample.at_s
        running += (sample.running + end_running) / 2 * length_s
        ready += (sample.ready + end_ready) / 2 * length_s
        span += length_s
        end_s, end_running, end_ready = sample.at_s, sample.running, sample.ready
    return (running / span, ready / span) if span > 0 else (load.running or 0.0, float(load.ready))


@dataclass(frozen=True, slots=True)
class _Look:
    """What the fleet is doing at this moment, before smoothing.

    Attributes
    ----------
    saturated
        The replicas cannot do more: work queues or is refused.
    limited
        They cannot although the cap would let more in: memory or prefill is what is full.
    request_s
        Replica-seconds of one request at the best cap.
    """

    load: Load
    past: _Past
    curve: LoadCurve
    best_cap: int
    saturated: bool
    limited: bool
    request_s: float | None
    offered_per_s: float | None
    counts_kv: bool

    @classmethod
    def of(
        cls,
        policy: Policy,
        load: Load,
        verdicts: Sequence[SLOVerdict],
        past: _Past,
        memory: DemandMemory,
        curve: LoadCurve,
        best_cap: int,
    ) -> _Look:
        binding = (load.running or 0.0) >= 0.9 * load.ready * min(load.caps, default=best_cap)
        finished, rejected = load.finished_per_s, load.rejected_per_s or 0.0
        refused = rejected > 0.01 * (finished or 0.0)
        late = any(verdict.signal in WAIT_SIGNALS and verdict.state is SLOState.BREACHED for verdict in verdicts)
        saturated = refused or (load.queueing and (binding or past.queue_grows or late))
        request_s = offered = None
        if finished is not None and finished * policy.rate_window_s >= FEWEST_FINISHED:
            relative = min(1.0, past.running / (past.ready * best_cap))
            request_s = _service_s(past, finished) / best_cap * curve.stretch(1.0, relative)
            if saturated and not binding:
                request_s = max(request_s, past.ready / finished)
            if not past.steady and memory.request_s is not None:
                request_s = memory.request_s  # new replicas are full before anything comes out of them
            offered = max(0.0, finished + (past.growth_per_s or 0.0) + rejected)
        return cls(
            load=load,
            past=past,
            curve=curve,
            best_cap=best_cap,
            saturated=saturated,
            limited=saturated and not binding,
            request_s=request_s,
            offered_per_s=offered,
            counts_kv=policy.batching is not Batching.DYNAMIC,
        )

    def work(self, before: float | None) -> float:
        """Offered work in replicas at the best cap: what is being done, but for a load that rises or a backlog that
        is worked off; then what arrives."""
        arriving = self._arriving()
        if self.saturated:
            return self._guessed_overload() if arriving is None else arriving
        present = self._done(self.load.in_flight or 0.0)
        if self.past.rises and arriving is not None:
            return max(present, min(arriving, MOST_LEAD * present))
        if self.past.falls or self.past.queued:
            arriving = before if arriving is None else arriving
            return present if arriving is None else min(present, arriving)
        if self.counts_kv and self.load.kv is not None:
            return max(present, self.load.ready * min(1.0, self.load.kv) / FULL_KV)
        return present

    def _done(self, requests: float) -> float:
        """Work that the ready replicas do with so many requests in them."""
        ready = self.load.ready
        return ready * self.curve.load(requests / (ready * self.best_cap))

    def _arriving(self) -> float | None:
        """What arrives: done + growth + refused. With other replicas than a minute ago only averages tell."""
        if self.request_s is None or self.offered_per_s is None:
            return None
        growth_per_s = self.past.recent_growth_per_s
        if not self.past.steady or growth_per_s is None:
            return self.offered_per_s * self.request_s
        done = self.load.ready if self.limited else self._done(self.load.running or 0.0)
        return max(0.0, done + (growth_per_s + (self.load.rejected_per_s or 0.0)) * self.request_s)

    def _guessed_overload(self) -> float:
        """Without a rate of finished requests: what the replicas do, and growth at a guessed length of a request."""
        load = self.load
        done = load.ready if self.limited else self._done(load.running or 0.0)
        growth_per_s = max(0.0, self.past.growth_per_s or 0.0) if self.past.queue_grows else 0.0
        return done + min(growth_per_s * GUESSED_SERVICE_S, load.waiting or 0.0) / self.best_cap


def _service_s(past: _Past, finished_per_s: float) -> float:
    """Time that a request is in process, by Little's law; while more are begun than end, the flow lies between."""
    return past.running / max(finished_per_s / 2, finished_per_s + past.running_growth_per_s / 2)


def _smoothed(
    policy: Policy, load: Load, memory: DemandMemory, raw: float, saturated: bool, now_s: float, *, patient: bool
) -> tuple[float, float]:
    """Work and requests without the noise of single scrapes. What cannot be noise counts at once."""
    in_flight = load.in_flight or 0.0
    if memory.work is None or memory.in_flight is None:
        return raw, in_flight
    span_s = max(SMOOTHING * policy.rate_window_s, SERVICE_SMOOTHING * memory.service.mean_s)
    if saturated and not patient:
        span_s = OVERLOAD_SMOOTHING * policy.rate_window_s
    share = 1 - math.exp(-max(0.0, now_s - memory.updated_s) / span_s)
    noise = NOISE / math.sqrt(max(1.0, in_flight, memory.in_flight))
    work = _step(memory.work, raw, share, noise, jumps=not patient)
    smooth = _step(memory.in_flight, in_flight, share, noise, jumps=True)
    if not load.complete:
        work, smooth = max(work, memory.work), max(smooth, memory.in_flight)
    return work, smooth


def _step(before: float, now: float, share: float, noise: float, *, jumps: bool) -> float:
    if jumps and abs(now - before) > noise * max(now, before):
        return now
    return before + share * (now - before)


def _learned(policy: Policy, load: Load, past: _Past, memory: DemandMemory, best_cap: int, now_s: float) -> ServiceFit:
    """With one (batch, service time) pair more from a window in which nothing changed."""
    finished, fit = load.finished_per_s, memory.service
    if finished is None or finished * policy.rate_window_s < FEWEST_FINISHED or past.running <= 0:
        return fit
    changed = abs(past.growth_per_s or 0.0) * policy.rate_window_s > STEADY_SHARE * (load.in_flight or 0.0)
    if not load.complete or not past.steady or changed or now_s - memory.fitted_s < policy.rate_window_s / 4:
        return fit
    return fit.seen(min(1.0, past.running / (past.ready * best_cap)), _service_s(past, finished))


def _rising(load: Load, memory: DemandMemory, work: float, best_cap: int, now_s: float) -> bool:
    begin_s = now_s - load.cold_start_s
    samples = memory.samples
    then = next((sample for sample in reversed(samples) if sample.at_s <= begin_s), samples[0] if samples else None)
    if then is None:
        return False
    return work - then.work > max(0.05 * then.work, RISE_NOISE * then.work / math.sqrt(max(1.0, then.work * best_cap)))


def _remembered(policy: Policy, load: Load, memory: DemandMemory, work: float, now_s: float) -> tuple[Sample, ...]:
    """A sample now and then, as far back as comparisons reach; partial looks are not compared with."""
    horizon_s = min(LONGEST_MEMORY_S, max(policy.rate_window_s, load.cold_start_s))
    samples = memory.samples
    if not load.complete or (samples and now_s - samples[-1].at_s < horizon_s / (SAMPLES_LIMIT - 4)):
        return samples
    sample = Sample(now_s, load.in_flight or 0.0, load.running or 0.0, load.waiting or 0.0, load.ready, work)
    begin_s = now_s - horizon_s
    first = next((index for index in range(len(samples) - 1, -1, -1) if samples[index].at_s <= begin_s), 0)
    return (*samples[first:], sample)[-SAMPLES_LIMIT:]


def _rescaled(memory: DemandMemory, best_cap: int) -> DemandMemory:
    if memory.best_cap == best_cap:
        return memory
    if not memory.best_cap:
        return replace(memory, best_cap=best_cap)
    factor = memory.best_cap / best_cap
    return replace(
        memory,
        best_cap=best_cap,
        work=None if memory.work is None else memory.work * factor,
        request_s=None,
        peaks=memory.peaks.scaled(factor),
        samples=tuple(replace(sample, work=sample.work * factor) for sample in memory.samples),
        service=NO_FIT,
    )
