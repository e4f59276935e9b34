"""The chart as helm renders it: what is granted, what runs, what is refused. No cluster needed."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.runtime.settings import Settings, parse
from tests.cluster.tools import find_tools

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "bandkeeper"
KUBE_VERSION = "1.35.4"
EVERYTHING = {
    "adapters": {
        "annotation": {"enabled": True},
        "podTemplate": {"enabled": True},
        "http": {"enabled": True},
        "triton": {"enabled": True},
        "rayServe": {"enabled": True},
        "kServe": {"enabled": True},
        "configMap": {"enabled": True, "names": ["chat-batch"]},
    },
    "podAccess": {
        "caFile": "/configmaps/ca/pods.crt",
        "credentials": [
            {"name": "chat", "file": "/secrets/pods/token", "namespaces": ["serving"], "header": "X-Key", "prefix": ""}
        ],
        "secrets": ["prometheus", "pods"],
        "configMaps": ["ca"],
    },
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "prometheus": {
        "servers": [
            {
                "name": "main",
                "url": "https://prometheus.monitoring.svc:9090",
                "caFile": "/configmaps/ca/ca.crt",
                "bearerTokenFile": "/secrets/prometheus/token",
                "headers": {"X-Scope-OrgID": "team"},
                "timeout": "3s",
            },
            {"name": "other", "url": "http://other:9090", "username": "u", "passwordFile": "/secrets/prometheus/p"},
        ],
        "allowedURLs": ["http://prometheus.team-a.svc:9090"],
        "secrets": ["prometheus"],
        "configMaps": ["ca"],
    },
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "system-cluster-critical",
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    ],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "serviceAccount": {"annotations": {"a": "b"}},
    "image": {"digest": "sha256:" + "0" * 64},
    "period": "1s",
    "logFormat": "text",
    "restartHold": "5m",
    "quality": {
        "thresholds": {"poorUpper": 0.3, "settle": "2m"},
        "gpus": {"RTX A6000": {"teraflops": 154.8, "terabytesPerSecond": 0.768, "watts": 300}},
    },
    "lease": {"duration": "8s", "renewDeadline": "5s", "retryPeriod": "500ms"},
}

Manifest = dict[str, Any]


def helm(*args: str, values: Manifest | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm with `values` as a values file."""
    return subprocess.run(
        [find_tools().helm, *args, "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def render(values: Manifest | None = None) -> list[Manifest]:
    """All objects of a release called bk in namespace gpu-system."""
    return json.loads(_render(json.dumps(values or {})))  # type: ignore[no-any-return]


@cache
def _render(values: str) -> str:
    done = helm(
        "template",
        "bk",
        str(CHART),
        "--namespace=gpu-system",
        f"--kube-version={KUBE_VERSION}",
        values=yaml.safe_load(values),
    )
    assert done.returncode == 0, done.stderr
    return json.dumps([document for document in yaml.safe_load_all(done.stdout) if document])


def of_kind(kind: str, values: Manifest | None = None) -> list[Manifest]:
    return [document for document in render(values) if document["kind"] == kind]


def the(kind: str, values: Manifest | None = None) -> Manifest:
    (only,) = of_kind(kind, values)
    return only


def rules(values: Manifest | None = None) -> list[Manifest]:
    """Every rule bound to the operator's service account."""
    bound = {
        (document["roleRef"]["kind"], document["roleRef"]["name"])
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for document in of_kind(kind, values)
    }
    return [
        rule
        for document in render(values)
        if (document["kind"], document["metadata"]["name"]) in bound
        for rule in document["rules"]
    ]


def grants(values: Manifest | None = None) -> set[str]:
    """Rights as `verb group/resource`."""
    return {
        f"{verb} {group}/{resource}"
        for rule in rules(values)
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


# -- helm itself -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_helm_finds_no_fault(values: Manifest) -> None:
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_without_stable_admission_policies_is_refused() -> None:
    done = helm("template", "bk", str(CHART), "--kube-version=1.29.9")
    assert done.returncode != 0
    assert "1.30" in done.stderr


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"replicas": 3}, "replicas"),
        ({"prometheus": {"url": "http://p:9090"}}, "url"),
        ({"prometheus": {"servers": []}}, "servers"),
        ({"prometheus": {"servers": [{"url": "prometheus:9090"}]}}, "url"),
        ({"prometheus": {"servers": [{"name": "p"}]}}, "url"),
        ({"prometheus": {"servers": [{"url": "http://p", "token": "secret"}]}}, "token"),
        ({"period": 15}, "period"),
        ({"period": "15"}, "period"),
        ({"logFormat": "JSON"}, "logFormat"),
        ({"watchNamespaces": "serving"}, "watchNamespaces"),
        ({"scaleTargets": []}, "scaleTargets"),
        ({"scaleTargets": [{"apiGroup": "apps/v1", "kind": "Deployment", "resource": "deployments"}]}, "apiGroup"),
        ({"adapters": {"podTemplate": {"arguments": ["max-num-seqs"]}}}, "arguments"),
        ({"adapters": {"podTemplate": {"env": ["MAX-SEQS"]}}}, "env"),
        ({"adapters": {"annotations": {"enabled": True}}}, "annotations"),
        ({"adapters": {"configMap": {"enabled": True}}}, "names"),
        ({"adapters": {"configMap": {"keys": []}}}, "keys"),
        ({"podAccess": {"credentials": [{"name": "chat", "file": "/secrets/chat/token"}]}}, "namespaces"),
        ({"podAccess": {"credentials": [{"name": "a", "file": "b", "namespaces": []}]}}, "namespaces"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"metrics": {"port": 80}}, "port"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: Manifest, says: str) -> None:
    done = helm("template", "bk", str(CHART), values=values)
    assert done.returncode != 0
    assert says in done.stderr


