"""The arguments that the lab's commands share. Nothing heavy is imported here: every command line is parsed with it."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path


class ArgumentError(ValueError):
    """An argument cannot be used; the text says what to write instead."""


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The arguments that simulate and bench share."""
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="GPUScalingPolicy in YAML or JSON")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument(
        "--load", metavar="NAME[:KEY=VALUE,..]", help="synthetic load, such as ramp; an unknown name lists all of them"
    )
    load.add_argument("--trace", type=Path, metavar="FILE", help="recorded load: Azure LLM, BurstGPT, Mooncake, times")
    parser.add_argument("--rate-scale", type=positive, default=1.0, metavar="N", help="requests come N times")
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count a trace's bad rows")
    parser.add_argument("--server", metavar="PRESET|FILE", help="model server (default: by the policy's runtime)")
    parser.add_argument(
        "--start", type=_count, metavar="N", help="replicas at the start (default: 1.2 x the warm-up's busiest minute)"
    )
    parser.add_argument(
        "--warmup", type=seconds, default=900.0, metavar="SECONDS", help="time that does not count (default: 900)"
    )
    parser.add_argument(
        "--seed", type=_seed, default=1, metavar="N", help="of the load and of cold starts (default: 1)"
    )


def check_writable(path: Path) -> None:
    """Find out now, rather than after the run, whether a file can be written. Raises ArgumentError."""
    if path.is_dir():
        raise ArgumentError(f"{path} is a directory: give the name of a file")
    if not path.parent.is_dir():
        raise ArgumentError(f"{path} cannot be written: there is no directory {path.parent}; make it, or name another")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentError(f"{path} cannot be written: permission denied; name a file that you may write")


def _number(least: float, what: str, *, above: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or (above and value <= least):
            raise argparse.ArgumentTypeError(f"{text!r} must be {what}")
        return value

    return parse


positive = _number(0.0, "a number above 0, such as 4", above=True)
seconds = _number(0.0, "seconds, 0 or more, such as 900")


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more")
        return int(text)

    return parse


_count, _seed = _whole(1), _whole(0)
