"""Recorded pasts for the replay's tests: vLLM-like fleets whose latencies follow from the load per replica."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Gap, GapReason, Pod, PodState, Reading, Snapshot, Target
from bandkeeper.lab.history import History, Moment

START_S = 1_790_000_000.0
EDGES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, math.inf)
CAPACITY = 64
TOKEN_SHARE = 0.006  # a token's share of the time in process
LIGHT_S, STEEPNESS = 2.0, 1.5  # a request alone takes 2 s, in a full batch 5 s


def service_s(load: float) -> float:
    """Time in process at `load` requests per second and replica: it grows with the batch, and the batch with it."""
    return LIGHT_S / (1 - STEEPNESS * LIGHT_S * load / CAPACITY)


def a_histogram(median_s: float, count: float, *, window_s: float = 60.0) -> Distribution:
    """Log-normal around the median, spread 0.25."""
    counts = [
        count * 0.5 * (1 + math.erf(math.log(edge / median_s) / (0.25 * math.sqrt(2)))) if edge < math.inf else count
        for edge in EDGES
    ]
    return Distribution(window_s=window_s, edges=EDGES, counts=tuple(counts), total_s=count * median_s)


def a_moment(at_s: float, rate_per_s: float, replicas: int, *, pending: int = 0, total: int | None = None) -> Moment:
    """A fleet in balance: `replicas` ready pods share `rate_per_s`."""
    names = [f"chat-{number}" for number in range(replicas)]
    each = rate_per_s / replicas
    running = each * service_s(each)
    levels = {Signal.REQUESTS_RUNNING: running, Signal.REQUESTS_WAITING: 0.0, Signal.REQUESTS_FINISHED: each}
    pods = [
        Pod(name=name, uid=name, age_s=5000 + at_s - START_S, state_age_s=4910 + at_s - START_S, capacity=CAPACITY)
        for name in names
    ]
    pods += [Pod(name=f"new-{number}", state=PodState.PENDING, age_s=10, state_age_s=10) for number in range(pending)]
    return Moment(
        at_s=at_s,
        snapshot=Snapshot(
            target=Target(uid="past", replicas=replicas + pending if total is None else total),
            pods=tuple(pods),
            by_pod={signal: {name: Reading(value, 5.0) for name in names} for signal, value in levels.items()},
            distributions={
                (Signal.TIME_TO_FIRST_TOKEN, 60): a_histogram(0.05 * service_s(each), 60 * rate_per_s),
                (Signal.INTER_TOKEN_LATENCY, 60): a_histogram(TOKEN_SHARE * service_s(each), 60 * 50 * rate_per_s),
            },
        ),
    )


def dark(moment: Moment) -> Moment:
    """The same moment with nothing recorded."""
    gaps = tuple(
        Gap(signal=signal, reason=GapReason.ABSENT, detail="nothing was recorded")
        for signal in (Signal.REQUESTS_RUNNING, Signal.TIME_TO_FIRST_TOKEN, Signal.INTER_TOKEN_LATENCY)
    )
    snapshot = Snapshot(target=moment.snapshot.target, pods=moment.snapshot.pods, gaps=gaps)
    return Moment(at_s=moment.at_s, snapshot=snapshot, dark=True)


def a_history(
    rate_per_s: Callable[[float], float] | float = 20.0,
    replicas: Callable[[float], int] | int = 4,
    *,
    minutes: float = 60.0,
    step_s: float = 15.0,
    darkness: Sequence[int] = (),
) -> History:
    """`rate_per_s` and `replicas` by seconds since the start; `darkness` are numbers of moments without data."""
    moments = []
    for number in range(int(minutes * 60 / step_s) + 1):
        after_s = number * step_s
        rate = rate_per_s if isinstance(rate_per_s, float | int) else rate_per_s(after_s)
        count = replicas if isinstance(replicas, int) else replicas(after_s)
        moment = a_moment(START_S + after_s, rate, count)
        moments.append(dark(moment) if number in darkness else moment)
    return History(namespace="serving", workload="chat", runtime="VLLM", step_s=step_s, moments=tuple(moments))
