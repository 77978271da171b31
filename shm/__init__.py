"""Rings in shared memory: a broadcast ring from one process to many.

from ringcast.shm import broadcast

writer = broadcast.Writer.create("md")
writer.publish(b"...")

with broadcast.Reader.attach("md") as reader:     # in any other process
    for message in reader: ...
"""

from __future__ import annotations

import enum

try:
    from ._endpoint import KINDS
    from ._reader import DESCRIPTOR
    from ._writer import KIND_BINARY, KIND_EVENT, KIND_TEXT
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith(__name__):
        raise
    raise ImportError(
        f"{error.name}, a native module of ringcast, is not there: build it first: pip install -e ."
    ) from error
from .counters import GroupStatus
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
    TooManyTopics,
)
from .inspection import ReaderStatus, RingEntry, RingStatus, list_rings, status
from .names import check_name
from .ownership import unlink
from .topics import TopicStatus, hash_key, list_topics
from .waiting import Blocking, BusySpin, WaitStrategy, Yielding

__all__ = [
    "DESCRIPTOR",
    "Blocking",
    "BusySpin",
    "Evicted",
    "GroupStatus",
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
    "TooManyTopics",
    "TopicStatus",
    "WaitStrategy",
    "Yielding",
    "check_name",
    "hash_key",
    "list_rings",
    "list_topics",
    "status",
    "unlink",
]


class Kind(enum.IntEnum):
    """What a payload is."""

    TEXT = KIND_TEXT
    BINARY = KIND_BINARY
    EVENT = KIND_EVENT


KINDS.update({int(kind): kind for kind in Kind})
