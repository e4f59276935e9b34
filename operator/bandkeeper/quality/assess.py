"""The judgement of one workload: class, score, measures, bottleneck, waste and advice. Pure."""

from __future__ import annotations

from bandkeeper.api.records import dataclass
from bandkeeper.quality import measures, peaks, trend
from bandkeeper.quality.advice import SIGNS, Sign, advice
from bandkeeper.quality.bottleneck import bottleneck, cpu_throttled, work_waits
from bandkeeper.quality.classify import Work, class_of, crossed, work
from bandkeeper.quality.score import score
from bandkeeper.quality.types import Assessment, Bounds, Component, Evidence, Kind, Mark, Memory, Quality, Thresholds
from bandkeeper.quality.usage import Blind, Usage, usage
from bandkeeper.quality.waste import waste

DEFAULT = Thresholds()
_COARSE = 0.9  # GPU_UTIL instead of GR engine active
_BARE = 0.6  # of the confidence stands on busy, pipes and memory alone, the rest on what supports a bottleneck
_SIGN_OF = {Blind.MISSING: Sign.UNSEEN, Blind.SHARED: Sign.SHARED, Blind.BROKEN: Sign.BROKEN}
_SUPPORT = (Component.CPU, Component.PCIE)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A class and, where it is Unknown, why."""

    quality: Quality
    bounds: Bounds | None = None
    reason: str = ""


def assess(
    evidence: Evidence,
    memory: Memory,
    now_s: float,
    settings: Thresholds = DEFAULT,
    table: peaks.Table = peaks.DEFAULT,
) -> tuple[Assessment, Memory]:
    """Judge `evidence` at `now_s` (seconds of any steady clock); `memory` is what the last call gave back."""
    used = usage(evidence, settings, table)
    mark = trend.mark_of(evidence, now_s)
    real = None
    if used.compute is not None and used.memory is not None:
        real = work(used.busy_of_work, used.compute, used.memory)
    verdict = _judge(evidence, used, real, memory, mark, settings)
    quality = _settled(verdict.quality, memory, now_s, settings)
    memory = _remember(memory, verdict, quality, evidence, mark, settings)
    return _assessment(evidence, used, real, verdict, quality, memory, settings, table), memory


def _judge(
    evidence: Evidence, used: Usage, real: Work | None, memory: Memory, mark: Mark, settings: Thresholds
) -> _Verdict:
    if used.busy is None or used.gpus_busy < settings.coverage * used.expected:
        return _Verdict(Quality.UNKNOWN, reason=_why_unseen(used))
    bounds = crossed(used.busy, real, memory.crossed, settings)
    enough = used.gpus_work >= settings.coverage * used.expected
    if bounds.used and not enough:
        missing = used.expected - used.gpus_work
        text = f"tensor and DRAM activity are not both seen of {missing} of {used.expected} GPUs"
        return _Verdict(Quality.UNKNOWN, reason=text + ": GPU utilisation alone says only that some kernel ran")
    llm = evidence.kind is Kind.LLM_SERVING
    decodes = llm and used.memory is not None and used.memory >= settings.decode_memory * used.busy_of_work
    overloaded = bounds.used and bool(trend.overload(memory, mark, settings))
    quality = class_of(bounds, overloaded=overloaded, decodes=decodes)
    if quality is Quality.INEFFICIENT and not used.vector_seen and not llm:
        text = "the tensor pipes do nothing, and the FP pipes, which may do the work, are not seen"
        return _Verdict(Quality.UNKNOWN, reason=text)
    return _Verdict(quality, bounds)


def _why_unseen(used: Usage) -> str:
    if not used.expected:
        return "there are no ready pods"
    if not used.unseen:
        return f"no GPU counters of {used.expected - used.gpus_busy} of {used.expected} GPUs"
    pod, why = next(iter(used.unseen.items()))
    more = f"; {len(used.unseen) - 1} more pods likewise or for other reasons" if len(used.unseen) > 1 else ""
    return f"{pod}: {why.text}{more}"


def _settled(quality: Quality, memory: Memory, now_s: float, settings: Thresholds) -> Quality:
    """A new class stands at once where there was none, or where it cannot wait; else once it has lasted."""
    if quality is memory.quality or quality in (Quality.UNKNOWN, Quality.OVERLOADED):
        return quality
    if memory.quality is Quality.UNKNOWN:
        return quality
    if memory.doubted_since_s is None or now_s - memory.doubted_since_s < settings.settle_s:
        return memory.quality
    return quality


def _remember(
    memory: Memory, verdict: _Verdict, quality: Quality, evidence: Evidence, mark: Mark, settings: Thresholds
) -> Memory:
    doubted = None
    if verdict.quality is not quality:
        doubted = mark.at_s if memory.doubted_since_s is None else memory.doubted_since_s
    since = memory.since_s if quality is memory.quality and memory.marks else mark.at_s
    marks, windows, latency = memory.marks, memory.saturated, memory.latency
    if trend.is_due(memory, mark.at_s, settings):
        full = trend.saturated(memory, mark, settings)
        if full is not None:
            windows = measures.remembered(windows, full)
        if evidence.latency_cv is not None and quality not in (Quality.OVERLOADED, Quality.UNKNOWN):
            latency = measures.learned(latency, evidence.latency_cv)
        marks = trend.with_mark(memory, mark)
    return Memory(
        quality=quality,
        since_s=since,
        doubted_since_s=doubted,
        crossed=verdict.bounds or memory.crossed,
        marks=marks,
        saturated=windows,
        latency=latency,
    )


def _assessment(
    evidence: Evidence,
    used: Usage,
    real: Work | None,
    verdict: _Verdict,
    quality: Quality,
    memory: Memory,
    settings: Thresholds,
    table: peaks.Table,
) -> Assessment:
    known = quality is not Quality.UNKNOWN
    found, culprit = bottleneck(evidence, used, settings) if known else (None, None)
    signs = _signs(evidence, used, verdict, settings, known=known)
    return Assessment(
        quality=quality,
        score=score(used.busy, real, quality, settings) if known and used.busy is not None and used.gpus_work else None,
        confidence=_confidence(evidence, used) if known else 0.0,
        reason=verdict.reason,
        busy=used.busy,
        lower=None if real is None else real.lower,
        upper=None if real is None else real.upper,
        measures=measures.measures(evidence, used, table, memory.saturated, memory.latency, settings),
        bottleneck=found,
        culprit=culprit,
        waste=waste(evidence, used.busy, real, quality, settings) if known and used.busy is not None else None,
        advice=advice(quality, found, evidence.kind, evidence.objective, signs),
        gpus=used.gpus,
        age_s=used.age_s,
        since_s=memory.since_s,
    )


def _signs(evidence: Evidence, used: Usage, verdict: _Verdict, settings: Thresholds, *, known: bool) -> dict[Sign, str]:
    signs: dict[Sign, str] = {}
    if evidence.slo_unreachable:
        signs[Sign.SLO_UNREACHABLE] = SIGNS[Sign.SLO_UNREACHABLE]
    if evidence.prefill_tails:
        signs[Sign.PREFILL_TAILS] = SIGNS[Sign.PREFILL_TAILS]
    if evidence.below_knee and not work_waits(evidence):
        signs[Sign.BELOW_KNEE] = SIGNS[Sign.BELOW_KNEE]
    if throttled := cpu_throttled(used, settings):
        signs[Sign.CPU_THROTTLED] = throttled
    if used.edge:
        signs[Sign.EDGE] = SIGNS[Sign.EDGE]
    if not known and used.expected:
        blind = next((pod.blind for pod in used.unseen.values()), Blind.MISSING)
        signs[_SIGN_OF[blind]] = verdict.reason
    return signs


def _confidence(evidence: Evidence, used: Usage) -> float:
    """The share of GPUs seen, less for a coarse clock and for missing support. Never more for data that is missing."""
    seen = 0.5 * (used.gpus_work + used.gpus_busy)
    support = (
        evidence.waiting,
        evidence.throughput,
        evidence.offered,
        evidence.losses,
        evidence.latency_cv,
        used.vector,
        used.sm_active,
        used.power_throttled,
        used.thermal_throttled,
        *(used.used.get(component) for component in _SUPPORT),
    )
    share = sum(each is not None for each in support) / len(support)
    return seen / used.expected * (_COARSE if used.coarse else 1.0) * (_BARE + (1.0 - _BARE) * share)
