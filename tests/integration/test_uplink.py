"""What workers send reaches the server in ticket order, whole and at its rate; or calls raise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

import pytest
from websockets.frames import Frame, Opcode
from websockets.sync.server import ServerConnection, serve

from ringcast import ConfigError, Feed, Manager, attach, shm
from ringcast.shm import mpsc
from tests.conftest import DEADLINE, Processes, eventually

from .manager import Peer, Script, kill, listen, quick, sending, serving, url_of, watching

WORKERS = 4
MESSAGES = 10_000
MANY = 1000
"""Messages of 100 kB, more than a socket's buffers take."""


def collecting(received: list[str], greeting: str = "") -> Script:
    """A script: sends `greeting`, notes every text that comes, answers the rest."""

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        if greeting:
            peer.send(greeting)
        with contextlib.suppress(EOFError, OSError):
            while True:
                frame = peer.receive()
                if isinstance(frame, Frame) and frame.opcode is Opcode.TEXT:
                    received.append(bytes(frame.data).decode())

    return script


def unread(reset: threading.Event) -> Script:
    """A script: shakes hands, does not read, and resets the connection when `reset` is set."""

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        assert reset.wait(DEADLINE)
        peer.reset()

    return script


def send_until_full(feed: Feed, texts: list[str]) -> int:
    """Send until socket and lane have taken all they can; returns how many messages that were."""
    for sent, text in enumerate(texts):
        try:
            feed.send(text, timeout=0.3)
        except shm.RingFull:
            return sent
    raise AssertionError("the socket took everything: send more")


# ---- from workers to the server and back ---------------------------------------------------


def echo(connection: ServerConnection) -> None:
    """Another maker's echo server's handler."""
    for message in connection:
        connection.send(message)


def converse(name: str, number: int, pipe: Connection) -> None:
    """A worker that sends numbered messages, and hears everybody's."""
    with attach(name, start="oldest", label=f"worker-{number}") as feed:
        pipe.send_bytes(b"attached")
        pipe.recv_bytes()
        tickets: list[int] = []

        def send() -> None:
            for count in range(MESSAGES):
                tickets.append(feed.send(f"{number} {count}", timeout=DEADLINE))
            feed.flush(timeout=DEADLINE)

        sending = threading.Thread(target=send)
        sending.start()
        received = [next(feed).text() for _ in range(WORKERS * MESSAGES)]
        sending.join(DEADLINE)
        pipe.send_bytes(json.dumps([tickets, received]).encode())


