"""KEDA's Prometheus scaler on waiting requests: an external metric with a target average value behind an HPA."""

from __future__ import annotations

from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.hpa import Controller, from_total
from bandkeeper.lab.rules.offered import total
from bandkeeper.lab.rules.rule import Setting, View, Want


class KEDA:
    """`threshold` waiting requests per replica. No data reads as 0, as `ignoreNullValues` has it by default."""

    title: ClassVar[str] = "KEDA on waiting requests"
    source: ClassVar[str] = "keda.sh: Prometheus scaler; HPA external metric, AverageValue"
    hindsight: ClassVar[bool] = False

    def __init__(self, setting: Setting, *, threshold: float) -> None:
        self._threshold = threshold
        self._controller = Controller(most=setting.policy.max_replicas)

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """5 is what most vLLM examples write."""
        return tuple(
            Choice(f"{threshold:g}", {"threshold": threshold}, default=threshold == 5) for threshold in (0.5, 2, 5)
        )

    def decide(self, view: View) -> Want:
        """One sync of the HPA that KEDA made."""
        waiting = total(view.metrics.latest(Signal.REQUESTS_WAITING)) or 0.0
        proposal = from_total(waiting, self._threshold, view.ready + view.pending)
        return Want(self._controller.step(proposal, view.replicas, view.now_s, least=view.floor))
