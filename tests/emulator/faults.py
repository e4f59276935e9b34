"""Corrupted exposition on demand: what a broken exporter, a blanked counter or a dead port look like to a scraper."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["freeze", "nan", "negative", "sentinel", "absent", "none"]
SENTINEL = "9223372036854775794"  # DCGM's "not available" for 64-bit values
_VALUE = re.compile(r"^([^#\n].*) (\S+)$", re.MULTILINE)


class Fault(BaseModel):
    """`pods` (for the exporter: nodes) names those it befalls; absent: all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    pods: frozenset[str] | None = None


class Faults:
    """The one fault in force for a workload's pods or for the nodes' exporters."""

    def __init__(self) -> None:
        self._fault = Fault(kind="none")
        self._frozen: dict[str, str] = {}

    def set(self, fault: Fault, texts: dict[str, str]) -> None:
        """Puts `fault` in place of the last one. `texts`, what each pod serves now, is what `freeze` keeps serving."""
        self._fault = fault
        self._frozen = texts if fault.kind == "freeze" else {}

    def spoil(self, name: str, text: str) -> str | None:
        """The text as the fault leaves it; None: nothing answers."""
        fault = self._fault
        if fault.pods is not None and name not in fault.pods:
            return text
        match fault.kind:
            case "none":
                return text
            case "absent":
                return None
            case "freeze":
                return self._frozen.setdefault(name, text)
            case "nan":
                return _VALUE.sub(r"\1 NaN", text)
            case "negative":
                return _VALUE.sub(r"\1 -1", text)
            case "sentinel":
                return _VALUE.sub(rf"\g<1> {SENTINEL}", text)
