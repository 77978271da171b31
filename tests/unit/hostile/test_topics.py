"""Spoiled words of topics: the table, answers, the interest of readers, and their lists of wishes.

None of them is believed. Whatever stands there, readers get what they want, since their own filter
decides; they may get it later, but not later than after a few looks.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE
from tests.unit.conftest import Background, control_path, data_path, wait_until_waiting
from tests.unit.hostile.conftest import (
    ANSWER_BYTES,
    ANSWERS,
    INTEREST,
    INTEREST_END,
    MAX_READERS,
    MAX_TOPICS,
    OFFSETS,
    READERS,
    TOPIC_BYTES,
    TOPICS,
    WISH_BYTES,
    WISHES,
    Segment,
    Work,
    check_that_it_works,
    create,
)

WISH_MAX = 65520
"""Bytes of the longest list."""


def look(name: str) -> None:
    """Everything that shows topics or wishes."""
    with contextlib.suppress(shm.RingError):
        for row in shm.list_topics(name):
            assert len(row.name) <= 127
            assert len(row.reason) <= 112
            assert 0 <= row.wanted_by <= MAX_READERS
    with contextlib.suppress(shm.RingError):
        for reader in shm.status(name).readers:
            assert reader.topics is None or all(reader.topics)


def use_topics(reader: Reader, rng: random.Random) -> None:
    """One call that has to do with topics."""
    call = rng.randrange(6)
    with contextlib.suppress(shm.RingError):
        if call == 0:
            reader.subscribe(rng.choice(("a", "b*", "c", "*")))
        elif call == 1:
            reader.unsubscribe(rng.choice(("a", "b*", "c", "*")))
        elif call == 2:
            reader.latest(rng.choice(("a", "b", "")))
        elif call == 3:
            assert len(reader.topics) <= MAX_TOPICS
        elif call == 4:
            with reader.batch(timeout=0) as batch:
                for index in range(len(batch)):
                    bytes(batch.payload(index))
        else:
            for message in reader.read_available():
                assert message.topic_name is None or len(message.topic_name) <= 127


def places() -> list[tuple[str, int, int]]:
    """Segment, and from where to where, of all words that have to do with topics."""
    topics = OFFSETS["rc_header.topics"]
    slot = READERS + OFFSETS["rc_slot.received"]
    found = [
        ("data", topics, topics + 8),
        ("data", TOPICS, ANSWERS),
        ("data", ANSWERS, ANSWERS + MAX_READERS * ANSWER_BYTES),
        ("control", OFFSETS["rc_control.choosers"], OFFSETS["rc_control.choosers"] + 8),
        ("control", INTEREST, INTEREST_END),
        ("control", slot, slot + 32),
    ]
    for index in range(MAX_READERS):
        at = WISHES + index * WISH_BYTES
        found += [("control", at, at + 16), ("control", at + 16, at + 64)]
    return found


def spoil_topics(name: str, tries: int, rng: random.Random) -> int:
    """A chooser, the writer and onlookers, with any of these words spoiled."""
    made = 0
    with create(name) as writer:
        segments = {"data": Segment(data_path(name)), "control": Segment(control_path(name))}
        ids = [writer.topic(topic) for topic in ("a", "b", "bc")]
        while made < tries:
            with (
                Reader.attach(name, topics=["a", "b*"], others=rng.random() < 0.5) as reader,
                Reader.attach(name, policy="lossy", topics=["c"]) as lossy,
            ):
                for _ in range(20):
                    for part, low, high in rng.choices(places(), k=rng.choice((1, 1, 3))):
                        segments[part].spoil(rng, low, high)
                    with contextlib.suppress(shm.RingFull):
                        writer.publish(b"%d" % made, topic=rng.choice((0, *ids, 77)), timeout=0)
                    writer.answer_wishes(rng.randrange(MAX_READERS), rng.randrange(9), "no")
                    use_topics(rng.choice((reader, lossy)), rng)
                    look(name)
                    made += 1
            at = OFFSETS["rc_header.topics"]
            segments["data"].write(at, struct.pack("<I", 3))
            for index, topic in enumerate((b"a", b"b", b"bc")):
                segments["data"].write(TOPICS + index * TOPIC_BYTES, topic.ljust(128, b"\0"))
            check_choosing(writer)
        check_that_it_works(writer)
    return made


def check_choosing(writer: Writer) -> None:
    """A new reader gets what it wants and nothing else."""
    with Reader.attach(writer.name, topics=["b*"]) as reader:
        for topic in (1, 2, 3, 0):
            writer.publish(b"", topic=topic, timeout=0)
        assert [message.topic_name for message in reader.read_available()] == ["b", "bc"]


def test_spoiled_topics(fuzz: Callable[[str, Work], None]) -> None:
    fuzz("topics", spoil_topics)


# ---- one word each -------------------------------------------------------------------------


@pytest.fixture
def writer(name: str) -> Iterator[Writer]:
    with create(name) as writer:
        writer.topic("a")
        writer.topic("b")
        yield writer


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, struct.pack("<QQ", 3, 4)),  # a version that is odd for ever
        (0, struct.pack("<QQ", 2, WISH_MAX + 1)),
        (0, struct.pack("<QQ", 2, 2**64 - 1)),
        (16, b"\xff\xfe"),
    ],
    ids=["odd", "long", "endless", "no UTF-8"],
)
def test_a_list_that_is_none(writer: Writer, at: int, value: bytes) -> None:
    """It is left out, and what the reader wants does not depend on it."""
    with Reader.attach(writer.name, topics=["a", "b"], others=True) as reader:
        control = Segment(control_path(writer.name))
        control.write(WISHES + at, value)
        (status,) = shm.status(writer.name).readers
        assert (status.topics, status.others) == ((), False)
        writer.publish(b"1", topic=1)
        assert reader.read(timeout=0) is not None
        assert reader.subscriptions == ("a", "b")
        reader.subscribe("c")  # writes it anew
        assert shm.status(writer.name).readers[0].topics == ("a", "b", "c")


def test_a_list_without_a_nul(writer: Writer) -> None:
    with Reader.attach(writer.name, topics=["a"]):
        control = Segment(control_path(writer.name))
        control.write(WISHES, struct.pack("<QQ", 2, WISH_MAX) + b"x" * WISH_MAX)
        assert shm.status(writer.name).readers[0].topics == ("x" * WISH_MAX,)


@pytest.mark.parametrize("policy", ["block", "lossy"])
@pytest.mark.parametrize("bits", [0, 2**64 - 1], ids=["zeros", "ones"])
def test_interest_that_is_wrong(writer: Writer, policy: str, bits: int) -> None:
    """Of zeros a sleeper looks by itself, of ones it looks too often; it gets the same."""
    control = Segment(control_path(writer.name))

    def spoil() -> None:
        for at in range(INTEREST, INTEREST_END, 8):
            control.write(at, struct.pack("<Q", bits))

    with Reader.attach(writer.name, policy=policy, topics=["a", "new"]) as reader:  # type: ignore[arg-type]
        spoil()
        for topic in ("a", "new", "a"):
            sleeper = Background(lambda: reader.read(DEADLINE))
            wait_until_waiting(writer.name)
            for _ in range(30):  # more than the ring has room for
                writer.publish(b"", topic=2, timeout=DEADLINE)
            writer.publish(b"", topic=writer.topic(topic), timeout=DEADLINE)
            assert sleeper.result().topic_name == topic
            spoil()
        assert (reader.received, reader.skipped + reader.lost) == (3, 90)


@pytest.mark.parametrize("bits", [0, 2**64 - 1], ids=["zeros", "ones"])
def test_bits_of_choosers_that_are_wrong(writer: Writer, bits: int) -> None:
    """They say who sleeps. Without its bit a sleeper looks by itself."""
    control = Segment(control_path(writer.name))
    with Reader.attach(writer.name, topics=["a"]) as reader:
        for _ in range(3):
            sleeper = Background(lambda: reader.read(DEADLINE))
            wait_until_waiting(writer.name)
            control.write(OFFSETS["rc_control.choosers"], struct.pack("<Q", bits) * 16)
            writer.publish(b"", topic=1, timeout=DEADLINE)
            assert sleeper.result() is not None


@pytest.mark.parametrize("count", [MAX_TOPICS + 1, 2**31, 2**32 - 1])
def test_more_topics_than_there_is_room_for(writer: Writer, count: int) -> None:
    data = Segment(data_path(writer.name))
    with Reader.attach(writer.name, topics=["*"]) as reader:
        data.write(OFFSETS["rc_header.topics"], struct.pack("<I", count))
        assert len(shm.list_topics(writer.name)) == len(reader.topics) == MAX_TOPICS
        writer.publish(b"", topic=MAX_TOPICS, timeout=0)
        writer.publish(b"", topic=MAX_TOPICS + 1, timeout=0)
        message = reader.read(timeout=0)
        assert message is not None
        assert message.topic_name == ""
        assert reader.read(timeout=0) is None, "what is beyond is no topic"
        data.write(OFFSETS["rc_header.topics"], struct.pack("<I", 0))
        assert reader.topics == []


def test_names_without_a_nul(writer: Writer) -> None:
    data = Segment(data_path(writer.name))
    data.write(TOPICS, b"x" * 128)
    data.write(TOPICS + TOPIC_BYTES, b"\xff" * 128)
    first, second = shm.list_topics(writer.name)
    assert first.name == "x" * 127
    assert second.name == "\ufffd" * 127
    with Reader.attach(writer.name, topics=["x*"]) as reader:
        writer.publish(b"", topic=1)
        message = reader.read(timeout=0)
        assert message is not None
        assert message.topic_name == "x" * 127
        assert reader.latest("x" * 127) is not None


def test_a_state_that_changes_for_ever(writer: Writer) -> None:
    """Its writer died while it changed it: figures and name are there, the reason is not."""
    writer.set_topic_state(1, 5, "why")
    data = Segment(data_path(writer.name))
    version = TOPICS + OFFSETS["rc_topic.version"]
    data.write(version, struct.pack("<Q", 3))
    writer.publish(b"123", topic=1)
    row = shm.list_topics(writer.name)[0]
    assert (row.state, row.reason, row.name, row.bytes) == (0, "", "a", 3)
    writer.set_topic_state(1, 6, "because")
    row = shm.list_topics(writer.name)[0]
    assert (row.state, row.reason) == (6, "because")


def test_a_newest_message_that_is_not_there(writer: Writer) -> None:
    writer.publish(b"1", topic=1)
    data = Segment(data_path(writer.name))
    with Reader.attach(writer.name, topics=[]) as reader:
        for seq1 in (2, 5, 17, 2**63, 2**64 - 1):
            data.write(TOPICS + OFFSETS["rc_topic.messages"] + 16, struct.pack("<Q", seq1))
            assert reader.latest("a") is None
