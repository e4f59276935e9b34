"""Parse the command line and hand over; what a command does lives in its own room."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from bandkeeper import __version__
from bandkeeper.runtime import app, logs, settings


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
    return parser


def _run(arguments: argparse.Namespace) -> int:
    try:
        configuration = settings.load(arguments.config)
    except settings.SettingsError as error:
        print(f"bandkeeper: {error}", file=sys.stderr)
        return 2
    logs.configure(configuration.log_format, configuration.log_level)
    return asyncio.run(app.run(configuration, kubeconfig=arguments.kubeconfig))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: the command line or the configuration is wrong)."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.call(arguments)
    return status
