"""attach("unix:/PATH") and attach("ws://HOST:PORT"): a worker at a gateway's socket, reading."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import ringcast
from ringcast import shm
from ringcast.broker.gateway.access import AccessRules
from ringcast.broker.gateway.server import GatewayOptions
from ringcast.broker.worker.socket_feed import SocketFeed
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, Processes
from tests.unit.conftest import Background

from .gateways import Command, attach, serving
from .manager import Authority, Script, answering, sending
from .manager import serving as server

SLOTS: Final = 4096
CAPACITY: Final = 1 << 20
PATIENT: Final = GatewayOptions(hold=DEADLINE)
HASTY: Final = GatewayOptions(close_timeout=0.05)


@pytest.fixture
def ring(name: str) -> Iterator[Writer]:
    """A ring, whose end is the fixture's."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY) as writer:
        yield writer


@pytest.fixture
def url(ring: Writer, tmp_path: Path) -> Iterator[str]:
    """Where a gateway of that ring listens."""
    with serving(ring.name, f"unix:{tmp_path}/gateway", options=PATIENT) as url:
        yield url


@pytest.fixture
def feed(url: str) -> Iterator[SocketFeed]:
    """A worker at that gateway."""
    with attach(url) as feed:
        yield feed


def take(feed: SocketFeed, count: int) -> list[bytes]:
    """The next messages."""
    found: list[bytes] = []
    while len(found) < count:
        message = feed.read(DEADLINE)
        assert message is not None, f"{len(found)} of {count} messages came"
        found.append(bytes(message))
    return found


# ---- reading -------------------------------------------------------------------------------


def test_a_message_has_what_the_rings_has(ring: Writer, feed: SocketFeed) -> None:
    with Reader.attach(ring.name, start="oldest") as reader:
        ring.publish("ä".encode(), topic=ring.topic("btcusdt@trade"), kind=shm.Kind.TEXT, key=7)
        ring.publish(b"", topic=0)
        ring.publish(os.urandom(ring.max_message))
        for expected in (reader.read(DEADLINE) for _ in range(3)):
            found = feed.read(DEADLINE)
            assert found is not None
            assert expected is not None
            for field in (
                *("sequence", "topic", "topic_name", "kind", "time_ns", "gap", "epoch", "key"),
                "payload",
            ):
                assert getattr(found, field) == getattr(expected, field), field
            assert (bytes(found), len(found)) == (bytes(expected), len(expected))
        del expected
    assert feed.read(timeout=0) is None
    assert feed.read(timeout=0.001) is None
    assert (feed.cursor, feed.lost, feed.name) == (3, 0, ring.name)
    assert (feed.max_message, feed.policy) == (ring.max_message, "block")


def iterate(feed: SocketFeed, count: int) -> list[bytes]:
    return [bytes(message) for _, message in zip(range(count), feed, strict=False)]


