"""What latency a fleet of continuous-batching replicas has at a load, a replica count and a cap. Pure.

A replica with b requests works off one in A / b + C seconds: A is alpha for each output token, C is beta for each
output token and delta for each prompt token. So the requests of a fleet are a birth-death queue whose weights have a
closed form, with a geometric tail of those that wait. What a token waits for is the step it comes out of: its batch,
and the prompts read in it. A first token waits for a place, the step under way, and the step that reads its prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bandkeeper.api.records import dataclass, replace
from bandkeeper.api.signals import Signal
from bandkeeper.model.reading import FULLEST, Reading, Spread, reading
from bandkeeper.model.steps import StepFit

CHUNKS = (8192.0, 2048.0, 1024.0, 512.0, 256.0)
"""What a step may read of prompts at most where that is not told, likeliest first: vLLM's default on GPUs of 70 GiB and
more, the one on smaller ones, and what is set for short times between tokens."""
PREDICTED = (
    Signal.TIME_TO_FIRST_TOKEN,
    Signal.INTER_TOKEN_LATENCY,
    Signal.END_TO_END_LATENCY,
    Signal.QUEUE_TIME,
)
CONFIDENT = 0.25
"""A relative standard error up to which a prediction is to be trusted."""

_POINTS = 64  # of the distribution of requests in process
_BATCHES = 12  # equally likely ones that stand for all
_PARTS = 12  # of a wait, the same
_DEVIATIONS = 6.0
_FITS = 1.2  # times more or less than predicted, up to which a measured time between tokens goes with a chunk
_LEAST_ERROR = 0.08  # of the method itself
_LOAD_ERROR = 0.05
_RANK_ERROR = 0.2  # of the share beyond a quantile: between two kinds of steps it is as uncertain as their shares
_NUDGE = 0.1
_BELIEVED = 0.5  # of the step times' errors: next to a simulated server they are twice too large
_ROUNDS = 60
_CLOSE = 5e-4


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked of the whole workload: means, and standard deviations as shares of them.

    Prompt tokens are counted as when the step times were learned: with cached ones, or without.
    """

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    prompt_spread: float = 0.7
    output_spread: float = 0.55


