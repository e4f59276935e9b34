"""Step times from what clients see: what is recovered, what stays as it was, and what does no harm."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import pytest

from bandkeeper.lab import server
from bandkeeper.model.steps import NO_STEPS, Matrix, StepFit

CAP = 64.0
LOOKS = 480  # every 15 s for two hours, each a quarter of a window of its own
WEIGHT = 0.25


@dataclass(frozen=True)
class Truth:
    """A server that takes alpha + beta b + delta q for a step, in seconds."""

    alpha: float
    beta: float
    delta: float

    def token_s(self, batch: float, prompt_tokens: float) -> float:
        return self.alpha + self.beta * batch + self.delta * prompt_tokens

    def work_s(self, prompts: float, batch: float) -> float:
        """Of one output token and the prompt tokens that come with it."""
        return self.alpha / batch + self.beta + self.delta * prompts


def wave(look: int) -> float:
    """Between .15 and .85 of the cap, in 20 minutes."""
    return 0.5 + 0.35 * math.sin(2 * math.pi * look / 80)


def flat(look: int) -> float:
    return 0.625


def looks(
    truth: Truth,
    prompts: float,
    shape: Callable[[int], float],
    *,
    seed: int,
    noise: float,
    count: int = LOOKS,
    wander: float = 0.2,
    slip: float = 0.02,
) -> Iterable[tuple[float, float, float]]:
    """Batch, prompt tokens per step and time between tokens as they are derived: rates times the time measured.

    The load itself is restless by 2 %; the share `slip` is by how much a rate is of another moment than the time, and
    `wander` by how much the prompt tokens that come with an output token differ.
    """
    chance, drift = random.Random(seed), 0.0
    for look in range(count):
        drift = 0.9 * drift + chance.gauss(0, 0.44 * wander)
        each = prompts * math.exp(drift)
        batch = CAP * shape(look) * math.exp(chance.gauss(0, 0.02))
        token_s = truth.token_s(batch, each * batch)
        rate = batch / token_s * math.exp(chance.gauss(0, slip))
        measured_s = token_s * math.exp(chance.gauss(0, noise))
        yield rate * measured_s, each * rate * measured_s, measured_s


def fitted(observed: Iterable[tuple[float, float, float]], start: StepFit = NO_STEPS) -> StepFit:
    fit = start
    for batch, prompt_tokens, token_s in observed:
        fit = fit.seen(batch, prompt_tokens, token_s, WEIGHT)
    return fit


def error(fit: StepFit, truth: Truth, prompts: float, batch: float) -> float:
    """Of the predicted work, as a share of the true."""
    return fit.work_s(prompts, 1.0, batch).value / truth.work_s(prompts, batch) - 1


def servers(count: int) -> list[tuple[Truth, float]]:
    """Random servers, and how many prompt tokens they read for each that they make."""
    chance = random.Random(7)
    return [
        (
            Truth(
                math.exp(chance.uniform(math.log(0.005), math.log(0.09))),
                math.exp(chance.uniform(math.log(3e-5), math.log(5e-4))),
                math.exp(chance.uniform(math.log(1e-5), math.log(2e-4))),
            ),
            chance.choice([0.33, 1.0, 4.0, 10.0]),
        )
        for _ in range(count)
    ]


def percentile(values: Iterable[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


@pytest.mark.parametrize(("noise", "p50", "p90", "worst"), [(0.02, 0.005, 0.01, 0.03), (0.05, 0.01, 0.02, 0.06)])
def test_a_wave_tells_what_work_costs_at_every_batch(noise: float, p50: float, p90: float, worst: float) -> None:
    errors = []
    for seed, (truth, prompts) in enumerate(servers(40)):
        fit = fitted(looks(truth, prompts, wave, seed=seed, noise=noise))
        errors += [abs(error(fit, truth, prompts, batch)) for batch in (8, 24, 40, 64)]
    assert median(errors) <= p50
    assert percentile(errors, 90) <= p90
    assert max(errors) <= worst


def test_each_parameter_is_found_where_each_counts() -> None:
    """Prompts come in proportion to output but for their wandering: only that tells beta from delta."""
    chance, truth, fit = random.Random(1), Truth(0.02058, 0.00041, 0.0001), NO_STEPS
    for _ in range(LOOKS):
        batch, each = CAP * chance.uniform(0.1, 0.9), chance.uniform(1.0, 9.0)
        token_s = truth.token_s(batch, each * batch) * math.exp(chance.gauss(0, 0.03))
        fit = fit.seen(batch, each * batch, token_s, WEIGHT)
    assert fit.parameters == pytest.approx((truth.alpha, truth.beta, truth.delta), rel=0.12)


@pytest.mark.parametrize("preset", [name for name in server.presets() if "resnet" not in name])
@pytest.mark.parametrize("prompts", [0.33, 5.0])
def test_the_presets_are_learned(preset: str, prompts: float) -> None:
    """Servers as they were measured, some with a beta of nearly 0, which is at the edge of what the fit allows."""
    known = server.load(preset)
    assert isinstance(known, server.ContinuousServer)
    truth = Truth(known.alpha_ms / 1e3, known.beta_ms / 1e3, known.delta_ms_per_token / 1e3)
    fit = fitted(looks(truth, prompts, wave, seed=3, noise=0.03))
    for batch in (8, 40, 64):
        assert abs(error(fit, truth, prompts, batch)) <= 0.02


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_ten_flat_hours_do_not_move_what_is_not_seen(noise: float) -> None:
    """Noise of what is measured is no slope: where the load does not move, the prior is kept or bettered elsewhere."""
    drifts, prior_errors, errors, here = [], [], [], []
    for seed, (truth, prompts) in enumerate(servers(16)):
        observed = list(looks(truth, prompts, flat, seed=seed, noise=noise, count=2400, wander=0.0, slip=0.0))
        prior, fit = fitted(observed[:1]), fitted(observed)
        here.append(abs(error(fit, truth, prompts, CAP * flat(0))))
        for batch in (8, 64):
            before, after = error(prior, truth, prompts, batch), error(fit, truth, prompts, batch)
            drifts.append(abs(after) - abs(before))
            prior_errors.append(abs(before))
            errors.append(abs(after))
    assert max(here) <= 0.015
    assert max(drifts) <= 0.05
    assert median(errors) <= median(prior_errors)
    assert percentile(errors, 90) <= percentile(prior_errors, 90)


def test_a_parameter_at_its_bound_leaves_the_prediction_where_it_belongs() -> None:
    """A server whose steps take the same at every batch: what beta and delta may not have, alpha makes up for."""
    chance, fit, errors = random.Random(0), NO_STEPS, []
    for look in range(2400):
        batch = 40 * math.exp(chance.gauss(0, 0.0125))
        token_s = 0.0574 * math.exp(chance.gauss(0, 0.05))
        fit = fit.seen(batch, batch, token_s, WEIGHT)
        if look > 240:
            errors.append(abs(40 * fit.work_s(1.0, 1.0, 40).value / 0.0574 - 1))
    assert min(fit.parameters) >= 0
    assert max(errors) <= 0.05


class TestConfidence:
    def test_the_error_falls_where_it_was_seen_and_stays_elsewhere(self) -> None:
        truth, prompts = Truth(0.02058, 0.00041, 0.0001), 5.0
        observed = list(looks(truth, prompts, flat, seed=0, noise=0.03))
        early, late = fitted(observed[:4]), fitted(observed)

        def share(fit: StepFit, batch: float) -> float:
            estimate = fit.work_s(prompts, 1.0, batch)
            return estimate.error / estimate.value

        assert share(late, 40) < 0.5 * share(early, 40)
        assert share(late, 40) < 0.02
        assert share(late, 4) > 5 * share(late, 40)

    def test_what_is_excited_becomes_certain_everywhere(self) -> None:
        fit = fitted(looks(Truth(0.02058, 0.00041, 0.0001), 5.0, wave, seed=0, noise=0.03))
        for batch in (8, 40, 64):
            estimate = fit.work_s(5.0, 1.0, batch)
            assert estimate.error <= 0.05 * estimate.value

    def test_the_stated_error_is_an_honest_one(self) -> None:
        """Nine in ten predictions lie within two of their standard errors."""
        within = []
        for seed, (truth, prompts) in enumerate(servers(40)):
            fit = fitted(looks(truth, prompts, wave, seed=seed, noise=0.05))
            for batch in (8, 24, 40, 64):
                estimate = fit.work_s(prompts, 1.0, batch)
                within.append(abs(estimate.value - truth.work_s(prompts, batch)) / estimate.error)
        assert percentile(within, 90) <= 2


class TestOutliers:
    @pytest.mark.parametrize("factor", [20.0, 1 / 20])
    def test_one_does_no_lasting_harm(self, factor: float) -> None:
        truth, prompts = Truth(0.02058, 0.00041, 0.0001), 2.0
        for seed in range(8):
            observed = list(looks(truth, prompts, wave, seed=seed, noise=0.02))
            batch, prompt_tokens, token_s = observed[240]
            before = fitted(observed[:240])
            hit = before.seen(batch * factor, prompt_tokens * factor, token_s * factor, 1.0)
            after = fitted(observed[240:], hit)
            for at in (16, 40, 64):
                assert abs(error(hit, truth, prompts, at)) <= 0.03
                assert abs(error(after, truth, prompts, at)) <= 0.01

    def test_the_first_of_all_is_unlearned(self) -> None:
        truth = Truth(0.02058, 0.00041, 0.0001)
        observed = list(looks(truth, 2.0, wave, seed=0, noise=0.02, count=1920))
        batch, prompt_tokens, token_s = observed[0]
        fit = fitted(observed[1:], NO_STEPS.seen(2 * batch, 2 * prompt_tokens, 2 * token_s, WEIGHT))
        assert abs(error(fit, truth, 2.0, 40)) <= 0.02

    def test_one_that_is_much_too_short_does_not_freeze_the_fit(self) -> None:
        """It is no more certain than others: a server that becomes slower is still learned in as many looks."""
        truth, slower = Truth(0.02, 0.0004, 0.0001), Truth(0.026, 0.00052, 0.00013)
        observed = list(looks(truth, 2.0, wave, seed=0, noise=0.02))
        before = fitted(observed)
        hit = before.seen(observed[-1][0] / 20, observed[-1][1] / 20, observed[-1][2] / 20, 1.0)
        changed = list(looks(slower, 2.0, wave, seed=1, noise=0.02, count=160))
        assert error(fitted(changed, hit), slower, 2.0, 40) == pytest.approx(
            error(fitted(changed, before), slower, 2.0, 40), abs=0.03
        )

    def test_a_server_that_became_slower_is_learned(self) -> None:
        """A third slower for good: within 10 % after an hour and a half."""
        truth, slower = Truth(0.02, 0.0004, 0.0001), Truth(0.026, 0.00052, 0.00013)
        fit = fitted(looks(truth, 2.0, wave, seed=0, noise=0.02))
        fit = fitted(looks(slower, 2.0, wave, seed=1, noise=0.02, count=360), fit)
        assert max(abs(error(fit, slower, 2.0, batch)) for batch in (16, 40, 64)) <= 0.1


def test_four_quarters_are_one_observation() -> None:
    """A window that is looked at four times tells no more than one that is looked at once."""
    for truth, prompts in servers(10):
        whole = quarters = NO_STEPS
        for look in range(0, LOOKS, 4):
            batch = CAP * wave(look)
            seen = batch, prompts * batch, truth.token_s(batch, prompts * batch)
            whole = whole.seen(*seen, 1.0)
            for _ in range(4):
                quarters = quarters.seen(*seen, 0.25)
        assert quarters.observations == pytest.approx(whole.observations)
        for batch in (16, 40, 64):
            one, other = whole.work_s(prompts, 1.0, batch), quarters.work_s(prompts, 1.0, batch)
            assert other.value == pytest.approx(one.value, rel=0.02)
            assert other.error == pytest.approx(one.error, rel=0.15)


def test_the_prior_is_a_step_that_grows_with_the_batch() -> None:
    """At once after the first look: what was measured there, less per token in a larger batch."""
    fit = NO_STEPS.seen(32.0, 0.0, 0.04, 1.0)
    assert 32 * fit.work_s(0.0, 1.0, 32).value == pytest.approx(0.04)
    assert fit.work_s(0.0, 1.0, 64).value < fit.work_s(0.0, 1.0, 32).value
    assert fit.work_s(1.0, 1.0, 32).value > fit.work_s(0.0, 1.0, 32).value


def test_the_curve_is_that_of_the_step() -> None:
    fit = StepFit((0.02, 0.0005, 0.0001), ((1e6, 0.0, 0.0), (0.0, 1e9, 0.0), (0.0, 0.0, 1e10)), 1.0)
    assert fit.curve(64, 0.0).steepness == pytest.approx(1.6)
    assert fit.curve(64, 5.0).steepness == pytest.approx(3.2)
    assert fit.curve(32, 5.0).steepness == pytest.approx(1.6)


def test_the_curve_of_a_step_without_a_fixed_part_is_straight() -> None:
    fit = StepFit((0.0, 0.0005, 0.0001), ((1e6, 0.0, 0.0), (0.0, 1e9, 0.0), (0.0, 0.0, 1e10)), 1.0)
    curve = fit.curve(64, 1.0)
    assert math.isfinite(curve.steepness)
    assert curve.load(0.1) == pytest.approx(1.0, abs=1e-3)  # one request does as much as many


def is_positive_definite(matrix: Matrix) -> bool:
    """By its leading minors, after scaling the diagonal to 1."""
    (a, b, c), (_, d, e), (_, _, f) = matrix
    if min(a, d, f) <= 0:
        return False
    x, y, z = b / math.sqrt(a * d), c / math.sqrt(a * f), e / math.sqrt(d * f)
    return 1 - x * x > 0 and 1 + 2 * x * y * z - x * x - y * y - z * z > 0


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.02])
@pytest.mark.parametrize("kind", ["one point", "anything", "tiny", "huge", "orders of magnitude", "no prompts"])
def test_ten_thousand_looks_leave_it_sound(kind: str, weight: float) -> None:
    chance, fit = random.Random(5), NO_STEPS
    draw: dict[str, Callable[[], tuple[float, float, float]]] = {
        "one point": lambda: (40.0, 160.0, 0.03),
        "anything": lambda: (chance.uniform(0.2, 64), chance.uniform(0, 3000), chance.uniform(0.005, 0.5)),
        "tiny": lambda: (0.2, 0.001, 0.01 * math.exp(chance.gauss(0, 0.1))),
        "huge": lambda: (1000.0, 1e6, 60.0),
        "orders of magnitude": lambda: (
            math.exp(chance.uniform(-1.6, 7)),
            math.exp(chance.uniform(-5, 14)),
            math.exp(chance.uniform(-8, 4)),
        ),
        "no prompts": lambda: (chance.uniform(0.2, 64), 0.0, 0.03),
    }
    for look in range(10_000):
        fit = fit.seen(*draw[kind](), weight)
        if look % 100 == 0 or look < 100:
            assert is_positive_definite(fit.information)
            assert all(0 <= value < math.inf for value in fit.parameters)
            estimate = fit.work_s(4.0, 1.0, 32.0)
            assert 0 <= estimate.value < math.inf
            assert 0 < estimate.error < math.inf


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_another_server_of_the_same_shape_is_known_at_its_first_look(factor: float) -> None:
    """A small batch excites neither slope: without a new scale the old slopes would stay for good."""
    fit = NO_STEPS
    for look in range(200):
        batch = 5.0 + look % 40
        fit = fit.seen(batch, 1.5 * batch, 0.02 + 0.0004 * batch + 0.0001 * 1.5 * batch, 0.25)
    guess = fit.loosened().seen(2.0, 3.0, factor * (0.02 + 0.0008 + 0.0003), 0.25)
    assert guess.work_s(1.5, 1.0, 64).value == pytest.approx(factor * fit.work_s(1.5, 1.0, 64).value, rel=0.1)
    assert guess.work_s(1.5, 1.0, 64).error > factor * fit.work_s(1.5, 1.0, 64).error
