"""Batch cap as an environment variable or container argument of the pod template: each change is a rollout.

The template remembers in annotations which cap it carries, which one it had before, and a fingerprint of itself, so
that a rollout that never finishes can be told from somebody else's and taken back. The write is a JSON patch that tests
the whole template: it happens only if nobody changed the template since it was read.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bandkeeper.actuate.adapter import AdapterError, Means, ShownByPods, Workload
from bandkeeper.actuate.managers import Manager, ignore_rule, last_manager
from bandkeeper.actuate.outcome import (
    ATTEMPT_PAUSES_S,
    FIELD_MANAGER,
    OUT_OF_TIME,
    CapResult,
    Deadline,
    Outcome,
)
from bandkeeper.actuate.rights import Right
from bandkeeper.actuate.rollout import (
    CAP_ANNOTATION,
    PREVIOUS_CAP_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
    is_ours,
    template_hash,
)
from bandkeeper.api.snapshot import PodState
from bandkeeper.api.v1alpha1 import Adapter, PodTemplateAdapter, PodTemplatePreset
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import JSON_PATCH, ApiError, Conflict, Forbidden, Invalid, KubeClient, NotFound
from bandkeeper.kube.discovery import Resource

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The variable and the flag that can hold the cap; the variable counts where the container has it.

    `adds` says that the server reads the variable itself, so that it may be put where nothing is yet.
    """

    env: str | None = None
    argument: str | None = None
    adds: bool = False


# vLLM, SGLang and TensorRT-LLM read no variable: it is there to be the value of the flag, as --max-num-seqs=$(NAME).
PRESETS: Mapping[PodTemplatePreset, Names] = {
    PodTemplatePreset.VLLM: Names(env="MAX_NUM_SEQS", argument="--max-num-seqs"),
    PodTemplatePreset.VLLM_ACTIVE: Names(env="MAX_NUM_ACTIVE_SEQS", argument="--max-num-active-seqs"),
    PodTemplatePreset.SGLANG: Names(env="MAX_RUNNING_REQUESTS", argument="--max-running-requests"),
    PodTemplatePreset.TGI: Names(env="MAX_BATCH_SIZE", argument="--max-batch-size", adds=True),
    PodTemplatePreset.TENSORRT_LLM: Names(env="MAX_BATCH_SIZE", argument="--max_batch_size"),
}


