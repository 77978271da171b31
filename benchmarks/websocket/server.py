"""The server: a process that writes blocks of frames to its clients."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import math
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import RunFailedError
from ..processes import Channel, Children, child_processes, pin_to_core
from .frames import CLOSE_FRAME, FRAMES, ROUND, Writes, end_payload, frame

RECEIVE_BYTES: Final = 256 << 10
"""The most that one receive takes."""
TICK_NS: Final = 1_000_000
"""Between two writes at a fixed rate."""
CLIENTS_MOST: Final = 16
_ENCRYPTED_AHEAD_S_MOST: Final = 0.5
_OPENSSL_TIMEOUT_S: Final = 60
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""Of RFC 6455, section 1.3, for the answer to a handshake."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files of the server's self-signed certificate for 127.0.0.1, and of its key."""

    chain: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        """Make them with the program openssl.

        Raises:
            RunFailedError: it is missing, or it fails.
        """
        openssl = shutil.which("openssl")
        if openssl is None:
            raise RunFailedError("the certificate needs the program openssl, which is missing")
        made = cls(folder / "chain.pem", folder / "key.pem")
        command = [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=ringcast benchmark"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(made.key), "-out", str(made.chain)),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_OPENSSL_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RunFailedError(f"openssl made no certificate: {done.stderr}")
        return made

    def server_context(self) -> ssl.SSLContext:
        """For the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For clients, which verify it."""
        return ssl.create_default_context(cafile=self.chain)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens, and its certificate if it speaks TLS."""

    port: int
    certificate: Certificate | None = None

    @property
    def url(self) -> str:
        """For clients."""
        return f"{'ws' if self.certificate is None else 'wss'}://127.0.0.1:{self.port}/"


class _Connection:
    """The server's end of one connection, after its handshakes.

    TLS is done in memory, so a write is as large as without it.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if context is not None:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
            self._do_tls(self._tls.do_handshake)
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += self._receive()
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
        if key is None:
            raise RunFailedError(f"this is no WebSocket handshake: {request!r}")
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID, usedforsecurity=False).digest())
        self.send(
            [
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            ]
        )

    def _do_tls(self, step: Callable[[], Any]) -> Any:
        """Do a step of TLS, which may have to receive and send."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                received = self._sock.recv(RECEIVE_BYTES)
                if not received:
                    raise RunFailedError("the client has gone") from None
                self._incoming.write(received)
            finally:
                self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())

    def _receive(self) -> bytes:
        tls = self._tls
        if tls is not None:
            data: bytes = self._do_tls(lambda: tls.read(RECEIVE_BYTES))
        else:
            data = self._sock.recv(RECEIVE_BYTES)
        if not data:
            raise RunFailedError("the client has gone")
        return data

    def send(self, data: Writes) -> None:
        """Send each part in a write of its own; over TLS, each as a record and all in one write."""
        if self._tls is not None:
            self.send_encrypted(self.encrypt(data))
            return
        for part in data:
            self._sock.sendall(part)

    def encrypt(self, data: Writes) -> bytes:
        """Return what `send` would send over TLS. `send_encrypted` has to send what this returns,
        in the same order."""
        assert self._tls is not None
        write = self._tls.write
        for part in data:
            write(part)
        return self._outgoing.read()

    def send_encrypted(self, data: bytes) -> None:
        """Send what `encrypt` returned, in one write."""
        self._sock.sendall(data)

    def end(self) -> None:
        """Send a close frame, and close the stream."""
        self.send([CLOSE_FRAME])
        self._sock.shutdown(socket.SHUT_WR)

    def wait_closed(self) -> None:
        """Wait until the client has closed."""
        with contextlib.suppress(ConnectionError):
            while self._sock.recv(RECEIVE_BYTES):
                pass
        self._sock.close()


class Serving(NamedTuple):
    """A run with a server in it: the child processes, the server's channel, and its address."""

    children: Children
    server: Channel
    address: Address


