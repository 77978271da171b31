"""Senders of an uplink: each has a lane until it leaves or is evicted; forks and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm import mpsc
from ringcast.shm.mpsc import Receiver, Sender
from tests.unit.conftest import Background
from tests.unit.mpsc.conftest import LANE, MAX_MESSAGE, fill, in_child, payloads

# ---- lanes ---------------------------------------------------------------------------------


def test_too_many_senders(name: str, receiver: Receiver) -> None:
    senders = [Sender.attach(name) for _ in range(3)]
    with pytest.raises(shm.TooManySenders, match=r"all 3 lanes .* are taken: create"):
        Sender.attach(name)
    senders[1].close()
    with Sender.attach(name) as again:
        assert again.lane == 1
    assert not receiver.closed
    for sender in senders:
        sender.close()


def test_lanes_left_with_messages(name: str, receiver: Receiver) -> None:
    """Taken again once the receiver has emptied them."""
    for _ in range(3):
        Sender.attach(name).send(b"left")  # collected at once: that leaves, too
    with pytest.raises(shm.TooManySenders, match="some by dead senders whose messages wait"):
        Sender.attach(name)
    assert payloads(receiver.read_available()) == [b"left"] * 3
    attaching = Background(lambda: Sender.attach(name))
    while attaching.running:
        assert receiver.read(timeout=0.01) is None
    attaching.result().close()


def test_many_attach_and_leave_at_once(name: str) -> None:
    """There is a lane for each thread at any time, so each gets one."""
    threads, rounds = 4, 50

    def come_and_go() -> None:
        for _ in range(rounds):
            with Sender.attach(name) as sender:
                sender.flush(sender.send(b"!"))

    with Receiver.create(name, max_senders=threads, lane_bytes=LANE) as receiver:
        running = [Background(come_and_go) for _ in range(threads)]
        count = 0
        while any(thread.running for thread in running):
            count += receiver.read(timeout=0.01) is not None
        for thread in running:
            thread.result()
        assert count + len(receiver.read_available()) == threads * rounds


def test_closing_a_sender(name: str, receiver: Receiver) -> None:
    sender = Sender.attach(name)
    sender.send(b"stays")
    sender.close()
    sender.close()
    assert sender.closed
    calls: list[Callable[[], Any]] = [
        lambda: sender.send(b""),
        lambda: sender.try_send(b""),
        sender.flush,
        lambda: sender.pending,
    ]
    for call in calls:
        with pytest.raises(shm.RingClosed):
            call()
    assert payloads(receiver.read_available()) == [b"stays"]


def test_closing_a_sender_wakes_its_threads(name: str, receiver: Receiver) -> None:
    sender = Sender.attach(name)
    fill(sender)
    waiting = [Background(lambda: sender.send(b"")) for _ in range(3)]
    sender.close()
    for thread in waiting:
        with pytest.raises(shm.RingClosed):
            thread.result()
    assert len(receiver.read_available()) == 4


# ---- eviction ------------------------------------------------------------------------------


def test_evict(name: str, receiver: Receiver) -> None:
    """Its messages are dropped, its calls raise, and it can attach again."""
    victim, other = Sender.attach(name), Sender.attach(name)
    victim.send(b"dropped")
    other.send(b"kept")
    receiver.evict(victim.lane)
    assert payloads(receiver.read_available()) == [b"kept"]
    assert (receiver.senders_evicted, receiver.voided) == (1, 1)
    assert [s.state for s in mpsc.status(name).senders] == ["evicted", "active"]
    with pytest.raises(shm.Evicted, match=r"evicted lane 0.*attach again"):
        victim.send(b"")
    with pytest.raises(shm.Evicted):
        victim.flush()  # though a later message of another was delivered
    other.flush()
    victim.close()
    with Sender.attach(name) as again:
        again.send(b"again")
        assert payloads(receiver.read_available()) == [b"again"]
    other.close()
    with pytest.raises(IndexError, match="has 3 lanes"):
        receiver.evict(3)


def test_evicting_wakes_a_waiting_sender(name: str, receiver: Receiver) -> None:
    with Sender.attach(name) as sender:
        fill(sender)
        waiting = Background(lambda: sender.send(b""))
        receiver.evict(0)
        with pytest.raises(shm.Evicted):
            waiting.result()


def test_evicting_from_a_free_lane(receiver: Receiver) -> None:
    receiver.evict(1)
    assert receiver.senders_evicted == 0


# ---- forks and threads ---------------------------------------------------------------------


def test_a_forked_child_can_use_neither_end(name: str, receiver: Receiver) -> None:
    sender = Sender.attach(name)

    def child() -> None:
        calls: list[Callable[[], Any]] = [
            lambda: sender.send(b""),
            lambda: sender.try_send(b""),
            sender.flush,
            receiver.read_available,
            lambda: receiver.read(timeout=0),
        ]
        for call in calls:
            with pytest.raises(shm.RingClosed, match="fork"):
                call()
        sender.close()
        receiver.unlink()
        receiver.close()
        with Sender.attach(name) as own:
            own.send(b"child")

    in_child(child)
    sender.send(b"parent")
    assert payloads(receiver.read_available()) == [b"child", b"parent"]
    sender.close()


def test_threads_share_both_ends(name: str, receiver: Receiver) -> None:
    count, threads = 500, 4
    got: list[mpsc.Envelope] = []

    def receive() -> None:
        while len(got) < count * threads:
            message = receiver.read(timeout=0.01)
            if message is not None:
                got.append(message)

    with Sender.attach(name) as sender:
        receiving = [Background(receive) for _ in range(2)]
        sending = [
            Background(lambda i=i: [sender.send(b"%d %d" % (i, n)) for n in range(count)])  # type: ignore[misc]
            for i in range(threads)
        ]
        tickets = [ticket for thread in sending for ticket in thread.result()]
        for thread in receiving:
            thread.result()
    assert sorted(tickets) == list(range(count * threads))
    assert sorted(message.ticket for message in got) == list(range(count * threads))
    got.sort(key=lambda message: message.ticket)
    for i in range(threads):
        mine = [bytes(m) for m in got if bytes(m).startswith(b"%d " % i)]
        assert mine == [b"%d %d" % (i, n) for n in range(count)]


def test_a_buffer_whose_export_closes_the_sender(name: str, receiver: Receiver) -> None:
    """Taking a buffer may run any code; here it's another thread's turn to close."""
    sender = Sender.attach(name)
    closing = threading.Thread(target=sender.close)
    fill(sender)
    waiting = Background(lambda: sender.send(bytearray(MAX_MESSAGE)))
    closing.start()
    with pytest.raises(shm.RingClosed):
        waiting.result()
    closing.join()
    assert len(receiver.read_available()) == 4
