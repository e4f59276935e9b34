"""What the lab's commands are given, checked: a policy, a load and a server. The arguments are in `arguments`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bandkeeper.api.v1alpha1 import KIND, AdapterType, Mode, Spec
from bandkeeper.api.validation import validate
from bandkeeper.decide.policy import Batching, CostClass, Policy, PolicyError, resolve
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.rules.rule import Setting
from bandkeeper.lab.server import ContinuousServer, DynamicServer, Server, ServerError, load
from bandkeeper.lab.workloads import LoadError, scale, synthetic, traces
from bandkeeper.signals.collector import CollectorSettings
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.problems import problems
from bandkeeper.signals.prometheus import PrometheusServer

DEFAULT_SERVERS: Mapping[Batching, str] = {
    Batching.CONTINUOUS: "llama-3.1-8b-h100",
    Batching.DYNAMIC: "resnet50-a100",
    Batching.UNKNOWN: "llama-3.1-8b-h100",
}
DEFAULT_SLOWDOWN = 20.0
"""The default dynamic-batching server takes thousands of requests a second: slowed, an hour of them stays small."""
ADAPTERS: Mapping[AdapterType, tuple[CostClass, float]] = {
    AdapterType.ANNOTATION: (CostClass.EVENTUAL, 90.0),
    AdapterType.POD_TEMPLATE: (CostClass.ROLLOUT, 300.0),
    AdapterType.HTTP: (CostClass.LIVE, 1.0),
    AdapterType.CONFIG_MAP: (CostClass.EVENTUAL, 120.0),
}
"""Cost class and expected delay in seconds of each batch adapter, as the adapters themselves declare them."""
STDIN = Path("-")
_ANY_PROMETHEUS = CollectorSettings(servers=(PrometheusServer(name="default", url="http://127.0.0.1:9090"),))


class InputError(ValueError):
    """An argument or a file cannot be used; the text says what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a run is made of; `remarks` are sentences for the person who asked for it."""

    policy_name: str
    server_name: str
    spec: Spec
    setting: Setting
    start: int | None
    warmup_s: float
    seed: int
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """A policy as it was read, with its defaults resolved; `status` as it stands there, empty of one never applied."""

    name: str
    namespace: str
    spec: Spec
    policy: Policy
    status: Mapping[str, Any]
    remarks: tuple[str, ...]


def read(arguments: argparse.Namespace) -> Inputs:
    """Everything that the arguments name, checked. Raises InputError."""
    found = read_policy(arguments.policy)
    server_name, server, remarks = _server(arguments.server, found)
    requests = _requests(arguments, server, found.policy.max_replicas)
    return Inputs(
        policy_name=found.name,
        server_name=server_name,
        spec=found.spec,
        setting=Setting(policy=found.policy, server=server, requests=requests),
        start=arguments.start,
        warmup_s=arguments.warmup,
        seed=arguments.seed,
        remarks=(*found.remarks, *_of_simulation(found.spec), *remarks),
    )


def read_policy(path: Path) -> PolicyFile:
    """The first GPUScalingPolicy of a file, `-` is standard input, judged as `kubectl apply` and the operator would.

    Raises
    ------
    InputError
        The file cannot be read or holds none, or the policy is not valid.
    """
    if path == STDIN:
        return policy_of(sys.stdin.read(), "standard input")
    try:
        return policy_of(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give an existing file with --policy") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text in UTF-8; give a policy in YAML with --policy") from None


def policy_of(text: str, path: str) -> PolicyFile:
    """The first GPUScalingPolicy of a text that came from `path`. Raises InputError."""
    policies = _policies(text, path)
    document = policies[0]
    metadata = document.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    name, namespace = (str(known.get(field) or "") for field in ("name", "namespace"))
    spec = validate(document)
    if not isinstance(spec, Spec):
        listed = "".join(f"\n* {problem}" for problem in spec)
        raise InputError(f'{path}: the {KIND} "{name}" is invalid:{listed}')
    wrong = problems(spec.model_copy(update={"prometheus": None}), _ANY_PROMETHEUS)
    if wrong:
        raise InputError(f'{path}: the {KIND} "{name}" cannot be carried out: {wrong[0].message}')
    preset = PRESETS[spec.runtime]
    cost_class, delay_s = ADAPTERS[spec.batch.adapter.type] if spec.batch is not None else (None, 0.0)
    try:
        policy = resolve(
            spec,
            batching=preset.batching,
            default_capacity=preset.default_capacity,
            cost_class=cost_class,
            expected_delay_s=delay_s,
        )
    except PolicyError as error:
        raise InputError(f'{path}: the {KIND} "{name}": {error}') from None
    several = f"{path} has {len(policies)} policies; this is about the first one."
    return PolicyFile(
        name=name,
        namespace=namespace,
        spec=spec,
        policy=policy,
        status=document.get("status") or {},
        remarks=(several,) if len(policies) > 1 else (),
    )


def _policies(text: str, path: str) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML: {error}") from None
    kinds, policies = [], []
    for document in _flat(documents):
        kind = document.get("kind") if isinstance(document, dict) else None
        kinds.append(str(kind))
        if kind == KIND:
            policies.append(document)
    if not policies:
        holds = f"it holds {', '.join(kinds)}" if kinds else "it is empty"
        raise InputError(f"{path}: has no {KIND} ({holds}); see examples/ for one")
    return policies


def _flat(documents: list[Any]) -> Iterator[Any]:
    """The documents, those inside of a `kind: List` too."""
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List":
            yield from document.get("items") or ()
        elif document is not None:
            yield document


def _of_simulation(spec: Spec) -> Iterator[str]:
    if spec.mode is Mode.RECOMMEND:
        yield "The policy only recommends (mode: Recommend); here its decisions are carried out."
    if spec.signals:
        yield "spec.signals is not used: the simulated servers export what the runtime's preset reads."


def _server(asked: str | None, found: PolicyFile) -> tuple[str, Server, list[str]]:
    """The server's name, itself, and what to say of it."""
    batching, runtime = found.policy.batching, found.spec.runtime
    if asked is None:
        name, server, remark = _default_server(batching, runtime)
        remarks = [remark]
    else:
        name, server, remarks = asked, read_server(asked), []
    if batching is not Batching.UNKNOWN and (batching is Batching.DYNAMIC) != isinstance(server, DynamicServer):
        raise InputError(
            f"server {name} does not do the {batching.lower()} batching of the policy's runtime {runtime}: "
            f"give another --server, such as {DEFAULT_SERVERS[batching]}"
        )
    control = found.policy.batch
    if control is not None and server.cap_delay_s < control.expected_delay_s:
        server = server.model_copy(update={"cap_delay_s": control.expected_delay_s})
    return name, server, remarks


