"""A what-if as one self-contained page: the grid as SVG, and what is predicted in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

from bandkeeper.lab.report import html, whatif, words
from bandkeeper.lab.report.html import Page, Row, Table, Tile
from bandkeeper.lab.report.whatif import Picture, Spot
from bandkeeper.lab.whatif import WhatIf

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 1000.0, 160.0, 210.0, 30.0, 38.0
_WIDEST = 300.0  # of a column
_NARROW = 84.0  # so wide that a figure with its promise fits one line


def write(result: WhatIf, path: Path) -> None:
    """Writes the report to `path`."""
    path.write_text(html.render(page(result)), encoding="utf-8")


def page(result: WhatIf) -> Page:
    """The report of one answer."""
    asked = f"What if {result.asked}" if result.asked else "As it is"
    return Page(
        title=f"{result.policy}: {asked.lower()}",
        kicker=f"{asked} · policy {result.policy} ({result.objective}) · {whatif.load_of(result.then)}",
        headline=whatif.headline(result),
        sub=f"{whatif.reasons(result)} {whatif.outlook(result)}",
        tiles=tuple(_tiles(result)),
        tables=(),
        sheet=None,
        figures=section(result),
        after=(_table(result),),
        small_print=(whatif.learned(result), *whatif.ASSUMED, *result.notes),
    )


def added(page: Page, result: WhatIf) -> Page:
    """A run's page with the answer below it."""
    asked = f"What if {result.asked}" if result.asked else "As it was at the end"
    said = f"{whatif.headline(result)} {whatif.reasons(result)} {whatif.outlook(result)}"
    figures = f'<h2>{escape(asked)}</h2><p class="sub">{escape(said)}</p>{section(result)}'
    print_too = (whatif.learned(result), *whatif.ASSUMED, *result.notes)
    return replace(page, below=figures, small_print=(*page.small_print, *print_too))


def section(result: WhatIf) -> str:
    """The picture with its keys."""
    picture = Picture.of(result)
    used = {spot.shade for column in picture.columns for spot in column.spots}
    keys = "".join(_key(name, text) for name, text in whatif.SHADE_NAMES.items() if name in used)
    edge = '<span class="key"><i class="l ink"></i>SLO edge</span>' if picture.edge else ""
    low, high = 100 * result.band_low, 100 * result.band_high
    band = _key("q-efficient", f"inside the band, {words.number(low)} to {words.number(high)} % utilised")
    caption = f"<figcaption><b>{escape(_title(picture))}</b>{keys}{edge}{band}</figcaption>"
    return f'<div class="wide"><figure>{caption}{_drawn(picture)}</figure></div>'


def _title(picture: Picture) -> str:
    result = picture.result
    if len(result.caps) > 1:
        return (
            f"Replicas and batch cap, the worst of {whatif.promised(result)}" if result.promises else "Replicas and cap"
        )
    return "Replicas and promises"


def _key(shade: str, text: str) -> str:
    return f'<span class="key"><i class="{shade}"></i>{escape(text)}</span>'


def _drawn(picture: Picture) -> str:
    width = min(_WIDEST, (_WIDTH - _LEFT - _RIGHT) / len(picture.columns))
    height = _TOP + _ROW * len(picture.result.rows) + 10
    shapes = "".join(_shapes(picture, width))
    about = f"{_title(picture)}. {whatif.headline(picture.result)}"
    return f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(about)}">{shapes}</svg>'


