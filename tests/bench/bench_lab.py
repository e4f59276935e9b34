"""The simulated fleet's speed, in CPU seconds: `make bench`, or `python tests/bench/bench_lab.py`."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from bandkeeper.lab.fleet import Fleet
from bandkeeper.lab.requests import Requests
from tests.unit.lab_fleets import a_server, poisson, requests_at

DAY_S = 86_400
REPLICAS = 20
PER_S = 50
SCRAPE_S = 15.0
FIRST = """
import time
from bandkeeper.lab.fleet import Fleet
from tests.unit.lab_fleets import a_server, requests_at
fleet = Fleet(a_server(), requests_at([0.0]), replicas=1, seed=1)
began_s = time.process_time()
fleet.advance(1.0)
print(time.process_time() - began_s)
"""


def a_day() -> Requests:
    number = DAY_S * PER_S
    random = np.random.default_rng(1)
    lengths = random.integers(1, 2000, number, dtype=np.int32), random.integers(1, 330, number, dtype=np.int32)
    return requests_at(poisson(PER_S, number), *lengths, duration_s=DAY_S)


def first_call(cache: str) -> float:
    """CPU seconds of a process's first `advance`, which compiles the kernel, or loads it from `cache`."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FIRST], env=environment, cwd=root, capture_output=True, check=True)
    return float(done.stdout)


def megabytes() -> float:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        print(f"first call, compiled anew (budget 4 s):   {first_call(cache):6.2f} s")
        print(f"first call, loaded from the cache (0.5 s):{first_call(cache):6.2f} s")

    requests = a_day()
    fleet = Fleet(a_server(alpha_ms=20.58, beta_ms=0.41), requests, replicas=REPLICAS, seed=1, itl_thresholds_s=(0.1,))
    fleet.advance(1.0)
    before_mb, began_s = megabytes(), time.process_time()
    fleet.advance(DAY_S)
    spent_s = time.process_time() - began_s
    steps = int(fleet.counters().iterations.sum())
    print(f"24 h, {REPLICAS} replicas, {PER_S} requests/s (budget 10 s): {spent_s:6.2f} s")
    print(f"  {steps / 1e6:.0f} M steps, {spent_s / steps * 1e9:.0f} ns each")
    print(f"  most memory (budget 500 MB): {megabytes():.0f} MB, of which before the run {before_mb:.0f} MB")

    fleet = Fleet(a_server(), requests_at([]), replicas=REPLICAS, seed=1)
    scrapes = 5760
    for what, call in (
        ("advance", lambda: fleet.advance(fleet.now_s + SCRAPE_S)),
        ("counters", fleet.counters),
        ("pods", lambda: fleet.pods),
    ):
        began_s = time.process_time()
        for _ in range(scrapes):
            call()
        print(f"a call of {what} where nothing happens: {(time.process_time() - began_s) / scrapes * 1e6:5.0f} us")


if __name__ == "__main__":
    main()
