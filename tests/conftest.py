"""What the tests share: ring names, child processes with deadlines, and a look for leftovers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from ringcast import shm

SHM = Path("/dev/shm")
DEADLINE = 60.0
"""Seconds after which anything a test waits for has gone wrong. Never a measure of speed."""

BETWEEN_LOOKS = 0.001
"""Seconds between two looks at something that another thread or process brings about."""

_numbers = itertools.count()


def leftovers(name: str) -> list[str]:
    """Everything in /dev/shm that belongs to ring `name`."""
    ours = (f"rc.{name}.", f"sem.rc.{name}.")
    return sorted(entry.name for entry in SHM.iterdir() if entry.name.startswith(ours))


@pytest.fixture
def name() -> Iterator[str]:
    """A ring name of the test's own. The test unlinks what it makes; what it leaves is removed and
    fails it."""
    name = f"t{os.getpid()}-{next(_numbers)}"
    yield name
    left = leftovers(name)
    if left:
        for entry in left:
            (SHM / entry).unlink(missing_ok=True)
        pytest.fail(f"left in /dev/shm: {left[:5]}")


class Processes:
    """Child processes that the test starts; none outlives it."""

    def __init__(self) -> None:
        self.started: list[BaseProcess] = []

    def start(self, target: Callable[..., Any], *args: Any, method: str = "fork") -> BaseProcess:
        """Run ``target(*args)`` in a child process."""
        context = multiprocessing.get_context(method)
        process: BaseProcess = context.Process(target=target, args=args, daemon=True)  # type: ignore[attr-defined]
        process.start()
        self.started.append(process)
        return process

    def join(self, *processes: BaseProcess) -> None:
        """Wait for these (default: all) and check that each ended with exit code 0."""
        for process in processes or self.started:
            process.join(DEADLINE)
            assert process.exitcode == 0, f"{process.name} ended with {process.exitcode}"

    def kill(self, process: BaseProcess) -> None:
        """SIGKILL one and wait until the kernel has buried it."""
        process.kill()
        process.join(DEADLINE)
        assert process.exitcode is not None

    def end(self) -> None:
        """Kill what is left."""
        for process in self.started:
            if process.is_alive():
                process.kill()
            process.join(DEADLINE)
            process.close()


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Child processes, ended with the test."""
    group = Processes()
    yield group
    group.end()


def eventually(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Look until `condition()` is true, and return what it returned; fail at the deadline.

    Between looks it lets go of the GIL and of the core for a moment: what it waits for is often
    done by a thread of this process, which a look without a pause would starve.
    """
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        select.select([], [], [], BETWEEN_LOOKS)
    raise AssertionError(f"not within {deadline} s: {what}")


def reader_status(name: str, slot: int = 0) -> shm.ReaderStatus | None:
    """The status of one reader slot, or None when it is free."""
    return next((r for r in shm.status(name).readers if r.slot == slot), None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing of this session's is left in /dev/shm."""
    left = [e.name for e in SHM.iterdir() if f"rc.t{os.getpid()}-" in e.name]
    if left:
        sys.stderr.write(f"left in /dev/shm by the tests: {left}\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
