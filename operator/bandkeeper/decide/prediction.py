"""Demand by the fitted model, where a server tells its tokens: what is offered, what to be ready for, and the capacity
that the promises need. Where tokens are not told, or too little was seen yet, demand stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from bandkeeper.api.reasons import ProfileState, SLOState
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Earlier, Recalled
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import Learned, ProfileVerdict, Seen, SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.foresight import NO_RECALL, foresee, unraised
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Batching, LatencySLO, Policy, Profile
from bandkeeper.decide.size import LONE_BATCH
from bandkeeper.decide.state import LearnedPromise, ModelMemory, Sample, Trace, Unit
from bandkeeper.model.batches import NO_BATCHES, BatchTimes
from bandkeeper.model.curve import LoadCurve
from bandkeeper.model.misses import MissFit, Shape
from bandkeeper.model.outlook import NO_OUTLOOK
from bandkeeper.model.peaks import NO_PEAKS
from bandkeeper.model.steps import NO_STEPS, StepFit

FEWEST_OBSERVATIONS = 1.0  # whole rate windows
FEWEST_TOKENS = 200.0  # in one rate window, for a mean to mean anything
FEWEST_SAMPLES = 20.0
LEAST_BATCH = 0.2
STEADY_SHARE = 0.25  # requests in process may differ by it in a window that batch times are learned from, or by
STEADY_NOISE = 0.5  # square roots of their number, which is a mean over time
RATIO_WINDOWS = 5.0  # rate windows that output tokens per prompt token are a mean of: they come later than the prompt
MEMORY_WINDOWS = {Objective.LATENCY_SENSITIVE: 24.0, Objective.BALANCED: 12.0, Objective.THROUGHPUT_SENSITIVE: 1.0}
"""Scale-down windows that the work to be ready for is remembered: two hours and one where they are 300 s."""
MEAN_WINDOWS = 0.5  # rate windows that the band's work is a mean of, or longer:
MEAN_REQUESTS = 500.0  # until chance is some 5 %
MEAN_S = 120.0  # at most
LEAD_WINDOWS = 0.75  # rate windows until a rise is seen, beside the cold start
NOISE = 1.25  # of one request's work: Poisson arrivals whose lengths differ by 0.7 of their mean
AIM = 0.96  # of the share that may miss: the rest is for what comes while pods are on their way
SLOW_POWER = 1.7  # tokens that wait for a prompt: as often as prompts come, and longer steps meet more of them
WAIT_POWER = 3.0
SLOW_PRIOR, WAIT_PRIOR = 0.75, 0.93  # utilisation at which the aim is reached, before anything is known
FULLEST = 0.93
OVERFULL = 1.0  # utilisation at which work begins to queue between two looks, whatever a look shows
LEAST_CARRIED, MOST_CARRIED = 0.85, 1.15  # of the held work, that the fleet is believed to be there for
SURGE_WINDOWS = 0.5  # rate windows that a surge is seen within
KNOWN_BETTER = 0.01  # change of one request's work that the past is counted anew for
SURGE_NOISE = 2.0  # standard deviations of what comes and goes meanwhile
MOST_MARGIN = 4.0  # a fleet a quarter full is as fast as it gets
KV_FULL = 0.9
KV_KNOWN = 0.2  # share of the KV cache in use that tells how much of it a request takes
LONGEST_STEP_S = 60.0  # between two looks, that what was seen last counts for
TRACES = 20
REMEMBERED_S = 3600.0  # after the last tokens: later a server that tells none any more is decided on without
TOLD_WINDOWS = 10.0  # rate windows that a profile is compared over
COMPARED_WINDOWS = 3.0
WHOLE_WINDOW = 1.0
CONTRADICTED = 1.5  # times more or less than a profile says
MOST_BATCHES = 12
"""Sizes of batches that are worth keeping: half a doubling apart, they reach from 1 to 45."""
LOST_S = 7200.0  # a promise that no replicas kept is not tried again sooner

Fit = StepFit | BatchTimes


def predict(
    policy: Policy,
    load: Load,
    verdicts: Sequence[SLOVerdict],
    demand: Demand | None,
    samples: Sequence[Sample],
    memory: ModelMemory,
    now_s: float,
    recalled: Mapping[Earlier, Recalled] = NO_RECALL,
) -> tuple[Demand | None, ModelMemory]:
    """`demand` in the model's terms; unchanged where there is no model."""
    if demand is None or policy.batching is Batching.UNKNOWN:
        return demand, memory
    first = profiled(policy)
    if not isinstance(memory.steps, type(first)) or (not memory.steps.observations and first.observations):
        memory = replace(memory, steps=first, updated_s=now_s - policy.rate_window_s / 4)
    flow = _flow(policy, load, memory, now_s) if load.complete else None
    if flow is None:
        demand = _without_flow(demand, load, memory, now_s)
        if load.queueing:  # that not all told is no reason to learn from what is missed meanwhile
            traces = _traced(policy, memory.traces, Trace(now_s, OVERFULL, queued=True))
            memory = replace(memory, traces=traces)
        return _with_foresight(policy, load, demand, memory, memory.steps, recalled, now_s)
    known = _taught(policy, load, memory, flow, samples, now_s)
    demand, known = _predicted(policy, load, verdicts, demand, samples, known, flow, now_s)
    steps = memory.steps if memory.steps.observations >= FEWEST_OBSERVATIONS else known.steps
    return _with_foresight(policy, load, demand, known, steps, recalled, now_s)