def available(feed: SocketFeed, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        found += map(bytes, feed.read_available(limit=count - len(found)))
    return found


def batches(feed: SocketFeed, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        with feed.batch(count - len(found), timeout=DEADLINE) as batch:
            payloads = [bytes(batch.payload(i)) for i in range(len(batch))]
            assert batch.descriptors["length"].tolist() == [len(each) for each in payloads]
            found += payloads
    return found


def asynchronously(feed: SocketFeed, count: int) -> list[bytes]:
    async def run() -> list[bytes]:
        found = []
        async for message in feed:
            found.append(bytes(message))
            if len(found) == count:
                break
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("read", [take, iterate, available, batches, asynchronously])
def test_each_way_of_reading(
    ring: Writer, feed: SocketFeed, read: Callable[[SocketFeed, int], list[bytes]]
) -> None:
    """More than the ring holds: the writer waits for the gateway, and that for the worker."""
    payloads = [os.urandom(n % 700) for n in range(3 * SLOTS)]
    writing = Background(lambda: [ring.publish(payload) for payload in payloads])
    assert read(feed, len(payloads)) == payloads
    writing.result()
    assert feed.batch(timeout=0.001).descriptors.size == 0
    assert feed.read_available() == []


def test_records_of_a_batch(ring: Writer, feed: SocketFeed) -> None:
    ring.publish_many([struct.pack("<q", n) for n in range(100)])
    found: list[int] = []
    while len(found) < 100:
        batch = feed.batch(timeout=DEADLINE)
        assert batch.first == len(found)
        found += batch.records(np.int64).tolist()
    assert found == list(range(100))


@pytest.mark.parametrize(("start", "first"), [("oldest", 2), (5, 5), (0, 2), ("latest", 10)])
def test_where_to_start(tmp_path: Path, name: str, start: str | int, first: int) -> None:
    with Writer.create(name, slots=8, capacity=1 << 12) as ring:
        ring.publish_many([b"%d" % n for n in range(10)])
        with serving(name, f"unix:{tmp_path}/g") as url, attach(url, start=start) as feed:
            ring.publish(b"10")
            message = feed.read(DEADLINE)
            assert message is not None
            assert message.sequence == first
            assert message.gap == feed.lost == (2 if start == 0 else 0)


def test_events_come_to_who_wants_them(ring: Writer, url: str, feed: SocketFeed) -> None:
    with attach(url, events=True) as watching:
        ring.publish(b"{}", kind=shm.Kind.EVENT)
        ring.publish(b"x")
        assert take(feed, 1) == [b"x"]
        assert take(watching, 2) == [b"{}", b"x"]
        assert (feed.cursor, feed.lost) == (2, 0)


def test_a_worker_that_is_too_slow_is_told_exactly(ring: Writer, url: str) -> None:
    """The socket, and half of the ring, hold less than what is published while nobody reads."""
    payload = b"x" * 200
    with attach(url, policy="lossy") as feed, Reader.attach(ring.name) as witness:
        for _ in range(8 * SLOTS):
            ring.publish(payload)
            del witness.read_available()[:]
        ring.publish(b"last")
        expected = 0
        gaps = []
        for message in feed:
            assert message.sequence == expected + message.gap
            expected = message.sequence + 1
            if message.gap:
                gaps.append(message.gap)
            if bytes(message) == b"last":
                break
        assert gaps
        assert feed.lost == sum(gaps)


# ---- topics --------------------------------------------------------------------------------


def test_choosing_topics(ring: Writer, url: str) -> None:
    a, b, c = (ring.topic(name) for name in ("a/1", "b", "c"))
    with attach(url, topics=["a*"], others=True) as feed:
        for topic in (a, b, 0, c):
            ring.publish(b"%d" % topic, topic=topic)
        assert take(feed, 2) == [b"%d" % a, b"0"]
        feed.subscribe("c", "d", timeout=DEADLINE)
        d = ring.topic("d")
        for topic in (b, c, d):
            ring.publish(b"%d" % topic, topic=topic)
        message = feed.read(DEADLINE)
        assert message is not None
        assert (message.topic, message.topic_name) == (c, "c")
        assert take(feed, 1) == [b"%d" % d]
        assert feed.subscriptions == ("a*", "c", "d")
        feed.unsubscribe("a*", "c")
        feed.subscribe("b", timeout=DEADLINE)  # what was sent before has been done by then
        for topic in (a, c, b):
            ring.publish(b"%d" % topic, topic=topic)
        assert take(feed, 1) == [b"%d" % b]
        assert [(row.topic, row.name) for row in feed.topics] == [
            (a, "a/1"),
            (b, "b"),
            (c, "c"),
            (d, "d"),
        ]
        newest = feed.latest("c")
        assert newest is not None
        assert newest.sequence == 5
        assert feed.lost == 0


def test_what_can_not_be_chosen(url: str, feed: SocketFeed) -> None:
    with pytest.raises(ValueError, match="every topic"):
        feed.subscribe("a")
    with attach(url, topics=[], timeout=DEADLINE) as choosing:
        with pytest.raises(ValueError, match="comma"):
            choosing.subscribe("a,b")
        with pytest.raises(ValueError, match="over a socket: snapshot"):
            choosing.subscribe("a", snapshot=True)
        with pytest.raises(ValueError, match="patterns"):
            choosing.subscribe(*(f"{n:0100}" for n in range(100)))
        assert choosing.subscriptions == ()


# ---- threads, tasks, forks -----------------------------------------------------------------


def test_threads_share_a_feed(ring: Writer, feed: SocketFeed) -> None:
    count = 20_000
    found: list[list[int]] = [[] for _ in range(4)]

    def read(into: list[int]) -> None:
        for message in feed:
            if len(message) == 0:
                return
            into.append(message.sequence)

    readers = [Background(partial(read, into)) for into in found]
    for _ in range(count):
        ring.publish(b"x")
    for _ in readers:
        ring.publish(b"")
    for reader in readers:
        reader.result()
    assert sorted(itertools.chain(*found)) == list(range(count))
    assert all(each == sorted(each) for each in found)


def test_closing_wakes_who_waits(feed: SocketFeed) -> None:
    errors: list[BaseException] = []

    def read() -> None:
        try:
            feed.read()
        except shm.RingClosed as error:
            errors.append(error)

    waiting = [Background(read) for _ in range(2)]
    feed.read(0.01)  # they wait by then, one for the socket, the other for that one
    feed.close()
    for each in waiting:
        each.result()
    assert len(errors) == 2
    feed.close()
    assert feed.closed
    with pytest.raises(shm.RingClosed):
        next(feed)
    with pytest.raises(shm.RingClosed):
        feed.send("x")


def test_tasks_share_a_feed(ring: Writer, feed: SocketFeed) -> None:
    count = 1000

    async def read(into: list[int]) -> None:
        async for message in feed:
            into.append(message.sequence)

    async def run() -> None:
        found: list[int] = []
        tasks = [asyncio.create_task(read(found)) for _ in range(3)]
        await asyncio.sleep(0)
        for n in range(count):
            ring.publish(b"x")
            if n % 100 == 0:
                await asyncio.sleep(0.001)
        tasks[0].cancel()
        async with asyncio.timeout(DEADLINE):
            while len(found) < count:
                await asyncio.sleep(0.001)
        feed.close()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(found) == list(range(count))
        assert isinstance(ends[0], asyncio.CancelledError)
        assert all(isinstance(end, shm.RingClosed) for end in ends[1:])

    asyncio.run(run())


def test_a_signal_interrupts_a_wait(feed: SocketFeed) -> None:
    class Rang(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rang

    before = signal.signal(signal.SIGUSR1, ring)
    main = threading.get_ident()
    try:
        threading.Timer(0.01, signal.pthread_kill, args=(main, signal.SIGUSR1)).start()
        with pytest.raises(Rang):
            feed.read()
    finally:
        signal.signal(signal.SIGUSR1, before)


def in_child(feed: SocketFeed) -> None:
    for use in (feed.read, lambda: feed.send("x"), lambda: feed.state, lambda: next(feed)):
        with pytest.raises(shm.RingClosed, match="parent"):
            use()
    feed.close()


def test_a_child_does_not_use_its_parents_feed(
    ring: Writer, feed: SocketFeed, processes: Processes
) -> None:
    ring.publish_many([b"1", b"2"])
    assert take(feed, 1) == [b"1"]
    processes.start(in_child, feed)
    processes.join()
    ring.publish(b"3")
    assert take(feed, 2) == [b"2", b"3"]


# ---- coming back ---------------------------------------------------------------------------


def test_a_gateway_that_is_killed_costs_nothing_that_the_ring_holds(
    name: str, tmp_path: Path
) -> None:
    listen, count = f"unix:{tmp_path}/g", 60_000
    with Writer.create(name, slots=1 << 16, capacity=1 << 24) as ring:
        gateway = Command(name, listen)
        try:
            with attach(listen) as feed:
                kills = {10_000}

                def publish() -> None:
                    for n in range(count):
                        ring.publish(b"%d" % n)
                        if n % 100 == 0:
                            time.sleep(0.0005)

                writing = Background(publish)
                for expected in range(count):
                    message = feed.read(DEADLINE)
                    assert message is not None
                    assert (message.sequence, message.gap) == (expected, 0)
                    assert message.text() == str(expected)
                    if expected in kills:
                        gateway.kill()
                        gateway = Command(name, listen)
                writing.result()
                assert feed.lost == 0
        finally:
            gateway.kill()


def test_a_gap_while_there_was_no_gateway(ring: Writer, tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/g"
    with serving(ring.name, listen, options=HASTY):
        feed = attach(listen)
        ring.publish(b"0")
        assert take(feed, 1) == [b"0"]
    with feed:
        assert feed.read(0.01) is None
        ring.publish_many([b"x"] * (3 * SLOTS))
        with serving(ring.name, listen, options=HASTY):
            message = feed.read(DEADLINE)
            assert message is not None
            assert message.sequence == ring.oldest > SLOTS
            assert message.gap == feed.lost == ring.oldest - 1
            take(feed, ring.sequence - ring.oldest - 1)
            assert feed.lost == ring.oldest - 1


def test_another_ring_is_read_from_its_beginning(name: str, tmp_path: Path) -> None:
    with serving(name, f"unix:{tmp_path}/g") as url:
        with Writer.create(name, slots=64, capacity=1 << 12) as first:
            topic = first.topic("old")
            feed = attach(url, topics=["*"], others=True)
            first.publish_many([b"old"] * 5)
            first.publish(b"old", topic=topic)
            assert take(feed, 6) == [b"old"] * 6
        with feed:
            assert feed.read(0.01) is None
            with Writer.create(name, slots=64, capacity=1 << 12) as second:
                second.publish(b"new", topic=second.topic("new"))
                for n in range(20):
                    second.publish(b"%d" % n)
                message = feed.read(DEADLINE)
                assert message is not None
                assert (message.sequence, message.topic_name, message.gap) == (0, "new", 0)
                assert take(feed, 20) == [b"%d" % n for n in range(20)]
                assert feed.latest("old") is None


def test_everything_comes_before_the_end_of_a_ring(name: str, tmp_path: Path) -> None:
    """More than a socket takes at once is in the ring when its writer ends."""
    payload = b"x" * 1000
    with serving(name, f"unix:{tmp_path}/g") as url:
        with Writer.create(name, slots=SLOTS, capacity=1 << 24) as ring:
            feed = attach(url)
            ring.publish_many([payload] * SLOTS)
        with feed:
            assert take(feed, SLOTS) == [payload] * SLOTS


def test_tasks_wait_for_a_gateway_to_come_back(ring: Writer, tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/g"
    with serving(ring.name, listen, options=HASTY):
        feed = attach(listen)

    async def run() -> None:
        reading = asyncio.create_task(anext(feed))
        await asyncio.sleep(0.01)
        ring.publish(b"x")
        with serving(ring.name, listen):
            assert bytes(await asyncio.wait_for(reading, DEADLINE)) == b"x"
            reading = asyncio.create_task(anext(feed))
            await asyncio.sleep(0)
            feed.close()
            with pytest.raises(shm.RingClosed):
                await reading

    asyncio.run(run())


# ---- attaching -----------------------------------------------------------------------------


def test_tcp(ring: Writer) -> None:
    with serving(ring.name, "127.0.0.1:0") as url, attach(url) as feed:
        assert url.startswith("ws://127.0.0.1:")
        ring.publish(b"x")
        assert take(feed, 1) == [b"x"]


def test_tls(ring: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path / "authority")
    payloads = [os.urandom(n % 60_000) for n in range(300)]
    rules = AccessRules(tokens=("a-secret-of-32-letters-and-digits",))
    with serving(ring.name, "127.0.0.1:0", tls=authority.context(), rules=rules) as url:
        with pytest.raises(ConnectionRefusedError, match="SSL_CERT_FILE"):
            ringcast.attach(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        with pytest.raises(ConnectionRefusedError, match="401"):
            ringcast.attach(url)
        with attach(f"{url}/?token={rules.tokens[0]}") as feed:
            assert rules.tokens[0] not in repr(feed)
            writing = Background(lambda: [ring.publish(payload) for payload in payloads])
            assert take(feed, 150) == payloads[:150]
            assert asynchronously(feed, 150) == payloads[150:]
            writing.result()


def test_no_gateway(tmp_path: Path, name: str) -> None:
    path = tmp_path / "g"
    with pytest.raises(ConnectionRefusedError, match="no such socket"):
        ringcast.attach(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(str(path))
        with pytest.raises(shm.RingError, match=f"can't connect to unix:{path}"):
            ringcast.attach(f"unix:{path}")
    path.unlink()
    with serving(name, f"unix:{path}") as url, pytest.raises(shm.RingNotFound, match=name):
        ringcast.attach(url)


@pytest.mark.parametrize(
    ("script", "wrong"),
    [
        (answering("HTTP/1.1 404 Not Found\n\nwhat?"), "404 what"),
        (answering("what?\n\n"), "is no gateway"),
        (sending("x"), r"does not speak ringcast\.1"),
    ],
)
def test_another_server(script: Script, wrong: str) -> None:
    with server(script) as other, pytest.raises(ConnectionRefusedError, match=wrong):
        ringcast.attach(other.url)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"balance": "key"}, "name it"),
        ({"auto_ack": False}, "name it"),
        ({"owner": 1, "wait": shm.Yielding()}, "over a socket: wait, owner"),
        ({"policy": "none"}, "policy"),
        ({"start": -1}, "start"),
        ({"topics": ["a,b"]}, "comma"),
    ],
)
def test_bad_arguments(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        ringcast.attach("unix:/nowhere", **options)


def test_options_may_stand_in_the_address(ring: Writer, url: str) -> None:
    ring.publish_many([b"0", b"1", b"2"])
    with attach(f"{url}?start=1&label=a%20b&unknown=1", topics=[], others=True) as feed:
        assert take(feed, 2) == [b"1", b"2"]
    with pytest.raises(ValueError, match="twice"):
        ringcast.attach(f"{url}?start=1", start=2)
    with pytest.raises(ValueError, match="label"):
        ringcast.attach(url, label="\n")


def test_what_a_feed_does_not_know(feed: SocketFeed) -> None:
    for name in ("lag", "received", "note"):
        with pytest.raises(AttributeError, match="over a socket"):
            getattr(feed, name)
    assert not hasattr(feed, "nothing")
    with pytest.raises(shm.RingError, match="not a manager's"):
        assert feed.state
    assert "at 0" in repr(feed)


def test_it_is_loaded_when_it_is_used() -> None:
    program = "import sys; from ringcast import attach; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        timeout=DEADLINE,
    ).stdout.split()
    assert "ringcast.broker.worker.feed" in modules
    assert not [each for each in modules if "socket_" in each or each.startswith("websockets")]
