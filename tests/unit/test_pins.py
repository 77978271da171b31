"""What a reader holds of the ring, and when it lets go."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ringcast import shm
from ringcast.shm.broadcast import Message, Reader, Writer
from tests.conftest import eventually, reader_status
from tests.unit.conftest import SLOTS, Background, fill, wait_until_waiting


@pytest.fixture
def no_automatic_gc() -> Iterator[None]:
    """Cycles stay until somebody asks for a collection."""
    gc.disable()
    yield
    gc.enable()


def payload(sequence: int) -> bytes:
    """Eight bytes of message `sequence`."""
    return b"%08d" % sequence


def publish_round(writer: Writer, count: int = SLOTS) -> None:
    """The next `count` messages, each its own payload."""
    for _ in range(count):
        assert writer.try_publish(payload(writer.sequence)) is not None


def keep(message: Message, how: str) -> Any:
    """Something that exports the message's bytes."""
    makers: dict[str, Callable[[], Any]] = {
        "payload": lambda: message.payload,
        "memoryview": lambda: memoryview(message),
        "slice": lambda: memoryview(message)[2:4],
        "cast": lambda: memoryview(message).cast("q"),
        "array": lambda: np.frombuffer(message, np.uint8),  # type: ignore[call-overload]
        "array view": lambda: np.frombuffer(message.payload, np.uint8)[::2].reshape(2, 2),
    }
    return makers[how]()


EXPORTS = ["payload", "memoryview", "slice", "cast", "array", "array view"]


# ---- while the reader is open ----------------------------------------------------------------


@pytest.mark.parametrize("how", EXPORTS)
def test_a_view_holds_its_place_in_the_ring(writer: Writer, reader: Reader, how: str) -> None:
    publish_round(writer)
    message = reader.read(timeout=0)
    assert message is not None
    kept = keep(message, how)
    before = bytes(kept)
    del message
    for _ in range(3):
        reader.read_available()
        assert writer.try_publish(b"overwritten?") is None
    assert bytes(kept) == before
    del kept
    assert reader.read(timeout=0) is None
    publish_round(writer)


def test_the_oldest_view_holds_and_those_after_it_wait_for_it(
    writer: Writer, reader: Reader
) -> None:
    publish_round(writer)
    views = [message.payload for message in reader.read_available()]
    order = list(range(SLOTS))
    random.Random(5).shuffle(order)
    held = set(order)
    for index in order[:-1]:
        views[index].release()
        held.discard(index)
        reader.read_available()
        while writer.try_publish(payload(writer.sequence)) is not None:
            assert writer.sequence - min(held) <= SLOTS
        assert all(bytes(views[i]) == payload(i) for i in held)


def test_a_bare_message_does_not_hold_a_reader_that_waits(writer: Writer, reader: Reader) -> None:
    publish_round(writer)
    messages = reader.read_available()
    assert reader.read(timeout=0) is None
    publish_round(writer)
    assert [bytes(message) for message in messages] == [payload(i) for i in range(SLOTS)]
    assert messages[0].payload == payload(0)


def test_a_bare_message_does_not_hold_a_reader_that_polls_in_vain(
    writer: Writer, reader: Reader
) -> None:
    publish_round(writer)
    first = reader.read_available()[0]
    assert reader.read_available() == []
    publish_round(writer)
    assert bytes(first) == payload(0)


def test_a_loop_variable_never_holds_the_ring(writer: Writer, reader: Reader) -> None:
    for _ in range(5):
        publish_round(writer)
        while (message := reader.read(timeout=0)) is not None:
            last = message
        assert bytes(last) == payload(writer.sequence - 1)


def test_a_loop_variable_never_holds_a_writer_that_waits(writer: Writer, reader: Reader) -> None:
    def publish() -> None:
        for _ in range(20 * SLOTS):
            writer.publish(payload(writer.sequence))
        writer.close()

    publishing = Background(publish)
    read = 0
    for message in reader:
        assert bytes(message) == payload(read)
        read += 1
    publishing.result()
    assert read == 20 * SLOTS


def test_a_message_read_again_after_its_view_is_gone(writer: Writer, reader: Reader) -> None:
    publish_round(writer)
    message = reader.read(timeout=0)
    assert message is not None
    reader.read_available()
    with message.payload:
        assert writer.try_publish(b"x") is None
    assert reader.read(timeout=0) is None  # a private copy now
    publish_round(writer)
    with message.payload as view:
        while reader.read_available():
            pass
        publish_round(writer)
        assert bytes(view) == payload(0)


