"""How long one step of a continuous-batching server takes, learned from what its clients see. Pure.

A step that decodes for b requests takes alpha + beta b, and delta more for each prompt token that it reads. So the mean
time between two tokens is alpha + beta B + delta Q, with B the mean batch and Q the prompt tokens read per step. Both
follow from rates: B is tokens per second times the time between them (Little's law), and B over the token rate is the
time between two steps. No counter of steps is needed.
"""

from __future__ import annotations

import math

from bandkeeper.api.records import dataclass, replace
from bandkeeper.model.curve import LoadCurve

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]

FULL_BATCH = 64.0
"""The batch at which the prior says that a step takes 1.9 times as long as an empty one."""
_PRIOR_STRETCH = 0.9
_PRIOR_PROMPT = 0.25  # delta over beta: a token read costs less than a token made
_PRIOR_ERROR = 0.5  # of each prior parameter, as a share
_TOLD_ERROR = 0.2  # of each parameter that a person measured, next to the others
_TOLD_SCALE = 0.3  # of all of them together
_TRIED = 5.0  # observations, after which what was measured by a person is like what was learned
_NOISE = 0.05  # of one observation, as a share
_FORGET = 0.08  # by one whole observation, along its direction, and only where this much is known:
_KNOWN = 8.0
_LEAST_BASE = 0.2  # of a step, that alpha is taken for: beyond it rates tell little
_OUTLIER = 2.0  # standard deviations of one observation
_CONVINCED = 1.5  # whole observations that miss in a row, on one side: no outliers, but another server
_UNSURE: Vector = (_PRIOR_ERROR, _PRIOR_ERROR, _PRIOR_ERROR)
_ZERO: Matrix = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
_UNIT: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted time and its standard error, in seconds."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class StepFit:
    """Recursive least squares over (alpha, beta, delta), in seconds, seconds per request and seconds per prompt token.

    It forgets only along the direction of an observation, so that what is not excited keeps what was learned, and
    starts from a prior in which the shape is known to one half and the scale is that of the first observation.
    Batch and prompt tokens are rates times the time that was measured, so its noise is in them too and would pass for
    a slope under a flat load: the pull is along what the rates say, and only the miss is what was measured.
    An outlier counts as what is just believable, unless more follow: `missed` is their weight, with their sign.
    """

    parameters: Vector = (0.0, 0.0, 0.0)
    information: Matrix = _ZERO
    observations: float = 0.0
    missed: float = 0.0
    guess: bool = False
    told: bool = False

    @classmethod
    def of_profile(cls, alpha_s: float, beta_s: float | None, delta_s: float | None, observations: float) -> StepFit:
        """By what a person measured, whose errors go together; what was not told is as without it."""
        beta, delta = beta_s, delta_s
        if beta is None:
            beta = alpha_s * _PRIOR_STRETCH / FULL_BATCH
        if delta is None:
            delta = _PRIOR_PROMPT * beta
        errors = [_PRIOR_ERROR if one is None else _TOLD_ERROR for one in (alpha_s, beta_s, delta_s)]
        apart = _guessed((alpha_s, beta, delta), observations, (errors[0], errors[1], errors[2]))
        along = _times(apart.information, apart.parameters)
        share = _TOLD_SCALE**2 / (1 + _TOLD_SCALE**2 * _dot(apart.parameters, along))
        return replace(apart, information=_plus(apart.information, -share, along, 0.0, along), told=True)

    def seen(self, batch: float, prompt_tokens: float, token_s: float, weight: float) -> StepFit:
        """With one more observation: mean batch, prompt tokens per step, mean time between two tokens.

        `weight` is 1 for a window of its own, and as much less as it shares with the one before.
        """
        start = (
            self._scaled(batch, prompt_tokens, token_s) if self.observations else _prior(batch, prompt_tokens, token_s)
        )
        expected_s = start._expected_s(batch / token_s, prompt_tokens / token_s)
        x = (1.0, batch * expected_s / token_s, prompt_tokens * expected_s / token_s)
        noise_s = _NOISE * max(token_s, expected_s)
        along = _times(start.information, x)
        news = _dot(x, along)
        forget = _FORGET * weight / news if news * noise_s**2 > _KNOWN else 0.0
        certainty = weight / noise_s**2
        information = _plus(start.information, certainty, x, -forget, along)
        miss_s = token_s - _dot((1.0, batch, prompt_tokens), start.parameters)
        missed, believed_s = start._believed(miss_s, _OUTLIER * noise_s, weight)
        if self.told and missed:
            return self._doubted(missed, batch, prompt_tokens, token_s, weight)
        pull = certainty * believed_s
        step = _solved(information, (pull * x[0], pull * x[1], pull * x[2]))
        parameters = _bounded(information, _sum(start.parameters, step))
        observations = start.observations + weight
        return StepFit(parameters, information, observations, missed, told=self.told and observations < _TRIED)

    def _doubted(self, missed: float, batch: float, prompt_tokens: float, token_s: float, weight: float) -> StepFit:
        """What a person measured is not what is seen: not the same servers if that lasts, and a beginning if not."""
        observations = self.observations + weight
        if abs(missed) <= _CONVINCED:
            return replace(self, missed=missed, observations=observations)
        return replace(self, guess=True)._scaled(batch, prompt_tokens, token_s)

    def _believed(self, miss_s: float, limit_s: float, weight: float) -> tuple[float, float]:
        """What is missed in a row by now, and as much of this miss as is taken for true."""
        if abs(miss_s) <= limit_s:
            return 0.0, miss_s
        missed = math.copysign(weight, miss_s) + (self.missed if self.missed * miss_s > 0 else 0.0)
        return missed, miss_s if abs(missed) > _CONVINCED else math.copysign(limit_s, miss_s)

    def loosened(self) -> StepFit:
        """The same as a guess of another server: its shape known to one half, its scale from the next observation."""
        return _guessed(self.parameters, self.observations, guess=True)

    def _scaled(self, batch: float, prompt_tokens: float, token_s: float) -> StepFit:
        if not self.guess:
            return self
        factor = token_s / self.token_s(batch, prompt_tokens)
        alpha, beta, delta = self.parameters
        share = 1 / factor**2
        one, other, third = ((row[0] * share, row[1] * share, row[2] * share) for row in self.information)
        return StepFit((factor * alpha, factor * beta, factor * delta), (one, other, third), self.observations)

    def token_s(self, batch: float, prompt_tokens: float) -> float:
        """Mean time between two tokens at a mean batch and prompt tokens per step."""
        return max(1e-9, _dot((1.0, batch, prompt_tokens), self.parameters))

    def work_s(self, prompt_tokens: float, output_tokens: float, batch: float) -> Estimate:
        """Replica-seconds that so many tokens take at a batch; needs an observation."""
        each = (output_tokens / batch, output_tokens, prompt_tokens)
        return Estimate(_dot(each, self.parameters), self.deviation(each))

    def deviation(self, along: Vector) -> float:
        """Standard error of what changes so much with each parameter."""
        return math.sqrt(max(0.0, _dot(along, _solved(self.information, along))))

    def moved(self, by: Vector) -> StepFit:
        """The same with other step times."""
        return replace(self, parameters=_sum(self.parameters, by))

    def decode_s(self, batch: float) -> Estimate:
        """One step that decodes for so many requests and reads no prompt; needs an observation."""
        x = (1.0, batch, 0.0)
        return Estimate(_dot(x, self.parameters), math.sqrt(max(0.0, _dot(x, _solved(self.information, x)))))

    def _expected_s(self, tokens_per_s: float, prompt_per_s: float) -> float:
        """The time between two tokens at rates of one replica."""
        alpha, beta, delta = self.parameters
        return alpha / max(_LEAST_BASE, 1 - beta * tokens_per_s - delta * prompt_per_s)

    def curve(self, batch: float, prompts_per_output: float) -> LoadCurve:
        """Throughput against the share of `batch` in process, for so many prompt tokens per output token."""
        alpha, beta, delta = self.parameters
        growth = batch * (beta + delta * prompts_per_output)
        return LoadCurve(growth / alpha if alpha > 0 else growth / 1e-9)


