"""The runtimes that are known by name; docs/adding-a-runtime.md says how to add one."""

from __future__ import annotations

from collections.abc import Mapping

from bandkeeper.signals.presets import generic, triton, vllm
from bandkeeper.signals.sources import Preset

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in (vllm.PRESET, triton.PRESET, generic.PRESET)}
