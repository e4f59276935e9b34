"""Makes a pass for each line on standard input (seconds to wait before it) and prints its frame as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from bandkeeper.agent.sampler import DriverReplacedError, Frame, Sampler

PREFIX = "bandkeeper_gpu_"


class Clock:
    """Stands still between passes."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def plain(frame: Frame) -> dict[str, Any]:
    """The frame as JSON can carry it: metrics by name without prefix."""
    return {
        "problem": frame.problem,
        "driver": frame.driver,
        "failures": {f"{call} {error}": count for (call, error), count in frame.failures.items()},
        "gpus": [
            {
                "index": gpu.identity.index,
                "uuid": gpu.identity.uuid,
                "model": gpu.identity.model,
                "instance": gpu.identity.instance,
                "aliases": gpu.identity.aliases,
                "up": gpu.up,
                "values": {metric.name.removeprefix(PREFIX): value for metric, value in gpu.values.items()},
            }
            for gpu in frame.gpus
        ],
    }


def main() -> None:
    clock = Clock()
    sampler = Sampler(interval_s=1.0, window_s=5.0, clock=clock)
    for line in sys.stdin:
        clock.now_s += float(line)
        try:
            sampler.step()
            answer = plain(sampler.frame)
        except DriverReplacedError as error:
            answer = {"replaced": str(error)}
        print(json.dumps(answer), flush=True)
    sampler.close()


if __name__ == "__main__":
    main()
