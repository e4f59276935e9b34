"""How much of a replica's best throughput a batch gives: service time taken as linear in the batch.

With service time S(v) = s0 (1 + c v) at v = batch / best batch, throughput is X(v) ~ v / (1 + c v). `steepness` is c.
It is measured where the scrapes allow (Little's law: S = running / finished per second) and leans on a prior where not.
"""

from __future__ import annotations

from bandkeeper.api.records import dataclass

PRIOR_STEEPNESS = 1.3  # S(best batch) = 2.3 S(0): the middle of what calibration.md lists for LLM servers (1.8 to 4)
MOST_STEEPNESS = 6.0
_FORGET = 0.99  # per observation: a memory of about 100 observations
_PRIOR_WEIGHT = 0.1  # in units of observations x variance of v: a spread of .1 over 10 observations outweighs the prior


@dataclass(frozen=True, slots=True)
class LoadCurve:
    """Converts between utilisation u (requests over best batch) and load y (work over a replica's best throughput)."""

    steepness: float = PRIOR_STEEPNESS

    def load(self, utilization: float) -> float:
        """Share of the best throughput that is done at `utilization`; above 1 the excess counts as it is."""
        if utilization >= 1:
            return utilization
        return utilization * (1 + self.steepness) / (1 + self.steepness * utilization)

    def utilization(self, load: float) -> float:
        """The inverse of `load`."""
        if load >= 1:
            return load
        return load / (1 + self.steepness * (1 - load))

    def stretch(self, utilization: float, reference: float) -> float:
        """Service time at `utilization` relative to that at `reference`, both at most 1."""
        c = self.steepness
        return (1 + c * min(1.0, utilization)) / (1 + c * min(1.0, reference))

    def utilization_at(self, stretch: float, reference: float) -> float:
        """The utilisation whose service time is `stretch` times that at `reference`; 0 or less where there is none."""
        c = self.steepness
        if c <= 0:
            return 0.0 if stretch < 1 else 1.0
        return (stretch * (1 + c * min(1.0, reference)) - 1) / c


@dataclass(frozen=True, slots=True)
class ServiceFit:
    """Weighted moments of (v, S) pairs: enough for a straight line, with a prior slope where v hardly moved."""

    weight: float = 0.0
    v: float = 0.0
    s: float = 0.0
    vv: float = 0.0
    vs: float = 0.0

    def seen(self, v: float, service_s: float) -> ServiceFit:
        """With one more observation of the service time at relative batch v."""
        return ServiceFit(
            weight=_FORGET * self.weight + 1,
            v=_FORGET * self.v + v,
            s=_FORGET * self.s + service_s,
            vv=_FORGET * self.vv + v * v,
            vs=_FORGET * self.vs + v * service_s,
        )

    @property
    def mean_s(self) -> float:
        """Mean service time of what was seen, 0 before anything was."""
        return self.s / self.weight if self.weight else 0.0

    def curve(self) -> LoadCurve:
        """The fitted curve, its steepness inside what is physical."""
        if self.weight < 1 or self.s <= 0:
            return LoadCurve()
        v, s = self.v / self.weight, self.s / self.weight
        variance = max(0.0, self.vv - self.weight * v * v)
        covariance = self.vs - self.weight * v * s
        prior = s * PRIOR_STEEPNESS / (1 + PRIOR_STEEPNESS * v)
        slope = (covariance + _PRIOR_WEIGHT * prior) / (variance + _PRIOR_WEIGHT)
        intercept = s - slope * v
        if slope <= 0:
            return LoadCurve(0.0)
        if intercept <= slope / MOST_STEEPNESS:
            return LoadCurve(MOST_STEEPNESS)
        return LoadCurve(slope / intercept)


NO_FIT = ServiceFit()
