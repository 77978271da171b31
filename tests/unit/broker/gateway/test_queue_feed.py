"""attach("mq:NAME/LABEL"): a worker that reads a queue, and sends through the one that goes up."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import ringcast
from ringcast import shm
from ringcast.broker.gateway.queues import QueueOptions, UplinkQueue
from ringcast.broker.worker.queue_feed import QueueFeed
from ringcast.broker.worker.wire import Hello, Record, RecordType, encode
from ringcast.shm import names
from ringcast.shm.broadcast import Reader, Writer
from ringcast.shm.queues import OwnedQueue, Queue
from tests.conftest import DEADLINE, Processes, eventually
from tests.unit.broker.reading import EVERY_WAY, STATE
from tests.unit.conftest import Background

from .conftest import INSTANCE, LABEL, SMALL, Gateway, new_writer


def attach(ring: str, **options: Any) -> QueueFeed:
    return cast(QueueFeed, ringcast.attach(f"mq:{ring}/{LABEL}", **options))


@pytest.fixture
def feed(gateway: Gateway) -> Iterator[QueueFeed]:
    """A worker at the gateway's queue."""
    with attach(gateway.reader.name) as feed:
        yield feed


def test_a_message_has_what_the_rings_has(
    mqueue: Path, ring: Writer, gateway: Gateway, feed: QueueFeed
) -> None:
    del mqueue
    with Reader.attach(ring.name, start="oldest") as reader:
        ring.publish("ä".encode(), topic=ring.topic("btcusdt@trade"), kind=shm.Kind.TEXT, key=7)
        ring.publish(b"", topic=0)
        gateway.pass_on()
        for expected in reader.read_available():
            found = feed.read(timeout=0)
            assert found is not None
            for field in (
                *("sequence", "topic", "topic_name", "kind", "time_ns", "gap", "epoch", "key"),
                "payload",
            ):
                assert getattr(found, field) == getattr(expected, field), field
            assert bytes(found) == bytes(expected)
            assert (len(found), found.text(), bool(found)) == (len(expected), expected.text(), True)
            assert isinstance(found.kind, shm.Kind)
            assert found.payload.readonly
        del expected
    assert feed.read(timeout=0) is None
    assert feed.cursor == 2


@pytest.mark.parametrize("take", EVERY_WAY, ids=lambda way: way.__name__)
def test_every_way_of_reading_gets_all_and_ends(
    take: Callable[[QueueFeed], list[bytes]], name: str
) -> None:
    rng = random.Random(8)
    sent = [rng.randbytes(rng.choice((0, 100, 1000, 3000))) for _ in range(200)]
    with Writer.create(name, slots=256, capacity=1 << 20) as ring, Reader.attach(name) as reader:
        writer = new_writer(name, reader, policy="block")
        with attach(name) as feed:
            taken = Background(lambda: take(feed))
            for payload in sent:
                ring.publish(payload, timeout=0)
            with reader.batch(timeout=0) as batch:
                offer_all(writer, batch)
            eventually(writer.flush, "there is room for the last one")
            eventually(lambda: feed.cursor == 200, "all are read")
            writer.close("the end")
            assert taken.result() == sent
            assert feed.lost == 0
            with pytest.raises(shm.RingClosed, match="has ended: the end"):
                feed.read(timeout=0)


def offer_all(writer: Any, batch: Any) -> None:
    """As the gateway's loop does: again whenever there is room."""
    at = 0

    def all_taken() -> bool:
        nonlocal at
        at = writer.offer(batch, at)
        return bool(at == len(batch))

    eventually(all_taken, "the queue takes all")


@pytest.mark.parametrize("take", EVERY_WAY, ids=lambda way: way.__name__)
def test_a_queue_that_was_removed_without_a_word_ends(
    take: Callable[[QueueFeed], list[bytes]], ring: Writer, gateway: Gateway, feed: QueueFeed
) -> None:
    for _ in range(4):
        ring.publish(bytes(1500))
    gateway.pass_on()
    gateway.writer.close("it is full, so nobody reads this")
    assert take(feed) == [bytes(1500)] * 4
    with pytest.raises(shm.RingClosed, match="it was removed"):
        feed.read(timeout=0)


def test_gaps_and_what_is_lost(ring: Writer, gateway: Gateway, feed: QueueFeed) -> None:
    for _ in range(7):
        ring.publish(bytes(1500))
    gateway.pass_on()
    assert [m.gap for m in feed.read_available()] == [0] * 4
    assert gateway.writer.flush()  # GAP
    assert feed.read(timeout=0) is None
    assert (feed.lost, feed.cursor) == (3, 7)
    ring.publish(b"next")
    gateway.pass_on()
    (message,) = feed.read_available()
    assert (message.sequence, message.gap, feed.lost) == (7, 3, 3)


