"""The same metrics in, the same replicas out: 200 syncs of the real controller, at one second, next to the lab's rule.

Windows and periods are divided by 15, as the sync period is. Not collected by its name: `make test-hpa` asks for it.
"""

from __future__ import annotations

import copy
import json
import math
import random
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bandkeeper.lab.rules.hpa import Behavior, Controller, Direction, RatePolicy, from_pods, from_total
from tests.cluster import ControlPlane, eventually
from tests.cluster.loopback import fetch
from tests.hpa.metrics_api import MetricsAPI

pytestmark = pytest.mark.cluster

STEPS = 200
TARGET = 12.0
MOST = 24
NAMESPACE = "hpa"
STEP_S = 1.5  # answers are paced to this, so that no window or period ends near a sync, whatever else the machine does
CLOCK_S = 0.15  # between the controller's reading of the clock and ours, at most
DEFAULTS = Behavior(
    up=Direction(window_s=0.0, policies=(RatePolicy(100, True, 1.0), RatePolicy(4, False, 1.0))),
    down=Direction(window_s=20.0, policies=(RatePolicy(100, True, 1.0),)),
)
SLOW = Behavior(
    up=Direction(window_s=2.0, policies=(RatePolicy(50, True, 4.0), RatePolicy(2, False, 4.0))),
    down=Direction(window_s=8.0, policies=(RatePolicy(20, True, 4.0), RatePolicy(1, False, 4.0))),
)


@dataclass(frozen=True, slots=True)
class Step:
    """What the controller saw at one sync; `replicas` are those of the spec, `existing` those of the status."""

    at_s: float
    replicas: int
    existing: int
    values: Mapping[str, float] | None = None
    total: float | None = None
    missing: frozenset[str] = frozenset()
    unready: frozenset[str] = frozenset()

    def proposal(self) -> int | None:
        if self.total is not None:
            return from_total(self.total, TARGET, self.existing)
        assert self.values is not None
        return from_pods(self.values, TARGET, self.replicas, missing=self.missing, unready=self.unready)


@dataclass(slots=True)
class Case:
    """One Deployment with an HPA, its load, and what was seen."""

    name: str
    behavior: Behavior
    external: bool = False
    gpus: int = 0
    seed: int = 1
    silent_share: float = 0.0
    steps: list[Step] = field(default_factory=list)
    random: random.Random = field(init=False)
    phase: float = 0.0
    jump: float = 1.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def next_load(self) -> float:
        """Requests in the fleet: waves of 40 to 60 syncs with noise, and sometimes a jump that lasts."""
        self.phase += 2 * math.pi / self.random.uniform(40.0, 60.0)
        if self.random.random() < 0.03:
            self.jump = self.random.choice((0.3, 1.0, 1.0, 2.0))
        wave = 130.0 + 120.0 * math.sin(self.phase)
        return min(280.0, self.jump * wave) * self.random.uniform(0.93, 1.07)

    def next_values(self, pods: list[str]) -> dict[str, float]:
        """The load over the pods that run, unevenly; some say nothing, and sometimes none does."""
        load = self.next_load()
        if self.random.random() < 0.02:
            return {}
        return {
            pod: load / len(pods) * self.random.uniform(0.8, 1.2)
            for pod in pods
            if self.random.random() >= self.silent_share
        }


CASES = (
    Case("running", DEFAULTS, seed=11),
    Case("silent", DEFAULTS, seed=12, silent_share=0.15),
    Case("waiting", DEFAULTS, seed=13, external=True),
    Case("scarce", DEFAULTS, seed=14, gpus=1),
    Case("slow", SLOW, seed=15),
)


