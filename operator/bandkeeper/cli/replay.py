"""`bandkeeper replay`: what a policy would have done over a recorded past, next to what was done."""

from __future__ import annotations

import argparse
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bandkeeper.api import durations
from bandkeeper.cli import arguments as shared
from bandkeeper.cli.simulate import progress_bar

if TYPE_CHECKING:
    from bandkeeper.cli.inputs import PolicyFile
    from bandkeeper.lab.history import History

REPORT = Path("bandkeeper-replay.html")
STDOUT = "-"
_TIMEOUT_S = 60.0


class _WrongError(ValueError):
    """The arguments do not go together; the text says what to write instead."""


def add_parser(commands: Any) -> None:
    """The command and its arguments."""
    parser = commands.add_parser("replay", help="show what a policy would have done over recorded Prometheus history")
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="GPUScalingPolicy in YAML or JSON")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prometheus", metavar="URL", help="Prometheus that has the history")
    source.add_argument("--history", type=Path, metavar="FILE", help="a history that --export or another program wrote")
    past = parser.add_argument_group("with --prometheus")
    past.add_argument(
        "--from", dest="from_s", type=_moment, metavar="T", help="2026-01-31T08:00:00Z, epoch seconds, or 24h (ago)"
    )
    past.add_argument("--to", dest="to_s", type=_moment, metavar="T", help="the same (default: now)")
    past.add_argument(
        "--step", type=_duration, default=15.0, metavar="15s", help="the operator's period (default: 15s)"
    )
    past.add_argument("--namespace", metavar="NAME", help="of the workload (default: the policy's, else default)")
    past.add_argument(
        "--pods", type=_pattern, metavar="REGEX", help="names of its pods (default: by the name of the policy's target)"
    )
    past.add_argument("--bearer-token-file", type=Path, metavar="FILE", help="to log in to Prometheus")
    past.add_argument("--ca-file", type=Path, metavar="FILE", help="authority that Prometheus' certificate is from")
    past.add_argument(
        "--cold-start", type=_duration, default=90.0, metavar="90s",
        help="from a pod's order to its readiness where kube-state-metrics does not tell (default: 90s)",
    )  # fmt: skip
    past.add_argument(
        "--capacity", type=_count, metavar="N", help="batch size that replicas booted with (default: the runtime's)"
    )
    parser.add_argument("--gpus", type=_count, default=1, metavar="N", help="GPUs of one replica (default: 1)")
    parser.add_argument(
        "--warmup",
        type=_duration,
        metavar="10m",
        help="time that is not judged (default: the longest hold of scale-in)",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything for machines there; - is standard output")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"as .html or .png; default: {REPORT}, unless --json or --export is given",
    )
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write the history there, for --history; .gz compresses it"
    )
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Replay, and say what came of it."""
    from bandkeeper.cli import inputs
    from bandkeeper.cli.history import PastError
    from bandkeeper.lab import history as histories
    from bandkeeper.lab.replay import ReplayError, replay
    from bandkeeper.lab.report import replayed
    from bandkeeper.lab.result import to_json

    report = arguments.report or (None if arguments.json or arguments.export else REPORT)
    written = [report, arguments.export, Path(arguments.json) if arguments.json not in (None, STDOUT) else None]
    try:
        for path in filter(None, written):
            shared.check_writable(path)
        found = inputs.read_policy(arguments.policy)
        history = _history(arguments, found)
        if arguments.export:
            histories.write(history, arguments.export)
        with progress_bar("Replaying") as progress:
            result = replay(
                found.policy,
                history,
                policy_name=found.name,
                warmup_s=arguments.warmup,
                gpus_per_replica=arguments.gpus,
                progress=progress,
            )
    except (
        inputs.InputError,
        PastError,
        histories.HistoryError,
        ReplayError,
        shared.ArgumentError,
        _WrongError,
    ) as error:
        print(f"bandkeeper: {error}", file=sys.stderr)
        return 2
    if arguments.json == STDOUT:
        sys.stdout.write(to_json(result))
    else:
        print(replayed.summary(result))
        if arguments.json:
            Path(arguments.json).write_text(to_json(result), encoding="utf-8")
            print(f"JSON: {arguments.json}")
    told = sys.stderr if arguments.json == STDOUT else sys.stdout
    if arguments.export:
        print(f"History: {arguments.export}", file=told)
    if report:
        (replayed.png if report.suffix == ".png" else replayed.write)(result, report)
        print(f"Report: {report}", file=told)
    return 0


def _history(arguments: argparse.Namespace, found: PolicyFile) -> History:
    from bandkeeper.cli import history as past
    from bandkeeper.lab import history as histories
    from bandkeeper.signals.collector import CollectorSettings
    from bandkeeper.signals.prometheus import PrometheusServer

    if arguments.history:
        if arguments.from_s is not None or arguments.to_s is not None:
            raise _WrongError("--from and --to go with --prometheus; a history is replayed as a whole")
        history = histories.read(arguments.history)
        if history.workload != found.spec.target_ref.name:
            raise _WrongError(
                f"{arguments.history} is the history of {history.workload}, and the policy is for "
                f"{found.spec.target_ref.name}: give the one or the other"
            )
        return history
    if arguments.from_s is None:
        raise _WrongError("--prometheus needs --from, such as --from 24h")
    from_s, to_s = arguments.from_s, time.time() if arguments.to_s is None else arguments.to_s
    if to_s <= from_s:
        raise _WrongError("--to must be later than --from")
    try:
        server = PrometheusServer(
            name="of --prometheus",
            url=arguments.prometheus,
            ca_file=arguments.ca_file,
            bearer_token_file=arguments.bearer_token_file,
            timeout_s=_TIMEOUT_S,
        )
    except ValueError as error:
        raise _WrongError(str(error)) from None
    asked = past.Asked(
        namespace=arguments.namespace or found.namespace or "default",
        spec=found.spec,
        from_s=from_s,
        to_s=to_s,
        step_s=arguments.step,
        pods=arguments.pods or "",
        cold_start_s=arguments.cold_start,
        capacity=arguments.capacity,
    )
    with progress_bar("Reading") as progress:
        return past.read(server, asked, CollectorSettings(servers=(server,)), progress)


def _moment(text: str) -> float:
    """Epoch seconds of a moment: RFC 3339, epoch seconds, now, or a time ago."""
    try:
        if text == "now":
            return time.time()
        if re.fullmatch(r"-?[0-9.]+[a-zµμ].*", text):
            return time.time() - abs(durations.parse(text))
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            return float(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no moment: write 2026-01-31T08:00:00Z, epoch seconds, now, or 24h for a day ago"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _duration(text: str) -> float:
    try:
        seconds = durations.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1s")
    return seconds


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more")
    return int(text)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text
