"""The collector's plan and its manners, with readers that answer from memory."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from bandkeeper.api.signals import LATENCY_SIGNALS, Signal
from bandkeeper.api.snapshot import Earlier, Gap, GapReason, Reading
from bandkeeper.api.v1alpha1 import PrometheusSelection, SignalSource, Spec
from bandkeeper.signals.answer import Answer, Sample
from bandkeeper.signals.collector import ASIDE_WAIT_S, Collector, CollectorSettings
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.prometheus import ErrorKind, PrometheusError, PrometheusServer
from bandkeeper.signals.servers import WORKERS, Lane, Servers
from bandkeeper.signals.want import LatencyWant, Observations, Want

NOW_S = 1_700_000_000.0
EDGES = ("0.1", "0.5", "1.0", "5.0", "+Inf")
PODS = ("chat-7d9f8b6c5-x2k4p", "chat-7d9f8b6c5-z9v8w")

T = TypeVar("T")
Answers = Callable[[PrometheusServer, str], Awaitable[Answer]]


class Reader:
    """Stands in for a PrometheusReader."""

    def __init__(self, server: PrometheusServer, answers: Answers, asked: list[tuple[str, str]], workers: int) -> None:
        self.server, self._answers, self._asked = server, answers, asked
        self.workers = workers
        self.closed = False

    async def read(self, promql: str, take: Callable[[Answer], T]) -> T:
        self._asked.append((self.server.url, promql))
        await asyncio.sleep(0)
        return take(await self._answers(self.server, promql))

    def close(self) -> None:
        self.closed = True


class World:
    """What the servers hold: pods with a value of every signal, and what was asked of whom."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pods = {"serving": list(PODS)}
        self.age_s = 5.0
        self.value = 1.0
        self.warnings: tuple[str, ...] = ()
        self.counts = {"0.1": 0.0, "0.5": 90.0, "1.0": 95.0, "5.0": 100.0, "+Inf": 100.0}
        self.edge_series = dict.fromkeys(EDGES, 2.0)
        self.asked: list[tuple[str, str]] = []
        self.readers: list[Reader] = []
        self.answers: Answers = self.answer

        def reader(server: PrometheusServer, *, workers: int) -> Reader:
            made = Reader(server, lambda server, promql: self.answers(server, promql), self.asked, workers)
            self.readers.append(made)
            return made

        monkeypatch.setattr("bandkeeper.signals.servers.PrometheusReader", reader)

    @property
    def queries(self) -> list[str]:
        return [query for _, query in self.asked]

    async def answer(self, server: PrometheusServer, promql: str) -> Answer:
        return Answer(tuple(self._samples(promql)), self.warnings)

    def _samples(self, promql: str) -> list[Sample]:
        if promql.startswith("count by"):
            return [self._row(le, value) for le, value in self.edge_series.items()]
        if " le) (label_replace" in promql:
            wanted = re.findall(r'le=~"([^"]*)"', promql)[0].replace("[", "").replace("]", "").split("|")
            return [self._row(le, self.counts[le]) for le in wanted] + [self._row("sum", 40.0)]
        values = {"timestamp(": NOW_S - self.age_s}
        value = next((given for marker, given in values.items() if marker in promql), self.value)
        return [
            ({"namespace": namespace, "pod": pod}, value, NOW_S)
            for namespace, pods in self.pods.items()
            for pod in pods
        ]

    @staticmethod
    def _row(le: str, value: float) -> Sample:
        return ({"namespace": "serving", "bandkeeper_row": "hash/chat", "le": le}, value, NOW_S)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def a_server(name: str = "default", url: str = "http://default:9090", **settings: Any) -> PrometheusServer:
    return PrometheusServer(name=name, url=url, **settings)


def a_collector(*servers: PrometheusServer, **settings: Any) -> Collector:
    return Collector(CollectorSettings(servers=servers or (a_server(),), **settings))


def ttft(threshold_s: float | None = 0.5, window_s: float = 60.0) -> LatencyWant:
    return LatencyWant(signal=Signal.TIME_TO_FIRST_TOKEN, window_s=window_s, percentiles=(95,), threshold_s=threshold_s)


def a_want(key: str = "chat", **changes: Any) -> Want:
    values: dict[str, Any] = {
        "key": key,
        "namespace": "serving",
        "workload": "chat",
        "kind": "Deployment",
        "pods": PODS,
        "runtime": "VLLM",
        "signals": frozenset({Signal.REQUESTS_RUNNING}),
    }
    return Want(**values | changes)


async def collect(collector: Collector, *wants: Want, now_s: float = NOW_S) -> dict[str, Observations]:
    return await collector.collect(wants, now_s)


def only_gap(observations: Observations) -> Gap:
    (gap,) = observations.gaps
    return gap


# Queries.


