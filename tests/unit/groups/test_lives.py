"""A group as a whole: it holds the ring, outlives its members, loses its hold, and ends."""

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.group import Member
from tests.conftest import DEADLINE, eventually, reader_status
from tests.unit.conftest import Background, wait_until_waiting

from .conftest import BALANCES, SLOTS, Join, collect, get, is_full, put, status_of, take, text

# ---- holding the ring ------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_it_holds_the_ring(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    put(writer, *range(1, SLOTS + 1))
    assert is_full(writer)
    status = shm.status(writer.name)
    assert (status.used_slots, status.occupancy, status.oldest) == (SLOTS, 1.0, 0)
    assert get(member).sequence == 0
    assert is_full(writer), "it is only in hand"
    assert take(member) == list(range(1, SLOTS))
    assert shm.status(writer.name).used_slots == 0
    put(writer, *range(1, SLOTS + 1))


def test_a_member_holds_nothing_by_itself(writer: Writer, join: Join) -> None:
    member, idle = join(), join()
    for _ in range(3):
        put(writer, *[0] * SLOTS)
        assert len(take(member)) == SLOTS
    for one in (member, idle):
        status = reader_status(writer.name, one.slot)
        assert status is not None
        assert (status.policy, status.group, status.gating) == ("group", "g", False)
        assert one.policy == "group"
    assert (member.received, idle.received) == (3 * SLOTS, 0)


def test_the_writer_that_waits_goes_on_as_soon_as_there_is_room(writer: Writer, join: Join) -> None:
    member = join()
    put(writer, *[0] * SLOTS)
    waiting = Background(lambda: put(writer, 0, timeout=DEADLINE))
    assert take(member)[0] == 0
    assert waiting.result() == [SLOTS]


def test_a_writer_that_waits_moves_the_floor_itself(writer: Writer, join: Join) -> None:
    """Messages that are done and whose member does nothing any more."""
    member = join(auto_ack=False)
    put(writer, *[0] * SLOTS)
    messages = [get(member) for _ in range(3)]
    for message in reversed(messages):
        message.ack()
    del messages, message
    assert put(writer, 0, 0, 0, timeout=DEADLINE) == [SLOTS, SLOTS + 1, SLOTS + 2]


def test_a_full_ring_names_the_group(writer: Writer, join: Join) -> None:
    with Reader.attach(writer.name, label="innocent") as reader:
        join()
        put(writer, *[0] * SLOTS)
        assert len(reader.read_available()) == SLOTS
        assert reader.read(timeout=0) is None
        with pytest.raises(shm.RingFull, match="group 'g'") as raised:
            writer.publish(b"", timeout=0)
    assert "innocent" not in str(raised.value)


# ---- outliving its members ---------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_it_outlives_its_members(writer: Writer, join: Join, balance: Any) -> None:
    """Who comes back finds what is not done, and what was handed out before says so."""
    with Member.attach(writer.name, "g", balance=balance) as member:
        put(writer, *[1] * 6)
        assert [get(member).sequence for _ in range(3)] == [0, 1, 2]
    status = status_of(writer)
    assert (status.state, status.members, status.floor) == ("active", (), 2)
    assert (status.lag, status.returned, status.holder) == (4, 1, None)
    put(writer, *[1] * (SLOTS - 4))
    assert is_full(writer)
    member = join(balance=balance)
    found = collect([member], SLOTS)
    assert [m.sequence for _, m in found] == list(range(2, SLOTS + 2))
    assert [m.deliveries for _, m in found] == [2] + [1] * (SLOTS - 1)
    assert take(member) == []
    assert status_of(writer).lag == 0
    assert status_of(writer).created_ns == status.created_ns


def test_it_outlives_the_writer(name: str) -> None:
    writer = Writer.create(name, slots=SLOTS, capacity=4096, max_readers=2)
    with Member.attach(name, "g", auto_ack=False) as member:
        put(writer, 0, 0, 0)
        held = get(member)
        del writer
        gc.collect()
        with Writer.resume(name) as writer:
            put(writer, 0)
            held.ack()
            found = [get(member) for _ in range(3)]
            assert [(m.sequence, m.epoch) for m in found] == [(1, 1), (2, 1), (3, 2)]
            member.ack(found)
            assert member.read(timeout=0) is None
            assert status_of(writer).lag == 0
            put(writer, *[0] * SLOTS)
            assert is_full(writer)


