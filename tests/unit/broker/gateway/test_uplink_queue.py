"""The queue for what goes up: whole messages, parts, and rubbish."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from ringcast import shm
from ringcast.broker.gateway.queues import QueueOptions, UplinkQueue
from ringcast.broker.worker.wire import Record, RecordType, encode
from ringcast.shm import names
from ringcast.shm.broadcast import Writer
from ringcast.shm.queues import Queue

from .conftest import INSTANCE, SMALL

MAX_MESSAGE: Final = 100_000
TEXT: Final = shm.Kind.TEXT
BINARY: Final = shm.Kind.BINARY
Sent = list[tuple[bytes, shm.Kind]]


def new_uplink(ring: str) -> UplinkQueue:
    return UplinkQueue.create(
        ring,
        instance=INSTANCE,
        max_message=MAX_MESSAGE,
        options=QueueOptions(depth=10, message_size=SMALL),
    )


@pytest.fixture
def uplink(mqueue: Path, name: str) -> Iterator[UplinkQueue]:
    """A gateway's end; the queue is removed after."""
    del mqueue
    uplink = new_uplink(name)
    yield uplink
    uplink.close()


@pytest.fixture
def client(uplink: UplinkQueue, name: str) -> Iterator[Queue]:
    """A client's end."""
    del uplink
    client = Queue.open_to_write(names.upward_queue_name(name))
    yield client
    client.close()


def into(sent: Sent) -> Callable[[bytes, shm.Kind], bool]:
    """An uplink that takes everything."""

    def send(payload: bytes, kind: shm.Kind) -> bool:
        sent.append((payload, kind))
        return True

    return send


def parts(payload: bytes, key: int, sender: int = 9, size: int = SMALL - 64) -> list[bytes]:
    """Queue messages with the parts of a binary message."""
    return [
        encode(
            Record(
                RecordType.SEND,
                payload[at : at + size],
                kind=2,
                key=key,
                sequence=sender,
                total=len(payload),
                offset=at,
            )
        )
        for at in range(0, len(payload), size)
    ]


def text(data: bytes) -> bytes:
    return encode(Record(RecordType.SEND, data, kind=1))


def test_messages_come_in_their_order(uplink: UplinkQueue, client: Queue) -> None:
    sent: Sent = []
    assert uplink.drain(into(sent)) == 0
    assert client.try_send(text(b"") + text("ä".encode()))
    assert client.try_send(encode(Record(RecordType.SEND, b"\xff" * (SMALL - 64), kind=2)))
    assert client.try_send(b"")
    assert client.try_send(text(b"last"))
    assert uplink.drain(into(sent)) == 4
    assert sent == [
        (b"", TEXT),
        ("ä".encode(), TEXT),
        (b"\xff" * (SMALL - 64), BINARY),
        (b"last", TEXT),
    ]
    assert (uplink.received, uplink.dropped) == (4, 0)


def test_parts_are_joined_and_those_of_two_senders_are_not_mixed(
    uplink: UplinkQueue, client: Queue
) -> None:
    rng = random.Random(3)
    payloads = [rng.randbytes(size) for size in (SMALL * 3, SMALL * 4 + 7)]
    sent: Sent = []
    queues = [parts(payload, key=1, sender=n) for n, payload in enumerate(payloads)]
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        assert client.try_send(queue.pop(0))
        uplink.drain(into(sent))
    assert sorted(sent) == sorted((payload, BINARY) for payload in payloads)
    assert uplink.dropped == 0


def test_what_has_no_room_is_kept_and_nothing_more_is_taken(
    uplink: UplinkQueue, client: Queue
) -> None:
    for word in (b"a", b"b", b"c"):
        client.try_send(text(word) + text(word * 2))
    sent: Sent = []
    assert uplink.drain(lambda *_: False) == 0
    assert uplink.waiting
    assert uplink.drain(lambda *_: False) == 0
    assert uplink.received == 2
    assert uplink.drain(into(sent)) == 6
    assert [payload for payload, _ in sent] == [b"a", b"aa", b"b", b"bb", b"c", b"cc"]
    assert not uplink.waiting


