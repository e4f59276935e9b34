"""What the fleet does now: requests, rates and pods of one snapshot, and how complete that picture is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Pod, PodState, Reading, Snapshot
from bandkeeper.decide.policy import Batching, Policy
from bandkeeper.decide.state import DemandMemory
from bandkeeper.model import histogram

STALE_S = 120.0  # the reader's own limit is lower and configurable; this one only guards against a reader without any
WARMUP_S = 60.0  # a pod ready for less than this may not have been scraped yet
LEAST_WINDOW = 0.5  # of the rate window: from less no rate is told
UNMEASURED_COLD_START_S = 120.0
UNMEASURED_CREDIT_S = 600.0
LONGEST_COLD_START_S = 3600.0
LONGEST_TOKEN_WINDOWS = 2.5  # rate windows that a latency's may last to be compared with rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One look at the fleet.

    Attributes
    ----------
    running, waiting
        Requests in process and queued in the ready pods that told; None where none did.
    complete
        Every ready pod told both, and the workload has at least one ready pod.
    silent
        Names of ready pods without data, those that became ready a moment ago left out.
    finished_per_s, rejected_per_s, preemptions_per_s, produced_per_s
        Rates of the whole workload; `produced` is tokens, samples or requests, whichever is finest. None: not known.
    produced_whole
        Every ready pod told what it produced.
    left, left_whole
        Work of a backlog with a deadline that is not done yet, and whether that is all of it.
    backlogged
        So much of it is left that every replica had work for a whole rate window.
    works_off
        Replicas that tell nothing but what they do of a backlog.
    trains
        Ranks of a training job, which tells samples and no queue: it always has more to do.
    kv
        Mean share of the KV cache in use.
    prompt_per_s, output_per_s, told
        Tokens read and made by the workload, and how many replicas told that; with dynamic batching both are samples.
    token_s
        Mean time between two tokens of a request, as the latency promises' histogram has it, else by Little's law. With
        dynamic batching the time that a request's batch takes.
    batch_size
        With dynamic batching the mean size of the batches.
    revision
        Of the ready pods' template; None where they differ or do not tell.
    capacity
        Least batch size that a ready pod booted with; None where no pod tells.
    caps
        Batch caps that are in force in the ready pods.
    queue_bounded, queue_bound
        Whether servers refuse what would wait too long, and the most that one of them lets wait, where known.
    prefill_tokens
        The least that a ready pod tells as the most prompt tokens of a step; None where no pod tells.
    youngest_s
        Seconds since the last pod became ready.
    pending
        Pods that are credited: they will be ready soon.
    lost
        Pods that were ordered and are not expected any more.
    """

    ready: int
    running: float | None
    waiting: float | None
    complete: bool
    silent: tuple[str, ...] = ()
    finished_per_s: float | None = None
    rejected_per_s: float | None = None
    preemptions_per_s: float | None = None
    produced_per_s: float | None = None
    produced_whole: bool = False
    left: float | None = None
    left_whole: bool = False
    backlogged: bool = False
    works_off: bool = False
    trains: bool = False
    kv: float | None = None
    prompt_per_s: float | None = None
    output_per_s: float | None = None
    told: int = 0
    token_s: float | None = None
    batch_size: float | None = None
    revision: str | None = None
    capacity: int | None = None
    caps: frozenset[int] = frozenset()
    queue_bounded: bool = False
    queue_bound: int | None = None
    prefill_tokens: int | None = None
    youngest_s: float = 0.0
    pending: int = 0
    lost: tuple[Pod, ...] = ()
    terminating: int = 0
    cold_start_s: float = UNMEASURED_COLD_START_S
    cold_start_measured: bool = False
    quiet_queue: float = 0.0
    waiting_known: bool = False

    @property
    def in_flight(self) -> float | None:
        """Requests in the fleet, queued ones included."""
        return None if self.running is None else self.running + (self.waiting or 0.0)

    @property
    def batch(self) -> float | None:
        """Requests in process per ready replica."""
        return None if self.running is None or not self.ready else self.running / self.ready

    @property
    def queueing(self) -> bool:
        """More waits than comes and goes in a healthy fleet."""
        return self.waiting is not None and self.waiting > self.quiet_queue

    @property
    def supply(self) -> int:
        """Replicas that serve or soon will."""
        return self.ready + self.pending


