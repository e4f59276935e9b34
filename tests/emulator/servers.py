"""The emulated servers: pure, driven by events in virtual seconds, O(1) amortised work per step.

Every token of a step has the same latency, so one observation counts them all, and running requests wait in a heap by
the step that ends them. What a step costs is in `config.ContinuousServer` and `config.DynamicServer`.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import deque
from itertools import count
from random import Random

from .config import Buckets, ContinuousServer, DynamicServer
from .histogram import RecentHistogram
from .request import Request
from .stats import Activity, ServerStats

# A closed loop's client waits this long after a failure; else it would ask again without end at one instant.
FAILURE_PAUSE_S = 1.0


class Server(ABC):
    """A queue before something that works in steps. Callers `advance` it to a time before they `submit` at it."""

    def __init__(self, capacity: int, max_queue: int | None, cap_delay_s: float, buckets: Buckets) -> None:
        self.stats = ServerStats(buckets)
        self.capacity = capacity
        self._cap = capacity
        self.draining = False
        self.slowdown = 1.0  # a step's time over what it takes alone
        self.next_s = math.inf  # when `advance` has something to do
        self.waiting: deque[Request] = deque()
        self._max_queue = max_queue
        self._cap_delay_s = cap_delay_s
        self._cap_changes: deque[tuple[float, int]] = deque()
        self._deadline_s = math.inf
        self._activity = Activity()
        self._step: Activity | None = None  # what the step under way will have cost at its end
        self._step_start_s = 0.0
        self._step_end_s = math.inf

    # What the router and the exporter read.

    @property
    @abstractmethod
    def running_count(self) -> int: ...

    @property
    def waiting_count(self) -> int:
        return len(self.waiting)

    @property
    def outstanding(self) -> int:
        return self.running_count + len(self.waiting)

    @property
    def gone(self) -> bool:
        """Drained: it was told to end and nothing is left."""
        return self.draining and not self.outstanding

    def cap_at(self, at_s: float) -> int:
        """The batch cap in force, which never exceeds the capacity that the server booted with."""
        while self._cap_changes and self._cap_changes[0][0] <= at_s:
            self._cap = self._cap_changes.popleft()[1]
        return self._cap

    def activity(self, at_s: float) -> Activity:
        """GPU work up to `at_s`, which must not lie before the last `advance`."""
        if self._step is None:
            return self._activity
        share = (at_s - self._step_start_s) / (self._step_end_s - self._step_start_s)
        return self._activity.plus(self._step, min(1.0, share))

    # What may happen to it.

    def submit(self, request: Request, at_s: float) -> None:
        """Takes a request, or counts it as rejected (queue full) or as an error (it could never be served)."""
        self.stats.arrived += 1
        request.queued_s = at_s
        if self._max_queue is not None and len(self.waiting) >= self._max_queue:
            self.stats.rejected += 1
            self._tell(request, at_s + FAILURE_PAUSE_S)
        elif not self._can_ever_serve(request):
            self._fail(request, "error", at_s)
        else:
            self.waiting.append(request)
            self._wake(at_s)

    def set_cap(self, cap: int | None, at_s: float) -> None:
        """The pod's annotation changed; the server sees it `cap_delay_s` later. None: back to the boot capacity."""
        wanted = self.capacity if cap is None else max(1, min(cap, self.capacity))
        self._cap_changes.append((at_s + self._cap_delay_s, wanted))

    def boot_cap(self, cap: int | None) -> None:
        """The annotation that the pod was created with, in force from the first step."""
        self._cap = self.capacity if cap is None else max(1, min(cap, self.capacity))

    def terminate(self, at_s: float, grace_s: float) -> None:
        """Takes no more requests and works on for `grace_s` at most; what is unfinished then fails as `abort`."""
        if not self.draining:
            self.draining = True
            self._deadline_s = at_s + grace_s
            if self._step is None and self.waiting:
                self.next_s = at_s  # a batch that waited to be filled goes now
            else:
                self._schedule()

    def advance(self, to_s: float) -> None:
        """Does everything that happens up to and at `to_s`."""
        while self.next_s <= to_s:
            at_s = self.next_s
            if at_s >= self._deadline_s:
                self._abort_all(at_s)
            elif at_s >= self._step_end_s:
                self._end_step(at_s)
                self._begin_step(at_s)
            else:
                self._begin_step(at_s)

    # Steps.

    def _run(self, at_s: float, duration_s: float, cost: Activity) -> None:
        self._step = cost
        self._step_start_s = at_s
        self._step_end_s = at_s + duration_s
        self._schedule()

    def _step_done(self) -> None:
        if self._step is not None:
            self._activity = self._activity.plus(self._step)
        self._step = None
        self._step_end_s = math.inf

    def _schedule(self) -> None:
        busy = self._deadline_s if self.outstanding else math.inf
        self.next_s = min(self._step_end_s, busy)

    def _abort_all(self, at_s: float) -> None:
        self._activity = self.activity(at_s)
        self._step = None
        self._step_end_s = math.inf
        for request in [*self._take_running(), *self.waiting]:
            self._fail(request, "abort", at_s)
        self.waiting.clear()
        self.next_s = math.inf

    def _fail(self, request: Request, reason: str, at_s: float) -> None:
        self.stats.finished[reason] += 1
        self._tell(request, at_s + FAILURE_PAUSE_S)

    def _succeed(self, request: Request, at_s: float) -> None:
        self.stats.finished["length" if request.longest else "stop"] += 1
        self.stats.e2e.observe(at_s - request.arrival_s)
        self._tell(request, at_s)

    @staticmethod
    def _tell(request: Request, at_s: float) -> None:
        if request.done is not None:
            request.done(at_s)

    def _can_ever_serve(self, request: Request) -> bool:
        return True

    @abstractmethod
    def _wake(self, at_s: float) -> None:
        """A request came into the queue."""

    @abstractmethod
    def _begin_step(self, at_s: float) -> None:
        """Takes work from the queue and starts a step, or goes to sleep."""

    @abstractmethod
    def _end_step(self, at_s: float) -> None:
        """Hands out what the step made."""

    @abstractmethod
    def _take_running(self) -> list[Request]:
        """Removes and returns what is running."""