@pytest.mark.parametrize(
    ("start", "expected"), [("latest", []), ("oldest", [0, 1, 2, 3]), (2, [2, 3]), (4, [])]
)
def test_where_it_starts(writer: Writer, start: Any, expected: list[int]) -> None:
    """That is for the first member; the others join what there is."""
    put(writer, *[0] * 4)
    with Member.attach(writer.name, "g", start=start) as member:
        assert status_of(writer).floor == (4 - len(expected))
        assert take(member) == expected
    put(writer, 0)
    for later in ("oldest", "latest", 0, 5):
        with Member.attach(writer.name, "g", start=later) as member:
            assert take(member) == [writer.sequence - 1]
        put(writer, 0)
    assert status_of(writer).lag == 1


def test_starts_that_are_none(writer: Writer) -> None:
    put(writer, *[0] * 4)
    for bad in (5, 2**63, 2**70, -1, "first", None, 1.5):
        with pytest.raises(ValueError, match=r"start is|not published yet"):
            Member.attach(writer.name, "g", start=bad)  # type: ignore[arg-type]
    assert group.list_groups(writer.name) == []


def test_a_start_that_is_gone_is_told(writer: Writer, join: Join) -> None:
    put(writer, *[0] * SLOTS)
    put(writer, *[0] * SLOTS)
    oldest = shm.status(writer.name).oldest
    assert oldest > 10
    member = join(start=10)
    message = get(member)
    assert message.sequence == oldest
    assert message.gap == status_of(writer).lost == member.lost == oldest - 10
    assert {get(member).gap for _ in range(3)} == {0}


# ---- losing its hold -----------------------------------------------------------------------------


def test_demote_group(writer: Writer, join: Join) -> None:
    members = [join() for _ in range(2)]
    put(writer, *[0] * SLOTS)
    held = get(members[0])
    view = memoryview(held)
    waiting = Background(lambda: [members[1].read(DEADLINE) for _ in range(SLOTS)])
    assert writer.demote_group("g")
    assert not writer.demote_group("g"), "it holds nothing any more"
    with pytest.raises(shm.Evicted):
        waiting.result()
    put(writer, *[0] * 3 * SLOTS)
    status = status_of(writer)
    assert status.state == "demoted"
    for use in (
        lambda: members[0].read(timeout=0),
        lambda: members[0].batch(timeout=0),
        members[0].read_available,
        lambda: next(members[0]),
        lambda: list(members[0]),
        lambda: bytes(held),
        lambda: held.payload,
    ):
        with pytest.raises(shm.Evicted):
            use()
    view.release()
    # the next member is told what the group has missed
    oldest = shm.status(writer.name).oldest
    assert oldest > 0
    member = join()
    message = get(member)
    floor = status.floor
    assert message.sequence == oldest
    assert message.gap == oldest - floor == status_of(writer).lost == member.lost
    assert [get(member).gap for _ in range(3)] == [0, 0, 0]
    status = status_of(writer)
    assert (status.state, status.members) == ("active", (member.slot,))
    take(member)
    put(writer, *[0] * SLOTS)
    assert is_full(writer), "it holds the ring again"


@pytest.mark.parametrize("balance", BALANCES)
def test_demoted_again_and_again(writer: Writer, join: Join, balance: Any) -> None:
    """Each message comes, or is in a gap, which is told once. A gap counts from the floor on."""
    seen: set[int] = set()
    missed = 0

    def ask(member: Member) -> bool:
        nonlocal missed
        message = member.read(timeout=0)
        if message is None:
            return False
        missed += message.gap
        seen.add(message.sequence)
        return True

    def ask_all(members: list[Member]) -> bool:
        return not sum(map(ask, members)) and members[0].lag == 0

    for _ in range(5):
        members = [join(balance=balance), join(balance=balance)]
        eventually(partial(ask_all, members), "no lag")
        put(writer, *range(1, 31))
        for member in members:
            ask(member)
        assert writer.demote_group("g")
        put(writer, *range(SLOTS), *range(20))
        for member in members:
            member.close()
    last = join(balance=balance)
    eventually(partial(ask_all, [last]), "no lag")
    assert status_of(writer).lost == last.lost == missed > 0
    assert writer.sequence - len(seen) <= missed
    assert status_of(writer).lag == 0


