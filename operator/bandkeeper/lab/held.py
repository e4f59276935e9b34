"""What GPU-hours were held for, by the rules of a policy: counted alike in a run and in a replay."""

from __future__ import annotations

from bandkeeper.decide.decision import RULES, UNKNOWN_RULE, Held


class HeldFor:
    """GPU-hours after the warm-up by what they were held for, as the rule told at each look back on the time before."""

    def __init__(self, gpus: int, warmup_s: float) -> None:
        self._gpus, self._until_s = gpus, warmup_s
        self._told = False
        self._gpu_s = dict.fromkeys((*RULES, UNKNOWN_RULE), 0.0)

    def count(self, replicas: int, held: Held | None, now_s: float) -> None:
        """`replicas` were ordered since the last look."""
        gpu_s = max(0.0, now_s - self._until_s) * self._gpus
        self._until_s = max(self._until_s, now_s)
        self._told = self._told or held is not None
        for rule, figure in held.by_rule() if held else ((UNKNOWN_RULE, replicas),):
            self._gpu_s[rule] += figure * gpu_s

    def hours(self) -> dict[str, float] | None:
        """By rule; None of a rule that never told."""
        return {rule: gpu_s / 3600.0 for rule, gpu_s in self._gpu_s.items()} if self._told else None
