"""A writer: publishing, a full ring, reservations, threads and signals."""

from __future__ import annotations

import array
import random
import socket
import struct
import threading
import time
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Reservation, Writer
from tests.conftest import DEADLINE, eventually
from tests.unit.conftest import (
    CAPACITY,
    MAX_MESSAGE,
    SLOTS,
    Background,
    fill,
    on_signal,
    wait_until_waiting,
)

WAITS = [shm.Blocking(), shm.Blocking(spin_us=0), shm.Yielding(), shm.BusySpin()]


@pytest.fixture
def reader(writer: Writer) -> Reader:
    """A lossless reader from the first message on."""
    return Reader.attach(writer.name)


def read_all(reader: Reader) -> list[bytes]:
    """Every payload that is there, and let go of all."""
    payloads = []
    while (message := reader.read(timeout=0)) is not None:
        payloads.append(bytes(message))
        del message
    return payloads


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
def test_publish_many_tells_how_many_went(writer: Writer, reader: Reader, there: int) -> None:
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
def test_a_waiting_writer_goes_on_when_the_reader_is_put_off(
    writer: Writer, reader: Reader, how: str
) -> None:
    fill(writer)
    publishing = Background(lambda: writer.publish(b"late"))
    assert getattr(writer, how)(reader.slot)
    if how == "demote":
        reader.read(timeout=0)
    assert publishing.result() == 8


def test_close_tells_a_thread_that_waits_for_room(writer: Writer, reader: Reader) -> None:
    fill(writer)
    waiting = [Background(lambda: writer.publish(b"late")) for _ in range(3)]
    eventually(lambda: writer.try_publish(b"x") is None, "the ring is full")
    writer.close()
    for thread in waiting:
        with pytest.raises(shm.RingClosed):
            thread.result()
    assert reader.lag == SLOTS


def test_a_refused_writer_does_not_forget(writer: Writer, reader: Reader) -> None:
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


# ---- reservations --------------------------------------------------------------------------


def test_a_reservation_is_written_in_place(writer: Writer, reader: Reader) -> None:
    with writer.reserve(16) as room:
        assert isinstance(room, Reservation)
        assert len(room) == 16
        struct.pack_into("<qq", room, 0, 1, 2)
        assert room[:8] == struct.pack("<q", 1)
        assert room[8] == 2
        room[8:16] = struct.pack("<q", 3)
        room[-1] = 0
        assert reader.lag == 0
        assert room.commit(topic=4, kind=shm.Kind.EVENT) == 0
    message = reader.read(timeout=0)
    assert message is not None
    assert struct.unpack("<qq", message.payload) == (1, 3)
    assert (message.topic, message.kind, message.epoch) == (4, shm.Kind.EVENT, 1)
    assert message.time_ns <= time.time_ns()


def test_a_socket_and_numpy_write_into_it(writer: Writer, reader: Reader) -> None:
    left, right = socket.socketpair()
    with left, right, writer.reserve(64) as room:
        left.sendall(b"from the wire")
        room.commit(right.recv_into(room))
    with writer.reserve(16) as room:
        numbers = np.frombuffer(room, "<u8")  # type: ignore[call-overload]
        numbers[:] = 7
        del numbers
        room.commit()
    assert read_all(reader) == [b"from the wire", struct.pack("<QQ", 7, 7)]


@pytest.mark.parametrize("nbytes", [0, 1, 100, MAX_MESSAGE])
def test_any_part_of_it_is_committed(writer: Writer, reader: Reader, nbytes: int) -> None:
    with writer.reserve(MAX_MESSAGE) as room:
        room[:] = bytes(i & 255 for i in range(MAX_MESSAGE))
        room.commit(nbytes)
    assert read_all(reader) == [bytes(i & 255 for i in range(nbytes))]


@pytest.mark.parametrize("nbytes", [-1, 9, 2**40])
def test_no_more_than_was_reserved(writer: Writer, nbytes: int) -> None:
    with writer.reserve(8) as room:
        with pytest.raises(ValueError, match=f"8 bytes are reserved, {nbytes} can't be published"):
            room.commit(nbytes)
        assert room.commit(8) == 0


def test_no_negative_reservation(writer: Writer) -> None:
    with pytest.raises(ValueError, match="nbytes is 0 or more, not -1"):
        writer.reserve(-1)
    with pytest.raises(TypeError):
        writer.reserve("1")  # type: ignore[arg-type]


def test_a_reservation_that_is_left_publishes_nothing(writer: Writer, reader: Reader) -> None:
    with writer.reserve(8) as room:
        room[:] = b"12345678"
    for use in (room.commit, lambda: room[0], lambda: memoryview(room)):
        with pytest.raises(ValueError, match="the reservation is over"):
            use()
    assert writer.publish(b"next") == 0
    assert read_all(reader) == [b"next"]


