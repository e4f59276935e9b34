"""Rate scaling keeps a load's bursts: neither smoothed away nor made faster."""

from __future__ import annotations

import numpy as np
import pytest

from bandkeeper.lab.requests import Requests, Seconds
from bandkeeper.lab.server import load
from bandkeeper.lab.workloads import LoadError, scale
from bandkeeper.lab.workloads.synthetic import make

DAY_OF_BURSTS = make(
    "mmpp:low=0.2,high=2,calm_s=120,burst_s=120,duration_s=86400", load("reference"), seed=3, max_replicas=20
)


def minutes(arrival_s: Seconds, duration_s: float) -> Seconds:
    return np.histogram(arrival_s, np.arange(0.0, duration_s + 1, 60.0))[0].astype(np.float64)


def dispersion(counts: Seconds) -> float:
    """Index of dispersion: 1 for Poisson arrivals, more for bursts."""
    return float(counts.var() / counts.mean())


def tiny(*arrival_s: float, duration_s: float = 100.0) -> Requests:
    tokens = np.arange(1, len(arrival_s) + 1, dtype=np.int32)
    return Requests(
        arrival_s=np.array(arrival_s), prompt_tokens=tokens, output_tokens=tokens, duration_s=duration_s, name="tiny"
    )


@pytest.mark.parametrize("factor", [2.0, 4.0, 3.5])
def test_bursts_are_those_of_more_clients_not_of_faster_time(factor: float) -> None:
    duration_s = DAY_OF_BURSTS.duration_s
    before = minutes(DAY_OF_BURSTS.arrival_s, duration_s)
    after = minutes(scale.rescale(DAY_OF_BURSTS, factor, seed=1).arrival_s, duration_s)
    squeezed = minutes(DAY_OF_BURSTS.arrival_s / factor, duration_s / factor)
    # `factor` as many independent clients under the same bursts: the rate's variance grows with the square.
    superposed = 1 + factor * (dispersion(before) - 1)
    assert after.mean() == pytest.approx(factor * before.mean(), rel=0.01)
    assert dispersion(after) == pytest.approx(superposed, rel=0.2)
    assert abs(dispersion(squeezed) - superposed) > 2 * abs(dispersion(after) - superposed)
    assert np.corrcoef(before, after)[0, 1] > 0.95


def test_thinning_keeps_the_bursts_too() -> None:
    duration_s = DAY_OF_BURSTS.duration_s
    before = minutes(DAY_OF_BURSTS.arrival_s, duration_s)
    after = minutes(scale.rescale(DAY_OF_BURSTS, 0.25, seed=1).arrival_s, duration_s)
    assert after.mean() == pytest.approx(0.25 * before.mean(), rel=0.03)
    assert dispersion(after) == pytest.approx(1 + 0.25 * (dispersion(before) - 1), rel=0.15)


def test_copies_keep_their_lengths_and_stay_near() -> None:
    scaled = scale.rescale(tiny(10.0, 500.0, 990.0, duration_s=1000.0), 3, seed=7)
    assert len(scaled) == 9
    assert scaled.duration_s == 1000.0
    for token, at_s in ((1, 10.0), (2, 500.0), (3, 990.0)):
        times = scaled.arrival_s[scaled.prompt_tokens == token]
        assert len(times) == 3
        assert at_s in times
        assert (np.abs(times - at_s) <= scale.SHIFT_S).all()
    assert (scaled.prompt_tokens == scaled.output_tokens).all()
    assert scaled.arrival_s[0] >= 0
    assert scaled.arrival_s[-1] <= 1000.0


def test_the_ends_are_neither_piled_up_nor_emptied() -> None:
    even = tiny(*np.arange(0.5, 3600.0, 0.5), duration_s=3600.0)
    counts = minutes(scale.rescale(even, 10, seed=1).arrival_s, 3600.0)
    assert counts[[0, -1]] == pytest.approx([1200, 1200], rel=0.08)


def test_a_shift_longer_than_the_load_stays_inside() -> None:
    scaled = scale.rescale(tiny(0.0, 1.0, 2.0, duration_s=3.0), 50, seed=1)
    assert len(scaled) == 150
    assert scaled.arrival_s.min() >= 0
    assert scaled.arrival_s.max() <= 3.0


def test_the_notes_say_how_it_was_done() -> None:
    scaled = scale.rescale(tiny(1.0, 2.0), 4, seed=1)
    assert scaled.name == "tiny x4"
    assert "shifted by up to 45 s either way; from 2 requests to 8" in scaled.notes[-1]
    assert "random sample of whole requests" in scale.rescale(DAY_OF_BURSTS, 0.5, seed=1).notes[-1]


def test_the_same_seed_gives_the_same_requests_and_one_changes_nothing() -> None:
    one, same, other = (scale.rescale(DAY_OF_BURSTS, 1.5, seed) for seed in (1, 1, 2))
    assert one.arrival_s.tobytes() == same.arrival_s.tobytes()
    assert one.arrival_s.tobytes() != other.arrival_s.tobytes()
    assert scale.rescale(DAY_OF_BURSTS, 1, seed=1) is DAY_OF_BURSTS


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (0, "rate scale 0 is not possible"),
        (-1, "give a number above 0"),
        (float("nan"), "rate scale nan"),
        (float("inf"), "rate scale inf"),
        (1e-9, "leaves none of 2 requests"),
        (1e9, "more than 10,000,000 requests; give at most 5e"),
    ],
)
def test_a_factor_that_cannot_be_is_refused(factor: float, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        scale.rescale(tiny(1.0, 2.0), factor, seed=1)


def test_fit_cuts_and_repeats() -> None:
    one = tiny(10.0, 20.0, 90.0)
    cut = scale.fit(one, 50.0)
    assert (cut.arrival_s.tolist(), cut.duration_s) == ([10.0, 20.0], 50.0)
    again = scale.fit(one, 215.0)
    assert again.arrival_s.tolist() == [10.0, 20.0, 90.0, 110.0, 120.0, 190.0, 210.0]
    assert again.prompt_tokens.tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert again.notes == ("repeated 2.15 times from 100 s to 215 s",)
    assert scale.fit(one, 100.0) is one


@pytest.mark.parametrize(
    ("duration_s", "said"), [(0.0, "give a number above 0"), (5.0, "no request comes"), (1e12, "less time")]
)
def test_fit_refuses_what_cannot_be(duration_s: float, said: str) -> None:
    with pytest.raises(LoadError, match=said):
        scale.fit(tiny(10.0, 20.0), duration_s)
