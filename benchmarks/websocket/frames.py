"""The messages of a round, and their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MESSAGE_BYTES: Final = 200
ROUND: Final = 1280
"""Number of messages in a round; a multiple of SAMPLE_EVERY."""
SAMPLE_EVERY: Final = 64
"""Receivers compare each message whole whose number is a multiple of this."""

_FILLER: Final = b"x" * (MESSAGE_BYTES - 10)
PAYLOADS: Final = [b"%09d%b%c" % (i, _FILLER, i % SAMPLE_EVERY) for i in range(ROUND)]

CLOSE_FRAME: Final = b"\x88\x02\x03\xe8"
"""With the code 1000."""

_FIN_TEXT: Final = 0x81
_FIN_BINARY: Final = 0x82
_LENGTH_IN_2_BYTES: Final = 126
_LENGTH_IN_8_BYTES: Final = 127

Writes = Sequence[bytes]
"""What the server sends, one write each; over TLS one record each."""


def frame(payload: bytes, *, is_text: bool = True) -> bytes:
    """A message in one frame, as a server sends it (RFC 6455, section 5.2)."""
    first = _FIN_TEXT if is_text else _FIN_BINARY
    size = len(payload)
    if size < _LENGTH_IN_2_BYTES:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, _LENGTH_IN_2_BYTES)) + size.to_bytes(2, "big") + payload
    return bytes((first, _LENGTH_IN_8_BYTES)) + size.to_bytes(8, "big") + payload


FRAMES: Final = tuple(frame(payload) for payload in PAYLOADS)
FRAME_BYTES: Final = len(FRAMES[0])


def round_in_writes(frames_per_write: int) -> Writes:
    """A round, divided into writes of so many frames."""
    return [b"".join(FRAMES[i : i + frames_per_write]) for i in range(0, ROUND, frames_per_write)]


def end_payload(count: int) -> bytes:
    """The payload of the message that ends a stream of `count` messages."""
    return b"end %012d~" % count  # "~" is no number modulo SAMPLE_EVERY


END_BYTES: Final = len(frame(end_payload(0))) + len(CLOSE_FRAME)
"""Length of what ends a stream, whatever its count."""
