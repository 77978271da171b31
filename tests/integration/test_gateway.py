"""The gateway's command and its clients: what goes down, what goes up, where it begins, and how it
ends. What clients do wrong is in test_gateway_clients.py."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ringcast import Manager, shm
from ringcast.broker.worker.wire import Hello, Record, RecordType, records
from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import DEADLINE, eventually, leftovers, reader_status
from tests.frames import BINARY, TEXT, masked

from .gateway import Client, Closed, Gateway, Refused, gateway_of
from .manager import Peer, kill, quick, sending, serving
from .subscribers import TOPICS, config_of
from .venues import VenueServer

SMALL: Final[dict[str, Any]] = {"slots": 64, "capacity": 1 << 16, "max_readers": 8}
LARGE: Final[dict[str, Any]] = {"slots": 1024, "capacity": 4 << 20, "max_readers": 8}
AS_RECORDS: Final = "Sec-WebSocket-Protocol: v1.json, ringcast.1\r\n"
KINDS: Final = (shm.Kind.TEXT, shm.Kind.BINARY)
GOING_AWAY: Final = 1001
RESTART: Final = 1012
TRY_AGAIN: Final = 1013


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without options, which serves one ring after the other."""
    ring = f"t{os.getpid()}-gateway"
    with gateway_of(ring, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway
    assert leftovers(ring) == []


@pytest.fixture
def writer(shared: Gateway) -> Iterator[Writer]:
    """A ring without a manager."""
    with Writer.create(shared.name, **LARGE) as writer:
        yield writer


@pytest.fixture
def gateway(shared: Gateway, writer: Writer) -> Gateway:
    """It reads that ring."""
    del writer
    shared.attached()
    return shared


@pytest.fixture
def small(shared: Gateway) -> Iterator[Writer]:
    """A ring that is full soon; the gateway reads it."""
    with Writer.create(shared.name, **SMALL) as writer:
        shared.attached()
        yield writer


def numbered(writer: Writer, count: int, size: int = 0) -> list[str]:
    """Publish so many texts of a size at least; they are returned."""
    first = writer.sequence
    texts = [f"{first + i}".ljust(size, ".") for i in range(count)]
    for text in texts:
        writer.publish(text.encode(), kind=shm.Kind.TEXT, timeout=DEADLINE)
    return texts


# ---- down ----------------------------------------------------------------------------------


def test_messages_as_they_are(gateway: Gateway, writer: Writer, seed: int) -> None:
    """All lengths and both kinds, to a client over each kind of socket."""
    dice = random.Random(seed)
    sizes = [0, 1, 125, 126, 127, 1024, 1025, 65535, 65536, writer.max_message]
    sent: list[str | bytes] = []
    with gateway.client() as one, gateway.connect_tcp() as two:
        two.shake_hands()
        two.is_served()
        for size, kind in itertools.product(sizes, KINDS):
            data = dice.randbytes(size)
            if kind is shm.Kind.TEXT:
                data = data.hex().encode()[:size]
            writer.publish(data, kind=kind, timeout=DEADLINE)
            sent.append(data.decode() if kind is shm.Kind.TEXT else data)
        assert one.messages(len(sent)) == sent
        assert two.messages(len(sent)) == sent


def test_where_a_client_begins(gateway: Gateway, writer: Writer) -> None:
    texts = numbered(writer, 20)
    starts = {"oldest": 0, "7": 7, "latest": 20, "999": 20}
    with gateway.client() as main:
        clients = {start: gateway.client(f"/x?start={start}&y=1") for start in starts}
        texts += numbered(writer, 5)
        assert main.messages(5) == texts[20:]
        for start, client in clients.items():
            with client:
                assert client.messages(25 - starts[start]) == texts[starts[start] :]
        eventually(
            lambda: len(shm.status(gateway.name).readers) == 1,
            "those that began earlier have caught up",
        )


def test_a_sequence_that_is_gone(shared: Gateway, small: Writer) -> None:
    numbered(small, 500)
    with shared.client("/?start=3") as client:
        missed, (code, reason) = client.end()
    assert (missed, code) == ([], RESTART)
    assert "missed" in reason
    with shared.client("/?start=oldest") as client:
        first = int(str(client.message()))
        assert 400 < first < 500
        assert client.messages(499 - first) == [str(i) for i in range(first + 1, 500)]


def records_of(client: Client, last: int) -> list[Record]:
    """What a client gets that asked for records, up to the message of that sequence."""
    found: list[Record] = []
    while not any(r.type is RecordType.MESSAGE and r.sequence == last for r in found):
        message = client.message()
        assert isinstance(message, bytes)
        found += records(message)
    return found


def test_records_say_what_was_missed(shared: Gateway, small: Writer) -> None:
    """Before it came, and while it did not read."""
    numbered(small, 500)
    with shared.client("/?start=3", more=AS_RECORDS) as client:
        early = records_of(client, 499)
        for _ in range(300):
            numbered(small, 20, size=1000)
        got = early + records_of(client, small.sequence - 1)
    hello = Hello.decode(got[0].payload)
    assert (hello.ring, hello.slots) == (shared.name, SMALL["slots"])
    assert got[1].type is RecordType.STATE
    messages = [r for r in got if r.type is RecordType.MESSAGE]
    expected = 3
    for record in messages:
        assert record.sequence == expected + record.gap
        assert bytes(record.payload).rstrip(b".") == b"%d" % record.sequence
        expected = record.sequence + 1
    assert expected == 500 + 300 * 20
    assert messages[0].gap > 400
    assert len([r for r in messages if r.gap]) > 1


def test_topics(gateway: Gateway, writer: Writer) -> None:
    ids = {text: writer.topic(text) for text in ("trade:A", "trade:B", "book:A")}

    def publish() -> None:
        for text, topic in ids.items():
            writer.publish(text.encode(), topic=topic, kind=shm.Kind.TEXT)
        writer.publish(b"none", kind=shm.Kind.TEXT)

    with (
        gateway.client("/?topics=trade:*") as trades,
        gateway.client("/?topics=book:A,quote:A&others=true") as some,
        gateway.client("/?topics=") as nothing,
        gateway.client() as everything,
    ):
        publish()
        ids = {"quote:A": writer.topic("quote:A"), "trade:C": writer.topic("trade:C")}
        publish()
        writer.close()
        assert [m.decode() for m in everything.end()[0]] == [
            *("trade:A", "trade:B", "book:A", "none", "quote:A", "trade:C", "none")
        ]
        assert trades.end()[0] == [b"trade:A", b"trade:B", b"trade:C"]
        assert some.end()[0] == [b"book:A", b"none", b"quote:A", b"none"]
        assert nothing.end()[0] == []


# ---- up ------------------------------------------------------------------------------------


def test_what_clients_send_goes_up(gateway: Gateway, writer: Writer) -> None:
    """Text as text, binary as binary, in order; short, long, in fragments, more than there is room
    for at a time."""
    del writer
    messages: list[str | bytes] = [
        "text",
        b"\0binary",
        "",
        b"",
        "€" * 1000,
        *(f"{i}" * 40 for i in range(2000)),
    ]
    with (
        Receiver.create(gateway.name, max_senders=2, lane_bytes=1 << 14) as receiver,
        gateway.client() as client,
    ):

        def send() -> None:
            client.send(*messages[:5])
            client.send_parts(TEXT, b"\xe2", b"", b"\x82\xac", b"!")
            client.send_parts(BINARY, b"\xe2", b"\xe2")
            client.send(*messages[5:])

        sends = threading.Thread(target=send, daemon=True)
        sends.start()
        expected = [*messages[:5], "€!", b"\xe2\xe2", *messages[5:]]
        got: list[str | bytes] = []
        for _ in expected:
            envelope = receiver.read(timeout=DEADLINE)
            assert envelope is not None
            is_text = envelope.kind == shm.Kind.TEXT
            got.append(envelope.text() if is_text else bytes(envelope))
        assert got == expected
        sends.join(DEADLINE)
        client.is_served()


def test_through_the_manager_and_back(name: str, tmp_path: Path) -> None:
    """Long messages, too, which go to the manager in parts."""
    said: list[str | bytes] = []
    sizes = (10, 70_000, 300_000, 5)
    down = ["welcome"]

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        said.extend(peer.receive_messages(2 * len(sizes)))
        peer.send(*down)
        peer.answer_until_end()

    with serving(script) as server, Manager(quick(name, server.url, **LARGE)) as manager:
        with gateway_of(name, tmp_path) as gateway:
            gateway.attached()
            with gateway.client() as client:
                sent: list[str | bytes] = []
                for size in sizes:
                    sent += ["t" * size, b"b" * size]
                client.send(*sent)
                assert client.message() == "welcome"
                assert said == sent
        manager.stop()


# ---- its end, and the upstream connection's -------------------------------------------------


def test_a_ring_that_ends_and_the_next(name: str, tmp_path: Path) -> None:
    """Who is slow gets all of it before its close."""
    with gateway_of(name, tmp_path) as gateway:
        with gateway.connect() as early, pytest.raises(Refused, match="503"):
            early.shake_hands()
        for _ in range(2):
            with Writer.create(name, **LARGE) as writer:
                gateway.attached()
                with gateway.client() as quick_one, gateway.client("/?policy=block") as slow:
                    texts = numbered(writer, 500, size=2000)
                    writer.close()
                    for client in (quick_one, slow):
                        got, (code, reason) = client.end()
                        assert [m.decode() for m in got] == texts
                        assert (code, reason) == (GOING_AWAY, "the manager has stopped")


def test_the_gateway_ends(name: str, tmp_path: Path) -> None:
    with Writer.create(name, **SMALL):
        gateway = Gateway(name, tmp_path)
        gateway.attached()
        with gateway.client() as client, gateway.connect() as other:
            gateway.process.send_signal(signal.SIGTERM)
            assert client.closed() == Closed(GOING_AWAY, "the gateway ends")
            assert other.rest() == b""
            assert gateway.stop() == 0
        assert not gateway.path.exists()


@pytest.mark.parametrize("on_loss", ["close", "keep"])
def test_the_connection_to_the_server_is_lost(name: str, tmp_path: Path, on_loss: str) -> None:
    def first(sock: socket.socket) -> None:
        peer = Peer(sock)
        assert peer.receive_messages(1) == ["go"]
        peer.send("a", "b")
        peer.reset()

    with (
        serving(first, sending("c")) as server,
        Manager(quick(name, server.url, **LARGE)),
        gateway_of(name, tmp_path, f"--on-loss={on_loss}") as gateway,
    ):
        gateway.attached()
        with gateway.client() as client:
            client.send("go")
            assert client.messages(2) == ["a", "b"]
            if on_loss == "keep":
                assert client.message() == "c"
            else:
                assert client.closed() == Closed(RESTART, "the connection to the server was lost")


def test_many_clients_end_at_once(gateway: Gateway, writer: Writer) -> None:
    clients = [gateway.client() for _ in range(150)]
    numbered(writer, 1)
    writer.publish(b'{"event":"disconnected"}', kind=shm.Kind.EVENT)
    numbered(writer, 1)
    for client in clients:
        with client:
            got, closed = client.end()
            assert (got, closed.code) == ([b"0"], RESTART)
    with gateway.client("/?start=2") as client:
        assert client.message() == "2"


def test_the_manager_is_killed_and_resumes(name: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(sending("a"), sending("b")))
        config = quick(name, server.url, **LARGE)
        manager = stack.enter_context(Manager(config))
        gateway = stack.enter_context(gateway_of(name, tmp_path))
        gateway.attached()
        with gateway.client("/?start=oldest") as client:
            assert client.message() == "a"
            kill(manager)
            eventually(lambda: shm.status(name).state != "open", "its lock is released")
            stack.enter_context(Manager(config))
            assert client.closed() == Closed(RESTART, "the connection to the server was lost")
        with gateway.client() as new:
            new.is_served()


def test_the_gateway_is_killed(name: str, tmp_path: Path) -> None:
    """Another one takes its socket's place."""
    with Writer.create(name, **LARGE) as writer:
        first = Gateway(name, tmp_path)
        first.attached()
        with first.client() as client:
            texts = numbered(writer, 10)
            assert client.messages(10) == texts
            first.kill()
            assert client.closed().code is None
        assert first.process.stderr is not None
        first.process.stderr.close()
        texts += numbered(writer, 10)
        with gateway_of(name, tmp_path) as second:
            second.attached()
            with second.client("/?start=5") as client:
                assert client.messages(15) == texts[5:]


# ---- wishes --------------------------------------------------------------------------------


def test_wishes_are_counted_per_client(name: str, tmp_path: Path) -> None:
    one, two, _, *_ = TOPICS["binance"]
    with (
        VenueServer("binance") as server,
        Manager(config_of(server.url, name, "binance")),
        gateway_of(name, tmp_path) as gateway,
    ):
        gateway.attached()
        first = gateway.client(f"/?topics={one}")
        server.wait_for(one)
        second = gateway.client(f"/?topics={one},{two}")
        server.wait_for(one, two)
        with gateway.connect() as wrong, pytest.raises(Refused):
            wrong.shake_hands(f"/?topics={one}&start=never")
        for topic in (one, two):
            server.publish(topic)
        assert f'"{one}"' in str(first.message())
        assert f'"{one}"' in str(second.message())
        assert f'"{two}"' in str(second.message())
        first.close()
        server.publish(one)
        assert f'"{one}"' in str(second.message())
        assert server.subscribed == {one, two}
        second.close()
        server.wait_for()
        assert not server.violations


# ---- slow clients --------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lossy", "block"])
def test_a_client_that_does_not_read(shared: Gateway, small: Writer, policy: str) -> None:
    """It costs the ring's writer at most `hold`, another client nothing, and then it is closed
    between two messages."""
    with shared.client(f"/?policy={policy}") as slow, shared.client() as good:
        texts = []
        for _ in range(300):
            texts += numbered(small, 20, size=1000)
            assert good.messages(20) == texts[-20:]
        got, (code, reason) = slow.end()
        assert code == TRY_AGAIN
        assert "too slow" in reason
        assert [m.decode() for m in got] == texts[: len(got)]
        assert len(got) < len(texts)


def test_a_client_that_blocks_holds_the_ring(name: str, tmp_path: Path) -> None:
    """A slow one that blocks loses nothing, as long as it is not slower than `hold`."""
    with (
        Writer.create(name, **SMALL) as writer,
        gateway_of(name, tmp_path, f"--hold={DEADLINE}") as gateway,
    ):
        gateway.attached()
        with gateway.client("/?policy=block") as slow:
            count = 0
            while writer.try_publish(b"%d" % count + bytes(1000)) is not None or not blocked(name):
                count += 1 if writer.sequence > count else 0
            for i in range(count):
                message = slow.message()
                assert isinstance(message, bytes)
                assert message.rstrip(b"\0") == b"%d" % i
            numbered(writer, 100)


def blocked(name: str) -> bool:
    """Is its reader a whole ring behind?"""
    status = reader_status(name)
    return status is not None and status.lag >= SMALL["slots"] - SMALL["slots"] // 8


def test_pings_are_answered_amid_a_flood(gateway: Gateway, writer: Writer) -> None:
    with gateway.client() as client:
        client.sock.sendall(b"".join(masked(9, b"%d" % i) for i in range(50)))
        texts = numbered(writer, 500)
        pongs: list[str] = []
        got: list[str] = []
        while len(pongs) < 50 or len(got) < 500:
            opcode, payload = client.frame()
            (pongs if opcode == 10 else got).append(payload.decode())
        assert pongs == [str(i) for i in range(50)]
        assert got == texts
