"""The ConfigMap adapter against a stand-in client: what is written, what is left alone, and the sentences."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bandkeeper.actuate.adapter import AdapterError
from bandkeeper.actuate.config_map import ConfigMap
from bandkeeper.actuate.outcome import CapReading, Outcome
from bandkeeper.actuate.registry import batch_adapter
from bandkeeper.api.snapshot import PodState
from bandkeeper.api.v1alpha1 import Adapter, AdapterType
from bandkeeper.decide.policy import CostClass
from bandkeeper.kube.client import ApiError, Conflict, Forbidden, Invalid, KubeClient, NotFound, Unavailable
from tests.unit.pod_servers import DEPLOYMENTS, a_pod, a_workload

PATH = "/api/v1/namespaces/serving/configmaps/caps"
FLUX = {"manager": "kustomize-controller", "operation": "Apply", "fieldsV1": {"f:data": {"f:batch-cap": {}}}}
KUBECTL = {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:data": {"f:batch-cap": {}}}}


class Store(KubeClient):
    """One ConfigMap; `errors` are raised one by one by what is named."""

    def __init__(self, data: dict[str, str] | None = None, **more: Any) -> None:
        self.manifest: dict[str, Any] = {"metadata": {"uid": "u", "resourceVersion": "7"}, "data": data, **more}
        self.errors: dict[str, list[ApiError]] = {"get": [], "patch": []}
        self.patches: list[Any] = []
        self.before: Callable[[], Awaitable[None]] | None = None

    async def get(self, path: str, **_: Any) -> dict[str, Any]:
        assert path == PATH
        if self.errors["get"]:
            raise self.errors["get"].pop(0)
        return self.manifest

    async def patch(self, path: str, body: Any, **options: Any) -> dict[str, Any]:
        assert (path, options["params"]) == (PATH, {"fieldManager": "bandkeeper"})
        self.patches.append(body)
        if self.errors["patch"]:
            raise self.errors["patch"].pop(0)
        self.manifest = {**self.manifest, "data": {**(self.manifest["data"] or {}), **body["data"]}}
        return self.manifest


def frozen() -> float:
    return 100.0


def an_adapter(store: Store) -> ConfigMap:
    return ConfigMap(store, name="caps", key="batch-cap", clock=frozen)


async def test_the_key_is_written_and_nothing_else() -> None:
    store = Store({"batch-cap": "64", "other": "x"})
    adapter = an_adapter(store)
    assert (adapter.cost_class, adapter.expected_delay_s) == (CostClass.EVENTUAL, 120.0)
    pods = a_workload(a_pod("chat-0", 64), a_pod("chat-1", 64))
    result = await adapter.apply(pods, 16, deadline=110.0)
    assert (result.outcome, result.written, result.message) == (Outcome.WRITTEN, 1, "")
    assert store.patches == [{"metadata": {"uid": "u", "resourceVersion": "7"}, "data": {"batch-cap": "16"}}]
    assert store.manifest["data"] == {"batch-cap": "16", "other": "x"}
    assert (await adapter.apply(pods, 16, deadline=110.0)).outcome is Outcome.UNCHANGED
    assert len(store.patches) == 1


async def test_every_ready_pod_has_what_the_map_says() -> None:
    adapter = an_adapter(Store({"batch-cap": "16\n"}))
    pods = a_workload(a_pod("chat-0"), a_pod("chat-1"), a_pod("chat-2", state=PodState.PENDING))
    reading = await adapter.read_back(pods, deadline=110.0)
    assert reading == CapReading(caps={"chat-0": 16, "chat-1": 16})
    assert adapter.settled(a_workload(a_pod("chat-0", 16)), 16)
    assert not adapter.settled(a_workload(a_pod("chat-0")), 16)
    assert not adapter.settled(a_workload(), 16)


async def test_the_smallest_server_bounds_the_cap_of_all() -> None:
    store = Store({"batch-cap": "8"})
    pods = a_workload(a_pod("chat-0", 8, capacity=16), a_pod("chat-1", 8))
    await an_adapter(store).apply(pods, 32, deadline=110.0)
    assert store.manifest["data"] == {"batch-cap": "16"}
    assert an_adapter(store).settled(a_workload(a_pod("chat-0", 16, capacity=16), a_pod("chat-1", 16)), 32)


async def test_a_key_that_is_not_there_is_made() -> None:
    store = Store(None)
    pods = a_workload(a_pod("chat-0"))
    reading = await an_adapter(store).read_back(pods, deadline=110.0)
    assert reading.failed == {"chat-0": "ConfigMap caps has no key batch-cap yet"}
    assert (await an_adapter(store).apply(pods, 16, deadline=110.0)).outcome is Outcome.WRITTEN
    assert store.manifest["data"] == {"batch-cap": "16"}


@pytest.mark.parametrize("held", ["auto", "0", "-1", "1.5", "", "1" * 5000], ids=lambda held: held[:5])
async def test_a_key_that_holds_something_else_is_left_alone(held: str) -> None:
    store = Store({"batch-cap": held})
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 16, deadline=110.0)
    assert (result.outcome, store.patches) == (Outcome.REFUSED, [])
    assert f'key batch-cap of ConfigMap caps holds "{held[:40]}", not a whole number of 1 or more' in result.message
    reading = await an_adapter(store).read_back(a_workload(a_pod("chat-0")), deadline=110.0)
    assert reading.failed == {"chat-0": result.message}


async def test_an_immutable_map_is_said() -> None:
    store = Store({"batch-cap": "64"}, immutable=True)
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 16, deadline=110.0)
    assert (result.outcome, store.patches) == (Outcome.REFUSED, [])
    assert result.message == "ConfigMap caps is immutable: make it anew without immutable: true"


async def test_a_change_in_between_is_looked_at_again() -> None:
    store = Store({"batch-cap": "64"})
    store.errors["patch"] = [Conflict(409, "Conflict", "modified")]
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 16, deadline=110.0)
    assert (result.outcome, len(store.patches)) == (Outcome.WRITTEN, 2)
    store.errors["patch"] = [Conflict(409, "Conflict", "modified")] * 9
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 8, deadline=110.0)
    assert result.outcome is Outcome.FAILED
    assert "changes all the time (modified)" in result.message


@pytest.mark.parametrize(
    ("error", "outcome", "says"),
    [
        (
            NotFound(404, "NotFound", "configmaps caps not found"),
            Outcome.REFUSED,
            "no ConfigMap caps in namespace serving: create it and mount it (not by subPath), as with "
            "kubectl create configmap caps --from-literal=batch-cap=64",
        ),
        (
            Forbidden(403, "Forbidden", 'configmaps "caps" is forbidden: User "x" cannot get resource "configmaps"'),
            Outcome.FORBIDDEN,
            'may not patch configmaps "caps" in namespace serving: list "caps" in the chart value adapters.configMap',
        ),
        (
            Forbidden(403, "Forbidden", "configmaps caps is forbidden: Policy 'p' denied request: only whole numbers"),
            Outcome.FORBIDDEN,
            "was refused: only whole numbers",
        ),
        (Unavailable(0, "Timeout", "not answered"), Outcome.FAILED, "not answered; it will be tried again"),
    ],
)
async def test_why_it_cannot_be_used_is_said(error: ApiError, outcome: Outcome, says: str) -> None:
    pods = a_workload(a_pod("chat-0"))
    for verb in ("get", "patch"):
        store = Store({"batch-cap": "64"})
        store.errors[verb] = [error]
        result = await an_adapter(store).apply(pods, 16, deadline=110.0)
        assert result.outcome is outcome
        assert says in result.message
    store = Store()
    store.errors["get"] = [error]
    assert says in (await an_adapter(store).read_back(pods, deadline=110.0)).failed["chat-0"]


async def test_a_value_that_the_server_rejects_is_for_a_person() -> None:
    store = Store({"batch-cap": "64"})
    store.errors["patch"] = [Invalid(422, "Invalid", "duplicate of key present in binaryData")]
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 16, deadline=110.0)
    assert result.outcome is Outcome.REFUSED
    assert "cannot take the key batch-cap: duplicate of key" in result.message


async def test_who_applies_the_key_too_is_named() -> None:
    store = Store({"batch-cap": "64"})
    store.manifest["metadata"]["managedFields"] = [FLUX]
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 16, deadline=110.0)
    assert (result.outcome, result.manager) == (Outcome.WRITTEN, "kustomize-controller")
    assert "kustomize-controller applies /data/batch-cap of ConfigMap caps too" in result.message
    assert "remove /data/batch-cap from the manifest that Flux applies" in result.message
    store.manifest["metadata"]["managedFields"] = [KUBECTL]
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 8, deadline=110.0)
    assert (result.outcome, result.message, result.manager) == (Outcome.WRITTEN, "", "kubectl-edit")


async def test_no_request_begins_after_the_deadline() -> None:
    store = Store({"batch-cap": "64"})
    result = await an_adapter(store).apply(a_workload(a_pod("chat-0")), 16, deadline=100.0)
    assert (result.outcome, store.patches) == (Outcome.FAILED, [])


def test_the_right_is_on_that_one_map() -> None:
    right = an_adapter(Store()).right(DEPLOYMENTS)
    assert (right.verb, right.resource, right.name) == ("patch", "configmaps", "caps")


def test_the_registry_makes_it() -> None:
    spec = Adapter.model_validate({"type": AdapterType.CONFIG_MAP, "configMap": {"name": "caps"}})
    adapter = batch_adapter(spec, Store(), enabled={AdapterType.CONFIG_MAP})
    assert isinstance(adapter, ConfigMap)
    assert (adapter.name, adapter.key) == ("caps", "batch-cap")
    with pytest.raises(AdapterError, match="needs configMap with the name of one"):
        batch_adapter(Adapter.model_construct(type=AdapterType.CONFIG_MAP), Store(), enabled={AdapterType.CONFIG_MAP})
