"""Fixtures and settings for all tests; a control plane is started once per worker and only when a test asks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.cluster.fixtures import control_plane, namespace

__all__ = ["control_plane", "namespace"]

collect_ignore = ["servers"]  # they have to be installed first: `make test-servers`

QUIET = (HealthCheck.too_slow,)
# The same cases in every run, so that a change is what makes a test fail; `make fuzz` looks for others.
settings.register_profile("test", max_examples=100, deadline=None, suppress_health_check=QUIET, derandomize=True)
settings.register_profile("fuzz", max_examples=10_000, deadline=None, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

LIVE = ("test_end_to_end.py", "test_quality_end_to_end.py", "test_failover.py", "test_reaction.py", "test_replay.py")
"""Tests in which time passes as it does outside: one worker has them, and the machine first."""


def pytest_configure() -> None:
    """The other workers compute in what the first one leaves of the machine while it waits."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        os.nice(10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`LIVE` first: the first worker takes the first tests. Properties take minutes more with every line counted."""
    items.sort(key=lambda item: item.path.name not in LIVE)
    for item in items:
        if item.path.parent.name == "properties":
            item.add_marker(pytest.mark.no_cover)


class _ByFile(LoadScopeScheduling):
    """A file's tests in one worker, one after the other, and those of `LIVE` all in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "live" if Path(file).name in LIVE else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """With `-n`, whatever `--dist` says."""
    return _ByFile(config, log)
