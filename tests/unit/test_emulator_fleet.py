"""The emulated fleet: routing, gateway, pods that come and go, GPUs and their exporter's period."""

from __future__ import annotations

import pytest

from tests.emulator.config import ConfigError, EmulatorConfig, parse_config
from tests.emulator.fleet import Fleet, PodInfo
from tests.emulator.histogram import Histogram, RecentHistogram
from tests.emulator.load import ClosedLoad, ConstantLoad
from tests.emulator.web import ledger


def a_config(
    *, load: object = None, dcgm: object = None, names: tuple[str, ...] = ("chat",), **server: object
) -> EmulatorConfig:
    workloads = [
        {
            "name": name,
            "namespace": "serving",
            "selector": {"app": name},
            "kind": "continuous",
            "server": {"preset": "a100-wva", **server},
            "load": load or {"kind": "constant", "rate_per_s": 4},
            "tokens": {"prompt": {"kind": "fixed", "value": 200}, "output": {"kind": "uniform", "low": 5, "high": 100}},
        }
        for name in names
    ]
    return parse_config({"workloads": workloads, "dcgm": dcgm or {}})


def a_pod(number: int = 0, **changes: object) -> PodInfo:
    given: dict[str, object] = {
        "namespace": "serving",
        "name": f"chat-{number}",
        "uid": f"uid-{number}",
        "node": "gpu-0",
        "ready": True,
    }
    return PodInfo(**{**given, **changes})  # type: ignore[arg-type]


def assert_conserved(fleet: Fleet, name: str = "chat") -> None:
    account = ledger(fleet.workloads[name], fleet.now_s)
    parts = ("succeeded", "failed", "rejected", "running", "waiting", "at_gateway")
    assert account["arrived"] == sum(account[part] for part in parts), account


def test_requests_wait_at_the_gateway_for_the_first_ready_pod_and_their_ttft_includes_that() -> None:
    fleet = Fleet(a_config(load={"kind": "steps", "points": [[0, 5], [2, 0]]}))
    fleet.set_pods("chat", [a_pod(ready=False)], 0.0)
    fleet.advance(60.0)
    waiting = len(fleet.workloads["chat"].gateway)
    assert waiting == fleet.workloads["chat"].arrived > 0
    assert_conserved(fleet)
    fleet.set_pods("chat", [a_pod(ready=True)], 60.0)
    assert_conserved(fleet)
    fleet.advance(120.0)
    stats = fleet.workloads["chat"].stats()
    assert stats.succeeded == waiting
    assert stats.ttft.sum / stats.ttft.count > 58.0
    assert_conserved(fleet)


def test_router_prefers_the_pod_with_the_fewest_requests_in_hand() -> None:
    fleet = Fleet(a_config(load={"kind": "constant", "rate_per_s": 8}))
    fleet.set_pods("chat", [a_pod(0), a_pod(1), a_pod(2)], 0.0)
    fleet.advance(300.0)
    arrived = [one.server.stats.arrived for one in fleet.workloads["chat"].pods.values()]
    assert sum(arrived) == fleet.workloads["chat"].arrived
    assert min(arrived) > 0.9 * max(arrived)
    fleet.set_pods("chat", [a_pod(0), a_pod(1, ready=False), a_pod(2)], 300.0)
    fleet.advance(400.0)
    after = [one.server.stats.arrived for one in fleet.workloads["chat"].pods.values()]
    assert after[1] == arrived[1]
    assert after[0] > arrived[0]


def test_workloads_with_one_seed_see_the_same_requests_whatever_their_pods_and_ticks() -> None:
    def arrived(tick_s: float, pods: int) -> list[int]:
        fleet = Fleet(a_config(names=("chat", "code")))
        fleet.set_pods("chat", [a_pod(number) for number in range(pods)], 0.0)
        at_s, counts = 0.0, []
        while at_s < 60:
            at_s += tick_s
            fleet.advance(at_s)
            if round(at_s / tick_s) % round(10 / tick_s) == 0:
                counts.append(fleet.workloads["chat"].arrived)
                assert fleet.workloads["chat"].arrived == fleet.workloads["code"].arrived
        return counts

    assert arrived(0.05, 1) == arrived(2.5, 3)


def test_router_gives_a_slow_pod_less() -> None:
    fleet = Fleet(a_config(load={"kind": "constant", "rate_per_s": 6}))
    fleet.set_pods("chat", [a_pod(0), a_pod(1, capacity=1)], 0.0)
    fleet.advance(200.0)
    fast, slow = (one.server.stats.arrived for one in fleet.workloads["chat"].pods.values())
    assert 0 < slow < 0.5 * fast


