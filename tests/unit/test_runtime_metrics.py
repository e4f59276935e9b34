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
    metrics.show(KEY, [(metrics.utilization, (), 0.5)])
    assert 'bandkeeper_utilization_ratio{namespace="serving",policy="chat"} 0.5' in text(metrics)
    metrics.show(KEY, [(metrics.utilization, (), None)])
    assert 'policy="chat"' not in text(metrics)


def test_a_promise_that_is_no_longer_made_leaves_no_series() -> None:
    metrics = Metrics()
    metrics.show(KEY, [(metrics.slo_measured, ("TimeToFirstToken", "95"), 0.1), (metrics.utilization, (), 0.5)])
    metrics.show(KEY, [(metrics.utilization, (), 0.6)])
    assert "TimeToFirstToken" not in text(metrics)
    assert 'policy="chat"} 0.6' in text(metrics)


def test_a_policy_that_is_gone_leaves_no_series() -> None:
    metrics = Metrics()
    metrics.show(KEY, [(metrics.slo_measured, ("TimeToFirstToken", "95"), 0.1)])
    metrics.scalings.labels(*KEY, "up", "QueueGrows").inc()
    metrics.forget(KEY)
    assert 'policy="chat"' not in text(metrics)
