"""A worker's end: sending with asyncio, and messages that go in parts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

import pytest

import ringcast
from ringcast import Feed, shm
from ringcast.broker.worker import parts
from ringcast.shm import mpsc
from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import DEADLINE, eventually
from tests.unit.conftest import Background

from .senders import end, evict, refuse_what_was_sent, run, until, waiting, waiting_threads

# ---- asyncio -------------------------------------------------------------------------------


def full(receiver: Receiver, feed: Feed) -> None:
    """Let the worker have one message in flight, and send it."""
    receiver.limit_in_flight(1)
    assert feed.try_send("first") is not None
    assert feed.try_send("no room") is None


def take(receiver: Receiver, **options: bool) -> list[bytes]:
    """Take and acknowledge what is there."""
    envelopes = receiver.read_available()
    receiver.ack(envelopes, **options)
    return [bytes(envelope) for envelope in envelopes]


def test_what_has_room_starts_no_thread(
    feed: Feed, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.send("attached")
    take(receiver)

    def fail(_thread: threading.Thread) -> None:
        raise AssertionError("a thread is started")

    async def main() -> None:
        monkeypatch.setattr(threading.Thread, "start", fail)
        ticket = await feed.asend("x")
        assert take(receiver) == [b"x"]
        await feed.aflush()
        await feed.aflush(ticket, timeout=0)
        monkeypatch.undo()

    run(main())


def test_asend_waits_for_room_and_other_tasks_go_on(feed: Feed, receiver: Receiver) -> None:
    async def main() -> None:
        full(receiver, feed)
        task = await waiting(feed.asend("second"))
        assert take(receiver) == [b"first"]
        ticket = await task
        envelopes = receiver.read_available()
        assert [(e.ticket, bytes(e)) for e in envelopes] == [(ticket, b"second")]

    run(main())


def test_tasks_send_in_the_order_in_which_they_came(feed: Feed, receiver: Receiver) -> None:
    async def main() -> None:
        full(receiver, feed)
        tasks = [asyncio.create_task(feed.asend(str(n))) for n in range(20)]
        heard: list[bytes] = []

        def everything() -> bool:
            heard.extend(take(receiver))
            assert len(waiting_threads()) < 10, "a thread waits for each task"
            return len(heard) == 1 + len(tasks)

        await until(everything, "all were sent")
        assert heard == [b"first", *(b"%d" % n for n in range(20))]
        tickets = await asyncio.gather(*tasks)
        assert tickets == sorted(tickets)

    run(main())


def test_one_task_that_sends_all_the_time_leaves_others_their_turn(name: str) -> None:
    with (
        Writer.create(name, slots=8, capacity=1024),
        Receiver.create(name, lane_bytes=1 << 20) as receiver,
        ringcast.attach(name) as feed,
    ):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def main() -> None:
            task = asyncio.create_task(other())
            for _ in range(2000):
                await feed.asend("x")
            task.cancel()

        run(main())
        assert turns >= 2000 // 256
        assert len(receiver.read_available(1 << 20)) == 2000


def test_asend_that_has_no_room_in_time_sends_nothing(feed: Feed, receiver: Receiver) -> None:
    async def main() -> None:
        full(receiver, feed)
        for timeout in (0, 0.01):
            with pytest.raises(shm.RingFull, match="no room for 6 bytes"):
                await feed.asend("second", timeout=timeout)
        with pytest.raises(ValueError, match="timeout is seconds"):
            await feed.asend("second", timeout=-1)
        assert take(receiver) == [b"first"]
        await feed.asend("third")
        assert take(receiver) == [b"third"]

    run(main())


def test_asend_that_is_cancelled_has_sent_nothing(feed: Feed, receiver: Receiver) -> None:
    async def main() -> None:
        full(receiver, feed)
        task = await waiting(feed.asend("cancelled"))
        queued = [asyncio.create_task(feed.asend(text)) for text in ("cancelled, too", "next")]
        await asyncio.sleep(0)
        for doomed in (task, queued[0]):
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
        assert take(receiver) == [b"first"]
        await queued[1]
        assert take(receiver) == [b"next"]

    run(main())


def test_a_loop_that_ends_while_a_task_waits_leaves_no_thread(
    feed: Feed, receiver: Receiver
) -> None:
    async def main() -> None:
        full(receiver, feed)
        await waiting(feed.asend("never"))
        await waiting(feed.aflush())

    for _ in range(2):  # the second loop finds nothing of the first one
        run(main())
        assert take(receiver) == [b"first"]


@pytest.mark.parametrize("wait", ["asend", "aflush"])
@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (refuse_what_was_sent, shm.SendRejected),
        (evict, shm.Evicted),
        (end, shm.RingClosed),
    ],
    ids=lambda value: value.__name__,
)
def test_what_happens_while_a_task_waits(
    feed: Feed,
    receiver: Receiver,
    wait: str,
    happens: Callable[[Receiver], None],
    error: type[Exception],
) -> None:
    async def main() -> None:
        full(receiver, feed)
        task = await waiting(feed.asend("x") if wait == "asend" else feed.aflush())
        happens(receiver)
        with pytest.raises(error):
            await task

    run(main())


@pytest.mark.parametrize("wait", ["asend", "aflush"])
def test_closing_a_feed_while_a_task_waits(feed: Feed, receiver: Receiver, wait: str) -> None:
    async def main() -> None:
        full(receiver, feed)
        task = await waiting(feed.asend("x") if wait == "asend" else feed.aflush())
        feed.close()
        with pytest.raises(shm.RingClosed):
            await task
        assert take(receiver) == [b"first"]

    run(main())


def test_a_rejection_is_reported_though_the_task_that_waited_was_cancelled(
    feed: Feed, receiver: Receiver
) -> None:
    """Whether the wait had ended when it was cancelled, or not."""

    async def main() -> None:
        for steps in range(20):
            receiver.limit_in_flight(1)
            await feed.asend("x")
            task = await waiting(feed.aflush())
            take(receiver, rejected=True)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(outcome, asyncio.CancelledError):
                await until(lambda: not waiting_threads(), "its thread ends")
                await asyncio.sleep(0)  # and has reported
                with pytest.raises(shm.SendRejected) as rejected:
                    await feed.asend("not sent")
                outcome = rejected.value
            assert isinstance(outcome, shm.SendRejected)
            assert outcome.count == 1
            assert take(receiver) == []

    run(main())


def test_aflush(feed: Feed, receiver: Receiver) -> None:
    async def main() -> None:
        await feed.aflush(timeout=0)  # nothing was sent
        first, second = await feed.asend("a"), await feed.asend("b")
        for ticket in (None, first, second):
            for timeout in (0, 0.01):
                with pytest.raises(TimeoutError, match="may still be"):
                    await feed.aflush(ticket, timeout=timeout)
        flushing = await waiting(feed.aflush())
        await feed.asend("later, and not waited for")
        got = receiver.read_available()
        receiver.ack(got[:1])
        await feed.aflush(first)
        assert not flushing.done()
        receiver.ack(got[1:2])
        await flushing
        with pytest.raises(ValueError, match="was not sent here"):
            await feed.aflush(second + 1000)
        with pytest.raises(ValueError, match="timeout is seconds"):
            await feed.aflush(timeout=float("nan"))

    run(main())


# ---- messages in parts ---------------------------------------------------------------------

LONG: Final = bytes(range(256)) * 40
"""Longer than a lane."""
SENDER_MAX: Final = 4096 // 2
"""Above this a message goes in parts: half a lane."""


@pytest.fixture
def wide(name: str) -> Iterator[tuple[Feed, Receiver]]:
    """A worker whose messages may be longer than its lane, and the other end."""
    with (
        Writer.create(name, slots=8, capacity=1 << 16),
        Receiver.create(name, max_senders=4, lane_bytes=4096, auto_ack=False) as receiver,
        ringcast.attach(name) as feed,
    ):
        yield feed, receiver


class Assembler:
    """Puts messages together, as the manager does.

    Attributes:
        whole: those that came.
        parts: how many parts came, of whole messages or not.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._assembly = parts.Assembly(1 << 16)
        self.whole: list[bytes] = []
        self.parts = 0

    def take(self, limit: int = 256) -> int:
        """Take what is there; how many parts came so far."""
        envelopes = self._receiver.read_available(limit)
        for envelope in envelopes:
            assert envelope.kind == parts.KIND
            self.parts += 1
            message = self._assembly.add(bytes(envelope))
            if message is not None:
                self.whole.append(message[0])
        self._receiver.ack(envelopes)
        return self.parts

    def has(self, *messages: bytes) -> bool:
        """Take what is there; did just these messages come?"""
        self.take()
        return self.whole == [*messages]


