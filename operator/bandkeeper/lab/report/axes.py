"""Ticks: where the grid stands and what is written beside it, the same on the page and in the PNG."""

from __future__ import annotations

from datetime import UTC, datetime
from math import ceil, floor, log10

from bandkeeper.lab.report import words
from bandkeeper.lab.report.sheet import Panel

Tick = tuple[float, str]

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_DAY_S = 86400


def of(panel: Panel, limits: tuple[float, float]) -> list[Tick]:
    """Ticks of a panel's vertical axis."""
    return logarithmic(*limits) if panel.log else linear(*limits, whole=panel.whole)


def linear(low: float, high: float, most: int = 4, *, whole: bool = False) -> list[Tick]:
    """At most `most` + 1 round values in [low, high]."""
    rough = (high - low) / most
    size = 10.0 ** floor(log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    if whole:
        step = max(1.0, ceil(step))
    values = [index * step for index in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
    return [(value, words.number(value, 4)) for value in values]


def logarithmic(low: float, high: float, most: int = 5) -> list[Tick]:
    """Values 1, 2 and 5 of each decade in [low, high], fewer where they would crowd; round ones of a narrow range."""
    if high < 5 * low:
        return linear(low, high)
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        exponents = range(floor(log10(low)), ceil(log10(high)) + 1)
        values = [factor * 10.0**exponent for exponent in exponents if exponent % every == 0 for factor in factors]
        inside = [value for value in values if low <= value <= high]
        if len(inside) <= most:
            break
    return [(value, words.number(value)) for value in inside]


def time(span_s: float, origin_s: float | None = None, most: int = 12) -> list[Tick]:
    """Moments in seconds since the start with their labels; the time of day in UTC where `origin_s` is given."""
    step = next((step for step in _STEPS_S if span_s / step <= most), None)
    if step is None:
        step = _DAY_S * ceil(span_s / _DAY_S / most)
    if origin_s is None:
        moments = [index * step for index in range(floor(span_s / step) + 1)]
        return [(float(moment), _elapsed(moment, step)) for moment in moments]
    first = ceil(origin_s / step) * step
    stamps = [first + index * step for index in range(floor((origin_s + span_s - first) / step) + 1)]
    return [(stamp - origin_s, _of_day(stamp, step)) for stamp in stamps]


def _elapsed(moment: int, step: int) -> str:
    if moment == 0:
        return "0"
    if step >= _DAY_S:
        return f"{moment // _DAY_S} d"
    if step >= 3600:
        return f"{moment // 3600} h"
    if step >= 60:
        hours, minutes = divmod(moment // 60, 60)
        return f"{minutes} min" if not hours else f"{hours} h" if not minutes else f"{hours}:{minutes:02}"
    return f"{moment} s" if moment < 60 else f"{moment // 60}:{moment % 60:02}"


def _of_day(stamp: float, step: int) -> str:
    moment = datetime.fromtimestamp(stamp, tz=UTC)
    if step >= _DAY_S or (moment.hour, moment.minute, moment.second) == (0, 0, 0):
        return moment.strftime("%d %b")
    return moment.strftime("%H:%M" if step >= 60 else "%H:%M:%S")
