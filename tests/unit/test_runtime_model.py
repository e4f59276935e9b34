"""What was learned survives a restart by the status, and a status that cannot be meant is no model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Snapshot
from bandkeeper.api.v1alpha1 import ModelStatus
from bandkeeper.decide.decision import FITTED_MODEL, Decision
from bandkeeper.decide.engine import decide
from bandkeeper.decide.state import State
from bandkeeper.runtime.resume import learned_of, model_of, remembered
from tests.unit.builders import a_distribution, a_policy, a_snapshot, a_target

POLICY = a_policy(replicas=(1, 60))
TOLD = ModelStatus(
    version=1,
    target_uid="uid",
    peak_time="1970-01-01T00:00:00Z",
    alpha_milliseconds="20.58",
    beta_milliseconds="0.41",
    delta_milliseconds="0.1",
    batch_cap=64,
    peak_work="16.2",
    largest_rise="12.1",
)


def served(requests_per_s: float, ready: int) -> Snapshot:
    """Requests of 300 and 200 tokens, at most 5.7 a second and replica."""
    tokens, prompts = 200 * requests_per_s / ready, 300 * requests_per_s / ready
    token_s = 0.02058 / (1 - 0.00041 * tokens - 0.0001 * prompts)
    return a_snapshot(
        ready=ready,
        target=a_target(ready),
        running=ready * tokens * token_s,
        waiting=0.0,
        distributions={Signal.INTER_TOKEN_LATENCY: a_distribution({0.05: 1000.0}, mean_s=token_s)},
        requests_finished=requests_per_s,
        prompt_tokens=ready * prompts,
        generation_tokens=ready * tokens,
    )


def play(state: State, rates: list[float], ready: int, begin_s: float) -> tuple[Decision, State]:
    for number, rate in enumerate(rates):
        decision, state = decide(POLICY, served(rate, ready), state, begin_s + 15.0 * number)
    return decision, state


def begun(told: ModelStatus, wall_s: float = 0.0) -> State:
    return remembered(State.initial(0.0), POLICY, told, "uid", now_s=0.0, wall_s=wall_s)


def test_a_peak_that_is_too_old_is_not_held_again() -> None:
    memory_s = 24 * POLICY.scale_down.stabilization_s
    assert begun(TOLD, memory_s - 100.0).model.outlook.peaks.highest() == 16.2
    assert begun(TOLD, memory_s + 100.0).model.outlook.peaks.highest() is None


def test_a_restart_keeps_what_is_to_be_ready_for() -> None:
    """The work of fourteen replicas came and went before. The model is in doubt at first, which asks for some more."""
    before, _ = play(State.initial(0.0), [20.0] * 20 + [80.0] * 20 + [20.0] * 40, 20, 0.0)
    assert before.learned is not None
    told = model_of(before.learned, "uid", wall_s=1200.0)
    begun = remembered(State.initial(5000.0), POLICY, told, "uid", now_s=5000.0, wall_s=1230.0)
    after, _ = play(begun, [20.0] * 40, 20, 5000.0)
    blank, _ = play(State.initial(5000.0), [20.0] * 40, 20, 5000.0)
    assert before.utilization_source == after.utilization_source == FITTED_MODEL
    assert (after.replicas or 0) >= (before.replicas or 0) > (blank.replicas or 0) + 5
    assert after.utilization == pytest.approx(before.utilization, rel=0.05)


def test_a_model_is_there_after_half_a_minute() -> None:
    decision, _ = play(begun(TOLD), [20.0] * 4, 6, 15.0)
    assert decision.utilization_source == FITTED_MODEL
    assert decision.utilization == pytest.approx(20 / 5.7 / 6, rel=0.15)


def test_what_goes_round_is_the_same() -> None:
    state = begun(TOLD)
    decision, _ = play(state, [20.0] * 4, 6, 15.0)
    assert decision.learned is not None
    again = model_of(decision.learned, "uid", wall_s=0.0)
    assert (again.batch_cap, again.peak_work, again.largest_rise) == (64, "16.2", "12.1")
    assert float(again.alpha_milliseconds) == pytest.approx(20.58, rel=0.1)


def test_the_traffic_is_told_with_it() -> None:
    """20 requests/s of 300 and 200 tokens, as the fleet was served."""
    decision, _ = play(State.initial(0.0), [20.0] * 60, 6, 0.0)
    assert decision.learned is not None
    told = model_of(decision.learned, "uid", wall_s=0.0)
    known = learned_of(told, wall_s=0.0)
    assert known is not None
    assert known.seen is not None
    assert known.seen.requests_per_s == pytest.approx(20.0)
    assert known.seen.prompt_tokens == pytest.approx(300.0)
    assert known.seen.output_tokens == pytest.approx(200.0)
    assert known.seen.room == 64.0
    assert known.seen.windows == pytest.approx(15.0, abs=1.0)
    assert 0 < known.seen.error < 0.2
    assert known.seen.margin > 1
    assert len(told.model_dump_json(by_alias=True)) < 1024


def test_a_status_from_before_the_traffic_was_told_is_a_model_all_the_same() -> None:
    known = learned_of(TOLD, wall_s=0.0)
    assert known is not None
    assert known.seen is None
    assert begun(TOLD).model.best_cap == 64


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_second": "0"},
        {"prompt_tokens": "many"},
        {"output_tokens": "nan"},
        {"margin": "-1"},
        {"room": None},
        {"bound_by": "Smoothness"},
    ],
    ids=lambda wrong: "-".join(f"{name}={value}" for name, value in wrong.items()),
)
def test_traffic_that_cannot_be_meant_is_left_out_and_harms_nothing(wrong: dict[str, Any]) -> None:
    seen = {
        "requests_per_second": "20",
        "prompt_tokens": "300",
        "output_tokens": "200",
        "room": "64",
        "margin": "1.2",
        "windows": "15",
    }
    whole = learned_of(TOLD.model_copy(update=seen), wall_s=0.0)
    assert whole is not None
    assert whole.seen is not None
    told = TOLD.model_copy(update=seen | wrong)
    known = learned_of(told, wall_s=0.0)
    assert known is not None
    assert known.seen is None
    assert begun(told).model == begun(TOLD).model


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"alpha_milliseconds": "fast"},
        {"alpha_milliseconds": "0"},
        {"beta_milliseconds": "-1"},
        {"delta_milliseconds": "nan"},
        {"peak_work": "inf"},
        {"peak_work": "1e9"},
        {"batch_cap": 0},
        {"largest_rise": ""},
        {"peak_time": "yesterday"},
    ],
    ids=lambda wrong: "-".join(f"{name}={value}" for name, value in wrong.items()),
)
def test_what_cannot_be_meant_is_no_model(wrong: dict[str, Any]) -> None:
    state = State.initial(0.0)
    assert remembered(state, POLICY, TOLD.model_copy(update=wrong), "uid", now_s=0.0, wall_s=0.0) is state


def test_nothing_is_taken_over_that_is_known_better() -> None:
    fresh = State.initial(0.0)
    assert remembered(fresh, POLICY, None, "uid", now_s=0.0, wall_s=0.0) is fresh
    assert remembered(fresh, POLICY, TOLD, "another", now_s=0.0, wall_s=0.0) is fresh
    known = replace(fresh, target_uid="uid")
    assert remembered(known, POLICY, TOLD, "uid", now_s=0.0, wall_s=0.0) is known


def test_without_tokens_nothing_was_learned() -> None:
    decision, _ = decide(POLICY, a_snapshot(ready=2, running=20.0), State.initial(0.0), 0.0)
    assert decision.learned is None
    assert not math.isnan(decision.utilization or 0.0)
