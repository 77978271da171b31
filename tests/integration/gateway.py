"""What the gateway's tests share: the command in a process, and clients of the tests' own that do
byte by byte what a test wants.

    with Writer.create(name) as writer, gateway_of(name, folder) as gateway:
        with gateway.client("/?start=oldest") as client:
            assert client.message() == "hello"
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.conftest import DEADLINE, eventually, reader_status
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, masked

_URL: Final = re.compile(r"serves ring \S+ at (\S+)")
_READ: Final = 1 << 16
_HANDSHAKE: Final = (
    "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


class Closed(NamedTuple):
    """How the gateway ended a connection: its close frame's code, None without one, and reason."""

    code: int | None
    reason: str


class Refused(Exception):
    """The handshake's answer was another one: status line, headers and body."""


def request(host: str = "localhost", target: str = "/", more: str = "") -> bytes:
    """A handshake; `more`: other headers, each ended."""
    return _HANDSHAKE.format(target=target, host=host, more=more).encode()


class Client:
    """A connection to a gateway; it does nothing by itself.

    Attributes:
        sock: its socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = bytearray()
        self._frames: collections.deque[tuple[int, bytes]] = collections.deque()
        sock.settimeout(DEADLINE)

    def shake_hands(self, target: str = "/", host: str = "localhost", more: str = "") -> None:
        """Raises Refused."""
        self.sock.sendall(request(host, target, more))
        head = self.head()
        if not head.startswith("HTTP/1.1 101 "):
            raise Refused(head + self.rest().decode("latin-1"))

    def head(self) -> str:
        """An HTTP answer without its body; empty at the end of the stream."""
        while b"\r\n\r\n" not in self._data:
            if not self._more():
                return ""
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data[:] = rest
        return head.decode("latin-1")

    def rest(self) -> bytes:
        """Everything to the end of the stream."""
        while self._more():
            pass
        return bytes(self._data)

    def _more(self) -> bool:
        try:
            data = self.sock.recv(_READ)
        except ConnectionResetError:  # it had sent something that the gateway did not read
            return False
        self._data += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            if not self._more():
                raise EOFError
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken

    def frame(self) -> tuple[int, bytes]:
        """The next frame, unmasked and FIN. Raises EOFError."""
        return self._frames.popleft() if self._frames else self._receive()

    def _receive(self) -> tuple[int, bytes]:
        first, length = self._take(2)
        assert first & 0xF0 == 0x80, f"a frame begins with {first:#x}"
        if length > 125:
            length = int.from_bytes(self._take(2 if length == 126 else 8), "big")
        return first & 0x0F, self._take(length)

    def message(self) -> str | bytes:
        """The next message, text as str; pings are answered."""
        while True:
            opcode, payload = self.frame()
            if opcode == TEXT:
                return payload.decode()
            if opcode == BINARY:
                return payload
            if opcode == PING:
                self.sock.sendall(masked(PONG, payload))
            assert opcode in (PING, PONG), f"closed: {payload!r}"

    def messages(self, count: int) -> list[str | bytes]:
        """The next ones."""
        return [self.message() for _ in range(count)]

    def end(self) -> tuple[list[bytes], Closed]:
        """All messages to the end of the connection, and how it was closed."""
        found: list[bytes] = []
        with contextlib.suppress(EOFError):
            while True:
                opcode, payload = self.frame()
                if opcode == CLOSE:
                    with contextlib.suppress(OSError):
                        self.sock.sendall(masked(CLOSE, payload))
                        self.sock.shutdown(socket.SHUT_WR)
                    code = struct.unpack("!H", payload[:2])[0] if payload else None
                    return found, Closed(code, payload[2:].decode())
                if opcode in (TEXT, BINARY):
                    found.append(payload)
        return found, Closed(None, "")

    def end_or(self, frames: int) -> None:
        """Read so many frames, or to the end."""
        with contextlib.suppress(EOFError):
            for _ in range(frames):
                if self.frame()[0] == CLOSE:
                    return

    def closed(self) -> Closed:
        """How it was closed, whatever came before."""
        return self.end()[1]

    def send(self, *messages: str | bytes) -> None:
        """Send messages: str as text, bytes as binary."""
        for message in messages:
            is_text = isinstance(message, str)
            data = message.encode() if isinstance(message, str) else message
            self.sock.sendall(masked(TEXT if is_text else BINARY, data))

    def send_parts(self, opcode: int, *parts: bytes) -> None:
        """Send a message in fragments."""
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            self.sock.sendall(masked(CONTINUATION if i else opcode, part, fin=last))

    def is_served(self) -> None:
        """Wait until what it has sent has been read: a ping comes back."""
        self.sock.sendall(masked(PING, b"are you there"))
        while (frame := self._receive()) != (PONG, b"are you there"):
            self._frames.append(frame)
            if frame[0] == CLOSE:
                return

    def close(self) -> None:
        """At once."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


