"""Scraped metrics: late, extrapolated as Prometheus does, and in the operator's own words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bandkeeper.api.signals import LATENCY_SIGNALS, Signal
from bandkeeper.api.snapshot import Distribution, GapReason, PodState, Snapshot
from bandkeeper.decide.policy import Batching, CostClass, Policy
from bandkeeper.lab import snapshot as lab_snapshot
from bandkeeper.lab.fleet import Counters, Histograms, PodNow
from bandkeeper.lab.scrape import Scraper, quantile_of
from bandkeeper.lab.server import ColdStart, ContinuousServer, DynamicServer, Server
from bandkeeper.lab.snapshot import Observer
from bandkeeper.model import histogram
from bandkeeper.signals.collector import GPU_EVERY_S, SUMMARY_WINDOW_S
from bandkeeper.signals.observe import TOTAL, Ages, Builder
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.want import LatencyWant, Want
from tests.unit.builders import ITL, TTFT, a_batch, a_policy

SLOTS = 4
EDGES = (0.05, 0.1, 0.5, 1.0, 2.5)
VLLM_SERVER = ContinuousServer(
    model="m",
    gpu="g",
    source="test",
    batch_max=64,
    alpha_ms=20,
    beta_ms=0.4,
    delta_ms_per_token=0.1,
    kv_tokens=100_000,
    cold_start=ColdStart(median_s=90, spread=0),
)
TRITON_SERVER = DynamicServer(
    kind="dynamic", model="m", gpu="g", source="test", batch_max=8, batch_ms={1: 2.0, 8: 4.0}, max_queue=50
)
_COUNTED = (
    *("running", "waiting", "arrived", "finished", "rejected", "failed", "preemptions", "prompt_tokens"),
    *("generation_tokens", "decode_steps", "iterations", "iteration_tokens", "executions"),
)


class FakeFleet:
    """Pods with counters that a test sets by hand."""

    def __init__(self, *names: str) -> None:
        self.now_s = 0.0
        self.values = {name: np.zeros(SLOTS) for name in (*_COUNTED, "kv_usage", "busy_s", "tensor_s", "dram_s")}
        self.counts = {name: np.zeros((SLOTS, len(EDGES) + 1), dtype=np.int64) for name in _HISTOGRAMS}
        self.sums = {name: np.zeros(SLOTS) for name in _HISTOGRAMS}
        self.pods: tuple[PodNow, ...] = ()
        for name in names:
            self.add(name)

    def add(self, name: str, state: PodState = PodState.READY, ready_s: float | None = 0.0) -> None:
        slot = len(self.pods)
        pod = PodNow(name=name, state=state, since_s=0.0, ordered_s=self.now_s, ready_s=ready_s, cap=64, slot=slot)
        self.pods = (*self.pods, pod)

    def state(self, name: str, state: PodState, **fields: Any) -> None:
        self.pods = tuple(replace(pod, state=state, **fields) if pod.name == name else pod for pod in self.pods)

    def counters(self) -> Counters:
        histograms = {
            name: Histograms(edges_s=EDGES, counts=self.counts[name].copy(), sum_s=self.sums[name].copy())
            for name in _HISTOGRAMS
        }
        return Counters(at_s=self.now_s, **{name: value.copy() for name, value in self.values.items()}, **histograms)  # type: ignore[arg-type]


_HISTOGRAMS = ("itl", "ttft", "e2e", "queue")


def play(scraper: Scraper, fleet: Any, until_s: float) -> None:
    """Collect all that is due, and look at the scraper at the end."""
    while scraper.next_s <= until_s:
        fleet.now_s = scraper.next_s
        scraper.collect(fleet)
    fleet.now_s = until_s
    scraper.at(until_s, fleet.pods)


def prometheus_increase(samples: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float | None:
    """`increase` as Prometheus' extrapolatedRate does it, one sample after another."""
    inside = [(at_s, value) for at_s, value in samples if start_s < at_s <= end_s]
    if len(inside) < 2:
        return None
    grown, previous = inside[-1][1] - inside[0][1], inside[0][1]
    for _, value in inside[1:]:
        if value < previous:
            grown += previous
        previous = value
    first_s, last_s = inside[0][0], inside[-1][0]
    sampled_s = last_s - first_s
    between_s = sampled_s / (len(inside) - 1)
    to_start_s, to_end_s = first_s - start_s, end_s - last_s
    if to_start_s >= 1.1 * between_s:
        to_start_s = between_s / 2
    if grown > 0 and inside[0][1] >= 0:
        to_start_s = min(to_start_s, sampled_s * inside[0][1] / grown)
    if to_end_s >= 1.1 * between_s:
        to_end_s = between_s / 2
    return grown * (sampled_s + to_start_s + to_end_s) / sampled_s


