"""The table of topics: ids, figures, states, keys; and the newest message of a topic."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer

from .conftest import MAX_TOPICS, NAME_MAX, SLOTS, publish, take


def test_ids_count_from_one_and_are_found_again(writer: Writer) -> None:
    assert [writer.topic(name) for name in ("a", "b", "a", "ä€😀", "b")] == [1, 2, 1, 3, 2]
    assert [(row.topic, row.name) for row in shm.list_topics(writer.name)] == [
        (1, "a"),
        (2, "b"),
        (3, "ä€😀"),
    ]


@pytest.mark.parametrize(
    "bad", ["", "x" * (NAME_MAX + 1), "ä" * 64, "a\0b", "\0", pytest.param("\ud800", id="lone")]
)
def test_names_that_no_topic_can_have(writer: Writer, bad: str) -> None:
    with pytest.raises(ValueError, match=r"can't name a topic|surrogates not allowed"):
        writer.topic(bad)
    assert shm.list_topics(writer.name) == []


def test_the_longest_name(writer: Writer) -> None:
    longest = "ä" * 63 + "x"
    assert len(longest.encode()) == NAME_MAX
    with Reader.attach(writer.name, topics=[longest]) as reader:
        publish(writer, longest, longest[:-1])
        assert take(reader) == [longest]
    assert shm.list_topics(writer.name)[0].name == longest


def test_a_full_table(writer: Writer) -> None:
    ids = [writer.topic(f"t{n}") for n in range(MAX_TOPICS)]
    assert ids == list(range(1, MAX_TOPICS + 1))
    with pytest.raises(shm.TooManyTopics, match=r"room for 16 topics; create it with a larger"):
        writer.topic("one more")
    assert writer.topic("t3") == 4
    assert len(shm.list_topics(writer.name)) == MAX_TOPICS


@pytest.mark.parametrize("bad", [0, 65537])
def test_bad_sizes_of_the_table(name: str, bad: int) -> None:
    with pytest.raises(ValueError, match="max_topics"):
        Writer.create(name, max_topics=bad)


def test_the_table_outlives_a_resume(name: str) -> None:
    writer = Writer.create(name, slots=8, capacity=1024, max_topics=4)
    publish(writer, "a", "b", "a")
    writer.set_topic_state(2, 7, "why")
    before = shm.list_topics(name)
    with Reader.attach(name, topics=["c*", "b"]) as reader:
        del writer
        with Writer.resume(name) as writer:
            assert shm.list_topics(name) == [
                replace(row, wanted_by=int(row.name == "b")) for row in before
            ]
            assert writer.topic("b") == 2
            publish(writer, "c", "a", "b")
            assert take(reader) == ["c", "b"]
            assert [row.messages for row in reader.topics] == [3, 2, 1]


def test_what_the_table_says(writer: Writer) -> None:
    began = time.time_ns()
    with (
        Reader.attach(writer.name, topics=["a"]) as one,
        Reader.attach(writer.name, topics=["*"]) as two,
        Reader.attach(writer.name, policy="lossy") as everything,
    ):
        writer.topic("b")
        writer.publish(b"0")
        writer.publish(b"12345", topic=writer.topic("a"))
        writer.publish(b"123", topic=writer.topic("a"))
        everything.subscribe("b")  # it gets everything, and wants this by name
        for reader in (one, two):
            assert reader.read(timeout=0) is not None
        b, a = one.topics
        assert a == shm.list_topics(writer.name)[1]
        assert (a.topic, a.name, a.state, a.reason) == (2, "a", 0, "")
        assert (a.wanted_by, a.messages, a.bytes, a.last_sequence) == (2, 2, 8, 2)
        assert began <= a.last_time_ns <= time.time_ns()
        assert a.key == shm.hash_key("a")
        assert (b.wanted_by, b.messages, b.bytes, b.last_sequence) == (2, 0, 0, None)
        assert b.last_time_ns == 0
    assert [row.wanted_by for row in shm.list_topics(writer.name)] == [0, 0]


def test_a_reader_that_never_reads_counts_for_the_topics_that_it_names(writer: Writer) -> None:
    with Reader.attach(writer.name, policy="lossy", topics=["a"]) as reader:
        writer.topic("a")
        writer.topic("b")
        reader.subscribe("b")
        assert [row.wanted_by for row in shm.list_topics(writer.name)] == [1, 1]
        reader.unsubscribe("b")
        assert [row.wanted_by for row in shm.list_topics(writer.name)] == [1, 0]
    assert [row.wanted_by for row in shm.list_topics(writer.name)] == [0, 0]


def test_states_and_reasons(writer: Writer) -> None:
    writer.topic("a")
    for state, reason, kept in [
        (1, "no such symbol", "no such symbol"),
        (2**64 - 1, "x" * 200, "x" * 112),
        (3, "ä" * 60, "ä" * 56),
        (4, "€" * 60, "€" * 37),  # never cut within a character
        (0, "", ""),
    ]:
        writer.set_topic_state(1, state, reason)
        (row,) = shm.list_topics(writer.name)
        assert (row.state, row.reason) == (state, kept)
    for bad in (0, 2):
        with pytest.raises(IndexError, match=f"topics 1 to 1, not {bad}"):
            writer.set_topic_state(bad, 1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        ("a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        ("Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
        (bytearray(b"abc"), 0x44BC2CF5AD770999),
    ],
)
def test_hash_key_is_xxh64(data: Any, expected: int) -> None:
    assert shm.hash_key(data) == expected


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, after its specification."""
    mask = 2**64 - 1
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

    def turn(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & mask

    def step(lane: int, word: int) -> int:
        return turn((lane + word * p2) & mask, 31) * p1 & mask

    words = memoryview(data)
    if len(data) >= 32:
        lanes = [(p1 + p2) & mask, p2, 0, -p1 & mask]
        while len(words) >= 32:
            parts = [int.from_bytes(words[i : i + 8], "little") for i in (0, 8, 16, 24)]
            lanes = [step(lane, part) for lane, part in zip(lanes, parts, strict=True)]
            words = words[32:]
        total = sum(turn(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
        for lane in lanes:
            total = ((total ^ step(0, lane)) * p1 + p4) & mask
    else:
        total = p5
    total = (total + len(data)) & mask
    while len(words) >= 8:
        total ^= step(0, int.from_bytes(words[:8], "little"))
        total = (turn(total, 27) * p1 + p4) & mask
        words = words[8:]
    if len(words) >= 4:
        total = (turn(total ^ int.from_bytes(words[:4], "little") * p1 & mask, 23) * p2 + p3) & mask
        words = words[4:]
    for byte in words:
        total = turn(total ^ byte * p5 & mask, 11) * p1 & mask
    for shift, prime in ((33, p2), (29, p3), (32, 1)):
        total = (total ^ total >> shift) * prime & mask
    return total


def test_hash_key_of_every_length() -> None:
    data = random.Random(1).randbytes(100)
    for length in range(101):
        assert shm.hash_key(data[:length]) == xxh64(data[:length]), length


def test_topic_key_and_name_of_a_message(writer: Writer) -> None:
    topic = writer.topic("a")
    with Reader.attach(writer.name) as reader:
        writer.publish(b"0", topic=topic, key=2**64 - 1)
        writer.publish(b"1", topic=topic)
        writer.publish(b"2")
        writer.publish(b"3", topic=topic + 1)
        writer.publish(b"4", topic=2**32 - 1, key=5)
        writer.try_publish(b"5", topic=topic, key=6)
        writer.publish_many([b"6"], topic=topic, key=7)
        with writer.reserve(8) as room:
            room[:1] = b"7"
            room.commit(1, topic=topic, key=8)
        found = [(m.topic, m.topic_name, m.key) for m in reader.read_available()]
    assert found == [
        (1, "a", 2**64 - 1),
        (1, "a", 0),
        (0, None, 0),
        (2, None, 0),
        (2**32 - 1, None, 5),
        (1, "a", 6),
        (1, "a", 7),
        (1, "a", 8),
    ]


# ---- the newest ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_the_latest_message_of_a_topic(writer: Writer, policy: Any) -> None:
    writer.topic("c")
    publish(writer, "a", "b", "a", "b", "b")
    with Reader.attach(writer.name, policy=policy, topics=["b"]) as reader:
        message = reader.latest("a")
        assert message is not None
        assert (message.sequence, message.topic_name, message.gap) == (2, "a", 0)
        assert bytes(message) == b"a"
        assert message.payload.tobytes() == b"a"
        assert reader.latest("c") is None
        assert reader.latest("nowhere") is None
        assert reader.latest("a*") is None, "it takes a name"
        for _ in range(4 * SLOTS):
            publish(writer, "b")
            assert take(reader) == ["b"]
        assert reader.latest("a") is None, "it is gone"
        assert bytes(message) == b"a", "a copy does not go"
        newest = reader.latest("b")
        assert newest is not None
        assert newest.sequence == writer.sequence - 1
        assert (reader.received, reader.cursor) == (4 * SLOTS, writer.sequence)
    assert bytes(message) == b"a"


def test_the_latest_holds_nothing(writer: Writer) -> None:
    publish(writer, "a")
    with Reader.attach(writer.name, topics=[]) as reader:
        view = reader.latest("a").payload  # type: ignore[union-attr]
        for _ in range(2 * SLOTS):
            writer.publish(b"", timeout=0)
            assert reader.read(timeout=0) is None
        assert bytes(view) == b"a"


def test_the_latest_of_a_flooded_ring(flooded: str) -> None:
    looks, last = 0, -1
    with Reader.attach(flooded, policy="lossy", topics=[]) as reader:
        while looks < 5000:
            message = reader.latest("a")
            if message is not None:
                assert bytes(message) == b"%d" % message.sequence * 7
                assert message.sequence >= last
                assert message.topic_name == "a"
                last = message.sequence
                looks += 1
