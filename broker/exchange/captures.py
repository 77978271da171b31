"""Captures: what an exchange sent over one WebSocket connection, with the times it arrived.

A file is lines of three fields, gzipped when its name ends with ``.gz``:

    receive time in ns TAB text|binary|sent TAB payload

Nothing is escaped: a text payload is whatever follows the second TAB up to the end of the line,
further TABs included, so a capture can't hold a text with a line feed. A binary payload is in
base64. ``sent`` is text that the client sent.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

__all__ = ["CaptureError", "Kind", "Record", "extend_digest", "read"]

Kind = Literal["text", "binary", "sent"]


class CaptureError(ValueError):
    """A file that is not a capture. The message names the file, the line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message.

    Attributes:
        time_ns: when the client received or sent it, Unix time.
        kind: "text" or "binary" if it was received, "sent" if it was sent.
        payload: its bytes; UTF-8 unless it is binary.
    """

    time_ns: int
    kind: Kind
    payload: bytes


def read(path: Path | str) -> Iterator[Record]:
    """The records of a capture, in the order of the file, each read when it is asked for.

    Raises:
        CaptureError: a line is not a record, or the file is not whole gzip data.
        OSError: the file cannot be opened or read.
    """
    path = Path(path)
    number = 0
    with _open(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):  # noqa: B007 - for the errors
                yield _record(line.removesuffix(b"\n"))
        except ValueError as error:
            raise CaptureError(f"{path}, line {number}: {error}") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CaptureError(
                f"{path}, after line {number}: not whole gzip data ({error})"
            ) from error


def extend_digest(digest: int, is_text: bool, payload: bytes | memoryview) -> int:
    """The digest of a sequence of messages after one more; that of no messages is 0.

    Two sequences with the same digest had the same messages in the same order, cut at the same
    places, and text and binary at the same places; but for a chance of one in 2**32.
    """
    head = len(payload).to_bytes(8, "little") + (b"t" if is_text else b"b")
    return zlib.crc32(payload, zlib.crc32(head, digest))


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _record(line: bytes) -> Record:
    fields = line.split(b"\t", 2)
    if len(fields) != 3:
        raise ValueError(
            f"{len(fields)} of the 3 fields: time in ns TAB text|binary|sent TAB payload"
        )
    time, kind, payload = fields
    if not time.isdigit():
        raise ValueError(f"the time {time[:30]!r} is no number of nanoseconds")
    if kind == b"binary":
        return Record(int(time), "binary", _decoded(payload))
    if kind not in {b"text", b"sent"}:
        raise ValueError(f"the kind {kind[:30]!r} is none of text, binary and sent")
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"text that is not UTF-8, at byte {error.start}") from error
    return Record(int(time), "text" if kind == b"text" else "sent", payload)


def _decoded(payload: bytes) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a binary payload that is not base64 ({error})") from error