@pytest.mark.parametrize(
    "load", [{"kind": "constant", "rate_per_s": 10}, {"kind": "closed", "clients": 20, "think_s": 0.3}]
)
def test_numbers_do_not_depend_on_the_tick(load: dict[str, object]) -> None:
    def played(tick_s: float) -> dict[str, object]:
        fleet = Fleet(a_config(load=load, capacity=8))
        fleet.set_pods("chat", [a_pod(0), a_pod(1)], 0.0)
        for number in range(round(120 / tick_s)):
            fleet.advance((number + 1) * tick_s)
        account = ledger(fleet.workloads["chat"], 120.0)
        return {key: account[key] for key in ("ttft_s", "itl_s", "e2e_s", "queue_s", "arrived", "succeeded")}

    assert played(0.0625) == played(4.0)


def test_deleted_pod_drains_and_its_account_is_kept() -> None:
    fleet = Fleet(a_config())
    fleet.set_pods("chat", [a_pod(0), a_pod(1)], 0.0)
    fleet.advance(100.0)
    before = fleet.workloads["chat"].stats()
    fleet.set_pods("chat", [a_pod(1)], 100.0)
    fleet.advance(200.0)
    assert list(fleet.workloads["chat"].pods) == ["uid-1"]
    after = fleet.workloads["chat"].stats()
    assert after.failed == 0
    assert after.succeeded > before.succeeded
    assert_conserved(fleet)


def test_terminating_pod_gets_no_requests_and_aborts_what_outlives_its_grace() -> None:
    fleet = Fleet(a_config(capacity=1))
    fleet.set_pods("chat", [a_pod(0)], 0.0)
    fleet.advance(60.0)
    arrived = fleet.workloads["chat"].stats().arrived
    fleet.set_pods("chat", [a_pod(0, terminating=True, ready=False, grace_s=2.0)], 60.0)
    fleet.advance(70.0)
    stats = fleet.workloads["chat"].stats()
    assert stats.arrived == arrived
    assert stats.finished["abort"] > 0
    assert not fleet.workloads["chat"].pods
    assert len(fleet.workloads["chat"].gateway) > 0
    assert_conserved(fleet)


def test_pod_annotation_is_obeyed_late_and_boot_values_at_once() -> None:
    fleet = Fleet(a_config(load={"kind": "constant", "rate_per_s": 100}, cap_delay_s=30, prefill_budget=100_000))
    fleet.set_pods("chat", [a_pod(0), a_pod(1, cap=5), a_pod(2, capacity=12)], 0.0)
    fleet.advance(20.0)

    def running() -> list[int]:
        return [one.server.running_count for one in fleet.workloads["chat"].pods.values()]

    assert running() == [64, 5, 12]
    fleet.set_pods("chat", [a_pod(0, cap=9), a_pod(1, cap=5), a_pod(2, cap=40, capacity=12)], 20.0)
    fleet.advance(49.0)
    assert running() == [64, 5, 12]
    fleet.advance(80.0)
    assert running() == [9, 5, 12]


def test_new_load_starts_its_clock_at_that_moment() -> None:
    fleet = Fleet(a_config(load={"kind": "constant", "rate_per_s": 0}))
    fleet.set_pods("chat", [a_pod(0)], 0.0)
    fleet.advance(100.0)
    assert fleet.workloads["chat"].arrived == 0
    fleet.set_load("chat", ConstantLoad(kind="constant", rate_per_s=10), 100.0)
    fleet.advance(200.0)
    assert fleet.workloads["chat"].arrived == pytest.approx(1000, rel=0.1)


def test_closed_loop_keeps_its_clients_busy_and_never_more() -> None:
    fleet = Fleet(a_config(load={"kind": "closed", "clients": 12}))
    fleet.set_pods("chat", [a_pod(0), a_pod(1)], 0.0)
    for tick in range(400):
        fleet.advance(0.3 * tick)
        account = ledger(fleet.workloads["chat"], fleet.now_s)
        if tick:
            assert account["running"] + account["waiting"] == 12
    assert account["succeeded"] > 500
    assert_conserved(fleet)


