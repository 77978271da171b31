"""What the tests of an uplink share: its receiver, and a few things done to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from ringcast.shm import mpsc
from ringcast.shm.mpsc import Receiver, Sender

LANE = 256
MAX_MESSAGE = LANE // 2 - 16


@pytest.fixture
def receiver(name: str) -> Iterator[Receiver]:
    """The receiver of an uplink of 3 lanes of 256 bytes."""
    with Receiver.create(name, max_senders=3, lane_bytes=LANE) as receiver:
        yield receiver


@pytest.fixture
def manual(name: str) -> Iterator[Receiver]:
    """The same, but the test acknowledges."""
    with Receiver.create(name, max_senders=3, lane_bytes=LANE, auto_ack=False) as receiver:
        yield receiver


def fill(sender: Sender, data: bytes = b"x") -> int:
    """Send until there is no room; returns how many were sent."""
    count = 0
    while sender.try_send(data) is not None:
        count += 1
    return count


def payloads(messages: list[mpsc.Envelope]) -> list[bytes]:
    return [bytes(message) for message in messages]


def in_child(work: Callable[[], None]) -> None:
    """Run this in a forked child; it must not raise."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def orphan(name: str, messages: int = 0, taken: int = 0, auto_ack: bool = True) -> Sender:
    """An uplink whose receiver died after it took `taken` messages; returns a living sender."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            receiver = Receiver.create(name, max_senders=3, lane_bytes=LANE, auto_ack=auto_ack)
            os.write(ready[1], b"r")
            os.read(go[0], 1)
            assert taken == 0 or len(receiver.read_available(taken)) == taken
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    sender = Sender.attach(name)
    for i in range(messages):
        sender.send(b"%d" % i)
    os.write(go[1], b"g")
    assert os.waitpid(child, 0)[1] == 0
    for end in (*ready, *go):
        os.close(end)
    return sender
