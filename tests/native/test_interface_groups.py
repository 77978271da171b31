"""ringcast.h: members of work groups in C, alone, and beside members in C and in Python."""

from __future__ import annotations

import itertools
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import shm
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from ringcast.shm.group import GroupStatus, Member
from tests.conftest import DEADLINE, Processes, eventually

from .conftest import EVERY_CHECKED, StartEnds, starting
from .ends import Answer, Ends, Status, Worked, sorted_out
from .test_interface_death import await_sequence, write_for_ever
from .toolchain import Toolchain

SLOTS: Final = 16
CAPACITY: Final = 4096
MEMBERS: Final = 6
SHORT: Final = 0.02
BALANCES: Final = ("any", "key", "round-robin")
FIELDS: Final = ("sequence", "gap", "topic", "kind", "epoch", "time_ns", "key", "deliveries")
VICTIMS: Final = 8
VICTIMS_TAKE: Final = 4


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """The writer of a small ring."""
    with Writer.create(
        name, slots=SLOTS, capacity=CAPACITY, max_readers=MEMBERS, max_topics=8
    ) as writer:
        yield writer


@pytest.fixture(params=EVERY_CHECKED)
def ends(
    request: pytest.FixtureRequest, toolchain: Toolchain, name: str, tmp_path: Path
) -> Iterator[Ends]:
    """A process of C ends. `start_ends` starts others: plain ones, and such as ThreadSanitizer
    watches."""
    assert name  # whose ring outlives the process
    compiler, build = request.param
    with starting(toolchain, compiler, build, tmp_path) as start:
        yield start()


def put(writer: Writer, count: int, *, keys: int = 1) -> None:
    """So many messages, each with its sequence in it."""
    for _ in range(count):
        sequence = writer.sequence
        writer.publish(b"%d" % sequence, key=1 + sequence % keys, timeout=DEADLINE)


def status_of(writer: Writer, name: str = "g") -> GroupStatus:
    return next(found for found in group.list_groups(writer.name) if found.name == name)


def taken(ends: Ends, end: int = 0, timeout: float = 5.0) -> Answer:
    """A message, which has to come."""
    message = ends.take(end, timeout)
    assert message["status"] is Status.OK, message
    assert message["crc"] == zlib.crc32(b"%d" % message["sequence"])
    return message


# ---- one member ----------------------------------------------------------------------------


def test_every_field_of_a_message_is_what_python_sees(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name, "c", label="c-member")
    with Member.attach(writer.name, "python") as member:
        writer.publish(b"text", topic=7, kind=shm.Kind.TEXT, key=12)
        writer.publish(b"\0\xff", topic=2**32 - 1)
        writer.publish(b"", kind=99)
        for _ in range(3):
            theirs, mine = ends.take(), member.read(timeout=0)
            assert mine is not None
            for field in FIELDS:
                assert theirs[field] == getattr(mine, field), field
            assert (theirs["length"], theirs["crc"]) == (len(mine), zlib.crc32(bytes(mine)))
        assert status_of(writer, "c").members == (0,)
        status = shm.status(writer.name).readers[0]
        assert (status.label, status.pid) == ("c-member", ends.pid)


def test_a_message_is_valid_until_it_is_acknowledged(ends: Ends, writer: Writer) -> None:
    """Whatever is taken meanwhile; so long it holds the ring, and in whatever order it is done."""
    ends.joined(writer.name)
    put(writer, SLOTS)
    messages = [taken(ends) for _ in range(SLOTS)]
    assert [message["sequence"] for message in messages] == list(range(SLOTS))
    assert ends.take()["status"] is Status.TIMEOUT
    assert writer.try_publish(b"x") is None
    assert ends.acknowledge(*range(SLOTS - 1, 0, -1))["status"] is Status.OK
    assert writer.try_publish(b"x") is None
    assert ends.ask("taken", 0, 0)["crc"] == zlib.crc32(b"0")
    assert ends.member_info()["in_hand"] == 1
    assert ends.acknowledge(0)["status"] is Status.OK
    assert ends.take()["status"] is Status.TIMEOUT
    writer.publish_many([b"x"] * SLOTS, timeout=0)
    assert status_of(writer).floor == SLOTS


