"""Segments that lie: whatever stands in them, an error of `shm.errors` or an answer, no crash.

Each campaign runs in a child process of its own, so that a crash is a failed test and an endless
loop meets a deadline. It writes through the segment's file, restores it after each try, and tells
its seed and how many tries it makes.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import pytest

import shm
from shm.broadcast import Reader, Writer
from tests.conftest import SHM, Processes

SLOTS: Final = 4
CAPACITY: Final = 256
HEADER: Final = 4096
POLICIES: Final[tuple[Literal["block"], Literal["lossy"]]] = ("block", "lossy")
WORDS: Final = (0, 1, 2, 3, 5, 255, *(2**n + d for n in (31, 32, 40, 62, 63) for d in (-1, 0)))
TRIES: Final = {"attach": 40_000, "descriptors": 50_000, "counters": 30_000, "control": 40_000}


class File:
    """One segment's bytes, as an attacker with write permission has them."""

    def __init__(self, name: str, which: str) -> None:
        self.path = SHM / f"rc.{name}.{which}"
        self.fd = os.open(self.path, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size
        self.saved = b""

    def save(self) -> None:
        """Remember the bytes as they are."""
        self.saved = os.pread(self.fd, self.size, 0)

    def restore(self) -> None:
        """Put the remembered bytes back."""
        os.pwrite(self.fd, self.saved, 0)

    def damage(self, rng: random.Random, start: int, stop: int) -> None:
        """Overwrite something in [start, stop): a byte, a word of an interesting value or near what
        was there, or noise."""
        at = rng.randrange(start, stop)
        how = rng.randrange(4)
        if how == 0:
            os.pwrite(self.fd, bytes([rng.randrange(256)]), at)
        elif how == 1:
            os.pwrite(self.fd, rng.randbytes(min(rng.randrange(1, 65), stop - at)), at)
        else:
            at -= at % 8
            word = rng.choice((*WORDS, 2**64 - 1))
            if how == 3:
                word = int.from_bytes(self.saved[at : at + 8], "little") + rng.randrange(-3, 4)
            os.pwrite(self.fd, (word % 2**64).to_bytes(8, "little"), at)


@contextlib.contextmanager
def ring(name: str) -> Iterator[Writer]:
    """A small ring with some messages behind it and some in it."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=3) as writer:
        for number in range(11):
            writer.publish(b"%02d" % number * (number % 9))
        yield writer


def read_all(reader: Reader) -> None:
    """Every way of reading, and every way of looking at what was read."""
    for message in reader.poll(3):
        assert len(bytes(message)) == len(message)
        with memoryview(message) as view:
            bytes(view)
    with reader.batch(8, timeout=0) as batch:
        for index in range(len(batch)):
            bytes(batch.payload(index))
        if len(batch):
            with contextlib.suppress(ValueError):
                batch.records("u1").tobytes()
    message_or_none = reader.read(timeout=0)
    if message_or_none is not None:
        bytes(message_or_none)
    _ = reader.lag, reader.lost, reader.cursor


def fuzz_attach(name: str, rng: random.Random, tries: int) -> None:
    """Anything wrong in either header, or in the slots, before attaching."""
    with ring(name):
        data, control = File(name, "d"), File(name, "c")
        data.save()
        control.save()
        for _ in range(tries):
            if rng.randrange(3):
                data.damage(rng, 0, 0x200)
            else:
                control.damage(rng, 0, control.size)
            with (
                contextlib.suppress(shm.RingError),
                Reader.attach(
                    name, policy=rng.choice(POLICIES), start=rng.choice(("latest", "oldest"))
                ) as reader,
            ):
                read_all(reader)
            if not rng.randrange(8):
                with contextlib.suppress(shm.RingError):
                    shm.status(name)
            data.restore()
            control.restore()


def _fuzz_attached(name: str, rng: random.Random, tries: int, start: int, stop: int) -> None:
    with ring(name) as writer:
        data = File(name, "d")
        for number in range(tries):
            if number % 2 == 0:
                readers = [Reader.attach(name, policy=p, start="oldest") for p in POLICIES]
                with contextlib.suppress(shm.RingFull):
                    writer.publish_many([b"a", b"bcd", b""][: 1 + number % 3], timeout=0)
            data.save()
            for _ in range(rng.randrange(1, 4)):
                data.damage(rng, start, stop)
            for reader in readers:
                with contextlib.suppress(shm.RingError):
                    read_all(reader)
            data.restore()
            if number % 2:
                for reader in readers:
                    reader.close()


def fuzz_descriptors(name: str, rng: random.Random, tries: int) -> None:
    """Descriptors that point outside, overlap, or are no descriptors, under attached readers."""
    _fuzz_attached(name, rng, tries, HEADER, HEADER + 64 * SLOTS)


def fuzz_counters(name: str, rng: random.Random, tries: int) -> None:
    """The header's counters and state, under attached readers."""
    _fuzz_attached(name, rng, tries, 0x80, 0x200)


def fuzz_control(name: str, rng: random.Random, tries: int) -> None:
    """Everything that a worker can write, under a writer that publishes."""
    with ring(name) as writer:
        control = File(name, "c")
        for number in range(tries):
            if number % 64 == 0:
                reader = Reader.attach(name)
            control.save()
            for _ in range(rng.randrange(1, 4)):
                control.damage(rng, 0x80, control.size)
            with contextlib.suppress(shm.RingError):
                before = writer.sequence
                after = writer.try_publish(b"x" * rng.randrange(writer.max_message + 1))
                assert after in (None, before)
            with contextlib.suppress(shm.RingError):
                reader.poll()
            if not rng.randrange(16):
                with contextlib.suppress(shm.RingError, IndexError):
                    (writer.demote if rng.randrange(2) else writer.evict)(rng.randrange(4))
                    shm.status(name)
            control.restore()
            if number % 64 == 63:
                with contextlib.suppress(shm.RingError):
                    reader.poll()
                reader.close()


CAMPAIGNS: Final[dict[str, Callable[[str, random.Random, int], None]]] = {
    "attach": fuzz_attach,
    "descriptors": fuzz_descriptors,
    "counters": fuzz_counters,
    "control": fuzz_control,
}


def run_campaign(what: str, name: str, seed: int) -> None:
    """In the child."""
    print(f"{what}: {TRIES[what]} tries, seed {seed}", flush=True)
    CAMPAIGNS[what](name, random.Random(seed), TRIES[what])


def test_there_are_enough_tries() -> None:
    assert sum(TRIES.values()) >= 100_000


@pytest.mark.parametrize("what", CAMPAIGNS)
def test_no_contents_crash(what: str, name: str, processes: Processes) -> None:
    seed = random.SystemRandom().getrandbits(32)
    child = processes.start(run_campaign, what, name, seed)
    processes.join(child)


# ---- one thing wrong at a time -----------------------------------------------------------------


def damaged(name: str, which: str, at: int, fmt: str, value: int) -> Any:
    """What attaching says when one field has another value."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY):
        file = File(name, which)
        os.pwrite(file.fd, struct.pack(fmt, value), at)
        with pytest.raises(shm.RingError) as caught:
            Reader.attach(name)
        with pytest.raises(type(caught.value)):
            shm.status(name)
        os.close(file.fd)
    return caught.value


@pytest.mark.parametrize("which", ["d", "c"])
@pytest.mark.parametrize(
    ("at", "fmt", "value", "error"),
    [
        pytest.param(0, "<Q", 0x1234, shm.LayoutMismatch, id="magic"),
        pytest.param(0, "<Q", 0, shm.RingNotFound, id="no magic"),
        pytest.param(8, "<I", 99, shm.LayoutMismatch, id="version"),
        pytest.param(12, "<I", 0, shm.RingCorrupt, id="max_readers"),
        pytest.param(16, "<Q", 1, shm.LayoutMismatch, id="layout hash"),
        pytest.param(24, "<Q", 1, shm.RingCorrupt, id="size"),
        pytest.param(32, "<Q", 1, shm.RingCorrupt, id="instance"),
        pytest.param(40, "<Q", 3, shm.RingCorrupt, id="slots"),
        pytest.param(48, "<Q", 2**63, shm.RingCorrupt, id="capacity"),
        pytest.param(56, "<Q", 2**31, shm.RingCorrupt, id="max_message"),
    ],
)
def test_one_wrong_field(
    name: str, which: str, at: int, fmt: str, value: int, error: type[shm.RingError]
) -> None:
    assert isinstance(damaged(name, which, at, fmt, value), error)


@pytest.mark.parametrize("which", ["d", "c"])
def test_the_other_byte_order(name: str, which: str) -> None:
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY):
        file = File(name, which)
        magic = os.pread(file.fd, 8, 0)
        os.pwrite(file.fd, magic[::-1], 0)
        with pytest.raises(shm.LayoutMismatch, match="byte order"):
            Reader.attach(name)
        os.close(file.fd)


@pytest.mark.parametrize("which", ["d", "c"])
def test_truncated_and_lengthened(name: str, which: str) -> None:
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=1):
        path = SHM / f"rc.{name}.{which}"
        whole = path.read_bytes()
        for size in [*range(0, len(whole), 97), len(whole) - 1, len(whole) + 1, len(whole) * 2]:
            replace(path, (whole + bytes(len(whole)))[:size])
            with pytest.raises(shm.RingError):
                Reader.attach(name)
    with contextlib.suppress(shm.RingNotFound):  # a replaced control segment is not the writer's
        shm.unlink(name)


def replace(path: Path, content: bytes) -> None:
    """Another file in its place: nobody who has the old one mapped is hurt."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o600)


@pytest.mark.parametrize("which", ["d", "c"])
def test_writable_by_others(name: str, which: str) -> None:
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY):
        (SHM / f"rc.{name}.{which}").chmod(0o666)
        with pytest.raises(shm.RingCorrupt, match="written by others"):
            Reader.attach(name)


