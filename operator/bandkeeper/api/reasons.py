"""Why the decision is as it is: one word for programs, one sentence of documentation for people, nowhere else."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class _Documented(StrEnum):
    """A word with its documentation in `meaning`."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        return member


class Reason(_Documented):
    """Why a decision wants what it wants."""

    IN_BAND = "InBand", "Utilisation is inside the band and every SLO is kept, so nothing changes."
    NO_CHANGE = "NoChange", "Nothing asks for a change that would help."
    HOLDING = "Holding", "Capacity is more than needed now, and a rule holds it for a while."
    DEMAND_ROSE = "DemandRose", "Offered work needs more replicas to stay below the band's high edge."
    DEMAND_FORESEEN = (
        "DemandForeseen",
        "Work rose at this hour on an earlier day, which foretold the last hours well, so replicas are added in time.",
    )
    BACKLOG_DEADLINE = "BacklogDeadline", "So many replicas finish the backlog by its deadline, and fewer would not."
    QUEUE_GROWS = "QueueGrows", "Work arrives faster than it is done, so replicas are added at once."
    SLO_BREACHED = "SLOBreached", "A promise is broken and replicas are what can mend it."
    SLO_UNREACHABLE = "SLOUnreachable", "A promise is broken that neither more replicas nor a smaller batch can keep."
    DEMAND_FELL = "DemandFell", "Fewer replicas carry the held peak of the offered work inside band and SLO."
    CAP_RAISED = "BatchCapRaised", "A larger batch cap carries more work per replica within memory and SLO."
    CAP_LOWERED = "BatchCapLowered", "A smaller batch cap shortens each step and keeps the latency SLO."
    CAP_FOLLOWS_LOAD = "BatchCapFollowsLoad", "The load is low, and a smaller batch cap still carries it with margin."
    POWER_LIMIT = "PowerLimit", "A smaller batch cap keeps the GPUs' power within constraints.powerWattsPerGPU."
    PREEMPTIONS = "Preemptions", "Requests are preempted for want of KV memory, so the batch cap follows what fits."
    ROLLED_BACK = "RolloutRolledBack", "The rollout of a batch cap missed its progress deadline and is taken back."
    MORE_WOULD_NOT_HELP = (
        "MoreWouldNotHelp",
        "More replicas were seen to bring hardly more work, or share what is full, so none is added.",
    )
    LOW_EFFICIENCY = (
        "LowParallelEfficiency",
        "Workers do less than constraints.parallelEfficiencyPercent of what few do, so none is added, or one goes.",
    )
    OUTSIDE_BOUNDS = "OutsideBounds", "The target has fewer or more replicas than the policy allows."
    LIMITED = "Limited", "A bound or a rate limit stands in the way of what is wanted."
    FALLBACK = "Fallback", "Metrics are missing for longer than allowed, and the policy's fallback holds."
    METRICS_MISSING = "MetricsMissing", "Nothing usable was read, so nothing changes."
    METRICS_PARTIAL = "MetricsPartial", "Some pods or signals have no data, so nothing is lowered."
    NO_READY_PODS = "NoReadyPods", "No pod is ready, so there is nothing to judge by."
    TARGET_MISSING = "TargetMissing", "The target does not exist or was not read yet."
    TARGET_AT_ZERO = "TargetAtZero", "A person set the target to 0 replicas, so it is left alone."
    UNDONE = "Undone", "Another manager undid the operator's writes three times, so it stopped writing."


class BandReason(_Documented):
    """Why utilisation is, or is not, inside the band."""

    IN_BAND = "InBand", "Utilisation is inside the band."
    ABOVE_BAND = "AboveBand", "Utilisation is above the band; capacity is being added."
    BELOW_BAND = "BelowBand", "Utilisation is below the band; replicas are being let go."
    QUANTISED = "Quantised", "No whole number of replicas is inside the band; this is the fewest below its high edge."
    SLO_BOUND = "SLOBound", "An SLO needs the replicas that utilisation alone would let go."
    HOLDING_PEAK = "HoldingPeak", "Capacity is held for a recent peak, a change on its way, or until enough was seen."
    AT_BOUND = "AtBound", "replicas.min or replicas.max stands between utilisation and the band."
    UNKNOWN = "Unknown", "Utilisation is not known, or not of every replica."


