"""The report as one self-contained HTML file: no network, nothing outside it, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bandkeeper.lab.report import colours, plane, plane_svg, svg, words
from bandkeeper.lab.report.sheet import Kind, Panel, Sheet, Strip, of
from bandkeeper.lab.result import Result

if TYPE_CHECKING:
    from bandkeeper.lab.bench import BenchResult

_ROWS_LIMIT = 500
_MOMENTS_LIMIT = 6000
SIGNS = {"up": "▲ more replicas", "down": "▼ fewer", "cap": "◆ batch cap", "several": "■ several, close together"}
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure with its name and what it means."""

    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table; `mark` is good, bad, ours or nothing."""

    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `title` is empty where it needs none."""

    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What stands on a page, from top to bottom."""

    title: str
    kicker: str
    headline: str
    sub: str
    tiles: tuple[Tile, ...]
    tables: tuple[Table, ...]
    sheet: Sheet | None
    small_print: tuple[str, ...]
    figures: str = ""
    after: tuple[Table, ...] = ()
    below: str = ""


def write(result: Result, path: Path) -> None:
    """Writes the report of one run to `path`."""
    path.write_text(render(page(result)), encoding="utf-8")


def page(result: Result) -> Page:
    """The report of one run."""
    return Page(
        title=f"{result.policy} under {result.workload}",
        kicker=f"Simulated: {result.rule} · policy {result.policy} ({result.objective}) · {result.workload} · "
        f"{result.model} on {result.gpu}",
        headline=words.headline(result),
        sub=_sub(result),
        tiles=tuple(_tiles(result)),
        tables=(_promises(result),) if result.slos else (),
        sheet=of(result),
        small_print=(*protocol(result), *result.notes),
    )


def write_bench(bench: BenchResult, path: Path) -> None:
    """Writes the comparison of rules to `path`."""
    path.write_text(render(bench_page(bench)), encoding="utf-8")


def bench_page(bench: BenchResult) -> Page:
    """The comparison of rules: a plane for each load, and the table."""
    goals = words.joined([words.goal(slo.signal, slo.threshold, slo.goal, slo.percentile) for slo in bench.slos])
    seeds = words.count(len(bench.seeds), "seed")
    return Page(
        title=f"Rules compared for {bench.policy}",
        kicker=f"Compared: policy {bench.policy} · {bench.model} on {bench.gpu} · "
        f"cold start {words.duration(bench.cold_start_s)} · {seeds}",
        headline=plane.headline(bench),
        sub=f"Goals: {goals}. {plane_svg.HOW_TO_READ}" if goals else plane_svg.HOW_TO_READ,
        tiles=(),
        tables=(),
        sheet=None,
        figures=plane_svg.section(bench),
        after=(_standings(bench), *(_by_load(bench) if len(bench.workloads) > 1 else ())),
        small_print=(*bench.protocol, *(f"{one.name}: {note}" for one in bench.workloads for note in one.notes)),
    )


def render(content: Page) -> str:
    """The page as HTML text."""
    script = _asset("page.js")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    body = "".join(_body(content))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(content.title)} · Bandkeeper</title><style>{style()}</style></head>\n"
        f"<body><main>{body}</main>"
        + (_data(content.sheet) if content.sheet else "")
        + f"<script>{script}</script>"
        + "</body></html>\n"
    )


def protocol(result: Result) -> list[str]:
    """How the figures were counted."""
    start = words.count(result.start_replicas, "replica")
    return [
        f"The first {words.duration(result.warmup_s)} count neither in cost nor in attainment; {start} were the floor "
        "meanwhile."
        if result.warmup_s
        else f"The whole run counts; it began with {start}.",
        "GPU-hours run from the order of a pod to its end. Those beyond the work done are GPU-hours less what the "
        "finished work takes at the best batch; cold starts are in them.",
        *_protocol_of_rules(result),
        "Refused, failed and unserved requests are misses. First tokens are counted by requests, token gaps by tokens.",
        "Utilisation is offered work over what the ready replicas sustain at the best batch; above 100 % is overload.",
        f"A cold start takes {words.duration(result.cold_start_s)} (median). Server {result.server}; "
        f"seed {result.seed}; format {result.version} of the JSON.",
    ]


def _protocol_of_rules(result: Result) -> Iterator[str]:
    if result.gpu_hours_by_rule is not None:
        yield words.RULES_ALONE


def style() -> str:
    """The page's style with the colours by role."""
    named = {
        **colours.PAGE,
        **colours.ROLES,
        **colours.WHAT_IF,
        **{f"q-{name}": shade for name, shade in colours.QUALITY.items()},
    }
    light = "".join(f"--{name}:{shade.light};" for name, shade in named.items())
    dark = "".join(f"--{name}:{shade.dark};" for name, shade in named.items())
    roles = "".join(f".{name}{{--c:var(--{name})}}" for name in named)
    quality = "".join(f"svg .q-{name}{{fill:var(--c)}}" for name in colours.QUALITY)
    schemes = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f"{schemes}{roles}{quality}\n{_asset('page.css')}"


