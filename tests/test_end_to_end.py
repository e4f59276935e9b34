"""The spine end to end: a policy applied with kubectl scales a real Deployment from real Prometheus metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster import CommandError, ControlPlane, Prometheus, WebConfig, eventually
from tests.stack import Stack

pytestmark = pytest.mark.cluster

Json = dict[str, Any]
CAPACITY = 16
FLOOR = [{"signal": "GenerationTokens", "minPerSecond": 1, "window": "10s"}]
OUTAGE_S = float(os.environ.get("OUTAGE_S", "20"))
TOKENS = {"prompt": {"kind": "fixed", "value": 100}, "output": {"kind": "fixed", "value": 50}}


def emulated(name: str, **more: Any) -> Json:
    """A continuous-batching workload: a replica at its capacity of 16 carries about 9 requests/s."""
    return {
        "name": name,
        "namespace": "spine",
        "selector": {"app": name},
        "kind": "continuous",
        "server": {"preset": "a100-wva", "capacity": CAPACITY, "cap_delay_s": 1, **more},
        "load": {"kind": "constant", "rate_per_s": 0},
        "tokens": TOKENS,
    }


def policy(name: str, **spec: Any) -> Json:
    """A quick policy on the Deployment of the same name."""
    quick = {"stabilizationWindowSeconds": 0}
    return {
        "apiVersion": "bandkeeper.dev/v1alpha1",
        "kind": "GPUScalingPolicy",
        "metadata": {"name": name, "namespace": "spine"},
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "objective": "LatencySensitive",
            "runtime": "VLLM",
            "slos": [{"signal": "TimeToFirstToken", "percentile": 95, "threshold": "1s", "window": "10s"}],
            "replicas": {"min": 1, "max": 6},
            "behavior": {"scaleDown": quick},
            **spec,
        },
    }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that wants a password."""
    with Prometheus.start(tmp_path_factory.mktemp("guarded"), web_config=WebConfig(basic_auth=True)) as started:
        yield started


@pytest.fixture(scope="module")
def stack(control_plane: ControlPlane, guarded: Prometheus) -> Iterator[Stack]:
    """One stack for the module: the operator runs under the chart's service account."""
    names = ("chat", "selected", "night", "outage", "bad", "live", "roll", "paused", "ranks")
    emulator = {"workloads": [emulated(name) for name in names], "dcgm": {"period_s": 2}}
    control_plane.add_gpu_node("spine", gpus=16)  # every workload's most replicas at once, whatever other modules left
    with Stack(emulator=emulator, cluster=control_plane, namespace="spine") as started:
        servers = [
            {"name": "stack", "url": started.prometheus.url},
            {"name": "gone", "url": "http://127.0.0.1:9"},
            {"name": "guarded", "url": guarded.url},
        ]
        operator = started.start_operator(
            restartHold="1s", prometheus={"servers": servers, "allowedURLs": [started.prometheus.url]}
        )
        eventually(operator.ready, timeout_s=30, what="the operator ready")
        yield started
        assert operator.alive, operator.log()[-4000:]
        assert "Traceback" not in operator.log(), operator.log()[-8000:]


def test_a_rising_load_adds_replicas_and_the_status_says_why(stack: Stack) -> None:
    stack.deploy("chat", replicas=1)
    stack.wait_ready("chat", 1)
    stack.apply_policy(policy("chat"))
    eventually(lambda: stack.condition("chat", "Ready").get("status") == "True", timeout_s=10, what="Ready")
    stack.load("chat", {"kind": "constant", "rate_per_s": 25})
    eventually(lambda: stack.replicas("chat") >= 3, timeout_s=40, what="three replicas")
    status = stack.policy("chat")["status"]
    assert status["replicas"]["desired"] >= 3
    assert status["history"][0]["replicas"] >= 3
    assert status["lastDecision"]["message"]
    scaled = [event for event in stack.events("chat") if event.get("action") == "ScaleUp"]
    assert scaled
    assert "replicas" in scaled[0]["note"].lower()


def test_a_night_without_traffic_scales_in_to_the_minimum(stack: Stack) -> None:
    stack.deploy("night", replicas=3)
    stack.wait_ready("night", 3)
    stack.apply_policy(policy("night"))
    eventually(lambda: stack.replicas("night") == 1, timeout_s=100, what="one replica")
    assert stack.condition("night", "WithinSLO")["reason"] == "NoTraffic"


