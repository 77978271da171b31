"""What the client says once a connection is open, and when: RFC 6455 without socket and clock.

The transport around it (connection.py, or a test) brings events and the time, and carries bytes:

    ping_received, pong_received, close_received,      ──▶ ┌──────────┐ ──▶ outgoing: frames
    fault_found, stream_ended, socket_failed               │ Protocol │ ──▶ deadline of advance
    send, close                                            │          │ ──▶ closing, lost
    advance(now, ...), once a turn                     ──▶ └──────────┘ ──▶ sent, rtt_ns

    while protocol.outgoing:
        protocol.taken(sock.send(protocol.outgoing))
    protocol.handed_over()

Data frames do not pass through here: `_ingest` decodes them where they lie, and reports only
control frames, faults and the end. All times are seconds of one monotonic clock, the caller's.
"""

from __future__ import annotations

import collections
import os
import struct
from collections.abc import Callable
from typing import Final

from websocket import ABNF

from ..config import Config
from .outcome import Disconnect

__all__ = ["GOING_AWAY", "NORMAL", "NO_CODE", "PONG_BACKLOG_MAX", "Protocol", "close_payload"]

# Close codes, RFC 6455 section 7.4.1.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
NO_CODE: Final = 1005
"""Stands for a close frame without a code; is never sent."""

PONG_BACKLOG_MAX: Final = 1 << 20
"""Bytes. A server that pings and does not read gets no more pongs while so much waits to be sent:
it is not to fill the memory."""

_REASON_MAX: Final = 123
"""Bytes of a close frame's reason: a control frame's 125 without the code."""
_PING_PAYLOAD: Final = 8
"""Bytes, random: a pong that was sent unasked does not match."""


def close_payload(code: int, reason: str = "") -> bytes:
    """Payload of a close frame; `NO_CODE` makes an empty one. A reason that is too long is cut."""
    if code == NO_CODE:
        return b""
    text = reason.encode()[:_REASON_MAX].decode("utf-8", "ignore")
    return struct.pack("!H", code) + text.encode()


