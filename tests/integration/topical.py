"""Messages whose topic follows from their sequence, and readers that choose among them."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE

from .traffic import CAPACITY, SLOTS, Payloads, Policy

NAMES: Final = ("a", "ab", "b/a", "b", "c", "later", "ba", "x")
CHANGES: Final = ("a", "ab", "b*", "*a", "c", "later", "nobody", "*", "x*")
"""What readers want, and want no more."""
ARRIVAL: Final = 12
"""Messages between two that bring a new topic."""

_REPORT: Final = struct.Struct("<QQQ?")


def topic_of(seed: int, sequence: int) -> str | None:
    """The topic of a message, or None. More of them come up as the ring goes on."""
    number = zlib.crc32(struct.pack("<QQ", seed, sequence))
    if number % 8 == 0:
        return None
    return NAMES[(number >> 8) % min(len(NAMES), 1 + sequence // ARRIVAL)]


def matches(pattern: str, name: str) -> bool:
    """Does the name match, if * stands for any run of characters?"""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    *middle, last = rest
    if not name.startswith(first) or not name.endswith(last):
        return False
    name = name[len(first) : len(name) - len(last)]
    for part in middle:
        _, found, name = name.partition(part) if part else ("", "*", name)
        if not found:
            return False
    return True


def create(name: str) -> Writer:
    """A small ring."""
    return Writer.create(
        name, slots=SLOTS, capacity=CAPACITY, max_readers=20, max_topics=len(NAMES)
    )


def publish_topical(writer: Writer, seed: int, upto: int) -> None:
    """Publish up to sequence `upto`."""
    payloads = Payloads(seed, writer.max_message)
    while writer.sequence < upto:
        name = topic_of(seed, writer.sequence)
        topic = 0 if name is None else writer.topic(name)
        writer.publish(payloads[writer.sequence], topic=topic, timeout=DEADLINE)


@dataclass(frozen=True, slots=True)
class TopicalReport:
    """What a reader that chose saw."""

    received: int
    skipped: int
    lost: int
    lossy: bool

    def pack(self) -> bytes:
        return _REPORT.pack(self.received, self.skipped, self.lost, self.lossy)

    @staticmethod
    def unpack(data: bytes) -> TopicalReport:
        return TopicalReport(*_REPORT.unpack(data))


class Check:
    """Knows what a reader wants, and so what it must get and may pass over."""

    def __init__(self, reader: Reader, seed: int) -> None:
        self.reader = reader
        self.payloads = Payloads(seed, reader.max_message)
        self.seed = seed
        self.next = 0

    def wants(self, sequence: int) -> bool:
        """Does the reader want this message now?"""
        if not self.reader.chooses:
            return True
        name = topic_of(self.seed, sequence)
        return name is not None and any(matches(p, name) for p in self.reader.subscriptions)

    def passed(self, sequence: int) -> None:
        """All before this one has gone by: nothing of it was wanted."""
        if self.reader.policy == "block":
            assert not any(self.wants(n) for n in range(self.next, sequence))
        assert sequence >= self.next
        self.next = sequence

    def got(self, sequence: int, payload: memoryview) -> None:
        """One message was handed out."""
        self.passed(sequence)
        assert self.wants(sequence)
        assert payload == self.payloads[sequence]
        self.next = sequence + 1


def take(reader: Reader, check: Check, rng: random.Random) -> None:
    """One call, picked at random. Raises RingClosed at the end."""
    call = rng.randrange(3)
    if call == 0:
        message = reader.read(DEADLINE)
        if message is not None:
            check.got(message.sequence, message.payload)
    elif call == 1:
        for message in reader.read_available(rng.randint(1, 40)):
            check.got(message.sequence, message.payload)
    else:
        with reader.batch(rng.randint(1, 40), timeout=rng.choice((0, 0.001, DEADLINE))) as batch:
            sequences = (batch.descriptors["seq1"] - 1).tolist()
            for index, sequence in enumerate(sequences):
                check.got(sequence, batch.payload(index))
    check.passed(reader.cursor)


def follow_topics(
    name: str,
    seed: int,
    policy: Policy,
    topics: list[str] | None,
    changing: bool,
    pipe: Connection,
) -> None:
    """A process: read a ring from its first message to its end, check all, and report."""
    rng = random.Random(seed)
    with Reader.attach(name, policy=policy, start=0, topics=topics, label="chooser") as reader:
        check = Check(reader, seed)
        try:
            while True:
                take(reader, check, rng)
                if changing and rng.random() < 0.3:
                    rng.choice((reader.subscribe, reader.unsubscribe))(rng.choice(CHANGES))
        except shm.RingClosed:
            check.passed(reader.cursor)
        report = TopicalReport(reader.received, reader.skipped, reader.lost, policy == "lossy")
    pipe.send_bytes(report.pack())