def _taught(
    policy: Policy, load: Load, memory: ModelMemory, flow: _Flow, samples: Sequence[Sample], now_s: float
) -> ModelMemory:
    """With what this look tells of step times."""
    steps, revision = _of_revision(load, memory)
    memory = replace(memory, steps=steps, revision=revision)
    if (observed := _observed(policy, load, flow)) is None:
        return memory
    batch, _, token_s, _ = observed
    if not _is_told(policy, load, steps, samples, now_s, batch, token_s):
        return memory
    return replace(_compared(policy, memory, *observed), steps=steps.seen(*observed))


def _predicted(
    policy: Policy,
    load: Load,
    verdicts: Sequence[SLOVerdict],
    demand: Demand,
    samples: Sequence[Sample],
    memory: ModelMemory,
    flow: _Flow,
    now_s: float,
) -> tuple[Demand, ModelMemory]:
    memory = replace(
        memory,
        requests_per_s=flow.mean_finished_per_s,
        prompt_per_s=flow.mean_prompt_per_s,
        output_per_s=flow.mean_output_per_s,
        prefill_tokens=load.prefill_tokens,
        seen_s=flow.seen_s,
        updated_s=now_s,
    )
    begins = not memory.best_cap
    if memory.steps.observations < FEWEST_OBSERVATIONS or (begins and load.told < load.ready):
        return demand, memory
    room = _batch(policy, load, demand.best_cap, flow)
    memory_s = RATIO_WINDOWS * policy.rate_window_s
    batch = _mean(_at_cap(memory, demand.best_cap), room, flow.gap_s, memory_s, flow.seen_s)
    memory = replace(memory, batch=batch)
    memory = _in_new_unit(memory, flow, demand.best_cap)
    batch = memory.batch or room
    each, curve = memory.steps.work_s(1.0, flow.outputs, batch), flow.curve(memory.steps, batch)
    work = flow.work(each.value, load, samples, policy.rate_window_s, now_s)
    work = max(work, _overload(load, demand, curve))
    if policy.profile is not None and memory.told_windows < WHOLE_WINDOW and load.running is not None:
        # Rates are not of a whole window yet, but what the requests in process mean is known.
        work = max(work, load.ready * curve.load(min(1.0, load.running / load.ready / batch)))
    error = each.error / each.value if each.value > 0 else 1.0
    return _modelled(policy, load, verdicts, demand, memory, flow, curve, error, work, now_s)