async def test_policies_of_one_preset_share_their_queries(world: World) -> None:
    numbers = []
    for count in (1, 100):
        collector = a_collector()
        signals = frozenset(PRESETS["VLLM"].sources) - LATENCY_SIGNALS
        wants = [a_want(f"{i}", signals=signals, latencies=(ttft(0.1 * i + 0.1),)) for i in range(count)]
        found = await collect(collector, *wants)
        assert len(found) == count
        numbers.append(collector.last.queries)
        assert collector.last.queries == len(world.queries)
        world.asked.clear()
    # 15 levels and rates, two clocks, two histogram queries; aside 27 signals and the clocks of three exporters; and
    # two rates of yesterday and of a week ago.
    assert numbers[0] == numbers[1] == 15 + 2 + 2 + 27 + 3 + 4


async def test_one_query_per_metric_and_window(world: World) -> None:
    wants = [a_want(f"{i}", signals=frozenset(), latencies=(ttft(window_s=10.0 * (1 + i % 2)),)) for i in range(10)]
    await collect(a_collector(), *wants)
    assert [len(re.findall(r"\[10s]", query)) for query in world.queries if "_sum" in query].count(2) == 1
    assert len(world.queries) == 1 + 2 + 1  # edges, learned once for both windows; buckets of each; one clock


async def test_no_ready_pod_is_not_asked_for(world: World) -> None:
    found = await collect(a_collector(), a_want(pods=(), latencies=(ttft(),)))
    assert world.queries == []
    assert {gap.signal for gap in found["chat"].gaps} == {Signal.REQUESTS_RUNNING, Signal.TIME_TO_FIRST_TOKEN}
    assert {gap.reason for gap in found["chat"].gaps} == {GapReason.ABSENT}
    assert "no pod of chat is ready" in found["chat"].gaps[0].detail


async def test_namespaces_are_named(world: World) -> None:
    await collect(a_collector(), a_want("a"), a_want("b", namespace="other.team"))
    assert all('namespace=~"other[.]team|serving"' in query for query in world.queries)


async def test_parts_of_at_most_so_many_series(world: World) -> None:
    collector = a_collector(series_per_query=100)
    wants = [a_want(f"{i}", namespace=f"ns{i // 2}", workload=f"w{i}", pods=(f"w{i}-0",)) for i in range(8)]
    await collect(collector, *wants)
    assert collector.last.queries == 2 * 2
    # Four workloads, so two whole namespaces, fit into a part: pods need no pattern.
    assert sum('namespace=~"ns0|ns1", pod!=""' in query for query in world.queries) == 2
    world.asked.clear()
    wants = [a_want(f"{i}", workload=f"w{i}", pods=(f"w{i}-0",)) for i in range(8)]
    await collect(collector, *wants)
    assert sum('pod=~"(?:w0|w1|w2|w3)-.+"' in query for query in world.queries) == 2


async def test_other_label_names(world: World) -> None:
    await collect(a_collector(namespace_label="kube_ns", pod_label="kube_pod"), a_want(latencies=(ttft(),)))
    assert all('kube_ns=~"serving"' in query and "kube_pod" in query for query in world.queries)


# Histograms.


async def test_buckets_of_the_workload(world: World) -> None:
    found = (await collect(a_collector(), a_want(latencies=(ttft(0.2),))))["chat"]
    distribution = found.distributions[Signal.TIME_TO_FIRST_TOKEN, 60]
    assert distribution.edges == (0.1, 0.5, math.inf)
    assert distribution.counts == (0, 90, 100)
    assert (distribution.total_s, distribution.age_s, distribution.window_s) == (40.0, 5.0, 60.0)


async def test_edges_are_asked_for_now_and_then(world: World) -> None:
    collector = a_collector(edges_ttl_s=300)
    asked = []
    for now_s in (0.0, 15.0, 299.0, 301.0, 315.0):
        world.asked.clear()
        await collect(collector, a_want(latencies=(ttft(),)), now_s=now_s)
        asked.append(sum(query.startswith("count by") for query in world.queries))
    assert asked == [1, 0, 0, 1, 0]


async def test_edges_of_a_workload_without_series_are_asked_for_each_time(world: World) -> None:
    collector = a_collector()
    for _ in range(2):
        world.asked.clear()
        await collect(
            collector,
            a_want(latencies=(ttft(),)),
            a_want("new", namespace="late", workload="new", pods=("new-0",), latencies=(ttft(),)),
        )
    edges = [query for query in world.queries if query.startswith("count by")]
    assert len(edges) == 1
    assert 'namespace=~"late"' in edges[0]


async def test_buckets_that_contradict_each_other_are_left_out_and_learned_again(world: World) -> None:
    collector = a_collector()
    world.counts |= {"1.0": 50.0}  # a pod without this edge has come
    for _ in range(2):
        world.asked.clear()
        found = (await collect(collector, a_want(latencies=(ttft(),))))["chat"]
        assert found.distributions[Signal.TIME_TO_FIRST_TOKEN, 60].edges == (0.1, 0.5, math.inf)
        assert sum(query.startswith("count by") for query in world.queries) == 1
    world.edge_series["1.0"] = 1.0
    await collect(collector, a_want(latencies=(ttft(),)))
    world.asked.clear()
    await collect(collector, a_want(latencies=(ttft(),)))
    assert not any(query.startswith("count by") for query in world.queries)


