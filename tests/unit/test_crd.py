"""The generated CRD: no drift, and the conventions that an API linter would ask for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from bandkeeper.api.crdgen import crd, generated, structural_schema
from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.api.validation import validate

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
Node = tuple[str, dict[str, Any]]


def _nodes(path: str, schema: dict[str, Any]) -> Iterator[Node]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from _nodes(f"{path}.{name}", field)
    if "items" in schema:
        yield from _nodes(f"{path}[]", schema["items"])


VERSION = crd()["spec"]["versions"][0]
ROOT_SCHEMA = VERSION["schema"]["openAPIV3Schema"]
NODES = [
    node for part in ("spec", "status") for node in _nodes(part, ROOT_SCHEMA["properties"][part])
]  # metadata belongs to the API server
FIELDS = [(path, schema) for path, schema in NODES if not path.endswith("[]")]


@pytest.mark.parametrize("name", generated())
def test_what_is_checked_in_is_what_the_models_say(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == generated()[name], "run `make generate`"


def test_the_file_has_no_anchors_and_no_helm_templates() -> None:
    text = generated()["crds/bandkeeper.dev_gpuscalingpolicies.yaml"]
    assert yaml.safe_load(text) == crd()
    assert [mark for mark in ("&id", "*id", "{{") if mark in text] == []


def test_every_field_is_described_in_sentences() -> None:
    assert [path for path, schema in FIELDS if not schema.get("description", "").endswith(".")] == []


def test_every_string_list_and_number_is_bounded() -> None:
    needed = {"string": ("maxLength",), "array": ("maxItems",), "integer": ("minimum", "maximum", "format")}
    unbounded = [
        (path, key)
        for path, schema in NODES
        for key in needed.get(schema["type"], ())
        if key not in schema and "enum" not in schema
    ]
    assert unbounded == []


def test_bounds_survive_a_reader_that_takes_them_for_floats() -> None:
    bounds = [schema[key] for _, schema in NODES for key in ("minimum", "maximum") if key in schema]
    assert all(int(float(bound)) == bound and abs(bound) <= 2**53 for bound in bounds)


def test_types_are_those_of_a_structural_schema() -> None:
    assert {schema["type"] for _, schema in NODES} == {"object", "array", "string", "integer"}  # no floats, no booleans
    unwanted = {"nullable", "additionalProperties", "title", "anyOf", "oneOf", "$ref", "examples"}
    unwanted.add("x-kubernetes-preserve-unknown-fields")
    assert [(path, unwanted & schema.keys()) for path, schema in NODES if unwanted & schema.keys()] == []


def test_every_list_says_how_it_is_merged() -> None:
    for path, schema in NODES:
        if schema["type"] != "array":
            continue
        kind = schema["x-kubernetes-list-type"]
        keys = schema.get("x-kubernetes-list-map-keys", [])
        assert kind in ("map", "set", "atomic"), path
        assert bool(keys) is (kind == "map"), path
        for key in keys:
            items = schema["items"]
            assert key in items["required"] or "default" in items["properties"][key], f"{path} by {key}"


def test_names_are_camel_case_and_no_phase() -> None:
    names = {name for _, schema in NODES for name in schema.get("properties", {})}
    assert all(name[0].islower() and name.isalnum() for name in names)
    assert "phase" not in names


def test_conditions_are_those_of_every_kubernetes_api() -> None:
    conditions = ROOT_SCHEMA["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    fields = {"type", "status", "reason", "message", "lastTransitionTime", "observedGeneration"}
    assert set(conditions["items"]["required"]) == fields


def test_what_the_objective_decides_has_no_default() -> None:
    for path, schema in NODES:
        if path.startswith(("spec.band", "spec.behavior", "spec.batch.candidates")):
            assert "default" not in schema, path


def test_every_rule_says_what_must_be() -> None:
    rules = [rule for _, schema in NODES for rule in schema.get("x-kubernetes-validations", ())]
    assert rules
    for rule in rules:
        assert rule["message"].startswith("must "), rule
        assert len(rule["message"]) <= 256, rule


def test_kubectl_shows_whether_it_is_fine() -> None:
    names = crd()["spec"]["names"]
    assert (names["shortNames"], names["categories"], VERSION["subresources"]) == (
        ["gsp"],
        ["bandkeeper"],
        {"status": {}},
    )
    columns = [column["name"] for column in VERSION["additionalPrinterColumns"] if "priority" not in column]
    assert columns == [
        *("Target", "Objective", "Replicas", "Desired", "Batch", "Utilization", "Quality", "SLO", "Ready", "Reason"),
        "Age",
    ]


@pytest.mark.parametrize("column", VERSION["additionalPrinterColumns"], ids=lambda column: column["name"])
def test_every_column_has_a_field(column: dict[str, Any]) -> None:
    path = column["jsonPath"].removeprefix(".").split("[?")[0]
    assert path == "metadata.creationTimestamp" or path in {where for where, _ in NODES}


def test_a_model_without_structural_form_is_refused() -> None:
    class Loose(BaseModel):
        value: int | str

    with pytest.raises(ValueError, match="union of 2 types"):
        structural_schema(Loose)


def test_an_unknown_keyword_is_refused() -> None:
    class Odd(BaseModel):
        by_name: dict[str, int]

    with pytest.raises(ValueError, match="no structural form for additionalProperties"):
        structural_schema(Odd)


def test_there_is_an_example_per_objective() -> None:
    documents = [yaml.safe_load(path.read_text()) for path in EXAMPLES]
    assert {document["spec"]["objective"] for document in documents} == {
        *("LatencySensitive", "ThroughputSensitive", "Balanced")
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(path: Path) -> None:
    assert isinstance(validate(yaml.safe_load(path.read_text())), Spec)