class Watch:
    """Looks at the cluster at the very moment at which the controller asks for a metric, and answers it."""

    def __init__(self, control_plane: ControlPlane) -> None:
        pki = control_plane.run_dir / "pki"
        self._url = control_plane.url
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._cases = {case.name: case for case in CASES}
        self._lock = threading.Lock()

    def pods(self, metric: str) -> Mapping[str, float]:
        case, scale = self._paced(metric)
        found = self._get(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3D{metric}")["items"]
        living = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        phases = {pod["metadata"]["name"]: pod["status"].get("phase", "Pending") for pod in living}
        ready = sorted(pod["metadata"]["name"] for pod in living if _is_ready(pod))
        values = case.next_values(ready)
        running = {name for name, phase in phases.items() if phase == "Running"}
        self._note(
            case, scale, values=values, missing=frozenset(running - values.keys()), unready=frozenset(phases) - running
        )
        return values

    def total(self, metric: str) -> float:
        case, scale = self._paced(metric)
        total = round(case.next_load(), 3)
        self._note(case, scale, total=total)
        return total

    def _paced(self, metric: str) -> tuple[Case, dict[str, Any]]:
        """The case, and its scale as the controller has just read it."""
        case = self._cases[metric]
        scale = self._get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{case.name}/scale")
        if case.steps:
            time.sleep(max(0.0, case.steps[-1].at_s + STEP_S - time.monotonic()))
        return case, scale

    def _note(self, case: Case, scale: dict[str, Any], **seen: Any) -> None:
        with self._lock:
            case.steps.append(
                Step(time.monotonic(), scale["spec"].get("replicas", 0), scale["status"]["replicas"], **seen)
            )

    def _get(self, path: str) -> dict[str, Any]:
        status, body = fetch(self._url + path, context=self._tls)
        assert status == 200, body
        document: dict[str, Any] = json.loads(body)
        return document


@pytest.fixture(scope="module")
def cases() -> Iterator[dict[str, Case]]:
    """All cases at once, each with at least one sync more than is compared."""
    with ControlPlane.start(
        nodes=2, gpus_per_node=8, controller_manager_args=["--horizontal-pod-autoscaler-sync-period=1s"]
    ) as control_plane:
        watch = Watch(control_plane)
        with MetricsAPI(control_plane.run_dir / "metrics", pods=watch.pods, total=watch.total) as api:
            api.register(control_plane)
            control_plane.create_namespace(NAMESPACE)
            control_plane.kubectl("apply", "-f", "-", input=[_deployment(case) for case in CASES])
            control_plane.kubectl("apply", "-f", "-", input=[_hpa(case) for case in CASES])
            eventually(
                lambda: all(len(case.steps) > STEPS for case in CASES),
                timeout_s=STEPS * 2.0 + 60.0,
                every_s=1.0,
                what=f"{STEPS} syncs of each HPA",
            )
            yield {case.name: case for case in CASES}


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_same_metrics_in_same_replicas_out(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    controller = Controller(most=MOST, behavior=case.behavior)
    wrong, unsure, moves = [], 0, 0
    before = case.steps[0]
    for step, after in zip(case.steps[:STEPS], case.steps[1 : STEPS + 1], strict=True):
        # The controller reads the status and the clock a moment before or after us.
        proposal, older = step.proposal(), replace(step, existing=before.existing).proposal()
        moves += after.replicas != step.replicas
        tried = []
        for wanted, late_s in [(proposal, 0.0), (proposal, -CLOCK_S), (proposal, CLOCK_S), (older, 0.0)]:
            candidate = copy.deepcopy(controller)
            tried.append((candidate.step(wanted, step.replicas, step.at_s + late_s), candidate))
        agreeing = [candidate for replicas, candidate in tried if replicas == after.replicas]
        unsure += tried[0][0] != after.replicas
        if not agreeing:
            wrong.append((step, proposal, tried[0][0], after.replicas))
        controller = (agreeing or [tried[0][1]])[0]
        before = step

    assert not wrong, f"{len(wrong)} of {STEPS} steps differ; the first: {wrong[0]}"
    assert moves >= 20, "the load must make the controller move"
    assert unsure <= 0.02 * STEPS, "the clocks differ too often for the comparison to mean anything"


@pytest.mark.parametrize(("name", "attribute"), [("running", "missing"), ("silent", "missing"), ("scarce", "unready")])
def test_the_cases_show_what_they_are_for(cases: dict[str, Case], name: str, attribute: str) -> None:
    assert sum(bool(getattr(step, attribute)) for step in cases[name].steps) >= 10


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _deployment(case: Case) -> dict[str, Any]:
    labels = {"app": case.name}
    gpus = {"resources": {"limits": {"nvidia.com/gpu": str(case.gpus)}}} if case.gpus else {}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": case.name, "namespace": NAMESPACE},
        "spec": {
            "replicas": 4,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {"bandkeeper.dev/load-time": "4s"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "server", "image": "server:1", **gpus}],
                },
            },
        },
    }


def _hpa(case: Case) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": f"{TARGET:g}"}
    metric: dict[str, Any] = {"metric": {"name": case.name}, "target": target}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": case.name, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": case.name},
            "minReplicas": 1,
            "maxReplicas": MOST,
            "metrics": [
                {"type": "External", "external": metric} if case.external else {"type": "Pods", "pods": metric}
            ],
            "behavior": {"scaleUp": _rules(case.behavior.up), "scaleDown": _rules(case.behavior.down)},
        },
    }


def _rules(direction: Direction) -> dict[str, Any]:
    return {
        "stabilizationWindowSeconds": math.floor(direction.window_s),
        "selectPolicy": "Max",
        "policies": [
            {
                "type": "Percent" if one.percent else "Pods",
                "value": one.value,
                "periodSeconds": math.floor(one.period_s),
            }
            for one in direction.policies
        ],
    }
