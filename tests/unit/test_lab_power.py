"""Power held under its limit in whole runs: how often it is above, and what throughput that costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.policy import Batching, Policy, default_candidates
from bandkeeper.lab import server as servers
from bandkeeper.lab.result import PowerResult, Result
from bandkeeper.lab.rules import bandkeeper
from bandkeeper.lab.rules.rule import Rule, Setting, View, Want
from bandkeeper.lab.run import simulate
from bandkeeper.lab.server import DynamicServer, Server
from bandkeeper.lab.workloads import synthetic
from tests.unit.builders import E2E, TTFT, a_batch, a_policy

T4 = servers.load("resnet50-t4").model_copy(update={"time_scale": 20.0, "max_queue": 256})
H100 = servers.load("llama-3.1-8b-h100").model_copy(update={"max_queue": 64})
SPAN = "duration_s=2700"


class Fixed:
    """One replica at one cap."""

    title, source, hindsight = "Fixed", "this test", True

    def __init__(self, cap: int) -> None:
        self.cap = cap

    def decide(self, view: View) -> Want:
        return Want(replicas=1, cap=self.cap, reason="", message="")


def a_limited_policy(server: Server, watts: float | None, objective: Objective, most: int) -> Policy:
    dynamic = isinstance(server, DynamicServer)
    slos = [] if objective is Objective.THROUGHPUT_SENSITIVE else [replace(E2E if dynamic else TTFT, threshold_s=3.0)]
    return a_policy(
        objective,
        slos=slos,
        replicas=(1, most),
        batch=a_batch(default_candidates(1, server.batch_max, fine=True)),
        batching=Batching.DYNAMIC if dynamic else Batching.CONTINUOUS,
        power_watts=watts,
    )


def played(server: Server, policy: Policy, load: str, rule: Rule | None = None, start: int = 1) -> Result:
    requests = synthetic.make(load, server, seed=1, max_replicas=policy.max_replicas)
    setting = Setting(policy=policy, server=server, requests=requests)
    return simulate(setting, rule or bandkeeper.Rule(setting), rule_name="x", start=start, warmup_s=900.0)


def power(result: Result) -> PowerResult:
    assert result.power is not None
    return result.power


@pytest.mark.parametrize(("server", "watts"), [(T4, 45.0), (T4, 50.0), (H100, 490.0)], ids=["T4-45", "T4-50", "H100"])
def test_the_most_throughput_under_the_limit(server: Server, watts: float) -> None:
    """At an overload, against the best of all fixed caps in hindsight."""
    policy = a_limited_policy(server, watts, Objective.THROUGHPUT_SENSITIVE, 1)
    load = f"poisson:level=1.5,{SPAN}"
    ours = played(server, policy, load)
    assert policy.batch is not None
    best = 0
    for cap in policy.batch.candidates:
        fixed = played(server, policy, load, Fixed(cap))
        if (power(fixed).mean_watts or watts + 1) > watts:
            break  # power rises with the cap
        best = max(best, fixed.requests.finished)
    assert best > 0
    assert ours.requests.finished >= 0.9 * best
    assert (power(ours).above or 0.0) < 0.05
    assert (power(ours).mean_watts or 0.0) > 0.95 * watts


@pytest.mark.parametrize(
    ("server", "watts", "objective"),
    [
        *((T4, 45.0, objective) for objective in Objective),
        (T4, 50.0, Objective.BALANCED),
        (H100, 485.0, Objective.THROUGHPUT_SENSITIVE),
    ],
)
def test_it_is_kept_while_the_load_comes_and_goes_and_replicas_take_the_rest(
    server: Server, watts: float, objective: Objective
) -> None:
    load = "waves:low=0.3,high=2,period_s=1200,duration_s=6300"
    free = played(server, a_limited_policy(server, None, objective, 6), load, start=3)
    bound = played(server, a_limited_policy(server, watts, objective, 6), load, start=3)
    assert free.power is None
    assert free.series.watts == []
    assert (power(bound).above or 0.0) < 0.05
    assert bound.gpu_hours >= free.gpu_hours
    assert bound.requests.finished >= 0.95 * free.requests.finished


def test_the_limit_that_does_not_bind_changes_nothing() -> None:
    candidates = default_candidates(1, T4.batch_max, fine=True)
    free, loose = (a_limited_policy(T4, watts, Objective.THROUGHPUT_SENSITIVE, 3) for watts in (None, 70.0))
    assert free.batch is not None
    assert free.batch.candidates == candidates
    one, other = (played(T4, policy, f"poisson:level=1.5,{SPAN}") for policy in (free, loose))
    assert one.moves == other.moves


def test_a_limit_below_what_the_smallest_batch_draws_is_said() -> None:
    policy = a_limited_policy(T4, 20.0, Objective.THROUGHPUT_SENSITIVE, 1)
    requests = synthetic.make(f"poisson:level=1.5,{SPAN}", T4, seed=1, max_replicas=1)
    setting = Setting(policy=policy, server=T4, requests=requests)
    rule = bandkeeper.Rule(setting)
    result = simulate(setting, rule, rule_name="x", start=1, warmup_s=900.0)
    assert result.moves[-1].cap_to == 1
    assert power(result).above == 1.0
    assert rule.decision is not None
    assert rule.decision.power is not None
    assert "at the smallest batch cap, 1" in rule.decision.power.message
