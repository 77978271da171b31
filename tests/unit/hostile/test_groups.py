"""Spoiled words of work groups: rows, partitions, lists of topics, and the segment of a group.

None of them is believed: members and the writer get an error of shm, or what they want, later
perhaps; whoever looks gets figures. When all stands as it stood, a new group works.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import GroupMessage, Member
from tests.conftest import SHM, eventually
from tests.unit.conftest import control_path
from tests.unit.hostile.conftest import (
    CAPACITY,
    GROUP_ROWS,
    INTEREST,
    INTEREST_END,
    MAX_READERS,
    OFFSETS,
    PARTITIONS,
    READERS,
    SLOTS,
    WISH_BYTES,
    WISHES,
    Segment,
    Work,
    check_that_it_works,
    create,
)

BALANCES: list[Any] = ["any", "key", "round-robin"]
LEASES = 0x5100
"""Where the leases begin in a group's segment."""
GROUP_WISHES = WISHES + MAX_READERS * WISH_BYTES


def group_path(name: str) -> Path:
    """The segment of group "g" as a file."""
    return SHM / f"rc.{name}.g.g"


def places() -> list[tuple[str, int, int]]:
    """Segment, and from where to where, of all words that have to do with a group; the leases and
    the row more often than others."""
    row = [("control", GROUP_ROWS, GROUP_ROWS + 640)]
    leases = [("group", LEASES, LEASES + 8 * SLOTS)]
    return [
        *row * 3,
        *leases * 4,
        ("control", OFFSETS["rc_control.groups"], OFFSETS["rc_control.groups"] + 8),
        ("control", READERS, READERS + MAX_READERS * 384),
        ("control", INTEREST, INTEREST_END),
        ("control", PARTITIONS, PARTITIONS + 1024 * 8),
        ("control", GROUP_WISHES, GROUP_WISHES + 64),
        ("group", 0, 0x180),
        ("group", 0x100, 0x100 + 8 * MAX_READERS),
        ("group", 0x2100, LEASES),
    ]


def use_message(message: GroupMessage) -> None:
    """All that can be done with one."""
    assert len(bytes(message)) <= CAPACITY // 4
    assert message.deliveries in range(256)
    repr(message)


def use_member(member: Member, rng: random.Random, held: list[GroupMessage]) -> None:
    """One call of a member, and all that can be done with what it returns."""
    call = rng.randrange(7)
    with contextlib.suppress(shm.RingError):
        if call == 0:
            message = member.read(timeout=0)
            if message is not None:
                use_message(message)
                held.append(message)
        elif call == 1:
            for message in member.read_available(rng.choice((1, 3, 256))):
                use_message(message)
                held.append(message)
        elif call == 2:
            with member.batch(rng.choice((1, 3, 65536)), timeout=0) as batch:
                for index in range(len(batch)):
                    with contextlib.suppress(shm.RingCorrupt):
                        assert len(batch.payload(index)) <= CAPACITY // 4
                if rng.random() < 0.7:
                    batch.ack()
        elif call == 3:
            assert member.lag >= 0
            assert member.lost >= 0
        elif held:
            message = held.pop(rng.randrange(len(held)))
            if rng.random() < 0.7:
                message.ack()
            else:
                message.nack()


def look(name: str) -> None:
    """Whoever looks sees something."""
    with contextlib.suppress(shm.RingError):
        for found in group.list_groups(name):
            assert len(found.name) <= 32
            assert 0 <= found.lag <= SLOTS
            assert found.in_flight + found.returned <= SLOTS
            assert len(found.newest_set_aside) <= 64
    with contextlib.suppress(shm.RingError):
        shm.status(name)


def spoil_group(name: str, tries: int, rng: random.Random) -> int:
    """Two members and a writer, with any of these words spoiled."""
    made = 0
    with create(name) as writer:
        for topic in ("a", "b"):
            writer.topic(topic)
        while made < tries:
            made += spoil_one_group(writer, rng)
        check_that_it_works(writer)
    return made


