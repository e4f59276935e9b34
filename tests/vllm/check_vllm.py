"""vLLM on the CPU under load, its cap moved while it runs, and its own metrics against what its clients saw.

Not collected by its name: `make test-vllm` asks for it. docs/runtimes/vllm.md keeps the figures.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
import yaml

from bandkeeper.actuate.adapter import BatchAdapter, Workload
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.actuate.pod_access import Credential, PodAccess
from bandkeeper.actuate.registry import batch_adapter
from bandkeeper.api.signals import LATENCY_SIGNALS, Signal
from bandkeeper.api.snapshot import Distribution, Pod, PodState
from bandkeeper.api.v1alpha1 import AdapterType, Spec
from bandkeeper.api.validation import validate
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource
from bandkeeper.model.histogram import percentile
from bandkeeper.signals.collector import Collector, CollectorSettings
from bandkeeper.signals.presets import PRESETS, containers, gpu
from bandkeeper.signals.prometheus import PrometheusServer
from bandkeeper.signals.want import LatencyWant, Observations, Want
from tests.cluster import Prometheus
from tests.unit.runtime_world import NAMESPACE, World
from tests.vllm.install import interpreter
from tests.vllm.load import Seen, clients
from tests.vllm.server import CAPACITY, TOKEN_BUDGET, Server

pytestmark = pytest.mark.cluster

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm-live-cap.yaml"
CLIENTS = 32
PROMPT, ANSWER = (16, 96), 48  # tokens: least and most, and of each answer
CAPS = (CAPACITY, 4, CAPACITY)
PERIOD_S = 5.0  # between two looks of the operator: time for what runs above a lowered cap to end
WINDOW_S = 15.0
POD = "tiny-5c9d8b7f6-b4c5d"
SEEN_AS = {Signal.TIME_TO_FIRST_TOKEN: "first_tokens", Signal.INTER_TOKEN_LATENCY: "gaps"}
OWN = set(PRESETS["VLLM"].sources) - set(gpu.SOURCES) - set(containers.SOURCES)  # those that vLLM itself has


@dataclass(slots=True)
class Phase:
    """A stretch under one cap: when that was set, what is judged of it, and what was seen then."""

    cap: int
    set_s: float
    ran: list[tuple[float, int]] = field(default_factory=list)  # requests running, as the scheduler has them
    begin_s: float = 0.0
    end_s: float = 0.0
    told: Observations = field(default_factory=Observations)
    running_most: float = 0.0
    at_server_most: float = 0.0

    def read(self, signal: Signal) -> float:
        """A level or rate, as the preset reads it."""
        return self.told.by_pod[signal][POD].value

    def histogram(self, signal: Signal) -> Distribution:
        """A distribution, as the preset reads it."""
        return self.told.distributions[signal, round(WINDOW_S)]


@dataclass(slots=True, kw_only=True)
class Run:
    """All phases of the one server, and what its clients saw over all of them."""

    server: Server
    prometheus: Prometheus
    phases: list[Phase] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    python = interpreter()
    with Server(python, tmp_path_factory.mktemp("vllm")) as started:
        started.wait()
        yield started


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    target = {"targets": [f"127.0.0.1:{server.port}"], "labels": {"namespace": "serving", "pod": POD}}
    job = {"job_name": "pods", "scrape_interval": "1s", "static_configs": [target]}
    with Prometheus.start(tmp_path_factory.mktemp("prometheus"), scrape_configs=[job]) as started:
        yield started


@pytest.fixture(scope="module")
def run(server: Server, prometheus: Prometheus) -> Run:
    """The cap goes 16, 4, 16 through the adapter of the example, under 32 clients."""
    run = Run(server=server, prometheus=prometheus)
    asyncio.run(_go_through_caps(run))
    return run


def the_adapter(server: Server) -> BatchAdapter:
    """The example's, which finds the pod's port on this machine."""
    spec = validate(yaml.safe_load(EXAMPLE.read_text()))
    assert isinstance(spec, Spec), spec
    assert spec.batch is not None
    token = Credential(name="vllm", file=server.token_file, namespaces=frozenset({"serving"}))
    return batch_adapter(
        spec.batch.adapter,
        cast(KubeClient, None),  # it asks nothing of the API server
        enabled={AdapterType.HTTP},
        namespace="serving",
        address_of=lambda pod: f"127.0.0.1:{server.cap_port}",
        pod_access=PodAccess(credentials={token.name: token}),
    )


def a_workload(cap: int | None) -> Workload:
    resource = Resource("apps/v1", "Deployment", "deployments", namespaced=True, scalable=True)
    pod = Pod(name=POD, uid="p", state=PodState.READY, cap=cap, capacity=CAPACITY, address="10.0.0.1")
    return Workload(namespace="serving", name="tiny", resource=resource, uid="u", pods=(pod,))


async def _go_through_caps(run: Run) -> None:
    adapter = the_adapter(run.server)
    before: int | None = None
    async with clients(run.server.url, CLIENTS, prompt=PROMPT, tokens=ANSWER) as run.seen:
        await asyncio.sleep(PERIOD_S)  # the first steps warm caches
        for cap in CAPS:
            if before is not None or cap != CAPACITY:
                result = await adapter.apply(a_workload(before), cap, deadline=time.monotonic() + 5)
                assert result.outcome is Outcome.WRITTEN, result
            phase = Phase(cap=cap, set_s=time.monotonic())
            run.phases.append(phase)
            async with _watched(run.server, phase):
                await asyncio.sleep(PERIOD_S + WINDOW_S)
                await _look(run, phase)
            reading = await adapter.read_back(a_workload(before), deadline=time.monotonic() + 5)
            assert (reading.caps, reading.failed) == ({POD: cap}, {})
            before = cap
    await adapter.close()


@asynccontextmanager
async def _watched(server: Server, phase: Phase) -> AsyncIterator[None]:
    """The scheduler's own number of running requests, several times a second."""

    async def watch() -> None:
        while True:
            knobs = await asyncio.to_thread(server.knobs)
            phase.ran.append((time.monotonic(), knobs["running"]))
            await asyncio.sleep(0.25)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


