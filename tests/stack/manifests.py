"""The Kubernetes objects of an emulated model server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GPU = "nvidia.com/gpu"
CAP_ANNOTATION = "bandkeeper.dev/batch-cap"


def deployment(
    name: str,
    namespace: str,
    *,
    replicas: int = 1,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    gpus: int = 1,
    kind: str = "Deployment",
) -> dict[str, Any]:
    """A Deployment or StatefulSet of GPU pods labelled `app: NAME`.

    `labels` and `annotations` go on the pods (`bandkeeper.dev/load-time: "5s"`), `args` and `env` into the container
    `server`, which reads its batch cap as a real one would: from a downward-API file of its own annotation.
    """
    container = {
        "name": "server",
        "image": "vllm/vllm-openai:v0.33.0",
        "args": list(args),
        "env": [{"name": key, "value": value} for key, value in (env or {}).items()],
        "resources": {"limits": {GPU: str(gpus)}},
        "volumeMounts": [{"name": "podinfo", "mountPath": "/etc/podinfo", "readOnly": True}],
    }
    field = {"fieldPath": f"metadata.annotations['{CAP_ANNOTATION}']"}
    volume = {"name": "podinfo", "downwardAPI": {"items": [{"path": "batch-cap", "fieldRef": field}]}}
    spec: dict[str, Any] = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name, **(labels or {})}, "annotations": dict(annotations or {})},
            "spec": {"containers": [container], "volumes": [volume]},
        },
    }
    if kind == "StatefulSet":
        spec |= {"serviceName": name, "podManagementPolicy": "Parallel"}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": spec,
    }
