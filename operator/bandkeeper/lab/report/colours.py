"""The reports' colours by what they stand for, for light and dark pages; told apart by colour-blind readers too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Shade(NamedTuple):
    """A colour on a light and on a dark page."""

    light: str
    dark: str


PAGE = {
    "paper": Shade("#ffffff", "#12171c"),
    "sunk": Shade("#f4f6f8", "#1a2128"),
    "ink": Shade("#1f2933", "#e4e9ee"),
    "muted": Shade("#5f6b77", "#98a5b1"),
    "faint": Shade("#e4e9ed", "#2a333c"),
}

ROLES = {
    "arrived": Shade("#cbd5de", "#3b4854"),
    "finished": Shade("#0b6fb3", "#5ab4ea"),
    "broken": Shade("#d1410c", "#ff8355"),
    "ready": Shade("#9ccbea", "#265e86"),
    "pending": Shade("#f6c878", "#94691c"),
    "wanted": Shade("#1f2933", "#e4e9ee"),
    "running": Shade("#b9dccb", "#2d5a48"),
    "cap": Shade("#8b4791", "#d9a3de"),
    "waiting": Shade("#e9a53c", "#c08326"),
    "utilization": Shade("#0b6fb3", "#5ab4ea"),
    "band": Shade("#c9ebdf", "#1c4a3b"),
    "busy": Shade("#8d99a5", "#7d8a96"),
    "compute": Shade("#0b6fb3", "#5ab4ea"),
    "memory": Shade("#d08700", "#f0b23e"),
    "latency": Shade("#0b6fb3", "#5ab4ea"),
    "past": Shade("#cbd5de", "#3b4854"),
    "saved": Shade("#7d8a96", "#98a5b1"),
    "predicted": Shade("#8b4791", "#d9a3de"),
}

QUALITY = {
    "efficient": Shade("#009e73", "#1fb58a"),
    "mixed": Shade("#8ccbee", "#4f9bc8"),
    "inefficient": Shade("#e69f00", "#e6a417"),
    "underused": Shade("#c3b7dd", "#6f6390"),
    "overloaded": Shade("#c1350a", "#f0683a"),
    "unknown": Shade("#d7dde2", "#47525d"),
    "complete": Shade("#b9dccb", "#2d5a48"),
    "partial": Shade("#e69f00", "#e6a417"),
    "nodata": Shade("#c1350a", "#f0683a"),
}

WHAT_IF = {
    "w-well": Shade("#9ccbea", "#1f5c87"),
    "w-kept": Shade("#d6e9f5", "#1c3a50"),
    "w-missed": Shade("#fbd9c3", "#5a3222"),
    "w-far": Shade("#f2a06f", "#97471f"),
    "w-overload": Shade("#b0482c", "#7d2b15"),
}

OURS = Shade("#0b6fb3", "#5ab4ea")
BOUND = Shade("#1f2933", "#e4e9ee")
RULES = (
    Shade("#aa4499", "#d98bcb"),
    Shade("#117733", "#5bb878"),
    Shade("#cc6677", "#e79aa6"),
    Shade("#999933", "#c4c46a"),
    Shade("#332288", "#a598e6"),
    Shade("#44aa99", "#74d0c1"),
    Shade("#b8860b", "#e0b84f"),
    Shade("#882255", "#d0719d"),
)
SHAPES = ("circle", "square", "up", "diamond", "down", "cross")
HINDSIGHT = Shade("#7c8894", "#94a1ad")


class Sign(NamedTuple):
    """How a rule is told apart from the others."""

    shade: Shade
    shape: str


def signs(names: Sequence[str], ours: Collection[str], hindsight: Collection[str]) -> dict[str, Sign]:
    """A colour and a shape for each rule; the peers' repeat only together, after 24 of them."""
    found, peers = dict[str, Sign](), 0
    for name in names:
        if name in ours:
            found[name] = Sign(OURS, "star")
        elif name in hindsight:
            found[name] = Sign(HINDSIGHT, SHAPES[sum(other in hindsight for other in found) % len(SHAPES)])
        else:
            found[name] = Sign(RULES[peers % len(RULES)], SHAPES[peers % len(SHAPES)])
            peers += 1
    return found
