"""What the demo plays: three Deployments of equal servers, one policy each, one load for all.

The fleets are of some 17 to 35 replicas, because with few replicas most loads have no whole number of them inside a
narrow band, and because the noise of a few hundred requests is wider than the band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bandkeeper.api.v1alpha1 import Objective, Spec
from bandkeeper.api.validation import validate
from bandkeeper.decide.policy import Batching, CostClass, Policy, resolve

NAMESPACE = "serving"
LOAD_S = 250
INTERVAL_S = 5
WARM_UP_S = 8
COLD_START_S = 5
SCALE_DOWN_WINDOW_S = 10
SLO_WINDOW_S = 10
GPUS_PER_POD = 1
GPUS_PER_NODE = 8
NODES = 14
CAPACITY = 64
# Seconds since the start, requests per second.
LOAD: dict[str, Any] = {
    "kind": "linear",
    "seed": 7,
    "points": [[0, 216], [45, 216], [50, 283], [150, 283], [155, 216], [LOAD_S, 216]],
}
BASE_LOAD = {"kind": "constant", "seed": 1, "rate_per_s": LOAD["points"][0][1]}
# Steps as measured on a B200 with Llama-3.1-70B fp4 (aiconfigurator's silicon_sample.csv, Apache-2.0: 11.80 + .0791 b,
# R2 1.000). Prefill and memory are ours. The cap acts after 3 s here; a mounted file would take a minute or more.
SERVER = {
    "alpha_ms": 11.8,
    "beta_ms": 0.0791,
    "gamma_ms": 5.0,
    "delta_ms_per_token": 0.07,
    "kv_tokens": 400_000,
    "capacity": CAPACITY,
    "max_queue": 32,
    "cap_delay_s": 3,
}
TOKENS = {
    "prompt": {"kind": "fixed", "value": 64},
    "output": {"kind": "lognormal", "median": 240, "sigma": 0.2, "min": 16, "max": 600},
}
# Prometheus interpolates inside a bucket: the edges are narrow where latencies and promises are.
BUCKETS = {
    "ttft_s": [0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10],
    "itl_s": [0.005, 0.01, *(edge / 1000 for edge in range(12, 42, 2)), 0.05, 0.06, 0.08, 0.1, 0.2, 0.5],
}


@dataclass(frozen=True, slots=True)
class Member:
    """One Deployment with its policy. `most` is the batch cap that its owner allows, `replicas` what it starts with."""

    name: str
    objective: Objective
    ttft: str
    itl: str
    most: int
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
                "replicas": {"min": 1, "max": 40},
                "batch": {"min": 16, "max": self.most, "adapter": {"type": "Annotation"}},
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
    Member("chat-latency", Objective.LATENCY_SENSITIVE, ttft="300ms", itl="30ms", most=48, replicas=25),
    Member("chat-balanced", Objective.BALANCED, ttft="500ms", itl="40ms", most=56, replicas=21),
    Member("chat-throughput", Objective.THROUGHPUT_SENSITIVE, ttft="5s", itl="60ms", most=64, replicas=17),
)

EMULATOR: dict[str, Any] = {"workloads": [member.server for member in MEMBERS], "dcgm": {"period_s": 5}}
PODS: dict[str, Any] = {
    "annotations": {"bandkeeper.dev/load-time": f"{COLD_START_S}s", "bandkeeper.dev/drain-time": "2s"},
    "args": ["--max-num-seqs", str(CAPACITY)],
    "gpus": GPUS_PER_POD,
}
SETTINGS: dict[str, Any] = {"period": "1s", "restartHold": "20s", "prometheus": {"rateWindow": "10s"}}

BASE, PEAK = LOAD["points"][0][1], max(rate for _, rate in LOAD["points"])
SETTING = (
    f"Three Deployments of equal emulated servers (batch capacity {CAPACITY}) get the same requests, {BASE} a second, "
    f"rising to {PEAK} and falling back within {LOAD_S} s. A pod is ready {COLD_START_S} s after it is scheduled. One "
    f"operator decides every second; scale-down windows are {SCALE_DOWN_WINDOW_S} s, where the defaults are minutes."
)
