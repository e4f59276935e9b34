"""Who wrote a field of an object, by its managedFields, and how to make them leave it alone. Pure; raw objects in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """A field manager and how it writes: `Apply` (server-side apply) or `Update`; `at` is an RFC 3339 time."""

    name: str
    operation: str
    at: str = ""


def last_manager(manifest: Mapping[str, Any], *path: str) -> Manager | None:
    """The field manager that owns a field and wrote last; `path` as in managedFields (`f:spec`, `f:replicas`)."""
    managers = [
        Manager(name=entry.get("manager", ""), operation=entry.get("operation", ""), at=entry.get("time") or "")
        for entry in (manifest.get("metadata") or {}).get("managedFields") or ()
        if _owns(entry.get("fieldsV1") or {}, path)
    ]
    return max(managers, key=lambda manager: manager.at, default=None)


def replicas_manager(manifest: Mapping[str, Any]) -> str:
    """Name of the field manager that wrote `spec.replicas` last, "" where nobody is recorded."""
    manager = last_manager(manifest, "f:spec", "f:replicas")
    return manager.name if manager else ""


def ignore_rule(manager: str, pointer: str) -> str:
    """How to make `manager` leave the field at JSON pointer `pointer` to the operator."""
    if manager.startswith("argocd"):
        return (
            f"list {pointer} under ignoreDifferences.jsonPointers of the Argo CD Application and set its sync option "
            "RespectIgnoreDifferences=true"
        )
    if manager == "kustomize-controller":
        return f"remove {pointer} from the manifest that Flux applies"
    if manager == "helm-controller":
        return f"list {pointer} under spec.driftDetection.ignore of the HelmRelease"
    if manager == "helm":
        return f"remove {pointer} from the chart's template, so that helm upgrade does not set it again"
    return f"stop {manager or 'the other writer'} from setting {pointer}"


def _owns(fields: Mapping[str, Any], path: Sequence[str]) -> bool:
    for step in path:
        if step not in fields:
            return False
        fields = fields[step]
    return True
