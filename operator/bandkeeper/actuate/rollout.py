"""What a workload object tells about its rollout. Pure; raw objects in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bandkeeper.actuate.managers import last_manager
from bandkeeper.api.snapshot import Rollout
from bandkeeper.api.v1alpha1 import GROUP

OWN_PREFIX = f"{GROUP}/"
CAP_ANNOTATION = f"{GROUP}/batch-cap"
PREVIOUS_CAP_ANNOTATION = f"{GROUP}/previous-batch-cap"
TEMPLATE_HASH_ANNOTATION = f"{GROUP}/template-hash"
REVISION_ANNOTATION = "deployment.kubernetes.io/revision"
STATEFUL_SET_POD_DEADLINE_S = (
    600.0  # a StatefulSet has no progress deadline of its own: a Deployment's default, per pod
)

Object = Mapping[str, Any]


def rollout_of(workload: Object, *, now: float) -> Rollout | None:
    """The rollout that is on its way, None when there is none.

    A scale-up or a first start is no rollout, though its pods are not ready. A paused workload has one that does not
    get on, also where all its pods are alike, because the next template would wait. `now` is in seconds since the
    epoch; only a StatefulSet needs it, because it keeps no progress deadline.
    """
    kind = workload.get("kind")
    if kind == "Deployment":
        return _deployment_rollout(workload)
    if kind == "StatefulSet":
        return _stateful_set_rollout(workload, now)
    return None


def template_hash(template: Object) -> str:
    """Fingerprint of a pod template without our own annotations."""
    metadata = dict(template.get("metadata") or {})
    annotations = metadata.pop("annotations", None) or {}
    metadata["annotations"] = {key: value for key, value in annotations.items() if not key.startswith(OWN_PREFIX)}
    bare = {**template, "metadata": metadata}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def is_ours(workload: Object) -> bool:
    """True when the pod template is, but for our annotations, the one that our adapter wrote last."""
    template = (workload.get("spec") or {}).get("template") or {}
    written = ((template.get("metadata") or {}).get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION)
    return written is not None and written == template_hash(template)


def _deployment_rollout(workload: Object) -> Rollout | None:
    spec, status = workload.get("spec") or {}, workload.get("status") or {}
    pods, updated = status.get("replicas") or 0, status.get("updatedReplicas") or 0
    surge = max(0, pods - (spec.get("replicas") or 0))
    if spec.get("paused"):
        return Rollout(deadline_exceeded=True, paused=True, surge=surge if updated < pods else 0)
    progress: Object = next((c for c in status.get("conditions") or () if c.get("type") == "Progressing"), {})
    first = ((workload.get("metadata") or {}).get("annotations") or {}).get(REVISION_ANNOTATION, "1") == "1"
    exceeded = progress.get("reason") == "ProgressDeadlineExceeded"
    starting = progress.get("reason") in ("NewReplicaSetCreated", "FoundNewReplicaSet", "ReplicaSetUpdated")
    if first or not (updated < pods or exceeded or starting):
        return None
    return _rollout(workload, exceeded, surge)


def _stateful_set_rollout(workload: Object, now: float) -> Rollout | None:
    spec, status = workload.get("spec") or {}, workload.get("status") or {}
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete" or status.get("updateRevision") == status.get("currentRevision"):
        return None
    pods = status.get("replicas") or 0
    keep = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    if keep and (status.get("updatedReplicas") or 0) >= pods - keep:
        return None  # the rest stays at the old revision because somebody said so
    writer = last_manager(workload, "f:spec", "f:template")
    begun = _epoch_s(writer.at) if writer else None
    exceeded = begun is not None and now - begun > STATEFUL_SET_POD_DEADLINE_S * max(1, pods - keep)
    return _rollout(workload, exceeded, 0)


def _rollout(workload: Object, exceeded: bool, surge: int) -> Rollout:
    """A rollout with what our own annotations tell of it: they outlive the process that wrote them."""
    if not is_ours(workload):
        return Rollout(deadline_exceeded=exceeded, surge=surge)
    annotations = workload["spec"]["template"]["metadata"]["annotations"]
    previous = annotations.get(PREVIOUS_CAP_ANNOTATION)
    return Rollout(
        deadline_exceeded=exceeded,
        ours=True,
        cap=_cap(annotations.get(CAP_ANNOTATION)),
        previous_cap=0 if previous == "" else _cap(previous),
        surge=surge,
    )


def _cap(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _epoch_s(timestamp: str) -> float | None:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return None
