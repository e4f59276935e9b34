"""What the node agent costs: 8 GPUs of the stand-in at one pass a second, scraped every 15 s, with a kubelet to ask.

python tests/bench/bench_agent.py [SECONDS] [GPUS]
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script's own folder is all that Python looks in

from tests.agent import standin
from tests.agent.kubelet import Kubelet

SCRAPE_S = 15.0
CPU_BUDGET = 0.01
MEMORY_BUDGET_MB = 80.0


def cpu_s(pid: int) -> float:
    """Processor time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The most memory it was resident in."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def measure(folder: Path, seconds: float, gpus: int, *, gpm: bool) -> tuple[float, float]:
    """Share of one core, and MB; the figures of a warm agent."""
    nvml = standin.NVML(standin.build(folder), folder)
    nvml.set({"gpus": gpus}, *(standin.gpu(number, gpm=gpm) for number in range(gpus)))
    kubelet = Kubelet(folder / "kubelet.sock")
    kubelet.pods = {f"serving/chat-{number}/server": (standin.uuid(number),) for number in range(gpus)}
    kubelet.start()
    port = free_port()
    command = [sys.executable, "-m", "bandkeeper", "agent", "--listen", f"127.0.0.1:{port}", "--log-level", "warning"]
    agent = subprocess.Popen([*command, "--pod-resources", str(kubelet.socket)], env=nvml.env)
    try:
        time.sleep(5.0)
        begun_s, begun_cpu_s = time.monotonic(), cpu_s(agent.pid)
        while time.monotonic() < begun_s + seconds:
            time.sleep(min(SCRAPE_S, seconds))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                assert answer.read().count(b"bandkeeper_gpu_busy_ratio{") == gpus
        return (cpu_s(agent.pid) - begun_cpu_s) / (time.monotonic() - begun_s), peak_mb(agent.pid)
    finally:
        agent.terminate()
        agent.wait()
        kubelet.stop()


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    gpus = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    over = False
    for gpm in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            share, mb = measure(Path(folder), seconds, gpus, gpm=gpm)
        over = over or share > CPU_BUDGET or mb > MEMORY_BUDGET_MB
        print(f"{gpus} GPUs {'with' if gpm else 'without'} GPM: {share:.2%} of a core, {mb:.0f} MB at most")
    print(f"budget: {CPU_BUDGET:.0%} of a core, {MEMORY_BUDGET_MB:.0f} MB; the driver's own share is not in it")
    if over:
        raise SystemExit("over the budget")


if __name__ == "__main__":
    main()
