"""docs/quality.md says what the code does: its tables are those of the code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from bandkeeper.quality import advice, bottleneck, classify, measures, peaks, score
from bandkeeper.quality.types import Component, Quality, Thresholds

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)])


def of(named: Iterable[str]) -> str:
    return ", ".join(sorted(named)) or "any"


def quantity(value: float) -> str:
    return f"{value:,g}" if value < 1e4 else f"{value:,.0f}"


def thresholds() -> Iterable[tuple[str, str, str]]:
    """Setting, default and the docstring under each field."""
    (tree,) = ast.parse(inspect.getsource(Thresholds)).body
    assert isinstance(tree, ast.ClassDef)
    told = [each.value for each in tree.body[1:] if isinstance(each, ast.Expr)]
    for field, text in zip(fields(Thresholds), told, strict=True):
        seconds = field.name.endswith("_s")
        assert isinstance(field.default, float)
        yield (
            f"`{to_camel(field.name.removesuffix('_s'))}`",
            quantity(field.default) + "s" * seconds,
            ast.literal_eval(text),
        )


def remedies() -> Iterable[tuple[str, ...]]:
    for row in advice.TABLE:
        seen = " and ".join(advice.SIGNS[sign] for sign in sorted(row.signs))
        unless = "; unless ".join(["", *(advice.SIGNS[sign] for sign in sorted(row.without))])
        wanted = (seen + unless).removeprefix("; ") or "-"
        yield row.text, of(row.qualities), of(row.components), of(row.kinds), of(row.objectives), wanted


def gpus() -> Iterable[tuple[str, ...]]:
    for name, each in peaks.KNOWN.items():
        amounts = (each.flops / peaks.TERA, each.bandwidth / peaks.TERA, each.power, round(each.ridge))
        yield name, *(quantity(amount) for amount in amounts)


def named(texts: Mapping[Any, str], mark: str) -> Iterable[tuple[str, str]]:
    return ((f"{mark}{name}{mark}", text) for name, text in texts.items())


TABLES = {
    "classes": table("| class | meaning |", named(classify.MEANING, "**")),
    "measures": table("| measure | what it tells |", named(measures.MEASURES, "`")),
    "bottlenecks": table("| bottleneck | named when |", named(bottleneck.MEANING, "`")),
    "advice": table("| remedy | class | bottleneck | kind | objective | besides |", remedies()),
    "thresholds": table("| setting | default | meaning |", thresholds()),
    "peaks": table("| GPU | TFLOP/s | TB/s | W | FLOP/byte at the ridge |", gpus()),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_page_is_that_of_the_code(name: str) -> None:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/quality.md has no table between <!-- {name} --> and <!-- end -->"
    assert found[1] == TABLES[name]


def test_everything_has_a_meaning() -> None:
    assert set(classify.MEANING) == set(Quality)
    assert set(bottleneck.MEANING) == set(Component)
    assert set(advice.SIGNS) == set(advice.Sign)


def test_the_score_is_defined_in_the_same_words() -> None:
    assert score.__doc__ is not None
    definition = score.__doc__.split("\n\n")[1].strip().replace("\n", " ")
    assert definition in PAGE.read_text().replace("\n", " ")
