"""A worker's end: sending, in every way, and what becomes of it when the worker leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import ringcast
from ringcast import Feed, shm
from ringcast.shm import mpsc
from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import DEADLINE, Processes, eventually
from tests.unit.conftest import Background

from .senders import (
    Send,
    end,
    every_way,
    evict,
    fill_the_lane,
    refuse,
    refuse_what_was_sent,
    run,
    try_send,
)

# ---- sending -------------------------------------------------------------------------------


def lanes(receiver: Receiver) -> list[str]:
    """Labels of who is attached to send, or was when the receiver last looked around."""
    assert receiver.read_available() == []
    return [sender.label for sender in mpsc.status(receiver.name).senders]


def wait_for_lanes(receiver: Receiver, expected: list[str]) -> None:
    eventually(lambda: lanes(receiver) == expected, f"who can send is {expected}")


@pytest.mark.parametrize(
    ("payload", "kind", "sent"),
    [
        ("grüße €", "text", "grüße €".encode()),
        ("", "text", b""),
        ("grüße €".encode(), "text", "grüße €".encode()),
        (bytearray(b"{}"), "text", b"{}"),
        (memoryview(b"<{}>")[1:3], "text", b"{}"),
        (b"\xff\x00", "binary", b"\xff\x00"),
        (memoryview(bytearray(b"\x80")), "binary", b"\x80"),
        ("€", "binary", "€".encode()),
    ],
)
@every_way
def test_send(
    feed: Feed, receiver: Receiver, send_it: Send, payload: Any, kind: Any, sent: bytes
) -> None:
    tickets = [send_it(feed, payload, kind=kind), send_it(feed, payload, kind=kind)]
    got = receiver.read_available()
    assert [message.ticket for message in got] == tickets == sorted(tickets)
    assert [bytes(message) for message in got] == [sent, sent]
    assert {message.kind for message in got} == {shm.Kind[kind.upper()]}


@every_way
def test_a_str_is_text_and_bytes_are_binary(feed: Feed, receiver: Receiver, send_it: Send) -> None:
    send_it(feed, "{}")
    send_it(feed, b"{}")
    send_it(feed, b"{}", kind=shm.Kind.TEXT)
    send_it(feed, "{}", kind=shm.Kind.BINARY)
    kinds = [envelope.kind for envelope in receiver.read_available()]
    assert kinds == [shm.Kind.TEXT, shm.Kind.BINARY, shm.Kind.TEXT, shm.Kind.BINARY]


@pytest.mark.parametrize(
    ("payload", "kind", "error", "match"),
    [
        (b"\xff", "text", ValueError, "utf-8"),
        ("€".encode()[:2], "text", ValueError, "utf-8"),
        (b"\xed\xa0\x80", "text", ValueError, "utf-8"),
        ("\ud800", "text", ValueError, "utf-8"),
        ("x", "event", ValueError, 'kind is "text" or "binary", not \'event\''),
        (b"x", shm.Kind.EVENT, ValueError, "kind is"),
        (7, "text", TypeError, "bytes-like"),
        (None, "binary", TypeError, "bytes-like"),
        (memoryview(b"abcd")[::2], "binary", BufferError, "contiguous"),
        (bytes(2049), "binary", shm.MessageTooLarge, "a quarter of the ring"),
    ],
)
@every_way
def test_what_cannot_be_sent(
    feed: Feed,
    receiver: Receiver,
    send_it: Send,
    payload: Any,
    kind: Any,
    error: type[Exception],
    match: str,
) -> None:
    with pytest.raises(error, match=match):
        send_it(feed, payload, kind=kind)
    assert receiver.read_available() == []
    send_it(feed, "after it")
    assert bytes(receiver.read_available()[0]) == b"after it"


def test_a_lane_is_taken_at_the_first_message(
    feed: Feed, writer: Writer, receiver: Receiver
) -> None:
    writer.publish(b"m")
    writer.publish(b"{}", kind=shm.Kind.EVENT)
    assert len(feed.read_available()) == 1
    with pytest.raises(ValueError, match="utf-8"):
        feed.send(b"\xff", kind="text")
    assert lanes(receiver) == []
    for _ in range(3):
        feed.send("x")
        receiver.ack(receiver.read_available())
        assert lanes(receiver) == ["worker"]


def test_threads_share_one_lane(feed: Feed, receiver: Receiver) -> None:
    threads = 4
    start = threading.Barrier(threads)

    def send() -> int:
        start.wait(DEADLINE)
        return feed.send("x")

    sending = [Background(send) for _ in range(threads)]
    assert sorted(one.result() for one in sending) == [
        sent.ticket for sent in receiver.read_available()
    ]
    assert lanes(receiver) == ["worker"]


def test_two_feeds_have_a_lane_each(feed: Feed, receiver: Receiver) -> None:
    with ringcast.attach(feed.name, label="other") as other:
        tickets = [sender.send("x") for sender in (feed, other, feed)]
        got = receiver.read_available()
    assert [sent.ticket for sent in got] == tickets == sorted(tickets)
    assert [sent.sender for sent in got] == [got[0].sender, got[1].sender, got[0].sender]
    assert got[0].sender != got[1].sender


def test_flush(feed: Feed, receiver: Receiver) -> None:
    feed.flush(timeout=0)  # nothing was sent
    first, second = feed.send("a"), feed.send("b")
    for ticket in (None, first, second):
        with pytest.raises(TimeoutError):
            feed.flush(ticket, timeout=0)
    got = receiver.read_available()
    receiver.ack(got[:1])
    feed.flush(first, timeout=0)
    with pytest.raises(TimeoutError):
        feed.flush(timeout=0)
    flushing = Background(lambda: feed.flush(timeout=DEADLINE))
    receiver.ack(got[1:])
    flushing.result()
    with pytest.raises(ValueError, match="was not sent here"):
        feed.flush(second + 1)


@every_way
@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (fill_the_lane, shm.RingFull),
        (refuse, shm.SendRejected),
        (refuse_what_was_sent, shm.SendRejected),
        (evict, shm.Evicted),
        (end, shm.RingClosed),
    ],
    ids=lambda value: value.__name__,
)
def test_a_manager_that_takes_nothing(
    feed: Feed,
    writer: Writer,
    receiver: Receiver,
    send_it: Send,
    happens: Callable[[Receiver], None],
    error: type[Exception],
) -> None:
    feed.send("before")
    happens(receiver)
    if send_it is try_send and error is shm.RingFull:
        assert feed.try_send("x") is None
    else:
        with pytest.raises(error):
            send_it(feed, "x")
    writer.publish(b"m")
    assert bytes(feed.read_available()[0]) == b"m"  # reading goes on


def calls(feed: Feed) -> list[Callable[[], object]]:
    """All that needs the uplink."""
    return [
        lambda: feed.send("x"),
        lambda: feed.try_send("x"),
        lambda: run(feed.asend("x")),
        lambda: feed.flush(timeout=0),
        lambda: run(feed.aflush(timeout=0)),
    ]


def test_without_an_uplink_it_reads_all_the_same(writer: Writer) -> None:
    with ringcast.attach(writer.name) as feed:
        for call in calls(feed):
            with pytest.raises(shm.RingNotFound):
                call()
        writer.publish(b"m")
        assert len(feed.read_available()) == 1
        with Receiver.create(writer.name, max_senders=1) as receiver:
            feed.send("x")  # it has come now
            assert bytes(receiver.read_available()[0]) == b"x"


# ---- closing -------------------------------------------------------------------------------


def leave_block(feed: Feed) -> None:
    with feed:
        pass


@pytest.mark.parametrize("close", [Feed.close, leave_block], ids=["close", "with"])
@pytest.mark.parametrize("sent", [True, False], ids=["after sending", "unused"])
def test_a_closed_feed(
    feed: Feed, receiver: Receiver, close: Callable[[Feed], None], sent: bool
) -> None:
    if sent:
        feed.send("kept")
    close(feed)
    for call in calls(feed):
        with pytest.raises(shm.RingClosed):
            call()
    receiver.ack(got := receiver.read_available())
    assert [message.payload for message in got] == [b"kept"] * sent
    wait_for_lanes(receiver, [])
    close(feed)


def test_a_feed_that_could_not_be_closed_still_sends(
    feed: Feed, writer: Writer, receiver: Receiver
) -> None:
    feed.send("a")
    writer.publish(b"m")
    view = feed.read_available()[0].payload
    with pytest.raises(BufferError):
        feed.close()
    feed.send("b")
    assert [message.payload for message in receiver.read_available()] == [b"a", b"b"]
    view.release()


def test_leaving_with_a_view_alive_gives_the_lane_back(
    feed: Feed, writer: Writer, receiver: Receiver
) -> None:
    feed.send("a")
    receiver.ack(receiver.read_available())
    writer.publish(b"m")
    with feed:
        view = feed.read_available()[0].payload
    wait_for_lanes(receiver, [])
    assert bytes(view) == b"m"
    view.release()


def test_closing_while_another_thread_attaches_to_send(
    feed: Feed, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane that it gets too late is given back."""
    attach = mpsc.Sender.attach

    def attach_late(*args: Any, **options: Any) -> mpsc.Sender:
        sender = attach(*args, **options)
        feed.close()
        return sender

    monkeypatch.setattr(mpsc.Sender, "attach", attach_late)
    with pytest.raises(shm.RingClosed):
        feed.send("x")
    wait_for_lanes(receiver, [])


