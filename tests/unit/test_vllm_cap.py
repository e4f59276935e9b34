"""vLLM's live cap beside a stand-in for vLLM's scheduler; tests/vllm has it in a real server."""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import bandkeeper.serving
from bandkeeper.api.v1alpha1 import AnnotationAdapter

FILE = Path(bandkeeper.serving.__file__).parent / "vllm_cap.py"
EXAMPLES = Path(__file__).parents[2] / "examples"
CAPACITY, BUDGET, BLOCK = 16, 8192, 16


class Scheduler:
    """What the live cap touches of vLLM's scheduler, and the rule by which that admits requests."""

    def __init__(self, vllm_config: Any = None, *, active: int = CAPACITY, engines: int = 1, **config: Any) -> None:
        self.max_num_running_reqs = CAPACITY
        self.max_num_active_reqs = active
        self.max_num_scheduled_tokens = BUDGET
        self.block_size = config.pop("block_size", BLOCK // 2)
        self.cache_config = SimpleNamespace(block_size=BLOCK)
        self.num_spec_tokens = 0
        self.running: list[str] = []
        self.parallel_config = SimpleNamespace(data_parallel_size=engines)
        options = {"enable_chunked_prefill": True, "disable_chunked_mm_input": False}
        self.scheduler_config = SimpleNamespace(**(options | config))
        self.is_shut = False

    def schedule(self, throttle_prefills: bool = False) -> int:
        while len(self.running) < self.max_num_active_reqs:
            self.running.append("request")
        return self.max_num_scheduled_tokens

    def shutdown(self) -> None:
        self.is_shut = True


class AsyncScheduler(Scheduler):
    pass


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The file as vLLM loads it, with vLLM's two classes stood in for."""
    stands_in: dict[str, dict[str, object]] = {
        "vllm.v1.core.sched.async_scheduler": {"AsyncScheduler": AsyncScheduler},
        "vllm.v1.core.sched.scheduler": {"Scheduler": Scheduler},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, members in stands_in.items():
            made = ModuleType(name)
            vars(made).update(members)
            patch.setitem(sys.modules, name, made)
        spec = importlib.util.spec_from_file_location("vllm_cap", FILE)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        yield loaded


class Server:
    """A booted scheduler with its files, its environment and its clock."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        self.module = module
        self.cap_file, self.prefill_file, self.token_file = (folder / name for name in ("cap", "prefill", "token"))
        self.environment = {
            module.CAP_FILE: str(self.cap_file),
            module.PREFILL_TOKENS_FILE: str(self.prefill_file),
        }
        self.now_s = 100.0
        self.live: Any = None

    def boot(self, kind: type[Scheduler] = Scheduler, **config: Any) -> Scheduler:
        self.scheduler = kind(**config)
        self.live = self.module.Live(self.scheduler, self.environment, lambda: self.now_s)
        return self.scheduler

    def step(self, after_s: float = 1.0) -> int:
        """One engine step, this much later: the cap in force."""
        self.now_s += after_s
        self.live.apply()
        self.scheduler.schedule()
        return self.scheduler.max_num_active_reqs

    def call(self, method: str, body: str | None = None, path: str = "/batch-cap", **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.live._server.server_address[1], timeout=10)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.fixture
def server(module: ModuleType, tmp_path: Path) -> Iterator[Server]:
    made = Server(module, tmp_path)
    yield made
    if made.live is not None:
        made.live.close()


@pytest.fixture
def listening(server: Server) -> Server:
    server.environment[server.module.LISTEN] = "127.0.0.1:0"
    server.boot()
    return server


# -- the file ----------------------------------------------------------------------------------------------------------


def test_without_a_file_the_server_runs_as_it_booted(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.boot(active=12)
    assert server.step() == 12
    assert server.scheduler.max_num_scheduled_tokens == BUDGET
    assert caplog.records == []


def test_a_cap_that_is_there_at_boot_counts_from_the_first_step(server: Server) -> None:
    server.cap_file.write_text("4\n")
    server.boot()
    assert server.step(after_s=0.0) == 4
    assert len(server.scheduler.running) == 4


def test_the_file_is_looked_at_once_a_second(server: Server) -> None:
    server.boot()
    server.cap_file.write_text("4")
    assert server.step(after_s=0.9) == CAPACITY
    assert server.step(after_s=0.1) == 4
    server.cap_file.write_text("8")
    assert server.step(after_s=0.9) == 4
    assert server.step(after_s=0.1) == 8


def test_lowering_lets_running_requests_finish(server: Server) -> None:
    server.boot()
    server.step()
    server.cap_file.write_text("4")
    server.step()
    assert len(server.scheduler.running) == CAPACITY
    del server.scheduler.running[3:]
    server.step()
    assert len(server.scheduler.running) == 4


@pytest.mark.parametrize("content", ["many", "0", "-3", "4.5", "4 8", "0x10", "9" * 65, "four\x00"])
def test_bad_content_keeps_the_last_value_and_is_logged_once(
    server: Server, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.cap_file.write_text("4")
    server.boot()
    server.cap_file.write_text(content)
    assert [server.step() for _ in range(3)] == [4, 4, 4]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "write a whole number from 1 to 16" in warning
    assert warning.endswith("it stays 4")
    server.cap_file.write_text("6")
    assert server.step() == 6


def test_more_than_the_server_booted_with_is_as_much_as_it_has(server: Server) -> None:
    server.cap_file.write_text("64")
    server.boot(active=8)
    assert server.step() == CAPACITY


def test_an_empty_file_asks_for_what_the_server_booted_with(server: Server) -> None:
    """A downward API volume shows an annotation that is not there as an empty file."""
    server.cap_file.write_text("")
    server.boot(active=12)
    assert server.step() == 12
    server.cap_file.write_text("4")
    assert server.step() == 4
    server.cap_file.write_text("")
    assert server.step() == 12


def test_a_file_that_goes_away_changes_nothing_and_is_said_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.cap_file.write_text("4")
    server.boot()
    server.cap_file.unlink()
    assert [server.step() for _ in range(3)] == [4, 4, 4]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"cap stays 4: [Errno 2] No such file or directory: '{server.cap_file}'"
    ]
    server.cap_file.write_text("4")
    assert server.step() == 4


# -- prefill tokens ----------------------------------------------------------------------------------------------------


def test_prefill_tokens_come_beside_a_token_of_each_running_request(server: Server) -> None:
    server.prefill_file.write_text("512")
    server.boot()
    server.step()
    assert server.scheduler.max_num_scheduled_tokens == 512  # nothing ran before the first step
    server.step()
    assert server.scheduler.max_num_scheduled_tokens == 512 + CAPACITY
    server.scheduler.num_spec_tokens = 3
    server.step()
    assert server.scheduler.max_num_scheduled_tokens == 512 + 4 * CAPACITY
    server.prefill_file.write_text("")
    server.step()
    assert server.scheduler.max_num_scheduled_tokens == BUDGET


@pytest.mark.parametrize(("content", "tokens"), [("99999", BUDGET), ("8190", BUDGET), (str(BLOCK - 1), BUDGET)])
def test_prefill_tokens_stay_between_a_block_and_the_booted_budget(server: Server, content: str, tokens: int) -> None:
    server.boot()
    server.step()
    server.prefill_file.write_text(content)
    server.step()
    assert server.scheduler.max_num_scheduled_tokens == tokens


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"enable_chunked_prefill": False}, "chunked prefill is off"),
        ({"disable_chunked_mm_input": True}, "--disable-chunked-mm-input is set"),
    ],
)
def test_prefill_tokens_are_left_alone_where_a_prompt_cannot_be_split(
    server: Server, config: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.prefill_file.write_text("512")
    server.cap_file.write_text("4")
    server.boot(**config)
    assert server.step() == 4
    assert server.scheduler.max_num_scheduled_tokens == BUDGET
    assert reason in caplog.text


# -- calls -------------------------------------------------------------------------------------------------------------


def test_nobody_listens_by_default(server: Server) -> None:
    server.boot()
    assert server.live._server is None


def test_a_call_reads_and_sets_both_knobs(listening: Server) -> None:
    booted = {"cap": 16, "capacity": 16, "prefillTokens": BUDGET, "running": 0}
    assert listening.call("GET") == (200, booted)
    assert listening.call("PUT", '{"cap": 4}') == (200, booted | {"cap": 4})
    assert listening.step(after_s=0.0) == 4
    now = {"cap": 6, "capacity": 16, "prefillTokens": 512, "running": 4}
    assert listening.call("POST", '{"cap": 6, "prefillTokens": 512}') == (200, now)
    assert listening.step(after_s=0.0) == 6
    assert listening.scheduler.max_num_scheduled_tokens == 516


def test_whichever_of_file_and_call_changed_last_counts(listening: Server) -> None:
    listening.cap_file.write_text("8")
    listening.step()
    listening.call("PUT", '{"cap": 4}')
    assert listening.step() == 4  # the file says 8 still, which is older
    listening.cap_file.write_text("6")
    assert listening.step() == 6
    listening.cap_file.write_text("8")
    listening.call("PUT", '{"cap": 4}')  # before the next look at the file
    assert listening.step() == 4


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "the body is not JSON"),
        ("<html>", "the body is not JSON"),
        ("4", "write an object with cap, prefillTokens or both"),
        ("{}", "write an object with cap, prefillTokens or both"),
        ('{"cap": 4, "replicas": 2}', "write an object with cap, prefillTokens or both"),
        ('{"cap": 0}', "cap is 0; write a whole number from 1 to 16"),
        ('{"cap": 17}', "cap is 17; write a whole number from 1 to 16"),
        ('{"cap": "4"}', 'cap is "4"; write a whole number from 1 to 16'),
        ('{"cap": true}', "cap is true; write a whole number from 1 to 16"),
        ('{"cap": null}', "cap is null; write a whole number from 1 to 16"),
        ('{"cap": [4]}', "cap is a list; write a whole number from 1 to 16"),
        ("[" * 4096, "the body is not JSON"),
        ('{"cap": 4, "prefillTokens": 1}', "prefillTokens is 1; write a whole number from 16 to 8192"),
    ],
)
def test_a_bad_call_gets_a_sentence_and_changes_nothing(listening: Server, body: str, says: str) -> None:
    status, answer = listening.call("PUT", body)
    assert status == 400
    assert says in answer["error"]
    assert listening.step() == CAPACITY


def test_other_paths_and_long_bodies_are_refused(listening: Server) -> None:
    assert listening.call("GET", path="/")[0] == 404
    assert listening.call("PUT", '{"cap": 4}', path="/batch-cap/x")[0] == 404
    assert listening.call("PUT", " " * 5000 + '{"cap": 4}')[0] == 413
    assert listening.step() == CAPACITY


def test_a_token_is_asked_for_and_read_anew(server: Server) -> None:
    server.environment |= {
        server.module.LISTEN: "127.0.0.1:0",
        server.module.TOKEN_FILE: str(server.token_file),
    }
    server.boot()
    assert server.call("GET")[0] == 503
    server.token_file.write_text("\n")
    assert server.call("GET", Authorization="Bearer ")[0] == 401
    server.token_file.write_text("s3cret\n")
    assert server.call("PUT", '{"cap": 4}')[0] == 401
    assert server.call("PUT", '{"cap": 4}', Authorization="Bearer wrong")[0] == 401
    assert server.step() == CAPACITY
    assert server.call("PUT", '{"cap": 4}', Authorization="Bearer s3cret")[0] == 200
    server.token_file.write_text("rotated")
    assert server.call("GET", Authorization="Bearer s3cret")[0] == 401


@pytest.mark.parametrize("address", ["8077", "127.0.0.1:http", "127.0.0.1", "127.0.0.1:"])
def test_an_address_that_is_none_ends_the_start(server: Server, address: str) -> None:
    server.environment[server.module.LISTEN] = address
    with pytest.raises(ValueError, match="write HOST:PORT, such as"):
        server.boot()


def test_several_engines_in_a_pod_take_the_file_only(server: Server) -> None:
    server.environment[server.module.LISTEN] = "127.0.0.1:0"
    with pytest.raises(ValueError, match="would reach one of this server's 2 engines only; use the file"):
        server.boot(engines=2)


def test_an_open_port_without_a_token_is_warned_of(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.environment[server.module.LISTEN] = "0.0.0.0:0"
    server.boot()
    assert "everyone who reaches 0.0.0.0:0 may set the batch cap" in caplog.text


# -- in vLLM -----------------------------------------------------------------------------------------------------------


def a_config(*, overlaps: bool, diffusion: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=overlaps),
        model_config=SimpleNamespace(is_diffusion=diffusion),
    )


@pytest.mark.parametrize("overlaps", [True, False])
def test_it_is_the_scheduler_that_vllm_would_take_with_the_cap_on_top(
    module: ModuleType, server: Server, overlaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    server.cap_file.write_text("4")
    scheduler = module.CapScheduler(vllm_config=a_config(overlaps=overlaps), block_size=BLOCK)
    assert isinstance(scheduler, AsyncScheduler) is overlaps
    assert isinstance(scheduler, Scheduler)
    assert scheduler.schedule(throttle_prefills=True) == BUDGET
    assert len(scheduler.running) == 4
    scheduler.shutdown()
    assert scheduler.is_shut


def test_a_model_with_a_scheduler_of_its_own_is_not_given_another(module: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="leave --scheduler-cls out"):
        module.CapScheduler(vllm_config=a_config(overlaps=True, diffusion=True))


def test_a_vllm_that_is_too_old_says_so(server: Server) -> None:
    class Old(Scheduler):
        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            del self.max_num_active_reqs

    with pytest.raises(RuntimeError, match=r"use vLLM 0\.32 or newer"):
        server.boot(Old)


def test_it_needs_nothing_but_vllm_and_the_standard_library() -> None:
    imported = {
        line.split()[1].split(".")[0] for line in FILE.read_text().splitlines() if line[:5] in ("from ", "impor")
    }
    assert imported - set(sys.stdlib_module_names) == {"vllm"}


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("file"), st.one_of(st.integers(-2, 40).map(str), st.sampled_from(["", "x", "1e1"]))),
        st.tuples(st.just("call"), st.integers(-2, 40)),
        st.tuples(st.just("finish"), st.integers(0, CAPACITY)),
        st.tuples(st.just("step"), st.sampled_from([0.0, 0.4, 1.0])),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(moves=MOVES)
def test_no_sequence_of_changes_admits_above_the_cap_or_the_capacity(
    module: ModuleType, tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, Any]]
) -> None:
    server = Server(module, tmp_path_factory.mktemp("knobs"))
    server.boot()
    before = 0
    act: dict[str, Callable[[Any], object]] = {
        "file": server.cap_file.write_text,
        "finish": lambda kept: server.scheduler.running.__delitem__(slice(kept, None)),
        "step": server.step,
    }
    for kind, value in moves:
        if kind == "call":
            try:
                server.live.put(json.dumps({"cap": value}).encode(), "a test")
            except module.KnobError:
                assert not 1 <= value <= CAPACITY
            else:
                assert server.live.cap.value == value
        else:
            act[kind](value)
        cap, running = server.live.cap.value, len(server.scheduler.running)
        assert 1 <= cap <= CAPACITY
        assert running <= max(before, cap)
        before = running


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_starts_the_server_as_the_file_expects_it(module: ModuleType) -> None:
    deployment = yaml.safe_load((EXAMPLES / "vllm" / "deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in server["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    (scheduler,) = [argument for argument in server["args"] if argument.startswith("--scheduler-cls=")]
    file, _, name = scheduler.removeprefix("--scheduler-cls=").partition(".")
    assert f"{file}.py" == FILE.name
    assert getattr(module, name) is module.CapScheduler
    assert volumes[mounts[environment["PYTHONPATH"]]]["configMap"]["name"] == "vllm-cap"

    cap_file = Path(module.DEFAULT_CAP_FILE)
    (item,) = volumes[mounts[str(cap_file.parent)]]["downwardAPI"]["items"]
    assert item["path"] == cap_file.name
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{AnnotationAdapter().key}']"

    policy = yaml.safe_load((EXAMPLES / "vllm-live-cap.yaml").read_text())["spec"]
    http = policy["batch"]["adapter"]["http"]
    assert environment[module.LISTEN] == f"0.0.0.0:{http['port']}"
    assert (http["path"], http["readBack"]["path"]) == (module.PATH, module.PATH)
    assert policy["targetRef"]["name"] == deployment["metadata"]["name"]
    assert str(Path(environment[module.TOKEN_FILE]).parent) in mounts


def test_the_page_names_every_setting_and_its_default(module: ModuleType) -> None:
    page = (EXAMPLES.parent / "docs" / "runtimes" / "vllm.md").read_text()
    tables = [line.split("|") for line in page.splitlines() if line.count("|") == 4]
    rows = {cells[1].strip(" `"): cells[2].strip(" `") for cells in tables}
    assert (
        rows.items()
        >= {
            module.CAP_FILE: module.DEFAULT_CAP_FILE,
            module.PREFILL_TOKENS_FILE: module.DEFAULT_PREFILL_TOKENS_FILE,
            module.LISTEN: "none: off",
            module.TOKEN_FILE: "none",
        }.items()
    )