@pytest.mark.parametrize("count", [math.nan, math.inf, -1.0, 1e16])
async def test_impossible_buckets(world: World, count: float) -> None:
    world.counts |= {"0.5": count}
    found = (await collect(a_collector(), a_want(signals=frozenset(), latencies=(ttft(),))))["chat"]
    assert found.distributions == {}
    assert only_gap(found).reason is GapReason.INVALID


async def test_two_spellings_of_an_edge_are_one(world: World) -> None:
    world.counts |= {"1": 7.0}
    world.edge_series = {"0.5": 3.0, "1": 1.0, "1.0": 2.0, "+Inf": 3.0}
    found = (await collect(a_collector(), a_want(latencies=(ttft(),))))["chat"]
    distribution = found.distributions[Signal.TIME_TO_FIRST_TOKEN, 60]
    assert distribution.edges == (0.5, 1.0, math.inf)
    assert distribution.counts == (90, 102, 102)


# Bad news.


async def test_a_warning_makes_the_answer_no_data(world: World) -> None:
    world.warnings = ("fetching series: store a.b.c: connection refused",)
    found = (await collect(a_collector(), a_want()))["chat"]
    assert found.by_pod == {}
    assert only_gap(found).reason is GapReason.PARTIAL
    assert "store a.b.c" in only_gap(found).detail


async def test_ages(world: World) -> None:
    world.age_s = 61
    signals = frozenset({Signal.REQUESTS_RUNNING, Signal.SM_ACTIVE})
    found = (await collect(a_collector(), a_want(signals=signals)))["chat"]
    assert only_gap(found).reason is GapReason.STALE
    assert only_gap(found).signal is Signal.REQUESTS_RUNNING
    assert found.by_pod[Signal.SM_ACTIVE][PODS[0]].age_s == 61  # GPU exporters have until 90 s
    world.age_s = 91
    found = (await collect(a_collector(), a_want(signals=signals)))["chat"]
    assert {gap.signal for gap in found.gaps} == signals


# GPUs: their exporter collects every 30 s.


def gpu_and_server(key: str = "chat") -> Want:
    return a_want(key, signals=frozenset({Signal.REQUESTS_RUNNING, Signal.SM_ACTIVE}))


async def test_gpus_are_asked_for_as_seldom_as_they_have_news_and_show_their_true_age(world: World) -> None:
    collector = a_collector()
    asked, ages_s = [], []
    for now_s in (100.0, 115.0, 130.0, 131.0, 90.0):  # the last one: the clock was set back
        world.asked.clear()
        found = (await collect(collector, gpu_and_server(), now_s=now_s))["chat"]
        asked.append(sum("DCGM" in query for query in world.queries))
        ages_s.append(found.by_pod[Signal.SM_ACTIVE][PODS[0]].age_s)
        assert found.by_pod[Signal.REQUESTS_RUNNING][PODS[0]].age_s == 5
        assert len(world.queries) == 2 + asked[-1]
        assert found.gaps == ()
    assert asked == [2, 0, 2, 0, 2]
    assert ages_s == [5, 20, 5, 6, 5]


async def test_a_gpu_that_was_asked_for_a_while_ago_grows_stale(world: World) -> None:
    collector = a_collector(gpu_stale_after_s=70.0)
    world.age_s = 59
    assert (await collect(collector, gpu_and_server(), now_s=0.0))["chat"].gaps == ()
    found = (await collect(collector, gpu_and_server(), now_s=15.0))["chat"]
    assert Signal.SM_ACTIVE not in found.by_pod
    assert (only_gap(found).signal, only_gap(found).reason) == (Signal.SM_ACTIVE, GapReason.STALE)
    assert "is 74 s old, more than 70 s" in only_gap(found).detail


@pytest.mark.parametrize(("fails", "asked", "age_s"), [("timestamp(", 2, 5), ("DCGM_FI_PROF_SM_ACTIVE{", 1, 20)])
async def test_a_gpu_is_never_taken_for_younger_than_it_is(world: World, fails: str, asked: int, age_s: float) -> None:
    """Values and ages are of one moment; where the values alone failed, the ages are those from before."""

    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if "DCGM" in promql and fails in promql:
            raise PrometheusError(ErrorKind.TIMEOUT, "too late")
        return await world.answer(server, promql)

    world.answers = answers
    collector = a_collector()
    found = (await collect(collector, gpu_and_server(), now_s=0.0))["chat"]
    assert (only_gap(found).signal, only_gap(found).reason) == (Signal.SM_ACTIVE, GapReason.UNREACHABLE)
    world.answers = world.answer
    world.asked.clear()
    found = (await collect(collector, gpu_and_server(), now_s=15.0))["chat"]
    assert sum("DCGM" in query for query in world.queries) == asked
    assert found.by_pod[Signal.SM_ACTIVE][PODS[0]].age_s == age_s


