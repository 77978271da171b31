"""The life of an uplink: created, closed, orphaned, resumed, unlinked, and its status meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from ringcast import shm
from ringcast.shm import mpsc, ownership
from ringcast.shm.mpsc import Receiver, Sender
from tests.conftest import SHM, Processes, eventually, leftovers
from tests.unit.conftest import Background
from tests.unit.mpsc.conftest import LANE, MAX_MESSAGE, fill, orphan, payloads

# ---- names, sizes, leftovers ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_senders": 0}, "max_senders=0 is not from 1 to 1024"),
        ({"max_senders": 1025}, "max_senders=1025 is not from 1 to 1024"),
        ({"lane_bytes": 128}, "lane_bytes=128 is not a power of two from 256"),
        ({"lane_bytes": 300}, "lane_bytes=300 is not a power of two"),
        ({"lane_bytes": 1 << 33}, "is not a power of two"),
        ({"max_senders": 1024, "lane_bytes": 1 << 32}, "are too much"),
        ({"mode": 0o666}, "mode=0o666"),
    ],
    ids=str,
)
def test_create_names_what_is_wrong(name: str, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        Receiver.create(name, **arguments)
    assert leftovers(name) == []


@pytest.mark.parametrize("bad", ["", "A", "a.b", "-a", "a" * 21, "a/b"])
def test_names_are_checked(bad: str) -> None:
    for call in (Receiver.create, Receiver.resume, Sender.attach, mpsc.status):
        with pytest.raises(ValueError, match="name"):
            call(bad)


def test_without_an_uplink(name: str) -> None:
    for call in (Receiver.resume, Sender.attach, mpsc.status):
        with pytest.raises(shm.RingNotFound, match=f"no uplink '{name}'"):
            call(name)


def test_an_uplink_and_a_ring_of_one_name(name: str, receiver: Receiver) -> None:
    """Neither disturbs the other; both are removed by unlink."""
    with shm.broadcast.Writer.create(name, slots=8, capacity=1024) as writer:
        writer.publish(b"down")
        with Sender.attach(name) as sender:
            sender.send(b"up")
        assert payloads(receiver.read_available()) == [b"up"]
    assert all(entry.startswith((f"rc.{name}.u", f"sem.rc.{name}.")) for entry in leftovers(name))
    assert mpsc.status(name).state == "open"


def test_create_while_one_lives(name: str, receiver: Receiver) -> None:
    with pytest.raises(shm.RingExists, match="its receiver is alive"):
        Receiver.create(name)
    with pytest.raises(shm.RingExists, match="living receiver"):
        Receiver.resume(name)
    with pytest.raises(shm.RingExists, match="living receiver"):
        shm.unlink(name)
    assert not receiver.closed


def test_create_over_an_orphan(name: str) -> None:
    """An uplink that can be resumed isn't replaced, but can be unlinked."""
    sender = orphan(name)
    assert mpsc.status(name).state == "orphaned"
    with pytest.raises(shm.RingExists, match="resume"):
        Receiver.create(name)
    sender.close()
    shm.unlink(name)
    assert leftovers(name) == []


def test_create_over_a_closed_one(name: str) -> None:
    first = Receiver.create(name)
    first.close()
    assert mpsc.status(name).state == "closed"
    with pytest.raises(shm.RingClosed, match="ended"):
        Receiver.resume(name)
    with pytest.raises(shm.RingClosed, match="ended"):
        Sender.attach(name)
    with Receiver.create(name) as second:
        first.unlink()  # it's not its own any more
        assert mpsc.status(name).state == "open"
        assert second.epoch == 1


def test_unlink_removes_all(name: str) -> None:
    receiver = Receiver.create(name, max_senders=5)
    assert len(leftovers(name)) == 7
    sender = Sender.attach(name)
    receiver.unlink()
    assert leftovers(name) == []
    sender.send(b"attached ones notice nothing")
    assert payloads(receiver.read_available()) == [b"attached ones notice nothing"]
    receiver.unlink()
    receiver.close()
    receiver.close()
    with pytest.raises(shm.RingClosed, match="its receiver closed it"):
        sender.send(b"")
    sender.close()


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_mode(name: str, mode: int) -> None:
    with Receiver.create(name, mode=mode):
        group = mode & 0o040
        for entry in leftovers(name):
            assert bool((SHM / entry).stat().st_mode & 0o020) is bool(group)


def test_neither_end_is_made_directly(name: str) -> None:
    with pytest.raises(TypeError, match=r"Receiver\.create\(name\) or Receiver\.resume\(name\)"):
        Receiver(name)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Sender\.attach\(name\)"):
        Sender(name)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="come from a Receiver"):
        mpsc.Envelope()


