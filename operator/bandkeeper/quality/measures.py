"""The four measures: arithmetic intensity, parallel efficiency, resource balance, latency stability."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import sqrt

from bandkeeper.api.records import dataclass
from bandkeeper.quality.peaks import Peaks, Table
from bandkeeper.quality.types import Baseline, Counters, Evidence, Measure, Saturated, Thresholds
from bandkeeper.quality.usage import Usage

INTENSITY = "ArithmeticIntensity"
EFFICIENCY = "ParallelEfficiency"
BALANCE = "ResourceBalance"
STABILITY = "LatencyStability"
MEASURES = {
    INTENSITY: "FLOP per byte of device memory, beside the GPU's ridge point: below it memory is the limit",
    EFFICIENCY: "work of one replica among many relative to one among few, from windows in which work waited",
    BALANCE: "standard deviation of the components' utilisations: 0 where all are used alike",
    STABILITY: "coefficient of variation of the latency, beside its own usual value",
}
SATURATED_FOR_S = 3600.0  # the mix of requests moves on
BASELINE_MIN = 10
_SMOOTHING = 0.3
_BASELINE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Contention:
    """The universal scalability law: X(n) = X(1) n / (1 + sigma (n - 1) + kappa n (n - 1))."""

    sigma: float
    kappa: float


def measures(
    evidence: Evidence,
    used: Usage,
    peaks: Table,
    saturated: Sequence[Saturated],
    baseline: Baseline | None,
    settings: Thresholds,
) -> tuple[Measure, ...]:
    """All four, those that cannot be had with the reason in their source."""
    pods = [evidence.pods[name] for name in used.works]
    return (
        intensity(pods, peaks, settings),
        efficiency(saturated, evidence.mu),
        balance(used.used.values()),
        stability(evidence.latency_cv, baseline),
    )


def intensity(pods: Sequence[Counters], peaks: Table, settings: Thresholds) -> Measure:
    """From the server's own counters where it has them, else from the GPU's and its peaks (bf16 is assumed)."""
    known = [peaks.of(pod.model) for pod in pods]
    ridge = _ridge(pods, known)
    own = [_own_work(pod) for pod in pods]
    flops, moved = (sum(each[number] for each in own if each is not None) for number in (0, 1))
    if moved > 0:
        return Measure(INTENSITY, flops / moved, "FLOP/byte", "the server's FLOP and byte counters", ridge)
    flops = 0.0
    for pod, peak in zip(pods, known, strict=True):
        if peak is None or pod.mig or pod.tensor_active is None or pod.dram_active is None:
            continue
        vector = max(pod.fp64_active or 0.0, pod.fp32_active or 0.0, pod.fp16_active or 0.0)
        if pod.tensor_active < min(settings.tensor_used, vector):
            return _no(INTENSITY, "FLOP/byte", "the work is not the tensor pipes', whose FLOPs alone are known", ridge)
        flops += pod.tensor_active * peak.flops * pod.gpus
        moved += pod.dram_active * peak.bandwidth * pod.gpus
    if moved > 0:
        return Measure(INTENSITY, flops / moved, "FLOP/byte", "tensor and DRAM counters and peaks, bf16 assumed", ridge)
    return _no(INTENSITY, "FLOP/byte", _why_no_intensity(pods, known), ridge)


def efficiency(saturated: Sequence[Saturated], mu: float | None) -> Measure:
    """From saturated windows of two counts of replicas, else of one against the model's mu."""
    by_count = sorted(saturated, key=lambda window: window.replicas)
    if len(by_count) >= 2:
        least, latest = by_count[0], max(saturated, key=lambda window: window.at_s)
        if latest is least:
            latest = by_count[-1]
        value = (latest.throughput / latest.replicas) / (least.throughput / least.replicas)
        source = f"saturated with {least.replicas} and {latest.replicas} replicas"
        law = contention(by_count)
        if law is not None:
            source += f"; USL {law.sigma:.3f}, {law.kappa:.4f}"
        return Measure(EFFICIENCY, value, "ratio", source)
    if by_count and mu is not None and mu > 0:
        only = by_count[0]
        source = f"saturated with {only.replicas} replicas, beside the model's rate"
        return Measure(EFFICIENCY, only.throughput / (only.replicas * mu), "ratio", source)
    return _no(EFFICIENCY, "ratio", "no two windows with work waiting at different counts of replicas were seen yet")