def test_pods_are_scraped_half_an_interval_before_the_tick() -> None:
    fleet, scraper = FakeFleet("a"), Scraper(VLLM_SERVER)
    fleet.values["running"][0] = 7
    scraper.at(0.0, fleet.pods)
    assert scraper.latest(Signal.REQUESTS_RUNNING) == {}
    play(scraper, fleet, 15.0)
    assert scraper.last_s == 7.5
    fleet.values["running"][0] = 9
    assert scraper.latest(Signal.REQUESTS_RUNNING) == {"a": 7.0}
    play(scraper, fleet, 30.0)
    assert scraper.latest(Signal.REQUESTS_RUNNING) == {"a": 9.0}


@pytest.mark.parametrize("window_s", [31.0, 60.0, 90.0])
def test_a_rate_is_prometheus_rate(window_s: float) -> None:
    fleet, scraper = FakeFleet("a", "b"), Scraper(VLLM_SERVER)
    rng = np.random.default_rng(3)
    samples: dict[str, list[tuple[float, float]]] = {"a": [], "b": []}
    compared = 0
    while scraper.next_s < 400.0:
        fleet.now_s = scraper.next_s
        fleet.values["generation_tokens"][:2] += rng.integers(0, 400, 2)
        if 100 < fleet.now_s < 115:
            fleet.values["generation_tokens"][1] = 3  # b began anew
        due = scraper.next_s == scraper._next_scrape_s
        scraper.collect(fleet)  # type: ignore[arg-type]
        if due:
            for slot, name in enumerate("ab"):
                samples[name].append((fleet.now_s, float(fleet.values["generation_tokens"][slot])))
        for late_s in (1.0, 7.5, 14.0):
            scraper.at(fleet.now_s + late_s, fleet.pods)
            for name in "ab":
                expected = prometheus_increase(samples[name], scraper.now_s - window_s, scraper.now_s)
                found = scraper.rate(Signal.GENERATION_TOKENS, window_s).get(name)
                if expected is None:
                    assert found is None
                else:
                    assert found == pytest.approx(expected / window_s, rel=1e-9)
                    compared += 1
    assert compared > 60


def test_a_new_pod_has_a_gauge_after_one_scrape_and_a_rate_after_two() -> None:
    fleet, scraper = FakeFleet("a"), Scraper(VLLM_SERVER)
    play(scraper, fleet, 60.0)
    fleet.add("b", ready_s=60.0)
    fleet.values["running"][1] = 4
    scraper.at(60.0, fleet.pods)
    assert set(scraper.latest(Signal.REQUESTS_RUNNING)) == {"a"}
    play(scraper, fleet, 75.0)
    assert scraper.latest(Signal.REQUESTS_RUNNING) == {"a": 0.0, "b": 4.0}
    assert set(scraper.rate(Signal.PROMPT_TOKENS, 60.0)) == {"a"}
    play(scraper, fleet, 90.0)
    assert scraper.rate(Signal.PROMPT_TOKENS, 60.0) == {"a": 0.0, "b": 0.0}


def test_a_pod_that_ends_is_out_of_the_levels_and_still_in_the_histograms() -> None:
    fleet, scraper = FakeFleet("a", "b"), Scraper(VLLM_SERVER)
    play(scraper, fleet, 30.0)
    fleet.counts["ttft"][:2, 2] += 10
    play(scraper, fleet, 60.0)
    fleet.pods = fleet.pods[:1]
    play(scraper, fleet, 75.0)
    assert set(scraper.latest(Signal.REQUESTS_RUNNING)) == {"a"}
    assert scraper.increase(Signal.TIME_TO_FIRST_TOKEN, 60.0)[2] > 15
    play(scraper, fleet, 120.0)
    assert scraper.increase(Signal.TIME_TO_FIRST_TOKEN, 60.0)[2] == 0


def test_mean_and_peak_are_over_the_window() -> None:
    fleet, scraper = FakeFleet("a"), Scraper(VLLM_SERVER)
    for step in range(8):
        fleet.values["waiting"][0] = step
        play(scraper, fleet, 15.0 * (step + 1))
    assert scraper.mean(Signal.REQUESTS_WAITING, 60.0) == {"a": 5.5}
    assert scraper.peak(Signal.REQUESTS_WAITING, 60.0) == {"a": 7.0}
    with pytest.raises(ValueError, match="longer than"):
        scraper.mean(Signal.REQUESTS_WAITING, 1e6)
    with pytest.raises(ValueError, match="no counter"):
        scraper.rate(Signal.REQUESTS_WAITING, 60.0)
    with pytest.raises(ValueError, match="do not export"):
        scraper.latest(Signal.POWER_LIMIT)


