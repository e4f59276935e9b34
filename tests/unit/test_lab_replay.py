"""The replay: the operator's decision over a recorded past, and what it can and cannot say of it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bandkeeper.api.reasons import Reason
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Reading, Snapshot, Target
from bandkeeper.decide import engine
from bandkeeper.decide.policy import Policy
from bandkeeper.lab import replay as replays
from bandkeeper.lab.history import History
from bandkeeper.lab.replay import ReplayError, ReplayResult, replay
from bandkeeper.lab.report import replayed
from bandkeeper.lab.result import to_json
from tests.unit.builders import ITL, TTFT, a_policy
from tests.unit.lab_histories import CAPACITY, TOKEN_SHARE, a_histogram, a_history, service_s

POLICY = a_policy(slos=[TTFT, ITL], default_capacity=CAPACITY)


def _replay(past: History, policy: Policy = POLICY, **options: float) -> ReplayResult:
    return replay(policy, past, policy_name="chat", warmup_s=options.pop("warmup_s", 300.0), **options)  # type: ignore[arg-type]


def test_the_decision_is_the_operators() -> None:
    assert vars(replays)["decide"] is engine.decide


def test_a_fleet_too_large_is_made_smaller_and_the_saving_is_told() -> None:
    result = _replay(a_history(20.0, 8))
    assert result.series.ordered[-1] == 8
    assert result.series.wanted[-1] < 5
    judged_h = result.ticks * 15 / 3600
    assert result.gpu_hours_past == pytest.approx(8 * judged_h)
    wanted = [n for at_s, n in zip(result.series.at_s, result.series.wanted, strict=True) if at_s > 300]
    assert result.gpu_hours_wanted == pytest.approx(sum(wanted) * 15 / 3600)
    assert result.gpu_hours_saved == pytest.approx(result.gpu_hours_past - result.gpu_hours_wanted)
    assert result.gpu_hours_saved > 0
    assert result.scale_actions_past == 0
    assert all(move.reason == Reason.DEMAND_FELL for move in result.moves)


def test_a_fleet_too_small_owes_replicas() -> None:
    result = _replay(a_history(36.0, 2))
    assert result.series.wanted[-1] > 2
    assert result.gpu_hours_saved < 0
    assert "GPU-hours more" in replayed.headline(result)


def test_wanted_hours_are_told_by_rule() -> None:
    result = _replay(a_history(20.0, 8))
    hours = result.gpu_hours_by_rule
    assert hours is not None
    assert 0 < hours["work"] < result.gpu_hours_wanted
    assert hours["unknown"] == 0.0
    most = result.ticks * result.series.wanted[0] * 15 / 3600
    assert all(0 <= value <= most for value in hours.values())
    assert "Held for  work " in replayed.summary(result)
    assert "Wanted for one rule alone" in [tile.name for tile in replayed.page(result).tiles]


def test_what_is_held_by_the_least_count_is_told_so() -> None:
    """One request in ten seconds, and four replicas at least: three would not be held without that rule."""
    result = _replay(a_history(0.1, 4), a_policy(slos=[TTFT, ITL], default_capacity=CAPACITY, replicas=(4, 16)))
    hours = result.gpu_hours_by_rule
    assert hours is not None
    assert hours["min"] == pytest.approx(3 * result.ticks * 15 / 3600)


def test_time_of_which_nothing_was_recorded_is_unknown() -> None:
    hole = range(150, 190)
    result = _replay(a_history(20.0, 4, darkness=hole))
    assert result.gpu_hours_by_rule is not None
    assert result.gpu_hours_by_rule["unknown"] == pytest.approx(len(hole) * result.series.wanted[150] * 15 / 3600)


def test_gpus_of_a_replica_are_counted() -> None:
    one, four = _replay(a_history(20.0, 8)), _replay(a_history(20.0, 8), gpus_per_replica=4)
    assert four.gpu_hours_saved == pytest.approx(4 * one.gpu_hours_saved)
    assert four.gpu_hours_by_rule is not None
    assert one.gpu_hours_by_rule is not None
    assert four.gpu_hours_by_rule["work"] == pytest.approx(4 * one.gpu_hours_by_rule["work"])


def test_decisions_follow_one_another_although_the_record_stays() -> None:
    """From 16 replicas the policy may only halve at a time: it goes on from its own count, not from the record's."""
    result = _replay(a_history(8.0, 16, minutes=90), a_policy(slos=[TTFT, ITL]))
    assert result.series.wanted[-1] <= 3
    assert [move.replicas_from for move in result.moves[1:]] == [move.replicas_to for move in result.moves[:-1]]


