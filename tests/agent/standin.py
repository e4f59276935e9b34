"""The stand-in for libnvidia-ml: compiled once a session, scripted by a dict of keys that nvml_standin.c explains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
H100 = "NVIDIA H100 80GB HBM3"
GIB = 2**30

Script = dict[str, object]


def uuid(number: int, kind: str = "GPU") -> str:
    """A UUID as NVML writes them."""
    return f"{kind}-{number:08x}-0000-4000-8000-{number:012x}"


def build(folder: Path) -> Path:
    """Compile the stand-in into `folder`; RuntimeError where there is no C compiler or it finds fault."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("no C compiler here: install gcc or clang, the agent is tested against a compiled stand-in")
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, "-o", str(library), str(HERE / "nvml_standin.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return library


def gpu(number: int, *, gpm: bool = True) -> Script:
    """A whole GPU at work; every value differs between GPUs, so that a mix-up shows."""
    of: Script = {
        "uuid": uuid(number),
        "name": H100,
        "minor": number,
        "utilization": f"{90 + number} {40 + number}",
        "memory": f"{80 * GIB} {GIB} {(20 - number) * GIB} {(59 + number) * GIB}",
        "power": 500_000 + number,
        "power_limit": 700_000,
        "energy": 123_456_000 + number,
        "sm_clock": 1755 + number,
        "memory_clock": 2619,
        "temperature": 50 + number,
        "reasons": 0,
        "ecc_corrected": 2 + number,
        "ecc_uncorrected": number,
        "processes": 1 + number,
        "mig": 0,
        "gpm": int(gpm),
        "pcie_sent": 1000 + number,
        "pcie_received": 2000 + number,
    }
    if gpm:
        values = {1: 97.5, 2: 80.25, 3: 31.5, 5: 42.75, 10: 61.5, 11: 0.25, 12: 5.5, 13: 1.75}
        of |= {f"gpm.{measure}": value + number for measure, value in values.items()}
        of |= {"gpm.20": 10.5 + number, "gpm.21": 20.5, "gpm.60": 30.5, "gpm.61": 40.5}
    return {f"gpu{number}.{key}": value for key, value in of.items()}


def mig(number: int, instances: Mapping[int, tuple[str, ...]]) -> Script:
    """What makes a GPU of `gpu` one with MIG on: by GPU instance the UUIDs of its MIG devices."""
    of: Script = {f"gpu{number}.mig": 1, f"gpu{number}.error.nvmlDeviceGetUtilizationRates": 3}
    place = 0
    for instance, uuids in instances.items():
        for one in uuids:
            of[f"gpu{number}.mig{place}"] = f"{instance} {one}"
            place += 1
        of |= {
            f"gpu{number}.gi{instance}.memory": f"{10 * GIB} 0 {(9 - instance) * GIB} {(1 + instance) * GIB}",
            f"gpu{number}.gi{instance}.processes": instance,
            **{f"gpu{number}.gi{instance}.gpm.{m}": 10 * instance + m for m in (1, 2, 3, 5, 10, 11, 12, 13)},
        }
    return of


class NVML:
    """A scripted driver in a folder: `env` makes a process load it, `set` changes what it answers, at once."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._file = folder / "script"
        self._script: Script = {}
        self._version = 0
        search = os.pathsep.join(filter(None, [str(library.parent), os.environ.get("LD_LIBRARY_PATH")]))
        self.env = {**os.environ, "LD_LIBRARY_PATH": search, "NVML_STANDIN": str(self._file)}
        self.set({"gpus": 0})

    def set(self, *changes: Mapping[str, object]) -> None:
        """Change keys; None takes one away."""
        for change in changes:
            self._script |= change
        lines = [f"{key} {value}\n" for key, value in self._script.items() if value is not None]
        self._version += 1
        new = self._file.with_suffix(".new")
        new.write_text("".join(lines))
        os.utime(new, ns=(self._version, self._version))  # the stand-in reads it anew when this changed
        new.replace(self._file)


class Passes:
    """A Sampler in a process of its own (which loads the stand-in), under a clock that only `step` moves."""

    def __init__(self, nvml: NVML) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.passes"],
            cwd=ROOT,
            env=nvml.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self, seconds: float = 1.0, times: int = 1) -> dict[str, Any]:
        """Let the time pass and make a pass, `times` over; the last frame, or {"replaced": why}."""
        into, out = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        answer = ""
        for _ in range(times):
            into.write(f"{seconds}\n")
            into.flush()
            answer = out.readline()
        frame: dict[str, Any] = json.loads(answer)
        return frame

    def close(self) -> int:
        """End it; its exit status."""
        cast(IO[str], self._process.stdin).close()
        status = self._process.wait(timeout=30)
        cast(IO[str], self._process.stdout).close()
        return status
