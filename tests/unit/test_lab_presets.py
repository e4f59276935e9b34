"""The presets against the measurements that they were made from; the tables are typed in from the sources."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bandkeeper.lab.fleet import Fleet
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.server import ContinuousServer, DynamicServer, load, presets

# Prompt and output tokens; milliseconds per output token by clients (each has one request in flight all the time).
CLIENTS: dict[str, list[tuple[int, int, dict[int, float]]]] = {
    "llama-3.1-8b-h100": [
        (1024, 512, {8: 7.4, 16: 8.4, 32: 9.9, 64: 13.1, 128: 19.3}),
        (2048, 512, {8: 8.2, 16: 9.7, 32: 12.6, 64: 18.7, 128: 31.1}),
        (4096, 512, {8: 9.6, 16: 12.4, 32: 18.2, 64: 30.1}),
        (128, 128, {1: 7.0, 64: 8.7}),  # another engine (vLLM) and not in the fit
    ],
    "llama-3.1-70b-fp8-h100-tp4": [
        (1024, 1024, {4: 11.8, 8: 12.1, 16: 13.2, 32: 16.5, 64: 19.5}),
        (8192, 1024, {4: 13.3, 8: 15.8, 16: 21.1, 32: 32.8, 64: 53.5}),
    ],
    "llama-3.1-70b-fp8-h200": [(1024, 1024, {4: 20.1, 8: 21.1, 16: 23.0, 32: 25.8, 64: 32.3, 128: 44.9})],
    "llama-3.1-70b-fp4-b200": [(1024, 1024, {4: 12.1, 8: 12.4, 16: 13.1, 32: 14.4, 64: 16.9, 128: 21.9})],
    "gpt-oss-120b-h100-tp2": [(1024, 1024, {8: 6.2, 16: 8.2, 32: 10.9, 64: 14.8})],
    "qwen3-32b-h100-tp8": [(1024, 1024, {8: 8.0, 16: 8.9, 32: 10.5, 64: 13.3, 128: 19.3})],
}
# Prompt and output tokens; milliseconds of a decode step by batch.
STEPS: dict[str, tuple[int, int, dict[int, float]]] = {
    "llama2-70b-a100-tp8": (512, 128, {1: 44.9, 2: 44.5, 4: 45.8, 8: 46.5, 16: 50.4, 32: 53.2, 64: 71.3}),
    "llama2-70b-h100-tp8": (512, 128, {1: 29.7, 2: 30.1, 4: 31.8, 8: 32.4, 16: 34.2, 32: 38.9, 64: 50.0}),
    "opt-13b-a100": (512, 128, {1: 20.33, 8: 23.13, 32: 32.72}),  # the published fit: 19.93 + .0385 b + .000627 ctx
    "reference": (1000, 200, {1: 20.99, 8: 23.86, 64: 46.82}),
}
# Requests per second by batch.
THROUGHPUT: dict[str, dict[int, float]] = {
    "resnet50-a100": {1: 469, 2: 910, 4: 1448, 8: 2051, 16: 2760, 32: 2858, 64: 2534, 128: 2662},
    "resnet50-v100": {16: 1726, 32: 2045, 64: 1667, 128: 1557},
    "resnet50-a40": {1: 491.5, 2: 811.8, 4: 1094, 8: 1573.6, 16: 1651.2, 32: 2070.4, 64: 1766.4, 128: 1894.4},
    "resnet50-t4": {1: 332, 128: 1280},
}


def continuous(name: str) -> ContinuousServer:
    server = load(name)
    assert isinstance(server, ContinuousServer)
    return server


def per_output_token_ms(server: ContinuousServer, clients: int, prompt: int, output: int) -> float:
    """A token's decode step, and its share of the prefills of the other clients, one each per `output` steps."""
    decode_ms = 1000 * server.step_s(clients, clients * (prompt + output / 2))
    prefill_ms = server.gamma_ms + server.delta_ms_per_token * prompt
    return decode_ms + (clients - 1) * prefill_ms / output


def test_every_preset_is_checked_here_and_says_where_it_comes_from() -> None:
    assert set(presets()) == CLIENTS.keys() | STEPS.keys() | THROUGHPUT.keys()
    for name in presets():
        server = load(name)
        assert re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*", name)
        assert len(server.source) > 20
        assert server.gpu.lower() in name or name == "reference"
        assert server.gpus == int((re.findall(r"tp(\d)", name) or ["1"])[0])


@pytest.mark.parametrize("name", CLIENTS)
def test_time_per_output_token_is_as_measured(name: str) -> None:
    for prompt, output, measured in CLIENTS[name]:
        predicted = {one: per_output_token_ms(continuous(name), one, prompt, output) for one in measured}
        assert predicted == pytest.approx(measured, rel=0.05)