def _shapes(picture: Picture, width: float) -> Iterator[str]:
    result, count = picture.result, len(picture.result.rows)
    right, floor = _LEFT + width * len(picture.columns), _TOP + _ROW * count

    def y(place: float) -> float:
        return floor - _ROW * place

    unit = f"{result.currency} an hour" if result.currency else "GPUs"
    share, cost = right + 90, right + 108
    yield f'<text x="{_LEFT - 12:g}" y="{_TOP - 10:g}" text-anchor="end">replicas</text>'
    yield f'<text x="{share:g}" y="{_TOP - 10:g}" text-anchor="end">utilised</text>'
    yield f'<text x="{cost:g}" y="{_TOP - 10:g}">{escape(unit)}</text>'
    for x, column in enumerate(picture.columns):
        middle = _LEFT + width * (x + 0.5)
        yield f'<text x="{middle:.1f}" y="{_TOP - 10:g}" text-anchor="middle">{escape(column.title)}</text>'
        for place, spot in enumerate(column.spots):
            yield _cell(spot, _LEFT + width * x, y(place + 1), width)
    for place, row in enumerate(result.rows):
        middle = y(place + 0.5) + 4
        count_text = f"{whatif.points(result, row.replicas)}  {row.replicas}".lstrip()
        chosen = ' class="strong"' if row.replicas == result.chosen.replicas else ""
        yield f'<text{chosen} x="{_LEFT - 12:g}" y="{middle:.1f}" text-anchor="end">{escape(count_text)}</text>'
        yield f'<text{chosen} x="{share:g}" y="{middle:.1f}" text-anchor="end">{100 * row.utilization:.0f} %</text>'
        yield f'<text{chosen} x="{cost:g}" y="{middle:.1f}">{escape(whatif.paid(row))}</text>'
    low, high = picture.band
    deep = y(low) - y(high)
    yield f'<rect class="q-efficient" x="{right + 12:g}" y="{y(high):.1f}" width="8" height="{deep:.1f}" rx="3"/>'
    path = "".join(
        f"M{_LEFT + width * x1:.1f} {y(y1):.1f}L{_LEFT + width * x2:.1f} {y(y2):.1f}" for x1, y1, x2, y2 in picture.edge
    )
    if path:
        yield f'<path class="slo-edge" d="{path}"/>'
    x1, y1, wide, high = picture.chosen
    yield (
        f'<rect class="chosen" x="{_LEFT + width * x1:.1f}" y="{y(y1 + high):.1f}" width="{width * wide:.1f}" '
        f'height="{_ROW * high:.1f}" rx="4"/>'
    )


def _cell(spot: Spot, x: float, y: float, width: float) -> str:
    middle = x + width / 2
    dark = " on" if spot.shade == whatif.OVERLOAD else ""
    lines = [spot.text] if width > _NARROW or not spot.name else [spot.figure, spot.name]
    first = y + _ROW / 2 + 4 - 7 * (len(lines) - 1)
    told = "".join(
        f'<text class="figure{dark}" x="{middle:.1f}" y="{first + 14 * place:.1f}" text-anchor="middle">'
        f"{escape(line)}</text>"
        for place, line in enumerate(lines)
    )
    box = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{_ROW - 2:.1f}"'
    return f'<g class="place"><rect class="{spot.shade}" {box} rx="3"/>{told}<title>{escape(spot.told)}</title></g>'


def _tiles(result: WhatIf) -> Iterator[Tile]:
    row = next(row for row in result.rows if row.replicas == result.chosen.replicas)
    at = f"at batch cap {result.chosen.cap}" if result.has_knob else ""
    now = "" if result.current_replicas is None else f"now {result.current_replicas}"
    yield Tile("Chosen", words.count(row.replicas, "replica"), ", ".join(filter(None, (at, now))))
    band = f"the band is {words.number(100 * result.band_low)} to {words.number(100 * result.band_high)} %"
    yield Tile("Utilisation", f"{100 * row.utilization:.0f} %", band)
    if row.cost_per_hour is not None:
        yield Tile("Cost", f"{row.cost_per_hour:,.2f} {result.currency}", f"an hour, {words.number(row.gpus)} GPUs")
    else:
        yield Tile("Cost", f"{words.number(row.gpus)} GPUs", "no price in spec.cost")
    edge = result.edges[result.caps.index(result.chosen.cap)]
    if result.promises:
        yield Tile(
            "SLO edge", "none" if edge is None else words.count(edge, "replica"), "fewest that keep all promises"
        )
    held = f"{words.number(result.then.held)} to be ready for"
    yield Tile("Work", words.count_of(result.then.work, "replica"), held)
    sure = f"known to {100 * result.model.error:.0f} %"
    yield Tile("Model", "sure" if result.model.confident else "low confidence", sure)


def _table(result: WhatIf) -> Table:
    """Every promise at the chosen cap."""
    place = result.caps.index(result.chosen.cap)
    unit = f"{result.currency} an hour" if result.currency else "GPUs"
    head = ("Replicas", "Utilised", unit, *(whatif.described(promise) for promise in result.promises), "")
    rows = []
    for row in result.rows:
        cell = row.cells[place]
        told = [whatif.value(promise, one) for promise, one in zip(result.promises, cell.promises, strict=True)]
        verdict = ("✓ kept" if cell.kept else "✗ broken") + ("" if cell.sure else ", perhaps")
        mark = "good" if cell.kept else "bad"
        named = whatif.points(result, row.replicas)
        count = f"{row.replicas}  ({named})" if named else str(row.replicas)
        cells = (count, f"{100 * row.utilization:.0f} %", whatif.paid(row), *told, verdict if told else "")
        rows.append(Row(cells, mark if told else ""))
    at = f"At batch cap {result.chosen.cap}" if len(result.caps) > 1 else "In numbers"
    return Table(at, head, tuple(rows))
