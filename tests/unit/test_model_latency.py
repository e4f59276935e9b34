"""Predicted latencies: closed forms of queueing theory, what more load and more replicas do, and bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.signals import Signal
from bandkeeper.lab.fleet import Fleet
from bandkeeper.lab.workloads import synthetic
from bandkeeper.model.latency import CHUNKS, PREDICTED, Latency, Traffic, latency, quickest
from bandkeeper.model.steps import StepFit
from tests.unit.lab_fleets import a_server

TTFT, ITL = Signal.TIME_TO_FIRST_TOKEN, Signal.INTER_TOKEN_LATENCY
END, QUEUE = Signal.END_TO_END_LATENCY, Signal.QUEUE_TIME
REFERENCE = (0.02058, 0.00041, 0.0001)
CONVERSATION = Traffic(1.0, 1155.0, 211.0)


def fit(parameters: tuple[float, float, float] = REFERENCE, error: float = 0.02) -> StepFit:
    """A fit whose parameters are each known to `error`."""
    rows = [1 / (error * max(1e-9, one)) ** 2 for one in parameters]
    return StepFit(parameters, ((rows[0], 0.0, 0.0), (0.0, rows[1], 0.0), (0.0, 0.0, rows[2])), 100.0)


def at(traffic: Traffic, rho: float, replicas: int, cap: int = 64, steps: StepFit | None = None) -> Traffic:
    """The traffic that keeps so much of the replicas busy."""
    work = (steps or fit()).work_s(traffic.prompt_tokens, traffic.output_tokens, cap).value
    return replace(traffic, requests_per_s=rho * replicas / work)


class TestClosedForms:
    """Steps that take the same at every batch: each place is a server with a service time of its own."""

    FLAT = fit((0.0001, 0.0, 0.0))
    TRAFFIC = Traffic(0.0, 0.0, 10_000.0)  # 1 s each

    @pytest.mark.parametrize("rho", [0.3, 0.7, 0.95])
    def test_one_place_is_m_m_1(self, rho: float) -> None:
        found = latency(self.FLAT, replace(self.TRAFFIC, requests_per_s=rho), 1, 1)
        assert found.utilization == pytest.approx(rho)
        assert found.waiting_share == pytest.approx(rho)
        assert found.batch == pytest.approx(rho)
        expected = max(0.0, math.log(rho / 0.05) / (1 - rho))
        assert found.quantile(QUEUE, 0.95) == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize(("replicas", "cap"), [(1, 8), (8, 1), (2, 16)])
    @pytest.mark.parametrize("rho", [0.5, 0.9])
    def test_places_are_the_servers_of_m_m_c(self, replicas: int, cap: int, rho: float) -> None:
        servers = replicas * cap
        offered = rho * servers
        terms = [offered**count / math.factorial(count) for count in range(servers)]
        last = offered**servers / math.factorial(servers) / (1 - rho)
        found = latency(self.FLAT, replace(self.TRAFFIC, requests_per_s=offered), replicas, cap)
        assert found.waiting_share == pytest.approx(last / (sum(terms) + last), rel=1e-6)
        assert found.batch == pytest.approx(offered / replicas, rel=1e-6)

    def test_where_steps_grow_with_the_batch_only_it_is_a_shared_processor(self) -> None:
        """No base time: geometric numbers in process, as of M/M/1 with processor sharing."""
        found = latency(fit((0.0, 0.0001, 0.0)), replace(self.TRAFFIC, requests_per_s=0.8), 1, 200)
        assert found.batch == pytest.approx(0.8 / 0.2, rel=0.03)


class TestOneRequestAlone:
    def test_its_tokens_come_one_step_apart(self) -> None:
        alpha_s, beta_s, _ = REFERENCE
        assert quickest(fit(), CONVERSATION, ITL, 0.95) == pytest.approx(alpha_s + beta_s, rel=1e-3)

    def test_its_prompt_is_read_in_one_step(self) -> None:
        alpha_s, _, delta_s = REFERENCE
        even = replace(CONVERSATION, prompt_spread=0.0, output_spread=0.0)
        assert quickest(fit(), even, TTFT, 0.95) == pytest.approx(alpha_s + delta_s * 1155, rel=1e-3)
        assert quickest(fit(), even, END, 0.95) == pytest.approx(
            delta_s * 1155 + 211 * alpha_s + 210 * 0.00041, rel=1e-3
        )
        assert quickest(fit(), even, QUEUE, 0.95) == 0.0

    def test_a_longer_prompt_takes_longer_in_the_tail(self) -> None:
        even = quickest(fit(), replace(CONVERSATION, prompt_spread=0.0), TTFT, 0.95)
        assert quickest(fit(), CONVERSATION, TTFT, 0.95) > 1.5 * even


class TestOverload:
    def test_what_waits_has_no_bound_and_tokens_come_at_the_cap(self) -> None:
        found = latency(fit(), at(CONVERSATION, 1.1, 2), 2, 64)
        assert found.overloaded
        assert found.batch == 64
        assert [found.quantile(signal, 0.95) for signal in (TTFT, END, QUEUE)] == [math.inf] * 3
        assert found.attainment(TTFT, 1e6) == 0.0
        assert REFERENCE[0] + 64 * REFERENCE[1] < found.quantile(ITL, 0.95) < 1.0
        assert found.error(TTFT) == math.inf

    def test_a_signal_that_is_no_latency_is_refused(self) -> None:
        with pytest.raises(ValueError, match="GPUUtilization is not predicted: ask for one of TimeToFirstToken"):
            latency(fit(), CONVERSATION, 1, 64).attainment(Signal.GPU_UTILIZATION, 1.0)


class TestKnobs:
    def test_a_higher_cap_lets_fewer_wait_and_slows_tokens(self) -> None:
        asked = at(CONVERSATION, 0.9, 2, 32)
        low, high = latency(fit(), asked, 2, 32), latency(fit(), asked, 2, 64)
        assert high.waiting_share < 0.1 * low.waiting_share
        assert high.quantile(TTFT, 0.95) < low.quantile(TTFT, 0.95)
        assert high.quantile(ITL, 0.5) > low.quantile(ITL, 0.5)

    def test_smaller_chunks_are_kinder_to_tokens_and_slower_to_read(self) -> None:
        asked = at(replace(CONVERSATION, prompt_tokens=4000.0), 0.7, 4)
        large, small = (latency(fit(), asked, 4, 64, chunks=(tokens,)) for tokens in (8192, 512))
        assert small.quantile(ITL, 0.95) < 0.5 * large.quantile(ITL, 0.95)
        assert small.quantile(ITL, 0.99) <= small.bases_s[-1] + 512 * REFERENCE[2] * 1.01
        assert small.quantile(TTFT, 0.95) > 1.1 * large.quantile(TTFT, 0.95)

    def test_without_prompts_a_token_takes_a_step_of_its_batch(self) -> None:
        asked = at(replace(CONVERSATION, prompt_tokens=0.0), 0.5, 4)
        found = latency(fit(), asked, 4, 64)
        assert found.quantile(ITL, 0.5) == pytest.approx(REFERENCE[0] + REFERENCE[1] * found.batch, rel=0.02)


@pytest.mark.parametrize("replicas", [1, 4])
def test_the_simulated_fleet_is_as_quick_as_predicted(replicas: int) -> None:
    """The benchmark of the model's error has the figures; this is that nothing is far off."""
    server = a_server(alpha_ms=20.58, beta_ms=0.41, gamma_ms=0.0)
    requests = synthetic.make(f"poisson:level={0.6 * replicas},duration_s=3600", server, seed=1, max_replicas=8)
    fleet = Fleet(server, requests, replicas=replicas, seed=1)
    fleet.advance(requests.duration_s)
    first_s = fleet.outcome().first_token_s - requests.arrival_s
    asked = Traffic(len(requests) / 3600, requests.mean_prompt_tokens, requests.mean_output_tokens)
    found = latency(fit(), asked, replicas, server.batch_max)
    assert found.quantile(TTFT, 0.95) == pytest.approx(float(np.nanquantile(first_s, 0.95)), rel=0.35)
    assert found.quantile(ITL, 0.95) == pytest.approx(fleet.token_totals().quantile(0.95, from_s=300), rel=0.35)