def test_try_send_refuses_what_goes_in_parts_and_sends_nothing_of_it(
    wide: tuple[Feed, Receiver],
) -> None:
    feed, receiver = wide
    with pytest.raises(shm.MessageTooLarge, match="use send or asend"):
        feed.try_send(LONG)
    with pytest.raises(shm.MessageTooLarge, match="a quarter of the ring's capacity"):
        feed.try_send(bytes(feed.max_message + 1))
    with pytest.raises(shm.MessageTooLarge, match="use send or asend"):
        feed.try_send(bytes(SENDER_MAX))
    assert receiver.read_available() == []
    assert feed.try_send(bytes(SENDER_MAX - 64)) is not None


def test_asend_in_parts(wide: tuple[Feed, Receiver]) -> None:
    feed, receiver = wide
    assembler = Assembler(receiver)

    async def main() -> None:
        payload = bytearray(LONG)
        tasks = [await waiting(feed.asend(payload)), asyncio.create_task(feed.asend(LONG[::-1]))]
        await until(lambda: assembler.has(LONG, LONG[::-1]), "both came whole")
        tickets = await asyncio.gather(*tasks)
        assert tickets == sorted(tickets)
        await feed.aflush(tickets[1], timeout=0)
        with pytest.raises(shm.MessageTooLarge, match="a quarter of the ring's capacity"):
            await feed.asend(bytes(feed.max_message + 1))

    run(main())


