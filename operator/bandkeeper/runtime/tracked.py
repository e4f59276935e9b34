"""What the loop remembers of one policy between ticks. All of it can be lost: status and cluster tell the rest."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bandkeeper.actuate.outcome import CapResult, Outcome, ScaleResult
from bandkeeper.actuate.replicas import Scale
from bandkeeper.api.snapshot import Pod, PodState, Snapshot
from bandkeeper.api.v1alpha1 import Status, TargetRef
from bandkeeper.decide.decision import Decision
from bandkeeper.decide.state import State
from bandkeeper.kube.discovery import TargetError, TargetProblem
from bandkeeper.runtime.backoff import Backoff as Backoff
from bandkeeper.runtime.conflicts import Conflict
from bandkeeper.runtime.policies import Managed
from bandkeeper.runtime.readings import Readings
from bandkeeper.signals.want import Want

if TYPE_CHECKING:
    from bandkeeper.runtime.cost import Account

PodsMark = frozenset[tuple[str, bool]]
"""Each pod's uid, and whether it ends."""

RECOMMENDED = "recommended"


@dataclass(slots=True, kw_only=True)
class Change:
    """A move that was made (or, in Recommend mode, would have been): what it was before, and the decision.

    `remark` is a sentence about who else sets the value.
    """

    decision: Decision
    from_replicas: int | None = None
    from_cap: int | None = None
    direction: str = ""
    remark: str = ""

    @property
    def message(self) -> str:
        """The decision's message; a recommendation says that it is no more than that."""
        said = f"{self.decision.message} {self.remark}" if self.remark else self.decision.message
        return f"Recommended, not done: {said}" if self.direction == RECOMMENDED else said


def _writes() -> Backoff:
    return Backoff(first_s=1.0, most_s=60.0)


def _reads() -> Backoff:
    return Backoff(first_s=10.0, most_s=60.0)