# ---- a reader that would wait for itself -------------------------------------------------------


def test_holding_all_and_waiting_is_refused(writer: Writer, reader: Reader) -> None:
    publish_round(writer)
    views = [message.payload for message in reader.read_available()]
    assert reader.read(timeout=0.001) is None  # nobody waits for room yet
    assert writer.try_publish(b"x") is None
    waits: tuple[Callable[[], object], ...] = (
        lambda: reader.read(timeout=10),
        reader.read,
        reader.batch,
        lambda: next(reader),
        lambda: list(reader),
    )
    for wait in waits:
        with pytest.raises(shm.RingFull, match="waits for message 0") as raised:
            wait()
        assert raised.value.published == 0
    assert [bytes(view) for view in views] == [payload(i) for i in range(SLOTS)]
    for view in views:
        view.release()
    assert reader.read(timeout=0) is None
    publish_round(writer)


def test_a_view_released_while_it_is_refused_is_named_no_more(
    writer: Writer, reader: Reader
) -> None:
    publish_round(writer)
    views = [message.payload for message in reader.read_available()]
    assert writer.try_publish(b"x") is None
    views.pop(0).release()
    reader.read_available()
    assert writer.try_publish(payload(SLOTS)) is not None
    assert writer.try_publish(b"x") is None
    assert reader.read(timeout=0) is not None
    with pytest.raises(shm.RingFull, match="waits for message 1"):
        reader.read()


def test_a_sleeping_reader_is_woken_to_be_refused(writer: Writer, reader: Reader) -> None:
    publish_round(writer)
    views = [message.payload for message in reader.read_available()]
    waiting = Background(reader.read)
    wait_until_waiting(writer.name)
    assert writer.try_publish(b"x") is None
    with pytest.raises(shm.RingFull):
        waiting.result()
    del views


def test_an_open_batch_and_waiting_is_refused(writer: Writer, reader: Reader) -> None:
    fill(writer)
    with reader.batch():
        assert writer.try_publish(b"x") is None
        with pytest.raises(shm.RingFull, match="an open batch"):
            reader.read()


@pytest.mark.usefixtures("no_automatic_gc")
def test_views_in_garbage_are_collected_before_it_is_refused(
    writer: Writer, reader: Reader
) -> None:
    publish_round(writer)
    cycle: list[Any] = [message.payload for message in reader.read_available()]
    cycle.append(cycle)
    del cycle
    assert writer.try_publish(b"x") is None
    assert reader.read(timeout=0.001) is None
    publish_round(writer)


class ReadsWhenFinalized:
    """A garbage cycle whose end reads from a reader, in the midst of whatever else goes on."""

    def __init__(self, reader: Reader, seen: list[int]) -> None:
        self.me = self
        self.reader = reader
        self.seen = seen

    def __del__(self) -> None:
        self.seen.extend(message.sequence for message in self.reader.read_available(limit=1))


@pytest.mark.parametrize("call", ["poll", "read", "batch"])
def test_a_finalizer_that_reads_in_the_midst_of_a_read(
    writer: Writer, reader: Reader, call: str
) -> None:
    seen: list[int] = []
    before = gc.get_threshold()
    try:
        gc.set_threshold(1, 1, 1)
        for _ in range(50):
            publish_round(writer)
            while reader.lag:
                ReadsWhenFinalized(reader, seen)
                seen.extend(take(reader, call))
            assert reader.read(timeout=0) is None
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert sorted(seen) == list(range(50 * SLOTS))


def take(reader: Reader, call: str) -> list[int]:
    """Sequences of what one call takes, at most three."""
    if call == "poll":
        return [message.sequence for message in reader.read_available(limit=3)]
    if call == "read":
        message = reader.read(timeout=0)
        return [] if message is None else [message.sequence]
    with reader.batch(limit=3, timeout=0) as batch:
        return [batch.first + i for i in range(len(batch))]


# ---- the end of the reader -------------------------------------------------------------------


@pytest.mark.parametrize("how", EXPORTS)
def test_close_refuses_while_a_view_is_alive(writer: Writer, reader: Reader, how: str) -> None:
    publish_round(writer, 3)
    messages = reader.read_available()
    kept = keep(messages[1], how)
    with pytest.raises(BufferError, match="the oldest of message 1"):
        reader.close()
    assert not reader.closed
    publish_round(writer, 1)
    assert [message.sequence for message in reader.read_available()] == [
        3
    ]  # goes on as if nothing was
    del kept
    reader.close()
    assert reader.closed
    assert reader_status(writer.name) is None
    assert [bytes(message) for message in messages] == [payload(i) for i in range(3)]


