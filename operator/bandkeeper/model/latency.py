"""What latency a fleet of continuous-batching replicas has at a load, a replica count and a cap. Pure.

A replica with b requests works off one in A / b + C seconds: A is alpha for each output token, C is beta for each
output token and delta for each prompt token. So the requests of a fleet are a birth-death queue whose weights have a
closed form, with a geometric tail of those that wait. What a token waits for is the step it comes out of: its batch,
and the prompts read in it. A first token waits for a place, the step under way, and the step that reads its prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bandkeeper.api.signals import Signal
from bandkeeper.model.steps import StepFit

CHUNK_TOKENS = 8192
"""Prompt tokens that a step reads at most, where nothing else is known: vLLM's default on GPUs of 70 GiB and more."""
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
_FULLEST = 0.98  # of a step's prompts, to keep sums finite where chunks are too small for the load
_DEVIATIONS = 6.0
_PASSES = 6
_LEAST_ERROR = 0.08  # of the method itself
_LOAD_ERROR = 0.05
_RANK_ERROR = 0.01  # a quantile between two kinds of steps is as uncertain as the share of each
_ROUNDS = 60
_CLOSE = 1e-4


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked of the whole workload: means, and standard deviations as shares of them.

    Prompt tokens are those that are computed, without cached ones, as the step times were learned.
    """

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    prompt_spread: float = 0.7
    output_spread: float = 0.55


@dataclass(frozen=True, slots=True)
class _Spread:
    """A log-normal time by its mean and its relative standard deviation."""

    mean_s: float
    relative: float

    def within(self, limit_s: float) -> float:
        if limit_s <= 0:
            return 0.0 if self.mean_s > 0 else float(limit_s == 0)
        if self.mean_s <= 0 or self.relative <= 1e-9:
            return float(limit_s >= self.mean_s)
        variance = math.log1p(self.relative**2)
        deviation = (math.log(limit_s / self.mean_s) + variance / 2) / math.sqrt(2 * variance)
        return 0.5 * math.erfc(-deviation)


@dataclass(frozen=True, slots=True)
class _Inside:
    """What the signals are made of.

    Attributes
    ----------
    bases_s
        Steps without prompts at equally likely batches, as tokens meet them.
    base_s
        The same as arriving requests meet it, on average.
    idle
        Share of requests that find a replica with nothing to do.
    carry
        Share of steps that carry prompts, and `prompts` how long these take, `chunk_s` at most.
    residual, first, then, lone
        Beyond the decoding of one step: until the next step begins, and until the first token is out; of a request that
        finds a place, gets one after a wait, and has a replica of its own.
    wait_s
        Mean of those that wait for a place.
    """

    bases_s: tuple[float, ...]
    base_s: float
    idle: float
    carry: float
    prompts: _Spread
    chunk_s: float
    residual: _Spread
    first: _Spread
    then: _Spread
    lone: _Spread
    wait_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Latency:
    """The prediction at one (traffic, replicas, cap).

    Attributes
    ----------
    utilization
        Offered work over what the replicas sustain at the cap; above 1 the queue has no bound.
    batch
        Mean of the requests in process per replica, at most the cap.
    waiting_share
        Of the requests that find no free place.
    """

    utilization: float
    batch: float
    waiting_share: float
    steps: StepFit = field(repr=False)
    traffic: Traffic = field(repr=False)
    replicas: int = field(repr=False)
    cap: int = field(repr=False)
    chunk_tokens: float = field(repr=False)
    inside: _Inside = field(repr=False)

    @property
    def overloaded(self) -> bool:
        """Whether more is asked for than the replicas sustain."""
        return self.utilization >= 1

    def attainment(self, signal: Signal, threshold_s: float) -> float:
        """Share of the tokens, or of the requests, that are within the threshold."""
        if signal is Signal.INTER_TOKEN_LATENCY:
            return self._token_within(threshold_s)
        if signal not in PREDICTED:
            raise ValueError(f"{signal} is not predicted: ask for one of {', '.join(PREDICTED)}")
        if self.overloaded:
            return 0.0
        return {
            Signal.TIME_TO_FIRST_TOKEN: self._first_within,
            Signal.QUEUE_TIME: self._queue_within,
            Signal.END_TO_END_LATENCY: self._end_within,
        }[signal](threshold_s)

    def quantile(self, signal: Signal, share: float) -> float:
        """Seconds within which `share` (0 to 1) of them are; infinite where the queue has no bound."""
        if self.overloaded and signal is not Signal.INTER_TOKEN_LATENCY:
            return math.inf
        return _inverse(lambda limit_s: self.attainment(signal, limit_s), share, self.inside.base_s)

    def error(self, signal: Signal, share: float = 0.95) -> float:
        """Relative standard error of that quantile; infinite where there is no telling.

        From the error of the step times, a load that is known to some percent, and how steep the quantile is there.
        """
        value = self.quantile(signal, share)
        if not 0 < value < math.inf:
            return math.inf
        each = self.steps.work_s(self.traffic.prompt_tokens, self.traffic.output_tokens, max(1.0, self.batch))
        slip = math.hypot(each.error / each.value if each.value > 0 else 1.0, _LOAD_ERROR)
        if self.utilization * (1 + slip) >= 1 and signal is not Signal.INTER_TOKEN_LATENCY:
            return math.inf
        busier = self._at(self.traffic.requests_per_s * (1 + slip)).quantile(signal, share)
        rarer = self.quantile(signal, min(1 - 0.2 * (1 - share), share + _RANK_ERROR))
        return math.hypot(
            math.hypot(_LEAST_ERROR, slip), math.hypot(max(0.0, busier / value - 1), max(0.0, rarer / value - 1) / 2)
        )

    def confident(self, signal: Signal, share: float = 0.95) -> bool:
        """Whether the prediction is to be trusted."""
        return self.error(signal, share) <= CONFIDENT

    def _at(self, requests_per_s: float) -> Latency:
        traffic = replace(self.traffic, requests_per_s=requests_per_s)
        return latency(self.steps, traffic, self.replicas, self.cap, chunk_tokens=self.chunk_tokens)

    def _token_within(self, limit_s: float) -> float:
        inside = self.inside
        total = 0.0
        for base_s in inside.bases_s:
            left_s = limit_s - base_s
            if left_s >= 0:
                total += 1 - inside.carry + inside.carry * _piece_within(inside.prompts, inside.chunk_s, left_s)
        return total / len(inside.bases_s)

    def _first_within(self, limit_s: float) -> float:
        inside, alpha_s = self.inside, self.steps.parameters[0]
        return self._mixed(
            inside.lone.within(limit_s - alpha_s),
            inside.first.within(limit_s - inside.base_s),
            lambda left_s: inside.then.within(left_s - inside.base_s),
            limit_s,
        )

    def _queue_within(self, limit_s: float) -> float:
        return self._mixed(1.0, self.inside.residual.within(limit_s), lambda left_s: 1.0, limit_s)

    def _end_within(self, limit_s: float) -> float:
        inside = self.inside
        lone, first, then = inside.lone, inside.first, inside.then
        return self._mixed(
            self._ended(lone, self.steps.parameters[0]).within(limit_s),
            self._ended(first, inside.base_s).within(limit_s),
            self._ended(then, inside.base_s).within,
            limit_s,
        )

    def _ended(self, first: _Spread, more_s: float) -> _Spread:
        """First token and the others, whose number varies more than their times."""
        others_s = max(0.0, self.traffic.output_tokens - 1) * self.inside.token_s
        mean_s = first.mean_s + more_s + others_s
        deviation_s = math.hypot(first.mean_s * first.relative, others_s * self.traffic.output_spread)
        return _Spread(mean_s, deviation_s / mean_s if mean_s > 0 else 0.0)

    def _mixed(self, alone: float, busy: float, after: Callable[[float], float], limit_s: float) -> float:
        """Of requests on an idle replica, beside others, and `after` a wait for a place, which is exponential."""
        waiting = self.waiting_share
        idle = min(self.inside.idle, 1 - waiting)
        within = idle * alone + max(0.0, 1 - waiting - idle) * busy
        if waiting <= 0:
            return within
        first = 1 - math.exp(-max(0.0, limit_s) / self.inside.wait_s)
        parts = [-self.inside.wait_s * math.log1p(-first * (part + 0.5) / _PARTS) for part in range(_PARTS)]
        return within + waiting * first * sum(after(limit_s - part_s) for part_s in parts) / _PARTS


def latency(
    steps: StepFit, traffic: Traffic, replicas: int, cap: int, *, chunk_tokens: float = CHUNK_TOKENS
) -> Latency:
    """Predict; `steps` needs an observation, `cap` is what a replica can have in process (its KV cache counts)."""
    alpha_s, beta_s, delta_s = steps.parameters
    prompt_s, outputs = delta_s * traffic.prompt_tokens, max(1.0, traffic.output_tokens)
    shared_s, own_s = max(1e-9, outputs * alpha_s), outputs * beta_s + prompt_s
    work_s = shared_s / cap + own_s
    utilization = traffic.requests_per_s * work_s / replicas
    rate = min(traffic.requests_per_s, _FULLEST * replicas / work_s) if utilization >= 1 else traffic.requests_per_s
    counts, weights, waiting = _requests(rate, shared_s, own_s, replicas, cap)
    mean = sum(count * weight for count, weight in zip(counts, weights, strict=True)) / replicas
    if utilization >= 1:
        counts, weights, waiting, mean = [float(replicas * cap)], [1.0], 1.0, float(cap)
    idle = sum(weight for count, weight in zip(counts, weights, strict=True) if count < replicas)
    met = sum(count * weight for count, weight in zip(counts, weights, strict=True) if count >= replicas)
    base_s = alpha_s + beta_s * (met / (1 - idle) / replicas if idle < 1 - 1e-9 else 1.0)
    inside = _inside(
        bases_s=_bases_s(counts, weights, replicas, alpha_s, beta_s),
        base_s=base_s,
        idle=idle,
        rate=rate / replicas,
        prompt_s=prompt_s,
        traffic=traffic,
        replicas=replicas,
        chunk_s=delta_s * chunk_tokens,
        wait_s=(1 + traffic.output_spread**2) / 2 / max(1e-9, replicas / work_s - rate),
    )
    return Latency(
        utilization=utilization,
        batch=mean,
        waiting_share=waiting,
        steps=steps,
        traffic=traffic,
        replicas=replicas,
        cap=cap,
        chunk_tokens=chunk_tokens,
        inside=inside,
    )


def quickest(steps: StepFit, traffic: Traffic, signal: Signal, share: float) -> float:
    """The figure of a signal that one request alone on a replica has: no fleet is quicker."""
    return latency(steps, replace(traffic, requests_per_s=0.0), 1, 1).quantile(signal, share)


def _requests(
    rate: float, shared_s: float, own_s: float, replicas: int, cap: int
) -> tuple[list[float], list[float], float]:
    """Requests in process in the fleet with their probabilities, and the share of arrivals that find it full.

    k requests end at k / (shared + own k / replicas) per second, or k / (shared + own) while some replicas have none.
    """
    places = replicas * cap
    load = rate * own_s / replicas
    likeliest = min(float(places), rate * shared_s / max(1e-9, 1 - load))
    width = _DEVIATIONS * math.sqrt((likeliest + 4) / max(0.02, 1 - load)) + 8
    low, high = max(0, math.floor(likeliest - width)), min(places, math.ceil(likeliest + width))
    stride = max(1.0, (high - low) / _POINTS)
    counts = [low + stride * index for index in range(math.floor((high - low) / stride + 1e-9) + 1)]
    heights = [_height(count, rate, shared_s, own_s, replicas) for count in counts]
    top = max(heights)
    weights = [stride * math.exp(height - top) for height in heights]
    waiting = 0.0
    if high == places:
        growth = rate * (shared_s / cap + own_s) / replicas
        full = math.exp(_height(places, rate, shared_s, own_s, replicas) - top)
        waiting = full / max(1e-9, 1 - growth)
        weights[-1] += waiting - full
    total = sum(weights)
    return counts, [weight / total for weight in weights], min(1.0, waiting / total)


def _height(count: float, rate: float, shared_s: float, own_s: float, replicas: int) -> float:
    """Logarithm of the probability of so many requests, relative to none: a negative binomial's, beyond `replicas`."""
    if rate <= 0:
        return 0.0 if count <= 0 else -math.inf
    few = min(count, float(replicas))
    height = few * math.log(rate * (shared_s + own_s)) - math.lgamma(few + 1)
    if count <= replicas:
        return height
    many = count - replicas
    height -= math.lgamma(count + 1) - math.lgamma(replicas + 1)
    if own_s < 1e-6 * shared_s:
        return height + many * math.log(rate * shared_s)
    start = replicas * shared_s / own_s + 1
    return (
        height + many * math.log(rate * own_s / replicas) + math.lgamma(start + count) - math.lgamma(start + replicas)
    )


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


