"""Which Prometheus answers for a policy, and the readers of those in use."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import urlsplit

from bandkeeper.api.v1alpha1 import PrometheusSelection
from bandkeeper.signals.prometheus import PrometheusReader, PrometheusServer, url_problem


class Lane(StrEnum):
    """Queries with threads of their own: those of one lane never wait for those of another."""

    SHARED = "Shared"
    OWN = "Own"  # policies' own queries, which can be slow
    ASIDE = "Aside"  # nobody waits for these


WORKERS = {Lane.SHARED: 8, Lane.OWN: 4, Lane.ASIDE: 2}


class SelectionError(ValueError):
    """A policy names a Prometheus that it may not use; the text says what to write."""


class Servers:
    """The configured servers, the first of which is the default, and the URLs that a policy may give itself."""

    def __init__(self, servers: tuple[PrometheusServer, ...], allowed_urls: tuple[str, ...]) -> None:
        self._named: Mapping[str, PrometheusServer] = {server.name: server for server in servers}
        self._default = servers[0] if servers else None
        self._allowed_urls = allowed_urls
        self._readers: dict[tuple[PrometheusServer, Lane], PrometheusReader] = {}

    def select(self, selection: PrometheusSelection | None) -> PrometheusServer:
        """The server of a selection. One given by URL never gets credentials. Raises SelectionError."""
        if selection is None or (selection.name is None and selection.url is None):
            if self._default is None:
                raise SelectionError(
                    "the operator has no Prometheus: give one in its configuration (prometheus.servers)"
                )
            return self._default
        if selection.url is None:
            found = self._named.get(selection.name or "")
            if found is None:
                known = ", ".join(self._named) or "none"
                raise SelectionError(f"spec.prometheus.name {selection.name!r} is unknown: write one of: {known}")
            return found
        if sentence := url_problem(selection.url):
            raise SelectionError(f"spec.prometheus.url: {sentence}")
        if not any(_below(selection.url, prefix) for prefix in self._allowed_urls):
            allowed = ", ".join(self._allowed_urls) or "none"
            raise SelectionError(
                f"spec.prometheus.url {selection.url} is not allowed: the operator's configuration allows {allowed} "
                "(prometheus.allowedURLs); write one of these, or a configured name"
            )
        timeout_s = self._default.timeout_s if self._default else 5.0
        return PrometheusServer(name="of the policy", url=selection.url, timeout_s=timeout_s)

    def reader(self, server: PrometheusServer, lane: Lane) -> PrometheusReader:
        """The reader of a server for queries of this lane."""
        key = (server, lane)
        if key not in self._readers:
            self._readers[key] = PrometheusReader(server, workers=WORKERS[lane])
        return self._readers[key]

    def is_named(self, server: PrometheusServer) -> bool:
        """Whether the operator's configuration has it, rather than a policy."""
        return self._named.get(server.name) is server

    def keep(self, used: set[PrometheusServer]) -> None:
        """Close the readers of policies' own servers that are no longer used."""
        for key in [key for key in self._readers if key[0] not in used and not self.is_named(key[0])]:
            self._readers.pop(key).close()

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


def _below(url: str, prefix: str) -> bool:
    """Whether `url` is `prefix` or lies below it: same scheme, host and port, and a path that goes on at a slash."""
    ours, theirs = urlsplit(url), urlsplit(prefix)
    if (ours.scheme, ours.hostname, ours.port) != (theirs.scheme, theirs.hostname, theirs.port):
        return False
    path, allowed = ours.path.rstrip("/"), theirs.path.rstrip("/")
    return ".." not in path and "%" not in path and (path == allowed or path.startswith(f"{allowed}/"))
