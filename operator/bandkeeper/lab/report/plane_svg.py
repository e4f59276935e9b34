"""The comparison's planes as SVG for the page, with buttons that bring one rule to the front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from math import log10
from typing import TYPE_CHECKING

from bandkeeper.lab.report import axes, plane, words
from bandkeeper.lab.report.colours import Sign, signs
from bandkeeper.lab.report.plane import Curve, Plane, Rules, Spot

if TYPE_CHECKING:
    from bandkeeper.lab.bench import BenchResult

HOW_TO_READ = (
    "Up and to the left is better: up, fewer misses; left, fewer GPU-hours. Inside the green every goal is met. Each "
    "line joins the settings of one rule that no other of its settings beats; a dark rim marks the published default. "
    "Both axes are logarithmic; what lies at an end of one may lie beyond it."
)
MISSES = "misses of the worst promise over those permitted"

_WIDTH, _HEIGHT = 520.0, 350.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 12.0, 20.0, 38.0


def section(bench: BenchResult) -> str:
    """The buttons and all planes."""
    rules = plane.rules_of(bench)
    told = signs(rules.names, rules.ours, rules.hindsight)
    found = plane.planes_of(bench)
    misses = plane.misses_limits(found)
    planes = "".join(
        f"<section><h3>{escape(one.workload)}</h3>{_picture(_Frame(one.limits, misses), one, rules, told)}</section>"
        for one in found
    )
    return f'<div class="rules">{"".join(_button(name, told[name], rules) for name in rules.names)}</div>' + (
        f'<style>{_colours(rules, told)}</style><div class="planes">{planes}</div>'
    )


def _colours(rules: Rules, told: dict[str, Sign]) -> str:
    light = "".join(f".r{key}{{--c:{told[name].shade.light}}}" for key, name in enumerate(rules.names))
    dark = "".join(f".r{key}{{--c:{told[name].shade.dark}}}" for key, name in enumerate(rules.names))
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _button(name: str, sign: Sign, rules: Rules) -> str:
    key = rules.names.index(name)
    icon = (
        f'<svg viewBox="-10 -10 20 20" aria-hidden="true"><path class="spot met" d="{_shape(sign.shape, 0, 0)}"/></svg>'
    )
    return f'<button class="r{key}" data-rule="r{key}" aria-pressed="false">{icon}{escape(name)}</button>'


@dataclass(frozen=True, slots=True)
class _Frame:
    """Ends of the axes, and places in the picture; what lies beyond an end is at the end."""

    costs: tuple[float, float]
    misses: tuple[float, float]

    def x(self, gpu_hours: float) -> float:
        return _LEFT + _share(gpu_hours, *self.costs) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, misses: float) -> float:
        return _TOP + _share(misses, *self.misses) * (_HEIGHT - _TOP - _BOTTOM)


def _share(value: float, low: float, high: float) -> float:
    return (log10(min(max(value, low), high)) - log10(low)) / (log10(high) - log10(low))


def _picture(frame: _Frame, one: Plane, rules: Rules, told: dict[str, Sign]) -> str:
    shapes = "".join(_axes(frame, one))
    shapes += "".join(_curve(frame, curve, rules, told[curve.rule]) for curve in reversed(one.curves))  # ours on top
    about = f"{one.workload}: cost in GPU-hours against {MISSES}"
    return f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(about)}">{shapes}</svg>'


def _axes(frame: _Frame, one: Plane) -> Iterator[str]:
    right, floor, goal = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, frame.y(1.0)
    yield f'<rect class="within" x="{_LEFT:g}" y="{_TOP:g}" width="{right - _LEFT:g}" height="{goal - _TOP:.1f}"/>'
    for value, label in axes.logarithmic(*frame.misses):
        y = frame.y(value)
        yield f'<line class="grid" x1="{_LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for value, label in axes.logarithmic(*frame.costs, most=7):
        x = frame.x(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{floor:g}"/>'
        yield f'<text x="{x:.1f}" y="{floor + 15:g}" text-anchor="middle">{label}</text>'
    yield f'<line class="goal" x1="{_LEFT:g}" x2="{right:g}" y1="{goal:.1f}" y2="{goal:.1f}"/>'
    if one.bound_hours:
        x = frame.x(one.bound_hours)
        label = f"bound {words.number(one.bound_hours)}"
        yield f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{floor:g}"/>'
        yield f'<text class="halo" x="{max(x, _LEFT + 24):.1f}" y="{_TOP - 6:g}" text-anchor="middle">{label}</text>'
    yield f'<text x="{_LEFT + 6:g}" y="{_TOP + 14:g}">every goal met</text>'
    yield f'<text x="{_LEFT:g}" y="{_HEIGHT - 5:g}">↑ {MISSES}</text>'
    yield f'<text x="{right:g}" y="{_HEIGHT - 5:g}" text-anchor="end">GPU-hours →</text>'


def _curve(frame: _Frame, curve: Curve, rules: Rules, sign: Sign) -> str:
    front = curve.front
    kind = "ours" if curve.rule in rules.ours else "hindsight" if curve.rule in rules.hindsight else ""
    key = f"r{rules.names.index(curve.rule)}"
    places = " ".join(f"{frame.x(spot.gpu_hours):.1f},{frame.y(spot.misses):.1f}" for spot in front)
    line = f'<polyline class="front" points="{places}"/>' if len(front) > 1 else ""
    ordered = sorted(curve.spots, key=lambda spot: (spot in front, spot.is_default))
    spots = "".join(_spot(frame, spot, sign.shape, kind, dominated=spot not in front) for spot in ordered)
    return f'<g class="rule {key} {kind}" data-rule="{key}">{line}{spots}</g>'


def _spot(frame: _Frame, spot: Spot, shape: str, kind: str, *, dominated: bool) -> str:
    classes = ["spot"]
    classes += ["met"] * spot.meets_goal + ["default"] * (spot.is_default and kind != "ours")
    classes += ["dominated"] * (dominated and not spot.is_default)
    outline = _shape(shape, frame.x(spot.gpu_hours), frame.y(spot.misses), small=dominated)
    return f'<path class="{" ".join(classes)}" d="{outline}"><title>{escape(spot.told)}</title></path>'


def _shape(shape: str, x: float, y: float, *, small: bool = False) -> str:
    size = (0.7 if small else 1.0) * (1.25 if shape == "star" else 1.0)
    corners = {
        "square": [(-3.8, -3.8), (3.8, -3.8), (3.8, 3.8), (-3.8, 3.8)],
        "up": [(0, -5.2), (4.8, 3.6), (-4.8, 3.6)],
        "down": [(0, 5.2), (4.8, -3.6), (-4.8, -3.6)],
        "diamond": [(0, -5.4), (5.4, 0), (0, 5.4), (-5.4, 0)],
        "cross": [
            (-1.7, -5), (1.7, -5), (1.7, -1.7), (5, -1.7), (5, 1.7), (1.7, 1.7),
            (1.7, 5), (-1.7, 5), (-1.7, 1.7), (-5, 1.7), (-5, -1.7), (-1.7, -1.7),
        ],
        "star": [
            (0, -7.6), (1.8, -2.4), (7.2, -2.3), (2.9, 0.9), (4.5, 6.1),
            (0, 3), (-4.5, 6.1), (-2.9, 0.9), (-7.2, -2.3), (-1.8, -2.4),
        ],
    }.get(shape)  # fmt: skip
    if corners is None:
        radius = 4.3 * size
        arc = f"a{radius:.1f} {radius:.1f} 0 1 0 "
        return f"M{x - radius:.1f} {y:.1f}{arc}{2 * radius:.1f} 0{arc}{-2 * radius:.1f} 0Z"
    return "M" + "L".join(f"{x + size * dx:.1f} {y + size * dy:.1f}" for dx, dy in corners) + "Z"