def test_nobody_is_demoted_without_a_group(writer: Writer, join: Join) -> None:
    assert not writer.demote_group("g")
    join()
    assert not writer.demote_group("other")
    assert not writer.demote_group("")
    with pytest.raises(TypeError):
        writer.demote_group(None)  # type: ignore[arg-type]
    writer.close()
    with pytest.raises(shm.RingClosed):
        writer.demote_group("g")


def test_a_demoted_group_without_members_lets_the_ring_go(writer: Writer) -> None:
    with Member.attach(writer.name, "g"):
        put(writer, *[0] * SLOTS)
    assert is_full(writer)
    assert writer.demote_group("g")
    put(writer, *[0] * 5 * SLOTS)
    status = status_of(writer)
    assert (status.state, status.members, status.floor) == ("demoted", (), 0)
    group.remove(writer.name, "g")
    assert group.list_groups(writer.name) == []


@pytest.mark.parametrize("balance", BALANCES)
def test_a_member_that_is_evicted(writer: Writer, join: Join, balance: Any) -> None:
    """What it had is the others', and its acknowledgement counts nothing."""
    member = join(balance=balance, auto_ack=False)
    put(writer, *[1] * 3)
    messages = [get(member) for _ in range(2)]
    view = messages[1].payload
    other = join(balance=balance, auto_ack=False)
    assert writer.evict(member.slot)
    assert not writer.evict(member.slot)
    found = {m.sequence: m for _, m in collect([other], 3)}
    assert {s: m.deliveries for s, m in found.items()} == {0: 2, 1: 2, 2: 1}
    with pytest.raises(shm.Evicted, match="Its messages are others' now"):
        messages[0].ack()
    with pytest.raises(shm.Evicted):
        member.ack(messages[1])
    with pytest.raises(shm.Evicted):
        messages[1].payload  # noqa: B018
    with pytest.raises(shm.Evicted):
        bytes(messages[0])
    with pytest.raises(shm.Evicted):
        member.read(timeout=0)
    assert status_of(writer).in_flight == 3
    assert status_of(writer).members == (other.slot,)
    other.ack(found.values())
    assert other.read(timeout=0) is None
    assert status_of(writer).lag == 0
    view.release()
    member.close()
    assert status_of(writer).voided == 0


def test_a_nack_of_one_that_was_evicted(writer: Writer, join: Join) -> None:
    member, other = join(auto_ack=False), join(auto_ack=False)
    put(writer, 0, 0)
    message, batch = get(member), member.batch(timeout=0)
    writer.evict(member.slot)
    found = collect([other], 2)
    assert len(found) == 2
    with pytest.raises(shm.Evicted):
        batch.nack()
    assert status_of(writer).in_flight == 2
    with pytest.raises(shm.Evicted):
        message.nack()


def test_a_late_batch(writer: Writer, join: Join) -> None:
    """The end of its block tells that it came too late."""
    member, other = join(), join()
    put(writer, 0, 0)
    batch = member.batch(timeout=0)
    batch.__enter__()
    writer.evict(member.slot)
    ((_, again),) = collect([other], 1)
    assert again.deliveries == 2
    with pytest.raises(shm.Evicted):
        batch.__exit__(None, None, None)


def test_evicting_wakes_a_member_that_sleeps(writer: Writer, join: Join) -> None:
    sleeper = join()
    holder = join(auto_ack=False)
    put(writer, 0)
    message = get(holder)
    waiting = Background(lambda: sleeper.read(DEADLINE).deliveries)  # type: ignore[union-attr]
    wait_until_waiting(writer.name, sleeper.slot)
    writer.evict(holder.slot)
    assert waiting.result() == message.deliveries + 1
    with pytest.raises(shm.Evicted):
        holder.read(timeout=0)


def test_a_member_that_waits_is_told_of_its_eviction(writer: Writer, join: Join) -> None:
    member = join()
    waiting = Background(member.read)
    wait_until_waiting(writer.name, member.slot)
    writer.evict(member.slot)
    with pytest.raises(shm.Evicted):
        waiting.result()


