"""A whole run: the protocol, the operator's own decision in it, and the same bytes for the same seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.decide import engine
from bandkeeper.decide.decision import RULES
from bandkeeper.decide.policy import Batching, CostClass, LatencySLO, Policy, ThroughputSLO
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.result import Counts, Move, PowerResult, Result, Series, SLOResult, to_json
from bandkeeper.lab.rules import bandkeeper
from bandkeeper.lab.rules.rule import Rule, Setting, View, Want
from bandkeeper.lab.run import RunError, simulate, start_replicas
from bandkeeper.lab.server import ColdStart, ContinuousServer, DynamicServer, Server
from bandkeeper.quality.classify import Quality
from bandkeeper.runtime import loop
from tests.unit.builders import E2E, ITL, TTFT, a_batch, a_policy

SERVER = ContinuousServer(
    model="reference",
    gpu="A100",
    source="test",
    batch_max=64,
    alpha_ms=20.58,
    beta_ms=0.41,
    gamma_ms=5.2,
    delta_ms_per_token=0.1,
    kv_tokens=200_000,
    cold_start=ColdStart(median_s=60, spread=0.1),
)
TRITON = DynamicServer(
    kind="dynamic",
    model="m",
    gpu="g",
    source="test",
    batch_max=8,
    batch_ms={1: 20.0, 8: 40.0},
    cold_start=ColdStart(median_s=30, spread=0.0),
)
SLOS: tuple[LatencySLO, ...] = (replace(TTFT, threshold_s=1.0), replace(ITL, threshold_s=0.1))


def a_load(*rates: tuple[float, float], prompt: int = 200, output: int = 100, name: str = "test") -> Requests:
    """Evenly spaced requests: (seconds, requests per second) one after another."""
    arrivals: list[float] = []
    begin_s = 0.0
    for seconds, per_s in rates:
        arrivals += [begin_s + (number + 0.5) / per_s for number in range(round(seconds * per_s))]
        begin_s += seconds
    count = len(arrivals)
    return Requests(
        arrival_s=np.array(arrivals),
        prompt_tokens=np.full(count, prompt, dtype=np.int32),
        output_tokens=np.full(count, output, dtype=np.int32),
        duration_s=begin_s,
        name=name,
        notes=("a note",),
    )


class Script:
    """Wants what it is told, and remembers what it saw."""

    def __init__(self, *wants: Want) -> None:
        self.wants, self.views = list(wants), list[View]()

    def decide(self, view: View) -> Want:
        self.views.append(view)
        return self.wants.pop(0) if len(self.wants) > 1 else self.wants[0]


def play(
    rule: Rule,
    requests: Requests,
    *,
    policy: Policy | None = None,
    server: Server = SERVER,
    warmup_s: float = 60.0,
    **given: Any,
) -> Result:
    setting = Setting(policy=policy or a_policy(slos=SLOS), server=server, requests=requests)
    return simulate(setting, rule, rule_name="test", warmup_s=warmup_s, **given)


def ours(policy: Policy, requests: Requests, server: Server = SERVER, **given: Any) -> Result:
    setting = Setting(policy=policy, server=server, requests=requests)
    return simulate(setting, bandkeeper.Rule(setting), rule_name="bandkeeper", warmup_s=60.0, **given)


RISE = ((180, 4.0), (420, 24.0))


def test_the_decision_is_the_operators_own() -> None:
    for name in ("decide", "written"):
        assert getattr(bandkeeper, name) is getattr(engine, name)
    assert vars(loop)["decide"] is engine.decide


def test_the_same_seed_gives_the_same_bytes() -> None:
    policy, requests = a_policy(slos=SLOS), a_load(*RISE)
    first, again = (to_json(ours(policy, requests, seed=3)) for _ in range(2))
    assert first == again
    assert to_json(ours(policy, requests, seed=4)) != first  # other cold starts
    assert Result.model_validate_json(first).rule == "bandkeeper"


def test_numbers_are_written_with_nine_digits_and_keys_in_order() -> None:
    result = play(Script(Want(2)), a_load((120, 4.0)), start=2)
    text = to_json(result.model_copy(update={"gpu_hours": 1 / 3}))
    assert '"gpu_hours": 0.333333333,' in text
    keys = list(json.loads(text))
    assert keys == sorted(keys)


def test_a_run_tells_what_single_rules_cost_and_another_rule_tells_nothing() -> None:
    result = ours(a_policy(slos=SLOS, replicas=(6, 16)), a_load((600, 4.0)))
    hours = result.gpu_hours_by_rule
    assert hours is not None
    assert set(hours) == {*RULES, "unknown"}
    assert 0 < hours["work"] < hours["min"] < result.gpu_hours == pytest.approx(6 * 540 / 3600)
    assert hours["band"] == hours["slo"] == hours["unknown"] == 0.0
    assert play(Script(Want(2)), a_load((120, 4.0)), start=2).gpu_hours_by_rule is None


def test_our_rule_orders_replicas_for_a_load_that_rises() -> None:
    result = ours(a_policy(slos=SLOS, replicas=(1, 16)), a_load(*RISE))
    assert result.start_replicas == 1
    assert result.series.ready[-1] > 2
    assert result.scale_actions == len(result.moves) > 0
    assert all(move.reason and move.why for move in result.moves)
    assert result.slos[0].signal == "TimeToFirstToken"


def test_our_rule_lets_replicas_go_again() -> None:
    result = ours(a_policy(slos=SLOS, replicas=(1, 16)), a_load((300, 40.0), (900, 2.0)))
    assert max(result.series.ready) > 3
    assert result.series.ready[-1] == 1


def test_the_start_size_is_a_floor_until_the_warm_up_is_over() -> None:
    result = play(Script(Want(1)), a_load((600, 2.0)), start=5, warmup_s=300.0)
    series = result.series
    assert [ready for at_s, ready in zip(series.at_s, series.ready, strict=True) if at_s < 300] == [5] * 19
    assert series.ready[-1] == 1
    assert [(move.at_s, move.replicas_from, move.replicas_to) for move in result.moves] == [(300.0, 5, 1)]
    assert result.scale_actions == 1


def test_our_rule_takes_the_floor_for_its_least_and_nobody_elses_change() -> None:
    policy = a_policy(slos=SLOS, replicas=(1, 16))
    setting = Setting(policy=policy, server=SERVER, requests=a_load((1500, 1.0)))
    rule = bandkeeper.Rule(setting)
    result = simulate(setting, rule, rule_name="bandkeeper", start=6, warmup_s=600.0)
    assert min(result.series.ready[:38]) == 6
    assert result.series.ready[-1] == 1
    assert rule.decision is not None
    assert "changed" not in rule.decision.message
    assert all(move.at_s >= 600.0 for move in result.moves)


def test_bounds_are_kept_whatever_a_rule_wants() -> None:
    policy = a_policy(replicas=(2, 4))
    assert max(play(Script(Want(99)), a_load((300, 2.0)), policy=policy, start=2).series.wanted) == 4
    assert min(play(Script(Want(0)), a_load((300, 2.0)), policy=policy, start=3).series.wanted) == 2


def test_a_cap_is_kept_inside_the_policys_and_needs_a_knob() -> None:
    wants = Script(Want(2, cap=1000), Want(2, cap=1))
    with_knob = a_policy(batch=a_batch(candidates=(8, 16, 32)))
    result = play(wants, a_load((300, 2.0)), policy=with_knob, start=2)
    assert [(move.cap_from, move.cap_to) for move in result.moves] == [(64, 32), (32, 8)]
    assert result.series.cap[-1] == 8
    assert result.batch_actions == 0  # both in the warm-up
    without = play(Script(Want(2, cap=8)), a_load((300, 2.0)), start=2)
    assert not without.moves
    assert without.series.cap[-1] == 64


def test_every_live_pod_shows_the_cap_that_was_written() -> None:
    policy = a_policy(batch=a_batch(candidates=(8, 16, 32), cost_class=CostClass.EVENTUAL), replicas=(1, 8))
    rule = Script(Want(2, cap=16), Want(3, cap=16))
    play(rule, a_load((120, 2.0)), policy=policy, start=2)
    assert [pod.cap for pod in rule.views[0].snapshot.pods] == [None, None]
    assert [pod.cap for pod in rule.views[1].snapshot.pods] == [16, 16]
    assert [pod.cap for pod in rule.views[2].snapshot.pods] == [16, 16, None]  # ordered since
    assert [pod.cap for pod in rule.views[3].snapshot.pods] == [16, 16, 16]


def test_a_rule_is_called_at_its_own_period_with_its_own_scrapes() -> None:
    class Quick(Script):
        period_s, scrape_s = 2.0, 1.0

    rule = Quick(Want(2))
    play(rule, a_load((120, 2.0)), start=2)
    assert [view.now_s for view in rule.views[:3]] == [2.0, 4.0, 6.0]
    assert len(rule.views) == 60
    assert set(rule.views[0].metrics.rate(Signal.REQUESTS_FINISHED, 3.0)) == {"pod-0000", "pod-0001"}


def test_what_a_view_says_of_the_fleet() -> None:
    rule = Script(Want(2), Want(4))
    play(rule, a_load((300, 2.0)), start=2, warmup_s=30.0)
    first, third, last = rule.views[0], rule.views[2], rule.views[-1]
    assert (first.replicas, first.ready, first.pending, first.floor, first.cap) == (2, 2, 0, 2, 64)
    assert (third.replicas, third.ready, third.pending) == (4, 2, 2)
    assert (last.ready, last.pending, last.floor) == (4, 0, 1)


def test_progress_is_told_up_to_the_end() -> None:
    seen: list[tuple[float, float]] = []
    play(Script(Want(1)), a_load((100, 2.0)), start=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100.0, 100.0)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("requests", "given", "sentence"),
    [
        (a_load((0, 1.0)), {}, "no requests"),
        (a_load((60, 1.0)), {}, "not longer than the warm-up"),
        (a_load((120, 1.0)), {"start": 17}, "write 1 to 16"),
        (a_load((120, 1.0)), {"start": 0}, "write 1 to 16"),
    ],
)
def test_what_cannot_run_is_refused(requests: Requests, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        play(Script(Want(1)), requests, **given)


def test_the_default_start_carries_the_warm_ups_busiest_minute() -> None:
    per_s = SERVER.sustainable_per_s(200, 100)
    policy = a_policy(replicas=(1, 16))
    requests = a_load((60, per_s), (60, 4.9 * per_s), (60, 2 * per_s), (600, 12 * per_s))
    assert start_replicas(policy, SERVER, requests, 180.0) == 6
    assert start_replicas(policy, SERVER, requests, 60.0) == 2
    assert start_replicas(a_policy(replicas=(3, 4)), SERVER, requests, 180.0) == 4
    assert start_replicas(a_policy(replicas=(3, 4)), SERVER, requests, 60.0) == 3


def test_the_series_is_one_value_per_interval() -> None:
    result = play(Script(Want(2)), a_load((305, 4.0)), start=2)
    series = result.series
    assert series.at_s == [15.0 * (number + 1) for number in range(20)] + [305.0]
    lengths = {name: len(value) for name, value in series if name not in ("slo_values", "watts")}
    assert set(lengths.values()) == {21}
    assert [len(values) for values in series.slo_values] == [21, 21]
    assert sum(rate * 15 for rate in series.arrived_per_s[:20]) == pytest.approx(1200)
    assert series.utilization[10] == pytest.approx(4 / SERVER.sustainable_per_s(200, 100) / 2, rel=0.02)
    assert set(series.quality) <= {*map(str, Quality)}
    assert series.busy[10] is not None
    assert 0.5 < series.busy[10] <= 1.0


def test_a_long_run_has_longer_intervals() -> None:
    result = play(Script(Want(1)), a_load((30_000, 0.05)), start=1)
    assert len(result.series.at_s) == 1000
    assert result.series.at_s[0] == 30.0


def test_without_a_ready_pod_there_is_no_activity() -> None:
    crashing = SERVER.model_copy(update={"crashes_per_hour": 200.0, "cold_start": ColdStart(median_s=200, spread=0)})
    result = play(Script(Want(1)), a_load((900, 1.0)), server=crashing, start=1)
    nobody = [number for number, ready in enumerate(result.series.ready) if not ready and number > 4]
    assert nobody
    assert None in {result.series.utilization[number] for number in nobody}
    assert result.errors > 0
    assert {result.series.quality[number] for number in nobody} == {"Unknown"}
    assert max(result.series.waiting) > 50  # at the router


def test_an_overload_shows_as_such() -> None:
    result = play(Script(Want(1)), a_load((60, 2.0), (600, 20.0)), start=1)
    assert "Overloaded" in result.series.quality
    assert result.slos[0].attainment is not None
    assert result.slos[0].attainment < 0.2
    assert result.slos[0].value is None  # the percentile is among those that were never served
    assert result.requests.unserved > 1000


def test_a_promise_about_a_rate_is_judged_while_work_waits() -> None:
    asked = [ThroughputSLO(signal=signal, min_per_s=per_s, window_s=60.0) for signal, per_s in _RATES]
    result = play(Script(Want(1)), a_load((60, 2.0), (300, 20.0)), policy=a_policy(slos=asked), start=1)
    assert [slo.attainment == 1.0 for slo in result.slos] == [True, False, True, True]
    assert result.slos[1].attainment == 0.0
    idle = play(Script(Want(4)), a_load((360, 2.0)), policy=a_policy(slos=asked), start=4)
    assert [slo.attainment for slo in idle.slos] == [None] * 4
    assert idle.slos[0].value == pytest.approx(2.0, rel=0.02)
    assert idle.slos[2].value == pytest.approx(2.0 * 100, rel=0.03)
    assert idle.slos[3].value == pytest.approx(2.0 * 200, rel=0.03)
    assert idle.attainment_both is None


_RATES: Sequence[tuple[Signal, float]] = (
    (Signal.REQUESTS_FINISHED, 5.0),
    (Signal.REQUESTS_FINISHED, 50.0),
    (Signal.GENERATION_TOKENS, 400.0),
    (Signal.PROMPT_TOKENS, 800.0),
)


def test_a_promise_about_queue_times_is_read_from_their_histogram() -> None:
    slo = LatencySLO(signal=Signal.QUEUE_TIME, percentile=95, threshold_s=1.0, window_s=60.0)
    calm = play(Script(Want(4)), a_load((360, 4.0)), policy=a_policy(slos=[slo]), start=4)
    assert calm.slos[0].attainment == pytest.approx(1.0)
    assert calm.slos[0].value is not None
    full = play(Script(Want(1)), a_load((60, 2.0), (300, 20.0)), policy=a_policy(slos=[slo]), start=1)
    assert full.slos[0].attainment is not None
    assert full.slos[0].attainment < 0.3


def test_a_dynamic_batching_fleet_is_driven_by_the_same_decision() -> None:
    policy = a_policy(slos=[replace(E2E, threshold_s=0.5)], batching=Batching.DYNAMIC, default_capacity=4)
    result = ours(policy, a_load((180, 50.0), (420, 500.0)), TRITON)
    assert result.series.ready[0] == 1
    assert result.series.ready[-1] >= 3
    assert result.slos[0].attainment is not None
    assert result.errors == 0


def test_a_rollout_is_said_to_be_simplified() -> None:
    policy = a_policy(batch=a_batch(cost_class=CostClass.ROLLOUT, delay_s=300.0))
    notes = play(Script(Want(1)), a_load((120, 1.0)), policy=policy, start=1).notes
    assert notes[0] == "a note"
    assert "300 s" in notes[1]


def test_the_lab_reads_no_clock() -> None:
    room = Path(engine.__file__).parents[1] / "lab"
    for name in ("run", "score", "series", "scrape", "snapshot", "fleet", "kernel"):
        text = (room / f"{name}.py").read_text()
        assert "import time" not in text
        assert "datetime" not in text


def test_every_field_of_the_json_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lab.md").read_text()
    for model in (Result, SLOResult, Counts, PowerResult, Move, Series):
        assert [name for name in model.model_fields if f"`{name}`" not in page] == []
    for server in (ContinuousServer, DynamicServer):
        missing = [name for name in server.model_fields if f"`{name}" not in page]
        assert missing == []
