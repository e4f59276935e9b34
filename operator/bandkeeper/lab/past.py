"""Earlier days of a run or a recording, as the operator asks Prometheus for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from bandkeeper.api.snapshot import RECALL_AHEAD_S, RECALL_STEP_S, Earlier, Recalled


class Past:
    """Tokens per second of the workload, as means of the steps that end at ascending times."""

    def __init__(self) -> None:
        self._ends_s: list[float] = []
        self._tokens: list[tuple[float, float]] = []

    def add(self, ends_s: float, prompt_per_s: float, output_per_s: float) -> None:
        """One more step. One without data is not added."""
        self._ends_s.append(ends_s)
        self._tokens.append((prompt_per_s, output_per_s))

    def recalled(self, now_s: float) -> Mapping[Earlier, tuple[Recalled, ...]]:
        """Earlier days around this hour, as far as they are known."""
        found = {earlier: self._around(now_s - earlier.ago_s) for earlier in Earlier}
        return {earlier: steps for earlier, steps in found.items() if steps}

    def _around(self, then_s: float) -> tuple[Recalled, ...]:
        first, end = (bisect_right(self._ends_s, then_s + span_s) for span_s in (-RECALL_STEP_S, RECALL_AHEAD_S))
        return tuple(Recalled(self._ends_s[index] - then_s, *self._tokens[index]) for index in range(first, end))
