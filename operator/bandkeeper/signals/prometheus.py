"""One Prometheus server behind one async call: bounded in time, bytes and threads, asked once and never redirected."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from prometheus_api_client import PrometheusConnect
from requests.auth import AuthBase, _basic_auth_str
from urllib3.util.retry import Retry

from bandkeeper.signals import answer
from bandkeeper.signals.answer import Answer

ANSWER_MOST_BYTES = 8 * 1024 * 1024
_CONNECT_MOST_S = 3.0
_PIECE_BYTES = 65_536
_LEAST_S = 0.05  # with less time left a request is not begun
_parsing = threading.Lock()  # one thread at a time: each more would keep the event loop waiting for the interpreter
T = TypeVar("T")
_GRACE_S = 0.25  # lets the thread's own, more exact error win over the waiter's


class ErrorKind(StrEnum):
    """Why a query gave no answer."""

    UNREACHABLE = "Unreachable"
    UNAUTHORIZED = "Unauthorized"
    BAD_QUERY = "BadQuery"
    TOO_LARGE = "TooLarge"
    TIMEOUT = "Timeout"
    MALFORMED = "Malformed"
    SERVER_ERROR = "ServerError"


class PrometheusError(Exception):
    """A query without an answer; the text is a sentence that says what to do."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusServer:
    """Where a Prometheus is and how to log in. Files are read again when they change.

    Attributes
    ----------
    ca_file
        Trusted instead of the system's authorities, whatever REQUESTS_CA_BUNDLE says.
    headers
        Sent with every request, such as a tenant's `X-Scope-OrgID`.
    timeout_s
        Longest wait for one answer, queueing included.

    Raises ValueError where the URL cannot be used.
    """

    name: str
    url: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    bearer_token_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    insecure_skip_verify: bool = False
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if sentence := url_problem(self.url):
            raise ValueError(f"Prometheus {self.name}: {sentence}")

    def __str__(self) -> str:
        return f"Prometheus {self.name} ({self.url[:80]})"


def url_problem(url: str) -> str:
    """What is wrong with a server's URL, "" when nothing is."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        return f"{url!r} is not a URL: write http://HOST:PORT or https://HOST:PORT, with a path if it has one"
    if "@" in parts.netloc:
        return "a user name and password in the URL would stand in logs: write username and passwordFile instead"
    if parts.query or parts.fragment:
        return "the URL must end before ? and #: write only scheme, host, port and path"
    return ""


class PrometheusReader:
    """Queries of one server, `workers` at a time, in threads of its own."""

    def __init__(self, server: PrometheusServer, *, workers: int = 4) -> None:
        self.server = server
        self._connect = PrometheusConnect(
            url=server.url.rstrip("/"),
            session=_Session(server),
            retry=Retry(total=0),
            auth=_Login(server),
            method="POST",
        )
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=f"prometheus-{server.name}")
        if server.insecure_skip_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # a person asked for it

    async def query(self, promql: str, at_s: float | None = None) -> Answer:
        """Evaluate `promql` at `at_s` (epoch seconds), by default at the server's own present time.

        Raises
        ------
        PrometheusError
            For everything that can go wrong, within `timeout_s` and a quarter of a second.
        """
        return await self.read(promql, Answer.whole, at_s)

    async def read(self, promql: str, take: Callable[[Answer], T], at_s: float | None = None) -> T:
        """Like `query`, but what `take` makes of the answer; it runs in a thread while the answer is being parsed.

        What `take` itself raises is passed on.
        """
        deadline_s = time.monotonic() + self.server.timeout_s
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.server.timeout_s + _GRACE_S):
                return await loop.run_in_executor(self._executor, self._read, promql, take, at_s, deadline_s)
        except TimeoutError as error:
            raise _too_late(self.server) from error

    def close(self) -> None:
        """Drop what is waiting and the connections; a query under way ends by its own timeout."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._connect.close()

    def _read(self, promql: str, take: Callable[[Answer], T], at_s: float | None, deadline_s: float) -> T:
        left_s = deadline_s - time.monotonic()
        if left_s < _LEAST_S:
            raise _too_late(self.server)
        params = {"timeout": f"{0.9 * left_s:.3f}"}
        if at_s is not None:
            params["time"] = f"{at_s:.3f}"
        body: bytes = self._connect.custom_query(promql, params=params, timeout=left_s)
        try:
            with _parsing:
                return take(answer.parse(body))
        except answer.RangeError as error:
            raise PrometheusError(
                ErrorKind.BAD_QUERY,
                f"{self.server}: the query gives a {error}: it must give one value per series, without [range]",
            ) from error
        except answer.MalformedError as error:
            what = "a web page, perhaps a login," if body.lstrip()[:1] == b"<" else "something else"
            raise PrometheusError(
                ErrorKind.MALFORMED,
                f"{self.server}: answers with {what} instead of Prometheus' JSON: check the URL and its path, or give "
                "credentials",
            ) from error


