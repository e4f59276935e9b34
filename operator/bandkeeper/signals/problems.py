"""What is wrong with the signals that a policy names, before anything is asked: sentences for its conditions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from bandkeeper.api.signals import LATENCY_SIGNALS, THROUGHPUT_SIGNALS, Signal
from bandkeeper.api.v1alpha1 import SLO, Spec
from bandkeeper.signals.collector import CollectorSettings
from bandkeeper.signals.presets import PRESETS
from bandkeeper.signals.servers import SelectionError, Servers

_KNOWN = frozenset(Signal)
_NAMES_MOST = 8
_ALIKE = 0.7


class ProblemReason(StrEnum):
    """Reasons of conditions."""

    UNKNOWN_RUNTIME = "UnknownRuntime"
    UNKNOWN_SIGNAL = "UnknownSignal"
    INVALID_SLO = "InvalidSLO"
    SLO_WITHOUT_SOURCE = "SLOWithoutSource"
    BACKLOG_WITHOUT_SOURCE = "BacklogWithoutSource"
    PROMETHEUS_NOT_ALLOWED = "PrometheusNotAllowed"


@dataclass(frozen=True, slots=True)
class SpecProblem:
    """One thing that is wrong; the message says what to write instead."""

    reason: ProblemReason
    message: str


def problems(spec: Spec, settings: CollectorSettings) -> tuple[SpecProblem, ...]:
    """Everything that keeps the policy's signals from being read, the gravest first; empty when nothing does."""
    return (*_runtime(spec), *_prometheus(spec, settings), *_sources(spec), *_slos(spec), *_backlog(spec))


def _runtime(spec: Spec) -> Iterator[SpecProblem]:
    if spec.runtime not in PRESETS:
        yield SpecProblem(
            ProblemReason.UNKNOWN_RUNTIME,
            f"runtime {spec.runtime!r} is unknown: write {_choice(spec.runtime, PRESETS)}; Generic reads only what "
            "spec.signals gives",
        )


def _prometheus(spec: Spec, settings: CollectorSettings) -> Iterator[SpecProblem]:
    try:
        Servers(settings.servers, settings.allowed_urls).select(spec.prometheus)
    except SelectionError as error:
        yield SpecProblem(ProblemReason.PROMETHEUS_NOT_ALLOWED, str(error))


def _sources(spec: Spec) -> Iterator[SpecProblem]:
    for source in spec.signals:
        if source.signal not in _KNOWN:
            yield _unknown_signal("signals", source.signal, Signal)


def _slos(spec: Spec) -> Iterator[SpecProblem]:
    preset = PRESETS.get(spec.runtime)
    has = {*(preset.sources if preset else ()), *(source.signal for source in spec.signals)}
    for slo in spec.slos:
        fitting = LATENCY_SIGNALS if slo.threshold is not None else THROUGHPUT_SIGNALS
        if slo.signal not in _KNOWN:
            yield _unknown_signal("slos", slo.signal, fitting)
        elif slo.signal not in fitting:
            yield _unfit(slo)
        elif slo.signal not in has and preset:
            sourced = ", ".join(sorted(fitting & has))
            yield SpecProblem(
                ProblemReason.SLO_WITHOUT_SOURCE,
                f"runtime {spec.runtime} has no source for the SLO on {slo.signal}: "
                + (f"write one of {sourced}, or " if sourced else "")
                + f"give it one in spec.signals, such as {{signal: {slo.signal}, metric: NAME}}",
            )


def _backlog(spec: Spec) -> Iterator[SpecProblem]:
    preset = PRESETS.get(spec.runtime)
    if spec.backlog is None or preset is None:
        return
    given = {source.signal for source in spec.signals}
    backlog = {Signal.BACKLOG} if Signal.BACKLOG in given else {Signal.REQUESTS_RUNNING, Signal.REQUESTS_WAITING}
    for signal in sorted({*backlog, Signal(spec.backlog.rate)} - given - set(preset.sources)):
        yield SpecProblem(
            ProblemReason.BACKLOG_WITHOUT_SOURCE,
            f"runtime {spec.runtime} has no source for the backlog's {signal}: give it one in spec.signals, such as "
            f"{{signal: {signal}, metric: NAME}}"
            + ("" if signal in (Signal.BACKLOG, spec.backlog.rate) else ", or give the signal Backlog"),
        )


def _unfit(slo: SLO) -> SpecProblem:
    if slo.threshold is not None:
        advice = f"has no latency to hold under a threshold: write one of {', '.join(sorted(LATENCY_SIGNALS))}"
        if slo.signal in THROUGHPUT_SIGNALS:
            advice += ", or minPerSecond instead of threshold"
    else:
        advice = f"is not a rate of work done: write one of {', '.join(sorted(THROUGHPUT_SIGNALS))}"
        if slo.signal in LATENCY_SIGNALS:
            advice += ", or threshold instead of minPerSecond"
    return SpecProblem(ProblemReason.INVALID_SLO, f"the SLO's signal {slo.signal} {advice}")


def _unknown_signal(where: str, name: str, known: Iterable[str]) -> SpecProblem:
    return SpecProblem(
        ProblemReason.UNKNOWN_SIGNAL, f"signal {name!r} in spec.{where} is unknown: write {_choice(name, known)}"
    )


def _choice(given: str, known: Iterable[str]) -> str:
    """The known names, the likeliest alone in front where one is like what was given, the least like left out."""
    names = sorted(known)
    likeness = {name: difflib.SequenceMatcher(None, given.lower(), name.lower()).ratio() for name in names}
    nearest = max(names, key=likeness.__getitem__)
    if len(names) > _NAMES_MOST:
        shown = sorted(names, key=likeness.__getitem__, reverse=True)[:_NAMES_MOST]
        listed = f"{', '.join(sorted(shown))} and {len(names) - _NAMES_MOST} more"
    else:
        listed = ", ".join(names)
    return f"{nearest} (known are {listed})" if likeness[nearest] >= _ALIKE else f"one of {listed}"
