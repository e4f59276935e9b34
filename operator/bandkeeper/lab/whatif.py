"""What the model says of another load: a grid of (replicas, batch cap), and the point that Bandkeeper would choose.

The choice is the decision's own rule for a load that stays; the grid is the prediction of latencies. Both come from the
same step times. Documented, versioned JSON: the table and the pictures show nothing that is not in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bandkeeper.api.signals import Signal
from bandkeeper.decide import size
from bandkeeper.decide.decision import Learned, Seen
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.policy import LatencySLO, Policy, ThroughputSLO
from bandkeeper.decide.prediction import first_margin
from bandkeeper.lab.changes import Changes
from bandkeeper.lab.server import ContinuousServer
from bandkeeper.model.latency import CHUNKS, CONFIDENT, Latency, Traffic, latency
from bandkeeper.model.steps import StepFit

VERSION: Literal[1] = 1
FEW_WINDOWS = 10.0
_ROWS, _AROUND = 12, 2  # rows of the grid, and those beyond the points of interest
_MOST_REPLICAS = 100_000
_CONSTANTS_ERROR = 0.02  # of a preset's figures, which were fitted to measurements
_LONGER = 1.05
_NEVER_FULL = 0.5  # requests: a room this little below the cap is the cap


class WhatIfError(ValueError):
    """There is nothing to predict by; the text says what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Load(_Part):
    """Traffic, and the work that it is: in replicas at the best cap; `held` is what to be ready for."""

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    work: float
    held: float


class Promise(_Part):
    """One promise. `threshold` is in seconds, or the least rate per second where `percentile` is None."""

    signal: str
    percentile: int | None
    threshold: float


class Predicted(_Part):
    """One promise in one cell.

    Attributes
    ----------
    attainment
        Share within the threshold; None of a rate.
    value
        The percentile in seconds, None where the queue has no bound; of a rate the most that can be done per second.
    misses
        Over those permitted: 1 is just kept. Of a rate what is promised over what can be done.
    sure
        The verdict stands within the prediction's standard error.
    """

    attainment: float | None
    value: float | None
    misses: float
    kept: bool
    sure: bool


class Cell(_Part):
    """So many replicas at one cap.

    Attributes
    ----------
    load
        Offered work over what can be done at this cap: from 1 on the queue has no bound.
    batch
        Mean of the requests in process per replica.
    promises
        In the order of the result's; `worst` is the place of the one with the most misses, None without promises.
    """

    load: float
    batch: float
    kept: bool
    sure: bool
    worst: int | None
    promises: list[Predicted]


class Row(_Part):
    """So many replicas: utilisation as the band has it, cost, and one cell per cap."""

    replicas: int
    utilization: float
    in_band: bool
    gpus: float
    cost_per_hour: float | None
    cells: list[Cell]


class Model(_Part):
    """Step times in milliseconds, where they come from, and how sure they are; `windows` is None of constants.

    `prefill_tokens` is the most that a step reads, and `prefill_told` whether the servers tell it; where they do not,
    `prefill_others` is what it may be as well.
    """

    source: str
    alpha_ms: float
    beta_ms: float
    delta_ms: float
    prefill_tokens: float
    prefill_told: bool
    prefill_others: list[float]
    error: float
    windows: float | None
    confident: bool


class Choice(_Part):
    """What Bandkeeper would hold at this load if it stays.

    Attributes
    ----------
    for_band, for_held
        Replicas that the band asks for, and the margin over the work to be ready for.
    bound_by
        The promise that asks for the margin.
    limit
        The bound of the policy that stands in the way: min, max or none.
    """

    replicas: int
    cap: int
    for_band: int
    for_held: int
    margin: float
    bound_by: str | None
    limit: Literal["", "min", "max"]


