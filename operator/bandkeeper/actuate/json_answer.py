"""JSON that servers in pods answer with, held to what it may cost us: whatever is in a pod can answer."""

from __future__ import annotations

import json
from typing import Any

MOST_PARTS = 50_000  # lists and maps; 700,000 empty ones fit into 2 MiB, and take 50 MiB and 0.3 s


def parsed(body: bytes) -> Any:
    """The document. ValueError where it is none, or one that nobody needs to be so intricate."""
    if body.count(b"[") + body.count(b"{") > MOST_PARTS:
        raise ValueError("too many lists and maps")
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
