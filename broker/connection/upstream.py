"""The one WebSocket connection: opened by websocket-client, then read by the native decoder.

websocket-client knows proxies, TLS, cookies and the handshake, and reads the handshake byte by
byte, so nothing of the first frame is swallowed; the socket is taken over as soon as it is open.
From then on `_ingest` receives into the ring, and this module does what is rare:
answering pings, pinging, sending, and the closing handshake (RFC 6455 section 7).
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import websocket
from websocket import ABNF

from ..config import Config
from . import _ingest
from .tls import Stream, StreamContext

if TYPE_CHECKING:
    from ..manager.outbox import Outbox

__all__ = ["Backoff", "Connection", "Dialer", "Lost", "Opened"]

CLOSE_WAIT: Final = 2.0
"""Seconds for the peer's half of the closing handshake (RFC 6455 section 7.1.1)."""

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
NO_CODE: Final = 1005
ABNORMAL: Final = 1006

_REASON_MAX: Final = 123
_STOP_STATUS: Final = frozenset({400, 401, 403, 404, 405, 407, 410, 426})
_RETRY_AFTER_MOST: Final = 3600.0
_BACKLOG_MOST: Final = 1 << 20
_ERROR_MOST: Final = 300
"""Characters of what a server has to say about a failed attempt."""
_DISCARD: Final = 1 << 16
_DISCARDS: Final = 64


# ---- opening -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection whose handshake is done."""

    sock: socket.socket | Stream
    subprotocol: str | None


@dataclass(frozen=True, slots=True)
class Lost:
    """Why there is no connection (any more).

    Attributes:
        error: in words, without secrets; None for an orderly close.
        code, reason: of the peer's close frame; 1006 if there was none.
        final: another attempt would end the same way.
        retry_in: seconds that the server asked for, or None.
    """

    error: str | None
    code: int = ABNORMAL
    reason: str = ""
    final: bool = False
    retry_in: float | None = None


def _tls_context(config: Config) -> ssl.SSLContext:
    context = StreamContext(ssl.PROTOCOL_TLS_CLIENT)
    if config.ca is not None:
        context.load_verify_locations(config.ca)
    else:
        context.load_default_certs()
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.certificate is not None:
        context.load_cert_chain(
            config.certificate,
            config.private_key,
            config.private_key_password or "",  # None: OpenSSL would ask at the terminal
        )
    return context


def _proxy_options(config: Config) -> dict[str, Any]:
    """What websocket-client wants to know of the proxy; its look at the environment (http_proxy,
    no_proxy) is answered for it: only what is configured counts."""
    if config.proxy is None:
        return {"http_no_proxy": ["*"]}
    proxy = urlsplit(config.proxy)
    auth = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    return {
        "proxy_type": proxy.scheme,
        "http_proxy_host": proxy.hostname,
        "http_proxy_port": proxy.port or (80 if proxy.scheme == "http" else 1080),
        "http_proxy_auth": auth,
        "http_proxy_timeout": config.open_timeout,
        "http_no_proxy": ["-"],  # no host's name: an empty list would mean the environment's
    }


def _header_lines(config: Config) -> list[str]:
    lines = [f"{name}: {value}" for name, value in config.headers.items()]
    if not any(name.lower() == "user-agent" for name in config.headers):
        lines.append(f"User-Agent: ringcast/{metadata.version('ringcast')}")
    return lines


def _new_websocket(config: Config) -> websocket.WebSocket:
    options: dict[str, Any] = {}
    if config.url.startswith("wss:"):
        options = {
            "context": _tls_context(config),
            "server_hostname": config.server_name,
            "cert_reqs": ssl.CERT_REQUIRED if config.verify else ssl.CERT_NONE,
            "check_hostname": config.verify,
        }
    return websocket.WebSocket(sslopt=options, enable_multithread=False)


def _open(config: Config, ws: websocket.WebSocket) -> Opened:
    ws.connect(  # type: ignore[no-untyped-call]
        config.url,
        timeout=config.open_timeout,
        header=_header_lines(config),
        cookie=config.cookie,
        origin=config.origin,
        subprotocols=list(config.subprotocols),
        redirect_limit=0,
        **_proxy_options(config),
    )
    # Taken over: websocket-client is to forget the socket, not to close it.
    sock, ws.sock, ws.connected = ws.sock, None, False
    assert sock is not None  # connect() raises otherwise
    assert ws.handshake_response is not None
    sock.setblocking(False)
    return Opened(sock, ws.handshake_response.subprotocol)


def _explain(config: Config, ws: websocket.WebSocket, error: Exception) -> Lost:
    """What an attempt's exception means for the next one. Redacted first and cut then, so that no
    part of a secret stays."""
    lost = _judge(ws, error)
    text = config.redact(lost.error or "")
    if len(text) > _ERROR_MOST:
        text = text[:_ERROR_MOST] + "…"
    return Lost(text, final=lost.final, retry_in=lost.retry_in)


