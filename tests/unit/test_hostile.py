"""Hostile segments: whatever stands in shared memory, a call succeeds or raises an error of shm.

Each test spoils a tiny ring's memory thousands of times and lets a reader or a writer loose on it,
in a child process, so that a crash is a failed test. What was spoiled is put right again after each
try, and the ring has to work as if nothing had been.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import re
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Batch, Message, Reader, Writer
from tests.conftest import SHM, Processes, leftovers
from tests.unit.conftest import DATA_HEADER, control_path, data_path

TRIES = {
    "headers": 24_000,
    "descriptors": 120_000,
    "counters": 60_000,
    "control": 40_000,
    "resume": 8_000,
    "sizes": 1_500,
    "semaphores": 500,
}
SLOTS = 16
CAPACITY = 1024
MAX_READERS = 2
HEADER = 512
"""Bytes of either header that mean something; in the control segment, what comes before slot 0."""

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
        """From here on, this is what is right."""
        self.good = self.bytes[:]

    def restore(self) -> None:
        """Put everything right."""
        self.bytes[:] = self.good


# ---- the children --------------------------------------------------------------------------


def child(work: Work, name: str, tries: int, seed: int, result: Path) -> None:
    """Do the work, and say how often; open descriptors are counted before and after."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    made = work(name, tries, random.Random(seed))
    gc.collect()
    after = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert after == before, f"{after - before} descriptors are left open"
    result.write_text(str(made), encoding="ascii")


@pytest.fixture
def fuzz(name: str, processes: Processes, tmp_path: Path) -> Callable[[str, Work], None]:
    """Run one kind of work in a child, with a seed that is printed."""

    def run(kind: str, work: Work) -> None:
        seed = random.randrange(1 << 32)
        print(f"{kind}: seed {seed}")
        start = time.monotonic()
        processes.start(child, work, name, TRIES[kind], seed, tmp_path / "made")
        processes.join()
        made = int((tmp_path / "made").read_text(encoding="ascii"))
        print(f"{kind}: {made} tries in {time.monotonic() - start:.1f} s")
        assert made >= TRIES[kind]

    return run


def create(name: str) -> Writer:
    """The ring that is spoiled."""
    return Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=MAX_READERS)


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
    """Read all of it: what its descriptor says, from within the arena."""
    position, length = data.place(message.sequence)
    assert len(message) == message.payload.nbytes == length
    assert bytes(message) == data.arena(position, length)
    with contextlib.suppress(UnicodeDecodeError):
        message.text()
    repr(message)


def use_batch(batch: Batch, data: Segment) -> None:
    """Read all of it: what its descriptors say, from within the arena."""
    assert batch.first % SLOTS + len(batch) <= SLOTS
    assert len(batch.descriptors.tobytes()) == 64 * len(batch)
    for index in range(len(batch)):
        position, length = data.place(batch.first + index)
        with contextlib.suppress(shm.RingCorrupt):
            assert bytes(batch.payload(index)) == data.arena(position, length)
    for dtype in (np.dtype("S1"), np.dtype("<u8")):
        with contextlib.suppress(shm.RingCorrupt, ValueError):
            batch.records(dtype).tobytes()


# ---- headers -------------------------------------------------------------------------------


def every_byte(segments: list[Segment]) -> Iterator[None]:
    """Spoil each byte of each header in ten ways."""
    for segment in segments:
        for at in range(HEADER):
            now = segment.bytes[at]
            for value in {*(now ^ 1 << bit for bit in range(8)), 0, 255}:
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
    """Open a ring whose headers hold anything."""
    made = 0
    with ring(name) as (_, data, control):
        for _ in every_byte([data, control]):
            open_somehow(name, data, rng)
            data.restore()
            control.restore()
            made += 1
        while made < tries:
            segments = rng.choice(([data], [control], [data, control]))
            for segment in segments:
                segment.spoil(rng, 0, HEADER if segment is data else len(control.good))
            open_somehow(name, data, rng)
            data.restore()
            control.restore()
            made += 1
    return made