class WhatIf(_Part):
    """The answer.

    Attributes
    ----------
    asked
        The changes as they were written, "" for none.
    current_replicas, asked_replicas
        What there is now, and what was asked about.
    edges
        Fewest replicas that are predicted to keep every promise, one per cap; None where no number does.
    """

    version: Literal[1] = VERSION
    policy: str
    objective: str
    band_low: float
    band_high: float
    min_replicas: int
    max_replicas: int
    gpus_per_replica: float
    currency: str | None
    model: Model
    asked: str
    now: Load
    then: Load
    promises: list[Promise]
    caps: list[int]
    has_knob: bool
    current_replicas: int | None
    asked_replicas: int | None
    chosen: Choice
    edges: list[int | None]
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the servers and their load.

    Attributes
    ----------
    peak_work, largest_rise
        Of the time that is remembered, in replicas; None where nothing is.
    kv_tokens
        What a replica's KV cache may be filled with; None where it is not known to matter.
    chunks, chunks_told
        The most prompt tokens of a step, and whether the servers tell it; what it may be where they do not.
    cap
        The cap that is wanted now; None: the best.
    caps
        Those to show; empty: `best_cap` alone.
    """

    source: str
    steps: StepFit
    traffic: Traffic
    best_cap: int
    margin: float
    bound_by: Signal | None
    error: float
    windows: float | None = None
    peak_work: float | None = None
    largest_rise: float = 0.0
    kv_tokens: float | None = None
    chunks: tuple[float, ...] = CHUNKS
    chunks_told: bool = False
    cap: int | None = None
    caps: tuple[int, ...] = ()
    replicas: int | None = None
    notes: tuple[str, ...] = ()

    def room(self, traffic: Traffic, cap: int) -> int:
        """Requests that a replica can have in process at a cap."""
        if self.kv_tokens is None:
            return cap
        return max(1, min(cap, int(self.kv_tokens / _context(traffic))))

    def work(self, traffic: Traffic) -> float:
        """Replicas that the traffic keeps busy at the best cap."""
        batch = self.room(traffic, self.best_cap)
        return traffic.requests_per_s * self.steps.work_s(traffic.prompt_tokens, traffic.output_tokens, batch).value


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGap:
    """A percentile of the time between tokens as it is measured now: between two bounds, as a histogram tells it."""

    percentile: int
    least_s: float
    most_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """GPUs of one replica, and what one costs for an hour where a price is given."""

    gpus: float = 1.0
    per_gpu_hour: float | None = None
    currency: str | None = None


def of_learned(
    policy: Policy,
    learned: Learned,
    *,
    source: str,
    traffic: Traffic | None = None,
    replicas: int | None = None,
    cap: int | None = None,
    capacity: int | None = None,
    gap: TokenGap | None = None,
) -> Known:
    """What a policy learned; `traffic` in place of what it saw. Raises WhatIfError where neither is known."""
    seen = learned.seen
    if seen is not None:
        traffic = traffic or Traffic(seen.requests_per_s, seen.prompt_tokens, seen.output_tokens)
    if traffic is None:
        raise WhatIfError(
            f"{source} tells the step times but no traffic: it was written by an older operator; say what comes with "
            "--traffic, such as --traffic 12/s:1000:180"
        )
    parameters = (learned.alpha_s, learned.beta_s, learned.delta_s)
    kv_tokens = None
    if seen is not None and seen.room < learned.best_cap - _NEVER_FULL:
        kv_tokens = seen.room * (seen.prompt_tokens + seen.output_tokens / 2)
    margin, bound_by = (seen.margin, seen.bound_by) if seen is not None else first_margin(policy)
    error = min(1.0, seen.error) if seen is not None else 1.0
    steps = _steps(parameters, error, traffic, learned.best_cap)
    return Known(
        source=source,
        steps=steps,
        traffic=traffic,
        best_cap=learned.best_cap,
        margin=margin,
        bound_by=bound_by,
        error=error,
        windows=seen.windows if seen is not None else 0.0,
        peak_work=learned.peak_work,
        largest_rise=learned.largest_rise,
        kv_tokens=kv_tokens,
        chunks=CHUNKS if seen is None else _chunks(steps, seen, replicas, cap, gap),
        chunks_told=seen is not None and seen.prefill_tokens is not None,
        cap=cap,
        caps=_caps(policy, capacity, learned.best_cap),
        replicas=replicas,
    )


def _chunks(
    steps: StepFit, seen: Seen, replicas: int | None, cap: int | None, gap: TokenGap | None
) -> tuple[float, ...]:
    """What a step may read at most: as told, else what goes with the time between tokens as it is."""
    if seen.prefill_tokens is not None:
        return (float(seen.prefill_tokens),)
    if gap is None or not replicas:
        return CHUNKS
    traffic = Traffic(seen.requests_per_s, seen.prompt_tokens, seen.output_tokens)
    room = max(1, round(min(seen.room, cap or seen.room)))
    return latency(steps, traffic, replicas, room).chunks_that_fit(gap.percentile / 100, gap.least_s, gap.most_s)


def of_server(
    policy: Policy,
    server: ContinuousServer,
    traffic: Traffic,
    changes: Changes,
    *,
    source: str,
    replicas: int | None = None,
) -> Known:
    """What a server of the lab is like; nothing was learned, so margins are those that a policy begins with."""
    asked = changes.applied(traffic)
    context = _context(asked)
    parameters = (
        server.alpha_ms / 1000,
        (server.beta_ms + server.kappa_ms_per_ktoken * context / 1000) / 1000,
        (server.delta_ms_per_token + server.gamma_ms / asked.prompt_tokens) / 1000,
    )
    caps = _caps(policy, server.batch_max, server.batch_max)
    margin, bound_by = first_margin(policy)
    return Known(
        source=source,
        steps=_steps(parameters, _CONSTANTS_ERROR, traffic, caps[-1]),
        traffic=traffic,
        best_cap=caps[-1],
        margin=margin,
        bound_by=bound_by,
        error=_CONSTANTS_ERROR,
        kv_tokens=0.9 * server.kv_tokens,
        chunks=(server.prefill_chunk_tokens,),
        chunks_told=True,
        caps=caps,
        replicas=replicas,
        notes=("Nothing of a past load is known: only the load asked about is to be ready for, no rise of it.",),
    )


def answer(policy: Policy, known: Known, changes: Changes, *, name: str, money: Money | None = None) -> WhatIf:
    """The grid for the traffic that `changes` make of what there is."""
    money = money or Money()
    traffic = changes.applied(known.traffic)
    grid = _Grid(policy, known, traffic)
    now, then = _load(policy, known, known.traffic, known.traffic), _load(policy, known, traffic, known.traffic)
    chosen = _choice(policy, known, traffic, then)
    caps = tuple(sorted({*known.caps, chosen.cap, *([changes.cap] if changes.cap else [])}))
    edges = [grid.edge(cap) for cap in caps]
    points = (chosen.replicas, changes.replicas, edges[caps.index(chosen.cap)])
    counts = _counts(points, chosen.replicas, known.replicas)
    rows = [_row(policy, grid, count, caps, then.work, money) for count in counts]
    return WhatIf(
        policy=name,
        objective=str(policy.objective),
        band_low=policy.band.low,
        band_high=policy.band.high,
        min_replicas=policy.min_replicas,
        max_replicas=policy.max_replicas,
        gpus_per_replica=money.gpus,
        currency=money.currency if money.per_gpu_hour is not None else None,
        model=_model(known),
        asked=changes.told,
        now=now,
        then=then,
        promises=[_promise(slo) for slo in policy.slos],
        caps=list(caps),
        has_knob=policy.batch is not None,
        current_replicas=known.replicas,
        asked_replicas=changes.replicas,
        chosen=chosen,
        edges=edges,
        rows=rows,
        notes=[*known.notes, *_notes(known, traffic)],
    )


def _notes(known: Known, traffic: Traffic) -> Iterator[str]:
    if known.kv_tokens is None and _context(traffic) > _LONGER * _context(known.traffic):
        yield "How much the KV cache holds was not seen: requests this long may find less room than is taken here."


def _context(traffic: Traffic) -> float:
    return max(1.0, traffic.prompt_tokens + traffic.output_tokens / 2)


def _steps(parameters: tuple[float, float, float], error: float, traffic: Traffic, cap: int) -> StepFit:
    """A fit whose work has this relative standard error, all parameters alike."""

    def fit(each: float) -> StepFit:
        known = [1 / (each * max(one, 1e-9)) ** 2 for one in parameters]
        return StepFit(parameters, ((known[0], 0.0, 0.0), (0.0, known[1], 0.0), (0.0, 0.0, known[2])), 1.0)

    whole = fit(1.0).work_s(traffic.prompt_tokens, traffic.output_tokens, cap)
    return fit(max(error, 1e-3) * whole.value / whole.error)


def _caps(policy: Policy, capacity: int | None, best_cap: int) -> tuple[int, ...]:
    """The caps that the policy permits and the servers have booted with; without a knob there is one."""
    if policy.batch is None:
        return (best_cap,)
    fitting = tuple(cap for cap in policy.batch.candidates if capacity is None or cap <= capacity)
    return fitting or (best_cap,)


def _load(policy: Policy, known: Known, traffic: Traffic, before: Traffic) -> Load:
    """Rises and peaks grow with the work: twice the load rises by twice as much."""
    work, old = known.work(traffic), known.work(before)
    held = work
    if known.peak_work is not None and old > 0:
        held = max(work, min(known.peak_work * work / old, work + known.largest_rise * work / old))
    return Load(
        requests_per_s=traffic.requests_per_s,
        prompt_tokens=traffic.prompt_tokens,
        output_tokens=traffic.output_tokens,
        work=work,
        held=held,
    )


def _choice(policy: Policy, known: Known, traffic: Traffic, then: Load) -> Choice:
    """What the decision's rules ask for when this load has been there for a while."""
    room = known.room(traffic, known.best_cap)
    demand = Demand(
        curve=known.steps.curve(room, traffic.prompt_tokens / traffic.output_tokens),
        best_cap=known.best_cap,
        work=then.work,
        peak_work=then.held,
        utilization=then.work,
        occupancy=then.work,
        saturated=False,
        rising=False,
        modelled=True,
        margin=known.margin,
        mean_work=then.work,
        bound_by=known.bound_by,
    )
    band, held = size.for_band(policy, demand), size.for_held(demand) or 1
    asked = max(band, held)
    replicas = min(max(asked, policy.min_replicas), policy.max_replicas)
    return Choice(
        replicas=replicas,
        cap=known.cap or known.best_cap,
        for_band=band,
        for_held=held,
        margin=known.margin,
        bound_by=str(known.bound_by) if known.bound_by else None,
        limit="max" if replicas < asked else "min" if replicas > asked else "",
    )