def _judge(ws: websocket.WebSocket, error: Exception) -> Lost:
    if isinstance(error, websocket.WebSocketBadStatusException):
        return _judge_status(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Lost(
            f"the server's certificate is not to be trusted: {error.verify_message}. Give its"
            " authority with `ca`, or the name it has with `server_name`",
            final=True,
        )
    response = ws.handshake_response
    if response is not None and response.status in (301, 302, 303, 307, 308):
        target = response.headers.get("location", "another place")
        return Lost(f"the server redirects, use this as `url`: {target}", final=True)
    if isinstance(error, websocket.WebSocketProxyException):
        return Lost(f"the proxy refuses: {error}", final="status: 407" in str(error))
    if isinstance(error, websocket.WebSocketTimeoutException | TimeoutError):
        return Lost("the server did not answer in time")
    if type(error).__name__ == "ProxyError":  # of python_socks, which need not be installed
        return Lost(f"the proxy refuses: {error}")
    if "Python Socks is needed" in str(error):
        return Lost("SOCKS needs another package: pip install 'ringcast[socks]'", final=True)
    if isinstance(error, ssl.SSLError):
        return Lost(f"TLS failed: {error.reason or error}")
    if isinstance(error, OSError):
        return Lost(f"cannot connect: {error.strerror or error}")
    return Lost(f"the handshake failed: {error}")


def _judge_status(error: websocket.WebSocketBadStatusException) -> Lost:
    status = error.status_code
    text = f"the server answered {status} {error.status_message or ''}".rstrip()
    body = (error.resp_body or b"").decode("utf-8", "replace").strip()
    if body:
        text += f": {re.sub(r'[^ -~]+', ' ', body)}"
    wait = (error.resp_headers or {}).get("retry-after", "")
    retry_in = min(float(wait), _RETRY_AFTER_MOST) if wait.isdecimal() else None
    return Lost(text, final=status in _STOP_STATUS, retry_in=retry_in)


class Dialer:
    """One attempt to connect, in a thread of its own, so that the manager goes on meanwhile.

    Args:
        config: where and how.
        wake: called, from that thread, when the attempt has ended.
    """

    def __init__(self, config: Config, wake: Callable[[], None]) -> None:
        self._config = config
        self._wake = wake
        self._lock = threading.Lock()
        self._ws: websocket.WebSocket | None = None
        self._result: Opened | Lost | None = None
        self._given_up = False
        self.deadline = time.monotonic() + config.open_timeout
        self._thread = threading.Thread(target=self._dial, name=f"dial-{config.name}", daemon=True)
        self._thread.start()

    def _dial(self) -> None:
        result: Opened | Lost
        try:
            self._ws = _new_websocket(self._config)
        except (OSError, ValueError) as error:  # ssl's errors, too
            text = f"TLS can't be set up: {error}; see ca, certificate and private_key"
            result = Lost(self._config.redact(text), final=True)
        else:
            result = self._try()
        with self._lock:
            if not self._given_up:
                self._result = result
            elif isinstance(result, Opened):
                result.sock.close()
        self._wake()

    def _try(self) -> Opened | Lost:
        assert self._ws is not None
        try:
            return _open(self._config, self._ws)
        except Exception as error:  # whatever it is, the manager is told, and goes on
            return _explain(self._config, self._ws, error)

    def result(self) -> Opened | Lost | None:
        """What came of it; None while it lasts."""
        with self._lock:
            return self._result

    @property
    def lingers(self) -> bool:
        """Is it still at work, though it may have been given up?"""
        return self._thread.is_alive()

    def give_up(self) -> None:
        """Nobody wants the connection any more: when it opens it is closed at once."""
        with self._lock:
            self._given_up = True
            result, sock = self._result, self._ws.sock if self._ws is not None else None
        if isinstance(result, Opened):
            result.sock.close()
        elif sock is not None:  # still in the handshake, which may be kept going for ever
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Backoff:
    """Pauses between attempts: exponential with full jitter (M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015), so that many clients do not come back all at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.attempts = 0

    def pause(self, asked_for: float | None) -> float:
        """Seconds until the next attempt; at least what the server asked for."""
        doubled = self._config.reconnect_delay * 2.0 ** min(self.attempts, 64)
        self.attempts += 1
        pause = random.uniform(0, min(doubled, self._config.reconnect_delay_max))
        return max(pause, asked_for or 0.0)

    def connected_for(self, seconds: float) -> None:
        """A connection has ended; after a stable one the pauses start anew."""
        if seconds >= self._config.reconnect_reset_after:
            self.attempts = 0


# ---- the open connection -------------------------------------------------------------------


def close_payload(code: int, reason: str = "") -> bytes:
    """Payload of a close frame; code 1005 stands for none."""
    if code == NO_CODE:
        return b""
    text = reason.encode()[:_REASON_MAX].decode("utf-8", "ignore")
    return struct.pack("!H", code) + text.encode()


class Connection:
    """The open connection: receives into the ring, answers, pings, closes.

    The manager calls `turn` when the socket is ready or `deadline` has come, and again at once
    while that returns MORE.

    Attributes:
        lost: why it is over, or None while it is not.
        sent: messages handed to the socket whole.
        rtt_ns: round trip of the last ping that was answered, or None.
    """

    def __init__(
        self,
        opened: Opened,
        ingest: _ingest.Ingest,
        outbox: Outbox,
        number: int,
        config: Config,
    ) -> None:
        now = time.monotonic()
        self._sock = opened.sock
        self._tls = opened.sock if isinstance(opened.sock, Stream) else None
        self._ingest = ingest
        self._outbox = outbox
        self._config = config
        self._outgoing = bytearray()
        self._taken = 0  # bytes that the socket took
        self._ends: collections.deque[int] = collections.deque()  # where, in those, messages end
        self._heard = now
        self._next_ping = now + config.ping_interval if config.ping_interval else None
        self._ping: tuple[bytes, int] | None = None
        self._pong_until: float | None = None
        self._close_until: float | None = None
        self._verdict: Lost | None = None
        self._drained = False  # the server may have spoken already, and TLS hold it
        self.began = now
        self.lost: Lost | None = None
        self.sent = 0
        self.rtt_ns: int | None = None
        ingest.begin(number & 0xFFFF)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    @property
    def closing(self) -> Lost | None:
        """Why a close frame was sent, or None while none was."""
        return self._verdict

    def _has_to_write(self) -> bool:
        return bool(self._outgoing) or (self._tls is not None and self._tls.unsent)

    def poll_mask(self, *, reading: bool) -> int:
        """What to poll the socket for."""
        mask = select.POLLIN if reading else 0
        return mask | select.POLLOUT if self._has_to_write() else mask

    @property
    def deadline(self) -> float:
        """When `turn` is to be called at the latest, time.monotonic() seconds."""
        times = [self._next_ping, self._pong_until, self._close_until]
        if self._config.idle_timeout is not None and not self.closing:
            times.append(self._heard + self._config.idle_timeout)
        return min((t for t in times if t is not None), default=float("inf"))

    # -- sending

    def put(self, payload: bytes, *, text: bool) -> None:
        """Make a message ready for `flush`."""
        self._put(payload, ABNF.OPCODE_TEXT if text else ABNF.OPCODE_BINARY)
        self._ends.append(self._taken + len(self._outgoing))

    def _put(self, payload: bytes, opcode: int) -> None:
        self._outgoing += ABNF.create_frame(payload, opcode).format()

    @property
    def backlog(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._outgoing)

    def flush(self) -> None:
        """Send as much as the socket takes."""
        try:
            if self._tls is not None:
                self._tls.flush()
            while self._outgoing:
                n = self._sock.send(self._outgoing)
                del self._outgoing[:n]
                self._taken += n
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass  # poll tells, or the next read brings what TLS waits for
        except OSError as error:
            self._fail(f"sending failed: {error.strerror or error}")
        if self._tls is not None and self._tls.unsent:
            return  # encrypted, but not with the socket yet
        while self._ends and self._ends[0] <= self._taken:
            self._ends.popleft()
            self.sent += 1

    def _fail(self, error: str) -> None:
        """It is over without a closing handshake, or in spite of one that was begun."""
        if self.lost is None:
            self.lost = self._verdict or Lost(self._config.redact(error))

    def close(self, code: int, reason: str = "", because: Lost | None = None) -> None:
        """Begin the closing handshake, or answer it: send a close frame and wait for the end of the
        stream, `CLOSE_WAIT` seconds at most (RFC 6455 section 7.1.1); then `lost` is `because`, by
        default an orderly close. What still comes is thrown away."""
        if self._verdict is not None:
            return
        self._verdict = because or Lost(None, code, reason)
        self._close_until = time.monotonic() + CLOSE_WAIT
        self._next_ping = self._pong_until = None
        self._ingest.end()
        self._put(close_payload(code, reason), ABNF.OPCODE_CLOSE)
        self.flush()

    def finish(self) -> None:
        """Close the socket, and give up what was received and is no whole message."""
        self._ingest.end()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    # -- receiving

    def turn(self, *, reading: bool, ready: bool) -> int:
        """Do what there is to do.

        Args:
            reading: False leaves in the socket what is there.
            ready: the socket is, as far as poll knows.

        Returns:
            FULL: the ring is. MORE: call again at once. DRAINED: nothing is left to read.
        """
        if self._has_to_write():
            self.flush()
        outcome = _ingest.DRAINED
        if self.lost is None and (ready or not self._drained):
            if self.closing is not None:
                outcome = self._discard()
                self._drained = outcome == _ingest.DRAINED
            elif reading:
                outcome = self._receive()
                self._drained = outcome == _ingest.DRAINED
        self._look_at_the_clock()
        return outcome

    def publish_received(self) -> int:
        """Publish what the socket gave and had no room, and receive nothing more; returns FULL, or
        anything else when it is all in the ring."""
        if self.closing is not None or self.lost is not None:
            return _ingest.DRAINED
        try:
            if self._tls is None:
                return self._ingest.publish_received()
            return self._ingest.receive_tls(self._tls, receiving=False)
        except OSError:  # of TLS: nothing more of it can be read
            return _ingest.DRAINED

    def _receive(self) -> int:
        before = self._ingest.received_bytes
        try:
            if self._tls is None:
                outcome = self._ingest.receive(self._sock.fileno())
            else:
                outcome = self._ingest.receive_tls(self._tls)
                self._tls.flush()
        except OSError as error:
            self._fail(f"receiving failed: {error.strerror or error}")
            return _ingest.DRAINED
        if self._ingest.received_bytes != before:
            self._heard = time.monotonic()
            if self._ingest.partial and self._pong_until is not None:
                # A pong can't come inside a message that is on its way.
                self._pong_until = self._heard + self._config.ping_timeout
        return self._handle(outcome)

    def _handle(self, outcome: int) -> int:
        if outcome == _ingest.PING:
            self._pong(self._ingest.payload)
        elif outcome == _ingest.PONG:
            self._ponged(self._ingest.payload)
        elif outcome == _ingest.CLOSE:
            self._closed_by_peer(self._ingest.code, self._ingest.payload[2:].decode())
        elif outcome == _ingest.FAULT:
            code, reason = self._ingest.code, self._ingest.reason
            self.close(code, reason, Lost(f"the server broke the protocol: {reason}"))
        elif outcome == _ingest.ENDED:
            self._fail("the server closed the socket without a close frame")
        else:
            return outcome
        return _ingest.MORE

    def _discard(self) -> int:
        """After the close frame: read on to the end of the stream. MORE: there is more to read."""
        try:
            for _ in range(_DISCARDS):
                if not self._sock.recv(_DISCARD):
                    break
            else:
                return _ingest.MORE
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return _ingest.DRAINED
        except OSError:  # a reset is an end, too
            pass
        self.lost = self._verdict
        return _ingest.DRAINED

    def _pong(self, payload: bytes) -> None:
        # A peer that pings and does not read is not to fill the memory.
        if len(self._outgoing) < _BACKLOG_MOST:
            self._put(payload, ABNF.OPCODE_PONG)
            self._outbox.spend()
            self.flush()

    def _ponged(self, payload: bytes) -> None:
        if self._ping is not None and payload == self._ping[0]:
            self.rtt_ns = time.monotonic_ns() - self._ping[1]
            self._ping = self._pong_until = None

    def _closed_by_peer(self, code: int, reason: str) -> None:
        """Echo the code; the server closes the socket first."""
        reason = self._config.redact(reason)
        error = None
        if code not in (NORMAL, GOING_AWAY, NO_CODE):
            error = f"the server closed with code {code}: {reason or 'no reason given'}"
        self.close(code, because=Lost(error, code, reason))

    # -- time

    def _look_at_the_clock(self) -> None:
        """Ping, and judge what is overdue. While there is more to read than was read, what is
        missed may be among it, so nothing is overdue."""
        now = time.monotonic()
        if self._close_until is not None:
            if now >= self._close_until:
                self._fail("the server did not close the socket in time")
            return
        if not self._drained:
            self._heard = now
            if self._pong_until is not None:
                self._pong_until = now + self._config.ping_timeout
        silent = self._config.idle_timeout
        if self._pong_until is not None and now >= self._pong_until:
            self._overdue(f"no pong within {self._config.ping_timeout:g} s")
        elif silent is not None and now >= self._heard + silent:
            self._overdue(f"the server said nothing for {silent:g} s")
        elif self._next_ping is not None and now >= self._next_ping:
            self._send_ping(now)

    def _overdue(self, error: str) -> None:
        """Say goodbye, in case it is heard, and wait for nothing: nothing came before, either."""
        self._put(close_payload(GOING_AWAY, error), ABNF.OPCODE_CLOSE)
        self.flush()
        self._fail(error)

    def _send_ping(self, now: float) -> None:
        self._next_ping = now + (self._config.ping_interval or 0.0)
        if self._ping is None:
            self._ping = (os.urandom(8), time.monotonic_ns())
            self._pong_until = now + self._config.ping_timeout
            self._put(self._ping[0], ABNF.OPCODE_PING)
            self._outbox.spend()
            self.flush()
