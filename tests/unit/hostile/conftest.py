"""Hostile segments: whatever stands in shared memory, a call succeeds or raises an error of shm.

Each test spoils a tiny ring's memory thousands of times and lets a reader or a writer loose on it,
in a child process, so that a crash is a failed test. What was spoiled is restored after each
try, and the ring has to work as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Batch, Message, Reader, Writer
from tests.conftest import Processes
from tests.unit.conftest import DATA_HEADER, control_path, data_path

TRIES = {
    "headers": 6_000,
    "descriptors": 60_000,
    "counters": 30_000,
    "control": 12_000,
    "topics": 2_000,
    "groups": 2_500,
    "resume": 2_500,
    "sizes": 400,
    "semaphores": 250,
}
"""In the default run."""
LONG = 6
"""How many times as much the long run does."""
SLOTS = 16
CAPACITY = 1024
MAX_READERS = 2
MAX_TOPICS = 4
HEADER = 640
"""Bytes of the data segment's header that mean something, and of the control segment's those that
come before what is there of work groups."""
TOPICS = DATA_HEADER + 64 * SLOTS + CAPACITY
"""Where the topic table begins in the data segment."""
TOPIC_BYTES = 384
ANSWERS = TOPICS + MAX_TOPICS * TOPIC_BYTES
ANSWER_BYTES = 512
GROUP_ROWS = 768
"""Where the rows of work groups begin in the control segment."""
READERS = GROUP_ROWS + 32 * 640
"""Where the reader slots begin there."""
INTEREST = READERS + MAX_READERS * 384
"""Where the interest table begins; its rows have a word for readers and one for groups."""
INTEREST_END = INTEREST + 2 * 8 * (MAX_TOPICS + 3)
PARTITIONS = -(-INTEREST_END // 128) * 128
"""Where the partitions of groups begin."""
WISHES = PARTITIONS + 32 * 1024 * 8
"""Where the lists begin of what readers want."""
WISH_BYTES = 65536
CONTROL_PARTS = [(0, HEADER), (HEADER, GROUP_ROWS + 2 * 640), (READERS, INTEREST_END)]
"""Where something stands in the control segment that endpoints look at all the time; of the rows
of groups two."""

LAYOUT = (Path(shm.__file__).parent / "native" / "layout.h").read_text(encoding="utf-8")
OFFSETS = {
    f"{struct}.{field}": int(offset, 0)
    for struct, field, offset in re.findall(
        r"static_assert\(offsetof\((\w+), ([\w.]+)\) == (0x\w+|\d+)", LAYOUT
    )
}
NUMBERS = [0, 1, 2, 3, 7, 8, 64, 255, 256, 257, 1023, 1024, 1025, 4096, 1 << 16]
NUMBERS += [(1 << bits) + more for bits in (31, 32, 40, 63) for more in (-1, 0, 1)]
NUMBERS += [(1 << 64) - 1, (1 << 64) - 2, (1 << 64) - 64, 0x0A44474E49526372]

Work = Callable[[str, int, random.Random], int]


class Segment:
    """The bytes of one segment, to be written as nothing of ringcast writes them."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 0)
        self.good = self.bytes[:]

    def spoil(self, rng: random.Random, low: int, high: int) -> None:
        """Write a number that somebody might not expect, or noise, somewhere from `low` to below
        `high`."""
        width = rng.choice((1, 2, 4, 8, 8, 8))
        if rng.random() < 0.1:
            width = min(rng.randint(1, 64), high - low)
        at = rng.randrange(low, high - width + 1)
        if rng.random() < 0.8:
            at = max(low, at - at % width)
        now = int.from_bytes(self.bytes[at : at + width], "little")
        value = rng.choice(
            (
                rng.choice(NUMBERS),
                rng.randrange(1 << 8 * width),
                now + rng.choice((-1, 1, 2, 8, 64, CAPACITY, -CAPACITY, SLOTS, -SLOTS)),
                now ^ 1 << rng.randrange(8 * width),
            )
        )
        self.write(at, (value % (1 << 8 * width)).to_bytes(width, "little"))

    def write(self, at: int, value: bytes) -> None:
        """Write this."""
        self.bytes[at : at + len(value)] = value

    def place(self, sequence: int) -> tuple[int, int]:
        """Position and length in the descriptor of message `sequence`."""
        at = DATA_HEADER + 64 * (sequence % SLOTS) + 8
        position, length = struct.unpack_from("<QI", self.bytes, at)
        return position, length

    def arena(self, position: int, length: int) -> bytes:
        """Bytes of the arena, which a payload must not leave."""
        offset = position % CAPACITY
        assert length <= CAPACITY // 4
        assert offset + length <= CAPACITY
        at = DATA_HEADER + 64 * SLOTS + offset
        return self.bytes[at : at + length]

    def remember(self) -> None:
        """`restore` returns to these bytes."""
        self.good = self.bytes[:]

    def restore(self) -> None:
        """Undo every change since `remember`."""
        self.bytes[:] = self.good