def _model(known: Known) -> Model:
    alpha_s, beta_s, delta_s = known.steps.parameters
    few = known.windows is not None and known.windows < FEW_WINDOWS
    return Model(
        source=known.source,
        alpha_ms=1000 * alpha_s,
        beta_ms=1000 * beta_s,
        delta_ms=1000 * delta_s,
        prefill_tokens=known.chunks[0],
        prefill_told=known.chunks_told,
        prefill_others=list(known.chunks[1:]),
        error=known.error,
        windows=known.windows,
        confident=known.error <= CONFIDENT and not few,
    )


def _promise(slo: LatencySLO | ThroughputSLO) -> Promise:
    if isinstance(slo, LatencySLO):
        return Promise(signal=str(slo.signal), percentile=slo.percentile, threshold=slo.threshold_s)
    return Promise(signal=str(slo.signal), percentile=None, threshold=slo.min_per_s)


def _counts(points: Sequence[int | None], chosen: int, now: int | None) -> list[int]:
    """Replica counts around the points of interest, all of these and `now` among them; far ones do not stretch it."""
    near = [point for point in points if point is not None and chosen / 4 <= point <= 4 * chosen + 4]
    ends = [max(1, min(near) - _AROUND), max(near) + _AROUND]
    if now is not None and chosen / 4 <= now <= 4 * chosen + 4:
        ends.append(now)
    step = math.ceil((max(ends) - min(ends) + 1) / _ROWS)
    return sorted({*range(min(ends), max(ends) + 1, step), *near, *ends})


