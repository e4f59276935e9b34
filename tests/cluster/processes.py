"""Child processes with a log each, that never outlive this process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

GUARD = Path(__file__).with_name("guard.py")


class ProcessError(RuntimeError):
    """A child process could not be started, ended early or did not become ready; the message has its last log lines."""


@dataclass(slots=True, kw_only=True)
class Child:
    """One running or ended child process, the leader of its own process group."""

    name: str
    argv: Sequence[str]
    log_path: Path
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def tail(self, lines: int = 25) -> str:
        """The last lines of the log, each cut to 400 characters."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""
        return "\n".join(line[:400] for line in text.splitlines()[-lines:])

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait_ready(self, probe: Callable[[], bool], timeout_s: float, *, every_s: float = 0.05) -> None:
        """Wait until `probe` is true; it may raise OSError meanwhile.

        Raises ProcessError when the process ends or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError):
                if probe():
                    return
            if not self.alive:
                raise ProcessError(f"{self.name} ended with status {self.popen.returncode}. {self._last_words()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} was not ready after {timeout_s:g} s. {self._last_words()}")
            time.sleep(every_s)

    def _last_words(self) -> str:
        return f"The end of its log {self.log_path}:\n{self.tail()}"


class Children:
    """The child processes of one run directory; a guard process ends them when this process dies without saying so.

    With `remove` the guard removes the run directory then, too.
    """

    def __init__(self, run_dir: Path, *, remove: bool = False) -> None:
        self.log_dir = run_dir / "logs"
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._running: dict[int, Child] = {}
        # A session of its own: Ctrl-C reaches the parent alone, which then ends the children in order.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), *([str(run_dir)] if remove else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Start a process in its own group; its output is appended to logs/NAME.log in the run directory.

        Environment and working directory are ours unless given.
        """
        log_path = self.log_dir / f"{name}.log"
        words = [str(word) for word in argv]
        with log_path.open("ab") as log:
            popen = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        child = Child(name=name, argv=words, log_path=log_path, popen=popen)
        self._running[child.pid] = child
        self._tell_guard("+", child.pid)
        return child

    def stop(self, child: Child, *, grace_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after the grace period; 0 kills at once. Returns when the process is gone."""
        if child.pid not in self._running:
            return
        if grace_s > 0:
            child.signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.popen.wait(grace_s)
        child.signal_group(signal.SIGKILL)
        child.popen.wait()
        del self._running[child.pid]
        self._tell_guard("-", child.pid)

    def dead(self) -> list[Child]:
        """Processes that have ended though nobody stopped them."""
        return [child for child in self._running.values() if not child.alive]

    def pids(self) -> dict[str, int]:
        """The running processes, by name."""
        return {child.name: child.pid for child in self._running.values()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything that still runs, newest first, and let the guard go. May be called twice."""
        for child in reversed(list(self._running.values())):
            self.stop(child, grace_s=0)
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
            self._guard.wait()

    def _tell_guard(self, sign: str, pid: int) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{sign}{pid}\n".encode())
        self._guard.stdin.flush()
