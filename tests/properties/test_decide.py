"""The safety rules as properties: whatever is seen, in whatever order, whatever the policy.

100 examples each in `make test`, 10,000 each in `make fuzz` (HYPOTHESIS_PROFILE=fuzz).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bandkeeper.api.reasons import Reason, SLOState
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import (
    Distribution,
    Earlier,
    Gap,
    GapReason,
    Pod,
    PodState,
    Reading,
    Recalled,
    Rollout,
    Snapshot,
    Target,
)
from bandkeeper.api.v1alpha1 import FallbackBehavior, Objective, SelectPolicy
from bandkeeper.decide.behavior import highest, lowest
from bandkeeper.decide.decision import FITTED_MODEL, MESSAGE_LIMIT, Decision
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.policy import (
    Band,
    BatchControl,
    Batching,
    CostClass,
    Deadline,
    Fallback,
    LatencySLO,
    Policy,
    RateLimit,
    ScalingRules,
    ThroughputSLO,
)
from bandkeeper.decide.prediction import TRACES
from bandkeeper.decide.state import EVENTS_LIMIT, RATES_LIMIT, REGRETS_LIMIT, SAMPLES_LIMIT, UNDOS_LIMIT, State
from bandkeeper.model.forecast import Record
from tests.unit.builders import BANDS, a_policy, a_snapshot

T = TypeVar("T")
LATENCIES = (Signal.TIME_TO_FIRST_TOKEN, Signal.INTER_TOKEN_LATENCY, Signal.END_TO_END_LATENCY, Signal.QUEUE_TIME)
SIZES = (4, 8, 16, 32, 64)
NOT_READY = [state for state in PodState if state is not PodState.READY]

limits = st.builds(
    RateLimit,
    value=st.integers(1, 100),
    percent=st.booleans(),
    period_s=st.sampled_from([1.0, 15.0, 60.0, 600.0]),
)
scaling_rules = st.builds(
    ScalingRules,
    stabilization_s=st.sampled_from([0.0, 0.0, 30.0, 120.0]),
    select=st.sampled_from([SelectPolicy.MAX, SelectPolicy.MAX, SelectPolicy.MIN, SelectPolicy.DISABLED]),
    limits=st.lists(limits, min_size=1, max_size=3).map(tuple),
    tolerance=st.sampled_from([0.0, 0.1]),
)
latency_slos = st.builds(
    LatencySLO,
    signal=st.sampled_from(LATENCIES),
    percentile=st.sampled_from([50, 95, 99]),
    threshold_s=st.sampled_from([0.05, 0.07, 0.5]),
    window_s=st.sampled_from([15.0, 60.0]),
)
throughput_slos = st.builds(
    ThroughputSLO, signal=st.just(Signal.GENERATION_TOKENS), min_per_s=st.just(100.0), window_s=st.just(60.0)
)
batches = st.builds(
    BatchControl,
    candidates=st.sets(st.sampled_from(SIZES), min_size=2).map(lambda sizes: tuple(sorted(sizes))),
    cost_class=st.sampled_from([*CostClass, CostClass.ROLLOUT, CostClass.ROLLOUT]),
    expected_delay_s=st.sampled_from([0.0, 5.0, 90.0]),
)
deadlines = st.builds(
    Deadline,
    backlog=st.sampled_from([Signal.BACKLOG, Signal.REQUESTS_WAITING]),
    rate=st.just(Signal.REQUESTS_FINISHED),
    within_s=st.sampled_from([60.0, 3600.0]),
) | st.builds(
    Deadline,
    backlog=st.just(Signal.BACKLOG),
    rate=st.just(Signal.GENERATION_TOKENS),
    by_s=st.sampled_from([-60.0, 600.0, 1e5]),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    objective = draw(st.sampled_from(Objective))
    least, most = draw(st.integers(1, 4)), draw(st.integers(4, 24))
    behavior = draw(st.sampled_from([FallbackBehavior.HOLD, FallbackBehavior.REPLICAS_IF_HIGHER]))
    return Policy(
        objective=objective,
        batching=draw(st.sampled_from([*Batching, *[Batching.CONTINUOUS] * 5])),
        slos=tuple(draw(st.lists(latency_slos | throughput_slos, max_size=2, unique_by=lambda slo: slo.signal))),
        band=draw(st.sampled_from([BANDS[objective], Band(0.3, 0.9)])),
        min_replicas=least,
        max_replicas=most,
        batch=draw(st.none() | batches | batches | batches),
        scale_up=draw(scaling_rules),
        scale_down=draw(scaling_rules),
        fallback=Fallback(after_s=60.0, behavior=behavior, replicas=draw(st.integers(least, most))),
        default_capacity=64,
        restart_hold_s=draw(st.sampled_from([0.0, 0.0, 0.0, 300.0])),
        rate_window_s=draw(st.sampled_from([15.0, 15.0, 60.0])),
        drain_s=draw(mostly(None, 5.0, 600.0, weight=4)),
        deadline=draw(st.none() | st.none() | deadlines),
    )


class Look(StrEnum):
    """How a promise's histogram looks."""

    GOOD = "good"
    BAD = "bad"
    IDLE = "idle"
    PLAIN_PERCENTILE = "plain percentile"
    IMPOSSIBLE = "impossible"
    MISSING = "missing"


