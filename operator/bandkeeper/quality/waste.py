"""The share of the held GPU time that is idle, and the share that is busy below what was possible."""

from __future__ import annotations

from bandkeeper.quality.bottleneck import work_waits
from bandkeeper.quality.classify import Work
from bandkeeper.quality.types import Evidence, Kind, Quality, Thresholds, Waste


def waste(evidence: Evidence, busy: float, real: Work | None, quality: Quality, settings: Thresholds) -> Waste:
    """Of the pods that were seen.

    An LLM server below its knee with nothing waiting waits for latency: no waste, but replicas beyond those that the
    model says would do are.
    """
    below, source = _below(evidence, real, quality, settings)
    return Waste(idle=1.0 - busy, below=busy * below, source=source)


def _below(evidence: Evidence, real: Work | None, quality: Quality, settings: Thresholds) -> tuple[float, str]:
    """The wasted share of busy time."""
    waits = work_waits(evidence)
    if evidence.batch_gain is not None and waits:
        gain = min(1.0, max(0.0, evidence.batch_gain))
        return 1.0 - gain, f"model: the batch in use reaches {gain:.0%} of the best throughput while work waits"
    if evidence.replicas_needed is not None and evidence.ready > 0 and evidence.kind is not Kind.TRAINING:
        needed = min(evidence.ready, max(1, evidence.replicas_needed))
        return 1.0 - needed / evidence.ready, f"model: {needed} of {evidence.ready} replicas would carry the work"
    if real is None:
        return 0.0, "idle time alone: what the busy time was worth is not seen"
    if evidence.kind is Kind.LLM_SERVING and (quality is not Quality.INEFFICIENT or evidence.below_knee):
        return 0.0, "counters: decoding waits for memory or latency, which is no waste"
    reached = min(1.0, real.upper / settings.good_lower)
    return 1.0 - reached, f"counters: busy time held at most {reached:.0%} of the work of Efficient GPUs"
