"""A workload's recorded past: one snapshot for each tick, and the file that holds it, one line of JSON for each."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution, Gap, GapReason, Pod, PodState, Reading, Snapshot, Target

FORMAT: Literal["bandkeeper-history"] = "bandkeeper-history"
VERSION: Literal[1] = 1
LATE = 1.5  # steps without a moment that are taken for a hole
_MANAGER = "the past"

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Moments = tuple["Moment", ...]
Model = TypeVar("Model", bound=BaseModel)


class HistoryError(ValueError):
    """The history cannot be used; the text says where and what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was recorded of one tick.

    Attributes
    ----------
    at_s
        Epoch seconds.
    snapshot
        As the operator would have had it; the target's replicas are those that were ordered.
    dark
        Nothing was recorded: the pods are those seen last, and every signal is missing.
    """

    at_s: float
    snapshot: Snapshot
    dark: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Moments in order of time, `step_s` apart without a hole: what is missing is there as dark.

    `notes` are sentences for a person: how pods were told, what was assumed.
    """

    namespace: str
    workload: str
    runtime: str
    step_s: float
    moments: Moments
    notes: tuple[str, ...] = ()

    def without_holes(self) -> History:
        """With dark moments where some are missing; a hole before the first or after the last is none."""
        filled: list[Moment] = []
        for moment in self.moments:
            if filled:
                before = filled[-1]
                missing = round((moment.at_s - before.at_s) / self.step_s) - 1
                late = moment.at_s - before.at_s > LATE * self.step_s
                filled += [_darkened(before, (number + 1) * self.step_s) for number in range(missing if late else 0)]
            filled.append(moment)
        return replace(self, moments=tuple(filled))


def _darkened(before: Moment, after_s: float) -> Moment:
    """`after_s` later, with the same pods and nothing known of them."""
    signals = sorted({*before.snapshot.by_pod, *before.snapshot.totals, *(gap.signal for gap in before.snapshot.gaps)})
    latencies = sorted({signal for signal, _ in before.snapshot.distributions} - set(signals))
    gaps = tuple(
        Gap(signal=signal, reason=GapReason.ABSENT, detail="nothing was recorded then")
        for signal in (*signals, *latencies)
    )
    pods = tuple(
        replace(pod, age_s=pod.age_s + after_s, state_age_s=pod.state_age_s + after_s) for pod in before.snapshot.pods
    )
    return Moment(
        at_s=before.at_s + after_s, snapshot=Snapshot(target=before.snapshot.target, pods=pods, gaps=gaps), dark=True
    )


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Header(_Part):
    """The first line."""

    format: Literal["bandkeeper-history"]
    version: Literal[1]
    namespace: str
    workload: str
    runtime: str
    step_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    notes: tuple[str, ...] = ()


class _Pod(_Part):
    name: str
    state: PodState = PodState.READY
    age_s: NotNegative = 0.0
    state_age_s: NotNegative = 0.0
    cap: Annotated[int, Field(ge=1)] | None = None
    capacity: Annotated[int, Field(ge=1)] | None = None
    queue_bound: Annotated[int, Field(ge=0)] | None = None


class _Latency(_Part):
    """`counts` has one entry more than `edges`: the last bucket is infinite. Or the source gives `quantiles`."""

    signal: Signal
    window_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    edges: tuple[NotNegative, ...] = ()
    counts: tuple[NotNegative, ...] = ()
    total_s: NotNegative | None = None
    quantiles: dict[int, NotNegative] = {}
    age_s: NotNegative = 0.0

    @model_validator(mode="after")
    def _fits(self) -> _Latency:
        if self.quantiles and (self.edges or self.counts):
            raise ValueError("write either quantiles or edges with counts")
        if self.counts and len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts: the last bucket is infinite")
        return self


class _Gap(_Part):
    signal: Signal
    reason: GapReason
    detail: str = ""
    pods: tuple[str, ...] = ()


Value = tuple[NotNegative, NotNegative]  # value and age in seconds


class _Line(_Part):
    """One tick: `replicas` is what was ordered, `levels` hold value and age by pod, `totals` for the whole workload."""

    at: NotNegative
    replicas: Annotated[int, Field(ge=0)]
    pods: tuple[_Pod, ...]
    levels: dict[Signal, dict[str, Value]] = {}
    totals: dict[Signal, Value] = {}
    latencies: tuple[_Latency, ...] = ()
    gaps: tuple[_Gap, ...] = ()
    dark: bool = False


