"""What the demo plays: three equal Deployments, one policy each, one load for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bandkeeper.api.v1alpha1 import Objective, Spec
from bandkeeper.api.validation import validate
from bandkeeper.decide.policy import Batching, CostClass, Policy, resolve

NAMESPACE = "serving"
NODES = 5
LOAD_S = 240
INTERVAL_S = 5
COLD_START_S = 5
SCALE_DOWN_S = 15
SLO_WINDOW_S = 15
GPUS_PER_POD = 1
CAPACITY = 96
START_REPLICAS = 2
REPLICAS = {"min": 1, "max": 20}
BATCH = {"min": 32, "max": CAPACITY, "adapter": {"type": "Annotation"}}
# Seconds since the start, requests per second: a quiet start, a rise to four times as much, a plateau, and back.
LOAD: dict[str, Any] = {
    "kind": "linear",
    "seed": 7,
    "points": [[0, 50], [30, 50], [80, 200], [140, 200], [180, 60], [LOAD_S, 60]],
}
PROMPT = {"kind": "fixed", "value": 64}
OUTPUT = {"kind": "lognormal", "median": 240, "sigma": 0.2, "min": 16, "max": 600}
SERVER = {
    "alpha_ms": 11.8,
    "beta_ms": 0.0791,
    "gamma_ms": 5.0,
    "delta_ms_per_token": 0.07,
    "kv_tokens": 400_000,
    "capacity": CAPACITY,
    "cap_delay_s": 3,
    "max_queue": 100,
}
# Prometheus interpolates inside a bucket: the edges are narrow where the promises are.
BUCKETS = {
    "ttft_s": [0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20],
    "itl_s": [0.005, 0.0075, *(edge / 1000 for edge in range(10, 52, 2)), 0.06, 0.08, 0.1, 0.2, 0.5, 1],
}


@dataclass(frozen=True, slots=True)
class Member:
    """One Deployment with its policy."""

    name: str
    objective: Objective
    ttft: str
    itl: str

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
                "replicas": REPLICAS,
                "batch": BATCH,
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": SCALE_DOWN_S}},
            },
        }

    @property
    def policy(self) -> Policy:
        """The policy with its defaults resolved, as the operator does it."""
        spec = validate(self.document)
        if not isinstance(spec, Spec):
            raise ValueError(f"the demo's policy {self.name} is wrong: {'; '.join(map(str, spec))}")
        return resolve(
            spec,
            batching=Batching.CONTINUOUS,
            default_capacity=CAPACITY,
            cost_class=CostClass.EVENTUAL,
            expected_delay_s=3,
        )

    @property
    def server(self) -> dict[str, Any]:
        """The emulated workload, but for its name the same for every member."""
        return {
            "name": self.name,
            "namespace": NAMESPACE,
            "kind": "continuous",
            "selector": {"app": self.name},
            "server": SERVER,
            "tokens": {
                "prompt": PROMPT,
                "output": OUTPUT,
            },
            "buckets": BUCKETS,
            "load": {"kind": "constant", "rate_per_s": 0},
        }


MEMBERS = (
    Member("chat-latency", Objective.LATENCY_SENSITIVE, ttft="300ms", itl="30ms"),
    Member("chat-balanced", Objective.BALANCED, ttft="500ms", itl="40ms"),
    Member("chat-throughput", Objective.THROUGHPUT_SENSITIVE, ttft="2s", itl="50ms"),
)

EMULATOR: dict[str, Any] = {"workloads": [member.server for member in MEMBERS], "dcgm": {"period_s": 5}}
PODS: dict[str, Any] = {
    "annotations": {"bandkeeper.dev/load-time": f"{COLD_START_S}s", "bandkeeper.dev/drain-time": "2s"},
    "args": ["--max-num-seqs", str(CAPACITY)],
    "gpus": GPUS_PER_POD,
}
SETTINGS: dict[str, Any] = {
    "period": "1s",
    "restartHold": "20s",
    "prometheus": {"rateWindow": "10s"},
}

PEAK = max(rate for _, rate in LOAD["points"])
SETTING = (
    f"{len(MEMBERS)} Deployments of equal emulated servers (8B model on one H100, capacity {CAPACITY}) get the same "
    f"requests, rising from {LOAD['points'][0][1]} to {PEAK} a second and back within "
    f"{LOAD_S} s. "
    f"A pod is ready {COLD_START_S} s after it is scheduled. One operator, period 1 s, scale-down windows of 15 s."
)
