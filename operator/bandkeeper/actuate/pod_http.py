"""HTTP to the servers in pods: only to a pod's own address, bounded in time and bytes, asked once, never redirected."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from bandkeeper.actuate.adapter import AddressOf, at_port
from bandkeeper.actuate.errors import NotAskedError, PodError
from bandkeeper.actuate.outcome import CapResult, Outcome
from bandkeeper.actuate.pod_access import Credential
from bandkeeper.api.snapshot import Pod

logger = logging.getLogger(__name__)

AT_ONCE = 8
ANSWER_MOST_BYTES = 256 * 1024
MOST_VALUES = 300_000  # in an answer of JSON: about 0.1 s, in which nothing else runs; a thread would hold the GIL too
REASON_MOST_BYTES = 64 * 1024
CONNECT_MOST_S = 3.0
QUOTED_LENGTH = 120
_PASSING = (408, 409, 425, 429)  # refusals that may be over at the next attempt

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A 2xx answer, which is no web page."""

    status: int
    body: bytes

    async def parsed(self) -> Any:
        """The document; ValueError where it is not JSON, or more of it than may hold us up.

        Others run first, so that many answers in a row hold nobody up.
        """
        await asyncio.sleep(0)
        if sum(self.body.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        try:
            return json.loads(self.body)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PodDoor:
    """How the servers of one workload are reached.

    Attributes
    ----------
    port
        Of the pod's own IP.
    tls, server_name
        Speak TLS, and the name that the certificate must have; None: the pod's IP.
    address_of
        Asked for host:port instead of the pod's IP and `port`.
    answer_most_bytes
        Of one answer; a longer one is not read.
    """

    port: int
    tls: bool = False
    server_name: str | None = None
    ca_file: Path | None = None
    credential: Credential | None = None
    address_of: AddressOf | None = None
    answer_most_bytes: int = ANSWER_MOST_BYTES

    @asynccontextmanager
    async def open(self) -> AsyncIterator[PodSession]:
        """Connections for one round of questions; files are read anew. PodError where one cannot be."""
        headers = self.credential.read() if self.credential else {}
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=AT_ONCE, ssl=self._trust()),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "bandkeeper", **headers},
            skip_auto_headers=("Content-Type",),
            auto_decompress=False,
        )
        async with session:
            yield PodSession(self, session, self._secrets(headers))

    def _secrets(self, headers: Mapping[str, str]) -> tuple[str, ...]:
        prefix = self.credential.prefix if self.credential else ""
        return tuple(value.removeprefix(prefix) for value in headers.values())

    def _trust(self) -> ssl.SSLContext | bool:
        if not self.tls:
            return True
        try:
            return ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        except (OSError, ssl.SSLError) as error:
            raise PodError(f"{self.ca_file} is no file of CA certificates ({error}): see podAccess.caFile") from error

    def url(self, pod: Pod, path: str) -> URL:
        """The URL of `path` at a pod's server. PodError where the pod has no address that may be asked."""
        host = self.address_of(pod) if self.address_of else at_port(self.port)(_checked(pod))
        return URL(f"{'https' if self.tls else 'http'}://{host}{path}", encoded=True)


class PodSession:
    """Open connections to the servers of one workload."""

    def __init__(self, door: PodDoor, session: aiohttp.ClientSession, secrets: Sequence[str] = ()) -> None:
        self._door = door
        self._session = session
        self._secrets = tuple(secrets)

    async def ask(
        self,
        pod: Pod,
        method: str,
        path: str,
        *,
        timeout_s: float,
        body: str | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """Send one request. PodError for everything but a 2xx answer that is no web page."""
        asked = f"pod {pod.name}, asked {method} {path.partition('?')[0]},"
        if timeout_s <= 0:
            raise NotAskedError(f"pod {pod.name} was not asked: no time was left; it will be tried again")
        url = self._door.url(pod, path)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(
                    method,
                    url,
                    data=None if body is None else body.encode(),
                    headers={} if body is None else {"Content-Type": content_type},
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_MOST_S, timeout_s)),
                    server_hostname=self._door.server_name if self._door.tls else None,
                ) as response,
            ):
                data = await _bounded(response, asked, self._door.answer_most_bytes)
        except TimeoutError as error:
            raise PodError(f"{asked} did not answer within {timeout_s:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise PodError(
                f"{asked} shows a certificate that is not trusted ({_cause(error)}): set the chart value "
                "podAccess.caFile, and serverName to the name in the certificate",
                lasting=True,
            ) from error
        except aiohttp.ClientSSLError as error:
            raise PodError(f"{asked} does not speak TLS as it should ({_cause(error)}): see port and scheme") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PodError(f"{asked} cannot be reached ({_cause(error)}): see port, and network policies") from error
        _judge(response, data, asked, url, self._tellable)
        return Answer(status=response.status, body=data)

    def _tellable(self, text: str) -> str:
        """What a server said, as one line that can be shown: it may say back what it was sent."""
        line = _one_line(text)
        for secret in self._secrets:
            line = line.replace(_one_line(secret), "***")
        return line


