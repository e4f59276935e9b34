"""What a replay found, as text and as a page: the past, what the policy would have wanted, and how far to trust it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bandkeeper.lab.report import html, sheet, words
from bandkeeper.lab.report.html import Page, Row, Table, Tile
from bandkeeper.lab.report.sheet import Kind, Mark, Panel, Sheet, Strip
from bandkeeper.lab.result import SLOResult

if TYPE_CHECKING:
    from bandkeeper.lab.replay import Prediction, ReplayResult, ReplaySLO

_DATA = ("Complete", "Partial", "No data")


def write(result: ReplayResult, path: Path) -> None:
    """Writes the report to `path`."""
    path.write_text(html.render(page(result)), encoding="utf-8")


def png(result: ReplayResult, path: Path) -> None:
    """Writes the same pictures as PNG."""
    from bandkeeper.lab.report import figures

    about = f"Policy {result.policy} over {_past(result)}"
    figures.sheet_png(of(result), headline(result), about, path)


def headline(result: ReplayResult) -> str:
    """What the policy would have cost and kept, in one or two sentences."""
    past, wanted = result.gpu_hours_past, result.gpu_hours_wanted
    saved = result.gpu_hours_saved
    if abs(saved) < 0.005 * max(past, 1e-9):
        first = f"Would have cost the same {words.number(past)} GPU-hours"
    elif saved > 0:
        part = f" ({words.share(saved / past)})" if past else ""
        first = f"Would have saved {words.number(saved)} of {words.number(past)} GPU-hours{part}"
    else:
        first = f"Would have cost {words.number(-saved)} GPU-hours more: {words.number(wanted)} instead of "
        first += words.number(past)
    promised = _outlook(result)
    return f"{first}; {promised}." if promised else f"{first}."


def _outlook(result: ReplayResult) -> str:
    """Whether the promises are expected to be kept, and how much is known of that."""
    slos = [slo for slo in result.slos if slo.percentile is not None and slo.measured_low is not None]
    if not slos:
        return ""
    known = min(slo.expected_known for slo in slos)
    if not known:
        return "whether the promises had been kept is not known"
    broken = [_as_result(slo) for slo in slos if slo.expected is not None and words.kept(_as_result(slo)) is False]
    limit = "" if known > 0.995 else f", as far as can be told ({words.share(known)} of the requests)"
    if not broken:
        return f"every promise is expected to be kept{limit}"
    told = [
        f"only {words.attained(slo)} of {words.thing(slo.signal)} under {words.latency(slo.threshold)} "
        f"({slo.percentile} % promised)"
        for slo in broken
    ]
    return f"expected are {words.joined(told)}{limit}"


def _as_result(slo: ReplaySLO) -> SLOResult:
    return SLOResult(
        signal=slo.signal, percentile=slo.percentile, threshold=slo.threshold, attainment=slo.expected, value=None
    )


def summary(result: ReplayResult) -> str:
    """The replay for a person, as plain text."""
    lines = [headline(result), "", f"Past      {_past(result)}"]
    lines += [
        f"Promise   {words.signal_name(slo.signal)}, {words.promise(_as_result(slo))}: {measured(slo)} measured, "
        f"{words.share(slo.expected)} expected "
        f"(known for {words.share(slo.expected_known)}, by the model for {words.share(slo.expected_modelled)})"
        for slo in result.slos
    ]
    if result.gpu_hours_by_rule is not None:
        lines.append(f"Held for  {words.rule_hours(result.gpu_hours_by_rule)}")
    lines.append(f"Data      {_coverage(result)}")
    lines.append(
        f"Moves     {result.scale_actions} of replicas where the past had {result.scale_actions_past}, "
        f"{result.batch_actions} of the batch cap"
    )
    lines += [f"Model     {_error(one)}" for one in result.predictions]
    lines += [f"Note      {note}" for note in result.notes]
    return "\n".join(lines)


def page(result: ReplayResult) -> Page:
    """The report of one replay."""
    return Page(
        title=f"{result.policy} over {result.workload}'s past",
        kicker=f"Replayed: policy {result.policy} ({result.objective}) over {_past(result)}",
        headline=headline(result),
        sub=f"{_coverage(result)} What the policy wants follows from the load as it was recorded; the record itself "
        "does not change by it.",
        tiles=tuple(_tiles(result)),
        tables=tuple(_tables(result)),
        sheet=of(result),
        small_print=(*_method(result), *result.notes),
    )


def of(result: ReplayResult) -> Sheet:
    """The panels of a replay."""
    series = result.series
    parts: list[Panel | Strip] = [_load(result), _replicas(result)]
    if len(set(series.cap) - {None}) > 0:
        mark = Mark(name="wanted", role="cap", kind=Kind.STEPS, values=series.cap)
        parts.append(Panel(title="Batch cap", unit="requests per replica", marks=(mark,), height=72))
    parts += [_queue(result), _utilization(result)]
    for slo, values in zip(result.slos, series.slo_values, strict=True):
        parts.append(sheet.slo_panel(_as_result(slo), values, name="in the past"))
    parts += [_model(result), _data(result)]
    return Sheet(
        at_s=tuple(series.at_s),
        end_s=series.at_s[-1],
        unjudged_s=result.warmup_s,
        parts=tuple(parts),
        events=tuple(event for move in result.moves for event in sheet.events_of(move)),
        origin_s=result.from_s,
    )


def _load(result: ReplayResult) -> Panel:
    series = result.series
    return Panel(
        title="Load",
        unit="requests/s",
        marks=(
            Mark(name="asked for", role="arrived", kind=Kind.AREA, values=series.offered_per_s),
            Mark(name="finished", role="finished", kind=Kind.LINE, values=series.finished_per_s),
        ),
        note=f"grey: the first {words.duration(result.warmup_s)} are not judged" if result.warmup_s else "",
    )


def _replicas(result: ReplayResult) -> Panel:
    series = result.series
    return Panel(
        title="Replicas",
        unit="",
        whole=True,
        height=120,
        note=f"allowed {result.min_replicas} to {result.max_replicas}",
        marks=(
            Mark(name="ordered in the past", role="pending", kind=Kind.STEP_AREA, values=series.ordered),
            Mark(name="ready in the past", role="past", kind=Kind.STEP_AREA, values=series.ready),
            Mark(name="the policy wants", role="finished", kind=Kind.STEPS, values=series.wanted),
        ),
    )


def _queue(result: ReplayResult) -> Panel:
    series = result.series
    return Panel(
        title="Requests",
        unit="in the past",
        marks=(
            Mark(name="in process", role="running", kind=Kind.AREA, values=series.running),
            Mark(name="waiting", role="waiting", kind=Kind.LINE, values=series.waiting),
            Mark(name="planned for", role="predicted", kind=Kind.LINE, values=series.held_peak),
        ),
    )


def _utilization(result: ReplayResult) -> Panel:
    series = result.series
    past, expected = sheet.percent(series.utilization), sheet.percent(series.expected_utilization)
    return sheet.utilization_panel(
        (
            Mark(name="in the past", role="saved", kind=Kind.LINE, values=past),
            Mark(name="expected with the wanted replicas", role="utilization", kind=Kind.LINE, values=expected),
        ),
        band=(100 * result.band_low, 100 * result.band_high),
        unit="% of the requests that the ready replicas hold",
    )


def _model(result: ReplayResult) -> Panel:
    series = result.series
    return Panel(
        title="Time that a request is in process",
        unit="s",
        marks=(
            Mark(name="measured", role="finished", kind=Kind.LINE, values=series.request_s),
            Mark(
                name=f"predicted {words.duration(result.cold_start_s)} earlier",
                role="predicted",
                kind=Kind.LINE,
                values=series.predicted_request_s,
            ),
        ),
        height=80,
    )


def _data(result: ReplayResult) -> Strip:
    states = result.series.data
    found = Counter(states)
    shares = tuple((name, words.share(found[name] / len(states))) for name in _DATA if found[name])
    return Strip(title="Recorded data", states=tuple(states), shares=shares)


def _tiles(result: ReplayResult) -> Iterator[Tile]:
    judged_h = result.ticks * result.step_s * result.gpus_per_replica / 3600
    mean_past, mean_wanted = result.gpu_hours_past / judged_h, result.gpu_hours_wanted / judged_h
    yield Tile("In the past", f"{words.number(result.gpu_hours_past)} GPU-h", f"{words.number(mean_past)} replicas")
    yield Tile("Wanted", f"{words.number(result.gpu_hours_wanted)} GPU-h", f"{words.number(mean_wanted)} replicas")
    saved = result.gpu_hours_saved
    share = words.share(abs(saved) / result.gpu_hours_past) if result.gpu_hours_past else "of none"
    yield Tile("Saved" if saved >= 0 else "Owed", f"{words.number(abs(saved))} GPU-h", share)
    if result.gpu_hours_by_rule is not None:
        yield Tile("Wanted for one rule alone", *words.held_for(result.gpu_hours_by_rule))
    past = f"{result.scale_actions_past:,} in the past"
    yield Tile("Changes of replicas", f"{result.scale_actions:,}", past)
    yield Tile("Changes of batch cap", f"{result.batch_actions:,}")
    gaps = result.dark_ticks + result.partial_ticks
    yield Tile("Moments without full data", f"{gaps:,}", f"of {result.ticks:,}; nothing is let go then")


def _tables(result: ReplayResult) -> Iterator[Table]:
    if result.slos:
        promises = ("Service level", "Promised", "Measured", "Known for", "by the model", "Expected")
        yield Table("", promises, tuple(_promise(slo) for slo in result.slos))
    head = ("The model's prediction", "Ahead", "Half are off by", "One in ten by", "Half are above", "Too little")
    yield Table("", head, tuple(_predicted(one) for one in result.predictions))


def _promise(slo: ReplaySLO) -> Row:
    known = _as_result(slo)
    verdict = words.kept(known) if slo.expected_known else None
    return Row(
        (
            words.signal_name(slo.signal),
            words.promise(known),
            measured(slo),
            words.share(slo.expected_known),
            words.share(slo.expected_modelled),
            words.attained(known),
        ),
        {True: "", False: "bad", None: ""}[verdict],
    )


def measured(slo: ReplaySLO) -> str:
    """The measured share, with both ends where the buckets leave it open."""
    low, high = words.share(slo.measured_low), words.share(slo.measured_high)
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _predicted(one: Prediction) -> Row:
    bias = words.UNKNOWN if one.bias is None else f"{100 * one.bias:+.0f} %"
    return Row(
        (
            one.what,
            words.duration(one.ahead_s),
            words.share(one.median_error),
            words.share(one.p90_error),
            bias,
            words.share(one.short),
        )
    )


def _error(one: Prediction) -> str:
    ahead = words.duration(one.ahead_s)
    if one.median_error is None or one.p90_error is None:
        return f"{one.what}, {ahead} ahead: nothing to compare"
    return (
        f"{one.what}, {ahead} ahead: half of {one.count:,} predictions are off by {words.share(one.median_error)} or "
        f"less, one in ten by {words.share(one.p90_error)} or more; {words.share(one.short)} were too low"
    )


def _past(result: ReplayResult) -> str:
    begin, end = words.clock(0, result.from_s), words.clock(0, result.to_s)
    return f"{result.namespace}/{result.workload} ({result.runtime}), {begin} to {end} UTC"


def _coverage(result: ReplayResult) -> str:
    judged = f"{result.ticks:,} moments were judged, one every {words.duration(result.step_s)}"
    if not result.dark_ticks and not result.partial_ticks:
        return f"{judged}, all with full data."
    return (
        f"{judged}; of {result.dark_ticks:,} nothing was recorded and of {result.partial_ticks:,} not everything: "
        "there the policy holds what it has."
    )


def _method(result: ReplayResult) -> Iterator[str]:
    cold = words.duration(result.cold_start_s)
    yield (
        f"The operator's own decision was called at each of {len(result.series.at_s):,} moments, on what Prometheus "
        f"had then. The first {words.duration(result.warmup_s)} are not judged: nothing is let go before a window was "
        "watched."
    )
    yield (
        "Decisions follow one another as if carried out, but latencies and queues stay those of the past: where the "
        "past broke a promise for want of replicas, the policy keeps asking for more, and its cost is overstated."
    )
    yield (
        "GPU-hours run from the order of a pod to its end, for the past and for the policy alike, with "
        f"{words.count(result.gpus_per_replica, 'GPU')} for each replica."
    )
    if result.gpu_hours_by_rule is not None:
        yield words.RULES_ALONE
    yield (
        f"Expected promises: a wanted replica is ready {cold} after its order. Where as many were ready in the past, "
        "the measured share counts; else that of the moments of this past in which a replica was asked for as many "
        "requests per second, within 10 %. Where there were none, the moment's latencies are stretched as the model "
        "stretches the time in process, up to 1.5 times the most that a replica was asked for and below saturation. "
        "Of the rest nothing is known. What the policy would have done about promises that fewer replicas break is "
        "not accounted for."
    )
    yield (
        "What is planned for is the peak of the last scale-down window: it is meant to be too much rather than too "
        "little, and its error says what holding capacity costs."
    )
    yield "Measured shares are the least that the buckets permit; refused and failed requests are misses."