async def _look(run: Run, phase: Phase) -> None:
    """Read all that the preset has of the last window."""
    settings = CollectorSettings(
        servers=(PrometheusServer(name="default", url=run.prometheus.url),), rate_window_s=WINDOW_S, earlier_days=False
    )
    latencies = tuple(
        LatencyWant(signal=signal, window_s=WINDOW_S, percentiles=(95,)) for signal in LATENCY_SIGNALS & OWN
    )
    want = Want(
        key="tiny",
        namespace="serving",
        workload="tiny",
        kind="Deployment",
        pods=(POD,),
        runtime="VLLM",
        signals=frozenset(OWN - LATENCY_SIGNALS),
        latencies=latencies,
    )
    collector = Collector(settings)
    try:
        phase.end_s = time.monotonic()
        phase.begin_s = phase.end_s - WINDOW_S
        phase.told = (await collector.collect([want], time.monotonic()))["tiny"]
        phase.running_most = await _most(run, "vllm:num_requests_running")
        phase.at_server_most = await _most(run, "(vllm:num_requests_running + vllm:num_requests_waiting)")
    finally:
        collector.close()


async def _most(run: Run, of: str) -> float:
    most = await asyncio.to_thread(run.prometheus.value, f"max_over_time({of}[{WINDOW_S:g}s:1s])")
    assert most is not None
    return most


def by_phase(run: Run) -> list[tuple[str, Phase]]:
    return [(f"cap {phase.cap}, phase {number}", phase) for number, phase in enumerate(run.phases, 1)]


# -- the cap -----------------------------------------------------------------------------------------------------------


def test_no_request_fails_while_the_cap_moves(run: Run) -> None:
    assert [phase.cap for phase in run.phases] == list(CAPS)
    assert run.seen.failed == []
    assert len(run.seen.finished) > 10 * CLIENTS


