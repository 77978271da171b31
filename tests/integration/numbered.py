"""Messages of an uplink: each holds its sender and its number; the rest follows from them."""

from __future__ import annotations

import os
import random
import struct
import time
from collections import defaultdict
from typing import Final

from ringcast import shm
from ringcast.shm.mpsc import Envelope, Receiver, Sender
from tests.conftest import DEADLINE, eventually

LANES: Final = 4
LANE_BYTES: Final = 4096
LONGEST: Final = 112  # so that 32 go into a lane, whatever their sizes


_ABOUT: Final = struct.Struct("<II")
_NOISE: Final = random.Random(1).randbytes(4096)


def numbered_message(who: int, n: int, longest: int = LONGEST) -> bytes:
    """The whole message; from 8 to `longest` bytes."""
    size = (who * 7919 + n * 104729) % (longest - _ABOUT.size + 1)
    start = (who + n * 31) % 1021
    return _ABOUT.pack(who, n) + _NOISE[start : start + size]


class OrderChecker:
    """Is given what was received, and asserts that it is whole, and in order.

    Attributes:
        expected: for each sender, its next message.
        lost: messages that did not come.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest
        self.ticket: int | None = None
        self.expected: dict[int, int] = defaultdict(int)
        self.lost = 0
        self.received = 0

    def take(self, message: Envelope, lossy: bool = False) -> int:
        """Look at one message; who sent it."""
        assert self.ticket is None or message.ticket == self.ticket
        self.ticket = message.ticket + 1
        return self.take_payload(bytes(message), lossy)

    def take_payload(self, payload: bytes, lossy: bool = False) -> int:
        """Look at one message's content."""
        who, n = _ABOUT.unpack_from(payload)
        assert isinstance(who, int)
        assert payload == numbered_message(who, n, self.longest), (
            f"message {n} of {who} is not as sent"
        )
        missing = n - self.expected[who]
        assert missing == 0 or (lossy and missing > 0), (who, n, self.expected[who])
        self.lost += missing
        self.expected[who] = n + 1
        self.received += 1
        return who

    def take_all(self, receiver: Receiver) -> int:
        """Whatever is there; how many."""
        messages = receiver.read_available(1 << 20)
        for message in messages:
            self.take(message)
        return len(messages)


def create(name: str, *, auto_ack: bool = True) -> Receiver:
    """A small uplink."""
    return Receiver.create(name, max_senders=LANES, lane_bytes=LANE_BYTES, auto_ack=auto_ack)


def attach(name: str) -> Sender:
    """Attach, as soon as there is a lane."""

    def try_to() -> Sender | None:
        try:
            return Sender.attach(name)
        except (shm.TooManySenders, shm.RingNotFound):
            return None

    found = eventually(try_to, "there is a lane")
    assert isinstance(found, Sender)
    return found


def send_for_ever(name: str, who: int) -> None:
    """A process that sends until it is killed, or the uplink ends."""
    sender = attach(name)
    n = 0
    try:
        while True:
            try:
                sender.send(numbered_message(who, n))
                n += 1
            except shm.SendUnconfirmed:
                continue
    except shm.RingClosed:
        os._exit(0)


def deadline() -> float:
    """When what begins now has gone wrong."""
    return time.monotonic() + DEADLINE