class ContinuousBatchingServer(Server):
    """vLLM-like: decoding requests give a token each step, prefill goes along in chunks of a token budget."""

    def __init__(self, spec: ContinuousServer, buckets: Buckets, rng: Random, capacity: int | None = None) -> None:
        super().__init__(capacity or spec.capacity, spec.max_queue, spec.cap_delay_s, buckets)
        self.spec = spec
        self._rng = rng
        self._order = count()
        self._decoding: list[tuple[int, int, Request]] = []  # heap by last step; a preempted request's entry is stale
        self._admitted: list[Request] = []  # in order of admission, for preemption from the end; may hold finished ones
        self._prefilling: deque[Request] = deque()
        self._running = 0
        self._batch = 0  # requests that decode
        self._context = 0  # their tokens in the KV cache
        self._kv_used = 0
        self._decode_steps = 0
        self._step_batch = 0
        self._step_prefill = 0
        self._step_s = 0.0
        self._prefilled: list[Request] = []  # whose prefill ends with this step

    @property
    def running_count(self) -> int:
        return self._running

    @property
    def kv_usage(self) -> float:
        return self._kv_used / self.spec.kv_tokens

    def _can_ever_serve(self, request: Request) -> bool:
        room = self.spec.kv_tokens - request.prompt - 1
        if room < request.output:  # as a model's longest context does: the answer is cut
            request.output = room
            request.longest = True
        return room >= 1

    def _wake(self, at_s: float) -> None:
        if self._step is None:
            self.next_s = at_s

    def _begin_step(self, at_s: float) -> None:
        preempted = self._make_room(at_s)
        self._step_prefill = self._take_prefill(at_s, admit=not preempted)
        self._step_batch = self._batch
        if not self._step_batch and not self._step_prefill:
            self._schedule()
            return
        spec = self.spec
        decode_ms = prefill_ms = 0.0
        if self._step_batch:
            decode_ms = spec.alpha_ms + spec.beta_ms * self._batch + spec.kappa_ms_per_ktoken * self._context / 1000.0
        if self._step_prefill:
            prefill_ms = spec.gamma_ms + spec.delta_ms_per_token * self._step_prefill
        factor = 0.001
        if spec.jitter:
            factor *= max(0.1, self._rng.gauss(1.0, spec.jitter))
        self._step_s = self.slowdown * factor * (decode_ms + prefill_ms)
        tokens = self._step_batch + self._step_prefill
        tensor_ms = spec.prefill_tensor * (prefill_ms + min(decode_ms, spec.delta_ms_per_token * self._step_batch))
        dram_ms = spec.decode_dram * decode_ms + spec.prefill_dram * prefill_ms
        self._run(at_s, self._step_s, Activity(self._step_s, factor * tensor_ms, factor * dram_ms, tokens))

    def _make_room(self, at_s: float) -> bool:
        """Preempts by recompute, newest first, until each decoding request has room for its next token."""
        preempted = False
        while self._kv_used + self._batch > self.spec.kv_tokens:
            request = self._admitted.pop()
            if not request.running:
                continue
            preempted = True
            self._release(request)
            if request.ends_at_step >= 0:
                request.generated += self._decode_steps - request.joined_at_step
                request.last_token_s = at_s
                request.ends_at_step = -1
            else:
                self._prefilling.remove(request)
            self.stats.preemptions += 1
            self.waiting.appendleft(request)
        return preempted

    def _take_prefill(self, at_s: float, *, admit: bool) -> int:
        """Spends the step's prefill budget, first on what was begun, then on admissions. Returns the tokens spent."""
        budget = self.spec.prefill_budget
        while budget:
            if not self._prefilling and not (admit and self._admit(at_s)):
                break
            request = self._prefilling[0]
            chunk = min(budget, request.prefill_left)
            request.prefill_left -= chunk
            budget -= chunk
            if not request.prefill_left:
                self._prefilled.append(self._prefilling.popleft())
        return self.spec.prefill_budget - budget

    def _admit(self, at_s: float) -> bool:
        if not self.waiting or self._running >= self.cap_at(at_s):
            return False
        request = self.waiting[0]
        needed = request.prompt + request.generated
        if self._kv_used + needed + self._running + 1 > self.spec.kv_tokens:
            return False
        self.waiting.popleft()
        if request.scheduled_s is None:
            request.scheduled_s = at_s
            self.stats.queue.observe(at_s - request.arrival_s)
        request.running = True
        request.prefill_left = request.kv_at_join = needed
        self._kv_used += needed
        self._running += 1
        self._admitted.append(request)
        if len(self._admitted) > 2 * self._running + 64:
            self._admitted = [one for one in self._admitted if one.running]
        self._prefilling.append(request)
        return True

    def _end_step(self, at_s: float) -> None:
        self._step_done()
        stats = self.stats
        batch = self._step_batch
        if batch:
            self._decode_steps += 1
            self._kv_used += batch
            self._context += batch
            stats.itl.observe(self._step_s, batch)
            stats.generation_tokens += batch
            while self._decoding and self._decoding[0][0] <= self._decode_steps:
                ends_at_step, _, request = heapq.heappop(self._decoding)
                if request.ends_at_step == ends_at_step:
                    self._finish(request, at_s)
        stats.iteration_tokens.observe(batch + self._step_prefill)
        for request in self._prefilled:
            self._emit_after_prefill(request, at_s)
        self._prefilled.clear()

    def _emit_after_prefill(self, request: Request, at_s: float) -> None:
        """A prefill's end gives the first token, or after a preemption the next one."""
        if request.first_token_s is None:
            request.first_token_s = at_s
            self.stats.prompt_tokens += request.prompt
            self.stats.ttft.observe(at_s - request.arrival_s)
        else:
            self.stats.itl.observe(at_s - request.last_token_s)
        request.generated += 1
        self.stats.generation_tokens += 1
        request.joined_at_step = self._decode_steps
        request.ends_at_step = self._decode_steps + request.output - request.generated
        self._batch += 1
        self._context += request.kv_at_join
        if request.generated >= request.output:
            self._finish(request, at_s)
        else:
            heapq.heappush(self._decoding, (request.ends_at_step, next(self._order), request))

    def _finish(self, request: Request, at_s: float) -> None:
        self._release(request)
        request.ends_at_step = -1
        self._succeed(request, at_s)

    def _release(self, request: Request) -> None:
        """Takes a running request out of the batch and its tokens out of the KV cache."""
        held = request.kv_at_join
        if request.ends_at_step >= 0:
            held += self._decode_steps - request.joined_at_step
            self._batch -= 1
            self._context -= held
        self._kv_used -= held
        self._running -= 1
        request.running = False

    def _take_running(self) -> list[Request]:
        running = [request for request in self._admitted if request.running]
        self._admitted, self._decoding, self._prefilled = [], [], []
        self._prefilling.clear()
        self._running = self._batch = self._context = self._kv_used = self._step_batch = self._step_prefill = 0
        return running


