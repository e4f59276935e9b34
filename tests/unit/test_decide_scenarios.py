"""Decisions over simulated time: loads that rise and fall, things that break, people who interfere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from bandkeeper.api.reasons import BandReason, LimitReason, Reason, SLOState
from bandkeeper.api.signals import Signal
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import MetricsState
from bandkeeper.decide.policy import Band, CostClass, LatencySLO, Policy
from tests.unit.builders import LIMITS_DOWN, TTFT, a_batch, a_policy, rules
from tests.unit.tiny_fleet import Fleet, Server, Tick, play

MU = Server().best_rate  # requests/s of one replica at its best
PATIENT_TTFT = replace(TTFT, threshold_s=1.0)
WINDOWS = {Objective.LATENCY_SENSITIVE: 600.0, Objective.BALANCED: 300.0, Objective.THROUGHPUT_SENSITIVE: 120.0}


def offered(replicas_of_work: float) -> Callable[[float], float]:
    return lambda at_s: replicas_of_work * MU


def wave(low: float, high: float, period_s: float) -> Callable[[float], float]:
    return lambda at_s: MU * (low + (high - low) * (1 - abs((at_s % period_s) / period_s * 2 - 1)))


def policy_of(objective: Objective, **more: object) -> Policy:
    """The objective with its own scale-down window."""
    down = rules(window_s=WINDOWS[objective], limits=LIMITS_DOWN)
    return a_policy(objective, slos=[PATIENT_TTFT], scale_down=down, **more)  # type: ignore[arg-type]


def changes(ticks: list[Tick]) -> int:
    counts = [tick.replicas for tick in ticks]
    return sum(before != after for before, after in pairwise(counts))


def replica_seconds(ticks: list[Tick]) -> float:
    return float(sum(tick.replicas for tick in ticks))


class TestOverload:
    """1.06 times the capacity of two replicas, for 40 minutes."""

    def run(self, *, batch: bool, cap: int = 64, unlimited: bool = False, seed: int | None = None) -> list[Tick]:
        fleet = Fleet(replicas=2, seed=seed)
        for pod in fleet.pods:
            pod.cap = cap
        knob = a_batch((8, 16, 32, 64)) if batch else None
        policy = a_policy(slos=[] if unlimited else [PATIENT_TTFT], batch=knob, replicas=(2, 40))
        return play(fleet, policy, offered(2 * 1.06), seconds=2400)

    @pytest.mark.parametrize("seed", [None, 1, 2, 3])
    def test_ends_at_the_same_count_with_and_without_batch_control(self, seed: int | None) -> None:
        with_knob, without = self.run(batch=True, seed=seed), self.run(batch=False, seed=seed)
        assert with_knob[-1].replicas == without[-1].replicas == 3
        assert max(tick.replicas for tick in with_knob) <= 4

    def test_also_from_a_lowered_cap(self) -> None:
        ticks = self.run(batch=True, cap=8)
        assert ticks[-1].replicas == 3
        assert ticks[-1].cap == 64
        assert max(tick.replicas for tick in ticks) <= 6  # 2 x work + 2: not sized at the lowered cap (16 and more)

    def test_the_count_does_not_grow_with_the_backlog(self) -> None:
        """A backlog of an hour's work, and the same overload: the bound is the offered work."""
        fleet = Fleet(replicas=2, in_flight=20_000.0)
        ticks = play(fleet, a_policy(slos=[PATIENT_TTFT], replicas=(2, 40)), offered(2 * 1.06), seconds=1200)
        assert max(tick.replicas for tick in ticks) <= 8

    def test_the_cap_is_never_lowered_while_work_waits(self) -> None:
        itl = LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=95, threshold_s=0.035, window_s=60.0)
        fleet = Fleet(Server(queue_bound=50), replicas=2, seed=1)
        policy = a_policy(slos=[PATIENT_TTFT, itl], batch=a_batch((8, 16, 32, 64)), replicas=(2, 2))
        ticks = play(fleet, policy, offered(2.6), seconds=1200)
        for before, tick in pairwise(ticks):
            if tick.in_flight > 2 * tick.cap + 10 and before.decision.cap and tick.decision.cap:
                assert tick.decision.cap >= before.decision.cap


