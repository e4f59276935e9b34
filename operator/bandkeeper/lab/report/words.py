"""Figures in plain words: how the reports write times, shares, latencies and promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import floor, isfinite, log10

from bandkeeper.api.signals import CATALOGUE, Signal, SignalKind
from bandkeeper.lab.result import Result, SLOResult

UNKNOWN = "not known"
RULES_ALONE = (
    "What one rule alone cost are GPU-hours that would not have been held without it, all others kept. What two rules "
    "asked for alike, neither cost alone: they do not add up."
)
_NO_RULES = ("work", "unknown")
_THINGS = {
    Signal.TIME_TO_FIRST_TOKEN: "first tokens",
    Signal.INTER_TOKEN_LATENCY: "token gaps",
    Signal.END_TO_END_LATENCY: "answers",
    Signal.QUEUE_TIME: "queue waits",
}
_NAMES = {
    Signal.TIME_TO_FIRST_TOKEN: "Time to first token",
    Signal.INTER_TOKEN_LATENCY: "Time between tokens",
    Signal.END_TO_END_LATENCY: "End-to-end latency",
    Signal.QUEUE_TIME: "Time in queue",
    Signal.REQUESTS_FINISHED: "Requests finished",
    Signal.PROMPT_TOKENS: "Prompt tokens",
    Signal.GENERATION_TOKENS: "Generated tokens",
    Signal.SAMPLES: "Samples processed",
}


def number(value: float, digits: int = 3) -> str:
    """`digits` significant ones, thousands with commas: 0.0123, 4.56, 41.3, 12,346."""
    if not isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else UNKNOWN
    if value == 0:
        return "0"
    places = max(0, digits - 1 - floor(log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int, thing: str) -> str:
    """`1 replica`, `2 replicas`."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def count_of(value: float, thing: str) -> str:
    """`1.6 replicas`."""
    text = number(value)
    return f"{text} {thing}{'' if text == '1' else 's'}"


def share(value: float | None, *, below: float = 1.0) -> str:
    """A ratio in percent; one less than `below` never reads as if it were not, nor one above 0 as 0."""
    if value is None:
        return UNKNOWN
    for places in (1, 2, 3):
        shown = round(100 * value, places)
        if (value >= below or shown < 100 * below) and (value <= 0 or shown > 0):
            return f"{shown:.{places}f}".removesuffix(".0") + " %"
    return "< 0.001 %" if value < 0.5 else f"> {100 * below - 0.001:.3f} %"


def held_for(hours: Mapping[str, float]) -> tuple[str, str]:
    """The rule that cost most alone, and the others that cost something: `peak: 6.65 GPU-h`, `hold 1.41, slo 0.07`."""
    rules = sorted((rule for rule in hours if rule not in _NO_RULES and hours[rule] >= 0.005), key=hours.__getitem__)
    if not rules:
        return "nothing", ""
    most, others = rules[-1], reversed(rules[:-1])
    return f"{most}: {number(hours[most])} GPU-h", ", ".join(f"{rule} {number(hours[rule])}" for rule in others)


def rule_hours(hours: Mapping[str, float]) -> str:
    """What the work took and single rules cost, in GPU-hours; rules that cost nothing are left out."""
    told = {rule: f"{rule} {value:.2f}" for rule, value in hours.items() if value >= 0.005}
    work, unknown = told.pop("work", "work 0.00"), told.pop("unknown", "")
    parts = (work, f"each rule alone: {', '.join(told.values()) or 'nothing'}", unknown)
    return "; ".join(filter(None, parts))


def latency(seconds: float | None) -> str:
    """`47 ms`, `1.25 s`, `not known`."""
    if seconds is None:
        return UNKNOWN
    return f"{number(1000 * seconds)} ms" if seconds < 1 else f"{number(seconds)} s"


def duration(seconds: float) -> str:
    """A length of time: `45 s`, `15 min`, `1 h 30 min`, `24 h`."""
    if seconds < 120:
        return f"{number(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h" + (f" {rest} min" if rest else "")


