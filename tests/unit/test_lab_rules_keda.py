"""KEDA's rule: the sum of waiting requests through an external metric."""

from __future__ import annotations

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.keda import KEDA
from tests.unit.lab_views import a_setting, a_view


@pytest.mark.parametrize(
    ("waiting", "pending", "wanted"),
    [([5, 5, 5, 5], 0, 4), ([10, 5, 5, 4], 0, 5), ([30, 30, 0, 0], 0, 8), ([10, 10, 10, 0], 2, 6)],
)
def test_replicas_follow_the_sum(waiting: list[float], pending: int, wanted: int) -> None:
    rule = KEDA(a_setting(), threshold=5)

    assert rule.decide(a_view(pending=pending, gauges={Signal.REQUESTS_WAITING: waiting})).replicas == wanted


def test_no_data_reads_as_zero_and_shrinks_after_the_window() -> None:
    rule = KEDA(a_setting(), threshold=5)

    assert rule.decide(a_view(0.0)).replicas == 4
    assert rule.decide(a_view(299.0)).replicas == 4
    assert rule.decide(a_view(300.0)).replicas == 1
