"""The whole thing on one machine: control plane, Prometheus, emulated servers and the operator. For tests and the demo."""

from .manifests import deployment
from .operator import OperatorProcess
from .stack import Rights, Stack

__all__ = ["OperatorProcess", "Rights", "Stack", "deployment"]
