"""How many requests miss a promise at a utilisation, and how much capacity keeps the misses within it. Pure.

The share that misses is taken as c0 + c rho^e: c0 misses however many replicas there are (a prompt longer than the
threshold allows), the rest grows with what the replicas have to do. Both are learned from what was measured.
"""

from __future__ import annotations

import math

from bandkeeper.api.records import dataclass

_MEMORY_S = 1800.0
_PRIOR_WEIGHT = 30.0  # seconds of observation that the prior counts for, at each of two utilisations:
_PRIOR_AT = (1.0, 0.2)
_SQUARES = sum(at * at for at in _PRIOR_AT)
_RIPE_S = 120.0
_HOPELESS_S = 600.0  # to give a promise up takes longer than to size for it
_LEAST_ROOM = 0.25  # of what may miss: with less left, replicas are tried as if all misses came from load
_MOST_OVER = 1.3  # times what replicas were there for: so far the power is believed, beyond it work queues
_TRIED = 0.25  # standard deviation of rho^e over its mean: so different loads tell what load does not cause


@dataclass(frozen=True, slots=True)
class MissFit:
    """Weighted moments of (rho^e, share missed), in seconds of observation.

    `goal` is the share that is aimed at, `prior` the utilisation at which the prior expects that, `power` is e.
    """

    goal: float
    power: float
    prior: float
    weight: float = 0.0
    load: float = 0.0
    missed: float = 0.0
    load_load: float = 0.0
    load_missed: float = 0.0

    def seen(self, load: float, missed: float, span_s: float) -> MissFit:
        """With `span_s` seconds more; `load` is the mean of rho^e, `missed` the share of that time's requests."""
        keep = math.exp(-span_s / _MEMORY_S)
        return MissFit(
            self.goal,
            self.power,
            self.prior,
            weight=keep * self.weight + span_s,
            load=keep * self.load + span_s * load,
            missed=keep * self.missed + span_s * missed,
            load_load=keep * self.load_load + span_s * load * load,
            load_missed=keep * self.load_missed + span_s * load * missed,
        )

    @property
    def ripe(self) -> bool:
        """Whether enough was seen to size by."""
        return self.weight >= _RIPE_S

    def line(self) -> tuple[float, float]:
        """c0 and c, neither below 0. What is seen outweighs the prior the more, the longer it is seen."""
        slope, each = self.goal / self.prior**self.power, self._prior_weight
        weight = self.weight + len(_PRIOR_AT) * each
        load = self.load + each * sum(_PRIOR_AT)
        missed = self.missed + each * slope * sum(_PRIOR_AT)
        load_load = self.load_load + each * _SQUARES
        load_missed = self.load_missed + each * slope * _SQUARES
        c = (load_missed - load * missed / weight) / (load_load - load * load / weight)
        c0 = (missed - c * load) / weight
        if c0 < 0:
            return 0.0, load_missed / load_load
        return (c0, c) if c > 0 else (missed / weight, 0.0)

    @property
    def _prior_weight(self) -> float:
        return _PRIOR_WEIGHT * _RIPE_S / (_RIPE_S + self.weight)

    def margin(self, shape: float) -> float:
        """Replicas per replica of held work that keep the misses at the goal.

        `shape` is the mean of (work / held work)^e over the requests: 1 where work is always what is held. Before it is
        ripe, no more than the prior asks for.
        """
        c0, c = self.line()
        room = self.goal - c0
        if room < _LEAST_ROOM * self.goal:
            room, c = self.goal, self._through_origin()
        asked = float((c * shape / room) ** (1 / self.power))
        return asked if self.ripe else min(asked, shape ** (1 / self.power) / self.prior)

    def unreachable(self, allowed: float) -> bool:
        """Whether more than the `allowed` share misses however many replicas there are: seen at several loads."""
        if self.weight < _HOPELESS_S:
            return False
        load, missed = self.load / self.weight, self.missed / self.weight
        variance = self.load_load / self.weight - load * load
        if variance < (_TRIED * load) ** 2:
            return False
        c = max(0.0, (self.load_missed / self.weight - load * missed) / variance)
        return bool(missed - c * load > allowed)

    def _through_origin(self) -> float:
        slope, squares = self.goal / self.prior**self.power, self._prior_weight * _SQUARES
        return float((self.load_missed + slope * squares) / (self.load_load + squares))


@dataclass(frozen=True, slots=True)
class Shape:
    """Decaying mean of (work / carried work)^e, weighted by work: above 1 where replicas come late."""

    power: float
    work: float = 0.0
    loaded: float = 0.0

    def seen(self, work: float, carried: float, span_s: float) -> Shape:
        """With `span_s` seconds more; `carried` is the work that the replicas were there for."""
        keep = math.exp(-span_s / _MEMORY_S)
        relative = min(_MOST_OVER, work / carried) ** self.power if carried > 0 else 1.0
        return Shape(self.power, keep * self.work + span_s * work, keep * self.loaded + span_s * work * relative)

    @property
    def value(self) -> float:
        """1 before anything was seen."""
        return self.loaded / self.work if self.work > 0 else 1.0
