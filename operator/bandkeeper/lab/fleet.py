"""A fleet of model servers behind a router, in simulated time: pods come, take requests, drain, crash and end.

What happens inside a server is in `kernel`. The router gives a request to the ready pod with the fewest requests in
hand (the least recently chosen of equals); while no pod is ready, requests wait at the router, and their latency counts
from their arrival all the same.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bandkeeper.api.snapshot import PodState
from bandkeeper.lab import kernel
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.server import ContinuousServer, Server

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# vLLM's default bucket edges, seconds, without +Inf.
ITL_EDGES_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
TTFT_EDGES_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
REQUEST_EDGES_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Status(IntEnum):
    """How a request ended. A request has exactly one."""

    UNSERVED = kernel.UNSERVED  # waits, runs, or did not arrive yet
    FINISHED = kernel.FINISHED
    REJECTED = kernel.REJECTED  # its pod's queue was full
    FAILED = kernel.FAILED  # its pod ended or crashed under it, or its prompt does not fit the KV cache


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNow:
    """A pod that is.

    Attributes
    ----------
    name
        Never used twice. A pod that crashed keeps its name and restarts.
    state
        READY takes requests. PENDING boots, or boots again after a crash. UNSCHEDULABLE waits for a GPU.
        TERMINATING serves what it has and takes no more.
    since_s
        When it came into this state.
    ordered_s
        When it was created.
    ready_s
        When it last became ready; None while pending or unschedulable.
    cap
        Batch cap in force; of a pod that is not ready yet, the one that it will boot with.
    slot
        Its row in `Counters`. Rows are used again by later pods: tell pods apart by name.
    """

    name: str
    state: PodState
    since_s: float
    ordered_s: float
    ready_s: float | None
    cap: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histograms:
    """One cumulative histogram per slot.

    Attributes
    ----------
    edges_s
        Upper bounds, ascending, without +Inf.
    counts
        Observations per bucket, *not* accumulated over buckets, int64 (slots, edges + 1); the last one is above all
        edges.
    sum_s
        Sum of the observed values per slot, float64 (slots,).
    """

    edges_s: tuple[float, ...]
    counts: Ints
    sum_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the pods' exporters would show now: a copy, one row per slot; `PodNow.slot` says whose.

    All but the three gauges only grow from the pod's start (a restart after a crash begins at 0 again). Rows without a
    pod are 0. Integers are int64, the others float64, of shape (slots,).

    Attributes
    ----------
    at_s
        The time of the copy.
    running, waiting, kv_usage
        Gauges: requests in the batch, in the queue, share of the KV cache in use (NaN for a dynamic-batching server).
    arrived, finished, rejected, failed
        Requests by what became of them; `arrived` is everything the router sent here.
    preemptions
        Requests thrown out of the KV cache, to be computed again.
    prompt_tokens, generation_tokens
        As vLLM counts them: a prompt with its request's first token, a generated token when it is out.
    decode_steps
        Steps that decoded.
    iterations, iteration_tokens
        All steps and the tokens in them, prefilled and decoded (`iteration_tokens_total`'s count and sum).
    executions
        Batches of a dynamic-batching server.
    busy_s, tensor_s, dram_s
        GPU time with a kernel running, and that time weighted by how full the tensor pipes and the memory bus were,
        up to `at_s` exactly; divide a difference by the time between for DCGM's shares.
    itl, ttft, e2e, queue
        Latency histograms; `itl` counts tokens, the others requests.
    """

    at_s: float
    running: Ints
    waiting: Ints
    kv_usage: Floats
    arrived: Ints
    finished: Ints
    rejected: Ints
    failed: Ints
    preemptions: Ints
    prompt_tokens: Ints
    generation_tokens: Ints
    decode_steps: Ints
    iterations: Ints
    iteration_tokens: Ints
    executions: Ints
    busy_s: Floats
    tensor_s: Floats
    dram_s: Floats
    itl: Histograms
    ttft: Histograms
    e2e: Histograms
    queue: Histograms


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Every pod that ever was, in order of creation; NaN: it did not happen (yet). All float64 of shape (pods,).

    Attributes
    ----------
    ordered_s, ended_s
        From its creation to its end it counts against bounds.
    scheduled_s
        When it got its GPUs: `ordered_s` unless the cluster was full. It holds them from here to `ended_s`.
    ready_s
        When it first took requests.
    """

    names: tuple[str, ...]
    ordered_s: Floats
    scheduled_s: Floats
    ready_s: Floats
    ended_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of each request up to now, in the order of `Requests`; a copy.

    Attributes
    ----------
    status
        `Status`, int8 (n,).
    first_token_s
        When its first token came out, NaN: none (always so for dynamic batching), float64 (n,).
    end_s
        When it finished, was rejected or failed; NaN while unserved, float64 (n,).
    tokens
        Tokens after the first one, each of which has an inter-token latency, int32 (n,).
    late_tokens
        Those of them later than each of `itl_thresholds_s`, int32 (n, thresholds).
    ledger
        The pods.
    """

    status: npt.NDArray[np.int8]
    first_token_s: Floats
    end_s: Floats
    tokens: npt.NDArray[np.int32]
    late_tokens: npt.NDArray[np.int32]
    ledger: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTotals:
    """Inter-token latencies of the whole fleet by the time the token came out.

    Attributes
    ----------
    bin_s
        Bin k holds the tokens of [k x bin_s, (k + 1) x bin_s).
    edges_s
        Upper bounds of the latency, at most 5 % apart; vLLM's edges and the fleet's thresholds are among them.
    counts
        Tokens per bin and bucket, not accumulated, int64 (bins, edges + 1).
    """

    bin_s: float
    edges_s: Floats
    counts: Ints

    def between(self, from_s: float = 0.0, to_s: float = math.inf) -> Ints:
        """Tokens per bucket of the bins that begin at or after `from_s` and before `to_s`, int64 (edges + 1,)."""
        first = math.ceil(from_s / self.bin_s)
        last = None if math.isinf(to_s) else math.ceil(to_s / self.bin_s)
        total: Ints = self.counts[first:last].sum(axis=0)
        return total

    def late_share(self, threshold_s: float, from_s: float = 0.0, to_s: float = math.inf) -> float | None:
        """Share of tokens later than a threshold, exact where it is one of the edges; None without tokens."""
        counts = self.between(from_s, to_s)
        late = counts[int(np.searchsorted(self.edges_s, threshold_s)) + 1 :]
        return float(late.sum() / counts.sum()) if counts.any() else None

    def quantile(self, share: float, from_s: float = 0.0, to_s: float = math.inf) -> float | None:
        """The latency that `share` (0 to 1) of the tokens keep, seconds, within 5 %; None without tokens."""
        counts = self.between(from_s, to_s)
        if not counts.any():
            return None
        below = counts.cumsum()
        rank = share * below[-1]
        bucket = min(int(np.searchsorted(below, max(rank, 1e-9))), len(self.edges_s) - 1)
        low = self.edges_s[bucket - 1] if bucket else 0.0
        into = (rank - (below[bucket] - counts[bucket])) / counts[bucket] if counts[bucket] else 1.0
        return float(low + (self.edges_s[bucket] - low) * min(1.0, into))


