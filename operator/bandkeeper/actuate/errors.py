"""What adapters raise; each text is a sentence for a person."""

from __future__ import annotations


class AdapterError(Exception):
    """The adapter cannot work as configured; the text says what to change."""


class PodError(Exception):
    """A pod's server did not do as asked; the text names it.

    Attributes
    ----------
    status
        Of the answer; 0 where there was none.
    lasting
        Trying again will not help before a person changes something.
    said
        The reason that the server itself gave, in an answer of JSON.
    """

    def __init__(self, message: str, *, status: int = 0, lasting: bool = False, said: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.lasting = lasting
        self.said = said


class NotAskedError(PodError):
    """No time was left to ask a pod's server."""