class TestStuckCap:
    """Caps that may not rise: what they carry is what there is, and a queue must still end."""

    def run(self, cost_class: CostClass, itl_s: float) -> list[Tick]:
        itl = LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=95, threshold_s=itl_s, window_s=60.0)
        fleet = Fleet(replicas=3, seed=1)
        for pod in fleet.pods:
            pod.cap = 16
        knob = a_batch((8, 16, 32, 64), cost_class=cost_class)
        return play(fleet, a_policy(slos=[PATIENT_TTFT, itl], batch=knob), offered(2.0), seconds=2400)

    @pytest.mark.parametrize(
        ("cost_class", "itl_s"), [(CostClass.LIVE, 0.03), (CostClass.ROLLOUT, 0.03), (CostClass.ROLLOUT, 1.0)]
    )
    def test_a_queue_behind_it_ends(self, cost_class: CostClass, itl_s: float) -> None:
        ticks = self.run(cost_class, itl_s)
        assert max(tick.replicas for tick in ticks) <= 16
        late = [tick for tick in ticks if tick.at_s > 1200]
        assert all(tick.in_flight <= tick.ready * tick.cap * 1.2 for tick in late)
        assert sum(tick.decision.slos[0].state is SLOState.MET for tick in late) >= 0.9 * len(late)


class TestRamp:
    @pytest.mark.parametrize("objective", list(Objective))
    def test_follows_up_and_down(self, objective: Objective) -> None:
        fleet = Fleet(replicas=2, seed=4)
        ticks = play(fleet, policy_of(objective), lambda at_s: wave(1, 8, 3600)(min(at_s, 3600)), seconds=6000)
        top = max(tick.replicas for tick in ticks)
        assert 8 <= top <= 12
        assert ticks[-1].replicas <= 2
        assert changes(ticks) <= 2 * top + 4

    def test_objectives_differ(self) -> None:
        spent = {}
        for objective in Objective:
            fleet = Fleet(replicas=2, seed=4)
            spent[objective] = replica_seconds(play(fleet, policy_of(objective), wave(1, 8, 3600), seconds=3600))
        assert spent[Objective.THROUGHPUT_SENSITIVE] < spent[Objective.BALANCED] < spent[Objective.LATENCY_SENSITIVE]


def test_flash_crowd_is_met_at_once_and_in_proportion() -> None:
    fleet = Fleet(replicas=4, seed=1)
    policy = a_policy(slos=[PATIENT_TTFT], replicas=(1, 40))
    ticks = play(fleet, policy, lambda at_s: MU * (2.5 if at_s < 600 else 10), seconds=1800)
    crowd = [tick for tick in ticks if tick.at_s > 600]
    assert crowd[0].decision.emergency
    assert crowd[2].replicas >= 16  # within three ticks, as fast as HPA's default rates allow
    assert max(tick.replicas for tick in crowd) <= 2 * 10 * 1.2 + 2
    calm = [tick for tick in crowd if tick.at_s > 1200]
    assert all(11 <= tick.replicas <= 14 for tick in calm)


class TestNight:
    @pytest.mark.parametrize("objective", list(Objective))
    def test_without_traffic_the_fleet_goes_to_min(self, objective: Objective) -> None:
        fleet = Fleet(replicas=8, seed=1)
        policy = policy_of(objective, replicas=(2, 16))
        ticks = play(fleet, policy, lambda at_s: 5 * MU if at_s < 900 else 0.0, seconds=3600)
        assert ticks[-1].replicas == 2
        assert ticks[-1].decision.band.reason is BandReason.AT_BOUND
        assert ticks[-1].decision.slos[0].state is SLOState.NO_TRAFFIC
        assert ticks[-1].decision.metrics.state is MetricsState.USABLE

    def test_a_few_requests_do_not_keep_the_fleet(self) -> None:
        fleet = Fleet(replicas=8, seed=1)
        policy = policy_of(Objective.BALANCED)
        ticks = play(fleet, policy, lambda at_s: 5 * MU if at_s < 900 else 0.05, seconds=3600)
        assert ticks[-1].replicas == 1
        assert SLOState.TOO_FEW_REQUESTS in {tick.decision.slos[0].state for tick in ticks[-40:]}


