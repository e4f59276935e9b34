"""`python -m tests.demo.preview`: a simulated report at once, while the control plane's programs are being built."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

POLICY = Path("examples/chat.yaml")
REPORT = Path("build/demo/simulated.html")


def main() -> int:
    """Returns the exit status of the first of the two that failed, 0 where none did."""
    began_s = time.monotonic()
    build = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "build"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    simulated = threading.Event()
    relay = threading.Thread(target=_relay, args=(build, simulated))
    relay.start()
    try:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        print(f"==> Simulating {POLICY} under a ramp; the control plane's programs are built meanwhile", flush=True)
        command = [sys.executable, "-m", "bandkeeper", "simulate", "--policy", str(POLICY), "--load", "ramp"]
        status = subprocess.run([*command, "--report", str(REPORT)], check=False).returncode
        if status == 0:
            print(f"==> Simulated report after {time.monotonic() - began_s:.0f} s: {REPORT}", flush=True)
    finally:
        simulated.set()
        relay.join()
    return build.wait() or status


def _relay(build: subprocess.Popen[str], simulated: threading.Event) -> None:
    """Print what the build says, once the simulation has had the screen."""
    assert build.stdout is not None
    for line in build.stdout:
        simulated.wait()
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
