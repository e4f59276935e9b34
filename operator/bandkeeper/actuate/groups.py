"""What one replica is made of, where that is not one pod: a LeaderWorkerSet counts groups. Pure; raw objects in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bandkeeper.api.snapshot import Group
from bandkeeper.kube.pods import gpus_asked


def group_of(workload: Mapping[str, Any]) -> Group | None:
    """The group that one replica is; None where it is a pod.

    The selector of a LeaderWorkerSet's scale subresource names the leaders only, so its workers are not seen as pods.
    """
    if workload.get("kind") != "LeaderWorkerSet":
        return None
    template = (workload.get("spec") or {}).get("leaderWorkerTemplate") or {}
    size, worker = template.get("size") or 1, template.get("workerTemplate") or {}
    leader_gpus, worker_gpus = _gpus(template.get("leaderTemplate") or worker), _gpus(worker)
    return Group(pods=size, gpus=leader_gpus + (size - 1) * worker_gpus or None)


def _gpus(template: Mapping[str, Any]) -> float:
    return gpus_asked((template.get("spec") or {}).get("containers") or ()) or 0.0
