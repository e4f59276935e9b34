"""The example policies are valid, and their runtimes give every signal that they promise something about."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bandkeeper.api.v1alpha1 import Spec
from bandkeeper.api.validation import validate
from bandkeeper.signals.collector import CollectorSettings
from bandkeeper.signals.problems import problems
from bandkeeper.signals.prometheus import PrometheusServer

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
SETTINGS = CollectorSettings(servers=(PrometheusServer(name="default", url="http://127.0.0.1:9090"),))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_an_example_can_be_carried_out(path: Path) -> None:
    spec = validate(yaml.safe_load(path.read_text()))
    assert isinstance(spec, Spec), [str(problem) for problem in spec]
    assert problems(spec, SETTINGS) == ()
