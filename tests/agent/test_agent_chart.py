"""The agent's DaemonSet as helm renders it: off by default, few rights, apart from the operator."""

from __future__ import annotations

from typing import Any

import pytest

from bandkeeper.cli.main import _parser
from tests.test_chart import CHART, Manifest, helm, of_kind, render, the

ON: Manifest = {"agent": {"enabled": True}}
EVERYTHING: Manifest = {
    "agent": {
        "enabled": True,
        "interval": "500ms",
        "window": "30s",
        "port": 9500,
        "runtimeClassName": "nvidia",
        "podResources": "/data/kubelet/pod-resources",
        "sysAdmin": True,
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podAnnotations": {"a": "b"},
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "system-node-critical",
    },
    "imagePullSecrets": [{"name": "registry"}],
}


def pod(values: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = the("DaemonSet", values)["spec"]["template"]["spec"]
    return spec


def container(values: Manifest) -> dict[str, Any]:
    (only,) = pod(values)["containers"]
    found: dict[str, Any] = only
    return found


def test_it_is_off_by_default() -> None:
    assert of_kind("DaemonSet") == []
    assert not [document for document in render() if "agent" in document["metadata"]["name"]]


@pytest.mark.parametrize("values", [ON, EVERYTHING], ids=["on", "everything"])
def test_helm_finds_no_fault(values: Manifest) -> None:
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [ON, EVERYTHING], ids=["on", "everything"])
def test_it_has_no_rights_in_the_cluster(values: Manifest) -> None:
    bound = {
        subject["name"]
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for binding in of_kind(kind, values)
        for subject in binding["subjects"]
    }
    assert pod(values)["serviceAccountName"] == "bk-bandkeeper-agent"
    assert "bk-bandkeeper-agent" not in bound
    assert pod(values)["automountServiceAccountToken"] is False
    accounts = {document["metadata"]["name"]: document for document in of_kind("ServiceAccount", values)}
    assert accounts["bk-bandkeeper-agent"]["automountServiceAccountToken"] is False


def test_on_the_node_it_is_root_without_capabilities_that_reads_one_folder() -> None:
    spec = pod(ON)
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "runtimeClassName"} & spec.keys()
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["volumes"] == [
        {"name": "pod-resources", "hostPath": {"path": "/var/lib/kubelet/pod-resources", "type": "Directory"}}
    ]
    of = container(ON)
    assert of["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert of["volumeMounts"] == [{"name": "pod-resources", "mountPath": "/pod-resources", "readOnly": True}]
    assert "hostPort" not in of["ports"][0]
    assert of["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in of["resources"]["limits"]


def test_more_than_that_is_one_capability_and_only_where_asked_for() -> None:
    of = container(EVERYTHING)
    assert of["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN"]}
    assert "privileged" not in of["securityContext"]
    assert {"name": "NVIDIA_MIG_MONITOR_DEVICES", "value": "all"} in of["env"]
    assert not [one for one in container(ON)["env"] if one["name"] == "NVIDIA_MIG_MONITOR_DEVICES"]


def test_the_agent_understands_its_arguments() -> None:
    arguments = _parser().parse_args(container(EVERYTHING)["args"])
    assert arguments.command == "agent"
    assert (arguments.listen, arguments.interval, arguments.window) == (("0.0.0.0", 9500), 0.5, 30.0)
    (mount,) = container(EVERYTHING)["volumeMounts"]
    assert str(arguments.pod_resources.parent) == mount["mountPath"]
    (volume,) = pod(EVERYTHING)["volumes"]
    assert volume["hostPath"]["path"] == "/data/kubelet/pod-resources"
    assert arguments.without_gpu == "stay"  # a DaemonSet's pod that ends is started again


def test_nothing_of_the_operator_selects_the_agents_pods_and_the_other_way_round() -> None:
    values = {**EVERYTHING, "metrics": {"serviceMonitor": {"enabled": True}}}
    agents = the("DaemonSet", values)["spec"]["template"]["metadata"]["labels"].items()
    operators = the("Deployment", values)["spec"]["template"]["metadata"]["labels"].items()
    services = {document["metadata"]["name"]: document for document in of_kind("Service", values)}
    assert services.keys() == {"bk-bandkeeper-agent", "bk-bandkeeper-metrics"}
    assert the("DaemonSet", values)["spec"]["selector"]["matchLabels"].items() <= agents
    for document in (the("PodDisruptionBudget", values), the("Deployment", values)):
        assert not document["spec"]["selector"]["matchLabels"].items() <= agents
    assert not services["bk-bandkeeper-metrics"]["spec"]["selector"].items() <= agents
    assert services["bk-bandkeeper-agent"]["spec"]["selector"].items() <= agents
    assert not services["bk-bandkeeper-agent"]["spec"]["selector"].items() <= operators
    for monitor in of_kind("ServiceMonitor", values):
        chosen = [
            name
            for name, service in services.items()
            if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1


def test_prometheus_keeps_the_workloads_labels() -> None:
    monitor = the("ServiceMonitor", EVERYTHING)
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "15s", "honorLabels": True}]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        ({"enabled": "yes"}, "enabled"),
        ({"interval": 1}, "interval"),
        ({"port": 80}, "port"),
        ({"podResources": "pod-resources"}, "podResources"),
        ({"privileged": True}, "privileged"),
        (
            {"enabled": True, "service": {"enabled": False}, "serviceMonitor": {"enabled": True}},
            "agent.service.enabled",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(agent: Manifest, says: str) -> None:
    done = helm("template", "bk", str(CHART), values={"agent": agent})
    assert done.returncode != 0
    assert says in done.stderr