NO_STEPS = StepFit()


def _guessed(parameters: Vector, observations: float, errors: Vector = _UNSURE, *, guess: bool = False) -> StepFit:
    one, other, third = (1 / (error * max(value, 1e-9)) ** 2 for error, value in zip(errors, parameters, strict=True))
    return StepFit(parameters, _diagonal(one, other, third), observations, guess=guess)


def _diagonal(one: float, other: float, third: float) -> Matrix:
    return ((one, 0.0, 0.0), (0.0, other, 0.0), (0.0, 0.0, third))


def _prior(batch: float, prompt_tokens: float, token_s: float) -> StepFit:
    slope = _PRIOR_STRETCH / FULL_BATCH
    alpha = token_s / (1 + slope * (batch + _PRIOR_PROMPT * prompt_tokens))
    return _guessed((alpha, alpha * slope, alpha * slope * _PRIOR_PROMPT), 0.0)


def _bounded(information: Matrix, likeliest: Vector) -> Vector:
    """The likeliest parameters of which none is below 0: what one that is held at 0 leaves, the others take over."""
    best, free = likeliest, (True, True, True)
    while min(best) < 0:
        free = (free[0] and best[0] > 0, free[1] and best[1] > 0, free[2] and best[2] > 0)
        best = _solved(_among(information, free), _kept(_times(information, likeliest), free))
    return best


