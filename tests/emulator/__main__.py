"""`python -m tests.emulator`: follows pods in a Kubernetes API and plays their servers in wall time."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from kubernetes.aio import client, config

from .config import ConfigError, EmulatorConfig, load_config
from .fleet import Fleet, PodInfo
from .pods import PodFollower
from .web import Face

log = logging.getLogger("emulator")


class Ticker:
    """Advances the fleet by wall time and measures how late and how costly that is."""

    def __init__(self, fleet: Fleet, tick_s: float) -> None:
        self.fleet = fleet
        self._tick_s = tick_s
        self._begin_s = time.monotonic()
        self._lag_s = 0.0
        self._worst_lag_s = 0.0
        self._spent_s = 0.0

    def now_s(self) -> float:
        return time.monotonic() - self._begin_s

    async def run(self) -> None:
        due_s = self.now_s()
        while True:
            due_s = max(due_s + self._tick_s, self.now_s())
            await asyncio.sleep(due_s - self.now_s())
            start_s = self.now_s()
            self.fleet.advance(start_s)
            self._spent_s += self.now_s() - start_s
            self._lag_s = self.now_s() - due_s
            self._worst_lag_s = max(self._worst_lag_s, self._lag_s)

    def health(self, followers: list[PodFollower]) -> dict[str, Any]:
        """`lag_s`: how far after its due time the last tick was done; `busy`: share of the time spent on playing."""
        return {
            "status": "ok" if all(one.synced for one in followers) else "syncing",
            "now_s": self.now_s(),
            "pods": sum(len(one.pods) for one in self.fleet.workloads.values()),
            "lag_s": self._lag_s,
            "worst_lag_s": self._worst_lag_s,
            "busy": self._spent_s / max(self.now_s(), 1e-9),
            "cpu_s": time.process_time(),
        }


async def serve(settings: EmulatorConfig, kubeconfig: Path, port: int, port_file: Path | None) -> None:
    """Runs until SIGINT or SIGTERM."""
    fleet = Fleet(settings)
    ticker = Ticker(fleet, settings.tick_s)
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    async with client.ApiClient(configuration) as api_client, asyncio.TaskGroup() as tasks:
        api = client.CoreV1Api(api_client)
        followers = [_follower(api, ticker, name) for name in fleet.workloads]
        face = Face(fleet, ticker.now_s, lambda: ticker.health(followers))
        runner = web.AppRunner(face.app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        bound = runner.addresses[0][1]
        if port_file is not None:
            await asyncio.to_thread(write_port, port_file, bound)
        print(f"emulator listens on http://127.0.0.1:{bound}", flush=True)
        running = [tasks.create_task(ticker.run()), *(tasks.create_task(one.run()) for one in followers)]
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
        for task in running:
            task.cancel()
        await runner.cleanup()


def write_port(path: Path, port: int) -> None:
    """The file is there at once as a whole, or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"{port}\n")
    part.replace(path)


def _follower(api: client.CoreV1Api, ticker: Ticker, name: str) -> PodFollower:
    def changed(pods: list[PodInfo]) -> None:
        ticker.fleet.set_pods(name, pods, ticker.now_s())

    return PodFollower(api, ticker.fleet.workloads[name].config, changed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML file with workloads; see README.md")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed and written to --port-file")
    parser.add_argument("--port-file", type=Path, help="file that gets the port once the server listens")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG if arguments.verbose else logging.WARNING)
    try:
        settings = load_config(arguments.config)
    except (ConfigError, OSError) as error:
        print(f"{arguments.config}:\n{error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve(settings, arguments.kubeconfig, arguments.port, arguments.port_file))
    except config.ConfigException as error:
        print(f"{arguments.kubeconfig}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
