"""A worker that can send, and the other end of what it sends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ringcast
from ringcast import Feed
from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver


@pytest.fixture
def receiver(writer: Writer) -> Iterator[Receiver]:
    """The other end of what workers send, who says himself what was delivered."""
    with Receiver.create(writer.name, max_senders=4, lane_bytes=4096, auto_ack=False) as receiver:
        yield receiver


@pytest.fixture
def feed(receiver: Receiver) -> Iterator[Feed]:
    """A worker of a ring with an uplink."""
    with ringcast.attach(receiver.name, label="worker") as feed:
        yield feed
