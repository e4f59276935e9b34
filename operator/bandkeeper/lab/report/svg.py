"""Panels as SVG for the page: shapes carry class names, the page's style gives them colours for light and dark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from math import log10

from bandkeeper.lab.report import axes, words
from bandkeeper.lab.report.sheet import Event, Kind, Mark, Panel, Sheet, Strip, runs, thin

WIDTH, LEFT, RIGHT = 1000, 54, 12
PLOT = WIDTH - LEFT - RIGHT
_TOP, _BOTTOM = 8, 8
_COLUMNS = 450
_STRIP_HEIGHT = 20
_LANE_HEIGHT = 24
_LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps a panel's values to places in its picture."""

    sheet: Sheet
    panel: Panel
    limits: tuple[float, float]
    key: int

    def x(self, at_s: float) -> float:
        return place(self.sheet, at_s)

    def y(self, value: float) -> float:
        low, high = self.limits
        if self.panel.log:
            low, high, value = log10(low), log10(high), log10(max(value, low))
        part = min(1.0, max(0.0, (value - low) / (high - low)))
        return _TOP + (1 - part) * self.panel.height

    @property
    def floor(self) -> float:
        return _TOP + self.panel.height


def place(sheet: Sheet, at_s: float) -> float:
    """Horizontal place of a moment."""
    return LEFT + PLOT * min(1.0, max(0.0, at_s / sheet.end_s))


def panel(sheet: Sheet, part: Panel, key: int) -> str:
    """One chart; `key` tells it from the others of the page."""
    frame = _Frame(sheet, part, part.limits, key)
    return _picture(_TOP + part.height + _BOTTOM, _about(part), "".join(_shapes(frame)))


def strip(sheet: Sheet, part: Strip) -> str:
    """One coloured strip."""
    shapes = "".join(
        f'<rect class="q-{word(state)}" x="{_n(place(sheet, start_s))}" y="2"'
        f' width="{_n(place(sheet, end_s) - place(sheet, start_s))}" height="{_STRIP_HEIGHT - 4}">'
        f"<title>{escape(state)}</title></rect>"
        for start_s, end_s, state in stretches(sheet, part)
    )
    about = ", ".join(f"{name} {text}" for name, text in part.shares)
    return _picture(_STRIP_HEIGHT, f"{part.title}: {about}", shapes + _unjudged(sheet, 2, _STRIP_HEIGHT - 4))


def lane(sheet: Sheet) -> str:
    """The moves as marks on a line; moves that would overlap share a mark."""
    marks = "".join(_mark(sheet, group) for group in grouped(sheet))
    line = f'<line class="lane" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_LANE_HEIGHT / 2}" y2="{_LANE_HEIGHT / 2}"/>'
    return _picture(_LANE_HEIGHT, f"{words.count(len(sheet.events), 'move')}", line + marks)


def time_axis(sheet: Sheet) -> str:
    """Labels of the shared time axis."""
    ticks = axes.time(sheet.end_s, sheet.origin_s)
    labels = "".join(
        f'<text x="{_n(place(sheet, at_s))}" y="14" text-anchor="{_anchor(sheet, at_s)}">{escape(label)}</text>'
        for at_s, label in ticks
    )
    return _picture(20, "Time", labels)


def stretches(sheet: Sheet, part: Strip) -> Iterator[tuple[float, float, str]]:
    """What a strip shows: from, to, state; in a column too narrow to show all states, the most frequent one."""
    states, starts = part.states, (0.0, *sheet.at_s[:-1])
    if len(states) <= 2 * _COLUMNS:
        for first, last, state in runs(states):
            yield starts[first], sheet.at_s[last - 1], state
        return
    columns: dict[int, Counter[str]] = {}
    for at_s, state in zip(sheet.at_s, states, strict=True):
        columns.setdefault(min(int(at_s / sheet.end_s * _COLUMNS), _COLUMNS - 1), Counter())[state] += 1
    keys = list(columns)
    chosen = [columns[key].most_common(1)[0][0] for key in keys]
    width_s = sheet.end_s / _COLUMNS
    for first, last, state in runs(chosen):
        yield keys[first] * width_s, (keys[last - 1] + 1) * width_s, state


def grouped(sheet: Sheet) -> list[list[Event]]:
    """Events in order, those closer than a mark's width together."""
    groups: list[list[Event]] = []
    for event in sheet.events:
        if groups and place(sheet, event.at_s) - place(sheet, groups[-1][0].at_s) < 7:
            groups[-1].append(event)
        else:
            groups.append([event])
    return groups


def sign(group: list[Event]) -> str:
    """Which mark a group of events gets."""
    kinds = {event.direction for event in group}
    return kinds.pop() if len(kinds) == 1 else "several"


