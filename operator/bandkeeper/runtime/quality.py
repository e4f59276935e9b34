"""Quality as a person reads it in the status and in events, and the GPU time that it says is wasted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bandkeeper.api import v1alpha1
from bandkeeper.api.snapshot import PodState
from bandkeeper.decide.decision import UNKNOWN_RULE
from bandkeeper.quality.types import Assessment, Measure, Waste
from bandkeeper.runtime.tracked import Tracked

LONGEST_GAP_S = 300.0  # between two looks: over a longer one nobody knows what the GPUs did
IDLE_HELD, BELOW_POSSIBLE = "idle_held", "below_possible"


def gpus_held(tracked: Tracked) -> float | None:
    """GPUs that the ready pods hold, a MIG instance as its share of one; None where that is not known of a pod.

    A pod tells by what it asks for; one that asks for none that is known, by what an exporter shows of whole GPUs that
    it has for itself. A leader stands for its whole group.
    """
    total = 0.0
    group = tracked.scale.target.group if tracked.scale else None
    seen = tracked.snapshot.gpus if tracked.snapshot else {}
    for pod in tracked.pods:
        if pod.state is not PodState.READY:
            continue
        held = seen.get(pod.name)
        if held is not None and held.shared:
            return None
        if group is not None and group.gpus is not None:
            total += group.gpus
        elif pod.gpus is not None:
            total += pod.gpus
        elif held is not None and not held.mig:
            total += held.count * (group.pods if group else 1)
        else:
            return None
    return total


def quality_of(tracked: Tracked) -> v1alpha1.QualityStatus | None:
    """The judgement for the status; None where there was nothing to judge."""
    found = tracked.decision.quality if tracked.decision else None
    if found is None:
        return None
    return v1alpha1.QualityStatus(
        class_=found.quality.value,
        score=None if found.score is None else round(found.score),
        confidence_percent=round(100 * found.confidence),
        bottleneck=found.bottleneck.component.value if found.bottleneck else None,
        evidence=found.bottleneck.evidence if found.bottleneck else None,
        reason=found.reason or None,
        culprit=found.culprit,
        age=None if found.age_s is None else f"{found.age_s:.0f}s",
        measures=[_measure(one) for one in found.measures if one.value is not None][:6],
        wasted=_wasted(tracked, found.waste) if found.waste else None,
        advice=[
            v1alpha1.AdviceStatus(remedy=one.text, evidence=one.evidence)
            for one in found.advice[: v1alpha1.ADVICE_LIMIT]
        ],
    )


def _measure(measure: Measure) -> v1alpha1.MeasureStatus:
    return v1alpha1.MeasureStatus(
        name=measure.name,
        value=figure(measure.value or 0.0),
        unit=measure.unit,
        reference=None if measure.reference is None else figure(measure.reference),
        source=measure.source[:63],
    )


def figure(value: float) -> str:
    """Three digits, without an exponent where a person would write none."""
    return (
        f"{value:.3g}" if 1e-3 <= abs(value) < 1e3 or not value else f"{value:,.0f}" if value >= 1e3 else f"{value:g}"
    )


def _wasted(tracked: Tracked, waste: Waste) -> v1alpha1.WasteStatus | None:
    gpus = gpus_held(tracked)
    if gpus is None:
        return None
    price = Price.of(tracked)
    return v1alpha1.WasteStatus(
        gpus=f"{gpus:.3g}",
        idle_held_percent=round(100 * waste.idle),
        below_possible_percent=round(100 * waste.below),
        cost_per_hour=f"{gpus * waste.share * price.per_gpu_hour:.2f} {price.currency}" if price else None,
    )


@dataclass(frozen=True, slots=True)
class Price:
    """What one GPU costs for one hour."""

    per_gpu_hour: float
    currency: str

    @classmethod
    def of(cls, tracked: Tracked) -> Price | None:
        """The policy's price, None where it gives none."""
        cost = tracked.managed.spec.cost if tracked.managed.spec else None
        return None if cost is None else cls(float(cost.price_per_gpu_hour), cost.currency)


@dataclass(frozen=True, slots=True)
class Spent:
    """GPU time since the last look, by what it was held for. `judged` where the counters told what it was worth;
    `wasted` by cause.
    """

    gpu_s: float
    judged: bool
    by_rule: tuple[tuple[str, float], ...]
    wasted_s: tuple[tuple[str, float], ...] = ()
    price: Price | None = None

    def cost(self, gpu_s: float) -> float | None:
        """What so much GPU time costs; None without a price."""
        return None if self.price is None else gpu_s / 3600 * self.price.per_gpu_hour


def spent(tracked: Tracked, now_s: float) -> Spent | None:
    """Account for the time since the policy was last accounted for; `now_s` on the loop's clock."""
    since_s, tracked.metered_s = tracked.metered_s, now_s
    if since_s is None or not 0 < now_s - since_s <= LONGEST_GAP_S:
        return None
    gpus = gpus_held(tracked)
    if not gpus:
        return None
    gpu_s = gpus * (now_s - since_s)
    waste = tracked.decision.quality.waste if tracked.decision and tracked.decision.quality else None
    by_rule = _held_for(tracked, gpu_s)
    if waste is None:
        return Spent(gpu_s, judged=False, by_rule=by_rule, price=Price.of(tracked))
    causes = ((IDLE_HELD, gpu_s * waste.idle), (BELOW_POSSIBLE, gpu_s * waste.below))
    return Spent(gpu_s, judged=True, by_rule=by_rule, wasted_s=causes, price=Price.of(tracked))


def _held_for(tracked: Tracked, gpu_s: float) -> tuple[tuple[str, float], ...]:
    """The same shares of the GPU time as of the replicas that the decision looked at."""
    held = tracked.decision.held if tracked.decision else None
    if held is None:
        return ((UNKNOWN_RULE, gpu_s),)
    return tuple((rule, gpu_s * replicas / held.replicas) for rule, replicas in held.by_rule())


def described(found: Assessment) -> Iterator[str]:
    """A class in sentences: why, and what to do."""
    if found.reason:
        yield _sentence(found.reason)
    if found.bottleneck is not None:
        yield _sentence(f"{found.bottleneck.component}: {found.bottleneck.evidence}")
    for advice in found.advice[:1]:
        yield _sentence(advice.text)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "…")) else f"{text}."
