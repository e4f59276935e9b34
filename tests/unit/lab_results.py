"""A made-up run of the lab that looks like a real one, for the report's tests."""

from __future__ import annotations

import math
import random
from typing import Any

from bandkeeper.lab.result import Counts, Move, Result, Series, SLOResult


def a_result(hours: float = 1.0, *, step_s: float = 15.0, seed: int = 1, **changes: Any) -> Result:
    """A diurnal load with a rush, a fleet that follows it late, and all that a report draws."""
    dice = random.Random(seed)
    steps = int(hours * 3600 / step_s)
    columns: dict[str, list[Any]] = {name: [] for name in Series.model_fields if name not in ("at_s", "slo_values")}
    at_s, ttft, itl, moves = [], [], [], []
    ready, pending, cap = 4, 0, 64
    for index in range(steps):
        now_s = (index + 1) * step_s
        phase = index / steps
        load = 20 + 14 * math.sin(2 * math.pi * (phase - 0.2)) + dice.gauss(0, 1.2) + (25 if 0.55 < phase < 0.58 else 0)
        work = max(0.3, load / 4.2)
        if pending and dice.random() < 0.17:
            ready, pending = ready + pending, 0
        need = max(2, math.ceil(work / 0.7))
        if need > ready + pending or (need < ready - 1 and not pending and dice.random() < 0.05):
            before = ready + pending
            moves.append(_move(now_s, before, need, cap))
            pending, ready = max(0, need - ready), min(ready, need)
        if index == steps // 3:
            moves.append(_cap(now_s, ready + pending, cap, 48))
            cap = 48
        rho = work / ready
        over = max(0.0, rho - 1)
        at_s.append(now_s)
        values = {
            "arrived_per_s": max(0.0, load),
            "finished_per_s": max(0.0, min(load, ready * 4.2)),
            "failed_per_s": max(0.0, 3 * over - 0.6),
            "ready": ready,
            "pending": pending,
            "wanted": ready + pending,
            "cap": cap,
            "running": int(min(rho, 1.0) * cap * ready),
            "waiting": int(over * 120 * ready),
            "utilization": rho,
            "busy": min(1.0, 0.7 + rho / 2),
            "compute": min(0.9, rho * 0.5 + dice.gauss(0, 0.02)) if index % 2 else 0.4,
            "memory": min(0.9, 0.3 + rho * 0.5),
            "quality": "Overloaded"
            if over > 0.1
            else "Efficient"
            if rho > 0.6
            else "Mixed"
            if rho > 0.45
            else "Underused",
        }
        for name, value in values.items():
            columns[name].append(value)
        ttft.append(None if index % 97 == 50 else 0.12 + 0.3 * rho**4 + 6 * over + abs(dice.gauss(0, 0.02)))
        itl.append(0.028 + 0.018 * min(1.3, rho) + abs(dice.gauss(0, 0.001)))
    content: dict[str, Any] = {
        "rule": "bandkeeper",
        "policy": "chat",
        "objective": "LatencySensitive",
        "band_low": 0.6,
        "band_high": 0.7,
        "min_replicas": 1,
        "max_replicas": 24,
        "server": "llama-3.1-8b-h100",
        "model": "Llama 3.1 8B",
        "gpu": "H100",
        "workload": "diurnal, 6 to 34 requests/s",
        "notes": ["Made up for a test."],
        "seed": seed,
        "duration_s": steps * step_s,
        "warmup_s": 900.0,
        "start_replicas": 4,
        "cold_start_s": 90.0,
        "slos": [
            SLOResult(signal="TimeToFirstToken", percentile=95, threshold=0.5, attainment=0.992, value=0.431),
            SLOResult(signal="InterTokenLatency", percentile=95, threshold=0.05, attainment=0.9497, value=0.0503),
        ],
        "attainment_both": 0.942,
        "gpu_hours": 41.3,
        "gpu_hours_wasted": 9.13,
        "gpu_hours_by_rule": {"work": 27.1, "band": 2.5, "slo": 0.0, "peak": 6.65, "hold": 1.4, "unknown": 0.0},
        "time_in_band": 0.614,
        "requests": Counts(arrived=72_311, finished=72_020, errors=240, rejected=220, unserved=51),
        "errors": 240,
        "scale_actions": len(moves) - 1,
        "batch_actions": 1,
        "oscillations": 3,
        "moves": moves,
        "series": Series(at_s=at_s, slo_values=[ttft, itl], **columns),
    }
    return Result(**{**content, **changes})


def _move(now_s: float, before: int, after: int, cap: int) -> Move:
    up = after > before
    why = (
        f"Replicas {before} -> {after}: the work of {after * 0.69:.1f} replicas is offered to {before}; pods take 96 s."
        if up
        else f"Replicas {before} -> {after}: the held peak of 10 min fits with margin."
    )
    return Move(
        at_s=now_s,
        replicas_from=before,
        replicas_to=after,
        cap_from=cap,
        cap_to=cap,
        reason="DemandRose" if up else "DemandFell",
        why=why,
    )


def _cap(now_s: float, replicas: int, before: int, after: int) -> Move:
    return Move(
        at_s=now_s,
        replicas_from=replicas,
        replicas_to=replicas,
        cap_from=before,
        cap_to=after,
        reason="BatchCapLowered",
        why=f"Batch cap {before} -> {after}: p95 inter-token latency 61 ms is over the 50 ms objective.",
    )
