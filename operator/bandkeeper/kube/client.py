"""Raw access to the Kubernetes API: dicts in, dicts out, one exception type per answer that callers tell apart.

Built on `kubernetes.aio` for configuration, authentication and TLS only: its typed models cost a millisecond per pod.
Every request has a timeout that includes the wait for the client-side rate limit. Nothing is retried here.
"""

# ruff: noqa: N818  (the errors are named after the API server's answers)

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlencode, urlsplit

import aiohttp
import kubernetes.aio.config
import yaml
from kubernetes.aio.client import ApiClient, Configuration

from bandkeeper import __version__
from bandkeeper.kube.rate import TokenBucket

_config: Any = kubernetes.aio.config  # untyped
log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
LARGE_BYTES = 100_000
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
RENEW_CREDENTIALS_TIMEOUT_S = 10.0
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server refused, or could not be asked (status 0). `message` is the server's own sentence."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if status else f"{reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class NotFound(ApiError):
    """404"""


class Conflict(ApiError):
    """409: another writer was first, the object is not the one meant, or it exists already."""


class Forbidden(ApiError):
    """403: the rights are missing."""


class Unauthorized(ApiError):
    """401: the credentials are missing, wrong or expired."""


class Gone(ApiError):
    """410: the resource version asked for is too old."""


class Invalid(ApiError):
    """422: the object breaks a rule of its schema."""


class TooManyRequests(ApiError):
    """429: wait `retry_after_s` seconds."""

    retry_after_s: float


