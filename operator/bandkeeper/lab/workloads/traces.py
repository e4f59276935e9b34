"""Recorded loads: Azure LLM CSV, BurstGPT CSV, Mooncake JSONL, and plain lists of times; also as .gz.

The header or the first line tells the format. Times may be seconds (Mooncake: milliseconds) or ISO 8601 (UTC where no
zone is given) and are counted from the first request; lines are numbered as editors do.

What is not refused is counted in the notes: times that go back by up to a minute are sorted, gaps are kept, and
BurstGPT's requests without response tokens (they failed where they were recorded; how long the answer would have been
is not known) are left out, as its authors do in their files without failures.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bandkeeper.lab.requests import Requests, Seconds
from bandkeeper.lab.workloads import MOST_REQUESTS, LoadError

Row = tuple[int, Sequence[Any] | None]  # line number; time, prompt and output as they stand, None: no such row

SORTED_S = 60.0
NOTED_GAP_S = 3600.0
LONGEST_GAP_S = 7 * 86400.0
MOST_TOKENS = 10_000_000
_MOST_SECONDS = 1e11  # the year 5138; milliseconds since 1970 are above
_CHUNK = 50_000
_LISTED = 5
_SHORTEST_ISO = len("2023-11-16 18:15")  # a date alone is no time


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    columns: tuple[str, ...]  # time, prompt and output tokens; the time alone
    shown: tuple[str, ...]
    unit_s: float = 1.0
    zero_output_failed: bool = False


def _format(name: str, *columns: str, unit_s: float = 1.0, zero_output_failed: bool = False) -> _Format:
    return _Format(name, tuple(column.lower() for column in columns), columns, unit_s, zero_output_failed)


_AZURE = _format("Azure LLM", "TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT = _format("BurstGPT", "Timestamp", "Request tokens", "Response tokens", zero_output_failed=True)
_MOONCAKE = _format("Mooncake", "timestamp", "input_length", "output_length", unit_s=1e-3)
_LENGTHS = _format("times with lengths", "timestamp", "prompt_tokens", "output_tokens")
_TIMES = _format("times", "timestamp")
_KNOWN = (
    "Known are CSV files with the columns TIMESTAMP,ContextTokens,GeneratedTokens (Azure LLM), with Timestamp, "
    "Request tokens and Response tokens (BurstGPT) or with timestamp,prompt_tokens,output_tokens, JSON lines with "
    "timestamp, input_length and output_length (Mooncake), and lists of times in seconds, one a line"
)


@dataclass(slots=True)
class _Table:
    """What was read so far, in chunks."""

    format: _Format
    lines: list[npt.NDArray[np.int64]] = field(default_factory=list)
    columns: list[list[Seconds]] = field(default_factory=list)
    usable: int = 0
    bad: int = 0
    reasons: list[str] = field(default_factory=list)
    failed: int = 0


def read(path: str | Path, *, skip_bad: bool, prompt_tokens: int = 1155, output_tokens: int = 211) -> Requests:
    """The requests that a trace file recorded.

    Parameters
    ----------
    path
        Text in UTF-8, plain or gzip.
    skip_bad
        Leave out rows that cannot be used and count them in the notes, and sort times however far they go back;
        False: refuse the file.
    prompt_tokens, output_tokens
        Lengths of every request where the file has times only.

    Raises
    ------
    LoadError
        The file cannot be read, is no known format, has no usable row, has bad rows (the first five are named) or a
        gap of more than a week.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            unpacked: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="") as text:
                table = _read(text)
        return _requests(table, path.name, skip_bad, prompt_tokens, output_tokens)
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise LoadError(f"{path}: not text in UTF-8; convert it first, or unpack it if it is an archive") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise LoadError(f"{path}: the gzip file is damaged or cut short; fetch it again") from None
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from None


def _read(file: Iterable[str]) -> _Table:
    lines = iter(file)
    number, first = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (0, ""))
    if not number:
        raise LoadError("the file is empty")
    if first.startswith("version https://git-lfs"):
        raise LoadError("this is a Git LFS pointer, not the data: fetch the file with `git lfs pull`")
    if first.lstrip().startswith("{"):
        table = _Table(_MOONCAKE)
        _fill(table, _json_rows(chain([first], lines), number))
        return table
    header = next(csv.reader([first]))
    table = _Table(_csv_format(header))
    names = [name.strip().lower() for name in header]
    if table.format is not _TIMES:
        _fill(table, _csv_rows(lines, number, [names.index(column) for column in table.format.columns]))
    elif names == list(_TIMES.columns):
        _fill(table, _time_rows(lines, number + 1))
    else:  # no header: the first line is a time
        _fill(table, _time_rows(chain([first], lines), number))
    return table


