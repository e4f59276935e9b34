"""What Prometheus told of earlier days: one step ahead at a time, kept until it is over. Asks nobody itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bandkeeper.api.snapshot import RECALL_AHEAD_S, RECALL_STEP_S, Earlier, Recalled
from bandkeeper.signals import promql
from bandkeeper.signals.prometheus import PrometheusServer
from bandkeeper.signals.promql import Scope
from bandkeeper.signals.sources import Source

EARLY_S = 10.0  # a step is asked for so much early rather than a tick late
Rows = Mapping[tuple[str, str], float]
"""Tokens per second by (namespace, row)."""
Tokens = tuple[Source, Source]
"""Where prompt and output tokens come from."""
_Told = tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]

_Days = tuple[PrometheusServer, Earlier, Tokens]
_Built = dict[tuple[str, tuple[str, ...]], Recalled | None]


@dataclass(frozen=True, slots=True)
class PastQuestion:
    """Rates of the tokens on an earlier day."""

    server: PrometheusServer
    scope: Scope
    earlier: Earlier
    tokens: Tokens

    def queries(self, window_s: float) -> tuple[str, str]:
        """Of prompt tokens and of output tokens, in the step that ends in `RECALL_AHEAD_S`."""
        ago_s = self.earlier.ago_s - RECALL_AHEAD_S
        prompts, outputs = (promql.recalled(source, self.scope, window_s, ago_s) for source in self.tokens)
        return prompts, outputs


class Past:
    """Rates by row, at the moment at which their step would end today."""

    def __init__(self) -> None:
        self._asked_s: dict[PastQuestion, float] = {}
        self._steps: dict[_Days, dict[float, _Told]] = {}
        self._built: dict[_Days, _Built] = {}

    def is_due(self, question: PastQuestion, now_s: float) -> bool:
        """Whether the next step has begun since it was last asked."""
        asked_s = self._asked_s.get(question)
        return asked_s is None or not 0 <= now_s - asked_s < RECALL_STEP_S - EARLY_S

    def asked(self, question: PastQuestion, now_s: float) -> None:
        """Note the attempt: a step that fails is not asked for again."""
        self._asked_s[question] = now_s

    def told(self, question: PastQuestion, now_s: float, prompts: Rows, outputs: Rows) -> None:
        """The answers to what was asked at `now_s`."""
        days = (question.server, question.earlier, question.tokens)
        steps = self._steps.setdefault(days, {})
        self._built.pop(days, None)
        read, made = steps.setdefault(now_s + RECALL_AHEAD_S, ({}, {}))
        read.update(prompts)
        made.update(outputs)

    def forget(self, now_s: float) -> None:
        """What is over, and what nobody asks for any more."""
        latest_s = now_s + RECALL_AHEAD_S
        for question in [key for key, at_s in self._asked_s.items() if not 0 <= now_s - at_s <= 2 * RECALL_STEP_S]:
            del self._asked_s[question]
        for days, steps in list(self._steps.items()):
            for ends_s in [one for one in steps if not now_s - RECALL_STEP_S < one <= latest_s]:
                del steps[ends_s]
                self._built.pop(days, None)
            if not steps:
                del self._steps[days]

    def of(self, server: PrometheusServer, tokens: Tokens, now_s: float) -> PastOf:
        """What is known of the workloads of a server now."""
        days = [(server, earlier, tokens) for earlier in Earlier]
        known = [(one[1], self._steps[one], self._built.setdefault(one, {})) for one in days if one in self._steps]
        return PastOf(known, now_s)


class PastOf:
    """The earlier days of one server's workloads; each is added up once a step."""

    def __init__(self, known: Sequence[tuple[Earlier, dict[float, _Told], _Built]], now_s: float) -> None:
        self._known, self._now_s = known, now_s

    def workload(self, namespace: str, rows: tuple[str, ...]) -> dict[Earlier, Recalled]:
        """The steps of one workload; none where its pods' names do not tell whose they were."""
        found: dict[Earlier, Recalled] = {}
        key = (namespace, rows)
        for earlier, steps, built in self._known:
            if key not in built:
                built[key] = _added(steps, namespace, rows)
            if (one := built[key]) is not None:
                found[earlier] = Recalled(one.ends_s, one.prompt_per_s, one.output_per_s, self._now_s)
        return found


def _added(steps: Mapping[float, _Told], namespace: str, rows: tuple[str, ...]) -> Recalled | None:
    """The rows added up, in the steps that have all of them."""
    keys = [(namespace, row) for row in rows]
    told = [
        (ends_s, sum(read[key] for key in keys), sum(made[key] for key in keys))
        for ends_s, (read, made) in sorted(steps.items())
        if all(key in read and key in made for key in keys)
    ]
    if not told or any(row.startswith("pod/") for row in rows):
        return None
    ends_s, prompts, outputs = zip(*told, strict=True)
    return Recalled(ends_s, prompts, outputs)
