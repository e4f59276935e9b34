"""The lab as a user installs it: a fresh environment, no cluster, a report."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*command: str | Path, cwd: Path) -> str:
    run = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}"
    return run.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of an environment with `bandkeeper[lab]` built from the sources, and nothing else."""
    home = tmp_path_factory.mktemp("fresh")
    sources = home / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "operator", sources / "operator", ignore=shutil.ignore_patterns("__pycache__"))
    _run(sys.executable, "-m", "venv", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    uv = Path(sys.executable).parent / "uv"
    lock = ROOT / "requirements" / "dev.lock"
    _run(uv, "pip", "install", "--quiet", "--python", python, "--constraints", lock, f"{sources}[lab]", cwd=home)
    return python.parent


def test_a_fresh_install_simulates_without_a_cluster(installed: Path, tmp_path: Path) -> None:
    policy, report = ROOT / "examples" / "chat.yaml", tmp_path / "chat.html"
    said = _run(
        installed / "bandkeeper", "simulate", "--policy", policy, "--load", "ramp", "--report", report, cwd=tmp_path
    )
    assert "TimeToFirstToken p95 <= 500ms" in said
    assert said.rstrip().endswith(f"Report: {report}")
    assert "<svg" in report.read_text()
