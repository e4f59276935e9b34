"""`bandkeeper simulate` as a person and as a script call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bandkeeper.actuate.annotation import Annotation
from bandkeeper.actuate.config_map import ConfigMap
from bandkeeper.actuate.http import HTTP
from bandkeeper.actuate.pod_template import PodTemplate
from bandkeeper.api.v1alpha1 import AdapterType
from bandkeeper.cli import inputs, main, simulate
from bandkeeper.decide.policy import Batching
from bandkeeper.lab.result import Result
from bandkeeper.lab.server import DynamicServer, load, presets
from bandkeeper.runtime.settings import Prometheus, Settings

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = EXAMPLES / "chat.yaml"
SMALL = "steady:duration_s=180,level=1"
SERVER = """
model: small
gpu: test
source: test
alpha_ms: 20
beta_ms: 0.4
delta_ms_per_token: 0.1
kv_tokens: 200000
batch_max: 64
cold_start: {median_s: 30}
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a server file."""
    (tmp_path / "server.yaml").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str | Path, policy: Path = CHAT, loaded: str = SMALL) -> int:
    given = ["simulate", "--policy", str(policy), "--server", "server.yaml", "--warmup", "60", *map(str, arguments)]
    if "--trace" not in given:
        given += ["--load", loaded]
    return main(given)


def a_policy_file(desk: Path, **changes: Any) -> Path:
    document = yaml.safe_load(CHAT.read_text())
    document["spec"].update(changes)
    document["spec"] = {name: value for name, value in document["spec"].items() if value is not None}
    path = desk / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_run_ends_in_a_table_and_a_report(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["Policy", "chat,", "LatencySensitive,", "1", "to", "16", "replicas"]
    assert any("TimeToFirstToken p95 <= 500ms" in line and line.endswith("kept") for line in lines)
    assert any(line.startswith("GPU-hours") for line in lines)
    assert any(line.startswith("Held for     work ") and "each rule alone: " in line for line in lines)
    assert lines[-1] == "Report: bandkeeper-report.html"
    assert (desk / "bandkeeper-report.html").read_text().lstrip().lower().startswith("<!doctype html")
    assert err == ""


def test_machines_get_json(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--json", "run.json") == 0
    assert not (desk / "bandkeeper-report.html").exists()  # what a script did not ask for it does not get
    result = Result.model_validate_json((desk / "run.json").read_text())
    assert (result.policy, result.server, result.seed, result.warmup_s) == ("chat", "server.yaml", 1, 60.0)
    capsys.readouterr()
    assert call("--json", "-", "--report", "r.html") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["gpu_hours"] == pytest.approx(result.gpu_hours)
    assert out == (desk / "run.json").read_text()
    assert "Report: r.html" in err
    assert (desk / "r.html").exists()


def test_the_arguments_reach_the_run(desk: Path) -> None:
    assert call("--start", "3", "--seed", "7", "--period", "5", "--rate-scale", "2", "--json", "a.json") == 0
    found = Result.model_validate_json((desk / "a.json").read_text())
    assert (found.start_replicas, found.seed) == (3, 7)
    assert any("rate scaled by 2" in note for note in found.notes)


def test_a_trace_is_a_load_too(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{number * 0.5},200,50\n" for number in range(400))
    (desk / "trace.csv").write_text("timestamp,prompt_tokens,output_tokens\n" + rows + "oops,1,1\n")
    assert call("--trace", "trace.csv", "--json", "t.json") == 2
    assert "402" in capsys.readouterr().err  # the row
    assert call("--trace", "trace.csv", "--skip-bad", "--json", "t.json") == 0
    assert json.loads((desk / "t.json").read_text())["requests"]["arrived"] > 200


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policy", "nowhere.yaml"], "cannot be read"),
        (["--server", "h200000"], "no server 'h200000'"),
        (["--server", "resnet50-a100"], "does not do the continuous batching of the policy's runtime VLLM"),
        (["--load", "rampp"], "did you mean ramp?"),
        (["--load", "steady:duration_s=30"], "not longer than the warm-up"),
        (["--start", "17"], "write 1 to 16"),
        (["--report", "no/where.html"], "there is no directory no"),
        (["--json", "."], "is a directory"),
    ],
)
def test_bad_input_gets_a_sentence(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert call(*arguments, loaded=arguments[1] if arguments[0] == "--load" else SMALL) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rate-scale", "0"], "must be a number above 0"),
        (["--warmup", "-1"], "must be seconds, 0 or more"),
        (["--warmup", "soon"], "must be seconds, 0 or more"),
        (["--start", "0"], "must be a whole number, 1 or more"),
        (["--seed", "1.5"], "must be a whole number, 0 or more"),
        (["--period", "nan"], "must be a number above 0"),
        (["--trace", "x", "--load", "y"], "not allowed with"),
    ],
)
def test_bad_arguments_are_refused(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as exit_of:
        call(*arguments)
    assert exit_of.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_terminal_gets_a_bar_and_a_pipe_does_not(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert call("--json", "-") == 0
    out, err = capsys.readouterr()
    assert "Simulating" in err
    assert json.loads(out)["version"] == 1


def test_an_interrupt_ends_it_without_a_trace(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(inputs, "read", interrupted)
    assert call() == 130


# Policies.


def test_an_invalid_policy_is_refused_as_kubectl_would(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = a_policy_file(desk, replicas={"min": 0, "max": 4}, objective="Fast")
    assert call(policy=path) == 2
    err = capsys.readouterr().err
    assert 'the GPUScalingPolicy "chat" is invalid:' in err
    assert "\n* spec.objective: must be one of LatencySensitive" in err
    assert "\n* spec.replicas.min: must be at least 1" in err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"runtime": "VLM"}, "runtime 'VLM' is unknown: write VLLM"),
        ({"slos": [{"signal": "Smoothness", "percentile": 95, "threshold": "1s"}]}, "Smoothness"),
    ],
)
def test_a_policy_that_the_operator_could_not_carry_out_is_refused(
    desk: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    assert call(policy=a_policy_file(desk, **changes)) == 2
    err = capsys.readouterr().err
    assert "cannot be carried out" in err
    assert sentence in err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it is empty"),
        ("a: [", "is not YAML"),
        ("kind: Deployment\n---\nkind: Service\n", "has no GPUScalingPolicy (it holds Deployment, Service)"),
        ("- 1\n", "has no GPUScalingPolicy"),
        ("kind: GPUScalingPolicy\nmetadata: 7\n", "is invalid"),
    ],
)
def test_a_file_without_a_policy_says_what_it_has(
    desk: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    path = desk / "other.yaml"
    path.write_text(text)
    assert call(policy=path) == 2
    assert sentence in capsys.readouterr().err


def test_the_policy_is_found_among_other_documents(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = CHAT.read_text()
    path = desk / "many.yaml"
    path.write_text(f"kind: Service\n---\n{document}\n---\n{document.replace('name: chat,', 'name: other,')}")
    assert call("--json", "r.json", policy=path) == 0
    assert "has 2 policies; this is about the first one" in capsys.readouterr().err
    assert json.loads((desk / "r.json").read_text())["policy"] == "chat"
    listed = desk / "list.yaml"
    listed.write_text(yaml.safe_dump({"kind": "List", "items": [yaml.safe_load(document)]}))
    assert inputs.read_policy(listed).name == "chat"


def test_a_policy_that_only_recommends_is_carried_out_here(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--json", "r.json", policy=EXAMPLES / "balanced.yaml") == 0
    assert "mode: Recommend" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_has_a_default_server_that_fits(path: Path) -> None:
    found = inputs.read_policy(path)
    name, server, remarks = inputs._server(None, found)
    assert (found.policy.batching is Batching.DYNAMIC) == isinstance(server, DynamicServer)
    assert name in remarks[0] or name.partition(" ")[0] in remarks[0]
    if found.policy.batch is not None:
        assert server.cap_delay_s >= found.policy.batch.expected_delay_s


def test_the_table_of_adapters_is_what_the_adapters_say() -> None:
    assert {
        AdapterType.ANNOTATION: (Annotation.cost_class, Annotation.expected_delay_s),
        AdapterType.POD_TEMPLATE: (PodTemplate.cost_class, PodTemplate.expected_delay_s),
        AdapterType.HTTP: (HTTP.cost_class, HTTP.expected_delay_s),
        AdapterType.CONFIG_MAP: (ConfigMap.cost_class, ConfigMap.expected_delay_s),
    } == inputs.ADAPTERS
    assert set(inputs.ADAPTERS) == set(AdapterType)


def test_a_policy_is_resolved_with_the_operators_own_defaults() -> None:
    policy = inputs.read_policy(CHAT).policy
    assert policy.restart_hold_s == Settings.model_fields["restart_hold"].default
    assert policy.rate_window_s == Prometheus.model_fields["rate_window"].default
    assert Settings.model_fields["period"].default == simulate.PERIOD_S
    assert set(inputs.DEFAULT_SERVERS.values()) <= set(presets())
    assert load("reference").batch_max == 64


# Installation.

_WITHOUT_THE_LAB = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"numpy", "numba", "matplotlib", "rich"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from bandkeeper.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def without_the_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WITHOUT_THE_LAB, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_missing_extra_is_named() -> None:
    done = without_the_lab("simulate", "--policy", str(CHAT), "--load", "ramp")
    assert done.returncode == 2
    assert done.stderr == "bandkeeper: the lab is not installed: pip install 'bandkeeper[lab]'\n"


def test_the_operator_needs_nothing_of_the_lab(tmp_path: Path) -> None:
    done = without_the_lab("run", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_the_report_is_a_picture_where_one_asks_for_png(desk: Path) -> None:
    assert call("--report", "run.png") == 0
    assert (desk / "run.png").read_bytes().startswith(b"\x89PNG")
