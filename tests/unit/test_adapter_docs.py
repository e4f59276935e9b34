"""What the pages on batch adapters show is accepted, and the adapter that they build works."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, cast

import yaml

from bandkeeper.actuate.adapter import BatchAdapter, Means
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.api.v1alpha1 import Adapter, AdapterType, Batch
from bandkeeper.kube.client import KubeClient
from tests.unit.pod_servers import PodServers, a_pod, a_workload, answers

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "batch-adapters.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_every_policy_on_the_page_is_accepted_and_every_adapter_is_there() -> None:
    shown = [yaml.safe_load(block) for block in blocks(PAGE, "yaml")]
    batches = [Batch.model_validate(document["batch"], strict=False) for document in shown if "batch" in document]
    assert {batch.adapter.type for batch in batches} == set(AdapterType)
    assert {f"`{kind}`" for kind in AdapterType} <= set(re.findall("^[|] (`[A-Za-z]+`) [|]", PAGE, re.MULTILINE))


async def test_the_adapter_of_the_recipe_works() -> None:
    (code,) = (block for block in blocks((DOCS / "adding-a-runtime.md").read_text(), "python") if "cost_class" in block)
    names: dict[str, Any] = {}
    exec(compile(code, "adding-a-runtime.md", "exec"), names)
    servers = PodServers()
    await servers.start("chat-0", "chat-1", "chat-2")
    servers.odd["chat-2"] = answers(status=500, text="busy")
    means = Means(client=cast(KubeClient, None), address_of=servers.address_of)
    adapter: BatchAdapter = names["ExampleServer"].of(Adapter.model_construct(type=AdapterType.HTTP), means)
    pods = a_workload(a_pod("chat-0", 8), a_pod("chat-1", 64, capacity=16), a_pod("chat-2", 64))
    assert not adapter.settled(pods, 32)
    result = await adapter.apply(pods, 32, deadline=time.monotonic() + 5.0)
    reading = await adapter.read_back(pods, deadline=time.monotonic() + 5.0)
    await adapter.close()
    await servers.stop()
    assert (result.outcome, result.written, set(result.failed)) == (Outcome.PARTIAL, 2, {"chat-2"})
    assert reading.caps == {"chat-0": 32, "chat-1": 16}
    assert reading.failed.keys() == {"chat-2"}
