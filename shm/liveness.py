"""Who is alive: kernel-held locks on bytes of the control segment's inode.

Each end of a ring holds the lock on its byte for as long as it lives; the kernel releases it at any
death, SIGKILL included, and at no other time. So a slot is handed on only by one who has taken its
lock, and nothing is concluded from silence. See endpoint.h for forks, broadcast.h for the slots.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import _ring
from .errors import TooManyReaders
from .segment import Opened


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


def label_bytes(label: str | None) -> bytes:
    """What an end calls itself, by default after the program, as it stands in the segment."""
    if label is None:
        label = Path(sys.argv[0]).name if sys.argv else "python"
    return label.encode("utf-8", "replace")[: _ring.LABEL_MAX]


def process_started() -> int:
    """When this process started, clock ticks since boot: with its pid, who it is (proc(5))."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19])
