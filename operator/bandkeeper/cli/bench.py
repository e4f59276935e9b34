"""`bandkeeper bench`: a policy next to its peers' rules at their best, over the same loads and fleet."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bandkeeper.cli import arguments as shared

if TYPE_CHECKING:
    from bandkeeper.api.signals import Signal
    from bandkeeper.lab.bench import BenchPoint, BenchResult, Comparison

STDOUT = "-"
ALL_LOADS = "matrix"
HINTS = {
    "TimeToFirstToken": "TTFT",
    "InterTokenLatency": "ITL",
    "EndToEndLatency": "E2E",
    "QueueTime": "queue",
}


def add_parser(commands: Any) -> None:
    """The command and its arguments."""
    parser = commands.add_parser("bench", help="compare a policy with other scalers' rules under the same load")
    add = parser.add_argument
    add("--policy", type=Path, required=True, metavar="FILE", help="GPUScalingPolicy in YAML or JSON")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument(
        "--load",
        nargs="+",
        metavar="NAME[:KEY=VALUE,..]",
        help=f"synthetic loads; {ALL_LOADS} is the set that docs/benchmarks.md uses, {ALL_LOADS}/NAME one of it",
    )
    load.add_argument("--trace", type=Path, metavar="FILE", help="recorded load: Azure LLM, BurstGPT, Mooncake, times")
    add("--rate-scale", type=shared.positive, default=1.0, metavar="N", help="requests come N times")
    add("--skip-bad", action="store_true", help="leave out and count a trace's bad rows")
    add("--server", metavar="PRESET|FILE", help="model server (default: by the policy's runtime)")
    add("--cold-start", type=shared.seconds, metavar="SECONDS", help="median from a pod's order to its first request")
    add("--start", type=_count, metavar="N", help="replicas at the start (default: 1.2 x the warm-up's busiest minute)")
    add(
        "--warmup",
        type=shared.seconds,
        default=900.0,
        metavar="SECONDS",
        help="time that does not count (default: 900)",
    )
    add("--seeds", type=_count, default=1, metavar="N", help="repeat with seeds 1 to N and judge the mean (default: 1)")
    add("--rules", metavar="NAME,FILE.py,..", help="only these; a file holds a class Rule (default: all)")
    add(
        "--goal",
        action="append",
        metavar="SIGNAL=PERCENT",
        help="attainment that counts as kept; own: each promise's percentile "
        "(default: TimeToFirstToken=99, InterTokenLatency=95, others their percentile)",
    )
    add("--jobs", type=_count, metavar="N", help="processes (default: one per core)")
    add("--all", action="store_true", help="every setting in the table, not the best only")
    add("--json", metavar="FILE", help="write everything for machines there; - is standard output")
    add("--report", type=Path, metavar="FILE", help="write the cost-attainment plane there, as .html or .png")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, and say what came of it."""
    from bandkeeper.cli import inputs
    from bandkeeper.cli.simulate import progress_bar
    from bandkeeper.lab import bench
    from bandkeeper.lab.result import to_json
    from bandkeeper.lab.rules.catalogue import RuleError
    from bandkeeper.lab.run import RunError

    try:
        for path in filter(
            None, (arguments.report, Path(arguments.json) if arguments.json not in (None, STDOUT) else None)
        ):
            shared.check_writable(path)
        comparison, remarks = _comparison(arguments)
        with progress_bar("Comparing") as progress:
            result = bench.compare(comparison, workers=arguments.jobs or os.cpu_count() or 1, progress=progress)
    except (inputs.InputError, RunError, RuleError, bench.BenchError, shared.ArgumentError) as error:
        print(f"bandkeeper: {error}", file=sys.stderr)
        return 2
    for remark in remarks:
        print(remark, file=sys.stderr)
    if arguments.json == STDOUT:
        sys.stdout.write(to_json(result))
    else:
        print(table(result, every=arguments.all))
        if arguments.json:
            Path(arguments.json).write_text(to_json(result), encoding="utf-8")
            print(f"JSON: {arguments.json}")
    if arguments.report:
        _draw(result, arguments.report)
        print(f"Report: {arguments.report}", file=sys.stderr if arguments.json == STDOUT else sys.stdout)
    return 0


def _draw(result: BenchResult, path: Path) -> None:
    if path.suffix == ".png":
        from bandkeeper.lab.report import figures

        figures.png_bench(result, path)
    else:
        from bandkeeper.lab.report import html

        html.write_bench(result, path)


def table(result: BenchResult, *, every: bool = False) -> str:
    """The comparison for a person: one table per load, and one with a single setting for all loads."""
    goals = [f"{_slo(result, slo)} {_percent(one.goal)}" for slo, one in enumerate(result.slos)]
    head = [
        f"Policy {result.policy} on {result.server}: {result.model} on {result.gpu}, "
        f"cold start {result.cold_start_s:g} s, {len(result.seeds)} seed(s)",
        f"Goals: {', '.join(goals) or 'none'}; * keeps all of them",
    ]
    blocks = ["\n".join(head)]
    for workload in result.workloads:
        rows = [_header(result), *_rows(result, workload.name, every)]
        blocks.append("\n".join([workload.name, *_aligned(rows)]))
    if len(result.workloads) > 1:
        blocks.append("\n".join(["ONE SETTING FOR ALL LOADS", *_aligned(list(_overall(result)))]))
    return "\n\n".join(blocks)


def _header(result: BenchResult) -> tuple[str, ...]:
    names = tuple(_slo(result, slo) for slo in range(len(result.slos)))
    return ("", "RULE", "SETTING", "GPU-H", "x BOUND", *names, "BOTH", "MOVES", "BACK", "CAP MOVES")