@dataclass(frozen=True, slots=True)
class Load:
    """What the server sends.

    Attributes:
        seconds: for how long.
        block: what it sends over and over.
        messages: the number of messages in a block.
        certificate: makes it speak TLS.
        encrypted_ahead: over TLS, the number of messages per second of the run that are encrypted
            before the first is sent; of at most half a second.
        per_tick: at a fixed rate, the number of messages of a round per millisecond; 0 sends as
            fast as the slowest client receives.
        frames: at a fixed rate, the round.
        held: whether it waits, before it closes, until it is told to.
    """

    seconds: float
    block: Writes = (b"".join(FRAMES),)
    messages: int = ROUND
    certificate: Certificate | None = None
    encrypted_ahead: float = 0.0
    per_tick: int = 0
    frames: Sequence[bytes] = FRAMES
    held: bool = False

    @property
    def ticks(self) -> int:
        """The number of ticks at a fixed rate."""
        return max(1, round(self.seconds * 1e9 / TICK_NS))

    @contextlib.contextmanager
    def serve(self, clients: int) -> Iterator[Serving]:
        """Start a run with a server that sends this to so many clients once all have connected."""
        with (
            socket.create_server(("127.0.0.1", 0), backlog=CLIENTS_MOST) as listener,
            child_processes(self.seconds) as children,
        ):
            address = Address(listener.getsockname()[1], self.certificate)
            server = children.start(_serve, listener, address, self, clients)
            yield Serving(children, server, address)


def _flood(connections: Sequence[_Connection], load: Load) -> int:
    sent = 0
    end = time.monotonic() + load.seconds
    while time.monotonic() < end:
        for connection in connections:
            connection.send(load.block)
        sent += load.messages
    return sent


def _flood_encrypted(connection: _Connection, load: Load) -> int:
    seconds = min(load.seconds, _ENCRYPTED_AHEAD_S_MOST)
    blocks = max(1, round(seconds * load.encrypted_ahead / load.messages))
    for data in [connection.encrypt(load.block) for _ in range(blocks)]:
        connection.send_encrypted(data)
    return blocks * load.messages


def _send_at_fixed_rate(connections: Sequence[_Connection], load: Load, began_ns: int) -> int:
    """Send the messages of each tick when it is due; send late ones at once."""
    each, size = load.per_tick, len(load.frames)
    frames = tuple(load.frames) * (math.lcm(each, size) // size)
    ticks = [b"".join(frames[i : i + each]) for i in range(0, len(frames), each)]
    due = began_ns
    for _, part in zip(range(load.ticks), itertools.cycle(ticks), strict=False):
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        for connection in connections:
            connection.send([part])
        due += TICK_NS
    return load.ticks * each


def _serve(
    channel: Channel, listener: socket.socket, address: Address, load: Load, clients: int
) -> None:
    """Send the same to so many clients, once all have connected.

    Reports `sent`, the number of messages to each client; `cpu`, the CPU seconds that took; and
    `began_ns`, when the first tick was due (CLOCK_MONOTONIC).
    """
    pin_to_core("first")
    context = address.certificate.server_context() if address.certificate is not None else None
    connections = [_Connection(listener.accept()[0], context) for _ in range(clients)]
    cpu = time.process_time()
    began_ns = time.monotonic_ns() + TICK_NS
    if load.per_tick:
        sent = _send_at_fixed_rate(connections, load, began_ns)
    elif context is not None:
        sent = _flood_encrypted(connections[0], load)
    else:
        sent = _flood(connections, load)
    cpu = time.process_time() - cpu
    for connection in connections:
        connection.send([frame(end_payload(sent))])
    if load.held:
        channel.receive()
    for connection in connections:
        connection.end()
    for connection in connections:
        connection.wait_closed()
    channel.send({"sent": sent, "cpu": cpu, "began_ns": began_ns})