def connected_to(path: Path) -> Client:
    """A connection to the gateway at a Unix socket, without a handshake."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(str(path))
    return Client(sock)


def client_of(path: Path, target: str = "/", more: str = "") -> Client:
    """A client of the gateway at a Unix socket; served once this returns."""
    client = connected_to(path)
    try:
        client.shake_hands(target, more=more)
        client.is_served()
    except BaseException:
        client.close()
        raise
    return client


class Gateway:
    """The command in a process, at a Unix socket and at a TCP port; ready once this is made.

    Args:
        name: of the ring.
        folder: for its Unix socket.
        options: more of the command's.

    Attributes:
        path: of the Unix socket.
        host: HOST:PORT where it listens.
        log: lines of its log so far.
    """

    def __init__(self, name: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.name = name
        self.path = folder / "g.sock"
        self.host = ""
        self.log: list[str] = []
        self.process = start(name, f"unix:{self.path}", "127.0.0.1:0", *options)
        self._thread = threading.Thread(target=self._read_log, daemon=True)
        self._thread.start()
        eventually(lambda: self.host or self.process.poll() is not None, "the gateway listens")
        assert self.host, self.log

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            found = _URL.search(line)
            if found is not None and found[1].startswith("ws"):
                self.host = found[1].partition("://")[2]

    def attached(self) -> None:
        """Wait until it reads the ring."""
        eventually(lambda: reader_status(self.name) is not None, "the gateway is attached")

    def connect(self) -> Client:
        """A connection over the Unix socket, without a handshake."""
        return connected_to(self.path)

    def connect_tcp(self, context: ssl.SSLContext | None = None) -> Client:
        """A connection over TCP, without a handshake; by TLS with a context."""
        host, _, port = self.host.rpartition(":")
        sock = socket.create_connection((host, int(port)), DEADLINE)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=host)
        return Client(sock)

    def client(self, target: str = "/", more: str = "") -> Client:
        """A client over the Unix socket; served once this returns."""
        return client_of(self.path, target, more)

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait(DEADLINE)
        self._thread.join(DEADLINE)

    def stop(self) -> int:
        """End it in order; its exit status. What went wrong in it fails the test."""
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        finally:
            self.kill()
            assert self.process.stderr is not None
            self.process.stderr.close()
        assert not [line for line in self.log if "Traceback" in line or "rror:" in line], self.log
        return self.process.returncode


def start(name: str, *given: str) -> subprocess.Popen[str]:
    """The command; addresses to listen at, and options as --NAME=VALUE."""
    arguments: list[str] = []
    for text in given:
        arguments += [text] if text.startswith("--") else ["--listen", text]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "ringcast", "gateway", name, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
    )


@contextlib.contextmanager
def gateway_of(name: str, folder: Path, *options: str) -> Iterator[Gateway]:
    """The command inside the block; options as --NAME=VALUE."""
    gateway = Gateway(name, folder, options)
    try:
        yield gateway
    finally:
        status = gateway.stop()
    assert status == 0, gateway.log
