"""The comparison: the same for any number of processes, best settings, bounds, goals, rules of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.cli import bench as command
from bandkeeper.lab.bench import (
    BenchError,
    BenchPoint,
    BenchResult,
    BenchSLO,
    BenchWorkload,
    Comparison,
    Load,
    compare,
    goals_of,
    overall,
)
from bandkeeper.lab.result import to_json
from bandkeeper.lab.rules.catalogue import NAMES, RuleError, find
from bandkeeper.lab.rules.choice import Choice
from tests.unit.lab_views import POLICY, SERVER, steady

OWN = """
from bandkeeper.lab.rules.rule import Setting, View, Want

class Rule:
    def __init__(self, setting: Setting) -> None:
        self.most = setting.policy.max_replicas

    def decide(self, view: View) -> Want:
        return Want({replicas})
"""


def a_comparison(*rules: str | Path, seeds: int = 1) -> Comparison:
    """Two replicas' work for five minutes, one of them warm-up."""
    per_s = 2.0 * SERVER.sustainable_per_s(1000.0, 200.0)
    drawn = {seed: steady(per_s=per_s, duration_s=300.0) for seed in range(1, seeds + 1)}
    return Comparison(
        policy=POLICY,
        policy_name="chat",
        server=SERVER,
        server_name="reference",
        loads=(Load("steady", drawn),),
        rules=tuple(find(str(rule)) for rule in rules),
        goals=goals_of(POLICY),
        warmup_s=60.0,
    )


def test_every_rule_runs_at_every_setting() -> None:
    comparison = a_comparison(*NAMES)
    result = compare(comparison, workers=1)
    setting = comparison.setting(0, 1)

    ran = {(point.rule, point.label) for point in result.points}
    assert ran == {(rule.title, choice.label) for rule in comparison.rules for choice in rule.choices(setting)}
    assert all(point.gpu_hours > 0 for point in result.points)
    assert {point.rule for point in result.points if point.is_ours} == {"Bandkeeper"}
    assert {point.rule for point in result.points if point.gpu_hours_by_rule} == {"Bandkeeper"}


def test_the_result_is_the_same_for_any_number_of_processes() -> None:
    comparison = a_comparison("static", "rate", seeds=2)
    told: list[tuple[float, float]] = []

    alone = compare(comparison, workers=1, progress=lambda done, total: told.append((done, total)))
    together = compare(comparison, workers=2)

    assert to_json(alone) == to_json(together)
    assert told[-1] == (len(told), len(told)) == (len(alone.points), len(alone.points))
    assert BenchResult.model_validate_json(to_json(alone)).points[0].rule == "Static"


