"""Rings in shared memory: a broadcast ring from one process to many.

from ringcast.shm import broadcast

writer = broadcast.Writer.create("md")
writer.publish(b"...")

with broadcast.Reader.attach("md") as reader:     # in any other process
    for message in reader: ...
"""

from __future__ import annotations

import enum

from . import _ring
from .errors import (
    Evicted,
    LayoutMismatch,
    MessageTooLarge,
    RingClosed,
    RingCorrupt,
    RingError,
    RingExists,
    RingFull,
    RingNotFound,
    SendRejected,
    SendUnconfirmed,
    TooManyReaders,
    TooManySenders,
)
from .segment import check_name, unlink
from .signals import Blocking, BusySpin, Yielding
from .status import ReaderStatus, RingEntry, RingStatus, list_rings, status

__all__ = [
    "DESCRIPTOR",
    "Blocking",
    "BusySpin",
    "Evicted",
    "Kind",
    "LayoutMismatch",
    "MessageTooLarge",
    "ReaderStatus",
    "RingClosed",
    "RingCorrupt",
    "RingEntry",
    "RingError",
    "RingExists",
    "RingFull",
    "RingNotFound",
    "RingStatus",
    "SendRejected",
    "SendUnconfirmed",
    "TooManyReaders",
    "TooManySenders",
    "WaitStrategy",
    "Yielding",
    "check_name",
    "list_rings",
    "status",
    "unlink",
]

#: Base of BusySpin, Yielding and Blocking.
WaitStrategy = _ring.Wait

#: numpy dtype of a descriptor, as `Batch.descriptors` has it.
DESCRIPTOR = _ring.DESCRIPTOR


class Kind(enum.IntEnum):
    """What a payload is."""

    TEXT = _ring.KIND_TEXT
    BINARY = _ring.KIND_BINARY
    EVENT = _ring.KIND_EVENT


_ring.KINDS.update({int(kind): kind for kind in Kind})