def _inside(
    *,
    bases_s: tuple[float, ...],
    base_s: float,
    idle: float,
    rate: float,
    prompt_s: float,
    traffic: Traffic,
    replicas: int,
    chunk_s: float,
    wait_s: float,
) -> _Inside:
    """Steps that carry prompts, and what an arriving request meets."""
    spread, overlap = traffic.prompt_spread, 1 / replicas
    read_s = prompt_s * _stretch(prompt_s, spread, chunk_s, base_s)
    busy = min(_FULLEST, rate * read_s)
    step_s = base_s / (1 - busy)
    squared = read_s**2 * (1 + spread**2)
    variance = rate * step_s * squared / (1 - overlap * busy**2)
    second = step_s**2 + variance
    came = rate * step_s
    carry = (1 - overlap) * min(1.0, came) + overlap * _some(rate, step_s, base_s, read_s, spread, overlap)
    each = came / carry if carry > 0 else 1.0
    many = max(0.0, overlap * came**2 * second / step_s**2 / carry + each - each**2) if carry > 0 else 0.0
    carried_s = each * prompt_s
    relative = math.sqrt(each * spread**2 + overlap * many) / each
    prompts = _Spread(carried_s, relative)
    met_s = (1 - overlap) * base_s + overlap * second / step_s
    third = base_s**3 + 3 * base_s * variance + carry * (carried_s * (1 + relative**2)) ** 3
    met_squared = (1 - overlap) * base_s**2 + overlap * third / step_s
    others = overlap * busy
    mean_s = (0.5 + others) * met_s + read_s
    second_s = (1 / 3 + others + others**2) * met_squared - ((0.5 + others) * met_s) ** 2
    first_variance = max(0.0, second_s) + overlap * rate * met_s * squared + (read_s * spread) ** 2
    residual_s = 0.5 * met_s
    return _Inside(
        bases_s=bases_s,
        base_s=base_s,
        idle=idle,
        carry=min(1.0, carry * _pieces(prompts, chunk_s)),
        prompts=prompts,
        chunk_s=chunk_s,
        residual=_spread(residual_s, met_squared / 3 - residual_s**2),
        first=_spread(mean_s, first_variance),
        then=_spread((others * met_s) + read_s, overlap * rate * met_s * squared + (read_s * spread) ** 2),
        lone=_Spread(prompt_s, spread),
        wait_s=wait_s,
        token_s=sum(bases_s) / len(bases_s) + came * prompt_s,
    )


