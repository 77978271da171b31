"""What a group does not want counts as done: while its members work, while they sleep, while there
is none; and topics that arrive later."""

from __future__ import annotations

import contextlib
import itertools
import mmap
from functools import partial
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.group import Member
from tests.conftest import DEADLINE
from tests.unit.conftest import DATA_HEADER, Background, data_path, wait_until_waiting

from .conftest import BALANCES, MAX_TOPICS, SLOTS, Join, is_full, put, status_of, take, text

FLOOD = 10 * SLOTS
"""Much more than the ring has room for."""


def flood(writer: Writer, kind: str) -> None:
    """Publish what no group wants, without waiting for anybody."""
    topic = writer.topic("unwanted")
    for n in range(FLOOD):
        if kind == "topic":
            writer.publish(b"", topic=topic, timeout=0)
        elif kind == "none":
            writer.publish(b"", timeout=0)
        elif kind == "event":
            writer.publish(b"", kind=shm.Kind.EVENT, timeout=0)
        elif kind == "wanted event":
            writer.publish(b"", topic=writer.topic("a"), kind=shm.Kind.EVENT, timeout=0)
        elif kind == "unknown":
            writer.publish(b"", topic=MAX_TOPICS + 1 + n, timeout=0)
        else:
            raise AssertionError(kind)


KINDS = ["topic", "none", "event", "wanted event", "unknown"]


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_with_members_that_do_nothing(writer: Writer, join: Join, balance: Any, kind: str) -> None:
    member, other = join(topics=["a"], balance=balance), join(topics=["a"], balance=balance)
    flood(writer, kind)
    sequences = put(writer, 0, 0, topic="a")
    assert sorted(take(member) + take(other)) == sequences
    flood(writer, kind)
    assert take(member) == take(other) == []
    assert status_of(writer).lag == 0
    assert (status_of(writer).lost, member.received + other.received) == (0, 2)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_with_members_that_sleep(writer: Writer, join: Join, balance: Any, kind: str) -> None:
    members = [join(topics=["a"], balance=balance, wait=shm.Blocking(spin_us=0)) for _ in range(2)]

    def work(member: Member) -> list[int]:
        return [message.sequence for message in member]

    working = [Background(partial(work, member)) for member in members]
    for member in members:
        wait_until_waiting(writer.name, member.slot)
    flood(writer, kind)
    sequences = put(writer, 1, 2, 3, topic="a", timeout=DEADLINE)
    for _ in range(20):
        sequences += put(writer, 1, 2, 3, topic="a", timeout=DEADLINE)
        for _ in range(SLOTS):
            writer.publish(b"", kind=shm.Kind.EVENT, timeout=DEADLINE)
    writer.close()
    assert sorted(itertools.chain(*(work.result() for work in working))) == sequences


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("kind", KINDS)
def test_with_no_members(writer: Writer, balance: Any, kind: str) -> None:
    with Member.attach(writer.name, "g", topics=["a"], balance=balance):
        pass
    flood(writer, kind)
    sequences = put(writer, 0, topic="a")
    for _ in range(SLOTS - 1):
        writer.publish(b"", kind=shm.Kind.EVENT, timeout=0)
    assert is_full(writer), "the one that it wants holds the ring"
    status = status_of(writer)
    assert (status.floor, status.lag) == (sequences[0], SLOTS)
    with Member.attach(writer.name, "g", topics=["a"], balance=balance) as member:
        assert take(member) == sequences
        assert status_of(writer).lag == 0
    flood(writer, kind)


@pytest.mark.parametrize("balance", BALANCES)
def test_behind_one_that_is_held(writer: Writer, join: Join, balance: Any) -> None:
    """What comes after it is not looked at for ever: the floor passes it with what was held."""
    member = join(topics=["a"], balance=balance, auto_ack=False)
    put(writer, 0, topic="a")
    held = member.read(timeout=0)
    assert held is not None
    for _ in range(SLOTS - 1):
        writer.publish(b"", kind=shm.Kind.EVENT, timeout=0)
    assert is_full(writer)
    held.ack()
    assert member.read(timeout=0) is None
    assert status_of(writer).lag == 0
    put(writer, *[0] * SLOTS, topic="b")


def test_events_go_to_no_member(writer: Writer, join: Join) -> None:
    member = join()
    for n in range(FLOOD):
        writer.publish(b"", kind=shm.Kind.EVENT, timeout=0)
        if n % 100 == 0:
            put(writer, 0)
            assert take(member) == [writer.sequence - 1]
    assert member.received == FLOOD // 100 + (FLOOD % 100 > 0)


