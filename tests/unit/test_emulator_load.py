"""Load profiles, token lengths and closed-loop clients of the emulator."""

from __future__ import annotations

import math
from random import Random
from statistics import mean, median

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.emulator.load import Arrivals, ClosedLoad, Length, Load, Tokens

LOAD: TypeAdapter[Load] = TypeAdapter(Load)
LENGTH: TypeAdapter[Length] = TypeAdapter(Length)


def arrivals(load: dict[str, object], until_s: float, start_s: float = 0.0) -> list[tuple[float, int, int]]:
    stream = Arrivals(LOAD.validate_python(load), Tokens(), start_s)
    seen = []
    while stream.next_s < until_s:
        request = stream.pop()
        if request is not None:
            seen.append((request.arrival_s, request.prompt, request.output))
    return seen


def rate_between(times: list[float], low: float, high: float) -> float:
    return sum(low <= time < high for time in times) / (high - low)


@pytest.mark.parametrize(
    ("load", "at_s", "rate"),
    [
        ({"kind": "constant", "rate_per_s": 5}, 7.0, 5.0),
        ({"kind": "linear", "points": [[0, 0], [10, 20], [20, 10]]}, 5.0, 10.0),
        ({"kind": "linear", "points": [[0, 0], [10, 20], [20, 10]]}, 15.0, 15.0),
        ({"kind": "linear", "points": [[0, 0], [10, 20], [20, 10]]}, 99.0, 10.0),
        ({"kind": "linear", "points": [[0, 0], [10, 20], [20, 0]], "repeat": True}, 45.0, 10.0),
        ({"kind": "steps", "points": [[0, 1], [60, 9]]}, 59.9, 1.0),
        ({"kind": "steps", "points": [[0, 1], [60, 9]]}, 60.0, 9.0),
        ({"kind": "sine", "mean_per_s": 10, "amplitude_per_s": 4, "period_s": 40}, 10.0, 14.0),
        ({"kind": "sine", "mean_per_s": 2, "amplitude_per_s": 4, "period_s": 40}, 30.0, 0.0),
    ],
)
def test_rate_of_a_profile(load: dict[str, object], at_s: float, rate: float) -> None:
    parsed = LOAD.validate_python(load)
    assert not isinstance(parsed, ClosedLoad)
    assert parsed.rate(at_s) == pytest.approx(rate)
    assert parsed.rate(at_s) <= parsed.peak


def test_arrivals_follow_the_profile() -> None:
    times = [one[0] for one in arrivals({"kind": "linear", "points": [[0, 0], [500, 20], [1000, 0]], "seed": 3}, 1000)]
    assert len(times) == pytest.approx(10_000, rel=0.03)
    assert rate_between(times, 450, 550) == pytest.approx(19, rel=0.06)
    assert rate_between(times, 0, 100) == pytest.approx(2, rel=0.2)


def test_arrivals_are_poisson() -> None:
    times = [one[0] for one in arrivals({"kind": "constant", "rate_per_s": 10}, 2000)]
    counts = [sum(1 for time in times if second <= time < second + 10) for second in range(0, 2000, 10)]
    variance = mean((count - mean(counts)) ** 2 for count in counts)
    assert variance / mean(counts) == pytest.approx(1.0, abs=0.3)


def test_same_seed_gives_the_same_requests_and_another_seed_others() -> None:
    sine = {"kind": "sine", "mean_per_s": 5, "amplitude_per_s": 3, "period_s": 60}
    first, again, other = (arrivals({**sine, "seed": seed}, 100) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_lengths_of_the_nth_request_do_not_depend_on_the_profile() -> None:
    slow = arrivals({"kind": "constant", "rate_per_s": 1}, 100)
    fast = arrivals({"kind": "linear", "points": [[0, 0], [50, 20]]}, 100)
    assert [one[1:] for one in slow] == [one[1:] for one in fast[: len(slow)]]


def test_clock_of_a_profile_begins_at_its_start() -> None:
    load = {"kind": "steps", "points": [[0, 0], [10, 5]], "seed": 4}
    shifted = arrivals(load, 130, start_s=100.0)
    assert min(time for time, _, _ in shifted) > 110
    assert [round(time - 100, 6) for time, _, _ in shifted] == [round(time, 6) for time, _, _ in arrivals(load, 30)]


def test_load_that_ends_at_zero_or_is_zero_stops() -> None:
    assert arrivals({"kind": "constant", "rate_per_s": 0}, math.inf) == []
    assert all(time < 10 for time, _, _ in arrivals({"kind": "steps", "points": [[0, 5], [10, 0]]}, 1000))


@pytest.mark.parametrize(
    "load",
    [
        {"kind": "linear", "points": [[1, 2], [3, 4]]},
        {"kind": "linear", "points": [[0, 2], [3, 4], [3, 5]]},
        {"kind": "steps", "points": [[0, -2]]},
        {"kind": "linear", "points": [[0, 2]], "repeat": True},
        {"kind": "constant", "rate": 3},
        {"kind": "square", "rate_per_s": 3},
    ],
)
def test_wrong_profile_is_refused(load: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LOAD.validate_python(load)


def test_lengths() -> None:
    rng = Random(1)
    fixed = LENGTH.validate_python({"kind": "fixed", "value": 7})
    uniform = LENGTH.validate_python({"kind": "uniform", "low": 10, "high": 30})
    lognormal = LENGTH.validate_python({"kind": "lognormal", "median": 200, "sigma": 0.8, "min": 20, "max": 900})
    assert {fixed.draw(rng) for _ in range(10)} == {7}
    drawn = [uniform.draw(rng) for _ in range(5000)]
    assert (min(drawn), max(drawn)) == (10, 30)
    drawn = [lognormal.draw(rng) for _ in range(5000)]
    assert min(drawn) >= 20
    assert max(drawn) == 900
    assert median(drawn) == pytest.approx(200, rel=0.05)


@pytest.mark.parametrize(
    "length",
    [
        {"kind": "uniform", "low": 5, "high": 4},
        {"kind": "lognormal", "median": 5, "sigma": 1, "min": 9, "max": 4},
        {"kind": "fixed", "value": 0},
    ],
)
def test_wrong_length_is_refused(length: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LENGTH.validate_python(length)


def test_closed_loop_client_asks_again_after_its_answer_and_a_pause() -> None:
    stream = Arrivals(ClosedLoad(kind="closed", clients=2, think_s=3.0), Tokens(), 10.0)
    first, second = stream.pop(), stream.pop()
    assert first is not None
    assert second is not None
    assert (first.arrival_s, second.arrival_s, stream.next_s) == (10.0, 10.0, math.inf)
    assert first.done is not None
    first.done(12.0)
    assert 12.0 < stream.next_s < math.inf
