"""`bandkeeper profile`: a model server of the lab as the profile of a policy."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bandkeeper.lab.server import ContinuousServer, Server

TOKENS = (1155.0, 211.0)  # the mean request of the Azure conversation trace of 2023
MOST_SIZES = 16


def add_parser(commands: Any) -> None:
    """The command and its arguments."""
    parser = commands.add_parser("profile", help="print a model server of the lab as spec.profile of a policy")
    parser.add_argument("server", metavar="PRESET|FILE", help="an unknown name lists the presets")
    parser.add_argument(
        "--tokens",
        type=_tokens,
        default=TOKENS,
        metavar="PROMPT:OUTPUT",
        help="of a mean request, whose context is in the step times (default: 1155:211)",
    )
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    import yaml

    from bandkeeper.cli import inputs

    try:
        server = inputs.read_server(arguments.server)
    except inputs.InputError as error:
        print(f"bandkeeper: {error}", file=sys.stderr)
        return 2
    print(f"# {server.model} on {server.gpu}: {server.source}")
    print(yaml.safe_dump({"profile": profile_of(server, *arguments.tokens)}, sort_keys=False), end="")
    return 0


def profile_of(server: Server, prompt_tokens: float, output_tokens: float) -> dict[str, Any]:
    """The profile as a policy has it, for requests of these mean lengths."""
    from bandkeeper.lab.server import ContinuousServer

    if isinstance(server, ContinuousServer):
        return _steps(server, prompt_tokens, output_tokens)
    sizes = [size for size in sorted(server.batch_ms) if size <= server.batch_max] or [1]
    kept = sorted({sizes[round(place * (len(sizes) - 1) / (MOST_SIZES - 1))] for place in range(MOST_SIZES)})
    return {"batchTimes": [{"size": size, "milliseconds": _text(1000 * server.times_s[size])} for size in kept]}


def _steps(server: ContinuousServer, prompt_tokens: float, output_tokens: float) -> dict[str, Any]:
    """What grows with context is counted to the requests, what a prefill costs once to its tokens."""
    context = prompt_tokens + output_tokens / 2
    times = {
        "alphaMilliseconds": server.alpha_ms,
        "betaMilliseconds": server.beta_ms + server.kappa_ms_per_ktoken * context / 1000,
        "deltaMilliseconds": server.delta_ms_per_token + server.gamma_ms / prompt_tokens,
    }
    told = {name: _text(value) for name, value in times.items() if float(_text(value)) > 0}
    return {**told, "kvTokens": server.kv_tokens}


def _text(milliseconds: float) -> str:
    return f"{milliseconds:.6f}".rstrip("0").rstrip(".")


def _tokens(text: str) -> tuple[float, float]:
    prompt, _, output = text.partition(":")
    try:
        lengths = float(prompt), float(output)
    except ValueError:
        lengths = 0.0, 0.0
    if not all(1 <= length <= 1e7 for length in lengths):
        raise argparse.ArgumentTypeError(f"{text!r} must be tokens of prompt and output, such as 1155:211")
    return lengths