def test_a_policy_that_is_paused_or_only_recommends_writes_nothing(stack: Stack) -> None:
    stack.deploy("paused", replicas=1)
    stack.wait_ready("paused", 1)
    stack.apply_policy(policy("paused", mode="Recommend", replicas={"min": 2, "max": 4}))

    def recommended() -> bool:
        return bool(stack.policy("paused").get("status", {}).get("replicas", {}).get("desired") == 2)

    eventually(recommended, timeout_s=15, what="a recommendation of 2")
    assert stack.replicas("paused") == 1
    assert any(event.get("action") == "Recommend" for event in stack.events("paused"))
    document = policy("paused", replicas={"min": 2, "max": 4})
    document["metadata"]["annotations"] = {"bandkeeper.dev/paused": "true"}
    stack.apply_policy(document)
    eventually(lambda: stack.condition("paused", "Paused").get("status") == "True", timeout_s=10, what="Paused")
    assert stack.replicas("paused") == 1
    stack.cluster.kubectl("annotate", "gsp", "paused", "-n", "spine", "bandkeeper.dev/paused-")
    eventually(lambda: stack.replicas("paused") == 2, timeout_s=15, what="two replicas after the pause")


def test_a_batch_cap_reaches_the_pods_by_annotation(stack: Stack) -> None:
    stack.deploy("live", replicas=1, annotations={"bandkeeper.dev/batch-cap": "4"})
    stack.wait_ready("live", 1)
    batch = {"min": 4, "max": CAPACITY, "adapter": {"type": "Annotation"}}
    stack.apply_policy(policy("live", objective="ThroughputSensitive", slos=FLOOR, batch=batch))
    stack.load("live", {"kind": "constant", "rate_per_s": 6})

    def raised() -> bool:
        pods = stack.cluster.get("pods", namespace="spine", selector="app=live")["items"]
        caps = [int(pod["metadata"]["annotations"]["bandkeeper.dev/batch-cap"]) for pod in pods]
        return min(caps) > 4

    eventually(raised, timeout_s=180, what="a higher cap on every pod")
    assert stack.policy("live")["status"]["batch"]["desired"] > 4


def test_a_batch_cap_reaches_the_pods_by_a_rollout(stack: Stack) -> None:
    stack.deploy("roll", replicas=1, env={"MAX_NUM_SEQS": "4"})
    stack.wait_ready("roll", 1)
    adapter = {"type": "PodTemplate", "podTemplate": {"container": "server", "env": "MAX_NUM_SEQS"}}
    batch = {"min": 4, "max": CAPACITY, "adapter": adapter}
    stack.apply_policy(
        policy("roll", objective="ThroughputSensitive", slos=FLOOR, replicas={"min": 1, "max": 1}, batch=batch)
    )
    stack.load("roll", {"kind": "constant", "rate_per_s": 5})

    def rolled() -> bool:
        template = stack.cluster.get("deployment", "roll", namespace="spine")["spec"]["template"]
        return int(template["spec"]["containers"][0]["env"][0]["value"]) > 4

    eventually(rolled, timeout_s=120, what="a higher cap in the pod template")
    eventually(lambda: stack.condition("roll", "BatchApplied").get("status") == "True", timeout_s=60, what="applied")


def test_a_stateful_set_is_scaled_too(stack: Stack) -> None:
    stack.deploy("ranks", replicas=1, kind="StatefulSet")
    document = policy("ranks")
    document["spec"]["targetRef"]["kind"] = "StatefulSet"
    stack.apply_policy(document)
    stack.load("ranks", {"kind": "constant", "rate_per_s": 20})

    def replicas() -> int:
        return int(stack.cluster.get("statefulset", "ranks", namespace="spine")["spec"]["replicas"])

    eventually(lambda: replicas() >= 3, timeout_s=60, what="three ranks")


