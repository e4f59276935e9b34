"""The fleet's inner loop, compiled by numba: arrivals, routing, and the steps of each pod's server.

Pods only meet at the router, so between two arrivals each pod runs on by itself. A step is one event: all tokens of a
step have the same latency and are counted at once; what differs between requests is taken from differences of the
pod's own counts of steps and of late steps. Pods' lives (cold start, cap, drain, crash) belong to `fleet`.

All is kept in few arrays of records, because each array that a function is given costs time to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

UNSERVED, FINISHED, REJECTED, FAILED = 0, 1, 2, 3
EDGES, FINE_EDGES = 64, 320  # at most
NEVER = 1 << 60


def _record(integers: str, floats: str, *arrays: tuple[str, str, tuple[int, ...]]) -> np.dtype[np.void]:
    return np.dtype([(name, "i8") for name in integers.split()] + [(name, "f8") for name in floats.split()] + [*arrays])


SERVER = _record(
    "dynamic max_queue kv_tokens chunk",
    "alpha_ms beta_ms kappa_ms_per_ktoken gamma_ms delta_ms_per_token prefill_tensor prefill_dram decode_dram"
    " max_delay_s best_per_s peak_tensor busy_dram slow_start_s bin_s",
    # Upper bounds, filled up with infinity: of the pods' histograms, and of inter-token latencies by time.
    *((name, "f8", (EDGES,)) for name in ("itl_edges_s", "ttft_edges_s", "e2e_edges_s", "queue_edges_s")),
    ("fine_edges_s", "f8", (FINE_EDGES,)),
)
"""What holds for all pods; 0 where the other kind of server has it. `max_queue` below 0: no bound."""

POD = _record(
    # `chosen`: the router's count when it last chose this pod.
    "accepting draining cap chosen"
    # The step under way: requests that decode in it, its prompt tokens, and the requests whose prefill it ends.
    " stepping step_batch step_prefill prefilled"
    # The queue, linked through the requests.
    " first last waiting"
    # The batch, in order of admission: `decoding` requests that decode, then those in prefill, which is done in that
    # order too. `next_end` is the first decode step that ends a request; `kv` and `context` are in tokens.
    " running decoding next_end kv context"
    " arrived finished rejected failed preemptions prompt_tokens generation_tokens"
    " decode_steps iterations iteration_tokens executions",
    # `gone_s`: when it crashed, or was draining and became empty; infinite until then.
    "ready_s deadline_s gone_s next_s step_start_s step_s step_tensor_s step_dram_s busy_s tensor_s dram_s"
    " itl_sum_s ttft_sum_s e2e_sum_s queue_sum_s",
    *((name, "i8", (EDGES + 1,)) for name in ("itl", "ttft", "e2e", "queue")),
)

PLACE = _record("request ends_at left", "")
"""A request in a batch: the decode step that brings its last token, and the tokens still to prefill."""

LIMIT = _record("slow", "threshold_s")
"""An inter-token latency to count against, and the pod's decode steps that took longer."""

ROUTER = _record("asked choices first last waiting draining", "")
"""Requests that arrived, requests handed out, the queue of those that no pod was ready for, and pods that drain."""

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("first_token_s", "f8"),
        (
            "last_s",
            "f8",
        ),  # when it ended; before, when it came to its pod; once preempted, when its last token came out
        ("prompt", "i4"),
        ("output", "i4"),
        ("generated", "i4"),  # tokens that had come out when it last left a batch
        ("behind", "i4"),  # the request behind it in a queue
        ("status", "i4"),
        ("scheduled", "i4"),
    ]
)

_Function = TypeVar("_Function", bound=Callable[..., Any])
# No counting of references to arrays, which would take more time than all the rest: nothing here makes or keeps one.
_OPTIONS: dict[str, Any] = {"_nrt": False, "no_cfunc_wrapper": True, "error_model": "numpy"}
# No wrapper for calls from Python, which would take longer to compile than what it wraps.
_INNER: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True}


def _inner(function: _Function) -> _Function:
    compiled: _Function = njit(**_INNER)(function)
    return compiled