class Turns:
    """Who is asked first, so that those behind pods that hang get their turn: whose failure is longest ago."""

    def __init__(self) -> None:
        self._failed: dict[tuple[str, int], int] = {}
        self._round = 0

    def order(self, pods: Iterable[Pod]) -> list[Pod]:
        """Those that did not fail first; else in the order given."""
        return sorted(pods, key=lambda pod: self._failed.get(life_of(pod), 0))

    def ended(self, pods: Iterable[Pod], failed: Mapping[str, PodError]) -> None:
        """Take in how a round went; who was not asked keeps its turn."""
        self._round += 1
        for pod in pods:
            error = failed.get(pod.name)
            if error is None:
                self._failed.pop(life_of(pod), None)
            elif not isinstance(error, NotAskedError):
                self._failed[life_of(pod)] = self._round

    def keep(self, pods: Iterable[Pod]) -> None:
        """Forget the servers that are gone."""
        there = {life_of(pod) for pod in pods}
        self._failed = {server: last for server, last in self._failed.items() if server in there}


async def each(
    pods: Iterable[Pod], ask: Callable[[Pod], Awaitable[T]], *, at_once: int = AT_ONCE, turns: Turns | None = None
) -> tuple[dict[str, T], dict[str, PodError]]:
    """Ask all pods, a few at a time: by pod name what came back, and why not. One odd answer is that pod's alone."""
    slots, done, failed = asyncio.Semaphore(at_once), {}, {}
    queue = turns.order(pods) if turns else list(pods)

    async def one(pod: Pod) -> None:
        async with slots:
            try:
                done[pod.name] = await ask(pod)
            except PodError as error:
                failed[pod.name] = _bare(error)
            except Exception as error:
                logger.warning(
                    "a pod's answer cannot be understood", extra={"pod": pod.name, "error": repr(error)[:200]}
                )
                failed[pod.name] = PodError(f"pod {pod.name} gave an answer that cannot be understood", lasting=True)

    await asyncio.gather(*(one(pod) for pod in queue))
    if turns:
        turns.ended(queue, failed)
    return done, failed


def _bare(error: PodError) -> PodError:
    """Without the frames that it came through, which hold the whole answer."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def life_of(pod: Pod) -> tuple[str, int]:
    """A server's life: a container that restarted has the cap that it boots with."""
    return pod.uid, pod.restarts


def result_of(written: int, failed: Mapping[str, PodError]) -> CapResult:
    """How a round of writes ended: the first failure is the sentence, with how many pods have another one."""
    said = {name: str(error) for name, error in failed.items()}
    first = next(iter(said.values()), "")
    others = sum(text != first for text in said.values())
    message = f"{first} (and {others} more pods)" if others else first
    return CapResult(outcome=_overall(written, failed), message=message, written=written, failed=said)


def _overall(written: int, failed: Mapping[str, PodError]) -> Outcome:
    if not failed:
        return Outcome.WRITTEN if written else Outcome.UNCHANGED
    if written:
        return Outcome.PARTIAL
    return Outcome.REFUSED if all(error.lasting for error in failed.values()) else Outcome.FAILED


