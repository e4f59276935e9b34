"""What an earlier day says is coming, and how far it is to be believed. Pure.

A forecast is silent until it was right for an hour, and muted when what it ordered for did not come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from bandkeeper.api.records import dataclass, replace

MEMORY_S = 7200.0
PROVEN_S = 3600.0
PROVEN_LEADS = 4.0
RIGHT_SHARE = 0.7  # of the time that was compared
MOST_OVER, MOST_UNDER = 1.33, 0.5  # of the work that came: too much costs, too little only helps less
SLACK = 0.5  # replicas that no forecast is wrong by
CLEARLY = 0.1  # of what is held, and at least SLACK: whether less came does not tell
CAME = 0.5  # of a rise that was foretold: with less it was in vain
PATIENCE_STEPS = 2.0  # steps that a rise may be late by
LEVEL_S = 3600.0  # that today and then are compared over: an early crowd is no other level
SAME = 0.2  # a difference that is none
MOST_SCALE = 2.0
TELLING = 0.2  # of a step's work: the level of a quiet hour tells little of a busy one
MUTE_S = 3600.0  # after the first raise in vain, twice as long after each more
LONGEST_MUTE_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Step:
    """Work of one step of an earlier day, in replicas; `ends_s` in seconds from now."""

    ends_s: float
    work: float


def present(steps: Sequence[Step], step_s: float) -> float | None:
    """The work of the step that now lies in; None where it was not recorded."""
    return next((step.work for step in steps if 0 <= step.ends_s < step_s), None)


def ahead(steps: Sequence[Step], until_s: float, step_s: float) -> float | None:
    """The most work of two neighbouring steps from now until then: what only one step shows is no level."""
    near = [step for step in steps if step.ends_s >= 0 and step.ends_s - step_s < until_s]
    both = [min(one.work, other.work) for one, other in pairwise(near) if other.ends_s - one.ends_s < 1.5 * step_s]
    return max(both, default=None)


@dataclass(frozen=True, slots=True)
class Levels:
    """Today beside an earlier day: decaying sums of time and of the work of both."""

    span_s: float = 0.0
    today: float = 0.0
    then: float = 0.0

    def seen(self, today: float, then: float | None, gap_s: float, span_s: float) -> Levels:
        """With `span_s` seconds more, `gap_s` after the last ones."""
        keep = math.exp(-gap_s / LEVEL_S)
        if then is None:
            return Levels(keep * self.span_s, keep * self.today, keep * self.then)
        return Levels(keep * self.span_s + span_s, keep * self.today + span_s * today, keep * self.then + span_s * then)

    @property
    def scale(self) -> float:
        """Today's work over that of then, where the two differ clearly; else 1."""
        if self.then <= 0:
            return 1.0
        scale = self.today / self.then
        return 1.0 if 1 - SAME <= scale <= 1 / (1 - SAME) else min(MOST_SCALE, max(1 / MOST_SCALE, scale))

    def scaled(self, work: float) -> float:
        """What `work` of that day would be today."""
        if TELLING * work <= 0 or self.span_s <= 0:
            return work
        told = min(1.0, self.then / self.span_s / (TELLING * work))
        return work * (1 + (self.scale - 1) * told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raise:
    """A forecast that asked for more than was held: work was to rise from `base` to `target` by `due_s`.

    `most` is the most that came so far.
    """

    base: float
    target: float
    due_s: float
    most: float

    @property
    def came(self) -> bool:
        return self.most >= self.base + CAME * (self.target - self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How right one source of forecasts was.

    Attributes
    ----------
    compared_s, right_s
        Time for which the forecast of that moment was compared with what came, and of that the time it was right for;
        both decay.
    strikes
        Raises in vain since the last one that was right.
    """

    compared_s: float = 0.0
    right_s: float = 0.0
    strikes: int = 0
    muted_until_s: float = -math.inf
    levels: Levels = Levels()
    raised: Raise | None = None
    seen_s: float = -math.inf

    def compared(self, then: float | None, work: float, now_s: float, step_s: float) -> Record:
        """With the work of now beside that of then; where that was not recorded there is nothing to learn."""
        gap_s = max(0.0, now_s - self.seen_s)
        keep = math.exp(-gap_s / MEMORY_S)
        span_s = 0.0 if then is None else min(gap_s, step_s)
        right = then is not None and is_right(self.levels.scaled(then), work)
        return replace(
            self,
            compared_s=keep * self.compared_s + span_s,
            right_s=keep * self.right_s + (span_s if right else 0.0),
            levels=self.levels.seen(work, then, gap_s, span_s),
            seen_s=now_s,
        )._judged(work, now_s)

    def _judged(self, work: float, now_s: float) -> Record:
        """With what became of the last raise."""
        if self.raised is None:
            return self
        raised = replace(self.raised, most=max(self.raised.most, work))
        if raised.came:
            return replace(self, raised=None, strikes=0)
        if now_s < raised.due_s:
            return replace(self, raised=raised)
        mute_s = min(LONGEST_MUTE_S, MUTE_S * 2.0 ** min(self.strikes, 16))
        return replace(self, raised=None, strikes=self.strikes + 1, muted_until_s=now_s + mute_s)

    def proven(self, lead_s: float) -> bool:
        """Whether it was right often and long enough."""
        enough_s = min(0.8 * MEMORY_S, max(PROVEN_S, PROVEN_LEADS * lead_s))
        return self.compared_s >= enough_s and self.right_s >= RIGHT_SHARE * self.compared_s

    def muted(self, now_s: float) -> bool:
        """Whether it raised in vain a short while ago."""
        return now_s < self.muted_until_s

    def raising(self, target: float, work: float, rise_s: float, now_s: float, step_s: float) -> Record:
        """Ordered for `target`, which is to be half there in `rise_s`; the raise under way is judged first."""
        if self.raised is not None:
            return self
        due_s = now_s + rise_s + PATIENCE_STEPS * step_s
        return replace(self, raised=Raise(base=work, target=target, due_s=due_s, most=work))


NO_RECORD = Record()


def is_right(expected: float, work: float) -> bool:
    """Neither clearly more than what came, nor far less."""
    return MOST_UNDER * work - SLACK <= expected <= MOST_OVER * work + SLACK


def is_clear(target: float, held: float) -> bool:
    """Whether it is so much more than what is held anyway that one can tell whether it came."""
    return target > held + max(SLACK, CLEARLY * held)


def rise_s(steps: Sequence[Step], base: float, target: float) -> float:
    """Seconds until half of the rise is there."""
    half = base + CAME * (target - base)
    return next((step.ends_s for step in steps if step.ends_s >= 0 and step.work >= half), 0.0)
