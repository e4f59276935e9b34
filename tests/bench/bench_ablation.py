"""What the batch knob, the band, quality and looking ahead are worth, each in eighteen cells of the simulated fleet.

`make bench`, or `python tests/bench/bench_ablation.py`; `--cells decode-heavy --seeds 1` runs a part of it. Prints the
tables of docs/ablation.md, with `--json` everything for machines, with `--files` the policies and servers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from bandkeeper.api.signals import Signal
from bandkeeper.cli import inputs
from bandkeeper.decide.policy import CostClass
from bandkeeper.decide.state import QualityMemory
from bandkeeper.lab.bench import BenchPoint, Comparison, Load, Mean, compare, goals_of, mean_of
from bandkeeper.lab.rules.bandkeeper import Rule
from bandkeeper.lab.rules.catalogue import OURS, RuleSource
from bandkeeper.lab.rules.rule import View, Want
from bandkeeper.lab.server import Server
from bandkeeper.model.outlook import NO_OUTLOOK

COLD_START_S = 90.0
LIVE_S = 5.0  # of an adapter that calls each pod; those that come with the operator take 90 s and more
OPEN_BAND = {"lowPercent": 92, "highPercent": 93}  # asks for nothing beyond what the model keeps free in any case
LOADS = {
    "shorter": "mmpp:low=3,high=9,calm_s=180,burst_s=45",
    "longer": "mmpp:low=3,high=9,calm_s=540,burst_s=300",
    "doubling": "waves:low=4,high=8,period_s=1200",
}
LOAD_S = 4500
RANKS = ("smallest", "second", "third", "fourth")
GPU_COUNTERS = frozenset(
    {
        Signal.GPU_UTILIZATION,
        Signal.GR_ENGINE_ACTIVE,
        Signal.SM_ACTIVE,
        Signal.TENSOR_ACTIVE,
        Signal.DRAM_ACTIVE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kind of work: the server, its promises, the lengths of requests, and the caps that the knob may set."""

    runtime: str
    server: dict[str, Any]
    slos: tuple[dict[str, Any], ...]
    lengths: dict[str, int]
    caps: tuple[int, ...]  # the last one is what the server boots with
    queue_bound: int


