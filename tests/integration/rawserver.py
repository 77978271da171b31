"""A WebSocket server that sends exactly the bytes of a test, in the pieces of the test.

It does the opening handshake and knows how to read a client's frames; what it sends afterwards is
the test's, right or wrong. Every wait has a deadline.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

import pytest

from tests.conftest import DEADLINE
from tests.frames import CLOSE

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_KEY: Final = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r ]+)")


class Frame(NamedTuple):
    """A frame of the client's, unmasked."""

    opcode: int
    payload: bytes


class Peer:
    """The server's end of one connection; the handshake is done.

    Attributes:
        masks: of the client's frames so far.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._truncated = False
        self.masks: list[bytes] = []
        try:
            self._shake_hands()
        except BaseException:
            sock.close()
            raise

    def _shake_hands(self) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += self._some(1)
        key = _KEY.search(request)
        assert key is not None, request
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest())  # noqa: S324 (RFC 6455)
        self.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def send(self, *pieces: bytes) -> None:
        """Send each piece by a call of its own."""
        for piece in pieces:
            self._sock.sendall(piece)

    def frame(self) -> Frame | None:
        """The client's next frame, which must be whole and masked; None at the stream's end."""
        try:
            first = self._sock.recv(1)
        except ssl.SSLError:
            if not self._truncated:
                raise
            return None  # TLS answers a truncated stream with an alert
        if not first:
            return None
        second = self._some(1)[0]
        assert first[0] & 0xF0 == 0x80, f"a client's frame begins with {first[0]:#x}"
        assert second & 0x80, "a client's frame is not masked"
        length = second & 0x7F
        extra = {126: 2, 127: 8}.get(length, 0)
        if extra:
            length = int.from_bytes(self._some(extra), "big")
        mask = self._some(4)
        self.masks.append(mask)
        payload = self._some(length)
        return Frame(first[0] & 0x0F, bytes(b ^ mask[i & 3] for i, b in enumerate(payload)))

    def answers(self) -> list[Frame]:
        """The client's frames up to its close frame, or to the end of its stream."""
        frames: list[Frame] = []
        while (got := self.frame()) is not None:
            frames.append(got)
            if got.opcode == CLOSE:
                break
        return frames

    def shut(self, *, notify: bool = True) -> None:
        """Send no more, but read on.

        Args:
            notify: end TLS in order; False truncates it, as a connection that breaks does.
        """
        if notify and isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(0)  # the client's answer is not waited for
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLEOFError):
                self._sock.unwrap()
            self._sock.settimeout(DEADLINE)
        else:
            self._truncated = True
            socket.socket.shutdown(self._sock, socket.SHUT_WR)

    def _some(self, size: int) -> bytes:
        """The next `size` bytes."""
        data = bytearray()
        while len(data) < size:
            piece = self._sock.recv(size - len(data))
            assert piece, f"the client's stream ends after {bytes(data)!r}"
            data += piece
        return bytes(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._sock.close()


class RawServer:
    """Listens on 127.0.0.1, plain or with TLS.

    Attributes:
        ca: PEM file by which a client trusts it; None for plain TCP.
        url: where to connect.
    """

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self._context: ssl.SSLContext | None = None
        self.ca: Path | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
            self.ca = certificate[0]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        scheme = "ws" if certificate is None else "wss"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}/"

    def accept(self) -> Peer:
        """Wait for the next client and do the handshake with it."""
        sock, _ = self._listener.accept()
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_side=True)
        return Peer(sock)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key; skips the test where
    there is no `openssl`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=ringcast-test"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    return certificate, key