def test_moments_without_data_hold_and_are_counted() -> None:
    hole = range(150, 190)
    whole, holed = _replay(a_history(20.0, 8)), _replay(a_history(20.0, 8, darkness=hole))
    assert (whole.dark_ticks, holed.dark_ticks) == (0, len(hole))
    assert holed.ticks == whole.ticks
    held = {holed.series.wanted[index] for index in hole}
    assert held == {holed.series.wanted[149]}
    for name in ("finished_per_s", "running", "waiting", "utilization", "request_s"):
        assert {getattr(holed.series, name)[index] for index in hole} == {None}
    assert {holed.series.data[index] for index in hole} == {"No data"}
    assert "of 40 nothing was recorded" in replayed.summary(holed)


def test_darkness_from_the_start_lets_nothing_go() -> None:
    result = _replay(a_history(20.0, 8, minutes=30, darkness=range(100)))
    assert set(result.series.wanted[:104]) == {8}
    assert result.moves[0].at_s == 1500 + POLICY.restart_hold_s


def test_a_pod_without_data_makes_the_moment_partial_and_nothing_is_let_go() -> None:
    past = a_history(20.0, 8)
    moments = []
    for moment in past.moments:
        by_pod = {
            signal: {pod: value for pod, value in values.items() if pod != "chat-0"}
            for signal, values in moment.snapshot.by_pod.items()
        }
        moments.append(replace(moment, snapshot=replace(moment.snapshot, by_pod=by_pod)))
    result = _replay(replace(past, moments=tuple(moments)))
    assert result.partial_ticks == result.ticks
    assert result.moves == []
    assert result.series.finished_per_s[-1] is None


def test_measured_promises_are_those_of_the_buckets() -> None:
    past = a_history(20.0, 4)
    result = _replay(past)
    for slo in result.slos:
        found = past.moments[-1].snapshot.distributions[Signal(slo.signal), 60]
        kept = found.counts[found.edges.index(slo.threshold)] / found.counts[-1]
        assert slo.measured_low == slo.measured_high == pytest.approx(kept)


def test_a_threshold_between_edges_has_two_ends() -> None:
    between = replace(ITL, threshold_s=0.06)
    (slo,) = _replay(a_history(100.0, 8), a_policy(slos=[between])).slos
    assert slo.measured_low is not None
    assert slo.measured_high is not None
    assert slo.measured_low < slo.measured_high
    assert " to " in replayed.measured(slo)


def test_refused_requests_are_misses() -> None:
    past = a_history(20.0, 4)
    moments = []
    for moment in past.moments:
        refused = dict.fromkeys(moment.snapshot.by_pod[Signal.REQUESTS_RUNNING], Reading(5.0, 1.0))  # as many as finish
        by_pod = {**moment.snapshot.by_pod, Signal.REQUESTS_REJECTED: refused}
        moments.append(replace(moment, snapshot=replace(moment.snapshot, by_pod=by_pod)))
    ttft, itl = _replay(replace(past, moments=tuple(moments))).slos
    assert ttft.measured_low == pytest.approx(0.5, abs=0.01)
    assert itl.measured_low == pytest.approx(1.0, abs=0.01)


def test_as_many_replicas_are_expected_to_keep_what_was_measured() -> None:
    result = _replay(a_history(41.0, 4))
    assert set(result.series.wanted) == {4}
    for slo in result.slos:
        assert slo.expected == slo.measured_low
        assert (slo.expected_known, slo.expected_modelled) == (1.0, 0.0)


