"""Adding up what pods told, and knowing what they did not tell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Gap, GapReason, Pod, PodState, Reading, Snapshot
from bandkeeper.decide.load import Load, assess
from bandkeeper.decide.policy import Batching
from bandkeeper.decide.state import DemandMemory
from tests.unit.builders import a_pod, a_policy, a_snapshot, a_target, pods


def load_of(snapshot: Snapshot, memory: DemandMemory | None = None, batching: Batching = Batching.CONTINUOUS) -> Load:
    return assess(a_policy(batching=batching), snapshot, memory or DemandMemory())


def test_sums() -> None:
    load = load_of(a_snapshot(ready=4, running=100, waiting=8, requests_finished=20, kv_cache_utilization=2.0))
    assert (load.running, load.waiting, load.in_flight, load.batch) == (100, 8, 108, 25)
    assert load.finished_per_s == 20
    assert load.kv == 0.5
    assert load.complete
    assert not load.queueing  # 8 on 4 replicas of 64 is coming and going


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_value_that_cannot_be_is_none(value: float) -> None:
    load = load_of(a_snapshot(ready=1, running=value))
    assert load.running is None
    assert not load.complete


def test_a_stale_value_is_none() -> None:
    seen = replace(a_snapshot(ready=1), by_pod={Signal.REQUESTS_RUNNING: {"chat-0": Reading(5.0, 500.0)}})
    assert load_of(seen).running is None


def test_a_silent_pod_makes_the_picture_partial() -> None:
    load = load_of(a_snapshot(ready=3, running=90, silent=["chat-1"]))
    assert load.running == 60
    assert load.silent == ("chat-1",)
    assert not load.complete


def test_a_pod_that_has_just_become_ready_is_partial_but_not_silent() -> None:
    ready = (*pods(2), a_pod("new", age_s=110, state_age_s=10))
    load = load_of(a_snapshot(ready=ready, silent=["new"]))
    assert load.silent == ()
    assert not load.complete


def test_a_total_speaks_for_all_pods() -> None:
    seen = replace(
        a_snapshot(ready=3, running=None, waiting=None),
        totals={Signal.REQUESTS_RUNNING: Reading(50.0, 5.0), Signal.KV_CACHE_UTILIZATION: Reading(0.7, 5.0)},
    )
    load = load_of(seen)
    assert (load.running, load.kv) == (50, 0.7)
    assert load.complete  # no source of waiting was ever configured


def test_waiting_that_was_wanted_and_is_missing_is_not_zero() -> None:
    gap = Gap(signal=Signal.REQUESTS_WAITING, reason=GapReason.STALE, detail="")
    assert not load_of(a_snapshot(waiting=None, gaps=[gap])).complete
    assert not load_of(a_snapshot(waiting=None), DemandMemory(waiting_known=True)).complete
    assert load_of(a_snapshot(waiting=None)).complete


def test_pods_by_state() -> None:
    others = [
        a_pod("coming", PodState.PENDING, age_s=50, state_age_s=50),
        a_pod("late", PodState.PENDING, age_s=500, state_age_s=500),
        a_pod("homeless", PodState.UNSCHEDULABLE),
        a_pod("broken", PodState.FAILED),
        a_pod("leaving", PodState.TERMINATING),
    ]
    load = load_of(a_snapshot(ready=2, others=others))
    assert (load.ready, load.pending, load.supply, load.terminating) == (2, 1, 3, 1)
    assert [pod.name for pod in load.lost] == ["homeless", "broken", "late"]


@pytest.mark.parametrize(("age_s", "pending"), [(500, 1), (601, 0)])
def test_credit_before_any_cold_start_was_measured(age_s: float, pending: int) -> None:
    only = a_pod("coming", PodState.PENDING, age_s=age_s, state_age_s=age_s)
    load = load_of(a_snapshot(ready=0, others=[only], target=a_target(1)))
    assert (load.pending, len(load.lost)) == (pending, 1 - pending)
    assert not load.cold_start_measured


def aged(*spans_s: float) -> tuple[Pod, ...]:
    return tuple(a_pod(f"chat-{index}", age_s=1000 + span_s, state_age_s=1000) for index, span_s in enumerate(spans_s))


@pytest.mark.parametrize(
    ("spans_s", "cold_start_s"),
    [((90,), 90), ((80, 90, 100), 90), ((90, 20_000), 90), ((80, 95, 3000, 3500), 95)],
    ids=["one", "median", "flapped long ago is left out", "lower median"],
)
def test_cold_start_is_measured_from_the_pods(spans_s: tuple[float, ...], cold_start_s: float) -> None:
    load = load_of(a_snapshot(ready=aged(*spans_s)))
    assert load.cold_start_s == cold_start_s
    assert load.cold_start_measured


def test_cold_start_is_remembered_while_no_pod_tells() -> None:
    load = load_of(a_snapshot(ready=0, target=a_target(1)), DemandMemory(cold_start_s=77))
    assert (load.cold_start_s, load.cold_start_measured) == (77, True)


def test_caps_capacity_and_queue_bound() -> None:
    ready = (a_pod("a", cap=32, capacity=64), a_pod("b", capacity=48, queue_bound=20))
    load = load_of(a_snapshot(ready=ready))
    assert load.caps == {32, 48}
    assert (load.capacity, load.queue_bounded, load.queue_bound) == (48, True, 20)
    assert not load_of(a_snapshot()).queue_bounded
    assert load_of(a_snapshot(requests_rejected=0.0)).queue_bounded


@pytest.mark.parametrize(
    ("told", "least"), [((8192, 512), 512), ((None, 2048), 2048), ((None, None), None), ((0, 4096), 4096)]
)
def test_the_least_prompt_tokens_of_a_step_count(told: tuple[int | None, ...], least: int | None) -> None:
    pods = [a_pod(f"chat-{place}", prefill_tokens=tokens) for place, tokens in enumerate(told)]
    coming = a_pod("coming", PodState.PENDING, prefill_tokens=16)
    assert load_of(a_snapshot(ready=(*pods, coming))).prefill_tokens == least


@pytest.mark.parametrize(
    ("batching", "quiet"), [(Batching.CONTINUOUS, 2 * 3.2), (Batching.UNKNOWN, 2 * 3.2), (Batching.DYNAMIC, 2 * 64)]
)
def test_a_dynamic_batch_is_formed_from_what_waits(batching: Batching, quiet: float) -> None:
    assert load_of(a_snapshot(ready=2), batching=batching).quiet_queue == pytest.approx(quiet)


@pytest.mark.parametrize(
    ("rates", "produced"),
    [
        ({"generation_tokens": 500.0, "requests_finished": 5.0}, 500),
        ({"samples": 50.0, "requests_finished": 5.0}, 50),
        ({"requests_finished": 5.0}, 5),
        ({}, None),
    ],
)
def test_what_is_produced(rates: dict[str, float], produced: float | None) -> None:
    assert load_of(a_snapshot(**rates)).produced_per_s == produced  # type: ignore[arg-type]


def test_tokens_for_the_whole_workload_speak_for_all_replicas() -> None:
    totals = {Signal.GENERATION_TOKENS: Reading(800.0, 5.0), Signal.PROMPT_TOKENS: Reading(400.0, 5.0)}
    assert load_of(replace(a_snapshot(ready=4), totals=totals)).told == 4
    assert load_of(a_snapshot(ready=4, generation_tokens=800, prompt_tokens=400)).told == 4
    assert load_of(a_snapshot(ready=4, generation_tokens=800, prompt_tokens=400, silent=["chat-1"])).told == 3
    assert load_of(a_snapshot(ready=4, generation_tokens=800)).told == 0


@pytest.mark.parametrize(
    ("age_s", "told", "counted"),
    [
        (90.0, 500.0, 500.0),
        (30.0, 500.0, 1000.0),  # half of the window of 60 s is from before
        (2.0, 50.0, 100.0),  # hardly anything was seen: no more than twice of it is believed
    ],
)
def test_a_young_pod_counts_for_what_it_did_since_it_is_ready(age_s: float, told: float, counted: float) -> None:
    ready = (a_pod("old", age_s=900, state_age_s=800), a_pod("new", age_s=age_s + 90, state_age_s=age_s))
    rates = {"old": Reading(1500.0, 5.0), "new": Reading(told, 5.0)}
    seen = replace(a_snapshot(ready=ready), by_pod={Signal.GENERATION_TOKENS: rates})
    assert load_of(seen).output_per_s == pytest.approx(1500.0 + counted)
    first = replace(a_snapshot(ready=ready[1:]), by_pod={Signal.GENERATION_TOKENS: rates})
    assert load_of(first).output_per_s == pytest.approx(told)


@pytest.mark.parametrize(
    ("counts", "token_s"), [((100.0, 900.0, 1000.0), 0.04), ((900.0, 100.0, 1000.0), 0.1), ((0.0, 0.0, 0.0), 0.1)]
)
def test_the_time_between_tokens_is_the_histograms_or_littles(counts: tuple[float, ...], token_s: float) -> None:
    """A histogram that cannot be, or an empty one, tells nothing: 80 requests in process make 800 tokens a second."""
    itl = Distribution(window_s=60.0, edges=(0.02, 0.1, math.inf), counts=counts, total_s=0.04 * counts[-1], age_s=5.0)
    seen = a_snapshot(ready=4, running=80, generation_tokens=800, prompt_tokens=400)
    seen = replace(seen, distributions={(Signal.INTER_TOKEN_LATENCY, 60): itl})
    assert load_of(seen).token_s == pytest.approx(token_s)


def test_a_revision_is_told_while_all_pods_have_it() -> None:
    old, new = replace(a_pod("a"), revision="1"), replace(a_pod("b"), revision="2")
    assert load_of(a_snapshot(ready=(old,))).revision == "1"
    assert load_of(a_snapshot(ready=(old, new))).revision is None