def test_what_workers_send_comes_back_to_all_of_them_in_ticket_order(
    name: str, processes: Processes
) -> None:
    with serve(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        with Manager(quick(name, f"ws://127.0.0.1:{port}/")):
            pipes = []
            for number in range(WORKERS):
                mine, theirs = Pipe()
                processes.start(converse, name, number, theirs)
                pipes.append(mine)
            for step in ("attached", "told"):
                found = []
                for pipe in pipes:
                    assert pipe.poll(DEADLINE), step
                    found.append(pipe.recv_bytes())
                for pipe in pipes if step == "attached" else ():
                    pipe.send_bytes(b"go")
            processes.join()
        server.shutdown()
    sent: dict[int, str] = {}
    for number, (tickets, _) in enumerate(map(json.loads, found)):
        assert tickets == sorted(tickets)
        sent.update((t, f"{number} {count}") for count, t in enumerate(tickets))
    assert sorted(sent) == [*range(WORKERS * MESSAGES)]
    for _, received in map(json.loads, found):
        assert received == [sent[ticket] for ticket in range(len(sent))]


def test_text_and_binary_of_every_size_arrive_as_they_were_sent(name: str) -> None:
    sizes = (0, 1, 125, 126, 65535, 65536, 100_000)
    received: list[bytes | str] = []

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        received.extend(peer.receive_messages(2 * len(sizes)))
        peer.answer_until_end()

    with (
        serving(script) as server,
        watching(quick(name, server.url, send_buffer_bytes=1 << 18)) as watch,
    ):
        for size in sizes:
            watch.feed.send("ä" * (size // 2) + "x" * (size % 2))
            watch.feed.send(bytes(size))
        watch.feed.flush(timeout=DEADLINE)
        eventually(lambda: len(received) == 2 * len(sizes), "all were received")
    assert received[::2] == ["ä" * (size // 2) + "x" * (size % 2) for size in sizes]
    assert received[1::2] == [bytes(size) for size in sizes]


def test_the_uplink_goes_on_while_the_ring_is_full(name: str) -> None:
    received: list[str] = []
    blocked = threading.Event()

    def flood_and_hear(sock: socket.socket) -> None:
        peer = Peer(sock)
        sock.settimeout(0.2)
        try:
            while True:
                peer.send("x" * 200)
        except TimeoutError:  # the manager has stopped reading
            blocked.set()
        sock.settimeout(None)
        while not received:
            frame = peer.receive()
            if isinstance(frame, Frame) and frame.opcode is Opcode.TEXT:
                received.append(bytes(frame.data).decode())

    options = {"slots": 64, "capacity": 1 << 16}
    with serving(flood_and_hear) as server, watching(quick(name, server.url, **options)) as watch:
        assert blocked.wait(DEADLINE)
        watch.feed.send("are you there")
        watch.feed.flush(timeout=DEADLINE)
        eventually(lambda: received, "it was received")
    assert received == ["are you there"]


def test_messages_longer_than_a_lane_go_through_it_in_parts(name: str) -> None:
    received: list[bytes | str] = []
    sent: list[bytes | str] = ["y" * 5000, "z" * 1_000_000, b"short", bytes(range(256)) * 4000]

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        received.extend(peer.receive_messages(len(sent)))
        peer.answer_until_end()

    options: dict[str, Any] = {"send_buffer_bytes": 4096, "capacity": 1 << 23}
    with serving(script) as server, watching(quick(name, server.url, **options)) as watch:
        for payload in sent:
            watch.feed.send(payload)
        watch.feed.flush(timeout=DEADLINE)
        eventually(lambda: len(received) == len(sent), "all were received")
        with pytest.raises(shm.MessageTooLarge, match="a quarter of the ring's capacity"):
            watch.feed.send(bytes(watch.feed.max_message + 1))
    assert received == sent


def test_tasks_send_through_a_small_lane_and_flush(name: str) -> None:
    received: list[str] = []
    count = 1000

    async def main(feed: Feed) -> None:
        async with asyncio.timeout(DEADLINE):
            for number in range(count):
                await feed.asend(f"{number}".ljust(100))
            await feed.asend("long".ljust(5000))
            await feed.aflush()

    with (
        serving(collecting(received)) as server,
        watching(quick(name, server.url, send_buffer_bytes=1024)) as watch,
    ):
        asyncio.run(main(watch.feed))
        eventually(lambda: len(received) == count + 1, "all were received")
    assert received == [*(f"{number}".ljust(100) for number in range(count)), "long".ljust(5000)]


def test_a_long_message_that_was_given_up_is_never_heard(name: str) -> None:
    received: list[str] = []
    listener = listen()

    async def give_up(feed: Feed) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await feed.asend("half".ljust(10_000))

    with watching(quick(name, url_of(listener), send_buffer_bytes=1024)) as watch:
        asyncio.run(give_up(watch.feed))  # nobody serves the socket yet
        assert mpsc.status(name).pending > 0
        with serving(collecting(received), listener=listener):
            watch.feed.send("whole".ljust(10_000), timeout=DEADLINE)
            watch.feed.flush(timeout=DEADLINE)
            eventually(lambda: received, "it was received")
            watch.end()
    assert received == ["whole".ljust(10_000)]


# ---- without a connection ------------------------------------------------------------------


def test_held_messages_follow_what_is_said_at_each_connect(name: str) -> None:
    received: list[str] = []
    listener = listen()
    config = quick(name, url_of(listener), initial_messages=("subscribe",))
    with watching(config) as watch:  # nobody serves the socket yet
        tickets = [watch.feed.send(f"order {n}") for n in range(3)]
        assert tickets == [0, 1, 2]
        with pytest.raises(TimeoutError, match="was not delivered in time"):
            watch.feed.flush(timeout=0)
        assert watch.feed.state.sent == 0
        with serving(collecting(received), listener=listener):
            watch.feed.flush(timeout=DEADLINE)
            eventually(lambda: len(received) == 4, "all were received")
            watch.end()
    assert received == ["subscribe", "order 0", "order 1", "order 2"]


def test_a_sender_waits_when_its_lane_holds_as_much_as_it_may(name: str) -> None:
    with (
        listen() as listener,
        watching(quick(name, url_of(listener), send_buffer_bytes=1024)) as watch,
    ):
        for _ in range(1024 // 128):
            watch.feed.send("x" * 100)
        with pytest.raises(shm.RingFull, match="its receiver is behind"):
            watch.feed.send("x" * 100, timeout=0)


def test_what_the_socket_did_not_take_is_sent_again_on_the_next_connection(name: str) -> None:
    received: list[str] = []
    reset = threading.Event()

    config_of: dict[str, Any] = {"send_buffer_bytes": 1 << 21}
    with (
        serving(unread(reset), collecting(received)) as server,
        watching(quick(name, server.url, **config_of)) as watch,
    ):
        watch.until("connected 1")
        texts = [f"{n} ".ljust(100_000, "x") for n in range(MANY)]
        sent = send_until_full(watch.feed, texts)
        (sender,) = mpsc.status(name).senders
        reset.set()
        watch.until("connected 2")
        watch.feed.flush(timeout=DEADLINE)
        eventually(lambda: received and received[-1] == texts[sent - 1], "the last was received")
        assert received == texts[sent - len(received) : sent]
        # What was still in the lane, at least, was not yet in any buffer of the socket.
        assert len(received) >= sender.pending_bytes // 100_100


def test_refusing_is_told_at_once_and_ends_with_the_connection(name: str) -> None:
    received: list[str] = []
    listener = listen()
    with watching(quick(name, url_of(listener), offline_sends="reject")) as watch:
        with pytest.raises(shm.SendRejected, match="there is no connection") as rejected:
            watch.feed.send("too early")
        assert rejected.value.count == 0
        with serving(collecting(received), listener=listener):
            watch.until("connected 1")

            def accepted() -> bool:
                try:
                    watch.feed.send("in time")
                except shm.SendRejected:
                    return False
                return True

            eventually(accepted, "the manager accepts")
            watch.feed.flush(timeout=DEADLINE)
            watch.end()
    assert received == ["in time"]


def test_messages_that_were_under_way_are_refused_when_the_connection_is_lost(name: str) -> None:
    reset = threading.Event()

    config_of: dict[str, Any] = {"send_buffer_bytes": 1 << 21, "offline_sends": "reject"}
    with (
        serving(unread(reset), sending()) as server,
        watching(quick(name, server.url, **config_of)) as watch,
    ):
        watch.until("connected 1")
        eventually(lambda: watch.feed.state.phase == "open", "it is open")
        send_until_full(watch.feed, ["x" * 100_000] * MANY)
        (sender,) = mpsc.status(name).senders
        reset.set()
        with pytest.raises(shm.SendRejected, match="were rejected") as rejected:
            watch.feed.flush(timeout=DEADLINE)
        assert 0 < rejected.value.count <= sender.pending


def test_when_the_manager_stops_what_was_held_is_refused(name: str) -> None:
    with listen() as listener, watching(quick(name, url_of(listener), drain_timeout=0.0)) as watch:
        watch.feed.send("never")
        watch.manager.stop()
        with pytest.raises((shm.SendRejected, shm.RingClosed)):
            watch.feed.flush(timeout=DEADLINE)
        with pytest.raises((shm.SendRejected, shm.RingClosed)):
            watch.feed.send("nor this")


def test_a_worker_s_last_words_go_out_while_the_manager_stops(name: str) -> None:
    received: list[str] = []
    with (
        serving(collecting(received)) as server,
        watching(quick(name, server.url, drain_timeout=DEADLINE)) as watch,
    ):
        watch.until("connected 1")
        watch.manager.stop()
        watch.until("stopped")  # the last record; until it reads on, the manager waits
        watch.feed.send("cancel everything")
        watch.feed.flush(timeout=DEADLINE)
        watch.rest()
    assert received == ["cancel everything"]


def test_after_a_manager_s_death_senders_are_told_what_nobody_knows(name: str) -> None:
    received: list[str] = []
    config_of: dict[str, Any] = {"send_buffer_bytes": 1 << 21, "drain_timeout": 0.0}
    reset = threading.Event()
    with serving(unread(reset), collecting(received)) as server:
        config = quick(name, server.url, **config_of)
        with (
            Manager(config) as manager,
            attach(name, start="oldest", events=True) as feed,
        ):
            eventually(lambda: feed.state.phase == "open", "it is open")
            sent = send_until_full(feed, [f"{n} ".ljust(100_000, "x") for n in range(MANY)])
            kill(manager)
            reset.set()
            with Manager(config):
                with pytest.raises(shm.SendUnconfirmed, match="may or may not") as unconfirmed:
                    feed.flush(timeout=DEADLINE)
                assert unconfirmed.value.count > 0
                feed.send("the last")
                feed.flush(timeout=DEADLINE)
                eventually(lambda: received and received[-1] == "the last", "it was received")
                numbers = [int(text.split()[0]) for text in received[:-1]]
                assert numbers == [*range(sent - len(numbers), sent)]


def test_a_manager_that_can_t_start_leaves_what_the_dead_one_held(name: str) -> None:
    received: list[str] = []
    listener = listen()
    config = quick(name, url_of(listener), drain_timeout=0.0)  # the feed reads nothing
    with Manager(config) as manager, attach(name) as feed:
        feed.send("held")
        kill(manager)
        with pytest.raises(ConfigError, match="slots=1000 is not a power of two"):
            Manager(replace(config, slots=1000)).run()
        with serving(collecting(received), listener=listener), Manager(config):
            feed.flush(timeout=DEADLINE)
            eventually(lambda: received == ["held"], "it was received")


def test_each_worker_may_have_so_many_messages_in_flight(name: str) -> None:
    with (
        listen() as listener,
        watching(quick(name, url_of(listener), max_in_flight=3)) as watch,
        attach(name) as other,
    ):
        assert [watch.feed.try_send("x") for _ in range(4)] == [0, 1, 2, None]
        assert other.try_send("y") == 3


# ---- at a bounded rate ---------------------------------------------------------------------


def test_nothing_is_sent_faster_than_the_rate(name: str) -> None:
    received: list[str] = []
    times: list[float] = []

    def noting(sock: socket.socket) -> None:
        peer = Peer(sock)
        with contextlib.suppress(EOFError, OSError):
            while True:
                frame = peer.receive()
                if isinstance(frame, Frame) and frame.opcode is Opcode.TEXT:
                    times.append(time.monotonic())
                    received.append(bytes(frame.data).decode())

    options: dict[str, Any] = {"send_rate": 100.0, "send_burst": 5, "initial_messages": ("a", "b")}
    with serving(noting) as server, watching(quick(name, server.url, **options)) as watch:
        began = time.monotonic()
        for number in range(40):
            watch.feed.send(str(number), timeout=DEADLINE)
        watch.feed.flush(timeout=DEADLINE)
        eventually(lambda: len(received) == 42, "all were received")
    assert received == ["a", "b", *map(str, range(40))]
    # 42 messages, of which 5 may go at once: the last not before 37 hundredths have gone by.
    assert times[-1] - began >= 0.99 * (42 - 5) / 100


def test_a_worker_over_its_share_waits_and_others_do_not(name: str) -> None:
    received: list[str] = []
    options: dict[str, Any] = {"send_rate": 200.0, "send_burst": 1}
    with (
        serving(collecting(received)) as server,
        watching(quick(name, server.url, **options)) as watch,
        attach(name, label="modest") as modest,
    ):
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                watch.feed.send("greedy", timeout=DEADLINE)

        greedy = threading.Thread(target=flood)
        greedy.start()
        try:
            eventually(lambda: len(received) > 10, "the flood is on its way")
            before = len(received)
            for _ in range(5):
                modest.send("modest", timeout=DEADLINE)
            modest.flush(timeout=DEADLINE)
            eventually(lambda: received.count("modest") == 5, "all modest ones were received")
        finally:
            stop.set()
            greedy.join(DEADLINE)
        last = len(received) - 1 - received[::-1].index("modest")
        # Two of each are under way at most, so no more than that go before each modest one.
        assert last - before <= 5 * 3 + 4


# ---- workers that are not to be trusted ----------------------------------------------------


@pytest.mark.parametrize(
    "misdeed",
    [
        pytest.param(lambda sender: sender.send(b"\xff", kind=shm.Kind.TEXT), id="not UTF-8"),
        pytest.param(lambda sender: sender.send(b"{}", kind=shm.Kind.EVENT), id="neither kind"),
    ],
)
def test_a_worker_that_would_have_the_connection_closed_is_evicted(
    name: str, misdeed: Callable[[mpsc.Sender], object], caplog: pytest.LogCaptureFixture
) -> None:
    received: list[str] = []
    with (
        serving(collecting(received)) as server,
        watching(quick(name, server.url)) as watch,
        mpsc.Sender.attach(name) as bad,
    ):
        watch.until("connected 1")
        misdeed(bad)
        watch.feed.send("still here")
        watch.feed.flush(timeout=DEADLINE)
        with pytest.raises((shm.SendRejected, shm.Evicted)):
            bad.flush(timeout=DEADLINE)
        with pytest.raises(shm.Evicted, match="evicted lane"):
            bad.send(b"more")
        eventually(lambda: received == ["still here"], "the honest one was received")
    assert "evicted" in caplog.text


def test_a_worker_that_only_reads_takes_no_lane(name: str) -> None:
    with serving(sending("hello")) as server, watching(quick(name, server.url)) as watch:
        watch.until("text hello")
        assert mpsc.status(name).senders == ()
        watch.feed.send("now")
        (sender,) = mpsc.status(name).senders
        assert sender.sent == 1
