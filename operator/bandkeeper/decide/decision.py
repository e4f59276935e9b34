"""The decision as one value: what is wanted, why, and the inputs that led there."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from bandkeeper.api.reasons import (
    BandReason,
    DeadlineState,
    LimitReason,
    PowerState,
    ProfileState,
    Reason,
    SLOState,
)
from bandkeeper.api.records import dataclass
from bandkeeper.api.signals import Signal
from bandkeeper.quality.types import Assessment

MESSAGE_LIMIT = 256
REQUESTS_OVER_CAP = "RequestsOverCap"
FITTED_MODEL = "FittedModel"


def counted(replicas: int) -> str:
    """So many replicas, as a sentence has them."""
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


class MetricsState(StrEnum):
    """How much of what the decision needs was read."""

    USABLE = "Usable"
    PARTIAL = "Partial"
    NONE = "None"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsVerdict:
    """What the metrics are worth.

    Attributes
    ----------
    since_s
        When the state began, on the clock of `now_s`.
    in_fallback
        True while the policy's fallback holds (behavior Hold included).
    message
        Which signals or pods have no data; empty while all is usable.
    """

    state: MetricsState
    since_s: float
    in_fallback: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SLOVerdict:
    """How far one promise is kept.

    Attributes
    ----------
    limit
        The threshold in seconds, or the least rate per second where `percentile` is None.
    value
        Measured percentile in seconds, interpolated inside its bucket as Prometheus does, or the rate per second.
    lower, upper
        Bounds of the bucket that holds the percentile, in seconds; upper may be infinite.
    mean
        Mean in seconds, None where the source has no sum.
    attainment_low, attainment_high
        Least and largest share of requests (of tokens for InterTokenLatency) that can have kept the threshold.
    observations
        Requests or tokens in the window, None where the source gives only percentiles.
    """

    signal: Signal
    percentile: int | None
    limit: float
    window_s: float
    state: SLOState
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    mean: float | None = None
    attainment_low: float | None = None
    attainment_high: float | None = None
    observations: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class BandVerdict:
    """Whether utilisation is inside the band; `within` is None where it is not known."""

    within: bool | None
    reason: BandReason
    message: str = ""


@dataclass(frozen=True, slots=True)
class PowerVerdict:
    """How the power of the GPUs stands to its limit.

    Attributes
    ----------
    limit, watts
        The most that each GPU may draw, and what the one that draws most does; None where that is not known.
    ceiling
        The largest batch cap that is allowed.
    """

    limit: float
    state: PowerState
    message: str
    watts: float | None = None
    ceiling: int | None = None


@dataclass(frozen=True, slots=True)
class DeadlineVerdict:
    """How a backlog stands to its deadline.

    Attributes
    ----------
    left
        What is left to do, in the unit of the backlog's rate; None where that is not known.
    left_s, finish_s
        Time until the deadline, negative where it passed; and until the replicas that the message speaks of are done.
    """

    state: DeadlineState
    message: str
    left: float | None = None
    left_s: float | None = None
    finish_s: float | None = None


@dataclass(frozen=True, slots=True)
class ProfileVerdict:
    """How spec.profile stands to what was measured."""

    state: ProfileState
    message: str


@dataclass(frozen=True, slots=True)
class Limitation:
    """What keeps the replica count from what is wanted, with a sentence for a person."""

    reason: LimitReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The numbers behind a decision: requests unless a unit is named, None where not known.

    Attributes
    ----------
    offered
        Offered concurrency: requests that would be in process together if none had to wait, smoothed.
    held_peak
        Largest `offered` of the scale-down window.
    best_cap
        Requests that one replica is counted to carry (b*).
    replicas_for_band, replicas_for_queue, replicas_for_slo, replicas_for_deadline
        Replicas that each rule asks for; None where the rule has nothing to say.
    finished_per_s, offered_per_s
        Requests per second, done and asked for.
    """

    running: float | None = None
    waiting: float | None = None
    offered: float | None = None
    held_peak: float | None = None
    finished_per_s: float | None = None
    offered_per_s: float | None = None
    kv_utilization: float | None = None
    best_cap: int | None = None
    ready: int = 0
    pending_credited: int = 0
    pending_lost: int = 0
    terminating: int = 0
    cold_start_s: float | None = None
    replicas_for_band: int | None = None
    replicas_for_queue: int | None = None
    replicas_for_slo: int | None = None
    replicas_for_deadline: int | None = None