@dataclass(slots=True)
class Tracked:
    """One policy's memory.

    Attributes
    ----------
    status
        The status as last told; for one who does not lead, as found on the object.
    observed
        What `status` was read from, as long as it is that of the object.
    told, told_at, news
        Whether `status` is what this process told, when it did, and what of it is told at once when it changes.
    reported
        The policy, in the version that was last reported on.
    looked_at
        When a look at it last ended, on the loop's clock.
    looking, acting
        A look at it, or a write for it, is under way.
    overdue
        It was left out of a tick.
    reading
        The read of its target, while under way.
    want
        What was last asked of Prometheus.
    leads
        It was last judged by one who may write for it.
    rights_due_s
        When to ask next whether the writes that it may need are allowed.
    scale_lack, cap_lack
        What such a write would end with, where a right is missing.
    cap_written
        The batch cap last written, so that a change of it is said once.
    readings
        What the servers said of their caps, for an adapter that asks them.
    drift
        The sentence for servers whose cap somebody else changed.
    changes
        Moves since the last report.
    quality_told
        The quality class that was told last, so that a change of it is said once; "" before any was known.
    metered_s
        Until when the GPU time is accounted for; None where another process does it.
    account
        What was counted, as long as this process leads.
    """

    managed: Managed
    state: State
    looked_at: float
    status: Status = field(default_factory=Status)
    observed: Mapping[str, Any] | None = None
    told: bool = False
    told_at: float = -math.inf
    news: tuple[object, ...] = ()
    reported: Managed | None = None
    looking: bool = False
    acting: bool = False
    overdue: bool = False
    leads: bool = False
    reading: asyncio.Task[None] | None = None
    scale: Scale | None = None
    target_problem: TargetError | None = None
    target_read_at: float | None = None
    target_retry: Backoff = field(default_factory=_reads)
    pods_mark: PodsMark = frozenset()
    pods: tuple[Pod, ...] = ()
    want: Want | None = None
    conflict: Conflict | None = None
    decision: Decision | None = None
    snapshot: Snapshot | None = None
    scale_result: ScaleResult | None = None
    scale_retry: Backoff = field(default_factory=_writes)
    scale_lack: ScaleResult | None = None
    cap_result: CapResult | None = None
    cap_retry: Backoff = field(default_factory=_writes)
    cap_lack: CapResult | None = None
    rights_due_s: float = -math.inf
    cap_written: int | None = None
    readings: Readings = field(default_factory=Readings)
    drift: str = ""
    changes: list[Change] = field(default_factory=list)
    quality_told: str = ""
    metered_s: float | None = None
    account: Account | None = None

    @classmethod
    def begin(cls, managed: Managed, now_s: float) -> Tracked:
        """Nothing is known of it yet."""
        return cls(managed, State.initial(now_s), now_s)

    def adopt(self, managed: Managed) -> None:
        """Take the policy as it is now: what failed is tried at once, and a new target shares nothing with the old."""
        if managed is self.managed:
            return
        other_target = self.target_ref != (managed.spec.target_ref if managed.spec else None)
        if managed.adapter is not self.managed.adapter:
            self.readings, self.drift = Readings(), ""
        self.managed = managed
        self.target_read_at = self.want = None
        self.forget_rights()
        self.target_retry.clear()
        self.scale_retry.clear()
        self.cap_retry.clear()
        if other_target:
            self.scale = self.target_problem = self.cap_written = None
            self.pods, self.pods_mark = (), frozenset()
            self.leads = False
            self.unjudged()
            self.hands_off()

    def unjudged(self) -> None:
        """Nothing can be decided now."""
        self.decision = self.snapshot = None

    def hands_off(self) -> None:
        """Nothing is to be written, so nothing failed."""
        self.scale_result = self.cap_result = None
        self.drift = ""
        self.scale_retry.clear()
        self.cap_retry.clear()
        self.forget_rights()

    def forget_rights(self) -> None:
        """Whatever was asked about them, ask again before the next write."""
        self.scale_lack = self.cap_lack = None
        self.rights_due_s = -math.inf

    def foretell(self) -> None:
        """Let a missing right show before a write is refused for it."""
        if self.scale_lack and (self.scale_result is None or self.scale_result.outcome is Outcome.UNCHANGED):
            self.scale_result = self.scale_lack
        if self.cap_lack and (self.cap_result is None or self.cap_result.outcome is Outcome.UNCHANGED):
            self.cap_result = self.cap_lack

    @property
    def target_ref(self) -> TargetRef | None:
        """The target that the policy names, None where its spec cannot be read."""
        return self.managed.spec.target_ref if self.managed.spec else None

    @property
    def reads_back(self) -> bool:
        """Whether the caps in force are asked of the servers."""
        return self.managed.adapter is not None and self.managed.adapter.reads_back

    @property
    def caps_awaited(self) -> bool:
        """Whether ready servers were not asked for their caps yet, so that what is in force is not known."""
        return self.reads_back and not self.readings.begun and self.ready_pods > 0

    @property
    def ready_pods(self) -> int:
        """Pods of the target that are ready."""
        return sum(pod.state is PodState.READY for pod in self.pods)

    @property
    def busy(self) -> bool:
        """Whether the next look must wait."""
        return self.looking or self.acting

    def target_is_due(self, now_s: float, mark: PodsMark, every_s: float) -> bool:
        """Whether to read the target: never read, failed a while ago, in a rollout, its pods changed, or long ago."""
        if self.target_problem is not None:
            return self.target_read_at is None or not self.target_retry.holds(now_s)
        if self.target_read_at is None or self.scale is None:
            return True
        rollout = self.scale.target.rollout
        rolls = rollout is not None and not rollout.paused  # a pause may last for days
        return rolls or mark != self.pods_mark or now_s - self.target_read_at >= every_s

    def target_found(self, scale: Scale, mark: PodsMark) -> None:
        """The target was read; `mark` is of its pods from before that, so that no later change is missed."""
        self.scale, self.pods_mark, self.target_problem = scale, mark, None
        self.target_retry.clear()

    def target_failed(self, problem: TargetError, now_s: float) -> None:
        """The target was not read. What was known of it holds while the API server merely does not answer."""
        self.target_problem = problem
        self.target_retry.failed(now_s)
        if problem.problem is not TargetProblem.UNAVAILABLE:
            self.scale, self.pods = None, ()
