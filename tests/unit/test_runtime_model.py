"""What was learned survives a restart by the status, and a status that cannot be meant is no model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Snapshot
from bandkeeper.api.v1alpha1 import BatchTime, ModelStatus
from bandkeeper.decide.decision import FITTED_MODEL, Decision, Learned
from bandkeeper.decide.engine import decide
from bandkeeper.decide.policy import Batching
from bandkeeper.decide.prediction import MOST_BATCHES
from bandkeeper.decide.state import State
from bandkeeper.model.batches import BatchTimes
from bandkeeper.runtime.resume import learned_of, model_of, remembered
from tests.unit.builders import a_distribution, a_policy, a_snapshot, a_target, pods

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


def served(requests_per_s: float, ready: int, prefill_tokens: int | None = None) -> Snapshot:
    """Requests of 300 and 200 tokens, at most 5.7 a second and replica."""
    tokens, prompts = 200 * requests_per_s / ready, 300 * requests_per_s / ready
    token_s = 0.02058 / (1 - 0.00041 * tokens - 0.0001 * prompts)
    return a_snapshot(
        ready=pods(ready, prefill_tokens=prefill_tokens),
        target=a_target(ready),
        running=ready * tokens * token_s,
        waiting=0.0,
        distributions={Signal.INTER_TOKEN_LATENCY: a_distribution({0.05: 1000.0}, mean_s=token_s)},
        requests_finished=requests_per_s,
        prompt_tokens=ready * prompts,
        generation_tokens=ready * tokens,
    )


def play(
    state: State, rates: list[float], ready: int, begin_s: float, prefill_tokens: int | None = None
) -> tuple[Decision, State]:
    for number, rate in enumerate(rates):
        decision, state = decide(POLICY, served(rate, ready, prefill_tokens), state, begin_s + 15.0 * number)
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


def test_the_prompt_tokens_of_a_step_go_with_it_and_follow_the_pods() -> None:
    decision, state = play(State.initial(0.0), [20.0] * 60, 6, 0.0, prefill_tokens=512)
    assert decision.learned is not None
    told = model_of(decision.learned, "uid", wall_s=0.0)
    assert told.prefill_tokens == 512
    known = learned_of(told, wall_s=0.0)
    assert known is not None
    assert known.seen is not None
    assert known.seen.prefill_tokens == 512
    for prefill_tokens in (2048, None):
        decision, state = play(state, [20.0] * 4, 6, 900.0, prefill_tokens)
        assert decision.learned is not None
        assert decision.learned.seen is not None
        assert decision.learned.seen.prefill_tokens == prefill_tokens


@pytest.mark.parametrize(("told", "tokens"), [(None, None), (0, None), (512, 512)])
def test_a_status_without_the_prompt_tokens_of_a_step_is_read_all_the_same(
    told: int | None, tokens: int | None
) -> None:
    decision, _ = play(State.initial(0.0), [20.0] * 60, 6, 0.0, prefill_tokens=8192)
    assert decision.learned is not None
    status = model_of(decision.learned, "uid", wall_s=0.0).model_copy(update={"prefill_tokens": told})
    known = learned_of(ModelStatus.model_validate_json(status.model_dump_json(by_alias=True)), wall_s=0.0)
    assert known is not None
    assert known.seen is not None
    assert known.seen.prefill_tokens == tokens


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
        {"version": 3},
        {"alpha_milliseconds": "fast"},
        {"alpha_milliseconds": "0"},
        {"beta_milliseconds": "-1"},
        {"delta_milliseconds": "nan"},
        {"peak_work": "inf"},
        {"peak_work": "1e9"},
        {"batch_cap": 0},
        {"largest_rise": ""},
        {"peak_time": "yesterday"},
        {"batch_times": [BatchTime(size="8", milliseconds="0")]},
        {"batch_times": [BatchTime(size="eight", milliseconds="4")]},
    ],
    ids=lambda wrong: "-".join(f"{name}={value}" for name, value in wrong.items()).replace(" ", ""),
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


class TestDynamicBatching:
    """A server whose batch of b samples takes 200 + 30 b ms; it was seen at many sizes before the restart."""

    policy = a_policy(batching=Batching.DYNAMIC, replicas=(1, 60), default_capacity=32)
    most = 32 / (0.2 + 0.03 * 32)

    def served(self, per_s: float, ready: int) -> Snapshot:
        batch = max(1.0, 0.2 * per_s / ready / (1 - 0.03 * per_s / ready))
        batch_s = 0.2 + 0.03 * batch
        return a_snapshot(
            ready=ready,
            target=a_target(ready),
            running=per_s * batch_s,
            waiting=0.0,
            batch_size=ready * batch,
            requests_finished=per_s,
            samples=per_s,
        )

    def play(self, state: State, loads: list[float], begin_s: float) -> tuple[Decision, State]:
        for number, load in enumerate(loads):
            decision, state = decide(self.policy, self.served(4 * self.most * load, 4), state, begin_s + 15.0 * number)
        return decision, state

    def status(self) -> ModelStatus:
        loads = [0.6 + 0.35 * math.sin(tick / 6) for tick in range(80)]
        before, _ = self.play(State.initial(0.0), loads, 0.0)
        assert before.learned is not None
        return model_of(before.learned, "uid", wall_s=1200.0)

    def test_a_restart_keeps_the_times_of_sizes_that_are_not_seen_now(self) -> None:
        """At a fifth of the load only small batches are seen, and those tell nothing of large ones."""
        told = self.status()
        begun = remembered(State.initial(5000.0), self.policy, told, "uid", now_s=5000.0, wall_s=1230.0)
        after, _ = self.play(begun, [0.2] * 8, 5000.0)
        blank, _ = self.play(State.initial(5000.0), [0.2] * 8, 5000.0)
        assert after.utilization_source == blank.utilization_source == FITTED_MODEL
        assert after.utilization == pytest.approx(0.2, rel=0.1)
        assert (blank.utilization or 0.0) > 0.3

    def test_the_summary_is_short(self) -> None:
        told = self.status()
        assert told.version == 2
        assert told.batch_times
        assert len(told.model_dump_json(by_alias=True, exclude_none=True)) < 1024

    def test_the_batches_of_another_kind_of_server_are_nothing(self) -> None:
        told = self.status()
        begun = remembered(State.initial(0.0), POLICY, told, "uid", now_s=0.0, wall_s=1230.0)
        assert begun.model.steps.observations == 0
        dynamic = remembered(State.initial(0.0), self.policy, TOLD, "uid", now_s=0.0, wall_s=0.0)
        assert dynamic.model.steps.observations == 0

    @given(
        st.dictionaries(st.integers(0, 20), st.floats(1e-4, 900.0), min_size=1, max_size=40),
        st.integers(1, 500),
        st.floats(0.0, 1e4),
    )
    def test_any_table_goes_round(self, times: dict[int, float], cap: int, work: float) -> None:
        """Sizes half a doubling apart. The status keeps four digits and a bounded number of them."""
        table = tuple((2 ** (place / 2), seconds) for place, seconds in sorted(times.items()))
        known = Learned(
            alpha_s=0.01,
            beta_s=0.001,
            delta_s=0.0,
            best_cap=cap,
            peak_work=work,
            largest_rise=0.0,
            batches=BatchTimes.of_table(table, 1.0).table(MOST_BATCHES),
        )
        told = model_of(known, "0b8dd9f6-4a53-4d0e-9d3a-2f3f0b6f9f63", wall_s=0.0)
        stored = ModelStatus.model_validate_json(told.model_dump_json(by_alias=True, exclude_none=True))
        assert len(told.model_dump_json(by_alias=True, exclude_none=True)) < 1024
        again = learned_of(stored, wall_s=0.0)
        assert again is not None
        assert again.best_cap == cap
        assert [size for size, _ in again.batches] == pytest.approx([size for size, _ in known.batches], rel=1e-3)
        assert [one for _, one in again.batches] == pytest.approx([one for _, one in known.batches], rel=1e-3)
        best = max(table, key=lambda row: row[0] / row[1])
        for end in (table[0], table[-1], best):
            assert any(size == pytest.approx(end[0], rel=1e-3) for size, _ in again.batches)
        once_more = BatchTimes.of_table(again.batches, 1.0).table(MOST_BATCHES)
        assert [size for size, _ in once_more] == pytest.approx([size for size, _ in again.batches], rel=1e-9)
