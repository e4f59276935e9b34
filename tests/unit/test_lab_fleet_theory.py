"""The simulated fleet against closed forms of queueing theory and against measured servers."""

from __future__ import annotations

import heapq
import math

import numpy as np
import numpy.typing as npt
import pytest

from bandkeeper.lab.fleet import Fleet, Outcome
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.server import ContinuousServer
from tests.unit.lab_fleets import RESNET50_A100_MS, a_dynamic_server, a_server, poisson, requests_at

Floats = npt.NDArray[np.float64]


def play(fleet: Fleet, requests: Requests) -> Outcome:
    fleet.advance(float(requests.arrival_s[-1]) + 1000.0)
    outcome = fleet.outcome()
    assert (outcome.status == 1).all()
    return outcome


def one_at_a_time(rate_per_s: float, number: int, pods: int, seed: int) -> Floats:
    """Waits before pods that serve one request at a time, 1 s on average: a prompt of 1 us per token, and no output."""
    service_us = np.maximum(1, np.random.default_rng(seed).exponential(1e6, number).astype(np.int32))
    server = a_server(batch_max=1, gamma_ms=0.0, delta_ms_per_token=0.001, prefill_chunk_tokens=10**9, kv_tokens=10**9)
    requests = requests_at(poisson(rate_per_s, number, seed + 1), service_us, 1)
    outcome = play(Fleet(server, requests, replicas=pods, seed=1), requests)
    waits: Floats = outcome.end_s - requests.arrival_s - service_us * 1e-6
    return waits


def erlang_wait_s(places: int, load: float) -> float:
    """Mean wait in an M/M/c queue, service 1 s; `load` is arrivals per second."""
    blocked = 1.0
    for place in range(1, places + 1):
        blocked = load * blocked / (place + load * blocked)
    waits = blocked / (1.0 - (load / places) * (1.0 - blocked))
    return waits / (places - load)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.75])
def test_mean_wait_of_one_server_is_that_of_mm1(load: float) -> None:
    waits = one_at_a_time(load, 1_000_000, pods=1, seed=20)
    assert waits.mean() == pytest.approx(load / (1.0 - load), rel=0.02)
    assert (waits > 1e-9).mean() == pytest.approx(load, rel=0.02)


@pytest.mark.parametrize("places", [1, 2, 4, 8, 16, 32])
def test_mean_wait_before_places_of_one_server_is_that_of_mmc(places: int) -> None:
    """Decoding at a batch that costs nothing is c servers before one queue.

    The mean of a sample strays from the expectation by more than 2 % even with a million requests. So theory is
    compared with itself plus the difference, over one sample, to the exact recursion of a queue with c servers.
    """
    number, load, step_s = 100_000, 0.85 * places, 0.01 / places
    steps = np.maximum(2, np.random.default_rng(5).exponential(1.0 / step_s, number)).astype(np.int32)
    server = a_server(
        batch_max=places,
        alpha_ms=1000.0 * step_s,
        beta_ms=0.0,
        gamma_ms=0.0,
        delta_ms_per_token=0.0,
        kv_tokens=10**9,
    )
    # A prefill costs nothing, but the first token comes out with the others' step, if others decode.
    requests = requests_at(poisson(load, number, 6), 1, steps + (places == 1))
    fleet = Fleet(server, requests, replicas=1, seed=1)
    play(fleet, requests)
    mean_s = fleet.counters().queue.sum_s[0] / number
    free_s = [0.0] * places
    exact_s = np.empty(number)
    for index, arrival_s in enumerate(requests.arrival_s.tolist()):
        start_s = max(arrival_s, free_s[0])
        heapq.heapreplace(free_s, start_s + float(steps[index]) * step_s)
        exact_s[index] = start_s - arrival_s
    theory_s = erlang_wait_s(places, load)
    # Who comes during a step of the others is not taken before its end, half a step later on average: that is no wait.
    quantum_s = 0.5 * step_s * (exact_s == 0.0).mean()
    assert theory_s + mean_s - quantum_s - exact_s.mean() == pytest.approx(theory_s, rel=0.005)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mean_wait_of_fixed_service_is_that_of_md1(load: float) -> None:
    server = a_dynamic_server(batch_max=1, max_delay_ms=0.0)
    service_s = 0.00213
    requests = requests_at(poisson(load / service_s, 500_000, 3))
    outcome = play(Fleet(server, requests, replicas=1, seed=1), requests)
    waits_s = outcome.end_s - requests.arrival_s - service_s
    assert waits_s.mean() == pytest.approx(service_s * load / (2.0 * (1.0 - load)), rel=0.02)


@pytest.mark.parametrize("load", [0.7, 0.9])
def test_router_joins_the_shortest_queue(load: float) -> None:
    """Two servers of one request at a time: the stationary chain of both queues, cut at 40 requests each."""
    most = 40
    rates = np.zeros((most + 1, most + 1, most + 1, most + 1))
    for one in range(most + 1):
        for other in range(most + 1):
            if one:
                rates[one, other, one - 1, other] += 1.0
            if other:
                rates[one, other, one, other - 1] += 1.0
            if one <= other and one < most:
                rates[one, other, one + 1, other] += 2 * load * (0.5 if one == other else 1.0)
            if other <= one and other < most:
                rates[one, other, one, other + 1] += 2 * load * (0.5 if one == other else 1.0)
    flow = rates.reshape((most + 1) ** 2, -1)
    flow -= np.diag(flow.sum(axis=1))
    flow[:, 0] = 1.0
    wanted = np.zeros(len(flow))
    wanted[0] = 1.0
    shares = np.linalg.solve(flow.T, wanted).reshape(most + 1, most + 1)
    present = (shares * np.add.outer(np.arange(most + 1), np.arange(most + 1))).sum()
    waits_s = one_at_a_time(2 * load, 1_000_000, pods=2, seed=8)
    assert waits_s.mean() == pytest.approx(present / (2 * load) - 1.0, rel=0.02)


