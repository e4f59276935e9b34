"""The compiled servers do what the emulator's do, request by request and counter by counter."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bandkeeper.lab.fleet import Counters, Fleet, Histograms, Status
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.server import ContinuousServer, DynamicServer
from tests.emulator import config
from tests.emulator.histogram import Histogram
from tests.emulator.request import Request
from tests.emulator.servers import ContinuousBatchingServer, DynamicBatchingServer, Server
from tests.unit.lab_fleets import a_dynamic_server, a_server, poisson, requests_at

UNTIL_S = 400.0
CLOSE: dict[str, Any] = {"rel": 1e-9, "abs": 1e-9}


@dataclass
class Told:
    """What the emulated server told about each request, NaN: nothing."""

    end_s: npt.NDArray[np.float64]
    requests: list[Request]


def emulated(server: ContinuousServer | DynamicServer) -> Server:
    edges_s = Fleet(server, requests_at([]), replicas=1, seed=1).counters().e2e.edges_s
    buckets = config.Buckets(request_s=edges_s)
    rest = {"max_queue": server.max_queue, "cap_delay_s": server.cap_delay_s, "capacity": server.batch_max}
    if isinstance(server, ContinuousServer):
        names = ("alpha_ms", "beta_ms", "gamma_ms", "delta_ms_per_token", "kappa_ms_per_ktoken", "kv_tokens")
        figures = {name: getattr(server, name) for name in names}
        spec = config.ContinuousServer(prefill_budget=server.prefill_chunk_tokens, **figures, **rest)
        return ContinuousBatchingServer(spec, buckets, Random(1))
    table = config.DynamicServer(batch_ms=server.batch_ms, max_delay_ms=server.max_delay_ms, **rest)
    return DynamicBatchingServer(table, buckets, Random(1))


def play(server: Server, requests: Requests, caps: dict[float, int], stop_s: float | None, grace_s: float) -> Told:
    told = Told(np.full(len(requests), np.nan), [])
    events: list[tuple[float, int]] = [(at_s, index) for index, at_s in enumerate(requests.arrival_s)]
    events += [(at_s, -1) for at_s in caps]
    for at_s, index in sorted(events):
        if stop_s is not None and at_s > stop_s:
            break
        server.advance(at_s)
        if index < 0:
            server.set_cap(caps[at_s], at_s)
            continue
        request = Request(at_s, int(requests.prompt_tokens[index]), int(requests.output_tokens[index]))
        request.done = lambda end_s, index=index: told.end_s.__setitem__(index, end_s)
        told.requests.append(request)
        server.submit(request, at_s)
    if stop_s is not None:
        server.advance(stop_s)
        server.terminate(stop_s, grace_s)
    server.advance(UNTIL_S)
    return told


def assert_same_histogram(given: Histograms, wanted: Histogram) -> None:
    assert given.edges_s == wanted.buckets
    assert given.counts[0].cumsum()[:-1].tolist() == wanted.cumulative()
    assert given.counts[0].sum() == wanted.count
    assert given.sum_s[0] == pytest.approx(wanted.sum, **CLOSE)


def assert_same_counters(given: Counters, server: Server) -> None:
    stats, activity = server.stats, server.activity(UNTIL_S)
    assert given.running[0] == server.running_count
    assert given.waiting[0] == server.waiting_count
    assert given.arrived[0] == stats.arrived
    assert given.finished[0] == stats.succeeded
    assert given.failed[0] == stats.failed
    assert given.rejected[0] == stats.rejected
    assert given.preemptions[0] == stats.preemptions
    assert given.prompt_tokens[0] == stats.prompt_tokens
    assert given.generation_tokens[0] == stats.generation_tokens
    assert given.executions[0] == stats.executions
    assert given.iterations[0] == stats.iteration_tokens.count
    assert given.iteration_tokens[0] == stats.iteration_tokens.sum
    for name in ("itl", "ttft", "e2e", "queue"):
        assert_same_histogram(getattr(given, name), getattr(stats, name))
    assert given.busy_s[0] == pytest.approx(activity.busy_s, **CLOSE)
    assert given.tensor_s[0] == pytest.approx(activity.tensor_s, **CLOSE)


SERVERS: dict[str, ContinuousServer | DynamicServer] = {
    "plain": a_server(),
    "small chunks": a_server(prefill_chunk_tokens=256),
    "context": a_server(kappa_ms_per_ktoken=0.3, gamma_ms=0.0),
    "preempting": a_server(kv_tokens=9_000, prefill_chunk_tokens=700),
    "tight": a_server(kv_tokens=1_500, batch_max=20),
    "shedding": a_server(batch_max=8, max_queue=5),
    "slow to obey": a_server(cap_delay_s=17.3),
    "dynamic": a_dynamic_server(max_delay_ms=3.0),
    "dynamic, shedding": a_dynamic_server(batch_max=4, max_queue=6, max_delay_ms=40.0),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", SERVERS)
def test_same_arrivals_same_ends(name: str, seed: int) -> None:
    server = SERVERS[name]
    random = np.random.default_rng(seed)
    rate_per_s = 1000.0 if isinstance(server, DynamicServer) else 4.0
    times_s = poisson(rate_per_s, 1200, seed)
    prompt, output = random.integers(1, 1200, 1200), random.integers(1, 400, 1200)
    requests = requests_at(times_s, prompt, output)
    caps = {float(times_s[400]) + 1e-4: 12, float(times_s[800]) + 1e-4: 40}

    other = emulated(server)
    told = play(other, requests, caps, None, 0.0)
    fleet = Fleet(server, requests, replicas=1, seed=1)
    for at_s, cap in caps.items():
        fleet.advance(at_s)
        fleet.set_cap(cap)
    fleet.advance(UNTIL_S)

    outcome = fleet.outcome()
    assert_same_counters(fleet.counters(), other)
    finished = outcome.status == Status.FINISHED
    assert finished.sum() == other.stats.succeeded > 100
    assert outcome.end_s[finished] == pytest.approx(told.end_s[finished], **CLOSE)
    if isinstance(other, ContinuousBatchingServer):
        first_s = np.array([np.nan if one.first_token_s is None else one.first_token_s for one in told.requests])
        assert outcome.first_token_s == pytest.approx(first_s, nan_ok=True, **CLOSE)
        assert outcome.tokens[finished].tolist() == [
            one.output - 1 for one, here in zip(told.requests, finished, strict=True) if here
        ]
        assert fleet.counters().kv_usage[0] == pytest.approx(other.kv_usage)
    if name in ("preempting", "tight"):
        assert other.stats.preemptions > 20
    if "shedding" in name:
        assert other.stats.rejected > 10


def test_same_ends_where_nothing_else_waits_for_the_preempted() -> None:
    server = a_server(kv_tokens=600)
    requests = requests_at(poisson(0.6, 200), 60, np.random.default_rng(2).choice([5, 400], 200, p=[0.7, 0.3]))
    other = emulated(server)
    told = play(other, requests, {}, None, 0.0)
    fleet = Fleet(server, requests, replicas=1, seed=1)
    fleet.advance(UNTIL_S)
    assert other.stats.preemptions > 10
    assert fleet.outcome().end_s == pytest.approx(told.end_s, **CLOSE)


@pytest.mark.parametrize("grace_s", [0.4, 3.0, 500.0])
@pytest.mark.parametrize("name", ["plain", "preempting", "dynamic"])
def test_same_end_when_it_drains(name: str, grace_s: float) -> None:
    server = SERVERS[name].model_copy(update={"drain_s": grace_s})
    rate_per_s = 2000.0 if isinstance(server, DynamicServer) else 4.0
    requests = requests_at(poisson(rate_per_s, 400), 300, 200)
    stop_s = float(requests.arrival_s[-1]) + 1e-4

    other = emulated(server)
    told = play(other, requests, {}, stop_s, grace_s)
    fleet = Fleet(server, requests, replicas=1, seed=1)
    fleet.advance(stop_s)
    fleet.scale(0)
    fleet.advance(UNTIL_S)

    outcome = fleet.outcome()
    assert other.gone
    assert not fleet.pods
    finished = outcome.status == Status.FINISHED
    assert outcome.end_s[finished] == pytest.approx(told.end_s[finished], **CLOSE)
    assert finished.sum() == other.stats.succeeded
    assert (outcome.status == Status.FAILED).sum() == other.stats.failed
    assert (outcome.status == Status.UNSERVED).sum() == 0
    assert outcome.ledger.ended_s[0] == pytest.approx(min(stop_s + grace_s, np.nanmax(outcome.end_s)), **CLOSE)
