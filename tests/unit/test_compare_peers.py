"""Bandkeeper next to the scalers in use: who is better in both, and what the cheapest of equal attainment costs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bandkeeper.lab.result import to_json
from tests.bench.compare_peers import table, verdicts
from tests.unit.lab_bench import a_bench


def a_point(rule: str, label: str, hours: float, *attainment: float | None, seed: int = 1) -> dict[str, Any]:
    return {
        "rule": rule,
        "label": label,
        "workload": "ramp",
        "seed": seed,
        "gpu_hours": hours,
        "attainment": list(attainment),
        "is_ours": rule == "Bandkeeper",
        "is_hindsight": rule == "Foresight",
    }


def a_result(*points: dict[str, Any]) -> dict[str, Any]:
    slos = [{"goal": 0.99}, {"goal": 0.95}]
    return {"slos": slos, "workloads": [{"name": "ramp"}], "points": list(points)}


OURS = a_point("Bandkeeper", "as written", 10.0, 0.995, 0.96)


@pytest.mark.parametrize(
    ("peer", "better"),
    [
        (a_point("Q", "x1.3", 9.0, 0.995, 0.96), True),
        (a_point("Q", "x1.3", 10.0, 0.996, 0.96), True),
        (a_point("Q", "x1.3", 10.0, 0.995, 0.96), False),
        (a_point("Q", "x1.3", 9.0, 0.999, 0.95), False),
        (a_point("Q", "x1.3", 10.1, 0.999, 0.99), False),
        (a_point("Foresight", "x1.3", 8.0, 0.999, 0.99), False),
    ],
)
def test_a_peer_is_better_where_nothing_is_worse(peer: dict[str, Any], better: bool) -> None:
    (found,) = verdicts(a_result(OURS, peer))
    assert bool(found.dominated_by) is better


def test_the_cheapest_in_use_of_equal_attainment() -> None:
    (found,) = verdicts(
        a_result(
            OURS,
            a_point("AIBrix APA", "a", 20.0, 0.999, 0.97),
            a_point("AIBrix APA", "b", 16.0, 0.995, 0.96),
            a_point("HPA on GPU_UTIL", "c", 12.5, 0.99, 0.95),
            a_point("L: held levels of work", "not in use", 11.0, 0.999, 0.99),
            a_point("Knative KPA on concurrency", "d", 8.0, 0.98, 0.95),
        )
    )
    assert found.equal is not None
    assert found.enough is not None
    assert (found.equal.label, found.enough.label) == ("b", "c")
    assert found.saved(found.equal) == pytest.approx(0.375)
    assert found.saved(found.enough) == pytest.approx(0.2)


def test_seeds_are_judged_by_their_mean_and_what_nothing_was_asked_of_is_kept() -> None:
    two = [a_point("AIBrix APA", "a", hours, None, 0.96, seed=seed) for seed, hours in ((1, 8.0), (2, 14.0))]
    (found,) = verdicts(a_result(OURS, *two))
    assert [mark.gpu_hours for mark in (found.equal,) if mark] == [11.0]


def test_the_table_says_where_there_is_no_equal() -> None:
    text = table(list(verdicts(a_result(OURS, a_point("AIBrix APA", "a", 9.0, 0.9, 0.9)))))
    assert "No peer is better in both on 1 of 1 loads." in text
    assert "that keeps as much: there is none on any load" in text


def test_it_reads_what_the_bench_writes() -> None:
    found = list(verdicts(json.loads(to_json(a_bench()))))
    assert [one.load for one in found] == [workload.name for workload in a_bench().workloads]
    assert all(one.equal is None or one.equal.rule != "Foresight" for one in found)
