"""Clients of a gateway that break, do what they should not, or may not come in; and all the while
one that behaves loses nothing."""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from ringcast import shm
from ringcast.shm.broadcast import Writer
from ringcast.shm.mpsc import Receiver
from tests.conftest import DEADLINE, Processes, eventually, leftovers
from tests.frames import BINARY, CLOSE, PING, PONG, TEXT, masked

from .gateway import Client, Closed, Gateway, Refused, gateway_of, request, start
from .rawserver import make_certificate
from .traffic import stress_seconds

RING: Final[dict[str, Any]] = {"slots": 1024, "capacity": 1 << 20, "max_readers": 8}
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
INVALID: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
TOO_SLOW: Final = 1013
TOKEN: Final = "0123456789abcdef-token"  # noqa: S105 - the test's own


class Stream:
    """A writer that goes on by itself, and a client that reads all of it."""

    def __init__(self, writer: Writer, gateway: Gateway) -> None:
        self._writer = writer
        self._stop = threading.Event()
        self._client = gateway.client("/?policy=block")
        self._sent = 0
        self._got: list[int] = []
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._write, self._read)
        ]

    def _write(self) -> None:
        while not self._stop.is_set():
            for _ in range(20):
                payload = str(self._sent).ljust(500).encode()
                self._writer.publish(payload, kind=shm.Kind.TEXT, timeout=DEADLINE)
                self._sent += 1
            self._stop.wait(0.001)  # a pace, not a wait for something

    def _read(self) -> None:
        while not self._got or self._got[-1] != -1:
            self._got.append(int(self._client.message()))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._threads[0].join(DEADLINE)
        self._writer.publish(b"-1", kind=shm.Kind.TEXT, timeout=DEADLINE)
        self._threads[1].join(DEADLINE)
        self._client.close()
        if kind is None:
            assert self._got == [*range(self._sent), -1]


@pytest.fixture(scope="module")
def ring() -> Iterator[str]:
    """The name of the ring of most of these tests; nothing of it is left."""
    ring = f"t{os.getpid()}-clients"
    yield ring
    assert leftovers(ring) == []


@pytest.fixture(scope="module")
def writer(ring: str) -> Iterator[Writer]:
    """Its writer."""
    with Writer.create(ring, **RING) as writer:
        yield writer