def names_of(settings: PodTemplateAdapter) -> Names:
    """What a policy's settings name."""
    if settings.preset is not None:
        return PRESETS[settings.preset]
    return Names(env=settings.env, argument=settings.argument, adds=settings.env is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the cap stands: item `position` of the list `field` of container `index`; None where it is not yet.

    `name` is that of the variable or the flag.
    """

    index: int
    field: str
    name: str
    items: tuple[Any, ...]
    position: int | None
    cap: int | None


class PodTemplate(ShownByPods):
    """Writes an environment variable or an argument of one container, whichever of its `names` is there."""

    cost_class = CostClass.ROLLOUT
    expected_delay_s = 300.0

    def __init__(
        self,
        client: KubeClient,
        *,
        container: str,
        env: str | None = None,
        argument: str | None = None,
        preset: PodTemplatePreset | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if [env, argument, preset].count(None) != 2:
            raise AdapterError("give exactly one of podTemplate.preset, podTemplate.env and podTemplate.argument")
        self._client = client
        self._clock = clock
        self.container = container
        self.names = PRESETS[preset] if preset else Names(env=env, argument=argument, adds=env is not None)

    @classmethod
    def of(cls, spec: Adapter, means: Means) -> PodTemplate:
        """The adapter that a policy asks for."""
        settings = spec.pod_template
        if settings is None:
            raise AdapterError(
                "adapter type PodTemplate needs podTemplate with container and one of preset, env and argument"
            )
        return cls(
            means.client,
            container=settings.container,
            env=settings.env,
            argument=settings.argument,
            preset=settings.preset,
            clock=means.clock,
        )

    def right(self, resource: Resource) -> Right:
        """Patching the workload itself."""
        remedy = (
            "set the chart value adapters.podTemplate.enabled=true (and its namespaces), or change spec.batch.adapter"
        )
        return Right(verb="patch", group=resource.group, resource=resource.plural, remedy=remedy)

    def cap_of(self, manifest: Manifest) -> int | None:
        """The cap that new pods boot with; None where the template does not say."""
        try:
            return self._find(manifest).cap
        except AdapterError:
            return None

    def settled(self, workload: Workload, cap: int) -> bool:
        """True when the stored manifest carries the cap; without one, when every live pod booted with it."""
        if workload.manifest is not None:
            return self.cap_of(workload.manifest) == cap
        live = [pod for pod in workload.pods if pod.state is not PodState.TERMINATING]
        return bool(live) and all(pod.cap == cap for pod in live)

    async def apply(self, workload: Workload, cap: int, *, deadline: float) -> CapResult:
        """Put `cap` into the template, if nobody changed it between our reading and our writing."""
        if self.settled(workload, cap):
            return CapResult(outcome=Outcome.UNCHANGED)

        def wanted(manifest: Manifest, place: _Place) -> _Change | None:
            return None if place.cap == cap else _Change(cap, place.cap)

        return await self._write(workload, wanted, Deadline(deadline, self._clock))

    async def rollback(self, workload: Workload, *, deadline: float) -> CapResult:
        """Take our own last change back, if the template is still as we left it."""

        def wanted(manifest: Manifest, place: _Place) -> _Change | None:
            previous = _annotations(manifest["spec"]["template"]).get(PREVIOUS_CAP_ANNOTATION)
            if previous is None:
                return None
            if not is_ours(manifest):
                raise AdapterError("the pod template was changed by somebody else since; it was not rolled back")
            return _Change(self._number(previous, place.name) if previous else None, None, rollback=True)

        return await self._write(workload, wanted, Deadline(deadline, self._clock))

    async def _write(
        self, workload: Workload, wanted: Callable[[Manifest, _Place], _Change | None], left: Deadline
    ) -> CapResult:
        label = f"{workload.resource.kind} {workload.name}"
        try:
            return await self._attempts(workload, label, wanted, left)
        except AdapterError as error:
            return CapResult(outcome=Outcome.REFUSED, message=str(error))
        except NotFound:
            return CapResult(outcome=Outcome.NOT_FOUND, message=f"no {label} in namespace {workload.namespace}")
        except Forbidden as error:
            message = self.right(workload.resource).refused(error, workload.namespace)
            return CapResult(outcome=Outcome.FORBIDDEN, message=message)
        except ApiError as error:
            message = f"the pod template of {label} could not be written: {error.message}; it will be tried again"
            return CapResult(outcome=Outcome.FAILED, message=message)

    async def _attempts(
        self,
        workload: Workload,
        label: str,
        wanted: Callable[[Manifest, _Place], _Change | None],
        left: Deadline,
    ) -> CapResult:
        """Read, look, write; again when the template changed in between, unless it was the cap itself."""
        path = workload.resource.path(workload.namespace, workload.name)
        first: _Place | None = None
        refusal: ApiError | None = None
        for pause_s in ATTEMPT_PAUSES_S:
            if not await left.pause(pause_s):
                return CapResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
            manifest = await self._client.get(path, timeout_s=left.timeout_s())
            place = self._find(manifest)
            owner = self._owner(manifest, place)
            first = first or place
            if manifest["metadata"]["uid"] != workload.uid:
                message = f"{label} was deleted and created again since the decision; nothing was written"
                return CapResult(outcome=Outcome.CHANGED, message=message)
            if manifest["spec"].get("paused"):
                raise AdapterError(paused(workload))
            change = wanted(manifest, place)
            if change is None:
                return CapResult(outcome=Outcome.UNCHANGED)
            if place.cap != first.cap:
                who = owner.name if owner else ""
                message = (
                    f"{who or 'somebody else'} set {self._what(place.name)} of {label} to {place.cap} meanwhile; "
                    "it was left so"
                )
                return CapResult(outcome=Outcome.CHANGED, message=message, manager=who)
            if not left.timeout_s():
                return CapResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
            try:
                await self._client.patch(
                    path,
                    self._patch(manifest, place, change),
                    content_type=JSON_PATCH,
                    params={"fieldManager": FIELD_MANAGER},
                    timeout_s=left.timeout_s(),
                )
            except (Conflict, Invalid) as error:  # Invalid is also the answer to a test that failed
                refusal = error
            else:
                return self._written(label, owner, place)
        assert refusal is not None
        raise refusal

    def _patch(self, manifest: Manifest, place: _Place, change: _Change) -> list[dict[str, Any]]:
        template = copy.deepcopy(manifest["spec"]["template"])
        items = self._with(place, change.cap)
        container = template["spec"]["containers"][place.index]
        container[place.field] = items
        if not items:
            del container[place.field]
        annotations = {
            **_annotations(template),
            CAP_ANNOTATION: _text(change.cap),
            PREVIOUS_CAP_ANNOTATION: _text(change.previous),
            TEMPLATE_HASH_ANNOTATION: template_hash(template),
        }
        if change.rollback:
            del annotations[PREVIOUS_CAP_ANNOTATION]
            if change.cap is None:
                del annotations[CAP_ANNOTATION]
        at = f"/spec/template/spec/containers/{place.index}"
        value = {"op": "add", "path": f"{at}/{place.field}", "value": items}
        return [
            {"op": "test", "path": "/metadata/uid", "value": manifest["metadata"]["uid"]},
            {"op": "test", "path": "/spec/template", "value": manifest["spec"]["template"]},
            value if items else {"op": "remove", "path": f"{at}/{place.field}"},
            {"op": "add", "path": "/spec/template/metadata/annotations", "value": annotations},
        ]

    def _with(self, place: _Place, cap: int | None) -> list[Any]:
        """The list with the cap in its place; without it where `cap` is None."""
        items = list(place.items)
        if place.field == "env":
            if place.position is not None:
                items.pop(place.position)
            if cap is not None:
                at = len(items) if place.position is None else place.position
                items.insert(at, {"name": place.name, "value": str(cap)})
        elif place.position is not None and cap is not None:
            old = items[place.position]
            items[place.position] = f"{place.name}={cap}" if old.startswith("-") else str(cap)
        return items

    def _find(self, manifest: Manifest) -> _Place:
        spec = ((manifest.get("spec") or {}).get("template") or {}).get("spec") or {}
        containers = spec.get("containers")
        if not containers:
            raise AdapterError(
                f"{manifest.get('kind')} has no pod template in spec.template, which the PodTemplate adapter needs; "
                "use the Annotation adapter"
            )
        names = [container.get("name") for container in containers]
        if self.container not in names:
            there = ", ".join(names)
            raise AdapterError(f"no container {self.container} in the pod template; write one of: {there}")
        index = names.index(self.container)
        container = containers[index]
        found = self._find_env(index, container) or self._find_argument(index, container)
        if found is not None:
            return found
        env, argument = self.names.env, self.names.argument
        if env is not None and self.names.adds:
            items = tuple(container.get("env") or ())
            return _Place(index=index, field="env", name=env, items=items, position=None, cap=None)
        assert argument is not None
        raise AdapterError(self._nowhere(container, argument, env))

    def _find_env(self, index: int, container: Manifest) -> _Place | None:
        items, env = tuple(container.get("env") or ()), self.names.env
        position = next((i for i, item in enumerate(items) if item.get("name") == env), None)
        if env is None or position is None:
            return None
        if "valueFrom" in items[position]:
            raise AdapterError(
                f"{self._what(env)} is set by valueFrom; give it a plain value, or use the Annotation adapter"
            )
        cap = self._number(items[position].get("value") or "", env)
        return _Place(index=index, field="env", name=env, items=items, position=position, cap=cap)

    def _find_argument(self, index: int, container: Manifest) -> _Place | None:
        items = tuple(container.get("args") or ())
        for position in reversed(range(len(items))):  # of a repeated argument the last one counts
            name, equals, value = items[position].partition("=")
            if name != self.names.argument:
                continue
            if not equals:
                position += 1
                value = items[position] if position < len(items) else ""
            cap = self._number(value, name)
            return _Place(index=index, field="args", name=name, items=items, position=position, cap=cap)
        return None

    def _nowhere(self, container: Manifest, argument: str, env: str | None) -> str:
        what = self._what(argument)
        if any(argument in word.split("=", 1) for word in container.get("command") or ()):
            return f"{what} stands in the container's command, which is never edited; move it to args"
        inside = any(argument in word for word in container.get("args") or ())
        where = "stands inside a longer argument (a shell line?)" if inside else "is not among its args"
        instead = f"set the variable {env} and write {argument}=$({env})" if env else "use podTemplate.env"
        return (
            f"{what} {where}; give it as an argument of its own with the capacity that the server boots with, "
            f"or {instead}"
        )

    def _number(self, value: str, name: str) -> int:
        if not value.isdecimal():
            raise AdapterError(
                f'{self._what(name)} is "{value}", not a whole number; set it to the capacity that the server boots '
                "with"
            )
        return int(value)

    def _owner(self, manifest: Manifest, place: _Place) -> Manager | None:
        """Who else set the field. All args are one field; each environment variable is its own."""
        keys = ["f:spec", "f:template", "f:spec", "f:containers", _key(self.container)]
        keys += ["f:env", _key(place.name), "f:value"] if place.field == "env" else ["f:args"]
        manager = last_manager(manifest, *keys)
        return manager if manager and manager.name != FIELD_MANAGER else None

    def _written(self, label: str, owner: Manager | None, place: _Place) -> CapResult:
        if owner is None:
            return CapResult(outcome=Outcome.WRITTEN, written=1)
        message = ""
        if owner.operation == "Apply" or owner.name.startswith("argocd"):
            pointer = f"/spec/template/spec/containers/{place.index}/{place.field}"
            message = (
                f"{owner.name} applies {self._what(place.name)} of {label} too and may undo the cap, a rollout each "
                f"time; {ignore_rule(owner.name, pointer)}"
            )
        return CapResult(outcome=Outcome.WRITTEN, message=message, written=1, manager=owner.name)

    def _what(self, name: str) -> str:
        kind = "argument" if name.startswith("-") else "environment variable"
        return f"{kind} {name} of container {self.container}"


def paused(workload: Workload) -> str:
    """The sentence for a workload that is paused: a new template would wait for ever."""
    kind, name = workload.resource.kind, workload.name
    return (
        f"{kind} {name} is paused (spec.paused), so no rollout is begun and its pods keep their cap; "
        f"kubectl rollout resume {kind.lower()}/{name} hands it back"
    )


@dataclass(frozen=True, slots=True)
class _Change:
    """The cap to write (None: take it out) and the one to come back to (None: there was none)."""

    cap: int | None
    previous: int | None
    rollback: bool = False


def _annotations(template: Manifest) -> dict[str, str]:
    return dict((template.get("metadata") or {}).get("annotations") or {})


def _text(cap: int | None) -> str:
    return "" if cap is None else str(cap)


def _key(name: str) -> str:
    return "k:" + json.dumps({"name": name}, separators=(",", ":"))
