"""The emulated servers against closed forms and conservation, in virtual time."""

from __future__ import annotations

import math
from random import Random

import pytest

from tests.emulator.config import Buckets, ContinuousServer, DynamicServer
from tests.emulator.request import Request
from tests.emulator.servers import ContinuousBatchingServer, DynamicBatchingServer, Server

BUCKETS = Buckets()


def a_server(*, boot_capacity: int | None = None, **changes: object) -> ContinuousBatchingServer:
    spec = ContinuousServer.model_validate({"preset": "a100-wva", "cap_delay_s": 30, **changes})
    return ContinuousBatchingServer(spec, BUCKETS, Random(1), boot_capacity)


def a_dynamic_server(**changes: object) -> DynamicBatchingServer:
    spec = DynamicServer.model_validate({"preset": "resnet50-a100", "cap_delay_s": 30, **changes})
    return DynamicBatchingServer(spec, BUCKETS, Random(1))


def feed(server: Server, at_s: float, number: int, *, prompt: int = 100, output: int = 50) -> list[Request]:
    server.advance(at_s)
    requests = [Request(at_s, prompt, output) for _ in range(number)]
    for request in requests:
        server.submit(request, at_s)
    return requests


def assert_conserved(server: Server) -> None:
    stats = server.stats
    out = stats.succeeded + stats.failed + stats.rejected
    assert stats.arrived == out + server.running_count + server.waiting_count


