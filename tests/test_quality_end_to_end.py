"""Quality end to end: what real GPU counters in a real Prometheus say of a fleet, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import ControlPlane, eventually
from tests.stack import Stack

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
CAPACITY = 16
FED = 2  # replicas that the shared storage of `fed` can feed
NEWS_S = 60.0  # the operator asks GPU exporters every 25 s and host counters every 55 s, and may have just asked
HOLLOW = {"prefill_tensor": 0.1, "prefill_dram": 0.05, "decode_dram": 0.12}  # kernels run, and hardly any work is done


def emulated(name: str, *, rate_per_s: float = 0.0, server: Json | None = None, **more: Any) -> Json:
    """A continuous-batching workload whose replicas carry about 9 requests/s each."""
    return {
        "name": name,
        "namespace": "quality",
        "selector": {"app": name},
        "kind": "continuous",
        "server": {"preset": "a100-wva", "capacity": CAPACITY, "cap_delay_s": 1, **(server or {})},
        "load": {"kind": "constant", "rate_per_s": rate_per_s},
        "tokens": {"prompt": {"kind": "fixed", "value": 100}, "output": {"kind": "fixed", "value": 50}},
        **more,
    }


def policy(name: str, *, annotations: Json | None = None, **spec: Any) -> Json:
    """A quick policy on the Deployment of the same name."""
    return {
        "apiVersion": "bandkeeper.dev/v1alpha1",
        "kind": "GPUScalingPolicy",
        "metadata": {"name": name, "namespace": "quality", "annotations": annotations or {}},
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "objective": "LatencySensitive",
            "runtime": "VLLM",
            "slos": [{"signal": "TimeToFirstToken", "percentile": 95, "threshold": "1s", "window": "10s"}],
            "replicas": {"min": 1, "max": 6},
            **spec,
        },
    }


@pytest.fixture(scope="module")
def stack(control_plane: ControlPlane) -> Iterator[Stack]:
    """One stack for the module; windows are seconds, so that what takes minutes in a cluster can be watched."""
    workloads = [
        emulated("hollow", rate_per_s=3, server=HOLLOW),
        emulated("starved", rate_per_s=3, server=HOLLOW, host={"cpu_cores": 3.9, "cpu_throttled": 0.6}),
        emulated("idle", server=HOLLOW),
        emulated("fed", server=HOLLOW, fed_replicas=FED),
    ]
    control_plane.add_gpu_node("quality", gpus=16)
    with Stack(
        emulator={"workloads": workloads, "dcgm": {"period_s": 2}}, cluster=control_plane, namespace="quality"
    ) as started:
        operator = started.start_operator(
            restartHold="1s",
            prometheus={
                "servers": [{"name": "stack", "url": started.prometheus.url}],
                "rateWindow": "10s",
            },
            quality={"thresholds": {"window": "10s", "settle": "5s"}},
        )
        eventually(operator.ready, timeout_s=30, what="the operator ready")
        yield started
        assert operator.alive, operator.log()[-4000:]
        assert "Traceback" not in operator.log(), operator.log()[-8000:]


def quality(stack: Stack, name: str) -> Json:
    """The quality in a policy's status; empty while it has none."""
    found: Json = stack.policy(name).get("status", {}).get("quality", {})
    return found


def described(stack: Stack, name: str) -> str:
    """What `kubectl describe` says of a policy."""
    return stack.cluster.kubectl("describe", "gsp", name, "-n", "quality")


def is_class(stack: Stack, name: str, wanted: str) -> bool:
    """Whether a policy's quality has that class; fails with all of it."""
    found = quality(stack, name)
    assert found.get("class") == wanted, found
    return True


def number(stack: Stack, promql: str) -> float:
    """The value of a query that must have one."""
    found = stack.prometheus.value(promql)
    assert found is not None, promql
    return found


@pytest.fixture(scope="module")
def hollow(stack: Stack) -> str:
    """A fleet of one replica that is busy all the time and does hardly any work, and far from its capacity."""
    stack.deploy("hollow", replicas=1)
    stack.wait_ready("hollow", 1)
    stack.apply_policy(policy("hollow"))
    eventually(lambda: is_class(stack, "hollow", "Inefficient"), timeout_s=NEWS_S, what="Inefficient")
    return "hollow"


def test_full_gpu_utilisation_that_does_no_work_is_named_and_gets_no_replica(stack: Stack, hollow: str) -> None:
    counters = {
        name: number(stack, f'avg({name}{{exported_pod=~"hollow-.*"}})')
        for name in ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "DCGM_FI_PROF_DRAM_ACTIVE")
    }
    print(f"\nwhat DCGM shows: {counters}")
    assert counters["DCGM_FI_DEV_GPU_UTIL"] >= 90
    assert counters["DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"] < 0.2
    assert counters["DCGM_FI_PROF_DRAM_ACTIVE"] < 0.2
    found = quality(stack, hollow)
    assert found["bottleneck"] == "KernelLaunch"
    assert found["score"] <= 40
    time.sleep(20)
    assert stack.replicas(hollow) == 1
    assert not [event for event in stack.events(hollow) if event.get("action") == "ScaleUp"]


def test_kubectl_says_why_and_what_to_do(stack: Stack, hollow: str) -> None:
    text = described(stack, hollow)
    print(text)
    for words in ("Inefficient", "KernelLaunch", "kernels run", "Remedy:", "CUDA graphs", "Idle Held Percent"):
        assert words in text
    row = stack.cluster.kubectl("get", "gsp", hollow, "-n", "quality", "-o", "wide")
    print(row)
    assert "QUALITY" in row
    assert "Inefficient" in row
    eventually(
        lambda: any(event["reason"] == "QualityChanged" for event in stack.events(hollow)),
        timeout_s=90,
        what="an event about it",
    )
    (event,) = [event for event in stack.events(hollow) if event["reason"] == "QualityChanged"]
    assert event["type"] == "Warning"
    assert "Inefficient" in event["note"]


