"""Hostile contents of an uplink: the receiver goes on, and so does every honest sender.

A worker can write any byte of the segment. What it wrote may cost honest senders errors that say
so, and a new lane; once it has stopped, their messages come again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringcast import shm
from ringcast.shm import mpsc
from ringcast.shm.mpsc import Receiver, Sender
from tests.conftest import DEADLINE, SHM, Processes

LANE = 512
LANES = 3
TICKETS = 32  # 3 * 512 / 64, rounded up to a power of two
HEAD, FLUSHED, WINDOW, TAIL, STATE, WAITERS = 0x80, 0x88, 0x90, 0x100, 0x180, 0x200
REJECTING, SLEEPING = STATE + 28, STATE + 24
LANE_AT = [640 + 384 * lane for lane in range(LANES)]
WRITTEN, TAKEN, TAKEN_COUNT, DONE_COUNT, LANE_STATE = 0, 0x80, 0x88, 0xA0, 0x100
WORDS = 640 + 384 * LANES
RECORDS = 4096
MANY = (1 << 64) - 1


class Segment:
    """The bytes of an uplink, written as nothing of ringcast writes them."""

    def __init__(self, name: str) -> None:
        self.path = SHM / f"rc.{name}.u"
        with self.path.open("r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 0)

    def get(self, at: int) -> int:
        (value,) = struct.unpack_from("<Q", self.bytes, at)
        assert isinstance(value, int)
        return value

    def put(self, at: int, value: int) -> None:
        struct.pack_into("<Q", self.bytes, at, value & MANY)

    def word(self, ticket: int) -> int:
        """Where a ticket's word is."""
        return WORDS + ticket % TICKETS * 8

    def spoil(self, rng: random.Random) -> None:
        """A number that nobody expects, somewhere behind the identity."""
        records = RECORDS + 64 * rng.randrange(LANES * LANE // 64) + rng.choice((0, 8))
        at = rng.choice(
            (
                rng.randrange(HEAD, RECORDS, 8),
                self.word(rng.randrange(TICKETS)),
                rng.choice((HEAD, FLUSHED, WINDOW, TAIL, STATE, SLEEPING)),
                rng.choice(LANE_AT) + rng.choice((0, 8, 0x80, 0x88, 0x90, 0x98, 0xA0, 0x100)),
                records,
            )
        )
        now = self.get(at)
        odd = (0, 1, 255, 256, 1 << 16, 1 << 48, MANY, MANY - 63, 1 << 63)
        self.put(
            at,
            rng.choice(
                (
                    rng.choice(odd),
                    rng.getrandbits(64),
                    now + rng.randint(-512, 512),
                    now ^ 1 << rng.randrange(64),
                )
            ),
        )


class Honest:
    """A sender that does what its errors tell it to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sender: Sender | None = None
        self.errors: list[type[BaseException]] = []

    def try_send(self, data: bytes) -> None:
        """Once; after an error it attaches anew."""
        try:
            if self.sender is None:
                self.sender = Sender.attach(self.name)
            self.sender.send(data, timeout=0.2)
        except shm.SendRejected as error:
            self.errors.append(type(error))
        except shm.RingError as error:
            self.errors.append(type(error))
            self.close()

    def close(self) -> None:
        if self.sender is not None:
            self.sender.close()
            self.sender = None


def receive_some(receiver: Receiver) -> list[bytes]:
    """What there is; each message is no longer than one may be."""
    messages = receiver.read_available()
    for message in messages:
        assert len(message.payload) <= LANE // 2 - 16
        assert message.sender < LANES
    return [bytes(message) for message in messages]


def check_that_they_come(receiver: Receiver, people: list[Honest]) -> None:
    """Messages of each of them come again, in their order."""
    end = time.monotonic() + DEADLINE
    for number, honest in enumerate(people):
        got: list[bytes] = []
        n = 0
        while len(got) < 20:
            assert time.monotonic() < end, f"{honest.errors[-5:]}, {mpsc.status(receiver.name)}"
            data = b"after %d %d" % (number, n)
            background = send_while_received(honest, receiver, data)
            got += [payload for payload in background if payload.startswith(b"after")]
            if data not in background:
                got.clear()  # it was not sent, or was lost with the lane: once more
            n += 1
        last = int(got[-1].split()[2])
        assert got == [b"after %d %d" % (number, last - 19 + i) for i in range(20)]


def send_while_received(honest: Honest, receiver: Receiver, data: bytes) -> list[bytes]:
    """Send one; what was received meanwhile. A first look lets the receiver heal what it can."""
    got = receive_some(receiver)
    honest.try_send(data)
    return got + receive_some(receiver)


def in_a_child(processes: Processes, work: Callable[..., None], *arguments: object) -> None:
    """A crash of it is a failed test."""
    processes.start(work, *arguments)
    processes.join()


@contextlib.contextmanager
def uplink(name: str) -> Iterator[tuple[Receiver, Segment, list[Honest]]]:
    """An uplink of two honest senders in lanes 0 and 1, with some messages sent and taken."""
    with Receiver.create(name, max_senders=LANES, lane_bytes=LANE) as receiver:
        segment = Segment(name)
        people = [Honest(name), Honest(name)]
        for i in range(12):
            people[i % 2].try_send(b"before")
            receive_some(receiver)
        assert not people[0].errors
        yield receiver, segment, people
        for honest in people:
            honest.close()


# ---- directed ------------------------------------------------------------------------------

Attack = Callable[[Segment, int], None]


def lie(segment: Segment, head: int) -> None:
    """A filled ticket without a record."""
    segment.put(segment.word(head), head << 16 | 1)


def lie_about_length(segment: Segment, head: int) -> None:
    """A record, longer than the lane."""
    position = segment.get(LANE_AT[0] + WRITTEN)
    record = RECORDS + position % LANE
    segment.put(record, head)
    segment.put(record + 8, 1000 << 32)
    segment.put(LANE_AT[0] + WRITTEN, position + 64)
    lie(segment, head)


def lie_about_ticket(segment: Segment, head: int) -> None:
    """A record whose ticket is a later one."""
    position = segment.get(LANE_AT[0] + WRITTEN)
    segment.put(RECORDS + position % LANE, head + 1)
    segment.put(LANE_AT[0] + WRITTEN, position + 64)
    lie(segment, head)


def lie_about_written(segment: Segment, head: int) -> None:
    """More than a lane is said to be written."""
    segment.put(LANE_AT[0] + WRITTEN, segment.get(LANE_AT[0] + WRITTEN) + 2 * LANE)
    lie(segment, head)


@pytest.mark.parametrize("attack", [lie, lie_about_length, lie_about_ticket, lie_about_written])
def test_the_lane_that_lied_is_evict(name: str, attack: Attack) -> None:
    with uplink(name) as (receiver, segment, people):
        attack(segment, receiver.ticket)
        assert receive_some(receiver) == []
        assert (receiver.voided, receiver.senders_evicted) == (1, 1)
        assert people[0].sender is not None
        with pytest.raises(shm.Evicted, match="held what no sender writes; attach again"):
            people[0].sender.send(b"")
        check_that_they_come(receiver, people)
        assert people[1].errors == []
        assert (receiver.voided, receiver.senders_evicted) == (1, 1)


def words(value: Callable[[int], int], *places: int) -> Attack:
    """Write a number, made from the one that is there, at each place."""

    def attack(segment: Segment, _head: int) -> None:
        for at in places:
            segment.put(at, value(segment.get(at)))

    return attack


def ticket(distance: int, value: Callable[[int], int]) -> Attack:
    """Write the word of the ticket so far ahead, made from that ticket."""

    def attack(segment: Segment, head: int) -> None:
        segment.put(segment.word(head + distance), value(head + distance))

    return attack


ATTACKS: dict[str, Attack] = {
    "ticket of an owner out of range": ticket(0, lambda t: t << 16 | 0xFFFF),
    "ticket of the owner after the last": ticket(0, lambda t: t << 16 | LANES + 1),
    "ticket of a lane that nobody has": ticket(0, lambda t: t << 16 | LANES),
    "ticket 0": ticket(0, lambda _: 0),
    "ticket of the next round": ticket(0, lambda t: t + TICKETS << 16),
    "ticket at the end of numbers": ticket(0, lambda _: MANY),
    "ticket ahead spoiled": ticket(3, lambda _: 0),
    "hole": ticket(1, lambda t: t << 16 | 3),
    "largest hole": ticket(TICKETS - 1, lambda t: t << 16 | 3),
    "all tickets": words(lambda _: MANY, *range(WORDS, WORDS + 8 * TICKETS, 8)),
    "head ahead": words(lambda now: now + 5, HEAD),
    "head far ahead": words(lambda _: 1 << 47, HEAD),
    "head behind": words(lambda _: 0, HEAD),
    "tail ahead": words(lambda now: now + 3, TAIL),
    "tail far ahead": words(lambda _: MANY, TAIL),
    "tail behind": words(lambda _: 0, TAIL),
    "head and tail ahead": words(lambda now: now + 20, HEAD, TAIL),
    "flushed behind": words(lambda _: 0, FLUSHED),
    "window": words(lambda _: 1, WINDOW),
    "window and what is acknowledged": words(lambda _: 1, WINDOW, LANE_AT[0] + DONE_COUNT),
    "state of the uplink": words(lambda _: MANY, STATE),
    "closed": words(lambda now: now & ~0xFFFFFFFF | 2, STATE),
    "sleeping and rejecting": words(lambda _: MANY, SLEEPING),
    "waiters": words(lambda _: MANY, WAITERS),
    "written ahead": words(lambda now: now + 64, LANE_AT[0] + WRITTEN),
    "written behind": words(lambda _: 0, LANE_AT[0] + WRITTEN),
    "written and taken": words(lambda _: 4096, LANE_AT[0] + WRITTEN, LANE_AT[0] + TAKEN),
    "taken ahead": words(lambda now: now + 2 * LANE, LANE_AT[0] + TAKEN),
    "taken behind": words(lambda _: 0, LANE_AT[0] + TAKEN),
    "counts of taken": words(lambda _: 77, LANE_AT[0] + TAKEN_COUNT),
    "counts of acknowledged": words(lambda _: 77, LANE_AT[0] + DONE_COUNT),
    "all counts": words(lambda _: MANY, *(LANE_AT[0] + at for at in range(0x88, 0xB0, 8))),
    "counts of all lanes": words(lambda _: 5, *(lane + DONE_COUNT for lane in LANE_AT)),
    "lane free": words(lambda _: 0, LANE_AT[0] + LANE_STATE),
    "lane of nobody active": words(lambda _: 2, LANE_AT[2] + LANE_STATE),
    "all lanes evicted": words(lambda now: now & ~0xFF | 5, *(at + LANE_STATE for at in LANE_AT)),
    "all lanes in no state": words(lambda _: 77, *(at + LANE_STATE for at in LANE_AT)),
}
COUNTED = [name for name in ATTACKS if name.startswith("ticket") or "hole" in name]


@pytest.mark.parametrize("what", ATTACKS)
def test_messages_come_again_after(name: str, processes: Processes, what: str) -> None:
    in_a_child(processes, attacked, name, what)


def attacked(name: str, what: str) -> None:
    with uplink(name) as (receiver, segment, people):
        ATTACKS[what](segment, receiver.ticket)
        check_that_they_come(receiver, people)
        if what in COUNTED:
            assert receiver.voided > 0


@pytest.mark.parametrize("what", ATTACKS)
def test_lanes_come_again_after(name: str, processes: Processes, what: str) -> None:
    """All senders are replaced by new ones, one after the other."""
    in_a_child(processes, attacked_and_left, name, what)


def attacked_and_left(name: str, what: str) -> None:
    with uplink(name) as (receiver, segment, people):
        ATTACKS[what](segment, receiver.ticket)
        for _ in range(2):
            for honest in people:
                honest.close()
            check_that_they_come(receiver, [Honest(name)] if _ else people)


def test_a_large_hole(name: str) -> None:
    """An honest sender that was misled sends far behind the last message; that comes, too."""
    lanes, lane_bytes = 8, 65536
    with (
        Receiver.create(name, max_senders=lanes, lane_bytes=lane_bytes) as receiver,
        Sender.attach(name) as sender,
    ):
        assert receiver.read_available() == []
        Segment(name).put(HEAD, 8000)
        assert sender.send(b"misled") == 8000
        end = time.monotonic() + DEADLINE
        while (message := receiver.read(timeout=0.1)) is None:
            assert time.monotonic() < end
        assert (message.ticket, bytes(message)) == (8000, b"misled")
        assert receiver.voided == 8000
        sender.flush(timeout=0)
        assert receiver.senders_evicted == 0


# ---- at random -----------------------------------------------------------------------------


def test_anything_anywhere(name: str, processes: Processes) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    in_a_child(processes, spoil_a_lot, name, seed, 6)


@pytest.mark.stress
def test_anything_anywhere_for_long(name: str, processes: Processes) -> None:
    for _ in range(10):
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        in_a_child(processes, spoil_a_lot, name, seed, 20)


def spoil_a_lot(name: str, seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    for _ in range(rounds):
        with uplink(name) as (receiver, segment, people):
            for _ in range(rng.choice((3, 30, 1000))):
                segment.spoil(rng)
                if rng.random() < 0.3:
                    quick_try(rng.choice(people), rng.randbytes(rng.randrange(200)))
                if rng.random() < 0.3:
                    receive_some(receiver)
                with contextlib.suppress(shm.RingError):
                    mpsc.status(name)
            check_that_they_come(receiver, people)


def quick_try(honest: Honest, data: bytes) -> None:
    """As the worker spoils, nothing is waited for."""
    try:
        if honest.sender is not None:
            honest.sender.try_send(data)
    except shm.RingError:
        honest.close()


def test_a_worker_spoils_at_the_same_time(name: str, processes: Processes) -> None:
    """Another process writes while the receiver reads."""
    in_a_child(processes, spoiled_from_outside, name)


def spoiled_from_outside(name: str) -> None:
    with uplink(name) as (receiver, segment, people):
        child = os.fork()
        if child == 0:
            rng = random.Random(os.getpid())
            for _ in range(30_000):
                segment.spoil(rng)
            os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            for honest in people:
                quick_try(honest, b"meanwhile")
            receive_some(receiver)
        check_that_they_come(receiver, people)
        assert receiver.voided > 0


# ---- headers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "size", "value", "error"),
    [
        (0, 8, 0, shm.RingNotFound),
        (0, 8, 0x0A44474E49526372, shm.LayoutMismatch),  # a ring's
        (0, 8, 0x726352494E475 << 12 | 0x50A, shm.LayoutMismatch),  # of the other byte order
        (8, 4, 99, shm.LayoutMismatch),
        (12, 4, 0, shm.RingCorrupt),
        (12, 4, 1025, shm.RingCorrupt),
        (12, 4, LANES + 1, shm.RingCorrupt),
        (16, 8, 1, shm.LayoutMismatch),
        (24, 8, 1, shm.RingCorrupt),
        (40, 8, 64, shm.RingCorrupt),
        (40, 8, MANY, shm.RingCorrupt),
        (48, 8, 2 * LANE, shm.RingCorrupt),
        (48, 8, 0, shm.RingCorrupt),
        (56, 8, MANY, shm.RingCorrupt),
    ],
)
def test_headers(name: str, at: int, size: int, value: int, error: type[Exception]) -> None:
    with Receiver.create(name, max_senders=LANES, lane_bytes=LANE):
        segment = Segment(name)
        good = segment.bytes[at : at + size]
        segment.bytes[at : at + size] = value.to_bytes(size, "little")
        for call in (Sender.attach, mpsc.status):
            with pytest.raises(error, match=name):
                call(name)
        segment.bytes[at : at + size] = good
        Sender.attach(name).close()


@pytest.mark.parametrize("change", [-1, 1, -4096, 4096, None], ids=str)
def test_sizes(name: str, change: int | None, tmp_path: Path) -> None:
    """A file of another size is not mapped."""
    with Receiver.create(name, max_senders=LANES, lane_bytes=LANE):
        path = SHM / f"rc.{name}.u"
        kept = tmp_path / "kept"
        kept.write_bytes(path.read_bytes())
        size = path.stat().st_size
        os.truncate(path, 100 if change is None else size + change)
        with pytest.raises((shm.RingCorrupt, shm.RingNotFound), match=name):
            Sender.attach(name)
        os.truncate(path, size)
        path.write_bytes(kept.read_bytes())
