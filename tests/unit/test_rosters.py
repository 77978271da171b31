"""Rosters: files beside a ring in which a living process says whom it serves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.rosters import (
    ROSTERS_MAX,
    FoundRoster,
    Roster,
    read_rosters,
    remove_stale_rosters,
)
from tests.conftest import DEADLINE, Processes, leftovers

SIZE_MAX = 1 << 20
OTHER_USER = 12345


@pytest.fixture
def ring(name: str) -> Iterator[str]:
    """A ring, and nothing beside it."""
    with Writer.create(name, slots=8, capacity=1024, max_readers=1):
        yield name


@pytest.fixture
def roster(ring: str) -> Iterator[Roster]:
    """Number 1."""
    roster = Roster.claim(ring, b"first")
    yield roster
    roster.remove()


def file_of(ring: str, number: int = 1) -> Path:
    return Path(f"/dev/shm/rc.{ring}.gw-{number}")


def files(ring: str) -> list[str]:
    """The rosters' files, by what follows the ring's name."""
    found = [entry.removeprefix(f"rc.{ring}.") for entry in leftovers(ring)]
    return [entry for entry in found if entry.startswith("gw-")]


def test_written_read_and_removed(ring: str) -> None:
    one, two = Roster.claim(ring, b"a"), Roster.claim(ring, b"b")
    assert (one.number, two.number) == (1, 2)
    assert read_rosters(ring) == [FoundRoster(1, b"a"), FoundRoster(2, b"b")]
    two.write(b"longer")
    one.write(b"")
    assert read_rosters(ring) == [(1, b""), (2, b"longer")]
    assert file_of(ring).stat().st_mode & 0o777 == 0o600
    one.remove()
    assert read_rosters(ring) == [(2, b"longer")]
    three = Roster.claim(ring, b"c")
    assert three.number == 1
    for each in (two, three):
        each.remove()
    assert files(ring) == []


def claim_and_wait(ring: str, there: Connection) -> None:
    """Have a roster until killed."""
    roster = Roster.claim(ring, b"soon dead")
    there.send(roster.number)
    there.recv()


@pytest.fixture
def stale(ring: str, processes: Processes) -> str:
    """A ring with the roster of a process that was killed."""
    ours, theirs = Pipe()
    process = processes.start(claim_and_wait, ring, theirs)
    assert ours.poll(DEADLINE)
    assert read_rosters(ring) == [(1, b"soon dead")]
    processes.kill(process)
    return ring


def test_those_of_the_dead_are_not_shown_and_can_be_removed(stale: str) -> None:
    assert read_rosters(stale) == []
    alive = Roster.claim(stale, b"alive")  # takes the dead one's number
    assert read_rosters(stale) == [(1, b"alive")]
    assert remove_stale_rosters(stale) == []
    alive.remove()


def test_stale_files_are_removed(stale: str) -> None:
    Path(f"{file_of(stale)}.new").write_bytes(b"half")
    names = [f"rc.{stale}.gw-1", f"rc.{stale}.gw-1.new"]
    assert remove_stale_rosters(stale, dry_run=True) == names
    assert files(stale) == ["gw-1", "gw-1.new"]
    assert remove_stale_rosters(stale) == names
    assert remove_stale_rosters(stale) == files(stale) == []


def test_what_a_killed_process_was_writing_is_in_nobodys_way(stale: str) -> None:
    Path(f"{file_of(stale)}.new").write_bytes(b"half")
    roster = Roster.claim(stale, b"whole")
    assert read_rosters(stale) == [(1, b"whole")]
    assert files(stale) == ["gw-1"]
    roster.remove()


def test_a_reader_gets_whole_rosters(ring: str, roster: Roster) -> None:
    """One is replaced all the time while others read, and claim."""
    contents = [b"a" * 200_000, b"b" * 70_000, b"c"]
    roster.write(contents[0])
    ends = threading.Event()

    def write() -> None:
        while not ends.is_set():
            for content in contents:
                roster.write(content)

    writes = threading.Thread(target=write)
    writes.start()
    try:
        for _ in range(300):
            first, *others = read_rosters(ring)
            assert (first.number, others) == (1, [])
            assert first.data in contents
            assert remove_stale_rosters(ring) == []
            other = Roster.claim(ring, b"x")
            assert other.number == 2
            other.remove()
    finally:
        ends.set()
        writes.join(DEADLINE)


def test_it_goes_with_its_ring(name: str) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=1):
        roster = Roster.claim(name, b"x")
    assert leftovers(name) == []
    roster.write(b"y")
    roster.remove()
    assert leftovers(name) == []
    with pytest.raises(shm.RingError, match="there is no ring"):
        Roster.claim(name, b"x")
    assert leftovers(name) == []


def test_one_that_is_too_long(ring: str, roster: Roster) -> None:
    roster.write(bytes(SIZE_MAX))
    for write in (roster.write, lambda data: Roster.claim(ring, data)):
        with pytest.raises(shm.RingError, match="at most 1048576 bytes"):
            write(bytes(SIZE_MAX + 1))
    assert read_rosters(ring) == [(1, bytes(SIZE_MAX))]
    assert files(ring) == ["gw-1"]


def test_there_is_a_limit(ring: str) -> None:
    rosters = [Roster.claim(ring, b"") for _ in range(ROSTERS_MAX)]
    with pytest.raises(shm.RingError, match="64 rosters already"):
        Roster.claim(ring, b"")
    for roster in rosters:
        roster.remove()


def append_too_much(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(SIZE_MAX + 1))


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, OTHER_USER, OTHER_USER)


def write_nothing(path: Path) -> None:
    del path


@pytest.mark.parametrize(
    ("spoil", "shown"), [(write_nothing, 1), (append_too_much, 0), (give_away, 0)]
)
def test_what_is_not_read(
    ring: str, roster: Roster, spoil: Callable[[Path], None], shown: int
) -> None:
    spoil(file_of(ring, roster.number))
    assert len(read_rosters(ring)) == shown
    if spoil is give_away:
        assert read_rosters(ring, owner=OTHER_USER) == [(1, b"first")]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.write_bytes(b"not locked"),
        os.mkfifo,
    ],
    ids=["folder", "link", "file", "pipe"],
)
def test_files_that_are_no_rosters(ring: str, make: Callable[[Path], None]) -> None:
    path = file_of(ring)
    make(path)
    assert read_rosters(ring) == []
    roster = Roster.claim(ring, b"x")
    assert [found.data for found in read_rosters(ring)] == [b"x"]
    roster.remove()
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


def test_other_files_beside_a_ring_are_let_alone(ring: str) -> None:
    ends = ("gw-", "gw-x", "gw-1.old", "gw-1.new.2")
    others = [Path(f"/dev/shm/rc.{ring}.{end}") for end in ends]
    for path in others:
        path.touch()
    assert remove_stale_rosters(ring) == []
    assert read_rosters(ring) == []
    for path in others:
        path.unlink()
