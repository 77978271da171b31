"""A writer: publishing, and a full ring."""

from __future__ import annotations

import array
import random
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, eventually
from tests.unit.conftest import CAPACITY, MAX_MESSAGE, SLOTS, WAITS, Background, fill, read_all

# ---- publishing ----------------------------------------------------------------------------


def test_attributes(writer: Writer, name: str) -> None:
    assert writer.name == name
    assert (writer.slots, writer.capacity, writer.max_message) == (SLOTS, CAPACITY, MAX_MESSAGE)
    assert (writer.sequence, writer.epoch, writer.closed) == (0, 1, False)
    assert repr(writer) == f"<Writer of '{name}' at 0>"
    writer.publish(b"x")
    assert writer.sequence == 1
    writer.close()
    assert writer.closed
    assert repr(writer) == f"<Writer of '{name}' closed>"


def test_publishing_returns_the_sequence(writer: Writer, reader: Reader) -> None:
    assert writer.publish(b"a") == 0
    assert writer.try_publish(b"b") == 1
    assert writer.publish_many([b"c", b"d"]) == range(2, 4)
    with writer.reserve(1) as room:
        room[0] = ord("e")
        assert room.commit() == 4
    assert writer.publish_many([]) == range(5, 5)
    assert writer.publish_many((b"f",)) == range(5, 6)
    assert read_all(reader) == [b"a", b"b", b"c", b"d", b"e", b"f"]


@pytest.mark.parametrize(
    "data",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"x12345678")[1:],
        memoryview(b"12345678").cast("q"),
        memoryview(b"12345678").cast("B", (2, 4)),
        array.array("H", [12849, 13363, 13877, 14391]),
        np.frombuffer(b"12345678", "<u4"),
        np.frombuffer(b"12345678", "u1").reshape(2, 2, 2),
    ],
    ids=lambda data: type(data).__name__,
)
def test_any_contiguous_buffer(writer: Writer, reader: Reader, data: Any) -> None:
    writer.publish(data)
    writer.try_publish(data)
    writer.publish_many([data, data])
    assert read_all(reader) == [b"12345678"] * 4


@pytest.mark.parametrize("data", ["text", 1, None, [1], object()])
def test_what_is_no_buffer_is_refused(writer: Writer, data: Any) -> None:
    for call in (writer.publish, writer.try_publish, lambda d: writer.publish_many([b"", d])):
        with pytest.raises(TypeError, match="bytes-like object is required"):
            call(data)
    assert writer.sequence == 0


@pytest.mark.parametrize("data", [memoryview(b"123456")[::2], np.arange(9).reshape(3, 3).T])
def test_what_is_not_contiguous_is_refused(writer: Writer, data: Any) -> None:
    for call in (writer.publish, writer.try_publish, lambda d: writer.publish_many([b"", d])):
        with pytest.raises((BufferError, ValueError), match="contiguous"):
            call(data)
    assert writer.sequence == 0


@pytest.mark.parametrize(("topic", "kind"), [(-1, 2), (2**32, 2), (0, -1), (0, 65536)])
def test_topic_and_kind_have_bounds(writer: Writer, topic: int, kind: int) -> None:
    for call in (writer.publish, writer.try_publish):
        with pytest.raises(OverflowError):
            call(b"", topic=topic, kind=kind)
    with pytest.raises(OverflowError):
        writer.publish_many([b""], topic=topic, kind=kind)
    assert writer.sequence == 0


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, CAPACITY, 1 << 20])
def test_a_message_that_is_too_large(writer: Writer, length: int) -> None:
    data = bytes(length)
    needed = 1 << (4 * length - 1).bit_length()
    why = f"a message of {length} bytes .* limit of {MAX_MESSAGE}.* capacity={needed} or more"
    calls = (
        writer.publish,
        writer.try_publish,
        lambda d: writer.publish_many([b"", d]),
        lambda d: writer.publish_many([b"", memoryview(d)]),
        lambda d: writer.reserve(len(d)),
    )
    for call in calls:
        with pytest.raises(shm.MessageTooLarge, match=why):
            call(data)
    assert writer.sequence == 0


@pytest.mark.parametrize("buffers", [b"abc", 5, None, "abc", [[b"a"]]])
def test_publish_many_takes_a_sequence_of_buffers(writer: Writer, buffers: Any) -> None:
    with pytest.raises(TypeError):
        writer.publish_many(buffers)
    assert writer.sequence == 0


