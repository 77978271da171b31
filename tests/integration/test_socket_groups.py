"""attach("unix:/PATH", group=...): a member of a work group at a gateway's socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pytest

import ringcast
from ringcast import shm
from ringcast.broker.gateway.server import GatewayOptions
from ringcast.broker.worker.socket_group import SocketGroupFeed
from ringcast.shm import group
from ringcast.shm.broadcast import Writer
from tests.conftest import DEADLINE, Processes, eventually

from . import gateways
from .gateways import InThread, serving

SLOTS: Final = 4096
CAPACITY: Final = 1 << 22
HASTY: Final = GatewayOptions(close_timeout=0.05)


@pytest.fixture
def ring(name: str) -> Iterator[Writer]:
    """A ring, whose end is the fixture's."""
    with Writer.create(name, slots=SLOTS, capacity=CAPACITY) as writer:
        yield writer


@pytest.fixture
def url(ring: Writer, tmp_path: Path) -> Iterator[str]:
    """Where a gateway of that ring listens."""
    with serving(ring.name, f"unix:{tmp_path}/gateway") as url:
        yield url


def join(url: str, **options: Any) -> SocketGroupFeed:
    """Attach as a member of the group g."""
    feed = gateways.attach(url, group="g", **options)
    assert isinstance(feed, SocketGroupFeed)
    return feed


def status(ring: Writer) -> group.GroupStatus:
    return next(each for each in group.list_groups(ring.name) if each.name == "g")


def all_done(ring: Writer) -> None:
    eventually(lambda: status(ring).lag == 0, "the group has done everything")


def read(feed: SocketGroupFeed) -> Any:
    message = feed.read(DEADLINE)
    assert message is not None
    return message


def publish(ring: Writer, count: int) -> list[bytes]:
    payloads = [b"%d" % (ring.sequence + i) for i in range(count)]
    ring.publish_many(payloads)
    return payloads


# ---- reading -------------------------------------------------------------------------------


def test_a_message_has_what_the_rings_has(ring: Writer, url: str) -> None:
    with join(url) as feed, group.Member.attach(ring.name, "other") as member:
        ring.publish("ä".encode(), topic=ring.topic("a"), kind=shm.Kind.TEXT, key=7)
        expected, found = member.read(DEADLINE), read(feed)
        assert expected is not None
        fields = "sequence topic topic_name kind time_ns gap epoch key payload deliveries"
        for field in fields.split():
            assert getattr(found, field) == getattr(expected, field), field
        assert (bytes(found), found.text(), len(found)) == ("ä".encode(), "ä", 2)
        assert memoryview(found) == bytes(found)
        assert feed.read(timeout=0) is None
        assert (feed.group, feed.balance, feed.policy) == ("g", "any", "group")
        assert "of 'g'" in repr(feed)
        del expected


def iterate(feed: SocketGroupFeed, count: int) -> list[bytes]:
    found: list[bytes] = []
    for message in feed:
        found.append(bytes(message))
        if len(found) == count:
            message.ack()
            break
    return found


