"""`bandkeeper explain`: what a policy would choose at another load, and what latencies the model expects around it."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bandkeeper.cli import arguments as shared

if TYPE_CHECKING:
    from bandkeeper.api.v1alpha1 import Spec, Status
    from bandkeeper.cli.inputs import PolicyFile
    from bandkeeper.decide.decision import Learned
    from bandkeeper.lab.changes import Changes
    from bandkeeper.lab.whatif import Known, Money, TokenGap, WhatIf
    from bandkeeper.model.latency import Traffic

STDOUT = "-"
ASK = "load=2x, load=40/s, prompt=2x, output=200, replicas=8 or cap=64; several with commas or repeated"


def add_parser(commands: Any) -> None:
    """The command and its arguments."""
    parser = commands.add_parser("explain", help="show what a policy would choose at another load, and why")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a policy in the cluster, with what it learned")
    parser.add_argument("-n", "--namespace", default="default", metavar="NAME", help="of NAME (default: default)")
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: KUBECONFIG, ~/.kube/config, or the pod's own")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="in place of NAME: as kubectl get -o yaml prints it; - is a pipe"
    )
    parser.add_argument("--what-if", action="append", default=[], metavar="KEY=VALUE", help=ASK)
    parser.add_argument(
        "--server", metavar="PRESET|FILE", help="go by the lab's model server instead of what was learned"
    )
    parser.add_argument("--traffic", metavar="RATE/s:PROMPT:OUTPUT", help="such as 12/s:1000:180, instead of what came")
    parser.add_argument(
        "--gpus", type=shared.positive, metavar="N", help="GPUs of one replica (default: as seen, or 1)"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything for machines there; - is standard output")
    parser.add_argument("--report", type=Path, metavar="FILE", help="draw the grid, as .html or .png")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask the model, and say what it says."""
    from bandkeeper.cli import inputs
    from bandkeeper.lab import changes, whatif
    from bandkeeper.lab.report.whatif import summary
    from bandkeeper.lab.result import to_json

    try:
        written = (arguments.report, Path(arguments.json) if arguments.json not in (None, STDOUT) else None)
        for path in filter(None, written):
            shared.check_writable(path)
        asked = changes.parse(arguments.what_if)
        found = _policy(arguments)
        known, gpus = _known(arguments, found, asked)
        money = money_of(found.spec, arguments.gpus or gpus)
        result = whatif.answer(found.policy, known, asked, name=found.name, money=money)
    except (inputs.InputError, changes.ChangeError, whatif.WhatIfError, shared.ArgumentError) as error:
        print(f"bandkeeper: {error}", file=sys.stderr)
        return 2
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    if arguments.json == STDOUT:
        sys.stdout.write(to_json(result))
    else:
        print(summary(result))
        if arguments.json:
            Path(arguments.json).write_text(to_json(result), encoding="utf-8")
            print(f"JSON: {arguments.json}")
    if arguments.report:
        _draw(result, arguments.report)
        print(f"Report: {arguments.report}", file=sys.stderr if arguments.json == STDOUT else sys.stdout)
    return 0


def money_of(spec: Spec, gpus: float) -> Money:
    """What a replica costs."""
    from bandkeeper.lab.whatif import Money

    if spec.cost is None:
        return Money(gpus=gpus)
    return Money(gpus=gpus, per_gpu_hour=float(spec.cost.price_per_gpu_hour), currency=spec.cost.currency)


def _draw(result: WhatIf, path: Path) -> None:
    if path.suffix == ".png":
        from bandkeeper.lab.report import figures

        figures.png_whatif(result, path)
    else:
        from bandkeeper.lab.report import whatif_page

        whatif_page.write(result, path)


def _policy(arguments: argparse.Namespace) -> PolicyFile:
    from bandkeeper.cli import inputs

    if (arguments.name is None) == (arguments.policy is None):
        raise shared.ArgumentError("say which policy: NAME of one in the cluster, or --policy FILE; - is a pipe")
    if arguments.policy is not None:
        return inputs.read_policy(arguments.policy)
    return inputs.policy_of(json.dumps(asyncio.run(_fetched(arguments))), arguments.name)


async def _fetched(arguments: argparse.Namespace) -> Any:
    from bandkeeper.api.v1alpha1 import GROUP, PLURAL, VERSION
    from bandkeeper.kube.client import ApiError, KubeClient

    name, namespace = arguments.name, arguments.namespace
    try:
        async with await KubeClient.connect(arguments.kubeconfig) as client:
            return await client.get(f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}")
    except ApiError as error:
        raise shared.ArgumentError(f"{name} in namespace {namespace} cannot be read: {error}") from None


