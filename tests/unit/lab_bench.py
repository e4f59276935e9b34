"""A made-up comparison of rules that looks like a real one, for the report's tests."""

from __future__ import annotations

import random
from typing import Any

from bandkeeper.lab.bench import BenchPoint, BenchResult, BenchSLO, BenchWorkload

RULES = {
    "Bandkeeper": (1.16, 0.9, False, True),
    "HPA on GPU_UTIL": (3.6, 0.2, False, False),
    "HPA on running requests": (1.9, 3.0, False, False),
    "KEDA on waiting requests": (2.6, 9.0, False, False),
    "Knative KPA": (1.6, 2.2, False, False),
    "AIBrix APA": (1.5, 4.0, False, False),
    "Rate-only model": (1.2, 8.0, False, False),
    "Peak memory L": (1.25, 1.6, False, False),
    "Best static count": (1.35, 0.6, True, False),
    "Foresight": (1.0, 0.9, True, False),
}
WORKLOADS = (
    "waves of 5 min",
    "waves of 20 min",
    "ramp",
    "flash crowd",
    "MMPP bursts",
    "diurnal",
    "decode-heavy",
    "trace",
)


def a_bench(workloads: tuple[str, ...] = WORKLOADS, *, seed: int = 1, **changes: Any) -> BenchResult:
    """Every rule at five settings on every load."""
    dice = random.Random(seed)
    points = []
    for workload in workloads:
        base = 10 + 8 * dice.random()
        for rule, (cost, misses, hindsight, ours) in RULES.items():
            shift = 0.8 + 0.5 * dice.random()
            for index, scale in enumerate((0.8, 0.9, 1.0, 1.2, 1.5)):
                over = misses * shift / scale**6
                kept = [max(0.0, 1 - 0.01 * over), max(0.0, 1 - 0.05 * over * (0.5 + dice.random()))]
                meets = kept[0] >= 0.99 and kept[1] >= 0.95
                hours = base * cost * scale * (0.95 + 0.1 * dice.random())
                points.append(
                    BenchPoint(
                        rule=rule,
                        label=f"target {12 - 2 * index}",
                        parameters={"target": 12 - 2 * index},
                        workload=workload,
                        seed=1,
                        gpu_hours=hours,
                        gpu_hours_wasted=hours / 5,
                        relative=hours / base,
                        attainment=list(kept),
                        attainment_both=min(kept),
                        meets_goal=meets,
                        time_in_band=0.5,
                        errors=0,
                        unserved=3,
                        scale_actions=dice.randrange(4, 90),
                        batch_actions=0,
                        oscillations=2,
                        is_default=index == 2 and not hindsight,
                        is_best=index == (2 if misses * shift < 1 else 3),
                        is_bound=rule == "Foresight" and index == 2,
                        is_hindsight=hindsight,
                        is_ours=ours,
                    )
                )
    content: dict[str, Any] = {
        "policy": "chat",
        "server": "reference",
        "model": "Llama 3.1 8B",
        "gpu": "H100",
        "cold_start_s": 90.0,
        "warmup_s": 900.0,
        "seeds": [1],
        "protocol": ["Every rule begins with the same replicas.", "Failed requests are misses."],
        "slos": [
            BenchSLO(signal="TimeToFirstToken", percentile=95, threshold=1.0, goal=0.99),
            BenchSLO(signal="InterTokenLatency", percentile=95, threshold=0.1, goal=0.95),
        ],
        "workloads": [
            BenchWorkload(name=name, notes=[], requests=60_000, duration_s=4500.0, start_replicas=4)
            for name in workloads
        ],
        "points": points,
    }
    return BenchResult(**{**content, **changes})