async def test_gpus_of_another_namespace_are_asked_for_at_once(world: World) -> None:
    collector = a_collector()
    await collect(collector, gpu_and_server(), now_s=0.0)
    world.asked.clear()
    world.pods["vision"] = ["chat-0"]
    new = a_want("new", namespace="vision", pods=("chat-0",), signals=frozenset({Signal.SM_ACTIVE}))
    found = await collect(collector, gpu_and_server(), new, now_s=1.0)
    assert found["new"].by_pod[Signal.SM_ACTIVE]["chat-0"].age_s == 5
    assert sum("DCGM" in query for query in world.queries) == 2


async def test_a_percentage_is_no_ratio(world: World) -> None:
    world.value = 87
    found = (await collect(a_collector(), a_want(signals=frozenset({Signal.SM_ACTIVE}))))["chat"]
    assert only_gap(found).reason is GapReason.INVALID
    assert "87, but SMActive is a ratio from 0 to 1" in only_gap(found).detail


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ErrorKind.UNREACHABLE, GapReason.UNREACHABLE),
        (ErrorKind.TIMEOUT, GapReason.UNREACHABLE),
        (ErrorKind.SERVER_ERROR, GapReason.UNREACHABLE),
        (ErrorKind.MALFORMED, GapReason.UNREACHABLE),
        (ErrorKind.UNAUTHORIZED, GapReason.REFUSED),
        (ErrorKind.BAD_QUERY, GapReason.REFUSED),
        (ErrorKind.TOO_LARGE, GapReason.REFUSED),
    ],
)
async def test_a_failed_query_costs_only_those_who_need_it(world: World, kind: ErrorKind, reason: GapReason) -> None:
    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if "num_requests_waiting" in promql:
            raise PrometheusError(kind, "Prometheus default: bad: do this")
        return await world.answer(server, promql)

    world.answers = answers
    signals = frozenset({Signal.REQUESTS_RUNNING, Signal.REQUESTS_WAITING})
    collector = a_collector()
    found = await collect(collector, a_want("both", signals=signals), a_want("one"))
    assert found["one"].gaps == ()
    gap = only_gap(found["both"])
    assert (gap.signal, gap.reason, gap.detail) == (
        Signal.REQUESTS_WAITING,
        reason,
        "Prometheus default: bad: do this",
    )
    assert Signal.REQUESTS_RUNNING in found["both"].by_pod
    assert collector.last.failures == 1


async def test_an_unknown_age_is_no_data(world: World) -> None:
    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if "timestamp(" in promql:
            raise PrometheusError(ErrorKind.TIMEOUT, "too late")
        return await world.answer(server, promql)

    world.answers = answers
    found = (await collect(a_collector(), a_want(latencies=(ttft(),))))["chat"]
    assert (found.by_pod, found.distributions) == ({}, {})
    assert {gap.reason for gap in found.gaps} == {GapReason.UNREACHABLE}