class TestOutage:
    def blinded(self, fleet: Fleet, tick: Tick) -> None:
        fleet.blind = 1200 <= fleet.now_s < 1500

    def test_five_minutes_without_metrics_lower_nothing(self) -> None:
        """The load goes to nothing just as the metrics do."""
        fleet = Fleet(replicas=6, seed=1)
        load = lambda at_s: 4 * MU if at_s < 1200 else 0.1 * MU  # noqa: E731
        ticks = play(fleet, a_policy(slos=[PATIENT_TTFT]), load, seconds=1800, each=self.blinded)
        before = next(tick for tick in ticks if tick.at_s >= 1200)
        dark = [tick for tick in ticks if 1200 < tick.at_s <= 1500]
        assert all(tick.replicas >= before.replicas for tick in dark)
        assert dark[0].decision.metrics.state is MetricsState.NONE  # told within one period
        assert dark[0].decision.reason is Reason.METRICS_MISSING
        assert dark[-1].decision.metrics.in_fallback
        back = [tick for tick in ticks if tick.at_s > 1500]
        assert back[0].decision.metrics.state is MetricsState.USABLE
        assert ticks[-1].replicas < before.replicas  # and once enough was seen again, it shrinks

    def test_scaling_out_resumes_at_once(self) -> None:
        fleet = Fleet(replicas=6, seed=1)
        load = lambda at_s: 4 * MU if at_s < 1300 else 9 * MU  # noqa: E731
        ticks = play(fleet, a_policy(slos=[PATIENT_TTFT]), load, seconds=1700, each=self.blinded)
        back = [tick for tick in ticks if tick.at_s > 1500]
        assert max(tick.replicas for tick in back[:2]) > 6


def test_after_a_restart_nothing_is_let_go_for_a_while() -> None:
    fleet = Fleet(replicas=6, seed=1)
    policy = a_policy(slos=[PATIENT_TTFT], restart_hold_s=300.0)
    ticks = play(fleet, policy, offered(1.0), seconds=900)
    assert all(tick.replicas == 6 for tick in ticks if tick.at_s < 300)
    assert ticks[-1].replicas < 6


def test_pods_without_a_node_are_told_and_do_not_multiply() -> None:
    fleet = Fleet(replicas=2, seed=1, room=3)
    ticks = play(fleet, a_policy(slos=[PATIENT_TTFT], replicas=(1, 64)), offered(4.0), seconds=1200)
    last = ticks[-1].decision
    assert last.limit is not None
    assert last.limit.reason is LimitReason.UNSCHEDULABLE
    assert last.inputs.pending_lost > 0
    assert ticks[-1].replicas <= 2 * 4 + 3  # bounded by the offered work, though three quarters of it wait


class TestOtherHands:
    def test_a_person_prepares_for_an_event(self) -> None:
        fleet = Fleet(replicas=2, seed=1)

        def prepare(fleet: Fleet, tick: Tick) -> None:
            if tick.at_s == 600:
                fleet.scale(8, "kubectl")

        ticks = play(
            fleet,
            a_policy(slos=[PATIENT_TTFT], scale_down=rules(window_s=300.0)),
            offered(1.0),
            seconds=1500,
            each=prepare,
        )
        assert all(tick.replicas == 8 for tick in ticks if 600 < tick.at_s < 900)
        assert ticks[-1].replicas < 8

    def test_a_manager_that_always_goes_back_is_left_alone(self) -> None:
        fleet = Fleet(replicas=2, seed=1)
        writes = 0

        def heal(fleet: Fleet, tick: Tick) -> None:
            nonlocal writes
            if fleet.wanted != 2:
                writes += 1
                fleet.scale(2, "argocd")

        ticks = play(fleet, a_policy(slos=[PATIENT_TTFT]), offered(3.0), seconds=900, each=heal)
        assert writes == 3
        assert ticks[-1].decision.undone_by == "argocd"
        assert ticks[-1].decision.replicas is None


