"""Who else drives a target: an HPA, a ScaledObject, or an older enforcing policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bandkeeper.api.conditions import ConflictedReason
from bandkeeper.kube.scalers import Scalers
from bandkeeper.runtime.policies import Managed

TargetKey = tuple[str, str, str, str]
"""Namespace, API group, kind and name."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why the policy keeps its hands off."""

    reason: str
    message: str


def target_key(managed: Managed) -> TargetKey | None:
    """What a policy drives; versions of one group name the same object."""
    if managed.spec is None:
        return None
    ref = managed.spec.target_ref
    group = ref.api_version.partition("/")[0] if "/" in ref.api_version else ""
    return managed.ref.namespace, group, ref.kind, ref.name


def owners(policies: Iterable[Managed]) -> dict[TargetKey, Managed]:
    """The policy that may drive each target: the oldest enforcing one, by name among those of one second."""
    found: dict[TargetKey, Managed] = {}
    for managed in sorted(policies, key=lambda policy: (policy.created_s, policy.ref.name)):
        key = target_key(managed)
        if key is not None and managed.enforcing and managed.flaw is None:
            found.setdefault(key, managed)
    return found


def conflict_of(managed: Managed, owner_of: Mapping[TargetKey, Managed], scalers: Scalers) -> Conflict | None:
    """The conflict of an enforcing policy; recommending and paused policies never conflict."""
    key = target_key(managed)
    if key is None or managed.spec is None or not managed.enforcing or managed.flaw is not None:
        return None
    ref = managed.spec.target_ref
    target = f"{ref.kind} {ref.name}"
    others = scalers.of(managed.ref.namespace, ref.api_version, ref.kind, ref.name)
    if others:
        other = next((scaler for scaler in others if scaler.kind == "ScaledObject"), others[0])
        reason = ConflictedReason.SCALED_OBJECT if other.kind == "ScaledObject" else ConflictedReason.HPA
        return Conflict(
            reason,
            f"{target} is already scaled by {other.kind} {other.name}: delete one of the two, or set mode: Recommend",
        )
    owner = owner_of.get(key)
    if owner is not None and owner.ref.uid != managed.ref.uid:
        return Conflict(
            ConflictedReason.OLDER_POLICY,
            f"{target} is already scaled by the older policy {owner.ref.name}: "
            "delete one of the two, or set mode: Recommend",
        )
    return None