@pytest.fixture(scope="module")
def gateway(
    ring: str, writer: Writer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that reads it."""
    del writer
    with gateway_of(ring, tmp_path_factory.mktemp("gateway"), "--message-bytes=1000") as gateway:
        gateway.attached()
        yield gateway


@pytest.fixture
def stream(gateway: Gateway, writer: Writer) -> Iterator[Stream]:
    """It flows during the test."""
    with Stream(writer, gateway) as stream:
        yield stream


# ---- what clients send ---------------------------------------------------------------------

WRONG: Final = {
    "text that is not UTF-8": (masked(TEXT, b"a\xff"), INVALID),
    "text cut within a character": (masked(TEXT, b"\xe2\x82"), INVALID),
    "fragments that are not UTF-8": (masked(TEXT, b"\xe2", fin=False) + masked(0, b"a"), INVALID),
    "too long": (masked(BINARY, bytes(1001)), TOO_BIG),
    "fragments too long": (masked(BINARY, bytes(600), fin=False) + masked(0, bytes(600)), TOO_BIG),
    "not masked": (b"\x81\x05hello", PROTOCOL_ERROR),
    "reserved bit": (b"\xc1\x80\1\2\3\4", PROTOCOL_ERROR),
    "garbage": (random.Random(1).randbytes(3000), PROTOCOL_ERROR),
    "a response": (b"HTTP/1.1 200 OK\r\n\r\n", PROTOCOL_ERROR),
}


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_messages(gateway: Gateway, wrong: str) -> None:
    data, code = WRONG[wrong]
    with gateway.client() as client:
        client.sock.sendall(data)
        assert client.closed().code == code
        assert client.rest() == b""


@pytest.mark.usefixtures("stream")
def test_a_wrong_message_of_a_client_that_does_not_read(gateway: Gateway) -> None:
    """Its close stands between two frames, and until then it holds nothing: the other goes on."""
    with gateway.client("/?policy=block") as client:
        lag = shm.status(gateway.name).sequence
        eventually(lambda: shm.status(gateway.name).sequence > lag + 2000, "much is sent")
        client.sock.sendall(masked(TEXT, b"\xff"))
        eventually(lambda: shm.status(gateway.name).sequence > lag + 6000, "it goes on")
        assert client.closed().code in (INVALID, TOO_SLOW)


def test_a_client_closes(gateway: Gateway, writer: Writer) -> None:
    with gateway.client() as client:
        client.sock.sendall(masked(CLOSE, b"\x03\xe8bye"))
        assert client.closed() == Closed(1000, "bye")
        assert client.rest() == b""
    with gateway.client() as client:
        client.sock.sendall(masked(TEXT, b"a", fin=False) + masked(CLOSE))
        assert client.closed() == Closed(None, "")
    writer.publish(b"x")


def test_nobody_takes_what_clients_send(gateway: Gateway) -> None:
    """There is no uplink: a plain client can be told by its end alone."""
    with gateway.client() as client:
        client.send("hello")
        assert client.closed().code == 1012


# ---- how clients end, and begin ------------------------------------------------------------


def read_forever(path: str) -> None:
    """A process: a client that reads."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    client = Client(sock)
    client.shake_hands()
    while True:
        client.message()


@pytest.mark.usefixtures("stream")
def test_clients_killed_and_stopped(gateway: Gateway, processes: Processes) -> None:
    victims = [processes.start(read_forever, str(gateway.path)) for _ in range(4)]
    told = [f" serves pid {victim.pid} " for victim in victims]
    eventually(lambda: all(any(t in line for line in gateway.log) for t in told), "all are served")
    for victim in victims[:2]:
        processes.kill(victim)
    for victim in victims[2:]:
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGSTOP)
    now = shm.status(gateway.name).sequence
    eventually(lambda: shm.status(gateway.name).sequence > now + 5000, "the others go on")
    for victim in victims[2:]:
        processes.kill(victim)


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("reads", [True, False])
def test_half_closed(gateway: Gateway, reads: bool) -> None:
    """It costs no processor time: the gateway has nothing to do for it."""
    with gateway.client() as client:
        client.sock.shutdown(socket.SHUT_WR)
        if reads:
            assert client.closed() == Closed(None, "")
        now = shm.status(gateway.name).sequence
        eventually(lambda: shm.status(gateway.name).sequence > now + 2000, "the others go on")


BEFORE: Final = {
    "garbage": random.Random(2).randbytes(5000),
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "no handshake": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "POST": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    "a header without end": b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000,
    "headers without end": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    "a target without end": b"GET /" + b"y" * 100_000,
    "headers too long": b"GET / HTTP/1.1\r\n" + b"X: %s\r\n" % (b"y" * 4000) * 3 + b"\r\n",
    "nothing": b"",
    "half of it": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgr",
}


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("before", BEFORE)
def test_no_handshake(gateway: Gateway, before: str) -> None:
    data = BEFORE[before]
    with gateway.connect() as client:
        try:
            client.sock.sendall(data)
            client.sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            assert len(data) > 8192
        answer = client.rest()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
        assert b"Traceback" not in answer


def test_frames_right_behind_the_handshake(gateway: Gateway, ring: str) -> None:
    with (
        Receiver.create(ring, max_senders=2, lane_bytes=1 << 14) as receiver,
        gateway.connect() as client,
    ):
        client.sock.sendall(request() + masked(TEXT, b"at once") + masked(PING, b"!"))
        envelope = receiver.read(timeout=DEADLINE)
        assert envelope is not None
        assert envelope.text() == "at once"
        assert client.head().startswith("HTTP/1.1 101 ")
        assert client.frame() == (PONG, b"!")