class Protocol:
    """The state of one open connection.

    Args:
        config: the intervals and time-outs, and what is secret.
        now: when the connection opened.
        control_frame_sent: called for each ping and pong, for servers count every frame.

    Attributes:
        outgoing: frames that the transport has not taken yet. It sends from the front and calls
            `taken`.
        closing: why a close frame was sent, or None while none was.
        lost: why the connection is over, or None while it is not.
        sent: messages whose last byte was handed over.
        rtt_ns: round trip of the last ping that was answered, or None.
    """

    def __init__(self, config: Config, now: float, control_frame_sent: Callable[[], None]) -> None:
        self._config = config
        self._control_frame_sent = control_frame_sent
        # What is to be sent, and which messages were.
        self.outgoing = bytearray()
        self.sent = 0
        self._taken = 0  # bytes that the transport took
        self._ends: collections.deque[int] = collections.deque()  # where, in those, messages end
        # What is expected, and until when.
        self._heard = now
        self._next_ping = now + config.ping_interval if config.ping_interval else None
        self._ping: bytes | None = None  # the one that is not answered yet
        self._pinged = now
        self._pong_until: float | None = None
        self._close_until: float | None = None
        self.rtt_ns: int | None = None
        # How it ends.
        self.closing: Disconnect | None = None
        self.lost: Disconnect | None = None

    # -- what is sent

    def send(self, payload: bytes, *, text: bool) -> None:
        """Add a message to `outgoing`; not after a close frame."""
        self._put(payload, ABNF.OPCODE_TEXT if text else ABNF.OPCODE_BINARY)
        self._ends.append(self._taken + len(self.outgoing))

    def _put(self, payload: bytes, opcode: int) -> None:
        self.outgoing += ABNF.create_frame(payload, opcode).format()  # masked with a new key

    def taken(self, count: int) -> None:
        """The transport took so many bytes from the front of `outgoing`."""
        del self.outgoing[:count]
        self._taken += count

    def handed_over(self) -> None:
        """All that was taken is with the socket (TLS may hold encrypted bytes back): messages that
        end in it count as sent."""
        while self._ends and self._ends[0] <= self._taken:
            self._ends.popleft()
            self.sent += 1

    def close(self, code: int, reason: str, now: float, because: Disconnect | None = None) -> None:
        """Begin the closing handshake, or answer it (RFC 6455 section 7.1): send a close frame. The
        stream's end, or `Config.close_timeout`, makes `lost` what `because` says, by default an
        orderly close. What still comes is to be thrown away. A second call does nothing."""
        if self.closing is not None or self.lost is not None:
            return
        self.closing = because or Disconnect(None, code, reason)
        self._close_until = now + self._config.close_timeout
        self._next_ping = self._pong_until = None
        self._put(close_payload(code, reason), ABNF.OPCODE_CLOSE)

    # -- what was received

    def ping_received(self, payload: bytes) -> None:
        """Answer with a pong."""
        if self.closing is None and len(self.outgoing) < PONG_BACKLOG_MAX:
            self._put(payload, ABNF.OPCODE_PONG)
            self._control_frame_sent()

    def pong_received(self, payload: bytes, now: float) -> None:
        """The answer to a ping, or one that nobody asked for (RFC 6455 section 5.5.3)."""
        if payload == self._ping:
            self.rtt_ns = round((now - self._pinged) * 1e9)
            self._ping = self._pong_until = None

    def close_received(self, code: int, reason: str, now: float) -> None:
        """The server closes: echo the code; the server closes the socket first."""
        reason = self._config.redact(reason)
        error = None
        if code not in (NORMAL, GOING_AWAY, NO_CODE):
            error = f"the server closed with code {code}: {reason or 'no reason given'}"
        self.close(code, "", now, Disconnect(error, code, reason))

    def fault_found(self, code: int, reason: str, now: float) -> None:
        """The server broke the protocol, so that RFC 6455 asks for a close with `code`."""
        self.close(code, reason, now, Disconnect(f"the server broke the protocol: {reason}"))

    def stream_ended(self) -> None:
        """The server closed the socket."""
        self._end("the server closed the socket without a close frame")

    def socket_failed(self, error: str) -> None:
        """Sending or receiving failed."""
        self._end(error)

    def _end(self, error: str) -> None:
        """It is over; a closing handshake that was begun says why."""
        if self.lost is None:
            self.lost = self.closing or Disconnect(self._config.redact(error))

    # -- time

    @property
    def deadline(self) -> float:
        """When `advance` is to be called at the latest."""
        times = [self._next_ping, self._pong_until, self._close_until]
        if self._config.idle_timeout is not None and self.closing is None:
            times.append(self._heard + self._config.idle_timeout)
        return min((t for t in times if t is not None), default=float("inf"))

    def advance(
        self, now: float, *, received: bool = False, partial: bool = False, unread: bool = False
    ) -> None:
        """Ping when it is time, and decide what is overdue.

        Args:
            now: the time.
            received: bytes came since the last call.
            partial: a message has begun and not ended with them, so a pong can't have come yet.
            unread: there may be more than was read, with what is missed among it: nothing is
                overdue.
        """
        if self.lost is not None:
            return
        if self._close_until is not None:
            if now >= self._close_until:
                self._end("the server did not close the socket in time")
            return
        if received or unread:
            self._heard = now
            if self._pong_until is not None and (partial or unread):
                self._pong_until = now + self._config.ping_timeout
        idle_timeout = self._config.idle_timeout
        if self._pong_until is not None and now >= self._pong_until:
            self._overdue(f"no pong within {self._config.ping_timeout:g} s")
        elif idle_timeout is not None and now >= self._heard + idle_timeout:
            self._overdue(f"the server said nothing for {idle_timeout:g} s")
        elif self._next_ping is not None and now >= self._next_ping:
            self._send_ping(now)

    def _overdue(self, error: str) -> None:
        """Send a close frame, in case it is read, and wait for nothing: nothing came before."""
        self._put(close_payload(GOING_AWAY, error), ABNF.OPCODE_CLOSE)
        self._end(error)

    def _send_ping(self, now: float) -> None:
        self._next_ping = now + (self._config.ping_interval or 0.0)
        if self._ping is None:
            self._ping = os.urandom(_PING_PAYLOAD)
            self._pinged = now
            self._pong_until = now + self._config.ping_timeout
            self._put(self._ping, ABNF.OPCODE_PING)
            self._control_frame_sent()
