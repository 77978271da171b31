"""Batches of what a reader wants."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ringcast.shm.broadcast import Reader, Writer

from .conftest import SLOTS, publish


@pytest.mark.parametrize("policy", ["block", "lossy"])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_batches_hold_what_is_wanted(writer: Writer, policy: Any, limit: int) -> None:
    rng = random.Random(limit)
    with Reader.attach(writer.name, policy=policy, topics=["a", "b"]) as reader:
        expected, found = [], []
        for _ in range(10):
            for _ in range(rng.randint(1, 40)):
                topic = rng.choice("abcd")
                data = rng.randbytes(rng.randint(0, 50))
                sequence = writer.publish(data, topic=writer.topic(topic), key=len(data), timeout=0)
                if topic in "ab":
                    expected.append((sequence, writer.topic(topic), data))
            while len(batch := reader.batch(limit, timeout=0)):
                with batch:
                    assert len(batch) <= limit
                    assert batch.first == batch.descriptors["seq1"][0] - 1
                    assert batch.gap == 0
                    for i, d in enumerate(batch.descriptors):
                        data = bytes(batch.payload(i))
                        assert d["length"] == d["key"] == len(data)
                        found.append((int(d["seq1"]) - 1, int(d["topic"]), data))
            batch.release()
        assert found == expected
        assert reader.received == len(expected)
        assert reader.received + reader.skipped == writer.sequence


def test_the_limit_counts_what_is_wanted(writer: Writer) -> None:
    with Reader.attach(writer.name, topics=["a"]) as reader:
        publish(writer, *["b", "b", "a"] * 10)
        with reader.batch(4, timeout=0) as batch:
            assert batch.descriptors["seq1"].tolist() == [3, 6, 9, 12]
            assert batch.first == 2
        assert len(reader.read_available(4)) == 4
        with reader.batch(timeout=0) as batch:
            assert len(batch) == 2
        assert reader.skipped == 20


def test_descriptors_of_a_filtered_batch_are_a_copy(writer: Writer) -> None:
    """The payloads still lie in the ring, and pin it."""
    publish(writer, "b", "a", "b")
    with Reader.attach(writer.name, topics=["a"], start=0) as reader:
        with reader.batch(timeout=0) as batch:
            table = batch.descriptors
            assert not table.flags.writeable
            view = batch.payload(0)
        while writer.try_publish(b"", topic=1) is not None:
            pass
        assert writer.sequence <= 1 + SLOTS
        assert bytes(view) == b"a"
        assert table["seq1"].tolist() == [2]
        view.release()
        del table
        assert reader.read(timeout=0) is None
        assert writer.try_publish(b"", topic=1) is not None


def test_records_of_a_filtered_batch(writer: Writer) -> None:
    """They are a view where the wanted ones lie at equal distances; else it says so."""
    a, b = writer.topic("a"), writer.topic("b")
    with (
        Reader.attach(writer.name, topics=["a"]) as reader,
        Reader.attach(writer.name, topics=["a"], policy="lossy") as lossy,
    ):
        for i in range(6):
            writer.publish(i.to_bytes(8, "little"), topic=a if i % 2 else b)
        with reader.batch(timeout=0) as batch:
            assert batch.records("<u8").tolist() == [1, 3, 5]
        for topic in (a, b, a, a):
            writer.publish(writer.sequence.to_bytes(8, "little"), topic=topic)
        with (
            reader.batch(timeout=0) as batch,
            pytest.raises(ValueError, match="not evenly spaced after message"),
        ):
            batch.records("<u8")
        with lossy.batch(timeout=0) as batch:  # copies, which lie side by side
            assert batch.records("<u8").tolist() == [1, 3, 5, 6, 8, 9]


def test_an_empty_batch(writer: Writer) -> None:
    with Reader.attach(writer.name, topics=["a"]) as reader:
        publish(writer, "b", "b")
        with reader.batch(timeout=0) as batch:
            assert len(batch) == 0
            assert batch.first == 2
            assert batch.descriptors.shape == (0,)
        assert reader.skipped == 2


def test_a_lossy_batch_of_a_flooded_ring(flooded: str) -> None:
    """Whatever comes of it holds what was published, and is wanted."""
    seen = 0
    with Reader.attach(flooded, policy="lossy", topics=["a"]) as reader:
        start = reader.cursor
        while seen < 20_000 or not reader.lost:
            with reader.batch(timeout=0) as batch:
                for i, d in enumerate(batch.descriptors):
                    sequence = int(d["seq1"]) - 1
                    assert bytes(batch.payload(i)) == b"%d" % sequence * 7
                    assert sequence % 3
                seen += len(batch)
                if seen // 1000 % 2:
                    list(batch.descriptors)  # be slow, at times
        assert reader.received == seen
        assert reader.received + reader.skipped + reader.lost == reader.cursor - start
