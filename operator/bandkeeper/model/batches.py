"""How long one batch of a dynamic-batching server takes, by its size, as it was seen. Pure.

A table and no line: throughput may have its maximum at an inner size, and what was never tried is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bandkeeper.api.records import dataclass, replace
from bandkeeper.model.curve import LoadCurve
from bandkeeper.model.steps import Estimate

_STEPS = 2  # rows of the table in each doubling of the size
_MEMORY = 20.0  # whole observations that a row remembers
_FARTHEST = 2.0  # times the largest size seen: so far is a straight line believed
_NOISE = 0.1  # of one observation, as a share
_TOLD = 0.5  # whole observations that the scale of a told table counts for


@dataclass(frozen=True, slots=True)
class _Row:
    """Means of the sizes near each other, and how many whole observations they are of."""

    batch: float
    seconds: float
    weight: float


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """Seconds of a batch by its size, in rising order. With the methods of `StepFit`: a sample stands for a token.

    `told` is a table that somebody else measured. It stands for the sizes that were not seen, at the `scale` that those
    have that were.
    """

    rows: tuple[tuple[int, _Row], ...] = ()
    observations: float = 0.0
    guess: bool = False
    told: tuple[tuple[int, _Row], ...] = ()
    scale: float = 1.0

    @classmethod
    def of_table(cls, table: Iterable[tuple[float, float]], observations: float) -> BatchTimes:
        """By what another process or a person measured: sizes of batches and their seconds."""
        rows = {_place(batch): _Row(batch, seconds, 0.0) for batch, seconds in table}
        return cls(observations=observations, told=tuple(sorted(rows.items())))

    def table(self, most: int) -> tuple[tuple[float, float], ...]:
        """Sizes and their seconds, at most so many: the ends, the best, and those that lie evenly between."""
        rows = [(row.batch, row.seconds) for row in self._known()]
        if len(rows) <= most:
            return tuple(rows)
        best = max(range(len(rows)), key=lambda place: rows[place][0] / rows[place][1])
        kept = {round(number * (len(rows) - 1) / (most - 2)) for number in range(most - 1)} | {best}
        return tuple(rows[place] for place in sorted(kept))

    def told_s(self, batch: float) -> float | None:
        """Seconds of one batch as they were told; None where nothing was, or of so large a batch."""
        rows = [row for _, row in self.told]
        return _seconds(rows, batch) if rows and batch <= _FARTHEST * rows[-1].batch else None

    def seen(self, batch: float, prompt_tokens: float, token_s: float, weight: float) -> BatchTimes:
        """With one more observation: mean size of a batch and the time that it took."""
        place = _place(batch)
        rows = dict(self.rows)
        before = rows.get(place, _Row(batch, token_s, 0.0))
        share = weight / (weight + min(_MEMORY, before.weight))
        rows[place] = _Row(
            before.batch + share * (batch - before.batch),
            before.seconds + share * (token_s - before.seconds),
            min(_MEMORY, before.weight + weight),
        )
        return replace(
            self,
            rows=tuple(sorted(rows.items())),
            observations=self.observations + weight,
            scale=self._scaled(batch, token_s, weight),
        )

    def _scaled(self, batch: float, token_s: float, weight: float) -> float:
        told_s = self.told_s(batch)
        if told_s is None:
            return self.scale
        before = math.fsum(row.weight for _, row in self.rows)
        share = weight / (weight + min(_MEMORY, _TOLD + before))
        return self.scale * math.pow(token_s / (told_s * self.scale), share)

    def loosened(self) -> BatchTimes:
        """Another server: nothing is known of it."""
        return NO_BATCHES

    @property
    def parameters(self) -> tuple[float, float, float]:
        """Seconds of a batch that is nearly empty, and for each more of its samples; there are no prompt tokens."""
        line = self._line()
        return (*line, 0.0)

    def seconds(self, batch: float) -> float:
        """Of one batch; between two rows and beyond them along a straight line."""
        return _seconds(self._known(), batch)

    def best(self, batch: float) -> float:
        """The size of most throughput up to `batch`, no farther than is believed."""
        rows = self._known()
        farthest = min(batch, _FARTHEST * max((row.batch for row in rows), default=batch))
        known = [row.batch for row in rows if row.batch <= farthest]
        return max((*known, farthest), key=lambda size: size / _seconds(rows, size))

    def _known(self) -> list[_Row]:
        """What was seen, and what was told of the other sizes."""
        if not self.told:
            return [row for _, row in self.rows]
        told = {place: replace(row, seconds=self.scale * row.seconds) for place, row in self.told}
        return sorted((told | dict(self.rows)).values(), key=lambda row: row.batch)

    def work_s(self, prompt_tokens: float, output_tokens: float, batch: float) -> Estimate:
        """Replica-seconds of so many samples at the best size up to `batch`; needs an observation."""
        size = self.best(batch)
        each_s = output_tokens * self.seconds(size) / size
        near = min(self._known(), key=lambda row: abs(row.batch - size))
        return Estimate(each_s, each_s * _NOISE / math.sqrt(max(1.0, near.weight)))

    def curve(self, batch: float, prompts_per_output: float) -> LoadCurve:
        """Throughput against the share of `batch`, as near as the straight line from the smallest size comes."""
        base, each = self._line()
        return LoadCurve(batch * each / base)

    def _line(self) -> tuple[float, float]:
        """From the least time to that at the best size."""
        size = self.best(math.inf)
        base = min(row.seconds for row in self._known())
        return base, max(0.0, self.seconds(size) - base) / size


def _place(batch: float) -> int:
    return round(_STEPS * math.log2(max(1.0, batch)))


def _seconds(rows: Sequence[_Row], batch: float) -> float:
    if len(rows) == 1:
        return rows[0].seconds * max(1.0, batch / rows[0].batch)
    index = next((place for place, row in enumerate(rows) if row.batch >= batch), len(rows) - 1)
    below, above = rows[max(0, index - 1)], rows[max(1, index)]
    slope = _slope(below, above)
    if batch > above.batch:  # no less steep than all of them together: two rows near each other tell little
        slope = max(slope, _slope(rows[0], above))
    return max(rows[0].seconds * min(1.0, batch / rows[0].batch), below.seconds + slope * (batch - below.batch))


def _slope(below: _Row, above: _Row) -> float:
    return max(0.0, (above.seconds - below.seconds) / max(1e-9, above.batch - below.batch))


NO_BATCHES = BatchTimes()
