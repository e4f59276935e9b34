"""A batch cap that moves while vLLM runs, from a file or by a call.

This one file needs nothing but vLLM: mount or copy it to where the server's Python finds it, and start the server with
`--scheduler-cls vllm_cap.CapScheduler`. Its settings are environment variables; docs/runtimes/vllm.md has them all.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

CAP_FILE = "BANDKEEPER_CAP_FILE"
PREFILL_TOKENS_FILE = "BANDKEEPER_PREFILL_TOKENS_FILE"
LISTEN = "BANDKEEPER_CAP_LISTEN"
TOKEN_FILE = "BANDKEEPER_CAP_TOKEN_FILE"
DEFAULT_CAP_FILE = "/etc/bandkeeper/batch-cap"
DEFAULT_PREFILL_TOKENS_FILE = "/etc/bandkeeper/prefill-tokens"
PATH = "/batch-cap"
READ_EVERY_S = 1.0
CALL_TIMEOUT_S = 5.0
LONGEST_FILE = 64
LONGEST_BODY = 4096

_log = logging.getLogger("vllm.bandkeeper")  # below vLLM's own logger, which has the handlers


class KnobError(ValueError):
    """A value that is not taken; the text says which ones are."""


class Knob:
    """A whole number that a file and calls may set; whichever changed last counts.

    `fixed` says why it cannot be moved in this server; "" where it can.
    """

    def __init__(self, name: str, file: Path, *, booted: int, least: int, most: int, fixed: str = "") -> None:
        self.name = name
        self.value = booted
        self._file = file
        self._booted = booted
        self._least = least
        self._most = most
        self._fixed = fixed
        self._content: bytes | None = None  # when last looked at; None: there was no file

    def check(self, wanted: object) -> int:
        """The number itself. Raises KnobError."""
        if self._fixed:
            raise KnobError(f"{self.name} cannot be set: {self._fixed}")
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not self._least <= wanted <= self._most:
            said = f"a {type(wanted).__name__}" if isinstance(wanted, dict | list) else json.dumps(wanted)[:40]
            raise KnobError(
                f"{self.name} is {said}; write a whole number from {self._least} to {self._most}, "
                "which is what this server booted with"
            )
        return wanted

    def take(self, value: int, by: str) -> None:
        """Set it to a checked value."""
        if value != self.value:
            _log.info("%s %d -> %d, by %s", self.name, self.value, value, by)
            self.value = value

    def read(self) -> None:
        """Take what the file says, if that changed: the number, the most that is possible, or as booted if empty."""
        try:
            with self._file.open("rb") as file:
                content = file.read(LONGEST_FILE + 1)
        except OSError as error:
            if self._content is not None:
                _log.warning("%s stays %d: %s", self.name, self.value, error)
                self._content = None
            return
        if content == self._content:
            return
        self._content = content
        try:
            self.take(self._said(content.strip()), str(self._file))
        except KnobError as error:
            _log.warning("%s: %s; it stays %d", self._file, error, self.value)

    def _said(self, text: bytes) -> int:
        if not text:
            return self._booted
        wanted = int(text) if text.isdigit() and len(text) <= LONGEST_FILE else text.decode(errors="replace")
        if isinstance(wanted, int) and wanted > self._most:  # one ConfigMap may serve pods of different capacities
            wanted = self._most
        return self.check(wanted)


class Live:
    """The knobs of one scheduler, and who may turn them."""

    def __init__(
        self,
        scheduler: Any,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_fit(scheduler)
        self._scheduler = scheduler
        self._clock = clock
        self._lock = threading.Lock()
        self._due_s = clock()
        self._budget: int = scheduler.max_num_scheduled_tokens
        self.cap = Knob(
            "cap",
            Path(environment.get(CAP_FILE) or DEFAULT_CAP_FILE),
            booted=scheduler.max_num_active_reqs,
            least=1,
            most=scheduler.max_num_running_reqs,
        )
        self.prefill_tokens = Knob(
            "prefillTokens",
            Path(environment.get(PREFILL_TOKENS_FILE) or DEFAULT_PREFILL_TOKENS_FILE),
            booted=self._budget,
            least=min(max(scheduler.block_size, scheduler.cache_config.block_size), self._budget),
            most=self._budget,
            fixed=_why_fixed(scheduler),
        )
        self._knobs = (self.cap, self.prefill_tokens)
        self._refresh()
        self._server = _listen(self, environment)

    def apply(self) -> None:
        """Before each step: the knobs as they stand. Running requests finish; only admission is held back."""
        self._refresh()
        scheduler = self._scheduler
        scheduler.max_num_active_reqs = self.cap.value
        # Running requests come first in the budget: without a part of their own they would starve.
        decoding = len(scheduler.running) * (1 + scheduler.num_spec_tokens)
        scheduler.max_num_scheduled_tokens = min(self._budget, self.prefill_tokens.value + decoding)

    def document(self) -> dict[str, int]:
        """What is in force."""
        self._refresh()
        scheduler = self._scheduler
        return {
            "cap": self.cap.value,
            "capacity": scheduler.max_num_running_reqs,
            "prefillTokens": self.prefill_tokens.value,
            "running": len(scheduler.running),
        }

    def put(self, body: bytes, by: str) -> None:
        """Set what `body` names: all of it or nothing. Raises KnobError."""
        try:
            wanted = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise KnobError(f'the body is not JSON ({error}); write {{"cap": 8}}') from error
        if not isinstance(wanted, dict) or not wanted or not wanted.keys() <= {knob.name for knob in self._knobs}:
            raise KnobError('write an object with cap, prefillTokens or both, such as {"cap": 8}')
        with self._lock:
            for knob in self._knobs:
                knob.read()  # what the file said before the call is older than the call
            checked = [(knob, knob.check(wanted[knob.name])) for knob in self._knobs if knob.name in wanted]
            for knob, value in checked:
                knob.take(value, by)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._due_s:
            return
        with self._lock:
            self._due_s = now + READ_EVERY_S
            for knob in self._knobs:
                knob.read()


class CapScheduler:
    """The scheduler that this server would have, with a live cap: what --scheduler-cls names."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        if vllm_config.model_config.is_diffusion:
            raise RuntimeError("a diffusion model has a scheduler of its own, without a cap: leave --scheduler-cls out")
        overlaps = vllm_config.scheduler_config.async_scheduling
        return (_AsyncCapScheduler if overlaps else _SyncCapScheduler)(vllm_config, *args, **kwargs)


