"""Demand by the model: where there is none it stays as it was, and what it asks for where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.reasons import SLOState
from bandkeeper.api.signals import Signal
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Batching, LatencySLO, Policy, Profile, ThroughputSLO
from bandkeeper.decide.prediction import judge_profile, predict
from bandkeeper.decide.state import ModelMemory, Sample, Unit
from bandkeeper.model.curve import LoadCurve
from bandkeeper.model.misses import Shape
from bandkeeper.model.steps import StepFit
from tests.unit.builders import ITL, TTFT, a_policy

CAP = 64
ALPHA, BETA, DELTA = 0.02058, 0.00041, 0.0001
PROMPT, OUTPUT = 500.0, 200.0
NO_MODEL = ModelMemory()


def a_demand(best_cap: int = CAP, work: float = 1.0) -> Demand:
    return Demand(
        curve=LoadCurve(),
        best_cap=best_cap,
        work=work,
        peak_work=work,
        utilization=0.25,
        occupancy=0.25,
        saturated=False,
        rising=False,
    )


def true_work(requests_per_s: float, cap: int = CAP) -> float:
    """Replicas that so many requests keep busy at a batch of `cap`."""
    return requests_per_s * (OUTPUT * (ALPHA / cap + BETA) + PROMPT * DELTA)


def a_load(requests_per_s: float, ready: int = 4, **more: Any) -> Load:
    """A fleet in balance: the step takes as long as the batch that the arrivals make of it lets it take."""
    tokens, prompts = requests_per_s * OUTPUT / ready, requests_per_s * PROMPT / ready
    token_s = ALPHA / max(0.05, 1 - BETA * tokens - DELTA * prompts)
    fields: dict[str, Any] = {
        "ready": ready,
        "running": ready * tokens * token_s,
        "waiting": 0.0,
        "complete": True,
        "finished_per_s": requests_per_s,
        "prompt_per_s": requests_per_s * PROMPT,
        "output_per_s": requests_per_s * OUTPUT,
        "told": ready,
        "token_s": token_s,
        "cold_start_s": 90.0,
        "quiet_queue": 10.0,
    }
    return Load(**{**fields, **more})


def a_verdict(slo: LatencySLO, missed: float | None) -> SLOVerdict:
    """`missed` is the share of requests, None without data."""
    if missed is None:
        state, told = SLOState.NO_DATA, None
    else:
        state, told = SLOState.BREACHED if missed > 1 - slo.percentile / 100 else SLOState.MET, 1 - missed
    return SLOVerdict(
        signal=slo.signal,
        percentile=slo.percentile,
        limit=slo.threshold_s,
        window_s=slo.window_s,
        state=state,
        attainment_low=told,
        attainment_high=told,
        observations=None if told is None else 1000.0,
    )


@dataclass
class Fleet:
    """A policy that is looked at every 15 s."""

    policy: Policy = field(default_factory=a_policy)
    best_cap: int = CAP
    memory: ModelMemory = NO_MODEL
    now_s: float = 1000.0

    def look(self, load: Load, missed: Sequence[float | None] = (), samples: Sequence[Sample] = ()) -> Demand:
        latencies = [slo for slo in self.policy.slos if isinstance(slo, LatencySLO)]
        shares = [*missed, *[None] * (len(latencies) - len(missed))]
        verdicts = [a_verdict(slo, share) for slo, share in zip(latencies, shares, strict=True)]
        demand, self.memory = predict(
            self.policy, load, verdicts, a_demand(self.best_cap), samples, self.memory, self.now_s
        )
        self.now_s += 15.0
        assert demand is not None
        return demand

    def learned(self, minutes: float = 30.0, missed: Sequence[float | None] = (), full: Sequence[float] = ()) -> Fleet:
        """After a slow wave between a quarter and three quarters of what the fleet can do.

        `missed` are the shares at whatever load, `full` those that would miss with all full, fewer with less.
        """
        for tick in range(round(minutes * 4)):
            utilization = 0.5 + 0.25 * math.sin(tick / 13)
            shares = [share * utilization**2 for share in full]
            self.look(a_load(utilization * 4 / true_work(1.0)), shares or missed)
        return self


UNCHANGED = a_demand()


def a_dynamic_load(per_s: float, ready: int = 4) -> Load:
    """Batches of what came while the last one ran; one of b samples takes 0.2 + 0.03 b seconds."""
    batch = max(1.0, 0.2 * per_s / ready / (1 - 0.03 * per_s / ready))
    batch_s = 0.2 + 0.03 * batch
    return a_load(
        per_s / OUTPUT,
        ready,
        running=per_s * batch_s,
        finished_per_s=per_s,
        prompt_per_s=per_s,
        output_per_s=per_s,
        token_s=batch_s,
        batch_size=batch,
    )


class TestDynamicBatching:
    @pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
    def test_work_is_what_replicas_can_do_at_the_best_size_that_was_seen(self, share: float) -> None:
        fleet, most = Fleet(a_policy(batching=Batching.DYNAMIC), best_cap=32), 32 / (0.2 + 0.03 * 32)
        for tick in range(80):
            fleet.look(a_dynamic_load(4 * most * (0.6 + 0.35 * math.sin(tick / 6))))
        demand = fleet.look(a_dynamic_load(4 * most * share))
        assert demand.modelled
        assert demand.utilization == pytest.approx(share, rel=0.05)

    def test_what_larger_batches_show_holds_for_the_past_too(self) -> None:
        """Forty replicas with a request or two each look busier than eight show that they were."""
        fleet = Fleet(a_policy(batching=Batching.DYNAMIC), best_cap=32)
        before = [fleet.look(a_dynamic_load(120.0, ready=40)) for _ in range(20)][-1]
        after = [fleet.look(a_dynamic_load(120.0, ready=8)) for _ in range(20)][-1]
        assert after.work < before.work / 2
        assert after.peak_work == pytest.approx(after.work, rel=0.05)

    def test_a_pod_that_runs_nothing_tells_no_batch_and_spoils_none(self) -> None:
        fleet = Fleet(a_policy(batching=Batching.DYNAMIC), best_cap=32)
        for _ in range(20):
            fleet.look(a_dynamic_load(60.0))
        before = fleet.memory.steps
        fleet.look(replace(a_dynamic_load(60.0), batch_size=None))
        assert fleet.memory.steps == before

    @pytest.mark.parametrize(("batch", "news"), [(20.0, True), (3.0, False)])
    def test_what_a_window_with_a_burst_in_it_tells_is_at_most_that_larger_batches_are_no_slower(
        self, batch: float, news: bool
    ) -> None:
        """Of batches of 1 and of 20, the mean may be 3; but most requests were in the large ones, which take 0.8 s."""
        fleet = Fleet(a_policy(batching=Batching.DYNAMIC), best_cap=32)
        for number in range(40):
            fleet.look(a_dynamic_load(30.0 if number % 2 else 60.0))
        before, calm = fleet.memory.steps, a_dynamic_load(30.0)
        burst = replace(calm, running=40.0, token_s=0.8, batch_size=batch)
        samples = [Sample(fleet.now_s - 30.0, 8.0, calm.running or 0.0, 0.0, 4, 1.0)]
        fleet.look(burst, samples=samples)
        assert (fleet.memory.steps != before) == news


class TestWithoutAModel:
    @pytest.mark.parametrize(
        "lacks",
        [
            {"prompt_per_s": None},
            {"prompt_per_s": 0.0},
            {"output_per_s": None, "told": 0},
            {"finished_per_s": None},
            {"token_s": None},
            {"token_s": 0.0},
            {"token_s": math.nan},  # of a histogram that is none
            {"token_s": math.inf},
            {"complete": False},
            {"output_per_s": 3.0},  # 180 tokens a minute
            {"output_per_s": 0.0},
        ],
        ids=str,
    )
    def test_demand_stays_what_it_was(self, lacks: dict[str, Any]) -> None:
        fleet = Fleet()
        for _ in range(20):
            assert fleet.look(replace(a_load(5.0), **lacks)) == UNCHANGED
        assert fleet.memory.steps.observations == 0

    def test_of_servers_of_an_unknown_kind_nothing_is_learned(self) -> None:
        fleet = Fleet(a_policy(batching=Batching.UNKNOWN))
        for _ in range(20):
            assert fleet.look(a_load(5.0)) == UNCHANGED
        assert fleet.memory == NO_MODEL

    def test_with_dynamic_batching_the_size_of_batches_has_to_be_told(self) -> None:
        fleet = Fleet(a_policy(batching=Batching.DYNAMIC))
        for _ in range(20):
            assert fleet.look(a_load(5.0)) == UNCHANGED
        assert fleet.memory.steps.observations == 0

    def test_no_demand_stays_none(self) -> None:
        assert predict(a_policy(), a_load(5.0), (), None, (), NO_MODEL, 0.0) == (None, NO_MODEL)

    def test_a_whole_rate_window_comes_first(self) -> None:
        fleet = Fleet()
        modelled = [fleet.look(a_load(5.0)).modelled for _ in range(6)]
        assert modelled == [False, False, False, True, True, True]

    def test_an_idle_fleet_falls_back_and_comes_again(self) -> None:
        fleet = Fleet().learned()
        idle = a_load(0.0, token_s=None, prompt_per_s=0.0, output_per_s=0.0, finished_per_s=0.0, running=0.0)
        assert [fleet.look(idle) for _ in range(40)] == [UNCHANGED] * 40
        again = fleet.look(a_load(5.0))
        assert again.modelled
        assert again.work == pytest.approx(true_work(5.0), rel=0.1)


class TestWork:
    @pytest.mark.parametrize("requests_per_s", [4.0, 12.0, 20.0, 30.0])
    def test_is_what_arrives_costs(self, requests_per_s: float) -> None:
        demand = Fleet().learned().look(a_load(requests_per_s))
        assert demand.modelled
        assert demand.work == pytest.approx(true_work(requests_per_s), rel=0.05)
        assert demand.utilization == pytest.approx(demand.work / 4)
        assert demand.peak_work >= demand.work

    @pytest.mark.parametrize("ready", [1, 2, 8])
    def test_does_not_depend_on_how_many_replicas_do_it(self, ready: int) -> None:
        work = Fleet().learned().look(a_load(5.0, ready)).work
        assert work == pytest.approx(true_work(5.0), rel=0.05)

    def test_a_queue_that_grows_is_work_that_arrives(self) -> None:
        fleet = Fleet().learned()
        then = Sample(fleet.now_s - 60, 50.0, 50.0, 10.0, 4, 2.0)
        calm = Fleet(memory=fleet.memory, now_s=fleet.now_s).look(a_load(20.0), samples=[then])
        queued = fleet.look(a_load(20.0, waiting=310.0), samples=[then])
        assert queued.work - calm.work == pytest.approx(true_work(5.0), rel=0.15)  # five more a second than are done

    def test_a_queue_that_is_worked_off_is_less(self) -> None:
        fleet = Fleet().learned()
        then = Sample(fleet.now_s - 60, 50.0, 50.0, 300.0, 4, 2.0)
        assert fleet.look(a_load(20.0, waiting=0.0), samples=[then]).work == pytest.approx(true_work(15.0), rel=0.1)

    def test_never_less_than_nothing(self) -> None:
        fleet = Fleet().learned()
        then = Sample(fleet.now_s - 60, 50.0, 50.0, 1e6, 4, 2.0)
        assert fleet.look(a_load(20.0), samples=[then]).work == 0

    def test_a_jump_within_one_tick_is_no_flood(self) -> None:
        """Growth is over a quarter of the rate window at least."""
        fleet = Fleet().learned()
        then = Sample(fleet.now_s - 1, 50.0, 50.0, 0.0, 4, 2.0)
        assert fleet.look(a_load(20.0, waiting=30.0), samples=[then]).work < true_work(23.0)

    @pytest.mark.parametrize(("growth", "more_per_s"), [(600.0, 17.2), (300.0, 7.4), (30.0, 0.5), (-300.0, 0.0)])
    def test_a_jump_shows_in_what_is_in_process_before_the_rate_tells_it(
        self, growth: float, more_per_s: float
    ) -> None:
        """Twenty more a second for half a minute, less what chance may be; a rate of a minute tells half of them."""
        fleet, load = Fleet().learned(), a_load(20.0)
        assert load.running is not None
        running, prompts_per_s = load.running + growth, (20.0 + max(0.0, growth) / 60) * PROMPT
        then = [Sample(fleet.now_s - ago_s, load.running, load.running, 0.0, 4, 2.0) for ago_s in (60, 30)]
        work = fleet.look(replace(load, running=running, prompt_per_s=prompts_per_s), samples=then).work
        assert work == pytest.approx(true_work(20.0 + more_per_s), rel=0.05)

    def test_what_grew_longer_ago_than_a_rate_window_is_no_jump(self) -> None:
        fleet, load = Fleet().learned(), a_load(20.0)
        then = Sample(fleet.now_s - 61, 0.0, 0.0, 0.0, 4, 2.0)
        assert fleet.look(load, samples=[then]).work == pytest.approx(true_work(20.0), rel=0.05)

    def test_what_is_refused_is_asked_for(self) -> None:
        demand = Fleet().learned().look(a_load(20.0, rejected_per_s=5.0))
        assert demand.work == pytest.approx(true_work(25.0), rel=0.05)

    def test_output_that_comes_later_than_its_prompts_is_expected(self) -> None:
        """A burst is seen when its prompts are read, not when its tokens are made."""
        fleet = Fleet().learned()
        before = a_load(5.0)
        burst = replace(before, prompt_per_s=3 * 5.0 * PROMPT)
        assert fleet.look(burst).work > 2.5 * true_work(5.0)

    def test_the_kv_cache_limits_the_batch(self) -> None:
        """Full at a batch of 20, each token takes a larger share of a step."""
        free = Fleet().learned().look(a_load(20.0))
        fleet = Fleet().learned()
        for _ in range(80):  # the room for requests is a mean of some minutes
            tight = fleet.look(replace(a_load(20.0), kv=0.9, running=80.0))
        assert tight.work == pytest.approx(true_work(20.0, 20), rel=0.08)
        assert tight.work > 1.2 * free.work

    def test_a_kv_cache_that_is_nearly_empty_tells_nothing(self) -> None:
        assert Fleet().learned().look(a_load(20.0, kv=0.01)) == Fleet().learned().look(a_load(20.0))

    @pytest.mark.parametrize("finished", [0.0, 1, 10, 60])
    def test_a_queue_in_a_burst_is_not_counted_by_the_few_that_are_done(self, finished: float) -> None:
        """600 prompts were read in a minute and hardly any answer is done; 4 requests a second more queue."""
        fleet = Fleet().learned()
        then = Sample(fleet.now_s - 60, 10.0, 10.0, 0.0, 4, 2.0)
        burst = a_load(10.0, running=610.0 - finished, waiting=240.0, finished_per_s=finished / 60)
        demand = fleet.look(burst, samples=[then])
        assert demand.work == pytest.approx(true_work(14.0), rel=0.1)


def a_profile(factor: float = 1.0, **more: Any) -> Profile:
    told: dict[str, Any] = {"beta_s": factor * BETA, "delta_s": factor * DELTA, "kv_tokens": None, **more}
    return Profile(alpha_s=factor * ALPHA, batches=(), **told)


class TestProfile:
    @pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.25, 2.0])
    def test_the_first_look_has_a_model(self, factor: float) -> None:
        fleet = Fleet(replace(a_policy(), profile=a_profile(factor)))
        demand = fleet.look(a_load(12.0))
        assert demand.modelled
        assert demand.work == pytest.approx(max(1.0, factor) * true_work(12.0), rel=0.25)

    @pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
    def test_what_is_measured_wins_in_minutes(self, factor: float) -> None:
        fleet = Fleet(replace(a_policy(), profile=a_profile(factor)))
        for _ in range(12):
            demand = fleet.look(a_load(12.0))
        assert demand.work == pytest.approx(true_work(12.0), rel=0.02)

    @pytest.mark.parametrize("wrong", [{"beta_s": 2 * BETA}, {"beta_s": BETA / 2}, {"delta_s": 2 * DELTA}])
    def test_a_wrong_shape_is_not_for_long(self, wrong: dict[str, float]) -> None:
        fleet = Fleet(replace(a_policy(), profile=a_profile(**wrong))).learned(60.0)
        assert fleet.look(a_load(30.0)).work == pytest.approx(true_work(30.0), rel=0.05)

    @pytest.mark.parametrize(
        ("factor", "state"),
        [(0.5, "Contradicted"), (0.75, "Fits"), (1.0, "Fits"), (1.4, "Fits"), (2.0, "Contradicted")],
    )
    def test_it_is_judged_by_what_is_measured(self, factor: float, state: str) -> None:
        policy = replace(a_policy(), profile=a_profile(factor))
        fleet = Fleet(policy)
        fleet.look(a_load(12.0))
        early = judge_profile(policy, fleet.memory)
        assert early is not None
        assert early.state == "Unmeasured"
        for _ in range(20):
            fleet.look(a_load(12.0))
        verdict = judge_profile(policy, fleet.memory)
        assert verdict is not None
        assert verdict.state == state
        assert f"{1 / factor:.2g}" in verdict.message

    def test_without_one_there_is_no_verdict(self) -> None:
        assert judge_profile(a_policy(), Fleet().learned().memory) is None

    def test_a_runtime_without_a_model_says_so(self) -> None:
        policy = replace(a_policy(batching=Batching.UNKNOWN), profile=a_profile())
        verdict = judge_profile(policy, NO_MODEL)
        assert verdict is not None
        assert "no model" in verdict.message

    def test_figures_that_were_not_told_are_as_without_a_profile(self) -> None:
        fleet = Fleet(replace(a_policy(), profile=a_profile(beta_s=None, delta_s=None))).learned()
        assert fleet.look(a_load(20.0)).work == pytest.approx(true_work(20.0), rel=0.05)

    def test_the_kv_cache_that_it_tells_is_the_room_until_its_use_is_seen(self) -> None:
        """10,000 tokens hold 15 requests of 600."""
        fleet = Fleet(replace(a_policy(), profile=a_profile(kv_tokens=10_000.0)))
        assert fleet.look(a_load(12.0)).work == pytest.approx(true_work(12.0, 15), rel=0.02)
        for _ in range(80):
            seen = fleet.look(replace(a_load(12.0), kv=0.25, running=4 * 10.0))
        assert seen.work == pytest.approx(true_work(12.0, 36), rel=0.05)

    @pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
    def test_a_table_tells_what_larger_batches_can_do(self, factor: float) -> None:
        table = tuple((float(size), factor * (0.2 + 0.03 * size)) for size in (1, 4, 16, 32))
        profile = replace(a_profile(), batches=table)
        fleet = Fleet(replace(a_policy(batching=Batching.DYNAMIC), profile=profile), best_cap=32)
        blank = Fleet(a_policy(batching=Batching.DYNAMIC), best_cap=32)
        for _ in range(20):
            told, untold = fleet.look(a_dynamic_load(24.0)), blank.look(a_dynamic_load(24.0))
        assert told.work == pytest.approx(24.0 * (0.2 + 0.03 * 32) / 32, rel=0.1)
        assert untold.work > 1.5 * told.work

    @given(st.floats(0.01, 100.0), st.floats(0.5, 2.0), st.floats(0.5, 2.0), st.floats(10.0, 40.0))
    def test_one_that_is_wrong_in_every_way_does_not_mislead_for_long(
        self, factor: float, beta: float, delta: float, rate: float
    ) -> None:
        """After ten minutes at one load: full batches are still told by the shape, which is never seen at one load."""
        told = a_profile(factor, beta_s=factor * beta * BETA, delta_s=factor * delta * DELTA)
        fleet = Fleet(replace(a_policy(), profile=told))
        for _ in range(40):
            demand = fleet.look(a_load(rate, ready=8))
        assert demand.modelled
        assert 0.6 * true_work(rate) < demand.work < 1.7 * true_work(rate)


class TestPartial:
    def test_tokens_of_some_replicas_lower_nothing(self) -> None:
        """Three of four tell what runs in them but no tokens: that is no less work."""
        fleet = Fleet().learned()
        whole = fleet.look(a_load(20.0))
        part = a_load(20.0, told=1, prompt_per_s=20 * PROMPT / 4, output_per_s=20 * OUTPUT / 4)
        for _ in range(40):
            demand = fleet.look(part)
            assert demand.work >= whole.work * 0.999
            assert demand.utilization >= whole.utilization * 0.999

    def test_tokens_of_some_replicas_are_no_beginning(self) -> None:
        fleet = Fleet()
        part = a_load(20.0, told=1, prompt_per_s=20 * PROMPT / 4, output_per_s=20 * OUTPUT / 4)
        assert [fleet.look(part).modelled for _ in range(20)] == [False] * 20


class TestPromises:
    POLICY = a_policy(slos=[ITL], replicas=(1, 40))

    def test_the_margin_is_the_fullest_fleets_until_a_promise_asks_for_more(self) -> None:
        demand = Fleet(a_policy()).learned().look(a_load(10.0))
        assert demand.margin == pytest.approx(1 / 0.93, rel=0.05)  # the model's own error beside it
        assert demand.bound_by is None

    def test_a_promise_that_is_missed_raises_it_and_is_named(self) -> None:
        kept = Fleet(self.POLICY).learned(60, full=[0.001]).look(a_load(10.0), [0.001])
        missed = Fleet(self.POLICY).learned(60, full=[0.2]).look(a_load(10.0), [0.05])
        assert missed.margin > 1.5 * kept.margin
        assert missed.bound_by is Signal.INTER_TOKEN_LATENCY
        assert missed.judged == {(Signal.INTER_TOKEN_LATENCY, 95)}

    def test_what_is_held_beyond_the_work_spares_a_margin(self) -> None:
        """A promise that asks for m times the held work asks for more than m times the work, where less is offered."""
        fleet = Fleet(self.POLICY).learned(60, full=[0.2])
        demand = fleet.look(a_load(10.0), [0.05])
        assert demand.margin > demand.bare_margin
        spared = fleet.memory.promises[0].shape.value ** (1 / fleet.memory.promises[0].misses.power)
        assert spared < 1
        assert demand.present_margin == pytest.approx(min(4.0, demand.margin / spared))

    def test_is_judged_after_two_minutes(self) -> None:
        fleet = Fleet(self.POLICY)
        judged = [bool(fleet.look(a_load(10.0), [0.01]).judged) for _ in range(20)]
        assert judged == sorted(judged)
        assert not any(judged[:8])
        assert judged[-1]

    def test_the_promise_that_needs_most_binds(self) -> None:
        fleet = Fleet(a_policy(slos=[ITL, TTFT], replicas=(1, 40)))
        assert fleet.learned(60, full=[0.001, 0.3]).look(a_load(10.0)).bound_by is Signal.TIME_TO_FIRST_TOKEN

    def test_one_that_cannot_be_kept_is_named_and_asks_for_nothing(self) -> None:
        """Nearly all miss at whatever load: no number of replicas keeps that."""
        fleet = Fleet(self.POLICY).learned(60, [0.9])
        demand = fleet.look(a_load(2.0), [0.9])
        assert demand.unreachable == {(Signal.INTER_TOKEN_LATENCY, 95)}
        assert demand.margin == pytest.approx(1 / 0.93, rel=0.05)  # the model's own error beside it
        assert demand.bound_by is None

    def test_throughput_has_no_margin_for_promises(self) -> None:
        fleet = Fleet(a_policy(Objective.THROUGHPUT_SENSITIVE, slos=[ITL], replicas=(1, 40)))
        demand = fleet.learned(60, full=[0.2]).look(a_load(10.0), [0.05])
        assert demand.margin == pytest.approx(1 / 0.95, rel=0.05)  # the model's own error beside it
        assert demand.bound_by is None

    def test_no_data_teaches_nothing(self) -> None:
        fleet = Fleet(self.POLICY).learned(60, [None])
        assert fleet.memory.promises[0].misses.weight == 0
        assert not fleet.look(a_load(10.0)).judged

    def test_a_queue_teaches_nothing(self) -> None:
        """It says that the fleet is too small, and nothing of one that is large enough."""
        fleet = Fleet(self.POLICY)
        for _ in range(40):
            fleet.look(a_load(10.0, waiting=100.0), [0.9])
        assert fleet.memory.promises[0].misses.weight == 0
        for _ in range(4):  # it is in the window of the promise for as long
            fleet.look(a_load(10.0), [0.9])
        assert fleet.memory.promises[0].misses.weight == 0
        for _ in range(4):
            fleet.look(a_load(10.0), [0.01])
        assert fleet.memory.promises[0].misses.weight > 0

    def test_nor_does_a_queue_that_only_some_pods_tell_of(self) -> None:
        fleet = Fleet(self.POLICY).learned(10, [0.01])
        before = fleet.memory.promises[0].misses
        fleet.look(a_load(10.0, waiting=100.0, complete=False), [0.9])
        fleet.look(a_load(10.0), [0.9])
        assert fleet.memory.promises[0].misses == before

    def test_a_fleet_with_more_work_than_it_can_do_teaches_nothing(self) -> None:
        """It is as if a queue were seen, which two looks may miss."""
        fleet = Fleet(self.POLICY).learned(10, [0.01])
        before = fleet.memory.promises[0].misses
        fleet.look(a_load(20.0, ready=1), [0.9])
        assert fleet.memory.promises[0].misses == before

    @pytest.mark.parametrize(("ready", "relative"), [(4, 1.0), (5, 0.9), (8, 0.87), (3, 1.15)])
    def test_a_margin_counts_what_was_there_for_it(self, ready: int, relative: float) -> None:
        """Replicas that are rounded up or kept for a while keep a promise too, and those that come late do not."""
        load = 3.0 / true_work(1.0)
        asked = {}
        for count in (4, ready):
            fleet = Fleet(self.POLICY)
            fleet.learned(30, full=[0.2])
            fleet.memory = replace(fleet.memory, margin=4 / 3)
            promise = fleet.memory.promises[0]
            fleet.memory = replace(fleet.memory, promises=(replace(promise, shape=Shape(promise.misses.power)),))
            fleet.look(a_load(load, ready=count))
            asked[count] = fleet.memory.promises[0].shape.value
        assert (asked[ready] / asked[4]) ** (1 / 1.7) == pytest.approx(relative, rel=0.12)

    def test_a_rate_is_no_latency(self) -> None:
        rate = ThroughputSLO(signal=Signal.GENERATION_TOKENS, min_per_s=100.0, window_s=60.0)
        fleet = Fleet(a_policy(slos=[rate, ITL]))
        assert [one.signal for one in fleet.learned(10, [0.01]).memory.promises] == [Signal.INTER_TOKEN_LATENCY]

    @pytest.mark.parametrize(
        "changed",
        [
            [replace(ITL, threshold_s=0.1)],
            [replace(ITL, percentile=99)],
            [TTFT],
            [ITL, TTFT],
            [],
        ],
        ids=["threshold", "percentile", "signal", "one more", "none"],
    )
    def test_changed_promises_are_learned_anew(self, changed: list[LatencySLO]) -> None:
        fleet = Fleet(self.POLICY).learned(60, [0.2])
        fleet.policy = a_policy(slos=changed, replicas=(1, 40))
        demand = fleet.look(a_load(10.0))
        assert not demand.judged
        assert all(one.misses.weight == 0 for one in fleet.memory.promises)
        assert [one.signal for one in fleet.memory.promises] == [slo.signal for slo in changed]

    def test_the_same_promise_over_another_window_is_remembered(self) -> None:
        fleet = Fleet(self.POLICY).learned(60, [0.2])
        fleet.policy = a_policy(slos=[replace(ITL, window_s=300.0)], replicas=(1, 40))
        assert fleet.look(a_load(10.0)).judged

    @pytest.mark.parametrize("windows", [(60.0, 1800.0), (15.0, 600.0), (1.0, 86400.0)])
    def test_windows_may_differ_by_much(self, windows: tuple[float, float]) -> None:
        """Looks are kept for the longest of them, so a short one may find none of its own."""
        slos = [replace(ITL, window_s=windows[0]), replace(TTFT, window_s=windows[1])]
        fleet = Fleet(a_policy(slos=slos)).learned(40, [0.01, 0.01])
        assert fleet.look(a_load(10.0), [0.01, 0.01]).judged == {(slo.signal, slo.percentile) for slo in slos}
        assert len(fleet.memory.traces) <= 22


class TestBestCap:
    def test_another_unit_rescales_what_is_remembered(self) -> None:
        fleet = Fleet().learned()
        fleet.look(a_load(25.0))
        for _ in range(20):
            before = fleet.look(a_load(10.0))
        outlook = fleet.memory.outlook
        fleet.best_cap = 32
        after = fleet.look(a_load(10.0))
        assert after.work == pytest.approx(true_work(10.0, 32), rel=0.05)
        factor = true_work(10.0, 32) / true_work(10.0)
        assert after.mean_work == pytest.approx(factor * (before.mean_work or 0.0), rel=0.1)
        assert fleet.memory.outlook.peaks.highest() == pytest.approx(factor * (outlook.peaks.highest() or 0), rel=0.05)
        assert fleet.memory.best_cap == 32

    def test_what_was_seen_with_a_worse_model_is_counted_anew(self) -> None:
        fleet = Fleet().learned()
        fleet.look(a_load(25.0))
        memory, unit = fleet.memory, fleet.memory.unit
        assert unit is not None
        alpha_s, beta_s, delta_s = memory.steps.parameters
        guess = Unit(StepFit((0.8 * alpha_s, 0.8 * beta_s, 0.8 * delta_s)).loosened(), unit.batch)
        fleet.memory = replace(memory, unit=guess, outlook=memory.outlook.scaled(0.8))
        fleet.look(a_load(10.0))
        assert fleet.memory.outlook.peaks.highest() == pytest.approx(true_work(25.0), rel=0.05)

    def test_the_past_is_not_counted_anew_for_next_to_nothing(self) -> None:
        fleet = Fleet().learned()
        unit = fleet.memory.unit
        fleet.look(a_load(10.0))
        assert fleet.memory.unit is unit

    def test_another_pod_template_is_another_unit(self) -> None:
        """Servers that are twice as fast: what was remembered of the others is half as much work."""
        fleet = Fleet().learned()
        peak = fleet.look(a_load(25.0, revision="slow")).peak_work
        for _ in range(3):
            load = a_load(10.0, revision="fast")
            fleet.look(replace(load, token_s=(load.token_s or 0.0) / 2, running=(load.running or 0.0) / 2))
        assert fleet.memory.unit is not None
        assert fleet.memory.unit.revision == "fast"
        assert fleet.memory.outlook.peaks.highest() == pytest.approx(peak / 2, rel=0.15)

    def test_the_model_itself_has_no_unit(self) -> None:
        fleet = Fleet().learned()
        steps = fleet.memory.steps
        fleet.best_cap = 32
        fleet.look(a_load(10.0))
        assert fleet.memory.steps.observations == pytest.approx(steps.observations + 0.25)


def numbers(most: float) -> st.SearchStrategy[float | None]:
    """Nothing, 0, next to nothing, and what may be."""
    return st.sampled_from([None, 0.0, 1e-9]) | st.floats(1e-6, most)


loads = st.builds(
    Load,
    ready=st.integers(1, 30),
    running=numbers(3000),
    waiting=numbers(1e6),
    complete=st.sampled_from([True, True, True, False]),
    finished_per_s=numbers(1e4),
    rejected_per_s=numbers(1e4),
    kv=numbers(1.2),
    prompt_per_s=numbers(1e7),
    output_per_s=numbers(1e6) | st.floats(100, 5000),
    told=st.integers(0, 30),
    token_s=numbers(60) | st.floats(0.005, 0.2),
    cold_start_s=st.sampled_from([0.0, 5.0, 90.0, 3600.0]),
    quiet_queue=st.sampled_from([0.0, 10.0]),
)
sane = st.floats(0.1, 60).map(a_load)
policies = st.builds(
    a_policy,
    st.sampled_from(Objective),
    slos=st.lists(
        st.builds(
            replace,
            st.sampled_from([ITL, TTFT]),
            percentile=st.sampled_from([1, 50, 99]),
            window_s=st.sampled_from([1.0, 15.0, 60.0, 1800.0, 86400.0]),
        ),
        max_size=2,
        unique_by=lambda slo: slo.signal,
    ),
    rate_window_s=st.sampled_from([1.0, 15.0, 60.0]),
)
samples = st.lists(
    st.builds(
        Sample,
        at_s=st.floats(900, 1600),
        in_flight=st.floats(0, 1e4),
        running=st.floats(0, 1e4),
        waiting=st.floats(0, 1e6),
        ready=st.integers(1, 30),
        work=st.floats(0, 30),
    ),
    max_size=3,
)


@given(
    policies,
    st.lists(
        st.tuples(loads | sane, st.sampled_from([0.0, 1.0, 15.0, 600.0]), st.sampled_from([1, 8, 64])),
        min_size=1,
        max_size=12,
    ),
    samples,
    st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=2),
)
def test_whatever_is_told_it_stays_finite(
    policy: Policy, looks: list[tuple[Load, float, int]], past: list[Sample], missed: list[float | None]
) -> None:
    fleet = Fleet(policy)
    for load, elapsed_s, best_cap in looks:
        fleet.best_cap = best_cap
        demand = fleet.look(load, missed[: len(policy.slos)], past)
        fleet.now_s += elapsed_s - 15.0
        figures = [demand.work, demand.peak_work, demand.utilization, demand.margin, demand.mean_work or 0.0]
        figures += [demand.band_work, demand.curve.steepness, *fleet.memory.steps.parameters]
        assert all(0 <= figure < math.inf for figure in figures)
        assert demand.peak_work >= demand.work
        if demand.modelled:
            assert math.inf > demand.present_margin >= demand.margin >= demand.bare_margin >= 1
            assert not demand.unreachable - demand.judged
            assert demand.bound_by not in {signal for signal, _ in demand.unreachable}


def test_another_pod_template_makes_what_was_learned_a_guess() -> None:
    fleet = Fleet().learned(100)
    fleet.look(a_load(10.0, revision="old"))
    sure = fleet.memory.steps.work_s(1.0, 0.2, 64)
    fleet.look(a_load(10.0, revision="old"))
    assert fleet.memory.steps.work_s(1.0, 0.2, 64).error <= 1.1 * sure.error
    fleet.look(a_load(10.0, revision="new"))
    guess = fleet.memory.steps.work_s(1.0, 0.2, 64)
    assert guess.error > 2 * sure.error
    assert guess.value == pytest.approx(sure.value, rel=0.2)


def test_tokens_that_no_pod_tells_any_more_are_missing_not_nothing() -> None:
    fleet = Fleet().learned()
    untold = replace(a_load(10.0), prompt_per_s=None, output_per_s=None, told=0)
    assert fleet.look(untold).tokens_missing
    assert not fleet.look(replace(untold, running=0.0)).tokens_missing
    fleet.now_s += 4000.0
    assert not fleet.look(untold).tokens_missing  # a server that tells none is decided on without
    assert not Fleet().look(untold).tokens_missing


def test_what_the_evening_asked_for_is_not_ordered_in_the_morning() -> None:
    fleet = Fleet().learned()
    for _ in range(20):
        fleet.look(a_load(20.0))
    fleet.now_s += 8 * 3600.0
    morning = fleet.look(a_load(2.0, ready=1))
    assert morning.modelled
    assert morning.band_work == pytest.approx(morning.work, rel=0.05)


def test_what_lone_requests_miss_asks_for_no_replica() -> None:
    """One request at a time in each replica: a slow answer is not the load's."""
    fleet = Fleet(a_policy(slos=[ITL], replicas=(1, 40)))
    for _ in range(80):
        demand = fleet.look(replace(a_load(1.2), running=3.0), [0.3])
    assert demand.modelled
    assert not demand.judged
    assert demand.margin < 1.5


