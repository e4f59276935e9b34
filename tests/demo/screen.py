"""What the demo says in the terminal: a live table where there is one, plain lines where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bandkeeper.api.signals import Signal
from bandkeeper.decide.policy import LatencySLO, Policy

from .figures import Move
from .picture import COLOURS, Course
from .record import Recorder
from .scenario import MEMBERS

MOVES_SHOWN = 8
PLAIN_EVERY_S = 15.0
WIDE = 100  # columns, for the reason too


class Screen:
    """Shows a recording as it grows."""

    def __init__(self, console: Console, total_s: float) -> None:
        self._console = console
        self._total_s = total_s
        self._policies = {member.name: member.policy for member in MEMBERS}
        self._live: Live | None = None
        self._told_moves = 0
        self._told_s = float("-inf")

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw in place while inside, if this is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4, transient=True) as self._live:
            yield
        self._live = None

    def show(self, recorder: Recorder) -> None:
        """The newest look, and what was decided since the one before."""
        if self._live is not None:
            moves = [_move_line(move) for move in recorder.moves[-MOVES_SHOWN:]]
            self._live.update(Group(self._table(recorder), Text("\nLast moves", style="bold"), *moves))
            return
        for move in recorder.moves[self._told_moves :]:
            self._console.print(_move_line(move), soft_wrap=True)
        self._told_moves = len(recorder.moves)
        if recorder.at_s - self._told_s >= PLAIN_EVERY_S:
            self._told_s = recorder.at_s
            self._console.print(self._table(recorder))

    def _table(self, recorder: Recorder) -> Table:
        offered = max((series[-1].offered_per_s for series in recorder.samples.values() if series), default=0.0)
        title = f"{recorder.at_s:.0f} s of {self._total_s:.0f} s, {offered:.0f} requests/s to each"
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        headings = ["Policy", "Ready/wanted", "Batch cap", "Utilisation", "TTFT p95", "ITL p95"]
        with_reason = self._console.width >= WIDE
        for heading in [*headings, "Reason"] if with_reason else headings:
            table.add_column(heading, no_wrap=True)
        for name, policy in self._policies.items():
            if recorder.samples[name]:
                cells = list(_row(name, policy, recorder))
                table.add_row(*(cells if with_reason else cells[:-1]))
        return table


def _row(name: str, policy: Policy, recorder: Recorder) -> Iterator[str | Text]:
    sample, glance = recorder.samples[name][-1], recorder.glances[name]
    yield Text(name, style=COLOURS[policy.objective])
    yield f"{sample.ready}/{'-' if sample.wanted is None else sample.wanted}"
    yield "-" if sample.cap is None else f"{sample.cap:.0f}"
    band = policy.band
    if glance.utilization is None:
        yield "-"
    else:
        style = "green" if band.low <= glance.utilization <= band.high else "yellow"
        yield Text(f"{glance.utilization:4.0%} ({100 * band.low:.0f}-{100 * band.high:.0f})", style=style)
    for signal in (Signal.TIME_TO_FIRST_TOKEN, Signal.INTER_TOKEN_LATENCY):
        yield _promise(policy, signal, glance.p95_s.get(signal))
    yield glance.reason


def _promise(policy: Policy, signal: Signal, value_s: float | None) -> str | Text:
    if value_s is None:
        return "-"
    slo = next((one for one in policy.slos if isinstance(one, LatencySLO) and one.signal is signal), None)
    if slo is None:
        return f"{1000 * value_s:.0f} ms"
    style = "green" if value_s <= slo.threshold_s else "red"
    return Text(f"{1000 * value_s:.0f} of {1000 * slo.threshold_s:.0f} ms", style=style)


def _move_line(move: Move) -> Text:
    return Text.assemble(
        (f"{move.at_s:5.0f} s ", "dim"), (f"{move.name:<16}", "bold"), f" {move.reason}: {move.message}"
    )


def summary(courses: Sequence[Course]) -> Table:
    """The figures, one row for each objective."""
    table = Table(title="Summary", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("Objective", "SLO kept in", "Band held in", "GPU-seconds", "Most replicas", "Changes of replicas"):
        table.add_column(heading, justify="left" if heading == "Objective" else "right")
    for course in courses:
        found = course.figures
        table.add_row(
            Text(course.policy.objective, style=COLOURS[course.policy.objective]),
            f"{found.inside_slo} intervals",
            f"{found.in_band} intervals",
            f"{found.gpu_s:,.0f}",
            str(found.most_replicas),
            str(found.changes),
        )
    return table
