"""What quality may do to a decision, when it is judged, and what it is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bandkeeper.api.reasons import LimitReason, Reason, SLOState
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import GPUs, PodState, Reading, Snapshot
from bandkeeper.decide import quality
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.engine import decide
from bandkeeper.decide.load import assess as look
from bandkeeper.decide.policy import Batching, LatencySLO, Policy
from bandkeeper.decide.promises import judge
from bandkeeper.decide.quality import Sights, evidence_of
from bandkeeper.decide.size import FUTILE_S
from bandkeeper.decide.state import DemandMemory, PromiseMemory, QualityMemory, State, Trial
from bandkeeper.quality.types import Assessment, Bottleneck, Component, Evidence, Kind, Memory, Quality, Saturated
from tests.unit.builders import ITL, TTFT, a_distribution, a_pod, a_policy, a_snapshot, pods

NOW_S = 10_000.0
GOOD = {Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.1: 1000.0})}
SLOW = {Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.5: 100.0, 2.0: 900.0})}


def with_gpus(snapshot: Snapshot, age_s: float = 5.0, **ratios: float) -> Snapshot:
    """The snapshot with GPU counters, the same on every ready pod, named as members of Signal in lower case."""
    ready = [pod.name for pod in snapshot.pods_in(PodState.READY)]
    counters = {Signal[name.upper()]: {pod: Reading(value, age_s) for pod in ready} for name, value in ratios.items()}
    return replace(snapshot, by_pod={**snapshot.by_pod, **counters})


def decided(snapshot: Snapshot, policy: Policy | None = None, state: State | None = None) -> Decision:
    """The decision on one look."""
    return decide(policy or a_policy(slos=[TTFT]), snapshot, state or State.initial(0.0), NOW_S)[0]


@pytest.mark.parametrize("running", [5.0, 60.0, 85.0], ids=["below", "inside", "at the edge of the band"])
@pytest.mark.parametrize(
    "counters",
    [
        {"gpu_utilization": 1.0},
        {"gpu_utilization": 1.0, "gr_engine_active": 1.0, "tensor_active": 0.1, "dram_active": 0.1},
        {"gpu_utilization": 1.0, "gr_engine_active": 1.0, "sm_active": 1.0, "tensor_active": 0.9, "dram_active": 0.8},
    ],
    ids=["utilisation alone", "false prosperity", "all of it is work"],
)
def test_busy_gpus_alone_never_add_a_replica(running: float, counters: dict[str, float]) -> None:
    snapshot = a_snapshot(ready=2, running=running, distributions=GOOD)
    seen = decided(with_gpus(snapshot, **counters))
    assert seen.replicas == decided(snapshot).replicas == 2


def trial(gain: float = 0.1, *, before: int = 2, after: int = 4, at_s: float = NOW_S) -> State:
    """More replicas were tried."""
    tried = Trial(before=before, after=after, throughput=10.0, gain=gain, at_s=at_s)
    return replace(State.initial(0.0), quality=QualityMemory(trial=tried))


def crowded(ready: int = 4, *, waiting: float = 200.0, slow: bool = False) -> Snapshot:
    """More work than the replicas can do."""
    distributions = SLOW if slow else GOOD
    return a_snapshot(ready=ready, running=64.0 * ready, waiting=waiting, distributions=distributions)


def test_a_queue_gets_replicas() -> None:
    assert (decided(crowded()).replicas or 0) > 4


@pytest.mark.parametrize("slow", [False, True], ids=["promise kept", "broken and tested"])
def test_replicas_that_were_seen_not_to_help_are_not_added(slow: bool) -> None:
    seen = decided(crowded(slow=slow), state=trial())
    assert (seen.replicas, seen.reason) == (4, Reason.MORE_WOULD_NOT_HELP)
    assert seen.limit is not None
    assert seen.limit.reason is LimitReason.MORE_WOULD_NOT_HELP
    assert not seen.emergency
    assert "more would not help: with a queue at both, 4 replicas did more than 2 by only 10%" in seen.message


@pytest.mark.parametrize(
    ("ready", "state"),
    [
        (4, trial(gain=0.31)),
        (4, trial(before=5, after=8)),
        (4, trial(at_s=NOW_S - FUTILE_S - 1)),
        (4, State.initial(0.0)),
    ],
    ids=["they helped", "of more than there are", "too long ago", "never tried"],
)
def test_what_was_not_seen_in_vain_is_tried(ready: int, state: State) -> None:
    assert (decided(crowded(ready), state=state).replicas or 0) > ready


def test_a_broken_promise_that_replicas_may_still_mend_is_heard() -> None:
    """The trial was of throughput; a broken inter-token latency is another promise, and is tried for itself."""
    policy = a_policy(slos=[ITL])
    broken = {Signal.INTER_TOKEN_LATENCY: a_distribution({0.05: 10.0, 0.075: 90.0}, mean_s=0.06)}
    snapshot = a_snapshot(ready=4, running=200.0, waiting=200.0, distributions=broken)
    assert (decided(snapshot, policy, trial()).replicas or 0) > 4
    futile = replace(trial(), promises=PromiseMemory(futile=((Signal.INTER_TOKEN_LATENCY, NOW_S + 60),)))
    seen = decided(snapshot, policy, futile)
    assert seen.replicas == 4
    assert seen.limit is not None
    assert seen.limit.reason is LimitReason.MORE_WOULD_NOT_HELP


@pytest.mark.parametrize(
    ("shared", "slow", "vetoed"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_full_component_that_all_share_gets_no_replicas_unless_a_promise_is_broken(
    monkeypatch: pytest.MonkeyPatch, shared: bool, slow: bool, vetoed: bool
) -> None:
    full = Bottleneck(Component.STORAGE, 0.95, "storage is 95% used", shared)
    found = Assessment(quality=Quality.MIXED, bottleneck=full)
    monkeypatch.setattr(quality, "assess", lambda *_: (found, Memory()))
    seen = decided(crowded(slow=slow))
    assert (seen.reason is Reason.MORE_WOULD_NOT_HELP) is vetoed
    assert (seen.replicas == 4) is vetoed
    if vetoed:
        assert "Storage: storage is 95% used" in seen.message


@pytest.mark.parametrize(("limit", "vetoed"), [(1e9, True), (1e10, False), (None, False)])
def test_what_a_person_says_is_shared_is_judged_against_what_all_replicas_use(
    limit: float | None, vetoed: bool
) -> None:
    """Four replicas read 240 MB/s each."""
    busy = {"gr_engine_active": 0.9, "tensor_active": 0.3, "dram_active": 0.3, "sm_active": 0.6}
    seen = with_gpus(crowded(slow=False), **busy, disk_read=2.4e8, disk_written=0.0)
    found = decided(seen, replace(a_policy(slos=[TTFT]), shared_storage=limit))
    assert (found.reason is Reason.MORE_WOULD_NOT_HELP) is vetoed
    if vetoed:
        assert "storage" in found.message.lower()


def window(replicas: int, throughput: float, at_s: float) -> Saturated:
    return Saturated(replicas, throughput, at_s)


@pytest.mark.parametrize(
    ("windows", "gain"),
    [
        ((window(2, 10, 0), window(4, 20, 100)), 1.0),
        ((window(2, 10, 0), window(4, 12, 100)), 0.2),
        ((window(2, 10, 0), window(4, 9, 100)), -0.1),
        ((window(10, 10, 0), window(11, 10, 100)), None),
        ((window(8, 8, 0), window(10, 10, 50), window(11, 10, 100)), 2 / 3),
        ((window(2, 10, 0), window(4, 10, 1000)), None),
        ((window(4, 20, 0), window(2, 10, 100)), None),
        ((window(4, 20, 0),), None),
        ((), None),
    ],
    ids=["all", "little", "less", "a step too small", "an older one", "too far apart", "down", "one", "none"],
)
def test_a_trial_compares_windows_that_can_be_compared(windows: tuple[Saturated, ...], gain: float | None) -> None:
    found = quality._tried(windows, None, 1000.0)
    assert (found.gain if found else None) == (None if gain is None else pytest.approx(gain))


def test_a_trial_may_turn_out_better_later_and_never_worse() -> None:
    known = Trial(before=2, after=4, throughput=10.0, gain=0.1, at_s=0.0)
    better = quality._tried((window(4, 18, 3000),), known, 3000.0)
    worse = quality._tried((window(4, 5, 3000),), known, 3000.0)
    assert better is not None
    assert worse is not None
    assert better.gain == pytest.approx(0.8)
    assert worse.gain == 0.1
    assert quality._tried((), known, FUTILE_S + 1) is None


class Judged:
    """Counts the judgements, each of which is another one."""

    def __init__(self) -> None:
        self.evidence: list[Evidence] = []

    def __call__(self, evidence: Evidence, *_: Any) -> tuple[Assessment, Memory]:
        self.evidence.append(evidence)
        return Assessment(quality=Quality.EFFICIENT, score=float(len(self.evidence))), Memory()


def test_quality_is_judged_when_there_is_news_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged()
    monkeypatch.setattr(quality, "assess", judged)
    policy, state = a_policy(slos=[TTFT]), State.initial(0.0)
    quiet, now_s = a_snapshot(ready=2, distributions=GOOD), NOW_S
    sampled_s = NOW_S - 5
    told = []
    steps = [  # seconds on, whether the counters are news, the snapshot
        (0, True, quiet),
        (15, False, quiet),
        (15, True, quiet),
        (15, False, quiet),
        (5, False, crowded(2)),
        (5, False, crowded(2)),
        (5, False, crowded(2, slow=True)),
        (5, False, a_snapshot(ready=3, distributions=GOOD)),
        (31, False, a_snapshot(ready=3, distributions=GOOD)),
    ]
    for on_s, news, snapshot in steps:
        now_s += on_s
        sampled_s = now_s - 5 if news else sampled_s
        seen = with_gpus(snapshot, age_s=now_s - sampled_s, gpu_utilization=0.9)
        decision, state = decide(policy, seen, state, now_s)
        assert decision.quality is not None
        told.append(decision.quality.score)
    assert told == [1, 1, 2, 2, 3, 3, 4, 5, 6]


def evidence(snapshot: Snapshot, policy: Policy | None = None) -> Evidence:
    """What the quality core is told of one look at a fleet of which nothing is known."""
    policy = policy or a_policy(slos=[TTFT])
    load = look(policy, snapshot, DemandMemory())
    return evidence_of(Sights(policy, snapshot, load, judge(policy, snapshot, load), None), DemandMemory())


def test_counters_are_told_by_pod_with_the_age_of_those_that_the_class_depends_on() -> None:
    ready = (a_pod("chat-0"), a_pod("chat-1"))
    snapshot = with_gpus(
        a_snapshot(ready=ready), age_s=12.0, gpu_utilization=0.9, dram_active=0.5, kv_cache_utilization=0.4
    )
    late = {**snapshot.by_pod, Signal.POWER: {"chat-0": Reading(300.0, 70.0)}}
    apart = (("GPU 0", 1.0), ("GPU 1", 0.8))
    held = {
        "chat-0": GPUs(model="NVIDIA H100 80GB HBM3", count=2, shared=True, source="dcgm-exporter", busy_by_gpu=apart)
    }
    found = evidence(replace(snapshot, by_pod=late, gpus=held)).pods
    assert (found["chat-0"].gpu_utilization, found["chat-0"].dram_active, found["chat-0"].power) == (0.9, 0.5, 300.0)
    assert (found["chat-0"].gpus, found["chat-0"].shared, found["chat-0"].source) == (2, True, "dcgm-exporter")
    assert found["chat-0"].age_s == 12.0
    assert (found["chat-0"].busy_by_gpu, found["chat-1"].busy_by_gpu) == (apart, ())
    assert (found["chat-1"].power, found["chat-1"].gpus, found["chat-1"].kv_cache_utilization) == (None, 1, 0.4)


def test_a_server_s_own_figures_are_of_one_gpu_and_told_of_all() -> None:
    snapshot = with_gpus(a_snapshot(ready=1), model_flops=1e14, model_read_bytes=1e12)
    held = {"chat-0": GPUs(count=4)}
    found = evidence(replace(snapshot, gpus=held)).pods["chat-0"]
    assert (found.model_flops, found.model_read_bytes, found.model_written_bytes) == (4e14, 4e12, None)


def test_pods_without_counters_have_no_entry_and_nothing_reads_as_zero() -> None:
    found = evidence(a_snapshot(ready=2, waiting=None))
    assert found.pods == {}
    assert (found.ready, found.waiting, found.losses, found.throughput, found.mu) == (2, None, None, None, None)


@pytest.mark.parametrize(
    ("batching", "job", "trains", "kind"),
    [
        (Batching.CONTINUOUS, None, False, Kind.LLM_SERVING),
        (Batching.DYNAMIC, None, False, Kind.DYNAMIC_BATCHING),
        (Batching.UNKNOWN, None, False, Kind.UNKNOWN),
        (Batching.UNKNOWN, "resnet", True, Kind.TRAINING),
        (Batching.UNKNOWN, "group-0", False, Kind.UNKNOWN),  # of a LeaderWorkerSet, which may serve as well
        (Batching.CONTINUOUS, "group-0", False, Kind.LLM_SERVING),
    ],
)
def test_the_kind_of_work_comes_from_the_runtime_or_from_a_job_that_trains(
    batching: Batching, job: str | None, trains: bool, kind: Kind
) -> None:
    ready = tuple(replace(pod, job=job, trains=trains) for pod in pods(2))
    assert evidence(a_snapshot(ready=ready), a_policy(batching=batching, slos=[TTFT])).kind is kind


def test_an_slo_that_one_request_per_replica_breaks_is_out_of_reach() -> None:
    alone = a_snapshot(ready=2, running=2.0, distributions=SLOW)
    assert evidence(alone).slo_unreachable
    assert evidence(alone).slo_broken
    assert not evidence(a_snapshot(ready=2, running=20.0, distributions=SLOW)).slo_unreachable


@pytest.mark.parametrize(
    ("mean_s", "prompts", "stalled"), [(0.02, 500.0, True), (0.045, 500.0, False), (0.02, 50.0, False)]
)
def test_a_tail_far_above_the_mean_beside_many_prompts_is_prefill(mean_s: float, prompts: float, stalled: bool) -> None:
    itl = LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=95, threshold_s=0.05, window_s=60.0)
    tail = {Signal.INTER_TOKEN_LATENCY: a_distribution({0.05: 900.0, 0.2: 100.0}, mean_s=mean_s)}
    snapshot = a_snapshot(ready=1, distributions=tail, prompt_tokens=prompts, generation_tokens=100.0)
    policy = a_policy(slos=[itl])
    load = look(policy, snapshot, DemandMemory())
    assert judge(policy, snapshot, load)[0].state is SLOState.BREACHED
    assert evidence(snapshot, policy).prefill_tails is stalled


def test_the_variation_of_latency_is_that_of_its_histogram() -> None:
    even = {Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.1: 0.0, 0.3: 500.0})}
    spread = {Signal.TIME_TO_FIRST_TOKEN: a_distribution({0.1: 0.0, 0.3: 500.0, 0.5: 0.0, 0.7: 500.0})}
    assert evidence(a_snapshot(ready=1, distributions=even)).latency_cv == pytest.approx(0.0, abs=1e-6)
    assert evidence(a_snapshot(ready=1, distributions=spread)).latency_cv == pytest.approx(0.5)
    assert evidence(a_snapshot(ready=1)).latency_cv is None
