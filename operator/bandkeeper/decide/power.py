"""The largest batch cap whose power stays within `constraints.powerWattsPerGPU`: a bound of the knob like batch.max.

Power is a limit that a person wrote: it bounds the cap also while work waits, and replicas take over the rest. What was
measured moves the bound, and what is predicted within reach of it; missing power data moves nothing.
"""

from __future__ import annotations

import math

from bandkeeper.api import durations
from bandkeeper.api.reasons import PowerState
from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import PodState, Snapshot
from bandkeeper.decide.decision import PowerVerdict
from bandkeeper.decide.load import STALE_S, Load
from bandkeeper.decide.policy import BatchControl, Batching, Policy
from bandkeeper.decide.quality import NEWS_S, gpus_of
from bandkeeper.decide.state import PowerMemory, PowerSample

WINDOW_S = 60.0
FEWEST_SAMPLES, SHORTEST_S = 2, 25.0  # for a window to tell: an exporter that is scraped every 30 s
EXPORTER_S = 30.0  # the age that a figure has already when it is scraped: exporters collect so often
WARMUP_S = 90.0  # a pod ready for less than this may have no figure yet
LEAST_SPARE, MOST_SPARE = 0.005, 0.03  # of the limit, which a cap is predicted to leave free: as power varies
FORESEEN = 1.05  # of the limit: what full batches must be predicted to draw for the cap to be lowered beforehand
GROWTH = 1.3  # times what a larger cap is predicted to draw more, that there must be room for
REACH = 2.0  # times the present batch: farther is not predicted
FARTHEST = 4.0  # a cap is lowered to a fourth at most before power is measured again
SURE_SPREAD = 2.0  # of batches that were seen, for a shape to be more than a guess
REST_S, LONG_REST_S = 120.0, 300.0
BROKEN_MEMORY_S = 1800.0  # a cap that drew too much is not gone back to sooner
SAMPLES_LIMIT = 32
_ADVICE = (
    "lower its clocks (nvidia-smi --lock-gpu-clocks) or its power limit (nvidia-smi --power-limit), "
    "or use a smaller model"
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Watts of the GPU that draws most, as old as the oldest figure, and ready pods that do not tell theirs."""

    watts: float
    age_s: float
    silent: int


@dataclass(frozen=True, slots=True)
class _Window:
    """Means of the last minute; `batch` is None where requests are not told.

    `margin` is the share of the limit that a cap may be predicted to draw: what power varies by stays free.
    """

    watts: float
    batch: float | None
    margin: float


def judge_power(
    policy: Policy, snapshot: Snapshot, load: Load, memory: PowerMemory, now_s: float
) -> tuple[PowerVerdict | None, PowerMemory]:
    """How power stands to its limit, and the largest cap that is allowed; None where there is no limit."""
    limit, control = policy.power_watts, policy.batch
    if limit is None:
        return None, memory
    reading = _read(snapshot, load)
    memory, news = _noted(_followed(memory, control, load, now_s), reading, _batch(policy, load), now_s)
    window = _window(memory, control, now_s)
    if reading is None or window is None:
        return _unknown(limit, load, reading, memory), memory
    if news and window.batch and now_s - memory.fitted_s >= WINDOW_S:
        fit = memory.fit.seen(window.batch, window.watts, memory.curve, now_s)
        memory = replace(memory, fit=fit, curve=fit.curve(), fitted_s=now_s)
    if control is None:
        state = PowerState.ABOVE if window.watts > limit else PowerState.WITHIN
        text = _drawn(window.watts, limit)
        text += "; no batch cap can be set, see the condition BatchApplied" if state is PowerState.ABOVE else ""
        return PowerVerdict(limit, state, text + ".", window.watts), replace(memory, state=state)
    memory = _bounded(limit, control, load, memory, window, complete=not reading.silent, now_s=now_s)
    return _verdict(limit, control, memory, window.watts), memory


def within(policy: Policy, memory: PowerMemory) -> Policy:
    """The policy with those caps only that power allows."""
    control = policy.batch
    if policy.power_watts is None or control is None or memory.ceiling is None:
        return policy
    allowed = tuple(cap for cap in control.candidates if cap <= memory.ceiling) or control.candidates[:1]
    if allowed == control.candidates:
        return policy
    return replace(policy, batch=replace(control, candidates=allowed, power=memory.why))


def _read(snapshot: Snapshot, load: Load) -> _Reading | None:
    """A pod's power is spread evenly over its GPUs, a workload's over all; a figure of 0 is none."""
    told = snapshot.by_pod.get(Signal.POWER, {})
    watts, age_s, silent = 0.0, 0.0, 0
    for pod in snapshot.pods_in(PodState.READY):
        reading = told.get(pod.name)
        if reading is not None and 0 < reading.value < math.inf and reading.age_s <= STALE_S:
            watts, age_s = max(watts, reading.value / gpus_of(snapshot, pod)), max(age_s, reading.age_s)
        elif pod.state_age_s >= WARMUP_S:
            silent += 1
    whole = snapshot.totals.get(Signal.POWER)
    if not told and whole is not None and 0 < whole.value < math.inf and whole.age_s <= STALE_S:
        gpus = sum(gpus_of(snapshot, pod) for pod in snapshot.pods_in(PodState.READY))
        watts, age_s, silent = whole.value / max(1, gpus), whole.age_s, 0
    return _Reading(watts, age_s, silent) if watts > 0 and load.ready else None


def _followed(memory: PowerMemory, control: BatchControl | None, load: Load, now_s: float) -> PowerMemory:
    """The caps in force. What is found at first is not gone beyond until power was seen to allow it.

    Once a lower bound is in force, what was drawn before says nothing any more; other moves of the cap are no reason to
    look away.
    """
    if control is None or not load.caps:
        return memory
    if memory.ceiling is None:
        first = max(load.caps)
        ceiling = next((cap for cap in control.candidates if cap >= first), control.candidates[-1])
        return replace(memory, ceiling=ceiling, caps=load.caps)
    obeys = max(memory.caps, default=0) > memory.ceiling >= max(load.caps)
    return replace(memory, caps=load.caps, since_s=now_s if obeys else memory.since_s)


def _batch(policy: Policy, load: Load) -> float | None:
    """Requests in process per replica; where a dynamic batcher has more than it takes, batches are full."""
    full = policy.batching is Batching.DYNAMIC and load.queueing and load.caps
    return max(load.batch or 0.0, float(min(load.caps))) if full else load.batch


def _noted(
    memory: PowerMemory, reading: _Reading | None, batch: float | None, now_s: float
) -> tuple[PowerMemory, bool]:
    if reading is None:
        return memory, False
    sample, samples = PowerSample(now_s - reading.age_s, reading.watts, batch), memory.samples
    if samples and sample.at_s - samples[-1].at_s < NEWS_S:
        return memory, False
    return replace(memory, samples=(*samples, sample)[-SAMPLES_LIMIT:]), True


def _window(memory: PowerMemory, control: BatchControl | None, now_s: float) -> _Window | None:
    """The last minute, without what may still be of the caps before."""
    acts_s = EXPORTER_S + (control.expected_delay_s if control else 0.0)
    begin_s = max(now_s - WINDOW_S - EXPORTER_S / 2, memory.since_s + acts_s)
    samples = [sample for sample in memory.samples if sample.at_s >= begin_s]
    if len(samples) < FEWEST_SAMPLES or samples[-1].at_s - samples[0].at_s < SHORTEST_S:
        return None
    batches = [sample.batch for sample in samples if sample.batch is not None]
    watts = sum(sample.watts for sample in samples) / len(samples)
    varies = math.sqrt(sum((sample.watts - watts) ** 2 for sample in samples) / len(samples)) / watts
    margin = 1 - min(max(varies, LEAST_SPARE), MOST_SPARE)
    return _Window(watts, sum(batches) / len(batches) if batches else None, margin)


def _bounded(
    limit: float,
    control: BatchControl,
    load: Load,
    memory: PowerMemory,
    window: _Window,
    *,
    complete: bool,
    now_s: float,
) -> PowerMemory:
    """With another bound where power asks for it or leaves room for it."""
    candidates = control.candidates
    ceiling = candidates[-1] if memory.ceiling is None else memory.ceiling
    in_force = max(load.caps, default=ceiling)
    state = PowerState.ABOVE if window.watts > limit else PowerState.WITHIN
    memory = replace(memory, ceiling=ceiling, state=state)
    if in_force > ceiling and in_force > candidates[0]:
        return memory  # the bound is not in force yet
    if state is PowerState.ABOVE:
        smaller = [cap for cap in candidates if cap < in_force]
        if not smaller:
            why = _drawn(window.watts, limit)
            return replace(memory, state=PowerState.UNREACHABLE, ceiling=candidates[0], moved_s=now_s, why=why)
        return _lowered(limit, memory, window, smaller, in_force, now_s)
    batch = window.batch
    if not complete or not batch or now_s - memory.moved_s < REST_S:
        return memory

    def at_full(cap: int) -> float:
        return memory.curve.moved(cap, batch, window.watts)

    broke_at = memory.broke_at if now_s - memory.broke_s <= BROKEN_MEMORY_S else None
    larger = [cap for cap in candidates if ceiling < cap <= REACH * batch and (broke_at is None or cap < broke_at)]
    room = (window.margin * limit - window.watts) / GROWTH
    fitting = [cap for cap in larger if at_full(cap) - window.watts <= room]
    if fitting:
        return replace(memory, ceiling=fitting[-1], moved_s=now_s)
    sure = memory.fit.spread >= SURE_SPREAD and ceiling <= REACH * batch and now_s - memory.moved_s >= LONG_REST_S
    least = [cap for cap in candidates if batch <= cap < ceiling]
    if sure and least and at_full(ceiling) > FORESEEN * limit:
        fitting = [cap for cap in least if at_full(cap) <= window.margin * limit]
        why = f"a GPU would draw {at_full(ceiling):.4g} W at full batches, {_allowed(limit)}"
        return replace(memory, ceiling=fitting[-1] if fitting else least[0], moved_s=now_s, why=why)
    return memory


def _lowered(
    limit: float, memory: PowerMemory, window: _Window, smaller: list[int], in_force: int, now_s: float
) -> PowerMemory:
    """To the largest cap that is predicted to fit; one candidate where no requests are told to predict by."""
    cap, broke_at = smaller[-1], in_force
    if (batch := window.batch) is not None and batch > 0:
        batch = min(batch, in_force)
        near = [one for one in smaller if one >= batch / FARTHEST] or smaller[-1:]
        fitting = [one for one in near if memory.curve.moved(one, batch, window.watts) <= window.margin * limit]
        cap = fitting[-1] if fitting else near[0]
        broke_at = next((one for one in smaller if one >= batch and one > cap), in_force)
    why = _drawn(window.watts, limit)
    return replace(memory, ceiling=cap, broke_at=broke_at, broke_s=now_s, moved_s=now_s, why=why)


def _allowed(watts: float) -> str:
    return f"constraints.powerWattsPerGPU allows {watts:.4g} W"


def _drawn(watts: float, limit: float) -> str:
    return f"a GPU draws {watts:.4g} W, {_allowed(limit)}"


def _verdict(limit: float, control: BatchControl, memory: PowerMemory, watts: float) -> PowerVerdict:
    state, allowed = memory.state or PowerState.NO_DATA, _allowed(limit)
    if state is PowerState.UNREACHABLE:
        text = f"A GPU draws {watts:.4g} W at the smallest batch cap, {control.candidates[0]}: {allowed}; {_ADVICE}"
    elif state is PowerState.ABOVE:
        text = f"A GPU draws {watts:.4g} W, {allowed}; the batch cap goes down to {memory.ceiling}"
    else:
        text = f"The GPU that draws most draws {watts:.4g} W, {allowed}; the batch cap may be up to {memory.ceiling}"
    return PowerVerdict(limit, state, text + ".", watts, memory.ceiling)


def _unknown(limit: float, load: Load, reading: _Reading | None, memory: PowerMemory) -> PowerVerdict:
    """Without a whole window; while one is awaited after a change, what was known before is still said."""
    if reading is not None and memory.state is not None:
        text = f"The GPU that draws most draws {reading.watts:.4g} W, {_allowed(limit)}; a minute at the present batch "
        return PowerVerdict(limit, memory.state, text + "cap is awaited.", reading.watts, memory.ceiling)
    if not load.ready:
        text = "No pod is ready, so there is no power to measure."
    elif reading is not None:
        text = (
            f"Power was read and a minute of it is awaited; the GPU exporter is to be scraped every "
            f"{durations.text(EXPORTER_S)} or more often."
        )
    else:
        text = (
            "No ready pod has a figure of its GPUs' power younger than 2 minutes, so power moves no batch cap. Export "
            "DCGM_FI_DEV_POWER_USAGE or install the node agent; MIG instances have none."
        )
    return PowerVerdict(limit, PowerState.NO_DATA, text, None if reading is None else reading.watts, memory.ceiling)