def test_one_period_later_no_more_run_than_the_cap_and_as_many_as_it_lets(run: Run) -> None:
    for name, phase in by_phase(run):
        later = [running for at_s, running in phase.ran if at_s > phase.set_s + PERIOD_S]
        assert len(later) > WINDOW_S, name
        assert max(later) == phase.cap, name
        assert phase.running_most == phase.cap, name


def test_the_log_tells_each_change_and_who_made_it(run: Run) -> None:
    log = run.server.log()
    assert "cap 16 -> 4, by a call from 127.0.0.1" in log
    assert "cap 4 -> 16, by a call from 127.0.0.1" in log


# -- the preset --------------------------------------------------------------------------------------------------------


def test_every_signal_of_the_preset_is_there(run: Run) -> None:
    for name, phase in by_phase(run):
        gaps = {gap.signal: gap.detail for gap in phase.told.gaps}
        assert gaps == {}, name
        there = {signal for signal, pods in phase.told.by_pod.items() if POD in pods}
        assert OWN - LATENCY_SIGNALS - there == set(), name
        assert {signal for signal, _ in phase.told.distributions} == LATENCY_SIGNALS & OWN, name


@pytest.mark.parametrize("signal", list(SEEN_AS))
def test_percentiles_equal_what_the_clients_measured(run: Run, signal: Signal) -> None:
    """Within 10 %, or as near as the buckets are."""
    for name, phase in by_phase(run):
        values = run.seen.between(SEEN_AS[signal], phase.begin_s, phase.end_s)
        measured = values[int(0.95 * len(values))]
        distribution = phase.histogram(signal)
        told = percentile(distribution, 95)
        assert told is not None, name
        between = abs(bisect_left(distribution.edges, measured) - bisect_left(distribution.edges, told.value))
        assert abs(told.value - measured) <= 0.1 * measured or between <= 1, (name, told, measured)


def test_rates_equal_what_the_clients_counted(run: Run) -> None:
    for name, phase in by_phase(run):
        tokens, requests = (
            sum(phase.begin_s < at_s <= phase.end_s for at_s in moments) / WINDOW_S
            for moments in (
                [at_s for at_s, _ in itertools.chain(run.seen.gaps, run.seen.first_tokens)],
                run.seen.finished,
            )
        )
        assert phase.read(Signal.GENERATION_TOKENS) == pytest.approx(tokens, rel=0.1), name
        assert phase.read(Signal.REQUESTS_FINISHED) == pytest.approx(requests, rel=0.15), name
        assert phase.read(Signal.PROMPT_TOKENS) == pytest.approx(requests * sum(PROMPT) / 2, rel=0.25), name


def test_levels_are_those_of_closed_loops(run: Run) -> None:
    for name, phase in by_phase(run):
        assert phase.read(Signal.REQUESTS_RUNNING) <= phase.cap, name
        at_server = phase.read(Signal.REQUESTS_RUNNING) + phase.read(Signal.REQUESTS_WAITING)
        # Answers are of one length, so half of the clients may be about to ask at the moment of a scrape.
        assert at_server <= CLIENTS == phase.at_server_most, name
        assert 0 < phase.read(Signal.KV_CACHE_UTILIZATION) < 1, name
        assert phase.read(Signal.PREEMPTIONS) == 0, name


# -- the other two knobs -----------------------------------------------------------------------------------------------


async def test_a_file_moves_the_cap_too(run: Run) -> None:
    async with clients(run.server.url, CLIENTS, prompt=PROMPT, tokens=ANSWER) as seen:
        for cap in (8, 2, CAPACITY):
            run.server.write_file(cap)
            await asyncio.sleep(PERIOD_S)
            assert run.server.knobs()["cap"] == cap
            assert 0 < run.server.knobs()["running"] <= cap
    assert seen.failed == []
    assert seen.finished


