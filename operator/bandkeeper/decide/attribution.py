"""What the replicas that are there are held for: how many would not be held now, had one rule alone been left out.

These are marginal: what two rules ask for alike, neither saves alone. So they do not add up to the whole.
"""

from __future__ import annotations

import math

from bandkeeper.decide.decision import Held
from bandkeeper.decide.demand import Demand
from bandkeeper.decide.policy import Policy
from bandkeeper.decide.size import for_band
from bandkeeper.decide.state import AskedMemory, ScaleMemory


def remember(policy: Policy, demand: Demand, asked: AskedMemory, now_s: float) -> AskedMemory:
    """With what the rules ask for now: each is heard for the scale-down window, as the count itself is."""
    window_s = policy.scale_down.stabilization_s
    band, ready, unpromised, unremembered = _claims(policy, demand)
    return AskedMemory(
        band=asked.band.push(band, now_s, window_s),
        ready=asked.ready.push(ready, now_s, window_s),
        unpromised=asked.unpromised.push(unpromised, now_s, window_s),
        unremembered=asked.unremembered.push(unremembered, now_s, window_s),
    )


def _claims(policy: Policy, demand: Demand) -> tuple[float, float, float, float]:
    """Replicas by the band, and by what is to be ready for: in full, without promises, without memory."""
    band = float(for_band(policy, demand))
    if not demand.modelled:  # peaks are those of the scale-down window then, and nothing has a margin
        return band, demand.work, demand.work, demand.work
    ready, unpromised = demand.peak_work * demand.margin, demand.peak_work * demand.bare_margin
    return band, ready, unpromised, demand.work * demand.present_margin


def attribute(
    policy: Policy, demand: Demand, scale: ScaleMemory, *, current: int, promised: int, queue: int, bound: bool
) -> Held:
    """What `current` replicas are held for, in whole replicas but for the work.

    `promised` and `queue` are what a broken promise and a queue ask for at this moment; `bound` says that a promise
    argues against letting go of anything.
    """

    def count(*claims: float) -> int:
        return min(current, max(policy.min_replicas, math.ceil(max(claims) - 1e-9)))

    asked = scale.asked
    band, ready, unpromised, unremembered = (
        one.highest() or 0.0 for one in (asked.band, asked.ready, asked.unpromised, asked.unremembered)
    )
    needs, queues = scale.needs.highest() or 0.0, scale.queues.highest() or 0.0
    # Nothing is let go inside the band: that is the band's doing, and ends with it.
    low = policy.band.low * (1 - policy.scale_down.tolerance)
    inside = min(current, int(demand.work / demand.load(low) + 1e-9)) if low > 0 else current
    whole = count(band, ready, needs, queues)
    without_promises = count(band, unpromised, queues)
    now = max(inside, count(*_claims(policy, demand), promised, queue))
    return Held(
        replicas=current,
        work=min(float(current), demand.work),
        band=max(whole, inside) - count(ready, needs, queues),
        slo=max(0, current - max(inside, without_promises)) if bound else whole - without_promises,
        peak=max(0, whole - count(band, unremembered, needs, queues)),
        queue=whole - count(band, ready, needs),
        least=max(0, min(current, policy.min_replicas) - max(1, inside, math.ceil(max(band, ready, needs, queues)))),
        hold=0 if bound else current - now,
    )