def assess(policy: Policy, snapshot: Snapshot, memory: DemandMemory) -> Load:
    """Add up what the ready pods told."""
    by_state: dict[PodState, list[Pod]] = {state: [] for state in PodState}
    for pod in snapshot.pods:
        by_state[pod.state].append(pod)
    ready, pending = tuple(by_state[PodState.READY]), by_state[PodState.PENDING]
    cold_start_s = _cold_start_s(ready, memory.cold_start_s)
    credit_s = UNMEASURED_CREDIT_S if cold_start_s is None else 2 * cold_start_s
    late = [pod for pod in pending if pod.state_age_s > credit_s]

    running = _total(snapshot, Signal.REQUESTS_RUNNING, ready)
    waiting = _total(snapshot, Signal.REQUESTS_WAITING, ready)
    waiting_known = memory.waiting_known or _has_source(snapshot, Signal.REQUESTS_WAITING)
    silent = _silent(snapshot, Signal.REQUESTS_RUNNING, running, ready)
    if waiting_known:
        silent |= _silent(snapshot, Signal.REQUESTS_WAITING, waiting, ready)
    capacities = [pod.capacity for pod in ready if pod.capacity]
    bounds = [pod.queue_bound for pod in ready if pod.queue_bound is not None]
    caps = frozenset(cap for pod in ready if (cap := pod.cap or pod.capacity))
    rejected = _total(snapshot, Signal.REQUESTS_REJECTED, ready)
    finished = _total(snapshot, Signal.REQUESTS_FINISHED, ready)
    dynamic = policy.batching is Batching.DYNAMIC
    output = _total(snapshot, Signal.SAMPLES if dynamic else Signal.GENERATION_TOKENS, ready)
    prompt = output if dynamic else _total(snapshot, Signal.PROMPT_TOKENS, ready)
    revisions = {pod.revision for pod in ready}
    per_replica = max(caps, default=policy.default_capacity)
    produced = _produced(policy, snapshot, ready, output, finished)
    left = _left(policy, snapshot, ready, running, waiting)
    made = produced.value if produced else None
    return Load(
        ready=len(ready),
        running=running.value,
        waiting=waiting.value,
        complete=bool(ready) and not silent and running.value is not None,
        silent=tuple(sorted(pod.name for pod in ready if pod.name in silent and pod.state_age_s >= WARMUP_S)),
        finished_per_s=finished.value,
        rejected_per_s=rejected.value,
        preemptions_per_s=_total(snapshot, Signal.PREEMPTIONS, ready).value,
        produced_per_s=made,
        produced_whole=produced is not None and produced.replicas(len(ready)) == len(ready),
        left=left.value if left else None,
        left_whole=left is not None and bool(ready) and left.replicas(len(ready)) == len(ready),
        backlogged=bool(left and made is not None and (left.value or 0.0) > made * policy.rate_window_s),
        works_off=running.value is None
        and not waiting_known
        and left is not None
        and (left.value is not None or made is not None),
        trains=_trains(policy, snapshot, ready) and not waiting_known and running.value is None,
        kv=_total(snapshot, Signal.KV_CACHE_UTILIZATION, ready).mean,
        prompt_per_s=_of_whole_window(policy, snapshot, Signal.PROMPT_TOKENS, prompt, ready),
        output_per_s=_of_whole_window(policy, snapshot, Signal.GENERATION_TOKENS, output, ready),
        told=min(output.replicas(len(ready)), prompt.replicas(len(ready))),
        token_s=_token_s(policy, snapshot, running.value, finished.value if dynamic else output.value),
        batch_size=_total(snapshot, Signal.BATCH_SIZE, ready).mean if dynamic else None,
        revision=revisions.pop() if len(revisions) == 1 else None,
        capacity=min(capacities, default=None),
        caps=caps,
        queue_bounded=rejected.value is not None or bool(bounds),
        queue_bound=max(bounds, default=None),
        prefill_tokens=min((pod.prefill_tokens for pod in ready if pod.prefill_tokens), default=None),
        youngest_s=min((pod.state_age_s for pod in ready), default=0.0),
        pending=len(pending) - len(late),
        lost=(*by_state[PodState.UNSCHEDULABLE], *by_state[PodState.FAILED], *late),
        terminating=len(by_state[PodState.TERMINATING]),
        cold_start_s=UNMEASURED_COLD_START_S if cold_start_s is None else cold_start_s,
        cold_start_measured=cold_start_s is not None,
        quiet_queue=len(ready) * _quiet_per_replica(policy.batching, per_replica),
        waiting_known=waiting_known,
    )


def rate_of(snapshot: Snapshot, signal: Signal) -> float | None:
    """One signal summed over the ready pods that told, None where none did."""
    return _total(snapshot, signal, snapshot.pods_in(PodState.READY)).value


def _quiet_per_replica(batching: Batching, cap: int) -> float:
    """Waiting requests that are no queue yet: a dynamic batch is formed from those that wait."""
    return float(cap) if batching is Batching.DYNAMIC else max(1.0, 0.05 * cap)


NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Total:
    value: float | None
    pods: int
    whole: bool = False

    @property
    def mean(self) -> float | None:
        return None if self.value is None else self.value / max(1, self.pods)

    def replicas(self, ready: int) -> int:
        """How many of the ready pods it speaks for."""
        return ready if self.whole else self.pods


