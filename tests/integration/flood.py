"""A server that sends as fast as it may, and what tells how full a ring of such messages is."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from dataclasses import dataclass, field
from typing import Final

from ringcast import shm

from .manager import Peer

BLOCKED_AFTER: Final = 0.2
"""Seconds without room in the socket."""
SMALL: Final = {"slots": 64, "capacity": 1 << 16}
SIZE: Final = 4000


def numbered(number: int) -> str:
    """A message that fills a small ring soon, and has its number."""
    return f"{number:<{SIZE}}"


def number_of(record: str) -> int:
    return int(record.removeprefix("text "))


@dataclass
class Flood:
    """A script: numbers messages up until the client closes or `last` is sent.

    Attributes:
        sent: how many.
        blocked: set when a message could not be sent for `BLOCKED_AFTER` seconds.
        close: what the client closed with.
    """

    last: int | None = None
    sent: int = 0
    blocked: threading.Event = field(default_factory=threading.Event)
    close: tuple[int | None, str] | None = None

    def __call__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        peer = Peer(sock)
        with contextlib.suppress(OSError):
            while self.sent != self.last and not select.select([sock], [], [], 0)[0]:
                if not select.select([], [sock], [], BLOCKED_AFTER)[1]:
                    self.blocked.set()
                peer.send(numbered(self.sent))
                self.sent += 1
        self.close = peer.answer_until_end()


def full(name: str) -> bool:
    """Is there no room for another message?"""
    status = shm.status(name)
    return status.used_bytes + SIZE > status.capacity_bytes - SIZE