def a_look(look: Look, slo: LatencySLO) -> Distribution | None:
    if look is Look.MISSING:
        return None
    if look is Look.PLAIN_PERCENTILE:
        return Distribution(window_s=slo.window_s, quantiles={slo.percentile: 0.06})
    edges = (slo.threshold_s / 2, slo.threshold_s, 1.5 * slo.threshold_s, math.inf)
    counts = {
        Look.GOOD: (900.0, 1000.0, 1000.0, 1000.0),
        Look.BAD: (0.0, 100.0, 1000.0, 1000.0),
        Look.IDLE: (0.0, 0.0, 0.0, 0.0),
        Look.IMPOSSIBLE: (900.0, 100.0, 0.0, math.nan),
    }[look]
    mean_s = slo.threshold_s * (0.4 if look is Look.GOOD else 1.2)
    return Distribution(window_s=slo.window_s, edges=edges, counts=counts, total_s=mean_s * 1000, age_s=1.0)


@dataclass(frozen=True)
class Scene:
    """What is seen for some ticks. None: as it follows from the count and the cap that were decided on.

    `running` and `waiting` are per ready pod; the other rates are of the whole workload. `token_s` is the mean of the
    time between tokens, where no promise has a histogram of its own. Rates of the first `tokenless` pods are not told.
    """

    ready: int | None
    others: tuple[PodState, ...]
    running: float
    waiting: float | None
    rates: dict[Signal, float]
    left: float | None
    token_s: float | None
    tokenless: int
    silent: int
    look: Look
    rollout: Rollout | None
    pods_age_s: float
    cap: int | None
    young_s: float
    meddled: int | None
    elapsed_s: float
    writes: bool
    ticks: int

    def snapshot(self, policy: Policy, replicas: int, manager: str, cap: int | None) -> Snapshot:
        count = replicas if self.ready is None else self.ready
        ready = tuple(
            Pod(
                name=f"p{index}",
                age_s=90 + self.young_s,
                state_age_s=self.young_s,
                cap=self.cap if self.cap is not None else cap,
                capacity=64,
            )
            for index in range(count)
        )
        others = tuple(Pod(name=f"q{index}", state=state, age_s=30.0) for index, state in enumerate(self.others))
        told = [pod.name for pod in ready][: max(0, count - self.silent)]
        mute = told[: self.tokenless]
        per_pod = {Signal.REQUESTS_RUNNING: self.running, Signal.REQUESTS_WAITING: self.waiting}
        per_pod |= {signal: rate / max(1, count) for signal, rate in self.rates.items()}
        looks = {
            (slo.signal, round(slo.window_s)): seen
            for slo in policy.slos
            if isinstance(slo, LatencySLO) and (seen := a_look(self.look, slo)) is not None
        }
        tokens = (Signal.INTER_TOKEN_LATENCY, 60)
        if self.token_s is not None and tokens not in looks:
            looks[tokens] = Distribution(
                window_s=60, edges=(math.inf,), counts=(1e3,), total_s=1e3 * self.token_s, age_s=1.0
            )
        gap = Gap(signal=Signal.REQUESTS_WAITING, reason=GapReason.STALE, detail="old")
        return Snapshot(
            target=Target(uid="uid", replicas=replicas, manager=manager, rollout=self.rollout),
            pods=(*ready, *others),
            pods_age_s=self.pods_age_s,
            by_pod={
                signal: {name: Reading(value, 1.0) for name in told if name not in mute or signal not in self.rates}
                for signal, value in per_pod.items()
                if value is not None
            },
            distributions=looks,
            gaps=(gap,) if self.waiting is None else (),
            totals={} if self.left is None else {Signal.BACKLOG: Reading(self.left, 1.0)},
            wall_s=0.0,
        )

    def pods_told(self) -> bool:
        """Every ready pod told what it runs and what waits, in numbers."""
        return self.ready != 0 and not self.silent and _are_counts(self.running, self.waiting)

    def complete(self, policy: Policy) -> bool:
        """So did what a backlog has left, and, unless that is nothing, how fast it is done."""
        if policy.deadline is None or policy.deadline.backlog is not Signal.BACKLOG:
            return self.pods_told()
        rate = 0.0 if self.left == 0 else self.rates.get(policy.deadline.rate)
        return self.pods_told() and _are_counts(self.left, rate)