# ---- closing -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["room", "flush"])
def test_closing_wakes_senders(name: str, manual: Receiver, how: str) -> None:
    sender = Sender.attach(name)
    fill(sender)
    waiting = Background(sender.flush if how == "flush" else lambda: sender.send(b"x"))
    manual.close()
    with pytest.raises(shm.RingClosed, match="its receiver closed it"):
        waiting.result()
    assert manual.closed
    calls: list[Callable[[], Any]] = [
        manual.read_available,
        manual.read,
        lambda: manual.ack([]),
        lambda: manual.reject_sends(True),
        lambda: manual.limit_in_flight(1),
        lambda: manual.evict(0),
    ]
    for call in calls:
        with pytest.raises(shm.RingClosed):
            call()
    sender.close()


def test_closing_wakes_the_receiver_s_threads(name: str) -> None:
    receiver = Receiver.create(name)
    waiting = [Background(receiver.read) for _ in range(3)]
    with receiver:
        pass
    for thread in waiting:
        with pytest.raises(shm.RingClosed):
            thread.result()


# ---- resuming ------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_resume_finds_what_was_not_taken(name: str, taken: int) -> None:
    sender = orphan(name, messages=4, taken=taken)
    with Receiver.resume(name) as receiver:
        assert (receiver.epoch, receiver.ticket) == (2, taken)
        assert payloads(receiver.read_available()) == [b"%d" % i for i in range(taken, 4)]
        sender.flush(timeout=0)
        assert sender.send(b"on") == 4
        assert payloads(receiver.read_available()) == [b"on"]
        sender.close()


def test_resume_reports_what_was_taken_and_not_acknowledged(name: str) -> None:
    sender = orphan(name, messages=4, taken=3, auto_ack=False)
    assert sender.pending == 4
    with Receiver.resume(name) as receiver:
        assert sender.pending == 1
        with pytest.raises(shm.SendUnconfirmed, match="3 of the messages") as raised:
            sender.send(b"not sent")
        assert raised.value.count == 3
        sender.send(b"4")
        assert payloads(receiver.read_available()) == [b"3", b"4"]
        sender.flush(timeout=0)
        sender.close()


def test_an_uplink_that_ends_while_it_is_resumed_stays_ended(
    name: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its receiver ends it after the successor has opened it and before that takes it over."""
    take_over = ownership.Part.take_over

    def close_and_take_over(*args: Any) -> None:
        receiver.close()
        take_over(*args)

    monkeypatch.setattr(ownership.Part, "take_over", close_and_take_over)
    with Sender.attach(name) as sender:
        with pytest.raises(shm.RingClosed, match="was ended by its receiver"):
            Receiver.resume(name)
        with pytest.raises(shm.RingClosed):
            sender.send(b"x")


def test_a_sender_waits_for_the_successor(name: str) -> None:
    sender = orphan(name, messages=4)
    waiting = Background(lambda: sender.send(b"4"))
    with Receiver.resume(name) as receiver:
        while waiting.running:
            receiver.read(timeout=0.01)
        assert waiting.result() == 4
        sender.close()


def test_a_sender_stops_waiting_when_the_uplink_is_removed(name: str) -> None:
    sender = orphan(name, messages=4)
    waiting = Background(lambda: sender.send(b"4"))
    shm.unlink(name)
    with pytest.raises(shm.RingClosed, match="no receiver and was removed"):
        waiting.result()
    sender.close()


# ---- status --------------------------------------------------------------------------------


def test_status(name: str, manual: Receiver, processes: Processes) -> None:
    empty = mpsc.status(name)
    assert (empty.name, empty.state, empty.epoch, empty.ticket) == (name, "open", 1, 0)
    assert (empty.tickets, empty.lane_bytes, empty.max_senders) == (16, LANE, 3)
    assert (empty.max_message, empty.pending, empty.senders) == (MAX_MESSAGE, 0, ())
    assert empty.receiver_pid == os.getpid()
    process = processes.start(send_and_die, name)
    process.join()
    with Sender.attach(name, label="ü" * 40) as sender:
        for _ in range(3):
            sender.send(b"12345678")
        manual.ack(manual.read_available(2), rejected=True)
        manual.read_available(1)
        dead, alive = mpsc.status(name).senders
        assert (dead.state, dead.label, dead.pid) == ("dead", "dying", process.pid)
        assert (dead.sent, dead.pending, dead.rejected) == (1, 0, 1)
        assert (alive.state, alive.lane, alive.pid) == ("active", 1, os.getpid())
        assert alive.label.startswith("ü" * 31)
        assert (alive.sent, alive.pending, alive.pending_bytes) == (3, 2, 64)
        assert (alive.rejected, alive.unconfirmed) == (1, 0)
        assert alive.joined_ns >= empty.senders.__len__()
        assert mpsc.status(name).pending == 1
        eventually(
            lambda: manual.read_available() or len(mpsc.status(name).senders) == 1,
            "the dead sender's lane is free",
        )


def send_and_die(name: str) -> None:
    """A process that leaves a message without leaving the uplink."""
    sender = Sender.attach(name, label="dying")
    sender.send(b"last")
    os._exit(0)