def test_schema_and_values_know_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(where: str, properties: Manifest, given: Manifest) -> None:
        assert sorted(properties) == sorted(given), where
        for key, below in properties.items():
            if "properties" in below and isinstance(given[key], dict) and key != "resources":
                assert below["additionalProperties"] is False
                compare(f"{where}.{key}", below["properties"], given[key])

    assert schema["additionalProperties"] is False
    compare("values", schema["properties"], values)


def test_every_value_is_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = [
        line for before, line in itertools.pairwise(lines) if re.match(r"[a-zA-Z]", line) and not before.startswith("#")
    ]
    assert bare == []


# -- CRDs --------------------------------------------------------------------------------------------------------------


def test_the_chart_carries_the_generated_crds_byte_for_byte() -> None:
    source = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    copies = {path.name: path.read_bytes() for path in (CHART / "files" / "crds").glob("*.yaml")}
    assert source
    assert copies == source, "run `make generate`, or: cp crds/*.yaml charts/bandkeeper/files/crds/"


def test_the_rendered_crds_have_the_generated_spec() -> None:
    source = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    rendered = of_kind("CustomResourceDefinition")
    assert [crd["spec"] for crd in rendered] == [crd["spec"] for crd in source]
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in rendered)


def test_crds_may_be_removed_with_the_release_or_left_to_somebody_else() -> None:
    (crd,) = of_kind("CustomResourceDefinition", {"crds": {"keep": False}})
    assert "helm.sh/resource-policy" not in crd["metadata"].get("annotations", {})
    assert of_kind("CustomResourceDefinition", {"crds": {"install": False}}) == []


# -- rights ------------------------------------------------------------------------------------------------------------

BASE_GRANTS = {
    *(f"{verb} bandkeeper.dev/gpuscalingpolicies" for verb in ("get", "list", "watch")),
    *(f"{verb} bandkeeper.dev/gpuscalingpolicies/status" for verb in ("get", "patch")),
    *(f"{verb} apps/{kind}" for verb in ("get", "list", "watch") for kind in ("deployments", "statefulsets")),
    *(f"{verb} apps/{kind}/scale" for verb in ("get", "patch") for kind in ("deployments", "statefulsets")),
    *(f"{verb} /pods" for verb in ("get", "list", "watch")),
    *(f"{verb} autoscaling/horizontalpodautoscalers" for verb in ("get", "list", "watch")),
    *(f"{verb} keda.sh/scaledobjects" for verb in ("get", "list", "watch")),
    *(f"{verb} events.k8s.io/events" for verb in ("create", "patch")),
    *(f"{verb} coordination.k8s.io/leases" for verb in ("create", "get", "update")),
}


def test_the_base_rights_are_exactly_these() -> None:
    assert grants() == BASE_GRANTS
    assert of_kind("ValidatingAdmissionPolicy", {"admission": {"requireScaleRight": False}}) == []


def test_each_adapter_adds_its_right_and_nothing_else() -> None:
    assert grants({"adapters": {"annotation": {"enabled": True}}}) - BASE_GRANTS == {"patch /pods"}
    assert grants({"adapters": {"podTemplate": {"enabled": True}}}) - BASE_GRANTS == {
        "patch apps/deployments",
        "patch apps/statefulsets",
    }
    assert grants({"adapters": {"http": {"enabled": True}, "triton": {"enabled": True}}}) == BASE_GRANTS
    assert grants({"adapters": {"rayServe": {"enabled": True}, "kServe": {"enabled": True}}}) - BASE_GRANTS == {
        *(f"{verb} ray.io/rayservices" for verb in ("get", "patch")),
        *(f"{verb} serving.kserve.io/inferenceservices" for verb in ("get", "patch")),
        "get /services",
    }
    config_map = {"adapters": {"configMap": {"enabled": True, "names": ["chat-batch"]}}}
    assert grants(config_map) - BASE_GRANTS == {"get /configmaps", "patch /configmaps"}
    (rule,) = [rule for rule in rules(config_map) if rule["resources"] == ["configmaps"]]
    assert rule["resourceNames"] == ["chat-batch"]


