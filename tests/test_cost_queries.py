"""The queries of docs/cost.md, asked of Prometheus' own engine over a made-up day of three policies."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import find

pytestmark = pytest.mark.cluster

PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
QUERIES = re.findall(r"^([^\n`]+):\n\n```promql\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)

POLICIES = {"chat": "LatencySensitive", "voice": "LatencySensitive", "batch": "ThroughputSensitive"}
LEADER, STANDBY = "10.0.0.1:8080", "10.0.0.2:8080"

WANTED: dict[str, dict[str, float]] = {  # chat holds 2 GPUs all day, voice 1, batch 4; a GPU-hour of chat is 3 USD
    "GPU-hours of the last day, by objective": {
        '{objective="LatencySensitive"}': 72,
        '{objective="ThroughputSensitive"}': 96,
    },
    "Wasted GPU-hours of the last day, by objective": {'{objective="LatencySensitive"}': 12},
    "Money of the last day, by objective and currency": {'{objective="LatencySensitive", currency="USD"}': 144},
    "GPU-hours of the last day that one rule alone cost, by objective": {
        '{objective="LatencySensitive", rule="band"}': 24,
        '{objective="ThroughputSensitive", rule="peak"}': 48,
    },
    "Money of the last day that the band alone cost, by policy, at the mean price of the day": {
        '{namespace="serving", policy="chat", currency="USD"}': 72,
    },
}


def series(metric: str, values: str, **labels: str) -> dict[str, str]:
    written = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return {"series": f"{metric}{{{written}}}", "values": values}


def counter(metric: str, policy: str, per_day: float, instance: str = LEADER, **labels: str) -> dict[str, str]:
    values = f"0+{per_day / 96:g}x96"  # a sample each quarter of an hour
    return series(metric, values, namespace="serving", policy=policy, instance=instance, **labels)


def a_day() -> list[dict[str, str]]:
    hour = 3600.0
    infos = [
        series("bandkeeper_policy_info", "1x96", namespace="serving", policy=policy, instance=instance,
               objective=objective, mode="Enforce", runtime="VLLM")
        for policy, objective in POLICIES.items()
        for instance in (LEADER, STANDBY)
    ]  # fmt: skip
    return [
        *infos,
        counter("bandkeeper_gpu_seconds_total", "chat", 40 * hour, judged="true"),
        counter("bandkeeper_gpu_seconds_total", "chat", 8 * hour, instance=STANDBY, judged="false"),  # it led before
        counter("bandkeeper_gpu_seconds_total", "voice", 24 * hour, judged="true"),
        counter("bandkeeper_gpu_seconds_total", "batch", 96 * hour, judged="false"),
        counter("bandkeeper_wasted_gpu_seconds_total", "chat", 8 * hour, cause="idle_held"),
        counter("bandkeeper_wasted_gpu_seconds_total", "voice", 4 * hour, cause="below_possible"),
        counter("bandkeeper_gpu_cost_total", "chat", 144.0, currency="USD"),
        counter("bandkeeper_gpu_seconds_by_rule_total", "chat", 24 * hour, rule="band"),
        counter("bandkeeper_gpu_seconds_by_rule_total", "chat", 20 * hour, rule="work"),
        counter("bandkeeper_gpu_seconds_by_rule_total", "batch", 48 * hour, rule="peak"),
        counter("bandkeeper_gpu_seconds_by_rule_total", "batch", 9 * hour, rule="unknown"),
    ]


def test_every_query_of_the_page_is_asked() -> None:
    assert [title for title, _ in QUERIES] == list(WANTED)


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_the_queries_answer_what_they_say(tmp_path: Path, title: str, query: str) -> None:
    asked: dict[str, Any] = {
        "expr": query,
        "eval_time": "1d",
        "exp_samples": [{"labels": labels, "value": value} for labels, value in WANTED[title].items()],
    }
    case = {"interval": "15m", "input_series": a_day(), "promql_expr_test": [asked]}
    (tmp_path / "day.yaml").write_text(yaml.safe_dump({"fuzzy_compare": True, "tests": [case]}))
    command = [str(find("prometheus") / "promtool"), "test", "rules", "day.yaml"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
