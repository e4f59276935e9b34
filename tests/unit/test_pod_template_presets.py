"""Presets of the PodTemplate adapter: what they write, how pods are read then, and that the chart permits it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from bandkeeper.actuate.adapter import Workload
from bandkeeper.actuate.outcome import Outcome
from bandkeeper.actuate.pod_template import PRESETS, PodTemplate
from bandkeeper.api.snapshot import Pod
from bandkeeper.api.v1alpha1 import PodTemplatePreset
from bandkeeper.kube.client import KubeClient
from bandkeeper.kube.discovery import Resource
from bandkeeper.kube.pods import trim_pod, view
from bandkeeper.runtime.app import collector_settings_of
from bandkeeper.runtime.policies import Interpreter
from bandkeeper.runtime.settings import Settings
from tests.documents import a_policy

VALUES = Path(__file__).parents[2] / "charts" / "bandkeeper" / "values.yaml"
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", namespaced=True, scalable=True)
NOW_S = 1e9


class Api(KubeClient):
    """One Deployment, changed by the JSON patches that are sent."""

    def __init__(self, **server: Any) -> None:
        template = {"metadata": {}, "spec": {"containers": [{"name": "proxy"}, {"name": "server", **server}]}}
        self.stored: dict[str, Any] = {"kind": "Deployment", "metadata": {"uid": "u"}, "spec": {"template": template}}

    @property
    def server(self) -> dict[str, Any]:
        container: dict[str, Any] = self.stored["spec"]["template"]["spec"]["containers"][1]
        return container

    async def get(self, path: str, **_: Any) -> dict[str, Any]:
        return copy.deepcopy(self.stored)

    async def patch(self, path: str, body: Any, **_: Any) -> dict[str, Any]:
        for step in body:
            *parents, last = step["path"].lstrip("/").split("/")
            at: Any = self.stored
            for key in parents:
                at = at[int(key) if isinstance(at, list) else key]
            if step["op"] == "add":
                at[last] = step["value"]
            elif step["op"] == "remove":
                del at[last]
            else:
                assert at[last] == step["value"]
        return self.stored


def env(**variables: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def workload() -> Workload:
    return Workload(namespace="serving", name="chat", resource=DEPLOYMENTS, uid="u")


@pytest.mark.parametrize(
    ("preset", "server", "after"),
    [
        ("VLLM", {"args": ["--max-num-seqs=64"]}, {"args": ["--max-num-seqs=32"]}),
        (
            "VLLM",
            {"args": ["--max-num-seqs=$(MAX_NUM_SEQS)"], "env": env(MAX_NUM_SEQS="64")},
            {"args": ["--max-num-seqs=$(MAX_NUM_SEQS)"], "env": env(MAX_NUM_SEQS="32")},
        ),
        (
            "VLLMActive",
            {"args": ["--max-num-seqs", "64", "--max-num-active-seqs", "16"]},
            {"args": ["--max-num-seqs", "64", "--max-num-active-seqs", "32"]},
        ),
        (
            "VLLMActive",
            {
                "command": ["serve", "--max-num-active-seqs", "$(MAX_NUM_ACTIVE_SEQS)"],
                "env": env(MAX_NUM_ACTIVE_SEQS="8"),
            },
            {
                "command": ["serve", "--max-num-active-seqs", "$(MAX_NUM_ACTIVE_SEQS)"],
                "env": env(MAX_NUM_ACTIVE_SEQS="32"),
            },
        ),
        ("SGLang", {"args": ["--max-running-requests", "64"]}, {"args": ["--max-running-requests", "32"]}),
        ("SGLang", {"env": env(MAX_RUNNING_REQUESTS="64")}, {"env": env(MAX_RUNNING_REQUESTS="32")}),
        ("TGI", {"args": ["--max-batch-size=64"]}, {"args": ["--max-batch-size=32"]}),
        ("TGI", {"env": env(MODEL_ID="m", MAX_BATCH_SIZE="64")}, {"env": env(MODEL_ID="m", MAX_BATCH_SIZE="32")}),
        ("TGI", {"env": env(MODEL_ID="m")}, {"env": env(MODEL_ID="m", MAX_BATCH_SIZE="32")}),
        ("TGI", {}, {"env": env(MAX_BATCH_SIZE="32")}),
        ("TensorRTLLM", {"args": ["--max_batch_size", "64"]}, {"args": ["--max_batch_size", "32"]}),
        ("TensorRTLLM", {"env": env(MAX_BATCH_SIZE="64")}, {"env": env(MAX_BATCH_SIZE="32")}),
    ],
)
async def test_the_variable_is_written_where_it_is_and_the_flag_elsewhere_and_both_come_back(
    preset: str, server: dict[str, Any], after: dict[str, Any]
) -> None:
    api = Api(**copy.deepcopy(server))
    adapter = PodTemplate(api, container="server", preset=PodTemplatePreset(preset), clock=lambda: 100.0)
    result = await adapter.apply(workload(), 32, deadline=110.0)
    assert (result.outcome, result.message) == (Outcome.WRITTEN, "")
    assert api.server == {"name": "server", **after}
    assert adapter.cap_of(api.stored) == 32
    assert (await adapter.rollback(workload(), deadline=110.0)).outcome is Outcome.WRITTEN
    assert api.server == {"name": "server", **server}


@pytest.mark.parametrize("preset", [preset for preset in PodTemplatePreset if not PRESETS[preset].adds])
async def test_a_server_that_reads_no_variable_gets_none(preset: PodTemplatePreset) -> None:
    api = Api(args=["--model=m"])
    adapter = PodTemplate(api, container="server", preset=preset, clock=lambda: 100.0)
    result = await adapter.apply(workload(), 32, deadline=110.0)
    names = PRESETS[preset]
    assert result.outcome is Outcome.REFUSED
    assert f"argument {names.argument} of container server is not among its args" in result.message
    assert f"or set the variable {names.env} and write {names.argument}=$({names.env})" in result.message
    assert api.server == {"name": "server", "args": ["--model=m"]}


def test_the_chart_permits_every_preset() -> None:
    permitted = yaml.safe_load(VALUES.read_text())["adapters"]["podTemplate"]
    for preset, names in PRESETS.items():
        assert names.env in permitted["env"], preset
        assert names.argument in permitted["arguments"], preset


# -- how pods are read -------------------------------------------------------------------------------------------------


def seen(adapter: dict[str, Any] | None, annotation: str = "", **server: Any) -> tuple[Any, Any]:
    """Cap and capacity of a pod, as the operator reads them under a policy with this adapter."""
    pod = pod_of(adapter, annotation, **server)
    return pod.cap, pod.capacity


def pod_of(adapter: dict[str, Any] | None, annotation: str = "", **server: Any) -> Pod:
    settings = Settings.model_validate(
        {"prometheus": {"servers": [{"name": "default", "url": "http://prometheus:9090"}]}}
    )
    batch = {"min": 1, "max": 256, "adapter": adapter} if adapter else None
    raw = a_policy(batch=batch)
    raw["metadata"] |= {"namespace": "serving", "uid": "u", "generation": 1}
    managed = Interpreter(Api(), settings, collector_settings_of(settings)).read(raw)
    assert managed.flaw is None, managed.flaw
    assert managed.pod_settings is not None
    record = trim_pod(
        {
            "metadata": {
                "namespace": "serving",
                "name": "chat-0",
                "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"bandkeeper.dev/batch-cap": annotation} if annotation else {},
            },
            "spec": {"containers": [{"name": "server", **server}]},
        }
    )
    assert record is not None
    return view(record, now=NOW_S, settings=managed.pod_settings)


def template(**settings: str) -> dict[str, Any]:
    return {"type": "PodTemplate", "podTemplate": {"container": "server", **settings}}


BOTH = ["--max-num-seqs=64", "--max-num-active-seqs=16"]


@pytest.mark.parametrize(
    ("adapter", "args", "cap", "capacity"),
    [
        (None, BOTH, 16, 64),
        (None, BOTH[:1], None, 64),
        ({"type": "Annotation"}, BOTH, 16, 64),
        (template(preset="VLLMActive"), BOTH, 16, 64),
        (template(argument="--max-num-active-seqs"), BOTH, 16, 64),
        (template(env="MAX_NUM_ACTIVE_SEQS"), BOTH[:1], None, 64),
        (template(preset="VLLM"), BOTH, 64, None),
        (template(argument="--max-num-seqs"), BOTH, 64, None),
        (template(env="CAP"), BOTH, None, None),
    ],
)
def test_a_cap_on_admission_is_told_from_the_capacity(
    adapter: dict[str, Any] | None, args: list[str], cap: int | None, capacity: int | None
) -> None:
    assert seen(adapter, args=args) == (cap, capacity)


def test_what_the_annotation_says_comes_before_what_the_server_booted_with() -> None:
    assert seen({"type": "Annotation"}, annotation="8", args=BOTH) == (8, 64)


@pytest.mark.parametrize(
    "adapter",
    [None, {"type": "Annotation"}, template(preset="VLLM"), {"type": "KServe", "kServe": {"inferenceService": "iris"}}],
    ids=["none", "annotation", "template", "kserve"],
)
def test_the_prompt_tokens_of_a_step_are_read_whatever_sets_the_cap(adapter: dict[str, Any] | None) -> None:
    assert pod_of(adapter, args=[*BOTH, "--max-num-batched-tokens=512"]).prefill_tokens == 512
    assert pod_of(adapter, args=BOTH).prefill_tokens is None


def test_the_cap_is_read_from_a_presets_variable() -> None:
    args = ["--max-num-seqs=64", "--max-num-active-seqs=$(MAX_NUM_ACTIVE_SEQS)"]
    assert seen(template(preset="VLLMActive"), args=args, env=env(MAX_NUM_ACTIVE_SEQS="8")) == (8, 64)
    assert seen(template(preset="TGI"), env=env(MAX_BATCH_SIZE="8")) == (8, None)
