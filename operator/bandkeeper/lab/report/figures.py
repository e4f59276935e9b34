"""The same pictures as PNG for documents, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text

from bandkeeper.lab.report import axes as ticks
from bandkeeper.lab.report import plane, plane_svg, svg, whatif, words
from bandkeeper.lab.report.colours import BOUND, PAGE, QUALITY, ROLES, WHAT_IF, Sign, signs
from bandkeeper.lab.report.plane import Curve, Plane, Rules
from bandkeeper.lab.report.sheet import Kind, Mark, Panel, Sheet, Strip, of, thin
from bandkeeper.lab.result import Result

if TYPE_CHECKING:
    from bandkeeper.lab.bench import BenchResult
    from bandkeeper.lab.whatif import WhatIf

_INK, _MUTED, _FAINT = PAGE["ink"].light, PAGE["muted"].light, PAGE["faint"].light
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": _MUTED,
}
_WIDTH_IN, _DPI, _COLUMNS = 10.0, 150, 1200
_MARGIN_IN, _LEFT_IN, _RIGHT_IN, _GAP_IN, _FOOT_IN = 0.18, 0.62, 0.18, 0.36, 0.32
_STRIP_IN, _LANE_IN, _PIXELS_PER_IN = 0.16, 0.18, 118.0
_PLANE_IN = 3.2
_KEYS_ACROSS = 3
_SHAPES = {"circle": "o", "square": "s", "up": "^", "diamond": "D", "down": "v", "cross": "P", "star": "*"}
_SHARP = ("waiting", "broken")  # outlined, so that a short peak is seen
_MARKERS = {
    "up": ("^", ROLES["finished"].light),
    "down": ("v", _MUTED),
    "cap": ("D", ROLES["cap"].light),
    "several": ("s", _INK),
}


def png(result: Result, path: Path) -> None:
    """Writes the picture of one run to `path`."""
    about = f"{result.rule} · policy {result.policy} ({result.objective}) · {result.workload}"
    sheet_png(of(result), words.headline(result), about, path)


def png_bench(bench: BenchResult, path: Path) -> None:
    """Writes the planes of a comparison to `path`."""
    with mpl.rc_context(_STYLE):
        _save(_planes(bench), path)


def png_whatif(result: WhatIf, path: Path) -> None:
    """Writes the grid of a what-if to `path`."""
    with mpl.rc_context(_STYLE):
        _save(_whatif(result), path)


def sheet_png(sheet: Sheet, headline: str, about: str, path: Path) -> None:
    """Writes the picture of a sheet with a sentence above it."""
    with mpl.rc_context(_STYLE):
        _save(_figure(sheet, headline, about), path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, facecolor="white", metadata={"Software": "bandkeeper"})


def _figure(sheet: Sheet, headline: str, about: str) -> Figure:
    rows: list[Panel | Strip | None] = []
    for part in sheet.parts:
        rows.append(part)
        if sheet.events and isinstance(part, Panel) and part.title == "Replicas":
            rows.append(None)
    heights = [_height_in(row) for row in rows]
    head = _Head.of(headline, about, _WIDTH_IN)
    total_in = head.height_in + sum(heights) + _GAP_IN * len(rows) + _FOOT_IN
    figure = Figure(figsize=(_WIDTH_IN, total_in), dpi=_DPI)
    FigureCanvasAgg(figure)
    head.write(figure)
    top_in = head.height_in
    for row, height_in in zip(rows, heights, strict=True):
        top_in += _GAP_IN
        box = (
            _LEFT_IN / _WIDTH_IN,
            1 - (top_in + height_in) / total_in,
            1 - (_LEFT_IN + _RIGHT_IN) / _WIDTH_IN,
            height_in / total_in,
        )
        axes = figure.add_axes(box)
        _drawn(axes, sheet, row)
        top_in += height_in
        if row is rows[-1]:
            moments = ticks.time(sheet.end_s, sheet.origin_s)
            axes.set_xticks([at_s for at_s, _ in moments], [label for _, label in moments])
            axes.tick_params(axis="x", labelbottom=True)
    return figure


@dataclass(frozen=True, slots=True)
class _Head:
    """A sentence and a line below it, at the top of a figure."""

    headline: str
    about: str

    @classmethod
    def of(cls, headline: str, about: str, width_in: float) -> _Head:
        """The texts, broken to the figure's width."""
        return cls(fill(headline, round(9.2 * width_in)), fill(about, round(13.6 * width_in)))

    @property
    def height_in(self) -> float:
        return self._below_in + 0.17 * (self.about.count("\n") + 1) + 0.06

    @property
    def _below_in(self) -> float:
        return 0.20 + 0.24 * (self.headline.count("\n") + 1)

    def write(self, figure: Figure) -> None:
        width_in, total_in = figure.get_size_inches()
        left = _MARGIN_IN / width_in
        style: dict[str, Any] = {"va": "top", "linespacing": 1.3}
        figure.text(left, 1 - 0.14 / total_in, self.headline, fontsize=12.5, fontweight="bold", **style)
        figure.text(left, 1 - self._below_in / total_in, self.about, fontsize=8.5, color=_MUTED, **style)