async def test_an_unforeseen_error_is_one_policys_gap(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if promql == "odd":
            raise KeyError("surprise")
        return await world.answer(server, promql)

    world.answers = answers
    odd = a_want("odd", overrides=(SignalSource(signal="RequestsRunning", query="odd"),))
    found = await collect(a_collector(), odd, a_want())
    assert "surprise" in only_gap(found["odd"]).detail
    assert found["chat"].gaps == ()
    assert "unforeseen" in caplog.text


async def test_a_server_that_hangs_holds_up_only_its_own_policies(world: World) -> None:
    hanging = a_server("slow", "http://slow:9090")

    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if server is hanging:
            await asyncio.sleep(0.3)
            raise PrometheusError(ErrorKind.TIMEOUT, "no answer")
        return await world.answer(server, promql)

    world.answers = answers
    slow = a_want("slow", prometheus=PrometheusSelection(name="slow"))
    came: dict[str, float] = {}
    began = time.monotonic()
    async for key, _ in a_collector(a_server(), hanging).stream([slow, a_want("quick")], NOW_S):
        came[key] = time.monotonic() - began
    assert list(came) == ["quick", "slow"]
    assert came["quick"] < 0.2
    assert came["slow"] < 0.6  # its queries hang beside each other, not one after the other


async def test_what_nobody_waits_for_any_more_is_cancelled(world: World) -> None:
    ended: list[str] = []

    async def answers(server: PrometheusServer, promql: str) -> Answer:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(promql)
            raise
        return Answer(())

    world.answers = answers
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await collect(a_collector(), a_want())
    await asyncio.sleep(0.01)
    assert len(ended) == 2


# A policy's own sources and servers.


def own(signal: Signal, query: str = "", metric: str = "") -> SignalSource:
    return SignalSource(signal=signal, query=query or None, metric=metric or None)


async def test_own_queries_have_a_budget(world: World) -> None:
    signals = frozenset({Signal.REQUESTS_RUNNING, Signal.REQUESTS_WAITING, Signal.REQUESTS_FINISHED})
    want = a_want(
        signals=signals,
        overrides=(own(Signal.REQUESTS_RUNNING, query="a"), own(Signal.REQUESTS_WAITING, query="b")),
    )
    found = await collect(a_collector(queries_per_policy=1), want)
    gap = only_gap(found["chat"])
    assert (gap.signal, gap.reason) == (Signal.REQUESTS_WAITING, GapReason.REFUSED)
    assert "drop some of spec.signals" in gap.detail
    assert Signal.REQUESTS_FINISHED in found["chat"].by_pod  # shared queries are free
    assert "b" not in world.queries


async def test_a_query_without_a_percentile_is_asked_once(world: World) -> None:
    latency = LatencyWant(signal=Signal.END_TO_END_LATENCY, percentiles=(50, 95, 99), threshold_s=1)
    for text, times in (("max(x)", 1), ("quantile($percentile / 100, x)", 3)):
        world.asked.clear()
        found = await collect(
            a_collector(),
            a_want(signals=frozenset(), latencies=(latency,), overrides=(own(latency.signal, query=text),)),
        )
        assert len(world.queries) == times
        assert found["chat"].distributions[latency.signal, 60].quantiles == {50: 1, 95: 1, 99: 1}


async def test_the_fallback_age_of_an_own_metric_is_its_own(world: World) -> None:
    want = a_want(overrides=(own(Signal.REQUESTS_RUNNING, metric="my_running"),))
    found = await collect(a_collector(), want)
    assert found["chat"].by_pod[Signal.REQUESTS_RUNNING][PODS[0]].age_s == 5
    assert [("timestamp(my_running{" in query, "my_running" in query) for query in sorted(world.queries)] == [
        (True, True),
        (False, True),
    ]


async def test_values_of_other_namespaces_are_dropped(world: World) -> None:
    world.pods = {"elsewhere": list(PODS)}
    found = await collect(
        a_collector(), a_want("own", overrides=(own(Signal.REQUESTS_RUNNING, query="x"),)), a_want("shared")
    )
    assert found["own"].by_pod == found["shared"].by_pod == {}
    assert {only_gap(one).reason for one in found.values()} == {GapReason.ABSENT}


async def test_signals_without_a_source(world: World) -> None:
    found = await collect(
        a_collector(), a_want("known", runtime="Generic"), a_want("unknown", runtime="vllm", latencies=(ttft(),))
    )
    assert "runtime Generic has no source for RequestsRunning" in only_gap(found["known"]).detail
    assert {gap.detail for gap in found["unknown"].gaps} == {
        "runtime 'vllm' is unknown: write one of VLLM, Triton, Generic"
    }
    assert world.queries == []


async def test_a_url_of_the_policy_gets_no_credentials(world: World, tmp_path: Any) -> None:
    secret = a_server(bearer_token_file=tmp_path / "token", headers={"X-Tenant": "a"})
    collector = a_collector(secret, allowed_urls=("http://team.example:9090/prom",))
    chosen = PrometheusSelection(url="http://team.example:9090/prom/a")
    found = await collect(collector, a_want(prometheus=chosen))
    assert Signal.REQUESTS_RUNNING in found["chat"].by_pod
    (reader,) = world.readers
    assert reader.server.url == "http://team.example:9090/prom/a"
    assert reader.server.bearer_token_file is None
    assert reader.server.headers == {}
    await collect(collector)
    assert reader.closed


async def test_a_policys_own_server_is_within_its_budget(world: World) -> None:
    collector = a_collector(allowed_urls=("http://team:9090",), queries_per_policy=2)
    chosen = PrometheusSelection(url="http://team:9090")
    signals = frozenset({Signal.REQUESTS_RUNNING, Signal.REQUESTS_WAITING})
    found = (await collect(collector, a_want(prometheus=chosen, signals=signals)))["chat"]
    assert only_gap(found).signal is Signal.REQUESTS_WAITING
    assert only_gap(found).reason is GapReason.REFUSED
    assert collector.last.queries == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://team:9090.evil.com",
        "http://team:9091/prom",
        "https://team:9090/prom",
        "http://team:9090/promenade",
        "http://team:9090/prom/../admin",
        "http://team:9090/prom/%2e%2e/admin",
        "http://other/team/prom",
    ],
)
def test_urls_that_only_look_allowed(url: str) -> None:
    servers = Servers((a_server(),), ("http://team:9090/prom/",))
    assert servers.select(PrometheusSelection(url="http://team:9090/prom")).url == "http://team:9090/prom"
    with pytest.raises(ValueError, match=r"is not allowed|is not a URL"):
        servers.select(PrometheusSelection(url=url))