class TestContinuousBatching:
    def test_lone_request_takes_prefill_and_then_single_steps(self) -> None:
        server = a_server()
        feed(server, 1.0, 1, prompt=1000, output=11)
        server.advance(60.0)
        first_token_s = 0.0052 + 0.1 * 1000 / 1000
        step_s = 0.02058 + 0.00041
        assert server.stats.ttft.sum == pytest.approx(first_token_s)
        assert server.stats.itl.count == 10
        assert server.stats.itl.sum == pytest.approx(10 * step_s)
        assert server.stats.e2e.sum == pytest.approx(first_token_s + 10 * step_s)
        assert server.outstanding == 0
        assert server.kv_usage == 0.0

    @pytest.mark.parametrize("batch", [1, 8, 32, 64])
    def test_inter_token_latency_at_a_fixed_batch_is_alpha_plus_beta_b(self, batch: int) -> None:
        server = a_server(prefill_budget=100_000)
        feed(server, 0.0, batch, prompt=10, output=101)
        server.advance(600.0)
        assert server.stats.itl.count == 100 * batch
        assert server.stats.itl.sum / server.stats.itl.count == pytest.approx(0.02058 + 0.00041 * batch)

    def test_context_term_grows_with_the_tokens_in_the_cache(self) -> None:
        server = a_server(kappa_ms_per_ktoken=2.0, prefill_budget=100_000)
        feed(server, 0.0, 4, prompt=500, output=101)
        server.advance(600.0)
        mean_context = 4 * (500 + (0 + 99) / 2)
        assert server.stats.itl.sum / 400 == pytest.approx(0.02058 + 4 * 0.00041 + 0.002 * mean_context / 1000)

    @pytest.mark.parametrize(("capacity", "prompt", "output"), [(64, 300, 200), (16, 1000, 180), (32, 50, 600)])
    def test_saturation_throughput_equals_theory(self, capacity: int, prompt: int, output: int) -> None:
        """A slot is held for `output` steps, one for prefill and the rest for decode; each slot gives one answer."""
        server = a_server(capacity=capacity, prefill_budget=prompt)
        feed(server, 0.0, 40 * capacity, prompt=prompt, output=output)
        decode_s = 0.02058 * output + 0.00041 * capacity * (output - 1)
        prefill_s = capacity * (0.0052 + 0.0001 * prompt)
        theory_per_s = capacity / (decode_s + prefill_s)
        start_s, span_s = 5 * capacity / theory_per_s, 20 * capacity / theory_per_s
        server.advance(start_s)
        before = server.stats.succeeded
        server.advance(start_s + span_s)
        assert (server.stats.succeeded - before) / span_s == pytest.approx(theory_per_s, rel=0.02)

    def test_long_prompt_is_prefilled_in_chunks_beside_the_decode(self) -> None:
        server = a_server(prefill_budget=256)
        feed(server, 0.0, 1, prompt=10, output=1000)
        feed(server, 1.0, 1, prompt=1000, output=10)
        steps = server.stats.iteration_tokens.count
        server.advance(1.25)
        assert server.stats.ttft.count == 2  # 4 chunks of at most 256: 47-52 ms each
        longest_itl_s = 0.02058 + 0.00041 + 0.0052 + 0.0256
        assert server.stats.itl.quantile(1.0) == pytest.approx(longest_itl_s, rel=0.05)
        assert server.stats.iteration_tokens.count - steps >= 4

    def test_every_step_and_token_is_counted_once(self) -> None:
        server, rng = a_server(), Random(7)
        requests = [Request(0.05 * n, rng.randint(1, 900), rng.randint(1, 300)) for n in range(2000)]
        for request in requests:
            server.advance(request.arrival_s)
            server.submit(request, request.arrival_s)
            assert_conserved(server)
        server.advance(10_000.0)
        stats = server.stats
        prompt, output = sum(one.prompt for one in requests), sum(one.output for one in requests)
        assert (stats.arrived, stats.succeeded, server.outstanding) == (2000, 2000, 0)
        assert (stats.prompt_tokens, stats.generation_tokens) == (prompt, output)
        assert stats.ttft.count == stats.e2e.count == stats.queue.count == 2000
        assert stats.itl.count == output - 2000
        assert stats.iteration_tokens.sum == prompt + output - 2000
        assert stats.e2e.sum == pytest.approx(stats.ttft.sum + stats.itl.sum)
        assert server.kv_usage == 0.0

    def test_bounded_queue_rejects_what_does_not_fit(self) -> None:
        server = a_server(capacity=4, max_queue=10, prefill_budget=1000)
        feed(server, 0.0, 4)
        feed(server, 0.5, 30)
        assert server.stats.rejected == 20
        assert (server.running_count, server.waiting_count) == (4, 10)
        server.advance(100.0)
        assert server.stats.succeeded == 14
        assert_conserved(server)

    def test_request_larger_than_the_cache_is_an_error_and_a_too_long_answer_is_cut(self) -> None:
        server = a_server(kv_tokens=1000)
        feed(server, 0.0, 1, prompt=1000)
        (long,) = feed(server, 0.0, 1, prompt=500, output=5000)
        server.advance(1000.0)
        assert server.stats.finished == {"stop": 0, "length": 1, "abort": 0, "error": 1}
        assert long.generated + server.stats.itl.count - 0 == 1 + 498
        assert server.stats.generation_tokens == 499

    def test_admission_waits_for_room_in_the_cache(self) -> None:
        server = a_server(kv_tokens=1000)
        feed(server, 0.0, 10, prompt=400, output=20)
        server.advance(0.1)
        assert (server.running_count, server.waiting_count) == (2, 8)
        assert server.kv_usage == pytest.approx(0.8, abs=0.05)
        server.advance(100.0)
        assert (server.stats.succeeded, server.stats.preemptions) == (10, 0)

    def test_overflowing_cache_preempts_the_newest_and_recomputes_it(self) -> None:
        server = a_server(kv_tokens=1000)
        first, *_ = feed(server, 0.0, 4, prompt=200, output=300)
        server.advance(0.5)
        assert server.running_count == 4
        most = 0.0
        for tick in range(2000):
            server.advance(0.5 + 0.05 * tick)
            most = max(most, server.kv_usage)
            assert_conserved(server)
        stats = server.stats
        assert stats.preemptions >= 2
        assert 0.95 < most <= 1.0
        assert (stats.succeeded, stats.generation_tokens, stats.itl.count) == (4, 1200, 1196)
        assert stats.ttft.count == stats.queue.count == 4
        assert stats.prompt_tokens == 800
        assert stats.iteration_tokens.sum > 800 + 1196  # what was computed again is work too
        assert stats.e2e.sum == pytest.approx(stats.ttft.sum + stats.itl.sum)  # the gap of a preemption is in the ITL
        assert first.first_token_s is not None
        assert server.kv_usage == 0.0

    def test_preempted_request_comes_before_those_that_wait(self) -> None:
        server = a_server(kv_tokens=1000)
        early = feed(server, 0.0, 3, prompt=250, output=300)
        late = feed(server, 0.1, 3, prompt=250, output=5)
        server.advance(1000.0)
        assert server.stats.preemptions > 0
        assert max(one.scheduled_s or 0.0 for one in early) < min(one.scheduled_s or 0.0 for one in late)
        assert max(one.last_token_s for one in early) < min(one.scheduled_s or 0.0 for one in late)

    def test_admission_leaves_room_for_everyones_next_token(self) -> None:
        server = a_server(kv_tokens=1000)
        feed(server, 0.0, 2, prompt=500, output=10)
        server.advance(0.1)
        assert (server.running_count, server.waiting_count) == (1, 1)
        server.advance(1000.0)
        assert (server.stats.succeeded, server.stats.preemptions) == (2, 0)

    def test_context_of_finished_requests_costs_nothing(self) -> None:
        server = a_server(kappa_ms_per_ktoken=2.0)
        feed(server, 0.0, 20, prompt=500, output=50)
        server.advance(100.0)
        before = server.stats.itl.sum
        feed(server, 100.0, 1, prompt=500, output=2)
        server.advance(200.0)
        assert server.stats.itl.sum - before == pytest.approx(0.02099 + 0.002 * 0.5)

    def test_random_load_under_a_tight_cache_and_a_moving_cap_adds_up(self) -> None:
        server, rng = a_server(kv_tokens=3000, capacity=24, cap_delay_s=1, max_queue=40), Random(3)
        at_s, offered = 0.0, 0
        for _ in range(3000):
            at_s += rng.expovariate(8.0)
            server.advance(at_s)
            if rng.random() < 0.02:
                server.set_cap(rng.randint(1, 40), at_s)
            server.submit(Request(at_s, rng.randint(1, 400), rng.randint(1, 200)), at_s)
            offered += 1
            assert_conserved(server)
            assert server.kv_usage <= 1.0
        server.advance(at_s + 10_000)
        stats = server.stats
        assert stats.preemptions > 0
        assert stats.rejected > 0
        assert stats.succeeded + stats.rejected == stats.arrived == offered
        assert stats.itl.count == stats.generation_tokens - stats.ttft.count
        assert stats.e2e.sum == pytest.approx(stats.ttft.sum + stats.itl.sum)

    def test_lowered_cap_acts_after_its_delay_and_lets_running_requests_finish(self) -> None:
        server = a_server(capacity=64, prefill_budget=100_000)
        feed(server, 0.0, 500, output=400)
        server.advance(10.0)
        server.set_cap(8, 10.0)
        server.advance(39.9)
        assert server.running_count == 64
        done = server.stats.succeeded
        counts = []
        for tick in range(800):
            server.advance(40.0 + 0.05 * tick)
            counts.append(server.running_count)
        assert counts[0] > 8  # nothing is thrown out
        assert min(counts) == counts[-1] == 8
        assert server.stats.succeeded > done
        assert (server.stats.preemptions, server.stats.failed) == (0, 0)

    def test_raised_cap_never_exceeds_the_capacity_of_the_boot(self) -> None:
        server = a_server(boot_capacity=16, cap_delay_s=0)
        feed(server, 0.0, 200)
        server.set_cap(100, 1.0)
        server.advance(5.0)
        assert server.running_count == 16
        assert server.cap_at(5.0) == 16

    def test_pod_created_with_the_annotation_boots_with_that_cap_and_returns_to_capacity_without_it(self) -> None:
        server = a_server()
        server.boot_cap(4)
        feed(server, 0.0, 2000, prompt=10, output=20)
        server.advance(1.0)
        assert server.running_count == 4
        server.set_cap(None, 1.0)
        server.advance(30.9)
        assert server.running_count == 4
        server.advance(32.0)
        assert server.running_count == 64

    def test_draining_finishes_what_it_can_and_aborts_the_rest(self) -> None:
        server = a_server(capacity=2)
        feed(server, 0.0, 4, prompt=10, output=100)  # about 2.2 s a pair
        server.terminate(1.0, 3.0)
        server.advance(3.9)
        assert (server.stats.succeeded, server.outstanding) == (2, 2)
        assert not server.gone
        server.advance(4.0)
        assert server.stats.finished == {"stop": 2, "length": 0, "abort": 2, "error": 0}
        assert server.gone
        assert_conserved(server)

    def test_draining_server_without_work_is_gone_at_once(self) -> None:
        server = a_server()
        server.terminate(1.0, 30.0)
        assert server.gone

    def test_the_same_numbers_come_out_however_the_clock_ticks(self) -> None:
        def played(tick_s: float) -> tuple[float, float, int]:
            server = a_server(jitter=0.1)
            feed(server, 0.0, 100)
            at_s = 0.0
            while server.outstanding:
                at_s += tick_s
                server.advance(at_s)
            return server.stats.ttft.sum, server.stats.itl.sum, server.stats.iteration_tokens.count

        assert played(0.01) == played(0.7)

    def test_activity_is_the_time_worked_weighted_by_the_phase(self) -> None:
        server = a_server()
        feed(server, 0.0, 1, prompt=1000, output=11)
        server.advance(100.0)
        prefill_s, decode_s = 0.1052, 10 * 0.02099
        work = server.activity(100.0)
        assert work.busy_s == pytest.approx(prefill_s + decode_s)
        assert work.dram_s == pytest.approx(0.20 * prefill_s + 0.71 * decode_s)
        assert work.tensor_s == pytest.approx(0.41 * (prefill_s + 10 * 0.0001))

    def test_activity_counts_the_step_under_way_in_proportion(self) -> None:
        server = a_server()
        feed(server, 0.0, 1, prompt=1000, output=2)
        server.advance(0.05)
        assert server.activity(0.05).busy_s == pytest.approx(0.05)


