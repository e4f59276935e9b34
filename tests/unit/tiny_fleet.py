"""A tiny fleet for the decision's scenarios: requests share replicas, batches slow each other, pods take a cold start.

Time goes in steps of a second. All replicas are alike and evenly filled, so the fleet is one number of requests;
arrivals and ends are drawn from Poisson where a seed is given, and are their means where not.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Gap, GapReason, Pod, PodState, Reading, Snapshot, Target
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.state import State

TTFT_EDGES = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 40.0, math.inf)
ITL_EDGES = (0.01, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.075, 0.1, 0.15, math.inf)


@dataclass
class Server:
    """What one replica does with a batch of b: a request takes tokens x (alpha + beta b) seconds."""

    alpha_s: float = 0.02058
    beta_s: float = 0.00041
    tokens: float = 150.0
    capacity: int = 64
    queue_bound: int | None = None
    prefill_s: float = 0.08

    def step_s(self, batch: float) -> float:
        return self.alpha_s + self.beta_s * batch

    def rate(self, batch: float) -> float:
        """Requests per second of one replica."""
        return batch / (self.tokens * self.step_s(batch)) if batch else 0.0

    @property
    def best_rate(self) -> float:
        return self.rate(self.capacity)


@dataclass
class _Second:
    finished: float
    rejected: float
    ttft: float
    itl: float
    tokens: float


@dataclass
class Replica:
    name: str
    created_s: float
    ready_s: float
    cap: int


@dataclass
class Fleet:
    """Advance it second by second, take snapshots, and let decisions act on it."""

    server: Server = field(default_factory=Server)
    replicas: int = 1
    cold_start_s: float = 90.0
    seed: int | None = None
    cap_delay_s: float = 5.0
    room: int = 10_000
    now_s: float = 0.0
    in_flight: float = 0.0
    blind: bool = False
    window_s: int = 60
    manager: str = "bandkeeper"

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._count = 0
        self.wanted = self.replicas
        self.pods: list[Replica] = []
        for _ in range(self.replicas):
            self._add(self.now_s - self.cold_start_s - 3600.0)
        self.seconds: deque[_Second] = deque(maxlen=self.window_s)
        self._cap: int | None = None
        self._cap_from_s = math.inf

    @property
    def ready(self) -> list[Replica]:
        return [pod for pod in self.pods if pod.ready_s <= self.now_s]

    def scale(self, replicas: int, manager: str = "bandkeeper") -> None:
        """As the scale subresource would: newest pods go first."""
        self.wanted, self.manager = replicas, manager
        while len(self.pods) > replicas:
            self.pods.pop()
        while len(self.pods) < replicas:
            self._add(self.now_s)

    def set_cap(self, cap: int) -> None:
        if cap != self._cap:
            self._cap, self._cap_from_s = cap, self.now_s + self.cap_delay_s

    def _add(self, at_s: float) -> None:
        fits = len(self.pods) < self.room
        ready_s = at_s + self.cold_start_s if fits else math.inf
        self.pods.append(Replica(f"chat-{self._count}", at_s, ready_s, self.server.capacity))
        self._count += 1

    def _drawn(self, mean: float) -> float:
        if self.seed is None:
            return mean
        if mean > 50:
            return max(0.0, round(self._random.gauss(mean, math.sqrt(mean))))
        count, product, floor = 0, self._random.random(), math.exp(-mean)
        while product > floor:
            product *= self._random.random()
            count += 1
        return float(count)

    def second(self, arrivals_per_s: float) -> None:
        """Play one second."""
        if self.now_s >= self._cap_from_s and self._cap is not None:
            for pod in self.pods:
                pod.cap = self._cap
        ready = self.ready
        count = max(1, len(ready))
        cap = min((pod.cap for pod in ready), default=0)
        running = min(self.in_flight, count * cap) if ready else 0.0
        rate = count * self.server.rate(running / count) if ready else 0.0
        finished = min(self._drawn(rate), self.in_flight)
        arrivals = self._drawn(arrivals_per_s)
        self.in_flight += arrivals - finished
        rejected = 0.0
        if self.server.queue_bound is not None:
            most = count * (cap + self.server.queue_bound)
            rejected = max(0.0, self.in_flight - most)
            self.in_flight -= rejected
        waiting = max(0.0, self.in_flight - count * cap)
        ttft = self.server.prefill_s + (waiting / rate if rate else 40.0 if waiting else 0.0)
        itl = self.server.step_s(running / count)
        self.seconds.append(_Second(finished, rejected, ttft, itl, finished * self.server.tokens))
        self.now_s += 1.0

    def running(self) -> float:
        ready = self.ready
        cap = min((pod.cap for pod in ready), default=0)
        return min(self.in_flight, len(ready) * cap)

    def snapshot(self) -> Snapshot:
        """What a perfect reader sees now."""
        ready = self.ready
        running = self.running()
        per_pod = {
            Signal.REQUESTS_RUNNING: running,
            Signal.REQUESTS_WAITING: self.in_flight - running,
            Signal.REQUESTS_FINISHED: self._rate("finished"),
            Signal.REQUESTS_REJECTED: self._rate("rejected"),
            Signal.GENERATION_TOKENS: self._rate("tokens"),
        }
        if self.server.queue_bound is None:
            del per_pod[Signal.REQUESTS_REJECTED]
        told = {} if self.blind else per_pod
        return Snapshot(
            target=Target(uid="fleet", replicas=self.wanted, manager=self.manager),
            pods=tuple(self._pod(pod) for pod in self.pods),
            pods_age_s=1.0,
            by_pod={
                signal: {pod.name: Reading(value / len(ready), 1.0) for pod in ready}
                for signal, value in told.items()
                if ready
            },
            distributions={} if self.blind else self._distributions(),
            gaps=tuple(
                Gap(signal=signal, reason=GapReason.UNREACHABLE, detail="Prometheus does not answer")
                for signal in (per_pod if self.blind else ())
            ),
        )

    def _rate(self, name: str) -> float:
        total: float = sum(getattr(second, name) for second in self.seconds)
        return total / max(1, len(self.seconds))

    def _pod(self, pod: Replica) -> Pod:
        if pod.ready_s <= self.now_s:
            state, since_s = PodState.READY, pod.ready_s
        else:
            state = PodState.UNSCHEDULABLE if math.isinf(pod.ready_s) else PodState.PENDING
            since_s = pod.created_s
        return Pod(
            name=pod.name,
            state=state,
            age_s=self.now_s - pod.created_s,
            state_age_s=self.now_s - since_s,
            cap=pod.cap,
            capacity=self.server.capacity,
            queue_bound=self.server.queue_bound,
        )

    def _distributions(self) -> dict[tuple[Signal, int], Distribution]:
        return {
            (Signal.TIME_TO_FIRST_TOKEN, self.window_s): self._histogram("ttft", "finished", TTFT_EDGES),
            (Signal.INTER_TOKEN_LATENCY, self.window_s): self._histogram("itl", "tokens", ITL_EDGES),
        }

    def _histogram(self, name: str, weight: str, edges: tuple[float, ...]) -> Distribution:
        counts, total_s = [0.0] * len(edges), 0.0
        for second in self.seconds:
            value, number = getattr(second, name), getattr(second, weight)
            total_s += value * number
            first = next(index for index, edge in enumerate(edges) if value <= edge)
            for index in range(first, len(edges)):
                counts[index] += number
        return Distribution(
            window_s=float(self.window_s), edges=edges, counts=tuple(counts), total_s=total_s, age_s=1.0
        )


@dataclass
class Tick:
    """One decision and what the fleet was like."""

    at_s: float
    offered_per_s: float
    replicas: int
    ready: int
    in_flight: float
    cap: int
    decision: Decision


def play(
    fleet: Fleet,
    policy: Policy,
    arrivals_per_s: Callable[[float], float],
    *,
    seconds: float,
    period_s: int = 15,
    state: State | None = None,
    each: Callable[[Fleet, Tick], None] | None = None,
) -> list[Tick]:
    """Let the decision drive the fleet, as the runtime would; `each` may meddle after every tick."""
    state = state or State.initial(fleet.now_s)
    ticks: list[Tick] = []
    end_s = fleet.now_s + seconds
    while fleet.now_s < end_s:
        for _ in range(period_s):
            fleet.second(arrivals_per_s(fleet.now_s))
        decision, state = decide(policy, fleet.snapshot(), state, fleet.now_s)
        if decision.replicas is not None and decision.replicas != fleet.wanted:
            fleet.scale(decision.replicas)
            state = written(state, replicas=decision.replicas, now_s=fleet.now_s)
        if decision.cap is not None and {decision.cap} != {pod.cap for pod in fleet.pods}:
            fleet.set_cap(decision.cap)
            state = written(state, cap=decision.cap, now_s=fleet.now_s)
        cap = min((pod.cap for pod in fleet.pods), default=0)
        tick = Tick(
            fleet.now_s, arrivals_per_s(fleet.now_s), fleet.wanted, len(fleet.ready), fleet.in_flight, cap, decision
        )
        ticks.append(tick)
        if each is not None:
            each(fleet, tick)
    return ticks
