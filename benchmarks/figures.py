"""Figures: what is measured round by round, and how it is compared.

Machines drift: other work comes and goes, clocks change. So the things compared take turns,
A B C A B C ... A ratio is taken between runs of the same round, and then the median over the
rounds. The median, because a disturbance only ever adds. The smallest and the largest value stand
beside it, because a median without its spread does not show how much it is worth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

BEYOND: Final = 10
"""Number of samples that must lie beyond a percentile for it to be reported."""

_SEPARATOR: Final = " | "
"""Between row and column in the name of a figure that stands in a table."""

Samples = Mapping[str, Sequence[float]]
"""For each figure name one value per round."""


def interleave(
    runs: Sequence[Callable[[], Mapping[str, float]]], repeat: int
) -> dict[str, list[float]]:
    """Do every run once, then every run again, for `repeat` rounds in all. Returns what they
    return, without values that are missing in some round."""
    samples: dict[str, list[float]] = {}
    for _ in range(repeat):
        for run in runs:
            for name, value in run().items():
                samples.setdefault(name, []).append(value)
    return {name: values for name, values in samples.items() if len(values) == repeat}


def percentiles(
    wanted: Sequence[float], count: int, value_at: Callable[[float], float]
) -> dict[str, float]:
    """Percentiles of `count` durations in us, with names such as "p99".

    One beyond which fewer than `BEYOND` durations lie is left out. `value_at` returns the duration
    at a percentile in ns.
    """
    return {
        f"p{q:g}": float(value_at(q)) / 1000 for q in wanted if count * (100 - q) / 100 >= BEYOND
    }


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured once per round, or the ratio of two such things.

    Attributes:
        name: what it is; "ROW | COLUMN" if its group is a table.
        unit: of the values; "x" for a ratio.
        values: one per round, in order.
        floor: the worst median that is good enough, or None if nothing is demanded.
        better: whether a larger or a smaller value is better; matters only with a floor.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    floor: float | None = None
    better: Literal["larger", "smaller"] = "larger"

    @property
    def cell(self) -> tuple[str, str] | None:
        """Row and column, if its group is a table."""
        return cell_of(self.name) if _SEPARATOR in self.name else None

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median is as good as the floor."""
        if self.floor is None:
            return True
        return self.median >= self.floor if self.better == "larger" else self.median <= self.floor

    def as_json(self) -> dict[str, Any]:
        """This figure for `Report.as_json`."""
        found: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": [float(f"{value:.6g}") for value in self.values],
        }
        if self.cell is not None:
            found |= {"row": self.cell[0], "column": self.cell[1]}
        if self.floor is not None:
            found |= {"floor": self.floor, "better": self.better, "met": self.met}
        return found

    def as_row(self) -> tuple[str, ...]:
        """This figure as the cells of a row."""
        numbers = (_number(n) for n in (self.median, min(self.values), max(self.values)))
        if self.floor is None:
            return (self.name, *numbers, self.unit, "")
        sign = ">=" if self.better == "larger" else "<="
        verdict = "met" if self.met else "MISSED"
        return (self.name, *numbers, self.unit, f"{sign} {self.floor:.3g} {self.unit}  {verdict}")

    def as_cell(self) -> str:
        """This figure as one cell: the median, and how far the farthest round is from it."""
        if self.median == 0:
            return f"0 to {_number(max(self.values))}" if any(self.values) else "0"
        away = max(abs(value / self.median - 1) for value in self.values)
        return f"{_number(self.median)} ±{away * 100:.0f}%{'' if self.met else ' MISSED'}"


def _number(value: float) -> str:
    """A number with three significant digits and no exponent."""
    if 0 < abs(value) < 0.1:
        return f"{value:.{min(6, 2 - math.floor(math.log10(abs(value))))}f}"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, 3 - whole)}f}"


def bytes_text(size: int) -> str:
    """A number of bytes for people, such as "4 KiB"."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def ratio(
    name: str,
    numerator: Sequence[float],
    denominator: Sequence[float],
    floor: float | None = None,
    better: Literal["larger", "smaller"] = "larger",
) -> Figure:
    """The ratio of two figures, round by round."""
    values = tuple(a / b for a, b in zip(numerator, denominator, strict=True))
    return Figure(name, "x", values, floor, better)


def figures_of(samples: Samples, unit: str, scale: float = 1.0) -> list[Figure]:
    """A figure for each of some samples, multiplied by `scale`."""
    return [
        Figure(name, unit, tuple(value * scale for value in values))
        for name, values in samples.items()
    ]


def cell_of(name: str) -> tuple[str, str]:
    """Row and column of the name "ROW | COLUMN"."""
    row, _, column = name.partition(_SEPARATOR)
    return row, column


def samples_of(samples: Samples, what: str) -> Samples:
    """Those of some samples that are named "WHAT: NAME", by NAME."""
    start = f"{what}: "
    return {n.removeprefix(start): v for n, v in samples.items() if n.startswith(start)}


def prefixed(prefix: str, found: Mapping[str, float]) -> dict[str, float]:
    """The same values, with a prefix before each name."""
    return {f"{prefix}{name}": value for name, value in found.items()}
