"""Everything that one decision looks at, gathered once."""

from __future__ import annotations

from bandkeeper.api.records import dataclass
from bandkeeper.api.snapshot import Target
from bandkeeper.decide.backlog import Due
from bandkeeper.decide.cap_rules import CapChoice
from bandkeeper.decide.decision import Inputs, MetricsVerdict, PowerVerdict, ProfileVerdict, SLOVerdict
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.load import Load
from bandkeeper.decide.policy import Policy
from bandkeeper.model.steps import NO_STEPS, StepFit
from bandkeeper.quality.types import Assessment


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The facts of one tick.

    Attributes
    ----------
    current
        Replicas that the target has, or will show as soon as our last write is seen.
    cap_in_force
        Least batch cap of the ready pods, the wanted one where none tells.
    due
        What a deadline asks for; None without one.
    steps
        Step times as they were learned; without observations where there is no model.
    """

    policy: Policy
    target: Target
    pods_age_s: float
    stalest: str
    load: Load
    verdicts: tuple[SLOVerdict, ...]
    metrics: MetricsVerdict
    demand: Demand | None
    cap: CapChoice
    best_cap: int
    current: int
    now_s: float
    quality: Assessment
    power: PowerVerdict | None = None
    due: Due | None = None
    profile: ProfileVerdict | None = None
    steps: StepFit = NO_STEPS

    @property
    def cap_in_force(self) -> int:
        return min(self.load.caps, default=self.cap.cap or self.best_cap)

    def inputs(self, band: int | None, queue: int | None, slo: int | None, due: int | None = None) -> Inputs:
        """The numbers behind the decision."""
        load, demand = self.load, self.demand
        return Inputs(
            running=load.running,
            waiting=load.waiting,
            offered=demand.requests(demand.work, load.ready) if demand else None,
            held_peak=demand.requests(demand.peak_work, load.ready) if demand else None,
            finished_per_s=load.finished_per_s,
            offered_per_s=demand.offered_per_s if demand else None,
            kv_utilization=load.kv,
            best_cap=self.best_cap,
            ready=load.ready,
            pending_credited=load.pending,
            pending_lost=len(load.lost),
            terminating=load.terminating,
            cold_start_s=load.cold_start_s if load.cold_start_measured else None,
            replicas_for_band=band,
            replicas_for_queue=queue,
            replicas_for_slo=slo,
            replicas_for_deadline=due,
        )
