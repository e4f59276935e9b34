"""CPU, network and local disk of a pod from the kubelet's cAdvisor, the same for every runtime.

Rows of a whole pod and of its sandbox stand beside those of its containers: only containers are added up, except for
the network, which belongs to the sandbox. Volumes on the network are not in the disk's figures; a pod in the host's
network shows its node's traffic.
"""

from __future__ import annotations

from bandkeeper.api.signals import Signal
from bandkeeper.signals.sources import Clock, Read, Series, Source

_CLOCK = Clock(
    metrics=("container_cpu_usage_seconds_total",),
    exporter="the kubelet's cAdvisor",
    identity=("container", "interface", "device"),
)
_CONTAINERS = '{container!="", container!="POD"}'
_OUTSIDE = '{interface!="lo"}'


def _rate(metric: str, per: str = "") -> Source:
    return Source(
        read=Read.RATE,
        any_of=(Series((metric,), per=per),),
        clock=_CLOCK,
        optional=True,
        aside=True,
        hint="Prometheus must scrape the kubelets' /metrics/cadvisor",
    )


SOURCES = {
    Signal.CPU_USED: _rate(f"container_cpu_usage_seconds_total{_CONTAINERS}"),
    # There are no periods without a CPU limit: no value then, and nothing that could be throttled.
    Signal.CPU_THROTTLED: _rate(
        f"container_cpu_cfs_throttled_periods_total{_CONTAINERS}",
        per=f"container_cpu_cfs_periods_total{_CONTAINERS}",
    ),
    Signal.NETWORK_SENT: _rate(f"container_network_transmit_bytes_total{_OUTSIDE}"),
    Signal.NETWORK_RECEIVED: _rate(f"container_network_receive_bytes_total{_OUTSIDE}"),
    Signal.DISK_READ: _rate(f"container_fs_reads_bytes_total{_CONTAINERS}"),
    Signal.DISK_WRITTEN: _rate(f"container_fs_writes_bytes_total{_CONTAINERS}"),
}