def _overload(load: Load, demand: Demand, curve: LoadCurve) -> float:
    """Work of replicas that refuse some: what they do, and what they refuse. It does not depend on learned times."""
    refused, finished = load.rejected_per_s, load.finished_per_s
    if not demand.saturated or not refused or not finished or load.running is None:
        return 0.0
    done = load.ready * curve.load(min(1.0, load.running / (load.ready * demand.best_cap)))
    return done * (1 + refused / finished)


def _without_flow(demand: Demand, load: Load, memory: ModelMemory, now_s: float) -> Demand:
    """What is known of promises is still known; and tokens that were told a while ago are missing, not 0."""
    if not memory.best_cap or now_s - memory.updated_s > REMEMBERED_S:
        return demand
    untold = load.prompt_per_s is None or load.output_per_s is None
    return replace(demand, **_promises(memory.promises, now_s), tokens_missing=untold and bool(load.running))


def _with_foresight(
    policy: Policy,
    load: Load,
    demand: Demand,
    memory: ModelMemory,
    steps: Fit,
    recalled: Mapping[Earlier, Recalled],
    now_s: float,
) -> tuple[Demand, ModelMemory]:
    """With what a forecast asks for besides. An idle fleet has one too, in the terms of the model that it had."""
    known = bool(memory.batch) and memory.best_cap == demand.best_cap and load.complete
    if not known or policy.objective is Objective.THROUGHPUT_SENSITIVE:
        return demand, memory
    batch = memory.batch or float(demand.best_cap)
    work, held, margin = demand.work, demand.peak_work, demand.margin
    if not demand.modelled:
        if load.prompt_per_s is None or load.output_per_s is None or load.told < load.ready:
            return demand, memory  # what is not told cannot be compared
        work = held = memory.steps.work_s(load.prompt_per_s, load.output_per_s, batch).value
        margin, _, _ = _margin(policy, memory.promises, _bare_margin(policy, 0.0), now_s)
    foreseen, memory = foresee(
        recalled,
        memory,
        steps,
        work=work,
        held=held,
        margin=margin,
        batch=batch,
        lead_s=_lead_s(policy, load),
        now_s=now_s,
    )
    return (demand if foreseen is None else replace(demand, foreseen=foreseen)), memory


def _lead_s(policy: Policy, load: Load) -> float:
    """From a rise until pods that are ordered for it serve."""
    return load.cold_start_s + LEAD_WINDOWS * policy.rate_window_s


def _at_cap(memory: ModelMemory, best_cap: int) -> float | None:
    """The mean of the room for requests; another cap is no drift of it."""
    return memory.batch if memory.best_cap == best_cap else None


def _in_new_unit(memory: ModelMemory, flow: _Flow, best_cap: int) -> ModelMemory:
    """Work of the past in replicas as they are now: the cap or the server became another one, or is known better."""
    before, now = memory.unit, Unit(memory.steps, memory.batch or float(best_cap), memory.revision)
    if before is None:
        return replace(memory, unit=now)
    another = now.steps.guess is not before.steps.guess or now.revision != before.revision
    another = another or isinstance(now.steps, BatchTimes) or memory.best_cap != best_cap
    old, new = (unit.steps.work_s(1.0, flow.outputs, unit.batch).value for unit in (before, now))
    factor = new / old if old > 0 and new > 0 else 1.0
    if not another and abs(factor - 1) <= KNOWN_BETTER:
        return memory
    mean_work = None if memory.mean_work is None else memory.mean_work * factor
    records = unraised(memory.records) if another else memory.records
    return replace(memory, outlook=memory.outlook.scaled(factor), mean_work=mean_work, records=records, unit=now)


