"""The bytes before a payload are the frame header that the server sent, as long as it is held."""

from __future__ import annotations

import mmap
import random
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ringcast.broker.config import Config
from ringcast.broker.connection import DRAINED, FULL, MORE, Connection, Ingest, OpenSocket
from ringcast.broker.topics import Finder, Scanner
from ringcast.shm.broadcast import Batch, Reader, Writer
from tests.frames import BINARY, CONTINUATION, PING, PONG, TEXT, frame, header
from tests.unit.conftest import DATA_HEADER, data_path

HEADER_BITS = 0x000F
SLOTS = 64
LENGTHS = (0, 0, 1, 2, 40, 124, 125, 126, 127, 250)
LONG_LENGTHS = (0, 1, 125, 126, 65535, 65536, 65537)


class Sent(NamedTuple):
    """A message, and the header of the one frame that it was sent in, if it was."""

    header: bytes
    payload: bytes


def frames(payload: bytes, dice: random.Random) -> tuple[Sent, bytes]:
    """The message as it is to be in the ring, and on the wire: in one frame or in fragments, with
    control frames around and between."""
    opcode = dice.choice((TEXT, BINARY))
    wire = frame(PING, bytes(dice.randrange(9))) if dice.randrange(4) == 0 else b""
    if dice.randrange(4):
        return Sent(header(opcode, len(payload)), payload), wire + frame(opcode, payload)
    cut = dice.randrange(len(payload) + 1)
    wire += frame(opcode, payload[:cut], fin=False)
    wire += frame(PONG, b"\x81\x00") if dice.randrange(2) else b""
    return Sent(b"", payload), wire + frame(CONTINUATION, payload[cut:])