def test_a_handful_of_requests_teaches_no_promise() -> None:
    policy = a_policy(slos=[ITL], replicas=(1, 40))
    fleet = Fleet(policy).learned(60, full=[0.001])
    known = fleet.memory.promises
    few = replace(a_verdict(ITL, 0.3), state=SLOState.TOO_FEW_REQUESTS)
    load = a_load(10.0)
    _, memory = predict(policy, load, [few], a_demand(), [], fleet.memory, fleet.now_s + 15)
    assert memory.promises[0].misses == known[0].misses


def test_throughput_leaves_its_promises_to_the_measured_answer() -> None:
    fleet = Fleet(a_policy(Objective.THROUGHPUT_SENSITIVE, slos=[ITL], replicas=(1, 40)))
    assert not fleet.learned(60, full=[0.2]).look(a_load(10.0), [0.2]).judged


def test_the_first_look_at_a_load_counts_for_no_more_than_another() -> None:
    """When traffic begins, prompts are read long before their answers are written."""
    fleet = Fleet()
    begins = a_load(8.0, output_per_s=8.0 * OUTPUT / 10)
    fleet.look(begins)
    for _ in range(7):  # two minutes
        fleet.look(a_load(8.0))
    assert fleet.memory.output_per_s == pytest.approx(8.0 * OUTPUT, rel=0.15)


