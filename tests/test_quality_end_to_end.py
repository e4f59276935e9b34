"""Quality end to end: what real GPU counters in a real Prometheus say of a fleet, and what follows from it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import ControlPlane, eventually
from tests.stack import Stack

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "reading-quality.md"
CAPACITY = 16
MOST = 6  # replicas
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
            "replicas": {"min": 1, "max": MOST},
            **spec,
        },
    }


@pytest.fixture(scope="module")
def stack(control_plane: ControlPlane) -> Iterator[Stack]:
    """One stack for the module; windows are seconds, so that what takes minutes in a cluster can be watched."""
    workloads = [
        emulated("hollow", rate_per_s=6, server=HOLLOW),
        emulated("starved", rate_per_s=6, server=HOLLOW, host={"cpu_cores": 3.9, "cpu_throttled": 0.6}),
        emulated("idle", server=HOLLOW),
        emulated("fed", rate_per_s=40, server=HOLLOW, fed_replicas=FED),
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
        start(started)
        yield started
        assert operator.alive, operator.log()[-4000:]
        assert "Traceback" not in operator.log(), operator.log()[-8000:]


def start(stack: Stack) -> None:
    """All fleets at once, each of one replica: what takes long then takes long together."""
    paused = {"bandkeeper.dev/paused": "true"}
    one_in_45_s = {"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 45}]}}
    policies = [
        policy("hollow"),
        policy("starved", mode="Recommend"),
        policy("idle", annotations=paused, cost={"pricePerGPUHour": "3.60"}),
        policy("fed", replicas={"min": 1, "max": 10}, behavior=one_in_45_s),
    ]
    for document in policies:
        stack.deploy(document["metadata"]["name"], replicas=1)
    for document in policies:
        stack.wait_ready(document["metadata"]["name"], 1)
        stack.apply_policy(document)


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
    """The value of a query that will have one soon: what is known now is scraped a moment later."""

    def found() -> list[float]:
        value = stack.prometheus.value(promql)
        return [] if value is None else [value]

    return eventually(found, timeout_s=NEWS_S, what=promql)[0]


def test_full_gpu_utilisation_that_does_no_work_is_named(stack: Stack) -> None:
    eventually(lambda: is_class(stack, "hollow", "Inefficient"), timeout_s=NEWS_S, what="Inefficient")
    busy = 'avg(DCGM_FI_DEV_GPU_UTIL{exported_pod=~"hollow-.*"})'
    # The class may be known before the load is whole, and with it the two seconds that DCGM speaks of.
    eventually(lambda: number(stack, busy) >= 95, timeout_s=NEWS_S, what=f"{busy} >= 95")
    counters = {
        name: number(stack, f'avg({name}{{exported_pod=~"hollow-.*"}})')
        for name in ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "DCGM_FI_PROF_DRAM_ACTIVE")
    }
    print(f"\nwhat DCGM shows: {counters}")
    assert counters["DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"] < 0.2
    assert counters["DCGM_FI_PROF_DRAM_ACTIVE"] < 0.2
    found = quality(stack, "hollow")
    assert found["bottleneck"] == "KernelLaunch"
    assert found["score"] <= 40


def test_kubectl_says_why_and_what_to_do(stack: Stack) -> None:
    text = described(stack, "hollow")
    print(text)
    for words in ("Inefficient", "KernelLaunch", "kernels run", "Remedy:", "CUDA graphs", "Idle Held Percent"):
        assert words in text
    row = stack.cluster.kubectl("get", "gsp", "hollow", "-n", "quality", "-o", "wide")
    print(row)
    assert "QUALITY" in row
    assert "Inefficient" in row


def test_metrics_show_class_and_score(stack: Stack) -> None:
    chosen = 'policy="hollow"'
    named = f'bandkeeper_quality_class{{{chosen},class="Inefficient"}} == 1'
    eventually(lambda: stack.prometheus.query(named), timeout_s=10, what=named)
    assert number(stack, f"bandkeeper_quality_score{{{chosen}}}") <= 40
    assert number(stack, f'bandkeeper_quality_bottleneck{{{chosen},component="KernelLaunch"}}') == 1
    assert number(stack, f'bandkeeper_quality_measure{{{chosen},measure="ArithmeticIntensity"}}') < 50
    gpus = f"bandkeeper_gpus{{{chosen}}}"
    eventually(lambda: number(stack, gpus) == stack.replicas("hollow"), timeout_s=30, what="a GPU a replica")


def test_a_cpu_limit_that_holds_the_gpu_back_is_the_bottleneck_also_of_a_recommendation(stack: Stack) -> None:
    def named() -> bool:
        found = quality(stack, "starved")
        assert (found.get("class"), found.get("bottleneck")) == ("Inefficient", "CPU"), found
        return True

    eventually(named, timeout_s=2 * NEWS_S, what="the CPU named")
    assert "the pods' CPU limit throttles them" in described(stack, "starved")


def test_a_paused_policy_shows_quality_too_and_what_it_wastes(stack: Stack) -> None:
    eventually(lambda: is_class(stack, "idle", "Underused"), timeout_s=NEWS_S, what="Underused")
    assert stack.condition("idle", "Paused")["status"] == "True"
    eventually(lambda: "bottleneck" in quality(stack, "idle"), timeout_s=2 * NEWS_S, what="a bottleneck")
    found = quality(stack, "idle")
    assert found["bottleneck"] == "Demand"
    assert found["wasted"]["idleHeldPercent"] >= 90
    assert found["wasted"]["costPerHour"].endswith("USD")
    sums = (
        'bandkeeper_wasted_gpu_seconds_total{policy="idle"}',
        'bandkeeper_gpu_seconds_total{policy="idle",judged="true"}',
        'bandkeeper_wasted_gpu_cost_total{policy="idle",currency="USD"}',
    )

    def told() -> tuple[float, ...]:
        at_s = time.time() - 1.0  # one moment for all, and one that was scraped
        values = [stack.prometheus.query(f"sum({one})", at_s=at_s) for one in sums]
        return tuple(float(value[0]["value"][1]) for value in values if value)

    eventually(lambda: len(told()) == len(sums) and told()[0] > 5, timeout_s=30, what="wasted GPU time")
    wasted_s, held_s, cost = told()
    assert 0.9 * held_s < wasted_s <= held_s * 1.001
    assert cost == pytest.approx(3.60 * wasted_s / 3600)


def test_a_queue_gets_replicas_until_they_are_seen_not_to_help(stack: Stack) -> None:
    """The same hollow GPUs, a broken SLO and a queue: two replicas can be fed, so the third brings nothing."""

    def vetoed() -> bool:
        found = stack.condition("fed", "ScalingLimited")
        assert found.get("reason") == "MoreWouldNotHelp", (stack.replicas("fed"), found)
        return True

    eventually(vetoed, timeout_s=300, what="the veto")
    assert stack.condition("fed", "WithinSLO")["status"] == "False"
    count = stack.replicas("fed")
    assert FED < count <= 2 * FED, count
    added = [event for event in stack.events("fed") if event.get("action") == "ScaleUp"]
    assert len(added) >= FED, added
    assert stack.policy("fed")["status"]["lastDecision"]["reason"] == "MoreWouldNotHelp"
    assert "more would not help" in described(stack, "fed")
    print(f"\nvetoed at {count} replicas: {stack.condition('fed', 'ScalingLimited')['message']}")
    time.sleep(30)  # the next one was due by then
    assert stack.replicas("fed") == count


def test_an_event_says_that_a_person_should_look(stack: Stack) -> None:
    def said() -> list[Json]:
        return [event for event in stack.events("hollow") if event["reason"] == "QualityChanged"]

    eventually(said, timeout_s=90, what="an event about it")
    (event,) = said()
    assert event["type"] == "Warning"
    assert "Inefficient" in event["note"]


WRONG = [
    ("rename", "Unknown", "neither GR engine active nor GPU utilisation is seen"),
    ("contradict", "Unknown", "the counters contradict each other"),
    ("duplicate", "Inefficient", ""),
]


@pytest.mark.parametrize(("fault", "wanted", "words"), WRONG, ids=[case[0] for case in WRONG])
def test_counters_that_cannot_be_are_unknown_and_never_a_guess(
    stack: Stack, fault: str, wanted: str, words: str
) -> None:
    stack.gpu_fault(fault)

    def judged() -> Json:
        found = quality(stack, "hollow")
        assert found["class"] == wanted, found
        assert words in found.get("reason", ""), found
        return found

    try:
        if wanted != "Unknown":
            time.sleep(30)  # or what was seen before the fault would do
        found = eventually(judged, timeout_s=2 * NEWS_S, what=wanted)
        assert ("score" in found) == (wanted != "Unknown")
    finally:
        stack.gpu_fault("none")


@pytest.mark.parametrize("query", re.findall(r"^```promql\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
def test_every_query_of_the_documentation_has_an_answer(stack: Stack, query: str) -> None:
    """Asked after the faults: one query is of time that nobody could judge."""
    assert eventually(lambda: stack.prometheus.query(query), timeout_s=30, what=query)


def test_none_of_this_added_a_replica_for_busy_gpus(stack: Stack) -> None:
    """With windows of 10 s a hiccup of the machine is offered work, and may add some; that it was work, the event says.

    A rule that follows the GPUs, all of them at 100 %, would have gone on to replicas.max.
    """
    added = [event["note"] for event in stack.events("hollow") if event.get("action") == "ScaleUp"]
    assert all("work" in note and "GPU" not in note for note in added), added
    assert stack.replicas("hollow") < MOST, added
    assert len([event for event in stack.events("hollow") if event["reason"] == "QualityChanged"]) == 1
