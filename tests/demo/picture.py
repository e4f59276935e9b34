"""The picture of a run: one column per objective, one row per quantity, a shared time axis."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import LatencySLO, Policy

from .figures import Figures, Interval, Move, Sample, band_is_possible, first_cold_start_s, percentile_s

INK, MUTED, FAINT = "#22272e", "#6b7480", "#e3e7ec"
PROMISE = "#c0392b"
COLOURS = {"LatencySensitive": "#2563a8", "Balanced": "#2f8a5b", "ThroughputSensitive": "#b8691b"}
TITLE = "One load, three objectives: what each policy did with batch size and replicas"
SUBTITLE = (
    "Equal emulated servers under the same requests, scaled by one operator. Dashed red: the SLO. "
    "Shaded: the utilisation band; grey: up to the end of the first cold start."
)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#b9c0c8",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """All that is known of one workload's run."""

    name: str
    policy: Policy
    sustainable_per_s: float
    samples: Sequence[Sample]
    intervals: Sequence[Interval]
    figures: Figures
    moves: Sequence[Move] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    draw: Callable[[Axes, Course, str], None]
    log: bool = False
    bottom: float | None = 0


def draw(courses: Sequence[Course], path: Path) -> None:
    """Writes the picture as PNG."""
    with mpl.rc_context(STYLE):
        _figure(courses).savefig(path, dpi=150, facecolor="white")


def _figure(courses: Sequence[Course]) -> Figure:
    rows = _rows()
    figure = Figure(figsize=(4.6 * len(courses) + 1.0, 12.4))
    grid = figure.subplots(len(rows), len(courses), sharex=True, sharey="row", squeeze=False)
    for column, course in enumerate(courses):
        colour = COLOURS.get(course.policy.objective, INK)
        _head(grid[0][column], course, colour)
        for row, axes in zip(rows, grid[:, column], strict=True):
            row.draw(axes, course, colour)
            axes.tick_params(length=0, labelsize=8.5)
            axes.margins(x=0.01, y=0.12)
        grid[-1][column].set_xlabel("seconds since the load began", color=MUTED, fontsize=9)
    for row, axes in zip(rows, grid[:, 0], strict=True):
        axes.set_ylabel(row.label, fontsize=9.5)
        if row.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=row.bottom)
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.text(0.055, 0.978, TITLE, fontsize=15, fontweight="bold", va="top")
    figure.text(0.055, 0.956, SUBTITLE, fontsize=10, color=MUTED, va="top")
    figure.subplots_adjust(left=0.085, right=0.985, top=0.885, bottom=0.05, hspace=0.24, wspace=0.07)
    figure.align_ylabels(grid[:, 0])
    return figure


def _head(axes: Axes, course: Course, colour: str) -> None:
    found = course.figures
    axes.text(
        0, 1.33, course.policy.objective, transform=axes.transAxes, fontsize=12.5, fontweight="bold", color=colour
    )
    facts = f"SLO kept {found.inside_slo}, band held {found.in_band} intervals\n{found.gpu_s:,.0f} GPU-seconds"
    axes.text(0, 1.07, facts, transform=axes.transAxes, fontsize=9, color=INK, linespacing=1.35)


def _rows() -> list[_Row]:
    return [
        _Row("Load\nrequests/s", _load),
        _Row("Replicas", _replicas),
        _Row("Batch cap\nrequests per replica", _cap),
        _Row("Utilisation\n%", _utilization, bottom=None),
        _Row("TTFT p95\nms, log scale", partial(_latency, signal=Signal.TIME_TO_FIRST_TOKEN), log=True),
        _Row("ITL p95\nms", partial(_latency, signal=Signal.INTER_TOKEN_LATENCY), bottom=None),
    ]


def _load(axes: Axes, course: Course, colour: str) -> None:
    times = [one.at_s for one in course.samples]
    rates = [one.offered_per_s for one in course.samples]
    axes.fill_between(times, rates, color=MUTED, alpha=0.18, linewidth=0)
    axes.plot(times, rates, color=MUTED, linewidth=1.5)