def test_what_is_refused_is_work_whatever_was_learned() -> None:
    fleet = Fleet().learned()
    steps = fleet.memory.steps
    assert isinstance(steps, StepFit)
    alpha, beta, delta = steps.parameters
    fleet.memory = replace(fleet.memory, steps=replace(steps, parameters=(alpha / 3, beta / 3, delta / 3)))
    full = a_load(8.0, running=4.0 * CAP, finished_per_s=30.0, rejected_per_s=9.0)
    saturated = replace(a_demand(), saturated=True)
    demand, _ = predict(fleet.policy, full, [], saturated, (), fleet.memory, fleet.now_s)
    assert demand is not None
    assert demand.work >= 4.0 * (1 + 9.0 / 30.0) * 0.999


@pytest.mark.parametrize(("objective", "minutes"), [(Objective.LATENCY_SENSITIVE, 4.5), (Objective.BALANCED, 2.5)])
def test_a_short_scale_down_window_forgets_peaks_sooner(objective: Objective, minutes: float) -> None:
    held = []
    for window_s in (300.0, 10.0):
        policy = replace(a_policy(), objective=objective)
        policy = replace(policy, scale_down=replace(policy.scale_down, stabilization_s=window_s))
        fleet = Fleet(policy).learned()
        fleet.look(a_load(3.9 / true_work(1.0)))
        for _ in range(round(minutes * 4)):
            demand = fleet.look(a_load(1.0 / true_work(1.0)))
        held.append(demand.peak_work)
    assert held[0] > 2.0 > 1.5 > held[1]
