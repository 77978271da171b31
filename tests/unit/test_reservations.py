"""Reservations: messages that are written in place."""

from __future__ import annotations

import random
import socket
import struct
import time
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Reservation, Writer
from tests.unit.conftest import MAX_MESSAGE, Background, fill, read_all


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
