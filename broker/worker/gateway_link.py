"""One connection to a gateway: opening it, and sending on it. What comes is decoded elsewhere.

The handshake, and the frames that are sent, are `websockets`' (its sans-I/O `ClientProtocol`).
"""

from __future__ import annotations

import contextlib
import errno
import http
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self
from urllib.parse import quote, unquote

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidState
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from ringcast import shm

from ..logs import quiet_logger
from .addresses import AddressKind, ClientAddress

__all__ = ["GatewayUnreachable", "Link", "Query", "asks_for", "open_link"]

RECORDS: Final = Subprotocol("ringcast.1")
OPEN_TIMEOUT: Final = 10.0
"""Seconds for one attempt to connect."""
HEAD_MAX: Final = 1 << 16
"""Bytes of the gateway's answer to the handshake."""
TARGET_MAX: Final = 8000
"""Bytes of a request's target: servers read lines up to 8192 (`websockets`), of which the method
and the version take a few."""
_READ: Final = 1 << 12

_quiet = quiet_logger(__name__)


class GatewayUnreachable(shm.RingError, ConnectionRefusedError):
    """No gateway answers at an address, or it doesn't let this client in."""


# ---- what is asked for -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """What a feed asks a gateway for, in the query of its address.

    Attributes:
        rest: parameters that stand in the address and are not listed here, as they stand there.
        policy, start, label, topics, others, group, balance, max_deliveries: as `attach` has them.

    Raises:
        ValueError: a value is wrong.
    """

    rest: tuple[str, ...] = field(default=(), repr=False)
    policy: str = "block"
    start: str | int = "latest"
    label: str | None = None
    topics: tuple[str, ...] | None = None
    others: bool = False
    group: str | None = None
    balance: str | None = None
    max_deliveries: int | None = None

    def __post_init__(self) -> None:
        if self.group is None and (self.balance or self.max_deliveries) is not None:
            raise ValueError("balance and max_deliveries are for members of a group: name it")
        if self.group is not None and self.policy != "block":
            raise ValueError("a group is lossless: it has no policy")
        if self.policy not in ("block", "lossy"):
            raise ValueError(f'policy is "block" or "lossy", not {self.policy!r}')
        start = self.start
        if start not in ("latest", "oldest") and (not isinstance(start, int) or start < 0):
            raise ValueError(f'start is "latest", "oldest" or a sequence, not {start!r}')
        for topic in self.topics or ():
            if not topic or "," in topic or "\0" in topic:
                raise ValueError(
                    f"{topic!r} can't be asked for over a socket: a topic there has a name, and no"
                    " comma and no NUL in it"
                )

    @classmethod
    def merge(cls, target: str, given: dict[str, Any]) -> Self:
        """Of an address's query and the arguments of `attach`.

        Raises:
            ValueError: both have the same parameter, or a value is wrong.
        """
        values = dict(given)
        rest = []
        for part in target.partition("?")[2].split("&"):
            name, _, raw = part.partition("=")
            if name not in _KNOWN:
                rest.append(part)
                continue
            if name in values:
                raise ValueError(f"{name} is given twice, the address has it, too: give it once")
            values[name] = _read(name, unquote(raw))
        return cls(tuple(part for part in rest if part), **values)

    def target(self, address: ClientAddress) -> str:
        """The request target that says so.

        Raises:
            ValueError: it becomes too long.
        """
        words = {"start": str(self.start)}
        if self.group is None:
            words["policy"] = self.policy
        else:
            words["group"] = quote(self.group, safe="")
        if self.balance is not None:
            words["balance"] = quote(self.balance, safe="")
        if self.max_deliveries is not None:
            words["max_deliveries"] = str(self.max_deliveries)
        if self.label is not None:
            words["label"] = quote(self.label, safe="")
        if self.topics is not None:
            words["topics"] = ",".join(quote(topic, safe="*@:") for topic in self.topics)
        if self.others:
            words["others"] = "true"
        path = address.target.partition("?")[0]
        made = f"{path}?{'&'.join([*self.rest, *(f'{k}={v}' for k, v in words.items())])}"
        if len(made) > TARGET_MAX:
            raise ValueError(
                f"these topics make a request of {len(made)} bytes, at most {TARGET_MAX} go over a"
                " socket: use patterns, or several feeds"
            )
        return made


_KNOWN: Final = frozenset(each.name for each in fields(Query)) - {"rest"}
"""The parameters that are arguments of `attach`, too."""


def asks_for(target: str, name: str) -> bool:
    """Does an address's query have this parameter?"""
    parts = target.partition("?")[2].split("&")
    return any(part.partition("=")[0] == name for part in parts)