def _outer(function: _Function) -> _Function:
    try:
        compiled: _Function = njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is nowhere to write a cache: it is compiled in each process
        compiled = njit(**_OPTIONS)(function)
    return compiled


@_inner
def _bucket(edges: Any, value: Any) -> Any:
    """Index of the first edge that is not below `value`; the number of edges if there is none."""
    low, high = 0, edges.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if edges[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@_inner
def _observe_tokens(server: Any, pod: Any, bins: Any, at_s: Any, itl_s: Any, tokens: Any) -> None:
    """Counts tokens that came out together."""
    pod.itl[_bucket(server.itl_edges_s, itl_s)] += tokens
    pod.itl_sum_s += itl_s * tokens
    bins[int(at_s / server.bin_s), _bucket(server.fine_edges_s, itl_s)] += tokens


@_inner
def _push(queue: Any, asked: Any, request: Any) -> None:
    if queue.waiting:
        asked[queue.last].behind = request
    else:
        queue.first = request
    queue.last = request
    queue.waiting += 1


@_inner
def _pop(queue: Any, asked: Any) -> Any:
    request = queue.first
    queue.first = asked[request].behind
    queue.waiting -= 1
    return request


@_inner
def _succeed(server: Any, pod: Any, one: Any, at_s: Any) -> None:
    one.status = FINISHED
    one.last_s = at_s
    pod.finished += 1
    pod.e2e[_bucket(server.e2e_edges_s, at_s - one.arrival_s)] += 1
    pod.e2e_sum_s += at_s - one.arrival_s


@_inner
def _fail(pod: Any, one: Any, at_s: Any) -> None:
    one.status = FAILED
    one.last_s = at_s
    pod.failed += 1


@_inner
def _queued(server: Any, pod: Any, one: Any, at_s: Any) -> None:
    """Its time in the queue is over."""
    pod.queue[_bucket(server.queue_edges_s, at_s - one.arrival_s)] += 1
    pod.queue_sum_s += at_s - one.arrival_s


# Continuous batching.


@_inner
def _goal(server: Any, one: Any) -> Any:
    """Tokens that it will get: a request that would outgrow the whole KV cache is cut, as by a longest context."""
    return min(one.output, server.kv_tokens - one.prompt - 1)


@_inner
def _release(server: Any, pod: Any, place: Any, decodes: Any, asked: Any, late: Any, limits: Any) -> None:
    """Takes a request's tokens out of the KV cache and settles its account; the caller takes it out of the batch."""
    one = asked[place.request]
    held = one.prompt + one.generated
    if decodes:
        one.generated = _goal(server, one) - (place.ends_at - pod.decode_steps)
        held = one.prompt + one.generated - 1
        pod.context -= held
        for index in range(limits.shape[0]):
            late[place.request, index] += limits[index].slow
    pod.kv -= held


@_inner
def _make_room(server: Any, pod: Any, batch: Any, asked: Any, late: Any, limits: Any, at_s: Any) -> Any:
    """Preempts by recompute, newest first, until each decoding request has room for its next token."""
    preempted = False
    while pod.kv + pod.decoding > server.kv_tokens:
        pod.running -= 1
        place = batch[pod.running]
        decodes = pod.running < pod.decoding
        _release(server, pod, place, decodes, asked, late, limits)
        if decodes:
            pod.decoding -= 1
            asked[place.request].last_s = at_s
        pod.preemptions += 1
        asked[place.request].behind = pod.first
        if not pod.waiting:
            pod.last = place.request
        pod.first = place.request
        pod.waiting += 1
        preempted = True
    return preempted


@_inner
def _admit(server: Any, pod: Any, batch: Any, asked: Any, at_s: Any) -> Any:
    """Takes the oldest request from the queue into the batch, if it and the KV cache have room."""
    if not pod.waiting or pod.running >= pod.cap:
        return False
    one = asked[pod.first]
    needed = one.prompt + one.generated
    if pod.kv + needed + pod.running + 1 > server.kv_tokens:
        return False
    if not one.scheduled:
        one.scheduled = 1
        _queued(server, pod, one, at_s)
    place = batch[pod.running]
    place.request = _pop(pod, asked)
    place.left = needed
    place.ends_at = NEVER
    pod.running += 1
    pod.kv += needed
    return True


@_inner
def _begin_continuous(server: Any, pod: Any, batch: Any, asked: Any, late: Any, limits: Any, at_s: Any) -> None:
    admits = not _make_room(server, pod, batch, asked, late, limits, at_s)
    budget = server.chunk  # spent first on the prefill that was begun, then on admissions
    while budget and (
        pod.decoding + pod.prefilled < pod.running or (admits and _admit(server, pod, batch, asked, at_s))
    ):
        place = batch[pod.decoding + pod.prefilled]
        tokens = min(budget, place.left)
        place.left -= tokens
        budget -= tokens
        pod.prefilled += place.left == 0
    pod.step_prefill = server.chunk - budget
    pod.step_batch = pod.decoding
    if not pod.step_batch and not pod.step_prefill:
        return
    decode_ms = prefill_ms = 0.0
    if pod.step_batch:
        decode_ms = server.alpha_ms + server.beta_ms * pod.decoding + server.kappa_ms_per_ktoken * pod.context / 1000.0
    if pod.step_prefill:
        prefill_ms = server.gamma_ms + server.delta_ms_per_token * pod.step_prefill
    compute_ms = prefill_ms + min(decode_ms, server.delta_ms_per_token * pod.step_batch)
    pod.step_tensor_s = 0.001 * (server.prefill_tensor * compute_ms)
    pod.step_dram_s = 0.001 * (server.decode_dram * decode_ms + server.prefill_dram * prefill_ms)
    pod.step_s = 0.001 * (decode_ms + prefill_ms)
    pod.step_start_s = at_s
    pod.stepping = 1


@_inner
def _end_continuous(
    server: Any, pod: Any, batch: Any, asked: Any, late: Any, limits: Any, bins: Any, at_s: Any
) -> None:
    decoded = pod.step_batch
    if decoded:
        pod.decode_steps += 1
        pod.kv += decoded
        pod.context += decoded
        pod.generation_tokens += decoded
        _observe_tokens(server, pod, bins, at_s, pod.step_s, decoded)
        for index in range(limits.shape[0]):
            limits[index].slow += pod.step_s > limits[index].threshold_s
    pod.iterations += 1
    pod.iteration_tokens += decoded + pod.step_prefill
    for _ in range(pod.prefilled):
        _join(server, pod, batch[pod.decoding], asked, late, limits, bins, at_s)
    pod.prefilled = 0
    if pod.next_end <= pod.decode_steps:
        _finish(server, pod, batch, asked, late, limits, at_s)


@_inner
def _join(server: Any, pod: Any, place: Any, asked: Any, late: Any, limits: Any, bins: Any, at_s: Any) -> None:
    """A prefill's end gives the first token, or after a preemption the next one, and the request decodes."""
    one = asked[place.request]
    if np.isnan(one.first_token_s):
        one.first_token_s = at_s
        pod.prompt_tokens += one.prompt
        pod.ttft[_bucket(server.ttft_edges_s, at_s - one.arrival_s)] += 1
        pod.ttft_sum_s += at_s - one.arrival_s
    else:
        _observe_tokens(server, pod, bins, at_s, at_s - one.last_s, np.int64(1))
        for index in range(limits.shape[0]):
            late[place.request, index] += at_s - one.last_s > limits[index].threshold_s
    for index in range(limits.shape[0]):
        late[place.request, index] -= limits[index].slow
    pod.generation_tokens += 1
    pod.context += one.prompt + one.generated
    pod.decoding += 1
    place.ends_at = pod.decode_steps + _goal(server, one) - one.generated - 1
    pod.next_end = min(pod.next_end, place.ends_at)


@_inner
def _finish(server: Any, pod: Any, batch: Any, asked: Any, late: Any, limits: Any, at_s: Any) -> None:
    """Takes those that got their last token out of the batch; the others keep their order."""
    decoding = kept = 0
    pod.next_end = NEVER
    for index in range(pod.running):
        place = batch[index]
        done = place.ends_at <= pod.decode_steps
        if done:
            _release(server, pod, place, done, asked, late, limits)
            _succeed(server, pod, asked[place.request], at_s)
            continue
        decoding += index < pod.decoding
        pod.next_end = min(pod.next_end, place.ends_at)
        batch[kept] = place
        kept += 1
    pod.running = kept
    pod.decoding = decoding


# Dynamic batching.


@_inner
def _due_s(server: Any, pod: Any, asked: Any) -> Any:
    return asked[pod.first].last_s + server.max_delay_s


@_inner
def _begin_dynamic(server: Any, pod: Any, batch: Any, asked: Any, batch_s: Any, at_s: Any) -> None:
    """Starts a batch if one is full, or its oldest request waited long enough."""
    if not pod.waiting or (pod.waiting < pod.cap and _due_s(server, pod, asked) > at_s and not pod.draining):
        return
    pod.running = min(pod.cap, pod.waiting)
    for index in range(pod.running):
        batch[index].request = _pop(pod, asked)
        _queued(server, pod, asked[batch[index].request], at_s)
    pod.step_s = batch_s[pod.running]
    # Kernels too small to fill the GPU keep it busy, but neither its tensor pipes nor its memory.
    full_s = min(pod.step_s, pod.running / server.best_per_s)
    pod.step_tensor_s = server.peak_tensor * full_s
    pod.step_dram_s = server.busy_dram * full_s
    pod.step_start_s = at_s
    pod.stepping = 1


# Any server.


@_inner
def _schedule(server: Any, pod: Any, asked: Any, at_s: Any) -> None:
    """Says when the pod has something to do next."""
    if pod.draining and not pod.waiting and not pod.running:
        pod.gone_s = at_s
        pod.next_s = np.inf
        return
    pod.next_s = np.inf
    if pod.stepping:
        pod.next_s = pod.step_start_s + pod.step_s
    elif server.dynamic and pod.waiting:
        pod.next_s = _due_s(server, pod, asked)
    pod.next_s = min(pod.next_s, pod.deadline_s)


@_inner
def _abort(server: Any, pod: Any, batch: Any, asked: Any, late: Any, limits: Any, at_s: Any) -> None:
    """The pod ends with what it has in hand."""
    for index in range(pod.running):
        place = batch[index]
        if not server.dynamic:
            _release(server, pod, place, index < pod.decoding, asked, late, limits)
        _fail(pod, asked[place.request], at_s)
    while pod.waiting:
        _fail(pod, asked[_pop(pod, asked)], at_s)
    pod.running = pod.decoding = pod.prefilled = 0
    pod.stepping = pod.accepting = 0
    pod.gone_s = at_s
    pod.next_s = np.inf


@_inner
def _run(
    server: Any, pod: Any, batch: Any, asked: Any, late: Any, limits: Any, bins: Any, batch_s: Any, to_s: Any
) -> None:
    """Does everything that happens in one pod up to and at `to_s`."""
    while pod.next_s <= to_s:
        at_s = pod.next_s
        aborts = at_s >= pod.deadline_s
        if pod.stepping:
            share = 1.0
            if aborts and pod.step_s > 0.0:
                share = (at_s - pod.step_start_s) / pod.step_s
            pod.busy_s += share * pod.step_s
            pod.tensor_s += share * pod.step_tensor_s
            pod.dram_s += share * pod.step_dram_s
        if aborts:
            _abort(server, pod, batch, asked, late, limits, at_s)
            return
        if server.dynamic:
            if pod.stepping:
                pod.executions += 1
                for index in range(pod.running):
                    _succeed(server, pod, asked[batch[index].request], at_s)
                pod.running = pod.stepping = 0
            _begin_dynamic(server, pod, batch, asked, batch_s, at_s)
        else:
            if pod.stepping:
                pod.stepping = 0
                _end_continuous(server, pod, batch, asked, late, limits, bins, at_s)
            _begin_continuous(server, pod, batch, asked, late, limits, at_s)
        _schedule(server, pod, asked, at_s)


@_inner
def _submit(server: Any, pod: Any, asked: Any, request: Any, at_s: Any) -> None:
    pod.arrived += 1
    one = asked[request]
    if 0 <= server.max_queue <= pod.waiting:
        one.status = REJECTED
        one.last_s = at_s
        pod.rejected += 1
    elif not server.dynamic and _goal(server, one) < 1:
        _fail(pod, one, at_s)
    else:
        one.last_s = at_s
        _push(pod, asked, request)
        if not pod.stepping:
            starts = not server.dynamic or pod.waiting >= pod.cap
            pod.next_s = at_s if starts else min(_due_s(server, pod, asked), pod.deadline_s)


@_inner
def _choose(server: Any, pods: Any, at_s: Any) -> Any:
    """The ready pod with the fewest requests in hand, the least recently chosen of equals; -1: none is ready."""
    best, fewest, oldest = -1, np.inf, NEVER
    for slot in range(pods.shape[0]):
        pod = pods[slot]
        if pod.accepting:
            load = 1.0 + pod.running + pod.waiting
            if at_s < pod.ready_s + server.slow_start_s:
                load /= max(0.01, (at_s - pod.ready_s) / server.slow_start_s)
            if load < fewest or (load == fewest and pod.chosen < oldest):
                best, fewest, oldest = slot, load, pod.chosen
    return best


@_inner
def _route(server: Any, router: Any, pods: Any, asked: Any, request: Any, at_s: Any) -> None:
    slot = _choose(server, pods, at_s)
    if slot < 0:
        _push(router, asked, request)
    else:
        router.choices += 1
        pods[slot].chosen = router.choices
        _submit(server, pods[slot], asked, request, at_s)


@_inner
def _drain(
    server: Any, pods: Any, batches: Any, asked: Any, late: Any, limits: Any, bins: Any, batch_s: Any, to_s: Any
) -> Any:
    """Runs the pods that drain up to and at `to_s`, together, or until one is gone; returns that time."""
    while True:
        soonest, at_s = -1, to_s
        for slot in range(pods.shape[0]):
            if pods[slot].draining and pods[slot].next_s <= at_s:
                soonest, at_s = slot, pods[slot].next_s
        if soonest < 0:
            return to_s
        pod = pods[soonest]
        _run(server, pod, batches[soonest], asked, late, limits[soonest], bins, batch_s, at_s)
        if pod.gone_s < np.inf:
            return pod.gone_s


@_outer
def advance(
    servers: Any,
    routers: Any,
    pods: Any,
    batches: Any,
    asked: Any,
    late: Any,
    limits: Any,
    bins: Any,
    batch_s: Any,
    from_s: Any,
    to_s: Any,
) -> Any:
    """Runs on from `from_s`, where the last call ended, up to and at `to_s`, or until a pod is gone.

    Returns the time reached, seconds; everything up to it has happened, but for the requests that arrive just then.
    No pod's `deadline_s` may lie between.

    Parameters
    ----------
    servers, routers
        One SERVER and one ROUTER.
    pods, batches, limits
        POD of shape (slots,), PLACE (slots, capacity), LIMIT (slots, thresholds).
    asked, late
        REQUEST of shape (n,), int32 (n, thresholds): late tokens, of a request that decodes less its pod's `slow` when
        it began to.
    bins
        int64 (bins, FINE_EDGES + 1): tokens by time and latency.
    batch_s
        float64 (capacity + 1,): seconds of a dynamic batch of each size.
    """
    server, router = servers[0], routers[0]
    while router.waiting and _choose(server, pods, from_s) >= 0:
        _route(server, router, pods, asked, _pop(router, asked), from_s)
    while True:
        arrival_s = asked[router.asked].arrival_s if router.asked < asked.shape[0] else np.inf
        at_s = min(arrival_s, to_s)
        if router.draining:
            at_s = _drain(server, pods, batches, asked, late, limits, bins, batch_s, at_s)
        gone = False
        for slot in range(pods.shape[0]):
            if pods[slot].next_s <= at_s:
                _run(server, pods[slot], batches[slot], asked, late, limits[slot], bins, batch_s, at_s)
            gone |= pods[slot].gone_s < np.inf
        if gone:
            return at_s
        if arrival_s > to_s:
            return to_s
        router.asked += 1
        _route(server, router, pods, asked, router.asked - 1, at_s)