class _Login(AuthBase):
    """The Authorization header. It stands in for `requests`' own, which would send what ~/.netrc holds."""

    def __init__(self, server: PrometheusServer) -> None:
        self._server = server
        self._files: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        server = self._server
        if server.bearer_token_file:
            request.headers["Authorization"] = f"Bearer {self._read(server.bearer_token_file)}"
        elif server.username is not None:
            password = self._read(server.password_file) if server.password_file else ""
            request.headers["Authorization"] = _basic_auth_str(server.username, password)
        return request

    def _read(self, path: Path) -> str:
        try:
            stat = path.stat()
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            known = self._files.get(path)
            if known is None or known[0] != version:
                known = self._files[path] = (version, path.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise PrometheusError(
                ErrorKind.UNAUTHORIZED, f"{self._server}: {path} cannot be read ({error}): mount the secret there"
            ) from error
        return known[1]


class _Reply(requests.Response):
    """An answer's bytes in the shape that PrometheusConnect takes apart."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.status_code = 200
        self._body = body

    def json(self, **_: Any) -> Any:
        return {"data": {"result": self._body}}


class _Session(requests.Session):
    """Sends the query in the body, reads a bounded answer before a deadline, makes every failure a sentence."""

    def __init__(self, server: PrometheusServer) -> None:
        super().__init__()
        self._server = server
        self.verify = str(server.ca_file) if server.ca_file else not server.insecure_skip_verify
        if server.cert_file:
            self.cert = (str(server.cert_file), str(server.key_file)) if server.key_file else str(server.cert_file)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.headers.update({"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "bandkeeper"})
        self.headers.update(server.headers)

    def request(  # type: ignore[override]  # the one way in which PrometheusConnect calls it
        self, method: str, url: str, *, params: Mapping[str, str], timeout: float, **options: Any
    ) -> requests.Response:
        deadline_s = time.monotonic() + timeout
        waits_s = (min(_CONNECT_MOST_S, timeout), timeout)
        try:
            with super().request(
                method, url, data=params, timeout=waits_s, stream=True, allow_redirects=False, **options
            ) as response:
                body = self._body(response, deadline_s)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise _too_late(self._server) from error
        except requests.exceptions.SSLError as error:
            raise self._error(
                ErrorKind.UNREACHABLE, f"TLS fails ({_cause(error)}): check caFile, certFile, keyFile and the host name"
            ) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
            raise self._error(
                ErrorKind.UNREACHABLE,
                f"cannot be reached ({_cause(error)}): check that it runs, its URL and network policies",
            ) from error
        except OSError as error:  # requests looks for the files itself
            raise self._error(
                ErrorKind.UNREACHABLE, f"{str(error)[:200]}: check caFile, certFile and keyFile"
            ) from error
        if response.status_code != 200:
            raise self._refusal(response, body)
        return _Reply(body)

    def _body(self, response: requests.Response, deadline_s: float) -> bytes:
        pieces, size = [], 0
        while piece := response.raw.read1(_PIECE_BYTES):
            size += len(piece)
            if size > ANSWER_MOST_BYTES:
                raise self._error(
                    ErrorKind.TOO_LARGE,
                    f"the answer is larger than {ANSWER_MOST_BYTES // 1024**2} MB: aggregate more in the query",
                )
            if time.monotonic() > deadline_s:
                raise _too_late(self._server)
            pieces.append(piece)
        return b"".join(pieces)

    def _refusal(self, response: requests.Response, body: bytes) -> PrometheusError:
        status = response.status_code
        error_type, said = _own_words(body)
        quoted = f": {said}" if said else ""
        if 300 <= status < 400:
            where = response.headers.get("Location", "elsewhere").split("?")[0]
            return self._error(
                ErrorKind.MALFORMED,
                f"redirects to {where[:100]}: write that URL if that is the Prometheus; else give credentials",
            )
        if status in (401, 403):
            return self._error(
                ErrorKind.UNAUTHORIZED,
                f"refuses the login ({status}{quoted}): check bearerTokenFile, username and passwordFile, or certFile",
            )
        if error_type == "timeout":
            return self._error(ErrorKind.TIMEOUT, f"gave up on the query{quoted}: raise timeout or make it cheaper")
        if status == 413 or "too many samples" in said:
            return self._error(ErrorKind.TOO_LARGE, f"the query is too large ({status}{quoted}): aggregate more in it")
        if status in (400, 422):
            return self._error(ErrorKind.BAD_QUERY, f"rejects the query ({status}{quoted})")
        if status in (404, 405):
            return self._error(
                ErrorKind.MALFORMED,
                f"has no query API there ({status}): check the URL and its path, such as /prometheus",
            )
        return self._error(ErrorKind.SERVER_ERROR, f"fails ({status}{quoted}): look at its own log")

    def _error(self, kind: ErrorKind, what: str) -> PrometheusError:
        return PrometheusError(kind, f"{self._server}: {what}")


def _too_late(server: PrometheusServer) -> PrometheusError:
    return PrometheusError(
        ErrorKind.TIMEOUT, f"{server}: no answer within {server.timeout_s:g} s: check its load, or raise timeout"
    )


def _own_words(body: bytes) -> tuple[str, str]:
    """The error type and text of Prometheus' own error answer, "" where it is none."""
    try:
        document = json.loads(body[:_PIECE_BYTES])
        return str(document.get("errorType", "")), str(document.get("error", ""))[:160]
    except (ValueError, AttributeError):
        return "", ""


def _cause(error: BaseException) -> str:
    """The innermost reason of a connection failure, in few words."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        given = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((reason for reason in given if isinstance(reason, BaseException)), None)
    words = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
    return str(words)[:120]