def test_a_reservation_that_is_dropped_publishes_nothing(writer: Writer) -> None:
    writer.reserve(8)
    room = writer.reserve(8)
    del room
    assert writer.publish(b"next") == 0


def test_an_exception_inside_publishes_nothing(writer: Writer, reader: Reader) -> None:
    def half_way() -> None:
        with writer.reserve(8) as room:
            room[:4] = b"1234"
            raise KeyError

    with pytest.raises(KeyError):
        half_way()
    assert writer.publish(b"next") == 0
    assert read_all(reader) == [b"next"]


def test_it_is_committed_once(writer: Writer, reader: Reader) -> None:
    with writer.reserve(8) as room:
        room.commit(1)
        with pytest.raises(ValueError, match="the reservation is over"):
            room.commit(1)
        assert writer.publish(b"inside") == 1
        with writer.reserve(8) as another:
            another.commit(2)
    assert [len(payload) for payload in read_all(reader)] == [1, 6, 2]


def test_nothing_else_is_published_meanwhile(writer: Writer) -> None:
    with writer.reserve(8) as room:
        calls = (
            lambda: writer.publish(b"x"),
            lambda: writer.try_publish(b"x"),
            lambda: writer.publish_many([b"x"]),
            lambda: writer.reserve(1),
        )
        for call in calls:
            with pytest.raises(BufferError, match="a reservation is open"):
                call()
        assert room.commit() == 0
    assert writer.publish(b"x") == 1


@pytest.mark.parametrize("kind", ["view", "slice", "array"])
def test_a_kept_piece_of_it_could_write_on(writer: Writer, reader: Reader, kind: str) -> None:
    with writer.reserve(8) as room:
        view = memoryview(room)
        kept: Any = {"view": view, "slice": view[2:4], "array": np.frombuffer(view, "u1")}[kind]
        del view
        with pytest.raises(BufferError, match="a view of the reservation is still alive"):
            room.commit()
    for call in (lambda: writer.publish(b"x"), lambda: writer.reserve(1)):
        with pytest.raises(BufferError, match="a view of one that was left is still"):
            call()
    with pytest.raises(BufferError, match="a view of a reservation is still alive"):
        writer.close()
    kept[0] = 1  # harmless: nobody sees it
    del kept
    with pytest.raises(ValueError, match="the reservation is over"):
        room.commit()
    assert writer.publish(b"x") == 0
    assert read_all(reader) == [b"x"]


def test_closing_ends_an_open_reservation(writer: Writer, reader: Reader) -> None:
    with writer.reserve(8) as room:
        writer.close()
        with pytest.raises((ValueError, shm.RingClosed)):
            room.commit()
    assert list(reader) == []


def test_a_reservation_waits_for_room(writer: Writer, reader: Reader) -> None:
    fill(writer, bytes(MAX_MESSAGE))
    reserving = Background(lambda: writer.reserve(MAX_MESSAGE))
    while reserving.running:
        reader.read(timeout=0.001)
    with reserving.result() as room:
        room[:] = b"z" * MAX_MESSAGE
        room.commit()
    assert read_all(reader)[-1] == b"z" * MAX_MESSAGE


def test_what_readers_hold_is_never_reserved(writer: Writer, reader: Reader) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    sent = []
    for i in range(500):
        size = rng.randint(0, MAX_MESSAGE)
        payload = bytes([i & 255]) * rng.randint(0, size)
        try:
            with writer.reserve(size, timeout=0) as room:
                room[:] = bytes([255 - (i & 255)]) * size
                room[: len(payload)] = payload
                room.commit(len(payload))
            sent.append(payload)
        except shm.RingFull:
            assert read_all(reader) == sent
            sent.clear()
    assert read_all(reader) == sent


# ---- threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_threads_share_a_writer_on_a_full_ring(name: str, wait: Any) -> None:
    threads, each = 4, 60
    with Writer.create(name, slots=4, capacity=256, max_readers=1, wait=wait) as writer:
        reader = Reader.attach(name)
        reading = Background(lambda: [(m.sequence, m.topic, bytes(m)) for m in reader])

        def publish(topic: int) -> list[int]:
            return [publish_somehow(writer, topic, i) for i in range(each)]

        publishing = [Background(lambda t=topic: publish(t)) for topic in range(threads)]  # type: ignore[misc]
        claimed = [thread.result() for thread in publishing]
        writer.close()
        seen = reading.result()
    assert [sequence for sequence, _, _ in seen] == list(range(threads * each))
    for topic in range(threads):
        mine = [(sequence, payload) for sequence, its, payload in seen if its == topic]
        assert [payload for _, payload in mine] == [b"%d" % i for i in range(each)]
        assert [sequence for sequence, _ in mine] == claimed[topic]


def publish_somehow(writer: Writer, topic: int, number: int) -> int:
    """Publish one message, by a call that depends on its number; its sequence."""
    payload = b"%d" % number
    if number % 3 == 0:
        return writer.publish(payload, topic=topic)
    if number % 3 == 1:
        return writer.publish_many([payload], topic=topic)[0]
    while (sequence := writer.try_publish(payload, topic=topic)) is None:
        time.sleep(0)
    return sequence


