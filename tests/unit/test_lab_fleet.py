"""The simulated fleet: pods' lives, the router, and what is counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bandkeeper.api.snapshot import PodState
from bandkeeper.lab import kernel
from bandkeeper.lab.fleet import Fleet, Status
from tests.unit.lab_fleets import a_dynamic_server, a_server, in_state, poisson, requests_at

NOBODY = requests_at([])


def states(fleet: Fleet) -> list[str]:
    return [f"{pod.name} {pod.state}" for pod in fleet.pods]


class TestPods:
    def test_start_ready_and_later_ones_come_after_a_cold_start(self) -> None:
        fleet = Fleet(a_server(), NOBODY, replicas=2, seed=1)
        assert states(fleet) == ["pod-0000 Ready", "pod-0001 Ready"]
        fleet.advance(100.0)
        fleet.scale(3)
        assert states(fleet)[2:] == ["pod-0002 Pending"]
        fleet.advance(189.9)
        assert states(fleet)[2:] == ["pod-0002 Pending"]
        fleet.advance(190.0)
        assert states(fleet)[2:] == ["pod-0002 Ready"]
        assert (fleet.pods[2].ordered_s, fleet.pods[2].ready_s, fleet.pods[2].since_s) == (100.0, 190.0, 190.0)

    def test_cold_starts_are_log_normal_around_the_median(self) -> None:
        server = a_server(cold_start={"median_s": 90, "spread": 0.3})
        fleet = Fleet(server, NOBODY, replicas=0, seed=1)
        fleet.scale(500)
        fleet.advance(3600.0)
        logarithms = np.log(fleet.outcome().ledger.ready_s)
        assert np.exp(np.median(logarithms)) == pytest.approx(90.0, rel=0.05)
        assert np.std(logarithms) == pytest.approx(0.3, rel=0.1)

    def test_a_pods_cold_start_depends_on_its_number_alone(self) -> None:
        server = a_server(cold_start={"median_s": 90, "spread": 0.3})
        at_once, one_by_one = (Fleet(server, NOBODY, replicas=1, seed=7) for _ in range(2))
        at_once.scale(4)
        for replicas in (2, 1, 3, 4):
            one_by_one.scale(replicas)
        at_once.advance(600.0)
        one_by_one.advance(600.0)
        ready_s = at_once.outcome().ledger.ready_s
        # The pod that was withdrawn is number 1.
        assert one_by_one.outcome().ledger.ready_s[[0, 2, 3]].tolist() == ready_s[[0, 2, 3]].tolist()

    def test_leave_not_ready_first_and_newest_first(self) -> None:
        fleet = Fleet(a_server(nodes_gpus=5), NOBODY, replicas=3, seed=1)
        fleet.scale(7)
        assert [pod.state for pod in fleet.pods[3:]] == [PodState.PENDING] * 2 + [PodState.UNSCHEDULABLE] * 2
        fleet.scale(4)
        assert states(fleet) == ["pod-0000 Ready", "pod-0001 Ready", "pod-0002 Ready", "pod-0003 Pending"]
        fleet.scale(2)
        assert states(fleet) == ["pod-0000 Ready", "pod-0001 Ready"]

    def test_drain_before_they_end(self) -> None:
        fleet = Fleet(a_server(), requests_at([0.0, 0.0], output=[51, 101]), replicas=2, seed=1)
        fleet.advance(0.5)
        fleet.scale(1)
        assert states(fleet) == ["pod-0000 Ready", "pod-0001 Terminating"]
        fleet.advance(30.0)
        assert states(fleet) == ["pod-0000 Ready"]
        outcome = fleet.outcome()
        assert outcome.status.tolist() == [Status.FINISHED] * 2
        assert outcome.ledger.ended_s[1] == outcome.end_s[1] == pytest.approx(0.015 + 100 * 0.0204)

    def test_that_drain_get_no_more_requests(self) -> None:
        fleet = Fleet(a_server(), requests_at([0.0, 0.0, 1.0, 1.1, 1.2]), replicas=2, seed=1)
        fleet.advance(0.5)
        fleet.scale(1)
        fleet.advance(1.9)
        assert fleet.counters().arrived.tolist()[:2] == [4, 0]

    def test_that_drain_too_long_fail_what_they_have(self) -> None:
        server = a_server(drain_s=10, batch_max=1)
        fleet = Fleet(server, requests_at([0.0, 0.0, 0.0], output=1000), replicas=1, seed=1)
        fleet.advance(5.0)
        fleet.scale(0)
        fleet.advance(60.0)
        outcome = fleet.outcome()
        assert outcome.status.tolist() == [Status.FAILED] * 3
        assert outcome.end_s.tolist() == [15.0] * 3
        assert outcome.ledger.ended_s.tolist() == [15.0]

    @pytest.mark.parametrize(("output", "ended_s"), [(1000, 6.0), (101, 0.015 + 100 * 0.0204)])
    def test_beyond_the_clusters_gpus_wait_for_one_that_ends(self, output: int, ended_s: float) -> None:
        server = a_server(nodes_gpus=4, gpus=2, drain_s=5, cold_start={"median_s": 1, "spread": 0})
        fleet = Fleet(server, requests_at([0.0, 0.0], output=output), replicas=2, seed=1)
        fleet.advance(1.0)
        fleet.scale(1)
        fleet.scale(2)
        assert [pod.state for pod in fleet.pods] == [PodState.READY, PodState.TERMINATING, PodState.UNSCHEDULABLE]
        fleet.advance(600.0)
        ledger = fleet.outcome().ledger
        assert ledger.ended_s[1] == ledger.scheduled_s[2] == pytest.approx(ended_s)
        assert ledger.ordered_s[2] == 1.0
        assert ledger.ready_s[2] == ledger.ended_s[1] + 1.0

    def test_that_never_got_a_gpu_were_never_scheduled(self) -> None:
        fleet = Fleet(a_server(nodes_gpus=1), NOBODY, replicas=1, seed=1)
        fleet.scale(2)
        fleet.advance(60.0)
        fleet.scale(1)
        ledger = fleet.outcome().ledger
        assert math.isnan(ledger.scheduled_s[1])
        assert ledger.ended_s[1] == 60.0

    def test_that_crash_fail_their_requests_and_boot_again(self) -> None:
        server = a_server(crashes_per_hour=60.0)
        fleet = Fleet(server, requests_at(np.arange(0.0, 600.0, 0.05), output=400), replicas=1, seed=3)
        fleet.advance(1.0)
        while fleet.pods[0].state is PodState.READY:
            before = fleet.counters()
            fleet.advance(fleet.now_s + 0.01)
        crashed = fleet.pods[0]
        assert (crashed.name, crashed.state, crashed.ready_s) == ("pod-0000", PodState.PENDING, None)
        assert fleet.counters().arrived.sum() == 0
        outcome = fleet.outcome()
        assert (outcome.status == Status.FAILED).sum() == pytest.approx(before.running[0] + before.waiting[0], abs=1)
        fleet.advance(crashed.since_s + 89.9)
        assert fleet.held > 1700
        fleet.advance(crashed.since_s + 90.1)
        assert fleet.held == 0
        assert fleet.pods[0].ready_s == crashed.since_s + 90.0

    def test_crash_at_the_same_time_however_often_one_looks(self) -> None:
        server = a_server(crashes_per_hour=60.0)
        fleets = [Fleet(server, NOBODY, replicas=3, seed=3) for _ in range(2)]
        for to_s in np.arange(1.0, 601.0):
            fleets[0].advance(float(to_s))
        fleets[1].advance(600.0)
        assert fleets[0].pods == fleets[1].pods
        assert all(pod.since_s > 0.0 for pod in fleets[0].pods)

    def test_crash_as_often_as_said(self) -> None:
        server = a_server(crashes_per_hour=6.0, cold_start={"median_s": 0.0, "spread": 0.0})
        fleet = Fleet(server, NOBODY, replicas=50, seed=3)
        crashes, now_s = 0, 0.0
        while now_s < 3600.0:
            now_s += 5.0
            fleet.advance(now_s)
            crashes += sum(pod.ready_s is not None and pod.ready_s > now_s - 5.0 for pod in fleet.pods)
        assert crashes == pytest.approx(300, rel=0.15)

    def test_use_rows_again_and_begin_there_at_0(self) -> None:
        fleet = Fleet(a_server(), requests_at(poisson(5.0, 500)), replicas=1, seed=1)
        names = set()
        for tick in range(20):
            fleet.advance(10.0 * tick)
            fleet.scale(2 + 6 * (tick % 2))
            names |= {pod.name for pod in fleet.pods}
        assert len(fleet.counters().arrived) == 8
        assert len(names) > 50
        new = in_state(fleet, PodState.PENDING)
        assert new
        assert fleet.counters().arrived[[pod.slot for pod in new]].sum() == 0

    def test_scale_below_0_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 0"):
            Fleet(a_server(), NOBODY, replicas=1, seed=1).scale(-1)

    def test_time_does_not_go_back(self) -> None:
        fleet = Fleet(a_server(), NOBODY, replicas=1, seed=1)
        fleet.advance(5.0)
        with pytest.raises(ValueError, match="it is 5"):
            fleet.advance(4.0)


class TestRouter:
    def test_gives_to_the_pod_with_the_fewest_requests(self) -> None:
        # The first four go around; the long ones stay, and the later ones meet them only when all have as many.
        fleet = Fleet(
            a_server(),
            requests_at([0.0, 0.1, 0.2, 0.3, 5.0, 5.0], output=[1000, 10, 1000, 10, 500, 500]),
            replicas=4,
            seed=1,
        )
        fleet.advance(4.9)
        assert fleet.counters().running.tolist()[:4] == [1, 0, 1, 0]
        fleet.advance(6.0)
        assert fleet.counters().running.tolist()[:4] == [1, 1, 1, 1]

    def test_takes_turns_between_equals(self) -> None:
        fleet = Fleet(a_server(), requests_at(np.arange(0.0, 120.0, 2.0), output=5), replicas=3, seed=1)
        fleet.advance(130.0)
        assert fleet.counters().finished.tolist()[:3] == [20, 20, 20]

    def test_holds_requests_while_no_pod_is_ready(self) -> None:
        fleet = Fleet(a_server(), requests_at([1.0, 2.0, 3.0]), replicas=0, seed=1)
        fleet.scale(1)
        fleet.advance(89.0)
        assert fleet.held == 3
        assert fleet.outcome().status.tolist() == [Status.UNSERVED] * 3
        fleet.advance(100.0)
        assert fleet.held == 0
        outcome = fleet.outcome()
        assert outcome.status.tolist() == [Status.FINISHED] * 3
        # All are admitted at the first step, so their first tokens come out together; the wait counts from arrival.
        assert outcome.first_token_s == pytest.approx(90.0 + 0.005 + 0.0001 * 300)
        counters = fleet.counters()
        assert counters.ttft.sum_s[0] == pytest.approx(3 * 90.035 - 6.0)
        assert counters.queue.sum_s[0] == pytest.approx(3 * 90.0 - 6.0)

    def test_brings_a_new_pod_slowly_into_the_turn(self) -> None:
        shares = {}
        for slow_start_s in (0.0, 60.0):
            server = a_server(slow_start_s=slow_start_s, cold_start={"median_s": 30, "spread": 0})
            fleet = Fleet(server, requests_at(poisson(20.0, 4000), output=50), replicas=3, seed=1)
            fleet.advance(70.0)
            fleet.scale(4)
            fleet.advance(110.0)
            counters = fleet.counters()
            shares[slow_start_s] = counters.running[3] / counters.running[:4].sum()
            fleet.advance(190.0)
            counters = fleet.counters()
            assert counters.running[3] / counters.running[:4].sum() == pytest.approx(0.25, abs=0.06)
        assert shares[0.0] == pytest.approx(0.25, abs=0.05)
        assert 0.0 < shares[60.0] < 0.12

    def test_a_full_queue_sheds(self) -> None:
        server = a_server(batch_max=2, max_queue=3)
        fleet = Fleet(server, requests_at([0.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5], output=500), replicas=1, seed=1)
        fleet.advance(2.0)
        outcome = fleet.outcome()
        assert outcome.status.tolist() == [Status.UNSERVED] * 5 + [Status.REJECTED] * 2
        assert outcome.end_s[5:].tolist() == [1.4, 1.5]
        assert fleet.counters().rejected[0] == 2


class TestCap:
    def test_comes_into_force_after_its_delay(self) -> None:
        server = a_server(cap_delay_s=5, batch_max=8)
        fleet = Fleet(server, requests_at(poisson(50.0, 3000), output=100), replicas=1, seed=1)
        fleet.advance(10.0)
        fleet.set_cap(4)
        assert (fleet.cap, fleet.pods[0].cap) == (4, 8)
        fleet.advance(14.9)
        assert fleet.counters().running[0] == 8
        fleet.advance(20.0)
        assert fleet.pods[0].cap == 4
        assert fleet.counters().running[0] == 4

    def test_of_a_new_pod_is_what_was_ordered_last(self) -> None:
        fleet = Fleet(a_server(cap_delay_s=30), NOBODY, replicas=1, seed=1, cap=32)
        fleet.scale(2)
        fleet.advance(80.0)
        fleet.set_cap(16)
        assert [pod.cap for pod in fleet.pods] == [32, 16]
        fleet.advance(90.0)
        fleet.set_cap(20)
        assert [pod.cap for pod in fleet.pods] == [32, 16]
        fleet.advance(110.0)  # the 16 come into force, where they were not booted with
        assert [pod.cap for pod in fleet.pods] == [16, 16]
        fleet.advance(120.0)
        assert [pod.cap for pod in fleet.pods] == [20, 20]

    def test_ordered_before_a_pod_booted_does_not_reach_it_afterwards(self) -> None:
        fleet = Fleet(a_server(cap_delay_s=30), NOBODY, replicas=1, seed=1)
        fleet.scale(2)
        fleet.advance(80.0)
        fleet.set_cap(16)
        fleet.advance(85.0)
        fleet.set_cap(24)
        fleet.advance(111.0)
        assert [pod.cap for pod in fleet.pods] == [16, 24]

    @pytest.mark.parametrize(("ordered", "kept"), [(0, 1), (1000, 64)])
    def test_stays_within_the_capacity(self, ordered: int, kept: int) -> None:
        fleet = Fleet(a_server(cap_delay_s=0), NOBODY, replicas=1, seed=1)
        fleet.set_cap(ordered)
        assert (fleet.cap, fleet.pods[0].cap) == (kept, kept)


class TestTokens:
    def test_of_a_decoding_request_wait_for_anothers_prefill(self) -> None:
        requests = requests_at([0.0, 0.5], prompt=[100, 1000], output=[51, 2])
        fleet = Fleet(a_server(), requests, replicas=1, seed=1, itl_thresholds_s=(0.1, 0.02, 0.0206))
        fleet.advance(10.0)
        outcome = fleet.outcome()
        assert outcome.tokens.tolist() == [50, 1]
        # One step of the first carries the second's prefill: 20.4 + 5 + 100 ms. In the step after it both decode.
        assert outcome.late_tokens.tolist() == [[1, 50, 2], [0, 1, 1]]
        assert outcome.end_s[0] == pytest.approx(0.015 + 48 * 0.0204 + 0.1254 + 0.0208)

    def test_of_a_preempted_request_wait_for_its_return(self) -> None:
        server = a_server(kv_tokens=300, beta_ms=0.0)
        fleet = Fleet(
            server, requests_at([0.0, 0.0], prompt=100, output=100), replicas=1, seed=1, itl_thresholds_s=(0.1,)
        )
        fleet.advance(30.0)
        outcome = fleet.outcome()
        assert fleet.counters().preemptions[0] == 1
        # The second's prefill falls into a step of the first. Both decode until their 150 + 149 tokens leave no room
        # for two more; the second comes back when the first is done, and its 150 tokens are computed again.
        assert outcome.end_s[0] == pytest.approx(0.015 + 0.035 + 98 * 0.02)
        assert outcome.end_s[1] == pytest.approx(outcome.end_s[0] + 0.005 + 0.0001 * 150 + 49 * 0.02)
        assert outcome.tokens.tolist() == [99, 99]
        assert outcome.late_tokens[:, 0].tolist() == [0, 1]
        assert fleet.counters().generation_tokens[0] == 200

    def test_of_a_request_that_outgrows_the_cache_are_cut(self) -> None:
        server = a_server(kv_tokens=300)
        fleet = Fleet(server, requests_at([0.0, 0.0], prompt=[100, 300], output=1000), replicas=1, seed=1)
        fleet.advance(30.0)
        outcome = fleet.outcome()
        assert outcome.status.tolist() == [Status.FINISHED, Status.FAILED]
        assert outcome.tokens.tolist() == [198, 0]

    def test_are_the_same_in_every_account(self) -> None:
        requests = requests_at(poisson(6.0, 3000), prompt=np.arange(3000) % 900 + 1, output=np.arange(3000) % 170 + 1)
        thresholds_s = (0.03, 0.1)
        fleet = Fleet(a_server(kv_tokens=12_000), requests, replicas=2, seed=1, itl_thresholds_s=thresholds_s)
        for to_s in (123.4, 400.0, 900.0):
            fleet.advance(to_s)
            outcome, totals, counters = fleet.outcome(), fleet.token_totals(), fleet.counters()
            assert outcome.tokens.sum() == totals.counts.sum() == counters.itl.counts.sum()
            began = np.isfinite(outcome.first_token_s)
            assert counters.generation_tokens.sum() == outcome.tokens.sum() + began.sum()
            assert counters.prompt_tokens.sum() == requests.prompt_tokens[began].sum()
            for index, threshold_s in enumerate(thresholds_s):
                late = outcome.late_tokens[:, index].sum()
                assert totals.late_share(threshold_s) == pytest.approx(late / outcome.tokens.sum(), rel=1e-12)
        assert counters.preemptions.sum() > 10
        finished = outcome.status == Status.FINISHED
        assert outcome.tokens[finished].tolist() == (requests.output_tokens[finished] - 1).tolist()

    def test_by_time_tell_when_they_came(self) -> None:
        requests = requests_at(np.concatenate([np.arange(0.0, 60.0, 10.0), np.arange(60.0, 80.0, 1.0)]), output=101)
        fleet = Fleet(a_server(), requests, replicas=1, seed=1, itl_thresholds_s=(0.0206,))
        fleet.advance(100.0)
        totals = fleet.token_totals()
        assert totals.bin_s == 15.0
        assert totals.between(0.0, 60.0).sum() == 600
        assert totals.between(60.0).sum() == 2000
        assert totals.late_share(0.0206, 0.0, 60.0) == 0.0
        share = totals.late_share(0.0206, 60.0)
        assert share is not None
        assert share > 0.5
        assert totals.quantile(0.5, 0.0, 60.0) == pytest.approx(0.0204, rel=0.05)
        assert totals.quantile(0.5, 105.0) is None
        assert totals.late_share(0.0206, 105.0) is None

    def test_thresholds_have_a_bound(self) -> None:
        with pytest.raises(ValueError, match="too many"):
            Fleet(a_server(), NOBODY, replicas=1, seed=1, itl_thresholds_s=np.linspace(0.0111, 0.0999, 60).tolist())


class TestDynamicBatching:
    def test_goes_when_full_or_after_the_delay(self) -> None:
        server = a_dynamic_server(max_delay_ms=5, batch_max=4)
        fleet = Fleet(server, requests_at([0.0, 1.0, 1.001, 1.002, 1.003]), replicas=1, seed=1)
        fleet.advance(2.0)
        end_s = fleet.outcome().end_s
        assert end_s[0] == pytest.approx(0.005 + 0.00213)
        assert end_s[1:] == pytest.approx(1.003 + 0.00276)
        counters = fleet.counters()
        assert (counters.executions[0], counters.finished[0]) == (2, 5)
        assert np.isnan(counters.kv_usage[0])
        assert np.isnan(fleet.outcome().first_token_s).all()

    def test_that_drains_does_not_wait_for_more(self) -> None:
        fleet = Fleet(a_dynamic_server(max_delay_ms=5000), requests_at([0.0]), replicas=1, seed=1)
        fleet.advance(1.0)
        fleet.scale(0)
        fleet.advance(2.0)
        assert fleet.outcome().end_s == pytest.approx(1.0 + 0.00213)


class TestGpuActivity:
    """Shares of the GPU that tell the quality classes apart: what DCGM would show."""

    @staticmethod
    def shares(fleet: Fleet, from_s: float = 30.0, to_s: float = 90.0) -> tuple[float, float, float]:
        fleet.advance(from_s)
        before = fleet.counters()
        fleet.advance(to_s)
        after = fleet.counters()
        return tuple(
            float(getattr(after, name)[0] - getattr(before, name)[0]) / (to_s - from_s)
            for name in ("busy_s", "tensor_s", "dram_s")
        )  # type: ignore[return-value]

    def test_idle_with_memory_held(self) -> None:
        assert self.shares(Fleet(a_server(), NOBODY, replicas=1, seed=1)) == (0.0, 0.0, 0.0)

    def test_decoding_is_bound_by_memory(self) -> None:
        fleet = Fleet(a_server(), requests_at([0.0] * 4, prompt=10, output=5000), replicas=1, seed=1)
        busy, tensor, dram = self.shares(fleet)
        assert busy == pytest.approx(1.0)
        assert tensor < 0.05
        assert dram == pytest.approx(0.71, abs=0.01)

    def test_prefill_is_bound_by_compute(self) -> None:
        server = a_server(prefill_tensor=0.8)
        fleet = Fleet(server, requests_at(np.arange(0.0, 100.0, 0.2), prompt=2000, output=1), replicas=1, seed=1)
        busy, tensor, dram = self.shares(fleet)
        assert busy == pytest.approx(1.0, abs=0.02)
        assert tensor == pytest.approx(0.8, abs=0.02)
        assert dram == pytest.approx(0.2, abs=0.02)

    def test_tiny_kernels_keep_busy_and_fill_nothing(self) -> None:
        server = a_dynamic_server(max_delay_ms=0.0)
        fleet = Fleet(server, requests_at(np.arange(0.0, 100.0, 0.00213), duration_s=100.0), replicas=1, seed=1, cap=1)
        busy, tensor, dram = self.shares(fleet)
        assert busy == pytest.approx(1.0, abs=0.01)
        assert tensor < 0.1
        assert dram < 0.1

    def test_counts_the_step_under_way(self) -> None:
        fleet = Fleet(a_server(), requests_at([0.0], prompt=8000, output=10), replicas=1, seed=1)
        fleet.advance(0.5)
        assert fleet.counters().busy_s[0] == pytest.approx(0.5)
        assert fleet.counters().tensor_s[0] == pytest.approx(0.5 * 0.41)


class TestCompiling:
    def test_without_a_place_for_a_cache_goes_on_without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def njit(*, cache: bool = False, **options: Any) -> Any:
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return lambda function: function

        monkeypatch.setattr(kernel, "njit", njit)
        assert kernel._outer(len)([1, 2]) == 2

    def test_is_done_once_whatever_is_given(self) -> None:
        frozen = requests_at(np.arange(10.0))
        frozen.arrival_s.flags.writeable = False
        for requests in (NOBODY, frozen, requests_at(np.arange(20.0)[::2])):
            for server in (a_server(), a_dynamic_server()):
                for thresholds_s in ((), (0.05, 0.1)):
                    fleet = Fleet(server, requests, replicas=1, seed=1, itl_thresholds_s=thresholds_s)
                    fleet.advance(20.0)
        assert len(kernel.advance.signatures) == 1  # type: ignore[attr-defined]