def simulated(server: ContinuousServer, rate_per_s: float, prompt: int, output: int) -> tuple[float, float]:
    """Mean requests running and mean inter-token latency (ms) of one replica under evenly spaced requests."""
    end_s = 5 * server.batch_max / rate_per_s
    count = int(rate_per_s * end_s)
    requests = Requests(
        arrival_s=np.arange(count) / rate_per_s,
        prompt_tokens=np.full(count, prompt, dtype=np.int32),
        output_tokens=np.full(count, output, dtype=np.int32),
        duration_s=end_s,
        name="even",
    )
    fleet = Fleet(server, requests, replicas=1, seed=1)
    running, tokens, latency_s = [], [], []
    for at_s in np.linspace(0.6 * end_s, end_s, 100):
        fleet.advance(float(at_s))
        counters = fleet.counters()
        running.append(int(counters.running.sum()))
        tokens.append(int(counters.itl.counts.sum()))
        latency_s.append(float(counters.itl.sum_s.sum()))
    return float(np.mean(running)), 1000 * (latency_s[-1] - latency_s[0]) / (tokens[-1] - tokens[0])


@pytest.mark.parametrize(
    ("name", "case", "clients"),
    [
        ("llama-3.1-8b-h100", 0, 64),
        ("llama-3.1-8b-h100", 1, 64),
        ("llama-3.1-8b-h100", 2, 32),
        ("llama-3.1-70b-fp8-h100-tp4", 1, 32),
        ("llama-3.1-70b-fp8-h200", 0, 64),
        ("llama-3.1-70b-fp4-b200", 0, 64),
        ("qwen3-32b-h100-tp8", 0, 64),
    ],
)
def test_the_simulated_server_is_as_measured(name: str, case: int, clients: int) -> None:
    prompt, output, measured = CLIENTS[name][case]
    rate_per_s = clients / (output * measured[clients] / 1000)
    running, itl_ms = simulated(continuous(name), 0.95 * rate_per_s, prompt, output)
    assert running == pytest.approx(clients, rel=0.25)
    assert itl_ms == pytest.approx(np.interp(running, list(measured), list(measured.values())), rel=0.05)


@pytest.mark.parametrize("name", STEPS)
def test_decode_step_is_as_measured(name: str) -> None:
    prompt, output, measured = STEPS[name]
    context = prompt + output / 2
    predicted = {batch: 1000 * continuous(name).step_s(batch, batch * context) for batch in measured}
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("name", THROUGHPUT)
def test_throughput_of_a_batch_is_as_measured(name: str) -> None:
    server = load(name)
    assert isinstance(server, DynamicServer)
    predicted = {batch: batch / server.times_s[batch] for batch in THROUGHPUT[name]}
    assert predicted == pytest.approx(THROUGHPUT[name], rel=0.02)


@pytest.mark.parametrize(
    ("name", "batch"), [("resnet50-a100", 32), ("resnet50-v100", 32), ("resnet50-a40", 32), ("resnet50-t4", 128)]
)
def test_dynamic_batching_is_best_at_the_measured_maximum(name: str, batch: int) -> None:
    assert load(name).best_batch(0, 0) == batch


@pytest.mark.parametrize("name", CLIENTS)
def test_what_was_measured_below_the_knee_fits_into_the_cache(name: str) -> None:
    for prompt, output, measured in CLIENTS[name]:
        assert continuous(name).best_batch(prompt, output) >= max(measured)


def test_h200_has_its_knee_where_it_was_measured() -> None:
    """64 and 128 clients with 8192 + 1024 tokens: first tokens after 29.7 and 127.8 s, 79 and 80 ms a token."""
    server = continuous("llama-3.1-70b-fp8-h200")
    decoding_s = 1024 * 0.080
    ran = 128 * decoding_s / (127.8 + decoding_s)  # Little's law
    assert ran == pytest.approx(50, rel=0.02)
    assert server.best_batch(8192, 1024) == pytest.approx(ran, rel=0.15)
    assert server.kv_tokens / (8192 + 512) == pytest.approx(ran, rel=0.05)
    assert per_output_token_ms(server, round(ran), 8192, 1024) == pytest.approx(79.5, rel=0.05)
    running, itl_ms = simulated(server, 1.5 * server.sustainable_per_s(8192, 1024), 8192, 1024)
    assert running == pytest.approx(ran, rel=0.1)
    # Beyond the knee the simulated server preempts and computes anew, TensorRT-LLM does not: a tenth slower.
    assert itl_ms == pytest.approx(79.5 * 1.1, rel=0.05)


def test_opt_prefill_follows_the_published_square() -> None:
    server = continuous("opt-13b-a100")
    for tokens in (512, 768, 1024):
        published_ms = 18.10 + 0.1019 * tokens + 7.12e-6 * tokens**2
        assert server.gamma_ms + server.delta_ms_per_token * tokens == pytest.approx(published_ms, rel=0.03)


def test_the_reference_fleet_is_the_one_of_the_experiments() -> None:
    server = continuous("reference")
    assert (server.alpha_ms, server.beta_ms, server.gamma_ms, server.delta_ms_per_token) == (20.58, 0.41, 5.2, 0.1)
    assert (server.batch_max, server.prefill_chunk_tokens) == (64, 8192)
    assert (server.cold_start.median_s, server.cold_start.spread) == (90, 0)
    assert server.best_batch(32768, 32768) == 64  # the cache does not bind
    assert server.sustainable_per_s(1155, 211) == pytest.approx(3.65, rel=0.01)
