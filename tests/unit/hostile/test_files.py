"""Spoiled files: segments and semaphores of any size, and what is no file at all."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import SHM, Processes, leftovers
from tests.unit.conftest import DATA_HEADER, control_path, data_path
from tests.unit.hostile.conftest import SLOTS, TRIES, Work, check_that_it_works, create


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
