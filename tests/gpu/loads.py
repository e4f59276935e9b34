"""Loads of known kinds on GPU 0, one a process: `python -m tests.gpu.loads NAME SECONDS`; prints what it did as JSON.

gemm: large bf16 products. stream: copies inside device memory. tiny: kernels too small to fill the GPU. host: copies
from pinned host memory. decode:B: layers of matrix-vector products for B sequences. idle: memory held, nothing run.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

WIDTH, LAYERS = 8192, 24
COPY_BYTES = 2**30
Step = Callable[[], None]


def _gemm(torch: Any) -> tuple[Step, dict[str, float]]:
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), {"flop": 2.0 * n**3}


def _stream(torch: Any) -> tuple[Step, dict[str, float]]:
    source = torch.empty(COPY_BYTES, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), {"device_bytes": 2.0 * COPY_BYTES}


def _tiny(torch: Any) -> tuple[Step, dict[str, float]]:
    x = torch.zeros(32, device="cuda")

    def step() -> None:
        for _ in range(1000):
            x.add_(1.0)

    return step, {"kernels": 1000.0}


def _host(torch: Any) -> tuple[Step, dict[str, float]]:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(COPY_BYTES, device="cuda", dtype=torch.uint8)
    return lambda: target.copy_(source, non_blocking=True), {"host_bytes": float(COPY_BYTES)}


def _idle(torch: Any) -> tuple[Step, dict[str, float]]:
    held = torch.empty(COPY_BYTES, device="cuda", dtype=torch.uint8)

    def step() -> None:
        time.sleep(0.1)
        assert held.numel() == COPY_BYTES

    return step, {}


def _decode(torch: Any, batch: int) -> tuple[Step, dict[str, float]]:
    layers = [torch.randn(WIDTH, WIDTH, device="cuda", dtype=torch.bfloat16) / WIDTH**0.5 for _ in range(LAYERS)]
    state = torch.randn(batch, WIDTH, device="cuda", dtype=torch.bfloat16)

    def step() -> None:
        x = state
        for layer in layers:
            x = x @ layer
        torch.cuda.synchronize()  # the next token needs this one

    return step, {"tokens": float(batch), "weights_bytes": 2.0 * WIDTH**2 * LAYERS}


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    torch = importlib.import_module("torch")
    kind, _, batch = name.partition(":")
    of = {"gemm": _gemm, "stream": _stream, "tiny": _tiny, "host": _host, "idle": _idle}
    step, each = _decode(torch, int(batch)) if kind == "decode" else of[kind](torch)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    print(json.dumps({"begun": True}), flush=True)
    steps, begun_s = 0, time.monotonic()
    while time.monotonic() < begun_s + seconds:
        for _ in range(1 if kind in ("idle", "tiny") else 8):
            step()
            steps += 1
        torch.cuda.synchronize()
    spent_s = time.monotonic() - begun_s
    print(
        json.dumps({"step_s": spent_s / steps, **{f"{key}_per_second": n * steps / spent_s for key, n in each.items()}})
    )


if __name__ == "__main__":
    main()
