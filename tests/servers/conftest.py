"""Fixtures that all real servers share: the programs of the control plane, of which Prometheus is one, are built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.install import environment


@pytest.fixture(scope="session")
def server_environment(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Gives the virtual environment of a server; where it has to be installed first, that is seen."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def made(name: str) -> Path:
        with capture.global_and_fixture_disabled():
            return environment(name)

    return made
