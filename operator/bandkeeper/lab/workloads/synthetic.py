"""Synthetic loads from a line of text, `NAME[:key=value,...]`, with levels in replicas' work.

A replica's work is the request rate that one replica sustains at its best batch, for requests of the load's mean
lengths: `high=16` asks for as much as 16 replicas can just do, whatever the server. Everything is drawn from the seed,
in one order: level, count, arrivals, prompts, outputs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bandkeeper.lab.requests import Requests, Seconds, Tokens
from bandkeeper.lab.server import ContinuousServer, Server
from bandkeeper.lab.workloads import MOST_REQUESTS, LoadError

# The Azure conversation trace of 2023: means 1155 and 211, 99th percentiles 4142 and 601 tokens as log-normals.
PROMPT_TOKENS, PROMPT_SPREAD = 1155.0, 0.636
OUTPUT_TOKENS, OUTPUT_SPREAD = 211.0, 0.505

Values = Mapping[str, float]
Level = Callable[[Seconds, Values, np.random.Generator], Seconds]
Lengths = Callable[[Seconds, Values, np.random.Generator], tuple[Seconds, Seconds]]


@dataclass(frozen=True, slots=True)
class Key:
    """A parameter of a load. The default is a number, or a share of the most replicas or of the duration."""

    unit: str
    what: str
    default: float
    of: Literal["", "max_replicas", "duration_s"] = ""
    least: float = 0.0
    most: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        share = {"": "", "max_replicas": " x the most replicas", "duration_s": " x duration_s"}[self.of]
        unit = f"{self.unit}; " if self.unit else ""
        return f"{self.what} [{unit}default {self.default:g}{share}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    what: str
    level: Level
    keys: Mapping[str, Key]
    common: Mapping[str, float] = field(default_factory=dict)  # other defaults for common keys
    lengths: Lengths
    even: bool = False


def make(text: str, server: Server, *, seed: int, max_replicas: int) -> Requests:
    """The load that `text` describes, for this server.

    Parameters
    ----------
    text
        `NAME` or `NAME:key=value,key=value`; `names` and `keys` say which there are.
    seed
        At least 0. The same seed, text, server and bound give the same requests.
    max_replicas
        The policy's upper bound: default levels are shares of it.

    Raises
    ------
    LoadError
        The name, a key or a value is not known or not possible, or the load has no or too many requests.
    """
    load, values = _parse(text, max_replicas)
    if seed < 0:
        raise LoadError(f"seed {seed} is negative: give a whole number from 0")
    rng = np.random.Generator(np.random.PCG64([seed, int(values["variant"])]))
    duration_s = values["duration_s"]
    edges = np.linspace(0.0, duration_s, max(3600, math.ceil(duration_s)) + 1)
    level = load.level((edges[:-1] + edges[1:]) / 2, values, rng)
    per_s = server.sustainable_per_s(values["prompt_tokens"], values["output_tokens"])
    expected = np.concatenate(([0.0], np.cumsum(level * per_s * np.diff(edges))))
    arrival_s = np.interp(_marks(text, expected[-1], duration_s, load.even, rng), expected, edges)
    prompts, outputs, shortened = _whole(*load.lengths(arrival_s, values, rng), server)
    notes = [
        f"one replica's work is {per_s:.4g} requests/s of {values['prompt_tokens']:g} prompt and "
        f"{values['output_tokens']:g} output tokens on average"
    ]
    if shortened:
        notes.append(f"{shortened} requests were shortened to fit the server's KV cache")
    if "prompt_end_tokens" in values:
        end_per_s = server.sustainable_per_s(values["prompt_end_tokens"], values["output_end_tokens"])
        notes.append(f"the work goes from {level[0]:.3g} to {level[0] * per_s / end_per_s:.3g} replicas")
    if level.max() > max_replicas:
        notes.append(f"the load asks for up to {level.max():.3g} replicas' work, the policy allows {max_replicas}")
    return Requests(
        arrival_s=arrival_s,
        prompt_tokens=prompts,
        output_tokens=outputs,
        duration_s=duration_s,
        name=text.strip(),
        notes=tuple(notes),
    )


def names() -> dict[str, str]:
    """Name and one-line description of every load."""
    return {name: load.what for name, load in _LOADS.items()}


def keys(name: str) -> dict[str, Key]:
    """The parameters of a load, its own first. Raises LoadError for an unknown load."""
    if name not in _LOADS:
        raise LoadError(f"no load {name!r}{_near(name, _LOADS)}; the loads are:\n{_listed(names())}")
    load = _LOADS[name]
    common = {key: replace(one, default=load.common.get(key, one.default)) for key, one in _COMMON.items()}
    return {**load.keys, **common}


def _parse(text: str, max_replicas: int) -> tuple[_Load, dict[str, float]]:
    name, _, rest = text.strip().partition(":")
    known = keys(name)
    given: dict[str, float] = {}
    for part in rest.split(",") if rest.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise LoadError(f"load {name} has no key {key!r}{_near(key, known)}; its keys are:\n{_listed(known)}")
        if key in given:
            raise LoadError(f"load {name}: {key} is given twice")
        given[key] = _number(f"load {name}: {key}", value if equals else "", known[key])
    duration_s = given.get("duration_s", known["duration_s"].default)
    scales = {"": 1.0, "max_replicas": float(max_replicas), "duration_s": duration_s}
    values = {key: given.get(key, one.default * scales[one.of]) for key, one in known.items()}
    _check(name, values)
    return _LOADS[name], values


def _number(what: str, value: str, key: Key) -> float:
    unit = f" ({key.unit})" if key.unit else ""
    try:
        number = float(value)
    except ValueError:
        raise LoadError(f"{what}={value} is not a number{unit}") from None
    if not key.least <= number <= key.most or math.isinf(number):
        bounds = f"from {key.least:g}" + (f" to {key.most:g}" if key.most < math.inf else "")
        raise LoadError(f"{what}={value} is not possible: give a number {bounds}{unit}")
    if key.whole and not number.is_integer():
        raise LoadError(f"{what}={value} is not a whole number")
    return number


def _check(name: str, values: Values) -> None:
    if values.get("low", 0.0) > values.get("high", math.inf):
        raise LoadError(f"load {name}: low ({values['low']:g}) is above high ({values['high']:g})")
    for length in ("prompt_tokens", "output_tokens"):
        longest = values.get(f"max_{length}", math.inf)
        if 4 * values[length] > longest:
            raise LoadError(f"load {name}: max_{length} ({longest:g}) must be at least 4 x {length}")


def _near(word: str, known: Mapping[str, object]) -> str:
    match = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def _listed(known: Mapping[str, object]) -> str:
    width = max(map(len, known))
    return "\n".join(f"  {name:<{width}}  {what}" for name, what in known.items())


def _marks(text: str, expected: float, duration_s: float, even: bool, rng: np.random.Generator) -> Seconds:
    """Where the arrivals lie on the axis of expected requests: a unit Poisson process, or evenly spaced."""
    if expected > MOST_REQUESTS:
        fits_s = duration_s * MOST_REQUESTS / expected
        raise LoadError(
            f"load {text}: {expected / 1e6:.1f} million requests are more than the lab takes "
            f"({MOST_REQUESTS / 1e6:.0f} million); give a duration_s below {fits_s:.0f} or lower levels"
        )
    count = round(expected) if even else int(rng.poisson(expected))
    if count == 0:
        raise LoadError(f"load {text}: no request comes in {duration_s:g} s; raise its level or duration_s")
    if even:
        return (np.arange(count, dtype=np.float64) + 0.5) * (expected / count)
    marks = rng.random(count) * expected
    marks.sort()
    return marks


def _whole(prompts: Seconds, outputs: Seconds, server: Server) -> tuple[Tokens, Tokens, int]:
    """Whole tokens, at least 1, and no request that the server could never hold."""
    whole_prompts = np.maximum(1, np.rint(prompts)).astype(np.int32)
    whole_outputs = np.maximum(1, np.rint(outputs)).astype(np.int32)
    if not isinstance(server, ContinuousServer):
        return whole_prompts, whole_outputs, 0
    long = whole_prompts.astype(np.int64) + whole_outputs > server.kv_tokens
    whole_outputs[long] = np.minimum(whole_outputs[long], server.kv_tokens // 2)
    whole_prompts[long] = np.minimum(whole_prompts[long], server.kv_tokens - whole_outputs[long])
    return whole_prompts, whole_outputs, int(long.sum())


# Levels over time, in replicas' work.


def _constant(at_s: Seconds, values: Values, rng: np.random.Generator) -> Seconds:
    return np.full_like(at_s, values["level"])


def _ramp(at_s: Seconds, values: Values, rng: np.random.Generator) -> Seconds:
    start_s = values["start_s"]
    return np.interp(at_s, [start_s, start_s + values["rise_s"]], [values["low"], values["high"]])


def _waves(at_s: Seconds, values: Values, rng: np.random.Generator) -> Seconds:
    return _between(values, (1.0 - np.cos(2.0 * math.pi * at_s / values["period_s"])) / 2.0)


# A stylised day from midnight, hour by hour: quiet at four, busy from nine to five, a shoulder in the evening.
_DAY = np.array(
    [
        0.14,
        0.08,
        0.04,
        0.01,
        0.0,
        0.03,
        0.1,
        0.26,
        0.5,
        0.76,
        0.93,
        1.0,
        0.9,
        0.91,
        0.99,
        0.98,
        0.92,
        0.82,
        0.71,
        0.64,
        0.58,
        0.5,
        0.37,
        0.24,
        0.14,
    ]
)


def _diurnal(at_s: Seconds, values: Values, rng: np.random.Generator) -> Seconds:
    hour = at_s % values["period_s"] / values["period_s"] * 24.0
    return _between(values, np.interp(hour, np.arange(25.0), _DAY))


def _bursts(at_s: Seconds, values: Values, rng: np.random.Generator) -> Seconds:
    """Calm and bursts by turns, each for an exponential time: a Poisson process modulated by a two-state chain."""
    ends = [0.0]
    while ends[-1] <= at_s[-1]:
        mean_s = values["calm_s"] if len(ends) % 2 else values["burst_s"]
        ends.append(ends[-1] + rng.exponential(mean_s))
    bursting = np.searchsorted(ends, at_s, side="right") % 2 == 0
    return _between(values, bursting.astype(np.float64))


def _flash(at_s: Seconds, values: Values, rng: np.random.Generator) -> Seconds:
    times = np.cumsum([values["at_s"], values["rise_s"], values["hold_s"], values["fall_s"]])
    return np.interp(at_s, times, [values["low"], values["high"], values["high"], values["low"]])


def _daily_flash(at_s: Seconds, values: Values, rng: np.random.Generator) -> Seconds:
    """A flash crowd every day, each day early or late by some chance."""
    period_s = values["period_s"]
    day = np.floor(at_s / period_s).astype(np.int64)
    shifts_s = values["jitter_s"] * rng.standard_normal(int(day[-1]) + 1)
    return _flash(at_s - day * period_s - shifts_s[day], values, rng)


def _between(values: Values, share: Seconds) -> Seconds:
    return values["low"] + (values["high"] - values["low"]) * share


# Lengths in tokens, before rounding.


def _lognormal(arrival_s: Seconds, values: Values, rng: np.random.Generator) -> tuple[Seconds, Seconds]:
    return (
        values["prompt_tokens"] * _unit_lognormal(arrival_s, values["prompt_spread"], rng),
        values["output_tokens"] * _unit_lognormal(arrival_s, values["output_spread"], rng),
    )


def _drifting(arrival_s: Seconds, values: Values, rng: np.random.Generator) -> tuple[Seconds, Seconds]:
    share = arrival_s / values["duration_s"]
    prompts, outputs = _lognormal(arrival_s, values, rng)
    return (
        prompts * (1.0 + share * (values["prompt_end_tokens"] / values["prompt_tokens"] - 1.0)),
        outputs * (1.0 + share * (values["output_end_tokens"] / values["output_tokens"] - 1.0)),
    )


def _heavy_tailed(arrival_s: Seconds, values: Values, rng: np.random.Generator) -> tuple[Seconds, Seconds]:
    tail, count = values["tail"], len(arrival_s)
    return (
        _bounded_lomax(values["prompt_tokens"], tail, values["max_prompt_tokens"], rng.random(count)),
        _bounded_lomax(values["output_tokens"], tail, values["max_output_tokens"], rng.random(count)),
    )


def _unit_lognormal(like: Seconds, spread: float, rng: np.random.Generator) -> Seconds:
    """Of mean 1 and this standard deviation of the logarithm."""
    return np.exp(spread * rng.standard_normal(len(like)) - spread**2 / 2.0)


def _bounded_lomax(mean: float, tail: float, longest: float, uniform: Seconds) -> Seconds:
    """Lengths from 0 to `longest` of this mean whose survival falls as length^-tail."""
    low, high = 0.0, longest * 1e3
    for _ in range(100):
        scale = (low + high) / 2.0
        low, high = (scale, high) if _lomax_mean(scale, tail, longest) < mean else (low, scale)
    kept = 1.0 - (scale / (scale + longest)) ** tail
    return np.asarray(scale * ((1.0 - uniform * kept) ** (-1.0 / tail) - 1.0), dtype=np.float64)


def _lomax_mean(scale: float, tail: float, longest: float) -> float:
    ratio = scale / (scale + longest)
    bounded: float = tail / (tail - 1.0) * (1.0 - ratio ** (tail - 1.0)) / (1.0 - ratio**tail)
    return scale * (bounded - 1.0)


_WORK = "replicas' work"
_SHORTEST_S, _LONGEST_S = 1.0, 31 * 86400.0


def _seconds(what: str, default: float, of: Literal["", "duration_s"] = "", least: float = _SHORTEST_S) -> Key:
    return Key("s", what, default, of, least, _LONGEST_S)


_COMMON = {
    "duration_s": _seconds("how long requests arrive", 3600.0),
    "prompt_tokens": Key("tokens", "mean prompt", PROMPT_TOKENS, least=1.0, most=1e7),
    "prompt_spread": Key("", "standard deviation of the prompt's logarithm", PROMPT_SPREAD, most=2.5),
    "output_tokens": Key("tokens", "mean output", OUTPUT_TOKENS, least=1.0, most=1e7),
    "output_spread": Key("", "standard deviation of the output's logarithm", OUTPUT_SPREAD, most=2.5),
    "variant": Key("", "another draw of the same load", 0.0, most=2**31, whole=True),
}
_LEVEL = {"level": Key(_WORK, "constant level", 0.5, "max_replicas")}
_LEVELS = {
    "low": Key(_WORK, "lowest level", 0.15, "max_replicas"),
    "high": Key(_WORK, "highest level", 0.8, "max_replicas"),
}
_BURSTS = {
    **_LEVELS,
    "calm_s": _seconds("mean length of the calm at low", 180.0),
    "burst_s": _seconds("mean length of a burst at high", 90.0),
}

_LOADS: dict[str, _Load] = {
    "steady": _Load(
        what="constant rate, evenly spaced as a load generator sends: the calmest there is",
        level=_constant,
        keys=_LEVEL,
        lengths=_lognormal,
        even=True,
    ),
    "poisson": _Load(
        what="constant rate from many independent clients: random gaps",
        level=_constant,
        keys=_LEVEL,
        lengths=_lognormal,
    ),
    "ramp": _Load(
        what="low, then a straight rise to high that stays",
        level=_ramp,
        keys={
            **_LEVELS,
            "start_s": _seconds("when the rise begins", 0.25, "duration_s", 0.0),
            "rise_s": _seconds("how long it takes", 0.5, "duration_s"),
        },
        lengths=_lognormal,
    ),
    "waves": _Load(
        what="smooth waves between low and high, from low",
        level=_waves,
        keys={**_LEVELS, "period_s": _seconds("from crest to crest", 1200.0)},
        lengths=_lognormal,
    ),
    "diurnal": _Load(
        what="a working day of 24 hours from midnight; a smaller duration_s squeezes the day into it",
        level=_diurnal,
        keys={**_LEVELS, "period_s": _seconds("length of a day", 1.0, "duration_s")},
        common={"duration_s": 86400.0},
        lengths=_lognormal,
    ),
    "mmpp": _Load(
        what="bursts: jumps between low and high after random times (a two-state MMPP)",
        level=_bursts,
        keys=_BURSTS,
        lengths=_lognormal,
    ),
    "flash": _Load(
        what="flash crowd: low, one sudden rise to high, a plateau, back to low",
        level=_flash,
        keys={
            **_LEVELS,
            "at_s": _seconds("when the crowd comes", 0.5, "duration_s", 0.0),
            "rise_s": _seconds("how fast it comes", 15.0),
            "hold_s": _seconds("how long it stays", 0.2, "duration_s"),
            "fall_s": _seconds("how long it takes to leave", 0.1, "duration_s"),
        },
        lengths=_lognormal,
    ),
    "daily-flash": _Load(
        what="a flash crowd at the same hour every day, for three days",
        level=_daily_flash,
        keys={
            **_LEVELS,
            "at_s": _seconds("when the crowd comes, after the day's begin", 43200.0, least=0.0),
            "jitter_s": _seconds("standard deviation of that from day to day", 60.0, least=0.0),
            "rise_s": _seconds("how fast it comes", 15.0),
            "hold_s": _seconds("how long it stays", 1200.0),
            "fall_s": _seconds("how long it takes to leave", 600.0),
            "period_s": _seconds("length of a day", 86400.0),
        },
        common={"duration_s": 3 * 86400.0},
        lengths=_lognormal,
    ),
    "drift": _Load(
        what="drifting lengths: a constant request rate while prompts and outputs grow",
        level=_constant,
        keys={
            "level": Key(_WORK, "level at the start; it grows with the lengths", 0.35, "max_replicas"),
            "prompt_end_tokens": Key("tokens", "mean prompt at the end", 2400.0, least=1.0, most=1e7),
            "output_end_tokens": Key("tokens", "mean output at the end", 420.0, least=1.0, most=1e7),
        },
        lengths=_drifting,
    ),
    "heavy": _Load(
        what="heavy-tailed lengths: a constant rate, a few requests of many times the mean",
        level=_constant,
        keys={
            **_LEVEL,
            "tail": Key("", "tail exponent; nearer to 1 is heavier", 1.5, least=1.05, most=10.0),
            "max_prompt_tokens": Key("tokens", "longest prompt", 32768.0, least=4.0, most=1e7),
            "max_output_tokens": Key("tokens", "longest output", 8192.0, least=4.0, most=1e7),
        },
        lengths=_heavy_tailed,
    ),
    "decode": _Load(
        what="decode-heavy bursts: short prompts, long outputs (200 and 600 tokens)",
        level=_bursts,
        keys=_BURSTS,
        common={"prompt_tokens": 200.0, "output_tokens": 600.0},
        lengths=_lognormal,
    ),
    "prefill": _Load(
        what="prefill-heavy bursts: long prompts, short outputs (4000 and 60 tokens)",
        level=_bursts,
        keys=_BURSTS,
        common={"prompt_tokens": 4000.0, "output_tokens": 60.0},
        lengths=_lognormal,
    ),
}

# What rules are compared on, with absolute levels; give the policy at least this many replicas.
MATRIX_REPLICAS = 64
MATRIX: dict[str, str] = {
    "waves-5m": "waves:low=0,high=20,period_s=300",
    "waves-10m": "waves:low=0,high=20,period_s=600",
    "waves-20m": "waves:low=0,high=20,period_s=1200,duration_s=5700",
    "waves-40m": "waves:low=0,high=20,period_s=2400,duration_s=8100",
    "ramp": "ramp:low=3,high=18",
    "mmpp-1": "mmpp:low=4,high=16,duration_s=5400,variant=1",
    "mmpp-2": "mmpp:low=4,high=16,duration_s=5400,variant=2",
    "flash": "flash:low=4,high=16",
    "diurnal": "diurnal:low=2,high=18,duration_s=8100",
    "drift": "drift:level=7",
    "heavy": "heavy:level=10",
    "decode": "decode:low=4,high=16,duration_s=5400",
    "prefill": "prefill:low=4,high=16,duration_s=5400",
}
