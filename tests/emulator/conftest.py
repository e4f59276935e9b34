"""The control plane for the end-to-end test."""

from tests.cluster.fixtures import control_plane, namespace

__all__ = ["control_plane", "namespace"]