def learned(memory: ModelMemory, now_s: float) -> Learned | None:
    """What of the memory is worth keeping; None before there is a model."""
    peak, rise = memory.outlook.peaks.highest(), memory.outlook.rises.highest()
    if peak is None or rise is None or not memory.steps.observations:
        return None
    alpha_s, beta_s, delta_s = memory.steps.parameters
    batches = memory.steps.table(MOST_BATCHES) if isinstance(memory.steps, BatchTimes) else ()
    return Learned(
        alpha_s=alpha_s,
        beta_s=beta_s,
        delta_s=delta_s,
        best_cap=memory.best_cap,
        peak_work=peak,
        largest_rise=rise,
        age_s=max(0.0, now_s - memory.outlook.peaks.entries[0][0]),
        seen=None if batches else _seen(memory),
        batches=batches,
    )


def _seen(memory: ModelMemory) -> Seen | None:
    """None before anything is asked for that could be measured."""
    requests, prompts, outputs = memory.requests_per_s, memory.prompt_per_s, memory.output_per_s
    if not requests or prompts is None or outputs is None:
        return None
    return Seen(
        requests_per_s=requests,
        prompt_tokens=prompts / requests,
        output_tokens=outputs / requests,
        room=memory.batch or float(memory.best_cap),
        margin=memory.margin,
        bound_by=memory.bound_by,
        error=1.0 if memory.error is None else memory.error,
        windows=memory.steps.observations,
        prefill_tokens=memory.prefill_tokens,
    )


def relearned(policy: Policy, known: Learned, now_s: float) -> ModelMemory:
    """A memory to begin with: step times as a guess, and the peak with its age; nothing where it is too old."""
    memory_s = _memory_s(policy)
    dynamic = policy.batching is Batching.DYNAMIC
    if known.age_s >= memory_s or dynamic is not bool(known.batches):
        return ModelMemory()
    outlook = replace(
        NO_OUTLOOK,
        peaks=NO_PEAKS.push(known.peak_work, now_s - known.age_s, memory_s),
        rises=NO_PEAKS.push(known.largest_rise, now_s - known.age_s, memory_s),
    )
    steps: Fit = StepFit((known.alpha_s, known.beta_s, known.delta_s), observations=FEWEST_OBSERVATIONS / 2).loosened()
    if dynamic:
        steps = BatchTimes.of_table(known.batches, FEWEST_OBSERVATIONS / 2)
    batch = float(known.best_cap)
    unit = Unit(steps, batch)
    return ModelMemory(best_cap=known.best_cap, batch=batch, steps=steps, outlook=outlook, unit=unit, updated_s=now_s)


def first_margin(policy: Policy) -> tuple[float, Signal | None]:
    """The margin that a policy begins with, before any promise was judged, and the promise that it is for."""
    promises = [_unknown(slo) for slo in policy.slos if isinstance(slo, LatencySLO)]
    margin, _, bound_by = _margin(policy, promises, _bare_margin(policy, 0.0), 0.0)
    return margin, bound_by


def _memory_s(policy: Policy) -> float:
    return MEMORY_WINDOWS[policy.objective] * policy.scale_down.stabilization_s


