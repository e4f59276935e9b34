"""From a policy's `batch.adapter` to the adapter that does it. A new adapter is one file and one line here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from bandkeeper.actuate.adapter import AdapterError, BatchAdapter
from bandkeeper.actuate.annotation import Annotation
from bandkeeper.actuate.pod_template import PodTemplate
from bandkeeper.api.v1alpha1 import Adapter, AdapterType, AnnotationAdapter
from bandkeeper.kube.client import KubeClient

CHART_VALUES = {
    AdapterType.ANNOTATION: "adapters.annotation.enabled",
    AdapterType.POD_TEMPLATE: "adapters.podTemplate.enabled",
}


def batch_adapter(
    spec: Adapter,
    client: KubeClient,
    *,
    enabled: Collection[AdapterType],
    clock: Callable[[], float] = time.monotonic,
) -> BatchAdapter:
    """Make the adapter that a policy asks for.

    Raises
    ------
    AdapterError
        It is switched off in the operator's configuration, or its settings cannot work.
    """
    if spec.type not in enabled:
        raise AdapterError(
            f"the {spec.type} adapter is switched off; set the chart value {CHART_VALUES[spec.type]}=true, "
            "or remove spec.batch to scale replicas only"
        )
    if spec.type is AdapterType.ANNOTATION:
        return Annotation(client, (spec.annotation or AnnotationAdapter()).key, clock=clock)
    if spec.pod_template is None:
        raise AdapterError(
            "adapter type PodTemplate needs podTemplate with container and one of preset, env and argument"
        )
    settings = spec.pod_template
    return PodTemplate(
        client,
        container=settings.container,
        env=settings.env,
        argument=settings.argument,
        preset=settings.preset,
        clock=clock,
    )