def test_events_are_passed_over_or_handed_out(ring: Writer, gateway: Gateway) -> None:
    for events, expected in ((False, [b"a", b"b"]), (True, [b"a", b"{}", b"b"])):
        ring.publish(b"a")
        ring.publish(b"{}", kind=shm.Kind.EVENT)
        ring.publish(b"b")
        gateway.pass_on()
        with attach(ring.name, events=events) as feed:
            found = feed.read_available()
            assert [bytes(message) for message in found] == expected
            assert {message.gap for message in found} == {0}


def test_state(gateway: Gateway, feed: QueueFeed) -> None:
    with pytest.raises(shm.RingError, match="no state of the connection has come"):
        feed.state  # noqa: B018
    gateway.writer.say(Record(RecordType.STATE, STATE.encode()))
    feed.read(timeout=0)
    assert feed.state == STATE


def test_a_gateway_that_died_and_the_next(ring: Writer, gateway: Gateway, feed: QueueFeed) -> None:
    """The reader has no message twice and misses none, though the last note was not written."""
    for n in range(3):
        ring.publish(b"%d" % n)
    gateway.pass_on()
    gateway.writer.abandon()
    path = Path(f"/dev/shm/rc.{ring.name}.q.{LABEL}")
    marker = bytearray(path.read_bytes())
    marker[40:48] = (2).to_bytes(8, "little")  # only the first message was noted
    path.write_bytes(marker)
    writer = new_writer(ring.name, gateway.reader)
    assert writer.next_sequence == 1
    ring.publish(b"3")
    with Reader.attach(ring.name, start=1) as reader:
        Gateway(reader, writer).pass_on()
    assert [bytes(message) for message in feed.read_available()] == [b"0", b"1", b"2", b"3"]
    assert feed.lost == 0
    writer.close("over")


def test_a_reader_that_died_and_the_next(ring: Writer, gateway: Gateway) -> None:
    """What the first took out is gone; the parts of a message that it had the first of count as
    lost."""
    ring.publish(b"first", topic=ring.topic("t"))
    ring.publish(bytes(5000))
    ring.publish(b"last", topic=ring.topic("t"))
    gateway.pass_on()
    first = attach(ring.name)
    assert first.read(timeout=0) is not None
    assert first.read(timeout=0) is not None
    first.close()
    gateway.pass_on()
    ring.publish(bytes(5000))
    ring.publish(b"after", topic=ring.topic("t"))
    gateway.pass_on()
    queue = Queue.open_to_read(names.queue_name(ring.name, LABEL))
    while (data := queue.try_receive()) is not None and len(data) != SMALL:
        pass
    queue.close()
    with attach(ring.name) as second:
        (message,) = second.read_available()
        assert (bytes(message), message.topic_name, message.gap) == (b"after", "t", 1)
        assert second.lost == 1


# ---- what a queue can't do -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"topics": ["a"]}, "topics"),
        ({"start": "oldest"}, "start"),
        ({"group": "g", "balance": "key"}, "group and no balance"),
        ({"policy": "lossy"}, "policy"),
        ({"timeout": 1}, "timeout"),
        ({"wait": shm.BusySpin()}, "wait"),
    ],
)
def test_arguments_that_a_queue_has_no_use_for(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=f"a message queue has no {what}: it passes on"):
        attach("md", **options)


@pytest.mark.parametrize("method", ["subscribe", "topics", "latest", "batch", "flush"])
def test_methods_that_a_queue_can_not_have(feed: QueueFeed, method: str) -> None:
    with pytest.raises(AttributeError, match=f"a message queue has no {method}: it passes on"):
        getattr(feed, method)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        feed.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", ["mq:md", "mq:", "mq:md/", "mq:/a", "mq:md/A", "mq:md/a/b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"names no queue|can't name a"):
        ringcast.attach(name)


def test_there_is_no_such_queue(name: str) -> None:
    with pytest.raises(shm.RingNotFound, match="start `ringcast gateway` with --queue"):
        attach(name)


def test_a_queue_has_one_reader(feed: QueueFeed) -> None:
    with pytest.raises(shm.RingExists, match="has a reader already"):
        attach(feed.name)


def test_a_closed_feed(feed: QueueFeed) -> None:
    feed.close()
    feed.close()
    assert feed.closed
    for call in (feed.read, feed.read_available, feed.fileno, lambda: list(feed)):
        with pytest.raises(shm.RingClosed, match="closed"):
            call()
    with pytest.raises(shm.RingClosed, match="closed"):
        feed.send("x")


def test_a_forked_child_attaches_anew(feed: QueueFeed, processes: Processes) -> None:
    def child() -> None:
        with pytest.raises(shm.RingClosed, match="attach anew"):
            feed.read(timeout=0)
        with pytest.raises(shm.RingClosed, match="attach anew"):
            feed.send("x")
        feed.close()

    processes.start(child)
    processes.join()
    assert feed.read(timeout=0) is None