@dataclass(frozen=True, slots=True)
class _Flow:
    """Rates of the whole workload now, and as means over some minutes, which tell how much output a prompt brings."""

    prompt_per_s: float
    output_per_s: float
    finished_per_s: float
    mean_prompt_per_s: float
    mean_output_per_s: float
    mean_finished_per_s: float
    span_s: float
    gap_s: float
    seen_s: float

    @property
    def outputs(self) -> float:
        """Output tokens per prompt token."""
        return self.mean_output_per_s / self.mean_prompt_per_s

    def curve(self, steps: Fit, batch: float) -> LoadCurve:
        """Throughput against the share of `batch` in process."""
        return steps.curve(batch, 1 / self.outputs if self.outputs > 0 else 0.0)

    def work(self, token_s: float, load: Load, samples: Sequence[Sample], window_s: float, now_s: float) -> float:
        """Replicas that what arrives keeps busy: prompts read, with the answers they bring, and what begins to wait.

        `token_s` are replica-seconds of one prompt token with its answer.
        """
        read = self.prompt_per_s * token_s
        then = next((sample for sample in samples if now_s - sample.at_s <= window_s), None)
        growth_per_s, begun_per_s = 0.0, self.finished_per_s
        if then is not None and now_s > then.at_s:
            span_s = max(window_s / 4, now_s - then.at_s)
            if load.waiting is not None:
                growth_per_s = (load.waiting - then.waiting) / span_s
            if load.running is not None:  # in a burst many prompts are read before a request is done
                begun_per_s += max(0.0, load.running - then.running) / span_s
        if begun_per_s <= 0:
            return read
        request_s = token_s * self.prompt_per_s / begun_per_s
        arrives = read + (growth_per_s + (load.rejected_per_s or 0.0)) * request_s
        return max(0.0, arrives, self.surge_per_s(load, samples, window_s, now_s) * request_s)

    def surge_per_s(self, load: Load, samples: Sequence[Sample], window_s: float, now_s: float) -> float:
        """Requests that come at least, as the growth of half a window tells: a rate tells a jump a window late."""
        then = next((sample for sample in reversed(samples) if now_s - sample.at_s >= SURGE_WINDOWS * window_s), None)
        if then is None or load.running is None or load.waiting is None or now_s - then.at_s > window_s:
            return 0.0
        span_s = now_s - then.at_s
        growth = load.running + load.waiting - then.running - then.waiting
        per_s = self.finished_per_s + growth / span_s
        return per_s - SURGE_NOISE * math.sqrt(max(0.0, per_s + self.finished_per_s) / span_s)


def _flow(policy: Policy, load: Load, memory: ModelMemory, now_s: float) -> _Flow | None:
    prompt, output, finished = load.prompt_per_s, load.output_per_s, load.finished_per_s
    fewest = FEWEST_SAMPLES if policy.batching is Batching.DYNAMIC else FEWEST_TOKENS
    if not prompt or output is None or finished is None or output * policy.rate_window_s < fewest:
        return None  # idle, or not told
    span_s = min(LONGEST_STEP_S, now_s - memory.updated_s) if memory.steps.observations else policy.rate_window_s / 4
    memory_s, seen_s = RATIO_WINDOWS * policy.rate_window_s, memory.seen_s + max(0.0, span_s)
    return _Flow(
        prompt_per_s=prompt,
        output_per_s=output,
        finished_per_s=finished,
        mean_prompt_per_s=_mean(memory.prompt_per_s, prompt, span_s, memory_s, seen_s),
        mean_output_per_s=_mean(memory.output_per_s, output, span_s, memory_s, seen_s),
        mean_finished_per_s=_mean(memory.requests_per_s, finished, span_s, memory_s, seen_s),
        span_s=max(0.0, span_s),
        gap_s=max(0.0, now_s - memory.updated_s),
        seen_s=seen_s,
    )


def _mean(before: float | None, now: float, span_s: float, memory_s: float, seen_s: float) -> float:
    """With `now`, which stands for the last `span_s` of `seen_s`: a plain mean until `memory_s` were seen, so that the
    first look counts for no more than another."""
    if before is None:
        return now
    span_s = max(0.0, span_s)
    share = max(1 - math.exp(-span_s / memory_s), min(1.0, span_s / seen_s) if seen_s > 0 else 0.0)
    return before + share * (now - before)


def _observed(policy: Policy, load: Load, flow: _Flow) -> tuple[float, float, float, float] | None:
    """What this look tells: the mean batch, prompt tokens per step, the time between two tokens, and its weight."""
    weight = min(1.0, flow.span_s / policy.rate_window_s)
    token_s = load.token_s or 0.0
    if not 0 < token_s < math.inf or not load.told or weight <= 0:
        return None
    batch = token_s * flow.output_per_s / load.told
    if policy.batching is Batching.DYNAMIC:  # a replica is idle between batches: their size has to be told
        batch = load.batch_size or 0.0
    if batch < LEAST_BATCH:
        return None
    return batch, flow.prompt_per_s / flow.output_per_s * batch, token_s, weight