def test_what_the_uplink_raises_comes_out_and_the_next_message_is_sent(
    uplink: UplinkQueue, client: Queue
) -> None:
    client.try_send(text(b"a") + text(b"b"))

    def rejects(*_message: object) -> bool:
        raise shm.SendRejected("there is no connection", 0)

    with pytest.raises(shm.SendRejected):
        uplink.drain(rejects)
    sent: Sent = []
    uplink.drain(into(sent))
    assert sent == [(b"b", TEXT)]


GOOD: Final = text(b"good")
WRONG: Final = {
    "no record": b"rubbish",
    "a truncated record": GOOD[:-1],
    "another type": encode(Record(RecordType.SUBSCRIBE, b"btcusdt@trade")),
    "an unknown type": encode(Record(1000, b"")),
    "an event": encode(Record(RecordType.SEND, b"{}", kind=16)),
    "text that is none": text(b"\xff"),
    "a message that is too long": encode(
        Record(RecordType.SEND, b"x", kind=2, total=MAX_MESSAGE + 1)
    ),
    "a part without those before it": parts(b"x" * 100, key=1, size=50)[1],
    "an empty part": encode(Record(RecordType.SEND, b"", kind=2, total=10)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_rubbish_is_counted_and_dropped(uplink: UplinkQueue, client: Queue, wrong: bytes) -> None:
    sent: Sent = []
    client.try_send(GOOD + wrong)
    client.try_send(GOOD)
    assert uplink.drain(into(sent)) == 2
    assert sent == [(b"good", TEXT)] * 2
    assert (uplink.received, uplink.dropped) == (2, 1)


def test_a_sender_that_begins_anew_or_died(uplink: UplinkQueue, client: Queue) -> None:
    """Messages that were never completed do not pile up."""
    sent: Sent = []
    for _ in range(2):
        client.try_send(parts(b"x" * 100, key=1, size=60)[0])
    for sender in range(100):
        client.try_send(parts(b"y" * 100, key=1, sender=10 + sender, size=60)[0])
        uplink.drain(into(sent))
    assert (sent, uplink.dropped) == ([], 1 + 101 - 64)
    client.try_send(parts(b"y" * 100, key=1, sender=109, size=60)[1])
    uplink.drain(into(sent))
    assert sent == [(b"y" * 100, BINARY)]


def test_random_bytes_never_crash(uplink: UplinkQueue, client: Queue) -> None:
    rng = random.Random(5)
    whole = b"".join(parts(b"z" * 900, key=1, size=300))
    sent: Sent = []
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        assert client.try_send(bytes(data[: rng.randrange(len(data) + 1)]))
        uplink.drain(into(sent))
    assert uplink.dropped > 0
    assert all(len(payload) <= MAX_MESSAGE for payload, _ in sent)


def test_the_next_gateway_drains_what_is_in_it(mqueue: Path, name: str) -> None:
    del mqueue
    first = new_uplink(name)
    with pytest.raises(shm.RingExists, match="belongs to a living process"):
        new_uplink(name)
    client = Queue.open_to_write(names.upward_queue_name(name))
    client.try_send(GOOD)
    first.abandon()
    second = new_uplink(name)
    sent: Sent = []
    second.drain(into(sent))
    assert sent == [(b"good", TEXT)]
    assert client.try_send(GOOD)
    second.close()
    assert client.unlinked
    client.close()


def test_a_ring_that_ends_takes_it_with_it(mqueue: Path, name: str) -> None:
    del mqueue
    with Writer.create(name, slots=8, capacity=1024):
        uplink = new_uplink(name)
    assert [entry for entry in shm.list_rings() if entry.name == name] == []
    uplink.close()