def _among(matrix: Matrix, free: tuple[bool, bool, bool]) -> Matrix:
    """The matrix for `free` alone; the others stand by themselves."""
    one, other, third = (_kept(row, free) if free[index] else _UNIT[index] for index, row in enumerate(matrix))
    return one, other, third


def _kept(vector: Vector, free: tuple[bool, bool, bool]) -> Vector:
    return (vector[0] * free[0], vector[1] * free[1], vector[2] * free[2])


def _dot(left: Vector, right: Vector) -> float:
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


def _sum(left: Vector, right: Vector) -> Vector:
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2])


def _times(matrix: Matrix, vector: Vector) -> Vector:
    return (_dot(matrix[0], vector), _dot(matrix[1], vector), _dot(matrix[2], vector))


def _plus(matrix: Matrix, a: float, x: Vector, b: float, y: Vector) -> Matrix:
    """matrix + a x x' + b y y'."""
    return (
        _row(matrix[0], a * x[0], x, b * y[0], y),
        _row(matrix[1], a * x[1], x, b * y[1], y),
        _row(matrix[2], a * x[2], x, b * y[2], y),
    )


def _row(row: Vector, a: float, x: Vector, b: float, y: Vector) -> Vector:
    return (row[0] + a * x[0] + b * y[0], row[1] + a * x[1] + b * y[1], row[2] + a * x[2] + b * y[2])


def _solved(matrix: Matrix, right: Vector) -> Vector:
    """The solution of a symmetric positive definite system, by Cholesky after scaling the diagonal to 1."""
    scale = tuple(1 / math.sqrt(matrix[index][index]) for index in range(3))
    a10 = matrix[1][0] * scale[1] * scale[0]
    a20, a21 = matrix[2][0] * scale[2] * scale[0], matrix[2][1] * scale[2] * scale[1]
    l11 = math.sqrt(max(1e-12, 1 - a10 * a10))
    l21 = (a21 - a20 * a10) / l11
    l22 = math.sqrt(max(1e-12, 1 - a20 * a20 - l21 * l21))
    y0 = right[0] * scale[0]
    y1 = (right[1] * scale[1] - a10 * y0) / l11
    y2 = (right[2] * scale[2] - a20 * y0 - l21 * y1) / l22
    z2 = y2 / l22
    z1 = (y1 - l21 * z2) / l11
    z0 = y0 - a10 * z1 - a20 * z2
    return (z0 * scale[0], z1 * scale[1], z2 * scale[2])
