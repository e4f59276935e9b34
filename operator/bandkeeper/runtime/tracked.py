"""What the loop remembers of one policy between ticks. All of it can be lost: status and cluster tell the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bandkeeper.actuate.outcome import CapResult, ScaleResult
from bandkeeper.actuate.replicas import Scale
from bandkeeper.api.snapshot import Pod, PodState, Snapshot
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.state import State
from bandkeeper.kube.discovery import TargetError
from bandkeeper.runtime.conflicts import Conflict
from bandkeeper.runtime.policies import Managed


@dataclass(slots=True, kw_only=True)
class Change:
    """A move that was made (or, in Recommend mode, would have been): what it was before, and the decision."""

    decision: Decision
    from_replicas: int | None = None
    from_cap: int | None = None
    direction: str = ""


@dataclass(slots=True)
class Tracked:
    """One policy's memory.

    Attributes
    ----------
    status
        The status as last told, or as found on the object after a start.
    changes
        Moves since the last report.
    recommended
        What was last recommended, so that it is said once.
    """

    managed: Managed
    state: State
    status: Mapping[str, Any]
    scale: Scale | None = None
    target_problem: TargetError | None = None
    target_read_at: float | None = None
    pods_mark: frozenset[str] = frozenset()
    pods: tuple[Pod, ...] = ()
    conflict: Conflict | None = None
    decision: Decision | None = None
    snapshot: Snapshot | None = None
    scale_result: ScaleResult | None = None
    cap_result: CapResult | None = None
    changes: list[Change] = field(default_factory=list)
    recommended: tuple[int | None, int | None] | None = None

    @classmethod
    def begin(cls, managed: Managed, now_s: float) -> Tracked:
        """Start with what the object's status says was told last."""
        return cls(managed, State.initial(now_s), managed.observed_status)

    def adopt(self, managed: Managed) -> None:
        """Take the policy as it is now; a new target is read at once."""
        before = self.managed.spec.target_ref if self.managed.spec else None
        after = managed.spec.target_ref if managed.spec else None
        if managed is not self.managed:
            self.target_read_at = None
        if before != after:
            self.scale, self.pods, self.decision, self.snapshot = None, (), None, None
        if managed.flaw is not None:
            self.decision = self.snapshot = None
        self.managed = managed

    @property
    def ready_pods(self) -> int:
        """Pods of the target that are ready."""
        return sum(pod.state is PodState.READY for pod in self.pods)

    @property
    def uses_rollout(self) -> bool:
        """True while a rollout is on its way: the target is then read every tick."""
        return self.scale is not None and self.scale.target.rollout is not None

    def target_is_due(self, now_s: float, mark: frozenset[str], every_s: float, retry_s: float) -> bool:
        """Whether to read the target again: never read, changed, in a rollout, failed a while ago, or long ago."""
        if self.target_read_at is None:
            return True
        age_s = now_s - self.target_read_at
        if self.target_problem is not None:
            return age_s >= retry_s
        return self.uses_rollout or mark != self.pods_mark or age_s >= every_s
