"""The batch knob live: emulated servers on a real control plane and Prometheus, one operator, three cases at once.

`python tests/bench/bench_knob.py` takes nine minutes and prints the tables of docs/ablation.md. Every case is played
to a fleet whose policy has `batch`, and to fleets that boot with one fixed cap and have a policy of replicas only. All
get the same requests. Cold starts, windows and delays are seconds where they are minutes elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from tests.bench.bench_ablation import percent
from tests.cluster import eventually
from tests.stack import Stack

Json = dict[str, Any]

NAMESPACE = "knob"
WARM_UP_S, JUDGED_S = 165, 300  # the first doubling, which nothing foretold, is in the warm-up
COLD_START_S = 15
NODES, GPUS_PER_NODE = 30, 8
LATE_S = 1.0
SETTINGS: Json = {"period": "1s", "restartHold": "5s", "prometheus": {"rateWindow": "10s"}}
LEDGERS = {"TimeToFirstToken": "ttft_s", "InterTokenLatency": "itl_s", "EndToEndLatency": "e2e_s"}
EDGES_S = (
    *(0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06, 0.065, 0.07, 0.08, 0.09, 0.11, 0.12, 0.15, 0.2, 0.3, 0.5),
    *(0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 20.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Servers, what is promised of them, and the load. `caps` may be set; the last one is what a server boots with.

    `promises` are thresholds in seconds by signal, for 95 of 100; `points` of the load are seconds and requests/s.
    """

    name: str
    runtime: str
    server: Json
    tokens: Json
    promises: Mapping[str, float]
    caps: tuple[int, ...]
    fixed: tuple[int, ...]
    points: tuple[tuple[float, float], ...]
    replicas: int = 4
    most: int = 14

    @property
    def load(self) -> Json:
        return {"kind": "linear", "seed": 7, "points": self.points, "repeat": True}


def doubling(low: float) -> tuple[tuple[float, float], ...]:
    """Twice as much for a minute, and as much again, every 150 s."""
    return (0, low), (60, low), (75, 2 * low), (135, 2 * low), (150, low)


def bursts(low: float, high: float) -> tuple[tuple[float, float], ...]:
    """Every 40 s a burst of 14 s: shorter than a cold start."""
    return (0, low), (25, low), (26, high), (39, high), (40, low)


CASES = (
    # ResNet-50 on an A100 (the preset resnet50-a100), a hundred times slower: most throughput, 28.6/s, at 32.
    Case(
        name="dynamic",
        runtime="Triton",
        server={"preset": "resnet50-a100", "time_scale": 100, "max_delay_ms": 100, "summaries": True, "max_queue": 80},
        tokens={},
        promises={"EndToEndLatency": 2.5},
        caps=(8, 16, 32, 64, 128),
        fixed=(8, 16, 32, 64, 128),
        points=doubling(115),
        replicas=5,
    ),
    # A full batch of 64 takes 63 ms a step, more than promised; five replicas are all there are. Batches of 48 take
    # 54 ms and do 45 requests/s, so that the rest of a burst waits for about a second.
    Case(
        name="decode-heavy",
        runtime="VLLM",
        server={
            "alpha_ms": 25.0,
            "beta_ms": 0.6,
            "gamma_ms": 0.3,
            "delta_ms_per_token": 0.01,
            "kv_tokens": 60_000,
            "max_queue": 16,
        },
        tokens={"prompt": {"kind": "fixed", "value": 64}, "output": {"kind": "fixed", "value": 100}},
        promises={"TimeToFirstToken": 2.5, "InterTokenLatency": 0.055},
        caps=(16, 24, 32, 40, 48, 64),
        fixed=(32, 40, 48, 64),
        points=bursts(20, 48),
        most=5,
    ),
    # Prompts make tokens late, not full batches: 21 + .41 b ms a step, and 55 ms more with the prefill of one prompt.
    Case(
        name="prefill-heavy",
        runtime="VLLM",
        server={
            "alpha_ms": 20.58,
            "beta_ms": 0.41,
            "gamma_ms": 5.2,
            "delta_ms_per_token": 0.1,
            "kv_tokens": 120_000,
            "max_queue": 64,
        },
        tokens={"prompt": {"kind": "fixed", "value": 500}, "output": {"kind": "fixed", "value": 40}},
        promises={"TimeToFirstToken": 1.0, "InterTokenLatency": 0.1},
        caps=(16, 24, 32, 48, 64),
        fixed=(16, 32, 64),
        points=doubling(36),
    ),
)


