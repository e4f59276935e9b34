"""How a rule declares its settings, so that each appears at its best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from bandkeeper.lab.rules.rule import Rule, Setting

Parameter = float | int | str | bool


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting of a rule: its name in tables, the keyword arguments, and whether it is the published default."""

    label: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    default: bool = False


class Swept(Rule, Protocol):
    """A rule that comes with the lab; its constructor takes a `Setting` and the parameters of a `Choice`.

    Attributes
    ----------
    title
        For tables.
    source
        Where the rule was published.
    hindsight
        It looks at the requests to come: a bound, not a rule for use.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    hindsight: ClassVar[bool]

    @classmethod
    def choices(cls, setting: Setting) -> tuple[Choice, ...]:
        """The settings to try; empty where the rule does not fit the server."""


def batch_shares(setting: Setting, *shares: float) -> tuple[int, ...]:
    """Requests per replica as shares of the batch that a replica can hold, each at least 1, ascending."""
    server, requests = setting.server, setting.requests
    best = server.best_batch(requests.mean_prompt_tokens or 1.0, requests.mean_output_tokens or 1.0)
    return tuple(sorted({max(1, round(share * best)) for share in shares}))
