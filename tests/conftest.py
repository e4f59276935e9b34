"""Fixtures and settings for all tests; the control plane is started once per session and only when a test asks."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.cluster.fixtures import control_plane, namespace

__all__ = ["control_plane", "namespace"]

collect_ignore = ["servers"]  # they have to be installed first: `make test-servers`

settings.register_profile("test", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))
