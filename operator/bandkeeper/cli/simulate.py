"""`bandkeeper simulate`: what a policy would do under a load, as a table, a report and JSON."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bandkeeper.api import durations
from bandkeeper.cli import arguments as shared

if TYPE_CHECKING:
    from bandkeeper.cli.inputs import Inputs
    from bandkeeper.decide.decision import Decision
    from bandkeeper.lab.changes import Changes
    from bandkeeper.lab.result import PowerResult, Result, SLOResult
    from bandkeeper.lab.whatif import WhatIf

REPORT = Path("bandkeeper-report.html")
RULE = "bandkeeper"
PERIOD_S = 15.0
STDOUT = "-"


def add_parser(commands: Any) -> None:
    """The command and its arguments."""
    parser = commands.add_parser("simulate", help="show what a policy would do under a load, without a cluster")
    shared.add_inputs(parser)
    parser.add_argument(
        "--period",
        type=shared.positive,
        default=PERIOD_S,
        metavar="SECONDS",
        help="between two decisions (default: 15)",
    )
    parser.add_argument(
        "--no-forecast", action="store_true", help="decide without what earlier days had, to see what that is worth"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything for machines there; - is standard output")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"as .html or .png; default: {REPORT}, unless --json is given without it",
    )
    parser.add_argument(
        "--what-if",
        action="append",
        metavar="KEY=VALUE",
        help="then what the policy would choose, by what it learned: load=2x, prompt=2x, replicas=8 ..; see explain",
    )
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and say what came of it."""
    from bandkeeper.cli import inputs
    from bandkeeper.lab.changes import ChangeError, parse
    from bandkeeper.lab.result import to_json
    from bandkeeper.lab.rules.bandkeeper import Rule
    from bandkeeper.lab.run import RunError, simulate

    report = arguments.report if arguments.report or arguments.json else REPORT
    try:
        for path in filter(None, (report, Path(arguments.json) if arguments.json not in (None, STDOUT) else None)):
            shared.check_writable(path)
        asked = parse(arguments.what_if) if arguments.what_if else None
        given = inputs.read(arguments)
        for remark in given.remarks:
            print(remark, file=sys.stderr)
        rule = Rule(given.setting, forecasts=not arguments.no_forecast)
        with progress_bar("Simulating") as progress:
            result = simulate(
                given.setting,
                rule,
                rule_name=RULE,
                policy_name=given.policy_name,
                server_name=given.server_name,
                start=given.start,
                warmup_s=given.warmup_s,
                seed=given.seed,
                period_s=arguments.period,
                progress=progress,
            )
    except (inputs.InputError, ChangeError, RunError, shared.ArgumentError) as error:
        print(f"bandkeeper: {error}", file=sys.stderr)
        return 2
    if arguments.json == STDOUT:
        sys.stdout.write(to_json(result))
    else:
        print(summary(result))
        if arguments.json:
            Path(arguments.json).write_text(to_json(result), encoding="utf-8")
            print(f"JSON: {arguments.json}")
    answer = _what_if(given, rule.decision, asked) if asked else None
    if asked:
        print(*_told(answer), sep="\n", file=sys.stderr if arguments.json == STDOUT else sys.stdout)
    if report:
        _draw(result, report, answer)
        print(f"Report: {report}", file=sys.stderr if arguments.json == STDOUT else sys.stdout)
    return 0


def _what_if(given: Inputs, decision: Decision | None, asked: Changes) -> WhatIf | None:
    """By what the policy has learned when the run is over; None where that is nothing."""
    from bandkeeper.cli.explain import money_of
    from bandkeeper.lab import whatif

    if decision is None or decision.learned is None or decision.learned.seen is None:
        return None
    policy, server = given.setting.policy, given.setting.server
    known = whatif.of_learned(
        policy,
        decision.learned,
        source=f"{given.policy_name}'s load at the end of the run",
        replicas=decision.current_replicas,
        cap=decision.cap,
        capacity=server.batch_max,
    )
    return whatif.answer(policy, known, asked, name=given.policy_name, money=money_of(given.spec, server.gpus))


