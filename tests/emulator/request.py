"""One request on its way from a client through a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Request:
    """What the client asked for, and how far a server has brought it. Times in seconds of the emulator's clock."""

    arrival_s: float
    prompt: int
    output: int
    longest: bool = False  # the output is the longest allowed: it ends for `length`, not for `stop`
    done: Callable[[float], None] | None = None  # tells a closed loop's client when to go on

    queued_s: float = 0.0  # when it came to its server; earlier it may have waited for one

    # A continuous-batching server's account of it.
    generated: int = 0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    scheduled_s: float | None = None
    running: bool = False
    prefill_left: int = 0  # tokens still to compute before the next token comes out
    kv_at_join: int = 0  # tokens in the KV cache when it began to decode
    joined_at_step: int = 0  # the server's decode step after which it began to decode
    ends_at_step: int = -1  # the decode step that brings its last token; -1 while it does not decode