def _spread(mean_s: float, variance: float) -> _Spread:
    return _Spread(mean_s, math.sqrt(max(0.0, variance)) / mean_s if mean_s > 0 else 0.0)


def _some(rate: float, step_s: float, base_s: float, read_s: float, spread: float, overlap: float) -> float:
    """Share of steps in which a prompt came, where they come as they like: steps that carry are longer."""
    if rate <= 0:
        return 0.0
    none = math.exp(-rate * step_s)
    for _ in range(_PASSES):
        each = rate * step_s / max(1e-9, 1 - none)
        mean_s, shape = each * read_s, 1 / max(1e-6, (spread**2 + 1 - 1 / max(1.0, each)) / each)
        after = math.exp(-rate * base_s) * (1 + rate * mean_s / shape) ** -shape
        none = after / (1 - math.exp(-rate * base_s) + after)
    return 1 - none


def _stretch(prompt_s: float, spread: float, chunk_s: float, base_s: float) -> float:
    """How much longer reading a prompt takes because of the steps that its chunks are in."""
    if prompt_s <= 0:
        return 1.0
    return 1 + (_pieces(_Spread(prompt_s, spread), chunk_s) - 1) * base_s / prompt_s


def _pieces(prompts: _Spread, chunk_s: float) -> float:
    """Steps that prompts are spread over, on average: one more for each whole chunk."""
    if prompts.mean_s <= 0 or chunk_s <= 0:
        return 1.0
    if prompts.mean_s > 20 * chunk_s:
        return prompts.mean_s / chunk_s + 0.5
    pieces, chunk = 1.0, chunk_s
    while (more := 1 - prompts.within(chunk)) > 1e-3:
        pieces += more
        chunk += chunk_s
    return pieces


def _piece_within(prompts: _Spread, chunk_s: float, limit_s: float) -> float:
    """Share of the pieces that take no longer."""
    if prompts.mean_s <= 0 or limit_s >= chunk_s:
        return 1.0
    pieces = _pieces(prompts, chunk_s)
    if pieces <= 1.001:
        return prompts.within(limit_s)
    if prompts.mean_s > 20 * chunk_s:
        return limit_s / chunk_s / pieces
    last, start = 0.0, 0.0
    while (below := prompts.within(start)) < 0.999:
        last += prompts.within(start + limit_s) - below
        start += chunk_s
    return last / pieces


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