def _told(answer: WhatIf | None) -> tuple[str, str]:
    from bandkeeper.lab.report import whatif

    if answer is None:
        return "", "No what-if: the policy learned no step times, which takes continuous batching and some traffic."
    return "", whatif.summary(answer)


def _draw(result: Result, path: Path, answer: WhatIf | None) -> None:
    if path.suffix == ".png":
        from bandkeeper.lab.report import figures

        figures.png(result, path)
    else:
        from bandkeeper.lab.report import html, whatif_page

        page = html.page(result)
        path.write_text(html.render(whatif_page.added(page, answer) if answer else page), encoding="utf-8")


def summary(result: Result) -> str:
    """The run for a person, as plain text."""
    cold = durations.text(result.cold_start_s)
    judged_s = result.duration_s - result.warmup_s
    head = [
        ("Policy", f"{result.policy}, {result.objective}, {result.min_replicas} to {result.max_replicas} replicas"),
        ("Server", f"{result.server}: {result.model} on {result.gpu}, cold start {cold}"),
        ("Load", f"{result.workload}, {_span(result.duration_s)}"),
        (
            "Judged",
            f"{_span(judged_s)} after a warm-up of {_span(result.warmup_s)} from {result.start_replicas} replicas",
        ),
    ]
    counts = result.requests
    utilization = f"{result.band_low:.0%} to {result.band_high:.0%}"
    ends = f"{counts.finished:,} finished, {counts.errors:,} errors, {counts.unserved:,} not ended when the run did"
    back = f"{result.oscillations} of them back within 10 minutes"
    figures = [
        ("GPU-hours", f"{result.gpu_hours:.2f}, of which {result.gpu_hours_wasted:.2f} beyond the work done"),
        *_held_for(result),
        ("Utilisation", f"{_share(result.time_in_band)} of the time inside the band {utilization}"),
        ("Requests", f"{counts.arrived:,}: {ends}"),
        ("Moves", f"{result.scale_actions} of replicas ({back}), {result.batch_actions} of the batch cap"),
    ]
    if (power := result.power) is not None:
        figures.append(("Power", _power(power)))
    lines = [*_aligned(head), "", *_promises(result), "", *_aligned(figures)]
    return "\n".join(line.rstrip() for line in lines)


def _held_for(result: Result) -> list[tuple[str, str]]:
    from bandkeeper.lab.report import words

    hours = result.gpu_hours_by_rule
    return [] if hours is None else [("Held for", words.rule_hours(hours))]


def _power(power: PowerResult) -> str:
    limit = f"of the {power.limit_watts:.0f} W allowed"
    if power.mean_watts is None or power.most_watts is None:
        return f"not known {limit}"
    return (
        f"{power.mean_watts:.1f} W {limit} in the GPU that draws most, {power.most_watts:.1f} W in its highest minute; "
        f"above it in {_share(power.above)} of the minutes"
    )


def _promises(result: Result) -> list[str]:
    if not result.slos:
        return ["The policy promises nothing."]
    rows = [("PROMISE", "KEPT", "GOAL", "REACHED", "")]
    for slo in result.slos:
        if slo.percentile is None:
            name, goal = f"{slo.signal} >= {slo.threshold:g}/s", ""
            reached = "-" if slo.value is None else f"{slo.value:.3g}/s"
        else:
            name, goal = f"{slo.signal} p{slo.percentile} <= {durations.text(slo.threshold)}", f"{slo.percentile}%"
            reached = "-" if slo.value is None else durations.text(slo.value)
        rows.append((name, _share(slo.attainment), goal, reached, _verdict(slo)))
    if len([slo for slo in result.slos if slo.percentile is not None]) > 1:
        rows.append(("all of them, by request", _share(result.attainment_both), "", "", ""))
    return _aligned(rows)


def _verdict(slo: SLOResult) -> str:
    if slo.attainment is None:
        return "nothing to judge"
    return "kept" if slo.attainment >= (slo.percentile or 100) / 100 else "BROKEN"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _share(value: float | None) -> str:
    """In percent, never rounded up to 100."""
    return "-" if value is None else f"{math.floor(1e4 * value + 1e-9) / 100:.2f}%"


def _span(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (rest_s if not hours else 0, "s"))
    return " ".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, float], None] | None]:
    """A bar with the time left on standard error; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)
