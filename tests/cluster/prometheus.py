"""A real Prometheus on 127.0.0.1, to scrape what a test serves."""

import base64
import json
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import yaml

from tests.cluster.build import find
from tests.cluster.loopback import fetch, free_ports
from tests.cluster.pki import KeyPair
from tests.cluster.processes import Child, Children

READY_TIMEOUT_S = 30.0

# The one user of a Prometheus with basic authentication; its web configuration holds the bcrypt hash of the password.
USER = "reader"
PASSWORD = "a-password-for-tests"
PASSWORD_HASH = "$2b$04$RmL3OSCgp7/XNBFc.IQs1utq5gC7nnPyxQI.26Otb.uIXoIqB1urS"


class PrometheusError(RuntimeError):
    """The configuration is wrong, or a query was refused; the message is the program's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """How Prometheus is reached.

    server: its certificate, trusted through `ca_file`; without it plain HTTP. client_ca: clients must show a
    certificate signed by it, and our own queries show `client`. basic_auth: as USER with PASSWORD.
    """

    server: KeyPair | None = None
    ca_file: Path | None = None
    client_ca: Path | None = None
    client: KeyPair | None = None
    basic_auth: bool = False

    def document(self) -> dict[str, Any]:
        """The content of Prometheus's web configuration file."""
        document: dict[str, Any] = {}
        if self.server is not None:
            tls = {"cert_file": str(self.server.certificate), "key_file": str(self.server.key)}
            if self.client_ca is not None:
                tls |= {"client_ca_file": str(self.client_ca), "client_auth_type": "RequireAndVerifyClientCert"}
            document["tls_server_config"] = tls
        if self.basic_auth:
            document["basic_auth_users"] = {USER: PASSWORD_HASH}
        return document

    def context(self) -> ssl.SSLContext | None:
        """What our own requests need for TLS."""
        if self.server is None:
            return None
        context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        if self.client is not None:
            context.load_cert_chain(self.client.certificate, self.client.key)
        return context

    def headers(self) -> dict[str, str]:
        """What our own requests need for basic authentication."""
        if not self.basic_auth:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}


class Prometheus:
    """One Prometheus server, as a context manager; port and data stay the same over `stop`, `kill` and `restart`."""

    def __init__(self, run_dir: Path, *, extra_args: Sequence[str], web: WebConfig) -> None:
        self.run_dir = run_dir
        (self.port,) = free_ports(1)
        self.url = f"{'https' if web.server else 'http'}://127.0.0.1:{self.port}"
        self._binaries = find("prometheus")
        self._extra_args = extra_args
        self._web = web
        self._context = web.context()
        self._children = Children(run_dir)
        self._child: Child | None = None

    @classmethod
    def start(
        cls,
        run_dir: Path,
        *,
        scrape_interval: str = "1s",
        http_sd_urls: Sequence[str] = (),
        scrape_configs: Sequence[Mapping[str, Any]] = (),
        rule_files: Sequence[Path] = (),
        extra_args: Sequence[str] = (),
        web_config: WebConfig | None = None,
    ) -> Self:
        """Write and check a configuration in `run_dir`, start, and wait until ready.

        Each of `http_sd_urls` becomes a job that asks that address for its targets every scrape interval;
        `scrape_configs` are jobs in Prometheus's own words. The lookback of 5 minutes is Prometheus's own, unless
        `extra_args` has `--query.lookback-delta=…`. Raises PrometheusError when promtool rejects the configuration.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        discovered = [
            {"job_name": f"http-sd-{i}", "http_sd_configs": [{"url": url, "refresh_interval": scrape_interval}]}
            for i, url in enumerate(http_sd_urls)
        ]
        config = {
            "global": {"scrape_interval": scrape_interval, "evaluation_interval": scrape_interval},
            "rule_files": [str(path.absolute()) for path in rule_files],
            "scrape_configs": [*discovered, *map(dict, scrape_configs)],
        }
        (run_dir / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        prometheus = cls(run_dir, extra_args=extra_args, web=web_config or WebConfig())
        try:
            prometheus._check("config", "prometheus.yml")
            prometheus.restart()
        except BaseException:
            prometheus.close()
            raise
        return prometheus

    def restart(self) -> None:
        """Start it again, on the same port and data, ending it before when it runs; returns when it answers."""
        self.stop()
        web_file = self.run_dir / "web.yml"
        web_file.write_text(yaml.safe_dump(self._web.document()), encoding="utf-8")
        self._check("web-config", web_file.name)
        self._child = self._children.start(
            "prometheus",
            [
                self._binaries / "prometheus",
                f"--config.file={self.run_dir / 'prometheus.yml'}",
                f"--web.config.file={web_file}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                f"--storage.tsdb.path={self.run_dir / 'data'}",
                "--storage.tsdb.retention.time=6h",
                "--scrape.discovery-reload-interval=1s",  # new targets are scraped after 1 s, not 5 s
                *self._extra_args,
            ],
            cwd=self.run_dir,
        )
        self._child.wait_ready(lambda: self._fetch("/-/ready")[0] == 200, READY_TIMEOUT_S)

    def stop(self) -> None:
        """End it orderly; the data stays."""
        if self._child is not None:
            self._children.stop(self._child, grace_s=20)

    def kill(self) -> None:
        """End it at once, as a crash would; the data on disk stays."""
        if self._child is not None:
            self._children.stop(self._child, grace_s=0)

    def close(self) -> None:
        """End it for good. The files in `run_dir` are the caller's to remove. May be called twice."""
        self._children.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id, None when it does not run."""
        return self._child.pid if self._child is not None and self._child.alive else None

    def query(self, promql: str, *, at_s: float | None = None) -> list[dict[str, Any]]:
        """An instant query; the result is as Prometheus gives it: `[{"metric": {...}, "value": [time, "text"]}, …]`.

        A scalar comes as one sample without labels. Raises PrometheusError with Prometheus's own message.
        """
        parameters = {"query": promql, **({} if at_s is None else {"time": str(at_s)})}
        status, body = self._fetch("/api/v1/query?" + urlencode(parameters))
        if status not in (200, 400, 422, 503):
            raise PrometheusError(f"{promql}: HTTP status {status}: {body.decode(errors='replace')[:400]}")
        answer = json.loads(body)
        if answer["status"] != "success":
            raise PrometheusError(f"{promql}: {answer['error']}")
        data = answer["data"]
        return [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]

    def value(self, promql: str) -> float | None:
        """The value of a query that gives one sample; None when it gives none. Raises PrometheusError when more."""
        result = self.query(promql)
        if len(result) > 1:
            raise PrometheusError(f"{promql}: one sample expected, got {len(result)}")
        return float(result[0]["value"][1]) if result else None

    def _fetch(self, path: str) -> tuple[int, bytes]:
        return fetch(f"{self.url}{path}", headers=self._web.headers(), context=self._context)

    def _check(self, what: str, file_name: str) -> None:
        command = [str(self._binaries / "promtool"), "check", what, file_name]
        done = subprocess.run(command, cwd=self.run_dir, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PrometheusError(f"promtool does not accept {file_name}: {(done.stdout + done.stderr).strip()}")
