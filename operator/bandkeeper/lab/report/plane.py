"""What the comparison of rules shows, apart from how it is drawn: cost against the promises kept, one plane per load.

The height of a point is the worst promise's misses over those that its goal permits: 1 is just kept, 10 is ten times
too many. So loads and promises with different goals share one axis, on which 99 % and 99.9 % do not look alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bandkeeper.lab.report import words

if TYPE_CHECKING:
    from bandkeeper.lab.bench import BenchPoint, BenchResult

LEAST_MISSES, MOST_MISSES = 0.05, 100.0
HOPELESS = 40.0  # times the misses permitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One setting of a rule on one load: means over the seeds.

    Attributes
    ----------
    misses
        Of the worst promise, as a multiple of those permitted; within the axis' ends.
    told
        What a reader is told of it.
    """

    gpu_hours: float
    misses: float
    relative: float | None
    meets_goal: bool
    is_default: bool
    is_best: bool
    moves_per_h: float
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A rule's settings, by cost. `front` are those that no other setting of the rule beats in both."""

    rule: str
    spots: tuple[Spot, ...]

    @property
    def front(self) -> tuple[Spot, ...]:
        found: list[Spot] = []
        for spot in self.spots:
            if not found or spot.misses < found[-1].misses:
                found.append(spot)
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One load. `bound_hours` is None where no rule in hindsight met the goals."""

    workload: str
    curves: tuple[Curve, ...]
    bound_hours: float | None

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the cost axis, GPU-hours; a setting that hardly serves anybody does not stretch it."""
        spots = [spot for curve in self.curves for spot in curve.spots if spot.gpu_hours > 0]
        costs = [spot.gpu_hours for spot in spots if spot.misses <= HOPELESS] or [spot.gpu_hours for spot in spots]
        costs += [self.bound_hours] if self.bound_hours else []
        return (min(costs) / 1.12, max(costs) * 1.12) if costs else (0.5, 2.0)


