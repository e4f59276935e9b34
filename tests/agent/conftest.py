"""Fixtures: a scripted driver, passes over its GPUs, and a kubelet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent import standin
from tests.agent.kubelet import Kubelet


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in; without a C compiler every test of the agent fails and says so."""
    return standin.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(library: Path, tmp_path: Path) -> standin.NVML:
    """A driver without GPUs."""
    return standin.NVML(library, tmp_path)


@pytest.fixture
def passes(nvml: standin.NVML) -> Iterator[standin.Passes]:
    """Passes over the GPUs of `nvml`; the process must end well."""
    running = standin.Passes(nvml)
    yield running
    assert running.close() == 0


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    """A kubelet that answers, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        running = Kubelet(Path(folder) / "kubelet.sock")
        running.start()
        yield running
        running.stop()