def told(steps: StepFit, traffic: Traffic, replicas: int, chunk: float = 8192.0) -> Latency:
    """Of servers that tell how many prompt tokens a step reads."""
    return latency(steps, traffic, replicas, 64, chunks=(chunk,))


class TestConfidence:
    def test_step_times_that_are_not_known_give_no_confidence(self) -> None:
        traffic = at(CONVERSATION, 0.5, 4)
        known, unknown = told(fit(error=0.02), traffic, 4), told(fit(error=0.5), traffic, 4)
        assert known.confident(TTFT)
        assert known.error(ITL) < unknown.error(ITL)
        assert not unknown.confident(ITL)

    def test_a_chunk_that_is_not_told_is_an_error_where_prompts_are_read(self) -> None:
        asked = at(CONVERSATION, 0.8, 4)
        known, unknown = told(fit(), asked, 4), latency(fit(), asked, 4, 64)
        assert known.quantile(ITL, 0.95) == unknown.quantile(ITL, 0.95)
        assert known.confident(ITL)
        assert not unknown.confident(ITL)
        assert latency(fit(), at(CONVERSATION, 0.1, 4), 4, 64).confident(ITL)  # few steps read any

    def test_between_two_kinds_of_steps_nothing_is_certain(self) -> None:
        """Just 5 % of the steps carry prompts there."""
        found = [told(fit(), at(CONVERSATION, rho, 4), 4) for rho in (0.2, 0.46, 0.8)]
        assert [one.confident(ITL) for one in found] == [True, False, True]

    def test_at_the_edge_of_a_queue_nothing_is_certain(self) -> None:
        assert not told(fit(), at(CONVERSATION, 0.97, 1), 1).confident(TTFT)


