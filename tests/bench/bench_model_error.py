"""How far the latency model is from the simulator: `make bench`, or `python tests/bench/bench_model_error.py`.

Replicas are held while the operator's decision looks on and learns its step times from what is scraped. Then the model
says the 95th percentiles of first-token and inter-token latency, and the simulator says what they were.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

import numpy as np

from bandkeeper.api.signals import Signal
from bandkeeper.decide.engine import decide
from bandkeeper.decide.load import rate_of
from bandkeeper.decide.policy import LatencySLO
from bandkeeper.decide.state import State
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.rules.rule import Setting, View, Want
from bandkeeper.lab.run import simulate
from bandkeeper.lab.server import ContinuousServer, load
from bandkeeper.lab.workloads import synthetic
from bandkeeper.model.latency import Traffic, latency
from bandkeeper.model.steps import StepFit
from tests.unit.builders import a_policy

REPLICAS = (1, 2, 4, 8, 16)
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9)
SIGNALS = {
    "TTFT": Signal.TIME_TO_FIRST_TOKEN,
    "ITL": Signal.INTER_TOKEN_LATENCY,
    "end to end": Signal.END_TO_END_LATENCY,
}
PERCENTILE = 95
GOAL = {"median": 0.15, "p90": 0.35}
RUN_S, WARMUP_S = 5400.0, 1500.0


@dataclass(frozen=True, slots=True)
class Cell:
    """A server and a kind of requests.

    `chunk` is the most prompt tokens of a step, which the model may be `told`. `cached` is the share
    of prompt tokens that a server counts but does not compute, all in half of the requests. `drift` is what prompts
    grow to, relative to their mean at the start.
    """

    name: str
    preset: str
    prompt: float = 1155.0
    output: float = 211.0
    chunk: int | None = None
    told: bool = False
    cached: float = 0.0
    drift: float = 1.0

    def server(self) -> ContinuousServer:
        server = load(self.preset)
        assert isinstance(server, ContinuousServer)
        changes: dict[str, float] = {"crashes_per_hour": 0.0}
        if self.chunk:
            changes["prefill_chunk_tokens"] = self.chunk
        if self.cached:
            changes["delta_ms_per_token"] = server.delta_ms_per_token * (1 - self.cached)
        return server.model_copy(update=changes)

    def requests(self, server: ContinuousServer, replicas: int, rho: float, seed: int) -> Requests:
        lengths = f"prompt_tokens={self.prompt:g},output_tokens={self.output:g},duration_s={RUN_S:g}"
        if self.drift == 1:
            made = synthetic.make(f"poisson:level={rho * replicas:g},{lengths}", server, seed=seed, max_replicas=1000)
        else:
            at_end = server.sustainable_per_s(self.drift * self.prompt, self.output)
            level = rho * replicas * at_end / server.sustainable_per_s(self.prompt, self.output)
            end = f"prompt_end_tokens={self.drift * self.prompt:g},output_end_tokens={self.output:g}"
            made = synthetic.make(f"drift:level={level:g},{lengths},{end}", server, seed=seed, max_replicas=1000)
        if not self.cached:
            return made
        # Half of the requests share a long prefix: what is left of those is shorter than what they count as.
        hits = np.random.default_rng(seed).random(len(made)) < 0.5
        factor = np.where(hits, (1 - 2 * self.cached) / (1 - self.cached), 1 / (1 - self.cached))
        prompts = np.maximum(1, np.rint(made.prompt_tokens * factor)).astype(np.int32)
        return replace(made, prompt_tokens=prompts)


CELLS = (
    Cell("conversation", "reference"),
    Cell("decode-heavy", "reference", 200, 600),
    Cell("prefill-heavy", "reference", 4000, 100),
    Cell("2048 tokens a step", "reference", chunk=2048),
    Cell("2048, and told", "reference", chunk=2048, told=True),
    Cell("512 tokens a step", "reference", chunk=512),
    Cell("512, and told", "reference", chunk=512, told=True),
    Cell("256 tokens a step", "reference", chunk=256),
    Cell("30 % cached", "reference", cached=0.3),
    Cell("growing context", "llama-3.1-70b-fp8-h200", 600, 400, drift=3),
    Cell("8B on H100", "llama-3.1-8b-h100"),
    Cell("70B on 4 H100", "llama-3.1-70b-fp8-h100-tp4"),
    Cell("120B on 2 H100", "gpt-oss-120b-h100-tp2"),
    Cell("13B on A100, KV full", "opt-13b-a100", 500, 250),
)


class Watcher:
    """Looks on as the operator does, and leaves the replicas alone."""

    def __init__(self, setting: Setting, judged_from_s: float) -> None:
        self._policy, self._from_s = setting.policy, judged_from_s
        self.state = State.initial(0.0)
        self.rates: list[tuple[float, ...]] = []

    def decide(self, view: View) -> Want:
        _, self.state = decide(self._policy, view.snapshot, self.state, view.now_s)
        found = [
            rate_of(view.snapshot, signal)
            for signal in (Signal.REQUESTS_FINISHED, Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS)
        ]
        if view.now_s >= self._from_s and all(found):
            self.rates.append(tuple(rate or 0.0 for rate in found))
        return Want(replicas=view.replicas)

    @property
    def traffic(self) -> Traffic:
        requests, prompts, outputs = (sum(rates) / len(self.rates) for rates in zip(*self.rates, strict=True))
        return Traffic(requests, prompts / requests, outputs / requests)


@dataclass(frozen=True, slots=True)
class Seen:
    """One run: what was learned, and what the percentiles were."""

    cell: str
    replicas: int
    rho: float
    steps: StepFit
    traffic: Traffic
    room: int
    told_chunk: int | None
    measured: dict[tuple[str, int], float]


def run(job: tuple[Cell, int, float], percentiles: Iterable[int] = (PERCENTILE,), seed: int = 1) -> Seen:
    cell, replicas, rho = job
    server = cell.server()
    requests = cell.requests(server, replicas, rho, seed)
    judged_from_s = WARMUP_S if cell.drift == 1 else RUN_S - 1800.0
    slos = {
        (name, percentile): LatencySLO(signal=signal, percentile=percentile, threshold_s=1.0, window_s=60.0)
        for name, signal in SIGNALS.items()
        for percentile in percentiles
    }
    policy = a_policy(slos=list(slos.values()), replicas=(replicas, replicas), default_capacity=server.batch_max)
    setting = Setting(policy=policy, server=server, requests=requests)
    rule = Watcher(setting, judged_from_s)
    result = simulate(setting, rule, rule_name="watcher", start=replicas, warmup_s=judged_from_s, seed=seed)
    found = {name: one.value or math.inf for name, one in zip(slos, result.slos, strict=True)}
    steps = rule.state.model.steps
    assert isinstance(steps, StepFit)
    room = rule.state.model.batch or float(server.batch_max)
    chunk = cell.chunk if cell.told else None
    return Seen(cell.name, replicas, rho, steps, rule.traffic, round(room), chunk, found)


@dataclass(frozen=True, slots=True)
class Miss:
    """How far a prediction was from what came, as a share, and whether the model stood by it."""

    error: float
    predicted_s: float
    measured_s: float
    confident: bool


def chunks(learned: Seen) -> tuple[float, ...]:
    """What a step may read at most: as told, else by the time between tokens while the step times were learned."""
    if learned.told_chunk is not None:
        return (float(learned.told_chunk),)
    measured_s = learned.measured["ITL", PERCENTILE]
    there = latency(learned.steps, learned.traffic, learned.replicas, learned.room)
    return there.chunks_that_fit(PERCENTILE / 100, measured_s, measured_s)


def compare(seen: Seen, learned: Seen, name: str) -> Miss:
    """What is predicted by the step times of one run against what was seen in another of the same servers."""
    found = latency(learned.steps, seen.traffic, seen.replicas, seen.room, chunks=chunks(learned))
    measured_s = seen.measured[name, PERCENTILE]
    predicted_s = found.quantile(SIGNALS[name], PERCENTILE / 100)
    error = abs(predicted_s / measured_s - 1) if predicted_s < math.inf or measured_s < math.inf else 0.0
    return Miss(error, predicted_s, measured_s, found.confident(SIGNALS[name], PERCENTILE / 100))


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def line(title: str, misses: list[Miss]) -> str:
    sure = [one.error for one in misses if one.confident]
    unsure = [one.error for one in misses if not one.confident]
    shown = f"{median(sure):7.0%} {percentile(sure, 90):7.0%}" if sure else "      -       -"
    rest = f"{median(unsure):7.0%} {percentile(unsure, 90):7.0%}" if unsure else "      -       -"
    return f"  {title:<28} {len(sure):>4} of {len(misses):<4} {shown}   {rest}"


def table(seen: list[Seen], learned_at: float | None = None) -> None:
    """`learned_at` is the load that the step times are of, None: each run's own."""
    learned = {(one.cell, one.replicas): one for one in seen if one.rho == learned_at}
    for name in SIGNALS:
        print(f"\n{name + ' p95':<28} {'confident':>14}  median     p90   others: median, p90")
        misses = {
            (one.cell, one.replicas, one.rho): compare(one, learned.get((one.cell, one.replicas), one), name)
            for one in seen
        }
        for title, position in (("", 0), ("replicas ", 1), ("load ", 2)):
            for value in dict.fromkeys(key[position] for key in misses):
                print(line(f"{title}{value}", [miss for key, miss in misses.items() if key[position] == value]))
        print(line("all", list(misses.values())))


def microseconds(seen: list[Seen]) -> float:
    """Mean CPU time of one prediction of three percentiles."""
    began_s = time.process_time()
    for one in seen:
        found = latency(one.steps, one.traffic, one.replicas, one.room)
        for signal in SIGNALS.values():
            found.quantile(signal, PERCENTILE / 100)
    return (time.process_time() - began_s) / len(seen) * 1e6


def main() -> None:
    jobs = [(cell, replicas, rho) for cell in CELLS for replicas in REPLICAS for rho in LOADS]
    with ProcessPoolExecutor() as pool:
        seen = list(pool.map(run, jobs))
    print(f"goal where it is confident: median {GOAL['median']:.0%}, p90 {GOAL['p90']:.0%}; {len(seen)} runs")
    print(f"one prediction of {len(SIGNALS)} percentiles (budget 1000 us): {microseconds(seen):.0f} us of CPU time")
    print("\n== Step times learned at the load that is predicted")
    table(seen)
    print("\n== Step times learned at a load of 0.5")
    table(seen, 0.5)


if __name__ == "__main__":
    main()