def stream(lengths: tuple[int, ...], count: int, dice: random.Random) -> tuple[list[Sent], bytes]:
    letters = b"abcdefgh" * (max(lengths) // 8 + 2)
    made = []
    for number in range(count):
        start, length = number % 8, dice.choice(lengths)
        made.append(frames(letters[start : start + length], dice))
    return [message for message, _ in made], b"".join(wire for _, wire in made)


class Line:
    """A ring that receives from the test, and its bytes."""

    def __init__(self, writer: Writer, finder: Finder | None = None) -> None:
        self.server, client = socket.socketpair()
        client.setblocking(False)
        self.names: list[bytes] = []
        self.ingest = Ingest(writer, finder)
        self.connection = Connection(
            OpenSocket(client, None),
            self.ingest,
            1,
            Config(name="headers", url="ws://127.0.0.1/"),
            lambda: None,
            resolve_name=self.resolve,
            control_received=lambda _message: (0, False),
        )
        self.capacity = writer.capacity
        self.arena = DATA_HEADER + 64 * SLOTS
        with data_path(writer.name).open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def resolve(self, name: bytes) -> tuple[int, int]:
        self.names.append(name)
        return len(self.names), 1

    def turn(self) -> int:
        """Receive what is there; FULL or DRAINED."""
        while (outcome := self.connection.turn(reading=True, ready=True)) == MORE:
            pass
        return outcome

    def look(self, batch: Batch) -> list[Sent]:
        """What stands in the ring, each payload with the bytes of its header before it."""
        found = []
        for i, row in enumerate(batch.descriptors.copy()):
            size = int(row["flags"])
            assert size & ~HEADER_BITS == 0
            offset = int(row["position"]) % self.capacity
            assert size <= offset
            start = self.arena + offset - size
            found.append(Sent(self.bytes[start : start + size], bytes(batch.payload(i))))
            if not size and not found[-1].payload and offset < 2:
                found[-1] = Sent(ANY_HEADER, b"")  # the arena may end between the two
        return found

    def close(self) -> None:
        self.bytes.close()
        self.connection.finish()
        self.server.close()


ANY_HEADER = b"any"


def check(found: list[Sent], sent: list[Sent]) -> None:
    """All that was sent stands there, with its header."""
    assert len(found) == len(sent)
    for one, other in zip(found, sent, strict=True):
        assert one.payload == other.payload
        assert one.header in (other.header, ANY_HEADER)


def pass_through(
    line: Line, reader: Reader, wire: bytes, most: int, dice: random.Random
) -> tuple[list[Sent], int]:
    """Send it all in pieces of `most` bytes or fewer. Returns what the reader found, looked at
    before and after the ring was filled behind it, and how often it was full."""
    found, fulls, at = [], 0, 0
    while at < len(wire) or reader.lag or line.ingest.partial:
        size = dice.randint(1, most)
        line.server.sendall(wire[at : at + size])
        at += size
        while line.turn() == FULL or at >= len(wire) or dice.randrange(8) == 0:
            with reader.batch(dice.randint(1, 16), timeout=0) as batch:
                if not len(batch):
                    break
                before = line.look(batch)
                fulls += line.turn() == FULL
                assert line.look(batch) == before
                found += before
    return found, fulls


@pytest.fixture
def ring(name: str) -> Iterator[Writer]:
    with Writer.create(name, slots=SLOTS, capacity=1024, max_readers=2) as writer:
        yield writer


@pytest.mark.parametrize("most", [1, 3, 100, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_headers_stand_before_payloads(ring: Writer, seed: int, most: int) -> None:
    """Whatever the pieces, around the arena's end again and again, and while they are held."""
    dice = random.Random(seed * 10000 + most)
    sent, wire = stream(LENGTHS, 120 if most == 1 else 400, dice)
    line = Line(ring)
    with Reader.attach(ring.name) as reader:
        found, fulls = pass_through(line, reader, wire, most, dice)
    line.close()
    check(found, sent)
    assert fulls or most < 100
    assert {len(one.header) for one in found} >= {0, 2, 4}


def test_long_headers(name: str) -> None:
    """Ten bytes, of payloads of 65,536 bytes or more."""
    dice = random.Random(10)
    sent, wire = stream(LONG_LENGTHS, 60, dice)
    with Writer.create(name, slots=SLOTS, capacity=1 << 19, max_readers=2) as writer:
        line = Line(writer)
        with Reader.attach(name) as reader:
            found, _ = pass_through(line, reader, wire, 50000, dice)
        line.close()
    check(found, sent)
    assert {len(one.header) for one in found} >= {0, 2, 4, 10}


def test_a_message_that_waits_keeps_its_header(ring: Writer) -> None:
    """For room, for its name, or for the manager."""
    dice = random.Random(3)
    payloads = [b'{"s":"%d"}' % n for n in range(40)] + [b'{"event":1}', b"", b'{"s":"1"}'] * 20
    made = [frames(payload, dice) for payload in payloads]
    line = Line(ring, Scanner(["{/s}"], control=["{/event}"], names_max=100))
    with Reader.attach(ring.name) as reader:
        wire = b"".join(wire for _, wire in made)
        found, fulls = pass_through(line, reader, wire, 700, dice)
    line.close()
    check(found, [message for message, _ in made])
    assert fulls
    assert len(line.names) == 40


def test_control_frames_are_never_part_of_it(ring: Writer) -> None:
    wire = frame(PING, b"12") + frame(TEXT, b"one") + frame(PONG, b"")
    wire += frame(BINARY, b"two")
    line = Line(ring)
    with Reader.attach(ring.name) as reader:
        line.server.sendall(wire)
        assert line.turn() == DRAINED
        with reader.batch(timeout=0) as batch:
            assert line.look(batch) == [Sent(b"\x81\x03", b"one"), Sent(b"\x82\x03", b"two")]
    line.close()


def test_what_comes_in_no_frame_has_no_header(ring: Writer) -> None:
    """Between messages that have one, too."""
    line = Line(ring)
    with Reader.attach(ring.name) as reader:
        line.server.sendall(frame(TEXT, b"framed"))
        assert line.turn() == DRAINED
        ring.publish(b"published")
        ring.publish_many([b"many"])
        with ring.reserve(8) as room:
            room.commit(8)
        line.server.sendall(frame(TEXT, b"framed"))
        assert line.turn() == DRAINED
        with reader.batch(timeout=0) as batch:
            assert batch.descriptors["flags"].tolist() == [2, 0, 0, 0, 2]
            assert line.look(batch)[4] == Sent(b"\x81\x06", b"framed")
    line.close()


def test_the_oldest_message_keeps_its_header(name: str) -> None:
    """Wherever the free bytes before it end: what is read next ends within it, too."""
    capacity = 1024
    oldest = Sent(header(TEXT, 200), b"o" * 200)
    for before in range(capacity // 8):  # as much as is read at once
        with Writer.create(name, slots=SLOTS, capacity=capacity, max_readers=1) as writer:
            line = Line(writer)
            line.server.sendall(frame(TEXT, b"b" * 125) * 4 + frame(TEXT, b"b" * before))
            assert line.turn() == DRAINED
            with Reader.attach(name) as reader:
                line.server.sendall(oldest.header + oldest.payload)
                line.server.sendall(frame(TEXT, b"a" * 100) * (capacity // 100))
                assert line.turn() == FULL
                with reader.batch(timeout=0) as batch:
                    assert line.look(batch)[0] == oldest
            line.close()