def test_demote_a_member(writer: Writer, join: Join) -> None:
    """One that is asked to let go, and holds nothing up, stays what it is."""
    member = join(auto_ack=False)
    put(writer, *[0] * SLOTS)
    message = get(member)
    assert writer.demote(member.slot)
    assert not writer.demote(member.slot), "asked already"
    status = reader_status(writer.name, member.slot)
    assert status is not None
    assert status.state == "demoting"
    second = get(member)
    assert second.sequence == 1, "it goes on meanwhile"
    member.ack([message, second])
    assert get(member).sequence == 2
    status = reader_status(writer.name, member.slot)
    assert status is not None
    assert status.state == "active"
    assert member.policy == "group"
    assert writer.demote(member.slot)


# ---- the end of the ring -----------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_the_end_of_the_ring(writer: Writer, join: Join, balance: Any) -> None:
    member = join(balance=balance)
    put(writer, 1, 1)
    writer.close()
    assert [message.sequence for message in member] == [0, 1]
    assert list(member) == []
    for use in (
        lambda: member.read(timeout=0),
        member.read,
        member.batch,
        member.read_available,
    ):
        with pytest.raises(shm.RingClosed, match="has ended"):
            use()
    with pytest.raises(StopIteration):
        next(member)


@pytest.mark.parametrize("balance", BALANCES)
def test_members_that_wait_end_with_the_ring(writer: Writer, join: Join, balance: Any) -> None:
    members = [join(balance=balance) for _ in range(3)]
    waiting = [Background(partial(list, member)) for member in members]
    for member in members:
        wait_until_waiting(writer.name, member.slot)
    writer.close()
    assert [one.result() for one in waiting] == [[], [], []]


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("how", ["closed", "acknowledges"])
def test_one_whose_fellow_holds_a_message_waits(
    writer: Writer, join: Join, balance: Any, how: str
) -> None:
    """It gets the message if that one is closed, and ends if it is done."""
    holder, patient = join(balance=balance, auto_ack=False), join(balance=balance)
    put(writer, 1)
    number, held = collect([holder, patient], 1)[0]
    if number:  # it is the other one's key
        holder, patient = patient, holder
    writer.close()
    ended = Background(lambda: [(m.sequence, m.deliveries) for m in patient])
    wait_until_waiting(writer.name, patient.slot)
    assert ended.running
    if how == "closed":
        holder.close()
        assert ended.result() == [(0, 2)]
    else:
        held.ack()
        assert ended.result() == []
    assert status_of(writer).lag == 0


def test_a_member_that_holds_the_last_messages_itself_ends(writer: Writer, join: Join) -> None:
    """Nothing can come to it any more, and what it has in hand it may still finish."""
    member = join(auto_ack=False)
    put(writer, 0, 0)
    writer.close()
    messages = list(member)
    assert [message.sequence for message in messages] == [0, 1]
    with pytest.raises(shm.RingClosed, match="has ended"):
        member.read(timeout=0)
    member.ack(messages)
    member.ack(messages)
    assert status_of(writer).in_flight == 0


def test_what_is_given_back_after_the_end_comes_again(writer: Writer, join: Join) -> None:
    member = join(auto_ack=False)
    put(writer, 0)
    writer.close()
    (message,) = list(member)
    message.nack()
    again = member.read(DEADLINE)
    assert again is not None
    assert again.deliveries == 2
    again.ack()
    assert list(member) == []


def test_a_ring_without_writer_and_name_ends(name: str) -> None:
    writer = Writer.create(name, slots=8, capacity=1024, max_readers=2)
    with Member.attach(name, "g") as member:
        waiting = Background(member.read)
        wait_until_waiting(name)
        del writer
        gc.collect()
        shm.unlink(name)
        with pytest.raises(shm.RingClosed, match="no writer and was removed"):
            waiting.result()


def test_time_passes_for_nobody(writer: Writer, join: Join) -> None:
    """A member that is at work for long keeps what it has."""
    slow, other = join(auto_ack=False), join()
    put(writer, 0)
    message = get(slow)
    end = time.monotonic() + 0.2  # several looks of the other
    assert other.read(timeout=0.2) is None
    assert time.monotonic() >= end - 0.01
    message.ack()
    assert other.read(timeout=0) is None
    assert status_of(writer).lag == 0
    assert text(0) == bytes(message)