def _known(arguments: argparse.Namespace, found: PolicyFile, asked: Changes) -> tuple[Known, float]:
    """What to predict by, and the GPUs of a replica."""
    from bandkeeper.decide.policy import Batching
    from bandkeeper.lab import changes, whatif
    from bandkeeper.runtime.report import readable
    from bandkeeper.runtime.resume import learned_of

    if found.policy.batching is Batching.DYNAMIC:
        raise whatif.WhatIfError(
            f"{found.spec.runtime} batches dynamically, and only continuous batching is predicted: try the load with "
            "bandkeeper simulate"
        )
    status = readable(found.status)
    traffic = changes.parse_traffic(arguments.traffic) if arguments.traffic else None
    learned = learned_of(status.model, wall_s=0.0) if status.model else None
    replicas = status.replicas.current if status.replicas else None
    if arguments.server is not None:
        return _of_server(arguments.server, found, traffic or _seen(learned), asked, replicas)
    if learned is None:
        raise whatif.WhatIfError(_why_not(found, status))
    cap = status.batch.desired if status.batch else None
    capacity = status.batch.capacity if status.batch else None
    known = whatif.of_learned(
        found.policy,
        learned,
        source=f"{found.name}'s own load",
        traffic=traffic,
        replicas=replicas,
        cap=cap,
        capacity=capacity,
        gap=_token_gap(status),
    )
    return known, _gpus(status)


def _token_gap(status: Status) -> TokenGap | None:
    """Where a promise has it measured; the bucket that holds it says how well."""
    from bandkeeper.api import durations
    from bandkeeper.api.signals import Signal
    from bandkeeper.lab.whatif import TokenGap

    for slo in status.slos:
        if slo.signal != Signal.INTER_TOKEN_LATENCY or slo.measured is None:
            continue
        try:
            least_s = durations.parse(slo.lower_bound or slo.measured)
            most_s = math.inf if slo.upper_bound == "+Inf" else durations.parse(slo.upper_bound or slo.measured)
        except ValueError:
            continue
        return TokenGap(percentile=slo.percentile, least_s=least_s, most_s=most_s)
    return None


def _seen(learned: Learned | None) -> Traffic | None:
    from bandkeeper.model.latency import Traffic

    seen = learned.seen if learned else None
    return Traffic(seen.requests_per_s, seen.prompt_tokens, seen.output_tokens) if seen else None


def _of_server(
    name: str, found: PolicyFile, traffic: Traffic | None, asked: Changes, replicas: int | None
) -> tuple[Known, float]:
    from bandkeeper.cli import inputs
    from bandkeeper.lab import whatif
    from bandkeeper.lab.server import ContinuousServer

    server = inputs.read_server(name)
    if not isinstance(server, ContinuousServer):
        raise whatif.WhatIfError(f"{name} batches dynamically, and only continuous batching is predicted: try simulate")
    if traffic is None:
        raise whatif.WhatIfError(
            f"--server {name} needs to be told what comes: give --traffic, requests per second and the tokens of one "
            "request, such as --traffic 12/s:1000:180"
        )
    return whatif.of_server(found.policy, server, traffic, asked, source=name, replicas=replicas), float(server.gpus)


def _why_not(found: PolicyFile, status: Status) -> str:
    """What to do where nothing was learned."""
    instead = "or say what the servers are like with --server PRESET --traffic RATE/s:PROMPT:OUTPUT"
    name = found.name or "NAME"
    if status.model is not None:
        return f"status.model of {name} is of another version than this bandkeeper: use the operator's, {instead}"
    if not status.conditions:
        return (
            f"{name} has no status, as one that was not applied yet: pipe what the cluster has, kubectl get gsp {name} "
            f"-o yaml | bandkeeper explain --policy -, {instead}"
        )
    return (
        f"nothing was learned of {name} yet (it has no status.model): that takes servers that tell their tokens, as "
        f"vLLM and SGLang do, and some minutes of traffic; look again then, {instead}"
    )


def _gpus(status: Status) -> float:
    """GPUs of a replica as the status has them, else 1."""
    wasted = status.quality.wasted if status.quality else None
    ready = status.replicas.ready if status.replicas else None
    try:
        return float(wasted.gpus) / ready if wasted and ready else 1.0
    except ValueError:
        return 1.0
