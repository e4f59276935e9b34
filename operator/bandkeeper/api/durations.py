"""Durations as people write them in a policy ("500ms", "1m30s"), read as Go's time.ParseDuration reads them."""

from __future__ import annotations

import re

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, micro sign
    "μs": 1_000,  # U+03BC, Greek letter mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))(ns|us|µs|μs|ms|s|m|h)")
_MOST_NS = 2**63 - 1


def parse(text: str) -> float:
    """Seconds in `text`, a signed sequence of numbers with units. Raises ValueError on anything else."""
    return _nanoseconds(text) / 1e9


def _nanoseconds(text: str) -> int:
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    sign = -1 if text.startswith("-") else 1
    if unsigned == "0":
        return 0
    total, position = 0, 0
    while position < len(unsigned) or position == 0:
        term = _TERM.match(unsigned, position)
        if term is None:
            raise ValueError(f"not a duration: {text!r}: write a number and a unit, such as 500ms, 90s or 5m")
        whole, fraction, bare_fraction, unit = term.groups()
        digits = fraction or bare_fraction or ""
        total += int(whole or 0) * _NANOSECONDS[unit] + int(digits or 0) * _NANOSECONDS[unit] // 10 ** len(digits)
        position = term.end()
    if total > _MOST_NS + (sign < 0):
        raise ValueError(f"duration out of range: {text!r}: write at most 2562047h")
    return sign * total


def text(seconds: float) -> str:
    """`seconds` as a short duration that `parse` reads back, to about three significant digits: 61ms, 1.25s, 96s, 5m0s.

    Raises ValueError where `seconds` is negative or not finite.
    """
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"not a length of time: {seconds}")
    if seconds < 1e-3:
        return f"{_digits(seconds * 1e6)}us"
    if seconds < 0.9995:
        return f"{_digits(seconds * 1e3)}ms"
    if seconds < 120:
        return f"{_digits(seconds)}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
