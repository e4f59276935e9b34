"""Parse the command line and hand over; what a command needs is imported when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bandkeeper import __version__
from bandkeeper.cli import agent, bench, explain, profile, replay, simulate

_OF_THE_LAB = frozenset({"matplotlib", "numba", "numpy", "rich"})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bandkeeper", description="Holds a GPU utilisation band with batch size and replicas, inside the SLO."
    )
    parser.add_argument("--version", action="version", version=f"bandkeeper {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the operator")
    run.add_argument("--config", type=Path, required=True, help="YAML file with the operator's settings")
    run.add_argument("--kubeconfig", help="kubeconfig file; default: the pod's service account, else ~/.kube/config")
    run.set_defaults(call=_run)
    agent.add_parser(commands)
    simulate.add_parser(commands)
    bench.add_parser(commands)
    replay.add_parser(commands)
    explain.add_parser(commands)
    profile.add_parser(commands)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    import asyncio

    from bandkeeper.runtime import app, logs, settings

    try:
        configuration = settings.load(arguments.config)
    except settings.SettingsError as error:
        print(f"bandkeeper: {error}", file=sys.stderr)
        return 2
    logs.configure(configuration.log_format, configuration.log_level)
    return asyncio.run(app.run(configuration, kubeconfig=arguments.kubeconfig))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: the command line, a file or the installation is wrong)."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.call(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OF_THE_LAB:
            raise
        print("bandkeeper: the lab is not installed: pip install 'bandkeeper[lab]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status
