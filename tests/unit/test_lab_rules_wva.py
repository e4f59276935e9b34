"""WVA's saturation analysers: token capacity (V2) and spare capacity (V1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.rule import View
from bandkeeper.lab.rules.wva import Spare, TokenCapacity
from tests.unit.lab_views import DYNAMIC, a_setting, a_view


def _view(
    kv: list[float], waiting: list[float] | None = None, *, pending: int = 0, prompt: float = 1000, output: float = 200
) -> View:
    ready = len(kv)
    return a_view(
        ready=ready,
        pending=pending,
        gauges={
            Signal.KV_CACHE_UTILIZATION: kv,
            Signal.REQUESTS_WAITING: waiting or [0.0] * ready,
            Signal.REQUESTS_RUNNING: [1.0] * ready,
        },
        rates={
            Signal.REQUESTS_FINISHED: [1.0] * ready,
            Signal.PROMPT_TOKENS: [prompt] * ready,
            Signal.GENERATION_TOKENS: [output] * ready,
        },
    )


# Memory holds 80,000 tokens; computing 8192 x 200 / 1200 = 1365 requests together, at most 64, of 1,100 each: 70,400.
@pytest.mark.parametrize(
    ("kv", "waiting", "pending", "wanted"),
    [
        pytest.param([0.55] * 4, 0.0, 0, 4, id="between the thresholds"),
        pytest.param([0.66] * 4, 0.0, 0, 5, id="264,000 / 0.85 over 281,600: one more"),
        pytest.param([0.66] * 4, 0.0, 1, 5, id="the pending one is credited"),
        pytest.param([0.20] * 4, 0.0, 0, 2, id="281,600 less 80,000 / 0.70 is two spare"),
        pytest.param([0.55] * 4, 4.5, 0, 5, id="each waiting request is charged 1,200 tokens"),
    ],
)
def test_v2(kv: list[float], waiting: float, pending: int, wanted: int) -> None:
    rule = TokenCapacity(a_setting(), up=0.85, down=0.70)

    assert rule.desired(_view(kv, [waiting] * len(kv), pending=pending)) == wanted


def test_v2_learns_from_saturated_replicas_what_they_hold() -> None:
    rule = TokenCapacity(a_setting(), up=0.85, down=0.70)
    rule.decide(_view([0.30, 0.30], [6.0, 6.0]))

    # 30,000 tokens each and 27,000 in use: 54,000 / 0.85 is over 60,000 for two.
    assert rule.desired(_view([0.27, 0.27])) == 3


def test_v2_without_metrics_keeps_what_is() -> None:
    assert TokenCapacity(a_setting(), up=0.85, down=0.70).desired(a_view(ready=3)) == 3


@pytest.mark.parametrize(
    ("kv", "waiting", "pending", "wanted"),
    [
        pytest.param([0.60, 0.60], [0, 0], 0, 2, id="0.20 spare, but one alone could not carry it"),
        pytest.param([0.75, 0.75], [0, 0], 0, 3, id="spare KV below the trigger"),
        pytest.param([0.75, 0.75], [0, 0], 1, 3, id="nothing is added while one is on its way"),
        pytest.param([0.10, 0.10], [3, 3], 0, 3, id="spare queue below the trigger"),
        pytest.param([0.20, 0.20], [0, 0], 0, 1, id="one alone has enough to spare"),
        pytest.param([0.90, 0.95], [0, 0], 0, 3, id="all saturated"),
        pytest.param([0.90, 0.20], [0, 0], 0, 2, id="saturated ones do not count: one left, it stays"),
    ],
)
def test_v1(kv: list[float], waiting: list[float], pending: int, wanted: int) -> None:
    assert Spare(a_setting(), kv=0.8, queue=5.0).desired(_view(kv, waiting, pending=pending)) == wanted


def test_they_need_a_kv_cache() -> None:
    assert TokenCapacity.choices(a_setting(DYNAMIC)) == ()
    assert Spare.choices(a_setting(DYNAMIC)) == ()
    assert [choice.label for choice in TokenCapacity.choices(a_setting()) if choice.default] == ["0.85/0.70"]


def test_what_is_emitted_goes_through_an_hpa() -> None:
    rule = TokenCapacity(a_setting(), up=0.85, down=0.70)

    def at(now_s: float, kv: float) -> int:
        return rule.decide(replace(_view([kv] * 4), now_s=now_s)).replicas

    assert at(0.0, 0.20) == 4
    assert at(285.0, 0.20) == 4
    assert at(300.0, 0.20) == 2
    assert at(315.0, 0.66) == 5
