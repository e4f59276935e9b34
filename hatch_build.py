"""Generates the agent's gRPC stubs from its .proto when the package is built or installed editable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("operator")
PROTO = SOURCES / "bandkeeper" / "agent" / "podresources.proto"


def generate(root: Path) -> None:
    """Write the stubs and their types beside the .proto; RuntimeError where that cannot be compiled."""
    from grpc_tools import protoc

    out = root / SOURCES
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={out}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            str(root / PROTO),
        ]
    )
    if status != 0:
        raise RuntimeError(f"{PROTO} cannot be compiled (status {status}); protoc said why above")


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before the wheel's files are collected; hatch finds it through pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).parent)
    sys.stdout.write(f"Generated from {PROTO}\n")
