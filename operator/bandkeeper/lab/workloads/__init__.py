"""Loads for the lab, each as `Requests`.

`synthetic.make` draws them from a line of text, `synthetic.MATRIX` is the set that rules are compared on, `traces.read`
reads recorded ones, `scale.rescale` changes their rate and `scale.fit` their length.
"""

from __future__ import annotations

# What a run below 1 GB can hold: 16 bytes a request here, a few dozen more for what becomes of it.
MOST_REQUESTS = 10_000_000


class LoadError(ValueError):
    """The load cannot be used; the text says what is wrong and what to write instead."""
