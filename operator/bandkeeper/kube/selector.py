"""Label selectors as strings, in the form that `/scale` gives them: `app=chat,tier in (a, b),!canary`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_KEY = rf"(?P<key>(?:{_NAME}/)?{_NAME})"
_VALUE = rf"(?P<value>(?:{_NAME})?)"
_EQUALS = re.compile(rf"{_KEY}\s*(?P<op>==|=|!=)\s*{_VALUE}")
_SET = re.compile(rf"{_KEY}\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)")
_EXISTS = re.compile(rf"(?P<op>!?)\s*{_KEY}")
_COMMA = re.compile(r",(?![^()]*\))")  # not the commas inside parentheses

Labels = Mapping[str, str]


class SelectorError(ValueError):
    """The selector selects nothing in particular or cannot be read; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Selector:
    """`pairs` are the labels that must be equal; `others` are the remaining requirements."""

    pairs: tuple[tuple[str, str], ...]
    others: tuple[Callable[[Labels], bool], ...]

    def matches(self, labels: Labels) -> bool:
        """All requirements hold."""
        return all(labels.get(key) == value for key, value in self.pairs) and all(
            holds(labels) for holds in self.others
        )


def parse_selector(text: str) -> Selector:
    """Read a selector.

    Raises
    ------
    SelectorError
        It is empty, which Kubernetes reads as "every pod", or malformed.
    """
    if not text.strip():
        raise SelectorError(
            "the target's scale subresource gives no pod selector, so its pods cannot be told from others; "
            "for a custom resource set labelSelectorPath in its definition and fill that field"
        )
    pairs: list[tuple[str, str]] = []
    others: list[Callable[[Labels], bool]] = []
    for part in _COMMA.split(text):
        term = part.strip()
        if found := _EQUALS.fullmatch(term):
            if found["op"] == "!=":
                others.append(_not_in(found["key"], frozenset({found["value"]})))
            else:
                pairs.append((found["key"], found["value"]))
        elif found := _SET.fullmatch(term):
            values = frozenset(value.strip() for value in found["values"].split(","))
            others.append((_in if found["op"] == "in" else _not_in)(found["key"], values))
        elif found := _EXISTS.fullmatch(term):
            others.append(_absent(found["key"]) if found["op"] else _present(found["key"]))
        else:
            raise SelectorError(f"the target's pod selector {text!r} cannot be read at {term!r}")
    return Selector(tuple(pairs), tuple(others))


def _in(key: str, values: frozenset[str]) -> Callable[[Labels], bool]:
    return lambda labels: labels.get(key) in values


def _not_in(key: str, values: frozenset[str]) -> Callable[[Labels], bool]:
    return lambda labels: labels.get(key) not in values  # a missing label is not in any set


def _present(key: str) -> Callable[[Labels], bool]:
    return lambda labels: key in labels


def _absent(key: str) -> Callable[[Labels], bool]:
    return lambda labels: key not in labels
