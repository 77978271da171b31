"""What the tests of topics share: a small ring, and messages that hold the name of their topic."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

import pytest

from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, Processes

SLOTS: Final = 64
CAPACITY: Final = 8192
MAX_TOPICS: Final = 16
NAME_MAX: Final = 127
"""Bytes of a topic's name."""
LIST_MAX: Final = 32759
"""Bytes of all that one reader wants, with a NUL after each name."""


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """The writer of a ring of 64 messages, 16 topics and 4 readers; closed and unlinked after."""
    with Writer.create(
        name, slots=SLOTS, capacity=CAPACITY, max_readers=4, max_topics=MAX_TOPICS
    ) as writer:
        yield writer


def publish(writer: Writer, *topics: str | None) -> None:
    """One message of each of these topics, that holds its name."""
    for topic in topics:
        number = 0 if topic is None else writer.topic(topic)
        writer.publish((topic or "").encode(), topic=number, timeout=0)


def take(reader: Reader) -> list[str | None]:
    """The names of the topics of all that is there; each message holds the name, too."""
    names = []
    while (message := reader.read(timeout=0)) is not None:
        assert bytes(message) == (message.topic_name or "").encode()
        names.append(message.topic_name)
        del message
    return names


def flood(name: str, stop: Connection) -> None:
    """A process: publish until told to stop, on two of three messages topic "a", else "b"."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_topics=MAX_TOPICS) as writer:
        ids = writer.topic("a"), writer.topic("b")
        stop.send_bytes(b"")
        while not stop.poll(0):
            for _ in range(50):
                sequence = writer.sequence
                writer.publish(b"%d" % sequence * 7, topic=ids[sequence % 3 == 0])


@pytest.fixture
def flooded(name: str, processes: Processes) -> Iterator[str]:
    """The name of a ring that another process floods."""
    ours, theirs = Pipe()
    process = processes.start(flood, name, theirs)
    assert ours.poll(DEADLINE)
    yield name
    ours.send_bytes(b"")
    processes.join(process)
