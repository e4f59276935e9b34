"""docs/gpu-signals.md says what the code reads: its tables are compared row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bandkeeper.api.signals import CATALOGUE, Signal, SignalKind
from bandkeeper.signals.presets import containers, gpu, work
from bandkeeper.signals.sources import Across, Read, Series, Source

PAGE = (Path(__file__).parents[2] / "docs" / "gpu-signals.md").read_text()
OVER_GPUS = {Across.MEAN: "mean", Across.SUM: "sum", Across.MOST: "largest"}
FACTORS = {1.0: "", 0.01: " (%)", 1024.0**2: " (MiB)", 1e6: " (MHz)", 1e-9: " (ns)"}


def unit(signal: Signal) -> str:
    info = CATALOGUE[signal]
    return f"{info.unit}/s" if info.kind is SignalKind.COUNTER else info.unit


def metric(source: Source, exporter: str) -> str:
    return ", ".join(
        f"`{name}`{FACTORS[series.scale]}{of_board(series, name)}"
        for series in source.any_of
        if series.exporter == exporter
        for name in (series.metrics[0],)
    ).replace('{GPU_I_ID=""}', "")


def of_board(series: Series, name: str) -> str:
    return " (not of MIG)" if "GPU_I_ID" in name else ""


def gpu_rows() -> list[str]:
    rows = []
    for signal, source in gpu.SOURCES.items():
        if source.read is Read.DEVICES:
            continue
        every = "60 s" if source.aside else "30 s"
        classic, new = metric(source, gpu.DCGM), metric(source, gpu.NEW_DCGM)
        cells = [f"`{signal}`", unit(signal), OVER_GPUS[source.across], every, classic, new or "the same"]
        rows.append(f"| {' | '.join([*cells, metric(source, gpu.AGENT)])} |")
    return rows


def other_rows(sources: Mapping[Signal, Source]) -> list[str]:
    rows = []
    for signal, source in sources.items():
        names = ", ".join(f"`{name}`" for series in source.any_of for name in series.metrics)
        per = f" / `{source.any_of[0].per}`" if source.any_of[0].per else ""
        rows.append(f"| `{signal}` | {unit(signal)} | {names}{per} |")
    return rows


@pytest.mark.parametrize(
    ("heading", "rows"),
    [
        ("## GPUs", gpu_rows()),
        ("## The server's own count", other_rows(work.SOURCES)),
        ("## The pod's containers", other_rows(containers.SOURCES)),
    ],
)
def test_the_table_is_what_is_read(heading: str, rows: list[str]) -> None:
    section = PAGE.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    assert table == rows, "write this table:\n" + "\n".join(rows)


def test_every_signal_of_the_judgement_is_on_the_page() -> None:
    for signal in {**gpu.SOURCES, **work.SOURCES, **containers.SOURCES}:
        assert f"`{signal}`" in PAGE, signal
