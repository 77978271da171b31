"""Frames of RFC 6455 section 5.2, right and wrong ones, built by code of the tests' own."""

from __future__ import annotations

import struct
from typing import Final

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
FIN: Final = 0x80
MASKED: Final = 0x80
MASK: Final = b"\x11\x22\x33\x44"


def header(
    opcode: int, length: int, *, fin: bool = True, form: int | None = None, masked: bool = False
) -> bytes:
    """A frame's first bytes, without its mask.

    Args:
        opcode: with the bits before it that are to be set, as they lie in the first byte.
        length: of the payload, in bytes.
        fin: is it the message's last frame?
        form: bytes of the extended length (0, 2 or 8); None for the fewest.
        masked: does a mask follow?
    """
    if form is None:
        form = 0 if length < 126 else 2 if length < 1 << 16 else 8
    first, second = opcode | (FIN if fin else 0), MASKED if masked else 0
    if form == 0:
        return bytes((first, second | length))
    return bytes((first, second | (126 if form == 2 else 127))) + length.to_bytes(form, "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, form: int | None = None) -> bytes:
    """A server's frame."""
    return header(opcode, len(payload), fin=fin, form=form) + payload


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame."""
    length = len(payload)
    key = (MASK * (length // 4 + 1))[:length]
    data = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return header(opcode, length, fin=fin, masked=True) + MASK + data.to_bytes(length, "big")


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    """A server's close frame, with any code or none."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)