class TestDynamicBatching:
    @pytest.mark.parametrize(("batch", "milliseconds"), [(1, 2.13), (32, 11.19), (48, (11.19 + 25.2) / 2), (128, 48.1)])
    def test_batch_time_is_the_table_and_linear_between(self, batch: int, milliseconds: float) -> None:
        assert a_dynamic_server().batch_s(batch) == pytest.approx(milliseconds / 1000)

    def test_throughput_peaks_at_batch_32(self) -> None:
        throughput = {}
        for cap in (1, 2, 4, 8, 16, 32, 64, 128):
            server = a_dynamic_server()
            server.boot_cap(cap)
            feed(server, 0.0, 40_000)
            server.advance(5.0)
            throughput[cap] = server.stats.succeeded / 5.0
            assert throughput[cap] == pytest.approx(cap / server.batch_s(cap), rel=0.02)
        assert max(throughput, key=throughput.__getitem__) == 32
        assert throughput[32] == pytest.approx(2858, rel=0.02)

    def test_partial_batch_goes_when_its_oldest_has_waited_the_delay(self) -> None:
        server = a_dynamic_server(max_delay_ms=5)
        feed(server, 1.0, 1)
        feed(server, 1.003, 1)
        server.advance(1.0049)
        assert (server.running_count, server.waiting_count) == (0, 2)
        server.advance(1.005)
        assert (server.running_count, server.waiting_count) == (2, 0)
        server.advance(2.0)
        assert server.stats.queue.sum == pytest.approx(0.005 + 0.002)
        assert server.stats.e2e.sum == pytest.approx(0.007 + 2 * 0.00219)
        assert (server.stats.executions, server.stats.succeeded) == (1, 2)

    def test_full_batch_goes_at_once(self) -> None:
        server = a_dynamic_server(max_delay_ms=1000)
        server.boot_cap(4)
        feed(server, 1.0, 4)
        server.advance(1.0)
        assert server.running_count == 4

    def test_cap_acts_after_its_delay(self) -> None:
        server = a_dynamic_server(time_scale=10)
        feed(server, 0.0, 20_000)
        server.set_cap(8, 1.0)
        server.advance(30.9)
        assert server.running_count == 128
        server.advance(32.0)
        assert server.running_count == 8

    def test_bounded_queue_rejects_and_all_adds_up(self) -> None:
        server, rng, at_s = a_dynamic_server(max_queue=50, capacity=8), Random(5), 0.0
        for _ in range(20_000):
            at_s += rng.expovariate(3000.0)
            feed(server, at_s, 1)
            assert_conserved(server)
        server.advance(at_s + 100)
        stats = server.stats
        assert stats.rejected > 1000
        assert stats.succeeded + stats.rejected == stats.arrived == 20_000
        assert stats.e2e.count == stats.queue.count == stats.succeeded
        assert stats.e2e.sum == pytest.approx(stats.queue.sum + stats.input_s + stats.infer_s + stats.output_s)

    def test_draining_sends_the_partial_batch_and_ends(self) -> None:
        server = a_dynamic_server(max_delay_ms=10_000)
        feed(server, 1.0, 3)
        server.terminate(1.5, 30.0)
        server.advance(1.6)
        assert server.gone
        assert server.stats.succeeded == 3

    def test_grace_over_aborts_the_running_and_the_queued(self) -> None:
        server = a_dynamic_server(time_scale=1000)
        server.boot_cap(1)
        feed(server, 0.0, 3)
        server.terminate(0.5, 1.0)
        server.advance(2.0)
        assert server.stats.finished["abort"] == 3
        assert server.gone

    def test_recent_quantiles_forget_after_a_minute(self) -> None:
        server = a_dynamic_server(summaries=True, max_delay_ms=0)
        for number in range(100):
            feed(server, 0.1 * number, 1)
        server.advance(20.0)
        assert server.recent is not None
        assert server.recent.quantile(0.95, 20.0) == pytest.approx(0.00213, rel=0.05)
        assert server.recent.quantile(0.95, 100.0) is None
        assert server.recent.count == 100

    def test_idle_server_has_nothing_to_do(self) -> None:
        assert a_dynamic_server().next_s == math.inf