def _default_server(batching: Batching, runtime: str) -> tuple[str, Server, str]:
    name = DEFAULT_SERVERS[batching]
    server = read_server(name)
    remark = f"Server: {name}, the default for runtime {runtime}; give another with --server."
    if isinstance(server, ContinuousServer):
        return name, server, remark
    slowed = server.model_copy(update={"time_scale": DEFAULT_SLOWDOWN * server.time_scale})
    how = f"slowed {DEFAULT_SLOWDOWN:g} times"
    return (
        f"{name} ({how})",
        slowed,
        f"Server: {name} {how}, the default for runtime {runtime}; give another with --server.",
    )


def read_server(name: str) -> Server:
    """A server by its preset or file. Raises InputError."""
    try:
        return load(name)
    except ServerError as error:
        raise InputError(str(error)) from None


def _requests(arguments: argparse.Namespace, server: Server, max_replicas: int) -> Requests:
    try:
        if arguments.trace is not None:
            requests = traces.read(arguments.trace, skip_bad=arguments.skip_bad)
        else:
            requests = synthetic.make(arguments.load, server, seed=arguments.seed, max_replicas=max_replicas)
        return scale.rescale(requests, arguments.rate_scale, arguments.seed)
    except LoadError as error:
        raise InputError(str(error)) from None