def spoil_one_group(writer: Writer, rng: random.Random) -> int:
    """The life of one group."""
    options: dict[str, Any] = {
        "balance": rng.choice(BALANCES),
        "topics": rng.choice((None, ["a"])),
        "auto_ack": False,
    }
    control = Segment(control_path(writer.name))
    first = Member.attach(writer.name, "g", **options)
    segments = {"control": control, "group": Segment(group_path(writer.name))}
    members = [first, Member.attach(writer.name, "g", **options)]
    held: list[list[GroupMessage]] = [[], []]
    for _ in range(20):
        for part, low, high in rng.choices(places(), k=rng.choice((1, 1, 3))):
            segments[part].spoil(rng, low, high)
        with contextlib.suppress(shm.RingFull):
            writer.publish(b"%d" % rng.randrange(99), topic=rng.randrange(3), timeout=0)
        number = rng.randrange(2)
        use_member(members[number], rng, held[number])
        if rng.random() < 0.1:
            with contextlib.suppress(shm.RingError):
                rng.choice((writer.evict, writer.demote))(rng.randrange(MAX_READERS))
        if rng.random() < 0.05:
            with contextlib.suppress(shm.RingError):
                writer.demote_group("g")
        look(writer.name)
    held.clear()
    for member in members:
        member.close()
    with contextlib.suppress(shm.RingError, ValueError):
        Member.attach(writer.name, "g", **options).close()
    control.restore()
    with contextlib.suppress(shm.RingNotFound):
        group.remove(writer.name, "g")
    group_path(writer.name).unlink(missing_ok=True)
    with Member.attach(writer.name, "after", balance=rng.choice(BALANCES)) as member:
        sequence = writer.publish(b"as ever", timeout=0)
        message = member.read(timeout=0)
        assert message is not None
        assert (message.sequence, bytes(message)) == (sequence, b"as ever")
    group.remove(writer.name, "after")
    return 20


def test_spoiled_groups(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("groups", spoil_group)


# ---- one word each -------------------------------------------------------------------------


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    with create(name) as writer:
        yield writer


def lease(state: int, *, lap: int = 1, slot: int = 0, generation: int = 1) -> bytes:
    """A lease word, as group.h describes it."""
    return struct.pack("<Q", lap << 32 | generation << 21 | slot << 11 | 1 << 3 | state)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("state", range(8))
@pytest.mark.parametrize("slot", [0, 1, 999])
def test_a_lease_that_nobody_wrote(writer: Writer, balance: Any, state: int, slot: int) -> None:
    """Its message comes, or counts as done; the ring does not stay full."""
    with Member.attach(writer.name, "g", balance=balance) as member:
        leases = Segment(group_path(writer.name))
        for _ in range(SLOTS):
            writer.publish(b"", key=1)
        leases.write(LEASES, lease(state, slot=slot))
        sequences: list[int] = []

        def all_done() -> bool:
            nonlocal member
            try:
                while (message := member.read(timeout=0)) is not None:
                    sequences.append(message.sequence)
            except shm.Evicted:  # the word named its slot, and no such lease was handed out
                member.close()
                member = Member.attach(writer.name, "g", balance=balance)
            return member.lag == 0

        eventually(all_done, "all is done")
        assert set(range(1, SLOTS)) <= set(sequences) <= set(range(SLOTS))
        writer.publish(b"", timeout=0)
        member.close()


@pytest.mark.parametrize("floor", [SLOTS + 1, 2**32, 2**63, 2**64 - 1])
def test_a_floor_from_the_future_costs_the_group_its_hold(writer: Writer, floor: int) -> None:
    with Member.attach(writer.name, "g") as member:
        for _ in range(SLOTS):
            writer.publish(b"")
        control = Segment(control_path(writer.name))
        control.write(GROUP_ROWS, struct.pack("<Q", floor))
        for _ in range(2 * SLOTS):
            writer.publish(b"", timeout=0)
        with pytest.raises(shm.Evicted):
            member.read(timeout=0)
    with Member.attach(writer.name, "g") as member:
        while member.read(timeout=0) is not None:
            pass
        sequence = writer.publish(b"", timeout=0)
        message = member.read(timeout=0)
        assert message is not None
        assert message.sequence == sequence


def test_a_floor_that_goes_back(writer: Writer) -> None:
    """The next member that looks puts it right."""
    with Member.attach(writer.name, "g") as member:
        control = Segment(control_path(writer.name))
        for n in range(5 * SLOTS):
            writer.publish(b"", timeout=0)
            message = member.read(timeout=0)
            assert message is not None
            assert message.sequence == n
            control.write(GROUP_ROWS, struct.pack("<Q", n // 2))
            assert member.read(timeout=0) is None
            assert member.lag == 0
