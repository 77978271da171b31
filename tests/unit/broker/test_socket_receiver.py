"""From a gateway's bytes to messages: cut anywhere, and what no gateway sends."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pytest

from ringcast import shm
from ringcast.broker.worker._socket_feed import Receiver, SocketMessage
from ringcast.broker.worker.wire import Hello, Record, RecordType, encode
from tests import frames
from tests.frames import BINARY, CONTINUATION

MAX_MESSAGE: Final = 1 << 20
PING: Final = b"\x89\x02hi"
CHUNK: Final = 1 << 18
"""Bytes that are received together at most."""


def frame(payload: bytes, opcode: int = BINARY, *, fin: bool = True) -> bytes:
    """As a gateway sends it: records are binary."""
    return frames.frame(opcode, payload, fin=fin)


def message(sequence: int, payload: bytes, **fields: Any) -> bytes:
    fields.setdefault("kind", shm.Kind.BINARY)
    return encode(Record(RecordType.MESSAGE, payload, sequence=sequence, **fields))


def topic(number: int, name: str) -> bytes:
    return encode(Record(RecordType.TOPIC, name.encode(), topic=number))


HELLO: Final = frame(
    encode(Record(RecordType.HELLO, Hello("md", 7, 64, 4 * MAX_MESSAGE, MAX_MESSAGE).encode()))
)


class Fed(Receiver):
    """Receives what it is given, piece by piece; EOFError after that.

    Attributes:
        records: types of the records that are no messages, in their order.
        controls: control frames, likewise.
        code: what the connection would be closed with.
    """

    def __init__(self, pieces: Iterable[bytes], *, events: bool = False) -> None:
        self._pieces = iter(pieces)
        self._events = events
        self.records: list[int] = []
        self.controls: list[tuple[int, bytes]] = []
        self.code: int | None = None

    def _arrive(self, _timeout: float | None) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            raise EOFError
        self._feed(piece)
        return True

    def _record(self, record: Record) -> None:
        self.records.append(record.type)
        if record.type == RecordType.HELLO:
            hello = Hello.decode(record.payload)
            self._greet(record.sequence, hello.max_message, same=True)

    def _control(self, opcode: int, payload: bytes) -> None:
        self.controls.append((opcode, payload))

    def _wrong(self, code: int, _why: str) -> None:
        self.code = code

    def rest(self) -> list[SocketMessage]:
        """All messages to the end."""
        found = []
        try:
            for each in self:
                found.append(each)
        except EOFError:
            return found
        raise AssertionError("it never ends by itself")


def seen(messages: Iterable[SocketMessage]) -> list[tuple[int, bytes, int, str | None]]:
    return [(m.sequence, bytes(m), m.gap, m.topic_name) for m in messages]


STREAM: Final = b"".join(
    (
        HELLO,
        frame(b""),
        frame(encode(Record(RecordType.STATE, b"{}")) + topic(3, "ä@trade")),
        PING,
        frame(message(0, b"") + message(1, b"one", topic=3) + message(2, b"2" * 70)),
        frame(message(3, b"begins")[:40], fin=False),
        PING,
        frame(message(3, b"begins")[40:], CONTINUATION, fin=False),
        frame(b"", CONTINUATION, fin=False),
        frame(encode(Record(RecordType.GAP, gap=2, sequence=6)), CONTINUATION),
        frame(encode(Record(200, b"of a later version"))),
        b"\x8a\x00",
        frame(message(7, b"last", gap=1)),
        b"\x88\x02\x03\xe8",
    )
)
EXPECTED: Final = [
    (0, b"", 0, None),
    (1, b"one", 0, "ä@trade"),
    (2, b"2" * 70, 0, None),
    (3, b"begins", 0, None),
    (7, b"last", 3, None),
]


def check(receiver: Fed) -> None:
    assert seen(receiver.rest()) == EXPECTED
    assert receiver.records == [RecordType.HELLO, RecordType.STATE, 200]
    assert receiver.controls == [(9, b"hi"), (9, b"hi"), (10, b""), (8, b"\x03\xe8")]
    assert (receiver.cursor, receiver.lost) == (8, 3)


def test_a_stream_may_be_cut_anywhere() -> None:
    for cut in range(len(STREAM)):
        check(Fed([STREAM[:cut], STREAM[cut:]]))


def test_a_stream_may_come_byte_by_byte() -> None:
    check(Fed(bytes([byte]) for byte in STREAM))


def test_messages_that_are_kept_stay_as_they_are() -> None:
    """Through many chunks, with records that are longer than one, in random pieces."""
    dice = random.Random(1)
    payloads = [
        dice.randbytes(dice.choice((0, 1, 64, 5000, 300_000, MAX_MESSAGE))) for _ in range(60)
    ]
    stream = HELLO + b"".join(frame(message(n, each)) for n, each in enumerate(payloads))
    sizes = iter(lambda: dice.choice((1, 100, 70_000, CHUNK, 1 << 20)), 0)
    pieces = []
    while stream:
        size = next(sizes)
        pieces.append(stream[:size])
        stream = stream[size:]
    messages = Fed(pieces).rest()
    views = [each.payload for each in messages[::2]]
    assert [bytes(each) for each in messages] == payloads
    del messages
    assert [bytes(view) for view in views] == payloads[::2]
    assert all(view.readonly for view in views)


def test_a_message_has_what_its_record_has() -> None:
    record = message(5, "ä".encode(), kind=1, time_ns=2**63, key=2**64 - 1, topic=9, epoch=4, gap=1)
    (found,) = Fed([HELLO, frame(record)]).rest()
    assert (found.sequence, found.kind, found.time_ns, found.key) == (
        5,
        shm.Kind.TEXT,
        2**63,
        2**64 - 1,
    )
    assert (found.topic, found.topic_name, found.epoch, found.gap) == (9, None, 4, 1)
    assert (len(found), bool(found), found.text(), bytes(found)) == (2, True, "ä", "ä".encode())
    assert found.payload.tobytes() == memoryview(found).tobytes() == "ä".encode()


def test_events_are_handed_out_to_who_wants_them() -> None:
    stream = [HELLO, frame(message(0, b"{}", kind=shm.Kind.EVENT, gap=1) + message(1, b"x"))]
    assert seen(Fed(stream).rest()) == [(1, b"x", 1, None)]
    assert [each.kind for each in Fed(stream, events=True).rest()] == [16, shm.Kind.BINARY]


def test_a_message_that_came_already_is_passed_over() -> None:
    again = frame(message(0, b"a") + message(1, b"b") + message(0, b"a") + message(2, b"c"))
    assert [each.sequence for each in Fed([HELLO, again]).rest()] == [0, 1, 2]


def test_many_at_once() -> None:
    records = b"".join(message(n, struct.pack("<q", n), topic=n % 3, gap=n % 2) for n in range(100))
    receiver = Fed([HELLO, frame(records)])
    assert len(receiver.read_available(limit=10)) == 10
    batch = receiver._batch(50)
    assert (len(batch), batch.first, batch.gap) == (50, 10, 0)
    rows = batch.descriptors
    assert rows["sequence"].tolist() == list(range(10, 60))
    assert rows["topic"].tolist() == [n % 3 for n in range(10, 60)]
    assert rows["gap"].tolist() == [n % 2 for n in range(10, 60)]
    assert {"length", "time_ns", "key", "kind", "epoch"} <= set(rows.dtype.names or ())
    assert batch.payload(-1) == struct.pack("<q", 59)
    assert batch.records(np.int64).tolist() == list(range(10, 60))
    with pytest.raises(ValueError, match="4 bytes"):
        batch.records(np.int32)
    with pytest.raises(IndexError):
        batch.payload(50)
    assert len(receiver.rest()) == 40
    with receiver._batch(1) as empty, pytest.raises(IndexError):
        empty.payload(0)


def test_the_newest_of_a_topic() -> None:
    names = frame(topic(1, "a") + topic(2, "b"))
    first = frame(
        message(0, b"a0", topic=1) + message(1, b"b1", topic=2) + message(2, b"a2", topic=1)
    )
    much = [frame(message(n, b"x" * 60_000)) for n in range(3, 20)]
    receiver = Fed([HELLO, names, first, *much, frame(message(20, b"a20", topic=1))])
    next(receiver)
    assert bytes(receiver.latest("a") or b"") == b"a0"
    assert receiver.latest("b") is None
    receiver.read_available(20)
    assert [bytes(receiver.latest(name) or b"") for name in "ab"] == [b"a2", b"b1"]
    receiver.rest()
    assert [bytes(receiver.latest(name) or b"") for name in "ab"] == [b"a20", b"b1"]
    assert receiver.latest("c") is None
    newest = receiver.latest("b")
    assert newest is not None
    assert (newest.sequence, newest.topic_name) == (1, "b")


def changed(record: bytes, at: int, value: int) -> bytes:
    return record[:at] + struct.pack("<I", value) + record[at + 4 :]


WRONG: Final = {
    "masked": (b"\x82\x81\0\0\0\0x", 1002),
    "reserved bits": (b"\xc2\x00", 1002),
    "an unknown frame": (b"\x83\x00", 1002),
    "an unknown control frame": (b"\x8b\x00", 1002),
    "a control frame in fragments": (b"\x09\x00", 1002),
    "a long control frame": (b"\x89\x7e\x00\x7e", 1002),
    "text": (frame(b"{}", 1), 1003),
    "a continuation of nothing": (frame(b"", CONTINUATION), 1002),
    "a message amid fragments": (frame(b"", fin=False) + frame(b""), 1002),
    "a frame of 8 EiB": (b"\x82\x7f" + b"\xff" * 8, 1009),
    "fragments without end": (
        frame(b"", fin=False) + frame(b"x" * MAX_MESSAGE, 0, fin=False) * 2,
        1009,
    ),
    "half a header": (frame(message(1, b"x")[:63]), 1002),
    "half a header in fragments": (frame(b"x", fin=False) + frame(b"x", CONTINUATION), 1002),
    "a record beyond its frame": (frame(message(1, b"xyz")[:-1]), 1002),
    "a later version": (frame(changed(message(1, b"x"), 60, 1)), 1002),
    "a part of a message": (frame(encode(Record(RecordType.MESSAGE, b"x", total=2))), 1002),
    "a wrong size": (frame(changed(message(1, b"x"), 48, 0)), 1002),
    "a topic beyond all": (frame(topic(2**32 - 1, "x")), 1002),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_gateway_sends(name: str) -> None:
    wrong, code = WRONG[name]
    receiver = Fed([HELLO + frame(message(0, b"right")) + wrong + frame(message(9, b"never"))])
    receiver._arrive(None)
    assert bytes(next(receiver)) == b"right"
    with pytest.raises(shm.RingCorrupt):
        next(receiver)
    assert receiver.code == code
    with pytest.raises(EOFError):
        next(receiver)


@pytest.mark.parametrize("record", [message(0, b"x"), topic(1, "a")], ids=["message", "topic"])
def test_hello_comes_first(record: bytes) -> None:
    receiver = Fed([frame(record)])
    with pytest.raises(shm.RingCorrupt, match="HELLO"):
        next(receiver)
    assert receiver.code == 1002
