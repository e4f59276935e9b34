"""One operator process under test: its configuration file, its log, its port."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import Child, Children
from tests.cluster.loopback import fetch

START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class OperatorProcess:
    """`bandkeeper run` as a child process."""

    name: str
    port: int
    child: Child
    children: Children

    @classmethod
    def start(
        cls,
        children: Children,
        name: str,
        *,
        config: Path,
        kubeconfig: Path,
        settings: Mapping[str, Any],
        env: Mapping[str, str],
    ) -> OperatorProcess:
        """Write `settings` to `config`, start, and wait until it listens; `ready` says when its stores are synced.

        Raises ProcessError.
        """
        config.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "bandkeeper", "run", "--config", str(config)]
        command += ["--kubeconfig", str(kubeconfig)]
        child = children.start(name, command, env=env)
        process = cls(name, int(settings["listen"].rpartition(":")[2]), child, children)
        child.wait_ready(lambda: process.get("/healthz")[0] == 200, START_TIMEOUT_S)
        return process

    @property
    def url(self) -> str:
        """Where /healthz, /readyz and /metrics are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        """Everything it has written to standard output and error, all starts under this name appended."""
        return self.child.log_path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.child.alive

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page; raises OSError when there is no answer."""
        status, body = fetch(f"{self.url}{path}")
        return status, body.decode()

    def ready(self) -> bool:
        """Whether /readyz says yes."""
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def log(self) -> str:
        """The log so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self, grace_s: float = 15.0) -> int:
        """SIGTERM, SIGKILL after the grace period; returns the exit status."""
        self.children.stop(self.child, grace_s=grace_s)
        return self.child.popen.returncode

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        self.children.stop(self.child, grace_s=0)