def _is_told(
    policy: Policy, load: Load, steps: Fit, samples: Sequence[Sample], now_s: float, batch: float, token_s: float
) -> bool:
    """Whether the time goes with the batch: with dynamic batching if as much was in process all through the window.

    Else most requests were in its few large batches, and its mean batch took less: news only if it is known as slower.
    """
    if not isinstance(steps, BatchTimes):
        return True
    each = load.batch or 0.0
    change = max(STEADY_SHARE * each, STEADY_NOISE * math.sqrt(each / load.ready))
    window = [sample for sample in samples if now_s - sample.at_s <= policy.rate_window_s and sample.ready]
    steady = all(abs(sample.running / sample.ready - each) <= change for sample in window)
    return steady or (bool(steps.rows or steps.told) and token_s < steps.seconds(batch))


def profiled(policy: Policy) -> Fit:
    """What is known before anything was seen: the policy's profile, where it has one."""
    dynamic = policy.batching is Batching.DYNAMIC
    if policy.profile is None:
        return NO_BATCHES if dynamic else NO_STEPS
    return _fit_of(policy.profile, dynamic)


@lru_cache(maxsize=1024)  # asked for twice at every look
def _fit_of(told: Profile, dynamic: bool) -> Fit:
    if dynamic:
        return BatchTimes.of_table(told.batches or ((1.0, told.alpha_s),), FEWEST_OBSERVATIONS)
    return StepFit.of_profile(told.alpha_s, told.beta_s, told.delta_s, FEWEST_OBSERVATIONS)


def _compared(
    policy: Policy, memory: ModelMemory, batch: float, prompt_tokens: float, token_s: float, weight: float
) -> ModelMemory:
    """With what the policy's profile says of an observation."""
    if policy.profile is None:
        return memory
    first = profiled(policy)
    told_s = first.told_s(batch) if isinstance(first, BatchTimes) else first.token_s(batch, prompt_tokens)
    if not told_s:
        return memory
    windows = min(TOLD_WINDOWS, memory.told_windows + weight)
    ratio = memory.told_ratio + weight / windows * (math.log(token_s / told_s) - memory.told_ratio)
    return replace(memory, told_ratio=ratio, told_windows=windows)


def judge_profile(policy: Policy, memory: ModelMemory) -> ProfileVerdict | None:
    """How the policy's profile stands to what was measured; None without one."""
    if policy.profile is None:
        return None
    if policy.batching is Batching.UNKNOWN:
        return ProfileVerdict(ProfileState.UNMEASURED, "The runtime has no model, so spec.profile counts for nothing.")
    if memory.told_windows < COMPARED_WINDOWS:
        return ProfileVerdict(ProfileState.UNMEASURED, ProfileState.UNMEASURED.meaning)
    times = math.exp(memory.told_ratio)
    if abs(memory.told_ratio) > math.log(CONTRADICTED):
        return ProfileVerdict(
            ProfileState.CONTRADICTED,
            f"Steps take {times:.2g} times as long as spec.profile says, so only what is measured counts: measure "
            "the profile again on these servers, or leave it out.",
        )
    return ProfileVerdict(ProfileState.FITS, f"Steps take {times:.2f} times as long as spec.profile says.")


def _of_revision(load: Load, memory: ModelMemory) -> tuple[Fit, str | None]:
    """Another pod template may be another server: what was learned is a first guess of it."""
    if load.revision is None or load.revision == memory.revision:
        return memory.steps, memory.revision
    return memory.steps if memory.revision is None else memory.steps.loosened(), load.revision


