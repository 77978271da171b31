"""Each fault of a segment has an error that names it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import SHM, leftovers
from tests.unit.conftest import control_path, data_path
from tests.unit.hostile.conftest import READERS, create


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
        (8, b"\x02\0\0\0", shm.LayoutMismatch, "has another layout version than 5"),
        (16, b"\0", shm.LayoutMismatch, "has version 5 but other field offsets"),
        (24, struct.pack("<Q", 1 << 40), shm.RingCorrupt, "shorter or longer than its header"),
        (32, struct.pack("<Q", 77), shm.RingCorrupt, "are of different rings"),
        (40, struct.pack("<Q", 12), shm.RingCorrupt, "impossible sizes"),
        (48, struct.pack("<Q", 1 << 50), shm.RingCorrupt, "impossible sizes"),
        (56, struct.pack("<Q", 1 << 40), shm.RingCorrupt, "impossible sizes"),
        (12, struct.pack("<I", 5000), shm.RingCorrupt, "impossible sizes"),
        (72, struct.pack("<I", 1 << 20), shm.RingCorrupt, "impossible sizes"),
        (72, struct.pack("<I", 0), shm.RingCorrupt, "impossible sizes"),
    ],
)
def test_each_fault_has_its_own_error(
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
        poke(control_path(name), READERS, struct.pack("<Q", 1 << 60))
        assert writer.try_publish(b"x") is not None
        with pytest.raises(shm.Evicted):
            reader.read_available()
