"""What the operator was given to log in to pods' servers with. Secrets stay in mounted files; policies name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bandkeeper.actuate.errors import AdapterError, PodError


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A header whose value stands in a mounted file, for the policies of some namespaces and of no other."""

    name: str
    file: Path
    namespaces: frozenset[str]
    header: str = "Authorization"
    prefix: str = "Bearer "

    def read(self) -> dict[str, str]:
        """The header; the file is read each time, because it may be replaced."""
        try:
            value = self.file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PodError(f"{self.file} cannot be read ({error}): mount the secret there") from error
        if not value or not value.isprintable():
            raise PodError(f"{self.file} must hold one line of text, the value of the header {self.header}")
        return {self.header: self.prefix + value}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAccess:
    """What the operator was given to log in to pods' servers with, and whom to trust there.

    `ca_file` is trusted instead of the system's authorities.
    """

    ca_file: Path | None = None
    credentials: Mapping[str, Credential] = field(default_factory=dict)

    def credential(self, name: str, namespace: str) -> Credential:
        """The credential that a policy in `namespace` names; AdapterError where it may not have it."""
        found = self.credentials.get(name)
        if found is None or namespace not in found.namespaces:
            raise AdapterError(
                f'no credential "{name}" for policies in namespace {namespace}; add it, with this namespace, to the '
                "chart value podAccess.credentials"
            )
        return found
