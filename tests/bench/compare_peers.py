"""Bandkeeper next to the scalers in use today, from the JSON of `bandkeeper bench`: is any of them better, and how much
dearer is the cheapest one that keeps the promises as well?

`python tests/bench/compare_peers.py FILE.json`. Rules that know the requests to come are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

IN_USE = (
    "HPA on GPU_UTIL",
    "HPA on running requests",
    "KEDA on waiting requests",
    "Knative KPA on concurrency",
    "AIBrix APA",
    "WVA saturation V2",
    "WVA saturation V1",
)
"""Titles of the rules that people run today; the others of the bench are parked, research, or this project's own."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A rule at one setting on one load: means over the seeds. A promise that nothing was asked of counts as kept."""

    rule: str
    label: str
    gpu_hours: float
    attainment: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.rule}, {self.label}"

    def keeps(self, attainment: Sequence[float]) -> bool:
        """Whether every promise is kept at least as well."""
        return all(mine >= least for mine, least in zip(self.attainment, attainment, strict=True))

    def dominates(self, other: Mark) -> bool:
        """As good in every promise and in cost, and better in one of them."""
        if not self.keeps(other.attainment) or self.gpu_hours > other.gpu_hours:
            return False
        return self.gpu_hours < other.gpu_hours or self.attainment != other.attainment


@dataclass(frozen=True, slots=True)
class Verdict:
    """One load.

    Attributes
    ----------
    dominated_by
        Settings of peers that are as good in everything and better in something.
    equal
        The cheapest setting of a scaler in use that keeps every promise as well as Bandkeeper; None where none does.
    enough
        The same, but a promise that Bandkeeper keeps beyond its goal need only reach the goal.
    """

    load: str
    ours: Mark
    dominated_by: tuple[Mark, ...]
    equal: Mark | None
    enough: Mark | None

    def saved(self, peer: Mark | None) -> float | None:
        """Share of the peer's GPU-hours that Bandkeeper does without."""
        return None if peer is None or not peer.gpu_hours else 1 - self.ours.gpu_hours / peer.gpu_hours


def verdicts(result: dict[str, Any]) -> Iterator[Verdict]:
    """One for each load of a comparison's JSON."""
    goals = [slo["goal"] for slo in result["slos"]]
    for workload in result["workloads"]:
        points = [point for point in result["points"] if point["workload"] == workload["name"]]
        ours = next(_marks([point for point in points if point["is_ours"]]))
        peers = list(_marks([point for point in points if not point["is_ours"] and not point["is_hindsight"]]))
        used = [mark for mark in peers if mark.rule in IN_USE]
        least = [min(kept, goal) for kept, goal in zip(ours.attainment, goals, strict=True)]
        yield Verdict(
            load=workload["name"],
            ours=ours,
            dominated_by=tuple(mark for mark in peers if mark.dominates(ours)),
            equal=_cheapest(used, ours.attainment),
            enough=_cheapest(used, least),
        )


def _marks(points: Sequence[dict[str, Any]]) -> Iterator[Mark]:
    settings: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for point in points:
        settings.setdefault((point["rule"], point["label"]), []).append(point)
    for (rule, label), some in settings.items():
        by_promise = zip(*(point["attainment"] for point in some), strict=True)
        attainment = tuple(fmean([1.0 if share is None else share for share in shares]) for shares in by_promise)
        yield Mark(rule, label, fmean(point["gpu_hours"] for point in some), attainment)


def _cheapest(marks: Sequence[Mark], attainment: Sequence[float]) -> Mark | None:
    return min((mark for mark in marks if mark.keeps(attainment)), key=lambda mark: mark.gpu_hours, default=None)


def table(found: Sequence[Verdict]) -> str:
    """Markdown, and the means below it."""
    head = ("load", "Bandkeeper", "better in both", "cheapest in use that keeps as much", "that keeps enough")
    lines = [head, ("---",) * len(head)]
    for one in found:
        better = "; ".join(_told(mark) for mark in one.dominated_by) or "none"
        lines.append((one.load, _figures(one.ours), better, _against(one, one.equal), _against(one, one.enough)))
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    undefeated = sum(not one.dominated_by for one in found)
    return "\n".join(
        [
            text,
            "",
            f"No peer is better in both on {undefeated} of {len(found)} loads.",
            _mean("that keeps as much", [one.saved(one.equal) for one in found]),
            _mean("that keeps enough", [one.saved(one.enough) for one in found]),
        ]
    )


def _mean(which: str, saved: Sequence[float | None]) -> str:
    known = [share for share in saved if share is not None]
    if not known:
        return f"Against the cheapest scaler in use {which}: there is none on any load."
    none = len(saved) - len(known)
    rest = f"; on {none} more there is none" if none else ""
    mean = f"{100 * fmean(known):.0f} % fewer GPU-hours on average, on {len(known)} loads{rest}"
    return f"Against the cheapest scaler in use {which}: {mean}."


def _against(one: Verdict, peer: Mark | None) -> str:
    saved = one.saved(peer)
    return "none" if peer is None or saved is None else f"{_told(peer)}: {-100 * saved:+.0f} %"


def _told(mark: Mark) -> str:
    return f"{mark.name} ({_figures(mark)})"


def _figures(mark: Mark) -> str:
    kept = " / ".join(f"{100 * share:.1f}" for share in mark.attainment)
    return f"{mark.gpu_hours:.2f} h, {kept}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json", help="what bandkeeper bench --json wrote")
    result = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    if not any(point["is_ours"] for point in result["points"]):
        sys.exit("the comparison has no Bandkeeper in it: run bench without --rules, or name bandkeeper among them")
    print(table(list(verdicts(result))))


if __name__ == "__main__":
    main()