def balance(shares: Collection[float]) -> Measure:
    """Needs two components."""
    if len(shares) < 2:
        return _no(BALANCE, "ratio", "fewer than two components are seen")
    mean = sum(shares) / len(shares)
    spread = sqrt(sum((share - mean) ** 2 for share in shares) / len(shares))
    return Measure(BALANCE, spread, "ratio", f"utilisation of {len(shares)} components")


def stability(value: float | None, baseline: Baseline | None) -> Measure:
    """Beside its baseline once that is known: what is high for one server is usual for another."""
    if value is None:
        return _no(STABILITY, "ratio", "no latency histogram with requests in it")
    if baseline is None or baseline.count < BASELINE_MIN:
        return Measure(STABILITY, value, "ratio", "latency histogram; its usual value is not known yet")
    return Measure(STABILITY, value, "ratio", "latency histogram, and its own usual value", baseline.mean)


def learned(baseline: Baseline | None, value: float) -> Baseline:
    """The baseline with one more window: a plain mean at first, then a slow one."""
    if baseline is None:
        return Baseline(value, 1)
    share = max(1 / (baseline.count + 1), _BASELINE_SHARE)
    return Baseline(baseline.mean + share * (value - baseline.mean), min(baseline.count + 1, 1_000_000))


def remembered(windows: Sequence[Saturated], new: Saturated) -> tuple[Saturated, ...]:
    """The saturated windows with one more, by count of replicas; at most 16 counts, none older than an hour."""
    kept = {
        window.replicas: window
        for window in windows
        if new.at_s - window.at_s <= SATURATED_FOR_S and window.replicas > 0
    }
    old = kept.pop(new.replicas, None)
    smooth = new.throughput if old is None else old.throughput + _SMOOTHING * (new.throughput - old.throughput)
    kept[new.replicas] = Saturated(new.replicas, smooth, new.at_s)
    return tuple(sorted(kept.values(), key=lambda window: window.at_s)[-16:])


def contention(windows: Sequence[Saturated]) -> Contention | None:
    """Least squares of n / X(n) on 1, n - 1 and n (n - 1). None below three distinct counts, or where it fits nothing.

    Both figures are held at 0 or above.
    """
    points = [(window.replicas, window.throughput) for window in windows if window.throughput > 0]
    if len({replicas for replicas, _ in points}) < 3:
        return None
    rows = [(1.0, n - 1.0, n * (n - 1.0)) for n, _ in points]
    wanted = [n / throughput for n, throughput in points]
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(3)] for i in range(3)]
    right = [sum(row[i] * value for row, value in zip(rows, wanted, strict=True)) for i in range(3)]
    whole = _determinant(matrix)
    if abs(whole) < 1e-12:
        return None
    base, first, second = (_determinant(_with_column(matrix, right, i)) / whole for i in range(3))
    if base <= 0:
        return None
    return Contention(max(0.0, first / base), max(0.0, second / base))


def _determinant(m: Sequence[Sequence[float]]) -> float:
    (a, b, c), (d, e, f), (g, h, i) = m
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _with_column(matrix: Sequence[Sequence[float]], column: Sequence[float], at: int) -> list[list[float]]:
    return [[column[y] if x == at else value for x, value in enumerate(row)] for y, row in enumerate(matrix)]


def _own_work(pod: Counters) -> tuple[float, float] | None:
    flops, read, written = pod.model_flops, pod.model_read_bytes, pod.model_written_bytes
    if flops is None or read is None or written is None or not (flops >= 0 and read >= 0 and written >= 0):
        return None
    return flops, read + written


def _ridge(pods: Sequence[Counters], known: Sequence[Peaks | None]) -> float | None:
    """Of the pods' GPUs together; the parts of a GPU that a MIG instance has are about as many of either."""
    flops = moved = 0.0
    for pod, peak in zip(pods, known, strict=True):
        if peak is None:
            return None
        flops += peak.flops * pod.gpus
        moved += peak.bandwidth * pod.gpus
    return flops / moved if moved else None


def _why_no_intensity(pods: Sequence[Counters], known: Sequence[Peaks | None]) -> str:
    for pod, peak in zip(pods, known, strict=True):
        if pod.model is None:
            return "no exporter names the GPU's model"
        if peak is None:
            return f"GPU model {pod.model} is not in the table of peaks; add it to the operator's settings"
        if pod.mig:
            return "a MIG instance has a part of the GPU's peaks that is not known"
    return "no memory traffic, or tensor and DRAM activity are not both seen"


def _no(name: str, unit: str, why: str, reference: float | None = None) -> Measure:
    return Measure(name, None, unit, why, reference)