# ---- the children --------------------------------------------------------------------------


def child(work: Work, name: str, tries: int, seed: int, result: Path) -> None:
    """Do the work, and write how often; open descriptors are counted before and after."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    made = work(name, tries, random.Random(seed))
    gc.collect()
    after = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert after == before, f"{after - before} descriptors are left open"
    result.write_text(str(made), encoding="ascii")


@pytest.fixture(
    params=[pytest.param(1, id="brief"), pytest.param(LONG, id="long", marks=pytest.mark.stress)]
)
def fuzz(
    request: pytest.FixtureRequest, name: str, processes: Processes, tmp_path: Path
) -> Callable[[str, Work], None]:
    """Run one kind of work in a child, with a seed that is printed."""

    def run(kind: str, work: Work) -> None:
        seed = random.randrange(1 << 32)
        print(f"{kind}: seed {seed}")
        start = time.monotonic()
        tries = request.param * TRIES[kind]
        processes.start(child, work, name, tries, seed, tmp_path / "made")
        processes.join()
        made = int((tmp_path / "made").read_text(encoding="ascii"))
        print(f"{kind}: {made} tries in {time.monotonic() - start:.1f} s")
        assert made >= tries

    return run


def create(name: str) -> Writer:
    """The ring that is spoiled."""
    return Writer.create(
        name,
        slots=SLOTS,
        capacity=CAPACITY,
        max_readers=MAX_READERS,
        max_topics=MAX_TOPICS,
    )


@contextlib.contextmanager
def ring(name: str) -> Iterator[tuple[Writer, Segment, Segment]]:
    """A ring with five messages in it, and its segments; it has to work in the end."""
    with create(name) as writer:
        writer.publish_many([b"%d" % i for i in range(5)])
        data, control = Segment(data_path(name)), Segment(control_path(name))
        yield writer, data, control
        data.restore()
        control.restore()
        check_that_it_works(writer)


def check_that_it_works(writer: Writer) -> None:
    """Publish and read a message."""
    with Reader.attach(writer.name) as reader:
        sequence = writer.publish(b"as ever", timeout=0)
        message = reader.read(timeout=0)
        assert message is not None
        assert (message.sequence, bytes(message)) == (sequence, b"as ever")


def use(reader: Reader, data: Segment, rng: random.Random) -> None:
    """One call of a reader, and all that can be done with what it returns."""
    with contextlib.suppress(shm.RingError):
        call = rng.randrange(4)
        if call == 0:
            message = reader.read(timeout=0)
            if message is not None:
                use_message(message, data)
        elif call == 1:
            for message in reader.read_available(rng.choice((1, 3, 256))):
                use_message(message, data)
        elif call == 2:
            with reader.batch(rng.choice((1, 3, 65536)), timeout=0) as batch:
                use_batch(batch, data)
        else:
            assert reader.lag >= 0
    assert reader.lost >= 0
    assert reader.cursor >= 0


def use_message(message: Message, data: Segment) -> None:
    """Read all of it: what its descriptor claims, from within the arena."""
    position, length = data.place(message.sequence)
    assert len(message) == message.payload.nbytes == length
    assert bytes(message) == data.arena(position, length)
    with contextlib.suppress(UnicodeDecodeError):
        message.text()
    repr(message)


def use_batch(batch: Batch, data: Segment) -> None:
    """Read all of it: what its descriptors claim, from within the arena."""
    assert batch.first % SLOTS + len(batch) <= SLOTS
    assert len(batch.descriptors.tobytes()) == 64 * len(batch)
    for index in range(len(batch)):
        position, length = data.place(batch.first + index)
        with contextlib.suppress(shm.RingCorrupt):
            assert bytes(batch.payload(index)) == data.arena(position, length)
    for dtype in (np.dtype("S1"), np.dtype("<u8")):
        with contextlib.suppress(shm.RingCorrupt, ValueError):
            batch.records(dtype).tobytes()
