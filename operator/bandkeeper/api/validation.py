"""The verdict on a policy document: that of `kubectl apply` with strict field validation, a sentence per problem."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from bandkeeper.api.crdgen import Schema, root_schema
from bandkeeper.api.rules import RULES_BROKEN, matches
from bandkeeper.api.v1alpha1 import NAME_LIMIT, Spec, Status


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at `path`; `message` begins with "must" and says what to write instead."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def validate(document: Mapping[str, Any]) -> Spec | tuple[Problem, ...]:
    """The spec of a policy document as kubectl would send it, or every problem found in it.

    Status is judged for unknown fields only, as the API server does: it is never taken from a document.
    """
    try:
        text = json.dumps(_as_stored(document, _ROOT), allow_nan=False)
    except (TypeError, ValueError) as error:
        return (Problem("document", f"must be plain JSON or YAML: {error}"),)
    problems = list(_unknown_in_status(document))
    try:
        spec = _Document.model_validate_json(text, by_alias=True, by_name=False).spec
    except ValidationError as error:
        problems += [problem for details in error.errors() for problem in _problems(details)]
        return tuple(problems)
    return tuple(problems) or spec


_ROOT = root_schema(also=["examples"])


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class _Metadata(_Strict):
    """Every field of ObjectMeta; only the name is judged here, the rest is the API server's."""

    name: Annotated[
        str,
        Field(max_length=NAME_LIMIT, examples=["chat"]),
        matches(
            "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            "must be lower case letters, digits, '-' and '.', with a letter or digit at both ends, such as chat",
        ),
    ]
    namespace: Any = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    generate_name: Any = None
    self_link: Any = None
    uid: Any = None
    resource_version: Any = None
    generation: Any = None
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    owner_references: Any = None
    finalizers: Any = None
    managed_fields: Any = None


class _Document(_Strict):
    api_version: Literal["bandkeeper.dev/v1alpha1"]
    kind: Literal["GPUScalingPolicy"]
    metadata: _Metadata
    spec: Spec
    status: Any = None


def _as_stored(value: Any, schema: Schema) -> Any:
    """`value` as the API server reads it: a null field is one left out, and 4.0 is 4 where an integer belongs."""
    if isinstance(value, Mapping):
        fields = schema.get("properties", {})
        return {
            name: _as_stored(part, fields.get(name, {}))
            for name, part in value.items()
            if part is not None or name not in fields
        }
    if isinstance(value, list):
        return [_as_stored(part, schema.get("items", {})) for part in value]
    if isinstance(value, float) and value.is_integer() and schema.get("type") == "integer":
        return int(value)
    return value


def _unknown_in_status(document: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        Status.model_validate_json(json.dumps(document.get("status") or {}), by_alias=True, by_name=False)
    except ValidationError as error:
        for details in error.errors():
            if details["type"] == "extra_forbidden":
                yield from _problems({**details, "loc": ("status", *details["loc"])})


def _problems(details: ErrorDetails) -> list[Problem]:
    place = details["loc"]
    if details["type"] == "default_factory_not_called":  # a consequence of another problem
        return []
    if details["type"] == RULES_BROKEN:
        return [Problem(_path(place) + broken.path, broken.message) for broken in details["ctx"]["violations"]]
    sentence = _SENTENCES.get(details["type"])
    return [Problem(_path(place), sentence(details) if sentence else f"must be valid: {details['msg']}")]


def _path(place: Sequence[int | str]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".") or "document"


def _schema_at(place: Sequence[int | str]) -> Schema:
    schema = _ROOT
    for step in place:
        schema = schema.get("items", {}) if isinstance(step, int) else schema.get("properties", {}).get(step, {})
    return schema


def _written(value: Any) -> str:
    """`value` as one would write it in YAML on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_written(part)}' for name, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_written(part) for part in value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def _list(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _missing(details: ErrorDetails) -> str:
    schema = _schema_at(details["loc"])
    if "enum" in schema:
        return f"must be set to one of {_list(schema['enum'])}"
    if "examples" in schema:
        return f"must be set, such as {details['loc'][-1]}: {_written(schema['examples'][0])}"
    return "must be set"


def _unknown(details: ErrorDetails) -> str:
    *parent, name = details["loc"]
    known = list(_schema_at(parent).get("properties", {}))
    if not known or parent == ["metadata"]:
        return "must be left out: there is no such field here"
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    instead = f"write {close[0]}" if close else f"the fields are {_list(known)}"
    return f"must be left out: there is no such field here; {instead}"


def _choice(details: ErrorDetails) -> str:
    return f"must be one of {_list(_schema_at(details['loc'])['enum'])}, not {_kind(details['input'])}"


def _whole_number(details: ErrorDetails) -> str:
    value = details["input"]
    if isinstance(value, str) and value.isdigit():
        return f"must be a whole number without quotes: write {value}"
    return f"must be a whole number, not {json.dumps(value)}"


def _string(details: ErrorDetails) -> str:
    value = details["input"]
    if isinstance(value, bool | int | float):
        return f'must be a string: write it in quotes, "{json.dumps(value)}"'
    return f"must be a string, not {_kind(value)}"


def _object(details: ErrorDetails) -> str:
    known = list(_schema_at(details["loc"]).get("properties", {}))
    fields = f" with the fields {', '.join(known)}" if known else ""
    return f"must be an object{fields}, not {_kind(details['input'])}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list) else json.dumps(value)


def _bound(sentence: str, bound: str) -> Callable[[ErrorDetails], str]:
    return lambda details: sentence.format(details["ctx"][bound])


_SENTENCES: Mapping[str, Callable[[ErrorDetails], str]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "int_type": _whole_number,
    "int_from_float": _whole_number,
    "string_type": _string,
    "model_type": _object,
    "model_attributes_type": _object,
    "dict_type": _object,
    "list_type": lambda details: f"must be a list, not {_kind(details['input'])}",
    "enum": _choice,
    "literal_error": lambda details: f"must be {details['ctx']['expected'].strip(chr(39))}",
    "greater_than_equal": _bound("must be at least {}", "ge"),
    "less_than_equal": _bound("must be at most {}", "le"),
    "string_too_short": lambda details: "must not be empty",
    "string_too_long": _bound("must have at most {} characters", "max_length"),
    "too_short": lambda details: "must have at least one entry, or be left out",
    "too_long": _bound("must have at most {} entries", "max_length"),
}
