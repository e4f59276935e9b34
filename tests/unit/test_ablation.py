"""The ablation's own parts, and two of its cells: what the knob and the model of batches are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import bench_ablation, bench_dynamic
from tests.bench.bench_ablation import JOINT, REPLICAS, WITHOUT, Cell, Job, Row, Variant, best_fixed, jobs, run, tables


def a_row(variant: str, hours: float, kept: float) -> Row:
    return Row(
        cell="dynamic, bounded, longer",
        variant=variant,
        all_kept=kept,
        attainment=(kept,),
        shortfall=max(0.0, 0.95 - kept),
        gpu_hours=hours,
        scale_actions=3.0,
        batch_actions=1.0,
        errors=0.0,
        seeds=(),
    )


@pytest.mark.parametrize(
    ("cell", "variant"),
    [
        (Cell("decode-heavy", True, "longer"), JOINT),  # replicas only: 94 % of tokens, for 1.4 times the GPU-hours
        (Cell("dynamic", False, "shorter"), REPLICAS),  # 72 % where work was requests over the largest batch
    ],
    ids=["the cap's guard", "the times of batches"],
)
def test_every_promise_is_kept(cell: Cell, variant: Variant, tmp_path: Path) -> None:
    row = run(Job(cell, variant, "LatencySensitive", 1, tmp_path))
    assert row.shortfall == 0, row


def test_every_cell_has_every_variant(tmp_path: Path) -> None:
    cells = [Cell("decode-heavy", True, "longer"), Cell("dynamic", False, "shorter")]
    named = [(job.cell.name, job.variant.name) for job in jobs(cells, "Balanced", 1, tmp_path)]
    assert len(set(named)) == len(named)
    for cell in cells:
        assert {(cell.name, variant.name) for variant in (REPLICAS, JOINT, *WITHOUT)} <= set(named)


def test_the_best_fixed_cap_keeps_the_promises_first_and_may_be_the_servers_own() -> None:
    rows = [a_row("replicas only", 9.0, 0.93), a_row("cap 16", 12.0, 0.96), a_row("cap 32", 11.0, 0.95)]
    assert best_fixed([*rows, a_row("joint", 1.0, 1.0)]).variant == "cap 32"
    assert best_fixed([a_row("replicas only", 9.0, 0.96), *rows[1:]]).variant == "replicas only"


def test_a_cell_that_keeps_every_promise_is_bold() -> None:
    variants = ("replicas only", "cap 16", "joint", "joint, live", *(one.name for one in WITHOUT))
    text = tables([a_row(name, 9.0, 0.96 if name == "joint" else 0.9199) for name in variants])
    assert "| dynamic, bounded, longer | 91.9 (91.9), 9.00 |" in text
    assert "| **96.0 (96.0), 9.00** |" in text


def test_dynamic_batching_on_another_gpu_runs_as_in_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ablation, "WORKS", dict(bench_ablation.WORKS))
    monkeypatch.setattr(bench_ablation, "LOADS", dict(bench_ablation.LOADS))
    row = bench_dynamic.run(("resnet50-t4", "steady", 1, tmp_path))
    assert row.shortfall == 0
    assert 6 < row.gpu_hours < 13  # for an hour of six replicas' work
