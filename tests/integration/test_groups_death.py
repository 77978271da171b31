"""kill -9 of members of a work group, and of who makes, removes or demotes one, at each step.

The steps are the RC_FAULT points of group.h and broadcast.h; see test_death.py.
"""

from __future__ import annotations

import random
import time
from typing import Final

import pytest

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE, eventually

from .conftest import Victims

SLOTS: Final = 64
CAPACITY: Final = 1 << 16

TAKING: Final = (103, 104)
SHARING: Final = {"any": (), "key": (105,), "round-robin": (100, 109)}
GIVING_UP: Final = (101, 102, 106, 107, 108)
LEAVING: Final = (110, 115, 40, 41)
JOINING: Final = (113, 114, 50)
WAITING: Final = (116, 117)
STEPS: Final = (*TAKING, *GIVING_UP, *LEAVING, *JOINING, *WAITING)
MAKING: Final = (120, 122, 123)

OFTEN: Final = {("any", 104), ("key", 105), ("key", 106), ("key", 110), ("round-robin", 100)}
"""The cases of a default run; the others are among the long ones."""
CASES: Final = [
    pytest.param(balance, step, marks=() if (balance, step) in OFTEN else pytest.mark.stress)
    for balance, more in SHARING.items()
    for step in (*STEPS, *more)
]
ALONE: Final = (100, 101, 102)
"""Steps that come when the others do not take what there is."""


class Survivors:
    """A writer and two members, worked by the test itself.

    Attributes:
        handled: sequences and keys in the order in which they were handled, by member.
    """

    def __init__(self, name: str, balance: group.Balance) -> None:
        self.writer = Writer.create(name, slots=SLOTS, capacity=CAPACITY)
        self.members = [
            group.Member.attach(name, "g", balance=balance, start="oldest", max_deliveries=2)
            for _ in range(2)
        ]
        self.handled: list[tuple[int, int]] = []
        self._name = name

    def status(self) -> group.GroupStatus:
        return group.list_groups(self._name)[0]

    def turn(self, *, handling: bool = True) -> None:
        """Publish a message if there is room, and handle what there is."""
        self.writer.try_publish(b"x" * 40, key=1 + self.writer.sequence % 5)
        if handling:
            self.handle()

    def handle(self) -> None:
        for member in self.members:
            while (message := member.read(0)) is not None:
                self.handled.append((message.key, message.sequence))

    def finish(self) -> None:
        """All that was published is done."""

        def done() -> bool:
            self.handle()
            return self.status().floor == self.writer.sequence

        eventually(done, "all is done")

    def are_alone(self) -> bool:
        self.handle()
        return len(self.status().members) == len(self.members)

    def check_order(self) -> None:
        """The keys' messages came in their order; one that came again may follow itself."""
        newest: dict[int, int] = {}
        for key, sequence in self.handled:
            assert newest.get(key, -1) <= sequence
            newest[key] = sequence

    def end(self) -> None:
        for member in self.members:
            member.close()
        self.writer.close()
        self.writer.unlink()


@pytest.mark.parametrize(("balance", "step"), CASES)
def test_a_member_dies(
    name: str, seed: int, victims: Victims, balance: group.Balance, step: int
) -> None:
    """Wherever it dies, the others do all the rest, keys in their order, and nothing is held up."""
    survivors = Survivors(name, balance)
    try:
        victim = victims(step, random.Random(seed).randint(1, 3), "work", name, balance)
        victim.ready()
        assert victim.process.stdin is not None
        victim.process.stdin.write(b"g")
        end = time.monotonic() + DEADLINE
        while victim.process.poll() is None and time.monotonic() < end:
            survivors.turn(handling=step not in ALONE)
            time.sleep(0.0005)  # the victim's turn
        assert victim.process.returncode == -9
        for _ in range(50):
            survivors.turn()
        survivors.finish()
        eventually(survivors.are_alone, "it is buried")
        status = survivors.status()
        assert (status.in_flight, status.returned, status.voided, status.lost) == (0, 0, 0, 0)
        sequences = [sequence for _, sequence in survivors.handled]
        assert len(sequences) == len(set(sequences))
        if balance == "key":
            survivors.check_order()
    finally:
        survivors.end()


@pytest.mark.parametrize("step", MAKING)
def test_the_maker_of_a_group_dies(name: str, victims: Victims, step: int) -> None:
    """Whoever attaches next makes it, or finds it; it holds the ring, and loses nothing from then
    on."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY) as writer:
        for _ in range(3 * SLOTS):
            writer.publish(b"before")
        victim = victims(step, 1, "work", name, "any")
        victim.ready()
        victim.dies()
        if step != 123:  # with a half-made group the ring goes on; a whole one holds it
            assert group.list_groups(name) == []
            for _ in range(10):
                writer.publish(b"between", timeout=DEADLINE)
        else:
            assert [found.state for found in group.list_groups(name)] == ["active"]
            while writer.try_publish(b"between") is not None:
                assert writer.sequence <= 4 * SLOTS
            with pytest.raises(shm.RingFull, match="group 'g'"):
                writer.publish(b"between", timeout=0)
        with group.Member.attach(name, "g", start="oldest", max_deliveries=2) as member:
            first = member.read(DEADLINE)
            assert first is not None
            held = first.sequence
            while writer.try_publish(b"after") is not None:
                assert writer.sequence <= held + SLOTS
            sequences = [
                message.sequence for message in [first, *iter(lambda: member.read(0), None)]
            ]
            assert sequences == [*range(held, writer.sequence)]


def test_who_removes_a_group_dies(name: str, victims: Victims) -> None:
    """It is gone, or can be removed again; the ring is not held."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY) as writer:
        group.Member.attach(name, "g").close()
        victim = victims(121, 1, "remove", name)
        victim.ready()
        victim.dies()
        for _ in range(2 * SLOTS):
            writer.publish(b"x", timeout=DEADLINE)
        assert group.list_groups(name) == []
        with group.Member.attach(name, "g") as member:
            writer.publish(b"y")
            message = member.read(DEADLINE)
            assert message is not None
            assert bytes(message) == b"y"


@pytest.mark.parametrize("step", [90, 91])
def test_a_writer_that_demotes_a_group_dies(name: str, victims: Victims, step: int) -> None:
    """Its successor evicts those that are left; the group goes on at the gate, told the gap."""
    Writer.create(name, slots=SLOTS, capacity=CAPACITY).abandon()
    member = group.Member.attach(name, "g", start="oldest")
    try:
        victim = victims(step, 1, "demote", name)
        victim.ready()
        victim.dies()
        with Writer.resume(name) as writer:
            with pytest.raises(shm.Evicted):
                member.read(DEADLINE)
            for _ in range(2 * SLOTS):
                writer.publish(b"x", timeout=DEADLINE)
            with group.Member.attach(name, "g") as other:
                message = other.read(DEADLINE)
                assert message is not None
                assert message.gap == message.sequence > 0
    finally:
        member.close()