def test_a_segment_with_holes(name: str) -> None:
    """Reading holes would take memory that nobody has given."""
    with Writer.create(name, slots=SLOTS, capacity=1 << 16):
        path = SHM / f"rc.{name}.d"
        head, size = path.read_bytes()[:HEADER], path.stat().st_size
        replace(path, head)
        os.truncate(path, size)
        with pytest.raises(shm.RingCorrupt, match="holes"):
            Reader.attach(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["d", "c"])
def test_somebody_elses(name: str, which: str) -> None:
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY):
        os.chown(SHM / f"rc.{name}.{which}", 65534, -1)
        with pytest.raises(shm.RingCorrupt, match="belongs to user 65534"):
            Reader.attach(name)
        with pytest.raises(shm.RingCorrupt):
            shm.status(name)
        os.chown(SHM / f"rc.{name}.d", 65534, -1)
        os.chown(SHM / f"rc.{name}.c", 65534, -1)
        with Reader.attach(name, owner=65534) as reader:
            assert reader.lag == 0


def test_segments_of_two_rings(name: str) -> None:
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY):
        old = (SHM / f"rc.{name}.d").read_bytes()
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY):
        replace(SHM / f"rc.{name}.d", old)
        with pytest.raises(shm.RingCorrupt, match="different rings"):
            Reader.attach(name)