def test_publish_many_of_many_more_than_fit(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        reading = Background(lambda: [bytes(message) for message in reader])
        sent = [b"%d" % i for i in range(1000)]
        assert writer.publish_many(sent, timeout=DEADLINE) == range(1000)
        writer.close()
        assert reading.result() == sent


def test_topic_and_kind_of_publish_many(writer: Writer, reader: Reader) -> None:
    writer.publish_many([b"a", b"b"], topic=5, kind=shm.Kind.TEXT)
    assert [(m.topic, m.kind) for m in reader.read_available()] == [(5, shm.Kind.TEXT)] * 2


def test_a_closed_writer_can_do_nothing_more(writer: Writer) -> None:
    writer.close()
    writer.close()
    calls = (
        lambda: writer.publish(b""),
        lambda: writer.try_publish(b""),
        lambda: writer.publish_many([b""]),
        lambda: writer.reserve(0),
        lambda: writer.demote(0),
        lambda: writer.evict(0),
    )
    for call in calls:
        with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
            call()


# ---- a full ring ---------------------------------------------------------------------------


def test_without_readers_the_ring_is_never_full(writer: Writer) -> None:
    for _ in range(100):
        assert writer.try_publish(bytes(MAX_MESSAGE)) is not None


@pytest.mark.parametrize(("length", "fits"), [(0, SLOTS), (8, SLOTS), (128, 8), (256, 4), (200, 5)])
def test_a_ring_holds_its_slots_or_its_bytes(writer: Writer, length: int, fits: int) -> None:
    with Reader.attach(writer.name) as reader:
        assert len(fill(writer, bytes(length))) == fits
        assert len(read_all(reader)) == fits
        assert len(fill(writer, bytes(length))) >= fits - 1  # the arena's end may cost one


@pytest.mark.parametrize("wait", WAITS, ids=repr)
@pytest.mark.parametrize("timeout", [0, 0.005])
def test_no_room_in_time(name: str, wait: Any, timeout: float) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=2, wait=wait) as writer:
        reader = Reader.attach(name, label="the slow one")
        fill(writer)
        why = f"no room for 5 bytes in ring '{name}' in time: reader slot 0 .*'the slow one', at 0"
        for call in (writer.publish, lambda d, timeout: writer.reserve(len(d), timeout=timeout)):
            with pytest.raises(shm.RingFull, match=why) as raised:
                call(b"12345", timeout=timeout)
            assert raised.value.published == 0
        assert writer.sequence == 8
        assert read_all(reader) == [b"12345678"] * 8


@pytest.mark.parametrize("there", [0, 3, 8])
def test_publish_many_reports_how_many_went(writer: Writer, reader: Reader, there: int) -> None:
    for _ in range(there):
        writer.publish(b"old")
    with pytest.raises(shm.RingFull) as raised:
        writer.publish_many([b"%d" % i for i in range(20)], timeout=0)
    assert raised.value.published == SLOTS - there
    assert writer.sequence == SLOTS
    assert read_all(reader) == [b"old"] * there + [b"%d" % i for i in range(SLOTS - there)]


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_cannot_be(writer: Writer, reader: Reader, timeout: float) -> None:
    fill(writer)
    calls = (
        lambda: writer.publish(b"", timeout=timeout),
        lambda: writer.publish_many([b""], timeout=timeout),
        lambda: writer.reserve(0, timeout=timeout),
    )
    for call in calls:
        with pytest.raises(ValueError, match="timeout is seconds, 0 or more, or None"):
            call()
    assert reader.lag == SLOTS


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_a_waiting_writer_goes_on_when_there_is_room(name: str, wait: Any) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=2, wait=wait) as writer:
        reader = Reader.attach(name)
        fill(writer)
        publishing = Background(lambda: writer.publish(b"late"))
        received = read_all(reader)
        while publishing.running:
            received += read_all(reader)
        received += read_all(reader)
        assert publishing.result() == 8
        assert received == [b"12345678"] * 8 + [b"late"]


def test_a_waiting_writer_goes_on_when_the_reader_leaves(writer: Writer, reader: Reader) -> None:
    fill(writer)
    publishing = Background(lambda: writer.publish(b"late"))
    assert publishing.running
    reader.close()
    assert publishing.result() == 8


@pytest.mark.parametrize("how", ["demote", "evict"])
def test_a_waiting_writer_goes_on_when_the_reader_is_demoted_or_evicted(
    writer: Writer, reader: Reader, how: str
) -> None:
    fill(writer)
    publishing = Background(lambda: writer.publish(b"late"))
    assert getattr(writer, how)(reader.slot)
    if how == "demote":
        reader.read(timeout=0)
    assert publishing.result() == 8


def test_close_wakes_threads_that_wait_for_room(writer: Writer, reader: Reader) -> None:
    fill(writer)
    waiting = [Background(lambda: writer.publish(b"late")) for _ in range(3)]
    eventually(lambda: writer.try_publish(b"x") is None, "the ring is full")
    writer.close()
    for thread in waiting:
        with pytest.raises(shm.RingClosed):
            thread.result()
    assert reader.lag == SLOTS


def test_nothing_is_lost_by_messages_that_found_no_room(writer: Writer, reader: Reader) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    sent, received = [], []
    for i in range(2000):
        data = i.to_bytes(4, "little") * rng.randint(0, MAX_MESSAGE // 4)
        if rng.random() < 0.3:
            received += read_all(reader)
        if writer.try_publish(data) is not None:
            sent.append(data)
    received += read_all(reader)
    assert received == sent
