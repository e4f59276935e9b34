"""What prompts do to the steps of a continuous-batching replica, and what a new prompt meets there. Pure.

A step that reads prompts lasts longer for the whole batch; what comes meanwhile is read together in the next one. With
several replicas the router sends less to one that is held up, so that fewer prompts meet in a step.
"""

from __future__ import annotations

import math

from bandkeeper.api.records import dataclass

FULLEST = 0.98  # of a replica's time, for prompts; keeps sums finite
_PASSES = 6
_WIDEST = 3.0
_UNIFORM = 1 / 12  # variance of what is left of a step, as a share of it
_LEAST_PIECE = 1e-3
_MANY_PIECES = 20


@dataclass(frozen=True, slots=True)
class Spread:
    """A log-normal time by its mean and its relative standard deviation."""

    mean_s: float
    relative: float

    @classmethod
    def of(cls, mean_s: float, variance: float) -> Spread:
        """By its mean and its variance, as far as the 95th percentile grows with it."""
        return cls(mean_s, min(_WIDEST, math.sqrt(max(0.0, variance)) / mean_s) if mean_s > 0 else 0.0)

    def within(self, limit_s: float) -> float:
        """Share that is at most so long."""
        if limit_s <= 0 or self.mean_s <= 0 or self.relative <= 1e-9:
            return float(limit_s >= self.mean_s)
        variance = math.log1p(self.relative**2)
        deviation = (math.log(limit_s / self.mean_s) + variance / 2) / math.sqrt(2 * variance)
        return 0.5 * math.erfc(-deviation)


@dataclass(frozen=True, slots=True)
class Reading:
    """How prompts are read by one replica.

    Attributes
    ----------
    carry, prompts, chunk_s
        Share of steps that carry prompts, how long all takes that comes to one, and the longest that one step takes.
    slower_s
        What prompts add to a step, on average.
    residual, first
        Of a request that has a place: until the next step begins, and, beyond the decoding of that step, until the
        first token is out.
    """

    carry: float
    prompts: Spread
    chunk_s: float
    slower_s: float
    residual: Spread
    first: Spread

    def within(self, limit_s: float) -> float:
        """Share of steps that prompts make longer by no more."""
        if limit_s < 0:
            return 0.0
        return 1 - self.carry * (1 - _piece_within(self.prompts, self.chunk_s, limit_s))


def reading(rate: float, base_s: float, prompt_s: float, spread: float, chunk_s: float, replicas: int) -> Reading:
    """For so many prompts per second, of `prompt_s` each, in steps that take `base_s` without any."""
    own = Spread(prompt_s, spread)
    read_s = prompt_s + (_pieces(own, chunk_s) - 1) * base_s  # each further chunk is in a step of its own
    busy = min(FULLEST, rate * read_s)
    # How much a replica's arrivals are like those of one that is alone, from runs of the simulator.
    overlap = replicas ** -min(1.0, max(0.4, 1.3 - 1.4 * busy))
    step_s = base_s / (1 - busy)
    squared = read_s**2 * (1 + spread**2)
    variance = rate * step_s * squared / (1 - overlap * busy**2)
    second = step_s**2 + variance
    came = rate * step_s
    carry = (1 - overlap) * min(1.0, came) + overlap * _some(rate, step_s, base_s, read_s, spread)
    each = max(1.0, came / carry) if carry > 0 else 1.0
    number = overlap * max(0.0, each + each * came * second / step_s**2 - each**2)  # variance, where there are some
    prompts = Spread.of(each * prompt_s, prompt_s**2 * (each * spread**2 + number))
    third = max(  # as of the prompts that came to one step, or as of a gamma distribution
        step_s**3 + 3 * step_s * variance + came * (read_s * (1 + spread**2)) ** 3,
        second * (step_s + 2 * variance / step_s),
    )
    # A request comes as it likes, and meets long steps more often, or soon after the step's end that let it in.
    alone_s, alone_squared = second / step_s, third / step_s
    fresh_s = min((0.5 + busy / 2) * step_s, alone_s / 2)
    residual_s = overlap * alone_s / 2 + (1 - overlap) * fresh_s
    residual_squared = overlap * alone_squared / 3 + (1 - overlap) * (fresh_s**2 + _UNIFORM * second)
    others_s = overlap * busy * alone_s
    others_variance = overlap * rate * alone_s * squared + (read_s * spread) ** 2
    together = overlap * (busy + busy**2) * alone_squared + residual_squared - (residual_s + others_s) ** 2
    return Reading(
        carry=min(1.0, carry * _pieces(prompts, chunk_s)),
        prompts=prompts,
        chunk_s=chunk_s,
        slower_s=came * prompt_s,
        residual=Spread.of(residual_s, residual_squared - residual_s**2),
        first=Spread.of(residual_s + others_s + read_s, max(0.0, together) + others_variance),
    )


def _some(rate: float, step_s: float, base_s: float, read_s: float, spread: float) -> float:
    """Share of steps in which a prompt came, where they come as they like: steps that carry are longer."""
    if rate <= 0:
        return 0.0
    none = math.exp(-rate * step_s)
    for _ in range(_PASSES):
        each = max(1.0, rate * step_s / max(1e-9, 1 - none))
        shape = each / max(1e-6, spread**2 + 1 - 1 / each)
        after = math.exp(-rate * base_s) * (1 + rate * each * read_s / shape) ** -shape
        none = after / (1 - math.exp(-rate * base_s) + after)
    return 1 - none


def _pieces(prompts: Spread, chunk_s: float) -> float:
    """Steps that prompts are spread over, on average: one more for each whole chunk."""
    if prompts.mean_s <= 0 or chunk_s <= 0:
        return 1.0
    if prompts.mean_s > _MANY_PIECES * chunk_s:
        return prompts.mean_s / chunk_s + 0.5
    pieces, start_s = 1.0, chunk_s
    while (more := 1 - prompts.within(start_s)) > _LEAST_PIECE:
        pieces += more
        start_s += chunk_s
    return pieces


def _piece_within(prompts: Spread, chunk_s: float, limit_s: float) -> float:
    """Share of the pieces that take no longer."""
    if prompts.mean_s <= 0 or limit_s >= chunk_s > 0:
        return 1.0
    pieces = _pieces(prompts, chunk_s)
    if pieces <= 1 + _LEAST_PIECE:
        return prompts.within(limit_s)
    if prompts.mean_s > _MANY_PIECES * chunk_s:
        return limit_s / chunk_s / pieces
    last, start_s = 0.0, 0.0
    while (below := prompts.within(start_s)) < 1 - _LEAST_PIECE:
        last += prompts.within(start_s + limit_s) - below
        start_s += chunk_s
    return min(1.0, last / pieces)