def test_fewer_replicas_are_expected_to_keep_what_this_past_saw_at_that_load() -> None:
    """The load per replica that the policy would have had later was there before, and its latencies with it."""
    past = a_history(lambda at_s: 62.0 if at_s < 1500 else 31.0, 6, minutes=90)
    busy, calm = (past.moments[index].snapshot.distributions[Signal.INTER_TOKEN_LATENCY, 60] for index in (50, -1))
    assert busy.counts[4] / busy.counts[-1] < calm.counts[4] / calm.counts[-1]
    result = _replay(past, warmup_s=3600.0)
    assert set(result.series.wanted[250:]) == {3}
    itl = result.slos[1]
    assert itl.expected == pytest.approx(busy.counts[4] / busy.counts[-1], rel=0.01)
    assert (itl.expected_known, itl.expected_modelled) == (1.0, 0.0)


def test_the_model_says_what_to_expect_of_loads_that_were_not_seen() -> None:
    """The truth is known here: latencies grow with the time in process, which follows from the load per replica."""
    wanders = a_history(lambda at_s: 60 + 10 * math.sin(at_s / 200), 9, minutes=90)
    result = _replay(wanders, warmup_s=3000.0)
    assert max(result.series.expected_ready[210:]) < 9
    itl = result.slos[1]
    assert itl.expected_modelled > 0.2
    ended = kept = 0.0
    for index, at_s in enumerate(result.series.at_s):
        if at_s <= 3000:
            continue
        rate = 60 + 10 * math.sin(at_s / 200)
        each = rate / result.series.expected_ready[index]
        truth = a_histogram(TOKEN_SHARE * service_s(each), 50 * rate)
        ended, kept = ended + truth.counts[-1], kept + truth.counts[4]
    assert itl.expected == pytest.approx(kept / ended, abs=0.02)


def test_nothing_is_said_of_loads_far_beyond_what_was_seen() -> None:
    """An hour with 16 replicas for the work of one says nothing of one replica under all of it."""
    result = _replay(a_history(6.0, 16, minutes=90), warmup_s=3000.0)
    assert result.series.wanted[-1] <= 2
    for slo in result.slos:
        assert slo.expected is None
        assert slo.expected_known == 0.0
    assert "not known" in replayed.headline(result)


def test_new_replicas_count_a_cold_start_later() -> None:
    result = _replay(a_history(lambda at_s: 20.0 if at_s < 1800 else 80.0, 4))
    series = result.series
    first = next(index for index, wanted in enumerate(series.wanted) if wanted > 4)
    later = next(index for index, ready in enumerate(series.expected_ready) if ready > 4)
    assert result.cold_start_s == 90.0
    assert (later - first) * 15 == 90
    assert all(ready <= wanted for ready, wanted in zip(series.expected_ready, series.wanted, strict=True))


def test_the_time_in_process_is_predicted_and_its_error_told() -> None:
    steady, jumpy = _replay(a_history(60.0, 6)), _replay(a_history(lambda at_s: 60 + 30 * math.sin(at_s / 60), 6))
    exact, rough = steady.predictions[0], jumpy.predictions[0]
    assert (exact.count, exact.ahead_s) == (steady.ticks, 90.0)
    assert exact.median_error == pytest.approx(0.0, abs=0.01)
    assert rough.median_error is not None
    assert rough.p90_error is not None
    assert 0.005 < rough.median_error < rough.p90_error < 1.0
    measured = steady.series.request_s[-1]
    assert measured == pytest.approx(service_s(10.0))


def test_planned_work_that_was_too_little_is_told() -> None:
    rising = _replay(a_history(lambda at_s: 10 + at_s / 60, 8)).predictions[1]
    falling = _replay(a_history(lambda at_s: 80 - at_s / 60, 8)).predictions[1]
    assert rising.short is not None
    assert rising.short > 0.9
    assert falling.short == 0.0
    assert falling.bias is not None
    assert falling.bias > 0


