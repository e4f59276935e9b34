"""What a policy remembers from tick to tick. Frozen, bounded, and meaningless to anyone but the decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from bandkeeper.api.reasons import PowerState
from bandkeeper.api.records import dataclass
from bandkeeper.api.signals import Signal
from bandkeeper.api.snapshot import Earlier
from bandkeeper.model.batches import BatchTimes
from bandkeeper.model.curve import NO_FIT, ServiceFit
from bandkeeper.model.forecast import Record
from bandkeeper.model.misses import MissFit, Shape
from bandkeeper.model.outlook import NO_OUTLOOK, Outlook
from bandkeeper.model.peaks import NO_PEAKS, Peaks
from bandkeeper.model.power import NO_POWER, PRIOR_POWER, PowerCurve, PowerFit
from bandkeeper.model.steps import NO_STEPS, StepFit
from bandkeeper.quality.types import Assessment, Memory, Saturated

EVENTS_LIMIT = 128
SAMPLES_LIMIT = 32
UNDOS_LIMIT = 8
REGRETS_LIMIT = 8
RATES_LIMIT = 8


@dataclass(frozen=True, slots=True)
class Undo:
    """Somebody took back what the operator wrote."""

    at_s: float
    manager: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """Who moves the replica count.

    Attributes
    ----------
    expected
        Replicas that the target should show: seen last, or written since.
    shown
        What the target showed last; behind `expected` for a moment after a write of ours.
    before
        Replicas before our last write, None before the first.
    written_s
        When we wrote last.
    hold_until_s
        A person's change is the new starting point until then.
    person
        Who made that change.
    """

    expected: int | None = None
    shown: int | None = None
    before: int | None = None
    written_s: float | None = None
    hold_until_s: float = float("-inf")
    person: str = ""
    undos: tuple[Undo, ...] = ()


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """Replicas added (positive) or removed by the operator."""

    at_s: float
    change: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the fleet: requests in it, of those in process, ready replicas, and work in replicas (smoothed)."""

    at_s: float
    in_flight: float
    running: float
    waiting: float
    ready: int
    work: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandMemory:
    """Offered work, in replicas at the best cap, and what led there.

    Attributes
    ----------
    best_cap
        Unit of everything below; a change of it rescales the memory.
    work, in_flight
        Smoothed, None before the first data.
    request_s
        Replica-seconds of one request, from the last window in which no replica came or went.
    queued_s
        When work waited last.
    """

    best_cap: int = 0
    work: float | None = None
    in_flight: float | None = None
    request_s: float | None = None
    updated_s: float = 0.0
    queued_s: float = float("-inf")
    fitted_s: float = float("-inf")
    samples: tuple[Sample, ...] = ()
    peaks: Peaks = NO_PEAKS
    service: ServiceFit = NO_FIT
    cold_start_s: float | None = None
    waiting_known: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """How full the fleet was at one look, and whether work waited."""

    at_s: float
    utilization: float
    queued: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPromise:
    """What is known of one latency promise: who misses it when, `allowed` of all may; and when it was given up last."""

    signal: Signal
    percentile: int
    threshold_s: float
    misses: MissFit
    shape: Shape
    lost_s: float = float("-inf")

    @property
    def allowed(self) -> float:
        return 1 - self.percentile / 100

    @property
    def name(self) -> tuple[Signal, int]:
        """What tells it from the policy's other promises."""
        return self.signal, self.percentile


