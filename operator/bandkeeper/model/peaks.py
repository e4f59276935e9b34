"""Memory of recent maxima, bounded whatever the tick: what demand reached in the last window."""

from __future__ import annotations

from bandkeeper.api.records import dataclass

_SLOTS = 60
SHORTEST_SLOT_S = 1e-3


@dataclass(frozen=True, slots=True)
class Peaks:
    """The maximum over a sliding window, in at most 61 entries: (end of its slot in seconds, value), falling.

    A value is remembered for the window and at most one slot (a sixtieth of it) more, never less.
    """

    entries: tuple[tuple[float, float], ...] = ()

    def push(self, value: float, now_s: float, window_s: float) -> Peaks:
        """With `value` seen now, and without what left the window."""
        slot_s = window_s / _SLOTS
        end_s = now_s if slot_s < SHORTEST_SLOT_S else max(now_s, (now_s // slot_s + 1) * slot_s)
        entries, oldest_s = self.entries, now_s - window_s
        first, last = 0, len(entries)
        while last and entries[last - 1][1] <= value:
            last -= 1
        while first < last and entries[first][0] < oldest_s:
            first += 1
        if first < last and entries[last - 1][0] >= end_s:
            return Peaks(entries[first:last])
        return Peaks((*entries[first:last], (end_s, value)))

    def highest(self) -> float | None:
        """The maximum as of the last push."""
        return self.entries[0][1] if self.entries else None

    def scaled(self, factor: float) -> Peaks:
        """The same memory in another unit."""
        return Peaks(tuple((end_s, value * factor) for end_s, value in self.entries))


NO_PEAKS = Peaks()