@dataclass(frozen=True, slots=True)
class Latency:
    """The prediction at one (traffic, replicas, cap).

    Attributes
    ----------
    utilization
        Offered work over what the replicas sustain at the cap; from 1 on the queue has no bound.
    batch
        Mean of the requests in process per replica, at most the cap.
    waiting_share, wait_s
        Share of the requests that find no free place, and how long these wait on average.
    idle_share
        Share of the requests that find a replica with nothing to do.
    bases_s, base_s
        Steps without prompts: at equally likely batches as tokens meet them, and as arriving requests do on average.
    reading
        What prompts do to the steps.
    chunks
        Prompt tokens that a step reads at most, and what else that may be: how much it would matter is an error.
    """

    utilization: float
    batch: float
    waiting_share: float
    wait_s: float
    idle_share: float
    bases_s: tuple[float, ...]
    base_s: float
    reading: Reading
    steps: StepFit
    traffic: Traffic
    replicas: int
    cap: int
    chunks: tuple[float, ...]

    @property
    def overloaded(self) -> bool:
        """Whether more is asked for than the replicas sustain."""
        return self.utilization >= 1

    def attainment(self, signal: Signal, threshold_s: float) -> float:
        """Share of the tokens, or of the requests, that are within the threshold."""
        return self._within(signal)(threshold_s)

    def quantile(self, signal: Signal, share: float) -> float:
        """Seconds within which `share` (0 to 1) of them are; infinite where the queue has no bound."""
        if self.overloaded and signal is not Signal.INTER_TOKEN_LATENCY:
            return math.inf
        return _inverse(self._within(signal), share, self.base_s)

    def error(self, signal: Signal, share: float = 0.95) -> float:
        """Relative standard error of that quantile; infinite where there is no telling.

        From the errors of the step times, of a load that is known to some percent, of what is not told, and of the
        method, which is the larger the steeper the distribution is there.
        """
        value = self.quantile(signal, share)
        if not 0 < value < math.inf:
            return math.inf

        def change(other: float) -> float:
            return other / value - 1

        alpha_s, beta_s, delta_s = nudges = self._nudges()
        moved = ((alpha_s, 0.0, 0.0), (0.0, beta_s, 0.0), (0.0, 0.0, delta_s))
        slopes = [
            change(self._with(self.steps.moved(by)).quantile(signal, share)) / nudge
            for by, nudge in zip(moved, nudges, strict=True)
        ]
        busier = replace(self.traffic, requests_per_s=(1 + _LOAD_ERROR) * self.traffic.requests_per_s)
        rarer = 1 - (1 - share) * (1 - _RANK_ERROR)
        parts = (
            _LEAST_ERROR,
            _BELIEVED * self.steps.deviation((slopes[0], slopes[1], slopes[2])) if max(slopes) < math.inf else math.inf,
            change(self._with(self.steps, busier).quantile(signal, share)),
            change(self.quantile(signal, rarer)),
            max(abs(change(self._with(self.steps, chunk=one).quantile(signal, share))) for one in self.chunks),
        )
        return math.hypot(*parts)

    def confident(self, signal: Signal, share: float = 0.95) -> bool:
        """Whether the prediction is to be trusted."""
        return self.error(signal, share) <= CONFIDENT

    def _nudges(self) -> tuple[float, float, float]:
        """Changes of the step times that each make work some percent longer."""
        each_s = _NUDGE * self.steps.work_s(self.traffic.prompt_tokens, self.traffic.output_tokens, self.cap).value
        outputs, prompts = max(1.0, self.traffic.output_tokens), max(1.0, self.traffic.prompt_tokens)
        return each_s / outputs * max(1.0, self.batch), each_s / outputs, each_s / prompts

    def chunks_that_fit(self, share: float, least_s: float, most_s: float) -> tuple[float, ...]:
        """Those of `chunks` that a quantile of the time between tokens does not speak against, as it was measured at
        this load between two bounds; all of them where it speaks against each."""

        def fits(chunk: float) -> bool:
            found = self._with(self.steps, chunk=chunk)
            predicted_s = found.quantile(Signal.INTER_TOKEN_LATENCY, share)
            near = least_s / _FITS <= predicted_s <= most_s * _FITS
            return near or not found.confident(Signal.INTER_TOKEN_LATENCY, share)

        return tuple(filter(fits, self.chunks)) or self.chunks

    def _with(self, steps: StepFit, traffic: Traffic | None = None, chunk: float | None = None) -> Latency:
        chunks = self.chunks[:1] if chunk is None else (chunk,)
        return latency(steps, traffic or self.traffic, self.replicas, self.cap, chunks=chunks)

    def _within(self, signal: Signal) -> Callable[[float], float]:
        if signal is Signal.INTER_TOKEN_LATENCY:
            return self._tokens_within
        if signal not in PREDICTED:
            raise ValueError(f"{signal} is not predicted: ask for one of {', '.join(PREDICTED)}")
        if self.overloaded:
            return lambda limit_s: 0.0
        if signal is Signal.QUEUE_TIME:
            return self._mixed((0.0, Spread(0.0, 0.0)), (0.0, self.reading.residual))
        alpha_s, _, delta_s = self.steps.parameters
        alone = alpha_s, Spread(delta_s * self.traffic.prompt_tokens, self.traffic.prompt_spread)
        beside = self.base_s, self.reading.first
        if signal is Signal.TIME_TO_FIRST_TOKEN:
            return self._mixed(alone, beside)
        return self._mixed((0.0, self._ended(*alone)), (0.0, self._ended(*beside)))

    def _tokens_within(self, limit_s: float) -> float:
        return sum(self.reading.within(limit_s - base_s) for base_s in self.bases_s) / len(self.bases_s)

    def _ended(self, least_s: float, first: Spread) -> Spread:
        """First token and the others, whose number varies more than their times."""
        token_s = sum(self.bases_s) / len(self.bases_s) + self.reading.slower_s
        others_s = max(0.0, self.traffic.output_tokens - 1) * token_s
        deviation_s = math.hypot(first.mean_s * first.relative, others_s * self.traffic.output_spread)
        return Spread.of(least_s + first.mean_s + others_s, deviation_s**2)

    def _mixed(self, alone: tuple[float, Spread], beside: tuple[float, Spread]) -> Callable[[float], float]:
        """Of requests that are alone on a replica or beside others, some of them after a wait, which is exponential.

        Each is the least that it takes, and what comes on top.
        """
        (alone_s, own), (beside_s, among) = alone, beside
        waiting, wait_s = self.waiting_share, self.wait_s
        idle = min(self.idle_share, 1 - waiting)

        def within(limit_s: float) -> float:
            share = idle * own.within(limit_s - alone_s) + (1 - waiting - idle) * among.within(limit_s - beside_s)
            if waiting <= 0:
                return share
            over = 1 - math.exp(-max(0.0, limit_s) / wait_s)  # of the waits, by then; in equally likely parts:
            left = [limit_s - beside_s + wait_s * math.log1p(-over * (part + 0.5) / _PARTS) for part in range(_PARTS)]
            return share + waiting * over / _PARTS * sum(among.within(left_s) for left_s in left)

        return within


