"""The rules by name, and rules of one's own from a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandkeeper.lab.rules.choice import Choice
from bandkeeper.lab.rules.rule import Rule, Setting

OURS = "bandkeeper"
_ROOM = "bandkeeper.lab.rules."
_CLASSES = {
    OURS: "bandkeeper:Rule",
    "static": "static:Static",
    "hpa-gpu": "hpa:HPAOnGPU",
    "hpa-running": "hpa:HPAOnRunning",
    "keda": "keda:KEDA",
    "kpa": "kpa:KPA",
    "apa": "apa:APA",
    "wva": "wva:TokenCapacity",
    "wva-v1": "wva:Spare",
    "rate": "rate_model:RateModel",
    "queue-model": "rate_model:QueueModel",
    "chiron": "chiron:Chiron",
    "dynamo": "dynamo:Dynamo",
    "q": "peaks:Percentile",
    "m": "peaks:Maximum",
    "l": "peaks:Levels",
    "foresight": "foresight:Foresight",
}
NAMES = tuple(_CLASSES)


class RuleError(ValueError):
    """There is no such rule, or its file cannot be used; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class RuleSource:
    """A rule that any process can build: a name of the catalogue, or a file with a class `Rule`."""

    name: str
    file: Path | None = None

    @property
    def title(self) -> str:
        """For tables."""
        return str(getattr(self.load(), "title", self.name))

    @property
    def hindsight(self) -> bool:
        """Whether it looks at the requests to come."""
        return bool(getattr(self.load(), "hindsight", False))

    def choices(self, setting: Setting) -> tuple[Choice, ...]:
        """Its settings; a file's rule without `choices` has one. Empty where it does not fit the server."""
        declared = getattr(self.load(), "choices", None)
        return tuple(declared(setting)) if declared is not None else (Choice("as written", default=True),)

    def build(self, setting: Setting, choice: Choice) -> Rule:
        """The rule at one of its settings."""
        return self.load()(setting, **choice.parameters)

    def load(self) -> Callable[..., Rule]:
        """Its class. Raises RuleError."""
        if self.file is None:
            module, _, attribute = _CLASSES[self.name].partition(":")
            found: Callable[..., Rule] = getattr(importlib.import_module(_ROOM + module), attribute)
            return found
        own: Any = getattr(_module_of(self.file.resolve()), "Rule", None)
        if own is None or not callable(getattr(own, "decide", None)):
            raise RuleError(f"{self.file}: write a class Rule with a method decide(view) that returns a Want")
        rule: Callable[..., Rule] = own
        return rule


def find(name_or_file: str) -> RuleSource:
    """A rule of the catalogue, or of a Python file. Raises RuleError."""
    if name_or_file in _CLASSES:
        return RuleSource(name_or_file)
    path = Path(name_or_file)
    if path.suffix == ".py" and path.is_file():
        source = RuleSource(path.stem, path)
        source.load()
        return source
    raise RuleError(f"no rule {name_or_file!r}: name a Python file, or one of {', '.join(NAMES)}")


def _module_of(file: Path) -> object:
    name = f"bandkeeper_rule_{file.stem}_{abs(hash(str(file))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RuleError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RuleError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
