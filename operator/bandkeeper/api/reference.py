"""The reference page of the policy, written from its schema, its conditions and its reasons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bandkeeper.api.conditions import INITIALIZING, REASONS
from bandkeeper.api.reasons import Reason
from bandkeeper.api.signals import CATALOGUE
from bandkeeper.api.v1alpha1 import GROUP, KIND, PAUSED_ANNOTATION, VERSION

Schema = Mapping[str, Any]

_HEAD = f"""\
<!-- Generated from operator/bandkeeper/api by `make generate`; do not edit. -->
# {KIND} ({GROUP}/{VERSION})

{{description}}

Fields marked * must be set. Durations are strings of numbers with units: `7500us`, `500ms`, `90s`, `1m30s`, `2h`.
The annotation `{PAUSED_ANNOTATION}: "true"` pauses a policy: nothing is written until it is removed.
Examples are in [examples/](../../examples).
"""


def markdown(schema: Schema, columns: Sequence[Mapping[str, Any]]) -> str:
    """The page, from the schema of a whole policy with its examples, and the printer columns."""
    properties = schema["properties"]
    parts = [
        _HEAD.format(description=schema["description"]),
        *_objects("spec", properties["spec"]),
        *_objects("status", properties["status"]),
        "## Conditions\n",
        f"A condition that was not judged yet is Unknown with reason `{INITIALIZING}`.\n",
        *_conditions(),
        "## Reasons of a decision\n",
        _table(("Reason", "Meaning"), ((f"`{reason}`", reason.meaning) for reason in Reason)),
        "## Signals\n",
        _table(
            ("Signal", "Kind", "Unit", "Meaning"),
            ((f"`{name}`", info.kind, info.unit, info.meaning) for name, info in CATALOGUE.items()),
        ),
        "## Columns of `kubectl get gsp`\n",
        "Those marked wide are shown with `-o wide`.\n",
        _table(
            ("Column", "From", "Meaning"),
            (
                (
                    f"{column['name']}{' (wide)' if 'priority' in column else ''}",
                    f"`{column['jsonPath']}`",
                    column["description"],
                )
                for column in columns
            ),
        ),
    ]
    return "\n".join(parts)


def _objects(path: str, schema: Schema) -> Iterator[str]:
    """A section for the object at `path`, then one for each object below it."""
    yield f"## {path}\n" if "." not in path else f"### {path}\n"
    yield f"{schema['description']}\n"
    required = schema.get("required", ())
    rows = (_row(name, field, name in required) for name, field in schema["properties"].items())
    yield _table(("Field", "Type", "Default", "Meaning"), rows)
    rules = list(_rules(schema))
    if rules:
        yield "\n".join(rules) + "\n"
    for name, field in schema["properties"].items():
        below, step = (field["items"], f"{name}[]") if "items" in field else (field, name)
        if "properties" in below:
            yield from _objects(f"{path}.{step}", below)


def _row(name: str, field: Schema, required: bool) -> tuple[str, str, str, str]:
    default = f"`{_yaml(field['default'])}`" if "default" in field else ""
    return f"`{name}`{'*' if required else ''}", _type(field), default, field["description"]


def _type(field: Schema) -> str:
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if "items" in field:
        keys = " and ".join(field.get("x-kubernetes-list-map-keys", ()))
        entries = (
            f"{field.get('minItems', 0)} to {field['maxItems']} entries{f' that differ in {keys}' if keys else ''}"
        )
        return f"list of {entries}: {_type(field['items'])}"
    if field["type"] == "integer":
        return f"integer, {field['minimum']} to {field['maximum']}"
    if field["type"] == "string":
        return f"string, at most {field['maxLength']} characters"
    return "object"


def _rules(schema: Schema) -> Iterator[str]:
    """The rules of the object itself and of its plain fields, as a list."""
    for rule in schema.get("x-kubernetes-validations", ()):
        place = rule.get("fieldPath", "").removeprefix(".")
        yield f"- {f'`{place}` ' if place else ''}{rule['message']}."
    for name, field in schema["properties"].items():
        if field["type"] in ("string", "integer"):
            for rule in field.get("x-kubernetes-validations", ()):
                yield f"- `{name}` {rule['message']}."


def _conditions() -> Iterator[str]:
    for kind, reasons in REASONS.items():
        yield f"### {kind}\n"
        yield f"{kind.meaning}\n"
        yield _table(
            ("Reason", "Status", "Meaning"),
            ((f"`{word}`", meaning.status, meaning.sentence) for word, meaning in reasons.items()),
        )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_yaml(part)}' for key, part in value.items())}}}"
    return value if isinstance(value, str) else json.dumps(value)
