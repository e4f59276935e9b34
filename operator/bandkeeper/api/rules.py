"""A rule of the API as one object: the CEL that the API server runs, its Python twin, and the sentence of both.

Put a `Rule` (or `Distinct`, for lists) into the `Annotated` type of a field, or into `rules` of a `RuledModel`. The
JSON schema of the model then carries it for the CRD generator, and validation raises one error of type `RULES_BROKEN`
with all broken rules of a place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from bandkeeper.api import durations

RULES_BROKEN = "rules_broken"
"""The `type` of the pydantic error; its context holds `violations`, a list of `Violation`."""

FieldReason = Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden", "FieldValueDuplicate"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: `path` from its place (".max", or "" for the place itself) and what must be instead."""

    path: str
    message: str


def _fail(violations: Sequence[Violation]) -> PydanticCustomError:
    message = "; ".join(violation.message for violation in violations)
    return PydanticCustomError(RULES_BROKEN, "{message}", {"message": message, "violations": list(violations)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule over a value (`self` in CEL).

    Attributes
    ----------
    cel
        The expression that must be true.
    holds
        Its twin, given the validated value (for a model: the model, defaults in place).
    message
        Begins with "must" and says what to write instead.
    path
        The field that the sentence is about, from the place of the rule.
    """

    cel: str
    holds: Callable[[Any], bool]
    message: str
    path: str = ""
    reason: FieldReason = "FieldValueInvalid"

    def as_cel(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.message, "reason": self.reason, "fieldPath": self.path}
        return {key: value for key, value in entry.items() if value}

    def check(self, value: Any) -> Any:
        """`value` itself; raises where the rule does not hold."""
        if not self.holds(value):
            raise _fail([Violation(self.path, self.message)])
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _with_rules(handler(schema), [self])


@dataclass(frozen=True, slots=True)
class Distinct:
    """A list without two entries alike in `keys` (fields of one word); without keys, a set of plain values."""

    keys: tuple[str, ...] = ()

    def check(self, values: list[Any]) -> list[Any]:
        """`values` itself; raises where two entries have the same key."""
        seen: set[Any] = set()
        twice = []
        message = f"must not repeat the {' and '.join(self.keys) or 'value'} of an earlier entry: leave one of them out"
        for index, value in enumerate(values):
            key = tuple(getattr(value, name) for name in self.keys) if self.keys else value
            if key in seen:
                twice.append(Violation(f"[{index}]", message))
            seen.add(key)
        if twice:
            raise _fail(twice)
        return values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = handler(schema)
        if self.keys:
            return json_schema | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(self.keys)}
        return json_schema | {"x-kubernetes-list-type": "set"}


class RuledModel(BaseModel):
    """A model whose `rules` hold over its fields together."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        broken = [Violation(rule.path, rule.message) for rule in self.rules if not rule.holds(self)]
        if broken:
            raise _fail(broken)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        json_schema = handler.resolve_ref_schema(handler(schema))
        return _with_rules(json_schema, cls.rules)


def _with_rules(json_schema: JsonSchemaValue, rules: Sequence[Rule]) -> JsonSchemaValue:
    if rules:
        json_schema["x-kubernetes-validations"] = [
            *json_schema.get("x-kubernetes-validations", []),
            *(rule.as_cel() for rule in rules),
        ]
    return json_schema


def matches(pattern: str, message: str) -> Rule:
    """The whole string matches `pattern` (the subset that RE2 and `re` share, no single quotes)."""
    compiled = re.compile(pattern)
    return Rule(
        cel=f"self.matches(r'^({pattern})$')",
        holds=lambda value: compiled.fullmatch(value) is not None,
        message=message,
    )


def duration(*, least: str | None = None, most: str) -> Rule:
    """A duration from `least` (None: more than zero) to `most`."""
    low, high = (durations.parse(least) if least else 0.0), durations.parse(most)

    def holds(value: str) -> bool:
        try:
            seconds = durations.parse(value)
        except ValueError:
            return False
        return (seconds >= low if least else seconds > low) and seconds <= high

    lower = f"duration(self) >= duration('{least}')" if least else "duration(self) > duration('0s')"
    bounds = f"from {least} to {most}" if least else f"more than 0s and at most {most}"
    return Rule(
        cel=f"{lower} && duration(self) <= duration('{most}')",
        holds=holds,
        message=f"must be a duration, {bounds}: a number and a unit (us, ms, s, m or h), such as 500ms, 90s or 5m",
    )