def test_a_message_is_acknowledged_or_given_back_once(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name)
    put(writer, 4)
    assert ends.take_many(4)["sequences"] == [0, 1, 2, 3]
    assert ends.acknowledge(1)["status"] is Status.OK
    for request in (ends.acknowledge, ends.give_back):
        answer = request(1)
        assert answer["status"] is Status.INVALID
        assert "message 1 is not in this member's hands" in answer["error"]
    assert ends.acknowledge(1, 0, 77)["status"] is Status.INVALID  # and 0 is done
    assert ends.give_back(2)["status"] is Status.OK
    assert ends.acknowledge(2)["status"] is Status.INVALID
    again = taken(ends)
    assert (again["sequence"], again["deliveries"]) == (2, 2)
    assert ends.acknowledge(3, 2)["status"] is Status.OK
    assert ends.take()["status"] is Status.TIMEOUT
    assert status_of(writer).floor == 4
    assert ends.ask("acknowledge", 0, "")["status"] is Status.INVALID
    with Member.attach(writer.name, "g") as member:
        assert member.read(timeout=0) is None


def test_what_is_given_back_comes_after_a_pause(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name, max_deliveries=5)
    put(writer, 2)
    assert ends.take_many(2)["deliveries"] == [1, 1]
    for delivery in range(2, 6):
        before = time.monotonic()
        ends.give_back(0)
        message = taken(ends)
        assert time.monotonic() - before >= 0.001 * 2 ** (delivery - 2)
        assert (message["sequence"], message["deliveries"]) == (0, delivery)
    ends.give_back(0)
    assert ends.take(timeout=0.1)["status"] is Status.TIMEOUT
    status = status_of(writer)
    assert (status.set_aside, status.redelivered) == (1, 4)
    assert [(m.sequence, m.deliveries, set(m.pids)) for m in status.newest_set_aside] == [
        (0, 5, {ends.pid})
    ]


def test_many_at_once(ends: Ends, writer: Writer) -> None:
    """At most so many; and what somebody had before comes alone."""
    ends.joined(writer.name)
    put(writer, 12)
    assert ends.take_many(5)["sequences"] == [0, 1, 2, 3, 4]
    assert ends.give_back(1, 3)["status"] is Status.OK
    assert ends.acknowledge(0, 2, 4)["status"] is Status.OK
    time.sleep(SHORT)
    for sequence in (1, 3):
        many = ends.take_many(100)
        assert (many["sequences"], many["deliveries"]) == ([sequence], [2])
    assert ends.take_many(100)["sequences"] == list(range(5, 12))
    assert ends.take_many(100) == {**ends.take_many(100), "status": Status.TIMEOUT, "count": 0}
    assert ends.take_many(0)["status"] is Status.INVALID
    assert ends.member_info()["in_hand"] == 9


def test_thousands_in_hand(ends: Ends, name: str) -> None:
    """The table of what is in hand grows, and finds each."""
    rng = random.Random(4)
    with Writer.create(name, slots=2048, capacity=1 << 18, max_readers=1) as writer:
        ends.joined(name)
        for _ in range(3):
            first = writer.sequence
            put(writer, 2000)
            sequences = ends.take_many(4000)["sequences"]
            assert sequences == list(range(first, first + 2000))
            rng.shuffle(sequences)
            for n in range(0, 2000, 250):
                assert ends.acknowledge(*sequences[n : n + 250])["status"] is Status.OK
            assert ends.member_info()["in_hand"] == 0
            assert ends.take()["status"] is Status.TIMEOUT
            assert status_of(writer).lag == 0


def test_timeouts(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name)
    for timeout in (0, SHORT, 0.15):
        before = time.monotonic()
        assert ends.take(timeout=timeout)["status"] is Status.TIMEOUT
        assert time.monotonic() - before >= timeout
    ends.begin("take", 0, -1)
    put(writer, 1)
    assert ends.answer()["sequence"] == 0


