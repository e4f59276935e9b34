"""The command line: `bandkeeper run` and its neighbours."""

from bandkeeper.cli.main import main

__all__ = ["main"]
