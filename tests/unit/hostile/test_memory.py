"""Spoiled memory: headers that are opened, and what attached readers and a writer find."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.unit.conftest import DATA_HEADER, control_path, data_path
from tests.unit.hostile.conftest import (
    CAPACITY,
    CONTROL_PARTS,
    HEADER,
    MAX_READERS,
    OFFSETS,
    SLOTS,
    TRIES,
    Segment,
    Work,
    check_that_it_works,
    create,
    ring,
    use,
)

# ---- headers -------------------------------------------------------------------------------


def every_byte(segments: list[Segment], ways: int, rng: random.Random) -> Iterator[None]:
    """Spoil each byte of each header in so many of ten ways."""
    for segment in segments:
        for at in range(HEADER):
            now = segment.bytes[at]
            values = [*(now ^ 1 << bit for bit in range(8)), 0, 255]
            for value in rng.sample(values, ways):
                segment.write(at, bytes([value]))
                yield


def open_somehow(name: str, data: Segment, rng: random.Random) -> None:
    """Open a ring that has a living writer, by any of the public names."""
    call = rng.randrange(8)
    with contextlib.suppress(shm.RingError):
        if call == 0:
            shm.status(name)
        elif call == 1 and rng.random() < 0.2:
            assert name in [entry.name for entry in shm.list_rings()]
        elif call == 2 and rng.random() < 0.2:
            rng.choice((create, Writer.resume, shm.unlink))(name)
            raise AssertionError("its writer is alive")
        else:
            policy: Any = rng.choice(("block", "lossy"))
            start: Any = rng.choice(("latest", "oldest", "oldest"))
            with Reader.attach(name, policy=policy, start=start) as reader:
                for _ in range(3):
                    use(reader, data, rng)


def spoil_headers(name: str, tries: int, rng: random.Random) -> int:
    """Open a ring whose headers hold anything; the long run spoils each byte in every way."""
    made, ways = 0, 10 if tries > TRIES["headers"] else 3
    with ring(name) as (_, data, control):
        for _ in every_byte([data, control], ways, rng):
            open_somehow(name, data, rng)
            data.restore()
            control.restore()
            made += 1
        while made < tries:
            segments = rng.choice(([data], [control], [data, control]))
            for segment in segments:
                low, high = (0, HEADER) if segment is data else rng.choice(CONTROL_PARTS)
                segment.spoil(rng, low, high)
            open_somehow(name, data, rng)
            data.restore()
            control.restore()
            made += 1
    return made


def test_headers(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("headers", spoil_headers)


# ---- what is attached already --------------------------------------------------------------


class Pair:
    """A lossless and a lossy reader; when one was misled, both are replaced."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.control = Segment(control_path(writer.name))
        self.attach()

    def attach(self) -> None:
        self.readers = [
            Reader.attach(self.writer.name),
            Reader.attach(self.writer.name, policy="lossy"),
        ]

    def close(self) -> None:
        """Leave the control segment as it was before they came."""
        for reader in self.readers:
            reader.close()
        self.control.restore()

    def drain(self) -> None:
        """Read what is there, with the data restored; replace both readers if one can't."""
        policies = ("block", "lossy")
        if not all(self.is_fine(r, p) for r, p in zip(self.readers, policies, strict=True)):
            self.close()
            self.attach()

    def is_fine(self, reader: Reader, policy: str) -> bool:
        """Does it read to the end, and is it still what it was?"""
        if reader.policy != policy or reader.cursor > self.writer.sequence:
            return False
        try:
            for message in reader.read_available():
                assert bytes(message) == b"%d" % message.sequence * 3
            return reader.read(timeout=0) is None and reader.cursor == self.writer.sequence
        except shm.RingError:
            return False


def publish_some(writer: Writer, rng: random.Random) -> None:
    """A few messages, such as `Pair.drain` expects."""
    for _ in range(rng.randint(1, 6)):
        writer.publish(b"%d" % writer.sequence * 3, timeout=0)


def spoil_while_attached(
    name: str, tries: int, rng: random.Random, spoil: Callable[[Segment, int], None]
) -> int:
    """Let attached readers read a data segment after `spoil` changed it."""
    made = 0
    with create(name) as writer:
        data = Segment(data_path(name))
        pair = Pair(writer)
        while made < tries:
            publish_some(writer, rng)
            data.remember()
            for _ in range(4):
                spoil(data, writer.sequence)
                for reader in pair.readers:
                    use(reader, data, rng)
                    made += 1
                data.restore()
            pair.drain()
        pair.close()
        check_that_it_works(writer)
    return made