@dataclass(slots=True, eq=False, kw_only=True)
class _Pod:
    number: int
    slot: int
    state: PodState
    ordered_s: float
    since_s: float
    random: Random
    scheduled_s: float = math.nan
    ready_s: float | None = None
    first_ready_s: float = math.nan
    ended_s: float = math.nan

    @property
    def name(self) -> str:
        return f"pod-{self.number:04d}"


class Fleet:
    """The pods of one workload and their requests. Order changes with `scale` and `set_cap`, then `advance`.

    The result does not depend on how the time is cut into calls of `advance`.

    Parameters
    ----------
    replicas
        Pods that are ready at time 0.
    seed
        Of cold starts and crashes; pod number k draws the same under every rule.
    itl_thresholds_s
        Inter-token latencies that late tokens are counted against, per request and in total.
    cap
        Batch cap that the pods boot with; None: the server's capacity.
    bin_s
        Length of the time bins of `token_totals`.

    Attributes
    ----------
    now_s
        The time reached.
    replicas, cap
        As last ordered.
    """

    def __init__(
        self,
        server: Server,
        requests: Requests,
        *,
        replicas: int,
        seed: int,
        itl_thresholds_s: Sequence[float] = (),
        cap: int | None = None,
        bin_s: float = 15.0,
    ) -> None:
        self.now_s = 0.0
        self.replicas = 0
        self._server = server
        self._edges_s = _edges_s(server)
        self._seed = seed
        self._arrays = _arrays(server, requests, itl_thresholds_s, bin_s)
        self._thresholds_s = tuple(itl_thresholds_s)
        self._free_slots: list[int] = []
        self._pods: list[_Pod] = []  # every pod that ever was
        self._live: list[_Pod] = []  # those that did not end, in order of creation
        self._boots: list[tuple[float, int, _Pod]] = []  # a heap, by the time of readiness
        self._cap_changes: deque[tuple[float, float, int]] = deque()  # in force at, ordered at, cap
        self.cap = self._within_capacity(server.batch_max if cap is None else cap)
        self.scale(replicas)
        self._boots = [(0.0, number, pod) for _, number, pod in self._boots]
        self._happen()

    def advance(self, to_s: float) -> None:
        """Runs everything that happens up to and at `to_s`. Raises ValueError if that lies in the past."""
        if not self.now_s <= to_s < math.inf:
            raise ValueError(f"cannot advance to {to_s} s, because it is {self.now_s} s already")
        self._fit_bins(to_s)
        while True:
            stop_s = min(to_s, self._next_event_s(), self._next_end_s())
            self.now_s = kernel.advance(*self._arrays, self.now_s, stop_s)
            buried = self._bury()
            if not self._happen() and not buried and self.now_s >= to_s:
                return

    def scale(self, replicas: int) -> None:
        """Orders pods, or takes some away: first those not ready, then ready ones, newest first.

        A pod without requests ends at once; others drain, for the server's `drain_s` at most.
        """
        if replicas < 0:
            raise ValueError(f"replicas must be at least 0, not {replicas}")
        self.replicas = replicas
        staying = [pod for pod in self._live if pod.state is not PodState.TERMINATING]
        for _ in range(replicas - len(staying)):
            self._create()
        staying.sort(key=lambda pod: (pod.state is not PodState.READY, pod.number))
        for pod in staying[replicas:]:
            self._terminate(pod)
        self._place(self.now_s)

    def set_cap(self, cap: int) -> None:
        """Orders a batch cap (kept within 1 and the capacity), in force in ready pods after `cap_delay_s`.

        Pods that become ready later boot with it.
        """
        self.cap = self._within_capacity(cap)
        self._cap_changes.append((self.now_s + self._server.cap_delay_s, self.now_s, self.cap))
        self._happen()

    @property
    def held(self) -> int:
        """Requests that wait at the router because no pod was ready."""
        return int(self._arrays.routers[0]["waiting"])

    @property
    def pods(self) -> tuple[PodNow, ...]:
        """The pods that are, in order of creation."""
        caps = self._arrays.pods["cap"].tolist()
        return tuple(
            PodNow(
                name=pod.name,
                state=pod.state,
                since_s=pod.since_s,
                ordered_s=pod.ordered_s,
                ready_s=pod.ready_s,
                cap=caps[pod.slot] if pod.ready_s is not None else self.cap,
                slot=pod.slot,
            )
            for pod in self._live
        )

    def counters(self) -> Counters:
        """What the pods' exporters show now."""
        pods = self._arrays.pods.copy()
        span_s = np.where(pods["step_s"] > 0.0, pods["step_s"], 1.0)
        under_way = np.where(pods["stepping"] > 0, (self.now_s - pods["step_start_s"]) / span_s, 0.0)
        kv_tokens = int(self._arrays.servers[0]["kv_tokens"])
        return Counters(
            at_s=self.now_s,
            kv_usage=pods["kv"] / kv_tokens if kv_tokens else np.full(len(pods), np.nan),
            busy_s=pods["busy_s"] + under_way * pods["step_s"],
            tensor_s=pods["tensor_s"] + under_way * pods["step_tensor_s"],
            dram_s=pods["dram_s"] + under_way * pods["step_dram_s"],
            itl=_histograms(pods, "itl", self._edges_s),
            ttft=_histograms(pods, "ttft", self._edges_s),
            e2e=_histograms(pods, "e2e", self._edges_s),
            queue=_histograms(pods, "queue", self._edges_s),
            **{name: pods[name] for name in _COUNTED},
        )

    def outcome(self) -> Outcome:
        """What became of each request and pod up to now."""
        asked, late = self._arrays.asked, self._arrays.late.copy()
        tokens = np.maximum(asked["generated"] - 1, 0)
        for pod in self._live:
            self._settle(pod.slot, tokens, late)
        status = asked["status"].astype(np.int8)
        return Outcome(
            status=status,
            first_token_s=asked["first_token_s"].copy(),
            end_s=np.where(status == Status.UNSERVED, np.nan, asked["last_s"]),
            tokens=tokens,
            late_tokens=late,
            ledger=Ledger(
                names=tuple(pod.name for pod in self._pods),
                ordered_s=np.array([pod.ordered_s for pod in self._pods]),
                scheduled_s=np.array([pod.scheduled_s for pod in self._pods]),
                ready_s=np.array([pod.first_ready_s for pod in self._pods]),
                ended_s=np.array([pod.ended_s for pod in self._pods]),
            ),
        )

    def token_totals(self) -> TokenTotals:
        """Inter-token latencies by the time of the token, up to now."""
        server = self._arrays.servers[0]
        edges_s = server["fine_edges_s"]
        edges_s = edges_s[np.isfinite(edges_s)]
        bins = self._arrays.bins[: int(self.now_s / server["bin_s"]) + 1, : len(edges_s) + 1]
        return TokenTotals(bin_s=float(server["bin_s"]), edges_s=edges_s, counts=bins.copy())

    # The pods' lives.

    def _create(self) -> None:
        number = len(self._pods)
        pod = _Pod(
            number=number,
            slot=self._take_slot(),
            state=PodState.UNSCHEDULABLE,
            ordered_s=self.now_s,
            since_s=self.now_s,
            random=Random(f"{self._seed}/{number}"),
        )
        self._pods.append(pod)
        self._live.append(pod)

    def _place(self, at_s: float) -> None:
        """Gives free GPUs to the pods that wait for some, oldest first."""
        server = self._server
        free = math.inf if server.nodes_gpus is None else server.nodes_gpus
        free -= server.gpus * sum(pod.state is not PodState.UNSCHEDULABLE for pod in self._live)
        for pod in self._live:
            if pod.state is PodState.UNSCHEDULABLE and free >= server.gpus:
                free -= server.gpus
                pod.scheduled_s = at_s
                self._boot(pod, at_s)

    def _boot(self, pod: _Pod, at_s: float) -> None:
        cold = self._server.cold_start
        pod.state, pod.since_s, pod.ready_s = PodState.PENDING, at_s, None
        takes_s = cold.median_s * math.exp(pod.random.gauss(0.0, cold.spread))
        heapq.heappush(self._boots, (at_s + takes_s, pod.number, pod))

    def _start(self, pod: _Pod) -> None:
        pod.state = PodState.READY
        pod.since_s = pod.ready_s = self.now_s
        if math.isnan(pod.first_ready_s):
            pod.first_ready_s = self.now_s
        row = self._arrays.pods[pod.slot]
        row["accepting"] = 1
        row["ready_s"] = self.now_s
        row["cap"] = self.cap
        crashes_per_s = self._server.crashes_per_hour / 3600.0
        if crashes_per_s:
            row["deadline_s"] = row["next_s"] = self.now_s + pod.random.expovariate(crashes_per_s)

    def _terminate(self, pod: _Pod) -> None:
        row = self._arrays.pods[pod.slot]
        if pod.state is not PodState.READY or not row["running"] + row["waiting"]:
            self._remove(pod, self.now_s)
            return
        pod.state, pod.since_s = PodState.TERMINATING, self.now_s
        row["accepting"], row["draining"] = 0, 1
        self._arrays.routers["draining"] += 1
        row["deadline_s"] = min(row["deadline_s"], self.now_s + self._server.drain_s)
        # What waits for its batch to fill goes now.
        row["next_s"] = min(row["next_s"], row["deadline_s"]) if row["stepping"] else self.now_s

    def _bury(self) -> bool:
        """Ends the pods that are drained, and boots again those that crashed; whether there were any."""
        gone_s = self._arrays.pods["gone_s"]
        gone = sorted((float(gone_s[pod.slot]), pod.number, pod) for pod in self._live if gone_s[pod.slot] < math.inf)
        for at_s, _, pod in gone:
            if pod.state is PodState.TERMINATING:
                self._arrays.routers["draining"] -= 1
                self._remove(pod, at_s)
                self._place(at_s)
            else:
                self._clear(pod.slot)
                self._boot(pod, at_s)
        return bool(gone)

    def _remove(self, pod: _Pod, at_s: float) -> None:
        pod.ended_s = at_s
        self._live.remove(pod)
        self._clear(pod.slot)
        heapq.heappush(self._free_slots, pod.slot)

    # What happens between the pods' steps.

    def _next_event_s(self) -> float:
        while self._boots and not math.isnan(self._boots[0][2].ended_s):
            heapq.heappop(self._boots)
        boot_s = self._boots[0][0] if self._boots else math.inf
        cap_s = self._cap_changes[0][0] if self._cap_changes else math.inf
        return max(self.now_s, min(boot_s, cap_s))

    def _next_end_s(self) -> float:
        """When the next pod crashes or loses its grace, if it does not end before."""
        return float(self._arrays.pods["deadline_s"].min(initial=math.inf))

    def _happen(self) -> bool:
        """Brings about what is due by now: pods become ready, caps come into force. Whether there was anything."""
        happened = False
        while self._next_event_s() <= self.now_s:
            happened = True
            if self._cap_changes and self._cap_changes[0][0] <= self.now_s:
                _, ordered_s, cap = self._cap_changes.popleft()
                for pod in self._live:
                    if pod.ready_s is not None and pod.ready_s <= ordered_s:
                        self._arrays.pods[pod.slot]["cap"] = cap
            else:
                self._start(heapq.heappop(self._boots)[2])
        return happened

    def _within_capacity(self, cap: int) -> int:
        return max(1, min(cap, self._server.batch_max))

    # The kernel's arrays.

    def _take_slot(self) -> int:
        if not self._free_slots:
            arrays, slots = self._arrays, len(self._arrays.pods)
            more = max(4, slots)
            self._arrays = arrays._replace(
                pods=_grown(arrays.pods, more),
                batches=_grown(arrays.batches, more),
                limits=_grown(arrays.limits, more),
            )
            for slot in range(slots, slots + more):
                self._clear(slot)
                heapq.heappush(self._free_slots, slot)
        return heapq.heappop(self._free_slots)

    def _clear(self, slot: int) -> None:
        row = self._arrays.pods[slot : slot + 1]
        row[:] = np.zeros((), kernel.POD)
        row["next_end"] = kernel.NEVER
        for name in ("deadline_s", "gone_s", "next_s"):
            row[name] = math.inf
        self._arrays.limits[slot]["threshold_s"] = self._thresholds_s
        self._arrays.limits[slot]["slow"] = 0

    def _fit_bins(self, to_s: float) -> None:
        bins = self._arrays.bins
        more = int(to_s / self._arrays.servers[0]["bin_s"]) + 1 - len(bins)
        if more > 0:
            self._arrays = self._arrays._replace(bins=_grown(bins, max(more, len(bins))))

    def _settle(self, slot: int, tokens: npt.NDArray[np.int32], late: npt.NDArray[np.int32]) -> None:
        """Adds what the requests that decode now got since they began."""
        arrays = self._arrays
        pod = arrays.pods[slot]
        for place in arrays.batches[slot, : pod["decoding"]]:
            one = arrays.asked[place["request"]]
            goal = min(one["output"], arrays.servers[0]["kv_tokens"] - one["prompt"] - 1)
            tokens[place["request"]] = goal - (place["ends_at"] - pod["decode_steps"]) - 1
            late[place["request"]] += arrays.limits[slot]["slow"].astype(np.int32)