def _height_in(row: Panel | Strip | None) -> float:
    if row is None:
        return _LANE_IN
    return row.height / _PIXELS_PER_IN if isinstance(row, Panel) else _STRIP_IN


def _drawn(axes: Axes, sheet: Sheet, row: Panel | Strip | None) -> None:
    axes.set_xlim(0, sheet.end_s)
    axes.tick_params(axis="x", labelbottom=False)
    if row is None:
        _lane(axes, sheet)
        return
    if isinstance(row, Strip):
        _strip(axes, sheet, row)
    else:
        _panel(axes, sheet, row)
    if sheet.unjudged_s:
        axes.axvspan(0, sheet.unjudged_s, color=_MUTED, alpha=0.14, linewidth=0, zorder=4)


def _panel(axes: Axes, sheet: Sheet, part: Panel) -> None:
    low, high = limits = part.limits
    if part.log:
        axes.set_yscale("log")
    axes.set_ylim(low, high)
    marks = ticks.of(part, limits)
    axes.set_yticks([value for value, _ in marks], [label for _, label in marks], minor=False)
    axes.minorticks_off()
    moments = [at_s for at_s, _ in ticks.time(sheet.end_s, sheet.origin_s)]
    axes.set_xticks(moments)
    axes.grid(color=_FAINT, linewidth=0.7)
    if part.band:
        axes.axhspan(*part.band, color=ROLES["band"].light, linewidth=0, zorder=0.5)
    for order, mark in enumerate(part.marks):
        _mark(axes, sheet, part, mark, limits, order)
    if part.threshold:
        axes.axhline(part.threshold[0], color=ROLES["broken"].light, linewidth=1.1, linestyle=(0, (5, 3)), zorder=5)
    _caption(axes, part.title, part.unit, _keys(part), part.note)


def _mark(axes: Axes, sheet: Sheet, part: Panel, mark: Mark, limits: tuple[float, float], order: int) -> None:
    colour, (floor, ceiling) = ROLES[mark.role].light, limits
    steps = mark.kind in (Kind.STEPS, Kind.STEP_AREA)
    for points in thin(sheet.at_s, mark.values, _COLUMNS, sheet.end_s):
        x, y = [at_s for at_s, _ in points], [min(value, ceiling) for _, value in points]
        if mark.kind in (Kind.AREA, Kind.STEP_AREA):
            axes.fill_between(
                x, y, floor, step="post" if steps else None, color=colour, linewidth=0, zorder=1 + order / 10
            )
            if mark.role in _SHARP:
                axes.plot(x, y, color=colour, linewidth=0.8, zorder=1 + order / 10)
            continue
        style: dict[str, Any] = {"drawstyle": "steps-post" if steps else "default", "solid_joinstyle": "round"}
        lines = axes.plot(x, y, color=colour, linewidth=1.1, zorder=2 + order / 10, **style)
        if len(points) == 1:
            lines[0].set_marker(".")
        if mark.role == "latency" and part.threshold:
            (over,) = axes.plot(x, y, color=ROLES["broken"].light, linewidth=1.2, zorder=3, **style)
            clip = Rectangle((0, part.threshold[0]), sheet.end_s, 1e12, transform=axes.transData)
            over.set_clip_path(clip)


def _strip(axes: Axes, sheet: Sheet, part: Strip) -> None:
    found = list(svg.stretches(sheet, part))
    for state in dict.fromkeys(state for _, _, state in found):
        spans = [(start_s, end_s - start_s) for start_s, end_s, own in found if own == state]
        axes.broken_barh(spans, (0, 1), color=_quality(state), linewidth=0)
    bare(axes)
    keys = [Patch(color=_quality(name), label=f"{name} {text}") for name, text in part.shares]
    _caption(axes, part.title, "", keys, "")