# ---- forks ---------------------------------------------------------------------------------


def fails_and_attaches_anew(feed: Feed) -> None:
    """In a forked child: the parent's end is closed here; one of its own sends."""
    assert feed.closed
    every: list[Callable[[], object]] = [*calls(feed), lambda: feed.state]
    for call in every:
        with pytest.raises(shm.RingClosed):
            call()
    feed.close()
    with ringcast.attach(feed.name, label="child") as own:
        own.send("from the child", timeout=DEADLINE)


def test_fork(feed: Feed, receiver: Receiver, processes: Processes) -> None:
    feed.send("before")
    processes.start(fails_and_attaches_anew, feed)
    processes.join()
    feed.send("after")
    got = receiver.read_available()
    assert [message.payload for message in got] == [b"before", b"from the child", b"after"]
    assert got[0].sender == got[2].sender
    receiver.ack(got)
    wait_for_lanes(receiver, ["worker"])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # that is the point
def test_fork_while_a_thread_attaches_to_send(
    feed: Feed, receiver: Receiver, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child does not wait for a thread that it does not have."""
    attaching, go_on = threading.Event(), threading.Event()
    attach = mpsc.Sender.attach

    def attach_slowly(*args: Any, **options: Any) -> mpsc.Sender:
        attaching.set()
        assert go_on.wait(DEADLINE)
        return attach(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mpsc.Sender, "attach", attach_slowly)
        sending = Background(lambda: feed.send("from the parent"))
        assert attaching.wait(DEADLINE)
    child = processes.start(fails_and_attaches_anew, feed)
    child.join(DEADLINE / 2)
    go_on.set()
    sending.result()
    assert child.exitcode == 0
    got = receiver.read_available()
    assert [message.payload for message in got] == [b"from the child", b"from the parent"]
