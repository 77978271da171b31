"""A worker's end: which records it hands out, and what it says of the connection."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final, Literal

import pytest

import ringcast
from ringcast import ConnectionState, Feed, Phase, shm
from ringcast.shm.broadcast import Message, Writer
from tests.conftest import DEADLINE, Processes, reader_status
from tests.unit.conftest import SLOTS, Background

from .reading import EVERY_WAY, STATE

EVENT: Final = shm.Kind.EVENT
RECORDS: Final[list[bytes | shm.Kind]] = [b"a", EVENT, b"b", b"c", EVENT, EVENT]
"""Of a ring of 8: what is sent, and where events are."""

Policy = Literal["block", "lossy"]
both_policies: Final = pytest.mark.parametrize("policy", ["block", "lossy"])


def publish(writer: Writer, *records: bytes | shm.Kind) -> None:
    """Payloads as messages, and a kind as a record of that kind that holds its sequence."""
    for record in records:
        if isinstance(record, shm.Kind):
            writer.publish(b"%d" % writer.sequence, kind=record, timeout=DEADLINE)
        else:
            writer.publish(record, timeout=DEADLINE)


def expected(events: bool, records: list[bytes | shm.Kind]) -> list[bytes]:
    """What a feed hands out of records that were published first of all."""
    return [
        b"%d" % i if isinstance(record, shm.Kind) else record
        for i, record in enumerate(records)
        if events or not isinstance(record, shm.Kind)
    ]


# ---- which records are handed out ----------------------------------------------------------


def batch_all(feed: Feed) -> list[bytes]:
    payloads = []
    try:
        while True:
            with feed.batch(timeout=DEADLINE) as batch:
                assert len(batch) == len(batch.descriptors) > 0
                assert batch.descriptors["seq1"][0] == batch.first + 1
                payloads += [bytes(batch.payload(i)) for i in range(len(batch))]
    except shm.RingClosed:
        return payloads


ALL_WAYS: Final = [*EVERY_WAY, batch_all]
every_way: Final = pytest.mark.parametrize("take", ALL_WAYS, ids=lambda way: way.__name__)


@every_way
@both_policies
@pytest.mark.parametrize("events", [False, True], ids=["hidden", "shown"])
@pytest.mark.parametrize(
    "records",
    [RECORDS, [EVENT] * SLOTS, [EVENT, b"a"], [b"a", EVENT], [b"a", b"", EVENT, b""]],
    ids=["mixed", "only events", "first", "last", "empty messages"],
)
def test_events(
    writer: Writer,
    take: Callable[[Feed], list[bytes]],
    policy: Policy,
    events: bool,
    records: list[bytes | shm.Kind],
) -> None:
    with ringcast.attach(writer.name, policy=policy, events=events) as feed:
        publish(writer, *records)
        writer.close()
        assert take(feed) == expected(events, records)
        assert feed.cursor == len(records)
        assert feed.lost == 0


@every_way
@both_policies
def test_events_that_come_while_it_waits(
    name: str, take: Callable[[Feed], list[bytes]], policy: Policy
) -> None:
    with (
        Writer.create(name, slots=1024, capacity=1 << 16) as writer,
        ringcast.attach(name, policy=policy) as feed,
    ):
        taking = Background(lambda: take(feed))
        for i in range(300):
            publish(writer, EVENT, b"%d" % i, EVENT)
        writer.close()
        assert taking.result() == [b"%d" % i for i in range(300)]


def test_events_say_what_they_are(writer: Writer) -> None:
    with ringcast.attach(writer.name, events=True) as feed:
        publish(writer, EVENT, b"m")
        assert [message.kind for message in feed.read_available()] == [EVENT, shm.Kind.BINARY]


@both_policies
def test_hidden_events_are_no_messages_in_the_figures(writer: Writer, policy: Policy) -> None:
    with ringcast.attach(writer.name, policy=policy) as feed:
        publish(writer, *RECORDS)
        assert feed.lag == len(RECORDS)
        assert len(feed.read_available()) == 3
        assert feed.read_available() == []  # it has told how far it is
        assert feed.lag == 0
        status = reader_status(writer.name, feed.slot)
        assert status is not None
        assert (status.received, status.lost) == (3, 0)


def test_hidden_events_hold_nothing_up(writer: Writer) -> None:
    """A worker whose ring has only events keeps no writer waiting."""
    with ringcast.attach(writer.name) as feed:
        for _ in range(5):
            publish(writer, *[EVENT] * SLOTS)
            assert feed.read_available() == []
            assert feed.read(timeout=0) is None


@both_policies
def test_a_batch_ends_before_an_event(writer: Writer, policy: Policy) -> None:
    with ringcast.attach(writer.name, policy=policy) as feed:
        publish(writer, b"aa", b"bbb", EVENT, EVENT, b"c", EVENT)
        with feed.batch() as batch:
            assert (batch.first, len(batch)) == (0, 2)
            assert batch.descriptors["length"].tolist() == [2, 3]
            with pytest.raises(IndexError):
                batch.payload(2)
        with feed.batch() as batch:
            assert (batch.first, len(batch)) == (4, 1)
        with feed.batch(timeout=0) as batch:
            assert len(batch) == 0
        assert feed.cursor == 6


@both_policies
@pytest.mark.parametrize("ends", [0, 1, 3], ids=lambda ends: f"{ends} at the end")
@pytest.mark.parametrize("size", [1, 17, 64])
def test_payloads_of_a_batch_among_events(
    writer: Writer, policy: Policy, ends: int, size: int
) -> None:
    """Whatever lies behind the messages that are handed out, their payloads are theirs."""
    messages = [bytes([65 + i]) * size for i in range(4)]
    with ringcast.attach(writer.name, policy=policy) as feed:
        publish(writer, *messages[:2], EVENT, *messages[2:], *[EVENT] * ends)
        for part in (messages[:2], messages[2:]):
            with feed.batch() as batch:
                assert [bytes(batch.payload(i)) for i in range(len(batch))] == part
                assert [row.tobytes() for row in batch.records(f"V{size}")] == part


# ---- what was missed -----------------------------------------------------------------------


def first_read(feed: Feed) -> tuple[int, int]:
    message = feed.read(timeout=0)
    assert message is not None
    return message.sequence, message.gap


def first_polled(feed: Feed) -> tuple[int, int]:
    message: Message = feed.read_available()[0]
    return message.sequence, message.gap


def first_of_batch(feed: Feed) -> tuple[int, int]:
    with feed.batch(timeout=0) as batch:
        return batch.first, batch.gap


firsts: Final = pytest.mark.parametrize(
    "first", [first_read, first_polled, first_of_batch], ids=lambda way: way.__name__
)


@firsts
def test_gap_of_an_overrun_passes_events(
    writer: Writer, first: Callable[[Feed], tuple[int, int]]
) -> None:
    with ringcast.attach(writer.name, policy="lossy") as feed:
        publish(writer, *[b"lost"] * 20, *[EVENT] * (SLOTS - 1), b"m")
        sequence, gap = first(feed)
        assert sequence == 20 + SLOTS - 1
        assert gap == feed.lost
        assert 20 <= gap <= sequence
        publish(writer, EVENT, b"n")
        assert first(feed) == (sequence + 2, 0)


@both_policies
@firsts
def test_gap_of_a_late_start_passes_events(
    writer: Writer, policy: Policy, first: Callable[[Feed], tuple[int, int]]
) -> None:
    publish(writer, *[b"lost"] * 20, *[EVENT] * (SLOTS - 1), b"m")
    with ringcast.attach(writer.name, policy=policy, start=0) as feed:
        sequence, gap = first(feed)
        assert sequence == 20 + SLOTS - 1
        assert gap == feed.lost
        assert 20 <= gap < sequence


# ---- the end -------------------------------------------------------------------------------


@every_way
@both_policies
def test_who_read_to_the_end_lags_nothing_while_it_is_open(
    name: str, take: Callable[[Feed], list[bytes]], policy: Policy
) -> None:
    """In a ring so large that no reader need tell where it is after so few messages."""
    with (
        Writer.create(name, slots=4096, capacity=1 << 20) as writer,
        ringcast.attach(name, policy=policy) as feed,
    ):
        publish(writer, *RECORDS)
        writer.close()
        take(feed)
        status = reader_status(name, feed.slot)
        assert status is not None
        assert (status.lag, status.cursor, status.received) == (0, len(RECORDS), 3)
        assert not feed.closed


# ---- the connection's state ----------------------------------------------------------------


def test_state_is_what_the_note_says(writer: Writer) -> None:
    writer.note = STATE.encode()
    with ringcast.attach(writer.name) as feed:
        assert feed.state == STATE
        for phase in Phase:
            changed = ConnectionState.decode(STATE.encode().replace(b"open", phase.encode()))
            assert changed is not None
            writer.note = changed.encode()
            assert feed.state.phase is phase
    with pytest.raises(shm.RingClosed):
        _ = feed.state


@pytest.mark.parametrize("phase", Phase)
def test_state_when_the_writer_is_gone(writer: Writer, phase: Phase) -> None:
    writer.note = STATE.encode().replace(b"open", phase.encode())
    with ringcast.attach(writer.name) as feed:
        writer.close()
        assert feed.state.phase is (Phase.STOPPED if phase is Phase.STOPPED else Phase.ORPHANED)
        assert feed.state.url == STATE.url


def die_with_a_ring(name: str) -> None:
    """Leave a ring whose writer died and may be resumed."""
    Writer.create(name, slots=SLOTS, capacity=1024).note = STATE.encode()
    os.kill(os.getpid(), signal.SIGKILL)


def test_state_of_a_manager_that_died_and_was_resumed(name: str, processes: Processes) -> None:
    processes.start(die_with_a_ring, name).join(DEADLINE)
    with ringcast.attach(name) as feed:
        assert feed.state.phase is Phase.ORPHANED
        with Writer.resume(name):
            assert feed.state == STATE


@pytest.mark.parametrize(
    "note",
    [b"", b"mine", b"[]", b"7", b"\xff", b'{"phase": "open"}', b'{"phase": []}', b"[" * 1016],
    ids=["none", "text", "list", "number", "bytes", "incomplete", "no phase", "deep"],
)
def test_state_of_a_ring_that_no_manager_writes(writer: Writer, note: bytes) -> None:
    writer.note = note
    with (
        ringcast.attach(writer.name) as feed,
        pytest.raises(shm.RingError, match="is not a manager's"),
    ):
        _ = feed.state
