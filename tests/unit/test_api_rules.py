"""A rule raises its own sentence, at its own place, and stands in the schema."""

from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from bandkeeper.api.crdgen import crd, structural_schema
from bandkeeper.api.rules import RULES_BROKEN, Distinct, Rule, RuledModel, duration, matches
from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.api.validation import validate
from tests.documents import CASES

WORD = matches("[a-z]+", "must be a word")


class Pair(RuledModel):
    """Two words."""

    rules: ClassVar = (
        Rule(cel="self.a != self.b", holds=lambda pair: pair.a != pair.b, message="must differ from a", path=".b"),
        Rule(cel="self.a != 'no'", holds=lambda pair: pair.a != "no", message="must not be no", path=".a"),
    )

    a: Annotated[str, Field(max_length=5), WORD]
    b: str = Field(default="b", max_length=5)
    sizes: Annotated[list[int], Distinct(), Field(max_length=3)] = Field(default_factory=list)


def _violations(error: ValidationError) -> list[tuple[Any, ...]]:
    return [
        (*details["loc"], violation.path, violation.message)
        for details in error.errors()
        if details["type"] == RULES_BROKEN
        for violation in details["ctx"]["violations"]
    ]


def test_every_broken_rule_of_an_object_is_told() -> None:
    with pytest.raises(ValidationError) as caught:
        Pair(a="no", b="no")
    assert _violations(caught.value) == [(".b", "must differ from a"), (".a", "must not be no")]
    assert "must differ from a; must not be no" in str(caught.value)


def test_a_field_with_a_broken_rule_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Pair(a="A")
    assert _violations(caught.value) == [("a", "", "must be a word")]


def test_a_pattern_holds_for_the_whole_string() -> None:
    for text in ("", "a b", "a\n", "\na"):
        assert not WORD.holds(text)
    assert WORD.cel == "self.matches(r'^([a-z]+)$')"


def test_a_repeated_entry_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Pair(a="a", sizes=[1, 2, 1])
    assert _violations(caught.value)[0][:2] == ("sizes", "[2]")


def test_rules_stand_in_the_schema() -> None:
    schema = structural_schema(Pair)
    assert [rule["rule"] for rule in schema["x-kubernetes-validations"]] == ["self.a != self.b", "self.a != 'no'"]
    assert schema["properties"]["a"]["x-kubernetes-validations"] == [WORD.as_cel()]
    assert schema["properties"]["sizes"]["x-kubernetes-list-type"] == "set"


def test_bounds_of_a_duration() -> None:
    window = duration(least="5s", most="1h")
    assert [window.holds(text) for text in ("4.9s", "5s", "60m", "3601s", "x")] == [False, True, True, False, False]
    assert [duration(most="1h").holds(text) for text in ("0s", "1ns", "1h1s")] == [False, True, False]


def test_every_rule_of_the_spec_is_broken_by_a_document_of_the_table() -> None:
    verdicts = (validate(case.document) for case in CASES)
    told = {problem.message for verdict in verdicts if not isinstance(verdict, Spec) for problem in verdict}
    spec = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert _messages(spec) - told == set()


def _messages(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_messages, schema))
    if not isinstance(schema, dict):
        return set()
    own = {rule["message"] for rule in schema.get("x-kubernetes-validations", ())}
    return own.union(*(_messages(part) for part in schema.values()))
