"""With auto_ack: asking for the next says that the last is done; leaving in any other way gives it
back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import GroupMessage, Member
from tests.conftest import eventually
from tests.unit.conftest import Background

from .conftest import BALANCES, Join, collect, get, put, status_of, take


def in_hand(writer: Writer) -> tuple[int, int]:
    """How many messages the members have, and how many wait to be delivered again."""
    status = status_of(writer)
    return status.in_flight, status.returned


def redelivered(member: Member, sequence: int) -> GroupMessage:
    """This message comes to the member a second time."""
    ((_, message),) = collect([member], 1)
    assert (message.sequence, message.deliveries) == (sequence, 2)
    return message


ASK: dict[str, Callable[[Member], object]] = {
    "read": lambda member: member.read(timeout=0),
    "read_available": lambda member: member.read_available(limit=1),
    "batch": lambda member: member.batch(limit=1, timeout=0).__enter__(),
    "next": next,
}


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("how", ASK)
def test_asking_acknowledges_the_last(writer: Writer, join: Join, balance: Any, how: str) -> None:
    member = join(balance=balance)
    put(writer, 1, 1, 2)
    kept = []
    for count in range(3):
        kept.append(ASK[how](member))
        assert in_hand(writer) == (1, 0)
        assert member.received == count + 1
    assert member.read(timeout=0) is None
    assert in_hand(writer) == (0, 0)
    assert member.lag == 0


def test_a_message_that_is_dropped_stays_in_hand(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0)
    get(member)
    gc.collect()
    assert in_hand(writer) == (1, 0)
    assert status_of(writer).holder == member.slot
    assert member.read(timeout=0) is None
    assert in_hand(writer) == (0, 0)
    assert status_of(writer).holder is None


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("balance", BALANCES)
def test_break_gives_back(writer: Writer, join: Join, balance: Any, kept: bool) -> None:
    member = join(balance=balance)
    put(writer, 1, 1, 1)
    for message in member:
        if message.sequence == 1:
            break
    assert in_hand(writer) == (0, 1)
    assert bytes(message) == b"00000001"
    if not kept:
        del message
    again = redelivered(member, 1)
    assert take(member) == [2]
    assert again.deliveries == 2
    assert in_hand(writer) == (0, 0)


class Failed(Exception):
    """What a program raises while it handles a message."""


def test_an_exception_in_the_loop_gives_back(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0, 0)
    caught = []
    for _ in range(2):
        try:
            for message in member:
                if message.sequence == 1:
                    raise Failed
        except Failed as error:
            caught.append(error)
        assert in_hand(writer) == (0, 1)
    assert len(caught) == 2
    ((_, message),) = collect([member], 1)
    assert (message.sequence, message.deliveries) == (1, 3)


def test_a_loop_that_runs_out_acknowledges_all(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0, 0, 0)
    writer.close()
    assert [message.sequence for message in member] == [0, 1, 2]
    assert in_hand(writer) == (0, 0)
    assert list(member) == []


def test_an_iterator_that_is_dropped_gives_back(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0, 0, 0)
    iterator = iter(member)
    assert [next(iterator).sequence for _ in range(2)] == [0, 1]
    assert iter(iterator) is iterator
    del iterator
    redelivered(member, 1)
    assert take(member) == [2]


def test_a_read_after_a_loop_in_a_loop(writer: Writer, join: Join) -> None:
    """Whoever reads within a loop has acknowledged what the loop gave; what the read gave is its
    own."""
    member = join()
    put(writer, *[0] * 4)
    for message in member:
        assert message.sequence == 0
        assert get(member).sequence == 1
        break
    assert in_hand(writer) == (1, 0), "the end of the loop gives back what the loop handed out"
    assert take(member) == [2, 3]


def test_two_loops_in_one_thread(writer: Writer, join: Join) -> None:
    """The second one's asking acknowledges what the first one gave; only who gave it gives it
    back."""
    member = join()
    put(writer, *[0] * 4)
    first, second = iter(member), iter(member)
    assert next(first).sequence == 0
    assert next(second).sequence == 1
    del first
    assert in_hand(writer) == (1, 0)
    del second
    assert in_hand(writer) == (0, 1)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("end", ["close", "block", "drop"])
def test_the_end_of_a_member_gives_back(writer: Writer, join: Join, balance: Any, end: str) -> None:
    member = Member.attach(writer.name, "g", balance=balance)
    put(writer, 1, 1, 1)
    get(member)
    message = get(member)
    if end == "block":
        with member:
            pass
    elif end == "close":
        member.close()
    if end == "drop":
        del message
    else:
        assert bytes(message) == b"00000001"
    del member
    gc.collect()
    other = join(balance=balance)
    again = redelivered(other, 1)
    assert take(other) == [2]
    assert again.sequence == 1


def test_the_end_of_a_thread_gives_back(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0, 0, 0)
    assert get(member).sequence == 0
    kept = Background(lambda: [get(member), get(member)]).result()
    eventually(lambda: in_hand(writer) == (1, 1), "the thread's message is given back")
    assert bytes(kept[1]) == b"00000002"
    redelivered(member, 2)
    assert in_hand(writer) == (1, 0)


def test_threads_have_hands_of_their_own(writer: Writer, join: Join) -> None:
    """What one thread asks for says nothing of what another has."""
    member = join()
    put(writer, *[0] * 6)
    first = get(member)
    meet = threading.Barrier(2, timeout=60)

    def other() -> list[int]:
        sequences = [get(member).sequence, get(member).sequence]
        meet.wait()
        meet.wait()
        sequences.append(get(member).sequence)
        assert member.read(timeout=0) is None
        return sequences

    thread = Background(other)
    meet.wait()
    assert in_hand(writer) == (2, 0), "0 here and 2 there"
    assert get(member).sequence == 3
    assert get(member).sequence == 4
    assert in_hand(writer) == (2, 0)
    meet.wait()
    assert thread.result() == [1, 2, 5]
    assert in_hand(writer) == (1, 0)
    assert first.sequence == 0


def test_ack_and_nack_of_what_is_in_hand(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, 0, 0, 0)
    message = get(member)
    message.ack()
    message.ack()
    assert in_hand(writer) == (0, 0)
    message = get(member)
    message.nack()
    assert in_hand(writer) == (0, 1)
    with pytest.raises(ValueError, match="message 1 was given back"):
        message.ack()
    found = collect([member], 2)
    assert [(m.sequence, m.deliveries) for _, m in found] in ([(1, 2), (2, 1)], [(2, 1), (1, 2)])
    assert member.read(timeout=0) is None
    assert in_hand(writer) == (0, 0)


def test_several_in_hand_some_of_which_are_settled(writer: Writer, join: Join) -> None:
    member, other = join(), join()
    put(writer, *[0] * 8)
    messages = member.read_available(limit=6)
    assert in_hand(writer) == (6, 0)
    messages[0].ack()
    messages[5].nack()
    messages[2].ack()
    del messages[3]  # stays in hand
    assert in_hand(writer) == (3, 1)
    messages[1].nack()
    assert in_hand(writer) == (2, 2)
    member.close()
    assert in_hand(writer) == (0, 4)
    found = collect([other], 6)
    assert {m.sequence: m.deliveries for _, m in found} == {1: 2, 3: 2, 4: 2, 5: 2, 6: 1, 7: 1}


def test_asking_of_one_that_was_evicted(writer: Writer, join: Join) -> None:
    """It is told. What it asks for the next after is done if no other has it yet."""
    member, other = join(), join()
    put(writer, 0, 0)
    get(member)
    assert writer.evict(member.slot)
    with pytest.raises(shm.Evicted, match="attach again"):
        member.read(timeout=0)
    assert take(other) == [1]
    eventually(lambda: take(other) == [] and status_of(writer).floor == 2, "all is done")