def test_close_refuses_while_a_batch_is_open(writer: Writer, reader: Reader) -> None:
    publish_round(writer, 3)
    with reader.batch(), pytest.raises(BufferError, match="the oldest of message 0"):
        reader.close()
    reader.close()
    reader.close()  # again: nothing happens


@pytest.mark.parametrize("how", EXPORTS)
def test_leaving_a_block_never_raises_and_the_view_stays_valid(writer: Writer, how: str) -> None:
    with Reader.attach(writer.name) as reader:
        publish_round(writer)
        messages = reader.read_available()
        kept = keep(messages[2], how)
        before = bytes(kept)
    assert reader.closed
    with pytest.raises(shm.RingClosed, match="this end of the ring is closed"):
        reader.read(timeout=0)
    publish_round(writer, 2)  # up to the message that is held
    assert writer.try_publish(b"overwritten?") is None
    assert bytes(kept) == before
    assert [bytes(message) for message in messages] == [payload(i) for i in range(SLOTS)]
    status = reader_status(writer.name)
    assert status is not None
    assert status.gating
    del kept
    assert reader_status(writer.name) is None
    publish_round(writer)


def test_close_refuses_after_the_block_too(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        publish_round(writer, 1)
        view = reader.read_available()[0].payload
    with pytest.raises(BufferError):
        reader.close()
    view.release()
    reader.close()


@pytest.mark.parametrize("end", ["release", "drop"])
def test_a_batch_left_open_holds_on_until_it_is_released(writer: Writer, end: str) -> None:
    with Reader.attach(writer.name) as reader:
        publish_round(writer)
        batch = reader.batch()
    assert bytes(batch.payload(0)) == payload(0)
    assert writer.try_publish(b"x") is None
    if end == "release":
        batch.release()
    else:
        del batch
    assert reader_status(writer.name) is None
    publish_round(writer)


def test_an_array_outlives_batch_and_reader(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        publish_round(writer)
        with reader.batch() as batch:
            records = batch.records("S8")
    del batch, reader
    gc.collect()
    assert writer.try_publish(b"x") is None
    assert records.tolist() == [payload(i) for i in range(SLOTS)]
    del records
    assert reader_status(writer.name) is None
    publish_round(writer)


def test_an_array_outlives_the_writer_and_the_ring(name: str) -> None:
    with Writer.create(name, slots=8, capacity=1024, max_readers=1) as writer:
        reader = Reader.attach(name)
        writer.publish(b"12345678")
        array = np.frombuffer(reader.read(timeout=0), np.uint8)  # type: ignore[call-overload]
    del writer, reader
    gc.collect()
    assert array.tobytes() == b"12345678"


def test_a_reader_that_is_dropped_frees_its_slot(writer: Writer) -> None:
    reader = Reader.attach(writer.name)
    publish_round(writer)
    message = reader.read(timeout=0)
    del reader
    gc.collect()
    assert reader_status(writer.name) is not None  # the message keeps it
    assert bytes(message) == payload(0)  # type: ignore[arg-type]
    del message
    assert reader_status(writer.name) is None
    publish_round(writer)


def test_the_slot_of_a_closed_reader_goes_to_the_next(writer: Writer) -> None:
    for _ in range(10):
        with Reader.attach(writer.name) as reader:
            assert reader.slot == 0


# ---- stepping down and being evicted -----------------------------------------------------------


def test_a_reader_steps_down_at_its_next_call(writer: Writer, reader: Reader) -> None:
    publish_round(writer)
    messages = reader.read_available(limit=2)
    assert writer.demote(reader.slot)
    assert not writer.demote(reader.slot)  # asked already
    assert reader.policy == "block"
    assert writer.try_publish(b"x") is None
    reader.read_available(limit=1)
    assert str(reader.policy) == "lossy"
    status = reader_status(writer.name)
    assert status is not None
    assert (status.state, status.policy, status.gating) == ("demoted", "lossy", False)
    publish_round(writer, 5 * SLOTS)
    assert [bytes(message) for message in messages] == [payload(0), payload(1)]
    assert not writer.demote(reader.slot)


def test_the_gap_after_stepping_down_is_told(writer: Writer, reader: Reader) -> None:
    publish_round(writer)
    reader.read_available(limit=2)
    writer.demote(reader.slot)
    reader.read_available(limit=1)
    publish_round(writer, 5 * SLOTS)
    message = reader.read(timeout=0)
    assert message is not None
    assert message.gap == message.sequence - 3 == reader.lost > 0
    assert bytes(message) == payload(message.sequence)


def test_stepping_down_waits_for_the_last_view(writer: Writer, reader: Reader) -> None:
    publish_round(writer)
    views = [message.payload for message in reader.read_available(limit=4)]
    writer.demote(reader.slot)
    assert [message.sequence for message in reader.read_available()] == [
        4,
        5,
        6,
        7,
    ]  # it reads on meanwhile
    assert reader.policy == "block"
    assert writer.try_publish(b"x") is None
    assert [bytes(view) for view in views] == [payload(i) for i in range(4)]
    for view in views:
        view.release()
    assert reader.read(timeout=0) is None
    assert str(reader.policy) == "lossy"
    publish_round(writer, 5 * SLOTS)


def test_a_waiting_reader_steps_down_at_once(writer: Writer, reader: Reader) -> None:
    waiting = Background(reader.read)
    wait_until_waiting(writer.name)
    writer.demote(reader.slot)
    eventually(lambda: reader.policy == "lossy", "the reader has stepped down")
    publish_round(writer, 1)
    assert bytes(waiting.result()) == payload(0)


def test_a_lossy_reader_is_not_asked_to_step_down(writer: Writer) -> None:
    with Reader.attach(writer.name, policy="lossy") as reader:
        assert not writer.demote(reader.slot)
    assert not writer.demote(0)  # nobody there
    assert not writer.evict(0)


@pytest.mark.parametrize("call", ["poll", "read", "batch", "next", "iter"])
def test_an_evicted_reader_is_told_at_its_next_call(
    writer: Writer, reader: Reader, call: str
) -> None:
    publish_round(writer)
    message = reader.read(timeout=0)
    assert message is not None
    assert writer.evict(reader.slot)
    assert not writer.evict(reader.slot)
    publish_round(writer, 5 * SLOTS)
    calls: dict[str, Callable[[], object]] = {
        "poll": reader.read_available,
        "read": reader.read,
        "batch": reader.batch,
        "next": lambda: next(reader),
        "iter": lambda: list(reader),
    }
    for _ in range(3):
        with pytest.raises(shm.Evicted, match="evicted reader slot 0"):
            calls[call]()
    for use in (message.text, lambda: bytes(message), lambda: message.payload):
        with pytest.raises(shm.Evicted):
            use()
    reader.close()
    assert reader_status(writer.name) is None


def test_a_message_of_an_evicted_reader_stays_invalid_after_the_close(
    writer: Writer, reader: Reader
) -> None:
    publish_round(writer)
    message = reader.read(timeout=0)
    assert message is not None
    writer.evict(reader.slot)
    publish_round(writer, 5 * SLOTS)
    reader.close()
    Reader.attach(writer.name)
    with pytest.raises(shm.Evicted):
        bytes(message)


def test_what_was_copied_before_the_eviction_stays(writer: Writer, reader: Reader) -> None:
    publish_round(writer, 2)
    messages = reader.read_available()
    assert reader.read(timeout=0) is None
    writer.evict(reader.slot)
    publish_round(writer, 5 * SLOTS)
    assert [bytes(message) for message in messages] == [payload(0), payload(1)]


def test_a_waiting_reader_is_told_of_its_eviction(writer: Writer, reader: Reader) -> None:
    waiting = Background(reader.read)
    wait_until_waiting(writer.name)
    writer.evict(reader.slot)
    with pytest.raises(shm.Evicted):
        waiting.result()


def test_leaving_the_block_of_an_evicted_reader(writer: Writer) -> None:
    with Reader.attach(writer.name) as reader:
        publish_round(writer)
        view = reader.read_available()[3].payload
        writer.evict(reader.slot)
    assert reader_status(writer.name) is not None
    view.release()
    assert reader_status(writer.name) is None


@pytest.mark.parametrize("slot", [4, 1000, 2**32 - 1])
def test_there_is_no_such_slot(writer: Writer, slot: int) -> None:
    for call in (writer.demote, writer.evict):
        with pytest.raises(IndexError, match="reader slots 0 to 3"):
            call(slot)
