"""Pods: what state they are in, what is read from them, and which belong to a workload."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bandkeeper.api.snapshot import PodState
from bandkeeper.kube.objects import Key
from bandkeeper.kube.pods import PodRecord, PodSettings, PodStore, trim_pod, view
from bandkeeper.kube.reflector import Change
from bandkeeper.kube.selector import SelectorError, parse_selector
from bandkeeper.signals.presets import PRESETS

CREATED = "2026-01-01T10:00:00Z"
NOW = 1767261600.0 + 600  # ten minutes later


def raw_pod(
    name: str = "chat-1",
    *,
    namespace: str = "serving",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    ready: bool | None = True,
    containers: list[dict[str, Any]] | None = None,
    status: dict[str, Any] | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    conditions = []
    if ready is not None:
        change = "2026-01-01T10:09:00Z"
        conditions.append({"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": change})
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": CREATED,
            "labels": {"app": "chat", **(labels or {})},
            "annotations": annotations or {},
            **metadata,
        },
        "spec": {"containers": containers or [{"name": "server", "image": "x"}]},
        "status": {"phase": "Running", "conditions": conditions, **(status or {})},
    }


def record(*args: Any, **kwargs: Any) -> PodRecord:
    found = trim_pod(raw_pod(*args, **kwargs))
    assert found is not None
    return found


def waiting(reason: str, *, kind: str = "containerStatuses") -> dict[str, Any]:
    return {kind: [{"name": "server", "state": {"waiting": {"reason": reason, "message": "back-off 10s"}}}]}


def crashed(restarts: int, started: str, finished: str) -> dict[str, Any]:
    ended = {"startedAt": started, "finishedAt": finished, "reason": "OOMKilled", "exitCode": 137}
    running = {"running": {"startedAt": finished}}
    status = {"name": "server", "state": running, "lastState": {"terminated": ended}, "restartCount": restarts}
    return {"containerStatuses": [status]}


def test_a_pods_address_and_restarts_are_kept() -> None:
    statuses = [{"name": "server", "restartCount": 2}, {"name": "sidecar", "restartCount": 1}]
    pod = view(record(status={"podIP": "10.0.0.7", "containerStatuses": statuses}), now=NOW, settings=PodSettings())
    assert (pod.address, pod.restarts) == ("10.0.0.7", 3)
    new = view(record(status={}), now=NOW, settings=PodSettings())
    assert (new.address, new.restarts) == ("", 0)


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}
GATED = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "waiting for Kueue"}


@pytest.mark.parametrize(
    ("pod", "state", "message"),
    [
        (raw_pod(), PodState.READY, ""),
        (raw_pod(ready=False), PodState.PENDING, ""),
        (raw_pod(ready=None, status={"phase": "Pending", "conditions": []}), PodState.PENDING, ""),
        (raw_pod(status={"conditions": None, "phase": None}), PodState.PENDING, ""),
        (raw_pod(status={"phase": "Pending", "conditions": [UNSCHEDULABLE]}), PodState.UNSCHEDULABLE, "no GPU"),
        (raw_pod(status={"phase": "Pending", "conditions": [GATED]}), PodState.PENDING, ""),
        (
            raw_pod(ready=False, status=waiting("ImagePullBackOff")),
            PodState.FAILED,
            "container server: ImagePullBackOff",
        ),
        (raw_pod(ready=False, status=waiting("ErrImagePull")), PodState.FAILED, "ErrImagePull: back-off 10s"),
        (raw_pod(ready=False, status=waiting("InvalidImageName")), PodState.FAILED, "InvalidImageName"),
        (raw_pod(ready=False, status=waiting("CreateContainerConfigError")), PodState.FAILED, "CreateContainerConfig"),
        (raw_pod(ready=False, status=waiting("CrashLoopBackOff")), PodState.FAILED, "CrashLoopBackOff"),
        (
            raw_pod(ready=False, status=waiting("CrashLoopBackOff", kind="initContainerStatuses")),
            PodState.FAILED,
            "CrashLoopBackOff",
        ),
        (raw_pod(ready=False, status=waiting("ContainerCreating")), PodState.PENDING, ""),
        (raw_pod(ready=False, status=waiting("PodInitializing")), PodState.PENDING, ""),
        (raw_pod(deletionTimestamp="2026-01-01T10:09:30Z"), PodState.TERMINATING, ""),
        (
            raw_pod(ready=False, deletionTimestamp="2026-01-01T10:09:30Z", status=waiting("CrashLoopBackOff")),
            PodState.TERMINATING,
            "",
        ),
    ],
)
def test_state(pod: dict[str, Any], state: PodState, message: str) -> None:
    found = trim_pod(pod)
    assert found is not None
    assert found.state is state
    assert message in found.message
    assert bool(message) == bool(found.message)


def test_a_pod_that_has_finished_is_no_pod() -> None:
    for phase in ("Succeeded", "Failed"):
        assert trim_pod(raw_pod(ready=False, status={"phase": phase})) is None


@pytest.mark.parametrize(
    ("restarts", "finished", "state"),
    [
        (3, "2026-01-01T10:00:20Z", PodState.FAILED),  # died after 20 s, again
        (1, "2026-01-01T10:00:20Z", PodState.PENDING),  # once is no loop
        (3, "2026-01-01T12:00:00Z", PodState.PENDING),  # worked for two hours before
    ],
)
def test_a_crash_loop_between_two_back_offs(restarts: int, finished: str, state: PodState) -> None:
    found = record(ready=False, status=crashed(restarts, CREATED, finished))
    assert found.state is state
    if state is PodState.FAILED:
        assert found.message == (
            "container server: restarted 3 times, the last time after 20 s (OOMKilled, exit code 137)"
        )


def test_ages_count_from_creation_and_from_the_change_of_readiness() -> None:
    pod = view(record(), now=NOW, settings=PodSettings())
    assert (pod.age_s, pod.state_age_s) == (600.0, 60.0)
    pod = view(record(ready=None, status={"conditions": []}), now=NOW, settings=PodSettings())
    assert (pod.age_s, pod.state_age_s) == (600.0, 600.0)
    assert view(record(), now=NOW - 3600, settings=PodSettings()).age_s == 0.0  # clocks differ


@pytest.mark.parametrize("label", ["pod-template-hash", "controller-revision-hash"])
def test_revision(label: str) -> None:
    assert record(labels={label: "abc"}).revision == "abc"
    assert record().revision is None


VLLM = PodSettings(
    cap_annotation="bandkeeper.dev/batch-cap",
    capacity=("--max-num-seqs", "MAX_NUM_SEQS"),
    queue_bound=("--max-queued-requests",),
)


def server(*args: str, command: list[str] | None = None, **env: str) -> list[dict[str, Any]]:
    sidecar = {"name": "proxy", "args": ["--port", "80"], "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {}}}]}
    variables = [{"name": name, "value": value} for name, value in env.items()]
    return [sidecar, {"name": "server", "command": command, "args": list(args), "env": variables}]


@pytest.mark.parametrize(
    ("containers", "capacity"),
    [
        (server("--max-num-seqs", "64"), 64),
        (server("--max-num-seqs=64"), 64),
        (server("--max_num_seqs=64"), 64),
        (server(command=["vllm", "serve", "m", "--max-num-seqs", "64"]), 64),
        (server(command=["sh", "-c", "exec vllm serve m --max-num-seqs 64 # --max-num-seqs 9"]), 64),
        (server("vllm serve m \\\n  --max-num-seqs=64\\\n --port 80", command=["bash", "-c"]), 64),
        (server("it's --max-num-seqs 64", command=["sh", "-c"]), 64),
        (server("--max-num-seqs", "8", "--max-num-seqs", "64"), 64),
        (server(MAX_NUM_SEQS="64"), 64),
        (server("--max-num-seqs=$(SEQS)", SEQS="64"), 64),
        (server("vllm serve --max-num-seqs $SEQS", command=["sh", "-c"], SEQS="64"), 64),
        (server("vllm serve --max-num-seqs ${SEQS:-64}", command=["sh", "-c"]), 64),
        (server("vllm serve --max-num-seqs ${SEQS:-64}", command=["sh", "-c"], SEQS="32"), 32),
        (server("--max-num-seqs", "many"), None),
        (server("--max-num-seqs", "--port=80"), None),
        (server("--max-num-seqs=-1"), None),
        (server("--max-num-seqs"), None),
        (server("--max-num-seqs=$(UNKNOWN)"), None),
        (server(MAX_NUM_SEQS=""), None),
        (server(), None),
    ],
)
def test_capacity_is_read_from_arguments_and_environment(
    containers: list[dict[str, Any]], capacity: int | None
) -> None:
    assert view(record(containers=containers), now=NOW, settings=VLLM).capacity == capacity


@pytest.mark.parametrize(
    ("runtime", "containers", "tokens"),
    [
        ("VLLM", server("--max-num-batched-tokens", "512"), 512),
        ("VLLM", server("--max_num_batched_tokens=2048"), 2048),
        ("VLLM", server("--max-num-batched-tokens=8k"), 8000),
        ("VLLM", server("--max-num-batched-tokens", "8K"), 8192),
        ("VLLM", server("--max-num-batched-tokens=$(TOKENS)", TOKENS="2K"), 2048),
        ("VLLM", server(MAX_NUM_BATCHED_TOKENS="4096"), 4096),
        ("VLLM", server("--max-num-batched-tokens", "512", MAX_NUM_BATCHED_TOKENS="4096"), 512),
        ("VLLM", server("--max-num-batched-tokens=K"), None),
        ("VLLM", server("--max-num-batched-tokens", "1.5k"), None),
        ("VLLM", server("--max-num-seqs=64", "--long-prefill-token-threshold=256"), None),
        ("VLLM", server("--chunked-prefill-size", "512"), None),
        ("Generic", server("--chunked-prefill-size", "4096"), 4096),
        ("Generic", server("--chunked-prefill-size", "-1"), None),
        ("Generic", server("--chunked-prefill-size=-1", "--port=80"), None),
        ("Generic", server("--max_num_tokens", "8192"), 8192),
        ("Generic", server("--max-num-batched-tokens=1024"), 1024),
        ("Generic", server(MAX_PREFILL_TOKENS="300"), 300),
        ("Triton", server("--max-num-tokens", "8192"), None),
    ],
)
def test_the_prompt_tokens_of_a_step_are_read_as_the_runtime_names_them(
    runtime: str, containers: list[dict[str, Any]], tokens: int | None
) -> None:
    settings = PodSettings(prefill_tokens=PRESETS[runtime].prefill_tokens_names)
    assert view(record(containers=containers), now=NOW, settings=settings).prefill_tokens == tokens


def test_cap_comes_from_the_annotation_and_from_nothing_else_if_it_is_absent() -> None:
    containers = server("--max-num-seqs=64", "--max-queued-requests", "100")
    fresh = view(record(containers=containers), now=NOW, settings=VLLM)
    assert (fresh.cap, fresh.capacity, fresh.queue_bound) == (None, 64, 100)
    capped = record(containers=containers, annotations={"bandkeeper.dev/batch-cap": "32", "note": "text"})
    assert view(capped, now=NOW, settings=VLLM).cap == 32
    assert dict(capped.annotations) == {"bandkeeper.dev/batch-cap": 32}
    odd = record(annotations={"bandkeeper.dev/batch-cap": "3.5"})
    assert view(odd, now=NOW, settings=VLLM).cap is None


def test_cap_of_the_pod_template_is_read_in_its_own_container() -> None:
    containers = [
        {"name": "first", "args": ["--max-num-seqs=8"]},
        {"name": "server", "args": ["--max-num-seqs=64"]},
    ]
    found = record(containers=containers)

    def cap(container: str | None) -> int | None:
        return view(found, now=NOW, settings=PodSettings(cap=("--max-num-seqs",), container=container)).cap

    assert (cap("server"), cap("first"), cap("gone"), cap(None)) == (64, 8, None, 8)


def test_nothing_of_the_environment_is_kept_but_numbers() -> None:
    found = record(containers=server("--api-key", "s3cret", PASSWORD="s3cret", SEQS="64"))
    assert {name: dict(numbers) for name, numbers in found.numbers.by_container.items()} == {
        "proxy": {"--port": 80},
        "server": {"SEQS": 64},
    }


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ([{"limits": {"nvidia.com/gpu": "2", "memory": "1Gi"}}], 2.0),
        ([{"requests": {"nvidia.com/gpu": 1}}], 1.0),
        ([{"limits": {"nvidia.com/gpu": "1"}}, {"limits": {"nvidia.com/gpu": "4"}}, {}], 5.0),
        ([{"limits": {"nvidia.com/mig-3g.40gb": "2"}}], 6 / 7),
        ([{"limits": {"nvidia.com/mig-1g.10gb.me": "1"}}], 1 / 7),
        ([{"limits": {"cpu": "1"}}], None),
        ([{"limits": {"nvidia.com/gpu": "0"}}], None),
        ([{}], None),
    ],
)
def test_gpus_are_what_the_containers_ask_for(resources: list[dict[str, Any]], gpus: float | None) -> None:
    containers = [{"name": f"c{number}", "resources": given} for number, given in enumerate(resources)]
    pod = view(record(containers=containers), now=NOW, settings=PodSettings())
    assert pod.gpus == (None if gpus is None else pytest.approx(gpus))


@pytest.mark.parametrize(
    ("limits", "cores"),
    [(["2"], 2.0), (["500m", "1.5"], 2.0), (["2", None], None), ([None], None), (["1500000u"], 1.5), ([4], 4.0)],
)
def test_a_cpu_limit_is_that_of_all_containers_or_none(limits: list[Any], cores: float | None) -> None:
    containers = [
        {"name": f"c{number}", "resources": {"limits": {} if limit is None else {"cpu": limit}}}
        for number, limit in enumerate(limits)
    ]
    pod = view(record(containers=containers), now=NOW, settings=PodSettings())
    assert pod.cpu_limit == (None if cores is None else pytest.approx(cores))


@pytest.mark.parametrize(
    ("labels", "job", "trains"),
    [
        ({"batch.kubernetes.io/job-name": "train"}, "train", True),
        ({"training.kubeflow.org/job-name": "train"}, "train", True),
        ({"jobset.sigs.k8s.io/jobset-name": "train", "batch.kubernetes.io/job-name": "train-0"}, "train", True),
        ({"volcano.sh/job-name": "train"}, "train", True),
        ({"ray.io/originated-from-crd": "RayJob", "ray.io/originated-from-cr-name": "train"}, "train", True),
        ({"ray.io/originated-from-crd": "RayService", "ray.io/originated-from-cr-name": "chat"}, None, False),
        ({"leaderworkerset.sigs.k8s.io/group-key": "abc"}, "abc", False),
        ({"leaderworkerset.sigs.k8s.io/group-key": "abc", "batch.kubernetes.io/job-name": "train"}, "abc", True),
        ({}, None, False),
    ],
)
def test_a_rank_names_its_job_and_whether_that_trains(labels: dict[str, str], job: str | None, trains: bool) -> None:
    pod = view(record(labels=labels), now=NOW, settings=PodSettings())
    assert (pod.job, pod.trains) == (job, trains)


def test_pods_of_one_revision_share_what_they_have_in_common() -> None:
    one, two = (record(f"chat-{number}", containers=server("--max-num-seqs=64")) for number in range(2))
    assert one.labels is two.labels
    assert one.numbers is two.numbers


class Source:
    """The reflector's side of a PodStore."""

    def __init__(self, *records: PodRecord) -> None:
        self.objects: dict[Key, PodRecord] = {(found.namespace, found.name): found for found in records}
        self.synced, self.problem = True, ""
        self._callback: Any = None

    def subscribe(self, callback: Any) -> None:
        self._callback = callback

    def age_s(self) -> float:
        return 3.0

    def put(self, new: PodRecord) -> None:
        key = (new.namespace, new.name)
        old = self.objects.get(key)
        self.objects[key] = new
        self._callback(Change(key, old, new))

    def remove(self, key: Key) -> None:
        self._callback(Change(key, self.objects.pop(key), None))


