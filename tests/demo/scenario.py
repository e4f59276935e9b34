"""What the demo plays: three Deployments of equal servers, one policy each, one load for all.

All pods start with the same batch cap, and each fleet with what its band asks for before the load begins; what becomes
of both is up to the policies. The fleets are of some 20 to 40 replicas, because with few replicas most loads have no
whole number of them inside a narrow band, and because the noise of a few hundred requests is wider than the band.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bandkeeper.api.v1alpha1 import Objective, Spec
from bandkeeper.api.validation import validate
from bandkeeper.decide.policy import Batching, CostClass, Policy, resolve
from bandkeeper.lab.server import ContinuousServer

NAMESPACE = "serving"
LOAD_S = 240
INTERVAL_S = 5
WARM_UP_S = 8
COLD_START_S = 5
SCALE_DOWN_WINDOW_S = 10
SLO_WINDOW_S = 15
GPUS_PER_POD = 1
GPUS_PER_NODE = 8
NODES = 16
CAPACITY = 64
FIRST_CAP = 48
# Seconds since the start, requests per second.
LOAD: dict[str, Any] = {
    "kind": "linear",
    "seed": 7,
    "points": [[0, 240], [40, 285], [95, 285], [135, 330], [185, 330], [220, 290], [LOAD_S, 290]],
}
BASE_LOAD = {"kind": "constant", "seed": 1, "rate_per_s": LOAD["points"][0][1]}
# Steps as measured on an H200 with Llama-3.1-70B fp8 (aiconfigurator's silicon_sample.csv, Apache-2.0: 19.54 + .199 b,
# R2 1.000). Prefill and memory are ours. The cap acts after 3 s here; a mounted file would take a minute or more.
SERVER: dict[str, Any] = {
    "alpha_ms": 19.54,
    "beta_ms": 0.199,
    "gamma_ms": 1.5,
    "delta_ms_per_token": 0.01,
    "kv_tokens": 400_000,
    "capacity": CAPACITY,
    "max_queue": 32,
    "cap_delay_s": 3,
}
TOKENS: dict[str, Any] = {
    "prompt": {"kind": "fixed", "value": 64},
    "output": {"kind": "lognormal", "median": 120, "sigma": 0.2, "min": 16, "max": 300},
}
# Prometheus interpolates inside a bucket: the edges are narrow where latencies and promises are.
BUCKETS = {
    "ttft_s": [0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10],
    "itl_s": [0.01, 0.02, *(edge / 1000 for edge in range(22, 45)), 0.05, 0.06, 0.07, 0.08, 0.1, 0.2, 0.5],
}


def sustainable_per_s(cap: int) -> float:
    """Requests per second that one replica can do at a batch cap."""
    output = TOKENS["output"]
    mean_output = output["median"] * math.exp(output["sigma"] ** 2 / 2)
    known = {name: SERVER[name] for name in ("alpha_ms", "beta_ms", "gamma_ms", "delta_ms_per_token", "kv_tokens")}
    server = ContinuousServer(model="emulated", gpu="emulated", source="this demo", batch_max=cap, **known)
    return server.sustainable_per_s(TOKENS["prompt"]["value"], mean_output)


@dataclass(frozen=True, slots=True)
class Member:
    """One Deployment with its policy. `caps` are the batch caps that its owner allows; it begins with `replicas` and
    never goes below.
    """

    name: str
    objective: Objective
    ttft: str
    itl: str
    caps: tuple[int, ...]
    replicas: int

    @property
    def document(self) -> dict[str, Any]:
        """The policy as one would write it; windows are short so that a few minutes show everything."""
        window = {"percentile": 95, "window": f"{SLO_WINDOW_S}s"}
        return {
            "apiVersion": "bandkeeper.dev/v1alpha1",
            "kind": "GPUScalingPolicy",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name},
                "objective": self.objective.value,
                "runtime": "VLLM",
                "slos": [
                    {"signal": "TimeToFirstToken", "threshold": self.ttft, **window},
                    {"signal": "InterTokenLatency", "threshold": self.itl, **window},
                ],
                "replicas": {"min": self.replicas, "max": 48},
                "batch": {
                    "min": self.caps[0],
                    "max": self.caps[-1],
                    "candidates": list(self.caps),
                    "adapter": {"type": "Annotation"},
                },
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": SCALE_DOWN_WINDOW_S}},
            },
        }

    @property
    def policy(self) -> Policy:
        """The policy with its defaults resolved, as the operator does it."""
        spec = validate(self.document)
        if not isinstance(spec, Spec):
            raise ValueError(f"the demo's policy {self.name} is wrong: {'; '.join(map(str, spec))}")
        return resolve(spec, batching=Batching.CONTINUOUS, default_capacity=CAPACITY, cost_class=CostClass.EVENTUAL)

    @property
    def server(self) -> dict[str, Any]:
        """The emulated workload, but for its name the same for every member."""
        return {
            "name": self.name,
            "namespace": NAMESPACE,
            "kind": "continuous",
            "selector": {"app": self.name},
            "server": SERVER,
            "tokens": TOKENS,
            "buckets": BUCKETS,
            "load": BASE_LOAD,
        }


MEMBERS = (
    Member(
        name="chat-latency",
        objective=Objective.LATENCY_SENSITIVE,
        ttft="1s",
        itl="30ms",
        caps=(16, 24, 32, 40, 48),
        replicas=28,
    ),
    Member(
        name="chat-balanced",
        objective=Objective.BALANCED,
        ttft="2s",
        itl="40ms",
        caps=(32, 40, 48, 56),
        replicas=24,
    ),
    Member(
        name="chat-throughput",
        objective=Objective.THROUGHPUT_SENSITIVE,
        ttft="5s",
        itl="50ms",
        caps=(32, 48, 64),
        replicas=20,
    ),
)

EMULATOR: dict[str, Any] = {"workloads": [member.server for member in MEMBERS], "dcgm": {"period_s": 5}}
PODS: dict[str, Any] = {
    "annotations": {
        "bandkeeper.dev/load-time": f"{COLD_START_S}s",
        "bandkeeper.dev/drain-time": "2s",
        "bandkeeper.dev/batch-cap": str(FIRST_CAP),
    },
    "args": ["--max-num-seqs", str(CAPACITY)],
    "gpus": GPUS_PER_POD,
}
SETTINGS: dict[str, Any] = {"period": "1s", "restartHold": "20s", "prometheus": {"rateWindow": "10s"}}

RATES = [rate for _, rate in LOAD["points"]]
SETTING = (
    f"Three Deployments of equal emulated servers get the same requests: {RATES[0]} a second before the load begins, "
    f"{RATES[1]} soon, {max(RATES)} in the middle, {RATES[-1]} at the end, in {LOAD_S} s. Every pod boots with a "
    f"batch cap of {FIRST_CAP}, of the {CAPACITY} that it could take, and is ready {COLD_START_S} s after it is "
    f"scheduled. One operator decides every second; scale-down windows are {SCALE_DOWN_WINDOW_S} s, where the defaults "
    "are minutes."
)