class Unavailable(ApiError):
    """5xx, timeout, or no connection (status 0). A write that ends so may or may not have happened."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
}


def error_from_status(status: Mapping[str, Any], *, code: int = 0, retry_after_s: float | None = None) -> ApiError:
    """The exception for a `Status` object, as in an error answer or in the ERROR event of a watch.

    `code` is the HTTP status, used where the object carries none.
    """
    number = status.get("code")
    code = number if isinstance(number, int) and number else code
    reason = str(status.get("reason") or f"HTTP{code}")
    message = str(status.get("message") or "the API server gave no message")
    if code == 429:
        details = status.get("details")
        named = details.get("retryAfterSeconds") if isinstance(details, Mapping) else None
        wait_s = retry_after_s if retry_after_s is not None else float(named or 1)
        return TooManyRequests(code, reason, message, retry_after_s=wait_s)
    kind = _BY_STATUS.get(code, Unavailable if code >= 500 or code == 0 else ApiError)
    return kind(code, reason, message, retry_after_s=retry_after_s)


class KubeClient:
    """One API server, one set of credentials. Use as an async context manager or call `close`."""

    user_agent: ClassVar[str] = f"bandkeeper/{__version__}"

    def __init__(
        self,
        api: ApiClient,
        *,
        bucket: TokenBucket,
        renew_credentials: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._api: Any = api  # its methods are untyped
        self._api.user_agent = self.user_agent
        self._bucket = bucket
        self._renew_credentials = renew_credentials

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, *, qps: float = 50, burst: int = 100) -> Self:
        """Read the credentials; no request is made yet.

        `kubeconfig` is a file, else `KUBECONFIG`, else `~/.kube/config`; where there is none of them, the pod's own
        service account.

        Raises
        ------
        Unavailable
            Neither a usable kubeconfig nor a service account was found.
        """
        configuration = Configuration()
        configuration.connection_pool_maxsize = 0  # every watch holds a connection; the rate limit bounds the rest
        path = kubeconfig or os.environ.get("KUBECONFIG") or _default_kubeconfig()
        renew: Callable[[], Awaitable[None]] | None = None
        try:
            if path:
                loader = await _config.load_kube_config(
                    config_file=path, client_configuration=configuration, persist_config=False
                )
                renew = partial(loader.load_and_set, configuration)
            else:
                _config.load_incluster_config(client_configuration=configuration)
        except (_config.ConfigException, OSError, yaml.YAMLError) as error:
            where = f"the kubeconfig {path} cannot be used" if path else "there is no kubeconfig and no service account"
            advice = "name a kubeconfig, set KUBECONFIG, or run in a pod with a service account"
            raise Unavailable(0, "NoCredentials", f"{where} ({error}); {advice}") from error
        if urlsplit(configuration.host).hostname in LOOPBACK:
            configuration.client_session_kwargs = {"trust_env": False}  # as kubectl: no proxy to oneself
        return cls(ApiClient(configuration), bucket=TokenBucket(qps, burst), renew_credentials=renew)

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self._api.configuration.host)

    async def get(
        self, path: str, *, params: Mapping[str, str] | None = None, timeout_s: float = 10, urgent: bool = False
    ) -> dict[str, Any]:
        """GET one object or list. `urgent` skips the rate limit's queue (its token is still counted)."""
        return await self._request("GET", path, None, params, timeout_s, urgent)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        params: Mapping[str, str] | None = None,
        timeout_s: float = 10,
        urgent: bool = False,
    ) -> dict[str, Any]:
        """Create an object."""
        return await self._request("POST", path, body, params, timeout_s, urgent)

    async def put(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        params: Mapping[str, str] | None = None,
        timeout_s: float = 10,
        urgent: bool = False,
    ) -> dict[str, Any]:
        """Replace an object."""
        return await self._request("PUT", path, body, params, timeout_s, urgent)

    async def patch(
        self,
        path: str,
        body: Any,
        *,
        content_type: str = MERGE_PATCH,
        params: Mapping[str, str] | None = None,
        timeout_s: float = 10,
        urgent: bool = False,
    ) -> dict[str, Any]:
        """Patch an object, as a merge patch unless `content_type` says otherwise."""
        return await self._request("PATCH", path, body, params, timeout_s, urgent, content_type)

    async def delete(
        self, path: str, *, params: Mapping[str, str] | None = None, timeout_s: float = 10, urgent: bool = False
    ) -> dict[str, Any]:
        """Delete an object."""
        return await self._request("DELETE", path, None, params, timeout_s, urgent)

    async def watch(
        self, path: str, *, params: Mapping[str, str], idle_timeout_s: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the raw events of a watch, BOOKMARK and ERROR included, until the server ends it.

        Raises
        ------
        Unavailable
            Nothing arrived for `idle_timeout_s` seconds, or the connection broke.
        ApiError
            The server refused the watch.
        """
        await self._bucket.wait()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=idle_timeout_s)
        try:
            response = await self._send("GET", path, None, {**params, "watch": "true"}, timeout, "application/json")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error
        try:
            if response.status != 200:
                raise await self._refused(response, await response.read())
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield json.loads(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error
        except json.JSONDecodeError as error:
            raise Unavailable(0, "BadAnswer", f"an event of the watch on {path} is not JSON: {error}") from error
        finally:
            response.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _request(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, str] | None,
        timeout_s: float,
        urgent: bool,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                if urgent:
                    self._bucket.borrow()
                else:
                    await self._bucket.wait()
                timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
                response = await self._send(method, path, body, params, timeout, content_type)
                try:
                    data = await response.read()
                finally:
                    response.release()
                if response.status >= 300:
                    raise await self._refused(response, data)
        except TimeoutError as error:
            message = f"{method} {path} was not answered by {self.host} within {timeout_s:g} s"
            raise Unavailable(0, "Timeout", message) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(error) from error
        try:
            answer = _parse(data)
        except ValueError as error:
            message = f"{method} {path} was answered with something that is not JSON; is {self.host} an API server?"
            raise Unavailable(0, "BadAnswer", message) from error
        return answer if isinstance(answer, dict) else {"items": answer}

    async def _send(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
        content_type: str,
    ) -> aiohttp.ClientResponse:
        headers = {**self._api.default_headers, "Accept": "application/json", "Content-Type": content_type}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self.host}{path}?{urlencode(params)}" if params else f"{self.host}{path}"
        answer = await self._api.rest_client.request(method, url, headers=headers, body=body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response

    async def _refused(self, response: aiohttp.ClientResponse, data: bytes) -> ApiError:
        if response.status == 401:
            await self._renew()
        try:
            status = json.loads(data)
        except ValueError:
            status = None
        if not isinstance(status, dict):
            text = re.sub(r"\s+", " ", data[:200].decode(errors="replace")).strip()
            status = {"reason": response.reason, "message": text}
        return error_from_status(status, code=response.status, retry_after_s=_seconds(response.headers))

    async def _renew(self) -> None:
        """Read the kubeconfig's token again, so that the next request has a fresh one."""
        if self._renew_credentials is None:
            return
        try:
            async with asyncio.timeout(RENEW_CREDENTIALS_TIMEOUT_S):
                await self._renew_credentials()
        except Exception as error:  # whatever an authentication plugin raises must not hide the 401
            log.warning("Credentials could not be renewed", extra={"error": str(error)})

    def _unavailable(self, error: Exception) -> Unavailable:
        reason = "Timeout" if isinstance(error, TimeoutError) else "Unreachable"
        return Unavailable(0, reason, f"no answer from the API server at {self.host}: {error or type(error).__name__}")


def _parse(data: bytes) -> Any:
    """Read JSON with the cyclic garbage collector off: a page of pods sets it off in vain, two thirds of the time."""
    if len(data) < LARGE_BYTES or not gc.isenabled():
        return json.loads(data)
    gc.disable()
    try:
        return json.loads(data)
    finally:
        gc.enable()


def _default_kubeconfig() -> str | None:
    path = Path.home() / ".kube" / "config"
    return str(path) if path.is_file() else None


def _seconds(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` in seconds; API servers never send it as a date."""
    try:
        return max(0.0, float(headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
