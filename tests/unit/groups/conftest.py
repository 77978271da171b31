"""What the tests of work groups share: a small ring, members that are closed in the end, and ways
to take from several members in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import GroupMessage, GroupStatus, Member
from tests.conftest import BETWEEN_LOOKS, DEADLINE

SLOTS: Final = 64
CAPACITY: Final = 8192
MAX_TOPICS: Final = 16
MAX_READERS: Final = 8
BALANCES: Final[list[Any]] = ["any", "key", "round-robin"]
SLICE: Final = 0.04
"""Seconds between two looks of a member at who lives."""

Join = Callable[..., Member]


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """The writer of a ring of 64 messages, 16 topics and 8 readers; closed and unlinked after."""
    with Writer.create(
        name, slots=SLOTS, capacity=CAPACITY, max_readers=MAX_READERS, max_topics=MAX_TOPICS
    ) as writer:
        yield writer


@pytest.fixture
def join(writer: Writer) -> Iterator[Join]:
    """Joins group "g" of the ring, or another; whoever has joined is closed in the end."""
    with ExitStack() as stack:

        def join(name: str = "g", **options: Any) -> Member:
            return stack.enter_context(Member.attach(writer.name, name, **options))

        yield join


def put(writer: Writer, *keys: int, topic: str | None = None, timeout: float = 0) -> list[int]:
    """One message with each of these keys; it holds its sequence. The sequences."""
    number = 0 if topic is None else writer.topic(topic)
    return [
        writer.publish(text(writer.sequence), key=key, topic=number, timeout=timeout)
        for key in keys
    ]


def text(sequence: int) -> bytes:
    """What the message of this sequence holds."""
    return b"%08d" % sequence


def get(member: Member) -> GroupMessage:
    """The next message, which must be there."""
    message = member.read(timeout=0)
    assert message is not None
    assert bytes(message) == text(message.sequence)
    return message


def take(member: Member) -> list[int]:
    """The sequences of all that is there. Only with auto_ack, which acknowledges all in the end."""
    sequences = []
    while (message := member.read(timeout=0)) is not None:
        assert bytes(message) == text(message.sequence)
        sequences.append(message.sequence)
    return sequences


def take_and_ack(member: Member) -> list[int]:
    """The same without auto_ack."""
    sequences = []
    while (message := member.read(timeout=0)) is not None:
        assert bytes(message) == text(message.sequence)
        sequences.append(message.sequence)
        message.ack()
    return sequences


def collect(members: Iterable[Member], count: int) -> list[tuple[int, GroupMessage]]:
    """So many messages, from whichever of the members has one, with the number of the member. For
    what comes only once a member has looked around."""
    members = list(members)
    found: list[tuple[int, GroupMessage]] = []
    end = time.monotonic() + DEADLINE
    while len(found) < count:
        before = len(found)
        for number, member in enumerate(members):
            message = member.read(timeout=0)
            if message is not None:
                found.append((number, message))
            if len(found) == count:
                break
        if len(found) == before:
            assert time.monotonic() < end, f"{count - before} messages do not come"
            time.sleep(BETWEEN_LOOKS)
    return found


def status_of(writer: Writer, name: str = "g") -> GroupStatus:
    """The status of one group."""
    return next(found for found in group.list_groups(writer.name) if found.name == name)


def is_full(writer: Writer) -> bool:
    """Has the ring no room for one more message?"""
    try:
        writer.publish(b"", timeout=0)
    except shm.RingFull:
        return True
    return False
