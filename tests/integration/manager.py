"""What the manager's tests share: a WebSocket server that does what a test wants, byte by byte if
it must, and a manager with a worker that sees everything the manager publishes.

    with serving(listen(), first, second) as server, watching(Config(...)) as watch:
        assert watch.until("disconnected") == ["connecting 1", "connected", "text hello", ...]

A script is a function of one connection; the last one is played again for each further connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from ringcast import Config, Feed, Manager, attach, shm
from ringcast.broker.manager import ManagerError
from ringcast.shm.broadcast import Message
from tests.conftest import DEADLINE

HOST: Final = "127.0.0.1"
_READ: Final = 1 << 16

Script = Callable[[socket.socket], None]

# ---- the server ----------------------------------------------------------------------------


def listen() -> socket.socket:
    """A listening socket. Who connects before anybody serves it waits in its backlog, so a manager
    can be started first, and hears nothing until its workers are there."""
    return socket.create_server((HOST, 0))


def url_of(listener: socket.socket) -> str:
    """Where clients connect, without TLS."""
    return f"ws://{HOST}:{listener.getsockname()[1]}/"


class Peer:
    """The server's end of one WebSocket connection; nothing happens on it by itself, not even an
    answer to a ping, except in `receive` and the calls that use it.

    Args:
        sock: accepted, and with TLS already on it if there is any.
        subprotocols: that the server knows.
    """

    def __init__(self, sock: socket.socket, subprotocols: tuple[str, ...] = ()) -> None:
        self.sock = sock
        self.protocol = ServerProtocol(
            subprotocols=[Subprotocol(s) for s in subprotocols] or None, max_size=None
        )
        self._events: list[Request | Frame] = []
        request = self.receive()
        assert isinstance(request, Request)
        self.request = request
        self.protocol.send_response(self.protocol.accept(request))
        self._flush()

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.sock.sendall(data)
            else:
                self.sock.shutdown(socket.SHUT_WR)

    def receive(self) -> Request | Frame:
        """The next thing that the client sends; pings and a close are answered.

        Raises:
            EOFError: it has ended.
        """
        while not self._events:
            data = self.sock.recv(_READ)
            if data:
                self.protocol.receive_data(data)
            else:
                self.protocol.receive_eof()
            self._events += self.protocol.events_received()  # type: ignore[arg-type]
            with contextlib.suppress(OSError):  # it may have gone after it sent that
                self._flush()
            if not data and not self._events:
                raise EOFError
        return self._events.pop(0)

    def send(self, *messages: str | bytes) -> None:
        """Send messages: str as text, bytes as binary."""
        for message in messages:
            if isinstance(message, str):
                self.protocol.send_text(message.encode())
            else:
                self.protocol.send_binary(message)
        self._flush()

    def answer_until_end(self) -> tuple[int | None, str]:
        """Answer to the end of the connection; the close code (None: there was none) and reason
        that came from the client."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.receive()
        close = self.protocol.close_rcvd
        return (close.code, close.reason) if close is not None else (None, "")

    def close(self, code: int, reason: str = "") -> int | None:
        """Close; the code that came back."""
        self.protocol.send_close(code, reason)
        self._flush()
        return self.answer_until_end()[0]

    def reset(self) -> None:
        """End the connection as a machine does that has forgotten it."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def receive_messages(self, count: int) -> list[str | bytes]:
        """The next `count` messages."""
        received: list[str | bytes] = []
        while len(received) < count:
            frame = self.receive()
            assert isinstance(frame, Frame)
            data = bytes(frame.data)
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                received.append(data.decode() if frame.opcode is Opcode.TEXT else data)
        return received


@dataclass
class Server:
    """A server that plays scripts.

    Attributes:
        port: where it listens.
        connections: accepted so far.
    """

    listener: socket.socket
    context: ssl.SSLContext | None
    scripts: tuple[Script, ...]
    port: int
    connections: int = 0
    _stopping: bool = False
    _failures: list[BaseException] = field(default_factory=list)
    _live: list[tuple[threading.Thread, socket.socket]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{'wss' if self.context else 'ws'}://{HOST}:{self.port}/"

    def accept(self) -> None:
        """Play the next script for each that comes."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:  # it was shut down
                return
            if self._stopping:
                sock.close()
                return
            sock.settimeout(DEADLINE)
            if self.context is not None:
                sock = self.context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self._play, args=(script, sock), daemon=True)
            self._live.append((thread, sock))
            thread.start()

    def _play(self, script: Script, sock: socket.socket) -> None:
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            script(sock)
        except (ssl.SSLError, EOFError, ConnectionError):
            pass  # clients come and go; what a test expects of them it asserts
        except BaseException as error:
            if not self._stopping:
                self._failures.append(error)
        finally:
            sock.close()

    def stop(self, accepting: threading.Thread) -> None:
        """End the thread that accepts and every connection; raise what a script raised."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        accepting.join(DEADLINE)
        assert not accepting.is_alive()
        for thread, sock in self._live:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)
            assert not thread.is_alive()
        if self._failures:
            raise self._failures[0]


@contextlib.contextmanager
def serving(
    *scripts: Script, listener: socket.socket | None = None, context: ssl.SSLContext | None = None
) -> Iterator[Server]:
    """A server inside the block; by default at a port of its own."""
    with listener or listen() as bound:
        server = Server(bound, context, scripts, bound.getsockname()[1])
        thread = threading.Thread(target=server.accept, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop(thread)


def sending(*messages: str | bytes) -> Script:
    """A script: sends `messages`, and then only answers, to the end."""

    def script(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.send(*messages)
        peer.answer_until_end()

    return script


def answering(response: str) -> Script:
    """A script: any request gets `response`; lines are ended, and connections closed, for it."""

    def script(sock: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(_READ) or b"\r\n\r\n"
        sock.sendall(response.replace("\n", "\r\n").encode())

    return script


# ---- the manager, and a worker -------------------------------------------------------------


def describe(message: Message) -> str:
    """A record in a few words."""
    if message.kind == shm.Kind.TEXT:
        return f"text {message.text()}"
    if message.kind == shm.Kind.BINARY:
        return f"binary {bytes(message).decode('latin-1')}"
    return describe_event(json.loads(bytes(message)))


def describe_event(event: dict[str, Any]) -> str:
    """An event in a few words: what differs between two runs of a test is left out."""
    match event["event"]:
        case "connecting":
            return f"connecting {event['attempt']}"
        case "connected":
            return f"connected {event['connection']}{' after a gap' if event['gap'] else ''}"
        case "disconnected":
            return f"disconnected {event['code']} {event['reason']}".rstrip()
        case other:
            return str(other)


class InThread:
    """A manager in a thread of this process; it is ready once this is made, or has failed.

    Attributes:
        failures: what `Manager.run` raised at its end, if it did.
    """

    def __init__(self, config: Config, on_ready: Callable[[], None] | None = None) -> None:
        self.manager = Manager(config)
        self.failures: list[BaseException] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(on_ready,), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE)

    def _run(self, on_ready: Callable[[], None] | None) -> None:
        def ready() -> None:
            if on_ready is not None:
                on_ready()
            self._ready.set()

        try:
            self.manager.run(on_ready=ready)
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._ready.set()

    def join(self) -> None:
        """Wait for the manager's end."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def end(self) -> None:
        """Stop the manager at once."""
        self.manager.stop()
        self.manager.stop()
        self.join()