def _are_counts(*values: float | None) -> bool:
    return all(value is not None and 0 <= value < math.inf for value in values)


def mostly(usual: T, *rare: T, weight: int = 9) -> st.SearchStrategy[T]:
    """Usually the first one; faults must be rare, or nothing but faults would ever be seen."""
    return st.sampled_from([usual] * weight + list(rare))


calm = st.floats(0, 12).map(lambda running: (running, 0.0))
steady = st.floats(12, 55).map(lambda running: (running, 0.0))
queued = st.tuples(st.floats(20, 64), st.floats(0, 300))
weird = st.tuples(
    st.sampled_from([math.nan, math.inf, -1.0, 1e9, 0.0]), st.sampled_from([None, math.nan, -1.0, 1e9, 0.0])
)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    running, waiting = draw(st.one_of(calm, calm, steady, queued, queued, weird))
    rates = {
        Signal.REQUESTS_FINISHED: draw(st.sampled_from([0.0, 5.0, 40.0, 400.0])),
        Signal.REQUESTS_REJECTED: draw(mostly(0.0, 3.0)),
        Signal.PREEMPTIONS: draw(mostly(0.0, 2.0)),
        Signal.PROMPT_TOKENS: draw(mostly(4000.0, 0.0, 40_000.0, weight=2)),
        Signal.GENERATION_TOKENS: draw(mostly(500.0, 5000.0, 0.0, weight=3)),
    }
    kept = draw(mostly(rates.keys(), [], [Signal.REQUESTS_FINISHED], weight=8))
    return Scene(
        ready=draw(mostly(None, 0, 1, 3, 9)),
        others=tuple(draw(mostly([], *[[state] for state in NOT_READY]))),
        running=running,
        waiting=waiting,
        rates={signal: rates[signal] for signal in kept},
        left=draw(mostly(1e6, 1e4, 0.0, None, math.nan, weight=4)),
        token_s=draw(st.sampled_from([None, 0.02, 0.05, 0.2])),
        tokenless=draw(mostly(0, 0, 1, 3)),
        silent=draw(mostly(0, 1, 20)),
        look=draw(st.sampled_from([*[Look.GOOD] * 4, Look.BAD, Look.BAD, *Look])),
        rollout=draw(mostly(None, Rollout(), Rollout(deadline_exceeded=True, ours=True), Rollout(surge=2), weight=12)),
        pods_age_s=draw(mostly(1.0, 61.0)),
        cap=draw(mostly(None, 8, 16, 64)),
        young_s=draw(mostly(4000.0, 5.0, 400.0)),
        meddled=draw(mostly(None, 0, 1, 5, 30, weight=30)),
        elapsed_s=draw(st.sampled_from([1.0, 15.0, 15.0, 15.0, 60.0, 120.0, 2000.0])),
        writes=draw(mostly(True, False, weight=4)),
        ticks=draw(st.sampled_from([1, 2, 6])),
    )


