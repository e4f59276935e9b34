"""The grid of a what-if: the decision's own choice, the model's own latencies, and an edge between kept and broken."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandkeeper.api.signals import Signal
from bandkeeper.api.v1alpha1 import Objective
from bandkeeper.decide.decision import Learned, Seen
from bandkeeper.decide.policy import Policy, ThroughputSLO
from bandkeeper.lab.changes import parse
from bandkeeper.lab.report import whatif as report
from bandkeeper.lab.report import whatif_page
from bandkeeper.lab.report.html import render
from bandkeeper.lab.server import ContinuousServer
from bandkeeper.lab.whatif import Money, WhatIf, WhatIfError, answer, of_learned, of_server
from bandkeeper.model.latency import Traffic, latency
from tests.unit.builders import ITL, TTFT, a_batch, a_policy

SEEN = Seen(
    requests_per_s=8.0,
    prompt_tokens=1000.0,
    output_tokens=200.0,
    room=64.0,
    margin=1.25,
    bound_by=Signal.INTER_TOKEN_LATENCY,
    error=0.04,
    windows=60.0,
)
LEARNED = Learned(
    alpha_s=0.02, beta_s=0.0004, delta_s=0.0001, best_cap=64, peak_work=2.6, largest_rise=0.5, age_s=100.0, seen=SEEN
)
EACH_S = 200 * (0.02 / 64 + 0.0004) + 1000 * 0.0001  # of one request, at the best cap
POLICY = a_policy(slos=[TTFT, ITL], replicas=(1, 40))
KNOB = a_policy(slos=[TTFT, ITL], replicas=(1, 40), batch=a_batch((8, 16, 32, 64)))
SERVER = ContinuousServer(
    model="m", gpu="g", source="s", alpha_ms=20, beta_ms=0.4, delta_ms_per_token=0.1, kv_tokens=30_000, batch_max=64
)


def ask(*texts: str, policy: Policy = POLICY, learned: Learned = LEARNED, **more: Any) -> WhatIf:
    known = of_learned(policy, learned, source="chat", **more)
    return answer(policy, known, parse(texts), name="chat")


def test_the_work_is_what_the_step_times_say() -> None:
    found = ask("load=2x")
    assert found.now.work == pytest.approx(8 * EACH_S)
    assert found.then.work == pytest.approx(16 * EACH_S)
    assert ask("prompt=2x").then.work == pytest.approx(8 * (EACH_S + 0.1))


def test_what_is_to_be_ready_for_grows_with_the_work() -> None:
    """Now it is the work and its largest rise, which is below the peak."""
    now, then = ask().then, ask("load=2x").then
    assert now.held == pytest.approx(8 * EACH_S + 0.5)
    assert then.held == pytest.approx(2 * now.held)
    calm = ask(learned=replace(LEARNED, peak_work=2.0)).then
    assert calm.held == pytest.approx(2.0)


def test_the_choice_is_the_larger_of_band_and_margin() -> None:
    chosen = ask("load=2x").chosen
    held = 2 * (8 * EACH_S + 0.5)
    assert (chosen.for_band, chosen.for_held) == (math.ceil(16 * EACH_S / 0.7), math.ceil(held * 1.25))
    assert chosen.replicas == max(chosen.for_band, chosen.for_held)
    assert (chosen.margin, chosen.bound_by, chosen.limit) == (1.25, "InterTokenLatency", "")


@pytest.mark.parametrize(("bounds", "replicas", "limit"), [((1, 3), 3, "max"), ((9, 12), 9, "min")])
def test_bounds_are_bounds_and_named(bounds: tuple[int, int], replicas: int, limit: str) -> None:
    found = ask("load=2x", policy=replace(POLICY, min_replicas=bounds[0], max_replicas=bounds[1]))
    assert (found.chosen.replicas, found.chosen.limit) == (replicas, limit)
    assert f"replicas.{limit} is {replicas}" in report.reasons(found)


def test_cells_are_what_the_model_predicts() -> None:
    found = ask("load=2x")
    traffic = Traffic(16.0, 1000.0, 200.0)
    known = of_learned(POLICY, LEARNED, source="chat")
    for row in found.rows:
        told = latency(known.steps, traffic, row.replicas, 64)
        (cell,) = row.cells
        first, gap = cell.promises
        assert cell.load == pytest.approx(told.utilization)
        assert gap.attainment == pytest.approx(told.attainment(Signal.INTER_TOKEN_LATENCY, 0.05))
        assert gap.kept == (told.attainment(Signal.INTER_TOKEN_LATENCY, 0.05) >= 0.95)
        if told.overloaded:
            assert (first.value, cell.kept) == (None, False)
        assert row.utilization == pytest.approx(found.then.work / row.replicas)
        assert row.in_band == (0.6 <= row.utilization <= 0.7)


def test_what_the_pods_tell_of_a_step_is_what_the_cells_are_predicted_with() -> None:
    told = replace(SEEN, prefill_tokens=256)
    found = ask("load=2x", learned=replace(LEARNED, seen=told))
    known = of_learned(POLICY, LEARNED, source="chat")
    for row in found.rows:
        small = latency(known.steps, Traffic(16.0, 1000.0, 200.0), row.replicas, 64, chunks=(256,))
        gap = row.cells[0].promises[1]
        assert gap.attainment == pytest.approx(small.attainment(Signal.INTER_TOKEN_LATENCY, 0.05))
    assert [row.cells for row in found.rows] != [row.cells for row in ask("load=2x").rows]


def test_the_edge_is_between_broken_and_kept() -> None:
    found = ask("load=3x", policy=KNOB)
    assert found.caps == [8, 16, 32, 64]
    for place, edge in enumerate(found.edges):
        assert edge is not None
        for row in found.rows:
            assert row.cells[place].kept == (row.replicas >= edge), (found.caps[place], row.replicas, edge)
    assert found.edges == sorted(found.edges, key=lambda edge: -(edge or 0))  # a larger batch carries more


def test_a_promise_that_nothing_keeps_has_no_edge() -> None:
    found = ask(policy=a_policy(slos=[replace(ITL, threshold_s=0.001)]))
    assert found.edges == [None]
    assert "no number of replicas keeps every promise" in report.summary(found)


def test_the_rows_show_what_matters() -> None:
    found = ask("load=2x,replicas=9", replicas=3)
    counts = [row.replicas for row in found.rows]
    assert {found.chosen.replicas, found.edges[0], 3, 9} <= set(counts)
    assert counts == sorted(set(counts))
    assert len(counts) <= 17
    many = [row.replicas for row in ask("load=200x", replicas=3).rows]
    assert len(many) <= 17
    assert 3 not in many  # it would stretch the grid beyond reading


def test_the_cap_that_was_asked_for_and_the_one_in_force_are_columns() -> None:
    assert ask("cap=48").caps == [48, 64]
    assert ask(policy=KNOB, cap=32).chosen.cap == 32
    assert ask(policy=KNOB, capacity=32).caps == [8, 16, 32, 64]  # 64 is what the work was counted at


def test_less_room_in_the_kv_cache_is_a_smaller_batch() -> None:
    """Learned with room for 32 of 1100 tokens each; twice as long ones find room for half as many."""
    tight = replace(LEARNED, seen=replace(SEEN, room=32.0))
    each_s = 400 * (0.02 / 16 + 0.0004) + 2000 * 0.0001
    assert ask("prompt=2x,output=2x", learned=tight).then.work == pytest.approx(8 * each_s)
    assert ask("prompt=2x,output=2x", learned=tight).notes == []
    assert any("KV cache" in note for note in ask("prompt=2x").notes)


def test_money_is_gpus_times_their_price() -> None:
    known = of_learned(POLICY, LEARNED, source="chat")
    row = answer(POLICY, known, parse([]), name="chat", money=Money(gpus=4, per_gpu_hour=2.5, currency="EUR")).rows[0]
    assert (row.gpus, row.cost_per_hour) == (4 * row.replicas, 10.0 * row.replicas)
    assert ask().rows[0].cost_per_hour is None


def test_a_servers_constants_are_steps_of_the_asked_context() -> None:
    server = SERVER.model_copy(update={"kappa_ms_per_ktoken": 0.1, "gamma_ms": 10.0})
    known = of_server(POLICY, server, Traffic(8.0, 1000.0, 200.0), parse(["prompt=2x"]), source="server.yaml")
    found = answer(POLICY, known, parse(["prompt=2x"]), name="chat")
    assert found.model.alpha_ms == 20
    assert found.model.beta_ms == pytest.approx(0.4 + 0.1 * 2.1)
    assert found.model.delta_ms == pytest.approx(0.1 + 10 / 2000)
    assert found.then.held == found.then.work  # no past, no rise
    assert found.chosen.margin == pytest.approx(1 / 0.75)  # what a policy begins with for tokens
    assert (found.model.windows, found.model.confident) == (None, True)


def test_without_traffic_there_is_no_answer() -> None:
    old = replace(LEARNED, seen=None)
    with pytest.raises(WhatIfError, match="--traffic 12/s:1000:180"):
        of_learned(POLICY, old, source="chat")
    found = ask(learned=old, traffic=Traffic(8.0, 1000.0, 200.0))
    assert not found.model.confident  # how sure it was is not known
    assert "LOW CONFIDENCE" in report.summary(found)


@pytest.mark.parametrize(("error", "windows", "sure"), [(0.04, 60.0, True), (0.4, 60.0, False), (0.04, 3.0, False)])
def test_low_confidence_is_said(error: float, windows: float, sure: bool) -> None:
    found = ask(learned=replace(LEARNED, seen=replace(SEEN, error=error, windows=windows)))
    assert found.model.confident is sure
    assert ("LOW CONFIDENCE" not in report.summary(found)) is sure


def test_a_doubtful_verdict_has_a_question_mark() -> None:
    found = ask("load=3x", learned=replace(LEARNED, seen=replace(SEEN, error=0.06, prefill_tokens=8192)))
    doubtful = [row.replicas for row in found.rows if not row.cells[0].sure]
    (edge,) = found.edges
    assert edge in doubtful
    assert all(abs(replicas - (edge or 0)) <= 3 for replicas in doubtful)
    assert all(row.cells[0].sure == (row.cells[0].load > 1.06) for row in found.rows if row.cells[0].load >= 1)
    for column in report.columns(found):
        for row, spot in zip(found.rows, column.spots, strict=True):
            assert row.cells[0].sure <= ("?" not in f"{spot.text}{spot.verdict}")


def test_a_rate_that_is_promised_is_held_against_what_can_be_done() -> None:
    slo = ThroughputSLO(signal=Signal.GENERATION_TOKENS, min_per_s=2000.0, window_s=60.0)
    found = ask(policy=a_policy(Objective.THROUGHPUT_SENSITIVE, slos=[slo], replicas=(1, 40)))
    for row in found.rows:
        (told,) = row.cells[0].promises
        assert told.value == pytest.approx(row.replicas * 200 / EACH_S)
        assert told.kept == (row.replicas * 200 / EACH_S >= 2000)


def test_a_policy_that_promises_nothing_has_a_grid_too() -> None:
    found = ask(policy=a_policy(Objective.THROUGHPUT_SENSITIVE, slos=[], replicas=(1, 40)))
    assert "promises nothing" in report.summary(found)
    assert "% full" in report.summary(found)
    assert render(whatif_page.page(found)).count("<svg") == 1


@settings(max_examples=30)
@given(load=st.floats(0.2, 20.0), more=st.floats(1.0, 5.0), margin=st.floats(1.0, 4.0), looser=st.floats(1.0, 4.0))
def test_more_load_never_chooses_fewer_and_a_looser_promise_never_needs_more(
    load: float, more: float, margin: float, looser: float
) -> None:
    learned = replace(LEARNED, seen=replace(SEEN, margin=margin))
    policy = replace(POLICY, max_replicas=10_000)
    less, much = (
        ask(f"load={load:.6f}x", policy=policy, learned=learned),
        ask(f"load={load * more:.6f}x", policy=policy, learned=learned),
    )
    assert much.chosen.replicas >= less.chosen.replicas
    loose = ask(
        f"load={load:.6f}x",
        policy=replace(policy, slos=(TTFT, replace(ITL, threshold_s=ITL.threshold_s * looser))),
        learned=learned,
    )
    assert (loose.edges[0] or math.inf) <= (less.edges[0] or math.inf)
    assert loose.chosen.replicas == less.chosen.replicas


# As it is told.


def test_one_cap_has_a_column_for_each_promise_and_several_one_each() -> None:
    assert [column.title for column in report.columns(ask())] == [
        "first token p95 <= 500 ms",
        "token gap p95 <= 50 ms",
    ]
    assert [column.title for column in report.columns(ask(policy=KNOB))] == ["cap 8", "cap 16", "cap 32", "cap 64"]


def test_the_table_draws_the_edge_and_marks_the_points() -> None:
    found = ask("load=2x,replicas=9", replicas=3)
    lines = report.summary(found).splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("REPLICAS"))
    body = lines[head + 1 :]
    rows = {int(line.split()[0]): line for line in body if line[:1].isdigit()}
    assert rows[found.chosen.replicas].endswith("<- chosen")
    assert rows[9].endswith("<- asked")
    assert rows[3].endswith("<- now")
    (edge,) = found.edges
    above = next(index for index, line in enumerate(body) if line.startswith(f"{edge} "))
    assert body[above - 1].split()[-2:] == ["SLO", "edge"]
    assert "kept" in body[above]
    assert "BROKEN" not in body[above]


def test_a_wide_knob_is_thinned_and_says_so() -> None:
    knob = a_batch(tuple(range(8, 65, 4)))
    found = ask(policy=replace(KNOB, batch=knob), cap=36)
    text = report.summary(found)
    head = next(line for line in text.splitlines() if line.startswith("REPLICAS"))
    assert head.count("cap ") == report.MOST_NAMED
    assert "cap 36" in head
    assert "11 caps between these are in the report and the JSON" in text


def test_the_picture_is_the_grid() -> None:
    picture = report.Picture.of(ask("load=3x", policy=KNOB))
    kept = [[spot.kept for spot in column.spots] for column in picture.columns]
    for x1, y1, x2, y2 in picture.edge:
        if x1 == x2:  # upright, between two caps
            assert kept[int(x1) - 1][int(y1)] != kept[int(x1)][int(y1)]
        else:
            assert kept[int(x1)][int(y1) - 1] != kept[int(x1)][int(y1)]
            assert y1 == y2
    result = picture.result
    x, y, wide, high = picture.chosen
    assert (result.caps[int(x)], result.rows[int(y)].replicas) == (result.chosen.cap, result.chosen.replicas)
    assert (wide, high) == (1.0, 1.0)
    low, top = picture.band
    inside = [place for place, row in enumerate(result.rows) if row.in_band]
    assert all(low <= place + 0.5 <= top for place in inside)
    assert 0 <= low < top <= len(result.rows)


def test_the_page_escapes_what_people_name() -> None:
    found = ask().model_copy(update={"policy": "<script>", "notes": ["<b>"]})
    text = render(whatif_page.page(found))
    assert "&lt;script&gt;" in text
    assert "<b>" not in text.partition("<footer>")[2]
