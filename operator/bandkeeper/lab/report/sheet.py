"""What a report shows, apart from how it is drawn: panels that share one time axis, built from a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from bandkeeper.lab.report import words
from bandkeeper.lab.result import Move, Result, Series, SLOResult

Values = Sequence[float | None]

QUALITIES = ("Efficient", "Mixed", "Inefficient", "Underused", "Overloaded", "Unknown")
_CLIP_UTILIZATION = 200.0
_LOG_RATIO = 12.0


class Kind(StrEnum):
    """How a mark is drawn. Steps hold their value until the next moment."""

    LINE = "line"
    AREA = "area"
    STEPS = "steps"
    STEP_AREA = "step-area"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One quantity of a panel.

    Attributes
    ----------
    role
        What it stands for; the renderers know its colour.
    values
        What is drawn, one per moment of the sheet; None breaks the line.
    shown
        What a reader is told at that moment, where it is not what is drawn (a stacked layer).
    """

    name: str
    role: str
    kind: Kind
    values: Values
    shown: Values | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart. Marks are painted in their order.

    Attributes
    ----------
    top
        Upper end of the axis where it is not the largest value; what is above is drawn at the edge and `note` says so.
    threshold
        A limit with its label; a latency above it is drawn in the colour of a broken promise.
    """

    title: str
    unit: str
    marks: tuple[Mark, ...]
    whole: bool = False
    log: bool = False
    top: float | None = None
    band: tuple[float, float] | None = None
    threshold: tuple[float, str] | None = None
    note: str = ""
    height: int = 96

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the vertical axis."""
        known = [value for mark in self.marks for value in mark.values if value is not None]
        ends = [*known, *(self.band or ()), *([self.threshold[0]] if self.threshold else [])]
        if self.log:
            positive = [value for value in ends if value > 0]
            return min(positive) / 1.25, max(positive) * 1.25
        least, most = min([0.0, *ends]), max([*ends, 1.0 if self.whole else 0.0]) * 1.08
        return least, (min(most, self.top) if self.top is not None else most) or 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A coloured strip: `states[i]` holds over the interval that ends at moment i. `shares` go into the legend."""

    title: str
    states: tuple[str, ...]
    shares: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A move, placed at `at_s`; `direction` is up, down or cap."""

    at_s: float
    direction: str
    change: str
    reason: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Everything above one time axis.

    Attributes
    ----------
    at_s
        Moments in seconds since the start, ascending; every mark has one value for each.
    unjudged_s
        Time from the start that does not count.
    origin_s
        Epoch of the start, None where the time is simulated.
    """

    at_s: tuple[float, ...]
    end_s: float
    unjudged_s: float
    parts: tuple[Panel | Strip, ...]
    events: tuple[Event, ...]
    origin_s: float | None = None


def of(result: Result) -> Sheet:
    """The panels of one run."""
    series = result.series
    parts: list[Panel | Strip] = [
        _load(series, result.warmup_s),
        _replicas(series, result),
        _batch(series),
        *_waiting(series),
        _utilization(result),
        *_activity(series),
        *_quality(result),
    ]
    for slo, values in zip(result.slos, series.slo_values, strict=True):
        parts.append(slo_panel(slo, values))
    return Sheet(
        at_s=tuple(series.at_s),
        end_s=result.duration_s,
        unjudged_s=result.warmup_s,
        parts=tuple(parts),
        events=tuple(event for move in result.moves for event in events_of(move)),
    )


def _load(series: Series, warmup_s: float) -> Panel:
    marks = [
        Mark(name="arrived", role="arrived", kind=Kind.AREA, values=series.arrived_per_s),
        Mark(name="finished", role="finished", kind=Kind.LINE, values=series.finished_per_s),
    ]
    if any(series.failed_per_s):
        marks.append(Mark(name="failed or refused", role="broken", kind=Kind.AREA, values=series.failed_per_s))
    note = f"grey: the first {words.duration(warmup_s)} are not judged" if warmup_s else ""
    return Panel(title="Load", unit="requests/s", marks=tuple(marks), note=note)


def _replicas(series: Series, result: Result) -> Panel:
    ordered = [ready + pending for ready, pending in zip(series.ready, series.pending, strict=True)]
    return Panel(
        title="Replicas",
        unit="",
        whole=True,
        note=f"allowed {result.min_replicas} to {result.max_replicas}",
        marks=(
            Mark(name="starting", role="pending", kind=Kind.STEP_AREA, values=ordered, shown=series.pending),
            Mark(name="ready", role="ready", kind=Kind.STEP_AREA, values=series.ready),
            Mark(name="wanted", role="wanted", kind=Kind.STEPS, values=series.wanted),
        ),
    )


def _batch(series: Series) -> Panel:
    each = [running / ready if ready else None for running, ready in zip(series.running, series.ready, strict=True)]
    return Panel(
        title="Batch",
        unit="requests per replica",
        marks=(
            Mark(name="in process, mean", role="running", kind=Kind.AREA, values=each),
            Mark(name="batch cap", role="cap", kind=Kind.STEPS, values=series.cap),
        ),
    )


def _waiting(series: Series) -> list[Panel]:
    if not any(series.waiting):
        return []
    mark = Mark(name="waiting", role="waiting", kind=Kind.AREA, values=series.waiting)
    return [Panel(title="Queue", unit="requests waiting", whole=True, marks=(mark,), height=64)]


def _utilization(result: Result) -> Panel:
    values = percent(result.series.utilization)
    mark = Mark(name="utilisation", role="utilization", kind=Kind.LINE, values=values)
    return utilization_panel((mark,), band=(100 * result.band_low, 100 * result.band_high))


def utilization_panel(
    marks: tuple[Mark, ...], *, band: tuple[float, float], unit: str = "% of what the ready replicas sustain"
) -> Panel:
    """Utilisation in percent with its band. A large overload would flatten the band: the axis ends before."""
    peak = max((value for mark in marks for value in mark.values if value is not None), default=0.0)
    clipped = peak > _CLIP_UTILIZATION
    return Panel(
        title="Utilisation",
        unit=unit,
        marks=marks,
        band=band,
        top=_CLIP_UTILIZATION if clipped else None,
        note=f"reaches {words.number(peak)} %, beyond the axis" if clipped else "",
        height=112,
    )


def _activity(series: Series) -> list[Panel]:
    columns = (
        ("any kernel runs", "busy", series.busy),
        ("tensor cores", "compute", series.compute),
        ("memory bandwidth", "memory", series.memory),
    )
    marks = tuple(
        Mark(name=name, role=role, kind=Kind.LINE, values=percent(values))
        for name, role, values in columns
        if any(value is not None for value in values)
    )
    return [Panel(title="GPU activity", unit="% of time or of peak", marks=marks, height=80)] if marks else []


def _quality(result: Result) -> list[Strip]:
    states = result.series.quality
    judged = [state for at_s, state in zip(result.series.at_s, states, strict=True) if at_s > result.warmup_s] or states
    if not states:
        return []
    found = Counter(judged)
    names = [*(name for name in QUALITIES if name in set(states)), *sorted(set(states) - set(QUALITIES))]
    shares = tuple((name, words.share(found[name] / len(judged))) for name in names)
    return [Strip(title="Quality of utilisation", states=tuple(states), shares=shares)]


def slo_panel(slo: SLOResult, values: Values, *, name: str = "") -> Panel:
    """A promise over time against its threshold."""
    return _throughput(slo, values) if slo.percentile is None else _latency(slo, values, name)


def _latency(slo: SLOResult, values: Values, name: str) -> Panel:
    """In ms or s, logarithmic where it spans decades."""
    factor, unit = (1000.0, "ms") if slo.threshold < 1 else (1.0, "s")
    scaled, limit = scale(values, factor), factor * slo.threshold
    positive = [value for value in (*scaled, limit) if value is not None and value > 0]
    log = max(positive) / min(positive) > _LOG_RATIO
    name = name or f"p{slo.percentile} of the interval"
    return Panel(
        title=f"{words.signal_name(slo.signal)} p{slo.percentile}",
        unit=f"{unit}, log scale" if log else unit,
        marks=(Mark(name=name, role="latency", kind=Kind.LINE, values=scaled),),
        log=log,
        threshold=(limit, f"SLO {words.latency(slo.threshold)}"),
        height=112,
    )


def _throughput(slo: SLOResult, values: Values) -> Panel:
    return Panel(
        title=words.signal_name(slo.signal),
        unit=words.rate_unit(slo.signal),
        marks=(Mark(name="rate", role="finished", kind=Kind.LINE, values=values),),
        threshold=(slo.threshold, f"at least {words.number(slo.threshold)}"),
    )


def events_of(move: Move) -> list[Event]:
    """One event for each knob that a move turned."""
    changes = []
    if move.replicas_to != move.replicas_from:
        direction = "up" if move.replicas_to > move.replicas_from else "down"
        changes.append((direction, f"replicas {move.replicas_from} → {move.replicas_to}"))
    if move.cap_to is not None and move.cap_to != move.cap_from:
        before = "none" if move.cap_from is None else str(move.cap_from)
        changes.append(("cap", f"batch cap {before} → {move.cap_to}"))
    return [
        Event(at_s=move.at_s, direction=direction, change=change, reason=move.reason, why=move.why)
        for direction, change in changes
    ]


def percent(values: Values) -> list[float | None]:
    """Ratios as percent."""
    return scale(values, 100.0)


def scale(values: Values, factor: float) -> list[float | None]:
    """Every known value times `factor`."""
    return [None if value is None else factor * value for value in values]


def runs(states: Iterable[str]) -> list[tuple[int, int, str]]:
    """Stretches of the same state: (first index, one past the last, state)."""
    found, start = [], 0
    for state, group in groupby(states):
        length = sum(1 for _ in group)
        found.append((start, start + length, state))
        start += length
    return found


def thin(at_s: Sequence[float], values: Values, columns: int, span_s: float) -> list[list[tuple[float, float]]]:
    """Unbroken stretches of points, at most first, least, largest and last per column of `span_s` / `columns`.

    No peak is lost: what a column of the picture cannot tell apart is all that is left out.
    """
    stretches: list[list[tuple[float, float]]] = []
    column: list[tuple[float, float]] = []
    key, broken = -1, True

    def flush() -> None:
        if len(column) > 4:
            least, most = min(column, key=_value), max(column, key=_value)
            ends = {column[0], least, most, column[-1]}
            stretches[-1].extend(point for point in column if point in ends)
        else:
            stretches[-1].extend(column)
        column.clear()

    for moment, value in zip(at_s, values, strict=True):
        if value is None:
            if column:
                flush()
            broken = True
            continue
        if broken:
            stretches.append([])
            broken = False
        own = int(moment / span_s * columns)
        if own != key and column:
            flush()
        key = own
        column.append((moment, value))
    if column:
        flush()
    return stretches


def _value(point: tuple[float, float]) -> float:
    return point[1]
