"""How anything is measured here, whatever it is.

Processes. Every run has fresh child processes, so that no run inherits another's caches, garbage or
backlog. Nothing a child does is unbounded: whoever waits for it gives up at a deadline, and the
child has an alarm of its own for when nobody is left to wait. What goes wrong in a child, wrong
contents first of all, fails the benchmark: a fast wrong answer is no result.

Repetitions. Machines drift: other work comes and goes, clocks change. So the things compared take
turns, A B C A B C ..., and a ratio is taken between runs of the same round, then the median of the
rounds. Medians, because a disturbance only ever adds; with the least and the largest beside them,
because a median without its spread hides how much it is worth.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

import numpy as np

GRACE_S = 30.0
"""Seconds beyond a run's own duration after which a child is given up."""

SLICE_S = 0.1
"""Seconds of waiting after which one looks around."""

Placement = Literal["anywhere", "apart", "together"]
"""Which cores the children run on: as the scheduler likes, each on one of its own as far as there
are enough, or all on one."""

Params = ParamSpec("Params")


class RunFailedError(RuntimeError):
    """A run gave a wrong result or none."""


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
        """Send a value; the other end `hear`s it."""
        self._connection.send_bytes(json.dumps({"value": value}).encode())

    def fail(self, why: str) -> None:
        """Make the other end's `hear` raise."""
        self._connection.send_bytes(json.dumps({"failed": why}).encode())

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
        except EOFError:
            raise RunFailedError("the other process died") from None
        if "failed" in message:
            raise RunFailedError(message["failed"])
        return message["value"]


def _out_of_time(_signal: int, _frame: object) -> None:
    raise TimeoutError("this process's time is over")


def _child(
    target: Callable[Concatenate[Channel, Params], None],
    channel: Channel,
    deadline_s: float,
    core: int | None,
    *args: Params.args,
    **kwargs: Params.kwargs,
) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ends the parent, and the parent ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(int(deadline_s) + 1)
    try:
        target(channel, *args, **kwargs)
    except Exception:
        with contextlib.suppress(BrokenPipeError):
            channel.fail(traceback.format_exc())
        raise SystemExit(1) from None


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
            args=(target, channel, self.deadline_s, next(self.cores), *args),
            kwargs=kwargs,
        )
        process.start()
        theirs.close()
        self.processes.append(process)
        self.channels.append(Channel(ours, self.deadline_s, self.check))
        return self.channels[-1]

    def check(self) -> None:
        """Raise RunFailedError if a child has failed."""
        for process, channel in zip(self.processes, self.channels, strict=True):
            if process.exitcode:
                channel.hear()  # why, if it could tell
                raise RunFailedError(f"a child process ended with {process.exitcode}")

    def join(self) -> None:
        """Wait for every child to end well."""
        for process in self.processes:
            process.join(self.deadline_s)
            if process.exitcode is None:
                raise RunFailedError(f"a child process did not end in {self.deadline_s:.0f} s")
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
    finally:
        for process in group.processes:
            process.kill()
            process.join()
            process.close()


# ---- figures -------------------------------------------------------------------------------

Samples = Mapping[str, Sequence[float]]
"""By figure name, one value for each round."""


def interleave(
    runs: Sequence[Callable[[], Mapping[str, float]]], repeat: int
) -> dict[str, list[float]]:
    """Do every run once, then every run again, `repeat` rounds in all; collect what they return."""
    samples: dict[str, list[float]] = {}
    for _ in range(repeat):
        for run in runs:
            for name, value in run().items():
                samples.setdefault(name, []).append(value)
    return samples


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured once a round, or the ratio of two such things.

    Attributes:
        name: what it is.
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
            "values": self.values,
        }
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


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
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


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a scenario.

    Attributes:
        scenario: its name.
        parameters: what it was run with.
        machine: as `describe_machine` has it.
        groups: figures under their headings.
    """

    scenario: str
    parameters: Mapping[str, Any]
    machine: Mapping[str, Any]
    groups: Mapping[str, Sequence[Figure]]

    @property
    def met(self) -> bool:
        """Is every figure as good as its floor?"""
        return all(figure.met for group in self.groups.values() for figure in group)

    def as_json(self) -> dict[str, Any]:
        """All of it, for json.dumps."""
        groups = {name: [f.as_json() for f in group] for name, group in self.groups.items()}
        return {
            "scenario": self.scenario,
            "parameters": self.parameters,
            "machine": self.machine,
            "met": self.met,
            "groups": groups,
        }

    def as_text(self) -> str:
        """All of it as a table."""
        head = ("", "median", "min", "max", "", "floor")
        tables = {name: [f.as_row() for f in group] for name, group in self.groups.items()}
        rows = [head, *(row for table in tables.values() for row in table)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            ", ".join(f"{key} {value}" for key, value in about.items())
            for about in ({"scenario": self.scenario, **self.parameters}, self.machine)
        ]
        lines += ["", _line(head, widths)]
        for name, table in tables.items():
            lines += [name, *(_line(row, widths) for row in table)]
        return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, unit, floor = row
    cells = [f"  {name:<{widths[0]}}"]
    cells += [f"{number:>{width}}" for number, width in zip(numbers, widths[1:4], strict=True)]
    return "  ".join([*cells, f"{unit:<{widths[4]}}", floor]).rstrip()


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
    }
