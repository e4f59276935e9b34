"""Our own rule: the operator's decision function, with the memory that the runtime would keep for it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from bandkeeper.decide.decision import Decision
from bandkeeper.decide.engine import decide, written
from bandkeeper.decide.state import State
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.rule import Setting, View, Want
from bandkeeper.lab.snapshot import LIVE


class Rule:
    """Calls the operator's decision as its control loop does; everything wanted is taken to be written."""

    title: ClassVar[str] = "Bandkeeper"
    source: ClassVar[str] = "this project, bandkeeper.decide"
    hindsight: ClassVar[bool] = False

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """The policy as it is written."""
        return (Choice("as written", default=True),)

    def __init__(self, setting: Setting, *, forecasts: bool = True) -> None:
        self._policy = setting.policy
        self._forecasts = forecasts
        self._state = State.initial(0.0)
        self.decision: Decision | None = None

    def decide(self, view: View) -> Want:
        """One tick."""
        policy, snapshot, now_s = self._policy, view.snapshot, view.now_s
        if not self._forecasts:
            snapshot = replace(snapshot, recalled={})
        if view.floor > policy.min_replicas:
            policy = replace(policy, min_replicas=view.floor)
        decision, state = decide(policy, snapshot, self._state, now_s)
        replicas = view.replicas if decision.replicas is None else decision.replicas
        if replicas != view.replicas:
            state = written(state, replicas=replicas, now_s=now_s)
        if decision.cap is not None and any(pod.cap != decision.cap for pod in snapshot.pods_in(*LIVE)):
            state = written(state, cap=decision.cap, now_s=now_s)
        self.decision, self._state = decision, state
        return Want(
            replicas=replicas, cap=decision.cap, reason=decision.reason, message=decision.message, held=decision.held
        )
