"""attach("unix:/PATH") with a manager behind the gateway: sending, and the connection's state."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from ringcast import Manager, Phase, shm
from ringcast.broker.gateway.access import AccessRules
from ringcast.broker.worker.socket_feed import SocketFeed
from tests.conftest import DEADLINE, eventually
from tests.unit.conftest import Background

from .gateways import Command, attach, serving
from .manager import Peer, quick, running
from .manager import serving as server

ECHOED: Final = "echo "


def echo(sock: socket.socket) -> None:
    """A server that says what it was sent, and drops the connection when told to."""
    peer = Peer(sock)
    while True:
        for message in peer.receive_messages(1):
            if message == "drop":
                return
            said = message if isinstance(message, str) else f"{len(message)} bytes"
            peer.send(ECHOED + said)


@pytest.fixture
def manager(name: str) -> Iterator[Manager]:
    """A manager whose server echoes."""
    with server(echo) as there, running(quick(name, there.url, capacity=1 << 20)) as manager:
        yield manager


@pytest.fixture
def feed(manager: Manager, name: str, tmp_path: Path) -> Iterator[SocketFeed]:
    """A worker at a gateway of that manager."""
    del manager
    with serving(name, f"unix:{tmp_path}/g") as url, attach(url) as feed:
        yield feed


def said(feed: SocketFeed) -> str:
    message = feed.read(DEADLINE)
    assert message is not None
    return message.text()


def test_sending(feed: SocketFeed) -> None:
    first = feed.send("ä")
    second = feed.send(b"\0" * 3)
    third = feed.try_send(bytearray(b"text"), kind="text")
    assert third is not None
    assert first < second < third
    feed.flush(timeout=DEADLINE)
    feed.flush(first, timeout=0)
    assert [said(feed) for _ in range(3)] == ["echo ä", "echo 3 bytes", "echo text"]
    with pytest.raises(shm.MessageTooLarge):
        feed.send(b"x" * (feed.max_message + 1))
    with pytest.raises(ValueError, match="utf-8"):
        feed.send(b"\xff", kind="text")
    with pytest.raises(ValueError, match="kind"):
        feed.send("x", kind=shm.Kind.EVENT)


def test_a_long_message(feed: SocketFeed) -> None:
    feed.flush(feed.send(b"x" * 30_000, timeout=DEADLINE), timeout=DEADLINE)
    assert said(feed) == "echo 30000 bytes"


def test_many_threads_send(feed: SocketFeed) -> None:
    """More than may be under way, while nobody reads."""

    def send(thread: int) -> None:
        for n in range(600):
            feed.send(f"{thread} {n}", timeout=DEADLINE)

    senders = [Background(partial(send, thread)) for thread in range(3)]
    for sender in senders:
        sender.result()
    feed.flush(timeout=DEADLINE)
    texts = [said(feed).split() for _ in range(1800)]
    for thread in range(3):
        assert [int(n) for _, of, n in texts if of == str(thread)] == list(range(600))


def test_tasks_send(feed: SocketFeed) -> None:
    async def run() -> None:
        tickets = await asyncio.gather(*(feed.asend(str(n)) for n in range(1500)))
        assert tickets == sorted(tickets)
        async with asyncio.timeout(DEADLINE):
            await feed.aflush(tickets[0])
            await feed.aflush()
            found = [(await anext(feed)).text() for _ in range(1500)]
        assert found == [f"echo {n}" for n in range(1500)]
        with pytest.raises(TimeoutError):
            await feed.aflush(await feed.asend("last"), timeout=0)

    asyncio.run(run())


def test_a_gateway_that_is_read_only(manager: Manager, name: str, tmp_path: Path) -> None:
    del manager
    rules = AccessRules(read_only=True)
    with serving(name, f"unix:{tmp_path}/g", rules=rules) as url, attach(url) as feed:
        ticket = feed.send("x")
        with pytest.raises(shm.SendRejected, match="read-only") as caught:
            feed.flush(ticket, timeout=DEADLINE)
        assert caught.value.count == 1
        feed.flush(timeout=0)  # it is reported once


def test_what_a_gateway_took_to_its_grave_is_unconfirmed(
    manager: Manager, name: str, tmp_path: Path
) -> None:
    del manager
    listen = f"unix:{tmp_path}/g"
    gateway = Command(name, listen)
    try:
        with attach(listen) as feed:
            feed.flush(feed.send("1"), timeout=DEADLINE)
            assert said(feed) == "echo 1"
            gateway.stop()
            ticket = feed.send("2")
            with pytest.raises(TimeoutError):
                feed.flush(ticket, timeout=0.01)
            gateway.kill()
            with pytest.raises(shm.SendUnconfirmed) as caught:
                feed.flush(ticket, timeout=DEADLINE)
            assert caught.value.count == 1
            assert feed.try_send("3") is None
            with pytest.raises(shm.RingFull, match="not there"):
                feed.send("3", timeout=0.01)
            assert feed.state.phase == "orphaned"
            assert feed.state.last_error is not None
            gateway = Command(name, listen)
            feed.flush(feed.send("4", timeout=DEADLINE), timeout=DEADLINE)
            assert said(feed) in ("echo 2", "echo 4")
            assert feed.state.phase == "open"
    finally:
        gateway.kill()


def test_the_state(manager: Manager, feed: SocketFeed) -> None:
    eventually(lambda: feed.state.phase is Phase.OPEN, "open")
    feed.send("drop")
    eventually(lambda: feed.state.reconnects == 1, "another connection")
    manager.stop()
    eventually(lambda: feed.state.phase is Phase.STOPPED, "stopped")
    assert feed.read(0.01) is None


def test_events_tell_of_the_connection(manager: Manager, name: str, tmp_path: Path) -> None:
    del manager
    with serving(name, f"unix:{tmp_path}/g") as url, attach(url, events=True) as feed:
        feed.send("drop")
        for kind in ("disconnected", "reconnecting", "connecting", "connected"):
            while f'"event":"{kind}"' not in (event := said(feed).replace(" ", "")):
                assert event.startswith("{")