class TestChunksThatFit:
    """At this load the 95th percentile is that of steps with prompts: 161, 171, 137, 87 and 63 ms by CHUNKS."""

    ASKED = at(CONVERSATION, 0.8, 4)

    @pytest.mark.parametrize(
        ("chunk", "fitting"),
        [
            (8192.0, (8192.0, 2048.0, 1024.0)),
            (2048.0, (8192.0, 2048.0)),
            (1024.0, (8192.0, 1024.0)),
            (512.0, (512.0,)),
            (256.0, (256.0,)),
            (128.0, CHUNKS),
        ],
    )
    def test_the_time_between_tokens_tells_what_a_step_reads(self, chunk: float, fitting: tuple[float, ...]) -> None:
        measured_s = told(fit(), self.ASKED, 4, chunk).quantile(ITL, 0.95)
        assert latency(fit(), self.ASKED, 4, 64).chunks_that_fit(0.95, measured_s, measured_s) == fitting

    def test_a_wide_bucket_tells_less(self) -> None:
        found = latency(fit(), self.ASKED, 4, 64)
        assert found.chunks_that_fit(0.95, 0.075, 0.1) == (512.0, 256.0)
        assert found.chunks_that_fit(0.95, 0.075, 0.2) == CHUNKS
        assert found.chunks_that_fit(0.95, 0.0, math.inf) == CHUNKS

    @pytest.mark.parametrize("measured_s", [1e-3, 100.0])
    def test_what_no_chunk_explains_tells_nothing(self, measured_s: float) -> None:
        assert latency(fit(), self.ASKED, 4, 64).chunks_that_fit(0.95, measured_s, measured_s) == CHUNKS

    @pytest.mark.parametrize("rho", [0.2, 0.46])
    def test_where_few_steps_read_prompts_it_tells_little(self, rho: float) -> None:
        found = latency(fit(), at(CONVERSATION, rho, 4), 4, 64)
        measured_s = found.quantile(ITL, 0.95)
        assert set(CHUNKS[:2]) <= set(found.chunks_that_fit(0.95, measured_s, measured_s))

    def test_a_prediction_that_is_not_sure_of_itself_is_no_argument(self) -> None:
        asked = at(CONVERSATION, 0.46, 4)
        measured_s = 2 * told(fit(), asked, 4).quantile(ITL, 0.95)
        assert not told(fit(), asked, 4).confident(ITL)
        assert CHUNKS[0] in latency(fit(), asked, 4, 64).chunks_that_fit(0.95, measured_s, measured_s)

    def test_the_first_one_is_predicted_with(self) -> None:
        found, small = latency(fit(), self.ASKED, 4, 64, chunks=CHUNKS[::-1]), told(fit(), self.ASKED, 4, 256.0)
        assert found.quantile(TTFT, 0.95) == small.quantile(TTFT, 0.95)
        assert found.error(ITL) > small.error(ITL)


