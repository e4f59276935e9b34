"""How much work may be there when a pod that is ordered now is ready: from how fast it rose before. Pure."""

from __future__ import annotations

from bandkeeper.api.records import dataclass, replace
from bandkeeper.model.peaks import NO_PEAKS, Peaks

_MARKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Memory of work: its peak, its largest rise within one lead time, and by how much it has just passed its peak.

    Attributes
    ----------
    peaks, rises
        Maxima over the memory.
    lows
        Negated maxima over the lead time: the least work of it.
    marks
        (seconds, peak as it was then), over the lead time and one older.
    passed
        By how much work is above what its peak was a lead time ago.
    """

    peaks: Peaks = NO_PEAKS
    rises: Peaks = NO_PEAKS
    lows: Peaks = NO_PEAKS
    marks: tuple[tuple[float, float], ...] = ()
    work: float = 0.0
    passed: float = 0.0

    def seen(self, work: float, noise: float, now_s: float, *, lead_s: float, memory_s: float) -> Outlook:
        """With the work of now; a rise counts as far as it is beyond the `noise` of one value."""
        lows = self.lows.push(-work, now_s, lead_s)
        rise = work + (lows.highest() or 0.0) - 2 * noise
        peaks = self.peaks.push(work, now_s, memory_s)
        marks = self.marks
        if not marks or now_s - marks[-1][0] >= lead_s / _MARKS:
            marks = (*marks, (now_s, peaks.highest() or work))
        while len(marks) > 1 and marks[1][0] <= now_s - lead_s:
            marks = marks[1:]
        rises = self.rises.push(max(0.0, rise), now_s, memory_s)
        passed = max(0.0, work - marks[0][1]) if now_s - marks[0][0] >= lead_s else 0.0
        return Outlook(peaks=peaks, rises=rises, lows=lows, marks=marks, work=work, passed=passed)

    def held(self) -> float:
        """The work to be ready for: what it was before, no further above the present than it rose at most in one lead
        time; and while it is passing its peak, by as much again as it passed it within one lead time."""
        peak, rise = self.peaks.highest() or self.work, self.rises.highest() or 0.0
        return max(self.work, min(peak + self.passed, self.work + rise))

    def scaled(self, factor: float) -> Outlook:
        """The same memory in another unit."""
        return replace(
            self,
            peaks=self.peaks.scaled(factor),
            rises=self.rises.scaled(factor),
            lows=self.lows.scaled(factor),
            marks=tuple((at_s, value * factor) for at_s, value in self.marks),
            work=self.work * factor,
            passed=self.passed * factor,
        )


NO_OUTLOOK = Outlook()
