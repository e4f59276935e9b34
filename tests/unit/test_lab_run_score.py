"""Attainment and cost, from hand-made outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.decide.decision import Held
from bandkeeper.decide.policy import LatencySLO, ThroughputSLO
from bandkeeper.lab import score
from bandkeeper.lab.fleet import Ledger, Outcome, Status
from bandkeeper.lab.held import HeldFor
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.result import Move
from bandkeeper.lab.server import ContinuousServer
from tests.unit.builders import E2E, ITL, TTFT, a_policy

NAN = math.nan
SERVER = ContinuousServer(
    model="m",
    gpu="g",
    source="t",
    gpus=2,
    batch_max=64,
    alpha_ms=20,
    beta_ms=0.4,
    delta_ms_per_token=0.1,
    kv_tokens=10_000,
)
NO_PODS = Ledger(names=(), ordered_s=np.zeros(0), scheduled_s=np.zeros(0), ready_s=np.zeros(0), ended_s=np.zeros(0))
SLOS = (replace(TTFT, threshold_s=1.0), replace(ITL, threshold_s=0.1), replace(E2E, threshold_s=10.0))

# arrival, first token, end, status, output, tokens after the first, of them late
Row = tuple[float, float, float, Status, int, int, int]
KEPT: Row = (100.0, 100.5, 105.0, Status.FINISHED, 101, 100, 5)


def a_judge(rows: Sequence[Row], slos: Sequence[LatencySLO] = SLOS, *, end_s: float = 1000.0) -> score.Judge:
    arrival, first, end, status, output, tokens, late = (np.array(column) for column in zip(*rows, strict=True))
    requests = Requests(
        arrival_s=arrival.astype(np.float64),
        prompt_tokens=np.full(len(rows), 10, dtype=np.int32),
        output_tokens=output.astype(np.int32),
        duration_s=end_s,
        name="t",
    )
    outcome = Outcome(
        status=status.astype(np.int8),
        first_token_s=first.astype(np.float64),
        end_s=end.astype(np.float64),
        tokens=tokens.astype(np.int32),
        late_tokens=late.astype(np.int32)[:, None],
        ledger=NO_PODS,
    )
    return score.Judge(a_policy(slos=slos), SERVER, requests, outcome, warmup_s=50.0, end_s=end_s)


@pytest.mark.parametrize(
    ("row", "ttft", "itl", "e2e"),
    [
        (KEPT, 1.0, 1.0, 1.0),
        ((100.0, 101.5, 105.0, Status.FINISHED, 101, 100, 0), 0.0, 1.0, 1.0),  # a late first token
        ((100.0, 100.5, 111.0, Status.FINISHED, 101, 100, 0), 1.0, 1.0, 0.0),  # a late end
        ((100.0, 100.5, 105.0, Status.FINISHED, 101, 100, 6), 1.0, 0.0, 1.0),  # more than 5 % of its tokens late
        ((100.0, 100.5, 101.0, Status.FINISHED, 1, 0, 0), 1.0, 1.0, 1.0),  # a single token has no latency between
        ((100.0, NAN, 100.0, Status.REJECTED, 101, 0, 0), 0.0, 0.0, 0.0),
        ((100.0, 100.5, 103.0, Status.FAILED, 101, 40, 0), 0.0, 0.0, 0.0),  # failed ones are misses, however they began
        ((100.0, NAN, NAN, Status.UNSERVED, 101, 0, 0), 0.0, 0.0, 0.0),  # never begun, and its time was up
        ((999.5, NAN, NAN, Status.UNSERVED, 101, 0, 0), None, None, None),  # its time was not up
        ((999.0, 999.5, NAN, Status.UNSERVED, 101, 4, 0), 1.0, None, None),  # under way
        ((980.0, 980.5, NAN, Status.UNSERVED, 101, 90, 6), 1.0, 0.0, 0.0),  # under way, and lost already
        ((40.0, NAN, NAN, Status.UNSERVED, 101, 0, 0), None, None, None),  # asked in the warm-up
    ],
)
def test_a_request_keeps_each_promise_or_breaks_it(
    row: Row, ttft: float | None, itl: float | None, e2e: float | None
) -> None:
    judge = a_judge([row])
    assert [judge.requests(slo).share for slo in SLOS] == [ttft, itl, e2e]


def test_all_promises_together() -> None:
    late: Row = (110.0, 112.0, 115.0, Status.FINISHED, 101, 100, 0)
    slow: Row = (120.0, 120.5, 125.0, Status.FINISHED, 101, 100, 50)
    going: Row = (995.0, 995.5, NAN, Status.UNSERVED, 101, 40, 0)
    assert a_judge([KEPT, late, slow, going]).both(SLOS) == pytest.approx(1 / 3)
    assert a_judge([KEPT, late, slow, going]).both(SLOS[:1]) == pytest.approx(3 / 4)
    assert a_judge([KEPT]).both([]) is None
    assert a_judge([going]).both(SLOS) is None


def test_tokens_that_were_owed_are_misses() -> None:
    rejected: Row = (110.0, NAN, 110.0, Status.REJECTED, 101, 0, 0)
    aborted: Row = (120.0, 120.5, 122.0, Status.FAILED, 101, 30, 10)
    waiting: Row = (130.0, NAN, NAN, Status.UNSERVED, 51, 0, 0)
    just_come: Row = (999.5, NAN, NAN, Status.UNSERVED, 101, 0, 0)
    going: Row = (990.0, 990.5, NAN, Status.UNSERVED, 101, 20, 0)
    assert a_judge([KEPT]).tokens_kept(SLOS[1]) == pytest.approx(0.95)
    kept = 95 + 20 + 20
    owed = 100 + 70 + 50
    found = a_judge([KEPT, rejected, aborted, waiting, going, just_come]).tokens_kept(SLOS[1])
    assert found == pytest.approx(kept / (100 + 30 + 20 + owed))
    assert a_judge([just_come]).tokens_kept(SLOS[1]) is None


def test_a_percentile_counts_what_was_never_served() -> None:
    rows: list[Row] = [(100.0 + n, 100.1 + 1.01 * n, 200.0, Status.FINISHED, 2, 1, 0) for n in range(20)]
    assert a_judge(rows).percentile(SLOS[0]) == pytest.approx(0.1 + 0.01 * 18)
    lost: Row = (150.0, NAN, 150.0, Status.REJECTED, 2, 0, 0)
    assert a_judge([*rows, lost]).percentile(SLOS[0]) == pytest.approx(0.1 + 0.01 * 19)
    assert a_judge([*rows, lost, lost]).percentile(SLOS[0]) is None
    assert a_judge([(999.9, NAN, NAN, Status.UNSERVED, 2, 0, 0)]).percentile(SLOS[0]) is None


def test_counts_are_of_requests_that_arrived_after_the_warm_up() -> None:
    rows: list[Row] = [
        (10.0, 10.5, 60.0, Status.FINISHED, 101, 100, 0),
        KEPT,
        (110.0, NAN, 110.0, Status.REJECTED, 101, 0, 0),
        (120.0, 120.5, 122.0, Status.FAILED, 101, 30, 10),
        (130.0, NAN, NAN, Status.UNSERVED, 101, 0, 0),
    ]
    counts = a_judge(rows).counts()
    assert (counts.arrived, counts.finished, counts.errors, counts.rejected, counts.unserved) == (4, 1, 2, 1, 1)


def test_queue_times_are_interpolated_in_their_bucket() -> None:
    slo = LatencySLO(signal=Signal.QUEUE_TIME, percentile=95, threshold_s=0.75, window_s=60.0)
    judge = a_judge([KEPT], (slo,))
    found = score.queue_time(slo, judge, (0.5, 1.0, 2.0), np.array([60.0, 20.0, 20.0, 0.0]))
    assert found.attainment == pytest.approx(0.7)
    assert found.value == pytest.approx(1.75)
    rejected: Row = (110.0, NAN, 110.0, Status.REJECTED, 101, 0, 0)
    found = score.queue_time(slo, a_judge([KEPT, rejected], (slo,)), (0.5, 1.0, 2.0), np.array([60.0, 20.0, 20.0, 0.0]))
    assert found.attainment == pytest.approx(0.35)
    assert score.queue_time(slo, judge, (0.5,), np.zeros(2)).attainment is None
    assert not judge.is_known(slo)


def test_a_rate_is_judged_where_work_waited() -> None:
    slo = ThroughputSLO(signal=Signal.SAMPLES, min_per_s=10.0, window_s=60.0)
    rates, waited = np.array([12.0, 9.0, 3.0, 12.0]), np.array([True, True, False, False])
    found = score.throughput(slo, rates, waited)
    assert (found.attainment, found.value, found.percentile) == (0.5, 9.0, None)
    assert score.throughput(slo, rates, np.zeros(4, dtype=bool)).attainment is None


def test_gpu_hours_by_rule_are_what_was_told_of_the_time_before_each_look() -> None:
    held = Held(replicas=4, work=1.5, band=1, slo=0, peak=2, queue=0, least=0, hold=1)
    told = HeldFor(gpus=2, warmup_s=900.0)
    for now_s, one in ((600.0, held), (1200.0, held), (1500.0, None), (3600.0, held)):
        told.count(4, one, now_s)
    hours = told.hours()
    assert hours is not None
    assert hours["band"] == pytest.approx(2 * (300 + 2100) / 3600)
    assert hours["work"] == pytest.approx(1.5 * 2 * (300 + 2100) / 3600)
    assert hours["unknown"] == pytest.approx(4 * 2 * 300 / 3600)
    assert hours["slo"] == 0.0


def test_a_rule_that_never_tells_has_none_of_them() -> None:
    told = HeldFor(gpus=1, warmup_s=0.0)
    told.count(4, None, 15.0)
    assert told.hours() is None


def test_gpu_hours_run_from_a_pods_gpus_to_its_end_after_the_warm_up() -> None:
    ledger = Ledger(
        names=("whole", "early", "late", "never"),
        ordered_s=np.array([0.0, 0.0, 3600.0, 3600.0]),
        scheduled_s=np.array([0.0, 0.0, 5400.0, NAN]),
        ready_s=np.array([0.0, 0.0, 5490.0, NAN]),
        ended_s=np.array([NAN, 900.0, 7200.0, NAN]),
    )
    assert score.gpu_hours(ledger, 1, warmup_s=900.0, end_s=9000.0) == pytest.approx((8100 + 0 + 1800) / 3600)
    assert score.gpu_hours(ledger, 8, warmup_s=0.0, end_s=9000.0) == pytest.approx(8 * (9000 + 900 + 1800) / 3600)


def test_work_is_what_was_finished_at_the_best_batch() -> None:
    requests = Requests(
        arrival_s=np.full(10, 100.0),
        prompt_tokens=np.full(10, 10, dtype=np.int32),
        output_tokens=np.full(10, 101, dtype=np.int32),
        duration_s=1000.0,
        name="t",
    )
    status, end_s = np.full(10, Status.FINISHED, dtype=np.int8), np.linspace(10.0, 100.0, 10)
    outcome = Outcome(
        status=status,
        first_token_s=end_s,
        end_s=end_s,
        tokens=np.full(10, 100, dtype=np.int32),
        late_tokens=np.zeros((10, 0), dtype=np.int32),
        ledger=NO_PODS,
    )
    hours = score.work_hours(requests, outcome, SERVER, warmup_s=55.0)
    assert hours == pytest.approx(5 / SERVER.sustainable_per_s(10, 101) * 2 / 3600)
    assert score.work_hours(requests, outcome, SERVER, warmup_s=500.0) == 0.0


def test_oscillations_are_changes_of_direction_within_ten_minutes() -> None:
    def move(at_s: float, before: int, after: int) -> Move:
        return Move(at_s=at_s, replicas_from=before, replicas_to=after, cap_from=8, cap_to=16, reason="", why="")

    assert score.oscillations([move(0, 1, 3), move(60, 3, 5), move(90, 5, 5), move(120, 5, 2), move(800, 2, 4)]) == 1
    assert score.oscillations([]) == 0


def test_thresholds_between_tokens_are_each_counted_once() -> None:
    policy = a_policy(slos=[ITL, replace(ITL, percentile=99), replace(ITL, threshold_s=0.02), TTFT])
    assert score.itl_thresholds(policy) == (0.02, 0.05)