def test_publish_many_of_several_threads_stays_together(writer: Writer, reader: Reader) -> None:
    reading = Background(lambda: [(m.topic, bytes(m)) for m in reader])

    def publish(topic: int) -> list[range]:
        return [
            writer.publish_many([b"%d" % i for i in range(first, first + 20)], topic=topic)
            for first in range(0, 200, 20)
        ]

    publishing = [Background(lambda t=topic: publish(t)) for topic in range(3)]  # type: ignore[misc]
    claimed = [thread.result() for thread in publishing]
    writer.close()
    seen = reading.result()
    for topic, ranges in enumerate(claimed):
        together = [seen[sequence] for one in ranges for sequence in one]
        assert together == [(topic, b"%d" % i) for i in range(200)]


def test_a_thread_that_waits_leaves_the_rest_usable(writer: Writer, reader: Reader) -> None:
    fill(writer)
    publishing = Background(lambda: writer.publish(b"late"))
    assert writer.try_publish(b"x") is None
    with pytest.raises(shm.RingFull):
        writer.publish(b"x", timeout=0)
    with pytest.raises(shm.RingFull):
        writer.publish_many([b"x"], timeout=0)
    with pytest.raises(shm.RingFull):
        writer.reserve(1, timeout=0.001)
    assert writer.sequence == SLOTS
    assert not writer.demote(3)
    assert len(read_all(reader)) >= SLOTS
    assert publishing.result() == SLOTS


# ---- signals -------------------------------------------------------------------------------


def test_publishing_in_a_signal_handler(writer: Writer, reader: Reader) -> None:
    handled: list[int] = []

    def handler() -> None:
        sequence = writer.try_publish(b"handler")
        if sequence is not None:
            handled.append(sequence)

    mine = []
    received = []
    with on_signal(handler) as send:
        for i in range(300):
            if i % 3 == 0:
                send()
            mine.append(writer.publish(b"main", timeout=DEADLINE))
            received += read_all(reader)
    assert sorted(mine + handled) == list(range(len(received)))
    assert all(received[sequence] == b"main" for sequence in mine)
    assert all(received[sequence] == b"handler" for sequence in handled)


@pytest.mark.parametrize("call", ["publish", "publish_many", "reserve"])
def test_a_signal_handler_publishes_while_its_own_thread_waits(
    writer: Writer, reader: Reader, call: str
) -> None:
    handled = threading.Event()
    refused: list[BaseException] = []

    def handler() -> None:
        try:
            writer.publish(b"handler")
        except shm.RingFull as error:
            refused.append(error)
        handled.set()

    def drain(send: Any) -> list[bytes]:
        eventually(lambda: writer.sequence >= SLOTS, "the ring is full")
        send()
        handled.wait(DEADLINE)
        return [bytes(message) for message in reader]

    sent = [b"%d" % i for i in range(3 * SLOTS)]
    with on_signal(handler) as send:
        reading = Background(lambda: drain(send))
        if call == "publish":
            claimed = [writer.publish(payload) for payload in sent]
        elif call == "publish_many":
            claimed = list(writer.publish_many(sent))
        else:
            claimed = [commit(writer, payload) for payload in sent]
    writer.close()
    received = reading.result()
    assert [received[sequence] for sequence in claimed] == sent
    assert received.count(b"handler") == 1 - len(refused)


def commit(writer: Writer, payload: bytes) -> int:
    """Publish through a reservation."""
    with writer.reserve(len(payload)) as room:
        room[:] = payload
        return room.commit()


class Interrupted(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_a_signal_handler_interrupts_a_writer_that_waits(name: str, wait: Any) -> None:
    def interrupt() -> None:
        raise Interrupted

    waiting = threading.Event()

    def publish() -> None:
        waiting.set()
        writer.publish(b"late")

    with (
        Writer.create(name, slots=8, capacity=1024, max_readers=1, wait=wait) as writer,
        on_signal(interrupt) as send,
    ):
        reader = Reader.attach(name)
        fill(writer)
        Background(lambda: waiting.wait(DEADLINE) and send())
        with pytest.raises(Interrupted):
            publish()
        assert read_all(reader) == [b"12345678"] * 8
        assert writer.publish(b"on") == 8  # nothing is stuck


def test_a_sleeping_reader_is_woken_by_every_call(writer: Writer, reader: Reader) -> None:
    calls = (
        lambda: writer.publish(b"x"),
        lambda: writer.try_publish(b"x"),
        lambda: writer.publish_many([b"x"]),
        lambda: commit(writer, b"x"),
    )
    for call in calls:
        waiting = Background(reader.read)
        wait_until_waiting(writer.name)
        call()
        assert bytes(waiting.result()) == b"x"