def _read(name: str, text: str) -> Any:
    match name:
        case "start" | "max_deliveries":
            return int(text) if text.isascii() and text.isdecimal() else text
        case "topics":
            return tuple(text.split(",")) if text else ()
        case "others":
            return text in ("true", "1")
        case _:
            return text


# ---- a connection ----------------------------------------------------------------------------


class Link:
    """An open connection. Threads may send at once; one receives.

    Args:
        sock: non-blocking, with the handshake done.
        protocol: what frames are made with.
    """

    def __init__(self, sock: socket.socket, protocol: ClientProtocol) -> None:
        self._sock = sock
        self._protocol = protocol
        # Also of receiving with TLS: one connection's state must not be used by two threads.
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._users = 0
        self._retired = False
        self._users_lock = threading.Lock()
        self.since = time.monotonic()

    # -- receiving

    @property
    def is_encrypted(self) -> bool:
        """Has what comes to be received with `receive_into`, as it is encrypted?"""
        return isinstance(self._sock, ssl.SSLSocket)

    def receive_into(self, room: memoryview) -> int:
        """Receive what has come. Returns how many bytes; 0 at the end, -1 if nothing has come.

        Raises: OSError.
        """
        try:
            with self._lock:
                return self._sock.recv_into(room)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return -1
        except ssl.SSLEOFError:
            return 0

    def wait(self, timeout: float | None) -> None:
        """Wait until something has come, or the rest of what is to be sent can be."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        if self._unsent:
            self.flush()

    def fileno(self) -> int:
        """Of its socket."""
        return self._sock.fileno()

    # -- sending

    @property
    def has_unsent(self) -> bool:
        """Is there something that the socket has not taken?"""
        return bool(self._unsent)

    def try_send(self, message: bytes, *, wait: bool = True) -> bool:
        """Send a binary message, as a frame. False: the socket has no room now, and nothing was
        sent. Of a frame that was begun the rest goes with `flush` or `wait`.

        Args:
            message: its payload.
            wait: whether to wait while another thread sends. A finalizer must not: this very thread
                may be sending.

        Raises: OSError.
        """
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            self._flush()
            if self._unsent:
                return False
            self._protocol.send_binary(message)
            frame = b"".join(self._protocol.data_to_send())
            sent = self._send_some(frame)
            self._unsent += frame[sent:]
            return True
        finally:
            self._lock.release()

    def answer(self, payload: bytes) -> None:
        """Answer a ping. Raises OSError."""
        self._own(lambda: self._protocol.send_pong(payload))

    def close_with(self, code: int, reason: str = "") -> None:
        """Send a close frame, if that works at once."""
        with contextlib.suppress(OSError):
            self._own(lambda: self._protocol.send_close(code, reason))

    def _own(self, make: Callable[[], None]) -> None:
        with self._lock, contextlib.suppress(InvalidState):
            make()
            self._unsent += b"".join(self._protocol.data_to_send())
            self._flush()

    def flush(self) -> None:
        """Send what the socket takes of what is to be sent. Raises OSError."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._unsent:
            del self._unsent[: self._send_some(self._unsent)]

    def _send_some(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    # -- its end

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """While it is, its descriptor stays what it is."""
        with self._users_lock:
            self._users += 1
        try:
            yield
        finally:
            with self._users_lock:
                self._users -= 1
                last = self._retired and self._users == 0
            if last:
                self._sock.close()

    def drain(self, timeout: float) -> None:
        """Pass over what comes until the other end has closed, too; at most so many seconds."""
        until = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        with contextlib.suppress(OSError):
            while (left := until - time.monotonic()) > 0 and poll.poll(left * 1000):
                if not self._sock.recv(1 << 16):
                    return

    def retire(self) -> None:
        """End it; who waits on it wakes up."""
        with self._users_lock:
            if self._retired:
                return
            self._retired = True
            last = self._users == 0
        with contextlib.suppress(OSError):  # it may have ended by itself
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # SSLSocket's would wait
        if last:
            self._sock.close()

    def abandon(self) -> None:
        """Let go of it in a forked child: it is the parent's connection, and goes on."""
        self._sock.close()


# ---- opening ---------------------------------------------------------------------------------


def open_link(address: ClientAddress, target: str) -> tuple[Link, bytes]:
    """Connect, and do the handshake.

    Returns:
        The connection, and what has come after the handshake.

    Raises:
        shm.RingNotFound: the gateway has no ring now.
        GatewayUnreachable: nobody answers, or it doesn't let this client in.
        ValueError: the gateway can't give what is asked for.
        shm.RingError: what answers is no gateway.
    """
    until = time.monotonic() + OPEN_TIMEOUT
    try:
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(_connect(address))
            link = _handshake(address, target, sock, until)
            undo.pop_all()
            return link
    except ssl.SSLCertVerificationError as error:
        raise GatewayUnreachable(
            f"the certificate of {address.shown} is not trusted: {error.verify_message}; set"
            " SSL_CERT_FILE to the file of its authority"
        ) from error
    except OSError as error:
        if isinstance(error, shm.RingError):
            raise
        raise GatewayUnreachable(
            f"can't connect to {address.shown}: {_reason(error)}; is `ringcast gateway` running?"
        ) from error


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {OPEN_TIMEOUT:.0f} s"
    if error.errno == errno.ENOENT:
        return "there is no such socket"
    return error.strerror or str(error)


def _connect(address: ClientAddress) -> socket.socket:
    if address.kind is AddressKind.UNIX:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(OPEN_TIMEOUT)
            sock.connect(address.path)
        except BaseException:
            sock.close()
            raise
        return sock
    authority = address.authority
    assert authority is not None
    assert authority.port is not None
    sock = socket.create_connection((authority.host, authority.port), OPEN_TIMEOUT)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.kind is AddressKind.TLS:
            context = ssl.create_default_context()
            return context.wrap_socket(sock, server_hostname=authority.host)
    except BaseException:
        sock.close()
        raise
    return sock


def _handshake(
    address: ClientAddress, target: str, sock: socket.socket, until: float
) -> tuple[Link, bytes]:
    scheme = "wss" if address.kind is AddressKind.TLS else "ws"
    protocol = ClientProtocol(
        parse_uri(f"{scheme}://{address.authority}{target}"), subprotocols=[RECORDS], logger=_quiet
    )
    protocol.send_request(protocol.connect())
    for data in protocol.data_to_send():
        sock.sendall(data)
    head, rest = _read_head(sock, until)
    protocol.receive_data(head)
    if protocol.state is not State.OPEN:
        _read_body(protocol, sock, rest, until)
        raise _refused(address, protocol)
    if protocol.subprotocol != RECORDS:
        raise GatewayUnreachable(
            f"{address.shown} is no gateway of ringcast: it does not speak {RECORDS}"
        )
    sock.setblocking(False)
    return Link(sock, protocol), rest


def _read_head(sock: socket.socket, until: float) -> tuple[bytes, bytes]:
    """The answer's head, and what has come after it."""
    got = b""
    while b"\r\n\r\n" not in got and len(got) < HEAD_MAX:
        data = _receive(sock, until)
        got += data
        if not data:
            break
    head, end, rest = got.partition(b"\r\n\r\n")
    return head + end, rest


def _read_body(protocol: ClientProtocol, sock: socket.socket, rest: bytes, until: float) -> None:
    """Give `protocol` the rest of an answer that is not "switching protocols"."""
    with contextlib.suppress(OSError):
        while protocol.handshake_exc is None and len(rest) < HEAD_MAX:
            if rest:
                protocol.receive_data(rest)
            rest = _receive(sock, until)
            if not rest:
                protocol.receive_eof()
                return


def _receive(sock: socket.socket, until: float) -> bytes:
    sock.settimeout(max(0.001, until - time.monotonic()))
    return sock.recv(_READ)


def _refused(address: ClientAddress, protocol: ClientProtocol) -> Exception:
    """Why there is no connection."""
    answers: Iterable[Response] = (
        event for event in protocol.events_received() if isinstance(event, Response)
    )
    answer = next(iter(answers), None)
    if answer is None or isinstance(protocol.handshake_exc, InvalidMessage):
        return GatewayUnreachable(f"{address.shown} is no gateway: it does not answer as one")
    said = (answer.body or b"").decode("utf-8", "replace").strip() or answer.reason_phrase
    match answer.status_code:
        case http.HTTPStatus.SERVICE_UNAVAILABLE:
            return shm.RingNotFound(f"{address.shown}: {said}")
        case http.HTTPStatus.BAD_REQUEST:
            return ValueError(f"{address.shown}: {said}")
        case http.HTTPStatus.SWITCHING_PROTOCOLS:
            assert isinstance(protocol.handshake_exc, InvalidHandshake)
            return GatewayUnreachable(f"{address.shown} is no gateway: {protocol.handshake_exc}")
        case status:
            return GatewayUnreachable(f"{address.shown} refuses: {status} {said}")
