"""Loopback plumbing for tests: free ports, plain HTTP requests that no proxy setting touches, and waiting."""

import random
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")

# Below the range from which Linux (32768 on) and macOS (49152 on) take the source ports of outgoing connections, so
# that a port found free now is still free a second later.
PORTS = range(20000, 32000)


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports that are free on 127.0.0.1."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} free TCP ports between {PORTS.start} and {PORTS.stop} on 127.0.0.1")


def fetch(
    url: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
    timeout_s: float = 5.0,
) -> tuple[int, bytes]:
    """One HTTP request: (status, body) whatever the status. Raises OSError when there is no answer."""
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))
    tls = [] if context is None else [urllib.request.HTTPSHandler(context=context)]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *tls)
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read()


def eventually(
    probe: Callable[[], T | None], *, timeout_s: float = 10.0, every_s: float = 0.1, what: str = "the condition"
) -> T:
    """Call `probe` until its result is true, and return that result.

    AssertionError raised by the probe counts as "not yet"; the last one is the cause of the TimeoutError.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        failure: AssertionError | None = None
        last: T | None = None
        try:
            last = probe()
        except AssertionError as not_yet:
            failure = not_yet
        if failure is None and last:
            return last
        if time.monotonic() > deadline:
            shown = "" if failure else f"; the last value was {str(last)[:400]!r}"
            raise TimeoutError(f"{what} did not come true within {timeout_s:g} s{shown}") from failure
        time.sleep(every_s)
