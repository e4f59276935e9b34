"""Batch cap as a key of a Ray Serve deployment's `user_config`, which `reconfigure()` takes over without a restart.

It is written to the Ray dashboard's REST API, or into `spec.serveConfigV2` of a KubeRay RayService, whose operator
hands it on. Either way the dashboard is asked for the cap in force. A Ray cluster that many pods make up has one
dashboard, at a Service; without a Service each pod is a cluster of its own and is asked itself.

Ray takes a whole config or none, and has no way to say "only if unchanged": what somebody deploys in the milliseconds
between our reading and our writing is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bandkeeper.actuate.adapter import AdapterError, AddressOf, Means, Workload, at_port
from bandkeeper.actuate.field import CapField, Edit, write_field
from bandkeeper.actuate.outcome import OUT_OF_TIME, CapReading, CapResult, Deadline, Outcome
from bandkeeper.actuate.ray_dashboard import DashboardError, RayDashboard
from bandkeeper.actuate.rights import Right
from bandkeeper.actuate.serve_config import CapPlace, cap_in, cap_in_text, deployed_config, text_with_cap, with_cap
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource

DASHBOARD_PORT = 8265
AT_ONCE = 8
TAKEN_OVER_S = 5.0  # seen: 0.25 s until every replica has a new user_config
LOOK_EVERY_S = 0.1
REFUSED_S = 3600.0  # so long a cap that broke the application is not tried again
RAY_SERVICES = "/apis/ray.io/v1"
RUNNING, DEPLOY_FAILED = "RUNNING", "DEPLOY_FAILED"
BUSY = ("NOT_STARTED", "DEPLOYING", "DELETING")
UNSETTLED = ("UPDATING", "UNHEALTHY", DEPLOY_FAILED)

Details = Mapping[str, Any]
_End = tuple[Outcome, str]


class RayServe:
    """Writes one key of one deployment's `user_config`, and asks Ray Serve for the one in force."""

    cost_class = CostClass.LIVE
    reads_back = True

    def __init__(
        self,
        client: KubeClient,
        place: CapPlace,
        *,
        dashboard: str | None = None,
        ray_service: str | None = None,
        address_of: AddressOf | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`dashboard` is host:port of the one that all pods share; without it each pod has its own at `address_of`."""
        self._client = client
        self._clock = clock
        self._dashboard = dashboard
        self._address_of = address_of or at_port(DASHBOARD_PORT)
        self._rest = RayDashboard()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._refused: dict[int, tuple[str, float]] = {}
        self.place = place
        self.ray_service = ray_service
        # KubeRay looks every 2 s; until the new cap is read back takes up to one round of reading more.
        self.expected_delay_s = 40.0 if ray_service else 5.0

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> RayServe:
        """The adapter that a policy asks for."""
        settings = spec.ray_serve
        if settings is None:
            raise AdapterError("adapter type RayServe needs rayServe with application and deployment")
        service = settings.service or (f"{settings.ray_service}-head-svc" if settings.ray_service else None)
        return cls(
            means.client,
            CapPlace(application=settings.application, deployment=settings.deployment, key=settings.key),
            dashboard=f"{service}.{means.namespace}.svc:{settings.port}" if service else None,
            ray_service=settings.ray_service,
            address_of=means.address_of or at_port(settings.port),
            clock=means.clock,
        )

    def right(self, resource: Resource) -> Right | None:
        """Patching the RayService; nothing of the API server where the dashboard itself is written."""
        return _patch_right(self.ray_service) if self.ray_service else None

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when every ready pod said that it runs with the cap."""
        return all(pod.cap == cap for pod in _ready(workload))

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Write `cap` where it differs, and wait for a moment until it is taken over.

        A cap with which the application does not come up again is taken back, and not tried again for an hour.
        """
        if self.settled(workload, cap):
            return CapResult(outcome=Outcome.UNCHANGED)
        left = Deadline(deadline, self._clock)
        if self.ray_service:
            return await self._patch(workload, self.ray_service, cap, left)
        why, until_s = self._refused.get(cap, ("", 0.0))
        if self._clock() < until_s:
            return CapResult(outcome=Outcome.REFUSED, message=why)
        pods = self._by_address(workload, but=cap)
        ends = await asyncio.gather(*(self._set(address, cap, left) for address in pods))
        outcomes = [outcome for outcome, _ in ends]
        failed = {
            pod.name: message
            for (address, (_, message)) in zip(pods, ends, strict=True)
            for pod in pods[address]
            if message
        }
        return CapResult(
            outcome=_overall(outcomes),
            message=next(iter(failed.values()), ""),
            written=outcomes.count(Outcome.WRITTEN),
            failed=failed,
        )

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """Ask Ray Serve for the cap in force: the user_config of the deployment, while its application runs."""
        left = Deadline(deadline, self._clock)
        pods = self._by_address(workload)
        ends = await asyncio.gather(*(self._read(address, left) for address in pods))
        caps: dict[str, int] = {}
        failed: dict[str, str] = {}
        for address, end in zip(pods, ends, strict=True):
            for pod in pods[address]:
                if isinstance(end, int):
                    caps[pod.name] = end
                else:
                    failed[pod.name] = end
        return CapReading(caps=caps, failed=failed)

    async def close(self) -> None:
        """End the connections to dashboards."""
        await self._rest.close()

    def _by_address(self, workload: Workload, but: int | None = None) -> dict[str, Sequence[Pod]]:
        """The ready pods by the dashboard that speaks for them; with `but`, only where one has another cap."""
        pods: dict[str, list[Pod]] = {}
        for pod in _ready(workload):
            pods.setdefault(self._dashboard or self._address_of(pod), []).append(pod)
        return {address: each for address, each in pods.items() if but is None or any(pod.cap != but for pod in each)}

    async def _read(self, address: str, left: Deadline) -> int | str:
        try:
            async with self._slots:
                details = await self._rest.get(address, left.timeout_s())
            if waits := self._unsettled(details):
                return f"{waits}; it will be asked again"
            return self._in_force(details)
        except (DashboardError, AdapterError) as error:
            return str(error)

    async def _set(self, address: str, cap: int, left: Deadline) -> _End:
        try:
            async with self._slots:
                return await self._write(address, cap, left)
        except AdapterError as error:
            return Outcome.REFUSED, str(error)
        except DashboardError as error:
            return (Outcome.REFUSED if error.refused else Outcome.FAILED), str(error)

    async def _write(self, address: str, cap: int, left: Deadline) -> _End:
        details = await self._rest.get(address, left.timeout_s())
        before = deployed_config(details)
        after = with_cap(before, self.place, cap)
        application = self._application(details)
        status = application.get("status")
        if cap_in(before, self.place) == cap:
            broken = status == DEPLOY_FAILED
            return (Outcome.FAILED, self._complaint(application)) if broken else (Outcome.UNCHANGED, "")
        if status in BUSY:
            return Outcome.FAILED, f"application {self.place.application} is {status}; it will be tried again"
        if not left.timeout_s():
            return Outcome.FAILED, OUT_OF_TIME
        await self._rest.put(address, after, left.timeout_s())
        problem = await self._taken_over(address, cap, left)
        if not problem:
            return Outcome.WRITTEN, ""
        await self._rest.put(address, before, left.timeout_s())
        why = f"batch cap {cap} was taken back: {problem}"
        self._refused[cap] = why, self._clock() + REFUSED_S
        return Outcome.REFUSED, why

    async def _taken_over(self, address: str, cap: int, left: Deadline) -> str:
        """Wait until the application runs with the cap, for a moment; what Ray says where it cannot, else ""."""
        until_s = self._clock() + TAKEN_OVER_S
        while self._clock() < until_s and await left.pause(LOOK_EVERY_S):
            details = await self._rest.get(address, left.timeout_s())
            application = self._application(details)
            if application.get("status") == DEPLOY_FAILED:
                return self._complaint(application)
            if not self._unsettled(details) and self._in_force(details) == cap:
                break
        return ""

    def _application(self, details: Details) -> Details:
        applications = details.get("applications")
        found = applications.get(self.place.application) if isinstance(applications, dict) else None
        if not isinstance(found, dict):
            names = ", ".join(applications) if isinstance(applications, dict) else ""
            there = f"write one of: {names}" if names else "it runs none"
            raise AdapterError(f"Ray Serve runs no application {self.place.application}; {there}")
        return found

    def _deployment(self, application: Details) -> Details:
        found = (application.get("deployments") or {}).get(self.place.deployment)
        return found if isinstance(found, dict) else {}

    def _unsettled(self, details: Details) -> str:
        """Why the config cannot be taken for what is in force; "" where it can."""
        application = self._application(details)
        if application.get("status") != RUNNING:
            return self._complaint(application)
        if self._deployment(application).get("status") in UNSETTLED:
            return self._complaint(application)
        return ""

    def _complaint(self, application: Details) -> str:
        deployment = self._deployment(application)
        said = " ".join(str(deployment.get("message") or application.get("message") or "it says no more").split())
        state = f"application {self.place.application} is {application.get('status')}"
        return f"{state}, deployment {self.place.deployment} is {deployment.get('status', 'not there')}: {said[:300]}"

    def _in_force(self, details: Details) -> int:
        deployment = self._deployment(self._application(details))
        config = {"name": self.place.deployment, **(deployment.get("deployment_config") or {})}
        return cap_in({"applications": [{"name": self.place.application, "deployments": [config]}]}, self.place)

    async def _patch(self, workload: Workload, name: str, cap: int, left: Deadline) -> CapResult:
        keys = ("spec", "serveConfigV2")
        field = CapField(
            path=f"{RAY_SERVICES}/namespaces/{workload.namespace}/rayservices/{name}",
            label=f"RayService {name}",
            what="spec.serveConfigV2",
            keys=keys,
        )

        def wanted(manifest: Mapping[str, Any]) -> Edit | None:
            text = manifest["spec"].get("serveConfigV2") or ""
            before = cap_in_text(text, self.place)
            if before == cap:
                return None
            at = "/" + "/".join(keys)
            changed = text_with_cap(text, self.place, cap)
            return Edit(
                before, [{"op": "test", "path": at, "value": text}, {"op": "replace", "path": at, "value": changed}]
            )

        return await write_field(self._client, field, wanted, workload=workload, right=_patch_right(name), left=left)


def _patch_right(name: str) -> Right:
    remedy = "set the chart value adapters.rayServe.enabled=true (and its namespaces), or leave out rayServe.rayService"
    return Right(verb="patch", group="ray.io", resource="rayservices", remedy=remedy, name=name)


def _ready(workload: Workload) -> list[Pod]:
    return [pod for pod in workload.pods if pod.state is PodState.READY]


def _overall(outcomes: Sequence[Outcome]) -> Outcome:
    for worst in (Outcome.REFUSED, Outcome.FAILED):
        if worst in outcomes:
            return Outcome.PARTIAL if Outcome.WRITTEN in outcomes else worst
    return Outcome.WRITTEN if Outcome.WRITTEN in outcomes else Outcome.UNCHANGED
