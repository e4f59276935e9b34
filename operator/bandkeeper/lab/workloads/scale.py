"""Change a load's rate or length and keep its bursts as they are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bandkeeper.lab.requests import Requests, Seconds
from bandkeeper.lab.workloads import MOST_REQUESTS, LoadError

SHIFT_S = 45.0


def rescale(requests: Requests, factor: float, seed: int) -> Requests:
    """The load at `factor` times its rate, over the same time.

    Above 1 every request comes `factor` times: once as recorded, then as copies that are each shifted by their own
    uniform time of up to 45 s either way (reflected at both ends); a fraction is a random sample of whole requests.
    Minutes keep their shape and their ratio of peak to mean, and no two copies come at one instant. Squeezing time
    instead would make every rise faster than it ever was. Below 1 a random sample of whole requests stays.

    Raises
    ------
    LoadError
        The factor is not a number above 0, nothing would be left, or there would be too many requests.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise LoadError(f"rate scale {factor:g} is not possible: give a number above 0, such as 4 or 0.5")
    if len(requests) * factor > MOST_REQUESTS:
        most = MOST_REQUESTS / len(requests)
        raise LoadError(f"rate scale {factor:g} gives more than {MOST_REQUESTS:,} requests; give at most {most:.3g}")
    if factor == 1:
        return requests
    rng = np.random.Generator(np.random.PCG64(seed))
    whole = math.floor(factor)
    sampled = np.flatnonzero(rng.random(len(requests)) < factor - whole)
    if whole == 0 and not len(sampled):
        raise LoadError(f"rate scale {factor:g} leaves none of {len(requests)} requests; give a larger one")
    every = np.arange(len(requests))
    index = np.concatenate([every] * whole + [sampled])
    times = requests.arrival_s[index]
    copied = len(index) - len(requests) if whole else 0
    if copied:
        shifted = times[len(requests) :] + rng.uniform(-SHIFT_S, SHIFT_S, copied)
        times[len(requests) :] = _reflect(shifted, requests.duration_s)
    order = np.argsort(times, kind="stable")
    index = index[order]
    how = (
        f"each request comes {factor:g} times, copies shifted by up to {SHIFT_S:g} s either way"
        if whole
        else "a random sample of whole requests"
    )
    return replace(
        requests,
        arrival_s=times[order],
        prompt_tokens=requests.prompt_tokens[index],
        output_tokens=requests.output_tokens[index],
        name=f"{requests.name} x{factor:g}",
        notes=(*requests.notes, f"rate scaled by {factor:g}: {how}; from {len(requests)} requests to {len(index)}"),
    )


def fit(requests: Requests, duration_s: float) -> Requests:
    """The load over `duration_s`: cut where it is longer, begun anew where it is shorter.

    Raises LoadError where the duration is not a number above 0 or holds no or too many requests.
    """
    if not (duration_s > 0 and math.isfinite(duration_s)):
        raise LoadError(f"duration {duration_s:g} s is not possible: give a number above 0")
    if duration_s == requests.duration_s:
        return requests
    rounds = math.ceil(duration_s / requests.duration_s)
    if rounds * len(requests) > MOST_REQUESTS:
        raise LoadError(f"{rounds} rounds of {len(requests)} requests are more than {MOST_REQUESTS:,}: give less time")
    times = (requests.arrival_s + requests.duration_s * np.arange(rounds)[:, np.newaxis]).ravel()
    index = np.tile(np.arange(len(requests)), rounds)[times < duration_s]
    if not len(index):
        raise LoadError(f"no request comes in the first {duration_s:g} s; give more time")
    how = "cut" if rounds == 1 else f"repeated {duration_s / requests.duration_s:.3g} times"
    return replace(
        requests,
        arrival_s=times[times < duration_s],
        prompt_tokens=requests.prompt_tokens[index],
        output_tokens=requests.output_tokens[index],
        duration_s=duration_s,
        notes=(*requests.notes, f"{how} from {requests.duration_s:.0f} s to {duration_s:.0f} s"),
    )


def _reflect(times: Seconds, duration_s: float) -> Seconds:
    """Times outside 0 to `duration_s` come as far inside as they lay outside."""
    folded = np.abs(times) % (2 * duration_s)
    return np.minimum(folded, 2 * duration_s - folded)