def clock(at_s: float, origin_s: float | None = None) -> str:
    """A moment: `0:15:00` since the start, or the time of day in UTC where `origin_s` is the start's epoch."""
    if origin_s is not None:
        return datetime.fromtimestamp(origin_s + at_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    whole = round(at_s)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def times(value: float | None) -> str:
    """`1.24 ×`, `-` where not known."""
    return "-" if value is None else f"{number(value)} ×"


def goal(signal: str, threshold: float, least: float, percentile: int | None) -> str:
    """What a comparison asks for: `95 % of token gaps under 50 ms`."""
    if percentile is None:
        return f"{share(least)} of the time at least {number(threshold)} {rate_unit(signal)}"
    return f"{share(least)} of {thing(signal)} under {latency(threshold)}"


def thing(signal: str) -> str:
    """What a latency is one of: first tokens, token gaps; a name that is not known stays as it is."""
    return _THINGS.get(Signal(signal), signal) if signal in set(Signal) else signal


def signal_name(signal: str) -> str:
    """The signal in words; a name that is not known stays as it is."""
    return _NAMES.get(Signal(signal), signal) if signal in set(Signal) else signal


def rate_unit(signal: str) -> str:
    """Unit of a throughput promise, such as tokens/s."""
    known = signal in set(Signal) and CATALOGUE[Signal(signal)].kind is SignalKind.COUNTER
    return f"{CATALOGUE[Signal(signal)].unit}/s" if known else "/s"


def promise(slo: SLOResult) -> str:
    """What was promised: `95 % within 500 ms`, `at least 20 requests/s`."""
    if slo.percentile is None:
        return f"at least {number(slo.threshold)} {rate_unit(slo.signal)}"
    return f"{slo.percentile} % within {latency(slo.threshold)}"


def reached(slo: SLOResult) -> str:
    """What came of it: `p95 431 ms`, `23.4 requests/s`."""
    if slo.value is None:
        return UNKNOWN
    if slo.percentile is None:
        return f"{number(slo.value)} {rate_unit(slo.signal)}"
    return f"p{slo.percentile} {latency(slo.value)}" if isfinite(slo.value) else f"p{slo.percentile} never came"


def attained(slo: SLOResult) -> str:
    """The share that kept the promise, never rounded up to it."""
    missed = slo.percentile is not None and kept(slo) is False
    return share(slo.attainment, below=(slo.percentile or 100) / 100 if missed else 1.0)


def kept(slo: SLOResult) -> bool | None:
    """Whether the promise was kept over the judged time; None where nothing was asked for."""
    if slo.percentile is None:
        return None if slo.value is None else slo.value >= slo.threshold
    return None if slo.attainment is None else slo.attainment >= slo.percentile / 100


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def headline(result: Result) -> str:
    """What happened, in one sentence."""
    cost = f"{number(result.gpu_hours)} GPU-hours"
    judged = [slo for slo in result.slos if kept(slo) is not None]
    if not judged:
        done = f"Finished {result.requests.finished:,} of {count(result.requests.arrived, 'request')} for {cost}"
        return f"{done}; {'no promise could be judged' if result.slos else 'no SLO was asked for'}."
    good = [_deed(slo) for slo in judged if kept(slo)]
    bad = [_deed(slo, missed=True) for slo in judged if not kept(slo)]
    if not bad:
        return f"Kept {joined(good)} for {cost}."
    also = f"; kept {joined(good)}" if good else ""
    return f"Missed the SLO: only {joined(bad)}{also}. Cost {cost}."


def _deed(slo: SLOResult, *, missed: bool = False) -> str:
    if slo.percentile is None:
        return f"{number(slo.value or 0)} {rate_unit(slo.signal)} ({promise(slo)} promised)"
    promised = f" ({slo.percentile} % promised)" if missed else ""
    return f"{attained(slo)} of {thing(slo.signal)} under {latency(slo.threshold)}{promised}"
