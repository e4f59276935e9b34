"""A real Kubernetes control plane and Prometheus on loopback, for end-to-end tests and by hand: see README.md."""

from tests.cluster.build import BuildError
from tests.cluster.control_plane import CommandError, ControlPlane, ControlPlaneError
from tests.cluster.loopback import eventually, free_ports
from tests.cluster.processes import Child, Children, ProcessError
from tests.cluster.prometheus import Prometheus, PrometheusError, WebConfig

__all__ = [
    "BuildError",
    "Child",
    "Children",
    "CommandError",
    "ControlPlane",
    "ControlPlaneError",
    "ProcessError",
    "Prometheus",
    "PrometheusError",
    "WebConfig",
    "eventually",
    "free_ports",
]
