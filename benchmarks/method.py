"""How anything is measured here, whatever it is.

Processes. Every run has fresh child processes, so that no run inherits another's caches, garbage or
backlog. Nothing a child does is unbounded: whoever waits for it gives up at a deadline, and the
child has a thread, asleep, that ends it after that, or when the benchmark has died. What goes wrong
in a child, wrong contents first of all, fails the benchmark: a fast wrong answer is no result.

Repetitions. Machines drift: other work comes and goes, clocks change. So the things compared take
turns, A B C A B C ..., and a ratio is taken between runs of the same round, then the median of the
rounds. Medians, because a disturbance only ever adds; with the least and the largest beside them,
because a median without its spread hides how much it is worth.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import select
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

import numpy as np

GRACE_S = 30.0
"""Seconds beyond a run's own duration after which a child is given up."""

SLICE_S = 0.1
"""Seconds of waiting after which one looks around."""

UNHEEDED_S = 10.0
"""Seconds a child has to end in order, when it is told to end."""

BEYOND = 10
"""Samples that must lie beyond a percentile for it to be told."""

Placement = Literal["anywhere", "apart", "together"]
"""Which cores the children run on: as the scheduler likes, each on one of its own as far as there
are enough, or all on one."""

Params = ParamSpec("Params")


class RunFailedError(RuntimeError):
    """A run gave a wrong result or none.

    Attributes:
        telling: the more, the nearer to the cause.
    """

    telling = 0


class ChildFailedError(RunFailedError):
    """What a child said: its traceback."""

    def __init__(self, why: str, *, found_wrong: bool) -> None:
        super().__init__(why)
        self.telling = 2 if found_wrong else 1


class EndedError(RunFailedError):
    """The other process ended without a word."""

    def __init__(self) -> None:
        super().__init__("the other process died")


# ---- child processes -----------------------------------------------------------------------


class Channel:
    """One end of the conversation between the benchmark and a child: values that JSON can carry."""

    def __init__(
        self, connection: Connection, deadline_s: float, others_live: Callable[[], None]
    ) -> None:
        self._connection = connection
        self.deadline_s = deadline_s
        self._others_live = others_live

    def tell(self, value: Any = None) -> None:
        """Send a value; the other end `hear`s it. Raises RunFailedError if it died."""
        self._send({"value": value})

    def fail(self, error: Exception) -> None:
        """Make the other end's `hear` raise. Raises as `tell`."""
        found_wrong = isinstance(error, RunFailedError)
        self._send({"failed": traceback.format_exc(), "found_wrong": found_wrong})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:
            raise EndedError from None

    def has_word(self, seconds: float) -> bool:
        """Wait so long at most for the other end to say something; has it?"""
        return self._connection.poll(seconds)

    def hear(self) -> Any:
        """The next value from the other end.

        Raises:
            RunFailedError: the other end failed, died, or said nothing until the deadline; or
                another child failed, for which this one would wait in vain.
        """
        end = time.monotonic() + self.deadline_s
        while not self._connection.poll(SLICE_S):
            if time.monotonic() > end:
                raise RunFailedError(f"no word from a process in {self.deadline_s:.0f} s")
            self._others_live()
        try:
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise EndedError from None
        if "failed" in message:
            raise ChildFailedError(message["failed"], found_wrong=message["found_wrong"])
        return message["value"]

    def failures(self) -> list[RunFailedError]:
        """What the other end says went wrong, if that was not heard yet."""
        try:
            while self.has_word(SLICE_S):
                self.hear()
        except RunFailedError as failure:
            return [failure]
        return []


def _out_of_time(_signal: int, _frame: object) -> None:
    raise TimeoutError("this process's time is over")