@contextlib.contextmanager
def running(config: Config) -> Iterator[Manager]:
    """A manager inside the block; what it raises is raised at the end."""
    runner = InThread(config)
    try:
        yield runner.manager
    finally:
        runner.end()
    if runner.failures:
        raise runner.failures[0]


@dataclass
class Watch:
    """A manager in a thread, and a worker attached from its first record on.

    Attributes:
        events: those that were taken, whole.
    """

    runner: InThread
    feed: Feed
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def manager(self) -> Manager:
        """The manager itself."""
        return self.runner.manager

    @property
    def errors(self) -> list[str]:
        """What `Manager.run` raised at its end, if it did."""
        return [str(error) for error in self.runner.failures if isinstance(error, ManagerError)]

    def take(self) -> str:
        """The next record, in a few words."""
        message = self.feed.read(DEADLINE)
        assert message is not None, f"nothing came after {self.events}"
        if message.kind == shm.Kind.EVENT:
            self.events.append(json.loads(bytes(message)))
        return describe(message)

    def until(self, beginning: str) -> list[str]:
        """All records up to the one that begins so."""
        records = [self.take()]
        while not records[-1].startswith(beginning):
            records.append(self.take())
        return records

    def rest(self) -> list[str]:
        """All records to the end, which is waited for."""
        records = []
        with contextlib.suppress(shm.RingClosed):
            while True:
                records.append(self.take())
        self.runner.join()
        return records

    def event(self, kind: str) -> dict[str, Any]:
        """The last event of that kind that was taken."""
        return next(e for e in reversed(self.events) if e["event"] == kind)

    def end(self) -> None:
        """Stop the manager at once."""
        self.runner.end()
        self.feed.close()


