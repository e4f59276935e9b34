"""Load: when requests arrive and how many tokens they have.

Open loads are Poisson arrivals of a given rate over time, drawn by thinning from the seed alone: the same seed and
profile give the same arrivals and the same tokens to every workload, however the clock ticks. Closed loads are clients
that wait for their answers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .request import Request

Rate = Annotated[float, Field(ge=0)]
Point = tuple[Annotated[float, Field(ge=0)], Rate]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(_Checked):
    seed: int = 1

    @property
    def peak(self) -> float:
        """An upper bound of the rate, requests/s."""
        raise NotImplementedError

    def rate(self, at_s: float) -> float:
        """Requests/s at `at_s` seconds after the load's start."""
        raise NotImplementedError


class ConstantLoad(_Open):
    kind: Literal["constant"]
    rate_per_s: Rate

    @property
    def peak(self) -> float:
        return self.rate_per_s

    def rate(self, at_s: float) -> float:
        return self.rate_per_s


class _Points(_Open):
    """Points [t_s, requests/s]; the last rate holds after the last point, or all begins again with `repeat`."""

    points: Annotated[tuple[Point, ...], Field(min_length=1)]
    repeat: bool = False

    @model_validator(mode="after")
    def _rising(self) -> _Points:
        times = [time for time, _ in self.points]
        if times[0] != 0 or any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("points must begin at t = 0 and their times must rise")
        if self.repeat and len(self.points) < 2:
            raise ValueError("repeat needs at least two points: the last one's time is the period")
        return self

    @property
    def peak(self) -> float:
        return max(rate for _, rate in self.points)

    def _folded(self, at_s: float) -> float:
        return at_s % self.points[-1][0] if self.repeat else at_s


class LinearLoad(_Points):
    kind: Literal["linear"]

    def rate(self, at_s: float) -> float:
        at_s = self._folded(at_s)
        for (t0, r0), (t1, r1) in pairwise(self.points):
            if at_s < t1:
                return r0 + (r1 - r0) * (at_s - t0) / (t1 - t0)
        return self.points[-1][1]


class StepLoad(_Points):
    kind: Literal["steps"]

    def rate(self, at_s: float) -> float:
        at_s = self._folded(at_s)
        return next(rate for time, rate in reversed(self.points) if time <= at_s)


class SineLoad(_Open):
    """mean + amplitude x sin(2 pi (t - phase_s) / period_s), never below 0."""

    kind: Literal["sine"]
    mean_per_s: Rate
    amplitude_per_s: Rate
    period_s: Annotated[float, Field(gt=0)]
    phase_s: float = 0.0

    @property
    def peak(self) -> float:
        return self.mean_per_s + self.amplitude_per_s

    def rate(self, at_s: float) -> float:
        wave = math.sin(2 * math.pi * (at_s - self.phase_s) / self.period_s)
        return max(0.0, self.mean_per_s + self.amplitude_per_s * wave)


class ClosedLoad(_Checked):
    """`clients` that each wait for their answer, think for `think_s` on average (exponential), and ask again."""

    kind: Literal["closed"]
    clients: Annotated[int, Field(ge=0)]
    think_s: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 1


OpenLoad = ConstantLoad | LinearLoad | StepLoad | SineLoad
Load = Annotated[OpenLoad | ClosedLoad, Field(discriminator="kind")]


class FixedLength(_Checked):
    kind: Literal["fixed"]
    value: Annotated[int, Field(ge=1)]

    @property
    def longest(self) -> int:
        return self.value

    def draw(self, rng: Random) -> int:
        return self.value


class UniformLength(_Checked):
    kind: Literal["uniform"]
    low: Annotated[int, Field(ge=1)]
    high: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> UniformLength:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self

    @property
    def longest(self) -> int:
        return self.high

    def draw(self, rng: Random) -> int:
        return rng.randint(self.low, self.high)


class LognormalLength(_Checked):
    """median x exp(sigma x normal), clipped to [min, max]."""

    kind: Literal["lognormal"]
    median: Annotated[float, Field(gt=0)]
    sigma: Annotated[float, Field(ge=0)]
    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] = 32_768

    @model_validator(mode="after")
    def _ordered(self) -> LognormalLength:
        if self.min > self.max:
            raise ValueError("min must not be above max")
        return self

    @property
    def longest(self) -> int:
        return self.max

    def draw(self, rng: Random) -> int:
        drawn = round(self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0)))
        return max(self.min, min(self.max, drawn))


Length = Annotated[FixedLength | UniformLength | LognormalLength, Field(discriminator="kind")]


class Tokens(_Checked):
    """Prompt and output tokens of a request. An answer of the longest output ends for `length`, others for `stop`."""

    prompt: Length = FixedLength(kind="fixed", value=512)
    output: Length = LognormalLength(kind="lognormal", median=128, sigma=0.6, min=8, max=1024)


class Arrivals:
    """The requests of one load, in order of time.

    `next_s` is when `pop` has to be called next; infinity: not before an answer comes, or never.
    """

    def __init__(self, load: Load, tokens: Tokens, start_s: float) -> None:
        self.load = load
        self.start_s = start_s
        self.next_s = math.inf
        self._tokens = tokens
        self._when = Random(f"{load.seed}/arrivals")
        self._what = Random(f"{load.seed}/tokens")
        self._candidate_s = 0.0
        self._clients: list[float] = []
        if isinstance(load, ClosedLoad):
            self._clients = [start_s] * load.clients
            self._peek_client()
        elif load.peak > 0:
            self._draw_candidate(load)

    @property
    def closed(self) -> bool:
        return isinstance(self.load, ClosedLoad)

    def offered_per_s(self, now_s: float) -> float | None:
        """The rate that the profile asks for now; None for a closed loop, whose rate is the servers' own."""
        return None if isinstance(self.load, ClosedLoad) else self.load.rate(max(0.0, now_s - self.start_s))

    def pop(self) -> Request | None:
        """Takes what comes at `next_s`: a request, or None where the thinning drops the candidate."""
        at_s = self.next_s
        if isinstance(self.load, ClosedLoad):
            heapq.heappop(self._clients)
            self._peek_client()
            return self._request(at_s, self._think)
        kept = self._when.random() * self.load.peak < self.load.rate(self._candidate_s)
        self._draw_candidate(self.load)
        return self._request(at_s, None) if kept else None

    def _request(self, at_s: float, done: Callable[[float], None] | None) -> Request:
        prompt = self._tokens.prompt.draw(self._what)
        output = self._tokens.output.draw(self._what)
        return Request(at_s, prompt, output, longest=output >= self._tokens.output.longest, done=done)

    def _draw_candidate(self, load: OpenLoad) -> None:
        self._candidate_s += self._when.expovariate(load.peak)
        self.next_s = self.start_s + self._candidate_s

    def _think(self, answered_s: float) -> None:
        assert isinstance(self.load, ClosedLoad)
        pause_s = self._when.expovariate(1.0 / self.load.think_s) if self.load.think_s else 0.0
        heapq.heappush(self._clients, answered_s + pause_s)
        self._peek_client()

    def _peek_client(self) -> None:
        self.next_s = self._clients[0] if self._clients else math.inf