class TestSmallFleetsRest:
    """Tolerances of ten percent mean nothing to one, two or three replicas: they must rest all the same."""

    @pytest.mark.parametrize("objective", list(Objective))
    @pytest.mark.parametrize("work", [0.3, 0.6, 1.2, 1.7, 2.4])
    def test_a_constant_load_moves_nothing(self, objective: Objective, work: float) -> None:
        ticks = play(Fleet(replicas=2, seed=7), policy_of(objective), offered(work), seconds=7200)
        settled = [tick for tick in ticks if tick.at_s > 2400]
        assert changes(settled) <= 2

    @pytest.mark.parametrize(("alpha_s", "beta_s"), [(0.03, 0.00003), (0.008, 0.0006)], ids=["flat", "steep"])
    def test_whatever_the_server_is_like(self, alpha_s: float, beta_s: float) -> None:
        server = Server(alpha_s=alpha_s, beta_s=beta_s)
        for work in (0.5, 1.3, 1.8):
            fleet = Fleet(server, replicas=3, seed=3)
            load = work * server.best_rate
            ticks = play(fleet, policy_of(Objective.LATENCY_SENSITIVE), lambda at_s, load=load: load, seconds=7200)  # type: ignore[misc]
            assert changes([tick for tick in ticks if tick.at_s > 2400]) <= 2

    def test_a_scale_in_that_proved_wrong_is_not_repeated(self) -> None:
        """A server whose throughput bends sharply: the curve says two will do, the fleet says three."""
        server = Server(alpha_s=0.004, beta_s=0.0012)
        fleet = Fleet(server, replicas=3, seed=5)
        policy = a_policy(Objective.BALANCED, slos=[PATIENT_TTFT])
        ticks = play(fleet, policy, lambda at_s: 1.85 * server.best_rate, seconds=5400)
        assert changes([tick for tick in ticks if tick.at_s > 1200]) <= 4


def test_orders_are_credited_and_do_not_cascade() -> None:
    """A promise that breaks for four minutes while pods come: one order, not 2, 4, 8, 16."""
    slow = LatencySLO(signal=Signal.INTER_TOKEN_LATENCY, percentile=95, threshold_s=0.035, window_s=60.0)
    fleet = Fleet(replicas=4, seed=1, cold_start_s=240.0)
    policy = a_policy(slos=[slow], band=Band(0.8, 0.9))
    ticks = play(fleet, policy, offered(3.3), seconds=300)
    ordered = next(tick for tick in ticks if tick.replicas > 4)
    assert ordered.decision.reason is Reason.SLO_BREACHED
    assert 5 <= ordered.replicas <= 8
    broken = [tick for tick in ticks if ordered.at_s < tick.at_s < ordered.at_s + 240]
    assert all(tick.decision.slos[0].state is SLOState.BREACHED for tick in broken)
    assert {tick.replicas for tick in broken} == {ordered.replicas}


def test_a_second_tick_period_is_as_calm_as_fifteen() -> None:
    ends = []
    for period_s in (1, 15):
        fleet = Fleet(replicas=3, seed=11)
        ticks = play(fleet, policy_of(Objective.LATENCY_SENSITIVE), offered(3.2), seconds=3600, period_s=period_s)
        ends.append(ticks[-1].replicas)
        assert changes([tick for tick in ticks if tick.at_s > 1500]) <= 2
    assert ends[0] == ends[1]
