"""Rollouts and field managers as workload objects tell them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from bandkeeper.actuate.managers import Manager, ignore_rule, last_manager, replicas_manager
from bandkeeper.actuate.rollout import is_ours, rollout_of, template_hash
from bandkeeper.api.snapshot import Rollout

TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"app": "chat"}, "annotations": {"team": "a"}},
    "spec": {"containers": [{"name": "server", "env": [{"name": "CAP", "value": "32"}]}]},
}
T0 = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def deployment(
    *,
    replicas: int = 4,
    pods: int = 4,
    updated: int = 4,
    reason: str = "NewReplicaSetAvailable",
    revision: str = "2",
    template: dict[str, Any] = TEMPLATE,
    **spec: Any,
) -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {"annotations": {"deployment.kubernetes.io/revision": revision}},
        "spec": {"replicas": replicas, "template": template, **spec},
        "status": {
            "replicas": pods,
            "updatedReplicas": updated,
            "conditions": [{"type": "Available"}, {"type": "Progressing", "reason": reason}],
        },
    }


@pytest.mark.parametrize(
    ("workload", "want"),
    [
        pytest.param(deployment(), None, id="settled"),
        pytest.param(deployment(replicas=8, pods=8, updated=8), None, id="scaled up, pods on their way"),
        pytest.param(deployment(pods=5, updated=2, reason="ReplicaSetUpdated"), Rollout(surge=1), id="half way"),
        pytest.param(deployment(updated=4, reason="ReplicaSetUpdated"), Rollout(), id="all new, not all ready"),
        pytest.param(deployment(pods=0, updated=0, reason="NewReplicaSetCreated"), Rollout(), id="recreated"),
        pytest.param(
            deployment(pods=5, updated=1, reason="ProgressDeadlineExceeded"),
            Rollout(deadline_exceeded=True, surge=1),
            id="stuck",
        ),
        pytest.param(
            deployment(pods=5, updated=2, reason="DeploymentPaused", paused=True),
            Rollout(deadline_exceeded=True, paused=True, surge=1),
            id="paused half way",
        ),
        pytest.param(
            deployment(updated=0, reason="DeploymentPaused", paused=True),
            Rollout(deadline_exceeded=True, paused=True),
            id="paused, and another template waits",
        ),
        pytest.param(
            deployment(replicas=3, paused=True),
            Rollout(deadline_exceeded=True, paused=True),
            id="paused while nothing rolls, on a scale-in",
        ),
        pytest.param(
            deployment(revision="1", paused=True),
            Rollout(deadline_exceeded=True, paused=True),
            id="paused at the first",
        ),
        pytest.param(deployment(pods=5, updated=2, reason="DeploymentPaused"), Rollout(surge=1), id="resumed"),
        pytest.param(deployment(reason="ReplicaSetUpdated", revision="1"), None, id="first start"),
        pytest.param(
            deployment(reason="ProgressDeadlineExceeded", revision="1"), None, id="first start takes too long"
        ),
        pytest.param({"kind": "Deployment", "spec": {"replicas": 1}}, None, id="no status yet"),
        pytest.param({"kind": "Fleet", "spec": {}, "status": {"replicas": 9}}, None, id="unknown kind"),
    ],
)
def test_rollout_of_a_deployment(workload: dict[str, Any], want: Rollout | None) -> None:
    assert rollout_of(workload, now=T0) == want


def stateful_set(*, updated: int, same: bool = False, pods: int = 4, **strategy: Any) -> dict[str, Any]:
    return {
        "kind": "StatefulSet",
        "metadata": {
            "managedFields": [
                {"manager": "helm", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:template": {}}}}
            ]
        },
        "spec": {"replicas": pods, "template": TEMPLATE, "updateStrategy": {"type": "RollingUpdate", **strategy}},
        "status": {
            "replicas": pods,
            "updatedReplicas": updated,
            "currentRevision": "a",
            "updateRevision": "a" if same else "b",
        },
    }


@pytest.mark.parametrize(
    ("workload", "after_s", "want"),
    [
        pytest.param(stateful_set(updated=4, same=True), 9e9, None, id="settled"),
        pytest.param(stateful_set(updated=1), 60, Rollout(), id="one of four"),
        pytest.param(stateful_set(updated=4), 60, Rollout(), id="all new, the last one not ready"),
        pytest.param(stateful_set(updated=1), 2400, Rollout(), id="slow: 600 s for each pod"),
        pytest.param(stateful_set(updated=1), 2401, Rollout(deadline_exceeded=True), id="too slow"),
        pytest.param(stateful_set(updated=1, rollingUpdate={"partition": 3}), 60, None, id="held by a partition"),
        pytest.param(stateful_set(updated=1, rollingUpdate={"partition": 2}), 60, Rollout(), id="on to a partition"),
        pytest.param(stateful_set(updated=0, type="OnDelete"), 60, None, id="waits for somebody to delete pods"),
    ],
)
def test_rollout_of_a_stateful_set(workload: dict[str, Any], after_s: float, want: Rollout | None) -> None:
    assert rollout_of(workload, now=T0 + after_s) == want


def test_a_template_is_ours_until_somebody_changes_it() -> None:
    template = copy.deepcopy(TEMPLATE)
    workload = {"spec": {"template": template}}
    assert not is_ours(workload)
    template["metadata"]["annotations"] |= {
        "bandkeeper.dev/batch-cap": "32",
        "bandkeeper.dev/template-hash": template_hash(TEMPLATE),
    }
    assert is_ours(workload)
    edits: list[Callable[[dict[str, Any]], object]] = [
        lambda t: t["spec"]["containers"][0]["env"][0].update(value="16"),
        lambda t: t["metadata"]["annotations"].update({"kubectl.kubernetes.io/restartedAt": "now"}),
        lambda t: t["metadata"]["labels"].update(x="y"),
        lambda t: t["metadata"]["annotations"].pop("team"),
    ]
    for edit in edits:
        changed = copy.deepcopy(template)
        edit(changed)
        assert not is_ours({"spec": {"template": changed}})


def test_a_template_without_annotations_has_the_hash_of_one_with_only_ours() -> None:
    bare: dict[str, Any] = {"metadata": {"labels": {}}, "spec": {}}
    ours = {"metadata": {"labels": {}, "annotations": {"bandkeeper.dev/batch-cap": "1"}}, "spec": {}}
    assert template_hash(bare) == template_hash(ours)


def entry(manager: str, time: str, fields: dict[str, Any], operation: str = "Update") -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "time": time, "fieldsV1": fields}


def test_the_last_writer_of_a_field_is_found() -> None:
    replicas: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
    workload = {
        "metadata": {
            "managedFields": [
                entry("argocd-controller", "2026-01-01T00:00:01Z", replicas, "Apply"),
                entry("bandkeeper", "2026-01-01T00:00:03Z", replicas),
                entry("kubectl", "2026-01-01T00:00:09Z", {"f:spec": {"f:paused": {}}}),
                entry("kube-controller-manager", "2026-01-01T00:00:09Z", {"f:status": {}}),
            ]
        }
    }
    assert replicas_manager(workload) == "bandkeeper"
    assert last_manager(workload, "f:spec", "f:paused") == Manager(
        name="kubectl", operation="Update", at="2026-01-01T00:00:09Z"
    )
    assert last_manager(workload, "f:spec", "f:template") is None
    assert replicas_manager({"metadata": {}}) == ""


@pytest.mark.parametrize(
    ("manager", "says"),
    [
        ("argocd-controller", "ignoreDifferences.jsonPointers"),
        ("argocd-application-controller", "RespectIgnoreDifferences=true"),
        ("kustomize-controller", "Flux"),
        ("helm-controller", "spec.driftDetection.ignore"),
        ("helm", "helm upgrade"),
        ("keda-operator", "stop keda-operator from setting /spec/replicas"),
        ("", "stop the other writer from setting /spec/replicas"),
    ],
)
def test_each_manager_gets_the_rule_that_makes_it_leave_the_field(manager: str, says: str) -> None:
    rule = ignore_rule(manager, "/spec/replicas")
    assert says in rule
    assert "/spec/replicas" in rule


@pytest.mark.parametrize(
    ("annotations", "want"),
    [
        ({"batch-cap": "32", "previous-batch-cap": "64"}, Rollout(ours=True, cap=32, previous_cap=64)),
        ({"batch-cap": "32", "previous-batch-cap": ""}, Rollout(ours=True, cap=32, previous_cap=0)),
        ({"batch-cap": "64"}, Rollout(ours=True, cap=64)),
        ({"batch-cap": "", "previous-batch-cap": "many"}, Rollout(ours=True)),
    ],
)
def test_a_rollout_of_ours_tells_its_cap_and_the_one_to_go_back_to(annotations: dict[str, str], want: Rollout) -> None:
    template = copy.deepcopy(TEMPLATE)
    template["metadata"]["annotations"] |= {f"bandkeeper.dev/{name}": value for name, value in annotations.items()}
    template["metadata"]["annotations"]["bandkeeper.dev/template-hash"] = template_hash(template)
    assert rollout_of(deployment(reason="ReplicaSetUpdated", template=template), now=T0) == want
    template["spec"]["containers"][0]["image"] = "another"
    assert rollout_of(deployment(reason="ReplicaSetUpdated", template=template), now=T0) == Rollout()
