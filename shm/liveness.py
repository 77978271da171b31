"""Who is alive: kernel-held locks on bytes of the control segment's inode.

Each end of a ring holds the lock on its byte for as long as it lives; the kernel releases it at any
death, SIGKILL included, and at no other time. So a slot is handed on only by one who has taken its
lock, and nothing is concluded from silence. See endpoint.h for forks, broadcast.h for the slots.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from . import _ring
from .errors import RingExists, TooManyReaders
from .segment import Opened, leads_here


def take_writer(opened: Opened) -> None:
    """Become the ring's writer.

    Raises:
        RingExists: it has a living one.
    """
    name = opened.segments.name
    if not opened.endpoint.try_lock(_ring.LOCK_WRITER):
        pid = opened.segments.ring_counters()[2]
        raise RingExists(f"ring {name!r} has a living writer, process {pid}")


def take_slot(opened: Opened) -> int:
    """Take the lock of a reader slot that no living process holds.

    Raises:
        TooManyReaders: every slot has a living owner.
    """
    slots = opened.segments.max_readers
    for _ in range(3):  # a reaper may hold a slot's lock for a moment
        for slot in range(slots):
            if opened.endpoint.try_lock(_ring.LOCK_READER + slot):
                return slot
        os.sched_yield()
    raise TooManyReaders(
        f"all {slots} reader slots of ring {opened.segments.name!r} are taken by living processes:"
        " create it with a larger max_readers"
    )


def watch_writer(opened: Opened) -> Callable[[], str | None]:
    """A function that says why nothing can come any more, or None while something can.

    A dead writer alone is no reason: another can resume the ring while its name leads here.
    """
    name, endpoint = opened.segments.name, opened.endpoint

    def gone() -> str | None:
        if endpoint.is_held(_ring.LOCK_WRITER) or leads_here(name, endpoint):
            return None
        return f"ring {name!r} has no writer and was removed, so no message can come any more"

    return gone


def process_started() -> int:
    """When this process started, clock ticks since boot: with its pid, who it is (proc(5))."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19])