def test_info(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name)
    with Member.attach(writer.name, "g", auto_ack=False):
        put(writer, 3)
        taken(ends)
        info = ends.member_info()
        assert info == {
            "status": Status.OK,
            "lag": 3,
            "received": 1,
            "in_hand": 1,
            "lost": 0,
            "max_message": writer.max_message,
            "members": 2,
            "slot": 0,
            "writer_alive": 1,
        }
    writer.abandon()
    assert ends.member_info()["writer_alive"] == 0
    Writer.resume(writer.name).close()
    shm.unlink(writer.name)


def test_the_end(ends: Ends, writer: Writer) -> None:
    """It comes when all is done, or in this member's hands, and not before."""
    ends.joined(writer.name)
    with Member.attach(writer.name, "g", auto_ack=False) as member:
        put(writer, 2)
        assert taken(ends)["sequence"] == 0
        message = member.read(timeout=5)
        assert message is not None
        threading.Timer(SHORT, writer.close).start()
        eventually(lambda: ends.take()["status"] is Status.TIMEOUT, "it has not ended")
        time.sleep(2 * SHORT)
        assert ends.take(timeout=SHORT)["status"] is Status.TIMEOUT
        message.ack()
        for _ in range(2):
            assert ends.take(timeout=-1)["status"] is Status.ENDED
        assert ends.acknowledge(0)["status"] is Status.OK
        assert ends.take_many(3)["status"] is Status.ENDED


@pytest.mark.parametrize("request_", [("take", 0, -1), ("take_many", 0, 10, -1)])
def test_a_ring_that_was_removed_after_its_writer_died(
    ends: Ends, name: str, request_: tuple[object, ...]
) -> None:
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=2) as writer:
        ends.joined(name)
        writer.abandon()
    ends.begin(*request_)
    shm.unlink(name)
    answer = ends.answer()
    assert answer["status"] is Status.CLOSED
    assert "no writer and was removed" in answer["error"]


def test_what_the_group_has_missed(ends: Ends, writer: Writer) -> None:
    """Told with the next message, once."""
    ends.joined(writer.name)
    ends.ask("leave", 0)
    put(writer, SLOTS)
    assert writer.demote_group("g")
    put(writer, SLOTS)
    ends.joined(writer.name)
    oldest = writer.oldest
    message = taken(ends)
    assert (message["sequence"], message["gap"]) == (oldest, oldest)
    assert taken(ends)["gap"] == 0
    assert ends.member_info()["lost"] == oldest > 0


# ---- topics --------------------------------------------------------------------------------


def test_topics(ends: Ends, writer: Writer) -> None:
    """Of the group, which all its members name; what it does not want does not hold the ring."""
    ends.joined(writer.name, topics=["a", "b*"], others=True)
    names: list[str | None] = ["a", "c", None, "bx", "c"]
    for name in names:
        writer.publish(b"", topic=writer.topic(name) if name else 0)
    writer.publish(b"", topic=writer.topic("a"), kind=shm.Kind.EVENT)
    found = []
    while (message := ends.take())["status"] is Status.OK:
        answer = ends.ask("member_topic_name", 0, message["topic"])
        found.append((message["sequence"], answer["name"] if answer["known"] else None))
        ends.acknowledge(message["sequence"])
    assert found == [(0, "a"), (2, None), (3, "bx")]
    assert status_of(writer).topics == ("a", "b*")
    assert status_of(writer).others
    with Member.attach(writer.name, "g", topics=["b*", "a"], others=True) as member:
        for _ in range(3 * SLOTS):
            writer.publish(b"", topic=writer.topic("c"), timeout=DEADLINE)
        assert member.read(timeout=0) is None
    for wrong in ({}, {"topics": ["a"], "others": True}, {"topics": ["a", "b*"]}):
        answer = ends.join(writer.name, "g", 1, **wrong)
        assert answer["status"] is Status.INVALID
        assert "wants other topics than these" in answer["error"]


# ---- what cannot be joined -----------------------------------------------------------------