@pytest.mark.parametrize(
    ("data", "error", "why"),
    [
        (b"rubbish", shm.RingCorrupt, "what no gateway puts in: the record at byte 0 is truncated"),
        (encode(Record(RecordType.HELLO, b"{}")), shm.LayoutMismatch, "HELLO can't be read"),
        (
            encode(Record(RecordType.HELLO, Hello("md", 1, 8, 8, 8, version=2).encode())),
            shm.LayoutMismatch,
            "speaks version 2",
        ),
    ],
)
def test_what_no_gateway_of_this_version_puts_in(
    name: str, data: bytes, error: type[Exception], why: str
) -> None:
    queue = OwnedQueue.claim(names.queue_name(name, LABEL), instance=1)
    with attach(name) as feed:
        queue.try_send(encode(Record(1000, b"a later version's")))
        assert feed.read(timeout=0) is None
        queue.try_send(data)
        with pytest.raises(error, match=why):
            feed.read(timeout=0)
        queue.try_send(encode(Record(RecordType.MESSAGE, b"good")))
        assert feed.read(timeout=0) is not None
    queue.remove()


# ---- sending -------------------------------------------------------------------------------


@pytest.fixture
def uplink(mqueue: Path, ring: Writer) -> Iterator[UplinkQueue]:
    """The gateway's end of what goes up."""
    del mqueue
    uplink = UplinkQueue.create(
        ring.name,
        instance=INSTANCE,
        max_message=ring.max_message,
        options=QueueOptions(depth=4, message_size=SMALL),
    )
    yield uplink
    uplink.close()


Sent = list[tuple[bytes, shm.Kind]]


def drained(uplink: UplinkQueue, count: int) -> Sent:
    """So many messages."""
    sent: Sent = []

    def send(payload: bytes, kind: shm.Kind) -> bool:
        sent.append((payload, kind))
        return True

    def enough() -> bool:
        uplink.drain(send)
        return len(sent) >= count

    eventually(enough, f"{count} messages come up")
    return sent


def test_send(uplink: UplinkQueue, gateway: Gateway, feed: QueueFeed) -> None:
    del gateway
    long = os.urandom(5 * SMALL)

    def send_all() -> None:
        for payload in ("ä", "", b"", b"\0", long, memoryview(b"abc")):
            feed.send(payload)

    sending = Background(send_all)
    assert drained(uplink, 6) == [
        ("ä".encode(), shm.Kind.TEXT),
        (b"", shm.Kind.TEXT),
        (b"", shm.Kind.BINARY),
        (b"\0", shm.Kind.BINARY),
        (long, shm.Kind.BINARY),
        (b"abc", shm.Kind.BINARY),
    ]
    sending.result()
    assert uplink.dropped == 0
    feed.send(b"text", kind="text")
    assert drained(uplink, 1) == [(b"text", shm.Kind.TEXT)]


def test_asend(uplink: UplinkQueue, gateway: Gateway, feed: QueueFeed) -> None:
    del gateway
    payloads = [os.urandom(size) for size in (10, 3 * SMALL, 7, 4 * SMALL)]

    async def main() -> None:
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(feed.asend(payload) for payload in payloads))

    sending = Background(lambda: asyncio.run(main()))
    assert sorted(p for p, _ in drained(uplink, 4)) == sorted(payloads)
    sending.result()
    assert uplink.dropped == 0


def test_no_room(uplink: UplinkQueue, gateway: Gateway, feed: QueueFeed) -> None:
    del gateway
    for _ in range(4):
        feed.send("x", timeout=0)
    with pytest.raises(shm.RingFull, match="had no room in time"):
        feed.send("x", timeout=0)
    with pytest.raises(shm.RingFull, match="had no room in time"):
        asyncio.run(feed.asend("x", timeout=0))
    with pytest.raises(shm.RingFull):
        feed.send(bytes(3 * SMALL), timeout=0.01)
    assert len(drained(uplink, 4)) == 4


def test_what_can_not_be_sent(uplink: UplinkQueue, gateway: Gateway, feed: QueueFeed) -> None:
    del uplink
    hello = Hello(feed.name, INSTANCE, 256, 1 << 16, 100)
    gateway.writer.say(Record(RecordType.HELLO, hello.encode()))
    assert feed.read(timeout=0) is None
    with pytest.raises(shm.MessageTooLarge, match="101 bytes is longer than the 100"):
        feed.send(bytes(101))
    with pytest.raises(ValueError, match='"text" or "binary"'):
        feed.send(b"", kind=shm.Kind.EVENT)
    with pytest.raises(UnicodeDecodeError):
        feed.send(b"\xff", kind="text")


def test_nobody_takes_what_goes_up(feed: QueueFeed) -> None:
    with pytest.raises(shm.RingNotFound, match="there is no message queue"):
        feed.send("x")


def test_a_gateway_that_ends_while_a_worker_waits_for_room(
    uplink: UplinkQueue, gateway: Gateway, feed: QueueFeed
) -> None:
    del gateway
    for _ in range(4):
        feed.send("x")
    waiting = Background(lambda: feed.send("x"))
    uplink.close()
    with pytest.raises(shm.RingClosed, match="was removed: the gateway has ended"):
        waiting.result()
