"""`bandkeeper explain` as a person and as a script call it, and `simulate --what-if`."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bandkeeper.cli import explain, main
from bandkeeper.kube.client import NotFound
from bandkeeper.lab.whatif import WhatIf

ROOT = Path(__file__).parents[2]
CHAT = ROOT / "examples" / "chat.yaml"
SEEN = ROOT / "docs" / "samples" / "chat.yaml"
PAGE = (ROOT / "docs" / "explain.md").read_text()
BLOCKS = re.findall(r"^```(sh|text)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str | Path) -> int:
    return main(["explain", *map(str, arguments)])


def seen(**status: Any) -> dict[str, Any]:
    """The sample as the cluster prints it, with fields of its status changed; None takes one away."""
    document: dict[str, Any] = yaml.safe_load(SEEN.read_text())
    changed = document["status"] | status
    document["status"] = {name: value for name, value in changed.items() if value is not None}
    return document


def piped(monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(document)))


def test_sentences_come_first_and_then_the_grid(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--policy", SEEN, "--what-if", "load=2x") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Learned from 59 windows of chat's own load: a step takes 6.61 ms")
    assert "Bandkeeper would choose 12 replicas at batch cap 128, for 30.00 USD an hour, now 6." in out
    assert re.search(r"^12 +67% in band +30\.00 .*<- chosen$", out, re.MULTILINE)
    assert "SLO edge" in out
    assert err == ""


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (8192, "It reads 8,192 prompt tokens at most, as the pods' flags say."),
        (256, "It reads 256 prompt tokens at most, as the pods' flags say."),
        (
            None,
            "It reads 8,192 prompt tokens at most, or 2,048, or 1,024, or 512, or 256: no flag of the pods tells it, "
            "which counts as an error.",
        ),
    ],
)
def test_it_says_what_a_step_reads_and_who_tells(
    desk: Path, capsys: pytest.CaptureFixture[str], tokens: int | None, said: str
) -> None:
    model = seen()["status"]["model"] | {"prefillTokens": tokens}
    (desk / "p.yaml").write_text(yaml.safe_dump(seen(model={name: one for name, one in model.items() if one})))
    assert call("--policy", "p.yaml", "--json", "a.json") == 0
    assert said in " ".join(capsys.readouterr().out.split())
    found = WhatIf.model_validate_json((desk / "a.json").read_text())
    assert (found.model.prefill_tokens, found.model.prefill_told) == (tokens or 8192, tokens is not None)


@pytest.mark.parametrize(
    ("slo", "said", "tokens"),
    [
        ({"measured": "20ms", "lowerBound": "18ms", "upperBound": "22ms"}, "512", [512, 256]),
        ({"measured": "20ms"}, "512", [512]),
        ({"measured": "38ms", "lowerBound": "36ms", "upperBound": "42ms"}, "8,192", [8192, 2048]),
        ({"measured": "38ms", "lowerBound": "30ms", "upperBound": "+Inf"}, "8,192", [8192, 2048, 1024]),
        ({"measured": "20ms", "lowerBound": "1ms", "upperBound": "+Inf"}, "8,192", [8192, 2048, 1024, 512, 256]),
        ({"measured": "20ms", "upperBound": "soon"}, "8,192", [8192, 2048, 1024, 512, 256]),
        ({"measured": "20ms", "signal": "TimeToFirstToken"}, "8,192", [8192, 2048, 1024, 512, 256]),
        ({}, "8,192", [8192, 2048, 1024, 512, 256]),
    ],
)
def test_where_no_flag_tells_it_the_measured_token_gap_does(
    desk: Path, capsys: pytest.CaptureFixture[str], slo: dict[str, str], said: str, tokens: list[int]
) -> None:
    """At this load 37 ms are predicted with steps of 8,192 tokens, 39, 29 and 20 ms with the smaller ones."""
    model = seen()["status"]["model"]
    del model["prefillTokens"]
    told = {"signal": "InterTokenLatency", "percentile": 95, "threshold": "50ms", "state": "WithinSLO"} | slo
    (desk / "p.yaml").write_text(yaml.safe_dump(seen(model=model, slos=[told])))
    assert call("--policy", "p.yaml", "--what-if", "load=2x", "--json", "a.json") == 0
    assert f"It reads {said} prompt tokens at most" in " ".join(capsys.readouterr().out.split())
    found = WhatIf.model_validate_json((desk / "a.json").read_text()).model
    assert [found.prefill_tokens, *found.prefill_others] == tokens
    assert not found.prefill_told


def test_what_the_cluster_prints_can_be_piped_in(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = seen()
    document["metadata"]["managedFields"] = [{"manager": "bandkeeper", "operation": "Update"}]
    piped(monkeypatch, document)
    assert call("--policy", "-", "--what-if", "load=2x") == 0
    from_pipe = capsys.readouterr().out
    assert call("--policy", SEEN, "--what-if", "load=2x") == 0
    assert from_pipe == capsys.readouterr().out


def test_a_policy_is_read_from_the_cluster_by_its_name(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Client:
        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def get(self, path: str) -> dict[str, Any]:
            asked.append(path)
            if path.endswith("/chat"):
                return seen()
            raise NotFound(404, "NotFound", f'gpuscalingpolicies.bandkeeper.dev "{path.rpartition("/")[2]}" not found')

    async def connect(kubeconfig: str | None) -> Client:
        assert kubeconfig == "kc"
        return Client()

    monkeypatch.setattr("bandkeeper.kube.client.KubeClient.connect", connect)
    assert call("chat", "-n", "serving", "--kubeconfig", "kc") == 0
    assert asked == ["/apis/bandkeeper.dev/v1alpha1/namespaces/serving/gpuscalingpolicies/chat"]
    assert "Bandkeeper would choose 6 replicas" in capsys.readouterr().out
    assert call("chut", "--kubeconfig", "kc") == 2
    assert '"chut" not found' in capsys.readouterr().err


def test_without_a_cluster_a_server_of_the_lab_will_do(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--policy", CHAT, "--server", "llama-3.1-8b-h100", "--traffic", "40/s:1000:180")
    assert call(*arguments, "--what-if", "load=2x", "--json", "a.json") == 0
    assert "By the constants of llama-3.1-8b-h100, nothing was learned" in capsys.readouterr().out
    found = WhatIf.model_validate_json((desk / "a.json").read_text())
    assert found.then.requests_per_s == 80
    assert found.caps == [128]
    assert call("--policy", SEEN, "--server", "llama-3.1-70b-fp8-h100-tp4", "--json", "b.json") == 0
    other = WhatIf.model_validate_json((desk / "b.json").read_text())
    assert other.gpus_per_replica == 4
    assert other.now.requests_per_s == 82.48  # the traffic that was seen, on other servers


def test_machines_get_json(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--policy", SEEN, "--what-if", "load=3x,replicas=20", "--json", "-", "--report", "r.html") == 0
    out, err = capsys.readouterr()
    found = WhatIf.model_validate_json(out)
    assert (found.version, found.asked, found.asked_replicas, found.currency) == (1, "load=3x, replicas=20", 20, "USD")
    assert len(found.edges) == len(found.caps) == len(found.rows[0].cells)
    assert any(one.value is None for row in found.rows for cell in row.cells for one in cell.promises)  # no bound
    assert json.loads(out) == json.loads(json.dumps(json.loads(out), allow_nan=False))
    assert "Report: r.html" in err
    page = (desk / "r.html").read_text()
    assert page.count("<svg") == 1
    assert 'class="slo-edge"' in page
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_the_picture_is_a_png_where_one_asks_for_it(desk: Path) -> None:
    assert call("--policy", SEEN, "--report", "grid.png") == 0
    assert (desk / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_gpus_of_a_replica_are_as_seen_or_as_said(desk: Path) -> None:
    wasted = {"gpus": "24", "idleHeldPercent": 1}
    quality = {"class": "Efficient", "confidencePercent": 90, "wasted": wasted}
    (desk / "p.yaml").write_text(yaml.safe_dump(seen(quality=quality)))
    for more, gpus in (((), 4.0), (("--gpus", "8"), 8.0)):
        assert call("--policy", "p.yaml", "--json", "a.json", *more) == 0
        assert WhatIf.model_validate_json((desk / "a.json").read_text()).gpus_per_replica == gpus


def test_an_older_status_needs_to_be_told_the_traffic(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = seen()
    model = document["status"]["model"]
    for name in ("requestsPerSecond", "promptTokens", "outputTokens", "room", "margin", "errorPercent", "windows"):
        del model[name]
    (desk / "old.yaml").write_text(yaml.safe_dump(document))
    assert call("--policy", "old.yaml") == 2
    assert "--traffic 12/s:1000:180" in capsys.readouterr().err
    assert call("--policy", "old.yaml", "--traffic", "82/s:1161:211") == 0
    assert "LOW CONFIDENCE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"model": None}, "nothing was learned of chat yet"),
        ({"model": None, "conditions": None}, "kubectl get gsp chat -o yaml | bandkeeper explain --policy -"),
        ({"model": seen()["status"]["model"] | {"version": 99}}, "is of another version"),
    ],
)
def test_where_nothing_was_learned_it_says_what_to_do(
    desk: Path, capsys: pytest.CaptureFixture[str], status: dict[str, Any], sentence: str
) -> None:
    (desk / "p.yaml").write_text(yaml.safe_dump(seen(**status)))
    assert call("--policy", "p.yaml") == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert "--server PRESET --traffic RATE/s:PROMPT:OUTPUT" in err
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say which policy"),
        (["chat", "--policy", str(SEEN)], "say which policy"),
        (["--policy", "nowhere.yaml"], "cannot be read"),
        (["--policy", str(ROOT / "examples" / "batch-throughput.yaml")], "Triton batches dynamically"),
        (["--policy", str(SEEN), "--what-if", "load=40"], "write load=2x, or load=40/s"),
        (["--policy", str(SEEN), "--what-if", "lod=2x"], "did you mean load?"),
        (["--policy", str(SEEN), "--traffic", "12"], "is no traffic"),
        (["--policy", str(CHAT), "--server", "llama-3.1-8b-h100"], "needs to be told what comes"),
        (["--policy", str(CHAT), "--server", "resnet50-a100", "--traffic", "1/s:1:1"], "batches dynamically"),
        (["--policy", str(SEEN), "--server", "h200000"], "no server 'h200000'"),
        (["--policy", str(SEEN), "--report", "no/where.html"], "there is no directory no"),
        (["--policy", str(SEEN), "--json", "."], "is a directory"),
    ],
)
def test_bad_input_gets_a_sentence(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert "Traceback" not in err
    assert out == ""


# The page of the documentation.


def as_written(text: str) -> list[str]:
    """The words without the figures, which a better model moves a little."""
    return re.sub(r"[0-9][0-9.,]*|-+", " # ", text.replace("?", "")).split()


def test_the_page_shows_what_is_printed(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each block of output follows the command that prints it, and every command runs."""
    (desk / "docs").symlink_to(ROOT / "docs")
    (desk / "examples").symlink_to(ROOT / "examples")
    (desk / "build").mkdir()
    shown = 0
    for (kind, text), (then, printed) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if kind != "sh":
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["bandkeeper", "explain"] and "|" not in words:
                assert main(words[1:]) == 0
        out = capsys.readouterr().out
        if then == "text":
            assert as_written(out) == as_written(printed), "paste what the command prints into docs/explain.md"
            shown += 1
    assert shown >= 1


