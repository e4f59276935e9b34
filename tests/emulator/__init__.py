"""Emulated GPU model servers: plays a vLLM-like or Triton-like server for every ready pod of chosen workloads.

`Fleet` runs without Kubernetes (pods given by a call); `python -m tests.emulator` follows a real API server's pods.
"""

from .config import EmulatorConfig, load_config, parse_config
from .fleet import Fleet, PodInfo

__all__ = ["EmulatorConfig", "Fleet", "PodInfo", "load_config", "parse_config"]