def _replicas(axes: Axes, course: Course, colour: str) -> None:
    times = [one.at_s for one in course.samples]
    axes.fill_between(times, [one.ready for one in course.samples], step="post", color=colour, alpha=0.30, linewidth=0)
    told = [(one.at_s, one.wanted) for one in course.samples if one.wanted is not None]
    axes.step(*_columns(told), where="post", color=colour, linewidth=1.4)
    _note(axes, "line: wanted, area: ready")


def _cap(axes: Axes, course: Course, colour: str) -> None:
    told = [(one.at_s, one.cap) for one in course.samples if one.cap is not None]
    axes.step(*_columns(told), where="post", color=colour, linewidth=1.6)
    span_s = told[-1][0] if told else 0.0
    shown = [move for move in course.moves if move.caps and 0 <= move.at_s <= span_s]
    for number, move in enumerate(shown):
        _explain(axes, move, at=0.34 - 0.2 * (number % 2), span_s=span_s)
    _note(axes, "dotted: decided, with the reason" if shown else "")


def _explain(axes: Axes, move: Move, *, at: float, span_s: float) -> None:
    """The move's own words under the curve, at a height that is a share of the axes'."""
    late = move.at_s > span_s / 2
    axes.axvline(move.at_s, ymax=at + 0.06, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.text(
        move.at_s + (-4 if late else 4), at, why(move), transform=axes.get_xaxis_transform(), fontsize=8,
        color=INK, ha="right" if late else "left", va="center", linespacing=1.3,
    )  # fmt: skip


def why(move: Move) -> str:
    """What moved the cap, in at most three lines: the first clause of the message."""
    before, after = move.caps or (0, 0)
    clause = move.message.removeprefix(f"Batch cap {before} -> {after}: ").partition(";")[0].partition(". ")[0]
    return textwrap.fill(f"{before} -> {after}: {clause.rstrip('.')}", width=36, max_lines=3, placeholder=" …")


def _utilization(axes: Axes, course: Course, colour: str) -> None:
    low, high = 100 * course.policy.band.low, 100 * course.policy.band.high
    axes.axhspan(low, high, color=colour, alpha=0.16, linewidth=0)
    told = [
        (_middle(one), 100 * value, _counts(one, course))
        for one in course.intervals
        if (value := one.utilization(course.sustainable_per_s)) is not None
    ]
    axes.plot([at_s for at_s, _, _ in told], [value for _, value, _ in told], color=colour, linewidth=1, alpha=0.7)
    for counts, face in ((True, colour), (False, "white")):
        chosen = [(at_s, value) for at_s, value, does in told if does is counts]
        axes.scatter(*_columns(chosen), s=15, facecolor=face, edgecolor=colour, linewidth=0.9, zorder=3)
    hollow = "" if all(does for _, _, does in told) else "; hollow: no replica count puts the load inside"
    _note(axes, f"band {low:.0f}-{high:.0f} %{hollow}")


def _latency(axes: Axes, course: Course, colour: str, signal: Signal) -> None:
    told = [
        (_middle(one), 1000 * value) for one in course.intervals if (value := percentile_s(one, signal, 95)) is not None
    ]
    axes.plot(*_columns(told), color=colour, linewidth=1.5, marker="o", markersize=2.6)
    slo = next((one for one in course.policy.slos if isinstance(one, LatencySLO) and one.signal is signal), None)
    if slo is not None:
        limit_ms = 1000 * slo.threshold_s
        axes.axhline(limit_ms, color=PROMISE, linewidth=1.3, linestyle=(0, (5, 3)))
        axes.annotate(
            f"SLO {limit_ms:.0f} ms", (0.985, limit_ms), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", va="bottom", fontsize=8, color=PROMISE,
        )  # fmt: skip
    warm_s = first_cold_start_s(course.samples)
    if warm_s:
        axes.axvspan(0, warm_s, color=MUTED, alpha=0.10, linewidth=0)


def _note(axes: Axes, text: str) -> None:
    axes.text(1, 1.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color=MUTED)


def _middle(interval: Interval) -> float:
    return (interval.start_s + interval.end_s) / 2


def _counts(interval: Interval, course: Course) -> bool:
    return band_is_possible(interval.offered_per_s, course.policy, course.sustainable_per_s)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