def _shapes(frame: _Frame) -> Iterator[str]:
    part, right = frame.panel, WIDTH - RIGHT
    for value, label in axes.of(part, frame.limits):
        y = _n(frame.y(value))
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 7}" y="{_n(frame.y(value) + 3.6)}" text-anchor="end">{escape(label)}</text>'
    for at_s, _ in axes.time(frame.sheet.end_s, frame.sheet.origin_s):
        x = _n(frame.x(at_s))
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{frame.floor}"/>'
    if part.band:
        low, high = frame.y(part.band[0]), frame.y(part.band[1])
        yield f'<rect class="band" x="{LEFT}" width="{PLOT}" y="{_n(high)}" height="{_n(low - high)}"/>'
    for mark in part.marks:
        yield from _drawn(frame, mark)
    yield _unjudged(frame.sheet, _TOP, part.height)
    if part.threshold:
        y = _n(frame.y(part.threshold[0]))
        yield f'<line class="limit" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'


def _drawn(frame: _Frame, mark: Mark) -> Iterator[str]:
    steps = mark.kind in (Kind.STEPS, Kind.STEP_AREA)
    area = mark.kind in (Kind.AREA, Kind.STEP_AREA)
    found = thin(frame.sheet.at_s, mark.values, _COLUMNS, frame.sheet.end_s)
    path = "".join(_path(frame, points, steps=steps, area=area) for points in found)
    if not path:
        return
    dense = " dense" if sum(map(len, found)) > _COLUMNS else ""
    yield f'<path class="{"a" if area else "l"} {mark.role}{dense}" d="{path}"/>'
    if mark.role == _LATENCY and frame.panel.threshold:
        limit = _n(frame.y(frame.panel.threshold[0]) - _TOP)
        clip = f"over-{frame.key}"
        yield f'<clipPath id="{clip}"><rect x="{LEFT}" y="{_TOP}" width="{PLOT}" height="{limit}"/></clipPath>'
        yield f'<path class="l broken{dense}" clip-path="url(#{clip})" d="{path}"/>'


def _path(frame: _Frame, points: list[tuple[float, float]], *, steps: bool, area: bool) -> str:
    (first_s, first), *rest = points
    start, before = _n(frame.x(first_s)), _n(frame.y(first))
    parts = [f"M{start} {before}"]
    for at_s, value in rest:
        x, y = _n(frame.x(at_s)), _n(frame.y(value))
        if not steps:
            parts.append(f"L{x} {y}")
        elif y != before or at_s == rest[-1][0]:
            parts.append(f"H{x}" + (f"V{y}" if y != before else ""))
        before = y
    if not rest:
        parts.append("h.01")
    if area:
        parts.append(f"V{_n(frame.floor)}H{start}Z")
    return "".join(parts)


def _mark(sheet: Sheet, group: list[Event]) -> str:
    x, y = place(sheet, group[0].at_s), _LANE_HEIGHT / 2
    kind = sign(group)
    shape = {
        "up": f"M{_n(x - 5)} {y + 4}L{_n(x)} {y - 5}L{_n(x + 5)} {y + 4}Z",
        "down": f"M{_n(x - 5)} {y - 4}L{_n(x)} {y + 5}L{_n(x + 5)} {y - 4}Z",
        "cap": f"M{_n(x)} {y - 5.5}L{_n(x + 5.5)} {y}L{_n(x)} {y + 5.5}L{_n(x - 5.5)} {y}Z",
        "several": f"M{_n(x - 4)} {y - 4}H{_n(x + 4)}V{y + 4}H{_n(x - 4)}Z",
    }[kind]
    told = "\n".join(
        f"{words.clock(event.at_s, sheet.origin_s)} {event.change}: {event.reason}. {event.why}" for event in group[:6]
    )
    more = f"\nand {len(group) - 6} more" if len(group) > 6 else ""
    return f'<path class="move {kind}" d="{shape}"><title>{escape(told + more)}</title></path>'


def _unjudged(sheet: Sheet, top: float, height: float) -> str:
    if not sheet.unjudged_s:
        return ""
    width = place(sheet, sheet.unjudged_s) - LEFT
    return f'<rect class="unjudged" x="{LEFT}" y="{top}" width="{_n(width)}" height="{height}"/>'


def _about(part: Panel) -> str:
    told = []
    for mark in part.marks:
        known = [value for value in mark.shown or mark.values if value is not None]
        told.append(f"{mark.name} {words.number(min(known))} to {words.number(max(known))}" if known else mark.name)
    return f"{part.title}, {part.unit}: {'; '.join(told)}"


def _picture(height: float, about: str, shapes: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{escape(about)}">{shapes}</svg>'


def _anchor(sheet: Sheet, at_s: float) -> str:
    x = place(sheet, at_s)
    return "start" if x < LEFT + 6 else "end" if x > WIDTH - RIGHT - 16 else "middle"


def word(state: str) -> str:
    """A state as the style knows it."""
    return "".join(letter for letter in state.lower() if letter.isalnum())


def _n(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