def _csv_format(header: Sequence[str]) -> _Format:
    names = {name.strip().lower() for name in header}
    for one in (_AZURE, _BURSTGPT, _LENGTHS):
        if names.issuperset(one.columns):
            return one
    if len(header) == 1 and (names == set(_TIMES.columns) or not math.isnan(_time(header[0]))):
        return _TIMES
    shown = ",".join(header)
    raise LoadError(f"the first line is no known header: {shown[:80]!r}. {_KNOWN}")


def _csv_rows(lines: Iterator[str], before: int, wanted: Sequence[int]) -> Iterator[Row]:
    """Rows of three columns; `before` lines came before."""
    pick = itemgetter(*wanted)
    last = max(wanted)
    reader = csv.reader(lines)
    try:
        for cells in reader:
            if len(cells) > last:
                yield before + reader.line_num, pick(cells)
            elif any(cell.strip() for cell in cells):
                yield before + reader.line_num, None
    except csv.Error as error:
        raise LoadError(f"line {before + reader.line_num}: {error}") from None


def _time_rows(lines: Iterable[str], first: int) -> Iterator[Row]:
    for number, line in enumerate(lines, first):
        if text := line.strip():
            yield number, (text,)


def _json_rows(lines: Iterable[str], first: int) -> Iterator[Row]:
    pick = itemgetter(*_MOONCAKE.columns)
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            cells = pick(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            cells = None
        yield number, cells


def _fill(table: _Table, rows: Iterator[Row]) -> None:
    while chunk := list(islice(rows, _CHUNK)):
        _take(table, chunk)
        if table.usable > MOST_REQUESTS:
            raise LoadError(f"more than {MOST_REQUESTS:,} requests are more than the lab takes; cut the file")


def _take(table: _Table, chunk: Sequence[Row]) -> None:
    """Checks a chunk of rows; the usable ones are kept as numbers."""
    whole = [(line, cells) for line, cells in chunk if cells is not None]
    shape = f"does not have {', '.join(table.format.shown)}"
    wrong = {line: shape for line, cells in chunk if cells is None}
    columns = [list(column) for column in zip(*(cells for _, cells in whole), strict=True)]
    values = [_times(columns[0], table.format.unit_s), *map(_numbers, columns[1:])] if whole else []
    usable = np.ones(len(whole), dtype=np.bool_)
    for position, column in enumerate(values):
        reason = _wrong_time if position == 0 else _wrong_length
        least = 0 if table.format.zero_output_failed and position == 2 else 1
        good = _good_times(column) if position == 0 else _good_lengths(column, least)
        for index in np.flatnonzero(usable & ~good):
            text = reason(columns[position][index], float(column[index]))
            wrong[whole[index][0]] = f"{table.format.shown[position]} {text}"
        usable &= good
    if table.format.zero_output_failed and values:
        failed = usable & (values[2] == 0)
        table.failed += int(failed.sum())
        usable &= ~failed
    table.lines.append(np.array([line for line, _ in whole], dtype=np.int64)[usable])
    table.columns.append([column[usable] for column in values])
    table.usable += int(usable.sum())
    table.bad += len(wrong)
    for line in sorted(wrong)[: _LISTED - len(table.reasons)]:
        table.reasons.append(f"line {line}: {wrong[line]}")


def _good_times(times: Seconds) -> npt.NDArray[np.bool_]:
    return np.isfinite(times) & (times >= 0) & (times <= _MOST_SECONDS)


def _good_lengths(lengths: Seconds, least: int) -> npt.NDArray[np.bool_]:
    good: npt.NDArray[np.bool_] = (lengths >= least) & (lengths <= MOST_TOKENS) & (lengths == np.rint(lengths))
    return good


def _wrong_time(written: object, value: float) -> str:
    if value < 0:
        return f"is {_short(written)}, before 0"
    if value > _MOST_SECONDS and math.isfinite(value):
        return f"is {_short(written)}: too large for seconds; are these milliseconds?"
    return f"is {_short(written)}, not a time"


def _wrong_length(written: object, value: float) -> str:
    if not math.isfinite(value) or value != round(value):
        return f"is {_short(written)}, not a whole number of tokens"
    return f"is {_short(written)}; it must be from 1 to {MOST_TOKENS:,}"


def _short(written: object) -> str:
    return repr(written)[:40] if written != "" else "missing"


def _numbers(written: Sequence[Any]) -> Seconds:
    try:
        return np.array([float(one) for one in written], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.array([_number(one) for one in written], dtype=np.float64)


def _times(written: Sequence[Any], unit_s: float) -> Seconds:
    try:
        return np.array([float(one) for one in written], dtype=np.float64) * unit_s
    except (ValueError, TypeError, OverflowError):
        pass
    try:  # the common case, ISO 8601 without a zone, at once
        moments = [datetime.fromisoformat(one) for one in written if len(one) >= _SHORTEST_ISO]
    except (ValueError, TypeError):
        moments = []
    if len(moments) < len(written) or any(moment.tzinfo for moment in moments):
        return np.array([_time(one, unit_s) for one in written], dtype=np.float64)
    return np.array(moments, dtype="datetime64[us]").astype(np.float64) / 1e6


def _number(written: Any) -> float:
    try:
        return float(written)
    except (ValueError, TypeError, OverflowError):
        return math.nan


def _time(written: Any, unit_s: float = 1.0) -> float:
    """Seconds from a number of `unit_s` or from ISO 8601 with a time of day; NaN for anything else."""
    if isinstance(written, str) and len(written) >= _SHORTEST_ISO:
        try:
            moment = datetime.fromisoformat(written.strip())
        except ValueError:
            return _number(written) * unit_s
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return _number(written) * unit_s


def _requests(table: _Table, name: str, skip_bad: bool, prompt_tokens: int, output_tokens: int) -> Requests:
    if table.bad and not (skip_bad and table.usable):
        raise LoadError(_refusal(table))
    if not table.usable:
        raise LoadError("there is no request in it" + (f", only {table.failed} failed ones" if table.failed else ""))
    times, *lengths = (np.concatenate(parts) for parts in zip(*(one for one in table.columns if one), strict=True))
    lines = np.concatenate(table.lines)
    notes = [f"{table.format.name} trace"]
    if table.bad:
        reasons = "; ".join(_reasons(table))
        notes.append(f"{table.bad} of {_all(table)} rows could not be used and were left out: {reasons}")
    if table.failed:
        notes.append(f"left out: {table.failed} without response tokens (they failed when recorded)")
    order = _in_order(times, lines, skip_bad, notes)
    arrival_s = times[order] - times[order[0]]
    _check_gaps(arrival_s, lines[order], notes)
    if not lengths:
        lengths = [np.full(len(times), float(prompt_tokens)), np.full(len(times), float(output_tokens))]
        notes.append(f"it has no lengths: every request has {prompt_tokens} prompt and {output_tokens} output tokens")
    # The last arrival is not the end of arriving: a mean gap follows it, so that the rate is right.
    duration_s = float(arrival_s[-1]) * len(times) / max(1, len(times) - 1)
    return Requests(
        arrival_s=arrival_s,
        prompt_tokens=lengths[0][order].astype(np.int32),
        output_tokens=lengths[1][order].astype(np.int32),
        duration_s=max(1.0, duration_s),
        name=name,
        notes=tuple(notes),
    )


def _in_order(times: Seconds, lines: npt.NDArray[np.int64], skip_bad: bool, notes: list[str]) -> npt.NDArray[np.int64]:
    steps = np.diff(times)
    back = np.flatnonzero(steps < 0)
    if not len(back):
        return np.arange(len(times))
    furthest = back[np.argmin(steps[back])]
    how_far = f"{-steps[furthest]:.3g} s at line {lines[furthest + 1]}"
    if -steps[furthest] > SORTED_S and not skip_bad:
        raise LoadError(
            f"times go back (rows: {len(back)}) by up to {how_far}; put the rows in order of time, or let them be "
            f"sorted (--skip-bad) if they are one recording"
        )
    notes.append(f"times went back (rows: {len(back)}) by up to {how_far}; they were sorted")
    return np.argsort(times, kind="stable")


def _check_gaps(arrival_s: Seconds, lines: npt.NDArray[np.int64], notes: list[str]) -> None:
    gaps = np.diff(arrival_s)
    if not len(gaps) or gaps.max() <= NOTED_GAP_S:
        return
    longest = int(gaps.argmax())
    where = f"{gaps[longest] / 3600:.3g} hours between lines {lines[longest]} and {lines[longest + 1]}"
    if gaps[longest] > LONGEST_GAP_S:
        raise LoadError(f"nothing arrives for {where}: one of the times is wrong, or the file should be cut there")
    notes.append(f"gaps of more than an hour were kept: {int((gaps > NOTED_GAP_S).sum())}, the longest {where}")


def _refusal(table: _Table) -> str:
    left_out = "; --skip-bad leaves them out and counts them" if table.usable else ""
    return "\n  ".join([f"{table.bad} of {_all(table)} rows cannot be used{left_out}:", *_reasons(table)])


def _reasons(table: _Table) -> list[str]:
    more = [f"and {table.bad - len(table.reasons)} more"] if table.bad > len(table.reasons) else []
    return [*table.reasons, *more]


def _all(table: _Table) -> int:
    return table.usable + table.failed + table.bad
