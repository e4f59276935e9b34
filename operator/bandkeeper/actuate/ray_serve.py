"""Batch cap as a key of a Ray Serve deployment's `user_config`, which `reconfigure()` takes over without a restart.

It is written to the Ray dashboard's REST API, or into `spec.serveConfigV2` of a KubeRay RayService, whose operator
hands it on. Either way the dashboard is asked for the cap in force. A Ray cluster that many pods make up has one
dashboard, at a Service; without a Service each pod is a cluster of its own and is asked itself.

Ray takes a whole config or none, and has no way to say "only if unchanged": what somebody deploys in the milliseconds
between our reading and our writing is lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bandkeeper.actuate.adapter import Means, Workload, cap_for
from bandkeeper.actuate.errors import AdapterError, PodError
from bandkeeper.actuate.field import CapField, Edit, write_field
from bandkeeper.actuate.outcome import CapReading, CapResult, Deadline, Outcome
from bandkeeper.actuate.pod_http import Answer, PodDoor, PodSession, each, result_of
from bandkeeper.actuate.rights import Right
from bandkeeper.actuate.serve_config import CapPlace, cap_in, cap_in_text, deployed_config, few, text_with_cap, with_cap
from bandkeeper.actuate.service_address import server_behind
from bandkeeper.api.snapshot import Pod, PodState
from bandkeeper.api.v1alpha1 import Adapter
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource

PATH = "/api/serve/applications/"
RAY_SERVICES = "/apis/ray.io/v1"
ANSWER_MOST_BYTES = 2 * 1024 * 1024  # some thousand replicas, of which each is told about
TAKEN_OVER_S = 5.0  # seen: 0.25 s until every replica has a new user_config
LOOK_EVERY_S = 0.1
SLOW_START = "taken more than"  # in Ray's message about replicas that are merely slow
REFUSED_S = 3600.0  # so long a cap that broke the application is not tried again
RUNNING, DEPLOY_FAILED = "RUNNING", "DEPLOY_FAILED"
BUSY = ("NOT_STARTED", "DEPLOYING", "DELETING")  # of an application: somebody's config is not in force yet
UNSETTLED = ("UPDATING", "UNHEALTHY", DEPLOY_FAILED)  # of a deployment

Details = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Trial:
    """A cap that was put and that the application was not seen running with yet, and the one to go back to."""

    cap: int
    before: int


class RayServe:
    """Writes one key of one deployment's `user_config`, and asks Ray Serve for the one in force."""

    cost_class = CostClass.LIVE
    expected_delay_s = 5.0
    reads_back = True

    def __init__(
        self,
        client: KubeClient,
        place: CapPlace,
        door: PodDoor,
        *,
        ray_service: str | None = None,
        service: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`door` leads to the dashboard that speaks for a pod, or to the one behind `service`, which all share."""
        self._client = client
        self._door = door
        self._clock = clock
        self._refused: dict[int, tuple[str, float]] = {}
        self._trials: dict[str, _Trial] = {}  # by who speaks for the cluster
        self.place = place
        self.ray_service = ray_service
        self._service_right = _service_right(service) if service else None
        if ray_service:  # KubeRay looks every 2 s, and the next round of reading tells what came of it
            self.expected_delay_s = 40.0

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> RayServe:
        """The adapter that a policy asks for."""
        settings, access = spec.ray_serve, means.pod_access
        if settings is None:
            raise AdapterError("adapter type RayServe needs rayServe with application and deployment")
        service = settings.service or (f"{settings.ray_service}-head-svc" if settings.ray_service else None)
        door = PodDoor(
            port=settings.port,
            credential=access.credential(settings.credential, means.namespace) if settings.credential else None,
            address_of=means.address_of,
            answer_most_bytes=ANSWER_MOST_BYTES,
        )
        place = CapPlace(application=settings.application, deployment=settings.deployment, key=settings.key)
        found = None if means.address_of else service
        return cls(means.client, place, door, ray_service=settings.ray_service, service=found, clock=means.clock)

    def right(self, resource: Resource) -> Right | None:
        """Patching the RayService, or finding the dashboard's Service; none where each pod is asked."""
        return _patch_right(self.ray_service) if self.ray_service else self._service_right

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when every ready pod said that it runs with the cap, and no cap is on trial."""
        return not self._trials and not _behind(workload, cap)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Write `cap` where it differs, and wait for a moment until it is taken over.

        A cap with which the application does not come up again, now or later, is taken back, and not tried again for
        an hour.
        """
        pods, left = self._to_ask(workload, cap), Deadline(deadline, self._clock)
        if not pods:
            return CapResult(outcome=Outcome.UNCHANGED)
        cap = _for_all(workload, cap)
        if self.ray_service:
            return await self._hand_on(workload, self.ray_service, pods, cap, left)
        if not self._trials and (why := self._refusal(cap)):
            return CapResult(outcome=Outcome.REFUSED, message=why)
        ends, failed = await self._ask_each(workload, pods, lambda ray: self._write(ray, cap, left), left)
        return result_of(sum(one is Outcome.WRITTEN for one in ends.values()), failed)

    async def read_back(self, workload: Workload, *, deadline: float) -> CapReading:
        """Ask Ray Serve for the cap in force: the user_config of the deployment, while its application runs."""
        left = Deadline(deadline, self._clock)

        async def read(ray: _Ray) -> int:
            details = await ray.details(left)
            if waits := self._unsettled(details):
                raise PodError(f"{waits}; it will be asked again")
            cap = self._in_force(details)
            if ray.speaker in self._trials and self._trials[ray.speaker].cap == cap:
                self._trials.pop(ray.speaker, None)
            return cap

        caps, failed = await self._ask_each(workload, _ready(workload), read, left)
        return CapReading(caps=caps, failed={name: str(error) for name, error in failed.items()})

    async def close(self) -> None:
        """Nothing stays open between two rounds."""

    async def _ask_each(
        self, workload: Workload, pods: list[Pod], ask: Callable[[_Ray], Awaitable[T]], left: Deadline
    ) -> tuple[dict[str, T], dict[str, PodError]]:
        """Ask each dashboard once: by pod name what came back, and why not."""
        try:
            head = await self._head(workload, left)
        except PodError as error:
            return {}, {pod.name: error for pod in pods}
        by_address: dict[str, list[Pod]] = {}
        for pod in pods:
            by_address.setdefault(self._address(head or pod), []).append(pod)
        groups = {group[0].name: (address, group) for address, group in by_address.items()}

        async def one(pod: Pod) -> T:
            try:
                return await ask(_Ray(session, head or pod, groups[pod.name][0], self._speaker(pod)))
            except AdapterError as error:
                failure = PodError(str(error), lasting=True)
            except PodError as error:
                failure = error.with_traceback(None)
            raise failure  # without the frames, which hold all that was told

        try:
            async with self._door.open() as session:
                done, failed = await each((group[0] for _, group in groups.values()), one)
        except PodError as error:
            return {}, {pod.name: error for pod in pods}
        return (
            {pod.name: done[first] for first, (_, group) in groups.items() if first in done for pod in group},
            {pod.name: failed[first] for first, (_, group) in groups.items() if first in failed for pod in group},
        )

    async def _head(self, workload: Workload, left: Deadline) -> Pod | None:
        """What answers for all pods; None where each answers for itself."""
        right = self._service_right
        return await server_behind(self._client, right, workload.namespace, left) if right else None

    def _address(self, pod: Pod) -> str:
        try:
            return self._door.url(pod, PATH).authority
        except PodError:
            return f"pod {pod.name}"  # asked nevertheless, it says why

    def _speaker(self, pod: Pod) -> str:
        """Who speaks for the Ray cluster that a pod is of: a Service stays when its head gets another address."""
        return self._service_right.name if self._service_right else self._address(pod)

    def _to_ask(self, workload: Workload, cap: int) -> list[Pod]:
        """The pods that are behind, and those with a cap on trial: where it breaks them they are not ready."""
        there = {pod.name: self._speaker(pod) for pod in workload.pods if pod.state is not PodState.TERMINATING}
        if not self._service_right:
            self._trials = {speaker: trial for speaker, trial in self._trials.items() if speaker in there.values()}
        behind = {pod.name for pod in _behind(workload, cap)}
        return [pod for pod in workload.pods if pod.name in behind or there.get(pod.name) in self._trials]

    def _refusal(self, cap: int) -> str:
        """Why a cap is not tried now, "" where it may be."""
        why, until_s = self._refused.get(cap, ("", 0.0))
        return why if self._clock() < until_s else ""

    def _refuse(self, cap: int, problem: str) -> str:
        why = f"batch cap {cap} was taken back: {problem}"
        self._refused[cap] = why, self._clock() + REFUSED_S
        return why

    async def _write(self, ray: _Ray, cap: int, left: Deadline) -> Outcome:
        details = await ray.details(left)
        application = self._application(details)
        status = application.get("status")
        await self._judge(ray, details, left)
        config = deployed_config(details)
        now, changed = cap_in(config, self.place), with_cap(config, self.place, cap)
        if now == cap:
            if status == DEPLOY_FAILED:  # who restarted has forgotten the cap before
                raise PodError(f"{self._complaint(application)}; deploy it with {self.place.key} at a size that works")
            return Outcome.UNCHANGED
        if status in BUSY:
            raise PodError(f"application {self.place.application} is {status}; it will be tried again")
        if why := self._refusal(cap):
            raise PodError(why, lasting=True)
        trial = self._trials.get(ray.speaker)
        self._trials[ray.speaker] = _Trial(cap, trial.before if trial else now)  # it may be put, whatever is answered
        await ray.deploy(changed, left)
        await self._taken_over(ray, left)
        return Outcome.WRITTEN

    async def _taken_over(self, ray: _Ray, left: Deadline) -> None:
        """Wait until the application runs with the cap, for a moment; later calls look again."""
        until_s = self._clock() + TAKEN_OVER_S
        while ray.speaker in self._trials and self._clock() < until_s and await left.pause(LOOK_EVERY_S):
            await self._judge(ray, await ray.details(left), left)

    async def _judge(self, ray: _Ray, details: Details, left: Deadline) -> None:
        """End the trial of a cap where that can be told. PodError where the application breaks with it.

        Then the cap before is put into what is deployed now: others may have deployed meanwhile.
        """
        trial = self._trials.get(ray.speaker)
        if trial is None:
            return
        if self._configured(details) != trial.cap:  # somebody else's now, or never put
            self._trials.pop(ray.speaker, None)
        elif problem := self._problem(details, trial.cap):
            why = self._refuse(trial.cap, problem)
            await ray.deploy(with_cap(deployed_config(details), self.place, trial.before), left)
            self._trials.pop(ray.speaker, None)
            raise PodError(why, lasting=True)
        elif not self._unsettled(details) and self._in_force(details) == trial.cap:
            self._trials.pop(ray.speaker, None)

    def _problem(self, details: Details, cap: int) -> str:
        """What Ray says where the application cannot run with the cap, else "".

        A replica whose reconfigure() fails is stopped at once and started again with the new config, which fails too.
        """
        application = self._application(details)
        deployment = self._deployment(application)
        if deployment.get("deployment_config") and self._in_force(details) != cap:
            return ""  # what is told is of the config before
        message = str(deployment.get("message") or "")
        failed = application.get("status") == DEPLOY_FAILED or (message and SLOW_START not in message)
        return self._complaint(application) if failed else ""

    def _configured(self, details: Details) -> int:
        """The cap in what was deployed, in force or not."""
        config = _map(self._application(details).get("deployed_app_config"))
        return cap_in({"applications": [{**config, "name": self.place.application}]}, self.place)

    def _application(self, details: Details) -> Details:
        found = details["applications"].get(self.place.application)
        if not isinstance(found, dict):
            names = list(details["applications"])
            there = f"write one of: {few(names)}" if names else "it runs none"
            raise AdapterError(f"Ray Serve runs no application {self.place.application}; {there}")
        return found

    def _deployment(self, application: Details) -> Details:
        return _map(_map(application.get("deployments")).get(self.place.deployment))

    def _unsettled(self, details: Details) -> str:
        """Why the config cannot be taken for what is in force; "" where it can."""
        application = self._application(details)
        settled = application.get("status") == RUNNING and self._deployment(application).get("status") not in UNSETTLED
        return "" if settled else self._complaint(application)

    def _complaint(self, application: Details) -> str:
        deployment = self._deployment(application)
        text = str(deployment.get("message") or application.get("message") or "").strip() or "it says no more"
        said = text.splitlines()[-1].strip()  # of a traceback the last line says it
        state = f"application {self.place.application} is {few([application.get('status')])}"
        its = few([deployment.get("status", "not there")])
        return f"{state}, deployment {self.place.deployment} is {its}: {said[:300]}"

    def _in_force(self, details: Details) -> int:
        deployment = self._deployment(self._application(details))
        config = {"name": self.place.deployment, **_map(deployment.get("deployment_config"))}
        return cap_in({"applications": [{"name": self.place.application, "deployments": [config]}]}, self.place)

    async def _hand_on(self, workload: Workload, name: str, pods: list[Pod], cap: int, left: Deadline) -> CapResult:
        """Write a cap into the RayService, or take back the one with which the application was seen to break."""
        speaker = self._speaker(pods[0])
        trial = self._trials.get(speaker)
        if trial and (problem := await self._broken(workload, pods, trial.cap, left)):
            why = self._refuse(trial.cap, problem)
            result = await self._patch(workload, name, trial.before, left, instead_of=trial.cap)
            if result.outcome not in (Outcome.WRITTEN, Outcome.UNCHANGED):
                return result
            self._trials.pop(speaker, None)
            return CapResult(outcome=Outcome.REFUSED, message=why)
        if why := self._refusal(cap):
            return CapResult(outcome=Outcome.REFUSED, message=why)
        return await self._patch(workload, name, cap, left, tried_by=speaker)

    async def _broken(self, workload: Workload, pods: list[Pod], cap: int, left: Deadline) -> str:
        """What Ray says where the application cannot run with a cap that was handed on to it; "" where it can."""

        async def problem(ray: _Ray) -> str:
            details = await ray.details(left)
            return self._problem(details, cap) if self._configured(details) == cap else ""

        found, _ = await self._ask_each(workload, pods, problem, left)
        return next(filter(None, found.values()), "")

    async def _patch(
        self,
        workload: Workload,
        name: str,
        cap: int,
        left: Deadline,
        *,
        instead_of: int | None = None,
        tried_by: str = "",
    ) -> CapResult:
        """Edit the RayService's text, where it has the cap `instead_of`; `tried_by` has then a cap on trial."""
        keys = ("spec", "serveConfigV2")
        field = CapField(
            path=f"{RAY_SERVICES}/namespaces/{workload.namespace}/rayservices/{name}",
            label=f"RayService {name}",
            what="spec.serveConfigV2",
            keys=keys,
        )

        def wanted(manifest: Mapping[str, Any]) -> Edit | None:
            at, text = "/" + "/".join(keys), manifest["spec"].get("serveConfigV2") or ""
            now = cap_in_text(text, self.place)
            if tried_by and (trial := self._trials.get(tried_by)) and trial.cap != now:
                self._trials.pop(tried_by)  # somebody else's now, or never written
            if now == cap or instead_of not in (None, now):
                return None
            changed = text_with_cap(text, self.place, cap)
            if tried_by:  # it may be written, whatever is answered
                trial = self._trials.get(tried_by)
                self._trials[tried_by] = _Trial(cap, trial.before if trial else now)
            return Edit(
                now,
                [{"op": "test", "path": at, "value": text}, {"op": "replace", "path": at, "value": changed}],
            )

        return await write_field(self._client, field, wanted, workload=workload, right=_patch_right(name), left=left)


class _Ray:
    """The dashboard that speaks for some pods, known as `speaker`."""

    def __init__(self, session: PodSession, pod: Pod, address: str, speaker: str) -> None:
        self._session = session
        self._pod = pod
        self._address = address
        self.speaker = speaker

    async def details(self, left: Deadline) -> dict[str, Any]:
        """What is deployed, and how it is. PodError where it is not Ray that answers."""
        answer = await self._ask("GET", left)
        try:
            details = _map(await answer.parsed())
        except ValueError:
            details = {}
        applications = details.get("applications")
        if not isinstance(applications, dict) or not all(isinstance(one, dict) for one in applications.values()):
            raise PodError(f"what answers at {self._address}{PATH} is not the Ray dashboard: see port", lasting=True)
        return details

    async def deploy(self, config: Mapping[str, Any], left: Deadline) -> None:
        """Put a config; Ray answers before it is in force."""
        await self._ask("PUT", left, json.dumps(config))

    async def _ask(self, method: str, left: Deadline, body: str | None = None) -> Answer:
        try:
            return await self._session.ask(self._pod, method, PATH, timeout_s=left.timeout_s(), body=body)
        except PodError as error:
            said = str(error).replace(f"pod {self._pod.name}", f"the Ray dashboard at {self._address}", 1)
            raise PodError(said, status=error.status, lasting=error.lasting) from error


def _map(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _patch_right(name: str) -> Right:
    remedy = "set the chart value adapters.rayServe.enabled=true (and its namespaces), or leave out rayServe.rayService"
    return Right(verb="patch", group="ray.io", resource="rayservices", remedy=remedy, name=name)


def _service_right(name: str) -> Right:
    remedy = "set the chart value adapters.rayServe.enabled=true (and its namespaces), or correct rayServe.service"
    return Right(verb="get", group="", resource="services", remedy=remedy, name=name)


def _ready(workload: Workload) -> list[Pod]:
    return [pod for pod in workload.pods if pod.state is PodState.READY]


def _for_all(workload: Workload, cap: int) -> int:
    """One cap for all pods: what the smallest of the servers may have."""
    return min((cap_for(pod, cap) for pod in _ready(workload)), default=cap)


def _behind(workload: Workload, cap: int) -> list[Pod]:
    return [pod for pod in _ready(workload) if pod.cap != _for_all(workload, cap)]
