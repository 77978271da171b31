"""Making, joining and removing groups: what members must agree on, names, limits, what is shown,
and what is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.group import GroupStatus, Member
from tests.conftest import SHM, leftovers, reader_status
from tests.unit.conftest import Background, wait_until_waiting

from .conftest import BALANCES, MAX_READERS, SLOTS, Join, get, put, status_of, take


def segments(name: str) -> list[str]:
    """The segments of groups that a ring has in /dev/shm."""
    return [entry for entry in leftovers(name) if entry.startswith(f"rc.{name}.g.")]


# ---- agreeing --------------------------------------------------------------------------------


AGREED: dict[str, Any] = {
    "balance": "key",
    "max_deliveries": 3,
    "topics": ["a", "b*"],
    "others": True,
}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"balance": "any"}, "by balance 'key', not 'any'"),
        ({"balance": "round-robin"}, "by balance 'key', not 'round-robin'"),
        ({"max_deliveries": 4}, "after 3 deliveries, not 4"),
        ({"topics": ["a"]}, "wants other topics than these"),
        ({"topics": ["a", "b*", "c"]}, "wants other topics than these"),
        ({"topics": ["a", "b"]}, "wants other topics than these"),
        ({"topics": None}, "wants other topics than these"),
        ({"topics": []}, "wants other topics than these"),
        ({"others": False}, "wants other topics than these"),
    ],
)
def test_members_agree(writer: Writer, join: Join, other: dict[str, Any], why: str) -> None:
    first = join(**AGREED)
    with pytest.raises(ValueError, match=why):
        Member.attach(writer.name, "g", **{**AGREED, **other})
    assert status_of(writer).members == (first.slot,)
    first.close()
    with pytest.raises(ValueError, match=why):
        Member.attach(writer.name, "g", **{**AGREED, **other})
    assert [reader.slot for reader in shm.status(writer.name).readers] == []


def test_what_members_need_not_say(writer: Writer, join: Join) -> None:
    """The order of topics, auto_ack, how to wait; and max_deliveries if another has said it."""
    join(**AGREED)
    join(**{**AGREED, "topics": ["b*", "a", "a"]})
    join(**{**AGREED, "max_deliveries": None})
    join(**AGREED, auto_ack=False, wait=shm.Yielding(), label="x", start="oldest")
    assert len(status_of(writer).members) == 4
    join("all", others=True)
    join("all", others=False)


def test_another_group_may_say_otherwise(writer: Writer, join: Join) -> None:
    for number, balance in enumerate(BALANCES):
        join(f"g{number}", balance=balance, max_deliveries=number + 1)
    found = group.list_groups(writer.name)
    assert [(g.name, g.balance, g.max_deliveries) for g in found] == [
        ("g0", "any", 1),
        ("g1", "key", 2),
        ("g2", "round-robin", 3),
    ]


def test_bad_arguments(writer: Writer) -> None:
    bad: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, 'balance is "any", "key" or "round-robin"', {"balance": "fair"}),
        (ValueError, "balance is", {"balance": None}),
        (TypeError, r"list of names and patterns: \['abc'\]", {"topics": "abc"}),
        (TypeError, "a topic is a string", {"topics": [1]}),
        (ValueError, "has 1 to 127 bytes", {"topics": [""]}),
        (ValueError, "take 32759 bytes at most", {"topics": [f"{n:0127}" for n in range(300)]}),
    ]
    for error, why, options in bad:
        with pytest.raises(error, match=why):
            Member.attach(writer.name, "g", **options)
    for name in (None, 1, b"g"):
        with pytest.raises(TypeError, match="a group's name is a string"):
            Member.attach(writer.name, name)  # type: ignore[arg-type]
    assert group.list_groups(writer.name) == []
    assert shm.status(writer.name).readers == ()
    assert segments(writer.name) == []


@pytest.mark.parametrize("bad", ["", "a b", "a.b", "a/b", "x" * 21, "\xe9", "-", "A", "../x"])
def test_bad_names(writer: Writer, bad: str) -> None:
    with pytest.raises(ValueError, match="name"):
        shm.check_name(bad)
    for call in (Member.attach, group.remove):
        with pytest.raises(ValueError, match="name"):
            call(writer.name, bad)
    assert segments(writer.name) == []


def test_a_name_with_a_nul(writer: Writer) -> None:
    with pytest.raises(ValueError, match="name"):
        Member.attach(writer.name, "a\0b")


def test_names(writer: Writer, join: Join) -> None:
    names = ["a", "x" * 20, "x" * 19, "0", "a-b_c"]
    for name in names:
        join(name)
    assert [found.name for found in group.list_groups(writer.name)] == names
    assert segments(writer.name) == sorted(f"rc.{writer.name}.g.{name}" for name in names)


def test_there_is_no_such_ring(name: str) -> None:
    for call in (
        lambda: Member.attach(name, "g"),
        lambda: group.list_groups(name),
        lambda: group.remove(name, "g"),
    ):
        with pytest.raises(shm.RingNotFound):
            call()
    with pytest.raises(ValueError, match="name"):
        Member.attach("no name", "g")


# ---- how many ----------------------------------------------------------------------------------


def test_a_ring_has_32_groups(writer: Writer) -> None:
    for number in range(32):
        Member.attach(writer.name, f"g{number}", start="oldest").close()
    with pytest.raises(shm.RingError, match="has 32 groups, and no more can be"):
        Member.attach(writer.name, "another")
    with Member.attach(writer.name, "g31"):
        pass
    assert [found.name for found in group.list_groups(writer.name)] == [
        f"g{number}" for number in range(32)
    ]
    put(writer, *range(SLOTS))
    for number in range(32):
        with Member.attach(writer.name, f"g{number}") as member:
            assert len(take(member)) == SLOTS
    group.remove(writer.name, "g7")
    with Member.attach(writer.name, "another") as member:
        put(writer, 0)
        assert take(member) == [SLOTS]
    assert group.list_groups(writer.name)[7].name == "another"


def test_members_are_as_many_as_reader_slots(writer: Writer, join: Join) -> None:
    for _ in range(MAX_READERS - 1):
        join()
    with Reader.attach(writer.name):
        with pytest.raises(shm.TooManyReaders, match="slots"):
            Member.attach(writer.name, "g")
        assert len(status_of(writer).members) == MAX_READERS - 1
    join()


def test_a_group_has_256_members(name: str) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=300) as writer:
        members = [Member.attach(name, "g", balance="round-robin") for _ in range(256)]
        with pytest.raises(shm.TooManyReaders, match="the group has 256 members"):
            Member.attach(name, "g", balance="round-robin")
        assert len(shm.status(name).readers) == 256
        put(writer, 0)
        first = [bool(take(member)) for member in members].index(True)
        for member in members[first + 1 :] + members[: first + 1]:
            put(writer, 0)
            assert take(member) == [writer.sequence - 1], "each has its turn"
        members.pop(100).close()
        members.append(Member.attach(name, "g", balance="round-robin"))
        assert members[-1].slot == 100
        for member in members:
            member.close()
        assert status_of(writer).members == ()


# ---- removing ----------------------------------------------------------------------------------


def test_remove(writer: Writer, join: Join) -> None:
    with Member.attach(writer.name, "g") as member:
        put(writer, *[0] * SLOTS)
        get(member)
        with pytest.raises(shm.RingError, match="has living members, 1 of them"):
            group.remove(writer.name, "g")
        waiting = Background(lambda: writer.publish(b"", timeout=60))
    assert waiting.running
    group.remove(writer.name, "g")
    assert waiting.result() == SLOTS, "the writer is woken: there is room"
    assert group.list_groups(writer.name) == []
    assert segments(writer.name) == []
    with pytest.raises(shm.RingNotFound, match="has no group 'g'"):
        group.remove(writer.name, "g")
    member = join(balance="key")
    assert take(member) == [], "it is another group, which starts anew"
    assert status_of(writer).floor == SLOTS + 1


def test_a_removed_group_leaves_nothing_to_the_next(writer: Writer) -> None:
    for balance in BALANCES * 3:
        with Member.attach(
            writer.name, "g", balance=balance, max_deliveries=1, topics=[balance], auto_ack=False
        ) as member:
            topic = writer.topic(balance)
            writer.publish(b"", topic=topic)
            writer.publish(b"", topic=topic)
            writer.publish(b"")
            assert member.read(timeout=0) is not None  # dropped: it will be set aside
            message = member.read(timeout=1)
            assert message is not None
            assert (message.deliveries, message.topic_name) == (1, balance)
            message.ack()
            assert member.read(timeout=0) is None
        status = status_of(writer)
        assert (status.set_aside, status.redelivered, status.lost) == (1, 0, 0)
        assert (status.topics, status.balance) == ((balance,), balance)
        group.remove(writer.name, "g")


def test_remove_while_an_evicted_member_lives(writer: Writer) -> None:
    """It is no member any more, and does no harm to the next group of this name."""
    member = Member.attach(writer.name, "g", auto_ack=False)
    put(writer, 0, 0)
    message = get(member)
    assert writer.demote_group("g")
    try:
        group.remove(writer.name, "g")
    except shm.RingError:
        member.close()
        group.remove(writer.name, "g")
    with Member.attach(writer.name, "g", start="oldest") as other:
        assert bytes(get(other)) == b"00000000"
        with contextlib.suppress(shm.RingError):
            message.ack()
        assert status_of(writer).in_flight == 1
        assert take(other) == [1]
    member.close()


# ---- what is shown -----------------------------------------------------------------------------


def test_status_of_a_new_group(writer: Writer, join: Join) -> None:
    put(writer, 0, 0)
    earliest = time.time_ns()
    member = join(topics=["b*", "a"], others=True, balance="round-robin", max_deliveries=7)
    (status,) = group.list_groups(writer.name)
    assert earliest <= status.created_ns <= time.time_ns()
    assert status == GroupStatus(
        name="g",
        balance="round-robin",
        state="active",
        members=(member.slot,),
        floor=2,
        lag=0,
        in_flight=0,
        returned=0,
        redelivered=0,
        set_aside=0,
        newest_set_aside=(),
        lost=0,
        voided=0,
        holder=None,
        topics=status.topics,
        others=True,
        max_deliveries=7,
        created_ns=status.created_ns,
        detail="",
    )
    assert status.topics is not None
    assert sorted(status.topics) == ["a", "b*"]
    assert shm.status(writer.name).groups == (status,)


def test_figures_of_a_group(writer: Writer, join: Join) -> None:
    member, other = join(auto_ack=False), join(auto_ack=False, topics=None)
    put(writer, *[0] * 6)
    messages = [get(member) for _ in range(3)] + [get(other)]
    messages[2].nack()
    messages[1].ack()
    del messages[1]
    status = status_of(writer)
    assert (status.members, status.holder) == ((member.slot, other.slot), member.slot)
    assert (status.lag, status.in_flight, status.returned) == (6, 2, 1)
    assert (status.topics, status.others) == (None, False)
    assert other.lag == 6
    again = get(other)
    assert (again.sequence, status_of(writer).redelivered) == (2, 1)
    assert (member.received, other.received) == (3, 2)
    assert (member.cursor, other.cursor) == (3, 3)


@pytest.mark.parametrize("balance", BALANCES)
def test_holder(writer: Writer, join: Join, balance: Any) -> None:
    """Whom the floor waits for: with "key" and in turn also one that has not taken it yet."""
    members = [join(balance=balance) for _ in range(2)]
    assert status_of(writer).holder is None
    put(writer, 1)
    before = status_of(writer).holder
    for member in members:
        if member.read(timeout=0) is not None:
            assert before in (None, member.slot)
            assert before is not None or balance != "key"
            assert status_of(writer).holder == member.slot
        assert member.read(timeout=0) is None
    assert status_of(writer).holder is None


def test_status_of_members(writer: Writer, join: Join) -> None:
    member = join(label="worker", topics=["a"])
    with Reader.attach(writer.name):
        first, second = shm.status(writer.name).readers
    assert (first.policy, first.group, first.gating, first.state) == ("group", "g", False, "active")
    assert (first.label, first.pid) == ("worker", os.getpid())
    assert (second.policy, second.group) == ("block", None)
    waiting = Background(lambda: member.read(timeout=60))
    assert wait_until_waiting(writer.name, member.slot).waiting
    put(writer, 0, topic="a")
    waiting.result()


def test_topics_that_groups_want_are_counted(writer: Writer, join: Join) -> None:
    """Each as one."""
    join(topics=["a*"])
    join(topics=["a*"])
    join("h", topics=["*b"])
    for topic in ("ab", "ac", "b"):
        writer.topic(topic)
    with Reader.attach(writer.name, topics=["ac"]):
        assert [row.wanted_by for row in shm.list_topics(writer.name)] == [2, 2, 1]
    writer.demote_group("g")
    assert [row.wanted_by for row in shm.list_topics(writer.name)] == [1, 0, 1]


def test_topics_that_groups_want_by_name(writer: Writer, join: Join) -> None:
    join(topics=["a"])
    join(topics=["a"])
    writer.topic("a")
    assert [row.wanted_by for row in shm.list_topics(writer.name)] == [1]


def test_repr(writer: Writer, join: Join) -> None:
    member = join(balance="key")
    assert repr(member) == f"<Member of 'g' of {writer.name!r} by key slot 0>"
    put(writer, 0)
    assert repr(get(member)).startswith("<GroupMessage 0 kind=")
    member.close()
    assert repr(member) == f"<Member of 'g' of {writer.name!r} by key closed>"
    assert (member.group, member.balance, member.name) == ("g", "key", writer.name)


def test_subscribing_is_not_for_members(writer: Writer, join: Join) -> None:
    for member in (join(topics=["a"]), join("all")):
        for call in (member.subscribe, member.unsubscribe):
            with pytest.raises(shm.RingError, match="are fixed when it is made"):
                call("b")
    assert status_of(writer).topics == ("a",)


def test_what_a_member_has_of_a_reader(writer: Writer, join: Join) -> None:
    member = join(topics=["a*"], others=True)
    put(writer, 0, topic="ab")
    put(writer, 0, topic="b")
    assert member.name == writer.name
    assert member.max_message == writer.max_message
    assert member.writer_alive
    assert [row.name for row in member.topics] == ["ab", "b"]
    assert member.topic_id("b") == 2
    latest = member.latest("b")
    assert latest is not None
    assert (latest.sequence, latest.topic_name) == (1, "b")
    writer.note = b"a note"
    assert member.note == b"a note"
    assert list(member.subscriptions) == ["a*"]


def test_whether_a_member_chooses(join: Join) -> None:
    assert not join("all").chooses
    assert join(topics=["a*"]).chooses


CLOSED: dict[str, Callable[[Member], object]] = {
    "read": lambda member: member.read(timeout=0),
    "read_available": lambda member: member.read_available(),
    "batch": lambda member: member.batch(timeout=0),
    "next": next,
    "iter": list,
    "lag": lambda member: member.lag,
    "lost": lambda member: member.lost,
    "topics": lambda member: member.topics,
}


@pytest.mark.parametrize("use", CLOSED)
def test_a_closed_member(writer: Writer, use: str) -> None:
    member = Member.attach(writer.name, "g")
    put(writer, 0)
    get(member)
    assert not member.closed
    member.close()
    member.close()
    assert member.closed
    with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
        CLOSED[use](member)
    assert (member.received, member.cursor, member.policy) == (1, 1, "group")
    assert reader_status(writer.name) is None


# ---- what is left ------------------------------------------------------------------------------


def test_unlink_takes_the_groups_along(name: str) -> None:
    writer = Writer.create(name, slots=8, capacity=1024, max_readers=2)
    with Member.attach(name, "one"), Member.attach(name, "two"):
        pass
    assert len(segments(name)) == 2
    del writer
    gc.collect()
    shm.unlink(name)
    assert leftovers(name) == []


def test_the_end_of_the_writer_takes_the_groups_along(name: str) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=2) as writer:
        member = Member.attach(name, "g", auto_ack=False)
        put(writer, 0, 0)
        held = get(member)
    assert leftovers(name) == []
    assert get(member).sequence == 1
    assert bytes(held) == b"00000000"
    held.ack()
    member.close()


def test_a_new_ring_of_the_name_has_no_groups(name: str) -> None:
    writer = Writer.create(name, slots=8, capacity=1024, max_readers=2)
    with Member.attach(name, "g"):
        put(writer, 0)
    writer.close()
    with Writer.create(name, slots=8, capacity=1024, max_readers=2) as writer:
        assert group.list_groups(name) == []
        assert segments(name) == []
        with Member.attach(name, "g", balance="key") as member:
            assert take(member) == []


def test_list_rings(writer: Writer, join: Join) -> None:
    def entry() -> shm.RingEntry:
        return next(found for found in shm.list_rings() if found.name == writer.name)

    before = entry().size_bytes
    join()
    join("h")
    sizes = [(SHM / segment).stat().st_size for segment in segments(writer.name)]
    assert len(sizes) == 2
    assert entry().size_bytes == before + sum(sizes)
    assert [found.name for found in shm.list_rings()].count(writer.name) == 1


def test_modes_of_a_group_are_those_of_its_ring(name: str) -> None:
    for mode in (0o600, 0o640):
        with Writer.create(name, slots=8, capacity=1024, max_readers=2, mode=mode):
            with Member.attach(name, "g"):
                pass
            (segment,) = segments(name)
            ring = (SHM / f"rc.{name}.c").stat()
            found = (SHM / segment).stat()
            assert (found.st_mode, found.st_uid, found.st_gid) == (
                ring.st_mode,
                ring.st_uid,
                ring.st_gid,
            )


def test_a_segment_that_is_spoiled(writer: Writer, join: Join) -> None:
    """It is told, and the group can be removed."""
    Member.attach(writer.name, "g").close()
    (segment,) = segments(writer.name)
    (SHM / segment).write_bytes(b"nothing that is a group" * 10000)
    with pytest.raises(shm.RingError, match="is not the segment of group 'g'"):
        join()
    (status,) = group.list_groups(writer.name)
    assert (status.name, status.members) == ("g", ())
    assert "is not the segment of group 'g'" in status.detail
    put(writer, *[0] * SLOTS)
    group.remove(writer.name, "g")
    assert segments(writer.name) == []
    join()


def test_a_segment_that_is_gone(writer: Writer, join: Join) -> None:
    Member.attach(writer.name, "g").close()
    (segment,) = segments(writer.name)
    (SHM / segment).unlink()
    with pytest.raises(shm.RingError):
        join()
    (status,) = group.list_groups(writer.name)
    assert status.detail
    group.remove(writer.name, "g")
    join()
