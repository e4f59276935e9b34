"""What an operator finds when it starts: rollouts that an earlier process began, a paused target, rights it lacks."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bandkeeper.actuate.adapter import Workload
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.actuate.pod_template import PodTemplate
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Discovery
from tests.cluster import ControlPlane, eventually
from tests.stack import Stack, deployment

pytestmark = pytest.mark.cluster

_numbers = itertools.count(1)
ADAPTER = {"type": "PodTemplate", "podTemplate": {"container": "server", "env": "MAX_NUM_SEQS"}}
BY_ROLLOUT = {"min": 4, "max": 16, "adapter": ADAPTER}
BY_ANNOTATION = {"min": 4, "max": 16, "adapter": {"type": "Annotation"}}


@pytest.fixture
def stack(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """No model servers: nothing here needs metrics."""
    name = f"resume-{next(_numbers)}"
    values = getattr(request, "param", {})
    with Stack(
        cluster=control_plane, namespace=name, operator_namespace=f"{name}-operator", chart_values=values
    ) as started:
        yield started


def policy(**spec: Any) -> dict[str, Any]:
    """A policy on the Deployment chat, which has two replicas and keeps them."""
    return {
        "apiVersion": "bandkeeper.dev/v1alpha1",
        "kind": "GPUScalingPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "objective": "ThroughputSensitive",
            "runtime": "VLLM",
            "replicas": {"min": 2, "max": 4},
            **spec,
        },
    }


def deploy(stack: Stack, *, deadline_s: int = 600) -> None:
    """Two ready pods that boot with a cap of 16."""
    quick = {"bandkeeper.dev/load-time": "100ms"}
    document = deployment("chat", stack.namespace, replicas=2, env={"MAX_NUM_SEQS": "16"}, annotations=quick)
    document["spec"]["progressDeadlineSeconds"] = deadline_s
    stack.apply(document)
    stack.wait_ready("chat", 2)


def patch(stack: Stack, change: dict[str, Any]) -> None:
    stack.cluster.kubectl(
        "patch", "deployment", "chat", "-n", stack.namespace, "--type=merge", "-p", json.dumps(change)
    )


def another_process_lowers_the_cap(stack: Stack) -> None:
    """As an operator would that is killed right after; the new pods take long to load their model."""
    patch(stack, {"spec": {"template": {"metadata": {"annotations": {"bandkeeper.dev/load-time": "120s"}}}}})

    async def write() -> Outcome:
        async with await KubeClient.connect(str(stack.cluster.kubeconfig)) as client:
            resource = await Discovery(client).scalable("apps/v1", "Deployment")
            uid = stack.cluster.get("deployment", "chat", namespace=stack.namespace)["metadata"]["uid"]
            target = Workload(namespace=stack.namespace, name="chat", resource=resource, uid=uid)
            adapter = PodTemplate(client, container="server", env="MAX_NUM_SEQS")
            return (await adapter.apply(target, 8, deadline=time.monotonic() + 10)).outcome

    assert asyncio.run(write()) is Outcome.WRITTEN


def cap(stack: Stack) -> str:
    """What new pods boot with."""
    template = stack.cluster.get("deployment", "chat", namespace=stack.namespace)["spec"]["template"]
    return str(template["spec"]["containers"][0]["env"][0]["value"])


def test_a_rollout_that_fails_after_a_restart_is_taken_back(stack: Stack) -> None:
    deploy(stack, deadline_s=10)
    another_process_lowers_the_cap(stack)
    operator = stack.start_operator()  # it has seen nothing of this
    stack.apply_policy(policy(batch=BY_ROLLOUT))
    eventually(operator.ready, timeout_s=30, what="the operator ready")
    eventually(lambda: stack.condition("chat", "Ready") != {}, timeout_s=15, what="a first look")
    assert cap(stack) == "8"  # the rollout gets the time that it has
    eventually(lambda: cap(stack) == "16", timeout_s=40, what="the cap taken back")
    status = stack.policy("chat")["status"]
    assert status["history"][0]["reason"] == "RolloutRolledBack"
    assert (status["history"][0]["fromBatchCap"], status["history"][0]["batchCap"]) == (8, 16)
    assert "Traceback" not in operator.log(), operator.log()[-8000:]


def test_a_rollout_that_gets_on_is_not_undone_by_a_restart(stack: Stack) -> None:
    deploy(stack)
    another_process_lowers_the_cap(stack)
    operator = stack.start_operator()
    stack.apply_policy(policy(batch=BY_ROLLOUT))

    def wanted() -> bool:
        return bool(stack.policy("chat").get("status", {}).get("batch", {}).get("desired") == 8)

    eventually(wanted, timeout_s=30, what="the cap of the rollout wanted")
    for _ in range(12):
        assert cap(stack) == "8"
        time.sleep(0.25)
    assert "LowerBatchCap" not in operator.log()
    assert "RaiseBatchCap" not in operator.log()


def test_a_paused_deployment_is_scaled_in_and_given_no_rollout(stack: Stack) -> None:
    deploy(stack)
    patch(stack, {"spec": {"paused": True}})
    patch(stack, {"spec": {"template": {"metadata": {"annotations": {"note": "waits"}}}}})
    stack.start_operator(restartHold="1s")
    stack.apply_policy(policy(replicas={"min": 1, "max": 1}, batch={**BY_ROLLOUT, "max": 8}))
    eventually(lambda: stack.replicas("chat") == 1, timeout_s=40, what="one replica")
    assert cap(stack) == "16"
    applied = stack.condition("chat", "BatchApplied")
    assert applied["status"] == "False"
    assert "kubectl rollout resume deployment/chat" in applied["message"]


@pytest.mark.parametrize("stack", [{"adapters": {"annotation": {"enabled": False}}}], indirect=True)
def test_a_missing_right_shows_before_the_first_write(stack: Stack) -> None:
    quick = {"bandkeeper.dev/load-time": "100ms", "bandkeeper.dev/batch-cap": "16"}
    stack.deploy("chat", replicas=2, annotations=quick)
    stack.wait_ready("chat", 2)
    stack.start_operator(adapters={"annotation": True})  # told so, but never granted
    stack.apply_policy(policy(batch=BY_ANNOTATION))

    def told() -> bool:
        return stack.condition("chat", "BatchApplied").get("reason") == "Forbidden"

    eventually(told, timeout_s=30, what="the missing right in the condition")
    assert "adapters.annotation.enabled=true" in stack.condition("chat", "BatchApplied")["message"]
    assert stack.condition("chat", "TargetResolved")["status"] == "True"
    refused = 'policy="chat",what="batch"'
    assert refused not in stack.operators["operator"].get("/metrics")[1]  # nothing was refused: nothing was written