@dataclass(frozen=True, slots=True)
class Fleet:
    """One Deployment with its policy: `fixed` is the cap that it boots with and keeps, None where the knob is used."""

    case: Case
    fixed: int | None = None

    @property
    def name(self) -> str:
        return f"{self.case.name}-{'joint' if self.fixed is None else self.fixed}"

    @property
    def boots(self) -> str:
        return str(self.fixed or self.case.caps[-1])

    @property
    def workload(self) -> Json:
        case = self.case
        edges = {f"{name}_s": sorted({*EDGES_S, *case.promises.values()}) for name in ("ttft", "itl", "request")}
        return {
            "name": self.name,
            "namespace": NAMESPACE,
            "kind": "dynamic" if case.runtime == "Triton" else "continuous",
            "selector": {"app": self.name},
            "server": {"capacity": case.caps[-1], "cap_delay_s": 3, **case.server},
            "load": case.load,
            "buckets": edges,
            **({"tokens": case.tokens} if case.tokens else {}),
        }

    @property
    def policy(self) -> Json:
        caps = list(self.case.caps)
        knob = {"min": caps[0], "max": caps[-1], "candidates": caps, "adapter": {"type": "Annotation"}}
        slos = [
            {"signal": signal, "percentile": 95, "threshold": f"{1000 * seconds:g}ms", "window": "15s"}
            for signal, seconds in self.case.promises.items()
        ]
        return {
            "apiVersion": "bandkeeper.dev/v1alpha1",
            "kind": "GPUScalingPolicy",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name},
                "objective": "LatencySensitive",
                "runtime": self.case.runtime,
                "slos": slos,
                "replicas": {"min": 1, "max": self.case.most},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 20}},
                **({"batch": knob} if self.fixed is None else {}),
            },
        }

    def deploy(self, stack: Stack) -> None:
        stack.deploy(
            self.name,
            replicas=self.case.replicas,
            annotations={"bandkeeper.dev/load-time": f"{COLD_START_S}s", "bandkeeper.dev/drain-time": "2s"},
            args=["--max-num-seqs", self.boots],
            env={"MAX_BATCH_SIZE": self.boots, "MAX_NUM_SEQS": self.boots},
        )
        stack.apply_policy(self.policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of a fleet in the judged time: shares within each promise (refused requests are misses), GPU-seconds,
    requests refused, moves of either knob, the cap at its end, and why the last moves of it were made.
    """

    case: str
    variant: str
    kept: tuple[float, ...]
    gpu_s: float
    arrived: int
    refused: int
    scale_moves: int
    cap_moves: int
    cap: int
    caps_moved: tuple[str, ...] = ()

    @property
    def keeps(self) -> bool:
        return all(share >= 0.95 for share in self.kept)


def fleets(cases: Sequence[Case]) -> Iterator[Fleet]:
    for case in cases:
        yield Fleet(case)
        yield from (Fleet(case, cap) for cap in case.fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What was counted of a fleet until some moment: the emulator's ledger, and the operator's moves of each knob."""

    ledger: Json
    scale_moves: int
    cap_moves: int
    history: Sequence[Json]


def row(fleet: Fleet, before: Account, after: Account) -> Row:
    """What is between two accounts."""
    was, now = before.ledger, after.ledger
    refused = sum(now[key] - was[key] for key in ("rejected", "failed"))
    answered = now["succeeded"] - was["succeeded"]
    kept = []
    for signal, limit_s in fleet.case.promises.items():
        first, last = (within(ledger[LEDGERS[signal]], limit_s) for ledger in (was, now))
        share = (last[0] - first[0]) / max(1, last[1] - first[1])
        kept.append(share if signal == "InterTokenLatency" else share * answered / max(1, answered + refused))
    return Row(
        case=fleet.case.name,
        variant="joint" if fleet.fixed is None else f"cap {fleet.fixed}",
        kept=tuple(kept),
        gpu_s=now["pod_s"] - was["pod_s"],
        arrived=now["arrived"] - was["arrived"],
        refused=refused,
        scale_moves=after.scale_moves - before.scale_moves,
        cap_moves=after.cap_moves - before.cap_moves,
        cap=max((pod["cap"] for pod in now["pods"] if pod["ready"]), default=0),
        caps_moved=tuple(f"{one['time']} {one['message']}" for one in after.history if "fromBatchCap" in one),
    )


def within(histogram: Json, limit_s: float) -> tuple[int, int]:
    """Observations at or below a bucket's edge, and all."""
    return next(seen for edge, seen in histogram["buckets"] if edge == limit_s), histogram["count"]


def tables(rows: Sequence[Row]) -> str:
    """Markdown, one table a case."""
    parts = []
    for case in dict.fromkeys(one.case for one in rows):
        head = (case, "within the promises, %", "GPU-s", "refused", "replica moves", "cap moves")
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for one in rows:
            if one.case == case:
                shares = " / ".join(map(percent, one.kept))
                shown = f"**{shares}**" if one.keeps else shares
                name = f"{one.variant}, at the end {one.cap}" if one.variant == "joint" else one.variant
                figures = (name, shown, f"{one.gpu_s:.0f}", one.refused, one.scale_moves, one.cap_moves)
                lines.append("| " + " | ".join(map(str, figures)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def play(cases: Sequence[Case]) -> list[Row]:
    """All fleets at once, after a warm-up."""
    members = list(fleets(cases))
    emulator = {"workloads": [one.workload for one in members], "dcgm": {"period_s": 5}}
    with Stack(
        emulator=emulator, nodes=NODES, gpus_per_node=GPUS_PER_NODE, namespace=NAMESPACE, settings=SETTINGS
    ) as stack:
        for one in members:
            one.deploy(stack)
        for one in members:
            stack.wait_ready(one.name, one.case.replicas)
        operator = stack.start_operator()
        eventually(operator.ready, timeout_s=30, what="the operator ready")
        for one in members:
            stack.load(one.name, one.case.load)
        _wait(WARM_UP_S, "warm-up")
        before = _accounts(stack, members)
        _wait(JUDGED_S, "judged")
        after = _accounts(stack, members)
        lag_s = stack.emulator_health()["worst_lag_s"]
        if lag_s > LATE_S:
            print(f"This machine was too busy: the emulated servers were up to {lag_s:.1f} s late.", file=sys.stderr)
        return [row(one, before[one.name], after[one.name]) for one in members]


def _accounts(stack: Stack, members: Sequence[Fleet]) -> dict[str, Account]:
    ledgers = {one.name: stack.ledger(one.name) for one in members}
    scalings, batch_changes = (_counts(stack, f"bandkeeper_{what}_total") for what in ("scalings", "batch_changes"))
    return {
        name: Account(
            ledger=ledger,
            scale_moves=scalings.get(name, 0),
            cap_moves=batch_changes.get(name, 0),
            history=stack.policy(name).get("status", {}).get("history", ()),
        )
        for name, ledger in ledgers.items()
    }


def _counts(stack: Stack, metric: str) -> dict[str, int]:
    found = stack.prometheus.query(f"sum by (policy) ({metric})")
    return {one["metric"]["policy"]: int(float(one["value"][1])) for one in found}


def _wait(seconds: float, what: str) -> None:
    print(f"{what}: {seconds} s", file=sys.stderr, flush=True)
    time.sleep(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="only cases whose name has this in it")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cases = [case for case in CASES if given.cases in case.name]
    if not cases:
        parser.error(f"no case has {given.cases!r} in its name; there are: {', '.join(case.name for case in CASES)}")
    rows = play(cases)
    print(tables(rows))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