def test_an_outage_of_prometheus_lowers_nothing_and_shows_at_once(stack: Stack) -> None:
    stack.deploy("outage", replicas=3)
    stack.wait_ready("outage", 3)
    stack.load("outage", {"kind": "constant", "rate_per_s": 15})
    stack.apply_policy(policy("outage"))
    eventually(
        lambda: stack.condition("outage", "MetricsAvailable").get("status") == "True", timeout_s=20, what="metrics"
    )
    before = stack.replicas("outage")
    stack.prometheus.kill()
    killed = time.monotonic()
    try:
        eventually(
            lambda: stack.condition("outage", "MetricsAvailable").get("reason") == "Unreachable",
            timeout_s=8,
            what="the outage in the condition",
        )
        shown_s = time.monotonic() - killed
        assert len([one for one in warnings_of(stack, "outage") if one["reason"] == "MetricsUnavailable"]) == 1
        while time.monotonic() - killed < OUTAGE_S:
            assert stack.replicas("outage") >= before
            time.sleep(0.5)
    finally:
        stack.prometheus.restart()
    back = time.monotonic()
    eventually(
        lambda: stack.condition("outage", "MetricsAvailable").get("status") == "True", timeout_s=20, what="metrics back"
    )
    resumed_s = time.monotonic() - back
    print(f"\noutage of {OUTAGE_S:.0f} s: shown after {shown_s:.1f} s, resumed {resumed_s:.1f} s after the restart")
    assert stack.replicas("outage") >= before
    assert shown_s <= 3.0
    assert resumed_s <= 5.0  # of which Prometheus' first scrape is a part


SELECTED = [
    ("unreachable", {"name": "gone"}, "MetricsUnavailable", "127.0.0.1:9"),
    ("credentials wanted", {"name": "guarded"}, "MetricsUnavailable", "401"),
    ("unknown name", {"name": "nobody"}, "PrometheusNotAllowed", "guarded"),
    ("URL not allowed", {"url": "http://127.0.0.1:9"}, "PrometheusNotAllowed", "allowedURLs"),
]


@pytest.mark.parametrize(("name", "prometheus", "reason", "sentence"), SELECTED, ids=[case[0] for case in SELECTED])
def test_a_prometheus_that_does_not_answer_is_named(
    stack: Stack, name: str, prometheus: Json, reason: str, sentence: str
) -> None:
    if not stack.cluster.kubectl("get", "deployment", "selected", "-n", "spine", "--ignore-not-found"):
        stack.deploy("selected", replicas=2)
        stack.wait_ready("selected", 2)
    key = "selects-" + name.lower().replace(" ", "-")
    document = policy(key, prometheus=prometheus)
    document["spec"]["targetRef"]["name"] = "selected"
    stack.apply_policy(document)
    try:
        eventually(lambda: stack.condition(key, "Ready").get("reason") == reason, timeout_s=15, what=reason)
        assert sentence in stack.condition(key, "Ready")["message"]
        eventually(lambda: len(warnings_of(stack, key)) == 1, timeout_s=5, what="one event")
        assert stack.replicas("selected") == 2
    finally:
        stack.cluster.kubectl("delete", "gsp", key, "-n", "spine")


def test_a_policy_may_name_an_allowed_url(stack: Stack) -> None:
    document = policy("selects-url", prometheus={"url": stack.prometheus.url}, replicas={"min": 2, "max": 3})
    document["spec"]["targetRef"]["name"] = "selected"
    stack.apply_policy(document)
    eventually(lambda: stack.condition("selects-url", "Ready").get("status") == "True", timeout_s=15, what="Ready")
    stack.cluster.kubectl("delete", "gsp", "selects-url", "-n", "spine")


REJECTED = [
    ("min over max", {"replicas": {"min": 5, "max": 2}}, "at least"),
    ("band inverted", {"band": {"lowPercent": 80, "highPercent": 60}}, "lowPercent"),
    ("zero replicas", {"replicas": {"min": 0, "max": 2}}, "activation source"),
]


@pytest.mark.parametrize(("name", "spec", "sentence"), REJECTED, ids=[case[0] for case in REJECTED])
def test_the_api_server_rejects_what_cannot_be_meant(stack: Stack, name: str, spec: Json, sentence: str) -> None:
    with pytest.raises(CommandError) as refused:
        stack.apply_policy(policy("refused", **spec))
    assert sentence in refused.value.stderr


