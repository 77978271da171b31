"""Topics where frames are decoded: every message once, in order, with its topic."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from ringcast.broker.config import Config
from ringcast.broker.connection import DRAINED, FULL, MORE, Connection, Ingest, OpenSocket
from ringcast.broker.topics import Finder, FunctionScanner, Scanner
from ringcast.shm import hash_key
from ringcast.shm.broadcast import Reader, Writer
from tests.frames import BINARY, CONTINUATION, PING, PONG, TEXT, frame


class Expected(NamedTuple):
    """A message as it should be in the ring."""

    payload: bytes
    topic: int
    key: int


class Names:
    """Gives each new name the next topic, and remembers what it was asked and told."""

    def __init__(self) -> None:
        self.topics: dict[bytes, int] = {}
        self.control: list[bytes] = []

    def control_received(self, message: bytes) -> tuple[int, bool]:
        self.control.append(message)
        return 0, False

    def resolve(self, name: bytes) -> tuple[int, int]:
        assert name not in self.topics, "asked twice"
        self.topics[name] = len(self.topics) + 1
        return self.topics[name], hash_key(name)


class Line:
    """A connection whose server is the test."""

    def __init__(self, writer: Writer, finder: Finder | None) -> None:
        self.names = Names()
        self.server, client = socket.socketpair()
        client.setblocking(False)
        config = Config(name="topics", url="ws://127.0.0.1/")
        self.connection = Connection(
            OpenSocket(client, None),
            Ingest(writer, finder),
            1,
            config,
            lambda: None,
            resolve_name=self.names.resolve,
            control_received=self.names.control_received,
        )

    def turn(self) -> int:
        """Receive what is there; FULL or DRAINED."""
        while (outcome := self.connection.turn(reading=True, ready=True)) == MORE:
            pass
        return outcome

    def close(self) -> None:
        self.connection.finish()
        self.server.close()


def text_frame(payload: bytes) -> bytes:
    """A message as a server sends it."""
    return frame(TEXT, payload)


@pytest.fixture
def ring(name: str) -> Iterator[Writer]:
    with Writer.create(name, slots=16, capacity=1 << 14, max_readers=2) as writer:
        yield writer


def read(reader: Reader) -> list[Expected]:
    """Everything that is there."""
    found = []
    while True:
        with reader.batch(timeout=0) as batch:
            rows = batch.descriptors.copy()
            for i in range(len(rows)):
                topic, key = int(rows["topic"][i]), int(rows["key"][i])
                found.append(Expected(bytes(batch.payload(i)), topic, key))
            if not len(rows):
                return found


def market(seed: int, count: int) -> Iterator[bytes]:
    """Messages with few names, of all the kinds."""
    dice = random.Random(seed)
    for number in range(count):
        padding = "p" * dice.choice([0, 0, 10, 200])
        kind = dice.randrange(10)
        fields: dict[str, Any] = {"n": number, "padding": padding}
        if kind == 0:
            fields |= {"event": "bts:heartbeat"}
        elif kind == 1:
            fields |= {"s": "x" * 130}
        elif kind > 2:
            fields |= {"s": f"symbol{dice.randrange(12)}"}
        yield json.dumps(fields).encode() if dice.randrange(20) else b"pong"


def in_frames(messages: list[bytes], dice: random.Random) -> bytes:
    """The messages as text or binary, whole or in fragments, with pings between."""
    stream = b""
    for message in messages:
        opcode = dice.choice([TEXT, BINARY])
        if dice.randrange(4) == 0:
            cut = dice.randrange(len(message))
            stream += frame(opcode, message[:cut], fin=False)
            stream += frame(PING, b"ping") if dice.randrange(2) else b""
            stream += frame(CONTINUATION, message[cut:])
        else:
            stream += frame(opcode, message)
        if dice.randrange(10) == 0:
            stream += frame(PONG, b"pong")
    return stream


def expected(message: bytes, names: Names) -> Expected:
    """What a message should be, once all names were given topics."""
    fields = json.loads(message) if message.startswith(b"{") else {}
    name = fields.get("s", "").encode()
    is_known = name in names.topics
    return Expected(message, names.topics.get(name, 0), hash_key(name) if is_known else 0)


@pytest.mark.parametrize("seed", range(6))
def test_every_message_once_in_order_with_its_topic(ring: Writer, seed: int) -> None:
    """Odd chunks, fragments, a ring that is full again and again, more names than the map has."""
    dice = random.Random(seed)
    messages = list(market(seed, 400))
    scanner = Scanner(["{/s}"], control=["{/event}=bts:*"], names_max=9)
    line = Line(ring, scanner)
    reader = Reader.attach(ring.name)
    stream, fulls = in_frames(messages, dice), 0
    found: list[Expected] = []
    try:
        while stream or len(found) < len(messages):
            size = dice.choice([1, 7, 100, 2000, 5000])
            line.server.sendall(stream[:size])
            stream = stream[size:]
            while line.turn() == FULL:
                fulls += 1
                found += read(reader)
            if dice.randrange(3) == 0 or not stream:
                found += read(reader)
    finally:
        line.close()
        reader.close()
    assert found == [expected(message, line.names) for message in messages]
    assert line.names.control == [message for message in messages if b'"event"' in message]
    assert len(line.names.topics) == 9
    assert fulls
    without = [m for m in messages if b'"event"' not in m and b'"s"' not in m]
    assert scanner.unnamed == len(without)
    assert scanner.unusable == sum(b"x" * 130 in m and b'"s"' in m for m in messages)
    assert scanner.overflowed == sum(b"symbol" in m for m in messages) - sum(
        bool(one.topic) for one in found
    )


def test_messages_that_found_no_room_are_handed_over_once(ring: Writer) -> None:
    """The ring is full before a control message, which the manager gets all the same, and before a
    new name."""
    scanner = Scanner(["{/s}"], control=["{/event}"], names_max=4)
    line = Line(ring, scanner)
    reader = Reader.attach(ring.name)
    fill = [b'{"s":"fill"}'] * 16
    try:
        for last in (b'{"event":1}', b'{"s":"new"}', b'{"n":1}'):
            line.server.sendall(b"".join(map(text_frame, [*fill, last])))
            assert line.turn() == FULL
            assert line.turn() == FULL
            assert line.names.control == [b'{"event":1}']  # it need not wait for room
            assert [one.payload for one in read(reader)] == fill
            assert line.turn() == DRAINED
            assert [one.payload for one in read(reader)] == [last]
    finally:
        line.close()
        reader.close()
    assert line.names.control == [b'{"event":1}']
    assert list(line.names.topics) == [b"fill", b"new"]
    assert scanner.unnamed == 1


def test_what_was_received_is_published_with_topics_at_the_end(ring: Writer) -> None:
    line = Line(ring, Scanner(["{/s}"], control=["{/event}"], names_max=4))
    reader = Reader.attach(ring.name)
    messages = [b'{"s":"a"}'] * 16 + [b'{"event":1}', b'{"s":"b"}', b'{"s":"a"}', b'{"event":2}']
    try:
        line.server.sendall(b"".join(map(text_frame, messages)))
        assert line.turn() == FULL
        assert not line.connection.publish_received()
        found = read(reader)
        assert line.connection.publish_received()
        found += read(reader)
    finally:
        line.close()
        reader.close()
    assert [one.payload for one in found] == messages
    assert [one.topic for one in found] == [1] * 16 + [0, 2, 1, 0]
    assert line.names.control == [b'{"event":1}', b'{"event":2}']


def test_a_function_is_called_once_for_each_message(ring: Writer) -> None:
    calls: list[bytes] = []

    def function(payload: memoryview) -> str | None:
        calls.append(bytes(payload))
        if calls[-1] == b"bad":
            raise ValueError("no topic in it")
        return calls[-1].decode() or None

    scanner = FunctionScanner(function, names_max=4)
    line = Line(ring, scanner)
    reader = Reader.attach(ring.name)
    messages = [b"a", b"b", b"", b"bad", *[b"a"] * 16, b"c"]
    try:
        line.server.sendall(b"".join(frame(BINARY, message) for message in messages))
        assert line.turn() == FULL
        found = read(reader)
        assert line.turn() == DRAINED
        found += read(reader)
    finally:
        line.close()
        reader.close()
    assert calls == messages
    assert [one.topic for one in found] == [1, 2, 0, 0, *[1] * 16, 3]
    assert (scanner.failed, scanner.first_error) == (1, "ValueError: no topic in it")


def test_a_view_of_the_ring_that_a_function_kept_does_not_dangle(name: str) -> None:
    kept: list[memoryview] = []

    def function(payload: memoryview) -> None:
        kept.append(payload[:])

    with Writer.create(name, slots=16, capacity=1 << 14, max_readers=2) as writer:
        line = Line(writer, FunctionScanner(function, names_max=1))
        line.server.sendall(text_frame(b"payload"))
        assert line.turn() == DRAINED
        line.close()
    del line, writer
    assert len(kept[0]) == 7
    assert bytes(kept[0]) == b"payload"


def test_an_interrupted_function_loses_no_message(ring: Writer) -> None:
    interrupts = [True]

    def function(_payload: memoryview) -> str:
        if interrupts:
            interrupts.clear()
            raise KeyboardInterrupt
        return "x"

    line = Line(ring, FunctionScanner(function, names_max=1))
    reader = Reader.attach(ring.name)
    try:
        line.server.sendall(text_frame(b"first") + text_frame(b"second"))
        with pytest.raises(KeyboardInterrupt):
            line.turn()
        line.turn()
        assert [one.payload for one in read(reader)] == [b"first", b"second"]
    finally:
        line.close()
        reader.close()


def test_without_a_finder_there_are_no_topics(ring: Writer) -> None:
    line = Line(ring, None)
    reader = Reader.attach(ring.name)
    try:
        line.server.sendall(text_frame(b'{"s":"a"}'))
        assert line.turn() == DRAINED
        assert read(reader) == [Expected(b'{"s":"a"}', 0, 0)]
    finally:
        line.close()
        reader.close()


def test_a_connection_that_asks_nobody_has_no_topics(ring: Writer) -> None:
    server, client = socket.socketpair()
    client.setblocking(False)
    config = Config(name="topics", url="ws://127.0.0.1/")
    ingest = Ingest(ring, Scanner(["{/s}"], control=["{/event}"], names_max=2))
    connection = Connection(OpenSocket(client, None), ingest, 1, config, lambda: None)
    reader = Reader.attach(ring.name)
    try:
        server.sendall(
            text_frame(b'{"s":"a"}') + text_frame(b'{"event":1}') + text_frame(b'{"s":"a"}')
        )
        while connection.turn(reading=True, ready=True) == MORE:
            pass
        assert [one.topic for one in read(reader)] == [0, 0, 0]
    finally:
        connection.finish()
        server.close()
        reader.close()