def _checked(pod: Pod) -> Pod:
    """A pod whose address can be a pod's: whatever its status says, we talk to nothing on our own side."""
    if not pod.address:
        raise PodError(f"pod {pod.name} has no IP yet")
    try:
        ip = ipaddress.ip_address(pod.address)
    except ValueError:
        ip = None
    if ip is None or _is_ours(ip):
        raise PodError(f"pod {pod.name} has the address {pod.address}, which no pod can have: nothing is sent there")
    return pod


def _is_ours(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is on our own side, or is an IPv4 address in disguise, which could be."""
    disguised = ip.version == 6 and (ip.ipv4_mapped is not None or ip.is_reserved)
    return disguised or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified


async def _bounded(response: aiohttp.ClientResponse, asked: str, most_bytes: int) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_chunked(65_536):
        data += piece
        if len(data) > most_bytes:
            raise PodError(f"{asked} answers with more than {most_bytes // 1024} kB: is it the right path?")
    return bytes(data)


def _judge(response: aiohttp.ClientResponse, data: bytes, asked: str, url: URL, tellable: Callable[[str], str]) -> None:
    """Raise for every answer that is not what a server's own API gives; its words are told as `tellable` has them."""
    status, reason = response.status, tellable(response.reason or "")[:QUOTED_LENGTH]
    lasting = 300 <= status < 500 and status not in _PASSING
    if 300 <= status < 400:
        where = _redirect(response.headers.get("Location", ""), url, tellable)
        raise PodError(f"{asked} {where}", status=status, lasting=True)
    page = _is_page(response.content_type, data)
    if status in (401, 403):
        words = "" if page else _after_colon(tellable(_own_words(data)))
        raise PodError(f"{asked} refuses the login ({status}{words}): see credential", status=status, lasting=True)
    if page:
        raise PodError(
            f"{asked} answers with a web page ({status}): is it the right port and path?", status=status, lasting=True
        )
    if not 200 <= status < 300:
        message = f"{asked} answers {status} {reason}{_after_colon(tellable(_own_words(data)))}"
        raise PodError(message, status=status, lasting=lasting, said=tellable(_told_reason(data)))


def _redirect(location: str, url: URL, tellable: Callable[[str], str]) -> str:
    try:
        parts = urlsplit(location)
    except ValueError:
        return "redirects to what is no address: see path"
    if parts.netloc and parts.netloc != url.authority:
        return f"redirects to another host, {tellable(parts.netloc)[:QUOTED_LENGTH]}, which is refused: see path"
    path = tellable(parts.path)[:QUOTED_LENGTH] or "elsewhere"
    return f"redirects to {path}: write that path if it is the right one"


def _is_page(content_type: str, data: bytes) -> bool:
    start = data[:256].lstrip().lower()
    return content_type == "text/html" or start.startswith((b"<!doctype", b"<html"))


def _own_words(data: bytes) -> str:
    """What the server says; "" where it says nothing."""
    return _told_reason(data) or data[:2048].decode(errors="replace")


def _told_reason(data: bytes) -> str:
    """The reason in an answer of JSON, as servers' own APIs give it; "" where there is none."""
    if len(data) > REASON_MOST_BYTES:
        return ""
    try:
        document = json.loads(data)
        found = (document.get(key) for key in ("error", "message", "detail", "reason"))
        return next((word for word in found if isinstance(word, str) and word), "")
    except (ValueError, AttributeError, RecursionError):
        return ""


def _one_line(text: str) -> str:
    """Without anything that is no character to see: half a surrogate pair cannot even be written to the API server."""
    return re.sub(r"\s+", " ", "".join(char if char.isprintable() else " " for char in text)).strip()


def _after_colon(words: str) -> str:
    return f": {words[:QUOTED_LENGTH]}" if words else ""


def _cause(error: BaseException) -> str:
    """The innermost reason, in few words."""
    inner: BaseException = error
    while (cause := getattr(inner, "os_error", None) or getattr(inner, "certificate_error", None)) is not None:
        inner = cause
    words = getattr(inner, "verify_message", None) or getattr(inner, "strerror", None) or str(inner)
    return str(words or type(error).__name__)[:QUOTED_LENGTH]
