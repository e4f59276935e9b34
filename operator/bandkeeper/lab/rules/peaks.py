"""Three rules that remember peaks of work: Q (a percentile), M (the maximum) and L (levels and their returns)."""

from __future__ import annotations

import math
from collections import deque
from typing import ClassVar

from bandkeeper.api.signals import Signal
from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.offered import Work, total
from bandkeeper.lab.rules.rule import Setting, View, Want

MEMORY_S = 600.0
DRAIN_S = 60.0
LEVEL = 0.5
GAPS = 10
HOLD_FACTOR = 1.15
HOLD_EXTRA_S = 15.0
LONGEST_HOLD_S = 2400.0
UNKNOWN_HOLD_S = 900.0
LEVELS_BELOW = 3


class _PeakRule:
    """What the three share: work in replicas, known constants, and a memory."""

    source: ClassVar[str] = "this project's experiments"
    hindsight: ClassVar[bool] = False
    published: ClassVar[float]
    factors: ClassVar[tuple[float, ...]]

    def __init__(self, setting: Setting, *, factor: float) -> None:
        self._factor = factor
        self._cold_start_s = setting.server.cold_start.median_s
        self._work = Work(setting.server)

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """Factors over what is remembered."""
        return tuple(
            Choice(f"x{factor:.4g}", {"factor": factor}, default=factor == cls.published) for factor in cls.factors
        )

    def decide(self, view: View) -> Want:
        """Without a rate it holds."""
        work = self._work.observe(view)
        return Want(view.replicas if work is None else max(1, self._wanted(work, view)))

    def _wanted(self, work: float, view: View) -> int:
        raise NotImplementedError

    def _drained(self, work: float, view: View) -> int:
        """Replicas that clear the queue in a minute, with what it grows by until they come; 0 while nothing waits."""
        waiting = total(view.metrics.latest(Signal.REQUESTS_WAITING)) or 0.0
        per_s = self._work.sustainable_per_s
        if not waiting or per_s is None:
            return 0
        backlog_s = waiting / per_s + max(0.0, work - view.ready) * self._cold_start_s
        return math.ceil(min(work + backlog_s / DRAIN_S, 2 * work + 2))


class Percentile(_PeakRule):
    """Q: 1.3 x the 90th percentile of the work of the last ten minutes."""

    title: ClassVar[str] = "Q: percentile of recent work"
    published: ClassVar[float] = 1.3
    factors: ClassVar[tuple[float, ...]] = (1.1, 1.3, 1.5, 1.8, 2.1)

    def __init__(self, setting: Setting, *, factor: float) -> None:
        super().__init__(setting, factor=factor)
        self._seen: deque[tuple[float, float]] = deque()

    def _wanted(self, work: float, view: View) -> int:
        _remember(self._seen, view.now_s, work)
        return math.ceil(self._factor * _percentile([value for _, value in self._seen], 0.9))


class Maximum(_PeakRule):
    """M: the largest work of the last ten minutes, and the drain."""

    title: ClassVar[str] = "M: maximum of recent work"
    published: ClassVar[float] = 1.0
    factors: ClassVar[tuple[float, ...]] = (1.0, 1.3, 1.6, 2.0)

    def __init__(self, setting: Setting, *, factor: float) -> None:
        super().__init__(setting, factor=factor)
        self._seen: deque[tuple[float, float]] = deque()

    def _wanted(self, work: float, view: View) -> int:
        _remember(self._seen, view.now_s, work)
        held = math.ceil(self._factor * max(value for _, value in self._seen))
        return max(held, self._drained(work, view))


class Levels(_PeakRule):
    """L: each level of half a replica that work reached is held for as long as the gaps between its returns lasted."""

    title: ClassVar[str] = "L: held levels of work"
    published: ClassVar[float] = 1.1
    factors: ClassVar[tuple[float, ...]] = (1.1, 1.25, 1.4, 1.6, 1.9)

    def __init__(self, setting: Setting, *, factor: float) -> None:
        super().__init__(setting, factor=factor)
        self._reached_s: dict[int, float] = {}
        self._gaps_s: dict[int, deque[float]] = {}

    def _wanted(self, work: float, view: View) -> int:
        now_s = view.now_s
        for level in range(1, math.ceil(work / LEVEL) + 1):
            gap_s = now_s - self._reached_s.get(level, now_s)
            if gap_s > self._cold_start_s:
                self._gaps_s.setdefault(level, deque(maxlen=GAPS)).append(gap_s)
            self._reached_s[level] = now_s
        held = (level for level, at_s in self._reached_s.items() if now_s - at_s <= self._hold_s(level))
        demand = LEVEL * max(held, default=0)
        return max(math.ceil(self._factor * demand), self._drained(work, view))

    def _hold_s(self, level: int) -> float:
        known = next(
            (self._gaps_s[one] for one in range(level, level - LEVELS_BELOW - 1, -1) if one in self._gaps_s), None
        )
        if known is None:
            return UNKNOWN_HOLD_S
        hold_s = HOLD_FACTOR * _percentile(known, 0.9) + HOLD_EXTRA_S
        return min(LONGEST_HOLD_S, max(2 * self._cold_start_s + 30.0, hold_s))


def _remember(seen: deque[tuple[float, float]], now_s: float, value: float) -> None:
    seen.append((now_s, value))
    while now_s - seen[0][0] > MEMORY_S:
        seen.popleft()


def _percentile(values: list[float] | deque[float], share: float) -> float:
    """Linear between the ordered values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
