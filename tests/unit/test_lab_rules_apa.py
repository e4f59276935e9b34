"""AIBrix's APA: tolerance, rates, cool-down, and what one silent pod does."""

from __future__ import annotations

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.apa import APA
from tests.unit.lab_views import DYNAMIC, a_setting, a_view


def _rule(target: float = 0.5) -> APA:
    return APA(a_setting(), signal=Signal.KV_CACHE_UTILIZATION.value, target=target)


@pytest.mark.parametrize(
    ("kv", "wanted"),
    [(0.5, 4), (0.54, 4), (0.6, 5), (0.9, 8), (1.0, 8), (0.46, 4), (0.3, 3), (0.01, 2)],
)
def test_proportional_outside_the_tolerance_and_at_most_by_two(kv: float, wanted: int) -> None:
    view = a_view(ready=4, gauges={Signal.KV_CACHE_UTILIZATION: [kv] * 4})

    assert _rule().decide(view).replicas == wanted


def test_down_only_when_nothing_higher_was_wanted_for_five_minutes() -> None:
    rule = _rule()
    busy = a_view(0.0, gauges={Signal.KV_CACHE_UTILIZATION: [0.5] * 4})
    rule.decide(busy)

    quiet = {Signal.KV_CACHE_UTILIZATION: [0.1] * 4}
    assert rule.decide(a_view(299.0, gauges=quiet)).replicas == 4
    assert rule.decide(a_view(300.0, gauges=quiet)).replicas == 2


def test_pods_on_their_way_are_not_credited() -> None:
    view = a_view(ready=4, pending=4, gauges={Signal.KV_CACHE_UTILIZATION: [1.0] * 4})

    assert _rule().decide(view).replicas == 16


def test_one_ready_pod_without_a_value_blocks() -> None:
    view = a_view(ready=4, gauges={Signal.KV_CACHE_UTILIZATION: [1.0, 1.0, 1.0, None]})

    assert _rule().decide(view).replicas == 4


def test_servers_without_a_kv_cache_are_scaled_on_running_requests_only() -> None:
    assert all(choice.label.startswith("running") for choice in APA.choices(a_setting(DYNAMIC)))
    assert [choice.label for choice in APA.choices(a_setting()) if choice.default] == ["KV 50 %"]
