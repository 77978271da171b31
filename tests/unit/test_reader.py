"""A reader: attaching, taking messages, waiting for them, the end, threads and signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.conftest import reader_status
from tests.unit.conftest import SLOTS, WAITS, Background, fill, on_signal, wait_until_waiting


def payload(sequence: int) -> bytes:
    """Eight bytes of message `sequence`."""
    return b"%08d" % sequence


def publish(writer: Writer, count: int) -> None:
    """The next `count` messages, each its own payload."""
    for _ in range(count):
        writer.publish(payload(writer.sequence), timeout=0)


def sequences(messages: list[Message]) -> list[int]:
    """Their numbers; their contents are checked."""
    for message in messages:
        assert bytes(message) == payload(message.sequence)
    return [message.sequence for message in messages]


# ---- attaching -----------------------------------------------------------------------------


def test_attributes(writer: Writer) -> None:
    publish(writer, 3)
    with Reader.attach(writer.name, label="mine") as reader:
        assert reader.name == writer.name
        assert reader.slot == 0
        assert reader.policy == "block"
        assert (reader.cursor, reader.lag, reader.lost) == (3, 0, 0)
        assert not reader.closed
        publish(writer, 2)
        assert (reader.cursor, reader.lag, reader.lost) == (3, 2, 0)
        reader.read(timeout=0)
        assert (reader.cursor, reader.lag, reader.lost) == (4, 1, 0)
        assert repr(reader) == f"<Reader of {writer.name!r} slot 0 block at 4>"
    assert reader.closed
    assert repr(reader) == f"<Reader of {writer.name!r} slot 0 block closed>"
    with pytest.raises(shm.RingClosed):
        assert reader.lag


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "it is empty"),
        ("a" * 21, "it has 21 characters"),
        ("-a", "it starts with '-'"),
        ("_a", "it starts with '_'"),
        ("A", "it has the character 'A'"),
        ("a.b", "it has the character '.'"),
        ("a/b", "it has the character '/'"),
        ("a\n", r"it has the character '\\n'"),
        ("ä", "it has the character 'ä'"),
        ("a\0", r"it has the character '\\x00'"),
    ],
)
def test_names_that_cannot_be(name: str, why: str) -> None:
    calls = (Reader.attach, Writer.create, Writer.resume, shm.status, shm.unlink)
    for call in calls:
        with pytest.raises(ValueError, match=f"can't name a ring: {why}"):
            call(name)
        with pytest.raises(TypeError, match="name is a string"):
            call(name.encode())  # type: ignore[arg-type]


def test_there_is_no_such_ring(name: str) -> None:
    for call in (Reader.attach, Writer.resume, shm.status, shm.unlink):
        with pytest.raises(shm.RingNotFound, match=f"there is no ring '{name}'"):
            call(name)


@pytest.mark.parametrize("policy", ["", "Block", "lossless", None, 1])
def test_policies_that_cannot_be(writer: Writer, policy: Any) -> None:
    with pytest.raises(ValueError, match='policy is "block" or "lossy", not'):
        Reader.attach(writer.name, policy=policy)


@pytest.mark.parametrize("start", ["", "newest", -1, 1.5, None, b"latest"])
def test_starts_that_cannot_be(writer: Writer, start: Any) -> None:
    with pytest.raises(ValueError, match='start is "latest", "oldest" or a sequence, not'):
        Reader.attach(writer.name, start=start)


@pytest.mark.parametrize("start", [4, 1000, 2**63, 2**64, 2**100])
def test_a_start_in_the_future_is_refused(writer: Writer, start: int) -> None:
    publish(writer, 3)
    with pytest.raises(ValueError, match=f"sequence {start} is not published yet: the next"):
        Reader.attach(writer.name, start=start)
    assert shm.status(writer.name).readers == ()


@pytest.mark.parametrize("wait", ["fast", 1, shm.Blocking])
def test_a_strategy_is_an_object(writer: Writer, wait: Any) -> None:
    with pytest.raises(TypeError):
        Reader.attach(writer.name, wait=wait)
    with Reader.attach(writer.name) as reader:
        assert reader.slot == 0  # the failed ones hold no slot


@pytest.mark.parametrize("label", [1, b"label"])
def test_a_label_is_a_string(writer: Writer, label: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        Reader.attach(writer.name, label=label)


@pytest.mark.parametrize(
    ("label", "seen"),
    [("", ""), ("x" * 100, "x" * 63), ("a\0b", "a"), ("grüße", "grüße"), ("\ud800", "?")],
)
def test_labels(writer: Writer, label: str, seen: str) -> None:
    with Reader.attach(writer.name, label=label):
        status = reader_status(writer.name)
        assert status is not None
        assert status.label == seen


def test_every_slot_taken(writer: Writer) -> None:
    readers = [Reader.attach(writer.name) for _ in range(4)]
    assert [reader.slot for reader in readers] == [0, 1, 2, 3]
    with pytest.raises(shm.TooManyReaders, match=r"all 4 reader slots .* larger max_readers"):
        Reader.attach(writer.name)
    readers[2].close()
    with Reader.attach(writer.name) as reader:
        assert reader.slot == 2


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_start_latest_oldest_and_a_sequence(writer: Writer, policy: Any) -> None:
    publish(writer, 5)
    starts: tuple[Any, ...] = ("latest", "oldest", 0, 3, 5)
    for start, first in zip(starts, (5, 0, 0, 3, 5), strict=True):
        with Reader.attach(writer.name, policy=policy, start=start) as reader:
            assert reader.cursor == first
            assert sequences(reader.read_available()) == list(range(first, 5))
            assert reader.lost == 0


@pytest.mark.parametrize("policy", ["block", "lossy"])
def test_a_start_that_is_gone_counts_as_lost_and_is_reported(writer: Writer, policy: Any) -> None:
    publish(writer, 50)
    oldest = shm.status(writer.name).oldest
    assert 0 < 50 - oldest <= SLOTS
    with Reader.attach(writer.name, policy=policy, start=10) as reader:
        assert reader.lost == oldest - 10
        messages = reader.read_available()
        assert sequences(messages) == list(range(oldest, 50))
        assert [message.gap for message in messages] == [oldest - 10] + [0] * (49 - oldest)
        assert reader.lost == oldest - 10
    with Reader.attach(writer.name, policy=policy, start="oldest") as reader:
        assert (reader.cursor, reader.lost) == (oldest, 0)
        assert reader.read_available()[0].gap == 0


def test_the_gap_at_the_start_is_reported_with_a_batch_too(writer: Writer) -> None:
    publish(writer, 50)
    oldest = shm.status(writer.name).oldest
    with Reader.attach(writer.name, start=10) as reader, reader.batch() as batch:
        assert (batch.first, batch.gap) == (oldest, oldest - 10)


def test_many_readers_each_get_everything(writer: Writer) -> None:
    readers = [Reader.attach(writer.name) for _ in range(4)]
    for _ in range(20):
        publish(writer, SLOTS)
        for reader in readers:
            expected = list(range(reader.cursor, writer.sequence))
            assert sequences(reader.read_available()) == expected
            assert reader.read(timeout=0) is None


# ---- taking messages -------------------------------------------------------------------------


def test_poll(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        assert reader.read_available() == []
        publish(writer, 7)
        assert sequences(reader.read_available(limit=1)) == [0]
        assert sequences(reader.read_available(limit=3)) == [1, 2, 3]
        assert sequences(reader.read_available(2**40)) == [4, 5, 6]
        assert reader.read_available() == []


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(writer: Writer, limit: int) -> None:
    with Reader.attach(writer.name) as reader:
        with pytest.raises(ValueError, match="limit is a number of messages, 1 or more"):
            reader.read_available(limit)
        with pytest.raises(TypeError):
            reader.read_available("1")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_a_timeout_that_cannot_be(writer: Writer, timeout: float) -> None:
    with Reader.attach(writer.name) as reader:
        with pytest.raises(ValueError, match="timeout is seconds, 0 or more, or None"):
            reader.read(timeout=timeout)
        with pytest.raises(TypeError):
            reader.read(timeout="1")  # type: ignore[arg-type]


@pytest.mark.parametrize("wait", WAITS, ids=repr)
@pytest.mark.parametrize("timeout", [0, 0.0, 0.002])
def test_read_returns_none_when_the_time_is_over(writer: Writer, wait: Any, timeout: float) -> None:
    with Reader.attach(writer.name, wait=wait) as reader:
        assert reader.read(timeout=timeout) is None
        publish(writer, 1)
        message = reader.read(timeout=timeout)
        assert message is not None
        assert message.sequence == 0


@pytest.mark.parametrize("wait", WAITS, ids=repr)
@pytest.mark.parametrize("timeout", [None, 60, 1e300, float("inf")])
def test_read_waits_for_a_message(writer: Writer, wait: Any, timeout: float | None) -> None:
    with Reader.attach(writer.name, wait=wait) as reader:
        waiting = Background(lambda: reader.read(timeout=timeout))
        publish(writer, 1)
        assert bytes(waiting.result()) == payload(0)


def test_iterating_ends_with_the_ring(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        publish(writer, 3)
        writer.close()
        assert sequences(list(reader)) == [0, 1, 2]
        assert list(reader) == []
        for call in (reader.read, reader.read_available, reader.batch):
            with pytest.raises(shm.RingClosed, match="has ended: its writer closed it"):
                call()


def test_the_end_wakes_who_waits(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        waiting = Background(lambda: list(reader))
        wait_until_waiting(writer.name)
        writer.close()
        assert waiting.result() == []


def test_a_ring_without_writer_and_name_ends(name: str) -> None:
    writer = Writer.create(name, slots=8, capacity=1024, max_readers=1)
    with Reader.attach(name) as reader:
        publish(writer, 2)
        del writer  # as if it had died: the lock is gone, the ring was not closed
        waiting = Background(lambda: [reader.read().sequence for _ in range(3)])  # type: ignore[union-attr]
        wait_until_waiting(name)
        shm.unlink(name)
        with pytest.raises(shm.RingClosed, match="no writer and was removed"):
            waiting.result()
        assert reader.cursor == 2


def test_what_a_lossy_reader_misses_is_counted(writer: Writer) -> None:
    with Reader.attach(writer.name, policy="lossy") as reader:
        received = 0
        for count in (3, 40, 1, 0, 100, 8, 9, 17):
            publish(writer, count)
            for message in reader.read_available():
                assert message.sequence == received + message.gap
                assert bytes(message) == payload(message.sequence)
                received = message.sequence + 1
        assert reader.cursor == writer.sequence == received
        assert reader.lost > 0


def test_a_lossy_reader_never_holds_the_writer(writer: Writer) -> None:
    with Reader.attach(writer.name, policy="lossy") as reader:
        publish(writer, 3)
        kept = [message.payload for message in reader.read_available()]
        publish(writer, 20 * SLOTS)
        assert [bytes(view) for view in kept] == [payload(i) for i in range(3)]
        del kept


# ---- closing -------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS, ids=repr)
@pytest.mark.parametrize("call", ["read", "batch", "next", "iter"])
def test_close_wakes_a_thread_that_waits(writer: Writer, wait: Any, call: str) -> None:
    reader = Reader.attach(writer.name, wait=wait)
    calls: dict[str, Callable[[], object]] = {
        "read": reader.read,
        "batch": reader.batch,
        "next": lambda: next(reader),
        "iter": lambda: list(reader),
    }
    started = threading.Event()

    def wait_for_it() -> object:
        started.set()
        return calls[call]()

    waiting = Background(wait_for_it)
    started.wait()
    if isinstance(wait, shm.Blocking):
        wait_until_waiting(writer.name)
    reader.close()
    with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
        waiting.result()
    assert reader_status(writer.name) is None


def test_leaving_a_block_wakes_every_thread_that_waits(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        waiting = [Background(reader.read) for _ in range(5)]
        wait_until_waiting(writer.name)
    for thread in waiting:
        with pytest.raises(shm.RingClosed):
            thread.result()


def test_a_closed_reader_can_do_nothing_more(writer: Writer) -> None:
    reader = Reader.attach(writer.name)
    reader.close()
    reader.close()
    for call in (reader.read, reader.read_available, reader.batch, reader.__next__):
        with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
            call()
    with reader:
        pass


def test_no_descriptor_or_mapping_is_left(writer: Writer) -> None:
    def count() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return len(list(Path("/proc/self/fd").iterdir())), maps.count(f"rc.{writer.name}.")

    before = count()
    for policy in ("block", "lossy"):
        with Reader.attach(writer.name, policy=policy) as reader:
            publish(writer, 1)
            reader.read_available()
        del reader
        shm.status(writer.name)
        with pytest.raises(ValueError, match="not published yet"):
            Reader.attach(writer.name, start=1000)
    assert count() == before


# ---- threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_each_message_goes_to_one_thread(writer: Writer, wait: Any) -> None:
    count = 300
    with Reader.attach(writer.name, wait=wait) as reader:
        threads = [Background(lambda: sequences(list(reader))) for _ in range(3)]
        for i in range(count):
            writer.publish(payload(i), timeout=60)
        writer.close()
        seen = [thread.result() for thread in threads]
    for one in seen:
        assert one == sorted(one)
    assert sorted(chain(*seen)) == list(range(count))


def test_threads_mix_reads_polls_and_batches(writer: Writer) -> None:
    count = 2000
    with Reader.attach(writer.name) as reader:

        def by_batch() -> list[int]:
            seen: list[int] = []
            try:
                while True:
                    with reader.batch(limit=3) as batch:
                        seen.extend(batch.first + i for i in range(len(batch)))
            except shm.RingClosed:
                return seen

        def by_poll() -> list[int]:
            seen: list[int] = []
            try:
                while True:
                    seen.extend(sequences(reader.read_available(limit=2)))
            except shm.RingClosed:
                return seen

        threads = [Background(by_batch), Background(by_poll), Background(lambda: list(reader))]
        for i in range(count):
            writer.publish(payload(i), timeout=60)
        writer.close()
        batched, polled, iterated = (thread.result() for thread in threads)
    assert sorted(batched + polled + sequences(iterated)) == list(range(count))


def test_a_thread_looks_while_another_waits(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        waiting = Background(reader.read)
        wait_until_waiting(writer.name)
        assert reader.read_available() == []
        assert reader.read(timeout=0) is None
        assert (reader.lag, reader.cursor) == (0, 0)
        publish(writer, 1)
        assert waiting.result().sequence == 0


# ---- signals -------------------------------------------------------------------------------


class Interrupted(Exception):
    """What a signal handler raises."""


@pytest.mark.parametrize("wait", WAITS, ids=repr)
def test_a_signal_handler_interrupts_a_read(writer: Writer, wait: shm.Blocking) -> None:
    reading = threading.Event()

    def interrupt() -> None:
        raise Interrupted

    def read() -> None:
        reading.set()
        reader.read()

    def when_it_waits(send: Callable[[], None]) -> None:
        reading.wait()
        if isinstance(wait, shm.Blocking):
            wait_until_waiting(writer.name)
        send()

    with Reader.attach(writer.name, wait=wait) as reader, on_signal(interrupt) as send:
        Background(lambda: when_it_waits(send))
        with pytest.raises(Interrupted):
            read()
        publish(writer, 1)
        assert sequences(reader.read_available()) == [0]  # nothing was lost


def test_keyboard_interrupt_ends_a_wait(writer: Writer) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    with Reader.attach(writer.name) as reader:

        def press_control_c() -> None:
            wait_until_waiting(writer.name)
            os.kill(os.getpid(), signal.SIGINT)

        Background(press_control_c)
        with pytest.raises(KeyboardInterrupt):
            next(reader)
    signal.signal(signal.SIGINT, before)


def test_a_signal_handler_that_returns_lets_the_read_go_on(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader, on_signal(lambda: publish(writer, 1)) as send:
        Background(lambda: (wait_until_waiting(writer.name), send()))
        message = reader.read()
        assert message is not None
        assert bytes(message) == payload(0)


def test_a_signal_handler_reads_from_the_reader_it_interrupts(writer: Writer) -> None:
    seen: list[int] = []
    with Reader.attach(writer.name) as reader:

        def read_on() -> None:
            publish(writer, 3)
            seen.extend(sequences(reader.read_available(limit=2)))

        with on_signal(read_on) as send:
            Background(lambda: (wait_until_waiting(writer.name), send()))
            message = reader.read()
            assert message is not None
            seen.append(message.sequence)
    assert seen == [0, 1, 2]


def test_a_signal_handler_closes_the_reader_it_interrupts(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader, on_signal(reader.close) as send:
        Background(lambda: (wait_until_waiting(writer.name), send()))
        with pytest.raises(shm.RingClosed):
            reader.read()


# ---- telling the writer ------------------------------------------------------------------------


def test_the_cursor_is_published_before_sleeping(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        publish(writer, SLOTS)
        reader.read_available()
        assert reader.read(timeout=0) is None
        status = reader_status(writer.name)
        assert status is not None
        assert (status.cursor, status.received, status.lag) == (SLOTS, SLOTS, 0)


def test_a_full_ring_opens_message_by_message(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        fill(writer)
        reader.read(timeout=0)
        for sequence in range(1, 3 * SLOTS):
            assert writer.try_publish(b"12345678") is None
            message = reader.read(timeout=0)  # and so done with the one before
            assert message is not None
            assert message.sequence == sequence
            assert writer.try_publish(b"12345678") is not None
            del message