OTHERS: dict[str, tuple[dict[str, Any], list[str | None]]] = {
    "everything": ({}, ["a", "ab", "b", None, "c"]),
    "names": ({"topics": ["a", "c"]}, ["a", "c"]),
    "patterns": ({"topics": ["a*"]}, ["a", "ab"]),
    "both": ({"topics": ["*b", "a"]}, ["a", "ab", "b"]),
    "all topics": ({"topics": ["*"]}, ["a", "ab", "b", "c"]),
    "others": ({"topics": [], "others": True}, [None]),
    "others, too": ({"topics": ["b"], "others": True}, ["b", None]),
    "nothing": ({"topics": []}, []),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("balance", BALANCES)
def test_what_it_wants(writer: Writer, join: Join, balance: Any, what: str, when: str) -> None:
    """Whether the topics are there when the group is made, or arrive afterwards."""
    options, expected = OTHERS[what]
    if when == "before":
        for topic in ("a", "ab", "b", "c"):
            writer.topic(topic)
    members = [join(balance=balance, **options) for _ in range(2)]
    for _ in range(5):
        for name in ("a", "ab", "b", None, "c"):
            put(writer, 0, topic=name)
        names: list[str | None] = []
        for member in members:
            while (message := member.read(timeout=0)) is not None:
                names.append(message.topic_name)
        assert sorted(names, key=str) == sorted(expected, key=str)
    assert status_of(writer).lag == 0


@pytest.mark.parametrize("balance", BALANCES)
def test_topics_that_arrive_while_no_member_is_there(writer: Writer, balance: Any) -> None:
    with Member.attach(writer.name, "g", topics=["new*", "old"], balance=balance):
        pass
    flood(writer, "topic")
    sequences = []
    for topic in ("old", "new1", "older", "new2", None, "new1", "a new one"):
        found = put(writer, 0, topic=topic)
        sequences += found if topic in ("old", "new1", "new2") else []
    assert status_of(writer).floor == sequences[0]
    with Member.attach(writer.name, "g", topics=["new*", "old"], balance=balance) as member:
        assert take(member) == sequences


def test_topics_that_arrive_under_another_writer(name: str) -> None:
    writer = Writer.create(name, slots=SLOTS, capacity=4096, max_readers=2, max_topics=8)
    with Member.attach(name, "g", topics=["a*"]):
        put(writer, 0, topic="a1")
    del writer
    with Writer.resume(name) as writer:
        put(writer, 0, topic="a2")
        put(writer, 0, topic="b")
        with Member.attach(name, "g", topics=["a*"]) as member:
            assert take(member) == [0, 1]
            assert status_of(writer).lag == 0


class Addressed:
    """Publishes messages for one reader alone, as a manager does with the answer to a snapshot:
    `Writer.publish` has no argument for that, so it is written into the descriptor."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        with data_path(writer.name).open("r+b") as file:
            self._data = mmap.mmap(file.fileno(), 0)

    def put(self, slot: int) -> int:
        sequence = self._writer.publish(text(self._writer.sequence), timeout=0)
        at = DATA_HEADER + shm.DESCRIPTOR.itemsize * (sequence % SLOTS)
        assert shm.DESCRIPTOR.fields is not None
        at += shm.DESCRIPTOR.fields["destination"][1]
        self._data[at : at + 2] = (slot + 1).to_bytes(2, "little")
        return sequence


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("there", [0, 1, 2])
def test_what_is_for_one_reader_is_nobodys(writer: Writer, balance: Any, there: int) -> None:
    """Not even that of a member whose slot it names."""
    Member.attach(writer.name, "g", balance=balance).close()
    with contextlib.ExitStack() as stack:
        members = [
            stack.enter_context(Member.attach(writer.name, "g", balance=balance))
            for _ in range(there)
        ]
        addressed = Addressed(writer)
        for n in range(FLOOD):
            addressed.put(n % 3)
        assert [take(member) for member in members] == [[]] * there
        sequences = put(writer, 1)
        for n in range(SLOTS - 1):
            addressed.put(n % 3)
        assert is_full(writer)
        assert [s for member in members for s in take(member)] == (sequences if there else [])
        assert status_of(writer).lag == (0 if there else SLOTS)


def test_a_reader_gets_what_is_for_it_and_a_group_the_rest(writer: Writer, join: Join) -> None:
    with Reader.attach(writer.name) as reader:
        member = join()
        addressed = Addressed(writer)
        for n in range(30):
            if n % 3:
                put(writer, 0)
            else:
                addressed.put(reader.slot)
        assert len(reader.read_available()) == 30
        assert take(member) == [n for n in range(30) if n % 3]
