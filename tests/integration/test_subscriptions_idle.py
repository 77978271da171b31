"""What a manager with wishes costs while nothing happens, and what it leaves."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path
from typing import Final

from ringcast import Manager, attach
from tests.conftest import DEADLINE, Processes, eventually, leftovers

from .manager import running
from .subscribers import TOPICS, config_of, hold
from .venues import VenueServer

VENUE: Final = "okx"
SECONDS: Final = 1.0
SWITCHES_MOST: Final = 40
"""Sleeps of an idle manager's threads in a second: it looks for the dead, and at the clock."""


def switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text(encoding="ascii").splitlines()
        found += next(int(x.split()[1]) for x in lines if x.startswith("voluntary_ctxt"))
    return found


def test_an_idle_manager_sleeps(name: str) -> None:
    topics = TOPICS[VENUE]
    with (
        VenueServer(VENUE) as server,
        Manager(config_of(server.url, name, VENUE, subscribe=topics[:1])) as manager,
        attach(name, topics=topics, timeout=DEADLINE),
        attach(name, topics=topics[1:3], timeout=DEADLINE),
    ):
        assert manager.pid is not None
        before, began = switches(manager.pid), time.monotonic()
        threading.Event().wait(SECONDS)
        passed = time.monotonic() - began
        assert switches(manager.pid) - before < SWITCHES_MOST * passed


def open_files() -> list[str]:
    """What this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # of the listing itself
            continue
    return sorted(found)


def one_life(name: str, processes: Processes) -> None:
    """A manager in this process, and workers that leave, die, and stay."""
    first, second, silent, *_ = TOPICS[VENUE]
    context = multiprocessing.get_context("fork")
    with (
        VenueServer(VENUE, silent=[silent]) as server,
        running(config_of(server.url, name, VENUE)),
        attach(name, topics=[first], timeout=DEADLINE) as feed,
    ):
        ready, stop = context.Event(), context.Event()
        doomed = processes.start(hold, name, [second], ready, stop)
        assert ready.wait(DEADLINE)
        feed.send("ping")
        feed.subscribe(silent, wait=False, snapshot=True)
        processes.kill(doomed)
        server.wait_for(first)
        feed.unsubscribe(silent)
        server.drop()
        server.wait_for(first)


def test_nothing_is_left(name: str, processes: Processes) -> None:
    one_life(name, processes)  # what is made once is there now
    before, threads = open_files(), set(threading.enumerate())
    one_life(name, processes)
    # Those of earlier tests may still be ending.
    eventually(lambda: threads.issuperset(threading.enumerate()), "threads have ended")
    left = [each for each in open_files() if each not in before]
    assert not [each for each in left if "eventfd" in each or "shm" in each or "socket" in each]
    assert not leftovers(name)