RULES = ("work", "band", "slo", "peak", "queue", "min", "hold")
UNKNOWN_RULE = "unknown"
"""For time in which nobody knew what the replicas were held for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the replicas are held for: how many would not be held now, had one rule alone been left out.

    The figures of the rules do not add up: what two of them ask for alike, neither saves alone.

    Attributes
    ----------
    replicas
        All that are held.
    work
        What the work offered now needs at full utilisation, with its fraction.
    band
        The band: its high edge, and its low edge below which alone something is let go.
    slo
        Promises: their margin beyond what any fleet is given, and what a broken one asks for or keeps.
    peak
        Memory of peaks and rises.
    queue
        Work that waits or waited a moment ago.
    least
        `replicas.min`.
    hold
        What nothing asks for now and is not let go yet: the scale-down window, arguments against it, whole replicas.
    """

    replicas: int
    work: float
    band: int
    slo: int
    peak: int
    queue: int
    least: int
    hold: int

    def by_rule(self) -> Iterable[tuple[str, float]]:
        """The figures by the names of `RULES`."""
        figures = self.work, self.band, self.slo, self.peak, self.queue, self.least, self.hold
        return zip(RULES, figures, strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The traffic that step times were learned of, as means of some minutes, and how sure they are.

    Attributes
    ----------
    prompt_tokens, output_tokens
        Of one request.
    room
        Requests that a replica can have in process: its cap, or what its KV cache holds.
    margin, bound_by
        Replicas per replica of work to be ready for, and the promise that asks for more than the fullest fleet.
    error
        Standard error of the work, as a share of it.
    windows
        Rate windows that were learned from.
    prefill_tokens
        The most prompt tokens of a step; None where no pod tells.
    """

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    room: float
    margin: float
    bound_by: Signal | None
    error: float
    windows: float
    prefill_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a process that begins anew should know: step times in seconds, and work in replicas at `best_cap`.

    `age_s` is how long ago the peak was. `batches` are sizes and seconds of batches, of a server that batches
    dynamically; its step times are a straight line through them, for people. So is `seen`: no process begins with it.
    """

    alpha_s: float
    beta_s: float
    delta_s: float
    best_cap: int
    peak_work: float
    largest_rise: float
    age_s: float = 0.0
    seen: Seen | None = None
    batches: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is wanted now.

    Attributes
    ----------
    replicas
        Wanted replicas, level-triggered: it stays until it is so. None: nothing may be said, write nothing.
    cap
        Wanted batch cap of every pod, level-triggered (new pods need it too). None: no knob, or nothing may be said.
    current_replicas, current_cap
        What the decision started from: the target's replicas, the cap in force (read back, else last wanted).
    rollback
        True: the cap's rollout is to be taken back to `cap` (rollout adapters only).
    emergency
        True: replicas are wanted at once; write before everything else.
    message
        For a person, at most 256 characters: what happened, why, what to do.
    limit
        None while nothing stands in the way.
    paused_by_zero
        A person set the target to 0 replicas.
    undone_by, cap_undone_by
        Manager that undid our writes of replicas, or of the cap, three times in 30 minutes, else "".
    quality
        What the GPUs' busy time is worth; None where there was nothing to judge.
    held
        What `current_replicas` are held for; None where the work is not known, or nothing was weighed.
    power
        None where the policy limits no power.
    deadline
        None where the policy has no backlog with a deadline.
    profile
        None where the policy has no profile.
    """

    replicas: int | None
    cap: int | None
    reason: Reason
    message: str
    emergency: bool = False
    current_replicas: int | None = None
    current_cap: int | None = None
    rollback: bool = False
    utilization: float | None = None
    utilization_source: str = REQUESTS_OVER_CAP
    learned: Learned | None = None
    inputs: Inputs = Inputs()
    slos: tuple[SLOVerdict, ...] = ()
    band: BandVerdict = BandVerdict(None, BandReason.UNKNOWN)
    limit: Limitation | None = None
    metrics: MetricsVerdict
    paused_by_zero: bool = False
    undone_by: str = ""
    cap_undone_by: str = ""
    quality: Assessment | None = None
    held: Held | None = None
    power: PowerVerdict | None = None
    deadline: DeadlineVerdict | None = None
    profile: ProfileVerdict | None = None