def _watch(parent: int, seconds: float) -> None:
    """Have a thread interrupt the main one by TimeoutError in so many seconds, or when the parent
    dies, and end the process if that is of no use.

    Not an alarm: its signal may come to a thread of some library, which leaves the main one asleep
    in whatever it waits for."""
    signal.signal(signal.SIGALRM, _out_of_time)
    main = threading.get_ident()
    life = os.pidfd_open(parent)
    if os.getppid() != parent:
        raise RunFailedError("the benchmark died")
    ends = select.poll()
    ends.register(life, select.POLLIN)

    def watch() -> None:
        ends.poll(seconds * 1000)
        signal.pthread_kill(main, signal.SIGALRM)
        time.sleep(UNHEEDED_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _child(
    target: Callable[Concatenate[Channel, Params], None],
    channel: Channel,
    deadline_s: float,
    parent: int,
    core: int | None,
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    for number in (signal.SIGINT, signal.SIGHUP):  # they end the parent, and that ends this
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _watch(parent, deadline_s + 1)
        target(channel, *args, **kwargs)
    except Exception as error:
        with contextlib.suppress(RunFailedError):
            channel.fail(error)
        os._exit(1)  # at a regular exit a library's thread may wait for ever to write what is left


class Crew:
    """The child processes of one run; `crew` makes it and ends it."""

    def __init__(self, deadline_s: float, cores: Iterator[int | None]) -> None:
        self.deadline_s = deadline_s
        self.cores = cores
        self.processes: list[BaseProcess] = []
        self.channels: list[Channel] = []

    def start(
        self,
        target: Callable[Concatenate[Channel, Params], None],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Channel:
        """Run ``target(channel, *args)`` in a forked child; returns this end of its channel."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        channel = Channel(theirs, self.deadline_s, lambda: None)
        process = context.Process(
            target=_child,
            args=(target, channel, self.deadline_s, os.getpid(), next(self.cores), *args),
            kwargs=kwargs,
        )
        process.start()
        theirs.close()
        self.processes.append(process)
        self.channels.append(Channel(ours, self.deadline_s, self.check))
        return self.channels[-1]

    def dismiss(self, channel: Channel) -> None:
        """End a child that waits for something that does not come any more."""
        at = self.channels.index(channel)
        process = self.processes.pop(at)
        del self.channels[at]
        process.kill()
        process.join()
        process.close()

    def check(self) -> None:
        """Raise RunFailedError if a child has failed."""
        if any(process.exitcode for process in self.processes):
            raise EndedError

    def cause(self, failure: RunFailedError) -> RunFailedError:
        """Of what made a run fail and what else children say: what one found wrong, or that it
        failed, before how they ended; for one that ends makes others fail, who may be heard first.
        """
        told = [failure]
        for channel in self.channels:
            told += channel.failures()
        cause = max(told, key=lambda one: one.telling)
        for process in self.processes:
            process.join(SLICE_S)
        codes = [process.exitcode for process in self.processes if process.exitcode]
        if isinstance(cause, EndedError) and codes:  # a signal's number is negative
            return RunFailedError(f"a child process ended with {min(codes)}")
        return cause

    def join(self) -> None:
        """Wait for every child to end well."""
        end = time.monotonic() + self.deadline_s
        while lives := [p.sentinel for p in self.processes if p.exitcode is None]:
            if time.monotonic() > end:
                raise RunFailedError(f"a child process did not end in {self.deadline_s:.0f} s")
            self.check()
            wait(lives, SLICE_S)
        self.check()


@contextlib.contextmanager
def crew(seconds: float, place: Placement = "anywhere") -> Iterator[Crew]:
    """Child processes for a run of about so many seconds, placed on cores as `place` says in the
    order in which they start; none of them outlives the block."""
    cores = sorted(os.sched_getaffinity(0))
    orders: dict[Placement, Sequence[int | None]] = {
        "anywhere": (None,),
        "apart": cores,
        "together": cores[:1],
    }
    group = Crew(seconds + GRACE_S, itertools.cycle(orders[place]))
    try:
        yield group
        group.join()
    except RunFailedError as failure:
        if (cause := group.cause(failure)) is not failure:
            raise cause from failure
        raise
    finally:
        for process in group.processes:
            process.kill()
            process.join()
            process.close()


# ---- plans ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """How a scenario is to be run.

    Attributes:
        seconds: of each run.
        repeat: rounds.
        brief: whether only the cases that matter most are run.
        captures: folder of files for `ringcast.broker.exchange.captures`, or None.
    """

    seconds: float
    repeat: int
    brief: bool = False
    captures: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """For a report's parameters."""
        return {"seconds": self.seconds, "repeat": self.repeat, "brief": self.brief}


def in_turns(steps: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Do each in turn, over and over; how long each took on average, ns, the first not counted."""
    clock = time.perf_counter_ns
    spent = dict.fromkeys(steps, 0)
    rounds = -1
    end = clock() + int(seconds * 1e9)
    while rounds < 1 or clock() < end:
        for name, step in steps.items():
            before = clock()
            step()
            spent[name] += clock() - before if rounds >= 0 else 0
        rounds += 1
    return {name: total / rounds for name, total in spent.items()}


# ---- figures -------------------------------------------------------------------------------

Samples = Mapping[str, Sequence[float]]
"""By figure name, one value for each round."""


def interleave(
    runs: Sequence[Callable[[], Mapping[str, float]]], repeat: int
) -> dict[str, list[float]]:
    """Do every run once, then every run again, `repeat` rounds in all; collect what they return,
    but what was not there in each round."""
    samples: dict[str, list[float]] = {}
    for _ in range(repeat):
        for run in runs:
            for name, value in run().items():
                samples.setdefault(name, []).append(value)
    return {name: values for name, values in samples.items() if len(values) == repeat}


def percentiles(
    wanted: Sequence[float], count: int, value_at: Callable[[float], float]
) -> dict[str, float]:
    """Percentiles of so many times, us, by name, as "p99"; none beyond which fewer than `BEYOND`
    lie. `value_at` tells the time at each, ns."""
    return {
        f"p{q:g}": float(value_at(q)) / 1000 for q in wanted if count * (100 - q) / 100 >= BEYOND
    }


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured once a round, or the ratio of two such things.

    Attributes:
        name: what it is; "ROW | COLUMN" if its group is a table.
        unit: of the values; "x" for a ratio.
        values: one for each round, in order.
        floor: the worst that is good enough, or None if nothing is demanded.
        better: whether a larger or a smaller value is better; of use with a floor.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    floor: float | None = None
    better: Literal["larger", "smaller"] = "larger"

    @property
    def cell(self) -> tuple[str, str] | None:
        """Row and column, if its group is a table."""
        return cell_of(self.name) if " | " in self.name else None

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Is the median as good as the floor?"""
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
        """This figure as cells of the table."""
        numbers = (_short(n) for n in (self.median, min(self.values), max(self.values)))
        if self.floor is None:
            return (self.name, *numbers, self.unit, "")
        sign = ">=" if self.better == "larger" else "<="
        verdict = "met" if self.met else "MISSED"
        return (self.name, *numbers, self.unit, f"{sign} {self.floor:g} x  {verdict}")

    def as_cell(self) -> str:
        """This figure as one cell: the median, and how far the rounds are from it."""
        if self.median == 0:
            return f"0 to {_short(max(self.values))}" if any(self.values) else "0"
        away = max(abs(value / self.median - 1) for value in self.values)
        return f"{_short(self.median)} ±{away * 100:.0f}%{'' if self.met else ' MISSED'}"


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    if 0 < abs(value) < 0.1:
        return f"{value:.{min(6, 2 - math.floor(math.log10(abs(value))))}f}"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(0, 3 - whole)}f}"


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    floor: float | None = None,
    better: Literal["larger", "smaller"] = "larger",
) -> Figure:
    """The quotient of two figures, round by round."""
    values = tuple(a / b for a, b in zip(above, below, strict=True))
    return Figure(name, "x", values, floor, better)


def grid(samples: Samples, unit: str, scale: float = 1.0) -> list[Figure]:
    """Figures of a table, from samples whose names are "ROW | COLUMN"."""
    return [
        Figure(name, unit, tuple(value * scale for value in values))
        for name, values in samples.items()
    ]


def cell_of(name: str) -> tuple[str, str]:
    """Row and column in "ROW | COLUMN"."""
    row, _, column = name.partition(" | ")
    return row, column


def picked(samples: Samples, what: str) -> Samples:
    """Of samples named "WHAT: NAME", those of one WHAT, by NAME."""
    start = f"{what}: "
    return {n.removeprefix(start): v for n, v in samples.items() if n.startswith(start)}


def prefixed(prefix: str, found: Mapping[str, float]) -> dict[str, float]:
    """The same under names that begin with a prefix."""
    return {f"{prefix}{name}": value for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a scenario.

    Attributes:
        scenario: its name.
        parameters: what it was run with.
        machine: as `describe_machine` has it.
        groups: figures under their headings; a heading without figures is not told.
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

    def _told(self) -> list[tuple[str, Sequence[Figure]]]:
        return [(heading, group) for heading, group in self.groups.items() if group]

    def as_json(self) -> dict[str, Any]:
        """All of it, for json.dumps."""
        groups = {name: [f.as_json() for f in group] for name, group in self._told()}
        return {
            "scenario": self.scenario,
            "parameters": self.parameters,
            "machine": self.machine,
            "missed": self.missed,
            "groups": groups,
        }

    def as_text(self) -> str:
        """All of it as tables."""
        about = ({"scenario": self.scenario, **self.parameters}, self.machine)
        lines = [
            ", ".join(f"{key} {value}" for key, value in part.items() if not _is_list(value))
            for part in about
        ]
        for heading, values in self.parameters.items():
            if _is_list(values):
                lines += ["", heading, *(f"  {key}: {value}" for key, value in values.items())]
        for name, figures in self._told():
            lines += ["", name, *(_grid_lines(figures) if figures[0].cell else _list(figures))]
        return "\n".join(lines)


def _is_list(parameter: Any) -> bool:
    return isinstance(parameter, Mapping)


def _list(figures: Sequence[Figure]) -> list[str]:
    """A line a figure."""
    rows = [("", "median", "min", "max", "", "floor"), *(figure.as_row() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [_line(row, widths) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, unit, floor = row
    cells = [f"  {name:<{widths[0]}}"]
    cells += [f"{number:>{width}}" for number, width in zip(numbers, widths[1:4], strict=True)]
    return "  ".join([*cells, f"{unit:<{widths[4]}}", floor]).rstrip()


def _grid_lines(figures: Sequence[Figure]) -> list[str]:
    """A table of medians, with the farthest round's distance from each."""
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
    """Versions of what the extra [bench] names, as far as it is installed."""
    found = {}
    for requirement in metadata.requires("ringcast") or ():
        name = re.match(r"[\w-]+", requirement)
        if name and 'extra == "bench"' in requirement:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name[0]] = metadata.version(name[0])
    return found
