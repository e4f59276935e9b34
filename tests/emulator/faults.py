"""Corrupted exposition on demand: what a broken exporter, a blanked counter or a dead port look like to a scraper."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["freeze", "nan", "negative", "sentinel", "absent", "none", "rename", "duplicate", "contradict"]
SENTINEL = "9223372036854775794"  # DCGM's "not available" for 64-bit values
_NAME = re.compile(r"^(# \w+ )?(?=[a-zA-Z])", re.MULTILINE)
_SERIES = re.compile(r"^([^#\n{]*)\{(.*)\} (\S+)$", re.MULTILINE)
_BUSY = re.compile(r"^(DCGM_FI_DEV_GPU_UTIL|DCGM_FI_PROF_(?:GR_ENGINE|SM)_ACTIVE)(\{.*\}) \S+$", re.MULTILINE)
_PIPES = re.compile(r"^(DCGM_FI_PROF_PIPE_TENSOR_ACTIVE\{.*\}) \S+$", re.MULTILINE)
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
            case "rename":
                return _NAME.sub(r"\1renamed_", text)
            case "duplicate":
                return _SERIES.sub(r'\g<0>\n\1{\2,copy="1"} \3', text)
            case "contradict":  # the GPU idles, and its pipes work
                return _PIPES.sub(r"\1 0.9", _BUSY.sub(r"\1\2 0", text))
