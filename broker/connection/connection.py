"""The open connection: the socket, what is received from it into the ring, and `Protocol` for all
that is rare: answering pings, pinging, sending, and the closing handshake."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from ..config import Config
from ._ingest import (
    CLOSE,
    CONTROL,
    DRAINED,
    ENDED,
    FAULT,
    FULL,
    MORE,
    NAME,
    PING,
    PONG,
    Ingest,
)
from .outcome import OpenSocket
from .protocol import Protocol
from .tls import Stream

__all__ = ["Connection"]

_DISCARD_BYTES: Final = 1 << 16
_DISCARDS_MAX: Final = 64
"""In one turn, so that the manager can look at the clock."""
_EVENTS: Final = frozenset((PING, PONG, CLOSE, FAULT, ENDED))
"""Outcomes of receiving that are the protocol's business."""
_MESSAGES: Final = frozenset((NAME, CONTROL))
"""Outcomes of receiving that concern a message."""
_WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def _no_topic(_name: bytes) -> tuple[int, int]:
    return 0, 0


def _to_everyone(_payload: bytes) -> tuple[int, bool]:
    return 0, False


class Connection:
    """Receives into the ring, answers, pings, closes.

    The manager calls `turn` when the socket is ready or the protocol's deadline has come, and again
    at once while that returns MORE.

    Args:
        opened: the socket, which the connection owns from now on.
        ingest: what receives into the ring.
        number: of this connection, which stands in the descriptors of its messages.
        config: the manager's.
        control_frame_sent: called for each ping and pong.
        resolve_name: called with each new name that the ingest's finder finds; returns the topic's
            id and the key of its messages. The message is published after that.
        control_received: called with each message for the manager itself; returns the slot of the
            reader that is to get it, + 1, or 0 for all, and whether it is somebody's answer.
            The message is published after that.

    Attributes:
        protocol: the connection's state: `lost`, `closing`, `deadline`, `sent`, `rtt_ns`.
        began: when it opened, time.monotonic() seconds.
    """

    def __init__(
        self,
        opened: OpenSocket,
        ingest: Ingest,
        number: int,
        config: Config,
        control_frame_sent: Callable[[], None],
        *,
        resolve_name: Callable[[bytes], tuple[int, int]] = _no_topic,
        control_received: Callable[[bytes], tuple[int, bool]] = _to_everyone,
    ) -> None:
        self.began = time.monotonic()
        self.protocol = Protocol(config, self.began, control_frame_sent)
        self._sock = opened.sock
        self._tls = opened.sock if isinstance(opened.sock, Stream) else None
        self._ingest = ingest
        self._resolve_name = resolve_name
        self._control_received = control_received
        self._drained = False  # the server may have sent something already, and TLS hold it
        ingest.begin(number & 0xFFFF)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    @property
    def accepts_messages(self) -> bool:
        """Can messages still be sent here?"""
        return self.protocol.closing is None and self.protocol.lost is None

    def poll_mask(self, *, reading: bool) -> int:
        """What to poll the socket for."""
        mask = select.POLLIN if reading else 0
        return mask | select.POLLOUT if self._has_to_write() else mask

    def _has_to_write(self) -> bool:
        return bool(self.protocol.outgoing) or (self._tls is not None and self._tls.unsent)

    # -- sending

    def put(self, payload: bytes, *, text: bool) -> None:
        """Make a message ready for `flush`."""
        self.protocol.send(payload, text=text)

    @property
    def backlog(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self.protocol.outgoing)

    def flush(self) -> None:
        """Send as much as the socket takes."""
        protocol = self.protocol
        try:
            if self._tls is not None:
                self._tls.flush()
            while protocol.outgoing:
                protocol.taken(self._sock.send(protocol.outgoing))
        except _WOULD_BLOCK:
            pass  # poll says when, or the next read brings what TLS waits for
        except OSError as error:
            protocol.socket_failed(f"sending failed: {error.strerror or error}")
        if self._tls is None or not self._tls.unsent:
            protocol.handed_over()

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; what still comes is thrown away. See `Protocol.close`."""
        self.protocol.close(code, reason, time.monotonic())
        self._ingest.end()
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
        protocol, ingest = self.protocol, self._ingest
        if self._has_to_write():
            self.flush()
        outcome = DRAINED
        before, queued = ingest.received_bytes, len(protocol.outgoing)
        if protocol.lost is None and (ready or not self._drained):
            if protocol.closing is not None:
                outcome = self._discard()
                self._drained = outcome == DRAINED
            elif reading:
                outcome = self._receive()
                self._drained = outcome == DRAINED
        received = ingest.received_bytes != before
        protocol.advance(
            time.monotonic(),
            received=received,
            partial=received and ingest.partial,
            unread=not self._drained,
        )
        if len(protocol.outgoing) > queued:
            self.flush()
        return outcome

    def publish_received(self) -> bool:
        """Publish what the socket gave and found no room, and receive nothing more.

        Returns:
            True when all of it is in the ring, False while the ring is full.
        """
        while self.accepts_messages:
            try:
                if self._tls is None:
                    outcome = self._ingest.publish_received()
                else:
                    outcome = self._ingest.receive_tls(self._tls, receiving=False)
            except OSError:  # of TLS: nothing more of it can be read
                return True
            if outcome == FULL:
                return False
            if outcome in _MESSAGES:
                self._hand_over(outcome)
            elif outcome not in (PING, PONG, MORE):
                return True
        return True

    def _receive(self) -> int:
        try:
            if self._tls is None:
                outcome = self._ingest.receive(self._sock.fileno())
            else:
                outcome = self._ingest.receive_tls(self._tls)
                self._tls.flush()
        except OSError as error:
            self.protocol.socket_failed(f"receiving failed: {error.strerror or error}")
            return DRAINED
        if outcome in _MESSAGES:
            self._hand_over(outcome)
        elif outcome in _EVENTS:
            self._report(outcome)
        else:
            return outcome
        return MORE

    def _hand_over(self, outcome: int) -> None:
        """A name that is new, or a message for the manager."""
        payload = self._ingest.payload
        if outcome == NAME:
            self._ingest.name(payload, *self._resolve_name(payload))
        else:
            self._ingest.deliver(*self._control_received(payload))

    def _report(self, outcome: int) -> None:
        """Hand a control frame, a fault or the end to the protocol."""
        protocol, ingest = self.protocol, self._ingest
        if outcome == PING:
            protocol.ping_received(ingest.payload)
        elif outcome == PONG:
            protocol.pong_received(ingest.payload, time.monotonic())
        elif outcome == CLOSE:
            protocol.close_received(ingest.code, ingest.payload[2:].decode(), time.monotonic())
        elif outcome == FAULT:
            protocol.fault_found(ingest.code, ingest.reason, time.monotonic())
        elif outcome == ENDED:
            protocol.stream_ended()
        if protocol.closing is not None:
            ingest.end()

    def _discard(self) -> int:
        """After the close frame: read on to the end of the stream. MORE: there is more to read."""
        try:
            for _ in range(_DISCARDS_MAX):
                if not self._sock.recv(_DISCARD_BYTES):
                    break
            else:
                return MORE
        except _WOULD_BLOCK:
            return DRAINED
        except OSError:  # a reset is an end, too
            pass
        self.protocol.stream_ended()
        return DRAINED
