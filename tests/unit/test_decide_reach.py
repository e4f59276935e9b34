"""What a promise that nothing can keep could be at best."""

from __future__ import annotations

from typing import Any

import pytest

from bandkeeper.api.reasons import SLOState
from bandkeeper.api.signals import Signal
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.engine import decide
from bandkeeper.decide.load import Load
from bandkeeper.decide.reach import best_s
from bandkeeper.decide.state import State
from bandkeeper.model.steps import NO_STEPS, StepFit
from tests.unit.builders import ITL, a_distribution, a_policy, a_snapshot

ALPHA_S, BETA_S, DELTA_S = 0.06, 0.0004, 0.0001
PROMPT, OUTPUT = 500.0, 200.0


def known(error: float = 0.05) -> StepFit:
    rows = [1 / (error * one) ** 2 for one in (ALPHA_S, BETA_S, DELTA_S)]
    return StepFit((ALPHA_S, BETA_S, DELTA_S), ((rows[0], 0, 0), (0, rows[1], 0), (0, 0, rows[2])), 10.0)


def a_load(**changes: Any) -> Load:
    rates: dict[str, float | None] = {"finished_per_s": 2.0, "prompt_per_s": 2 * PROMPT, "output_per_s": 2 * OUTPUT}
    return Load(ready=1, running=10.0, waiting=0.0, complete=True, **{**rates, **changes})


def test_a_token_takes_a_step_at_batch_1() -> None:
    assert best_s(a_load(), known(), Signal.INTER_TOKEN_LATENCY, 95) == pytest.approx(ALPHA_S + BETA_S, rel=1e-2)


def test_a_first_token_takes_the_reading_of_a_long_prompt() -> None:
    best = best_s(a_load(), known(), Signal.TIME_TO_FIRST_TOKEN, 95)
    assert best is not None
    assert best > ALPHA_S + 1.5 * DELTA_S * PROMPT


@pytest.mark.parametrize("missing", ["finished_per_s", "prompt_per_s", "output_per_s"])
def test_what_is_not_told_is_not_guessed(missing: str) -> None:
    assert best_s(a_load(**{missing: None}), known(), Signal.INTER_TOKEN_LATENCY, 95) is None


@pytest.mark.parametrize("steps", [NO_STEPS, known(2.0)], ids=["nothing learned", "not sure"])
def test_a_model_that_does_not_know_is_silent(steps: StepFit) -> None:
    assert best_s(a_load(), steps, Signal.INTER_TOKEN_LATENCY, 95) is None


def test_a_rate_has_no_best() -> None:
    assert best_s(a_load(), known(), Signal.GENERATION_TOKENS, None) is None


def decided(itl_s: float, limit_s: float) -> Decision:
    """After an hour of one request at a time on each of four replicas, at so many seconds a token."""
    policy, state, decision = a_policy(slos=[ITL]), State.initial(0.0), None
    edges = {limit_s: 0.0, 1.1 * itl_s: 5000.0}
    tokens = 4 / itl_s
    for look in range(240):
        snapshot = a_snapshot(
            ready=4,
            running=4.0,
            requests_finished=tokens / OUTPUT,
            generation_tokens=tokens,
            prompt_tokens=tokens * PROMPT / OUTPUT,
            distributions={Signal.INTER_TOKEN_LATENCY: a_distribution(edges, mean_s=itl_s)},
        )
        decision, state = decide(policy, snapshot, state, 15.0 * look)
    assert decision is not None
    return decision


def test_the_sentence_gives_the_best_figure() -> None:
    verdict = decided(0.07, ITL.threshold_s).slos[0]
    assert verdict.state is SLOState.UNREACHABLE
    assert "nor a smaller batch helps: " in verdict.message
    told_ms = float(verdict.message.split("helps: ")[1].split("ms is predicted at best")[0])
    assert told_ms == pytest.approx(70, rel=0.3)
