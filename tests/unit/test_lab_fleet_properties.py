"""Whatever is ordered, whatever crashes: nothing is lost, nothing overflows, the same seed gives the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.snapshot import PodState
from bandkeeper.lab.fleet import Fleet, Status
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.server import ContinuousServer, Server
from tests.unit.lab_fleets import a_dynamic_server, a_server, poisson, requests_at

KV_TOKENS = 6_000


@dataclass(frozen=True)
class Order:
    """What is ordered after some time: replicas, a cap, or nothing."""

    after_s: float
    what: str
    number: int


ORDERS = st.lists(
    st.builds(
        Order,
        after_s=st.sampled_from([0.0, 0.01, 1.0, 7.5, 15.0, 60.0]),
        what=st.sampled_from(["scale", "scale", "cap", "look"]),
        number=st.integers(0, 7),
    ),
    max_size=30,
)
SHARED: dict[str, Any] = {"cold_start": {"median_s": 20, "spread": 0.4}, "cap_delay_s": 3.0}
SERVERS = st.builds(
    lambda make, max_queue, nodes_gpus, crashes, slow_start_s, drain_s: make(
        max_queue=max_queue,
        nodes_gpus=nodes_gpus,
        crashes_per_hour=crashes,
        slow_start_s=slow_start_s,
        drain_s=drain_s,
        **SHARED,
    ),
    make=st.sampled_from(
        [
            lambda **more: a_server(batch_max=8, kv_tokens=KV_TOKENS, prefill_chunk_tokens=512, **more),
            lambda **more: a_dynamic_server(batch_max=8, max_delay_ms=100.0, **more),
        ]
    ),
    max_queue=st.sampled_from([None, 1, 20]),
    nodes_gpus=st.sampled_from([None, 4]),
    crashes=st.sampled_from([0.0, 0.0, 40.0]),
    slow_start_s=st.sampled_from([0.0, 30.0]),
    drain_s=st.sampled_from([0.0, 4.0, 60.0]),
)


def some_requests(seed: int) -> Requests:
    """From few long answers to more than there is room for."""
    random = np.random.default_rng(seed)
    rate_per_s, output = ((0.7, 1500), (1.5, 700), (5.0, 200), (8.0, 20))[seed]
    number = int(180 * rate_per_s)
    times_s = np.round(poisson(rate_per_s, number, seed), 2)  # so that some arrive together
    return requests_at(times_s, random.integers(1, 3000, number), random.integers(1, output, number), duration_s=200.0)


def run(
    server: Server,
    orders: list[Order],
    seed: int,
    look: Callable[[Fleet], None] = lambda fleet: None,
    part_s: float = 1e9,
) -> Fleet:
    fleet = Fleet(server, some_requests(seed), replicas=2, seed=seed, itl_thresholds_s=(0.03, 0.2))
    for order in [*orders, Order(100.0, "look", 0)]:
        until_s = fleet.now_s + order.after_s
        while fleet.now_s + part_s < until_s:
            fleet.advance(fleet.now_s + part_s)
            look(fleet)
        fleet.advance(until_s)
        if order.what == "scale":
            fleet.scale(order.number)
        elif order.what == "cap":
            fleet.set_cap(order.number)
        look(fleet)
    return fleet


def check(fleet: Fleet) -> None:
    """What holds at any time."""
    server, requests = fleet._server, fleet._arrays.asked
    outcome, counters = fleet.outcome(), fleet.counters()
    pods = fleet.pods
    slots = [pod.slot for pod in pods]
    assert len(set(slots)) == len(slots)
    staying = [pod for pod in pods if pod.state is not PodState.TERMINATING]
    assert len(staying) == fleet.replicas
    if server.nodes_gpus is not None:
        assert sum(pod.state is not PodState.UNSCHEDULABLE for pod in pods) <= server.nodes_gpus

    came = int((requests["arrival_s"] <= fleet.now_s).sum())
    in_hand = int(counters.running.sum() + counters.waiting.sum()) + fleet.held
    ended = outcome.status != Status.UNSERVED
    assert came == in_hand + ended.sum()
    assert not ended[came:].any()
    assert (np.isfinite(outcome.end_s) == ended).all()
    assert (outcome.end_s[ended] >= requests["arrival_s"][ended]).all()
    assert (outcome.end_s[ended] <= fleet.now_s).all()
    if any(pod.state is PodState.READY for pod in pods):
        assert fleet.held == 0

    assert (counters.running <= server.batch_max).all()
    if server.max_queue is not None and not counters.preemptions.any():
        assert (counters.waiting <= server.max_queue).all()
    assert (outcome.tokens >= 0).all()
    assert (outcome.late_tokens >= 0).all()
    assert (outcome.late_tokens.max(axis=1, initial=0) <= outcome.tokens).all()
    if isinstance(server, ContinuousServer):
        check_cache(fleet)
        totals = fleet.token_totals()
        assert totals.counts.sum() == outcome.tokens.sum()
        assert totals.late_share(0.2) in (None, outcome.late_tokens[:, 1].sum() / max(1, outcome.tokens.sum()))


def check_cache(fleet: Fleet) -> None:
    """What the cache holds is what its requests hold, and never more than there is."""
    arrays = fleet._arrays
    for pod in fleet.pods:
        row, used = arrays.pods[pod.slot], 0
        for index in range(row["running"]):
            place = arrays.batches[pod.slot, index]
            one = arrays.asked[place["request"]]
            used += int(one["prompt"]) + int(one["generated"])
            if index < row["decoding"]:
                goal = min(int(one["output"]), KV_TOKENS - int(one["prompt"]) - 1)
                used += goal - int(place["ends_at"] - row["decode_steps"]) - int(one["generated"]) - 1
        assert row["kv"] == used
        assert 0 <= used <= KV_TOKENS


@given(server=SERVERS, orders=ORDERS, seed=st.integers(0, 3))
def test_nothing_is_lost_and_nothing_overflows(server: Server, orders: list[Order], seed: int) -> None:
    fleet = run(server, orders, seed, check)
    # Given pods and time, all is served.
    fleet._server = server.model_copy(update={"crashes_per_hour": 0.0})
    fleet.scale(3)
    fleet.advance(fleet.now_s + 8000.0)
    check(fleet)
    if not server.crashes_per_hour:
        assert (fleet.outcome().status != Status.UNSERVED).all()


@given(server=SERVERS, orders=ORDERS, seed=st.integers(0, 3), part_s=st.sampled_from([0.37, 5.0]))
def test_a_run_is_the_same_again_and_however_its_time_is_cut(
    server: Server, orders: list[Order], seed: int, part_s: float
) -> None:
    first = run(server, orders, seed)
    for other in (run(server, orders, seed), run(server, orders, seed, part_s=part_s)):
        assert contents(other) == contents(first)


def contents(fleet: Fleet) -> list[bytes | tuple[str, ...]]:
    outcome, counters, totals = fleet.outcome(), fleet.counters(), fleet.token_totals()
    found: list[bytes | tuple[str, ...]] = [totals.counts.tobytes(), outcome.ledger.names]
    for record in (outcome, outcome.ledger, counters, counters.itl, counters.ttft, counters.e2e, counters.queue):
        values = [getattr(record, field.name) for field in fields(record)]
        found += [value.tobytes() for value in values if isinstance(value, np.ndarray)]
    return found
