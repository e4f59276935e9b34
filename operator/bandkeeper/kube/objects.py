"""Names of objects: what a store is keyed by, and what an event or a status is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Key = tuple[str, str]
"""Namespace and name; the namespace is "" for objects outside any."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object of one life: the uid tells it from a later one of the same name."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


def ref_of(obj: Mapping[str, Any]) -> ObjectRef:
    """The reference to a raw object that carries its apiVersion and kind."""
    metadata = obj["metadata"]
    return ObjectRef(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"], metadata["uid"])


def key_of(obj: Mapping[str, Any]) -> Key:
    """Namespace and name of a raw object."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