def test_a_source_of_percentiles_only_is_judged_by_moments() -> None:
    past = a_history(20.0, 4)
    moments = []
    for number, moment in enumerate(past.moments):
        late = Distribution(window_s=60, quantiles={95: 0.6 if number % 4 == 0 else 0.2})
        found = {(Signal.TIME_TO_FIRST_TOKEN, 60): late}
        moments.append(replace(moment, snapshot=replace(moment.snapshot, distributions=found)))
    (slo,) = _replay(replace(past, moments=tuple(moments)), a_policy(slos=[TTFT])).slos
    assert slo.measured_low == pytest.approx(0.75 * 0.95, abs=0.01)
    assert slo.measured_high == pytest.approx(0.75 * 1.0 + 0.25 * 0.95, abs=0.01)


@pytest.mark.parametrize(("minutes", "told"), [(5.0, "lasts 300 s, not longer than the 300 s"), (2.0, "--warmup")])
def test_a_past_that_is_too_short_is_refused(minutes: float, told: str) -> None:
    with pytest.raises(ReplayError, match=told):
        _replay(a_history(minutes=minutes))


def test_a_past_without_any_data_is_refused() -> None:
    past = a_history(minutes=30)
    with pytest.raises(ReplayError, match="no moment of this history shows a ready pod of serving/chat"):
        _replay(replace(past, moments=tuple(replace(moment, dark=True) for moment in past.moments)))


def test_by_default_the_longest_hold_is_not_judged() -> None:
    policy = a_policy(restart_hold_s=420.0)
    assert replay(policy, a_history(), policy_name="chat").warmup_s == 420.0


def test_a_past_begun_at_zero_is_taken_up() -> None:
    """A person's zero is left alone, and so is its end."""
    past = a_history(20.0, 4)
    nothing = Snapshot(target=Target(uid="past", replicas=0))
    asleep = tuple(replace(moment, snapshot=nothing) for moment in past.moments[:40])
    result = _replay(replace(past, moments=(*asleep, *past.moments[40:])))
    assert set(result.series.wanted[:40]) == {0}
    assert result.series.wanted[40] == 4


def test_equal_pasts_give_equal_bytes() -> None:
    assert to_json(_replay(a_history(20.0, 8))) == to_json(_replay(a_history(20.0, 8)))


def test_a_day_is_replayed_in_seconds() -> None:
    past = a_history(lambda at_s: 40 + 30 * math.sin(at_s / 5000), 8, minutes=24 * 60)
    begun_s = time.process_time()
    result = _replay(past)
    assert time.process_time() - begun_s < 15.0
    assert len(result.series.at_s) == 5761


def test_the_report_shows_past_and_policy(tmp_path: Path) -> None:
    result = _replay(a_history(lambda at_s: 40 + 30 * math.sin(at_s / 500), 8, darkness=range(100, 110)))
    replayed.write(result, tmp_path / "replay.html")
    replayed.png(result, tmp_path / "replay.png")
    page = (tmp_path / "replay.html").read_text()
    for text in ("the policy wants", "ready in the past", "Recorded data", "No data", "predicted 90 s earlier"):
        assert text in page
    assert "2026-09-21" in page
    assert (tmp_path / "replay.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("saved", "expected", "known", "sentence"),
    [
        (4.0, 0.99, 1.0, "Would have saved 4 of 10 GPU-hours (40 %); every promise is expected to be kept."),
        (0.01, 0.99, 1.0, "Would have cost the same 10 GPU-hours; every promise is expected to be kept."),
        (
            -2.0, 0.949, 0.8,
            "Would have cost 2 GPU-hours more: 12 instead of 10; expected are only 94.9 % of first tokens under 500 ms "
            "(95 % promised), as far as can be told (80 % of the requests).",
        ),
        (4.0, None, 0.0, "Would have saved 4 of 10 GPU-hours (40 %); whether the promises had been kept is not known."),
    ],
)  # fmt: skip
def test_the_headline(saved: float, expected: float | None, known: float, sentence: str) -> None:
    result = _replay(a_history(20.0, 8), a_policy(slos=[TTFT]))
    slo = result.slos[0].model_copy(update={"expected": expected, "expected_known": known})
    changes = {"gpu_hours_past": 10.0, "gpu_hours_wanted": 10 - saved, "gpu_hours_saved": saved, "slos": [slo]}
    assert replayed.headline(result.model_copy(update=changes)) == sentence