def misses_limits(planes: Sequence[Plane]) -> tuple[float, float]:
    """Ends of the axis of misses, the same for all planes."""
    found = [spot.misses for one in planes for curve in one.curves for spot in curve.spots]
    least, most = min(found, default=1.0), max(found, default=1.0)
    return max(LEAST_MISSES, min(least / 2, 0.4)), min(MOST_MISSES, max(1.3 * most, 10.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A rule over all loads: at its best setting on each, and at its published default where it has one.

    `settings` were tried, over all loads. `met` counts loads on which every goal is met. `cost` is relative to the
    bound, a mean over the loads that have one.
    """

    rule: str
    ours: bool
    hindsight: bool
    loads: int
    settings: int
    met: int
    cost: float | None
    default_met: int | None
    default_cost: float | None
    moves_per_h: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules in the order in which they are drawn and named: ours first, those in hindsight last."""

    names: tuple[str, ...]
    ours: frozenset[str]
    hindsight: frozenset[str]


def rules_of(bench: BenchResult) -> Rules:
    """The rules of a comparison."""
    ours = frozenset(point.rule for point in bench.points if point.is_ours)
    hindsight = frozenset(point.rule for point in bench.points if point.is_hindsight)
    names = dict.fromkeys(point.rule for point in bench.points)
    ordered = sorted(names, key=lambda name: (name not in ours, name in hindsight))
    return Rules(names=tuple(ordered), ours=ours, hindsight=hindsight)


def planes_of(bench: BenchResult) -> tuple[Plane, ...]:
    """One plane for each load, in the comparison's order."""
    names = rules_of(bench).names
    return tuple(_plane(bench, workload.name, names) for workload in bench.workloads)


def standings(bench: BenchResult) -> tuple[Standing, ...]:
    """Every rule over all loads: those for use first, by loads met and then by cost."""
    rules, planes = rules_of(bench), planes_of(bench)
    found = [_standing(name, rules, planes) for name in rules.names]
    return tuple(sorted(found, key=lambda one: (one.hindsight, -one.met, one.cost or float("inf"))))


def headline(bench: BenchResult) -> str:
    """What the comparison says, in one or two sentences."""
    found = standings(bench)
    ours = next((one for one in found if one.ours), None)
    peer = next((one for one in found if not one.ours and not one.hindsight), None)
    if ours is None and peer is None:
        return f"{words.count(len(bench.workloads), 'load')} compared; no rule for use among them."
    first = ours or peer
    assert first is not None
    cost = f" at {words.number(first.cost)} times the cost of the bound" if first.cost is not None else ""
    loads = words.count(first.loads, "load")
    told = f"{first.rule} met every goal on {first.met} of {loads}{cost}{_tuned(first)}"
    if ours is None or peer is None:
        return f"{told}."
    against = f" at {words.number(peer.cost)} times" if peer.cost is not None else ""
    return f"{told}; the best peer, {peer.rule}, on {peer.met} of {peer.loads}{against}{_tuned(peer)}."


def _tuned(one: Standing) -> str:
    return ", tuned for each load" if one.settings > one.loads else ""


def _standing(rule: str, rules: Rules, planes: Sequence[Plane]) -> Standing:
    spots = [spot for plane in planes for curve in plane.curves if curve.rule == rule for spot in curve.spots]
    best = [spot for spot in spots if spot.is_best]
    default = [spot for spot in spots if spot.is_default]
    return Standing(
        rule=rule,
        ours=rule in rules.ours,
        hindsight=rule in rules.hindsight,
        loads=len(best),
        settings=len(spots),
        met=sum(spot.meets_goal for spot in best),
        cost=_mean(spot.relative for spot in best),
        default_met=sum(spot.meets_goal for spot in default) if default else None,
        default_cost=_mean(spot.relative for spot in default),
        moves_per_h=fmean(spot.moves_per_h for spot in best) if best else 0.0,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _plane(bench: BenchResult, workload: str, names: Sequence[str]) -> Plane:
    curves: dict[str, dict[str, list[BenchPoint]]] = {name: {} for name in names}
    for point in bench.points:
        if point.workload == workload:
            curves[point.rule].setdefault(point.label, []).append(point)
    bound = [point.gpu_hours for point in bench.points if point.workload == workload and point.is_bound]
    hours = next(one.duration_s for one in bench.workloads if one.name == workload) - bench.warmup_s
    return Plane(
        workload=workload,
        curves=tuple(
            Curve(
                rule=rule,
                spots=tuple(
                    sorted(
                        (_spot(bench, some, hours / 3600) for some in settings.values()),
                        key=lambda spot: (spot.gpu_hours, spot.misses),
                    )
                ),
            )
            for rule, settings in curves.items()
            if settings
        ),
        bound_hours=fmean(bound) if bound else None,
    )


def _spot(bench: BenchResult, points: Sequence[BenchPoint], judged_h: float) -> Spot:
    first, cost = points[0], fmean(point.gpu_hours for point in points)
    relative = _mean(point.relative for point in points)
    moves_per_h = fmean(point.scale_actions + point.batch_actions for point in points) / max(judged_h, 1e-9)
    misses, kept = LEAST_MISSES, []
    for index, slo in enumerate(bench.slos):
        attained = _mean(point.attainment[index] for point in points)
        if attained is None:
            continue
        kept.append(f"{words.signal_name(slo.signal)} {words.share(attained, below=slo.goal)}")
        misses = max(misses, (1 - attained) / max(1 - slo.goal, 1e-6))
    return Spot(
        gpu_hours=cost,
        misses=min(misses, MOST_MISSES),
        relative=relative,
        meets_goal=first.meets_goal,
        is_default=first.is_default,
        is_best=first.is_best,
        moves_per_h=moves_per_h,
        told=_description(first, cost, relative, kept, moves_per_h),
    )


def _description(
    point: BenchPoint, cost: float, relative: float | None, kept: Sequence[str], moves_per_h: float
) -> str:
    against = f" ({words.number(relative)} times the bound)" if relative is not None else ""
    default = ", the published default" if point.is_default else ""
    goals = "every goal met" if point.meets_goal else "a goal missed"
    return (
        f"{point.rule}, {point.label}{default}\n{words.number(cost)} GPU-hours{against}\n"
        f"{'; '.join(kept)}: {goals}\n{words.number(moves_per_h)} moves an hour"
    )
