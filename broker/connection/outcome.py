"""What comes of an attempt to connect, and of a connection."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from .tls import Stream

__all__ = ["ABNORMAL", "Disconnect", "OpenSocket"]

ABNORMAL = 1006
"""The code that stands for an end without a close frame (RFC 6455 section 7.1.5)."""


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """A socket whose opening handshake is done; non-blocking, and its reader's to close.

    Attributes:
        sock: the next byte that it gives is the first of the server's first frame.
        subprotocol: that the server chose, or None.
    """

    sock: socket.socket | Stream
    subprotocol: str | None


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Why there is no connection, or none any more.

    Attributes:
        error: in words, without secrets; None for an orderly close.
        code, reason: of the server's close frame; 1006 if there was none.
        final: another attempt would end the same way.
        retry_in: seconds that the server asked for, or None.
    """

    error: str | None
    code: int = ABNORMAL
    reason: str = ""
    final: bool = False
    retry_in: float | None = None