def _batch(policy: Policy, load: Load, best_cap: int, flow: _Flow) -> float:
    """Requests that a replica can have in process: its cap, or as many as its KV cache holds."""
    if load.kv is None or load.batch is None or load.kv < KV_KNOWN:
        told = policy.profile.kv_tokens if policy.profile is not None else None
        if told is None or policy.batching is Batching.DYNAMIC or not flow.mean_finished_per_s:
            return float(best_cap)
        context = (flow.mean_prompt_per_s + flow.mean_output_per_s / 2) / flow.mean_finished_per_s
        return max(1.0, min(float(best_cap), KV_FULL * told / context))
    return max(1.0, min(float(best_cap), KV_FULL * load.batch / load.kv))


def _modelled(
    policy: Policy,
    load: Load,
    verdicts: Sequence[SLOVerdict],
    demand: Demand,
    memory: ModelMemory,
    flow: _Flow,
    curve: LoadCurve,
    error: float,
    work: float,
    now_s: float,
) -> tuple[Demand, ModelMemory]:
    window_s = policy.rate_window_s
    outlook = memory.outlook
    if load.told < load.ready:  # tokens of the others are missing, not 0
        work = max(work, outlook.work)
    noise = NOISE * work / math.sqrt(max(1.0, flow.finished_per_s * window_s))
    memory_s = _memory_s(policy)
    outlook = outlook.seen(work, noise, now_s, lead_s=_lead_s(policy, load), memory_s=memory_s)
    held = outlook.held()
    mean_s = (
        min(MEAN_S, max(MEAN_WINDOWS * window_s, MEAN_REQUESTS / flow.finished_per_s))
        if flow.finished_per_s
        else MEAN_S
    )
    mean_work = _mean(memory.mean_work, work, flow.gap_s, mean_s, flow.seen_s)
    traces = _traced(policy, memory.traces, Trace(now_s, work / load.ready, load.queueing))
    carried = _carried(load, memory, held)
    promises = tuple(
        _judged(
            known,
            verdict,
            traces,
            work,
            carried,
            flow.span_s,
            now_s,
            lone=load.batch is not None and load.batch <= LONE_BATCH,
        )
        for known, verdict in zip(_known(policy, memory), _latencies(verdicts), strict=True)
    )
    # By the error before this look: what one look teaches is no reason for more work to ask for less.
    bare = _bare_margin(policy, error if memory.error is None else memory.error)
    margin, present_margin, bound_by = _margin(policy, promises, bare, now_s)
    return (
        replace(
            demand,
            curve=curve,
            work=work,
            peak_work=max(work, held),
            utilization=work / load.ready,
            margin=margin,
            bare_margin=bare,
            present_margin=present_margin,
            mean_work=mean_work,
            bound_by=bound_by,
            modelled=True,
            **({} if policy.objective is Objective.THROUGHPUT_SENSITIVE else _promises(promises, now_s)),
        ),
        replace(
            memory,
            mean_work=mean_work,
            best_cap=demand.best_cap,
            outlook=outlook,
            error=error,
            margin=margin,
            bound_by=bound_by,
            traces=traces,
            promises=promises,
        ),
    )


def _carried(load: Load, memory: ModelMemory, held: float) -> float:
    """The work that the ready replicas are there for at the margin in force: more than what is held where replicas are
    rounded up or kept for a while, less where pods come late."""
    return min(MOST_CARRIED * held, max(LEAST_CARRIED * held, load.ready / memory.margin))


def _promises(promises: Sequence[LearnedPromise], now_s: float) -> dict[str, Any]:
    return {
        "judged": frozenset(one.name for one in promises if one.misses.ripe),
        "unreachable": frozenset(one.name for one in promises if _is_lost(one, now_s)),
    }


def _is_lost(promise: LearnedPromise, now_s: float) -> bool:
    return now_s - promise.lost_s < LOST_S


def _latencies(verdicts: Sequence[SLOVerdict]) -> list[SLOVerdict]:
    return [verdict for verdict in verdicts if verdict.percentile is not None]


