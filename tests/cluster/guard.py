"""Watches over one parent: when the parent is gone, whatever ended it, its child processes go too.

Run as a script; an argument is a directory to remove then as well. The parent holds our standard input open and writes
"+PID" and "-PID" lines; the end of that input is the death of the parent. Standard library only: it has to start fast.
"""

import contextlib
import os
import shutil
import signal
import sys
import time


def main(directory: str | None) -> None:
    """Follow the parent's lines on standard input until they end, then clean up what is left."""
    groups: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            groups.add(pid)
        else:
            groups.discard(pid)
    for pid in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    if groups and directory:  # an orderly parent has ended its children and decided about the directory itself
        time.sleep(0.2)  # a process being killed may still write
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
