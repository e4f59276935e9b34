"""HPA's behavior: how far the count may move now, from recorded scale events, and the stabilisation of raises."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bandkeeper.api.v1alpha1 import SelectPolicy
from bandkeeper.decide.policy import RateLimit, ScalingRules
from bandkeeper.decide.state import ScaleEvent

Events = Iterable[ScaleEvent]


def highest(rules: ScalingRules, current: int, events: Events, now_s: float) -> int:
    """The most replicas that scaleUp allows now, at least `current`."""
    if rules.select is SelectPolicy.DISABLED:
        return current
    proposals = [_raised(limit, period_start(current, events, limit.period_s, now_s)) for limit in rules.limits]
    chosen = min(proposals) if rules.select is SelectPolicy.MIN else max(proposals)
    return max(current, chosen)


def lowest(rules: ScalingRules, current: int, events: Events, now_s: float) -> int:
    """The fewest replicas that scaleDown allows now, at most `current`."""
    if rules.select is SelectPolicy.DISABLED:
        return current
    proposals = [_lowered(limit, period_start(current, events, limit.period_s, now_s)) for limit in rules.limits]
    chosen = max(proposals) if rules.select is SelectPolicy.MIN else min(proposals)
    return min(current, chosen)


def period_start(current: int, events: Events, period_s: float, now_s: float) -> int:
    """Replicas a period ago, as the operator's own changes since then tell."""
    return current - sum(event.change for event in events if now_s - event.at_s < period_s)


def _raised(limit: RateLimit, start: int) -> int:
    return math.ceil(start * (1 + limit.value / 100) - 1e-9) if limit.percent else start + limit.value


def _lowered(limit: RateLimit, start: int) -> int:
    return math.floor(start * (1 - limit.value / 100) + 1e-9) if limit.percent else start - limit.value