@dataclass(frozen=True)
class Step:
    """One tick: what was seen, what was decided, and the count, the cap and the state before it."""

    scene: Scene
    snapshot: Snapshot
    before: State
    now_s: float
    current: int
    cap: int | None
    decision: Decision
    state: State
    own: tuple[tuple[float, int], ...]


def driven(policy: Policy, sequence: list[Scene], start: int) -> Iterator[Step]:
    """Let the decision run over the scenes; most of what it wants is written, sometimes somebody else writes."""
    replicas, manager, now_s, cap = start, "bandkeeper", 0.0, None
    state = State.initial(0.0)
    own: list[tuple[float, int]] = []
    for scene in (one for first in sequence for one in [first] + [replace(first, meddled=None)] * (first.ticks - 1)):
        now_s += scene.elapsed_s
        if scene.meddled is not None:
            replicas, manager = scene.meddled, "kubectl"
        before, snapshot = state, scene.snapshot(policy, replicas, manager, cap)
        decision, state = decide(policy, snapshot, state, now_s)
        yield Step(scene, snapshot, before, now_s, replicas, cap, decision, state, tuple(own))
        cap = decision.cap if decision.cap is not None else cap
        if scene.writes and decision.replicas is not None and decision.replicas != replicas:
            own.append((now_s, decision.replicas - replicas))
            replicas, manager = decision.replicas, "bandkeeper"
            state = written(state, replicas=replicas, now_s=now_s)
        if scene.writes and decision.cap is not None:
            state = written(state, cap=decision.cap, now_s=now_s)


sequences = st.lists(scenes(), min_size=1, max_size=8)
starts = mostly(6, 0, 1, 2, 12, 30)


def most_of(policy: Policy) -> int:
    """The largest batch cap that the policy allows, the servers' capacity without a knob."""
    return policy.batch.candidates[-1] if policy.batch else 64


def inside(policy: Policy, replicas: int) -> bool:
    return policy.min_replicas <= replicas <= policy.max_replicas


@given(policies(), sequences, starts)
def test_bounds_hold_and_outside_only_leads_back(policy: Policy, sequence: list[Scene], start: int) -> None:
    for step in driven(policy, sequence, start):
        wanted = step.decision.replicas
        if wanted is None:
            continue
        if inside(policy, step.current):
            assert inside(policy, wanted)
        else:
            goal = min(max(step.current, policy.min_replicas), policy.max_replicas)
            assert min(step.current, goal) <= wanted <= max(step.current, goal)


@given(policies(), sequences, starts)
def test_missing_data_never_lowers(policy: Policy, sequence: list[Scene], start: int) -> None:
    for step in driven(policy, sequence, start):
        wanted = step.decision.replicas
        if not step.scene.complete(policy) and wanted is not None and step.current <= policy.max_replicas:
            assert wanted >= step.current
        lowered = step.cap is not None and step.decision.cap is not None and step.decision.cap < step.cap
        if not step.scene.pods_told() and not step.decision.rollback and (step.cap or 0) <= most_of(policy):
            read_back = {pod.cap for pod in step.snapshot.pods}
            assert not lowered or step.decision.cap in read_back  # somebody else rolled it out


@given(policies(), sequences, starts)
def test_nothing_is_let_go_on_a_stale_list_of_pods(policy: Policy, sequence: list[Scene], start: int) -> None:
    for step in driven(policy, [replace(scene, pods_age_s=61.0) for scene in sequence], start):
        assert step.decision.replicas is None or step.decision.replicas >= step.current


@given(policies(), sequences, starts)
def test_never_a_rollout_and_a_scale_in_together(policy: Policy, sequence: list[Scene], start: int) -> None:
    for step in driven(policy, sequence, start):
        wanted, rollout = step.decision.replicas, step.scene.rollout
        lowers = wanted is not None and wanted < step.current
        if rollout is not None and not rollout.deadline_exceeded:
            assert not lowers
        if policy.batch is None or policy.batch.cost_class is not CostClass.ROLLOUT:
            continue
        begins = step.before.cap.rollout_s != step.state.cap.rollout_s
        if begins:
            assert not lowers
        if begins and not step.decision.rollback:
            assert rollout is None
            assert not step.scene.others
            assert step.scene.ready in (None, step.current)
            assert not step.decision.emergency


