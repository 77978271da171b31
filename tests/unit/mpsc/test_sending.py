"""Messages of an uplink: sent and received in order, as far as there is room, and acknowledged."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm.mpsc import Receiver, Sender
from tests.unit.conftest import Background
from tests.unit.mpsc.conftest import LANE, MAX_MESSAGE, fill, payloads

# ---- sending and receiving -----------------------------------------------------------------


def test_one_message(name: str, receiver: Receiver) -> None:
    with Sender.attach(name, label="me") as sender:
        assert (sender.name, sender.lane, sender.max_message) == (name, 0, MAX_MESSAGE)
        assert sender.send(b"hello", kind=1) == 0
        assert sender.pending == 1
        message = receiver.read(timeout=0)
        assert message is not None
        assert (message.ticket, message.sender, message.kind) == (0, 0, 1)
        assert bytes(message) == b"hello"
        assert repr(message) == "<Envelope 0 by 0, 5 bytes>"
        assert sender.pending == 0
        sender.flush(timeout=0)
        assert receiver.read(timeout=0) is None
        assert (repr(sender), repr(receiver)) == (
            f"<Sender to '{name}' lane 0>",
            f"<Receiver of '{name}' at 1>",
        )
    assert repr(sender) == f"<Sender to '{name}' closed>"


@pytest.mark.parametrize("size", range(MAX_MESSAGE + 1))
def test_every_size_at_every_place(name: str, size: int) -> None:
    """Messages of one size, among others, until the lane has started over many times."""
    rng = random.Random(size)
    with (
        Receiver.create(name, max_senders=1, lane_bytes=LANE) as receiver,
        Sender.attach(name) as sender,
    ):
        for turn in range(40):
            sizes = [size, rng.randint(0, MAX_MESSAGE)]
            for length in sizes if turn % 2 else sizes[::-1]:
                data = rng.randbytes(length)
                sender.send(data, timeout=0)
                assert payloads(receiver.read_available()) == [data]


@pytest.mark.parametrize("lane_bytes", [256, 512, 65536])
def test_longest_message(name: str, lane_bytes: int) -> None:
    with (
        Receiver.create(name, max_senders=1, lane_bytes=lane_bytes) as receiver,
        Sender.attach(name) as sender,
    ):
        longest = sender.max_message
        assert longest == lane_bytes // 2 - 16
        for _ in range(5):
            sender.send(bytes(longest), timeout=0)
            assert payloads(receiver.read_available()) == [bytes(longest)]
        with pytest.raises(
            shm.MessageTooLarge, match=f"{longest + 1} bytes is longer .* {longest}"
        ):
            sender.send(bytes(longest + 1))
        with pytest.raises(shm.MessageTooLarge):
            sender.try_send(bytes(longest + 1))


@pytest.mark.parametrize(
    "data", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"_ab_")[1:3]], ids=repr
)
def test_any_buffer(name: str, receiver: Receiver, data: Any) -> None:
    with Sender.attach(name) as sender:
        sender.send(data)
        assert payloads(receiver.read_available()) == [b"ab"]


@pytest.mark.parametrize(
    ("data", "kind", "error"),
    [
        ("text", 2, TypeError),
        (None, 2, TypeError),
        (memoryview(b"abcd")[::2], 2, BufferError),
        (b"", -1, OverflowError),
        (b"", 1 << 16, OverflowError),
    ],
)
def test_what_cannot_be_sent(
    name: str, receiver: Receiver, data: Any, kind: int, error: type[Exception]
) -> None:
    with Sender.attach(name) as sender:
        with pytest.raises(error):
            sender.send(data, kind=kind)
        assert receiver.read_available() == []


def test_the_order_is_the_tickets(name: str, receiver: Receiver) -> None:
    senders = [Sender.attach(name) for _ in range(3)]
    sent = []
    for i in range(200):
        sender = senders[i * i % 3]
        sent.append((sender.send(b"%d" % i, timeout=0), sender.lane, b"%d" % i))
        if i % 4 == 3:
            got = [(m.ticket, m.sender, bytes(m)) for m in receiver.read_available()]
            assert got == sent[-4:]
    assert [ticket for ticket, _, _ in sent] == list(range(200))
    for sender in senders:
        sender.close()


def test_read_available_takes_at_most_so_many(name: str, receiver: Receiver) -> None:
    with Sender.attach(name) as sender:
        for i in range(4):
            sender.send(b"%d" % i)
        assert payloads(receiver.read_available(3)) == [b"0", b"1", b"2"]
        assert receiver.ticket == 3
        assert payloads(receiver.read_available(3)) == [b"3"]
        with pytest.raises(ValueError, match="1 or more, not 0"):
            receiver.read_available(0)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_bad_timeouts(name: str, receiver: Receiver, timeout: float) -> None:
    with Sender.attach(name) as sender:
        with pytest.raises(ValueError, match="timeout is seconds"):
            receiver.read(timeout)
        fill(sender)
        with pytest.raises(ValueError, match="timeout is seconds"):
            sender.send(b"", timeout=timeout)
        with pytest.raises(ValueError, match="timeout is seconds"):
            sender.flush(timeout=timeout)


# ---- room ----------------------------------------------------------------------------------


def test_a_full_lane_is_its_sender_s_own(name: str, receiver: Receiver) -> None:
    with Sender.attach(name) as full, Sender.attach(name) as other:
        assert fill(full) == LANE // 64
        assert full.try_send(b"") is None
        with pytest.raises(shm.RingFull, match=f"no room for 1 bytes in lane 0 of uplink '{name}'"):
            full.send(b"x", timeout=0.01)
        other.send(b"y", timeout=0)
        assert payloads(receiver.read_available()) == [b"x"] * 4 + [b"y"]
        assert fill(full) == LANE // 64


def test_send_waits_for_room(name: str, receiver: Receiver) -> None:
    with Sender.attach(name) as sender:
        fill(sender)
        waiting = Background(lambda: sender.send(b"late"))
        assert payloads(receiver.read_available(1)) == [b"x"]
        assert waiting.result() == 4
        assert payloads(receiver.read_available())[-1] == b"late"


def test_limit_in_flight(name: str, manual: Receiver) -> None:
    """Messages that are not acknowledged count, however much room there is."""
    manual.limit_in_flight(2)
    with Sender.attach(name) as sender:
        assert fill(sender) == 2
        taken = manual.read_available()
        assert sender.try_send(b"") is None
        manual.ack(taken[:1])
        assert fill(sender) == 1
        manual.limit_in_flight(0)
        assert fill(sender) == 3
        manual.limit_in_flight(1)
        assert sender.try_send(b"") is None
        manual.ack(taken[1:] + manual.read_available())
        assert sender.pending == 0


# ---- acknowledging -------------------------------------------------------------------------


def test_flush_waits_for_the_acknowledgement(name: str, manual: Receiver) -> None:
    with Sender.attach(name) as sender:
        sender.flush(timeout=0)  # nothing was sent
        first, second = sender.send(b"1"), sender.send(b"2")
        messages = manual.read_available()
        with pytest.raises(TimeoutError, match="message 1 was not delivered in time"):
            sender.flush(timeout=0.01)
        waiting = Background(lambda: sender.flush(first))
        manual.ack(messages[:1])
        waiting.result()
        assert sender.pending == 1
        with pytest.raises(TimeoutError):
            sender.flush(second, timeout=0)
        manual.ack(messages[1:])
        sender.flush()


@pytest.mark.parametrize("ticket", [1, -1, 1 << 63, (1 << 64) - 1, 1 << 64])
@pytest.mark.usefixtures("receiver")
def test_flush_of_what_was_not_sent(name: str, ticket: int) -> None:
    with Sender.attach(name) as sender:
        sender.send(b"0")
        with pytest.raises(ValueError, match=f"ticket {ticket} was not sent here"):
            sender.flush(ticket)


def test_rejected_messages_are_reported_once(name: str, manual: Receiver) -> None:
    with Sender.attach(name) as sender, Sender.attach(name) as other:
        for i in range(3):
            sender.send(b"%d" % i)
        other.send(b"other")
        messages = manual.read_available()
        manual.ack(messages[:2], rejected=True)
        manual.ack(messages[2:])
        with pytest.raises(shm.SendRejected, match="2 of the messages") as raised:
            sender.flush()
        assert raised.value.count == 2
        sender.flush()
        sender.send(b"on")
        other.flush()


def test_reject_sends(name: str, receiver: Receiver) -> None:
    with Sender.attach(name) as sender:
        receiver.reject_sends(True)
        for send in (sender.send, sender.try_send):
            with pytest.raises(shm.SendRejected, match="nothing was sent") as raised:
                send(b"")
            assert raised.value.count == 0
        receiver.reject_sends(False)
        assert sender.send(b"") == 0


def test_flush_while_sends_are_rejected(name: str, manual: Receiver) -> None:
    """Messages that wait are rejected later, and flush reports it."""
    with Sender.attach(name) as sender:
        sender.send(b"")
        manual.reject_sends(True)
        waiting = Background(sender.flush)
        manual.ack(manual.read_available(), rejected=True)
        with pytest.raises(shm.SendRejected, match="1 of the messages"):
            waiting.result()
