"""How a write ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from bandkeeper.api.snapshot import Target

FIELD_MANAGER = "bandkeeper"
REQUEST_TIMEOUT_S = 10.0
ATTEMPT_PAUSES_S = (0.0, 0.02, 0.1, 0.3)
"""Pause before each attempt at a write that the API server, after attempts of its own, answers with a conflict."""


class Outcome(StrEnum):
    """How a write ended."""

    WRITTEN = "Written"
    UNCHANGED = "Unchanged"  # it was so already
    CHANGED = "Changed"  # someone else changed it since the decision; nothing was written
    PARTIAL = "Partial"  # some pods were written, the rest will be tried again
    NOT_FOUND = "NotFound"
    FORBIDDEN = "Forbidden"  # a right is missing, or an admission policy said no
    REFUSED = "Refused"  # cannot be written as configured; a person has to change something
    FAILED = "Failed"  # timeout, conflict, server error: it may or may not have happened; read again


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleResult:
    """How a write of `spec.replicas` ended.

    Attributes
    ----------
    message
        A sentence for a person; empty where all went well and there is nothing to say.
    target
        The target as it stands now, where that is known.
    manager
        The field manager that changed it meanwhile, "" where unknown.
    """

    outcome: Outcome
    message: str = ""
    target: Target | None = None
    manager: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapResult:
    """How a write of the batch cap ended.

    Attributes
    ----------
    message
        A sentence for a person. A written cap can carry one too, when another manager is likely to undo it.
    written
        Objects written.
    failed
        Pod name to the sentence that says why it was not written.
    manager
        The field manager that owns the field beside us, "" where nobody does.
    """

    outcome: Outcome
    message: str = ""
    written: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    manager: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapReading:
    """What the servers themselves say of the batch cap in force. A pod that is in neither was not asked.

    Attributes
    ----------
    caps
        Pod name to the cap that its server runs with.
    failed
        Pod name to the sentence that says why it could not be read.
    """

    caps: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


class Deadline:
    """Time left for writes: no request may outlast the lease under which it was decided."""

    def __init__(self, at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at = at
        self._clock = clock

    def timeout_s(self) -> float:
        """Seconds that the next request may take; 0 when it must not start."""
        return max(0.0, min(REQUEST_TIMEOUT_S, self._at - self._clock()))

    async def pause(self, seconds: float) -> bool:
        """Wait, and tell whether another request may start."""
        if seconds:
            await asyncio.sleep(min(seconds, self.timeout_s()))
        return self.timeout_s() > 0


OUT_OF_TIME = "the time left under the lease ran out before the write; it will be decided again"
