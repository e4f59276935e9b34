"""The kubelet's PodResources API on a real unix socket, with the pods that a test puts there."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from bandkeeper.agent import podresources_pb2 as messages
from bandkeeper.agent.podresources_pb2_grpc import PodResourcesListerServicer, add_PodResourcesListerServicer_to_server

Pods = Mapping[str, tuple[str, ...]]
"""By `namespace/pod/container` the device ids of nvidia.com/gpu."""


class Kubelet(PodResourcesListerServicer):
    """Serves while it is entered; entered again it is a kubelet that restarted, with a new socket of the same path."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.pods: Pods = {}
        self.asked = 0
        self._server: Any = None

    def start(self) -> None:
        """Listen."""
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        add_PodResourcesListerServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        assert self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        """End; the socket goes too."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
        self._server = None
        self.socket.unlink(missing_ok=True)

    def List(self, request: object, context: object) -> messages.ListPodResourcesResponse:  # noqa: N802
        """Answer as the kubelet does: every pod, with devices of other plugins too."""
        self.asked += 1
        answer = messages.ListPodResourcesResponse()
        for path, ids in self.pods.items():
            namespace, name, container = path.split("/")
            devices = [
                messages.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=[one]) for one in ids
            ]  # the device plugin gives each id an entry of its own where topology differs
            other = messages.ContainerDevices(resource_name="example.com/nic", device_ids=["eth1"])
            containers = [
                messages.ContainerResources(name=container, devices=[*devices, other]),
                messages.ContainerResources(name="sidecar"),
            ]
            answer.pod_resources.add(namespace=namespace, name=name, containers=containers)
        return answer
