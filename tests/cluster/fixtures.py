"""pytest fixtures, to be imported by a conftest.py: `from tests.cluster.fixtures import control_plane, namespace`."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.build import build_all
from tests.cluster.control_plane import ControlPlane

EXISTING = "KUBECONFIG_FOR_TESTS"


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """One control plane for the whole test session, or the cluster that KUBECONFIG_FOR_TESTS names."""
    if existing := os.environ.get(EXISTING):
        with ControlPlane.from_kubeconfig(Path(existing)) as found:
            yield found
        return
    build_all_in_sight(request.config)
    with ControlPlane.start() as started:
        yield started


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace in which pods are admitted; its pods are gone when the test is over."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.create_namespace(name)
    yield name
    control_plane.delete_namespace(name)


def build_all_in_sight(config: pytest.Config) -> None:
    """Build what is missing with its progress shown, though pytest captures output: the first time takes minutes."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        build_all()
        return
    with capture.global_and_fixture_disabled():
        build_all()
