"""A Prometheus answer as samples, parsed series by series so that no other thread waits long for the interpreter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_RESULT = re.compile(r'"result"\s*:\s*\[')  # cannot match inside a JSON string: the quotes there are escaped
_BETWEEN = re.compile(r"[\s,]*")
_ENVELOPE_MOST_CHARS = 65_536


class Sample(NamedTuple):
    """One value with its labels; it may be NaN or infinite. `at_s` is the server's evaluation time, epoch seconds."""

    labels: Mapping[str, str]
    value: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave. Warnings mean that the answer may be partial; a scalar is one sample without labels."""

    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()


class MalformedError(ValueError):
    """The text is not an answer of the query API."""


class RangeError(ValueError):
    """The answer is a range or a string, not one value per series."""


def parse(body: bytes) -> Answer:
    """Read the JSON of `/api/v1/query`.

    The parser holds the interpreter's lock while it runs, so it gets one series at a time; another thread can go on
    between two of them.

    Raises
    ------
    MalformedError
        Where the text is not such an answer.
    RangeError
        Where the query gives a range vector or a string.
    """
    try:
        text = body.decode()
        envelope, items = _take_apart(text)
        kind = envelope["data"]["resultType"]
        warnings = tuple(str(warning) for warning in envelope.get("warnings") or ())
        if envelope.get("isPartial"):  # VictoriaMetrics' way to say it
            warnings += ("the answer is partial",)
        if kind == "vector":
            samples = tuple(
                Sample(item["metric"], float(item["value"][1]), float(item["value"][0]))
                for item in items
                if "value" in item  # a native histogram has none
            )
        elif kind == "scalar":
            samples = (Sample({}, float(items[1]), float(items[0])),)
        else:
            raise RangeError(kind)
    except (UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise MalformedError(str(error)) from error
    except ValueError as error:
        if isinstance(error, RangeError):
            raise
        raise MalformedError(str(error)) from error
    return Answer(samples, warnings)


def _take_apart(text: str) -> tuple[dict[str, Any], list[Any]]:
    """The answer without its series, and the series."""
    found = _RESULT.search(text)
    if found is None:
        if len(text) > _ENVELOPE_MOST_CHARS:
            raise MalformedError("no result")
        return json.loads(text), []
    decode = json.JSONDecoder().raw_decode
    items: list[Any] = []
    position = _skip(text, found.end())
    while text[position] != "]":
        item, position = decode(text, position)
        items.append(item)
        position = _skip(text, position)
    envelope = text[: found.end()] + text[position:]
    if len(envelope) > _ENVELOPE_MOST_CHARS:
        raise MalformedError("more than an answer")
    return json.loads(envelope), items


def _skip(text: str, position: int) -> int:
    found = _BETWEEN.match(text, position)
    return found.end() if found else position
