"""Hostile segments: whatever stands in shared memory, a call of ringcast.h returns a status.

The sanitizers' builds are what this is for: a byte read outside a mapping ends the process.
"""

from __future__ import annotations

import random
from typing import Final

import pytest

from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import SHM
from tests.unit.hostile.conftest import Segment

from .conftest import EVERY_CHECKED
from .ends import Ends, Status

ROUNDS: Final = 150
MEMBER_ROUNDS: Final = 100
SLOTS: Final = 16
CAPACITY: Final = 1024
READERS: Final = (("block", None), ("lossy", None), ("block", ["a*"]), ("lossy", ["b", "c*"]))
TOPICS: Final = 4
MAX_READERS: Final = len(READERS) + 1
DESCRIPTORS: Final = 4096
"""Where they begin in the data segment."""
ARENA: Final = DESCRIPTORS + SLOTS * 64
READER_SLOTS: Final = 21248
"""Where they begin in the control segment, after the rows of work groups."""
INTEREST_END: Final = READER_SLOTS + MAX_READERS * 384 + 16 * (TOPICS + 3)
"""Of the control segment, before the partitions of work groups and the lists of wishes."""
GROUP_ROWS: Final = 768
"""Where they begin in the control segment."""
MEMBERS_END: Final = 0x100 + 8 * MAX_READERS
LEASES: Final = 0x5100
"""Of a group's segment: the end of what is there of members, and where the leases begin."""


sanitized = pytest.mark.parametrize("ends", EVERY_CHECKED, indirect=True)


def reattach(ends: Ends, name: str) -> None:
    """Have lossless and lossy readers, of which some choose, that know nothing of what was."""
    for end, (policy, topics) in enumerate(READERS):
        ends.ask("close", end)
        ends.attached(name, end, policy=policy, topics=topics)


@sanitized
def test_readers(ends: Ends, name: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Writer.create(
        name, slots=SLOTS, capacity=CAPACITY, max_readers=MAX_READERS, max_topics=TOPICS
    ) as writer:
        for known in ("a", "ab", "b"):
            writer.topic(known)
        data, control = Segment(SHM / f"rc.{name}.d"), Segment(SHM / f"rc.{name}.c")
        for _ in range(ROUNDS):
            data.restore()
            control.restore()
            reattach(ends, name)
            for _ in range(rng.randint(0, 2 * SLOTS)):
                payload, topic = rng.randbytes(rng.randint(0, 60)), rng.randint(0, TOPICS + 1)
                if writer.try_publish(payload, topic=topic) is None:
                    ends.read_many(SLOTS, 0)
                    ends.read_many(SLOTS, 2)
            data.remember()
            segment, low, high = rng.choice(
                (
                    (data, 0, ARENA),
                    (data, DESCRIPTORS, ARENA),
                    (data, ARENA + CAPACITY, len(data.good)),  # the table, and what is answered
                    (control, 128, 640),
                    (control, READER_SLOTS, INTEREST_END),
                )
            )
            segment.spoil(rng, low, high)
            for end in range(len(READERS)):
                for _ in range(3):
                    ends.read(end)
                    ends.read_many(5, end)
                ends.ask("wait", end, 0)
                ends.ask("note", end, 100)
                ends.info(end)
                ends.ask("valid", end)
                ends.subscribe(rng.choice(("a", "c", "*")), end=end)
                ends.unsubscribe(rng.choice(("a", "c", "*")), end=end)
                ends.ask("topic_name", end, rng.randint(0, TOPICS + 1))
            answer = ends.attach(name, len(READERS), start=rng.choice(("oldest", "latest", 3)))
            if answer["status"] is Status.OK:
                ends.read(len(READERS))
                ends.ask("close", len(READERS))
        data.restore()
        control.restore()
        reattach(ends, name)
        writer.publish(b"as ever", topic=2, timeout=0)
        for end, (_, topics) in enumerate(READERS):
            wanted = topics is None or "a*" in topics
            assert (ends.read(end)["status"] is Status.OK) == wanted
            ends.ask("close", end)


@sanitized
@pytest.mark.parametrize("balance", ["any", "key", "round-robin"])
def test_members(ends: Ends, name: str, balance: str) -> None:
    """Three of one group, whose words are anything. What nobody has spoilt is there afterwards."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=MAX_READERS) as writer:
        for end in range(3):
            ends.joined(name, end=end, balance=balance)
        control = Segment(SHM / f"rc.{name}.c")
        shared = Segment(SHM / f"rc.{name}.g.g")
        for _ in range(MEMBER_ROUNDS):
            for _ in range(rng.randint(0, SLOTS)):
                writer.try_publish(rng.randbytes(rng.randint(0, 60)), key=rng.randint(0, 5))
            segment, low, high = rng.choice(
                (
                    (control, GROUP_ROWS, GROUP_ROWS + 2 * 640),
                    (control, INTEREST_END, INTEREST_END + 1024 * 8),
                    (shared, 0x80, MEMBERS_END),
                    (shared, LEASES, LEASES + 8 * SLOTS),
                )
            )
            segment.spoil(rng, low, high)
            for end in range(3):
                sequences = ends.take_many(5, end)["sequences"]
                message = ends.take(end)
                ends.acknowledge(*sequences[::2], end=end)
                ends.give_back(*sequences[1::2], 7, end=end)
                ends.ask("member_wait", end, 0)
                ends.member_info(end)
                if message["status"] is Status.OK:
                    ends.acknowledge(message["sequence"], end=end)
                elif message["status"] is Status.EVICTED:
                    ends.ask("leave", end)
                    if ends.join(name, end=end, balance=balance)["status"] is not Status.OK:
                        control.restore()
                        shared.restore()
                        ends.joined(name, end=end, balance=balance)
        for end in range(3):
            ends.ask("leave", end)


@sanitized
def test_senders(ends: Ends, name: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Receiver.create(name, max_senders=2, lane_bytes=1024) as receiver:
        segment = Segment(SHM / f"rc.{name}.u")
        for _ in range(ROUNDS):
            segment.restore()
            assert ends.ask("attach_sender", 0, name, 0, "-")["status"] is Status.OK
            segment.spoil(rng, 0, len(segment.good) if rng.random() < 0.3 else 2048)
            for _ in range(3):
                ends.send(rng.randbytes(rng.randint(0, 300)))
            ends.flush()
            if ends.ask("attach_sender", 1, name, 0, "-")["status"] is Status.OK:
                ends.ask("close_sender", 1)
            ends.ask("close_sender", 0)
        segment.restore()
        assert ends.ask("attach_sender", 0, name, 0, "-")["status"] is Status.OK
        assert ends.send(b"as ever")["status"] is Status.OK
        assert [bytes(message) for message in receiver.read_available()] == [b"as ever"]
        ends.ask("close_sender", 0)