def _rows(result: BenchResult, workload: str, every: bool) -> Iterator[tuple[str, ...]]:
    """Settings of one load, means over the seeds, the cheapest of those that keep every goal first."""
    from bandkeeper.lab.bench import mean_of

    chosen = [points for points in _settings(result, workload) if every or points[0].is_best or points[0].is_bound]
    hours = {id(points): mean_of([point.gpu_hours for point in points]) or 0.0 for points in chosen}
    for points in sorted(chosen, key=lambda one: (not one[0].meets_goal, hours[id(one)])):
        first = points[0]
        name = f"{first.rule} (bound)" if first.is_bound else first.rule
        yield (
            "*" if first.meets_goal else "",
            name,
            f"{first.label} (default)" if first.is_default and _has_sweep(result, first) else first.label,
            f"{hours[id(points)]:.2f}",
            _number(mean_of([point.relative for point in points])),
            *(_percent(mean_of([point.attainment[slo] for point in points])) for slo in range(len(result.slos))),
            _percent(mean_of([point.attainment_both for point in points])),
            f"{mean_of([point.scale_actions for point in points]):.0f}",
            f"{mean_of([point.oscillations for point in points]):.0f}",
            f"{mean_of([point.batch_actions for point in points]):.0f}",
        )


def _overall(result: BenchResult) -> Iterator[tuple[str, ...]]:
    from bandkeeper.lab.bench import overall

    names = [_slo(result, slo) for slo in range(len(result.slos))]
    spread = tuple(f"{name} MEAN/WORST" for name in names)
    yield ("RULE", "SETTING", "x BOUND", "LOADS KEPT", *spread, "MOVES/H")
    for one in overall(result):
        means = (
            f"{_percent(mean)} / {_percent(worst)}"
            for mean, worst in zip(one.attainment_mean, one.attainment_worst, strict=True)
        )
        kept = f"{one.loads_kept} of {len(result.workloads)}"
        yield (one.rule, one.label, _number(one.relative), kept, *means, f"{one.moves_per_hour:.0f}")


def _settings(result: BenchResult, workload: str) -> list[list[BenchPoint]]:
    """The points of each setting on a load, one per seed."""
    found: dict[tuple[str, str], list[BenchPoint]] = {}
    for point in result.points:
        if point.workload == workload:
            found.setdefault((point.rule, point.label), []).append(point)
    return list(found.values())


def _has_sweep(result: BenchResult, point: BenchPoint) -> bool:
    return any(other.rule == point.rule and other.label != point.label for other in result.points)


def _comparison(arguments: argparse.Namespace) -> tuple[Comparison, tuple[str, ...]]:
    """What the arguments name, checked, and remarks for the person who asked."""
    from bandkeeper.cli import inputs
    from bandkeeper.lab.bench import Comparison, Load, goals_of
    from bandkeeper.lab.rules.catalogue import NAMES, find

    seeds = range(1, arguments.seeds + 1)
    texts = dict(_loads(arguments.load)) if arguments.load else {"": None}
    rules = (
        tuple(find(name.strip()) for name in arguments.rules.split(",")) if arguments.rules else tuple(map(find, NAMES))
    )
    loads = []
    for name, text in texts.items():
        drawn = {}
        for seed in seeds:
            given = inputs.read(argparse.Namespace(**{**vars(arguments), "load": text, "seed": seed}))
            drawn[seed] = given.setting.requests
        loads.append(Load(name or drawn[1].name, drawn))
    server = given.setting.server
    if arguments.cold_start is not None:
        cold = server.cold_start.model_copy(update={"median_s": arguments.cold_start})
        server = server.model_copy(update={"cold_start": cold})
    policy = given.setting.policy
    comparison = Comparison(
        policy=policy,
        policy_name=given.policy_name,
        server=server,
        server_name=given.server_name,
        loads=tuple(loads),
        rules=rules,
        goals=goals_of(policy, _goals(arguments.goal)),
        start=arguments.start,
        warmup_s=arguments.warmup,
    )
    return comparison, given.remarks


def _loads(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name for tables and text of each load."""
    from bandkeeper.cli.inputs import InputError
    from bandkeeper.lab.workloads.synthetic import MATRIX

    for name in names:
        group, _, one = name.partition("/")
        if group != ALL_LOADS:
            yield name, name
        elif not one:
            yield from MATRIX.items()
        elif one in MATRIX:
            yield one, MATRIX[one]
        else:
            raise InputError(f"no load {name!r}: {ALL_LOADS} has {', '.join(MATRIX)}")


def _goals(written: Sequence[str] | None) -> Mapping[Signal, float] | None:
    from bandkeeper.api.signals import Signal
    from bandkeeper.cli.inputs import InputError
    from bandkeeper.lab.bench import GOALS

    if written is None:
        return None
    goals: dict[Signal, float] = {} if "own" in written else dict(GOALS)
    for one in written:
        if one == "own":
            continue
        name, _, percent = one.partition("=")
        try:
            signal, value = Signal(name), float(percent)
        except ValueError:
            raise InputError(f"goal {one!r}: write SIGNAL=PERCENT, such as TimeToFirstToken=99, or own") from None
        if not 0 < value <= 100:
            raise InputError(f"goal {one!r}: give a percentage above 0 and up to 100")
        goals[signal] = value / 100
    return goals


def _slo(result: BenchResult, slo: int) -> str:
    signal = result.slos[slo].signal
    return HINTS.get(signal, signal)


def _percent(share: float | None) -> str:
    """Never rounded up to 100."""
    return "-" if share is None else f"{math.floor(1000 * share + 1e-9) / 10:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)