@given(policies(), sequences, starts)
def test_behavior_limits_every_change(policy: Policy, sequence: list[Scene], start: int) -> None:
    for step in driven(policy, sequence, start):
        wanted = step.decision.replicas
        events = step.state.scale.events
        assert [(event.at_s, event.change) for event in events] == [
            one for one in step.own if step.now_s - one[0] < 1800 or one in {(e.at_s, e.change) for e in events}
        ]
        current = step.decision.current_replicas  # for a moment after a write of ours it is what we wrote
        if wanted is None or current is None:
            continue
        if wanted > current:
            assert wanted <= highest(policy.scale_up, current, events, step.now_s)
        if wanted < current:
            assert wanted >= lowest(policy.scale_down, current, events, step.now_s)


@given(policies(), sequences, starts)
def test_a_fresh_start_lets_nothing_go(policy: Policy, sequence: list[Scene], start: int) -> None:
    """Not before a full window was watched, however much or little is seen; bounds are bounds at once."""
    held_s = max(policy.restart_hold_s, policy.scale_down.stabilization_s, 60.0)
    first = None
    for step in driven(policy, [replace(scene, meddled=None) for scene in sequence], start):
        first = step.now_s if first is None else first
        wanted = step.decision.replicas
        if step.now_s - first < held_s and inside(policy, step.current) and wanted is not None:
            assert wanted >= step.current


@given(policies(), sequences, starts)
def test_zero_replicas_are_left_alone(policy: Policy, sequence: list[Scene], start: int) -> None:
    for step in driven(policy, sequence, start):
        if step.current == 0 and step.decision.current_replicas == 0:
            assert step.decision.paused_by_zero
            assert step.decision.replicas is None
            assert step.decision.cap is None


@given(policies(), sequences, starts)
def test_the_same_is_decided_twice(policy: Policy, sequence: list[Scene], start: int) -> None:
    first = [repr((step.decision, step.state)) for step in driven(policy, sequence, start)]
    assert first == [repr((step.decision, step.state)) for step in driven(policy, sequence, start)]


@given(policies(), sequences, starts)
def test_what_is_said_and_kept_is_bounded(policy: Policy, sequence: list[Scene], start: int) -> None:
    for step in driven(policy, sequence * 3, start):
        decision, state = step.decision, step.state
        assert 0 < len(decision.message) <= MESSAGE_LIMIT
        assert len(decision.band.message) <= MESSAGE_LIMIT
        assert decision.reason.meaning
        assert decision.utilization is None or 0 <= decision.utilization < math.inf
        assert decision.cap is None or decision.cap >= 1
        assert len(state.scale.events) <= EVENTS_LIMIT
        assert len(state.scale.regrets) <= REGRETS_LIMIT
        assert len(state.demand.samples) <= SAMPLES_LIMIT
        assert len(state.demand.peaks.entries) <= 62
        assert len(state.cap.rates) <= RATES_LIMIT
        model = state.model
        assert len(model.traces) <= TRACES + 2
        assert len(model.promises) <= len(policy.slos)
        for memory in (state.scale.holds, model.outlook.peaks, model.outlook.rises, model.outlook.lows):
            assert len(memory.entries) <= 62
        assert len(state.ownership.undos) <= UNDOS_LIMIT


@given(policies(), sequences, starts)
def test_the_cap_stays_in_its_bounds(policy: Policy, sequence: list[Scene], start: int) -> None:
    """A cap that is moved goes to a candidate; one that was read back may be kept where it takes a rollout."""
    for step in driven(policy, sequence, start):
        cap = step.decision.cap
        if policy.batch is None:
            assert cap is None
        elif cap is not None and cap != step.cap:
            known = {*policy.batch.candidates, 64, step.scene.cap, step.before.cap.wanted, step.before.cap.before}
            assert cap in known
        if policy.batch is None or policy.batch.cost_class is CostClass.ROLLOUT or cap is None:
            continue
        if any(pod.state is PodState.READY for pod in step.snapshot.pods):
            assert policy.batch.candidates[0] <= cap <= most_of(policy)  # in the same tick