@contextlib.asynccontextmanager
async def half_sent(feed: Feed, assembler: Assembler) -> AsyncIterator[asyncio.Task[int]]:
    """A task that has sent some of its parts, and has no room for the others."""
    task = await waiting(feed.asend(LONG))
    await until(lambda: assembler.take(1) == 1, "the first part came")
    assert not task.done()
    yield task


def test_a_cancelled_asend_in_parts_is_no_message_and_nobody_s_obstacle(
    wide: tuple[Feed, Receiver],
) -> None:
    feed, receiver = wide
    assembler = Assembler(receiver)

    async def main() -> None:
        async with half_sent(feed, assembler) as task:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        after = asyncio.create_task(feed.asend(LONG[::-1]))
        await until(lambda: assembler.has(LONG[::-1]), "the next one came whole")
        await after

    run(main())
    sending = Background(lambda: feed.send(LONG, timeout=DEADLINE))
    eventually(lambda: assembler.has(LONG[::-1], LONG), "so did one that a thread sent")
    sending.result()


@pytest.mark.parametrize("way", ["send", "asend"])
def test_parts_that_have_no_room_in_time_are_no_message(
    wide: tuple[Feed, Receiver], way: str
) -> None:
    feed, receiver = wide
    assembler = Assembler(receiver)
    too_late: dict[str, Callable[[], object]] = {
        "send": lambda: feed.send(LONG, timeout=0.01),
        "asend": lambda: run(feed.asend(LONG, timeout=0.01)),
    }
    with pytest.raises(shm.RingFull):
        too_late[way]()
    assert assembler.has()
    assert assembler.parts > 0
    sending = Background(lambda: feed.send(LONG[::-1], timeout=DEADLINE))
    eventually(lambda: assembler.has(LONG[::-1]), "the next one came whole")
    sending.result()


@pytest.mark.parametrize(
    ("happens", "error"), [(evict, shm.Evicted), (end, shm.RingClosed)], ids=["evicted", "ended"]
)
def test_what_happens_while_parts_are_sent(
    wide: tuple[Feed, Receiver], happens: Callable[[Receiver], None], error: type[Exception]
) -> None:
    feed, receiver = wide

    async def main() -> None:
        async with half_sent(feed, Assembler(receiver)) as task:
            happens(receiver)
            with pytest.raises(error):
                await task

    run(main())


def test_closing_a_feed_while_parts_are_sent(wide: tuple[Feed, Receiver]) -> None:
    feed, receiver = wide

    async def main() -> None:
        async with half_sent(feed, Assembler(receiver)) as task:
            feed.close()
            with pytest.raises(shm.RingClosed):
                await task

    run(main())


def test_a_short_message_does_not_wait_for_another_thread_s_parts(
    wide: tuple[Feed, Receiver],
) -> None:
    feed, receiver = wide
    sending = Background(lambda: feed.send(LONG, timeout=DEADLINE))
    eventually(lambda: mpsc.status(feed.name).pending, "parts wait for room")
    with pytest.raises(shm.RingFull):
        feed.send("short", timeout=0)
    with pytest.raises(shm.RingFull, match="another thread's long message"):
        feed.send(LONG, timeout=0)
    assert feed.try_send("short") is None
    assembler = Assembler(receiver)
    eventually(lambda: assembler.has(LONG), "it came whole")
    sending.result()