class _Arrays(NamedTuple):
    """What `kernel.advance` works on, in the order of its parameters."""

    servers: npt.NDArray[Any]
    routers: npt.NDArray[Any]
    pods: npt.NDArray[Any]
    batches: npt.NDArray[Any]
    asked: npt.NDArray[Any]
    late: npt.NDArray[np.int32]
    limits: npt.NDArray[Any]
    bins: npt.NDArray[np.int64]
    batch_s: Floats


_EDGES_S = {"itl": ITL_EDGES_S, "ttft": TTFT_EDGES_S, "e2e": REQUEST_EDGES_S, "queue": REQUEST_EDGES_S}
_SUMMARY_RATIO = 1.15
_FINE_EDGES_S = np.union1d(0.0005 * 1.05 ** np.arange(252), ITL_EDGES_S)  # up to 100 s
_COUNTED = (
    *("running", "waiting", "arrived", "finished", "rejected", "failed", "preemptions", "prompt_tokens"),
    *("generation_tokens", "decode_steps", "iterations", "iteration_tokens", "executions"),
)


def _arrays(server: Server, requests: Requests, thresholds_s: Sequence[float], bin_s: float) -> _Arrays:
    asked = np.zeros(len(requests), kernel.REQUEST)
    asked["arrival_s"] = requests.arrival_s
    asked["prompt"] = requests.prompt_tokens
    asked["output"] = requests.output_tokens
    asked["first_token_s"] = np.nan
    return _Arrays(
        servers=_server(server, thresholds_s, bin_s),
        routers=np.zeros(1, kernel.ROUTER),
        pods=np.zeros(0, kernel.POD),
        batches=np.zeros((0, server.batch_max), kernel.PLACE),
        asked=asked,
        late=np.zeros((len(requests), len(thresholds_s)), np.int32),
        limits=np.zeros((0, len(thresholds_s)), kernel.LIMIT),
        bins=np.zeros((int(requests.duration_s / bin_s) + 2, kernel.FINE_EDGES + 1), np.int64),
        batch_s=np.zeros(1) if isinstance(server, ContinuousServer) else np.array(server.times_s),
    )