@given(
    st.sampled_from(Objective),
    st.integers(1, 6),
    st.lists(st.floats(0, 64), min_size=1, max_size=8),
    st.floats(0, 64),
    st.floats(0, 64),
)
def test_more_load_never_wants_fewer_replicas(
    objective: Objective, ready: int, past: list[float], some: float, more: float
) -> None:
    """The same history, then a little or a lot in every replica, and nothing waits."""
    policy, state = a_policy(objective, replicas=(1, 40)), State.initial(0.0)
    for number, running in enumerate(past):
        _, state = decide(policy, a_snapshot(ready=ready, running=ready * running), state, 15.0 * number)
    now_s = 15.0 * len(past)
    low, high = sorted((some, more))
    fewer, _ = decide(policy, a_snapshot(ready=ready, running=ready * low), state, now_s)
    larger, _ = decide(policy, a_snapshot(ready=ready, running=ready * high), state, now_s)
    assert fewer.replicas is not None
    assert larger.replicas is not None
    assert fewer.replicas <= larger.replicas


EDGES = (0.025, 0.05, 0.075, 0.1)


def served(requests_per_s: float, ready: int, *, waiting: float = 0.0) -> Snapshot:
    """A fleet in balance that tells its tokens: 300 read and 200 made for each request, at most 5.7 a second each.

    A token is late the more often the longer steps take on average.
    """
    tokens, prompts = 200 * requests_per_s / ready, 300 * requests_per_s / ready
    token_s = 0.02058 / max(0.05, 1 - 0.00041 * tokens - 0.0001 * prompts)
    made = 60 * ready * tokens
    counts = [made * (1 - math.exp(-2 * max(0.0, edge / token_s - 1))) for edge in EDGES]
    between = Distribution(
        window_s=60, edges=(*EDGES, math.inf), counts=(*counts, made), total_s=made * token_s, age_s=1.0
    )
    return a_snapshot(
        ready=ready,
        running=ready * tokens * token_s,
        waiting=waiting,
        distributions={Signal.INTER_TOKEN_LATENCY: between},
        requests_finished=requests_per_s,
        prompt_tokens=ready * prompts,
        generation_tokens=ready * tokens,
    )


def a_promise(threshold_s: float = 0.05, percentile: int = 95) -> LatencySLO:
    return LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=percentile, threshold_s=threshold_s, window_s=60.0)


def after(policy: Policy, ready: int, past: list[float]) -> State:
    """So many requests a second and replica, each for half a minute."""
    state = State.initial(0.0)
    for number, rate in enumerate(one for one in past for _ in range(2)):
        _, state = decide(policy, served(rate * ready, ready), state, 15.0 * number)
    return state


modelled_pasts = st.lists(st.floats(0.3, 5), min_size=3, max_size=40)


@given(st.sampled_from(Objective), st.integers(1, 6), modelled_pasts, st.floats(0.3, 5.5), st.floats(0.3, 5.5))
def test_more_modelled_load_never_wants_fewer_replicas(
    objective: Objective, ready: int, past: list[float], some: float, more: float
) -> None:
    """The same history with a fitted model, then a little or a lot in every replica.

    Without promises: what is missed at the one load and not at the other teaches two different margins.
    """
    policy = a_policy(objective, replicas=(1, 60))
    state, now_s = after(policy, ready, past), 30.0 * len(past)
    low, high = sorted((some, more))
    fewer, _ = decide(policy, served(low * ready, ready), state, now_s)
    larger, _ = decide(policy, served(high * ready, ready), state, now_s)
    assert fewer.utilization_source == larger.utilization_source == FITTED_MODEL
    assert fewer.replicas is not None
    assert larger.replicas is not None
    assert fewer.replicas <= larger.replicas


steps_of_a_day = st.lists(st.floats(0, 60), max_size=21)


def with_past(snapshot: Snapshot, day: list[float]) -> Snapshot:
    """The same beside a day that had so many requests a second, in steps from now on."""
    ends_s = tuple(30 + 120.0 * number for number in range(len(day)))
    steps = Recalled(ends_s, tuple(300 * rate for rate in day), tuple(200 * rate for rate in day))
    return replace(snapshot, recalled={Earlier.DAY: steps})


def believing(state: State, now_s: float) -> State:
    """A state in which yesterday was always right."""
    record = Record(compared_s=7000.0, right_s=7000.0, seen_s=now_s)
    return replace(state, model=replace(state.model, records={Earlier.DAY: record}))


