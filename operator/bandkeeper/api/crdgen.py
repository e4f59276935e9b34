"""From the pydantic models to the CustomResourceDefinition and what else is generated: `make generate`.

JSON schema as pydantic writes it is not the structural schema that the API server wants: references are inlined, unions
with null become the other member, and titles, examples, null defaults and `additionalProperties: false` go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from bandkeeper.api import reference
from bandkeeper.api.v1alpha1 import GROUP, KIND, NAME_LIMIT, PLURAL, VERSION, Spec, Status

Schema = dict[str, Any]

_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
_DROPPED = ("title", "examples", "additionalProperties", "$defs", "$ref", "anyOf", "properties", "items")
_INT32 = 2**31 - 1


def structural_schema(model: type[BaseModel], *, also: Sequence[str] = ()) -> Schema:
    """The structural schema of `model`, with the keys `also` (such as "examples") that the API server does not take.

    Raises ValueError where the model has no structural form.
    """
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}), (*_KEPT, *also))


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Schema], kept: Sequence[str]) -> Schema:
    flat = _flat(schema, definitions)
    unknown = flat.keys() - set(_KEPT) - set(_DROPPED)
    if unknown or flat.get("additionalProperties"):
        raise ValueError(f"no structural form for {sorted(unknown) or 'additionalProperties'} in {flat}")
    result = {key: _without_nulls(flat[key]) for key in kept if flat.get(key) is not None}
    if result["type"] == "integer":
        result["format"] = "int32" if flat.get("maximum", _INT32) <= _INT32 else "int64"
    if "items" in flat:
        result.setdefault("x-kubernetes-list-type", "atomic")
        result["items"] = _structural(flat["items"], definitions, kept)
    if "properties" in flat:
        result["properties"] = {
            name: _structural(field, definitions, kept) for name, field in flat["properties"].items()
        }
    return result


def _without_nulls(value: Any) -> Any:
    """`value` without null members, as a copy: YAML would write shared parts as anchors."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _flat(schema: Mapping[str, Any], definitions: Mapping[str, Schema]) -> Schema:
    """`schema` with its reference, and its union with null, replaced by what they stand for; its own keys win."""
    flat = dict(schema)
    while "$ref" in flat or "anyOf" in flat:
        if "$ref" in flat:
            meant = definitions[flat.pop("$ref").removeprefix("#/$defs/")]
        else:
            members = [member for member in flat.pop("anyOf") if member.get("type") != "null"]
            if len(members) != 1:
                raise ValueError(f"a union of {len(members)} types has no structural form: {members}")
            meant = members[0]
        flat = {**meant, **flat}
    return flat


def _column(name: str, path: str, kind: str, description: str, *, wide: bool = False) -> Schema:
    column = {"name": name, "type": kind, "description": description, "jsonPath": path}
    return column | {"priority": 1} if wide else column


def _condition_column(name: str, condition: str, description: str) -> Schema:
    return _column(name, f'.status.conditions[?(@.type=="{condition}")].status', "string", description)


PRINTER_COLUMNS = (
    _column("Target", ".spec.targetRef.name", "string", "The workload that is scaled."),
    _column("Objective", ".spec.objective", "string", "What matters most."),
    _column("Replicas", ".status.replicas.current", "integer", "Replicas now."),
    _column("Desired", ".status.replicas.desired", "integer", "Replicas wanted."),
    _column("Batch", ".status.batch.current", "integer", "Batch cap now."),
    _column("Utilization", ".status.utilization.percent", "integer", "Utilisation in percent; above 100 is overload."),
    _column("Quality", ".status.quality.class", "string", "What the GPUs' busy time is worth."),
    _condition_column("SLO", "WithinSLO", "Whether every promise is kept."),
    _condition_column("Ready", "Ready", "Whether the policy works: valid, target found, metrics usable, no conflict."),
    _column("Reason", ".status.lastDecision.reason", "string", "Reason of the last decision."),
    _column("Age", ".metadata.creationTimestamp", "date", "Time since creation."),
    _column("Min", ".spec.replicas.min", "integer", "The fewest replicas.", wide=True),
    _column("Max", ".spec.replicas.max", "integer", "The most replicas.", wide=True),
    _column("Mode", ".spec.mode", "string", "Enforce or Recommend.", wide=True),
    _column("Score", ".status.quality.score", "integer", "How good the use of the GPUs is, to 100.", wide=True),
    _column("Bottleneck", ".status.quality.bottleneck", "string", "What of the GPUs is fullest.", wide=True),
    _column("GPUHours", ".status.cost.gpuHours", "string", "GPU-hours held since .status.cost.since.", wide=True),
    _column("Message", ".status.lastDecision.message", "string", "The last decision in a sentence.", wide=True),
)


def crd() -> Schema:
    """The CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["gsp"],
                "categories": ["bandkeeper"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [dict(column) for column in PRINTER_COLUMNS],
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema(*, also: Sequence[str] = ()) -> Schema:
    """The schema of a whole policy; `also` as in `structural_schema`."""
    return {
        "description": "Holds the utilisation of a GPU workload inside a band at the least cost, by moving its batch "
        "cap and its replica count together, and keeps its latency promises.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"{GROUP}/{VERSION}.", "type": "string"},
            "kind": {"description": f"{KIND}.", "type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": NAME_LIMIT}}},
            "spec": structural_schema(Spec, also=also),
            "status": structural_schema(Status, also=also),
        },
    }


def crd_yaml() -> str:
    """The CustomResourceDefinition as it is checked in."""
    text: str = yaml.safe_dump(crd(), sort_keys=False, width=110, allow_unicode=True)
    return f"# Generated from operator/bandkeeper/api by `make generate`; do not edit.\n{text}"


def generated() -> dict[str, str]:
    """Path from the root of the repository to content, of every file made from the models."""
    name = f"{GROUP}_{PLURAL}.yaml"
    return {
        f"crds/{name}": crd_yaml(),
        f"charts/bandkeeper/files/crds/{name}": crd_yaml(),
        "docs/reference/policy.md": reference.markdown(root_schema(also=["examples"]), PRINTER_COLUMNS),
    }


def main() -> None:
    """Write them; called in the root of the repository."""
    for name, content in generated().items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