def spoil_descriptors(name: str, tries: int, rng: random.Random) -> int:
    """Descriptors with any position, length and other fields."""

    def spoil(data: Segment, sequence: int) -> None:
        at = DATA_HEADER + 64 * ((sequence - rng.randint(1, 6)) % SLOTS)
        for _ in range(rng.choice((1, 1, 1, 3))):
            data.spoil(rng, at, at + rng.choice((20, 20, 64)))

    return spoil_while_attached(name, tries, rng, spoil)


def spoil_counters(name: str, tries: int, rng: random.Random) -> int:
    """The counters of the header, mostly by numbers that could be."""
    fields = ("published", "gate", "settled", "state")
    counters = [OFFSETS[f"rc_header.{field}"] for field in fields]

    def spoil(data: Segment, sequence: int) -> None:
        for at in rng.sample(counters, rng.choice((1, 1, 3))):
            if rng.random() < 0.6:
                near = max(0, sequence + rng.randint(-2 * SLOTS, 2 * SLOTS))
                data.write(at, struct.pack("<Q", near))
            else:
                data.spoil(rng, at, at + 8)

    return spoil_while_attached(name, tries, rng, spoil)


def test_descriptors_under_attached_readers(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("descriptors", spoil_descriptors)


def test_counters_under_attached_readers(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("counters", spoil_counters)


# ---- the writer ----------------------------------------------------------------------------


def use_writer(writer: Writer, rng: random.Random) -> None:
    """One call of a writer that does not wait."""
    call = rng.randrange(8)
    payload = bytes(rng.choice((0, 1, 8, 100, CAPACITY // 4)))
    with contextlib.suppress(shm.RingFull):
        if call == 0:
            writer.publish(payload, timeout=0)
        elif call == 1:
            writer.publish_many([payload] * 3, timeout=0)
        elif call == 2:
            with writer.reserve(len(payload), timeout=0) as room:
                room[:] = payload
                room.commit()
        elif call == 3:
            rng.choice((writer.demote, writer.evict))(rng.randrange(MAX_READERS))
        else:
            writer.try_publish(payload)


def spoil_control(name: str, tries: int, rng: random.Random) -> int:
    """Cursors, gating and waiter bits, wants and states under a writer and its readers."""
    made = 0
    with create(name) as writer:
        pair, data = Pair(writer), Segment(data_path(name))
        words = OFFSETS["rc_control.wanted"]
        while made < tries:
            for _ in range(20):
                for _ in range(rng.choice((1, 1, 4))):
                    low, high = rng.choice(CONTROL_PARTS)
                    pair.control.spoil(rng, max(low, words), high)
                use_writer(writer, rng)
                use(rng.choice(pair.readers), data, rng)
                made += 1
            pair.close()
            pair.attach()
        pair.close()
        check_that_it_works(writer)
    return made


def spoil_and_resume(name: str, tries: int, rng: random.Random) -> int:
    """Take over a ring in which anything stands."""
    writer = create(name)
    reader = Reader.attach(name)
    writer.publish_many([b"%d" % i for i in range(5)])
    del writer
    data, control = Segment(data_path(name)), Segment(control_path(name))
    parts = [
        (data, 0x80, HEADER),
        (data, DATA_HEADER, DATA_HEADER + 64 * SLOTS),
        *((control, max(low, 0x80), high) for low, high in CONTROL_PARTS),
    ]
    for _ in range(tries):
        for segment, low, high in rng.choices(parts, k=rng.choice((1, 1, 3))):
            segment.spoil(rng, low, high)
        with contextlib.suppress(shm.RingError):
            resumed = Writer.resume(name)
            for _ in range(3):
                use_writer(resumed, rng)
            use(reader, data, rng)
            del resumed
        data.restore()
        control.restore()
    reader.close()
    with Writer.resume(name) as writer:
        check_that_it_works(writer)
    return tries


def test_control_under_a_writer(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("control", spoil_control)


def test_resuming_what_is_spoiled(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("resume", spoil_and_resume)