@dataclass(frozen=True, slots=True)
class Unit:
    """What a replica's work is counted by: times of its steps, the requests that it has in process at its best, and the
    pod template that both are of."""

    steps: StepFit | BatchTimes
    batch: float
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """The fitted model and what it says of the past.

    Attributes
    ----------
    best_cap
        Unit of the outlook: replicas at this cap.
    unit
        The same, as replicas were known when it was counted anew.
    revision
        Pod template that the step times are of.
    requests_per_s, prompt_per_s, output_per_s
        Requests finished and tokens of the whole workload, as means over some minutes.
    prefill_tokens
        The most prompt tokens of a step, as the pods told at the last look; None where they do not.
    batch
        Requests that a replica can have in process, as a mean of some minutes.
    mean_work
        Mean of some minutes, in replicas.
    seen_s
        Time that the means are of, at most.
    error, margin, bound_by
        Of the last look: standard error of the work as a share of it, and what the promises ask for.
    traces
        Looks of the longest window that promises are judged over.
    records
        How right the forecasts of each earlier day were.
    told_ratio, told_windows
        Logarithm of what was measured over what the policy's profile says, as a mean, and the windows that it is of.
    """

    best_cap: int = 0
    unit: Unit | None = None
    revision: str | None = None
    steps: StepFit | BatchTimes = NO_STEPS
    requests_per_s: float | None = None
    prompt_per_s: float | None = None
    output_per_s: float | None = None
    prefill_tokens: int | None = None
    outlook: Outlook = NO_OUTLOOK
    batch: float | None = None
    mean_work: float | None = None
    seen_s: float = 0.0
    error: float | None = None
    margin: float = 1.0
    bound_by: Signal | None = None
    traces: tuple[Trace, ...] = ()
    promises: tuple[LearnedPromise, ...] = ()
    records: Mapping[Earlier, Record] = field(default_factory=dict)
    told_ratio: float = 0.0
    told_windows: float = 0.0
    updated_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Replicas ordered for a broken promise, and what was measured then, to see whether they help."""

    signal: Signal
    at_s: float
    replicas: int
    batch: float | None
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseMemory:
    """Broken promises: when last, what was ordered, and which signals replicas were seen not to help (until when)."""

    breached_s: float = float("-inf")
    order: Order | None = None
    futile: tuple[tuple[Signal, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Shrink:
    """A scale-in of ours: the replicas kept, and the work and request rate that were thought to fit them."""

    at_s: float
    replicas: int
    work: float
    offered_per_s: float | None


@dataclass(frozen=True, slots=True)
class Regret:
    """`replicas` proved too few for `work`."""

    at_s: float
    replicas: int
    work: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedMemory:
    """What rules asked for over the scale-down window, in replicas and fractions of them.

    Attributes
    ----------
    band
        Work over the band's high edge.
    ready
        Work to be ready for, with the margin of the promises.
    unpromised, unremembered
        The same without the promises, and without the memory of peaks and rises, which spares a part of the margin.
    """

    band: Peaks = NO_PEAKS
    ready: Peaks = NO_PEAKS
    unpromised: Peaks = NO_PEAKS
    unremembered: Peaks = NO_PEAKS


NOTHING_ASKED = AskedMemory()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleMemory:
    """Past recommendations and changes of the replica count.

    Attributes
    ----------
    needs
        Replicas that a broken promise needed, over the scale-down window.
    queues
        Replicas that a queue needed, over a cold start: a backlog that is gone is no reason to keep them longer.
    holds
        Replicas that the model asked for, over the scale-down window.
    ups
        Negated recommendations over the scale-up window: its maximum is the least of them.
    asked
        What each rule asked for, over the scale-down window.
    """

    needs: Peaks = NO_PEAKS
    queues: Peaks = NO_PEAKS
    ups: Peaks = NO_PEAKS
    holds: Peaks = NO_PEAKS
    asked: AskedMemory = NOTHING_ASKED
    events: tuple[ScaleEvent, ...] = ()
    shrink: Shrink | None = None
    regrets: tuple[Regret, ...] = ()


@dataclass(frozen=True, slots=True)
class CapRate:
    """Throughput of one replica, saturated at a cap."""

    cap: int
    rate: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CapMemory:
    """The batch knob.

    Attributes
    ----------
    wanted, before
        The cap that is wanted, and the one before it; None before the first look.
    moved_s
        When it was last changed.
    rollout_s
        When a rollout was last begun for it.
    queued_at, queued_replicas, queued_s
        A cap at which a queue formed, with how many replicas and when: not gone back to for a while.
    broke_at, broke_s
        A cap at which a latency promise broke, and when.
    inward
        That change was into the bounds, for no load's sake.
    confirmed
        The wanted cap was read back from every pod.
    acted
        The wanted cap was written since it was chosen.
    """

    wanted: int | None = None
    before: int | None = None
    moved_s: float = float("-inf")
    rollout_s: float = float("-inf")
    queued_at: int | None = None
    queued_replicas: int = 0
    queued_s: float = float("-inf")
    broke_at: int | None = None
    broke_s: float = float("-inf")
    inward: bool = False
    confirmed: bool = False
    acted: bool = False
    rates: tuple[CapRate, ...] = ()
    undos: tuple[Undo, ...] = ()


@dataclass(frozen=True, slots=True)
class PowerSample:
    """Power of the GPU that draws most, and the requests in process per replica."""

    at_s: float
    watts: float
    batch: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMemory:
    """The GPUs' power against its limit.

    Attributes
    ----------
    ceiling, moved_s
        The largest batch cap that power allows, as far as was seen, and when it was last changed.
    caps, since_s
        Caps in force, and since when.
    broke_at, broke_s
        The least cap at which power was above the limit, and when.
    why
        What lowered the ceiling last, as a clause for a person.
    """

    ceiling: int | None = None
    moved_s: float = float("-inf")
    caps: frozenset[int] = frozenset()
    since_s: float = float("-inf")
    samples: tuple[PowerSample, ...] = ()
    fit: PowerFit = NO_POWER
    curve: PowerCurve = PRIOR_POWER
    fitted_s: float = float("-inf")
    broke_at: int | None = None
    broke_s: float = float("-inf")
    state: PowerState | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersMemory:
    """What workers were seen to bring.

    Attributes
    ----------
    seen
        Throughput by count, while there was always work.
    count, since_s
        The count that stands, None while it changes, and since when it was watched.
    low_since_s
        Since when it is less efficient than was asked for; None while it is not.
    revision
        Pod template that all this is of.
    """

    seen: tuple[Saturated, ...] = ()
    count: int | None = None
    since_s: float = float("-inf")
    low_since_s: float | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogMemory:
    """What a backlog did.

    Attributes
    ----------
    left, changed_s
        What was left when that changed last.
    done, seen_s
        What was done of it since then, until it was seen last.
    arriving_per_s
        What comes to it, as a mean of some minutes.
    held
        The most of it, over the time in which it is to be done.
    """

    left: float | None = None
    changed_s: float = 0.0
    done: float = 0.0
    seen_s: float = 0.0
    arriving_per_s: float = 0.0
    held: Peaks = NO_PEAKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What was seen, and since when.

    Attributes
    ----------
    state
        Value of the last metrics verdict, "" before the first.
    usable_s
        When metrics were last usable (the start, before they ever were).
    complete_s
        When every ready pod last had data.
    watching_since_s
        Since when the fleet was watched without a gap; None while it is not.
    released
        The hold after a start is over.
    """

    usable_s: float
    state: str = ""
    since_s: float = 0.0
    complete_s: float = float("-inf")
    watching_since_s: float | None = None
    released: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What more replicas brought, while work waited before and after.

    Attributes
    ----------
    throughput
        Of `before` replicas, per second.
    gain
        Share of proportional: 1 where twice the replicas did twice the work, 0 where they did no more.
    """

    before: int
    after: int
    throughput: float
    gain: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityMemory:
    """The last judgement of quality, what it remembers, and what it was made of.

    Attributes
    ----------
    trial
        The last time that replicas were added to a fleet with a queue.
    judged_s, sampled_s
        When it was made, and when its youngest GPU counter was read.
    state
        What else it depends on at once.
    """

    memory: Memory = field(default_factory=Memory)
    assessment: Assessment | None = None
    trial: Trial | None = None
    judged_s: float = float("-inf")
    sampled_s: float = float("-inf")
    state: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that is remembered for one policy. Start with `State.initial`."""

    started_s: float
    target_uid: str = ""
    sight: Sight
    ownership: Ownership = Ownership()
    demand: DemandMemory = DemandMemory()
    model: ModelMemory = ModelMemory()
    promises: PromiseMemory = PromiseMemory()
    scale: ScaleMemory = ScaleMemory()
    cap: CapMemory = CapMemory()
    power: PowerMemory = PowerMemory()
    workers: WorkersMemory = WorkersMemory()
    backlog: BacklogMemory = BacklogMemory()
    quality: QualityMemory = QualityMemory()

    @classmethod
    def initial(cls, now_s: float) -> State:
        """Nothing seen yet: scale-out is free at once, scale-in waits for the restart hold."""
        return cls(started_s=now_s, sight=Sight(usable_s=now_s))
