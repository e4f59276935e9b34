"""Builders for tests of the simulated fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bandkeeper.api.snapshot import PodState
from bandkeeper.lab.fleet import Fleet, PodNow
from bandkeeper.lab.requests import Requests
from bandkeeper.lab.server import ContinuousServer, DynamicServer

RESNET50_A100_MS = {1: 2.13, 2: 2.19, 4: 2.76, 8: 3.90, 16: 5.79, 32: 11.19, 64: 25.2, 128: 48.1}


def a_server(**changes: Any) -> ContinuousServer:
    """Steps of 20 ms and 0.4 ms per request, 0.1 ms per prompt token, a cold start of 90 s."""
    given: dict[str, Any] = {"model": "m", "gpu": "g", "source": "a test", "batch_max": 64, "kv_tokens": 400_000}
    given |= {"alpha_ms": 20.0, "beta_ms": 0.4, "gamma_ms": 5.0, "delta_ms_per_token": 0.1}
    given |= {"cold_start": {"median_s": 90, "spread": 0}}
    return ContinuousServer.model_validate({**given, **changes})


def a_dynamic_server(**changes: Any) -> DynamicServer:
    """ResNet-50 on an A100, measured; a cold start of 90 s."""
    given: dict[str, Any] = {"kind": "dynamic", "model": "m", "gpu": "g", "source": "a test", "batch_max": 128}
    given |= {"batch_ms": RESNET50_A100_MS, "cold_start": {"median_s": 90, "spread": 0}}
    return DynamicServer.model_validate({**given, **changes})


def requests_at(
    arrival_s: Sequence[float] | npt.NDArray[np.float64], prompt: Any = 100, output: Any = 50, duration_s: float = 600.0
) -> Requests:
    """Requests at these times; the lengths are numbers or arrays."""
    times_s = np.asarray(arrival_s, dtype=np.float64)
    return Requests(
        arrival_s=times_s,
        prompt_tokens=np.broadcast_to(np.asarray(prompt, dtype=np.int32), times_s.shape),
        output_tokens=np.broadcast_to(np.asarray(output, dtype=np.int32), times_s.shape),
        duration_s=duration_s,
        name="a test's",
    )


def poisson(rate_per_s: float, number: int, seed: int = 1) -> npt.NDArray[np.float64]:
    """That many arrivals."""
    return np.random.default_rng(seed).exponential(1.0 / rate_per_s, number).cumsum()


def in_state(fleet: Fleet, state: PodState) -> list[PodNow]:
    """The fleet's pods that are in it."""
    return [pod for pod in fleet.pods if pod.state is state]