def full(server: ContinuousServer, clients: int, prompt: int, output: int, rounds: int = 8) -> tuple[float, float]:
    """Mean time per output token, and requests per second, while `clients` always have a request in hand.

    A queue that never empties before a cap of `clients` does the same; the first round has all lengths of output, so
    that requests end, and prefills come, at different times.
    """
    number = rounds * clients
    outputs = np.full(number, output)
    outputs[:clients] = np.random.default_rng(1).permutation(np.linspace(2, output, clients).astype(int))
    requests = requests_at(np.zeros(number), prompt, outputs)
    fleet = Fleet(server, requests, replicas=1, seed=1, cap=clients)
    fleet.advance(36_000.0)
    outcome = fleet.outcome()
    middle = slice(2 * clients, (rounds - 2) * clients)
    spans_s = (outcome.end_s - outcome.first_token_s)[middle]
    ends_s = np.sort(outcome.end_s)[middle]
    return float((spans_s / (output - 1)).mean()), (len(ends_s) - 1) / (ends_s[-1] - ends_s[0])


LLAMA_8B_H100 = a_server(
    batch_max=128,
    alpha_ms=6.737,
    beta_ms=0.00125,
    gamma_ms=0.0,
    delta_ms_per_token=0.022,
    kappa_ms_per_ktoken=0.043,
    kv_tokens=456_000,
)
LLAMA_70B_H200 = a_server(
    batch_max=128,
    alpha_ms=19.62,
    beta_ms=0.036,
    gamma_ms=0.0,
    delta_ms_per_token=0.1,
    kappa_ms_per_ktoken=0.0427,
    kv_tokens=423_000,
)


@pytest.mark.parametrize(
    ("prompt", "clients", "tpot_ms"),
    [
        *((1024, clients, ms) for clients, ms in ((8, 7.4), (16, 8.4), (32, 9.9), (64, 13.1), (128, 19.3))),
        *((2048, clients, ms) for clients, ms in ((8, 8.2), (16, 9.7), (32, 12.6), (64, 18.7), (128, 31.1))),
        *((4096, clients, ms) for clients, ms in ((8, 9.6), (16, 12.4), (32, 18.2), (64, 30.1))),
    ],
)
def test_time_per_token_of_llama_8b_on_h100_is_as_measured(prompt: int, clients: int, tpot_ms: float) -> None:
    assert 1000.0 * full(LLAMA_8B_H100, clients, prompt, 512)[0] == pytest.approx(tpot_ms, rel=0.05)


@pytest.mark.parametrize(
    ("clients", "tpot_ms"), [(4, 20.1), (8, 21.1), (16, 23.0), (32, 25.8), (64, 32.3), (128, 44.9)]
)
def test_time_per_token_of_llama_70b_on_h200_is_as_measured(clients: int, tpot_ms: float) -> None:
    assert 1000.0 * full(LLAMA_70B_H200, clients, 1024, 1024)[0] == pytest.approx(tpot_ms, rel=0.05)


def test_knee_of_llama_70b_on_h200_is_where_its_cache_is_full() -> None:
    """8192 prompt tokens: from 64 to 128 clients the time per token stays, and the rest waits, as was measured."""
    measured = {64: (79.0, 29.7), 128: (80.0, 127.8)}
    for clients, (tpot_ms, ttft_s) in measured.items():
        tpot_s, per_s = full(LLAMA_70B_H200, clients, 8192, 1024)
        assert 1000.0 * tpot_s == pytest.approx(tpot_ms, rel=0.05)
        assert clients / per_s - 1023 * tpot_s == pytest.approx(ttft_s, rel=0.1)
    # Below the knee nobody waits for room.
    tpot_s, per_s = full(LLAMA_70B_H200, 32, 8192, 1024)
    assert 32 / per_s - 1023 * tpot_s < 3.0


def test_throughput_of_resnet50_on_a100_peaks_at_a_batch_of_32() -> None:
    """A cap says which batches a server under overload makes: as measured, 32 is best, and 64 worse than that."""
    measured = {1: 469, 2: 910, 4: 1448, 8: 2051, 16: 2760, 32: 2858, 64: 2534, 128: 2662}
    reached = {}
    for batch in RESNET50_A100_MS:
        requests = requests_at(np.arange(0.0, 10.0, 1.0 / 4000))
        fleet = Fleet(a_dynamic_server(), requests, replicas=1, seed=1, cap=batch)
        fleet.advance(10.0)
        reached[batch] = fleet.counters().finished[0] / 10.0
        assert reached[batch] == pytest.approx(measured[batch], rel=0.05)
    assert max(reached, key=lambda batch: reached[batch]) == 32


def test_lone_request_takes_what_the_servers_figures_say() -> None:
    server = a_server(kappa_ms_per_ktoken=1.0)
    requests = requests_at([1.0], prompt=1000, output=11)
    outcome = play(Fleet(server, requests, replicas=1, seed=1), requests)
    assert outcome.first_token_s[0] == pytest.approx(1.0 + 0.105)
    steps_ms = math.fsum(20.4 + (1000 + index) / 1000.0 for index in range(10))
    assert outcome.end_s[0] == pytest.approx(outcome.first_token_s[0] + steps_ms / 1000.0)
