"""One replica of a LeaderWorkerSet is a group of pods."""

from __future__ import annotations

from typing import Any

import pytest

from bandkeeper.actuate.groups import group_of
from bandkeeper.api.snapshot import Group


def pods(gpus: int | None) -> dict[str, Any]:
    limits = {} if gpus is None else {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {"spec": {"containers": [{"name": "server", "resources": limits}]}}


@pytest.mark.parametrize(
    ("template", "group"),
    [
        ({"size": 4, "workerTemplate": pods(8)}, Group(pods=4, gpus=32.0)),
        ({"size": 3, "leaderTemplate": pods(None), "workerTemplate": pods(4)}, Group(pods=3, gpus=8.0)),
        ({"size": 2, "leaderTemplate": pods(1), "workerTemplate": pods(8)}, Group(pods=2, gpus=9.0)),
        ({"workerTemplate": pods(8)}, Group(pods=1, gpus=8.0)),
        ({"size": 2, "workerTemplate": pods(None)}, Group(pods=2)),
    ],
    ids=["alike", "a leader without GPUs", "a small leader", "size left out", "no GPUs"],
)
def test_a_group_has_a_leader_and_workers(template: dict[str, Any], group: Group) -> None:
    assert group_of({"kind": "LeaderWorkerSet", "spec": {"leaderWorkerTemplate": template}}) == group


def test_one_replica_of_anything_else_is_a_pod() -> None:
    assert group_of({"kind": "Deployment", "spec": {"template": pods(8)}}) is None
    assert group_of({}) is None
