"""How a scenario is asked to run, and what it reports: as text and as JSON."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .figures import Figure


@dataclass(frozen=True, slots=True)
class Plan:
    """How a scenario is to run.

    Attributes:
        seconds: duration of each run.
        repeat: number of rounds.
        brief: whether to run only the cases that matter most.
        captures: folder of files for `ringcast.broker.exchange.captures`, or None.
    """

    seconds: float
    repeat: int
    brief: bool = False
    captures: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """This plan for the parameters of a report."""
        return {"seconds": self.seconds, "repeat": self.repeat, "brief": self.brief}


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a scenario.

    Attributes:
        scenario: its name.
        parameters: what it ran with.
        machine: what `describe_machine` returned.
        groups: figures under their headings. A heading without figures is not reported.
    """

    scenario: str
    parameters: Mapping[str, Any]
    machine: Mapping[str, Any]
    groups: Mapping[str, Sequence[Figure]]

    @property
    def missed(self) -> list[str]:
        """The figures that are not as good as their floors, with their headings."""
        return [
            f"{heading}, {figure.name}: {figure.as_cell()}"
            for heading, group in self.groups.items()
            for figure in group
            if not figure.met
        ]

    def _nonempty_groups(self) -> list[tuple[str, Sequence[Figure]]]:
        return [(heading, group) for heading, group in self.groups.items() if group]

    def as_json(self) -> dict[str, Any]:
        """The whole report, for json.dumps."""
        groups = {name: [f.as_json() for f in group] for name, group in self._nonempty_groups()}
        return {
            "scenario": self.scenario,
            "parameters": self.parameters,
            "machine": self.machine,
            "missed": self.missed,
            "groups": groups,
        }

    def as_text(self) -> str:
        """The whole report as tables."""
        about = ({"scenario": self.scenario, **self.parameters}, self.machine)
        lines = [
            ", ".join(
                f"{key} {value}" for key, value in part.items() if not isinstance(value, Mapping)
            )
            for part in about
        ]
        for heading, values in self.parameters.items():
            if isinstance(values, Mapping):
                lines += ["", heading, *(f"  {key}: {value}" for key, value in values.items())]
        for name, figures in self._nonempty_groups():
            lines += ["", name, *(_table(figures) if figures[0].cell else _list(figures))]
        return "\n".join(lines)


def _list(figures: Sequence[Figure]) -> list[str]:
    """One line per figure."""
    rows = [("", "median", "min", "max", "", "floor"), *(figure.as_row() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [_line(row, widths) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, unit, floor = row
    name_width, *number_widths, unit_width, _ = widths
    cells = [f"  {name:<{name_width}}"]
    cells += [f"{n:>{width}}" for n, width in zip(numbers, number_widths, strict=True)]
    return "  ".join([*cells, f"{unit:<{unit_width}}", floor]).rstrip()


def _table(figures: Sequence[Figure]) -> list[str]:
    """A table of medians, each with the distance of the farthest round."""
    cells = {figure.cell: figure.as_cell() for figure in figures}
    names = [figure.cell or ("", "") for figure in figures]
    rows, columns = (list(dict.fromkeys(name[i] for name in names)) for i in (0, 1))
    table = [["", *columns], *([row, *(cells.get((row, c), "-") for c in columns)] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            [f"  {row[0]:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in table
    ]
    units = dict.fromkeys(figure.unit for figure in figures)
    return [f"{lines[0]}  {', '.join(units)}".rstrip(), *lines[1:]]


def describe_machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores this process may use, load, versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "compiler": sys.version.partition("[")[2].rstrip("]"),
        **_peer_versions(),
    }


def _peer_versions() -> dict[str, str]:
    """Versions of the packages in the extra [bench], as far as they are installed."""
    found = {}
    for requirement in metadata.requires("ringcast") or ():
        name = re.match(r"[\w-]+", requirement)
        if name and 'extra == "bench"' in requirement:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name[0]] = metadata.version(name[0])
    return found