def store_of(source: Source) -> PodStore:
    return PodStore(source)  # type: ignore[arg-type]


def names(store: PodStore, selector: str, namespace: str = "serving") -> list[str]:
    return [found.name for found in store.records(namespace, selector)]


def test_a_selection_follows_its_pods() -> None:
    source = Source(record("b"), record("a"), record("x", labels={"app": "other"}), record("c", namespace="else"))
    store = store_of(source)
    assert names(store, "app=chat") == ["a", "b"]
    source.put(record("d"))
    source.put(record("x"))  # its label changed to ours
    source.put(record("e", namespace="else"))
    assert names(store, "app=chat") == ["a", "b", "d", "x"]
    source.put(record("a", labels={"app": "other"}))
    source.remove(("serving", "b"))
    assert names(store, "app=chat") == ["d", "x"]
    assert names(store, "app in (other)") == ["a"]
    assert names(store, "app=chat", "else") == ["c", "e"]
    assert (store.synced, store.problem, store.age_s()) == (True, "", 3.0)


def test_an_unchanged_selection_is_the_same_tuple_and_is_not_rebuilt() -> None:
    source = Source(record("a"), record("x", labels={"app": "other"}))
    store = store_of(source)
    before = store.records("serving", "app=chat")
    source.put(record("x", labels={"app": "other"}, ready=False))
    assert store.records("serving", "app=chat") is before
    source.put(record("a", ready=False))
    assert store.records("serving", "app=chat") is not before
    assert store.pods("serving", "app=chat", now=NOW, settings=PodSettings())[0].state is PodState.PENDING