@given(
    st.sampled_from(Objective),
    st.integers(1, 6),
    modelled_pasts,
    st.floats(0, 5.5),
    st.lists(steps_of_a_day, min_size=1, max_size=4),
)
def test_a_forecast_never_wants_fewer_replicas(
    objective: Objective, ready: int, past: list[float], rate: float, days: list[list[float]]
) -> None:
    """Looks beside a day that is believed, and the same looks without it."""
    policy = a_policy(objective, slos=(a_promise(),), replicas=(1, 60))
    without = after(policy, ready, past)
    now_s = 30.0 * len(past)
    state = believing(without, now_s)
    for number, day in enumerate(days):
        look = served(rate * ready, ready)
        fewer, without = decide(policy, look, without, now_s + 15 * number)
        more, state = decide(policy, with_past(look, day), state, now_s + 15 * number)
        assert fewer.replicas is not None
        assert more.replicas is not None
        assert fewer.replicas <= more.replicas


@given(
    st.sampled_from(Objective),
    st.integers(1, 6),
    modelled_pasts,
    st.floats(0.3, 5.5),
    st.floats(0.3, 5.5),
    steps_of_a_day,
)
def test_more_load_beside_a_forecast_never_wants_fewer_replicas(
    objective: Objective, ready: int, past: list[float], some: float, more: float, day: list[float]
) -> None:
    policy, now_s = a_policy(objective, replicas=(1, 60)), 30.0 * len(past)
    state = believing(after(policy, ready, past), now_s)
    low, high = sorted((some, more))
    fewer, _ = decide(policy, with_past(served(low * ready, ready), day), state, now_s)
    larger, _ = decide(policy, with_past(served(high * ready, ready), day), state, now_s)
    assert fewer.replicas is not None
    assert larger.replicas is not None
    assert fewer.replicas <= larger.replicas


@given(st.sampled_from(Objective), st.integers(1, 6), modelled_pasts, st.lists(st.floats(0, 5), min_size=1, max_size=8))
def test_without_history_a_believed_day_changes_nothing(
    objective: Objective, ready: int, past: list[float], rates: list[float]
) -> None:
    policy = a_policy(objective, slos=(a_promise(),), replicas=(1, 60))
    without, now_s = after(policy, ready, past), 30.0 * len(past)
    believed = believing(without, now_s)
    for number, rate in enumerate(rates):
        look = served(rate * ready, ready)
        decision, without = decide(policy, look, without, now_s + 15 * number)
        same, believed = decide(policy, look, believed, now_s + 15 * number)
        assert decision == same


@given(st.sampled_from(Objective), st.integers(1, 6), modelled_pasts, st.floats(0, 300), st.floats(0, 300))
def test_a_longer_queue_never_wants_fewer_modelled_replicas(
    objective: Objective, ready: int, past: list[float], some: float, more: float
) -> None:
    policy = a_policy(objective, replicas=(1, 60))
    state, now_s = after(policy, ready, past), 30.0 * len(past)
    short, long = sorted((some, more))
    fewer, _ = decide(policy, served(past[-1] * ready, ready, waiting=short), state, now_s)
    larger, _ = decide(policy, served(past[-1] * ready, ready, waiting=long), state, now_s)
    assert fewer.replicas is not None
    assert larger.replicas is not None
    assert fewer.replicas <= larger.replicas


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.sampled_from(Objective),
    st.integers(1, 6),
    modelled_pasts,
    st.sampled_from(EDGES),
    st.sampled_from(EDGES),
    st.sampled_from([50, 90, 95, 99]),
)
def test_a_tighter_promise_never_wants_fewer_replicas(
    objective: Objective, ready: int, past: list[float], one: float, other: float, percentile: int
) -> None:
    """The same is seen with both, and neither is near what no number of replicas keeps: that asks for nothing.

    Not while an order is on its way or remembered: what a tighter promise orders sooner it gives up sooner, too.
    """
    tight, loose = sorted((one, other))
    wanted = []
    for threshold_s in (tight, loose):
        policy = a_policy(objective, slos=[a_promise(threshold_s, percentile)], replicas=(1, 60))
        state, now_s = after(policy, ready, past), 30.0 * len(past)
        decision, state = decide(policy, served(past[-1] * ready, ready), state, now_s)
        [learned] = state.model.promises
        assume(state.promises.order is None and not state.scale.needs.highest())
        assume(learned.misses.line()[0] <= learned.allowed / 4)
        assume(all(verdict.state is not SLOState.UNREACHABLE for verdict in decision.slos))
        assert decision.replicas is not None
        wanted.append(decision.replicas)
    assert wanted[0] >= wanted[1]


