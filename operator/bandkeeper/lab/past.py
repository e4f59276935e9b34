"""Earlier days of a run or a recording, as the operator asks Prometheus for them."""

from __future__ import annotations

from bisect import bisect_right

from bandkeeper.api.snapshot import RECALL_AHEAD_S, RECALL_STEP_S, Earlier, Recalled


class Past:
    """Tokens per second of the workload, as means of the steps that end at ascending times."""

    def __init__(self) -> None:
        self._ends_s: list[float] = []
        self._prompts: list[float] = []
        self._outputs: list[float] = []

    def add(self, ends_s: float, prompt_per_s: float, output_per_s: float) -> None:
        """One more step. One without data is not added."""
        self._ends_s.append(ends_s)
        self._prompts.append(prompt_per_s)
        self._outputs.append(output_per_s)

    def recalled(self, now_s: float) -> dict[Earlier, Recalled]:
        """Earlier days around this hour, as far as they are known."""
        found = {}
        for earlier in Earlier:
            then_s = now_s - earlier.ago_s
            first, end = (bisect_right(self._ends_s, then_s + span_s) for span_s in (-RECALL_STEP_S, RECALL_AHEAD_S))
            if first < end:
                ends_s, prompts, outputs = (
                    tuple(column[first:end]) for column in (self._ends_s, self._prompts, self._outputs)
                )
                found[earlier] = Recalled(ends_s, prompts, outputs, then_s)
        return found