def refused(ends: Ends, status: Status, text: str, *request: Any, **options: Any) -> None:
    """Joining fails so; nothing is left open."""
    ends.ask("status_text", 0)
    before = os.listdir(f"/proc/{ends.pid}/fd")  # noqa: PTH208
    answer = ends.join(*request, **options)
    assert answer["status"] is status, answer
    assert re.search(text, answer["error"]), answer["error"]
    assert os.listdir(f"/proc/{ends.pid}/fd") == before  # noqa: PTH208


def test_what_cannot_be_joined(ends: Ends, writer: Writer) -> None:
    for bad in ("", "Name", "-x", "a/b", "a" * 21):
        refused(ends, Status.INVALID, "can't name a group: use 1 to 20", writer.name, bad)
    refused(ends, Status.INVALID, "the group's name is NULL", writer.name, "-")
    refused(ends, Status.INVALID, "can't name a ring", "NAME")
    refused(ends, Status.NOT_FOUND, "there is no ring", writer.name + "x")
    for balance in (-1, 3):
        refused(ends, Status.INVALID, "balance is RINGCAST_ANY", writer.name, balance=balance)
    for most in (-1, 201):
        refused(ends, Status.INVALID, "max_deliveries", writer.name, max_deliveries=most)
    for options in ({"spin_us": 2_000_000}, {"owner": -1}):
        refused(ends, Status.INVALID, "begin with all zero", writer.name, **options)
    refused(ends, Status.INVALID, "sequence 1 is not published yet", writer.name, start=1)
    refused(ends, Status.INVALID, "a name or pattern has 1 to 127", writer.name, topics=["x" * 128])
    assert group.list_groups(writer.name) == []
    assert shm.status(writer.name).readers == ()
    ends.joined(writer.name, "g", balance="key", max_deliveries=3)
    refused(ends, Status.INVALID, "balance 'key', not 'any'", writer.name, "g", 1)
    refused(
        ends,
        Status.INVALID,
        "after 3 deliveries, not 4",
        writer.name,
        "g",
        1,
        balance="key",
        max_deliveries=4,
    )
    for end in range(1, MEMBERS):
        ends.joined(writer.name, "g", end, balance="key")
    refused(ends, Status.TOO_MANY_READERS, "all 6 reader slots", writer.name, "g", 7, balance="key")


def test_there_can_be_no_more_groups(ends: Ends, writer: Writer) -> None:
    for n in range(32):
        ends.joined(writer.name, f"g{n}")
        ends.ask("leave", 0)
    refused(ends, Status.SYSTEM, "has 32 groups", writer.name, "one-more")
    group.remove(writer.name, "g7")
    ends.joined(writer.name, "one-more")


@pytest.mark.parametrize(
    ("start", "expected"), [("latest", []), ("oldest", [0, 1, 2]), (1, [1, 2]), (3, [])]
)
def test_where_a_new_group_starts(
    start_ends: StartEnds, writer: Writer, start: str | int, expected: list[int]
) -> None:
    put(writer, 3)
    ends = start_ends()
    ends.joined(writer.name, start=start)
    put(writer, 1)
    ends.joined(writer.name, "g", 1, start="oldest")  # it is there already
    assert ends.take_many(9)["sequences"] == [*expected, 3]


# ---- several -------------------------------------------------------------------------------


def test_what_a_member_leaves_behind_goes_to_another(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name)
    ends.joined(writer.name, "g", 1)
    put(writer, 4)
    assert ends.take_many(3)["sequences"] == [0, 1, 2]
    assert ends.acknowledge(1)["status"] is Status.OK
    ends.ask("leave", 0)
    ends.ask("leave", 0)  # of NULL
    assert status_of(writer).members == (1,)
    found = sorted(
        (message["sequence"], message["deliveries"]) for message in (taken(ends, 1) for _ in "123")
    )
    assert found == [(0, 2), (2, 2), (3, 1)]


def test_what_is_given_back_goes_to_another_at_once(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name)
    put(writer, 1)
    taken(ends)
    with Member.attach(writer.name, "g") as member:
        ends.give_back(0)
        assert ends.take()["status"] is Status.TIMEOUT  # for 100 ms
        message = member.read(timeout=DEADLINE)
        assert message is not None
        assert (message.sequence, message.deliveries) == (0, 2)