def test_a_close_right_behind_the_handshake(gateway: Gateway) -> None:
    with gateway.connect() as client:
        client.sock.sendall(request() + masked(CLOSE, b"\x03\xe8"))
        assert client.head().startswith("HTTP/1.1 101 ")
        assert client.closed() == Closed(1000, "")


def test_a_handshake_byte_by_byte(gateway: Gateway) -> None:
    with gateway.connect_tcp() as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(gateway.host) + masked(PING, b"!"):
            client.sock.sendall(bytes([byte]))
        assert client.head().startswith("HTTP/1.1 101 ")
        assert client.frame() == (PONG, b"!")


@pytest.mark.usefixtures("stream")
def test_a_thousand_connections_at_once(gateway: Gateway) -> None:
    """Each is served; half of them have a handshake. Then all leave."""
    before = len(descriptors(gateway))
    clients = [gateway.connect() for _ in range(1000)]
    for client in clients[::2]:
        client.sock.sendall(request(target="/?topics="))
    for client in clients[::2]:
        assert client.head().startswith("HTTP/1.1 101 ")
    for client in clients:
        client.close()
    eventually(lambda: len(descriptors(gateway)) <= before + 10, "all have gone")


def descriptors(gateway: Gateway) -> list[str]:
    """Files that its process has open."""
    return os.listdir(f"/proc/{gateway.process.pid}/fd")  # noqa: PTH208


class Rabble:
    """Clients that come, do anything, and go."""

    def __init__(self, gateway: Gateway, dice: random.Random) -> None:
        self._gateway = gateway
        self._dice = dice
        self._idle: list[Client] = []

    def turn(self) -> None:
        """One comes; sooner or later it goes."""
        client = self._gateway.connect() if self._dice.random() < 0.7 else self._by_tcp()
        self._idle.append(client)
        what = self._dice.randrange(6)
        if what == 0:
            client.sock.sendall(self._dice.choice([*BEFORE.values()])[:8000])
        elif what == 1:
            data = request()
            client.sock.sendall(data[: self._dice.randrange(len(data))])
        else:
            self._serve(client, what)
        while len(self._idle) > self._dice.randrange(30):
            self._end(self._idle.pop(self._dice.randrange(len(self._idle))))

    def _by_tcp(self) -> Client:
        return self._gateway.connect_tcp()

    def _serve(self, client: Client, what: int) -> None:
        start = self._dice.choice(("latest", "oldest", "1"))
        policy = self._dice.choice(("lossy", "block"))
        more = "Sec-WebSocket-Protocol: ringcast.1\r\n" if self._dice.random() < 0.5 else ""
        client.shake_hands(f"/?start={start}&policy={policy}", more=more)
        if what == 2:
            client.sock.sendall(self._dice.choice([*WRONG.values()])[0])
        elif what == 3:
            client.sock.shutdown(socket.SHUT_WR)
        elif what == 4:
            client.end_or(self._dice.randrange(200))

    def _end(self, client: Client) -> None:
        if self._dice.random() < 0.3:  # as a machine does that has forgotten it
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()

    def go(self) -> None:
        """All leave."""
        for client in self._idle:
            self._end(client)


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("brief", [True, pytest.param(False, marks=pytest.mark.stress)])
def test_clients_of_every_kind(gateway: Gateway, seed: int, brief: bool) -> None:
    before = len(descriptors(gateway))
    rabble = Rabble(gateway, random.Random(seed))
    end = time.monotonic() + (0.5 if brief else stress_seconds())
    while time.monotonic() < end:
        rabble.turn()
    rabble.go()
    eventually(lambda: len(descriptors(gateway)) <= before + 10, "all have gone")