def test_metrics_show_class_and_score(stack: Stack, hollow: str) -> None:
    chosen = f'policy="{hollow}"'
    assert number(stack, f'bandkeeper_quality_class{{{chosen},class="Inefficient"}}') == 1
    assert number(stack, f"bandkeeper_quality_score{{{chosen}}}") <= 40
    assert number(stack, f'bandkeeper_quality_bottleneck{{{chosen},component="KernelLaunch"}}') == 1
    assert number(stack, f'bandkeeper_quality_measure{{{chosen},measure="ArithmeticIntensity"}}') < 50
    assert number(stack, f"bandkeeper_gpus{{{chosen}}}") == 1


def test_a_cpu_limit_that_holds_the_gpu_back_is_the_bottleneck_also_of_a_recommendation(stack: Stack) -> None:
    stack.deploy("starved", replicas=1)
    stack.wait_ready("starved", 1)
    stack.apply_policy(policy("starved", mode="Recommend"))

    def named() -> bool:
        found = quality(stack, "starved")
        assert (found.get("class"), found.get("bottleneck")) == ("Inefficient", "CPU"), found
        return True

    eventually(named, timeout_s=2 * NEWS_S, what="the CPU named")
    assert "CPU limit" in described(stack, "starved")


def test_a_paused_policy_shows_quality_too_and_what_it_wastes(stack: Stack) -> None:
    stack.deploy("idle", replicas=1)
    stack.wait_ready("idle", 1)
    paused = {"bandkeeper.dev/paused": "true"}
    stack.apply_policy(policy("idle", annotations=paused, cost={"pricePerGPUHour": "3.60"}))
    eventually(lambda: is_class(stack, "idle", "Underused"), timeout_s=NEWS_S, what="Underused")
    assert stack.condition("idle", "Paused")["status"] == "True"
    found = quality(stack, "idle")
    assert found["bottleneck"] == "Demand"
    assert found["wasted"]["idleHeldPercent"] >= 90
    assert found["wasted"]["costPerHour"].endswith("USD")
    sums = "bandkeeper_wasted_gpu_seconds_total", "bandkeeper_gpu_seconds_total", "bandkeeper_wasted_gpu_cost_total"

    def told() -> tuple[float, ...]:
        at_s = time.time() - 1.0  # one moment for all, and one that was scraped
        values = [stack.prometheus.query(f'sum({name}{{policy="idle"}})', at_s=at_s) for name in sums]
        return tuple(float(value[0]["value"][1]) for value in values if value)

    eventually(lambda: len(told()) == len(sums) and told()[0] > 5, timeout_s=30, what="wasted GPU time")
    wasted_s, held_s, cost = told()
    assert 0.5 * held_s < wasted_s <= held_s
    assert cost == pytest.approx(3.60 * wasted_s / 3600)


def test_a_queue_gets_replicas_until_they_are_seen_not_to_help(stack: Stack) -> None:
    """The same hollow GPUs, a broken SLO and a queue: two replicas can be fed, so the third brings nothing."""
    one_in_30_s = {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 30}]}
    stack.deploy("fed", replicas=1)
    stack.wait_ready("fed", 1)
    stack.apply_policy(policy("fed", replicas={"min": 1, "max": 10}, behavior={"scaleUp": one_in_30_s}))
    stack.load("fed", {"kind": "constant", "rate_per_s": 40})
    eventually(lambda: stack.replicas("fed") > FED, timeout_s=150, what="replicas for the broken promise")
    assert stack.condition("fed", "WithinSLO")["status"] == "False"

    def vetoed() -> bool:
        found = stack.condition("fed", "ScalingLimited")
        assert found.get("reason") == "MoreWouldNotHelp", (stack.replicas("fed"), found)
        return True

    eventually(vetoed, timeout_s=150, what="the veto")
    count = stack.replicas("fed")
    assert FED < count <= 2 * FED, count
    assert stack.policy("fed")["status"]["lastDecision"]["reason"] == "MoreWouldNotHelp"
    assert "more would not help" in described(stack, "fed")
    print(f"\nvetoed at {count} replicas: {stack.condition('fed', 'ScalingLimited')['message']}")
    time.sleep(40)
    assert stack.replicas("fed") == count


WRONG = [
    ("rename", "Unknown", "no GPU counters"),
    ("sentinel", "Unknown", "no GPU counters"),
    ("contradict", "Unknown", "contradict"),
    ("duplicate", "Inefficient", ""),
]


@pytest.mark.parametrize(("fault", "wanted", "words"), WRONG, ids=[case[0] for case in WRONG])
def test_counters_that_cannot_be_are_unknown_and_never_a_guess(
    stack: Stack, hollow: str, fault: str, wanted: str, words: str
) -> None:
    stack.gpu_fault(fault)
    try:
        if wanted == "Inefficient":
            time.sleep(30)
        eventually(lambda: is_class(stack, hollow, wanted), timeout_s=2 * NEWS_S, what=wanted)
        found = quality(stack, hollow)
        assert words in found.get("reason", ""), found
        assert ("score" in found) == (wanted != "Unknown")
        assert stack.replicas(hollow) == 1
    finally:
        stack.gpu_fault("none")