servers = st.builds(
    lambda alpha, beta, delta: fit((alpha, beta, delta)),
    st.floats(0.002, 0.1),
    st.floats(0.0, 0.002),
    st.floats(0.0, 0.0003),
)
traffics = st.builds(
    lambda prompts, outputs, spread: Traffic(0.0, prompts, outputs, spread, spread),
    st.floats(0, 8000),
    st.floats(2, 2000),
    st.floats(0.0, 1.5),
)
signals = st.sampled_from(PREDICTED)
SLACK = {TTFT: 1.05, ITL: 1.02, END: 1.02, QUEUE: 1.15}  # distributions are cut into pieces, and fitted by moments


@given(servers, traffics, signals, st.floats(0.02, 1.2), st.floats(1.0, 2.0), st.integers(1, 40), st.integers(1, 256))
def test_more_load_is_never_quicker(
    steps: StepFit, traffic: Traffic, signal: Signal, rho: float, more: float, replicas: int, cap: int
) -> None:
    less_s = latency(steps, at(traffic, rho, replicas, cap, steps), replicas, cap).quantile(signal, 0.95)
    more_s = latency(steps, at(traffic, rho * more, replicas, cap, steps), replicas, cap).quantile(signal, 0.95)
    assert less_s <= SLACK[signal] * more_s + 1e-6


@given(servers, traffics, signals, st.floats(0.02, 1.2), st.integers(1, 40), st.integers(1, 20), st.integers(1, 256))
def test_more_replicas_are_never_slower(
    steps: StepFit, traffic: Traffic, signal: Signal, rho: float, replicas: int, more: int, cap: int
) -> None:
    asked = at(traffic, rho, replicas, cap, steps)
    few_s = latency(steps, asked, replicas, cap).quantile(signal, 0.95)
    assert latency(steps, asked, replicas + more, cap).quantile(signal, 0.95) <= SLACK[signal] * few_s + 1e-6


@given(servers, traffics, signals, st.floats(0.02, 0.95), st.integers(1, 40), st.integers(1, 256), st.floats(0.5, 0.99))
def test_share_and_time_are_each_others_inverse(
    steps: StepFit, traffic: Traffic, signal: Signal, rho: float, replicas: int, cap: int, share: float
) -> None:
    found = latency(steps, at(traffic, rho, replicas, cap, steps), replicas, cap)
    assert 0 <= found.waiting_share <= 1
    assert 0 <= found.batch <= cap * (1 + 1e-9)
    assert found.attainment(signal, found.quantile(signal, share)) >= share
