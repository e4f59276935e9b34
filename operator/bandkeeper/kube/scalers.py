"""Others that scale the same targets: HorizontalPodAutoscalers and KEDA ScaledObjects, found by their target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bandkeeper.kube.reflector import Change, Reflector

HPA_API, HPA_PLURAL = "/apis/autoscaling/v2", "horizontalpodautoscalers"
SCALED_OBJECT_API, SCALED_OBJECT_PLURAL = "/apis/keda.sh/v1alpha1", "scaledobjects"


@dataclass(frozen=True, slots=True)
class Scaler:
    """An autoscaler and its target; `group` is None where the autoscaler does not say which."""

    kind: str
    namespace: str
    name: str
    group: str | None
    target_kind: str
    target_name: str


def trim_hpa(raw: Mapping[str, Any]) -> Scaler:
    """A HorizontalPodAutoscaler and its target."""
    return _scaler("HorizontalPodAutoscaler", raw, raw["spec"]["scaleTargetRef"])


def trim_scaled_object(raw: Mapping[str, Any]) -> Scaler:
    """A ScaledObject and its target, a Deployment unless it says otherwise."""
    target = raw["spec"]["scaleTargetRef"]
    return _scaler("ScaledObject", raw, {"apiVersion": "apps/v1", "kind": "Deployment", **target})


class Scalers:
    """Which autoscalers drive a target."""

    def __init__(self, *reflectors: Reflector[Scaler]) -> None:
        self._reflectors = reflectors
        self._by_target: dict[tuple[str, str, str], dict[tuple[str, str], Scaler]] = {}
        for reflector in reflectors:
            for key, scaler in reflector.objects.items():
                self._changed(Change(key, None, scaler))
            reflector.subscribe(self._changed)

    @property
    def synced(self) -> bool:
        """All first lists are in."""
        return all(reflector.synced for reflector in self._reflectors)

    @property
    def problem(self) -> str:
        """What cannot be seen, as a sentence; "" while all is well."""
        return next((reflector.problem for reflector in self._reflectors if reflector.problem), "")

    def of(self, namespace: str, api_version: str, kind: str, name: str) -> tuple[Scaler, ...]:
        """The autoscalers of a target, whatever version of its group they name, ScaledObjects last."""
        group = _group(api_version)
        found = self._by_target.get((namespace, kind, name), {})
        return tuple(found[key] for key in sorted(found) if found[key].group in (None, group))

    def _changed(self, change: Change[Scaler]) -> None:
        if old := change.old:
            others = self._by_target.get(_target(old), {})
            others.pop((old.kind, old.name), None)
            if not others:
                self._by_target.pop(_target(old), None)
        if new := change.new:
            self._by_target.setdefault(_target(new), {})[new.kind, new.name] = new


def _scaler(kind: str, raw: Mapping[str, Any], target: Mapping[str, Any]) -> Scaler:
    metadata = raw["metadata"]
    version = target.get("apiVersion")
    group = _group(version) if version else None
    return Scaler(kind, metadata["namespace"], metadata["name"], group, target["kind"], target["name"])


def _target(scaler: Scaler) -> tuple[str, str, str]:
    return scaler.namespace, scaler.target_kind, scaler.target_name


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]