async def test_a_refused_server_is_a_gap(world: World) -> None:
    collector = a_collector()
    found = await collect(
        collector,
        a_want("name", prometheus=PrometheusSelection(name="nobody")),
        a_want("url", prometheus=PrometheusSelection(url="http://anything")),
        a_want("fine"),
    )
    assert "write one of: default" in only_gap(found["name"]).detail
    assert "prometheus.allowedURLs" in only_gap(found["url"]).detail
    assert {only_gap(found[key]).reason for key in ("name", "url")} == {GapReason.REFUSED}
    assert found["fine"].gaps == ()


# From a policy.


def test_a_want_of_a_policy() -> None:
    document = json.dumps(
        {
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"},
            "objective": "LatencySensitive",
            "runtime": "VLLM",
            "replicas": {"min": 1, "max": 4},
            "slos": [
                {"signal": "TimeToFirstToken", "percentile": 95, "threshold": "500ms"},
                {"signal": "TimeToFirstToken", "percentile": 50, "threshold": "200ms"},
                {"signal": "InterTokenLatency", "threshold": "50ms", "window": "5m"},
                {"signal": "Samples", "minPerSecond": 5},
                {"signal": "Nonsense", "threshold": "1s"},
            ],
            "signals": [{"signal": "Samples", "metric": "my_samples"}, {"signal": "Typo", "metric": "x"}],
        }
    )
    spec = Spec.model_validate_json(document)
    want = Want.of("serving/chat", "serving", spec, ["a", "b"])
    assert want.latencies == (
        LatencyWant(signal=Signal.TIME_TO_FIRST_TOKEN, window_s=60, percentiles=(50, 95), threshold_s=0.5),
        LatencyWant(signal=Signal.INTER_TOKEN_LATENCY, window_s=300, percentiles=(95,), threshold_s=0.05),
    )
    assert want.signals == (set(PRESETS["VLLM"].sources) - LATENCY_SIGNALS) | {Signal.SAMPLES}
    assert (want.workload, want.kind, want.pods) == ("chat", "Deployment", ("a", "b"))


# What explains a GPU's work: asked beside the decision.

EXPLAINED = frozenset({Signal.REQUESTS_RUNNING, Signal.SM_OCCUPANCY, Signal.GPU_TEMPERATURE})


def aside_queries(world: World) -> int:
    return sum("OCCUPANCY" in query or "TEMP" in query for query in world.queries)


async def test_what_explains_is_asked_once_a_minute_with_its_true_age(world: World) -> None:
    collector = a_collector()
    asked, ages_s = [], []
    for now_s in (100.0, 115.0, 145.0, 155.0, 160.0, 90.0):  # the last one: the clock was set back
        world.asked.clear()
        world.value = now_s / 1000
        found = (await collect(collector, a_want(signals=EXPLAINED), now_s=now_s))["chat"]
        asked.append(aside_queries(world))
        ages_s.append(found.by_pod[Signal.SM_OCCUPANCY][PODS[0]].age_s)
        assert found.by_pod[Signal.REQUESTS_RUNNING][PODS[0]].age_s == 5
        assert found.gaps == ()
    assert asked == [2, 0, 0, 2, 0, 2]
    assert ages_s == [5, 20, 50, 5, 10, 5]


async def test_what_explains_follows_the_pods_between_questions(world: World) -> None:
    collector = a_collector()
    await collect(collector, a_want(signals=EXPLAINED), now_s=0.0)
    found = (await collect(collector, a_want(signals=EXPLAINED, pods=PODS[1:]), now_s=15.0))["chat"]
    assert dict(found.by_pod[Signal.SM_OCCUPANCY]) == {PODS[1]: Reading(1.0, 20.0)}


async def test_what_explains_grows_stale(world: World) -> None:
    collector = a_collector()
    world.age_s = 130  # of 90 s and the time between two questions
    assert (await collect(collector, a_want(signals=EXPLAINED), now_s=0.0))["chat"].by_pod.keys() == EXPLAINED - {
        Signal.REQUESTS_RUNNING
    }
    found = (await collect(collector, a_want(signals=EXPLAINED), now_s=16.0))["chat"]
    assert found.by_pod == {}
    assert {gap.reason for gap in found.gaps} == {GapReason.STALE}
    assert "is 146 s old, more than 145 s" in "".join(gap.detail for gap in found.gaps)


async def test_a_slow_explanation_holds_up_no_decision_and_is_there_in_the_next_one(world: World) -> None:
    answered = asyncio.Event()

    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if "DCGM" in promql:
            await answered.wait()
        return await world.answer(server, promql)

    world.answers = answers
    collector = a_collector()
    for now_s in (0.0, 15.0):  # asked once, however long it takes
        began = time.monotonic()
        found = {key: one async for key, one in collector.stream([a_want(signals=EXPLAINED)], now_s)}["chat"]
        assert time.monotonic() - began < 2 * ASIDE_WAIT_S
        assert found.by_pod.keys() == {Signal.REQUESTS_RUNNING}
        assert {gap.signal for gap in found.gaps} == EXPLAINED - {Signal.REQUESTS_RUNNING}
    assert sum("DCGM" in query for query in world.queries) == 1  # the ages go first
    answered.set()
    await asyncio.sleep(0.05)
    found = {key: one async for key, one in collector.stream([a_want(signals=EXPLAINED)], 30.0)}["chat"]
    assert found.gaps == ()
    assert found.by_pod[Signal.SM_OCCUPANCY][PODS[0]] == Reading(1.0, 35.0)  # asked for 30 s ago
    assert aside_queries(world) == 2


