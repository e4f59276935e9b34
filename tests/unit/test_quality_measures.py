"""The measures, the score and the wasted share, by numbers that a person can check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.quality import measures, peaks
from bandkeeper.quality.advice import TABLE
from bandkeeper.quality.assess import assess
from bandkeeper.quality.types import (
    Assessment,
    Component,
    Counters,
    Evidence,
    Kind,
    Measure,
    Memory,
    Quality,
    Saturated,
)
from tests.unit.test_quality_cases import CASES, DEFAULT, a_pod, judged, pods

H200 = "NVIDIA H200"


def now(evidence: Evidence, **more: Any) -> Assessment:
    return assess(evidence, Memory(), 0.0, **more)[0]


def measure(found: Assessment, name: str) -> Measure:
    return next(one for one in found.measures if one.name == name)


class TestIntensity:
    def test_of_the_counters_stands_beside_the_ridge_point(self) -> None:
        found = measure(now(pods(a_pod(1.0, 0.1, 0.5, model=H200, gpus=2))), measures.INTENSITY)
        assert found.value == pytest.approx(0.1 * 989e12 / (0.5 * 4.8e12))
        assert found.unit == "FLOP/byte"
        assert found.reference == pytest.approx(206.04, abs=0.01)

    def test_pods_are_weighed_by_their_work(self) -> None:
        found = measure(
            now(pods(a_pod(1.0, 0.1, 0.5, model=H200), a_pod(1.0, 0.3, 0.1, model=H200))), measures.INTENSITY
        )
        assert found.value == pytest.approx(0.4 * 989e12 / (0.6 * 4.8e12))

    def test_the_servers_own_count_goes_first(self) -> None:
        own = a_pod(1.0, 0.1, 0.5, model_flops=6e12, model_read_bytes=2e12, model_written_bytes=1e12)
        found = measure(now(pods(own)), measures.INTENSITY)
        assert found.value == pytest.approx(2.0)
        assert "server" in found.source

    def test_a_server_that_counted_no_bytes_is_not_asked(self) -> None:
        own = a_pod(1.0, 0.1, 0.5, model=H200, model_flops=6e12, model_read_bytes=0, model_written_bytes=0)
        assert measure(now(pods(own)), measures.INTENSITY).value == pytest.approx(0.1 * 989e12 / (0.5 * 4.8e12))

    @pytest.mark.parametrize(
        ("pod", "why"),
        [
            (a_pod(1.0, 0.1, 0.5, model="NVIDIA X1"), "NVIDIA X1 is not in the table of peaks; add it"),
            (a_pod(1.0, 0.1, 0.5, model=None), "no exporter names"),
            (a_pod(1.0, 0.1, 0.5, mig=True), "MIG"),
            (a_pod(1.0, 0.1, None), "not both seen"),
            (a_pod(1.0, 0.0, 0.5, fp32_active=0.6), "not the tensor pipes'"),
        ],
    )
    def test_what_cannot_be_told_says_why(self, pod: Counters, why: str) -> None:
        found = measure(now(pods(pod)), measures.INTENSITY)
        assert found.value is None
        assert why in found.source


class TestEfficiency:
    def test_of_two_counts_of_replicas(self) -> None:
        found = measures.efficiency((Saturated(2, 20.0, 0.0), Saturated(4, 30.0, 60.0)), None)
        assert found.value == pytest.approx(0.75)

    def test_after_a_step_down_the_many_are_still_compared_with_the_few(self) -> None:
        found = measures.efficiency((Saturated(4, 30.0, 0.0), Saturated(2, 20.0, 60.0)), None)
        assert found.value == pytest.approx(0.75)

    def test_of_one_count_against_the_model(self) -> None:
        assert measures.efficiency((Saturated(4, 30.0, 0.0),), 10.0).value == pytest.approx(0.75)
        assert measures.efficiency((Saturated(4, 30.0, 0.0),), None).value is None
        assert measures.efficiency((), 10.0).value is None

    def test_the_scalability_law_needs_three_counts(self) -> None:
        def law(n: int, sigma: float = 0.05, kappa: float = 0.002) -> Saturated:
            return Saturated(n, 10 * n / (1 + sigma * (n - 1) + kappa * n * (n - 1)), float(n))

        assert measures.contention([law(1), law(4), replace(law(4), at_s=9.0)]) is None
        found = measures.contention([law(1), law(4), law(8)])
        assert found is not None
        assert found.sigma == pytest.approx(0.05)
        assert found.kappa == pytest.approx(0.002)
        assert "USL 0.050, 0.0020" in measures.efficiency([law(1), law(4), law(8)], None).source

    def test_only_windows_with_work_waiting_at_both_ends_count(self) -> None:
        def run(*steps: tuple[int, float, float]) -> tuple[Saturated, ...]:
            memory = Memory()
            for number, (ready, waiting, throughput) in enumerate(steps):
                seen = pods(*[a_pod(1.0, 0.1, 0.6)] * ready, waiting=waiting, throughput=throughput)
                memory = assess(seen, memory, 60.0 * number)[1]
            return memory.saturated

        full, few, none = (2, 9, 20), (2, 1, 20), (2, 0, 20)
        assert run(full, full, full) == (Saturated(2, 20, 120.0),)
        assert run(full, full, few) == ()  # fewer waiting than replicas
        assert run(full, none, full) == ()
        assert run(full, full, (3, 9, 20)) == ()  # one came in between
        more = (4, 9, 30)
        assert run(full, full, full, (4, 9, 0), more, more) == (Saturated(2, 20, 120.0), Saturated(4, 30, 300.0))

    def test_the_first_window_of_a_new_replica_is_not_its_work(self) -> None:
        """What it begins it has not finished: taken for work, one replica more would seem to have brought much."""
        memory = Memory()
        for number, (ready, throughput) in enumerate([(1, 10), (1, 10), (1, 10), (2, 11), (2, 13), (2, 20), (3, 20)]):
            seen = pods(*[a_pod(1.0, 0.1, 0.6)] * ready, waiting=50, throughput=throughput)
            memory = assess(seen, memory, 60.0 * number)[1]
        assert memory.saturated == (Saturated(1, 10, 120.0), Saturated(2, 20, 300.0))

    def test_windows_are_forgotten_after_an_hour(self) -> None:
        old = Saturated(2, 20.0, 0.0)
        assert measures.remembered((old,), Saturated(4, 30.0, 3601.0)) == (Saturated(4, 30.0, 3601.0),)
        assert measures.remembered((old,), Saturated(2, 30.0, 60.0)) == (Saturated(2, 23.0, 60.0),)


def test_balance_is_the_spread_of_the_components() -> None:
    found = measure(now(pods(a_pod(1.0, 0.93, 0.40))), measures.BALANCE)
    assert found.value == pytest.approx(0.25)  # of 1.0 and 0.5
    assert measures.balance([0.4]).value is None


class TestStability:
    def test_has_its_own_usual_value_for_reference(self) -> None:
        memory, seen = Memory(), replace(pods(a_pod(1.0, 0.1, 0.6)), latency_cv=0.8)
        for number in range(12):
            found, memory = assess(seen, memory, 60.0 * number)
        assert measure(found, measures.STABILITY).reference == pytest.approx(0.8)
        found, _ = assess(replace(seen, latency_cv=1.6), memory, 12 * 60.0)
        assert measure(found, measures.STABILITY).value == 1.6
        assert found.quality is Quality.EFFICIENT, "never a sign of overload by itself"

    def test_looks_within_a_window_count_once(self) -> None:
        memory, seen = Memory(), replace(pods(a_pod(1.0, 0.1, 0.6)), latency_cv=0.8)
        for number in range(12):
            _, memory = assess(seen, memory, 5.0 * number)
        assert memory.latency is not None
        assert memory.latency.count == 1


class TestScore:
    @pytest.mark.parametrize(
        ("busy", "tensor", "dram", "score"),
        [
            (1.0, 0.0, 0.8, 100),
            (0.7, 0.0, 0.48, 100),  # 60 % of practical bandwidth in 70 % of the time
            (0.35, 0.0, 0.24, 50),
            (1.0, 0.0, 0.24, 50),
            (0.0, 0.0, 0.0, 0),
        ],
    )
    def test_is_work_done_in_held_time(self, busy: float, tensor: float, dram: float, score: float) -> None:
        assert now(pods(a_pod(busy, tensor, dram))).score == pytest.approx(score)

    def test_without_the_counters_of_work_there_is_none(self) -> None:
        assert now(pods(Counters(age_s=1, gpu_utilization=0.1))).score is None
        assert now(pods(Counters(age_s=1, gpu_utilization=0.9))).score is None

    def test_overload_takes_half(self) -> None:
        overloaded = judged(next(case for case in CASES if case.name == "a queue that grows"), DEFAULT)
        assert overloaded.score == 50


class TestWaste:
    def of(self, evidence: Evidence) -> tuple[float, float]:
        waste = now(evidence).waste
        assert waste is not None
        assert waste.share == pytest.approx(waste.idle + waste.below)
        return round(waste.idle, 6), round(waste.below, 6)

    def test_idle_is_the_time_in_which_nothing_ran(self) -> None:
        assert self.of(pods(a_pod(0.2, 0.1, 0.1), a_pod(1.0, 0.1, 0.6))) == (0.4, 0.0)

    def test_decode_below_its_knee_is_no_waste(self) -> None:
        assert self.of(pods(a_pod(1.0, 0.03, 0.4), batch_gain=0.3, below_knee=True)) == (0.0, 0.0)

    def test_replicas_beyond_those_that_would_do_are(self) -> None:
        assert self.of(pods(*[a_pod(1.0, 0.03, 0.6)] * 10, replicas_needed=1, batch_gain=0.1)) == (0.0, 0.9)
        assert self.of(pods(a_pod(1.0, 0.03, 0.6), replicas_needed=0)) == (0.0, 0.0)
        assert self.of(pods(a_pod(1.0, 0.03, 0.6), replicas_needed=3)) == (0.0, 0.0)

    def test_a_batch_held_too_small_while_work_waits_is(self) -> None:
        assert self.of(pods(a_pod(1.0, 0.03, 0.4), batch_gain=0.3, waiting=50)) == (0.0, 0.7)

    def test_counters_tell_where_no_model_does(self) -> None:
        tiny = pods(a_pod(0.8, 0.093, 0.16, model="NVIDIA A100-SXM4-80GB"), kind=Kind.TRAINING)
        assert self.of(tiny) == (0.2, round(0.8 * (1 - 0.3 / 0.8 / 0.6), 6))

    def test_unknown_quality_tells_no_waste(self) -> None:
        assert now(pods(a_pod(1.0, None, None))).waste is None


class TestPeaks:
    @pytest.mark.parametrize(
        ("model", "teraflops", "terabytes"),
        [
            ("Tesla V100-SXM2-32GB", 125, 0.90),
            ("Tesla V100-PCIE-16GB", 112, 0.90),
            ("Tesla T4", 65, 0.32),
            ("NVIDIA A10G", 70, 0.60),
            ("NVIDIA A10", 125, 0.60),
            ("NVIDIA A100-SXM4-40GB", 312, 1.555),
            ("NVIDIA A100-PCIE-40GB", 312, 1.555),
            ("NVIDIA A100-SXM4-80GB", 312, 2.039),
            ("NVIDIA A100 80GB PCIe", 312, 1.935),
            ("NVIDIA-A100-SXM4-80GB", 312, 2.039),  # blanks replaced by the exporter
            ("NVIDIA L4", 121, 0.30),
            ("NVIDIA L40S", 362.05, 0.864),
            ("NVIDIA H100 80GB HBM3", 989, 3.35),
            ("NVIDIA H100 PCIe", 756.5, 2.0),
            ("NVIDIA H200", 989, 4.8),
            ("NVIDIA GH200 480GB", 989, 4.0),
            ("NVIDIA B200", 2250, 7.7),
            ("NVIDIA GB200", 2500, 8.0),
        ],
    )
    def test_are_found_by_product_name(self, model: str, teraflops: float, terabytes: float) -> None:
        found = peaks.DEFAULT.of(model)
        assert found is not None
        assert found.flops == pytest.approx(teraflops * 1e12)
        assert found.bandwidth == pytest.approx(terabytes * 1e12)

    @pytest.mark.parametrize("model", [None, "", "NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "L4x"])
    def test_are_not_guessed(self, model: str | None) -> None:
        assert peaks.DEFAULT.of(model) is None

    def test_a_user_adds_and_replaces(self) -> None:
        own = peaks.table(
            {
                "RTX A6000": {"teraflops": 155, "terabytesPerSecond": 0.768, "watts": 300},
                "H200": {"teraflops": 900, "terabytesPerSecond": 4, "watts": 700, "nvlinkGigabytesPerSecond": 400},
            }
        )
        added, replaced = own.of("NVIDIA RTX A6000"), own.of("NVIDIA H200")
        assert added is not None
        assert replaced is not None
        assert (added.flops, replaced.flops, replaced.nvlink) == (155e12, 900e12, 400e9)
        found = measure(now(pods(a_pod(1.0, 0.1, 0.5, model="NVIDIA RTX A6000")), table=own), measures.INTENSITY)
        assert found.reference == pytest.approx(155 / 0.768)

    @pytest.mark.parametrize(
        ("name", "figures", "sentence"),
        [
            ("X", {"teraflops": 1, "watts": 1}, "terabytesPerSecond is missing"),
            ("X", {"teraflops": 0, "terabytesPerSecond": 1, "watts": 1}, "teraflops must be a number above 0"),
            ("X", {"teraflops": 1, "terabytesPerSecond": float("nan"), "watts": 1}, "terabytesPerSecond must be"),
            ("X", {"teraflops": 1, "terabytesPerSecond": 1, "watts": 1, "cores": 5}, "cores is not known; write"),
            ("?", {"teraflops": 1, "terabytesPerSecond": 1, "watts": 1}, "write its product name"),
        ],
    )
    def test_a_bad_entry_says_what_to_write(self, name: str, figures: dict[str, float], sentence: str) -> None:
        with pytest.raises(ValueError, match="GPU") as told:
            peaks.table({name: figures})
        assert sentence in str(told.value)


class TestAdvice:
    def test_every_remedy_is_given_in_a_case(self) -> None:
        given = {one.remedy for case in CASES for one in judged(case, DEFAULT).advice}
        assert given == {row.remedy for row in TABLE}

    def test_hardware_for_a_server_that_is_no_llm(self) -> None:
        slow = pods(
            a_pod(1.0, 0.4, 0.4), kind=Kind.DYNAMIC_BATCHING, slo_unreachable=True, objective=Objective.BALANCED
        )
        assert [one.remedy for one in now(slow).advice] == ["FasterHardware"]

    def test_of_a_slow_rank_its_own_state_is_evidence(self) -> None:
        starved = judged(next(case for case in CASES if case.culprit == "pod-3"), DEFAULT)
        assert starved.bottleneck is not None
        assert starved.bottleneck.evidence == (
            "rank pod-3 is busy 40% of the time, others up to 100%: they wait for it;"
            " its CPU is throttled 50% of the time"
        )
        assert starved.advice[0].evidence == starved.bottleneck.evidence

    def test_a_throttled_cpu_is_called_that(self) -> None:
        found = now(pods(a_pod(0.66, 0.05, 0.30, cpu_used=2.0, cpu_limit=4, cpu_throttled=0.4)))
        assert found.bottleneck is not None
        assert found.bottleneck.evidence == "the pods' CPU limit throttles them 40% of the time"
        assert found.bottleneck.used == 0.4
        assert found.advice[0].evidence == found.bottleneck.evidence
        used = now(pods(a_pod(0.66, 0.05, 0.30, cpu_used=3.8, cpu_limit=4, cpu_throttled=0.1))).bottleneck
        assert used is not None
        assert used.evidence == "CPU is 95% used"

    def test_gpus_of_pods_are_ranks_of_one_job(self) -> None:
        def pair(*busy: float, alike: float = 1.0) -> Counters:
            apart = tuple((f"GPU {number}", each) for number, each in enumerate(busy))
            return a_pod(alike, 0.3, 0.3, gpus=2, busy_by_gpu=apart)

        found = now(pods(pair(), pair(1.0, 0.5, alike=0.75), kind=Kind.TRAINING, waiting=None))
        assert found.culprit == "pod-1"
        assert found.bottleneck is not None
        assert found.bottleneck.evidence.startswith("rank GPU 1 of pod-1 is busy 50% of the time, others up to 100%")
        assert found.bottleneck.used == 0.5
        unused = now(pods(pair(1.0, 0.0), kind=Kind.TRAINING, waiting=None)).bottleneck
        assert unused is not None
        assert "or it has no part in the job" in unused.evidence
        odd = now(pods(pair(1.0, 87.0), pair(), kind=Kind.TRAINING, waiting=None))
        assert odd.culprit is None

    def test_ranks_are_compared_within_their_job_alone(self) -> None:
        def replica(busy: float, job: str | None) -> Counters:
            return a_pod(busy, 0.1, 0.5 * busy, job=job)

        apart = now(pods(replica(1.0, "a"), replica(1.0, "a"), replica(0.6, "b"), replica(0.6, "b")))
        assert apart.culprit is None
        assert now(pods(replica(1.0, None), replica(0.6, None))).culprit is None
        assert now(pods(replica(1.0, "a"), replica(0.6, "a"))).culprit == "pod-1"


@pytest.mark.parametrize(
    ("waiting", "says"),
    [(0.0, "nothing waits, and"), (1.0, "hardly anything waits (1 at 2 replicas), and")],
)
def test_a_request_that_waits_now_and_then_is_not_told_to_be_none(waiting: float, says: str) -> None:
    found = now(pods(a_pod(0.3, 0.1, 0.1), a_pod(0.3, 0.1, 0.1), waiting=waiting)).bottleneck
    assert found is not None
    assert found.component is Component.DEMAND
    assert found.evidence.startswith(says)


def test_a_network_at_its_capacity_is_shared() -> None:
    full = next(case for case in CASES if case.name == "payloads fill the network")
    found = judged(full, DEFAULT).bottleneck
    assert found is not None
    assert found.shared
    guessed = judged(next(case for case in CASES if case.name == "training, reads from disk"), DEFAULT).bottleneck
    assert guessed is not None
    assert (guessed.component, guessed.shared, guessed.used) == (Component.STORAGE, False, None)