@given(st.sampled_from(Objective), st.integers(2, 6), modelled_pasts, st.integers(1, 6))
def test_tokens_that_are_not_told_never_lower(objective: Objective, ready: int, past: list[float], mute: int) -> None:
    """Some replicas still tell what runs in them, and no tokens any more."""
    policy = a_policy(objective, slos=[a_promise()], replicas=(1, 60))
    state, now_s = after(policy, ready, past), 30.0 * len(past)
    seen = served(past[-1] * ready, ready)
    names = [pod.name for pod in seen.pods][min(mute, ready - 1) :]
    tokens = (Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS, Signal.REQUESTS_FINISHED)
    by_pod = {
        signal: {name: one for name, one in told.items() if name in names or signal not in tokens}
        for signal, told in seen.by_pod.items()
    }
    whole, _ = decide(policy, seen, state, now_s)
    part, _ = decide(policy, replace(seen, by_pod=by_pod), state, now_s)
    assert whole.replicas is not None
    assert part.replicas is not None
    assert part.replicas >= min(whole.replicas, ready)


@given(st.floats(0, 1e6), st.floats(1, 10_000), st.integers(1, 8))
def test_a_backlog_alone_orders_no_more_than_twice_the_work_and_two(waiting: float, rate: float, ready: int) -> None:
    """However long the queue: the bound is what is offered, here exactly what the replicas can do."""
    policy = a_policy(replicas=(1, 1000), batch=None)
    fast = ScalingRules(
        stabilization_s=0.0,
        select=SelectPolicy.MAX,
        limits=(RateLimit(value=1000, percent=False, period_s=1.0),),
        tolerance=0.0,
    )
    seen = a_snapshot(ready=ready, running=64.0 * ready, waiting=waiting, requests_finished=rate)
    decision, _ = decide(replace(policy, scale_up=fast), seen, State.initial(0.0), 0.0)
    assert decision.replicas is not None
    assert decision.replicas <= 2 * ready + 3


def test_the_strategy_reaches_what_it_is_for() -> None:
    """Raises, scale-ins, caps and rollouts do happen, so that no property above holds for want of an occasion."""
    seen: Counter[str] = Counter()

    @settings(max_examples=500, database=None, derandomize=True)
    @given(policies(), sequences, starts)
    def count(policy: Policy, sequence: list[Scene], start: int) -> None:
        for step in driven(policy, sequence, start):
            wanted, cap = step.decision.replicas, step.decision.cap
            modelled = step.decision.utilization_source == FITTED_MODEL
            seen["ticks"] += 1
            seen["modelled"] += modelled
            seen["modelled, raised"] += modelled and wanted is not None and wanted > step.current
            seen["modelled, let go"] += modelled and wanted is not None and wanted < min(step.current, 24)
            seen["modelled, promise judged"] += any(one.misses.ripe for one in step.state.model.promises)
            if policy.deadline is not None and wanted is not None:
                seen["deadline, raised"] += wanted > step.current and step.decision.reason is Reason.BACKLOG_DEADLINE
                seen["deadline, let go"] += wanted < step.current and step.decision.reason is Reason.BACKLOG_DEADLINE
            seen["raised"] += wanted is not None and wanted > step.current
            seen["let go"] += wanted is not None and wanted < step.current and inside(policy, step.current)
            seen["cap lowered"] += step.cap is not None and cap is not None and cap < step.cap
            seen["cap raised"] += step.cap is not None and cap is not None and cap > step.cap
            seen["rollouts"] += step.before.cap.rollout_s != step.state.cap.rollout_s

    count()
    assert len(seen) == 12
    assert all(seen.values()), dict(seen)
    assert seen["modelled"] > 0.05 * seen["ticks"], dict(seen)