async def test_prefill_tokens_bound_the_tokens_of_a_step(run: Run) -> None:
    """The whole budget has room for four prompts in a step, 128 tokens for less than one.

    128 is a block of the KV cache on the CPU: less is not taken.
    """
    assert await _long_steps(run) > 0
    (run.server.cap_file.parent / "prefill-tokens").write_text("128\n")
    await asyncio.sleep(2.0)
    assert run.server.knobs()["prefillTokens"] == 128
    assert await _long_steps(run) == 0
    (run.server.cap_file.parent / "prefill-tokens").write_text("")
    await asyncio.sleep(2.0)
    assert run.server.knobs()["prefillTokens"] == TOKEN_BUDGET
    assert await _long_steps(run) > 0


async def _long_steps(run: Run) -> float:
    """Steps in which several prompts of some 220 tokens ended: vLLM counts a prompt in the step that ends it."""

    def count() -> float:
        steps = run.prometheus.value("vllm:iteration_tokens_total_count")
        short = run.prometheus.value('vllm:iteration_tokens_total_bucket{le="256.0"}')
        assert steps is not None
        assert short is not None
        return steps - short

    before = await asyncio.to_thread(count)
    async with clients(run.server.url, 8, prompt=(200, 240), tokens=ANSWER) as seen:
        await asyncio.sleep(6.0)
    assert seen.failed == []
    assert seen.finished
    await asyncio.sleep(2.0)  # until the last steps are scraped
    return await asyncio.to_thread(count) - before


async def test_the_operators_own_loop_moves_it_there_and_back(run: Run) -> None:
    """A policy whose bounds leave no choice; only the API server is not there."""
    adapter = yaml.safe_load(EXAMPLE.read_text())["spec"]["batch"]["adapter"]
    token = {"name": "vllm", "file": str(run.server.token_file), "namespaces": [NAMESPACE]}
    world = World(adapters={"http": True}, podAccess={"credentials": [token]})
    world.address_of = lambda _: f"127.0.0.1:{run.server.cap_port}"
    world.deploy(replicas=1)
    world.pod("chat", cap=CAPACITY)
    async with clients(run.server.url, CLIENTS, prompt=PROMPT, tokens=ANSWER) as seen:
        await asyncio.sleep(PERIOD_S)
        for cap in (4, CAPACITY):
            world.apply(batch={"min": cap, "max": cap, "adapter": adapter})
            await _until_applied(world)
            await asyncio.sleep(PERIOD_S)
            assert run.server.knobs()["cap"] == cap
            assert run.server.knobs()["running"] == cap
    await world.loop._stop()
    assert seen.failed == []
    assert seen.finished


async def _until_applied(world: World) -> None:
    for _ in range(20):
        await world.look()
        await asyncio.sleep(0.5)
        if world.condition("BatchApplied") == ("True", "Applied"):
            return
    raise AssertionError(world.status())


# -- the figures -------------------------------------------------------------------------------------------------------


def test_figures(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/runtimes/vllm.md keeps."""
    with capsys.disabled():
        print(f"\n{len(run.seen.finished)} requests, {len(run.seen.failed)} failed")
        print("| cap | running, most | waiting | tokens/s | TTFT p95 told / seen ms | ITL p95 told / seen ms |")
        print("|---|---|---|---|---|---|")
        for phase in run.phases:
            cells = [str(phase.cap), f"{max(ran for at_s, ran in phase.ran if at_s > phase.set_s + PERIOD_S)}"]
            cells += [f"{phase.read(signal):.0f}" for signal in (Signal.REQUESTS_WAITING, Signal.GENERATION_TOKENS)]
            for signal, seen_as in SEEN_AS.items():
                told = percentile(phase.histogram(signal), 95)
                values = run.seen.between(seen_as, phase.begin_s, phase.end_s)
                assert told is not None
                cells.append(f"{told.value * 1e3:.0f} / {values[int(0.95 * len(values))] * 1e3:.0f}")
            print(f"| {' | '.join(cells)} |")
        for phase in run.phases[1:]:
            after = [at_s for at_s, running in phase.ran if running <= phase.cap]
            print(f"cap {phase.cap}: running at or below it {after[0] - phase.set_s:.2f} s after it was set")