@pytest.mark.parametrize("fails", ["timestamp(", "OCCUPANCY"])
async def test_an_explanation_that_fails_leaves_the_last_one_until_that_is_stale(world: World, fails: str) -> None:
    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if "DCGM" in promql and fails in promql:
            raise PrometheusError(ErrorKind.TIMEOUT, "too late")
        return await world.answer(server, promql)

    want = a_want(signals=frozenset({Signal.SM_OCCUPANCY}))
    collector = a_collector()
    world.answers = answers
    found = (await collect(collector, want, now_s=0.0))["chat"]
    assert only_gap(found).reason is GapReason.UNREACHABLE
    world.answers = world.answer
    found = (await collect(collector, want, now_s=15.0))["chat"]  # what failed is asked for at once
    assert found.by_pod[Signal.SM_OCCUPANCY][PODS[0]].age_s == 5
    world.answers = answers
    found = (await collect(collector, want, now_s=75.0))["chat"]
    assert found.by_pod[Signal.SM_OCCUPANCY][PODS[0]].age_s == 65
    assert found.gaps == ()
    found = (await collect(collector, want, now_s=165.0))["chat"]
    assert only_gap(found).reason is GapReason.STALE


async def test_explanations_have_threads_of_their_own_and_are_no_policys_expense(world: World) -> None:
    collector = a_collector(allowed_urls=("http://team:9090",), queries_per_policy=2)
    signals = frozenset(PRESETS["Generic"].sources) - {
        signal for signal, source in PRESETS["Generic"].sources.items() if not source.aside
    }
    want = a_want(runtime="Generic", prometheus=PrometheusSelection(url="http://team:9090"), signals=signals)
    found = (await collect(collector, want))["chat"]
    assert not [gap for gap in found.gaps if gap.reason is GapReason.REFUSED]
    assert found.by_pod.keys() == signals
    (reader,) = world.readers
    assert reader.workers == WORKERS[Lane.ASIDE]


# What earlier days had at this hour: asked a step ahead, beside the decision.

TOKENS = frozenset({Signal.PROMPT_TOKENS, Signal.GENERATION_TOKENS})


@pytest.fixture
def past(world: World) -> World:
    """Rows of the past: prompts of chat at the world's value, half as much output, twice that of chat-large."""

    async def answers(server: PrometheusServer, promql: str) -> Answer:
        if " offset " not in promql:
            return await world.answer(server, promql)
        value = world.value * (0.5 if "generation" in promql else 1.0)
        rows = {"hash/chat": value, "hash/chat-large": 2 * value, "hash/idle": 0.0, "": 7.0, "hash/odd": math.nan}
        return Answer(
            tuple(({"namespace": "serving", "bandkeeper_row": row}, one, NOW_S) for row, one in rows.items()), ()
        )

    world.answers = answers
    return world


def past_queries(world: World) -> list[str]:
    return [query for query in world.queries if " offset " in query]


def ends(found: Observations) -> list[float]:
    """When the steps of yesterday end, from now."""
    day = found.recalled[Earlier.DAY]
    return [end_s - day.now_s for end_s in day.ends_s]


async def test_a_step_of_earlier_days_is_asked_every_two_minutes(past: World) -> None:
    collector = a_collector()
    asked = []
    for now_s in (0.0, 15.0, 105.0, 120.0, 225.0, 239.0):
        past.asked.clear()
        await collect(collector, a_want(signals=TOKENS), now_s=now_s)
        asked.append(len(past_queries(past)))
    assert asked == [4, 0, 0, 4, 0, 4]  # each of both tokens, yesterday and a week ago


async def test_the_queries_of_earlier_days_are_shared(past: World) -> None:
    wants = [a_want(f"{number}", workload=f"w{number}", signals=TOKENS) for number in range(50)]
    await collect(a_collector(), *wants)
    assert len(past_queries(past)) == 4
    assert {re.findall(r"\[(\d+)s\] offset (\d+)s", query)[0] for query in past_queries(past)} == {
        ("120", str(86_400 - 2400)),
        ("120", str(7 * 86_400 - 2400)),
    }