WORKS = {
    # 84 % of a replica's time is prefill. Chunks keep a stall below the promise on tokens; KV memory holds 52 requests.
    "prefill-heavy": Work(
        runtime="VLLM",
        server={
            "alpha_ms": 20.58,
            "beta_ms": 0.41,
            "gamma_ms": 5.2,
            "delta_ms_per_token": 0.1,
            "kappa_ms_per_ktoken": 0.05,
            "kv_tokens": 120_000,
            "prefill_chunk_tokens": 512,
        },
        slos=(
            {"signal": "TimeToFirstToken", "percentile": 95, "threshold": "2500ms"},
            {"signal": "InterTokenLatency", "percentile": 95, "threshold": "100ms"},
        ),
        lengths={"prompt_tokens": 2000, "output_tokens": 80},
        caps=(16, 24, 32, 48, 64),
        queue_bound=16,
    ),
    # A full batch of 64 takes 67 ms a step, more than promised; one of 32 takes 46 ms.
    "decode-heavy": Work(
        runtime="VLLM",
        server={
            "alpha_ms": 25.0,
            "beta_ms": 0.6,
            "gamma_ms": 5.2,
            "delta_ms_per_token": 0.1,
            "kappa_ms_per_ktoken": 0.1,
            "kv_tokens": 60_000,
            "prefill_chunk_tokens": 2048,
        },
        slos=(
            {"signal": "TimeToFirstToken", "percentile": 95, "threshold": "1s"},
            {"signal": "InterTokenLatency", "percentile": 95, "threshold": "50ms"},
        ),
        lengths={"prompt_tokens": 200, "output_tokens": 600},
        caps=(16, 24, 32, 48, 64),
        queue_bound=16,
    ),
    # ResNet-50 on an A100 (see the preset resnet50-a100), a hundred times slower: most throughput at a batch of 32.
    "dynamic": Work(
        runtime="Triton",
        server={
            "kind": "dynamic",
            "batch_ms": {1: 2.13, 2: 2.19, 4: 2.76, 8: 3.90, 16: 5.79, 32: 11.19, 64: 25.2, 128: 48.1},
            "max_delay_ms": 100,
            "time_scale": 100,
        },
        slos=({"signal": "EndToEndLatency", "percentile": 95, "threshold": "2500ms"},),
        lengths={},
        caps=(8, 16, 32, 64, 128),
        queue_bound=40,
    ),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of work, with or without a bound of the queue, under one of `LOADS`."""

    work: str
    bounded: bool
    shape: str

    @property
    def name(self) -> str:
        return f"{self.work}, {'bounded' if self.bounded else 'unbounded'}, {self.shape}"

    @property
    def load(self) -> str:
        more = {"duration_s": LOAD_S, **WORKS[self.work].lengths}
        return ",".join((LOADS[self.shape], *(f"{key}={value}" for key, value in more.items())))

    def server(self) -> dict[str, Any]:
        work = WORKS[self.work]
        document = {
            "model": self.work,
            "gpu": "any",
            "source": "made up for docs/ablation.md",
            **work.server,
            "batch_max": work.caps[-1],
            "cold_start": {"median_s": COLD_START_S, "spread": 0.1},
        }
        return {**document, "max_queue": work.queue_bound} if self.bounded else document

    def policy(self, variant: Variant, objective: str) -> dict[str, Any]:
        work, spec = WORKS[self.work], dict[str, Any]()
        if variant.batch:
            caps = list(work.caps)
            spec["batch"] = {"min": caps[0], "max": caps[-1], "candidates": caps, "adapter": {"type": "Annotation"}}
        if variant.open_band:
            spec["band"] = OPEN_BAND
        return {
            "apiVersion": "bandkeeper.dev/v1alpha1",
            "kind": "GPUScalingPolicy",
            "metadata": {"name": "ablation"},
            "spec": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ablation"},
                "objective": objective,
                "runtime": work.runtime,
                "slos": list(work.slos),
                "replicas": {"min": 1, "max": 32},
                **spec,
            },
        }


class WithoutQuality(Rule):
    """No GPU counters, and no memory of what more replicas brought."""

    def decide(self, view: View) -> Want:
        """One tick."""
        seen = {signal: values for signal, values in view.snapshot.by_pod.items() if signal not in GPU_COUNTERS}
        want = super().decide(replace(view, snapshot=replace(view.snapshot, by_pod=seen)))
        self._state = replace(self._state, quality=QualityMemory())
        return want


class WithoutOutlook(Rule):
    """No memory of how fast work rose: the fleet is kept ready for the present work only."""

    def decide(self, view: View) -> Want:
        """One tick."""
        want = super().decide(view)
        self._state = replace(self._state, model=replace(self._state.model, outlook=NO_OUTLOOK))
        return want


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy and what is taken from it. `fixed` is the cap that the server boots with instead of its own."""

    name: str
    batch: bool = False
    live: bool = False
    open_band: bool = False
    fixed: int | None = None
    rule: type[Rule] = Rule


REPLICAS, JOINT, LIVE = (
    Variant("replicas only"),
    Variant("joint", batch=True),
    Variant("joint, live", batch=True, live=True),
)
WITHOUT = (
    Variant("without outlook", batch=True, rule=WithoutOutlook),
    Variant("without quality", batch=True, rule=WithoutQuality),
    Variant("without band", batch=True, open_band=True),
)


@dataclass(frozen=True, slots=True)
class _Source(RuleSource):
    """Bandkeeper's own rule, or one that lacks a part of it."""

    rule: type[Rule] = field(default=Rule)

    def load(self) -> type[Rule]:
        return self.rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant in a cell: means over the seeds. `attainment` by position of the promises, `all_kept` by request."""

    cell: str
    variant: str
    all_kept: float | None
    attainment: tuple[float | None, ...]
    shortfall: float
    gpu_hours: float
    scale_actions: float
    batch_actions: float
    errors: float
    seeds: tuple[dict[str, float | None], ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One variant in one cell, with all seeds."""

    cell: Cell
    variant: Variant
    objective: str
    seeds: int
    folder: Path


def jobs(cells: Sequence[Cell], objective: str, seeds: int, folder: Path) -> Iterator[Job]:
    """Every variant of every cell."""
    for cell in cells:
        fixed = tuple(Variant(f"cap {cap}", fixed=cap) for cap in WORKS[cell.work].caps[:-1])
        for variant in (REPLICAS, *fixed, JOINT, LIVE, *WITHOUT):
            yield Job(cell, variant, objective, seeds, folder)


def run(job: Job) -> Row:
    """Simulate it, as `bandkeeper bench` would with the same files."""
    cell, variant = job.cell, job.variant
    name = f"{cell.name} {variant.name}".replace(", ", "-").replace(" ", "-")
    policy_file, server_file = job.folder / f"{name}-policy.yaml", job.folder / f"{name}-server.yaml"
    policy_file.write_text(yaml.safe_dump(cell.policy(variant, job.objective), sort_keys=False), encoding="utf-8")
    server_file.write_text(yaml.safe_dump(cell.server(), sort_keys=False), encoding="utf-8")
    drawn = {}
    for seed in range(1, job.seeds + 1):
        asked = argparse.Namespace(policy=policy_file, server=str(server_file), load=cell.load, trace=None, seed=seed)
        given = inputs.read(argparse.Namespace(**vars(asked), rate_scale=1.0, skip_bad=False, start=None, warmup=900.0))
        drawn[seed] = given.setting.requests
    policy, server = given.setting.policy, given.setting.server
    if variant.live and policy.batch is not None:
        control = replace(policy.batch, cost_class=CostClass.LIVE, expected_delay_s=LIVE_S)
        policy, server = replace(policy, batch=control), _changed(server, cap_delay_s=LIVE_S)
    if variant.fixed is not None:
        server = _changed(server, batch_max=variant.fixed)
    comparison = Comparison(
        policy=policy,
        policy_name=variant.name,
        server=server,
        server_name=cell.work,
        loads=(Load(cell.name, drawn),),
        rules=(_Source(OURS, rule=variant.rule),),
        goals=goals_of(policy, {}),
    )
    return _row(cell.name, variant.name, compare(comparison, workers=1).points, comparison.goals)


def _changed(server: Server, **changes: Any) -> Server:
    return server.model_copy(update=changes)


def _row(cell: str, variant: str, points: Sequence[BenchPoint], goals: Sequence[float]) -> Row:
    mean = Mean.of(points, goals)
    return Row(
        cell=cell,
        variant=variant,
        all_kept=mean_of([point.attainment_both for point in points]),
        attainment=mean.attainment,
        shortfall=mean.shortfall,
        gpu_hours=mean.gpu_hours,
        scale_actions=mean_of([point.scale_actions for point in points]) or 0.0,
        batch_actions=mean_of([point.batch_actions for point in points]) or 0.0,
        errors=mean_of([point.errors for point in points]) or 0.0,
        seeds=tuple({"all_kept": point.attainment_both, "gpu_hours": point.gpu_hours} for point in points),
    )


def best_fixed(rows: Sequence[Row]) -> Row:
    """The cheapest fixed cap, the server's own included, that keeps every promise; else what misses them by least."""
    fixed = [row for row in rows if row.variant == REPLICAS.name or row.variant.startswith("cap ")]
    return min(fixed, key=lambda row: (row.shortfall, row.gpu_hours))


def tables(rows: Sequence[Row]) -> str:
    """Markdown for docs/ablation.md."""
    cells = dict.fromkeys(row.cell for row in rows)
    by_name = {(row.cell, row.variant): row for row in rows}
    head: tuple[str, ...] = ("cell", REPLICAS.name, "best fixed cap", JOINT.name, "joint, live adapter", "cap moves")
    knob = [head, ("---",) * len(head)]
    for cell in cells:
        best = best_fixed([row for row in rows if row.cell == cell])
        cap = f" ({best.variant})" if best.variant.startswith("cap ") else " (its own)"
        one, joint, live = (by_name[cell, variant.name] for variant in (REPLICAS, JOINT, LIVE))
        moves = f"{joint.batch_actions:.0f}, {live.batch_actions:.0f}"
        knob.append((cell, shown(one), shown(best) + cap, shown(joint), shown(live), moves))
    head = ("cell", *(f"{rank} cap" for rank in RANKS))
    caps = [head, ("---",) * len(head)]
    for cell in cells:
        ranked = [row for row in rows if row.cell == cell and row.variant.startswith("cap ")]
        caps.append((cell, *(f"{row.variant.removeprefix('cap ')}: {shown(row)}" for row in ranked)))
    head = ("cell", JOINT.name, *(variant.name for variant in WITHOUT))
    kept = ((cell, *(shown(by_name[cell, variant.name]) for variant in (JOINT, *WITHOUT))) for cell in cells)
    parts = [head, ("---",) * len(head), *kept]
    return "\n\n".join("\n".join("| " + " | ".join(line) + " |" for line in table) for table in (knob, caps, parts))


def shown(row: Row) -> str:
    """Requests inside all promises, each promise, GPU-hours; bold where every promise is kept."""
    each = " / ".join(percent(share) for share in row.attainment)
    text = f"{percent(row.all_kept)} ({each}), {row.gpu_hours:.2f}"
    return f"**{text}**" if row.shortfall == 0 else text


def percent(share: float | None) -> str:
    """With one decimal, rounded down; "-" for None."""
    return "-" if share is None else f"{int(1000 * share + 1e-6) / 10:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="", help="only cells whose name has this in it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objective", default="LatencySensitive")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", type=Path, help="keep policies and servers there")
    given = parser.parse_args()
    cells = [Cell(*one) for one in product(WORKS, (True, False), LOADS) if given.cells in Cell(*one).name]
    if not cells:
        parser.error(f"no cell has {given.cells!r} in its name; {Cell('dynamic', True, 'shorter').name!r} is one")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        todo, rows = list(jobs(cells, given.objective, given.seeds, folder)), list[Row]()
        with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
            for row in pool.map(run, todo):
                rows.append(row)
                print(f"{len(rows)}/{len(todo)} {row.cell}: {row.variant}", file=sys.stderr, flush=True)
    print(tables(rows))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
