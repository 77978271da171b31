"""ringcast.h: senders in C, against a receiver in Python."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Final

import pytest

from ringcast import shm
from ringcast.shm import mpsc
from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver, Sender
from tests.conftest import DEADLINE, SHM, Processes, eventually

from .conftest import StartEnds
from .ends import Ends, Status

SENDERS: Final = 3
LANE_BYTES: Final = 4096
SHORT: Final = 0.02


@pytest.fixture
def receiver(name: str) -> Iterator[Receiver]:
    """The receiver of a small uplink, which acknowledges by itself."""
    with Receiver.create(name, max_senders=SENDERS, lane_bytes=LANE_BYTES) as receiver:
        yield receiver


def attached(ends: Ends, name: str, end: int = 0, label: str = "-") -> None:
    """Attach a sender, which has to work."""
    answer = ends.ask("attach_sender", end, name, 0, label)
    assert answer["status"] is Status.OK, answer


# ---- sending -------------------------------------------------------------------------------


def test_order_tickets_and_content(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name, label="c-sender")
    assert mpsc.status(receiver.name).senders[0].label == "c-sender"
    payloads = [b"", b"x", "ä".encode(), bytes(range(256)), b"y" * receiver.max_message]
    with Sender.attach(receiver.name) as python:
        for n, payload in enumerate(payloads):
            kind = shm.Kind.TEXT if n % 2 else shm.Kind.BINARY
            answer = ends.send(payload, kind=kind)
            assert (answer["status"], answer["ticket"]) == (Status.OK, 2 * n)
            assert python.send(b"python") == 2 * n + 1
            mine, theirs = receiver.read_available()
            assert (bytes(mine), mine.kind, mine.ticket) == (payload, kind, 2 * n)
            assert bytes(theirs) == b"python"


def test_flush(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name)
    assert ends.flush()["status"] is Status.OK  # nothing was sent
    ends.send(b"a")
    assert ends.flush()["status"] is Status.TIMEOUT
    answer = ends.flush(timeout=SHORT)
    assert answer["status"] is Status.TIMEOUT
    assert "not everything that was sent was delivered in time" in answer["error"]
    ends.begin("flush", 0, -1)
    assert receiver.read(timeout=0) is not None
    assert ends.answer()["status"] is Status.OK


def test_a_full_lane(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name)
    sent = 0
    while (answer := ends.send(b"x" * 500))["status"] is Status.OK:
        sent += 1
    assert answer["status"] is Status.FULL
    assert "no room for 500 bytes in lane 0" in answer["error"]
    assert sent == LANE_BYTES // 516 or sent == LANE_BYTES // 512
    before = time.monotonic()
    assert ends.send(b"x" * 500, timeout=SHORT)["status"] is Status.FULL
    assert time.monotonic() - before >= SHORT
    ends.begin("send", 0, 1, -1, (b"y" * 500).hex())
    assert len(receiver.read_available(3)) == 3
    assert ends.answer()["status"] is Status.OK
    assert len(receiver.read_available()) == sent - 3 + 1


@pytest.mark.parametrize(("more", "status"), [(0, Status.OK), (1, Status.MESSAGE_TOO_LARGE)])
def test_the_longest_message(ends: Ends, receiver: Receiver, more: int, status: Status) -> None:
    attached(ends, receiver.name)
    answer = ends.ask("send", 0, 1, 0, f"@{receiver.max_message + more}")
    assert answer["status"] is status
    assert len(receiver.read_available()) == (status is Status.OK)


def test_a_kind_that_cannot_be_sent(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name)
    answer = ends.send(b"x", kind=16)
    assert answer["status"] is Status.INVALID
    assert "RINGCAST_TEXT or RINGCAST_BINARY, not 16" in answer["error"]


def test_a_sender_that_leaves_is_heard(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name)
    ends.send(b"last words")
    ends.ask("close_sender", 0)
    assert [bytes(message) for message in receiver.read_available()] == [b"last words"]

    def freed() -> bool:
        receiver.look_around()
        return not mpsc.status(receiver.name).senders

    eventually(freed, "its lane is free")


def test_readers_and_senders_in_one_process(ends: Ends, receiver: Receiver) -> None:
    with Writer.create(receiver.name, slots=8, capacity=1024, max_readers=3) as writer:
        for end in (0, 1):
            ends.attached(writer.name, end)
            attached(ends, receiver.name, end)
        writer.publish(b"x")
        for end in (0, 1):
            assert ends.read(end)["sequence"] == 0
            ends.send(b"%d" % end, end)
        assert [bytes(message) for message in receiver.read_available()] == [b"0", b"1"]
        assert ends.ask("fork", 0, writer.name)["child"] == 0
        assert ends.send(b"still here")["status"] is Status.OK


# ---- what becomes of messages --------------------------------------------------------------


def test_rejected_at_once(ends: Ends, receiver: Receiver) -> None:
    """While there is no connection, and for no longer."""
    attached(ends, receiver.name)
    receiver.reject_sends(True)
    answer = ends.send(b"x")
    assert answer["status"] is Status.SEND_REJECTED
    assert "nothing was sent" in answer["error"]
    receiver.reject_sends(False)
    assert ends.send(b"x")["status"] is Status.OK


@pytest.mark.parametrize("reported_by", ["send", "flush"])
def test_rejected_afterwards_is_reported_once(ends: Ends, name: str, reported_by: str) -> None:
    with Receiver.create(name, max_senders=2, lane_bytes=LANE_BYTES, auto_ack=False) as receiver:
        attached(ends, name)
        ends.send(b"a")
        ends.send(b"b")
        receiver.ack(receiver.read_available(), rejected=True)
        answer = ends.send(b"c") if reported_by == "send" else ends.flush()
        assert answer["status"] is Status.SEND_REJECTED
        assert "2 of the messages sent before were rejected" in answer["error"]
        assert receiver.read_available() == []  # the reporting call sent nothing
        assert ends.flush()["status"] is Status.OK
        assert ends.send(b"c")["status"] is Status.OK


def take_and_die(name: str) -> None:
    """A process: a receiver that takes one message and dies before it acknowledges it."""
    receiver = Receiver.create(name, max_senders=2, lane_bytes=LANE_BYTES, auto_ack=False)
    while receiver.read() is None:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def test_unconfirmed_after_the_receiver_died(ends: Ends, name: str, processes: Processes) -> None:
    """What it had taken nobody knows of; what it had not its successor gets."""
    process = processes.start(take_and_die, name)
    eventually(
        lambda: ends.ask("attach_sender", 0, name, 0, "-")["status"] is Status.OK, "an uplink"
    )
    ends.send(b"taken")
    process.join(DEADLINE)
    ends.send(b"kept")
    with Receiver.resume(name) as receiver:
        answer = ends.send(b"not sent")
        assert answer["status"] is Status.SEND_UNCONFIRMED
        assert "1 of the messages sent before may or may not" in answer["error"]
        assert ends.send(b"new")["status"] is Status.OK
        assert [bytes(message) for message in receiver.read_available()] == [b"kept", b"new"]
        assert ends.flush()["status"] is Status.OK


def test_evicted(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name)
    ends.send(b"x")
    receiver.evict(0)
    for answer in (ends.send(b"y"), ends.flush()):
        assert answer["status"] is Status.EVICTED
        assert "evicted lane 0" in answer["error"]
    assert receiver.read_available() == []
    ends.ask("close_sender", 0)
    attached(ends, receiver.name)
    assert ends.send(b"z")["status"] is Status.OK


# ---- the end, and what cannot be attached to -----------------------------------------------


def test_an_uplink_that_has_ended(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name)
    receiver.close()
    assert ends.send(b"x")["status"] is Status.CLOSED
    answer = ends.ask("attach_sender", 1, receiver.name, 0, "-")
    assert (answer["status"], "has ended" in answer["error"]) == (Status.CLOSED, True)


def test_a_flush_ends_with_the_uplink(ends: Ends, receiver: Receiver) -> None:
    attached(ends, receiver.name)
    ends.send(b"x")
    ends.begin("flush", 0, -1)
    receiver.close()
    assert ends.answer()["status"] is Status.CLOSED


def test_an_uplink_that_was_removed_after_its_receiver_died(ends: Ends, name: str) -> None:
    receiver = Receiver.create(name, max_senders=2, lane_bytes=LANE_BYTES)
    attached(ends, name)
    ends.send(b"x")
    receiver.abandon()
    ends.begin("flush", 0, -1)
    shm.unlink(name)
    answer = ends.answer()
    assert answer["status"] is Status.CLOSED
    assert "no receiver and was removed" in answer["error"]


def test_there_is_no_uplink(ends: Ends, name: str) -> None:
    answer = ends.ask("attach_sender", 0, name, 0, "-")
    assert answer["status"] is Status.NOT_FOUND
    assert f"there is no uplink '{name}': start its receiver" in answer["error"]
    assert ends.ask("attach_sender", 0, "No", 0, "-")["status"] is Status.INVALID
    assert ends.ask("attach_sender", 0, name, -1, "-")["status"] is Status.INVALID


def test_a_semaphore_that_is_cut_short(ends: Ends, receiver: Receiver) -> None:
    (path,) = SHM.glob(f"sem.rc.{receiver.name}.*.s0")
    os.truncate(path, 7)
    answer = ends.ask("attach_sender", 0, receiver.name, 0, "-")
    assert (answer["status"], "is cut short" in answer["error"]) == (Status.CORRUPT, True)


def test_every_lane_is_taken(ends: Ends, receiver: Receiver) -> None:
    for end in range(SENDERS):
        attached(ends, receiver.name, end)
    answer = ends.ask("attach_sender", SENDERS, receiver.name, 0, "-")
    assert answer["status"] is Status.TOO_MANY_SENDERS
    assert f"all {SENDERS} lanes" in answer["error"]


# ---- many ----------------------------------------------------------------------------------

EACH: Final = 100
"""Messages of each sender."""


def send_texts(name: str, who: int) -> None:
    """A process: a Python sender that sends what a C one does."""
    with Sender.attach(name) as sender:
        for n in range(EACH):
            sender.send(b"%d %d" % (who, n), kind=shm.Kind.TEXT)
        sender.flush()


def test_c_and_python_senders_together(
    start_ends: StartEnds, name: str, processes: Processes
) -> None:
    """Three C processes and two of Python: each message comes once, each sender's in order."""
    with Receiver.create(name, max_senders=8, lane_bytes=1024) as receiver:
        crowd = [start_ends() for _ in range(3)]
        for who, ends in enumerate(crowd):
            attached(ends, name)
            ends.begin("send_many", 0, who, EACH)
        for who in (3, 4):
            processes.start(send_texts, name, who)
        expected, tickets = [0] * 5, 0
        end = time.monotonic() + DEADLINE
        while tickets < 5 * EACH:
            assert time.monotonic() < end
            message = receiver.read(timeout=1)
            if message is not None:
                who, n = map(int, message.text().split())
                assert (n, message.ticket) == (expected[who], tickets)
                expected[who] += 1
                tickets += 1
        assert [ends.answer()["status"] for ends in crowd] == [Status.OK] * 3
        processes.join()
        assert expected == [EACH] * 5
        assert (receiver.voided, receiver.senders_evicted) == (0, 0)
