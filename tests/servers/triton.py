"""A real Triton Inference Server on 127.0.0.1, from the PyPI package nvidia-pytriton, with one model of Python code."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster.loopback import fetch, free_ports
from tests.cluster.processes import Child, Children

READY_TIMEOUT_S = 60.0
MODEL = "rows"
BODY = {"inputs": [{"name": "ROWS", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
"""One row for the model, in the words of the KServe protocol."""

CONFIG = """
name: "rows"
backend: "python"
max_batch_size: {max_batch_size}
input [{{ name: "ROWS", data_type: TYPE_FP32, dims: [1] }}]
output [{{ name: "SAME", data_type: TYPE_FP32, dims: [1] }}]
{more}
"""


class TritonServer:
    """One server, as a context manager; ports and model repository stay the same over `stop` and `start`.

    `more` stands in the model's config.pbtxt; `mode` is Triton's model control mode.
    """

    def __init__(
        self,
        environment: Path,
        run_dir: Path,
        *,
        max_batch_size: int = 2,
        more: str = "dynamic_batching {}",
        mode: str = "explicit",
        arguments: Sequence[str] = (),
    ) -> None:
        self.port, self.metrics_port = free_ports(2)
        self.url, self.metrics_url = (f"http://127.0.0.1:{port}" for port in (self.port, self.metrics_port))
        self.infer_url = f"{self.url}/v2/models/{MODEL}/infer"
        self._run_dir, self._environment = run_dir, environment
        self._arguments = [f"--model-control-mode={mode}", *([f"--load-model={MODEL}"] if mode == "explicit" else [])]
        self._arguments += arguments
        self._children = Children(run_dir)
        self._child: Child | None = None
        model = run_dir / "models" / MODEL
        (model / "1").mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("batch_model.py"), model / "1" / "model.py")
        (model / "config.pbtxt").write_text(CONFIG.format(max_batch_size=max_batch_size, more=more), encoding="utf-8")

    def start(self) -> None:
        """Start it and wait until it serves the model."""
        packages = next(self._environment.glob("lib/python3.*/site-packages"))
        home = packages / "pytriton" / "tritonserver"
        libraries = [packages / "nvidia_pytriton.libs", home / "lib", home / "external_libs"]
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(self._environment / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(packages),
            "LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), sysconfig.get_config_var("LIBDIR") or ""]),
        }
        command: list[str | Path] = [
            home / "bin" / "tritonserver",
            f"--model-repository={self._run_dir / 'models'}",
            f"--backend-directory={self._backends(home, packages.parent.name)}",
            "--http-address=127.0.0.1",
            f"--http-port={self.port}",
            "--allow-grpc=false",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            "--metrics-config=summary_latencies=true",
            *self._arguments,
        ]
        self._child = self._children.start("tritonserver", command, env=environment, cwd=self._run_dir)
        self._child.wait_ready(lambda: fetch(f"{self.url}/v2/models/{MODEL}/ready")[0] == 200, READY_TIMEOUT_S)

    def stop(self) -> None:
        """End it as a container is ended."""
        if self._child is not None:
            self._children.stop(self._child)

    def close(self) -> None:
        """End it for good."""
        self._children.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def config(self) -> dict[str, Any]:
        """The model's configuration in force, asked past the adapter."""
        found: dict[str, Any] = json.loads(fetch(f"{self.url}/v2/models/{MODEL}/config")[1])
        return found

    def metrics(self) -> str:
        """The page that Prometheus scrapes."""
        return fetch(f"{self.metrics_url}/metrics")[1].decode()

    def _backends(self, home: Path, python: str) -> Path:
        """The Python backend with the stub process of this Python beside it, in a folder that may be written to."""
        folder = self._run_dir / "backends"
        if not folder.exists():
            shutil.copytree(home / "backends" / "python", folder / "python")
            stub = home / "python_backend_stubs" / python.removeprefix("python") / "triton_python_backend_stub"
            shutil.copy(stub, folder / "python")
        return folder
