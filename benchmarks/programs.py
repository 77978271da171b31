"""Programs in other languages that take part in a run, for example a reader compiled from C.

A program does its work, then prints its figures as one line of JSON to its standard output and ends
with exit code 0::

    {"received": 100000, "seconds": 0.31, "cpu_seconds": 0.3, "wrong": 0}

One that finds something wrong may instead say what on its standard error and end with exit code 65,
`os.EX_DATAERR`.

`Children.start_program` of `processes` starts one and ends it with the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from .errors import ChildFailedError, RunFailedError

POLL_INTERVAL_S: Final = 0.1
"""How often a wait for a program looks whether another process of the run has failed."""

_PR_SET_PDEATHSIG: Final = 1
"""The option of prctl(2) for the signal that a process gets when its parent dies."""
_STDERR_CHARACTERS: Final = 2000
"""How much of a program's standard error an error message shows: the last part."""


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies. Call it between fork and exec.

    Args:
        parent: process id of the parent, to see whether it has died already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def _prepare(parent: int, core: int | None) -> None:
    end_with_parent(parent)
    if core is not None:
        os.sched_setaffinity(0, {core})


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What a program found.

    Attributes:
        received: number of messages it received and checked.
        seconds: how long that took.
        cpu_seconds: user and system CPU time it took.
        wrong: number of messages that were not as expected.
    """

    received: int
    seconds: float
    cpu_seconds: float
    wrong: int

    @classmethod
    def parse(cls, output: str) -> Self:
        """Read the one line of JSON that a program prints.

        Raises:
            ValueError: it is not one line, or not an object of exactly these numbers.
        """
        lines = output.splitlines()
        if len(lines) != 1:
            raise ValueError(f"one line is expected, not {len(lines)}")
        found: Any = json.loads(lines[0])
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or sorted(found) != sorted(types):
            raise ValueError(f"an object with {', '.join(types)} is expected")
        for name, value in found.items():
            kinds = (int,) if types[name] == "int" else (int, float)
            if type(value) not in kinds or not value >= 0:
                raise ValueError(f"{name} cannot be {value!r}")
        return cls(**found)


class Program:
    """A program that runs beside the child processes of a run.

    Attributes:
        pid: its process id.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        core: int | None,
        deadline_s: float,
        check_others: Callable[[], None],
        parse: Callable[[str], ProgramResult] = ProgramResult.parse,
    ) -> None:
        """Start a program.

        Args:
            command: path of the program, then its arguments.
            core: the only core it may use; None for all.
            deadline_s: how many seconds `result` waits at most.
            check_others: raises RunFailedError if another process of the run has failed.
            parse: reads what it prints; raises ValueError if it is not that.

        Raises:
            RunFailedError: it cannot be started.
        """
        self._name = Path(command[0]).name
        self._deadline_s = deadline_s
        self._check_others = check_others
        self._parse = parse
        self._output: tuple[str, str] | None = None
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                preexec_fn=partial(  # noqa: PLW1509 - the benchmark has no threads
                    _prepare, os.getpid(), core
                ),
            )
        except OSError as error:
            raise RunFailedError(f"{command[0]} cannot be started: {error}") from error
        self.pid = self._process.pid

    def _wait(self, seconds: float) -> tuple[str, str] | None:
        """Wait at most so long for its end. Returns its output and errors, or None if it runs."""
        if self._output is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._output = self._process.communicate(timeout=seconds)
        return self._output

    def check(self) -> None:
        """Raise ChildFailedError if it has ended with another exit code than 0."""
        if code := self._process.poll():
            _, errors = self._wait(POLL_INTERVAL_S) or ("", "")
            text = errors.strip()[-_STDERR_CHARACTERS:]
            raise ChildFailedError(
                f"{self._name} ended with {code}: {text}", found_wrong=code == os.EX_DATAERR
            )

    def result(self) -> ProgramResult:
        """Wait for its end, and return its figures. May be called again.

        Raises:
            RunFailedError: it failed, found wrong messages, printed something else than its
                figures, or did not end within the deadline; or another process of the run failed.
        """
        end = time.monotonic() + self._deadline_s
        while (printed := self._wait(POLL_INTERVAL_S)) is None:
            if time.monotonic() > end:
                raise RunFailedError(f"{self._name} did not end in {self._deadline_s:.0f} s")
            self._check_others()
        self.check()
        output, _ = printed
        try:
            found = self._parse(output)
        except ValueError as error:
            raise RunFailedError(f"{self._name} printed {output!r}: {error}") from error
        if found.wrong:
            why = f"{self._name} found {found.wrong} of {found.received} messages wrong"
            raise ChildFailedError(why, found_wrong=True)
        return found

    def kill(self) -> None:
        """End it, if it still runs, and forget what it printed."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