JUDGED = [
    ("unknown runtime", {"runtime": "Frobnicate"}, "UnknownRuntime", "VLLM"),
    (
        "unknown signal",
        {"slos": [{"signal": "Happiness", "threshold": "1s"}]},
        "UnknownSignal",
        "TimeToFirstToken",
    ),
    (
        "SLO without source",
        {"runtime": "Generic", "slos": [{"signal": "TimeToFirstToken", "threshold": "1s"}]},
        "SLOWithoutSource",
        "spec.signals",
    ),
    (
        "missing target",
        {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "nobody"}},
        "TargetNotFound",
        "nobody",
    ),
    (
        "unknown kind",
        {"targetRef": {"apiVersion": "apps/v1", "kind": "Deploymint", "name": "chat"}},
        "TargetKindUnknown",
        "Deploymint",
    ),
    (
        "not scalable",
        {"targetRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "chat"}},
        "TargetNotScalable",
        "scale",
    ),
    (
        "no RBAC",
        {"targetRef": {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "chat"}},
        "Forbidden",
        "replicasets/scale",
    ),
]


@pytest.mark.parametrize(("name", "spec", "reason", "sentence"), JUDGED, ids=[case[0] for case in JUDGED])
def test_what_cannot_work_gets_a_condition_and_one_event(
    stack: Stack, name: str, spec: Json, reason: str, sentence: str
) -> None:
    key = "bad-" + name.lower().replace(" ", "-")
    stack.apply_policy({**policy(key, **({"targetRef": policy("chat")["spec"]["targetRef"]} | spec))})
    try:
        eventually(lambda: stack.condition(key, "Ready").get("reason") == reason, timeout_s=15, what=reason)
        assert stack.condition(key, "Ready")["status"] == "False"
        assert sentence in stack.condition(key, "Ready")["message"]
        eventually(lambda: len(warnings_of(stack, key)) == 1, timeout_s=5, what="one event")
        assert warnings_of(stack, key)[0]["reason"] == reason
    finally:
        stack.cluster.kubectl("delete", "gsp", key, "-n", "spine")


def warnings_of(stack: Stack, name: str) -> list[Json]:
    """The Warning events about a policy."""
    return [
        event
        for event in stack.events(name)
        if event["type"] == "Warning" and event["regarding"]["kind"] == "GPUScalingPolicy"
    ]


def hpa(name: str) -> Json:
    """A HorizontalPodAutoscaler on the Deployment of that name."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": "spine"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": 2,
        },
    }


def test_a_target_that_something_else_drives_is_left_alone(stack: Stack) -> None:
    stack.deploy("bad", replicas=1)
    stack.wait_ready("bad", 1)
    stack.apply(hpa("bad"))
    stack.apply_policy(policy("bad", replicas={"min": 3, "max": 4}))
    conflicted(stack, "bad", "HPA")
    stack.cluster.kubectl("delete", "hpa", "bad", "-n", "spine")
    eventually(lambda: stack.replicas("bad") == 3, timeout_s=15, what="the policy at work")
    younger = policy("bad-too", replicas={"min": 4, "max": 5})
    younger["spec"]["targetRef"]["name"] = "bad"
    stack.apply_policy(younger)
    conflicted(stack, "bad-too", "OlderPolicy")
    assert stack.replicas("bad") == 3
    stack.cluster.kubectl("delete", "gsp", "bad-too", "-n", "spine")


def conflicted(stack: Stack, name: str, reason: str) -> None:
    """Wait for the condition and its one event."""
    eventually(lambda: stack.condition(name, "Conflicted").get("reason") == reason, timeout_s=15, what=reason)
    assert stack.condition(name, "Ready")["status"] == "False"
    eventually(lambda: len(warnings_of(stack, name)) == 1, timeout_s=5, what="one event")


def test_a_target_at_zero_is_paused(stack: Stack) -> None:
    stack.cluster.kubectl("scale", "deployment", "bad", "--replicas=0", "-n", "spine")
    eventually(lambda: stack.condition("bad", "Paused").get("reason") == "ScaledToZero", timeout_s=15, what="Paused")
    assert stack.replicas("bad") == 0
    stack.cluster.kubectl("scale", "deployment", "bad", "--replicas=1", "-n", "spine")
    eventually(lambda: stack.replicas("bad") == 3, timeout_s=40, what="back inside its bounds")


def test_deleting_a_policy_leaves_the_workload_running(stack: Stack) -> None:
    before = stack.replicas("bad")
    stack.cluster.kubectl("delete", "gsp", "bad", "-n", "spine", "--timeout=10s")
    stays(lambda: stack.replicas("bad") == before)


def stays(holds: Callable[[], bool], seconds: int = 3) -> None:
    """The opposite of eventually: it holds now and keeps holding."""
    for _ in range(seconds * 4):
        assert holds()
        time.sleep(0.25)
