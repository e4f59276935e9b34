"""From a policy's `batch.adapter` to the adapter that does it. A new adapter is one file and one line here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from bandkeeper.actuate.adapter import AdapterError, AddressOf, BatchAdapter, Means
from bandkeeper.actuate.annotation import Annotation
from bandkeeper.actuate.config_map import ConfigMap
from bandkeeper.actuate.http import HTTP
from bandkeeper.actuate.pod_access import PodAccess
from bandkeeper.actuate.pod_template import PodTemplate
from bandkeeper.api.v1alpha1 import Adapter, AdapterType
from bandkeeper.kube.client import KubeClient

MAKERS: Mapping[AdapterType, Callable[[Adapter, Means], BatchAdapter]] = {
    AdapterType.ANNOTATION: Annotation.of,
    AdapterType.POD_TEMPLATE: PodTemplate.of,
    AdapterType.HTTP: HTTP.of,
    AdapterType.CONFIG_MAP: ConfigMap.of,
}


def batch_adapter(
    spec: Adapter,
    client: KubeClient,
    *,
    enabled: Collection[AdapterType],
    namespace: str = "",
    clock: Callable[[], float] = time.monotonic,
    pod_access: PodAccess | None = None,
    address_of: AddressOf | None = None,
) -> BatchAdapter:
    """Make the adapter that a policy in `namespace` asks for.

    Raises
    ------
    AdapterError
        It is switched off in the operator's configuration, or its settings cannot work.
    """
    if spec.type not in enabled:
        raise AdapterError(
            f"the {spec.type} adapter is switched off; set the chart value adapters.{spec.type.member}.enabled=true, "
            "or remove spec.batch to scale replicas only"
        )
    access = pod_access or PodAccess()
    means = Means(client=client, namespace=namespace, pod_access=access, clock=clock, address_of=address_of)
    return MAKERS[spec.type](spec, means)
