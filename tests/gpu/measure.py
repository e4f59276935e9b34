"""Runs every load and writes what the agent read and what the quality made of it.

python -m tests.gpu.measure FOLDER [SECONDS]    writes FOLDER/measured.md and FOLDER/measured.json
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from bandkeeper.agent.sampler import Sampler
from bandkeeper.quality.assess import assess
from bandkeeper.quality.types import Assessment, Counters, Evidence, Kind, Memory

ROOT = Path(__file__).parents[2]
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOADS = ("idle", "gemm", "stream", "tiny", "host", *(f"decode:{batch}" for batch in BATCHES))
FIGURES = {
    "gpu_utilization": "busy_ratio",
    "gr_engine_active": "graphics_engine_active_ratio",
    "sm_active": "sm_active_ratio",
    "sm_occupancy": "sm_occupancy_ratio",
    "tensor_active": "tensor_active_ratio",
    "dram_active": "dram_active_ratio",
    "fp32_active": "fp32_active_ratio",
    "fp16_active": "fp16_active_ratio",
    "fp64_active": "fp64_active_ratio",
    "power": "power_watts",
    "power_limit": "power_limit_watts",
    "pcie_received": "pcie_received_bytes_per_second",
    "pcie_sent": "pcie_sent_bytes_per_second",
}
"""Field of Counters by metric, without the prefix."""


def why_not() -> str | None:
    """Why nothing can be measured here; None where it can."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "no NVIDIA driver here (libnvidia-ml.so.1 cannot be loaded): nothing was measured on a real GPU"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed here: the loads of a real GPU were not run"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One load: what the agent read (metrics without prefix), what the load itself counted, and the judgement."""

    load: str
    model: str
    read: dict[str, float]
    counted: dict[str, float]
    quality: Assessment


def measure(load: str, seconds: float) -> Measured:
    """Run a load and read GPU 0 meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.loads", load, str(seconds + 4.0)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    out = cast(IO[str], process.stdout)
    assert out.readline(), f"the load {load} did not begin"
    time.sleep(2.0)  # utilisation and power look back a second
    sampler = Sampler(interval_s=0.5, window_s=seconds)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        sampler.step()
        time.sleep(0.5)
    frame = sampler.frame
    sampler.close()
    counted: dict[str, float] = json.loads(out.readline())
    process.wait()
    assert frame.problem is None, frame.problem
    gpu = next(gpu for gpu in frame.gpus if gpu.identity.index == 0 and gpu.identity.instance is None)
    read = {metric.name.removeprefix("bandkeeper_gpu_"): value for metric, value in gpu.values.items()}
    fields: dict[str, Any] = {field: read.get(name) for field, name in FIGURES.items()}
    counters = Counters(model=gpu.identity.model, source="bandkeeper agent", **fields)
    kind = Kind.LLM_SERVING if load.startswith("decode") else Kind.UNKNOWN
    quality, _ = assess(Evidence(pods={load: counters}, ready=1, kind=kind), Memory(), 0.0)
    return Measured(load=load, model=gpu.identity.model, read=read, counted=counted, quality=quality)


def table(all_measured: list[Measured]) -> str:
    """One row a load, in Markdown."""
    shown = ("busy_ratio", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio", "power_watts")
    rows = [
        "| load | step, ms | busy | SM | tensor | DRAM | power, W | class | lower | upper |\n",
        "|---|" + "--:|" * 6 + "---|--:|--:|\n",
    ]
    for one in all_measured:
        read = " | ".join("-" if one.read.get(name) is None else f"{one.read[name]:.3g}" for name in shown)
        bounds = " | ".join(
            "-" if share is None else f"{share:.2f}" for share in (one.quality.lower, one.quality.upper)
        )
        rows.append(f"| {one.load} | {one.counted['step_s'] * 1e3:.3g} | {read} | {one.quality.quality} | {bounds} |\n")
    return "".join(rows)


def main() -> None:
    if reason := why_not():
        raise SystemExit(reason)
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    folder.mkdir(parents=True, exist_ok=True)
    all_measured = [measure(load, seconds) for load in LOADS]
    (folder / "measured.md").write_text(f"GPU: {all_measured[0].model}\n\n{table(all_measured)}")
    curve = [{"load": one.load, "model": one.model, "counted": one.counted, "read": one.read} for one in all_measured]
    (folder / "measured.json").write_text(json.dumps(curve, indent=1) + "\n")
    print(table(all_measured))
    for one in all_measured:
        if (sent := one.counted.get("host_bytes_per_second")) and (
            seen := one.read.get("pcie_received_bytes_per_second")
        ):
            print(f"PCIe: {sent:.3g} bytes/s were copied and {seen:.3g} read: {seen / sent:.3g} (1: MiB/s is right)")


if __name__ == "__main__":
    main()
