"""ringcast.h: readers in C that choose among topics."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, Processes, eventually, reader_status

from .ends import Ends, Status

SLOTS: Final = 64
CAPACITY: Final = 8192
LIST_MAX: Final = 32759


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    """The writer of a small ring."""
    with Writer.create(
        name, slots=SLOTS, capacity=CAPACITY, max_readers=3, max_topics=16
    ) as writer:
        yield writer


def publish(writer: Writer, *topics: str | None) -> None:
    """One message of each of these topics."""
    for topic in topics:
        number = 0 if topic is None else writer.topic(topic)
        writer.publish(b"12345678", topic=number, timeout=DEADLINE)


def names(ends: Ends, limit: int = 100) -> list[str | None]:
    """The names of the topics of all that is there, one at a time."""
    found: list[str | None] = []
    while len(found) < limit:
        message = ends.read()
        if message["status"] is not Status.OK:
            break
        found.append(ends.topic_name(message["topic"]))
    return found


def test_what_a_reader_in_c_gets(ends: Ends, writer: Writer) -> None:
    """The same as one in Python, one at a time and many."""
    ends.attached(writer.name, 0, topics=["a", "b*", "ä*"])
    ends.attached(writer.name, 1, topics=["a", "b*", "ä*"], policy="lossy")
    with Reader.attach(writer.name, topics=["a", "b*", "ä*"]) as reader:
        publish(writer, "a", "c", None, "bc", "äx", "a", "c", "b")
        expected = [(m.sequence, m.topic) for m in reader.read_available()]
        many = ends.read_many(100)
        assert (many["count"], many["first"]) == (5, 0)
        found = []
        while (message := ends.read(1))["status"] is Status.OK:
            found.append((message["sequence"], message["topic"]))
        assert found == expected
        for end in (0, 1):
            assert ends.read(end)["status"] is Status.TIMEOUT
            info = ends.info(end)
            assert (info["received"], info["skipped"], info["lost"]) == (5, 3, 0)
            assert info["cursor"] == reader.cursor == 8


@pytest.mark.parametrize("others", [False, True])
def test_no_topics_and_others(ends: Ends, writer: Writer, others: bool) -> None:
    ends.attached(writer.name, 0, topics=[], others=others)
    ends.attached(writer.name, 1, others=others)  # it does not choose
    publish(writer, "a", None)
    writer.publish(b"", topic=77)
    assert ends.read_many(9, 0)["count"] == (2 if others else 0)
    assert ends.read_many(9, 1)["count"] == 3
    status = shm.status(writer.name).readers
    assert [(r.topics, r.others) for r in status] == [((), others), (None, False)]


def test_names_of_topics(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    publish(writer, "a", "ä€😀")
    assert [ends.topic_name(topic) for topic in (0, 1, 2, 3, 16, 17, 2**32 - 1)] == [
        None,
        "a",
        "ä€😀",
        None,
        None,
        None,
        None,
    ]


def test_subscribing_and_unsubscribing(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name, topics=["a"])
    assert ends.subscribe("b*", "a", "later")["status"] is Status.OK
    status = reader_status(writer.name)
    assert status is not None
    assert status.topics == ("a", "b*", "later")
    publish(writer, "a", "b1", "c", "later")
    assert names(ends) == ["a", "b1", "later"]
    assert ends.unsubscribe("a", "nothing", "x" * 500)["status"] is Status.OK
    assert ends.subscribe()["status"] is Status.OK
    publish(writer, "a", "b1", "later")
    assert names(ends) == ["b1", "later"]
    assert ends.unsubscribe("b*", "later")["status"] is Status.OK
    publish(writer, "a", "b1", "later")
    assert names(ends) == []
    assert ends.info()["skipped"] == 5


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("", "a name or pattern has 1 to 127 bytes, this one 0"),
        ("x" * 128, "a name or pattern has 1 to 127 bytes, this one 128"),
    ],
)
def test_a_bad_name_among_good_ones(ends: Ends, writer: Writer, bad: str, error: str) -> None:
    """Those before it are wanted, and shown; it and those after it are not."""
    ends.attached(writer.name, topics=["a"])
    answer = ends.subscribe("b", bad, "c")
    assert answer["status"] is Status.INVALID
    assert error in answer["error"]
    status = reader_status(writer.name)
    assert status is not None
    assert status.topics == ("a", "b")
    publish(writer, "a", "b", "c")
    assert names(ends) == ["a", "b"]
    answer = ends.attach(writer.name, 1, topics=["a", bad])
    assert answer["status"] is Status.INVALID
    assert error in answer["error"]
    assert len(shm.status(writer.name).readers) == 1


def test_a_list_that_is_too_long(ends: Ends, writer: Writer) -> None:
    topics = [f"{n:0127}" for n in range(LIST_MAX // 128)]
    ends.attached(writer.name, topics=topics)
    answer = ends.subscribe("b", "x" * 118)
    assert answer["status"] is Status.INVALID
    assert "take 32759 bytes at most" in answer["error"]
    status = reader_status(writer.name)
    assert status is not None
    assert status.topics == (*topics, "b")
    assert ends.attach(writer.name, 1, topics=[*topics, "x" * 119])["status"] is Status.INVALID
    assert ends.attach(writer.name, 1, topics=[*topics, "x" * 118])["status"] is Status.OK


def test_a_reader_that_gets_everything_may_subscribe(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name)
    assert ends.subscribe("a")["status"] is Status.OK
    publish(writer, "b", None, "a")
    assert names(ends) == ["b", None, "a"]


def test_events_follow_their_own_option(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name, 0, topics=[], events=True)
    ends.attached(writer.name, 1, topics=["a"])
    for topic in ("a", "b"):
        writer.publish(b"", topic=writer.topic(topic), kind=shm.Kind.EVENT)
        writer.publish(b"", topic=writer.topic(topic))
    assert ends.read_many(9, 0)["count"] == 2
    many = ends.read_many(9, 1)
    assert (many["count"], many["first"]) == (1, 1)


def test_a_forked_child(ends: Ends, writer: Writer) -> None:
    ends.attached(writer.name, topics=["a"])
    assert ends.ask("fork", 0, writer.name)["child"] == 0
    publish(writer, "a")
    assert names(ends) == ["a"]


def test_a_sleeper_is_woken_by_what_it_wants(ends: Ends, writer: Writer) -> None:
    publish(writer, "a", "b")
    ends.attached(writer.name, topics=["a", "new*"], spin_us=-1)
    for topic in ("a", "new1", "a"):
        ends.begin("read", 0, -1)
        eventually(lambda: shm.status(writer.name).readers[0].waiting, "it sleeps")
        publish(writer, "b", "b", "c")
        eventually(lambda: shm.status(writer.name).readers[0].waiting, "it sleeps on")
        publish(writer, topic)
        assert ends.answer()["topic"] == writer.topic(topic)


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_an_event_loop_is_not_woken_by_what_it_does_not_want(
    ends: Ends, writer: Writer, policy: str
) -> None:
    """`ringcast_wait` returns for what is wanted, for each eighth of the ring, for topics that
    arrive and at the end: a bounded number of times, however often the thread asks."""
    rng = random.Random(1)
    rounds = 20
    publish(writer, "a", "b", "c")
    ends.attached(writer.name, topics=["a", "new*"], policy=policy)
    ends.begin_following(limit=1, loop=True)
    wanted = 0
    for n in range(rounds * SLOTS):
        if rng.random() < 0.02:
            publish(writer, rng.choice(("a", f"new{n % 8}")))
            wanted += 1
        else:
            publish(writer, rng.choice("bc"))
        if n % 4 == 0:  # let it look: what it is woken for it would else find several at once
            eventually(lambda: shm.status(writer.name).readers[0].waiting, "it sleeps")
    writer.close()
    messages, end = ends.followed()
    assert end["status"] is Status.ENDED
    if policy == "block":
        assert len(messages) == wanted
    eighths, arrivals = 8 * rounds, 8
    assert 0 < end["wakes"] <= wanted + 2 * eighths + arrivals + 3


def flood(name: str, count: int) -> None:
    """A process: publish so many, every tenth of topic "a", and end the ring."""
    with Writer.resume(name) as writer:
        for n in range(count):
            publish(writer, "a" if n % 10 == 0 else "b")


def create(name: str) -> None:
    """A process: leave a ring to be resumed."""
    Writer.create(name, slots=SLOTS, capacity=CAPACITY, max_readers=3, max_topics=16)


@pytest.mark.parametrize("limit", [1, 16])
def test_in_a_flood(ends: Ends, name: str, processes: Processes, limit: int) -> None:
    """Another process publishes as fast as it can; lossless and lossy in one after the other."""
    processes.join(processes.start(create, name))
    ends.attached(name, topics=["a"])
    writer = processes.start(flood, name, 5000)
    ends.begin_following(limit=limit)
    messages, end = ends.followed()
    processes.join(writer)
    assert end["status"] is Status.ENDED
    assert [message["sequence"] for message in messages] == list(range(0, 5000, 10))
    info = ends.info()
    assert (info["received"], info["skipped"]) == (500, 4500)
