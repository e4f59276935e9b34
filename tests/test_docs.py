"""Every command in README and docs runs: the `sh` blocks of a page in order, on a control plane of its own.

`make` targets are only checked to exist (`make -n`), because some of them are this very test run. What a command prints
stands in `text` blocks and is not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import ControlPlane
from tests.cluster.tools import find_tools

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("README.md")])
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("make ", "docker ", "pip install ")  # judged by tests of their own
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def commands(page: Path) -> list[str]:
    """The commands of a page's `sh` blocks; comments are dropped, continued lines joined."""
    lines = [line for block in BLOCK.findall(page.read_text()) for line in block.replace("\\\n", " ").splitlines()]
    return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


def named(page: Path) -> str:
    """The page's path, for test ids."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """A page named in another exists."""
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("command", sorted({c for page in PAGES for c in commands(page) if c.startswith("make ")}))
def test_make_targets_exist(command: str) -> None:
    run = subprocess.run(["bash", "-c", f"{command} --dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", sorted({c for page in PAGES for c in commands(page) if c.startswith("docker ")}))
def test_image_commands_run(command: str) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker daemon here: the image commands of the docs were not run")
    if command.startswith("docker push"):
        pytest.skip("the registry in the docs is an example: nothing was pushed")
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.cluster
@pytest.mark.usefixtures("control_plane")  # its programs are built by then
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(not c.startswith(ELSEWHERE) for c in commands(page))], ids=named
)
def test_commands_run(page: Path) -> None:
    tools = find_tools()
    programs = [Path(sys.executable).parent, tools.kubectl.parent, tools.helm.parent]
    with ControlPlane.start() as cluster:
        environment = {
            **os.environ,
            "KUBECONFIG": str(cluster.kubeconfig),
            "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        }
        for command in commands(page):
            if command.startswith(ELSEWHERE):
                continue
            run = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