def test_a_scale_target_adds_reading_and_scaling_of_that_kind_alone() -> None:
    target = {"apiGroup": "argoproj.io", "kind": "Rollout", "resource": "rollouts"}
    assert {right for right in grants({"scaleTargets": [target]}) if "argoproj" in right} == {
        *(f"{verb} argoproj.io/rollouts" for verb in ("get", "list", "watch")),
        *(f"{verb} argoproj.io/rollouts/scale" for verb in ("get", "patch")),
    }


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_no_right_is_a_wildcard_or_reaches_secrets(values: Manifest) -> None:
    for rule in rules(values):
        assert "*" not in rule["verbs"] + rule["apiGroups"] + rule["resources"]
        assert "secrets" not in rule["resources"]
        assert "configmaps" not in rule["resources"] or rule["resourceNames"] == ["chat-batch"]


def test_the_lease_right_is_for_the_one_lease_in_the_release_namespace() -> None:
    (role,) = [role for role in of_kind("Role") if role["metadata"]["name"] == "bk-bandkeeper-lease"]
    assert role["metadata"]["namespace"] == "gpu-system"
    assert role["rules"][0]["verbs"] == ["create"]
    assert role["rules"][1]["resourceNames"] == ["bk-bandkeeper"]


def test_watched_namespaces_get_a_role_each_and_nothing_is_cluster_wide() -> None:
    values = {
        "watchNamespaces": ["a", "b"],
        "adapters": {"annotation": {"enabled": True, "namespaces": ["a"]}, "podTemplate": {"enabled": True}},
    }
    assert of_kind("ClusterRoleBinding", values) == []
    bindings = {(b["metadata"]["namespace"], b["roleRef"]["name"]) for b in of_kind("RoleBinding", values)}
    assert bindings == {
        ("a", "bk-bandkeeper"),
        ("b", "bk-bandkeeper"),
        ("a", "bk-bandkeeper-annotation"),
        ("a", "bk-bandkeeper-pod-template"),
        ("b", "bk-bandkeeper-pod-template"),
        ("gpu-system", "bk-bandkeeper-lease"),
    }


def test_an_adapter_can_be_granted_in_some_namespaces_only() -> None:
    values = {"adapters": {"podTemplate": {"enabled": True, "namespaces": ["serving"]}}}
    roles = {(role["metadata"]["namespace"], role["metadata"]["name"]) for role in of_kind("Role", values)}
    assert ("serving", "bk-bandkeeper-pod-template") in roles
    assert [binding["metadata"]["name"] for binding in of_kind("ClusterRoleBinding", values)] == ["bk-bandkeeper"]


def test_every_binding_is_for_the_operator_and_every_role_exists() -> None:
    roles = {(role["kind"], role["metadata"].get("namespace"), role["metadata"]["name"]) for role in render(EVERYTHING)}
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        for binding in of_kind(kind, EVERYTHING):
            (subject,) = binding["subjects"]
            assert subject == {"kind": "ServiceAccount", "name": "bk-bandkeeper", "namespace": "gpu-system"}
            place = binding["metadata"].get("namespace")
            assert (binding["roleRef"]["kind"], place, binding["roleRef"]["name"]) in roles


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("annotation", "bk-bandkeeper-annotation"),
        ("podTemplate", "bk-bandkeeper-pod-template"),
        ("configMap", "bk-bandkeeper-config-map"),
        ("rayServe", "bk-bandkeeper-ray-serve"),
        ("kServe", "bk-bandkeeper-kserve"),
    ],
)
def test_an_adapter_always_comes_with_its_admission_policy(adapter: str, name: str) -> None:
    switched_on = {"enabled": True, **({"names": ["chat-batch"]} if adapter == "configMap" else {})}
    values = {"adapters": {adapter: switched_on}, "serviceAccount": {"name": "keeper"}}
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind("ValidatingAdmissionPolicy", values)}
    assert policies.keys() == {name, "bk-bandkeeper-scale-right"}
    spec = policies[name]
    assert spec["failurePolicy"] == "Fail"
    condition = "request.userInfo.username == 'system:serviceaccount:gpu-system:keeper'"
    assert [c["expression"] for c in spec["matchConditions"]] == [condition]
    bindings = [b["spec"] for b in of_kind("ValidatingAdmissionPolicyBinding", values)]
    assert {"policyName": name, "validationActions": ["Deny"]} in bindings