def test_gpu_activity_is_a_mean_of_30_s_and_stands_until_the_next() -> None:
    fleet, scraper = FakeFleet("a"), Scraper(VLLM_SERVER)
    seen: list[float | None] = []
    for tick in range(1, 9):
        busy_share = 1.0 if tick <= 2 else 0.25
        fleet.values["busy_s"][0] += 15 * busy_share
        play(scraper, fleet, 15.0 * tick)
        seen.append(scraper.latest(Signal.GR_ENGINE_ACTIVE).get("a"))
    assert seen[:2] == [None, None]  # collected at 30 s, scraped at 37.5 s
    assert seen[2:4] == [1.0, 1.0]
    assert seen[4:6] == [0.25, 0.25]
    assert scraper.latest(Signal.SM_ACTIVE)["a"] == pytest.approx(0.85 * 0.25)


def test_power_follows_activity_and_is_of_known_gpus_only() -> None:
    def drawn(gpu: str, share: float) -> Mapping[str, float]:
        fleet, scraper = FakeFleet("a"), Scraper(VLLM_SERVER.model_copy(update={"gpu": gpu, "gpus": 2}))
        for tick in range(1, 4):
            for name in ("busy_s", "tensor_s", "dram_s"):
                fleet.values[name][0] += 15 * share
            play(scraper, fleet, 15.0 * tick)
        return scraper.latest(Signal.POWER)

    assert drawn("T4", 0.0)["a"] == pytest.approx(2 * 0.2 * 70)
    assert drawn("T4", 1.0)["a"] == pytest.approx(2 * 70)
    assert drawn("T4", 0.0)["a"] < drawn("T4", 0.4)["a"] < drawn("T4", 1.0)["a"]
    assert drawn("Abacus", 0.5) == {}


def test_a_quantile_is_histogram_quantile() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        counts = np.cumsum(rng.integers(0, 20, len(EDGES) + 1)).astype(float)
        share = float(rng.random())
        expected = histogram.percentile(
            Distribution(window_s=60.0, edges=(*EDGES, math.inf), counts=tuple(counts)), 100 * share
        )
        found = quantile_of(EDGES, counts, share)
        assert found == (None if expected is None else pytest.approx(expected.value))
    assert quantile_of(EDGES, np.zeros(len(EDGES) + 1), 0.5) is None


# The snapshot.


def observed(
    server: Server, policy: Policy, until_s: float, fleet: FakeFleet, **given: Any
) -> tuple[Scraper, Snapshot]:
    scraper = Scraper(server)
    play(scraper, fleet, until_s)
    return scraper, Observer(policy, server, scraper).snapshot(
        until_s, fleet.pods, replicas=2, **{"caps_written": {}, **given}
    )


def test_the_snapshot_has_the_signals_of_the_runtimes_preset() -> None:
    for name, levels, latencies in (
        ("VLLM", lab_snapshot.VLLM, lab_snapshot.VLLM_LATENCIES),
        ("Triton", lab_snapshot.TRITON, lab_snapshot.TRITON_LATENCIES),
    ):
        sources = {signal for signal, source in PRESETS[name].sources.items() if not source.aside}  # not what explains
        sources -= {Signal.POWER, Signal.TIME_TO_FIRST_TOKEN} if name == "Triton" else {Signal.POWER}
        assert levels == sources - LATENCY_SIGNALS
        assert latencies == sources & LATENCY_SIGNALS
    assert SUMMARY_WINDOW_S == lab_snapshot.SUMMARY_WINDOW_S
    assert GPU_EVERY_S == lab_snapshot.GPU_EVERY_S


def test_gpus_are_asked_for_as_seldom_as_the_operator_does() -> None:
    """So their quality is judged at every second tick."""
    fleet = FakeFleet("a")
    scraper, ages_s = Scraper(VLLM_SERVER), []
    observer = Observer(a_policy(slos=[TTFT]), VLLM_SERVER, scraper)
    for tick in range(1, 8):
        fleet.values["busy_s"][0] += 9.0
        play(scraper, fleet, 15.0 * tick)
        seen = observer.snapshot(15.0 * tick, fleet.pods, replicas=1, caps_written={}).by_pod
        assert seen[Signal.REQUESTS_RUNNING]["a"].age_s == 7.5
        if tick > 2:  # the exporter collects every 30 s
            ages_s.append(seen[Signal.GR_ENGINE_ACTIVE]["a"].age_s)
    assert ages_s == [7.5, 22.5, 7.5, 22.5, 7.5]


