"""A what-if for people: sentences, a table as text, and the grid as it is drawn. Nothing is worked out here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import floor
from textwrap import fill

from bandkeeper.api.signals import Signal
from bandkeeper.lab.report import words
from bandkeeper.lab.whatif import Cell, Load, Predicted, Promise, WhatIf
from bandkeeper.lab.whatif import Row as GridRow

MOST_COLUMNS, MOST_NAMED = 6, 4  # of caps in the text table; the pictures and the JSON have all
EDGE = "SLO edge"
SHADES = (("w-well", 0.25), ("w-kept", 1.0), ("w-missed", 3.0))
FAR, OVERLOAD = "w-far", "w-overload"
"""Shades of the picture up to so many misses over those permitted; beyond 1 a promise is broken."""
SHADE_NAMES = {
    "w-well": "kept, less than a quarter of the misses permitted",
    "w-kept": "kept",
    "w-missed": "broken",
    FAR: "broken, more than 3 times the misses permitted",
    OVERLOAD: "overload: the queue has no bound",
}
_SHORT = {
    Signal.TIME_TO_FIRST_TOKEN: "first",
    Signal.INTER_TOKEN_LATENCY: "gap",
    Signal.END_TO_END_LATENCY: "answer",
    Signal.QUEUE_TIME: "wait",
}
_LONG = {"first": "first token", "gap": "token gap"}
_FEW_ERRORS = 0.005
_LINE = 110
ASSUMED = (
    "Latencies follow from the step times by a queueing model: requests come by chance, prompts and answers vary by "
    "0.7 and 0.55 of their means, and every replica gets its share.",
    "The choice is the operator's own rule for a load that stays: the larger of what the band asks for, and of the "
    "work to be ready for times the margin that the promises need. Queues, rollouts and behavior are left out.",
    "Utilisation is offered work over what the replicas sustain at their best batch; a question mark is a verdict "
    "within the prediction's standard error.",
)


@dataclass(frozen=True, slots=True)
class Spot:
    """What one place of the picture says.

    Attributes
    ----------
    name
        The promise, where its column does not say it.
    verdict
        Empty under overload.
    told
        For who points at it.
    """

    figure: str
    name: str
    verdict: str
    shade: str
    kept: bool
    told: str

    @property
    def text(self) -> str:
        return f"{self.name} {self.figure}".lstrip()


@dataclass(frozen=True, slots=True)
class Column:
    """A batch cap with its worst promise, or, where there is one cap, a promise; spots from few replicas to many."""

    title: str
    chosen: bool
    spots: tuple[Spot, ...]

    @property
    def edges(self) -> tuple[int, ...]:
        """Between which spots the verdict changes: places of the spots that follow."""
        return tuple(index + 1 for index, (one, other) in enumerate(pairwise(self.spots)) if one.kept != other.kept)


def columns(result: WhatIf) -> tuple[Column, ...]:
    """By promise where there is one cap, else by cap."""
    if len(result.caps) > 1 or not result.promises:
        return tuple(
            Column(
                f"cap {cap}",
                cap == result.chosen.cap,
                tuple(_worst(result, row, row.cells[index]) for row in result.rows),
            )
            for index, cap in enumerate(result.caps)
        )
    return tuple(
        Column(
            described(promise),
            True,
            tuple(_spot(result, row, row.cells[0], place, named=False) for row in result.rows),
        )
        for place, promise in enumerate(result.promises)
    )


def described(promise: Promise) -> str:
    """`token gap p95 <= 50 ms`."""
    if promise.percentile is None:
        return f"{words.signal_name(promise.signal)} >= {words.number(promise.threshold)}/s"
    return f"{thing(promise)} p{promise.percentile} <= {words.latency(promise.threshold)}"


def short(promise: Promise) -> str:
    """The signal in one word."""
    return _SHORT.get(Signal(promise.signal), "rate")


def thing(promise: Promise) -> str:
    """The signal in two words, where one says too little."""
    return _LONG.get(short(promise), short(promise))


def headline(result: WhatIf) -> str:
    """What Bandkeeper would choose."""
    chosen = result.chosen
    cost = _cost(result, chosen.replicas)
    at = f" at batch cap {chosen.cap}" if result.has_knob else ""
    change = "" if result.current_replicas is None else f", now {result.current_replicas}"
    paid = f", for {cost}" if cost else ""
    return f"Bandkeeper would choose {words.count(chosen.replicas, 'replica')}{at}{paid}{change}."


def reasons(result: WhatIf) -> str:
    """Why this count."""
    chosen, then = result.chosen, result.then
    ready = "" if then.held < 1.02 * then.work else f", and {words.number(then.held)} is to be ready for"
    margin = words.number(chosen.margin)
    held = (
        f"{words.signal_name(chosen.bound_by)} needs {margin} replicas for each, so {chosen.for_held}"
        if chosen.bound_by
        else f"{margin} replicas are held for each, so {chosen.for_held}"
    )
    told = f"The load is the work of {words.number(then.work)} replicas{ready}. {held}; "
    told += f"the band, at most {words.number(100 * result.band_high)} % utilised, asks for {chosen.for_band}"
    if chosen.limit:
        bound = result.max_replicas if chosen.limit == "max" else result.min_replicas
        told += f"; replicas.{chosen.limit} is {bound}"
    return f"{told}."


def outlook(result: WhatIf) -> str:
    """What is predicted at the chosen point, and where the edge is."""
    if not result.promises:
        return "The policy promises nothing, so there is no edge to keep."
    row = next(row for row in result.rows if row.replicas == result.chosen.replicas)
    place = result.caps.index(result.chosen.cap)
    cell, edge = row.cells[place], result.edges[place]
    where = (
        "no number of replicas keeps every promise"
        if edge is None
        else f"{words.count(edge, 'replica')} {'is' if edge == 1 else 'are'} the fewest that keep every promise"
    )
    doubt = "" if cell.sure else ", by less than the prediction's error"
    if cell.kept:
        return f"There every promise is expected to be kept{doubt}: {_figures(result, cell)}. By prediction {where}."
    broken = "the replicas are overloaded" if cell.load >= 1 else f"a promise is broken{doubt}"
    follow = "" if edge is None or result.chosen.limit == "max" else " Bandkeeper adds replicas once misses are seen."
    return f"There {broken}: {_figures(result, cell)}. By prediction {where}.{follow}"


def learned(result: WhatIf) -> str:
    """What is known of the servers and how sure it is."""
    model = result.model
    steps = (
        f"a step takes {words.number(model.alpha_ms)} ms, {words.number(1000 * model.beta_ms)} us more for each "
        f"request in it and {words.number(1000 * model.delta_ms)} us for each prompt token"
    )
    if model.windows is None:
        return f"By the constants of {model.source}, nothing was learned: {steps}. {_chunk(result)}"
    sure = f"The work is known to {100 * model.error:.0f} %" if model.error >= _FEW_ERRORS else "The work is well known"
    low = "" if model.confident else ": LOW CONFIDENCE, take the figures for a first guess"
    count = floor(model.windows)
    seen = words.count(count, "window") if count else "too little"
    return f"Learned from {seen} of {model.source}: {steps}. {_chunk(result)} {sure}{low}."


def _chunk(result: WhatIf) -> str:
    """How many prompt tokens a step reads, and who says so."""
    model = result.model
    most = f"It reads {words.number(model.prefill_tokens)} prompt tokens at most"
    if model.windows is None:
        return f"{most}."
    if model.prefill_told:
        return f"{most}, as the pods' flags say."
    if not model.prefill_others:
        return f"{most}, by the token gap that is measured: no flag of the pods tells it."
    others = "".join(f", or {words.number(tokens)}" for tokens in model.prefill_others)
    return f"{most}{others}: no flag of the pods tells it, which counts as an error."


def load(result: WhatIf) -> str:
    """The load that was asked about."""
    asked = f"Asked: {result.asked}. " if result.asked else ""
    same = result.now == result.then
    then = "" if same else f", now {words.number(result.now.requests_per_s)}/s"
    lengths = "" if same or _lengths(result.now) == _lengths(result.then) else f" of {_lengths(result.now)}"
    return f"{asked}{load_of(result.then)}{then}{lengths}."


def load_of(one: Load) -> str:
    """`40 requests/s of 1,000 + 180 tokens`."""
    return f"{words.number(one.requests_per_s)} requests/s of {_lengths(one)} tokens"


def _lengths(one: Load) -> str:
    return f"{words.number(one.prompt_tokens)} + {words.number(one.output_tokens)}"


def summary(result: WhatIf) -> str:
    """All of it for a person, as plain text."""
    said = [f"{learned(result)} {load(result)}", f"{headline(result)} {reasons(result)}", outlook(result)]
    asked = _asked(result)
    said += [asked] if asked else []
    if len(result.caps) > 1 and result.promises:
        said.append(f"Of each point the worst promise is shown; promised are {promised(result)}.")
    notes = [f"Note: {note}" for note in result.notes]
    lines = [*_filled(said), "", *_table(result), *([""] if notes else []), *_filled(notes)]
    return "\n".join(lines)


def _filled(texts: Iterable[str]) -> Iterator[str]:
    return (fill(text, _LINE) for text in texts)


def promised(result: WhatIf) -> str:
    """All promises in one line."""
    return words.joined([described(promise) for promise in result.promises])


def _asked(result: WhatIf) -> str:
    if result.asked_replicas is None:
        return ""
    row = next((row for row in result.rows if row.replicas == result.asked_replicas), None)
    if row is None:
        return f"{result.asked_replicas} replicas are far from what this load needs, so they are not shown."
    cell = row.cells[result.caps.index(result.chosen.cap)]
    verdict = "every promise is expected to be kept" if cell.kept else "a promise is expected to be broken"
    used = f"{words.count(row.replicas, 'replica')} would be {words.share(row.utilization)} utilised"
    return f"{used}, and {verdict}: {_figures(result, cell)}."


def _table(result: WhatIf) -> Iterator[str]:
    shown, left_out = _shown(result)
    price = f"{result.currency}/HOUR" if result.currency else "GPUS"
    head = ["REPLICAS", "UTILISED", price, *(column.title for column in shown), ""]
    longest = [max(len(spot.text) for spot in column.spots) for column in shown]
    body = [
        [
            str(row.replicas),
            _utilized(row),
            paid(row),
            *(
                f"{column.spots[index].text:<{width}}  {column.spots[index].verdict}"
                for column, width in zip(shown, longest, strict=True)
            ),
            f"<- {special}" if (special := points(result, row.replicas)) else "",
        ]
        for index, row in enumerate(result.rows)
    ]
    widths = [max(map(len, cells)) for cells in zip(head, *body, strict=True)]
    yield "  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True)).rstrip()
    for index, cells in enumerate(body):
        if any(index in column.edges for column in shown):
            rule = ["", "", "", *("-" * widths[3 + at] * (index in one.edges) for at, one in enumerate(shown)), EDGE]
            yield "  ".join(cell.ljust(width) for cell, width in zip(rule, widths, strict=True)).rstrip()
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
    if left_out:
        yield f"{words.count(left_out, 'cap')} between these are in the report and the JSON."


def _shown(result: WhatIf) -> tuple[tuple[Column, ...], int]:
    """The columns that fit a terminal: the chosen cap, the ends, and some between."""
    found = columns(result)
    most = MOST_NAMED if len(result.promises) > 1 else MOST_COLUMNS
    if len(found) <= most or len(result.caps) == 1:
        return found, 0
    last, chosen = len(found) - 1, result.caps.index(result.chosen.cap)
    kept = {round(index * last / (most - 1)) for index in range(most)}
    if chosen not in kept:
        kept.remove(min(kept, key=lambda index: (index in (0, last), abs(index - chosen))))
        kept.add(chosen)
    return tuple(found[index] for index in sorted(kept)), len(found) - len(kept)


def points(result: WhatIf, replicas: int) -> str:
    """What is special about a count: `chosen, now`."""
    named = (
        ("chosen", result.chosen.replicas),
        ("asked", result.asked_replicas),
        ("now", result.current_replicas),
    )
    found = [name for name, count in named if count == replicas]
    return ", ".join([*found, *(["over max"] if replicas > result.max_replicas else [])])


def _utilized(row: GridRow) -> str:
    return f"{100 * row.utilization:.0f}%" + (" in band" if row.in_band else "")


def paid(row: GridRow) -> str:
    """What so many replicas cost an hour, or their GPUs where no price is given."""
    return words.number(row.gpus) if row.cost_per_hour is None else f"{row.cost_per_hour:,.2f}"


def _cost(result: WhatIf, replicas: int) -> str:
    row = next(row for row in result.rows if row.replicas == replicas)
    if row.cost_per_hour is None:
        return ""
    return f"{row.cost_per_hour:,.2f} {result.currency} an hour"


def _figures(result: WhatIf, cell: Cell) -> str:
    told = [
        f"{thing(promise)} {value(promise, one)}" for promise, one in zip(result.promises, cell.promises, strict=True)
    ]
    return words.joined(told)


def value(promise: Promise, one: Predicted) -> str:
    """`p95 47 ms`, or the rate that can be had."""
    if promise.percentile is None:
        return f"{words.number(one.value or 0.0)}/s"
    if one.value is None:
        return "without bound"
    return f"p{promise.percentile} {words.latency(one.value)}"


def _worst(result: WhatIf, row: GridRow, cell: Cell) -> Spot:
    if cell.worst is not None:
        return _spot(result, row, cell, cell.worst, named=len(result.promises) > 1)
    full = cell.load >= 1
    shade = OVERLOAD if full else SHADES[0][0]
    return Spot(f"{100 * cell.load:.0f}% full", "", "", shade, not full, _told(result, row, cell))


def _spot(result: WhatIf, row: GridRow, cell: Cell, place: int, *, named: bool) -> Spot:
    promise, one = result.promises[place], cell.promises[place]
    if cell.load >= 1:
        doubt = "" if cell.sure else "?"
        return Spot(f"overload{doubt}", "", "", OVERLOAD, False, _told(result, row, cell))
    shade = next((name for name, most in SHADES if one.misses <= most), FAR)
    if one.kept != (shade in ("w-well", "w-kept")):  # just at the edge
        shade = "w-kept" if one.kept else "w-missed"
    return Spot(
        figure=f"{words.number(one.value or 0.0)}/s" if promise.percentile is None else words.latency(one.value),
        name=short(promise) if named else "",
        verdict=("kept" if one.kept else "BROKEN") + ("" if one.sure else "?"),
        shade=shade,
        kept=one.kept,
        told=_told(result, row, cell),
    )


def _told(result: WhatIf, row: GridRow, cell: Cell) -> str:
    cap = result.caps[row.cells.index(cell)]
    lines = [
        f"{words.count(row.replicas, 'replica')} at batch cap {cap}: {words.share(row.utilization)} utilised, "
        f"{words.number(cell.batch)} requests in each"
    ]
    cost = _cost(result, row.replicas)
    lines += [cost] if cost else []
    if cell.load >= 1:
        doubt = "" if cell.sure else ", as far as the prediction goes"
        full = f"{100 * cell.load:.0f} % of what can be done at this cap"
        lines.append(f"overload: {full}, so the queue has no bound{doubt}")
    for promise, one in zip(result.promises, cell.promises, strict=True):
        share = "" if one.attainment is None else f", {words.share(one.attainment)} within"
        verdict = ("" if cell.load >= 1 else ", kept" if one.kept else ", broken") + ("" if one.sure else "?")
        lines.append(f"{described(promise)}: {value(promise, one)}{share}{verdict}")
    return "\n".join(lines)


Segment = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """The grid as it is drawn, in cells: columns to the right, rows upwards, so that more replicas are higher."""

    result: WhatIf
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, result: WhatIf) -> Picture:
        """The picture of an answer."""
        return cls(result, columns(result))

    @property
    def edge(self) -> tuple[Segment, ...]:
        """Lines between what is kept and what is broken: from and to, (x, y, x, y)."""
        found: list[Segment] = []
        for x, column in enumerate(self.columns):
            found += [(x, float(y), x + 1, float(y)) for y in column.edges]
            if x + 1 < len(self.columns):
                other = self.columns[x + 1]
                pairs = zip(column.spots, other.spots, strict=True)
                found += [(x + 1, y, x + 1, y + 1) for y, (one, next_) in enumerate(pairs) if one.kept != next_.kept]
        return tuple(found)

    @property
    def band(self) -> tuple[float, float]:
        """From which height to which utilisation is inside the band, within the picture: few replicas are below."""
        work = self.result.then.work
        return self._height(work / self.result.band_high), self._height(work / self.result.band_low)

    def _height(self, replicas: float) -> float:
        counts = [row.replicas for row in self.result.rows]
        if replicas < counts[0]:
            return 0.5 * replicas / counts[0]
        for place, (low, high) in enumerate(pairwise(counts)):
            if low <= replicas <= high:
                return place + 0.5 + (replicas - low) / (high - low)
        return float(len(counts))

    @property
    def chosen(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of what is chosen: a cell, or a row of promises."""
        y = next(place for place, row in enumerate(self.result.rows) if row.replicas == self.result.chosen.replicas)
        places = [place for place, column in enumerate(self.columns) if column.chosen]
        return float(places[0]), float(y), float(len(places)), 1.0