def test_closed_loop_client_pauses_after_a_rejection() -> None:
    fleet = Fleet(a_config(load={"kind": "closed", "clients": 50}, capacity=2, max_queue=1))
    fleet.set_pods("chat", [a_pod(0)], 0.0)
    fleet.advance(30.0)
    stats = fleet.workloads["chat"].stats()
    assert 0 < stats.rejected <= 50 * 31
    assert_conserved(fleet)


def test_closed_loop_of_another_load_leaves() -> None:
    fleet = Fleet(a_config(load={"kind": "closed", "clients": 12}))
    fleet.set_pods("chat", [a_pod(0)], 0.0)
    fleet.advance(10.0)
    fleet.set_load("chat", ClosedLoad(kind="closed", clients=3), 10.0)
    fleet.advance(60.0)
    account = ledger(fleet.workloads["chat"], 60.0)
    assert account["running"] + account["waiting"] == 3


def test_pod_seconds_count_scheduled_and_ready_pods() -> None:
    fleet = Fleet(a_config())
    fleet.set_pods("chat", [a_pod(0), a_pod(1, ready=False), a_pod(2, node=None, ready=False)], 0.0)
    fleet.advance(10.0)
    workload = fleet.workloads["chat"]
    assert (workload.pod_s, workload.ready_pod_s) == (20.0, 10.0)


class TestGpus:
    def test_values_are_those_of_the_last_full_period(self) -> None:
        fleet = Fleet(a_config(load={"kind": "constant", "rate_per_s": 12}, dcgm={"period_s": 30}))
        fleet.set_pods("chat", [a_pod(0)], 0.0)
        fleet.advance(29.9)
        assert fleet.gpus.samples == {}
        fleet.advance(65.0)
        sample, *others = fleet.gpus.samples["gpu-0"]
        assert sample.pod is not None
        assert sample.busy == pytest.approx(1.0, abs=0.05)
        assert 0.3 < sample.dram < 0.71
        assert 0.02 < sample.tensor < 0.41
        assert 100 < sample.power_w < 700
        assert len(others) == 7
        assert all((one.pod, one.busy) == (None, 0.0) for one in others)
        fleet.advance(89.0)
        assert fleet.gpus.samples["gpu-0"][0] == sample

    def test_one_request_in_flight_makes_the_gpu_busy(self) -> None:
        fleet = Fleet(a_config(load={"kind": "closed", "clients": 1}, dcgm={"period_s": 10}))
        fleet.set_pods("chat", [a_pod(0)], 0.0)
        fleet.advance(25.0)
        assert fleet.gpus.samples["gpu-0"][0].busy == pytest.approx(1.0)
        assert fleet.gpus.samples["gpu-0"][0].tensor < 0.05

    def test_idle_pod_is_idle_and_holds_its_memory(self) -> None:
        fleet = Fleet(a_config(load={"kind": "constant", "rate_per_s": 0}, dcgm={"period_s": 10}))
        fleet.set_pods("chat", [a_pod(0)], 0.0)
        fleet.advance(25.0)
        sample = fleet.gpus.samples["gpu-0"][0]
        assert (sample.busy, sample.tensor, sample.dram) == (0.0, 0.0, 0.0)
        assert sample.used_mib > 0.8 * 81_559
        assert sample.used_mib + sample.free_mib == 81_559

    def test_each_pod_has_its_own_gpus_and_a_gone_pods_gpu_is_free_again(self) -> None:
        fleet = Fleet(a_config(load={"kind": "constant", "rate_per_s": 0}, dcgm={"period_s": 10}))
        fleet.set_pods("chat", [a_pod(0), a_pod(1, gpus=2), a_pod(2, node="gpu-1")], 0.0)
        fleet.advance(10.0)

        def owners(node: str) -> list[str | None]:
            return [one.pod.name if one.pod else None for one in fleet.gpus.samples[node]]

        assert owners("gpu-0")[:4] == ["chat-0", "chat-1", "chat-1", None]
        assert owners("gpu-1")[:2] == ["chat-2", None]
        fleet.set_pods("chat", [a_pod(1, gpus=2), a_pod(3)], 11.0)
        assert owners("gpu-0")[0] == "chat-0"  # the exporter still serves its last collection
        fleet.advance(20.0)
        assert owners("gpu-0")[:4] == ["chat-3", "chat-1", "chat-1", None]
        assert owners("gpu-1") == [None] * 8
        uuids = [one.uuid for samples in fleet.gpus.samples.values() for one in samples]
        assert len(set(uuids)) == 16