def _row(policy: Policy, grid: _Grid, replicas: int, caps: Sequence[int], work: float, money: Money) -> Row:
    utilization, gpus = work / replicas, replicas * money.gpus
    return Row(
        replicas=replicas,
        utilization=utilization,
        in_band=policy.band.low <= utilization <= policy.band.high,
        gpus=gpus,
        cost_per_hour=None if money.per_gpu_hour is None else gpus * money.per_gpu_hour,
        cells=[grid.cell(replicas, cap) for cap in caps],
    )


@dataclass(frozen=True, slots=True)
class _Grid:
    """Predictions for one traffic."""

    policy: Policy
    known: Known
    traffic: Traffic

    def at(self, replicas: int, cap: int) -> Latency:
        known = self.known
        room = known.room(self.traffic, cap)
        return latency(known.steps, self.traffic, replicas, room, chunks=known.chunks)

    def cell(self, replicas: int, cap: int) -> Cell:
        found = self.at(replicas, cap)
        promises = [self._predicted(found, slo) for slo in self.policy.slos]
        far = abs(found.utilization - 1) > self.known.error
        worst = max(range(len(promises)), key=lambda index: promises[index].misses) if promises else None
        return Cell(
            load=found.utilization,
            batch=found.batch,
            kept=not found.overloaded and all(one.kept for one in promises),
            sure=far and (found.overloaded or all(one.sure for one in promises)),
            worst=worst,
            promises=promises,
        )

    def edge(self, cap: int) -> int | None:
        """The fewest replicas that keep every promise; None where no number does."""
        low, high = 0, max(1, math.floor(self.at(1, cap).utilization))
        while not self._kept(high, cap):
            low, high = high, 2 * high
            if high > _MOST_REPLICAS or (low > 1 and self.at(low, cap).batch < 0.01):
                return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._kept(middle, cap):
                high = middle
            else:
                low = middle
        return high

    def _kept(self, replicas: int, cap: int) -> bool:
        found = self.at(replicas, cap)
        return not found.overloaded and all(self._keeps(found, slo) for slo in self.policy.slos)

    def _keeps(self, found: Latency, slo: LatencySLO | ThroughputSLO) -> bool:
        if isinstance(slo, LatencySLO):
            return found.attainment(slo.signal, slo.threshold_s) >= slo.percentile / 100 - 1e-9
        return self._most_per_s(found, slo.signal) >= slo.min_per_s

    def _most_per_s(self, found: Latency, signal: Signal) -> float:
        """What the replicas can do when work waits."""
        each = {
            Signal.PROMPT_TOKENS: self.traffic.prompt_tokens,
            Signal.GENERATION_TOKENS: self.traffic.output_tokens,
        }.get(signal, 1.0)
        return self.traffic.requests_per_s / max(1e-12, found.utilization) * each

    def _predicted(self, found: Latency, slo: LatencySLO | ThroughputSLO) -> Predicted:
        kept = self._keeps(found, slo)
        if isinstance(slo, ThroughputSLO):
            most = self._most_per_s(found, slo.signal)
            far = abs(most / slo.min_per_s - 1) > self.known.error
            return Predicted(attainment=None, value=most, misses=slo.min_per_s / most, kept=kept, sure=far)
        share = slo.percentile / 100
        attainment, value = found.attainment(slo.signal, slo.threshold_s), found.quantile(slo.signal, share)
        error = found.error(slo.signal, share)
        sure = value * (1 + error) <= slo.threshold_s if kept else value * (1 - min(1.0, error)) > slo.threshold_s
        return Predicted(
            attainment=attainment,
            value=value if math.isfinite(value) else None,
            misses=(1 - attainment) / (1 - share),
            kept=kept,
            sure=sure if math.isfinite(value) else True,
        )
