"""Who drives a target: one table of policies, of which at most one may write, and of other autoscalers."""

from __future__ import annotations

from typing import Any

import pytest

from bandkeeper.kube.scalers import Scaler
from bandkeeper.runtime.conflicts import conflict_of, owners
from bandkeeper.runtime.policies import Managed
from tests.unit.runtime_world import NAMESPACE, World

OLD, NEW = "2025-01-01T00:00:00Z", "2025-06-01T00:00:00Z"


def read(world: World, name: str = "chat") -> Managed:
    return world.loop._interpreter.read(world.policies.objects[NAMESPACE, name])


def told(world: World) -> dict[str, str]:
    """Reason of each policy's conflict, "" for none."""
    policies = [world.loop._interpreter.read(raw) for raw in world.policies.objects.values()]
    policies.reverse()  # the order in the store must not count
    owner_of = owners(policies)
    found = {policy.ref.name: conflict_of(policy, owner_of, world.loop._stores.scalers) for policy in policies}
    return {name: str(conflict.reason) if conflict else "" for name, conflict in found.items()}


PAIRS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]] = [
    ("the older one drives", {"created": OLD}, {"created": NEW}, {"a": "", "b": "OlderPolicy"}),
    ("whatever their names", {"created": NEW}, {"created": OLD}, {"a": "OlderPolicy", "b": ""}),
    ("by name in one second", {"created": OLD}, {"created": OLD}, {"a": "", "b": "OlderPolicy"}),
    ("a paused one does not", {"created": OLD, "paused": True}, {"created": NEW}, {"a": "", "b": ""}),
    ("nor does one that recommends", {"created": OLD, "mode": "Recommend"}, {"created": NEW}, {"a": "", "b": ""}),
    ("nor one that cannot be carried out", {"created": OLD, "runtime": "Foo"}, {"created": NEW}, {"a": "", "b": ""}),
    ("nor conflicts one that recommends", {"created": OLD}, {"created": NEW, "mode": "Recommend"}, {"a": "", "b": ""}),
    ("nor a paused one", {"created": OLD}, {"created": NEW, "paused": True}, {"a": "", "b": ""}),
    ("other targets are other targets", {"created": OLD}, {"created": NEW, "target": "other"}, {"a": "", "b": ""}),
]


@pytest.mark.parametrize(("name", "first", "second", "reasons"), PAIRS, ids=[case[0] for case in PAIRS])
async def test_rule_7_one_policy_drives_a_target(
    name: str, first: dict[str, Any], second: dict[str, Any], reasons: dict[str, str]
) -> None:
    world = World()
    world.apply("a", **({"target": "chat"} | first))
    world.apply("b", **({"target": "chat"} | second))
    assert told(world) == reasons


async def test_versions_of_one_group_name_the_same_target() -> None:
    world = World()
    for name, version in (("a", "example.com/v1"), ("b", "example.com/v2"), ("c", "other.com/v1")):
        world.apply(name, targetRef={"apiVersion": version, "kind": "Engine", "name": "chat"})
    assert told(world) == {"a": "", "b": "OlderPolicy", "c": ""}


@pytest.mark.parametrize(("kind", "reason"), [("HorizontalPodAutoscaler", "HPA"), ("ScaledObject", "ScaledObject")])
async def test_rule_7_another_autoscaler_is_named_with_what_to_do(kind: str, reason: str) -> None:
    world = World()
    world.apply()
    world.hpas.put((NAMESPACE, "x"), Scaler(kind, NAMESPACE, "x", "apps", "Deployment", "chat"))
    conflict = conflict_of(read(world), {}, world.loop._stores.scalers)
    assert conflict is not None
    assert conflict.reason == reason
    assert f"{kind} x" in conflict.message
    assert "mode: Recommend" in conflict.message
    world.hpas.put((NAMESPACE, "x"), None)
    assert conflict_of(read(world), {}, world.loop._stores.scalers) is None


async def test_rule_7_the_younger_policy_takes_over_when_the_older_one_goes() -> None:
    world = World()
    world.deploy("chat", replicas=2)
    world.apply("old", target="chat", created=OLD, replicas={"min": 3, "max": 8})
    world.apply("new", target="chat", created=NEW, replicas={"min": 5, "max": 8})
    await world.look()
    assert world.written == [("chat", 3)]
    world.delete("old")
    await world.look()
    await world.look()
    assert world.written == [("chat", 3), ("chat", 5)]
    await world.loop._stop()
