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
from bandkeeper.model.latency import PREDICTED, Traffic, latency, quickest
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


class TestConfidence:
    def test_step_times_that_are_not_known_give_no_confidence(self) -> None:
        traffic = at(CONVERSATION, 0.5, 4)
        known, unknown = latency(fit(error=0.02), traffic, 4, 64), latency(fit(error=0.5), traffic, 4, 64)
        assert known.confident(TTFT)
        assert known.error(ITL) < unknown.error(ITL)
        assert not unknown.confident(ITL)

    def test_at_the_edge_of_a_queue_nothing_is_certain(self) -> None:
        assert not latency(fit(), at(CONVERSATION, 0.97, 1), 1, 64).confident(TTFT)


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
SLACK = {TTFT: 1.01, ITL: 1.01, END: 1.01, QUEUE: 1.1}  # distributions are cut into pieces, and fitted by moments


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