def test_a_rule_of_ones_own_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN.replace("{replicas}", "3"))

    points = compare(a_comparison("static", file), workers=2).points
    mine = [point for point in points if point.rule == "mine"]

    assert [(point.label, point.is_best, point.is_hindsight) for point in mine] == [("as written", True, False)]
    assert mine[0].gpu_hours == next(point.gpu_hours for point in points if point.label == "3")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "write a class Rule with a method decide"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        (OWN.replace("{replicas}", "1 / 0"), "ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)

    with pytest.raises((RuleError, BenchError), match=complaint):
        compare(a_comparison(file), workers=1)


def test_an_unknown_rule_lists_those_there_are() -> None:
    with pytest.raises(RuleError, match="no rule 'hpa': name a Python file, or one of bandkeeper, static, hpa-gpu"):
        find("hpa")


def test_goals() -> None:
    assert goals_of(POLICY) == (0.99, 0.95)
    assert goals_of(POLICY, {}) == (0.95, 0.95)
    assert goals_of(POLICY, {Signal.TIME_TO_FIRST_TOKEN: 0.9}) == (0.9, 0.95)


def a_point(rule: str, label: str, hours: float, ttft: float, *, workload: str = "steady", seed: int = 1) -> BenchPoint:
    return BenchPoint(
        rule=rule,
        label=label,
        parameters={},
        workload=workload,
        seed=seed,
        gpu_hours=hours,
        gpu_hours_wasted=0.0,
        relative=None,
        attainment=[ttft, 1.0],
        attainment_both=ttft,
        meets_goal=False,
        time_in_band=None,
        errors=0,
        unserved=0,
        scale_actions=6,
        batch_actions=0,
        oscillations=0,
        is_default=False,
        is_best=False,
        is_bound=False,
        is_hindsight=rule == "Foresight",
        is_ours=False,
    )


def a_result(*points: BenchPoint) -> BenchResult:
    """Already judged."""
    from bandkeeper.lab.bench import _judged

    names = dict.fromkeys(point.workload for point in points)
    return BenchResult(
        policy="chat",
        server="reference",
        model="test",
        gpu="test",
        cold_start_s=90.0,
        warmup_s=900.0,
        seeds=[1],
        protocol=["fair"],
        slos=[
            BenchSLO(signal="TimeToFirstToken", percentile=95, threshold=1.0, goal=0.99),
            BenchSLO(signal="InterTokenLatency", percentile=95, threshold=0.1, goal=0.95),
        ],
        workloads=[
            BenchWorkload(name=name, notes=[], requests=1, duration_s=4500.0, start_replicas=1) for name in names
        ],
        points=_judged(list(points), [0.99, 0.95]),
    )


def test_best_is_the_cheapest_that_keeps_the_goals_else_the_one_that_misses_least() -> None:
    points = a_result(
        a_point("A", "1", 5.0, 0.9899),
        a_point("A", "2", 7.0, 0.995),
        a_point("A", "3", 6.0, 0.99),
        a_point("B", "1", 2.0, 0.5),
        a_point("B", "2", 9.0, 0.7),
    ).points

    assert [(point.rule, point.label) for point in points if point.is_best] == [("A", "3"), ("B", "2")]
    assert [point.label for point in points if point.meets_goal] == ["2", "3"]
    assert all(point.relative is None for point in points)


def test_the_bound_is_the_cheapest_in_hindsight_that_keeps_the_goals() -> None:
    points = a_result(
        a_point("Foresight", "1", 3.0, 0.98), a_point("Foresight", "2", 4.0, 0.99), a_point("A", "1", 6.0, 1.0)
    ).points

    assert [point.is_bound for point in points] == [False, True, False]
    assert [point.relative for point in points] == [0.75, 1.0, 1.5]


def test_goals_are_kept_by_the_mean_over_the_seeds() -> None:
    points = a_result(a_point("A", "1", 5.0, 0.985), a_point("A", "1", 5.0, 0.996, seed=2)).points

    assert all(point.meets_goal for point in points)


def test_over_all_loads_a_rule_has_one_setting_and_hindsight_the_best_of_each() -> None:
    result = a_result(
        a_point("A", "low", 5.0, 0.99),
        a_point("A", "high", 6.0, 0.999),
        a_point("A", "low", 5.0, 0.90, workload="waves"),
        a_point("A", "high", 6.0, 0.992, workload="waves"),
        a_point("Foresight", "x", 4.0, 0.99),
        a_point("Foresight", "y", 3.0, 0.99, workload="waves"),
        a_point("Foresight", "x", 9.0, 0.99, workload="waves"),
    )

    bound, a = overall(result)
    assert (a.rule, a.label, a.loads_kept) == ("A", "high", 2)
    assert a.relative == pytest.approx(12.0 / 7.0)
    assert a.attainment_worst == (0.992, 1.0)
    assert a.moves_per_hour == 6.0
    assert (bound.label, bound.relative) == ("best of each load", 1.0)


def test_the_table_shows_best_settings_and_never_rounds_a_miss_away() -> None:
    result = a_result(
        a_point("A", "low", 5.0, 0.98999), a_point("A", "lower", 4.0, 0.9), a_point("Foresight", "x", 4.0, 1.0)
    )

    text = command.table(result)
    assert "98.9 %" in text
    assert "lower" not in text
    assert "lower" in command.table(result, every=True)
    assert "*  Foresight (bound)" in text


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["bench", *arguments])
    status: int = parsed.call(parsed)
    return status


def test_the_command_compares_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = Path(__file__).parents[2] / "examples" / "rules" / "reference.yaml"
    example = Path(__file__).parents[2] / "examples" / "rules" / "step_ahead.py"
    json = tmp_path / "bench.json"
    inputs = ["--policy", str(policy), "--load", "steady:level=2,duration_s=400", "--server", "reference"]
    times = ["--warmup", "100", "--cold-start", "30"]
    status = _run([*inputs, *times, "--rules", f"static,{example}", "--jobs", "1", "--json", str(json)])

    result = BenchResult.model_validate_json(json.read_text())
    assert status == 0
    assert result.cold_start_s == 30.0
    assert {point.rule for point in result.points} == {"Static", "One step ahead"}
    assert "JSON: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--load", "nothing"], "nothing"),
        (["--load", "matrix/nothing"], "matrix has"),
        (["--load", "steady", "--goal", "TTFT=99"], "write SIGNAL=PERCENT"),
        (["--load", "steady", "--goal", "TimeToFirstToken=0"], "above 0"),
        (["--load", "steady", "--rules", "hpa"], "no rule 'hpa'"),
        (["--load", "steady", "--json", "no/such/directory.json"], "no directory"),
    ],
)
def test_bad_input_is_a_sentence(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    policy = Path(__file__).parents[2] / "examples" / "rules" / "reference.yaml"

    assert _run(["--policy", str(policy), "--server", "reference", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_choice_without_parameters_is_the_rule_as_it_is() -> None:
    assert dict(Choice("as written").parameters) == {}
