"""The figures of a run, from recorded series. Pure: no clock, no network.

A run is cut into intervals of equal length. Whether a latency promise was kept is judged per interval on the histograms
that Prometheus has; load, replicas and caps come from the emulator's own account.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Distribution
from bandkeeper.decide.policy import LatencySLO, Policy, ThroughputSLO
from bandkeeper.model.histogram import attainment, percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One workload at one moment.

    Attributes
    ----------
    at_s
        Seconds since the load began.
    offered_per_s
        Requests per second that the profile asks for.
    in_hand
        Requests that run or wait.
    slots
        Requests that the ready pods may run together: the sum of their batch caps in force.
    ready, wanted
        Ready pods; replicas that the policy wants (None before its first decision).
    arrived, refused
        Requests that came, and those refused by a full queue or failed, since the servers began.
    pod_s
        Seconds that pods have held their GPUs so far, loading and draining included.
    """

    at_s: float
    offered_per_s: float
    in_hand: int
    slots: int
    ready: int
    wanted: int | None
    arrived: int
    refused: int
    pod_s: float

    @property
    def cap(self) -> float | None:
        """Mean batch cap of the ready pods."""
        return self.slots / self.ready if self.ready else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A change of what a policy wants, with its sentence. `caps`: batch cap before and after, None where it stayed."""

    at_s: float
    name: str
    reason: str
    message: str
    caps: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One workload over one stretch of time: means, and the latencies of what was answered in it.

    `refused` is the share of the requests that came and were refused or failed.
    """

    start_s: float
    end_s: float
    offered_per_s: float
    ready: float
    refused: float
    latencies: Mapping[Signal, Distribution]

    def utilization(self, sustainable_per_s: float) -> float | None:
        """Offered requests over what the ready pods can sustain; None while no pod is ready."""
        return self.offered_per_s / (self.ready * sustainable_per_s) if self.ready else None


@dataclass(frozen=True, slots=True)
class Share:
    """`good` of `counted` intervals."""

    good: int
    counted: int

    @classmethod
    def of(cls, verdicts: Iterable[bool | None]) -> Share:
        """None does not count."""
        told = [verdict for verdict in verdicts if verdict is not None]
        return cls(sum(told), len(told))

    @property
    def percent(self) -> float | None:
        """None where nothing was counted."""
        return 100 * self.good / self.counted if self.counted else None

    def __str__(self) -> str:
        return "no interval" if self.percent is None else f"{self.percent:.0f} % of {self.counted}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is said about one workload at the end.

    Attributes
    ----------
    inside_slo
        Intervals after the first cold start in which every promise was kept, of those in which something was answered.
    in_band
        Intervals with mean utilisation inside the band, of those in which some permitted replica count puts the mean
        load there.
    changes
        How often the wanted replica count changed.
    """

    inside_slo: Share
    in_band: Share
    gpu_s: float
    most_replicas: int
    changes: int


def intervals(
    samples: Sequence[Sample], length_s: float, latencies: Mapping[float, Mapping[Signal, Distribution]]
) -> list[Interval]:
    """Cuts the samples into whole intervals from 0 on, empty ones left out; `latencies` are by the interval's end."""
    if not samples:
        return []
    found = []
    for number in range(int(samples[-1].at_s // length_s)):
        start_s, end_s = number * length_s, (number + 1) * length_s
        inside = [one for one in samples if start_s <= one.at_s < end_s]
        if inside:
            found.append(
                Interval(
                    start_s=start_s,
                    end_s=end_s,
                    offered_per_s=fmean(one.offered_per_s for one in inside),
                    ready=fmean(one.ready for one in inside),
                    refused=_refused(inside),
                    latencies=latencies.get(end_s, {}),
                )
            )
    return found


def _refused(samples: Sequence[Sample]) -> float:
    arrived = samples[-1].arrived - samples[0].arrived
    return (samples[-1].refused - samples[0].refused) / arrived if arrived else 0.0


def first_cold_start_s(samples: Sequence[Sample]) -> float:
    """When the first ordered pod was ready; 0 where none came after the start."""
    return next((one.at_s for one in samples if one.ready > samples[0].ready), 0.0)


def kept(interval: Interval, slos: Iterable[LatencySLO | ThroughputSLO]) -> bool | None:
    """Whether every latency promise was kept in the interval; None where nothing was answered in it.

    A refused request is one that no promise was kept for. A threshold between two edges counts as the lower one.
    """
    told = []
    for slo in slos:
        if isinstance(slo, LatencySLO) and slo.signal in interval.latencies:
            share = attainment(interval.latencies[slo.signal], slo.threshold_s)
            if share is not None:
                least, _ = share
                told.append(least * (1 - interval.refused) >= slo.percentile / 100)
    return all(told) if told else None


def percentile_s(interval: Interval, signal: Signal, percent: float) -> float | None:
    """A percentile in the interval, interpolated in its bucket; None where nothing was answered."""
    found = percentile(interval.latencies[signal], percent) if signal in interval.latencies else None
    return found.value if found else None


def best_cap(policy: Policy, capacity: int) -> int:
    """The largest batch cap that the policy permits a server of that capacity; utilisation is counted against it."""
    permitted = policy.batch.candidates if policy.batch else ()
    return max((cap for cap in permitted if cap <= capacity), default=capacity)


def band_is_possible(offered_per_s: float, policy: Policy, sustainable_per_s: float) -> bool:
    """Whether some permitted replica count puts that load inside the band."""
    work = offered_per_s / sustainable_per_s
    counts = range(policy.min_replicas, policy.max_replicas + 1)
    return any(policy.band.low <= work / count <= policy.band.high for count in counts)


def band_held(interval: Interval, policy: Policy, sustainable_per_s: float) -> bool | None:
    """Whether the interval's utilisation was inside the band; None where no permitted replica count puts it there."""
    utilization = interval.utilization(sustainable_per_s)
    if utilization is None or not band_is_possible(interval.offered_per_s, policy, sustainable_per_s):
        return None
    return policy.band.low <= utilization <= policy.band.high


def gpu_seconds(samples: Sequence[Sample], gpus_per_pod: int) -> float:
    """GPU time that the pods held between the first and the last sample."""
    return gpus_per_pod * (samples[-1].pod_s - samples[0].pod_s) if samples else 0.0


def figures(
    samples: Sequence[Sample],
    cut: Sequence[Interval],
    *,
    policy: Policy,
    sustainable_per_s: float,
    gpus_per_pod: int,
) -> Figures:
    """The figures of one workload; `sustainable_per_s` is what one replica can do at its best cap."""
    warm_s = first_cold_start_s(samples)
    wanted = [one.wanted for one in samples if one.wanted is not None]
    return Figures(
        inside_slo=Share.of(kept(one, policy.slos) for one in cut if one.start_s >= warm_s),
        in_band=Share.of(band_held(one, policy, sustainable_per_s) for one in cut),
        gpu_s=gpu_seconds(samples, gpus_per_pod),
        most_replicas=max((one.ready for one in samples), default=0),
        changes=sum(before != after for before, after in pairwise(wanted)),
    )
