"""Chiron-style: back-pressure moves the cap, the share of places in use moves the replicas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.chiron import Chiron
from bandkeeper.lab.rules.rule import View
from tests.unit.builders import a_batch
from tests.unit.lab_views import POLICY, a_setting, a_view

WITH_KNOB = replace(a_setting(), policy=replace(POLICY, batch=a_batch((8, 64))))


def _view(itl_s: float | None, running: float, *, waiting: float = 0.0, cap: int = 32, rate: float = 100.0) -> View:
    return a_view(
        ready=4,
        cap=cap,
        gauges={Signal.REQUESTS_RUNNING: [running] * 4, Signal.REQUESTS_WAITING: [waiting] * 4},
        rates={Signal.GENERATION_TOKENS: [rate] * 4},
        averages={} if itl_s is None else {Signal.INTER_TOKEN_LATENCY: itl_s},
    )


def test_latency_over_the_objective_halves_the_cap() -> None:
    assert Chiron(WITH_KNOB, share=0.5).decide(_view(0.12, 16.0)).cap == 16


def test_headroom_grows_the_cap_smoothly_up_to_capacity() -> None:
    rule = Chiron(WITH_KNOB, share=0.5)

    assert rule.decide(_view(0.08, 16.0)).cap == 36  # half of 32 x (1 / 0.8 - 1)
    assert rule.decide(_view(0.01, 16.0, cap=36)).cap == 64


def test_throughput_that_falls_under_a_queue_pushes_back() -> None:
    rule = Chiron(WITH_KNOB, share=0.5)
    rule.decide(_view(0.08, 32.0, waiting=5.0, rate=120.0))

    assert rule.decide(_view(0.08, 32.0, waiting=5.0, rate=100.0)).cap == 16


@pytest.mark.parametrize(("running", "wanted"), [(16.0, 4), (18.0, 4), (24.0, 6), (8.0, 2)])
def test_the_share_in_use_is_kept(running: float, wanted: int) -> None:
    assert Chiron(WITH_KNOB, share=0.5).decide(_view(0.1, running)).replicas == wanted


def test_without_metrics_nothing_moves() -> None:
    want = Chiron(WITH_KNOB, share=0.5).decide(a_view(ready=3))

    assert (want.replicas, want.cap) == (3, None)


def test_without_a_batch_knob_the_cap_stays_and_counts_as_it_is() -> None:
    want = Chiron(a_setting(), share=0.5).decide(_view(0.12, 24.0))

    assert (want.replicas, want.cap) == (6, 32)