def test_a_forked_child_joins_by_itself(ends: Ends, writer: Writer) -> None:
    """What it inherits says RINGCAST_CLOSED and can be closed; the lock stays the parent's."""
    ends.joined(writer.name)
    put(writer, 2)
    taken(ends)
    assert ends.ask("fork_member", 0, writer.name, "g")["child"] == 0
    assert status_of(writer).members == (0,)
    assert ends.acknowledge(0)["status"] is Status.OK
    assert taken(ends)["sequence"] == 1


def test_waiting(ends: Ends, writer: Writer) -> None:
    ends.joined(writer.name)
    assert ends.ask("member_wait", 0, 0)["status"] is Status.OK  # nobody has tried yet
    assert ends.take()["status"] is Status.TIMEOUT
    assert ends.ask("member_wait", 0, 0)["status"] is Status.TIMEOUT
    assert ends.ask("member_wait", 0, 10_000_000)["status"] is Status.TIMEOUT
    assert ends.ask("member_wait", 0, -1)["status"] is Status.OK  # to look around
    put(writer, 1)
    assert ends.ask("member_wait", 0, 0)["status"] is Status.OK
    assert taken(ends)["sequence"] == 0
    assert ends.ask("member_wait", 0, 0)["status"] is Status.TIMEOUT
    ends.give_back(0)
    assert ends.ask("member_wait", 0, 0)["status"] is Status.OK
    assert taken(ends)["deliveries"] == 2
    assert ends.ask("member_wait", 0, 0)["status"] is Status.OK
    assert ends.take()["status"] is Status.TIMEOUT
    assert ends.ask("member_wait", 0, 0)["status"] is Status.TIMEOUT


@pytest.mark.parametrize("handshake", [1, 0], ids=["event-loop", "both-wait"])
@pytest.mark.parametrize("balance", BALANCES)
def test_another_thread_waits(
    start_ends: StartEnds, writer: Writer, balance: str, handshake: int
) -> None:
    ends, count = start_ends(), 20 * SLOTS
    ends.joined(writer.name, balance=balance)
    ends.begin("member_loop", 0, handshake)
    put(writer, count, keys=7)
    writer.close()
    *messages, end = ends.messages()
    assert [message["sequence"] for message in messages] == list(range(count))
    assert end["status"] is Status.ENDED
    assert end["wakes"] > 0 or not handshake


@pytest.mark.parametrize(
    ("balance", "wait"), [("any", "blocking"), ("key", "busy-spin"), ("round-robin", "yielding")]
)
def test_a_mixed_group(start_ends: StartEnds, writer: Writer, balance: str, wait: str) -> None:
    """Members in C, one at a time and many, and in Python: without deaths each message is done
    exactly once, and what is given back comes again."""
    count, keys = 40 * SLOTS, 7
    workers = [start_ends() for _ in range(2)]
    for ends, limit in zip(workers, (1, 5), strict=True):
        ends.joined(writer.name, balance=balance, wait=wait)
        ends.begin_working(limit=limit, back=11 if balance != "key" else 0)
    python: list[int] = []

    def work() -> None:
        with Member.attach(writer.name, "g", balance=balance) as member:  # type: ignore[arg-type]
            python.extend(message.sequence for message in member)

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: len(status_of(writer).members) == 3, "all have joined")
    put(writer, count, keys=keys)
    writer.close()
    found = []
    for ends in workers:
        worked, end = ends.worked()
        assert end["status"] is Status.ENDED, end
        found.append(worked)
    thread.join(DEADLINE)
    found.append(Worked([], python, []))
    assert sorted(itertools.chain.from_iterable(w.done for w in found)) == list(range(count))
    if balance == "key":
        for w in found:
            check_order(w, keys)
    if balance == "round-robin":
        assert all(len(w.done) > count / 10 for w in found)


