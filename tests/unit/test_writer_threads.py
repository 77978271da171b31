"""A writer that threads and signal handlers share."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Reader, Writer
from tests.conftest import DEADLINE, eventually
from tests.unit.conftest import (
    SLOTS,
    WAITS,
    Background,
    fill,
    on_signal,
    read_all,
    wait_until_waiting,
)

# ---- threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_threads_share_a_writer_on_a_full_ring(name: str, wait: Any) -> None:
    threads, each = 4, 60
    with Writer.create(name, slots=4, capacity=256, max_readers=1, wait=wait) as writer:
        reader = Reader.attach(name)
        reading = Background(lambda: [(m.sequence, m.topic, bytes(m)) for m in reader])

        def publish(topic: int) -> list[int]:
            return [publish_somehow(writer, topic, i) for i in range(each)]

        publishing = [Background(lambda t=topic: publish(t)) for topic in range(threads)]  # type: ignore[misc]
        claimed = [thread.result() for thread in publishing]
        writer.close()
        seen = reading.result()
    assert [sequence for sequence, _, _ in seen] == list(range(threads * each))
    for topic in range(threads):
        mine = [(sequence, payload) for sequence, its, payload in seen if its == topic]
        assert [payload for _, payload in mine] == [b"%d" % i for i in range(each)]
        assert [sequence for sequence, _ in mine] == claimed[topic]


def publish_somehow(writer: Writer, topic: int, number: int) -> int:
    """Publish one message, by a call that depends on its number; its sequence."""
    payload = b"%d" % number
    if number % 3 == 0:
        return writer.publish(payload, topic=topic)
    if number % 3 == 1:
        return writer.publish_many([payload], topic=topic)[0]
    while (sequence := writer.try_publish(payload, topic=topic)) is None:
        time.sleep(0)
    return sequence


def test_publish_many_of_several_threads_stays_together(writer: Writer, reader: Reader) -> None:
    reading = Background(lambda: [(m.topic, bytes(m)) for m in reader])

    def publish(topic: int) -> list[range]:
        return [
            writer.publish_many([b"%d" % i for i in range(first, first + 20)], topic=topic)
            for first in range(0, 200, 20)
        ]

    publishing = [Background(lambda t=topic: publish(t)) for topic in range(3)]  # type: ignore[misc]
    claimed = [thread.result() for thread in publishing]
    writer.close()
    seen = reading.result()
    for topic, ranges in enumerate(claimed):
        together = [seen[sequence] for one in ranges for sequence in one]
        assert together == [(topic, b"%d" % i) for i in range(200)]


def test_a_thread_that_waits_leaves_the_rest_usable(writer: Writer, reader: Reader) -> None:
    fill(writer)
    publishing = Background(lambda: writer.publish(b"late"))
    assert writer.try_publish(b"x") is None
    with pytest.raises(shm.RingFull):
        writer.publish(b"x", timeout=0)
    with pytest.raises(shm.RingFull):
        writer.publish_many([b"x"], timeout=0)
    with pytest.raises(shm.RingFull):
        writer.reserve(1, timeout=0.001)
    assert writer.sequence == SLOTS
    assert not writer.demote(3)
    assert len(read_all(reader)) >= SLOTS
    assert publishing.result() == SLOTS


# ---- signals -------------------------------------------------------------------------------


def test_publishing_in_a_signal_handler(writer: Writer, reader: Reader) -> None:
    handled: list[int] = []

    def handler() -> None:
        sequence = writer.try_publish(b"handler")
        if sequence is not None:
            handled.append(sequence)

    mine = []
    received = []
    with on_signal(handler) as send:
        for i in range(300):
            if i % 3 == 0:
                send()
            mine.append(writer.publish(b"main", timeout=DEADLINE))
            received += read_all(reader)
    assert sorted(mine + handled) == list(range(len(received)))
    assert all(received[sequence] == b"main" for sequence in mine)
    assert all(received[sequence] == b"handler" for sequence in handled)


@pytest.mark.parametrize("call", ["publish", "publish_many", "reserve"])
def test_a_signal_handler_publishes_while_its_own_thread_waits(
    writer: Writer, reader: Reader, call: str
) -> None:
    handled = threading.Event()
    refused: list[BaseException] = []

    def handler() -> None:
        try:
            writer.publish(b"handler")
        except shm.RingFull as error:
            refused.append(error)
        handled.set()

    def drain(send: Any) -> list[bytes]:
        eventually(lambda: writer.sequence >= SLOTS, "the ring is full")
        send()
        handled.wait(DEADLINE)
        return [bytes(message) for message in reader]

    sent = [b"%d" % i for i in range(3 * SLOTS)]
    with on_signal(handler) as send:
        reading = Background(lambda: drain(send))
        if call == "publish":
            claimed = [writer.publish(payload) for payload in sent]
        elif call == "publish_many":
            claimed = list(writer.publish_many(sent))
        else:
            claimed = [commit(writer, payload) for payload in sent]
    writer.close()
    received = reading.result()
    assert [received[sequence] for sequence in claimed] == sent
    assert received.count(b"handler") == 1 - len(refused)


def commit(writer: Writer, payload: bytes) -> int:
    """Publish through a reservation."""
    with writer.reserve(len(payload)) as room:
        room[:] = payload
        return room.commit()


class Interrupted(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_a_signal_handler_interrupts_a_writer_that_waits(name: str, wait: Any) -> None:
    def interrupt() -> None:
        raise Interrupted

    waiting = threading.Event()

    def publish() -> None:
        waiting.set()
        writer.publish(b"late")

    with (
        Writer.create(name, slots=8, capacity=1024, max_readers=1, wait=wait) as writer,
        on_signal(interrupt) as send,
    ):
        reader = Reader.attach(name)
        fill(writer)
        Background(lambda: waiting.wait(DEADLINE) and send())
        with pytest.raises(Interrupted):
            publish()
        assert read_all(reader) == [b"12345678"] * 8
        assert writer.publish(b"on") == 8  # nothing is stuck


def test_a_sleeping_reader_is_woken_by_every_call(writer: Writer, reader: Reader) -> None:
    calls = (
        lambda: writer.publish(b"x"),
        lambda: writer.try_publish(b"x"),
        lambda: writer.publish_many([b"x"]),
        lambda: commit(writer, b"x"),
    )
    for call in calls:
        waiting = Background(reader.read)
        wait_until_waiting(writer.name)
        call()
        assert bytes(waiting.result()) == b"x"
