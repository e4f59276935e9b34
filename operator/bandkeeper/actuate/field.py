"""The batch cap as one field of an object that another controller carries out (KServe, KubeRay).

The write is a JSON patch that tests what was read: it happens only if nobody changed it in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bandkeeper.actuate.adapter import Workload
from bandkeeper.actuate.errors import AdapterError
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
from bandkeeper.kube.client import JSON_PATCH, ApiError, Conflict, Forbidden, Invalid, KubeClient, NotFound

Manifest = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapField:
    """Where the cap stands.

    Attributes
    ----------
    path
        Of the object in the API.
    label
        The object as people name it: `InferenceService iris`.
    what
        The cap in it, as people name it.
    keys
        The field, as steps: `spec`, `predictor`, ...
    """

    path: str
    label: str
    what: str
    keys: tuple[str, ...]

    def owner(self, manifest: Manifest) -> Manager | None:
        """Who else set the field last."""
        manager = last_manager(manifest, *(f"f:{key}" for key in self.keys))
        return manager if manager and manager.name != FIELD_MANAGER else None


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to be done to an object: the cap that it has, and the operations that write another."""

    cap: int
    operations: Sequence[Mapping[str, Any]]


Wanted = Callable[[Manifest], Edit | None]
"""What to do to the object as it was read; None where there is nothing to do. Raises AdapterError."""


async def write_field(
    client: KubeClient, field: CapField, wanted: Wanted, *, workload: Workload, right: Right, left: Deadline
) -> CapResult:
    """Read, look, write; again when the object changed in between, unless it was the cap itself."""
    try:
        return await _attempts(client, field, wanted, left)
    except AdapterError as error:
        return CapResult(outcome=Outcome.REFUSED, message=str(error))
    except NotFound:
        message = f"no {field.label} in namespace {workload.namespace}; create it, or correct spec.batch.adapter"
        return CapResult(outcome=Outcome.NOT_FOUND, message=message)
    except Forbidden as error:
        return CapResult(outcome=Outcome.FORBIDDEN, message=right.refused(error, workload.namespace))
    except ApiError as error:
        message = f"{field.what} of {field.label} could not be written: {error.message}; it will be tried again"
        return CapResult(outcome=Outcome.FAILED, message=message)


async def _attempts(client: KubeClient, field: CapField, wanted: Wanted, left: Deadline) -> CapResult:
    first: tuple[str, int] | None = None
    refusal: ApiError | None = None
    for pause_s in ATTEMPT_PAUSES_S:
        if not await left.pause(pause_s):
            return CapResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
        manifest = await client.get(field.path, timeout_s=left.timeout_s())
        edit = await asyncio.to_thread(wanted, manifest)  # a long text takes its time to read
        if edit is None:
            return CapResult(outcome=Outcome.UNCHANGED)
        owner, uid = field.owner(manifest), manifest["metadata"]["uid"]
        first = first or (uid, edit.cap)
        if first != (uid, edit.cap):
            who = owner.name if owner else ""
            message = (
                f"{who or 'somebody else'} set {field.what} of {field.label} to {edit.cap} meanwhile; it was left so"
            )
            return CapResult(outcome=Outcome.CHANGED, message=message, manager=who)
        if not left.timeout_s():
            return CapResult(outcome=Outcome.FAILED, message=OUT_OF_TIME)
        try:
            await client.patch(
                field.path,
                [{"op": "test", "path": "/metadata/uid", "value": uid}, *edit.operations],
                content_type=JSON_PATCH,
                params={"fieldManager": FIELD_MANAGER},
                timeout_s=left.timeout_s(),
            )
        except (Conflict, Invalid) as error:  # Invalid is also the answer to a test that failed
            refusal = error
        else:
            return _written(field, owner)
    assert refusal is not None
    raise refusal


def _written(field: CapField, owner: Manager | None) -> CapResult:
    if owner is None:
        return CapResult(outcome=Outcome.WRITTEN, written=1)
    message = ""
    if owner.operation == "Apply" or owner.name.startswith("argocd"):
        message = (
            f"{owner.name} applies {field.what} of {field.label} too and may undo the cap; "
            f"{ignore_rule(owner.name, '/' + '/'.join(field.keys))}"
        )
    return CapResult(outcome=Outcome.WRITTEN, message=message, written=1, manager=owner.name)
