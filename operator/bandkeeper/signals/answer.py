"""A Prometheus answer as samples, parsed in pieces so that no other thread waits long for the interpreter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_RESULT = re.compile(r'"result"\s*:\s*\[')  # cannot match inside a JSON string: the quotes there are escaped
# The end of one series and the begin of the next. In a string, the quote would end it and no letter could follow.
_BETWEEN = re.compile(r'\}\s*,\s*(?=\{\s*"[a-z])')
_REMARK = "PromQL info"
_PIECE_CHARS = 16_384  # what is made of more would outlive a garbage collection or two, and cost more of them
_ENVELOPE_MOST_CHARS = 65_536

Sample = tuple[Mapping[str, str], float, float]
"""Labels, the value, which may be NaN or infinite, and the server's evaluation time in epoch seconds."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave.

    Attributes
    ----------
    samples
        One of each series; a scalar is one without labels. Those from `parse` can be gone through once.
    warnings
        With one, the answer may be partial.
    """

    samples: Iterable[Sample]
    warnings: tuple[str, ...] = ()

    def whole(self) -> Answer:
        """The same, with samples that can be gone through again and again."""
        return Answer(tuple(self.samples), self.warnings)


class MalformedError(ValueError):
    """The text is not an answer of the query API."""


class RangeError(ValueError):
    """The answer is a range or a string, not one value per series."""


def parse(body: bytes) -> Answer:
    """Read the JSON of `/api/v1/query`.

    The parser holds the interpreter's lock while it runs, so it gets a hundred series or two at a time, when they are
    gone through: another thread can go on between two pieces, and no more than a piece is held in memory.

    Raises
    ------
    MalformedError
        Where the text is not such an answer; also while the samples are gone through.
    RangeError
        Where the query gives a range vector or a string.
    """
    with _malformed():
        text = body.decode()
        envelope, pieces = _take_apart(text)
        kind = envelope["data"]["resultType"]
        warnings = tuple(
            str(warning)
            for warning in envelope.get("warnings") or ()
            if not str(warning).startswith(_REMARK)  # Prometheus 2 put remarks on a query's style among the warnings
        )
        if envelope.get("isPartial"):  # VictoriaMetrics' way to say it
            warnings += ("the answer is partial",)
        if kind == "vector":
            return Answer(_vector(pieces), warnings)
        if kind == "scalar":
            ((at_s, value),) = pieces
            return Answer((({}, float(value), float(at_s)),), warnings)
    raise RangeError(kind)


def _vector(pieces: Iterable[list[Any]]) -> Iterator[Sample]:
    with _malformed():
        for items in pieces:
            for item in items:
                if "value" in item:  # a native histogram has none
                    at_s, value = item["value"]
                    yield item["metric"], float(value), at_s


def _take_apart(text: str) -> tuple[dict[str, Any], Iterator[list[Any]]]:
    """The answer without its series, and the series, a hundred or two at a time."""
    found = _RESULT.search(text)
    if found is None:
        if len(text) > _ENVELOPE_MOST_CHARS:
            raise MalformedError("no result")
        return json.loads(text), iter(())
    spans: list[tuple[int, int]] = []
    position = found.end()
    while between := _BETWEEN.search(text, position + _PIECE_CHARS):
        spans.append((position, between.start() + 1))
        position = between.end()
    last, length = json.JSONDecoder().raw_decode(f"[{text[position:]}")
    envelope = f"{text[: found.end()]}]{text[position + length - 1 :]}"
    if len(envelope) > _ENVELOPE_MOST_CHARS:
        raise MalformedError("more than an answer")

    def pieces() -> Iterator[list[Any]]:
        for begin, end in spans:
            yield json.loads(f"[{text[begin:end]}]")
        yield last

    return json.loads(envelope), pieces()


@contextmanager
def _malformed() -> Iterator[None]:
    """Whatever a text of another shape runs into is one error."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise MalformedError(str(error)) from error