class _AsyncCapScheduler(AsyncScheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._live = Live(self)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._live.apply()
        return super().schedule(*args, **kwargs)

    def shutdown(self) -> None:
        self._live.close()
        super().shutdown()


class _SyncCapScheduler(Scheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._live = Live(self)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._live.apply()
        return super().schedule(*args, **kwargs)

    def shutdown(self) -> None:
        self._live.close()
        super().shutdown()


def _check_fit(scheduler: Any) -> None:
    if not hasattr(scheduler, "max_num_active_reqs"):
        raise RuntimeError(
            "this vLLM's scheduler has no max_num_active_reqs, which the live cap sets: "
            "use vLLM 0.32 or newer, or leave --scheduler-cls out"
        )


def _why_fixed(scheduler: Any) -> str:
    """A budget that is less than what may not be split would leave a request waiting for ever."""
    config = scheduler.scheduler_config
    if not config.enable_chunked_prefill:
        return "chunked prefill is off, so each prompt needs a whole step"
    if config.disable_chunked_mm_input:
        return "--disable-chunked-mm-input is set, so each image needs a whole step"
    return ""


def _listen(live: Live, environment: Mapping[str, str]) -> _Server | None:
    """Answer calls where the environment says; nowhere by default. Raises ValueError and OSError."""
    address = environment.get(LISTEN, "")
    if not address:
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"{LISTEN} is {address!r}; write HOST:PORT, such as 127.0.0.1:8077 or 0.0.0.0:8077")
    engines = live._scheduler.parallel_config.data_parallel_size
    if engines > 1:
        raise ValueError(
            f"{LISTEN} is set, but a call would reach one of this server's {engines} engines only; use the file"
        )
    host = host.strip("[]")
    token_file = environment.get(TOKEN_FILE, "")
    if not token_file and host not in ("127.0.0.1", "::1", "localhost"):
        _log.warning("everyone who reaches %s may set the batch cap; %s names a file with a token", address, TOKEN_FILE)
    server = _Server(host, int(port), live, Path(token_file) if token_file else None)
    threading.Thread(target=server.serve_forever, args=(0.1,), name="bandkeeper-cap", daemon=True).start()
    _log.info("The batch cap can be read and set at http://%s%s", address, PATH)
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, live: Live, token_file: Path | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.live = live
        self.token_file = token_file
        super().__init__((host, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CALL_TIMEOUT_S

    def do_GET(self) -> None:
        if self._may():
            self._answer(200, self.server.live.document())

    def do_PUT(self) -> None:
        if not self._may():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST_BODY:
            self._answer(413, {"error": f"send a body of at most {LONGEST_BODY} bytes with its Content-Length"})
            return
        try:
            self.server.live.put(self.rfile.read(int(length)), f"a call from {self.client_address[0]}")
        except KnobError as error:
            self._answer(400, {"error": str(error)})
        else:
            self._answer(200, self.server.live.document())

    do_POST = do_PUT  # noqa: N815

    def _may(self) -> bool:
        """Whether the call is for us and allowed; it is answered where not."""
        if self.path != PATH:
            self._answer(404, {"error": f"there is nothing here but {PATH}"})
            return False
        if self.server.token_file is None:
            return True
        try:
            token = self.server.token_file.read_bytes().strip()  # a Secret's content changes
        except OSError as error:
            self._answer(503, {"error": f"the token cannot be read: {error}"})
            return False
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if token and hmac.compare_digest(given, b"Bearer " + token):
            return True
        self._answer(401, {"error": "the header Authorization: Bearer TOKEN is missing or wrong"})
        return False

    def _answer(self, status: int, document: Mapping[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Changes are logged where they are made."""