def test_power_is_in_the_snapshot_where_the_policy_limits_it() -> None:
    free = a_policy(slos=[TTFT], batch=a_batch())
    for policy in (free, replace(free, power_watts=300.0)):
        _, snapshot = observed(VLLM_SERVER.model_copy(update={"gpu": "H100"}), policy, 60.0, FakeFleet("a"))
        assert (Signal.POWER in snapshot.by_pod) == (policy.power_watts is not None)


def test_the_snapshot_says_what_the_operators_collector_says_of_the_same_samples() -> None:
    fleet = FakeFleet("chat-a", "chat-b")
    fleet.add("chat-new", ready_s=0.0)
    policy = a_policy(slos=[TTFT, ITL])
    scraper = Scraper(VLLM_SERVER)
    rng = np.random.default_rng(1)
    fleet.pods, everyone = fleet.pods[:2], fleet.pods
    for step in range(8):
        fleet.values["finished"][:2] += rng.integers(0, 50, 2)
        fleet.values["running"][:2] = rng.integers(0, 50, 2)
        fleet.counts["ttft"][:2] += rng.integers(0, 9, (2, len(EDGES) + 1))
        fleet.sums["ttft"][:2] += rng.random(2)
        play(scraper, fleet, 15.0 * (step + 1))
    fleet.pods = everyone
    scraper.at(120.0, fleet.pods)
    snapshot = Observer(policy, VLLM_SERVER, scraper).snapshot(120.0, fleet.pods, replicas=3, caps_written={})

    sources = PRESETS["VLLM"].sources
    latency = LatencyWant(signal=Signal.TIME_TO_FIRST_TOKEN, window_s=60.0, percentiles=(95,), threshold_s=0.5)
    want = Want(
        key="k",
        namespace="ns",
        workload="chat",
        kind="Deployment",
        pods=("chat-a", "chat-b", "chat-new"),
        runtime="VLLM",
        signals=frozenset(),
        latencies=(latency,),
    )
    builder = Builder(want)
    ages_of = {"ns": {"chat-a": 7.5, "chat-b": 7.5}}
    for signal, values in (
        (Signal.REQUESTS_RUNNING, scraper.latest(Signal.REQUESTS_RUNNING)),
        (Signal.REQUESTS_FINISHED, scraper.rate(Signal.REQUESTS_FINISHED, 60.0)),
    ):
        ages = Ages(sources[signal].clock, ages_of, 60.0)
        builder.level(signal, sources[signal], {"ns": values}, ages, 60.0)
        assert snapshot.by_pod[signal] == builder.by_pod[signal]
        ours = next(gap for gap in snapshot.gaps if gap.signal is signal)
        theirs = next(gap for gap in builder.gaps if gap.signal is signal)
        assert (ours.reason, ours.pods) == (theirs.reason, theirs.pods) == (GapReason.PARTIAL, ("chat-new",))

    grown = scraper.increase(Signal.TIME_TO_FIRST_TOKEN, 60.0)
    kept = (0.05, 0.1, 0.5, 1.0, math.inf)  # up to four times the threshold, of 0.5 s
    rising = dict(zip((*EDGES, math.inf), np.cumsum(grown[:-1]).tolist(), strict=True))
    row = {edge: count for edge, count in rising.items() if edge in kept} | {TOTAL: float(grown[-1])}
    source = sources[Signal.TIME_TO_FIRST_TOKEN]
    builder.histogram(latency, source, ("r",), {("ns", "r"): row}, Ages(source.clock, ages_of, 60.0))
    assert snapshot.distributions == {
        **builder.distributions,
        (Signal.INTER_TOKEN_LATENCY, 60): snapshot.distributions[Signal.INTER_TOKEN_LATENCY, 60],
    }


def test_nothing_is_told_before_the_first_scrape() -> None:
    _, snapshot = observed(VLLM_SERVER, a_policy(slos=[TTFT]), 5.0, FakeFleet("a"))
    assert snapshot.by_pod == {}
    assert snapshot.distributions == {}
    assert {gap.signal for gap in snapshot.gaps} >= {Signal.REQUESTS_RUNNING, Signal.TIME_TO_FIRST_TOKEN}
    assert {gap.reason for gap in snapshot.gaps} == {GapReason.ABSENT}


