"""`bandkeeper agent`: read this node's GPUs and serve their figures."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from bandkeeper import __version__
from bandkeeper.api import durations

LEAST_INTERVAL_S = 0.2
SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")


def add_parser(commands: Any) -> None:
    """The command and its arguments."""
    parser = commands.add_parser("agent", help="export this node's GPU figures, by NVML and GPM, with their pods")
    parser.add_argument(
        "--listen",
        type=_address,
        default=("0.0.0.0", 9460),
        metavar="HOST:PORT",
        help="where /metrics, /readyz and /healthz are served (default: 0.0.0.0:9460)",
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        default=1.0,
        metavar="SECONDS",
        help="between two passes over the GPUs (default: 1)",
    )
    parser.add_argument(
        "--window",
        type=_interval,
        default=15.0,
        metavar="TIME",
        help="over which ratios, rates, power and clocks are averaged; best the scrape interval (default: 15s)",
    )
    parser.add_argument(
        "--pod-resources", type=Path, default=SOCKET, metavar="SOCKET", help=f"the kubelet's socket (default: {SOCKET})"
    )
    parser.add_argument(
        "--pods-interval",
        type=_interval,
        default=10.0,
        metavar="TIME",
        help="between two questions to it (default: 10s)",
    )
    parser.add_argument("--no-pods", action="store_true", help="do not ask which pod holds which GPU")
    parser.add_argument(
        "--without-gpu",
        choices=("stay", "exit"),
        default="stay",
        help="where no GPU was ever seen: stay ready and look again, or end with status 0 (default: stay)",
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.set_defaults(call=run)


def _interval(text: str) -> float:
    try:
        seconds = durations.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds < LEAST_INTERVAL_S:
        raise argparse.ArgumentTypeError(
            f"{text} is too short: GPM needs samples more than 100 ms apart; from 200ms on"
        )
    return seconds


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9460")
    return host.strip("[]"), int(port)


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped. Status 0: stopped, or no GPU with `exit`; 2: cannot start; 3: the driver was replaced."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else its C core writes lines of its own between ours
    try:
        from bandkeeper.agent import app, logs
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"grpc", "google"}:
            raise
        print("bandkeeper: the agent is not installed: pip install 'bandkeeper[agent]'", file=sys.stderr)
        return 2
    logs.configure(arguments.log_level)
    host, port = arguments.listen
    settings = app.Settings(
        host=host,
        port=port,
        interval_s=arguments.interval,
        window_s=max(arguments.window, arguments.interval),
        pod_resources=None if arguments.no_pods else arguments.pod_resources,
        pods_period_s=arguments.pods_interval,
        without_gpu=app.WithoutGPU(arguments.without_gpu),
    )
    try:
        return asyncio.run(app.Agent(settings, __version__).run())
    except OSError as error:
        print(f"bandkeeper: cannot listen on {host}:{port}: {error.strerror}", file=sys.stderr)
        return 2
