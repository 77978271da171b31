"""TLS over a socket, done in memory: the socket is read many records at a time, and they are
decrypted one after the other straight to where their bytes are to stay.

`ssl.SSLSocket` reads each record with two system calls, which for small records cost more than all
the rest together.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["Stream", "StreamContext"]

_READ_MOST: Final = 1 << 18
_WRITE_MOST: Final = 1 << 14
_UNSENT_MOST: Final = 1 << 20

T = TypeVar("T")


class Stream:
    """A TLS connection over `sock`, which it owns: as much of a socket's methods as
    websocket-client and `Connection` use.

    Attributes:
        tls: what decrypts; `incoming` is where it takes the socket's bytes from.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str | None
    ) -> None:
        self._sock = sock
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self._outgoing, server_hostname=server_hostname)
        self._unsent = bytearray()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def gettimeout(self) -> float | None:
        """As the socket's."""
        return self._sock.gettimeout()

    def settimeout(self, seconds: float | None) -> None:
        """As the socket's."""
        self._sock.settimeout(seconds)

    def setblocking(self, blocking: bool) -> None:
        """As the socket's."""
        self._sock.setblocking(blocking)

    def shutdown(self, how: int) -> None:
        """As the socket's; TLS says no goodbye, the WebSocket does."""
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    @property
    def unsent(self) -> bool:
        """Are there encrypted bytes that the socket has not taken?"""
        return bool(self._unsent or self._outgoing.pending)

    def do_handshake(self) -> None:
        """Shake hands; all of it within the socket's time-out."""
        self._do(self.tls.do_handshake)

    def recv(self, n: int) -> bytes:
        """At most `n` bytes; none: the stream has ended.

        Raises: as `ssl.SSLSocket` does.
        """
        try:
            return self._do(lambda: self.tls.read(n))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    def send(self, data: bytes | bytearray) -> int:
        """Send some of it; returns how much. Bytes once encrypted are sent with `flush`.

        Raises:
            ssl.SSLWantWriteError: the socket takes nothing now.
            OSError: the socket failed.
        """
        if not self.flush():
            raise ssl.SSLWantWriteError
        n = self._do(lambda: self.tls.write(memoryview(data)[:_WRITE_MOST]))
        self.flush()
        return n

    def flush(self) -> bool:
        """Send what is encrypted; False: not all of it was taken."""
        if self._outgoing.pending:
            self._unsent += self._outgoing.read()
        if len(self._unsent) > _UNSENT_MOST:
            raise OSError("the server makes TLS answer, and does not read the answers")
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return False
        return True

    def _do(self, step: Callable[[], T]) -> T:
        timeout = self._sock.gettimeout()
        end = None if not timeout else time.monotonic() + timeout
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.flush()
                if end is not None and time.monotonic() > end:
                    raise TimeoutError("TLS took too long") from None
                self._receive()
            finally:
                self.flush()

    def _receive(self) -> None:
        try:
            received = self._sock.recv(_READ_MOST)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        if received:
            self.incoming.write(received)
        else:
            self.incoming.write_eof()


class StreamContext(ssl.SSLContext):
    """A context whose wrapped sockets are a `Stream`."""

    def wrap_socket(  # type: ignore[override]
        self, sock: socket.socket, *_: Any, server_hostname: str | None = None, **__: Any
    ) -> Stream:
        """Shake hands and return the stream."""
        stream = Stream(sock, self, server_hostname)
        stream.do_handshake()
        return stream