def _server(server: Server, thresholds_s: Sequence[float], bin_s: float) -> npt.NDArray[Any]:
    row = np.zeros(1, kernel.SERVER)
    row["bin_s"] = bin_s
    row["slow_start_s"] = server.slow_start_s
    row["max_queue"] = -1 if server.max_queue is None else server.max_queue
    for name, edges_s in _edges_s(server).items():
        row[f"{name}_edges_s"] = math.inf
        row[f"{name}_edges_s"][0, : len(edges_s)] = edges_s
    fine_edges_s = np.union1d(_FINE_EDGES_S, np.array(thresholds_s, dtype=np.float64))
    if len(fine_edges_s) > kernel.FINE_EDGES:
        raise ValueError(f"{len(thresholds_s)} inter-token thresholds are too many, give at most 40")
    row["fine_edges_s"] = math.inf
    row["fine_edges_s"][0, : len(fine_edges_s)] = fine_edges_s
    if isinstance(server, ContinuousServer):
        row["chunk"] = server.prefill_chunk_tokens
        row["kv_tokens"] = server.kv_tokens
        for name in ("alpha_ms", "beta_ms", "gamma_ms", "delta_ms_per_token", "kappa_ms_per_ktoken"):
            row[name] = getattr(server, name)
        for name in ("prefill_tensor", "prefill_dram", "decode_dram"):
            row[name] = getattr(server, name)
    else:
        row["dynamic"] = 1
        row["max_delay_s"] = 0.001 * server.max_delay_ms
        # What fills the GPU, whether the capacity lets it come to that or not.
        row["best_per_s"] = max(1000.0 * size / (server.time_scale * ms) for size, ms in server.batch_ms.items())
        row["peak_tensor"] = server.peak_tensor
        row["busy_dram"] = server.busy_dram
    return row


def _edges_s(server: Server) -> Mapping[str, tuple[float, ...]]:
    """Bucket edges. Triton computes its percentiles itself: there they are fine enough to read these from."""
    if isinstance(server, ContinuousServer):
        return _EDGES_S
    shortest_s = min(server.times_s[1:])
    edges_s = tuple(shortest_s / 2 * _SUMMARY_RATIO**step for step in range(kernel.EDGES))
    return {**_EDGES_S, "e2e": edges_s, "queue": edges_s}


def _histograms(pods: npt.NDArray[Any], name: str, all_edges_s: Mapping[str, tuple[float, ...]]) -> Histograms:
    edges_s = all_edges_s[name]
    return Histograms(edges_s=edges_s, counts=pods[name][:, : len(edges_s) + 1], sum_s=pods[f"{name}_sum_s"])


def _grown(values: npt.NDArray[Any], by: int) -> npt.NDArray[Any]:
    return np.concatenate([values, np.zeros((by, *values.shape[1:]), values.dtype)])