def check_order(worked: Worked, keys: int) -> None:
    """A member was handed the messages of each key in their order."""
    for key in range(keys):
        of_key = [m["sequence"] for m in worked.taken if m["sequence"] % keys == key]
        assert of_key == sorted(of_key)


# ---- death ---------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_what_a_killed_member_held_goes_to_another(
    start_ends: StartEnds, writer: Writer, balance: str
) -> None:
    """Within about 40 ms, and a writer that waits for room goes on."""
    victim, heir = start_ends(), start_ends()
    victim.joined(writer.name, balance=balance)
    put(writer, SLOTS, keys=3)
    sequences = victim.take_many(5)["sequences"]
    assert sequences == [0, 1, 2, 3, 4]
    victim.acknowledge(3)
    heir.joined(writer.name, balance=balance)
    heir.begin_working()
    killer = threading.Timer(SHORT, victim.kill)
    killer.start()
    put(writer, SLOTS, keys=3)
    killer.join()
    writer.close()
    worked, end = heir.worked()
    assert end["status"] is Status.ENDED
    deliveries = {m["sequence"]: m["deliveries"] for m in worked.taken}
    assert sorted(deliveries) == [n for n in range(2 * SLOTS) if n != 3]
    assert [n for n in sorted(deliveries) if deliveries[n] > 1] == [0, 1, 2, 4]


def test_the_group_outlives_members_and_writer(start_ends: StartEnds, name: str) -> None:
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=2) as writer:
        victim = start_ends()
        victim.joined(name)
        put(writer, 5)
        assert victim.take_many(3)["count"] == 3
        victim.acknowledge(0)
        victim.kill()
        writer.abandon()
    with Writer.resume(name) as writer:
        put(writer, 1)
        ends = start_ends()
        ends.joined(name)
        found = sorted((m["sequence"], m["deliveries"]) for m in (taken(ends) for _ in range(5)))
        assert found == [(1, 2), (2, 2), (3, 1), (4, 1), (5, 1)]


def test_a_writer_is_killed_and_resumed(
    start_ends: StartEnds, name: str, processes: Processes
) -> None:
    with Writer.create(name, slots=SLOTS, capacity=1 << 16, max_readers=2) as writer:
        workers = [start_ends() for _ in range(2)]
        for ends in workers:
            ends.joined(name)
            ends.begin_working(limit=4)
        writer.abandon()
    for _ in range(2):
        process = processes.start(write_for_ever, name, 1)
        await_sequence(name, shm.status(name).sequence + 5 * SLOTS)
        processes.kill(process)
    with Writer.resume(name) as writer:
        total = writer.sequence
    done: list[int] = []
    for ends in workers:
        worked, end = ends.worked()
        assert end["status"] is Status.ENDED
        done += worked.done
        assert all(m["gap"] == 0 and m["deliveries"] == 1 for m in worked.taken)
    assert sorted(done) == list(range(total))