class TestConfig:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"server": {"preset": "h200"}}, "unknown preset 'h200'; write one of: a100-wva"),
            (
                {"server": {"preset": "a100-wva", "alpha_ms": -1}},
                "alpha_ms: Input should be greater than 0 (given: -1)",
            ),
            ({"server": {"preset": "a100-wva", "speed": 1}}, "speed: Extra inputs are not permitted"),
            ({"kind": "magic"}, "kind"),
            ({"selector": {}}, "selector"),
            ({"load": {"kind": "linear", "points": [[5, 1]]}}, "points must begin at t = 0"),
            ({"kind": "dynamic", "server": {"capacity": 64, "batch_ms": {1: 2, 32: 5}}}, "capacity (64)"),
        ],
    )
    def test_mistake_is_named_with_its_place(self, change: dict[str, object], words: str) -> None:
        workload = {
            "name": "chat",
            "namespace": "serving",
            "selector": {"app": "chat"},
            "kind": "continuous",
            "server": {"preset": "a100-wva"},
            "load": {"kind": "constant", "rate_per_s": 1},
        }
        parse_config({"workloads": [workload]})
        with pytest.raises(ConfigError) as error:
            parse_config({"workloads": [{**workload, **change}]})
        assert words in str(error.value)
        assert "workloads.0" in str(error.value)

    def test_no_workload_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="at least one entry"):
            parse_config({"workloads": []})

    def test_two_workloads_of_one_name_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="chat"):
            a_config(names=("chat", "chat"))

    def test_preset_gives_values_and_a_value_beside_it_wins(self) -> None:
        server = a_config(beta_ms=0.9).workloads[0].server
        assert server.model_dump().items() >= {"alpha_ms": 20.58, "beta_ms": 0.9, "gamma_ms": 5.2}.items()

    def test_selector_may_be_written_as_match_labels(self) -> None:
        document = a_config().model_dump()
        document["workloads"][0]["selector"] = {"matchLabels": {"app": "chat", "tier": "x"}}
        assert parse_config(document).workloads[0].label_selector == "app=chat,tier=x"


class TestHistogram:
    def test_bucket_holds_its_upper_bound(self) -> None:
        histogram = Histogram((0.1, 0.5), fine=True)
        for value in (0.1, 0.1001, 0.5, 9.0):
            histogram.observe(value)
        assert histogram.cumulative() == [1, 3]
        assert histogram.count == 4
        assert histogram.sum == pytest.approx(9.7001)

    def test_fine_quantile_is_within_five_percent(self) -> None:
        histogram = Histogram((0.1, 0.5), fine=True)
        for number in range(1, 1001):
            histogram.observe(number / 1000)
        for q in (0.05, 0.5, 0.95, 0.99):
            assert histogram.quantile(q) == pytest.approx(q, rel=0.05)
        assert Histogram((1.0,)).quantile(0.5) is None

    def test_merge_wants_the_same_edges(self) -> None:
        with pytest.raises(ValueError, match="different edges"):
            Histogram((1.0,)).merge(Histogram((2.0,)))

    def test_recent_histogram_forgets(self) -> None:
        recent = RecentHistogram()
        recent.observe(5.0, 0.0)
        recent.observe(1.0, 50.0)
        assert recent.quantile(1.0, 55.0) == pytest.approx(5.0, rel=0.05)
        assert recent.quantile(1.0, 65.0) == pytest.approx(1.0, rel=0.05)
        assert recent.count == 2


class TestWhatAllReplicasShare:
    def test_more_replicas_than_are_fed_do_no_more_and_their_gpus_do_less_each(self) -> None:
        def played(replicas: int) -> tuple[float, float, float]:
            document = a_config(load={"kind": "constant", "rate_per_s": 60}).model_dump(exclude_defaults=True)
            document["workloads"][0]["fed_replicas"] = 2
            fleet = Fleet(parse_config(document))
            fleet.set_pods("chat", [a_pod(number) for number in range(replicas)], 0.0)
            fleet.advance(120.0)
            (samples,) = fleet.gpus.samples.values()
            mine = next(sample for sample in samples if sample.pod is not None)
            return fleet.workloads["chat"].stats().succeeded / 120, mine.busy, mine.dram

        (one, _, full), (two, _, _), (four, busy, half) = played(1), played(2), played(4)
        assert two == pytest.approx(2 * one, rel=0.05)
        assert four == pytest.approx(two, rel=0.05)
        assert busy == pytest.approx(1.0)
        assert half == pytest.approx(full / 2, rel=0.1)