def write(history: History, path: Path) -> None:
    """Writes the history to `path`, compressed where its name ends in .gz."""
    header = _Header(
        format=FORMAT,
        version=VERSION,
        namespace=history.namespace,
        workload=history.workload,
        runtime=history.runtime,
        step_s=history.step_s,
        notes=history.notes,
    )
    lines = [header.model_dump_json(), *(_written(moment) for moment in history.moments)]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def read(path: Path) -> History:
    """A history from a file that `write` or somebody else wrote.

    Raises
    ------
    HistoryError
        The file cannot be read, a line is wrong (with its number and the reason), or times do not ascend.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise HistoryError(f"{path}: is empty; write one with bandkeeper replay --prometheus URL --export FILE")
    header = _header(path, first[1])
    moments: list[Moment] = []
    for number, text in lines:
        moment = _moment(path, number, text)
        if moments and moment.at_s <= moments[-1].at_s:
            raise HistoryError(f"{path}, line {number}: {moment.at_s:.0f} is not after the line before: sort by time")
        moments.append(moment)
    if not moments:
        raise HistoryError(f"{path}: has a header and no moments; give a longer time")
    return History(
        namespace=header.namespace,
        workload=header.workload,
        runtime=header.runtime,
        step_s=header.step_s,
        moments=tuple(moments),
        notes=header.notes,
    ).without_holes()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except OSError as error:
        raise HistoryError(f"{path}: cannot be read ({error.strerror or error}); give an existing file") from None
    except (EOFError, UnicodeDecodeError, ValueError):
        raise HistoryError(f"{path}: is neither JSON lines in UTF-8 nor these compressed by gzip") from None
    return ((number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip())


def _header(path: Path, text: str) -> _Header:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HistoryError(f'{path}: line 1 must be a header with "format": "{FORMAT}"; docs/replay.md has the format')
    if document.get("version") != VERSION:
        raise HistoryError(f"{path}: is of version {document.get('version')!r}; this program reads {VERSION}")
    return _parsed(_Header, path, 1, text)


def _moment(path: Path, number: int, text: str) -> Moment:
    line = _parsed(_Line, path, number, text)
    return Moment(at_s=line.at, snapshot=_snapshot(line), dark=line.dark)


def _parsed(model: type[Model], path: Path, number: int, text: str) -> Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise HistoryError(f"{path}, line {number}: {where}: {first['msg']}") from None


def _snapshot(line: _Line) -> Snapshot:
    return Snapshot(
        target=Target(uid=_MANAGER, replicas=line.replicas, manager=_MANAGER),
        pods=tuple(Pod(uid=pod.name, **dict(pod)) for pod in line.pods),
        by_pod={
            signal: {pod: Reading(*value) for pod, value in values.items()} for signal, values in line.levels.items()
        },
        totals={signal: Reading(*value) for signal, value in line.totals.items()},
        distributions={(one.signal, round(one.window_s)): _distribution(one) for one in line.latencies},
        gaps=tuple(Gap(signal=gap.signal, reason=gap.reason, detail=gap.detail, pods=gap.pods) for gap in line.gaps),
    )


def _distribution(one: _Latency) -> Distribution:
    return Distribution(
        window_s=one.window_s,
        edges=(*one.edges, math.inf) if one.counts else (),
        counts=one.counts,
        total_s=one.total_s,
        quantiles=one.quantiles,
        age_s=one.age_s,
    )


def _written(moment: Moment) -> str:
    snapshot = moment.snapshot
    content: dict[str, Any] = {
        "at": moment.at_s,
        "replicas": snapshot.target.replicas if snapshot.target else 0,
        "pods": [_pod(pod) for pod in snapshot.pods],
        "levels": {
            signal: {pod: _value(reading) for pod, reading in sorted(readings.items())}
            for signal, readings in sorted(snapshot.by_pod.items())
        },
        "totals": {signal: _value(reading) for signal, reading in sorted(snapshot.totals.items())},
        "latencies": [
            _latency(signal, snapshot.distributions[signal, window])
            for signal, window in sorted(snapshot.distributions)
        ],
        "gaps": [
            {"signal": gap.signal, "reason": gap.reason, "detail": gap.detail, "pods": list(gap.pods)}
            for gap in snapshot.gaps
        ],
        "dark": moment.dark,
    }
    return json.dumps({name: value for name, value in content.items() if value or name in _ALWAYS}, allow_nan=False)


_ALWAYS = ("at", "replicas", "pods")


def _pod(pod: Pod) -> dict[str, Any]:
    content = {
        "name": pod.name,
        "state": pod.state,
        "age_s": pod.age_s,
        "state_age_s": pod.state_age_s,
        "cap": pod.cap,
        "capacity": pod.capacity,
        "queue_bound": pod.queue_bound,
    }
    return {name: value for name, value in content.items() if value is not None}


def _latency(signal: Signal, one: Distribution) -> dict[str, Any]:
    content: dict[str, Any] = {"signal": signal, "window_s": one.window_s, "age_s": one.age_s}
    if one.counts:
        content |= {"edges": list(one.edges[:-1]), "counts": list(one.counts)}
    if one.total_s is not None:
        content["total_s"] = one.total_s
    if one.quantiles:
        content["quantiles"] = {str(percentile): value for percentile, value in one.quantiles.items()}
    return content


def _value(reading: Reading) -> list[float]:
    return [reading.value, reading.age_s]
