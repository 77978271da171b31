"""A message: its attributes, and its bytes as everything that reads buffers sees them."""

from __future__ import annotations

import io
import random
import struct
import time

import numpy as np
import pytest
from typing_extensions import Buffer

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.unit.conftest import CAPACITY, DATA_HEADER, MAX_MESSAGE, SLOTS, data_path


def deliver(writer: Writer, payload: Buffer, policy: str = "block", **options: int) -> Message:
    """One message, published and read."""
    reader = Reader.attach(writer.name, policy=policy)  # type: ignore[arg-type]
    writer.publish(payload, **options)
    message = reader.read(timeout=0)
    assert message is not None
    return message


@pytest.fixture(params=["block", "lossy"])
def policy(request: pytest.FixtureRequest) -> str:
    """Either policy: a message looks the same under both."""
    found: str = request.param
    return found


# ---- attributes ----------------------------------------------------------------------------


def test_attributes(writer: Writer, policy: str) -> None:
    writer.publish(b"before")
    earliest = time.time_ns()
    message = deliver(writer, b"hello", policy, topic=7, kind=shm.Kind.TEXT)
    latest = time.time_ns()
    assert message.sequence == 1
    assert message.topic == 7
    assert message.kind is shm.Kind.TEXT
    assert earliest <= message.time_ns <= latest
    assert message.epoch == 1
    assert message.gap == 0
    assert len(message) == 5
    assert bytes(message) == b"hello"
    assert message.text() == "hello"
    assert bytes(message.payload) == b"hello"


def test_defaults(writer: Writer) -> None:
    message = deliver(writer, b"x")
    assert (message.topic, message.kind) == (0, shm.Kind.BINARY)


@pytest.mark.parametrize("topic", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("kind", [1, 2, 16, 0, 3, 65535])
def test_topic_and_kind_go_through(writer: Writer, topic: int, kind: int) -> None:
    message = deliver(writer, b"", topic=topic, kind=kind)
    assert (message.topic, message.kind) == (topic, kind)
    assert isinstance(message.kind, shm.Kind) == (kind in {1, 2, 16})


@pytest.mark.parametrize("name", ["sequence", "topic", "payload", "gap", "anything"])
def test_attributes_are_read_only(writer: Writer, name: str) -> None:
    message = deliver(writer, b"x")
    with pytest.raises(AttributeError):
        setattr(message, name, 1)


def test_repr(writer: Writer) -> None:
    message = deliver(writer, b"abc", topic=3, kind=1)
    assert repr(message) == "<Message 0 kind=<Kind.TEXT: 1> topic=3 3 bytes>"
    assert "kind=99" in repr(deliver(writer, b"", kind=99))


def test_text_is_utf_8(writer: Writer, policy: str) -> None:
    text = "grüße €𝄞\0"
    assert deliver(writer, text.encode(), policy).text() == text
    with pytest.raises(UnicodeDecodeError):
        deliver(writer, b"\xff\xfe", policy).text()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, MAX_MESSAGE - 1, MAX_MESSAGE])
def test_every_length(writer: Writer, policy: str, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    message = deliver(writer, payload, policy)
    assert len(message) == length
    assert bytes(message) == message.payload.tobytes() == payload


def test_a_message_of_a_lossless_reader_lies_in_the_ring(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        writer.publish(b"hello")
        message = reader.read(timeout=0)
        assert message is not None
        with message.payload as view:
            poke_arena(writer, 0, b"J")
            assert bytes(view) == bytes(message) == b"Jello"


def test_a_message_of_a_lossy_reader_is_a_copy(writer: Writer) -> None:
    message = deliver(writer, b"hello", "lossy")
    poke_arena(writer, 0, b"J")
    assert bytes(message) == b"hello"


def poke_arena(writer: Writer, offset: int, value: bytes) -> None:
    """Write into the payload bytes, as no process is supposed to."""
    with data_path(writer.name).open("r+b") as segment:
        segment.seek(DATA_HEADER + SLOTS * shm.DESCRIPTOR.itemsize + offset)
        segment.write(value)


# ---- the buffer protocol -------------------------------------------------------------------


def test_views_are_read_only(writer: Writer, policy: str) -> None:
    message = deliver(writer, b"12345678", policy)
    with message.payload as view, memoryview(message) as other:
        assert view.readonly
        assert other.readonly
        assert (view.format, view.ndim, view.nbytes, view.c_contiguous) == ("B", 1, 8, True)
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 0
    with pytest.raises(TypeError):
        io.BytesIO(b"XXXX").readinto(message)
    with pytest.raises(TypeError):
        struct.pack_into("B", message, 0, 1)
    assert bytes(message) == b"12345678"


def test_numpy_reads_in_place_and_can_not_write(writer: Writer) -> None:
    message = deliver(writer, np.arange(4, dtype="<u4").tobytes())
    array = np.frombuffer(message, dtype="<u4")  # type: ignore[call-overload]
    assert array.tolist() == [0, 1, 2, 3]
    assert np.shares_memory(array, np.frombuffer(message.payload, dtype=np.uint8))
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_struct_reads_in_place(writer: Writer) -> None:
    message = deliver(writer, struct.pack("<qd", -3, 1.5))
    assert struct.unpack_from("<qd", message) == (-3, 1.5)
    assert struct.unpack("<qd", message.payload) == (-3, 1.5)
    with message.payload as view:
        assert view.cast("q")[0] == -3
        assert view[8:].cast("d")[0] == 1.5


def test_payloads_are_aligned_for_any_word(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        for length in (1, 3, 8, 13, 0, 5):
            writer.publish(b"x" * length)
        for message in reader.read_available():
            array = np.frombuffer(message.payload, dtype=np.uint8)
            assert array.ctypes.data % 8 == 0 or len(message) == 0
            del array


def test_whatever_takes_bytes_takes_a_message(writer: Writer) -> None:
    message = deliver(writer, b"12")
    assert int(message) == 12
    assert b"".join([message, b"3"]) == b"123"
    assert bytearray(message) == b"12"
    assert hash(message) is not None
    assert message.payload.tobytes() == b"12"


def test_a_message_is_published_again_from_where_it_lies(writer: Writer, policy: str) -> None:
    first = deliver(writer, b"once more", policy)
    again = deliver(writer, first, policy)
    assert bytes(again) == bytes(first) == b"once more"


def test_slices_of_a_view(writer: Writer) -> None:
    message = deliver(writer, bytes(range(100)))
    with message.payload as view:
        assert bytes(view[10:20]) == bytes(range(10, 20))
        assert bytes(view[::-7]) == bytes(range(100))[::-7]
        assert view[-1] == 99


def test_a_round_of_all_sizes(writer: Writer, policy: str) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    with Reader.attach(writer.name, policy=policy) as reader:  # type: ignore[arg-type]
        for sequence in range(500):
            payload = rng.randbytes(rng.randint(0, MAX_MESSAGE))
            writer.publish(payload, timeout=0)
            message = reader.read(timeout=0)
            assert message is not None
            assert (message.sequence, bytes(message)) == (sequence, payload)
            assert message.payload.nbytes <= CAPACITY
