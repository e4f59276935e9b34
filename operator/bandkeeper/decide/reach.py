"""The best figure that any fleet of a server reaches, for a promise that nothing here can keep."""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.decide.load import Load
from bandkeeper.model.latency import PREDICTED, Traffic, alone
from bandkeeper.model.steps import StepFit


def best_s(load: Load, steps: StepFit, signal: Signal, percentile: int | None) -> float | None:
    """Seconds that a latency has with one request alone on a replica; None where the model cannot tell."""
    finished, prompts, outputs = load.finished_per_s, load.prompt_per_s, load.output_per_s
    if signal not in PREDICTED or percentile is None or not steps.observations:
        return None
    if not finished or prompts is None or not outputs:
        return None
    found = alone(steps, Traffic(0.0, prompts / finished, outputs / finished))
    share = percentile / 100
    return found.quantile(signal, share) if found.confident(signal, share) else None
