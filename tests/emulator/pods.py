"""Follows a workload's pods in a Kubernetes API and gives them to the fleet: list, watch, list again when broken."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import aiohttp
from kubernetes.aio import client

from .config import Workload
from .fleet import PodInfo

log = logging.getLogger(__name__)

RETRY_S = 0.5
Json = dict[str, Any]


class PodFollower:
    """Keeps the pods of one workload; calls `changed` with all of them after each list and each watch event."""

    def __init__(self, api: client.CoreV1Api, workload: Workload, changed: Callable[[list[PodInfo]], None]) -> None:
        self._api = api
        self._workload = workload
        self._changed = changed
        self._pods: dict[str, PodInfo] = {}
        self.synced = False

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            try:
                await self._watch(await self._list())
            except (aiohttp.ClientError, OSError, client.ApiException, WatchBrokenError) as error:
                log.debug("listing the pods of %s again: %s", self._workload.name, error)
            await asyncio.sleep(RETRY_S)

    async def _list(self) -> str:
        response = await self._request()
        if response.status != 200:
            raise WatchBrokenError(f"list answered {response.status}")
        document = json.loads(await response.read())
        pods = [read_pod(item, self._workload) for item in document["items"]]
        self._pods = {pod.uid: pod for pod in pods if pod is not None}
        self.synced = True
        self._changed(list(self._pods.values()))
        return str(document["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        response = await self._request(watch=True, resource_version=version, timeout_seconds=240)
        async with response:
            if response.status != 200:
                raise WatchBrokenError(f"watch answered {response.status}")
            async for line in _lines(response.content):
                self._apply(json.loads(line))

    async def _request(self, **parameters: Any) -> aiohttp.ClientResponse:
        namespace, selector = self._workload.namespace, self._workload.label_selector
        response: aiohttp.ClientResponse = await self._api.list_namespaced_pod_without_preload_content(
            namespace, label_selector=selector, **parameters
        )
        return response

    def _apply(self, event: Json) -> None:
        if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            raise WatchBrokenError(f"{event['type']}: {event['object'].get('message')}")
        uid = event["object"]["metadata"]["uid"]
        pod = read_pod(event["object"], self._workload)
        if event["type"] == "DELETED" or pod is None:
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod
        self._changed(list(self._pods.values()))


class WatchBrokenError(Exception):
    """The watch ended with an error, 410 Gone for one: list again."""


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


def read_pod(pod: Json, workload: Workload) -> PodInfo | None:
    """The part of a v1 Pod that the fleet needs; None for one that has ended."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    if status.get("phase") in ("Failed", "Succeeded"):
        return None
    container = _container(spec["containers"], workload.container)
    deletion_grace_s = metadata.get("deletionGracePeriodSeconds")
    grace_s = spec.get("terminationGracePeriodSeconds", 30) if deletion_grace_s is None else deletion_grace_s
    return PodInfo(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        node=spec.get("nodeName"),
        ready=any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ())),
        terminating="deletionTimestamp" in metadata,
        grace_s=float(grace_s),
        container=container["name"],
        gpus=_number(container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")) or 1,
        cap=_number(metadata.get("annotations", {}).get(workload.cap_annotation)),
        capacity=_boot_capacity(container, workload),
    )


def _container(containers: list[Json], name: str | None) -> Json:
    return next((one for one in containers if one["name"] == name), containers[0])


def _boot_capacity(container: Json, workload: Workload) -> int | None:
    for variable in container.get("env", ()):
        if variable["name"] == workload.capacity_env:
            return _number(variable.get("value"))
    words = [*container.get("command", ()), *container.get("args", ())]
    return _argument(words, workload.capacity_arg)


def _argument(words: Iterable[str], name: str) -> int | None:
    """The number after `--name` or in `--name=number`."""
    words = list(words)
    for index, word in enumerate(words):
        if word == name and index + 1 < len(words):
            return _number(words[index + 1])
        if word.startswith(f"{name}="):
            return _number(word.partition("=")[2])
    return None


def _number(text: object) -> int | None:
    """A positive integer, else None, as a server that ignores what it cannot read."""
    try:
        number = int(str(text))
    except ValueError:
        return None
    return number if number >= 1 else None