def available(feed: SocketGroupFeed, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        found += map(bytes, feed.read_available(limit=count - len(found)))
    feed.read_available()
    return found


def batches(feed: SocketGroupFeed, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        with feed.batch(count - len(found), timeout=DEADLINE) as batch:
            payloads = [bytes(batch.payload(i)) for i in range(len(batch))]
            assert batch.descriptors["length"].tolist() == [len(each) for each in payloads]
            assert batch.descriptors["sequence"][0] == batch.first
            assert batch.deliveries == 1
            found += payloads
    return found


def asynchronously(feed: SocketGroupFeed, count: int) -> list[bytes]:
    async def run() -> list[bytes]:
        found: list[bytes] = []
        async for message in feed:
            found.append(bytes(message))
            if len(found) == count:
                message.ack()
                break
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("way", [iterate, available, batches, asynchronously])
def test_every_way_of_reading(
    ring: Writer, url: str, way: Callable[[SocketGroupFeed, int], list[bytes]]
) -> None:
    with join(url) as feed:
        sent = publish(ring, 500)
        assert way(feed, 500) == sent
        all_done(ring)
        assert status(ring).redelivered == 0


def test_records_of_a_batch(ring: Writer, url: str) -> None:
    with join(url, auto_ack=False) as feed:
        ring.publish_many([(1).to_bytes(4, "little"), (2).to_bytes(4, "little")])
        eventually(lambda: status(ring).in_flight == 2, "both are on their way")
        with feed.batch(timeout=DEADLINE) as batch:
            assert batch.records(np.dtype("<u4")).tolist() == [1, 2]
            with pytest.raises(ValueError, match="8 bytes"):
                batch.records(np.dtype("<u8"))
            batch.ack()
        all_done(ring)
        assert len(feed.batch(timeout=0)) == 0


def test_members_share_the_messages(ring: Writer, url: str) -> None:
    found: list[list[int]] = [[], [], []]

    def work(feed: SocketGroupFeed, sequences: list[int]) -> None:
        with contextlib.suppress(shm.RingClosed):
            for message in feed:
                sequences.append(message.sequence)

    with contextlib.ExitStack() as undo:
        feeds = [undo.enter_context(join(url)) for _ in found]
        threads = [
            threading.Thread(target=work, args=each) for each in zip(feeds, found, strict=True)
        ]
        for thread in threads:
            thread.start()
        publish(ring, 2000)
        all_done(ring)
        undo.close()
        for thread in threads:
            thread.join(DEADLINE)
    assert sorted(itertools.chain(*found)) == list(range(2000))
    assert all(found)


# ---- acknowledging -------------------------------------------------------------------------


def test_asking_for_the_next_says_that_the_last_is_done(ring: Writer, url: str) -> None:
    with join(url) as feed:
        publish(ring, 1)
        message = read(feed)
        assert status(ring).lag == 1
        assert feed.read(timeout=0) is None
        all_done(ring)
        message.ack()


def test_explicitly(ring: Writer, url: str) -> None:
    with join(url, auto_ack=False) as feed:
        publish(ring, 4)
        first, second, third, fourth = (read(feed) for _ in range(4))
        assert status(ring).in_flight == 4
        second.ack()
        second.ack()
        second.nack()
        feed.ack([first, fourth])
        third.nack()
        with pytest.raises(ValueError, match="given back"):
            third.ack()
        with pytest.raises(ValueError, match="given back"):
            feed.ack([third])
        again = read(feed)
        assert (again.sequence, again.deliveries) == (2, 2)
        feed.ack(again)
        all_done(ring)
        with join(url) as other, pytest.raises(TypeError, match="no message of this feed"):
            other.ack(again)


def test_what_goes_without_an_acknowledgement_is_given_back(ring: Writer, url: str) -> None:
    with join(url, auto_ack=False) as feed:
        publish(ring, 1)
        message = read(feed)
        del message
        gc.collect()
        again = read(feed)
        assert again.deliveries == 2
        again.ack()
        all_done(ring)


def test_leaving_a_loop_gives_back(ring: Writer, url: str) -> None:
    with join(url) as feed:
        publish(ring, 1)
        for message in feed:
            assert message.deliveries == 1
            break
        with contextlib.suppress(KeyError):
            for message in feed:
                assert message.deliveries == 2
                raise KeyError
        assert read(feed).deliveries == 3


def test_a_batch_that_fails_is_given_back(ring: Writer, url: str) -> None:
    with join(url) as feed:
        publish(ring, 1)
        with contextlib.suppress(KeyError), feed.batch(timeout=DEADLINE) as batch:
            assert len(batch) == 1
            raise KeyError
        with feed.batch(timeout=DEADLINE) as batch:
            assert batch.deliveries == 2
        all_done(ring)


def test_a_thread_that_ends_gives_back(ring: Writer, url: str) -> None:
    with join(url) as feed:
        publish(ring, 1)
        thread = threading.Thread(target=read, args=(feed,))
        thread.start()
        thread.join(DEADLINE)
        assert read(feed).deliveries == 2


def test_closing_gives_back_what_is_not_done(ring: Writer, url: str) -> None:
    feed = join(url)
    publish(ring, 10)
    eventually(lambda: status(ring).in_flight == 10, "all are on their way")
    for _ in range(4):
        message = read(feed)
    feed.close()
    with pytest.raises(shm.RingClosed):
        message.ack()
    with join(url) as other:
        assert [read(other).sequence for _ in range(7)] == list(range(3, 10))
        assert other.read(timeout=0) is None
        all_done(ring)


def test_no_more_is_sent_than_the_address_says(ring: Writer, url: str) -> None:
    with join(f"{url}?in_flight=2") as feed:
        publish(ring, 10)
        assert read(feed).sequence == 0
        eventually(lambda: status(ring).in_flight == 2, "two are on their way")
        assert [read(feed).sequence for _ in range(9)] == list(range(1, 10))


def test_threads_never_have_a_key_at_the_same_time(ring: Writer, url: str) -> None:
    at_work: set[int] = set()
    found: dict[int, list[int]] = {key: [] for key in range(1, 6)}
    wrong: list[int] = []

    def work(feed: SocketGroupFeed) -> None:
        with contextlib.suppress(shm.RingClosed):
            for message in feed:
                if message.key in at_work:
                    wrong.append(message.sequence)
                at_work.add(message.key)
                found[message.key].append(message.sequence)
                time.sleep(0)
                at_work.discard(message.key)
                del message

    with join(url, balance="key") as feed:
        threads = [threading.Thread(target=work, args=(feed,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(500):
            ring.publish(b"", key=1 + i % 5)
        all_done(ring)
        feed.close()
        for thread in threads:
            thread.join(DEADLINE)
    assert wrong == []
    assert all(each == sorted(each) and len(each) == 100 for each in found.values())


def test_tasks_never_have_a_key_at_the_same_time(ring: Writer, url: str) -> None:
    found: dict[int, list[int]] = {key: [] for key in range(1, 6)}
    at_work: set[int] = set()

    async def work(feed: SocketGroupFeed) -> None:
        async for message in feed:
            assert message.key not in at_work
            at_work.add(message.key)
            found[message.key].append(message.sequence)
            await asyncio.sleep(0)
            at_work.discard(message.key)

    async def run(feed: SocketGroupFeed) -> None:
        tasks = [asyncio.create_task(work(feed)) for _ in range(3)]
        async with asyncio.timeout(DEADLINE):
            while status(ring).lag:
                await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError)

    with join(url, balance="key") as feed:
        for i in range(200):
            ring.publish(b"", key=1 + i % 5)
        asyncio.run(run(feed))
    assert all(each == sorted(each) and len(each) == 40 for each in found.values())


# ---- ends ----------------------------------------------------------------------------------


def test_it_comes_back(ring: Writer, tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/gateway"
    gateway = InThread(ring.name, listen, options=HASTY)
    try:
        with join(listen, auto_ack=False) as feed:
            publish(ring, 3)
            first, second = read(feed), read(feed)
            first.ack()
            eventually(lambda: status(ring).lag == 2, "the first is done")
            gateway.stop()
            gateway = InThread(ring.name, listen)
            with pytest.raises(shm.Evicted, match="connection"):
                second.ack()
            for sequence in (1, 2):
                again = read(feed)
                assert (again.sequence, again.deliveries) == (sequence, 2)
                again.ack()
            all_done(ring)
    finally:
        gateway.stop()


def test_it_goes_on_with_the_next_ring(name: str, tmp_path: Path) -> None:
    with serving(name, f"unix:{tmp_path}/gateway") as url:
        with Writer.create(name, slots=SLOTS, capacity=CAPACITY) as ring:
            feed = join(url)
            ring.publish(b"one")
            assert bytes(read(feed)) == b"one"
            assert feed.read(timeout=0) is None
        with Writer.create(name, slots=SLOTS, capacity=CAPACITY) as ring, feed:
            ring.publish(b"two")
            assert bytes(read(feed)) == b"two"


def child(feed: SocketGroupFeed) -> None:
    with pytest.raises(shm.RingClosed, match="parent"):
        feed.read(timeout=0)


def test_a_forked_child_gives_nothing_back(ring: Writer, url: str, processes: Processes) -> None:
    with join(url) as feed:
        publish(ring, 1)
        message = read(feed)
        processes.join(processes.start(child, feed))
        assert status(ring).in_flight == 1
        message.ack()
        all_done(ring)


def test_what_can_not_be(url: str) -> None:
    with join(url, balance="key"):
        for options, wrong in (
            ({"balance": "any"}, "balance"),
            ({"policy": "lossy"}, "lossless"),
            ({"events": True}, "events"),
            ({"timeout": 1}, "timeout"),
            ({"owner": 1}, "over a socket: owner"),
            ({"max_deliveries": 0}, "max_deliveries"),
        ):
            with pytest.raises(ValueError, match=wrong):
                ringcast.attach(url, group="g", **cast(Any, options))
        with pytest.raises(TypeError, match="list"):
            ringcast.attach(url, group="g", topics="a")
    with pytest.raises(ValueError, match="name it"):
        ringcast.attach(url, **cast(Any, {"balance": "any"}))
    with join(url, balance="key") as feed:
        with pytest.raises(shm.RingError, match="fixed"):
            feed.subscribe("a")
        for name in ("lag", "received"):
            assert not hasattr(feed, name)


def test_options_may_stand_in_the_address(ring: Writer, url: str) -> None:
    with join(f"{url}"):
        pass
    feed = gateways.attach(f"{url}?group=h&balance=key&topics=a&start=oldest")
    with feed:
        assert isinstance(feed, SocketGroupFeed)
        ring.publish(b"no")
        ring.publish(b"yes", topic=ring.topic("a"))
        message = feed.read(DEADLINE)
        assert message is not None
        assert (bytes(message), message.topic_name) == (b"yes", "a")
