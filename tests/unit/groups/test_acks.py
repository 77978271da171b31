"""Without auto_ack: each message is acknowledged or given back by itself; giving back, pauses, and
what is set aside after too many deliveries."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import time
from functools import partial
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.group import GroupMessage, Member, SetAside
from tests.conftest import DEADLINE, eventually

from .conftest import BALANCES, SLOTS, Join, collect, get, put, status_of, take_and_ack


def figures(writer: Writer) -> tuple[int, int, int]:
    """In hand, waiting to be delivered again, and not done in all."""
    status = status_of(writer)
    return status.in_flight, status.returned, status.lag


# ---- acknowledging -------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_each_is_acknowledged_by_itself(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance, auto_ack=False)
    put(writer, *[1] * 4)
    messages = [get(member) for _ in range(4)]
    assert figures(writer) == (4, 0, 4)
    for count, index in enumerate((2, 1, 3)):
        messages[index].ack()
        assert figures(writer)[0] == 3 - count
    assert member.read(timeout=0) is None
    assert figures(writer) == (1, 0, 4), "the first holds the floor"
    messages[0].ack()
    assert member.read(timeout=0) is None
    assert figures(writer) == (0, 0, 0)
    assert [bytes(message) for message in messages] == [b"%08d" % i for i in range(4)]


def test_again_and_the_other_way_round(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, 0, 0)
    done, back = get(member), get(member)
    done.ack()
    done.ack()
    done.nack()
    assert figures(writer)[:2] == (1, 0)
    back.nack()
    back.nack()
    assert figures(writer)[:2] == (0, 1)
    with pytest.raises(ValueError, match="message 1 was given back: whoever has it next"):
        back.ack()
    again = member.read(DEADLINE)
    assert again is not None
    assert (again.sequence, again.deliveries) == (1, 2)
    with pytest.raises(ValueError, match="was given back"):
        back.ack()
    again.ack()
    assert member.read(timeout=0) is None
    assert figures(writer) == (0, 0, 0)


def test_several_at_once(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, *[0] * 10)
    messages = [get(member) for _ in range(6)]
    member.ack(messages[0])
    member.ack(messages[1:3])
    member.ack(iter([messages[3], messages[4], messages[3]]))
    member.ack([])
    batch = member.batch(limit=2, timeout=0)
    member.ack([messages[5], batch])
    batch.release()
    rest = member.batch(limit=2, timeout=0)
    member.ack(rest)
    rest.release()
    assert member.read(timeout=0) is None
    assert figures(writer) == (0, 0, 0)


def test_what_is_no_message_of_this_member(writer: Writer, join: Join) -> None:
    """If one of several is none, nothing is acknowledged."""
    member, other = join(auto_ack=False), join(auto_ack=False)
    elsewhere = join("another", auto_ack=False)
    with Reader.attach(writer.name) as reader:
        put(writer, 0, 0)
        mine, foreign, third = get(member), get(other), get(elsewhere)
        read = reader.read(timeout=0)
        for bad in (foreign, third, read, "a", 0, None, mine.sequence):
            with pytest.raises(TypeError):
                member.ack([mine, bad])  # type: ignore[list-item]
            with pytest.raises(TypeError):
                member.ack(bad)  # type: ignore[arg-type]
        assert figures(writer)[:2] == (2, 0)
    del read


def test_one_that_is_dropped_is_given_back(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, 0, 0)
    get(member)
    gc.collect()
    assert figures(writer)[:2] == (0, 1)
    again = get(member)
    assert (again.sequence, again.deliveries) == (0, 2)
    assert get(member).sequence == 1
    assert figures(writer)[:2] == (1, 1)


@pytest.mark.parametrize("balance", BALANCES)
def test_asking_for_more_says_nothing(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance, auto_ack=False)
    put(writer, *[1] * 6)
    kept: list[Any] = [get(member), next(member), *member.read_available(limit=2)]
    for message in member:
        kept.append(message)
        break
    kept.append(member.batch(limit=1, timeout=0))
    assert member.read(timeout=0) is None
    assert figures(writer) == (6, 0, 6)


def test_leaving_a_loop_keeps_what_is_kept(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, 0, 0)
    kept = []
    for message in member:
        kept.append(message)
        break
    del message
    assert figures(writer)[:2] == (1, 0)
    kept.clear()
    assert figures(writer)[:2] == (0, 1)


@pytest.mark.parametrize("balance", BALANCES)
def test_close_gives_back_what_is_not_acknowledged(
    writer: Writer, join: Join, balance: Any
) -> None:
    member = join(balance=balance, auto_ack=False)
    put(writer, *[1] * 5)
    messages = [get(member) for _ in range(4)]
    messages[1].ack()
    member.close()
    for message in messages:
        assert bytes(message) == b"%08d" % message.sequence
    assert figures(writer)[:2] == (0, 3)
    messages[1].ack()
    with pytest.raises((ValueError, shm.RingClosed)):
        messages[0].ack()
    messages[0].nack()
    other = join(balance=balance, auto_ack=False)
    found = collect([other], 4)
    assert [(m.sequence, m.deliveries) for _, m in found] == [(0, 2), (2, 2), (3, 2), (4, 1)]


def test_it_may_be_another_thread_that_acknowledges(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            put(writer, *[0] * 10, timeout=DEADLINE)
            for done in [pool.submit(get(member).ack) for _ in range(10)]:
                done.result(DEADLINE)
    assert member.read(timeout=0) is None
    assert figures(writer) == (0, 0, 0)


# ---- giving back ---------------------------------------------------------------------------


def test_any_another_member_gets_it_at_once(writer: Writer, join: Join) -> None:
    member, other = join(auto_ack=False), join(auto_ack=False)
    put(writer, 0, 0)
    get(member).nack()
    assert get(member).sequence == 1, "here it has to wait"
    again = get(other)
    assert (again.sequence, again.deliveries) == (0, 2)
    again.ack()


def test_any_if_no_other_takes_it_it_comes_again(writer: Writer, join: Join) -> None:
    member, _idle = join(auto_ack=False), join(auto_ack=False)
    put(writer, 0)
    get(member).nack()
    again = member.read(DEADLINE)
    assert again is not None
    assert (again.sequence, again.deliveries) == (0, 2)


def test_any_meanwhile_the_others_come(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, *[0] * 5)
    get(member).nack()
    rest = [get(member) for _ in range(4)]
    assert {message.sequence for message in rest} >= {1, 2, 3}


@pytest.mark.parametrize("balance", BALANCES)
def test_pauses_double(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance, auto_ack=False, max_deliveries=20)
    put(writer, 1)
    message = get(member)
    for deliveries in range(1, 8):
        assert message.deliveries == deliveries
        before = time.monotonic()
        message.nack()
        if deliveries > 4:  # 16 ms and more: this call is not later than that
            assert member.read(timeout=0) is None or time.monotonic() - before >= 0.016
        again = member.read(DEADLINE)
        assert again is not None
        assert time.monotonic() - before >= 0.001 * 2 ** (deliveries - 1)
        message = again
    message.ack()


def test_key_it_is_the_next_of_its_key(writer: Writer, join: Join) -> None:
    member = join(balance="key", auto_ack=False)
    put(writer, 1, 1, 2, 1, 2)
    get(member).nack()
    for sequence in (2, 4):
        message = get(member)
        assert message.sequence == sequence
        message.ack()
    assert figures(writer)[2] == 5
    found = [member.read(DEADLINE) for _ in range(3)]
    assert [(m.sequence, m.deliveries) for m in found if m] == [(0, 2), (1, 1), (3, 1)]


def test_key_it_blocks_its_key(writer: Writer, join: Join) -> None:
    member = join(balance="key", auto_ack=False, max_deliveries=200)
    put(writer, 1, 1)
    message = get(member)
    for _ in range(6):
        message.nack()
        again = member.read(DEADLINE)
        assert again is not None
        assert again.sequence == 0
        message = again
    before = time.monotonic()
    message.nack()
    assert member.read(timeout=0.001) is None or time.monotonic() - before > 0.064
    message.nack()


def test_key_one_of_several_in_hand(writer: Writer, join: Join) -> None:
    """Whoever has more of a key in hand gets what it gave back, after its pause."""
    member = join(balance="key", auto_ack=False, max_deliveries=200)
    put(writer, 1, 1, 1)
    first, second = get(member), get(member)
    deliveries = 1
    while deliveries < 6:
        before = time.monotonic()
        first.nack()
        again = member.read(DEADLINE)
        assert again is not None
        assert again.sequence == 0
        assert time.monotonic() - before >= 0.001 * 2 ** (deliveries - 1)
        first, deliveries = again, deliveries + 1
        assert first.deliveries == deliveries
    first.ack()
    second.ack()
    assert take_and_ack(member) == [2]


def test_key_it_stays_with_its_member(writer: Writer, join: Join) -> None:
    members = [join(balance="key", auto_ack=False) for _ in range(3)]
    put(writer, *range(1, 31))
    first = collect(members, 30)
    owner = {message.key: number for number, message in first}
    for _, message in first:
        message.nack()
    again = collect(members, 30)
    assert {message.key: number for number, message in again} == owner
    assert {message.deliveries for _, message in again} == {2}


def test_many_are_given_back_at_once(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, *[0] * SLOTS)
    for deliveries in range(1, 5):
        found = collect([member], SLOTS)
        assert sorted(message.sequence for _, message in found) == list(range(SLOTS))
        assert {message.deliveries for _, message in found} == {deliveries}
        for _, message in found:
            message.nack()
    for _, message in collect([member], SLOTS):
        message.ack()
    assert member.read(timeout=0) is None
    assert figures(writer) == (0, 0, 0)
    assert status_of(writer).redelivered == 4 * SLOTS


# ---- delivered too often -------------------------------------------------------------------


def nack_until_it_is_gone(member: Member, deliveries: int) -> None:
    """The next message, as often as it comes."""
    for n in range(1, deliveries + 1):
        message = member.read(DEADLINE)
        assert message is not None
        assert message.deliveries == n
        message.nack()
        del message


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("most", [1, 3, None])
def test_set_aside(writer: Writer, join: Join, balance: Any, most: int | None) -> None:
    member = join(balance=balance, auto_ack=False, max_deliveries=most)
    deliveries = most or 5
    topic = writer.topic("a")
    assert status_of(writer).max_deliveries == deliveries
    writer.publish(b"", key=1, topic=topic)
    earliest = time.time_ns()
    nack_until_it_is_gone(member, deliveries)
    put(writer, 1)
    message = member.read(DEADLINE)
    assert message is not None
    assert (message.sequence, message.deliveries) == (1, 1)
    message.ack()
    eventually(lambda: member.read(timeout=0) is None and figures(writer) == (0, 0, 0), "all done")
    status = status_of(writer)
    assert (status.set_aside, status.redelivered) == (1, deliveries - 1)
    (record,) = status.newest_set_aside
    assert record == SetAside(
        sequence=0,
        topic=topic,
        time_ns=record.time_ns,
        set_aside_ns=record.set_aside_ns,
        deliveries=deliveries,
        pids=(os.getpid(),) * deliveries,
    )
    assert record.time_ns <= earliest <= record.set_aside_ns <= time.time_ns()
    assert writer.set_aside == 1


def test_one_that_kills_whoever_has_it(writer: Writer, join: Join) -> None:
    """Members that leave with it count as deliveries, too."""
    join(max_deliveries=3)
    put(writer, 0, 0)
    for deliveries in range(1, 4):
        with Member.attach(writer.name, "g") as member:
            message = get(member)
            assert (message.sequence, message.deliveries) == (0, deliveries)
    with Member.attach(writer.name, "g") as member:
        assert get(member).sequence == 1
        assert member.read(timeout=0) is None
    assert (status_of(writer).set_aside, writer.set_aside, status_of(writer).lag) == (1, 1, 0)


def is_over(member: Member) -> bool:
    """Has its group nothing left to do?"""
    return member.read(timeout=0) is None and member.lag == 0


def test_the_newest_64_records_are_kept(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False, max_deliveries=1)
    other = join("other", auto_ack=False, max_deliveries=1)
    count = 100
    for _ in range(count):
        put(writer, 0, timeout=DEADLINE)
        for one in (member, other):
            nack_until_it_is_gone(one, 1)
            eventually(partial(is_over, one), "it is set aside")
    status = status_of(writer)
    assert status.set_aside == count
    kept = [record.sequence for record in status.newest_set_aside]
    assert kept == list(range(count - 64, count))
    assert writer.set_aside == 2 * count


@pytest.mark.parametrize("bad", [0, 201, -1, 2**40])
def test_a_bad_max_deliveries(writer: Writer, bad: int) -> None:
    with pytest.raises(ValueError, match="max_deliveries is from 1 to 200"):
        Member.attach(writer.name, "g", max_deliveries=bad)
    assert shm.status(writer.name).groups == ()


def test_the_most_deliveries_there_can_be(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False, max_deliveries=200)
    put(writer, 0)
    for deliveries in range(1, 201):
        message: GroupMessage | None = member.read(DEADLINE)
        assert message is not None
        assert message.deliveries == deliveries
        del message  # given back without a pause
    assert member.read(timeout=0) is None
    assert status_of(writer).set_aside == 1
    assert status_of(writer).newest_set_aside[0].deliveries == 200
    assert status_of(writer).newest_set_aside[0].pids == (os.getpid(),) * 8
