"""A real Ray cluster of one node on 127.0.0.1 with Ray Serve, whose dashboard wants a token."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster.loopback import eventually, fetch, free_ports
from tests.cluster.processes import Children

READY_TIMEOUT_S = 240.0
APPLICATION, DEPLOYMENT = "embed", "Embedder"
PATH = "/api/serve/applications/"


class RayServer:
    """One cluster, as a context manager. Its applications are in `ray_batches.py`."""

    def __init__(self, environment: Path, run_dir: Path) -> None:
        self.port, self.serve_port, *self._ports = free_ports(9)
        self.dashboard, self.url = f"127.0.0.1:{self.port}", f"http://127.0.0.1:{self.serve_port}/"
        self.token_file = run_dir / "token"
        self.token_file.write_text(secrets.token_hex(32))
        self._environment, self._run_dir = environment, run_dir
        self._children = Children(run_dir)
        self._temp_dir = tempfile.mkdtemp(prefix="ray-")  # its sockets' paths must be short

    def start(self) -> None:
        """Start it and wait until its dashboard answers."""
        gcs, agent, agent_grpc, metrics, client, node, objects = self._ports
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),  # of the applications
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": f"{READY_TIMEOUT_S:.0f}",
        }
        command: list[str | Path] = [
            self._environment / "bin" / "python",
            *("-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
            f"--temp-dir={self._temp_dir}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.port}",
            f"--port={gcs}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}",  # not one that Ray gives to workers
            f"--ray-client-server-port={client}",
            f"--node-manager-port={node}",
            f"--object-manager-port={objects}",
            "--num-cpus=1",
            f"--object-store-memory={100 * 1024 * 1024}",
        ]
        child = self._children.start("ray", command, env=environment, cwd=self._run_dir)
        child.wait_ready(lambda: self._ask("GET")[0] == 200, READY_TIMEOUT_S, every_s=0.25)

    def close(self) -> None:
        """End it for good."""
        self._children.close()
        shutil.rmtree(self._temp_dir, ignore_errors=True)

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

    def deploy(self, max_batch_size: int, *, replicas: int = 1) -> None:
        """Both applications, and wait until they run."""
        user_config = {"wait_s": 0.02, "max_batch_size": max_batch_size}
        deployment = {"name": DEPLOYMENT, "num_replicas": replicas, "user_config": user_config}
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.serve_port, "keep_alive_timeout_s": 77},
            "applications": [
                {
                    "name": APPLICATION,
                    "route_prefix": "/",
                    "import_path": "ray_batches:app",
                    "runtime_env": {"env_vars": {"KEPT": "1"}},
                    "deployments": [deployment],
                },
                {"name": "other", "route_prefix": "/other", "import_path": "ray_batches:other"},
            ],
        }
        status, said = self._ask("PUT", config)
        assert status == 200, said
        eventually(self._runs, timeout_s=READY_TIMEOUT_S, every_s=0.25, what="the applications run")

    def details(self) -> dict[str, Any]:
        """What the dashboard tells, asked past the adapter."""
        found: dict[str, Any] = json.loads(self._ask("GET")[1])
        return found

    def deployment(self) -> dict[str, Any]:
        """The batching deployment as the dashboard tells it."""
        found: dict[str, Any] = self.details()["applications"][APPLICATION]["deployments"][DEPLOYMENT]
        return found

    def configs(self) -> dict[str, Any]:
        """The applications' configs by name, as they were put last."""
        return {name: one["deployed_app_config"] for name, one in self.details()["applications"].items()}

    def _runs(self) -> bool:
        found = self.details()["applications"]
        return len(found) == 2 and all(one["status"] == "RUNNING" for one in found.values())

    def _ask(self, method: str, config: dict[str, Any] | None = None) -> tuple[int, bytes]:
        return fetch(
            f"http://{self.dashboard}{PATH}",
            method=method,
            body=None if config is None else json.dumps(config).encode(),
            headers={"Authorization": f"Bearer {self.token_file.read_text()}", "Content-Type": "application/json"},
            timeout_s=30.0,
        )