async def test_steps_come_nearer_and_go(past: World) -> None:
    collector, want = a_collector(), a_want(signals=TOKENS)
    for number in range(30):
        past.value = 100.0 + number
        found = (await collect(collector, want, now_s=120.0 * number))["chat"]
    day = found.recalled[Earlier.DAY]
    assert ends(found) == [120.0 * number for number in range(21)]
    assert day.prompt_per_s == tuple(109.0 + number for number in range(21))
    assert day.output_per_s == tuple((109.0 + number) / 2 for number in range(21))
    assert found.recalled[Earlier.WEEK] == day
    assert found.gaps == ()


async def test_a_workload_has_its_own_past_alone(past: World) -> None:
    pods = {"chat": PODS, "chat-large": ("chat-large-7d9c5b8f6-x2x4k",), "new": ("new-7d9c5b8f6-x2x4k",)}
    wants = [a_want(name, workload=name, pods=pods[name], signals=TOKENS) for name in pods]
    found = await collect(a_collector(), *wants)
    told = {name: [day.prompt_per_s for day in one.recalled.values()] for name, one in found.items()}
    assert told == {"chat": [(1.0,)] * 2, "chat-large": [(2.0,)] * 2, "new": []}


async def test_no_traffic_then_is_a_past_and_nonsense_is_none(past: World) -> None:
    pods = ("7d9c5b8f6-x2x4k",)
    wants = [a_want(name, workload=name, pods=(f"{name}-{pods[0]}",), signals=TOKENS) for name in ("idle", "odd")]
    found = await collect(a_collector(), *wants)
    assert found["idle"].recalled[Earlier.DAY].prompt_per_s == (0.0,)
    assert found["odd"].recalled == {}


async def test_pods_that_do_not_tell_their_workload_have_no_past(past: World) -> None:
    past.pods = {"serving": ["chat", "other"]}
    found = await collect(a_collector(), a_want(pods=("chat", "other"), signals=TOKENS))
    assert found["chat"].recalled == {}


async def test_a_policy_with_tokens_of_its_own_has_no_past(past: World) -> None:
    own_one = SignalSource(signal=Signal.PROMPT_TOKENS, metric="my_prompt_tokens_total")
    await collect(a_collector(), a_want(signals=TOKENS, overrides=(own_one,)))
    await collect(a_collector(), a_want(signals=frozenset({Signal.PROMPT_TOKENS})))
    assert past_queries(past) == []


@pytest.mark.parametrize("fails", ["prompt_tokens", "generation_tokens"])
async def test_a_past_that_fails_is_a_hole_and_costs_nobody_else(past: World, fails: str) -> None:
    answers = past.answers

    async def failing(server: PrometheusServer, promql: str) -> Answer:
        if " offset " in promql and fails in promql:
            raise PrometheusError(ErrorKind.TIMEOUT, "too late")
        return await answers(server, promql)

    collector, want = a_collector(), a_want(signals=TOKENS)
    found = []
    for number in range(3):
        past.answers = failing if number == 1 else answers
        found.append((await collect(collector, want, now_s=120.0 * number))["chat"])
    assert [one.gaps for one in found] == [()] * 3
    assert all(one.by_pod.keys() == TOKENS for one in found)
    assert ends(found[2]) == [2400 - 240, 2400]


async def test_a_slow_past_holds_up_no_decision(past: World) -> None:
    answered, answers = asyncio.Event(), past.answers

    async def waiting(server: PrometheusServer, promql: str) -> Answer:
        if " offset " in promql:
            await answered.wait()
        return await answers(server, promql)

    past.answers = waiting
    collector = a_collector()
    for now_s in (0.0, 15.0, 300.0):
        found = {key: one async for key, one in collector.stream([a_want(signals=TOKENS)], now_s)}["chat"]
        assert not found.recalled
        assert found.by_pod.keys() == TOKENS
    assert len(past_queries(past)) == 2  # once, however long it takes: the first of both tokens of both days
    answered.set()
    await asyncio.sleep(0.05)
    found = {key: one async for key, one in collector.stream([a_want(signals=TOKENS)], 315.0)}["chat"]
    assert ends(found)[0] == 2400 - 315
    await asyncio.sleep(0.05)
    collector.close()


async def test_a_clock_that_was_set_back_forgets_the_past(past: World) -> None:
    collector, want = a_collector(), a_want(signals=TOKENS)
    await collect(collector, want, now_s=1000.0)
    found = (await collect(collector, want, now_s=100.0))["chat"]
    assert ends(found) == [2400]


async def test_a_policys_own_source_of_an_explanation_is_asked_with_its_decision(world: World) -> None:
    own_one = SignalSource(signal=Signal.POWER_LIMIT, metric="my_limit_watts")
    want = a_want(signals=frozenset({Signal.POWER_LIMIT}), overrides=(own_one,))
    collector = a_collector()
    for now_s in (0.0, 30.0):
        world.asked.clear()
        found = (await collect(collector, want, now_s=now_s))["chat"]
        assert found.by_pod[Signal.POWER_LIMIT][PODS[0]] == Reading(1.0, 5.0)
        assert len(world.queries) == 2