def _lane(axes: Axes, sheet: Sheet) -> None:
    axes.set_ylim(-1, 1)
    axes.axhline(0, color=_FAINT, linewidth=0.9, zorder=0)
    groups = svg.grouped(sheet)
    for kind, (marker, colour) in _MARKERS.items():
        moments = [group[0].at_s for group in groups if svg.sign(group) == kind]
        axes.scatter(moments, [0] * len(moments), marker=marker, s=20, color=colour, linewidth=0, clip_on=False)
    bare(axes)
    names = {"up": "more replicas", "down": "fewer", "cap": "batch cap", "several": "several, close together"}
    keys = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=4.5, label=names[kind])
        for kind, (marker, colour) in _MARKERS.items()
        if any(svg.sign(group) == kind for group in groups)
    ]
    _caption(axes, "Moves", "", keys, "")


def _planes(bench: BenchResult) -> Figure:
    planes, rules = plane.planes_of(bench), plane.rules_of(bench)
    told = signs(rules.names, rules.ours, rules.hindsight)
    columns = min(len(planes), 3 if len(planes) > 4 else 2)
    rows = ceil(len(planes) / columns)
    width_in = max(_WIDTH_IN, 3.9 * columns)
    about = f"Policy {bench.policy}, {bench.model} on {bench.gpu}, cold start {words.duration(bench.cold_start_s)}. "
    head = _Head.of(plane.headline(bench), about + plane_svg.HOW_TO_READ, width_in)
    across = max(1, int((width_in - 2 * _MARGIN_IN) / (0.6 + 0.068 * max(map(len, rules.names), default=1))))
    top_in = head.height_in + 0.2 * ceil(len(rules.names) / across) + 0.1
    total_in = top_in + _PLANE_IN * rows + 0.3
    figure = Figure(figsize=(width_in, total_in), dpi=_DPI)
    FigureCanvasAgg(figure)
    head.write(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(planes) :]:
        axes.set_visible(False)
    misses = plane.misses_limits(planes)
    for axes, one in zip(grid.flat, planes, strict=False):
        _plane(axes, one, misses, rules, told)
    figure.subplots_adjust(
        left=0.055, right=0.985, bottom=0.5 / total_in, top=1 - (top_in + 0.42) / total_in,
        hspace=0.34, wspace=0.16,
    )  # fmt: skip
    handles = [_rule_key(name, told[name]) for name in rules.names]
    anchor = (_MARGIN_IN / width_in, 1 - (head.height_in + 0.05) / total_in)
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=anchor, ncols=across, borderaxespad=0)
    return figure