def test_refusals_are_counted_only_where_the_queue_is_bounded() -> None:
    _, snapshot = observed(VLLM_SERVER, a_policy(), 60.0, FakeFleet("a"))
    assert Signal.REQUESTS_REJECTED not in snapshot.by_pod
    assert snapshot.pods[0].queue_bound is None
    bounded = VLLM_SERVER.model_copy(update={"max_queue": 9})
    _, snapshot = observed(bounded, a_policy(), 60.0, FakeFleet("a"))
    assert snapshot.by_pod[Signal.REQUESTS_REJECTED]["a"].value == 0.0
    assert snapshot.pods[0].queue_bound == 9


def test_pods_look_as_the_api_server_shows_them() -> None:
    fleet = FakeFleet("a")
    fleet.now_s = 10.0
    fleet.add("b", PodState.PENDING, None)
    fleet.state("b", PodState.PENDING, since_s=10.0)
    fleet.add("c", PodState.UNSCHEDULABLE, None)
    _, snapshot = observed(VLLM_SERVER, a_policy(), 40.0, fleet)
    a, b, c = snapshot.pods
    assert (a.age_s, a.state_age_s) == (130.0, 40.0)  # booted a cold start before the run began
    assert (b.age_s, b.state_age_s, b.state) == (30.0, 30.0, PodState.PENDING)
    assert c.message
    assert {pod.capacity for pod in snapshot.pods} == {64}
    assert {pod.cap for pod in snapshot.pods} == {None}
    assert snapshot.target is not None
    assert (snapshot.target.replicas, snapshot.target.manager) == (2, "bandkeeper")


def test_a_cap_is_read_back_from_where_the_adapter_writes_it() -> None:
    fleet = FakeFleet("a", "b")
    annotated = a_policy(batch=a_batch(cost_class=CostClass.EVENTUAL))
    _, snapshot = observed(VLLM_SERVER, annotated, 30.0, fleet, caps_written={"a": 16})
    assert [(pod.cap, pod.capacity) for pod in snapshot.pods] == [(16, 64), (None, 64)]
    rolled = a_policy(batch=a_batch(cost_class=CostClass.ROLLOUT))
    _, snapshot = observed(VLLM_SERVER, rolled, 30.0, fleet, caps_written={"a": 16})
    assert [(pod.cap, pod.capacity) for pod in snapshot.pods] == [(64, None), (64, None)]


def test_triton_tells_running_requests_by_its_counters_and_percentiles_by_itself() -> None:
    fleet, scraper = FakeFleet("a", "b"), Scraper(TRITON_SERVER)
    policy = a_policy(
        batching=Batching.DYNAMIC, slos=[replace(TTFT, signal=Signal.END_TO_END_LATENCY, threshold_s=1.0)]
    )
    for step in range(8):
        fleet.values["finished"][:2] += 30
        fleet.values["executions"][0] += 10
        fleet.sums["e2e"][0] += 75.0
        fleet.sums["queue"][0] += 15.0
        fleet.counts["e2e"][0, 2] += 30
        fleet.counts["e2e"][1, 3] += 30
        play(scraper, fleet, 15.0 * (step + 1))
    snapshot = Observer(policy, TRITON_SERVER, scraper).snapshot(120.0, fleet.pods, replicas=2, caps_written={})
    assert snapshot.by_pod[Signal.REQUESTS_RUNNING]["a"].value == pytest.approx(4.0)  # 60 s of compute in 15 s
    assert snapshot.by_pod[Signal.BATCH_SIZE]["a"].value == pytest.approx(3.0)
    assert "b" not in snapshot.by_pod[Signal.BATCH_SIZE]  # nothing was executed there
    assert snapshot.by_pod[Signal.SAMPLES]["b"].value == pytest.approx(2.0)
    assert Signal.GENERATION_TOKENS not in snapshot.by_pod
    told = snapshot.distributions[Signal.END_TO_END_LATENCY, 60]
    assert not told.edges
    assert told.quantiles[50] == pytest.approx(0.75)  # of b, the worse one


def test_without_a_request_triton_has_no_percentile() -> None:
    policy = a_policy(
        batching=Batching.DYNAMIC, slos=[replace(TTFT, signal=Signal.END_TO_END_LATENCY, threshold_s=1.0)]
    )
    _, snapshot = observed(TRITON_SERVER, policy, 60.0, FakeFleet("a"))
    assert snapshot.distributions[Signal.END_TO_END_LATENCY, 60].quantiles == {}
    assert all(gap.signal is not Signal.END_TO_END_LATENCY for gap in snapshot.gaps)