def latency(
    steps: StepFit, traffic: Traffic, replicas: int, cap: int, *, chunks: tuple[float, ...] = CHUNKS
) -> Latency:
    """Predict.

    Parameters
    ----------
    steps
        Needs an observation.
    cap
        What a replica can have in process; its KV cache counts.
    chunks
        Prompt tokens that a step reads at most: one where that is known, else what it may be, likeliest first.
    """
    alpha_s, beta_s, delta_s = steps.parameters
    prompt_s, outputs = delta_s * traffic.prompt_tokens, max(1.0, traffic.output_tokens)
    shared_s, own_s = max(1e-9, outputs * alpha_s), outputs * beta_s + prompt_s
    work_s = shared_s / cap + own_s
    utilization = traffic.requests_per_s * work_s / replicas
    rate = min(traffic.requests_per_s, FULLEST * replicas / work_s)
    if utilization < 1:
        counts, weights, waiting = _requests(traffic.requests_per_s, shared_s, own_s, replicas, cap)
    else:
        counts, weights, waiting = [float(replicas * cap)], [1.0], 1.0
    present = [(count / replicas, weight) for count, weight in zip(counts, weights, strict=True) if count >= replicas]
    idle = max(0.0, 1 - sum(weight for _, weight in present))
    met = sum(batch * weight for batch, weight in present) / (1 - idle) if idle < 1 - 1e-9 else 1.0
    base_s = alpha_s + beta_s * met
    return Latency(
        utilization=utilization,
        batch=sum(count * weight for count, weight in zip(counts, weights, strict=True)) / replicas,
        waiting_share=waiting,
        wait_s=1 / max(1e-9, replicas / work_s - rate),
        idle_share=idle,
        bases_s=_bases_s(counts, weights, replicas, alpha_s, beta_s),
        base_s=base_s,
        reading=reading(rate / replicas, base_s, prompt_s, traffic.prompt_spread, delta_s * chunks[0], replicas),
        steps=steps,
        traffic=traffic,
        replicas=replicas,
        cap=cap,
        chunks=chunks,
    )


def alone(steps: StepFit, traffic: Traffic) -> Latency:
    """Of one request alone on a replica: no fleet is quicker."""
    return latency(steps, replace(traffic, requests_per_s=0.0), 1, 1)