def test_headers(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("headers", spoil_headers)


# ---- what is attached already --------------------------------------------------------------------


class Pair:
    """A lossless and a lossy reader; when one was led astray, both are replaced."""

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
        """Read what is there, with the data put right, and replace who can't."""
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
    """Let attached readers read from what `spoil` did to the data segment."""
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
    """Descriptors that point anywhere, and say anything."""

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
        low, high = OFFSETS["rc_control.wanted"], len(pair.control.good)
        while made < tries:
            for _ in range(20):
                for _ in range(rng.choice((1, 1, 4))):
                    pair.control.spoil(rng, low, high)
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
        (control, 0x80, len(control.good)),
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


# ---- files ---------------------------------------------------------------------------------


def sizes_of(right: int) -> list[int]:
    """Sizes that a segment of `right` bytes might be cut or stretched to."""
    edges = [0, 8, 72, 128, 512, 640, 896, 4096, DATA_HEADER + 64 * SLOTS, right]
    return sorted({max(0, edge + more) for edge in edges for more in (-8, -1, 0, 1, 8, 4096)})


def spoil_sizes(name: str, tries: int, rng: random.Random) -> int:
    """Segments of any size, cut or stretched before anybody opens them."""
    create(name).publish(b"x")
    paths = [data_path(name), control_path(name)]
    good = [path.read_bytes() for path in paths]
    pairs = [(a, b) for a in sizes_of(len(good[0])) for b in sizes_of(len(good[1]))]
    rng.shuffle(pairs)
    right = (len(good[0]), len(good[1]))
    pairs = [pair for pair in pairs if pair != right]
    for made in range(tries):
        for path, size in zip(paths, pairs[made % len(pairs)], strict=True):
            os.truncate(path, size)
        for call in (Reader.attach, Writer.resume, shm.status):
            with contextlib.suppress(shm.RingError):
                call(name)
                raise AssertionError("it has another size than its header says")
        for path, content in zip(paths, good, strict=True):
            path.write_bytes(content)
    with Writer.resume(name) as writer:
        check_that_it_works(writer)
    return tries


def spoil_semaphores(name: str, tries: int, rng: random.Random) -> int:
    """Semaphores' files of any size, and any number of tokens and waiters in them."""
    writer = create(name)
    del writer
    paths = [SHM / left for left in leftovers(name) if left.startswith("sem.")]
    good = paths[0].read_bytes()
    for _ in range(tries):
        for path in paths:
            path.unlink()
            size = rng.choice((0, 1, len(good) - 1, len(good), len(good), len(good) + 1, 4096))
            path.write_bytes((rng.randbytes(8) + good[8:] + bytes(4096))[:size])
        with contextlib.suppress(shm.RingError), Reader.attach(name) as reader:
            reader.read(timeout=0.0001)
            reader.read_available()
        with contextlib.suppress(shm.RingError):
            writer = Writer.resume(name)
            writer.try_publish(b"x")
            del writer
    for path in paths:
        path.unlink()
        path.write_bytes(good)
    with Writer.resume(name) as writer:
        check_that_it_works(writer)
    return tries


def test_sizes(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("sizes", spoil_sizes)


def test_semaphores(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("semaphores", spoil_semaphores)


def test_enough_was_tried() -> None:
    assert sum(TRIES.values()) >= 100_000


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.symlink_to(path.with_suffix(".kept"))


def open_what_is_no_file(name: str, segment: str, make: Callable[[Path], None]) -> None:
    """Put something else in a segment's place; nothing may hang or take it for a ring."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(20)
    path = SHM / f"rc.{name}.{segment}"
    with create(name):
        path.rename(path.with_suffix(".kept"))
        make(path)
        try:
            for call in (Reader.attach, Writer.resume, shm.status):
                with contextlib.suppress(shm.RingError):
                    call(name)
                    raise AssertionError("that is no segment")
            states = [entry.state for entry in shm.list_rings() if entry.name == name]
            assert states in (["invalid"], ["incomplete"])
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
            path.with_suffix(".kept").rename(path)


@pytest.mark.parametrize("make", [make_fifo, make_directory, make_link])
@pytest.mark.parametrize("segment", ["d", "c"])
def test_what_is_no_file(
    name: str, processes: Processes, segment: str, make: Callable[[Path], None]
) -> None:
    processes.start(open_what_is_no_file, name, segment, make)
    processes.join()


# ---- headers that say so ---------------------------------------------------------------------


@pytest.fixture
def orphan(name: str) -> Iterator[str]:
    """A ring without a writer."""
    writer = create(name)
    writer.publish(b"x")
    del writer
    yield name
    shm.unlink(name)


def poke(path: Path, at: int, value: bytes) -> None:
    """Write into a segment."""
    with path.open("r+b") as segment:
        segment.seek(at)
        segment.write(value)


@pytest.mark.parametrize("segment", [data_path, control_path])
@pytest.mark.parametrize(
    ("at", "value", "error", "why"),
    [
        (0, bytes(8), shm.RingNotFound, "is not complete"),
        (0, b"\xff" * 8, shm.LayoutMismatch, "its magic is another"),
        (8, b"\x03\0\0\0", shm.LayoutMismatch, "has another layout version than 2"),
        (16, b"\0", shm.LayoutMismatch, "has version 2 but other field offsets"),
        (24, struct.pack("<Q", 1 << 40), shm.RingCorrupt, "shorter or longer than its header"),
        (32, struct.pack("<Q", 77), shm.RingCorrupt, "are of different rings"),
        (40, struct.pack("<Q", 12), shm.RingCorrupt, "impossible sizes"),
        (48, struct.pack("<Q", 1 << 50), shm.RingCorrupt, "impossible sizes"),
        (56, struct.pack("<Q", 1 << 40), shm.RingCorrupt, "impossible sizes"),
        (12, struct.pack("<I", 5000), shm.RingCorrupt, "impossible sizes"),
    ],
)
def test_each_fault_has_its_own_words(
    orphan: str,
    segment: Callable[[str], Path],
    at: int,
    value: bytes,
    error: type[Exception],
    why: str,
) -> None:
    poke(segment(orphan), at, value)
    for call in (Reader.attach, Writer.resume, shm.status):
        with pytest.raises(error, match=why):
            call(orphan)


def test_the_other_byte_order(orphan: str) -> None:
    for path in (data_path(orphan), control_path(orphan)):
        poke(path, 0, path.read_bytes()[7::-1])
    with pytest.raises(shm.LayoutMismatch, match="other byte order"):
        Reader.attach(orphan)


def test_segments_of_two_rings(orphan: str) -> None:
    other = f"{orphan}x"
    with create(other):
        data_path(orphan).write_bytes(data_path(other).read_bytes())
    with pytest.raises(shm.RingCorrupt, match="of different rings"):
        Reader.attach(orphan)


def test_a_data_segment_with_holes(orphan: str) -> None:
    path = data_path(orphan)
    content = path.read_bytes()
    os.truncate(path, 4096)
    os.truncate(path, len(content))
    with pytest.raises(shm.RingCorrupt, match="has holes"):
        Reader.attach(orphan)
    path.write_bytes(content)
    Reader.attach(orphan).close()


@pytest.mark.parametrize("segment", [data_path, control_path])
def test_a_segment_whose_creator_has_just_begun(
    orphan: str, segment: Callable[[str], Path]
) -> None:
    content = segment(orphan).read_bytes()
    os.truncate(segment(orphan), 0)
    os.truncate(segment(orphan), len(content))
    with pytest.raises(shm.RingNotFound, match="is not complete"):
        Reader.attach(orphan)
    segment(orphan).write_bytes(content)
    Reader.attach(orphan).close()


@pytest.mark.parametrize(
    ("segment", "mode"),
    [(data_path, 0o622), (data_path, 0o660), (data_path, 0o602), (control_path, 0o666)],
)
def test_segments_that_others_can_write(
    orphan: str, segment: Callable[[str], Path], mode: int
) -> None:
    segment(orphan).chmod(mode)
    for call in (Reader.attach, Writer.resume, shm.status):
        with pytest.raises(shm.RingCorrupt, match="can be written by others"):
            call(orphan)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("segment", [data_path, control_path])
def test_a_segment_of_another_user(orphan: str, segment: Callable[[str], Path]) -> None:
    os.chown(segment(orphan), 65534, -1)
    for call in (Reader.attach, Writer.resume, shm.status):
        with pytest.raises(shm.RingCorrupt, match="belongs to user 65534, not to you or root"):
            call(orphan)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_ring_of_another_user_that_is_asked_for(orphan: str) -> None:
    for left in leftovers(orphan):
        os.chown(SHM / left, 65534, -1)
    assert shm.status(orphan, owner=65534).state == "orphaned"
    with Reader.attach(orphan, owner=65534, start="oldest") as reader:
        assert [bytes(message) for message in reader.read_available()] == [b"x"]
    with pytest.raises(shm.RingCorrupt, match="belongs to user 65534"):
        Reader.attach(orphan, owner=0)


def test_a_semaphore_that_is_missing(orphan: str) -> None:
    for left in leftovers(orphan):
        if left.endswith(".r0"):
            (SHM / left).unlink()
    for call in (Reader.attach, Writer.resume):
        with pytest.raises(shm.RingCorrupt, match=r"semaphore .*\.r0 is missing"):
            call(orphan)


def test_a_cursor_from_the_future_costs_its_reader_the_place(name: str) -> None:
    with create(name) as writer, Reader.attach(name) as reader:
        while writer.try_publish(b"x") is not None:
            pass
        poke(control_path(name), HEADER, struct.pack("<Q", 1 << 60))
        assert writer.try_publish(b"x") is not None
        with pytest.raises(shm.Evicted):
            reader.read_available()