@pytest.mark.parametrize("balance", BALANCES)
def test_killing_at_random(start_ends: StartEnds, name: str, balance: str) -> None:
    """C members that are killed at any moment and others that come, beside some that live: each
    message is done, and again only if who had it last was killed."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    keys = 5
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=MEMBERS) as writer:
        survivors = [start_ends() for _ in range(2)]
        for ends, limit in zip(survivors, (1, 6), strict=True):
            ends.joined(name, balance=balance, max_deliveries=200)
            ends.begin_working(limit=limit)
        dead: list[Worked] = []
        for _ in range(VICTIMS):
            victim = start_ends()
            victim.joined(name, balance=balance, max_deliveries=200)
            victim.begin_working(limit=rng.choice((1, VICTIMS_TAKE)), back=rng.choice((0, 3)))
            killer = threading.Timer(rng.random() * 0.02, victim.kill)
            killer.start()
            put(writer, rng.randint(1, 5 * SLOTS), keys=keys)
            killer.join()
            dead.append(sorted_out(victim.last_messages()))
        total = writer.sequence
    alive = []
    for ends in survivors:
        worked, end = ends.worked()
        assert end["status"] is Status.ENDED, end
        alive.append(worked)
    judge(alive, dead, total, keys if balance == "key" else 0)


def judge(alive: list[Worked], dead: list[Worked], total: int, keys: int) -> None:
    """What is promised. A member that was killed may or may not have acknowledged the message that
    it said last that it would; and it may have been handed some that it had not come to say."""
    done = list(itertools.chain.from_iterable(w.done for w in [*alive, *dead]))
    perhaps = {w.done[-1] for w in dead if w.done}
    twice = {sequence for sequence in done if done.count(sequence) > 1}
    assert set(done) == set(range(total))
    assert twice <= perhaps
    handed = {m["sequence"] for w in dead for m in w.taken}
    again = {m["sequence"] for w in alive for m in w.taken if m["deliveries"] > 1}
    assert len(again - handed) <= VICTIMS * VICTIMS_TAKE
    if keys:
        for w in alive:
            check_order(w, keys)


# ---- evicted -------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", BALANCES)
def test_an_evicted_member(ends: Ends, writer: Writer, balance: str) -> None:
    """It can't acknowledge what others have or will have; it comes again."""
    ends.joined(writer.name, balance=balance)
    put(writer, 4)
    assert ends.take_many(2)["count"] == 2
    assert ends.acknowledge(0)["status"] is Status.OK
    ends.joined(writer.name, "g", 1, balance=balance)
    assert writer.evict(0)
    for answer in (
        ends.acknowledge(1),
        ends.give_back(1),
        ends.acknowledge(0),
        ends.take(timeout=-1),
        ends.take_many(5, timeout=-1),
    ):
        assert answer["status"] is Status.EVICTED
        assert "member 0 of group 'g' was evicted" in answer["error"]
    assert ends.ask("member_wait", 0, -1)["status"] is Status.OK  # there is reason to take
    found = sorted((m["sequence"], m["deliveries"]) for m in (taken(ends, 1) for _ in range(3)))
    assert found == [(1, 2), (2, 1), (3, 1)]
    ends.ask("leave", 0)
    ends.joined(writer.name, balance=balance)
    assert ends.acknowledge(1, 2, 3, end=1)["status"] is Status.OK
    assert ends.take()["status"] is Status.TIMEOUT
    assert status_of(writer).members == (0, 1)
    assert ends.take(1)["status"] is Status.TIMEOUT
    assert status_of(writer).lag == 0


def test_a_member_is_evicted_while_it_waits(start_ends: StartEnds, writer: Writer) -> None:
    ends = start_ends()
    ends.joined(writer.name)
    ends.begin("take", 0, -1)
    eventually(lambda: shm.status(writer.name).readers[0].waiting, "it waits")
    writer.evict(0)
    assert ends.answer()["status"] is Status.EVICTED


def test_a_member_that_is_asked_to_let_go(ends: Ends, writer: Writer) -> None:
    """It goes on, and is a member like any other as soon as it holds the ring up no more."""
    ends.joined(writer.name)
    put(writer, SLOTS)
    taken(ends)
    assert writer.demote(0)
    assert taken(ends)["sequence"] == 1
    assert ends.acknowledge(0, 1)["status"] is Status.OK
    assert ends.take_many(SLOTS)["count"] == SLOTS - 2
    assert ends.acknowledge(*range(2, SLOTS))["status"] is Status.OK
    assert ends.take()["status"] is Status.TIMEOUT
    assert shm.status(writer.name).readers[0].state == "active"
    put(writer, SLOTS)


def test_a_group_that_is_demoted(ends: Ends, writer: Writer) -> None:
    """Its members are evicted, and what they hold may be overwritten at once."""
    ends.joined(writer.name)
    put(writer, SLOTS)
    assert ends.take_many(SLOTS)["count"] == SLOTS
    assert writer.try_publish(b"x") is None
    assert writer.demote_group("g")
    writer.publish_many([b"x"] * SLOTS, timeout=0)
    assert ends.acknowledge(3)["status"] is Status.EVICTED
    assert ends.take()["status"] is Status.EVICTED
    ends.ask("leave", 0)
    ends.joined(writer.name)
    assert ends.take()["gap"] == writer.oldest
