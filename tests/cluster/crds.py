"""The CRDs that KServe, KubeRay and LeaderWorkerSet publish, taken out of their Go modules: programs/crds pins these.

The files are used as they are: a conversion webhook, which runs nowhere here, is added by some installers only.
"""

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from tests.cluster.build import HERE, BuildError, cached, find_go, go_environment, say

PINS = HERE / "programs" / "crds"
FILES = {
    "github.com/kserve/kserve": "config/crd/full/serving.kserve.io_inferenceservices.yaml",
    "github.com/ray-project/kuberay/ray-operator": "config/crd/bases/ray.io_rayservices.yaml",
    "sigs.k8s.io/lws": "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",
}
"""Module to file. KServe's is the full one: its minimal one leaves all of `spec` open."""


def find_crds() -> Path:
    """The folder that holds the CRDs and nothing else, fetched the first time. Raises BuildError."""
    digest = hashlib.sha256()
    for part in ((PINS / "go.mod").read_bytes(), (PINS / "go.sum").read_bytes(), repr(FILES).encode()):
        digest.update(hashlib.sha256(part).digest())
    return cached(f"crds-{digest.hexdigest()[:16]}", _fetch)


def _fetch(folder: Path) -> None:
    """Go checks the modules against go.sum; they are 66 MB to fetch and 0.5 GB unpacked, so only the CRDs are kept."""
    say("fetching the CRDs of KServe, KubeRay and LeaderWorkerSet: 66 MB, 0.5 GB of disk meanwhile, this once")
    started = time.monotonic()
    modules = folder / "modules"
    _download(modules)
    for module, path in FILES.items():
        found = list(modules.glob(f"{module}@*/{path}"))
        if len(found) != 1:
            raise BuildError(
                f"{module} has no {path} in the version that {PINS / 'go.mod'} names; change FILES in crds.py"
            )
        shutil.copyfile(found[0], folder / found[0].name)
    shutil.rmtree(modules)
    say(f"fetched the CRDs in {time.monotonic() - started:.0f} s")


def _download(modules: Path) -> None:
    """The pinned modules, without what they depend on."""
    go, _ = find_go()
    command = [str(go), "mod", "download", "-modcacherw"]  # else Go makes folders that cannot be removed
    environment = {**go_environment(), "GOMODCACHE": str(modules)}
    done = subprocess.run(command, cwd=PINS, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(
            "The Go modules with the CRDs could not be fetched. Check the network and GOPROXY, and the disk. "
            f"`go mod download` says:\n{done.stderr.strip()}"
        )
