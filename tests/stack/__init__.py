"""The whole thing on one machine, for tests and the demo: control plane, Prometheus, emulated servers, operator."""

from .manifests import deployment
from .operator import OperatorProcess
from .stack import Rights, Stack

__all__ = ["OperatorProcess", "Rights", "Stack", "deployment"]
