"""Two replicas, one acts: the standby runs warm and takes over after a crash and after an orderly stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import ControlPlane, eventually
from tests.stack import OperatorProcess, Stack

pytestmark = pytest.mark.cluster

AFTER_KILL_S = 20.0
AFTER_STOP_S = 3.0


@pytest.fixture
def stack(control_plane: ControlPlane) -> Iterator[Stack]:
    """No model servers: replicas.min moves the target, which needs no metrics."""
    with Stack(cluster=control_plane, namespace="failover", operator_namespace="failover-operator") as started:
        yield started


def policy(least: int) -> dict[str, Any]:
    """Wants at least so many replicas."""
    return {
        "apiVersion": "bandkeeper.dev/v1alpha1",
        "kind": "GPUScalingPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "objective": "ThroughputSensitive",
            "runtime": "VLLM",
            "replicas": {"min": least, "max": 12},
        },
    }


def leads(operator: OperatorProcess) -> bool:
    """Whether it says that it holds the lease."""
    return "bandkeeper_leader 1.0" in operator.get("/metrics")[1]


def scaled_within_s(stack: Stack, replicas: int, since: float) -> float:
    """Seconds from `since` until the target asks for `replicas`."""
    eventually(lambda: stack.replicas("chat") == replicas, timeout_s=40, every_s=0.1, what=f"{replicas} replicas")
    return time.monotonic() - since


def test_the_standby_takes_over(stack: Stack, record_property: Any) -> None:
    first, second = stack.start_operator("first"), stack.start_operator("second")
    eventually(lambda: first.ready() and second.ready(), timeout_s=30, what="both operators ready")
    eventually(lambda: leads(first) != leads(second), timeout_s=20, what="one leader")
    leader, standby = (first, second) if leads(first) else (second, first)
    stack.deploy("chat", replicas=1)
    stack.apply_policy(policy(2))
    scaled_within_s(stack, 2, time.monotonic())
    assert "action=ScaleUp" not in standby.log()

    leader.kill()
    killed = time.monotonic()
    stack.apply_policy(policy(3))
    crash_s = scaled_within_s(stack, 3, killed)
    record_property("takeover_after_kill_s", round(crash_s, 2))
    assert crash_s <= AFTER_KILL_S
    assert leads(standby)

    third = stack.start_operator("third")
    eventually(third.ready, timeout_s=30, what="the third operator ready")
    time.sleep(3)  # it has seen the lease and stands by
    stopped = time.monotonic()
    assert standby.stop() == 0
    stack.apply_policy(policy(4))
    stop_s = scaled_within_s(stack, 4, stopped)
    record_property("takeover_after_sigterm_s", round(stop_s, 2))
    print(f"\ntakeover after kill -9: {crash_s:.1f} s, after SIGTERM: {stop_s:.1f} s")
    assert stop_s <= AFTER_STOP_S + 1.0  # of which kubectl's own start-up is a part