def _known(policy: Policy, memory: ModelMemory) -> tuple[LearnedPromise, ...]:
    """What was learned of each latency promise; anew where the promises were changed."""
    slos = [slo for slo in policy.slos if isinstance(slo, LatencySLO)]
    if [(*one.name, one.threshold_s) for one in memory.promises] == [
        (slo.signal, slo.percentile, slo.threshold_s) for slo in slos
    ]:
        return memory.promises
    return tuple(_unknown(slo) for slo in slos)


def _unknown(slo: LatencySLO) -> LearnedPromise:
    slow = slo.signal is Signal.INTER_TOKEN_LATENCY
    power, prior = (SLOW_POWER, SLOW_PRIOR) if slow else (WAIT_POWER, WAIT_PRIOR)
    return LearnedPromise(
        signal=slo.signal,
        percentile=slo.percentile,
        threshold_s=slo.threshold_s,
        misses=MissFit(AIM * (1 - slo.percentile / 100), power, prior),
        shape=Shape(power),
    )


def _traced(policy: Policy, traces: tuple[Trace, ...], trace: Trace) -> tuple[Trace, ...]:
    longest_s = max((slo.window_s for slo in policy.slos), default=0.0)
    if traces and trace.at_s - traces[-1].at_s < longest_s / TRACES:
        queued = traces[-1].queued or trace.queued
        return (*traces[:-1], replace(traces[-1], queued=queued))
    kept = tuple(one for one in traces if trace.at_s - one.at_s <= longest_s)
    return (*kept, trace)


def _judged(
    known: LearnedPromise,
    verdict: SLOVerdict,
    traces: Sequence[Trace],
    work: float,
    held: float,
    span_s: float,
    now_s: float,
    *,
    lone: bool,
) -> LearnedPromise:
    """With what this look tells. A queue is a fleet that is too small, and says nothing of one that is large enough;
    and what is missed by `lone` requests no other replica would mend.
    """
    shape = known.shape.seen(work, held, span_s)
    window = [trace for trace in traces if now_s - trace.at_s <= verdict.window_s] or traces[-1:]
    low, high = verdict.attainment_low, verdict.attainment_high
    told = verdict.state not in (SLOState.NO_DATA, SLOState.TOO_FEW_REQUESTS) and verdict.observations != 0
    short = any(trace.queued or trace.utilization > OVERFULL for trace in window)
    if lone or low is None or high is None or not told or short:
        return replace(known, shape=shape)
    power = known.misses.power
    load = math.fsum(min(FULLEST + 0.4, trace.utilization) ** power for trace in window) / len(window)
    misses = known.misses.seen(load, 1 - (low + high) / 2, span_s)
    lost = not _is_lost(known, now_s) and misses.unreachable(known.allowed)
    return replace(known, shape=shape, misses=misses, lost_s=now_s if lost else known.lost_s)


def _bare_margin(policy: Policy, error: float) -> float:
    """Replicas per replica of held work of the fullest fleet, whatever is promised; `error` is the model's, a ratio,
    and no matter where work may wait."""
    spare = 0.0 if policy.objective is Objective.THROUGHPUT_SENSITIVE else error
    return (1 + spare) / max(FULLEST, policy.band.high)


def _margin(
    policy: Policy, promises: Sequence[LearnedPromise], bare: float, now_s: float
) -> tuple[float, float, Signal | None]:
    """Replicas per replica of held work, the same where only the present work is held, and the promise that asks for
    more than the fullest fleet's, which is `bare`.

    The model's error counts for the latter only: what a promise needs was learned with the same error.
    """
    margin, present, bound_by = bare, bare, None
    if policy.objective is Objective.THROUGHPUT_SENSITIVE:
        return margin, present, bound_by
    for one in promises:
        if _is_lost(one, now_s):
            continue
        asked = one.misses.margin(one.shape.value)
        spared = min(1.0, max(1e-9, one.shape.value ** (1 / one.misses.power)))  # by what is held beyond the work
        present = max(present, min(MOST_MARGIN, asked / spared))
        asked = min(MOST_MARGIN, asked)
        if asked > margin:
            margin, bound_by = asked, one.signal
    return margin, present, bound_by
