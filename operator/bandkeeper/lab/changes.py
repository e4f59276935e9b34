"""What a person asks of another load, `load=2x,prompt=1500`, and traffic as one writes it, `12/s:1000:180`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from bandkeeper.model.latency import Traffic

_KEYS = {
    "load": "load=2x, or load=40/s for requests per second",
    "prompt": "prompt=2x, or prompt=1500 for prompt tokens of a request",
    "output": "output=0.5x, or output=200 for output tokens of a request",
    "replicas": "replicas=8",
    "cap": "cap=64",
}
_MOST = 1e6  # times, requests per second, tokens, replicas: beyond it nothing is meant
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(.*)")


class ChangeError(ValueError):
    """What is asked cannot be read; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class Amount:
    """So many, or so many times what there is now."""

    value: float
    times: bool

    def of(self, now: float) -> float:
        """The amount where there is `now`."""
        return now * self.value if self.times else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be different; None stays as it is. `replicas` and `cap` name a point to look at."""

    load: Amount | None = None
    prompt: Amount | None = None
    output: Amount | None = None
    replicas: int | None = None
    cap: int | None = None
    told: str = ""

    def applied(self, traffic: Traffic) -> Traffic:
        """The traffic that is asked about."""
        return replace(
            traffic,
            requests_per_s=self.load.of(traffic.requests_per_s) if self.load else traffic.requests_per_s,
            prompt_tokens=self.prompt.of(traffic.prompt_tokens) if self.prompt else traffic.prompt_tokens,
            output_tokens=max(1.0, self.output.of(traffic.output_tokens)) if self.output else traffic.output_tokens,
        )


def parse(texts: Iterable[str]) -> Changes:
    """Changes as they are written, each text one or several with commas between. Raises ChangeError."""
    told = [part.strip() for text in texts for part in text.split(",")]
    found: dict[str, Amount | int] = {}
    for part in told:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ChangeError(f"cannot ask what if {part!r}: {hint}write {'; '.join(_KEYS.values())}")
        if key in found:
            raise ChangeError(f"{key} is given twice: ask one thing at a time")
        read = _whole(value) if key in ("replicas", "cap") else _amount(value, unit="/s" if key == "load" else "")
        if not equals or read is None:
            raise ChangeError(f"cannot ask what if {part!r}: write {_KEYS[key]}")
        found[key] = read
    return Changes(**found, told=", ".join(told))  # type: ignore[arg-type]


def parse_traffic(text: str) -> Traffic:
    """Requests per second, prompt tokens and output tokens: 12/s:1000:180. Raises ChangeError."""
    parts = [part.strip() for part in text.split(":")]
    if len(parts) == 3:
        rate, prompt, output = _amount(parts[0], unit="/s"), _amount(parts[1]), _amount(parts[2])
        if rate and prompt and output and not (rate.times or prompt.times or output.times) and output.value >= 1:
            return Traffic(requests_per_s=rate.value, prompt_tokens=prompt.value, output_tokens=output.value)
    raise ChangeError(
        f"{text!r} is no traffic: write requests per second, prompt tokens and output tokens of a request, "
        "such as 12/s:1000:180"
    )


def _amount(text: str, *, unit: str = "") -> Amount | None:
    matched = _NUMBER.fullmatch(text)
    if matched is None or not 0 < float(matched[1]) <= _MOST or matched[2] not in ("x", unit):
        return None
    return Amount(float(matched[1]), times=matched[2] == "x")


def _whole(text: str) -> int | None:
    known = text.isascii() and text.isdecimal() and len(text) < 8 and 1 <= int(text) <= _MOST
    return int(text) if known else None
