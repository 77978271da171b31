"""Messages that are longer than a lane's longest: cut by the worker, put together by the manager.

Each part is a record of kind PART: number, count and kind of the whole (a header of 12 bytes), then
its bytes. Parts of one message come in order, since a lane keeps its order. What begins anew, or
goes on where nothing began, because a worker or a manager died in between, makes no message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

__all__ = ["KIND", "Assembly", "BadPartError", "split"]

KIND: Final = 17
"""Of a part; next to `shm.Kind`."""

_HEADER: Final = struct.Struct("<III")


class BadPartError(ValueError):
    """A part that no worker makes."""


def split(data: bytes | memoryview, kind: int, size: int) -> Iterator[bytes]:
    """The parts of `data`, each at most `size` bytes."""
    chunk = size - _HEADER.size
    count = -(-len(data) // chunk)
    for number in range(count):
        piece = data[number * chunk : (number + 1) * chunk]
        yield _HEADER.pack(number, count, kind) + piece


@dataclass(slots=True)
class Assembly:
    """The message that one lane's parts are making.

    Attributes:
        limit: bytes that it may have.
    """

    limit: int
    _data: bytearray = field(default_factory=bytearray)
    _next: int = 0
    _whole: tuple[int, int] = (0, 0)

    def add(self, part: bytes) -> tuple[bytes, int] | None:
        """Add the next part; returns the message and its kind when that was the last.

        Raises:
            BadPartError: it has no header, or contradicts itself, or the message is too long.
            LookupError: it continues a message whose beginning is not here.
        """
        if len(part) < _HEADER.size:
            raise BadPartError("a part without a header")
        number, count, kind = _HEADER.unpack_from(part)
        if number >= count or len(self._data) + len(part) > self.limit + _HEADER.size:
            raise BadPartError(f"part {number} of {count}, of a message longer than {self.limit}")
        if number == 0:
            self._data.clear()
            self._next, self._whole = 0, (count, kind)
        if number != self._next or self._whole != (count, kind):
            self._next = -1
            raise LookupError(f"part {number} without those before it")
        self._data += memoryview(part)[_HEADER.size :]
        self._next += 1
        if self._next < count:
            return None
        message = bytes(self._data)
        self._data.clear()
        self._next = -1
        return message, kind