def quick(name: str, url: str, **options: Any) -> Config:
    """A configuration for tests: it comes back at once, and waits as long as it takes."""
    defaults: dict[str, Any] = {
        "open_timeout": DEADLINE,
        "reconnect_delay": 0.01,
        "reconnect_delay_max": 0.01,
        "demote_after": None,
        "evict_after": None,
    }
    return Config(name=name, url=url, **{**defaults, **options})


@contextlib.contextmanager
def watching(config: Config, **options: Any) -> Iterator[Watch]:
    """A manager and a worker inside the block; `options` are the worker's."""
    feeds: list[Feed] = []

    def attach_first() -> None:
        feeds.append(attach(config.name, **{"start": "oldest", "events": True, **options}))

    runner = InThread(config, attach_first)
    assert feeds, runner.failures
    watch = Watch(runner, feeds[0])
    try:
        yield watch
    finally:
        watch.end()
    for failure in runner.failures:
        if not isinstance(failure, ManagerError):
            raise failure


def kill(manager: Manager) -> None:
    """SIGKILL a child manager, and wait for its end."""
    assert manager.pid is not None
    os.kill(manager.pid, signal.SIGKILL)
    assert manager.join(DEADLINE) == -signal.SIGKILL


def is_running(pid: int) -> bool:
    """Does the process run? One that has ended and that nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# ---- certificates --------------------------------------------------------------------------


class Authority:
    """A certificate authority of the test's own, made with the `openssl` command.

    Attributes:
        certificate: PEM file to trust.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        self._openssl(
            *("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=the tests' authority"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def issue(self, name: str, *, expired: bool = False) -> Path:
        """PEM file with a certificate for the host `name`, or IP address, and its key."""
        stem = self._folder / f"{name}{'-expired' if expired else ''}"
        key, request, leaf, both = (Path(f"{stem}.{s}") for s in ("key", "csr", "crt", "pem"))
        extensions = Path(f"{stem}.ext")
        kind = "IP" if name[0].isdigit() else "DNS"
        extensions.write_text(f"subjectAltName={kind}:{name}\n", encoding="ascii")
        database, serial = Path(f"{stem}.db"), Path(f"{stem}.serial")
        database.write_text("", encoding="ascii")  # it may have issued the same before
        serial.write_text(f"{os.urandom(8).hex()}\n", encoding="ascii")
        settings = Path(f"{stem}.cnf")
        settings.write_text(
            f"[ca]\ndefault_ca=d\n[d]\ndatabase={database}\nserial={serial}\n"
            f"new_certs_dir={self._folder}\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n",
            encoding="ascii",
        )
        times = ("20200101000000Z", "20200201000000Z") if expired else ("20200101000000Z", _FAR)
        self._openssl(*("req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request))
        self._openssl(
            *("ca", "-batch", "-notext", "-config", settings, "-in", request, "-out", leaf),
            *("-cert", self.certificate, "-keyfile", self._key, "-extfile", extensions),
            *("-startdate", times[0], "-enddate", times[1]),
        )
        both.write_bytes(leaf.read_bytes() + key.read_bytes())
        return both

    def context(
        self, name: str = HOST, *, expired: bool = False, clients: bool = False
    ) -> ssl.SSLContext:
        """A server's, with a certificate for `name`; `clients`: it demands one of theirs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(name, expired=expired))
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        return context

    def _openssl(self, *args: str | Path) -> None:
        subprocess.run(
            ["openssl", *map(str, args)],  # noqa: S607 - the system's
            check=True,
            capture_output=True,
            timeout=DEADLINE,
        )


_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_FAR: Final = "20990101000000Z"
