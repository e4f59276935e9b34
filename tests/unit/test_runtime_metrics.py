"""The operator's own metrics: their page is current, and what is not known has no series."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import generate_latest

from bandkeeper.runtime.metrics import Metrics, reference

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
KEY = ("serving", "chat")


def test_the_page_is_what_make_generate_writes() -> None:
    assert PAGE.read_text() == reference()


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_a_value_that_is_not_known_has_no_series() -> None:
    metrics = Metrics()
    metrics.set(metrics.utilization, KEY, 0.5)
    assert 'bandkeeper_utilization_ratio{namespace="serving",policy="chat"} 0.5' in text(metrics)
    metrics.set(metrics.utilization, KEY, None)
    assert 'policy="chat"' not in text(metrics)


def test_a_policy_that_is_gone_leaves_no_series() -> None:
    metrics = Metrics()
    metrics.set(metrics.slo_measured, KEY, 0.1, "TimeToFirstToken", "95")
    metrics.scalings.labels(*KEY, "up", "QueueGrows").inc()
    metrics.forget(KEY)
    assert 'policy="chat"' not in text(metrics)