class LimitReason(_Documented):
    """What keeps the replica count from what is wanted."""

    AT_MIN = "AtMin", "replicas.min is more than the load needs."
    AT_MAX = "AtMax", "replicas.max is less than what is wanted."
    SCALE_UP_LIMIT = "ScaleUpLimit", "behavior.scaleUp allows a part of what is wanted now."
    SCALE_DOWN_LIMIT = "ScaleDownLimit", "behavior.scaleDown allows a part of what is wanted now."
    MORE_WOULD_NOT_HELP = "MoreWouldNotHelp", "More replicas would bring hardly more work; the message says why."
    LOW_EFFICIENCY = (
        "LowParallelEfficiency",
        "One worker more would do less than constraints.parallelEfficiencyPercent of what few do.",
    )
    DEADLINE_UNREACHABLE = (
        "DeadlineUnreachable",
        "No permitted replica count finishes the backlog by its deadline; the message has the best reachable finish.",
    )
    UNSCHEDULABLE = "Unschedulable", "Ordered pods find no node with a free GPU."
    IMAGE_PULL_FAILED = "ImagePullFailed", "Ordered pods cannot pull their image."
    CRASH_LOOP = "CrashLoop", "Ordered pods crash again and again."
    PODS_FAILING = "PodsFailing", "Ordered pods cannot start."
    PENDING_TOO_LONG = "PendingTooLong", "Ordered pods are not ready after twice the usual cold start."
    TERMINATING_PODS = "TerminatingPods", "Pods that still end, or a rollout's surge, count against replicas.max."
    TARGET_UNDONE = "Undone", "Another manager undoes the operator's writes."


class SLOState(_Documented):
    """How far one promise is kept."""

    MET = "Met", "The promise is kept."
    BREACHED = "Breached", "The promise is broken."
    NO_TRAFFIC = "NoTraffic", "Nothing was asked in the window, so there is nothing to judge."
    TOO_FEW_REQUESTS = "TooFewRequests", "Too few requests in the window to tell the percentile."
    BETWEEN_BUCKETS = "BetweenBuckets", "The threshold lies inside the bucket that decides; choose one of its edges."
    NO_DATA = "NoData", "The signal has no usable data."
    UNREACHABLE = "Unreachable", "The promise is broken, and replicas or batch were seen not to help."


class ProfileState(_Documented):
    """How spec.profile stands to what was measured."""

    FITS = "Fits", "What was measured is near what spec.profile says."
    CONTRADICTED = "Contradicted", "What was measured is far from what spec.profile says, so only that counts."
    UNMEASURED = "Unmeasured", "Too little was measured to compare, so spec.profile counts."


class PowerState(_Documented):
    """How the GPUs' power stands to constraints.powerWattsPerGPU."""

    WITHIN = "Within", "No GPU draws more than constraints.powerWattsPerGPU allows."
    ABOVE = (
        "PowerAboveLimit",
        "A GPU draws more than constraints.powerWattsPerGPU allows; the batch cap goes down.",
    )
    UNREACHABLE = "PowerUnreachable", "Power is above its limit at the smallest batch cap; the message says what helps."
    NO_DATA = "NoData", "The power of the GPUs is not known, so it moves no batch cap."


class DeadlineState(_Documented):
    """How a backlog stands to its deadline."""

    IN_TIME = "InTime", "The present replicas finish the backlog in time."
    LATE = "Late", "The present replicas would finish the backlog too late; more of them are in time."
    UNREACHABLE = LimitReason.DEADLINE_UNREACHABLE.value, LimitReason.DEADLINE_UNREACHABLE.meaning
    NOTHING_LEFT = "NothingLeft", "Nothing is left to do."
    NO_DATA = "NoData", "How much is left, or how fast it is done, is not known (yet), so nothing is lowered."
