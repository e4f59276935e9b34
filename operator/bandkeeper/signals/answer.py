"""A Prometheus answer as samples, parsed in pieces so that no other thread waits long for the interpreter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_RESULT = re.compile(r'"result"\s*:\s*\[')  # cannot match inside a JSON string: the quotes there are escaped
# The end of one series and the begin of the next. In a string, the quote would end it and no letter could follow.
_BETWEEN = re.compile(r'\}\s*,\s*(?=\{\s*"[a-z])')
_REMARK = "PromQL info"
_PIECE_CHARS = 131_072
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

    The parser holds the interpreter's lock while it runs, so it gets a few hundred series at a time; another thread
    can go on between two pieces.

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
        warnings = tuple(
            str(warning)
            for warning in envelope.get("warnings") or ()
            if not str(warning).startswith(_REMARK)  # Prometheus 2 put remarks on a query's style among the warnings
        )
        if envelope.get("isPartial"):  # VictoriaMetrics' way to say it
            warnings += ("the answer is partial",)
        if kind == "vector":
            samples = tuple(
                [
                    Sample(item["metric"], float(value), at_s)
                    for item in items
                    if "value" in item  # a native histogram has none
                    for at_s, value in (item["value"],)
                ]
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
    items: list[Any] = []
    position = found.end()
    while between := _BETWEEN.search(text, position + _PIECE_CHARS):
        items += json.loads(f"[{text[position : between.start() + 1]}]")
        position = between.end()
    last, length = json.JSONDecoder().raw_decode(f"[{text[position:]}")
    items += last
    envelope = f"{text[: found.end()]}]{text[position + length - 1 :]}"
    if len(envelope) > _ENVELOPE_MOST_CHARS:
        raise MalformedError("more than an answer")
    return json.loads(envelope), items