def quickest(steps: StepFit, traffic: Traffic, signal: Signal, share: float) -> float:
    """The best that the quantile of a signal can be."""
    return alone(steps, traffic).quantile(signal, share)


def _requests(
    rate: float, shared_s: float, own_s: float, replicas: int, cap: int
) -> tuple[list[float], list[float], float]:
    """Requests in process in the fleet with their probabilities, and the share of arrivals that find it full."""
    places = replicas * cap
    load = rate * own_s / replicas
    likeliest = min(float(places), rate * shared_s / max(1e-9, 1 - load))
    width = _DEVIATIONS * math.sqrt((likeliest + 4) / max(0.02, 1 - load)) + 8
    low, high = max(0, math.floor(likeliest - width)), min(places, math.ceil(likeliest + width))
    stride = max(1.0, (high - low) / _POINTS)
    counts = [low + stride * index for index in range(math.floor((high - low) / stride + 1e-9) + 1)]
    height = _heights(rate, shared_s, own_s, replicas)
    heights = [height(count) for count in counts]
    top = max(heights)
    weights = [stride * math.exp(one - top) for one in heights]
    waiting = 0.0
    if high == places:
        growth = rate * (shared_s / cap + own_s) / replicas
        full = math.exp(height(places) - top)
        waiting = full / max(1e-9, 1 - growth)
        weights[-1] += waiting - full
    total = sum(weights)
    return counts, [weight / total for weight in weights], min(1.0, waiting / total)


def _heights(rate: float, shared_s: float, own_s: float, replicas: int) -> Callable[[float], float]:
    """Logarithm of the probability of so many requests, relative to none.

    k requests end at k / (shared + own) per second while some replicas have none, which gives a Poisson distribution,
    and at k / (shared + own k / replicas) beyond, which gives a negative binomial's.
    """
    if rate <= 0:
        return lambda count: 0.0 if count <= 0 else -math.inf
    lgamma, single = math.lgamma, math.log(rate * (shared_s + own_s))
    alike = own_s < 1e-6 * shared_s
    each = math.log(rate * shared_s) if alike else math.log(rate * own_s / replicas)
    start = 0.0 if alike else replicas * shared_s / own_s + 1
    offset = replicas * (single - each) - (0.0 if alike else lgamma(start + replicas))

    def height(count: float) -> float:
        if count <= replicas:
            return count * single - lgamma(count + 1)
        return offset + count * each - lgamma(count + 1) + (0.0 if alike else lgamma(start + count))

    return height


def _bases_s(
    counts: list[float], weights: list[float], replicas: int, alpha_s: float, beta_s: float
) -> tuple[float, ...]:
    """Step times of equally likely batches, by the tokens that come out at them."""
    batches = [max(1.0, count / replicas) for count in counts]
    tokens = [
        weight * (count > 0) * batch / (alpha_s + beta_s * batch)
        for count, weight, batch in zip(counts, weights, batches, strict=True)
    ]
    total = sum(tokens)
    if total <= 0:
        return (alpha_s + beta_s,)
    found, seen, index = [], tokens[0] / total, 0
    for part in range(_BATCHES):
        goal = (part + 0.5) / _BATCHES
        while seen < goal and index + 1 < len(tokens):
            index += 1
            seen += tokens[index] / total
        found.append(alpha_s + beta_s * batches[index])
    return tuple(found)


def _inverse(within: Callable[[float], float], share: float, scale_s: float) -> float:
    """The least time that `share` of all are within."""
    if within(0.0) >= share:
        return 0.0
    low, high = 0.0, max(1e-6, scale_s)
    while within(high) < share:
        low, high = high, 2 * high
        if high > 1e9:
            return math.inf
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if within(middle) < share:
            low = middle
        else:
            high = middle
        if high - low <= _CLOSE * high:
            break
    return high