# After a run.


@pytest.fixture
def small(desk: Path) -> tuple[str, ...]:
    server = {"model": "small", "gpu": "test", "source": "test", "gpus": 2, "alpha_ms": 20, "beta_ms": 0.4}
    server |= {"delta_ms_per_token": 0.1, "kv_tokens": 200_000, "batch_max": 64, "cold_start": {"median_s": 30}}
    (desk / "server.yaml").write_text(yaml.safe_dump(server))
    loaded = ("--load", "steady:duration_s=300,level=2", "--warmup", "60", "--server", "server.yaml")
    return ("simulate", "--policy", str(SEEN), *loaded)


def test_a_run_answers_by_what_it_learned(
    desk: Path, capsys: pytest.CaptureFixture[str], small: tuple[str, ...]
) -> None:
    assert main([*small, "--what-if", "load=2x", "--report", "r.html"]) == 0
    out = capsys.readouterr().out
    assert out.index("GPU-hours") < out.index("Learned from") < out.index("<- chosen") < out.index("Report: r.html")
    assert "chat's load at the end of the run" in out
    assert "What if load=2x" in (desk / "r.html").read_text()
    chosen = re.search(r"would choose (\d+) replicas at batch cap 64, for ([0-9.]+) USD an hour", out)
    assert chosen is not None
    assert float(chosen[2]) == 2 * 2.5 * int(chosen[1])  # two GPUs each
    assert 4 / 0.7 <= int(chosen[1]) <= 11  # the work of about four, by what five minutes teach of promises


def test_the_runs_json_stays_as_it_is(desk: Path, capsys: pytest.CaptureFixture[str], small: tuple[str, ...]) -> None:
    assert main([*small, "--json", "-"]) == 0
    plain = capsys.readouterr().out
    assert main([*small, "--json", "-", "--what-if", "load=2x"]) == 0
    out, err = capsys.readouterr()
    assert out == plain
    assert "<- chosen" in err


def test_a_run_that_learned_nothing_says_so(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = ("--load", "steady:duration_s=120,level=1", "--warmup", "30", "--json", "r.json")
    batch = str(ROOT / "examples" / "batch-throughput.yaml")
    assert main(["simulate", "--policy", batch, *loaded, "--what-if", "load=2x"]) == 0
    assert "No what-if: the policy learned no step times" in capsys.readouterr().out


def test_a_run_refuses_what_it_cannot_ask(
    desk: Path, capsys: pytest.CaptureFixture[str], small: tuple[str, ...]
) -> None:
    assert main([*small, "--what-if", "load=fast"]) == 2
    assert "write load=2x, or load=40/s" in capsys.readouterr().err
    assert explain.ASK.startswith("load=2x")