def test_more_clients_than_there_may_be(name: str, tmp_path: Path) -> None:
    with (
        Writer.create(name, **RING) as writer,
        gateway_of(name, tmp_path, "--clients=2") as gateway,
    ):
        gateway.attached()
        with gateway.client() as one:
            with (
                gateway.client(),
                gateway.connect() as three,
                pytest.raises(Refused, match="which is the limit"),
            ):
                three.shake_hands()
            eventually(lambda: comes_in(gateway), "there is room again")
            writer.publish(b"x")
            assert one.message() == b"x"


def comes_in(gateway: Gateway) -> bool:
    """Is a client let in?"""
    try:
        with gateway.client():
            return True
    except Refused:
        return False


# ---- who may come in -----------------------------------------------------------------------


def test_the_socket_is_its_owners(gateway: Gateway) -> None:
    assert stat.S_IMODE(gateway.path.stat().st_mode) == 0o600


def test_a_second_gateway_at_the_same_path(gateway: Gateway) -> None:
    second = start(gateway.name, f"unix:{gateway.path}")
    _, said = second.communicate(timeout=DEADLINE)
    assert second.returncode != 0
    assert "another gateway listens there" in said
    assert "Traceback" not in said
    gateway.client().close()


WRONG_OPTIONS: Final = {
    ("0.0.0.0:0",): "--token-file",
    ("127.0.0.1:0", "--certificate=/dev/null"): "--certificate",
}
"""Options, and a word of what is said to them."""


def test_what_it_does_not_start_with(name: str) -> None:
    started = [(start(name, *options), why) for options, why in WRONG_OPTIONS.items()]
    for process, why in started:
        _, said = process.communicate(timeout=DEADLINE)
        assert process.returncode not in (0, -signal.SIGKILL)
        assert why in " ".join(said.split())
        assert "Traceback" not in said


def test_hosts_and_origins(gateway: Gateway) -> None:
    def answer(host: str, more: str = "") -> str:
        with gateway.connect_tcp() as client:
            try:
                client.shake_hands(host=host, more=more)
            except Refused as refused:
                return str(refused).split()[1]
            return "101"

    assert answer(gateway.host) == "101"
    assert answer("localhost") == "101"
    assert answer("example.com") == "403"
    assert answer(gateway.host, "Origin: https://example.com\r\n") == "403"
    assert answer(gateway.host, "Origin: null\r\n") == "403"
    assert answer(gateway.host, f"Origin: http://{gateway.host}\r\n") == "101"
    with gateway.connect() as client:  # over a Unix socket neither is judged
        client.shake_hands(host="example.com", more="Origin: https://example.com\r\n")


def test_tokens_and_read_only_over_tls(name: str, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"{TOKEN}\n", encoding="ascii")
    options = (f"--certificate={certificate}", f"--private-key={key}", f"--token-file={tokens}")
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        Writer.create(name, **RING) as writer,
        gateway_of(name, tmp_path, "--read-only", *options) as gateway,
    ):
        gateway.attached()
        for target in ("/", "/?token=wrong-0123456789abcdef"):
            with gateway.connect_tcp(context) as client, pytest.raises(Refused, match="401"):
                client.shake_hands(target)
        with gateway.connect_tcp() as plain:
            plain.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"101" not in plain.rest()
        bearer = f"Authorization: Bearer {TOKEN}\r\n"
        with gateway.connect_tcp(context) as one, gateway.connect_tcp(context) as two:
            one.shake_hands(more=bearer)
            two.shake_hands(f"/?token={TOKEN}")
            one.is_served()
            two.is_served()
            payloads = [bytes([i]) * 100_000 for i in range(100)]
            for payload in payloads:
                writer.publish(payload, timeout=DEADLINE)
                assert one.message() == two.message() == payload
            one.send("hello")
            assert one.closed() == Closed(POLICY, "this gateway is read-only")
            writer.publish(b"x")
            assert two.message() == b"x"
        assert not [line for line in gateway.log if TOKEN in line]
