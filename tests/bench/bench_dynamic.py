"""What dynamic batching costs on four GPUs' batch times: `make bench`, or `python tests/bench/bench_dynamic.py`.

Replicas only, batch times of ResNet-50 as measured on each GPU and slowed down so that a batch of 32 takes about a
second, five loads of up to nine replicas' work, no bound on the queue. Prints a table of docs/ablation.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from bandkeeper.lab import server
from tests.bench import bench_ablation as ablation

SLOWED = {"resnet50-a100": 100, "resnet50-a40": 70, "resnet50-t4": 40, "resnet50-v100": 70}
LOADS = {
    **ablation.LOADS,
    "waves": "waves:low=2,high=8,period_s=600",
    "steady": "poisson:level=6",
}


def work(preset: str) -> ablation.Work:
    """The preset's batch times under the promise that the ablation has for dynamic batching."""
    found = server.load(preset)
    assert isinstance(found, server.DynamicServer)
    like = ablation.WORKS["dynamic"]
    told = {"batch_ms": found.batch_ms, "time_scale": SLOWED[preset]}
    return replace(like, server={**like.server, **told})


def run(job: tuple[str, str, int, Path]) -> ablation.Row:
    preset, shape, seeds, folder = job
    ablation.WORKS[preset], ablation.LOADS[shape] = work(preset), LOADS[shape]
    cell = ablation.Cell(preset, bounded=False, shape=shape)
    return ablation.run(ablation.Job(cell, ablation.REPLICAS, "LatencySensitive", seeds, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(preset, shape, given.seeds, Path(folder)) for preset in SLOWED for shape in LOADS]
        with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
            rows = dict(zip([job[:2] for job in jobs], pool.map(run, jobs), strict=True))
    print("| load | " + " | ".join(SLOWED) + " |\n|" + "---|" * (len(SLOWED) + 1))
    for shape in LOADS:
        print(f"| {shape} | " + " | ".join(ablation.shown(rows[preset, shape]) for preset in SLOWED) + " |")
    print(
        f"\n{sum(row.gpu_hours for row in rows.values()):.1f} GPU-hours, all promises kept in "
        f"{sum(row.shortfall == 0 for row in rows.values())} of {len(rows)} cells"
    )


if __name__ == "__main__":
    main()
