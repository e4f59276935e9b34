"""vLLM's own server on 127.0.0.1, with the live cap in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster.loopback import fetch, free_ports
from tests.cluster.processes import Children
from tests.vllm.model import write_model

READY_TIMEOUT_S = 900.0  # the first start compiles thousands of files; 1 to 2 minutes on an idle machine
CAPACITY = 16
TOKEN_BUDGET = 1024
TOKEN = "a-token-for-tests"
SERVING = Path(__file__).parents[2] / "operator" / "bandkeeper" / "serving"


class Server:
    """One server, as a context manager; what it booted with is CAPACITY and TOKEN_BUDGET."""

    def __init__(self, python: Path, run_dir: Path) -> None:
        self.port, self.cap_port = free_ports(2)
        self.url, self.cap_url = (f"http://127.0.0.1:{port}" for port in (self.port, self.cap_port))
        self.cap_file, self.token_file = run_dir / "batch-cap", run_dir / "token"
        self.token_file.write_text(TOKEN)
        model = write_model(run_dir / "model")
        environment = {
            **os.environ,
            "PYTHONPATH": str(SERVING),
            "BANDKEEPER_CAP_FILE": str(self.cap_file),
            "BANDKEEPER_PREFILL_TOKENS_FILE": str(run_dir / "prefill-tokens"),
            "BANDKEEPER_CAP_LISTEN": f"127.0.0.1:{self.cap_port}",
            "BANDKEEPER_CAP_TOKEN_FILE": str(self.token_file),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",  # a core is left for the HTTP server and the clients
        }
        arguments = {
            "--model": model,
            "--served-model-name": "tiny",
            "--host": "127.0.0.1",
            "--port": self.port,
            "--load-format": "dummy",
            "--dtype": "float32",
            "--max-model-len": 1024,
            "--max-num-seqs": CAPACITY,
            "--max-num-batched-tokens": TOKEN_BUDGET,
            "--scheduler-cls": "vllm_cap.CapScheduler",
        }
        flags = ["--enforce-eager", "--enable-mfu-metrics", "--no-enable-prefix-caching"]
        words = [word for name, value in arguments.items() for word in (name, str(value))]
        self._children = Children(run_dir)
        self._child = self._children.start(
            "vllm",
            [python, "-m", "vllm.entrypoints.openai.api_server", *words, *flags],
            env=environment,
            cwd=run_dir,
        )

    def wait(self) -> None:
        """Until it answers."""
        self._child.wait_ready(lambda: fetch(f"{self.url}/health")[0] == 200, READY_TIMEOUT_S, every_s=0.5)

    def knobs(self) -> dict[str, Any]:
        """What the live cap says is in force."""
        status, body = fetch(f"{self.cap_url}/batch-cap", headers={"Authorization": f"Bearer {TOKEN}"})
        assert status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return answer

    def log(self) -> str:
        """All that the server wrote."""
        return self._child.log_path.read_text(errors="replace")

    def write_file(self, cap: int) -> None:
        """As the kubelet does: whole or not at all."""
        new = self.cap_file.with_suffix(".new")
        new.write_text(f"{cap}\n")
        new.replace(self.cap_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._children.close()
