"""The table of documents, judged by the real API server, which must agree with the models on each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from bandkeeper.api.crdgen import crd
from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.api.validation import validate
from bandkeeper.kube.client import ApiError, KubeClient
from tests.cluster import ControlPlane
from tests.documents import CASES, Case, Document, a_full_status, a_policy

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parent.parent
POLICIES = "/apis/bandkeeper.dev/v1alpha1/namespaces/default/gpuscalingpolicies"


def _rule_messages(schema: object) -> set[str]:
    """The messages of every CEL rule: with these the server speaks our words."""
    if isinstance(schema, list):
        return set().union(*map(_rule_messages, schema))
    if not isinstance(schema, dict):
        return set()
    own = {rule["message"] for rule in schema.get("x-kubernetes-validations", ())}
    return own.union(*(_rule_messages(part) for part in schema.values()))


RULE_MESSAGES = _rule_messages(crd())


@pytest.fixture(scope="module")
def definition(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{crd()['metadata']['name']}")


@pytest_asyncio.fixture
async def client(control_plane: ControlPlane, definition: None) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(str(control_plane.kubeconfig)) as connected:
        yield connected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_verdict(client: KubeClient, case: Case) -> None:
    refusal = await _refusal(client, case.document)

    assert (not refusal) is case.good, refusal
    verdict = validate(case.document)
    if not isinstance(verdict, Spec) and verdict[0].message in RULE_MESSAGES:
        assert verdict[0].message in refusal


def test_kubectl_takes_the_examples(control_plane: ControlPlane, namespace: str, definition: None) -> None:
    for example in sorted((ROOT / "examples").glob("*.yaml")):
        document = yaml.safe_load(example.read_text())
        document["metadata"]["namespace"] = namespace
        control_plane.kubectl("apply", "--validate=strict", "-f", "-", input=document)

    table = control_plane.kubectl("get", "gsp", "-n", namespace)
    assert table.splitlines()[0].split() == [
        *(
            "NAME",
            "TARGET",
            "OBJECTIVE",
            "REPLICAS",
            "DESIRED",
            "BATCH",
            "UTILIZATION",
            "QUALITY",
            "SLO",
            "READY",
            "REASON",
            "AGE",
        )
    ]
    stored = control_plane.get("gsp", "chat", namespace=namespace)["spec"]
    assert stored["mode"] == "Enforce"
    assert stored["slos"][0]["window"] == "60s"
    assert stored["fallback"] == {"after": "180s", "behavior": "Hold"}
    assert {"band", "behavior", "batch"}.isdisjoint(stored), "what the objective decides has no default in the schema"


def test_kubectl_writes_4_for_4_0(control_plane: ControlPlane, definition: None) -> None:
    document = a_policy(replicas={"min": 1.0, "max": 4.0})
    control_plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(document))


def test_a_full_status_is_stored_as_it_was_written(
    control_plane: ControlPlane, namespace: str, definition: None
) -> None:
    status = a_full_status().stored()
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=a_policy())
    patch = json.dumps({"status": status})
    control_plane.kubectl("patch", "gsp", "chat", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)

    assert control_plane.get("gsp", "chat", namespace=namespace)["status"] == status


async def _refusal(client: KubeClient, document: Document) -> str:
    """What the server says against the document; "" where it would take it."""
    sent = json.loads(json.dumps(document), parse_float=_as_kubectl_writes)
    try:
        await client.post(POLICIES, sent, params={"dryRun": "All", "fieldValidation": "Strict"})
    except ApiError as error:
        if error.status in (400, 422):
            return error.message
        raise
    return ""


def _as_kubectl_writes(number: str) -> float:
    return int(float(number)) if float(number).is_integer() else float(number)