UNTOLD = _Total(None, 0)


def _total(snapshot: Snapshot, signal: Signal, ready: Sequence[Pod]) -> _Total:
    """The signal summed over the ready pods that told; a value for the whole workload speaks for all of them."""
    readings = snapshot.by_pod.get(signal)
    if not readings:
        whole = snapshot.totals.get(signal)
        return UNTOLD if whole is None or not _usable(whole) else _Total(whole.value, 1, whole=True)
    get = readings.get
    values = [  # _usable, spelled out: calls for each pod and signal are what a tick of a large fleet is spent on
        one.value
        for pod in ready
        if (one := get(pod.name)) is not None and 0 <= one.value < math.inf and one.age_s <= STALE_S
    ]
    return _Total(sum(values), len(values)) if values else UNTOLD


def _silent(snapshot: Snapshot, signal: Signal, total: _Total, ready: Sequence[Pod]) -> frozenset[str]:
    """Names of the ready pods that the total does not speak for."""
    if total.replicas(len(ready)) == len(ready):
        return NOBODY
    readings = snapshot.by_pod.get(signal, {})
    return frozenset(pod.name for pod in ready if (one := readings.get(pod.name)) is None or not _usable(one))


def _of_whole_window(
    policy: Policy, snapshot: Snapshot, signal: Signal, total: _Total, ready: Sequence[Pod]
) -> float | None:
    """A rate as if pods that are younger than its window had done all the time what they did since they are ready; not
    where no pod is older, because what had waited for the first ones comes to them at once."""
    window_s, readings = policy.rate_window_s, snapshot.by_pod.get(signal)
    young = [pod for pod in ready if pod.state_age_s < window_s] if readings and total.value is not None else []
    if not young or len(young) == len(ready) or readings is None or total.value is None:
        return total.value
    more = 0.0
    for pod in young:
        one = readings.get(pod.name)
        if one is not None and _usable(one):
            more += one.value * (window_s / max(pod.state_age_s, LEAST_WINDOW * window_s) - 1)
    return total.value + more


def _usable(reading: Reading) -> bool:
    return 0 <= reading.value < math.inf and reading.age_s <= STALE_S


def _has_source(snapshot: Snapshot, signal: Signal) -> bool:
    """Whether the signal is read at all, be it that nothing usable came of it."""
    told = signal in snapshot.totals or bool(snapshot.by_pod.get(signal))
    return told or any(gap.signal is signal for gap in snapshot.gaps)


def _token_s(policy: Policy, snapshot: Snapshot, running: float | None, output_per_s: float | None) -> float | None:
    for (signal, window_s), found in snapshot.distributions.items():
        recent = window_s <= LONGEST_TOKEN_WINDOWS * policy.rate_window_s and found.age_s <= STALE_S
        if signal is not Signal.INTER_TOKEN_LATENCY or not recent or not histogram.is_possible(found):
            continue
        if token_s := histogram.mean(found):
            return token_s
    return running / output_per_s if running and output_per_s else None


def _left(
    policy: Policy, snapshot: Snapshot, ready: tuple[Pod, ...], running: _Total, waiting: _Total
) -> _Total | None:
    """What a deadline's backlog has left: by its own signal, else the requests in the servers."""
    if policy.deadline is None:
        return None
    if policy.deadline.backlog is Signal.BACKLOG:
        return _total(snapshot, Signal.BACKLOG, ready)
    if running.value is None or waiting.value is None:
        return None
    return replace(min(running, waiting, key=lambda one: one.replicas(len(ready))), value=running.value + waiting.value)


def _produced(
    policy: Policy, snapshot: Snapshot, ready: tuple[Pod, ...], output: _Total, finished: _Total
) -> _Total | None:
    """What is made: what a backlog is counted in, else tokens, samples, or requests."""
    if policy.deadline is not None:
        return _total(snapshot, policy.deadline.rate, ready)
    if output.value is not None:
        return output
    samples = _total(snapshot, Signal.SAMPLES, ready)
    made = finished if samples.value is None else samples
    return None if made.value is None else made


def _trains(policy: Policy, snapshot: Snapshot, ready: Sequence[Pod]) -> bool:
    """Ranks of one job that tell their samples; a served model's ranks tell requests."""
    ranks = policy.batching is Batching.UNKNOWN and bool(ready) and all(pod.trains for pod in ready)
    return ranks and _total(snapshot, Signal.SAMPLES, ready).value is not None


def _cold_start_s(ready: tuple[Pod, ...], remembered_s: float | None) -> float | None:
    """Creation to readiness, the lower median of the ready pods: a pod that flapped since shows too much."""
    measured = sorted(pod.age_s - pod.state_age_s for pod in ready)
    measured = [span_s for span_s in measured if 0 < span_s <= LONGEST_COLD_START_S]
    return measured[(len(measured) - 1) // 2] if measured else remembered_s