def table(content: Table, *, limit: int = _ROWS_LIMIT) -> str:
    """A table; what is beyond `limit` rows is counted, not shown."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in content.head)
    rows = "".join(
        f'<tr class="{row.mark}">{"".join(_cell(cell) for cell in row.cells)}</tr>' for row in content.rows[:limit]
    )
    left = len(content.rows) - limit
    more = f'<tr><td colspan="{len(content.head)}">and {left:,} more, see the JSON</td></tr>' if left > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}{more}</tbody></table>"


def _cell(text: str) -> str:
    narrow = ' class="n"' if len(text) < 22 else ""
    return f"<td{narrow}>{escape(text)}</td>"


def _body(content: Page) -> Iterator[str]:
    yield f'<p class="kicker">{escape(content.kicker)}</p><h1>{escape(content.headline)}</h1>'
    yield f'<p class="sub">{escape(content.sub)}</p>'
    if content.tiles:
        tiles = "".join(
            f"<div><dt>{escape(tile.name)}</dt><dd>{escape(tile.value)}<small>{escape(tile.meaning)}</small></dd></div>"
            for tile in content.tiles
        )
        yield f'<dl class="tiles">{tiles}</dl>'
    yield from (_titled(one) for one in content.tables)
    yield content.figures
    if content.sheet:
        yield "".join(_panels(content.sheet))
        yield "".join(_moves(content.sheet))
    yield from (_titled(one) for one in content.after)
    yield content.below
    notes = "".join(f"<li>{escape(note)}</li>" for note in content.small_print)
    yield f"<footer><h2>How this was counted</h2><ul>{notes}</ul></footer>"


def _titled(content: Table) -> str:
    title = f"<h2>{escape(content.title)}</h2>" if content.title else ""
    return f'<div class="tables">{title}{table(content)}</div>'


def _panels(sheet: Sheet) -> Iterator[str]:
    yield '<div class="wide"><div class="panels">'
    for key, part in enumerate(sheet.parts):
        picture = svg.panel(sheet, part, key) if isinstance(part, Panel) else svg.strip(sheet, part)
        yield f"<figure>{_caption(part)}{picture}</figure>"
        if isinstance(part, Panel) and part.title == "Replicas" and sheet.events:
            yield f"<figure>{_lane_caption(sheet)}{svg.lane(sheet)}</figure>"
    yield f'<div class="axis">{svg.time_axis(sheet)}</div><div class="cross" hidden></div></div></div>'
    yield '<div class="tip" hidden></div>'


def _caption(part: Panel | Strip) -> str:
    if isinstance(part, Strip):
        keys = "".join(_key(f"q-{svg.word(name)}", f"{name} {text}") for name, text in part.shares)
        return f"<figcaption><b>{escape(part.title)}</b>{keys}</figcaption>"
    shown = reversed(part.marks) if any(mark.kind is Kind.STEP_AREA for mark in part.marks) else part.marks
    keys = "".join(
        _key(f"{'a' if mark.kind in (Kind.AREA, Kind.STEP_AREA) else 'l'} {mark.role}", mark.name) for mark in shown
    )
    if part.band:
        keys += _key("band", f"band {words.number(part.band[0])} to {words.number(part.band[1])} %")
    if part.threshold:
        keys += _key("limit", part.threshold[1])
    unit = f'<span class="unit">{escape(part.unit)}</span>' if part.unit else ""
    note = f'<span class="note">{escape(part.note)}</span>' if part.note else ""
    return f"<figcaption><b>{escape(part.title)}</b>{unit}{keys}{note}</figcaption>"


def _lane_caption(sheet: Sheet) -> str:
    found = {svg.sign(group) for group in svg.grouped(sheet)}
    keys = "".join(f'<span class="key">{text}</span>' for kind, text in SIGNS.items() if kind in found)
    return f'<figcaption><b>Moves</b><span class="unit">point at one for its reason</span>{keys}</figcaption>'


def _key(classes: str, text: str) -> str:
    return f'<span class="key"><i class="{escape(classes)}"></i>{escape(text)}</span>'


def _moves(sheet: Sheet) -> Iterator[str]:
    if not sheet.events:
        return
    rows = tuple(
        Row((words.clock(event.at_s, sheet.origin_s), event.change, event.reason, event.why)) for event in sheet.events
    )
    content = Table("", ("Time", "Change", "Reason", "In its words"), rows)
    yield f'<h2>{words.count(len(rows), "move")}</h2><div class="scroll">{table(content)}</div>'


def _promises(result: Result) -> Table:
    rows = tuple(
        Row(
            (
                words.signal_name(slo.signal),
                words.promise(slo),
                words.attained(slo),
                words.reached(slo),
                {True: "✓ kept", False: "✗ missed", None: "not judged"}[words.kept(slo)],
            ),
            {True: "good", False: "bad", None: ""}[words.kept(slo)],
        )
        for slo in result.slos
    )
    return Table("", ("Service level", "Promised", "Kept for", "Reached", "Verdict"), rows)


def _standings(bench: BenchResult) -> Table:
    """Every rule over all loads."""
    head = ("Rule", "Goals met, at its best", "Cost over the bound", "Goals met, as published", "Cost", "Moves an hour")
    rows = tuple(
        Row(
            (
                one.rule,
                f"{one.met} of {one.loads}",
                words.times(one.cost),
                "-" if one.default_met is None else f"{one.default_met} of {one.loads}",
                words.times(one.default_cost),
                words.number(one.moves_per_h),
            ),
            "ours" if one.ours else "dim" if one.hindsight else "",
        )
        for one in plane.standings(bench)
    )
    return Table("All loads", head, rows)


def _by_load(bench: BenchResult) -> Iterator[Table]:
    """Every rule at its best setting, load by load: cost over the bound, and whether the goals are met."""
    planes = plane.planes_of(bench)
    rows = []
    for one in plane.standings(bench):
        cells = [one.rule]
        for load in planes:
            curves = [curve for curve in load.curves if curve.rule == one.rule]
            best = next((spot for curve in curves for spot in curve.spots if spot.is_best), None)
            cells.append("-" if best is None else f"{'✓' if best.meets_goal else '✗'} {words.times(best.relative)}")
        rows.append(Row(tuple(cells), "ours" if one.ours else "dim" if one.hindsight else ""))
    yield Table("Load by load, each rule at its best there", ("Rule", *(one.workload for one in planes)), tuple(rows))


def _tiles(result: Result) -> Iterator[Tile]:
    wasted = result.gpu_hours_wasted / result.gpu_hours if result.gpu_hours else None
    yield Tile("Cost", f"{words.number(result.gpu_hours)} GPU-h", f"{words.share(wasted)} of it beyond the work done")
    if result.gpu_hours_by_rule is not None:
        yield Tile("Held for one rule alone", *words.held_for(result.gpu_hours_by_rule))
    band = f"{words.number(100 * result.band_low)} to {words.number(100 * result.band_high)} % utilisation"
    yield Tile("Time in band", words.share(result.time_in_band), band)
    if result.attainment_both is not None and len(result.slos) > 1:
        yield Tile("Every latency SLO kept", words.share(result.attainment_both), "of requests")
    turns = f"{words.count(result.oscillations, 'reversal')} within 10 min"
    yield Tile("Changes of replicas", f"{result.scale_actions:,}", turns)
    yield Tile("Changes of batch cap", f"{result.batch_actions:,}")
    counts = result.requests
    lost = f"{counts.errors:,} failed or refused, {counts.unserved:,} unserved"
    yield Tile("Requests finished", f"{counts.finished:,}", f"of {counts.arrived:,}; {lost}")


def _sub(result: Result) -> str:
    series = result.series
    sizes = [
        ready + pending
        for at_s, ready, pending in zip(series.at_s, series.ready, series.pending, strict=True)
        if at_s > result.warmup_s
    ]
    judged = words.duration(result.duration_s - result.warmup_s)
    if not sizes or not sum(sizes):
        return f"{judged} were judged."
    mean, peak = sum(sizes) / len(sizes), max(sizes)
    told = f"Over the {judged} judged it ran {words.number(mean)} replicas on average and {peak} at most."
    if peak / mean < 1.02:
        return told
    return f"{told} Its own peak held all the time would cost {words.number(peak / mean)} times as much."


def _data(sheet: Sheet) -> str:
    """What the pointer tells, as JSON that no text can end early."""
    stride = -(-len(sheet.at_s) // _MOMENTS_LIMIT) or 1
    content: dict[str, Any] = {
        "at": [_brief(at_s) for at_s in sheet.at_s[::stride]],
        "end": sheet.end_s,
        "unjudged": sheet.unjudged_s,
        "origin": sheet.origin_s,
        "width": svg.WIDTH,
        "left": svg.LEFT,
        "plot": svg.PLOT,
        "rows": [
            {
                "name": mark.name if len(part.marks) > 1 else part.title,
                "unit": part.unit.split(",")[0].split(" of ")[0],
                "values": [_brief(value) for value in (mark.shown or mark.values)[::stride]],
            }
            for part in sheet.parts
            if isinstance(part, Panel)
            for mark in part.marks
        ],
        "strips": [_coded(part, stride) for part in sheet.parts if isinstance(part, Strip)],
        "events": [
            {"at": event.at_s, "text": f"{event.change}: {event.reason}. {event.why}"}
            for event in sheet.events[:_ROWS_LIMIT]
        ],
    }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="data">{text}</script>'


def _coded(part: Strip, stride: int) -> dict[str, Any]:
    names = sorted(set(part.states))
    return {"name": part.title, "names": names, "values": [names.index(state) for state in part.states[::stride]]}


def _brief(value: float | None) -> float | int | None:
    """Four significant digits."""
    if value is None:
        return None
    short = float(f"{value:.6g}" if abs(value) >= 1000 else f"{value:.4g}")
    return int(short) if short.is_integer() else short


def digest(script: str) -> str:
    """What the page's security policy knows its script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