class DynamicBatchingServer(Server):
    """Triton-like: an instance takes a batch when it is free and the batch is full or its oldest waited long enough."""

    def __init__(self, spec: DynamicServer, buckets: Buckets, rng: Random, capacity: int | None = None) -> None:
        super().__init__(min(capacity or spec.capacity, max(spec.batch_ms)), spec.max_queue, spec.cap_delay_s, buckets)
        self.spec = spec
        self._rng = rng
        self._sizes = sorted(spec.batch_ms)
        self._times_s = [0.001 * spec.time_scale * spec.batch_ms[size] for size in self._sizes]
        self._best_per_s = max(size / time for size, time in zip(self._sizes, self._times_s, strict=True))
        self.recent = RecentHistogram() if spec.summaries else None
        self._running: list[Request] = []
        self._started_s = 0.0
        self._step_s = 0.0

    @property
    def running_count(self) -> int:
        return len(self._running)

    def batch_s(self, batch: int) -> float:
        """How long a batch takes, seconds, linear between the table's sizes."""
        index = bisect_left(self._sizes, batch)
        if self._sizes[index] == batch:
            return self._times_s[index]
        below, above = self._sizes[index - 1], self._sizes[index]
        share = (batch - below) / (above - below)
        return self._times_s[index - 1] + share * (self._times_s[index] - self._times_s[index - 1])

    def _wake(self, at_s: float) -> None:
        if not self._running:
            full = len(self.waiting) >= self.cap_at(at_s)
            self.next_s = at_s if full else min(self._batch_due_s(), self._deadline_s)

    def _batch_due_s(self) -> float:
        return self.waiting[0].queued_s + 0.001 * self.spec.max_delay_ms

    def _begin_step(self, at_s: float) -> None:
        cap = self.cap_at(at_s)
        if not self.waiting:
            self._schedule()
            return
        if len(self.waiting) < cap and self._batch_due_s() > at_s and not self.draining:
            self.next_s = min(self._batch_due_s(), self._deadline_s)
            return
        batch = min(cap, len(self.waiting))
        self._running = [self.waiting.popleft() for _ in range(batch)]
        self._started_s = at_s
        alone_s = self.batch_s(batch)
        if self.spec.jitter:
            alone_s *= max(0.1, self._rng.gauss(1.0, self.spec.jitter))
        self._step_s = self.slowdown * alone_s
        tensor_s = self.spec.peak_tensor * min(alone_s, batch / self._best_per_s)
        self._run(at_s, self._step_s, Activity(self._step_s, tensor_s, self.spec.busy_dram * alone_s, batch))

    def _end_step(self, at_s: float) -> None:
        self._step_done()
        done, self._running = self._running, []
        stats = self.stats
        stats.executions += 1
        # As the real server counts: each request of a batch is charged the whole batch's time.
        stats.input_s += 0.03 * self._step_s * len(done)
        stats.infer_s += 0.94 * self._step_s * len(done)
        stats.output_s += 0.03 * self._step_s * len(done)
        for request in done:
            stats.queue.observe(self._started_s - request.arrival_s)
            if self.recent is not None:
                self.recent.observe(at_s - request.arrival_s, at_s)
            self._succeed(request, at_s)

    def _take_running(self) -> list[Request]:
        running, self._running = self._running, []
        return running