# -- the pods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_pods_keep_to_the_restricted_standard(values: Manifest) -> None:
    spec = the("Deployment", values)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]} <= {"configMap", "emptyDir", "secret"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "hostPort" not in container["ports"][0]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]
    assert not any("subPath" in mount for mount in container["volumeMounts"])


def test_two_replicas_are_probed_spread_and_kept_from_going_together() -> None:
    deployment = the("Deployment")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert deployment["spec"]["replicas"] == 2
    assert container["args"] == ["run", "--config", "/etc/bandkeeper/config.yaml"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    for constraint in spec["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"].items() <= labels
    budget = the("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels
    assert the("Service")["spec"]["selector"].items() <= labels
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert of_kind("PodDisruptionBudget", {"replicaCount": 1}) == []


def test_the_token_is_mounted_in_the_operator_only() -> None:
    assert the("ServiceAccount")["automountServiceAccountToken"] is False
    assert the("Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is True


def test_a_digest_pins_the_image() -> None:
    (container,) = the("Deployment", EVERYTHING)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "bandkeeper@sha256:" + "0" * 64


def test_secrets_and_cas_are_mounted_where_the_values_say() -> None:
    spec = the("Deployment", EVERYTHING)["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["secret-prometheus"] == "/secrets/prometheus"
    assert mounts["secret-pods"] == "/secrets/pods"
    assert mounts["configmap-ca"] == "/configmaps/ca"
    assert len(spec["volumes"]) == len({volume["name"] for volume in spec["volumes"]}) == 5
    assert {"name": "secret-prometheus", "secret": {"secretName": "prometheus", "defaultMode": 0o440}} in spec[
        "volumes"
    ]


def test_a_service_monitor_needs_the_service() -> None:
    monitor = the("ServiceMonitor", EVERYTHING)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= the("Service")["metadata"]["labels"].items()
    values = {"metrics": {"serviceMonitor": {"enabled": True}, "service": {"enabled": False}}}
    done = helm("template", "bk", str(CHART), values=values)
    assert "metrics.serviceMonitor.enabled needs metrics.service.enabled=true" in done.stderr


# -- what the page says ------------------------------------------------------------------------------------------------


def test_every_example_of_the_install_page_is_accepted() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    documents = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)]
    policies = [document for document in documents if "kind" in document]
    values = [document for document in documents if "kind" not in document]
    assert (len(policies), len(values)) == (1, 3)
    Spec.model_validate(policies[0]["spec"], strict=False)
    for document in values:
        assert render(document)


# -- configuration -----------------------------------------------------------------------------------------------------


def settings(values: Manifest | None = None) -> Settings:
    """The operator's own reading of the rendered configuration."""
    return parse(yaml.safe_load(the("ConfigMap", values)["data"]["config.yaml"]), "config.yaml")


def test_the_operator_reads_what_the_chart_writes() -> None:
    read = settings()
    assert (read.period, read.restart_hold, read.log_format, read.namespaces) == (15.0, 300.0, "json", [])
    assert read.address == ("0.0.0.0", 8080)
    assert (read.lease.namespace, read.lease.name, read.lease.duration) == ("gpu-system", "bk-bandkeeper", 15.0)
    assert [server.name for server in read.prometheus.servers] == ["default"]
    assert not any(read.adapters.model_dump().values())
    assert (read.pod_access.ca_file, read.pod_access.credentials) == (None, [])


def test_every_setting_arrives() -> None:
    read = settings({**EVERYTHING, "watchNamespaces": ["a"]})
    main, other = read.prometheus.servers
    assert (main.url, str(main.ca_file)) == ("https://prometheus.monitoring.svc:9090", "/configmaps/ca/ca.crt")
    assert (str(main.bearer_token_file), main.timeout) == ("/secrets/prometheus/token", 3.0)
    assert main.headers == {"X-Scope-OrgID": "team"}
    assert (other.username, str(other.password_file)) == ("u", "/secrets/prometheus/p")
    assert read.prometheus.allowed_urls == ["http://prometheus.team-a.svc:9090"]
    assert (read.period, read.restart_hold, read.log_format, read.namespaces) == (1.0, 300.0, "text", ["a"])
    assert (read.lease.duration, read.lease.renew_deadline, read.lease.retry_period) == (8.0, 5.0, 0.5)
    assert all(read.adapters.model_dump().values())
    assert str(read.pod_access.ca_file) == "/configmaps/ca/pods.crt"
    (credential,) = read.pod_access.credentials
    assert (credential.name, str(credential.file)) == ("chat", "/secrets/pods/token")
    assert (credential.header, credential.prefix, credential.namespaces) == ("X-Key", "", ["serving"])


def test_a_changed_setting_restarts_the_operator() -> None:
    def checksum(values: Manifest) -> str:
        annotations = the("Deployment", values)["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/config"])

    assert checksum({}) != checksum({"period": "10s"})
    assert checksum({}) == checksum({"replicaCount": 3})