def test_a_selector_that_selects_nothing_in_particular_is_refused() -> None:
    with pytest.raises(SelectorError):
        store_of(Source(record("a"))).records("serving", "")


@pytest.mark.parametrize("seed", range(20))
def test_selections_always_equal_a_full_search(seed: int) -> None:
    chance = random.Random(seed)
    selectors = ["app=a", "app=b,tier=x", "tier in (x,y)", "!tier", "app=a,tier=y", "tier!=x"]
    source = Source()
    store = store_of(source)
    for step in range(200):
        labels = {"app": chance.choice("ab"), "tier": chance.choice("xyz")}
        if chance.random() < 0.2:
            del labels["tier"]
        name = f"pod-{chance.randrange(12)}"
        pod = raw_pod(name)
        pod["metadata"]["labels"] = labels
        if chance.random() < 0.3 and ("serving", name) in source.objects:
            source.remove(("serving", name))
        else:
            found = trim_pod(pod)
            assert found is not None
            source.put(found)
        selector = selectors[step % len(selectors)]
        wanted = {key[1] for key, pod in source.objects.items() if parse_selector(selector).matches(pod.labels)}
        assert names(store, selector) == sorted(wanted)


def test_selections_of_targets_that_are_gone_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandkeeper.kube.pods.MOST_SELECTIONS", 3)
    source = Source(record("a"))
    store = store_of(source)
    for number in range(10):
        assert names(store, f"app=chat,!canary-{number}") == ["a"]
    assert len(store._selections) <= 3
    source.put(record("b"))
    assert names(store, "app=chat,!canary-9") == ["a", "b"]


def test_nothing_is_left_of_namespaces_that_are_gone() -> None:
    source = Source()
    store = store_of(source)
    for number in range(3):
        pod = record(namespace=f"ci-{number}")
        source.put(pod)
        source.remove((pod.namespace, pod.name))
        assert names(store, "app=chat", f"ci-{number}") == []
    assert store._namespaces == {}
