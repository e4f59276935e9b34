"""Puts Bandkeeper's objects into a cluster: the chart without its pods, or the CRDs alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import ControlPlane

REPOSITORY = Path(__file__).parents[2]
CRDS = REPOSITORY / "crds"
CHART = REPOSITORY / "charts" / "bandkeeper"
RELEASE = "bandkeeper"


@dataclass(frozen=True, slots=True)
class Installed:
    """As whom an operator acts there, and the settings that the chart gives it."""

    kubeconfig: Path
    settings: Mapping[str, Any]


def install_chart(cluster: ControlPlane, namespace: str, values: Mapping[str, Any]) -> Installed:
    """`helm upgrade --install` with no replicas; the operator runs elsewhere, under the chart's service account."""
    words = ["upgrade", "--install", RELEASE, str(CHART), "--namespace", namespace, "--create-namespace", "--wait"]
    words.append("--take-ownership")  # of CRDs that an earlier release in the same cluster left behind
    for key, value in {"replicaCount": 0, **values}.items():
        words += ["--set-json", f"{key}={json.dumps(value)}"]
    cluster.helm(*words)
    wait_for_crds(cluster)
    config = cluster.get("configmap", RELEASE, namespace=namespace)["data"]["config.yaml"]
    return Installed(cluster.service_account_kubeconfig(namespace, RELEASE), yaml.safe_load(config))


def remove_chart(cluster: ControlPlane, namespace: str) -> None:
    """What the release brought, but for the CRDs, which the chart keeps."""
    cluster.helm("uninstall", RELEASE, "--namespace", namespace, "--ignore-not-found")


def install_crds(cluster: ControlPlane) -> None:
    """The CRDs alone, ready for use."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
    wait_for_crds(cluster)


def wait_for_crds(cluster: ControlPlane) -> None:
    """Return when the API server serves them."""
    cluster.kubectl("wait", "--for=condition=Established", "-f", str(CRDS), "--timeout=30s")
