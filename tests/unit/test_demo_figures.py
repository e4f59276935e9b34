"""The demo's figures, from series made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution
from bandkeeper.decide.policy import Band, LatencySLO, Policy
from tests.demo.figures import (
    Interval,
    Sample,
    Share,
    band_held,
    band_is_possible,
    best_cap,
    figures,
    first_cold_start_s,
    gpu_seconds,
    intervals,
    kept,
    percentile_s,
)
from tests.demo.scenario import MEMBERS

TTFT, ITL = Signal.TIME_TO_FIRST_TOKEN, Signal.INTER_TOKEN_LATENCY


def a_sample(at_s: float, **other: object) -> Sample:
    given = {
        "offered_per_s": 65.0,
        "in_hand": 65,
        "slots": 100,
        "ready": 1,
        "wanted": 1,
        "arrived": 0,
        "refused": 0,
        "pod_s": at_s,
        **other,
    }
    return Sample(at_s=at_s, **given)  # type: ignore[arg-type]


def an_interval(offered_per_s: float = 65, ready: float = 1, refused: float = 0, **latencies: Distribution) -> Interval:
    named = {Signal(name): value for name, value in latencies.items()}
    return Interval(start_s=0, end_s=5, offered_per_s=offered_per_s, ready=ready, refused=refused, latencies=named)


def a_distribution(*pairs: tuple[float, float]) -> Distribution:
    edges, counts = zip(*pairs, strict=True)
    return Distribution(window_s=5, edges=edges, counts=counts)


def a_policy() -> Policy:
    slos = tuple(
        LatencySLO(signal=signal, percentile=95, threshold_s=threshold_s, window_s=15)
        for signal, threshold_s in ((TTFT, 0.3), (ITL, 0.03))
    )
    return replace(MEMBERS[0].policy, slos=slos, band=Band(0.6, 0.7), min_replicas=1, max_replicas=4)


def test_intervals_hold_the_means_of_their_own_samples_and_are_whole() -> None:
    samples = [a_sample(float(second), offered_per_s=second, ready=100 + second) for second in range(13)]
    cut = intervals(samples, 5, {10.0: {TTFT: a_distribution((math.inf, 1.0))}})
    assert [(one.start_s, one.end_s, one.offered_per_s, one.ready) for one in cut] == [(0, 5, 2, 102), (5, 10, 7, 107)]
    assert [list(one.latencies) for one in cut] == [[], [TTFT]]


def test_an_interval_without_samples_is_left_out() -> None:
    cut = intervals([a_sample(1.0), a_sample(2.0), a_sample(11.0), a_sample(15.0)], 5, {})
    assert [one.start_s for one in cut] == [0, 10]
    assert intervals([], 5, {}) == []


def test_utilization_is_what_comes_over_what_the_ready_pods_sustain() -> None:
    assert an_interval(65, 1).utilization(100) == 0.65
    assert an_interval(65, 2.5).utilization(100) == 0.26
    assert an_interval(65, 0).utilization(100) is None


@pytest.mark.parametrize(
    ("ready", "expected"),
    [((2, 2, 3, 4), 2.0), ((2, 1, 2, 3), 3.0), ((2, 2, 2, 2), 0.0)],
    ids=["grows at once", "shrinks first", "never grows"],
)
def test_the_first_cold_start_ends_when_the_first_added_pod_is_ready(ready: tuple[int, ...], expected: float) -> None:
    samples = [a_sample(float(at_s), ready=count) for at_s, count in enumerate(ready)]
    assert first_cold_start_s(samples) == expected


@pytest.mark.parametrize(
    ("at_300ms", "expected"), [(95.0, True), (94.9, False), (100.0, True)], ids=["just", "just not", "all"]
)
def test_a_promise_is_kept_when_the_share_at_its_edge_reaches_the_percentile(at_300ms: float, expected: bool) -> None:
    ttft = a_distribution((0.2, 50.0), (0.3, at_300ms), (math.inf, 100.0))
    assert kept(an_interval(TimeToFirstToken=ttft), a_policy().slos) is expected


def test_every_promise_must_be_kept_and_no_answers_do_not_count() -> None:
    good = a_distribution((0.01, 100.0), (math.inf, 100.0))
    bad = a_distribution((0.03, 10.0), (math.inf, 100.0))
    silent = a_distribution((0.03, 0.0), (math.inf, 0.0))
    slos = a_policy().slos
    assert kept(an_interval(TimeToFirstToken=good, InterTokenLatency=bad), slos) is False
    assert kept(an_interval(TimeToFirstToken=good, InterTokenLatency=silent), slos) is True
    assert kept(an_interval(TimeToFirstToken=silent), slos) is None
    assert kept(an_interval(), slos) is None


@pytest.mark.parametrize(("refused", "expected"), [(0.0, True), (0.03, True), (0.04, False)])
def test_a_refused_request_is_one_that_no_promise_was_kept_for(refused: float, expected: bool) -> None:
    ttft = a_distribution((0.3, 98.0), (math.inf, 100.0))
    assert kept(an_interval(refused=refused, TimeToFirstToken=ttft), a_policy().slos) is expected


def test_an_interval_knows_its_share_of_refused_requests() -> None:
    samples = [a_sample(float(at_s), arrived=100 + 10 * at_s, refused=7 + at_s) for at_s in range(6)]
    assert intervals(samples, 5, {})[0].refused == pytest.approx(0.1)
    assert intervals([a_sample(0), a_sample(5)], 5, {})[0].refused == 0


def test_percentile_is_interpolated_and_none_without_data() -> None:
    ttft = a_distribution((0.1, 90.0), (0.2, 100.0), (math.inf, 100.0))
    assert percentile_s(an_interval(TimeToFirstToken=ttft), TTFT, 95) == pytest.approx(0.15)
    assert percentile_s(an_interval(), ITL, 95) is None


@pytest.mark.parametrize(
    ("offered_per_s", "expected"),
    [(60, True), (70, True), (75, False), (120, True), (30, False), (280, True), (300, False), (0, False)],
)
def test_a_band_is_possible_only_where_some_count_puts_the_load_inside(offered_per_s: float, expected: bool) -> None:
    assert band_is_possible(offered_per_s, a_policy(), 100) is expected


def test_band_held_counts_possible_intervals_only() -> None:
    policy = a_policy()
    assert band_held(an_interval(65, 1), policy, 100) is True
    assert band_held(an_interval(65, 2), policy, 100) is False
    assert band_held(an_interval(75, 1), policy, 100) is None
    assert band_held(an_interval(65, 0), policy, 100) is None


def test_the_best_cap_is_permitted_and_within_the_capacity() -> None:
    policy = a_policy()
    assert policy.batch is not None
    assert best_cap(replace(policy, batch=replace(policy.batch, candidates=(16, 64, 96))), 64) == 64
    assert best_cap(replace(policy, batch=None), 64) == 64
    assert best_cap(replace(policy, batch=replace(policy.batch, candidates=(16, 48))), 64) == 48


def test_gpu_seconds_are_what_the_pods_held_times_their_gpus() -> None:
    assert gpu_seconds([a_sample(0, pod_s=100.0), a_sample(60, pod_s=400.0)], 4) == 1200
    assert gpu_seconds([], 4) == 0


def test_a_share_does_not_count_what_is_not_known() -> None:
    share = Share.of([True, None, False, True, True])
    assert (share.good, share.counted, share.percent, str(share)) == (3, 4, 75, "75 % of 4")
    assert (Share.of([None]).percent, str(Share.of([]))) == (None, "no interval")


def test_figures_begin_the_promise_after_the_first_cold_start() -> None:
    bad, good = (a_distribution((0.3, share), (math.inf, 100.0)) for share in (10.0, 99.0))
    samples = [
        a_sample(float(at_s), ready=1 if at_s < 6 else 2, slots=100 if at_s < 6 else 200, wanted=1 if at_s < 3 else 2)
        for at_s in range(21)
    ]
    cut = intervals(samples, 5, {5.0: {TTFT: bad}, 10.0: {TTFT: bad}, 15.0: {TTFT: good}, 20.0: {TTFT: good}})
    found = figures(samples, cut, policy=a_policy(), sustainable_per_s=100, gpus_per_pod=1)
    assert found.inside_slo == Share(2, 2)
    assert found.in_band == Share(1, 4)
    assert (found.gpu_s, found.most_replicas, found.changes) == (20, 2, 1)
