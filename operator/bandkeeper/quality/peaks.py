"""What each GPU can do at most, by the product name that exporters show. Extendable by the user.

Dense bf16 figures (fp16 where the GPU has no bf16), from vendors' data sheets: those with sparsity are twice as high.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from math import inf

from bandkeeper.api.records import dataclass

TERA = 1e12
GIGA = 1e9
PCIE_3, PCIE_4, PCIE_5, PCIE_6 = 15.8 * GIGA, 31.5 * GIGA, 63.0 * GIGA, 121.0 * GIGA  # 16 lanes, one direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """One GPU's peaks: FLOP/s of dense bf16, bytes/s of its memory, watts, bytes/s per direction of its links.

    `nvlink` is 0 where it has none. `edge` marks a card or module made for places with little power.
    """

    flops: float
    bandwidth: float
    power: float
    pcie: float = PCIE_4
    nvlink: float = 0.0
    edge: bool = False

    @property
    def ridge(self) -> float:
        """FLOP/byte from which compute, not memory, is the limit."""
        return self.flops / self.bandwidth


def _gpu(
    teraflops: float, terabytes: float, power: float, pcie: float, nvlink: float = 0.0, edge: bool = False
) -> Peaks:
    return Peaks(
        flops=teraflops * TERA,
        bandwidth=terabytes * TERA,
        power=power,
        pcie=pcie,
        nvlink=nvlink * GIGA,
        edge=edge,
    )


# By the words that a product name must have; of several that fit, the one with the most words counts.
KNOWN: Mapping[str, Peaks] = {
    "V100": _gpu(125, 0.90, 300, PCIE_3, 150),
    "V100 PCIE": _gpu(112, 0.90, 250, PCIE_3),
    "T4": _gpu(65, 0.32, 70, PCIE_3, edge=True),
    "A2": _gpu(18, 0.20, 60, PCIE_4 / 2, edge=True),
    "A10": _gpu(125, 0.60, 150, PCIE_4),
    "A10G": _gpu(70, 0.60, 300, PCIE_4),
    "A30": _gpu(165, 0.933, 165, PCIE_4, 100),
    "A40": _gpu(149.7, 0.696, 300, PCIE_4, 56),
    "A100 40GB": _gpu(312, 1.555, 400, PCIE_4, 300),
    "A100 80GB": _gpu(312, 2.039, 400, PCIE_4, 300),
    "A100 PCIE 40GB": _gpu(312, 1.555, 250, PCIE_4, 300),
    "A100 80GB PCIE": _gpu(312, 1.935, 300, PCIE_4, 300),
    "L4": _gpu(121, 0.30, 72, PCIE_4 / 2, edge=True),
    "L40": _gpu(181, 0.864, 300, PCIE_4),
    "L40S": _gpu(362.05, 0.864, 350, PCIE_4),
    "H20": _gpu(148, 4.0, 500, PCIE_5, 450),
    "H100": _gpu(989, 3.35, 700, PCIE_5, 450),
    "H100 PCIE": _gpu(756.5, 2.0, 350, PCIE_5, 300),
    "H100 NVL": _gpu(835, 3.9, 400, PCIE_5, 300),
    "H200": _gpu(989, 4.8, 700, PCIE_5, 450),
    "H200 NVL": _gpu(835, 4.8, 600, PCIE_5, 450),
    "GH200": _gpu(989, 4.0, 900, PCIE_5, 450),
    "GH200 144G": _gpu(989, 4.9, 900, PCIE_5, 450),
    "B200": _gpu(2250, 7.7, 1000, PCIE_5, 900),
    "GB200": _gpu(2500, 8.0, 1200, PCIE_5, 900),
    "B300": _gpu(2250, 8.0, 1100, PCIE_6, 900),
    "GB300": _gpu(2500, 8.0, 1400, PCIE_6, 900),
    "RTX PRO 6000": _gpu(467.8, 1.792, 600, PCIE_5),
}


@dataclass(frozen=True, slots=True)
class Table:
    """Peaks by product name. Names that a user adds win over the built-in ones with the same words."""

    known: Mapping[str, Peaks] = field(default_factory=lambda: KNOWN)
    _found: dict[str, Peaks | None] = field(default_factory=dict, compare=False, repr=False)

    def of(self, model: str | None) -> Peaks | None:
        """The peaks of a GPU named as exporters do, such as NVIDIA A100-SXM4-80GB; None where it is not known.

        A MIG instance has a part of its GPU's peaks that its name does not tell.
        """
        if model is None:
            return None
        if model not in self._found:
            self._found[model] = self._best(_words(model))
        return self._found[model]

    def _best(self, words: frozenset[str]) -> Peaks | None:
        if "MIG" in words:
            return None
        fitting = [(len(_words(name)), number, name) for number, name in enumerate(self.known) if _words(name) <= words]
        return self.known[max(fitting)[2]] if fitting else None


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Z0-9]+", name.upper()))


DEFAULT = Table()
_REQUIRED = ("teraflops", "terabytesPerSecond", "watts")


def table(added: Mapping[str, Mapping[str, float]]) -> Table:
    """The built-in table with a user's GPUs: `teraflops`, `terabytesPerSecond`, `watts`, and where known
    `pcieGigabytesPerSecond` and `nvlinkGigabytesPerSecond` (one direction).

    Raises ValueError with a sentence that says what to write.
    """
    known = dict(KNOWN)
    for name, figures in added.items():
        if not _words(name):
            raise ValueError(f"GPU {name!r}: write its product name as the exporter shows it, such as RTX A6000")
        known.pop(name, None)  # what a user wrote comes last, and so wins
        known[name] = _read(name, figures)
    return Table(known)


def _read(name: str, figures: Mapping[str, float]) -> Peaks:
    names = (*_REQUIRED, "pcieGigabytesPerSecond", "nvlinkGigabytesPerSecond")
    if unknown := sorted(set(figures) - set(names)):
        raise ValueError(f"GPU {name}: {', '.join(unknown)} is not known; write {', '.join(names)}")
    if missing := [wanted for wanted in _REQUIRED if wanted not in figures]:
        raise ValueError(f"GPU {name}: {', '.join(missing)} is missing; take the dense bf16 figures of its data sheet")
    if bad := [each for each, value in figures.items() if not isinstance(value, int | float) or not 0 < value < inf]:
        raise ValueError(f"GPU {name}: {', '.join(bad)} must be a number above 0")
    return _gpu(
        figures["teraflops"],
        figures["terabytesPerSecond"],
        figures["watts"],
        figures.get("pcieGigabytesPerSecond", PCIE_4 / GIGA) * GIGA,
        figures.get("nvlinkGigabytesPerSecond", 0.0),
    )