def _plane(axes: Axes, one: Plane, misses: tuple[float, float], rules: Rules, told: dict[str, Sign]) -> None:
    low, high = one.limits
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(misses[1], misses[0])
    costs = ticks.logarithmic(low, high, most=7)
    axes.set_xticks([value for value, _ in costs], [label for _, label in costs])
    shares = ticks.logarithmic(*misses)
    axes.set_yticks([value for value, _ in shares], [label for _, label in shares])
    axes.minorticks_off()
    axes.grid(color=_FAINT, linewidth=0.7)
    axes.axhspan(misses[0], 1.0, color=ROLES["band"].light, alpha=0.55, linewidth=0, zorder=0)
    axes.axhline(1.0, color=_MUTED, linewidth=0.9, zorder=1)
    axes.text(0.015, 0.965, "every goal met", transform=axes.transAxes, va="top", fontsize=7, color=_MUTED)
    if one.bound_hours:
        axes.axvline(one.bound_hours, color=BOUND.light, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        label = f"bound {words.number(one.bound_hours)}"
        axes.annotate(
            label, (one.bound_hours, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
            ha="center", fontsize=7, color=_MUTED,
        )  # fmt: skip
    for order, curve in enumerate(reversed(one.curves)):
        _curve(axes, curve, rules, told[curve.rule], (low, high), 2 + order / 50)
    axes.set_title(one.workload, loc="left", fontsize=9.5, fontweight="bold", pad=14)
    axes.set_xlabel("GPU-hours", fontsize=7.5, color=_MUTED, loc="right", labelpad=1)
    axes.set_ylabel("misses over those permitted", fontsize=7.5, color=_MUTED, labelpad=2)


def _curve(axes: Axes, curve: Curve, rules: Rules, sign: Sign, limits: tuple[float, float], order: float) -> None:
    colour, front = sign.shade.light, curve.front
    ours = curve.rule in rules.ours
    dotted = curve.rule in rules.hindsight
    axes.plot(
        [_inside(spot.gpu_hours, limits) for spot in front], [spot.misses for spot in front], color=colour,
        zorder=order, linewidth=1.9 if ours else 1.0, linestyle=":" if dotted else "-", alpha=1 if ours else 0.75,
    )  # fmt: skip
    for spot in curve.spots:
        dominated, rimmed = spot not in front, spot.is_default and not ours
        axes.plot(
            _inside(spot.gpu_hours, limits), spot.misses, marker=_SHAPES[sign.shape], linestyle="", zorder=order + 0.01,
            markersize=(11 if ours else 5) * (0.7 if dominated else 1), markeredgewidth=1.1, clip_on=False,
            markeredgecolor=_INK if rimmed else colour, alpha=0.4 if dominated and not spot.is_default else 1,
            markerfacecolor=colour if spot.meets_goal else "white",
        )  # fmt: skip


def _inside(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _rule_key(name: str, sign: Sign) -> Line2D:
    return Line2D(
        [], [], color=sign.shade.light, marker=_SHAPES[sign.shape], markersize=8 if sign.shape == "star" else 5,
        linewidth=1.2, label=name,
    )  # fmt: skip


def _whatif(result: WhatIf) -> Figure:
    picture = whatif.Picture.of(result)
    count, across = len(result.rows), len(picture.columns)
    asked = f"What if {result.asked}: " if result.asked else ""
    about = f"{asked}{whatif.load_of(result.then)}. {whatif.reasons(result)} {whatif.outlook(result)}"
    if len(result.caps) > 1 and result.promises:
        about += f" Of each point the worst promise is shown; promised are {whatif.promised(result)}."
    head = _Head.of(f"{result.policy}: {whatif.headline(result)}", about, _WIDTH_IN)
    left_in = 0.5 + 0.085 * max(len(whatif.points(result, row.replicas)) for row in result.rows)
    wide_in = min(3.0, (_WIDTH_IN - left_in - 1.95) / across)
    keys = _what_if_keys(picture)
    grid_in, foot_in = 0.34 * count, 0.24 + 0.16 * ceil(len(keys) / _KEYS_ACROSS)
    total_in = head.height_in + 0.38 + grid_in + foot_in
    figure = Figure(figsize=(_WIDTH_IN, total_in), dpi=_DPI)
    FigureCanvasAgg(figure)
    head.write(figure)
    axes = figure.add_axes(
        (left_in / _WIDTH_IN, foot_in / total_in, wide_in * across / _WIDTH_IN, grid_in / total_in), frameon=False
    )
    axes.set_xlim(0, across)
    axes.set_ylim(0, count)
    bare(axes)
    _cells(axes, picture, wide_in)
    _beside(axes, result, across, wide_in)
    low, high = picture.band
    green = QUALITY["efficient"].light
    axes.add_patch(
        Rectangle((across + 0.12 / wide_in, low), 0.09 / wide_in, high - low, color=green, linewidth=0, clip_on=False)
    )
    for x1, y1, x2, y2 in picture.edge:
        axes.plot([x1, x2], [y1, y2], color=_INK, linewidth=3, solid_capstyle="round", clip_on=False, zorder=5)
    x, y, wide, high = picture.chosen
    chosen = Rectangle((x, y), wide, high, fill=False, edgecolor=ROLES["predicted"].light, linewidth=2.6, clip_on=False)
    chosen.set_zorder(6)
    axes.add_patch(chosen)
    figure.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(_MARGIN_IN / _WIDTH_IN, 0.1 / total_in), ncols=_KEYS_ACROSS,
        borderaxespad=0, columnspacing=1.4, handlelength=1.6, fontsize=7.5,
    )  # fmt: skip
    return figure


def _what_if_keys(picture: whatif.Picture) -> list[Any]:
    result, used = picture.result, {spot.shade for column in picture.columns for spot in column.spots}
    names = [(name, text) for name, text in whatif.SHADE_NAMES.items() if name in used]
    keys: list[Any] = [Patch(color=WHAT_IF[name].light, label=text) for name, text in names]
    keys += [Line2D([], [], color=_INK, linewidth=3, label=whatif.EDGE)] if picture.edge else []
    low, high = words.number(100 * result.band_low), words.number(100 * result.band_high)
    return [*keys, Patch(color=QUALITY["efficient"].light, label=f"inside the band, {low} to {high} % utilised")]


def _cells(axes: Axes, picture: whatif.Picture, wide_in: float) -> None:
    for x, column in enumerate(picture.columns):
        axes.text(x + 0.5, len(column.spots) + 0.22, column.title, ha="center", va="bottom", fontsize=8, color=_MUTED)
        for y, spot in enumerate(column.spots):
            gap = 0.012 / wide_in
            axes.add_patch(
                Rectangle((x + gap, y + 0.04), 1 - 2 * gap, 0.92, color=WHAT_IF[spot.shade].light, linewidth=0)
            )
            colour = "white" if spot.shade == whatif.OVERLOAD else _INK
            text = spot.text if wide_in > 1.1 or not spot.name else f"{spot.figure}\n{spot.name}"
            axes.text(
                x + 0.5, y + 0.48, text, ha="center", va="center", color=colour, linespacing=1.05,
                fontsize=8.5 if wide_in > 0.8 else 7,
            )  # fmt: skip


def _beside(axes: Axes, result: WhatIf, across: int, wide_in: float) -> None:
    """Counts to the left, utilisation and cost to the right."""
    share, cost, top = across + 0.95 / wide_in, across + 1.15 / wide_in, len(result.rows) + 0.22
    small: dict[str, Any] = {"va": "bottom", "fontsize": 8, "color": _MUTED}
    axes.text(-0.1 / wide_in, top, "replicas", ha="right", **small)
    axes.text(share, top, "utilised", ha="right", **small)
    axes.text(cost, top, f"{result.currency}/h" if result.currency else "GPUs", **small)
    for y, row in enumerate(result.rows):
        chosen = row.replicas == result.chosen.replicas
        colour, weight = (ROLES["predicted"].light, "bold") if chosen else (_MUTED, "normal")
        style: dict[str, Any] = {"va": "center", "color": colour, "fontweight": weight}
        count = f"{whatif.points(result, row.replicas)}   {row.replicas}".lstrip()
        axes.text(-0.1 / wide_in, y + 0.48, count, ha="right", **style)
        axes.text(share, y + 0.48, f"{100 * row.utilization:.0f} %", ha="right", **style)
        axes.text(cost, y + 0.48, whatif.paid(row), **style)


def bare(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.set_yticks([])
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _quality(state: str) -> str:
    return QUALITY.get(svg.word(state), QUALITY["unknown"]).light


def _keys(part: Panel) -> list[Any]:
    keys: list[Any] = []
    stacked = any(mark.kind is Kind.STEP_AREA for mark in part.marks)
    for mark in reversed(part.marks) if stacked else part.marks:
        colour = ROLES[mark.role].light
        area = mark.kind in (Kind.AREA, Kind.STEP_AREA)
        keys.append(Patch(color=colour, label=mark.name) if area else Line2D([], [], color=colour, label=mark.name))
    if part.band:
        low, high = map(words.number, part.band)
        keys.append(Patch(color=ROLES["band"].light, label=f"band {low} to {high} %"))
    if part.threshold:
        dashed: dict[str, Any] = {"linestyle": (0, (3, 2)), "color": ROLES["broken"].light}
        keys.append(Line2D([], [], label=part.threshold[1], **dashed))
    return keys


def _caption(axes: Axes, title: str, unit: str, keys: Sequence[Any], note: str) -> None:
    """Title, unit and keys in one line above a panel."""
    above = 1 + 0.06 * _DPI / axes.get_window_extent().height
    name = axes.text(0, above, title, transform=axes.transAxes, fontsize=9.5, fontweight="bold", va="bottom")
    end = _end(axes, name)
    if unit:
        end = _end(axes, axes.text(end + 0.012, above, unit, transform=axes.transAxes, color=_MUTED, va="bottom"))
    if keys:
        axes.legend(
            handles=list(keys), loc="lower left", bbox_to_anchor=(end + 0.014, above), ncols=9, borderaxespad=0,
            handlelength=1.3, handleheight=0.7, handletextpad=0.5, columnspacing=1.3, borderpad=0,
        )  # fmt: skip
    if note:
        axes.text(1, above, note, transform=axes.transAxes, color=_MUTED, ha="right", va="bottom", fontsize=8)


def _end(axes: Axes, text: Text) -> float:
    """Where a text ends, as a share of the panel's width."""
    box = text.get_window_extent()
    return float(axes.transAxes.inverted().transform((box.x1, box.y0))[0])
