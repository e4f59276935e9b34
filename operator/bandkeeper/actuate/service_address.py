"""Where a Service leads, asked of the API server.

Its DNS name leads wherever the Service says (ExternalName), or where somebody writes its addresses by hand (no
selector); what is sent there may be a credential. So only the Service's own IP, or that of a pod it selects, is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bandkeeper.actuate.errors import PodError
from bandkeeper.actuate.outcome import Deadline
from bandkeeper.actuate.rights import Right
from bandkeeper.api.snapshot import Pod
from bandkeeper.kube.client import ApiError, Forbidden, KubeClient, NotFound

MOST_PODS = 20  # a Service that selects more is not one before a single server


async def server_behind(client: KubeClient, right: Right, namespace: str, left: Deadline) -> Pod:
    """The one server behind the Service that `right` lets us read, as a pod at its address. PodError where none is."""
    name = right.name
    try:
        service = await client.get(f"/api/v1/namespaces/{namespace}/services/{name}", timeout_s=left.timeout_s())
        spec = service.get("spec") or {}
        if spec.get("type") == "ExternalName" or not spec.get("selector"):
            raise PodError(
                f"Service {name} leads to no pods of its own (type ExternalName, or no selector), so nothing is sent "
                "there; give it type ClusterIP and the selector of one pod",
                lasting=True,
            )
        if spec.get("clusterIP") not in (None, "", "None"):
            return Pod(name=name, address=spec["clusterIP"])
        return Pod(name=name, address=await _pod_ip(client, namespace, name, spec["selector"], left))
    except NotFound as error:
        raise PodError(f"no Service {name} in namespace {namespace}; create it, or name another one") from error
    except Forbidden as error:
        raise PodError(right.refused(error, namespace), lasting=True) from error
    except ApiError as error:
        raise PodError(f"Service {name} could not be read: {error.message}; it will be tried again") from error


async def _pod_ip(client: KubeClient, namespace: str, name: str, selector: Mapping[str, str], left: Deadline) -> str:
    """A headless Service (KubeRay makes these) has no IP of its own: that of the ready pod that it selects."""
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    params = {"labelSelector": labels, "limit": str(MOST_PODS)}
    found = await client.get(f"/api/v1/namespaces/{namespace}/pods", params=params, timeout_s=left.timeout_s())
    ready = [str(pod["status"].get("podIP") or "") for pod in found.get("items") or () if _is_ready(pod)]
    if len(ready) != 1:
        raise PodError(f"Service {name} selects {len(ready)} ready pods; it must be before one, which is asked")
    return ready[0]


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")
