"""pytest fixtures, to be imported by a conftest.py: `from tests.cluster.fixtures import control_plane, namespace`."""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.cluster.build import build_all
from tests.cluster.control_plane import ControlPlane

EXISTING = "KUBECONFIG_FOR_TESTS"
T = TypeVar("T")


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """One control plane for the whole test session, or the cluster that KUBECONFIG_FOR_TESTS names."""
    if existing := os.environ.get(EXISTING):
        with ControlPlane.from_kubeconfig(Path(existing)) as found:
            yield found
        return
    in_sight(request.config, build_all)
    with ControlPlane.start() as started:
        yield started


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace in which pods are admitted; its pods are gone when the test is over."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.create_namespace(name)
    yield name
    control_plane.delete_namespace(name)


def in_sight(config: pytest.Config, make: Callable[[], T]) -> T:
    """What `make` returns, its progress shown though pytest captures output: the first time takes minutes."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return make()
    with capture.global_and_fixture_disabled():
        return make()
